"""What becomes of a trainer from outside: keys pressed, sessions ended, other programs, an interpreter that stands still."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import sdk
from daemon.commands.stop import stop
from sdk import _sender, _spawn, platform
from sdk.transport import endpoint_path, lock_path, request
from tests.end_to_end.world import Trainer, start_daemon, steps, until, until_drained
from tests.forked import (
    Loop,
    WallClock,
    answers,
    end_all,
    fork_daemon,
    quiet,
    ready_to_die,
    rings,
    rows_of,
    stored_exactly,
)

ROOT = Path(__file__).parents[2]
GIL_SECONDS = 5

SCRIPT = """\
import sys, time
sys.path.insert(0, {root!r})
import sdk
sdk.init(id="run", project="fates")
for n in range(100):
    sdk.log({{"x": n}})
sdk.log({{"open": 1}}, commit=False)
print("ready", flush=True)
{end}
"""

# Writes down where the descriptors of the process that runs it lead.
LOOK = """\
import os
found = []
for n in os.listdir("/proc/self/fd"):
    try:
        found.append(os.readlink("/proc/self/fd/" + n))
    except OSError:
        pass
open({path!r}, "w").write(repr(found))
"""


@pytest.mark.parametrize(
    ("number", "end", "state"),
    [
        (signal.SIGINT, "time.sleep(60)", "interrupted"),
        (signal.SIGHUP, "time.sleep(60)", "crashed"),
        (signal.SIGSEGV, "time.sleep(60)", "crashed"),
        (signal.SIGTERM, "time.sleep(60)", "crashed"),
        (
            signal.SIGTERM,
            "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(1)); time.sleep(60)",
            "failed",
        ),
    ],
    ids=["Ctrl-C", "hang-up", "segmentation fault", "terminated", "handler that exits"],
)
def test_a_signal_to_a_script(store: Path, number: int, end: str, state: str) -> None:
    """The run's state tells how it ended, and the open row is kept. A handler's `sys.exit(1)` is a failure like any other."""
    code = SCRIPT.format(root=str(ROOT), end=end)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    with process.stdout as out:
        assert out.readline() == "ready\n"
        if "signal.signal" in end:
            until(lambda: handles(process.pid, number))
        process.send_signal(number)
        assert process.wait(60) != 0
    until_drained(store)
    run = sdk.open_store(store).run("run")
    assert run.state == state
    assert run.series("x").value.tolist() == list(range(100))
    assert run.series("open").step.tolist() == [100]


def handles(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    (line,) = [
        n for n in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines() if n.startswith("SigCgt")
    ]
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def test_the_gil_is_held_for_seconds(store: Path) -> None:
    """A C call that keeps the interpreter: the session goes on afterwards, nothing is lost, spooled or stored twice."""
    pid = start_daemon(store)

    def train(count: Callable[[int], None]) -> None:
        ready_to_die()
        run = sdk.init(id="run", project="fates")
        for n in range(2000):
            run.log({"x": n})
            if n == 1000:
                ctypes.PyDLL(None).usleep(GIL_SECONDS * 1_000_000)
            count(n + 1)
        run.finish()

    trainer = Trainer(train)
    assert trainer.wait() == 0
    stored_exactly(str(store), "run", trainer.returned, more=0)
    status = request(str(store), "status")
    assert (status["pid"], status["protocol_errors"]) == (pid, 0)


def test_a_trainer_that_becomes_another_program(store: Path) -> None:
    """exec: it takes none of our descriptors along, and what was logged before is stored as after a kill."""
    start_daemon(store)

    def train(count: Callable[[int], None]) -> None:
        ready_to_die()
        close_foreign()
        sdk.init(id="run", project="fates")
        for n in range(500):
            sdk.log({"x": n})
            count(n + 1)
        look = LOOK.format(path=str(store / "seen"))
        os.execv(sys.executable, [sys.executable, "-S", "-c", look])

    trainer = Trainer(train)
    assert trainer.wait() == 0
    seen = (store / "seen").read_text(encoding="utf-8")
    assert "stepd" not in seen.replace(str(store), "") and "socket" not in seen and "eventpoll" not in seen, seen
    until_drained(store)
    stored_exactly(str(store), "run", trainer.returned, more=0)
    assert sdk.open_store(store).run("run").state == "crashed"


def close_foreign() -> None:
    """Closes what libraries of other tests have left to whatever this process becomes."""
    for number in sorted(map(int, os.listdir("/proc/self/fd")))[3:]:
        with contextlib.suppress(OSError):  # of the listing itself
            if os.get_inheritable(number):
                os.close(number)


def test_programs_that_a_trainer_starts_inherit_nothing(store: Path) -> None:
    """Even with close_fds=False: no ring, no lock and no socket of ours."""
    start_daemon(store)

    def train(_: Callable[[int], None]) -> None:
        ready_to_die()
        before = set(os.listdir("/proc/self/fd"))
        sdk.init(id="run", project="fates")
        sdk.log({"x": 0})
        ours = set(os.listdir("/proc/self/fd")) - before
        assert len(ours) > 3
        done = subprocess.run(["ls", "/proc/self/fd"], close_fds=False, capture_output=True, text=True)
        assert len(set(done.stdout.split()) & ours) <= 1, "ls has one of its own, to list the directory"
        sdk.finish()

    assert Trainer(train).wait() == 0


def test_a_logout_removes_shared_memory(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RemoveIPC takes the ring's file from a living trainer, which is killed later: what it logged is stored."""
    with quiet(STEPD_AUTOSTART="0", STEPD_CONSOLE="off"):  # one ring: what we say ourselves is console too
        daemon = fork_daemon(str(sdk.location.make_store(str(store)).path))
        until(lambda: answers(str(store)) is not None)
        trainer = Loop(str(store))
        try:
            until(lambda: rows_of(str(store)) > 0)
            for ring in rings(str(store)):
                os.unlink(ring)
            until(lambda: len(rings(str(store))) == 1)
            trainer.past(20)
            os.kill(daemon.pid, signal.SIGKILL)
            daemon.wait()
            trainer.past(20)
            trainer.kill()
            assert trainer.wait() == -signal.SIGKILL
            daemon = fork_daemon(str(store))
            until(lambda: answers(str(store)) is not None)
            until_drained(store)
            stored_exactly(str(store), "run", trainer.returned)
        finally:
            end_all(daemon, trainer)


def test_a_trainer_stopped_for_longer_than_any_silence(store: Path) -> None:
    """SIGSTOP: to the daemon it lives, however long it is silent; it goes on where it was."""
    pid = start_daemon(store)
    trainer = Loop(str(store))
    try:
        trainer.past(50)
        os.kill(trainer.pid, signal.SIGSTOP)
        uptime = request(str(store), "status")["uptime_seconds"] + 2 * _sender.SILENCE_SECONDS
        until(lambda: request(str(store), "status")["uptime_seconds"] > uptime)
        assert sdk.open_store(store).run("run").state == "running"
        os.kill(trainer.pid, signal.SIGCONT)
        trainer.past(50)
        assert trainer.stop() == 0
        stored_exactly(str(store), "run", trainer.returned, more=0)
        assert request(str(store), "status")["pid"] == pid
    finally:
        end_all(trainer)


def test_a_suspended_machine(store: Path) -> None:
    """Trainer and daemon stand still for longer than every timeout, and the clock jumps: they go on where they were."""
    clock = WallClock()
    sdk.location.make_store(str(store))
    daemon = fork_daemon(str(store), clock.install)
    until(lambda: answers(str(store)) is not None)
    trainer = Loop(str(store), prepare=clock.install)
    try:
        trainer.past(50)
        for process in (trainer, daemon):
            os.kill(process.pid, signal.SIGSTOP)
        clock.jump(8 * 3600.0)
        time.sleep(2 * _sender.SILENCE_SECONDS)  # nobody is awake to be waited for
        for process in (daemon, trainer):
            os.kill(process.pid, signal.SIGCONT)
        trainer.past(100)
        assert trainer.stop() == 0
        stored_exactly(str(store), "run", trainer.returned, more=0)
        status = answers(str(store))
        assert status is not None
        assert status["pid"] == daemon.pid
    finally:
        end_all(trainer, daemon)


def test_a_container_is_removed(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is killed and shared memory is gone: what was written stays, as a prefix of what was logged."""
    memory = tempfile.mkdtemp(prefix="stepd-test-", dir="/dev/shm")
    monkeypatch.setenv("STEPD_SHARED_MEMORY_DIR", memory)
    monkeypatch.setenv("STEPD_AUTOSTART", "0")
    try:
        sdk.location.make_store(str(store))
        daemon = fork_daemon(str(store), shared_memory_dir=memory)
        until(lambda: answers(str(store)) is not None)
        trainer = Loop(str(store))
        until(lambda: rows_of(str(store)) > 50)
        written = rows_of(str(store))
        os.kill(daemon.pid, signal.SIGSTOP)
        trainer.past(20)
        assert os.listdir(f"{memory}/stepd-{os.getuid()}")
    finally:
        end_all(trainer, daemon)
        shutil.rmtree(memory)
    monkeypatch.delenv("STEPD_SHARED_MEMORY_DIR")
    pid = start_daemon(store)
    until(lambda: sdk.open_store(store).run("run").state == "crashed")
    assert pid == request(str(store), "status")["pid"]
    found = steps(store, "run")
    assert found == list(range(len(found)))
    assert written <= len(found) <= trainer.returned + 1


def test_a_removed_lock_file_ends_in_a_daemon_of_the_senders(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody cleans the directory of locks: the daemon leaves, the trainer's sender starts another, nothing is lost."""
    monkeypatch.setenv("STEPD_RESTART_SECONDS", "0.05")
    before = start_daemon(store)
    trainer = Loop(str(store))
    try:
        trainer.past(50)
        os.unlink(lock_path(str(store)))
        os.unlink(endpoint_path(str(store)))

        def another() -> bool:
            status = answers(str(store))
            return status is not None and status["pid"] != before

        until(another)
        trainer.past(50)
        assert trainer.stop() == 0
        stored_exactly(str(store), "run", trainer.returned, more=0)
        until(lambda: not os.path.exists(f"/proc/{before}"))
    finally:
        end_all(trainer)


def test_stop_signals_nobody(store: Path) -> None:
    """The lock's text names a process that has nothing to do with us: only who holds the lock counts."""
    sdk.location.make_store(str(store))
    bystander = Trainer(lambda _: time.sleep(60))
    try:
        Path(lock_path(str(store))).write_text(f'{{"pid": {bystander.pid}}}', encoding="ascii")
        assert platform.lock_owner(lock_path(str(store))) is None
        assert not _spawn.is_serving(str(store))
        assert stop(str(store)) is None
        pid = start_daemon(store)
        assert pid != bystander.pid
        Path(lock_path(str(store))).write_text(f'{{"pid": {bystander.pid}}}', encoding="ascii")
        assert stop(str(store)) == 0
        assert os.waitpid(bystander.pid, os.WNOHANG) == (0, 0)
    finally:
        end_all(bystander)


def test_everybody_is_terminated_at_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a scheduler, with a real daemon: it outlives the trainer, takes its ring, and then there is nobody left."""
    pid = start_daemon(store)
    trainer = Loop(str(store))
    trainer.past(100)
    for number in (pid, trainer.pid):
        os.kill(number, signal.SIGTERM)
    assert trainer.wait() == -signal.SIGTERM
    until(lambda: not _spawn.is_serving(str(store)))
    assert rings(str(store)) == []
    stored_exactly(str(store), "run", trainer.returned)
    assert steps(store, "run")[0] == 0
