"""Worker processes of the daemon: started when there is work, one of a kind at a time, never waited for.

A worker is exec'd, so that it shares nothing with the thread that serves; it finds its work on the disk and ends by itself.
It may be killed at any moment, and is told to end when the daemon leaves.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from daemon.ingest.streams import Streams
from daemon.lifecycle import start_module
from sdk import clock
from sdk._keeping import jobs, keeping_path
from sdk._syncing import jobs as sync_jobs
from sdk._syncing import syncing_path
from sdk.files import DISK
from sdk.ids import hex_u64

# After one that ended, before the next of its kind: work that came meanwhile is done together.
_PAUSE_SECONDS = 2.0
# After one that ended in trouble; twice as long after each further one.
_TROUBLE_SECONDS = 60.0
# The same for the keeper, whose jobs somebody may be waiting for.
_KEEPER_TROUBLE_SECONDS = 5.0
_TROUBLE_SECONDS_MAX = 3600.0
# One that was well for so long had other trouble than the one before.
_WELL_SECONDS = 3600.0
# And for the observer: a training that is not looked at is not seen again.
_OBSERVER_TROUBLE_SECONDS = 1.0
# What it tells, and `stepd status` shows.
_OBSERVED = ("runs", "samples", "skipped", "sealed", "error", "gpu_note")
# A carrier that is killed is there again soon: somebody looks at what it brings.
_CARRIER_TROUBLE_SECONDS = 1.0
# A daemon that nobody else needs waits so long for a target that takes nothing; then the next one goes on, or `stepd sync --drain`.
_AWAY_SECONDS = 600.0
# Of one that is told to end; a batch takes a second where nobody else wants the CPU, and the carrier tells every two.
_MOVES_SECONDS = 10.0
# No file system's times are coarser.
_GRAIN_NS = 2 * 10**9


class Worker:
    """One kind of worker.

    Attributes:
        wanted: Whether there may be work.
        failed: One ended in trouble, or was killed, since somebody set this to False.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        say: Callable[[str], None],
        trouble_seconds: float = _TROUBLE_SECONDS,
    ) -> None:
        self._module = module
        self._trouble_seconds_min = trouble_seconds
        self._arguments = list(arguments)
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._not_before = 0.0
        self._trouble_seconds = trouble_seconds
        self._started = 0.0
        self.wanted = False
        self.failed = False

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def look(self, now: float) -> None:
        """Starts one if there is work, looks after one that has ended."""
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return
            self._process = None
            self._note_end(code, now)
        if self.wanted and now >= self._not_before:
            self.wanted = False
            self._start(now)

    def _note_end(self, code: int, now: float) -> None:
        self.failed |= bool(code)
        if not code:
            self._trouble_seconds = self._trouble_seconds_min
            self._not_before = now + _PAUSE_SECONDS
            return
        # Killed, or refused by the disk: what it was to do is still there.
        self.wanted = True
        if now - self._started >= _WELL_SECONDS:
            self._trouble_seconds = self._trouble_seconds_min
        self._not_before = now + self._trouble_seconds
        self._say(f"{self._module} ended with {code}; again in {self._trouble_seconds:g} s")
        self._trouble_seconds = min(2 * self._trouble_seconds, _TROUBLE_SECONDS_MAX)

    def _start(self, now: float) -> None:
        self._started = now
        try:
            self._process = start_module(self._module, self._arguments, cwd="/")
        except OSError as error:  # too many processes; the next look tries again
            self.wanted = True
            self._not_before = now + _TROUBLE_SECONDS
            self._say(f"{self._module} cannot be started: {error}")

    def end(self, seconds: float = 0.0) -> None:
        """Tells a running one to end, and kills it if it has not within `seconds`."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Jobber(Worker):
    """A worker that does jobs which trainers leave in a directory of the store: wanted as soon as there is one of this machine."""

    def __init__(
        self, module: str, store: str, say: Callable[[str], None], trouble_seconds: float, directory: str,
        has_jobs: Callable[[str], bool],
    ) -> None:  # fmt: skip
        super().__init__(module, [store], say, trouble_seconds)
        self._store = store
        self._directory, self._has_jobs = directory, has_jobs
        self._seen_ns = 0

    def look(self, now: float) -> None:
        if not self.is_running and not self.wanted:
            with contextlib.suppress(OSError):  # the next look may find it well
                self.wanted = self._has_job()
        super().look(now)

    def _has_job(self) -> bool:
        # Limit: one stat at each look; a listing, of jobs that may be another machine's, only when the directory changed.
        try:
            changed_ns = DISK.status(self._directory).modified_ns
        except FileNotFoundError:
            return False
        if changed_ns == self._seen_ns:
            return False
        if self._has_jobs(self._store):
            return True
        # Race: what comes within the grain of the time stamp would not change it.
        self._seen_ns = changed_ns if changed_ns < clock.wall_ns() - _GRAIN_NS else 0
        return False


class Keeper(_Jobber):
    """The worker that copies and hashes files.

    Attributes:
        trouble: What keeps a job waiting, as the last keeper told it; "" for nothing.
    """

    def __init__(self, store: str, say: Callable[[str], None]) -> None:
        directory = keeping_path(store)
        super().__init__(
            "daemon.keeper", store, say, _KEEPER_TROUBLE_SECONDS, directory, lambda store: bool(jobs(store))
        )
        self.trouble = ""

    def status(self) -> dict[str, object]:
        """What `stepd status` shows."""
        waiting = []
        with contextlib.suppress(OSError):
            waiting = jobs(self._store)
        return {"running": self.is_running, "waiting": len(waiting), "trouble": self.trouble if waiting else ""}


class Carrier(_Jobber):
    """The worker that carries runs to other systems while they are written. The daemon stays for it while something moves (`holds`)."""

    def __init__(self, store: str, say: Callable[[str], None]) -> None:
        super().__init__("daemon.carrier", store, say, _CARRIER_TROUBLE_SECONDS, syncing_path(store), _has_runs)
        self._waiting = 0
        self._moved_at = -float("inf")
        self._trouble = ""

    def look(self, now: float) -> None:
        super().look(now)
        if self.is_running and self._started == now:
            # Until it has told anything it counts as one that moves.
            self._waiting, self._moved_at = 1, now

    def note(self, now: float, told: Mapping[str, Any]) -> None:
        """What the process tells (docs/wire.md#control)."""
        waiting, quiet, trouble = told.get("waiting"), told.get("quiet_seconds"), str(told.get("trouble") or "")
        self._waiting = waiting if type(waiting) is int else 0
        self._moved_at = now - float(quiet) if isinstance(quiet, (int, float)) else now
        if trouble and trouble != self._trouble:
            self._say(f"carrying: {trouble}")
        self._trouble = trouble

    def holds(self, now: float) -> bool:
        """Whether the daemon is to stay: something is not delivered, and not for want of the target."""
        return self._moved_within(_AWAY_SECONDS, now)

    def moves(self, now: float) -> bool:
        """Whether something is being delivered right now: a daemon that is told to end gives it the time that trainers get."""
        return self._moved_within(_MOVES_SECONDS, now)

    def _moved_within(self, seconds: float, now: float) -> bool:
        return self.is_running and self._waiting > 0 and now - self._moved_at < seconds

    def status(self) -> dict[str, Any]:
        """What `stepd status` shows; how far the targets are stands in the store (`sdk._syncing.backlog`)."""
        pid = self._process.pid if self._process is not None else None
        return {"pid": pid, "waiting": self._waiting if pid else 0, "trouble": self._trouble if pid else ""}


def _has_runs(store: str) -> bool:
    return any(job.is_ours for job in sync_jobs(store))


class Observer(Worker):
    """The worker that looks at trainings from outside: wanted while trainers live, and to meet those that were short.

    Attributes:
        runs: Those that it observes, as it said last.
    """

    def __init__(
        self,
        store: str,
        streams: Streams,
        say: Callable[[str], None],
        *,
        is_allowed: bool = True,
    ) -> None:
        super().__init__("daemon.observer", [store], say, _OBSERVER_TROUBLE_SECONDS)
        self._streams = streams
        self._is_allowed = is_allowed
        self._told: dict[str, Any] = {}
        self._sealed = 0
        self._met = self._called_at = 0
        self.runs: list[str] = []

    @property
    def is_called(self) -> bool:
        """Whether a stream has come, and no observer runs. Asked in every tick."""
        made = self._streams.made
        return self._process is None and self._is_allowed and bool(made) and made[-1][0] > self._called_at

    def look(self, now: float, *, living: bool = False) -> None:
        """As of every worker; `living`: a trainer lives, whether it has logged or not."""
        if self._is_allowed and not self.is_running:
            made = self._streams.made
            self._called_at = made[-1][0] if made else 0
            self.wanted = living or self._called_at > self._met
        super().look(now)

    def answer(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Who lives, and who began since its question before (docs/wire.md#control)."""
        error = str(told.get("error") or "")
        if error and error != self._told.get("error"):
            self._say(f"observing: {error}")
        self._told = {name: told.get(name) for name in _OBSERVED}
        runs = told.get("runs")
        self.runs = [run for run in runs if isinstance(run, str)] if isinstance(runs, list) else []
        mark = told.get("mark")
        # An observer that was started anew knows none of those that a killed one had met; they are met again.
        self._met = max(self._met, mark if type(mark) is int else 0)
        made = [entry for entry in self._streams.made if entry[0] > self._met]
        return {
            "mark": made[-1][0] if made else self._met,
            "living": [[s.run, hex_u64(n), s.ring, s.pid] for n, s in self._streams.by_id.items() if s.lives],
            "new": [[run, hex_u64(stream)] for _, run, stream in made],
        }

    def take_sealed(self) -> bool:
        """Whether it finished a segment since the last call."""
        before, self._sealed = self._sealed, int(self._told.get("sealed") or 0)
        return self._sealed != before

    def status(self) -> dict[str, Any]:
        """What `stepd status` shows."""
        pid = self._process.pid if self._process is not None else None
        return {"pid": pid, **self._told}
