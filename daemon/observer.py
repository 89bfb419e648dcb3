"""The observer: ``python -m daemon.observer STORE``, a worker process that looks at trainings from outside.

Started by the daemon while trainers live, ended by it, or by itself when there has been nothing to observe for a while. Every two
seconds it asks the daemon who lives; every ten (each run may say otherwise) it samples the processes of each run, the machine and
its GPUs (`daemon.observe`), and writes that into a stream of kind "system", in segments of its own: nothing of it passes through
the daemon's busy thread. Once for each run it stores what the machine is and (`daemon.observe.code`) what code was run.

It may be killed at any moment: its last segment is mended by the daemon, another observer goes on with the next sample. A run that
was removed is forgotten; while the disk refuses, samples are skipped and counted. Exit codes: 0 done, 1 trouble.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from daemon.lifecycle import behave_as_worker
from daemon.observe import machine, processes
from daemon.observe.ends import PATIENCE_SECONDS, Ends, readable
from daemon.observe.gpu import Device, Gpus
from daemon.observe.live import LiveFiles
from daemon.observe.sampling import Course, Reading, lowest_rank, next_sample, phase_of
from daemon.observe.writing import KIND, SystemStream
from daemon.settings import budgets_from
from daemon.store.budgets import read_budgets
from sdk import clock, platform
from sdk.budget import Budget, Keeper, explain
from sdk.errors import CommError, Error
from sdk.files import DISK, Files
from sdk.ids import hex_u64
from sdk.location import StoreIdentity, read_store
from sdk.reader.facts import Facts, StreamFacts
from sdk.reader.lanes import TRAINING
from sdk.reader.scan import Gone, Scan
from sdk.segment.naming import run_path
from sdk.transport import request

LOOK_SECONDS = 2.0
# While a run's first facts are on their way to the disk, which takes them a second.
_SOON_SECONDS = 0.5
_TRIES_SOON = 10
_PERIOD_SECONDS = 10.0
_PERIOD_SECONDS_MIN, _PERIOD_SECONDS_MAX = 0.1, 86_400.0
# Nothing to observe for so long: the daemon starts another one when there is.
_IDLE_SECONDS = 30.0
# What a description of the code may take while its run is over and waits for it.
_CODE_SECONDS_MAX = 60.0
# A process is taken for the one that began a stream when it was there before; the clocks' ticks and steps are allowed for.
_START_SLACK_SECONDS = 2.0
_NO_BUDGET = Budget()
# A look at what the store takes, where it has a budget, goes on so long with each sample.
_MEASURE_SECONDS = 0.01

# Asks the daemon: what we did, and up to where we know who began -> who lives and who began (docs/wire.md#control).
Ask = Callable[[Mapping[str, Any]], Mapping[str, Any]]
Describe = Callable[[Mapping[str, Any], str], Mapping[str, Any]]


class _Machine(NamedTuple):
    """What one look at the machine found, for all runs."""

    at: float
    processes: dict[int, processes.Process]
    values: dict[str, float]
    devices: list[Device]


class _Before(NamedTuple):
    """The observer that looked at the run last: its stream, the step behind it, and when it began."""

    continues: str | None
    first_step: int
    started: float


class _Observed:
    """One run while it is observed.

    Attributes:
        lives: Streams that live, as the daemon said last.
        known: Streams whose facts were read. `waiting`: (stream, ring, pid) of those whose facts are not on the disk yet;
            `tries`: how often they were looked for. `undescribed`: looks that are left for what the code's description needs.
        roots: pid -> start of the processes that log. `ends`: how they ended.
        has_main: Its main process was met.
        over_since: When its last stream ended; None while one lives.
    """

    def __init__(self, run: str, directory: str) -> None:
        self.run = run
        self.directory = directory
        self.lives: set[str] = set()
        self.known: set[str] = set()
        self.has_main = False
        self.waiting: dict[str, tuple[str, int]] = {}
        self.tries = 0
        self.undescribed = 0
        self.roots: dict[int, int] = {}
        self.ends = Ends()
        self.ranks: set[int | None] = set()
        self.period = 0.0
        self.next_at = 0.0
        self.stream: SystemStream | None = None
        self.before = _Before(None, 0, 0.0)
        self.course = Course()
        self.visible: str | None = None
        self.context: dict[str, Any] = {}
        self.asks_code = False
        self.over_since: float | None = None


class Observer:
    """What the process does, step by step; the time is an argument, and the daemon, the code and the GPUs are given.

    Attributes:
        runs: By id.
        samples, skipped: Rows written, and those that the disk refused.
        sealed: Segments that were finished, for the daemon to have them rewritten.
        error: The last trouble, for people.
    """

    def __init__(
        self,
        files: Files,
        store: StoreIdentity,
        ask: Ask,
        describe: Describe,
        gpus: Gpus | None = None,
        budget: Budget = _NO_BUDGET,
    ) -> None:
        self._files = files
        self._store = store
        self._ask = ask
        self._gpus = gpus or Gpus()
        self._machine = machine.Machine(store.path)
        self._code = _Describer(describe)
        self._live = LiveFiles()
        self._budget = Keeper(files, store.path, budget)
        self._phase = phase_of(platform.host_name())
        self._seen: _Machine | None = None
        self._about_machine: dict[str, Any] | None = None
        self._memory_total = 0
        self._mark = 0
        self._look_at = float("-inf")
        self.runs: dict[str, _Observed] = {}
        self.busy_at = float("-inf")
        self.samples = self.skipped = self.sealed = 0
        self.error = ""

    def step(self, now: float) -> float:
        """Does what is due; when the next thing is."""
        if now >= self._look_at:
            self._look(now)
        self._live.look(now, {each.directory: not each.lives for each in self.runs.values()})
        for observed in list(self.runs.values()):
            if observed.stream is not None and observed.period and observed.roots and now >= observed.next_at:
                self._sample(observed, now)
        self._take_code()
        for observed in [each for each in self.runs.values() if each.ends.look(now)]:
            self._write(observed, _tell_ends(observed))
        for observed in [each for each in self.runs.values() if self._is_over(each, now)]:
            self._finish(observed)
        due = [each.next_at for each in self.runs.values() if each.period and each.roots and each.stream is not None]
        return min([self._look_at, *due])

    @property
    def ending(self) -> list[int]:
        """Descriptors that become readable when a process ends."""
        return [descriptor for each in self.runs.values() for descriptor in each.ends.descriptors]

    def close(self) -> None:
        """Ends every stream, without waiting for the disk to have it."""
        for observed in list(self.runs.values()):
            self._finish(observed, sync=False)

    # -- who lives

    def _look(self, now: float) -> None:
        told = {
            "mark": self._mark, "runs": sorted(self.runs), "samples": self.samples, "skipped": self.skipped,
            "sealed": self.sealed, "error": self.error, "gpu_note": self._gpus.note,
        }  # fmt: skip
        answer = self._ask(told)
        living: dict[str, dict[str, tuple[str, int]]] = {}
        for run, stream, ring, pid in answer.get("living", ()):
            living.setdefault(run, {})[stream] = (ring, pid)
        fresh: dict[str, set[str]] = {}
        for run, stream in answer.get("new", ()):
            fresh.setdefault(run, set()).add(stream)
        self._mark = answer.get("mark", self._mark)
        for run in living.keys() | fresh.keys():
            observed = self.runs.get(run) or _Observed(run, run_path(self._store.path, run))
            self.runs[run] = observed
            lives = living.get(run, {})
            observed.lives = set(lives)
            for stream in (lives.keys() | fresh.get(run, set())) - observed.known:
                if stream not in observed.waiting:
                    observed.tries = 0
                observed.waiting[stream] = lives.get(stream, ("", 0))
        for run, observed in list(self.runs.items()):
            if run not in living:
                observed.lives = set()
            if observed.lives:
                self.busy_at, observed.over_since = now, None
            elif observed.over_since is None:
                observed.over_since = now
            if observed.waiting:
                # Of a stream that has stored nothing for a while (a full disk) we do not ask so often.
                observed.tries += 1
                if observed.tries < _TRIES_SOON or observed.tries % _TRIES_SOON == 0:
                    self._meet(observed)
            if observed.has_main and observed.stream is None:
                self._begin(observed, now)
            if observed.undescribed and observed.stream is not None:
                self._ask_for_code(observed)
        soon = any(each.undescribed or (each.waiting and each.tries < _TRIES_SOON) for each in self.runs.values())
        periods = [observed.period for observed in self.runs.values() if observed.period]
        self._look_at = now + min([_SOON_SECONDS if soon else LOOK_SECONDS, *periods])

    def _meet(self, observed: _Observed) -> None:
        """Reads what streams that are new said of themselves; those of which nothing is stored yet go on waiting."""
        scan, facts = Scan(self._files, observed.directory), Facts()
        try:
            scan.refresh()
            facts.update(scan)
            if observed.stream is None:
                observed.before = _earlier(scan, facts)
        except (OSError, Error, Gone) as error:
            self.error = f"run {observed.run!r}: {error}"
            return
        finally:
            scan.close()
        for name, (ring, pid) in list(observed.waiting.items()):
            stream = facts.streams.get(int(name, 16))
            if stream is None or not stream.about:
                continue
            del observed.waiting[name]
            observed.known.add(name)
            if stream.kind in TRAINING:
                self._adopt(observed, stream, facts.context, ring, pid)
        observed.context = facts.context

    def _adopt(self, observed: _Observed, stream: StreamFacts, context: Mapping[str, Any], ring: str, pid: int) -> None:
        """Takes the process of a stream for one of the run's; not one that only has its pid."""
        observed.ranks.add(stream.number("rank"))
        if stream.kind == "main":
            observed.has_main = True
            if not stream.number("rank") and not (stream.started < observed.before.started and _is_described(context)):
                observed.undescribed = _TRIES_SOON
            seconds = stream.about.get("system_metrics_seconds", _PERIOD_SECONDS)
            if isinstance(seconds, (int, float)) and seconds > 0:
                seconds = min(max(float(seconds), _PERIOD_SECONDS_MIN), _PERIOD_SECONDS_MAX)
                observed.period = min(seconds, observed.period) if observed.period else seconds
        owner = platform.lock_owner(ring) if ring else None
        process = processes.read_process(owner or pid) if owner or pid else None
        if process is None:
            return
        # The lock proves it; a pid alone may be that of another one by now, or of another container.
        if owner or processes.started_at(process) <= stream.started + _START_SLACK_SECONDS:
            observed.roots[process.pid] = process.started
            observed.ends.watch(process.pid, stream.hex, stream.number("rank"))
            if observed.visible is None:
                observed.visible = processes.visible_devices(process.pid)

    # -- what is written

    def _begin(self, observed: _Observed, now: float) -> None:
        if self._is_refused(observed):
            return
        continues, first_step, _ = observed.before
        rank = lowest_rank(observed.ranks)
        stream = SystemStream(self._files, self._store, observed.run, first_step)
        try:
            stream.begin(
                {"rank": rank, "continues": continues, "first_step": first_step, "machine": self._told_machine()}
            )
            if not rank:
                stream.tell({"context": self._told_machine()})
        except (OSError, Error) as error:
            with contextlib.suppress(OSError):
                stream.roll(sync=False)
            self._note(observed, error)
            return
        observed.stream = stream

    def _ask_for_code(self, observed: _Observed) -> None:
        """Once for each process of rank 0: later the code is another one. What the trainer says of itself may still come."""
        if "command" not in observed.context:
            observed.undescribed -= 1
            self._meet(observed)
        else:
            observed.undescribed = 0
            observed.asks_code = True
            self._code.ask(observed.run, observed.context, os.path.join(observed.directory, "files"))

    def _told_machine(self) -> dict[str, Any]:
        if self._about_machine is None:
            self._about_machine = machine.describe(self._gpus)
            self._memory_total = int(self._about_machine.get("memory_bytes") or 0)
        return self._about_machine

    def _take_code(self) -> None:
        for run, facts in self._code.take():
            observed = self.runs.get(run)
            if observed is None:
                continue
            observed.asks_code = False
            if facts and observed.stream is not None:
                self._write(observed, lambda stream: stream.tell({"context": facts}))  # noqa: B023

    def _sample(self, observed: _Observed, now: float) -> None:
        seen = self._look_at_machine(now, observed.period)
        members = processes.family(seen.processes, observed.roots)
        following = next_sample(now, observed.period, self._phase)
        # The first one comes at once, so the second may be due a moment later.
        observed.next_at = following if following - now > observed.period / 2 else following + observed.period
        if not members:
            return
        pids = [process.pid for process in members]
        first = next((pid for pid in observed.roots if pid in pids), pids[0])
        reading = Reading(
            seen.at, processes.usage(members), pids, seen.values, machine.cgroup_memory(first), seen.devices,
            observed.visible, self._memory_total,
        )  # fmt: skip
        row = observed.course.row(reading)
        if self._write(observed, lambda stream: stream.add(row)):
            self.samples += 1
        else:
            self.skipped += 1

    def _look_at_machine(self, now: float, period: float) -> _Machine:
        """A look that is a moment old serves the next run as well: rates need some time between two readings."""
        if self._seen is None or now - self._seen.at >= min(0.5, period / 2):
            self._seen = _Machine(now, processes.read_processes(), self._machine.read(now), self._gpus.read())
        return self._seen

    def _write(self, observed: _Observed, write: Callable[[SystemStream], None]) -> bool:
        """Writes unless the disk refuses, or the run is gone, which is forgotten then."""
        stream = observed.stream
        if stream is None:
            return False
        try:
            if not stream.is_there:
                self._forget(observed)
                return False
            if self._is_refused(observed):
                return False
            write(stream)
            stream.force(clock.monotonic())
        except (OSError, Error) as error:
            self._note(observed, error)
            return False
        return True

    def _is_refused(self, observed: _Observed) -> bool:
        """Whether a budget keeps us from writing now."""
        now = clock.monotonic()
        self._budget.step(now, _MEASURE_SECONDS)
        code = self._budget.refusal(observed.run, now)
        if code:
            self.error = f"run {observed.run!r}: {explain(code, self._store.path)[0]}"
        return code != 0

    def _note(self, observed: _Observed, error: Exception) -> None:
        if not self._files.exists(observed.directory):
            self._forget(observed)
        else:
            self.error = f"run {observed.run!r}: {error}"

    def _forget(self, observed: _Observed) -> None:
        if observed.stream is not None:
            observed.stream.abandon()
            observed.stream = None
        observed.ends.close()
        self.runs.pop(observed.run, None)

    def _is_over(self, observed: _Observed, now: float) -> bool:
        if observed.over_since is None:
            return False
        quiet = now - observed.over_since
        # Facts that have not come to the disk a while after the end will not come.
        describes = observed.asks_code or (observed.undescribed and observed.stream is not None)
        waits = (describes and quiet < _CODE_SECONDS_MAX) or (observed.waiting and quiet < 5 * LOOK_SECONDS)
        waits = waits or (observed.ends.is_waiting and quiet < PATIENCE_SECONDS)
        return not waits

    def _finish(self, observed: _Observed, *, sync: bool = True) -> None:
        stream = observed.stream
        observed.ends.look(clock.monotonic(), last=True)
        observed.ends.close()
        self.runs.pop(observed.run, None)
        if stream is None:
            return
        with contextlib.suppress(OSError, Error):
            if stream.is_there:
                if observed.ends.told:
                    _tell_ends(observed)(stream)
                end = {"state": "finished", "exit_code": 0, "time_ns": clock.wall_ns()}
                stream.tell({"stream": {"summary": observed.course.summary()}, "end": end})
                stream.roll(sync=sync)
                self.sealed += 1
        stream.abandon()


def _tell_ends(observed: _Observed) -> Callable[[SystemStream], None]:
    return lambda stream: stream.tell({"stream": {"ends": list(observed.ends.told)}})


def _earlier(scan: Scan, facts: Facts) -> _Before:
    """What an observer goes on with: the last one on this host."""
    host = platform.host_name()
    found = [s for s in facts.streams.values() if s.kind == KIND and s.text("host") == host]
    if not found:
        return _Before(None, 0, 0.0)
    last = max(found, key=lambda stream: (stream.started, stream.id))
    plan = scan.plan()
    steps = [entry.step_max for stream in found for entry in plan.get(stream.id, ())]
    return _Before(hex_u64(last.id), max(steps, default=-1) + 1, last.started)


def _is_described(context: Mapping[str, Any]) -> bool:
    return any(part in context for part in ("git", "packages", "code"))


class _Describer:
    """Descriptions of code, made in a thread: git and a file system may take their time, and sampling goes on."""

    def __init__(self, describe: Describe) -> None:
        self._describe = describe
        self._asked: queue.SimpleQueue[tuple[str, dict[str, Any], str]] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def ask(self, run: str, context: Mapping[str, Any], directory: str) -> None:
        self._asked.put((run, dict(context), directory))
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="stepd-code", daemon=True)
            self._thread.start()

    def _serve(self) -> None:
        while True:
            run, context, directory = self._asked.get()
            facts: dict[str, Any] = {}
            try:
                facts = dict(self._describe(context, directory))
            except Exception as error:
                facts = {"code_note": f"{type(error).__name__}: {error}"}
            self._told.put((run, facts))

    def take(self) -> list[tuple[str, dict[str, Any]]]:
        """(run, facts) of those that are done."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._told.get_nowait())
        return found


def describe_code(context: Mapping[str, Any], directory: str) -> Mapping[str, Any]:
    """What code was run (`daemon.observe.code`), imported when the first run is described."""
    import importlib

    try:
        module = importlib.import_module("daemon.observe.code")
    except ModuleNotFoundError:
        return {}
    found: Mapping[str, Any] = module.describe(context, directory)
    return found


def main(store_path: str) -> int:
    """Observes until nobody lives any more, the daemon that started us is gone, or we are told to end."""
    is_wanted, woken = behave_as_worker(), _waker()
    store = read_store(store_path)

    def ask(told: Mapping[str, Any]) -> Mapping[str, Any]:
        with contextlib.suppress(CommError, Error, OSError):
            return request(store.path, "observed", dict(told), timeout=2.0)
        return {"living": [[run, stream, "", 0] for run, each in observer.runs.items() for stream in each.lives]}

    budget = Budget()._replace(**(read_budgets(DISK, store.path) | budgets_from(os.environ)))
    observer = Observer(DISK, store, ask, describe_code, budget=budget)
    observer.busy_at = clock.monotonic()
    try:
        while is_wanted():
            now = clock.monotonic()
            wait = observer.step(now) - clock.monotonic()
            if not observer.runs and now - observer.busy_at > _IDLE_SECONDS:
                break
            if woken in readable([woken, *observer.ending], max(0.0, min(wait, LOOK_SECONDS))):
                break
    finally:
        observer.close()
    return 0


def _waker() -> int:
    """A descriptor that becomes readable when a signal comes: we need not look whether one did."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    return woken


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
