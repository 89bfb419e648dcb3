"""Blobs on their way in: from a trainer's arena into the run's media segment, before the records that name them.

A batch with announcements waits until their bytes are stored, a few MiB in each tick, so that other streams are served
meanwhile. Where the arena cannot be read (another container's shared memory, a logout that removed it) the trainer is
told, stores the bytes itself, and sends the rest again. What is announced without a place it has stored already. Of a dead
trainer's announcements, those whose bytes are nowhere become GAPs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from daemon.ingest.streams import Base, StreamState
from daemon.pipeline.coalesce import Waiting
from daemon.store.run_writer import RunWriter
from sdk.files import Files
from sdk.journal.announcements import Announcement, announcements
from sdk.limits import MIB
from sdk.segment.blobs import CHUNK_BYTES, stored_blobs
from sdk.wire.messages import BATCH_HAS_BLOBS

# Limit: what one stream may copy in one tick: 16 MiB take about 20 ms, for which no other stream waits longer.
TICK_BYTES = 16 * MIB


class Unreadable(Exception):
    """The arena is not there for us."""


class Blobs:
    """Copies the blobs of every stream, through one buffer."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._buffer = memoryview(b"")  # made for the first blob: most daemons see none

    def store(
        self, stream: int, state: StreamState, parts: Sequence[Waiting], writer: RunWriter, *, at_once: bool
    ) -> bool:
        """Stores the blobs announced in `parts`; False: there is more to do in the next tick.

        Args:
            at_once: All of them, however long it takes.

        Raises:
            OSError: The disk refuses; what is stored stays stored.
            Unreadable: The arena cannot be read, and its trainer lives and can store them itself.
            DamageError: These are not records.
        """
        room = TICK_BYTES
        for announcement in _announced(stream, parts, state.blobs_until):
            if announcement.place is None:
                self._stored_by_trainer(state, announcement, writer)
            else:
                while (done := self._chunk(state, announcement, writer)) is not None:
                    room -= done
                    if room <= 0 and not at_once:
                        return False
            state.blobs_until = announcement.ref.number
        return True

    def _chunk(self, state: StreamState, announcement: Announcement, writer: RunWriter) -> int | None:
        """Copies the next chunk of a blob; its size, or None when all of them are there."""
        ref, place = announcement.ref, announcement.place
        assert place is not None
        offset = state.blob_offset
        if offset >= max(ref.size, 1):
            state.blob_offset = 0
            return None
        size = min(CHUNK_BYTES, ref.size - offset)
        self._buffer = self._buffer or memoryview(bytearray(CHUNK_BYTES))
        data = self._buffer[:size]
        try:
            state.arena_of(state.ring).read((place[0], place[1] + offset), data)
        except (OSError, ValueError) as error:
            state.blob_offset = 0
            self._unreadable(state, announcement, writer, error)
            return None
        writer.append_chunk(ref, offset, data, None if offset else announcement.stored_meta())
        state.blob_offset = offset + max(size, 1)
        return size

    def _unreadable(self, state: StreamState, announcement: Announcement, writer: RunWriter, error: Exception) -> None:
        if state.identity is not None and not state.is_dead and not state.stores_itself:
            state.stores_itself = True
            raise Unreadable(str(error))
        self._stored_by_trainer(state, announcement, writer)

    def _stored_by_trainer(self, state: StreamState, announcement: Announcement, writer: RunWriter) -> None:
        """The bytes lie in a segment of the trainer's; of a dead one, they may not."""
        if state.base is Base.FORCED:
            state.base = Base.UNKNOWN  # that segment is forced before `synced` is said of the row
        if not state.is_dead:
            return
        if state.known_blobs is None:
            state.known_blobs = stored_blobs(self._files, writer.directory)
        ref = announcement.ref
        if (ref.stream, ref.number) not in state.known_blobs:
            writer.append_gap(ref.stream, announcement.as_gap())


def _announced(stream: int, parts: Sequence[Waiting], behind: int) -> Iterator[Announcement]:
    for part in parts:
        if part.flags & BATCH_HAS_BLOBS:
            yield from announcements(stream, part.records, behind=behind)
