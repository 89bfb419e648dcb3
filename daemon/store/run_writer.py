"""This daemon's segments of one run: a fresh one at the start, the next at 8 MiB or 512 blocks, sealed at the end.

Rows and blobs go into files of their own, each a `Lane` with a writer id and numbers of its own. What is said below of
the run's segments holds for both: a failed fsync of either makes the disk doubtful for both, and blobs are handed over to
be forced before the rows that name them.

A segment is sealed and forced to the disk by the syncer's thread, which then closes it; everything else happens in the
server's thread.

The first failed fsync makes a segment suspect: it is sealed as it is, stays, and is never forced again. Then
(`docs/segment.md#a-failed-fsync`): nothing more is written until a new, empty segment could be forced (`begin_again`);
into that goes what is doubtful (`rewrite`, see `daemon.store.doubt`) beside what comes new; and only when that was forced
is anything claimed again. A failure on the way starts this over. `generation` counts the failures, so that the result of
a sync that was asked for before one claims nothing after it.
"""

from __future__ import annotations

import contextlib
import errno
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, NamedTuple

from daemon.pipeline.coalesce import Payload, Waiting, coalesce
from daemon.store.doubt import REASON, Doubtful, Part, ReadBack
from sdk import clock
from sdk.errors import DamageError
from sdk.files import Buffer, Files
from sdk.ids import hex_u64, random_u64
from sdk.limits import SEGMENT_MEDIA_BYTES, SEGMENT_ROWS_BYTES
from sdk.location import StoreIdentity, check_store
from sdk.record import BlobRef
from sdk.segment.blobs import append_chunk
from sdk.segment.format import KIND_BLOB, KIND_CHECKPOINT, KIND_GAP, KIND_META, KIND_ROWS, Block, FileHeader
from sdk.segment.naming import HISTORY, MEDIA, SUSPECT_SUFFIX, mark_suspect, run_path
from sdk.segment.writer import SegmentWriter
from sdk.wire.messages import BATCH_HAS_META, BATCH_HAS_PIECES

# A segment of rows with so many blocks is sealed however small it is, so that compaction makes few of them: a run logged once a
# minute fills one in nine hours. Compaction reads and writes every row about five times in that run's first year.
SEGMENT_BLOCKS_MAX = 512

# (stream, first, last) -> (sequence of the first record that is left, the bytes from there to `last`), or None.
FromRing = Callable[[int, int, int], "tuple[int, bytes] | None"]


class Trust(Enum):
    """What the disk is trusted with."""

    GOOD = "good"
    NONE = "none"  # an fsync failed: nothing is written until the disk has forced something
    TRIAL = "trial"  # a new, empty segment is being forced
    REWRITING = "rewriting"  # it was; what is doubtful is being written again


class Rewritten(NamedTuple):
    """What one call of `rewrite` did: blocks that were saved, records that were lost."""

    blocks: int
    lost: int


class Lane:
    """One kind of segment of a run: a writer's id, and how far its files and blocks are numbered."""

    __slots__ = ("dirty", "holds", "next_block", "number", "segment", "segment_bytes", "writer")

    def __init__(self, holds: str, writer: int, number: int, segment_bytes: int) -> None:
        self.holds = holds
        self.writer = writer
        self.number = number
        self.next_block = 0
        self.segment: SegmentWriter | None = None
        self.segment_bytes = segment_bytes
        self.dirty = False


class RunWriter:
    """Where the rows and blobs of one run go.

    Attributes:
        writer: The random id in the names of its segments of rows. `history`, `media`: their lanes.
        written: Stream to the last sequence that is written; what the CHECKPOINT of the next segment says.
        retired: Segments that were sealed and wait for the syncer to force and close them, each with what may be claimed
            then.
        generation: How many syncs failed.
        trust: See `Trust`.
    """

    def __init__(
        self, files: Files, store: StoreIdentity, run_id: str, writer: int, origin: Mapping[str, Any], number: int = 0
    ) -> None:
        self.run_id = run_id
        self.writer = writer
        self._files = files
        self._store = store
        self._origin = dict(origin)
        self.directory = run_path(store.path, run_id)
        self.history = Lane(HISTORY, writer, number, SEGMENT_ROWS_BYTES)
        self.media = Lane(MEDIA, random_u64(), 0, SEGMENT_MEDIA_BYTES)
        self.retired: list[tuple[SegmentWriter, dict[int, int] | None]] = []
        self.written: dict[int, int] = {}
        self.records = 0
        self.bytes = 0
        self.generation = 0
        self.trust = Trust.GOOD
        self._parts: dict[str, Part] = {}
        self._doubtful: deque[Doubtful] = deque()
        self._suspects: list[str] = []

    @property
    def next_number(self) -> int:
        """The number that this writer's next segment of the run gets."""
        return self.history.number

    @property
    def segment(self) -> SegmentWriter | None:
        """The segment that rows go into now."""
        return self.history.segment

    @property
    def writers(self) -> set[int]:
        """The random ids of all its segments."""
        return {self.history.writer, self.media.writer}

    @property
    def has_media(self) -> bool:
        """Whether it ever wrote a blob."""
        return self.media.number > 0

    @property
    def dirty(self) -> bool:
        """Whether something was written since the syncer was last asked."""
        return self.history.dirty or self.media.dirty

    @property
    def waits(self) -> bool:
        """Whether nothing can be written now, because an fsync failed and the disk has not proved itself since."""
        return self.trust in (Trust.NONE, Trust.TRIAL)

    @property
    def is_done(self) -> bool:
        """Whether everything written was sealed and forced: the writer may be forgotten."""
        open_lanes = self.history.segment is not None or self.media.segment is not None
        return not open_lanes and not self._parts and not self._doubtful and self.trust is Trust.GOOD

    def note_stored(self, stream: int, last: int) -> None:
        """Somebody else stored the stream up to `last`: the next CHECKPOINT says so too, so that a loss there shows."""
        if last > self.written.get(stream, 0):
            self.written[stream] = last

    def append(self, stream: int, payload: Payload) -> None:
        """Writes one ROWS block.

        Raises:
            OSError: Nothing of it is stored; the segment is usable again or replaced by the next call.
        """
        self._append(stream, payload)
        self.note_stored(stream, payload.last)
        self.records += payload.last - payload.first + 1
        self._roll_if_full(self.history)

    def append_gap(self, stream: int, gap: Mapping[str, Any]) -> None:
        """Writes a GAP block: something is missing, and this is what is known of it.

        Raises:
            OSError: It is not written.
        """
        segment = self._open(self.history)
        segment.append_map(KIND_GAP, gap, stream=stream)
        self._parts[segment.path].notes[len(segment.blocks) - 1] = gap
        self.history.dirty = True

    def append_chunk(self, ref: BlobRef, offset: int, data: Buffer, meta: Mapping[str, Any] | None) -> None:
        """Writes one chunk of a blob; `meta` with the first.

        Raises:
            OSError: Nothing of it is stored.
        """
        segment = self._open(self.media)
        before = segment.size
        append_chunk(segment, ref, offset, data, meta)
        self.media.dirty = True
        self.bytes += segment.size - before
        if offset + len(data) >= ref.size:
            self._roll_if_full(self.media)  # not within a blob: whoever reads one wants one file

    def _append(self, stream: int, payload: Payload, copy_of: Doubtful | None = None) -> None:
        segment = self._open(self.history)
        before = segment.size
        segment.append(
            KIND_ROWS,
            payload.raw,
            stream=stream,
            first=payload.first,
            last=payload.last,
            records=payload.records,
            step_min=payload.step_min,
            step_max=payload.step_max,
            flags=payload.flags,
            keys=payload.keys,
        )
        if copy_of is not None:
            self._parts[segment.path].copies[len(segment.blocks) - 1] = copy_of
        self.history.dirty = True
        self.bytes += segment.size - before

    def _roll_if_full(self, lane: Lane) -> None:
        if lane.segment is None:
            return
        is_long = lane is self.history and len(lane.segment.blocks) >= SEGMENT_BLOCKS_MAX
        if is_long or lane.segment.size >= lane.segment_bytes:
            self._roll(lane)

    def _open(self, lane: Lane) -> SegmentWriter:
        if self.waits:
            raise OSError(errno.EIO, "an fsync failed, and the disk has forced nothing since", self.directory)
        if lane.segment is None:
            lane.segment = self._make(lane)
        return lane.segment

    def _make(self, lane: Lane) -> SegmentWriter:
        check_store(self._store, self._files)
        self._files.make_directory(self.directory)
        header = FileHeader(self._store.id, lane.writer, lane.number, clock.wall_ns())
        opening: list[tuple[int, dict[str, Any]]] = [(KIND_META, {"run": self.run_id, "writer": self._origin})]
        if self.written and lane is self.history:
            streams = {hex_u64(stream): [last] for stream, last in self.written.items()}
            opening.append((KIND_CHECKPOINT, {"streams": streams}))
        segment, number = SegmentWriter.begin(
            self._files, self.directory, header, opening, first_block_number=lane.next_block, holds=lane.holds
        )
        lane.number = number + 1
        self._parts[segment.path] = Part(segment)
        return segment

    def roll(self) -> None:
        """Seals the current segments; the next append opens another. Trouble leaves them unsealed, for recovery."""
        self._roll(self.media)
        self._roll(self.history)

    def _roll(self, lane: Lane) -> None:
        if self.trust is Trust.TRIAL:
            return
        segment = self._seal(lane)
        if segment is not None:
            self.retired.append((segment, self.claims() if lane is self.history else None))
            lane.dirty = False

    def _seal(self, lane: Lane) -> SegmentWriter | None:
        segment, lane.segment = lane.segment, None
        if segment is not None:
            with contextlib.suppress(OSError):
                segment.seal(close=False)
            lane.next_block = segment.next_block_number
        return segment

    # -- what the disk has ---------------------------------------------------------------------------------------------

    def claims(self) -> dict[int, int] | None:
        """Stream to what is safe once all that is written now was forced; None while blocks are doubtful."""
        return dict(self.written) if self.trust is Trust.GOOD else None

    def forced(self, segment: SegmentWriter, blocks: int) -> None:
        """The first `blocks` blocks of `segment` are on the disk."""
        part = self._parts.get(segment.path)
        if part is None or part.segment is not segment:
            return
        part.note_forced(blocks)
        if not self._is_open(segment) and not any(waiting is segment for waiting, _ in self.retired):
            if part.forced >= len(segment.blocks):
                del self._parts[segment.path]
        if self.trust is Trust.TRIAL and segment is self.segment:
            self.trust = Trust.REWRITING if self._doubtful else Trust.GOOD
            self.history.dirty = True

    def _is_open(self, segment: SegmentWriter) -> bool:
        return segment is self.history.segment or segment is self.media.segment

    def all_forced(self) -> None:
        """Everything that was ever doubtful is safe in later segments: nobody needs to be warned of the suspects."""
        for path in self._suspects:
            with contextlib.suppress(OSError):
                self._files.remove(path + SUSPECT_SUFFIX)
        self._suspects.clear()

    def suspect(self, segment: SegmentWriter) -> bool:
        """An fsync of `segment` failed: it is never forced again, and what it holds is written again.

        Returns:
            False when that was known already.
        """
        part = self._parts.get(segment.path)
        if part is None or part.segment is not segment:
            return False
        del self._parts[segment.path]
        self.generation += 1
        doubtful = part.doubtful()
        self._doubtful.extend(doubtful)
        is_empty = self._is_open(segment) and not doubtful and not part.forced
        lane = self.media if segment is self.media.segment else self.history
        self.retired = [(waiting, None) for waiting, _ in self.retired if waiting is not segment]
        for each in (self.media, self.history):
            # Whichever failed, all begin from nothing: only a segment that is new can show what the disk can do.
            current = self._seal(each)
            if current is not None and current is not segment:
                self.retired.append((current, None))
            each.dirty = False
        with contextlib.suppress(OSError):
            segment.close()
        self.trust = Trust.NONE
        with contextlib.suppress(OSError):
            if is_empty:
                # As if it had never been, so that a disk that fails for ever is not filled with trials.
                self._files.remove(segment.path)
                lane.number, lane.next_block = lane.number - 1, segment.blocks[0].number
            else:
                self._suspects.append(segment.path)
                mark_suspect(self._files, segment.path)
        return True

    def begin_again(self) -> SegmentWriter:
        """Makes the segment whose first fsync decides whether the disk is trusted again.

        Raises:
            OSError: It cannot even be made.
        """
        assert self.trust is Trust.NONE
        self.history.segment = self._make(self.history)
        self.trust = Trust.TRIAL
        return self.history.segment

    def rewrite(self, from_ring: FromRing, bytes_max: int) -> Rewritten:
        """Writes doubtful blocks again, at least one and at most about `bytes_max`; when none is left claims are due.

        Raises:
            OSError: The disk refuses; what was not written stays doubtful.
        """
        back = ReadBack(self._files)
        saved = lost = 0
        until = self.bytes + bytes_max
        try:
            while self._doubtful and self.bytes < until:
                missing = self._write_again(self._doubtful[0], back, from_ring)
                doubtful = self._doubtful.popleft()
                lost += missing
                saved += missing < doubtful.block.last - doubtful.block.first + 1
                self._roll_if_full(self.history)
        finally:
            back.close()
        if not self._doubtful:
            self._open(self.history)  # so that there is something to force, and to claim with
            self.trust, self.history.dirty = Trust.GOOD, True
        return Rewritten(saved, lost)

    def _write_blob_again(self, doubtful: Doubtful, raw: Buffer | None) -> int:
        """Writes one chunk of a blob again; 1 when nobody has it any more."""
        block = doubtful.block
        if raw is None:
            self.append_gap(block.stream, _lost_blob(block))
            return 1
        segment = self._open(self.media)
        segment.copy(block, raw)
        self._parts[segment.path].copies[len(segment.blocks) - 1] = doubtful
        self.media.dirty = True
        return 0

    def _write_again(self, doubtful: Doubtful, back: ReadBack, from_ring: FromRing) -> int:
        """Writes one block again; how many of its sequences are lost."""
        block = doubtful.block
        if doubtful.note is not None:
            self.append_gap(block.stream, doubtful.note)
            return 0
        raw = back.payload(doubtful)
        if block.kind == KIND_BLOB:
            return self._write_blob_again(doubtful, raw)
        if raw is not None:
            copied = Payload(
                raw, block.records, block.first, block.last, block.step_min, block.step_max, block.flags, None
            )
            self._append(block.stream, copied, doubtful)
            return 0
        # What comes from here is a block of its own: its older copies are worth nothing.
        found = _from_ring(block, from_ring)
        first, step = (found.first, found.step_min) if found is not None else (block.last + 1, block.step_max)
        if first > block.first:
            self.append_gap(block.stream, doubtful.as_gap(first - 1, max(step, block.step_min)))
        if found is not None:
            self._append(block.stream, found)
        return first - block.first


def _lost_blob(block: Block) -> dict[str, Any]:
    """The GAP map of a chunk that nobody has any more; the row that names it is there."""
    return {
        "episode": f"blob {block.first} at {block.step_min}", "count": 0, "blob": block.first, "size": block.step_max,
        "reason": REASON,
    }  # fmt: skip


def _from_ring(block: Block, from_ring: FromRing) -> Payload | None:
    """The records of a block as far as its trainer's ring still has them: always the last ones."""
    found = from_ring(block.stream, block.first, block.last)
    if found is None:
        return None
    first, records = found
    flags = BATCH_HAS_PIECES | BATCH_HAS_META  # nothing is known of them but what they say themselves
    with contextlib.suppress(DamageError):
        return coalesce([Waiting(first, block.last, flags, block.step_max, records)])
    return None
