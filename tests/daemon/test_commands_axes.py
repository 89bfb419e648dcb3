"""What `define_metric` said, in `plot`, `show`, `export` and `tail`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from daemon.cli import cli
from tests.builders import RunBuilder, make_store

METRICS = {
    "loss": {"step_metric": "epoch", "step_sync": True, "reduce": "mean"}, "debug/*": {"hidden": True},
    "acc": {"step_metric": "epoch"},
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> str:
    path = make_store(tmp_path)
    run = RunBuilder(path, "a41f")
    stream = run.stream()
    stream.meta({"metric": METRICS})
    for step in range(20):
        stream.log({"loss": 20.0 - step, "epoch": 9 - step // 5, "debug/loss": 1.0, "acc": step})
    stream.finish()
    run.flush()
    run.close()
    return path


def said(store: str, *words: str) -> str:
    result = CliRunner().invoke(cli, ["--dir", store, *words])
    assert result.exit_code == 0, result.output
    return result.output


def points(store: str, *words: str) -> dict[str, Any]:
    (curve,) = json.loads(said(store, "plot", *words, "--json"))
    return dict(curve)


def test_the_default_axis_of_a_plot_is_the_defined_one(store: str) -> None:
    """Its values rise, whatever the order they were logged in."""
    curve = points(store, "acc")
    assert (curve["x_name"], curve["x"]) == ("epoch", sorted(9 - step // 5 for step in range(20)))
    assert curve["value"][:5] == [15, 16, 17, 18, 19]
    assert said(store, "plot", "acc", "--width", "60").splitlines()[-2].split()[-1] == "epoch"


def test_another_axis_may_be_asked_for(store: str) -> None:
    """The step, the time, or a key."""
    assert points(store, "acc", "--x", "step")["x"] == list(range(20))
    assert points(store, "acc", "--x", "loss")["x"] == [float(n + 1) for n in range(20)]
    assert points(store, "acc", "--x", "relative")["x"][0] < 1
    assert "@ 2023-11-1" in said(store, "plot", "acc", "--x", "time")
    assert "no series 'nothing'" in CliRunner().invoke(cli, ["--dir", store, "plot", "acc", "--x", "nothing"]).output


def test_keys_with_different_axes_are_drawn_over_the_step(store: str) -> None:
    """One chart has one axis."""
    curves = json.loads(said(store, "plot", "acc", "epoch", "--json"))
    assert [curve["x_name"] for curve in curves] == ["step", "step"]


def test_hidden_keys_are_not_drawn_or_listed_unless_asked_for(store: str) -> None:
    """By name they are there."""
    assert "debug" not in said(store, "plot")
    assert "debug" not in said(store, "show")
    assert points(store, "debug/loss")["value"] == [1.0] * 20
    assert "debug/loss" in json.loads(said(store, "show", "--json"))["keys"]


def test_show_says_the_axes(store: str) -> None:
    """For people and for programs."""
    assert "epoch:  acc, loss, loss_epoch\n" in said(store, "show")
    assert json.loads(said(store, "show", "--json"))["axes"]["loss"] == "epoch"


def test_epochs_are_drawn_exported_and_tailed(store: str) -> None:
    """As if they had been logged."""
    assert points(store, "loss_epoch", "--x", "step")["x"] == [4, 9, 14, 19]
    rows = [json.loads(line) for line in said(store, "export").splitlines()]
    assert [row["_step"] for row in rows if "loss_epoch" in row] == [4, 9, 14, 19]
    assert said(store, "export", "--format", "csv").splitlines()[0].split(",")[2:] == [
        "acc", "debug/loss", "epoch", "loss", "loss_epoch", "loss_step"
    ]  # fmt: skip
    assert "loss_epoch" in said(store, "tail", "a41f", "loss_epoch")
