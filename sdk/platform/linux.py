"""Linux: tmpfs files as rings, POSIX record locks as liveness, /run/user or /tmp for sockets.

Liveness. A process that must be known to live holds a record lock (`lockf`) on a file until it dies; whoever can see the
file asks the kernel whether anybody holds it. A pid means nothing across pid namespaces, silence means nothing while a C
call keeps the GIL, and `flock` is inherited by forked children, so a dead trainer's DataLoader would keep it "alive".

Race: a record lock is dropped by *any* close of *any* descriptor of that file in the owning process. So a process never
opens a file again that it holds a lock on: `is_locked` looks into `_held` first, and answers from there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import mmap
import os
import stat
import struct
import sys
from collections.abc import Sequence

from ..errors import StoreError

# struct flock: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")
_held: dict[tuple[int, int], int] = {}

_TOUCH_BYTES = 1 << 20

# What a trainer's environment must not bring into the daemon: preloaded profilers, device and thread-pool settings.
_DROPPED_PREFIXES = (
    "LD_PRELOAD", "LD_AUDIT", "CUDA_", "NVIDIA_", "NCCL_", "OMP_", "KMP_", "MKL_", "OPENBLAS_", "NSYS_", "NCU_",
    "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONBREAKPOINT", "PYTHONPROFILE", "PYTHONTRACEMALLOC", "PYTHONMALLOC",
    "PYTHONDEVMODE", "PYTHONWARNINGS", "PYTHONASYNCIODEBUG", "PYTHONFAULTHANDLER", "PYTHONHASHSEED", "COVERAGE_",
)  # fmt: skip


class HeldLock:
    """A record lock that this process holds until `release` or its death. A forked child does not hold it."""

    __slots__ = ("_descriptor", "_identity", "path")

    def __init__(self, path: str, descriptor: int, identity: tuple[int, int]) -> None:
        self.path = path
        self._descriptor = descriptor
        self._identity = identity

    @property
    def descriptor(self) -> int:
        """The locked file. Read through it: opening and closing the file once more would drop the lock."""
        return self._descriptor

    def write(self, text: bytes) -> None:
        """Replaces the file's text: information for people, never used to decide anything."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text, 0)

    def release(self) -> None:
        """Gives the lock up. The file stays."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            if _held.get(self._identity) == os.getpid():
                del _held[self._identity]
            os.close(descriptor)


def lock_descriptor(descriptor: int) -> tuple[int, int] | None:
    """Takes the lock on an open file; its (device, inode), or None when another process holds it."""
    status = os.fstat(descriptor)
    identity = (status.st_dev, status.st_ino)
    if _held.get(identity) == os.getpid():
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return None
        raise
    _held[identity] = os.getpid()
    return identity


def open_regular(path: str, flags: int) -> int:
    """Opens a file whose path others may have chosen: a descriptor that no link led to.

    Why so careful: opening a FIFO waits for whoever writes to it, opening a device may do something.

    Raises:
        OSError: It cannot be opened, or (EINVAL) it is no regular file.
        ValueError: The path cannot be one (a NUL).
    """
    with contextlib.suppress(FileNotFoundError):
        _check_regular(os.lstat(path), path)
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    try:
        _check_regular(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(status: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, f"is no regular file but of mode {status.st_mode:o}", path)


def hold_lock(path: str, *, create: bool = True) -> HeldLock | None:
    """The lock on `path`, or None when a living process (this one included) holds it or there is no such file."""
    if _is_own(path):
        return None
    try:
        descriptor = open_regular(path, os.O_RDWR | (os.O_CREAT if create else 0))
    except FileNotFoundError:
        return None
    identity = lock_descriptor(descriptor)
    if identity is None:
        os.close(descriptor)
        return None
    lock = HeldLock(path, descriptor, identity)
    # Race: 1. we open the file, 2. somebody removes it, 3. another process makes it again and locks that one, 4. we lock
    # ours. Both would believe that they are the only one.
    if not _is_own(path):
        lock.release()
        return hold_lock(path, create=create)
    return lock


def _is_own(path: str) -> bool:
    try:
        status = os.stat(path, follow_symlinks=False)
    except (OSError, ValueError):
        return False
    return _held.get((status.st_dev, status.st_ino)) == os.getpid()


def lock_owner(path: str) -> int | None:
    """The pid that holds the lock on `path` as this pid namespace sees it (0: a process of another one), None: nobody."""
    if _is_own(path):
        return os.getpid()
    try:
        descriptor = open_regular(path, os.O_RDWR)
    except (OSError, ValueError):
        return None
    try:
        query = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, query))
        return None if kind == fcntl.F_UNLCK else max(pid, 0)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def is_descriptor_locked(descriptor: int) -> bool:
    """Whether a living process holds the lock on an open file, whatever became of its name."""
    status = os.fstat(descriptor)
    if _held.get((status.st_dev, status.st_ino)) == os.getpid():
        return True
    query = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind: int = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, query))[0]
    return kind != fcntl.F_UNLCK


def is_locked(path: str) -> bool:
    """Whether a living process holds the lock on `path`."""
    return lock_owner(path) is not None


def _private_directory(path: str) -> str:
    """`path` as a directory that only we can enter.

    Raises:
        StoreError: It is a link, someone else's, or open to others: using it could hand our data to them.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise StoreError(
            f"{path!r} is not a private directory of uid {os.getuid()}: owner {status.st_uid}, mode {status.st_mode:o}; "
            "expected a directory, mode 0700",
            hint=f"ls -ld {path}; remove or rename it",
        )
    return path


def own_name() -> str:
    """What this user's directories are called, for sockets and for rings."""
    return f"stepd-{os.getuid()}"


def runtime_directory() -> str:
    """Where sockets and locks of this user live: ``/run/user/<uid>/stepd-<uid>``, else literally ``/tmp/stepd-<uid>``.

    Why not TMPDIR or XDG_RUNTIME_DIR: they differ between an ssh session, cron and a batch job of the same user, and
    trainer and daemon must compute the same path. Socket paths stay below 107 bytes whatever the store is called.
    """
    uid = os.getuid()
    base = f"/run/user/{uid}"
    try:
        status = os.lstat(base)
        usable = stat.S_ISDIR(status.st_mode) and status.st_uid == uid and os.access(base, os.W_OK | os.X_OK)
    except OSError:
        usable = False
    return _private_directory(f"{base if usable else '/tmp'}/{own_name()}")


def store_digest(path: str) -> str:
    """16 hex digits that name the store at `path` on this host: a digest of its device and inode."""
    status = os.stat(path)
    return hashlib.sha256(f"{status.st_dev}:{status.st_ino}".encode()).hexdigest()[:16]


def shared_directory(base: str) -> str:
    """This user's directory for rings below `base` (normally ``/dev/shm``).

    Raises:
        OSError, StoreError: There is no shared memory that we may use.
    """
    return _private_directory(f"{base}/{own_name()}")


def shared_size(base: str) -> int:
    """Size in bytes of the file system at `base`; 0 if there is none or it is not in memory."""
    try:
        status = os.statvfs(base)
    except OSError:
        return 0
    return status.f_blocks * status.f_frsize


def shared_free(base: str) -> int:
    """Bytes that are free at `base`; 0 if there is none."""
    try:
        status = os.statvfs(base)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize


def shared_used(directory: str) -> int:
    """Bytes that all rings and arenas of this user hold now."""
    total = 0
    with os.scandir(directory) as scan:
        for entry in scan:
            with contextlib.suppress(OSError):
                total += entry.stat(follow_symlinks=False).st_size
    return total


def create_shared(path: str, size: int) -> tuple[int, mmap.mmap]:
    """A new locked shared file of `size` bytes: its descriptor, kept open for life, and its mapping.

    Why posix_fallocate: writing to a hole when tmpfs is full is SIGBUS in the trainer; here it is a clean ENOSPC.

    Raises:
        OSError: No room, no such directory, or the name is taken. Nothing is left behind.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
        mapping = mmap.mmap(descriptor, size, mmap.MAP_SHARED)
        if lock_descriptor(descriptor) is None:
            raise OSError(errno.EAGAIN, "somebody locked a file that we just made", path)
    except BaseException:
        os.close(descriptor)
        os.unlink(path)
        raise
    return descriptor, mapping


def open_shared(path: str) -> HeldLock | None:
    """The lock on a dead process's shared file, or None while its owner lives or when it is gone."""
    return hold_lock(path, create=False)


def forget_lock(descriptor: int) -> None:
    """Says that the lock on this descriptor ends: it is about to be closed."""
    status = os.fstat(descriptor)
    _held.pop((status.st_dev, status.st_ino), None)


def touch(mapping: mmap.mmap) -> None:
    """Maps every page of a shared mapping for writing, without holding the GIL. No byte changes.

    Why so: MAP_POPULATE and madvise keep the GIL (154 ms for 256 MiB). Copying the mapping into a file in memory makes
    the kernel do the faults inside a system call, and os.pwritev gives the GIL away. A page of a shared mapping that was
    only read is mapped for writing too. Why not the other way, from /dev/zero: the header of the ring stands there.
    """
    try:
        sink = os.memfd_create("stepd-touch")
    except OSError:
        return
    try:
        with memoryview(mapping) as view:
            for start in range(0, len(view), _TOUCH_BYTES):
                with view[start : start + _TOUCH_BYTES] as part:
                    os.pwritev(sink, [part], 0)
    finally:
        os.close(sink)


def host_name() -> str:
    """The host's name as the kernel knows it."""
    return os.uname().nodename


def boot_id() -> str:
    """A text that changes at every boot, or "" where the kernel does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


@functools.cache
def machine_id() -> str:
    """A text that names this machine, or this container, across boots; "" where nothing can be kept.

    Why not /etc/machine-id alone: images carry one, so that all containers of an image share it (or have none). A random
    id of our own is kept beside it, in a directory that outlives a reboot.
    """
    text = ""
    with contextlib.suppress(OSError), open("/etc/machine-id", encoding="ascii", errors="replace") as file:
        text = file.read().strip()
    try:
        kept = _kept_id(os.path.join(_private_directory(f"/var/tmp/{own_name()}"), "machine-id"))
    except (OSError, StoreError):
        return ""
    return hashlib.sha256(f"{text}:{kept}".encode()).hexdigest()[:32]


def _kept_id(path: str) -> str:
    """The random text in the file at `path`, made whole by whoever comes first."""
    if not os.path.lexists(path):
        draft = f"{path}.{os.urandom(8).hex()}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, os.urandom(16).hex().encode())
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            os.close(descriptor)
            os.unlink(draft)
    descriptor = open_regular(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 64).decode("ascii", errors="replace")
    finally:
        os.close(descriptor)


def pid_namespace() -> str:
    """A text that names the set of processes among which a pid means anything, on this boot; "" if that is not told."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def process_lives(pid: int) -> bool:
    """Whether there is a process of this pid, in our pid namespace, that has not ended. One that waits to be reaped has."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    # Of a process whose first thread ended the others may live on: it is "Z" as well.
    return state not in "ZX" or len(_threads(pid)) > 1


def _threads(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


def identity() -> dict[str, str | int]:
    """Who this process is, for whoever must decide later whether it lives (`daemon.store.recovery`)."""
    return {
        "host": host_name(), "machine": machine_id(), "boot_id": boot_id(), "pid": os.getpid(),
        "pid_namespace": pid_namespace(),
    }  # fmt: skip


def spawn_detached(code: str, environment: dict[str, str], arguments: Sequence[str]) -> int:
    """Starts ``python -c code arguments`` as nobody's child and returns the pid of a starter to be reaped.

    The code must call `detach_from_starter` first. The process has its own session, cwd ``/``, null on 0-2 and no
    other descriptor, and an environment without what profilers, launchers and CUDA put there.

    Raises:
        OSError: No process could be made (EAGAIN: too many).
    """
    import subprocess

    kept = {k: v for k, v in environment.items() if not k.startswith(_DROPPED_PREFIXES)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        close_fds=True,
        start_new_session=True,
        cwd="/",
        env=kept,
    )
    process.returncode = 0  # the caller reaps by pid; Popen must not warn that its child still runs
    return process.pid


def detach_from_starter() -> None:
    """The second half of `spawn_detached`, in the new process: leave the starter, take all CPUs, be nice, go first.

    Why raise oom_score_adj: when memory is short the daemon must be killed, not the training.
    """
    if os.fork():
        os._exit(0)
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    with contextlib.suppress(OSError):
        os.nice(5)
    for path, text in (("/proc/self/oom_score_adj", "500"), ("/proc/self/comm", "stepd")):
        with contextlib.suppress(OSError), open(path, "w", encoding="ascii") as file:
            file.write(text)


def raise_descriptor_limit() -> None:
    """Raises the soft limit of open files to the hard one: libzmq aborts the process on EMFILE in accept."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
