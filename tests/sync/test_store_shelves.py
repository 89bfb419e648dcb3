"""daemon.sync.targets.store: what lies beside the segments, a run's files and artifacts."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from sdk import runfiles
from sdk.artifacts.artifact import Artifact
from sdk.artifacts.format import drafts_path, object_path
from sdk.artifacts.making import make
from sdk.artifacts.shelf import Shelf
from sdk.errors import DamageError, Error
from sdk.files.failing import FAULTS, FailingFiles
from sdk.location import read_store
from sdk.reader.run import Run
from tests.builders import RunBuilder
from tests.store_rig import Road, store_at

RUN = "a41f"


class Node:
    """A store with one run, whose files and artifacts are made here."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, run: str = RUN) -> None:
        self.store = store_at(path)
        self.path = path
        self.run = RunBuilder(self.store, run)
        self.run.stream()
        self._bodies: list[dict[str, Any]] = []
        monkeypatch.setattr("sdk.artifacts.artifact.put_job", self._put)
        self._monkeypatch = monkeypatch

    def _put(self, store: object, kind: str, body: dict[str, Any]) -> str:
        self._bodies.append(body)
        return "/nowhere"

    def version(self, name: str, text: str, *, large: bool = False) -> str:
        """Logs a version of one file; its digest."""
        path = self.path / "weights.bin"
        path.write_bytes(text.encode() * (700_000 if large else 1))
        artifact = Artifact(name, type="model")
        artifact.add_file(str(path), name="weights.bin")
        self._monkeypatch.setattr("sdk.artifacts.artifact.put_job", self._put)
        about = {"run": self.run.id, "run_name": "calm", "project": "digits"}
        artifact._log(read_store(self.store), about, ["best"], None)
        body = self._bodies.pop()
        made = make(self.store, body)
        self.run.streams[0].meta({"artifact": {body["id"]: {"how": "logged", "name": name, "job": body["id"]}}})
        self.run.flush()
        return Shelf(self.store).entries(Shelf(self.store).head(name, made.number))[0].digest

    def file(self, name: str, text: str, modified: float) -> None:
        path = os.path.join(runfiles.files_path(self.run.directory), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")
        os.utime(path, (modified, modified))


def files_of(directory: str) -> dict[str, str]:
    root = runfiles.files_path(directory)
    return {kept.name: Path(root, kept.name).read_text(encoding="utf-8") for kept in runfiles.walk(root)}


class TestFiles:
    """The files of a run."""

    def test_the_youngest_stays_in_any_order(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two hosts kept a file of the same name: the one that was changed last is there, and of equally old ones the larger."""
        nodes = [Node(tmp_path / f"{n}", monkeypatch) for n in range(2)]
        for number, node in enumerate(nodes):
            node.file("code/train.py", f"of {number}", 1e9 + number)
            node.file("requirements.txt", "x" * (5 - number), 1e9)
            node.file(f"only {number}", "here", 1e9)
            node.run.flush()
        for order in ([0, 1], [1, 0, 1]):
            target = str(tmp_path / f"all{len(order)}")
            for number in order:
                Road(nodes[number].store, target).carry(RUN)
            found = files_of(Road(nodes[0].store, target).there(RUN))
            assert found == {"code/train.py": "of 1", "requirements.txt": "xxxxx", "only 0": "here", "only 1": "here"}

    def test_what_is_there_is_not_copied_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file of the same size and time is left alone; one that was changed replaces it."""
        node = Node(tmp_path / "here", monkeypatch)
        node.file("notes.txt", "one", 1e9)
        node.run.flush()
        road = Road(node.store, str(tmp_path / "there"))
        road.carry(RUN)
        before = road.changes
        road.carry(RUN)
        assert road.changes == before
        node.file("notes.txt", "two", 1e9 + 5)
        road.carry(RUN)
        assert files_of(road.there(RUN)) == {"notes.txt": "two"}

    def test_a_link_out_of_the_target_is_not_followed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Somebody's link in the target leads nowhere of ours: the run fails and says so, its rows are there."""
        node = Node(tmp_path / "here", monkeypatch)
        node.file("code/train.py", "print()", 1e9)
        node.run.flush()
        road = Road(node.store, str(tmp_path / "there"))
        (tmp_path / "elsewhere").mkdir()
        os.makedirs(runfiles.files_path(road.there(RUN)))
        os.symlink(tmp_path / "elsewhere", os.path.join(runfiles.files_path(road.there(RUN)), "code"))
        with pytest.raises(DamageError, match="link out of"):
            road.carry(RUN)
        assert os.listdir(tmp_path / "elsewhere") == []
        assert Run(road.there(RUN)).id == RUN


class TestArtifacts:
    """Versions that a run logged."""

    def test_a_version_is_the_same_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Number, digest, aliases and bytes; a second pass changes nothing."""
        node = Node(tmp_path / "here", monkeypatch)
        digest = node.version("net", "a", large=True)
        road = Road(node.store, str(tmp_path / "there"))
        road.carry(RUN)
        assert Shelf(road.target).versions("net") == Shelf(node.store).versions("net")
        assert Path(object_path(road.target, digest)).read_bytes() == b"a" * 700_000
        (logged,) = Run(road.there(RUN)).logged_artifacts()
        assert (logged.name, logged.digest) == ("net:v0", Shelf(node.store).head("net", 0).digest)
        before = road.changes
        road.carry(RUN)
        assert road.changes == before
        assert os.listdir(drafts_path(road.target)) == []

    def test_two_stores_number_for_themselves(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both have a v0 of one name: the second to come gets the next number, each run still finds its own, twice too."""
        nodes = [Node(tmp_path / f"{n}", monkeypatch, run=f"run{n}") for n in range(2)]
        digests = [node.version("net", f"of {number}") for number, node in enumerate(nodes)]
        target = str(tmp_path / "all")
        for number in (0, 1, 0, 1):
            Road(nodes[number].store, target).carry(f"run{number}")
        assert Shelf(target).numbers("net") == [0, 1]
        for number in range(2):
            (logged,) = Run(Road(nodes[number].store, target).there(f"run{number}")).logged_artifacts()
            assert [entry.digest for entry in logged.manifest.entries.values()] == [digests[number]]

    def test_what_was_said_later_comes_later(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Marks are carried whenever they are made, with the number that the version has there."""
        nodes = [Node(tmp_path / f"{n}", monkeypatch, run=f"run{n}") for n in range(2)]
        for number, node in enumerate(nodes):
            node.version("net", f"of {number}")
            Road(node.store, str(tmp_path / "all")).carry(f"run{number}")
        stored = Artifact._stored(Shelf(nodes[1].store), Shelf(nodes[1].store).find("net:v0"))
        stored.description = "the better one"
        stored.save()
        nodes[1].run.seal()
        Road(nodes[1].store, str(tmp_path / "all")).carry("run1")
        found = Shelf(str(tmp_path / "all")).versions("net")
        assert [head.description for head in found] == [None, "the better one"]

    def test_bytes_that_rotted_are_not_carried(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An object that is not what its digest says fails the run, is named, and leaves no version there."""
        node = Node(tmp_path / "here", monkeypatch)
        digest = node.version("net", "a", large=True)
        Path(object_path(node.store, digest)).write_bytes(b"rot")
        road = Road(node.store, str(tmp_path / "there"))
        with pytest.raises(DamageError, match="net:v0"):
            road.carry(RUN)
        assert Shelf(road.target).numbers("net") == []
        assert os.listdir(drafts_path(road.target)) == []
        assert Run(road.there(RUN)).id == RUN


def test_killed_at_any_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From an operation on nothing is done any more: what is there is whole, and the next pass brings the rest, once."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as root:
        node = Node(Path(root, "here"), monkeypatch)
        digest = node.version("net", "a", large=True)
        node.version("net", "b")
        node.file("code/train.py", "print()", 1e9)
        node.run.flush()
        (fault,) = (fault for fault in FAULTS if fault.name == "EIO")
        at, fired = 0, 1
        while fired:
            at += 2
            files = FailingFiles()
            road = Road(node.store, os.path.join(root, f"there{at}"), files)
            files.fail(fault, at, forever=True)
            with contextlib.suppress(OSError, Error):
                road.carry(RUN)
            fired = files.fired
            for head in Shelf(road.target).versions("net") if os.path.exists(road.target) else ():
                for entry in Shelf(road.target).entries(head):
                    assert Path(object_path(road.target, entry.digest)).exists(), f"at {at}"
            Road(node.store, road.target).carry(RUN)
            assert Shelf(road.target).versions("net") == Shelf(node.store).versions("net"), f"at {at}"
            assert Path(object_path(road.target, digest)).read_bytes() == b"a" * 700_000
            assert files_of(road.there(RUN)) == {"code/train.py": "print()"}, f"at {at}"
            shutil.rmtree(road.target)
        assert at > 50
