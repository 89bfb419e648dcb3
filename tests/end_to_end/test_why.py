"""stepd why, of real trainers: hanging, keeping the GIL, stopped, waiting for one another, killed and raising; and its screens."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import sdk
from daemon.cli import cli
from sdk.journal.format import ANSWER_SUFFIX
from sdk.platform import shared_directory, store_digest
from sdk.query.why import hanging, stacks
from sdk.query.why.postmortem import postmortem
from sdk.reader import Run
from tests.builders import make_store
from tests.end_to_end.world import Trainer, settle, until, until_drained
from tests.forked import fork_daemon
from tests.sdk.test_postmortem import age, crashed, seen, watched
from tests.terminal import LARGE, SMALL, same_screen, screen_of

ROOT = Path(__file__).parents[2]
Train = Callable[[Callable[[], object]], Trainer]


@pytest.fixture
def train(store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Train]:
    """Begins trainers of the run "r" that log ten rows, and then do what they are given."""
    monkeypatch.setattr(hanging, "SILENT_SECONDS_MIN", 0.0)
    monkeypatch.setattr(hanging, "_FIRST_SECONDS", 0.0)
    daemon = fork_daemon(str(sdk.location.make_store(str(store)).path))
    begun: list[Trainer] = []

    def start(then: Callable[[], object], rank: int | None = None) -> Trainer:
        def body(count: Callable[[int], None]) -> None:
            resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
            if rank is not None:
                os.environ.update(RANK=str(rank), WORLD_SIZE="3", LOCAL_RANK=str(rank))
            run = sdk.init(id="r", project="p", dir=str(store))
            for _ in range(10):
                run.log({"loss": 1.0})
            count(1)
            then()
            run.finish()

        begun.append(Trainer(body))
        return begun[-1]

    yield start
    for trainer in begun:
        for number in (signal.SIGKILL, signal.SIGCONT):
            try:
                os.kill(trainer.pid, number)
            except ProcessLookupError:
                break
        try:
            trainer.wait()
        except ChildProcessError:
            pass
    daemon.kill()
    daemon.wait()


def run_of(store: Path, *trainers: Trainer) -> Run:
    """The run, when the trainers have come to what they do and all they logged is stored."""
    for trainer in trainers:
        until(lambda: trainer.returned)  # noqa: B023

    def is_stored() -> bool:
        settle(store)
        streams = [stream for run in sdk.open_store(store).runs() for stream in run.streams]
        return len(streams) == len(trainers) and all(stream.last > 10 for stream in streams)

    until(is_stored)
    return sdk.open_store(store).run("r")


def answers_left(store: Path) -> list[str]:
    digest = store_digest(str(store))
    return [
        name
        for name in os.listdir(shared_directory("/dev/shm"))
        if name.startswith(digest) and name.endswith(ANSWER_SUFFIX)
    ]


def test_a_trainer_that_waits(store: Path, train: Train) -> None:
    """Its sender tells where its threads are, without a signal; it goes on as if nobody had asked, and nothing is left behind."""
    reading, writing = os.pipe()

    def wait_for_data() -> None:
        threading.Thread(target=time.sleep, args=(60,), name="loader", daemon=True).start()
        os.read(reading, 1)

    trainer = train(wait_for_data)
    run = run_of(store, trainer)
    found = postmortem(run)
    (process,) = found.processes
    assert (found.verdict.cause, process.outcome, process.pid) == ("hanging", "answered", trainer.pid)
    assert process.main is not None
    assert process.main.frames[0].function.endswith("wait_for_data")
    assert process.main.frames[0].file == __file__
    assert "os.read(reading, 1)" in found.verdict.text
    # What the process has inherited from pytest is not looked at.
    assert "loader" in [thread.name for thread in process.threads]
    printed = CliRunner().invoke(cli, ["--dir", str(store), "why"], catch_exceptions=False).output
    assert "It hangs" in printed
    assert "wait_for_data  os.read(reading, 1)" in printed
    assert answers_left(store) == []
    os.write(writing, b"x")
    assert trainer.wait() == 0
    settle(store)
    assert postmortem(sdk.open_store(store).run("r")).verdict.cause == "finished"


def test_a_trainer_whose_interpreter_does_not_run(store: Path, train: Train) -> None:
    """No answer although it lives: a thread keeps the GIL. py-spy, where it may look, says which and where."""

    def keep_the_gil() -> None:
        re.match(r"(a+)+$", "a" * 60 + "b")

    trainer = train(keep_the_gil)
    run = run_of(store, trainer)
    found = postmortem(run, seconds=0.7, debugger=stacks.debugger_path() is not None)
    (process,) = found.processes
    assert (found.verdict.cause, process.outcome) == ("gil", "silent")
    assert process.tasks[0].id == trainer.pid
    if process.source == "py-spy":
        assert process.main is not None
        assert any(frame.function.endswith("keep_the_gil") for frame in process.main.frames)
    else:
        assert process.note or stacks.debugger_path() is None
    assert answers_left(store) == []


def test_a_trainer_that_is_stopped(store: Path, train: Train) -> None:
    """SIGSTOP is seen at once, without waiting for an answer; after SIGCONT it answers."""
    trainer = train(lambda: time.sleep(60))
    run = run_of(store, trainer)
    os.kill(trainer.pid, signal.SIGSTOP)
    until(lambda: all(task.state == "T" for task in stacks.tasks_of(trainer.pid)))
    found = postmortem(run, seconds=3600.0, debugger=False)
    assert (found.verdict.cause, found.verdict.confidence) == ("stopped", "certain")
    assert found.verdict.advice == (f"kill -CONT {trainer.pid}",)
    os.kill(trainer.pid, signal.SIGCONT)
    assert stacks.ask_stacks(run, 60.0)[0].outcome == "answered"


def test_ranks_that_wait_for_one(store: Path, train: Callable[..., Trainer]) -> None:
    """Equal stacks are one group: two are in the collective, and the one that is elsewhere stands out."""

    def all_reduce() -> None:
        time.sleep(60)

    def load() -> None:
        time.sleep(60)

    trainers = [train(load if rank == 2 else all_reduce, rank) for rank in range(3)]
    run = run_of(store, *trainers)
    found = postmortem(run, seconds=30.0)
    assert [process.rank for process in found.processes] == [0, 1, 2]
    groups = [group for group in stacks.grouped(found.processes) if group.is_main]
    assert [[process.rank for process, _ in group.members] for group in groups] == [[2], [0, 1]]
    assert "Ranks 0-1 are in" in found.verdict.text
    assert "all_reduce" in found.verdict.text
    assert found.verdict.advice == ("the rank that is elsewhere is the one to look at",)


def test_a_trainer_that_answers_nobody(store: Path, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """STEPD_STACKS=0 is said, and not waited for."""
    monkeypatch.setenv("STEPD_STACKS", "0")
    run = run_of(store, train(lambda: time.sleep(60)))
    found = postmortem(run, seconds=3600.0, debugger=False)
    assert [process.outcome for process in found.processes] == ["refused"]
    assert any("STEPD_STACKS=0" in text for text in found.verdict.advice)


def test_a_trainer_that_was_killed(store: Path, train: Train) -> None:
    """Without an observer nobody saw it: that, and nothing else, is said."""
    trainer = train(lambda: time.sleep(60))
    run_of(store, trainer)
    trainer.kill()
    trainer.wait()
    until_drained(store)
    found = postmortem(sdk.open_store(store).run("r"))
    assert (found.state, found.verdict.cause, found.step) == ("crashed", "unknown", 9)


def test_a_script_that_raises(store: Path) -> None:
    """The exception of a real script, without any hook of its own."""
    script = "import sdk\nsdk.init(id='r', project='p')\nsdk.log({'loss': float('nan')})\n1 / 0\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 1
    until(lambda: [run.state for run in sdk.open_store(store).runs()] == ["failed"])
    found = postmortem(sdk.open_store(store).run("r"))
    assert (found.verdict.cause, found.error and found.error.type) == ("exception", "ZeroDivisionError")
    assert [one.key for one in found.not_finite] == ["loss"]


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
def test_its_screen(tmp_path: Path, size: tuple[int, int]) -> None:
    """The verdict and what speaks for it on the first screen of any terminal; what has no room is named."""
    store = make_store(tmp_path)
    run, main = crashed(store, rank=0)
    line = "Memory cgroup out of memory: Killed process 4121 (python) total-vm:612012kB, anon-rss:183156kB"
    killed = seen(main, signal=9, oom_kills=1, rank=0, kernel=[[1_700_000_009 * 10**9, line]])
    other = run.stream(rank=1)
    other.log({"loss": float("nan")})
    console = run.stream("console", rank=0)
    for number in range(12):
        console.log({"text": f"epoch {number}: loss 0.{number}", "from": "stdout", "at": 0})
    memory = {
        "memory_rss": 3 << 30,
        "cgroup/memory_limit": 4 << 30,
        "cgroup/memory_used": 4 << 30,
        "machine/memory_available": 9 << 30,
    }
    watched(run, killed, seen(other, 12.0, signal=15, rank=1), **memory)
    age(run)
    text = screen_of(["--dir", store, "why", "dead"], size, env={"TZ": "UTC"})
    assert len(text.splitlines()) < size[1]
    same_screen(f"why-{size[0]}x{size[1]}", re.sub(r"\d+ d ago", "long ago", text))
    shutil.rmtree(store)
