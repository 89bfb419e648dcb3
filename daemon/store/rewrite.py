"""Rewrites a run's sealed media segments into fewer, better ones: encoded, without doubles, without what was dropped.

The blobs of some segments are read one at a time, given to a `Transform`, and written into new ones, which replace them
(`daemon.store.replacing`). Of several copies of a blob one that is whole is taken, and the others are left. Where none is
(damage, a chunk whose others lie elsewhere), all are copied as they are: nothing is lost here that could be read before.

Memory: one blob, raw and as it becomes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Union

from daemon.store.replacing import Sealed, Target, sealed
from sdk.errors import DamageError
from sdk.files import Files
from sdk.limits import MIB
from sdk.location import StoreIdentity, check_store
from sdk.record import BlobRef, StoredBlob, encode_map
from sdk.segment.blobs import CHUNK_BYTES, Chunk, append_blob, offsets, parse_chunk, ref_of
from sdk.segment.format import KIND_BLOB, Block
from sdk.segment.naming import MEDIA
from sdk.segment.reader import SegmentReader, checksum_trouble
from sdk.segment.writer import SegmentWriter

# Limit: one new file. A run of 4 GiB of encoded media is four files.
FILE_BYTES_MAX = 1024 * MIB
# Limit: digests that a segment notes; beyond it later equal blobs are stored again.
_DIGESTS_MAX = 100_000
# What a blob says of where it was logged, and what encoding adds.
_NOT_OF_VALUE = frozenset({"key", "step", "encoding", "raw_size", "statistics", "encode_error", "encode_missing"})


class Same(NamedTuple):
    """A blob's bytes are those of another one; `meta`: what it says beside that."""

    stream: int
    number: int
    meta: dict[str, Any]


# What becomes of a blob: other bytes, a reference to an equal one, or None: dropped without a trace.
Result = Union[StoredBlob, Same, None]
Transform = Callable[[BlobRef, StoredBlob], Result]


class Report(NamedTuple):
    """What a rewriting did."""

    written: list[str]
    blobs: int
    dropped: int
    bytes_before: int
    bytes_after: int


def sealed_media(files: Files, directory: str) -> list[Sealed]:
    """`daemon.store.replacing.sealed` of media segments."""
    return sealed(files, directory, MEDIA)


def identity(meta: Mapping[str, Any]) -> bytes:
    """What two blobs have in common whose bytes are stored once: the digest of the raw bytes, and how they are to be read.

    Why not the digest alone: zeros of another shape, or to become another kind of file, are another value. What encoding
    adds does not count, so it is the same before and after.
    """
    told = {str(name): meta[name] for name in sorted(meta, key=str) if name not in _NOT_OF_VALUE}
    return hashlib.sha256(encode_map(told)).digest()


def rewrite(
    files: Files,
    store: StoreIdentity,
    directory: str,
    run_id: str,
    sources: list[Sealed],
    transform: Transform,
    tell: Callable[[], Mapping[str, Any]] = dict,
) -> Report:
    """Writes the blobs of `sources` again, each as `transform` says. The caller holds the right to (`hold`).

    Args:
        tell: What else the last map of each new segment says, of all blobs until then.

    Raises:
        OSError: The disk refuses; nothing was replaced.
        DamageError: What was written cannot be read back; nothing was replaced.
    """
    check_store(store, files)
    with contextlib.ExitStack() as stack:
        readers = []
        for source in sources:
            readers.append(SegmentReader(files, source.path))
            stack.callback(readers[-1].close)
        target = _Target(files, store, directory, run_id, tell)
        stack.callback(target.abandon)
        blobs = dropped = 0
        for ref, chunks in gathered(readers).items():
            stored = read_blob(ref, chunks)
            if stored is None:
                target.copy(chunks)
                continue
            result = transform(ref, stored)
            blobs += 1
            dropped += result is None
            target.put(ref, result)
            del stored, result  # else they stay until the next one has been read
        paths = target.finish(sources)
    after = sum(size for entry, size, _ in files.entries(directory) if os.path.join(directory, entry) in paths)
    return Report(paths, blobs, dropped, sum(source.size for source in sources), after)


# Where the chunks of a blob lie, by their offset in it.
Chunks = dict[int, list[tuple[SegmentReader, Block]]]


def gathered(readers: Iterable[SegmentReader]) -> dict[BlobRef, Chunks]:
    """Each blob with all copies of its chunks; in the order in which they were written."""
    found: dict[BlobRef, Chunks] = {}
    for reader in readers:
        for block in reader.blocks:
            if block.kind == KIND_BLOB:
                with contextlib.suppress(DamageError):
                    found.setdefault(ref_of(block), {}).setdefault(block.step_min, []).append((reader, block))
    return found


def read_blob(ref: BlobRef, chunks: Chunks) -> StoredBlob | None:
    """The first copy that is whole; None: there is none.

    As in `sdk.reader.blobs`: raw bytes may come from several segments, encoded ones from that of their metadata only.
    """
    if ref.size > len(chunks) * CHUNK_BYTES:  # Why first: the size is somebody's word
        return None
    for reader, block in chunks.get(0, ()):
        first = _chunk(ref, reader, block)
        if first is None or first.meta is None:
            continue
        data = bytearray(ref.size)
        for offset in offsets(ref.size):
            places = chunks.get(offset, []) if offset else [(reader, block)]
            if "encoding" in first.meta:
                places = [place for place in places if place[0] is reader]
            found = first if not offset else next(filter(None, (_chunk(ref, *place) for place in places)), None)
            if found is None:
                break
            data[offset : offset + len(found.data)] = found.data
        else:
            return StoredBlob(memoryview(data).toreadonly(), first.meta)
    return None


def _chunk(ref: BlobRef, reader: SegmentReader, block: Block) -> Chunk | None:
    """One chunk; None where it cannot be read, or is not what its header says."""
    try:
        chunk = parse_chunk(block, reader.payload(block))
    except DamageError:
        return None
    return chunk if len(chunk.data) == min(CHUNK_BYTES, ref.size - block.step_min) else None


class _Target(Target):
    """The new media segments while they are written."""

    def __init__(
        self, files: Files, store: StoreIdentity, directory: str, run_id: str, tell: Callable[[], Mapping[str, Any]]
    ) -> None:
        super().__init__(files, store, directory, run_id, holds=MEDIA, bytes_max=FILE_BYTES_MAX)
        self._tell = tell
        self._digests: list[list[Any]] = []

    def told(self, segment: SegmentWriter) -> Mapping[str, Any]:
        digests, self._digests = self._digests, []
        return {**self._tell(), "digests": digests}

    def put(self, ref: BlobRef, result: Result) -> None:
        if result is None:
            return
        segment = self.open()
        if isinstance(result, Same):
            meta = {**result.meta, "same": [result.stream, result.number]}
            append_blob(segment, BlobRef(ref.stream, ref.number, 0), b"", meta)
        else:
            if "digest" in result.meta and len(self._digests) < _DIGESTS_MAX:
                self._digests.append([ref.stream, ref.number, identity(result.meta)])
            append_blob(segment, BlobRef(ref.stream, ref.number, len(result.data)), result.data, result.meta)

    def copy(self, chunks: Chunks) -> None:
        """Copies chunks that make no whole blob as they are, readable or not; those that are the same once."""
        done = set()
        for reader, block in (place for places in chunks.values() for place in places):
            stored = reader.bytes_at(block.start, block.stored_size)
            same = block.step_min, block.payload_crc, zlib.crc32(stored)
            if same not in done:
                copied = self.open().copy(block, stored)
                done.add(same)
                if checksum_trouble(copied, stored) is not None:
                    self.damaged.append(copied.number)
