from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from daemon.keep import Abandoned, find_work
from daemon.keep.files import work
from sdk import runfiles
from sdk.files.failing import FailingFiles
from sdk.location import StoreIdentity
from sdk.reader import open_store
from sdk.segment.naming import run_path
from tests.builders import make_run, make_store


class Kept:
    """A store with one run, and what is to be copied into it."""

    def __init__(self, path: Path) -> None:
        self.store = StoreIdentity(make_store(path), bytes(16), True)
        make_run(self.store.path, "a41f", [{"loss": 1.0}])
        self.sources = path / "sources"
        self.sources.mkdir()
        self.directory = os.path.join(run_path(self.store.path, "a41f"), "files")

    def job(self, **files: str) -> dict[str, Any]:
        """A job to keep files of these texts, under names that end with .bin."""
        entries = []
        for name, text in files.items():
            source = self.sources / name
            source.write_text(text)
            status = source.stat()
            entries.append(
                {
                    "source": str(source),
                    "name": f"ck/{name}.bin",
                    "size": status.st_size,
                    "modified_ns": status.st_mtime_ns,
                }
            )
        return {"run": "a41f", "files": entries}

    def do(self, body: dict[str, Any], is_wanted: Any = lambda: True, **options: Any) -> None:
        work(self.store, body, is_wanted, **options)

    @property
    def texts(self) -> dict[str, str]:
        return {kept.name: Path(self.directory, kept.name).read_text() for kept in runfiles.walk(self.directory)}


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    monkeypatch.setattr(runfiles, "BUFFER_BYTES", 4)
    return Kept(tmp_path)


def test_what_a_job_names_is_copied(kept: Kept) -> None:
    """Whole, private, with the time that its source had; the second time nothing is left to do."""
    body = kept.job(a="0123456789", b="")
    assert find_work("files") is work
    kept.do(body)
    assert kept.texts == {"ck/a.bin": "0123456789", "ck/b.bin": ""}
    status = os.stat(os.path.join(kept.directory, "ck", "a.bin"))
    assert status.st_mode & 0o777 == 0o600 and abs(status.st_mtime_ns - body["files"][0]["modified_ns"]) < 10_000
    disk = FailingFiles()
    disk.refuse("create")
    kept.do(body, files=disk)


def test_a_source_that_is_gone_or_is_no_file_is_passed_over(kept: Kept) -> None:
    """The others are copied; a name that leads out of the run's files is none."""
    body = kept.job(a="a", b="b", c="c", d="d")
    os.unlink(kept.sources / "a")
    os.unlink(kept.sources / "b")
    os.mkfifo(kept.sources / "b")
    body["files"][2]["name"] = "../../../c"
    kept.do(body)
    assert kept.texts == {"ck/d.bin": "d"}


def test_a_source_that_changes_while_it_is_copied_shows(kept: Kept) -> None:
    """The copy has the time of the change, so whoever knows what was saved sees that it is something else."""
    body = kept.job(a="0123456789")
    source = kept.sources / "a"

    def look() -> bool:
        os.utime(source, ns=(0, body["files"][0]["modified_ns"] + 10**9))
        return True

    kept.do(body, look)
    status = os.stat(os.path.join(kept.directory, "ck", "a.bin"))
    assert status.st_mtime_ns - body["files"][0]["modified_ns"] > 10**8


def test_a_run_that_was_removed_stays_removed(kept: Kept) -> None:
    """Its directory is not made again."""
    body = {**kept.job(a="a"), "run": "gone"}
    kept.do(body)
    assert not os.path.exists(run_path(kept.store.path, "gone"))


def test_a_job_that_is_given_up_leaves_nothing_half(kept: Kept) -> None:
    """In the middle of a file, or between two; done again it is whole."""
    body = kept.job(a="0123456789", b="b")
    for looks in range(1, 5):
        left = [True] * looks
        with pytest.raises(Abandoned):
            kept.do(body, lambda left=left: bool(left and left.pop()))
        assert all(text == "0123456789" for text in kept.texts.values())
        assert not [name for _, _, names in os.walk(kept.directory) for name in names if name.endswith(".draft")]
    kept.do(body)
    assert kept.texts == {"ck/a.bin": "0123456789", "ck/b.bin": "b"}


def test_what_a_killed_keeper_left_is_removed(kept: Kept) -> None:
    """A draft that nobody could remove is found by whoever does the job again: half a checkpoint may be large."""
    body = kept.job(a="0123456789")
    disk = FailingFiles()
    disk.refuse("remove")
    left = [True, True]
    with pytest.raises(Abandoned):
        kept.do(body, lambda: bool(left and left.pop()), files=disk)
    assert len(os.listdir(os.path.join(kept.directory, "ck"))) == 1
    kept.do(body)
    assert os.listdir(os.path.join(kept.directory, "ck")) == ["a.bin"]


@pytest.mark.parametrize("operation", ["create", "append", "rename", "close", "make_directory", "free_bytes"])
def test_a_disk_that_refuses_makes_the_job_wait(kept: Kept, operation: str) -> None:
    """The error reaches the keeper, no half file stands anywhere, and it is done when the disk takes it."""
    body = kept.job(a="0123456789")
    disk = FailingFiles()
    disk.refuse(operation)
    with pytest.raises(OSError):
        kept.do(body, files=disk)
    assert kept.texts == {}
    disk.allow()
    kept.do(body, files=disk)
    assert kept.texts == {"ck/a.bin": "0123456789"}


def test_the_last_bytes_of_a_disk_are_left_to_the_training(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that would take them waits."""
    disk = FailingFiles()
    monkeypatch.setattr(disk, "free_bytes", lambda path: 1000)
    with pytest.raises(OSError, match="do not fit"):
        kept.do(kept.job(a="a"), files=disk)


def test_a_reader_tells_what_waits_from_what_is_missing(kept: Kept, tmp_path: Path) -> None:
    """By the facts that the trainer left, what is there, and whether a job still waits."""
    body = kept.job(a="aa", b="b", c="c")
    run = make_run(kept.store.path, "b7c2", [])
    told = {entry["name"]: {**entry, "policy": "now"} for entry in body["files"]}
    told["../../x"] = told[5] = told["odd"] = 7  # type: ignore[index]
    run.stream().meta({"file": told})
    run.seal()
    keeping = Path(kept.store.path, "keeping")
    keeping.mkdir()
    job = keeping / "00000000000000000001-0000000000000001.unknown.files.json"
    job.write_text("{}")
    stored = open_store(kept.store.path).run("b7c2")
    assert {file.name: file.state for file in stored.files()}["ck/a.bin"] == "waiting"
    os.unlink(kept.sources / "b")
    (kept.sources / "c").write_text("later")
    kept.do({**body, "run": "b7c2"})
    job.unlink()
    Path(stored.directory, "files", "own.txt").write_text("own")
    found = {file.name: file for file in stored.files()}
    assert {name: file.state for name, file in found.items()} == {
        "ck/a.bin": "kept", "ck/b.bin": "missing", "ck/c.bin": "changed", "own.txt": "kept", "odd": "missing", "5": "missing",
    }  # fmt: skip
    assert found["ck/b.bin"].source == str(kept.sources / "b") and found["ck/b.bin"].size == 1
    with found["ck/a.bin"].open() as file:
        assert file.read() == b"aa"
    with pytest.raises(Exception, match="which is missing"):
        found["ck/b.bin"].open()
