"""Groups of runs as one curve: which runs belong together, and the mean of their values with a band around it.

Members need not have logged at the same places: between two of its values a member stands on the straight line that joins them,
before its first and behind its last one it does not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy

from ..errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..reader import Run

    Floats: TypeAlias = NDArray[numpy.float64]

BANDS = ("std", "sem", "minmax", "ci95")
# The 97.5 % points of Student's t with 1 to 30 degrees of freedom; beyond them the normal distribution's is within 0.04
# (NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2).
_STUDENT_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL = 1.96
_LABEL_CHARACTERS_MAX = 60


class Grouped(NamedTuple):
    """Several curves as one.

    Attributes:
        low, high: The band, NaN where there is none; None: none was asked for.
        shorter: How many members end before the last one does.
    """

    x: Floats
    mean: Floats
    low: Floats | None
    high: Floats | None
    shorter: int


def groups_of(
    runs: Sequence[Run], group: Sequence[str], over: str | None
) -> tuple[list[tuple[str, list[Run]]], list[str]]:
    """Runs by the values of some names, in the order of the values, and what should be said of that.

    Raises:
        NotFoundError: No run has anything of a name.
    """
    from .lookup import lookup_of
    from .overview import check_name, differing_config

    notes = []
    differing = [_config_name(name) for name in differing_config(runs)]
    others = [name for name in differing if over is None or name != _config_name(over)]
    names = list(group) or others
    if not group and not others:
        names = ["project"]
    found = [lookup_of(run) for run in runs]
    for name in [*names, *([] if over is None else [over])]:
        check_name(name, found)
    by_values: dict[tuple[Any, ...], list[Run]] = {}
    values_of: dict[tuple[Any, ...], list[Any]] = {}
    for run, lookup in zip(runs, found):
        values = [lookup(name) for name in names]
        identity = tuple(map(_identity, values))
        by_values.setdefault(identity, []).append(run)
        values_of.setdefault(identity, values)
    mixed = [name for name in others if name not in {_config_name(one) for one in names}]
    if over is not None and mixed and any(_differ(members, mixed) for members in by_values.values()):
        notes.append(f"runs of one group differ in {', '.join(mixed[:3])} too, not in {over} alone")
    chosen = sorted(by_values, key=lambda identity: tuple(map(_rank, values_of[identity])))
    labels = _labels(names, [values_of[identity] for identity in chosen])
    return [(label, by_values[identity]) for label, identity in zip(labels, chosen)], notes


def _identity(value: Any) -> tuple[str, Any]:
    """What is equal for values that make one group: of numbers their size, of anything else its kind and text."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    return ("", value) if is_number else (type(value).__name__, str(value))


def _labels(names: Sequence[str], groups: Sequence[Sequence[Any]]) -> list[str]:
    """What the groups of these values are called; more exactly where two would be called the same."""
    labels = [_label(names, values, _text) for values in groups]
    twice = {label for label, count in Counter(labels).items() if count > 1}
    return [
        _label(names, values, _exact_text) if label in twice and not _is_plain(values) else label
        for label, values in zip(labels, groups)
    ]


def _label(names: Sequence[str], values: Sequence[Any], text: Callable[[Any], str]) -> str:
    """The values; of several, which name a number is of: "adam, lr 0.1"."""
    if len(names) == 1:
        return text(values[0])
    return ", ".join(
        text(value) if isinstance(value, str) else f"{name.removeprefix('config.')} {text(value)}"
        for name, value in zip(names, values)
    )


def _is_plain(values: Sequence[Any]) -> bool:
    """Whether nothing more exact can be said than `_text` does."""
    return all(value is None or isinstance(value, (bool, int)) for value in values)


def _exact_text(value: Any) -> str:
    text = "none" if value is None else repr(value)
    if len(text) <= _LABEL_CHARACTERS_MAX:
        return text
    half = _LABEL_CHARACTERS_MAX // 2
    return f"{text[: half - 1]}…{text[-half:]}"


def _differ(members: Sequence[Run], names: Sequence[str]) -> bool:
    from .overview import differing_config

    return bool({_config_name(name) for name in differing_config(members)} & set(names))


def _config_name(name: str) -> str:
    return name if name.startswith("config.") else f"config.{name}"


def _text(value: Any) -> str:
    text = "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text[:_LABEL_CHARACTERS_MAX]


def _rank(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then texts, then nothing."""
    if value is None:
        return 2, 0.0, ""
    is_number = isinstance(value, (int, float)) and value == value
    return (0, float(value), "") if is_number else (1, 0.0, str(value))


def united(curves: Sequence[tuple[Floats, Floats]], points: int, band: str | None) -> Grouped:
    """The mean of some curves, each sorted by x, at all their places, or at `points` evenly spaced ones where they are more."""
    if not curves:
        empty = numpy.empty(0)
        return Grouped(empty, empty, None if band is None else empty, None if band is None else empty, 0)
    single = [_one_at_each(*curve) for curve in curves]
    grid = numpy.unique(numpy.concatenate([x for x, _ in single]))
    if len(grid) > points:
        grid = numpy.linspace(grid[0], grid[-1], points)
    values = numpy.array([numpy.interp(grid, x, y, left=numpy.nan, right=numpy.nan) for x, y in single])
    there = numpy.isfinite(values)
    count = there.sum(axis=0)
    kept = count > 0
    grid, values, there, count = grid[kept], values[:, kept], there[:, kept], count[kept]
    mean = numpy.where(there, values / count, 0.0).sum(axis=0)
    low, high = _band(values, there, count, mean, band)
    end = max(x[-1] for x, _ in single)
    return Grouped(grid, mean, low, high, sum(bool(x[-1] < end) for x, _ in single))


def _one_at_each(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """The mean of the values at each place."""
    if (x[1:] > x[:-1]).all():
        return x, y
    places, inverse, counts = numpy.unique(x, return_inverse=True, return_counts=True)
    return places, numpy.bincount(inverse.ravel(), weights=y) / counts


def _band(
    values: Floats, there: NDArray[numpy.bool_], count: NDArray[Any], mean: Floats, band: str | None
) -> tuple[Floats | None, Floats | None]:
    if band is None:
        return None, None
    if band == "minmax":
        return numpy.where(there, values, numpy.inf).min(axis=0), numpy.where(there, values, -numpy.inf).max(axis=0)
    if band not in BANDS:
        raise UsageError(f"band is {band!r}, expected one of {', '.join(BANDS)}", hint="--band std")
    with numpy.errstate(invalid="ignore", divide="ignore"):
        deviation = numpy.sqrt((numpy.where(there, values - mean, 0.0) ** 2).sum(axis=0) / (count - 1))
    deviation[count < 2] = numpy.nan
    width = deviation if band == "std" else deviation / numpy.sqrt(count)
    if band == "ci95":
        width = width * numpy.array([_NORMAL if n - 1 > len(_STUDENT_T) else _STUDENT_T[max(n - 2, 0)] for n in count])
    return mean - width, mean + width
