"""daemon.ingest: sessions with a real ROUTER and real DEALERs in one process, ticked by hand."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from daemon.settings import DaemonSettings
from sdk.errors import Error
from sdk.limits import BATCH_BYTES_MAX, CREDIT_BYTES, MIB, WIRE_VERSION
from sdk.location import StoreIdentity
from sdk.record import HEADER, KIND_ROW
from sdk.segment.format import KIND_ROWS
from sdk.transport import endpoint_path
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
    Message,
    Reject,
    Welcome,
)
from tests.ingest_rig import STREAM, Rig, ingest_rig
from tests.serving import held, packed, row, rows, until


@pytest.fixture
def rig(store: StoreIdentity) -> Iterator[Rig]:
    with ingest_rig(store) as made:
        yield made


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
    "message",
    [Batch(STREAM, 1, 1, 0, 0, rows(1, 1)), Flush(STREAM, 0), Finish(STREAM, 0)],
    ids=lambda m: type(m).__name__,
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


@pytest.mark.parametrize(
    "message", [Welcome(1, 7, 0, 0, 1, 1, "", {}), Ack(7, 1, 1), Flushed(7, 1, 1), Finished(7, 1, 1)]
)
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


def test_a_newer_trainer_is_welcomed_in_our_version_and_an_older_one_in_its_own(rig: Rig) -> None:
    """The highest version that both speak."""
    assert rig.client().hello(version_max=WIRE_VERSION + 1).version == WIRE_VERSION
    assert rig.client().hello(version_max=WIRE_VERSION).version == WIRE_VERSION


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
    assert len(rig.ingest.streams) == len(rig.ingest.table._of_peer) == 1


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
    assert rig.ingest.table._of_peer == {}
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


def test_nothing_due_sleeps_as_long_as_it_may(rig: Rig) -> None:
    """Until the next look at the living; with something waiting until it is due."""
    assert rig.ingest.next_deadline(rig.now) == DaemonSettings.liveness_seconds
    trainer = rig.client()
    trainer.hello()
    trainer.batch(1, 1)
    trainer.barrier()
    assert rig.ingest.next_deadline(rig.now) == pytest.approx(DaemonSettings.flush_commit_seconds)
    rig.tick(0.3)
    assert rig.ingest.next_deadline(rig.now) < DaemonSettings.liveness_seconds, (
        "somebody waits to hear that it is on the disk"
    )
    rig.sync()
    assert rig.ingest.next_deadline(rig.now) == DaemonSettings.liveness_seconds
    assert [block.kind for _, block in rig.held.blocks].count(KIND_ROWS) == 1


def test_a_socket_that_cannot_be_bound_is_an_error(store: StoreIdentity) -> None:
    """The server ends with it instead of serving nobody."""
    rig = Rig(store)
    rig.ingest.unbind()
    with pytest.raises((zmq.ZMQError, OSError, Error)):
        rig.ingest.bind("/no/such/directory/x.sock")
    rig.close()
