"""What the threads of a run's living processes are doing: asked of the processes themselves, of the kernel, or of py-spy (docs/why.md).

Each process of the run on this host is asked through its ring (`sdk.journal.asking`), all at the same time. One that does not
answer although it lives tells something as well: it is stopped, waits for a device, or one of its threads keeps the GIL. The
kernel's view of its threads tells these apart, and py-spy, where it is installed and allowed, shows where they are.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ... import clock, platform
from ...errors import DamageError, Error, install_hint
from ...journal.asking import Question
from ...journal.drain import is_ring_path
from ...journal.format import SUFFIX
from ...platform.tasks import Task, tasks_of
from ...reader.lanes import TRAINING
from ...record import decode_map

if TYPE_CHECKING:
    from ...reader.facts import StreamFacts
    from ...reader.run import Run

# A sender wakes four times a second; a machine that is busy may take its time.
ASK_SECONDS = 2.0
_POLL_SECONDS = 0.01
_PYSPY_SECONDS_MAX = 10.0
# Limits: processes of one host that are asked, and those for which py-spy is started, which takes a second each.
_ASKED_MAX, _PYSPY_MAX = 1024, 4
_THREADS_MAX, _FRAMES_MAX, _CHARACTERS_MAX = 200, 100, 500
_SOURCE_BYTES_MAX = 4 << 20
# A thread that had a processor for so much of the time, on a machine that may be busy otherwise, has been computing.
_BUSY_SHARE = 0.1

ANSWERED, SILENT, STOPPED, ASLEEP, REFUSED, ELSEWHERE, FOREIGN, GONE = (
    "answered", "silent", "stopped", "asleep", "refused", "elsewhere", "foreign", "gone",
)  # fmt: skip


class Frame(NamedTuple):
    """One call of a stack. `text` is the source's line, "" where it cannot be read or the file is younger than the run."""

    file: str
    function: str
    line: int
    text: str = ""


class Thread(NamedTuple):
    """One thread.

    Attributes:
        frames: Innermost first. `left_out`: how many are missing behind the first `left_out[0]`, `left_out[1]`.
        has_gil: Whether it holds the GIL, where that is known (py-spy).
    """

    name: str
    is_main: bool
    native: int
    frames: tuple[Frame, ...]
    left_out: tuple[int, int] = (0, 0)
    has_gil: bool | None = None


class Process(NamedTuple):
    """One process of a run and what could be learned of it.

    Attributes:
        stream: Its stream, 16 hex digits.
        outcome: "answered"; "silent": it lives and gave no answer; "stopped" by a signal or a debugger; "asleep": it has logged nothing
            yet, so nobody listens in it; "refused" (STEPD_STACKS=0); "elsewhere": on another host, or in another container; "foreign":
            another user's, or cannot be asked; "gone": it ended meanwhile.
        threads: From the process ("answered") or py-spy. `source` says which: "process", "py-spy" or "".
        pid: As it is known here where `tasks` are there, else as the process said itself.
        tasks: The kernel's view, where the process can be seen from here.
        busy: The kernel's number of the thread that computed while we waited; 0: none did.
        note: Why py-spy told nothing, and what would help.
    """

    stream: str
    kind: str
    rank: int | None
    host: str | None
    pid: int
    outcome: str
    threads: tuple[Thread, ...] = ()
    source: str = ""
    tasks: tuple[Task, ...] = ()
    busy: int = 0
    note: str = ""

    @property
    def main(self) -> Thread | None:
        return next((thread for thread in self.threads if thread.is_main), None)


class Group(NamedTuple):
    """Threads of several processes with the same stack. `members` are (process, thread)."""

    frames: tuple[Frame, ...]
    is_main: bool
    members: tuple[tuple[Process, Thread], ...]


def ask_stacks(run: Run, seconds: float = ASK_SECONDS, *, debugger: bool = True) -> list[Process]:
    """Asks every living process of a run what its threads do; by rank, the main process first.

    Args:
        seconds: How long to wait for those that do not answer.
        debugger: Use py-spy for those, where it is there.
    """
    run.refresh()
    living = [
        stream
        for stream in run._facts.streams.values()
        if stream.kind in TRAINING and stream.end is None and run._alive(stream) is not False
    ]
    living.sort(key=lambda stream: (stream.number("rank") or 0, stream.kind != "main", stream.started, stream.id))
    consoles = {
        (stream.text("host"), stream.number("pid")): stream
        for stream in run._facts.streams.values()
        if stream.kind == "console" and stream.end is None
    }
    asked = [
        _Asked(stream, consoles.get((stream.text("host"), stream.number("pid")))) for stream in living[:_ASKED_MAX]
    ]
    began = heard = clock.monotonic()
    others = 0
    try:
        # Every one is looked at each time. Where somebody else gets answers, it is our turn later.
        while sum(each.looks() for each in asked) and clock.monotonic() < min(heard + seconds, began + 5 * seconds):
            if (count := sum(each.others for each in asked)) > others:
                others, heard = count, clock.monotonic()
            clock.pause(_POLL_SECONDS)
        found = [each.found(run.created) for each in asked]
    finally:
        for each in asked:
            each.close()
    left = _PYSPY_MAX if debugger else 0
    for index, process in enumerate(found):
        if left and process.outcome in (SILENT, ASLEEP, STOPPED) and process.tasks:
            found[index], left = _with_debugger(process, run.created), left - 1
    return found


class _Asked:
    """One process while it is asked."""

    def __init__(self, stream: StreamFacts, console: StreamFacts | None) -> None:
        self._stream = stream
        self._question: Question | None = None
        self._answer: bytes | None = None
        self._outcome = ELSEWHERE
        self.pid = 0
        for one in (stream, console):
            if one is not None and self._question is None and self._answer is None:
                self._ask(one)
        tasks = tasks_of(self.pid) if self.pid else []
        self._before = {task.id: task.cpu_seconds for task in tasks}
        self._is_stopped = _are_stopped(tasks)
        self._began = clock.monotonic()

    def _ask(self, stream: StreamFacts) -> None:
        ring = stream.text("ring") or ""
        if not is_ring_path(ring) or not ring.endswith(f"-{stream.hex}{SUFFIX}"):
            return
        if stream.text("host") != platform.host_name() or stream.text("boot_id") != platform.boot_id():
            return
        owner = platform.lock_owner(ring)
        # The ring of a dead process that is to be drained, or is being drained by a daemon, who holds its lock then.
        if owner is None or (owner != stream.number("pid") and owner == _daemon_of(ring)):
            self._outcome = GONE
            return
        self.pid = self.pid or owner
        if owner == os.getpid():
            # A notebook that asks about its own run. Its ring must not be opened here: closing it would drop the lock.
            from ..._stacks import packed_stacks

            self._answer = packed_stacks()
            return
        try:
            question = Question(ring, stream.id)
        except (OSError, Error, ValueError):
            self._outcome = FOREIGN
            return
        if question.is_heard:
            self._question, self._outcome = question, SILENT
            return
        self._outcome = REFUSED if question.is_refused else ASLEEP
        question.close()

    def looks(self) -> bool:
        """Whether an answer may still come."""
        if self._question is None or self._answer is not None or self._is_stopped:
            return False
        self._answer = self._question.look()
        return self._answer is None

    @property
    def others(self) -> int:
        """How many answers others got from it meanwhile."""
        return self._question.others if self._question is not None else 0

    def found(self, started: float) -> Process:
        stream = self._stream
        tasks = tasks_of(self.pid) if self.pid else []
        outcome, threads = self._outcome, tuple[Thread, ...]()
        if self._answer is None and self.others:
            outcome = ANSWERED  # others, who asked before us: it is not silent
        elif self._answer is not None:
            outcome, threads = ANSWERED, _threads_of(self._answer, started)
        elif self.pid and not tasks:
            outcome = GONE
        elif _are_stopped(tasks):
            outcome = STOPPED
        return Process(
            stream.hex, stream.kind, stream.number("rank"), stream.text("host"), self.pid or stream.number("pid") or 0, outcome, threads,
            "process" if threads else "", tuple(tasks), self._busy(tasks),
        )  # fmt: skip

    def _busy(self, tasks: Iterable[Task]) -> int:
        sender = self._question.thread if self._question is not None else 0
        if any(task.id == sender and task.state == "D" for task in tasks):
            return 0  # who should answer waits for a disk itself, so it is not the GIL of who computes that it lacks
        elapsed = clock.monotonic() - self._began
        used = [(task.cpu_seconds - self._before.get(task.id, task.cpu_seconds), task.id) for task in tasks]
        most, which = max(used, default=(0.0, 0))
        return which if elapsed > 0.2 and most > _BUSY_SHARE * elapsed else 0

    def close(self) -> None:
        if self._question is not None:
            self._question.close()


def _daemon_of(ring: str) -> int | None:
    digest = os.path.basename(ring).partition("-")[0]
    try:
        return platform.lock_owner(os.path.join(platform.runtime_directory(), f"{digest}.lock"))
    except (OSError, Error):
        return None


def _are_stopped(tasks: Sequence[Task]) -> bool:
    return bool(tasks) and all(task.state in "Tt" for task in tasks)


def _threads_of(answer: bytes, started: float) -> tuple[Thread, ...]:
    """What a process answered; of an answer that cannot be read, nothing."""
    sources = Sources(started)
    try:
        told = decode_map(answer).get("threads")
    except DamageError:
        return ()
    found = []
    for each in told[:_THREADS_MAX] if isinstance(told, list) else ():
        if not isinstance(each, dict):
            continue
        frames = tuple(
            Frame(frame[0], frame[1], frame[2], sources.line(frame[0], frame[2]))
            for frame in _listed(each.get("frames"))
            if isinstance(frame, list) and [type(part) for part in frame] == [str, str, int]
        )
        native = each.get("native")
        left_out = [part for part in _listed(each.get("left_out")) if type(part) is int]
        found.append(
            Thread(
                str(each.get("name")),
                each.get("is_main") is True,
                native if type(native) is int else 0,
                frames,
                (left_out[0], left_out[1]) if len(left_out) == 2 else (0, 0),
            )
        )
    return tuple(found)


def _listed(value: Any) -> list[Any]:
    return value[:_FRAMES_MAX] if isinstance(value, list) else []


class Sources:
    """Lines of source files, of which each is read once. A file that was changed after `started` says nothing about the process."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._files: dict[str, list[str]] = {}

    def line(self, path: str, number: int) -> str:
        """The line without blanks around it; "" where there is none."""
        if path not in self._files:
            self._files[path] = self._read(path)
        lines = self._files[path]
        return lines[number - 1].strip()[:_CHARACTERS_MAX] if 0 < number <= len(lines) else ""

    def _read(self, path: str) -> list[str]:
        if not os.path.isabs(path):
            return []
        try:
            descriptor = platform.open_regular(path, os.O_RDONLY)
        except (OSError, ValueError):
            return []
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if status.st_size > _SOURCE_BYTES_MAX or (self._started and status.st_mtime > self._started):
                return []
            return file.read().decode("utf-8", "replace").split("\n")


def grouped(processes: Sequence[Process]) -> list[Group]:
    """The threads of all processes, those with equal stacks together: main threads first, then the rarest stack first.

    Why the rarest: 1 023 ranks wait for the one that is elsewhere.
    """
    found: dict[tuple[Any, ...], list[tuple[Process, Thread]]] = {}
    for process in processes:
        for thread in process.threads:
            key = (thread.is_main, tuple((frame.file, frame.function, frame.line) for frame in thread.frames))
            found.setdefault(key, []).append((process, thread))
    groups = [Group(members[0][1].frames, key[0], tuple(members)) for key, members in found.items()]
    return sorted(groups, key=lambda group: (not group.is_main, len(group.members) if group.is_main else 0))


# -- py-spy


def debugger_path() -> str | None:
    """py-spy of this interpreter's environment, or on PATH."""
    beside = os.path.join(os.path.dirname(sys.executable), "py-spy")
    return shutil.which(beside) or shutil.which("py-spy")


def _with_debugger(process: Process, started: float) -> Process:
    import json
    import subprocess

    program = debugger_path()
    if program is None:
        return process._replace(note=f"py-spy is not installed. Try: {install_hint('py-spy')}")
    # Why non-blocking: what hangs does not move, and a process that is stopped must stay as it is.
    words = [program, "dump", "--json", "--nonblocking", "--pid", str(process.pid)]
    try:
        done = subprocess.run(
            words, capture_output=True, timeout=_PYSPY_SECONDS_MAX, stdin=subprocess.DEVNULL, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return process._replace(note=f"py-spy cannot be used: {type(error).__name__}")
    try:
        told = json.loads(done.stdout)
    except (ValueError, RecursionError):
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = lines[-1][:_CHARACTERS_MAX] if lines else f"exit code {done.returncode}"
        return process._replace(note=f"py-spy may not look: {reason}. Try: sudo {program} dump --pid {process.pid}")
    threads = _spied(told, Sources(started), process.pid)
    return process._replace(threads=threads, source="py-spy" if threads else "", note="")


def _spied(told: Any, sources: Sources, pid: int) -> tuple[Thread, ...]:
    found = []
    for each in told[:_THREADS_MAX] if isinstance(told, list) else ():
        name, native = str(each.get("thread_name") or "thread"), each.get("os_thread_id") or 0
        if name.startswith("stepd-"):
            continue
        frames = tuple(
            Frame(
                str(frame["filename"]),
                str(frame["name"]),
                int(frame["line"]),
                sources.line(str(frame["filename"]), int(frame["line"])),
            )
            for frame in _listed(each.get("frames"))
        )
        found.append(Thread(name, native == pid, native, frames, has_gil=bool(each.get("owns_gil"))))
    return tuple(sorted(found, key=lambda thread: not thread.is_main))
