"""Rewrites a run's sealed media segments into fewer, better ones: encoded, without doubles, without what was dropped.

Life of a rewriting: the blobs of some sealed segments are read one at a time, given to a `Transform`, and written into
drafts: segments of a writer of its own, whose names no reader looks at. They are forced, read back, and only then given
their names. The last one says in a META map which segments it `replaces`, and gets its name when the others have theirs
for good. So whatever has a name was forced, and what a crash or a disk cut short is a draft (`remove_drafts`). The old
ones are removed `KEPT_SECONDS` later, so that whoever reads them can finish (`remove_replaced`); whoever comes after a
crash finds the same words on the disk and goes on from there.

Of several copies of a blob one that is whole is taken, and the others are left. Where none is (damage, a chunk whose others
lie elsewhere), all are copied as they are: nothing is lost here that could be read before.

Memory: one blob, raw and as it becomes. Only one process of a host rewrites in a store at a time (`hold`); two hosts at once
make copies, which the next rewriting joins.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Union

from sdk import clock, platform
from sdk.errors import DamageError, Error
from sdk.files import Files, sync_names
from sdk.ids import hex_u64, random_u64
from sdk.limits import MIB
from sdk.location import StoreIdentity, check_store
from sdk.record import BlobRef, StoredBlob, encode_map
from sdk.segment.blobs import CHUNK_BYTES, Chunk, append_blob, offsets, parse_chunk, ref_of
from sdk.segment.check import check_segment
from sdk.segment.format import KIND_BLOB, KIND_META, Block, FileHeader
from sdk.segment.naming import (
    MEDIA,
    RUN_LEVELS,
    RUNS,
    SUSPECT_SUFFIX,
    SegmentName,
    format_draft,
    format_segment,
    machine_tag,
    parse_draft,
    parse_segment,
)
from sdk.segment.reader import SegmentReader, checksum_trouble
from sdk.segment.writer import SegmentWriter
from sdk.transport import lock_path

# So long a replaced segment stays, for those who read it.
KEPT_SECONDS = 60.0
# A draft of another host that is older than this is nobody's any more. Its rewriter, if it lives, loses no more than the work.
_DRAFT_SECONDS = 86_400.0
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
        created_ns: When its file was begun.
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

    @property
    def ended_ns(self) -> int:
        """When the rewriting that made it was done."""
        told = self.told.get("ended_ns")
        return told if type(told) is int else self.created_ns


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
        paths = target.finish([[hex_u64(source.name.writer), source.name.number] for source in sources])
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


class _Target:
    """The new segments while they are written."""

    def __init__(
        self,
        files: Files,
        store: StoreIdentity,
        directory: str,
        run_id: str,
        tell: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._files = files
        self._store = store
        self._directory = directory
        self._tell = tell
        self._writer = random_u64()
        origin = platform.identity()
        self._machine = str(origin["machine"])
        self._opening = {"run": run_id, "writer": {"kind": "rewrite", **origin}}
        self._next_block = 0
        self._segment: SegmentWriter | None = None
        self._digests: list[list[Any]] = []
        # Numbers of blocks in the open segment that were damaged before.
        self._damaged: list[int] = []
        # What is there now, to be removed after trouble.
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

    def copy(self, chunks: Chunks) -> None:
        """Copies chunks that make no whole blob as they are, readable or not; those that are the same once."""
        done = set()
        for reader, block in (place for places in chunks.values() for place in places):
            stored = reader.bytes_at(block.start, block.stored_size)
            same = block.step_min, block.payload_crc, zlib.crc32(stored)
            if same not in done:
                copied = self._open().copy(block, stored)
                done.add(same)
                if checksum_trouble(copied, stored) is not None:
                    self._damaged.append(copied.number)

    def _open(self) -> SegmentWriter:
        """The segment that takes the next blob."""
        if self._segment is not None and self._segment.size >= FILE_BYTES_MAX:
            self._end([])
        if self._segment is None:
            number = len(self._paths)
            header = FileHeader(self._store.id, self._writer, number, clock.wall_ns())
            name = format_draft(SegmentName(self._writer, number, MEDIA), self._machine)
            path = os.path.join(self._directory, name)
            self._segment = SegmentWriter.create(self._files, path, header, first_block_number=self._next_block)
            self._paths.append(path)
            self._segment.append_map(KIND_META, self._opening)
        return self._segment

    def _end(self, replaces: list[list[Any]]) -> None:
        """Seals the open segment and forces it."""
        segment = self._open() if self._segment is None else self._segment
        told = {**self._tell(), "replaces": replaces, "ended_ns": clock.wall_ns(), "digests": self._digests}
        segment.append_map(KIND_META, {**told, "damaged": self._damaged} if self._damaged else told)
        self._digests, self._damaged = [], []
        segment.seal(close=False)
        self._next_block = segment.next_block_number
        segment.sync()
        segment.close()
        self._segment = None

    def finish(self, replaces: list[list[Any]]) -> list[str]:
        """Ends the last segment, reads all of them back, gives them their names; their paths.

        Raises:
            OSError, DamageError: It is not as it should be, and nothing is replaced by it.
        """
        self._end(replaces)
        for path in self._paths:
            trouble = _new_damage(self._files, path)
            if trouble is not None:
                raise DamageError(f"what was rewritten cannot be read back from {path!r}: {trouble}")
        last = len(self._paths) - 1
        for number, draft in enumerate(self._paths):
            if number == last > 0:
                # Race: a power loss may keep the later of two names and lose the earlier one.
                sync_names(self._files, self._directory, RUN_LEVELS)
            path = os.path.join(self._directory, format_segment(SegmentName(self._writer, number, MEDIA)))
            self._files.rename(draft, path)
            self._paths[number] = path
        # From here on nothing may be undone: whoever looks may remove what was replaced.
        made, self._paths = self._paths, []
        sync_names(self._files, self._directory, RUN_LEVELS)
        return made

    def abandon(self) -> None:
        """After trouble: removes what is there."""
        if self._segment is not None:
            with contextlib.suppress(OSError):
                self._segment.close()
            self._segment = None
        for path in self._paths:
            with contextlib.suppress(OSError):
                self._files.remove(path)


def remove_drafts(files: Files, directory: str) -> None:
    """Removes what rewritings of this machine that died left unfinished: their sources are all there. Holds: `hold`."""
    machine = platform.machine_id()
    for entry, _, modified in files.entries(directory):
        whose = parse_draft(entry)
        if whose is not None and (whose == machine_tag(machine) or clock.wall_ns() / 1e9 - modified > _DRAFT_SECONDS):
            with contextlib.suppress(OSError):
                files.remove(os.path.join(directory, entry))


def remove_replaced(files: Files, directory: str, now_ns: int, *, kept_seconds: float = KEPT_SECONDS) -> int:
    """Removes segments that others replace for long enough; how many must wait.

    The replacing one is looked at first, every byte of it: a disk may have lost what it had promised.
    """
    left = {segment.name: segment for segment in _all_sealed(files, directory)}
    waiting, checked = 0, dict[SegmentName, bool]()
    for segment in list(left.values()):
        for name in sorted(segment.replaces & left.keys()):
            # A clock that was set back says nothing, and nobody should wait for it for years.
            if abs(now_ns - segment.ended_ns) < kept_seconds * 1e9:
                waiting += 1
                continue
            if segment.name not in checked:
                checked[segment.name] = _is_good(files, directory, segment, left)
            if checked[segment.name] and not _is_needed(files, directory, name, left):
                with contextlib.suppress(OSError):
                    files.remove(left[name].path)
                    del left[name]
                    files.remove(os.path.join(directory, format_segment(name)) + SUSPECT_SUFFIX)
    return waiting


def _is_good(files: Files, directory: str, segment: MediaSegment, left: Mapping[SegmentName, MediaSegment]) -> bool:
    """Whether all files of a rewriting are whole; the last one replaces. That they have names says that they were forced."""
    for number in range(segment.name.number + 1):
        name = segment.name._replace(number=number)
        if name not in left:
            return False
        try:
            if _new_damage(files, left[name].path) is not None:
                return False
        except OSError:
            return False
    return _names_are_safe(files, directory)


def _new_damage(files: Files, path: str) -> str | None:
    """What is wrong with a rewritten segment, beside what it says was damaged before.

    Raises:
        OSError: It is gone.
    """
    checked = check_segment(files, path)
    if not checked.sealed:
        return "it is not sealed"
    if not checked.findings:
        return None
    reader = SegmentReader(files, path)
    try:
        damaged = _described(reader, path, SegmentName(0, 0, MEDIA), 0).told.get("damaged")
    except Error as error:
        return error.message
    finally:
        reader.close()
    known = set(damaged) if isinstance(damaged, list) else set()
    new = (found for found in checked.findings if found.block is None or found.block.number not in known)
    return next((found.text for found in new), None)


def _is_needed(files: Files, directory: str, name: SegmentName, left: Mapping[SegmentName, MediaSegment]) -> bool:
    """Whether a segment of that writer still keeps another one replaced.

    Without it, what it replaced would count again: be encoded once more, or, if it was removed on purpose, be back.
    """
    makers = [segment for segment in left.values() if segment.name.writer == name.writer]
    if any(segment.replaces & left.keys() for segment in makers):
        return True
    # Race: a power loss may keep the later of two removals and lose the earlier one.
    return any(segment.replaces for segment in makers) and not _names_are_safe(files, directory)


def _names_are_safe(files: Files, directory: str) -> bool:
    try:
        sync_names(files, directory, RUN_LEVELS)
    except OSError:
        return False
    return True
