"""daemon.observer: who is met, what is written of them and when it ends; then with a real daemon, killed and killed again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import sdk
from daemon.observe.gpu import Gpus
from daemon.observe.writing import SEGMENT_BYTES, SystemStream
from daemon.observer import LOOK_SECONDS, Observer
from daemon.store.recovery import Judge, mend_runs
from daemon.workers import Observer as Worker
from sdk import clock, platform
from sdk.budget import Budget
from sdk.files import DISK
from sdk.files.failing import FailingFiles
from sdk.location import StoreIdentity, read_store
from sdk.reader.run import Run
from sdk.reader.verify import verify_run
from sdk.segment.naming import run_path
from sdk.transport import request
from tests.builders import RunBuilder, make_store
from tests.end_to_end.world import Trainer, kill_daemon, until
from tests.serving import temporary_store

NOW = 1000.0


class Scene:
    """A store, an observer of it, and a daemon that says what a test wants.

    Attributes:
        living: (run, stream, ring, pid) of who lives. `new`: (run, stream) of who began since.
        told: What the observer said with its questions.
        code: What a description of the code gives; an exception is raised.
    """

    def __init__(self, tmp_path: Path, files: Any = DISK) -> None:
        self.store = read_store(make_store(tmp_path))
        self.living: list[list[Any]] = []
        self.new: list[list[Any]] = []
        self.told: list[Mapping[str, Any]] = []
        self.asked_code: list[tuple[Mapping[str, Any], str]] = []
        self.code: Any = {}
        self.files = files
        self.now = NOW
        self.restart()

    def restart(self) -> None:
        """An observer that knows nothing of what was."""
        gpus = Gpus(module="no_such_module_of_nvidia")
        self.observer = Observer(self.files, self.store, self.ask, self.describe, gpus)

    def ask(self, told: Mapping[str, Any]) -> Mapping[str, Any]:
        self.told.append(told)
        new, self.new = self.new, []
        return {"mark": len(self.told), "living": self.living, "new": new}

    def describe(self, context: Mapping[str, Any], directory: str) -> Mapping[str, Any]:
        self.asked_code.append((context, directory))
        if isinstance(self.code, Exception):
            raise self.code
        found: Mapping[str, Any] = self.code
        return found

    def begin(self, run: str = "a41f", kind: str = "main", **about: Any) -> RunBuilder:
        """A run that this very process logs to."""
        about = {"pid": os.getpid(), "started_ns": clock.wall_ns(), "system_metrics_seconds": 10.0, **about}
        built = RunBuilder(self.store.path, run)
        stream = built.stream(kind, **about)
        stream.log({"loss": 0.5})
        stream.meta({"context": {"command": ["train.py"]}})
        built.flush()
        self.living.append([run, stream.hex, "", about["pid"]])
        return built

    def pass_time(self, seconds: float = LOOK_SECONDS) -> None:
        """Lets the observer do all that is due until then."""
        until_ = self.now + seconds
        while (due := self.observer.step(self.now)) <= until_:
            self.now = max(due, self.now)
        self.now = until_

    def run(self, name: str = "a41f") -> Run:
        return Run(run_path(self.store.path, name))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    found = Scene(tmp_path)
    yield found
    found.observer.close()


def test_a_run_is_sampled_while_it_lives(scene: Scene) -> None:
    """From the first look on, once in a period; the training's own rows, keys and state do not change."""
    scene.begin()
    scene.pass_time(60)
    run = scene.run()
    assert 6 <= len(run.series("system/processes")) <= 8
    assert (run.keys(), len(list(run.rows())), run.last_step) == (["loss"], 1, 0)
    assert run.context["command"] == ["train.py"]
    assert run.context["cpu_threads"] == os.cpu_count()
    assert run.streams[-1].kind == "system"
    assert run.streams[-1].state == "running"


def test_it_ends_with_the_run(scene: Scene) -> None:
    """The stream is closed with what is left of it, and its segment sealed, of which the daemon hears."""
    scene.begin()
    scene.pass_time(21)
    scene.living.clear()
    scene.pass_time()
    about = scene.run()._facts.streams[int(scene.run().streams[-1].id, 16)]
    assert about.about["summary"]["samples"] == 3
    assert scene.run().streams[-1].state == "finished"
    assert scene.observer.runs == {}
    scene.pass_time()
    assert (scene.told[-1]["sealed"], scene.told[-1]["runs"]) == (1, [])
    assert not verify_run(DISK, run_path(scene.store.path, "a41f")).findings


def test_a_run_that_was_over_before_we_came_gets_its_context(scene: Scene) -> None:
    """A script of 0.3 s is met by the list of those that began; its code is described, nothing is sampled."""
    scene.begin(pid=2**22 + 1)
    scene.new = [scene.living.pop()[:2]]
    scene.code = {"git_commit": "abc"}
    scene.pass_time()
    until(lambda: scene.observer.step(scene.now) and not scene.observer.runs)
    run = scene.run()
    assert run.context["git_commit"] == "abc"
    assert run.keys(kind="system") == []
    assert scene.asked_code == [({"command": ["train.py"]}, os.path.join(run.directory, "files"))]


def test_code_is_described_once_for_each_process(scene: Scene) -> None:
    """Not again by an observer that goes on, when the code may be another one; but again for the process that resumes."""
    scene.code = {"git": {"commit": "abc"}}
    built = scene.begin()
    scene.pass_time()
    until(lambda: scene.observer.step(scene.now) and "git" in scene.run().context)
    scene.observer.close()
    scene.restart()
    scene.pass_time(5)
    assert len(scene.asked_code) == 1
    second = built.stream(pid=os.getpid(), started_ns=clock.wall_ns(), attempt=2)
    scene.living.append(["a41f", second.hex, "", os.getpid()])
    built.flush()
    scene.pass_time(5)
    assert len(scene.asked_code) == 2


def test_what_the_trainer_says_of_itself_is_waited_for(scene: Scene) -> None:
    """The description of the code is made of it; it may come a moment after the stream's first record, or never."""
    built = RunBuilder(scene.store.path)
    stream = built.stream(pid=os.getpid(), started_ns=clock.wall_ns())
    built.flush()
    scene.living.append(["a41f", stream.hex, "", os.getpid()])
    scene.pass_time(1)
    assert scene.run().keys(kind="system")
    stream.meta({"context": {"command": ["train.py"]}})
    built.flush()
    scene.pass_time(1)
    assert scene.asked_code[0][0]["command"] == ["train.py"]


def test_trouble_with_the_code_is_said_and_ends_nothing(scene: Scene) -> None:
    """It stands in the run's context."""
    scene.code = ValueError("no such commit")
    scene.begin()
    scene.pass_time()
    until(lambda: scene.observer.step(scene.now) and "code_note" in scene.run().context)
    assert scene.run().context["code_note"] == "ValueError: no such commit"


def test_facts_that_are_still_on_their_way_are_waited_for(scene: Scene) -> None:
    """A stream of which nothing is stored yet is met at a later look, and looked for sooner than else."""
    built = RunBuilder(scene.store.path)
    stream = built.stream(pid=os.getpid(), started_ns=clock.wall_ns())
    scene.living.append(["a41f", stream.hex, "", os.getpid()])
    scene.pass_time(1)
    assert scene.run().streams == []
    assert len(scene.told) >= 2
    built.flush()
    scene.pass_time(1)
    assert scene.run().keys(kind="system")


def test_a_pid_that_another_process_has_is_not_taken(scene: Scene) -> None:
    """A process that was started after the stream began is somebody else."""
    scene.begin(started_ns=10**18)
    scene.pass_time(15)
    assert scene.run().keys(kind="system") == []
    assert scene.run().context["cpu_threads"]


def test_one_run_says_no(scene: Scene) -> None:
    """With 0 seconds nothing is sampled; what the machine is is told all the same."""
    scene.begin(system_metrics_seconds=0)
    scene.begin("b52e", system_metrics_seconds=1.0)
    scene.pass_time(10)
    assert scene.run().keys(kind="system") == []
    assert scene.run().context["cpu_threads"]
    assert len(scene.run("b52e").series("system/threads")) >= 10


def test_ranks_of_one_host_are_one_stream(scene: Scene) -> None:
    """All processes of a run on a host are sampled together; the stream has the lowest rank among them."""
    scene.begin(rank=3)
    built = RunBuilder(scene.store.path)
    for rank in (2, 5):
        stream = built.stream(pid=os.getpid(), started_ns=clock.wall_ns(), rank=rank)
        scene.living.append(["a41f", stream.hex, "", os.getpid()])
    built.flush()
    scene.pass_time(5)
    system = [stream for stream in scene.run().streams if stream.kind == "system"]
    assert [stream.rank for stream in system] == [2]
    assert "cpu_threads" not in scene.run().context, "rank 0, elsewhere, tells what the run's machine is"
    assert len(scene.run().series("system/threads", rank=2)) == 1


def test_console_and_attached_streams_alone_are_nothing_to_observe(scene: Scene) -> None:
    """A run is observed where its training runs."""
    scene.begin(kind="attach")
    scene.begin("b52e", kind="console")
    scene.pass_time(15)
    assert [s.kind for s in scene.run().streams + scene.run("b52e").streams] == ["attach", "console"]


def test_another_observer_goes_on(scene: Scene) -> None:
    """After a restart the series of a host go on in one lane, with the next step."""
    scene.begin()
    scene.pass_time(25)
    scene.observer.close()
    scene.restart()
    scene.pass_time(25)
    scene.observer.close()
    run = scene.run()
    assert len(run._side_lanes("system")) == 1
    found = run.series("system/threads")
    assert found.step.tolist() == list(range(len(found)))
    assert len(found) >= 6
    assert run.gaps == []


def test_what_a_killed_observer_left_is_sealed(scene: Scene) -> None:
    """By the daemon, once its pid is gone; until then it is left alone."""
    scene.begin()
    scene.pass_time(15)
    judge = Judge(lambda writer: False, "lock", lambda stream: False)
    assert [m for m in mend_runs(DISK, scene.store.path, ["a41f", "gone"], judge) if m is not None] == []
    origin = {**platform.identity(), "pid": 2**22 + 1}
    stream = SystemStream(DISK, scene.store, "a41f")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform, "identity", lambda: origin)
        stream.begin({})
    stream.abandon()
    mended = [m for m in mend_runs(DISK, scene.store.path, ["a41f"], judge) if m is not None]
    assert [m.error for m in mended] == [None]


def test_a_full_disk_skips_samples(tmp_path: Path) -> None:
    """They are counted and said once; nothing half written is read, and it goes on when there is room."""
    disk = FailingFiles()
    scene = Scene(tmp_path, disk)
    scene.begin()
    scene.pass_time(15)
    disk.refuse("append")
    scene.pass_time(20)
    assert scene.observer.skipped == 2
    assert "a41f" in scene.observer.error
    disk.allow()
    scene.pass_time(20)
    scene.observer.close()
    found = scene.run().series("system/threads")
    assert len(found) == scene.observer.samples >= 3
    assert scene.run().gaps == []
    assert scene.run().damage == []


def test_a_disk_that_is_full_from_the_start(tmp_path: Path) -> None:
    """The stream begins when it can."""
    disk = FailingFiles()
    scene = Scene(tmp_path, disk)
    scene.begin()
    disk.refuse("create")
    scene.pass_time(10)
    assert [s.kind for s in scene.run().streams] == ["main"]
    disk.allow()
    scene.pass_time(10)
    assert scene.run().keys(kind="system")
    scene.observer.close()


def test_a_budget_counts_for_samples_too(scene: Scene) -> None:
    """The last bytes of a disk are not for them; nothing is begun, and it is said why."""
    scene.begin()
    scene.observer._budget.budget = Budget(free_bytes_min=2**62)
    scene.pass_time(15)
    assert [s.kind for s in scene.run().streams] == ["main"]
    assert "free_bytes_min" in scene.observer.error


def test_a_file_that_an_fsync_may_have_lost_is_not_written_to_again(scene: Scene) -> None:
    """What follows goes into another one; the first is marked."""
    disk = FailingFiles()
    scene.begin()
    stream = SystemStream(disk, scene.store, "a41f")
    stream.begin({})
    disk.refuse("sync")
    with pytest.raises(OSError):
        stream.force(1e12)
    disk.allow()
    stream.add({"system/cpu": 1.0})
    stream.roll()
    names = [name for name, _, _ in DISK.entries(stream.directory)]
    assert sum(name.endswith(".suspect") for name in names) == 1
    assert len(scene.run().series("system/cpu")) == 1


def test_a_removed_run_stays_removed(scene: Scene) -> None:
    """Its directory is not made again, and nothing is said of it any more."""
    scene.begin()
    scene.pass_time(15)
    shutil.rmtree(run_path(scene.store.path, "a41f"))
    scene.living.clear()
    scene.pass_time(15)
    assert scene.observer.runs == {}
    assert not os.path.exists(run_path(scene.store.path, "a41f"))
    with pytest.raises(OSError):
        SystemStream(DISK, scene.store, "a41f").begin({})


def test_segments_roll(scene: Scene) -> None:
    """So that a month of samples becomes columns piece by piece."""
    scene.begin()
    stream = SystemStream(DISK, scene.store, "a41f")
    stream.begin({})
    row = {f"system/gpu.{number}.{'x' * 2000}": os.urandom(4)[0] / 7 for number in range(50)}
    for _ in range(2 + 4 * SEGMENT_BYTES // 100_000):
        stream.add({f"{key}{os.urandom(900).hex()}": value for key, value in row.items()})
    stream.roll()
    assert stream._number >= 2
    assert not verify_run(DISK, stream.directory).findings


def test_the_daemon_tells_who_began_until_that_was_heard() -> None:
    """Streams that came and went between two questions are told; those that a question confirms are not told again."""
    from collections import Counter

    from daemon.ingest.streams import Streams
    from daemon.settings import DaemonSettings

    streams = Streams(DaemonSettings(), Counter())
    said: list[str] = []
    worker = Worker("/nowhere", streams, said.append)
    streams.make(7, "a41f", 0)
    streams.forget(7)
    streams.make(8, "b52e", 0)
    first = worker.answer({"mark": 0, "error": "disk full"})
    assert first["new"] == [["a41f", f"{7:016x}"], ["b52e", f"{8:016x}"]]
    assert first["living"] == [["b52e", f"{8:016x}", "", 0]]
    assert worker.answer({"mark": 0})["new"] == first["new"]
    assert worker.answer({"mark": first["mark"], "sealed": 1})["new"] == []
    assert said == ["observing: disk full"]
    assert worker.take_sealed()
    assert not worker.take_sealed()


def test_periods_are_bounded(scene: Scene) -> None:
    """Whatever a record says."""
    for number, seconds in enumerate((1e300, float("inf"), float("nan"), "10", -1, 1e-9)):
        scene.begin(f"run{number}", system_metrics_seconds=seconds)
    scene.pass_time(3)
    assert [scene.observer.runs[f"run{number}"].period for number in range(6)] == [86_400.0, 86_400.0, 0, 0, 0, 0.1]


# -- processes


def test_a_real_training_is_observed_through_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    """Observer killed, both killed: its children are counted, the series go on, and nothing is damaged."""
    monkeypatch.setenv("STEPD_OBSERVE", "1")
    monkeypatch.setenv("STEPD_SYSTEM_METRICS_SECONDS", "0.1")
    monkeypatch.setenv("STEPD_RESTART_SECONDS", "0.1")
    with temporary_store() as store:

        def body(_: Any) -> None:
            command = [sys.executable, "-S", "-c", "input()"]  # ends with us, however we end
            with subprocess.Popen(command, stdin=subprocess.PIPE):
                run = sdk.init(dir=store.path, id="a41f", settings={"silent": True, "console": "off"})
                signal.sigwait([signal.SIGUSR1])
                while signal.sigtimedwait([signal.SIGTERM], 0.02) is None:
                    run.log({"loss": 0.5})
            run.finish()

        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
        try:
            trainer = Trainer(body)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGUSR1])
        try:
            until(lambda: _observing(store).get("runs") == ["a41f"])
            os.kill(trainer.pid, signal.SIGUSR1)
            until(lambda: _samples(store) >= 2)
            until(lambda: sdk.open_store(store.path).run("a41f").keys())
            run = sdk.open_store(store.path).run("a41f")
            assert run.series("system/threads").time[0] < run.series("loss").time[0], "it was seen before it logged"
            assert run.series("system/processes").value[-1] >= 2
            first = _observing(store)
            os.kill(first["pid"], 9)
            until(lambda: (_observing(store).get("pid") or first["pid"]) != first["pid"])
            second = _observing(store)
            assert kill_daemon(Path(store.path))
            os.kill(second["pid"], 9)
            before = _samples(store)
            until(lambda: _samples(store) > before)
            os.kill(trainer.pid, signal.SIGTERM)
            assert trainer.wait() == 0
            until(lambda: sdk.open_store(store.path).run("a41f").streams[-1].state == "finished")
            run = sdk.open_store(store.path).run("a41f")
            assert (run.state, run.gaps, run.damage, run.keys()) == ("finished", [], [], ["loss"])
            assert len(run._side_lanes("system")) == 1
            assert not verify_run(DISK, run.directory).findings
        finally:
            with contextlib.suppress(ProcessLookupError):
                trainer.kill()


def _samples(store: StoreIdentity) -> int:
    try:
        return len(sdk.open_store(store.path).run("a41f").series("system/cpu"))
    except sdk.Error:
        return 0


def _observing(store: StoreIdentity) -> dict[str, Any]:
    try:
        found: dict[str, Any] = request(store.path, "status", timeout=1.0)["observing"]
    except sdk.Error:
        return {}
    return found
