"""A file that grows by what is new, and is cut back to what was safe when somebody was killed in between."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from sdk.files import EXPORTS, Buffer, File, Files, sync_names


def is_inside(path: object) -> bool:
    """Whether a relative path of a state leads nowhere else. A state is hostile input where others may write into the target."""
    return isinstance(path, str) and "\0" not in path and not path.startswith("/") and ".." not in path.split("/")


def is_name(name: object) -> bool:
    """Whether it is the name of one file or directory, and leads nowhere else; "" is the directory itself."""
    return is_inside(name) and "/" not in str(name)


def is_count(number: object) -> bool:
    """Whether it is a length that a state may tell."""
    return type(number) is int and 0 <= number < 2**63


class AppendFile:
    """A file of a target. What lies beyond `length` was written by a pass that did not come to its `commit`, and is cut off.

    Args:
        length: What the state of the last commit says; 0: the file begins anew.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is shorter than `length`: somebody else has changed it.
    """

    def __init__(self, path: str, length: int = 0, files: Files = EXPORTS) -> None:
        self.path = path
        self._files = files
        self._is_named = length > 0
        if length == 0:
            with contextlib.suppress(FileNotFoundError):
                files.remove(path)
            files.make_directory(os.path.dirname(path))
            self._file: File = files.create(path)
            return
        self._file = files.open(path, write=True)
        if self._file.size < length:
            found = self._file.size
            self._file.close()
            raise ValueError(f"{path!r} has {found} bytes, expected the {length} that were written before")
        if self._file.size > length:
            self._file.truncate(length)

    @property
    def length(self) -> int:
        return self._file.size

    def write(self, parts: Sequence[Buffer]) -> None:
        """Appends all parts; `OSError`: nothing of them is there."""
        self._file.append(parts)

    def force(self) -> int:
        """Forces what was written, and the file's name, to the disk; returns the length, for the state."""
        self._file.sync()
        if not self._is_named:
            sync_names(self._files, os.path.dirname(self.path))
            self._is_named = True
        return self._file.size

    def close(self) -> None:
        self._file.close()
