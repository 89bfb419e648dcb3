"""Charts as text: dots, colours, axes, legend, what is faint and what is marked."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy
import pytest

from daemon.commands.chart import HEIGHT_MIN, SIGNS, WIDTH_MIN, Style, draw
from daemon.commands.ticks import across, decades, place_text, up
from sdk.query.curves import Line, Lines

PLAIN, COLORED, ASCII = Style(True, False), Style(True, True), Style(False, False)
DIM = "\x1b[2m"


def line(values: Any, name: str = "v", *, x: Any = None, key: str = "loss", **more: Any) -> Line:
    y = numpy.array(values, float)
    at = numpy.arange(len(y), dtype=float) if x is None else numpy.array(x, float)
    last, best = (float(y[-1]), float(y.min())) if len(y) else (None, None)
    best_x = float(at[y.argmin()]) if len(y) else None
    made = Line(name, name, "p", key, at, y, None, None, None, last, best, best_x, "min", len(y), 0, [], [], 1)
    return made._replace(**more)


def chart(
    *drawn: Line, width: int = 40, height: int = 12, style: Style = PLAIN, x_name: str = "step", **how: Any
) -> list[str]:
    return draw(Lines(x_name, list(drawn), how.pop("notes", [])), width, height, style, **how)


def plain(text: str) -> str:
    return re.sub("\x1b\\[[0-9;]*m", "", text)


def test_braille() -> None:
    """A straight line runs from the lower left to the upper right, dot by dot."""
    assert chart(line(range(8)), width=20, height=9, legend=False) == [
        "loss   v (v)",
        "  │              ⡠⠔⠊",
        "5 ┤            ⡠⠊",
        "  │        ⢀⡠⠒⠉",
        "  │     ⣀⠤⠊⠁",
        "  │   ⡠⠊",
        "0 ┤⡠⠔⠊",
        "  └┬────────────────",
        "   0            step",
    ]


def test_extremes_are_drawn() -> None:
    """One spike among a million points is drawn to its full height."""
    values = numpy.zeros(1_000_000)
    values[123_456] = 9.0
    rows = chart(line(values), width=60, style=ASCII)
    assert sum("*" in row for row in rows[1:9]) == 8


@pytest.mark.parametrize(
    "values",
    [
        [1.0], [2.0, 2.0], [-1.7e308, 1.7e308], [0.0, 5e-324], [1e300, 1e300 + 1e285], list(range(1000)), [1e-5, 2e9],
        [123456789.0, 123456789.5], [1e18, 1e18 + 512],
    ],
)  # fmt: skip
@pytest.mark.parametrize("style", [PLAIN, COLORED, ASCII, Style(False, True)])
@pytest.mark.parametrize("log", [False, True])
def test_any_numbers(values: list[float], style: Style, log: bool) -> None:
    """Single points, equal ones and the ends of the range of floats are drawn in the space given; ASCII where nothing else goes."""
    rows = chart(line(values), line(values[::-1], "w"), style=style, log=log)
    assert len(rows) == 12
    assert max(len(plain(row)) for row in rows) <= 40
    assert style.unicode or "".join(rows).isascii()
    assert style.color == ("\x1b" in "".join(rows))
    assert "w (w)" in rows[-1]


@pytest.mark.parametrize("style", [COLORED, ASCII])
def test_never_larger_than_asked_for(style: Style) -> None:
    """Whatever there is to say, from the smallest chart to a large one."""
    more = {"gaps": [(0.0, 1.0)], "attempts": [1.0], "low": numpy.zeros(3), "high": numpy.ones(3), "raw": numpy.ones(3)}
    lines = [line([1, 2, 3], "名前" * 9, **more) for _ in range(9)]
    for width, height in ((WIDTH_MIN, HEIGHT_MIN), (1, 1), (33, 10), (80, 24), (200, 50)):
        how: dict[str, Any] = {"notes": ["a note " * 40, "another"], "title": "t" * 300}
        rows = chart(*lines, width=width, height=height, style=style, **how)
        assert len(rows) <= max(height, HEIGHT_MIN)
        for row in rows:
            wide = sum(2 if "\u2e80" < letter < "\uffff" else 1 for letter in plain(row))
            assert wide <= max(width, WIDTH_MIN), row


def test_nothing_to_draw() -> None:
    """That no value can be drawn is said."""
    assert chart(line([])) == ["no finite values to draw"]
    assert chart(line([-1.0]), log=True) == ["no positive values to draw"]


def test_lines_are_told_apart_without_colour() -> None:
    """Where colours do not go, each line has its sign, in the chart and in the legend."""
    rows = chart(line([0, 1]), line([1, 0], "w"))
    assert SIGNS[0] in rows[1]
    assert SIGNS[1] in rows[1]
    assert rows[-1].startswith(f"  {SIGNS[1]} w (w)  last 0 ")


def test_the_legend_says_last_and_best_and_what_was_left_out() -> None:
    """In columns; keys and runs only where they differ, and what all have in common above the chart."""
    rows = chart(line([3, 1, 2], "a", not_finite=2), line([0.5], "longer"), width=80)
    assert rows[0] == "loss"
    assert rows[-2] == "  * a (a)            last 2          min 1 @ 1  2 not finite"
    assert rows[-1] == "  + longer (longer)  last 0.5        min 0.5 @ 0"
    rows = chart(line([1.0], "a"), line([1.0], "a", key="val/acc", goal="max"), width=80)
    assert rows[0] == "a (a)"
    assert rows[-1] == "  + val/acc  last 1          max 1 @ 0"


def test_a_log_axis() -> None:
    """Decades are labelled, and what is not positive is left out and counted."""
    rows = chart(line([1000, 100, 10, 1, 0, -1], x=range(6)), log=True, width=60, height=20)
    assert [row.split()[0] for row in rows if "┤" in row] == ["1000", "100", "10", "1"]
    assert "2 not positive" in rows[-1]


def test_what_is_smoothed_is_faint_behind() -> None:
    """The values as logged are dim, and give way to the smoothed line where both would stand in a cell."""
    values = numpy.array([0.0, 8.0] * 10)
    rows = chart(line(numpy.full(20, 4.0), raw=values), style=COLORED, height=14)
    assert sum(DIM in row for row in rows) > 6
    assert [row for row in rows if "⠤" * 15 in row or "⠒" * 15 in row or "⠉" * 15 in row or "⣀" * 15 in row]
    uncolored = "\n".join(chart(line(numpy.full(20, 4.0), raw=values), height=14))
    assert "." in uncolored
    assert "*****" in uncolored


def test_a_band() -> None:
    """The room between low and high is filled, faintly, and not where there is no band."""
    low = numpy.array([0.0] * 10 + [numpy.nan] * 10)
    rows = chart(line(numpy.full(20, 5.0), low=low, high=low + 10), style=ASCII, width=60, height=14)
    body = [row.split("|")[-1].split("+")[-1] for row in rows[1:11]]
    assert sum("." in row[:20] for row in body) == 9  # and one of the mean itself
    assert not any("." in row[32:] for row in body)


def test_a_gap_breaks_the_line_and_is_marked() -> None:
    """Nothing is drawn across missing records; the columns are marked, and the legend says which."""
    values = line([5.0] * 100, gaps=[(40.0, 60.0)], x=[*range(41), *range(60, 119)])
    rows = chart(values, width=60, height=10, style=ASCII)
    middle = next(row for row in rows if "**" in row)
    assert re.search(r"\*:{6,}\*", middle)
    assert rows[-1] == "  : records are missing: 40 to 60"


def test_a_resume_is_marked() -> None:
    """Where another attempt began there is a vertical line, and the legend says so."""
    rows = chart(line(range(10), attempts=[5.0]), width=60, height=12)
    assert sum("┊" in row for row in rows[1:8]) >= 5
    assert rows[-1] == "  ┊ resumed at 5"


def test_many_lines() -> None:
    """The legend takes a third of the height; what it leaves out is counted, and notes are told."""
    rows = chart(*(line([n, n + 1], f"r{n}") for n in range(50)), width=60, height=24, notes=["a note"])
    assert len(rows) == 24
    assert rows[-2:] == ["     and 44 more lines", "  a note"]


def test_texts_of_a_store_are_cleaned() -> None:
    """No control character of a name reaches the terminal."""
    text = "\n".join(chart(line([1.0], "a\x1b]0;x\x07", key="b\x1b[2J"), notes=["c\x9b"], style=PLAIN, x_name="d\x1bc"))
    assert not set(text) & {"\x1b", "\x07", "\x9b"}


def test_a_wide_name_of_an_axis() -> None:
    """A name whose characters take two cells each leaves the row as wide as the others."""
    rows = chart(line(range(8)), width=40, x_name="日本語の軸")
    assert rows[-2].endswith("日本語の軸")
    assert len(rows[-2]) + 5 <= 40


def test_round_numbers_on_axes() -> None:
    """Ticks are 1, 2 or 5 times a power of ten, with as many digits as tell them apart."""
    assert [tick.text for tick in up(0.03, 1.02, 16)] == ["0.2", "0.4", "0.6", "0.8", "1.0"]
    assert [tick.text for tick in across("step", 0, 1e6, 40)[1]] == ["0", "500,000", "1,000,000"]
    assert [tick.text for tick in up(1e-7, 4e-7, 9)] == ["1e-07", "2e-07", "3e-07", "4e-07"]
    assert [tick.text for tick in decades(-0.2, 0.9, 12)] == ["1", "2", "5"]


def test_times_on_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of day in the local zone, with dates where there are several; durations in their unit."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        name, ticks = across("time", 1_700_000_000, 1_700_000_900, 40)
        assert (name, [tick.text for tick in ticks]) == ("2023-11-14", ["22:15", "22:20", "22:25"])
        name, ticks = across("time", 1_700_000_000, 1_700_200_000, 40)
        assert (name, ticks[0].text) == ("2023", "11-15")
        assert place_text("time", 1_700_000_000) == "2023-11-14 22:13:20"
    finally:
        monkeypatch.undo()
        time.tzset()
    name, ticks = across("relative", 0, 7200, 40)
    assert (name, [tick.text for tick in ticks]) == ("h", ["0", "1", "2"])
    assert place_text("relative", 90) == "90 s"
