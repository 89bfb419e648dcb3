"""daemon.compact: a kill or a power loss at any operation of a compaction and of the removal after it."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest

from daemon.compact import work as working
from daemon.compact.work import compact_run
from daemon.store.replacing import KEPT_SECONDS, remove_replaced, sealed
from sdk import clock
from sdk.files import DISK
from sdk.files.failing import FailingFiles
from sdk.files.recording import WRITE, RecordingFiles
from sdk.location import read_store
from sdk.segment.naming import HISTORY
from tests.compacting import Scene, contents
from tests.crash import Fate, build, by_chance, bytes_only, names_only, nothing, safe_from, torn, write_tree, zeros

LATER = int((KEPT_SECONDS + 1) * 1e9)
SEED = 20261121


class Recorded:
    """Three segments that become columns in two files, then one, and what was replaced removed; each operation was noted."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scene = scene = Scene(path / "store")
        stream = scene.run.stream()
        for number in range(3):
            for step in range(20):
                stream.log({"loss": float(step), "name": f"{number}"})
            scene.run.seal()
        stream.finish()
        scene.run.seal()
        self.expected = rows(scene.directory)
        self.files = RecordingFiles(scene.store)
        store = read_store(scene.store)
        with monkeypatch.context() as patch:
            patch.setattr(working, "FILE_BYTES_MAX", 1024)
            patch.setattr(working, "_WINDOW_RAW_BYTES", 1500)
            sources = sealed(DISK, scene.directory, HISTORY)
            assert working.rewrite_rows(self.files, store, scene.directory, sources).files > 1
        remove_replaced(self.files, scene.directory, clock.wall_ns() + LATER)
        compact_run(self.files, store, scene.directory)
        remove_replaced(self.files, scene.directory, clock.wall_ns() + LATER)
        assert len(scene.names()) == 1
        self.operations = self.files.operations
        self.safe = safe_from(self.operations, self.files.known)
        self.directory = os.path.relpath(scene.directory, scene.store)

    def look(self, end: int, power: bool, fate: Fate, what: str, *, goes_on: bool = True) -> None:
        """The state after a crash: all is there at once, and after whoever comes next has gone on.

        Args:
            goes_on: Whether anybody comes: two thirds of the time that a look takes.
        """
        unsafe = [power and self.safe[index] > end for index in range(end)]
        with tempfile.TemporaryDirectory() as root:
            write_tree(build(self.operations[:end], unsafe, fate), root)
            directory = os.path.join(root, self.directory)
            assert rows(directory) == self.expected, what
            if not goes_on:
                return
            if end % 2:
                remove_replaced(DISK, directory, clock.wall_ns() + LATER)
                assert rows(directory) == self.expected, what
            compact_run(DISK, read_store(root), directory, kept_seconds=0.0)
            assert rows(directory) == self.expected, what
            left = {name for name in os.listdir(directory) if name.startswith(HISTORY)}
            assert left == {os.path.basename(segment.path) for segment in sealed(DISK, directory, HISTORY)}, what
            assert len(left) == 1, what


def rows(directory: str) -> dict[str, Any]:
    """What the reader says, with nothing missing and nothing damaged."""
    found = contents(directory)
    assert found["damage"] == [] and found["facts"]["gaps"] == []
    return found


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return Recorded(tmp_path, monkeypatch)


def test_killed_anywhere(recorded: Recorded) -> None:
    """Everything its calls did is there, and of the last write any part."""
    for end in range(recorded.files.known, len(recorded.operations) + 1):
        recorded.look(end, False, nothing, f"killed after {end}")
        last = recorded.operations[end - 1]
        if last.kind == WRITE and end > recorded.files.known:
            recorded.operations[end - 1] = torn(last, len(last.data) // 2)
            recorded.look(end, False, nothing, f"killed within {end}", goes_on=not end % 4)
            recorded.operations[end - 1] = last


def test_power_lost_anywhere(recorded: Recorded) -> None:
    """What was forced is there, of everything else any subset."""
    draw = random.Random(SEED)
    for end in range(recorded.files.known, len(recorded.operations) + 1):
        fates = (nothing, names_only, bytes_only, zeros, by_chance(draw))
        for fate in draw.sample(fates, 1):
            recorded.look(end, True, fate, f"power lost after {end}, seed {SEED}", goes_on=not draw.randrange(3))


@pytest.mark.parametrize("operation", ["create", "append", "sync", "rename", "sync_directory"])
def test_a_disk_that_refuses(tmp_path: Path, operation: str) -> None:
    """Nothing is replaced, and when the disk is well again everything is."""
    scene = Scene(tmp_path)
    stream = scene.run.stream()
    stream.log({"a": 1})
    stream.finish()
    scene.run.seal()
    before, names = scene.read(), scene.names()
    files = FailingFiles()
    files.refuse(operation)
    with pytest.raises(OSError):
        scene.compact(files=files)
    assert set(names) <= set(scene.names()) and scene.read() == before
    scene.compact(kept_seconds=0.0)
    assert scene.read() == before
