"""A store opened for reading: its runs, newest first, and one run by what people call it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from .. import clock
from ..errors import StoreError
from ..files import DISK, Files
from ..ids import run_directory
from ..location import find_store, read_store
from ..segment.naming import RUNS, parse_segment
from . import state
from .listing import Card, Cards, Look, look_at, read_cards
from .names import find_run
from .run import Run
from .times import ago

if TYPE_CHECKING:
    from .many import RunsSeries


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

    def _repr_html_(self) -> str:
        from .cards import store_table

        return store_table(self, self._now_ns() / 1e9)

    def runs(self, project: str | None = None) -> list[Run]:
        """All runs (of a project), the one that was started last first.

        Opens the segments of a run for a moment, unless it is over and the store's cache (`listing`) still tells of it.

        Raises:
            StoreError: The disk does not even list them.
        """
        try:
            directories = self._files.entries(os.path.join(self.path, RUNS))
        except OSError as error:
            raise StoreError(f"cannot list the runs of {self.path!r}: {error}") from error
        cards = read_cards(self._files, self.path)
        now = self._now_ns() / 1e9
        found = [self._listed(name, changed, now, cards) for name, _, changed in directories]
        chosen = [run for run in found if run is not None and (project is None or run.project == project)]
        return sorted(chosen, key=lambda run: (run.started, run.created, run.id), reverse=True)

    def _listed(self, name: str, changed: float, now: float, cards: Cards) -> Run | None:
        """The run in a directory, not opened where its card is still true; None without segments."""
        try:
            entries = self._files.entries(os.path.join(self.path, RUNS, name))
        except OSError:
            return None
        look = look_at(entries, changed, now)
        if name in cards and cards[name][:2] == look[:2]:
            return self._open(name, cards[name][2], look)
        return self._open(name, look=look) if _hold_segments(entries) else None

    def run(self, text: str = "latest") -> Run:
        """The run that `text` names: an id, a prefix of one, a name, `latest`, `latest~2` (two before it), or `project/…`.

        A name may have slashes: the exact one counts before `project/…`.

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

    def series(
        self,
        keys: str | Iterable[str],
        runs: str | Run | Iterable[str | Run] | None = None,
        *,
        project: str | None = None,
        points: int | None = None,
    ) -> RunsSeries:
        """Series of several runs at once, by (run id, key). Runs without such a key are left out.

        Args:
            keys: Names, or patterns of them: "train/*".
            runs: Runs, or what `run` finds them by; None: all (of `project`), the newest first.
            points: As in `Run.series`; values that are no numbers are all given.

        Raises:
            NotFoundError: `runs` names what is no run.
            Error: `points` needs tsdownsample, and it is not installed.
        """
        from .many import read_runs

        wanted = [keys] if isinstance(keys, str) else list(keys)
        if points is not None:
            from .points import check_points, library

            check_points(points)
            library()
        if runs is None:
            return read_runs(self.runs(project), wanted, points)
        named = [runs] if isinstance(runs, (str, Run)) else list(runs)
        found = [run if isinstance(run, Run) else self.run(run) for run in named]
        return read_runs([run for run in found if project is None or run.project == project], wanted, points)

    def _open(self, name: str, card: Card | None = None, look: Look | None = None) -> Run:
        directory = os.path.join(self.path, RUNS, name)
        return Run(directory, files=self._files, alive=self._alive, now_ns=self._now_ns, card=card, look=look)

    def _holds_segments(self, name: str) -> bool:
        try:
            entries = self._files.entries(os.path.join(self.path, RUNS, name))
        except OSError:
            return False
        return _hold_segments(entries)


def _hold_segments(entries: list[tuple[str, int, float]]) -> bool:
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
