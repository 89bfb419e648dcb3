"""What only trying shows: locks, the speed of writing and forcing, whose clock stamps files. Draft files, removed at once."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator

from daemon.doctor.finding import Finding, bad, note, ok, warn
from daemon.doctor.machine import Machine
from sdk import clock, platform
from sdk.errors import StoreError

_BLOCK = b"\xa5" * (1 << 20)
# Limit: 0.3 s together, and 64 MiB, whatever the disk is.
_WRITE_SECONDS = 0.12
_SYNC_SECONDS = 0.18
_BLOCKS_MAX = 64
_SYNC_SLOW_SECONDS = 0.2
_WRITE_SLOW = 20e6
_SKEW_SECONDS = 2.0


@contextlib.contextmanager
def draft(machine: Machine, directory: str) -> Iterator[tuple[int, str]]:
    """An empty file of ours (descriptor, path), gone afterwards."""
    path = machine.draft_path(directory)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor, path
    finally:
        os.close(descriptor)
        os.unlink(path)


def check_locks(machine: Machine) -> Iterator[Finding]:
    """Record locks tell who lives: on the sockets' directory, where it matters most, and on the store's file system."""
    runtime = platform.runtime_directory()
    trouble = try_lock(machine, runtime)
    if trouble:
        yield bad(f"{runtime}: {trouble}. Nobody can tell whether a daemon or a trainer lives", f"findmnt -T {runtime}")
    elsewhere = _trouble_of(machine)
    if elsewhere:
        yield note(
            f"{machine.place}: {elsewhere}. Logging needs none there; let only one process at a time carry a run "
            "(stepd sync)",
            "mount -o remount,flock …   # Lustre; on NFS without nolock and local_lock",
        )
    if not trouble and not elsewhere:
        yield ok(f"work in {runtime}{'' if elsewhere is None else ' and in the store'}")


def _trouble_of(machine: Machine) -> str | None:
    """With locks in the store; None where nothing can be written, as `store` and `disk` say."""
    try:
        return try_lock(machine, machine.place)
    except OSError:
        return None


def try_lock(machine: Machine, directory: str) -> str:
    """Takes a lock, and asks from another process who has it; "" when all is well."""
    path = machine.draft_path(directory)
    try:
        lock = platform.hold_lock(path)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            _remove(path)
            return f"record locks are not supported ({error.strerror})"
        raise
    if lock is None:
        return "a lock on a file that was just made is somebody else's"
    try:
        return "" if _seen_by_another(path) else "a lock is taken, and no other process sees it"
    finally:
        lock.release()
        _remove(path)


def _seen_by_another(path: str) -> bool:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if platform.lock_owner(path) is not None else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def remove_drafts(machine: Machine) -> None:
    """Those of checks that were killed."""
    directories = [machine.place, machine.shared]
    with contextlib.suppress(OSError, StoreError):
        directories.append(platform.runtime_directory())
    for directory in directories:
        with contextlib.suppress(OSError):
            for name in os.listdir(directory):
                if name.startswith(machine.trial) and name != machine.trial:
                    _remove(os.path.join(directory, name))


def check_disk(machine: Machine) -> Iterator[Finding]:
    """Speed of writing, time of an fsync, and whether the file system's clock is ours."""
    try:
        with draft(machine, machine.place) as (descriptor, _):
            rate = _write(descriptor)
            times = _force(descriptor)
            skew = os.fstat(descriptor).st_mtime - time.time()
    except OSError as error:
        yield bad(
            f"a file in {machine.place} cannot be written: {error.strerror}",
            f"ls -ld {machine.place}; df -h {machine.place}",
        )
        return
    yield judge_disk(rate, times)
    if abs(skew) > _SKEW_SECONDS:
        yield note(
            f"{machine.place} stamps files {abs(skew):.0f} s {'after' if skew > 0 else 'before'} this machine's time",
            "timedatectl set-ntp true   # here, and on the file server",
        )


def _write(descriptor: int) -> float:
    """Bytes per second into the kernel's cache, or as fast as a file system that has none takes them."""
    started, count = clock.monotonic(), 0
    while count < _BLOCKS_MAX and clock.monotonic() - started < _WRITE_SECONDS:
        os.pwrite(descriptor, _BLOCK, (count % 8) * len(_BLOCK))
        count += 1
    return count * len(_BLOCK) / max(clock.monotonic() - started, 1e-9)


def _force(descriptor: int) -> list[float]:
    """Seconds that each of some fsyncs of a block of 4 KiB took, in order of size; the first one's bulk left out."""
    os.fsync(descriptor)
    times: list[float] = []
    started = clock.monotonic()
    while not times or (len(times) < 50 and clock.monotonic() - started < _SYNC_SECONDS):
        before = clock.monotonic()
        os.pwrite(descriptor, _BLOCK[:4096], len(times) * 4096)
        os.fsync(descriptor)
        times.append(clock.monotonic() - before)
    return sorted(times)


def judge_disk(rate: float, times: list[float]) -> Finding:
    """What is said of bytes per second and of seconds for an fsync."""
    middle, worst = times[len(times) // 2], times[-1]
    text = f"writes {rate / 1e6:,.0f} MB/s, fsync {middle * 1e3:.2g} ms (worst of {len(times)}: {worst * 1e3:.2g})"
    if rate < _WRITE_SLOW:
        return warn(f"{text}: too slow for images and tensors", "export STEPD_DIR=/a/local/disk")
    if middle > _SYNC_SLOW_SECONDS:
        return note(f"{text}: what is stored is safe from power loss {middle * 5:.0f} s later; no call waits for it")
    return ok(text)
