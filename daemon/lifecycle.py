"""One daemon for each store and host: the lock that decides it, signals, and when to leave."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from sdk import clock, platform
from sdk.platform import HeldLock
from sdk.transport import lock_path


def take_store(store: str, version: str) -> HeldLock | None:
    """The lock on `store` on this host, held until death, or None when another daemon serves it.

    Invariant: taken before the socket is bound, because a second bind would silently steal the socket.
    """
    lock = platform.hold_lock(lock_path(store))
    if lock is not None:
        text = json.dumps({"pid": os.getpid(), "version": version, "store": store, "started_ns": clock.wall_ns()})
        with contextlib.suppress(OSError):  # no room for a text that only people read is no reason not to serve
            lock.write(text.encode())
    return lock


def on_termination(callback: Callable[[], None]) -> None:
    """Calls `callback` on SIGTERM, SIGINT and SIGHUP. The daemon is its own process: these are its own to handle."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: callback())


_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# As in sdk._spawn: nothing of the working directory is found, and what is found is what we were loaded from.
_CODE = """\
import runpy, sys
sys.path[:] = [p for p in sys.argv.pop(1).split(':') if p]
from daemon import lifecycle
lifecycle.parent = int(sys.argv.pop(1))
runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)
"""

parent: int | None = None
"""The process that started this one by `start_module`. Why told: one that was killed meanwhile cannot be asked for any more."""

# Limit: what a worker may still do for itself once nobody waits for it. A library may wait for a server much longer.
_ORPHAN_SECONDS = 3.0
_ORPHAN_LOOK_SECONDS = 1.0


def start_module(module: str, arguments: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Starts ``python -m module``, exec'd, so that it shares nothing with us, and connected to nothing.

    Args:
        options: Of `subprocess.Popen`, where something else is meant.

    Raises:
        OSError: No process can be made now.
    """
    path = os.pathsep.join([_ROOT, *(entry for entry in sys.path if entry and entry != _ROOT)])
    nowhere = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    command = [sys.executable, "-c", _CODE, path, str(os.getpid()), module, *arguments]
    return subprocess.Popen(command, **{**nowhere, **options})


_WORKER_NICE = 10


def behave_as_worker(nice: int = _WORKER_NICE, *, is_idle: bool = True) -> Callable[[], bool]:
    """Makes this process one that steps aside for everybody else, in CPU and, when `is_idle`, in I/O; what it gets says whether it
    is to go on: not after SIGTERM, nor when the process that started it is gone.
    """
    is_told_to_end = False

    def end() -> None:
        nonlocal is_told_to_end
        is_told_to_end = True

    on_termination(end)
    with contextlib.suppress(OSError):
        os.nice(nice)
    if is_idle:
        _idle_in_io()
    starter = parent or os.getppid()

    def is_orphan() -> bool:
        return os.getppid() != starter

    threading.Thread(target=_end_soon_after, args=(is_orphan,), name="stepd-orphan", daemon=True).start()
    return lambda: not is_told_to_end and not is_orphan()


def _end_soon_after(is_orphan: Callable[[], bool]) -> None:
    """Ends a process whose starter is gone, wherever it hangs. Any worker may be killed at any moment."""
    while not is_orphan():
        clock.pause(_ORPHAN_LOOK_SECONDS)
    clock.pause(_ORPHAN_SECONDS)
    os._exit(1)


def _idle_in_io() -> None:
    with contextlib.suppress(Exception):
        import psutil

        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


class Leaving:
    """When a daemon ends: asked to stop, terminated and drained, or idle. Pure; takes the time as an argument."""

    def __init__(self, now: float, *, persistent: bool, idle_seconds: float, drain_seconds: float) -> None:
        self.persistent = persistent
        self._idle_seconds = idle_seconds
        self._drain_seconds = drain_seconds
        self._needed_at = now
        self._terminated_at: float | None = None
        self._stop = False

    def stop(self) -> None:
        """A user asked: leave as soon as everything received is written."""
        self._stop = True

    def terminate(self, now: float) -> None:
        """A signal came: serve living trainers a little longer. A second signal ends it at once."""
        if self._terminated_at is not None:
            self._stop = True
        self._terminated_at = self._terminated_at or now

    @property
    def is_terminated(self) -> bool:
        return self._terminated_at is not None

    def note(self, now: float, *, living_trainers: bool) -> None:
        if living_trainers:
            self._needed_at = now

    def is_due(self, now: float, *, living_trainers: bool) -> bool:
        if self._stop:
            return True
        if self._terminated_at is not None:
            return not living_trainers or now - self._terminated_at >= self._drain_seconds
        # Why ask both: looks are a second apart, and `idle_seconds` may be less.
        return not self.persistent and not living_trainers and now - self._needed_at >= self._idle_seconds
