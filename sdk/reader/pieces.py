"""The values of one key piece by piece in order of steps, so that two series can be compared without either in memory.

A piece holds all values of the steps it covers: no other piece has one of them. One window of columns is a piece by itself where
nothing overlaps it, and then says what stands on the disk as well: where that is equal, byte for byte, the values are, and nobody
has to decode them. Everything that overlaps is one piece, joined as every reading joins it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from ..errors import DamageError
from ..segment.columns import StoredGroup
from .columns import Column, collect_entry, holds, join, unite
from .lanes import Lane
from .points import Unit, unit_of
from .scan import Scan
from .series import read_several

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .run import Run


class Values(NamedTuple):
    """int64[n], rising, and the values as `Series.value` has them."""

    step: NDArray[numpy.int64]
    value: NDArray[Any]


class Together:
    """What blocks of rows hold of some keys, decoded for all of them when the first one is asked for; of one run, while it stands still.

    Why: a row is decoded as a whole, whichever of its keys is wanted. Of columns each key is read apart.
    """

    def __init__(self, keys: Iterable[str], values_max: int) -> None:
        """`values_max`: so many values are kept, of 60 bytes each; what is beyond is decoded again for each key."""
        self._keys = frozenset(keys)
        self._left = values_max
        self._found: dict[tuple[str, int, int], dict[str, dict[int, Column]]] = {}

    def collect(self, scan: Scan, unit: Unit, key: str, columns: dict[str, dict[int, Column]]) -> None:
        """Adds the values of a key to `columns`, as `collect_entry` does."""
        place = (unit.entry.source.name, unit.entry.blocks[0].offset, unit.limit)
        found = self._found.get(place)
        if found is None and not unit.entry.is_window and key in self._keys and self._left > 0:
            collect_entry(scan, unit.entry, self._keys, unit.limit, False, found := {})
            for column in (column for by_stream in found.values() for column in by_stream.values()):
                column.flush()
                self._left -= sum(len(chunk.step) for chunk in column.chunks)
            self._found[place] = found
        if found is None or key not in self._keys:
            collect_entry(scan, unit.entry, frozenset([key]), unit.limit, False, columns)
            return
        for stream, column in found.get(key, {}).items():
            for chunk in column.chunks:
                columns.setdefault(key, {}).setdefault(stream, Column()).extend(chunk)


class Piece(NamedTuple):
    """Values of one key. To be read before the next operation on its run.

    Attributes:
        low, high: All its steps are between them, both included.
        groups: Where it is one window that nothing overlaps, its groups in order of steps; else none.
        joined: Gives the values, whatever it is made of. May raise `Gone`: a segment was replaced, begin again.
    """

    low: int
    high: int
    key: str
    groups: list[StoredGroup]
    joined: Callable[[], Values]

    def read(self) -> Values:
        """All of them; what is damaged is left out and noted. May raise `Gone`."""
        try:
            return self._decoded() or self.joined()
        except DamageError:
            return self.joined()

    def _decoded(self) -> Values | None:
        """Those of the groups, without their times; None where one step comes twice, or there are none."""
        if not self.groups:
            return None
        step = numpy.concatenate([group.steps() for group in self.groups])
        if not (step[1:] > step[:-1]).all():
            return None
        value, null = unite([group.values(self.key) for group in self.groups])
        return Values(step, value) if null is None else None


@contextlib.contextmanager
def looked_at(*runs: Run) -> Iterator[None]:
    """Runs that were just looked at, whose descriptors are closed in the end."""
    try:
        for run in runs:
            run.refresh()
        yield
    finally:
        for run in runs:
            run._scan.close()


def pieces_of(run: Run, key: str, together: Together | None = None) -> list[Piece]:
    """The pieces of what `run.series(key)` gives, in order of steps; [] where it gives nothing. Of columns only directories are read.

    Inside of `looked_at`, and so is what is read of them.

    Args:
        together: For other keys of the same run too.

    Raises:
        Gone: A segment was replaced; begin again.
    """
    scan = run._scan
    plan = scan.plan()
    for lane in run._lanes:
        pairs = list(zip(lane.streams, lane.step_limits))
        if any(holds(scan, plan.get(stream.id, ()), limit, key) for stream, limit in pairs):
            units = [
                unit_of(scan, entry, limit, key)
                for stream, limit in pairs
                for entry in plan.get(stream.id, ())
                if entry.step_min < limit and entry.holds_rows
            ]
            wanted = [unit for unit in units if unit.low < unit.limit]
            return list(_apart(scan, lane, key, wanted, together or Together([key], 0)))
    maker = run._maker()
    if maker.definitions.made(key) is None:
        return []
    made = read_several(scan, run._lanes, [key], collected=maker.collect, logged=maker.definitions.logged).get(key)
    if made is None or not len(made):
        return []
    return [Piece(int(made.step[0]), int(made.step[-1]), key, [], lambda: Values(made.step, made.value))]


def _apart(scan: Scan, lane: Lane, key: str, units: list[Unit], rows: Together) -> Iterator[Piece]:
    """Units that overlap as one piece each."""
    together: list[Unit] = []
    high = -1
    for unit in sorted(units, key=lambda unit: (unit.low, unit.high)):
        if together and unit.low > high:
            yield _piece(scan, lane, key, together, high, rows)
            together = []
        together.append(unit)
        high = max(high, min(unit.high, unit.limit - 1))
    if together:
        yield _piece(scan, lane, key, together, high, rows)


def _piece(scan: Scan, lane: Lane, key: str, units: list[Unit], high: int, rows: Together) -> Piece:
    groups = sorted(units[0].groups, key=lambda group: group.step_min) if len(units) == 1 else []
    return Piece(units[0].low, high, key, groups, functools.partial(_joined, scan, lane, key, units, rows))


def _joined(scan: Scan, lane: Lane, key: str, units: list[Unit], rows: Together) -> Values:
    columns: dict[str, dict[int, Column]] = {}
    for unit in units:
        rows.collect(scan, unit, key, columns)
    by_stream = columns.get(key, {})
    for column in by_stream.values():
        column.flush()
    found = join([(n, s.id, by_stream[s.id]) for n, s in enumerate(lane.streams) if s.id in by_stream])
    return Values(found.step, found.value)


def are_stored_alike(one: Piece, other: Piece) -> bool:
    """Whether both stand on the disk byte for byte alike; False: nobody knows. May raise `Gone`."""
    if not one.groups or len(one.groups) != len(other.groups):
        return False
    try:
        mine, theirs = ([group.as_stored(piece.key) for group in piece.groups] for piece in (one, other))
        is_alike = all(a.head == b.head for a, b in zip(mine, theirs))
        return is_alike and all(a.read() == b.read() for a, b in zip(mine, theirs))
    except DamageError:
        return False
