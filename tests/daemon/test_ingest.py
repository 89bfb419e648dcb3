"""daemon.ingest: a real ROUTER and real DEALERs in one process, ticked by hand."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from daemon.ingest import Ingest
from daemon.settings import DaemonSettings
from daemon.stats import Stats
from daemon.store.run_writer import RunWriter
from sdk import platform
from sdk.errors import Error
from sdk.ids import hex_u64
from sdk.journal.appender import open_journal
from sdk.journal.drain import drain
from sdk.journal.format import CAPACITY_MIN, HEADER_BYTES, SUFFIX
from sdk.journal.ring import Ring
from sdk.limits import BATCH_BYTES_MAX, CREDIT_BYTES, MIB, WIRE_VERSION
from sdk.location import StoreIdentity
from sdk.record import HEADER, KIND_ROW
from sdk.segment.format import KIND_GAP, KIND_ROWS
from sdk.transport import Connection, endpoint_path
from sdk.wire.codec import encode
from sdk.wire.messages import (
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
from tests.serving import RUN, FailingFiles, Held, held, packed, row, rows, until

STREAM = 0x77
WRITER = 0xAB


class Rig:
    """An Ingest that serves a store, with a clock of its own."""

    def __init__(self, store: StoreIdentity, settings: DaemonSettings | None = None) -> None:
        self.store = store
        self.files = FailingFiles()
        self.stats = Stats(0.0)
        self.said: list[str] = []
        self.now = 1000.0
        self.clients: list[Client] = []
        self.ingest = Ingest(
            self.files, store, settings or DaemonSettings(), self.stats, self._make_writer, self.said.append
        )
        self.ingest.control = lambda message: {"verb": message.verb}
        self.ingest.bind(endpoint_path(store.path))

    def _make_writer(self, run: str) -> RunWriter:
        return RunWriter(self.files, self.store, run, WRITER, {"kind": "daemon"})

    def client(self, stream: int = STREAM, run: str = RUN) -> Client:
        client = Client(self, stream, run)
        self.clients.append(client)
        return client

    def tick(self, seconds: float = 0.0) -> int:
        self.now += seconds
        count = self.ingest.receive(self.now)
        self.ingest.flush(self.now)
        self.ingest.sync(self.now)
        return count

    def sync(self) -> None:
        """Until everything that is dirty now was forced, or refused."""
        self.tick(60.0)
        until(lambda: self.tick() or not self.ingest._syncer.outstanding, "sync")
        self.tick()

    def look(self) -> bool:
        return self.ingest.look_for_dead(self.now)

    @property
    def held(self) -> Held:
        return held(self.store.path)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.ingest.close()


class Client:
    """A trainer's end: a real Connection. What came back is in `messages`."""

    def __init__(self, rig: Rig, stream: int, run: str) -> None:
        self.rig, self.stream, self.run = rig, stream, run
        self.connection = Connection(endpoint_path(rig.store.path))
        self.messages: list[Message] = []
        self._asked = 0

    def send(self, message: Message) -> None:
        assert self.connection.send(message)

    def hello(self, stored: int = 0, **changes: Any) -> Welcome:
        self.send_hello(stored, **changes)
        welcome = self.expect(Welcome)
        assert isinstance(welcome, Welcome)
        return welcome

    def send_hello(self, stored: int = 0, **changes: Any) -> None:
        limits = {"batch_bytes_max": BATCH_BYTES_MAX}
        message = Hello(1, 1, self.stream, self.run, self.rig.store.id, stored, "", os.getpid(), "0.1.0", limits)
        self.send(message._replace(**changes))

    def batch(self, first: int, last: int, records: bytes | None = None, flags: int = 0) -> None:
        self.send(Batch(self.stream, first, last, flags, last, rows(first, last) if records is None else records))

    def expect(self, kind: type[Message]) -> Any:
        """Ticks until a message of `kind` comes, and returns it."""
        found: list[Message] = []

        def look() -> bool:
            self.rig.tick()
            while (message := self.connection.receive()) is not None:
                self.messages.append(message)
                if isinstance(message, kind):
                    found.append(message)
                    return True
            return False

        until(look, kind.__name__)
        return found[0]

    def barrier(self) -> list[Message]:
        """Everything that came before the daemon had taken all we sent."""
        self.messages.clear()
        self._asked += 1
        self.send(Control(self._asked, "barrier", {}))
        while True:
            answer = self.expect(Control)
            if answer.id == self._asked:
                return [m for m in self.messages if not isinstance(m, Control)]

    def ack(self, written: int) -> Ack:
        """The Ack that says `written`."""
        return until(lambda: [a for a in [self.expect(Ack)] if a.written >= written], "ack")[0]

    def close(self) -> None:
        self.connection.close()


@pytest.fixture
def rig(store: StoreIdentity) -> Iterator[Rig]:
    made = Rig(store)
    yield made
    made.files.allow()
    made.close()


# -- a session ------------------------------------------------------------------------------------------------------


def test_a_whole_session(rig: Rig) -> None:
    """Hello, batches, acks as they are written, a flush that is answered, an end that seals."""
    trainer = rig.client()
    welcome = trainer.hello()
    assert (welcome.version, welcome.stream, welcome.written, welcome.credit) == (WIRE_VERSION, STREAM, 0, CREDIT_BYTES)
    assert welcome.limits == {"batch_bytes_max": BATCH_BYTES_MAX}
    trainer.batch(1, 10)
    trainer.batch(11, 20)
    trainer.barrier()
    assert rig.held.records == []
    rig.tick(0.3)
    assert trainer.ack(20).written == 20
    assert rig.held.sequences(STREAM) == list(range(1, 21))
    trainer.batch(21, 30)
    trainer.send(Flush(STREAM, 30))
    assert trainer.expect(Flushed).written == 30
    trainer.batch(31, 31)
    trainer.send(Finish(STREAM, 31))
    assert trainer.expect(Finished).written == 31
    assert rig.ingest.streams == {}
    rig.sync()
    assert rig.held.sequences(STREAM) == list(range(1, 32))
    assert rig.held.unsealed == []
    assert (rig.stats.records, rig.stats.batches, rig.stats.duplicates) == (31, 4, 0)


def test_the_bytes_are_not_touched(rig: Rig) -> None:
    """What stands in the block is what was in the ring."""
    trainer = rig.client()
    trainer.hello()
    trainer.batch(1, 50)
    trainer.send(Flush(STREAM, 50))
    trainer.expect(Flushed)
    assert packed([record for _, record in rig.held.records]) == rows(1, 50)


def test_a_tight_loop_is_written_without_waiting(rig: Rig) -> None:
    """256 KiB are a block at once."""
    trainer = rig.client()
    trainer.hello()
    trainer.batch(1, 8000)
    assert trainer.ack(8000)
    assert [block.last for block in rig.held.rows_blocks(STREAM)] == [8000]


def test_pieces_are_merged_in_the_window(rig: Rig) -> None:
    """And wait a second for one another."""
    trainer = rig.client()
    trainer.hello()
    trainer.batch(1, 1, packed([row(1, 0, {"a": 1}, 0)]), BATCH_HAS_PIECES)
    trainer.batch(2, 2, packed([row(2, 0, {"b": 1})]), BATCH_HAS_PIECES)
    trainer.barrier()
    rig.tick(0.5)
    assert rig.held.records == []
    rig.tick(0.6)
    assert trainer.ack(2)
    assert rig.held.sequences(STREAM) == [2]
    assert rig.held.covered(STREAM) == [1, 2]


def test_an_ack_is_a_sign_of_life(rig: Rig) -> None:
    """It comes in the tick of the batch, although nothing is written yet."""
    trainer = rig.client()
    trainer.hello()
    trainer.batch(1, 1)
    assert trainer.expect(Ack) == Ack(STREAM, 0, 0)


def test_synced_follows_written(rig: Rig) -> None:
    """Only after the disk has it, and the trainer is told without asking."""
    trainer = rig.client()
    trainer.hello()
    trainer.batch(1, 5)
    trainer.send(Flush(STREAM, 5))
    assert trainer.expect(Flushed).synced == 0
    rig.now += 60
    until(lambda: trainer.expect(Ack).synced == 5, "synced")
    assert rig.ingest.synced_age(rig.now) == 0.0


def test_a_flush_of_what_is_on_its_way_is_answered_when_it_came(rig: Rig) -> None:
    """A request for sequence 9 is not answered by 5."""
    trainer = rig.client()
    trainer.hello()
    trainer.batch(1, 5)
    trainer.send(Flush(STREAM, 9))
    assert not [m for m in trainer.barrier() if isinstance(m, Flushed)]
    trainer.batch(6, 9)
    trainer.barrier()
    rig.tick(0.3)
    assert trainer.expect(Flushed).written == 9


def test_a_flush_of_what_is_written_is_answered(rig: Rig) -> None:
    """Whoever asks twice hears twice."""
    trainer = rig.client()
    trainer.hello()
    trainer.batch(1, 5)
    for _ in range(2):
        trainer.send(Flush(STREAM, 5))
        assert trainer.expect(Flushed).written == 5


# -- what a trainer may do wrong ----------------------------------------------------------------------------------------


def test_duplicates_are_dropped(rig: Rig) -> None:
    """Whole ones and overlaps; every record is written once."""
    trainer = rig.client()
    trainer.hello()
    for first, last in [(1, 5), (1, 5), (3, 8), (8, 8), (2, 9)]:
        trainer.batch(first, last)
    trainer.send(Flush(STREAM, 9))
    trainer.expect(Flushed)
    assert rig.held.sequences(STREAM) == list(range(1, 10))
    assert rig.stats.duplicates == 5 + 3 + 1 + 7


def test_a_hole_ends_the_session(rig: Rig) -> None:
    """The trainer is told what is missing and may begin again; nothing behind the hole is taken."""
    trainer = rig.client()
    trainer.hello()
    trainer.batch(1, 3)
    trainer.batch(5, 6)
    reject = trainer.expect(Reject)
    assert (reject.code, reject.retriable) == ("hole", True)
    assert "4 to 4" in reject.text
    again = rig.client()
    assert again.hello().written in (0, 3)
    again.batch(1, 6)
    again.send(Flush(STREAM, 6))
    again.expect(Flushed)
    assert rig.held.sequences(STREAM) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "message", [Batch(STREAM, 1, 1, 0, 0, rows(1, 1)), Flush(STREAM, 0), Finish(STREAM, 0)], ids=lambda m: type(m).__name__
)
def test_hello_comes_first(rig: Rig, message: Message) -> None:
    """Nothing is believed of whom we do not know."""
    stranger = rig.client()
    stranger.send(message)
    reject = stranger.expect(Reject)
    assert (reject.stream, reject.code, reject.retriable) == (STREAM, "hello", True)
    assert rig.ingest.streams == {}


def test_a_session_speaks_for_its_own_stream(rig: Rig) -> None:
    """A batch for another stream is refused, and does not harm that stream."""
    one, two = rig.client(1), rig.client(2)
    one.hello()
    two.hello()
    two.send(Batch(1, 1, 1, 0, 0, rows(1, 1)))
    assert two.expect(Reject).stream == 1
    one.batch(1, 1)
    one.send(Flush(1, 1))
    assert one.expect(Flushed).written == 1


@pytest.mark.parametrize("message", [Welcome(1, 7, 0, 0, 1, 1, "", {}), Ack(7, 1, 1), Flushed(7, 1, 1), Finished(7, 1, 1)])
def test_messages_for_trainers_are_refused(rig: Rig, message: Message) -> None:
    """A daemon is not their addressee."""
    client = rig.client()
    client.send(message)
    assert client.expect(Reject).code == "protocol"
    assert rig.stats.protocol_errors == 1


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"store": bytes(16)}, "store"),
        ({"version_min": WIRE_VERSION + 1, "version_max": WIRE_VERSION + 1}, "version"),
        ({"run": ""}, "hello"),
        ({"run": "r" * 1000}, "hello"),
    ],
)
def test_who_cannot_be_served_is_told(rig: Rig, changes: dict[str, Any], code: str) -> None:
    """Wrong store, no common version, no run: not retriable, and nothing is kept."""
    trainer = rig.client()
    trainer.send_hello(**changes)
    reject = trainer.expect(Reject)
    assert (reject.code, reject.retriable) == (code, False)
    assert rig.ingest.streams == {}


def test_garbage_is_answered_and_forgotten(rig: Rig) -> None:
    """Random frames, no frames, many frames, bent messages; the next trainer finds a healthy daemon."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(f"ipc://{endpoint_path(rig.store.path)}")
    whole = [bytes(frame) for frame in encode(Batch(STREAM, 1, 2, 0, 2, rows(1, 2)))]
    count = 300
    for n in range(count):
        frames = [rng.randbytes(rng.randrange(40)) for _ in range(rng.randrange(1, 5))]
        if n % 2:
            frames = [bytearray(frame) for frame in whole]
            index = rng.randrange(2)
            frames[index][rng.randrange(len(frames[index]))] ^= 1 << rng.randrange(8)
        socket.send_multipart(frames)
    until(lambda: rig.tick() is None or rig.stats.protocol_errors == count, f"{count} refusals (seed {seed})")
    socket.close()
    context.term()
    assert rig.ingest.streams == {}
    assert len(rig.stats.last_error) < 2000
    trainer = rig.client()
    trainer.hello()


def bent(first: int, last: int) -> bytes:
    """Records that claim to be many and hold something else, of the right size at least."""
    return HEADER.pack(0, KIND_ROW, 1, 0, first, 0, 0) + bytes(32 * (last - first))


@pytest.mark.parametrize(
    "records",
    [
        bent(1, 9),
        HEADER.pack(2**32 - 1, KIND_ROW, 1, 0, 1, 0, 0) + bytes(32 * 8),
        rows(1, 9)[:-1],
        packed([row(n)._replace(payload=b"\xc1" * 40) for n in range(1, 10)]),
    ],
    ids=["zero size", "huge size", "cut", "no msgpack"],
)
@pytest.mark.parametrize("flags", [0, BATCH_HAS_PIECES])
def test_records_that_are_none_end_their_stream_only(rig: Rig, records: bytes, flags: int) -> None:
    """Their stream is dropped or stored as it is, what it sends later is refused or taken, and others go on."""
    bad, good = rig.client(1), rig.client(2)
    bad.hello()
    good.hello()
    good.batch(1, 3)
    bad.batch(1, 9, records, flags)
    bad.barrier()
    rig.tick(2.0)
    bad.batch(5, 20, bent(5, 20), flags)
    bad.barrier()
    rig.tick(2.0)
    assert good.ack(3)
    assert rig.held.sequences(2) == [1, 2, 3]


def test_an_overlap_with_bent_records_is_not_acked(rig: Rig) -> None:
    """Skipping the known part needs the records' sizes; where they lie, nothing of the batch counts as received."""
    trainer = rig.client()
    trainer.hello()
    trainer.batch(1, 5)
    trainer.send(Flush(STREAM, 5))
    trainer.expect(Flushed)
    trainer.batch(3, 9, bent(3, 9))
    assert trainer.expect(Reject).code == "protocol"
    again = rig.client()
    assert again.hello(5).written == 5
    again.batch(6, 9)
    again.send(Flush(STREAM, 9))
    assert again.expect(Flushed).written == 9
    assert rig.held.sequences(STREAM) == list(range(1, 10))


def test_an_unexpected_error_ends_one_message(rig: Rig) -> None:
    """A bug of ours in a command, or in an answer that is too large, leaves the daemon serving."""
    client = rig.client()
    rig.ingest.control = lambda message: {"x": "y" * (2 * MIB)} if message.verb == "large" else {}["no such key"]
    for verb in ("large", "bug"):
        client.send(Control(1, verb, {}))
        assert client.expect(Control).verb == "error"


# -- sessions that break -----------------------------------------------------------------------------------------------


def test_a_replay_after_a_reconnect_is_harmless(rig: Rig) -> None:
    """The trainer repeats what was not acked; what waits here is known, and written once."""
    trainer = rig.client()
    trainer.hello()
    trainer.batch(1, 10)
    trainer.barrier()
    trainer.close()
    again = rig.client()
    assert again.hello().written == 0
    again.batch(1, 15)
    again.send(Flush(STREAM, 15))
    assert again.expect(Flushed).written == 15
    assert rig.held.sequences(STREAM) == list(range(1, 16))
    assert len(rig.ingest.streams) == len(rig.ingest._stream_of) == 1


def test_batches_of_an_old_session_are_not_taken(rig: Rig) -> None:
    """Two sessions of one stream: the newer one holds, the older is told to greet."""
    old, new = rig.client(), rig.client()
    old.hello()
    new.hello()
    old.batch(1, 5)
    assert old.expect(Reject).code == "hello"
    assert rig.ingest.streams[STREAM].waiting == []
    new.batch(1, 3)
    new.send(Flush(STREAM, 3))
    assert new.expect(Flushed).written == 3
    old.hello(3)
    old.batch(4, 4)
    old.send(Flush(STREAM, 4))
    assert old.expect(Flushed).written == 4
    new.batch(5, 5)
    assert new.expect(Reject).code == "hello"


def test_a_trainer_that_spooled_goes_on_behind_it(rig: Rig) -> None:
    """Hello says what lies in its own segment: those records are not asked for, and no block claims to hold them.

    Why it matters: a reader takes a block that claims 1 to 30 for the whole of it and leaves the spool's 11 to 20 alone.
    """
    trainer = rig.client()
    trainer.hello()
    trainer.batch(1, 10)
    trainer.barrier()
    again = rig.client()
    assert again.hello(stored=20).written == 20
    again.batch(21, 30)
    again.send(Flush(STREAM, 30))
    assert again.expect(Flushed).written == 30
    assert rig.held.sequences(STREAM) == [*range(1, 11), *range(21, 31)]
    assert rig.held.covered(STREAM) == rig.held.sequences(STREAM)


def test_a_stream_that_is_forgotten_may_come_back(rig: Rig) -> None:
    """Its next message is refused, its Hello brings it in again where it was."""
    trainer = rig.client()
    trainer.hello()
    trainer.batch(1, 5)
    trainer.send(Finish(STREAM, 5))
    trainer.expect(Finished)
    trainer.batch(6, 6)
    assert trainer.expect(Reject).code == "hello"
    assert trainer.hello(5).written == 5
    trainer.batch(6, 6)
    trainer.send(Finish(STREAM, 6))
    assert trainer.expect(Finished).written == 6
    rig.sync()
    assert rig.held.sequences(STREAM) == [1, 2, 3, 4, 5, 6]
    assert rig.held.unsealed == []


def test_the_socket_is_bound_again(rig: Rig) -> None:
    """Its file was removed: new clients come in, old sessions begin anew and lose nothing."""
    trainer = rig.client()
    trainer.hello()
    trainer.batch(1, 5)
    trainer.barrier()
    os.unlink(endpoint_path(rig.store.path))
    assert not rig.ingest.socket_is_ours()
    rig.ingest.rebind()
    assert rig.ingest.socket_is_ours()
    assert rig.ingest._stream_of == {}
    rig.tick(0.3)
    again = rig.client()
    assert again.hello().written == 5


def test_two_runs_and_four_streams(rig: Rig) -> None:
    """Streams of one run share its segment, which is sealed when the last of them ends; the other run's goes on."""
    clients = [rig.client(n, "one" if n < 3 else "two") for n in (1, 2, 3, 4)]
    for client in clients:
        client.hello()
        client.batch(1, client.stream)
    for client in clients[:3]:
        client.send(Finish(client.stream, client.stream))
        client.expect(Finished)
    rig.sync()
    one, two = held(rig.store.path, "one"), held(rig.store.path, "two")
    assert (one.sequences(1), one.sequences(2), two.sequences(3)) == ([1], [1, 2], [1, 2, 3])
    assert (len(one.unsealed), len(two.unsealed)) == (0, 1)


# -- a disk that refuses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["create", "append"])
def test_a_full_disk_acks_nothing_and_recovers(rig: Rig, operation: str) -> None:
    """What came waits; the trainer hears that we live; when there is room again everything is written once."""
    trainer = rig.client()
    trainer.hello()
    if operation == "append":
        trainer.batch(1, 5)
        trainer.send(Flush(STREAM, 5))
        trainer.expect(Flushed)
    first = 6 if operation == "append" else 1
    rig.files.refuse(operation)
    trainer.batch(first, 10)
    trainer.barrier()
    rig.tick(0.3)
    assert rig.stats.write_failures == 1
    assert "No space" in rig.stats.last_error
    trainer.batch(11, 12)
    assert trainer.expect(Ack).written == first - 1
    trainer.send(Flush(STREAM, 12))
    assert not [m for m in trainer.barrier() if isinstance(m, Flushed)]
    for _ in range(5):
        rig.tick(0.1)
    assert rig.stats.write_failures == 1, "the disk is asked once a second"
    assert rig.ingest.next_deadline(rig.now) > 0.3, "and the server sleeps in between"
    rig.files.allow()
    rig.tick(1.1)
    assert trainer.expect(Flushed).written == 12
    assert rig.held.sequences(STREAM) == list(range(1, 13))
    assert rig.ingest.streams[STREAM].waiting_bytes == 0


def test_what_waits_is_bounded(store: StoreIdentity) -> None:
    """Beyond `pending_bytes_max` nothing more is received, and waiting does not spin; later it all comes in."""
    rig = Rig(store, DaemonSettings(pending_bytes_max=100_000))
    try:
        rig.files.refuse("append")
        trainer = rig.client()
        trainer.hello()
        for n in range(20):
            trainer.batch(n * 500 + 1, n * 500 + 500)
        until(lambda: rig.tick() is None or rig.ingest._is_full(), "full")
        waiting = rig.ingest.streams[STREAM].waiting_bytes
        assert 100_000 < waiting < 100_000 + 64 * 30_000
        taken = rig.stats.batches
        assert rig.tick() == 0
        rig.ingest.wait(10.0)  # a pause of its own, not a poll that returns at once
        assert rig.stats.batches == taken
        rig.files.allow()
        rig.now += 2.0
        trainer.send(Flush(STREAM, 10_000))
        until(lambda: rig.tick(0.1) is None or rig.stats.records == 10_000, "all of it")
        assert rig.held.sequences(STREAM) == list(range(1, 10_001))
    finally:
        rig.files.allow()
        rig.close()


def test_blocks_are_at_most_four_mib(rig: Rig) -> None:
    """What piled up while the disk refused is written as several blocks."""
    rig.files.refuse("append")
    trainer = rig.client()
    trainer.hello()
    payload = packed([row(1, values={"x": b"\0" * (MIB - 100)})])
    for n in range(1, 11):
        trainer.batch(n, n, HEADER.pack(len(payload), KIND_ROW, 1, 0, n, n, 0) + payload[32:])
    trainer.barrier()
    rig.files.allow()
    rig.tick(2.0)
    assert trainer.ack(10)
    assert max(block.raw_size for block in rig.held.rows_blocks(STREAM)) <= BATCH_BYTES_MAX
    assert rig.held.covered(STREAM) == list(range(1, 11))


def test_a_failed_fsync_is_never_claimed_to_be_safe(rig: Rig) -> None:
    """A new segment begins, the old one is not asked again, and `synced` of that stream stays where it was.

    A stream that comes later has all of its records in good segments, and may be told so.
    """
    trainer = rig.client()
    trainer.hello()
    trainer.batch(1, 5)
    trainer.send(Flush(STREAM, 5))
    trainer.expect(Flushed)
    rig.now += 60
    until(lambda: trainer.expect(Ack).synced == 5, "synced")
    trainer.batch(6, 9)
    trainer.send(Flush(STREAM, 9))
    trainer.expect(Flushed)
    rig.files.refuse("sync")
    rig.sync()
    suspect = rig.files.synced[-1]
    assert rig.stats.sync_failures == 1
    assert "going on in a new segment" in rig.said[-1]
    rig.files.allow()
    other = rig.client(2)
    other.hello()
    for client, first in ((trainer, 10), (other, 1)):
        client.batch(first, first + 2)
        client.send(Flush(client.stream, first + 2))
        client.expect(Flushed)
    rig.sync()
    assert rig.ingest.streams[STREAM].inbox.synced == 5
    assert rig.ingest.streams[STREAM].inbox.written == 12
    assert rig.ingest.streams[2].inbox.synced == 3
    assert rig.files.synced.count(suspect) == 2, "once for each of the two syncs while it was the current one"
    assert rig.files.synced[-1] != suspect
    assert rig.held.sequences(STREAM) == list(range(1, 13))


def test_a_rolled_segment_claims_only_what_is_in_it(rig: Rig) -> None:
    """Forcing the old segment says nothing about records that went into the next one."""
    one, two = rig.client(1), rig.client(2)
    for client in (one, two):
        client.hello()
        client.batch(1, 3)
    one.barrier()
    two.barrier()
    rig.now += 0.3
    real = rig.ingest._flush_stream

    def roll_between(stream: int, *rest: Any) -> None:
        real(stream, *rest)
        if stream == 1:
            rig.ingest.writers[RUN].roll()

    rig.ingest._flush_stream = roll_between  # type: ignore[method-assign]
    rig.ingest.flush(rig.now)
    rig.ingest._synced_at = rig.now  # so that only the rolled segment is handed over
    rig.ingest.sync(rig.now)
    until(lambda: rig.ingest._syncer.results, "the sync of the rolled segment")
    rig.ingest.sync(rig.now)
    assert (rig.ingest.streams[1].inbox.synced, rig.ingest.streams[2].inbox.synced) == (3, 0)
    rig.sync()
    assert rig.ingest.streams[2].inbox.synced == 3


def test_a_slow_disk_is_forced_less_often(rig: Rig) -> None:
    """At most a fifth of the time for all segments together."""
    rig.ingest._sync_spent = 0.0
    for n in range(5):
        client = rig.client(n + 1, f"run{n}")
        client.hello()
        client.batch(1, 1)
        client.send(Flush(n + 1, 1))
        client.expect(Flushed)
    real = rig.ingest._syncer.take
    rig.ingest._syncer.take = lambda: [r._replace(seconds=0.2) for r in real()]  # type: ignore[method-assign]
    rig.sync()
    assert rig.ingest._sync_seconds >= 5.0


def test_closing_writes_and_seals_everything(rig: Rig) -> None:
    """What waited is written, what was written is forced, and the trainer hears of it."""
    trainer = rig.client()
    trainer.hello()
    trainer.batch(1, 5)
    trainer.barrier()
    rig.ingest.close()
    assert rig.held.sequences(STREAM) == [1, 2, 3, 4, 5]
    assert rig.held.unsealed == []
    assert rig.files.synced
    assert not os.path.exists(endpoint_path(rig.store.path))
    heard = until(lambda: trainer.connection.wait(0.1) and trainer.connection.receive(), "the last ack")
    while isinstance(heard, Ack) and heard.written < 5:
        heard = until(lambda: trainer.connection.wait(0.1) and trainer.connection.receive(), "the last ack")
    assert isinstance(heard, Ack)


# -- the dead ------------------------------------------------------------------------------------------------------------


def trainer_with_ring(store: StoreIdentity, body: Callable[[Ring], None], stream: int = STREAM) -> tuple[int, str]:
    """A process of its own that made a ring, did `body` and waits to be killed: its pid and the ring's path."""
    digest = platform.store_digest(store.path)
    path = os.path.join(platform.shared_directory("/dev/shm"), f"{digest}-{hex_u64(stream)}{SUFFIX}")
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            ring, _ = Ring.create("/dev/shm", digest, stream, CAPACITY_MIN, {"run": RUN, "store": store.id})
            body(ring)
            os.write(writing, b"v" if ring.volatile else b"r")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    answer = os.read(reading, 1)
    os.close(reading)
    if answer != b"r":
        kill(pid)
        pytest.skip("no room for a ring in /dev/shm")
    return pid, path


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def log_rows(count: int, *, commit: bool | None = None) -> Callable[[Ring], None]:
    def body(ring: Ring) -> None:
        log = open_journal(ring).log
        for n in range(count):
            log({"loss": n / 4}, step=n if commit is False else None, commit=commit)

    return body


def test_the_ring_of_a_dead_trainer_is_drained(rig: Rig) -> None:
    """Killed by SIGKILL without a word to us: all its records are written, its segment sealed, its ring gone."""
    pid, path = trainer_with_ring(rig.store, log_rows(500))
    assert rig.look(), "a living one is seen, and left alone"
    assert rig.held.records == []
    kill(pid)
    assert not rig.look()
    assert rig.held.sequences(STREAM) == list(range(1, 501))
    assert not os.path.exists(path)
    assert rig.ingest.streams == {}
    assert rig.stats.drained == 1
    rig.sync()
    assert rig.held.unsealed == []
    assert not rig.look()
    assert rig.stats.drained == 1


def test_a_drain_goes_on_where_the_session_was(rig: Rig) -> None:
    """Some records written, some waiting here, some only in the ring: each is stored once."""
    pid, path = trainer_with_ring(rig.store, log_rows(40))
    records = drain(path).records
    size = len(records) // 40
    trainer = rig.client()
    trainer.hello(ring=path, pid=pid)
    trainer.batch(1, 10, records[: 10 * size])
    trainer.send(Flush(STREAM, 10))
    trainer.expect(Flushed)
    trainer.batch(11, 25, records[10 * size : 25 * size])
    trainer.barrier()
    kill(pid)
    rig.look()
    assert rig.held.sequences(STREAM) == list(range(1, 41))
    assert rig.held.covered(STREAM) == list(range(1, 41))


def test_a_drain_behind_a_spool_claims_no_more_than_it_has(rig: Rig) -> None:
    """The trainer stored 11 to 20 itself after the session broke: no block of ours says that it holds them."""

    def body(ring: Ring) -> None:
        journal = open_journal(ring)
        for _ in range(20):
            journal.log({"loss": 1.0})
        journal.release(journal.mark()[0])
        for _ in range(10):
            journal.log({"loss": 2.0})

    pid, path = trainer_with_ring(rig.store, body)
    trainer = rig.client()
    trainer.hello(ring=path, pid=pid)
    trainer.batch(1, 10)
    trainer.barrier()
    kill(pid)
    rig.look()
    assert rig.held.sequences(STREAM) == [*range(1, 11), *range(21, 31)]
    assert rig.held.covered(STREAM) == rig.held.sequences(STREAM)


def test_refused_records_become_a_gap(rig: Rig) -> None:
    """A ring that was full says how many are missing and which steps they had."""
    pid, _ = trainer_with_ring(rig.store, log_rows(9000))
    kill(pid)
    rig.look()
    (gap,) = [(block, values) for block, values in rig.held.maps if block.kind == KIND_GAP]
    stored = len(rig.held.sequences(STREAM))
    assert gap[0].stream == STREAM
    assert gap[1]["count"] == 9000 - stored
    assert gap[1]["step_max"] == 8999


def test_a_dead_ring_waits_for_the_disk(rig: Rig) -> None:
    """While it refuses the ring stays; afterwards it is drained once."""
    pid, path = trainer_with_ring(rig.store, log_rows(20))
    kill(pid)
    rig.files.refuse("append")
    rig.look()
    rig.look()
    assert os.path.exists(path)
    assert rig.stats.drained == 0
    rig.files.allow()
    rig.now += 5
    rig.look()
    assert not os.path.exists(path)
    assert rig.held.sequences(STREAM) == list(range(1, 21))


def test_open_rows_of_the_dead_are_stored(rig: Rig) -> None:
    """A crash commits what was logged without commit."""
    pid, _ = trainer_with_ring(rig.store, log_rows(7, commit=False))
    kill(pid)
    rig.look()
    assert rig.held.sequences(STREAM) == [1, 2, 3, 4, 5, 6, 7]


def test_a_ring_of_another_shared_memory_is_found_by_its_session(rig: Rig, tmp_path: Any) -> None:
    """A trainer with another `shared_memory_dir` says in Hello where its ring is."""
    digest = platform.store_digest(rig.store.path)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            ring, _ = Ring.create(str(tmp_path), digest, STREAM, CAPACITY_MIN, {"run": RUN, "store": rig.store.id})
            log_rows(5)(ring)
            os.write(writing, (ring.path or "").encode())
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    path = os.read(reading, 4096).decode()
    os.close(reading)
    if not path:
        kill(pid)
        pytest.skip("no room for a ring there")
    rig.client().hello(ring=path, pid=pid)
    assert rig.look()
    kill(pid)
    rig.look()
    assert rig.held.sequences(STREAM) == [1, 2, 3, 4, 5]
    assert not os.path.exists(path)


@pytest.mark.parametrize("damage", ["garbage", "short", "empty", "directory", "link", "other store"])
def test_a_ring_that_cannot_be_read_is_set_aside(rig: Rig, damage: str) -> None:
    """It is named once, others are drained, and only one that never held a record is removed."""
    digest = platform.store_digest(rig.store.path)
    path = os.path.join(platform.shared_directory("/dev/shm"), f"{digest}-{hex_u64(1)}{SUFFIX}")
    if damage == "directory":
        os.mkdir(path)
    elif damage == "link":
        os.symlink("/etc/passwd", path)
    elif damage == "other store":
        pid, _ = trainer_with_ring(rig.store._replace(id=bytes(16)), log_rows(3), 1)
        kill(pid)
    else:
        with open(path, "wb") as file:
            file.write({"garbage": os.urandom(HEADER_BYTES * 2), "short": b"\1" * 100, "empty": b""}[damage])
    pid, _ = trainer_with_ring(rig.store, log_rows(3))
    kill(pid)
    try:
        rig.look()
        rig.look()
        assert rig.held.sequences(STREAM) == [1, 2, 3]
        assert len([text for text in rig.said if path in text]) == (damage != "other store")
        assert os.path.lexists(path) == (damage != "empty")
    finally:
        if damage == "directory":
            os.rmdir(path)


def test_a_damaged_record_ends_a_drain_and_is_told(rig: Rig) -> None:
    """The whole records before it are stored, and a GAP block says that something is missing."""
    pid, path = trainer_with_ring(rig.store, log_rows(10))
    kill(pid)
    with open(path, "r+b") as file:
        file.seek(HEADER_BYTES + 5 * (len(drain(path).records) // 10))
        file.write(b"\xff\xff\xff\xff")
    rig.look()
    assert rig.held.sequences(STREAM) == [1, 2, 3, 4, 5]
    (reason,) = [values["reason"] for block, values in rig.held.maps if block.kind == KIND_GAP]
    assert "ring damaged" in reason
    assert not os.path.exists(path)


def test_a_dead_trainer_without_a_ring_is_forgotten(rig: Rig) -> None:
    """Its records in memory died with it; what came here is written, and its segment sealed."""
    trainer = rig.client()
    trainer.hello(pid=2**22 + 1)
    trainer.batch(1, 4)
    trainer.barrier()
    assert rig.look(), "a word a moment ago is a sign of life, also where its pid is not ours to see"
    rig.now += 11
    assert not rig.look()
    assert rig.ingest.streams == {}
    assert rig.held.sequences(STREAM) == [1, 2, 3, 4]
    rig.sync()
    assert rig.held.unsealed == []


def test_a_living_trainer_without_a_ring_is_kept(rig: Rig) -> None:
    """Silence is no death."""
    rig.client().hello()
    rig.now += 3600
    assert rig.look()
    assert list(rig.ingest.streams) == [STREAM]


def test_a_finished_ring_is_no_trouble(rig: Rig) -> None:
    """Between listing and looking its trainer finished: nothing is said."""
    trainer = rig.client()
    trainer.hello(ring=f"/dev/shm/{platform.store_digest(rig.store.path)}-{hex_u64(STREAM)}{SUFFIX}")
    rig.look()
    assert rig.said == []


@pytest.mark.parametrize("ring", ["/etc/passwd", "relative.ring", "\0", "\udc80", "/dev/zero", "x" * 5000])
def test_a_ring_path_of_a_stranger_is_not_opened(rig: Rig, ring: str) -> None:
    """Only what is named like a ring of this store is."""
    rig.client().hello(ring=ring)
    assert rig.look()
    assert rig.ingest.refused_by_stream() == {}


def test_refused_counts_of_the_living_are_read(rig: Rig) -> None:
    """`status` shows what a full ring has refused so far."""
    pid, path = trainer_with_ring(rig.store, log_rows(9000))
    rig.client().hello(ring=path, pid=pid)
    assert rig.ingest.refused_by_stream()[STREAM] > 1000
    kill(pid)


def test_nothing_due_sleeps_as_long_as_it_may(rig: Rig) -> None:
    """Until the next look at the living; with something waiting until it is due."""
    assert rig.ingest.next_deadline(rig.now) == DaemonSettings.liveness_seconds
    trainer = rig.client()
    trainer.hello()
    trainer.batch(1, 1)
    trainer.barrier()
    assert rig.ingest.next_deadline(rig.now) == pytest.approx(DaemonSettings.flush_commit_seconds)
    rig.tick(0.3)
    assert rig.ingest.next_deadline(rig.now) == DaemonSettings.liveness_seconds
    assert [block.kind for _, block in rig.held.blocks].count(KIND_ROWS) == 1


def test_a_socket_that_cannot_be_bound_is_an_error(store: StoreIdentity) -> None:
    """The server ends with it instead of serving nobody."""
    rig = Rig(store)
    rig.ingest.unbind()
    with pytest.raises((zmq.ZMQError, OSError, Error)):
        rig.ingest.bind("/no/such/directory/x.sock")
    rig.close()
