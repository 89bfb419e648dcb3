"""`stepd import`: what it prints, what it exits with, and a real process that is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
from click.testing import CliRunner

from daemon.cli import cli
from daemon.formats.scalar_events import scalar_records
from sdk.reader import Store
from tests.importing import event_files as made
from tests.importing.event_files import simple, tensor, values, write


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        write(
            tmp_path / "logs" / name / "events.out.tfevents.1.host",
            *(values(step, simple("loss", step)) for step in range(5)),
        )
    return tmp_path / "logs"


def invoke(tmp_path: Path, *words: str) -> Any:
    return CliRunner().invoke(cli, ["--dir", str(tmp_path / "store"), "import", *words])


def test_a_table_says_what_came_of_each_run(tmp_path: Path, logs: Path) -> None:
    """And a last line what came of all; the second time nothing is to be done."""
    result = invoke(tmp_path, f"tensorboard:{logs}")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].split() == ["RUN", "PROJECT", "NAME", "POINTS", "SIZE", "STATE"]
    assert "2 imported: 10 points from" in result.stdout
    assert "2 up to date" in invoke(tmp_path, f"tensorboard:{logs}").stdout
    assert {run.name for run in Store(str(tmp_path / "store")).runs("logs")} == {"a", "b"}
    shown = CliRunner().invoke(cli, ["--dir", str(tmp_path / "store"), "show", "a"]).stdout
    assert f"from      tensorboard:{logs / 'a'} (1 file, " in shown


def test_project_and_name_are_what_the_command_says(tmp_path: Path, logs: Path) -> None:
    """Of several runs the name stands before each one's own; another name is something to be done."""
    invoke(tmp_path, f"tensorboard:{logs}")
    result = invoke(tmp_path, f"tensorboard:{logs}", "--project", "p", "--name", "old")
    assert "2 imported anew" in result.stdout
    assert {run.name for run in Store(str(tmp_path / "store")).runs("p")} == {"old/a", "old/b"}
    assert "2 up to date" in invoke(tmp_path, f"tensorboard:{logs}", "--project", "p", "--name", "old").stdout


def test_what_is_lost_is_said_and_in_the_exit_code(tmp_path: Path) -> None:
    """One for what a store cannot hold, each time; two for misuse."""
    write(
        tmp_path / "logs" / "events.out.tfevents.1.host",
        values(0, simple("loss", 1), tensor("image", made.strings(b"1", b"1", b"none"), "images")),
    )
    result = invoke(tmp_path, f"tensorboard:{tmp_path / 'logs'}")
    assert result.exit_code == 1
    assert "lost: images that cannot be stored × 1" in result.stdout
    again = invoke(tmp_path, f"tensorboard:{tmp_path / 'logs'}")
    assert again.exit_code == 1
    assert "up to date; lost: images that cannot be stored × 1" in again.stdout
    told = json.loads(invoke(tmp_path, f"tensorboard:{tmp_path / 'logs'}", "--name", "x", "--json").stdout)
    assert (told["exact"], told["runs"][0]["lost"]) == (False, {"images that cannot be stored": 1})
    for words in (
        ["nothing:x"],
        ["tensorboard:"],
        [f"tensorboard:{tmp_path / 'none'}"],
        [f"tensorboard:{tmp_path}", "--project", ""],
    ):
        assert invoke(tmp_path, *words).exit_code == 2, words


def test_a_dry_run_makes_no_store(tmp_path: Path, logs: Path) -> None:
    """It says what an import would do."""
    result = invoke(tmp_path, f"tensorboard:{logs}", "--dry-run")
    assert result.exit_code == 0
    assert "2 would be imported; nothing was done" in result.stdout
    assert "POINTS" not in result.stdout
    assert not (tmp_path / "store").exists()


def test_a_source_with_nothing_to_import_is_misuse(tmp_path: Path) -> None:
    """A file that is no event file, one that nothing was written to, a pattern without a match: 2, and what was looked for."""
    (tmp_path / "train.py").write_text("print()")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "events.out.tfevents.1.host").touch()
    for place, said in (
        ("train.py", "expected 'tfevents' in its name"), ("logs", "at least one whole record"), ("no*", "nothing is called"),
    ):  # fmt: skip
        result = invoke(tmp_path, f"tensorboard:{tmp_path / place}")
        assert (result.exit_code, said in " ".join(result.stderr.split())) == (2, True), result.stderr
    for place in ("train.py", "none"):
        result = invoke(tmp_path, f"wandb:{tmp_path / place}")
        assert (result.exit_code, "no .wandb file" in " ".join(result.stderr.split())) == (2, True), result.stderr
    assert not (tmp_path / "store").exists()


def test_a_pattern_is_what_it_matches(tmp_path: Path, logs: Path) -> None:
    """No shell expands it behind the kind. The runs are those of the directory before it, called as there."""
    result = invoke(tmp_path, f"tensorboard:{logs}/[a]*")
    assert result.exit_code == 0, result.output
    assert [(run.project, run.name) for run in Store(str(tmp_path / "store")).runs()] == [("logs", "a")]
    told = json.loads(invoke(tmp_path, f"tensorboard:{logs}", "--json").stdout)
    assert {one["name"]: one["state"] for one in told["runs"]} == {"a": "up to date", "b": "imported"}
    (logs / "README").touch()
    assert "2 up to date" in invoke(tmp_path, f"tensorboard:{logs}/**").stdout


def test_what_stays_is_called_as_in_the_store(tmp_path: Path, logs: Path) -> None:
    """A directory in the source of an earlier import is that run, under the name that it has."""
    invoke(tmp_path, f"tensorboard:{logs}")
    (told,) = json.loads(invoke(tmp_path, f"tensorboard:{logs / 'a'}", "--json").stdout)["runs"]
    assert (told["project"], told["name"], told["state"]) == ("logs", "a", "up to date")


def test_a_process_that_is_killed_leaves_nothing_half(tmp_path: Path) -> None:
    """SIGKILL as soon as the run is being written; the same command then makes one whole run."""
    steps = numpy.arange(20_000)
    path = write(tmp_path / "logs" / "events.out.tfevents.1.host")
    with open(path, "ab") as file:
        file.writelines(scalar_records([f"key{key}" for key in range(20)], made.START + steps, steps, [steps] * 20))
    store = str(tmp_path / "store")
    words = [sys.executable, "-m", "daemon", "--dir", store, "import", f"tensorboard:{tmp_path / 'logs'}"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not any(
            name.endswith(".new") for name in _listed(os.path.join(store, "importing"))
        ):
            pass
    finally:
        process.kill()
        process.wait()
    for run in Store(store).runs():
        assert run.keys() == sorted(f"key{key}" for key in range(20))
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0
    (run,) = Store(store).runs()
    assert [len(run.series(f"key{key}")) for key in (0, 19)] == [20_000, 20_000]
    assert os.listdir(os.path.join(store, "importing")) == ["lock"]


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
