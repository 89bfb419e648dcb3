"""Too little of everything: a daemon that does not take, a disk that is full, budgets, a small shared memory.

Whatever is short, `log()` raises nothing and hardly takes longer; what it accepts is stored, what it refuses is counted,
and the run's gaps say exactly that and why.

Bounds of memory, which `daemon-stopped` measures:

* A trainer has its ring (16 MiB), what is in flight (credit: 12 MiB, copied once by ZeroMQ) and one batch that is being
  made (4 MiB): 32 MiB above what it took before `init`. The spool copies nothing: its blocks are the ring's own bytes.
* A daemon holds per stream what is in flight twice (12 MiB in ZeroMQ's queues, 12 MiB waiting) and three copies of the
  block it makes (4 MiB each: merged, joined, compressed): 36 MiB above what it took when idle; for all streams together
  `pending_bytes_max` (256 MiB), as credit is shared among more than 16.

The tests allow half as much again, as allocators keep what they were given.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from unittest import mock

import sdk
from sdk import platform
from sdk.journal.drain import ring_paths
from sdk.limits import BATCH_BYTES_MAX, CREDIT_BYTES, MIB, REFUSED_REASONS
from sdk.location import StoreIdentity, make_store
from sdk.segment.naming import TRASH
from sdk.transport import endpoint_path, lock_path
from tests.end_to_end.world import Trainer, settle, until
from tests.forked import answers, end_all, fork_daemon, quiet, ready_to_die
from tests.mounts import in_namespace, mount_tmpfs, tmpfs
from tests.serving import temporary_store
from tests.torture.harness import Result, chance, torture

TRAINER_BYTES_MAX = 16 * MIB + CREDIT_BYTES + BATCH_BYTES_MAX
DAEMON_BYTES_MAX = 2 * CREDIT_BYTES + 3 * BATCH_BYTES_MAX
_ROOT = Path(__file__).parents[2]
_SMALL_RING = "1M"


def resident(pid: int, name: str = "VmRSS") -> int:
    """Bytes of memory a process has now, or ("VmHWM") had at most."""
    match = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


class Burner(Trainer):
    """A trainer that logs {"x": n} in bursts until it is told to stop, and tells what became of the calls.

    Attributes:
        returned: Calls that have returned.
    """

    _WORDS = ("told", "refused", "accepted", "grown", "trouble")

    def __init__(self, store: str, run: str = "run", *, pause: float = 0.001, **variables: str) -> None:
        self._shared = mmap.mmap(-1, 4096)

        def body(count: Callable[[int], None]) -> None:
            ready_to_die()
            os.environ.update(variables)
            before = resident(os.getpid())
            log = sdk.init(id=run, project="pressure", dir=store).log
            stream = sdk.run._stream
            n = 0
            while not self["told"]:
                for _ in range(100):
                    log({"x": n})
                    n += 1
                count(n)
                self["trouble"] = stream._sender._pressure.code
                self["refused"] = stream.journal.refusals().refused
                if pause:
                    time.sleep(pause)
            sdk.finish()
            receipt = stream._receipt
            self["refused"], self["accepted"] = receipt.refused, receipt.accepted
            self["grown"] = resident(os.getpid(), "VmHWM") - before
            assert receipt.stored == receipt.accepted, receipt
            assert sum(receipt.refused_reasons.values()) == receipt.refused, receipt

        super().__init__(body)

    def __getitem__(self, word: str) -> int:
        return int(struct.unpack_from("<Q", self._shared, 8 * self._WORDS.index(word))[0])

    def __setitem__(self, word: str, value: int) -> None:
        struct.pack_into("<Q", self._shared, 8 * self._WORDS.index(word), value)

    def past(self, calls: int) -> None:
        """Waits until so many more calls have returned."""
        goal = self.returned + calls
        until(lambda: self.returned >= goal)

    def refuses(self, *reasons: str) -> None:
        """Waits until calls are refused for one of these reasons."""
        codes = [REFUSED_REASONS.index(reason) for reason in reasons]
        until(lambda: self["trouble"] in codes)
        before = self["refused"]
        until(lambda: self["refused"] > before)

    def takes(self) -> None:
        """Waits until the calls of 50 ms were all accepted."""

        def all_taken() -> bool:
            refused, returned = self["refused"], self.returned
            time.sleep(0.05)
            return self.returned > returned and self["refused"] == refused and not self["trouble"]

        until(all_taken)

    def end(self) -> None:
        """Tells it to finish, and waits for that."""
        self["told"] = 1
        code = self.wait()
        assert code == 0, f"the trainer ended with {code}"


def told_exactly(store: str, trainer: Burner, run: str = "run", reasons: Iterable[str] = ()) -> int:
    """What was accepted is there, once and in order; what was refused is in the gaps, with its number and reason.

    Returns:
        How many calls were refused.
    """
    opened = sdk.open_store(store).run(run)
    values = opened.series("x").value
    assert opened.damage == [], opened.damage
    assert (values[1:] > values[:-1]).all()
    assert len(values) == trainer["accepted"], f"{len(values)} rows of {trainer['accepted']} accepted calls"
    refused = sum(gap.count for gap in opened.gaps)
    assert refused == trainer["refused"] == trainer.returned - len(values), opened.gaps
    unexpected = {gap.reason for gap in opened.gaps} - set(reasons)
    assert not unexpected, opened.gaps
    return refused


@contextlib.contextmanager
def ended(*processes: Trainer | None) -> Iterator[None]:
    """Kills what is still there afterwards."""
    try:
        yield
    finally:
        end_all(*(process for process in processes if process is not None))


@contextlib.contextmanager
def small_store(size: int) -> Iterator[str]:
    """A store that is alone on a disk of `size` bytes; what it leaves elsewhere is removed."""
    with tmpfs(size) as base:
        store = make_store(base).path
        digest = platform.store_digest(store)
        try:
            yield store
        finally:
            outside = [endpoint_path(store), lock_path(store), *ring_paths("/dev/shm", digest)]
            for path in outside:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)


def fill(path: str, leave: int = 0) -> None:
    """Makes a file that takes all of its disk but `leave` bytes, whoever writes there meanwhile."""

    def is_full() -> bool:
        status = os.statvfs(os.path.dirname(path))
        try:
            os.posix_fallocate(descriptor, 0, max(status.f_bavail * status.f_frsize - leave, 1))
        except OSError as error:
            return error.errno != errno.ENOSPC
        return True

    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    try:
        until(is_full)
    finally:
        os.close(descriptor)


def place(path: str, size: int) -> None:
    """Makes a file of `size` bytes that are really there."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(bytes(size))


# -- a daemon that does not take -------------------------------------------------------------------------------------------


@torture(full=30, default=2)
def daemon_stopped(cases: Iterable[int]) -> Iterator[Result]:
    """The daemon is stopped for 2 s (case k: 2 k more) of logging flat out: nothing is lost, and memory stays in bounds.

    60 s of it are 5 GB. Every second case has a spool that they fill: then what found no room is counted to the call.
    """
    for case in cases:
        spool = "64M" if case % 2 else "16G"
        with quiet(STEPD_SPOOL_BYTES_MAX=spool, STEPD_AUTOSTART="0"), temporary_store() as store:
            daemon = fork_daemon(store.path)
            until(lambda path=store.path: answers(path) is not None)
            idle = resident(daemon.pid)
            trainer = Burner(store.path, pause=0.0)
            with ended(trainer, daemon):
                trainer.past(100_000)
                os.kill(daemon.pid, signal.SIGSTOP)
                time.sleep(2 + 2 * case)
                os.kill(daemon.pid, signal.SIGCONT)
                trainer.past(100_000)
                trainer.end()
                settle(Path(store.path))
                grown = resident(daemon.pid, "VmHWM") - idle
                print(f"trainer +{trainer['grown'] >> 20} MiB, daemon +{grown >> 20} MiB, {trainer.returned:,} calls")
                assert trainer["grown"] <= 1.5 * TRAINER_BYTES_MAX
                assert grown <= 1.5 * DAEMON_BYTES_MAX
                refused = told_exactly(store.path, trainer, reasons=("spool_bytes_max",) if case % 2 else ())
                assert bool(refused) == bool(case % 2)
                yield Result(case, trainer["accepted"], refused=refused)


# -- a disk that is full ---------------------------------------------------------------------------------------------------


@torture(full=30, default=5)
def disk_full_then_freed(cases: Iterable[int]) -> Iterator[Result]:
    """The store's disk fills up, by us or by somebody, and is free again: logging goes on, and gaps say what was refused."""
    for case in cases:
        with quiet(STEPD_AUTOSTART="0", STEPD_RING_BYTES=_SMALL_RING):
            yield in_namespace(lambda case=case: _disk_full(case))


def _disk_full(case: int) -> Result:
    random = chance("disk_full", case)
    size = (1 + case % 8) * MIB
    floor = 0 if case % 2 else None  # None: the default, a sixteenth of the disk
    variables = {} if floor is None else {"STEPD_FREE_BYTES_MIN": str(floor)}
    settings = {} if floor is None else {"free_bytes_min": floor}
    with small_store(size) as store:
        daemon = fork_daemon(store, **settings) if case % 3 else None
        if daemon is not None:
            until(lambda: answers(store) is not None)
        filler = os.path.join(store, "somebody else's")
        how = case % 4
        if how == 1:
            fill(filler, size // 4)
        trainer = Burner(store, **variables)
        with ended(trainer, daemon):
            if how == 2:
                trainer.past(1000)
                fill(filler)
            trainer.refuses("disk full", "free_bytes_min")
            trainer.past(random.randint(0, 5000))
            if how in (1, 2):
                os.unlink(filler)
            else:
                mount_tmpfs(store, 64 * MIB, again=True)
            trainer.takes()
            trainer.past(2000)
            trainer.end()
            # Records that a ring held before anybody knew the reason are refused as "ring full".
            refused = told_exactly(store, trainer, reasons=("disk full", "free_bytes_min", "ring full"))
            assert refused > 0
            if daemon is not None:
                assert answers(store) is not None
        return Result(case, trainer["accepted"], refused=refused)


# -- budgets ---------------------------------------------------------------------------------------------------------------


@torture(full=30, default=6)
def budgets(cases: Iterable[int]) -> Iterator[Result]:
    """A store, a run or a disk reaches its budget, with and without a daemon: refused, said why, and other runs go on."""
    # Why sooner than in life, and the same in what is forked: a case would mostly wait for the next look.
    sooner = mock.patch.multiple("sdk.budget", _LOOK_SECONDS_OVER=0.2, _FREE_SECONDS=0.2)
    for case in cases:
        with sooner, quiet(STEPD_AUTOSTART="0", STEPD_RING_BYTES=_SMALL_RING), temporary_store() as store:
            what = ("store_bytes_max", "run_bytes_max", "free_bytes_min")[case % 3]
            if what == "free_bytes_min":
                yield in_namespace(lambda case=case: _free_budget(case))
            else:
                yield _store_budget(case, store) if what == "store_bytes_max" else _run_budget(case, store)


def _daemon(case: int, store: str, **settings: int) -> Trainer | None:
    """A daemon in every other three cases."""
    if case % 6 < 3:
        return None
    daemon = fork_daemon(store, **settings)
    until(lambda: answers(store) is not None)
    return daemon


def _store_budget(case: int, store: StoreIdentity) -> Result:
    budget = chance("budgets", case).randint(1, 4) * MIB
    trash = os.path.join(store.path, TRASH, "1-old", "history")
    place(trash, budget // 2)
    daemon = _daemon(case, store.path, store_bytes_max=budget)
    trainer = Burner(store.path, STEPD_STORE_BYTES_MAX=str(budget))
    with ended(trainer, daemon):
        trainer.refuses("store_bytes_max")
        taken = sdk.files.DISK.sizes(store.path)
        assert sum(taken) < budget + 2 * MIB, "a budget is passed by one block"
        if daemon is not None:
            status = answers(store.path)
            assert status is not None
            assert any("store_bytes_max" in line for line in status["warnings"]), status
            assert set(status["refused_reasons"]) == {"store_bytes_max"}, status
        os.unlink(trash)
        trainer.takes()
        trainer.end()
        refused = told_exactly(store.path, trainer, reasons=("store_bytes_max", "ring full"))
    return Result(case, trainer["accepted"], refused=refused)


def _run_budget(case: int, store: StoreIdentity) -> Result:
    budget = chance("budgets", case).randint(200_000, MIB)
    daemon = _daemon(case, store.path)
    greedy = Burner(store.path, "greedy", STEPD_RUN_BYTES_MAX=str(budget))
    modest = Burner(store.path, "modest", pause=0.005)
    with ended(greedy, modest, daemon):
        greedy.refuses("run_bytes_max")
        modest.past(5000)
        greedy.end()
        modest.end()
        refused = told_exactly(store.path, greedy, "greedy", ("run_bytes_max", "ring full"))
        assert refused > 0
        assert told_exactly(store.path, modest, "modest") == 0
        size = sdk.open_store(store.path).run("greedy").size_bytes
        assert size < budget + 2 * MIB, "passed by one block, and by the ring at the end"
    return Result(case, greedy["accepted"] + modest["accepted"], refused=refused)


def _free_budget(case: int) -> Result:
    floor = chance("budgets", case).randint(1, 4) * MIB
    with small_store(8 * MIB) as store:
        filler = os.path.join(store, "somebody else's")
        fill(filler, floor + MIB)
        daemon = _daemon(case, store, free_bytes_min=floor)
        trainer = Burner(store, STEPD_FREE_BYTES_MIN=str(floor))
        with ended(trainer, daemon):
            trainer.refuses("free_bytes_min")
            status = os.statvfs(store)
            assert status.f_bavail * status.f_frsize > floor - MIB, "passed by one block"
            os.unlink(filler)
            trainer.takes()
            trainer.end()
            refused = told_exactly(store, trainer, reasons=("free_bytes_min", "ring full"))
        return Result(case, trainer["accepted"], refused=refused)


# -- a small shared memory -------------------------------------------------------------------------------------------------

_SHARED_BYTES = 64 * MIB
_RANKS = 8
_RANK = """\
import multiprocessing, os, sys
sys.path.insert(0, {root!r})
import sdk

def work(run, number):
    for i in range(500):
        run.log({{"worker": 1000 * number + i}})

if __name__ == "__main__":
    rank = int(os.environ["RANK"])
    run = sdk.init(id=f"rank{{rank}}", project="pressure")
    context = multiprocessing.get_context("spawn" if rank % 2 else "fork")
    workers = [context.Process(target=work, args=(run, n)) for n in range({workers})]
    for worker in workers:
        worker.start()
    for i in range(5000):
        run.log({{"x": i}})
    for worker in workers:
        worker.join()
    ring = run._stream.journal.ring
    print(ring.capacity if ring.path else 0, *(worker.exitcode for worker in workers))
    run.finish()
"""


@torture(full=8, default=1)
def small_shared_memory(cases: Iterable[int]) -> Iterator[Result]:
    """Docker's 64 MB of shared memory for 8 ranks with pools of workers: rings shrink, the user is told once, nothing is lost."""
    for case in cases:
        with quiet(STEPD_AUTOSTART="0"), temporary_store() as store:
            yield in_namespace(lambda case=case, path=store.path: _small_shared_memory(case, path))


def _start_rank(rank: int, script: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(_RANKS)}
    with open(script.with_name(f"{rank}.out"), "w") as out, open(script.with_name(f"{rank}.err"), "w") as err:
        return subprocess.Popen([sys.executable, script], stdout=out, stderr=err, env={**environment, **place})


def _small_shared_memory(case: int, store: str) -> Result:
    workers = 2 if not case else 8
    del os.environ["STEPD_SILENT"]
    with tmpfs(_SHARED_BYTES) as shared, tempfile.TemporaryDirectory() as directory:
        script = Path(directory, "rank.py")
        script.write_text(_RANK.format(root=str(_ROOT), workers=workers))
        daemon = fork_daemon(store, shared_memory_dir=shared)
        with ended(daemon):
            until(lambda: answers(store) is not None)
            environment = {**os.environ, "STEPD_DIR": store, "STEPD_SHARED_MEMORY_DIR": shared}
            ranks = [_start_rank(rank, script, environment) for rank in range(_RANKS)]
            peak = 0
            while any(rank.poll() is None for rank in ranks):
                peak = max(peak, platform.shared_used(platform.shared_directory(shared)))
                time.sleep(0.01)
            said = [
                tuple(Path(directory, f"{rank}.{end}").read_text() for end in ("out", "err")) for rank in range(_RANKS)
            ]
            assert [rank.returncode for rank in ranks] == [0] * _RANKS, said
            settle(Path(store))
            answered = [[int(word) for word in out.split()] for out, _ in said]
            assert all(codes == [0] * workers for _, *codes in answered), answered
            capacities = [capacity for capacity, *_ in answered]
            # Two that look at the same moment both see the same room.
            assert peak <= 1.25 * _SHARED_BYTES / 8, "all rings together take an eighth"
            assert max(capacities) == _SHARED_BYTES // 32, "one takes a 32nd"
            told = [err for _, err in said if "ring" in err]
            assert len(told) == 1, told
            for rank in range(_RANKS):
                run = sdk.open_store(store).run(f"rank{rank}")
                assert run.gaps == [], run.gaps
                assert run.series("x").value.tolist() == list(range(5000))
                found = sorted(run.series("worker", stream="all").value.tolist())
                assert found == [1000 * number + i for number in range(workers) for i in range(500)]
    return Result(case, _RANKS * (5000 + 500 * workers))


# -- what the loop notices -------------------------------------------------------------------------------------------------

_STATES = ("healthy", "stopped", "dead", "restarting", "disk full")
_CALLS = 20_000
_ROUNDS = 5
# What docs/guarantees.md says that this test asserts. Measured alone: at most 1.05, and 1.45 to 2.3 with a full disk; other
# work on the machine disturbs that.
_RATIO_MAX = 3.0
_RATIO_FULL_MAX = 4.0


@torture(full=5, default=1, alone=True)
def latency_under_trouble(cases: Iterable[int]) -> Iterator[Result]:
    """p99 of `log()` with the daemon stopped, dead, restarting, or the disk full, beside that of health in the same process."""
    for case in cases:
        with quiet(STEPD_AUTOSTART="0", STEPD_FREE_BYTES_MIN="0"):
            yield in_namespace(lambda case=case: _latency(case))


class Timer(Trainer):
    """A trainer that measures rounds of calls; before each it asks for a state of the world and waits until it is so."""

    def __init__(self, store: str) -> None:
        self._shared = mmap.mmap(-1, 4096)

        def body(count: Callable[[int], None]) -> None:
            ready_to_die()
            run = sdk.init(id="run", project="pressure", dir=store)
            stream = sdk.run._stream
            record = {f"metric/{i}": 0.1 * i for i in range(5)}
            for turn in range(_ROUNDS * len(_STATES)):
                self.wanted = turn + 1
                until(lambda turn=turn: self.given == turn + 1)
                if turn % len(_STATES) == len(_STATES) - 1:
                    refused = stream.journal.refusals().refused
                    while stream.journal.refusals().refused == refused:
                        run.log(record)
                elif turn % len(_STATES) == 0:
                    assert stream.flush(30.0), "health stores everything"
                self.set_p99(turn, _p99(run.log, record))
                count(turn + 1)
            self.wanted = _ROUNDS * len(_STATES) + 1
            until(lambda: self.given == self.wanted)
            run.finish()

        super().__init__(body)

    @property
    def wanted(self) -> int:
        return int(struct.unpack_from("<Q", self._shared, 0)[0])

    @wanted.setter
    def wanted(self, turn: int) -> None:
        struct.pack_into("<Q", self._shared, 0, turn)

    @property
    def given(self) -> int:
        return int(struct.unpack_from("<Q", self._shared, 8)[0])

    @given.setter
    def given(self, turn: int) -> None:
        struct.pack_into("<Q", self._shared, 8, turn)

    def set_p99(self, turn: int, seconds: float) -> None:
        struct.pack_into("<d", self._shared, 16 + 8 * turn, seconds)

    def median(self, state: int) -> float:
        """The median of a state's rounds."""
        turns = range(state, _ROUNDS * len(_STATES), len(_STATES))
        return statistics.median(struct.unpack_from("<d", self._shared, 16 + 8 * turn)[0] for turn in turns)


def _p99(log: Callable[[dict[str, float]], None], record: dict[str, float]) -> float:
    clock = time.perf_counter
    times = []
    for _ in range(_CALLS):
        start = clock()
        log(record)
        times.append(clock() - start)
    return sorted(times)[_CALLS * 99 // 100]


class World:
    """The daemon and the disk beside a Timer, in any of `_STATES`."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._filler = os.path.join(store, "filler")
        self.daemon: Trainer | None = None

    def serve(self) -> None:
        self.daemon = fork_daemon(self._store, free_bytes_min=0)

    def end(self) -> None:
        if self.daemon is not None:
            end_all(self.daemon)

    def become(self, state: str) -> None:
        """Whatever it was, the world is in `state` now."""
        self.end()
        if os.path.exists(self._filler):
            os.unlink(self._filler)
        if state != "dead":
            self.serve()
            until(lambda: answers(self._store) is not None)
        if state == "stopped":
            assert self.daemon is not None
            os.kill(self.daemon.pid, signal.SIGSTOP)
        elif state == "disk full":
            fill(self._filler)

    def go_on(self, state: str) -> None:
        """Called again and again while calls are measured."""
        if state == "restarting":
            self.end()
            self.serve()
        time.sleep(0.005)


def _latency(case: int) -> Result:
    with small_store(512 * MIB) as store:
        world = World(store)
        world.become("healthy")
        timer = Timer(store)
        with ended(timer):
            try:
                for turn in range(_ROUNDS * len(_STATES)):
                    state = _STATES[turn % len(_STATES)]
                    until(lambda turn=turn: timer.wanted > turn)
                    world.become(state)
                    timer.given = turn + 1
                    while timer.returned <= turn:
                        world.go_on(state)
                        assert os.waitid(os.P_PID, timer.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
                world.become("healthy")
                timer.given = _ROUNDS * len(_STATES) + 1
                assert timer.wait() == 0, "log() never raised"
            finally:
                world.end()
            healthy, *others = (timer.median(state) for state in range(len(_STATES)))
            print(f"p99 of log(): healthy {healthy * 1e6:.1f} µs")
            for state, p99 in zip(_STATES[1:], others, strict=True):
                print(f"  {state:<10} {p99 * 1e6:6.1f} µs, {p99 / healthy:.2f} times as long")
                assert p99 <= (_RATIO_FULL_MAX if state == "disk full" else _RATIO_MAX) * healthy, state
    return Result(case, _CALLS * _ROUNDS * len(_STATES))
