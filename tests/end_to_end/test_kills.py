"""Whatever dies, what `log()` accepted is stored exactly once. The counts are those of the promise, not a sample."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import sdk
from sdk import _spawn
from tests.end_to_end.world import Trainer, kill_daemon, start_daemon, steps, until, until_drained

TRAINER_ROUNDS = 200
DAEMON_ROUNDS = 200
BOTH_ROUNDS = 50


@pytest.fixture
def seed(record_property: Callable[[str, object], None]) -> random.Random:
    """A random source whose seed is printed, so that a failure can be repeated."""
    number = int(os.environ.get("STEPD_TEST_SEED") or int.from_bytes(os.urandom(4), "little"))
    print(f"STEPD_TEST_SEED={number}")
    return random.Random(number)


def test_a_trainer_killed_after_call_n_leaves_exactly_n(store: Path, seed: random.Random) -> None:
    """SIGKILL right after the n-th call returned, for 200 random n: the store holds the steps 0 to n-1, each once."""
    start_daemon(store)
    counts = [int(10 ** seed.uniform(0, 4)) for _ in range(TRAINER_ROUNDS)]

    def train(run: str, n: int) -> None:
        sdk.init(id=run, project="kills")
        log = sdk.log
        for i in range(n):
            log({"x": i, "loss": i * 0.5})
        os.kill(os.getpid(), 9)

    for index, n in enumerate(counts):
        trainer = Trainer(lambda _, index=index, n=n: train(f"run{index}", n))
        assert trainer.wait() == -9
    until_drained(store)
    opened = sdk.open_store(store)
    for index, n in enumerate(counts):
        series = opened.run(f"run{index}").series("x")
        assert series.step.tolist() == list(range(n)), f"run{index}: {len(series.step)} of {n}"
        assert series.value.tolist() == list(range(n))


def test_a_daemon_killed_at_random_loses_nothing(
    store: Path, seed: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL of the daemon at 200 random moments under live trainers: their senders start another, and all is there."""
    monkeypatch.setenv("STEPD_RESTART_SECONDS", "0.05")
    trainers, rounds = 4, DAEMON_ROUNDS

    def train(run: str, count: Callable[[int], None]) -> None:
        sdk.init(id=run, project="kills")
        log = sdk.log
        done = store / "stop"
        n = 0
        while n % 100 or not done.exists():
            log({"x": n})
            n += 1
            if n % 10 == 0:
                time.sleep(0.001)  # about 8000 calls a second: each kill finds records on every part of the way
        count(n)
        sdk.finish()

    running = [Trainer(lambda count, i=i: train(f"run{i}", count)) for i in range(trainers)]
    killed = 0
    while killed < rounds:
        until(lambda: _spawn.is_serving(str(store)))
        time.sleep(seed.uniform(0, 0.15))
        killed += kill_daemon(store) is not None
    (store / "stop").touch()
    assert [trainer.wait() for trainer in running] == [0] * trainers
    opened = sdk.open_store(store)
    for index, trainer in enumerate(running):
        run = opened.run(f"run{index}")
        assert run.series("x").value.tolist() == list(range(trainer.returned))
        assert run.state == "finished"
        assert not run.gaps


def test_both_killed_at_once_lose_nothing(store: Path, seed: random.Random) -> None:
    """Trainer and daemon SIGKILLed together, 50 rounds: the next daemon drains the ring; nothing that returned is lost."""

    def train(run: str, count: Callable[[int], None]) -> None:
        sdk.init(id=run, project="kills")
        log = sdk.log
        n = 0
        while True:
            log({"x": n})
            n += 1
            count(n)

    ended = []
    for index in range(BOTH_ROUNDS):
        start_daemon(store)
        trainer = Trainer(lambda count, index=index: train(f"run{index}", count))
        until(lambda trainer=trainer: trainer.returned > 0)
        time.sleep(seed.uniform(0, 0.1))
        first, second = seed.sample([trainer.kill, lambda: kill_daemon(store)], 2)
        first()
        second()
        trainer.wait()
        ended.append(trainer.returned)
    start_daemon(store)
    until_drained(store)
    for index, returned in enumerate(ended):
        found = steps(store, f"run{index}")
        # One more may have been published when the counter had not been written yet.
        assert found == list(range(len(found)))
        assert returned <= len(found) <= returned + 1
