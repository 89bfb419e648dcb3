"""Where a dataset lies: what the shipping of runs needs of a directory or a bucket, and the directory.

Every file appears whole or not at all: it is written as a draft, which no reader sees, and published under its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import Any, Protocol

from daemon.sync.target import CURSORS
from sdk.errors import UsageError
from sdk.files import EXPORTS, Buffer, File, Files, read_whole

_TEXT_BYTES_MAX = 1 << 20
_WRITE_BYTES = 1 << 20


class Draft(Protocol):
    """A file that is being written; what pyarrow writes to."""

    closed: bool

    def write(self, data: Buffer) -> int: ...

    def flush(self) -> None: ...

    def tell(self) -> int: ...

    def close(self) -> None:
        """As pyarrow calls it; the draft stays until it is published or discarded."""


class Root(Protocol):
    """A dataset's root. Names are relative, with slashes. One thread.

    Every operation raises `UsageError` where the target cannot be used as it was named, `Retriable` where it cannot now.
    """

    text: str

    def check(self) -> None:
        """Asked once, before the first run."""

    def list(self, directory: str) -> dict[str, int]:
        """The files directly in a directory with their sizes; {} where there is none."""

    def draft(self, label: str) -> Draft:
        """A new draft. A label has one at a time: what a killed process left under it goes."""

    def sweep(self, label: str) -> None:
        """Removes what a killed process left under a label."""

    def publish(self, draft: Draft, name: str) -> int:
        """Gives a draft its name, over what had it before, and returns its size. It survives a loss of power."""

    def discard(self, draft: Draft) -> None: ...

    def put(self, name: str, data: Buffer) -> None:
        """Writes a small file, likewise whole."""

    def put_later(self, name: str, data: Buffer) -> None:
        """As `put`, but it is there, or has failed, only when `settle` returns."""

    def settle(self) -> None:
        """Waits for all that was to be put later, and raises what one of them met."""

    def abandon(self) -> None:
        """Drops what is to be put later and was not begun, and waits for the rest; raises nothing."""

    def get(self, name: str) -> bytes | None:
        """A small file; None: there is none."""

    def remove(self, name: str) -> None:
        """A file that is not there is no error."""

    def source(self, name: str) -> Any:
        """A file of rows for pyarrow to read, one of the small ones that are joined."""

    def close(self) -> None: ...


class DirectoryDraft:
    """A draft of `Directory`."""

    def __init__(self, files: Files, path: str) -> None:
        files.make_directory(os.path.dirname(path))
        self.file: File = files.create(path)
        self.path = path
        self.closed = False
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0

    def write(self, data: Buffer) -> int:
        # A file of some columns comes in a hundred pieces of some bytes.
        size = memoryview(data).nbytes
        if self._waiting_bytes + size > _WRITE_BYTES:
            self.flush_waiting()
        if size > _WRITE_BYTES:
            self.file.append([data])
        else:
            self._waiting.append(bytes(data))
            self._waiting_bytes += size
        return size

    def flush_waiting(self) -> None:
        """Writes what waits."""
        if self._waiting:
            waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
            self.file.append(waiting)

    def flush(self) -> None: ...

    def tell(self) -> int:
        return self.file.size + self._waiting_bytes

    def close(self) -> None: ...


class Directory:
    """A dataset in a directory of this machine."""

    def __init__(self, path: str, files: Files = EXPORTS) -> None:
        self.text = path
        self._files = files
        self._known: set[str] = set()

    def check(self) -> None:
        try:
            self._files.make_directory(self.text)
        except OSError as error:
            raise UsageError(f"cannot write a dataset to {self.text!r}: {error.strerror or error}") from error

    def list(self, directory: str) -> dict[str, int]:
        try:
            return {name: size for name, size, _ in self._files.entries(self._path(directory))}
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def draft(self, label: str) -> DirectoryDraft:
        self.sweep(label)
        return DirectoryDraft(self._files, self._draft_path(label))

    def sweep(self, label: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.remove(self._draft_path(label))

    def _draft_path(self, label: str) -> str:
        return os.path.join(self.text, CURSORS, f"{label}.draft")

    def publish(self, draft: Draft, name: str) -> int:
        assert isinstance(draft, DirectoryDraft)
        draft.flush_waiting()
        draft.file.sync()
        size = draft.file.size
        draft.file.close()
        path = self._path(name)
        self._make_directories(os.path.dirname(path))
        self._files.rename(draft.path, path)
        self._files.sync_directory(os.path.dirname(path))
        return size

    def discard(self, draft: Draft) -> None:
        assert isinstance(draft, DirectoryDraft)
        draft.file.close()
        with contextlib.suppress(OSError):
            self._files.remove(draft.path)

    def put(self, name: str, data: Buffer) -> None:
        # Several processes may write it at once.
        self._put(name, data, f"{os.getpid()}-{os.urandom(4).hex()}")

    def put_later(self, name: str, data: Buffer) -> None:
        # It belongs to a run, so a pass that comes after a killed one takes the same draft again.
        self._put(name, data, hashlib.sha256(name.encode()).hexdigest()[:16])

    def _put(self, name: str, data: Buffer, label: str) -> None:
        draft = self.draft(label)
        try:
            draft.write(data)
            self.publish(draft, name)
        except BaseException:
            self.discard(draft)
            raise

    def settle(self) -> None: ...

    def abandon(self) -> None: ...

    def get(self, name: str) -> bytes | None:
        try:
            return read_whole(self._files, self._path(name), _TEXT_BYTES_MAX)
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.remove(self._path(name))

    def source(self, name: str) -> str:
        return self._path(name)

    def close(self) -> None: ...

    def _path(self, name: str) -> str:
        return os.path.join(self.text, *name.split("/"))

    def _make_directories(self, path: str) -> None:
        """Makes a directory and forces its name, and those above it that may be new, to the disk."""
        if path in self._known and self._files.exists(path):
            return
        self._files.make_directory(path)
        above = os.path.dirname(path)
        while len(above) >= len(self.text):
            self._files.sync_directory(above)
            above = os.path.dirname(above)
        self._known.add(path)
