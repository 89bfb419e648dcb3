"""daemon.keeper: every job once, trouble waits, what can never be done is set aside, and the daemon starts it by itself."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from daemon import keeper
from daemon.keep import KINDS, Abandoned, find_work
from sdk._keeping import BAD_SUFFIX, claim, jobs, put_job
from sdk.location import StoreIdentity
from tests.serving import temporary_store


class Desk:
    """A store, and a kind of job whose doing is written here.

    Attributes:
        done: The bodies that came to it.
        answers: What it does with the next ones: raises them.
    """

    def __init__(self, store: StoreIdentity) -> None:
        self.store = store
        self.done: list[Mapping[str, Any]] = []
        self.answers: list[Exception] = []
        self.told: list[str] = []

    def find(self, kind: str) -> Callable[..., None]:
        if kind != "desk":
            return find_work(kind)
        return self.work

    def work(self, store: StoreIdentity, body: Mapping[str, Any], is_wanted: Callable[[], bool]) -> None:
        if self.answers:
            raise self.answers.pop(0)
        self.done.append(body)

    def keep(self) -> int:
        return keeper.keep(self.store, lambda: True)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with temporary_store() as store:
        desk = Desk(store)
        monkeypatch.setattr(keeper, "find_work", desk.find)
        monkeypatch.setattr(keeper, "request", lambda store, verb, told, timeout: desk.told.append(told["trouble"]))
        yield desk


def test_every_job_is_done_once_in_order(desk: Desk) -> None:
    """And then it is gone."""
    for number in range(3):
        put_job(desk.store, "desk", {"n": number})
    assert desk.keep() == 0
    assert [body["n"] for body in desk.done] == [0, 1, 2]
    assert jobs(desk.store.path) == []
    assert desk.told == [""]


def test_what_the_disk_refuses_waits(desk: Desk) -> None:
    """The next job is tried all the same; the trouble is told, and goes when the disk is well again."""
    for number in range(2):
        put_job(desk.store, "desk", {"n": number})
    desk.answers = [OSError(errno.ENOSPC, "No space left on device")]
    assert desk.keep() == 1
    assert [body["n"] for body in desk.done] == [1]
    assert "No space left" in desk.told[-1]
    assert desk.keep() == 0
    assert [body["n"] for body in desk.done] == [1, 0]
    assert desk.told[-1] == ""


def test_what_can_never_be_done_is_set_aside(desk: Desk) -> None:
    """A job that breaks its doer and one of a kind that nobody knows keep nobody from the next."""
    put_job(desk.store, "desk", {})
    put_job(desk.store, "unheard", {})
    put_job(desk.store, "desk", {"n": 1})
    desk.answers = [KeyError("source")]
    assert desk.keep() == 0
    assert desk.done == [{"n": 1}]
    assert jobs(desk.store.path) == []
    aside = [name for name in os.listdir(os.path.join(desk.store.path, "keeping")) if name.endswith(BAD_SUFFIX)]
    assert len(aside) == 2
    assert any("KeyError" in text for text in desk.told)
    assert any("unheard" in text for text in desk.told)


def test_one_that_is_to_end_leaves_its_job(desk: Desk) -> None:
    """In the middle of a job or before it; no trouble."""
    put_job(desk.store, "desk", {})
    desk.answers = [Abandoned()]
    ends = iter([True, True, True])
    assert keeper.keep(desk.store, lambda: next(ends, False)) == 0
    assert keeper.keep(desk.store, lambda: False) == 0
    assert desk.done == []
    assert len(jobs(desk.store.path)) == 1


def test_a_job_that_somebody_does_is_left_to_him(desk: Desk) -> None:
    """A trainer that waits for its artifact does it itself."""
    put_job(desk.store, "desk", {})
    (job,) = jobs(desk.store.path)
    lock = claim(job)
    assert lock is not None
    assert desk.keep() == 0
    assert desk.done == []
    lock.release()
    assert desk.keep() == 0
    assert len(desk.done) == 1


def test_a_store_that_is_away_is_trouble(desk: Desk) -> None:
    """Nothing is written into the empty directory of a mount that is gone."""
    put_job(desk.store, "desk", {})
    os.rename(os.path.join(desk.store.path, "store.json"), os.path.join(desk.store.path, "away"))
    assert desk.keep() == 1
    assert "the store is away" in desk.told[0]
    assert len(jobs(desk.store.path)) == 1
    os.rename(os.path.join(desk.store.path, "away"), os.path.join(desk.store.path, "store.json"))
    assert desk.keep() == 0


def test_each_kind_names_a_module() -> None:
    """Lower-case letters, as names of jobs allow."""
    assert all(kind.isalpha() and kind.islower() and module.isidentifier() for kind, module in KINDS.items())
