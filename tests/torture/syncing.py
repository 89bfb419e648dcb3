"""`stepd sync` killed at any moment, again and again, while the run that it carries grows, is rewound and compacted.

What has arrived in the end is what one pass that nobody disturbed brings: neither less nor anything twice. Of targets that are files
here, read as their users read them (`tests/contracts/`).
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from daemon.compact.work import compact_run
from daemon.sync import outcome
from daemon.sync.carrying import carry_run
from daemon.sync.place import parse
from daemon.sync.registry import make
from sdk.files import DISK
from sdk.location import read_store
from tests.builders import RunBuilder, StreamBuilder, make_store
from tests.contracts.sides import Side, side_of
from tests.end_to_end.world import Trainer
from tests.forked import ready_to_die
from tests.torture.harness import Result, chance, torture

SIDES = ("jsonl", "tensorboard", "parquet", "stepd")
_KILLS = 5


@torture(full=2_000, default=8, beside=True)
def sync_killed(cases: Iterable[int]) -> Iterator[Result]:
    """`stepd sync` killed five times while a run grows: at last the target equals one that was written undisturbed."""
    for case in cases:
        side = side_of(SIDES[case % len(SIDES)])
        directory = Path(tempfile.mkdtemp(prefix=f"torture-sync-{case}-"))
        yield Result(case, accepted=one_case(chance("sync-killed", case), side, directory))
        shutil.rmtree(directory)  # not of a case that failed


def one_case(dice: random.Random, side: Side, directory: Path) -> int:
    """The number of records that the run had."""
    growing = Growing(dice, directory)
    places = {name: directory / name for name in ("killed", "calm")}
    for place in places.values():
        place.mkdir()
    urls = {name: side.start(place) for name, place in places.items()}
    seconds = 0.2
    for _ in range(_KILLS):
        growing.grow()
        began = time.monotonic()
        if killed_after(lambda: growing.carry(urls["killed"]), dice.uniform(0, 1.2 * seconds)):
            continue
        seconds = max(0.02, time.monotonic() - began)
    growing.end()
    found = {}
    for name, place in places.items():
        assert Trainer(lambda _, url=urls[name]: growing.carry(url)).wait() == 0, (name, side.scheme, directory)
        side.start(place)
        found[name] = side.read(urls[name])
    assert found["killed"] == found["calm"], (side.scheme, directory)
    assert found["calm"], (side.scheme, directory)
    return growing.records


def killed_after(body: Callable[[], None], seconds: float) -> bool:
    """Whether a process that does something was killed before it was done; if it was, it was well until then."""
    process = Trainer(lambda _: body())
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(process.pid, os.WNOHANG)
        if pid:
            assert status == 0, f"carrying failed with {status}"
            return False
        time.sleep(0.001)
    process.kill()
    return process.wait() != 0


class Growing:
    """A run that grows by chance: rows of several kinds, late ones, a second rank, a resume that hides some, compaction."""

    def __init__(self, dice: random.Random, directory: Path) -> None:
        self._dice = dice
        self.store = make_store(directory)
        self.run = RunBuilder(self.store, "grows")
        self._main = self.run.stream(rank=0)
        self._streams: list[StreamBuilder] = [self._main]

    @property
    def records(self) -> int:
        return sum(len(stream.records) for stream in self.run.streams)

    def grow(self) -> None:
        """Some more of it, flushed, sealed, or made columns of."""
        dice = self._dice
        if dice.random() < 0.3 and len(self._streams) == 1:
            self._streams.append(self.run.stream(rank=1))
        if dice.random() < 0.2:
            self._rewind()
        for _ in range(dice.choice((1, 40, 2000))):
            stream = dice.choice(self._streams)
            stream.log({"loss": dice.random(), **({"acc": dice.random()} if stream.step % 5 == 0 else {})})
            if dice.random() < 0.01:
                stream.log({"text": f"at {stream.step}", "late/x": 1.5}, step=dice.randrange(stream.step))
        self.run.flush()
        if dice.random() < 0.5:
            self.run.seal()
            if dice.random() < 0.5:
                compact_run(DISK, read_store(self.store), self.run.directory, kept_seconds=0.0)

    def _rewind(self) -> None:
        """A resume of the main lane, a little before where it is."""
        old = self._main
        at = max(0, old.step - self._dice.randint(0, 30))
        attempt = len(self.run.streams) + 1
        self._main = self.run.stream(continues=old.hex, attempt=attempt, first_step=at, rank=0)
        self._main.meta({"hide": {"attempt": attempt, "from_step": at}})
        self._streams = [self._main, *(stream for stream in self._streams if stream is not old)]

    def end(self) -> None:
        for stream in self.run.streams:
            stream.finish()
        self.run.seal()

    def carry(self, url: str) -> None:
        """Brings the target up to date, in a process that may be killed at any moment."""
        ready_to_die()
        target = make(parse(url))
        found = carry_run(self.store, os.path.basename(self.run.directory), target)
        target.close()
        assert found.state in outcome.GOOD, found
