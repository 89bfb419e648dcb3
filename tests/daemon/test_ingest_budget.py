"""daemon.ingest under budgets: who is held back, what it is told, and what is stored all the same."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from daemon.settings import DaemonSettings
from sdk.limits import BATCH_BYTES_MAX, REFUSED_RUN, REFUSED_STORE
from sdk.location import StoreIdentity
from sdk.wire.messages import Ack, Batch, Finish, Finished, Flush, Flushed
from tests.ingest_rig import STREAM, Client, Rig, ingest_rig
from tests.serving import RUN, held, rows, temporary_store


@pytest.fixture
def rig() -> Iterator[Rig]:
    with temporary_store() as store, ingest_rig(store, DaemonSettings(store_bytes_max=20_000)) as made:
        yield made


def fill(store: StoreIdentity, size: int) -> str:
    path = os.path.join(store.path, "filler")
    with open(path, "wb") as file:
        file.write(bytes(size))
    return path


def held_back(rig: Rig, trainer: Client, first: int = 1) -> Ack:
    """Sends ten records that no budget lets through; what the trainer is told."""
    rig.ingest.measure(rig.now)
    trainer.batch(first, first + 9)
    trainer.send(Flush(trainer.stream, first + 9))
    while True:
        ack = trainer.expect(Ack)
        if ack.trouble:
            return ack


def test_a_full_store_is_told_and_left_alone(rig: Rig) -> None:
    """Beyond `store_bytes_max` nothing is written or acked, each half second the trainer hears why; with room it is."""
    filler = fill(rig.store, 20_000)
    trainer = rig.client()
    trainer.hello()
    ack = held_back(rig, trainer)
    assert (ack.written, ack.trouble) == (0, REFUSED_STORE)
    assert rig.ingest.troubles() == {REFUSED_STORE: 1}
    assert rig.stats.write_failures == 0
    assert not os.listdir(os.path.join(rig.store.path, "runs"))
    assert 0.1 < rig.ingest.next_deadline(rig.now) <= 1.0, "the server sleeps in between"
    trainer.barrier()
    rig.tick(0.6)
    assert trainer.expect(Ack).trouble == REFUSED_STORE, "before the trainer takes us for lost"
    os.unlink(filler)
    rig.now += 10.0
    rig.ingest.measure(rig.now)
    assert trainer.expect(Flushed).written == 10
    assert trainer.expect(Ack).trouble == 0
    assert rig.ingest.troubles() == {}
    assert rig.held.sequences(STREAM) == list(range(1, 11))


def test_one_run_does_not_disturb_another(rig: Rig) -> None:
    """`run_bytes_max` of a Hello holds back that run; the others are written in the same tick."""
    greedy, modest = rig.client(), rig.client(0x78, "b")
    greedy.hello(limits={"batch_bytes_max": BATCH_BYTES_MAX, "run_bytes_max": 100})
    greedy.batch(1, 10)
    greedy.send(Flush(STREAM, 10))
    assert greedy.expect(Flushed).written == 10, "a budget is passed by one block"
    assert held_back(rig, greedy, 11).trouble == REFUSED_RUN
    modest.hello()
    modest.batch(1, 10)
    modest.send(Flush(0x78, 10))
    assert modest.expect(Flushed).written == 10
    assert held(rig.store.path, RUN).sequences(STREAM) == list(range(1, 11))


def test_what_a_finishing_stream_accepted_is_stored(rig: Rig) -> None:
    """Finish, also before the last batch: everything goes past the budget, as nobody holds it any more."""
    fill(rig.store, 20_000)
    trainer = rig.client()
    trainer.hello()
    assert held_back(rig, trainer).trouble == REFUSED_STORE
    trainer.send(Finish(STREAM, 20))
    assert trainer.ack(10).trouble == 0
    trainer.send(Batch(STREAM, 11, 20, 0, 20, rows(11, 20)))
    assert trainer.expect(Finished).written == 20


def test_leaving_does_not_write_past_a_budget(rig: Rig) -> None:
    """A daemon that ends leaves what waits to the trainers' rings, where it still is."""
    fill(rig.store, 20_000)
    trainer = rig.client()
    trainer.hello()
    held_back(rig, trainer)
    rig.ingest.close()
    assert not os.listdir(os.path.join(rig.store.path, "runs"))
