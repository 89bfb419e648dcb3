"""Where a run came from, with a real daemon: what its workers find out after the trainer is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import sdk
from daemon.cli import cli
from sdk._files import SMALL_BYTES_MAX
from tests.daemon.test_observe_git import run_git
from tests.end_to_end.world import until

_TRAINER = """
import os, signal, sdk
run = sdk.init(project="p", id="short", settings={"console": "off"})
run.save("checkpoint.pt", policy="now")
run.save("last.txt", policy="end")
open("last.txt", "w").write("last")
sdk.log({"loss": 1.0})
run._stream.flush(10)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_trainer_that_was_killed_is_described_and_its_files_are_kept(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run of a moment: command, commit, changes, packages, the script, and a checkpoint too large for the call."""
    monkeypatch.setenv("STEPD_OBSERVE", "1")
    project = tmp_path / "project"
    project.mkdir()
    (project / "train.py").write_text("")
    run_git(project, "init", "-q", "-b", "main")
    run_git(project, "add", ".")
    run_git(project, "commit", "-qm", "first")
    (project / "train.py").write_text(_TRAINER)
    (project / "checkpoint.pt").write_bytes(b"c" * (SMALL_BYTES_MAX + 1))
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "NCCL_DEBUG": "INFO", "HF_TOKEN": "s3cr3t"}
    command = [sys.executable, "train.py", "--lr", "0.1", "--api-key", "s3cr3t"]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr

    def described() -> bool:
        run = sdk.open_store(str(store)).run("short")
        names = {file.name for file in run.files() if file.state == "kept"}
        return "code" in run.context and {"checkpoint.pt", "last.txt"} <= names

    until(described)
    run = sdk.open_store(str(store)).run("short")
    assert run.context["command"][-4:] == ["--lr", "0.1", "--api-key", "***"]
    assert run.context["program"]["path"] == str(project / "train.py")
    assert run.context["environment"]["NCCL_DEBUG"] == "INFO" and "s3cr3t" not in repr(run.context)
    assert run.context["git"]["commit"] == run_git(project, "rev-parse", "HEAD") and run.context["git"]["dirty"] is True
    assert {"checkpoint.pt", "code/train.py", "diff.patch", "requirements.txt"} <= {file.name for file in run.files()}
    assert "msgpack==" in Path(run.file("requirements.txt").path).read_text()
    shown = CliRunner().invoke(cli, ["--dir", str(store), "show", "short"]).output
    assert "diff.patch" in shown and "--api-key '***'" in shown
    out = tmp_path / "out"
    assert CliRunner().invoke(cli, ["--dir", str(store), "files", "short", "-o", str(out)]).exit_code == 0
    assert (out / "checkpoint.pt").stat().st_size == SMALL_BYTES_MAX + 1
    assert (out / "code" / "train.py").read_text() == _TRAINER
