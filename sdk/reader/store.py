"""A store opened for reading: its runs, newest first, and one run by what people call it."""

from __future__ import annotations

import os
from collections.abc import Callable

from .. import clock
from ..errors import StoreError
from ..files import DISK, Files
from ..ids import run_directory
from ..location import find_store, read_store
from ..segment.naming import RUNS, parse_segment
from . import state
from .names import find_run
from .run import Run
from .times import ago


class Store:
    """The root directory that holds runs, for reading. Creates nothing, needs no daemon, works on a copy or over NFS.

    Attributes:
        path: Where it is.
    """

    def __init__(
        self,
        path: str,
        *,
        files: Files = DISK,
        alive: state.Alive = state.alive_here,
        now_ns: Callable[[], int] = clock.wall_ns,
    ) -> None:
        """Opens the store at `path`.

        Args:
            alive: Says whether a stream's process lives; for tests and for readers that know better.
            now_ns: The clock, for the age of data and for messages.

        Raises:
            StoreError: There is none, or a newer version made it.
        """
        self.path = read_store(path, files).path
        self._files = files
        self._alive = alive
        self._now_ns = now_ns

    def __repr__(self) -> str:
        return f"<stepd store {self.path!r}>"

    def runs(self, project: str | None = None) -> list[Run]:
        """All runs (of a project), the one that was started last first. Opens every run's segments for a moment.

        Raises:
            StoreError: The disk does not even list them.
        """
        try:
            names = [name for name, _, _ in self._files.entries(os.path.join(self.path, RUNS))]
        except OSError as error:
            raise StoreError(f"cannot list the runs of {self.path!r}: {error}") from error
        found = [self._open(name) for name in names if self._holds_segments(name)]
        chosen = [run for run in found if project is None or run.project == project]
        return sorted(chosen, key=lambda run: (run.started, run.created, run.id), reverse=True)

    def run(self, text: str = "latest") -> Run:
        """The run that `text` names: an id, a prefix of one, a name, `latest`, `latest~2` (two before it), or `project/…`.

        Raises:
            NotFoundError: No run or several; the message lists the nearest.
        """
        if not isinstance(text, str):
            raise TypeError(f"run is {type(text).__name__}, expected str: {text!r}")
        if text and "/" not in text:
            # An id leads to its directory without looking at the others.
            name = run_directory(text)
            if self._holds_segments(name):
                run = self._open(name)
                if run.id == text:
                    return run
        return find_run(text, _short(self.path), self.runs, lambda when: ago(when, self._now_ns() / 1e9))

    def _open(self, name: str) -> Run:
        directory = os.path.join(self.path, RUNS, name)
        return Run(directory, files=self._files, alive=self._alive, now_ns=self._now_ns)

    def _holds_segments(self, name: str) -> bool:
        try:
            entries = self._files.entries(os.path.join(self.path, RUNS, name))
        except OSError:
            return False
        return any(parse_segment(entry) is not None for entry, _, _ in entries)


def open_store(path: str | os.PathLike[str] | None = None, files: Files = DISK) -> Store:
    """Opens a store for reading.

    Args:
        path: None: `STEPD_DIR`, the nearest `.stepd/` upwards, or `~/.stepd`.
        files: The disk.

    Raises:
        StoreError: There is no store, or a newer version made it.
    """
    return Store(find_store(path).path, files=files)


def _short(path: str) -> str:
    """The path as people write it, with ~ for the home directory."""
    home = os.path.expanduser("~")
    return f"~{path[len(home) :]}" if home != "/" and path.startswith(home + os.sep) else path
