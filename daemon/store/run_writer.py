"""This daemon's segments of one run: a fresh one at the start, the next at 8 MiB, sealed at the end.

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
from daemon.store.doubt import Doubtful, Part, ReadBack
from sdk import clock
from sdk.errors import DamageError
from sdk.files import Files
from sdk.ids import hex_u64
from sdk.limits import SEGMENT_ROWS_BYTES
from sdk.location import StoreIdentity, check_store
from sdk.segment.format import KIND_CHECKPOINT, KIND_GAP, KIND_META, KIND_ROWS, Block, FileHeader
from sdk.segment.naming import SUSPECT_SUFFIX, mark_suspect, run_path
from sdk.segment.writer import SegmentWriter
from sdk.wire.messages import BATCH_HAS_META, BATCH_HAS_PIECES

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


class RunWriter:
    """Where the rows of one run go.

    Attributes:
        writer: The random id in the names of its segments.
        written: Stream to the last sequence that is written; what the CHECKPOINT of the next segment says.
        retired: Segments that were sealed and wait for the syncer to force and close them, each with what may be claimed
            then.
        dirty: Something was written since the syncer was last asked.
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
        self._number = number
        self._next_block = 0
        self.segment: SegmentWriter | None = None
        self.retired: list[tuple[SegmentWriter, dict[int, int] | None]] = []
        self.written: dict[int, int] = {}
        self.dirty = False
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
        return self._number

    @property
    def waits(self) -> bool:
        """Whether nothing can be written now, because an fsync failed and the disk has not proved itself since."""
        return self.trust in (Trust.NONE, Trust.TRIAL)

    @property
    def is_done(self) -> bool:
        """Whether everything written was sealed and forced: the writer may be forgotten."""
        return self.segment is None and not self._parts and not self._doubtful and self.trust is Trust.GOOD

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
        self._roll_if_full()

    def append_gap(self, stream: int, gap: Mapping[str, Any]) -> None:
        """Writes a GAP block: something is missing, and this is what is known of it.

        Raises:
            OSError: It is not written.
        """
        segment = self._open()
        segment.append_map(KIND_GAP, gap, stream=stream)
        self._parts[segment.path].notes[len(segment.blocks) - 1] = gap
        self.dirty = True

    def _append(self, stream: int, payload: Payload, copy_of: Doubtful | None = None) -> None:
        segment = self._open()
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
        self.dirty = True
        self.bytes += segment.size - before

    def _roll_if_full(self) -> None:
        if self.segment is not None and self.segment.size >= SEGMENT_ROWS_BYTES:
            self.roll()

    def _open(self) -> SegmentWriter:
        if self.waits:
            raise OSError(errno.EIO, "an fsync failed, and the disk has forced nothing since", self.directory)
        if self.segment is None:
            self.segment = self._make()
        return self.segment

    def _make(self) -> SegmentWriter:
        check_store(self._store, self._files)
        self._files.make_directory(self.directory)
        header = FileHeader(self._store.id, self.writer, self._number, clock.wall_ns())
        opening: list[tuple[int, dict[str, Any]]] = [(KIND_META, {"run": self.run_id, "writer": self._origin})]
        if self.written:
            streams = {hex_u64(stream): [last] for stream, last in self.written.items()}
            opening.append((KIND_CHECKPOINT, {"streams": streams}))
        segment, number = SegmentWriter.begin(
            self._files, self.directory, header, opening, first_block_number=self._next_block
        )
        self._number = number + 1
        self._parts[segment.path] = Part(segment)
        return segment

    def roll(self) -> None:
        """Seals the current segment; the next append opens another. Trouble leaves it unsealed, for recovery."""
        if self.trust is Trust.TRIAL:
            return
        segment = self._seal()
        if segment is not None:
            self.retired.append((segment, self.claims()))
            self.dirty = False

    def _seal(self) -> SegmentWriter | None:
        segment, self.segment = self.segment, None
        if segment is not None:
            with contextlib.suppress(OSError):
                segment.seal(close=False)
            self._next_block = segment.next_block_number
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
        if segment is not self.segment and not any(waiting is segment for waiting, _ in self.retired):
            if part.forced >= len(segment.blocks):
                del self._parts[segment.path]
        if self.trust is Trust.TRIAL and segment is self.segment:
            self.trust = Trust.REWRITING if self._doubtful else Trust.GOOD
            self.dirty = True

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
        is_empty = segment is self.segment and not doubtful and not part.forced
        self.retired = [(waiting, None) for waiting, _ in self.retired if waiting is not segment]
        if self.segment is not None:
            # Whichever failed, the next begins from nothing: only a segment that is new can show what the disk can do.
            current = self._seal()
            assert current is not None
            if current is not segment:
                self.retired.append((current, None))
        with contextlib.suppress(OSError):
            segment.close()
        self.trust = Trust.NONE
        self.dirty = False
        with contextlib.suppress(OSError):
            if is_empty:
                # As if it had never been, so that a disk that fails for ever is not filled with trials.
                self._files.remove(segment.path)
                self._number, self._next_block = self._number - 1, segment.blocks[0].number
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
        self.segment = self._make()
        self.trust = Trust.TRIAL
        return self.segment

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
                self._roll_if_full()
        finally:
            back.close()
        if not self._doubtful:
            self._open()  # so that there is something to force, and to claim with
            self.trust, self.dirty = Trust.GOOD, True
        return Rewritten(saved, lost)

    def _write_again(self, doubtful: Doubtful, back: ReadBack, from_ring: FromRing) -> int:
        """Writes one block again; how many of its sequences are lost."""
        block = doubtful.block
        if doubtful.note is not None:
            self.append_gap(block.stream, doubtful.note)
            return 0
        raw = back.payload(doubtful)
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
