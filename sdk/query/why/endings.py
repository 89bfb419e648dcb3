"""Why a run ended, judged from what is known of its end: the rules behind `stepd why`, without any reading (docs/why.md#how-sure).

The first rule that fits gives the verdict. "certain": somebody said so who knows (the process itself, the kernel). "likely": it fits
and nothing speaks against it. "unknown": nothing was left behind that could tell.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ...platform.kernel_log import KernelLine, xid_of
from ...reader.about import RunError
from ...reader.gaps import Gap
from ...reader.times import duration

CERTAIN, LIKELY, UNKNOWN = "certain", "likely", "unknown"

# A limit is reached from this share on: the last sample is up to ten seconds old.
_FULL_SHARE = 0.9
# Below this share of the limit the processes themselves are not what fills a cgroup.
_OWN_SHARE = 0.5
# The machine itself has no memory left below this share.
_SHORT_SHARE = 0.03
# A GPU's error this long before the end may be its reason.
_XID_SECONDS = 600.0
# What the disk refused so long before the end was not the reason.
_GAP_SECONDS = 600.0
# A host that was booted again so long after the end may have been ended with it; later it is a reason like any other.
_BOOT_SECONDS = 3600.0
# A process that the observer did not watch may be one of the run's when it crashed so near to the end.
_CRASH_SECONDS = 60.0
_CRASHES = {
    signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS,
}  # fmt: skip
_CHARACTERS_MAX = 300

# What the OOM killer's line says of the memory that the process held.
_RSS = re.compile(r"anon-rss:(\d{1,12})kB")

# What NVIDIA's "Xid Errors" document says of those that end a training.
XIDS = {
    13: "a kernel of the program failed (bad address or instruction)", 31: "a kernel of the program used memory that is not mapped",
    43: "the GPU stopped a channel after an error of the program", 45: "the GPU's work was cleaned up after another error",
    48: "the GPU's memory has an error that cannot be corrected", 63: "a page of the GPU's memory was retired",
    64: "a page of the GPU's memory could not be retired", 74: "NVLink failed", 79: "the GPU has fallen off the bus",
    92: "the GPU's memory has many corrected errors", 94: "an error of the GPU's memory, contained",
    95: "an error of the GPU's memory, not contained", 119: "the GPU's firmware does not answer", 120: "the GPU's firmware failed",
}  # fmt: skip

# Text of an exception -> (cause, what can be done). The first that is found in "Type: message" counts.
_KNOWN_ERRORS: tuple[tuple[str, str, str], ...] = (
    (r"CUDA out of memory|OutOfMemoryError|CUDNN_STATUS_ALLOC_FAILED", "gpu-memory",
     "a smaller batch, gradient checkpointing; PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True where memory is fragmented"),
    (r"DataLoader worker .* (?:killed by signal|exited unexpectedly)|process pool was terminated abruptly", "worker",
     "the worker's own end says more: shared memory (docs/containers.md: --shm-size) and the OOM killer are the usual reasons"),
    (r"No space left on device|ENOSPC|Disk quota exceeded", "disk-full",
     "stepd du shows what the runs take; df -h and df -i what the disk has"),
    (r"Too many open files", "descriptors", "ulimit -n 65536 before the training is started"),
    (r"device-side assert|illegal memory access|CUDA error", "cuda",
     "CUDA_LAUNCH_BLOCKING=1 makes the traceback show the call that failed"),
    (r"NCCL|ProcessGroup|Watchdog caught collective", "collective",
     "one rank did not come to the collective: see the other ranks' consoles (stepd logs RUN --rank N)"),
    (r"^MemoryError|Cannot allocate memory", "memory", "ulimit -v and the machine's memory; a smaller batch or fewer workers"),
)  # fmt: skip


class End(NamedTuple):
    """How one process ended, as the observer saw it (docs/system.md#ends).

    Attributes:
        signal, exit_code: None where it could not be learned.
        oom_kills: Processes of its cgroup that the OOM killer killed in the last minute; None: not told.
        lines: What the kernel's log said; None: it may not be read. Where pids there are not the process's, they name none.
    """

    stream: str
    rank: int | None
    pid: int
    time: float
    signal: int | None
    exit_code: int | None
    has_core: bool
    oom_kills: int | None
    lines: tuple[KernelLine, ...] | None


class Memory(NamedTuple):
    """The last sample of memory, bytes; None: not told."""

    used: int | None = None
    limit: int | None = None
    limit_used: int | None = None
    available: int | None = None
    percent: float | None = None


class Findings(NamedTuple):
    """What is known of a run that is over.

    Attributes:
        ended: When, as far as can be known, Unix seconds.
        ends: Of its last attempt's processes, the first to end first.
        lines: More lines of the kernel's log, which somebody else read; None: it may not be read.
        xids: (Unix seconds, GPU, number).
        gaps: Records that are missing of the time before the end.
        rebooted: When its host was booted again, if it was and that is known. `is_other_boot`: it was.
        is_here: We are on its host.
        pids: Its last attempt's processes, as they are called on this host.
        console: The last lines that were printed.
    """

    state: str
    exit_code: int | None = None
    error: RunError | None = None
    ended: float = 0.0
    ends: Sequence[End] = ()
    lines: Sequence[KernelLine] | None = None
    xids: Sequence[tuple[float, str, int]] = ()
    gaps: Sequence[Gap] = ()
    memory: Memory = Memory()
    disk_free: int | None = None
    rebooted: float | None = None
    is_other_boot: bool = False
    is_here: bool = False
    is_preempted: bool = False
    job: str | None = None
    pids: frozenset[int] = frozenset()
    console: Sequence[str] = ()


class Verdict(NamedTuple):
    """One sentence, how sure it is, and what can be done.

    Attributes:
        cause: A word for programs: "exception", "oom-killer", "killed", "terminated", "native-crash", "gpu", "disk-full", "reboot",
            "preempted", "interrupted", "exit-code", "finished", "unknown"; of errors that are known also "gpu-memory", "worker",
            "descriptors", "cuda", "collective", "memory"; of the living "running", "hanging", "stopped", "gil", "device", "unstored".
    """

    cause: str
    text: str
    confidence: str
    advice: tuple[str, ...] = ()


def verdict_of(found: Findings) -> Verdict:
    """Why the run ended."""
    return next(verdict for rule in _RULES for verdict in rule(found))


def culprit_of(found: Findings) -> End | None:
    """The process whose end took the others along: the first that was killed or failed, of none the first that left."""
    return next(iter(sorted(found.ends, key=lambda end: (end.exit_code == 0, end.time))), None)


def signal_name(number: int) -> str:
    """SIGKILL for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def kernel_lines(found: Findings) -> list[KernelLine]:
    """What is known of the kernel's log and may concern this run, each line once, in order."""
    told = [*(line for end in found.ends for line in end.lines or ()), *(found.lines or ())]
    killed = {line.pid for line in told if line.kind == "oom" and not line.text.startswith("oom-kill:")}
    # Of the two lines that the OOM killer writes about a process the second one has the numbers.
    chosen = [line for line in told if not (line.text.startswith("oom-kill:") and line.pid in killed)]
    chosen = [line for line in chosen if line.kind != "crash" or _is_its_crash(found, line)]
    return sorted({(line.kind, line.pid, line.text): line for line in chosen}.values())


def _is_its_crash(found: Findings, line: KernelLine) -> bool:
    """Whether a process of the run may have crashed, not any other one of this machine.

    One that the observer did not watch may be a worker of it, or have another number in its container: then its time counts, and that
    somebody noticed.
    """
    if line.pid in {end.pid for end in found.ends}:
        return True
    unseen = found.state == "crashed" and all(end.signal is None and end.exit_code is None for end in found.ends)
    noticed = any(end.signal in _CRASHES for end in found.ends) or (
        found.error is not None
        and re.search(r"(?i)signal|segmentation|terminated abruptly", found.error.message) is not None
    )
    return (unseen or noticed) and abs(found.ended - line.time) < _CRASH_SECONDS


def gib(count: float) -> str:
    """Bytes for people, in the units that limits are given in."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


# -- the rules, in their order


def _well(found: Findings) -> Iterator[Verdict]:
    if found.state == "finished":
        yield Verdict("finished", "It finished by itself.", CERTAIN)


def _failed(found: Findings) -> Iterator[Verdict]:
    if found.state != "failed":
        return
    error = found.error
    if error is None:
        code = "a code that says so" if found.exit_code is None else f"exit code {found.exit_code}"
        yield Verdict("exit-code", f"The program itself ended it with {code}.", CERTAIN)
        return
    text = ": ".join(filter(None, (error.type, error.message.partition("\n")[0])))[:_CHARACTERS_MAX]
    cause, advice = "exception", tuple[str, ...]()
    for pattern, name, line in _KNOWN_ERRORS:
        if re.search(pattern, f"{error.type}: {error.message}"):
            cause, advice = name, (line,)
            break
    yield Verdict(cause, f"An exception that nobody caught ended it: {text}", CERTAIN, advice)


def _interrupted(found: Findings) -> Iterator[Verdict]:
    if found.state == "interrupted":
        yield Verdict("interrupted", "It was interrupted (SIGINT): Ctrl-C, a notebook, or somebody's kill.", CERTAIN)


def _preempted(found: Findings) -> Iterator[Verdict]:
    if found.state == "preempted" or found.is_preempted:
        text = "It was preempted: it said so itself (mark_preempting), and then did not finish."
        again = "the same script with id= and resume='allow' goes on where it was (docs/lifecycle.md#being-preempted)"
        yield Verdict("preempted", text, CERTAIN, (again,))


def _oom(found: Findings) -> Iterator[Verdict]:
    end = culprit_of(found)
    if end is not None and end.signal != signal.SIGKILL:
        return
    pids = {one.pid for one in found.ends}
    named = [line for line in kernel_lines(found) if line.kind == "oom"]
    advice = (
        "fewer DataLoader workers, a smaller batch, or more memory for the job; stepd plot RUN system/memory_rss shows how it grew",
    )
    held = next((int(match[1]) << 10 for line in named if (match := _RSS.search(line.text)) is not None), None)
    how = _memory_text(found.memory)
    if held:
        how = f" (it held {gib(held)}{f' of the {gib(limit)} that its cgroup may have' if (limit := found.memory.limit) else ''})"
    if any(line.pid in pids for line in named):
        yield Verdict("oom-killer", f"The kernel's OOM killer killed it{how}: its log says so.", CERTAIN, advice)
    elif end is not None and end.oom_kills:
        # Why not certain: it may have killed a worker or a neighbour, and somebody else this process then.
        count = _count(end.oom_kills, "process")
        text = f"The kernel's OOM killer probably killed it{how}: it killed {count} of its cgroup in the last minute."
        yield Verdict("oom-killer", text, LIKELY, advice)
    elif end is not None and end.oom_kills == 0:
        return  # the cgroup counts whatever kind of OOM killer it was
    elif named and found.ended - named[-1].time < 60:
        yield Verdict(
            "oom-killer", f"The kernel's OOM killer probably killed it{how}: it killed at that time.", LIKELY, advice
        )
    elif _is_short(found.memory):
        yield Verdict("oom-killer", f"The OOM killer probably killed it{how}.", LIKELY, advice)


def _crashed_natively(found: Findings) -> Iterator[Verdict]:
    end = culprit_of(found)
    number = end.signal if end is not None else None
    # Of a process that was not watched its number must do: others of the machine may crash at that time.
    if not found.ends and any(line.kind == "crash" and line.pid in found.pids for line in kernel_lines(found)):
        number = signal.SIGSEGV
    if number not in _CRASHES:
        return
    xid = _xid(found)
    advice = ["python -X faulthandler train.py prints the Python stack of such a crash; it is in the console then"]
    if number == signal.SIGBUS:
        advice.insert(
            0, "df -h /dev/shm: full shared memory is the usual reason; in a container --shm-size (docs/containers.md)"
        )
    text = f"It crashed in native code ({signal_name(number)}), not in Python"
    confidence = CERTAIN if found.ends else LIKELY
    yield Verdict(
        "native-crash", f"{text}{f', after {_xid_text(*xid[1:])}' if xid else ''}.", confidence, tuple(advice)
    )


def _ended_by_signal(found: Findings) -> Iterator[Verdict]:
    end = culprit_of(found)
    if end is None or end.signal is None or end.signal == signal.SIGKILL:
        return
    text = f"{signal_name(end.signal)} ended it, which the program did not handle"
    usual = {
        signal.SIGTERM: ": a scheduler, a container that was stopped, or somebody's kill",
        signal.SIGHUP: ": mostly its terminal or ssh session was closed",
        signal.SIGXCPU: ": a limit of CPU time",
        signal.SIGPIPE: ": mostly nobody read its output any more",
    }.get(signal.Signals(end.signal) if end.signal in set(signal.Signals) else signal.SIGINT, "")
    advice = [*_job_advice(found)]
    if end.signal == signal.SIGTERM:
        advice.append("a handler that calls run.mark_preempting() and resumes later: docs/lifecycle.md#being-preempted")
    elif end.signal == signal.SIGHUP:
        advice.append("nohup, tmux or systemd-run --user keep a training alive when the terminal goes")
    yield Verdict("terminated", f"{text}{usual}.", CERTAIN, tuple(advice))


def _ended_by_code(found: Findings) -> Iterator[Verdict]:
    end = culprit_of(found)
    if end is not None and end.exit_code is not None:
        means = "os._exit, exec" if end.exit_code == 0 else "os._exit"
        text = f"It left with exit code {end.exit_code} without its last words: {means}, or a library that ends the process."
        yield Verdict(
            "exit-code",
            text,
            CERTAIN,
            ("what it printed last usually says why: stepd logs RUN",) if found.console else (),
        )


def _gpu(found: Findings) -> Iterator[Verdict]:
    xid = _xid(found)
    if xid is not None:
        before = duration(max(found.ended - xid[0], 0))
        text = f"{_xid_text(*xid[1:])}, {before} before the end"
        yield Verdict(
            "gpu", f"Probably the GPU: {text}.", LIKELY, ("nvidia-smi -q, dmesg; another node, if it comes again",)
        )


def _host(found: Findings) -> Iterator[Verdict]:
    end = culprit_of(found)
    if found.is_other_boot and end is None:
        when = f" {duration(max(found.rebooted - found.ended, 0))} later" if found.rebooted else ""
        is_soon = not found.rebooted or 0 <= found.rebooted - found.ended < _BOOT_SECONDS
        before = "went down or was restarted" if is_soon else "may have gone down, or it was killed before"
        text = f"Its host {before}: it was booted again{when}, and nothing of the end was seen."
        yield Verdict(
            "reboot",
            text,
            LIKELY if is_soon else UNKNOWN,
            ("last -x reboot, journalctl -b -1 -e on that host say why",),
        )


def _disk(found: Findings) -> Iterator[Verdict]:
    late = [gap for gap in found.gaps if found.ended - (gap.end or gap.start or found.ended) < _GAP_SECONDS]
    reasons = sorted({gap.reason for gap in late if gap.reason in ("disk full", "free_bytes_min", "disk error")})
    if reasons and not any(end.signal for end in found.ends):
        text = f"Nothing tells how it ended, but its disk refused records before that ({', '.join(reasons)})."
        yield Verdict("disk-full", text, LIKELY, ("df -h and df -i on its disk; stepd du",))


def _killed(found: Findings) -> Iterator[Verdict]:
    end = culprit_of(found)
    if end is not None and end.signal == signal.SIGKILL:
        text = "SIGKILL ended it, and nothing tells who sent it: somebody's kill -9, a scheduler's limit, or a container that was stopped"
        yield Verdict("killed", f"{text}.", CERTAIN, (*_job_advice(found), *_log_advice(found)))


def _unknown(found: Findings) -> Iterator[Verdict]:
    text = "It was killed without a trace: SIGKILL or power, nobody saw the end"
    yield Verdict("unknown", f"{text}.", UNKNOWN, (*_job_advice(found), *_log_advice(found)))


_RULES: tuple[Callable[[Findings], Iterator[Verdict]], ...] = (
    _well, _failed, _interrupted, _preempted, _oom, _crashed_natively, _ended_by_signal, _ended_by_code, _gpu, _host, _disk, _killed,
    _unknown,
)  # fmt: skip


def _is_short(memory: Memory) -> bool:
    if memory.limit and memory.limit_used is not None and memory.limit_used > _FULL_SHARE * memory.limit:
        # What a cgroup uses has the cache of files in it, which is given back first.
        if memory.used is None or memory.used > _OWN_SHARE * memory.limit:
            return True
    if memory.available is None or memory.percent is None:
        return False
    # What is available is the rest of what `percent` of is used.
    return memory.percent > 100 * (1 - _SHORT_SHARE)


def _memory_text(memory: Memory) -> str:
    if memory.limit and memory.limit_used is not None:
        return f" ({gib(memory.limit_used)} of the {gib(memory.limit)} that its cgroup may have were used)"
    return f" (it used {gib(memory.used)})" if memory.used else ""


def _xid(found: Findings) -> tuple[float, str, int] | None:
    told = [(line.time, *xid) for line in kernel_lines(found) if (xid := xid_of(line.text)) is not None]
    near = [xid for xid in sorted([*told, *found.xids]) if 0 <= found.ended - xid[0] + 60 < _XID_SECONDS]
    return near[0] if near else None


def _xid_text(gpu: str, number: int) -> str:
    meaning = f" ({XIDS[number]})" if number in XIDS else ""
    return f"GPU {gpu} reported Xid {number}{meaning}"


def _job_advice(found: Findings) -> Iterator[str]:
    # SLURM's are numbers; other launchers' ids are not.
    if found.job and re.fullmatch(r"[0-9_]{1,20}", found.job):
        yield f"sacct -j {found.job} -o JobID,State,ExitCode,MaxRSS,Elapsed, if the job was SLURM's"


def _log_advice(found: Findings) -> Iterator[str]:
    asked = [end.lines for end in found.ends] + [found.lines]
    if found.is_here and all(lines is None for lines in asked):
        yield "sudo dmesg -T | grep -iE 'killed process|oom|xid' (the kernel's log may not be read as this user)"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 'es'}"
