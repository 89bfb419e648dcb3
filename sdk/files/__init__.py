"""The one small layer through which everything touches the disk.

`Files` is the contract and `Disk` the real file system. Tests give other implementations to the same code: one that
fails the N-th operation, one that records operations so that every crash state can be replayed. Rings and sockets are
not files in this sense: they live in `sdk.platform`.

Rules that every caller may rely on: directories are made 0700 and files 0600; `append` writes everything or raises with
the file cut back to where it was; nothing is durable against power loss before `sync`, and a new name not before
`sync_directory`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Protocol, Union

Buffer = Union[bytes, bytearray, memoryview]

_IOV_MAX = 512


class File(Protocol):
    """An open file that grows only at its end."""

    path: str
    size: int

    def append(self, parts: Sequence[Buffer]) -> int:
        """Writes all `parts` at the end and returns the offset where they begin.

        Raises:
            OSError: Nothing of `parts` is in the file (a torn tail, if one could not be removed, is cut by recovery).
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

    def exists(self, path: str) -> bool: ...

    def make_directory(self, path: str) -> None: ...

    def rename(self, source: str, target: str) -> None: ...

    def remove(self, path: str) -> None: ...

    def remove_tree(self, path: str) -> None: ...

    def write_whole(self, path: str, data: bytes) -> None:
        """Replaces `path` by rename: a reader sees the old bytes or the new ones, never a part."""

    def sync_directory(self, path: str) -> None: ...

    def free_bytes(self, path: str) -> int: ...


class DiskFile:
    """`File` on a real descriptor."""

    __slots__ = ("_descriptor", "path", "size")

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def append(self, parts: Sequence[Buffer]) -> int:
        start = self.size
        try:
            for views in _slices(parts):
                self._write_all(views)
        except BaseException:
            self.size = start
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, start)
            raise
        return start

    def _write_all(self, views: list[memoryview]) -> None:
        while views:
            written = os.pwritev(self._descriptor, views, self.size)
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


def _slices(parts: Sequence[Buffer]) -> Iterator[list[memoryview]]:
    """The parts as byte views, at most `_IOV_MAX` together (the kernel takes 1024)."""
    views = [memoryview(part).cast("B") for part in parts if len(part)]
    for start in range(0, len(views), _IOV_MAX):
        yield views[start : start + _IOV_MAX]


def _make_one_directory(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise


class Disk:
    """`Files` on the real file system."""

    def create(self, path: str) -> DiskFile:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return DiskFile(path, os.open(path, flags, 0o600))

    def open(self, path: str, *, write: bool = False) -> DiskFile:
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC
        return DiskFile(path, os.open(path, flags))

    def entries(self, path: str) -> list[tuple[str, int, float]]:
        found = []
        try:
            with os.scandir(path) as scan:
                for entry in scan:
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        found.append((entry.name, status.st_size, status.st_mtime))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(found)

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def make_directory(self, path: str) -> None:
        # Why not os.makedirs: it gives its mode to the last directory only.
        try:
            _make_one_directory(path)
        except FileNotFoundError:
            parent = os.path.dirname(path)
            if parent in ("", path):
                raise
            self.make_directory(parent)
            _make_one_directory(path)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def remove(self, path: str) -> None:
        os.unlink(path)

    def remove_tree(self, path: str) -> None:
        import shutil

        shutil.rmtree(path)

    def write_whole(self, path: str, data: bytes) -> None:
        draft = f"{path}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
        file = self.create(draft)
        try:
            file.append([data])
            file.sync()
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(draft)
            raise
        finally:
            file.close()
        os.rename(draft, path)

    def sync_directory(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def free_bytes(self, path: str) -> int:
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize


DISK: Files = Disk()


def read_whole(files: Files, path: str, size_max: int) -> bytes:
    """All bytes of a small file.

    Raises:
        OSError: It cannot be read, or (EFBIG) it is larger than `size_max`: files of a store are hostile input.
    """
    import errno

    file = files.open(path)
    try:
        if file.size > size_max:
            raise OSError(errno.EFBIG, f"is {file.size} bytes, expected at most {size_max}", path)
        return file.read(0, file.size)
    finally:
        file.close()
