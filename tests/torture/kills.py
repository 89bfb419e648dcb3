"""SIGKILL of trainers, of daemons and of both, at random moments and at named points: nothing that returned is lost.

A case costs some ten milliseconds because everything is forked from the test's process and what many cases left behind
is looked at together. Where a case fails, its store and rings are kept; the error says where.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sdk
from daemon.store import run_writer
from sdk import _sender, _stream, platform
from sdk.errors import NotFoundError
from sdk.journal.drain import ring_paths
from tests.end_to_end.world import Trainer, until
from tests.forked import fork_daemon, quiet, ready_to_die, serving, stored_exactly
from tests.serving import temporary_store
from tests.torture.harness import Result, chance, torture
from tests.torture.points import (
    DAEMON_POINTS,
    FINISH_POINTS,
    LENT_POINTS,
    LOG_POINTS,
    SENDER_POINTS,
    SENDING_POINTS,
    Trap,
    set_in_daemon,
    set_in_trainer,
)

# What a trainer does; it calls its argument with the number of calls that have returned.
Train = Callable[[Callable[[int], None]], None]
SHARED = "/dev/shm"
RING_BYTES = 256 << 10
# What the daemon does once a second or once in 8 MiB it does here some ten times a second.
QUICK = {
    "liveness_seconds": 0.02, "sync_seconds": 0.02, "sync_share_max": 1.0, "flush_commit_seconds": 0.01,
    "flush_age_seconds": 0.02, "persistent": True,
}  # fmt: skip
_SEGMENT_BYTES = 16 << 10
# A trap that nobody ran into by then: it is killed wherever it is.
_TRAP_SECONDS = 2.0
# The same where both die: there every moment is as good as a point.
_BOTH_TRAP_SECONDS = 0.4
_CASES_PER_STORE = 50
# Both killed: these need a store of their own only for so long that a successor finds the dead of several cases.
_BOTH_PER_STORE = 5


class Lost(AssertionError):
    """A run does not hold what its trainer logged; `case` is the one that showed it, where known."""

    def __init__(self, text: str, case: int | None) -> None:
        super().__init__(text)
        self.case = case


class World:
    """A store, the processes around it, and what every run in it must hold at the end.

    Attributes:
        expected: Run to (its case, its trainer, whether calls may have been refused).
    """

    def __init__(self, store: str) -> None:
        self.store = store
        self.expected: dict[str, tuple[int, Trainer, bool]] = {}
        self.processes: list[Trainer] = []
        self.traps: list[Trap] = []

    def trainer(self, run: str, case: int, train: Train, prepare: Callable[[], object] = lambda: None) -> Trainer:
        """A forked trainer of `run`, whose rows are compared at the end."""

        def body(count: Callable[[int], None]) -> None:
            ready_to_die()
            # Half of them send; the daemon reads the rings of the others.
            os.environ["STEPD_RING_READER"] = str(case // 4 % 2)
            _stream._print_notice = lambda text: None
            prepare()
            sdk.init(id=run, project="kills", dir=self.store)
            train(count)

        trainer = Trainer(body)
        self.processes.append(trainer)
        self.expected[run] = (case, trainer, train is refusing)
        return trainer

    def trapped(self, run: str, case: int, trap: Trap, scene: Train) -> Trainer:
        """A trainer in which `trap` is set before it opens its stream."""

        def prepare() -> None:
            scene_settings(scene)
            if trap.point in SENDING_POINTS or trap.point in LENT_POINTS:
                os.environ["STEPD_RING_READER"] = str(int(trap.point in LENT_POINTS))
            set_in_trainer(trap)

        self.traps.append(trap)
        return self.trainer(run, case, scene, prepare)

    def daemon(self, trap: Trap | None = None) -> Trainer:
        """A forked daemon, with a trap."""

        def prepare() -> None:
            run_writer.SEGMENT_ROWS_BYTES = _SEGMENT_BYTES  # type: ignore[attr-defined]
            if trap is not None:
                set_in_daemon(trap)

        process = fork_daemon(self.store, prepare, **QUICK)
        self.processes.append(process)
        if trap is not None:
            self.traps.append(trap)
        return process

    def settle(self) -> None:
        """A last daemon takes in what the dead left; trainers are dead or end by themselves."""
        if not serving(self.store):
            self.daemon()
        for trainer in [trainer for _, trainer, _ in self.expected.values()]:
            end(trainer)
        digest = platform.store_digest(self.store)
        # Why the files and not their locks: the daemon that drains a ring holds its lock.
        until(lambda: not ring_paths(SHARED, digest))

    def check(self) -> Iterator[Result]:
        """Compares every run with what its trainer did; one result for each case."""
        found: dict[int, Result] = {}
        for run, (case, trainer, refuses) in self.expected.items():
            try:
                if refuses:
                    accepted, refused = stored_or_counted(self.store, run, trainer.returned)
                else:
                    accepted, refused = stored(self.store, run, trainer.returned), 0
            except Exception as error:
                raise Lost(f"case {case}, run {run!r}: {error!r}", case) from error
            before = found.get(case, Result(case))
            found[case] = Result(case, before.accepted + accepted, refused=before.refused + refused)
        yield from found.values()

    def close(self) -> None:
        for process in self.processes:
            with contextlib.suppress(AssertionError):
                kill_at(process, 0)


class Passed:
    """Which named points processes were killed at: of many cases, at each of them one at least."""

    def __init__(self, points: Sequence[str]) -> None:
        self._missing = set(points)
        self._enough = 6 * len(points)
        self._passed_over = len(points) // 8
        self._cases = 0

    def note(self, traps: Iterable[Trap], cases: int) -> None:
        self._missing -= {trap.point for trap in traps if trap.sprung}
        self._cases += cases

    def check(self) -> None:
        """Points that are never passed any more would make a torture that breaks nothing.

        Why not all of them: on a loaded machine a process may not come as far as a rare one in the time it is given.
        """
        few = len(self._missing) <= self._passed_over
        assert few or self._cases < self._enough, f"nobody was killed at {sorted(self._missing)}"


def end(trainer: Trainer) -> None:
    """Waits for a trainer's end, if nobody did yet."""
    with contextlib.suppress(ChildProcessError):
        code = trainer.wait()
        assert code in (0, -9), f"a trainer ended with {code}"


@contextlib.contextmanager
def world(name: str) -> Iterator[World]:
    """A world, kept aside where a case fails."""
    settings = {"STEPD_AUTOSTART": "0", "STEPD_RING_BYTES": str(RING_BYTES)}
    with quiet(**settings), temporary_store() as store:
        made = World(store.path)
        try:
            yield made
        except Exception as error:
            made.close()
            text = f"{error}; traps: {made.traps}; store and rings are kept in {keep(name, store.path)}"
            raise Lost(text, getattr(error, "case", None)) from error
        finally:
            made.close()


def keep(name: str, store: str) -> str:
    """Copies a store and its rings aside; where."""
    target = tempfile.mkdtemp(prefix=f"stepd-{name}-failed-")
    for path in ring_paths(SHARED, platform.store_digest(store)):
        shutil.copy(path, target)
    shutil.copytree(store, os.path.join(target, "store"))
    return target


def groups(cases: Iterable[int], size: int) -> Iterator[list[int]]:
    """The cases in lists of at most `size`."""
    numbers = iter(cases)
    while group := list(itertools.islice(numbers, size)):
        yield group


# -- what trainers do ------------------------------------------------------------------------------------------------------


def served(count: Callable[[int], None]) -> None:
    """Logs 400 calls in some 60 ms, beside a daemon."""
    log_some(count, 400, 5, 0.0005)


def spooling(count: Callable[[int], None]) -> None:
    """As `served`, but sees no daemon, and finishes."""
    log_some(count, 400, 5, 0.0005)
    sdk.finish()


def refusing(count: Callable[[int], None]) -> None:
    """As fast as it can, with no daemon, no spool and the smallest ring: more calls are refused than not."""
    for n in range(8000):
        sdk.log({"x": n, "text": "x" * 100})
        count(n + 1)


def finishing(count: Callable[[int], None]) -> None:
    """Logs a little and finishes."""
    log_some(count, 40, 10, 0.0005)
    sdk.finish()


def log_some(count: Callable[[int], None], calls: int, each: int, pause: float) -> None:
    for n in range(calls):
        sdk.log({"x": n})
        count(n + 1)
        if n % each == 0:
            time.sleep(pause)


def endless(count: Callable[[int], None]) -> None:
    """Logs some thousand calls a second until it is killed."""
    for n in itertools.count():
        sdk.log({"x": n})
        count(n + 1)
        if n % 5 == 0:
            time.sleep(0.001)


def scene_settings(scene: Train) -> None:
    """In the forked process, before a stream is opened."""
    if scene in (spooling, refusing):
        _sender.is_locked = lambda path: False
    if scene is spooling:
        _sender.SPOOL_AGE_SECONDS = _sender._SPOOL_INTERVAL_SECONDS = 0.002
    if scene is refusing:
        os.environ["STEPD_SPOOL_BYTES_MAX"] = "0"


def stored(store: str, run: str, returned: int) -> int:
    """As `stored_exactly`, of a trainer that may have been killed before its first row."""
    try:
        return stored_exactly(store, run, returned)
    except NotFoundError:
        if returned:
            raise
        return 0


def stored_or_counted(store: str, run: str, returned: int) -> tuple[int, int]:
    """Every call that returned is there once or counted as refused; (rows, refused).

    One call more may have been placed, or counted, when its process was killed in it.
    """
    opened = sdk.open_store(store).run(run)
    assert opened.damage == [], opened.damage
    found = [int(x) for x in opened.series("x").value]
    assert opened.series("x").step.tolist() == found, "a row is at another step than it was logged at"
    assert found == sorted(set(found)) and (not found or found[-1] <= returned)
    gaps, there = opened.gaps, set(found)
    lost = [n for n in range(returned) if n not in there]
    counted = sum(gap.count for gap in gaps)
    assert len(lost) <= counted <= len(lost) + 1, f"{len(lost)} calls are missing, {counted} are reported: {gaps}"
    untold = [n for n in lost if not any(gap.step_min <= n <= gap.step_max for gap in gaps)]
    assert not untold, f"steps {untold[:9]} are missing and in no gap: {gaps}"
    return len(found), counted


# -- the trainer -----------------------------------------------------------------------------------------------------------


@torture(full=10_000, default=300, beside=True)
def trainer_killed(cases: Iterable[int]) -> Iterator[Result]:
    """SIGKILL of a trainer after a call, at a random moment or at a named point: what returned is there, exactly once."""
    passed = Passed(LOG_POINTS + SENDER_POINTS + FINISH_POINTS)
    for group in groups(cases, _CASES_PER_STORE):
        with world("trainer-killed") as here:
            here.daemon()
            until(lambda: serving(here.store))
            for few in groups(group, 3):
                deadlines = [kill_one_trainer(here, case) for case in few]
                for trainer, deadline in deadlines:
                    kill_at(trainer, deadline)
            here.settle()
            yield from here.check()
            passed.note(here.traps, len(group))
    passed.check()


def kill_one_trainer(here: World, case: int) -> tuple[Trainer, float]:
    """Forks the trainer of a case; until when it may live."""
    dice, run, now = chance("trainer-killed", case), f"run{case}", time.monotonic()
    way = case % 4
    if way == 0:
        calls = int(10 ** dice.uniform(0, 3.5))

        def until_call(count: Callable[[int], None]) -> None:
            for n in range(calls):
                sdk.log({"x": n})
                count(n + 1)
            os.kill(os.getpid(), 9)

        return here.trainer(run, case, until_call), now + 30
    if way == 1:
        return here.trainer(run, case, endless), now + dice.uniform(0.005, 0.1)
    trap, scene = trainer_trap(dice)
    return here.trapped(run, case, trap, scene), now + 30


def trainer_trap(dice: random.Random) -> tuple[Trap, Train]:
    """A trap in a trainer, and a scene in which that point is passed."""
    point = dice.choice(LOG_POINTS + SENDER_POINTS + FINISH_POINTS)
    if point in FINISH_POINTS:
        return Trap(point, 1), finishing
    if point.endswith(("spool seal", "create")):
        return Trap(point, 1), spooling
    if point.endswith("append"):
        return Trap(point, dice.randint(1, 3)), spooling
    if point.endswith(("Hello", "Welcome")):
        return Trap(point, 1), served
    if point in LOG_POINTS and dice.random() < 0.4:
        return Trap(point, int(10 ** dice.uniform(2, 4.2))), refusing
    return Trap(point, int(10 ** dice.uniform(0, 2.5 if point in LOG_POINTS else 0.5))), served


def kill_at(process: Trainer, deadline: float) -> None:
    """Waits for the end of a process, and brings it about at `deadline`."""
    status: list[int] = []

    def ended() -> bool:
        status[:] = os.waitpid(process.pid, os.WNOHANG)
        if not status[0] and time.monotonic() >= deadline:
            process.kill()
        return bool(status[0])

    with contextlib.suppress(ChildProcessError):  # it was waited for already; its pid may be somebody else's by now
        until(ended)
        code = os.waitstatus_to_exitcode(status[1])
        assert code in (0, -9), f"process {process.pid} ended with {code}"


# -- the daemon ------------------------------------------------------------------------------------------------------------


@torture(full=10_000, default=150, beside=True)
def daemon_killed(cases: Iterable[int]) -> Iterator[Result]:
    """SIGKILL of the daemon at random moments and at every named point, under live trainers: all is there, no gaps."""
    passed = Passed(DAEMON_POINTS)
    for group in groups(cases, _CASES_PER_STORE):
        with world("daemon-killed") as here:
            told = Path(here.store, "stop")
            residents = [here.trainer(f"resident{i}", group[0], until_told(told)) for i in range(2)]
            for case in group:
                kill_one_daemon(here, case)
            told.touch()
            here.daemon()
            assert [trainer.wait() for trainer in residents] == [0, 0]
            here.settle()
            yield from here.check()
            passed.note(here.traps, len(group))
    passed.check()


def until_told(told: Path) -> Train:
    """Logs until the file `told` is there, then finishes."""

    def train(count: Callable[[int], None]) -> None:
        n = 0
        while n % 100 or not told.exists():
            sdk.log({"x": n})
            n += 1
            count(n)
            if n % 5 == 0:
                time.sleep(0.001)
        sdk.finish()

    return train


def kill_one_daemon(here: World, case: int) -> None:
    """A guest comes and goes or dies, and a daemon is killed meanwhile; every other case at a named point."""
    dice = chance("daemon-killed", case)
    point = DAEMON_POINTS[case // 2 % len(DAEMON_POINTS)] if case % 2 else None
    guest = here.trainer(f"guest{case}", case, guest_of(point, dice))
    if point is None:
        kill_at(here.daemon(), time.monotonic() + dice.uniform(0, 0.1))
        return
    if point.endswith(("truncate", "write_whole", "mend")):
        # These come when a torn tail is mended, so one is made.
        torn = Trap("inside append", dice.randint(3, 6))
        kill_at(here.daemon(torn), time.monotonic() + _TRAP_SECONDS)
    if point.endswith(("drain", "ring")):
        end(guest)
    trap = Trap(point, dice.randint(1, 3) if point.endswith(("append", "block", "Ack", "Batch", "coalesce")) else 1)
    kill_at(here.daemon(trap), time.monotonic() + _TRAP_SECONDS)


def guest_of(point: str | None, dice: random.Random) -> Train:
    """A short trainer: it finishes, or dies after some calls, as the point to be passed asks."""
    dies = dice.random() < 0.5 if point is None else point.endswith(("drain", "ring"))
    calls = dice.randint(1, 100)

    asks = point is not None and "Flush" in point
    ends = point is not None and "Finish" in point

    def train(count: Callable[[int], None]) -> None:
        run = sdk.run
        assert run is not None
        for n in range(calls):
            sdk.log({"x": n})
            count(n + 1)
            if n % 50 == 0 and asks:
                meet(run)
                run.summary.get("x")  # asks the daemon to write what it has
        if dies:
            os.kill(os.getpid(), 9)
        if ends:
            meet(run)
        sdk.finish()

    return train


def meet(run: Any) -> None:
    """Waits until a daemon takes what is logged: one that comes later than the end of a short trainer is asked nothing."""
    sender = run._stream._sender
    deadline = time.monotonic() + _TRAP_SECONDS
    while sender._state != "live" and time.monotonic() < deadline:
        time.sleep(0.001)


# -- both ------------------------------------------------------------------------------------------------------------------


@torture(full=2_000, default=100, beside=True)
def both_killed(cases: Iterable[int]) -> Iterator[Result]:
    """Trainer and daemon killed in either order, also while a successor replays or drains: nothing that returned is lost."""
    for group in groups(cases, _BOTH_PER_STORE):
        with world("both-killed") as here:
            for case in group:
                kill_both(here, case)
            here.settle()
            yield from here.check()


# Where a successor is while it takes what its predecessor did not ack.
_REPLAYING = ("take Batch", "before block", "after block", "before send Ack", "after send Ack")
_DRAINING = ("before drain", "after drain", "before block", "after block", "before remove ring", "after remove ring")


def kill_both(here: World, case: int) -> None:
    """Four ways, by the number of the case."""
    dice = chance("both-killed", case)
    (at_random, while_replaying, while_draining, at_points)[case % 4](here, case, dice)


def at_random(here: World, case: int, dice: random.Random) -> None:
    """Within milliseconds of each other, in either order."""
    pair = [here.trainer(f"run{case}", case, endless), here.daemon()]
    until(lambda: pair[0].returned > 0)
    moment = time.monotonic() + dice.uniform(0.0, 0.15)
    for process in dice.sample(pair, 2):
        kill_at(process, moment)
        moment += dice.choice((0.0, dice.uniform(0.0, 0.02)))


def while_replaying(here: World, case: int, dice: random.Random) -> None:
    """The daemon dies; its successor is killed while the trainer sends again, the trainer shortly before or after it."""
    trainer, daemon = here.trainer(f"run{case}", case, endless), here.daemon()
    until(lambda: trainer.returned > 50)
    kill_at(daemon, time.monotonic() + dice.uniform(0.0, 0.1))
    successor = here.daemon(Trap(dice.choice(_REPLAYING), dice.randint(1, 2)))
    if dice.random() < 0.3:
        kill_at(trainer, time.monotonic() + dice.uniform(0.05, 0.2))
    kill_at(successor, time.monotonic() + _BOTH_TRAP_SECONDS)
    kill_at(trainer, time.monotonic() + dice.choice((0.0, dice.uniform(0.0, 0.05))))


def while_draining(here: World, case: int, dice: random.Random) -> None:
    """A trainer dies, then the daemon that drains its ring, and in that moment another trainer."""
    dead, daemon = here.trainer(f"dead{case}", case, endless), here.daemon()
    kill_at(dead, time.monotonic() + dice.uniform(0.01, 0.05))
    kill_at(daemon, 0)
    trainer = here.trainer(f"run{case}", case, endless)
    until(lambda: trainer.returned > 0)
    kill_at(here.daemon(Trap(dice.choice(_DRAINING), 1)), time.monotonic() + _BOTH_TRAP_SECONDS)
    kill_at(trainer, time.monotonic() + dice.choice((0.0, dice.uniform(0.0, 0.05))))


def at_points(here: World, case: int, dice: random.Random) -> None:
    """Each at a point of its own."""
    trap, scene = trainer_trap(dice)
    if scene is refusing:
        trap, scene = Trap("after word", dice.randint(1, 300)), served
    daemon = here.daemon(Trap(dice.choice(DAEMON_POINTS), 1))
    trainer = here.trapped(f"run{case}", case, trap, scene)
    for process in dice.sample([trainer, daemon], 2):
        kill_at(process, time.monotonic() + _BOTH_TRAP_SECONDS)
