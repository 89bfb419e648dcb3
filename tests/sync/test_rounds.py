"""daemon.sync.rounds: when a pass is due, what its outcome changes, and that one target holds up no other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.sync import outcome, rounds
from daemon.sync.crew import Died, Moved, Task
from daemon.sync.outcome import Outcome
from daemon.sync.rounds import (
    BACK_OFF_SECONDS,
    BACK_OFF_SECONDS_MAX,
    BEGINNING_SECONDS,
    FAILURE_SECONDS,
    HANG_SECONDS,
    LINGER_SECONDS,
    ORPHAN_SECONDS,
    QUIET_SECONDS,
    WORKERS_MAX,
    Entry,
    Rounds,
)
from sdk._syncing import Told, jobs, put_job, read_told, tell
from sdk.ids import run_directory
from sdk.location import StoreIdentity
from sdk.segment.naming import run_path
from tests.serving import temporary_store

TARGET = "jsonl:/data/out"
OTHER = "wandb:team"
SECONDS = 10.0


class Crew:
    """Workers that do what a test says.

    Attributes:
        handed: Every task that came.
        heard: What `hear` gives next.
    """

    def __init__(self) -> None:
        self.handed: list[Task] = []
        self.heard: list[tuple[Task, Any]] = []
        self.busy: list[Task] = []
        self.ends = 0
        self.refuses = False

    def hand(self, task: Task) -> None:
        if self.refuses:
            raise OSError(11, "Resource temporarily unavailable")
        self.handed.append(task)
        self.busy.append(task)

    def hear(self, seconds: float) -> list[tuple[Task, Any]]:
        heard, self.heard = self.heard, []
        return heard

    def end(self, seconds: float) -> list[tuple[Task, Any]]:
        self.ends += 1
        return self.hear(0.0)


class Scene:
    """Rounds over a store with a clock of its own; each target gets the next `Crew` in order of its first job."""

    def __init__(self, store: StoreIdentity, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.now = 1000.0
        self.crews: list[Crew] = []
        monkeypatch.setattr(rounds.clock, "monotonic", lambda: self.now)
        monkeypatch.setattr(rounds, "_RANDOM", type("Even", (), {"uniform": lambda self, low, high: high})())
        self.rounds = Rounds(store.path, make_crew=self._make)

    def _make(self, store: str) -> Any:
        self.crews.append(Crew())
        return self.crews[-1]

    @property
    def crew(self) -> Crew:
        return self.crews[-1]

    def leave(self, run: str = "a41f", target: str = TARGET) -> None:
        """A trainer leaves a job, and its run has a directory."""
        os.makedirs(run_path(self.store.path, run), exist_ok=True)
        self.write(run, "first")
        put_job(self.store, run, target, SECONDS)

    def write(self, run: str = "a41f", name: str = "more") -> None:
        Path(run_path(self.store.path, run), name).touch()

    def turn(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.rounds.turn()

    def answer(self, state: str, crew: Crew | None = None, **facts: Any) -> None:
        """The worker of a crew tells what became of its task."""
        crew = crew or self.crew
        (task,) = crew.busy
        crew.busy = []
        crew.heard.append((task, Outcome(task.run, task.target, state, **facts)))
        self.turn()

    @property
    def entry(self) -> Entry:
        (entry,) = self.rounds.entries.values()
        return entry

    def told(self, run: str = "a41f") -> Told:
        (job,) = (job for job in jobs(self.store.path) if (read_told(job) or Told("", "")).run == run)
        found = read_told(job)
        assert found is not None
        return found


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    with temporary_store() as store:
        yield Scene(store, monkeypatch)


def test_the_first_pass_begins_at_once(scene: Scene) -> None:
    """As soon as the run has a directory; before its end somebody can see that it is under way."""
    put_job(scene.store, "a41f", TARGET, SECONDS)
    scene.turn()
    assert scene.crews == []
    scene.leave()
    scene.turn()
    assert scene.crew.handed == [Task("a41f", TARGET)._replace(label="a41f")]
    assert scene.told().state == "carrying"
    scene.turn(5.0)
    assert len(scene.crew.handed) == 1, "one at a time"


def test_a_run_that_goes_on_is_carried_when_something_is_new(scene: Scene) -> None:
    """At the earliest after the pause that the run asked for; after a silence at once."""
    scene.leave()
    scene.turn()
    scene.answer(outcome.LIVE, points=5)
    assert scene.told()._replace(boot="", at_ns=0) == Told("a41f", TARGET, "live", 1000.0, points=5)
    scene.turn(SECONDS)
    assert len(scene.crew.handed) == 1, "nothing is new"
    scene.write()
    scene.turn(rounds._LOOK_SECONDS)
    assert len(scene.crew.handed) == 2
    scene.write(name="still more")
    scene.answer(outcome.LIVE, points=2)
    scene.turn(SECONDS - 1)
    assert len(scene.crew.handed) == 2
    scene.turn(1.0)
    assert len(scene.crew.handed) == 3
    assert scene.told().points == 7


def test_a_target_that_makes_a_file_of_each_pass_gets_fewer(scene: Scene) -> None:
    """What the target asks for counts where it is more than what the run asked for."""
    scene.leave(target="parquet:s3://bucket/prefix")
    scene.turn()
    scene.write()
    scene.answer(outcome.LIVE, points=5)
    scene.turn(29.0)
    assert len(scene.crew.handed) == 1
    scene.turn(1.0)
    assert len(scene.crew.handed) == 2


def test_what_comes_after_the_end_comes_soon(scene: Scene) -> None:
    """What was observed of a training is sealed some seconds after it: the pause is for those that go on."""
    scene.leave()
    scene.turn()
    scene.answer(outcome.LIVE, has_ended=True, trouble=("3 records are missing", "more"))
    assert scene.told().has_ended
    scene.write()
    scene.turn(rounds._LOOK_SECONDS)
    assert len(scene.crew.handed) == 2
    job = jobs(scene.store.path)[0]
    scene.answer(outcome.DELIVERED, has_ended=True)
    found = read_told(job)
    assert found is not None
    assert found.trouble == "3 records are missing", "it is told once, and is still so"


def test_a_quiet_run_is_looked_at_now_and_then(scene: Scene) -> None:
    """Its trainer may be gone without a trace in its directory."""
    scene.leave()
    scene.turn()
    scene.answer(outcome.LIVE)
    scene.turn(QUIET_SECONDS - 1)
    assert len(scene.crew.handed) == 1
    scene.turn(1.0)
    assert len(scene.crew.handed) == 2


@pytest.mark.parametrize("state", [outcome.DELIVERED, outcome.UP_TO_DATE])
def test_a_run_that_is_over_and_delivered_is_done(scene: Scene, state: str) -> None:
    """The job goes, and what was told of it stays; its worker waits a while for the next run."""
    scene.leave()
    scene.turn()
    job = jobs(scene.store.path)[0]
    scene.answer(state, points=3, lost={"nan": 1})
    assert jobs(scene.store.path) == []
    found = read_told(job)
    assert found is not None
    assert (found.is_over, found.points, found.lost) == (True, 3, {"nan": 1})
    scene.turn()
    assert scene.rounds.entries == {}
    scene.turn(LINGER_SECONDS - 1)
    assert scene.crew.ends == 0
    scene.turn(1.0)
    assert scene.crew.ends == 1


def test_a_run_that_is_resumed_is_not_over(scene: Scene) -> None:
    """Its new process has left a job and nothing is stored of it yet; what is stored says that the run has ended, for some seconds."""
    scene.leave()
    put_job(scene.store, "a41f", TARGET, SECONDS, is_beginning=True)
    scene.turn()
    scene.answer(outcome.UP_TO_DATE, has_ended=True)
    assert len(jobs(scene.store.path)) == 1
    assert not scene.told().is_over
    scene.write()
    scene.turn(1.0)
    scene.answer(outcome.LIVE, points=3)
    assert len(scene.crew.handed) == 2, "it was looked at when something came"
    scene.write(name="even more")
    scene.turn(SECONDS)
    scene.answer(outcome.UP_TO_DATE, has_ended=True)
    scene.turn(BEGINNING_SECONDS)
    assert len(jobs(scene.store.path)) == 1
    scene.answer(outcome.UP_TO_DATE, has_ended=True)
    assert jobs(scene.store.path) == [], "nobody came"


def test_a_pass_that_began_too_early_is_followed_by_another(scene: Scene) -> None:
    """It was under way when the job was old enough to be believed: nothing changes any more, and the end is seen all the same."""
    scene.leave()
    put_job(scene.store, "a41f", TARGET, SECONDS, is_beginning=True)
    scene.turn()
    scene.now += BEGINNING_SECONDS
    scene.answer(outcome.DELIVERED, has_ended=True)
    assert len(jobs(scene.store.path)) == 1
    scene.turn(1.0)
    assert len(scene.crew.handed) == 2
    scene.answer(outcome.UP_TO_DATE, has_ended=True)
    assert jobs(scene.store.path) == []


def test_a_run_that_is_made_again_keeps_its_job(scene: Scene) -> None:
    """What was told of the one of its id that was removed is not of this one, which has no directory yet."""
    scene.leave()
    scene.turn()
    scene.answer(outcome.DELIVERED)
    os.rename(run_path(scene.store.path, "a41f"), run_path(scene.store.path, "trash"))
    put_job(scene.store, "a41f", TARGET, SECONDS, is_beginning=True)
    scene.turn()
    assert len(jobs(scene.store.path)) == 1


def test_a_job_that_is_left_again_is_carried_at_once(scene: Scene) -> None:
    """Between two passes and during one: a pass that began before has not seen everything."""
    scene.leave()
    scene.turn()
    scene.leave()
    scene.turn()
    scene.answer(outcome.DELIVERED)
    assert len(jobs(scene.store.path)) == 1
    scene.turn()
    assert len(scene.crew.handed) == 2
    scene.answer(outcome.LIVE)
    scene.leave()
    scene.turn(0.1)
    assert len(scene.crew.handed) == 3
    scene.answer(outcome.DELIVERED)
    assert jobs(scene.store.path) == []


def test_a_target_that_refuses_is_left_alone_longer_each_time(scene: Scene) -> None:
    """With all its runs; up to five minutes, or as long as it says. Then it is well again."""
    scene.leave()
    scene.leave("b52a")
    scene.turn()
    scene.answer(outcome.DEFERRED, reason="429")
    scene.turn()
    assert len(scene.crew.handed) == 2, "the other one was just left, and is tried once"
    scene.answer(outcome.DEFERRED, reason="429", behind=9)
    pause = 2 * BACK_OFF_SECONDS
    while pause < BACK_OFF_SECONDS_MAX:
        before = len(scene.crew.handed)
        scene.turn(pause - 0.1)
        assert len(scene.crew.handed) == before
        scene.turn(0.1)
        assert len(scene.crew.handed) == before + 1
        pause = min(pause * 2, BACK_OFF_SECONDS_MAX)
        scene.answer(outcome.DEFERRED, reason="503", behind=9)
    assert scene.told().reason == "503"
    assert scene.told().behind == 9
    assert scene.told().again_at == scene.now + BACK_OFF_SECONDS_MAX
    assert scene.rounds.trouble == "503"
    scene.turn(BACK_OFF_SECONDS_MAX)
    scene.answer(outcome.DEFERRED, reason="503", after=1000.0)
    scene.turn(999.0)
    assert scene.crew.busy == []
    scene.turn(1.0)
    for _ in range(2):
        scene.answer(outcome.DELIVERED)
    assert jobs(scene.store.path) == []
    assert scene.rounds.trouble == ""


def test_who_left_a_job_again_does_not_wait_for_the_back_off(scene: Scene) -> None:
    """Somebody waits in `finish()`."""
    scene.leave()
    scene.turn()
    scene.answer(outcome.DEFERRED, reason="away", after=100.0)
    scene.leave()
    scene.turn()
    assert len(scene.crew.handed) == 2


def test_a_failure_costs_its_run_alone(scene: Scene) -> None:
    """Another one of the same target goes on; the failed one is tried again later, and its job stays."""
    scene.leave()
    scene.turn()
    scene.answer(outcome.FAILED, reason="a value of 3 GB")
    assert scene.entry.is_hopeless
    scene.leave("b52a")
    scene.turn()
    assert [task.run for task in scene.crew.handed] == ["a41f", "b52a"]
    scene.answer(outcome.DELIVERED)
    scene.turn(FAILURE_SECONDS)
    scene.answer(outcome.FAILED, reason="a value of 3 GB")
    scene.turn(FAILURE_SECONDS)
    assert len(scene.crew.handed) == 3
    scene.turn(FAILURE_SECONDS)
    assert len(scene.crew.handed) == 4


def test_one_target_holds_up_no_other(scene: Scene) -> None:
    """While a pass to one hangs, the run comes to the other; what hangs too long is killed and tried again."""
    scene.leave()
    scene.leave(target=OTHER)
    scene.turn()
    hanging, well = scene.crews
    assert len(hanging.handed) == len(well.handed) == 1
    for _ in range(3):
        scene.answer(outcome.LIVE, well)
        scene.write(name=f"more {scene.now}")
        scene.turn(SECONDS)
    assert len(well.handed) == 4
    hanging.heard.append((hanging.busy[0], Moved(1, 1, 0.5)))
    scene.turn(HANG_SECONDS - 1)
    assert hanging.ends == 0
    hanging.heard.append((hanging.busy[0], Moved(1, 1, 0.5)))
    scene.turn()
    scene.turn(HANG_SECONDS - 1)
    assert hanging.ends == 0, "it has moved"
    scene.turn(1.0)
    assert hanging.ends == 1
    assert f"nothing moved for {HANG_SECONDS:g} s" in scene.rounds.trouble


def test_there_are_not_too_many_workers(scene: Scene) -> None:
    """Runs may each have a target of their own: the worker that was used longest ago makes room, if it is not at work."""
    for number in range(WORKERS_MAX + 2):
        scene.leave(f"run{number}", f"jsonl:/data/{number}")
    scene.turn()
    scene.turn()
    assert len(scene.crews) == WORKERS_MAX
    scene.answer(outcome.LIVE, scene.crews[3])
    assert len(scene.crews) == WORKERS_MAX + 1
    assert scene.crews[3].ends == 1
    scene.answer(outcome.LIVE, scene.crews[5])
    assert len({task.target for crew in scene.crews for task in crew.handed}) == WORKERS_MAX + 2
    ended = [crew for crew in scene.crews if crew.ends]
    scene.rounds.end()
    assert sum(crew.ends for crew in scene.crews) == WORKERS_MAX + 2
    assert len(ended) == 2


def test_who_was_killed_by_us_is_no_trouble(scene: Scene) -> None:
    """At our end: what it carried is carried by the next."""
    scene.leave()
    scene.turn()
    scene.crew.heard.append((scene.crew.busy[0], Died("killed by signal 9")))
    scene.rounds.end()
    assert scene.told().reason == ""


def test_a_worker_that_dies_costs_no_job(scene: Scene) -> None:
    """Nor does one that cannot be started, or that was told to stop."""
    scene.leave()
    scene.turn()
    crew = scene.crew
    crew.heard.append((crew.busy.pop(), Died("killed by signal 9")))
    scene.turn()
    assert scene.told().reason == "killed by signal 9"
    assert not scene.entry.is_hopeless
    scene.turn(BACK_OFF_SECONDS)
    scene.answer(outcome.STOPPED)
    scene.turn(rounds._LOOK_SECONDS)
    assert len(crew.handed) == 3, "nothing has changed meanwhile, and nothing of it was carried"
    scene.answer(outcome.BUSY, after=1.0)
    scene.turn(0.9)
    assert len(crew.handed) == 3
    crew.refuses = True
    scene.turn(0.1)
    assert "no process can be started" in scene.told().reason
    crew.refuses = False
    scene.turn(BACK_OFF_SECONDS)
    scene.answer(outcome.DELIVERED)
    assert jobs(scene.store.path) == []


def test_a_job_that_somebody_else_has_done_is_forgotten(scene: Scene) -> None:
    """Also while we were busy with it."""
    scene.leave()
    scene.leave("b52a")
    scene.turn()
    for job in jobs(scene.store.path):
        os.unlink(job.path)
    scene.turn()
    assert [entry.order.run for entry in scene.rounds.entries.values()] == [scene.crew.busy[0].label]
    scene.answer(outcome.BUSY)
    scene.turn()
    assert scene.rounds.entries == {}


def test_what_is_no_job_is_set_aside(scene: Scene) -> None:
    """It would keep the carrier for ever. The others are done."""
    for number in range(4):
        scene.leave(f"run{number}")
    broken, linked, made, well = (Path(job.path) for job in jobs(scene.store.path))
    broken.write_text("{", encoding="utf-8")
    for path in (linked, made):
        path.unlink()
    linked.symlink_to("/etc/hostname")
    made.mkdir()
    scene.turn()
    assert [entry.job.path for entry in scene.rounds.entries.values()] == [str(well)]
    assert [job.path for job in jobs(scene.store.path)] == [str(well)]


def test_a_job_for_a_run_that_was_removed_ends(scene: Scene) -> None:
    """Of one that never had a directory after a day: one that begins has none yet."""
    scene.leave()
    scene.turn()
    scene.answer(outcome.LIVE)
    os.rename(run_path(scene.store.path, "a41f"), run_path(scene.store.path, "trash"))
    scene.turn(SECONDS)
    assert jobs(scene.store.path) == []
    scene.turn()
    put_job(scene.store, "gone", TARGET, SECONDS)
    path = jobs(scene.store.path)[0].path
    scene.turn()
    assert len(scene.rounds.entries) == 1
    old = os.stat(path).st_mtime - ORPHAN_SECONDS - 10
    os.utime(path, (old, old))
    scene.turn()
    scene.turn()
    assert jobs(scene.store.path) == []


def test_jobs_of_other_machines_are_left_to_them(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that they name is one there."""
    scene.leave()
    monkeypatch.setattr("sdk._syncing.machine_id", lambda: "another")
    scene.turn()
    assert scene.rounds.entries == {}


def test_odd_ids_are_handed_as_directories(scene: Scene) -> None:
    """A worker is given the name of the run's directory."""
    scene.leave("Ünï A")
    scene.turn()
    assert scene.crew.handed[0].run == run_directory("Ünï A")


def test_it_is_no_burden(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand jobs are looked at less often than one."""
    assert scene.rounds.pause == rounds.TURN_SECONDS
    looks: list[str] = []
    entries: Callable[[str], Any] = rounds.DISK.entries
    monkeypatch.setattr(type(rounds.DISK), "entries", lambda self, path: looks.append(path) or entries(path))
    for number in range(300):
        scene.leave(f"run{number}")
    scene.turn()
    for entry in scene.rounds.entries.values():
        entry.is_urgent = False
        entry.due = 0.0
        entry.names = entries(run_path(scene.store.path, entry.order.run))
        entry.passed = scene.now
    scene.answer(outcome.LIVE)
    looks.clear()
    for _ in range(20):
        scene.turn(scene.rounds.pause)
    assert len(looks) < 300 * 20 * scene.rounds.pause / (300 * rounds._ENTRY_LOOK_SECONDS) + 300 + 20


def test_what_was_told_by_an_earlier_carrier_counts_on(scene: Scene) -> None:
    """Points are of all passes."""
    scene.leave()
    tell(jobs(scene.store.path)[0], Told("a41f", TARGET, "live", points=4, at_ns=1))
    scene.turn()
    scene.answer(outcome.LIVE, points=3)
    assert scene.told().points == 7
