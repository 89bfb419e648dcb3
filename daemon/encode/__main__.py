"""The worker process: ``python -m daemon.encode STORE``. Started by the daemon; ends when nothing is left to do.

It is nice, idle in I/O, and ends when its parent has. Exit codes: 0 done, 1 trouble.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from daemon.encode.work import Done, work
from daemon.store.rewrite import KEPT_SECONDS, hold
from sdk import clock
from sdk.errors import CommError, Error
from sdk.files import DISK
from sdk.location import read_store
from sdk.transport import request

_NICE = 10
_LOOK_SECONDS = 1.0
_told_to_end = False


def main(store_path: str) -> int:
    """Encodes what there is, waits until what was replaced may be removed, removes it."""
    _behave()
    parent = os.getppid()

    def is_wanted() -> bool:
        return not _told_to_end and os.getppid() == parent

    store = read_store(store_path)
    lock = hold(store.path)
    if lock is None:
        return 0
    try:
        while True:
            done = work(DISK, store, is_wanted=is_wanted, progress=lambda done: _tell(store.path, done))
            _tell(store.path, done)
            if not done.waiting or not is_wanted():
                return 1 if done.errors else 0
            # What is new meanwhile is done on the way: the next pass looks at everything.
            until = clock.monotonic() + KEPT_SECONDS / 6
            while is_wanted() and clock.monotonic() < until:
                clock.pause(_LOOK_SECONDS)
    finally:
        lock.release()


def _tell(store: str, done: Done) -> None:
    """Says to the daemon how far we are; it shows that in `stepd status`."""
    with contextlib.suppress(CommError, Error, OSError):
        told = {"blobs": done.blobs, "failed": done.failed, "missing": done.missing, "errors": done.errors[-1:]}
        request(store, "encoded", told, timeout=1.0)


def _behave() -> None:
    def end(*_: object) -> None:
        global _told_to_end
        _told_to_end = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    with contextlib.suppress(Exception):
        import psutil

        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
