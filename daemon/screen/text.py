"""Words and signs of the live screen: texts of an exact width, numbers in few characters, styles. Nothing here can steer a terminal.

A line is a text with ANSI colours of the sixteen that every terminal has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import click

from sdk._greeting import bars
from sdk.reader import state

# What stands for a sign where there is only ASCII.
_ASCII = str.maketrans(dict(zip("▁▂▃▄▅▆▇█●○…·▸▾", "_.,-=+*#*o~|>v")))
_DOTS = {
    state.RUNNING: ("●", "green"),
    state.FINISHED: ("○", "cyan"),
    state.INTERRUPTED: ("○", "yellow"),
    state.PREEMPTED: ("○", "yellow"),
}


class Ink:
    """What the terminal can show.

    Attributes:
        unicode: More than ASCII. color: Colours.
    """

    def __init__(self, unicode: bool = True, color: bool = True) -> None:
        self.unicode = unicode
        self.color = color

    def style(
        self, text: str, *, fg: str | None = None, bold: bool = False, dim: bool = False, reverse: bool = False
    ) -> str:
        """A text with a colour; bold, dim and reverse are shown without colours too."""
        if not text or not (fg or bold or dim or reverse):
            return text
        return click.style(
            text, fg=fg if self.color else None, bold=bold or None, dim=dim or None, reverse=reverse or None
        )

    def plain(self, line: str) -> str:
        """A finished line, in ASCII where the terminal has no more."""
        return line if self.unicode else line.translate(_ASCII).encode("ascii", "replace").decode()

    def dot(self, name: str) -> str:
        """The sign of a state."""
        sign, color = _DOTS.get(name, ("○", "red"))
        if not self.unicode:
            sign = "*" if name == state.RUNNING else "o" if name == state.FINISHED else "x"
        return self.style(sign, fg=color)


@lru_cache(4096)
def clean(text: str) -> str:
    """The text without what could steer a terminal or has no width."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() else "?" for c in text)


@lru_cache(4096)
def width_of(text: str) -> int:
    """How many columns a clean text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


@lru_cache(8192)
def fit(text: str, width: int, right: bool = False) -> str:
    """A text, cleaned, in exactly so many columns; what is cut off is marked."""
    if width <= 0:
        return ""
    text = clean(text[: 4 * width + 64])
    taken = width_of(text)
    if taken > width:
        kept, taken = [], 0
        for character in text:
            wide = width_of(character)
            if taken + wide > width - 1:
                break
            kept.append(character)
            taken += wide
        text = "".join(kept) + "…"
        taken += 1
    return " " * (width - taken) + text if right else text + " " * (width - taken)


def cut(line: str, width: int) -> str:
    """A line with colours; where it is too wide it is cut, and then without its colours."""
    plain = click.unstyle(line)
    return line if width_of(plain) <= width else fit(plain, width)


def padded(line: str, width: int) -> str:
    """A line with colours, made as wide as it should be."""
    return line + " " * (width - width_of(click.unstyle(line)))


def joined(parts: Iterable[str], width: int) -> str:
    """As many of some clean plain texts as there is room for, with a dot between them."""
    line = ""
    for part in parts:
        longer = f"{line} · {part}" if line else part
        if width_of(longer) > width:
            break
        line = longer
    return line


def spark(steps: Sequence[int], values: Sequence[float], width: int) -> str:
    """Finite values as bars: one for each column, each the mean of what falls into it; where nothing does, as the one before.

    Why not empty: of a long run only a few blocks are read, and what was not read would look like what was not logged.
    """
    if not values or width <= 0:
        return ""
    if len(values) <= width:
        return bars(values).rjust(width) if len(values) > 1 else bars(values)
    first, span = steps[0], max(steps[-1] - steps[0], 1)
    sums, counts = [0.0] * width, [0] * width
    for step, value in zip(steps, values):
        place = min((step - first) * width // span, width - 1)
        sums[place] += value / 2  # halves: the sum of two huge floats may be infinite
        counts[place] += 1
    low, high = min(values), max(values)
    # Within their range: of a constant the sums are rounded to different means.
    means: list[float] = []
    for total, held in zip(sums, counts):
        means.append(min(max(total / held * 2, low), high) if held else means[-1])
    return bars(means)


_NUMBER_CHARACTERS = 7


def number(value: float) -> str:
    """A value in at most seven characters."""
    if value != value:
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    size = abs(value)
    if value == int(value) and size < 1e5:
        return str(int(value))
    if 1e4 <= size < 1e5:
        return f"{value:.0f}"
    texts = [f"{value:.{digits}g}" for digits in (4, 3, 2)] if 1e-3 <= size < 1e5 else []
    texts += [f"{value:.{digits}e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e") for digits in (1, 0)]
    # What is cut would say another number: fewer digits.
    return next((text for text in texts if len(text) <= _NUMBER_CHARACTERS), texts[-1])


def count(value: float) -> str:
    """A whole number in at most six characters: 981, 9,812, 98.1k, 1.20M."""
    if value < 10_000:
        return f"{int(value):,}"
    for unit in "kMGT":
        value /= 1000
        if value < 1000:
            return f"{value:.3g}{unit}" if value < 999.5 else f"{value:.0f}{unit}"
    return f"{value:.1e}"


def share(value: float | None) -> str:
    """Percent in at most six characters."""
    return f"{value:.0f}%" if value is not None and 0 <= value < 1e5 else ""


def gigabytes(value: float | None) -> str:
    """Bytes in at most five characters: 812M, 1.2G, 30G."""
    if value is None or not value >= 0:
        return ""
    if value < 999.5e6:
        return f"{value / 1e6:.0f}M"
    for unit in "GTP":
        value /= 1e3 if unit != "G" else 1e9
        if value < 999.5:
            return f"{value:.1f}{unit}" if value < 9.95 else f"{value:.0f}{unit}"
    return "much"


def rate(value: float | None) -> str:
    """Steps a second, or a minute or an hour where that is below one."""
    if value is None or not value > 0:
        return ""
    for unit, factor in (("s", 1), ("min", 60), ("h", 3600)):
        if value * factor >= 1 or unit == "h":
            told = value * factor
            return f"{count(told) if told >= 1000 else f'{told:.3g}'}/{unit}"
    return ""


def span(seconds: float | None) -> str:
    """A time in at most seven characters: 45s, 12m, 2h14m, 3d4h."""
    if seconds is None or not 0 <= seconds < 1e10:
        return ""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m" if whole >= 600 else f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600}h" if whole < 86400 * 100 else f"{whole // 86400}d"
