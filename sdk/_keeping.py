"""Jobs for the keeper: what a trainer leaves to be copied and hashed while it goes on.

A job is one JSON file ``<store>/keeping/<time>-<random>.<machine>.<kind>.json``. Whoever puts it there returns at once; the
daemon of that machine sees it when it looks around and starts the keeper (`daemon.keeper`), which does it and removes the
file. With no daemon it waits for the next one. A job appears whole, by rename, and is not forced to the disk: after a power
loss it may be gone, and so may what it was about.

The name says whose it is, because the paths in a job mean nothing on another machine. Doing a job twice must do no harm: its
doer may be killed between the work and the removal, and on some network file systems nobody can be kept from doing it at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from . import clock
from .errors import DamageError
from .files import DISK, Files, read_whole, write_unforced
from .ids import hex_u64, random_u64
from .location import StoreIdentity, check_store
from .platform import HeldLock, hold_lock, machine_id
from .segment.naming import KEEPING, machine_tag

JOB_SUFFIX = ".json"
BAD_SUFFIX = ".bad"
# Limit: 100 000 files of an artifact at 300 bytes each are 30 MB.
JOB_BYTES_MAX = 256 << 20
_JOB = re.compile(r"([0-9]{20})-([0-9a-f]{16})\.([0-9a-f]{8}|unknown)\.([a-z]{1,32})\.json", re.ASCII)


class Abandoned(Exception):
    """Whoever does a job is to end; the job stays and is begun again by the next one."""


class Job(NamedTuple):
    """One job that waits. `kind` says who does it (`daemon.keep.KINDS`), `created_ns` is Unix time."""

    path: str
    kind: str
    created_ns: int
    size: int


def keeping_path(store: str) -> str:
    return os.path.join(store, KEEPING)


def put_job(store: StoreIdentity, kind: str, body: Mapping[str, Any], files: Files = DISK) -> str:
    """Leaves a job and returns the path of its file; takes about 0.1 ms and waits for nothing but the file system.

    Args:
        kind: Lower-case letters.
        body: Strings, numbers, None, lists and dicts. A path may hold surrogate escapes.

    Raises:
        OSError: The store takes no file now.
    """
    import json

    created_ns = clock.wall_ns()
    name = f"{created_ns:020d}-{hex_u64(random_u64())}.{_own_tag() or 'unknown'}.{kind}.json"
    assert _JOB.fullmatch(name), name
    path = os.path.join(keeping_path(store.path), name)
    data = json.dumps(body, separators=(",", ":")).encode("ascii")
    if len(data) > JOB_BYTES_MAX:
        raise OSError(errno.EFBIG, f"a job of {len(data)} bytes, at most {JOB_BYTES_MAX}", path)
    # Invariant: nothing is made on the bare mount point of a store that is away.
    check_store(store, files)
    files.make_directory(os.path.dirname(path))
    write_unforced(files, path, data)
    return path


def jobs(store: str, files: Files = DISK) -> list[Job]:
    """The jobs of this machine that wait, oldest first. Only names are looked at."""
    own = (_own_tag(), "unknown")
    found = []
    for name, size, _ in files.entries(keeping_path(store)):
        match = _JOB.fullmatch(name)
        if match is not None and match[3] in own:
            found.append(Job(os.path.join(keeping_path(store), name), match[4], int(match[1]), size))
    return found


def read_job(job: Job, files: Files = DISK) -> dict[str, Any]:
    """What was put.

    Raises:
        OSError: The file cannot be read, or is gone: somebody else did it.
        DamageError: It is no job.
    """
    import json

    try:
        body = json.loads(read_whole(files, job.path, JOB_BYTES_MAX))
    except (ValueError, RecursionError) as error:
        raise DamageError(f"cannot read job {job.path!r}: {error}") from None
    if not isinstance(body, dict):
        raise DamageError(f"cannot read job {job.path!r}: is {type(body).__name__}, expected a map")
    return body


def claim(job: Job) -> HeldLock | None:
    """The right to do a job on this machine until it is released; None while somebody else does it, or when it is done."""
    return hold_lock(job.path, create=False)


def end_job(job: Job, files: Files = DISK) -> None:
    """Removes a job that is done."""
    with contextlib.suppress(FileNotFoundError):
        files.remove(job.path)


def set_aside(job: Job, files: Files = DISK) -> None:
    """Renames a job that nobody can do; it stays for whoever looks."""
    with contextlib.suppress(OSError):
        files.rename(job.path, job.path + BAD_SUFFIX)


def _own_tag() -> str:
    return machine_tag(machine_id())
