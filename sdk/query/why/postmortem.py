"""What became of a run: how it died, or why it hangs, with what speaks for it (docs/why.md).

From the store alone: facts, last rows, console, samples of the system, what the observer saw of the ends of its processes. On the
run's own host also from the kernel's log, and of a living run from its processes themselves (`sdk.query.why.stacks`).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ... import platform
from ...limits import FREE_BYTES_MIN
from ...platform.kernel_log import KernelLine, classified, read_kernel_log
from ...reader import state
from ...reader.facts import StreamFacts
from ...reader.lanes import lanes_of
from .endings import (
    End,
    Findings,
    Memory,
    Verdict,
    culprit_of,
    gib,
    kernel_lines,
    signal_name,
    verdict_of,
)
from .hanging import Pace, pace_of, pace_text, span, verdict_of_living
from .stacks import ASK_SECONDS, Process, ask_stacks

if TYPE_CHECKING:
    from ...reader.about import Alert, RunError
    from ...reader.gaps import Gap
    from ...reader.logs import LogLine
    from ...reader.run import Run
    from ...reader.store import Store

_ROWS, _LINES = 5, 20
# Samples that are looked through for a GPU's error: ten minutes of them.
_SAMPLES = 60
# How far back the beginning of a NaN is looked for, in rows; of so many keys.
_BACK_ROWS = (512, 8192)
_BACK_KEYS_MAX = 5
# Limits: what a hostile store may make us look at.
_ENDS_MAX, _LINES_MAX = 1024, 64
_ENDS_SHOWN = 8
# The kernel's own: its log names processes by their numbers there.
_FIRST_NAMESPACE = "pid:[4026531836]"
# Runs that `choose` looks into.
_CHOICE_MAX = 200


class Evidence(NamedTuple):
    """One thing that is known.

    Attributes:
        kind: "exit", "oom", "memory", "kernel", "gpu", "disk", "gap", "host", "nan", "pace", "seen", "alert", "process".
        text: A sentence without an end.
        time: Unix seconds, where it has one.
    """

    kind: str
    text: str
    time: float | None = None


class NotFinite(NamedTuple):
    """A key whose last values are no numbers: NaN or infinite since `step`. Not `is_exact`: at least since then."""

    key: str
    step: int
    value: float
    is_exact: bool


class Postmortem(NamedTuple):
    """What became of a run.

    Attributes:
        evidence: What speaks for the verdict, the weightiest first.
        ended: Unix seconds, as far as it can be known; None of a living run.
        pace: Of a living run.
        rows, lines: The last ones.
        processes: Of a living run that was asked.
    """

    id: str
    name: str
    project: str
    state: str
    verdict: Verdict
    evidence: tuple[Evidence, ...]
    started: float
    ended: float | None
    step: int | None
    pace: Pace | None
    error: RunError | None
    ends: tuple[End, ...]
    rows: tuple[dict[str, Any], ...]
    lines: tuple[LogLine, ...]
    not_finite: tuple[NotFinite, ...]
    alerts: tuple[Alert, ...]
    gaps: tuple[Gap, ...]
    processes: tuple[Process, ...] = ()


def postmortem(
    run: Run,
    *,
    now: bool = False,
    seconds: float = ASK_SECONDS,
    debugger: bool = True,
    on_ask: Callable[[Pace], None] = lambda pace: None,
) -> Postmortem:
    """Looks at a run.

    Args:
        now: Ask a living run what its threads do also when it is not silent.
        seconds: How long to wait for processes that do not answer.
        debugger: Use py-spy for those, where it is there.
        on_ask: Called before that, which takes its time.
    """
    run.refresh()
    found_state = run.state
    living = found_state == state.RUNNING
    rows = run.tail(_ROWS)
    bad = tuple(_not_finite(run, rows))
    lines = tuple(run.logs(last=_LINES)) if run.has_console else ()
    gaps, alerts = tuple(run.gaps), tuple(run.alerts)
    shared = (
        Evidence("nan", f"{one.key} is {one.value} since step {one.step:,}{'' if one.is_exact else ' at least'}")
        for one in bad
    )
    common = [*shared, *(Evidence("gap", _gap_text(gap), gap.start) for gap in gaps)]
    common += [Evidence("alert", f"alert: {': '.join(filter(None, (a.title, a.text)))}", a.time) for a in alerts[-3:]]
    pace, processes, ended = None, tuple[Process, ...](), None
    ends: tuple[End, ...] = ()
    if living:
        pace = pace_of(run, run._now_ns() / 1e9)
        if now or pace.is_silent:
            on_ask(pace)
            processes = tuple(ask_stacks(run, seconds, debugger=debugger))
        free = _free_bytes(run)
        verdict = verdict_of_living(pace, processes, free)
        evidence = [*_living_evidence(pace, processes, free), *common]
    else:
        found, seen = _findings(run, rows, gaps, [line.text for line in lines])
        verdict, ended, ends = verdict_of(found), found.ended, tuple(found.ends)
        evidence = [*_dead_evidence(found, seen), *common]
    step = rows[-1]["_step"] if rows else None
    return Postmortem(
        run.id, run.name, run.project, found_state, verdict, tuple(evidence), run.started, ended, step, pace, run.error, ends,
        tuple(rows), lines, bad, alerts, gaps, processes,
    )  # fmt: skip


def choose(store: Store) -> Run | None:
    """The run that is meant where none is named: what one has just been surprised by.

    One that hangs now, of several the one that was started last. Else, of those that did not end well, the one that ended last; one that
    somebody interrupted only where there is no other. None: there is none of these.
    """
    runs = [(run.state, run) for run in store.runs()]
    living = (run for found, run in runs if found == state.RUNNING)
    for run in itertools.islice(living, _CHOICE_MAX):
        if pace_of(run, run._now_ns() / 1e9).is_silent:
            return run
    interrupted = [run for found, run in runs if found == state.INTERRUPTED]
    others = [run for found, run in runs if found not in (state.RUNNING, state.FINISHED, state.INTERRUPTED)]
    return _ended_last(others) or _ended_last(interrupted)


def _ended_last(runs: Iterable[Run]) -> Run | None:
    """The one that ended last. Looks only into those of which a list does not tell when they did, and which may be it."""
    best, best_end = None, 0.0
    for run in sorted(runs, key=_ended_at_most, reverse=True)[:_CHOICE_MAX]:
        if best is not None and _ended_at_most(run) <= best_end:
            break
        end = _end_of(run)
        if best is None or end > best_end:
            best, best_end = run, end
    return best


def _ended_at_most(run: Run) -> float:
    return run.updated if run.ended is None else run.ended


def _end_of(run: Run) -> float:
    """When a run ended, Unix seconds. One that was killed did not say so, and its files are younger once they were compacted."""
    if run.ended is not None:
        return run.ended
    last = run.tail(1)
    streams = run._facts.streams
    ends = ends_of(streams.values(), {lane.last.hex for lane in lanes_of(streams)})
    return min((end.time for end in ends), default=0.0) or (last[-1]["_timestamp"] if last else 0.0) or run.updated


# -- of the dead


class _Seen(NamedTuple):
    """When something was seen last: a row, a sample."""

    row: float | None
    sample: float | None


def _findings(
    run: Run, rows: Sequence[Mapping[str, Any]], gaps: Sequence[Gap], console: Sequence[str]
) -> tuple[Findings, _Seen]:
    streams = run._facts.streams
    last = [lane.last for lane in lanes_of(streams)]
    main = next((stream for stream in last if stream.kind == "main"), StreamFacts(0))
    ends = tuple(ends_of(streams.values(), {stream.hex for stream in last}))
    samples = run.of_kind("system").tail(_SAMPLES) if any(s.kind == "system" for s in streams.values()) else []
    begin = max((stream.started for stream in last), default=0.0)
    samples = [sample for sample in samples if sample["_timestamp"] >= begin]
    # One that was taken when the processes were gone tells nothing of what they held.
    samples = [sample for sample in samples if sample.get("system/memory_rss") != 0] or samples
    seen = _Seen(rows[-1]["_timestamp"] if rows else None, samples[-1]["_timestamp"] if samples else None)
    said = max((_time_of(stream.end) for stream in last if stream.end is not None), default=0.0)
    ended = min((end.time for end in ends), default=0.0) or said or max(seen.row or 0, seen.sample or 0) or run.updated
    is_machine = main.text("machine") == platform.machine_id() and bool(main.text("machine"))
    is_host = main.text("host") == platform.host_name()
    is_here = is_host and main.text("boot_id") == platform.boot_id()
    crashed = run.state == state.CRASHED
    found = Findings(
        run.state, run.exit_code, run.error, ended, ends,
        # What the observer could not read, we cannot either.
        read_kernel_log(begin, journal=False) if crashed and is_here and not ends else None,
        tuple(_xids(samples)), gaps, _memory(samples[-1] if samples else {}),
        _whole(samples[-1].get("system/machine/disk_free")) if samples else None,
        time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) if is_machine and not is_here else None,
        is_machine and not is_here, is_here, any(stream.about.get("preempting") is True for stream in last),
        main.text("job_id"), frozenset(number for one in last if (number := one.number("pid"))), console,
    )  # fmt: skip
    return found, seen


def ends_of(streams: Iterable[StreamFacts], wanted: set[str]) -> list[End]:
    """What observers told of the ends of these streams' processes (docs/system.md#ends), the first first."""
    found = []
    for stream in streams:
        told = stream.about.get("ends") if stream.kind == "system" else None
        names_pids = stream.text("pid_namespace") == _FIRST_NAMESPACE
        for one in told[:_ENDS_MAX] if isinstance(told, list) else ():
            if isinstance(one, dict) and one.get("stream") in wanted:
                when = _time_of(one)
                lines = one.get("kernel")
                found.append(
                    End(
                        one["stream"], _whole(one.get("rank")), _whole(one.get("pid")) or 0, when, _whole(one.get("signal")),
                        _whole(one.get("exit_code")), one.get("core") is True, _whole(one.get("oom_kills")),
                        tuple(_told_lines(lines, names_pids)) if isinstance(lines, list) else None,
                    )
                )  # fmt: skip
    return sorted(found, key=lambda end: end.time)


def _told_lines(lines: list[Any], names_pids: bool) -> Iterator[KernelLine]:
    for line in lines[:_LINES_MAX]:
        if isinstance(line, list) and len(line) == 2 and type(line[0]) is int and isinstance(line[1], str):
            told = classified(line[0] / 1e9, line[1])
            if told is not None:
                yield told if names_pids else told._replace(pid=0)


def _dead_evidence(found: Findings, seen: _Seen) -> Iterator[Evidence]:
    first = culprit_of(found)
    for end in found.ends[:_ENDS_SHOWN]:
        who = f"rank {end.rank} (process {end.pid})" if end.rank is not None else f"process {end.pid}"
        how = "ended in a way that was not seen"
        if end.signal is not None:
            how = f"was ended by {signal_name(end.signal)}{', memory dumped' if end.has_core else ''}"
        elif end.exit_code is not None:
            how = f"left with exit code {end.exit_code}"
        order = ", first of all" if end is first and len(found.ends) > 1 else ""
        # How a run ended that said so itself is the verdict already; what else was seen then may be the reason. One that was preempted
        # only said that it would end.
        if found.state in (state.CRASHED, state.PREEMPTED):
            yield Evidence("exit", f"{who} {how}{order}", end.time)
        if end.oom_kills:
            yield Evidence(
                "oom",
                f"its cgroup counted {end.oom_kills} OOM kill{'' if end.oom_kills == 1 else 's'} in that minute",
                end.time,
            )
    for line in kernel_lines(found)[-8:]:
        yield Evidence("kernel" if line.kind != "xid" else "gpu", f"kernel: {line.text}", line.time)
    for when, gpu, number in found.xids:
        yield Evidence("gpu", f"{gpu} reported Xid {number}", when)
    if (memory := found.memory).used is not None:
        told = [f"its processes held {gib(memory.used)}"]
        if memory.limit and memory.limit_used is not None:
            told.append(f"its cgroup {gib(memory.limit_used)} of {gib(memory.limit)}")
        if memory.available is not None:
            told.append(f"the machine had {gib(memory.available)} left")
        yield Evidence("memory", f"{_before(found.ended, seen.sample)} {', '.join(told)}", seen.sample)
    if found.disk_free is not None and found.disk_free < FREE_BYTES_MIN:
        yield Evidence("disk", f"its disk had {gib(found.disk_free)} left", seen.sample)
    if found.is_other_boot:
        yield Evidence("host", "its host was booted again since", found.rebooted)
    if found.state == state.CRASHED:
        yield Evidence("seen", f"the last row came {_before(found.ended, seen.row)}", seen.row)
        if not found.ends:
            text = "nobody saw its processes end"
            yield Evidence(
                "seen", f"{text}; they were sampled last {_before(found.ended, seen.sample)}" if seen.sample else text
            )


def _before(ended: float, when: float | None) -> str:
    if when is None:
        return "never"
    return f"{span(ended - when)} before the end" if ended - when >= 0.0005 else "at the end"


def _time_of(told: Mapping[str, Any]) -> float:
    return (_whole(told.get("time_ns")) or 0) / 1e9


def _whole(value: Any) -> int | None:
    return value if type(value) is int and abs(value) < 1 << 63 else None


def _memory(sample: Mapping[str, Any]) -> Memory:
    names = ("memory_rss", "cgroup/memory_limit", "cgroup/memory_used", "machine/memory_available")
    used, limit, limit_used, available = (_whole(sample.get(f"system/{name}")) for name in names)
    percent = sample.get("system/machine/memory_percent")
    return Memory(used, limit, limit_used, available, percent if isinstance(percent, float) else None)


def _xids(samples: Sequence[Mapping[str, Any]]) -> Iterator[tuple[float, str, int]]:
    for sample in samples:
        for key, value in sample.items():
            if key.startswith("system/gpu.") and key.endswith(".xid") and type(value) is int:
                yield sample["_timestamp"], key.split("/")[1].rpartition(".")[0], value


# -- of both


def _free_bytes(run: Run) -> int:
    try:
        return run._files.free_bytes(run.directory)
    except OSError:
        return 1 << 62


def _living_evidence(pace: Pace, processes: Sequence[Process], disk_free: int) -> Iterator[Evidence]:
    yield Evidence("pace", pace_text(pace), pace.last)
    if disk_free < FREE_BYTES_MIN:
        yield Evidence("disk", f"its disk has {gib(disk_free)} left")
    for process in processes:
        if process.note:
            yield Evidence("process", f"process {process.pid}: {process.note.partition(' Try: ')[0]}")


def _not_finite(run: Run, rows: Sequence[Mapping[str, Any]]) -> Iterator[NotFinite]:
    """The keys of the last rows whose last value is no number, and since when that is so."""
    last: dict[str, tuple[int, Any]] = {}
    for row in rows:
        last.update({key: (row["_step"], value) for key, value in row.items() if not key.startswith("_")})
    bad = {key: value for key, (_, value) in last.items() if _is_bad(value)}
    for key in sorted(bad)[:_BACK_KEYS_MAX]:
        step, is_exact = last[key][0], False
        for count in _BACK_ROWS:
            back = run.tail(count, [key])
            good = [index for index, row in enumerate(back) if not _is_bad(row.get(key))]
            begins = good[-1] + 1 if good else 0
            step, is_exact = back[begins]["_step"], bool(good) or len(back) < count
            if is_exact:
                break
        yield NotFinite(key, step, bad[key], is_exact)


def _is_bad(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _gap_text(gap: Gap) -> str:
    steps = f"step {gap.step_min:,}" if gap.step_min == gap.step_max else f"steps {gap.step_min:,} to {gap.step_max:,}"
    return f"{gap.count:,} records are missing ({steps}): {gap.reason}"
