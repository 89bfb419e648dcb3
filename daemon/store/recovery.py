"""What the dead left behind: unsealed segments of killed writers.

Rings of dead trainers are drained by `daemon.ingest`, because their records go through the same pipeline as everybody's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sdk import platform
from sdk.errors import Error
from sdk.files import Files
from sdk.journal.format import SUFFIX
from sdk.segment.format import FILE_HEADER_SIZE, KIND_META
from sdk.segment.naming import RUNS, parse_segment
from sdk.segment.reader import SegmentReader
from sdk.segment.recovery import Recovered, recover


class Mended(NamedTuple):
    """One segment that was looked at and mended, or could not be."""

    path: str
    result: Recovered | None
    error: str | None


def mend_segments(
    files: Files, store: str, own_writer: int, own_lock: str, is_stream_alive: Callable[[str], bool]
) -> Iterator[Mended | None]:
    """Seals the unsealed segments of dead writers of this host, one step for each value (None: nothing to do there).

    A generator, so that the server can do a little between two looks at its socket.

    Args:
        own_lock: The identity of the lock file that we hold (`lock_identity`).
        is_stream_alive: Whether the trainer with this stream id still lives: its spool is its own.
    """
    runs = os.path.join(store, RUNS)
    for run_name, _, _ in files.entries(runs):
        directory = os.path.join(runs, run_name)
        for name, size, _ in files.entries(directory):
            parsed = parse_segment(name)
            if parsed is None or parsed.writer == own_writer:
                continue
            path = os.path.join(directory, name)
            yield _mend(files, path, size, own_lock, is_stream_alive)
        yield None


def _mend(files: Files, path: str, size: int, own_lock: str, is_stream_alive: Callable[[str], bool]) -> Mended | None:
    try:
        if size < FILE_HEADER_SIZE:
            return None  # its writer may be making it right now; the reader ignores it
        reader = SegmentReader(files, path)
        try:
            if reader.sealed or not _writer_is_dead(reader, own_lock, is_stream_alive):
                return None
        finally:
            reader.close()
        result = recover(files, path)
        _force(files, path)
        return Mended(path, result, None)
    except (OSError, Error) as error:
        return Mended(path, None, str(error))


def _force(files: Files, path: str) -> None:
    """Its writer may have died before its fsync, and what comes after it will be said to be safe."""
    if files.exists(path):
        file = files.open(path, write=True)
        try:
            file.sync()
        finally:
            file.close()
        files.sync_directory(os.path.dirname(path))


def _writer_is_dead(reader: SegmentReader, own_lock: str, is_stream_alive: Callable[[str], bool]) -> bool:
    """Only this host's writers can be judged: a daemon by the lock file that we hold now, a trainer by its ring's lock.

    Why the lock file's identity: two containers may share host name and store but not the directory of locks.
    """
    first = reader.blocks[0] if reader.blocks else None
    if first is None or first.kind != KIND_META:
        return False
    writer: Any = reader.read_map(first).get("writer")
    if type(writer) is not dict or writer.get("host") != platform.host_name():
        return False
    if writer.get("boot_id") != platform.boot_id():
        return True
    if writer.get("kind") == "daemon":
        return writer.get("lock") == own_lock
    stream, pid = writer.get("stream"), writer.get("pid")
    # A ring in private memory has no file to ask, so a living pid counts as well.
    return isinstance(stream, str) and not is_stream_alive(stream) and not os.path.exists(f"/proc/{pid}")


def lock_identity(path: str) -> str:
    """A text that names the lock file at `path` on this boot."""
    status = os.stat(path)
    return f"{status.st_dev}:{status.st_ino}"


def ring_is_locked(shared_memory_dir: str, store_digest: str) -> Callable[[str], bool]:
    """A function that says whether the trainer of a stream (16 hex digits) lives, by the lock on its ring."""

    def is_alive(stream: str) -> bool:
        try:
            directory = platform.shared_directory(shared_memory_dir)
        except (OSError, Error):
            return True
        return platform.is_locked(os.path.join(directory, f"{store_digest}-{stream}{SUFFIX}"))

    return is_alive
