"""The driver's side of the worker processes (`daemon.sync.work`): starting them, handing out runs, hearing of them, replacing the dead.

A worker is exec'd and carries one run at a time, so that a target's library which crashes or is killed for its memory costs that run
alone. Driver and worker speak in lines of JSON over the worker's standard input and output. A worker ends when its input ends, when it
is told by SIGTERM, or when it sees that its parent is gone; it is in a session of its own, so that a Ctrl-C reaches the driver first.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
from collections.abc import Callable
from typing import IO, Any, NamedTuple

from daemon.lifecycle import start_module
from daemon.sync.outcome import FAILED, Outcome, outcome_of
from sdk import clock

_MODULE = "daemon.sync.work"
# Limit: an outcome names what was lost and is some kilobytes; what has no end of line by then is no worker of ours.
_LINE_BYTES_MAX = 16 << 20


class Task(NamedTuple):
    """One run to carry to one target.

    Attributes:
        run: The name of the run's directory.
        target: The target's URL.
        size: Bytes of the run, by which the largest comes first.
        label: What people call the run.
    """

    run: str
    target: str
    size: int = 0
    label: str = ""


class Moved(NamedTuple):
    """Progress of a task: points and bytes so far, and about how much of the run has passed, 0 to 1."""

    points: int
    size: int
    share: float


class Died(NamedTuple):
    """The worker that carried a task is gone; `reason` says how."""

    reason: str


# What is heard of a task.
Heard = tuple[Task, "Moved | Died | Outcome"]


class Crew:
    """At most `count` workers of one store, started when there is something to do. Not thread-safe."""

    def __init__(self, store: str, count: int) -> None:
        self._store = store
        self._count = count
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()

    @property
    def is_free(self) -> bool:
        """Whether a task may be handed out now."""
        return len(self._workers) < self._count or any(worker.task is None for worker in self._workers)

    @property
    def busy(self) -> list[Task]:
        return [worker.task for worker in self._workers if worker.task is not None]

    def hand(self, task: Task) -> None:
        """Gives a task to a worker that has none, or to a new one.

        Raises:
            OSError: No process can be made.
        """
        worker = next((worker for worker in self._workers if worker.task is None), None)
        if worker is None:
            assert len(self._workers) < self._count
            worker = _Worker(self._store)
            self._workers.append(worker)
            self._selector.register(worker.output, selectors.EVENT_READ, worker)
        worker.hand(task)

    def hear(self, seconds: float) -> list[Heard]:
        """What workers told, after waiting for at most `seconds` for the first of it."""
        heard: list[Heard] = []
        if not self._workers:
            clock.pause(seconds)
            return heard
        told = {key.data for key, _ in self._selector.select(seconds)}
        for worker in list(self._workers):
            # Why both: a process that the worker has forked may hold its output open for ever.
            was_dead = worker.is_dead
            heard += worker.read() if was_dead or worker in told else []
            if worker.has_ended or was_dead:
                self._selector.unregister(worker.output)
                self._workers.remove(worker)
                heard += worker.close()
        return heard

    def end(self, seconds: float, should_hurry: Callable[[], bool] = lambda: False) -> list[Heard]:
        """Tells all to stop, kills those that have not within `seconds` or when there `should_hurry`; what they still told."""
        for worker in self._workers:
            worker.tell_to_end()
        heard: list[Heard] = []
        deadline = clock.monotonic() + seconds
        while self._workers and clock.monotonic() < deadline and not should_hurry():
            heard += self.hear(0.05)
        for worker in self._workers:
            worker.kill()
        while self._workers:
            heard += self.hear(0.05)
        self._selector.close()
        return heard


class _Worker:
    """One process.

    Attributes:
        task: What it carries.
        has_ended: Its output has.
    """

    def __init__(self, store: str) -> None:
        piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = start_module(_MODULE, [store], **piped, start_new_session=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input: IO[bytes] = self._process.stdin
        self.output: IO[bytes] = self._process.stdout
        os.set_blocking(self.output.fileno(), False)
        self._rest = b""
        self.task: Task | None = None
        self.has_ended = False

    @property
    def is_dead(self) -> bool:
        return self._process.poll() is not None

    def hand(self, task: Task) -> None:
        self.task = task
        # One that died meanwhile is seen by its output, which ends.
        with contextlib.suppress(OSError):
            self._input.write(json.dumps({"run": task.run, "target": task.target}).encode() + b"\n")
            self._input.flush()

    def read(self) -> list[Heard]:
        """What it has told since."""
        data = self.output.read()
        if data == b"" or len(self._rest) > _LINE_BYTES_MAX:
            self.has_ended = True
        *lines, self._rest = (self._rest + (data or b"")).split(b"\n")
        return [heard for line in lines if (heard := self._heard(json.loads(line))) is not None]

    def _heard(self, told: dict[str, Any]) -> Heard | None:
        task = self.task
        if task is None:
            return None
        if "outcome" in told:
            self.task = None
            return task, outcome_of(told["outcome"])
        return task, Moved(*told["moved"])

    def tell_to_end(self) -> None:
        with contextlib.suppress(OSError):
            self._process.terminate()
        with contextlib.suppress(OSError):
            self._input.close()  # one that waits for a task sees that at once

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self._process.kill()

    def close(self) -> list[Heard]:
        """After its end: what became of its task."""
        with contextlib.suppress(OSError):
            self._input.close()
        self.output.close()
        code = self._process.wait()
        return [] if self.task is None else [(self.task, Died(_how(code)))]


def _how(code: int) -> str:
    if code >= 0:
        return f"its worker process ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    cause = ": perhaps for want of memory" if name == "SIGKILL" else ""
    return f"its worker process was killed by signal {-code} ({name}){cause}"


def failed(task: Task, reason: str, state: str = FAILED) -> Outcome:
    """The outcome of a task of which no worker can tell any."""
    return Outcome(task.label or task.run, task.target, state, reason=reason)
