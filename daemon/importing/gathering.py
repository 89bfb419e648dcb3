"""Many values of many keys, in the order in which they were written, as rows in columns. Pure.

Files of events hold a value at a time: a key, a step, a time. `gather` makes rows of them, the values of one step together, by the
rule of `sdk.rows.merge`: of two values of a key in one row the later one stays, a row's time is that of its last piece, and so
is its sequence. So what is gathered again with more behind it has the same sequences for what did not change, and higher ones
for rows that grew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy
from numpy.typing import NDArray

from sdk.record import FLAG_COMMIT
from sdk.segment.columns import Group


class Gathered(NamedTuple):
    """The rows of some values.

    Attributes:
        groups: In order of their sequences.
        replaced: Values in whose place a later one of the same key and step stands.
        steps: How many rows.
    """

    groups: list[Group]
    replaced: int
    steps: int


def gather(
    keys: Sequence[str],
    which: NDArray[numpy.int64],
    steps: NDArray[numpy.int64],
    times_us: NDArray[numpy.int64],
    values: NDArray[Any],
    first: int,
) -> Gathered:
    """Rows of n values, n at least 1.

    Args:
        keys: The names. `which`: int64[n], the index of each value's.
        steps, times_us: int64[n]; Unix time in microseconds.
        values: n numbers of one type.
        first: The sequence of the first value; each has one.
    """
    count = len(which)
    # Of repeated places the last assignment stays, so each row learns the place of its last value.
    in_order, row = numpy.unique(steps, return_inverse=True)
    last = numpy.zeros(len(in_order), numpy.int64)
    last[row.reshape(-1)] = numpy.arange(count)
    order = numpy.argsort(last)
    rank = numpy.empty(len(order), numpy.int64)
    rank[order] = numpy.arange(len(order))
    last, row = last[order], rank[row.reshape(-1)]
    sequence = (last + first).astype(numpy.uint64)
    step, time = steps[last], times_us[last]
    # By key and row, the later value behind the earlier one: a stable sort of one number.
    place = which * len(order) + row
    sorted_ = numpy.argsort(place, kind="stable")
    in_place = place[sorted_]
    kept = sorted_[numpy.concatenate((in_place[1:] != in_place[:-1], [True]))]
    key_of, row_of, value_of = which[kept], row[kept], values[kept]
    bounds = numpy.flatnonzero(numpy.concatenate(([True], key_of[1:] != key_of[:-1], [True])))
    groups: dict[bytes, tuple[NDArray[numpy.int64], dict[str, Any]]] = {}
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist()):
        rows = row_of[start:end]
        groups.setdefault(rows.tobytes(), (rows, {}))[1][keys[key_of[start]]] = value_of[start:end]
    flags = numpy.full(len(order), FLAG_COMMIT, numpy.uint8)
    made = [Group(sequence[rows], step[rows], time[rows], flags[rows], columns) for rows, columns in groups.values()]
    return Gathered(made, count - len(kept), len(order))
