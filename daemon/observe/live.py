"""Files that are kept up to date while a training runs: `run.save` with the policy "live", and "end" of one that was killed.

The trainer leaves its patterns in ``<run's directory>/live.json`` and does the last copies itself when it ends well; it removes
the file then. Who finds it after the trainer's death does them in its place. Copies are made in a thread of their own: a
checkpoint takes its time.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
from collections.abc import Mapping
from typing import Any

from sdk import clock, runfiles
from sdk._files import LIVE_BYTES_MAX, LIVE_FILE, expand
from sdk.errors import Error
from sdk.files import DISK, read_whole
from sdk.limits import FREE_BYTES_MIN
from sdk.platform import machine_id
from sdk.segment.naming import machine_tag

PERIOD_SECONDS = 30.0
# A file that changed so short a time ago may be in the middle of being written.
_QUIET_SECONDS = 2.0
_TRIES_MAX = 3


class LiveFiles:
    """What the observer asks for. Never waits; a run whose copies take longer than the period is not asked for again."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}
        self._over: set[str] = set()
        self._asked: queue.SimpleQueue[tuple[str, bool]] = queue.SimpleQueue()
        self._busy: set[str] = set()
        self._thread: threading.Thread | None = None

    def look(self, now: float, runs: Mapping[str, bool]) -> None:
        """Has the files of runs copied that are due.

        Args:
            now: A clock that only goes forward, in seconds.
            runs: Directory of each run that is observed -> whether its trainers are gone.
        """
        for directory in [known for known in self._next if known not in runs]:
            del self._next[directory]
            self._over.discard(directory)
        for directory, is_over in runs.items():
            ends = is_over and directory not in self._over
            if directory in self._busy or not (ends or (now >= self._next.get(directory, now) and not is_over)):
                continue
            self._next[directory] = now + PERIOD_SECONDS
            if is_over:
                self._over.add(directory)
            else:
                self._over.discard(directory)
            if DISK.exists(os.path.join(directory, LIVE_FILE)):
                self._ask(directory, is_over)

    def _ask(self, directory: str, is_over: bool) -> None:
        self._busy.add(directory)
        self._asked.put((directory, is_over))
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="stepd-live", daemon=True)
            self._thread.start()

    def _serve(self) -> None:
        while True:
            directory, is_over = self._asked.get()
            # Whatever fails is tried again in a while; a reader sees how old the copy is.
            with contextlib.suppress(Exception):
                refresh(directory, is_over)
            self._busy.discard(directory)


def refresh(run_directory: str, is_over: bool) -> int:
    """Copies what has changed, and returns how much that was. After the end also what was to be kept then.

    Raises:
        OSError: The list of patterns cannot be read.
    """
    told = _read(run_directory)
    copied = 0
    for pattern, base, glob, policy in told:
        if policy == "live" or is_over:
            copied += sum(
                _keep(runfiles.files_path(run_directory), found, is_over) for found in expand(pattern, base, glob)
            )
    if is_over:
        with contextlib.suppress(OSError):
            DISK.remove(os.path.join(run_directory, LIVE_FILE))
    return copied


def _read(run_directory: str) -> list[tuple[str, str, bool, str]]:
    """The patterns: none where another machine's paths are meant. Raises OSError."""
    first, *lines = read_whole(DISK, os.path.join(run_directory, LIVE_FILE), LIVE_BYTES_MAX).split(b"\n")
    try:
        if json.loads(first)["machine"] != machine_tag(machine_id()):
            return []
    except (ValueError, TypeError, KeyError, RecursionError):
        return []
    told: dict[tuple[str, str, bool], str] = {}
    for line in lines:
        # The last one may be half written.
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            pattern, base, glob, policy = json.loads(line)
            told[str(pattern), str(base), bool(glob)] = str(policy)
    return [(*where, policy) for where, policy in told.items()]


def _keep(directory: str, found: Any, is_over: bool) -> bool:
    try:
        status = DISK.status(found.source)
        path = os.path.join(directory, *runfiles.check_name(found.name).split("/"))
        is_young = clock.wall_ns() - status.modified_ns < _QUIET_SECONDS * 1e9
        if (
            not status.is_regular
            or runfiles.is_copy(path, status.size, status.modified_ns)
            or (is_young and not is_over)
        ):
            return False
        if DISK.free_bytes(os.path.dirname(directory)) < status.size + FREE_BYTES_MIN:
            return False
        for _ in range(_TRIES_MAX):
            runfiles.copy_in(found.source, directory, found.name)
            # Race: 1. we read the old bytes, 2. the trainer ends and copies new ones, 3. our rename puts the old in their place.
            status = DISK.status(found.source)
            if runfiles.is_copy(path, status.size, status.modified_ns):
                break
    except (OSError, Error, ValueError):
        return False
    return True
