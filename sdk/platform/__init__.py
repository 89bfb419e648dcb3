"""What differs between operating systems: shared memory, locks, endpoints, liveness, detached processes.

One file per system with the same names; everything above imports from here and never asks which system it is on.
Linux is the one that is tested. What belongs here needs the kernel; ordinary files are `sdk.files`.
"""

from __future__ import annotations

import sys

if sys.platform == "win32":
    raise ImportError("stepd needs POSIX shared memory and record locks; Windows is not supported yet")

from .linux import (
    HeldLock,
    boot_id,
    create_shared,
    detach_from_starter,
    forget_lock,
    hold_lock,
    host_name,
    identity,
    is_descriptor_locked,
    is_locked,
    lock_owner,
    machine_id,
    open_regular,
    open_shared,
    own_name,
    pid_namespace,
    process_lives,
    raise_descriptor_limit,
    runtime_directory,
    shared_directory,
    shared_free,
    shared_size,
    shared_used,
    spawn_detached,
    store_digest,
    touch,
)

__all__ = [
    "HeldLock",
    "boot_id",
    "create_shared",
    "detach_from_starter",
    "forget_lock",
    "hold_lock",
    "host_name",
    "identity",
    "is_descriptor_locked",
    "is_locked",
    "lock_owner",
    "machine_id",
    "open_regular",
    "open_shared",
    "own_name",
    "pid_namespace",
    "process_lives",
    "raise_descriptor_limit",
    "runtime_directory",
    "shared_directory",
    "shared_free",
    "shared_size",
    "shared_used",
    "spawn_detached",
    "store_digest",
    "touch",
]
