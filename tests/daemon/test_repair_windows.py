"""daemon.store.repair, verify and repair commands: runs whose rows are columns, with and without what was replaced."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from daemon.cli import cli
from daemon.compact.work import compact_run
from daemon.store.repair import Step, repair_run
from sdk.files import DISK
from sdk.location import read_store
from sdk.reader.verify import verify_run
from sdk.segment.format import KIND_ROWS
from sdk.segment.naming import ASIDE, SegmentName, parse_segment
from sdk.segment.reader import SegmentReader
from tests.builders import STORE_ID, RunBuilder, make_store
from tests.sdk.test_segment_windows import columns_lost, spoil
from tests.windows import STREAM, append_window, begin, end, group

OLD = SegmentName(0x11, 0)
VALUES = np.arange(1, 41) / 7


class Scene:
    """A run of one segment of rows and two of columns that replace it; the second one says so."""

    def __init__(self, path: Path) -> None:
        self.store = make_store(path)
        self.run = run = RunBuilder(self.store)
        run.daemon.id = OLD.writer
        self.stream = run.stream(stream_id=STREAM)
        for value in VALUES:
            self.stream.log({"loss": float(value)})
        self.old = run.seal()
        first = begin(run.directory, SegmentName(0xABC, 0))
        append_window(first, [], (1, 1), self.stream.records[:1])
        append_window(first, [[group(range(2, 22), {"loss": VALUES[:20]}, steps=range(20))]], (2, 21))
        self.block = first.blocks[-1]
        self.first = end(first)
        second = begin(run.directory, SegmentName(0xABC, 1))
        append_window(second, [[group(range(22, 42), {"loss": VALUES[20:]}, steps=range(20, 40))]], (22, 41))
        self.last = second.blocks[-1]
        self.second = end(second, [OLD])

    def repair(self) -> list[Step]:
        return list(repair_run(DISK, STORE_ID, self.run.id, self.run.directory, lambda path: False))

    def segments(self) -> list[str]:
        return sorted(name for name in os.listdir(self.run.directory) if parse_segment(name) is not None)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    made = Scene(tmp_path)
    assert verify_run(DISK, made.run.directory).findings == []
    return made


def test_what_was_replaced_serves_again(scene: Scene) -> None:
    """All of it is still there and good: the damaged segment and the others of its writer move aside, nothing is lost."""
    spoil(scene.first, scene.block)
    spoil(scene.second, scene.last)
    (step,) = scene.repair()
    assert step.repaired is not None and (step.repaired.lost, step.repaired.path) == (0, step.path)
    assert scene.segments() == [os.path.basename(scene.old)]
    assert len(os.listdir(os.path.join(scene.run.directory, ASIDE))) == 2
    found = verify_run(DISK, scene.run.directory)
    assert (found.findings, found.gaps, [c.records for c in found.segments]) == ([], [], [41])
    assert scene.repair() == []


def test_what_was_replaced_is_damaged_too(scene: Scene) -> None:
    """Both are repaired, each for itself; the repaired columns do not replace what is still there."""
    spoil(scene.first, scene.block)
    with open(scene.old, "r+b") as file:
        file.seek(os.path.getsize(scene.old) // 2)
        file.write(b"\xff" * 40)
    assert sum(step.repaired is not None for step in scene.repair()) == 2
    assert len(scene.segments()) == 3
    assert verify_run(DISK, scene.run.directory).findings == []
    assert scene.repair() == []


def test_what_was_replaced_is_gone(scene: Scene) -> None:
    """What the columns have lost is a gap with its sequences."""
    os.unlink(scene.old)
    spoil(scene.first, scene.block)
    (step,) = scene.repair()
    assert step.repaired is not None and (step.repaired.lost, step.repaired.records) == (20, 1)
    found = verify_run(DISK, scene.run.directory)
    assert [(gap.first, gap.last, gap.reason) for gap in found.gaps] == [(2, 21, "damage")]
    assert found.findings == []


def test_commands_name_steps_and_keys(scene: Scene) -> None:
    """`stepd verify` says which key at which steps; `repair` how many values are lost, and afterwards it is a gap."""
    os.unlink(scene.old)
    columns_lost(scene.first, scene.block, "loss")
    at = ["--dir", scene.store]
    said = CliRunner().invoke(cli, ["verify", *at])
    assert said.exit_code == 1 and "'loss'" in said.output and "20 values (steps 0–19) skipped" in said.output
    facts = json.loads(CliRunner().invoke(cli, ["verify", "--json", *at]).output)["runs"][0]["damage"][0]
    assert (facts["keys"], facts["values"], facts["step_min"], facts["step_max"]) == (["loss"], 20, 0, 19)
    said = CliRunner().invoke(cli, ["repair", *at])
    assert said.exit_code == 0 and "21 records saved, 0 lost, 20 values lost" in said.output
    said = CliRunner().invoke(cli, ["verify", *at])
    assert said.exit_code == 0 and "gap in run a41f: 20 values of 'loss' (steps 0–19)" in said.output
    assert "20 values of 'loss' (steps 0–19)" in CliRunner().invoke(cli, ["show", "a41f", *at]).output


def test_what_was_repaired_is_compacted(tmp_path: Path) -> None:
    """Afterwards it is still known where the repaired segment's blocks went: nothing of its writer counts as missing."""
    store = make_store(tmp_path)
    run = RunBuilder(store)
    stream = run.stream()
    paths = []
    for _ in range(2):
        for value in VALUES:
            stream.log({"loss": float(value)})
        paths.append(run.seal())
    stream.log({"loss": 0.0})
    run.flush()  # of the writer that is still there
    reader = SegmentReader(DISK, paths[1])
    spoil(paths[1], next(block for block in reader.blocks if block.kind == KIND_ROWS))
    reader.close()
    (step,) = repair_run(DISK, STORE_ID, run.id, run.directory, lambda path: False)
    assert step.repaired is not None and step.repaired.lost == len(VALUES)
    compact_run(DISK, read_store(store), run.directory, kept_seconds=0.0)
    found = verify_run(DISK, run.directory)
    assert (found.findings, [gap.count for gap in found.gaps]) == ([], [len(VALUES)])
    assert len(found.segments) == 2
    run.close()
