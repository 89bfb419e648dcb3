"""Which large values a run keeps: by age and key, and only those that a row still names.

What is removed leaves a tombstone, a blob without bytes that says why and when; the row, its caption and its other values
stay. Bytes that a younger value shares are kept.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Sequence
from typing import NamedTuple

from daemon.store.rewrite import MediaSegment, Result, Transform
from sdk.errors import DamageError, Error
from sdk.files import Files
from sdk.journal.announcements import Announcement, announcements
from sdk.record import BlobRef, Record, StoredBlob, pack
from sdk.segment.blobs import parse_chunk
from sdk.segment.check import check_rows
from sdk.segment.format import KIND_BLOB, KIND_ROWS
from sdk.segment.naming import HISTORY, parse_segment
from sdk.segment.reader import SegmentReader

Key = tuple[int, int]


class Named(NamedTuple):
    """A blob that a stored record announces, and when that was logged (ns since 1970)."""

    announced: Announcement
    time_ns: int


class Wish(NamedTuple):
    """What a user wants to be removed.

    Attributes:
        before_ns: What was logged before; 0: nothing because of its age.
        keys: Only values of keys that match one of these globs; empty: of all.
        unnamed: Also what no stored row names.
        text: What a tombstone says.
    """

    before_ns: int
    keys: Sequence[str]
    unnamed: bool
    text: str


def named_blobs(files: Files, directory: str) -> dict[Key, Named]:
    """Every blob that the rows of a run name, by (stream, number).

    Raises:
        OSError: The directory cannot be read.
        DamageError: A block of rows cannot, so that nobody knows what it names.
    """
    found: dict[Key, Named] = {}

    def heard(stream: int, record: Record) -> None:
        for announced in announcements(stream, pack(record)):
            found[announced.ref.stream, announced.ref.number] = Named(announced, record.time_ns)

    for entry, _, _ in files.entries(directory):
        name = parse_segment(entry)
        if name is None or name.holds != HISTORY:
            continue
        reader = SegmentReader(files, os.path.join(directory, entry))
        try:
            if reader.damage:
                raise DamageError(f"{entry} is damaged: {reader.damage[0].reason}", hint="stepd repair")
            for block in reader.blocks:
                if block.kind == KIND_ROWS:
                    check_rows(block, reader.payload(block), heard)
        finally:
            reader.close()
    return found


class Retention:
    """The transform that removes what a user does not want any more; what stays goes on to `then`.

    Attributes:
        removed, removed_bytes: What became a tombstone, or nothing. `shared`: what stayed because younger values share it.
    """

    def __init__(self, wish: Wish, named: dict[Key, Named], shared: set[Key], then: Transform) -> None:
        self._wish = wish
        self._named = named
        self._shared = shared
        self._then = then
        self.removed = self.removed_bytes = self.shared = 0

    def __call__(self, ref: BlobRef, stored: StoredBlob) -> Result:
        key = (ref.stream, ref.number)
        if "removed" in stored.meta:
            return stored
        if key not in self._named:
            if self._wish.unnamed and key not in self._shared:
                self._count(stored)
                return None
        elif is_unwanted(self._wish, self._named[key]):
            if key in self._shared:
                self.shared += 1
            else:
                self._count(stored)
                kept = {str(name): stored.meta[name] for name in ("media", "key", "step") if name in stored.meta}
                return StoredBlob(b"", {**kept, "removed": self._wish.text})
        return self._then(ref, stored)

    def _count(self, stored: StoredBlob) -> None:
        self.removed += 1
        self.removed_bytes += len(stored.data)


def is_unwanted(wish: Wish, named: Named) -> bool:
    """Whether a value is to be removed because of its age and key."""
    matches = not wish.keys or any(fnmatch.fnmatchcase(named.announced.key, glob) for glob in wish.keys)
    return bool(wish.before_ns) and named.time_ns < wish.before_ns and matches


def shared_by_kept(files: Files, segments: Sequence[MediaSegment], wish: Wish, named: dict[Key, Named]) -> set[Key]:
    """The blobs whose bytes others share that stay."""
    found: set[Key] = set()
    for segment in segments:
        with contextlib.suppress(OSError, Error):
            reader = SegmentReader(files, segment.path)
            try:
                for block in reader.blocks:
                    if block.kind != KIND_BLOB or block.step_max:
                        continue  # one that shares another's bytes has none of its own
                    same = parse_chunk(block, reader.payload(block)).meta or {}
                    own = named.get((block.stream, block.first))
                    if "same" in same and own is not None and not is_unwanted(wish, own):
                        stream, number = same["same"]
                        found.add((stream, number))
            finally:
                reader.close()
    return found
