"""Writing what waits, and saying so: blocks go into the runs' segments, acks and answers go out.

An ack is sent at the end of each tick to every stream that sent something in it, also without progress, so that the
trainer knows that we live.
"""

from __future__ import annotations

from collections.abc import Callable

from daemon.ingest.blobs import Blobs, Unreadable
from daemon.ingest.router import Router
from daemon.ingest.streams import Streams, StreamState
from daemon.pipeline.coalesce import Payload, coalesce, first_block
from daemon.pipeline.episode import Episode
from daemon.pipeline.flush import Reason
from daemon.stats import Stats
from daemon.store.run_writer import RunWriter, Trust
from sdk.budget import Keeper, code_of
from sdk.ids import hex_u64
from sdk.limits import REFUSED_DISK_ERROR
from sdk.segment.naming import HISTORY, MEDIA
from sdk.wire.messages import Ack, Finished, Flushed, Reject

# After the disk or a budget refused, when it is asked again. Limit: less than the second of silence after which a trainer
# takes us for lost, as each time it is told why it waits.
_PAUSE_SECONDS = 0.5
# While the disk is on trial after a failed fsync: it mostly answers within milliseconds.
_TRIAL_SECONDS = 0.02


class Writing:
    """The runs' writers, and the streams' way into them.

    Attributes:
        writers: Run id to its writer, made when it is first needed.
        ended: (run, stream) of the streams that were forgotten, and whether their trainers are dead; the server looks at what
            they wrote themselves, and removes them here.
        pause_until: After the disk refused, when it is asked again.
        sealed: Of which kinds (HISTORY, MEDIA) there may be sealed segments that nobody rewrote yet.
    """

    def __init__(
        self,
        router: Router,
        streams: Streams,
        make_writer: Callable[[str], RunWriter],
        stats: Stats,
        say: Callable[[str], None],
        budget: Keeper,
        blobs: Blobs,
    ) -> None:
        self._router = router
        self._streams = streams
        self._make_writer = make_writer
        self._stats = stats
        self._say = say
        self._budget = budget
        self._blobs = blobs
        self._episode = Episode()
        self.writers: dict[str, RunWriter] = {}
        self.ended: dict[tuple[str, int], bool] = {}
        self.pause_until = 0.0
        self.sealed: set[str] = set()

    def writer(self, run: str) -> RunWriter:
        """The writer of a run."""
        found = self.writers.get(run)
        if found is None:
            found = self.writers[run] = self._make_writer(run)
        return found

    def release(self, run: str) -> None:
        """After the last stream of a run: its segment is sealed, and when that was forced the writer is forgotten."""
        writer = self.writers.get(run)
        if writer is not None and not self._streams.serves(run):
            writer.roll()
            self.sealed |= {lane.holds for lane in (writer.history, writer.media) if lane.number}
            if writer.is_done:
                del self.writers[run]

    def flush(self, now: float, reason: Reason | None = None) -> None:
        """Writes what is due, or everything for `reason`; sends acks to everybody who was heard in this tick."""
        for stream, state in list(self._streams.by_id.items()):
            due = state.policy.due(now) if reason is None else reason
            if due is not None and (reason is not None or now >= max(self.pause_until, state.held_until)):
                self.flush_stream(stream, state, due, now)
                state.silent = False
            if not state.silent:
                self._acknowledge(stream, state)
                state.silent = True

    def flush_stream(self, stream: int, state: StreamState, reason: Reason, now: float) -> None:
        """Writes all that waits of one stream; what the disk or a budget refuses goes on waiting."""
        while state.waiting:
            if state.owes_hello and not state.is_dead:
                return  # its next Hello says that the blobs of what waits are stored
            if self._holds_back(state, now):
                return
            parts = state.waiting[: first_block(state.waiting)]
            try:
                at_once = reason is Reason.DRAIN
                writer = self.writer(state.run)
                history, media = writer.history.number, writer.media.number
                stored = self._blobs.store(stream, state, parts, writer, at_once=at_once)
                if writer.media.number != media:
                    self.sealed.add(MEDIA)
                if not stored:
                    return
                payload = coalesce(parts)
                self._append(stream, state.run, payload)
                if 0 < history != writer.history.number:
                    self.sealed.add(HISTORY)
            except Unreadable as error:
                self._let_store_itself(stream, state, str(error))
                return
            except OSError as error:
                # Nothing is acked, so the ring keeps it, and what waits here is bounded by the credit.
                state.trouble = state.last_trouble = code_of(error)
                self.trouble(f"cannot write run {state.run!r}: {error}", now)
                return
            except Exception as error:  # DamageError, or a bug that these bytes find: it must not end the daemon
                self._say(f"stream {hex_u64(stream)} sent records that cannot be read: {error!r}")
                self._stats.last_error = str(error)[:500]
                self.drop_stream(stream, state)
                return
            if (told := self._episode.over(now)) is not None:
                self._say(told)
            self._stats.note_written(now, payload.last - payload.first + 1, len(payload.raw))
            state.written(parts, payload.last)
        state.trouble = 0
        state.policy.flushed(reason)
        self._answer_requests(stream, state)

    def _append(self, stream: int, run: str, payload: Payload) -> None:
        writer = self.writer(run)
        before = writer.bytes
        for other, state in self._streams.by_id.items():
            if state.run == run:
                writer.note_stored(other, state.inbox.written)
        writer.append(stream, payload)
        self._budget.note_written(run, writer.bytes - before)

    def _holds_back(self, state: StreamState, now: float) -> bool:
        """Whether the disk or a budget forbids to write more of a stream; it is asked again after a pause of its own.

        What a stream had accepted when it ended is stored past every budget: nobody holds it any more, or wants to wait.
        """
        writer = self.writers.get(state.run)
        if writer is not None and writer.waits:
            lasts = writer.trust is Trust.NONE
            if lasts:
                state.trouble = state.last_trouble = REFUSED_DISK_ERROR
            state.held_until = now + (_PAUSE_SECONDS if lasts else _TRIAL_SECONDS)
            return True
        state.trouble = 0 if state.is_ending else self._budget.refusal(state.run, now)
        if state.trouble:
            state.last_trouble, state.held_until = state.trouble, now + _PAUSE_SECONDS
        return bool(state.trouble)

    def _answer_requests(self, stream: int, state: StreamState) -> None:
        inbox, peer = state.inbox, state.identity
        if state.asked is not None and inbox.written >= state.asked:
            state.asked = None
            if state.reader is not None:
                state.reader.tell(inbox, state.trouble)
            if peer is not None:
                self._router.send(peer, Flushed(stream, inbox.written, inbox.synced))
        if state.finishing is not None and inbox.written >= state.finishing:
            if state.reader is not None:
                state.reader.tell(inbox, state.trouble)
            if peer is not None:
                self._router.send(peer, Finished(stream, inbox.written, inbox.synced))
            self.forget(stream, state)

    def _acknowledge(self, stream: int, state: StreamState) -> None:
        if state.reader is not None:
            state.reader.tell(state.inbox, state.trouble)
        elif state.identity is not None:
            self._router.send(state.identity, Ack(stream, state.inbox.written, state.inbox.synced, state.trouble))

    def trouble(self, text: str, now: float) -> None:
        """The disk refused: counted, said now and then, and not asked again for a while."""
        self._stats.write_failures += 1
        self._stats.last_error = text
        self.pause_until = now + _PAUSE_SECONDS
        if (told := self._episode.trouble(text, now)) is not None:
            self._say(told)

    def _let_store_itself(self, stream: int, state: StreamState, text: str) -> None:
        """Ends the session of a trainer whose arena we cannot read; its next one begins when it has stored the blobs."""
        self._say(f"cannot read the arena of stream {hex_u64(stream)}: {text}; its trainer stores large values itself")
        state.owes_hello = True
        state.stop_reading()
        if state.identity is not None:
            self._router.send(state.identity, Reject(stream, "arena", "large values cannot be read from here", True))
            self._streams.forget_peer(state)

    def drop_stream(self, stream: int, state: StreamState) -> None:
        """A stream whose bytes cannot be believed: its session ends; what was written stays."""
        state.stop_reading()
        if state.identity is not None:
            self._router.send(state.identity, Reject(stream, "damage", "these are not records", False))
        self.forget(stream, state)

    def forget(self, stream: int, state: StreamState) -> None:
        """The stream has ended; with the last one of its run, the run's segment is sealed."""
        self._streams.forget(stream)
        self.ended[state.run, stream] = state.is_dead
        writer = self.writers.get(state.run)
        if writer is not None:
            writer.written.pop(stream, None)
            if not self._streams.serves(state.run):
                self._budget.forget_run(state.run)
                self.release(state.run)
