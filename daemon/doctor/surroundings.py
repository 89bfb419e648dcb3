"""The container, the launcher, the GPUs, the clock, the kernel, and who may look into a process."""

from __future__ import annotations

import ctypes
import os
import pwd
import time
from collections.abc import Iterator

from daemon.doctor import lines
from daemon.doctor.finding import Finding, bad, note, ok, warn
from daemon.doctor.machine import Machine
from daemon.doctor.probing import draft
from sdk import platform
from sdk._greeting import count
from sdk._launcher import find_launch

# What reaps what others leave, as PID 1 of a container.
_INITS = (
    "systemd",
    "init",
    "tini",
    "docker-init",
    "dumb-init",
    "catatonit",
    "s6-svscan",
    "runit",
    "conmon",
    "pause",
    "podman-init",
)
# Variables by which clusters offer a disk of the node.
SCRATCH = ("SLURM_TMPDIR", "LOCAL_SCRATCH", "LOCALSCRATCH", "SCRATCH_LOCAL", "JOB_SCRATCH", "PBS_JOBFS", "TMPDIR")
_NODE_DISKS = frozenset("ext2 ext3 ext4 xfs btrfs zfs f2fs".split())
# What a look at the clock costs well below a microsecond with.
_FAST_CLOCKS = frozenset(
    "tsc kvm-clock arch_sys_counter hyperv_clocksource_tsc_page xen timebase riscv_clocksource".split()
)
_TIME_ERROR = 5  # adjtimex(2): nobody keeps the clock in time
_CAP_SYS_PTRACE = 19
_EARLIEST = 1_700_000_000  # a clock that says less was never set


def check_container(machine: Machine) -> Iterator[Finding]:
    """Which kind, its root, its first process, HOME and the user's name."""
    home = os.path.expanduser("~")
    if not os.access(home, os.W_OK | os.X_OK) and not machine.environ.get("STEPD_DIR"):
        yield note(f"HOME is {home}, where you may not write", *lines.volume(machine))
    if not _has_name(machine.uid):
        yield note(f"uid {machine.uid} has no name here; all containers of one store need the same uid")
    if not machine.container:
        yield ok("none")
        return
    root = next((mount for mount in reversed(machine.mounts) if mount.point == "/"), None)
    more = "; its root is read-only, which is well" if root is not None and "ro" in root.options else ""
    first = machine.read("/proc/1/comm").strip()
    if machine.container in ("docker", "podman") and first and first not in _INITS:
        yield note(
            f"PID 1 is {first}: it reaps nothing, and a SIGTERM that it does not handle is ignored",
            f"{machine.container} run --init …",
            "init: true   # compose",
        )
    yield ok(f"{machine.container}{more}")


def _has_name(uid: int) -> bool:
    try:
        return bool(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return False


def check_launcher(machine: Machine) -> Iterator[Finding]:
    """Ranks, the run they log into, and the disks that the scheduler offers."""
    environ = machine.environ
    launch = find_launch(environ)
    mount = machine.mount_of(machine.place)
    offers = [f"{name}={environ[name]}" for name in SCRATCH if _is_node_disk(machine, environ.get(name, ""))]
    if launch.is_parallel and not environ.get("STEPD_RUN_ID") and not environ.get("WANDB_RUN_ID"):
        job = "$SLURM_JOB_ID" if machine.in_slurm else "a-name-of-the-job"
        yield note(
            f"rank {launch.rank} of {launch.world_size}: each rank is a run of its own, in the group {launch.job_id}",
            f"export STEPD_RUN_ID={job}   # one run, with a stream for each rank",
        )
    if machine.in_slurm and offers and mount is not None and mount.kind not in _NODE_DISKS:
        yield note(f"the store is on {mount.kind}; this node offers {offers[0]}", *lines.node_disk(machine))
    if launch.rank is not None or launch.job_id:
        which = f"rank {launch.rank} of {launch.world_size}, " if launch.rank is not None else ""
        yield ok(f"{which}job {launch.job_id or 'without a name'}{f'; node disk {offers[0]}' if offers else ''}")
    else:
        yield ok("none: one process logs by itself")


def _is_node_disk(machine: Machine, path: str) -> bool:
    mount = machine.mount_of(os.path.realpath(path)) if path and os.path.isdir(path) else None
    return mount is not None and mount.kind in _NODE_DISKS


def check_gpu(machine: Machine) -> Iterator[Finding]:
    """The driver, the library that asks it, and what is seen."""
    from daemon.observe.gpu import Gpus, has_nvidia
    from daemon.settings import observes

    told = Gpus().describe()
    gpus = told.get("gpus") or []
    if not observes(machine.environ):
        yield note("STEPD_OBSERVE=0: neither GPUs nor the machine are sampled", "unset STEPD_OBSERVE")
    if message := told.get("gpu_note"):
        text, _, cure = message.partition(". Try: ")
        yield (note if gpus or not has_nvidia() else warn)(text, *([cure] if cure else []))
    if gpus:
        names = {gpu["name"] for gpu in gpus}
        visible = machine.environ.get("CUDA_VISIBLE_DEVICES")
        chosen = f"; CUDA_VISIBLE_DEVICES={visible}" if visible is not None else ""
        yield ok(f"{count(len(gpus), 'GPU')}, {', '.join(sorted(names))}, driver {told.get('gpu_driver')}{chosen}")
    elif not told.get("gpu_note"):
        yield ok("none seen")


def check_clock(machine: Machine) -> Iterator[Finding]:
    """Whether it goes forward, whether anybody keeps it in time, and how it is read."""
    yield from judge_clock(_backward(), time.time(), _adjtimex(), _source(machine))


def judge_clock(backward: float, now: float, state: int, source: str) -> Iterator[Finding]:
    """What is said of a clock that went back so many seconds while it was looked at."""
    fine = True
    cure = "timedatectl set-ntp true"
    if now < _EARLIEST:
        fine = False
        yield bad(f"the clock says {time.strftime('%Y-%m-%d', time.gmtime(now))}: runs are sorted wrongly", cure)
    if backward:
        fine = False
        yield note(
            f"the clock went back by {backward:.3g} s within a moment. Order in a run does not depend on it", cure
        )
    if state == _TIME_ERROR:
        fine = False
        yield note("nobody keeps the clock in time: `--x time` of runs of several machines may be apart", cure)
    if source and source not in _FAST_CLOCKS:
        fine = False
        yield note(
            f"the clock is read from {source}, which is slow: each log() reads it once",
            "cat /sys/devices/system/clocksource/clocksource0/available_clocksource",
        )
    if fine:
        yield ok(f"goes forward{'' if state < 0 else ', kept in time'}{f', read from {source}' if source else ''}")


def _source(machine: Machine) -> str:
    return machine.read("/sys/devices/system/clocksource/clocksource0/current_clocksource").strip()


def _backward() -> float:
    """The largest step back among some thousand looks, in seconds."""
    before, largest = time.time_ns(), 0
    for _ in range(5000):
        now = time.time_ns()
        largest, before = max(largest, before - now), now
    return largest / 1e9


def _adjtimex() -> int:
    """What adjtimex(2) says of the clock; -1: it may not be asked."""
    try:
        # struct timex has 208 bytes; all zero asks and changes nothing.
        return int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512)))
    except (OSError, AttributeError):
        return -1


def check_kernel(machine: Machine) -> Iterator[Finding]:
    """What we use of it."""
    missing = []
    try:
        os.close(os.memfd_create("stepd-doctor"))
    except (OSError, AttributeError):
        missing.append("memfd_create (the first call of a run then waits for pages)")
    try:
        with draft(machine, machine.shared) as (descriptor, _):
            os.posix_fallocate(descriptor, 0, 4096)
    except OSError as error:
        missing.append(f"posix_fallocate in {machine.shared} ({error.strerror})")
    if not platform.boot_id() or not platform.pid_namespace():
        missing.append("/proc (who lives after a restart is then told by locks alone)")
    if not platform.machine_id():
        missing.append(
            "a place for this machine's id in /var/tmp (a store on a network disk then waits for its writers)"
        )
    release = os.uname().release.partition("-")[0]
    if missing:
        yield note(f"Linux {release} does not give us {'; '.join(missing)}")
    else:
        yield ok(f"Linux {release}: files in memory, room ahead of need, /proc")


def check_tracing(machine: Machine) -> Iterator[Finding]:
    """Whether `stepd why` could have a process looked into that holds the GIL, with py-spy."""
    scope = machine.number("/proc/sys/kernel/yama/ptrace_scope")
    capabilities = next(
        (line.split()[1] for line in machine.read("/proc/self/status").splitlines() if line.startswith("CapEff:")), "0"
    )
    privileged = bool(int(capabilities, 16) >> _CAP_SYS_PTRACE & 1)
    enforced = machine.read("/sys/fs/selinux/enforce").strip() == "1"
    denied = enforced and machine.read("/sys/fs/selinux/booleans/deny_ptrace").startswith("1")
    if denied:
        yield note("SELinux forbids to look into processes (py-spy)", "sudo setsebool deny_ptrace off")
    elif scope == 3:
        yield note("ptrace is off until the next boot: py-spy cannot look into a process")
    elif scope and not privileged:
        container = machine.container in ("docker", "podman")
        cure = (
            f"{machine.container} run --cap-add SYS_PTRACE …" if container else "sudo sysctl kernel.yama.ptrace_scope=0"
        )
        yield note(f"ptrace_scope is {scope}: py-spy needs root to look into a process that holds the GIL", cure)
    else:
        yield ok("py-spy may look into your processes" if machine.uid else "py-spy may look into all processes")
