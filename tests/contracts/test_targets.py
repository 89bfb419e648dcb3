"""Every target of `stepd sync` passes these. See `sides.py` for what a target brings, `cases.py` for the cases."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from click.testing import CliRunner

from daemon.cli import cli
from daemon.sync import outcome
from daemon.sync.carrying import carry_run
from daemon.sync.crew import Task
from daemon.sync.cursor import Cursor
from daemon.sync.driver import Chosen, Driver, unchanged_outcome
from daemon.sync.looking import cursors_of, look_at, run_names
from daemon.sync.outcome import Outcome
from daemon.sync.place import parse
from daemon.sync.registry import TARGETS, make
from daemon.sync.target import Target
from sdk.files import Disk, DiskFile
from sdk.reader import Run
from sdk.segment.naming import RUNS
from tests.builders import RunBuilder, make_run, make_store
from tests.contracts.cases import CASES, Case, Runs, Seen, close
from tests.contracts.sides import Held, Side, side_of, sides
from tests.serving import until

CANARY = "canary-4f1d7c2e"
SECRETS = ("AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


class Killed(BaseException):
    """In the place of SIGKILL: nothing of ours catches it."""


class Rig:
    """One target, one store, and carrying from the one to the other."""

    def __init__(self, side: Side, url: str, directory: Path) -> None:
        self.side, self.url = side, url
        self.store = make_store(directory)
        # So long ago that what comes is seen, and not so long that who wrote it must be dead.
        self.settled = time.time() - 60

    def target(self) -> Target:
        return make(parse(self.url))

    def carry(self, *, skips: bool = False, **kind: Any) -> dict[str, Outcome]:
        """Everything once, by run id, with a new target as each process has one.

        Args:
            skips: Not what the driver would leave out as unchanged.
        """
        names = run_names(self.store)
        if skips:
            skipped = {name: one for name in names if (one := self._unchanged(name)) is not None}
            names = [name for name in names if name not in skipped]
            return {**{one.run: one for one in skipped.values()}, **self._carry(names, **kind)}
        return self._carry(names, **kind)

    def settle(self, name: str) -> Path:
        """As if nothing had come for a minute; the run's directory."""
        directory = Path(self.store, RUNS, name)
        for path in directory.iterdir():
            os.utime(path, (self.settled, self.settled))
        return directory

    def _unchanged(self, name: str) -> Outcome | None:
        directory = self.settle(name)
        target = self.target()
        return unchanged_outcome(
            self.store, cursors_of(self.store, target), Task(name, target.place.text), look_at(str(directory))
        )

    def _carry(self, names: list[str], **kind: Any) -> dict[str, Outcome]:
        if not getattr(self.side, "in_process", True):
            found = Driver(self.store, [self.target()], lambda: [Chosen(name) for name in names], workers=1).run()
            return {one.run: one for one in found}
        target = self.target()
        try:
            outcomes = [carry_run(self.store, name, target, **kind) for name in names]
        finally:
            target.close()
        return {one.run: one for one in outcomes}

    def held(self) -> Held:
        return self.side.read(self.url)


def only(is_meant: Callable[[Side], bool]) -> Callable[[Any], Any]:
    """A test of some sides."""

    def marked(test: Any) -> Any:
        test.is_meant = is_meant
        return test

    return marked


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test with each side that it is meant for; each case by itself, of a slow side all cases in one store."""
    if "side" not in metafunc.fixturenames:
        return
    is_meant = getattr(metafunc.function, "is_meant", lambda side: True)
    names = [name for name in sides() if is_meant(side_of(name))]
    if "cases" not in metafunc.fixturenames:
        metafunc.parametrize("side", names, indirect=True, scope="module")
        return
    slow = [name for name in names if getattr(side_of(name), "is_slow", False)]
    pairs = [(name, [case]) for name in names if name not in slow for case in CASES] + [(name, CASES) for name in slow]
    ids = [f"{name}-{cases[0].__name__ if len(cases) == 1 else 'all'}" for name, cases in pairs]
    metafunc.parametrize(("side", "cases"), pairs, ids=ids, indirect=["side"], scope="module")


@pytest.fixture(scope="module")
def side(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Side, str | None]]:
    """A side, and its URL where one target serves all tests."""
    found = side_of(request.param)
    url = found.start(tmp_path_factory.mktemp(found.scheme)) if found.is_shared else None
    yield found, url
    if found.is_shared:
        found.stop()


@pytest.fixture
def rig(side: tuple[Side, str | None], tmp_path: Path) -> Iterator[Rig]:
    found, url = side
    place = tmp_path / "target"
    place.mkdir()
    yield Rig(found, found.start(place) if url is None else url, tmp_path)
    if url is None:
        found.stop()


def new_prefix() -> str:
    """Ids of runs that no other test has: a server may serve several."""
    return f"{os.urandom(3).hex()}-"


def test_there_is_a_side_for_every_target() -> None:
    """A target that nobody holds to the contract is none."""
    assert {name.partition("_")[0] for name in sides()} >= set(TARGETS)


def test_cases(rig: Rig, cases: list[Callable[[Runs], Case]]) -> None:
    """Each case holds, and when all is delivered another sync changes nothing."""
    new = Runs(rig.store, new_prefix())
    going = [made(new) for made in cases]
    for one in going:
        next(one)
    while going:
        outcomes = rig.carry(skips=getattr(rig.side, "is_slow", False))
        going = close(going, Seen(rig.side, outcomes, rig.held()))
    before = rig.side.written(rig.url)
    for found in rig.carry().values():
        assert found.points == 0, found
        assert found.state == outcome.UP_TO_DATE, found
        assert not found.trouble, "told once"
    assert rig.side.written(rig.url) == before


class _Store:
    """A run with several streams, of which more comes: what is killed on its way."""

    def __init__(self, store: str, prefix: str) -> None:
        self.run = RunBuilder(store, f"{prefix}killed")
        self.streams = [self.run.stream(rank=rank) for rank in range(3)]

    def more(self) -> None:
        for step in range(20):
            for place, stream in enumerate(self.streams):
                stream.log({f"loss{place}": float(step), "text": "abc" * step})
            if step == 10:
                self.run.flush()
        self.run.flush()

    def end(self) -> None:
        for stream in self.streams:
            stream.finish()
        self.run.seal()


@only(lambda side: getattr(side, "in_process", True))  # others have their process killed in tests of their own
def test_killed_at_any_commit_and_batch(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before or after any commit, or at any batch, and carried again: the same as if nobody had been killed."""
    made = _Store(rig.store, new_prefix())
    kills = _Kills(monkeypatch)
    made.more()
    survived = [_carry_killed(rig, kills, k) for k in range(1, 5)]
    rig.carry()
    made.more()
    survived += [_carry_killed(rig, kills, k) for k in range(1, 5)]
    made.end()
    survived += [_carry_killed(rig, kills, k) for k in range(1, 3)]
    assert not all(survived), "nobody was killed"
    (found,) = rig.carry().values()
    assert found.state in (outcome.DELIVERED, outcome.UP_TO_DATE), found
    held = rig.held()[made.run.id]
    for place in range(3):
        assert held[rig.side.key(f"loss{place}")] == [(step, float(step % 20)) for step in range(40)]


@only(lambda side: getattr(side, "in_process", True))
def test_killed_before_what_was_written_is_hidden(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that a killed pass wrote and did not commit, and that a resume hides before the next pass, are nowhere."""
    run = RunBuilder(rig.store, f"{new_prefix()}hidden")
    first = run.stream(rank=0)
    first.log({"loss": 0.5})
    run.flush()
    rig.carry()
    kills = _Kills(monkeypatch)
    for step in range(1, 4):
        first.log({"loss": float(step), "gone": 1.0})
    first.finish("crashed")
    run.seal()
    _carry_killed(rig, kills, 2)  # at the first commit, of a target that asks at one batch before
    second = run.stream(continues=first.hex, attempt=2, first_step=1, rank=0)
    second.meta({"hide": {"from_step": 1}})
    second.log({"loss": 100.0})
    second.finish()
    run.seal()
    (found,) = rig.carry().values()
    assert found.state == outcome.DELIVERED, found
    held = rig.held()[run.id]
    assert held[rig.side.key("loss")] == [(0, 0.5), (1, 100.0)]
    assert rig.side.key("gone") not in held


class _Kills:
    """Kills at the k-th of: before a cursor is written, after it, and at each batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        self.die: Callable[[], None] = _raise
        self._monkeypatch = monkeypatch
        self.at(Cursor, "write")

    def at(self, owner: type, name: str) -> None:
        """Also before and after a method of a class."""
        do = getattr(owner, name)

        def dying(*args: Any, **kind: Any) -> Any:
            self.count()
            found = do(*args, **kind)
            self.count()
            return found

        self._monkeypatch.setattr(owner, name, dying)

    def count(self) -> bool:
        self.left -= 1
        if self.left == 0:
            self.die()
        return False


def _raise() -> None:
    raise Killed


def _carry_killed(rig: Rig, kills: _Kills, k: int) -> bool:
    kills.left = k
    try:
        rig.carry(is_stopped=kills.count)
    except Killed:
        return False
    finally:
        kills.left = 0
    return True


@only(lambda side: getattr(side, "may_fork", False))
def test_killed_at_any_operation_on_the_disk(rig: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process that gets SIGKILL before or after any operation on a file leaves what the next one makes good."""
    made = _Store(rig.store, new_prefix())
    kills = _Kills(monkeypatch)
    kills.die = lambda: os.kill(os.getpid(), signal.SIGKILL)
    for owner, names in ((Disk, "rename remove create write_whole"), (DiskFile, "append truncate sync")):
        for name in names.split():
            kills.at(owner, name)
    killed = 0
    for stage in (made.more, made.more, made.end):
        stage()
        k = 1
        while not _forked(rig, kills, k):
            killed += 1
            k += 1 + k // 3
        rig.side.read(rig.url)  # whatever is there can be read
    (found,) = rig.carry().values()
    assert found.state == outcome.UP_TO_DATE, found
    held = rig.held()[made.run.id]
    for place in range(3):
        assert held[rig.side.key(f"loss{place}")] == [(step, float(step % 20)) for step in range(40)]
    assert killed > 10


def _forked(rig: Rig, kills: _Kills, k: int) -> bool:
    """Carries in a child that is killed at the k-th point; whether it came to the end."""
    pid = os.fork()
    if pid == 0:
        kills.left = k
        code = 1
        try:
            rig.carry(is_stopped=kills.count)
            code = 0
        finally:
            os._exit(code)
    status = until(lambda: (found := os.waitpid(pid, os.WNOHANG))[0] and (found[1],))[0]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


@only(lambda side: side.is_huge)
def test_a_long_run(rig: Rig) -> None:
    """Many batches of many rows: nothing is missing, nothing is twice."""
    run = RunBuilder(rig.store, f"{new_prefix()}long")
    main = run.stream()
    for step in range(70_000):
        main.log({"loss": step * 0.5, "acc": 1.0})
        if step % 10_000 == 0:
            run.flush()
    main.finish()
    run.seal()
    (found,) = rig.carry().values()
    assert found.is_exact, found
    held = rig.held()[run.id]
    steps, values = (numpy.array(column) for column in zip(*held["loss"]))
    assert (steps == numpy.arange(70_000)).all()
    assert (values == steps * 0.5).all()
    assert len(held["acc"]) == 70_000


def test_no_secret_is_stored_or_told(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Credentials of the environment are in no file of the target, no cursor, no outcome and no output."""
    for name in SECRETS:
        if name not in getattr(rig.side, "own_secrets", ()):
            monkeypatch.setenv(name, CANARY)
    run = RunBuilder(rig.store, f"{new_prefix()}secret")
    main = run.stream()
    main.log({"loss": 1.0})
    main.finish()
    run.seal()
    (found,) = rig.carry().values()
    assert found.state == outcome.DELIVERED, found
    target = rig.target()
    monkeypatch.setattr(type(target), "carry", _failing)
    told = carry_run(rig.store, run_names(rig.store)[0], target)
    assert told.state == outcome.FAILED
    assert "refused" in told.reason
    output = capfd.readouterr()
    texts = [repr(found), repr(told), output.out, output.err]
    texts += [data.decode("latin-1") for data in rig.side.texts(rig.url)]
    directory = Path(cursors_of(rig.store, target))
    texts += [path.read_text(encoding="ascii") for path in directory.glob("*.json")]
    assert not any(CANARY in text for text in texts)


def test_the_command(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """`stepd sync` carries through a worker process, says 0, and with nothing new does nothing; secrets are in no line of it."""
    for name in SECRETS:
        if name not in getattr(rig.side, "own_secrets", ()):
            monkeypatch.setenv(name, CANARY)
    prefix = new_prefix()
    for number in range(2):
        make_run(rig.store, f"{prefix}{number}", [{"loss": step / 4} for step in range(5)])
        rig.settle(f"{prefix}{number}")
    words = ["--dir", rig.store, "sync", "--all", "--workers", "1", "--to", rig.url]
    first, second = CliRunner().invoke(cli, words), CliRunner().invoke(cli, [*words, "--json"])
    assert first.exit_code == 0, first.output
    assert "2 delivered: " in first.stdout, first.output
    assert {one["state"] for one in json.loads(second.stdout)["outcomes"]} == {outcome.UP_TO_DATE}, second.output
    assert CANARY not in first.output + second.output
    for number in range(2):
        assert rig.held()[f"{prefix}{number}"][rig.side.key("loss")] == [(step, step / 4) for step in range(5)]


def _failing(target: Target, passage: Any) -> None:
    raise ValueError(f"refused: key {CANARY} of https://me:{CANARY}@host/x")


def test_nothing_is_written_into_the_run(rig: Rig) -> None:
    """Carrying leaves the run's directory as it was, and takes no file from it."""
    run = RunBuilder(rig.store, f"{new_prefix()}still")
    main = run.stream()
    main.log({"loss": 1.0})
    run.flush()  # it goes on

    def state() -> dict[str, tuple[int, int]]:
        paths = Path(rig.store, RUNS).rglob("*")
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in paths}

    before = state()
    (found,) = rig.carry().values()
    assert found.state == outcome.LIVE, found
    assert state() == before
    assert Run(run.directory).state == "running"
