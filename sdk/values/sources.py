"""Bytes of files that the user gives: by a path, as bytes, or as an open file.

They are read at once, in the calling thread, and stored as they are.
"""

from __future__ import annotations

import os
import re
from typing import Any

# W&B's references: names of something that is elsewhere.
_REFERENCE = re.compile(r"(gs|s3|https?)://", re.IGNORECASE)


def is_path(value: object) -> bool:
    """Whether it names a file: a str, a pathlib.Path or another PathLike, and not bytes, which are a file's content."""
    return isinstance(value, (str, os.PathLike))


def read_path(path: Any, what: str) -> bytes:
    """The content of a user's file.

    Args:
        what: Who asks, for the error.

    Raises:
        OSError: It is not there or cannot be read.
        ValueError: It is the address of something elsewhere.
    """
    name = os.fspath(path)
    if isinstance(name, str) and _REFERENCE.match(name):
        raise ValueError(
            f"{what} is given {name!r}, which is not on this machine, and nothing is fetched; download it first"
        )
    with open(name, "rb") as file:
        return file.read()


def read_given(value: Any) -> bytes | None:
    """The content of bytes-like or of a file open for reading (from its beginning; its position is kept), else None.

    Raises:
        TypeError: The file is open as text, and its bytes cannot be had.
        OSError, ValueError: It cannot be read.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if hasattr(value, "getvalue"):  # BytesIO
        content = value.getvalue()
    elif hasattr(value, "read"):
        value = getattr(value, "buffer", value)  # behind open(path) without "b"
        position = value.tell() if _is_seekable(value) else None
        if position:
            value.seek(0)
        content = value.read()
        if position is not None:
            value.seek(position)
    else:
        return None
    if not isinstance(content, (bytes, bytearray, memoryview)):
        raise TypeError(f"a file gives {type(content).__name__}, expected bytes: open it with mode 'rb'")
    return bytes(content)


def _is_seekable(file: Any) -> bool:
    seekable = getattr(file, "seekable", None)
    return seekable is not None and bool(seekable())
