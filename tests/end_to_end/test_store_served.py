"""A daemon serves the store that runs are carried into: it writes, seals and compacts there while more arrives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sdk.files import DISK
from sdk.reader.verify import verify_run
from tests.builders import RunBuilder
from tests.compacting import contents
from tests.end_to_end.world import Trainer, start_daemon, until
from tests.pretended import ROOT
from tests.store_rig import Road, store_at

RUN = "a41f"


def test_the_target_is_served_and_compacted(store: Path, tmp_path: Path) -> None:
    """A trainer there adds a stream to the run that arrives, `stepd compact` runs between two passes, and both sides keep every row."""
    start_daemon(store)
    road = Road(store_at(tmp_path / "here"), str(store))
    run = RunBuilder(road.source, RUN)
    stream = run.stream(rank=0)
    run.flush()
    road.carry(RUN)

    def evaluate(count: object) -> None:
        import sdk

        attached = sdk.attach(RUN)
        for step in range(50):
            attached.log({"accuracy": float(step)}, step=step)
        attached.finish()

    evaluator = Trainer(evaluate)
    for number in range(12):
        stream.log({"loss": float(number)})
        run.flush()
        if number % 6 == 5:
            run.seal()
            _stepd("compact", RUN, "--dir", str(store))
        road.carry(RUN)
    assert evaluator.wait() == 0
    stream.finish()
    run.seal()
    road.carry(RUN)
    _stepd("compact", RUN, "--dir", str(store))
    there = road.there(RUN)
    until(lambda: len(contents(there)["streams"]) >= 2)
    found = contents(there)
    assert found["streams"][stream.hex] == contents(run.directory)["streams"][stream.hex]
    (attached,) = (rows for name, rows in found["streams"].items() if name != stream.hex and "accuracy" in str(rows))
    assert len(attached) == 50
    assert verify_run(DISK, there).findings == []
    _stepd("verify", RUN, "--dir", str(store))


def _stepd(*arguments: str) -> None:
    line = [sys.executable, "-m", "daemon", *arguments]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
