"""Values by key: reads what is stored into numpy columns, one per (key, stream), in one pass for any number of keys.

A million rows that look alike come as a few groups of arrays and are never touched one by one. Of columns only the step, the
time and the wanted keys are read, the sequence only where steps do not tell which value is the last.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from ..errors import DamageError
from ..record import Record
from ..segment.columns import StoredGroup
from .direct import Chunk, read_windows
from .entries import Entry
from .lanes import Lane
from .parts import Rows, column_of, highest_step, lowest_step, steps_in_rows, times_us, values_of
from .scan import DIRECTORY, Scan

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INT64_MAX = 2**63 - 1


class Column:
    """The values of one key in one stream, being collected."""

    __slots__ = ("_heads", "_values", "chunks")

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self._heads: list[tuple[int, int, int]] = []
        self._values: list[Any] = []

    def append(self, record: Record, value: Any) -> None:
        self._heads.append((record.sequence, record.step, record.time_ns // 1000))
        self._values.append(value)

    def extend(self, chunk: Chunk) -> None:
        self.flush()
        self.chunks.append(chunk)

    def flush(self) -> None:
        """Makes a chunk of what `append` collected."""
        if self._heads:
            sequence, step, time_us = zip(*self._heads)
            self.chunks.append(
                Chunk(
                    numpy.array(sequence, numpy.uint64),
                    numpy.array(step, numpy.int64),
                    numpy.array(time_us, numpy.int64),
                    self._values,
                )
            )
            self._heads, self._values = [], []


class Joined(NamedTuple):
    """The surviving values of one key over some streams, sorted by step, nulls left out. `stream` may be read-only."""

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
    wanted = None if keys is None else frozenset(keys)
    columns: dict[str, dict[int, Column]] = {}
    for stream, limit in zip(lane.streams, lane.step_limits):
        entries = [entry for entry in plan.get(stream.id, ()) if entry.step_min < limit and entry.holds_rows]
        apart = _apart(entries)
        done = 0
        if wanted is not None and len(wanted) == 1:
            (key,) = wanted
            done, chunk = read_windows(scan, entries, apart, limit, key)
            if chunk is not None:
                columns.setdefault(key, {}).setdefault(stream.id, Column()).extend(chunk)
        for entry, ordered in zip(entries[done:], apart[done:]):
            collect_entry(scan, entry, wanted, limit, ordered, columns)
    for by_stream in columns.values():
        for column in by_stream.values():
            column.flush()
    return columns


def _apart(entries: list[Entry]) -> list[bool]:
    """For each entry of a stream whether no other has one of its steps."""
    if not entries:
        return []
    low = numpy.array([entry.step_min for entry in entries], numpy.int64)
    high = numpy.array([entry.step_max for entry in entries], numpy.int64)
    before, after = numpy.full(len(low), -1, numpy.int64), numpy.full(len(low), _INT64_MAX, numpy.int64)
    before[1:] = numpy.maximum.accumulate(high)[:-1]
    after[:-1] = numpy.minimum.accumulate(low[::-1])[::-1][1:]
    apart: list[bool] = ((low > before) & (high < after)).tolist()
    return apart


def collect_entry(
    scan: Scan,
    entry: Entry,
    wanted: frozenset[str] | None,
    limit: int,
    ordered: bool,
    columns: dict[str, dict[int, Column]],
) -> None:
    """Adds the visible values of an entry to `columns`; some stay in the `Column`s until they are flushed.

    Args:
        ordered: As in `Scan.parts`.
    """
    hints = _hints(wanted)
    for part in scan.parts(entry, wanted, ordered=ordered):
        if not isinstance(part, Record):
            for key, chunk in _of_rows(part, wanted, limit, scan):
                columns.setdefault(key, {}).setdefault(entry.stream, Column()).extend(chunk)
            continue
        if part.step >= limit or (hints is not None and not _may_hold(part, hints)):
            continue
        try:
            values = values_of(part, scan.blobs)
        except DamageError as error:
            scan.note(entry.source, entry.blocks[0], error.message)
            continue
        for key, value in values.items():
            if wanted is None or key in wanted:
                columns.setdefault(key, {}).setdefault(entry.stream, Column()).append(part, value)


def holds(scan: Scan, entries: Iterable[Entry], limit: int, key: str) -> bool:
    """Whether a visible row of a stream holds a key; reads no values of columns."""
    wanted = frozenset([key])
    hints = _hints(wanted) or set()
    for entry in entries:
        for part in scan.parts(entry, wanted, depth=DIRECTORY) if entry.step_min < limit else ():
            if not isinstance(part, Record):
                if key in part.keys and lowest_step(part) < limit:
                    return True
            elif part.step < limit and _may_hold(part, hints):
                with contextlib.suppress(DamageError):
                    if key in values_of(part):
                        return True
    return False


def _hints(wanted: frozenset[str] | None) -> set[bytes] | None:
    return None if wanted is None else {key.partition(".")[0].encode("utf-8", "surrogatepass") for key in wanted}


def _may_hold(record: Record, hints: set[bytes]) -> bool:
    """Whether a record can hold a key: a flattened name begins with the text of a top-level key."""
    payload = bytes(record.payload)
    return any(hint in payload for hint in hints)


def _of_rows(rows: Rows, wanted: frozenset[str] | None, limit: int, scan: Scan) -> Iterable[tuple[str, Chunk]]:
    keys = [key for key in rows.keys if wanted is None or key in wanted]
    if not keys or lowest_step(rows) >= limit:
        return
    step, time_us = steps_in_rows(rows), times_us(rows)
    # What `Scan.parts` has read is there; what it has left out is not needed.
    sequence = rows.sequences() if not isinstance(rows, StoredGroup) or rows.has_sequences else None
    index = None
    if highest_step(rows) >= limit:
        index = numpy.flatnonzero(step < limit)
        step, time_us = step[index], time_us[index]
        sequence = sequence if sequence is None else sequence[index]
    for key in keys:
        yield key, Chunk(sequence, step, time_us, column_of(rows, key, scan.blobs, index))


def join(columns: Iterable[tuple[int, int, Column]], *, exact: bool = False) -> Joined:
    """One value per step from the columns of one key.

    Args:
        columns: (priority, stream, column). At each step the highest priority wins, in one column the highest sequence.
            A null that wins takes the step's value away.
        exact: As in `unite`.
    """
    parts = [(priority, stream, chunk) for priority, stream, column in columns for chunk in column.chunks]
    if not parts:
        none = numpy.empty(0, numpy.int64)
        return Joined(none, none.astype(float), none.astype(float), none.astype(numpy.uint64))
    chunks = [chunk for _, _, chunk in parts]
    values = [chunk.values for chunk in chunks]
    step = chunks[0].step if len(chunks) == 1 else numpy.concatenate([chunk.step for chunk in chunks])
    time = _seconds(chunks, len(step))
    stream = _spread([stream for _, stream, _ in parts], chunks, numpy.uint64)
    order = None
    in_order = len(chunks) == 1 and chunks[0].is_rising
    if not in_order and not (step[1:] > step[:-1]).all():
        order = numpy.lexsort((_sequences(chunks), _spread([p for p, _, _ in parts], chunks, numpy.int64), step))
        last = numpy.append(step[order][1:] != step[order][:-1], True)
        if not last.all():
            # What was overwritten is no value, and has no say in the dtype: it may be gone when the rows are columns.
            kept = numpy.zeros(len(step), bool)
            kept[order[last]] = True
            values = list(_kept(values, kept))
            step, time, stream = step[kept], time[kept], stream[kept]
            order = (numpy.cumsum(kept) - 1)[order[last]]
    value, null = unite(values, exact=exact)
    if null is not None:
        order = numpy.flatnonzero(~null) if order is None else order[~null[order]]
    if order is not None:
        step, time, value, stream = step[order], time[order], value[order], stream[order]
    return Joined(step, time, value, stream)


def _kept(values: list[NDArray[Any] | list[Any]], kept: NDArray[numpy.bool_]) -> Iterator[NDArray[Any] | list[Any]]:
    """The values that are kept, piece by piece, without pieces of which nothing is."""
    start = 0
    for piece in values:
        mask = kept[start : start + len(piece)]
        start += len(piece)
        if mask.any():
            yield [v for v, keep in zip(piece, mask.tolist()) if keep] if isinstance(piece, list) else piece[mask]


def _sequences(chunks: list[Chunk]) -> NDArray[numpy.uint64]:
    """Where a chunk has none, no step of it is in another chunk of its stream: any number will do."""
    unknown = numpy.zeros(max(len(chunk.step) for chunk in chunks), numpy.uint64)
    return numpy.concatenate([unknown[: len(c.step)] if c.sequence is None else c.sequence for c in chunks])


def _seconds(chunks: list[Chunk], count: int) -> NDArray[numpy.float64]:
    time = numpy.empty(count)
    start = 0
    for chunk in chunks:
        end = start + len(chunk.step)
        numpy.divide(chunk.time_us, 1e6, out=time[start:end])
        start = end
    return time


def _spread(numbers: list[int], chunks: list[Chunk], dtype: Any) -> NDArray[Any]:
    """The number of each chunk, for each of its values; read-only and without memory where there is only one number."""
    if len(set(numbers)) == 1:
        return numpy.broadcast_to(dtype(numbers[0]), (sum(len(chunk.step) for chunk in chunks),))
    return numpy.repeat(numpy.array(numbers, dtype), [len(chunk.step) for chunk in chunks])


def unite(
    pieces: list[NDArray[Any] | list[Any]], *, exact: bool = False
) -> tuple[NDArray[Any], NDArray[numpy.bool_] | None]:
    """All values as one array, and where they are null (None: nowhere).

    float64, int64, uint64 or bool where all are of that kind and fit; float64 for a mix of integers and floats; objects
    for the rest. Integers alone never pass through a float.

    Args:
        exact: Also of a mix of integers and floats objects, where an integer is among them that no float may hold.
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
    if exact and kinds == {"f", "i"} and any(map(_has_large, pieces)):
        kinds.add("o")
    return _typed(pieces, kinds), numpy.concatenate([_nulls(piece) for piece in pieces]) if has_null else None


# Integers below are each a float64.
_EXACT_MAX = 2**53
_KINDS: dict[type, str] = {float: "f", int: "i", bool: "b", str: "s", type(None): "n"}


def _nulls(piece: NDArray[Any] | list[Any]) -> NDArray[numpy.bool_]:
    if isinstance(piece, list):
        return numpy.array([value is None for value in piece], bool)
    return numpy.zeros(len(piece), bool)


def _has_large(piece: NDArray[Any] | list[Any]) -> bool:
    """Whether an integer is from 2**53 on, or down from there."""
    if isinstance(piece, list):
        return any(type(value) is int and abs(value) >= _EXACT_MAX for value in piece)
    is_integer = piece.dtype.kind in "iu" and len(piece) > 0
    return is_integer and max(int(piece.max()), -int(piece.min())) >= _EXACT_MAX


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
    if len(pieces) == 1 and not isinstance(pieces[0], list) and pieces[0].dtype == dtype:
        return pieces[0]
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
