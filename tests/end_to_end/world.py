"""What the end-to-end tests share: trainers as real processes that can be killed at any call, and what a store holds.

A trainer is forked from the test's process before any run exists there, so that it starts in milliseconds; it tells how
many calls have returned through shared memory, which survives its SIGKILL.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import sdk
from sdk import _spawn, platform
from sdk.journal.drain import ring_paths
from sdk.location import make_store
from sdk.transport import lock_path

DEADLINE_SECONDS = 60.0


class Trainer:
    """A forked process that runs `body(count)`; `count(n)` says that n calls have returned."""

    def __init__(self, body: Callable[[Callable[[int], None]], None]) -> None:
        self._memory = mmap.mmap(-1, 4096)
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                body(lambda n: struct.pack_into("<Q", self._memory, 0, n))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)

    @property
    def returned(self) -> int:
        """Calls of log that have returned so far."""
        return int(struct.unpack_from("<Q", self._memory, 0)[0])

    def kill(self) -> None:
        os.kill(self.pid, 9)

    def wait(self, seconds: float = DEADLINE_SECONDS) -> int:
        """Waits for the end; the exit code, or minus the signal."""
        status: list[int] = []

        def ended() -> bool:
            pid, code = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                status.append(code)
            return bool(pid)

        try:
            until(ended, seconds)
        except AssertionError:
            self.kill()
            raise
        return os.waitstatus_to_exitcode(status[0])


def until(condition: Callable[[], bool], seconds: float = DEADLINE_SECONDS) -> None:
    """Waits until `condition()` is true.

    Raises:
        AssertionError: It was not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
        time.sleep(0.005)


def until_drained(store: Path) -> None:
    """Waits until no ring of a dead process of this store is left.

    Race: the daemon holds the lock of a ring while it drains it, so a lock that is held does not say that a trainer
    lives: who looked in that moment read the run too early, and missed all of it.
    """
    digest = platform.store_digest(str(store))

    def drained() -> bool:
        daemon = platform.lock_owner(lock_path(str(store)))
        owners = [platform.lock_owner(path) for path in ring_paths("/dev/shm", digest)]
        return all(owner not in (None, daemon) for owner in owners)

    until(drained)


def steps(store: Path, run: str, key: str = "x", **choice: object) -> list[int]:
    """The steps at which a run holds a key."""
    return [int(s) for s in sdk.open_store(store).run(run).series(key, **choice).step]


def settle(store: Path) -> None:
    """Makes the daemon write what it has, if there is one."""
    from sdk.errors import Error
    from sdk.transport import request

    with contextlib.suppress(Error):
        request(str(store), "settle")


def kill_daemon(path: Path) -> int | None:
    """SIGKILLs the daemon of a store; its pid, or None if there was none."""
    pid = platform.lock_owner(lock_path(str(path)))
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    return pid


def start_daemon(store: Path) -> int:
    """Makes the store if need be and has a daemon serve it that stays; its pid."""
    make_store(str(store))
    return int(str(_spawn.ensure(str(store), timeout=15, shared_memory_dir="/dev/shm")["pid"]))
