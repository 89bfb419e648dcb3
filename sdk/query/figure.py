"""A matplotlib figure of what `curves` gives: for `run.plot()`, `store.plot()` and `stepd plot -o`.

Made with matplotlib's objects and without pyplot: no window, no global state, no figure that somebody must close, and safe beside the
program's own figures. The format is decided where it is saved: `figure.savefig("x.pdf")`.
"""

from __future__ import annotations

import datetime
import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import Error, UsageError, install_hint

if TYPE_CHECKING:
    from .curves import Line, Lines

_INCHES = (8.0, 4.5)
# Limits: what a legend and an eye can hold; beyond, colours come again.
_LEGEND_LINES_MAX = 24
_TEXT_CHARACTERS_MAX = 60
_NOTES_MAX = 4
_RAW_ALPHA, _BAND_ALPHA = 0.22, 0.18
_LARGEST = 1e300
_SECONDS_MAX = 1e11  # the year 5138: what is beyond it is no time
_GAP_COLOUR, _MARK_COLOUR = "#c33c3c", "#777777"


def matplotlib_module(what: str, name: str = "figure") -> Any:
    """A module of matplotlib.

    Raises:
        Error: It is not installed.
    """
    try:
        return importlib.import_module(f"matplotlib.{name}")
    except ImportError:
        raise Error(f"cannot draw {what}: matplotlib is not installed here", hint=install_hint("matplotlib")) from None


def figure(
    lines: Lines, *, title: str | None = None, log: bool = False, size: tuple[float, float] | None = None
) -> Any:
    """A matplotlib.figure.Figure that shows itself as the last line of a notebook's cell.

    What was smoothed has its raw values faintly behind; a group its band; ranges of missing records are hatched, and a dotted line stands
    where an attempt began. The legend says the last and the best value of each line, as they were logged.

    Args:
        title: Above the axes; None: the key and the run, where all lines are of one.
        log: A logarithmic y axis; values that are not positive are left out.
        size: Inches, width and height.

    Raises:
        Error: matplotlib is not installed.
        UsageError: There is nothing to draw.
    """
    matplotlib_module("a figure")
    if not lines.lines:
        raise UsageError("there is nothing to draw: no line holds a finite number", hint="stepd show RUN")
    from .canvas import Picture

    drawn = Picture(figsize=size or _INCHES, layout="constrained")
    axes = drawn.add_subplot()
    runs, keys = {line.run for line in lines.lines}, {line.key for line in lines.lines}
    for number, line in enumerate(lines.lines):
        shown = number < _LEGEND_LINES_MAX
        _draw(
            axes, line, lines.x_name, f"C{number % 10}", _label(line, len(runs) > 1, len(keys) > 1) if shown else None
        )
    _mark(axes, lines)
    if log:
        axes.set_yscale("log", nonpositive="mask")
    axes.set_xlabel(_plain({"relative": "seconds", "time": "time (UTC)"}.get(lines.x_name, lines.x_name)))
    if len(keys) == 1:
        axes.set_ylabel(_plain(next(iter(keys))))
    said = _title(lines.lines) if title is None else title
    if said:
        axes.set_title(_plain(said))
    axes.grid(visible=True, alpha=0.25)
    axes.margins(x=0.01)
    axes.legend(fontsize="small", framealpha=0.8)
    if lines.notes:
        # Below everything: of all texts of a figure only its titles and labels are given room of their own.
        said = "\n".join(_plain(note) for note in lines.notes[:_NOTES_MAX])
        drawn.supxlabel(said, x=0.005, ha="left", fontsize="x-small", color=_MARK_COLOUR)
    return drawn


def _title(found: Sequence[Line]) -> str:
    """The key and the run, where all lines are of one."""
    keys = {line.key for line in found}
    runs = {_whose(line) for line in found if line.members == 1}
    is_of_one = len(runs) == 1 and len({line.run for line in found}) == 1
    return "   ".join(_cut(text) for text in [*(keys if len(keys) == 1 else ()), *(runs if is_of_one else ())])


def _whose(line: Line) -> str:
    if line.members > 1:
        return f"{line.name} ({line.members} runs)"
    return line.run if line.name == line.run else f"{line.name} ({line.run})"


def _draw(axes: Any, line: Line, x_name: str, colour: str, label: str | None) -> None:
    x = _places(_bounded(line.x), x_name)
    if line.raw is not None:
        axes.plot(x, _bounded(line.raw), color=colour, alpha=_RAW_ALPHA, linewidth=0.8)
    if line.low is not None and line.high is not None:
        axes.fill_between(x, _bounded(line.low), _bounded(line.high), color=colour, alpha=_BAND_ALPHA, linewidth=0)
    marker = "o" if len(line.x) == 1 else None
    axes.plot(x, _bounded(line.y), color=colour, linewidth=1.4, marker=marker, label=label)


def _bounded(values: Any) -> Any:
    """Numbers whose distances matplotlib can reckon with."""
    return values.clip(-_LARGEST, _LARGEST)


def _mark(axes: Any, lines: Lines) -> None:
    """Gaps and attempts, each once: several keys of one run have the same."""
    gaps = {gap for line in lines.lines for gap in line.gaps}
    attempts = {attempt for line in lines.lines for attempt in line.attempts}
    for start, end in sorted(gaps):
        left, right = _places((start, end), lines.x_name)
        axes.axvspan(left, right, facecolor="none", edgecolor=_GAP_COLOUR, hatch="////", alpha=0.35, linewidth=0.5)
    for attempt in sorted(attempts):
        axes.axvline(_places((attempt,), lines.x_name)[0], color=_MARK_COLOUR, linestyle=":", linewidth=1.0)


def _places(x: Sequence[float] | Any, x_name: str) -> Any:
    """Positions as the axes take them: dates of an axis of time."""
    if x_name != "time":
        return x
    return [
        datetime.datetime.fromtimestamp(min(max(float(seconds), 0.0), _SECONDS_MAX), datetime.timezone.utc)
        for seconds in x
    ]


def _label(line: Line, names_run: bool, names_key: bool) -> str:
    parts = [line.key] if names_key or not names_run else []
    parts += [_whose(line)] if names_run else []
    told = "  ".join(_cut(part) for part in parts)
    if line.last is not None:
        told += f"   last {line.last:.4g}"
    if line.best is not None and line.goal is not None:
        told += f"   {line.goal} {line.best:.4g}"
    return _plain(told)


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_CHARACTERS_MAX else f"{text[: _TEXT_CHARACTERS_MAX - 1]}…"


def _plain(text: str) -> str:
    """The text as matplotlib draws it: without its own formulas, which a hostile name could break drawing with, and without a leading
    underscore, which would hide a line from the legend.
    """
    shown = "".join(c if c.isprintable() else "?" for c in text).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown
