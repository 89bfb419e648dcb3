"""Whether a living run goes on, and if not, where its processes are: judged from its last rows and their stacks (docs/why.md#alive)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ...limits import FREE_BYTES_MIN
from ...reader.times import duration
from .endings import CERTAIN, LIKELY, UNKNOWN, Verdict, gib
from .stacks import ANSWERED, ASLEEP, ELSEWHERE, FOREIGN, GONE, REFUSED, SILENT, STOPPED, Frame, Group, Process, grouped

if TYPE_CHECKING:
    from ...reader.run import Run

# A run that has logged nothing for so many of its steps is silent, but not before so many seconds, nor before so many times its
# longest pause: validation and checkpoints take their time. One that has logged at most two rows has the last.
SILENT_STEPS = 20
SILENT_SECONDS_MIN = 5.0
_PAUSES = 2
_FIRST_SECONDS = 60.0
# Longer ones say little of the next: the process was stopped, or the machine slept.
_PAUSE_SECONDS_MAX = 3600.0
# Rows that the median is taken of, and, of a run that seems to be silent, those among which a pause is looked for.
_ROWS, _BACK_ROWS = 64, 4096
_PLACES_SHOWN = 3
# What ranks wait for one another in.
_COLLECTIVES = frozenset(
    "all_reduce all_gather all_gather_into_tensor all_to_all barrier broadcast gather reduce reduce_scatter reduce_scatter_tensor "
    "scatter wait_for_everyone".split()
)


class Pace(NamedTuple):
    """How a run goes on.

    Attributes:
        last: When it logged last since it was started or resumed, Unix seconds; None: never.
        step: What step that was.
        step_seconds: The median time between its last rows; None below three of them.
        silent_seconds: Since then, or since it was started.
        longest_seconds: The longest time between its last rows; below three of them also before the first.
    """

    last: float | None
    step: int | None
    step_seconds: float | None
    silent_seconds: float
    longest_seconds: float = 0.0

    @property
    def is_slow(self) -> bool:
        """Whether it is silent for longer than its steps explain."""
        if self.step_seconds is None:
            return self.silent_seconds > _FIRST_SECONDS
        return self.silent_seconds > max(SILENT_STEPS * self.step_seconds, SILENT_SECONDS_MIN)

    @property
    def is_silent(self) -> bool:
        """Whether it is silent for longer than its steps and its pauses explain."""
        return self.is_slow and self.silent_seconds > _PAUSES * min(self.longest_seconds, _PAUSE_SECONDS_MAX)


def pace_of(run: Run, now: float) -> Pace:
    """Reads the last rows. `now`: Unix seconds."""
    lanes = run._lanes
    # Rows of an earlier attempt tell nothing of this one's pace, and the time between the two is no pause.
    started = lanes[0].last.started if lanes else run.started
    pace = _pace_of(run.tail(_ROWS), started, now)
    # Why not at once: most runs that are looked at go on.
    return _pace_of(run.tail(_BACK_ROWS), started, now) if pace.is_silent else pace


def _pace_of(rows: Sequence[Mapping[str, Any]], started: float, now: float) -> Pace:
    rows = [row for row in rows if row["_timestamp"] >= started]
    times = sorted(row["_timestamp"] for row in rows)
    pauses = [after - before for before, after in zip(times, times[1:]) if after > before]
    steps = sorted(pauses[-_ROWS:])
    median = steps[len(steps) // 2] if len(steps) > 1 else None
    if times and median is None:
        pauses.append(times[0] - started)
    last = times[-1] if times else None
    silent = max(0.0, now - (started if last is None else last))
    return Pace(last, rows[-1]["_step"] if rows else None, median, silent, max(pauses, default=0.0))


def span(seconds: float) -> str:
    """A length of time, also a short one."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def pace_text(pace: Pace) -> str:
    """What the pace is, in a sentence without an end."""
    if pace.last is None:
        return f"nothing was logged since it was started {span(pace.silent_seconds)} ago"
    told = f"the last row (step {pace.step:,}) came {span(pace.silent_seconds)} ago"
    return told if pace.step_seconds is None else f"{told}, a step takes {span(pace.step_seconds)}"


def verdict_of_living(pace: Pace, processes: Sequence[Process], disk_free: int = 1 << 62) -> Verdict:
    """What is the matter with a run that lives, or that nothing is. `disk_free`: bytes on its store's disk."""
    # Of a silent run those that live are asked: where there are none, they have ended, and nobody has stored that yet.
    if (processes or pace.is_silent) and all(process.outcome == GONE for process in processes):
        return _not_stored(disk_free)
    # Of the first steps of a run nobody knows how long they take.
    silent = f"It hangs{', or its first steps take that long' if pace.step_seconds is None else ''}: {pace_text(pace)}"
    likely = LIKELY if pace.step_seconds is not None else UNKNOWN
    stopped = [process for process in processes if process.outcome == STOPPED]
    if stopped:
        told = f"{_who(stopped, processes)} stopped by a signal (SIGSTOP, Ctrl-Z) or a debugger"
        # Why certain: the kernel says so.
        return Verdict("stopped", f"{_capital(told)}: {pace_text(pace)}.", CERTAIN, (f"kill -CONT {stopped[0].pid}",))
    if not pace.is_silent:
        if not pace.is_slow:
            return Verdict("running", f"It runs: {pace_text(pace)}.", CERTAIN)
        text = f"It is silent, which is not new: {pace_text(pace)}, and a pause was {span(pace.longest_seconds)} long"
        return Verdict("running", f"{text}.", LIKELY, ("stepd why RUN --now shows what its threads do",))
    stuck = [process for process in processes if process.outcome == SILENT]
    if stuck and len(stuck) * 2 >= len([p for p in processes if p.outcome in (SILENT, ANSWERED)]):
        return _without_interpreter(silent, pace, stuck, processes)
    if not any(process.threads for process in processes):
        return Verdict("hanging", f"{silent}; what it is doing could not be learned.", likely, _unasked(processes))
    return Verdict("hanging", f"{silent}. {_capital(_places(processes))}.", likely, _advice(processes))


def _not_stored(disk_free: int) -> Verdict:
    """Its processes are dead, and what they logged last still waits in shared memory."""
    text = "Its processes have ended, and what they logged last waits in shared memory to be stored"
    if disk_free < FREE_BYTES_MIN:
        advice = ("make room on the disk of the store (stepd du); how it ended can be told when the rest is stored",)
        return Verdict("disk-full", f"{text}: its disk has {gib(disk_free)} left.", CERTAIN, advice)
    return Verdict("unstored", f"{text}.", LIKELY, ("stepd start, which stores it; then ask again",))


def _without_interpreter(silent: str, pace: Pace, stuck: Sequence[Process], processes: Sequence[Process]) -> Verdict:
    process = stuck[0]
    waiting = next((task for task in process.tasks if task.state == "D"), None)
    notes = tuple(dict.fromkeys(each.note.partition("Try: ")[2] for each in stuck if "Try: " in each.note))
    holder = next((thread for thread in process.threads if thread.has_gil), None)
    place = (
        f" in {place_text(frame)}" if holder is not None and (frame := telling_frame(holder.frames)) is not None else ""
    )
    if process.busy:
        name = holder.name if holder is not None else _task_name(process, process.busy)
        text = f"{name} keeps the GIL and computes{place}, so no other Python runs"
        if holder is None:
            return Verdict("gil", f"{silent}. {text}.", LIKELY, notes)
        # It may come to an end yet; what is certain is what it does.
        return Verdict("gil", f"It is silent: {pace_text(pace)}. {text}.", CERTAIN, notes)
    if waiting is not None:
        text = (
            f"{_task_name(process, waiting.id)} waits for a device or a file system ({waiting.waits_in or 'state D'})"
        )
        return Verdict(
            "device", f"{silent}. {text}.", LIKELY, ("df hangs likewise where a network file system is away", *notes)
        )
    text = f"its interpreter gives no answer: a thread that waits in native code keeps the GIL{place}"
    return Verdict("gil", f"{silent}; {text}.", LIKELY, notes)


def telling_frame(frames: Sequence[Frame]) -> Frame | None:
    """The innermost frame of the user's own code; without one the innermost."""
    own = (frame for frame in frames if not is_library(frame.file))
    return next(own, frames[0] if frames else None)


def is_library(path: str) -> bool:
    """Whether a file is Python's or an installed package's."""
    return path.startswith("<") or any(part in path for part in ("/site-packages/", "/dist-packages/", "/lib/python3"))


def place_text(frame: Frame) -> str:
    """`train.py:44 in step: loss.backward()`."""
    name = frame.file.rpartition("/")[2]
    text = f": {frame.text}" if frame.text else ""
    return f"{name}:{frame.line} in {frame.function}{text}"


def who_text(members: Sequence[Process]) -> str:
    """`rank 37`, `ranks 0-36, 38-1023`, `process 4121`."""
    ranks = sorted({process.rank for process in members if process.rank is not None})
    if not ranks or len(ranks) < len(members):
        pids = [process.pid for process in members]
        return f"process {pids[0]}" if len(pids) == 1 else f"{len(pids)} processes"
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    told = [str(low) if low == high else f"{low}-{high}" for low, high in spans]
    if len(told) > 4:
        return f"{len(ranks)} ranks"
    return f"rank{'' if len(ranks) == 1 else 's'} {', '.join(told)}"


def _who(some: Sequence[Process], every: Sequence[Process]) -> str:
    if len(every) == 1:
        return "it is"
    return f"{who_text(some)} {'is' if len(some) == 1 else 'are'}"


def _places(processes: Sequence[Process]) -> str:
    """Where the main threads are: the most first, as they wait for the others."""
    groups = [group for group in grouped(processes) if group.is_main]
    groups.sort(key=lambda group: -len(group.members))
    told = []
    for group in groups[:_PLACES_SHOWN]:
        frame = telling_frame(group.frames)
        where = place_text(frame) if frame is not None else "no Python code"
        inner = group.frames[0] if group.frames else None
        if inner is not None and inner is not frame:
            where += f" (in {inner.function})"
        told.append(f"{_subject(group, len(processes))} in {where}")
    more = len(groups) - len(told)
    return "; ".join(told) + (f"; {more} more places" if more > 0 else "")


def _subject(group: Group, count: int) -> str:
    if count == 1:
        return f"its {group.members[0][1].name} is"
    members = [process for process, _ in group.members]
    return f"{who_text(members)} {'is' if len(members) == 1 else 'are'}"


def _advice(processes: Sequence[Process]) -> tuple[str, ...]:
    frames = [frame for process in processes if process.main for frame in process.main.frames]
    names = {frame.function.rpartition(".")[2] for frame in frames}
    told = []
    if len([group for group in grouped(processes) if group.is_main]) > 1 and names & _COLLECTIVES:
        told.append("the rank that is elsewhere is the one to look at")
    if any("/torch/distributed/" in frame.file for frame in frames):
        told.append("TORCH_NCCL_TRACE_BUFFER_SIZE=2000 before the start lets NCCL tell what it waited for")
    if names & {"_next_data", "_get_data", "_try_get_data"}:
        told.append(
            "it waits for a DataLoader worker: num_workers=0, or py-spy dump --pid of its children, shows where that is"
        )
    return tuple(told)


def _unasked(processes: Sequence[Process]) -> tuple[str, ...]:
    told = []
    for process in processes:
        if process.outcome == ELSEWHERE:
            told.append(f"stepd why RUN on {process.host or 'its host'}, where it runs")
        elif process.outcome == REFUSED:
            told.append("STEPD_STACKS=0 was set for it; py-spy dump --pid " + str(process.pid))
        elif process.outcome == FOREIGN:
            told.append("the user whose process it is may ask")
        elif "Try: " in process.note:
            told.append(process.note.partition("Try: ")[2])
    return tuple(dict.fromkeys(told))


OUTCOMES = {
    SILENT: "gave no answer", STOPPED: "is stopped", ASLEEP: "has logged nothing yet, so nobody listens in it",
    REFUSED: "answers nobody (STEPD_STACKS=0)", ELSEWHERE: "is on another host, or in another container",
    FOREIGN: "is another user's, or cannot be asked", GONE: "ended meanwhile", ANSWERED: "answered",
}  # fmt: skip


def _task_name(process: Process, task: int) -> str:
    thread = next((thread for thread in process.threads if thread.native == task), None)
    if thread is not None:
        return thread.name
    return "Its main thread" if task == process.pid else f"Thread {task}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
