from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sdk.journal.appender import open_journal
from sdk.journal.page import Mark
from sdk.journal.ring import Ring
from sdk.journal.snapshot import Snapshot, snapshot
from sdk.reader import Run
from sdk.reader.recent import OVER, Recent
from sdk.record import Record, walk
from tests.builders import RunBuilder, make_store


class Trainer:
    """A journal in this process, and a daemon that stores what it is told to.

    Attributes:
        looks: The snapshots that were taken.
    """

    def __init__(
        self, tmp_path: Path, metrics: dict[str, Any], *, attempt: Callable[[RunBuilder], str] | None = None
    ) -> None:
        self.builder = RunBuilder(make_store(tmp_path), "a41f")
        before = {"attempt": 2, "continues": attempt(self.builder)} if attempt is not None else {}
        self.stream = self.builder.stream(**before)
        self.builder.flush()
        first = 100 if before else 0
        self.journal = open_journal(Ring.private(self.stream.id, {}), first_step=first)
        self.journal.append_meta(
            {"stream": {"id": self.stream.hex, "kind": "main", "started_ns": 10**18, **before}, "metric": metrics}
        )
        self.log = self.journal.log
        self.metrics = metrics
        self.looks: list[Snapshot | None] = []
        self.is_over = False
        self.recent = Recent(Run(self.builder.directory), self.stream.hex, self.take, lambda: self.metrics)

    def take(self, since: Mark | None) -> Snapshot | None:
        if self.is_over:
            return Snapshot(OVER, OVER, b"") if since in (None, OVER) else None
        self.looks.append(snapshot(self.journal, since))
        return self.looks[-1]

    def store(self) -> None:
        """Stores and releases everything."""
        found = snapshot(self.journal)
        assert found is not None
        records = [Record(*record[:5], bytes(record.payload)) for record in walk(found.records)]
        if records:
            self.builder.daemon.rows(self.stream, records)
        self.journal.release(found.end)

    @property
    def rereads(self) -> int:
        """How often everything was read."""
        return sum(look is None for look in self.looks)


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Trainer]:
    made = Trainer(tmp_path, {})
    yield made
    made.builder.close()


def test_what_is_in_the_ring_is_there_at_once(trainer: Trainer) -> None:
    """Nothing was stored, nobody was asked."""
    trainer.log({"loss": 0.5, "text": "a"})
    assert trainer.recent.summary() == {"loss": 0.5, "text": "a"}
    trainer.log({"loss": 0.25, "nested": {"x": None, "y": 1}})
    assert trainer.recent.summary() == {"loss": 0.25, "text": "a", "nested.y": 1}
    assert trainer.recent.latest("loss", partial=False) == 0.25
    assert trainer.recent.latest("nothing", partial=False) is None


def test_a_second_look_takes_only_what_came_since(trainer: Trainer) -> None:
    """Also when that is stored and released by then."""
    for step in range(100):
        trainer.log({"a": step})
    assert trainer.recent.summary() == {"a": 99}
    trainer.store()
    trainer.log({"b": 1})
    trainer.store()
    assert trainer.recent.summary() == {"a": 99, "b": 1}
    assert [len(list(walk(look.records))) for look in trainer.looks if look is not None] == [101, 1]


def test_what_was_overwritten_is_read_from_the_store(trainer: Trainer) -> None:
    """A ring that came round since the last look tells too little."""
    trainer.metrics = {"a": {"summary": ["max", "min"]}}
    trainer.log({"a": 7})
    assert trainer.recent.summary() == {"a": {"max": 7, "min": 7}}
    trainer.log({"a": 9, "gone": 1})
    while trainer.journal.mark()[0] < 2 * trainer.journal.ring.capacity:
        trainer.store()
        for _ in range(50):
            trainer.log({"text": "x" * 1000})
    trainer.log({"a": 8})
    found = trainer.recent.summary()
    assert (found["a"], found["gone"]) == ({"max": 9, "min": 7}, 1)
    assert trainer.rereads == 1


def test_a_late_record_is_counted(trainer: Trainer) -> None:
    """It changes a row that was settled."""
    trainer.metrics = {"a": {"summary": ["min", "mean", "last"]}}
    for value in (4.0, 8.0):
        trainer.log({"a": value})
    trainer.recent.summary()
    trainer.log({"a": 2.0}, step=0)
    assert trainer.recent.summary()["a"] == {"min": 2.0, "mean": 5.0, "last": 8.0}


def test_an_open_row_is_counted_once(trainer: Trainer) -> None:
    """What it says now, however often it was looked at, and wherever its pieces are."""
    trainer.metrics = {"a": {"summary": ["min", "max"]}}
    for value in (5.0, 1.0, 3.0):
        trainer.log({"a": value}, step=4)
        assert trainer.recent.summary()["a"] == {"min": value, "max": value}
        trainer.store()
    trainer.log({"a": None}, step=4)
    trainer.log({"a": 2.0}, step=5)
    assert trainer.recent.summary()["a"] == {"min": 2.0, "max": 2.0}


def test_a_definition_that_comes_later_counts_what_was_logged_before(trainer: Trainer) -> None:
    """Everything is read again."""
    trainer.log({"a": 3})
    trainer.log({"a": 1})
    assert trainer.recent.summary() == {"a": 1}
    trainer.metrics = {"a": {"summary": ["max"]}}
    assert trainer.recent.summary() == {"a": {"max": 3}}


def test_epochs(trainer: Trainer) -> None:
    """The value of the last complete one; of the one that goes on if that is asked for; of both when the run is over."""
    trainer.metrics = {"a": {"reduce": "mean", "weight": "n", "summary": ["min"]}}
    latest = trainer.recent.latest
    trainer.log({"a": 1.0, "epoch": 0, "n": 3})
    trainer.log({"a": 5.0})
    assert (latest("a_epoch", partial=False), latest("a_epoch", partial=True)) == (None, 2.0)
    trainer.log({"a": 7.0, "epoch": 1})
    assert (latest("a_epoch", partial=False), latest("a_epoch", partial=True)) == (2.0, 7.0)
    assert (latest("a", partial=False), latest("a_step", partial=False)) == (7.0, 7.0)
    trainer.log({"epoch": 2})
    assert latest("a_epoch", partial=False) == 7.0
    trainer.log({"a": 1.0})
    assert trainer.recent.summary() == {
        "a": {"min": 1.0}, "a_step": {"min": 1.0}, "a_epoch": {"min": 2.0}, "epoch": 2, "n": 3
    }  # fmt: skip
    trainer.store()
    trainer.is_over = True
    assert (latest("a_epoch", partial=False), trainer.recent.summary()["a_epoch"]) == (1.0, {"min": 1.0})


def test_earlier_attempts_count(tmp_path: Path) -> None:
    """What they logged is there, and what was counted goes on."""

    def attempt(builder: RunBuilder) -> str:
        stream = builder.stream()
        stream.meta({"metric": {"a": {"summary": ["max"]}}, "summary": {"best": 3}})
        stream.log({"a": 9.0, "old": 1})
        return stream.hex

    trainer = Trainer(tmp_path, {}, attempt=attempt)
    trainer.log({"a": 4.0})
    assert trainer.recent.summary() == {"a": {"max": 9.0}, "old": 1, "best": 3}
    trainer.builder.close()


def test_what_others_logged_is_looked_up(trainer: Trainer) -> None:
    """A child's or another rank's keys, as far as they are stored; its own win."""
    trainer.log({"a": 1})
    other = trainer.builder.stream("fork")
    other.log({"a": 5, "child": 2})
    trainer.builder.flush()
    assert trainer.recent.summary() == {"a": 1, "child": 2}


def test_against_the_reader(tmp_path: Path) -> None:
    """Random calls and looks: the same as what a reader finds when all of it is stored."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    operations = ["min", "max", "mean", "first", "last", "best"]
    metrics = {
        "a": {"summary": operations, "goal": "maximize"},
        "b*": {"reduce": "mean", "weight": "w", "summary": ["min", "last"], "over": "epoch"},
        "c": {"reduce": "sum"}, "d": {"reduce": "max", "over": "phase"},
    }  # fmt: skip
    trainer = Trainer(tmp_path, metrics)
    epoch = 0
    for _ in range(400):
        epoch += rng.random() < 0.1
        # Weights that add up to nothing make a mean of rounding errors.
        values = {key: rng.randrange(1 if key == "w" else -50, 50) / 2 for key in "abcdw"}
        row: dict[str, Any] = {key: value for key, value in values.items() if rng.random() < 0.4}
        row |= {"epoch": epoch} if rng.random() < 0.5 else {}
        row |= {"phase": rng.choice(["x", "y"])} if rng.random() < 0.1 else {}
        now = trainer.journal.mark()[2]
        step = rng.choice([None, None, None, now, now + 2, max(now - 1, 0)]) if rng.random() < 0.5 else None
        trainer.log(row, step=step)
        if rng.random() < 0.1:
            trainer.store()
        if rng.random() < 0.2:
            trainer.recent.summary()
    found = trainer.recent.summary()
    trainer.store()
    expected = Run(trainer.builder.directory, alive=lambda facts: True).summary
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, nan_ok=True), key
    trainer.builder.close()
