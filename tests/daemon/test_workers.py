"""daemon.workers: started when wanted, one at a time, again after trouble, and never left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import psutil
import pytest

from daemon import workers
from daemon.workers import Carrier, Keeper, Worker
from sdk import _syncing
from sdk._keeping import end_job, jobs, keeping_path, put_job
from tests.serving import temporary_store

SLEEPS = ("timeit", ["-n", "1", "__import__('time').sleep(600)"])


class Scene:
    """A worker and a clock. `said`: what it told."""

    def __init__(self, module: str, arguments: list[str]) -> None:
        self.said: list[str] = []
        self.worker = Worker(module, arguments, self.said.append)
        self.now = 1000.0

    def run(self) -> None:
        """Lets one start and end."""
        self.worker.look(self.now)
        assert self.worker.is_running
        deadline = time.monotonic() + 20
        while self.worker.is_running and time.monotonic() < deadline:
            self.worker.look(self.now)
        assert not self.worker.is_running


@pytest.fixture
def sleeping() -> Iterator[Scene]:
    scene = Scene(*SLEEPS)
    yield scene
    scene.worker.end()


def test_one_at_a_time(sleeping: Scene) -> None:
    """What is wanted meanwhile is done by the next; `end` leaves nobody behind, at once or after a while."""
    worker = sleeping.worker
    worker.look(0.0)
    assert not worker.is_running, "nothing is wanted"
    worker.wanted = True
    worker.look(0.0)
    process = worker._process
    assert process is not None
    worker.wanted = True
    worker.look(1e9)
    assert worker._process is process
    assert worker.wanted
    worker.end(20.0)
    assert not psutil.pid_exists(process.pid)
    worker.end()
    assert not worker.is_running


def test_after_success_there_is_a_short_pause() -> None:
    """In which more work may come together; and nothing is started that nobody wants."""
    scene = Scene("this", [])
    scene.worker.wanted = True
    scene.run()
    assert not scene.worker.wanted
    assert scene.said == []
    scene.worker.wanted = True
    scene.worker.look(scene.now)
    assert not scene.worker.is_running
    scene.now += workers._PAUSE_SECONDS
    scene.run()


def test_after_trouble_it_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its work is still there. Each time after twice as long, up to an hour; a success begins anew."""
    monkeypatch.setattr(workers, "_TROUBLE_SECONDS_MAX", 100.0)
    scene = Scene("daemon.no_such_worker", [])
    scene.worker.wanted = True
    for pause in (workers._TROUBLE_SECONDS, 100.0):
        scene.run()
        assert scene.worker.wanted
        assert f"again in {pause:g} s" in scene.said[-1] or pause == 100.0
        scene.worker.look(scene.now + pause - 1)
        assert not scene.worker.is_running
        scene.now += pause
    scene.worker._module = "this"
    scene.run()
    assert not scene.worker.wanted
    assert scene.worker._trouble_seconds == workers._TROUBLE_SECONDS


def test_trouble_after_a_long_while_begins_anew(sleeping: Scene) -> None:
    """What was well for an hour and is killed then is started again soon, however often others were."""
    worker = sleeping.worker
    worker.wanted = True
    worker.look(sleeping.now)
    worker._trouble_seconds = 500.0
    assert worker._process is not None
    worker._process.kill()
    worker._process.wait()
    worker.look(sleeping.now + workers._WELL_SECONDS)
    assert worker.failed
    assert f"again in {workers._TROUBLE_SECONDS:g} s" in sleeping.said[-1]


def test_one_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many processes: told, and tried again."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(workers.subprocess, "Popen", refuse)
    scene = Scene("this", [])
    scene.worker.wanted = True
    scene.worker.look(scene.now)
    assert scene.worker.wanted
    assert not scene.worker.is_running
    assert "cannot be started" in scene.said[0]


def test_a_keeper_is_wanted_while_a_job_waits() -> None:
    """It is started for the first one, tried again soon after it was killed, and the job says so in its status."""
    with temporary_store() as store:
        said: list[str] = []
        keeper = Keeper(store.path, said.append)
        keeper._module, keeper._arguments = SLEEPS
        keeper.look(0.0)
        assert not keeper.is_running
        put_job(store, "files", {})
        keeper.trouble = "no room"
        keeper.look(1.0)
        assert keeper.status() == {"running": True, "waiting": 1, "trouble": "no room"}
        process = keeper._process
        assert process is not None
        process.kill()
        process.wait()
        keeper.look(2.0)
        assert "again in 5 s" in said[0]
        keeper.look(6.9)
        assert not keeper.is_running
        keeper.look(7.0)
        assert keeper.is_running
        keeper.end()
        end_job(jobs(store.path)[0])
        assert keeper.status() == {"running": False, "waiting": 0, "trouble": ""}


def test_a_keeper_lists_jobs_only_when_there_may_be_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of other machines cost one look each time that the directory changed."""
    looks: list[str] = []
    monkeypatch.setattr(workers, "jobs", lambda store: looks.append(store) or [])
    with temporary_store() as store:
        keeper = Keeper(store.path, print)
        keeper.look(0.0)
        assert looks == []
        put_job(store, "files", {})
        keeper.look(1.0)
        keeper.look(2.0)
        assert len(looks) == 2, "its time may not tell of another change"
        os.utime(keeping_path(store.path), ns=(7, 7))
        for now in range(3, 6):
            keeper.look(float(now))
        assert len(looks) == 3
        put_job(store, "files", {})
        keeper.look(6.0)
        assert len(looks) == 4


def test_a_daemon_stays_for_what_is_carried() -> None:
    """While something moves; a target that takes nothing for long keeps no daemon, nor does a carrier without jobs."""
    with temporary_store() as store:
        said: list[str] = []
        carrier = Carrier(store.path, said.append)
        carrier._module, carrier._arguments = SLEEPS
        carrier.look(1.0)
        assert not carrier.is_running
        assert not carrier.holds(1.0)
        _syncing.put_job(store, "a41f", "jsonl:/data/out", 10.0)
        carrier.look(2.0)
        try:
            assert carrier.is_running
            assert carrier.holds(2.0), "it has only begun"
            assert carrier.moves(2.0 + workers._MOVES_SECONDS - 1)
            assert not carrier.moves(2.0 + workers._MOVES_SECONDS)
            assert carrier.holds(2.0 + workers._AWAY_SECONDS - 1)
            assert not carrier.holds(2.0 + workers._AWAY_SECONDS)
            carrier.note(700.0, {"waiting": 1, "quiet_seconds": 20.0, "trouble": "no route"})
            assert carrier.holds(680.0 + workers._AWAY_SECONDS - 1)
            assert not carrier.holds(680.0 + workers._AWAY_SECONDS)
            carrier.note(701.0, {"waiting": 1, "quiet_seconds": 21.0, "trouble": "no route"})
            assert said == ["carrying: no route"]
            assert carrier.status()["trouble"] == "no route"
            carrier.note(702.0, {"waiting": 0, "quiet_seconds": 0.0})
            assert not carrier.holds(702.0)
            carrier.note(703.0, {"waiting": "many", "quiet_seconds": None})
            assert not carrier.holds(703.0)
        finally:
            carrier.end()
        assert carrier.status() == {"pid": None, "waiting": 0, "trouble": ""}


def test_no_carrier_for_jobs_of_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are left to those."""
    with temporary_store() as store:
        _syncing.put_job(store, "a41f", "jsonl:/data/out", 10.0)
        monkeypatch.setattr("sdk._syncing.machine_id", lambda: "another")
        carrier = Carrier(store.path, lambda text: None)
        carrier.look(2.0)
        assert not carrier.is_running
