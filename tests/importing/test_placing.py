"""daemon.importing.placing: an import that is killed anywhere, and made again, is one whole run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from daemon.importing.bringing import bring
from daemon.importing.placing import Inbox
from daemon.importing.source import Found, Source
from daemon.importing.writing import ImportedRun
from sdk.files import Disk
from sdk.location import make_store
from sdk.reader import Run, Store
from sdk.values.image import Image


class Killed(BaseException):
    """The process ends here: nothing more that it does reaches the disk."""


class Dying(Disk):
    """A disk under a process that is killed before one of its operations."""

    def __init__(self, operations: int) -> None:
        super().__init__()
        self.left = operations

    def _next(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def create(self, path: str) -> Any:
        self._next()
        return super().create(path)

    def make_directory(self, path: str) -> None:
        self._next()
        super().make_directory(path)

    def rename(self, source: str, target: str) -> None:
        self._next()
        super().rename(source, target)

    def remove_tree(self, path: str) -> None:
        self._next()
        super().remove_tree(path)

    def sync_directory(self, path: str) -> None:
        self._next()
        super().sync_directory(path)


class Made(Source):
    """A source of one run with so many rows."""

    scheme = "made"

    def __init__(self, rows: int) -> None:
        super().__init__("")
        self.rows = rows

    def runs(self) -> list[Found]:
        return [Found("made1", "made", "tests", "made:", "made", str(self.rows), 1, self.rows)]

    def read(self, found: Found, run: ImportedRun, moved: Any) -> None:
        steps = numpy.arange(self.rows, dtype=numpy.int64)
        run.rows(steps, steps + 1_000_000, {"loss": steps / 2, "count": steps})
        run.row(self.rows, 10**15, {"picture": Image(numpy.zeros((200, 200, 3), numpy.uint8)), "text": "end"})
        run.line(10**15, "done")
        run.facts({"config": {"rows": self.rows}})
        moved(self.rows)


def bring_all(store: str, rows: int, files: Disk) -> list[Any]:
    source = Made(rows)
    return list(bring(make_store(store), source, source.runs(), files=files))


def is_whole(run: Run, streams: int = 3) -> int:
    """How many rows it has; everything of them is there."""
    rows = run.config["rows"]
    assert len(run.series("loss")) == rows
    assert run.state == "finished"
    assert [line.text for line in run.logs()] == ["done"]
    (last,) = run.rows(keys=["picture"])
    assert last["picture"].to_pil().size == (200, 200)
    assert len(run.streams) == streams
    return int(rows)


def crashes(store: str, saved: str, rows: int) -> Iterator[None]:
    """The store behind an import that was killed before each of its operations in turn."""
    for operations in range(1000):
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(saved, store)
        try:
            bring_all(store, rows, Dying(operations))
        except Killed:
            yield
            continue
        assert operations > 5
        return


@pytest.mark.parametrize("before", [0, 5, 15])
def test_killed_anywhere_and_made_again(tmp_path: Path, before: int) -> None:
    """Behind each crash there is the old run, the new one, or, where it was not there before, none; then the import makes it whole."""
    store, saved = str(tmp_path / "store"), str(tmp_path / "saved")
    make_store(saved)
    if before:
        bring_all(saved, before, Disk())
    seen = set()
    for _ in crashes(store, saved, 9):
        with Inbox(make_store(store)):  # whoever imports next puts back what was between two places
            runs = Store(store).runs()
        assert len(runs) == (1 if before else len(runs))
        seen.update(is_whole(run) for run in runs)
        (one,) = bring_all(store, 9, Disk())
        assert not one.lost
        (run,) = Store(store).runs()
        assert is_whole(run) == 9
        assert os.listdir(os.path.join(store, "importing")) == ["lock"]
        if before > 9:  # what the source no longer has is in the trash, whenever it was killed
            (old,) = os.listdir(os.path.join(store, "trash"))
            assert is_whole(Run(os.path.join(store, "trash", old))) == before
    assert seen == ({before, 9} if before else {9})


def test_a_source_that_has_become_smaller_leaves_the_old_run_in_the_trash(tmp_path: Path) -> None:
    """What it had may be nowhere else."""
    store = str(tmp_path / "store")
    bring_all(store, 9, Disk())
    bring_all(store, 4, Disk())
    assert is_whole(Store(store).run("made1")) == 4
    (name,) = os.listdir(tmp_path / "store" / "trash")
    assert is_whole(Run(str(tmp_path / "store" / "trash" / name))) == 9


class Editing(Disk):
    """A disk on which somebody sets facts of a run just before it is put aside."""

    def rename(self, source: str, target: str) -> None:
        if target.endswith(".old"):
            Run(source).set(name="at the last moment")
        super().rename(source, target)


def test_what_is_set_while_a_run_is_replaced_is_kept(tmp_path: Path) -> None:
    """An edit that comes between the carrying of edits and the new run's taking its place; none is carried twice."""
    store = str(tmp_path / "store")
    bring_all(store, 4, Disk())
    Store(store).run("made1").set(tags=["kept"])
    bring_all(store, 9, Editing())
    run = Store(store).run("made1")
    assert (run.name, run.tags, is_whole(run, streams=5)) == ("at the last moment", ["kept"], 9)
