"""sdk._lending and daemon.ingest.reading: a daemon that reads the trainer's ring itself, and every way in which that ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy
import pytest

from daemon.ingest import reading
from sdk import _lending, _sender, platform
from sdk.journal.appender import open_journal
from sdk.journal.arena import Arena
from sdk.journal.drain import drain
from sdk.journal.format import CAPACITY_MIN, HEADER_BYTES, TAKEN_COPIES, WORD_GATE, WORD_SESSION
from sdk.journal.large import Large
from sdk.journal.lent import LentRing
from sdk.journal.page import Taken, pack_taken, read_released
from sdk.journal.ring import Ring
from sdk.limits import REFUSED_DISK_FULL
from sdk.settings import Settings
from sdk.wire.messages import Batch, Flush, Hello, Welcome
from tests.ingest_rig import STREAM
from tests.sdk.test_sender import World
from tests.serving import RUN, temporary_store


class Lent(World):
    """A trainer whose ring is a file, in the process of the daemon that reads it."""

    overflow = 0

    def trainer(self, capacity: int = CAPACITY_MIN, **settings: Any) -> None:
        digest = platform.store_digest(self.store.path)
        identity = {"run": RUN, "store": self.store.id}
        self.ring, note = Ring.create("/dev/shm", digest, STREAM, capacity, identity)
        assert note is None
        path = self.ring.path or ""
        large = Large(STREAM, Arena("/dev/shm", path, STREAM) if not self.overflow else None, self.overflow)
        self.journal = open_journal(self.ring, large=large)
        self.sender = _sender.Sender(self.journal, self.store, RUN, STREAM, Settings(**settings), "0.1.0")
        self.sender.notices.show = self.said.append
        self.count = 0

    @property
    def is_read(self) -> bool:
        return self.sender._lending.is_read

    def close(self) -> None:
        super().close()
        self.ring.close()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lent]:
    # Why: a daemon does not open the rings of its own process, as closing one drops its trainer's lock.
    monkeypatch.setattr(platform, "lock_owner", lambda path, real=platform.lock_owner: real(path) and 1)
    with temporary_store() as store:
        made = Lent(store, monkeypatch)
        try:
            yield made
        finally:
            made.close()


def serve(world: Lent, calls: int = 10) -> None:
    """Until a daemon reads the ring, in which `calls` records stand."""
    world.log(calls)
    world.serve()
    world.live()
    assert world.is_read


def test_nothing_is_sent(world: Lent) -> None:
    """What is logged is stored, forced and released, without a batch and without an ack."""
    serve(world)
    world.log(40)
    world.until(lambda: world.stored == 50, "all stored", 0.05)
    world.until(lambda: world.sender._outbox.synced == 50, "all forced", 0.3)
    assert world.held.covered(STREAM) == list(range(1, 51))
    assert not world.of(Batch)
    assert world.ring.taken() is not None
    assert not world.sender.wake_once(world.now)


def test_the_sender_sleeps_long(world: Lent) -> None:
    """Beside a daemon that reads it looks four times a second, while nothing fills; at once for a flush."""
    serve(world)
    delays = []
    for _ in range(20):
        world.log()
        world.sender._delay = world.sender._next_delay(world.sender.wake_once(world.now))
        delays.append(world.sender._delay)
        world.tick(0.01)
    assert delays[-1] == _lending.WAKE_SECONDS_MAX
    world.sender._flush_wanted = world.stored + 5
    assert world.sender._next_delay(0) == _sender.WAKE_SECONDS_MIN
    world.sender._flush_wanted = 0
    assert world.sender._next_delay(world.ring.capacity // 2) == _sender.WAKE_SECONDS_MIN


def test_a_ring_that_fills_is_told_of(world: Lent) -> None:
    """A daemon that found nothing for long looks seldom: `log()` wakes the sender, which says Flush, once."""
    serve(world)
    world.until(lambda: world.stored == 10, "stored", 0.05)
    assert not world.sender._wake.acquire(blocking=False)
    while world.journal.mark()[0] < world.ring.capacity * 0.45:
        world.log(10)
    assert world.sender._wake.acquire(blocking=False)
    for _ in range(3):
        world.sender.wake_once(world.now)
    assert len(world.of(Flush)) == 1
    world.until(lambda: world.stored == world.count, "stored", 0.001)


@pytest.mark.parametrize("why", ["setting", "machine", "file", "session"])
def test_rings_that_are_not_read(world: Lent, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the user, the machine, or what Hello says of the file forbids it, records are sent as ever."""
    if why == "setting":
        world.ring.close()
        world.trainer(ring_reader=False)
    elif why == "machine":
        monkeypatch.setattr(_lending.system, "machine", lambda: "aarch64")
        world.ring.close()
        world.trainer()
    elif why == "file":
        monkeypatch.setattr(Ring, "file", lambda ring: (1, 1))
    else:
        monkeypatch.setattr(Ring, "lend", lambda ring, session: None)
    world.log(10)
    world.serve()
    world.live()
    assert not world.is_read
    world.until(lambda: world.stored == 10, "stored", 0.05)
    assert world.of(Batch)
    assert world.ring.words[WORD_SESSION] == 0


def test_log_finds_the_room_itself(world: Lent) -> None:
    """A loop goes on past the ring's capacity while its sender sleeps, as the daemon says in the ring what is stored."""
    serve(world)
    assert world.rig is not None
    for _ in range(60):
        world.log(100)
        world.pass_time(0.3)
        world.rig.tick()
    assert world.journal.mark()[0] > 2 * world.ring.capacity
    assert world.journal.refusals().refused == 0
    world.until(lambda: world.stored == world.count, "stored", 0.3)
    assert world.held.sequences(STREAM) == list(range(1, world.count + 1))
    assert len(world.journal.boundaries) < 3


def test_a_daemon_that_stands_still(world: Lent) -> None:
    """Half the ring waits: the ring is taken back, the spool takes it, and the daemon reads on when it goes on."""
    serve(world)
    world.until(lambda: world.stored == 10, "stored", 0.05)
    rig, world.rig = world.rig, None
    while world.journal.mark()[0] - world.sender._outbox.stored[0] < world.ring.capacity * 0.6:
        world.log(10)
    for _ in range(2):
        world.tick(0.5)
    assert world.stored == world.count
    assert not world.is_read
    world.log(30)
    world.rig = rig
    world.until(lambda: world.is_read and world.stored == world.count, "reading again", 0.05)
    assert world.sender._spool.records == world.count - 40
    assert world.held.sequences(STREAM) == list(range(1, world.count + 1))


def test_silence(world: Lent) -> None:
    """Without a sign of life for a second while something waits, the session is over; without need of it, not."""
    serve(world)
    world.until(lambda: world.stored == 10, "stored", 0.05)
    world.rig, rig = None, world.rig
    world.tick(100.0)
    assert world.is_read
    world.log(1)
    for _ in range(30):
        world.tick(0.05)
    assert not world.is_read
    assert world.ring.words[WORD_SESSION] == 0 or world.state == "greeted"
    world.rig = rig
    world.until(lambda: world.stored == 11, "stored", 0.05)


def test_a_daemon_that_was_killed(world: Lent) -> None:
    """The next one reads on behind what the first one said; nothing is there twice."""
    serve(world)
    assert world.rig is not None
    world.log(20)
    world.until(lambda: world.stored == 30, "stored", 0.05)
    world.log(20)
    world.rig.tick()  # read, and not written
    world.kill_daemon()
    world.log(20)
    world.serve()
    world.until(lambda: world.is_read and world.stored == 70, "stored by the next", 0.2)
    assert world.held.sequences(STREAM) == list(range(1, 71))


def test_both_killed(world: Lent) -> None:
    """Whoever drains the ring begins behind what the daemon said, also where the trainer had not seen that yet."""
    serve(world)
    assert world.rig is not None
    world.until(lambda: world.stored == 10, "stored", 0.05)
    world.log(20)
    world.pass_time(0.3)
    world.rig.tick()
    world.rig.tick(0.3)
    world.log(5)
    assert world.stored == 10
    assert world.ring.path is not None
    drained = drain(world.ring.path, world.ring._descriptor)
    assert (drained.first, drained.last, drained.damage) == (31, 35, None)


def test_a_ring_that_was_taken_back_is_not_believed(world: Lent) -> None:
    """What was copied when the number in the ring had changed is thrown away: it may be overwritten already."""
    serve(world)
    assert world.rig is not None
    reader = world.rig.ingest.streams[STREAM].reader
    assert reader is not None
    world.log(5)
    before = world.rig.ingest.streams[STREAM].inbox.received
    real = reader.ring._window.read

    def read(start: int, end: int) -> bytes:
        world.sender._take_back()
        return real(start, end)

    reader.ring._window.read = read  # type: ignore[method-assign]
    world.rig.tick()
    assert world.rig.ingest.streams[STREAM].inbox.received == before
    assert world.rig.ingest.streams[STREAM].reader is None


def test_records_that_cannot_be(world: Lent) -> None:
    """The daemon refuses the stream, reads no more of it, and the trainer stores what waits itself."""
    serve(world)
    world.until(lambda: world.stored == 10, "stored", 0.05)
    position = world.journal.mark()[0]
    world.log(3)
    world.ring.data[position + 8] ^= 0x40  # its sequence
    world.until(lambda: world.stored == 13, "spooled", 0.5)
    assert not world.is_read
    assert any("refuses this stream" in line for line in world.said)


def test_trouble_is_told(world: Lent) -> None:
    """A full disk is said in the ring: the user hears it, and that it is over."""
    serve(world)
    world.until(lambda: world.stored == 10, "stored", 0.05)
    assert world.rig is not None
    world.rig.files.refuse("append")
    world.log(5)
    world.until(lambda: world.sender._pressure.code == REFUSED_DISK_FULL, "trouble", 0.3)
    assert world.is_read
    world.rig.files.allow()
    world.until(lambda: world.stored == 15 and not world.sender._pressure.code, "over", 0.3)


def test_what_waits_for_the_disk_is_bounded(world: Lent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a stream whose disk refuses, no more is read than a sender could have sent; and nobody spins over it."""
    monkeypatch.setattr(reading.admit, "credit", lambda streams: 20_000)
    serve(world)
    assert world.rig is not None
    world.until(lambda: world.stored == 10, "stored", 0.05)
    world.rig.files.refuse("append")
    for _ in range(10):
        world.log(100)
        world.pass_time(0.01)
        world.rig.tick()
    state = world.rig.ingest.streams[STREAM]
    assert 20_000 <= state.waiting_bytes < 40_000
    assert not world.rig.ingest.reading.has_news()
    world.rig.files.allow()
    world.until(lambda: world.stored == world.count, "all stored", 0.3)


def test_finish(world: Lent) -> None:
    """Finish is a message still, and comes back when the ring was read to its end."""
    serve(world)
    world.log(500)
    state = world.finish()
    assert (state.stored, state.spooled, state.ended_in) == (510, 0, "written")
    assert not world.of(Batch)
    assert world.held.covered(STREAM) == list(range(1, 511))


def test_the_end_of_the_daemon(world: Lent) -> None:
    """A daemon that leaves says so in the ring, and the sender does not wait for a silence."""
    serve(world)
    world.until(lambda: world.stored == 10, "stored", 0.05)
    world.kill_daemon()
    assert world.ring.beat() != 0  # killed: it could not say so
    world.serve()
    world.log(1)
    world.until(lambda: world.is_read and world.stored == 11, "the next", 0.2)
    assert world.rig is not None
    world.rig.ingest.table.forget_peers()
    world.tick()
    assert not world.is_read
    world.log(1)
    world.until(lambda: world.is_read and world.stored == 12, "another session", 0.05)
    assert len({hello.session for hello in world.of(Hello)}) == 3


def test_private_values_wait_at_the_gate(world: Lent, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value in private memory: the daemon reads up to its announcement until the sender has stored the bytes."""
    import sdk

    Lent.overflow = 1 << 20
    world.ring.close()
    world.trainer()
    Lent.overflow = 0
    serve(world)
    assert world.rig is not None
    world.until(lambda: world.stored == 10, "stored", 0.05)
    woken = []
    monkeypatch.setattr(world.sender, "wake", lambda: woken.append(1))
    world.sender._lending._wake = world.sender.wake
    world.sender._greet(world.now)
    world.live()
    world.journal.log({"image": sdk.Image(numpy.zeros((200, 200, 3), numpy.uint8))})
    world.log(3)
    assert woken
    assert world.ring.words[WORD_GATE]
    for _ in range(5):
        world.pass_time(0.3)
        world.rig.tick()
    assert world.rig.ingest.streams[STREAM].inbox.received == 10
    world.until(lambda: world.stored == 15, "all stored", 0.05)
    assert not world.ring.words[WORD_GATE]
    assert world.held.sequences(STREAM) == list(range(1, 16))
    assert not world.of(Batch)


def test_a_ring_whose_name_was_removed(world: Lent) -> None:
    """A logout removes the file: the sender makes it again, and the daemon reads that one."""
    serve(world)
    world.until(lambda: world.stored == 10, "stored", 0.05)
    assert world.ring.path is not None
    os.unlink(world.ring.path)
    before = world.ring.file()
    world.log(10)
    world.until(lambda: world.stored == 20, "stored", 0.6)
    assert world.ring.file() != before
    world.log(10)
    world.until(lambda: world.is_read and world.stored == 30, "read from the new one", 0.05)
    assert world.held.sequences(STREAM) == list(range(1, 31))
    assert not world.of(Batch)


def test_many_rings_take_turns(world: Lent, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a tick has read enough, the next one begins with the ring that comes then."""
    serve(world)
    assert world.rig is not None
    monkeypatch.setattr(reading, "_TICK_BYTES", 1)
    table = world.rig.ingest.table
    order = []
    for stream in (2, 3):
        table.by_id[stream] = table.by_id[STREAM]
    real = world.rig.ingest.reading._read_one
    monkeypatch.setattr(
        world.rig.ingest.reading, "_read_one", lambda stream, *rest: order.append(stream) or real(stream, *rest)
    )
    for _ in range(4):
        world.log(1)
        world.rig.tick()
    for stream in (2, 3):
        del table.by_id[stream]
    assert sorted(order[:3]) == [2, 3, STREAM]
    assert order[3] == order[0]


def test_a_cut_ring_is_not_read(world: Lent) -> None:
    """A file that is smaller than its header says is never mapped for reading."""
    assert world.ring.path is not None
    world.ring.lend(1)
    with open(world.ring.path, "r+b") as file:
        for size, fits in ((HEADER_BYTES + world.ring.capacity, True), (HEADER_BYTES + 100, False)):
            os.truncate(file.fileno(), size)
            try:
                ring = LentRing(world.ring.path, file.fileno(), stream=STREAM, store=world.store.id, run=RUN, session=1)
                ring.close()
                opened = True
            except Exception:
                opened = False
            assert opened is fits
        os.truncate(file.fileno(), HEADER_BYTES + world.ring.capacity)


def test_what_is_told_of_a_ring_that_was_taken_back_is_noted(world: Lent) -> None:
    """A daemon writes what it had read, and says so late; `log()` lets go of it when the ring is offered again, and the answer to
    an older Hello is that nobody reads. What is spooled then begins behind it: the bytes before it may be others by now.
    """
    serve(world)
    world.until(lambda: world.stored == 10, "stored", 0.05)
    sender = world.sender
    sender._take_back()
    world.log(20)
    mark = world.journal.mark()
    for word in TAKEN_COPIES:
        packed = pack_taken(Taken(*mark, 0, 0))
        world.ring.page[word * 8 : word * 8 + len(packed)] = packed
    sender._lending.offer(allowed=True)
    sender._handle(Welcome(1, STREAM, 0, 0, 1 << 20, 1, "daemon", {}), world.now)
    assert read_released(bytes(world.ring.page)) == mark
    assert sender._outbox.stored == mark
