"""Values by key: reads blocks of rows into numpy columns, one per (key, stream), in one pass for any number of keys.

A million rows that look alike come as a few `sdk.shapes.Group`s and are never touched one by one. A COLUMNS block will
come as the same kind of part: rows that share their keys, with `steps()`, `sequences()`, `times_ns()`, `values(key)`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from ..errors import DamageError
from ..record import Record
from ..shapes import Group
from .lanes import Lane
from .scan import Entry, Scan, values_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INT64_MAX = 2**63 - 1


class Chunk(NamedTuple):
    """Some values of one key in one stream, in the order they were logged. `values`: an array, or a list with None."""

    sequence: NDArray[numpy.uint64]
    step: NDArray[numpy.int64]
    time_ns: NDArray[numpy.int64]
    values: NDArray[Any] | list[Any]


class Column:
    """The values of one key in one stream, being collected."""

    __slots__ = ("_heads", "_values", "chunks")

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self._heads: list[tuple[int, int, int]] = []
        self._values: list[Any] = []

    def append(self, record: Record, value: Any) -> None:
        self._heads.append((record.sequence, record.step, record.time_ns))
        self._values.append(value)

    def extend(self, chunk: Chunk) -> None:
        self.flush()
        self.chunks.append(chunk)

    def flush(self) -> None:
        """Makes a chunk of what `append` collected."""
        if self._heads:
            sequence, step, time_ns = zip(*self._heads)
            self.chunks.append(
                Chunk(
                    numpy.array(sequence, numpy.uint64),
                    numpy.array(step, numpy.int64),
                    numpy.array(time_ns, numpy.int64),
                    self._values,
                )
            )
            self._heads, self._values = [], []


class Joined(NamedTuple):
    """The surviving values of one key over some streams, sorted by step, nulls left out."""

    step: NDArray[numpy.int64]
    time: NDArray[numpy.float64]
    value: NDArray[Any]
    stream: NDArray[numpy.uint64]


def collect(
    scan: Scan, plan: dict[int, list[Entry]], lane: Lane, keys: Iterable[str] | None
) -> dict[str, dict[int, Column]]:
    """The columns of a lane by key and stream, rows that a resume hid left out.

    Args:
        keys: Which ones; None: all.
    """
    wanted = None if keys is None else set(keys)
    columns: dict[str, dict[int, Column]] = {}
    for stream, limit in zip(lane.streams, lane.step_limits):
        for entry in plan.get(stream.id, ()):
            if entry.block.step_min < limit:
                _collect_entry(scan, entry, wanted, limit, columns)
    for by_stream in columns.values():
        for column in by_stream.values():
            column.flush()
    return columns


def _collect_entry(
    scan: Scan, entry: Entry, wanted: set[str] | None, limit: int, columns: dict[str, dict[int, Column]]
) -> None:
    stream = entry.block.stream
    hints = None if wanted is None else {key.partition(".")[0].encode("utf-8", "surrogatepass") for key in wanted}
    for part in scan.parts(entry):
        if isinstance(part, Group):
            for key, chunk in _of_group(part, wanted, limit):
                columns.setdefault(key, {}).setdefault(stream, Column()).extend(chunk)
            continue
        if part.step >= limit or (hints is not None and not _may_hold(part, hints)):
            continue
        try:
            values = values_of(part, scan.blobs)
        except DamageError as error:
            scan.note(entry.source, entry.block, error.message)
            continue
        for key, value in values.items():
            if wanted is None or key in wanted:
                columns.setdefault(key, {}).setdefault(stream, Column()).append(part, value)


def _may_hold(record: Record, hints: set[bytes]) -> bool:
    """Whether a record can hold a key: a flattened name begins with the text of a top-level key."""
    payload = bytes(record.payload)
    return any(hint in payload for hint in hints)


def _of_group(group: Group, wanted: set[str] | None, limit: int) -> Iterable[tuple[str, Chunk]]:
    keys = [key for key in group.keys if wanted is None or key in wanted]
    if not keys:
        return []
    step, sequence, time_ns = group.steps().astype(numpy.int64), group.sequences(), group.times_ns()
    if int(step.max()) < limit:
        return [(key, Chunk(sequence, step, time_ns, group.values(key))) for key in keys]
    shown = step < limit
    return [(key, Chunk(sequence[shown], step[shown], time_ns[shown], group.values(key)[shown])) for key in keys]


def join(columns: Iterable[tuple[int, int, Column]]) -> Joined:
    """One value per step from the columns of one key.

    Args:
        columns: (priority, stream, column). At each step the highest priority wins, in one column the highest sequence.
            A null that wins takes the step's value away.
    """
    parts = [(priority, stream, chunk) for priority, stream, column in columns for chunk in column.chunks]
    if not parts:
        none = numpy.empty(0, numpy.int64)
        return Joined(none, none.astype(float), none.astype(float), none.astype(numpy.uint64))
    value, null = unite([chunk.values for _, _, chunk in parts])
    step = numpy.concatenate([chunk.step for _, _, chunk in parts])
    time_ns = numpy.concatenate([chunk.time_ns for _, _, chunk in parts])
    stream = _spread([stream for _, stream, _ in parts], parts, numpy.uint64)
    order = None
    if not (step[1:] > step[:-1]).all():
        sequence = numpy.concatenate([chunk.sequence for _, _, chunk in parts])
        order = numpy.lexsort((sequence, _spread([p for p, _, _ in parts], parts, numpy.int64), step))
        last = numpy.append(step[order][1:] != step[order][:-1], True)
        order = order[last]
    if null is not None:
        order = numpy.flatnonzero(~null) if order is None else order[~null[order]]
    if order is not None:
        step, time_ns, value, stream = step[order], time_ns[order], value[order], stream[order]
    return Joined(step, time_ns / 1e9, value, stream)


def _spread(numbers: list[int], parts: list[tuple[int, int, Chunk]], dtype: Any) -> NDArray[Any]:
    return numpy.repeat(numpy.array(numbers, dtype), [len(chunk.step) for _, _, chunk in parts])


def unite(pieces: list[NDArray[Any] | list[Any]]) -> tuple[NDArray[Any], NDArray[numpy.bool_] | None]:
    """All values as one array, and where they are null (None: nowhere).

    float64, int64, uint64 or bool where all are of that kind and fit; float64 for a mix of integers and floats; objects
    for the rest. Integers never pass through a float.
    """
    kinds: set[str] = set()
    has_null = False
    for piece in pieces:
        if isinstance(piece, list):
            found = {_KINDS.get(type(value), "o") for value in piece}
            has_null = has_null or "n" in found
            kinds |= found - {"n"}
        else:
            kinds.add("i" if piece.dtype.kind in "iu" else piece.dtype.kind)
    return _typed(pieces, kinds), numpy.concatenate([_nulls(piece) for piece in pieces]) if has_null else None


_KINDS: dict[type, str] = {float: "f", int: "i", bool: "b", str: "s", type(None): "n"}


def _nulls(piece: NDArray[Any] | list[Any]) -> NDArray[numpy.bool_]:
    if isinstance(piece, list):
        return numpy.array([value is None for value in piece], bool)
    return numpy.zeros(len(piece), bool)


def _typed(pieces: list[NDArray[Any] | list[Any]], kinds: set[str]) -> NDArray[Any]:
    if kinds == {"i"}:
        dtype = _integer_dtype(pieces)
        return _concatenate(pieces, dtype, 0)
    if kinds and kinds <= {"f", "i"}:
        return _concatenate(pieces, numpy.float64, 0.0)
    if kinds == {"b"}:
        return _concatenate(pieces, numpy.bool_, False)
    return _concatenate(pieces, object, None)


def _integer_dtype(pieces: list[NDArray[Any] | list[Any]]) -> Any:
    low, high = 0, 0
    for piece in pieces:
        if isinstance(piece, list):
            known = [value for value in piece if value is not None] or [0]
            low, high = min(low, *known), max(high, *known)
        elif len(piece):
            low, high = min(low, int(piece.min())), max(high, int(piece.max()))
    if high <= _INT64_MAX and low >= -_INT64_MAX - 1:
        return numpy.int64
    return numpy.uint64 if low >= 0 and high < 2**64 else object


def _concatenate(pieces: list[NDArray[Any] | list[Any]], dtype: Any, null: Any) -> NDArray[Any]:
    whole = numpy.empty(sum(map(len, pieces)), dtype)
    start = 0
    for piece in pieces:
        end = start + len(piece)
        if dtype is object:
            # One by one: numpy would make a two-dimensional array of lists of equal length.
            for index, value in enumerate(piece if isinstance(piece, list) else piece.tolist(), start):
                whole[index] = value
        elif isinstance(piece, list):
            whole[start:end] = [null if value is None else value for value in piece]
        else:
            whole[start:end] = piece
        start = end
    return whole
