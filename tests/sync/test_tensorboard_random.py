"""Random runs, carried at random moments and killed on the way: in the end the event files hold what the reader gives."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy
import pytest

from daemon.sync.appending import AppendFile
from daemon.sync.carrying import carry_run
from daemon.sync.outcome import DELIVERED, UP_TO_DATE
from daemon.sync.place import parse
from daemon.sync.registry import make
from sdk.errors import NotFoundError
from sdk.reader import open_store
from tests.builders import RunBuilder, StreamBuilder, compact, make_store
from tests.contracts.tensorboard_side import read_events


class _Killed(BaseException):
    """In the place of SIGKILL."""


class _World:
    """A run that grows in whatever way its seed wants."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.random = random.Random(seed)
        # Late rows nearly always come to writing anew: half of the runs have none, and are appended to only.
        self.has_late, self.has_resumes = seed % 2 == 1, seed % 3 > 0
        self.store, self.logs = make_store(directory), directory / "logs"
        self.run = RunBuilder(self.store, "random")
        self.lanes: list[StreamBuilder] = [
            self.run.stream(rank=rank) for rank in range(self.random.choice([1, 1, 2, 3]))
        ]
        self.attempts = [1] * len(self.lanes)
        self.keys = ["float", "int", "bool", "null", "text", "mixed", "nan"][: self.random.choice([1, 3, 7])]

    def value(self, key: str) -> Any:
        number = float(numpy.float32(self.random.random()))
        choices: dict[str, list[Any]] = {
            "float": [number], "int": [self.random.randrange(100)], "bool": [True, False], "null": [number, None],
            "text": [f"text {number}"], "mixed": [1, 2.5, None, "text"], "nan": [number, math.nan],
        }  # fmt: skip
        return self.random.choice(choices[key])

    def log(self, stream: StreamBuilder) -> None:
        row = {key: self.value(key) for key in self.random.sample(self.keys, self.random.randint(1, len(self.keys)))}
        chance = self.random.random()
        if self.has_late and chance < 0.1 and stream.step > 2:
            stream.log(row, step=self.random.randrange(stream.step))
        elif self.has_late and chance < 0.2:
            stream.log(row, step=stream.step, commit=False)
        elif chance < 0.3:
            stream.log(row, step=stream.step + self.random.randrange(3), commit=True)
        else:
            stream.log(row)

    def grow(self) -> None:
        for _ in range(self.random.randrange(30)):
            self.log(self.random.choice(self.lanes))
        chance = self.random.random()
        if self.has_resumes and chance < 0.15:
            self.resume(self.random.randrange(len(self.lanes)))
        elif chance < 0.4:
            self.run.seal()
            if chance < 0.25:
                compact(self.run, window=self.random.choice([16, 64]))

    def resume(self, place: int) -> None:
        before = self.lanes[place]
        before.finish("crashed")
        step = self.random.randrange(before.step + 1)
        self.attempts[place] += 1
        after = self.run.stream(continues=before.hex, attempt=self.attempts[place], first_step=step, rank=place)
        after.meta({"hide": {"from_step": step}})
        self.lanes[place] = after

    def carry(self) -> str:
        self.run.flush()
        return carry_run(self.store, self.run.id, make(parse(f"tensorboard:{self.logs}"))).state

    def carry_killed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        left, force = self.random.randrange(4), AppendFile.force

        def dying(file: AppendFile) -> int:
            nonlocal left
            left -= 1
            if left < 0:
                raise _Killed
            return force(file)

        with monkeypatch.context() as patched:
            patched.setattr(AppendFile, "force", dying)
            try:
                self.carry()
            except _Killed:
                pass

    def check(self) -> None:
        run = open_store(self.store).run(self.run.id)
        (directory,) = (self.logs / "digits").iterdir()
        for rank in range(len(self.lanes)):
            below = directory / f"rank{rank}" if rank else directory
            found = read_events(below) if below.exists() else {}
            for key in self.keys:
                try:
                    series = run.series(key, rank=rank)
                    expected = sorted(zip(series.step.tolist(), map(_plain, series.value.tolist())), key=repr)
                except NotFoundError:
                    expected = []
                held = [one for tag in (key, f"{key}/text", f"{key}/scalars") for one in found.get(tag, [])]
                shown = sorted(((step, _plain(value)) for step, _, value in held), key=repr)
                assert repr(shown) == repr(expected), (rank, key)


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else float(value)


@pytest.mark.parametrize("seed", range(8))
def test_it_equals_what_the_reader_gives(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value of every rank once, at its step, whatever was late, hidden, rewritten or killed; and then nothing changes."""
    world = _World(tmp_path, seed)
    for _ in range(world.random.randint(1, 8)):
        world.grow()
        chance = world.random.random()
        if chance < 0.2:
            world.carry_killed(monkeypatch)
        elif chance < 0.5:
            world.carry()
    for stream in world.lanes:
        stream.finish()
    world.run.seal()
    world.carry_killed(monkeypatch)
    assert world.carry() in (DELIVERED, UP_TO_DATE)
    world.check()
    before = {path: path.read_bytes() for path in world.logs.rglob("*tfevents*")}
    assert world.carry() == UP_TO_DATE
    assert {path: path.read_bytes() for path in world.logs.rglob("*tfevents*")} == before
