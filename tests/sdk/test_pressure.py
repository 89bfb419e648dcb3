"""sdk._sender and sdk._pressure with a budget that is reached: the daemon's, and our own where none serves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sdk._sender import SILENCE_SECONDS, SPOOL_AGE_SECONDS
from sdk.budget import Budget
from sdk.limits import BATCH_BYTES_MAX
from sdk.wire.messages import Batch, Hello
from tests.ingest_rig import STREAM
from tests.sdk.test_sender import World
from tests.serving import temporary_store

NONE_FREE = Budget(free_bytes_min=2**60)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with temporary_store() as store:
        made = World(store, monkeypatch)
        yield made
        made.close()


def reach_a_budget(world: World) -> None:
    """A session whose daemon says that the disk has too little left."""
    world.serve().ingest.budget.budget = NONE_FREE
    world.log(10)
    world.until(lambda: world.sender._held, "the daemon's word", 0.1)


def set_budget(world: World, budget: Budget) -> None:
    assert world.rig is not None
    world.rig.ingest.budget.budget = budget
    world.rig.now += 1.0


def test_nothing_is_sent_or_spooled_and_the_session_lives(world: World) -> None:
    """While the daemon holds back: no batches, no spool with the ring full, no new sessions; calls are refused, and counted
    for the reason; the user reads one line with what to do.
    """
    reach_a_budget(world)
    batches = len(world.of(Batch))
    hellos = len(world.of(Hello))
    for _ in range(10):
        world.log(500)
        world.tick(0.5)
        world.until(lambda: world.sender._heard == world.now, "an ack each half second")
    assert world.journal.refusals().refused
    assert len(world.of(Batch)) == batches
    assert len(world.of(Hello)) == hellos
    assert world.stored == 0
    assert not world.sender._spool.is_open
    (told,) = [text for text in world.said if "free_bytes_min" in text]
    assert "refused and counted" in told
    assert "stepd rm" in told
    assert world.sender.refused_reasons() == {"free_bytes_min": world.journal.refusals().refused}


def test_it_goes_on_by_itself(world: World) -> None:
    """There is room again: everything that waited is stored once, the user hears it, and new calls are taken."""
    reach_a_budget(world)
    world.log(100)
    set_budget(world, Budget(free_bytes_min=0))
    world.until(lambda: world.stored == 110, "the rest", 0.1)
    assert world.held.sequences(STREAM) == list(range(1, 111))
    assert any("stored again" in text and "nothing was lost" in text for text in world.said)
    assert world.sender._pressure.code == 0


def test_a_daemon_that_dies_meanwhile(world: World) -> None:
    """Our own spool minds the same budget; the next daemon is asked with one batch, and believed."""
    world.trainer(free_bytes_min=2**60)
    reach_a_budget(world)
    world.kill_daemon()
    world.until(lambda: world.state == "down", "the loss", 0.1)
    world.log(2000)
    world.tick(SPOOL_AGE_SECONDS + SILENCE_SECONDS)
    world.tick(SPOOL_AGE_SECONDS + SILENCE_SECONDS)
    assert (world.stored, world.sender._spool.is_open) == (0, False)
    world.serve()
    world.until(lambda: world.stored == 2010 - world.journal.refusals().refused, "the rest", 0.1)


def test_without_a_daemon_our_own_budget_counts(world: World) -> None:
    """`run_bytes_max` without a daemon: the spool stops there, by at most one block too late, and goes on when it may."""
    world.trainer(run_bytes_max=10_000)
    for _ in range(5):
        world.log(100)
        world.tick(SPOOL_AGE_SECONDS + 1)
    assert 0 < world.stored < 500
    assert world.sender._spool.bytes_written < 30_000
    assert any("run_bytes_max" in text for text in world.said)


@pytest.mark.parametrize("daemon", [True, False])
def test_what_was_accepted_is_stored_at_the_end(world: World, daemon: bool) -> None:
    """finish() stores the ring past every budget, by the daemon at once and without waiting, else in the spool."""
    if daemon:
        reach_a_budget(world)
    else:
        world.trainer(free_bytes_min=2**60)
        world.log(10)
        world.tick(SPOOL_AGE_SECONDS + 1)
    world.log(1000)
    before = world.now
    state = world.finish()
    assert (state.stored, state.ended_in) == (1010, "written" if daemon else "spool")
    assert world.now - before < SILENCE_SECONDS
    assert sorted(set(world.held.sequences(STREAM))) == list(range(1, 1011))


@pytest.mark.parametrize(("settings", "limits"), [({"run_bytes_max": "1M"}, {"run_bytes_max": 2**20}), ({}, {})])
def test_the_runs_budget_travels(world: World, settings: dict[str, str], limits: dict[str, int]) -> None:
    """Hello carries `run_bytes_max`, so that it counts whichever daemon serves; without one there is no such limit."""
    world.trainer(**settings)
    world.serve()
    world.log()
    world.live()
    assert world.of(Hello)[0].limits == {"batch_bytes_max": BATCH_BYTES_MAX, **limits}
