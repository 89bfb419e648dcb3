"""daemon.store.rewrite: when a media segment that was rewritten may be removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from daemon.store.replacing import KEPT_SECONDS, remove_replaced
from daemon.store.rewrite import rewrite, sealed_media
from sdk import clock
from sdk.files import DISK, Files
from sdk.files.failing import FailingFiles
from sdk.location import read_store
from tests.builders import RunBuilder, make_store
from tests.media_rig import MediaBuilder

LATER = int((KEPT_SECONDS + 1) * 1e9)


class Scene:
    """A run whose only media segment was rewritten. `old`, `new`: the paths."""

    def __init__(self, tmp_path: Path) -> None:
        store = make_store(tmp_path)
        run = RunBuilder(store)
        media = MediaBuilder(run, run.stream())
        media.blob(b"x" * 20_000, {"media": "m"})
        media.stream.finish()
        media.seal()
        self.directory = run.directory
        sources = sealed_media(DISK, self.directory)
        (self.old,) = (source.path for source in sources)
        report = rewrite(DISK, read_store(store), self.directory, run.id, sources, lambda ref, stored: stored)
        (self.new,) = report.written

    def look(self, later_ns: int, files: Files = DISK) -> tuple[int, bool]:
        """How many replaced segments must wait, and whether the old one is there."""
        waiting = remove_replaced(files, self.directory, clock.wall_ns() + later_ns)
        return waiting, os.path.exists(self.old)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_it_stays_for_its_readers_and_is_then_removed(scene: Scene) -> None:
    """A minute."""
    assert scene.look(0) == (1, True)
    assert scene.look(LATER) == (0, False)
    assert os.path.exists(scene.new)


def test_it_stays_where_the_new_one_is_damaged(scene: Scene) -> None:
    """Every byte of the new one is looked at first: its writer may have died before it was on the disk."""
    with open(scene.new, "r+b") as file:
        file.seek(os.path.getsize(scene.new) // 2)
        file.write(b"?")
    assert scene.look(LATER)[1]


def test_it_stays_where_the_new_name_cannot_be_forced(scene: Scene) -> None:
    """What is only in memory replaces nothing."""
    files = FailingFiles()
    files.refuse("sync_directory")
    assert scene.look(LATER, files)[1]
    files.allow()
    assert not scene.look(LATER, files)[1]
