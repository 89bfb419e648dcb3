"""sdk._sender: a real journal, sender and daemon in one process, each ticked by hand under one false clock."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from daemon.lifecycle import take_store
from daemon.pipeline import admit
from sdk import _sender, _spawn, clock, platform
from sdk._sender import SILENCE_SECONDS, SPOOL_AGE_SECONDS, Sender
from sdk.errors import CommError, StoreError
from sdk.files import DISK
from sdk.ids import hex_u64
from sdk.journal.appender import open_journal
from sdk.journal.format import CAPACITY_MIN
from sdk.journal.handle import Journal
from sdk.journal.ring import Ring
from sdk.limits import BATCH_BYTES_MAX
from sdk.location import StoreIdentity
from sdk.platform import HeldLock
from sdk.record import KIND_META, decode_map
from sdk.settings import Settings
from sdk.transport import Connection
from sdk.wire.messages import Ack, Batch, Finish, Flush, Hello, Message, Reject, Welcome
from tests.ingest_rig import STREAM, Rig
from tests.serving import RUN, Held, held, temporary_store, until


class World:
    """A trainer and, from `serve` on, a daemon. Time passes only in `pass_time`."""

    def __init__(self, store: StoreIdentity, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.now = 5000.0
        self.rig: Rig | None = None
        self.lock: HeldLock | None = None
        self.said: list[str] = []
        self.started: list[str] = []
        self.sent: list[Message] = []
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(clock, "monotonic", lambda: self.now)
        monkeypatch.setattr(_spawn, "start", lambda path, **options: self.started.append(path) or 0)
        real = Connection.send

        def send(connection: Connection, message: Message, **options: Any) -> bool:
            self.sent.append(message)
            return real(connection, message, **options)

        monkeypatch.setattr(Connection, "send", send)
        self.trainer()

    def trainer(self, capacity: int = CAPACITY_MIN, **settings: Any) -> None:
        """A new stream; rows of about 100 bytes."""
        identity = {"run": RUN, "store": self.store.id}
        self.ring = Ring.private(STREAM, identity, capacity)
        self.journal: Journal = open_journal(self.ring)
        self.sender = Sender(self.journal, self.store, RUN, STREAM, Settings(**settings), "0.1.0")
        self.sender.notices.show = self.said.append
        self.count = 0

    def log(self, count: int = 1, text: str = "x" * 40) -> None:
        for _ in range(count):
            self.journal.log({"loss": 0.5, "text": text})
        self.count += count

    def serve(self) -> Rig:
        self.lock = self.lock or take_store(self.store.path, "test")
        assert self.lock is not None
        self.rig = Rig(self.store)
        return self.rig

    def kill_daemon(self) -> None:
        """Socket and lock go, nothing is written any more."""
        assert self.rig is not None
        assert self.lock is not None
        self.rig.ingest.streams.clear()
        self.rig.close()
        self.lock.release()
        self.rig = self.lock = None

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        if self.rig is not None:
            self.rig.now += seconds

    def tick(self, seconds: float = 0.0) -> None:
        """Both look once."""
        self.pass_time(seconds)
        self.sender.wake_once(self.now)
        if self.rig is not None:
            self.rig.tick()

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 0.0) -> None:
        until(lambda: self.tick(seconds) or condition(), what)

    def live(self) -> None:
        self.until(lambda: self.state == "live", "a session")

    @property
    def state(self) -> str:
        return self.sender._state

    @property
    def stored(self) -> int:
        return self.sender._outbox.stored_sequence

    @property
    def held(self) -> Held:
        return held(self.store.path)

    def finish(self, timeout: float = 10.0) -> _sender.SenderState:
        """The end, with the daemon looking in between."""
        real = Connection.wait

        def wait(connection: Connection, seconds: float) -> bool:
            self.pass_time(seconds)
            if self.rig is not None:
                self.rig.tick()
            return real(connection, 0.001)

        with self._monkeypatch.context() as patch:
            patch.setattr(Connection, "wait", wait)
            return self.sender.finish(timeout)

    def close(self) -> None:
        self.sender._disconnect()
        self.sender._spool.seal()
        if self.rig is not None:
            self.rig.files.allow()
            self.rig.close()
        if self.lock is not None:
            self.lock.release()

    def of(self, kind: type[Message]) -> list[Any]:
        return [message for message in self.sent if isinstance(message, kind)]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with temporary_store() as store:
        made = World(store, monkeypatch)
        yield made
        made.close()


def all_of(world: World) -> list[int]:
    return list(range(1, world.count + 1))


# -- with a daemon --------------------------------------------------------------------------------------------------


def test_records_go_to_the_daemon_and_the_ring_is_released(world: World) -> None:
    """One message for all that waits, acks as they come, nothing spooled, nothing said."""
    world.serve()
    world.log(100)
    world.live()
    world.until(lambda: world.stored == 100, "an ack", 0.05)
    assert [(b.first, b.last) for b in world.of(Batch)] == [(1, 100)]
    assert world.ring.words[8] == world.journal.mark()[0]
    assert world.held.sequences(STREAM) == all_of(world)
    assert not world.sender._spool.is_open
    assert world.said == []


def test_more_than_the_credit_goes_in_several_batches(world: World) -> None:
    """Batches end where a record ends, and never more is in flight than the daemon allows."""
    world.trainer(16 << 20)
    rig = world.serve()
    world.live()
    rig.files.refuse("append")
    world.log(120_000)
    for _ in range(20):
        world.sender.wake_once(world.now)
    limit = world.sender._outbox._credit
    assert 2 * BATCH_BYTES_MAX < world.sender._outbox.in_flight_bytes <= limit
    assert max(len(batch.records) for batch in world.of(Batch)) <= BATCH_BYTES_MAX
    rig.files.allow()
    rig.now += 2
    world.until(lambda: world.stored == world.count, "all acks", 0.01)
    assert world.held.covered(STREAM) == all_of(world)


def test_an_ack_on_its_way_is_no_welcome(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After spooling Hello is said again; the daemon dies before its Welcome, and an older ack comes: a new session begins.

    Found by the torture `schedules`: the ack was taken for the answer, and the trainer waited for the Welcome for ever.
    """
    world.trainer(64 << 10)
    rig = world.serve()
    world.live()
    world.log()
    world.sender.wake_once(world.now)
    until(lambda: rig.tick(), "the batch")
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "receive", lambda self: None)  # the ack is here, but nobody has looked yet
        world.log(600)
        world.sender.wake_once(world.now)
    assert world.state == "greeted"
    world.kill_daemon()
    world.sender.wake_once(world.now)
    world.serve()
    world.until(lambda: world.state == "live", "another session", 0.2)


def test_the_end_with_a_daemon(world: World) -> None:
    """Everything is written when finish returns, and the daemon has sealed the stream's segment."""
    rig = world.serve()
    world.log(10)
    state = world.finish()
    assert (state.stored, state.spooled, state.ended_in) == (10, 0, "written")
    assert rig.ingest.streams == {}
    rig.sync()
    assert world.held.unsealed == []
    assert world.held.sequences(STREAM) == all_of(world)


def test_flags_say_what_is_in_a_batch(world: World) -> None:
    """The daemon looks for pieces and facts only where they are said to be."""
    world.serve()
    world.live()
    world.log(3)
    world.tick()
    world.journal.log({"a": 1}, commit=False)
    world.tick()
    world.journal.append_meta({"summary": {"x": 1}})
    world.journal.log({}, commit=True)
    world.tick()
    world.log(1)
    world.tick()
    assert [batch.flags for batch in world.of(Batch)] == [0, 1, 2, 0]


def test_a_flush_is_asked_for_once(world: World) -> None:
    """By whoever waits; the answer ends the waiting."""
    world.serve()
    world.live()
    world.log(5)
    world.sender._flush_wanted = 5
    world.until(lambda: world.stored == 5, "the flush")
    world.tick()
    assert world.of(Flush) == [Flush(STREAM, 5)]


def test_silence_with_nothing_in_flight_is_peace(world: World) -> None:
    """A loop that logs once an hour keeps its session, and its first record after the hour goes through it."""
    world.serve()
    world.live()
    for _ in range(5):
        world.log()
        world.tick(3600.0)
        world.until(lambda: world.stored == world.count, "an ack", 0.02)
    assert len(world.of(Hello)) == 1


def test_silence_with_bytes_in_flight_begins_a_new_session(world: World) -> None:
    """A daemon that hangs is left after a second; what it did not ack is sent again, and stored once."""
    rig = world.serve()
    world.live()
    world.log(10)
    world.sender.wake_once(world.now)
    assert world.sender._outbox.in_flight_bytes
    for _ in range(3):
        world.pass_time(SILENCE_SECONDS / 2.5)
        world.sender.wake_once(world.now)
    assert world.state != "live"
    world.until(lambda: world.stored == 10, "the second try", 0.05)
    assert len(world.of(Hello)) == 2
    assert world.held.sequences(STREAM) == all_of(world)
    assert rig.stats.duplicates in (0, 10)


def test_a_dead_daemon_is_noticed_within_a_tenth_of_a_second(world: World) -> None:
    """Its lock is free, so waiting for its answer is no use."""
    world.serve()
    world.live()
    world.log(10)
    world.sender.wake_once(world.now)
    world.kill_daemon()
    world.tick(0.11)
    assert world.state == "down"
    assert world.sender._outbox.sent == world.sender._outbox.stored


def test_a_killed_daemon_loses_nothing(world: World) -> None:
    """What was written is acked, what waited there is sent to the next one."""
    world.serve()
    world.live()
    world.log(10)
    world.until(lambda: world.stored == 10, "an ack", 0.05)
    world.log(10)
    world.tick()
    world.kill_daemon()
    world.log(10)
    world.tick(0.2)
    world.serve()
    world.until(lambda: world.stored == 30, "the new daemon's ack", 0.05)
    assert world.held.sequences(STREAM) == all_of(world)


# -- a daemon that refuses ---------------------------------------------------------------------------------------------


def test_a_final_refusal_ends_in_the_spool_and_is_not_repeated(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version's daemon: it is asked once in five minutes, not at every wake; the user hears why."""
    rig = world.serve()
    too_old = Reject(STREAM, "version", "too old", False)
    monkeypatch.setattr(admit, "refusal", lambda *_: too_old)
    world.log(10)
    world.until(lambda: any("too old" in text for text in world.said), "the refusal")
    for _ in range(100):
        world.tick(0.05)
    assert len(world.of(Hello)) == 1
    assert world.stored == 10
    assert world.held.sequences(STREAM) == all_of(world)
    assert world.started == [], "another daemon of the same store would not help"
    assert rig.ingest.streams == {}


def test_a_refusal_that_may_pass_is_tried_again_soon(world: World) -> None:
    """A stream that the daemon forgot says Hello again, without bothering the user."""
    rig = world.serve()
    world.live()
    rig.ingest.streams.clear()
    rig.ingest.table._of_peer.clear()
    world.log(3)
    world.until(lambda: world.stored == 3, "the new session", 0.05)
    assert len(world.of(Hello)) == 2
    assert world.said == []


def test_a_hole_is_mended(world: World) -> None:
    """A batch that got lost on the way is noticed by the next one, and everything is sent again."""
    world.serve()
    world.live()
    world.log(5)
    outbox = world.sender._outbox
    outbox.next(world.journal.boundaries, world.journal.mark())  # goes nowhere
    world.log(5)
    world.until(lambda: world.stored == 10, "the mended session", 0.05)
    assert world.held.sequences(STREAM) == all_of(world)


def test_an_unreadable_answer_begins_a_new_session(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is believed, and nothing is lost."""
    world.serve()
    world.live()
    world.log(5)
    world.sender.wake_once(world.now)
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "receive", lambda self: (_ for _ in ()).throw(CommError("bent")))
        world.sender.wake_once(world.now)
    world.until(lambda: world.stored == 5, "another session", 0.05)


def test_absurd_acks_release_nothing_that_was_not_sent(world: World) -> None:
    """A daemon that acknowledges the future."""
    world.serve()
    world.live()
    world.log(5)
    world.sender._handle(Ack(STREAM, 10**9, 10**9), world.now)
    assert world.stored == 0
    assert world.ring.words[8] == 0


def test_what_is_in_flight_stays_in_the_ring(world: World) -> None:
    """An ack frees what it covers: a batch behind it that was sent and not answered may still be lost."""
    world.serve()
    world.live()
    marks = []
    for _ in range(2):
        world.log(5)
        world.sender.wake_once(world.now)
        marks.append(world.journal.mark())
    assert world.sender._outbox.sent == marks[1]
    world.sender._handle(Ack(STREAM, 5, 0), world.now)
    assert world.ring.words[8] == marks[0][0]


def test_a_welcome_with_little_credit_ends_in_the_spool(world: World) -> None:
    """Where not even one record fits into what the daemon allows, the spool takes them instead of letting the ring fill."""
    world.serve()
    world.live()
    world.sender._handle(Welcome(1, STREAM, 0, 0, 10, 1, "x", {"batch_bytes_max": 1}), world.now)
    world.log(5)
    world.tick()
    world.tick()
    assert world.stored == 5
    assert world.held.sequences(STREAM) == all_of(world)


# -- without a daemon ---------------------------------------------------------------------------------------------------


def test_after_two_seconds_without_a_daemon_records_are_spooled(world: World) -> None:
    """Once a second, so that they can be read; the user hears of it once."""
    world.log(5)
    world.tick(SPOOL_AGE_SECONDS / 2)
    assert world.stored == 0
    world.tick(SPOOL_AGE_SECONDS)
    assert world.stored == 5
    world.log(5)
    world.tick(0.1)
    assert world.stored == 5
    world.tick(1.0)
    assert world.stored == 10
    assert world.held.sequences(STREAM) == all_of(world)
    assert len([text for text in world.said if "spool" in text]) == 1


def test_half_a_ring_is_spooled_at_once(world: World) -> None:
    """Whatever the time, before `log` would have to refuse."""
    while world.journal.mark()[0] * 2 <= world.ring.capacity:
        world.log()
    world.tick()
    assert world.stored == world.count
    assert world.held.sequences(STREAM) == all_of(world)


def test_a_waiting_flush_is_spooled_at_once(world: World) -> None:
    """Whoever waits for `flush` waits for nothing else."""
    world.log(5)
    world.sender._flush_wanted = 5
    world.tick()
    assert world.stored == 5


def test_a_daemon_that_comes_back_goes_on_behind_the_spool(world: World) -> None:
    """The spool is sealed, and no record lies in both."""
    world.log(5)
    world.tick(SPOOL_AGE_SECONDS + 1)
    assert world.sender._spool.is_open
    rig = world.serve()
    world.log(5)
    world.until(lambda: world.stored == 10, "the daemon's ack", 0.05)
    assert not world.sender._spool.is_open
    assert [(hello.stored) for hello in world.of(Hello)] == [5]
    assert world.held.sequences(STREAM) == all_of(world)
    assert world.held.covered(STREAM) == all_of(world)
    assert rig.stats.records == 5
    world.tick()
    assert any("the daemon takes the records again" in text for text in world.said)


def test_a_slow_daemon_and_a_full_ring_end_in_the_spool(world: World) -> None:
    """Its disk refuses: it lives and acks without progress; the records go to our own segment before the ring is full."""
    rig = world.serve()
    world.live()
    rig.files.refuse("append")
    for _ in range(40):
        world.log(100)
        world.tick(0.05)
        assert world.journal.mark()[0] - world.ring.words[8] <= world.ring.capacity * 0.9
    assert world.stored > 0
    assert world.ring.words[16] == 0, "nothing was refused"
    rig.files.allow()
    world.until(lambda: world.stored == world.count, "the rest", 0.3)
    found = world.held
    assert sorted(set(found.sequences(STREAM))) == all_of(world)
    assert sorted(set(found.covered(STREAM))) == all_of(world)


def test_a_full_spool_keeps_records_in_the_ring(world: World) -> None:
    """`spool_bytes_max`: the user hears it, the loop goes on, and a daemon that comes takes them."""
    world.trainer(spool_bytes_max=1000)
    world.log(20)
    world.tick(SPOOL_AGE_SECONDS + 1)
    world.tick(2.0)
    assert world.stored == 0
    assert any("spool_bytes_max" in text for text in world.said)
    assert not any("nothing is lost" in text for text in world.said), "it did not go to the spool"
    world.serve()
    world.until(lambda: world.stored == 20, "the daemon's ack", 0.05)
    assert world.held.sequences(STREAM) == all_of(world)


def test_a_disk_that_refuses_the_spool_keeps_records_in_the_ring(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked once a second, and takes everything when it has room again."""
    asked: list[str] = []

    def create(path: str) -> Any:
        asked.append(path)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(DISK, "create", create)
        world.log(20)
        world.tick(SPOOL_AGE_SECONDS + 1)
        for _ in range(9):
            world.tick(0.1)
        assert len(asked) == 1
        world.tick(0.2)
        world.tick(0.2)
        assert len(asked) == 2
    assert any("No space" in text for text in world.said)
    assert world.stored == 0
    world.tick(2.0)
    assert world.held.sequences(STREAM) == all_of(world)


def test_one_huge_fact_does_not_stop_the_rest(world: World) -> None:
    """A META record larger than any batch goes to the spool, and what is behind it to the daemon."""
    world.trainer(16 << 20)
    world.serve()
    world.live()
    assert world.journal.append_meta({"summary": {"text": "x" * (BATCH_BYTES_MAX + 100)}})
    world.count += 1
    world.log(10)
    world.until(lambda: world.stored == 11, "everything", 0.05)
    assert sorted(set(world.held.sequences(STREAM))) == all_of(world)


def test_facts_that_can_never_fit_do_not_hold_up_the_rest(world: World) -> None:
    """Larger than the ring: they are left out and the user hears of it; what waits behind them is stored."""
    world.serve()
    world.live()
    for facts in ({"summary": {"text": "x" * CAPACITY_MIN}}, {"end": {"state": "finished"}}):
        assert facts.keys() == {"end"} or not world.journal.append_meta(facts)
        world.sender.facts.waiting.append(facts)
    world.until(lambda: world.stored == 1, "the end", 0.3)
    assert not world.sender.facts.waiting
    assert any("are left out" in text for text in world.said)


def test_facts_wait_for_room(world: World) -> None:
    """A full ring is emptied first; their order stays."""
    while world.ring.words[16] == 0:
        world.log()
    stored_rows = world.journal.mark()[1] - 1
    for n in range(3):
        facts = {"summary": {"n": n, "text": "x" * 1000}}
        assert not world.journal.append_meta(facts)
        world.sender.facts.waiting.append(facts)
    world.serve()
    world.until(lambda: not world.sender.facts.waiting and world.stored > stored_rows + 3, "all facts", 0.05)
    world.until(lambda: world.stored == world.journal.mark()[1] - 1, "an ack", 0.05)
    facts_found = [decode_map(r.payload) for _, r in world.held.records if r.kind == KIND_META]
    assert [values["summary"]["n"] for values in facts_found] == [0, 1, 2]


def test_what_was_never_forced_is_not_called_safe(world: World) -> None:
    """The daemon's `synced` counts sequences; a spool that was only written keeps the promise back."""
    world.log(5)
    world.tick(SPOOL_AGE_SECONDS + 1)
    rig = world.serve()
    world.log(5)
    world.until(lambda: world.stored == 10, "the daemon's ack", 0.05)
    rig.sync()
    world.until(lambda: world.sender._outbox.synced == 10, "synced")
    assert world.sender.state().synced == 0


# -- starting one -------------------------------------------------------------------------------------------------------


def test_a_lost_daemon_is_started_again_with_patience(world: World) -> None:
    """After `restart_seconds`, then at growing distances; not while one serves."""
    times = []
    pause = Settings().restart_seconds
    for _ in range(4000):
        world.tick(0.5)
        if len(world.started) > len(times):
            times.append(world.now)
    distances = [after - before for before, after in zip(times, times[1:])]
    assert times[0] - 5000.0 <= 2 * pause + 1
    assert distances == sorted(distances)
    assert max(distances) <= 301
    assert 5 < len(times) < 20
    world.serve()
    before = len(world.started)
    for _ in range(20):
        world.tick(30.0)
    assert len(world.started) == before


def test_none_is_started_after_a_stop_or_when_forbidden(world: World) -> None:
    """`stepd stop` is remembered, STEPD_AUTOSTART=0 is kept."""
    _spawn.mark_stopped(world.store.path, True)
    for _ in range(50):
        world.tick(10.0)
    _spawn.mark_stopped(world.store.path, False)
    world.trainer(autostart=False)
    for _ in range(50):
        world.tick(10.0)
    assert world.started == []


def test_a_start_that_fails_is_a_notice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """EAGAIN, too many processes: the records go to the spool."""

    def fail(path: str, **options: Any) -> int:
        raise OSError(errno.EAGAIN, "too many processes")

    monkeypatch.setattr(_spawn, "start", fail)
    world.log(5)
    for _ in range(10):
        world.tick(1.0)
    assert world.stored == 5
    assert any("too many processes" in text for text in world.said)


# -- the end, and what may not escape ------------------------------------------------------------------------------------


def test_the_end_without_a_daemon(world: World) -> None:
    """The spool takes the rest and is forced; finish says so."""
    world.log(10)
    state = world.finish()
    assert state == (10, 10, 10, "spool")
    assert world.held.unsealed == []
    assert world.held.sequences(STREAM) == all_of(world)


def test_the_end_with_a_daemon_that_hangs(world: World) -> None:
    """It is waited for while acks advance, a second otherwise; then the spool takes the rest."""
    rig = world.serve()
    world.live()
    world.log(10)
    rig.ingest.receive = lambda now: 0  # type: ignore[method-assign]
    before = world.now
    state = world.finish()
    assert (state.stored, state.spooled, state.ended_in) == (10, 10, "spool")
    assert world.now - before < 2.5
    assert world.held.sequences(STREAM) == all_of(world)


def test_the_end_on_a_full_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The records stay in the ring, for the next daemon, and finish says that."""
    monkeypatch.setattr(DISK, "create", lambda path: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    world.log(10)
    state = world.finish()
    assert (state.stored, state.ended_in) == (0, "ring")


def test_a_disk_that_is_away_for_ten_minutes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """ESTALE for 600 seconds: it is asked once a second, told once, nothing is refused while the ring has room, and when it
    is back everything is stored.
    """
    asked: list[float] = []

    def create(path: str) -> Any:
        asked.append(world.now)
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(DISK, "create", create)
        for _ in range(2400):
            world.log(1 if world.count < 1500 else 0)
            world.tick(0.25)
    assert 500 <= len(asked) <= 600
    assert sum("Stale file handle" in text for text in world.said) == 1
    assert (world.stored, world.journal.refusals().refused) == (0, 0)
    world.until(lambda: world.stored == 1500, "the spool", 0.25)
    assert world.held.sequences(STREAM) == all_of(world)
    assert any("records are stored again; nothing was lost" in text for text in world.said)


def test_facts_that_waited_for_room_are_stored_at_the_end(world: World) -> None:
    """The last spooling makes room for them, and for the gap: nothing is left behind when the disk takes records."""
    while not world.journal.refusals().refused:
        world.log()
    rows = world.journal.mark()[1] - 1
    for n in range(3):
        world.sender.facts.waiting.append({"summary": {"n": n, "text": "x" * 10_000}})
    state = world.finish()
    assert not world.sender.facts.waiting
    assert (state.stored, state.ended_in) == (rows + 3 + 1, "spool")
    assert world.journal.refusals().is_told
    assert world.held.sequences(STREAM) == list(range(1, rows + 5))


@pytest.mark.parametrize("broken", ["receive", "send", "wait", "__init__"])
@pytest.mark.parametrize(
    "error", [CommError("x"), MemoryError(), RuntimeError("a bug")], ids=lambda e: type(e).__name__
)
def test_no_error_escapes_from_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch, broken: str, error: Exception
) -> None:
    """Whatever breaks in the session, the spool has the records."""
    world.serve()
    world.log(10)

    def fail(*arguments: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Connection, broken, fail)
        state = world.sender.finish(5.0)
    assert (state.stored, state.ended_in) == (10, "spool")
    assert sorted(set(world.held.sequences(STREAM))) == all_of(world)


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "x"), StoreError("no runtime directory"), CommError("x")])
def test_no_error_escapes_from_the_first_log(world: World, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """`start` is called from inside log(): neither a socket nor a thread that cannot be made is the loop's trouble."""
    world.serve()

    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    def no_thread(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(_sender, "Connection", fail)
        patch.setattr(_sender, "endpoint_path", fail)
        patch.setattr(threading.Thread, "start", no_thread)
        world.sender.start()
    assert not world.sender.is_alive()
    world.log(3)
    assert not world.sender.flush(3, 0.0) or world.stored == 3
    state = world.finish()
    assert state.stored == 3


def test_a_store_that_was_removed_does_not_end_the_thread(world: World) -> None:
    """Somebody tidied up: the records wait, and are written where the store was when it is possible."""
    moved = world.store.path + "-moved"
    os.rename(world.store.path, moved)
    try:
        world.log(5)
        for _ in range(5):
            world.sender.wake_once(world.now)
            world.pass_time(0.3)
    finally:
        os.rename(moved, world.store.path)
    world.finish()
    assert world.held.sequences(STREAM) == all_of(world)


def test_a_child_leaves_the_parents_socket_alone(world: World) -> None:
    """Abandoned in a fork, a sender has neither thread nor connection, and closes nothing."""
    world.serve()
    world.live()
    connection = world.sender._connection
    assert connection is not None
    before = len(_sender._inherited)
    world.sender.abandon()
    assert world.sender._connection is None
    assert _sender._inherited[before:] == [connection]
    _sender._inherited.pop()
    world.sender._connection = connection
    world.log(1)
    world.until(lambda: world.stored == 1, "the parent's session", 0.05)


# -- as a thread -----------------------------------------------------------------------------------------------------------


def test_the_thread_flushes_and_finishes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started lazily, woken by flush, ended by finish; real time, no daemon."""
    with temporary_store() as store:
        ring = Ring.private(STREAM, {"run": RUN, "store": store.id}, CAPACITY_MIN)
        journal = open_journal(ring)
        sender = Sender(journal, store, RUN, STREAM, Settings(autostart=False), "0.1.0")
        threads = threading.active_count()
        for _ in range(10):
            journal.log({"loss": 1})
        assert threading.active_count() == threads
        assert sender.flush(10, 20.0)
        assert sender.is_alive()
        assert held(store.path).sequences(STREAM) == list(range(1, 11))
        journal.log({"loss": 1})
        state = sender.finish(20.0)
        assert (state.stored, state.ended_in) == (11, "spool")
        assert not sender.is_alive()
        assert threading.active_count() == threads
        assert held(store.path).unsealed == []


def test_a_bug_in_one_wake_does_not_end_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, and goes on."""
    with temporary_store() as store:
        ring = Ring.private(STREAM, {"run": RUN, "store": store.id}, CAPACITY_MIN)
        journal = open_journal(ring)
        sender = Sender(journal, store, RUN, STREAM, Settings(autostart=False), "0.1.0")
        said: list[str] = []
        sender.notices.show = said.append
        real = sender.wake_once
        broken = [True]

        def wake_once(now: float) -> int:
            if broken[0]:
                raise KeyError("a bug")
            return real(now)

        monkeypatch.setattr(sender, "wake_once", wake_once)
        journal.log({"loss": 1})
        sender.start()
        until(lambda: sender.notices._waiting, "the notice")
        broken[0] = False
        assert sender.flush(1, 20.0)
        sender.finish(20.0)
        assert any("a bug" in text for text in said)


def test_the_spool_names_its_stream(world: World) -> None:
    """Recovery asks the ring of that stream whether its writer lives."""
    world.log(1)
    world.finish()
    (facts,) = world.held.first_maps
    writer = facts["writer"]
    assert (writer["kind"], writer["stream"], writer["pid"]) == ("spool", hex_u64(STREAM), os.getpid())
    assert (writer["host"], writer["boot_id"]) == (platform.host_name(), platform.boot_id())


def test_the_end_says_finish_once(world: World) -> None:
    """With the last sequence, after everything was sent."""
    world.serve()
    world.log(10)
    world.finish()
    assert world.of(Finish) == [Finish(STREAM, 10)]
