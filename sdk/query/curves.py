"""What a chart of several runs and keys shows: for each line its points, its last and its best value, and what is missing in it.

A line is one key of one run, or of a group of runs: the mean of its members and a band around it. Points are chosen before anybody
draws, so that a run of ten million steps costs what one of a thousand does; the smallest and the largest value are among them.

Smoothing is TensorBoard's: an exponential mean of the values, each weighing `smooth` times what the next one does, divided by what the
weights sum to (so that it does not begin at 0). As there it is applied to at most 1,000 values, so that the same number means the same
for a run of any length; of a longer series they are means of as many slices.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy

from ..errors import NotFoundError, UsageError
from ..headline import choose_keys
from ..reader import Run
from ..reader.lanes import TRAINING
from ..reader.points import extremes
from ..reader.run import SYSTEM_PREFIX
from ..reader.series import numbers_in
from .members import BANDS, groups_of, united

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..reader.series import Series

    Floats: TypeAlias = NDArray[numpy.float64]

SLICES_MAX = 1_000
# Limit: what is read whole where points are not enough (means of slices): 10**6 values are 24 MB and some 50 ms.
_WHOLE_MAX = 1_000_000
# Limit: points of all members of a group, which are held at once in some copies: 40 MB each.
_GROUP_VALUES_MAX = 5_000_000
_DEFAULT_KEYS_MAX = 4
# Limit: marks of one line; nearer ones are joined.
_MARKS_MAX = 500
# Limits: whose keys are looked at to choose the default ones, as the runs of one command are mostly alike; and how many of them may hold
# no numbers before nobody looks further.
_LOOKED_AT_MAX = 4
_EMPTY_MAX = 48
_PATTERN = "*?["


class Line(NamedTuple):
    """One line of a chart. Arrays are the caller's own, sorted by x.

    Attributes:
        run: The id; of a group the ids of its members, with commas between.
        name: The run's name, or the values by which a group was made. project: Of the (first) run.
        x, y: float64[n], all finite; y is smoothed where that was asked for.
        raw: float64[n], what was smoothed; None: nothing was.
        low, high: float64[n], the band of a group, NaN where it has none; None without one.
        last, best, best_x: Of the values as logged (of a group: of the mean); None without any. No best where no end is known to be good.
        goal: "min" or "max", which of them is the best; None: neither, as of an epoch.
        count: How many values it stands for, of numbers. not_finite: how many of those were NaN or infinite and are left out.
        gaps: Where records are missing, from and to, in x.
        attempts: Where an attempt after the first began, in x.
        members: Runs of the group, else 1.
    """

    run: str
    name: str
    project: str
    key: str
    x: Floats
    y: Floats
    raw: Floats | None
    low: Floats | None
    high: Floats | None
    last: float | None
    best: float | None
    best_x: float | None
    goal: str | None
    count: int  # type: ignore[assignment]  # nobody asks a line how often something is in it
    not_finite: int
    gaps: list[tuple[float, float]]
    attempts: list[float]
    members: int


class Lines(NamedTuple):
    """The lines of one chart, key by key.

    Attributes:
        x_name: "step", "time" (Unix seconds), "relative" (seconds since the run was created) or a key.
        notes: What a reader should know beside them, a sentence each.
    """

    x_name: str
    lines: list[Line]
    notes: list[str]


class _Found(NamedTuple):
    run: Run
    key: str
    series: Series


def read_lines(
    runs: Sequence[Run], keys: Sequence[str], *, x: str = "auto", points: int = 2000, smooth: float | None = None,
    group: Sequence[str] = (), over: str | None = None, band: str | None = None, rank: int | None = None,
    stream: str | None = None, lines_max: int | None = None,
) -> Lines:  # fmt: skip
    """The lines of some keys of some runs.

    Args:
        keys: Names, or patterns ("train/*"), which mean the keys that hold numbers.
        x: As in `Run.series`; "auto" is the step where the keys have several axes, and the time since the run was created
            ("relative") with a key of what was observed ("system/…"), which has steps of its own.
        points: At most so many of each line.
        smooth: From 0 (not at all) to below 1.
        group: Names of what makes a group ("config.method"): runs of the same values are one line, their mean.
        over: What differs within a group ("seed"); without `group` all other config keys that differ make groups.
        band: What is drawn around the mean: "std", "sem", "minmax" or "ci95" (of the mean, by Student's t).
        rank, stream: As in `Run.series`.
        lines_max: Without groups at most so many lines; further keys are not read, which is noted.

    Raises:
        NotFoundError: No run holds a key, or what it holds are no numbers; no run has anything of a name to group by.
        UsageError: `smooth` or `band` is none.
    """
    _check(smooth, band)
    if x == "auto" and any(key.startswith(SYSTEM_PREFIX) for key in keys):
        x = "relative"
    with numpy.errstate(over="ignore", invalid="ignore"):  # distances of the largest floats
        return _read_lines(
            runs, keys, x, points, smooth, group, over, band, {"rank": rank, "stream": stream}, lines_max
        )


def _read_lines(
    runs: Sequence[Run], keys: Sequence[str], x: str, points: int, smooth: float | None, group: Sequence[str],
    over: str | None, band: str | None, whose: dict[str, Any], lines_max: int | None,
) -> Lines:  # fmt: skip
    notes: list[str] = []
    reader = _Reader(x, points, whose)
    found = reader.read(runs, keys, notes, None if group or over else lines_max)
    x_name = _common_axis(found)
    if group or over:
        lines, said = _grouped(found, reader, x_name, points, group, over, band)
        notes += said
    else:
        lines = [_line(reader.with_finite(one), x_name, points) for one in found]
    if smooth:
        alone = itertools.repeat(None) if group or over else found
        lines = [
            _smoothed(line, one and _points_of(reader.whole(one), x_name), smooth) for line, one in zip(lines, alone)
        ]
    needs_all = bool(smooth or group or over)
    if any((one.series.sample_of or 0) > _WHOLE_MAX and (needs_all or _is_crowded(one.series)) for one in found):
        notes.append(
            f"of more than {_WHOLE_MAX:,} values only those count that were chosen to be drawn, extremes among them"
        )
    return Lines(x_name, [line for line in lines if line.count], notes)


def default_keys(runs: Sequence[Run]) -> list[str]:
    """The keys that a chart of some runs shows when nobody named one: losses, at most four, else the first that holds numbers.

    Raises:
        NotFoundError: None does.
    """
    for start in range(0, min(len(runs), _EMPTY_MAX), _LOOKED_AT_MAX):
        if found := _default_keys(runs[start : start + _LOOKED_AT_MAX]):
            return found
    names = ", ".join(run.id for run in runs[:3])
    raise NotFoundError(f"{names} holds no numbers to draw yet", hint=f"stepd show {runs[0].id}" if runs else "")


def _default_keys(looked_at: Sequence[Run]) -> list[str]:
    keys = sorted(set().union(*(run.shown_keys(quick=True) for run in looked_at)))
    losses = [key for key in keys if "loss" in key.lower()]
    found = [key for key in losses[: 2 * _DEFAULT_KEYS_MAX] if _holds_numbers(looked_at, key)]
    if found:
        return found[:_DEFAULT_KEYS_MAX]
    for key in choose_keys(keys, looked_at[0].metrics, len(keys)):
        if _holds_numbers(looked_at, key):
            return [key]
    return []


def _holds_numbers(runs: Sequence[Run], key: str) -> bool:
    for run in runs:
        values = run.sample([key], 8)[key][1]
        if len(values):
            return values.dtype.kind in "fiub" or any(type(value) in (int, float) for value in values)
    return False


def _check(smooth: float | None, band: str | None) -> None:
    if smooth is not None and not 0 <= smooth < 1:
        raise UsageError(f"smooth is {smooth!r}, expected a number from 0 to below 1", hint="--smooth 0.6")
    if band is not None and band not in BANDS:
        raise UsageError(f"band is {band!r}, expected one of {', '.join(BANDS)}", hint="--band std")


# ---- reading


class _Reader:
    """Reads the series of a chart, in few points, and one at a time whole."""

    def __init__(self, x: str, points: int, whose: dict[str, Any]) -> None:
        self._x, self._points, self._whose = x, points, whose

    def read(
        self, runs: Sequence[Run], keys: Sequence[str], notes: list[str], lines_max: int | None
    ) -> list[_Found]:  # fmt: skip
        """Those of all keys, key by key."""
        named = list(dict.fromkeys(keys))
        by_pattern = {key for key in named if any(sign in key for sign in _PATTERN)}
        matched = {run.id: run.keys_like(named) if by_pattern else named for run in runs}
        order = list(dict.fromkeys(key for run in runs for key in matched[run.id]))
        found: list[_Found] = []
        for place, key in enumerate(order or named):
            if lines_max is not None and len(found) >= lines_max:
                notes.append(f"{lines_max} lines are drawn: {place} of {len(order)} keys")
                break
            holders = [run for run in runs if key in matched[run.id]]
            found += self._of_key(holders or list(runs), key, key not in named, notes)
        if not found:
            raise NotFoundError(
                f"no key of {', '.join(run.id for run in runs[:3])} that matches {', '.join(map(repr, named))} holds numbers",
                hint=f"stepd show {runs[0].id}" if runs else "",
            )
        return found[:lines_max]

    def _of_key(self, runs: Sequence[Run], key: str, is_matched: bool, notes: list[str]) -> list[_Found]:
        found: list[_Found] = []
        missing: NotFoundError | None = None
        without = 0
        for run in runs:
            try:
                series = run.series(key, x=self._x, points=self._points, **self._whose)
            except NotFoundError as error:
                missing, without = error, without + 1
                continue
            except UsageError:  # more values than points, and some are no numbers
                series = run.series(key, x=self._x, **self._whose)
            numbers = numbers_in(series)
            if numbers is not None:
                found.append(_Found(run, key, numbers))
                if len(numbers) < len(series):
                    left_out = len(series) - len(numbers)
                    notes.append(f"{left_out:,} of {len(series):,} values of {key!r} of {run.id} are no numbers")
            elif not is_matched:
                raise NotFoundError(f"{key!r} of {run.id} holds no numbers", hint=f"stepd show {run.id} {key}")
        if missing is not None and not found:
            raise missing
        if without and not is_matched:
            along = "" if self._x in ("auto", "step", "time", "relative") else f" with {self._x!r}"
            notes.append(f"{without} of {len(runs)} runs hold no {key!r}{along}")
        return found

    def with_finite(self, found: _Found) -> _Found:
        """The series, whole where infinities stand among its points: they took the places of the finite extremes."""
        return found._replace(series=self.whole(found)) if _is_crowded(found.series) else found

    def whole(self, found: _Found) -> Series:
        """All values, where they are not too many."""
        if found.series.sample_of is None or found.series.sample_of > _WHOLE_MAX:
            return found.series
        return found.run.series(found.key, x=self._x, **self._whose)


def _is_crowded(series: Series) -> bool:
    """Whether infinities are among points that were chosen."""
    return series.sample_of is not None and series.value.dtype.kind == "f" and bool(numpy.isinf(series.value).any())


def _common_axis(found: Iterable[_Found]) -> str:
    names = {one.series.x_name for one in found}
    return names.pop() if len(names) == 1 else "step"


# ---- lines


class _Points(NamedTuple):
    """Finite values of a series in the order of their places, and how many were left out because they were not."""

    x: Floats
    y: Floats
    not_finite: int


def _points_of(series: Series, x_name: str) -> _Points:
    x = (series.step if x_name == "step" else series.x).astype(numpy.float64)
    y = series.value.astype(numpy.float64)
    there = numpy.isfinite(x)
    finite = numpy.isfinite(y)
    kept = numpy.flatnonzero(there & finite)
    if len(kept) and not (x[kept[1:]] >= x[kept[:-1]]).all():
        kept = kept[numpy.argsort(x[kept], kind="stable")]
    return _Points(x[kept], y[kept], int((there & ~finite).sum()))


def _line(found: _Found, x_name: str, points: int) -> Line:
    run, key, series = found
    x, y, not_finite = _points_of(series, x_name)
    count = len(x) + not_finite
    if series.sample_of is not None:
        count = series.sample_of
        not_finite += _nans(run, key)
    kept = extremes(x, y, points)
    goal = _goal(run, key)
    last, best, best_x = _ends(x, y, goal)
    place = _placing(series, x_name)
    return Line(
        run.id, run.name, run.project, key, x[kept], y[kept], None, None, None, last, best, best_x, goal, count, not_finite,
        _gaps(run, key, place), _attempts(run, key, place), 1,
    )  # fmt: skip


def _nans(run: Run, key: str) -> int:
    """How many values of a long series are NaN, which its points leave out."""
    try:
        return run.numbers([key])[key].nans
    except KeyError:
        return 0


def _ends(x: Floats, y: Floats, goal: str | None) -> tuple[float | None, float | None, float | None]:
    if not len(y):
        return None, None, None
    if goal is None:
        return float(y[-1]), None, None
    place = int(y.argmax() if goal == "max" else y.argmin())
    return float(y[-1]), float(y[place]), float(x[place])


def _goal(run: Run, key: str) -> str | None:
    from .lookup import told_goal_of

    return told_goal_of(run, key)


def _placing(series: Series, x_name: str) -> Callable[[float], float]:
    """Gives the place of a step on the axis."""
    if x_name == "step" or not len(series):
        return float
    x = series.x.astype(numpy.float64)
    there = numpy.isfinite(x)
    steps, places = series.step[there], x[there]
    return lambda step: float(numpy.interp(step, steps, places)) if len(steps) else float(step)


def _gaps(run: Run, key: str, place: Callable[[float], float]) -> list[tuple[float, float]]:
    """Where records of the run, or values of the key, are missing."""
    if key.startswith(SYSTEM_PREFIX):  # what was observed counts its own steps
        return []
    training = {stream.id for stream in run.streams if stream.kind in TRAINING}
    spans = sorted(
        (gap.step_min, gap.step_max)
        for gap in run.gaps
        if gap.stream in training and gap.key in (None, key) and (gap.count or gap.values)
    )
    return [(place(low), place(high)) for low, high in _joined(spans)]


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted spans, joined where they touch, and where they are nearest until there are few."""
    highest = list(itertools.accumulate((high for _, high in spans), max))
    apart = sorted(((spans[n][0] - highest[n - 1], n) for n in range(1, len(spans))), reverse=True)
    starts = sorted(n for distance, n in apart[: _MARKS_MAX - 1] if distance > 1)
    ends = [0, *starts, len(spans)]
    return [(spans[start][0], highest[end - 1]) for start, end in itertools.pairwise(ends) if start < end]


def _attempts(run: Run, key: str, place: Callable[[float], float]) -> list[float]:
    return [] if key.startswith(SYSTEM_PREFIX) else [place(step) for step in run.resumed_at[-_MARKS_MAX:]]


# ---- smoothing


def exponential(values: Floats, weight: float) -> Floats:
    """The debiased exponential mean, as TensorBoard's."""
    found = numpy.empty(len(values))
    total = weights = 0.0
    for place, value in enumerate(values.tolist()):
        total = total * weight + (1 - weight) * value
        weights = weights * weight + (1 - weight)
        found[place] = total / weights
    return found


def slices(x: Floats, y: Floats, count: int) -> tuple[Floats, Floats]:
    """Means of at most `count` slices of about as many values each."""
    if len(x) <= count:
        return x, y
    starts = numpy.linspace(0, len(x), count + 1)[:-1].astype(numpy.int64)
    sizes = numpy.diff(numpy.append(starts, len(x)))
    parts = numpy.repeat(sizes, sizes)  # Why before the sum: it would be beyond the largest float
    return numpy.add.reduceat(x / parts, starts), numpy.add.reduceat(y / parts, starts)


def _smoothed(line: Line, points: _Points | None, weight: float) -> Line:
    """A line with its values smoothed, and what they were behind it. `points`: all values of a line of one run."""
    if not len(line.x):
        return line
    x, y = (line.x, line.y) if points is None else points[:2]
    low, high = (None if band is None else _smooth(line.x, line.x, band, weight) for band in (line.low, line.high))
    return line._replace(y=_smooth(line.x, x, y, weight), raw=line.y, low=low, high=high)


def _smooth(at: Floats, x: Floats, y: Floats, weight: float) -> Floats:
    """Values smoothed, at the places of a line."""
    there = numpy.isfinite(y)
    if not there.any():
        return numpy.full(len(at), numpy.nan)
    places, values = slices(x[there], y[there], SLICES_MAX)
    values = exponential(values, weight)
    # The very values of the line: where several stand at one place each keeps its own.
    return values if len(values) == len(at) else numpy.interp(at, places, values)


# ---- groups


def _grouped(
    found: list[_Found], reader: _Reader, x_name: str, points: int, group: Sequence[str], over: str | None,
    band: str | None,
) -> tuple[list[Line], list[str]]:  # fmt: skip
    runs = list({one.run.id: one.run for one in found}.values())
    groups, notes = groups_of(runs, group, over)
    lines = []
    for key in dict.fromkeys(one.key for one in found):
        by_run = {one.run.id: one for one in found if one.key == key}
        for name, members in groups:
            held = [by_run[run.id] for run in members if run.id in by_run]
            if held:
                line, said = _mean(name, held, reader, x_name, points, band)
                lines.append(line)
                notes += said
    return lines, notes


def _with_ends(x: Floats, y: Floats, points: int) -> tuple[Floats, Floats]:
    """As `slices`, with the first and the last value as they are: members that end at one place still do."""
    if len(x) <= points:
        return x, y
    inner_x, inner_y = slices(x[1:-1], y[1:-1], points - 2)
    return numpy.concatenate((x[:1], inner_x, x[-1:])), numpy.concatenate((y[:1], inner_y, y[-1:]))


def _mean(
    name: str, held: list[_Found], reader: _Reader, x_name: str, points: int, band: str | None
) -> tuple[Line, list[str]]:
    run, key, _ = held[0]
    points = min(points, _GROUP_VALUES_MAX // len(held))
    curves: list[tuple[Floats, Floats]] = []
    not_finite = 0
    for one in held:
        x, y, left_out = _points_of(reader.whole(one), x_name)
        not_finite += left_out
        if len(x):
            curves.append(_with_ends(x, y, points))
    grouped = united(curves, points, band)
    goal = _goal(run, key)
    last, best, best_x = _ends(grouped.x, grouped.mean, goal)
    count = sum(one.series.sample_of or len(one.series) for one in held)
    line = Line(
        ",".join(one.run.id for one in held), name, run.project, key, grouped.x, grouped.mean, None, grouped.low, grouped.high,
        last, best, best_x, goal, count, not_finite, [], [], len(held),
    )  # fmt: skip
    if not grouped.shorter:
        return line, []
    return line, [
        f"{grouped.shorter} of {len(held)} runs of {name} end before the others: the mean goes on without them"
    ]
