"""Where an axis has its labels, and what they say: round numbers, decades, times of day, durations. Pure."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

_ROWS_FOR_A_LABEL = 2
_COLUMNS_FOR_A_LABEL = 12
_LABELS_MAX = 10
_DIGITS_MAX = 9
_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0
# Distances of labels on an axis of times, in seconds.
_TIME_STEPS = (
    1, 2, 5, 10, 15, 30, _MINUTE, 2 * _MINUTE, 5 * _MINUTE, 10 * _MINUTE, 15 * _MINUTE, 30 * _MINUTE, _HOUR, 2 * _HOUR, 3 * _HOUR,
    6 * _HOUR, 12 * _HOUR, _DAY, 2 * _DAY, 7 * _DAY, 14 * _DAY, 30 * _DAY, 90 * _DAY, 365 * _DAY,
)  # fmt: skip
_SECONDS_MAX = 1e11  # the year 5138: what is beyond it is no time


class Tick(NamedTuple):
    """A place on an axis and its label."""

    at: float
    text: str


def up(low: float, high: float, rows: int) -> list[Tick]:
    """Labels of a y axis."""
    return _numbers(low, high, max(min(rows // _ROWS_FOR_A_LABEL, _LABELS_MAX), 2))


def decades(low: float, high: float, rows: int) -> list[Tick]:
    """Labels of a logarithmic y axis, of which the ends are exponents of 10: powers of ten, or numbers between them where those are few."""
    exponents = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    every = max(math.ceil(len(exponents) / max(rows // 2, 2)), 1)
    if len(exponents) >= 3:
        return [Tick(float(n), _power(n)) for n in exponents if n % every == 0]
    found = [Tick(n + math.log10(digit), f"{digit * 10.0**n:.4g}") for n in range(math.floor(low), math.floor(high) + 1)
             for digit in (1, 2, 5) if low <= n + math.log10(digit) <= high and -300 < n < 300]  # fmt: skip
    if len(found) >= 2:
        return found
    return [Tick(at, f"{10.0**at:.4g}") for at in {low: 0, high: 0} if at < 308]


def _power(exponent: int) -> str:
    return f"{10.0**exponent:g}" if -4 <= exponent <= 4 else f"1e{exponent}"


def across(name: str, low: float, high: float, columns: int) -> tuple[str, list[Tick]]:
    """The name of an x axis, with its unit, and its labels."""
    count = max(min(columns // _COLUMNS_FOR_A_LABEL, _LABELS_MAX), 2)
    if name == "time" and 0 <= low <= high <= _SECONDS_MAX:
        return _times(low, high, count)
    if name == "relative" and math.isfinite(high - low):
        return _durations(low, high, count)
    return name, _numbers(low, high, count, step_min=1.0 if name == "step" else 0.0)


def _numbers(low: float, high: float, count: int, *, step_min: float = 0.0) -> list[Tick]:
    """Round numbers between two, about `count` of them; the ends where there is no such number."""
    step = _round_step(low, high, count)
    step = None if step is None else max(step, step_min)
    if step is None or abs(low) > 1e15 * step or abs(high) > 1e15 * step:
        return [Tick(at, f"{at:.4g}") for at in dict.fromkeys((low, high))]
    first = math.ceil(low / step - 1e-9)
    places = [first + n for n in range(4 * count) if (first + n) * step <= high + step * 1e-9]
    digits = max(-math.floor(math.log10(step) + 1e-9), 0)
    largest = max(abs(low), abs(high))
    if largest < 1e9 and digits <= 5:
        return [Tick(n * step, f"{n * step + 0.0:,.{digits}f}") for n in places]
    needed = min(max(math.floor(math.log10(largest)) - math.floor(math.log10(step) + 1e-9) + 1, 1), _DIGITS_MAX)
    return [Tick(n * step, f"{n * step:.{needed}g}") for n in places]


def _round_step(low: float, high: float, count: int) -> float | None:
    """1, 2 or 5 times a power of ten; None where there is no distance."""
    wanted = (high / count) - (low / count)
    if not 1e-300 < wanted < 1e300:
        return None
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= wanted * (1 - 1e-9))


def _times(low: float, high: float, count: int) -> tuple[str, list[Tick]]:
    """Times of day in the local zone, with the date where there are several days."""
    step = next((step for step in _TIME_STEPS if step * count >= high - low), _TIME_STEPS[-1])
    shift = time.localtime(low).tm_gmtoff
    first = math.ceil((low + shift) / step) * step - shift
    places = [first + n * step for n in range(4 * count) if first + n * step <= high] or [low]
    is_one_day = time.localtime(low)[:3] == time.localtime(high)[:3]
    pattern = "%H:%M:%S" if step < _MINUTE else "%H:%M" if is_one_day else "%m-%d" if step >= _DAY else "%m-%d %H:%M"
    name = time.strftime("%Y-%m-%d" if is_one_day else "%Y", time.localtime(low))
    return name, [Tick(at, time.strftime(pattern, time.localtime(at))) for at in places]


def _durations(low: float, high: float, count: int) -> tuple[str, list[Tick]]:
    unit, seconds = _unit(max(abs(low), abs(high)))
    return unit, [Tick(tick.at * seconds, tick.text) for tick in _numbers(low / seconds, high / seconds, count)]


def _unit(largest: float) -> tuple[str, float]:
    """The unit in which durations up to this one are told, and its seconds."""
    for unit, seconds in (("d", _DAY), ("h", _HOUR), ("min", _MINUTE)):
        if largest >= 2 * seconds:
            return unit, seconds
    return "s", 1.0


def place_text(name: str, x: float) -> str:
    """A place on an axis of some name, as a legend says it."""
    if name == "time" and 0 <= x <= _SECONDS_MAX:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(x))
    if name == "relative" and math.isfinite(x):
        unit, seconds = _unit(abs(x))
        return f"{x / seconds:.4g} {unit}"
    return f"{x:,.0f}" if x == round(x) and abs(x) < 1e12 else f"{x:,.4g}"
