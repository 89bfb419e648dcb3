"""The store's directory and the file system that it lies on: whose, of what kind, how full, and whether it keeps time."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import re
import shlex
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

from daemon.doctor import lines
from daemon.doctor.finding import Finding, bad, note, ok, warn
from daemon.doctor.machine import Machine, Mount
from daemon.settings import budgets_from
from daemon.store.budgets import read_budgets
from sdk._greeting import bytes_text, short_path
from sdk.budget import Budget, free_floor
from sdk.errors import StoreError
from sdk.files import DISK
from sdk.location import DIRECTORY, read_store
from sdk.segment.naming import RUNS, STORE_FILE

_LOCAL = frozenset("ext2 ext3 ext4 xfs btrfs zfs f2fs jfs reiserfs bcachefs nilfs2 ufs hfsplus".split())
_MEMORY = frozenset(("tmpfs", "ramfs", "rootfs"))
_LAYERS = frozenset(("overlay", "overlayfs", "aufs", "fuse.fuse-overlayfs", "fuse-overlayfs"))
_PARALLEL = frozenset(
    "lustre gpfs beegfs beegfs_nodev ceph fuse.ceph fuse.ceph-fuse wekafs panfs pvfs2 orangefs fhgfs".split()
)
_NETWORK = frozenset(
    "nfs nfs4 cifs smb3 smbfs afs glusterfs fuse.glusterfs fuse.sshfs fuse.juicefs 9p virtiofs vboxsf".split()
)
_OBJECTS = re.compile(r"fuse\.?(.*(s3fs|goofys|gcsfuse|rclone|mount-s3|blobfuse|hf-mount).*)")
_FOREIGN = frozenset("vfat exfat ntfs ntfs3 fuseblk msdos drvfs".split())
_GB = 10**9
_FREE_WARN = 2 * _GB
_INODES_WARN = 10_000
# linux/quota.h: QCMD(Q_GETQUOTA, USRQUOTA), struct if_dqblk, in blocks of 1 KiB.
_GETQUOTA = 0x800007 << 8
_QUOTA = struct.Struct("=8QI4x")
_QUOTA_BLOCK = 1024
_QUOTA_SHARE = 0.9
_ASK_SECONDS = 3.0
_ELSEWHERE = "export STEPD_DIR=/a/writable/directory"


def check_store(machine: Machine) -> Iterator[Finding]:
    """Which directory, why that one, whose it is."""
    place, why = machine.location, _why(machine)
    if place.note is not None:
        yield warn(place.note, _ELSEWHERE)
    path = short_path(place.path) + (why and f", {why}")
    if os.path.lexists(os.path.join(place.path, STORE_FILE)):
        yield _judge_owner(machine, place.path, path)
    elif file := _file_on(place.path):
        yield bad(f"{path}: cannot be made, as {file} is no directory", _ELSEWHERE)
    elif os.access(machine.place, os.W_OK | os.X_OK):
        yield ok(f"{path}; made by the first init()")
    else:
        yield bad(f"{path}: cannot be made, as {machine.place} may not be written by {_who(machine.uid)}", _ELSEWHERE)


def _file_on(path: str) -> str:
    """What stands where a path needs a directory; "" where nothing does."""
    while not os.path.lexists(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return "" if os.path.isdir(path) else path


def _judge_owner(machine: Machine, store: str, path: str) -> Finding:
    """What is said of a store that is there."""
    try:
        identity = read_store(store)
        uid, mode = DISK.owner(store)
    except StoreError as error:
        return bad(error.message, *([error.hint] if error.hint else []))
    us = _who(machine.uid)
    for directory in (store, os.path.join(store, RUNS)):
        if os.path.isdir(directory) and not os.access(directory, os.W_OK | os.X_OK):
            if os.statvfs(directory).f_flag & os.ST_RDONLY:
                return bad(f"{path}: its file system is mounted read-only", _ELSEWHERE)
            which = "" if directory == store else f"{RUNS}/ in it "
            owner = _who(os.stat(directory).st_uid)
            return bad(f"{path}: {which}belongs to {owner}, and may not be written by {us}", _ELSEWHERE)
    if identity.writable:
        return ok(path)
    trust = "export STEPD_TRUST_STORE=1   # if you trust everybody who can write there"
    if uid != machine.uid:
        return bad(f"{path}: belongs to {_who(uid)}; {us} writes nothing there", _ELSEWHERE, trust)
    return bad(f"{path}: others may write there (mode {mode & 0o777:o})", f"chmod go-w {shlex.quote(store)}", trust)


def _why(machine: Machine) -> str:
    """What chose the store; "" where its note says so."""
    if machine.location.note is not None:
        return ""
    if machine.directory:
        return "from --dir"
    for variable in ("STEPD_DIR", "WANDB_DIR"):
        if machine.environ.get(variable):
            return f"from {variable}"
    home = os.path.join(os.path.expanduser("~"), DIRECTORY)
    return "the default" if machine.store == home else "the nearest .stepd upwards"


def _who(uid: int) -> str:
    with contextlib.suppress(KeyError):
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    return f"uid {uid}"


def check_file_system(machine: Machine) -> Iterator[Finding]:
    """Its kind, and what that means here."""
    mount = machine.mount_of(machine.place)
    if mount is None:
        yield note(f"the kernel does not tell what {machine.place} lies on")
        return
    yield from judge_mount(machine, mount)


def judge_mount(machine: Machine, mount: Mount) -> Iterator[Finding]:
    """What is said of a store on this mount."""
    kind, where = mount.kind, f"{mount.kind} at {mount.point}"
    if "ro" in mount.options:
        yield bad(f"{where} is mounted read-only: nothing can be stored there", *lines.volume(machine))
    elif kind in _MEMORY | _LAYERS and machine.environ.get("STEPD_SYNC_TO"):
        yield ok(f"{where} does not stay, and STEPD_SYNC_TO carries runs away while they are written")
    elif kind in _MEMORY:
        yield warn(f"{where} is memory: the store is gone with the next boot", *lines.volume(machine))
    elif kind in _LAYERS:
        yield warn(f"{where} is the container's own layer: the store goes with it", *lines.volume(machine))
    elif match := _OBJECTS.fullmatch(kind):
        yield warn(
            f"{where}: object storage ({match[1]}) writes a file anew for each line that is added to it",
            "export STEPD_DIR=/a/local/disk STEPD_SYNC_TO=parquet:s3://bucket/prefix",
        )
    elif kind in _FOREIGN:
        yield warn(f"{where} keeps no owners and modes: the store may look open to others", *lines.volume(machine))
    elif kind in _PARALLEL or kind in _NETWORK:
        yield from _judge_shared(machine, mount, where)
    elif kind in _LOCAL:
        slow = "; mounted sync: every write waits for the disk" if "sync" in mount.options else ""
        yield (note if slow else ok)(f"{where}, a disk of this machine{slow}")
    else:
        yield note(f"{where}: a kind that stepd was not tried on; what `locks` and `disk` say below decides")


def _judge_shared(machine: Machine, mount: Mount, where: str) -> Iterator[Finding]:
    """A file system that other machines see as well: it works, and each node's own disk works better."""
    many = machine.in_slurm or int(machine.environ.get("WORLD_SIZE") or 1) > 1
    shared = "is seen by other machines: a daemon on each serves it"
    if mount.kind == "lustre" and "flock" not in mount.options:
        shared += "; without flock, only one machine at a time should carry a run (stepd sync)"
    if mount.kind in ("nfs", "nfs4") and mount.options & {"nolock", "local_lock=all", "local_lock=posix"}:
        shared += "; its locks count on this machine only, so only one should carry a run (stepd sync)"
    if many:
        yield warn(f"{where} {shared}. With many nodes log to each node's disk", *lines.node_disk(machine))
    else:
        yield note(f"{where} {shared}, and each fsync goes over the network")


def check_space(machine: Machine, statvfs: Callable[[str], Any] = os.statvfs) -> Iterator[Finding]:
    """Free bytes, against the budgets that count."""
    status = statvfs(machine.place)
    free, whole = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
    budget = Budget()._replace(**{**read_budgets(DISK, machine.store), **budgets_from(machine.environ)})
    floor = free_floor(budget.free_bytes_min, whole)
    told = f"{bytes_text(free)} of {bytes_text(whole)} free; records are refused below {bytes_text(floor)}"
    caps = [
        f"{name} {bytes_text(size)}" for name, size in budget._asdict().items() if size and name != "free_bytes_min"
    ]
    told += f"; budget: {', '.join(caps)}" if caps else ""
    room = (f"stepd du --dir {shlex.quote(machine.store)}", f"stepd rm RUN   # then empty {machine.store}/trash")
    if free < floor:
        yield bad(told, *room)
    elif free < min(_FREE_WARN, whole // 20):
        yield warn(told, *room)
    else:
        yield ok(told)


def check_inodes(machine: Machine, statvfs: Callable[[str], Any] = os.statvfs) -> Iterator[Finding]:
    """How many more files there may be."""
    status = statvfs(machine.place)
    if not status.f_files:
        yield ok("as many files as there is room")
    elif status.f_favail < _INODES_WARN:
        yield (warn if status.f_favail > 100 else bad)(
            f"{status.f_favail:,} of {status.f_files:,} files may still be made",
            f"du --inodes -d 1 {shlex.quote(machine.place)} | sort -n | tail",
            "stepd compact   # joins the files of finished runs",
        )
    else:
        yield ok(f"{status.f_favail:,} more files may be made")


def check_quota(machine: Machine) -> Iterator[Finding]:
    """This user's quota, where the file system or a command tells."""
    mount = machine.mount_of(machine.place)
    told = _ask_quota(mount, machine.uid) if mount is not None else None
    yield judge_quota(machine, *told) if told else ok("none is told for this user")


def judge_quota(machine: Machine, used: int, limit: int, files: int, files_max: int) -> Finding:
    """What is said of a quota in bytes and files; a limit of 0: none."""
    told = [f"{bytes_text(used)} of {bytes_text(limit)}"] if limit else []
    told += [f"{files:,} of {files_max:,} files"] if files_max else []
    if not told:
        return ok(f"no limit; {bytes_text(used)} are used")
    share = max(used / limit if limit else 0, files / files_max if files_max else 0)
    text = f"{' and '.join(told)} are used"
    room = (f"stepd du --dir {shlex.quote(machine.store)}", "export STEPD_DIR=/a/directory/elsewhere")
    return bad(text, *room) if share >= 1 else warn(text, *room) if share > _QUOTA_SHARE else ok(text)


def _ask_quota(mount: Mount, uid: int) -> tuple[int, int, int, int] | None:
    """(bytes used, limit, files used, limit), by the system call or the command that knows."""
    if mount.kind in _LOCAL:
        return _quotactl(mount.source, uid)
    words = {
        "lustre": ["lfs", "quota", "-q", "-u", str(uid), mount.point],
        "nfs": (nfs := ["quota", "-w", "-p", "-f", mount.point]),
        "nfs4": nfs,
    }.get(mount.kind)
    if words is None or shutil.which(words[0]) is None:
        return None
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=_ASK_SECONDS, env={**os.environ, "LC_ALL": "C"}
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_quota(done.stdout)


def _quotactl(device: str, uid: int) -> tuple[int, int, int, int] | None:
    answer = ctypes.create_string_buffer(_QUOTA.size)
    libc = ctypes.CDLL(None, use_errno=True)
    # ESRCH: no quotas here; EPERM, ENOENT, ENOTBLK: not for us to ask, or no disk.
    if libc.quotactl(_GETQUOTA, os.fsencode(device), uid, answer) != 0:
        return None
    hard, soft, used, files_hard, files_soft, files, _, _, _ = _QUOTA.unpack(answer.raw)
    return used, (soft or hard) * _QUOTA_BLOCK, files, files_soft or files_hard


def parse_quota(text: str) -> tuple[int, int, int, int] | None:
    """The first line of `quota -wp` or `lfs quota -q` that has numbers: KiB, soft, hard, grace, files, soft, hard, grace.

    A number that is over its limit has a star behind it; a grace is a number, a word or a dash.
    """
    for line in text.splitlines():
        words = line.split()
        for at in range(1, max(len(words) - 6, 1)):
            near = words[at : at + 7]
            numbers = [word.rstrip("*") for word in (*near[:3], *near[4:7])]
            if len(numbers) == 6 and all(number.isdecimal() for number in numbers):
                used, soft, hard, files, files_soft, files_hard = map(int, numbers)
                return used * 1024, (soft or hard) * 1024, files, files_soft or files_hard
    return None
