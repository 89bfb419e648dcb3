"""The threads of a process as the kernel sees them, for a process of the same user: state, what it waits for, CPU time.

Everything is read once and may be gone the next moment; what may not be read is "" or 0.
"""

from __future__ import annotations

import os
from typing import NamedTuple

# Limit: a process of a DataLoader has some dozens; nobody reads a thousand.
_TASKS_MAX = 512
_TICKS = os.sysconf("SC_CLK_TCK")
# Numbers of x86-64 and of arm64, of what threads are found waiting in.
_CALLS = {
    "x86_64": {0: "read", 1: "write", 7: "poll", 17: "pread64", 18: "pwrite64", 23: "select", 34: "pause", 35: "nanosleep", 42: "connect",
               43: "accept", 44: "sendto", 45: "recvfrom", 46: "sendmsg", 47: "recvmsg", 61: "wait4", 72: "fcntl", 74: "fsync",
               75: "fdatasync", 202: "futex", 230: "clock_nanosleep", 232: "epoll_wait", 247: "waitid", 257: "openat",
               270: "pselect6", 271: "ppoll", 281: "epoll_pwait", 16: "ioctl"},
    "aarch64": {22: "epoll_pwait", 25: "fcntl", 29: "ioctl", 56: "openat", 63: "read", 64: "write", 67: "pread64", 68: "pwrite64",
                72: "pselect6", 73: "ppoll", 82: "fsync", 83: "fdatasync", 95: "waitid", 98: "futex", 101: "nanosleep",
                115: "clock_nanosleep", 202: "accept", 203: "connect", 206: "sendto", 207: "recvfrom", 211: "sendmsg",
                212: "recvmsg", 260: "wait4"},
}  # fmt: skip


class Task(NamedTuple):
    """One thread.

    Attributes:
        state: The kernel's letter: R computes, S sleeps, D waits for a device or file system, T is stopped, t is traced, Z is dead.
        waits_in: The function of the kernel that it sleeps in; "" where it does not, or is not told.
        call: The system call it is in, by name where that is known; "" outside of one.
        cpu_seconds: Used so far.
    """

    id: int
    name: str
    state: str
    waits_in: str
    call: str
    cpu_seconds: float


def tasks_of(pid: int) -> list[Task]:
    """The threads of a process, the first one first; [] where it is gone."""
    try:
        ids = sorted(map(int, os.listdir(f"/proc/{pid}/task")), key=lambda each: (each != pid, each))
    except (OSError, ValueError):
        return []
    return [task for each in ids[:_TASKS_MAX] if (task := _task(pid, each)) is not None]


def _task(pid: int, task: int) -> Task | None:
    where = f"/proc/{pid}/task/{task}/"
    head, _, tail = _text(where + "stat").rpartition(")")
    fields = tail.split()
    try:
        state, cpu_seconds = fields[0], (int(fields[11]) + int(fields[12])) / _TICKS
    except (IndexError, ValueError):
        return None
    waits_in = _text(where + "wchan")
    return Task(task, head.partition("(")[2], state, "" if waits_in == "0" else waits_in, _call(where), cpu_seconds)


def _call(where: str) -> str:
    words = _text(where + "syscall").split()
    if not words or not words[0].isdecimal():
        return ""
    return _CALLS.get(os.uname().machine, {}).get(int(words[0]), f"system call {words[0]}")


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(65536).strip()
    except OSError:
        return ""
