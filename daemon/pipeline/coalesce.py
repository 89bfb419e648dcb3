"""The waiting batches of one stream, made into the payload of one ROWS block.

Records that commit their own row pass through as they are. Where pieces of the same row meet in the flush window they
are merged, by the same function that the reader uses. Records whose steps only grow have nothing to merge and pass
through too, which their headers tell without decoding them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sdk.errors import DamageError
from sdk.files import Buffer
from sdk.limits import BLOCK_ROWS_BYTES_MAX, MAP_BYTES_MAX
from sdk.record import HEADER, HEADER_SIZE, KIND_ROW, Record, decode_map, map_encoder, pack, walk
from sdk.rows import Piece, flatten, merge
from sdk.segment.format import FLAG_HAS_META, FLAG_HAS_PIECES, FLAG_MERGED
from sdk.shapes import Group, groups
from sdk.wire.messages import BATCH_HAS_META, BATCH_HAS_PIECES

# Limit: more single records than this in a block and its keys are not collected: decoding each would cost more than
# a reader saves by knowing them.
_SINGLES_MAX = 256


class Waiting(NamedTuple):
    """A batch (or the new part of one) that was received and is not written yet."""

    first: int
    last: int
    flags: int
    step_max: int
    records: Buffer


class Payload(NamedTuple):
    """What goes into a ROWS block, with the facts of its header. `keys`: key to count of records, where known."""

    raw: Buffer
    records: int
    first: int
    last: int
    step_min: int
    step_max: int
    flags: int
    keys: dict[str, int] | None


def first_block(waiting: Sequence[Waiting]) -> int:
    """How many of the leading batches go into one block: those without a hole, up to the size of a block.

    Why no hole: a header says first and last sequence, and a reader takes what lies between for being there. A trainer
    that spooled in between has those records in its own segment.
    """
    count, size = 1, len(waiting[0].records)
    for before, part in zip(waiting, waiting[1:]):
        size += len(part.records)
        if part.first != before.last + 1 or size > BLOCK_ROWS_BYTES_MAX:
            break
        count += 1
    return count


def coalesce(waiting: Sequence[Waiting]) -> Payload:
    """One payload for all of `waiting`, which are contiguous and not empty.

    Raises:
        DamageError: The bytes are not records: a bug of the trainer, or an attack.
    """
    raw: Buffer = waiting[0].records if len(waiting) == 1 else b"".join(w.records for w in waiting)
    first, last = waiting[0].first, waiting[-1].last
    batch_flags = 0
    for part in waiting:
        batch_flags |= part.flags
    count = last - first + 1
    if len(raw) < count * HEADER_SIZE:
        raise DamageError(f"{count} records in {len(raw)} bytes; a header alone has {HEADER_SIZE}")
    flags = FLAG_HAS_META if batch_flags & BATCH_HAS_META else 0
    if not batch_flags & BATCH_HAS_PIECES:
        # Why the first record tells: without late rows steps never fall within a stream, and so the last one tells too.
        step_min = HEADER.unpack_from(raw)[5]
        keys, step_last = _keys(raw)
        if step_last is not None:
            step_max = max(step_last, step_min)
        elif keys is None:
            step_max = max(w.step_max for w in waiting)
        else:  # facts alone carry the open step, which has no row yet
            step_min = step_max = max(step_min - 1, 0)
        return Payload(raw, count, first, last, step_min, step_max, flags, keys)
    flags |= FLAG_HAS_PIECES
    step_min, step_max, mergeable = _steps(raw)
    if mergeable:
        try:
            return _merge(raw, first, last, step_min, step_max, flags)
        except (ValueError, TypeError, OverflowError):
            # A nesting or a key that msgpack reads but does not write, or a row that would become too large: the pieces
            # stay as they are, for readers to merge. They were accepted, so they are not lost.
            return Payload(raw, count, first, last, step_min, step_max, flags, None)
    return Payload(raw, count, first, last, step_min, step_max, flags, _keys(raw)[0])


def _merge(raw: Buffer, first: int, last: int, step_min: int, step_max: int, flags: int) -> Payload:
    """The payload with the pieces of each row merged.

    Raises:
        DamageError: The bytes are not records.
        ValueError, TypeError, OverflowError: They cannot be merged into rows that a reader takes.
    """
    others: list[Record] = []
    pieces: list[Piece] = []
    for record in walk(raw):
        if record.kind == KIND_ROW:
            values = decode_map(record.payload, tensors=False)
            pieces.append(Piece(record.sequence, record.step, record.flags, record.time_ns, values))
        else:
            others.append(record)
    encode = map_encoder()
    packed = [(other.sequence, pack(other)) for other in others]
    keys: dict[str, int] = {}
    for sequence, step, row_flags, time_ns, values in merge(pieces):
        for key in values:
            keys[key] = keys.get(key, 0) + 1
        payload = encode(values)
        if len(payload) > MAP_BYTES_MAX:
            raise ValueError(f"row of {len(payload)} bytes")
        head = HEADER.pack(HEADER_SIZE + len(payload), KIND_ROW, row_flags, 0, sequence, step, time_ns)
        packed.append((sequence, head + payload))
    packed.sort()
    merged = b"".join([data for _, data in packed])
    return Payload(merged, len(packed), first, last, step_min, step_max, flags | FLAG_MERGED, keys)


def _steps(raw: Buffer) -> tuple[int, int, bool]:
    """(min step, max step, whether two ROW records may be pieces of one row), from the headers alone."""
    low, high, previous, mergeable = 2**64, 0, -1, False
    offset, end = 0, len(raw)
    unpack_from = HEADER.unpack_from
    while offset + HEADER_SIZE <= end:
        size, kind, _, _, _, step, _ = unpack_from(raw, offset)
        if kind == KIND_ROW:
            if step <= previous:
                mergeable = True
            previous = step
            if step < low:
                low = step
            if step > high:
                high = step
        offset += max(size, HEADER_SIZE)
    return (low if high >= low else 0), high, mergeable


def _keys(raw: Buffer) -> tuple[dict[str, int] | None, int | None]:
    """(key to count of records that hold it, step of the last ROW record).

    Both are None where telling would cost a decode of too many records; the step is also None without a row.
    """
    keys: dict[str, int] = {}
    singles, step = 0, None
    for group in groups(raw):
        if isinstance(group, Group):
            for key in group.keys:
                keys[key] = keys.get(key, 0) + len(group)
            step = int(group.steps()[-1])
            continue
        if group.kind != KIND_ROW:
            continue
        singles += 1
        if singles > _SINGLES_MAX:
            return None, None
        step = group.step
        try:
            flat = flatten(decode_map(group.payload, tensors=False))
        except ValueError:  # names that take too much room to be told
            return None, None
        for key in flat:
            keys[key] = keys.get(key, 0) + 1
    return keys, step
