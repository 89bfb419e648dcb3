"""Doing the jobs that trainers left (`sdk._syncing`): round after round, until every run that has one is over and delivered.

The daemon's carrier does its machine's jobs this way, and `stepd sync --drain` does all. Each target has a worker process of its own
(`daemon.sync.crew`), so that one that fails, hangs or crashes holds nobody up but the runs that go to the same target.

When a pass is due:

* The first one at once, and one at once each time a job is left again: the run has ended, and somebody may be waiting.
* After a pass over a run that goes on, `Order.seconds` later (or after the target's `rest_seconds`, where these are more) if its
  directory has changed by then, else as soon as it does; and once in a while all the same, as a trainer may be gone without a trace
  in its directory.
* After a refusal (`Retriable`) the target is left alone, twice as long each time, up to five minutes; after a failure the run is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Callable

from daemon.sync import outcome
from daemon.sync.crew import Crew, Died, Moved, Task, failed
from daemon.sync.outcome import Outcome
from daemon.sync.place import parse
from daemon.sync.registry import make
from sdk import clock
from sdk._syncing import Job, Order, Told, end_job, forget_told, jobs, read_job, read_told, tell
from sdk.errors import DamageError, UsageError
from sdk.files import DISK
from sdk.ids import run_directory
from sdk.platform import boot_id
from sdk.segment.naming import run_path

BACK_OFF_SECONDS = 1.0
BACK_OFF_SECONDS_MAX = 300.0
# After a failure: a package that is missing is not there a second later, and a run that a target cannot take stays one.
FAILURE_SECONDS = 10.0
FAILURE_SECONDS_MAX = 3600.0
# A run whose worker died so often in a row counts as one that killed it.
DEATHS_MAX = 3
# While nothing in its directory changes, a run that was alive is looked at so often.
QUIET_SECONDS = 60.0
# A worker that tells of no progress for so long hangs. A batch of rows takes a target some seconds, the upload of a checkpoint longer.
HANG_SECONDS = 3600.0
# A job whose run never had a directory after so long is a job for nothing.
ORPHAN_SECONDS = 86400.0
# What a process that has just begun logs first is stored by then, or its daemon is in trouble: until then a run that is over by what
# is stored may have been resumed, or made again after it was removed.
BEGINNING_SECONDS = 20.0
# The worker of a target that nothing goes to any more stays so long: short runs come one after another.
LINGER_SECONDS = 30.0
# Limit: a worker takes some 70 MB, and runs of a sweep may each have a target of its own.
WORKERS_MAX = 8
_ENDING_SECONDS = 0.3
# How often the directory of a run is looked at, and how long one that nobody carries is waited for.
_LOOK_SECONDS = 0.5
_END_SECONDS = 0.3
# Limit: a look costs some 50 µs, a turn 20 µs for each job: with a thousand jobs together 3 % of a core.
_ENTRY_LOOK_SECONDS = 0.005
_ENTRY_TURN_SECONDS = 0.001
TURN_SECONDS = 0.1
_BAD_SUFFIX = ".bad"
# What opening something else than a file of ours says: a link, a directory or a pipe, one that is too large.
_NO_FILE = (errno.ELOOP, errno.EINVAL, errno.EFBIG)
_RANDOM = random.Random(os.urandom(8))

# What is seen of a file without opening it, and of a directory.
_Stamp = tuple[int, int]
_Names = list[tuple[str, int, float]]


class Entry:
    """A job, and how far it is.

    Attributes:
        due: When the next pass is to begin, of `clock.monotonic`.
        is_urgent: The job was left since the last pass began: back-off does not count.
        handed: When the pass that is under way was begun; None: none is.
        passed, looked_from: When the last one ended, and when it had begun.
        moved: When it last told of progress.
        begun: Of `clock.monotonic`: when what is stored of the run holds something of the process that left the job.
        is_hopeless: The last pass failed in a way that another try does not mend by itself.
        refusals: How often in a row the target could not take it.
    """

    def __init__(self, job: Job, order: Order, stamp: _Stamp, now: float, beginning_seconds: float) -> None:
        self.job, self.order, self.stamp = job, order, stamp
        self.told = read_told(job) or Told(order.run, order.target)
        self._beginning_seconds = beginning_seconds
        self.due, self.begun = now, now + _beginning_left(order, stamp, beginning_seconds)
        self.is_urgent, self.is_hopeless = True, False
        self.handed: float | None = None
        self.handed_order = order
        self.moved = 0.0
        self.failures = self.refusals = self.deaths = 0
        self.passed = self.looked_from = -float("inf")
        self._looked = -float("inf")
        self.names: _Names = []
        self.rest_seconds = _rest_seconds(order.target)

    def renew(self, order: Order, stamp: _Stamp, now: float) -> None:
        """The job was left once more."""
        self.order, self.stamp, self.due = order, stamp, now
        self.begun = now + _beginning_left(order, stamp, self._beginning_seconds)
        self.is_urgent, self.is_hopeless = True, False

    def is_due(self, store: str, now: float, look_seconds: float) -> bool:
        """Whether a pass is to begin. Looks at the run's directory, at most once in `look_seconds`."""
        if self.handed is not None or now < self.due:
            return False
        if not self.is_urgent and now - self._looked < look_seconds:
            return False
        self._looked = now
        names = DISK.entries(run_path(store, self.order.run))
        is_changed = names != self.names or now - self.passed >= QUIET_SECONDS or self.looked_from < self.begun <= now
        if not names or not (is_changed or self.is_urgent):
            return False
        # Before the pass begins: what comes while it reads is found by the next one.
        self.names = names
        return True


def _beginning_left(order: Order, stamp: _Stamp, seconds: float) -> float:
    """How long a job that was left at a time may still be of a process of which nothing is stored yet."""
    age = (clock.wall_ns() - stamp[0]) / 1e9
    return min(max(seconds - age, 0.0), seconds) if order.is_beginning else 0.0


class _Line:
    """What goes to one target: its worker, if it has one now, and how long it is left alone."""

    def __init__(self, now: float) -> None:
        self.crew: Crew | None = None
        self.not_before = 0.0
        self.refusals = 0
        self.used = now

    @property
    def is_busy(self) -> bool:
        return self.crew is not None and bool(self.crew.busy)

    def refuse(self, now: float, after: float | None) -> None:
        seconds = min(BACK_OFF_SECONDS * 2**self.refusals, BACK_OFF_SECONDS_MAX)
        self.refusals += 1
        # Why a random part: nodes that were refused together do not come again together.
        self.not_before = now + max(seconds * _RANDOM.uniform(0.5, 1.0), after or 0.0)


class Rounds:
    """The jobs of a store. One thread; `turn` is to be called over and over, and `end` at last.

    Attributes:
        entries: Those that wait, by the path of their job.
        progressed: When something was last delivered, of `clock.monotonic`.
    """

    def __init__(
        self,
        store: str,
        *,
        is_ours: Callable[[Job], bool] = lambda job: job.is_ours,
        make_crew: Callable[[str], Crew] = lambda store: Crew(store, 1),
        beginning_seconds: float = BEGINNING_SECONDS,
    ) -> None:
        self._store, self._is_ours, self._make_crew = store, is_ours, make_crew
        self._beginning_seconds = beginning_seconds
        self._lines: dict[str, _Line] = {}
        self.entries: dict[str, Entry] = {}
        self.progressed = clock.monotonic()
        with contextlib.suppress(OSError):
            forget_told(store, clock.wall_ns())

    @property
    def trouble(self) -> str:
        """Why something is not delivered, of one of those that are not; "" for nothing."""
        return next((entry.told.reason for entry in self.entries.values() if entry.told.reason), "")

    @property
    def pause(self) -> float:
        """Seconds to wait between two turns."""
        return max(TURN_SECONDS, len(self.entries) * _ENTRY_TURN_SECONDS)

    def turn(self) -> None:
        """Looks for jobs, begins what is due, and takes what has come of what was begun. Waits for nothing."""
        now = clock.monotonic()
        with contextlib.suppress(OSError):  # the next turn may find the store well
            self._look_for_jobs(now)
        for line in self._lines.values():
            for task, heard in line.crew.hear(0.0) if line.crew is not None else ():
                self._take(line, task, heard)
        self._look_for_hanging(clock.monotonic())
        for target, line in list(self._lines.items()):
            self._begin(target, line, clock.monotonic())
        self._let_go(clock.monotonic())

    def end(self, seconds: float = _END_SECONDS) -> None:
        """Tells the workers to stop at the next batch, and kills those that have not within `seconds`: nothing is lost by that."""
        for line in self._lines.values():
            self._dismiss(line, seconds)
        self._lines.clear()

    # -- jobs ------------------------------------------------------------------------------------------------------------

    def _look_for_jobs(self, now: float) -> None:
        waiting = {job.path: job for job in jobs(self._store) if self._is_ours(job)}
        for path in self.entries.keys() - waiting.keys():
            # Whoever took it away has delivered it; one that is under way comes to its end.
            if self.entries[path].handed is None:
                del self.entries[path]
        for path, job in waiting.items():
            with contextlib.suppress(OSError):  # one that cannot be read now keeps nobody from the others
                status = DISK.status(path)
                stamp = status.modified_ns, status.inode
                entry = self.entries.get(path)
                if entry is None or entry.stamp != stamp:
                    self._read(job, stamp, now)

    def _read(self, job: Job, stamp: _Stamp, now: float) -> None:
        try:
            order = read_job(job)
        except (DamageError, OSError) as error:
            if not isinstance(error, OSError) or error.errno in _NO_FILE:
                DISK.rename(job.path, job.path + _BAD_SUFFIX)
            return
        entry = self.entries.get(job.path)
        if entry is not None:
            entry.renew(order, stamp, now)
            return
        self.entries[job.path] = Entry(job, order, stamp, now, self._beginning_seconds)
        if order.target not in self._lines:
            self._lines[order.target] = _Line(now)

    def _let_go(self, now: float) -> None:
        """Ends workers that nobody has needed for a while, and forgets targets that nothing goes to any more."""
        wanted = {entry.order.target for entry in self.entries.values()}
        for target, line in list(self._lines.items()):
            line.used = now if line.is_busy else line.used
            if target not in wanted and now - line.used >= LINGER_SECONDS:
                self._dismiss(self._lines.pop(target))

    def _dismiss(self, line: _Line, seconds: float = _END_SECONDS) -> None:
        crew, line.crew = line.crew, None
        for task, heard in crew.end(seconds) if crew is not None else ():
            # Why not that one has died: it was us who killed it.
            self._take(line, task, failed(task, "", outcome.STOPPED) if isinstance(heard, Died) else heard)

    def _has_worker(self, line: _Line) -> bool:
        """Whether the target has a worker, or gets one now: the place of the one that was used longest ago, if all are taken."""
        if line.crew is not None:
            return True
        others = [other for other in self._lines.values() if other.crew is not None]
        if len(others) >= WORKERS_MAX:
            idle = [other for other in others if not other.is_busy]
            if not idle:
                return False
            self._dismiss(min(idle, key=lambda other: other.used))
        line.crew = self._make_crew(self._store)
        return True

    # -- passes ----------------------------------------------------------------------------------------------------------

    def _begin(self, target: str, line: _Line, now: float) -> None:
        if line.is_busy:
            return
        own = [entry for entry in self.entries.values() if entry.order.target == target]
        may = [entry for entry in own if entry.is_urgent or now >= line.not_before]
        # The one that has waited longest comes first, so that no run keeps the others from their turn.
        for entry in sorted(may, key=lambda entry: (not entry.is_urgent, entry.passed)):
            if entry.is_due(self._store, now, max(_LOOK_SECONDS, len(own) * _ENTRY_LOOK_SECONDS)):
                self._hand(line, entry, now)
                return
            self._drop_orphan(entry)

    def _drop_orphan(self, entry: Entry) -> None:
        age = clock.wall_ns() - entry.stamp[0]
        # Not what was told of an earlier run of this id, which was removed.
        had_directory = entry.told.at_ns > entry.stamp[0] and clock.monotonic() >= entry.begun
        may_be = entry.handed is None and (had_directory or age > ORPHAN_SECONDS * 1e9)
        if may_be and not DISK.exists(run_path(self._store, entry.order.run)):
            end_job(entry.job, entry.order)

    def _hand(self, line: _Line, entry: Entry, now: float) -> None:
        if not self._has_worker(line):
            entry.names = []  # it stays due
            return
        assert line.crew is not None
        entry.handed = entry.moved = now
        entry.handed_order, entry.is_urgent = entry.order, False
        if not entry.told.at_ns:
            self._tell(entry, entry.told)
        task = _task(entry)
        try:
            line.crew.hand(task)
        except OSError as error:  # no process can be made now
            self._take(line, task, failed(task, f"no process can be started: {error}", outcome.DEFERRED))

    def _take(self, line: _Line, task: Task, heard: Moved | Died | Outcome) -> None:
        now = clock.monotonic()
        entry = next(
            (entry for entry in self.entries.values() if entry.handed is not None and _task(entry) == task), None
        )
        if entry is None:
            return
        if isinstance(heard, Moved):
            entry.moved = self.progressed = now
            return
        if isinstance(heard, Died):
            entry.deaths += 1
            heard = failed(task, heard.reason)
        else:
            entry.deaths = 0
        began, entry.handed = entry.handed, None
        assert began is not None
        # Race: 1. a pass begins, 2. it is `begun`, 3. the pass ends, and cannot have said that all is over.
        entry.passed, entry.looked_from = now, began
        if heard.state in outcome.GOOD:
            line.refusals, line.not_before, entry.failures, entry.refusals = 0, 0.0, 0, 0
            self._note_good(entry, heard, began)
            return
        # What was seen before the pass was not carried by it.
        entry.names = []
        if heard.state == outcome.STOPPED:
            entry.due = now
        elif heard.state == outcome.BUSY:
            entry.due = now + (heard.after or 1.0)
        else:
            self._note_trouble(line, entry, heard, began, now)

    def _note_good(self, entry: Entry, found: Outcome, began: float) -> None:
        is_over = found.state in (outcome.DELIVERED, outcome.UP_TO_DATE) and began >= entry.begun
        # What was observed of a training that has ended comes soon, and somebody may be waiting for it.
        entry.due = entry.passed + (
            _ENDING_SECONDS if found.has_ended else max(entry.handed_order.seconds, entry.rest_seconds)
        )
        entry.is_hopeless = False
        if is_over or found.points:
            self.progressed = entry.passed
        told = entry.told._replace(
            state=found.state, began=began, again_at=0.0, points=entry.told.points + found.points, reason="",
            behind=0, lost=found.lost, trouble=found.trouble[0] if found.trouble else entry.told.trouble,
            has_ended=found.has_ended, is_over=is_over,
        )  # fmt: skip
        self._tell(entry, told)
        if is_over:
            try:
                # One that was left again since is read again, as another one.
                end_job(entry.job, entry.handed_order)
            except OSError:
                entry.due = entry.passed + QUIET_SECONDS
                return
            self.entries.pop(entry.job.path, None)

    def _note_trouble(self, line: _Line, entry: Entry, found: Outcome, began: float, now: float) -> None:
        if found.state == outcome.DEFERRED:
            line.refuse(now, found.after)
            entry.refusals += 1
            entry.due = line.not_before
        else:
            # Of a worker that was killed nobody knows whose fault it was.
            first = BACK_OFF_SECONDS if 0 < entry.deaths < DEATHS_MAX else FAILURE_SECONDS
            entry.due = now + min(first * 2**entry.failures, FAILURE_SECONDS_MAX)
            entry.failures += 1
        entry.is_hopeless = found.state in (outcome.FAILED, outcome.MISUSE) and not 0 < entry.deaths < DEATHS_MAX
        told = entry.told._replace(
            state=found.state, began=began, again_at=entry.due, points=entry.told.points + found.points,
            behind=found.behind, reason=found.reason or found.state, lost=found.lost or entry.told.lost,
        )  # fmt: skip
        self._tell(entry, told)

    def _look_for_hanging(self, now: float) -> None:
        for entry in list(self.entries.values()):
            if entry.handed is None or now - entry.moved < HANG_SECONDS:
                continue
            line = self._lines[entry.order.target]
            reason = f"nothing moved for {HANG_SECONDS:g} s; its process was killed"
            self._take(line, _task(entry), failed(_task(entry), reason, outcome.DEFERRED))
            self._dismiss(line, 0.0)

    def _tell(self, entry: Entry, told: Told) -> None:
        entry.told = told._replace(at_ns=clock.wall_ns(), boot=boot_id())
        with contextlib.suppress(OSError):  # what is told is for people; the cursor knows
            tell(entry.job, entry.told)


def _rest_seconds(target: str) -> float:
    """How long the target wants a run left alone between two passes; what is wrong with it the first pass tells."""
    try:
        return make(parse(target)).rest_seconds
    except UsageError:
        return 0.0


def _task(entry: Entry) -> Task:
    return Task(run_directory(entry.order.run), entry.order.target, label=entry.order.run)
