"""Forcing segments to the disk, so that `synced` may be said of what is in them, and what follows when that fails.

A failed fsync freezes its run: nothing is written and nothing claimed (its trainers keep their records in the ring, then
in the spool) until a new, empty segment was forced. Then what is doubtful is written again, a few MiB in each tick, and
the next good sync claims all of it. Each failure in a row doubles the pause before the next trial, so that a disk that
fails for ever costs one small file a minute.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from daemon.ingest.streams import Base, Streams
from daemon.ingest.writing import Writing
from daemon.settings import DaemonSettings
from daemon.stats import Stats
from daemon.store.doubt import REASON, others_segments
from daemon.store.run_writer import Lane, RunWriter, Trust
from daemon.store.syncer import OthersJob, Syncer, SyncJob
from sdk.errors import StoreError
from sdk.files import Files
from sdk.journal.lookback import Lookback
from sdk.limits import MIB

# While the syncer is at work, how often its results are looked for.
_LOOK_SECONDS = 0.02
# The first trial comes at once: most failures are of one moment.
_PAUSE_SECONDS = 1.0
_PAUSE_SECONDS_MAX = 60.0
# Limit: what is written again in one tick: 4 MiB take 20 ms, for which no stream waits longer than for its own blocks.
_REWRITE_BYTES = 4 * MIB


class Recovery:
    """A run whose disk failed: when it is tried again, and how often in a row it was in vain."""

    __slots__ = ("at", "failures")

    def __init__(self) -> None:
        self.at = 0.0
        self.failures = 0

    def failed(self, now: float) -> None:
        self.at = now + (min(_PAUSE_SECONDS * 2 ** (self.failures - 1), _PAUSE_SECONDS_MAX) if self.failures else 0.0)
        self.failures += 1


class Forcing:
    """What is handed to the syncer, and what its results allow to say."""

    def __init__(
        self,
        files: Files,
        streams: Streams,
        writing: Writing,
        settings: DaemonSettings,
        stats: Stats,
        say: Callable[[str], None],
    ) -> None:
        self._files = files
        self._streams = streams
        self._writing = writing
        self._settings = settings
        self._stats = stats
        self._say = say
        self.syncer = Syncer(files)
        self.synced_at = 0.0
        self.interval = settings.sync_seconds
        self._spent = 0.0
        self._directories_synced: set[str] = set()
        self._recoveries: dict[str, Recovery] = {}
        self._asked: dict[int, OthersJob] = {}  # by stream, the last job of its kind
        self._lookbacks: dict[int, Lookback | None] = {}  # while blocks are written again

    def sync(self, now: float) -> None:
        """Hands dirty segments to the syncer at its interval, and takes its results."""
        self._take_results(now)
        if not self.syncer.outstanding:
            # Limit: forcing takes at most `sync_share_max` of the time, also on a disk that needs 20 ms for each segment.
            if self._spent:
                self.interval = max(self._settings.sync_seconds, self._spent / self._settings.sync_share_max)
            self._spent = 0.0
        for run in list(self._recoveries):
            self._recover(run, now)
        self._submit_others()
        self._submit_retired()
        if now - self.synced_at >= self.interval and not self.syncer.outstanding:
            self.synced_at = now
            self._submit_dirty()

    def _take_results(self, now: float) -> None:
        for result in self.syncer.take():
            self._spent += result.seconds
            if isinstance(result.job, OthersJob):
                self._others_forced(result.job, result.error)
            elif result.error is not None:
                self._failed(result.job, result.error, now)
            else:
                self._forced(result.job)

    def _submit_retired(self) -> None:
        # Invariant: a run's segments are handed over in the order in which they were written, and each with what had
        # been written when it was: what comes back may then be claimed for everything before it too.
        for writer in self._writing.writers.values():
            if writer.retired:
                self._submit_lane(writer, writer.media)
            for segment, written in writer.retired:
                job = SyncJob(segment, written, writer.directory, True, writer.run_id, writer.generation)
                self.syncer.submit(job._replace(blocks=len(segment.blocks)))
                self._directories_synced.discard(segment.path)
            writer.retired.clear()

    def _submit_dirty(self) -> None:
        for writer in self._writing.writers.values():
            self._submit(writer)

    def _submit(self, writer: RunWriter) -> None:
        # Invariant: the blobs first, as what comes back for the rows is claimed for the blobs that they name too.
        self._submit_lane(writer, writer.media)
        self._submit_lane(writer, writer.history)

    def _submit_lane(self, writer: RunWriter, lane: Lane) -> None:
        segment = lane.segment
        if segment is None or not lane.dirty:
            return
        lane.dirty = False
        directory = None if segment.path in self._directories_synced else writer.directory
        claims = writer.claims() if lane is writer.history else None
        job = SyncJob(segment, claims, directory, False, writer.run_id, writer.generation)
        self.syncer.submit(job._replace(blocks=len(segment.blocks)))

    def _forced(self, job: SyncJob) -> None:
        writer = self._writing.writers.get(job.run)
        if writer is None:
            return
        if job.segment in (writer.history.segment, writer.media.segment):
            self._directories_synced.add(job.segment.path)
        writer.forced(job.segment, job.blocks)
        # Race: (1) a sync is asked for, (2) one of an earlier segment fails, (3) the first comes back good: what it
        # would claim includes what (2) lost.
        if job.generation == writer.generation and job.written is not None:
            self._claim(job.written)
            if self._recoveries.pop(job.run, None) is not None:
                writer.all_forced()
                self._say(f"run {job.run!r}: everything written is on the disk again")
        self._writing.release(job.run)

    def _claim(self, written: dict[int, int]) -> None:
        for stream, last in written.items():
            state = self._streams.by_id.get(stream)
            if state is not None and state.base is Base.FORCED and last > state.inbox.synced:
                state.inbox.synced = last
                state.silent = False

    # -- others' segments ----------------------------------------------------------------------------------------------

    def force(self, path: str) -> None:
        """Forces a segment of another writer: it was mended, or its writer may have died before its own fsync."""
        self.syncer.submit(OthersJob("", os.path.dirname(path), [path], []))

    def _submit_others(self) -> None:
        """For streams that greeted with records that we did not write: those are forced before we claim beyond them."""
        wanted: dict[str, list[int]] = {}
        for stream, state in self._streams.by_id.items():
            if state.base is Base.UNKNOWN:
                state.base = Base.ASKED
                wanted.setdefault(state.run, []).append(stream)
        for run, streams in wanted.items():
            writer = self._writing.writer(run)
            try:
                paths = others_segments(self._files, writer.directory, writer.writers)
            except (OSError, StoreError) as error:
                self._say(f"`synced` of run {run!r} stays where it is: {error}")
            else:
                job = OthersJob(run, writer.directory, paths, streams)
                self._asked.update(dict.fromkeys(streams, job))
                self.syncer.submit(job)

    def _others_forced(self, job: OthersJob, error: OSError | None) -> None:
        if error is not None:
            for stream in job.streams:
                self._asked.pop(stream, None)
            # Never asked again: `synced` of these streams stays where it is, and their receipts say so.
            self._stats.sync_failures += 1
            self._stats.last_error = f"fsync of segments that others wrote: {error}"
            self._say(self._stats.last_error)
            return
        for stream in job.streams:
            state = self._streams.by_id.get(stream)
            # Not when its trainer spooled more meanwhile, and that is asked for, or about to be.
            if self._asked.get(stream) is job:
                del self._asked[stream]
                if state is not None and state.base is Base.ASKED:
                    state.base = Base.FORCED
        writer = self._writing.writers.get(job.run)
        if writer is not None and writer.segment is not None:
            writer.history.dirty = True  # the claims of the last sync were withheld

    # -- after a failure -----------------------------------------------------------------------------------------------

    def _failed(self, job: SyncJob, error: OSError, now: float) -> None:
        """A failed fsync is never retried on the same file: what was in its pages may be gone, and a retry would lie."""
        writer = self._writing.writers.get(job.run)
        self._directories_synced.discard(job.segment.path)
        if writer is None or not writer.suspect(job.segment):
            return
        self._stats.sync_failures += 1
        self._stats.last_error = f"fsync of {job.segment.path!r}: {error}"
        self._say(f"{self._stats.last_error}; what it holds since the last good one will be written again")
        self._recoveries.setdefault(job.run, Recovery()).failed(now)

    def _recover(self, run: str, now: float) -> None:
        """One step: a trial when it is due, then some blocks written again."""
        writer, recovery = self._writing.writers[run], self._recoveries[run]
        try:
            if writer.trust is Trust.NONE and now >= recovery.at:
                self._submit_retired()  # they are older, and must fail before the trial can succeed
                segment = writer.begin_again()
                job = SyncJob(segment, None, writer.directory, False, run, writer.generation, len(segment.blocks))
                self.syncer.submit(job)
            elif writer.trust is Trust.REWRITING:
                self._rewrite(writer, now)
            if writer.trust is Trust.GOOD:
                self._submit(writer)
        except OSError as error:
            recovery.failed(now)
            self._stats.last_error = f"cannot write run {run!r} again: {error}"
            self._say(self._stats.last_error)

    def _rewrite(self, writer: RunWriter, now: float) -> None:
        recovery = self._recoveries[writer.run_id]
        if now < recovery.at:
            return
        try:
            done = writer.rewrite(self._from_ring, _REWRITE_BYTES)
        finally:
            self._lookbacks.clear()
        self._stats.rewritten_blocks += done.blocks
        if done.lost:
            self._stats.gaps[REASON] += done.lost
            self._stats.last_error = f"{done.lost} records of run {writer.run_id!r} are lost: {REASON}"
            self._say(self._stats.last_error)
        self._writing.release(writer.run_id)

    def _from_ring(self, stream: int, first: int, last: int) -> tuple[int, bytes] | None:
        """What the ring of a trainer that we serve still has of some records."""
        if stream not in self._lookbacks:
            state = self._streams.by_id.get(stream)
            self._lookbacks[stream] = state.watched.look_back() if state is not None and state.watched else None
        back = self._lookbacks[stream]
        return back.records(first, last) if back is not None else None

    # -- how far it is -------------------------------------------------------------------------------------------------

    def age(self, now: float) -> float:
        """Seconds for which something written has not been forced; 0 when all of it was."""
        return now - self.synced_at if self.syncer.outstanding or self._is_behind() else 0.0

    def next_deadline(self, now: float) -> float | None:
        """Seconds until `sync` has something to do, or None."""
        if self.syncer.outstanding:
            return _LOOK_SECONDS
        deadlines = [recovery.at - now for run, recovery in self._recoveries.items() if self._is_due_then(run)]
        if self._is_behind():
            deadlines.append(self.synced_at + self.interval - now)
        return max(min(deadlines), 0.0) if deadlines else None

    def _is_due_then(self, run: str) -> bool:
        return self._writing.writers[run].trust in (Trust.NONE, Trust.REWRITING)

    def _is_behind(self) -> bool:
        return any(writer.dirty or writer.retired for writer in self._writing.writers.values())

    def close(self, now: float) -> None:
        """Hands over what is left, waits for it, and says what could not be made safe."""
        self.sync(now)
        self.syncer.stop()
        self._take_results(now)
        for run in self._recoveries:
            self._say(f"leaving; run {run!r} has blocks that may not be on the disk, its segments are marked")
