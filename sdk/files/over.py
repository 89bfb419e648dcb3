"""A file system over another one: passes everything on, and tells a subclass first.

What a new operation of `Files` or `File` needs to work for every such file system stands here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from . import DISK, Buffer, Drafting, File, Files, Status


class FileOver:
    """`File` over another one. `asked` hears the operation's name and the path before each."""

    def __init__(self, file: File, asked: Callable[[str, str], None] = lambda operation, path: None) -> None:
        self._file = file
        self._asked = asked

    @property
    def path(self) -> str:
        return self._file.path

    @property
    def size(self) -> int:
        return self._file.size

    def append(self, parts: Sequence[Buffer]) -> int:
        self._asked("append", self.path)
        return self._file.append(parts)

    def read(self, offset: int, size: int) -> bytes:
        self._asked("read", self.path)
        return self._file.read(offset, size)

    def refresh(self) -> None:
        self._asked("refresh", self.path)
        self._file.refresh()

    def truncate(self, size: int) -> None:
        self._asked("truncate", self.path)
        self._file.truncate(size)

    def patch(self, offset: int, data: Buffer) -> None:
        self._asked("patch", self.path)
        self._file.patch(offset, data)

    def sync(self) -> None:
        self._asked("sync", self.path)
        self._file.sync()

    def close(self) -> None:
        self._file.close()


class FilesOver(Drafting):
    """`Files` over another one. `_asked` hears of each operation before it is done."""

    def __init__(self, files: Files = DISK) -> None:
        self._files = files

    def _asked(self, operation: str, path: str) -> None:
        """What a subclass does first; an exception ends the operation."""

    def create(self, path: str) -> File:
        self._asked("create", path)
        return self._files.create(path)

    def open(self, path: str, *, write: bool = False) -> File:
        self._asked("open", path)
        return self._files.open(path, write=write)

    def entries(self, path: str) -> list[tuple[str, int, float]]:
        self._asked("entries", path)
        return self._files.entries(path)

    def sizes(self, path: str) -> Iterator[int]:
        self._asked("sizes", path)
        return self._files.sizes(path)

    def exists(self, path: str) -> bool:
        self._asked("exists", path)
        return self._files.exists(path)

    def owner(self, path: str) -> tuple[int, int]:
        self._asked("owner", path)
        return self._files.owner(path)

    def status(self, path: str) -> Status:
        self._asked("status", path)
        return self._files.status(path)

    def make_directory(self, path: str) -> None:
        self._asked("make_directory", path)
        self._files.make_directory(path)

    def rename(self, source: str, target: str) -> None:
        self._asked("rename", source)
        self._files.rename(source, target)

    def link(self, source: str, target: str) -> None:
        self._asked("link", source)
        self._files.link(source, target)

    def clone(self, source: str, target: str) -> None:
        self._asked("clone", source)
        self._files.clone(source, target)

    def remove(self, path: str) -> None:
        self._asked("remove", path)
        self._files.remove(path)

    def remove_tree(self, path: str) -> None:
        self._asked("remove_tree", path)
        self._files.remove_tree(path)

    def set_modified(self, path: str, seconds: float) -> None:
        self._files.set_modified(path, seconds)

    def sync_directory(self, path: str) -> None:
        self._asked("sync_directory", path)
        self._files.sync_directory(path)

    def free_bytes(self, path: str) -> int:
        self._asked("free_bytes", path)
        return self._files.free_bytes(path)

    def disk_bytes(self, path: str) -> int:
        self._asked("disk_bytes", path)
        return self._files.disk_bytes(path)
