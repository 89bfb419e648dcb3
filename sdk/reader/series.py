"""A series: all values of one key ordered by step, as numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy

from ..ids import hex_u64
from .columns import Column, Joined, collect, join, unite
from .lanes import Lane
from .scan import Scan

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Series:
    """The values of one key; the three arrays have the same length, are sorted by step and are the caller's own.

    Attributes:
        key: The key.
        step: int64[n].
        time: float64[n], Unix seconds. When the value was logged; where pieces of one row were coalesced, when the last
            of them was.
        value: float64[n], int64[n], uint64[n] (only where a value is beyond int64) or bool[n] where every value is of
            that kind; float64[n] for a mix of integers and floats; else object[n], with str, list, bytes, arrays, or
            int beyond 64 bits. Integers never pass through a float. NaN and infinities are values; nulls are left out.
        stream: uint64[n], whose value each is; None when all are of one stream.
        others: Ids of the streams outside this series that hold the key too.
    """

    key: str
    step: NDArray[numpy.int64]
    time: NDArray[numpy.float64]
    value: NDArray[Any]
    stream: NDArray[numpy.uint64] | None = None
    others: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.step)

    def __repr__(self) -> str:
        return f"Series({self.key!r}, {len(self.step)} values, {self.value.dtype})"


def read_series(scan: Scan, lanes: list[Lane], key: str, *, every: bool = False) -> Series | None:
    """The series of `key` in the first of `lanes` that holds it, or in all of them; None where none does."""
    plan = scan.plan()
    chosen: list[Joined] = []
    others: list[str] = []
    found = False
    for lane in lanes:
        columns = collect(scan, plan, lane, [key]).get(key)
        if columns is None:
            continue
        if every or not found:
            chosen.append(join(_by_priority(lane, columns)))
        else:
            others.extend(hex_u64(stream) for stream in columns)
        found = True
    return _series(key, chosen, tuple(others)) if found else None


def _by_priority(lane: Lane, columns: dict[int, Column]) -> list[tuple[int, int, Column]]:
    """A lane's columns with the place of their stream: the later one wins."""
    return [(n, s.id, columns[s.id]) for n, s in enumerate(lane.streams) if s.id in columns]


def _series(key: str, parts: list[Joined], others: tuple[str, ...]) -> Series:
    if len(parts) == 1:
        step, time, value, stream = parts[0]
    else:
        step, time, stream = (numpy.concatenate([part[n] for part in parts]) for n in (0, 1, 3))
        value = _together([part.value for part in parts])
        order = numpy.lexsort((time, step))
        step, time, value, stream = step[order], time[order], value[order], stream[order]
    several = len(stream) and bool((stream != stream[0]).any())
    return Series(key, step, time, value, stream if several else None, others)


def _together(values: list[NDArray[Any]]) -> NDArray[Any]:
    """Arrays of several streams as one, by the same rules as within a stream."""
    return unite([value if value.dtype != object else list(value) for value in values])[0]


def read_table(scan: Scan, lanes: list[Lane], keys: list[str] | None) -> dict[str, Joined]:
    """All values of some keys (None: of all), at each step those of the first lane that holds the key there."""
    plan = scan.plan()
    columns: dict[str, list[tuple[int, int, Column]]] = {}
    place = 0
    for lane in reversed(lanes):
        for key, by_stream in collect(scan, plan, lane, keys).items():
            columns.setdefault(key, []).extend((place + n, s, c) for n, s, c in _by_priority(lane, by_stream))
        place += len(lane.streams)
    return {key: join(found) for key, found in columns.items()}
