"""The dead: rings of killed trainers, and streams whose process is gone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from daemon.ingest.quiet import Quiet
from daemon.ingest.rings import is_at, watch
from daemon.ingest.streams import Streams, StreamState, next_record
from daemon.ingest.writing import Writing
from daemon.pipeline.flush import Reason
from daemon.settings import DaemonSettings
from daemon.stats import Stats
from sdk import platform
from sdk._aside import holds_records, keep_ring
from sdk.errors import DamageError
from sdk.files import Files
from sdk.ids import hex_u64
from sdk.journal.arena import remove_arena, remove_orphans
from sdk.journal.drain import Drained, drain, is_ring_path, remove_drafts, ring_paths, ring_stream
from sdk.journal.salvage import Piece
from sdk.limits import BATCH_BYTES_MAX, STEP_MAX
from sdk.location import StoreIdentity
from sdk.wire.messages import BATCH_HAS_BLOBS, BATCH_HAS_META, BATCH_HAS_PIECES, Batch

# A stream whose ring and process we cannot see counts as living for so long after its last word.
_HEARD_SECONDS = 10.0


class Dead:
    """Looks for trainers that died, and takes over what they left."""

    def __init__(
        self,
        files: Files,
        streams: Streams,
        writing: Writing,
        store: StoreIdentity,
        settings: DaemonSettings,
        stats: Stats,
        say: Callable[[str], None],
    ) -> None:
        self._files = files
        self._streams = streams
        self._writing = writing
        self._store = store
        self._settings = settings
        self._stats = stats
        self._say = say
        self._refused: set[str] = set()
        # Once: the store's directory may be away later, and trainers of this host die all the same.
        self._digest = platform.store_digest(store.path)
        self._quiet = Quiet(streams, store.id, self.watch)

    def look(self, now: float) -> bool:
        """Drains rings whose owner died; returns whether a living trainer of this store was seen."""
        living = False
        digest = self._digest
        remove_drafts(self._settings.shared_memory_dir, digest)
        remove_orphans(self._settings.shared_memory_dir, digest)
        paths = set(ring_paths(self._settings.shared_memory_dir, digest))
        # A trainer may have been told of another shared memory than we were.
        paths.update(state.ring for state in self._streams.by_id.values() if is_ring_path(state.ring, digest))
        locked = set()
        for path in sorted(paths):
            try:
                lock = platform.open_shared(path)
            except (OSError, ValueError) as error:  # a directory, a link, a file of someone else: not made by us
                self._tell(path, error)
                continue
            if lock is None:
                locked.add(path)
                living = living or os.path.exists(path)
                continue
            try:
                self._drain(path, lock.descriptor, now)
            finally:
                lock.release()
        self._refused &= paths
        self._quiet.look(locked, now)
        for stream, state in list(self._streams.by_id.items()):
            watched = state.watched
            if watched is not None and watched.is_unlinked():
                # The path too: its trainer may have made the file again, and say so in a Hello that is still to come.
                if watched.is_locked() or platform.is_locked(watched.path):
                    living = True
                else:
                    self._drain(watched.path, watched.descriptor, now)
            elif not is_ring_path(state.ring, digest) or not os.path.exists(state.ring):
                living = self._end_without_ring(stream, state, now) or living
        return living

    def watch(self, state: StreamState) -> None:
        """Keeps the ring open that a Hello names."""
        before = state.watched
        state.watched = watch(state.ring, self._digest, before)
        if before is not None and before is not state.watched:
            before.close()

    def _end_without_ring(self, stream: int, state: StreamState, now: float) -> bool:
        """A stream with no ring that we can see: only its process tells whether it lives.

        Why a recent word counts too: in a container with other pids we see neither. A trainer that is forgotten by
        mistake says Hello again.
        """
        if now - state.heard < _HEARD_SECONDS or (state.pid and platform.process_lives(state.pid)):
            return True
        state.is_dead = True
        self._writing.flush_stream(stream, state, Reason.DRAIN, now)
        if not state.waiting:
            self._writing.forget(stream, state)
        return False

    def _drain(self, path: str, descriptor: int, now: float) -> None:
        """Takes over a dead trainer's ring; removes it when its records are written."""
        try:
            drained = drain(path, descriptor)
            run = str(drained.header.identity["run"])
            if drained.header.identity.get("store") != self._store.id:
                return
        except DamageError as error:
            self._remove_unreadable(path, descriptor, error, now)
            return
        except Exception as error:  # whatever these bytes are, the next look may meet them again
            self._tell(path, error)
            return
        # Before anything of it is stored: until there is room for both, all of it stays where it is.
        if drained.damage is not None and not self._keep(path, descriptor, run, drained.damage, now):
            return
        writer = self._writing.writers.get(run)
        if writer is not None and writer.waits:
            return  # the ring keeps what it holds until the disk is trusted again
        stream = drained.header.stream
        state = self._streams.by_id.get(stream)
        if state is None:
            state = self._streams.make(stream, run, drained.first - 1)
        state.is_dead = True
        state.ring = path
        for batch in _batches(stream, drained):
            duplicates = state.take(batch, now)
            if duplicates is None:
                # A hole: stored elsewhere, or lost. What waits here is neither, so it is written before anybody says so.
                self._writing.flush_stream(stream, state, Reason.DRAIN, now)
                if state.waiting:
                    return
                state.greet(batch.first - 1)
                duplicates = state.take(batch, now)
            self._stats.duplicates += duplicates or 0
        self._writing.flush_stream(stream, state, Reason.DRAIN, now)
        if state.waiting or not self._note_losses(stream, run, drained.gaps, now):
            return
        self._stats.drained += 1
        self._say(
            f"drained {drained.record_count} records of run {run!r} from the ring of a dead trainer ({hex_u64(stream)})"
        )
        _remove(path, descriptor)
        self._writing.forget(stream, state)

    def _keep(self, path: str, descriptor: int, run: str | None, damage: str, now: float) -> bool:
        """Copies a damaged ring to `aside/`; whether that went well."""
        try:
            kept = keep_ring(self._files, self._store, path, descriptor, run)
        except OSError as error:
            self._writing.trouble(f"cannot keep the damaged ring {path!r}: {error}", now)
            return False
        self._say(f"a ring is damaged and kept as {kept!r}: {damage}")
        return True

    def _note_losses(self, stream: int, run: str, gaps: list[dict[str, Any]], now: float) -> bool:
        """Writes what the ring says is missing as GAP blocks; whether that went well."""
        try:
            self._append_gaps(stream, run, gaps)
        except OSError as error:
            self._writing.trouble(f"cannot write run {run!r}: {error}", now)
            return False
        return True

    def _append_gaps(self, stream: int, run: str, gaps: list[dict[str, Any]]) -> None:
        for gap in gaps:
            self._writing.writer(run).append_gap(stream, gap)
            self._stats.gaps[str(gap["reason"])] += gap["count"]

    def _tell(self, path: str, error: object) -> None:
        """Says once that a ring cannot be drained."""
        if path not in self._refused:
            self._refused.add(path)
            self._say(f"cannot drain {path!r}: {error}")

    def _remove_unreadable(self, path: str, descriptor: int, error: DamageError, now: float) -> None:
        """A ring that does not say whose it is. If it held records it is kept, and its stream's GAP says so.

        Its process may as well have died while making it: then it is empty.
        """
        if holds_records(descriptor):
            stream = ring_stream(path)
            state = self._streams.by_id.get(stream)
            if not self._keep(path, descriptor, state.run if state is not None else None, str(error), now):
                return
            gap = {"episode": "ring", "count": 0, "reason": "ring damaged: its header cannot be read"}
            if state is not None and not self._note_losses(stream, state.run, [gap], now):
                return
        else:
            self._tell(path, error)
        _remove(path, descriptor)

    def refused_by_stream(self) -> dict[int, int]:
        """Refused counts of living trainers, read from the header pages of their rings."""
        counts = {}
        for stream, state in self._streams.by_id.items():
            refused = state.watched.refused() if state.watched is not None else None
            if refused is not None:
                counts[stream] = refused
        return counts


def _remove(path: str, descriptor: int) -> None:
    """Removes a ring that was drained, if its name is still its own: one that lost it may have a successor."""
    if is_at(descriptor, path):
        remove_arena(path)
        with contextlib.suppress(OSError):
            os.unlink(path)


def _batches(stream: int, drained: Drained) -> Iterator[Batch]:
    """What a ring held, as batches of the size that a trainer sends."""
    for piece in drained.pieces:
        yield from _cut(stream, piece)


def _cut(stream: int, piece: Piece) -> Iterator[Batch]:
    records = memoryview(piece.records)
    flags = BATCH_HAS_PIECES | BATCH_HAS_META | BATCH_HAS_BLOBS
    start = end = 0
    first = sequence = piece.first
    while end < len(records):
        after = next_record(records, end)
        if after - start > BATCH_BYTES_MAX and end > start:
            yield Batch(stream, first, sequence - 1, flags, STEP_MAX, records[start:end])
            start, first = end, sequence
        end, sequence = after, sequence + 1
    if end > start:
        yield Batch(stream, first, sequence - 1, flags, STEP_MAX, records[start:end])
