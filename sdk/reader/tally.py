"""What a summary needs of one stream, kept up to date by what was logged since the last look.

Rows below the open step are settled: what they say is added up once. What the open row says may still change, so its values are
kept as they are and counted anew at every look. A late record changes a settled row: then only reading everything again helps,
which `Tally.take` tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy

from ..limits import STEP_MAX
from .columns import Column, Joined, join
from .direct import Chunk
from .epochs import numbers_of, reduced, weights_at
from .metrics import Definitions, Made
from .summaries import Numbers, is_plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NUMBERS = "fiub"


class Epoch:
    """The epoch of one key that goes on.

    Attributes:
        complete: The values of those before it.
    """

    __slots__ = ("complete", "numbers", "over", "weighted", "weights")

    def __init__(self) -> None:
        self.complete = Numbers()
        self.over: NDArray[Any] | None = None
        self._begin()

    def _begin(self) -> None:
        self.numbers = Numbers()
        self.weighted = self.weights = 0.0

    def copy(self) -> Epoch:
        """Another one that says the same."""
        twin = Epoch()
        twin.complete, twin.over, twin.numbers = self.complete.copy(), self.over, self.numbers.copy()
        twin.weighted, twin.weights = self.weighted, self.weights
        return twin

    def value(self, how: str) -> Any:
        """What it comes to so far; None without values."""
        found = self.numbers
        if not found.count:
            return None
        if how == "last":
            return found.last
        if found.nans:
            return float("nan")
        if how == "mean":
            return self.weighted / self.weights if self.weights else float("nan")
        return {"sum": found.total, "min": found.low, "max": found.high}[how]

    def end(self, how: str) -> None:
        """Makes its value one of those that are complete, and begins another."""
        value = self.value(how)
        if value is not None:
            self.complete.add(numpy.array([value]))
        self._begin()

    def add(self, base: Joined | None, over: Joined | None, weight: Joined | None, how: str) -> None:
        """Adds the rows that follow; see `epochs.starts_of` for which epoch each belongs to."""
        steps, number, name = self._numbered(over)
        top = int(number[-1]) if len(number) else 0
        if base is None or base.value.dtype.kind not in _NUMBERS:
            if top:
                self.end(how)
        else:
            place = numpy.searchsorted(steps, base.step, "right") - 1
            mine = numpy.where(place >= 0, number[place], 0) if len(number) else numpy.zeros(len(place), numpy.int64)
            counts = weights_at(base.step, weight)
            self._feed(base.value, counts, mine == 0)
            if top:
                self.end(how)
                self._skip(base.value, counts, mine, top, how)
                self._feed(base.value, counts, mine == top)
        self.over = self.over if name is None else name

    def _numbered(self, over: Joined | None) -> tuple[NDArray[numpy.int64], NDArray[numpy.int64], NDArray[Any] | None]:
        """At which steps which epoch was named, 0 being the one that goes on, and the name of the last."""
        none = numpy.empty(0, numpy.int64)
        if over is None or not len(over.value):
            return none, none, None
        number = numbers_of(over.value)
        there = number >= 0
        steps, number, names = over.step[there], number[there], over.value[there]
        if len(names) and self.over is not None and (self.over != names[:1]).any():
            number = number + 1
        return steps, number, names[-1:] if len(names) else None

    def _skip(self, values: NDArray[Any], counts: Any, mine: NDArray[numpy.int64], top: int, how: str) -> None:
        """Adds the epochs that began and ended among the rows."""
        between = (mine > 0) & (mine < top)
        if between.any():
            number = mine[between]
            starts = numpy.append(0, numpy.flatnonzero(number[1:] != number[:-1]) + 1)
            self.complete.add(reduced(values[between], None if counts is None else counts[between], starts, how))

    def _feed(self, values: NDArray[Any], counts: Any, chosen: NDArray[numpy.bool_]) -> None:
        values = values[chosen]
        self.numbers.add(values)
        self.weights += float(len(values) if counts is None else counts[chosen].sum())
        self.weighted += float((values if counts is None else values * counts[chosen]).sum())


class Tally:
    """Not thread-safe; nothing is read here.

    Attributes:
        definitions: What `define_metric` said.
        is_over: Nothing will be logged any more, so that the epoch that goes on is complete.
    """

    def __init__(
        self, definitions: Definitions, last: Mapping[str, Any], columns: Mapping[str, Joined], open_step: int
    ) -> None:
        """Args: `last` is the last value of each key, `columns` all values of those that `needs` names."""
        self.definitions = definitions
        self.is_over = False
        self._last = {key: (-1, value) for key, value in last.items()}
        self._numbers: dict[str, Numbers] = {}
        self._epochs: dict[str, Epoch] = {}
        self._makes: dict[str, Made] = {}
        self._open: dict[str, Joined] = {}
        self._row_step = 0
        self._note_keys(last)
        self._count(dict(columns), open_step)

    @staticmethod
    def needs(definitions: Definitions, keys: Iterable[str]) -> frozenset[str]:
        """The keys of which more is needed than the last value."""
        keys = frozenset(keys)
        asked = {key for key in keys if not is_plain(definitions.of(key))}
        return keys & asked.union(*(made.needs for made in definitions.made_of(keys).values() if made.by_epoch))

    def _note_keys(self, keys: Iterable[str]) -> None:
        """Begins what is counted of keys; of one that was not there before nothing is settled."""
        self._makes = self.definitions.made_of(self._last)
        for key in keys:
            if not is_plain(self.definitions.of(key)):
                self._numbers.setdefault(key, Numbers())
        for name, made in self._makes.items():
            if made.by_epoch:
                self._epochs.setdefault(name, Epoch())

    def take(self, columns: Mapping[str, Column], open_step: int) -> bool:
        """Adds what was logged since; False where that changes a settled row, and the tally is of no use any more."""
        fresh = columns.keys() - self._last.keys()
        if fresh:
            self._last.update(dict.fromkeys(fresh, (-1, None)))
            known = len(self._epochs)
            self._note_keys(fresh)
            if len(self._epochs) > known:  # which epoch goes on was not counted for it
                return False
        counted = self._counted()
        joined: dict[str, Joined] = {}
        for key, column in columns.items():
            if key in counted and any((chunk.step < self._row_step).any() for chunk in column.chunks):
                return False
            if key in self._open:
                column.chunks.insert(0, _chunk(self._open[key]))
            joined[key] = join([(0, 0, column)])
        for key, found in joined.items():
            if len(found.step) and found.step[-1] >= self._last[key][0]:
                self._last[key] = int(found.step[-1]), found.value[-1]
        self._count({**self._open, **{key: found for key, found in joined.items() if key in counted}}, open_step)
        return True

    def _counted(self) -> frozenset[str]:
        return frozenset(self._numbers).union(*(self._makes[name].needs for name in self._epochs))

    def _count(self, columns: dict[str, Joined], open_step: int) -> None:
        """Settles the rows below the open step and keeps the others."""
        settled = {key: _part(found, found.step < open_step) for key, found in columns.items()}
        self._add(self._numbers, self._epochs, settled)
        opened = {key: _part(found, found.step >= open_step) for key, found in columns.items()}
        self._open = {key: found for key, found in opened.items() if len(found.step)}
        self._row_step = open_step

    def _add(self, numbers: dict[str, Numbers], epochs: dict[str, Epoch], columns: Mapping[str, Joined]) -> None:
        for key, found in numbers.items():
            if key in columns and columns[key].value.dtype.kind in _NUMBERS:
                found.add(columns[key].value)
            elif key in columns and found.first is None and len(columns[key].value):
                found.first = columns[key].value[0]
        for name, epoch in epochs.items():
            made = self._makes[name]
            said = made.definition
            weight = columns.get(said.weight) if said.weight is not None else None
            epoch.add(columns.get(made.base), columns.get(said.over), weight, said.reduce or "mean")

    def last(self, key: str) -> Any:
        """The last value of a logged key; None where there is none."""
        return _plain(self._last.get(key, (0, None))[1])

    def epoch(self, name: str, *, partial: bool = False) -> Any:
        """The value of the last complete epoch, or with `partial` of the one that goes on; None where there is none."""
        epochs = {name: self._epochs[name].copy()} if name in self._epochs else {}
        self._add({}, epochs, self._open)
        if name not in epochs:
            return None
        found, how = epochs[name], self._makes[name].definition.reduce or "mean"
        if partial and (value := found.value(how)) is not None:
            return value
        if self.is_over:
            found.end(how)
        return found.complete.last

    def latest(self, key: str, *, partial: bool = False) -> Any:
        """`epoch` of a key that has a value for each epoch, `last` of every other."""
        made = self._makes.get(key)
        if made is not None and made.by_epoch:
            return self.epoch(key, partial=partial)
        return self.last(key if made is None else made.base)

    def summary(self) -> dict[str, Any]:
        """As `summaries.summary_of`, of the one lane that is counted here."""
        found = {key: _plain(value) for key, (_, value) in self._last.items() if value is not None and key[:1] != "_"}
        numbers = {key: counted.copy() for key, counted in self._numbers.items()}
        epochs = {name: epoch.copy() for name, epoch in self._epochs.items()}
        self._add(numbers, epochs, self._open)
        for name, made in self._makes.items():
            if made.by_epoch:
                if self.is_over:
                    epochs[name].end(made.definition.reduce or "mean")
                numbers[name] = epochs[name].complete
            elif made.base in numbers:
                numbers[name] = numbers[made.base]
            value = numbers[name].last if made.by_epoch else found.get(made.base)
            if value is not None:
                found[name] = value
        shown = {}
        for key, value in found.items():
            definition = self.definitions.of(key)
            counted = numbers.get(key)
            if "none" in definition.summary:
                continue
            if is_plain(definition):
                shown[key] = value
            elif counted is not None and counted.count:
                shown[key] = counted.asked(definition)
            else:
                known = {"first": counted.first if counted is not None else None, "last": value}
                shown[key] = {one: known[one] for one in definition.summary if one in known} or value
        return shown


def tally_of(metrics: Mapping[str, Any], rows: Iterable[tuple[int, float, dict[str, Any]]], *, is_over: bool) -> Tally:
    """The tally of whole rows: step, Unix seconds and values of each."""
    columns: dict[str, Column] = {}
    for number, (step, time, values) in enumerate(rows, 1):
        for key, value in values.items():
            chunk = Chunk(
                numpy.array([number], numpy.uint64), numpy.array([step]), numpy.array([int(time * 1e6)]), [value]
            )
            columns.setdefault(key, Column()).extend(chunk)
    joined = {key: join([(0, 0, column)]) for key, column in columns.items()}
    last = {key: found.value[-1] for key, found in joined.items() if len(found.step)}
    definitions = Definitions(metrics)
    needed = Tally.needs(definitions, last)
    tally = Tally(definitions, last, {key: joined[key] for key in needed}, STEP_MAX)
    tally.is_over = is_over
    return tally


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, numpy.generic) else value


def _part(found: Joined, chosen: NDArray[numpy.bool_]) -> Joined:
    return found if chosen.all() else Joined(*(array[chosen] for array in found))


def _chunk(found: Joined) -> Chunk:
    """Values that any record that comes now overwrites."""
    older = numpy.zeros(len(found.step), numpy.uint64)
    times_us = numpy.rint(found.time * 1e6).astype(numpy.int64)
    return Chunk(older, found.step, times_us, list(found.value) if found.value.dtype == object else found.value)
