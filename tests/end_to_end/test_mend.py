"""`stepd verify` and `stepd repair` on what real trainers and daemons left, or are writing now."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import sdk
from daemon.cli import cli
from sdk.errors import NotFoundError
from sdk.files import DISK
from sdk.location import make_store
from sdk.segment.format import BLOCK_HEADER_SIZE, KIND_ROWS
from sdk.segment.naming import parse_segment, run_path
from sdk.segment.reader import SegmentReader
from tests.end_to_end.world import Trainer, kill_daemon, start_daemon, steps, until


def stepd(store: Path, *words: str) -> Result:
    result = CliRunner().invoke(cli, ["--dir", str(store), *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def trainer_of(store: Path, calls: int) -> Trainer:
    """Logs so many steps, then waits to be killed."""

    def body(count: Callable[[int], None]) -> None:
        run = sdk.init(id="r", dir=str(store))
        for done in range(1, calls + 1):
            run.log({"x": done})
            count(done)
        while True:
            os.read(os.pipe()[0], 1)

    trainer = Trainer(body)
    until(lambda: trainer.returned == calls)
    return trainer


def end(trainer: Trainer) -> None:
    trainer.kill()
    trainer.wait()


def test_what_dead_trainers_left_in_memory(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` names it; without a daemon `repair --rings` stores it; a second time there is nothing."""
    monkeypatch.setenv("STEPD_AUTOSTART", "0")
    make_store(str(store))
    end(trainer_of(store, 100))
    verified = stepd(store, "verify")
    assert (verified.exit_code, "waiting for run r: 100 records of stream " in verified.output) == (0, True)
    assert "would store 100 records that 1 dead trainer left" in stepd(store, "repair", "--rings", "--dry-run").output
    result = stepd(store, "repair", "--rings")
    assert result.exit_code == 0
    assert "stored what 1 dead trainer left" in result.output
    assert "waiting for run" not in stepd(store, "verify").output
    assert steps(store, "r") == list(range(100))
    assert "stored what 0 dead trainers left" in stepd(store, "repair", "--rings").output
    assert stepd(store, "verify").exit_code == 0


def test_a_segment_that_is_being_written(store: Path) -> None:
    """Verify reads a live run; damage in the daemon's open segment is told and repaired only once the daemon is dead."""
    make_store(str(store))
    start_daemon(store)
    trainer = trainer_of(store, 500)
    try:
        until(lambda: stored(store) == 500)
        assert stepd(store, "verify").exit_code == 0
        spoil(store)
        assert stepd(store, "verify").exit_code == 1
        refused = stepd(store, "repair")
        assert refused.exit_code == 1
        assert "not repaired: its writer may still live. Try: stepd stop && stepd repair r" in refused.output
    finally:
        end(trainer)
    kill_daemon(store)
    until(lambda: "a daemon serves" not in stepd(store, "repair", "--rings", "--dry-run").output)
    repaired = stepd(store, "repair")
    assert (repaired.exit_code, "nothing could be saved: " in repaired.output) == (1, True), repaired.output
    assert stepd(store, "verify").exit_code == 0
    run = sdk.open_store(store).run("r")
    (gap,) = [gap for gap in run.gaps if gap.first is not None]
    kept = [row["_step"] for row in run.rows()]
    assert gap.reason == "damage"
    assert sorted({*kept, *range(gap.step_min, gap.step_max + 1)}) == list(range(500))


def stored(store: Path) -> int:
    """How many steps a reader finds by now."""
    try:
        return len(steps(store, "r"))
    except NotFoundError:
        return 0


def spoil(store: Path) -> None:
    """Changes two bytes in the first block of rows of the run."""
    directory = run_path(str(store), "r")
    for name in os.listdir(directory):
        if parse_segment(name) is None:
            continue
        path = os.path.join(directory, name)
        reader = SegmentReader(DISK, path)
        blocks = [block for block in reader.blocks if block.kind == KIND_ROWS]
        reader.close()
        if blocks:
            with open(path, "r+b") as file:
                file.seek(blocks[0].offset + BLOCK_HEADER_SIZE)
                file.write(b"\xff\xff")
            return
