"""What a chart of several runs and keys shows: for each line its points, its last and its best value, and what is missing in it.

A line is one key of one run, or of a group of runs: the mean of its members and a band around it. Points are chosen before anybody
draws, so that a run of ten million steps costs what one of a thousand does; the smallest and the largest value are among them.

Smoothing is TensorBoard's: an exponential mean of the values, each weighing `smooth` times what the next one does, divided by what the
weights sum to (so that it does not begin at 0). As there it is applied to at most 1,000 values, so that the same number means the same
for a run of any length; of a longer series they are means of as many slices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy

from ..errors import NotFoundError, UsageError
from ..headline import choose_keys
from ..reader import Run
from ..reader.points import extremes
from .members import BANDS, Grouped, groups_of, united

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..reader.series import Series

    Floats: TypeAlias = NDArray[numpy.float64]

SLICES_MAX = 1_000
# Limit: what is read whole where points are not enough (means of slices): 10**6 values are 24 MB and some 50 ms.
_WHOLE_MAX = 1_000_000
_DEFAULT_KEYS_MAX = 4
# Limit: whose keys are looked at to choose the default ones; the runs of one command are mostly alike.
_LOOKED_AT_MAX = 4
_PATTERN = "*?["


class Line(NamedTuple):
    """One line of a chart. Arrays are the caller's own, sorted by x.

    Attributes:
        run: The id; of a group the ids of its members, with commas between.
        name: The run's name, or the values by which a group was made. project: Of the (first) run.
        x, y: float64[n], all finite; y is smoothed where that was asked for.
        raw: float64[n], what was smoothed; None: nothing was.
        low, high: float64[n], the band of a group, NaN where it has none; None without one.
        last, best, best_x: Of the values as logged (of a group: of the mean); None without any.
        goal: "min" or "max", which of them is the best.
        count: How many values it stands for. not_finite: how many of those were NaN or infinite and are left out.
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
    goal: str
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
    stream: str | None = None,
) -> Lines:  # fmt: skip
    """The lines of some keys of some runs.

    Args:
        keys: Names, or patterns ("train/*"), which mean the keys that hold numbers.
        x: As in `Run.series`; "auto" is the step where the keys have several axes.
        points: At most so many of each line.
        smooth: From 0 (not at all) to below 1.
        group: Names of what makes a group ("config.method"): runs of the same values are one line, their mean.
        over: What differs within a group ("seed"); without `group` all other config keys that differ make groups.
        band: What is drawn around the mean: "std", "sem", "minmax" or "ci95" (of the mean, by Student's t).
        rank, stream: As in `Run.series`.

    Raises:
        NotFoundError: No run holds a key, or what it holds are no numbers.
        UsageError: `smooth` or `band` is none.
    """
    _check(smooth, band)
    notes: list[str] = []
    reader = _Reader(x, points, {"rank": rank, "stream": stream}, wants_whole=bool(smooth or group or over))
    found = reader.read(runs, keys, notes)
    x_name = _common_axis(found)
    if group or over:
        lines, said = _grouped(found, x_name, points, group, over, band)
        notes += said
    else:
        lines = [_line(one, x_name, points) for one in found]
    if smooth:
        whole = {} if group or over else {(one.run.id, one.key): one for one in found}
        lines = [_smoothed(line, whole.get((line.run, line.key)), x_name, smooth) for line in lines]
    return Lines(x_name, [line for line in lines if line.count], notes)


def default_keys(runs: Sequence[Run]) -> list[str]:
    """The keys that a chart of some runs shows when nobody named one: losses, at most four, else the first that holds numbers.

    Raises:
        NotFoundError: None does.
    """
    looked_at = runs[:_LOOKED_AT_MAX]
    keys = sorted(set().union(*(run.shown_keys(quick=True) for run in looked_at)))
    losses = [key for key in keys if "loss" in key.lower()]
    found = [key for key in losses[: 2 * _DEFAULT_KEYS_MAX] if _holds_numbers(looked_at, key)]
    if found:
        return found[:_DEFAULT_KEYS_MAX]
    for key in choose_keys(keys, looked_at[0].metrics if looked_at else {}, len(keys)):
        if _holds_numbers(looked_at, key):
            return [key]
    names = ", ".join(run.id for run in runs[:3])
    raise NotFoundError(f"{names} holds no numbers to draw yet", hint=f"stepd show {runs[0].id}" if runs else "")


def _holds_numbers(runs: Sequence[Run], key: str) -> bool:
    for run in runs:
        values = run.sample([key], 8)[key][1]
        if len(values):
            return values.dtype.kind in "fiub"
    return False


def _check(smooth: float | None, band: str | None) -> None:
    if smooth is not None and not 0 <= smooth < 1:
        raise UsageError(f"smooth is {smooth!r}, expected a number from 0 to below 1", hint="--smooth 0.6")
    if band is not None and band not in BANDS:
        raise UsageError(f"band is {band!r}, expected one of {', '.join(BANDS)}", hint="--band std")


# ---- reading


class _Reader:
    """Reads the series of a chart."""

    def __init__(self, x: str, points: int, whose: dict[str, Any], *, wants_whole: bool) -> None:
        self._x, self._points, self._whose, self._wants_whole = x, points, whose, wants_whole

    def read(self, runs: Sequence[Run], keys: Sequence[str], notes: list[str]) -> list[_Found]:
        """Those of all keys, key by key."""
        named = list(dict.fromkeys(keys))
        by_pattern = {key for key in named if any(sign in key for sign in _PATTERN)}
        matched = {run.id: run.keys_like(named) if by_pattern else named for run in runs}
        order = list(dict.fromkeys(key for run in runs for key in matched[run.id]))
        found: list[_Found] = []
        for key in order or named:
            holders = [run for run in runs if key in matched[run.id]]
            found += self._of_key(holders or list(runs), key, key not in named, notes)
        if not found:
            raise NotFoundError(
                f"no key of {', '.join(run.id for run in runs[:3])} that matches {', '.join(map(repr, named))} holds numbers",
                hint=f"stepd show {runs[0].id}" if runs else "",
            )
        return found

    def _of_key(self, runs: Sequence[Run], key: str, is_matched: bool, notes: list[str]) -> list[_Found]:
        found: list[_Found] = []
        missing: NotFoundError | None = None
        without = 0
        for run in runs:
            try:
                series = self._series(run, key)
            except NotFoundError as error:
                missing, without = error, without + 1
                continue
            if series.value.dtype.kind in "fiub":
                found.append(_Found(run, key, series))
            elif not is_matched:
                raise NotFoundError(f"{key!r} of {run.id} holds no numbers", hint=f"stepd show {run.id} {key}")
        if missing is not None and not found:
            raise missing
        if without and not is_matched:
            notes.append(f"{without} of {len(runs)} runs hold no {key!r}")
        return found

    def _series(self, run: Run, key: str) -> Series:
        """The values of a key: all of them where they are few or all are wanted, else those that a chart shows."""
        try:
            found = run.series(key, x=self._x, points=self._points, **self._whose)
        except UsageError:  # more than `points`, and they are no numbers
            found = run.series(key, x=self._x, **self._whose)
        if self._wants_whole and found.sample_of is not None and found.sample_of <= _WHOLE_MAX:
            return run.series(key, x=self._x, **self._whose)
        return found


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
    if len(kept) and not (numpy.diff(x[kept]) >= 0).all():
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
        _gaps(run, key, place), _attempts(run, place), 1,
    )  # fmt: skip


def _nans(run: Run, key: str) -> int:
    """How many values of a long series are NaN, which its points leave out."""
    try:
        return run.numbers([key])[key].nans
    except KeyError:
        return 0


def _ends(x: Floats, y: Floats, goal: str) -> tuple[float | None, float | None, float | None]:
    if not len(y):
        return None, None, None
    place = int(y.argmax() if goal == "max" else y.argmin())
    return float(y[-1]), float(y[place]), float(x[place])


def _goal(run: Run, key: str) -> str:
    from .lookup import goal_of

    return goal_of(run, key)


def _placing(series: Series, x_name: str) -> Callable[[float], float]:
    """Gives the place of a step on the axis."""
    if x_name == "step" or not len(series):
        return float
    x = series.x.astype(numpy.float64)
    there = numpy.isfinite(x)
    steps, places = series.step[there], x[there]
    return lambda step: float(numpy.interp(step, steps, places)) if len(steps) else float(step)


def _gaps(run: Run, key: str, place: Callable[[float], float]) -> list[tuple[float, float]]:
    """Where records of the run, or values of the key, are missing, joined where they touch."""
    training = {stream.id for stream in run.streams if stream.kind in ("main", "fork", "spawn", "attach")}
    spans = sorted(
        (gap.step_min, gap.step_max)
        for gap in run.gaps
        if gap.stream in training and (gap.key in (None, key)) and (gap.count or gap.values)
    )
    joined: list[tuple[int, int]] = []
    for low, high in spans:
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], high))
        else:
            joined.append((low, high))
    return [(place(low), place(high)) for low, high in joined]


def _attempts(run: Run, place: Callable[[float], float]) -> list[float]:
    return [place(step) for step in run.resumed_at]


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
    return numpy.add.reduceat(x, starts) / sizes, numpy.add.reduceat(y, starts) / sizes


def _smoothed(line: Line, found: _Found | None, x_name: str, weight: float) -> Line:
    """A line with its values smoothed, and what they were behind it. `found`: all values of a line of one run."""
    if not len(line.x):
        return line
    x, y = (line.x, line.y) if found is None else _points_of(found.series, x_name)[:2]
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
    found: list[_Found], x_name: str, points: int, group: Sequence[str], over: str | None, band: str | None
) -> tuple[list[Line], list[str]]:
    runs = list({one.run.id: one.run for one in found}.values())
    groups, notes = groups_of(runs, group, over)
    lines = []
    for key in dict.fromkeys(one.key for one in found):
        by_run = {one.run.id: one for one in found if one.key == key}
        for name, members in groups:
            held = [by_run[run.id] for run in members if run.id in by_run]
            if held:
                line, said = _mean(name, held, x_name, points, band)
                lines.append(line)
                notes += said
    return lines, notes


def _mean(name: str, held: list[_Found], x_name: str, points: int, band: str | None) -> tuple[Line, list[str]]:
    run, key, _ = held[0]
    all_points = [_points_of(one.series, x_name) for one in held]
    curves = [slices(one.x, one.y, points) for one in all_points if len(one.x)]
    grouped: Grouped = united(curves, points, band)
    goal = _goal(run, key)
    last, best, best_x = _ends(grouped.x, grouped.mean, goal)
    count = sum(one.series.sample_of or len(one.series) for one in held)
    line = Line(
        ",".join(one.run.id for one in held), name, run.project, key, grouped.x, grouped.mean, None, grouped.low, grouped.high,
        last, best, best_x, goal, count, sum(one.not_finite for one in all_points), [], [], len(held),
    )  # fmt: skip
    notes = []
    if grouped.shorter:
        notes.append(
            f"{grouped.shorter} of {len(held)} runs of {name} end before the others: the mean goes on without them"
        )
    return line, notes
