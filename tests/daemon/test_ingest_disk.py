"""daemon.ingest on a disk that refuses to write or to sync."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from daemon.settings import DaemonSettings
from sdk.limits import BATCH_BYTES_MAX, MIB
from sdk.location import StoreIdentity
from sdk.record import HEADER, KIND_ROW
from sdk.transport import endpoint_path
from sdk.wire.messages import (
    Ack,
    Flush,
    Flushed,
)
from tests.ingest_rig import STREAM, Rig, ingest_rig
from tests.serving import RUN, packed, row, until


@pytest.fixture
def rig(store: StoreIdentity) -> Iterator[Rig]:
    with ingest_rig(store) as made:
        yield made


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
    heard = trainer.barrier()
    for _ in range(3):
        rig.tick(0.1)
    heard += trainer.barrier()
    assert not [m for m in heard if isinstance(m, Flushed)]
    assert {m.written for m in heard if isinstance(m, Ack)} == {first - 1}
    assert rig.stats.write_failures == 1, "the disk is asked twice a second"
    assert rig.ingest.next_deadline(rig.now) > 0.1, "and the server sleeps in between"
    rig.files.allow()
    rig.tick(1.1)
    assert trainer.expect(Flushed).written == 12
    assert rig.held.sequences(STREAM) == list(range(1, 13))
    assert rig.ingest.streams[STREAM].waiting_bytes == 0


def test_a_disk_that_refuses_for_long_is_told_now_and_then(rig: Rig) -> None:
    """The log has a line when it begins and one when it is over, not two for each second."""
    trainer = rig.client()
    trainer.hello()
    rig.files.refuse("append", "create")
    trainer.batch(1, 5)
    trainer.barrier()
    for _ in range(60):
        rig.tick(0.6)
    rig.files.allow()
    rig.tick(0.6)
    first, last = rig.said
    assert first.startswith(f"cannot write run {RUN!r}: [Errno 28] ")
    assert last.startswith("written again, after 6")


def test_what_waits_is_bounded(store: StoreIdentity) -> None:
    """Beyond `pending_bytes_max` nothing more is received, and waiting does not spin; later it all comes in."""
    rig = Rig(store, DaemonSettings(pending_bytes_max=100_000))
    try:
        rig.files.refuse("append")
        trainer = rig.client()
        trainer.hello()
        for n in range(20):
            trainer.batch(n * 500 + 1, n * 500 + 500)
        until(lambda: rig.tick() is None or rig.ingest.is_full(), "full")
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


def test_a_rolled_segment_claims_only_what_is_in_it(rig: Rig) -> None:
    """Forcing the old segment says nothing about records that went into the next one."""
    one, two = rig.client(1), rig.client(2)
    for client in (one, two):
        client.hello()
        client.batch(1, 3)
    one.barrier()
    two.barrier()
    rig.now += 0.3
    real = rig.ingest.writing.flush_stream

    def roll_between(stream: int, *rest: Any) -> None:
        real(stream, *rest)
        if stream == 1:
            rig.ingest.writers[RUN].roll()

    rig.ingest.writing.flush_stream = roll_between  # type: ignore[method-assign]
    rig.ingest.flush(rig.now)
    rig.ingest.forcing.synced_at = rig.now  # so that only the rolled segment is handed over
    rig.ingest.sync(rig.now)
    until(lambda: rig.ingest.forcing.syncer.results, "the sync of the rolled segment")
    rig.ingest.sync(rig.now)
    assert (rig.ingest.streams[1].inbox.synced, rig.ingest.streams[2].inbox.synced) == (3, 0)
    rig.sync()
    assert rig.ingest.streams[2].inbox.synced == 3


def test_a_slow_disk_is_forced_less_often(rig: Rig) -> None:
    """At most a fifth of the time for all segments together."""
    rig.ingest.forcing._spent = 0.0
    for n in range(5):
        client = rig.client(n + 1, f"run{n}")
        client.hello()
        client.batch(1, 1)
        client.send(Flush(n + 1, 1))
        client.expect(Flushed)
    real = rig.ingest.forcing.syncer.take
    rig.ingest.forcing.syncer.take = lambda: [r._replace(seconds=0.2) for r in real()]  # type: ignore[method-assign]
    rig.sync()
    assert rig.ingest.forcing.interval >= 5.0


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
