"""Artifacts as users meet them: built, logged, found again, downloaded; and the errors on the way."""

from __future__ import annotations

import datetime
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sdk
from sdk._keeping import BAD_SUFFIX, jobs
from sdk.artifacts import staging, waiting
from sdk.artifacts.artifact import artifacts_of
from sdk.artifacts.format import object_path, staging_path
from sdk.errors import ArtifactFinalizedError, ArtifactNotLoggedError, WaitTimeoutError
from sdk.files.failing import FailingFiles
from sdk.testing import captured


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A small directory tree: a, sub/b, sub/c."""
    root = tmp_path / "data"
    (root / "sub").mkdir(parents=True)
    for path in ("a", "sub/b", "sub/c"):
        (root / path).write_text(path)
    return root


def tree(root: str | Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(Path(root).rglob("*")) if path.is_file()}


def test_a_directory_goes_in_and_comes_out(world: Any, data: Path, tmp_path: Path) -> None:
    """Logged in one call, found by name, version and alias, downloaded with the same files."""
    run = sdk.init(project="p")
    artifact = sdk.Artifact("digits", type="dataset", description="small", metadata={"n": 3, "s": {1}})
    artifact.add_dir(data)
    assert artifact.is_draft()
    assert run.log_artifact(artifact, aliases=["best", ""], tags="tiny") is artifact
    assert artifact.name == "digits"
    assert artifact.wait(20) is artifact
    assert (artifact.name, artifact.version, artifact.state) == ("digits:v0", "v0", "COMMITTED")
    assert artifact.aliases == ["best", "latest"]
    for name in ("digits", "digits:latest", "digits:v0", "digits:best", "me/p/digits:best"):
        found = run.use_artifact(name, type="dataset")
        assert (found.name, found.description, found.metadata) == ("digits:v0", "small", {"n": 3, "s": [1]})
        assert (found.tags, found.size, found.file_count) == (["tiny"], 11, 3)
    place = found.download(tmp_path / "out")
    assert tree(place) == tree(data)
    found.verify(place)
    assert sdk.Api().artifact("digits:best").digest == artifact.digest
    assert os.path.basename(artifact.get_entry("sub/b").download(tmp_path / "one")) == "b"


def test_what_was_added_may_go_at_once(world: Any, data: Path, tmp_path: Path) -> None:
    """Files are the artifact's when `add_dir` returns, before any run logs it; so is what `new_file` wrote."""
    sdk.init()
    artifact = sdk.Artifact("a")
    artifact.add_dir(data, "all")
    with artifact.new_file("b.bin", mode="wb") as file:
        file.write(b"\xff" * 10)
    with artifact.new_file("notes/c.txt") as file:
        file.write("é")
    with pytest.raises(KeyError), artifact.new_file("d"):
        raise KeyError
    for path in sorted(data.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    sdk.log_artifact(artifact).wait(20)
    assert sorted(artifact.manifest.entries) == ["all/a", "all/sub/b", "all/sub/c", "b.bin", "notes/c.txt"]
    place = artifact.download(tmp_path / "out")
    assert Path(place, "notes/c.txt").read_text(encoding="utf-8") == "é"
    assert os.listdir(staging_path(world.store)) == []


def test_a_path_is_logged_as_it_is(world: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, a directory, a model; under a name of the run's where none is given."""
    monkeypatch.chdir(tmp_path)  # where `use_model` makes ./artifacts
    run = sdk.init(id="r1")
    assert run.log_artifact(data).wait(20).name == "run-r1-data:v0"
    assert run.log_artifact(data / "a", name="one", type="text").wait(20).type == "text"
    assert run.log_artifact(f"s3://bucket/{data.name}/x y").wait(20).name == "run-r1-x-y:v0"
    run.log_model(data / "a", name="net", aliases="best")
    for job in jobs(world.store):
        waiting._do(run._store, "net", job.path, float("inf"))
    assert Path(run.use_model("net:best")).read_text() == "a"
    with pytest.raises(ValueError, match="no such file"):
        run.log_artifact(data / "no")
    with pytest.raises(TypeError, match="expected an Artifact"):
        run.log_artifact(7)
    with pytest.raises(ValueError, match="expected one with 'model'"):
        run.use_model("one")


def test_versions_and_aliases(world: Any, data: Path) -> None:
    """Other content is a new version, equal content the same; aliases move to the last that was given them."""
    run = sdk.init()

    def log(aliases: list[str]) -> str:
        return run.log_artifact(data, name="d", type="t", aliases=aliases).wait(20).version

    assert log(["best"]) == "v0"
    (data / "a").write_text("2")
    assert log(["best", "dev"]) == "v1"
    assert log(["prod"]) == "v1"
    first, second = reversed(sdk.Api().artifacts("t", "d"))
    assert (first.aliases, second.aliases) == ([], ["best", "dev", "latest", "prod"])
    first.aliases.append("best")
    first.description = "the first"
    first.ttl = datetime.timedelta(days=3)
    first.tags = ["old"]
    first.save()
    second.aliases.remove("prod")
    second.save()
    first, second = reversed(sdk.Api().artifacts("t", "d"))
    assert (first.aliases, first.description, first.ttl) == (["best"], "the first", datetime.timedelta(days=3))
    assert second.aliases == ["dev", "latest"]
    assert [found.version for found in sdk.Api().artifacts("t", "d", tags="old")] == ["v0"]
    with pytest.raises(ValueError, match="has the aliases"):
        second.delete()
    second.delete(delete_aliases=True)
    assert run.use_artifact("d").version == "v0"
    (data / "a").write_text("3")
    assert log([]) == "v2"


def test_what_was_logged_a_moment_ago_is_found(world: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who uses it waits until it is stored, instead of getting the version before; a version that is there needs no waiting."""
    run = sdk.init()
    run.log_artifact(data, name="d", type="t")
    assert run.use_artifact("d").version == "v0"
    (data / "a").write_text("2")
    run.log_artifact(data, name="d", type="t")
    run.log_artifact(data, name="other", type="t")
    assert run.use_artifact("d:v0").version == "v0"
    assert len(jobs(world.store)) == 2
    assert sdk.Api().artifact("d:latest").version == "v1"
    (job,) = jobs(world.store)
    os.rename(job.path, job.path + BAD_SUFFIX)
    with pytest.raises(sdk.errors.NotFoundError):
        run.use_artifact("other")


@pytest.mark.parametrize("operation", ["make_directory", "create", "append"])
def test_a_store_that_takes_nothing_when_files_are_added(
    world: Any, data: Path, operation: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing raises: files are read from where they are, and what was only written here is an entry that says so."""
    (data / "large").write_text("large" * 20)
    run = sdk.init()
    monkeypatch.setattr(staging, "SMALL_BYTES_MAX", 50)
    disk = FailingFiles()
    artifact = sdk.Artifact("d")
    contents = artifact._building("")
    assert contents._staging is not None
    contents._staging._files = disk
    disk.refuse(operation)
    artifact.add_dir(data)
    if operation == "make_directory":
        with artifact.new_file("made") as file:
            file.write("x")
    contents.flush()
    disk.allow()
    run.log_artifact(artifact).wait(20)
    whole = {path: entry for path, entry in artifact.manifest.entries.items() if path != "made"}
    assert {path: Path(object_path(world.store, entry.digest)).read_text() for path, entry in whole.items()} == tree(
        data
    )
    if operation == "make_directory":
        assert "took nothing" in artifact.manifest.entries["made"].trouble
        with pytest.raises(FileNotFoundError, match="took nothing"):
            artifact.download(tmp_path / "out")


def test_references(world: Any, data: Path, tmp_path: Path) -> None:
    """A local one has size and digest and is copied from where it is; what is elsewhere is a name, and nothing is fetched."""
    run = sdk.init()
    artifact = sdk.Artifact("refs", "dataset")
    assert len(artifact.add_reference(f"file://{data}")) == 3
    (plain,) = artifact.add_reference("s3://bucket/key.csv", name="far/key.csv")
    assert plain.ref == "s3://bucket/key.csv"
    artifact.add_reference(str(data / "a"), name="unread", checksum=False)
    artifact = run.log_artifact(artifact).wait(20)
    assert artifact.get_path("sub/b").local_path == str(data / "sub/b")
    assert artifact.get_path("sub/b").size == 5
    assert not os.path.exists(object_path(world.store, artifact.get_path("sub/b").digest))
    with pytest.raises(sdk.UnsupportedError, match="nothing is fetched"):
        artifact.download(tmp_path / "out")
    (data / "sub/c").unlink()
    place = artifact.download(tmp_path / "out", allow_missing_references=True, path_prefix="sub/")
    assert tree(place) == {"sub/b": "sub/b"}
    assert tree(artifact.download(tmp_path / "unread", path_prefix="unread")) == {"unread": "a"}
    with pytest.raises(FileNotFoundError):
        artifact.download(tmp_path / "out", path_prefix="sub/c")
    (data / "sub/b").write_text("other")
    with pytest.raises(ValueError, match="was changed"):
        artifact.download(tmp_path / "more", path_prefix="sub/b")
    with pytest.raises(ValueError, match="more than 1 files"):
        sdk.Artifact("x").add_reference(str(data), max_objects=1)
    with pytest.raises(ValueError, match="expected a URI"):
        sdk.Artifact("x").add_reference("no/such/file")
    with pytest.raises(ValueError, match="nothing of this name"):
        sdk.Artifact("x").add_reference("file:///no/such/file")


def test_a_draft_of_a_version(world: Any, data: Path, tmp_path: Path) -> None:
    """Holds the same files without reading them again; one may be taken out, replaced, added."""
    run = sdk.init()
    run.log_artifact(data, name="d", type="t").wait(20)
    draft = run.use_artifact("d").new_draft()
    draft.remove("sub")
    with draft.new_file("e") as file:
        file.write("e")
    run.log_artifact(draft).wait(20)
    assert draft.version == "v1"
    assert tree(draft.checkout(str(tmp_path / "out"))) == {"a": "a", "e": "e"}
    (tmp_path / "out" / "more").write_text("x")
    with pytest.raises(ValueError, match="'more', which is not in"):
        draft.verify(str(tmp_path / "out"))
    assert tree(draft.checkout(str(tmp_path / "out"))) == {"a": "a", "e": "e"}
    (tmp_path / "out" / "a").write_text("b")
    with pytest.raises(ValueError, match="has digest"):
        draft.verify(str(tmp_path / "out"))


def test_a_table_is_kept_as_json(world: Any) -> None:
    """And comes back as a table; other values say what to do."""
    run = sdk.init()
    artifact = sdk.Artifact("t")
    artifact["results"] = sdk.Table(columns=["a", "b"], data=[[1, "x"], [2, None]])
    with pytest.raises(sdk.UnsupportedError, match=r"not Histogram[\s\S]*run.log"):
        artifact.add(sdk.Histogram([1, 2, 3]), "h")
    run.log_artifact(artifact).wait(20)
    found = run.use_artifact("t").get("results")
    assert (found.columns, found.data) == (["a", "b"], [[1, "x"], [2, None]])
    assert artifact["no"] is None


def test_before_there_is_a_version(world: Any, data: Path) -> None:
    """Asking for one raises an AttributeError with the cure, and waiting ends in time."""
    run = sdk.init()
    artifact = sdk.Artifact("d")
    artifact.add_dir(data)
    for call in (lambda: artifact.version, artifact.download, artifact.wait, artifact.delete, artifact.logged_by):
        with pytest.raises(ArtifactNotLoggedError, match="was not logged"):
            call()
    assert not hasattr(artifact, "version")
    assert artifact.size == 11
    run.log_artifact(artifact)
    with pytest.raises(ArtifactNotLoggedError, match=r"artifact.wait\(\)"):
        artifact.save()
    with pytest.raises(WaitTimeoutError):
        artifact.wait(0)
    for call in (lambda: artifact.add_file(data / "a"), lambda: artifact.new_file("x"), lambda: artifact.remove("a")):
        with pytest.raises(ArtifactFinalizedError):
            call()
    (job,) = jobs(world.store)
    os.rename(job.path, job.path + BAD_SUFFIX)
    with pytest.raises(sdk.Error, match="cannot be stored"):
        artifact.wait(20)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda d: sdk.Artifact("a/b"), ValueError),
        (lambda d: sdk.Artifact(""), ValueError),
        (lambda d: sdk.Artifact(7), TypeError),
        (lambda d: sdk.Artifact("x" * 129), ValueError),
        (lambda d: sdk.Artifact("a", type="job"), ValueError),
        (lambda d: sdk.Artifact("a", metadata=[1]), TypeError),
        (lambda d: sdk.Artifact("a").add_file(d), ValueError),
        (lambda d: sdk.Artifact("a").add_file(d / "no"), ValueError),
        (lambda d: sdk.Artifact("a").add_file(d / "a", policy="x"), ValueError),
        (lambda d: sdk.Artifact("a").add_file(d / "a", name="../../x"), ValueError),
        (lambda d: sdk.Artifact("a").add_file(d / "a", name="."), ValueError),
        (lambda d: sdk.Artifact("a").add_file(d / "a", name="x\0"), ValueError),
        (lambda d: sdk.Artifact("a").add_dir(d / "a"), ValueError),
        (lambda d: sdk.Artifact("a").new_file("x", mode="r").__enter__(), ValueError),
        (lambda d: sdk.Artifact("a").remove("x"), FileNotFoundError),
        (lambda d: sdk.run.log_artifact(d, name="d", aliases=["v1"]), ValueError),
        (lambda d: sdk.run.log_artifact(d, name="d", aliases=["a:b"]), ValueError),
        (lambda d: sdk.run.log_artifact(d, name="d", tags=["a/b"]), ValueError),
        (lambda d: sdk.run.log_artifact(sdk.Artifact("d", metadata={"a": "x" * (3 << 20)})), ValueError),
        (lambda d: sdk.run.upsert_artifact(d, name="d", distributed_id="x"), sdk.UnsupportedError),
        (lambda d: sdk.run.use_artifact("none"), sdk.errors.NotFoundError),
        (lambda d: sdk.run.use_artifact("a b"), ValueError),
        (lambda d: sdk.run.use_artifact(None), TypeError),
    ],
)
def test_errors_of_use(world: Any, data: Path, call: Callable[[Path], object], error: type[Exception]) -> None:
    """Raised at once, and no job is left."""
    sdk.init()
    with pytest.raises(error):
        call(data)
    assert jobs(world.store) == []


def test_the_same_name_twice(world: Any, data: Path) -> None:
    """The same file is no mistake, another one is; `overwrite` and `merge` replace. A tree goes in whole or not."""
    sdk.init()
    artifact = sdk.Artifact("d")
    for overwrite in (False, False, True, False):
        artifact.add_file(data / "sub/b", overwrite=overwrite)
    with pytest.raises(ValueError, match="another file 'b'"):
        artifact.add_file(data / "a", name="b")
    with pytest.raises(ValueError, match="has a file 'b'"):
        artifact.new_file("b").__enter__()
    (data / "b").write_text("new")
    with pytest.raises(ValueError, match="another file"):
        artifact.add_dir(data)
    assert list(artifact.manifest.entries) == ["b"]
    artifact.add_dir(data, merge=True)
    assert artifact.get_added_local_path_name(str(data / "sub/c")) == "sub/c"
    sdk.log_artifact(artifact).wait(20)
    assert artifact.get_entry("b").size == 3


def test_links_and_odd_files(world: Any, data: Path, tmp_path: Path) -> None:
    """A link to a file is the file, one to a directory and a socket's like are left out; names keep their bytes."""
    os.symlink(data / "a", data / "link")
    os.symlink(tmp_path, data / "up")
    os.symlink(data / "nowhere", data / "dangling")
    os.mkfifo(data / "pipe")
    (data / "naïve ☃").write_text("s")
    Path(os.fsdecode(os.fsencode(data) + b"/\xff")).write_text("bytes")
    sdk.init()
    artifact = sdk.log_artifact(data, name="d", type="t").wait(20)
    assert sorted(artifact.manifest.entries) == sorted(["a", "link", "naïve ☃", "\udcff", "sub/b", "sub/c"])
    assert tree(artifact.download(tmp_path / "out"))["link"] == "a"


def test_a_download_stays_in_its_directory(world: Any, data: Path, tmp_path: Path) -> None:
    """A link that somebody put there leads nobody out; a link in the place of a file is replaced, not written through."""
    sdk.init()
    artifact = sdk.log_artifact(data, name="d", type="t").wait(20)
    (tmp_path / "out").mkdir()
    (tmp_path / "else").mkdir()
    os.symlink(tmp_path / "else", tmp_path / "out" / "sub")
    with pytest.raises(ValueError, match="a link there leads"):
        artifact.download(tmp_path / "out")
    os.unlink(tmp_path / "out" / "sub")
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "out" / "a").unlink()
    os.symlink(tmp_path / "victim", tmp_path / "out" / "a")
    artifact.download(tmp_path / "out")
    assert (tmp_path / "victim").read_text() == "mine"
    assert tree(tmp_path / "out") == tree(data)
    assert list((tmp_path / "else").iterdir()) == []


def test_damaged_bytes_are_not_given(world: Any, data: Path, tmp_path: Path) -> None:
    """Each file is checked on its way out; what was right already stays."""
    sdk.init()
    artifact = sdk.log_artifact(data, name="d", type="t").wait(20)
    path = object_path(world.store, artifact.get_entry("a").digest)
    Path(path).write_text("b")
    with pytest.raises(sdk.errors.DamageError, match="expected"):
        artifact.download(tmp_path / "out")
    assert tree(tmp_path / "out") == {}
    (tmp_path / "out" / "a").write_text("a")
    assert tree(artifact.download(tmp_path / "out")) == tree(data)


def test_a_run_knows_its_artifacts(world: Any, data: Path) -> None:
    """What it logged and used is in its facts, by which the reader finds the versions."""
    run = sdk.init()
    run.log_artifact(data, name="d", type="t").wait(20)
    run.use_artifact("d:latest", use_as="input")
    facts: dict[str, Any] = {}
    for said in world.stream.facts:
        facts.update(said.get("artifact", {}))
    assert [found.name for found in artifacts_of(world.store, facts, "logged")] == ["d:v0"]
    assert [found.name for found in artifacts_of(world.store, facts, "used")] == ["d:v0"]
    assert facts["used d:v0"]["use_as"] == "input"
    assert artifacts_of(world.store, {"x": {"how": "logged", "name": "../x"}, "y": 3}, "logged") == []


def test_one_that_is_never_logged_leaves_nothing(world: Any, data: Path) -> None:
    """What was taken goes with the object."""
    sdk.init()
    artifact = sdk.Artifact("d")
    artifact.add_dir(data)
    assert len(os.listdir(staging_path(world.store))) == 1
    del artifact
    gc.collect()
    assert os.listdir(staging_path(world.store)) == []


def test_a_forked_child_has_what_its_parent_added(
    world: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under names of its own: the parent may go on, log it as well, or drop it."""
    monkeypatch.setattr(staging, "SMALL_BYTES_MAX", 2)
    sdk.init()
    artifact = sdk.Artifact("d")
    artifact.add_dir(data)
    contents = artifact._contents
    assert contents is not None and contents._staging is not None
    before = contents._staging.path
    contents._staging._pid = -1  # as a fork leaves it
    with artifact.new_file("more") as file:
        file.write("of the child")
    assert contents._staging.path != before
    for name in os.listdir(before):
        os.unlink(os.path.join(before, name))
    os.rmdir(before)
    sdk.log_artifact(artifact).wait(20)
    assert tree(artifact.download(tmp_path / "out")) == {**tree(data), "more": "of the child"}


def test_a_store_that_takes_nothing_is_a_note(
    world: Any, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The training goes on without the artifact."""

    def refuse(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sdk.artifacts.artifact.put_job", refuse)
    sdk.init()
    artifact = sdk.log_artifact(data, name="full", type="t")
    assert artifact.is_draft()
    assert "No space left" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["disabled", "captured"])
def test_where_nothing_is_recorded(world: Any, data: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is accepted and nothing written, before `init` as after."""
    if mode == "disabled":
        monkeypatch.setenv("STEPD_MODE", "disabled")
        use(data)
    else:
        with captured():
            use(data)
    assert not os.path.exists(staging_path(world.store))


def use(data: Path) -> None:
    early = sdk.Artifact("early")
    early.add_dir(data)
    run = sdk.init()
    artifact = sdk.Artifact("d")
    artifact.add_file(data / "a")
    with artifact.new_file("n") as file:
        file.write("x")
    artifact["t"] = sdk.Table(columns=["a"], data=[[1]])
    assert run.log_artifact(artifact).wait() is artifact
    assert run.log_artifact(early) is early
    assert run.use_artifact("some:v1").collection == "some"
    run.finish()
