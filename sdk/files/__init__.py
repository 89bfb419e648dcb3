"""The one small layer through which everything touches the disk.

`Files` is the contract and `Disk` the real file system. Tests give two others to the same code: `sdk.files.failing`,
whose N-th operation fails, and `sdk.files.recording`, which notes every operation so that every state that a crash may
leave can be built. Rings and sockets are not files in this sense: they live in `sdk.platform`.

Rules that every caller may rely on: directories are made 0700 and files 0600; `append` writes everything or raises with
the file cut back to where it was; nothing is durable against power loss before `sync`, and a name not before its
directory and all those above it were forced (`sync_names`). A call that a signal interrupts is repeated by Python (PEP
475) where POSIX lets it be, a short write by `append`: neither is an error here.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, Union

Buffer = Union[bytes, bytearray, memoryview]

_IOV_MAX = 512
# linux/fs.h: _IOW(0x94, 9, int), and fcntl has no name for it before Python 3.14.
_FICLONE = 0x40049409
_NAMES_PER_PORTION = 16
# What the name of a file ends with that has not got its own yet; one that is old was left by a killed process.
DRAFT_SUFFIX = ".tmp"
# How often a directory is listed whose names go while we look at them.
_LISTINGS_MAX = 4
# What `link` says on a file system that has no hard links.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK)
# What fsync of a directory says on a file system that has no such thing (CIFS, some of FUSE); PostgreSQL ignores the same.
_NO_DIRECTORY_SYNC = (errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP, errno.ENOSYS)


class Status(NamedTuple):
    """What a file system says of a file. `inode` is its number on `device`: a file that took another's name has another."""

    size: int
    modified_ns: int
    device: int
    inode: int
    is_regular: bool


class File(Protocol):
    """An open file that grows only at its end."""

    @property
    def path(self) -> str: ...

    @property
    def size(self) -> int:
        """As far as this file knows; see `refresh`."""

    def append(self, parts: Sequence[Buffer]) -> int:
        """Writes all `parts` at the end and returns the offset where they begin.

        Raises:
            OSError: Nothing of `parts` is in the file. A torn tail that could not be cut off is cut before the next
                append, or by recovery.
        """

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`: fewer only at the end of the file."""

    def refresh(self) -> None:
        """Sets `size` to what the file has now: another process may have appended."""

    def truncate(self, size: int) -> None: ...

    def patch(self, offset: int, data: Buffer) -> None:
        """Overwrites bytes that are there already; not atomic, so whoever reads them needs a checksum.

        Raises:
            OSError: Some of the old bytes may be gone.
            ValueError: `data` reaches beyond the end.
        """

    def sync(self) -> None:
        """Forces the file's data to the disk. After it raised, never call it again on this file: the pages are lost."""

    def close(self) -> None: ...


class Files(Protocol):
    """A file system."""

    def create(self, path: str) -> File:
        """A new file; FileExistsError if the name is taken."""

    def open(self, path: str, *, write: bool = False) -> File: ...

    def entries(self, path: str) -> list[tuple[str, int, float]]:
        """(name, size in bytes, mtime in seconds) of what is in a directory, sorted by name; empty if there is none."""

    def exists(self, path: str) -> bool:
        """Whether there is something of this name, a dangling link included. A disk that cannot tell raises OSError."""

    def owner(self, path: str) -> tuple[int, int]:
        """(uid, mode) of what is there, links followed."""

    def status(self, path: str) -> Status:
        """Size, time and identity of what is there, links followed."""

    def make_directory(self, path: str) -> None:
        """Makes it and what is missing above it; nothing if it is there."""

    def rename(self, source: str, target: str) -> None: ...

    def link(self, source: str, target: str) -> None:
        """A second name for a file; FileExistsError if it is taken."""

    def clone(self, source: str, target: str) -> None:
        """A new file that shares the bytes of another until either is changed (FICLONE: btrfs, XFS, some others).

        Raises:
            FileExistsError: The name is taken.
            OSError: This file system does not share, or the files lie on two. There is no new file then.
        """

    def remove(self, path: str) -> None: ...

    def remove_tree(self, path: str) -> None: ...

    def set_modified(self, path: str, seconds: float) -> None:
        """Lets a file look as if it had last changed then, Unix time."""

    def write_whole(self, path: str, data: bytes) -> None:
        """Replaces `path` by rename: a reader sees the old bytes or the new ones, never a part."""

    def write_new(self, path: str, data: bytes) -> bool:
        """As `write_whole`, unless the name is taken: of many who try the first wins. Whether that was us."""

    def sync_directory(self, path: str) -> None:
        """Forces the names in a directory to the disk, not the directory's own."""

    def free_bytes(self, path: str) -> int: ...

    def disk_bytes(self, path: str) -> int:
        """Size of the file system that `path` lies on; 0 where it has none (a tmpfs without a limit)."""

    def sizes(self, path: str) -> Iterator[int]:
        """Bytes of all files below `path`, links not followed, in portions that each take a look at a few names.

        What is gone or cannot be read counts nothing. Whoever must not be held up stops between two portions.
        """


class Drafting:
    """What is made of simpler operations, the same for every file system: a file that appears whole or not at all."""

    def write_whole(self: Files, path: str, data: bytes) -> None:
        draft = _draft(self, path, data)
        try:
            self.rename(draft, path)
        except BaseException:
            _discard(self, draft)
            raise

    def write_new(self: Files, path: str, data: bytes) -> bool:
        draft = _draft(self, path, data)
        try:
            self.link(draft, path)
        except FileExistsError:
            _discard(self, draft)
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS or self.exists(path):
                _discard(self, draft)
                raise
            # Race: somebody may have made it since we looked, and loses. Without hard links nothing better is there.
            self.rename(draft, path)
            return True
        _discard(self, draft)
        return True


def _draft(files: Files, path: str, data: bytes) -> str:
    """A file beside `path` that holds `data` and was forced to the disk; its name."""
    draft = f"{path}.{os.getpid()}.{os.urandom(4).hex()}{DRAFT_SUFFIX}"
    file = files.create(draft)
    try:
        try:
            file.append([data])
            file.sync()
        finally:
            file.close()  # NFS may find out here that the disk is full
    except BaseException:
        _discard(files, draft)
        raise
    return draft


def _discard(files: Files, path: str) -> None:
    with contextlib.suppress(OSError):
        files.remove(path)


class DiskFile:
    """`File` on a real descriptor."""

    __slots__ = ("_descriptor", "_is_torn", "path", "size")

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._is_torn = False  # behind `size` lies what an append left that failed
        self.size = os.fstat(descriptor).st_size

    def append(self, parts: Sequence[Buffer]) -> int:
        if self._is_torn:
            self.truncate(self.size)
        start = self.size
        try:
            for views in _slices(parts):
                self._write_all(views)
        except BaseException:
            self._is_torn = True
            with contextlib.suppress(OSError):
                self.truncate(start)
            self.size = start
            raise
        return start

    def _write_all(self, views: list[memoryview]) -> None:
        while views:
            written = os.pwritev(self._descriptor, views, self.size)
            if not written:
                raise OSError(errno.EIO, "the disk takes nothing and gives no reason", self.path)
            self.size += written
            while views and written >= len(views[0]):
                written -= len(views.pop(0))
            if written:
                views[0] = views[0][written:]

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)

    def refresh(self) -> None:
        self.size = os.fstat(self._descriptor).st_size

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)
        self.size = size
        self._is_torn = False

    def patch(self, offset: int, data: Buffer) -> None:
        if not 0 <= offset <= self.size - len(data):
            raise ValueError(f"cannot patch {len(data)} bytes at {offset}: {self.path!r} has {self.size}")
        view = memoryview(data).cast("B")
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            view, offset = view[written:], offset + written

    def sync(self) -> None:
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


def _size_of(entry: os.DirEntry[str]) -> int:
    with contextlib.suppress(OSError):
        status = entry.stat(follow_symlinks=False)
        return status.st_size if stat.S_ISREG(status.st_mode) else 0
    return 0


def _slices(parts: Sequence[Buffer]) -> Iterator[list[memoryview]]:
    """The parts as byte views, at most `_IOV_MAX` together (the kernel takes 1024)."""
    views = [memoryview(part).cast("B") for part in parts if len(part)]
    for start in range(0, len(views), _IOV_MAX):
        yield views[start : start + _IOV_MAX]


def _make_one_directory(path: str, mode: int) -> None:
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if not os.path.isdir(path):
            raise


class Disk(Drafting):
    """`Files` on the real file system.

    Args:
        is_private: What is made is its owner's alone, whatever the umask says; else the umask decides.
    """

    _file_mode, _directory_mode = 0o600, 0o700

    def __init__(self, *, is_private: bool = True) -> None:
        if not is_private:
            self._file_mode, self._directory_mode = 0o666, 0o777

    def create(self, path: str) -> DiskFile:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return DiskFile(path, os.open(path, flags, self._file_mode))

    def open(self, path: str, *, write: bool = False) -> DiskFile:
        # Why O_NONBLOCK: what lies in a store is hostile, and opening a FIFO would wait for its other end.
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(path, flags)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "is not a regular file", path)
        return DiskFile(path, descriptor)

    def entries(self, path: str) -> list[tuple[str, int, float]]:
        found: list[tuple[str, int, float]] = []
        for _ in range(_LISTINGS_MAX):
            names = 0
            found.clear()
            try:
                with os.scandir(path) as scan:
                    for entry in scan:
                        names += 1
                        with contextlib.suppress(FileNotFoundError):
                            status = entry.stat(follow_symlinks=False)
                            found.append((entry.name, status.st_size, status.st_mtime))
            except (FileNotFoundError, NotADirectoryError):
                return []
            # Race: 1. we list A, 2. B takes its place, 3. A is removed, 4. we look at A: neither would be there.
            if len(found) == names:
                break
        return sorted(found)

    def exists(self, path: str) -> bool:
        # Why not os.path.lexists: on a disk that cannot answer it says no, and who hears no makes a file, or forces none.
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def owner(self, path: str) -> tuple[int, int]:
        status = os.stat(path)
        return status.st_uid, status.st_mode

    def status(self, path: str) -> Status:
        found = os.stat(path)
        return Status(found.st_size, found.st_mtime_ns, found.st_dev, found.st_ino, stat.S_ISREG(found.st_mode))

    def make_directory(self, path: str) -> None:
        # Why not os.makedirs: it gives its mode to the last directory only.
        try:
            _make_one_directory(path, self._directory_mode)
        except FileNotFoundError:
            parent = os.path.dirname(path)
            if parent in ("", path):
                raise
            self.make_directory(parent)
            _make_one_directory(path, self._directory_mode)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def link(self, source: str, target: str) -> None:
        os.link(source, target)

    def clone(self, source: str, target: str) -> None:
        import fcntl

        whole = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            made = self.create(target)
            try:
                fcntl.ioctl(made._descriptor, _FICLONE, whole)
            except BaseException:
                _discard(self, target)
                raise
            finally:
                made.close()
        finally:
            os.close(whole)

    def remove(self, path: str) -> None:
        os.unlink(path)

    def remove_tree(self, path: str) -> None:
        import shutil

        shutil.rmtree(path)

    def set_modified(self, path: str, seconds: float) -> None:
        os.utime(path, (seconds, seconds))

    def sync_directory(self, path: str) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError:
            return  # a directory that we may use but not list cannot be forced; it is not one of ours
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NO_DIRECTORY_SYNC:
                raise
        finally:
            os.close(descriptor)

    def free_bytes(self, path: str) -> int:
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize

    def disk_bytes(self, path: str) -> int:
        status = os.statvfs(path)
        return status.f_blocks * status.f_frsize

    def sizes(self, path: str) -> Iterator[int]:
        directories = [path]
        while directories:
            with contextlib.suppress(OSError), os.scandir(directories.pop()) as scan:
                while entries := list(itertools.islice(scan, _NAMES_PER_PORTION)):
                    directories += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
                    yield sum(_size_of(entry) for entry in entries)


DISK: Files = Disk()
# For what a user has carried out of a store, to be shown to others: as if a program of theirs had written it.
EXPORTS: Files = Disk(is_private=False)


def read_whole(files: Files, path: str, size_max: int) -> bytes:
    """All bytes of a small file.

    Raises:
        OSError: It cannot be read, or (EFBIG) it is larger than `size_max`: files of a store are hostile input.
    """
    file = files.open(path)
    try:
        if file.size > size_max:
            raise OSError(errno.EFBIG, f"is {file.size} bytes, expected at most {size_max}", path)
        return file.read(0, file.size)
    finally:
        file.close()


def write_unforced(files: Files, path: str, data: bytes) -> None:
    """As `write_whole`, without forcing anything to the disk, which takes milliseconds of a training: after a power loss the file may
    be as it was, or empty.
    """
    draft = f"{path}.{os.getpid()}.{os.urandom(4).hex()}{DRAFT_SUFFIX}"
    try:
        file = files.create(draft)
        try:
            file.append([data])
        finally:
            file.close()
        files.rename(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            files.remove(draft)
        raise


def sync_names(files: Files, directory: str, levels: int = 1) -> None:
    """Forces the names in `directory` to the disk, and its own name, and so on for `levels` directories.

    Why its own: a file that was forced in a directory that was not is gone after a power loss.
    """
    for _ in range(levels):
        files.sync_directory(directory)
        directory = os.path.dirname(directory)
