"""daemon.lifecycle: the lock, and when a daemon leaves."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from daemon.lifecycle import Leaving, on_termination, take_store
from sdk import platform
from sdk.location import StoreIdentity, make_store
from sdk.transport import lock_path
from tests.end_to_end.world import until
from tests.terminal import ROOT


def leaving(*, persistent: bool = False) -> Leaving:
    return Leaving(100.0, persistent=persistent, idle_seconds=60.0, drain_seconds=25.0)


def test_one_process_serves_a_store(store: StoreIdentity) -> None:
    """The lock's file says who; a second taker gets None, also in the same process; a release lets the next one in."""
    lock = take_store(store.path, "0.1.0")
    assert lock is not None
    with open(lock_path(store.path), encoding="utf-8") as file:
        facts = json.load(file)
    # Reading the file dropped our lock, as POSIX wants it: which is why nobody may do so who holds it.
    assert (facts["pid"], facts["store"], facts["version"]) == (os.getpid(), store.path, "0.1.0")
    assert take_store(store.path, "0.1.0") is None
    lock.release()
    again = take_store(store.path, "0.1.0")
    assert again is not None
    again.release()


def test_no_room_for_the_text_is_no_reason_not_to_serve(store: StoreIdentity, monkeypatch: pytest.MonkeyPatch) -> None:
    """/run/user is small and may be full; the lock itself takes no room."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(platform.HeldLock, "write", refuse)
    lock = take_store(store.path, "0.1.0")
    assert lock is not None
    lock.release()


def test_another_process_sees_the_lock(store: StoreIdentity) -> None:
    """And a stale file without a holder means nothing."""
    question = f"from sdk import platform; print(platform.lock_owner({lock_path(store.path)!r}))"

    def seen_from_outside() -> str:
        return subprocess.run(
            [sys.executable, "-c", question], capture_output=True, text=True, check=True
        ).stdout.strip()

    lock = take_store(store.path, "0.1.0")
    assert lock is not None
    assert seen_from_outside() == str(os.getpid())
    lock.release()
    assert os.path.exists(lock_path(store.path))
    assert seen_from_outside() == "None"
    assert not platform.is_locked(lock_path(store.path))


def test_idle() -> None:
    """It leaves when nobody has needed it for `idle_seconds`."""
    idle = leaving()
    assert not idle.is_due(159.0, living_trainers=False)
    idle.note(150.0, living_trainers=True)
    idle.note(170.0, living_trainers=False)
    assert not idle.is_due(209.0, living_trainers=False)
    assert idle.is_due(210.0, living_trainers=False)


def test_one_that_was_started_by_a_user_stays() -> None:
    """Also when it becomes so later (`stepd start` finds one that init started)."""
    assert not leaving(persistent=True).is_due(1e9, living_trainers=False)
    later = leaving()
    later.persistent = True
    assert not later.is_due(1e9, living_trainers=False)


def test_stop_is_at_once() -> None:
    """Whatever lives."""
    stopped = leaving(persistent=True)
    stopped.stop()
    assert stopped.is_due(100.0, living_trainers=True)


def test_terminated_with_living_trainers_it_serves_a_little_longer() -> None:
    """25 s for a scheduler that ends the whole job, and no longer than they live."""
    ended = leaving(persistent=True)
    ended.terminate(200.0)
    assert ended.is_terminated
    assert not ended.is_due(224.0, living_trainers=True)
    assert ended.is_due(224.0, living_trainers=False)
    assert ended.is_due(225.0, living_trainers=True)


def test_a_second_signal_ends_it() -> None:
    """Whoever presses Ctrl-C twice means it."""
    ended = leaving()
    ended.terminate(200.0)
    ended.terminate(201.0)
    assert ended.is_due(201.0, living_trainers=True)


def test_signals_call_back() -> None:
    """SIGTERM, SIGINT and SIGHUP all ask it to leave."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    seen: list[int] = []
    try:
        on_termination(lambda: seen.append(1))
        for number in numbers:
            os.kill(os.getpid(), number)
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)
    assert len(seen) == 3


@pytest.mark.parametrize("module", ["daemon.keeper", "daemon.observer", "daemon.carrier"])
def test_a_worker_whose_starter_is_gone_before_it_looks_ends(module: str, tmp_path: Path) -> None:
    """A daemon that is killed in the moment in which it starts a worker leaves no process behind."""
    store = make_store(str(tmp_path / "store")).path
    code = f"import os; from daemon.lifecycle import start_module; print(start_module({module!r}, [{store!r}]).pid); "
    starter = subprocess.run(
        [sys.executable, "-c", f"{code}import sys; sys.stdout.flush(); os._exit(0)"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    pid = int(starter.stdout)
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_a_worker_that_hangs_ends_when_its_starter_is_gone() -> None:
    """Whatever its library waits for: nobody waits for what it would tell."""
    child = (
        "import time; from daemon import lifecycle; lifecycle._ORPHAN_SECONDS = lifecycle._ORPHAN_LOOK_SECONDS = 0.01; "
        "lifecycle.behave_as_worker(); print('begun', flush=True); time.sleep(600)"
    )
    code = (
        "import subprocess, sys; "
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE); p.stdout.readline(); print(p.pid)"
    )
    starter = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    pid = int(starter.stdout)
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
