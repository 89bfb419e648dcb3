"""What the dead left behind: unsealed segments of killed writers.

Rings of dead trainers are drained by `daemon.ingest`, because their records go through the same pipeline as everybody's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from sdk import platform
from sdk.errors import Error
from sdk.files import Files
from sdk.journal.format import SUFFIX
from sdk.segment.format import FILE_HEADER_SIZE, KIND_META
from sdk.segment.naming import RUNS, parse_segment, run_path
from sdk.segment.reader import SegmentReader
from sdk.segment.recovery import Recovered, recover


class Mended(NamedTuple):
    """One segment that was looked at and mended, or could not be."""

    path: str
    result: Recovered | None
    error: str | None


class Judge:
    """Tells whether the writer of a segment is dead. Whoever cannot be judged counts as living.

    What proves it: the same machine was booted since; or, on this very boot, the lock of that daemon is ours now, the
    ring of that trainer was locked by us, or its pid means something here and is gone.

    Why not the host's name: two machines, or two containers, may share it and the store, but not the directory of locks.
    """

    def __init__(self, is_own: Callable[[int], bool], own_lock: str, is_stream_alive: Callable[[str], bool]) -> None:
        """A judge for one daemon.

        Args:
            is_own: Whether this daemon writes with that writer id now.
            own_lock: The identity of the lock file that we hold (`lock_identity`).
            is_stream_alive: Whether the trainer with this stream id holds its ring: its spool is its own.
        """
        self.is_own = is_own
        self._own_lock = own_lock
        self._is_stream_alive = is_stream_alive
        self._boot_id, self._machine, self._namespace = (
            platform.boot_id(),
            platform.machine_id(),
            platform.pid_namespace(),
        )

    def is_dead(self, reader: SegmentReader, *, stream_is_dead: bool = False) -> bool:
        """Whether nobody will write to this segment any more.

        Args:
            stream_is_dead: If a trainer wrote it, that trainer's ring was drained.
        """
        first = reader.blocks[0] if reader.blocks else None
        if first is None or first.kind != KIND_META:
            return False
        writer: Any = reader.read_map(first).get("writer")
        if type(writer) is not dict or not self._boot_id or "boot_id" not in writer:
            return False
        if writer["boot_id"] != self._boot_id:
            return bool(self._machine) and writer.get("machine") == self._machine
        if writer.get("kind") == "daemon":
            return bool(writer.get("lock") == self._own_lock)
        return stream_is_dead or self._trainer_is_dead(writer)

    def _trainer_is_dead(self, writer: dict[str, Any]) -> bool:
        stream, pid, namespace = writer.get("stream"), writer.get("pid"), writer.get("pid_namespace")
        if type(stream) is not str or type(pid) is not int or not namespace or namespace != self._namespace:
            return False
        # A ring in private memory has no file to ask, so a living pid counts as well.
        return not self._is_stream_alive(stream) and not platform.process_lives(pid)


def mend_segments(files: Files, store: str, judge: Judge) -> Iterator[Mended | None]:
    """Seals the unsealed segments of dead writers, one step for each value (None: nothing to do there).

    A generator, so that the server can do a little between two looks at its socket. Nothing is forced here.
    """
    runs = os.path.join(store, RUNS)
    for run_name, _, _ in files.entries(runs):
        yield from _mend_directory(files, os.path.join(runs, run_name), judge)


def mend_runs(files: Files, store: str, runs: Iterable[str], judge: Judge) -> Iterator[Mended | None]:
    """As `mend_segments`, for some runs: what a killed worker of ours wrote there."""
    for run in runs:
        directory = run_path(store, run)
        if files.exists(directory):
            yield from _mend_directory(files, directory, judge)


def _mend_directory(files: Files, directory: str, judge: Judge) -> Iterator[Mended | None]:
    for name, size, _ in files.entries(directory):
        parsed = parse_segment(name)
        if parsed is not None:  # of rows or of blobs
            yield _mend(files, os.path.join(directory, name), size, parsed.writer, judge, False)
    yield None


def mend_stream(
    files: Files, store: str, run: str, stream: int, judge: Judge, *, is_dead: bool
) -> Iterator[Mended | None]:
    """As `mend_segments`, for the segments that the trainer of an ended stream wrote itself.

    Args:
        is_dead: Its ring was drained, so it is dead, whatever its pid says.
    """
    directory = run_path(store, run)
    for name, size, _ in files.entries(directory):
        parsed = parse_segment(name)
        if parsed is not None and parsed.writer == stream:
            yield _mend(files, os.path.join(directory, name), size, stream, judge, is_dead)


def wrote_segments(files: Files, store: str, run: str, stream: int) -> bool:
    """Whether the trainer of a stream wrote segments itself, as far as the disk says."""
    try:
        names = [parse_segment(entry) for entry, _, _ in files.entries(run_path(store, run))]
    except OSError:
        return False
    return any(name is not None and name.writer == stream for name in names)


def _mend(files: Files, path: str, size: int, writer: int, judge: Judge, stream_is_dead: bool) -> Mended | None:
    try:
        if size < FILE_HEADER_SIZE or judge.is_own(writer):
            return None  # too short: its writer may be making it right now, and the reader ignores it
        reader = SegmentReader(files, path)
        try:
            if reader.sealed or not judge.is_dead(reader, stream_is_dead=stream_is_dead):
                return None
        finally:
            reader.close()
        return Mended(path, recover(files, path), None)
    except (OSError, Error) as error:
        return Mended(path, None, str(error))


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
