from __future__ import annotations

import csv
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from daemon.cli import cli
from daemon.commands import export
from daemon.commands.cells import cells
from daemon.commands.common import write_table
from sdk.reader import open_store
from sdk.segment.naming import RUNS, TRASH
from tests.builders import START_NS, RunBuilder, make_run, make_store
from tests.called import said, stepd


@pytest.fixture
def store(tmp_path: Path) -> str:
    path = make_store(tmp_path)
    rows = [{"train/loss": 1 / (i + 1), "val/acc": i / 50, "lr": 0.1} for i in range(50)]
    make_run(path, "a41f", rows, config={"lr": 0.1, "model": {"depth": 3}}, tags=["one"], notes="hm")
    make_run(path, "b7c2", [{"train/loss": 2.0, "text": "x"}], name="brave-fox", started_ns=START_NS + 10**9)
    return path


def test_dir_before_and_after_the_verb(store: str) -> None:
    """--dir means the store in both places."""
    assert CliRunner().invoke(cli, ["runs", "--dir", store]).output == said(store, "runs")


def test_no_store(tmp_path: Path) -> None:
    """A missing store is one line with a cure and exit code 1, and is not created."""
    result = stepd(str(tmp_path / "none"), "runs")
    assert result.exit_code == 1
    assert result.stderr.startswith("stepd: there is no store at ")
    assert "--dir PATH" in result.stderr
    assert not (tmp_path / "none").exists()


def test_runs(store: str) -> None:
    """A table, the latest first; a project narrows it."""
    head, first, second = said(store, "runs").splitlines()
    assert head.split() == [
        "ID",
        "NAME",
        "STATE",
        "STARTED",
        "STEP",
        "lr",
        "model.depth",
        "best:val/acc",
        "best:train/loss",
    ]
    assert first.startswith("b7c2  brave-fox")
    assert second.split()[2:3] + second.split()[4:] == ["finished", "49", "0.1", "3", "0.98", "0.02"]
    assert "holds no run of project 'x'" in said(store, "runs", "--project", "x")
    assert [run["id"] for run in json.loads(said(store, "runs", "--json"))] == ["b7c2", "a41f"]


def test_runs_of_an_empty_store(tmp_path: Path) -> None:
    """An empty store says how to fill it."""
    path = make_store(tmp_path)
    assert "sdk.init" in said(path, "runs")
    assert json.loads(said(path, "runs", "--json")) == []
    assert stepd(path, "show").exit_code == 1


def test_show(store: str) -> None:
    """Facts, config, summary, streams, and keys in sections."""
    text = said(store, "show", "a41f")
    for part in ("calm-otter-12 (a41f)", "project digits", "finished", "one", "hm", "53 records", "steps up to 49"):
        assert part in text
    assert '\n  model  {"depth": 3}\n' in text
    assert "\nkeys\n  lr\n  train/  loss\n  val/  acc\n" in text
    assert "main" in text.split("\nstreams\n")[1]
    document = json.loads(said(store, "show", "a41f", "--json"))
    assert document["keys"] == ["lr", "train/loss", "val/acc"]
    assert document["summary"]["val/acc"] == 0.98
    assert (document["config"]["model"], document["gaps"], document["damage"]) == ({"depth": 3}, [], [])
    assert document["streams"][0]["state"] == "finished"


def test_show_tells_losses(tmp_path: Path) -> None:
    """Refused records and damage are shown."""
    path = make_store(tmp_path)
    run = RunBuilder(path)
    main = run.stream()
    main.gap(episode=1, count=313, step_min=8001, step_max=8313, start_ns=START_NS, end_ns=START_NS, reason="disk full")
    main.meta({"misuse": {"bad": "a lock cannot be stored"}})
    for step in range(50):
        main.log({"loss": float(step)})
    run.flush()
    segment = Path(run.daemon.paths[0])
    run.close()
    content = bytearray(segment.read_bytes())
    main.finish()
    content[-60] ^= 1
    segment.write_bytes(content)
    text = said(path, "show")
    assert "\ndamage\n" in text
    content[-60] ^= 1
    segment.write_bytes(content)
    text = said(path, "show")
    assert "313 records (steps 8001–8313) of stream" in text
    assert "disk full" in text
    assert "a lock cannot be stored" in text


def test_show_tells_how_it_ended(tmp_path: Path) -> None:
    """The exit code, the exception with its traceback, and what was alerted, of which nothing steers the terminal."""
    path = make_store(tmp_path)
    run = RunBuilder(path)
    main = run.stream()
    main.meta({"alert": {"1700000000000000000": {"title": "loss", "text": "is NaN", "level": "ERROR"}}})
    main.meta(
        {"error": {"type": "ValueError", "message": "b\x1b[1mad", "traceback": "Traceback\n  File x\nValueError"}}
    )
    main.finish("failed", 3)
    run.seal()
    text = said(path, "show")
    assert "failed, exit code 3" in text.splitlines()[0]
    assert "\nended by ValueError: b?[1mad\n  Traceback\n    File x\n  ValueError\n" in text
    assert "ERROR  loss: is NaN" in text.split("\nalerts\n")[1]
    document = json.loads(said(path, "show", "--json"))
    assert (document["exit_code"], document["error"]["type"], document["alerts"][0]["title"]) == (
        3,
        "ValueError",
        "loss",
    )


def test_unknown_run(store: str) -> None:
    """One line that names the nearest, a cure that can be pasted, exit code 1."""
    result = stepd(store, "show", "a42f")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0].startswith("stepd: no run matches 'a42f'. In ")
    assert "Try: stepd show a41f" in result.stderr
    for verb in ("why", "watch", "report", "compare", "logs"):
        assert stepd(store, verb, "a42f").stderr.endswith(f"Try: stepd {verb} a41f\n")
    assert stepd(store, "set", "a42f", "name=x").stderr.endswith("Try: stepd show a41f\n")
    assert stepd(store, "tail", "a41f", "val/ac").stderr.endswith("Try: stepd tail a41f val/acc\n")


def test_tail(store: str) -> None:
    """The last rows; words are a run or keys."""
    lines = said(store, "tail", "a41f", "-n", "2").splitlines()
    assert [line.split()[0] for line in lines] == ["48", "49"]
    assert "val/acc=0.98" in lines[1]
    assert said(store, "tail", "text").split()[-1] == "text=x"
    (line,) = said(store, "tail", "a41f", "lr", "-n1").splitlines()
    assert line.endswith("  lr=0.1")
    assert "loss" not in line
    (text,) = said(store, "tail", "--json").splitlines()
    assert json.loads(text)["text"] == "x"
    assert stepd(store, "tail", "a41f", "b7c2").exit_code == 2


def test_tail_follows_to_the_end(store: str) -> None:
    """A run that has ended ends the following."""
    assert len(said(store, "tail", "-f", "a41f").splitlines()) == 10


def test_wide_letters_take_two_cells(capsys: pytest.CaptureFixture[str]) -> None:
    """A table's columns stay below one another whatever script they are in."""
    write_table(("名前", "B", "C"), [("日本語", 1, "x"), ("ab", "猫", "x"), ("e\u0301", "", "x")], right=(1,))
    assert {cells(line[:-1]) for line in capsys.readouterr().out.splitlines()} == {12}


def test_unknown_key(store: str) -> None:
    """A word that is neither run nor key names the nearest keys, else the nearest runs."""
    result = stepd(store, "tail", "a41f", "los")
    assert result.exit_code == 1
    assert "'los' is no run, and no key of a41f. Nearest keys: 'train/loss'" in result.stderr
    assert "no key of b7c2. Nearest runs: 'a41f'\n  Try: stepd plot a41f\n" in stepd(store, "plot", "a41g").stderr


@pytest.fixture
def odd(tmp_path: Path) -> str:
    """A run with everything that is hard to write down."""
    path = make_store(tmp_path)
    rows: list[dict[str, Any]] = [
        {"x": 0.1 + 0.2, "n": 2**53 + 1, "ok": True},
        {"x": math.nan, "s": 'a,"b"\nc', "nothing": None},
        {"x": math.inf, "list": [1, {2: "two"}], "bytes": b"\0\xff", "_own": 1, "nested": {"a": 5}},
        {"x": 5e-324, "surrogate": "\ud800"},
    ]
    make_run(path, "a41f", rows, name="evil\x1b[31m")
    return path


def test_export_lines(odd: str) -> None:
    """Every row once, in step order; floats come back with the same bits."""
    rows = [json.loads(line) for line in said(odd, "export").splitlines()]
    assert [row["_step"] for row in rows] == [0, 1, 2, 3]
    assert [row["x"] for row in rows if row["_step"] != 1] == [0.1 + 0.2, math.inf, 5e-324]
    assert math.isnan(rows[1]["x"])
    assert (rows[0]["n"], rows[0]["ok"], rows[1]["nothing"], rows[1]["s"]) == (2**53 + 1, True, None, 'a,"b"\nc')
    assert (rows[2]["list"], rows[2]["bytes"]) == ([1, {"2": "two"}], {"base64": "AP8="})
    assert (rows[2]["_own"], rows[2]["nested.a"], rows[3]["surrogate"]) == (1, 5, "\ud800")


def test_export_csv(odd: str, tmp_path: Path) -> None:
    """One column for each key of any row."""
    output = tmp_path / "out.csv"
    result = stepd(odd, "export", "--format", "csv", "-o", str(output))
    assert result.exit_code == 0
    assert result.stderr == f"exported 4 rows of a41f to {output}\n"
    text = output.read_bytes().decode("utf-8", "surrogatepass")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0])[:3] == ["_step", "_timestamp", "_own"]
    assert [float(row["x"]) for row in rows][::2] == [0.1 + 0.2, math.inf]
    assert (rows[0]["n"], rows[0]["ok"], rows[0]["s"], rows[1]["s"]) == (str(2**53 + 1), "True", "", 'a,"b"\nc')
    assert json.loads(rows[2]["list"]) == [1, {"2": "two"}]


def test_export_to_nowhere(store: str, tmp_path: Path) -> None:
    """A file that cannot be written is an error, not a traceback, and leaves nothing behind."""
    result = stepd(store, "export", "-o", str(tmp_path / "none" / "file"))
    assert result.exit_code == 1
    assert "cannot write the export" in result.stderr


@pytest.mark.parametrize("name", ["x" * 256, "nul\0", "none/x", "."])
def test_an_export_that_fails_leaves_nothing_behind(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A name that no file can have is an error, and no draft stays in the directory."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    result = stepd(store, "export", "-o", name)
    assert result.exit_code == 1
    assert "cannot write the export" in result.stderr
    assert os.listdir() == []


def test_an_export_that_breaks_off_replaces_nothing(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there before stays whole when the export does not come to its end."""
    (tmp_path / "out").write_text("before")
    monkeypatch.setattr(export, "to_json", lambda row: 1 / 0)
    result = CliRunner().invoke(cli, ["--dir", store, "export", "-o", str(tmp_path / "out")])
    assert isinstance(result.exception, ZeroDivisionError)
    assert (tmp_path / "out").read_text() == "before"
    assert sorted(os.listdir(tmp_path)) == ["out", "store"]


def test_export_into_a_pipe(store: str, tmp_path: Path) -> None:
    """What is no file is written to, not replaced by one."""
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert stepd(store, "export", "-o", pipe).exit_code == 0
    assert os.read(reading, 1 << 16).startswith(b'{"_step": 0')
    os.close(reading)


def test_control_characters_do_not_reach_the_terminal(odd: str) -> None:
    """A name from the store cannot steer it."""
    for words in (["runs"], ["show"], ["tail"], ["plot", "x"], ["plot", "a41f", "latest", "x"], ["rm", "a41f"]):
        result = stepd(odd, *words)
        assert "\x1b" not in result.output + result.stderr, words


def test_rm_and_undo(store: str) -> None:
    """A run goes to the trash and comes back with the printed command."""
    directory = Path(store, RUNS, "a41f")
    text = said(store, "rm", "a41f")
    assert not directory.exists()
    assert [run.id for run in open_store(store).runs()] == ["b7c2"]
    undo = text.split("undo: ")[1].split()
    assert undo[0] == "mv"
    os.rename(undo[1], undo[2])
    assert open_store(store).run("a41f").keys() == ["lr", "train/loss", "val/acc"]


def test_rm_refuses_what_runs(store: str) -> None:
    """A running run is only removed with --force."""
    run = RunBuilder(store, "live")
    run.stream()
    run.close()
    result = stepd(store, "rm", "a41f", "live")
    assert result.exit_code == 1
    assert "run live is still running" in result.stderr
    assert "stepd rm --force live" in result.stderr
    assert Path(store, RUNS, "a41f").exists()
    said(store, "rm", "--force", "live")
    assert stepd(store, "rm").exit_code == 2


def test_rm_twice_in_a_second_and_purge(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two removals of one id do not collide; after seven days they are gone, other files are not."""
    now = START_NS
    monkeypatch.setattr("daemon.commands.rm.clock.wall_ns", lambda: now)
    trash = Path(store, TRASH)
    said(store, "rm", "a41f")
    make_run(store, "a41f")
    said(store, "rm", "a41f")
    (trash / "notes").mkdir()
    assert len(os.listdir(trash)) == 3
    now += 7 * 86_400 * 10**9
    said(store, "rm", "latest")
    assert len(os.listdir(trash)) == 4
    now += 2 * 10**9
    make_run(store, "c")
    said(store, "rm", "c")
    assert sorted(name.split("-")[-1] for name in os.listdir(trash)) == ["b7c2", "c", "notes"]


def test_rm_in_a_store_of_others(store: str) -> None:
    """In a store that others can write nothing is removed."""
    os.chmod(store, 0o777)
    result = stepd(store, "rm", "a41f")
    assert result.exit_code == 1
    assert "not yours alone" in result.stderr
