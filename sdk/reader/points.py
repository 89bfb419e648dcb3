"""A series in few points that keep its extremes, for charts; read from the previews of columns where those are enough.

A column of a COLUMNS block tells the rows of the smallest and the largest value of each `ZONE_ROWS` rows (`StoredGroup.preview`).
Of a long series these alone are more than a chart has room for, and the values between them are not read. What is chosen in the
end is decided by MinMaxLTTB (Van Der Donckt et al., 2023; the library tsdownsample), which keeps what the eye sees; the first, the
last, the smallest and the largest value are added where it left them out. Without that library these four are taken of equal parts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from ..arrays import distinct
from ..errors import DamageError, UsageError
from ..segment.columns import FLOAT, INT, UINT, StoredGroup
from ..segment.format import ZONE_ROWS
from .columns import Column, collect, collect_entry
from .direct import Chunk
from .entries import Entry
from .lanes import Lane
from .scan import DIRECTORY, Scan
from .series import Series, read_several

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .epochs import Maker

# First, last, smallest, largest, and the three that the algorithm wants at least.
POINTS_MIN = 7
# So many candidates for each point: with fewer, what is left out can be seen in the chart (the paper takes 4, of which half are
# kept as good here).
_CANDIDATES = 2


def check_points(points: int | None) -> None:
    """Raises TypeError or ValueError where `points` cannot be."""
    if points is not None and (isinstance(points, bool) or not isinstance(points, int)):
        raise TypeError(f"points is {type(points).__name__}, expected int: {points!r}")
    if points is not None and points < POINTS_MIN:
        raise ValueError(f"points is {points}, expected at least {POINTS_MIN}")


def read_points(
    scan: Scan, lanes: list[Lane], keys: list[str], points: int, *, every: bool = False, maker: Maker | None = None
) -> dict[str, Series]:
    """As `read_several`, at most `points` values of each key whose values are numbers."""
    candidates = _Candidates(points, maker.collect if maker is not None else collect)
    logged = maker.definitions.logged if maker is not None else str
    found = read_several(scan, lanes, keys, every=every, collected=candidates.collect, logged=logged)
    return {key: _reduced(series, points, candidates.left_out.get(key, 0)) for key, series in found.items()}


def no_points(series: Series, points: int) -> UsageError:
    """What to say of a series that has more values than `points` and cannot be reduced."""
    return UsageError(
        f"{len(series)} values of {series.key!r} cannot be given as {points} points: they are no numbers",
        hint=f"run.series({series.key!r})",
    )


class Unit(NamedTuple):
    """An entry, which steps of it may hold the key, and the groups whose previews could stand for it; none: read it all."""

    entry: Entry
    limit: int
    low: int
    high: int
    groups: list[StoredGroup]


class _Candidates:
    """Collects the values of some keys of which points are chosen.

    Attributes:
        left_out: How many more values there are, by key.
    """

    def __init__(self, points: int, collected: Callable[..., dict[str, dict[int, Column]]]) -> None:
        self._points = points
        self._collected = collected
        self.left_out: dict[str, int] = {}

    def collect(
        self, scan: Scan, plan: dict[int, list[Entry]], lane: Lane, keys: Iterable[str]
    ) -> dict[str, dict[int, Column]]:
        """As `columns.collect`."""
        columns: dict[str, dict[int, Column]] = {}
        whole = [key for key in keys if not self._collect_previews(scan, plan, lane, key, columns)]
        return {**columns, **self._collected(scan, plan, lane, whole)} if whole else columns

    def _collect_previews(
        self, scan: Scan, plan: dict[int, list[Entry]], lane: Lane, key: str, columns: dict[str, dict[int, Column]]
    ) -> bool:
        """Whether there are enough previews of a key; then they are collected, and the values of what has none."""
        units = [
            unit_of(scan, entry, limit, key, 2 * ZONE_ROWS)
            for stream, limit in zip(lane.streams, lane.step_limits)
            for entry in plan.get(stream.id, ())
            if entry.step_min < limit
        ]
        chosen = told_apart(units)
        found = sum(2 * (len(group) // ZONE_ROWS) for place in chosen for group in units[place].groups)
        if found < _CANDIDATES * self._points:
            return False
        for place, unit in enumerate(units):
            if place not in chosen or not self._take_previews(unit, key, columns):
                collect_entry(scan, unit.entry, frozenset([key]), unit.limit, False, columns)
        for column in columns.get(key, {}).values():
            column.flush()
        return True

    def _take_previews(self, unit: Unit, key: str, columns: dict[str, dict[int, Column]]) -> bool:
        """Whether the previews of a unit are good; then they are taken."""
        chunks = []
        rows = 0
        with contextlib.suppress(DamageError):
            for group in unit.groups:
                preview = group.preview(key)
                if preview is None or int(preview.steps.min()) < unit.low or int(preview.steps.max()) > unit.high:
                    return False
                # No sequences: no other value of the lane has one of these steps.
                chunks.append(Chunk(None, preview.steps, preview.times_ns // 1000, preview.values))
                rows += len(group) - len(preview.steps)
            for chunk in chunks:
                columns.setdefault(key, {}).setdefault(unit.entry.stream, Column()).extend(chunk)
            self.left_out[key] = self.left_out.get(key, 0) + rows
            return True
        return False


def unit_of(scan: Scan, entry: Entry, limit: int, key: str, rows_min: int = 1) -> Unit:
    """What an entry may hold of a key; with its groups where their directory tells enough of at least `rows_min` rows each."""
    all_of_it = Unit(entry, limit, entry.step_min, entry.step_max, [])
    if not entry.is_window:
        return all_of_it
    groups: list[StoredGroup] = []
    for part in scan.parts(entry, frozenset([key]), depth=DIRECTORY):
        if not isinstance(part, StoredGroup):
            return all_of_it
        if key in part.keys:
            groups.append(part)
    if not groups:  # the key is not in it: it stands in nobody's way
        return Unit(entry, limit, limit, limit, [])
    low, high = min(group.step_min for group in groups), max(group.step_max for group in groups)
    return Unit(entry, limit, low, high, groups if high < limit and _is_told(groups, key, rows_min) else [])


def _is_told(groups: list[StoredGroup], key: str, rows_min: int) -> bool:
    """Whether the directory tells the extremes of these groups, and none of the groups shares a step with another."""
    spans = sorted((group.step_min, group.step_max) for group in groups)
    if any(after[0] <= before[1] for before, after in zip(spans, spans[1:])):
        return False
    for group in groups:
        if group.kind(key) not in (FLOAT, INT, UINT) or len(group) < rows_min:
            return False
        with contextlib.suppress(DamageError):
            told = group.statistics(key)
            if told is not None and told.minimum is not None:
                continue
        return False
    return True


def told_apart(units: list[Unit]) -> set[int]:
    """The places of the units of which the directory tells enough: no other one has one of their steps, and they hold neither the
    first nor the last value, which no directory tells.
    """  # fmt: skip
    order = sorted(
        (place for place in range(len(units)) if units[place].low < units[place].limit), key=lambda p: units[p].low
    )
    able = []
    highest = -1
    for here, after in zip(order, [*order[1:], None]):
        unit = units[here]
        is_apart = unit.low > highest and (after is None or unit.high < units[after].low)
        highest = max(highest, unit.high)
        if unit.groups and is_apart:
            able.append(here)
    return set(able[1:-1])


def _reduced(series: Series, points: int, left_out: int) -> Series:
    """At most `points` values of a series of numbers; any other as it is."""
    count = len(series) + left_out
    if count <= points:
        return series
    value = series.value
    if value.dtype.kind not in "fiub":
        return series
    kept = numpy.flatnonzero(~numpy.isnan(value)) if value.dtype.kind == "f" else numpy.arange(len(value))
    if len(kept) > points:
        kept = kept[_chosen(series.step[kept], value[kept], points)]
    stream = None if series.stream is None else series.stream[kept]
    return dataclasses.replace(
        series, step=series.step[kept], time=series.time[kept], value=value[kept], stream=stream, sample_of=count
    )


def _chosen(step: NDArray[numpy.int64], value: NDArray[Any], points: int) -> NDArray[numpy.int64]:
    """Places of at most `points` values that keep the extremes, rising."""
    x = step.astype(numpy.float64)
    library = _library()
    if library is None:
        return extremes(x, value, points)
    found = library.MinMaxLTTBDownsampler().downsample(x, _scaled(value), n_out=points - 4)
    ends = [0, len(value) - 1, int(value.argmin()), int(value.argmax())]
    return distinct(numpy.concatenate([found.astype(numpy.int64), ends]))


def extremes(x: NDArray[numpy.float64], value: NDArray[Any], points: int) -> NDArray[numpy.int64]:
    """Places of at most `points` values, rising: the first, the last, the smallest and the largest in each of as many equal parts of x."""
    if len(x) <= points:
        return numpy.arange(len(x))
    parts = max(points // 4, 1)
    ends = numpy.searchsorted(x, numpy.linspace(x[0], x[-1], parts + 1)[1:-1], "right")
    starts = distinct(numpy.concatenate(([0], ends[ends < len(x)])))
    part = numpy.repeat(numpy.arange(len(starts)), numpy.diff(numpy.append(starts, len(x))))
    order = numpy.lexsort((value, part))
    last = numpy.append(starts[1:], len(x)) - 1
    return distinct(numpy.concatenate((starts, last, order[starts], order[last])))


def _scaled(value: NDArray[Any]) -> NDArray[numpy.float64]:
    """Values between 0 and 1 in the same proportions, so that areas of triangles are finite; infinities as the ends."""
    number = value.astype(numpy.float64)
    finite = number[numpy.isfinite(number)]
    if not len(finite):
        return numpy.clip(number, 0.0, 1.0)
    low, high = finite.min() / 2, finite.max() / 2  # halves: their difference is finite
    if high == low:
        return numpy.clip(number - finite[0], -1.0, 1.0)
    with numpy.errstate(over="ignore"):
        return numpy.clip((number / 2 - low) / (high - low), 0.0, 1.0)


def _library() -> Any:
    """The module tsdownsample; None where it is not installed."""
    try:
        return importlib.import_module("tsdownsample")
    except ImportError:
        return None
