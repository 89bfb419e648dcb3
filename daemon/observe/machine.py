"""The machine that a training runs on: what it is, and what it does now, whoever has it do that.

Rates are between two readings of counters that belong to the whole machine. In a container the kernel tells of the machine
too; what the container may have stands in its cgroup (`cgroup_memory`).
"""

from __future__ import annotations

import contextlib
import os
import platform as python_platform
from typing import Any

from daemon.observe.gpu import Gpus
from sdk import platform

_CGROUPS = "/sys/fs/cgroup"
# Version 1 of cgroups counts there, and says a number near 2**63 where there is no limit.
_OLD_EVENTS, _NO_LIMIT = "memory.oom_control", 1 << 60
# Traffic of these is none of a network's: a message to oneself, or counted once more at the device that carries it.
_NO_NETWORK = ("lo", "veth", "docker", "br-", "virbr", "cni", "flannel", "cali", "tap", "tun", "dummy")


def describe(gpus: Gpus | None = None) -> dict[str, Any]:
    """What the machine is, for the facts of a run (docs/system.md#facts)."""
    import psutil

    told: dict[str, Any] = {
        "host": platform.host_name(),
        "os": f"{python_platform.system()} {python_platform.release()}",
        "architecture": python_platform.machine(),
        "cpu": _cpu_name(),
        "cpu_count": psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        "cpu_threads": os.cpu_count() or 1,
        "memory_bytes": psutil.virtual_memory().total,
    }
    return {**told, **(gpus or Gpus()).describe()}


def _cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return python_platform.processor() or python_platform.machine()


class Machine:
    """The machine and the file system of one store. One thread."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._before: dict[str, float] = {}
        self._before_at = 0.0
        self._cpu_before: tuple[float, float] | None = None
        self._device = _block_device(store)

    def read(self, now: float) -> dict[str, float]:
        """Names of keys (docs/system.md#machine) to values. The first reading has no rates.

        Args:
            now: A clock that only goes forward, in seconds.
        """
        import psutil

        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        found: dict[str, float] = {
            "memory_used": memory.total - memory.available,
            "memory_available": memory.available,
            "memory_percent": memory.percent,
            "swap_used": swap.used,
        }
        with contextlib.suppress(OSError):
            found["load1"] = os.getloadavg()[0]
        with contextlib.suppress(OSError):
            disk = psutil.disk_usage(self._store)
            found |= {"disk_used": disk.used, "disk_free": disk.free, "disk_percent": disk.percent}
        found |= self._rates(now)
        cpu = self._cpu_percent()
        return found if cpu is None else {"cpu": cpu, **found}

    def _cpu_percent(self) -> float | None:
        """Of all CPUs together, since the reading before."""
        import psutil

        times = psutil.cpu_times()
        total = (
            sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        )  # in user and nice as well
        idle = times.idle + getattr(times, "iowait", 0.0)
        before, self._cpu_before = self._cpu_before, (total, idle)
        if before is None or total <= before[0]:
            return None
        busy = 1 - float(idle - before[1]) / float(total - before[0])
        return min(100.0, max(0.0, 100 * busy))

    def _rates(self, now: float) -> dict[str, float]:
        import psutil

        counters: dict[str, float] = {}
        with contextlib.suppress(Exception):  # a kernel that does not tell
            carriers = [
                counts
                for name, counts in psutil.net_io_counters(pernic=True).items()
                if not name.startswith(_NO_NETWORK)
            ]
            counters["network_sent_rate"] = sum(counts.bytes_sent for counts in carriers)
            counters["network_received_rate"] = sum(counts.bytes_recv for counts in carriers)
        if self._device is not None:
            with contextlib.suppress(OSError, ValueError, IndexError), open(self._device, encoding="ascii") as file:
                fields = file.read().split()
                # Sectors, which are of 512 bytes here whatever the disk's own are.
                counters["disk_read_rate"] = int(fields[2]) * 512
                counters["disk_write_rate"] = int(fields[6]) * 512
        elapsed, before = now - self._before_at, self._before
        self._before, self._before_at = counters, now
        if elapsed <= 0:
            return {}
        return {
            name: (value - before[name]) / elapsed
            for name, value in counters.items()
            if name in before and value >= before[name]
        }


def _block_device(path: str) -> str | None:
    """The kernel's file of counters of the disk that holds `path`; None where there is none: NFS, tmpfs, overlay."""
    try:
        device = os.stat(path).st_dev
    except OSError:
        return None
    counters = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat"
    return counters if os.path.exists(counters) else None


def cgroup_memory(pid: int) -> dict[str, int]:
    """What the cgroup of a process has of memory, may have, and how often something in it was killed for want of it.

    Of the innermost cgroup with a limit; {} where there is none. Of version 1 of cgroups, of the process's own one.
    """
    path = _cgroup(pid)
    while path is not None and path.startswith(_CGROUPS):
        limit = _read_number(os.path.join(path, "memory.max"))
        current = _read_number(os.path.join(path, "memory.current"))
        if limit is not None and current is not None:
            told = {"memory_used": current, "memory_limit": limit}
            kills = oom_kills(os.path.join(path, "memory.events"))
            return told if kills is None else {**told, "oom_kills": kills}
        path = os.path.dirname(path) if path != _CGROUPS else None
    events = memory_events(pid)
    return _old_memory(os.path.dirname(events), events) if events and events.endswith(_OLD_EVENTS) else {}


def _old_memory(path: str, events: str) -> dict[str, int]:
    limit = _read_number(os.path.join(path, "memory.limit_in_bytes"))
    current, kills = _read_number(os.path.join(path, "memory.usage_in_bytes")), oom_kills(events)
    if limit is None or current is None or limit >= _NO_LIMIT:
        return {}
    return {"memory_used": current, "memory_limit": limit, **({} if kills is None else {"oom_kills": kills})}


def _cgroup(pid: int) -> str | None:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("0::"):
                inside = line[3:].strip().lstrip("/")
                return os.path.normpath(os.path.join(_CGROUPS, inside)) if inside else _CGROUPS
    return None


def _read_number(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):  # "max": no limit
        return None


def memory_events(pid: int) -> str | None:
    """The file that counts the processes of a process's own cgroup that the OOM killer killed, of either version of cgroups."""
    path = _cgroup(pid)
    if path is not None and os.path.exists(found := os.path.join(path, "memory.events")):
        return found
    old = _old_cgroup(pid)
    found = os.path.join(old, _OLD_EVENTS) if old is not None else ""
    return found if os.path.exists(found) else None


def _old_cgroup(pid: int) -> str | None:
    """The directory of a process's memory cgroup of version 1."""
    with (
        contextlib.suppress(OSError, ValueError),
        open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file,
    ):
        for line in file:
            _, controllers, inside = line.strip().split(":", 2)
            if "memory" in controllers.split(","):
                found = os.path.normpath(os.path.join(_CGROUPS, "memory", inside.lstrip("/")))
                # In a container the path is the host's, and what is mounted there is the container's own.
                is_seen = found.startswith(_CGROUPS) and os.path.exists(found)
                return found if is_seen else os.path.join(_CGROUPS, "memory")
    return None


def oom_kills(path: str) -> int | None:
    """What such a file says; None: it is gone, or does not."""
    with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
        for line in file:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None
