"""What `log()` costs here, and whether a record comes through: a real run in a store of the doctor's own, gone afterwards.

Life: the command names the directory (`Trial`), so that it can be removed whatever becomes of the child that measures in it: what that
one started is a daemon that is nobody's child. `remove` ends it, and takes its socket, its lock and its rings away as well.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from daemon.doctor import lines
from daemon.doctor.finding import Finding, bad, note, ok, warn
from daemon.doctor.machine import PREFIX, Machine
from daemon.doctor.probing import remove_drafts
from daemon.doctor.variables import without_ours
from sdk import _spawn, clock, platform
from sdk._greeting import duration
from sdk.errors import Error, NotFoundError, StoreError
from sdk.location import make_store
from sdk.transport import lock_path, request

CALLS = 20_000
WARM_CALLS = 500
METRICS = 5
# What docs/performance.md has for five metrics in a tight loop, in microseconds.
EXPECTED_P50, EXPECTED_P99 = 1.10, 1.5
_SLOW = 5.0  # times as much is worth a word, and
_BAD_MICROSECONDS = 50.0  # so much is felt by a loop of a millisecond
_IMAGE = (512, 512, 3)
_IMAGES = 6
_START_SECONDS = 15.0
_SEEN_SECONDS = 5.0
_STOP_SECONDS = 5.0
_IN_FOREGROUND = "stepd start --foreground   # and run it in another terminal: its log says why"
RUN, PROBE = "doctor", "doctor/probe"


class Measured(NamedTuple):
    """What was found; times in seconds, `calls` in order of size, in nanoseconds.

    `read_back`: rows of the timed calls that a reader has; `refused`: calls for which ring and spool had no room, which are counted in
    the data.
    """

    start: float
    calls: list[int]
    image: float
    seen: float
    read_back: int
    refused: int
    stop: float


def check_log(machine: Machine) -> Iterator[Finding]:
    """20 000 calls with five metrics, an image, and one record followed until it is read back."""
    path = trial_path(machine)
    if not os.access(machine.place, os.W_OK | os.X_OK):
        yield note(f"not measured: {machine.place} may not be written")
        return
    for name in set(os.environ) - set(without_ours(os.environ)):
        del os.environ[name]
    os.environ.update({"STEPD_OBSERVE": "0", "STEPD_SILENT": "1"})
    try:
        found = measure(path, machine.shared)
    except (Error, OSError) as error:
        yield bad(f"what was logged did not come through: {getattr(error, 'message', error)}", _IN_FOREGROUND)
        return
    finally:
        remove(path, machine.shared)
    yield from judge(machine, found)


def trial_path(machine: Machine) -> str:
    """The store of a trial: in the store, else beside where it would be made; always on its file system."""
    return os.path.join(machine.place, machine.trial)


def measure(path: str, shared: str) -> Measured:
    """Starts a daemon, logs, reads back, stops. What is left is for `remove`."""
    import numpy

    import sdk

    make_store(path)
    start = _timed(lambda: _spawn.ensure(path, timeout=_START_SECONDS, shared_memory_dir=shared, persistent=False))
    chosen = sdk.Settings(
        console="off", environment=False, system_metrics=False, save_code=False, watch_exit=False, autostart=False,
        shared_memory_dir=shared,
    )  # fmt: skip
    run = sdk.init(project="doctor", id=RUN, dir=path, settings=chosen)
    row = {f"metric{number}": 0.5 + number for number in range(METRICS)}
    for _ in range(WARM_CALLS):
        run.log(row)
    calls = _time_calls(run.log, row)
    pixels = numpy.random.default_rng(0).integers(0, 256, _IMAGE, numpy.uint8)
    # The first one imports, and takes its memory from the kernel.
    image = sorted(_timed(lambda: run.log({"image": sdk.Image(pixels)})) for _ in range(_IMAGES + 1))[_IMAGES // 2]
    seen = _follow(run, path)
    run.finish(quiet=True)
    stored = sdk.open_store(path).run(RUN)
    refused = sum(gap.count for gap in stored.gaps if gap.first is None)
    read_back = len(stored.series("metric0"))
    return Measured(start, calls, image, seen, read_back, refused, _timed(lambda: _stop(path)))


def _timed(call: Callable[[], object]) -> float:
    before = clock.monotonic()
    call()
    return clock.monotonic() - before


def _time_calls(log: Callable[[dict[str, float]], None], row: dict[str, float]) -> list[int]:
    now, times = time.perf_counter_ns, [0] * CALLS
    for number in range(CALLS):
        before = now()
        log(row)
        times[number] = now() - before
    return sorted(times)


def _follow(run: Any, path: str) -> float:
    """Seconds from a call of `log()` until a reader of the store finds it; infinity: it does not."""
    from sdk.reader import open_store

    started = clock.monotonic()
    run.log({PROBE: 1.0})
    while (waited := clock.monotonic() - started) < _SEEN_SECONDS:
        with contextlib.suppress(NotFoundError):  # nothing of the run is written yet
            if PROBE in open_store(path).run(RUN).keys():  # noqa: SIM118  (a method of a run)
                return waited
        clock.pause(0.005)
    return float("inf")


def _stop(path: str) -> None:
    request(path, "stop")
    _until(lambda: not _spawn.is_serving(path))


def _until(condition: Callable[[], bool]) -> None:
    """Waits for it, some seconds at most."""
    deadline = clock.monotonic() + _STOP_SECONDS
    while not condition() and clock.monotonic() < deadline:
        clock.pause(0.002)


def remove(path: str, shared: str) -> None:
    """Takes a trial away: its daemon, socket, lock, rings and files. Nothing happens where there is none."""
    if not os.path.isdir(path) or not os.path.basename(path).startswith(PREFIX):
        return
    with contextlib.suppress(OSError, StoreError):
        pid = platform.lock_owner(lock_path(path))
        if pid and pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            _until(lambda: not platform.process_lives(pid))
        digest = platform.store_digest(path)
        for directory in (platform.runtime_directory(), platform.shared_directory(shared)):
            for name in os.listdir(directory):
                if name.startswith(digest):
                    with contextlib.suppress(OSError):
                        os.unlink(os.path.join(directory, name))
    shutil.rmtree(path, ignore_errors=True)


def judge(machine: Machine, found: Measured) -> Iterator[Finding]:
    """What is said of it, in turn: the call, an image, the way to the disk and back."""
    p50, p99, worst = (_at(found.calls, share) / 1e3 for share in (0.5, 0.99, 1.0))
    load = os.getloadavg()[0]
    text = (
        f"p50 {p50:.2f}, p99 {p99:.2f}, max {worst:,.0f} µs: {1e3 * p50 / METRICS:.0f} ns a value "
        f"(docs/performance.md: {EXPECTED_P50:.2f} and {EXPECTED_P99:.2f})"
    )
    cores = os.cpu_count() or 1
    busy = f"; load {load:.1f} on {cores} cores" if load > cores else ""
    if p50 > _SLOW * EXPECTED_P50:
        yield (warn if p50 > _BAD_MICROSECONDS else note)(
            f"{text}{busy}", "python -X importtime -c 'import sdk'   # a profiler or debugger in this Python?"
        )
    else:
        yield ok(f"{text}{busy}")
    yield ok(f"an image of 512 × 512 × 3 holds the loop for {duration(found.image)}, the median of {_IMAGES}")
    yield _judge_way(machine, found)


def _judge_way(machine: Machine, found: Measured) -> Finding:
    """What is said of the way to the disk and back."""
    expected = CALLS + WARM_CALLS
    if found.refused and found.read_back + found.refused >= expected:
        return warn(
            f"{found.refused:,} of {expected:,} calls without a pause were refused and counted: the ring is small for such a loop",
            *lines.shared_memory(machine),
        )
    if found.seen == float("inf") or found.read_back != expected:
        return bad(
            f"{found.read_back:,} of {expected:,} rows were read back: what was logged did not come through",
            _IN_FOREGROUND,
        )
    return ok(
        f"a daemon came up in {duration(found.start)}; a row could be read after {duration(found.seen)}, and all "
        f"{expected:,} in the end; it stopped in {duration(found.stop)}"
    )


def _at(ordered: Sequence[int], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def clean(machine: Machine) -> list[Finding]:
    """Removes the trial and the drafts of this machine, should their child have been killed; finds nothing."""
    remove_drafts(machine)
    remove(trial_path(machine), machine.shared)
    return []
