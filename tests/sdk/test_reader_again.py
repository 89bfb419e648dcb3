"""A run that is looked at again and again says what one says that is opened now, whatever happened in between."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from daemon.compact.work import compact_run
from daemon.store.replacing import remove_replaced
from sdk import clock
from sdk.files import DISK
from sdk.location import read_store
from sdk.query.living_runs import LivingRuns
from sdk.reader import Run, Store
from sdk.reader.facts import StreamFacts
from sdk.reader.newest import Newest
from sdk.segment.naming import parse_segment
from tests.builders import START_NS, RunBuilder, Writer, make_store
from tests.compacting import shown

FACTS = (
    "id name project tags notes config metrics explicit_summary created started updated size_bytes records step_max state resumed_at"
    " hidden_from exit_code streams gaps damage last_step"
).split()


def alive(stream: StreamFacts) -> bool:
    return stream.end is None


def told(run: Run) -> dict[str, Any]:
    """All that a run says."""
    run.refresh()
    found: dict[str, Any] = {name: getattr(run, name) for name in FACTS}
    # In which order files are looked at is nobody's business.
    found.update({name: sorted(map(repr, found[name])) for name in ("streams", "gaps", "damage")})
    rows = [shown(row) for row in run.rows()]
    return {**found, "rows": rows, "keys": run.all_keys(), "summary": shown(run.summary)}


class World:
    """A run that is written by chance: blocks, segments, attempts, a spool that appears late, edits, compaction."""

    def __init__(self, draw: random.Random, path: Path) -> None:
        self.draw = draw
        self.store = make_store(path)
        self.run = RunBuilder(self.store)
        self.main = self.run.stream()
        self.spool = Writer(self.run, "spool")
        self.held: list[Any] = []
        self.log: list[str] = []
        self.grow()

    def some(self) -> None:
        draw, main = self.draw, self.main
        for _ in range(draw.randrange(1, 8)):
            facts: list[dict[str, Any]] = [
                {"config": {f"c{draw.randrange(4)}": draw.random()}},
                {"summary": {f"k{draw.randrange(3)}": draw.random()}},
                {"summary_removed": [f"k{draw.randrange(3)}"]},
                {"run": {"tags": [f"t{draw.randrange(9)}"], "name": f"n{draw.randrange(9)}"}},
            ]
            if draw.random() < 0.15:
                main.meta(draw.choice(facts))
            step = draw.choice([None, None, main.step + draw.randrange(3), draw.randrange(main.step + 1)])
            main.log({key: draw.random() for key in ("loss", "acc", "k0") if draw.random() < 0.6}, step=step)

    def change(self) -> None:
        """Something happens."""
        names = ["grow", "grow", "hold", "late", "roll", "compact", "edit", "resume", "copied", "touched", "refused"]
        name = self.draw.choice(names)
        self.log.append(name)
        getattr(self, name)()

    def grow(self) -> None:
        self.some()
        self.run.flush()

    def hold(self) -> None:
        self.some()
        self.held.append(self.main.take())
        self.held_by = self.main

    def late(self) -> None:
        for records in self.held:
            self.spool.rows(self.held_by, records)
        self.held = []

    def roll(self) -> None:
        self.run.flush()
        self.run.daemon.seal()

    def compact(self) -> None:
        for writer in (self.run.daemon, self.spool):
            writer.seal()
        compact_run(DISK, read_store(self.store), self.run.directory, kept_seconds=0.0)
        if self.draw.random() < 0.7:
            remove_replaced(DISK, self.run.directory, clock.wall_ns() + 10**12)

    def edit(self) -> None:
        run = Run(self.run.directory, alive=alive)
        run.set(name=f"e{self.draw.randrange(9)}", summary={f"k{self.draw.randrange(3)}": self.draw.random()})

    def resume(self) -> None:
        self.late()
        before, step = self.main, max(0, self.main.step - self.draw.randrange(6))
        if self.draw.random() < 0.5:
            before.finish()
        self.main = self.run.stream(continues=before.hex, attempt=2, first_step=step)
        self.main.meta({"hide": {"from_step": step}})
        self.grow()

    def refused(self) -> None:
        self.main.gap(
            episode=self.draw.randrange(3), count=self.draw.randrange(9), step_min=0, step_max=3, start_ns=START_NS, end_ns=START_NS
        )  # fmt: skip
        self.run.flush()

    def copied(self) -> None:
        """A sealed segment is another file of the same bytes."""
        writing = [self.run.daemon.paths[-1:], self.spool.paths[-1:]]
        for name in os.listdir(self.run.directory):
            path = os.path.join(self.run.directory, name)
            if parse_segment(name) and [path] not in writing:
                shutil.copy2(path, path + ".new")
                os.rename(path + ".new", path)
                return

    def touched(self) -> None:
        name = self.draw.choice([name for name in os.listdir(self.run.directory) if parse_segment(name)])
        os.utime(os.path.join(self.run.directory, name), (START_NS / 1e9,) * 2)


def mirror(source: str, target: str) -> None:
    """Brings a copy of a directory up to date as rsync does: what has changed is another file of the same name."""
    os.makedirs(target, exist_ok=True)
    names = [name for name in os.listdir(source) if parse_segment(name)]
    for name in names:
        there, here = os.path.join(target, name), os.path.join(source, name)
        if not os.path.exists(there) or os.stat(there)[6:9] != os.stat(here)[6:9]:
            shutil.copy2(here, there + ".new")
            os.rename(there + ".new", there)
    for name in set(os.listdir(target)) - set(names):
        os.remove(os.path.join(target, name))


@pytest.mark.parametrize("seed", range(8))
def test_looking_again_is_as_looking_anew(tmp_path: Path, seed: int) -> None:
    """One run that is opened for each operation, one whose growing segments stay open; where the store lies and in a copy of it."""
    draw = random.Random(seed)
    world = World(draw, tmp_path)
    directory = world.run.directory
    if seed % 2:
        directory = str(tmp_path / "copy" / "runs" / os.path.basename(directory))
        mirror(world.run.directory, directory)
    often, kept = Run(directory, alive=alive), Run(directory, alive=alive)
    newest = Newest(kept)
    for _ in range(10):
        world.change()
        if seed % 2:
            mirror(world.run.directory, directory)
        newest.look(draw.choice([1, 16]))
        fresh = told(Run(directory, alive=alive))
        assert (newest.state(), newest.step_max) == (fresh["state"], fresh["step_max"]), (seed, world.log)
        assert told(often) == fresh, (seed, world.log)
        assert told(kept) == fresh, (seed, world.log)
    newest.close()


@pytest.mark.parametrize("seed", range(6))
def test_a_list_that_is_looked_at_again(tmp_path: Path, seed: int) -> None:
    """The live screen's list says of each run what a list says that is made now, and the last values of its series."""
    draw = random.Random(seed)
    world = World(draw, tmp_path)
    store = Store(world.store, alive=alive)
    runs = LivingRuns(store)
    for _ in range(12):
        world.change()
        world.late()
        runs.look()
        (run,) = store.runs()
        (glance,) = runs.glances.values()
        for name in ("id", "name", "project", "state", "started"):
            assert getattr(glance, name) == getattr(run, name), (seed, world.log)
        assert (glance.step or 0) == run.step_max, (seed, world.log)
        for spark in glance.sparks:
            assert spark.last == run.series(spark.key).value[-1], (seed, world.log)
    runs.close()


def test_a_copy_that_is_brought_up_to_date(tmp_path: Path) -> None:
    """A growing segment that is replaced by a longer file of its name is read on, although the old one is still open."""
    store = make_store(tmp_path)
    run = RunBuilder(store)
    main = run.stream()
    directory = str(tmp_path / "copy" / "runs" / "a41f")
    newest = None
    for value in range(4):
        main.log({"loss": float(value)})
        run.flush()
        mirror(run.directory, directory)
        newest = newest or Newest(Run(directory, alive=alive))
        newest.look(4)
        assert newest.step_max == value
        assert newest.run.records == len(main.records)
    assert newest is not None
    newest.close()
