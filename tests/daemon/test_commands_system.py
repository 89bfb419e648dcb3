"""What was observed, on the command line: show, tail and plot find it, and everything else leaves it out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from daemon.cli import cli
from daemon.commands.status import _observing
from tests.builders import RunBuilder, make_store


@pytest.fixture
def store(tmp_path: Path) -> str:
    path = make_store(tmp_path)
    run = RunBuilder(path)
    main = run.stream()
    main.log({"loss": 0.5})
    system = run.stream("system")
    for used in (1 << 30, 2 << 30):
        system.log({"system/cpu": 150.0, "system/machine/memory_used": used, "system/gpu.0.utilization": 90.0})
    main.finish()
    run.seal()
    return path


def said(store: str, *words: str) -> str:
    result = CliRunner().invoke(cli, ["--dir", store, *words])
    assert result.exit_code == 0, result.output
    return result.output


def test_show_tells_what_was_last_seen(store: str) -> None:
    """A line for the training, one for the machine and one for each GPU, with units."""
    text = said(store, "show", "a41f")
    assert "system, last seen\n  training  cpu 150\n" in text
    assert "  gpu.0     utilization 90\n" in text
    assert "  machine   memory_used 2.1 GB\n" in text
    assert json.loads(said(store, "show", "a41f", "--json"))["system"]["system/cpu"] == 150.0


def test_its_keys_are_found_where_they_are_asked_for(store: str) -> None:
    """One key, a pattern, the last rows and a chart; not among the training's keys, rows or exports."""
    assert "system/machine/memory_used" in said(store, "show", "a41f", "system/*")
    row = json.loads(said(store, "tail", "a41f", "system/cpu", "-n", "1", "--json"))
    assert (row["_step"], row["system/cpu"]) == (1, 150.0)
    assert json.loads(said(store, "plot", "system/machine/memory_used", "--json"))[0]["value"] == [1 << 30, 2 << 30]
    assert "system" not in said(store, "tail", "a41f", "--json")
    assert "system" not in said(store, "export", "a41f", "--format", "csv")
    assert json.loads(said(store, "show", "a41f", "--json"))["keys"] == ["loss"]


def test_what_status_shows() -> None:
    """One line, or none where nobody observes."""
    assert _observing({"pid": None}) == ""
    told = {"pid": 7, "runs": ["a41f"], "samples": 1234, "skipped": 2, "error": "disk full", "gpu_note": ""}
    assert _observing(told) == "pid 7, 1 run, 1,234 samples; 2 skipped; disk full"
