"""`stepd artifacts`, what `du` and `status` say of them, and removing what no version has."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from daemon.commands import status
from daemon.keep import artifacts as kept
from daemon.keep.pruning import prune
from sdk._keeping import jobs, put_job
from sdk.artifacts.artifact import Artifact
from sdk.artifacts.format import manifest_path, name_path, object_path, staging_path
from sdk.artifacts.shelf import Shelf
from sdk.errors import DamageError, StoreError
from sdk.files import DISK
from sdk.location import StoreIdentity
from tests.builders import RunBuilder
from tests.daemon.test_server_commands import run_command


@pytest.fixture
def library(store: StoreIdentity, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StoreIdentity:
    """digits v0 and v1 of two files each, one of which they share, and net v0, which refers to a file."""
    monkeypatch.setenv("STEPD_DIR", store.path)
    (tmp_path / "same").write_text("same")
    for text in ("one", "two"):
        (tmp_path / "other").write_text(text)
        log(store, tmp_path, "digits", [text])
    net = Artifact("net", "model")
    net.add_reference(str(tmp_path / "same"), name="weights")
    net.add_reference("s3://bucket/rest")
    net._log(store, {}, None, None)
    net.wait(20)
    return store


def log(store: StoreIdentity, root: Path, name: str, aliases: list[str]) -> None:
    artifact = Artifact(name, "dataset", "what it is \x1b[31m", {"n": 1})
    artifact.add_dir(root)
    artifact._log(store, {"run": "r1", "run_name": "calm-otter", "project": "p"}, aliases, ["tag"])
    artifact.wait(20)


def test_lists(library: StoreIdentity) -> None:
    """The latest version of each name; all versions of one; the files of a version. As JSON as well."""
    text = run_command(library, "artifacts").output
    assert [line.split()[:3] for line in text.splitlines()[1:]] == [["digits", "v1", "dataset"], ["net", "v0", "model"]]
    versions = json.loads(run_command(library, "artifacts", "digits", "--json").output)
    assert [(one["version"], one["aliases"], one["run"]) for one in versions] == [
        ("v1", ["latest", "two"], "r1"), ("v0", ["one"], "r1"),
    ]  # fmt: skip
    shown = run_command(library, "artifacts", "digits:one").output
    assert "digits:v0" in shown
    assert "\x1b[31m" not in shown.replace("\x1b[1m", "")
    assert [line.split()[0] for line in shown.splitlines()[-2:]] == ["other", "same"]
    files = json.loads(run_command(library, "artifacts", "net:v0", "--json").output)["files"]
    assert [one["reference"].partition(":")[0] for one in files] == ["s3", "file"]


def test_what_is_not_there(library: StoreIdentity) -> None:
    """Told with the nearest name, or the aliases that there are."""
    missing = run_command(library, "artifacts", "digit")
    assert missing.exit_code == 1
    assert "stepd artifacts digits" in missing.output
    assert "one, " not in run_command(library, "artifacts", "digits:best").output.partition("versions")[0]
    assert run_command(library, "artifacts", "-o", "x").exit_code == 2


def test_files_are_copied_out(library: StoreIdentity, tmp_path: Path) -> None:
    """What cannot be had is named, and makes the exit code 1."""
    done = run_command(library, "artifacts", "digits:one", "-o", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "other").read_text() == "one"
    done = run_command(library, "artifacts", "net", "-o", str(tmp_path / "net"))
    assert done.exit_code == 1
    assert "1 files could not be had: rest" in done.output
    assert (tmp_path / "net" / "weights").read_text() == "same"


def test_du_shows_them(library: StoreIdentity) -> None:
    """Apart from the runs, and in the whole."""
    whole = json.loads(run_command(library, "du", "--json").output)
    assert whole["artifacts"] > 0
    assert whole["total"] >= whole["artifacts"]
    assert "artifacts" in run_command(library, "du").output


def test_pruning_removes_what_no_version_has(library: StoreIdentity) -> None:
    """Bytes of a removed version that no other one shares; not while a job waits, and nothing that is young."""
    shelf = Shelf(library.path)
    first = Artifact._stored(shelf, shelf.find("digits:v0"))
    mine, shared = (first.get_entry(name).digest for name in ("other", "same"))
    first.delete(delete_aliases=True)
    assert prune(DISK, library.path) == (0, 0)
    put_job(library, "files", {})
    with pytest.raises(StoreError, match="1 jobs wait"):
        prune(DISK, library.path, -1)
    DISK.remove(jobs(library.path)[0].path)
    assert prune(DISK, library.path, -1) == (1, 3)
    assert not os.path.exists(object_path(library.path, mine))
    assert os.path.exists(object_path(library.path, shared))
    assert "removed 0 files" in run_command(library, "artifacts", "--prune").output


@pytest.mark.parametrize("damage", ["line", "head", "all"])
def test_nothing_is_pruned_that_a_damaged_manifest_may_need(library: StoreIdentity, damage: str) -> None:
    """A manifest that cannot be read says nothing of what it needs."""
    if damage == "all":
        for name in os.listdir(name_path(library.path, "digits")):
            if name.endswith(".jsonl"):
                Path(name_path(library.path, "digits"), name).write_text("{}")
    else:
        path = Path(manifest_path(library.path, "digits", 0))
        lines = path.read_text().splitlines()
        lines[0 if damage == "head" else 1] = "{"
        path.write_text("\n".join([*lines, ""]))
    with pytest.raises(DamageError):
        prune(DISK, library.path, -1)


def test_what_was_staged_and_forgotten_is_swept(library: StoreIdentity) -> None:
    """After a week, unless a job names it, or one waits that cannot be read from here; drafts of that age as well."""
    now = time.time()
    old, young, named = (
        os.path.join(staging_path(library.path), f"{int((now - age) * 1e9):020d}-{'0' * 16}") for age in (8 * 86400, 60, 9 * 86400)
    )  # fmt: skip
    for path in (old, young, named):
        os.makedirs(path)
    put_job(library, "artifact", {"staging": named})
    aside = Path(library.path, "keeping", "somebody-else.json")
    drafts = [Path(name_path(library.path, "digits"), "v3.jsonl.1.2.tmp"), Path(library.path, "keeping", "x.json.tmp")]
    for path in (aside, *drafts):
        path.write_text("")
    kept.sweep(DISK, library.path, now)
    assert os.path.isdir(old)
    assert all(path.exists() for path in drafts)
    aside.rename(aside.with_suffix(".json.bad"))
    for path in drafts:
        os.utime(path, (0, 0))
    kept.sweep(DISK, library.path, now)
    assert [os.path.isdir(path) for path in (old, young, named)] == [False, True, True]
    assert not any(path.exists() for path in drafts)


def test_every_stored_byte_is_read(library: StoreIdentity) -> None:
    """What is damaged or gone is named, and makes the exit code 1; references are not the store's."""
    assert "3 stored files of 3 versions" in run_command(library, "artifacts", "--verify").output
    shelf = Shelf(library.path)
    one, same = shelf.entries(shelf.find("digits:v0"))
    Path(object_path(library.path, one.digest)).write_text("ONE")
    os.unlink(object_path(library.path, same.digest))
    done = run_command(library, "artifacts", "--verify")
    assert done.exit_code == 1
    assert "digits:v0  other  has digest" in done.output
    assert "digits:v0  same  [Errno 2]" in done.output
    assert run_command(library, "artifacts", "net", "--verify").exit_code == 0


def test_show_names_them(library: StoreIdentity) -> None:
    """What a run logged and used, with versions where they are there; facts that make no sense are left out."""
    built = RunBuilder(library.path, "r1")
    stream = built.stream()
    (job,) = {head.job for head in Shelf(library.path).versions("digits") if head.number == 0}
    stream.meta({"artifact": {job: {"how": "logged", "name": "digits", "job": job}}})
    stream.meta(
        {
            "artifact": {
                "used net": {"how": "used", "name": "net", "version": "v0"},
                "later": {"how": "used", "name": "new"},
            }
        }
    )
    stream.meta(
        {
            "artifact": {
                "odd": 3,
                "odder": {"how": ["used"], "name": "x"},
                "out": {"how": "logged", "name": "../x", "job": 1},
            }
        }
    )
    built.close()
    text = run_command(library, "show", "r1").output
    assert "logged    digits:v0" in text
    assert "used      net:v0, new" in text
    assert json.loads(run_command(library, "show", "r1", "--json").output)["artifacts"]["used"] == ["net:v0", "new"]


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ({}, ""),
        ({"running": False, "waiting": 0, "trouble": ""}, ""),
        ({"running": True, "waiting": 1, "trouble": ""}, "running; 1 job of files waits"),
        ({"running": False, "waiting": 2, "trouble": "no\x1b room"}, "2 jobs of files wait; trouble: no"),
    ],
)
def test_status_says_what_waits(told: dict[str, object], text: str) -> None:
    """And what for; nothing where there is nothing."""
    found = status._keeping(told)
    assert found == text or (text and found.startswith(text))
    assert "\x1b" not in found
