"""The charts of a report: one for each key, a line for each run, in sections by the text before the last slash.

A series is read in few points that keep its extremes (`Run.several`), each with its step and its time, so that the page can change the x
axis without asking anybody. Beside the numbers for the page's script there is a picture of each chart, which is what shows without
one and what is printed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sdk.errors import Error
from sdk.headline import choose_keys
from sdk.reader import Run
from sdk.reader.media import items_in, kind_of
from sdk.reader.pictures import number
from sdk.reader.run import SYSTEM_PREFIX

from .budget import SERIES_BYTES, Budget, points_for
from .markup import Markup, join, plain, short, tag

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLOURS = 10
RELATIVE = "relative"
# Limit: lines that can be told apart; a report of more runs shows the first ones of each chart.
LINES_MAX = 20
CHARTS_MAX = 200
_STATIC_POINTS = 200
_KEY_CHARACTERS_MAX = 160
_WIDTH, _HEIGHT = 560, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 8, 22
# Limits: runs of which some values of a key are looked at, and how many; and keys that a sentence names.
_LOOKED_AT_MAX, _SAMPLED = 4, 100
_NAMED_MAX = 5
_GAPS_MAX = 50
# Limit: the newest; more lines in one chart hide it.
_ATTEMPTS_MAX = 50


class Line(NamedTuple):
    """The points of one run in one chart.

    Attributes:
        run: Its place among the report's runs.
        step, time, value: As `Series`, the time in seconds since the run was created; values that are not finite are left out and
            counted in `not_finite`.
        stands_for: How many values they stand for.
        x: Where they stand on the axis that `define_metric` named; None: on the step.
        x_name: That axis; "relative" of what was observed of the machine, which has no steps: then it stands on `time`.
    """

    run: int
    step: NDArray[Any]
    time: NDArray[Any]
    value: NDArray[Any]
    stands_for: int
    not_finite: int
    x: NDArray[Any] | None
    x_name: str

    @property
    def still(self) -> NDArray[Any]:
        """Where the points stand in the picture that needs no script."""
        return self.time if self.x_name == RELATIVE else self.step


class Chart(NamedTuple):
    """A key and the runs that hold it."""

    key: str
    lines: list[Line]

    @property
    def title(self) -> str:
        """The key as the page says it."""
        return short(self.key, _KEY_CHARACTERS_MAX)

    @property
    def section(self) -> str:
        return self.key.rpartition("/")[0]

    @property
    def in_seconds(self) -> bool:
        return self.lines[0].x_name == RELATIVE


class Marks(NamedTuple):
    """What stands in every chart of a run, as (step, seconds since the run was created): ranges of what is missing, and where an
    attempt began.
    """

    gaps: list[tuple[float, float, float | None, float | None]]
    attempts: list[tuple[float, float]]


NO_MARKS = Marks([], [])


def numeric_keys(runs: Sequence[Run], patterns: Sequence[str], budget: Budget) -> list[str]:
    """The keys that hold numbers, by what was logged last under them; those that match the patterns, where there are any.

    Of keys under which a text or a list was logged last some values are looked at; `budget` is told of those that hold no number.

    Section by section, what is worth most first (`headline`); what was observed of the machine last.
    """
    found: dict[str, None] = {}
    texts: dict[str, list[Run]] = {}
    defined: dict[str, Any] = {}
    for run in runs:
        shown = run.keys_like(patterns) if patterns else [*run.shown_keys(), *run.keys(kind="system")]
        last = run.summary
        defined.update(run.metrics)
        for key in shown:
            value = last.get(key, 0)
            if isinstance(value, (str, list, bytes)):
                if not items_in(value):
                    texts.setdefault(key, []).append(run)
            elif kind_of(value) is None:
                found[key] = None
    without = [key for key, holders in texts.items() if key not in found and not _hold_number(holders, key)]
    found.update(dict.fromkeys(texts.keys() - set(without)))
    if without:
        budget.leave_out(f"There are no charts of {_some(without)}: no numbers.")
    rank = {key: place for place, key in enumerate(choose_keys(sorted(found), defined, len(found)))}
    section = {key: key.rpartition("/")[0] for key in rank}
    first = {section[key]: place for key, place in sorted(rank.items(), key=lambda item: -item[1])}
    return sorted(rank, key=lambda key: (key.startswith(SYSTEM_PREFIX), first[section[key]], rank[key]))


def _hold_number(runs: Sequence[Run], key: str) -> bool:
    """Whether a number is among some values of a key under which something else was logged last."""
    for run in runs[:_LOOKED_AT_MAX]:
        values = run.sample([key], _SAMPLED)[key][1]
        if values.dtype.kind in "iuf" or any(type(value) in (int, float) for value in values.tolist()):
            return True
    return False


def _some(keys: Sequence[str]) -> str:
    named = ", ".join(short(key, _KEY_CHARACTERS_MAX) for key in keys[:_NAMED_MAX])
    return named + (f" and {len(keys) - _NAMED_MAX:,} more keys" if len(keys) > _NAMED_MAX else "")


def read_charts(runs: Sequence[Run], keys: Sequence[str], points: int, budget: Budget, size: int) -> list[Chart]:
    """A chart for each key that some run holds numbers under, as many as `size` bytes hold."""
    drawn = runs[:LINES_MAX]
    if len(runs) > LINES_MAX:
        budget.leave_out(f"Charts show the first {LINES_MAX} of {len(runs)} runs.")
    most = min(CHARTS_MAX, max(1, int(size / SERIES_BYTES / max(len(drawn), 1))))
    if len(keys) > most:
        budget.leave_out(f"Charts of {most} of {len(keys)} keys are here; choose others with --keys.")
        keys = keys[:most]
    chosen = points_for(len(keys) * len(drawn), points, size)
    lines: dict[str, list[Line]] = {key: [] for key in keys}
    others: dict[str, int] = {}
    for place, run in enumerate(drawn):
        for key, line in _lines_of(run, place, keys, chosen, others):
            lines[key].append(line)
    if mixed := {key: count for key, count in others.items() if lines[key]}:
        budget.leave_out(
            f"{sum(mixed.values()):,} values are not drawn, for they are no numbers: of {_some(list(mixed))}."
        )
    if empty := [key for key in others if not lines[key]]:
        budget.leave_out(f"There are no charts of {_some(empty)}: no numbers.")
    if chosen < points and any(line.stands_for > chosen for found in lines.values() for line in found):
        budget.leave_out(f"A line has at most {chosen:,} points instead of {points:,}; extremes are kept.")
    return [Chart(key, found) for key, found in lines.items() if found]


def _lines_of(
    run: Run, place: int, keys: Sequence[str], points: int, others: dict[str, int]
) -> Iterable[tuple[str, Line]]:
    """The lines of a run. `others` gets how many values of each key are no numbers."""
    import numpy

    from sdk.reader.series import numbers_in

    own = set(run.keys())
    observed = set(run.keys(kind="system")) - own
    for key, held in _read(run, [key for key in keys if key in own or key in observed], points).items():
        if key not in keys or not len(held):
            continue
        series = numbers_in(held)
        left_out = len(held) - (0 if series is None else len(series))
        if left_out:
            others[key] = others.get(key, 0) + left_out
        if series is None:
            continue
        value = series.value.astype(numpy.float64)
        good = numpy.isfinite(value)
        axis, name = (None, RELATIVE) if key in observed else _axis_of(run, key, series.step)
        line = Line(
            place,
            series.step[good],
            series.time[good] - run.created,
            value[good],
            series.sample_of or len(series),
            int((~good).sum()),
            None if axis is None else axis[good],
            name,
        )
        if len(line.value):
            yield key, _thinned(line, points)


def _read(run: Run, keys: Sequence[str], points: int) -> dict[str, Any]:
    """The series, in points that the library chooses; where it is not installed, all of them."""
    try:
        return run.several(keys, points=points) if keys else {}
    except Error:
        return run.several(keys)


def _axis_of(run: Run, key: str, step: NDArray[Any]) -> tuple[NDArray[Any] | None, str]:
    """The values of the key's own x axis at some steps; NaN where there is none."""
    import numpy

    name = run.metric(key).step_metric
    if not name or name in ("step", "_step"):
        return None, "step"
    try:
        axis = run.series(name)
    except Error:
        return None, "step"
    if axis.value.dtype.kind not in "biuf" or not len(axis):
        return None, "step"
    at = numpy.searchsorted(axis.step, step)
    at = numpy.minimum(at, len(axis) - 1)
    found = axis.value[at].astype(numpy.float64)
    return numpy.where(axis.step[at] == step, found, numpy.nan), name


def _thinned(line: Line, points: int) -> Line:
    """At most `points` of them: the smallest and the largest of each stretch, the first and the last."""
    if len(line.value) <= points:
        return line
    at = extremes(line.value, points)
    x = None if line.x is None else line.x[at]
    return line._replace(step=line.step[at], time=line.time[at], value=line.value[at], x=x)


def extremes(value: NDArray[Any], points: int) -> NDArray[Any]:
    """Places of at most `points` values: the smallest and the largest of each of some equal stretches, the first and the last."""
    import numpy

    stretches = max(1, (points - 2) // 2)
    edges = numpy.linspace(0, len(value), stretches + 1).astype(int)
    found = [0, len(value) - 1]
    for start, end in zip(edges[:-1], edges[1:]):
        if end > start:
            found += [start + int(value[start:end].argmin()), start + int(value[start:end].argmax())]
    return numpy.unique(numpy.array(found))


# -- marks -----------------------------------------------------------------------------------------------------------------


def marks_of(run: Run, lines: Iterable[Line]) -> Marks:
    """Gaps and attempts of a run; steps of an attempt are told by the run's own lines."""
    import numpy

    longest = max(lines, key=lambda line: len(line.value), default=None)
    gaps = []
    for gap in run.gaps[:_GAPS_MAX]:
        if not gap.key and gap.step_max >= gap.step_min >= 0:
            start = None if gap.start is None else gap.start - run.created
            end = None if gap.end is None else gap.end - run.created
            gaps.append((float(gap.step_min), float(gap.step_max), start, end))
    attempts = []
    began: dict[int, float] = {}
    for stream in run.streams:
        if stream.attempt > 1 and stream.started:
            began[stream.attempt] = min(began.get(stream.attempt, math.inf), stream.started)
    for when in sorted(began.values())[-_ATTEMPTS_MAX:]:
        if longest is None:
            continue
        order = numpy.argsort(longest.time, kind="stable")
        at = int(numpy.searchsorted(longest.time[order], when - run.created))
        if at < len(order):
            attempts.append((float(longest.step[order[at]]), when - run.created))
    return Marks(gaps, attempts)


# -- numbers for the page's script -----------------------------------------------------------------------------------------


def data_of(charts: Sequence[Chart], labels: Sequence[str], marks: Sequence[Marks], created: Sequence[float]) -> Any:
    """What the page's script draws, as plain values."""
    return {
        "runs": [
            {"label": plain(label), "created": round(start, 3), "gaps": found.gaps, "attempts": found.attempts}
            for label, start, found in zip(labels, created, marks)
        ],
        "charts": [chart_data(chart) for chart in charts],
    }


def chart_data(chart: Chart) -> dict[str, Any]:
    """A chart in `data_of`."""
    lines = [_line_data(line) for line in chart.lines]
    return {"key": plain(chart.title), "lines": lines, "seconds": chart.in_seconds}


def _line_data(line: Line) -> dict[str, Any]:
    found = {
        "run": line.run,
        "step": line.step.tolist(),
        "time": [round(float(t), 2) for t in line.time],
        "value": [_short(v) for v in line.value],
    }
    if line.x is not None:
        found["x"] = [None if not math.isfinite(x) else _short(x) for x in line.x]
        found["x_name"] = plain(short(line.x_name, _KEY_CHARACTERS_MAX))
    return found


def _short(value: float) -> float:
    """In seven digits, which no chart shows more of."""
    short = float(f"{value:.7g}")
    return int(short) if short == int(short) and abs(short) < 1e15 else short


# -- a picture that needs no script ----------------------------------------------------------------------------------------


def picture(chart: Chart, marks: Sequence[Marks]) -> Markup:
    """A chart over the step as SVG; its colours are the page's."""
    low_x = min(float(line.still.min()) for line in chart.lines)
    high_x = max(float(line.still.max()) for line in chart.lines)
    low_y = min(float(line.value.min()) for line in chart.lines)
    high_y = max(float(line.value.max()) for line in chart.lines)
    across, up = _scale(low_x, high_x, _LEFT, _WIDTH - _RIGHT), _scale(low_y, high_y, _HEIGHT - _BOTTOM, _TOP)
    parts = [
        tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=f"{up(y):.1f}", y2=f"{up(y):.1f}", class_="grid")
        for y in ticks(low_y, high_y)
    ]
    for line in chart.lines:
        for start, end, *_ in () if chart.in_seconds else marks[line.run].gaps:
            left, right = across(min(max(start, low_x), high_x)), across(min(max(end, low_x), high_x))
            width = max(right - left, 1.5)
            parts.append(
                tag(
                    "rect", x=f"{left:.1f}", y=_TOP, width=f"{width:.1f}", height=_HEIGHT - _TOP - _BOTTOM, class_="gap"
                )
            )
        for step, seconds in marks[line.run].attempts:
            x = f"{across(min(max(seconds if chart.in_seconds else step, low_x), high_x)):.1f}"
            parts.append(tag("line", x1=x, x2=x, y1=_TOP, y2=_HEIGHT - _BOTTOM, class_="attempt"))
    parts += [
        tag("text", number(y), x=_LEFT - 6, y=f"{up(y) + 4:.1f}", class_="tick end") for y in ticks(low_y, high_y)
    ]
    parts += [
        tag("text", number(x), x=f"{across(x):.1f}", y=_HEIGHT - 6, class_="tick middle") for x in ticks(low_x, high_x)
    ]
    for line in chart.lines:
        at = extremes(line.value, _STATIC_POINTS)
        places = " ".join(f"{across(float(line.still[i])):.1f},{up(float(line.value[i])):.1f}" for i in at)
        parts.append(tag("polyline", points=places, class_=line_class(line.run)))
    label = (
        f"{chart.title} over {'seconds' if chart.in_seconds else 'the step'}, from {number(low_y)} to {number(high_y)}"
    )
    return tag("svg", join(parts), viewBox=f"0 0 {_WIDTH} {_HEIGHT}", class_="still", role="img", aria_label=label)


def line_class(run: int) -> str:
    """How the line of a run looks: colours come again after ten, then dashed."""
    return f"c{run % COLOURS}" + (" dashed" if run >= COLOURS else "")


def _scale(low: float, high: float, start: float, end: float) -> Any:
    # Why halves: the difference of two huge floats may be infinite.
    span = high / 2 - low / 2
    return lambda value: start + (end - start) * ((value / 2 - low / 2) / span if span > 0 else 0.5)


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers between two."""
    span = high - low
    if not 1e-300 < span < math.inf:
        return [low] if span == 0 else []
    base = 10.0 ** math.floor(math.log10(span / 4))
    size = next((base * factor for factor in (1, 2, 2.5, 5, 10) if base * factor >= span / 5), span)
    first = math.ceil(low / size)
    last = math.floor(high / size)
    return [index * size for index in range(first, last + 1)] if last - first < 12 else []
