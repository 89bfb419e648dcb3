"""A store opened for reading: its runs, newest first, and one run by what people call it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .. import clock
from ..errors import NotFoundError, StoreError
from ..files import DISK, Files
from ..ids import run_directory
from ..location import find_store, read_store
from ..segment.naming import RUNS, parse_segment
from . import state
from .listing import SETTLED_SECONDS, Card, Cards, Look, look_at, read_cards
from .names import find_run, list_names
from .run import Run
from .times import ago

if TYPE_CHECKING:
    from ..query.table import RunsTable
    from .many import RunsSeries


# How many of the runs that cannot be read are named.
_NAMED_MAX = 3


class Store:
    """The root directory that holds runs, for reading. Creates nothing, needs no daemon, works on a copy or over NFS.

    Attributes:
        path: Where it is.
        unreadable: The runs that the last list had to leave out: name of the directory, and why it cannot be listed.
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
        self.unreadable: dict[str, str] = {}
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
        directories = self._directories()
        cards = read_cards(self._files, self.path)
        now = self._now_ns() / 1e9
        self.unreadable.clear()
        found = [self._listed(name, changed, now, cards) for name, _, changed in directories]
        chosen = [run for run in found if run is not None and (project is None or run.project == project)]
        return sorted(chosen, key=lambda run: (run.started, run.created, run.id), reverse=True)

    def changed(self, seen: dict[str, float]) -> Iterator[Run]:
        """The runs whose directories are new or have got or lost a file since `seen` was filled, those that changed last first.

        Args:
            seen: Name of a run's directory to what it was like; {} at first. Brought up to date: what is gone goes.

        Raises:
            StoreError: The disk does not even list them.
        """
        directories = self._directories()
        for name in seen.keys() - {name for name, _, _ in directories}:
            del seen[name]
            self.unreadable.pop(name, None)
        # One that may be read now has not changed for that.
        seen.update(dict.fromkeys(self.unreadable.keys() & seen.keys(), -1.0))
        now = self._now_ns() / 1e9
        fresh = [(changed, name) for name, _, changed in directories if seen.get(name) != changed]
        cards = read_cards(self._files, self.path) if fresh else {}
        for changed, name in sorted(fresh, reverse=True):
            # What changed just now may change again within the same tick of the file system's clock.
            seen[name] = changed if now - changed > SETTLED_SECONDS else -1.0
            run = self._listed(name, changed, now, cards)
            if run is not None:
                yield run

    @property
    def left_out(self) -> str:
        """What `unreadable` holds, in a sentence: "2 runs cannot be read: Permission denied: 'a41f', 'b7c2'"; "" for nothing."""
        if not self.unreadable:
            return ""
        names = sorted(self.unreadable)
        told = list_names(names[:_NAMED_MAX]) + (", …" if names[_NAMED_MAX:] else "")
        reasons = ", ".join(sorted(set(self.unreadable.values()))[:_NAMED_MAX])
        return f"{len(names):,} run{'s' if names[1:] else ''} cannot be read: {reasons}: {told}"

    def _directories(self) -> list[tuple[str, int, float]]:
        try:
            return self._files.entries(os.path.join(self.path, RUNS))
        except OSError as error:
            raise StoreError(f"cannot list the runs of {self.path!r}: {error}") from error

    def _listed(self, name: str, changed: float, now: float, cards: Cards) -> Run | None:
        """The run in a directory, not opened where its card is still true; None without segments."""
        try:
            entries = self._files.entries(os.path.join(self.path, RUNS, name))
        except OSError as error:
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):  # it was removed meanwhile; it is no run
                self.unreadable[name] = error.strerror or str(error)
            return None
        self.unreadable.pop(name, None)
        look = look_at(entries, changed, now)
        if name in cards and cards[name][:2] == look[:2]:
            return self._open(name, cards[name][2], look)
        try:
            return self._open(name, look=look) if _hold_segments(entries) else None
        except StoreError:  # its segments keep disappearing: it is being removed
            return None

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
        """
        from .many import read_runs

        wanted = [keys] if isinstance(keys, str) else list(keys)
        if points is not None:
            from .points import check_points

            check_points(points)
        if runs is None:
            return read_runs(self.runs(project), wanted, points)
        named = [runs] if isinstance(runs, (str, Run)) else list(runs)
        found = [run if isinstance(run, Run) else self.run(run) for run in named]
        return read_runs([run for run in found if project is None or run.project == project], wanted, points)

    def plot(
        self, keys: str | Iterable[str] = (), runs: str | Run | Iterable[str | Run] | None = None, *,
        project: str | None = None, where: str | None = None, group: str | Iterable[str] = (), over: str | None = None,
        band: str | None = None, x: str = "auto", smooth: float | None = None, log: bool = False, points: int = 2000,
        title: str | None = None, size: tuple[float, float] | None = None,
    ) -> Any:  # fmt: skip
        """A matplotlib figure of several runs, as `Run.plot`.

        Args:
            keys: Names or patterns; none: those worth showing first.
            runs: Runs, or what `run` finds them by; None: all (of `project`), of which without `group` and `over` the newest ten are drawn.
            where: Only runs for which this holds: "config.lr < 1e-3 and state = finished".
            group: Runs with the same values of these ("config.method") are one line, their mean.
            over: What differs within a group: "seed".
            band: Around a mean: "std", "sem", "minmax" or "ci95".

        Raises:
            Error: matplotlib is not installed.
            NotFoundError: No such run or key.
            UsageError: `where`, `smooth` or `band` is none.
        """
        from .drawing import RUNS_MAX, draw

        if runs is None:
            found = self.runs(project)
        else:
            named = [runs] if isinstance(runs, (str, Run)) else list(runs)
            found = [run if isinstance(run, Run) else self.run(run) for run in named]
        if where is not None:
            from ..query.overview import select

            found = select(found, where)
        if not found:
            raise NotFoundError(f"{self.path!r} has no such run to draw", hint="store.runs()")
        notes: list[str] = []
        if runs is None and not group and over is None and len(found) > RUNS_MAX:
            notes = [f"the newest {RUNS_MAX} of {len(found):,} runs"]
            found = found[:RUNS_MAX]
        grouped = [group] if isinstance(group, str) else list(group)
        how = {"x": x, "smooth": smooth, "points": points, "group": grouped, "over": over, "band": band}
        asked = [keys] if isinstance(keys, str) else keys
        return draw(found, asked, how, log=log, title=title, size=size, notes=notes)

    def table(
        self, where: str | None = None, *, sort: str | None = None, columns: str | Sequence[str] | None = None,
        group: str | Sequence[str] | None = None, project: str | None = None,
    ) -> RunsTable:  # fmt: skip
        """A table of runs: ``store.table("config.lr < 1e-3 and state = finished", sort="-best:val/acc")`` (docs/runs.md).

        Args:
            where: An expression that holds for the runs of the table; None: all.
            sort: Expressions with commas between them; a minus: the largest first.
            columns: Expressions, likewise or one by one; None: the config keys that differ, and the best of the main series.
            group: Likewise: one row for the runs that have these in common.
            project: Only runs of this project.

        Raises:
            UsageError: An expression cannot be parsed.
            NotFoundError: No run has anything of a name in it.
        """  # fmt: skip
        from ..query.overview import overview
        from ..query.table import RunsTable

        return RunsTable(overview(self.runs(project), where=where, sort=sort, columns=columns, group=group))

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
