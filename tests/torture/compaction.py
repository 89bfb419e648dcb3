"""Compaction while everything dies: every row is there exactly once, with the values that were logged.

Trainers log beside a daemon that seals a segment every few kilobytes; compactors (what the worker does, in a forked process) turn
those into columns, join what they made, and remove what they replaced as soon as they may. One after the other is killed, or
the disk is full for a compactor. Readers look meanwhile: a row that was there stays.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import sdk
from daemon import server
from daemon.compact.work import compact_run
from daemon.store import run_writer
from daemon.store.replacing import hold
from sdk import platform
from sdk.files import DISK, Files
from sdk.files.failing import FAULTS, FailingFiles
from sdk.location import read_store
from sdk.segment.naming import RUNS, run_path
from sdk.segment.reader import SegmentReader
from sdk.segment.windows import windows
from sdk.transport import lock_path
from tests.end_to_end.world import Trainer, until
from tests.forked import fork_daemon, ready_to_die, serving
from tests.torture.harness import Result, chance, torture
from tests.torture.kills import QUICK, Lost, World, groups, kill_at, world

_CASES_PER_STORE = 12
# How long what was replaced stays here: readers list again when it is gone.
_KEPT_SECONDS = 0.03
_FULL = next(fault for fault in FAULTS if fault.name == "ENOSPC")


def values_of(step: int) -> dict[str, Any]:
    """What a row holds beside its number: doubles, texts, nothing; some keys now and then, lists and large integers."""
    values: dict[str, Any] = {"loss": step / 7, "note": "ab"[step % 2], "none": None}
    if step % 10 == 0:
        values |= {"eval/accuracy": 1 - step / 3, "list": [step, "x"]}
    if step % 33 == 0:
        values["rare"] = 2**60 + step
    return values


def training(count: Callable[[int], None]) -> None:
    """Logs such rows until it is killed: whole ones, some in two pieces, and late values."""
    for n in itertools.count():
        if n % 5 == 1:
            sdk.log({"x": n}, commit=False)
            sdk.log(values_of(n))
        else:
            sdk.log({"x": n, **values_of(n)})
        if n % 50 == 49:
            sdk.log({"late": n}, step=n - 40)
        count(n + 1)
        if n % 20 == 0:
            time.sleep(0.001)


def compact(store: str, run: str, files: Files = DISK, kept_seconds: float = _KEPT_SECONDS) -> None:
    """Compacts a run, if nobody else compacts."""
    lock = hold(store)
    if lock is not None:
        try:
            compact_run(files, read_store(store), run_path(store, run), kept_seconds=kept_seconds)
        finally:
            lock.release()


def compactor(here: World, run: str, files: Callable[[], Files] = lambda: DISK) -> Trainer:
    """A process that compacts a run until it is killed; `returned` counts passes."""

    def body(count: Callable[[int], None]) -> None:
        ready_to_die()
        disk = files()
        for n in itertools.count(1):
            with contextlib.suppress(OSError):
                compact(here.store, run, disk)
            count(n)
            time.sleep(0.002)

    process = Trainer(body)
    here.processes.append(process)
    return process


def watch(store: str, run: str, seen: int, seconds: float) -> int:
    """Reads a run for a while: rows 0, 1, 2, … each once, none less than were seen before; how many there are."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(sdk.Error):  # nothing is there yet
            steps = sdk.open_store(store).run(run).series("x").step.tolist()
            assert steps == list(range(len(steps))), f"rows {steps[:20]}… in the middle of a compaction"
            assert len(steps) >= seen, f"{seen} rows were there, then {len(steps)}"
            seen = len(steps)
        if time.monotonic() >= deadline:
            return seen


def check_values(store: str, run: str, returned: int) -> int:
    """Every row holds what was logged; of the one that was being logged, perhaps less."""
    try:
        opened = sdk.open_store(store).run(run)
    except sdk.Error:
        return 0  # killed before its first row; the world has looked whether that may be
    late = {n - 40: n for n in range(49, returned, 50)}
    rows = list(opened.rows())
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    for row in rows:
        step = row["_step"]
        wanted = {"x": step, **values_of(step), **({"late": late[step]} if step in late else {})}
        found = {key: value for key, value in row.items() if not key.startswith("_")}
        if step not in late:
            found.pop("late", None)  # the last one may be logged and not have returned
        assert found == wanted or (step >= returned and found.items() <= wanted.items()), f"step {step} holds {found}"
    return len(rows)


def columns_in(store: str) -> int:
    """How many windows there are in all runs."""
    count = 0
    for directory, _, names in os.walk(os.path.join(store, RUNS)):
        for name in names:
            with contextlib.suppress(OSError, sdk.Error):
                reader = SegmentReader(DISK, os.path.join(directory, name))
                count += len(windows(reader.blocks))
                reader.close()
    return count


@torture(full=2_000, default=7)
def compaction_killed(cases: Iterable[int]) -> Iterator[Result]:
    """Worker, daemon and trainer killed, or the disk full, while rows become columns: each row is there once, bit for bit."""
    for group in groups(cases, _CASES_PER_STORE):
        with world("compaction-killed") as here:
            for case in group:
                dice = chance("compaction-killed", case)
                if not serving(here.store):
                    here.daemon()
                    until(lambda: serving(here.store))
                _WAYS[case % len(_WAYS)](here, case, dice)
            here.settle()
            yield from here.check()
            check_all(here)
            # Again when all is columns and nothing of the rows is left.
            for run in here.expected:
                compact(here.store, run, kept_seconds=0.0)
            assert columns_in(here.store) or len(group) < len(_QUICK_WAYS), "nothing was ever compacted"
            list(here.check())
            check_all(here)


def check_all(here: World) -> None:
    for run, (case, trainer, _) in here.expected.items():
        try:
            check_values(here.store, run, trainer.returned)
        except Exception as error:
            raise Lost(f"case {case}, run {run!r}: {error!r}", case) from error


def start(here: World, case: int) -> tuple[str, Trainer]:
    """A trainer that has begun to log."""
    run = f"run{case}"
    trainer = here.trainer(run, case, training)
    until(lambda: trainer.returned > 0)
    return run, trainer


def worker_dies(here: World, case: int, dice: random.Random) -> None:
    """One compactor after the other, at random moments."""
    run, trainer = start(here, case)
    seen = 0
    for _ in range(3):
        process = compactor(here, run)
        seen = watch(here.store, run, seen, dice.uniform(0, 0.15))
        kill_at(process, 0)
    kill_at(trainer, 0)


def all_die(here: World, case: int, dice: random.Random) -> None:
    """Trainer, daemon and compactor, in any order."""
    run, trainer = start(here, case)
    pid = platform.lock_owner(lock_path(here.store))
    daemon = next((process for process in here.processes if process.pid == pid), trainer)
    process = compactor(here, run)
    seen = watch(here.store, run, 0, dice.uniform(0.05, 0.2))
    for each in dice.sample([trainer, process, daemon], 3):
        kill_at(each, time.monotonic() + dice.uniform(0, 0.01))
    watch(here.store, run, seen, 0)


def disk_full(here: World, case: int, dice: random.Random) -> None:
    """The disk refuses a compactor's operations from one of them on; the next compactor finds room."""
    run, trainer = start(here, case)

    def failing() -> Files:
        files = FailingFiles()
        files.fail(_FULL, dice.randint(1, 60), forever=dice.random() < 0.5)
        return files

    seen = 0
    for files in (failing, failing, lambda: DISK):
        process = compactor(here, run, files)
        seen = watch(here.store, run, seen, dice.uniform(0.02, 0.12))
        kill_at(process, 0)
    kill_at(trainer, 0)


def several_at_once(here: World, case: int, dice: random.Random) -> None:
    """Two compactors, as a worker and `stepd compact`; one is killed, the other goes on."""
    run, trainer = start(here, case)
    both = [compactor(here, run), compactor(here, run)]
    seen = watch(here.store, run, 0, dice.uniform(0.02, 0.15))
    kill_at(dice.choice(both), 0)
    seen = watch(here.store, run, seen, 0.05)
    kill_at(trainer, 0)
    watch(here.store, run, seen, 0.05)
    for process in both:
        kill_at(process, 0)


def real_worker(here: World, case: int, dice: random.Random) -> None:
    """The daemon's own worker process, found by its parent, and then the daemon."""
    if serving(here.store):
        pid = platform.lock_owner(lock_path(here.store))
        for process in here.processes:
            if process.pid == pid:
                kill_at(process, 0)

    def soon() -> None:
        run_writer.SEGMENT_ROWS_BYTES = 16 << 10  # type: ignore[attr-defined]
        server._REWRITE_PAUSE_SECONDS = 0.0

    daemon = fork_daemon(here.store, soon, rewrite=True, **QUICK)
    here.processes.append(daemon)
    run, trainer = start(here, case)
    workers: list[int] = []

    def has_worker() -> bool:
        with open(f"/proc/{daemon.pid}/task/{daemon.pid}/children", encoding="ascii") as file:
            workers[:] = map(int, file.read().split())
        return bool(workers)

    until(has_worker)
    seen = watch(here.store, run, 0, dice.uniform(0.2, 1.0))
    with contextlib.suppress(ProcessLookupError):
        os.kill(workers[0], signal.SIGKILL)
    seen = watch(here.store, run, seen, 0.05)
    for each in dice.sample([trainer, daemon], 2):
        kill_at(each, 0)
    watch(here.store, run, seen, 0)


_QUICK_WAYS = (worker_dies, all_die, disk_full, several_at_once)
# The real worker takes a second to start, so only now and then.
_WAYS = (*_QUICK_WAYS, real_worker, *_QUICK_WAYS, *_QUICK_WAYS)
