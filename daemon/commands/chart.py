"""Lines of `sdk.query.curves` as text: braille dots (2 x 4 to a character) in a terminal, one sign per line elsewhere. Pure: arrays in,
text out.

Many points fall into one column of dots; the column shows all from their smallest to their largest, so a spike of one step in a
million is seen. Cells have one colour: what is faint (values behind a smoothed line, bands, marks) is drawn where nothing else is.

Why no library: a command has 0.5 s for its first chart, of which Python, click, numpy and reading take most. To import and to draw 7
lines of 2,000 points costs plotext 6.1 (a C++ kernel through ctypes) 0.13 + 0.17 s, plotext 5.3 0.09 + 0.15 s, plotille 6.0 0.03 + 0.1 s,
this 0.01 + 0.01 s. What else we missed in what they drew is in docs/plot.md#why-no-library.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import click

from daemon.commands.cells import cells, cut, left
from daemon.commands.service import clean
from daemon.commands.ticks import Tick, across, decades, place_text, up

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from sdk.query.curves import Line, Lines

    Floats: TypeAlias = NDArray[numpy.float64]
    Span: TypeAlias = tuple[float, float]

COLORS = ("cyan", "yellow", "magenta", "green", "red", "blue", "bright_white")
SIGNS = "*+ox#@%"
WIDTH_MIN, HEIGHT_MIN = 20, 6
_BRAILLE = 0x2800
# Bit of a dot by its row and column in the cell (Unicode's order).
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
# What a cell shows: nobody's, a faint line's or a bright one's.
_EMPTY, _FAINT, _BRIGHT = 0, 1, 2


class Style(NamedTuple):
    """What the output can show."""

    unicode: bool
    color: bool


class _Signs(NamedTuple):
    """Characters of a frame and of what is marked in it."""

    side: str
    side_tick: str
    corner: str
    floor: str
    floor_tick: str
    missing: str
    resumed: str
    cut: str


_UNICODE = _Signs("│", "┤", "└", "─", "┬", "░", "┊", "…")
_ASCII = _Signs("|", "+", "+", "-", "+", ":", "!", "~")


def draw(
    lines: Lines, width: int, height: int, style: Style, *, log: bool = False, title: str | None = None, legend: bool = True
) -> list[str]:  # fmt: skip
    """The chart with its axes and legend: at most `height` lines of at most `width` characters, but never less than 20 x 6.

    Args:
        log: The y axis is logarithmic; what is not positive is left out and counted.
        title: None: what all lines have in common.
    """
    width, height = max(width, WIDTH_MIN), max(height, HEIGHT_MIN)
    import numpy

    with numpy.errstate(over="ignore", invalid="ignore"):  # distances of the largest floats
        return _chart(lines, width, height, style, log, title, legend)


def _chart(
    lines: Lines, width: int, height: int, style: Style, log: bool, title: str | None, legend: bool
) -> list[str]:  # fmt: skip
    drawn = _drawn(lines, log)
    signs = _UNICODE if style.unicode else _ASCII
    if not drawn:
        return [_fit("no finite values to draw" if not log else "no positive values to draw", width, signs)]
    # Why signs for several lines without colour: dots of one colour could not be told apart.
    is_plain = len(drawn) == 1 and drawn[0].raw is None and drawn[0].low is None
    braille = style.unicode and (style.color or is_plain)
    pen = _Pen(style.color, braille)
    heading = [_fit(clean(_title(lines) if title is None else title), width, signs)]
    heading = heading if heading[0] else []
    room = min(max(height // 3, 2), height - HEIGHT_MIN)
    told = _legend(lines, drawn, pen, signs, width, room) if legend and room else []
    plot = _plot(drawn, lines.x_name, width, height - 2 - len(heading) - len(told), pen, signs, log)
    return [*(pen.styled(text, bold=True) for text in heading), *plot, *told]


class _Drawn(NamedTuple):
    """A line as it is drawn: y is the logarithm where that is asked for."""

    number: int
    line: Line
    x: Floats
    y: Floats
    raw: Floats | None
    low: Floats | None
    high: Floats | None
    not_positive: int


def _drawn(lines: Lines, log: bool) -> list[_Drawn]:
    """The lines that have something to show; the number of each is its place among them."""
    import numpy

    found: list[_Drawn] = []
    for line in lines.lines:
        x, y, raw, low, high = line.x, line.y, line.raw, line.low, line.high
        left_out = 0
        if log:
            kept = y > 0
            left_out = len(y) - int(kept.sum())
            x, y = x[kept], numpy.log10(y[kept])
            with numpy.errstate(divide="ignore"):
                raw, low, high = (None if one is None else numpy.log10(one[kept]) for one in (raw, low, high))
            raw, low, high = (
                None if one is None else numpy.where(numpy.isfinite(one), one, numpy.nan) for one in (raw, low, high)
            )
        if len(x):
            found.append(_Drawn(len(found), line, x, y, raw, low, high, left_out))
    return found


# ---- the pen and its canvas


class _Pen(NamedTuple):
    """How lines and marks are told apart."""

    color: bool
    braille: bool

    def styled(self, text: str, **how: Any) -> str:
        return click.style(text, **how) if self.color else text

    def line(self, text: str, number: int, *, faint: bool = False) -> str:
        return self.styled(text, fg=COLORS[number % len(COLORS)], dim=faint or None)

    def sign(self, number: int) -> str:
        """How the legend shows a line."""
        return self.line("⠤⠤" if self.braille else SIGNS[number % len(SIGNS)], number)


class _Canvas:
    """Cells of dots, each with the number of the line that was drawn there last, and how."""

    def __init__(self, columns: int, rows: int, pen: _Pen, x_span: Span, y_span: Span) -> None:
        import numpy

        self._pen = pen
        self.across, self.down = (2, 4) if pen.braille else (1, 1)
        self.width, self.height = columns * self.across, rows * self.down
        self._x_span, self._y_span = x_span, y_span
        self._bits = numpy.zeros((rows, columns), numpy.uint8)
        self._owner = numpy.zeros((rows, columns), numpy.int16)
        self._kind = numpy.zeros((rows, columns), numpy.uint8)

    def x(self, values: Floats) -> NDArray[numpy.int64]:
        return scaled(values, self._x_span, self.width)

    def y(self, values: Floats) -> NDArray[numpy.int64]:
        return scaled(values, self._y_span, self.height)

    def trace(self, number: int, x: Floats, y: Floats, gaps: Sequence[Span], *, faint: bool = False) -> None:
        """Draws points and the lines between them, but for those that cross a gap."""
        import numpy

        there = numpy.isfinite(y)
        x, y = x[there], y[there]
        column, row = self.x(x), self.y(y)
        dots = numpy.zeros((self.height, self.width), bool)
        dots[row, column] = True
        joined = numpy.ones(max(len(x) - 1, 0), bool)
        for low, high in gaps:
            joined &= ~((x[:-1] < high) & (x[1:] > low))
        start = numpy.flatnonzero(joined)
        across, along = column[start + 1] - column[start], row[start + 1] - row[start]
        count = numpy.maximum(numpy.maximum(abs(across), abs(along)), 1)
        # All dots of all lines at once: the number of its line, and which of its dots it is.
        which = numpy.repeat(numpy.arange(len(start)), count)
        part = (numpy.arange(len(which)) - numpy.repeat(numpy.cumsum(count) - count, count)) / count[which]
        begin = start[which]
        rows = row[begin] + numpy.rint(along[which] * part).astype(numpy.int64)
        columns = column[begin] + numpy.rint(across[which] * part).astype(numpy.int64)
        dots[rows, columns] = True
        self._lay(dots, number, _FAINT if faint else _BRIGHT)

    def shade(self, number: int, x: Floats, low: Floats, high: Floats) -> None:
        """Fills the band between two lines with every other dot."""
        import numpy

        first, last = self.x(x[:1])[0], self.x(x[-1:])[0]
        columns = numpy.arange(first, last + 1)
        left, right = self._x_span
        at = left + columns / max(self.width - 1, 1) * (right / 2 - left / 2) * 2
        bottom, top = (numpy.interp(at, x, values) for values in (low, high))
        there = numpy.isfinite(bottom) & numpy.isfinite(top)
        rows = numpy.arange(self.height)[:, None]
        dots = numpy.zeros((self.height, self.width), bool)
        inside = (rows >= self.y(bottom[there])) & (rows <= self.y(top[there]))
        dots[:, columns[there]] = inside & ((rows + columns[there]) % 2 == 0 if self._pen.braille else True)
        self._lay(dots, number, _FAINT)

    def _lay(self, dots: NDArray[numpy.bool_], number: int, kind: int) -> None:
        rows, columns = self._bits.shape
        cells = dots[::-1].reshape(rows, self.down, columns, self.across)
        bits = sum(cells[:, y, :, x] * _DOTS[y][x] for y in range(self.down) for x in range(self.across))
        here = (bits > 0) & (self._kind <= kind)
        # Dots of what is fainter give way.
        self._bits[here] = (self._bits * (self._kind == kind) | bits)[here]
        self._owner[here] = number
        self._kind[here] = kind

    def text(self, marks: Sequence[str]) -> list[str]:
        """The rows as text; `marks` is what an empty cell of each column shows. Neighbours that look alike share an escape sequence."""
        return [
            self._row(*parts, marks) for parts in zip(self._bits.tolist(), self._owner.tolist(), self._kind.tolist())
        ]

    def _row(self, bits: list[int], owners: list[int], kinds: list[int], marks: Sequence[str]) -> str:
        parts: list[str] = []
        pending, before = "", (_EMPTY, 0)
        for column, (bit, owner, kind) in enumerate(zip(bits, owners, kinds)):
            look = (kind, owner if kind else 0)
            if look != before:
                parts.append(self._painted(pending, *before))
                pending, before = "", look
            pending += self._character(bit, owner, kind) if kind else marks[column]
        return "".join(parts) + self._painted(pending.rstrip() if not before[0] else pending, *before)

    def _character(self, bits: int, owner: int, kind: int) -> str:
        if self._pen.braille:
            return chr(_BRAILLE + bits)
        return SIGNS[owner % len(SIGNS)] if kind == _BRIGHT else "."

    def _painted(self, text: str, kind: int, owner: int) -> str:
        if kind == _EMPTY:
            return self._pen.styled(text, dim=True) if text.strip() else text
        return self._pen.line(text, owner, faint=kind == _FAINT)


def scaled(values: NDArray[Any], ends: Span, size: int) -> NDArray[numpy.int64]:
    """Values as whole numbers from 0 to size - 1; the middle where all are equal."""
    import numpy

    low, high = ends
    # Halves, so that the distance of the two largest floats is still a float.
    span = high / 2 - low / 2
    if not span > 0:
        return numpy.full(len(values), (size - 1) // 2, numpy.int64)
    part = (values.astype(numpy.float64) / 2 - low / 2) / span
    place: NDArray[numpy.int64] = numpy.clip((part * (size - 1)).round(), 0, size - 1).astype(numpy.int64)
    return place


# ---- the parts of a chart


def _plot(
    drawn: Sequence[_Drawn], x_name: str, width: int, rows: int, pen: _Pen, signs: _Signs, log: bool
) -> list[str]:  # fmt: skip
    """The canvas in its frame."""
    x_span = _span([one.x for one in drawn])
    y_span = _span([part for one in drawn for part in (one.y, one.raw, one.low, one.high) if part is not None])
    y_ticks = decades(*y_span, rows) if log else up(*y_span, rows)
    label_width = max((len(tick.text) for tick in y_ticks), default=0)
    columns = max(width - label_width - 2, 8)
    canvas = _Canvas(columns, rows, pen, x_span, y_span)
    for one in drawn:
        if one.low is not None and one.high is not None:
            canvas.shade(one.number, one.x, one.low, one.high)
    for one in drawn:
        if one.raw is not None:
            canvas.trace(one.number, one.x, one.raw, one.line.gaps, faint=True)
    for one in drawn:
        canvas.trace(one.number, one.x, one.y, one.line.gaps)
    text = canvas.text(_marks(drawn, x_span, columns, signs))
    labels = {rows - 1 - int(scaled_one(tick.at, y_span, rows)): tick.text for tick in y_ticks}
    framed = [
        f"{labels.get(row, ''):>{label_width}} {signs.side_tick if row in labels else signs.side}{line}"
        for row, line in enumerate(text)
    ]
    name, x_ticks = across(x_name, *x_span, columns)
    floor, below = _floor(x_ticks, clean(name), x_span, columns, signs)
    return [*framed, f"{'':{label_width}} {signs.corner}{floor}", f"{'':{label_width}}  {below}".rstrip()]


def _span(parts: Iterable[Floats]) -> Span:
    import numpy

    finite = [part[numpy.isfinite(part)] for part in parts]
    held = [part for part in finite if len(part)]
    return min(float(part.min()) for part in held), max(float(part.max()) for part in held)


def scaled_one(value: float, ends: Span, size: int) -> int:
    """As `scaled`, of one value."""
    import numpy

    return int(scaled(numpy.array([value]), ends, size)[0])


def _marks(drawn: Sequence[_Drawn], x_span: Span, columns: int, signs: _Signs) -> list[str]:
    """What the empty cells of each column show."""
    marks = [" "] * columns
    for one in drawn:
        for x in one.line.attempts:
            if x_span[0] <= x <= x_span[1]:
                marks[scaled_one(x, x_span, columns)] = signs.resumed
    for one in drawn:
        for low, high in one.line.gaps:
            if high >= x_span[0] and low <= x_span[1]:
                first, last = scaled_one(low, x_span, columns), scaled_one(high, x_span, columns)
                marks[first : last + 1] = signs.missing * (last + 1 - first)
    return marks


def _floor(ticks: Sequence[Tick], name: str, x_span: Span, columns: int, signs: _Signs) -> tuple[str, str]:
    """The x axis and what stands below it: labels under their ticks as far as there is room, the axis' name at the end."""
    name = _fit(name, max(columns // 2, 8), signs)
    room = columns - cells(name)
    axis, below = [signs.floor] * columns, [" "] * room
    free_to = room - 2
    free_from = 0
    for tick in ticks:
        column = scaled_one(tick.at, x_span, columns)
        start = max(min(column - len(tick.text) // 2, columns - len(tick.text)), 0)
        if start >= free_from and start + len(tick.text) <= free_to:
            axis[column] = signs.floor_tick
            below[start : start + len(tick.text)] = tick.text
            free_from = start + len(tick.text) + 2
    return "".join(axis), "".join(below) + name


def _title(lines: Lines) -> str:
    """What all lines have in common: the key, the run."""
    keys = {line.key for line in lines.lines}
    runs = {line.run for line in lines.lines}
    parts = list(keys) if len(keys) == 1 else []
    if len(runs) == 1 and lines.lines[0].members == 1:
        parts.append(f"{lines.lines[0].name} ({lines.lines[0].run})")
    return "   ".join(parts)


def _legend(lines: Lines, drawn: Sequence[_Drawn], pen: _Pen, signs: _Signs, width: int, room: int) -> list[str]:
    """A row for each line as far as there is room, what the marks mean, and notes."""
    names = _names(lines, drawn)
    name_width = min(max(map(cells, names)), max(width - 44, 12))
    rows = []
    for one, name in zip(drawn, names):
        told = "  ".join(
            [_padded(_fit(name, name_width, signs), name_width)] * bool(name_width) + _told(one, lines.x_name)
        )
        rows.append(f"  {pen.sign(one.number)} {_fit(told, width - 5, signs)}")
    more = [*_marked(drawn, lines.x_name, signs), *map(clean, lines.notes)]
    more = [f"  {row}" for text in more for row in _wrapped(text, width - 2, signs)]
    if len(rows) + len(more) > room:
        more = more[: max(room - min(len(rows), 3), 0)]
        kept = max(room - len(more) - 1, 1)
        if len(rows) > kept + 1:
            rows = [*rows[:kept], _fit(f"     and {len(rows) - kept} more lines", width, signs)]
    return [*rows, *more][:room]


def _names(lines: Lines, drawn: Sequence[_Drawn]) -> list[str]:
    """What tells the lines apart: keys, runs, or both."""
    several_keys = len({line.key for line in lines.lines}) > 1
    several_runs = len({line.run for line in lines.lines}) > 1 or any(line.members > 1 for line in lines.lines)
    keys = [clean(one.line.key) if several_keys else "" for one in drawn]
    key_width = max(map(cells, keys)) if several_runs else 0
    runs = [_run_name(one.line) if several_runs else "" for one in drawn]
    return [f"{_padded(key, key_width)}{'  ' if key and run else ''}{run}" for key, run in zip(keys, runs)]


def _run_name(line: Line) -> str:
    return clean(line.name if line.members > 1 or "," in line.run else f"{line.name} ({line.run})")


def _told(one: _Drawn, x_name: str) -> list[str]:
    line = one.line
    parts = []
    if line.members > 1:
        parts.append(f"{line.members} runs")
    if line.last is not None:
        parts.append(f"last {line.last:<9.4g}")
    if line.best is not None and line.best_x is not None:
        parts.append(f"{line.goal} {line.best:.4g} @ {place_text(x_name, line.best_x)}")
    if line.not_finite:
        parts.append(f"{line.not_finite:,} not finite")
    if one.not_positive:
        parts.append(f"{one.not_positive:,} not positive")
    return parts


def _marked(drawn: Sequence[_Drawn], x_name: str, signs: _Signs) -> list[str]:
    """What is said of gaps and resumes."""
    gaps = sorted({gap for one in drawn for gap in one.line.gaps})
    resumes = sorted({x for one in drawn for x in one.line.attempts})
    told = []
    if gaps:
        places = [" to ".join(dict.fromkeys(place_text(x_name, end) for end in gap)) for gap in gaps[:3]]
        told.append(
            f"{signs.missing} records are missing: {', '.join(places)}{f', … ({len(gaps)} places)' if gaps[3:] else ''}"
        )
    if resumes:
        told.append(f"{signs.resumed} resumed at {', '.join(place_text(x_name, x) for x in resumes[:5])}")
    return told


# ---- text of a given width


def _fit(text: str, width: int, signs: _Signs) -> str:
    """A text in at most so many cells."""
    if not text.isascii() and signs is _ASCII:
        text = text.replace("…", "...").encode("ascii", "replace").decode()
    return text.rstrip() if cells(text) <= width else cut(text, width, signs.cut)


def _wrapped(text: str, width: int, signs: _Signs) -> list[str]:
    """A text in lines of at most so many cells, three at most."""
    import textwrap

    return [_fit(row, width, signs) for row in textwrap.wrap(text, width)[:3]]


def _padded(text: str, width: int) -> str:
    return left(text, width)
