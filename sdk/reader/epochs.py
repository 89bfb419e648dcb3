"""One value for each epoch of a series: `define_metric(…, reduce=…)`, made when somebody reads, of what was logged anyway.

An epoch is a stretch of rows between two changes of the `over` key; a row without it belongs to the last one seen, and rows before
the first one to that. A value stands at the last step of its epoch that holds the key. An epoch is complete when a row of a later
one was logged, or when the run has ended; one that still goes on has no value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy

from .columns import Column, Joined, collect, join
from .direct import Chunk
from .entries import Entry
from .lanes import Lane
from .metrics import Definition, Definitions, Made
from .scan import Scan

if TYPE_CHECKING:
    from numpy.typing import NDArray


def starts_of(step: NDArray[numpy.int64], over: Joined | None) -> tuple[NDArray[numpy.int64], bool]:
    """Where in rising steps another epoch begins, the first one included; whether the last epoch is complete."""
    if not len(step):
        return numpy.empty(0, numpy.int64), False
    if over is None:
        return numpy.zeros(1, numpy.int64), False
    number = numbers_of(over.value)
    steps = over.step[number >= 0]
    number = number[number >= 0]
    if not len(steps):
        return numpy.zeros(1, numpy.int64), False
    # Of rows without the key too: two changes between two values are one.
    number = numpy.cumsum(numpy.append(False, number[1:] != number[:-1]))
    mine = number[numpy.maximum(numpy.searchsorted(steps, step, "right") - 1, 0)]
    return numpy.append(0, numpy.flatnonzero(mine[1:] != mine[:-1]) + 1), bool(number[-1] > mine[-1])


def numbers_of(values: NDArray[Any]) -> NDArray[numpy.int64]:
    """The same number for equal neighbours; -1 where a value is NaN, which is none."""
    if values.dtype.kind in "iub":
        return numpy.append(0, numpy.cumsum(values[1:] != values[:-1])).astype(numpy.int64)
    if values.dtype.kind != "f":
        texts = numpy.array([repr(value) for value in values])
        return numpy.append(0, numpy.cumsum(texts[1:] != texts[:-1])).astype(numpy.int64)
    there = ~numpy.isnan(values)
    found = numpy.full(len(values), -1, numpy.int64)
    kept = values[there]
    if len(kept):
        found[there] = numpy.append(0, numpy.cumsum(kept[1:] != kept[:-1]))
    return found


def reduced(value: NDArray[Any], weight: NDArray[Any] | None, starts: NDArray[numpy.int64], how: str) -> NDArray[Any]:
    """One value for each stretch that begins at `starts`; NaN where a value of it is NaN.

    Args:
        weight: Of "mean": how much each value counts; None: all the same.
    """
    ends = numpy.append(starts[1:], len(value))
    if how == "last":
        return value[ends - 1]
    if value.dtype.kind == "b":
        value = value.astype(numpy.int64)
    if how == "sum":
        return numpy.add.reduceat(value, starts)
    if how in ("min", "max"):
        found: NDArray[Any] = (numpy.minimum if how == "min" else numpy.maximum).reduceat(value, starts)
        return found
    counts = (ends - starts).astype(numpy.float64) if weight is None else numpy.add.reduceat(weight, starts)
    sums = numpy.add.reduceat(value.astype(numpy.float64) if weight is None else value * weight, starts)
    with numpy.errstate(divide="ignore", invalid="ignore"):
        means: NDArray[numpy.float64] = sums / counts
    return means


def weights_at(step: NDArray[numpy.int64], weight: Joined | None) -> NDArray[numpy.float64] | None:
    """How much the row at each step counts: once where it does not say."""
    if weight is None or weight.value.dtype.kind not in "fiub" or not len(weight.step):
        return None
    place = numpy.minimum(numpy.searchsorted(weight.step, step), len(weight.step) - 1)
    found = numpy.where(weight.step[place] == step, weight.value[place].astype(numpy.float64), 1.0)
    return numpy.where(numpy.isnan(found), 1.0, found)


def epochs_of(
    values: Joined, over: Joined | None, weight: Joined | None, definition: Definition, *, ended: bool
) -> Joined | None:
    """The value of each complete epoch; None where the values are no numbers.

    Args:
        ended: Nothing will be logged any more, so that the last epoch is complete too.
    """
    if values.value.dtype.kind not in "fiub" and definition.reduce != "last":
        return None
    starts, complete = starts_of(values.step, over)
    if not len(starts):
        return values
    made = reduced(values.value, weights_at(values.step, weight), starts, definition.reduce or "mean")
    last = numpy.append(starts[1:], len(values.step)) - 1
    count = len(starts) if ended or complete else len(starts) - 1
    last, made = last[:count], made[:count]
    return Joined(values.step[last], values.time[last], made, values.stream[last])


class Maker:
    """Reads columns as `columns.collect` does, those that are made of others among them.

    Attributes:
        definitions: What was said.
        ended: Tells of a lane whether nothing will be logged there any more.
        ends: For each key with a value for each epoch, where one ended behind which the others are wanted; none: all are.
    """

    def __init__(
        self, definitions: Definitions, ended: Callable[[Lane], bool], ends: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        self.definitions = definitions
        self.ended = ended
        self.ends = ends

    @property
    def first_step(self) -> int:
        """Blocks that hold rows only up to it are not read."""
        return min(self.ends.values(), default=0)

    def collect(
        self, scan: Scan, plan: dict[int, list[Entry]], lane: Lane, keys: Iterable[str] | None
    ) -> dict[str, dict[int, Column]]:
        """As `columns.collect`."""
        if not self.definitions.makes:
            return collect(scan, plan, lane, keys)
        if self.first_step:
            plan = {s: [one for one in entries if one.step_max >= self.first_step] for s, entries in plan.items()}
        if keys is None:
            columns = collect(scan, plan, lane, None)
            return {**columns, **self._made(lane, columns, self.definitions.made_of(columns))}
        wanted = list(keys)
        columns = collect(scan, plan, lane, self.definitions.needed(wanted))
        makes = {key: made for key in wanted if key not in columns and (made := self.definitions.made(key)) is not None}
        columns.update(self._made(lane, columns, makes))
        return {key: columns[key] for key in wanted if key in columns}

    def _made(
        self, lane: Lane, columns: dict[str, dict[int, Column]], makes: dict[str, Made]
    ) -> dict[str, dict[int, Column]]:
        joined: dict[str, Joined | None] = {}

        def values(key: str | None) -> Joined | None:
            if key is not None and key not in joined:
                by_stream = columns.get(key)
                joined[key] = (
                    join([(n, s.id, by_stream[s.id]) for n, s in enumerate(lane.streams) if s.id in by_stream])
                    if by_stream
                    else None
                )
            return joined[key] if key is not None else None

        found: dict[str, dict[int, Column]] = {}
        for key, made in makes.items():
            if made.base not in columns:
                continue
            if not made.by_epoch:
                found[key] = columns[made.base]
                continue
            base = values(made.base)
            assert base is not None
            if key in self.ends:
                base = Joined(*(array[base.step > self.ends[key]] for array in base))
            epochs = epochs_of(
                base,
                values(made.definition.over),
                values(made.definition.weight),
                made.definition,
                ended=self.ended(lane),
            )
            if epochs is not None:
                found[key] = _columns(epochs)
        return found


def _columns(found: Joined) -> dict[int, Column]:
    """Values of a lane as columns of its streams."""
    columns: dict[int, Column] = {}
    for stream in set(found.stream.tolist()):
        mine = found.stream == stream
        value = found.value[mine]
        times_us = numpy.rint(found.time[mine] * 1e6).astype(numpy.int64)
        column = columns[stream] = Column()
        column.extend(Chunk(None, found.step[mine], times_us, list(value) if value.dtype == object else value))
    return columns
