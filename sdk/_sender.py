"""The sender: the one thread of a trainer that carries the ring's records to where they are stored.

It sleeps on its own clock: 5 ms while it finds much, growing to 50 ms when it finds little, woken early only by `flush`
and `finish`. At each wake it looks once at the ring, sends everything un-sent as one message (at most 4 MiB), reads the
acks that are there, and sleeps. Why: each socket call gives the GIL away and getting it back from a busy loop costs up to
5 ms, so the number of calls, not of bytes, is the limit. No Python runs here per record.

States: DOWN (no socket) -> GREETED (Hello sent, waiting for Welcome) -> LIVE (batches and acks) -> DOWN again on silence,
Reject, or when records have to go to the spool. Whatever the state, what is not stored stays in the ring:

* half the ring un-stored, or no daemon for `SPOOL_AGE_SECONDS`: the ring's bytes go to the spool (`sdk._spool`);
* the spool refuses as well: the ring fills, `log()` refuses and counts;
* a budget is reached (`sdk.budget`): nothing new is sent or spooled, the ring fills likewise; but what was accepted when
  the stream ends is stored in any case;
* a new session begins with what is not stored, so nothing is lost and the daemon drops what it has.

Threads: everything here runs in the sender's thread, but for `start`, `flush`, `finish` and the counters they read.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import NamedTuple

from . import _lending, clock
from ._facts import Facts
from ._lending import Lending
from ._pressure import Notices, Pressure
from ._spool import Spool
from ._spooling import Spooling, batch_flags
from ._stacks import Stacks
from ._starting import RESTART_SECONDS_MAX, Starting
from .budget import Budget
from .errors import CommError, Error, ProtocolError
from .files import DISK
from .ids import hex_u64
from .journal.handle import Journal
from .journal.page import Taken
from .journal.upkeep import Upkeep
from .limits import BATCH_BYTES_MAX, KIB, MIB, WIRE_VERSION, WIRE_VERSION_MIN
from .location import StoreIdentity
from .platform import identity, is_locked
from .settings import Settings
from .transport import Connection, endpoint_path, known_lock_path
from .wire.messages import (
    Ack,
    Batch,
    Finish,
    Finished,
    Flush,
    Flushed,
    Hello,
    Message,
    Reject,
    Welcome,
)
from .wire.session import Outbox

WAKE_SECONDS_MIN = 0.005
# More than one message is waiting: 200 MB/s, as a loop of wide rows makes them, need 50 messages a second.
WAKE_SECONDS_FULL = 0.001
WAKE_SECONDS_MAX = 0.05
_BUSY_BYTES = 256 * KIB
# No ack for so long while bytes are in flight, or no Welcome: close the socket and open a new one.
SILENCE_SECONDS = 1.0
# Without a daemon for so long, records go to the spool instead of waiting in memory until half the ring is full.
SPOOL_AGE_SECONDS = 2.0
_SPOOL_INTERVAL_SECONDS = 1.0
_BEGINNING_SECONDS = 0.2
# Beside a daemon that reads the ring and says five times a second that it lives: it is busy, not gone.
_LENT_SILENCE_SECONDS = 0.4
# While bytes are in flight and no ack comes, look so often whether the daemon's process still lives.
_LIVENESS_SECONDS = 0.1
# Limit: what `finish` forces to the disk itself: 50 ms at 300 MB/s. More is left to the kernel, and the receipt says so.
_SYNC_BYTES_MAX = 16 * MIB
# After a Reject that a new Hello may mend. One that it cannot waits `RESTART_SECONDS_MAX`; records go to the spool.
_REJECTED_SECONDS = 0.1

# Connections that a forked child inherited: kept for ever, because closing them there would disturb the parent's.
_inherited: list[Connection] = []

_DOWN, _GREETED, _LIVE = "down", "greeted", "live"


class SenderState(NamedTuple):
    """What a sender had done when it was asked."""

    stored: int
    synced: int
    spooled: int
    ended_in: str


class Sender:
    """Carries one journal."""

    def __init__(
        self, journal: Journal, store: StoreIdentity, run_id: str, stream: int, settings: Settings, version: str
    ) -> None:
        self._journal = journal
        self._store = store
        self._run_id = run_id
        self._stream = stream
        self._settings = settings
        self._version = version
        self._outbox = Outbox(journal.mark()[2])
        self._spool = Spool(
            DISK, store, run_id, stream, bytes_max=settings.spool_bytes_max,
            budget=Budget(settings.store_bytes_max, settings.run_bytes_max, settings.free_bytes_min),
            origin={"kind": "spool", **identity(), "stream": hex_u64(stream)},
        )  # fmt: skip
        self._limits = {"batch_bytes_max": BATCH_BYTES_MAX}
        if settings.run_bytes_max:
            self._limits["run_bytes_max"] = settings.run_bytes_max
        self._connection: Connection | None = None
        self._state = _DOWN
        self._credit_limit = BATCH_BYTES_MAX
        now = clock.monotonic()
        self._heard = now
        self._spooled_since_hello = False
        self._waiting_since: float | None = None  # when the oldest message went out that nothing has answered
        self._lock_path = known_lock_path(store.path)
        self._asked_liveness = now
        self._next_session = 0.0
        self._stuck = False
        self._held = False  # the daemon says that a budget is reached, and will say when it is not any more
        self._taken = 0  # the last sequence that the daemon acked
        self._delay = WAKE_SECONDS_MIN
        self._wake = threading.Lock()
        self._wake.acquire()
        self._thread: threading.Thread | None = None
        self._finish_deadline: float | None = None
        self._is_ending = False  # no more records come; what was accepted is stored past every budget
        self._finish_state = ""
        self._flush_wanted = 0
        self._flush_sent = 0
        self._progress = threading.Condition()
        self.notices = Notices()
        self.on_look: Callable[[], None] | None = None  # called at each look
        self._notice = self.notices.note
        self.facts = Facts(journal, self._notice)
        self._lending = Lending(journal, wanted=settings.ring_reader, wake=self.wake)
        self._upkeep = Upkeep(journal, now, self._notice)
        self._stacks = Stacks(journal, answers=settings.stacks)
        self._pressure = Pressure(journal, store.path, self._notice)
        self._starting = Starting(store.path, settings, now, self._notice)
        self._spooling = Spooling(
            stream, journal, self._outbox, self._spool, self._pressure, self._notice, self._release
        )
        self._blobs = self._spooling.blobs
        self.cpu_seconds = 0.0

    # -- from other threads ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the thread; lazily, so that a script that forks its workers first has no thread then.

        Why the caller connects: opening a socket is a dozen calls that give the GIL away. In a thread beside a busy loop
        that took 80 ms, in which half the ring filled; here it takes one.
        """
        if self._thread is None:
            self._starting.contact = clock.monotonic()
            self._connect(self._starting.contact)
            thread = threading.Thread(target=self._run, name="stepd-sender", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no more threads, or the interpreter is ending: called from inside log()
                self._notice(
                    "thread", f"the sender cannot be started ({error}); records wait in the ring until finish()"
                )
                return
            self._thread = thread

    def adopt_starter(self, pid: int) -> None:
        """Hands over a process started by `_spawn.start`, to be reaped here."""
        self._starting.adopt(pid)

    def wake(self) -> None:
        """Ends the current sleep."""
        with contextlib.suppress(RuntimeError):
            self._wake.release()

    def flush(self, sequence: int, timeout: float) -> bool:
        """Waits until everything up to `sequence` is stored, at most `timeout` seconds; whether it is."""
        self.start()
        deadline = clock.monotonic() + timeout
        self._flush_wanted = max(self._flush_wanted, sequence)
        while self._outbox.stored_sequence < sequence:
            self.wake()
            left = deadline - clock.monotonic()
            if left <= 0 or not self.is_alive():
                return False
            with self._progress:
                self._progress.wait(min(left, 0.05))
        return True

    def make_room(self) -> None:
        """The stream ends: from now on its records are stored past every budget, so that its last facts find room."""
        self._is_ending = True
        self._spooling.pause_until = 0.0
        self.wake()

    def finish(self, timeout: float) -> SenderState:
        """Stores what is left, ends the session and the thread; returns within about `timeout` seconds."""
        self._is_ending = True
        self._finish_deadline = clock.monotonic() + timeout
        if self._thread is None:
            self._finish_here()
        else:
            self.wake()
            self._thread.join(timeout + 5.0)
        return self.state()

    def state(self) -> SenderState:
        outbox = self._outbox
        # The daemon says `synced` for everything up to a sequence; what it cannot know is whether our own part is safe.
        synced = outbox.synced if self._spool.is_safe else min(outbox.synced, self._spool.first - 1)
        return SenderState(outbox.stored_sequence, synced, self._spool.records, self._finish_state)

    def refused_reasons(self) -> dict[str, int]:
        """How many calls of `log` were refused, by reason. After `finish`."""
        return self._pressure.refused_reasons()

    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._stacks.listen()
        while self._finish_deadline is None:
            try:
                self._delay = self._next_delay(self.wake_once(clock.monotonic()))
            except Exception as error:  # a bug of ours must not end the thread: the ring would fill and stay full
                self._notice("bug", f"the sender met an unexpected error, records stay in the ring: {error!r}")
                self._delay = WAKE_SECONDS_MAX
            self.cpu_seconds = clock.cpu()
            self._wake.acquire(timeout=self._delay)
        self._finish_here()
        self.cpu_seconds = clock.cpu()

    def _next_delay(self, found: int) -> float:
        if self._lending.is_read and self._flush_wanted <= self._outbox.stored_sequence:
            return self._next_look(found)
        if found > BATCH_BYTES_MAX:
            return WAKE_SECONDS_FULL
        if found > _BUSY_BYTES or self._flush_wanted > self._outbox.stored_sequence:
            return WAKE_SECONDS_MIN
        return min(self._delay * 1.5, WAKE_SECONDS_MAX)

    def _next_look(self, found: int) -> float:
        """While the daemon reads the ring itself: only what it has stored, and whether it lives, is looked for."""
        large = self._journal.large
        is_filling = found > self._journal.ring.capacity // 4
        if is_filling and not self._pressure.code:
            return WAKE_SECONDS_MIN
        is_wanted = is_filling or self._journal.waiting or (large is not None and large.pending)
        longest = WAKE_SECONDS_MAX if is_wanted else _lending.WAKE_SECONDS_MAX
        return min(self._delay * 1.5, longest)

    def wake_once(self, now: float) -> int:
        """One look; returns the bytes that were waiting."""
        journal, outbox = self._journal, self._outbox
        self._stacks.look(now)
        if self.on_look is not None:
            self.on_look()
        if journal.deferred:
            journal.drain_deferred()
        if journal.waiting:
            journal.look_waiting()
        journal.report_gap()
        self.facts.place()
        found = journal.mark()[0] - outbox.sent[0]
        self._receive(now)
        self._look(now)
        if self._state == _DOWN:
            self._connect(now)
        elif self._is_lost(now):
            self._disconnect()
        if self._state == _LIVE:
            self._send_batch()
            self._ask_for_flush()
        else:
            self._upkeep.cover(journal.mark(), outbox.stored)
        self._maybe_spool(now)
        self._blobs.look(now)
        if self._upkeep.look(now) and self._state == _LIVE:
            self._greet(now)
        self._starting.reap()
        if self._state == _DOWN:
            self._starting.look(now, is_locked=lambda: is_locked(self._lock_path))
        self.notices.show_all(now)
        return found

    def _connect(self, now: float) -> None:
        if now < self._next_session or not self._blobs.may_greet(now, is_last=self._is_ending):
            return
        self._lock_path = self._lock_path or known_lock_path(self._store.path)
        if not is_locked(self._lock_path):
            return
        try:
            self._connection = Connection(endpoint_path(self._store.path))
        except (Error, OSError):
            self._disconnect()
            return
        self._greet(now)

    def _greet(self, now: float) -> None:
        """Says Hello, first in a session or again in the same one, after records went another way than to the daemon."""
        assert self._connection is not None
        ring = self._journal.ring.path or ""
        self._take_back()
        hello = Hello(
            WIRE_VERSION_MIN, WIRE_VERSION, self._stream, self._run_id, self._store.id, self._outbox.stored_sequence,
            ring, os.getpid(), self._version, self._limits, *self._lending.offer(allowed=not self._blobs.all),
        )  # fmt: skip
        try:
            sent = self._connection.send(hello)
        except (Error, OSError):
            sent = False
        if not sent:
            self._disconnect()
            return
        self._state = _GREETED
        self._spooled_since_hello = False
        if self._waiting_since is None:
            self._waiting_since = now

    def _is_lost(self, now: float) -> bool:
        """Whether what is in flight will not be answered: too long a silence, or the daemon's process is gone."""
        if self._waiting_since is None:
            return False
        silence = now - self._waiting_since
        if silence > SILENCE_SECONDS:
            return True
        if silence < _LIVENESS_SECONDS or now - self._asked_liveness < _LIVENESS_SECONDS:
            return False
        self._asked_liveness = now
        return not is_locked(self._lock_path)

    def _look(self, now: float) -> None:
        """What the daemon that reads the ring has stored, and whether it goes on."""
        if not self._lending.is_read:
            return
        taken = self._lending.look(now)
        if taken is not None:
            self._note_taken(taken)
        self._heard = self._starting.contact = self._lending.heard
        waits = self._journal.mark()[0] > self._outbox.stored[0]
        if not waits:
            self._lending.heard = now
        self._waiting_since = self._lending.heard if waits else None
        if self._lending.is_over:
            self._disconnect()

    def _note_taken(self, taken: Taken) -> None:
        if self._outbox.taken(taken.mark, taken.synced):
            self._taken = self._outbox.stored_sequence
            self._release()
            boundaries = self._journal.boundaries
            while boundaries and boundaries[0][0] <= taken.position:
                boundaries.popleft()
        self._pressure.note(taken.trouble)
        self._held = self._pressure.is_budget

    def _take_back(self) -> None:
        """Nobody else reads the ring from now on."""
        was_offered = self._lending.is_offered
        self._lending.take_back()
        taken = self._journal.look()
        # Race: 1. it was taken back, 2. the daemon writes what it had read and says so, 3. it is offered again, and log() lets go of
        # that, 4. the answer to an older Hello says that nobody reads. What log() let go of is noted, or we would spool what is there now.
        if taken is not None and (was_offered or taken.position > self._outbox.stored[0]):
            self._note_taken(taken)

    def _disconnect(self) -> None:
        self._take_back()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        self._state = _DOWN
        self._waiting_since = None
        self._flush_sent = 0
        self._held = False
        self._outbox.open(0)

    def _receive(self, now: float) -> None:
        try:
            while (connection := self._connection) and (message := connection.receive()):
                self._heard = self._starting.contact = now
                self._handle(message, now)
                # An ack of earlier batches does not answer a Hello that was said again: a Welcome is still owed.
                owed = self._outbox.in_flight_bytes or self._state == _GREETED
                self._waiting_since = now if owed else None
        except (CommError, ProtocolError) as error:
            self._notice("wire", f"the daemon's answer is unreadable, reconnecting: {error}")
            self._disconnect()

    def _handle(self, message: Message, now: float) -> None:
        if isinstance(message, Welcome):
            if self._spooled_since_hello:
                self._greet(now)
                if self._connection is None:
                    return
            self._outbox.open(message.credit)
            self._lending.answered(message.reads, now)
            if not self._lending.is_offered:
                self._take_back()
            self._held = False  # one batch tells whether it still is
            self._credit_limit = min(BATCH_BYTES_MAX, message.limits.get("batch_bytes_max", BATCH_BYTES_MAX))
            self._state = _LIVE
            self._starting.welcomed()
            if self._spool.is_open:
                self._spool.seal()
                self._notice("back", "the daemon takes the records again; the spool is closed, nothing was lost")
        elif isinstance(message, (Ack, Flushed, Finished)):
            if self._outbox.acknowledge(message.written, message.synced):
                self._taken = self._outbox.stored_sequence
                self._release()
            if isinstance(message, Ack):
                self._pressure.note(message.trouble)
                self._held = self._pressure.is_budget
            if isinstance(message, Finished):
                self._finish_state = "written"
        elif isinstance(message, Reject):
            self._disconnect()
            self._next_session = now + _REJECTED_SECONDS
            # What it was told of and could not read is stored before it is told again.
            self._blobs.all = self._blobs.all or message.code == "arena"
            if not message.retriable:
                self._notice("reject", f"the daemon refuses this stream ({message.code}): {message.text}")
                self._next_session = now + RESTART_SECONDS_MAX
                self._starting.not_before(self._next_session)

    def _release(self) -> None:
        self._journal.release(self._outbox.stored)
        with self._progress:
            self._progress.notify_all()

    def _send_batch(self) -> bool:
        assert self._connection is not None
        self._blobs.store(clock.monotonic(), is_last=self._is_ending)
        if self._lending.is_read:
            self._journal.open_gate()
            self._upkeep.cover(self._journal.mark(), self._outbox.stored)
            return False
        mark = self._blobs.sendable()
        if self._held and self._outbox.in_flight_bytes and not self._is_ending:
            self._stuck = False
            self._upkeep.cover(mark, self._outbox.stored)
            return False
        span = self._outbox.next(self._journal.boundaries, mark, self._credit_limit)
        # One record larger than any batch: only the spool can take it, and everything behind it waits.
        self._stuck = span is None and mark[0] > self._outbox.sent[0] and not self._outbox.in_flight_bytes
        if span is None:
            self._upkeep.cover(mark, self._outbox.stored)
            return False
        crc = self._upkeep.cover_batch(span.start, (span.end, span.last + 1, span.step_max), mark, self._outbox.stored)
        parts = self._journal.ring.slices(span.start, span.end)
        records = parts[0] if len(parts) == 1 else b"".join(parts)
        batch = Batch(self._stream, span.first, span.last, batch_flags(self._journal, span), span.step_max, records)
        try:
            sent = self._connection.send(batch, payload_crc=crc)
        except CommError:
            sent = False
        if not sent:
            self._disconnect()
        elif self._waiting_since is None:
            self._waiting_since = clock.monotonic()
        return sent

    def _ask_for_flush(self) -> None:
        wanted = self._flush_wanted
        mark, capacity = self._journal.mark(), self._journal.ring.capacity
        if self._lending.is_read and mark[0] - self._outbox.stored[0] > capacity // 4 and not self._held:
            # A daemon that found nothing for long looks seldom.
            wanted = max(wanted, mark[1] - 1) if self._flush_sent <= self._outbox.stored_sequence else wanted
        is_sent = self._lending.is_read or self._outbox.sent[1] > wanted
        if wanted > self._flush_sent and is_sent and self._connection is not None:
            with contextlib.suppress(CommError):
                if self._connection.send(Flush(self._stream, wanted)):
                    self._flush_sent = wanted

    # -- spool -------------------------------------------------------------------------------------------------------

    def _maybe_spool(self, now: float) -> None:
        if self._held and not self._is_ending:
            return  # the spool would fill the same disk
        capacity, is_read = self._journal.ring.capacity, self._lending.is_read
        waiting = self._journal.mark()[0] - self._outbox.stored[0]
        large = self._journal.large.waiting_share() if self._journal.large is not None else 0.0
        # While acks come the daemon is merely busy: it may have a little more of the ring than when nobody answers.
        healthy = self._state == _LIVE and now - self._heard < (_LENT_SILENCE_SECONDS if is_read else 0.1)
        full = max(waiting / capacity, large) > (0.75 if healthy else 0.5)
        old = (
            self._state != _LIVE
            and now - self._starting.contact > SPOOL_AGE_SECONDS
            and now - self._spooling.at > _SPOOL_INTERVAL_SECONDS
        )
        # A session that has just begun answers within milliseconds: the flush may wait for that.
        beginning = self._waiting_since is not None and now - self._waiting_since < _BEGINNING_SECONDS
        urgent = self._state != _LIVE and not beginning and self._flush_wanted > self._outbox.stored_sequence
        stuck = self._state == _LIVE and self._stuck
        if waiting and (full or old or urgent or stuck or self._held) and now >= self._spooling.pause_until:
            self._take_back()
            self._spool_all(now)
            # The session goes on: a new one would cost 60 ms beside a busy loop, in which the ring fills again. What is
            # in flight arrives before this Hello and is a duplicate; its Welcome says that the daemon is through with it.
            self._spooled_since_hello = True
            if self._state == _LIVE:
                self._greet(now)

    def _spool_all(self, now: float) -> bool:
        """Moves what is in the ring now to the spool; whether all of it is stored."""
        self._stuck = False
        why = "the daemon does not keep up with" if self._state == _LIVE else "no daemon takes"
        return self._spooling.all(now, why, is_last=self._is_ending)

    # -- the end -----------------------------------------------------------------------------------------------------

    def _finish_here(self) -> None:
        """Runs to the end: with the daemon while acks advance, else through the spool."""
        last = self._journal.mark()[1] - 1
        try:
            self._finish_with_daemon(last)
        except Exception as error:  # whatever it is: what the daemon did not take goes to the spool
            self._notice("bug", f"the sender met an unexpected error, records go to the spool: {error!r}")
        if self._finish_state != "written" or self._outbox.stored_sequence < last or self.facts.waiting:
            self._disconnect()
            self._finish_state = "spool" if self._spool_rest() else "ring"
        small = self._spool.bytes_written <= _SYNC_BYTES_MAX
        self._spool.seal(sync=small)
        is_safe = self._spool.is_safe and self._spool.media_is_safe
        if self._finish_state == "spool" and is_safe and self._outbox.synced >= self._taken:
            self._outbox.synced = self._outbox.stored_sequence
        self._disconnect()
        self._starting.reap()
        self.notices.show_all(clock.monotonic())
        with self._progress:
            self._progress.notify_all()

    def _spool_rest(self) -> bool:
        """Moves all that is left to the spool, with the facts that had no room in the ring; whether all of it is stored."""
        while self._spool_all(clock.monotonic()):
            mark = self._journal.mark()
            self.facts.place()
            self._journal.report_gap()
            if self._journal.mark() == mark:
                return True
        return False

    def _finish_with_daemon(self, last: int) -> None:
        """Hands over what is left and says Finish, as long as acks advance."""
        assert self._finish_deadline is not None
        deadline = self._finish_deadline
        asked = False
        self._look(clock.monotonic())
        if self._state == _DOWN:
            self._connect(clock.monotonic())
        advanced, stored_before = clock.monotonic(), -1
        while self._finish_state == "":
            now = clock.monotonic()
            if self._state == _DOWN:
                asked = False
                if not self._greets_another(now):
                    break
            self._receive(now)
            self._look(now)
            if self._outbox.stored_sequence > stored_before:
                advanced, stored_before = now, self._outbox.stored_sequence
            if now > deadline or now - advanced > SILENCE_SECONDS:
                break
            # A budget is reached: the daemon writes what it has, and then takes the rest, once it knows that this is the end.
            complete = self._state == _LIVE and not self._send_batch() and self._is_all_sent(last)
            if complete and not asked:
                asked = self._connection is not None and self._connection.send(Finish(self._stream, last))
            if self._connection is not None:
                self._connection.wait(0.02)

    def _is_all_sent(self, last: int) -> bool:
        return self._lending.is_read or self._outbox.sent[1] > last or self._held

    def _greets_another(self, now: float) -> bool:
        """After a Reject: a daemon that took over while we were idle does not know us, and asks for a Hello."""
        pause = self._next_session - now
        if not 0 < pause <= _REJECTED_SECONDS:
            return False
        clock.pause(pause)
        self._connect(now + pause)
        return self._state != _DOWN

    def abandon(self) -> None:
        """In a forked child: the thread does not exist here and the socket is the parent's; forget them."""
        self._thread = None
        if self._connection is not None:
            _inherited.append(self._connection)
            self._connection = None
