"""What the kernel lets our processes have: limits of the shell, and of the cgroup that a container or a job is."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from typing import NamedTuple

from daemon.doctor import lines
from daemon.doctor.finding import Finding, note, ok, warn
from daemon.doctor.machine import Machine
from sdk._greeting import bytes_text, count

_INFINITY = resource.RLIM_INFINITY


class Limit(NamedTuple):
    """A limit of the shell, and the least that is comfortable."""

    name: str
    number: int
    letter: str
    least: int
    why: str


# Limit: a daemon was seen with 14 descriptors, and 7 for each trainer: 1024 serve 140. Its threads and its workers' are some 20.
LIMITS = (
    Limit("nofile", resource.RLIMIT_NOFILE, "n", 1024, "a daemon takes seven files for each process that logs"),
    Limit("nproc", resource.RLIMIT_NPROC, "u", 512, "a daemon and its workers are five processes with some 20 threads"),
    Limit("as", resource.RLIMIT_AS, "v", 16 << 30, "rings and a CUDA context are address space"),
    Limit("fsize", resource.RLIMIT_FSIZE, "f", 4 << 30, "a file that grows beyond it cannot be written"),
    Limit("cpu", resource.RLIMIT_CPU, "t", 30 * 86400, "the daemon is killed when it has used that many seconds"),
)
# What is told without a judgement.
_TOLD = (("memlock", resource.RLIMIT_MEMLOCK), ("core", resource.RLIMIT_CORE))


def check_limits(
    machine: Machine, getrlimit: Callable[[int], tuple[int, int]] = resource.getrlimit
) -> Iterator[Finding]:
    """Limits that a shell, a scheduler or a container gave."""
    fine: list[tuple[str, int]] = []
    for limit in LIMITS:
        soft, hard = getrlimit(limit.number)
        # The daemon raises this one to what is hard.
        have = hard if limit.name == "nofile" else soft
        if have != _INFINITY and have < limit.least:
            yield warn(
                f"{limit.name} is {have:,}: {limit.why}",
                *lines.limit(machine, limit.name, limit.letter, limit.least // (1024 if limit.letter in "vf" else 1)),
            )
        else:
            fine.append((limit.name, have))
    fine += [(name, getrlimit(number)[0]) for name, number in _TOLD]
    told = [f"{name} {value:,}" for name, value in fine if value != _INFINITY]
    yield ok(", ".join([*told, "all others unlimited"]))


_PROCESSES_LEFT_MIN = 64
_MEMORY_LEFT_MIN = 1 << 30
# cgroups of version 1 say "no limit" by a number of this size.
_NO_LIMIT = 1 << 60


class Group(NamedTuple):
    """What the cgroup of this process may have and has; None: no limit, or not told."""

    memory_max: int | None = None
    memory: int | None = None
    processes_max: int | None = None
    processes: int | None = None
    oom_kills: int = 0


def read_group(machine: Machine) -> Group:
    """Of the innermost cgroup with a limit, of either version."""
    found: dict[str, int | None] = {}
    for line in machine.read("/proc/self/cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        bases = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] if not controllers else []
        bases += [f"/sys/fs/cgroup/{controllers}"] if controllers else []
        for base in bases:
            _read_upwards(machine, base, path.strip(), found)
    return Group(
        found.get("memory_max"), found.get("memory"), found.get("processes_max"), found.get("processes"),
        found.get("oom_kills") or 0,
    )  # fmt: skip


# Limit's file -> (field, its use, the use's field), of version 2, then of version 1.
_FILES = {
    "memory.max": ("memory_max", "memory.current", "memory"),
    "memory.limit_in_bytes": ("memory_max", "memory.usage_in_bytes", "memory"),
    "pids.max": ("processes_max", "pids.current", "processes"),
}


def _read_upwards(machine: Machine, base: str, path: str, found: dict[str, int | None]) -> None:
    inside = path.strip("/")
    while True:
        directory = f"{base}/{inside}".rstrip("/")
        for name, (field, use, use_field) in _FILES.items():
            limit = machine.number(f"{directory}/{name}")
            if limit is not None and limit < _NO_LIMIT and field not in found:
                found[field], found[use_field] = limit, machine.number(f"{directory}/{use}")
        for line in machine.read(f"{directory}/memory.events").splitlines():
            if line.startswith("oom_kill ") and "oom_kills" not in found:
                found["oom_kills"] = int(line.split()[1])
        if not inside:
            return
        inside = inside.rpartition("/")[0]


def check_group(machine: Machine) -> Iterator[Finding]:
    """Memory and processes of the container or job."""
    group = read_group(machine)
    told = []
    if group.memory_max is not None:
        used = group.memory or 0
        told.append(f"{bytes_text(used)} of {bytes_text(group.memory_max)} memory, /dev/shm included")
        if group.memory_max - used < _MEMORY_LEFT_MIN:
            yield warn(f"{told[-1]}: the OOM killer is near", *_more_memory(machine, group.memory_max))
    if group.processes_max is not None:
        used = group.processes or 0
        told.append(f"{used:,} of {group.processes_max:,} processes")
        if group.processes_max - used < _PROCESSES_LEFT_MIN:
            yield warn(f"{told[-1]}: a daemon and its workers may not start", *_more_processes(machine))
    if group.oom_kills:
        yield note(f"{count(group.oom_kills, 'process')} of this cgroup was killed for want of memory", "stepd why RUN")
    yield ok(", ".join(told) or "no limit of memory or processes")


def _more_memory(machine: Machine, limit: int) -> tuple[str, ...]:
    gigabytes = max(2 * limit >> 30, 2)
    if machine.container in ("docker", "podman"):
        return (f"{machine.container} run --memory={gigabytes}g …", f"mem_limit: {gigabytes}g   # compose")
    if machine.container == "kubernetes":
        return (f"resources: {{ limits: {{ memory: {gigabytes}Gi }} }}",)
    if machine.in_slurm:
        return (f"#SBATCH --mem={gigabytes}G",)
    return (f"systemctl set-property --runtime user-$UID.slice MemoryMax={gigabytes}G",)


def _more_processes(machine: Machine) -> tuple[str, ...]:
    if machine.container in ("docker", "podman"):
        return (f"{machine.container} run --pids-limit=4096 …",)
    return ("systemctl set-property --runtime user-$UID.slice TasksMax=infinity",)
