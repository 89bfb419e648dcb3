"""Which large values of a run are removed: by age and key, and those that no row names.

Life of a removal: `uses_of` reads all rows and says which blobs they name, `lying_in` reads the headers of the media segments
and says which blobs are there and which share bytes, `removals` decides without I/O, and `Retention` is the transform of
a rewriting (`daemon.store.rewrite`) that does it. What is removed leaves a tombstone, a blob without bytes that says why
and when; the row, its caption and its other values stay.

Nothing is removed on a guess. What the rows name is only known where all of them can be read, so damage raises; a blob
that no row names may be waiting for its row (in a ring, in another host's file), so it is removed only where the process that
made it is known to have said everything.
"""

from __future__ import annotations

import fnmatch
import functools
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from daemon.store.replacing import Sealed
from daemon.store.rewrite import Result, Transform
from sdk.errors import DamageError, Error
from sdk.files import Files
from sdk.reader.blobs import REMOVED, SAME, Blobs
from sdk.reader.contents import raw_of
from sdk.record import KIND_ROW, BlobRef, MediaValue, StoredBlob, decode_map, walk
from sdk.rows import flatten
from sdk.segment.blobs import parse_chunk
from sdk.segment.columns import PACKED, Columns
from sdk.segment.format import KIND_BLOB, KIND_COLUMNS, KIND_ROWS, Block
from sdk.segment.naming import HISTORY, SegmentName, parse_segment
from sdk.segment.reader import SegmentReader

# (stream, number) of a blob.
Key = tuple[int, int]

# Unnamed bytes are removed unasked when they are more than this part of all: less is not worth the writing.
UNNAMED_RATIO = 0.5
# How a reference to a blob looks in a record: its extension's code, then the first byte of an array of three.
_REFERENCE = b"\x03\x93"
# A media value whose blob is a whole value that may name blobs itself (docs/media.md).
_VALUE = "value"


class Wish(NamedTuple):
    """What a user wants to be removed.

    Attributes:
        before_ns: What was logged before, ns since 1970; 0: nothing because of its age.
        keys: Only values under keys that match one of these globs; empty: of all.
        unnamed: Also what no row names, however little it is.
        when: The date, for the tombstones.
        words: How the user said it.
    """

    before_ns: int = 0
    keys: Sequence[str] = ()
    unnamed: bool = False
    when: str = ""
    words: str = ""

    def is_unwanted(self, key: str, time_ns: int) -> bool:
        """Whether what was logged under `key` at that time is to be removed."""
        if not self.before_ns or time_ns >= self.before_ns:
            return False
        return not self.keys or any(fnmatch.fnmatchcase(key, glob) for glob in self.keys)


class Uses(NamedTuple):
    """What the rows of a run say of blobs.

    Attributes:
        wanted: Each blob that a row names, and whether one of these rows wants to keep it.
        is_complete: Whether all that could name one was read; else a large value is missing that may have.
    """

    wanted: dict[Key, bool]
    is_complete: bool


class Lying(NamedTuple):
    """What lies in the media segments of a run.

    Attributes:
        sizes: Bytes of each blob on the disk, all its copies and headers.
        same: Those that have the bytes of another one, and of which.
        gone: Those that were removed before, and of which no copy has come since.
        where: In which segments each is.
    """

    sizes: dict[Key, int]
    same: dict[Key, Key]
    gone: set[Key]
    where: dict[Key, set[SegmentName]]


class Removals(NamedTuple):
    """What is to be removed: blob to the words of its tombstone. `shared`: what would be, but others need its bytes."""

    texts: dict[Key, str]
    shared: set[Key]


def uses_of(files: Files, directory: str, wish: Wish) -> Uses:
    """Reads all rows of a run.

    Raises:
        OSError: The directory cannot be read.
        DamageError: Some rows cannot be read, so that nobody knows what they name.
    """
    wanted: dict[Key, bool] = {}
    blobs = Blobs(files, directory)
    is_complete = True
    for entry, _, _ in files.entries(directory):
        name = parse_segment(entry)
        if name is None or name.holds != HISTORY:
            continue
        for values, time_ns in _rows_with_references(files, os.path.join(directory, entry)):
            for key, value in flatten(values).items():
                keeps = not wish.is_unwanted(key, time_ns)
                for ref in _references(value):
                    one = (ref.stream, ref.number)
                    wanted[one] = wanted.get(one, False) or keeps
                    if ref.inside:
                        is_complete &= _inner(blobs, ref, wanted, keeps)
    return Uses(wanted, is_complete)


class _Reference(NamedTuple):
    """A blob that a value names. `inside`: it is a value itself, which may name others."""

    stream: int
    number: int
    size: int
    inside: bool


def _rows_with_references(files: Files, path: str) -> Iterator[tuple[dict[str, Any], int]]:
    """(values, time) of the rows of a segment that name blobs; most blocks have none, and are only searched."""
    reader = SegmentReader(files, path)
    try:
        if reader.damage:
            raise DamageError(f"{path!r} is damaged: {reader.damage[0].reason}", hint="stepd repair")
        for block in reader.blocks:
            if block.kind == KIND_COLUMNS:
                yield from _columns_with_references(reader, block)
            if block.kind != KIND_ROWS:
                continue
            payload = bytes(reader.payload(block))
            if _REFERENCE not in payload:
                continue
            for record in walk(payload):
                if record.kind == KIND_ROW and _REFERENCE in bytes(record.payload):
                    yield decode_map(record.payload), record.time_ns
    finally:
        reader.close()


def _columns_with_references(reader: SegmentReader, block: Block) -> Iterator[tuple[dict[str, Any], int]]:
    """The same of a block of columns, value by value; only columns of packed values can name blobs."""
    for group in Columns(functools.partial(reader.read_part, block), block.stored_size).groups:
        for key in group.keys:
            packed = group.packed(key) if group.kind(key) == PACKED else []
            if any(_REFERENCE in value for value in packed):
                for value, time_ns in zip(group.values(key), group.times_ns().tolist()):
                    yield {key: value}, time_ns


def _references(value: Any, *, inside: bool = False) -> Iterator[_Reference]:
    """The blobs that a value names, at whatever depth. The decoder has limited how deep."""
    if isinstance(value, BlobRef):
        yield _Reference(*value, inside)
    elif isinstance(value, dict):
        is_value = isinstance(value, MediaValue) and value.get("_type") == _VALUE
        for inner in value.values():
            yield from _references(inner, inside=is_value)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner, inside=inside)


def _inner(blobs: Blobs, ref: _Reference, wanted: dict[Key, bool], keeps: bool) -> bool:
    """Notes what a value names that is stored apart itself; False where it cannot be read."""
    try:
        stored = raw_of(blobs.read(BlobRef(ref.stream, ref.number, ref.size)))
        values = decode_map(stored.data, bytes_max=max(ref.size, 1))
    except Error:
        return False
    for inner in _references(values):
        one = (inner.stream, inner.number)
        wanted[one] = wanted.get(one, False) or keeps
        # A value that was taken apart once is not taken apart again: what it holds is no such value.
        if inner.inside:
            return False
    return True


def lying_in(files: Files, segments: Iterable[Sealed]) -> Lying:
    """Looks at the headers of segments, and at the metadata of blobs without bytes.

    Raises:
        OSError: One of them cannot be opened.
        DamageError: A blob without bytes cannot be read, so that nobody knows whose bytes it needs.
    """
    found = Lying(Counter(), {}, set(), {})
    stay = set[Key]()
    for segment in segments:
        reader = SegmentReader(files, segment.path)
        try:
            for block in reader.blocks:
                if block.kind != KIND_BLOB:
                    continue
                key = (block.stream, block.first)
                found.sizes[key] += block.end - block.offset
                found.where.setdefault(key, set()).add(segment.name)
                meta = {} if block.step_max else parse_chunk(block, reader.payload(block)).meta or {}
                (found.gone if REMOVED in meta else stay).add(key)
                same = meta.get(SAME)
                if type(same) is list and [type(number) for number in same] == [int, int]:
                    found.same[key] = (same[0], same[1])
        finally:
            reader.close()
    found.gone.difference_update(stay)
    return found


def removals(lying: Lying, uses: Uses, wish: Wish, ended: Collection[int]) -> Removals:
    """Decides what is removed. Pure.

    Args:
        ended: Streams that have said everything, so that what no row of theirs names never will be.
    """
    there = lying.sizes.keys() - lying.gone
    unwanted = {key for key in there if uses.wanted.get(key) is False}
    unnamed = {key for key in there if key not in uses.wanted and key[0] in ended} if uses.is_complete else set()
    unnamed -= {lying.same[key] for key in there & lying.same.keys() if key not in unnamed | unwanted}
    total = sum(lying.sizes.values())
    if not wish.unnamed and sum(lying.sizes[key] for key in unnamed) <= UNNAMED_RATIO * total:
        unnamed = set()
    doomed = unwanted | unnamed
    shared = doomed & {lying.same[key] for key in there & lying.same.keys() if key not in doomed}
    texts = dict.fromkeys(unwanted - shared, f"by retention ({wish.words}) on {wish.when}")
    texts |= dict.fromkeys(unnamed - shared, f"because no row named it, on {wish.when}")
    return Removals(texts, shared)


class Retention:
    """The transform that puts tombstones; what stays goes on to `then`."""

    def __init__(self, texts: dict[Key, str], then: Transform) -> None:
        self._texts = texts
        self._then = then

    def __call__(self, ref: BlobRef, stored: StoredBlob) -> Result:
        text = self._texts.get((ref.stream, ref.number))
        if text is None or REMOVED in stored.meta:
            return self._then(ref, stored)
        kept: dict[str, Any] = {name: stored.meta[name] for name in ("media", "key", "step") if name in stored.meta}
        return StoredBlob(b"", {**kept, REMOVED: text})
