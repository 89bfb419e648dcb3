"""daemon.observe.ends: how real processes ended, as somebody sees who is not their parent, and what the observer stores of it."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.observe import ends, machine
from daemon.observe.ends import PATIENCE_SECONDS, Ends, chosen_lines, status_facts
from sdk import clock
from sdk.platform.kernel_log import KernelLine
from sdk.query.why.postmortem import ends_of
from tests.daemon.test_observer import Scene
from tests.end_to_end.world import until


@pytest.fixture
def spawn() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Processes that wait for their stdin to end, and then leave with exit code 3."""
    made: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        made.append(subprocess.Popen(["sh", "-c", "read line; exit 3"], stdin=subprocess.PIPE))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.communicate()


@pytest.fixture
def _quiet_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends, "read_kernel_log", lambda since: [])


Spawn = Callable[[], "subprocess.Popen[bytes]"]


@pytest.mark.usefixtures("_quiet_kernel")
def test_an_end_is_seen_while_nobody_has_reaped_it(spawn: Spawn) -> None:
    """A killed process that is still a zombie says its signal, one that left its exit code; both at the first look."""
    killed, left = spawn(), spawn()
    watched = Ends()
    watched.watch(killed.pid, "77", 3)
    watched.watch(left.pid, "78", None)
    assert not watched.look(0.0)
    assert len(watched.descriptors) == 2
    killed.kill()
    assert left.stdin is not None
    left.stdin.close()
    until(lambda: not watched.look(1.0) and len(watched.told) == 2)
    told = {one["pid"]: one for one in watched.told}
    assert (told[killed.pid]["signal"], told[killed.pid]["rank"], told[killed.pid]["stream"]) == (9, 3, "77")
    assert told[left.pid]["exit_code"] == 3
    assert "rank" not in told[left.pid]
    assert watched.descriptors == []


@pytest.mark.usefixtures("_quiet_kernel")
def test_an_older_kernel_tells_of_zombies_only(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the pidfd's word /proc is asked, and never believed of another process that has the number now."""
    monkeypatch.setattr(ends, "_told_status", lambda descriptor: None)
    process = spawn()
    watched = Ends()
    watched.watch(process.pid, "77", None)
    process.kill()
    until(lambda: watched.look(0.0) or bool(watched.told))
    assert watched.told[0]["signal"] == 9
    assert ends.exit_status(process.pid, -1, "another start") is None


@pytest.mark.usefixtures("_quiet_kernel")
def test_an_end_is_seen_after_it_was_reaped(spawn: Spawn) -> None:
    """Where the kernel keeps it (6.15 and later) the status comes although the parent was first; else it is told to be unknown."""
    process = spawn()
    watched = Ends()
    watched.watch(process.pid, "77", None)
    process.send_signal(signal.SIGTERM)
    process.wait()
    watched.look(0.0)
    release = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in os.uname().release.split(".")[:2])
    if release < (6, 15):
        assert watched.is_waiting
        watched.look(PATIENCE_SECONDS + 1)
    (told,) = watched.told
    assert told.get("signal") == (signal.SIGTERM if release >= (6, 15) else None)


@pytest.mark.usefixtures("_quiet_kernel")
def test_what_cannot_be_learned_is_told_after_a_while(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a process ended and nobody knows how is a fact as well; it is not waited for longer than a few seconds."""
    monkeypatch.setattr(ends, "exit_status", lambda pid, descriptor, started: None)
    process = spawn()
    watched = Ends()
    watched.watch(process.pid, "77", None)
    process.kill()
    until(lambda: watched.look(0.0) or watched.is_waiting)
    assert not watched.look(PATIENCE_SECONDS - 1)
    assert watched.look(PATIENCE_SECONDS + 1)
    assert "signal" not in watched.told[0]


@pytest.mark.usefixtures("_quiet_kernel")
def test_exit_code_0_is_told_at_the_end(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mostly the run says it already; of one that did not it is all that there is to know."""
    monkeypatch.setattr(ends, "exit_status", lambda pid, descriptor, started: 0)
    process = spawn()
    watched = Ends()
    watched.watch(process.pid, "77", None)
    process.kill()
    until(lambda: watched.look(0.0) or not watched.descriptors)
    assert watched.told == []
    assert watched.look(1.0, last=True)
    assert [(one["pid"], one["exit_code"]) for one in watched.told] == [(process.pid, 0)]


def test_the_cgroups_counter_before_and_after(spawn: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How often the OOM killer killed there meanwhile, and what the kernel's log said, are told with the end."""
    events = tmp_path / "memory.events"
    events.write_text("low 0\noom 2\noom_kill 4\noom_group_kill 0\n")
    monkeypatch.setattr(machine, "memory_events", lambda pid: str(events))
    process = spawn()
    line = "Out of memory: Killed process %d (python)"
    when = float(clock.wall_ns() // 10**9 + 1000)
    monkeypatch.setattr(
        ends,
        "read_kernel_log",
        lambda since: [KernelLine(at, "oom", process.pid, line % process.pid) for at in (1.5, when)],
    )
    watched = Ends()
    watched.watch(process.pid, "77", None)
    events.write_text("oom_kill 5\n")
    process.kill()
    until(lambda: watched.look(0.0) or bool(watched.told))
    assert watched.told[0]["oom_kills"] == 1
    # What is older than the process is another one's.
    assert watched.told[0]["kernel"] == [[round(when * 1e9), line % process.pid]]


@pytest.mark.usefixtures("_quiet_kernel")
def test_what_the_cgroup_counted_long_before_is_not_told(
    spawn: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that the OOM killer killed an hour before does not explain the end; nor does a counter that began again."""
    events = tmp_path / "memory.events"
    events.write_text("oom_kill 4\n")
    monkeypatch.setattr(machine, "memory_events", lambda pid: str(events))
    process = spawn()
    watched = Ends()
    watched.watch(process.pid, "77", None)
    for now, count in ((100.0, 5), (3700.0, 5), (3710.0, 2)):
        events.write_text(f"oom_kill {count}\n")
        watched.look(now)
    process.kill()
    until(lambda: watched.look(3720.0) or bool(watched.told))
    assert watched.told[0]["oom_kills"] == 0


def test_many_that_end_together(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's log is read once for all; each end has the time at which it was seen, also where its status comes late."""
    reads: list[float] = []
    monkeypatch.setattr(ends, "read_kernel_log", lambda since: reads.append(since) or [])
    monkeypatch.setattr(ends, "exit_status", lambda pid, descriptor, started: None)
    watched = Ends()
    spawned = [spawn() for _ in range(3)]
    for process in spawned:
        watched.watch(process.pid, "77", None)
        process.kill()
    until(lambda: watched.look(0.0) or not watched.descriptors)
    seen_ns = clock.wall_ns()
    watched.look(PATIENCE_SECONDS + 1)
    assert [one["pid"] for one in watched.told] == [process.pid for process in spawned]
    assert all(one["time_ns"] <= seen_ns for one in watched.told)
    assert len(reads) == 1


def test_descriptors_beyond_what_select_takes(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their numbers may be large; where half of all that there may be are in use no process is watched."""
    process = spawn()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[0] < 1100:
        pytest.skip("no descriptor may have such a number here")
    low = os.pidfd_open(process.pid)
    high = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 1050)
    try:
        assert ends.readable([high]) == set()
        process.kill()
        until(lambda: ends.readable([high]) == {high})
        monkeypatch.setattr(resource, "getrlimit", lambda which: (2 * low, limits[1]))
        watched = Ends()
        watched.watch(os.getpid(), "77", None)
        assert watched.descriptors == []
    finally:
        os.close(low)
        os.close(high)


def test_wait_statuses() -> None:
    """As wait() packs them: exit code, signal, and whether memory was dumped."""
    assert status_facts(3 << 8) == {"exit_code": 3}
    assert status_facts(9) == {"signal": 9}
    assert status_facts(11 | 0x80) == {"signal": 11, "core": True}
    assert status_facts(None) == {}


def test_lines_that_may_belong_to_an_end() -> None:
    """Those that name the process, however old, and others of the last minute; at most eight."""
    named = KernelLine(10.0, "oom", 4121, "mine")
    others = [KernelLine(when, "xid", 0, str(when)) for when in (20.0, 990.0)]
    assert chosen_lines([named, *others], 4121, 1000.0) == [named, others[1]]
    many = [KernelLine(float(when), "disk", 0, "x") for when in range(980, 1000)]
    assert len(chosen_lines(many, 4121, 1000.0)) == 8


def test_the_observer_stores_how_processes_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While others of the run live, and at the run's end; a reader finds it by the stream."""
    monkeypatch.setattr(ends, "read_kernel_log", lambda since: [])
    scene = Scene(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        scene.begin(pid=process.pid)
        scene.pass_time(3)
        assert len(scene.observer.ending) == 1
        process.kill()
        process.wait()
        scene.living.clear()
        scene.pass_time(PATIENCE_SECONDS + 3)
    finally:
        process.kill()
        process.wait()
        scene.observer.close()
    run = scene.run()
    (found,) = ends_of(run._facts.streams.values(), {stream.id for stream in run.streams})
    assert (found.pid, found.signal) in [(process.pid, 9), (process.pid, None)]
    assert found.lines == ()
    assert scene.observer.ending == []
