"""Blocks that were written and may not be on the disk, because an fsync of their segment failed.

After a failed fsync the kernel may have thrown the pages away and call them clean: asking again would say "done" and
lie. So the blocks since the last good fsync are doubtful, and are written again into another segment. Where they come
from, best first: the segments that they were written to (the page cache often still holds them; the checksum decides),
and the ring of their trainer. What nobody has is lost: counted, and told by a GAP block.

Life of a `Doubtful`: made when its segment becomes suspect; written again (a copy in the current segment); forgotten when
that copy was forced, or doubtful again with one place more when that segment fails as well. So what is kept in memory is
bounded by the blocks written since the last good fsync: headers only, and the small maps of GAP blocks.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from sdk import compression
from sdk.errors import DamageError, StoreError
from sdk.files import Buffer, File, Files
from sdk.segment.format import BLOCK_HEADER_SIZE, KIND_BLOB, KIND_GAP, Block
from sdk.segment.naming import SUSPECT_SUFFIX, parse_segment
from sdk.segment.writer import SegmentWriter

REASON = "fsync failed"


class Place(NamedTuple):
    """Where a block was written."""

    path: str
    block: Block


class Doubtful:
    """A block that must be written again.

    Attributes:
        block: Its header, as it was first written.
        places: The segments that it was written to, oldest first.
        note: The map of a GAP block, kept because it may be the only copy; None for ROWS.
    """

    __slots__ = ("block", "note", "places")

    def __init__(self, block: Block, note: Mapping[str, Any] | None) -> None:
        self.block = block
        self.note = note
        self.places: list[Place] = []

    def as_gap(self, last: int, step_max: int) -> dict[str, Any]:
        """What is said of its sequences up to `last`, of which no copy is left."""
        block = self.block
        return {
            # The same text whoever tells it, so that a reader counts it once.
            "episode": f"{REASON}: block {block.number} of {self.places[0].path.rpartition('/')[2]}",
            "count": last - block.first + 1,
            "first": block.first,
            "last": last,
            "step_min": block.step_min,
            "step_max": step_max,
            "reason": REASON,
        }


class Part:
    """A segment of ours that is not known to be on the disk as a whole.

    Attributes:
        forced: So many of its first blocks are.
        copies: Block index to what that block is a copy of.
        notes: Block index to the map of a GAP block.
    """

    __slots__ = ("copies", "forced", "notes", "segment")

    def __init__(self, segment: SegmentWriter) -> None:
        self.segment = segment
        self.forced = 0
        self.copies: dict[int, Doubtful] = {}
        self.notes: dict[int, Mapping[str, Any]] = {}

    def note_forced(self, blocks: int) -> None:
        """The first `blocks` blocks are on the disk."""
        self.forced = max(self.forced, blocks)
        self.copies = {index: copy for index, copy in self.copies.items() if index >= self.forced}
        self.notes = {index: note for index, note in self.notes.items() if index >= self.forced}

    def doubtful(self) -> list[Doubtful]:
        """What must be written again when this segment cannot be forced.

        META, CHECKPOINT, KEYS and INDEX need not: every segment has its own.
        """
        found = []
        for index, block in list(enumerate(self.segment.blocks))[self.forced :]:
            if not block.records and block.kind not in (KIND_GAP, KIND_BLOB):
                continue
            doubtful = self.copies.get(index) or Doubtful(block, self.notes.get(index))
            doubtful.places.append(Place(self.segment.path, block))
            found.append(doubtful)
        return found


class ReadBack:
    """Reads blocks of suspect segments; opens each file once. Close it after use."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._opened: dict[str, File | None] = {}

    def payload(self, doubtful: Doubtful) -> Buffer | None:
        """The raw payload of a block from any of its places, or None: what is there is not what was written."""
        for place in reversed(doubtful.places):
            payload = self._payload_at(place)
            if payload is not None:
                return payload
        return None

    def _payload_at(self, place: Place) -> Buffer | None:
        block, file = place.block, self._file(place.path)
        if file is None:
            return None
        try:
            stored = file.read(block.offset + BLOCK_HEADER_SIZE, block.stored_size)
            if len(stored) != block.stored_size or zlib.crc32(stored) != block.payload_crc:
                return None
            return compression.decompress(block.codec, stored, block.raw_size)
        except (OSError, DamageError):
            return None

    def _file(self, path: str) -> File | None:
        if path not in self._opened:
            self._opened[path] = None
            with contextlib.suppress(OSError):
                self._opened[path] = self._files.open(path)
        return self._opened[path]

    def close(self) -> None:
        for file in self._opened.values():
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()
        self._opened.clear()


def others_segments(files: Files, directory: str, own_writers: set[int]) -> list[str]:
    """The segments of a run that other writers made, to be forced before anything is claimed that includes them.

    Raises:
        OSError: The directory cannot be read.
        StoreError: One of them is marked: a later fsync of it could only lie.
    """
    names = [name for name, _, _ in files.entries(directory)]
    found = [n for n in names if (parsed := parse_segment(n)) is not None and parsed.writer not in own_writers]
    marked = [name for name in found if name + SUSPECT_SUFFIX in names]
    if marked:
        raise StoreError(f"an fsync of {marked[0]!r} failed, and nobody has written its blocks again")
    return [os.path.join(directory, name) for name in found]
