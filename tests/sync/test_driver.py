"""The driver with real worker processes, and a target that does what a test wants of it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.sync import driver as driver_module
from daemon.sync import outcome
from daemon.sync.carrying import carry_run
from daemon.sync.crew import Crew, Task
from daemon.sync.cursor import cursor_path
from daemon.sync.driver import Chosen, Driver, Seen, unchanged_outcome
from daemon.sync.looking import cursors_of, look_at, run_names
from daemon.sync.outcome import Outcome
from daemon.sync.place import parse
from daemon.sync.registry import make, schemes
from daemon.sync.target import Retriable, Target
from sdk.errors import UsageError
from sdk.platform import hold_lock
from sdk.segment.naming import STORE_FILE, run_path
from tests.builders import RunBuilder, make_run, make_store
from tests.serving import until

# A line a word of ``DIR/<run>.plan`` is what is done at each try, and then it goes well: kill, refuse, fail, hang.
_TARGET = """
import os, signal
from daemon.sync.target import Retriable, Target
from daemon.sync.targets.jsonl import JsonlTarget
from sdk.errors import UsageError


class Odd(JsonlTarget):
    scheme = "odd"
    options = frozenset({"colour"})

    def cursors(self):
        return os.path.join(self.place.path, ".stepd-sync")

    def check(self):
        if os.path.exists(os.path.join(self.place.path, "misuse")):
            raise UsageError("the package odd is not installed", hint="pip install odd")

    def carry(self, passage):
        path = os.path.join(self.place.path, passage.run.id + ".plan")
        words = open(path).read().split() if os.path.exists(path) else []
        if words:
            open(path, "w").write("\\n".join(words[1:]))
        if words[:1] == ["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if words[:1] == ["leave"]:
            child = os.fork()
            if not child:
                signal.pause()
            open(os.path.join(self.place.path, "child"), "w").write(str(child))
            os.kill(os.getpid(), signal.SIGKILL)
        if words[:1] == ["refuse"]:
            raise Retriable("503, try later")
        if words[:1] == ["fail"]:
            raise RuntimeError("no such thing")
        if words[:1] == ["hang"]:
            open(os.path.join(self.place.path, "hangs"), "w").write(str(os.getpid()))
            while True:
                passage.check()
        print("noise of a library")
        super().carry(passage)
"""


class World:
    """A store, a directory, and the target `odd:DIR`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = make_store(directory)
        self.out = directory / "out"
        self.out.mkdir()
        self.url = f"odd:{self.out}"
        self.seen: list[Seen] = []

    def plan(self, run: str, *words: str) -> None:
        (self.out / f"{run}.plan").write_text("\n".join(words))

    def target(self) -> Target:
        return make(parse(self.url))

    def driver(self, **kind: Any) -> Driver:
        def choose() -> list[Chosen]:
            return [Chosen(name) for name in run_names(self.store)]

        return Driver(self.store, [self.target()], choose, see=self.seen.append, **{"workers": 1, **kind})

    def sync(self, **kind: Any) -> dict[str, Outcome]:
        return {one.run: one for one in self.driver(**kind).run()}

    def lines(self, run: str) -> int:
        paths = self.out.glob(f"digits/{run}/rows-*.jsonl")
        return sum(len(path.read_text().splitlines()) for path in paths)

    def age(self) -> None:
        """As if nothing had changed for a while."""
        for path in Path(self.store, "runs").rglob("*"):
            os.utime(path, (1.7e9, 1.7e9))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    package = tmp_path / "package"
    (package / "odd-1.dist-info").mkdir(parents=True)
    (package / "odd_target.py").write_text(textwrap.dedent(_TARGET))
    (package / "odd-1.dist-info" / "METADATA").write_text("Name: odd\nVersion: 1\n")
    entries = "[stepd.targets]\nodd = odd_target:Odd\nbroken = odd_target:Nothing\nstrange = os:path\n"
    (package / "odd-1.dist-info" / "entry_points.txt").write_text(entries)
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.setattr(driver_module, "BACK_OFF_SECONDS", 0.01)
    monkeypatch.setattr(driver_module, "LIVE_SECONDS", 0.05)
    return World(tmp_path)


def test_one_bad_run_stops_nobody(world: World) -> None:
    """A worker that is killed costs its run one try; a run that kills twice, or fails, is failed, and the others are carried."""
    for name in ("killed-once", "killed-twice", "failing", "refused", "good"):
        make_run(world.store, name, [{"loss": 1.0}] * 3)
    world.plan("killed-once", "kill")
    world.plan("killed-twice", "kill", "kill")
    world.plan("failing", "fail")
    world.plan("refused", "refuse", "refuse")
    found = world.sync(workers=2)
    states = {name: one.state for name, one in found.items()}
    good = outcome.DELIVERED
    assert states == {
        "killed-once": good, "killed-twice": outcome.FAILED, "failing": outcome.FAILED, "refused": good, "good": good
    }  # fmt: skip
    assert "signal 9 (SIGKILL)" in found["killed-twice"].reason
    assert found["failing"].reason == "RuntimeError: no such thing"
    assert [world.lines(name) for name in ("killed-once", "refused", "good", "failing")] == [3, 3, 3, 0]
    again = world.sync()
    assert {one.state for name, one in again.items() if name.startswith(("killed-t", "fail"))} == {outcome.DELIVERED}


def test_what_a_worker_has_forked_holds_nobody_up(world: World) -> None:
    """It has the worker's output, which so does not end when the worker does."""
    make_run(world.store, "a", [{"loss": 1.0}])
    world.plan("a", "leave")
    try:
        assert world.sync()["a"].state == outcome.DELIVERED
    finally:
        os.kill(int((world.out / "child").read_text()), signal.SIGKILL)


def test_a_target_that_is_away_is_given_up_after_some_tries(world: World) -> None:
    """Every try is refused: the outcome is deferred with the reason, and says how much stayed behind."""
    make_run(world.store, "a", [{"loss": 1.0}] * 3)
    world.plan("a", *["refuse"] * 9)
    (found,) = world.sync().values()
    assert (found.state, found.reason, found.behind) == (outcome.DEFERRED, "503, try later", 5)
    assert (world.out / "a.plan").read_text().split() == ["refuse"] * 4


def test_a_target_that_is_away_does_not_hold_a_thousand_runs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five refusals in a row are an answer for all runs; with a timeout the time is."""
    for number in range(12):
        make_run(world.store, f"run{number}", [{"loss": 1.0}])
        world.plan(f"run{number}", *["refuse"] * 99)

    def tried() -> int:
        return sum(99 - len(path.read_text().split()) for path in world.out.glob("*.plan"))

    found = world.sync(workers=2)
    assert {one.state for one in found.values()} == {outcome.DEFERRED}
    assert {one.reason for one in found.values()} == {"503, try later"}
    assert len(found) == 12
    assert tried() <= 5 * 2
    before = tried()
    assert {one.state for one in world.sync(timeout=0.0).values()} == {outcome.DEFERRED}
    assert tried() == before + 1


def test_what_can_never_be_ends_at_once(world: World) -> None:
    """A target that lacks a package says so of every run, and no run is tried."""
    for name in ("a", "b"):
        make_run(world.store, name, [{"loss": 1.0}])
        world.plan(name, "fail")
    (world.out / "misuse").touch()
    found = world.sync()
    assert {one.state for one in found.values()} == {outcome.MISUSE}
    assert all("pip install odd" in one.reason for one in found.values())
    assert (world.out / "a.plan").read_text() == "fail"


def test_a_cursor_of_a_newer_version_stops_nobody_else(world: World) -> None:
    """Its run fails, and says what to do; what that version may mean by it is not carried anew."""
    for name in ("newer", "good", "removed"):
        make_run(world.store, name, [{"loss": 1.0}])
    cursors = cursors_of(world.store, world.target())
    assert {one.state for one in world.sync().values()} == {outcome.DELIVERED}
    for name in ("newer", "removed"):
        path = Path(cursor_path(cursors, name))
        path.write_text(path.read_text().replace('"format":1', '"format":9'))
    shutil.rmtree(run_path(world.store, "removed"))
    found = world.sync(looks_for_removed=True)
    states = {name: one.state for name, one in found.items()}
    assert states == {"newer": outcome.FAILED, "good": outcome.UP_TO_DATE}
    assert "pip install" in found["newer"].reason


def test_what_is_unchanged_needs_no_worker(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was over and carried, and whose directory is as it was, is up to date without being opened."""
    make_run(world.store, "a", [{"loss": 1.0}])
    world.age()
    assert world.sync()["a"].state == outcome.DELIVERED
    monkeypatch.setattr(Crew, "hand", lambda crew, task: pytest.fail("a worker was asked"))
    (found,) = world.sync().values()
    assert (found.state, found.name, found.project) == (outcome.UP_TO_DATE, "calm-otter-12", "digits")
    assert found.has_ended
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(world.directory / "package"))
    os.utime(Path(run_path(world.store, "a"), os.listdir(run_path(world.store, "a"))[0]), (1.7e9 + 1, 1.7e9 + 1))
    assert world.sync()["a"].state == outcome.UP_TO_DATE
    assert any(seen.outcome is not None for seen in world.seen)


def another_store(path: str) -> None:
    """Makes the store at a path another one, with the same runs."""
    Path(path, STORE_FILE).write_text(json.dumps({"format": 1, "id": "00" * 15 + "07"}))


@pytest.mark.parametrize("harm", ["young", "live", "grown", "other store", "no cursor"])
def test_what_may_be_new_is_looked_at(world: World, harm: str) -> None:
    """A directory that changed a moment ago may change again unseen; a run that goes on, has grown, or lies elsewhere may hold more."""
    make_run(world.store, "a", [{"loss": 1.0}], state=None if harm == "live" else "finished")
    if harm == "live":  # it was written a minute ago, so it may live
        for path in Path(run_path(world.store, "a")).iterdir():
            os.utime(path, (time.time() - 60,) * 2)
    elif harm != "young":
        world.age()
    target = world.target()
    cursors = cursors_of(world.store, target)
    assert carry_run(world.store, "a", target).state == (outcome.LIVE if harm == "live" else outcome.DELIVERED)
    task, directory = Task("a", world.url), run_path(world.store, "a")
    if harm == "grown":
        Path(directory, "more").touch()
    if harm == "no cursor":
        os.remove(cursor_path(cursors, "a"))
    if harm == "other store":
        another_store(world.store)
    assert unchanged_outcome(world.store, cursors, task, look_at(directory)) is None


def test_there_is_no_run(world: World) -> None:
    """A directory that is gone when its turn comes is a failure, not a run without rows."""
    found = carry_run(world.store, "nothing", world.target())
    assert (found.state, found.run) == (outcome.FAILED, "nothing")
    assert "there is no run" in found.reason


def test_how_far_a_target_is_behind_is_told(world: World) -> None:
    """Also where it was away before the run was looked at, and after some of it was carried."""
    run = RunBuilder(world.store, "growing")
    stream = run.stream()
    stream.log({"loss": 1.0})
    run.flush()
    before = carry_run(world.store, "growing", world.target())
    stream.log({"loss": 2.0})
    stream.log({"loss": 3.0})
    run.flush()
    target = world.target()

    def away() -> None:
        raise Retriable("503")

    target.check = away  # type: ignore[method-assign]
    found = carry_run(world.store, "growing", target)
    assert (before.state, before.behind) == (outcome.LIVE, 0)
    assert (found.state, found.run, found.behind) == (outcome.DEFERRED, "growing", 2)


@pytest.mark.parametrize("name", [None, "/data/out/x"])
def test_what_the_disk_says_is_told_with_a_path_and_a_cure(world: World, name: str | None) -> None:
    """Not as the name of a class; where the disk names no file, the target is named."""
    make_run(world.store, "a", [{"loss": 1.0}])
    target = world.target()

    def full(_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", name)

    target.carry = full  # type: ignore[method-assign]
    found = carry_run(world.store, "a", target)
    where = repr(name) if name else world.url
    assert found.state == outcome.FAILED
    assert found.reason == (
        f"{where}: no space left on device (try: make room there; the same command then goes on where it was)"
    )


def test_a_store_that_is_only_read(world: World) -> None:
    """Where the store takes no cursor, a target that keeps none itself says so of each run."""
    make_run(world.store, "a", [{"loss": 1.0}])
    target = world.target()
    Path(world.store, "sync").touch()  # in the place of a directory that cannot be made
    target.cursors = lambda: None  # type: ignore[method-assign]
    found = carry_run(world.store, "a", target)
    assert found.state == outcome.FAILED
    assert "cannot note in" in found.reason


def test_a_run_that_was_removed_too_early_is_told_once(world: World) -> None:
    """What was not wholly carried when its run was removed is failed, at one sync; what was is no trouble."""
    RunBuilder(world.store, "half").stream().log({"loss": 1.0})
    run = RunBuilder(world.store, "growing")
    run.stream().log({"loss": 1.0})
    run.flush()
    make_run(world.store, "whole", [{"loss": 1.0}])
    assert world.sync()["growing"].state == outcome.LIVE
    for name in ("growing", "whole"):
        path = run_path(world.store, name)
        for file in os.listdir(path):
            os.remove(os.path.join(path, file))
        os.rmdir(path)
    found = world.sync(looks_for_removed=True)
    assert {name: one.state for name, one in found.items()} == {"growing": outcome.FAILED}
    assert "removed" in found["growing"].reason
    assert not world.sync(looks_for_removed=True)


def test_stores_of_two_hosts_may_have_one_path(world: World) -> None:
    """What the one has not, and another one at the same path has carried to the directory, was not removed from it."""
    run = RunBuilder(world.store, "growing")
    run.stream().log({"loss": 1.0})
    run.flush()
    assert world.sync()["growing"].state == outcome.LIVE
    os.rename(world.store, f"{world.store}-of-another-host")
    make_store(world.directory)
    another_store(world.store)
    assert not world.sync(looks_for_removed=True)


def test_two_kinds_of_targets_share_a_directory(world: World) -> None:
    """What was carried to the one is not at the other, whose cursor is another."""
    make_run(world.store, "a", [{"loss": 1.0}])
    world.age()
    for url in (f"jsonl:{world.out}", f"tensorboard:{world.out}", f"jsonl:{world.out}"):
        driver = Driver(world.store, [make(parse(url))], lambda: [Chosen("a")], workers=1)
        expected = outcome.UP_TO_DATE if world.lines("a") and list(world.out.rglob("*tfevents*")) else outcome.DELIVERED
        assert [one.state for one in driver.run()] == [expected], url
    places = [make(parse(f"wandb:{name}?mode=offline&dir={world.out}")) for name in ("a/b", "a/c")]
    assert len({cursors_of(world.store, target) for target in places}) == 2


def test_live_goes_on_until_runs_are_over(world: World) -> None:
    """New rows and new runs are carried while it works; it ends with the last run."""
    run = RunBuilder(world.store, "growing")
    main = run.stream()
    main.log({"loss": 1.0})
    run.flush()
    driver = world.driver(live=True)
    stages: list[Callable[[], Any]] = [
        lambda: (main.log({"loss": 2.0}), run.flush(), make_run(world.store, "new", [{"loss": 5.0}])),
        lambda: (main.log({"loss": 3.0}), main.finish(), run.seal()),
    ]

    def is_stopped() -> bool:
        if stages and world.lines("growing") == 3 - len(stages):
            stages.pop(0)()
        return False

    found = {one.run: one for one in driver.run(is_stopped)}
    assert {name: one.state for name, one in found.items()} == dict.fromkeys(("growing", "new"), outcome.DELIVERED)
    assert found["growing"].points == 3
    assert (world.lines("growing"), world.lines("new")) == (3, 1)


def test_live_goes_on_with_a_run_that_is_resumed(world: World) -> None:
    """While others live; what its next process logs is there when all are over."""
    make_run(world.store, "resumed", [{"loss": 1.0}])
    run = RunBuilder(world.store, "growing")
    main = run.stream()
    main.log({"loss": 1.0})
    run.flush()
    stages: list[Callable[[], Any]] = [
        lambda: make_run(world.store, "resumed", [{"loss": 2.0}]),
        lambda: (main.finish(), run.seal()),
    ]

    def is_stopped() -> bool:
        if stages and world.lines("growing") and world.lines("resumed") == 3 - len(stages):
            stages.pop(0)()
        return False

    found = {one.run: one.state for one in world.driver(live=True).run(is_stopped)}
    assert found == dict.fromkeys(("growing", "resumed"), outcome.DELIVERED)
    assert world.lines("resumed") == 2


def test_told_to_end(world: World) -> None:
    """A run that is on its way stops at the next look, those that wait are not begun; the next sync carries both."""
    for name in ("a", "b"):
        make_run(world.store, name, [{"loss": 1.0}])
        world.plan(name, "hang")
    found = world.driver().run((world.out / "hangs").exists)
    assert [one.state for one in found] == [outcome.STOPPED] * 2
    (world.out / "a.plan").unlink()
    (world.out / "b.plan").unlink()
    assert {one.state for one in world.sync().values()} == {outcome.DELIVERED}


def test_two_at_once_do_not_carry_the_same(world: World) -> None:
    """Who finds the lock of a cursor taken says that the run is busy, and touches nothing."""
    make_run(world.store, "a", [{"loss": 1.0}])
    target = world.target()
    path = cursor_path(cursors_of(world.store, target), "a")
    os.makedirs(os.path.dirname(path))
    lock = hold_lock(f"{path}.lock")
    assert lock is not None
    found = carry_run(world.store, "a", target)
    assert (found.state, world.lines("a")) == (outcome.BUSY, 0)
    lock.release()
    assert carry_run(world.store, "a", target).state == outcome.DELIVERED
    assert os.listdir(os.path.dirname(path)) == ["a.json"], "the lock is gone"


def test_workers_end_with_their_driver(world: World) -> None:
    """A driver that is killed leaves no worker behind, whatever it was doing."""
    make_run(world.store, "a", [{"loss": 1.0}])
    world.plan("a", "hang")
    code = f"""
import sys
sys.path[:0] = {[str(world.directory / "package"), *sys.path]!r}
from daemon.sync.driver import *
from daemon.sync.place import parse
from daemon.sync.registry import make
Driver({world.store!r}, [make(parse({world.url!r}))], lambda: [Chosen("a")], workers=1).run()
"""
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            told = until(lambda: (world.out / "hangs").exists() and (world.out / "hangs").read_text())
        finally:
            process.send_signal(signal.SIGKILL)
    until(lambda: not _lives(int(told)), "the worker's end")


def _lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_targets_of_others(world: World) -> None:
    """Entry points add targets; what they are not is told, and options are those that a target has."""
    assert "odd" in schemes()
    assert world.target().scheme == "odd"
    make(parse(f"{world.url}?colour=red"))
    with pytest.raises(UsageError, match="no option 'color'.*Did you mean 'colour'"):
        make(parse(f"{world.url}?color=red"))
    with pytest.raises(UsageError, match="no target is called 'tensorbord'. Did you mean 'tensorboard'"):
        make(parse("tensorbord:x"))
    with pytest.raises(UsageError, match="broken.*cannot be loaded"):
        make(parse("broken:x"))
    with pytest.raises(UsageError, match="expected a class"):
        make(parse("strange:x"))
