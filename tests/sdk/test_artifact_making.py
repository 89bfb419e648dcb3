"""sdk.artifacts.making: a version is there whole or not at all, whatever is killed, refused or lost while it is made."""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sdk import platform
from sdk._keeping import Abandoned
from sdk.artifacts import making, staging
from sdk.artifacts.artifact import Artifact
from sdk.artifacts.format import drafts_path, object_path, staging_path
from sdk.artifacts.making import make
from sdk.artifacts.shelf import Shelf
from sdk.files import DISK, File
from sdk.files.failing import FAULTS, FailingFiles
from sdk.files.over import FileOver, FilesOver
from sdk.files.recording import WRITE, RecordingFiles
from sdk.location import StoreIdentity, make_store
from tests.crash import Fate, build, by_chance, names_only, nothing, safe_from, torn, write_tree, zeros

SEED = 20261121
# Some hundred small trees: a disk that others force meanwhile would take its time.
MEMORY = "/dev/shm"
# What counts as large here.
SMALL, LARGE = 64, 1000


class UnforcedFile(FileOver):
    def sync(self) -> None:
        """Nothing."""


class Unforced(FilesOver):
    """A disk for what is done a thousand times and will not see a power loss: nothing waits for it."""

    def create(self, path: str) -> File:
        return UnforcedFile(super().create(path))

    def open(self, path: str, *, write: bool = False) -> File:
        return UnforcedFile(super().open(path, write=write))

    def sync_directory(self, path: str) -> None:
        """Nothing."""


class Scene:
    """A store, and jobs that are made here and not put anywhere.

    Attributes:
        contents: Path in the artifact -> bytes, of the artifact that `body` is about.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.store: StoreIdentity = make_store(str(root / "store"))
        monkeypatch.setenv("STEPD_DIR", self.store.path)
        monkeypatch.setattr("sdk.artifacts.artifact.put_job", self._put)
        monkeypatch.setattr(staging, "SMALL_BYTES_MAX", SMALL)
        monkeypatch.setattr(making, "_CHUNK_BYTES", LARGE // 3)
        self.contents: dict[str, bytes] = {}
        self.body: dict[str, Any] = {}

    def _put(self, store: StoreIdentity, kind: str, body: dict[str, Any]) -> str:
        self.body = body
        return "/nowhere"

    def write(self, name: str, data: bytes) -> str:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return str(path)

    def job(self, contents: dict[str, bytes], name: str = "data") -> dict[str, Any]:
        """The job of an artifact of these files."""
        self.contents = contents
        artifact = Artifact(name, "dataset")
        for path, data in contents.items():
            artifact.add_file(self.write(f"source/{path}", data), path)
        artifact._log(self.store, {}, ["best"], None)
        return self.body

    def check(self, store: str, number: int) -> None:
        """The version is there, with every byte."""
        shelf = Shelf(store)
        entries = shelf.entries(shelf.head("data", number))
        assert [entry.path for entry in entries] == sorted(self.contents)
        for entry in entries:
            assert entry.trouble == "", entry
            assert Path(object_path(store, entry.digest)).read_bytes() == self.contents[entry.path]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    staging._cannot.clear()
    yield Scene(tmp_path, monkeypatch)
    staging._cannot.clear()


def test_small_and_large_files_become_objects(scene: Scene) -> None:
    """Once for each content, named by its SHA-256; nothing is left of staging and drafts."""
    contents = {"a": b"one", "b/c": b"one", "b/d": b"", "large": os.urandom(LARGE)}
    made = make(scene.store.path, scene.job(contents))
    assert made == making.Made("data", 0, True)
    scene.check(scene.store.path, 0)
    head = Shelf(scene.store.path).find("data:best")
    assert (head.size, head.file_count, head.type) == (LARGE + 6, 4, "dataset")
    found = [path for path in Path(scene.store.path, "artifacts", "objects").rglob("*") if path.is_file()]
    assert {path.name for path in found} == {hashlib.sha256(data).hexdigest() for data in contents.values()}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in found)
    assert os.listdir(staging_path(scene.store.path)) == []
    assert os.listdir(drafts_path(scene.store.path)) == []


def test_a_job_done_twice_makes_one_version(scene: Scene) -> None:
    """Its doer was killed before the job was removed; also when others made versions meanwhile."""
    first = scene.job({"a": b"1"})
    assert make(scene.store.path, first).number == 0
    second = scene.job({"a": b"2"})
    assert make(scene.store.path, second).number == 1
    assert make(scene.store.path, first) == making.Made("data", 0, True)
    assert make(scene.store.path, second) == making.Made("data", 1, True)
    assert Shelf(scene.store.path).numbers("data") == [0, 1]


def test_equal_content_is_no_new_version(scene: Scene) -> None:
    """Its aliases move to the latest one, and the job finds it; what equals an older version is a new one."""
    shelf = Shelf(scene.store.path)
    make(scene.store.path, scene.job({"a": b"1"}))
    again = {**scene.job({"a": b"1"}), "aliases": ["prod"]}
    assert make(scene.store.path, again) == making.Made("data", 0, False)
    assert make(scene.store.path, again) == making.Made("data", 0, False)
    assert len(shelf.marks("data")) == 1
    assert shelf.find("data").aliases == ("best", "latest", "prod")
    assert shelf.by_job("data", again["id"]) == shelf.find("data:v0")
    make(scene.store.path, scene.job({"a": b"2"}))
    assert make(scene.store.path, scene.job({"a": b"1"})).number == 2
    assert [head.aliases for head in shelf.versions("data")] == [("prod",), (), ("best", "latest")]


@pytest.mark.parametrize("how", ["staged", "linked", "source"])
def test_a_large_file_however_it_was_taken(scene: Scene, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cloned, linked, or read from where it lies: the object shares no inode with the file of the user."""
    data = os.urandom(LARGE)
    source = scene.write("large", data)
    if how == "staged":
        os.utime(source, (1e9, 1e9))
    artifact = Artifact("data")
    contents = artifact._building("")
    assert contents._staging is not None
    disk = FailingFiles()
    if how != "linked":
        disk.refuse("link", error=95)
    if how != "staged":
        disk.refuse("clone", error=95)
    else:
        monkeypatch.setattr(disk, "clone", lambda source, target: Path(target).write_bytes(Path(source).read_bytes()))
    contents._staging._files = disk
    artifact.add_file(source)
    artifact._log(scene.store, {}, None, None)
    assert scene.body["files"][0]["how"] == how
    if how != "source":
        os.unlink(source)  # as a rotation of checkpoints does
    make(scene.store.path, scene.body)
    scene.contents = {"large": data}
    scene.check(scene.store.path, 0)
    (entry,) = Shelf(scene.store.path).entries(Shelf(scene.store.path).find("data"))
    assert os.stat(object_path(scene.store.path, entry.digest)).st_nlink == 1


def test_the_keeper_clones_what_it_can(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file too young to be cloned in the call; what is cloned is hashed where nobody can change it any more."""
    data = os.urandom(LARGE)
    body = scene.job({"large": data})
    assert body["files"][0]["how"] == "linked"
    disk = FailingFiles()
    cloned: list[str] = []

    def clone(source: str, target: str) -> None:
        cloned.append(source)
        Path(target).write_bytes(Path(source).read_bytes())

    monkeypatch.setattr(disk, "clone", clone)
    make(scene.store.path, body, files=disk)
    assert cloned == [os.path.join(body["staging"], body["files"][0]["staged"])]
    assert disk.synced
    scene.check(scene.store.path, 0)


def test_a_large_file_that_changed_in_place_is_said(scene: Scene) -> None:
    """What a link cannot keep is not passed over: the entry has the trouble, the version counts it."""
    body = scene.job({"large": os.urandom(LARGE)})
    assert body["files"][0]["how"] in ("linked", "staged")
    if body["files"][0]["how"] == "staged":
        pytest.skip("this file system clones")
    with open(scene.root / "source/large", "r+b") as file:
        file.write(b"other")
    os.utime(scene.root / "source/large", (1, 1))
    make(scene.store.path, body)
    head = Shelf(scene.store.path).find("data")
    (entry,) = Shelf(scene.store.path).entries(head)
    assert "changed after it was added" in entry.trouble
    assert head.troubles == 1


def test_what_changed_is_never_the_same_version(scene: Scene) -> None:
    """Equal bytes of which nobody knows whether they were what was added make a version of their own, which says so."""
    data = os.urandom(LARGE)
    make(scene.store.path, scene.job({"large": data}))
    body = scene.job({"large": data})
    os.utime(scene.root / "source/large", (1, 1))
    body["files"][0].update(how="source", modified_ns=5)
    assert make(scene.store.path, body) == making.Made("data", 1, True)
    assert make(scene.store.path, scene.job({"large": data})).number == 2, (
        "the one with trouble is nothing to be equal to"
    )


def test_a_file_that_took_anothers_name_is_another(scene: Scene) -> None:
    """The digest that is remembered is that of the file that was read, not of what has its name now."""
    source = scene.root / "source/large"
    body = scene.job({"large": os.urandom(LARGE)})
    if body["files"][0]["how"] != "linked":
        pytest.skip("this file system clones")
    other = scene.write("source/other", os.urandom(LARGE))
    os.utime(other, (1e9, 1e9))
    os.replace(other, source)
    make(scene.store.path, body)
    scene.check(scene.store.path, 0)
    assert staging.known_digest(DISK, scene.store.path, str(source), DISK.status(str(source))) == ""


def test_a_file_that_is_gone_is_said(scene: Scene) -> None:
    """The other files of the version are there all the same."""
    body = scene.job({"a": b"1"})
    body["files"].append({"path": "b", "how": "source", "source": str(scene.root / "no"), "size": 5, "modified_ns": 1})
    make(scene.store.path, body)
    good, bad = Shelf(scene.store.path).entries(Shelf(scene.store.path).find("data"))
    assert (good.path, good.is_there, bad.path, bad.is_there) == ("a", True, "b", False)
    assert "cannot be read any more" in bad.trouble


def test_what_a_power_loss_left_of_a_pack_is_not_believed(scene: Scene) -> None:
    """Zeros in the place of a small file are an entry that says so; a private file after a boot is doubted."""
    body = scene.job({"a": b"abc", "b": b"def"})
    Path(staging.pack_path(body["staging"])).write_bytes(b"abc\0\0\0")
    staged = os.path.join(body["staging"], "7")
    Path(staged).write_bytes(b"ours")
    body["files"].append({"path": "c", "how": "staged", "staged": "7", "size": 4, "modified_ns": 1})
    body["boot_id"] = "an earlier one"
    make(scene.store.path, body)
    a, b, c = Shelf(scene.store.path).entries(Shelf(scene.store.path).find("data"))
    assert (a.trouble, b.digest, c.digest) == ("", "", hashlib.sha256(b"ours").hexdigest())
    assert "not whole" in b.trouble
    assert "went down" in c.trouble


def test_a_file_is_hashed_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was stored and has not changed is neither taken nor read again; what changed, or just changed, is."""
    data = os.urandom(LARGE)
    source = scene.write("source/large", data)
    os.utime(source, (1e9, 1e9))
    for expected in ("linked", "object"):
        artifact = Artifact("data")
        artifact.add_file(source, "large")
        artifact._log(scene.store, {}, None, None)
        assert scene.body["files"][0]["how"] in (expected, "staged"), expected
        make(scene.store.path, scene.body)
    scene.contents = {"large": data}
    scene.check(scene.store.path, 0)
    assert Shelf(scene.store.path).numbers("data") == [0]
    status = DISK.status(source)
    machine = platform.machine_id()
    assert machine
    assert staging.known_digest(DISK, scene.store.path, source, status) == hashlib.sha256(data).hexdigest()
    os.utime(source, (1e9 + 1, 1e9 + 1))
    assert staging.known_digest(DISK, scene.store.path, source, DISK.status(source)) == ""
    os.utime(source)
    staging.remember_digest(DISK, scene.store.path, source, DISK.status(source), "0" * 64, 0)
    assert staging.known_digest(DISK, scene.store.path, source, DISK.status(source)) == ""


def test_one_that_is_to_end_leaves_nothing_half(scene: Scene) -> None:
    """In the middle of a large file: no version, and the job can be done from its beginning."""
    body = scene.job({"large": os.urandom(3 * LARGE)})
    wanted = iter([True] * 4)
    with pytest.raises(Abandoned):
        make(scene.store.path, body, lambda: next(wanted, False))
    assert os.listdir(drafts_path(scene.store.path)) == []
    assert Shelf(scene.store.path).numbers("data") == []
    make(scene.store.path, body)
    scene.check(scene.store.path, 0)
    assert os.listdir(drafts_path(scene.store.path)) == []


def test_a_full_disk_refuses_before_it_is_full(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept free for rows is not taken for files."""
    monkeypatch.setattr(making, "free_floor", lambda least, size: size)
    body = scene.job({"large": os.urandom(LARGE)})
    with pytest.raises(OSError, match="free"):
        make(scene.store.path, body)
    monkeypatch.setattr(making, "free_floor", lambda least, size: 0)
    make(scene.store.path, body)
    scene.check(scene.store.path, 0)


@pytest.mark.parametrize("name", ["EIO", "short write", "fsync and the pages are gone"])
def test_any_operation_may_fail(scene: Scene, name: str) -> None:
    """Of a fault at every operation: the error is passed on or the version is there whole; the next time it is."""
    (fault,) = (fault for fault in FAULTS if fault.name == name)
    for at in range(1, 200):
        with tempfile.TemporaryDirectory(dir=scene.root) as store:
            body = scene.job({"a": b"one", "large": os.urandom(LARGE)})
            disk = FailingFiles(Unforced())
            disk.fail(fault, at)
            try:
                make(store, body, files=disk)
            except OSError:
                assert disk.fired
            assert Shelf(store).numbers("data") in ([], [0])
            assert make(store, body, files=Unforced()).number == 0, at
            scene.check(store, 0)
        if not disk.fired:
            break
    assert at > 1


class Recorded:
    """A job that was done, and of which each operation was noted."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.body = scene.job({"a": b"one", "large": os.urandom(LARGE)})
        self.files = RecordingFiles(scene.store.path)
        make(scene.store.path, self.body, files=self.files)
        self.operations = self.files.operations
        self.safe = safe_from(self.operations, self.files.known)

    def look(self, end: int, power: bool, fate: Fate, what: str) -> None:
        """The state after a crash: no version, or a whole one; and after the job was done again there is one."""
        unsafe = [power and self.safe[index] > end for index in range(end)]
        with tempfile.TemporaryDirectory(dir=MEMORY) as root:
            write_tree(build(self.operations[:end], unsafe, fate), root)
            body = {**self.body, "staging": self.body["staging"].replace(self.scene.store.path, root)}
            numbers = Shelf(root).numbers("data")
            assert numbers in ([], [0]), what
            assert numbers or end < len(self.operations), f"{what}: done, the job is removed, and there is no version"
            if numbers:
                self.scene.check(root, 0)
            else:
                for one in body["files"]:  # times are not part of the model
                    if one["how"] == "linked":
                        one["modified_ns"] = os.stat(os.path.join(body["staging"], one["staged"])).st_mtime_ns
            assert make(root, body, files=Unforced()).number == 0, what
            self.scene.check(root, 0)
            assert os.listdir(drafts_path(root)) == [], what


def test_killed_anywhere(scene: Scene) -> None:
    """Everything its calls did is there, and of the last write any part."""
    recorded = Recorded(scene)
    for end in range(recorded.files.known, len(recorded.operations) + 1):
        recorded.look(end, False, nothing, f"killed after {end}")
        last = recorded.operations[end - 1]
        if last.kind == WRITE and end > recorded.files.known:
            recorded.operations[end - 1] = torn(last, len(last.data) // 2)
            recorded.look(end, False, nothing, f"killed within {end}")
            recorded.operations[end - 1] = last


def test_power_lost_anywhere(scene: Scene) -> None:
    """A manifest that is there has all its objects: they were forced to the disk, names and bytes, before it."""
    recorded = Recorded(scene)
    draw = random.Random(SEED)
    for end in range(recorded.files.known, len(recorded.operations) + 1):
        for fate in (nothing, names_only, zeros, by_chance(draw)):
            recorded.look(end, True, fate, f"power lost after {end}, seed {SEED}")


def test_a_large_file_is_not_read_in_the_call(scene: Scene) -> None:
    """A gibibyte that no disk has takes no room when it is added: it is shared or left where it is."""
    path = scene.root / "sparse"
    with open(path, "wb") as file:
        file.truncate(1 << 30)
    artifact = Artifact("data")
    artifact.add_file(path)
    artifact._log(scene.store, {}, None, None)
    taken = [
        os.path.join(root, name) for root, _, names in os.walk(scene.body["staging"] or "/nowhere") for name in names
    ]
    assert sum(os.stat(name).st_blocks for name in taken) * 512 < 1 << 20
