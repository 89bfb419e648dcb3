"""Rewrites a run's sealed media segments into fewer, better ones: encoded, without doubles, without what was dropped.

Life of a rewriting: the blobs of some sealed segments are read one at a time, given to a `Transform`, and written into a new
segment of a writer of its own. Its last block before the index is a META map that says which segments it `replaces`; so a
new segment that a crash cut says nothing of the kind, and holds copies that do no harm. It is read back and forced, and
only then, `KEPT_SECONDS` later, so that whoever reads the old ones can finish, are they removed. Whoever comes after a
crash finds the same words on the disk and goes on from there (`remove_replaced`).

What is not a whole, readable blob (damage, a chunk whose others lie elsewhere) is copied as it is: nothing is lost here
that could be read before.

Memory: one blob, raw and as it becomes. Only one process of a host rewrites in a store at a time (`hold`); two hosts at once
make copies, which the next rewriting joins.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Union

from sdk import clock, platform
from sdk.errors import DamageError, Error
from sdk.files import Files, sync_names
from sdk.ids import hex_u64, random_u64
from sdk.limits import MIB
from sdk.location import StoreIdentity, check_store
from sdk.record import BlobRef, StoredBlob, encode_map
from sdk.segment.blobs import CHUNK_BYTES, append_blob, offsets, parse_chunk, ref_of
from sdk.segment.check import check_segment
from sdk.segment.format import KIND_BLOB, KIND_META, Block, FileHeader
from sdk.segment.naming import MEDIA, RUN_LEVELS, RUNS, SUSPECT_SUFFIX, SegmentName, format_segment, parse_segment
from sdk.segment.reader import SegmentReader
from sdk.segment.writer import SegmentWriter
from sdk.transport import lock_path

# So long a replaced segment stays, for those who read it.
KEPT_SECONDS = 60.0
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


class MediaSegment(NamedTuple):
    """A sealed media segment of a run.

    Attributes:
        created_ns: When its file was made.
        replaces: Names of the segments whose blobs are in it.
        told: What its last META map says; empty for those that trainers and daemons wrote.
    """

    path: str
    name: SegmentName
    size: int
    created_ns: int
    blobs: int
    replaces: frozenset[SegmentName]
    told: dict[str, Any]

    @property
    def is_raw(self) -> bool:
        """Whether no rewriting made it."""
        return "replaces" not in self.told


class Report(NamedTuple):
    """What a rewriting did."""

    written: list[str]
    blobs: int
    dropped: int
    bytes_before: int
    bytes_after: int


def hold(store: str) -> platform.HeldLock | None:
    """The right to rewrite in a store on this host; None: another process does."""
    return platform.hold_lock(lock_path(store).removesuffix(".lock") + ".rewrite")


def has_media(files: Files, store: str) -> bool:
    """Whether any run of a store has a media segment.

    Raises:
        OSError: The store cannot be read.
    """
    runs = os.path.join(store, RUNS)
    for run, _, _ in files.entries(runs):
        for entry, _, _ in files.entries(os.path.join(runs, run)):
            name = parse_segment(entry)
            if name is not None and name.holds == MEDIA:
                return True
    return False


def sealed_media(files: Files, directory: str) -> list[MediaSegment]:
    """The sealed media segments of a run, oldest first, but for those that another one replaces.

    Raises:
        OSError: The directory cannot be read.
    """
    found = _all_sealed(files, directory)
    replaced = {name for segment in found for name in segment.replaces}
    return [segment for segment in found if segment.name not in replaced]


def _all_sealed(files: Files, directory: str) -> list[MediaSegment]:
    found = []
    for entry, size, _ in files.entries(directory):
        name = parse_segment(entry)
        if name is None or name.holds != MEDIA:
            continue
        path = os.path.join(directory, entry)
        with contextlib.suppress(OSError, Error):
            reader = SegmentReader(files, path)
            try:
                if reader.sealed:
                    found.append(_described(reader, path, name, size))
            finally:
                reader.close()
    return sorted(found, key=lambda segment: (segment.created_ns, segment.name))


def _described(reader: SegmentReader, path: str, name: SegmentName, size: int) -> MediaSegment:
    told: dict[str, Any] = {}
    maps = [block for block in reader.blocks if block.kind == KIND_META]
    if len(maps) > 1:  # the first says who writes, the last what was done
        with contextlib.suppress(DamageError):
            told = reader.read_map(maps[-1])
    replaces = set()
    for entry in told["replaces"] if isinstance(told.get("replaces"), list) else ():
        with contextlib.suppress(ValueError, TypeError):
            writer, number = entry
            replaces.add(SegmentName(int(writer, 16), int(number), MEDIA))
    blobs = sum(block.kind == KIND_BLOB and block.step_min == 0 for block in reader.blocks)
    return MediaSegment(path, name, size, reader.header.created_ns, blobs, frozenset(replaces), told)


def identity(meta: Mapping[str, Any]) -> bytes:
    """What two blobs have in common whose bytes are stored once: the digest of the raw bytes, and how they are to be read.

    Why not the digest alone: zeros of another shape, or to become another kind of file, are another value. What encoding
    adds does not count, so it is the same before and after.
    """
    told = {str(name): meta[name] for name in sorted(meta, key=str) if name not in _NOT_OF_VALUE}
    return hashlib.sha256(encode_map(told)).digest()


def digests_of(segments: Iterable[MediaSegment]) -> dict[bytes, tuple[int, int]]:
    """Identity of a value to (stream, number) of the blob that has its bytes, as far as the segments note them."""
    found: dict[bytes, tuple[int, int]] = {}
    for segment in segments:
        for entry in segment.told.get("digests") or ():
            with contextlib.suppress(ValueError, TypeError):
                stream, number, digest = entry
                if type(digest) is bytes:
                    found.setdefault(digest, (stream, number))
    return found


def rewrite(
    files: Files,
    store: StoreIdentity,
    directory: str,
    run_id: str,
    sources: list[MediaSegment],
    transform: Transform,
    tell: Callable[[], Mapping[str, Any]] = dict,
) -> Report:
    """Writes the blobs of `sources` again, each as `transform` says. The caller holds the right to (`hold`).

    Args:
        tell: What else the new segment's last map says; asked when all blobs are written.

    Raises:
        OSError: The disk refuses; nothing was replaced.
        DamageError: What was written cannot be read back; nothing was replaced.
    """
    check_store(store, files)
    with contextlib.ExitStack() as stack:
        readers = [SegmentReader(files, source.path) for source in sources]
        for reader in readers:
            stack.callback(reader.close)
        target = _Target(files, store, directory, run_id)
        stack.callback(target.abandon)
        blobs = dropped = 0
        for ref, chunks in _gathered(readers):
            stored = _read(ref, chunks)
            if stored is None:
                target.copy(chunks)
                continue
            result = transform(ref, stored)
            blobs += 1
            dropped += result is None
            target.put(ref, result)
        replaces = [[hex_u64(source.name.writer), source.name.number] for source in sources]
        paths = target.finish({**tell(), "replaces": replaces})
    after = sum(size for entry, size, _ in files.entries(directory) if os.path.join(directory, entry) in paths)
    return Report(paths, blobs, dropped, sum(source.size for source in sources), after)


Chunks = dict[int, tuple[SegmentReader, Block]]


def _gathered(readers: list[SegmentReader]) -> Iterable[tuple[BlobRef, Chunks]]:
    """Each blob with its chunks by offset, the first copy of each; in the order in which they were written."""
    found: dict[BlobRef, Chunks] = {}
    for reader in readers:
        for block in reader.blocks:
            if block.kind != KIND_BLOB:
                continue
            with contextlib.suppress(DamageError):
                found.setdefault(ref_of(block), {}).setdefault(block.step_min, (reader, block))
    return found.items()


def _read(ref: BlobRef, chunks: Chunks) -> StoredBlob | None:
    """The blob; None where a chunk is missing or cannot be read."""
    if ref.size > len(chunks) * CHUNK_BYTES:
        return None
    data, meta = bytearray(ref.size), None
    try:
        for offset in offsets(ref.size):
            reader, block = chunks[offset]
            chunk = parse_chunk(block, reader.payload(block))
            meta = chunk.meta if offset == 0 else meta
            if len(chunk.data) != min(CHUNK_BYTES, ref.size - offset):
                return None
            data[offset : offset + len(chunk.data)] = chunk.data
    except (DamageError, KeyError):
        return None
    return StoredBlob(memoryview(data).toreadonly(), meta) if meta is not None else None


class _Target:
    """The new segments while they are written."""

    def __init__(self, files: Files, store: StoreIdentity, directory: str, run_id: str) -> None:
        self._files = files
        self._store = store
        self._directory = directory
        self._writer = random_u64()
        self._opening = [(KIND_META, {"run": run_id, "writer": {"kind": "rewrite", **platform.identity()}})]
        self._number = self._next_block = 0
        self._segment: SegmentWriter | None = None
        self._digests: list[list[Any]] = []
        self._paths: list[str] = []

    def put(self, ref: BlobRef, result: Result) -> None:
        if result is None:
            return
        segment = self._open()
        if isinstance(result, Same):
            meta = {**result.meta, "same": [result.stream, result.number]}
            append_blob(segment, BlobRef(ref.stream, ref.number, 0), b"", meta)
        else:
            if "digest" in result.meta and len(self._digests) < _DIGESTS_MAX:
                self._digests.append([ref.stream, ref.number, identity(result.meta)])
            append_blob(segment, BlobRef(ref.stream, ref.number, len(result.data)), result.data, result.meta)
        if segment.size >= FILE_BYTES_MAX:
            self._seal({})

    def copy(self, chunks: Chunks) -> None:
        """Copies chunks that make no whole blob as they are, readable or not."""
        for reader, block in chunks.values():
            self._open().copy(block, reader.bytes_at(block.start, block.stored_size))

    def _open(self) -> SegmentWriter:
        if self._segment is None:
            header = FileHeader(self._store.id, self._writer, self._number, clock.wall_ns())
            self._segment, number = SegmentWriter.begin(
                self._files, self._directory, header, self._opening, first_block_number=self._next_block, holds=MEDIA
            )
            self._number = number + 1
            self._paths.append(self._segment.path)
        return self._segment

    def _seal(self, told: Mapping[str, Any]) -> None:
        segment = self._open()
        segment.append_map(KIND_META, {**told, "digests": self._digests})
        self._digests = []
        segment.seal(close=False)
        self._next_block = segment.next_block_number
        segment.sync()
        segment.close()
        self._segment = None

    def finish(self, told: Mapping[str, Any]) -> list[str]:
        """Seals, forces and reads back everything; the paths.

        Raises:
            OSError, DamageError: It is not as it should be, and nothing is replaced by it.
        """
        self._seal(told)
        sync_names(self._files, self._directory, RUN_LEVELS)
        for path in self._paths:
            checked = check_segment(self._files, path)
            if checked.findings or not checked.sealed:
                what = checked.findings[0].text if checked.findings else "it is not sealed"
                self._remove()
                raise DamageError(f"what was rewritten cannot be read back from {path!r}: {what}")
        return self._paths

    def abandon(self) -> None:
        """After trouble: removes what was begun."""
        if self._segment is not None:
            with contextlib.suppress(OSError):
                self._segment.close()
            self._segment = None
            self._remove()

    def _remove(self) -> None:
        for path in self._paths:
            with contextlib.suppress(OSError):
                self._files.remove(path)


def remove_drafts(files: Files, directory: str) -> None:
    """Removes what rewritings of this machine left unsealed that died: their sources are all there. Holds: `hold`."""
    machine = platform.machine_id()
    for entry, _, _ in files.entries(directory):
        name = parse_segment(entry)
        if name is None or name.holds != MEDIA:
            continue
        path = os.path.join(directory, entry)
        with contextlib.suppress(OSError, Error):
            reader = SegmentReader(files, path)
            try:
                first = reader.blocks[0] if reader.blocks and not reader.sealed else None
                writer = reader.read_map(first).get("writer") if first is not None else None
            finally:
                reader.close()
            if (
                type(writer) is dict
                and writer.get("kind") == "rewrite"
                and machine
                and writer.get("machine") == machine
            ):
                files.remove(path)


def remove_replaced(files: Files, directory: str, now_ns: int, *, kept_seconds: float = KEPT_SECONDS) -> int:
    """Removes segments that others replace for long enough; how many must wait.

    The replacing one is looked at first, every byte of it: its writer may have died before it was on the disk.
    """
    segments = {segment.name: segment for segment in _all_sealed(files, directory)}
    waiting, checked = 0, dict[SegmentName, bool]()
    for segment in segments.values():
        for name in segment.replaces:
            if name not in segments:
                continue
            if now_ns - segment.created_ns < kept_seconds * 1e9:
                waiting += 1
                continue
            if segment.name not in checked:
                checked[segment.name] = _is_good(files, directory, segment, segments)
            if checked[segment.name]:
                for path in (segments[name].path, segments[name].path + SUSPECT_SUFFIX):
                    with contextlib.suppress(OSError):
                        files.remove(path)
    return waiting


def _is_good(files: Files, directory: str, segment: MediaSegment, segments: Mapping[SegmentName, MediaSegment]) -> bool:
    """Whether all files of a rewriting are whole and on the disk; the last one replaces."""
    for number in range(segment.name.number + 1):
        name = segment.name._replace(number=number)
        if name not in segments:
            return False
        path = os.path.join(directory, format_segment(name))
        try:
            file = files.open(path, write=True)
            try:
                file.sync()
            finally:
                file.close()
            sync_names(files, directory, RUN_LEVELS)
            if check_segment(files, path).findings:
                return False
        except OSError:
            return False
    return True
