"""sdk.query.why.hanging, stacks: what is the matter with a run that lives, from what could be learned of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sdk import platform
from sdk.journal.format import CAPACITY_MIN
from sdk.journal.ring import Ring
from sdk.platform.tasks import Task
from sdk.query.why import stacks
from sdk.query.why.hanging import Pace, pace_text, place_text, telling_frame, verdict_of_living
from sdk.query.why.stacks import Frame, Process, Sources, Thread, grouped
from sdk.reader.store import Store
from tests.builders import RunBuilder, make_store

SILENT = Pace(1000.0, 12, 0.1, 60.0)
LIBRARY = Frame("/usr/lib/python3.11/queue.py", "get", 171, "self.not_empty.wait()")
OWN = Frame("/job/train.py", "step", 7, "batch = queue.get()")
WAITS = Task(4121, "python", "S", "futex_do_wait", "futex", 3.0)


def thread(*frames: Frame, **more: Any) -> Thread:
    return Thread(**{"name": "MainThread", "is_main": True, "native": 4121, "frames": frames, **more})


def process(outcome: str = "answered", *threads: Thread, **more: Any) -> Process:
    known = {
        "stream": "77",
        "kind": "main",
        "rank": None,
        "host": "h",
        "pid": 4121,
        "outcome": outcome,
        "threads": threads,
    }
    return Process(**{"tasks": (WAITS,), **known, **more})


@pytest.mark.parametrize(
    ("found", "cause", "text"),
    [
        (
            process("answered", thread(LIBRARY, OWN)),
            "hanging",
            "Its MainThread is in train.py:7 in step: batch = queue.get() (in get)",
        ),
        (process("silent", busy=4121), "gil", "Its main thread keeps the GIL and computes"),
        (
            process("silent", thread(OWN, has_gil=True), busy=4121),
            "gil",
            "MainThread keeps the GIL and computes in train.py:7",
        ),
        (process("silent"), "gil", "a thread that waits in native code keeps the GIL"),
        (process("silent", tasks=(WAITS._replace(state="D", waits_in="nfs_wait"),)), "device", "(nfs_wait)"),
        (process("stopped"), "stopped", "It is stopped by a signal"),
        (process("asleep"), "hanging", "could not be learned"),
        (process("elsewhere"), "hanging", "could not be learned"),
        (process("gone"), "unstored", "waits in shared memory"),
    ],
)
def test_verdicts_of_the_living(found: Process, cause: str, text: str) -> None:
    """By what its process answered, or what the kernel shows of one that does not."""
    verdict = verdict_of_living(SILENT, [found])
    assert verdict.cause == cause
    assert text in verdict.text


def test_a_silent_run_without_a_living_process() -> None:
    """It does not hang: it has been killed, and nobody has noticed yet."""
    assert verdict_of_living(SILENT, []).cause == "unstored"


def test_a_pace_that_is_kept() -> None:
    """Whatever its processes are doing: a run that logs does not hang."""
    pace = SILENT._replace(silent_seconds=0.2)
    assert verdict_of_living(pace, [process("answered", thread(OWN))]).cause == "running"
    assert pace_text(pace) == "the last row (step 12) came 200 ms ago, a step takes 100 ms"
    assert pace_text(Pace(None, None, None, 90.0)) == "nothing was logged since it was started 1 min 30 s ago"


def test_what_a_full_disk_keeps_from_being_told() -> None:
    """How a dead process ended stands in its ring, which nobody can store: that is the reason to name."""
    verdict = verdict_of_living(SILENT, [process("gone")], disk_free=1000)
    assert (verdict.cause, verdict.confidence) == ("disk-full", "certain")
    assert "1000 B left" in verdict.text


def test_one_silent_rank_among_many() -> None:
    """Most ranks answered: where they wait is the answer, and the silent one is named beside them."""
    ranks = [process("answered", thread(OWN), rank=rank, stream=str(rank)) for rank in range(5)]
    verdict = verdict_of_living(SILENT, [*ranks, process("silent", rank=5)])
    assert "anks 0-4 are in train.py:7" in verdict.text


def test_equal_stacks_are_one_group() -> None:
    """By file, function and line, whatever the threads are called; the rarest main thread's first, other threads last."""
    far = thread(LIBRARY)
    found = [
        process("answered", thread(OWN), thread(LIBRARY, is_main=False, name=f"w{rank}"), rank=rank)
        for rank in range(3)
    ]
    found.append(process("answered", far, rank=3))
    groups = grouped(found)
    assert [(group.is_main, [one.rank for one, _ in group.members]) for group in groups] == [
        (True, [3]), (True, [0, 1, 2]), (False, [0, 1, 2]),
    ]  # fmt: skip


def test_the_frame_that_says_most() -> None:
    """The innermost of the user's own code, else the innermost."""
    assert telling_frame([LIBRARY, OWN]) == OWN
    assert telling_frame([LIBRARY]) == LIBRARY
    assert telling_frame([]) is None
    assert place_text(OWN._replace(text="")) == "train.py:7 in step"


def test_lines_of_sources(tmp_path: Any) -> None:
    """Of regular files that are older than the run; anything else has no text."""
    path = tmp_path / "train.py"
    path.write_text("a = 1\n  b = 2\n")
    changed = path.stat().st_mtime
    assert Sources(changed + 1).line(str(path), 2) == "b = 2"
    assert Sources(changed + 1).line(str(path), 3) == ""
    assert Sources(changed - 1).line(str(path), 2) == ""
    assert [Sources(0.0).line(name, 1) for name in ("<string>", "/dev/zero", "/no/such", "a\0b")] == [""] * 4


@pytest.mark.parametrize(
    "answer",
    [b"", b"\xc1", b"\x80", b"\x81\xa7threads\xa1x", b"\x81\xa7threads\x92\x01\x81\xa6frames\x93\x01\x91\x02\xc0"],
)
def test_an_answer_that_is_none(answer: bytes) -> None:
    """What a process answers is checked like everything from outside: what cannot be read is left out."""
    assert all(not found.frames for found in stacks._threads_of(answer, 0.0))


def test_a_process_that_asks_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook that looks at its own run: its own frames, at once, and the lock on its ring stays."""
    ring, note = Ring.create("/dev/shm", os.urandom(8).hex(), 0x77, CAPACITY_MIN, {"run": "a41f", "store": b"s" * 16})
    assert note is None
    assert ring.path is not None
    try:
        store = make_store(tmp_path)
        run = RunBuilder(store)
        main = run.stream(
            stream_id=0x77, ring=ring.path, host=platform.host_name(), boot_id=platform.boot_id(), pid=os.getpid()
        )
        main.log({"loss": 1.0})
        run.close()
        (found,) = stacks.ask_stacks(Store(store).run("a41f"))
        assert (found.outcome, found.pid) == ("answered", os.getpid())
        assert found.main is not None
        assert any(frame.function.endswith("test_a_process_that_asks_itself") for frame in found.main.frames)
        assert platform.lock_owner(ring.path) == os.getpid()
    finally:
        ring.close()


def test_what_py_spy_says() -> None:
    """Its threads, the main one first, ours left out, with who holds the GIL."""
    frame = {"filename": "/job/train.py", "name": "step", "line": 7}
    told = [
        {"thread_name": "stepd-sender", "os_thread_id": 9, "frames": [frame]},
        {"thread_name": "loader", "os_thread_id": 8, "owns_gil": True, "frames": [frame]},
        {"thread_name": None, "os_thread_id": 4121, "owns_gil": False, "frames": []},
    ]
    found = stacks._spied(told, Sources(0.0), 4121)
    assert [(one.name, one.is_main, one.has_gil) for one in found] == [("thread", True, False), ("loader", False, True)]
