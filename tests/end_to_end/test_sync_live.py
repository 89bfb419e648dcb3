"""Carried while it is written: a real trainer, daemon, carrier and worker, any of which may be killed, and a target that may be away."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result

import sdk
from daemon.commands import status, sync
from sdk._syncing import all_told, jobs
from sdk.errors import Error
from sdk.transport import request
from tests.end_to_end.world import Trainer, kill_daemon, start_daemon, until

RUN = "carried"


class Target:
    """A directory of lines, and a file beside it that tells trainers to end."""

    def __init__(self, path: Path) -> None:
        self.directory = path / "out"
        self.told = path / "told"
        self.url = f"jsonl:{self.directory}"

    def steps(self, run: str = RUN) -> list[int]:
        """The steps that are there, in order of files; a row that is there twice is none that was delivered exactly once."""
        rows: list[dict[str, Any]] = []
        for path in sorted(self.directory.glob(f"*/{run}/rows-*.jsonl")):
            whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
            rows += [json.loads(line) for line in whole.splitlines()]
        counts = Counter((row["_stream"], row["_sequence"]) for row in rows)
        assert not [row for row, count in counts.items() if count > 1]
        return [row["_step"] for row in rows if "x" in row]

    def body(
        self, *urls: str, run: str = RUN, kill: bool = False, **settings: Any
    ) -> Callable[[Callable[[int], None]], None]:
        """A trainer that logs a row each millisecond until it is told to end."""

        def train(count: Callable[[int], None]) -> None:
            chosen = {"sync_seconds": 0.2, "restart_seconds": 0.2, "silent": True, **settings}
            run_ = sdk.init(id=run, project="p", sync_to=[self.url, *urls], settings=chosen)
            n = 0
            while not self.told.exists():
                run_.log({"x": n})
                n += 1
                count(n)
                sdk.clock.pause(0.001)
            if kill:
                os.kill(os.getpid(), 9)
            run_.finish()

        return train

    def end(self, trainer: Trainer) -> int:
        """Tells the trainer to end; how many calls it has made."""
        self.told.touch()
        trainer.wait()
        return trainer.returned


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target(tmp_path)


def drain(store: Path, *arguments: str) -> Result:
    """`stepd sync --drain`."""
    return CliRunner().invoke(sync.command, ["--drain", "--dir", str(store), *arguments])


def carrier_of(store: Path) -> int:
    """The pid of the carrier, when there is one."""
    found: list[int] = []

    def runs() -> bool:
        try:
            pid = request(str(store), "status")["carrying"]["pid"]
        except Error:
            return False
        found[:] = [int(pid)] if pid else []
        return bool(found)

    until(runs)
    return found[0]


def test_rows_appear_while_it_trains(store: Path, target: Target) -> None:
    """When `finish()` has returned the last one is there, each once; so when the run is resumed later, in the same files."""
    start_daemon(store)
    trainer = Trainer(target.body())
    until(lambda: len(target.steps()) > 20)
    seen = len(target.steps())
    until(lambda: len(target.steps()) > seen)
    count = target.end(trainer)
    assert target.steps() == list(range(count))
    assert sdk.open_store(store).run(RUN).state == "finished"
    until(lambda: not jobs(str(store)))
    (told,) = all_told(str(store))
    assert told.is_over
    assert told.points == count
    with sdk.init(id=RUN, project="p", resume="allow", sync_to=target.url, settings={"silent": True}) as run:
        run.log({"x": 1})
    assert sorted(target.steps()) == list(range(count + 1))


def test_whoever_is_killed_it_is_delivered_exactly_once(store: Path, target: Target) -> None:
    """The next one goes on where the last commit was: of a worker, a carrier, a daemon, and the trainer at last."""
    start_daemon(store)
    trainer = Trainer(target.body(kill=True))
    for victim in ("worker", "carrier", "daemon"):
        seen = len(target.steps())
        until(lambda seen=seen: len(target.steps()) > seen)
        if victim == "daemon":
            kill_daemon(store)
            continue
        carrier = psutil.Process(carrier_of(store))
        for process in carrier.children() if victim == "worker" else [carrier]:
            process.kill()
    seen = len(target.steps())
    until(lambda: len(target.steps()) > seen)
    count = target.end(trainer)
    until(lambda: len(target.steps()) == count)
    assert target.steps() == list(range(count))


def test_a_target_that_is_away_harms_nothing(store: Path, target: Target, tmp_path: Path) -> None:
    """The other one gets everything, the training ends at once, the status says it; when it is back it is delivered."""
    start_daemon(store)
    blocked = tmp_path / "blocked"
    blocked.write_text("no directory", encoding="utf-8")
    away = f"jsonl:{blocked}"
    trainer = Trainer(target.body(away))
    until(lambda: len(target.steps()) > 20)
    count = target.end(trainer)
    assert target.steps() == list(range(count))
    text = CliRunner().invoke(status.command, ["--dir", str(store)]).output
    assert re.search(rf"  sync     {re.escape(away)}   1 run; 1 behind, [\d,]+ records?: ", text)
    done = drain(store, "--timeout", "30", "--to", away)
    assert done.exit_code == 1
    assert re.search(rf"{RUN} to {re.escape(away)} stayed behind, [\d,]+ records?: ", done.output)
    blocked.unlink()
    assert drain(store, "--timeout", "30").exit_code == 0
    back = Target(tmp_path)
    back.directory = blocked
    assert back.steps() == list(range(count))
    assert jobs(str(store)) == []


def test_what_is_left_without_a_daemon_is_drained(store: Path, target: Target) -> None:
    """A trainer that was killed, and one that ended: its rows are in shared memory or in the spool."""
    trainers = [Trainer(target.body(run=f"run{n}", kill=kill, autostart=False)) for n, kill in enumerate([True, False])]
    until(lambda: all(trainer.returned > 20 for trainer in trainers))
    counts = [target.end(trainer) for trainer in trainers]
    assert target.steps("run0") == target.steps("run1") == []
    done = drain(store)
    assert done.exit_code == 0, done.output
    assert [target.steps(f"run{n}") for n in range(2)] == [list(range(count)) for count in counts]
    assert jobs(str(store)) == []
