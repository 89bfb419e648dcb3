"""sdk.query.why.endings and sdk.platform.kernel_log: the verdict for what is known, and which lines of the kernel's log tell something."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdk.platform import kernel_log
from sdk.platform.kernel_log import KernelLine, classified, read_kernel_log, xid_of
from sdk.query.why.endings import CERTAIN, LIKELY, UNKNOWN, End, Findings, Memory, kernel_lines, verdict_of
from sdk.reader.about import RunError
from sdk.reader.gaps import Gap

OOM = "Memory cgroup out of memory: Killed process 4121 (python) total-vm:612012kB, anon-rss:183156kB, file-rss:13648kB"
SEGFAULT = "python[4121]: segfault at 0 ip 00007ff1 sp 00007ffe error 4 in libc.so.6[167ad8]"
XID = "NVRM: Xid (PCI:0000:3b:00): 79, pid=4121, name=python, GPU has fallen off the bus."


def end(number: int | None = None, **more: Any) -> End:
    known = {
        "stream": "77", "rank": None, "pid": 4121, "time": 100.0, "signal": number, "exit_code": None, "has_core": False, "oom_kills": 0,
        "lines": (),
    }  # fmt: skip
    return End(**{**known, **more})


def line(text: str, when: float = 99.0) -> KernelLine:
    found = classified(when, text)
    assert found is not None
    return found


def crashed(*ends: End, **more: Any) -> Findings:
    return Findings("crashed", ended=100.0, ends=ends, **more)


KILLED = end(signal.SIGKILL)
FULL = Memory(used=3 << 30, limit=4 << 30, limit_used=(4 << 30) - 1000)
GAP = Gap("77", 5, 1, 2, 90.0, 91.0, "disk full")


@pytest.mark.parametrize(
    ("found", "cause", "confidence"),
    [
        (Findings("finished", 0), "finished", CERTAIN),
        (Findings("failed", 3), "exit-code", CERTAIN),
        (Findings("failed", 1, RunError("ValueError", "bad", "")), "exception", CERTAIN),
        (Findings("failed", 1, RunError("torch.OutOfMemoryError", "CUDA out of memory. Tried …", "")), "gpu-memory", CERTAIN),
        (Findings("failed", 1, RunError("OSError", "[Errno 28] No space left on device", "")), "disk-full", CERTAIN),
        (Findings("failed", 1, RunError("RuntimeError", "DataLoader worker (pid 7) is killed by signal: 9", "")), "worker", CERTAIN),
        (Findings("failed", 1, RunError("Broken", "A process in the process pool was terminated abruptly", "")), "worker", CERTAIN),
        (Findings("interrupted"), "interrupted", CERTAIN),
        (Findings("preempted"), "preempted", CERTAIN),
        (crashed(KILLED, is_preempted=True), "preempted", CERTAIN),
        (crashed(KILLED._replace(lines=(line(OOM),))), "oom-killer", CERTAIN),
        (crashed(KILLED._replace(oom_kills=1)), "oom-killer", LIKELY),
        (crashed(KILLED._replace(pid=9, oom_kills=None, lines=(line(OOM),))), "oom-killer", LIKELY),  # a container's pids are other ones
        (crashed(KILLED._replace(pid=9, lines=(line(OOM, 10.0),))), "killed", CERTAIN),
        (crashed(KILLED._replace(pid=9, lines=(line(OOM),))), "killed", CERTAIN),  # its cgroup counted none
        (crashed(KILLED._replace(oom_kills=None), memory=FULL), "oom-killer", LIKELY),
        (crashed(KILLED, memory=FULL), "killed", CERTAIN),
        (crashed(KILLED._replace(oom_kills=None), memory=FULL._replace(used=1)), "killed", CERTAIN),  # full of files
        (crashed(gaps=(replace(GAP, start=-900.0, end=-600.0),)), "unknown", UNKNOWN),
        (crashed(is_other_boot=True, rebooted=9000.0), "reboot", UNKNOWN),
        (crashed(memory=Memory(used=1, available=100, percent=99.0)), "oom-killer", LIKELY),
        (crashed(KILLED), "killed", CERTAIN),
        (crashed(end(signal.SIGTERM), memory=FULL), "terminated", CERTAIN),
        (crashed(end(signal.SIGTERM), KILLED._replace(time=102.0)), "terminated", CERTAIN),
        (crashed(end(signal.SIGHUP)), "terminated", CERTAIN),
        (crashed(end(200)), "terminated", CERTAIN),
        (crashed(end(signal.SIGSEGV)), "native-crash", CERTAIN),
        (crashed(end(signal.SIGBUS)), "native-crash", CERTAIN),
        (crashed(lines=(line(SEGFAULT),), pids=frozenset({4121})), "native-crash", LIKELY),
        (crashed(lines=(line(SEGFAULT),)), "unknown", UNKNOWN),  # some other program
        (crashed(end(exit_code=0)), "exit-code", CERTAIN),
        (crashed(end(exit_code=0), KILLED._replace(time=102.0)), "killed", CERTAIN),
        (crashed(lines=(line(SEGFAULT, 10.0),)), "unknown", UNKNOWN),  # some other program, a while before
        (crashed(end(exit_code=7)), "exit-code", CERTAIN),
        (crashed(KILLED, xids=((90.0, "gpu.0", 79),)), "gpu", LIKELY),
        (crashed(lines=(line(XID),)), "gpu", LIKELY),
        (crashed(KILLED._replace(lines=(line(XID, -900.0),))), "killed", CERTAIN),
        (crashed(is_other_boot=True, rebooted=160.0), "reboot", LIKELY),
        (crashed(gaps=(GAP,)), "disk-full", LIKELY),
        (crashed(), "unknown", UNKNOWN),
        (crashed(end(None)), "unknown", UNKNOWN),
    ],
)  # fmt: skip
def test_verdicts(found: Findings, cause: str, confidence: str) -> None:
    """What is known decides, the surest first; nothing known is said to be unknown."""
    verdict = verdict_of(found)
    assert (verdict.cause, verdict.confidence) == (cause, confidence)
    assert verdict.text.rstrip()


def test_a_verdict_says_what_it_knows() -> None:
    """Numbers of memory, meanings of Xids, and the commands that tell more."""
    assert "4.0 GiB of the 4.0 GiB" in verdict_of(crashed(KILLED._replace(oom_kills=None), memory=FULL)).text
    assert "it held 178.9 MiB" in verdict_of(crashed(KILLED._replace(lines=(line(OOM),)))).text
    assert "Xid 79 (the GPU has fallen off the bus), 1 s before" in verdict_of(crashed(lines=(line(XID),))).text
    advice = verdict_of(crashed(end(signal.SIGKILL, lines=None), job="8812", is_here=True)).advice
    assert any("sacct -j 8812" in text for text in advice)
    assert any("dmesg" in text for text in advice)
    assert any("--shm-size" in text for text in verdict_of(crashed(end(signal.SIGBUS))).advice)


@pytest.mark.parametrize(
    ("found", "count"),
    [
        (crashed(end(signal.SIGSEGV, lines=(line(SEGFAULT),))), 1),
        (crashed(end(signal.SIGSEGV, pid=9, lines=(line(SEGFAULT),))), 1),  # a container's pids are other ones
        (crashed(end(signal.SIGKILL, pid=9, lines=(line(SEGFAULT),))), 0),
        (crashed(end(exit_code=1, pid=9, lines=(line(SEGFAULT),)))._replace(state="failed"), 0),
        (crashed(end(exit_code=1, pid=9, lines=(line(SEGFAULT),)), error=RunError("RuntimeError", "worker killed by signal: 11", "")), 1),
    ],
)  # fmt: skip
def test_crashes_of_other_programs_say_nothing(found: Findings, count: int) -> None:
    """A segmentation fault on the same machine is evidence where it is the run's own, or where somebody noticed one."""
    assert len(kernel_lines(found)) == count


@pytest.mark.parametrize(
    ("text", "kind", "pid"),
    [
        (OOM, "oom", 4121),
        ("Out of memory: Kill process 4121 (python) score 900 or sacrifice child", "oom", 4121),
        ("oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),task_memcg=/a,task=python,pid=4121,uid=0", "oom", 4121),
        (XID, "xid", 4121),
        ("NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.", "xid", 0),
        (SEGFAULT, "crash", 4121),
        ("traps: python[4121] general protection fault ip:7f sp:7f error:0 in x.so[7f]", "crash", 4121),
        ("EXT4-fs error (device sda1): ext4_find_entry", "disk", 0),
        ("nfs: server files not responding, still trying", "disk", 0),
        ("usb 1-1: new high-speed USB device", None, 0),
    ],
)
def test_lines_that_tell_something(text: str, kind: str | None, pid: int) -> None:
    """Of the OOM killer, crashes, GPUs and disks, with the process where it is named; others are passed over."""
    found = classified(1.0, text)
    assert (found.kind if found else None, found.pid if found else 0) == (kind, pid)


def test_reading_the_kernels_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of /dev/kmsg, without continuation lines and older ones; of a flood the newest; what may not be read is None."""
    log = tmp_path / "kmsg"
    log.write_text(
        f"6,1,1000000,-;usb\n SUBSYSTEM=usb\n4,2,2000000,-;{OOM}\n3,3,3000000,-;{XID}\nno record\n4,x,y;{OOM}\n"
    )
    found = read_kernel_log(0.0, str(log))
    assert found is not None
    assert [(each.kind, each.pid) for each in found] == [("oom", 4121), ("xid", 4121)]
    assert found[1].time - found[0].time == pytest.approx(1.0)
    assert [each.kind for each in read_kernel_log(found[1].time - 0.5, str(log)) or ()] == ["xid"]
    assert read_kernel_log(0.0, str(tmp_path / "none"), journal=False) is None
    log.write_text("".join(f"6,{n},{n}000000,-;{OOM} {n}\n" for n in range(1, 20)))
    monkeypatch.setattr(kernel_log, "_RECORDS_MAX", 3)
    newest = read_kernel_log(0.0, str(log)) or []
    assert [each.text[-2:] for each in newest] == ["17", "18", "19"]
    assert xid_of(XID) == ("PCI:0000:3b:00", 79)
    assert xid_of(OOM) is None
