"""Blobs of a run: where each one's bytes lie among its media segments, and reading them.

The index comes from the headers of blocks alone; payloads are read, and their checksums looked at, when somebody wants
them. Sealed segments are looked at once, unsealed ones again when they have grown. A blob may be there several times
(a replay after a crash, a file that was just rewritten) and its chunks in several files (what an fsync lost was written
again): of each chunk the first readable copy counts. Every size comes from a file that may be hostile, so nothing is
allocated before all chunks that make it up were found.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .. import compression
from ..errors import DamageError, Error, NotFoundError
from ..files import File, Files
from ..ids import hex_u64
from ..record import BlobRef, StoredBlob
from ..segment.blobs import CHUNK_BYTES, META_BYTES_MAX, Chunk, offsets, parse_chunk, ref_of
from ..segment.format import BLOCK_HEADER_SIZE, FILE_HEADER_SIZE, KIND_BLOB, Block
from ..segment.headers import parse_block_header
from ..segment.naming import MEDIA, parse_segment
from ..segment.reader import SegmentReader, checksum_trouble

# What a blob's metadata says when its bytes are those of another: [stream, number] of that one.
SAME = "same"
# What it says when its bytes were removed on purpose: why and when, for people.
REMOVED = "removed"

# Limit: a chunk, its metadata and the size of that.
_PAYLOAD_BYTES_MAX = CHUNK_BYTES + META_BYTES_MAX + 4


class Place(NamedTuple):
    """Where a chunk lies: the segment, the offset of its block there, and which part of a blob of `size` bytes it is."""

    source: str
    at: int
    offset: int
    size: int


class _Source:
    """A media segment that was looked at. `seed`: of the checksums in it. `seen`: its size then."""

    __slots__ = ("is_sealed", "seed", "seen", "tail")

    def __init__(self) -> None:
        self.seen = -1
        self.seed = self.tail = 0
        self.is_sealed = False


class Blobs:
    """The blobs of the run in `directory`. Not thread-safe; holds no file open between calls; never writes.

    A blob costs about 400 bytes of memory here, or that for each 4 MiB of it.

    Attributes:
        lost: Why blobs are not there, by stream and number, as far as the run's gaps tell.
    """

    def __init__(self, files: Files, directory: str) -> None:
        self._files = files
        self._directory = directory
        self.lost: Mapping[tuple[int, int], str] = {}
        self._sources: dict[str, _Source] = {}
        self._places: dict[tuple[int, int], list[Place]] = {}

    def find(self, ref: BlobRef) -> bool:
        """Whether all of its chunks are there, by their headers; what shares another's bytes is there if that one is."""
        copies = self._copies(ref)
        if not copies:
            self._refresh()
            copies = self._copies(ref)
        if not copies or not ref.size or any(copy[0][0].size for copy in copies):
            return bool(copies)
        with contextlib.suppress(NotFoundError, DamageError):
            return bool(self.meta(ref))
        return False

    def removal(self, ref: BlobRef) -> str | None:
        """Why and when a blob's bytes were removed on purpose; None: they were not."""
        with contextlib.suppress(NotFoundError, DamageError):
            chunks = self._begin(ref.stream, ref.number, ref.size)
            chunks.close()
            text = chunks.meta.get(REMOVED)
            return str(text) if text is not None else None
        return None

    def read(self, ref: BlobRef) -> StoredBlob:
        """The stored bytes of a blob and what they say of themselves; one that shares another's bytes has those.

        Raises:
            NotFoundError: It is not there, or was removed.
            DamageError: No copy of it is whole.
        """
        meta, chunks, size = self._open(ref)
        with contextlib.closing(chunks):
            first = next(chunks)
            if len(first) == size:
                return StoredBlob(first, meta)
            data = bytearray(size)
            end = 0
            for chunk in (first, *chunks):
                data[end : end + len(chunk)] = chunk
                end += len(chunk)
        return StoredBlob(memoryview(data).toreadonly(), meta)

    def stream(self, ref: BlobRef) -> tuple[dict[str, Any], Chunks]:
        """As `read`, in portions of at most 4 MiB. The iterator raises as `read` does."""
        meta, chunks, _ = self._open(ref)
        return meta, chunks

    def meta(self, ref: BlobRef) -> dict[str, Any]:
        """What a blob says of itself; reads its first chunk.

        Raises:
            NotFoundError, DamageError: As `read`.
        """
        meta, chunks, _ = self._open(ref)
        chunks.close()
        return meta

    # -- reading ---------------------------------------------------------------------------------------------------------

    def _open(self, ref: BlobRef) -> tuple[dict[str, Any], Chunks, int]:
        """Metadata, the chunks, and the size of the stored bytes; "same" is followed once."""
        chunks = self._begin(ref.stream, ref.number, ref.size)
        meta, same = chunks.meta, chunks.meta.get(SAME)
        if REMOVED in meta:
            chunks.close()
            raise NotFoundError(f"{_name(ref)} was removed: {meta[REMOVED]!s:.200}")
        if same is not None:
            chunks.close()
            if type(same) is not list or [type(number) for number in same] != [int, int]:
                raise DamageError(f"{_name(ref)} says that it is the same as {same!r}")
            chunks = self._begin(same[0], same[1], ref.size)
            if SAME in chunks.meta or REMOVED in chunks.meta:
                chunks.close()
                raise DamageError(f"{_name(ref)} is the same as a blob that has no bytes either")
            meta = {**chunks.meta, **{name: meta[name] for name in ("key", "step") if name in meta}}
        raw_size = meta.get("raw_size") if "encoding" in meta else chunks.size
        if raw_size != ref.size:
            chunks.close()
            raise DamageError(f"{_name(ref)} has {raw_size!r} bytes, its row says {ref.size}")
        return meta, chunks, chunks.size

    def _begin(self, stream: int, number: int, size: int) -> Chunks:
        """The chunks of the first copy that begins well. A segment that is gone meanwhile was replaced: look again.

        Bytes that are there are read, whatever a tombstone says: it may be older than they are (a replay), or its segment so
        new that the one it replaces still stays. The same holds for a copy that has the bytes of another blob: two hosts that
        rewrote at once may each have kept the bytes of another of the two.
        """
        ref = BlobRef(stream, number, size)
        trouble: Exception | None = None
        for is_second in (False, True):
            if is_second or not self._copies(ref):
                self._refresh()
            tombstone: Chunks | None = None
            for copy in self._copies(ref):
                try:
                    chunks = Chunks(self, ref, copy)
                except (DamageError, OSError) as error:
                    trouble = error
                    continue
                if REMOVED not in chunks.meta and SAME not in chunks.meta:
                    return chunks
                chunks.close()
                if tombstone is None or SAME in chunks.meta:
                    tombstone = chunks
            if tombstone is not None:
                return tombstone
        if trouble is None:
            why = self.lost.get((stream, number))
            raise NotFoundError(f"{_name(ref)} is not stored" + (f": {why:.200}" if why is not None else ""))
        raise DamageError(f"cannot read {_name(ref)}: {trouble}") from trouble

    def _copies(self, ref: BlobRef) -> list[list[list[Place]]]:
        """The complete copies: for each chunk in order where it lies, those of one file first.

        An encoded copy has another size than the raw one.
        """
        first: list[Place] = []
        by_chunk: dict[tuple[int, int], list[Place]] = {}
        for place in self._places.get((ref.stream, ref.number), ()):
            if place.source not in self._sources:
                continue
            by_chunk.setdefault((place.size, place.offset), []).append(place)
            if place.offset == 0:
                first.append(place)
        copies = []
        for begin in first:
            # Why counted first: the size is somebody's word, and a list for a tebibyte would be long.
            if -(-max(begin.size, 1) // CHUNK_BYTES) > len(by_chunk):
                continue
            rest = [by_chunk.get((begin.size, offset), []) for offset in offsets(begin.size) if offset]
            if all(rest):
                source = begin.source
                copies.append([[begin], *(sorted(places, key=lambda place: place.source != source) for places in rest)])
        return copies

    def chunk(self, place: Place, key: tuple[int, int], opened: dict[str, File]) -> Chunk:
        """One chunk, checked. Files are opened into `opened`.

        Raises:
            OSError: It cannot be read, or its segment is gone.
            DamageError: It is not what was written there.
        """
        file = opened.get(place.source)
        if file is None:
            file = opened[place.source] = self._files.open(os.path.join(self._directory, place.source))
        seed = self._sources[place.source].seed
        block = parse_block_header(file.read(place.at, BLOCK_HEADER_SIZE), place.at, seed) or self._indexed(place)
        where = f"the block at {place.at} of {place.source!r}"
        if block is None or block.kind != KIND_BLOB or max(block.stored_size, block.raw_size) > _PAYLOAD_BYTES_MAX:
            raise DamageError(f"{where} is none of a blob")
        if (block.stream, block.first, block.step_min, block.step_max) != (*key, place.offset, place.size):
            raise DamageError(f"{where} is of another blob")
        stored = file.read(block.start, block.stored_size)
        trouble = checksum_trouble(block, stored)
        if trouble is not None:
            raise DamageError(f"{where} is damaged: {trouble}")
        chunk = parse_chunk(block, compression.decompress(block.codec, stored, block.raw_size))
        expected = min(CHUNK_BYTES, place.size - place.offset)
        if len(chunk.data) != expected:
            raise DamageError(f"{where} holds {len(chunk.data)} bytes of a blob, expected {expected}")
        return chunk

    def _indexed(self, place: Place) -> Block | None:
        """The header that stood there, as the segment's index knows it."""
        with contextlib.suppress(OSError, Error):
            reader = SegmentReader(self._files, os.path.join(self._directory, place.source))
            try:
                return next((block for block in reader.blocks if block.offset == place.at), None)
            finally:
                reader.close()
        return None

    # -- the index -------------------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Looks again at the directory and at segments that have grown."""
        try:
            entries = self._files.entries(self._directory)
        except OSError:
            return  # what was found before may still be readable
        # A file shorter than a segment's header is not there yet; this also keeps us from opening a FIFO or a device.
        listed = {name: size for name, size, _ in entries if _is_media(name) and size >= FILE_HEADER_SIZE}
        for name in self._sources.keys() - listed.keys():
            del self._sources[name]
        for name, size in listed.items():
            source = self._sources.get(name)
            if source is None or not (source.is_sealed or source.seen == size):
                self._look(name, size)

    def _look(self, name: str, size: int) -> None:
        try:
            reader = SegmentReader(self._files, os.path.join(self._directory, name))
        except Exception:
            # Why so broad and silent: hostile bytes provoke what they like, one bad file must not hide the others, and
            # `verify` tells what is wrong with it.
            return
        source = self._sources.setdefault(name, _Source())
        try:
            source.seed = reader.header.crc
            for block in reader.blocks:
                if block.kind != KIND_BLOB or block.offset < source.tail:
                    continue
                with contextlib.suppress(DamageError):
                    ref = ref_of(block)
                    place = Place(name, block.offset, block.step_min, ref.size)
                    self._places.setdefault((ref.stream, ref.number), []).append(place)
            source.seen, source.tail, source.is_sealed = size, reader.tail, reader.sealed
        finally:
            reader.close()


class Chunks(Iterator[memoryview]):
    """The chunks of one copy; the first is read at once, for its metadata. Ends, or `close`s, with no file open.

    Attributes:
        meta: What the blob says of itself.
        size: Of the stored bytes.
    """

    def __init__(self, blobs: Blobs, ref: BlobRef, copy: list[list[Place]]) -> None:
        self._blobs = blobs
        self._ref = ref
        self._copy = copy
        self._index = 0
        self._opened: dict[str, File] = {}
        self.size = copy[0][0].size
        try:
            # Of this copy's own file: the metadata of another may speak of other bytes.
            first = blobs.chunk(copy[0][0], (ref.stream, ref.number), self._opened)
        except BaseException:
            self.close()
            raise
        assert first.meta is not None
        self.meta = first.meta
        self._first: memoryview | None = first.data

    def __next__(self) -> memoryview:
        if self._index == len(self._copy):
            self.close()
            raise StopIteration
        places, index, self._index = self._copy[self._index], self._index, self._index + 1
        if index == 0:
            first, self._first = self._first, None
            assert first is not None
            return first
        if "encoding" in self.meta:
            source = self._copy[0][0].source
            places = [place for place in places if place.source == source]  # another file's may be encoded otherwise
        trouble: Exception | None = None
        for place in places:
            try:
                return self._blobs.chunk(place, (self._ref.stream, self._ref.number), self._opened).data
            except (DamageError, OSError, KeyError) as error:
                trouble = error
        self.close()
        raise DamageError(f"cannot read {_name(self._ref)} from byte {index * CHUNK_BYTES} on: {trouble}") from trouble

    def close(self) -> None:
        while self._opened:
            self._opened.popitem()[1].close()


def _is_media(name: str) -> bool:
    parsed = parse_segment(name)
    return parsed is not None and parsed.holds == MEDIA


def _name(ref: BlobRef) -> str:
    return f"blob {ref.number} of stream {hex_u64(ref.stream)} ({ref.size:,} bytes)"
