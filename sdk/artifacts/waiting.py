"""Waiting for a version, and making it here where nobody else does."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

from .. import clock
from .._keeping import BAD_SUFFIX, Abandoned, claim, end_job, jobs, read_job
from ..errors import DamageError, Error, WaitTimeoutError
from ..files import DISK
from ..location import StoreIdentity
from ..platform import is_locked
from .format import parse_version
from .making import make
from .shelf import Shelf

# What a daemon gets to begin; its keeper may be new, or wait after trouble.
_GRACE_SECONDS = 3.0
SETTLE_SECONDS = 60.0
_PAUSE_SECONDS_MIN = 0.002
_PAUSE_SECONDS_MAX = 0.05


def wait_for(store: StoreIdentity, name: str, path: str, is_there: Callable[[], bool], timeout: float | None) -> None:
    """Returns when `is_there()`.

    Args:
        path: The job's file.

    Raises:
        WaitTimeoutError, Error
    """
    begun = clock.monotonic()
    deadline = float("inf") if timeout is None else begun + timeout
    pause = _PAUSE_SECONDS_MIN
    while not is_there():
        now = clock.monotonic()
        if now >= deadline:
            raise WaitTimeoutError(
                f"artifact {name!r} is not stored after {timeout:g} s; it will be, by the daemon's keeper"
            )
        if DISK.exists(path + BAD_SUFFIX):
            raise Error(f"artifact {name!r} cannot be stored", hint="stepd status; the daemon's log says why")
        if now - begun >= _GRACE_SECONDS or not _is_served(store.path):
            _do(store, name, path, deadline)
        clock.pause(min(pause, max(deadline - clock.monotonic(), 0.0)))
        pause = min(2 * pause, _PAUSE_SECONDS_MAX)


def settle(store: StoreIdentity, name: str, seconds: float = SETTLE_SECONDS) -> None:
    """Waits for the versions of `name` that were logged on this machine and are not there yet, so long at most.

    Why: a script that uses what another one logged a moment ago must not get the version before.
    """
    deadline = clock.monotonic() + seconds
    for job in jobs(store.path) if store.writable else ():
        with contextlib.suppress(OSError, DamageError, WaitTimeoutError, Error):
            if job.kind == "artifact" and read_job(job).get("name") == name:
                left = max(deadline - clock.monotonic(), 0.0)
                wait_for(store, name, job.path, functools.partial(_is_done, job.path), left)


def settle_name(store: StoreIdentity, text: str) -> None:
    """`settle` before ``name:alias`` is looked up; not for a version that is there, which nothing can change."""
    name, _, alias = text.rpartition("/")[2].partition(":")
    number = parse_version(alias)
    if number is None or number not in Shelf(store.path).numbers(name):
        settle(store, name)


def _is_done(path: str) -> bool:
    return not DISK.exists(path)


def _is_served(store: str) -> bool:
    from ..transport import known_lock_path

    lock = known_lock_path(store)
    return bool(lock) and is_locked(lock)


def _do(store: StoreIdentity, name: str, path: str, deadline: float) -> None:
    """Does the job as the keeper would, unless somebody does."""
    job = next((job for job in jobs(store.path) if job.path == path), None)
    try:
        body = read_job(job) if job is not None else None
    except FileNotFoundError:
        return
    if job is None or body is None:
        return
    lock = claim(job)
    if lock is None:
        return
    try:
        make(store.path, body, lambda: clock.monotonic() < deadline)
        end_job(job)
    except Abandoned:
        pass
    except OSError as error:
        raise Error(f"artifact {name!r} cannot be stored now: {error}; the daemon's keeper tries again") from error
    finally:
        lock.release()
