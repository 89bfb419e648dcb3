"""Giving the files of a version back: copied into a directory of the user's, each checked against its digest.

A copy and not a link: what a user does to a file that he was given must not change the store. Where the file system can clone,
a copy costs nothing. What is there already and right stays as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from urllib.parse import unquote, urlsplit

from ..errors import DamageError, UnsupportedError
from ..files import DISK, Files, read_whole
from ..ids import hex_u64, random_u64
from .format import Entry, object_path

_CHUNK_BYTES = 1 << 20


def local_path(reference: str) -> str | None:
    """The path that a ``file://`` reference names; None for any other."""
    parts = urlsplit(reference)
    return unquote(parts.path) if parts.scheme == "file" and parts.netloc in ("", "localhost") else None


def bytes_path(store: str, entry: Entry) -> str:
    """The file that holds an entry's bytes.

    Raises:
        UnsupportedError: They are not on this machine. FileNotFoundError: They were never stored.
    """
    if not entry.reference:
        if not entry.digest:
            raise FileNotFoundError(
                f"{entry.path!r} is not in the store: {entry.trouble or 'nothing of it was stored'}"
            )
        return object_path(store, entry.digest)
    path = local_path(entry.reference)
    if path is None:
        raise UnsupportedError(
            f"{entry.path!r} is a reference to {entry.reference!r}, and nothing is fetched from elsewhere",
            hint="fetch it with its own tool, or download(allow_missing_references=True) for the other files",
        )
    return path


def fetch(store: str, entry: Entry, root: str, files: Files = DISK) -> str:
    """Puts an entry's file below `root`; its path.

    Raises:
        FileNotFoundError: A reference whose file is gone, or a file that could not be stored.
        DamageError: The bytes are not those of the digest. Nothing is left of them.
        ValueError: A reference whose file is another now; or a link below `root` would lead out of it.
        UnsupportedError, OSError
    """
    source = bytes_path(store, entry)
    target = os.path.join(root, *entry.path.split("/"))
    directory = os.path.dirname(target)
    files.make_directory(directory)
    inside = os.path.join(os.path.realpath(root), *entry.path.split("/")[:-1])
    if os.path.realpath(directory) != os.path.normpath(inside):
        raise ValueError(
            f"cannot put {entry.path!r} below {root!r}: a link there leads to {os.path.realpath(directory)!r}"
        )
    if is_right(target, entry, files):
        return target
    draft = f"{target}.{hex_u64(random_u64())}.tmp"
    try:
        found = _copy(source, draft, files)
        if entry.is_read and found != entry.digest:
            raise _wrong(entry, source, found)
        files.rename(draft, target)
    except BaseException:
        with contextlib.suppress(OSError):
            files.remove(draft)
        raise
    return target


def read_bytes(store: str, entry: Entry, size_max: int, files: Files = DISK) -> bytes:
    """The bytes of an entry, checked.

    Raises:
        DamageError: They are not those of the digest. OSError, UnsupportedError: as `fetch`.
    """
    source = bytes_path(store, entry)
    data = read_whole(files, source, size_max)
    found = hashlib.sha256(data).hexdigest()
    if entry.is_read and found != entry.digest:
        raise _wrong(entry, source, found)
    return data


def is_right(path: str, entry: Entry, files: Files = DISK) -> bool:
    """Whether the file at `path` has the bytes of an entry."""
    try:
        if os.path.islink(path) or files.status(path).size != entry.size:
            return False
        return digest_of(path, files) == entry.digest
    except OSError:
        return False


def digest_of(path: str, files: Files = DISK) -> str:
    """SHA-256 of a file, in hex digits."""
    file = files.open(path)
    try:
        digest, size = hashlib.sha256(), 0
        while data := file.read(size, _CHUNK_BYTES):
            digest.update(data)
            size += len(data)
        return digest.hexdigest()
    finally:
        file.close()


def _copy(source: str, target: str, files: Files) -> str:
    """The digest of what is at `target` now."""
    try:
        files.clone(source, target)
        return digest_of(target, files)
    except FileNotFoundError:
        raise
    except OSError:
        pass
    file, made = files.open(source), files.create(target)
    try:
        digest, size = hashlib.sha256(), 0
        while data := file.read(size, _CHUNK_BYTES):
            digest.update(data)
            made.append([data])
            size += len(data)
        return digest.hexdigest()
    finally:
        made.close()
        file.close()


def _wrong(entry: Entry, source: str, found: str) -> Exception:
    text = f"{entry.path!r} in {source!r} has digest {found}, expected {entry.digest}"
    if entry.reference:
        return ValueError(f"{text}: the file that is referred to was changed")
    return DamageError(text, hint="stepd artifacts --verify")
