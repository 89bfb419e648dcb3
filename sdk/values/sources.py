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


def read_given(value: Any, *, is_text: bool = False) -> bytes | None:
    """The content of bytes-like or of an open file (from its beginning; its position is kept), else None.

    A file that was closed, or is open for writing, is read by its name.

    Args:
        is_text: Whether a file may give text, which becomes UTF-8.

    Raises:
        TypeError: The file gives no bytes.
        OSError, ValueError: It cannot be read.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if hasattr(value, "getvalue"):  # BytesIO, StringIO
        content = value.getvalue()
    elif hasattr(value, "read"):
        value = getattr(value, "buffer", value)  # behind open(path) without "b"
        content = _read_open(value)
    else:
        return None
    if is_text and isinstance(content, str):
        return content.encode()
    if not isinstance(content, (bytes, bytearray, memoryview)):
        raise TypeError(f"a file gives {type(content).__name__}, expected bytes: open it with mode 'rb'")
    return bytes(content)


def _read_open(file: Any) -> Any:
    readable = getattr(file, "readable", None)
    if getattr(file, "closed", False) or (readable is not None and not readable()):
        name = getattr(file, "name", None)
        if not isinstance(name, (str, os.PathLike)):
            raise ValueError(f"{file!r} is closed or not open for reading")
        with open(name, "rb") as again:
            return again.read()
    position = file.tell() if _is_seekable(file) else None
    if position:
        file.seek(0)
    content = file.read()
    if position is not None:
        file.seek(position)
    return content


def _is_seekable(file: Any) -> bool:
    seekable = getattr(file, "seekable", None)
    return seekable is not None and bool(seekable())


def name_of(value: Any) -> str | None:
    """What a path or an open file is called; None: it has no name."""
    name: Any = value if is_path(value) else getattr(value, "name", None)
    return os.fsdecode(name) if is_path(name) else None


# Where a format shows: offset, bytes, format.
_SIGNATURES = (
    (0, b"GIF8", "gif"), (4, b"ftyp", "mp4"), (0, b"\x1a\x45\xdf\xa3", "webm"), (0, b"OggS", "ogg"), (8, b"WAVE", "wav"),
    (0, b"fLaC", "flac"), (8, b"AIFF", "aiff"), (8, b"AIFC", "aiff"), (0, b"ID3", "mp3"), (0, b"\xff\xfb", "mp3"),
)  # fmt: skip


def format_of(data: bytes) -> str | None:
    """The format of a sound's or video's file by its first bytes; None: unknown, which is common for mp4 and mp3."""
    for offset, signature, found in _SIGNATURES:
        if data.startswith(signature, offset):
            return found
    return None
