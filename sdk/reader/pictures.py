"""What a notebook shows of a run, a store and a series: HTML without a script, whole in itself, so that it stays true when the page is
opened again, and safe, as every text in it is escaped.

Pure functions over plain values: the trainer's run and the reader's show the same card. Curves are inline SVG; what a point is
worth shows when the pointer rests on it (`<title>`). A store is hostile input: names with tags, values that are no numbers and
numbers beyond everything change the picture, never the page.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..headline import good_end

SPARK_WIDTH, SPARK_HEIGHT = 160, 40
SPARK_POINTS = 80
SPARKS_MAX = 6
_UNBROKEN_CHARACTERS_MAX = 32
CHART_WIDTH, CHART_HEIGHT = 640, 240
# Limit: a chart is sent again every 2 s and kept in the notebook: 400 points of 4 series are 40 KiB.
CHART_POINTS = 400
# Limit: points that tell their value; each is an element that the browser holds.
_HOVERS_MAX = 60
_CONFIG_LINES_MAX = 100
_TEXT_CHARACTERS_MAX = 300
RUNS_MAX = 100
_COLOURS = ("#3b78c4", "#d1662a", "#3f9142", "#a04fb0", "#b8860b", "#4d8f8f")
_STATES = {
    "running": "#3b78c4", "finished": "#3f9142", "failed": "#c33c3c", "crashed": "#c33c3c", "interrupted": "#b8860b",
    "preempted": "#b8860b",
}  # fmt: skip
_GREY = "#8a8a8a"


class Curve(NamedTuple):
    """A series as it is drawn: steps ascending, values of numbers; as many as the caller has chosen.

    Attributes:
        low, high: The smallest and the largest of all values; None: only those of the chosen ones are known.
    """

    key: str
    steps: Sequence[float]
    values: Sequence[float]
    low: float | None = None
    high: float | None = None

    def points(self) -> list[tuple[float, float]]:
        """Those that can be drawn."""
        found = ((float(step), float(value)) for step, value in zip(self.steps, self.values))
        return [point for point in found if math.isfinite(point[1])]


class Facts(NamedTuple):
    """What a card says of a run.

    Attributes:
        seconds: How long it runs or ran; None: not known.
        health: What is stored and what is not, one line.
        files: Names of the user's files.
    """

    state: str
    name: str
    id: str
    project: str
    step: int | None
    seconds: float | None
    config: Mapping[str, Any]
    health: str
    directory: str
    files: Sequence[str] = ()


def escaped(value: object) -> str:
    """Any value as text of a page: escaped, of one line, not endless."""
    try:
        text = str(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    text = "".join(c if c.isprintable() else "?" for c in text[:_TEXT_CHARACTERS_MAX])
    return html.escape(text)


def number(value: float) -> str:
    """A value in few characters."""
    if not math.isfinite(value):
        return str(value)
    return f"{int(value):,}" if value == int(value) and abs(value) < 1e6 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """A time in the two units that matter."""
    if not 0 <= seconds < 1e10:
        return "?"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for unit, name, smaller, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "m")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // smaller} {small}"
    return f"{whole // 60} m {whole % 60} s"


def _scaled(
    points: Sequence[tuple[float, float]], box: tuple[float, float, float, float], width: float, height: float, margin: float
) -> list[tuple[float, float]]:  # fmt: skip
    """Points in the picture; `box` is the least and largest step and value."""
    low_x, high_x, low_y, high_y = box
    # Why halves: the difference of two huge floats may be infinite.
    span_x, span_y = high_x / 2 - low_x / 2, high_y / 2 - low_y / 2
    found = []
    for x, y in points:
        across = (x / 2 - low_x / 2) / span_x if span_x > 0 else 0.5
        up = (y / 2 - low_y / 2) / span_y if span_y > 0 else 0.5
        found.append((margin + across * (width - 2 * margin), height - margin - up * (height - 2 * margin)))
    return found


def _box(points: Iterable[tuple[float, float]]) -> tuple[float, float, float, float]:
    xs, ys = zip(*points)
    return min(xs), max(xs), min(ys), max(ys)


def _polyline(places: Sequence[tuple[float, float]], colour: str) -> str:
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def sparkline(curve: Curve) -> str:
    """A small curve without axes; its title says first and last."""
    points = curve.points()
    if not points:
        return ""
    places = _scaled(points, _box(points), SPARK_WIDTH, SPARK_HEIGHT, 3)
    x, y = places[-1]
    title = f"{escaped(curve.key)}: {number(points[0][1])} at {number(points[0][0])}, {number(points[-1][1])} at {number(points[-1][0])}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{SPARK_WIDTH}" height="{SPARK_HEIGHT}" '
        f'viewBox="0 0 {SPARK_WIDTH} {SPARK_HEIGHT}"><title>{title}</title>{_polyline(places, _COLOURS[0])}'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{_COLOURS[0]}"/></svg>'
    )


def _spark_cell(curve: Curve) -> str:
    points = curve.points()
    if not points:
        return ""
    text = f"<b>{number(points[-1][1])}</b>"
    end = good_end(curve.key)
    if end:
        step, best = (min if end == "min" else max)(points, key=lambda point: point[1])
        exact = curve.low if end == "min" else curve.high
        # The best of all values may not be among the drawn ones: then nobody knows its step.
        told = number(best if exact is None else exact) + (f" @ {number(step)}" if exact in (None, best) else "")
        about = "about " if exact is None and len(points) >= SPARK_POINTS else ""
        text += f' <span style="color:{_GREY}">{about}{end} {told}</span>'
    return (
        '<div style="display:inline-block;margin:4px 14px 4px 0;vertical-align:top">'
        f"<div>{escaped(curve.key)}</div>{sparkline(curve)}<div>{text}</div></div>"
    )


def chart(curves: Sequence[Curve], note: str = "") -> str:
    """A chart of several series over the step, with the range of both axes, a legend, and values where the pointer rests."""
    drawn = [(curve, points) for curve in curves if (points := curve.points())]
    legend = "".join(
        f'<span style="color:{_COLOURS[index % len(_COLOURS)]}">▬</span> {escaped(curve.key)} <b>{number(points[-1][1])}</b> '
        for index, (curve, points) in enumerate(drawn)
    )
    head = f'<div>{legend or "no values yet"}<span style="color:{_GREY}">{escaped(note)}</span></div>'
    if not drawn:
        return f"<div>{head}</div>"
    box = _box(point for _, points in drawn for point in points)
    parts = []
    for index, (curve, points) in enumerate(drawn):
        colour = _COLOURS[index % len(_COLOURS)]
        places = _scaled(points, box, CHART_WIDTH, CHART_HEIGHT, 18)
        parts.append(_polyline(places, colour))
        stride = max(1, math.ceil(len(points) / _HOVERS_MAX))
        for (x, y), (step, value) in list(zip(places, points))[::-stride]:
            title = f"{escaped(curve.key)} {number(value)} at step {number(step)}"
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}" fill-opacity="0.35"><title>{title}</title></circle>'
            )
    low_x, high_x, low_y, high_y = map(number, box)
    style = f'font-size="11" fill="{_GREY}"'
    parts += [
        f'<text x="2" y="12" {style}>{high_y}</text>',
        f'<text x="2" y="{CHART_HEIGHT - 20}" {style}>{low_y}</text>',
        f'<text x="18" y="{CHART_HEIGHT - 4}" {style}>{low_x}</text>',
        f'<text x="{CHART_WIDTH - 4}" y="{CHART_HEIGHT - 4}" text-anchor="end" {style}>step {high_x}</text>',
    ]
    picture = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{CHART_WIDTH}" height="{CHART_HEIGHT}" '
        f'viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}">{"".join(parts)}</svg>'
    )
    return f"<div>{head}{picture}</div>"


def _dot(state: str) -> str:
    return f'<span style="color:{_STATES.get(state, _GREY)}" title="{escaped(state)}">●</span>'


def _pace(facts: Facts) -> str:
    """How far it is, how fast it was, how long it took."""
    told = []
    if facts.step is not None:
        told.append(f"step {facts.step:,}")
        if facts.seconds is not None and facts.seconds > 0 and facts.step > 0:
            told.append(f"{number(facts.step / facts.seconds)} steps/s")
    if facts.seconds is not None:
        told.append(duration(facts.seconds))
    return " · ".join(told)


def card(facts: Facts, curves: Sequence[Curve], collapsed: bool = False) -> str:
    """A run: a line, up to six sparklines, and below them, folded, config, files and health."""
    name = f"<b>{escaped(facts.name)}</b> ({escaped(facts.id)})"
    head = f"{_dot(facts.state)} {name} · {escaped(facts.project)} · {escaped(facts.state)}"
    pace = _pace(facts)
    head += f" · {pace}" if pace else ""
    cells = "".join(_spark_cell(curve) for curve in curves[:SPARKS_MAX])
    lines = [(escaped(key), escaped(value)) for key, value in list(facts.config.items())[:_CONFIG_LINES_MAX]]
    rows = "".join(f"<tr><td>{key}</td><td>{value}</td></tr>" for key, value in lines)
    more = f"<div>… {len(facts.config) - len(lines):,} more</div>" if len(facts.config) > len(lines) else ""
    files = "".join(f"<div>{escaped(name)}</div>" for name in facts.files)
    folded = (
        f"<div>{escaped(facts.health)}</div><div>{escaped(facts.directory)}</div>"
        + (f"<details><summary>config</summary><table>{rows}</table>{more}</details>" if rows else "")
        + (f"<details><summary>files</summary>{files}</details>" if files else "")
    )
    body = f"<div>{cells}</div><details><summary>more</summary>{folded}</details>"
    if collapsed:
        return f'<div class="stepd"><details><summary>{head}</summary>{body}</details></div>'
    return f'<div class="stepd"><div>{head}</div>{body}</div>'


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: What it says.
        is_right: Whether its text ends at the right, as numbers do.
        is_best: Whether it is the best of its column.
        state: Of a run whose dot stands before it.
        curve: Drawn in place of the text.
    """

    text: str
    is_right: bool = False
    is_best: bool = False
    state: str | None = None
    curve: Curve | None = None


def runs_table(head: str, titles: Sequence[str], rows: Sequence[Sequence[Cell]], more: int = 0) -> str:
    """Runs, or groups of them, in the order given; `more` is how many are not shown."""
    names = "".join(f"<th>{escaped(title)}</th>" for title in titles)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    left_out = f"<div>… {more:,} more</div>" if more else ""
    return f'<div class="stepd"><div>{escaped(head)}</div><table><tr>{names}</tr>{body}</table>{left_out}</div>'


def _cell(cell: Cell) -> str:
    shown = escaped(cell.text) if cell.curve is None else sparkline(cell.curve)
    if cell.is_best:
        shown = f"<b>{shown}</b>"
    if cell.state is not None:
        shown = f"{_dot(cell.state)} {shown}"
    # Why no breaks: a row of "just now" and "sgd-0.1-0" would be two lines.
    whole = ";white-space:nowrap" if len(cell.text) <= _UNBROKEN_CHARACTERS_MAX else ""
    return f"""<td style="text-align:{"right" if cell.is_right else "left"}{whole}">{shown}</td>"""


def series_picture(curve: Curve, count: int) -> str:
    """A series of numbers: its sparkline, how many values, the smallest and the largest."""
    points = curve.points()
    values = [value for _, value in points]
    told = f"{count:,} values" + (f", min {number(min(values))}, max {number(max(values))}" if values else "")
    return f'<div class="stepd"><b>{escaped(curve.key)}</b> {told}<br/>{sparkline(curve)}</div>'
