"""What rows come as when they are read: many that share their keys, as arrays, or one record by itself.

A `sdk.shapes.Group` comes of a block of rows, a `sdk.segment.columns.StoredGroup` of a block of columns; here is what makes them
alike. Times are whole microseconds wherever they come from, so that nothing changes when rows become columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Union

import msgpack

from ..errors import DamageError
from ..files import Buffer
from ..record import EXT_BIG_INT, BlobRef, MediaValue, Record, StoredBlob, decode_map
from ..rows import flatten
from ..segment.columns import PACKED, StoredGroup
from ..shapes import Group
from .blobs import Blobs
from .media import with_items

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

Rows = Union[Group, StoredGroup]
Part = Union[Group, StoredGroup, Record]

# Types of values that are something else to users than what is stored; media may also be in a list.
_MAY_CHANGE = frozenset({MediaValue, BlobRef, StoredBlob, list, msgpack.ExtType})


def seconds(time_ns: int) -> float:
    """Unix seconds of a time, which counts in whole microseconds."""
    return time_ns // 1000 / 1e6


def decoded(payload: Buffer) -> dict[str, Any]:
    """The map in a payload.

    Raises:
        DamageError: It is none. Why not `decode_map` alone: a tensor's dtype comes from the file, and numpy answers some
            made-up ones with errors of other kinds (SyntaxError of `"f8,("`).
    """
    try:
        return decode_map(payload)
    except DamageError:
        raise
    except Exception as error:
        raise DamageError(f"payload of {len(payload)} bytes cannot be decoded: {error}") from error


def values_of(record: Record, blobs: Blobs | None = None) -> dict[str, Any]:
    """The values of a ROW record, flat, as users get them: integers beyond 64 bits are int again, media are items.

    Args:
        blobs: Where items find their bytes; None: media stay what they say of themselves.

    Raises:
        DamageError: Its payload is no map, or one whose flat names would fill the memory.
    """
    try:
        values = flatten(decoded(record.payload))
    except ValueError as error:
        raise DamageError(f"record {record.sequence} cannot be shown: {error}") from error
    for key, value in values.items():
        if type(value) in _MAY_CHANGE:
            values[key] = shown(value, blobs, key, record.step, seconds(record.time_ns))
    return values


def shown(value: Any, blobs: Blobs | None, key: str, step: int, time: float) -> Any:
    """A decoded value as users get it."""
    if type(value) is msgpack.ExtType:
        if value.code == EXT_BIG_INT:
            try:
                return int(value.data)
            except ValueError:  # not written by us: it stays what it is
                return value
        return value
    return value if blobs is None or type(value) not in _MAY_CHANGE else with_items(value, blobs, key, step, time)


def steps_in_rows(rows: Rows) -> NDArray[numpy.int64]:
    import numpy

    return rows.steps().astype(numpy.int64, copy=False)


def times_us(rows: Rows) -> NDArray[numpy.int64]:
    """Unix time in whole microseconds."""
    return rows.times_us() if isinstance(rows, StoredGroup) else rows.times_ns() // 1000


def lowest_step(rows: Rows) -> int:
    return rows.step_min if isinstance(rows, StoredGroup) else int(rows.steps().min())


def highest_step(rows: Rows) -> int:
    return rows.step_max if isinstance(rows, StoredGroup) else int(rows.steps().max())


def column_of(
    rows: Rows, key: str, blobs: Blobs | None = None, index: NDArray[numpy.int64] | None = None
) -> NDArray[Any] | list[Any]:
    """The values of a key as users get them: an array of numbers or booleans, else a list.

    Args:
        index: The places of the wanted ones; None: all.
    """
    values = rows.values(key)
    if not isinstance(values, list):
        return values if index is None else values[index]
    if index is not None:
        values = _taken(values, index)
    if isinstance(rows, StoredGroup) and rows.kind(key) == PACKED:
        steps, times = steps_in_rows(rows), times_us(rows)
        if index is not None:
            steps, times = steps[index], times[index]
        times = times / 1e6
        return [
            shown(value, blobs, key, step, time) if type(value) in _MAY_CHANGE else value
            for value, step, time in zip(values, steps.tolist(), times.tolist())
        ]
    return values


def _taken(values: Sequence[Any], index: NDArray[numpy.int64]) -> list[Any]:
    return list(values) if len(index) == len(values) else [values[place] for place in index.tolist()]


def listed(values: NDArray[Any] | list[Any]) -> list[Any]:
    """Values as Python objects."""
    return values if isinstance(values, list) else values.tolist()
