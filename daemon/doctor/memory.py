"""Shared memory, where rings and large values on their way lie, and the directory of sockets and locks."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator

from daemon.doctor import lines
from daemon.doctor.finding import Finding, bad, note, ok, warn
from daemon.doctor.machine import Machine
from sdk import platform
from sdk._greeting import count
from sdk.errors import StoreError
from sdk.journal.drain import ring_paths
from sdk.journal.ring import SHARE_MAX, fitting_capacity
from sdk.settings import Settings

_LOST = "records wait in private memory, which does not survive kill -9 of the trainer"
# Limit: below it an image of a few MiB finds no room in our share, and costs one copy more.
_STAGING_MIN = 128 << 20


def check_shared_memory(machine: Machine) -> Iterator[Finding]:
    """Size, what is free, and the ring that a run would get."""
    base = machine.shared
    mount = machine.mount_of(os.path.realpath(base))
    if not os.path.isdir(base):
        yield warn(f"there is no {base}: {_LOST}", *lines.shared_memory(machine))
        return
    if mount is not None and mount.kind not in ("tmpfs", "ramfs", "hugetlbfs"):
        yield warn(
            f"{base} is {mount.kind}, not memory: each log() may wait for a disk", "unset STEPD_SHARED_MEMORY_DIR"
        )
    try:
        used = platform.shared_used(platform.shared_directory(base))
    except StoreError as error:
        yield bad(f"{error.message}. {_LOST}", *([error.hint] if error.hint else []))
        return
    except OSError as error:
        yield bad(f"{base} cannot be used ({error.strerror}): {_LOST}", f"ls -ld {shlex.quote(base)}")
        return
    yield judge_shared_memory(machine, platform.shared_size(base), platform.shared_free(base), used)


def judge_shared_memory(machine: Machine, size: int, free: int, used: int) -> Finding:
    """What is said of so many bytes, of which all rings of this user take `used`."""
    wanted = Settings.ring_bytes
    ring = fitting_capacity(wanted, size, used)
    text = f"{machine.shared} has {_binary(size)}, {_binary(free)} free"
    if not ring or ring > free:
        return warn(f"{text}: no room for a ring; {_LOST}", *lines.shared_memory(machine))
    share = f"a ring of {_binary(ring)}"
    if ring < wanted:
        return warn(
            f"{text}: {share} instead of {_binary(wanted)}, and large values cost one more copy",
            *lines.shared_memory(machine),
        )
    if size // SHARE_MAX < _STAGING_MIN:
        return note(
            f"{text}: {share}; of large values {_binary(size // SHARE_MAX)} on their way",
            *lines.shared_memory(machine),
        )
    if free < size // SHARE_MAX:
        return note(
            f"{text}: others have taken most of it; {share}", f"du -sh {shlex.quote(machine.shared)}/* | sort -h | tail"
        )
    return ok(f"{text}; {share}, and {_binary(size // SHARE_MAX)} for all your runs")


def _binary(size: int) -> str:
    """As the tools for it say it: docker's 64 MB are 64 MiB."""
    if size >= 10 << 30:
        return f"{size / (1 << 30):,.1f} GiB"
    return f"{size >> 20:,} MiB" if size >> 20 else f"{size >> 10:,} KiB"


def check_rings(machine: Machine) -> Iterator[Finding]:
    """Rings that trainers of this store left when they were killed."""
    paths: list[str] = []
    with contextlib.suppress(OSError, StoreError):
        paths = ring_paths(machine.shared, platform.store_digest(machine.store))
    dead = [path for path in paths if not platform.is_locked(path)]
    if dead:
        yield note(
            f"{count(len(dead), 'ring')} of trainers that were killed wait here: the next daemon stores what is in them",
            f"stepd start --dir {shlex.quote(machine.store)}   # or stepd repair --rings",
        )
    else:
        yield ok(f"{count(len(paths), 'ring')} of this store, none of a dead trainer" if paths else "none wait here")


def check_sockets(machine: Machine) -> Iterator[Finding]:
    """The directory of sockets and locks, which trainers and daemon must both find."""
    try:
        path = platform.runtime_directory()
    except StoreError as error:
        yield bad(f"{error.message}. No daemon can serve", *([error.hint] if error.hint else []))
        return
    except OSError as error:
        yield bad(f"no directory for sockets can be made ({error}). No daemon can serve", "ls -ld /tmp /run/user/$UID")
        return
    yield judge_sockets(machine, path)


def judge_sockets(machine: Machine, path: str) -> Finding:
    """What is said of this directory; that below /run/user goes when its user logs out, unless they linger."""
    user = machine.environ.get("USER") or machine.environ.get("LOGNAME") or ""
    below_run = path.startswith("/run/user/")
    if below_run and machine.environ.get("SSH_CONNECTION") and not machine.exists(f"/var/lib/systemd/linger/{user}"):
        return note(
            f"{path} goes when you log out: a run in tmux or nohup then loses its daemon", "loginctl enable-linger"
        )
    return ok(path)
