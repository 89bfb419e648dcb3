"""A disk that fails on purpose, so that what a broken one does to the code above can be seen.

`FailingFiles` stands over any other `Files`. Either its N-th operation fails, once or from then on, with one of `FAULTS`
(`fail`), or all operations of some names do (`refuse`), until `allow`. It counts only operations that can meet the fault:
a full disk refuses no read. So a loop over N = 1, 2, … until nothing fails any more has tried everything (SQLite's way).

Ships with the SDK because other file systems than `Disk` will want the same test; nothing in stepd uses it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import NamedTuple

from . import DISK, Buffer, File, Files
from .over import FileOver, FilesOver

_MAKING = frozenset({"create", "make_directory", "rename", "link", "clone"})
_CHANGING = _MAKING | {"append", "patch", "truncate", "remove", "remove_tree"}
_LOOKING = frozenset(
    {"open", "read", "refresh", "entries", "exists", "owner", "status", "sizes", "free_bytes", "disk_bytes"}
)
_FORCING = frozenset({"sync", "sync_directory", "close"})
_TAKING = _MAKING | {"append", "patch", "sync", "sync_directory", "close"}
ALL = _CHANGING | _LOOKING | _FORCING

SHORT, LOST = "short", "lost"


class Fault(NamedTuple):
    """One way to fail.

    Attributes:
        name: As people call it.
        error: The errno that the caller gets.
        operations: What can fail like this.
        effect: What is done besides raising: `SHORT` writes half of an append and leaves it; `LOST` zeroes what the file
            got since it was last forced, as when a page that could not be written was read again from the medium.
    """

    name: str
    error: int
    operations: frozenset[str]
    effect: str = ""


FAULTS = (
    # A disk with delayed allocation finds out at fsync that it is full, NFS at close.
    Fault("ENOSPC", errno.ENOSPC, _TAKING),
    Fault("EDQUOT", errno.EDQUOT, _TAKING),
    Fault("EIO", errno.EIO, ALL),
    # The kernel makes a file system read-only when its journal broke.
    Fault("EROFS", errno.EROFS, _CHANGING | _FORCING),
    Fault("EMFILE", errno.EMFILE, frozenset({"create", "open", "entries", "sync_directory"})),
    # What POSIX lets be repeated, Python has repeated (PEP 475); what reaches the code is what it does not.
    Fault("EINTR", errno.EINTR, _MAKING | {"remove", "remove_tree", "entries", "close"}),
    Fault("ESTALE", errno.ESTALE, ALL),
    Fault("short write", errno.ENOSPC, frozenset({"append"}), SHORT),
    Fault("fsync", errno.EIO, frozenset({"sync", "sync_directory"})),
    Fault("fsync and the pages are gone", errno.EIO, frozenset({"sync"}), LOST),
)


class FailingFile(FileOver):
    """`File` whose operations ask the disk first."""

    def __init__(self, disk: FailingFiles, file: File, *, write: bool) -> None:
        super().__init__(file, disk.check)
        self._disk = disk
        self._write = write
        self._torn_at: int | None = None
        self._safe_size = file.size

    @property
    def size(self) -> int:
        return self._file.size if self._torn_at is None else self._torn_at

    def append(self, parts: Sequence[Buffer]) -> int:
        fault = self._disk.met("append")
        if fault is not None and fault.effect != SHORT:
            raise fault_error(fault.error, self.path)
        if self._torn_at is not None:
            self._file.truncate(self._torn_at)
            self._torn_at = None
        if fault is not None:
            whole = b"".join(parts)
            self._torn_at = self._file.append([whole[: len(whole) // 2]])
            raise fault_error(fault.error, self.path)
        return self._file.append(parts)

    def truncate(self, size: int) -> None:
        super().truncate(size)
        self._torn_at = None
        self._safe_size = min(self._safe_size, size)

    def sync(self) -> None:
        self._disk.synced.append(self.path)
        fault = self._disk.met("sync")
        if fault is not None:
            if fault.effect == LOST:
                self._file.patch(self._safe_size, bytes(self._file.size - self._safe_size))
            raise fault_error(fault.error, self.path)
        self._file.sync()
        self._safe_size = self._file.size

    def close(self) -> None:
        # Whatever close says, the descriptor is gone.
        self._file.close()
        if self._write:
            self._disk.check("close", self.path)


class FailingFiles(FilesOver):
    """A `Files` that fails where it is told to. Not thread-safe: who counts operations does them one after another.

    Attributes:
        fault: What fails, or None. `at`, `forever`: with which of its operations, counted from 1, and for how long.
        count: Operations so far that can meet the fault. `fired`: how many of them did.
        synced: Paths of the files that were asked to sync, in order.
        allowances: Name of a refused operation to how many of it still succeed.
    """

    def __init__(self, files: Files = DISK) -> None:
        super().__init__(files)
        self._refused: dict[str, Fault] = {}
        self.fault: Fault | None = None
        self.at = 0
        self.forever = False
        self.count = 0
        self.fired = 0
        self.allowances: dict[str, int] = {}
        self.synced: list[str] = []

    def fail(self, fault: Fault, at: int = 1, *, forever: bool = False) -> None:
        """The `at`-th operation from now on that can meet `fault` does; with `forever`, so do all after it."""
        self.fault, self.at, self.forever = fault, at, forever
        self.count = self.fired = 0

    def refuse(self, *operations: str, error: int = errno.ENOSPC) -> None:
        """All of these operations fail until `allow`."""
        assert ALL.issuperset(operations)
        self._refused.update((name, Fault("refused", error, frozenset({name}))) for name in operations)

    def allow(self) -> None:
        """The disk is well again."""
        self.fault = None
        self._refused.clear()
        self.allowances.clear()

    def met(self, operation: str) -> Fault | None:
        """The fault that the next operation of this name meets; counts it."""
        refused = self._refused.get(operation)
        if refused is not None:
            left = self.allowances.get(operation, 0)
            self.allowances[operation] = max(left - 1, 0)
            return None if left else refused
        if self.fault is None or operation not in self.fault.operations:
            return None
        self.count += 1
        if self.count == self.at or (self.forever and self.count > self.at):
            self.fired += 1
            return self.fault
        return None

    def check(self, operation: str, path: str) -> None:
        fault = self.met(operation)
        if fault is not None:
            raise fault_error(fault.error, path)

    _asked = check

    def create(self, path: str) -> File:
        return FailingFile(self, super().create(path), write=True)

    def open(self, path: str, *, write: bool = False) -> File:
        return FailingFile(self, super().open(path, write=write), write=write)

    def make_directory(self, path: str) -> None:
        # One that is there costs nothing even on a full disk.
        if not self._files.exists(path):
            self.check("make_directory", path)
        self._files.make_directory(path)


def fault_error(number: int, path: str) -> OSError:
    """The exception of an errno, of the class that Python gives it."""
    return OSError(number, os.strerror(number), path)
