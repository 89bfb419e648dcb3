"""How the processes of a training ended, which only their parent is told: asked of the kernel, for them who ask afterwards.

The observer holds a descriptor of each process (a pidfd) from when it meets it. When the process has ended, kernels from 6.15 on say
through it what its parent got: the exit code, or the signal. On older ones a process that nobody has reaped yet says it in
/proc, which is a matter of luck. Beside it stand what the counters of its memory cgroup said before and after, and the lines of the
kernel's log about it. Nothing of this is written for a process that ended with exit code 0.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
from typing import Any, NamedTuple

from daemon.observe import machine
from sdk import clock
from sdk.platform.kernel_log import KernelLine, read_kernel_log

# Limit: descriptors; a node with more processes of one training tells of the first ones.
PROCESSES_MAX = 256
# So long after its end a process that nobody has reaped may still get to say how it ended.
PATIENCE_SECONDS = 4.0
_LINES_MAX = 8
# Lines of the kernel's log this long before an end may belong to it without naming the process.
_LINE_SECONDS = 60.0

# include/uapi/linux/pidfd.h: PIDFD_GET_INFO = _IOWR(0xFF, 11, struct pidfd_info), whose first version has 64 bytes: mask u64, …,
# exit_code i32 at 60.
_INFO = struct.Struct("<Q52xi")
_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11
_INFO_EXIT = 1 << 3
_STAT_FIELDS = 50


class _Watched(NamedTuple):
    """One process. `kills` is what the counter in the file `events` said when it was met; `ended` when we saw that it had."""

    pid: int
    stream: str
    rank: int | None
    descriptor: int
    events: str | None
    kills: int
    met: float
    started: str


class Ends:
    """The processes of one run.

    Attributes:
        told: What is known of those that ended, as it stands in the facts (docs/system.md#ends).
    """

    def __init__(self) -> None:
        self._watched: dict[int, _Watched] = {}
        self._ended: dict[int, float] = {}
        self.told: list[dict[str, Any]] = []

    def watch(self, pid: int, stream: str, rank: int | None) -> None:
        """Begins to watch a process, where the kernel lets us."""
        if pid in self._watched or len(self._watched) + len(self.told) >= PROCESSES_MAX:
            return
        with contextlib.suppress(OSError, AttributeError):
            descriptor = os.pidfd_open(pid)
            events = machine.memory_events(pid)
            kills = (machine.oom_kills(events) if events else None) or 0
            self._watched[pid] = _Watched(
                pid, stream, rank, descriptor, events, kills, clock.wall_ns() / 1e9, _stat(pid)[19]
            )

    @property
    def descriptors(self) -> list[int]:
        """Those that become readable when a process ends."""
        return [each.descriptor for each in self._watched.values() if each.pid not in self._ended]

    @property
    def is_waiting(self) -> bool:
        """Whether a process has ended and not said yet how."""
        return bool(self._ended)

    def look(self, now: float, *, last: bool = False) -> bool:
        """Whether something new is told.

        Args:
            now: A clock that only goes forward, in seconds.
            last: Nobody looks again: of those that have ended what is known now is told.
        """
        count = len(self.told)
        for each in [*self._watched.values()]:
            if each.pid not in self._ended and _has_ended(each.descriptor):
                self._ended[each.pid] = now
            if each.pid in self._ended:
                status = exit_status(each.pid, each.descriptor, each.started)
                if status is not None or last or now - self._ended[each.pid] > PATIENCE_SECONDS:
                    self._tell(each, status)
        return len(self.told) > count

    def _tell(self, each: _Watched, status: int | None) -> None:
        os.close(each.descriptor)
        del self._watched[each.pid], self._ended[each.pid]
        if status == 0:
            return
        now_ns = clock.wall_ns()
        told: dict[str, Any] = {"stream": each.stream, "pid": each.pid, "time_ns": now_ns, **status_facts(status)}
        if each.rank is not None:
            told["rank"] = each.rank
        kills = machine.oom_kills(each.events) if each.events else None
        if kills is not None:
            told["oom_kills"] = max(0, kills - each.kills)
        lines = read_kernel_log(each.met)
        if lines is not None:
            chosen = chosen_lines(lines, each.pid, now_ns / 1e9)
            told["kernel"] = [[round(line.time * 1e9), line.text] for line in chosen]
        self.told.append(told)

    def close(self) -> None:
        for each in self._watched.values():
            os.close(each.descriptor)
        self._watched.clear()
        self._ended.clear()


def status_facts(status: int | None) -> dict[str, Any]:
    """What a wait status says: `signal` (and `core`, where memory was dumped) or `exit_code`."""
    if status is None:
        return {}
    signal = status & 0x7F
    if not signal:
        return {"exit_code": status >> 8 & 0xFF}
    return {"signal": signal, **({"core": True} if status & 0x80 else {})}


def chosen_lines(lines: list[KernelLine], pid: int, ended: float) -> list[KernelLine]:
    """Those that name the process, and the last ones shortly before its end that name none, or another one's memory."""
    named = [line for line in lines if line.pid == pid]
    near = [line for line in lines if line.pid != pid and ended - line.time < _LINE_SECONDS]
    return sorted([*named[-_LINES_MAX:], *near[-_LINES_MAX:]])[-_LINES_MAX:]


def _has_ended(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


def exit_status(pid: int, descriptor: int, started: str) -> int | None:
    """The wait status of a process that has ended; None: it is not told (yet).

    Args:
        started: When it was started, as /proc/PID/stat says it: another process may have its number by now.
    """
    told = _told_status(descriptor)
    if told is not None:
        return told
    fields = _stat(pid)
    return int(fields[49]) if fields[0] == "Z" and fields[19] == started and fields[49].isdecimal() else None


def _told_status(descriptor: int) -> int | None:
    info = bytearray(_INFO.pack(_INFO_EXIT, 0))
    try:
        fcntl.ioctl(descriptor, _GET_INFO, info)
    except OSError:
        return None
    mask, status = _INFO.unpack(info)
    return status if mask & _INFO_EXIT else None


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name: the state is the first, the exit status, of one that nobody has reaped, the last."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
        if len(fields) >= _STAT_FIELDS:
            return fields
    return [""] * _STAT_FIELDS
