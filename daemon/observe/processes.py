"""The processes of a training: its main process, their children, and what all of them use together.

One look at ``/proc`` tells of every process of the machine what a sample needs. Why not psutil's `children`: it makes the
same look once for each training, and asks each child again.

CPU time and bytes of I/O are sums that only grow: what a child has used is counted in its parent once it has ended and
was waited for, by the kernel, and by us.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

PROC = "/proc"
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Process(NamedTuple):
    """One line of the table.

    Attributes:
        started: In clock ticks since the boot; with the pid it names a process for ever.
        cpu_seconds: Of its own, and of its children that have ended.
        memory_bytes: Resident, shared pages included.
    """

    pid: int
    parent: int
    started: int
    cpu_seconds: float
    threads: int
    memory_bytes: int


class Usage(NamedTuple):
    """What the processes of a training use together.

    Attributes:
        read_bytes, written_bytes: What they had the disks do, since they started. None where we may not know.
        open_files: None where we may not know.
    """

    processes: int
    threads: int
    cpu_seconds: float
    memory_bytes: int
    read_bytes: int | None
    written_bytes: int | None
    open_files: int | None


def read_process(pid: int) -> Process | None:
    """One process; None if there is none."""
    try:
        with open(f"{PROC}/{pid}/stat", "rb", buffering=0) as file:
            line = file.read(4096)
    except OSError:
        return None
    # The name stands in parentheses, and may hold spaces and parentheses itself.
    fields = line[line.rfind(b")") + 2 :].split()
    try:
        ticks = int(fields[11]) + int(fields[12]) + int(fields[13]) + int(fields[14])
        return Process(
            pid, int(fields[1]), int(fields[19]), ticks / _TICKS, int(fields[17]), int(fields[21]) * _PAGE
        )  # fmt: skip
    except (IndexError, ValueError):
        return None


def read_processes() -> dict[int, Process]:
    """All processes that can be seen, by pid."""
    found = {}
    for name in os.listdir(PROC):
        if name.isdecimal() and (process := read_process(int(name))) is not None:
            found[process.pid] = process
    return found


def family(processes: Mapping[int, Process], roots: Mapping[int, int]) -> list[Process]:
    """The processes of a training.

    Args:
        roots: pid -> `Process.started` of those that log; a pid that another process has by now is not theirs.
    """
    children: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process.pid)
    found: dict[int, Process] = {}
    waiting = [pid for pid, started in roots.items() if pid in processes and processes[pid].started == started]
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found[pid] = processes[pid]
            waiting += children.get(pid, ())
    return list(found.values())


def usage(members: Iterable[Process]) -> Usage:
    """What some processes use together."""
    members = list(members)
    io = [read_io(process.pid) for process in members]
    known = [bytes_of for bytes_of in io if bytes_of is not None]
    files = [count for process in members if (count := _open_files(process.pid)) is not None]
    return Usage(
        len(members),
        sum(process.threads for process in members),
        sum(process.cpu_seconds for process in members),
        sum(process.memory_bytes for process in members),
        sum(read for read, _ in known) if known else None,
        sum(written for _, written in known) if known else None,
        sum(files) if files else None,
    )


def read_io(pid: int) -> tuple[int, int] | None:
    """(bytes read, bytes written) that a process and its ended children had disks do; None where we may not know."""
    try:
        with open(f"{PROC}/{pid}/io", "rb", buffering=0) as file:
            lines = dict(line.split(b": ") for line in file.read(4096).splitlines())
        return int(lines[b"read_bytes"]), int(lines[b"write_bytes"])
    except (OSError, KeyError, ValueError):
        return None


def _open_files(pid: int) -> int | None:
    try:
        return len(os.listdir(f"{PROC}/{pid}/fd"))
    except OSError:
        return None


def boot_time() -> float:
    """When the machine was booted, Unix seconds; 0 where that is not told."""
    try:
        with open(f"{PROC}/stat", encoding="ascii") as file:
            return next(float(line.split()[1]) for line in file if line.startswith("btime "))
    except (OSError, ValueError, IndexError, StopIteration):
        return 0.0


def started_at(process: Process) -> float:
    """When a process was started, Unix seconds, right to about a second."""
    return boot_time() + process.started / _TICKS


def visible_devices(pid: int) -> str | None:
    """CUDA_VISIBLE_DEVICES as the process was started with; None: unset, or we may not know."""
    try:
        with open(f"{PROC}/{pid}/environ", "rb") as file:
            entries = file.read(1 << 20).split(b"\0")
    except OSError:
        return None
    for entry in entries:
        if entry.startswith(b"CUDA_VISIBLE_DEVICES="):
            return entry.partition(b"=")[2].decode("utf-8", "replace")
    return None
