"""The header page of a ring, as values: what was refused, what is released, which bytes have a checksum, whose it is.

Each kind has one function that packs it and one that reads it from a page of which any bit may be wrong. Pure.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import DamageError, StoreError
from ..files import Buffer
from ..limits import REFUSED_REASONS
from ..record import HEADER_SIZE, decode_map, encode_map
from .format import (
    CHECK,
    CHUNK,
    CHUNKS,
    CHUNKS_OFFSET,
    REFUSALS,
    REFUSALS_COPIES,
    RELEASED,
    RELEASED_COPIES,
    STATIC,
    STATIC_MAGIC,
    STATIC_OFFSET,
    STATIC_ROOM,
    STATIC_SECOND_OFFSET,
    TAKEN,
    TAKEN_COPIES,
    VERSION,
)

_new = tuple.__new__

Mark = tuple[int, int, int]  # position behind the last record, next sequence, open step


class Refusals(NamedTuple):
    """What found no room. The fields are the words of the page, in their order.

    Attributes:
        refused: Calls refused since the ring was made.
        episode: Number of the current or last time of refusing, from 1; `calls` and the others are this episode's.
        reported: The last episode that a GAP record in the stream tells of.
        reason: Index into `REFUSED_REASONS`.
    """

    refused: int = 0
    episode: int = 0
    calls: int = 0
    step_min: int = 0
    step_max: int = 0
    start_ns: int = 0
    end_ns: int = 0
    reported: int = 0
    reason: int = 0

    @property
    def is_told(self) -> bool:
        """Whether a GAP record tells of every episode."""
        return self.episode <= self.reported

    def counted(self, row: int, stamp: int, reason: int) -> Refusals:
        """One more refused call; the first after a report begins an episode."""
        if self.is_told:
            return Refusals(self.refused + 1, self.episode + 1, 1, row, row, stamp, stamp, self.reported, reason)
        refused, episode, calls, step_min, step_max, start_ns, _, reported, before = self
        # Why not _replace, min, max, or Refusals(…): they took half of this, and a loop may be refused for hours.
        return _new(Refusals, (
            refused + 1, episode, calls + 1, row if row < step_min else step_min, row if row > step_max else step_max,
            start_ns, stamp, reported,
            # Why the last one that says more than "full": a ring fills because of something that is told later.
            reason or before,
        ))  # fmt: skip

    def gap(self) -> dict[str, Any] | None:
        """The GAP map of an episode that no GAP record tells of."""
        if self.is_told:
            return None
        return {
            "episode": self.episode,
            "count": self.calls,
            "step_min": self.step_min,
            "step_max": self.step_max,
            "start_ns": self.start_ns,
            "end_ns": self.end_ns,
            "reason": REFUSED_REASONS[self.reason if self.reason < len(REFUSED_REASONS) else 0],
        }


class Taken(NamedTuple):
    """What a daemon that reads the ring itself says: `mark` of the first record that is not stored, and how it is.

    Attributes:
        synced: The last sequence that survives power loss.
        trouble: Why nothing more is stored now, an index into `REFUSED_REASONS`; 0: all is well.
    """

    position: int
    sequence: int
    step: int
    synced: int
    trouble: int

    @property
    def mark(self) -> Mark:
        return self[:3]


class Chunk(NamedTuple):
    """Bytes of the stream whose checksum is known: positions [start, end), sequences [first, next)."""

    start: int
    end: int
    first: int
    next: int
    step_first: int
    step_next: int
    crc: int

    def extended(self, other: Chunk) -> Chunk:
        """This one and `other`, which follows it; the checksum is `other`'s, which must have been begun with ours."""
        return Chunk(self.start, other.end, self.first, other.next, self.step_first, other.step_next, other.crc)


def checked(words: bytes) -> bytes:
    """Words and their check word."""
    return words + zlib.crc32(words).to_bytes(CHECK.size, "little")


def _copies(page: Buffer, layout: struct.Struct, places: Sequence[int]) -> list[tuple[int, ...]]:
    """The copies whose check word is right."""
    found = []
    for place in places:
        words = page[place * 8 : place * 8 + layout.size]
        if CHECK.unpack_from(page, place * 8 + layout.size)[0] == zlib.crc32(words):
            found.append(layout.unpack(words))
    return found


def pack_refusals(refusals: Refusals) -> bytes:
    return checked(REFUSALS.pack(*refusals))


def read_refusals(page: bytes) -> Refusals | None:
    """The newest good copy, or None when both are damaged."""
    return max((Refusals(*words) for words in _copies(page, REFUSALS, REFUSALS_COPIES)), default=None)


def pack_released(mark: Mark) -> bytes:
    return checked(RELEASED.pack(*mark))


def read_released(page: bytes) -> Mark | None:
    """The newest good copy, or None when both are damaged."""
    return max(((words[0], words[1], words[2]) for words in _copies(page, RELEASED, RELEASED_COPIES)), default=None)


def pack_taken(taken: Taken) -> bytes:
    return checked(TAKEN.pack(*taken))


def read_taken(page: Buffer) -> Taken | None:
    """The first good copy, which is the newer one, or None: both are damaged, or nobody has taken anything yet."""
    return next((Taken(*words) for words in _copies(page, TAKEN, TAKEN_COPIES)), None)


def pack_chunk(chunk: Chunk) -> bytes:
    head = CHUNK.pack(*chunk, 0)[:-4]
    return head + zlib.crc32(head).to_bytes(4, "little")


def read_chunks(page: bytes, capacity: int) -> list[Chunk]:
    """The entries that are whole and can be, by start; of two with the same start the longer one stands first."""
    found = []
    for index in range(CHUNKS):
        at = CHUNKS_OFFSET + index * CHUNK.size
        *fields, check = CHUNK.unpack_from(page, at)
        chunk = Chunk(*fields)
        size, count = chunk.end - chunk.start, chunk.next - chunk.first
        if zlib.crc32(page[at : at + CHUNK.size - 4]) == check and 0 < size <= capacity:
            if 0 < count <= size // HEADER_SIZE:
                found.append(chunk)
    return sorted(found, key=lambda chunk: (chunk.start, -chunk.end))


def pack_static(stream: int, capacity: int, identity: Mapping[str, Any]) -> bytes:
    """The part that never changes.

    Raises:
        ValueError: The identity is larger than its room.
    """
    text = encode_map(dict(identity))
    if len(text) > STATIC_ROOM - STATIC.size:
        raise ValueError(f"ring identity has {len(text)} bytes, more than the header page holds")
    head = STATIC.pack(STATIC_MAGIC, VERSION, 0, len(text), capacity, stream, 0)[:-4]
    return head + zlib.crc32(text, zlib.crc32(head)).to_bytes(4, "little") + text


def read_static(page: bytes, path: str) -> tuple[int, int, dict[str, Any]]:
    """(stream, capacity, identity) from whichever copy is good.

    Raises:
        DamageError: None is, or the numbers cannot be.
        StoreError: Another version made it.
    """
    for offset in (STATIC_OFFSET, STATIC_SECOND_OFFSET):
        head = page[offset : offset + STATIC.size]
        magic, version, _, size, capacity, stream, crc = STATIC.unpack(head)
        text: Buffer = page[offset + STATIC.size : offset + STATIC.size + size]
        if magic != STATIC_MAGIC or zlib.crc32(text, zlib.crc32(head[:-4])) != crc:
            continue
        if version != VERSION:
            raise StoreError(
                f"ring {path!r} has version {version}, this is version {VERSION}; whoever made it drains it"
            )
        if capacity & (capacity - 1) or not capacity:
            raise DamageError(f"ring {path!r} has capacity {capacity}, expected a power of two")
        return stream, capacity, decode_map(text)
    raise DamageError(f"ring {path!r} has a damaged header")
