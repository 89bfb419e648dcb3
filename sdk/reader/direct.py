"""One key out of many windows, straight into the arrays that the caller gets: the way in which long series are read.

It is taken where there is nothing to decide: windows one behind the other by step, one group of them with the key, or several
one behind the other, all of one numeric type. Everything else goes the way of `columns.collect`, which can do it all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from ..errors import DamageError
from ..segment.columns import FLOAT, INT, StoredGroup
from .entries import Entry
from .scan import DIRECTORY, Scan

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DTYPES: dict[str, Any] = {FLOAT: numpy.float64, INT: numpy.int64}


class Chunk(NamedTuple):
    """Some values of one key in one stream, in the order they were logged.

    Attributes:
        sequence: None: no other value of the key in the stream has one of these steps.
        step, time_us: May be shared with chunks of other keys.
        values: An array, or a list with None.
        is_rising: The steps are known to rise.
    """

    sequence: NDArray[numpy.uint64] | None
    step: NDArray[numpy.int64]
    time_us: NDArray[numpy.int64]
    values: NDArray[Any] | list[Any]
    is_rising: bool = False


def read_windows(scan: Scan, entries: list[Entry], apart: list[bool], limit: int, key: str) -> tuple[int, Chunk | None]:
    """The values of a key in the first entries of a stream.

    Args:
        apart: For each entry, whether no other one has one of its steps.
        limit: The step from which on rows are hidden.

    Returns:
        How many entries are done with, and what they hold of the key.
    """
    done, reached = 0, -1
    for entry, is_apart in zip(entries, apart):
        if not entry.is_window or not is_apart or entry.step_max >= limit or entry.step_min <= reached:
            break
        done, reached = done + 1, entry.step_max
    found = _groups(scan, entries[:done], key)
    if found is None:
        return 0, None
    if not found:
        return done, None
    chunk = _decoded(found, key)
    return (done, chunk) if chunk is not None else (0, None)


def _groups(scan: Scan, entries: list[Entry], key: str) -> list[StoredGroup] | None:
    """The groups that hold a key, one behind the other by step and all of one type; None where they are not so."""
    found: list[StoredGroup] = []
    wanted = frozenset([key])
    for entry in entries:
        for part in scan.parts(entry, wanted, depth=DIRECTORY):
            if not isinstance(part, StoredGroup) or part.kind(key) not in _DTYPES:
                return None
            if found and (part.step_min <= found[-1].step_max or part.kind(key) != found[-1].kind(key)):
                return None
            found.append(part)
    return found


def _decoded(found: list[StoredGroup], key: str) -> Chunk | None:
    """All values in some groups; None where a step comes twice, or something is damaged."""
    count = sum(map(len, found))
    step, time_us = numpy.empty(count, numpy.int64), numpy.empty(count, numpy.int64)
    values = numpy.empty(count, _DTYPES[found[0].kind(key)])
    start = 0
    try:
        for group in found:
            end = start + len(group)
            group.read_into(key, step[start:end], time_us[start:end], values[start:end])
            if not (step[start + 1 : end] > step[start : end - 1]).all():
                return None
            start = end
    except DamageError:
        return None
    return Chunk(None, step, time_us, values, True)
