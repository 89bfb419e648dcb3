"""How the processes of a training ended, which only their parent is told: asked of the kernel, for them who ask afterwards.

The observer holds a descriptor of each process (a pidfd) from when it meets it. When the process has ended, kernels from 6.15 on say
through it what its parent got: the exit code, or the signal. On older ones a process that nobody has reaped yet says it in
/proc, which is a matter of luck. Beside it stand what the counters of its memory cgroup said in the last minute, and the lines of the
kernel's log about it. Of processes that left with exit code 0 the last ones are told when the run is over.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

from daemon.observe import machine
from sdk import clock
from sdk.platform.kernel_log import KernelLine, read_kernel_log

# Limit: descriptors; a node with more processes of one training tells of the first ones.
PROCESSES_MAX = 256
# So long after its end a process that nobody has reaped may still get to say how it ended.
PATIENCE_SECONDS = 4.0
_LINES_MAX = 8
_QUIET_MAX = 8
# Lines of the kernel's log, and what a cgroup counted, this long before an end may belong to it without naming the process.
_LINE_SECONDS = 60.0

# include/uapi/linux/pidfd.h: PIDFD_GET_INFO = _IOWR(0xFF, 11, struct pidfd_info), whose first version has 64 bytes: mask u64, …,
# exit_code i32 at 60.
_INFO = struct.Struct("<Q52xi")
_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11
_INFO_EXIT = 1 << 3
_STAT_FIELDS = 50


class _Watched(NamedTuple):
    """One process. `events`: the file that counts its cgroup's OOM kills; `met`: when, in Unix seconds."""

    pid: int
    stream: str
    rank: int | None
    descriptor: int
    events: str | None
    met: float
    started: str


class _Ended(NamedTuple):
    """That a process ended: when we saw it, by the clock that only goes forward and by the wall's, and the OOM kills until then."""

    at: float
    wall_ns: int
    kills: int | None


class _Kills:
    """How often the OOM killer killed in one cgroup, and when the count grew. A cgroup may hold others, and workers that may be killed."""

    def __init__(self, path: str) -> None:
        self._path = path
        first = machine.oom_kills(path)
        self._is_told = first is not None
        self._counts = [(float("-inf"), first)] if first is not None else []

    def look(self, now: float) -> None:
        found = machine.oom_kills(self._path)
        # A cgroup may be gone with its last process, and with it the count.
        self._is_told = found is not None
        if found is not None and (not self._counts or found != self._counts[-1][1]):
            self._counts.append((now, found))
        # What the count was a while ago is all that is compared with.
        while len(self._counts) > 1 and self._counts[1][0] <= now - _LINE_SECONDS:
            del self._counts[0]

    @property
    def lately(self) -> int | None:
        """By how much it grew in the last minute before the last look; None: it was not told then."""
        return max(0, self._counts[-1][1] - self._counts[0][1]) if self._is_told else None


class Ends:
    """The processes of one run.

    Attributes:
        told: What is known of those that ended, as it stands in the facts (docs/system.md#ends).
    """

    def __init__(self) -> None:
        self._watched: dict[int, _Watched] = {}
        self._ended: dict[int, _Ended] = {}
        self._kills: dict[str, _Kills] = {}
        self._quiet: list[dict[str, Any]] = []
        self.told: list[dict[str, Any]] = []

    def watch(self, pid: int, stream: str, rank: int | None) -> None:
        """Begins to watch a process, where the kernel lets us."""
        if pid in self._watched or len(self._watched) + len(self.told) >= PROCESSES_MAX:
            return
        with contextlib.suppress(OSError, AttributeError):
            descriptor = os.pidfd_open(pid)
            # Limit: the smallest free number is given, so half of all are in use. The rest is for the files of the runs.
            if descriptor >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2:
                os.close(descriptor)
                return
            events = machine.memory_events(pid)
            if events is not None and events not in self._kills:
                self._kills[events] = _Kills(events)
            self._watched[pid] = _Watched(pid, stream, rank, descriptor, events, clock.wall_ns() / 1e9, _stat(pid)[19])

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
        over = readable([each.descriptor for each in self._watched.values() if each.pid not in self._ended])
        # Behind that: the counter grows before its process ends.
        for kills in self._kills.values():
            kills.look(now)
        for each in self._watched.values():
            if each.descriptor in over:
                known = self._kills[each.events].lately if each.events is not None else None
                self._ended[each.pid] = _Ended(now, clock.wall_ns(), known)
        told: list[tuple[_Watched, int | None]] = []
        for each in [self._watched[pid] for pid in self._ended]:
            status = exit_status(each.pid, each.descriptor, each.started)
            if status is not None or last or now - self._ended[each.pid].at > PATIENCE_SECONDS:
                told.append((each, status))
        # Once for all that ended together, because a log may be long.
        lines = read_kernel_log(min(each.met for each, _ in told)) if any(status != 0 for _, status in told) else None
        for each, status in told:
            self._tell(each, status, lines)
        if last:
            # Why now: of one that said nothing before its end (os._exit, exec) it matters, and what did is most of them.
            self.told += self._quiet[-_QUIET_MAX:]
            self._quiet = []
        return len(self.told) > count

    def _tell(self, each: _Watched, status: int | None, lines: list[KernelLine] | None) -> None:
        os.close(each.descriptor)
        ended = self._ended.pop(each.pid)
        del self._watched[each.pid]
        told: dict[str, Any] = {
            "stream": each.stream,
            "pid": each.pid,
            "time_ns": ended.wall_ns,
            **status_facts(status),
        }
        if each.rank is not None:
            told["rank"] = each.rank
        if status == 0:
            self._quiet = [*self._quiet[-_QUIET_MAX:], told]
            return
        if ended.kills is not None:
            told["oom_kills"] = ended.kills
        if lines is not None:
            since_met = [line for line in lines if line.time >= each.met]
            chosen = chosen_lines(since_met, each.pid, ended.wall_ns / 1e9)
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


def readable(descriptors: Iterable[int], seconds: float = 0.0) -> set[int]:
    """Those that become readable within some seconds. Why not select: it takes no descriptor from 1024 on."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(1000 * seconds)}


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
