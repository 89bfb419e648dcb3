"""`run.save`, `run.restore`, `run.log_code`: sdk._files, over sdk.runfiles."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import sdk
from daemon.observe import live
from sdk import _files, runfiles
from sdk._files import LIVE_FILE, Code
from sdk._keeping import jobs, read_job
from sdk.errors import StoreError
from sdk.files.failing import FailingFiles


@pytest.fixture
def here(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with checkpoints; copies of more than 100 bytes are the keeper's, and nothing can be shared."""
    directory = tmp_path / "here"
    for name, text in (
        ("ck/a.pt", "a"),
        ("ck/sub/b.pt", "b"),
        ("ck/big.pt", "c" * 200),
        ("x[1].txt", "d"),
        ("y.txt", "e"),
    ):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(directory)
    monkeypatch.setattr(runfiles, "can_share", lambda *_: False)
    keep = _files.RunFiles._keep
    monkeypatch.setattr(
        _files.RunFiles, "_keep", lambda run, found, policy, **more: keep(run, found, policy, small_max=100, **more)
    )
    return directory


def kept(run: Any) -> dict[str, str]:
    """Name to text of the files that the run has."""
    return {file.name: Path(run.dir, file.name).read_text() for file in runfiles.walk(run.dir)}


def waiting(world: Any) -> list[dict[str, Any]]:
    """What the keeper is to copy."""
    return [entry for job in jobs(world.store) for entry in read_job(job)["files"]]


def test_directories_below_the_base_are_kept(here: Path) -> None:
    """Relative to the working directory, to the directory of an absolute path, or to what is said."""
    run = sdk.init()
    assert run.save("ck/*.pt", policy="now") == [f"{run.dir}/ck/a.pt", f"{run.dir}/ck/big.pt"]
    assert run.save(str(here / "ck" / "sub" / "b.pt")) == [f"{run.dir}/b.pt"]
    assert run.save(here / "ck" / "sub" / "*", base_path=here / "ck") == [f"{run.dir}/sub/b.pt"]
    assert run.save(b"ck/**/b.pt") == [f"{run.dir}/ck/sub/b.pt"]
    assert run.save("ck/sub") == [f"{run.dir}/ck/sub/b.pt"]
    assert kept(run) == {"ck/a.pt": "a", "b.pt": "b", "sub/b.pt": "b", "ck/sub/b.pt": "b"}


def test_names_that_look_like_patterns(here: Path) -> None:
    """A file of that very name is meant; with glob=False nothing else is."""
    run = sdk.init()
    assert run.save("x[1].txt") == [f"{run.dir}/x[1].txt"]
    assert run.save("*.txt", glob=False) == []
    assert run.save("*.txt") == [f"{run.dir}/x[1].txt", f"{run.dir}/y.txt"]


def test_large_files_are_left_to_the_keeper(world: Any, here: Path) -> None:
    """The call does not copy them: a job says what to copy, and a fact what will be there."""
    run = sdk.init()
    assert run.save("ck/big.pt") == [f"{run.dir}/ck/big.pt"]
    assert kept(run) == {}
    assert [(entry["source"], entry["name"]) for entry in waiting(world)] == [(str(here / "ck/big.pt"), "ck/big.pt")]
    told = [facts["file"] for facts in world.stream.facts if "file" in facts]
    assert [(name, fact["size"], fact["policy"]) for name, fact in told[0].items()] == [("ck/big.pt", 200, "live")]
    run.save("ck/big.pt")
    run.finish()
    assert len(waiting(world)) == 1  # it has not changed


def test_policies(world: Any, here: Path) -> None:
    """now: once. live: also at the end, when it has changed, and what has appeared. end: at the end only."""
    run = sdk.init()
    run.save("ck/a.pt", policy="now")
    run.save("ck/sub/*", policy="live")
    assert run.save("y.txt", policy="end") == []
    assert run.save("later/*", policy="end") == []
    for name in ("ck/a.pt", "ck/sub/b.pt", "ck/sub/c.pt", "y.txt", "later/z"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text("new")
    assert kept(run) == {"ck/a.pt": "a", "ck/sub/b.pt": "b"}
    _, *told = Path(run.sync_dir, LIVE_FILE).read_text().splitlines()  # for the observer, until the end
    assert [json.loads(line)[3] for line in told] == ["live", "end", "end"]
    run.finish()
    assert not os.path.exists(os.path.join(run.sync_dir, LIVE_FILE))
    assert kept(run) == {"ck/a.pt": "a", "ck/sub/b.pt": "new", "ck/sub/c.pt": "new", "later/z": "new", "y.txt": "new"}


def test_the_list_for_the_observer_grows_by_a_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new path does not write those before it again; what an observer removed is written whole."""
    run = sdk.init()
    path = Path(run.sync_dir, LIVE_FILE)
    path.write_text("of an earlier attempt")
    for number in range(3):
        run.save(f"later/{number}")
    before = path.stat().st_ino, path.read_text()
    run.save("later/1", policy="end")
    assert path.stat().st_ino == before[0] and path.read_text().startswith(before[1])
    assert [told[3] for told in live._read(run.sync_dir)] == ["live", "end", "live"]
    path.unlink()
    run.save("later/3")
    assert [os.path.basename(told[0]) for told in live._read(run.sync_dir)] == ["0", "1", "2", "3"]


def test_the_list_for_the_observer_stays_readable(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it has no room for is said once, copied in the call, and again at the end."""
    monkeypatch.setattr(_files, "LIVE_BYTES_MAX", 1000)
    monkeypatch.setattr(live, "LIVE_BYTES_MAX", 1000)
    run = sdk.init()
    for number in range(20):
        (here / f"n{number}").write_text("old")
        run.save(f"n{number}")
    assert 0 < len(live._read(run.sync_dir)) < 20 and len(kept(run)) == 20
    assert capsys.readouterr().err.count("further ones are copied in the call and at the end") == 1
    (here / "n19").write_text("newer")
    run.finish()
    assert kept(run)["n19"] == "newer"


def test_so_many_paths_are_remembered(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is beyond is copied as it is, with policy "end" too, and that is said once."""
    monkeypatch.setattr(_files, "PATTERNS_MAX", 1)
    run = sdk.init()
    run.save("ck/a.pt")
    assert run.save("y.txt", policy="end") == [f"{run.dir}/y.txt"]
    run.save("x[1].txt")
    assert kept(run) == {"ck/a.pt": "a", "y.txt": "e", "x[1].txt": "d"}
    assert len(run._patterns or ()) == 1 and capsys.readouterr().err.count("only copied as they are") == 1


def test_bad_arguments(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They raise as W&B's do; addresses and patterns without a file are said and give nothing."""
    run = sdk.init()
    with pytest.raises(ValueError, match="policy is 'sometimes'"):
        run.save("x", policy="sometimes")
    for path in ("../x", "/etc/passwd", "ck/../../x", "."):
        with pytest.raises(ValueError, match="expected one below base_path"):
            run.save(path, base_path=".")
    with pytest.raises(TypeError):
        run.save(5)
    assert run.save() == run.save("s3://bucket/x") == run.save("nothing.*") == []
    said = capsys.readouterr().err
    assert "s3://bucket/x" in said and "'nothing.*') found no file yet" in said


def test_what_is_no_file_is_passed_over(here: Path) -> None:
    """FIFOs are not read, links to files are followed, links that lead nowhere are not there."""
    os.mkfifo(here / "ck" / "fifo")
    (here / "ck" / "link").symlink_to(here / "y.txt")
    (here / "ck" / "broken").symlink_to(here / "nowhere")
    run = sdk.init()
    run.save("ck/*")
    assert sorted(kept(run)) == ["ck/a.pt", "ck/link", "ck/sub/b.pt"] and kept(run)["ck/link"] == "e"


def test_files_that_were_written_into_run_dir_are_kept_as_they_are(here: Path) -> None:
    """W&B's scripts save what they wrote there."""
    run = sdk.init()
    path = Path(run.dir, "sub", "model.h5")
    path.parent.mkdir()
    path.write_text("m")
    assert run.save(str(path)) == run.save(os.path.join(run.dir, "sub", "*.h5"), base_path=run.dir) == [str(path)]
    assert kept(run) == {"sub/model.h5": "m"}


def test_in_a_forked_child_every_policy_is_now(here: Path) -> None:
    """Its parent ends the run, and may do so before the child has a last file."""
    run = sdk.init()
    run._pid += 1
    run.save("ck/a.pt", policy="end")
    run._pid -= 1
    assert kept(run) == {"ck/a.pt": "a"} and run._patterns is None


def test_a_run_that_was_removed_stays_removed(tmp_path: Path) -> None:
    """Whoever comes late with a file for it does not make its directory again."""
    with pytest.raises(FileNotFoundError, match="removed"):
        runfiles.put_bytes(str(tmp_path / "run" / "files"), "a", b"")
    assert os.listdir(tmp_path) == []


def test_one_call_copies_a_bounded_number(world: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond it waits for the keeper."""
    for number in range(10):
        (here / f"n{number}").write_text("x")
    monkeypatch.setattr(_files, "FILES_MAX", 8)
    run = sdk.init()
    found = _files.expand(str(here / "n*"), str(here), True)
    assert len(found) == 8
    run._keep(found, "now", files_max=5)
    assert len(kept(run)) == 5 and len(waiting(world)) == 3
    for number in range(10):
        (here / f"n{number}").write_text("y" * 60)
    monkeypatch.setattr(_files, "CALL_BYTES_MAX", 150)
    run._keep(found, "now", files_max=100)
    assert sum(text == "y" * 60 for text in kept(run).values()) == 2 and len(waiting(world)) == 3 + 6


def test_trouble_with_a_disk_never_reaches_the_training(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy that fails is said; nothing half stands in its place."""
    run = sdk.init()
    disk = FailingFiles()
    disk.refuse("append")
    copy = runfiles.copy_in
    monkeypatch.setattr(runfiles, "copy_in", lambda source, directory, name: copy(source, directory, name, disk))
    run.save("ck/a.pt")
    assert "cannot keep" in capsys.readouterr().err
    assert kept(run) == {} and os.listdir(os.path.join(run.dir, "ck")) == []


def test_log_code(here: Path) -> None:
    """The Python files below a directory, or those that functions choose, of the path or of path and root."""
    for name in ("a.py", "p/b.py", "p/c.sh", ".git/d.py", "venv/lib/e.py", "__pycache__/f.py", "wandb/g.py"):
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (here / "venv" / "pyvenv.cfg").write_text("")
    run = sdk.init(project="p")
    code = run.log_code()
    assert code is not None and code == Code("source-p", str(here), [f"{run.dir}/code/a.py", f"{run.dir}/code/p/b.py"])
    assert code.wait() is code
    assert run.log_code("nowhere") is None
    chosen = run.log_code(
        here,
        name="mine",
        include_fn=lambda path: path.endswith((".py", ".sh")),
        exclude_fn=lambda path, root: path == f"{root}/a.py",
    )
    assert chosen is not None and chosen.name == "mine" and len(chosen.paths) == 2
    assert kept(run) == {"code/a.py": "a.py", "code/p/b.py": "p/b.py", "code/p/c.sh": "p/c.sh"}


def test_code_is_not_kept_where_that_is_switched_off(here: Path) -> None:
    """W&B's word for it."""
    (here / "a.py").write_text("")
    run = sdk.init(settings={"disable_code": True})
    assert run.log_code() is None and kept(run) == {}


def test_disabled_keeps_nothing(here: Path) -> None:
    """No store, no copies."""
    run = sdk.init(mode="disabled")
    assert run.save("ck/*") == [] and run.log_code() is None


def test_restore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of another run, of this machine's store, as an open copy in this one's directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ck").mkdir()
    (tmp_path / "ck" / "a.txt").write_text("old")
    options: dict[str, Any] = {
        "dir": str(tmp_path / "store"),
        "settings": {"autostart": False, "silent": True, "console": "off"},
    }
    first = sdk.init(project="p", id="one", **options)
    first.save("ck/a.txt")
    first.finish()
    second = sdk.init(project="p", id="two", **options)
    with sdk.restore("ck/a.txt", "p/one") as file:
        assert file.name == os.path.join(second.dir, "ck", "a.txt") and file.read() == "old"
    Path(second.dir, "ck", "a.txt").write_text("mine")
    with second.restore("ck/a.txt", "me/p/one") as file:
        assert file.read() == "mine"
    with second.restore("ck/a.txt", "one", replace=True) as file:
        assert file.read() == "old"
    with second.restore("ck/a.txt", "one", root=str(tmp_path / "out")) as file:
        assert file.name == str(tmp_path / "out" / "ck" / "a.txt")
    (again,) = sdk.Api(dir=options["dir"]).run("p/one").files()
    with again.download(str(tmp_path / "down")) as file:
        assert (again.name, again.size, file.read()) == ("ck/a.txt", 3, "old")
    with pytest.raises(ValueError, match="replace=True or exist_ok=True"):
        again.download(str(tmp_path / "down"))
    with pytest.raises(sdk.Error, match=r"no file 'ck/b.txt'. It has 'ck/a.txt'"):
        second.restore("ck/b.txt", "one")
    with pytest.raises(ValueError, match="expected one below"):
        second.restore("../a.txt", "one")
    second.finish()


@pytest.mark.parametrize("name", ["", "/", "/a", "..", "a/../../b", "a/..", ".", "a\0b", "x" * 2000, "a/" * 40 + "b"])
def test_names_that_lead_out_or_cannot_be(name: str) -> None:
    """They are refused before anything is touched."""
    with pytest.raises(ValueError, match="the name of a file of a run"):
        runfiles.check_name(name)


def test_plain_names() -> None:
    """Slashes and dots that say nothing are dropped."""
    assert [runfiles.check_name(name) for name in ("a//b/./c", "a/b/", "..a/b", "ü")] == ["a/b/c", "a/b", "..a/b", "ü"]


def test_no_link_is_followed(tmp_path: Path) -> None:
    """Neither to write, nor to list, nor to read."""
    directory, outside = tmp_path / "files", tmp_path / "outside"
    directory.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("s")
    (directory / "link").symlink_to(outside)
    (directory / "file").symlink_to(outside / "secret")
    with pytest.raises(StoreError, match="is a link out of"):
        runfiles.put_bytes(str(directory), "link/x", b"")
    with pytest.raises(StoreError, match="is a link out of"):
        runfiles.put_bytes(str(directory), "link/a/b/x", b"")
    assert list(runfiles.walk(str(directory))) == [] and os.listdir(outside) == ["secret"]
    for name in ("link/secret", "file"):
        with pytest.raises(OSError):
            runfiles.open_kept(str(directory), name)
    runfiles.put_bytes(str(directory), "file", b"mine")
    assert (outside / "secret").read_text() == "s" and (directory / "file").read_text() == "mine"


def test_a_listing_is_bounded_and_passes_over_drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither many files nor deep directories make it endless; what is not finished is not there."""
    for number in range(5):
        (tmp_path / f"{number}").write_text("")
    (tmp_path / ".0123456789abcdef.draft").write_text("")
    deep = tmp_path.joinpath(*["d"] * (runfiles.DEPTH_MAX + 2))
    deep.mkdir(parents=True)
    (deep / "x").write_text("")
    assert len(list(runfiles.walk(str(tmp_path)))) == 5
    monkeypatch.setattr(runfiles, "LISTED_MAX", 3)
    assert len(list(runfiles.walk(str(tmp_path)))) == 3
