"""A disk that notes every operation, so that every state that a crash may leave behind can be built.

`RecordingFiles` passes everything on to another `Files` and keeps what changed: `operations`. What was there before it
began stands first among them, `known` operations long, as if it had been made then. Files and directories are numbered,
because a name may move from one to another: an operation says which node it changes the bytes of, or which directory's
names.

What may be left of the operations after a power loss is `tests/crash.py`'s model. Nothing in stepd uses this module.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from . import DISK, Buffer, File, Files
from .over import FileOver, FilesOver

# Bytes of `node`: WRITE puts `data` at `offset`, TRUNCATE cuts at `offset`.
WRITE, TRUNCATE = "write", "truncate"
# Names in `directory`: NAME lets `name` be `node` (and the names in `gone` be nothing), UNNAME lets `name` be nothing.
NAME, UNNAME = "name", "unname"
# SYNC forced the bytes or the names of `node`; FAILED_SYNC was to, and what was not safe then never will be.
SYNC, FAILED_SYNC = "sync", "failed sync"


class Operation(NamedTuple):
    """One change of the file or directory `node`, or one forcing of it to the disk."""

    kind: str
    path: str
    node: int
    is_directory: bool = False
    directory: int = 0
    name: str = ""
    gone: tuple[tuple[int, str], ...] = ()
    offset: int = 0
    data: bytes = b""


class RecordingFile(FileOver):
    """`File` that tells what is done to it."""

    def __init__(self, disk: RecordingFiles, file: File, node: int) -> None:
        super().__init__(file)
        self._disk = disk
        self._node = node

    def _note(self, kind: str, offset: int = 0, data: bytes = b"") -> None:
        self._disk.operations.append(Operation(kind, self.path, self._node, offset=offset, data=data))

    def append(self, parts: Sequence[Buffer]) -> int:
        offset = self._file.append(parts)
        self._note(WRITE, offset, b"".join(parts))
        return offset

    def truncate(self, size: int) -> None:
        self._file.truncate(size)
        self._note(TRUNCATE, size)

    def patch(self, offset: int, data: Buffer) -> None:
        self._file.patch(offset, data)
        self._note(WRITE, offset, bytes(data))

    def sync(self) -> None:
        try:
            self._file.sync()
        except OSError:
            self._note(FAILED_SYNC)
            raise
        self._note(SYNC)


class RecordingFiles(FilesOver):
    """A `Files` that notes what is changed under `root`. For what is done one operation after another.

    Attributes:
        root: The directory that is looked at; node 0. Nothing outside of it may be changed.
        operations: All of them, in order. `known`: how many of them only tell what was there at the beginning.
    """

    def __init__(self, root: str, files: Files = DISK) -> None:
        super().__init__(files)
        self.root = root
        self.operations: list[Operation] = []
        # Of each directory, its names.
        self._names: dict[int, dict[str, int]] = {0: {}}
        self._count = 0
        self._learn(root)
        self.known = len(self.operations)

    def _learn(self, path: str) -> None:
        for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
            is_directory = entry.is_dir(follow_symlinks=False)
            node = self._named(entry.path, self._new(is_directory=is_directory))
            if is_directory:
                self._learn(entry.path)
            else:
                with open(entry.path, "rb") as file:
                    self.operations.append(Operation(WRITE, entry.path, node, data=file.read()))

    def _new(self, *, is_directory: bool = False) -> int:
        self._count += 1
        if is_directory:
            self._names[self._count] = {}
        return self._count

    def _place(self, path: str) -> tuple[int, str]:
        """(directory, name) of a path under the root."""
        relative = os.path.relpath(path, self.root)
        if relative.startswith(".."):
            raise ValueError(f"{path!r} is changed, which is not under {self.root!r}")
        *above, name = relative.split(os.sep)
        directory = 0
        for part in above:
            directory = self._names[directory][part]
        return directory, name

    def _node(self, path: str) -> int:
        if os.path.relpath(path, self.root) == os.curdir:
            return 0
        directory, name = self._place(path)
        return self._names[directory][name]

    def _named(self, path: str, node: int, gone: tuple[tuple[int, str], ...] = ()) -> int:
        directory, name = self._place(path)
        for place, old in gone:
            self._names[place].pop(old)
        self._names[directory][name] = node
        self.operations.append(Operation(NAME, path, node, node in self._names, directory, name, gone))
        return node

    def _unnamed(self, path: str) -> None:
        directory, name = self._place(path)
        node = self._names[directory].pop(name)
        self.operations.append(Operation(UNNAME, path, node, node in self._names, directory, name))

    def create(self, path: str) -> File:
        file = self._files.create(path)
        return RecordingFile(self, file, self._named(path, self._new()))

    def open(self, path: str, *, write: bool = False) -> File:
        file = self._files.open(path, write=write)
        if not write:
            return file
        return RecordingFile(self, file, self._node(path))

    def make_directory(self, path: str) -> None:
        missing = []
        while not self._files.exists(path):
            missing.append(path)
            path = os.path.dirname(path)
        for one in reversed(missing):
            self._files.make_directory(one)
            self._named(one, self._new(is_directory=True))

    def rename(self, source: str, target: str) -> None:
        self._files.rename(source, target)
        self._named(target, self._node(source), (self._place(source),))

    def link(self, source: str, target: str) -> None:
        self._files.link(source, target)
        self._named(target, self._node(source))

    def clone(self, source: str, target: str) -> None:
        self._files.clone(source, target)
        node = self._named(target, self._new())
        with open(target, "rb") as file:
            self.operations.append(Operation(WRITE, target, node, data=file.read()))

    def remove(self, path: str) -> None:
        self._files.remove(path)
        self._unnamed(path)

    def remove_tree(self, path: str) -> None:
        self._files.remove_tree(path)
        self._unnamed(path)

    def sync_directory(self, path: str) -> None:
        kind = SYNC
        try:
            self._files.sync_directory(path)
        except OSError:
            kind = FAILED_SYNC
            raise
        finally:
            # What lies above the root was there before and is not looked at.
            if not os.path.relpath(path, self.root).startswith(".."):
                self.operations.append(Operation(kind, path, self._node(path), is_directory=True))
