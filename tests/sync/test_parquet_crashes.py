"""daemon.sync.targets.parquet: a kill, a power loss or a failing disk at any operation on a dataset's directory."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy
import pytest

import sdk
from daemon.sync.cursor import Cursor, cursor_path
from daemon.sync.passage import Passage
from daemon.sync.place import parse
from daemon.sync.target import CURSORS
from daemon.sync.targets.parquet import ParquetTarget
from daemon.sync.targets.parquet.roots import Directory
from sdk.files import DISK, Files
from sdk.files.failing import FAULTS, FailingFiles
from sdk.files.recording import WRITE, RecordingFiles
from sdk.reader import open_store
from tests.builders import RunBuilder, make_store
from tests.crash import Fate, build, by_chance, nothing, safe_from, write_tree, zeros
from tests.media_rig import MediaBuilder
from tests.sync.parquet_rig import read

RUN = "a41f"
SEED = 20261121
# Some hundred small trees: a disk that forces them would take its time.
MEMORY = "/dev/shm"


def carry(store: str, root: str, files: Files = DISK) -> None:
    """One pass of a new process."""
    target = ParquetTarget(parse(f"parquet:{root}"))
    target._root = Directory(root, files)
    target.check()
    cursor = Cursor(cursor_path(os.path.join(root, CURSORS), RUN), RUN, target.place.text, files)
    cursor.read()
    target.carry(Passage(open_store(store).run(RUN), cursor))


def told(root: str) -> dict[str, Any]:
    """What a reader finds: every file, those of rows and of the run with their rows, pictures with their bytes."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in Path(root).rglob("*") if path.is_file() and CURSORS not in path.parts):
        found[str(path.relative_to(root))] = path.read_bytes() if path.suffix == ".png" else None
        if path.suffix == ".parquet":
            found[str(path.relative_to(root))] = read(path).to_pylist()
    return found


def grow(run: RunBuilder, number: int) -> None:
    """One of three parts of a run; the last one ends it."""
    if number == 0:
        run.stream()
        run.stream("system").log({"cpu": 0.5})
    picture = {"picture": sdk.Image(numpy.zeros((2, 2), numpy.uint8))} if number == 1 else {}
    MediaBuilder(run, run.streams[0]).log({"loss": float(number), **picture})
    if number == 2:
        for stream in run.streams:
            stream.finish()
    run.flush()


class Carried:
    """A run that grows and ends, with a pass after each part; every operation on the dataset was noted."""

    def __init__(self, path: Path) -> None:
        self.store = make_store(path)
        root = path / "set"
        root.mkdir()
        files = RecordingFiles(str(root))
        run = RunBuilder(self.store, RUN)
        for number in range(3):
            grow(run, number)
            carry(self.store, str(root), files)
        run.close()
        self.expected = told(str(root))
        self.operations, self.known = files.operations, files.known
        self.safe = safe_from(self.operations, files.known)

    def look(self, end: int, *, power: bool, fate: Fate, what: str) -> None:
        """After a crash one more pass makes the dataset what it would have been, and nothing else lies there."""
        cut = self.operations[:end]
        tree = build(cut, [power and safe > end for safe in self.safe[:end]], fate)
        with tempfile.TemporaryDirectory(dir=MEMORY) as root:
            write_tree(tree, root)
            carry(self.store, root)
            text = f"{what} after {end} of {len(self.operations)} operations"
            assert told(root) == self.expected, text
            assert not list(Path(root, CURSORS).glob(f"{RUN}-*.draft")), text

    def ends(self, draw: random.Random) -> list[int]:
        """Where to crash: after every operation, but only after some of those that fill a draft."""
        last = len(self.operations)
        return [
            end
            for end in range(self.known, last + 1)
            if end == last or self.operations[end].kind != WRITE or draw.random() < 0.03
        ]


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Carried:
    return Carried(tmp_path_factory.mktemp("carried"))


def test_killed_at_any_operation(carried: Carried) -> None:
    """Whatever was done before a SIGKILL, the next pass makes the dataset equal to that of an undisturbed sync."""
    for end in carried.ends(random.Random(SEED)):
        carried.look(end, power=False, fate=nothing, what="killed")


def test_power_lost_at_any_operation(carried: Carried) -> None:
    """What was not forced may be gone, zeros, or there in parts: nothing is committed that was not forced."""
    print(f"seed {SEED}")
    draw = random.Random(SEED)
    for end in carried.ends(draw)[::2]:
        what = draw.choice(("nothing", "zeros", "chance"))
        fate = {"nothing": nothing, "zeros": zeros, "chance": by_chance(draw)}[what]
        carried.look(end, power=True, fate=fate, what=f"power lost, {what}")


def test_what_is_published_survives_a_loss_of_power(tmp_path: Path) -> None:
    """Its bytes, its name and the names of all directories above it are forced before anybody is told."""
    root = tmp_path / "set"
    root.mkdir()
    files = RecordingFiles(str(root))
    there = Directory(str(root), files)
    draft = there.draft(RUN)
    draft.write(b"bytes")
    there.publish(draft, "rows/project=p/run=r/x.parquet")
    there.put("views.sql", b"text")
    there.put_later("media/project=p/run=r/y.png", b"picture")
    done = files.operations
    tree = build(done, [safe > len(done) for safe in safe_from(done, files.known)], nothing)
    assert tree["rows/project=p/run=r/x.parquet"] == b"bytes"
    assert tree["media/project=p/run=r/y.png"] == b"picture"
    assert tree["views.sql"] == b"text"
    assert not [name for name in tree if name.endswith(".draft")]


@pytest.mark.parametrize("name", ["ENOSPC", "EIO", "short write"])
def test_a_disk_that_fails_once(carried: Carried, name: str) -> None:
    """An operation that fails makes the pass fail or does not matter; the next one makes the dataset whole."""
    (fault,) = (fault for fault in FAULTS if fault.name == name)
    with tempfile.TemporaryDirectory(dir=MEMORY) as memory:
        for at in range(1, 60, 7):
            files = FailingFiles()
            root = os.path.join(memory, f"set{at}")
            files.fail(fault, at)
            with contextlib.suppress(Exception):
                carry(carried.store, root, files)
            carry(carried.store, root)
            found, expected = told(root), carried.expected
            assert {name: rows for name, rows in found.items() if not name.startswith("rows")}.keys() == {
                name for name in expected if not name.startswith("rows")
            }
            assert [row["loss"] for name, rows in found.items() if name.startswith("rows") for row in rows] == [
                0.0,
                1.0,
                2.0,
            ]
