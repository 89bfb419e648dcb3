"""Takes over the ring of a dead process: what it published and nobody stored yet.

The caller decides that the process is dead by getting the ring's lock, and removes the file only after the bytes are
stored. A ring is read with `pread`, never mapped: one that somebody truncated gives a short read instead of a SIGBUS.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import Any, NamedTuple

from .. import clock, platform
from ..errors import DamageError
from .format import ANSWER_SUFFIX, DRAFT_SUFFIX, HEADER_BYTES, SUFFIX, WORD_HEAD, WORD_RELEASED
from .page import Chunk, Mark, Refusals, read_chunks, read_refusals, read_released, read_static, read_taken
from .salvage import Piece, Salvage, Window, sound_run

_RING = re.compile(rf"[0-9a-f]{{16}}-[0-9a-f]{{16}}{re.escape(SUFFIX)}")
_DRAFT_AGE_NS = 60 * 10**9


class RingHeader(NamedTuple):
    """What the header page of a ring says.

    Attributes:
        head: The word as it stands there; nothing proves it.
        released: Behind what is stored elsewhere; None: both copies are damaged. `hint` is the same position, unproved.
        refusals: What was refused; None: both copies are damaged.
        chunks: The checksums that can be read, by position.
    """

    stream: int
    capacity: int
    identity: dict[str, Any]
    head: int
    hint: int
    released: Mark | None
    refusals: Refusals | None
    chunks: list[Chunk]

    @property
    def refused(self) -> int:
        """Calls refused since the ring was made; 0 where the ring cannot say."""
        return self.refusals.refused if self.refusals is not None else 0


class Drained(NamedTuple):
    """The records of a dead ring.

    Attributes:
        pieces: Records with consecutive sequences; more than one where some between them are lost.
        gaps: GAP maps of what is lost (docs/segment.md#gap): records that are damaged, with their sequences, and calls
            that were refused and never reported.
        damage: What is damaged, for people; None: nothing is.
        stored: The last sequence that was said to be stored elsewhere.
        unproved: Sequences [first, after) that were taken for their shape alone: younger than the last checksum.
    """

    header: RingHeader
    pieces: list[Piece]
    gaps: list[dict[str, Any]]
    damage: str | None
    stored: int
    unproved: list[tuple[int, int]]

    @property
    def record_count(self) -> int:
        return sum(piece.last - piece.first + 1 for piece in self.pieces)

    @property
    def records(self) -> bytes:
        """The bytes of all pieces, copied."""
        return b"".join(piece.records for piece in self.pieces)

    @property
    def first(self) -> int:
        """The first sequence; `last` is smaller when there is no record."""
        return self.pieces[0].first if self.pieces else self.stored + 1

    @property
    def last(self) -> int:
        return self.pieces[-1].last if self.pieces else self.stored


def ring_paths(base: str, store_digest: str) -> list[str]:
    """The rings of one store on this host, living or dead."""
    try:
        directory = platform.shared_directory(base)
        names = sorted(os.listdir(directory))
    except Exception:
        return []
    return [os.path.join(directory, n) for n in names if n.startswith(f"{store_digest}-") and n.endswith(SUFFIX)]


def is_ring_path(path: str, store_digest: str = "") -> bool:
    """Whether a path that somebody claims for a ring may be looked at: made as `Ring.create` makes names, and ours.

    Why: a record or a message can name any file, and a process that opens and closes one drops its own locks on it.
    """
    directory, name = os.path.split(path)
    return (
        os.path.isabs(path)
        and ".." not in directory.split(os.sep)
        and os.path.basename(directory) == platform.own_name()
        and _RING.fullmatch(name) is not None
        and name.startswith(store_digest)
    )


def ring_stream(path: str) -> int:
    """The stream that a ring's name tells; 0 where it tells none."""
    name = os.path.basename(path)
    return int(name[17:33], 16) if _RING.fullmatch(name) else 0


def remove_drafts(base: str, store_digest: str) -> None:
    """Removes rings whose process died while making them, and answers that nobody took. Both take seconds at most, so age decides."""
    with contextlib.suppress(Exception):
        directory = platform.shared_directory(base)
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            if name.startswith(f"{store_digest}-") and name.endswith((DRAFT_SUFFIX, ANSWER_SUFFIX)):
                if clock.wall_ns() - os.stat(path).st_mtime_ns > _DRAFT_AGE_NS:
                    os.unlink(path)


def read_header(path: str, descriptor: int = -1) -> RingHeader:
    """The header of any ring that this process does not own.

    Args:
        descriptor: The ring if it is open already. Whoever holds the ring's lock must give it: closing another descriptor
            of the file would drop the lock.

    Raises:
        OSError: It is gone.
        DamageError: It is not a whole ring header (its process may have died while making it).
    """
    if descriptor >= 0:
        return _parse_header(os.pread(descriptor, HEADER_BYTES, 0), path)
    descriptor = platform.open_regular(path, os.O_RDONLY)
    try:
        return _parse_header(os.pread(descriptor, HEADER_BYTES, 0), path)
    finally:
        os.close(descriptor)


def _parse_header(page: bytes, path: str) -> RingHeader:
    if len(page) < HEADER_BYTES:
        raise DamageError(f"ring {path!r} has {len(page)} bytes, its header alone has {HEADER_BYTES}")
    stream, capacity, identity = read_static(page, path)
    head, released, taken = _word(page, WORD_HEAD), read_released(page), read_taken(page)
    # A daemon that reads the ring itself says first what is stored, and the trainer repeats it when it needs the room.
    if released is not None and taken is not None and released[0] < taken.position <= head:
        released = taken.mark
    return RingHeader(
        stream,
        capacity,
        identity,
        head,
        _word(page, WORD_RELEASED),
        released,
        read_refusals(page),
        read_chunks(page, capacity),
    )


def _word(page: bytes, index: int) -> int:
    return int.from_bytes(page[index * 8 : index * 8 + 8], "little")


def drain(path: str, descriptor: int = -1) -> Drained:
    """Reads what a dead ring holds; changes nothing.

    Args:
        descriptor: As for `read_header`: that of the lock.

    Raises:
        OSError: As `read_header`.
        DamageError: Likewise, or nothing tells where its records begin.
    """
    if descriptor >= 0:
        return _drain(path, descriptor)
    descriptor = platform.open_regular(path, os.O_RDONLY)
    try:
        return _drain(path, descriptor)
    finally:
        os.close(descriptor)


def _drain(path: str, descriptor: int) -> Drained:
    header = read_header(path, descriptor)
    window = Window(descriptor, header.capacity)
    salvage = Salvage(window)
    if (released := header.released) is not None:
        end = released[0] + header.capacity
    else:
        released, end = _beginning(path, header, window)
        before = released[1]
        salvage.lose_unknown(before, released[2], f"nothing tells whether what came before sequence {before} is stored")
    salvage.take_all(released, header.chunks, header.head, end)
    gaps = salvage.lost
    if header.refusals is None:
        salvage.notes.append("the count of refused calls is damaged")
        gaps.append({"episode": "ring-refused", "count": 0, "reason": "ring damaged: how many calls were refused"})
    elif (refused := header.refusals.gap()) is not None:
        gaps.append(refused)
    damage = "; ".join(salvage.notes) or None
    return Drained(header, salvage.pieces, gaps, damage, released[1] - 1, salvage.unproved)


def _beginning(path: str, header: RingHeader, window: Window) -> tuple[Mark, int]:
    """Where to begin, and to end, when both copies of `released` are damaged: at the oldest bytes that may be there.

    What was stored and is taken again falls by its sequence.

    Raises:
        DamageError: Nothing tells.
    """
    top = max((chunk.end for chunk in header.chunks), default=0)
    oldest = next((chunk for chunk in header.chunks if top - chunk.end < header.capacity), None)
    if oldest is not None:
        return (oldest.start, oldest.first, oldest.step_first), top + header.capacity
    data = window.read(header.hint, header.hint + header.capacity)
    sequence = int.from_bytes(data[8:16], "little")
    if len(sound_run(data, 0, sequence, sequence + 1)) < 2:
        raise DamageError(f"ring {path!r} does not say where its records begin")
    return (header.hint, sequence, int.from_bytes(data[16:24], "little")), header.hint + header.capacity
