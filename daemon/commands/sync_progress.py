"""What `stepd sync` shows while it works: bars on a terminal, else a line for each run that is done. On stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from daemon.commands.service import clean, duration, size
from daemon.sync.crew import Task
from daemon.sync.driver import Driver, Seen
from daemon.sync.outcome import GOOD, LIVE, MISUSE, UP_TO_DATE, Outcome
from sdk import clock

_NAME_CHARACTERS_MAX = 24
_REASON_CHARACTERS_MAX = 60


@contextlib.contextmanager
def watching(is_quiet: bool, is_live: bool = False) -> Iterator[Callable[[Driver, Seen], None]]:
    """Gives a function that is told of everything that the driver sees.

    Args:
        is_live: The end may be hours away, so why something went wrong is said at once.
    """
    if is_quiet:
        yield lambda driver, seen: None
    elif sys.stderr.isatty():
        with _Bars() as bars:
            yield bars.see
    else:
        yield _Lines(is_live).see


class _Lines:
    """A line for each run that is done. While it goes on, one when it is carried first and one whenever that goes wrong in a new way."""

    def __init__(self, is_live: bool) -> None:
        self._is_live = is_live
        self._said: dict[Task, tuple[str, str]] = {}
        self._refused: set[tuple[str, str]] = set()

    def see(self, driver: Driver, seen: Seen) -> None:
        found = seen.outcome
        # What is misused ends the command at once, and then stands below the table.
        if found is None or found.state in (UP_TO_DATE, MISUSE):
            return
        said, key = (found.state, found.reason), (found.target, found.reason)
        if self._is_live and found.state == LIVE and self._said.get(seen.task) == said:
            return
        if seen.will_go_on:
            if not self._is_live or key in self._refused:
                return
            self._refused.add(key)
        self._said[seen.task] = said
        click.echo(clean(line_of(found, self._is_live)), err=True)


def line_of(found: Outcome, with_reason: bool = True) -> str:
    """One run and target on one line."""
    told = f"{found.run} to {found.target}: {found.shown}"
    if found.points:
        told += f", {found.points:,} points, {size(found.size)} in {found.seconds:.1f} s"
    return f"{told}: {found.reason}" if found.reason and with_reason else told


class _Bars:
    """One bar for everything, by the bytes of the runs, and one for each run that a worker has."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[told]}", markup=False),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._all = self._progress.add_task("all runs", total=1.0, told="")
        self._bars: dict[Task, Any] = {}
        self._shares: dict[Task, float] = {}
        self._points: dict[Task, int] = {}
        self._points_before = 0
        self._began = clock.monotonic()

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def see(self, driver: Driver, seen: Seen) -> None:
        if seen.moved is not None:
            self._shares[seen.task], self._points[seen.task] = seen.moved.share, seen.moved.points
            told = f"{seen.moved.points:,} points"
            self._progress.update(self._bar(driver, seen.task), completed=seen.moved.share, told=told)
        if seen.outcome is not None and seen.will_go_on:
            # What was read was not taken: it is no progress.
            self._shares.pop(seen.task, None)
            self._points.pop(seen.task, None)
            told = f"waits: {clean(seen.outcome.reason)[:_REASON_CHARACTERS_MAX]}"
            self._progress.update(self._bar(driver, seen.task), completed=0.0, told=told)
        elif seen.outcome is not None:
            self._shares[seen.task] = 1.0 if seen.outcome.state in GOOD else 0.0
            self._points.pop(seen.task, None)
            self._points_before += seen.outcome.points
            if seen.task in self._bars:
                self._progress.remove_task(self._bars.pop(seen.task))
        self._show(driver)

    def _bar(self, driver: Driver, task: Task) -> Any:
        if task not in self._bars:
            name = clean(task.label or task.run)[:_NAME_CHARACTERS_MAX]
            if len({other.target for other in driver.tasks}) > 1:
                name += f" to {clean(task.target)[-_NAME_CHARACTERS_MAX:]}"
            self._bars[task] = self._progress.add_task(name, total=1.0, told="")
        return self._bars[task]

    def _show(self, driver: Driver) -> None:
        total = sum(task.size + 1 for task in driver.tasks)
        share = sum((task.size + 1) * self._shares.get(task, 0.0) for task in driver.tasks) / max(total, 1)
        seconds = max(clock.monotonic() - self._began, 0.1)
        rate = (self._points_before + sum(self._points.values())) / seconds
        left = f", {duration(seconds * (1 - share) / share)} left" if 0.01 < share < 1 else ""
        self._progress.update(self._all, completed=share, told=f"{rate:,.0f} points/s{left}")
