"""daemon.store.rewrite: a kill or a power loss at any operation of a rewriting and of the removal after it."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.store import rewrite as rewriting
from daemon.store.replacing import KEPT_SECONDS, remove_drafts, remove_replaced
from daemon.store.rewrite import sealed_media
from sdk import clock
from sdk.files import DISK
from sdk.files.failing import FailingFiles
from sdk.files.recording import WRITE, RecordingFiles
from sdk.location import read_store
from sdk.segment.naming import MEDIA
from tests.crash import Fate, build, by_chance, bytes_only, names_only, nothing, safe_from, torn, write_tree, zeros
from tests.rewriting import SMALL_CHUNK, Scene, as_it_is, small_chunks

LATER = int((KEPT_SECONDS + 1) * 1e9)
SEED = 20261121


class Recorded:
    """Two segments that become one or several, once more, and what was replaced removed; each operation was noted."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        small_chunks(monkeypatch)
        monkeypatch.setattr(rewriting, "FILE_BYTES_MAX", 3 * SMALL_CHUNK)
        self.scene = scene = Scene(tmp_path / "store")
        for number in range(3):
            scene.put(bytes([number + 1]) * (2 * SMALL_CHUNK + number))
            scene.seal()
        scene.media.stream.finish()
        scene.run.seal()
        self.files = RecordingFiles(scene.store)
        scene.encode(files=self.files)
        remove_replaced(self.files, scene.directory, clock.wall_ns())
        scene.rewrite(files=self.files)
        remove_replaced(self.files, scene.directory, clock.wall_ns() + LATER)
        assert scene.trouble() == []
        self.operations = self.files.operations
        self.safe = safe_from(self.operations, self.files.known)
        self.directory = os.path.relpath(scene.directory, scene.store)

    def look(self, end: int, power: bool, fate: Fate, what: str) -> None:
        """The state after a crash: all is there at once, and after whoever comes next has tidied up and gone on."""
        done = self.operations[:end]
        unsafe = [power and self.safe[index] > end for index in range(end)]
        with tempfile.TemporaryDirectory() as root:
            write_tree(build(done, unsafe, fate), root)
            directory = os.path.join(root, self.directory)
            assert self.scene.trouble(directory) == [], what
            remove_drafts(DISK, directory)
            remove_replaced(DISK, directory, clock.wall_ns() + LATER)
            assert self.scene.trouble(directory) == [], what
            sources = sealed_media(DISK, directory)
            rewriting.rewrite(DISK, read_store(root), directory, self.scene.run.id, sources, as_it_is)
            remove_replaced(DISK, directory, clock.wall_ns() + LATER)
            assert self.scene.trouble(directory) == [], what
            left = {name for name in os.listdir(directory) if name.startswith(MEDIA)}
            assert left == {os.path.basename(segment.path) for segment in sealed_media(DISK, directory)}, what


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    made = Recorded(tmp_path, monkeypatch)
    yield made
    made.scene.close()


def test_killed_anywhere(recorded: Recorded) -> None:
    """Everything its calls did is there, and of the last write any part."""
    for end in range(recorded.files.known, len(recorded.operations) + 1):
        recorded.look(end, False, nothing, f"killed after {end}")
        last = recorded.operations[end - 1]
        if last.kind == WRITE and end > recorded.files.known:
            recorded.operations[end - 1] = torn(last, len(last.data) // 2)
            recorded.look(end, False, nothing, f"killed within {end}")
            recorded.operations[end - 1] = last


def test_power_lost_anywhere(recorded: Recorded) -> None:
    """What was forced is there, of everything else any subset: the old segments are not gone before the new ones are safe."""
    draw = random.Random(SEED)
    for end in range(recorded.files.known, len(recorded.operations) + 1):
        for fate in (nothing, names_only, bytes_only, zeros, by_chance(draw)):
            recorded.look(end, True, fate, f"power lost after {end}, seed {SEED}")


def test_a_failed_fsync_is_final(tmp_path: Path) -> None:
    """What could not be forced never gets its name, although the disk lets nobody remove it and a later fsync says yes."""
    scene = Scene(tmp_path)
    scene.put(b"x" * 100)
    scene.seal()
    files = FailingFiles()
    files.refuse("sync", "remove")
    with pytest.raises(OSError):
        scene.rewrite(files=files)
    assert len(scene.drafts()) == 1
    remove_replaced(DISK, scene.directory, clock.wall_ns() + LATER)
    assert len(scene.names()) == 2
    remove_drafts(DISK, scene.directory)
    assert scene.drafts() == [] and scene.trouble() == []
    scene.close()
