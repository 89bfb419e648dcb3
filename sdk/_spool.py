"""The spool: the segment that a trainer writes itself while no daemon takes its records.

Blobs go into a file of their own, also beside a daemon: those of private memory, which no daemon can read.

It is a segment of the run like any other (writer = the stream), so readers see it at once and nothing has to be carried
over later. Written by the sender's thread only: blocks are not compressed and nothing is decoded, so that the thread
keeps the GIL for microseconds. Bounded by `bytes_max`; sealed when the daemon is back or the run ends.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from . import clock, platform
from ._aside import holds_records, keep_ring
from .budget import Budget, Keeper
from .errors import DamageError, Error, StoreError
from .files import Buffer, Files, sync_names
from .ids import hex_u64, random_u64
from .journal.announcements import ArenaReader, announcements
from .journal.arena import remove_arena
from .journal.drain import drain, ring_paths
from .journal.salvage import Piece
from .limits import BLOCK_STORED_BYTES_MAX, REFUSED_SPOOL, SEGMENT_MEDIA_BYTES
from .location import StoreIdentity, check_store
from .record import HEADER_SIZE, KIND_ROW, BlobRef, walk
from .segment.blobs import append_blob, stored_blobs
from .segment.format import FLAG_HAS_META, FLAG_HAS_PIECES, KIND_GAP, KIND_META, KIND_ROWS, FileHeader
from .segment.naming import MEDIA, RUN_LEVELS, mark_suspect, run_path
from .segment.writer import SegmentWriter
from .wire.messages import BATCH_HAS_META, BATCH_HAS_PIECES
from .wire.session import Span

SEGMENT_BYTES = 64 << 20
# Limit: one block; a reader takes no larger one than `BLOCK_STORED_BYTES_MAX`, and a ring may be as large as somebody chose.
BLOCK_BYTES = BLOCK_STORED_BYTES_MAX // 4
_MEASURE_SECONDS = 0.01


def drain_orphans(
    files: Files,
    store: StoreIdentity,
    shared_memory_dir: str,
    trouble: Callable[[str, object], None] = lambda path, error: None,
) -> int:
    """Takes over the rings of this store's dead processes without a daemon, each into a segment of its own.

    Args:
        trouble: Gets the path of each ring that could not be drained, and why.

    Returns:
        How many rings were drained. One that cannot be drained now stays for the next daemon.
    """
    drained_count = 0
    for path in ring_paths(shared_memory_dir, platform.store_digest(store.path)):
        lock = platform.open_shared(path)
        if lock is None:
            continue
        try:
            drained_count += _drain_one(files, store, path, lock.descriptor)
        except (OSError, Error, KeyError, ValueError) as error:
            trouble(path, error)
        finally:
            lock.release()
    return drained_count


def _drain_one(files: Files, store: StoreIdentity, path: str, descriptor: int) -> bool:
    try:
        drained = drain(path, descriptor)
    except DamageError:
        if holds_records(descriptor):
            keep_ring(files, store, path, descriptor, None)
        os.unlink(path)
        return True
    identity, stream = drained.header.identity, drained.header.stream
    if identity.get("store") != store.id:
        return False
    origin = {"kind": "spool", **platform.identity(), "stream": hex_u64(stream)}
    run = str(identity["run"])
    if drained.damage is not None:
        keep_ring(files, store, path, descriptor, run)
    spool = Spool(files, store, run, random_u64(), bytes_max=2**63, origin=origin)
    with contextlib.closing(ArenaReader(path)) as arena:
        for piece in drained.pieces:
            _save_blobs(files, spool, arena, stream, piece)
    for piece in drained.pieces:
        for span in _cut(piece):
            records = memoryview(piece.records)[span.start : span.end]
            spool.append(stream, span, [records], BATCH_HAS_PIECES | BATCH_HAS_META)
    for gap in drained.gaps:
        spool.append_gap(stream, gap)
    if not spool.seal(sync=True) or not spool.media_is_safe:
        raise StoreError(
            f"what it holds is written to {store.path!r} but cannot be forced to the disk; it stays as well"
        )
    remove_arena(path)
    os.unlink(path)
    return True


def _save_blobs(files: Files, spool: Spool, arena: ArenaReader, stream: int, piece: Piece) -> None:
    """Stores what a dead trainer's arena holds of the blobs that `piece` announces; a GAP for each that is nowhere."""
    stored: set[tuple[int, int]] | None = None
    for announced in announcements(stream, piece.records):
        try:
            if announced.place is None:
                raise ValueError("its trainer stored it, or it died with it")
            data = memoryview(bytearray(announced.ref.size))
            arena.read(announced.place, data)
        except (OSError, ValueError, MemoryError):
            stored = stored_blobs(files, spool.directory) if stored is None else stored
            if (announced.ref.stream, announced.ref.number) not in stored:
                spool.append_gap(stream, announced.as_gap())
            continue
        spool.append_blob(announced.ref, data, announced.stored_meta())


def _cut(piece: Piece) -> Iterator[Span]:
    """Where the blocks of a piece begin and end: of `BLOCK_BYTES`, or of one larger record."""
    start = end = step = 0
    first = sequence = piece.first
    for record in walk(piece.records):
        after = end + HEADER_SIZE + len(record.payload)
        if after - start > BLOCK_BYTES and end > start:
            yield Span(start, end, first, sequence - 1, 0, step)
            start, first, step = end, sequence, 0
        end, sequence = after, sequence + 1
        if record.kind == KIND_ROW:
            step = max(step, record.step)
    if end > start:
        yield Span(start, end, first, sequence - 1, 0, step)


class Spool:
    """One writer's segments of one run, made lazily.

    Attributes:
        bytes_written: What all its segments take; at most `bytes_max`.
        records: Records in them.
        first: The first sequence in them; 0 before there is one.
        directory: The run's.
        is_safe: Every one of them is sealed and was forced to the disk.
    """

    def __init__(
        self,
        files: Files,
        store: StoreIdentity,
        run_id: str,
        writer: int,
        *,
        bytes_max: int,
        origin: Mapping[str, Any],
        budget: Budget | None = None,
    ) -> None:
        """`origin` goes into the opening META block: who writes this and why. `budget`: what `refusal` minds as well."""
        self._files = files
        self._store = store
        self._run_id = run_id
        self._writer = writer
        self._bytes_max = bytes_max
        self._keeper = Keeper(files, store.path, budget) if budget is not None else None
        self._origin = dict(origin)
        self.directory = run_path(store.path, run_id)
        self._segment: SegmentWriter | None = None
        self._number = 0
        self._next_block = 0
        self._media: MediaFile | None = None
        self._media_is_forced = True
        self.bytes_written = 0
        self.records = 0
        self.first = 0
        self._all_forced = True

    def refusal(self, size: int, now: float, *, is_last: bool = False, bounded: bool = True) -> int:
        """Why `size` bytes may not be appended now, a code of `REFUSED_REASONS`; 0: they may.

        Args:
            is_last: This is what a finishing process has accepted, which no budget keeps from being stored.
            bounded: Whether `bytes_max` holds: not for what is stored here beside a daemon that takes the records.
        """
        if bounded and self.bytes_written + size > self._bytes_max:
            return REFUSED_SPOOL
        if self._keeper is None or is_last:
            return 0
        # Why so short: beside a busy loop each look at a file costs milliseconds. The next call goes on.
        self._keeper.step(now, _MEASURE_SECONDS)
        return self._keeper.refusal(self._run_id, now)

    def append(self, stream: int, span: Span, parts: Sequence[Buffer], batch_flags: int) -> None:
        """Stores the records of `span`.

        Raises:
            OSError: Nothing of them is stored.
        """
        segment = self._open()
        before = segment.size
        pieces = bool(batch_flags & BATCH_HAS_PIECES)
        flags = (FLAG_HAS_PIECES if pieces else 0) | (FLAG_HAS_META if batch_flags & BATCH_HAS_META else 0)
        segment.append(
            KIND_ROWS,
            parts,
            stream=stream,
            first=span.first,
            last=span.last,
            records=span.last - span.first + 1,
            step_min=0 if pieces else span.step_first,
            # Rows that commit leave the open step one above them.
            step_max=span.step_max if pieces else max(span.step_max - 1, span.step_first),
            flags=flags,
            compress=False,
        )
        grown = segment.size - before
        self.bytes_written += grown
        if self._keeper is not None:
            self._keeper.note_written(self._run_id, grown)
        self.records += span.last - span.first + 1
        self.first = self.first or span.first
        if segment.size >= SEGMENT_BYTES:
            self.seal()

    def append_blob(self, ref: BlobRef, data: Buffer, meta: Mapping[str, Any]) -> None:
        """Stores a blob, before the record that announces it is sent or stored.

        Raises:
            OSError: It is not stored, or not whole.
        """
        if self._media is None:
            check_store(self._store, self._files)
            self._media = MediaFile(self._files, self._store, self._run_id, self._writer, self._origin)
        self._media_is_forced = False
        grown = self._media.append(ref, data, meta)
        self.bytes_written += grown
        if self._keeper is not None:
            self._keeper.note_written(self._run_id, grown)

    def append_gap(self, stream: int, gap: Mapping[str, Any]) -> None:
        """Stores a GAP block: what was refused and cannot be told in the stream any more."""
        self._open().append_map(KIND_GAP, gap, stream=stream)

    def _open(self) -> SegmentWriter:
        if self._segment is None:
            check_store(self._store, self._files)
            self._files.make_directory(self.directory)
            header = FileHeader(self._store.id, self._writer, self._number, clock.wall_ns())
            opening = [(KIND_META, {"run": self._run_id, "writer": self._origin})]
            segment, number = SegmentWriter.begin(
                self._files, self.directory, header, opening, first_block_number=self._next_block
            )
            self._number = number + 1
            self._segment = segment
            self.bytes_written += segment.size
        return self._segment

    @property
    def is_open(self) -> bool:
        return self._segment is not None

    @property
    def media_is_safe(self) -> bool:
        """Whether every blob in its files was forced to the disk."""
        return self._media_is_forced

    @property
    def is_safe(self) -> bool:
        return self._all_forced and self._segment is None

    def seal(self, *, sync: bool = False) -> bool:
        """Ends the current segment; False where the disk refuses (recovery seals it then).

        Args:
            sync: Also force it to the disk. Not while a loop logs: that can take seconds, in which the ring fills.
        """
        if self._media is not None:
            self._media_is_forced = self._media.seal(sync=sync)
        segment, self._segment = self._segment, None
        if segment is None:
            return True
        forced, self._all_forced = self._all_forced, False
        try:
            segment.seal(close=False)
            if sync:
                self._force(segment)
                self._all_forced = forced
        except OSError:
            return False
        finally:
            self._next_block = segment.next_block_number
            with contextlib.suppress(OSError):
                segment.close()
        return True

    def _force(self, segment: SegmentWriter) -> None:
        force(self._files, self.directory, segment)


class MediaFile:
    """The blobs of one writer in one run, in files that roll between two blobs.

    They bear the same writer id as its segments of rows, so that whoever mends those of an ended stream finds them.
    """

    def __init__(self, files: Files, store: StoreIdentity, run_id: str, writer: int, origin: Mapping[str, Any]) -> None:
        self._files = files
        self._store = store
        self._opening = [(KIND_META, {"run": run_id, "writer": dict(origin)})]
        self.directory = run_path(store.path, run_id)
        self._writer = writer
        self._number = self._next_block = 0
        self._segment: SegmentWriter | None = None
        self._all_forced = True

    def append(self, ref: BlobRef, data: Buffer, meta: Mapping[str, Any]) -> int:
        """Stores a blob; how many bytes the files have grown.

        Raises:
            OSError: It is not stored, or not whole.
        """
        segment = self._open()
        before = segment.size
        append_blob(segment, ref, data, meta)
        if segment.size >= SEGMENT_MEDIA_BYTES:
            self.seal(sync=False)
        return segment.size - before

    def _open(self) -> SegmentWriter:
        if self._segment is None:
            self._files.make_directory(self.directory)
            header = FileHeader(self._store.id, self._writer, self._number, clock.wall_ns())
            self._segment, number = SegmentWriter.begin(
                self._files, self.directory, header, self._opening, first_block_number=self._next_block, holds=MEDIA
            )
            self._number = number + 1
        return self._segment

    def seal(self, *, sync: bool) -> bool:
        """Ends the current file; whether all of them were forced to the disk."""
        segment, self._segment = self._segment, None
        if segment is None:
            return self._all_forced
        try:
            segment.seal(close=False)
            if sync:
                force(self._files, self.directory, segment)
            self._all_forced = self._all_forced and sync
        except OSError:
            self._all_forced = False
        finally:
            self._next_block = segment.next_block_number
            with contextlib.suppress(OSError):
                segment.close()
        return self._all_forced


def force(files: Files, directory: str, segment: SegmentWriter) -> None:
    """Forces a segment, once; one that cannot be is marked, so that nobody asks again and believes the answer.

    Raises:
        OSError: It may not be on the disk.
    """
    try:
        segment.sync()
        sync_names(files, directory, RUN_LEVELS)
    except OSError:
        mark_suspect(files, segment.path)
        raise
