"""The files of a run: where they lie, which names they may have, and how one gets there.

``<run's directory>/files/`` is what `run.dir` gives: whatever is put there is a file of the run. The trainer, the keeper and
the observer add to it, each file whole or not at all: it is written as a draft beside its place and renamed. Nobody forces
them to the disk: a file that a power loss takes was a copy. Names are hostile when they are read: nothing here follows a link.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .errors import StoreError
from .files import DISK, Files
from .ids import hex_u64, random_u64
from .segment.naming import FILES

# The directory of a run's files where its code is kept.
CODE = "code"
BUFFER_BYTES = 1 << 20
NAME_CHARACTERS_MAX = 1024
DEPTH_MAX = 32
# Limit: a listing of so many takes about a second; a data set that somebody wrote into run.dir is not listed whole.
LISTED_MAX = 100_000
_DRAFT = re.compile(r"\.[0-9a-f]{16}\.draft")


class Kept(NamedTuple):
    """A file that is there. `name` is relative to the run's files, with slashes; `modified` in Unix seconds."""

    name: str
    size: int
    modified: float


def files_path(run_directory: str) -> str:
    return os.path.join(run_directory, FILES)


def check_name(name: str) -> str:
    """The name with plain slashes: ``a//b/./c`` as ``a/b/c``.

    Raises:
        ValueError: It leads out of the run's files, or no file can be called so.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or not parts or "\0" in name:
        raise ValueError(f"the name of a file of a run is {name[:80]!r}, expected one below the run's directory")
    if len(name) > NAME_CHARACTERS_MAX or len(parts) > DEPTH_MAX:
        raise ValueError(
            f"the name of a file of a run has {len(name)} characters and {len(parts)} parts, "
            f"expected at most {NAME_CHARACTERS_MAX} and {DEPTH_MAX}"
        )
    return "/".join(parts)


def place_of(directory: str, name: str, files: Files = DISK) -> str:
    """The path for a file of this name, with the directories above it made.

    Raises:
        ValueError: As `check_name`. StoreError: A link on the way leads out of `directory`.
        OSError: They cannot be made, or the directory above `directory` is gone: a run that was removed stays so.
    """
    path = os.path.join(directory, *check_name(name).split("/"))
    above = os.path.dirname(path)
    if not files.exists(os.path.dirname(directory)):
        raise FileNotFoundError(errno.ENOENT, "the run was removed", directory)
    there = above
    while len(there) > len(directory) and not files.exists(there):
        there = os.path.dirname(there)
    # Why before too: what a link leads to must not get directories of ours.
    _require_inside(there, directory)
    files.make_directory(above)
    _require_inside(above, directory)
    return path


def _require_inside(path: str, directory: str) -> None:
    whole = os.path.realpath(directory)
    # A path that is no longer than `directory` is that itself.
    if len(path) > len(directory) and os.path.commonpath([whole, os.path.realpath(path)]) != whole:
        raise StoreError(f"{path!r} is a link out of {directory!r}; nothing is written there")


def put_bytes(directory: str, name: str, data: bytes, files: Files = DISK) -> str:
    """Makes or replaces a file; its path. Raises as `place_of`."""
    path = place_of(directory, name, files)
    with _draft_of(path, files) as draft:
        file = files.create(draft)
        try:
            file.append([data])
        finally:
            file.close()
    return path


def copy_in(
    source: str,
    directory: str,
    name: str,
    files: Files = DISK,
    is_wanted: Callable[[], bool] = lambda: True,
    drafter: str = "",
) -> int:
    """Makes or replaces a file by a copy of another, which keeps its time of change; the bytes that were copied.

    Where the file system can, both share their bytes until one changes. Else it takes as long as the disk, and no more
    memory than `BUFFER_BYTES`.

    Args:
        is_wanted: Asked for every buffer.
        drafter: Who copies, where nobody else of that name can be copying this file: what it left half done when it was
            killed is then found and removed. Without one a draft of the killed stays.

    Raises:
        InterruptedError: It is not wanted any more. Nothing was replaced.
        OSError: The source is gone or no regular file, or the disk does not take the copy.
        ValueError, StoreError: As `place_of`.
    """
    status = files.status(source)
    if not status.is_regular:
        raise OSError(errno.EINVAL, "is not a regular file", source)
    path = place_of(directory, name, files)
    with _draft_of(path, files, drafter) as draft:
        modified_ns = status.modified_ns if _shared(source, draft, files) else _copy(source, draft, files, is_wanted)
        files.set_modified(draft, modified_ns / 1e9)
    return status.size


def can_share(source: str, directory: str, files: Files = DISK) -> bool:
    """Whether a copy may cost nothing: both lie on one file system. False where nobody can tell."""
    with contextlib.suppress(OSError):
        return files.status(source).device == files.status(directory).device
    return False


def share_in(source: str, directory: str, name: str, files: Files = DISK) -> bool:
    """As `copy_in` where no byte has to be copied; False where it would have to."""
    path = place_of(directory, name, files)
    try:
        with _draft_of(path, files) as draft:
            status = files.status(source)
            if not status.is_regular or not _shared(source, draft, files):
                raise InterruptedError
            files.set_modified(draft, status.modified_ns / 1e9)
    except InterruptedError:
        return False
    return True


def _shared(source: str, draft: str, files: Files) -> bool:
    try:
        files.clone(source, draft)
    except OSError:
        return False
    return True


def _copy(source: str, draft: str, files: Files, is_wanted: Callable[[], bool]) -> int:
    """Copies and returns when the source had changed last, in ns, by the end: one that changes meanwhile shows."""
    # Why not `Files.open`: it follows no links, and the user's own file may be reached by one.
    descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        target = files.create(draft)
        try:
            while data := os.read(descriptor, BUFFER_BYTES):
                if not is_wanted():
                    raise InterruptedError(f"copying {source!r} was given up")
                target.append([data])
        finally:
            target.close()
        return os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _draft_of(path: str, files: Files, drafter: str = "") -> Iterator[str]:
    """A name to write to; it becomes `path` when the block ends, and goes when it fails."""
    above, name = os.path.split(path)
    tag = hex_u64(random_u64())
    if drafter:
        tag = f"{zlib.crc32(drafter.encode()):08x}{zlib.crc32(os.fsencode(name)):08x}"
    draft = os.path.join(above, f".{tag}.draft")
    if drafter:
        with contextlib.suppress(OSError):
            files.remove(draft)
    try:
        yield draft
        files.rename(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            files.remove(draft)
        raise


def is_copy(path: str, size: int, modified_ns: int, files: Files = DISK) -> bool:
    """Whether there is a copy of a file of that size and time of change."""
    try:
        there = files.status(path)
    except OSError:
        return False
    # Times of change are set as floats, which hold them to some 0.2 µs.
    return there.size == size and abs(there.modified_ns - modified_ns) < 10_000


def walk(directory: str) -> Iterator[Kept]:
    """The regular files below, by name; at most `LISTED_MAX`. Links, drafts and what cannot be read are passed over."""
    waiting, found = [("", 1)], 0
    while waiting:
        prefix, depth = waiting.pop()
        below = []
        for name, entry in _entries(os.path.join(directory, *prefix.split("/")) if prefix else directory):
            if stat.S_ISDIR(entry.st_mode) and depth < DEPTH_MAX:
                below.append((f"{prefix}{name}/", depth + 1))
            elif stat.S_ISREG(entry.st_mode) and not _DRAFT.fullmatch(name):
                found += 1
                if found > LISTED_MAX:
                    return
                yield Kept(prefix + name, entry.st_size, entry.st_mtime)
        waiting += reversed(below)


def _entries(directory: str) -> list[tuple[str, os.stat_result]]:
    found = []
    with contextlib.suppress(OSError), os.scandir(directory) as scan:
        for entry in scan:
            with contextlib.suppress(OSError):
                found.append((entry.name, entry.stat(follow_symlinks=False)))
    return sorted(found)


def open_kept(directory: str, name: str) -> int:
    """A descriptor to read a file of a run. Every part of the way is opened without following links.

    Raises:
        ValueError: As `check_name`. OSError: It is not there, is no regular file, or a link leads to it.
    """
    *above, last = check_name(name).split("/")
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    here = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in above:
            following = os.open(part, flags | os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = following
        descriptor = os.open(last, flags, dir_fd=here)
    finally:
        os.close(here)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", name)
    return descriptor
