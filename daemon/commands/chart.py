"""Curves as text: braille dots (2 x 4 to a character) in a terminal, one sign per curve elsewhere. Pure: arrays in, lines out.

Many points fall into one column of dots; the column shows all from their smallest to their largest, so a spike of one
step in a million is seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

COLORS = ("cyan", "yellow", "magenta", "green", "red", "blue", "bright_white")
SIGNS = "*+ox#@%"
_BRAILLE = 0x2800
# Bit of a dot by its row and column in the cell (Unicode's order).
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_LABEL_CHARACTERS = 10
_NOBODY = -1


class Curve(NamedTuple):
    """A label and points with finite values, sorted by x."""

    label: str
    x: NDArray[Any]
    y: NDArray[numpy.float64]


class Axis(NamedTuple):
    """What the x axis is called, and how a place on it is written; None: as a number."""

    name: str = "step"
    text: Callable[[float], str] | None = None

    def label(self, x: float) -> str:
        """A place as text."""
        if self.text is not None:
            return self.text(x)
        return f"{x:,.0f}" if x == round(x) else f"{x:,.4g}"


class Style(NamedTuple):
    """What the output can show."""

    unicode: bool
    color: bool


class _Canvas:
    """Cells of dots, each with the number of the curve that was drawn there last."""

    def __init__(self, columns: int, rows: int, style: Style, curves: int) -> None:
        # Why signs for several curves without colour: dots of one colour could not be told apart.
        self.braille = style.unicode and (style.color or curves == 1)
        self.color = style.color
        self.across, self.down = (2, 4) if self.braille else (1, 1)
        self.width, self.height = columns * self.across, rows * self.down
        self._cells: list[list[tuple[int, int]]] = [[(0, _NOBODY)] * columns for _ in range(rows)]

    def dot(self, x: int, y: int, curve: int) -> None:
        """Sets a dot; (0, 0) is at the lower left."""
        y = self.height - 1 - y
        row = self._cells[y // self.down]
        cell = row[x // self.across]
        bits = _DOTS[y % 4][x % 2] if self.braille else 0
        row[x // self.across] = (bits | cell[0], curve)

    def lines(self) -> list[str]:
        """The rows as text; cells of one colour beside each other share an escape sequence."""
        return [
            "".join(
                self._text([bits for bits, _ in cells], curve)
                for curve, cells in itertools.groupby(row, key=lambda cell: cell[1])
            )
            for row in self._cells
        ]

    def _text(self, cells: list[int], curve: int) -> str:
        if curve == _NOBODY:
            return " " * len(cells)
        if not self.braille:
            return self._colored(SIGNS[curve % len(SIGNS)] * len(cells), curve)
        return self._colored("".join(chr(_BRAILLE + bits) for bits in cells), curve)

    def _colored(self, text: str, curve: int) -> str:
        return click.style(text, fg=COLORS[curve % len(COLORS)]) if self.color else text

    def sign(self, curve: int) -> str:
        """How the legend shows a curve."""
        return self._colored("⠤⠤" if self.braille else SIGNS[curve % len(SIGNS)], curve)


def draw(
    curves: Sequence[Curve],
    width: int,
    height: int,
    style: Style,
    axis: Axis = Axis(),  # noqa: B008 - never changed
) -> list[str]:
    """The chart with its axes and legend, at most `width` characters wide and `height` lines high (but never tiny)."""
    shown = [curve for curve in curves if len(curve.x)]
    if not shown:
        return ["no finite values to draw"]
    canvas = _Canvas(max(width - _LABEL_CHARACTERS - 2, 10), max(height - 2 - len(curves), 4), style, len(shown))
    x_range = (float(min(c.x[0] for c in shown)), float(max(c.x[-1] for c in shown)))
    y_range = (float(min(c.y.min() for c in shown)), float(max(c.y.max() for c in shown)))
    for number, curve in enumerate(shown):
        _draw_curve(canvas, number, curve, x_range, y_range)
    lines = _with_axes(canvas.lines(), x_range, y_range, style, axis)
    return lines + [f"  {canvas.sign(number)} {curve.label}" for number, curve in enumerate(shown)]


def _draw_curve(
    canvas: _Canvas, number: int, curve: Curve, x_range: tuple[float, float], y_range: tuple[float, float]
) -> None:
    import numpy

    column = _scaled(curve.x, x_range, canvas.width)
    row = _scaled(curve.y, y_range, canvas.height)
    starts = numpy.flatnonzero(numpy.append(True, column[1:] != column[:-1]))
    ends = numpy.append(starts[1:], len(column)) - 1
    low, high = numpy.minimum.reduceat(row, starts), numpy.maximum.reduceat(row, starts)
    before: tuple[int, int] | None = None
    for x, first, last, bottom, top in zip(
        column[starts].tolist(), row[starts].tolist(), row[ends].tolist(), low.tolist(), high.tolist()
    ):
        if before is not None:
            for dot in _line(before, (x, first)):
                canvas.dot(*dot, number)
        for y in range(bottom, top + 1):
            canvas.dot(x, y, number)
        before = (x, last)


def _scaled(values: NDArray[Any], ends: tuple[float, float], size: int) -> NDArray[numpy.int64]:
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


def _line(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots between two, the ends left out."""
    (x0, y0), (x1, y1) = start, end
    count = max(abs(x1 - x0), abs(y1 - y0))
    return [(x0 + round((x1 - x0) * n / count), y0 + round((y1 - y0) * n / count)) for n in range(1, count)]


def _with_axes(
    lines: list[str], x_range: tuple[float, float], y_range: tuple[float, float], style: Style, axis: Axis
) -> list[str]:
    side, corner, floor = ("│", "└", "─") if style.unicode else ("|", "+", "-")
    low, high = y_range
    labels = {0: high, len(lines) - 1: low}
    if len(lines) > 6:
        labels[len(lines) // 2] = high - (high / 2 - low / 2) * 2 * (len(lines) // 2) / (len(lines) - 1)
    out = [
        f"{(f'{labels[n]:.4g}' if n in labels else ''):>{_LABEL_CHARACTERS}} {side}{line.rstrip()}"
        for n, line in enumerate(lines)
    ]
    width = max(len(click.unstyle(line)) for line in lines)
    out.append(" " * (_LABEL_CHARACTERS + 1) + corner + floor * width)
    left, right = axis.label(x_range[0]), f"{axis.label(x_range[1])} {axis.name}"
    out.append(" " * (_LABEL_CHARACTERS + 2) + left + right.rjust(max(width - len(left), len(right) + 1)))
    return out
