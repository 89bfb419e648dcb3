from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from daemon.cli import cli
from daemon.commands.context_lines import _git_text
from sdk.segment.naming import run_path
from tests.builders import START_NS, make_run, make_store


@pytest.fixture
def store(tmp_path: Path) -> str:
    """Two runs; the latest has two files and one that is missing."""
    path = make_store(tmp_path)
    make_run(path, "a41f", [])
    run = make_run(path, "b7c2", [], name="brave-fox", started_ns=START_NS + 10**9)
    run.stream().meta({"file": {"gone.pt": {"size": 10, "modified_ns": 10**18, "source": "/a/gone.pt"}}})
    run.seal()
    for name, text in (("diff.patch", "+a\n"), ("code/train.py", "b = 1\x1b[31m\n")):
        file = Path(run_path(path, "b7c2"), "files", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


def stepd(store: str, *words: str) -> Result:
    result = CliRunner().invoke(cli, ["--dir", store, "files", *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_a_list(store: str) -> None:
    """Name, size and time; what is not as it was saved says so."""
    lines = stepd(store).stdout.splitlines()
    assert lines[0].split() == ["NAME", "SIZE", "CHANGED"]
    assert [line.split()[0] for line in lines[1:]] == ["code/train.py", "diff.patch", "gone.pt"]
    assert lines[3].endswith("missing") and "missing" not in lines[2]
    found = json.loads(stepd(store, "brave-fox", "--json").stdout)
    assert [(file["name"], file["size"], file["state"]) for file in found] == [
        ("code/train.py", 11, "kept"), ("diff.patch", 3, "kept"), ("gone.pt", 10, "missing"),
    ]  # fmt: skip
    assert "run a41f has no files" in stepd(store, "a41f").stderr


def test_one_file_is_printed(store: str) -> None:
    """Byte for byte where it is read by a program; with a pattern it is a list."""
    assert stepd(store, "b7c2", "code/train.py").stdout_bytes == b"b = 1\x1b[31m\n"
    assert stepd(store, "diff.patch").stdout == "+a\n"  # of the latest run
    assert "train.py" in stepd(store, "code/*").stdout


def test_a_terminal_gets_no_control_characters(store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file of a run may come from anywhere; bytes are refused with the cure."""
    from daemon.commands import files

    class Terminal:
        @staticmethod
        def isatty() -> bool:
            return True

    Path(run_path(store, "b7c2"), "files", "model.bin").write_bytes(b"\0\1")
    monkeypatch.setattr(files, "sys", type("Sys", (), {"stdout": Terminal}))
    assert "\x1b" not in stepd(store, "b7c2", "code/train.py").stdout
    result = stepd(store, "b7c2", "model.bin")
    assert result.exit_code == 1 and "is no text" in result.output and "-o DIR" in result.output


def test_files_are_copied_out(store: str, tmp_path: Path) -> None:
    """All of them or those that are named, with their times; what is missing or in the way is said."""
    out = tmp_path / "out"
    result = stepd(store, "b7c2", "-o", str(out))
    assert result.exit_code == 1 and "gone.pt" in result.stderr and "copied 2 of 3 files" in result.stdout
    assert (out / "diff.patch").read_text() == "+a\n" and (out / "code" / "train.py").exists()
    kept = os.stat(os.path.join(run_path(store, "b7c2"), "files", "diff.patch"))
    assert abs((out / "diff.patch").stat().st_mtime - kept.st_mtime) < 1e-3
    (out / "diff.patch").write_text("mine")
    result = stepd(store, "b7c2", "diff.patch", "-o", str(out))
    assert result.exit_code == 1 and "--overwrite" in result.stderr and (out / "diff.patch").read_text() == "mine"
    result = stepd(store, "b7c2", "diff.patch", "-o", str(out), "--overwrite")
    assert result.exit_code == 0 and (out / "diff.patch").read_text() == "+a\n"


def test_nothing_is_written_outside(store: str, tmp_path: Path) -> None:
    """Neither through a link in the store nor through one in the directory that is written to."""
    files, out, outside = Path(run_path(store, "b7c2"), "files"), tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    out.mkdir()
    (outside / "secret").write_text("s")
    (files / "link").symlink_to(outside)
    (files / "secret").symlink_to(outside / "secret")
    (out / "code").symlink_to(outside)
    result = stepd(store, "b7c2", "-o", str(out))
    assert "is a link out of" in result.stderr
    assert sorted(os.listdir(out)) == ["code", "diff.patch"] and os.listdir(outside) == ["secret"]


def test_what_files_take_of_the_disk_is_told(store: str) -> None:
    """`stepd du` has a column for them."""
    document = json.loads(CliRunner().invoke(cli, ["--dir", store, "du", "b7c2", "--json"]).stdout)
    (run,) = document["runs"]
    assert run["files"] >= 14 and run["total"] >= run["segments"] + run["files"]


@pytest.mark.parametrize("words", [["b7c2", "nope"], ["b7c2", "../../x"], ["nope"]])
def test_what_is_not_there(store: str, words: list[str]) -> None:
    """One line, exit code 1."""
    result = stepd(store, *words)
    assert result.exit_code == 1 and result.stderr.startswith("stepd: ")


def test_show_prints_where_a_run_came_from(store: str) -> None:
    """Command, commit, Python, host, and how many files there are; in JSON all facts."""
    run = make_run(store, "c3d4", [], started_ns=START_NS + 10**10)
    context = {
        "command": ["python", "train.py", "--name", "a b"], "cwd": "/work", "host": "node7", "user": "ada",
        "program": {"kind": "script", "name": "train.py"}, "launcher": {"name": "torchrun"},
        "python": {"version": "3.11.7", "implementation": "cpython", "executable": "/bin/python"},
        "packages": {"count": 70}, "git": {"commit": "0123456789abcdef", "branch": "main", "dirty": True, "files": ["diff.patch"]},
    }  # fmt: skip
    run.stream().meta({"context": context})
    run.seal()
    text = CliRunner().invoke(cli, ["--dir", store, "show", "c3d4"]).stdout
    for line in (
        "context",
        "  command   python train.py --name 'a b'",
        "  program   train.py (script, under torchrun)",
        "  in        /work",
        "  git       0123456789ab (main, with changes: diff.patch)",
        "  python    3.11.7 (cpython, 70 packages), /bin/python",
        "  host      node7, user ada",
    ):
        assert line in text.splitlines(), text
    assert "3 files" not in text
    assert json.loads(CliRunner().invoke(cli, ["--dir", store, "show", "c3d4", "--json"]).stdout)["context"] == context
    assert (
        "  files     3, 24 B, 1 not as they were saved; stepd files b7c2"
        in CliRunner().invoke(cli, ["--dir", store, "show", "b7c2"]).stdout
    )


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ({"program": {"kind": "script", "path": "/w/train.py"}, "python": {"version": "3.11.7"}},
         ["  program   /w/train.py (script)", "  python    3.11.7"]),
        ({"program": {"kind": "script"}, "python": {"executable": "/bin/python"}}, ["  program   script", "  python    /bin/python"]),
        ({"program": {}, "python": {"version": None}, "host": "node7"}, ["  host      node7"]),
    ],
)  # fmt: skip
def test_a_context_may_lack_parts(store: str, context: dict[str, object], expected: list[str]) -> None:
    """What another tool has written knows less: what is missing is not printed as None."""
    run = make_run(store, "d4e5", [], started_ns=START_NS + 10**10)
    run.stream().meta({"context": context})
    run.seal()
    text = CliRunner().invoke(cli, ["--dir", store, "show", "d4e5"]).stdout
    lines = text.splitlines()
    assert lines[lines.index("context") + 1 :][: len(expected) + 1] == [*expected, ""], text


@pytest.mark.parametrize(
    "context", [{"command": 5, "git": 7, "python": [], "host": 3}, {"git": {"commit": 5, "files": 7}}]
)
def test_hostile_facts_are_printed(store: str, context: dict[str, object]) -> None:
    """Whatever a store claims."""
    run = make_run(store, "c3d4", [], started_ns=START_NS + 10**10)
    run.stream().meta({"context": context})
    run.seal()
    result = CliRunner().invoke(cli, ["--dir", store, "show", "c3d4"])
    assert result.exit_code == 0, result.exception


def test_what_git_said_in_words() -> None:
    """Each kind of repository."""
    assert _git_text({"why": "no repository"}) == "no repository"
    assert _git_text({"branch": "main"}) == "no commit yet"
    assert _git_text({"commit": "ab", "detached": True, "untracked_count": 2}) == "ab (detached, 2 untracked)"
    assert _git_text({"commit": "ab"}) == "ab"
