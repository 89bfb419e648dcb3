"""What the records say that announce blobs, and the bytes in an arena that they mean.

Both come from another process, so nothing of them is believed: an announcement that makes no sense is left out, which
readers and `verify` tell as a blob that is missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from .. import platform
from ..errors import DamageError
from ..files import Buffer
from ..limits import BLOB_BYTES_MAX
from ..record import HEADER, HEADER_SIZE, KIND_BLOB, BlobRef, decode_map
from .arena import FILES_MAX, arena_path
from .drain import is_ring_path

# Why a blob is missing whose row is there.
LOST = "its bytes were in the memory of a process that died"


class Announcement(NamedTuple):
    """What a record says of a blob.

    Attributes:
        place: (index of the arena's file, offset in it); None: the trainer stored it itself.
    """

    ref: BlobRef
    key: str
    step: int
    meta: dict[str, Any]
    place: tuple[int, int] | None

    def stored_meta(self) -> dict[str, Any]:
        """What its blob says of itself where it is stored."""
        return {**self.meta, "key": self.key, "step": self.step}

    def as_gap(self) -> dict[str, Any]:
        """What is said when its bytes are nowhere."""
        return {
            "episode": f"blob {self.ref.number}", "count": 0, "key": self.key, "size": self.ref.size,
            "step_min": self.step, "step_max": self.step, "reason": LOST,
        }  # fmt: skip


def announcements(stream: int, records: Buffer, *, behind: int = 0) -> Iterator[Announcement]:
    """The announcements among `records`, of blobs with a number above `behind`.

    Raises:
        DamageError: These are not records.
    """
    view, offset = memoryview(records), 0
    while offset + HEADER_SIZE <= len(view):
        size, kind, _, _, _, step, _ = HEADER.unpack_from(view, offset)
        if size < HEADER_SIZE or offset + size > len(view):
            raise DamageError(f"record at byte {offset} claims {size} bytes; {len(view) - offset} are left")
        if kind == KIND_BLOB:
            found = _parse(stream, step, view[offset + HEADER_SIZE : offset + size])
            if found is not None and found.ref.number > behind:
                yield found
        offset += size


def _parse(stream: int, step: int, payload: Buffer) -> Announcement | None:
    try:
        told = decode_map(payload, tensors=False)
    except DamageError:
        return None
    number, size, meta, at = told.get("n"), told.get("size"), told.get("meta"), told.get("at")
    if type(number) is not int or type(size) is not int or type(meta) is not dict:
        return None
    if number < 1 or not 0 <= size <= BLOB_BYTES_MAX or not (at is None or _is_place(at)):
        return None
    return Announcement(BlobRef(stream, number, size), str(told.get("key", "")), step, meta, at and (at[0], at[1]))


def _is_place(at: object) -> bool:
    return (
        type(at) is list
        and len(at) == 2
        and all(type(number) is int and number >= 0 for number in at)
        and at[0] < FILES_MAX
    )


class ArenaReader:
    """The arena beside a ring, read by another process. Files are opened when they are first needed."""

    def __init__(self, ring: str) -> None:
        self.ring = ring
        self._open: dict[int, int] = {}

    def read(self, place: tuple[int, int], into: memoryview) -> None:
        """Fills `into` with the bytes at `place`.

        Raises:
            OSError, ValueError: They are not there, or not ours to read.
        """
        if not len(into):
            return
        index, offset = place
        descriptor = self._open.get(index)
        if descriptor is None:
            if not is_ring_path(self.ring):
                raise ValueError(f"{self.ring!r} is no ring")
            descriptor = self._open[index] = platform.open_regular(arena_path(self.ring, index), os.O_RDONLY)
        read = os.preadv(descriptor, [into], offset)
        if read != len(into):
            raise ValueError(f"the arena has {read} bytes where {len(into)} should be")

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])
