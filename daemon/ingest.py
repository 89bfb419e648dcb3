"""Takes records in: the ROUTER socket, one inbox for each stream, rings of the dead; writes them out through segments.

The daemon's only door to ZeroMQ. Everything here runs in the server's thread, a tick at a time: `receive` what is there,
`flush` what is due, `acknowledge` what was written. An ack is sent at the end of each tick to every stream that sent
something in it, also without progress, so that the trainer knows that we live.

Life of a stream here: Hello (or a dead ring) makes it; batches fill it; it is forgotten when it is finished or when its
trainer is dead and its ring drained. Its run's writer is sealed when its last stream is gone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import zmq

from daemon.pipeline import admit
from daemon.pipeline.coalesce import Waiting, coalesce, first_block
from daemon.pipeline.flush import FlushPolicy, Reason
from daemon.settings import DaemonSettings
from daemon.stats import Stats
from daemon.store.run_writer import RunWriter
from daemon.store.syncer import Syncer, SyncJob
from sdk import clock, platform
from sdk.errors import DamageError, Error, RemoteProtocolError
from sdk.files import Files
from sdk.ids import hex_u64
from sdk.journal.drain import Drained, drain, read_header, remove_drafts, ring_paths
from sdk.journal.format import SUFFIX
from sdk.limits import BATCH_BYTES_MAX, MESSAGE_BYTES_MAX, STEP_MAX, WIRE_VERSION
from sdk.location import StoreIdentity
from sdk.record import HEADER_SIZE
from sdk.wire.codec import decode, encode
from sdk.wire.messages import (
    BATCH_HAS_META,
    BATCH_HAS_PIECES,
    Ack,
    Batch,
    Control,
    Finish,
    Finished,
    Flush,
    Flushed,
    Hello,
    Message,
    Reject,
    Welcome,
)
from sdk.wire.session import Inbox

# Messages taken in one tick before something else gets its turn: at most 64 x 4 MiB, and never more than the credit.
_MESSAGES_PER_TICK = 64
_WRITE_PAUSE_SECONDS = 1.0
_FULL_PAUSE_SECONDS = 0.05
# While the syncer is at work, how often its results are looked for.
_SYNC_LOOK_SECONDS = 0.02
# A stream whose ring and process we cannot see counts as living for so long after its last word.
_HEARD_SECONDS = 10.0


class StreamState:
    """What the daemon knows of one stream."""

    __slots__ = (
        "asked", "finishing", "heard", "identity", "inbox", "pid", "policy", "ring", "run", "silent", "unsafe", "waiting",
        "waiting_bytes",
    )  # fmt: skip

    def __init__(self, run: str, stored: int, policy: FlushPolicy) -> None:
        self.run = run
        self.inbox = Inbox(stored)
        self.policy = policy
        self.waiting: list[Waiting] = []
        self.waiting_bytes = 0
        self.identity: bytes | None = None
        self.ring = ""
        self.pid = 0
        self.heard = 0.0
        self.finishing: int | None = None
        self.asked: int | None = None
        self.silent = True
        # Records of it lie in a segment whose fsync failed: `synced` stays where it is for ever.
        self.unsafe = False


class Ingest:
    """The socket and the streams behind it."""

    def __init__(
        self,
        files: Files,
        store: StoreIdentity,
        settings: DaemonSettings,
        stats: Stats,
        make_writer: Callable[[str], RunWriter],
        say: Callable[[str], None],
    ) -> None:
        self._files = files
        self._store = store
        self._settings = settings
        self._stats = stats
        self._make_writer = make_writer
        self._say = say
        self._context = zmq.Context(io_threads=1)
        self._socket: zmq.Socket[bytes] | None = None
        self._path = ""
        self.streams: dict[int, StreamState] = {}
        self.writers: dict[str, RunWriter] = {}
        self._stream_of: dict[bytes, int] = {}
        self._syncer = Syncer(files)
        self._synced_at = 0.0
        self._sync_seconds = settings.sync_seconds
        self._sync_spent = 0.0
        self._write_pause_until = 0.0
        self._directories_synced: set[str] = set()
        self._refused: set[str] = set()
        self.control: Callable[[Control], dict[str, Any]] = lambda message: {}

    # -- socket ------------------------------------------------------------------------------------------------------

    def bind(self, path: str) -> None:
        """Opens the socket at `path`. The caller holds the store's lock."""
        socket = self._context.socket(zmq.ROUTER)
        socket.linger = 200
        socket.set(zmq.ROUTER_MANDATORY, 1)
        socket.set(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
        # Limit: acks that wait for a trainer that was stopped. A lost one is made good by the next, or by a new session.
        socket.set(zmq.SNDHWM, 1000)
        socket.set(zmq.RCVHWM, 64)
        socket.set(zmq.HANDSHAKE_IVL, 5000)
        socket.set(zmq.BACKLOG, 512)
        with contextlib.suppress(AttributeError, zmq.ZMQError):
            socket.set(zmq.IPC_FILTER_UID, os.getuid())
        before = os.umask(0o077)
        try:
            socket.bind(f"ipc://{path}")
        except BaseException:
            socket.close(linger=0)
            raise
        finally:
            os.umask(before)
        self._socket, self._path = socket, path

    def socket_is_ours(self) -> bool:
        """Whether the socket's file still exists; somebody may have cleaned /tmp."""
        return os.path.exists(self._path)

    def rebind(self) -> None:
        """Opens the socket again after its file was removed; sessions begin anew."""
        path = self._path
        self.unbind()
        self.bind(path)

    def forget_socket(self) -> None:
        """The file at our path, if there is one, is another daemon's: it stays when we leave."""
        self._path = ""

    def unbind(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            socket.close()
        # A new socket deals out its own identities: one of the old ones must not be taken for a new peer.
        self._stream_of.clear()
        for state in self.streams.values():
            state.identity = None

    def wait(self, seconds: float) -> None:
        """Waits until a message is there, at most `seconds`."""
        if self._socket is None or self._is_full():
            clock.pause(min(seconds, _FULL_PAUSE_SECONDS))
        else:
            with contextlib.suppress(zmq.ZMQError):
                self._socket.poll(max(int(seconds * 1000), 0))

    def _send(self, identity: bytes, message: Message) -> None:
        """Sends, or forgets it when that peer is gone: it will say Hello again."""
        if self._socket is None:
            return
        with contextlib.suppress(zmq.ZMQError):
            self._socket.send_multipart([identity, *encode(message)], zmq.DONTWAIT)

    def receive(self, now: float) -> int:
        """Takes the messages that are there, at most `_MESSAGES_PER_TICK`; returns how many."""
        if self._socket is None or self._is_full():
            return 0
        count = 0
        while count < _MESSAGES_PER_TICK:
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                break
            except zmq.ZMQError as error:
                self._stats.last_error = f"receive: {error}"
                break
            count += 1
            identity = frames[0].bytes
            try:
                self._handle(identity, decode([frame.buffer for frame in frames[1:]]), now)
            except (RemoteProtocolError, DamageError) as error:
                self._stats.protocol_errors += 1
                self._stats.last_error = str(error)
                self._send(identity, Reject(self._stream_of.get(identity, 0), "protocol", str(error)[:500], True))
            except Exception as error:  # a bug that one session met must not end the daemon for all the others
                self._stats.last_error = f"unexpected: {error!r}"[:500]
                self._say(f"a message met an unexpected error: {error!r}")
                self._send(identity, Reject(self._stream_of.get(identity, 0), "bug", repr(error)[:500], True))
        return count

    def _is_full(self) -> bool:
        waiting = sum(state.waiting_bytes for state in self.streams.values())
        return waiting > self._settings.pending_bytes_max

    def _handle(self, identity: bytes, message: Message, now: float) -> None:
        if isinstance(message, Batch):
            self._batch(identity, message, now)
        elif isinstance(message, Hello):
            self._hello(identity, message, now)
        elif isinstance(message, Control):
            self._control(identity, message)
        elif isinstance(message, (Flush, Finish)):
            state = self._session(identity, message.stream)
            if state is None:
                return
            if isinstance(message, Flush):
                state.asked = max(state.asked or 0, message.sequence)
                state.policy.ask(Reason.REQUEST)
            else:
                state.finishing = message.sequence
                state.policy.ask(Reason.FINISH)
        else:
            raise RemoteProtocolError(f"{type(message).__name__} is not for a daemon")

    def _control(self, identity: bytes, message: Control) -> None:
        try:
            answer = Control(message.id, "reply", self.control(message))
            encode(answer)
        except Exception as error:
            answer = Control(message.id, "error", {"text": str(error)[:500]})
        self._send(identity, answer)

    def _hello(self, identity: bytes, hello: Hello, now: float) -> None:
        refusal = admit.refusal(hello, self._store.id)
        if refusal is not None:
            self._say(f"refused stream {hex_u64(hello.stream)}: {refusal.text}")
            self._send(identity, refusal)
            return
        state = self.streams.get(hello.stream)
        if state is None:
            state = self._new_stream(hello.stream, hello.run, hello.stored)
        if state.identity is not None:
            self._stream_of.pop(state.identity, None)
        state.inbox.greet(hello.stored)
        # What came in an earlier session and waits is still good: the inbox knows it as received.
        state.identity, state.ring, state.pid, state.heard = identity, hello.ring, hello.pid, now
        state.finishing = state.asked = None
        self._stream_of[identity] = hello.stream
        inbox = state.inbox
        limits = admit.common_limits(hello)
        from sdk import __version__

        self._send(
            identity,
            Welcome(
                WIRE_VERSION, hello.stream, inbox.written, inbox.synced, admit.credit(len(self.streams)), os.getpid(),
                __version__, limits,
            ),
        )  # fmt: skip

    def _new_stream(self, stream: int, run: str, stored: int) -> StreamState:
        state = StreamState(run, stored, FlushPolicy(self._settings, self._stats.flushes))
        self.streams[stream] = state
        return state

    def _session(self, identity: bytes, stream: int) -> StreamState | None:
        """The stream if this peer greeted for it; else the peer is told to greet."""
        if self._stream_of.get(identity) == stream:
            return self.streams.get(stream)
        self._send(identity, Reject(stream, "hello", "say Hello first", True))
        return None

    def _batch(self, identity: bytes, batch: Batch, now: float) -> None:
        state = self._session(identity, batch.stream)
        if state is None:
            return
        self._stats.batches += 1
        state.heard, state.silent = now, False
        if not self._take(batch.stream, state, batch, now):
            text = f"records {state.inbox.received + 1} to {batch.first - 1} are missing"
            self._send(identity, Reject(batch.stream, "hole", text, True))

    def _take(self, stream: int, state: StreamState, batch: Batch, now: float) -> bool:
        """Adds the new part of a batch to what waits; False when records before it are missing."""
        before = state.inbox.received
        skip = state.inbox.admit(batch.first, batch.last)
        if skip is None:
            return False
        count = batch.last - batch.first + 1
        self._stats.duplicates += skip
        if skip == count:
            return True
        try:
            records = batch.records if not skip else _without_first(batch.records, skip)
        except DamageError:
            state.inbox.received = before  # else they would count as received, and be acked with what follows
            raise
        state.waiting.append(Waiting(batch.first + skip, batch.last, batch.flags, batch.step_max, records))
        state.waiting_bytes += len(records)
        state.policy.note(now, len(records), has_commits=not batch.flags & BATCH_HAS_PIECES)
        return True

    # -- writing -----------------------------------------------------------------------------------------------------

    def flush(self, now: float, reason: Reason | None = None) -> None:
        """Writes what is due, or everything for `reason`; sends acks to everybody who was heard in this tick."""
        for stream, state in list(self.streams.items()):
            due = state.policy.due(now) if reason is None else reason
            if due is not None and (now >= self._write_pause_until or reason is not None):
                self._flush_stream(stream, state, due, now)
            if not state.silent or due is not None:
                self._acknowledge(stream, state)
                state.silent = True

    def _flush_stream(self, stream: int, state: StreamState, reason: Reason, now: float) -> None:
        while state.waiting:
            part = state.waiting[: first_block(state.waiting)]
            try:
                payload = coalesce(part)
                self.writer(state.run).append(stream, payload)
            except OSError as error:
                # Nothing is acked, so the ring keeps it, and what waits here is bounded by the credit.
                self._trouble(f"cannot write run {state.run!r}: {error}", now)
                return
            except Exception as error:  # DamageError, or a bug that these bytes find: it must not end the daemon
                self._say(f"stream {hex_u64(stream)} sent records that cannot be read: {error!r}")
                self._stats.last_error = str(error)[:500]
                self._drop_stream(stream, state)
                return
            self._stats.note_written(now, payload.last - payload.first + 1, len(payload.raw))
            state.inbox.written = max(state.inbox.written, payload.last)
            del state.waiting[: len(part)]
            state.waiting_bytes -= sum(len(waiting.records) for waiting in part)
        state.policy.flushed(reason)
        self._answer_requests(stream, state)

    def _answer_requests(self, stream: int, state: StreamState) -> None:
        inbox = state.inbox
        if state.asked is not None and inbox.written >= state.asked:
            state.asked = None
            if state.identity is not None:
                self._send(state.identity, Flushed(stream, inbox.written, inbox.synced))
        if state.finishing is not None and inbox.written >= state.finishing:
            if state.identity is not None:
                self._send(state.identity, Finished(stream, inbox.written, inbox.synced))
            self._forget(stream, state)

    def _acknowledge(self, stream: int, state: StreamState) -> None:
        if state.identity is not None:
            self._send(state.identity, Ack(stream, state.inbox.written, state.inbox.synced))

    def _trouble(self, text: str, now: float) -> None:
        self._stats.write_failures += 1
        self._stats.last_error = text
        self._write_pause_until = now + _WRITE_PAUSE_SECONDS
        self._say(text)

    def _drop_stream(self, stream: int, state: StreamState) -> None:
        """A stream whose bytes cannot be believed: its session ends; what was written stays."""
        if state.identity is not None:
            self._send(state.identity, Reject(stream, "damage", "these are not records", False))
        self._forget(stream, state)

    def _forget(self, stream: int, state: StreamState) -> None:
        self.streams.pop(stream, None)
        if state.identity is not None:
            self._stream_of.pop(state.identity, None)
        if state.run in self.writers:
            self.writers[state.run].written.pop(stream, None)
        if not any(other.run == state.run for other in self.streams.values()):
            writer = self.writers.get(state.run)
            if writer is not None:
                writer.roll()

    def writer(self, run: str) -> RunWriter:
        """The writer of a run, made when it is first needed."""
        found = self.writers.get(run)
        if found is None:
            found = self.writers[run] = self._make_writer(run)
        return found

    # -- forcing to the disk -----------------------------------------------------------------------------------------

    def sync(self, now: float) -> None:
        """Hands dirty segments to the syncer at its interval, and takes its results."""
        for result in self._syncer.take():
            self._sync_spent += result.seconds
            if result.error is not None:
                self._sync_failed(result.job, result.error)
            else:
                self._note_synced(result.job)
        if not self._syncer.outstanding:
            # Limit: forcing takes at most `sync_share_max` of the time, also on a disk that needs 20 ms for each segment.
            if self._sync_spent:
                self._sync_seconds = max(self._settings.sync_seconds, self._sync_spent / self._settings.sync_share_max)
            self._sync_spent = 0.0
        # Invariant: a run's segments are handed over in the order in which they were written, and each with what had
        # been written when it was: what comes back may then be claimed for everything before it too.
        for writer in self.writers.values():
            for segment, written in writer.retired:
                self._syncer.submit(SyncJob(segment, written, writer.directory, True))
                self._directories_synced.discard(segment.path)
            writer.retired.clear()
        if now - self._synced_at >= self._sync_seconds and not self._syncer.outstanding:
            self._synced_at = now
            for writer in self.writers.values():
                if writer.segment is not None and writer.dirty:
                    writer.dirty = False
                    directory = None if writer.segment.path in self._directories_synced else writer.directory
                    self._directories_synced.add(writer.segment.path)
                    self._syncer.submit(SyncJob(writer.segment, dict(writer.written), directory, False))

    def _note_synced(self, job: SyncJob) -> None:
        for stream, written in job.written.items():
            state = self.streams.get(stream)
            if state is not None and not state.unsafe and written > state.inbox.synced:
                state.inbox.synced = written
                state.silent = False

    def _sync_failed(self, job: SyncJob, error: OSError) -> None:
        """A failed fsync is never retried on the same file: what was in its pages may be gone, and a retry would lie."""
        self._stats.sync_failures += 1
        self._stats.last_error = f"fsync of {job.segment.path!r}: {error}"
        self._say(f"{self._stats.last_error}; going on in a new segment")
        for stream, written in job.written.items():
            state = self.streams.get(stream)
            if state is not None and written > state.inbox.synced:
                state.unsafe = True
        self._directories_synced.discard(job.segment.path)
        for writer in self.writers.values():
            if writer.segment is job.segment:
                writer.give_up()

    def synced_age(self, now: float) -> float:
        """Seconds for which something written has not been forced; 0 when all of it was."""
        behind = self._syncer.outstanding or any(w.dirty or w.retired for w in self.writers.values())
        return now - self._synced_at if behind else 0.0

    # -- the dead ----------------------------------------------------------------------------------------------------

    def look_for_dead(self, now: float) -> bool:
        """Drains rings whose owner died; returns whether a living trainer of this store was seen."""
        living = False
        digest = platform.store_digest(self._store.path)
        remove_drafts(self._settings.shared_memory_dir, digest)
        paths = set(ring_paths(self._settings.shared_memory_dir, digest))
        # A trainer may have been told of another shared memory than we were.
        paths.update(state.ring for state in self.streams.values() if _is_ring(state.ring, digest))
        for path in sorted(paths):
            try:
                lock = platform.open_shared(path)
            except (OSError, ValueError) as error:  # a directory, a link, a file of someone else: not made by us
                self._set_aside(path, error)
                continue
            if lock is None:
                living = living or os.path.exists(path)
                continue
            try:
                self._drain(path, now)
            finally:
                lock.release()
        for stream, state in list(self.streams.items()):
            if not _is_ring(state.ring, digest) or not os.path.exists(state.ring):
                living = self._end_without_ring(stream, state, now) or living
        return living

    def _end_without_ring(self, stream: int, state: StreamState, now: float) -> bool:
        """A stream with no ring that we can see: only its process tells whether it lives.

        Why a recent word counts too: in a container with other pids we see neither. A trainer that is forgotten by
        mistake says Hello again.
        """
        if now - state.heard < _HEARD_SECONDS or (state.pid and os.path.exists(f"/proc/{state.pid}")):
            return True
        self._flush_stream(stream, state, Reason.DRAIN, now)
        if not state.waiting:
            self._forget(stream, state)
        return False

    def _drain(self, path: str, now: float) -> None:
        """Takes over a dead trainer's ring; removes it when its records are written."""
        try:
            drained = drain(path)
            run = str(drained.header.identity["run"])
            if drained.header.identity.get("store") != self._store.id:
                return
        except FileNotFoundError:  # its trainer finished between our look and now
            return
        except Exception as error:  # whatever these bytes are, the next look may meet them again
            self._set_aside(path, error)
            return
        stream = drained.header.stream
        state = self.streams.get(stream)
        if state is None:
            state = self._new_stream(stream, run, drained.first - 1 if drained.record_count else 0)
        for batch in _batches(stream, drained):
            if not self._take(stream, state, batch, now):
                state.inbox.greet(batch.first - 1)
                self._take(stream, state, batch, now)
        self._flush_stream(stream, state, Reason.DRAIN, now)
        if state.waiting or not self._note_losses(stream, run, drained, now):
            return
        self._stats.drained += 1
        self._say(
            f"drained {drained.record_count} records of run {run!r} from the ring of a dead trainer ({hex_u64(stream)})"
        )
        with contextlib.suppress(OSError):
            os.unlink(path)
        self._forget(stream, state)

    def _note_losses(self, stream: int, run: str, drained: Drained, now: float) -> bool:
        """Writes what the ring says is missing as GAP blocks; whether that went well."""
        try:
            if drained.gap is not None:
                self.writer(run).append_gap(stream, drained.gap)
            if drained.damage is not None:
                self._say(f"ring of {hex_u64(stream)}: {drained.damage}")
                gap = {"episode": 0, "count": 0, "reason": f"ring damaged: {drained.damage}"}
                self.writer(run).append_gap(stream, gap)
        except OSError as error:
            self._trouble(f"cannot write run {run!r}: {error}", now)
            return False
        return True

    def _set_aside(self, path: str, error: object) -> None:
        """A ring that cannot be read: its process died while making it (then it is empty), or it is damaged."""
        if path not in self._refused:
            self._refused.add(path)
            self._say(f"cannot drain {path!r}: {error}")
        with contextlib.suppress(OSError):
            if not _has_records(path):
                os.unlink(path)

    def refused_by_stream(self) -> dict[int, int]:
        """Refused counts of living trainers, read from the header pages of their rings."""
        counts = {}
        digest = platform.store_digest(self._store.path)
        for stream, state in self.streams.items():
            with contextlib.suppress(OSError, Error, ValueError):
                if _is_ring(state.ring, digest):
                    counts[stream] = read_header(state.ring).refused
        return counts

    def next_deadline(self, now: float) -> float:
        """Seconds until something is due without a new message."""
        longest = self._settings.liveness_seconds
        if self._syncer.outstanding:
            longest = min(longest, _SYNC_LOOK_SECONDS)
        elif any(writer.dirty or writer.retired for writer in self.writers.values()):
            longest = min(longest, max(self._synced_at + self._sync_seconds - now, 0.0))
        deadlines = [d for state in self.streams.values() if (d := state.policy.deadline()) is not None]
        if not deadlines:
            return longest
        return min(longest, max(min(deadlines) - now, self._write_pause_until - now, 0.0))

    def close(self) -> None:
        """Writes and seals everything, ends the syncer, closes the socket."""
        now = clock.monotonic()
        self.flush(now, Reason.DRAIN)
        for writer in self.writers.values():
            writer.roll()
        self.sync(now)
        self._syncer.stop()
        self.unbind()
        self._context.destroy(linger=200)


def _without_first(records: Any, skip: int) -> Any:
    """The bytes of a batch without its first `skip` records.

    Raises:
        DamageError: It does not hold so many and one more.
    """
    offset = 0
    for _ in range(skip):
        offset = _next_record(records, offset)
    if len(records) - offset < HEADER_SIZE:
        raise DamageError(f"a batch of {len(records)} bytes holds fewer records than it says")
    return memoryview(records)[offset:]


def _next_record(records: Any, offset: int) -> int:
    size = int.from_bytes(records[offset : offset + 4], "little")
    if size < HEADER_SIZE or offset + size > len(records):
        raise DamageError(f"record at byte {offset} claims {size} bytes; {len(records) - offset} are left")
    return offset + size


def _batches(stream: int, drained: Drained) -> Iterator[Batch]:
    """What a ring held, as batches of the size that a trainer sends."""
    records = memoryview(drained.records)
    flags = BATCH_HAS_PIECES | BATCH_HAS_META
    start = end = 0
    first = sequence = drained.first
    while end < len(records):
        after = _next_record(records, end)
        if after - start > BATCH_BYTES_MAX and end > start:
            yield Batch(stream, first, sequence - 1, flags, STEP_MAX, records[start:end])
            start, first = end, sequence
        end, sequence = after, sequence + 1
    if end > start:
        yield Batch(stream, first, sequence - 1, flags, STEP_MAX, records[start:end])


def _is_ring(path: str, digest: str) -> bool:
    name = os.path.basename(path)
    return os.path.isabs(path) and name.startswith(f"{digest}-") and name.endswith(SUFFIX)


def _has_records(path: str) -> bool:
    """Whether the first word of a ring's header says that something was ever published."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        return any(os.pread(descriptor, 8, 0))
    finally:
        os.close(descriptor)
