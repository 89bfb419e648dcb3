"""The summary of a run: the last value of every key, or what `define_metric(summary=…)` asked for (docs/metrics.md#summary)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .metrics import Definition, Definitions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .series import Series


# What can be known without reading all values.
OPERATIONS_TOLD = frozenset({"min", "max", "first", "last", "best", "copy"})


class Numbers:
    """What a summary may ask of some numbers, without the numbers; they are added in the order of their steps.

    Attributes:
        count: How many there were. `nans`: how many of those were NaN, which `low`, `high` and `total` leave out.
        first, last: The first and the last, as they were logged.
    """

    __slots__ = ("count", "first", "high", "last", "low", "nans", "total")

    def __init__(self) -> None:
        self.count = self.nans = 0
        self.first: Any = None
        self.last: Any = None
        self.low: Any = None
        self.high: Any = None
        self.total = 0.0

    def add(self, values: NDArray[Any]) -> None:
        """Adds some numbers or booleans."""
        import numpy

        if not len(values):
            return
        self.first = values[0].item() if not self.count else self.first
        self.last = values[-1].item()
        self.count += len(values)
        if values.dtype.kind == "f":
            there = ~numpy.isnan(values)
            if not there.all():
                self.nans += int(len(values) - there.sum())
                values = values[there]
        if len(values):
            low, high = values.min().item(), values.max().item()
            self.low = low if self.low is None else min(self.low, low)
            self.high = high if self.high is None else max(self.high, high)
            with numpy.errstate(over="ignore", invalid="ignore"):
                self.total += float(values.sum(dtype=numpy.float64))

    def add_told(self, low: float, high: float, nans: int, count: int) -> None:
        """Adds numbers of which only this is known, and which are neither the first nor the last."""
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)
        self.nans += nans
        self.count += count

    def copy(self) -> Numbers:
        """Another one that says the same."""
        twin = Numbers()
        for name in self.__slots__:
            setattr(twin, name, getattr(self, name))
        return twin

    def asked(self, definition: Definition) -> dict[str, Any]:
        """The values of the operations that a definition asks for. As in W&B, one NaN makes min, max and mean NaN."""
        nan = float("nan") if self.nans else None
        known = {
            "min": self.low if nan is None else nan,
            "max": self.high if nan is None else nan,
            "mean": self.total / self.count if nan is None else nan,
            "first": self.first,
            "last": self.last,
            "best": self.high if definition.goal == "maximize" else self.low,
        }
        return {operation: known[operation] for operation in definition.summary if operation in known}


def is_plain(definition: Definition) -> bool:
    """Whether the last value alone is the summary: nothing else was asked for."""
    return not set(definition.summary) - {"copy"}


def summary_of(
    last: Mapping[str, Any],
    definitions: Definitions,
    read: Callable[[list[str]], Mapping[str, Series]],
    read_extremes: Callable[[list[str]], Mapping[str, Numbers]],
) -> dict[str, Any]:
    """The summary by key.

    Args:
        last: The last value of every logged key.
        read: Gives the series of some keys.
        read_extremes: Gives what is known of numbers, but for their sum, of some logged keys; see `extremes`.
    """
    if not definitions:
        return dict(last)
    makes = definitions.made_of(last)
    shown = {**last, **{name: last[made.base] for name, made in makes.items() if not made.by_epoch}}
    epochs = [name for name, made in makes.items() if made.by_epoch]
    said = {key: definitions.of(key) for key in [*shown, *epochs]}
    asked = [key for key, one in said.items() if "none" not in one.summary and (key in epochs or not is_plain(one))]
    short = [key for key in asked if key in last and OPERATIONS_TOLD.issuperset(said[key].summary)]
    told = read_extremes(short)
    found = read([key for key in asked if key not in told])
    for key, definition in said.items():
        if "none" in definition.summary:
            shown.pop(key, None)
        elif key in told:
            shown[key] = told[key].asked(definition)
        elif key in found and len(found[key]):
            shown[key] = asked_of(found[key].value, definition)
    return shown


def asked_of(value: NDArray[Any], definition: Definition) -> Any:
    """What a definition asks of the values of a series, at least one; of what is no number the first and the last."""
    if is_plain(definition):
        return value[-1].item() if value.dtype != object else value[-1]
    if value.dtype.kind in "fiub":
        numbers = Numbers()
        numbers.add(value)
        return numbers.asked(definition)
    known = {"first": value[0], "last": value[-1]}
    return {one: known[one] for one in definition.summary if one in known} or value[-1]
