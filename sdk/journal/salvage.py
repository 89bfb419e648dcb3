"""What can be believed of a dead ring's bytes, and what exactly is lost.

The window is taken in stretches whose ends are known, from the released position upwards:

* A stretch with a checksum that is right is proved. One whose checksum is wrong is lost, whole: any bit of it may be the
  wrong one. Its entry says which sequences and steps that are.
* A stretch without one (its entry is damaged, or a part of it is released and overwritten) lies between two known marks:
  records are taken that are sound and follow one another; where that breaks, the next sound one is looked for, and the
  sequences between are lost.
* What is younger than the last checksum ends at `head`, a single unchecked word. It is believed if it is where a record
  ends. If two or more sound records follow it (at most one call can have been interrupted before it published), or if it
  is where no record ends, then it is damaged, and sound records are what counts.

Pure, but for reading the ring through `Window`.
"""

from __future__ import annotations

import os
import re
import zlib
from typing import Any, NamedTuple

from ..errors import DamageError
from ..limits import STEP_MAX
from ..record import HEADER, HEADER_SIZE, KIND_BLOB, KIND_GAP, KIND_META, KIND_ROW, decode_map
from .format import HEADER_BYTES
from .page import Chunk, Mark

_KINDS = (KIND_ROW, KIND_META, KIND_GAP, KIND_BLOB)
_FLAGS_MAX = 7


class Piece(NamedTuple):
    """Whole records with consecutive sequences."""

    first: int
    last: int
    records: bytes


class Window:
    """The bytes of a stream that a ring's file still holds. Read with `pread`: a file that was cut gives fewer."""

    def __init__(self, descriptor: int, capacity: int) -> None:
        self._descriptor = descriptor
        self._capacity = capacity
        self._size = max(os.fstat(descriptor).st_size - HEADER_BYTES, 0)

    def read(self, start: int, end: int) -> bytes:
        """The bytes from stream position `start` to `end`, at most the capacity; fewer where the file ends."""
        first, size = start % self._capacity, min(end - start, self._capacity)
        upto = min(size, self._capacity - first)
        # Why the file's size: the header may claim any, and pread allocates what it is asked for.
        there = min(upto, max(self._size - first, 0))
        data = os.pread(self._descriptor, there, HEADER_BYTES + first) if there else b""
        if len(data) < upto or size == upto:
            # A cut file ends here: the start of the window must not be read as what follows.
            return data
        return data + os.pread(self._descriptor, min(size - upto, self._size), HEADER_BYTES)


class Salvage:
    """Takes a window apart.

    Attributes:
        pieces: What was taken, in order.
        unproved: Sequences [first, after) that were taken for their shape alone.
        lost: GAP maps of what was not taken.
        notes: What was found damaged, for people.
    """

    def __init__(self, window: Window) -> None:
        self._window = window
        self._parts: list[tuple[int, int, bytes]] = []
        self.unproved: list[tuple[int, int]] = []
        self.lost: list[dict[str, Any]] = []
        self.notes: list[str] = []

    @property
    def pieces(self) -> list[Piece]:
        joined: list[Piece] = []
        run: list[bytes] = []
        first = after = 0
        for begin, end, data in [*self._parts, (0, 0, b"")]:
            if run and begin != after:
                joined.append(Piece(first, after - 1, b"".join(run)))
                run = []
            first = begin if not run else first
            run.append(data)
            after = end
        return joined

    def take_all(self, released: Mark, chunks: list[Chunk], head: int, end: int) -> None:
        """Takes everything from `released` on; nothing can lie behind position `end`."""
        at = released
        for chunk in chunks:
            if chunk.end <= at[0] or chunk.end > end:
                continue
            if chunk.start > at[0]:
                self.notes.append(f"the checksum of sequences {at[1]} to {chunk.first - 1} is damaged")
                self._bridge(at, (chunk.start, chunk.first, chunk.step_first), "records are damaged")
                at = (chunk.start, chunk.first, chunk.step_first)
            self._take_chunk(at, chunk)
            at = (chunk.end, chunk.next, chunk.step_next)
        self._take_young(at, head, end)

    def _take_chunk(self, at: Mark, chunk: Chunk) -> None:
        data = self._window.read(chunk.start, chunk.end)
        end = (chunk.end, chunk.next, chunk.step_next)
        if len(data) == chunk.end - chunk.start and zlib.crc32(data) == chunk.crc:
            self._parts.append((at[1], chunk.next, data[at[0] - chunk.start :]))
        elif len(data) < chunk.end - chunk.start:
            self._bridge(at, end, "the file is cut")
        elif chunk.start < at[0]:
            # The part of it that was released is overwritten: nothing is known to be wrong.
            self._bridge(at, end, "records are damaged")
        else:
            self._lose(chunk.first, chunk.next, at[2], chunk.step_next, "the checksum is wrong")

    def _bridge(self, at: Mark, end: Mark, why: str) -> None:
        """Takes what is sound between two known marks, and notes what is lost as exactly as can be."""
        data = self._window.read(at[0], end[0])
        offset, sequence = self._take_sound(data, at, end[1])
        if sequence < end[1]:
            self._lose(sequence, end[1], at[2], end[2], why)
        elif offset < end[0] - at[0] or sequence > end[1]:
            self.notes.append(f"{end[0] - at[0] - offset} bytes before sequence {end[1]} are damaged")

    def _take_sound(self, data: bytes, at: Mark, end: int | None) -> tuple[int, int]:
        """Takes the sound records of `data`, over holes; the offset and the sequence behind the last one."""
        offset, sequence = 0, at[1]
        while True:
            stops = sound_run(data, offset, sequence, end)
            if stops[-1] > offset:
                self._take(data[offset : stops[-1]], sequence, sequence + len(stops) - 1)
            offset, sequence = stops[-1], sequence + len(stops) - 1
            found = next_sound(data, offset, sequence, end) if offset < len(data) and sequence != end else None
            if found is None:
                return offset, sequence
            step = HEADER.unpack_from(data, found[0])[5]
            self._lose(sequence, found[1], at[2], step, f"{found[0] - offset} bytes are damaged")
            offset, sequence = found

    def _take_young(self, at: Mark, head: int, end: int) -> None:
        """Takes what is younger than the last checksum; see the module's docstring."""
        data = self._window.read(at[0], end)
        stops = sound_run(data, 0, at[1], None)
        published = head - at[0]
        if published in stops and len(stops) - stops.index(published) <= 2:
            self._take(data[:published], at[1], at[1] + stops.index(published))
        elif stops[-1] < published <= end - at[0]:
            offset, sequence = self._take_sound(data[:published], at, None)
            if offset < published:
                size = published - offset
                self.lose_unknown(sequence, at[2], f"{size} bytes after sequence {sequence - 1} cannot be read")
        else:
            self._take(data[: stops[-1]], at[1], at[1] + len(stops) - 1)
            last = at[1] + len(stops) - 2
            self.lose_unknown(last + 1, at[2], f"nothing tells whether records came after sequence {last}")

    def _take(self, data: bytes, first: int, after: int) -> None:
        if after > first:
            self._parts.append((first, after, data))
            self.unproved.append((first, after))

    def _lose(self, first: int, after: int, step: int, step_after: int, why: str) -> None:
        self.notes.append(f"sequences {first} to {after - 1} are lost: {why}")
        self.lost.append(
            {
                "episode": f"ring-{first}",
                "count": after - first,
                "first": first,
                "last": after - 1,
                "step_min": min(step, step_after),
                "step_max": max(step, step_after),
                "reason": "ring damaged",
            }
        )

    def lose_unknown(self, first: int, step: int, why: str) -> None:
        """An end cannot be read, so nobody can say how many records it held, or whether it held any."""
        self.notes.append(why)
        self.lost.append(
            {
                "episode": f"ring-unknown-{first}",
                "count": 0,
                "step_min": step,
                "step_max": step,
                "reason": f"ring damaged: {why}",
            }
        )


def sound_run(data: bytes, offset: int, sequence: int, end: int | None) -> list[int]:
    """Where the sound records from `offset` on end, `offset` itself first. None of sequence `end` or above."""
    stops = [offset]
    while sequence != end and (after := _sound(data, stops[-1], sequence)):
        stops.append(after)
        sequence += 1
    return stops


def next_sound(data: bytes, offset: int, sequence: int, end: int | None) -> tuple[int, int] | None:
    """Offset and sequence of the next sound record behind a bad one at `offset`, or None."""
    last = sequence + (len(data) - offset) // HEADER_SIZE
    # A header behind its length: kind, flags, two zeros, and a sequence whose upper half is the one before's or one more.
    upper = [half.to_bytes(4, "little") for half in {sequence >> 32, (sequence + 1) >> 32, last >> 32}]
    header = re.compile(rb"(?s)(?=[\x01-\x03][\x00-\x07]\0\0....(?:" + b"|".join(map(re.escape, upper)) + rb"))")
    for match in header.finditer(data, offset + HEADER_SIZE + 4):
        start = match.start() - 4
        if len(data) - start < HEADER_SIZE:
            return None
        number = HEADER.unpack_from(data, start)[4]
        # What is skipped must have had room.
        possible = sequence < number <= sequence + (start - offset) // HEADER_SIZE and (end is None or number < end)
        if possible and _sound(data, start, number):
            return start, number
    return None


def _sound(data: bytes, offset: int, sequence: int) -> int:
    """Where the record at `offset` ends if it has this sequence and can be one; else 0."""
    if len(data) - offset < HEADER_SIZE:
        return 0
    size, kind, flags, zero, number, step, _ = HEADER.unpack_from(data, offset)
    end: int = offset + size
    if number != sequence or size < HEADER_SIZE or end > len(data) or step > STEP_MAX:
        return 0
    if kind not in _KINDS or flags > _FLAGS_MAX or zero:
        return 0
    try:
        decode_map(data[offset + HEADER_SIZE : end])
    except DamageError:
        return 0
    return end
