"""What `stepd sync` does: which runs are to be carried, in which order, by whom, how often again, and what came of each.

A run and a target are a task. What a cursor says is unchanged is done without a worker. The others go to workers (`daemon.sync.crew`),
the largest run first, so that the last worker is not alone for long. One task never ends another:

* A worker that dies costs its task, which is tried once more.
* A target that cannot now (`Retriable`) gets no task for a while, twice as long each time, with a random part, so that many nodes which
  were refused together do not come again together. A task is given up after `tries_max` refusals, and all tasks of a target that has
  refused so often in a row; with a `timeout` when that is over.
* A target that never can (it lacks a package) ends all its tasks at once.

With `live` a task whose run goes on is begun again and again, runs that are new or resumed join, and the end comes when no run lives.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import random
from bisect import insort
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import NamedTuple

from daemon.sync import outcome
from daemon.sync.crew import Crew, Died, Moved, Task, failed
from daemon.sync.cursor import Cursor
from daemon.sync.looking import Look, Source, cursors_of, look_at, run_names
from daemon.sync.outcome import Outcome
from daemon.sync.place import parse
from daemon.sync.target import Target
from sdk import clock
from sdk.errors import StoreError, UsageError
from sdk.files import DISK
from sdk.platform import hold_lock
from sdk.segment.naming import RUNS

TRIES_MAX = 5
DEATHS_MAX = 2
BACK_OFF_SECONDS = 0.5
BACK_OFF_SECONDS_MAX = 60.0
# After a pass over a run that goes on, before the next one: a row is a target's some seconds after it was logged.
LIVE_SECONDS = 2.0
# How long workers may take to come to a batch's end when all is to stop.
END_SECONDS = 20.0
_HEAR_SECONDS = 0.2


class Chosen(NamedTuple):
    """A run that is to be carried: the name of its directory, and what people call it, if that is known."""

    name: str
    label: str = ""


class Seen(NamedTuple):
    """Progress for whoever watches; of one task. `outcome`: it has ended, for now if its run lives, or `will_go_on`: if it waits."""

    task: Task
    moved: Moved | None
    outcome: Outcome | None
    will_go_on: bool = False


class _Refusals:
    """How long a target is left alone.

    Attributes:
        count: How often in a row it has refused; what it refuses of several workers at once counts once.
        reason: What it said last.
    """

    def __init__(self) -> None:
        self.count = 0
        self.reason = ""
        self.not_before = 0.0

    def note(self, now: float, refused: Outcome) -> None:
        self.reason = refused.reason
        if now >= self.not_before:
            seconds = min(BACK_OFF_SECONDS * 2**self.count, BACK_OFF_SECONDS_MAX)
            self.count += 1
            # Why not of `random` itself: the seed is the user's, where the driver runs in a process of theirs.
            self.not_before = now + seconds * _RANDOM.uniform(0.5, 1.5)
        self.not_before = max(self.not_before, now + (refused.after or 0.0))

    def forget(self) -> None:
        self.count = 0
        self.not_before = 0.0


_RANDOM = random.Random(os.urandom(8))


class Driver:
    """One `stepd sync`. `run` does everything; the rest is for whoever watches.

    Attributes:
        outcomes: Of each task so far, by (name of the run's directory, URL).
        tasks: All that were found to have something new.
    """

    def __init__(
        self,
        store: str,
        targets: Sequence[Target],
        choose: Callable[[], Iterable[Chosen]],
        *,
        workers: int | None = None,
        live: bool = False,
        timeout: float | None = None,
        tries_max: int = TRIES_MAX,
        looks_for_removed: bool = False,
        see: Callable[[Seen], None] = lambda seen: None,
    ) -> None:
        self._store, self._targets, self._choose = store, targets, choose
        self._workers = workers or workers_default()
        self._is_live, self._timeout, self._tries_max, self._see = live, timeout, tries_max, see
        self._looks_for_removed = looks_for_removed
        self._cursors = {target.place.text: cursors_of(store, target) for target in targets}
        self._rests = {target.place.text: max(LIVE_SECONDS, target.rest_seconds) for target in targets}
        self._refusals = {target.place.text: _Refusals() for target in targets}
        self._misused: dict[str, Outcome] = {}
        # Invariant: a task is in one of these, handed out, or has its last outcome.
        self._ready: list[tuple[int, Task]] = []
        self._waiting: list[tuple[float, int, Task]] = []
        self._known: set[tuple[str, str]] = set()
        # Live, those whose run was over: when its directory had last changed before the pass over it.
        self._over: dict[Task, int] = {}
        self._changed: dict[Task, int] = {}
        self._tries: dict[Task, int] = {}
        self._deaths: dict[Task, int] = {}
        self._order = 0
        self._began = 0.0
        self.tasks: list[Task] = []
        self.outcomes: dict[tuple[str, str], Outcome] = {}

    def run(
        self, is_stopped: Callable[[], bool] = lambda: False, should_hurry: Callable[[], bool] = lambda: False
    ) -> list[Outcome]:
        """Carries everything, and says what came of it.

        Args:
            is_stopped: Asked some times a second; True ends it when the workers have come to a batch's end.
            should_hurry: Do not wait for that.
        """
        self._began = clock.monotonic()
        crew = Crew(self._store, self._workers)
        try:
            self._find_tasks()
            looked = clock.monotonic()
            while not is_stopped() and (self._ready or self._waiting or crew.busy):
                self._hand_out(crew)
                for task, heard in crew.hear(self._pause()):
                    self._take(task, heard)
                if self._is_live and clock.monotonic() - looked >= LIVE_SECONDS:
                    with contextlib.suppress(StoreError):  # the disk is away for a moment
                        self._find_tasks()
                    looked = clock.monotonic()
        finally:
            left = [*(task for _, task in self._ready), *(task for _, _, task in self._waiting), *crew.busy]
            for task, heard in crew.end(END_SECONDS if left else 5.0, should_hurry):
                if isinstance(heard, Outcome):
                    self._end(task, heard)
            for task in left:
                self._give_up(task)
        return self._all()

    # -- finding ---------------------------------------------------------------------------------------------------------

    def _find_tasks(self) -> None:
        for task, changed in list(self._over.items()):
            if self._changed_ns(task) != changed:  # resumed: another process begins with another file
                del self._over[task]
                self._make_ready(task)
        for name, label in self._choose():
            if all((name, url) in self._known for url in self._cursors):
                continue
            try:
                look = look_at(os.path.join(self._store, RUNS, name))
            except OSError:
                look = Look("", 0.0, 0, True)  # the pass over it says what is wrong
            for target in self._targets if look.is_run else ():
                self._add(Task(name, target.place.text, look.size, label), look)

    def _add(self, task: Task, look: Look) -> None:
        if (task.run, task.target) in self._known:
            return
        self._known.add((task.run, task.target))
        changed = self._changed_ns(task)
        unchanged = unchanged_outcome(self._store, self._cursors[task.target], task, look)
        if unchanged is not None:
            self.outcomes[task.run, task.target] = unchanged
            self._over.update({task: changed} if self._is_live else {})
            return
        self.tasks.append(task)
        self._make_ready(task)

    def _changed_ns(self, task: Task) -> int:
        """When a name last came or went in the run's directory; 0: not known."""
        with contextlib.suppress(OSError):
            return DISK.status(os.path.join(self._store, RUNS, task.run)).modified_ns
        return 0

    def _make_ready(self, task: Task) -> None:
        insort(self._ready, (task.size, task))

    def _wait(self, task: Task, until: float) -> None:
        self._order += 1
        heapq.heappush(self._waiting, (until, self._order, task))

    # -- handing out -----------------------------------------------------------------------------------------------------

    def _hand_out(self, crew: Crew) -> None:
        now = clock.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            self._make_ready(heapq.heappop(self._waiting)[2])
        while self._ready and crew.is_free:
            _, task = self._ready.pop()
            refusals = self._refusals[task.target]
            if task.target in self._misused:
                self._end(task, failed(task, self._misused[task.target].reason, outcome.MISUSE))
            elif refusals.count and not self._has_patience(refusals.count):
                self._end(task, failed(task, refusals.reason, outcome.DEFERRED))
            elif refusals.not_before > now:
                self._wait(task, refusals.not_before)
            else:
                self._changed[task] = self._changed_ns(task)
                try:
                    crew.hand(task)
                except OSError as error:  # too many processes
                    self._end(task, failed(task, f"no worker process can be started: {error}"))

    def _pause(self) -> float:
        """How long workers are listened to before the next look: a task may be due sooner."""
        until = self._waiting[0][0] if self._waiting else float("inf")
        return min(max(until - clock.monotonic(), 0.0), _HEAR_SECONDS)

    # -- what came of it -------------------------------------------------------------------------------------------------

    def _take(self, task: Task, heard: Moved | Died | Outcome) -> None:
        if isinstance(heard, Moved):
            self._see(Seen(task, heard, None))
            return
        if isinstance(heard, Died):
            deaths = self._deaths[task] = self._deaths.get(task, 0) + 1
            if deaths < DEATHS_MAX:
                self._make_ready(task)
            else:
                self._end(task, failed(task, f"{heard.reason}, {deaths} times"))
            return
        now = clock.monotonic()
        if heard.state == outcome.DEFERRED:
            self._refusals[task.target].note(now, heard)
        elif heard.state in outcome.GOOD:
            self._refusals[task.target].forget()
            self._tries.pop(task, None)
        elif heard.state == outcome.MISUSE:
            self._misused[task.target] = heard
        if heard.state in (outcome.DEFERRED, outcome.BUSY) and self._may_try_again(task):
            self._wait(task, max(self._refusals[task.target].not_before, now + (heard.after or 0.0)))
            self._keep(task, heard)
            self._see(Seen(task, None, heard, will_go_on=True))
        else:
            self._end(task, heard)
            if heard.state == outcome.LIVE and self._is_live:
                self._wait(task, now + self._rests[task.target])
            elif heard.state in outcome.GOOD and self._is_live:
                self._over[task] = self._changed[task]

    def _may_try_again(self, task: Task) -> bool:
        self._tries[task] = self._tries.get(task, 0) + 1
        return self._has_patience(self._tries[task])

    def _has_patience(self, refusals: int) -> bool:
        if self._is_live:
            return True
        if self._timeout is not None:
            return clock.monotonic() - self._began < self._timeout
        return refusals < self._tries_max

    def _keep(self, task: Task, later: Outcome) -> None:
        before = self.outcomes.get((task.run, task.target))
        self.outcomes[task.run, task.target] = later if before is None else before.then(later)

    def _end(self, task: Task, last: Outcome) -> None:
        self._keep(task, last)
        self._see(Seen(task, None, self.outcomes[task.run, task.target]))

    def _give_up(self, task: Task) -> None:
        """Of a task that was to be begun, or begun again: what is known is what is known."""
        if (task.run, task.target) not in self.outcomes:
            self._end(task, failed(task, "stopped before it was begun", outcome.STOPPED))

    def _all(self) -> list[Outcome]:
        """The outcomes, those of sources that went away included."""
        gone: list[Outcome] = []
        if self._looks_for_removed:
            names = set(run_names(self._store))
            for url, cursors in self._cursors.items():
                gone += removed_outcomes(self._store, cursors, url, names)
        return [*self.outcomes.values(), *gone]


def workers_default() -> int:
    """As many as there are cores for us, at most four: a target is often one disk."""
    return min(4, len(os.sched_getaffinity(0)))


def unchanged_outcome(store: str, cursors: str, task: Task, look: Look) -> Outcome | None:
    """The outcome of a task whose cursor says that all of it was carried; None: it is to be looked at."""
    # A run's directory is named after its id, and so is its cursor.
    cursor = Cursor(os.path.join(cursors, f"{task.run}.json"), None, task.target)
    try:
        cursor.read()
    except StoreError:  # of a newer version: the pass over this run says so, and stops no other one
        return None
    source = Source(store, cursor)
    if cursor.is_new or not source.is_over or source.signature != look.signature:
        return None
    if _options(cursor.was_for) != _options(task.target):  # the same directory in another way
        return None
    return Outcome(
        source.id, task.target, outcome.UP_TO_DATE, name=source.name, project=source.project, has_ended=True, told=tuple(cursor.told)
    ).with_lost(cursor.lost)  # fmt: skip


def _options(url: str) -> Mapping[str, str] | None:
    try:
        return parse(url).options
    except UsageError:
        return None


def removed_outcomes(store: str, cursors: str, url: str, names: Container[str]) -> list[Outcome]:
    """Runs that were removed before all of them had been carried: told once.

    Args:
        names: Of the directories that are there.
    """
    found = []
    for file, _, _ in DISK.entries(cursors):
        name, dot, end = file.rpartition(".")
        if not dot or end != "json" or name in names:
            continue
        path = os.path.join(cursors, file)
        cursor = Cursor(path, None, url)
        try:
            cursor.read()
        except StoreError:  # of a newer version, which knows what it carried
            continue
        source = Source(store, cursor)
        if source.is_there and not source.is_over:
            with contextlib.suppress(OSError, StoreError):  # one that cannot be noted is told the next time, too
                _note_removed(store, path, url)
            reason = "it was removed from the store before all of it had been carried"
            found.append(
                Outcome(source.id, url, outcome.FAILED, name=source.name, project=source.project, reason=reason)
            )
    return found


def _note_removed(store: str, path: str, url: str) -> None:
    """Says so in a cursor, unless somebody carries the same run there from another store just now."""
    lock = hold_lock(f"{path}.lock")
    if lock is None:
        return
    try:
        cursor = Cursor(path, None, url)
        cursor.read()
        source = Source(store, cursor)
        source.is_there = False
        source.note()
    finally:
        with contextlib.suppress(OSError):
            DISK.remove(lock.path)
        lock.release()
