"""daemon.sync.draining: everything is delivered or named, and nothing is waited for that cannot come."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from daemon.sync import draining, outcome, rounds
from daemon.sync.crew import Task
from daemon.sync.draining import TRIES_MAX, Left, drain
from daemon.sync.outcome import Outcome
from daemon.sync.rounds import Rounds
from sdk._syncing import jobs, put_job
from sdk.errors import StoreError, UsageError
from sdk.location import StoreIdentity
from sdk.segment.naming import run_path
from tests.serving import temporary_store

TARGET = "jsonl:/data/out"


class Node:
    """A store with jobs, workers that answer at once what a test says, and a clock that moves while somebody waits.

    Attributes:
        answers: By run, what comes of each pass, the last one over and over.
        passes: Every task that was carried.
    """

    def __init__(self, store: StoreIdentity, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.now = 1000.0
        self.answers: dict[str, list[dict[str, Any]]] = {}
        self.passes: list[str] = []
        self.said: list[str] = []
        self.settles = 0
        for module in (draining, rounds):
            monkeypatch.setattr(module.clock, "monotonic", lambda: self.now)
            monkeypatch.setattr(module.clock, "pause", self._pause)
        monkeypatch.setattr(draining, "Rounds", lambda store, **options: Rounds(store, make_crew=self._crew, **options))

    def _pause(self, seconds: float) -> None:
        self.now += seconds

    def _crew(self, store: str) -> Any:
        node = self

        class Crew:
            """Answers at the next `hear`."""

            def __init__(self) -> None:
                self.busy: list[Task] = []

            def hand(self, task: Task) -> None:
                self.busy.append(task)

            def hear(self, seconds: float) -> list[Any]:
                heard = [(task, node.outcome(task)) for task in self.busy]
                self.busy = []
                return heard

            def end(self, seconds: float) -> list[Any]:
                return []

        return Crew()

    def outcome(self, task: Task) -> Outcome:
        self.passes.append(task.label)
        answers = self.answers[task.label]
        return Outcome(task.label, task.target, **(answers.pop(0) if len(answers) > 1 else answers[0]))

    def leave(self, run: str, *answers: dict[str, Any], target: str = TARGET) -> None:
        os.makedirs(run_path(self.store.path, run), exist_ok=True)
        with open(os.path.join(run_path(self.store.path, run), "first"), "w", encoding="utf-8"):
            pass
        put_job(self.store, run, target, 10.0)
        self.answers[run] = list(answers)

    def drain(self, timeout: float | None = None, targets: tuple[str, ...] = (), **options: Any) -> list[Left]:
        return drain(self.store.path, timeout=timeout, targets=targets, say=self.said.append, **options)


DELIVERED = {"state": outcome.DELIVERED}
AWAY = {"state": outcome.DEFERRED, "reason": "no route", "behind": 7}


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    with temporary_store() as store:
        yield Node(store, monkeypatch)


def test_everything_is_delivered(node: Node) -> None:
    """A target that is away for a while is waited for, and a run that is still being written."""
    node.leave("a", DELIVERED)
    node.leave("b", AWAY, AWAY, DELIVERED)
    node.leave("c", {"state": outcome.LIVE}, DELIVERED)
    assert node.drain(timeout=100.0) == []
    assert jobs(node.store.path) == []
    assert sorted(node.passes) == ["a", "b", "b", "b", "c", "c"]
    assert "3 runs to deliver" in node.said


def test_nothing_to_do_is_nothing(node: Node) -> None:
    """In no time."""
    assert node.drain() == []
    assert node.now == 1000.0


def test_what_stays_behind_is_named(node: Node) -> None:
    """With why, and how much; the others are delivered."""
    node.leave("away", AWAY)
    node.leave("bad", {"state": outcome.FAILED, "reason": "a value of 3 GB", "behind": 2}, target="jsonl:/b")
    node.leave("living", {"state": outcome.LIVE}, target="jsonl:/c")
    node.leave("well", DELIVERED, target="jsonl:/d")
    put_job(node.store, "never", "jsonl:/e", 10.0)
    assert node.drain(timeout=30.0) == [
        Left("away", TARGET, 7, "no route"),
        Left("bad", "jsonl:/b", 2, "a value of 3 GB"),
        Left("living", "jsonl:/c", 0, "it is still being written"),
        Left("never", "jsonl:/e", 0, "nothing of it is stored"),
    ]
    assert 1029.0 < node.now < 1032.0
    assert node.passes.count("bad") < 4


def test_without_a_timeout_it_ends_all_the_same(node: Node) -> None:
    """When all that is left was refused often, failed, or has no run."""
    node.leave("away", AWAY)
    node.leave("bad", {"state": outcome.MISUSE, "reason": "pip install"}, target="jsonl:/b")
    put_job(node.store, "never", "jsonl:/e", 10.0)
    assert [left.run for left in node.drain()] == ["away", "bad", "never"]
    assert node.passes.count("away") == TRIES_MAX


def test_only_some_targets(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """However they are written; those of other machines too."""
    node.leave("a", DELIVERED)
    node.leave("b", DELIVERED, target="jsonl:/b")
    monkeypatch.setattr("sdk._syncing.machine_id", lambda: "another")
    assert node.drain(targets=("jsonl:/data/x/../out",)) == []
    assert node.passes == ["a"]
    assert node.drain() == []
    assert node.passes == ["a", "b"]
    with pytest.raises(UsageError):
        node.drain(targets=("nonsense",))


def test_it_can_be_stopped(node: Node) -> None:
    """What is left is named."""
    node.leave("living", {"state": outcome.LIVE})
    asked: Callable[[], bool] = lambda: node.now > 1005.0  # noqa: E731 - a name says what it is
    assert [left.run for left in node.drain(is_stopped=asked)] == ["living"]


def test_the_rings_come_first(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for a daemon that is about to take them, but not for ever."""
    asked: list[float] = []

    def take_in(store: StoreIdentity, base: str, seconds: float) -> bool:
        asked.append(seconds)
        return len(asked) == 3

    monkeypatch.setattr(draining, "_take_in", take_in)
    node.drain()
    assert len(asked) == 3
    assert node.said == ["waiting for what trainers left in shared memory"]
    monkeypatch.setattr(draining, "_take_in", lambda *_: False)
    before = node.now
    node.drain()
    assert node.now - before == pytest.approx(draining.SETTLE_SECONDS_MAX, abs=0.2)


def test_there_must_be_a_store(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong directory is an error, and makes none; so is one whose jobs cannot be ended."""
    with pytest.raises(StoreError):
        drain(f"{node.store.path}-none")
    monkeypatch.setattr(draining, "read_store", lambda path: node.store._replace(writable=False))
    with pytest.raises(StoreError, match="cannot write"):
        node.drain()


def test_a_job_that_cannot_be_ended_is_no_loop(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk refuses: it is delivered again later, not over and over."""

    def refuse(*_: object) -> bool:
        raise OSError(5, "Input/output error")

    node.leave("a", DELIVERED)
    monkeypatch.setattr(rounds, "end_job", refuse)
    assert [left.run for left in node.drain(timeout=100.0)] == ["a"]
    assert len(node.passes) < 4
