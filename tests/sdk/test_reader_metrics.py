from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy
import pytest

from sdk.errors import NotFoundError
from sdk.reader import Run, open_store
from sdk.reader.metrics import NOTHING_SAID, Definitions
from sdk.segment.columns import StoredGroup
from tests.builders import RunBuilder, compact, make_store


@pytest.fixture
def store(tmp_path: Path) -> str:
    return make_store(tmp_path)


def made(store: str, metrics: dict[str, Any], rows: list[dict[str, Any]], *, columns: bool = False) -> Run:
    """A run that defined metrics and then logged rows; ended, or as columns if wanted."""
    run = RunBuilder(store, "a41f", project="digits")
    stream = run.stream()
    stream.meta({"metric": metrics})
    for row in rows:
        stream.log(row)
    stream.finish()
    run.flush()
    run.seal()
    run.close()
    if columns:
        compact(run)
    return open_store(store).run("a41f")


def test_exact_before_longer_before_shorter_prefix() -> None:
    """And nothing is mixed: what holds is one definition."""
    said = Definitions(
        {
            "*": {"hidden": True},
            "val/*": {"goal": "maximize"},
            "val/acc": {"step_metric": "epoch"},
            "va*": {"over": "e"},
        }
    )
    assert said.of("val/acc").name == "val/acc"
    assert said.of("val/acc").goal is None
    assert said.of("val/loss").name == "val/*"
    assert said.of("vat").name == "va*"
    assert said.of("loss").hidden
    assert said.of("_private") is NOTHING_SAID


def test_a_key_is_not_its_own_axis() -> None:
    """`define_metric("*", step_metric="epoch")` says nothing of "epoch"."""
    said = Definitions({"*": {"step_metric": "epoch", "step_sync": True}})
    assert said.of("loss")[1:3] == ("epoch", True)
    assert said.of("epoch")[1:3] == (None, False)


@pytest.mark.parametrize(
    "facts",
    [
        {"a": 3}, {"a": {"summary": "min"}}, {"a": {"summary": [3, {}]}}, {"a": {"goal": ["x"], "reduce": {}}}, {"": {}},
        {"a": {"step_metric": 3, "over": "", "weight": b"x", "hidden": "yes"}}, {3: {}},
    ],
)  # fmt: skip
def test_facts_that_cannot_be_count_as_not_said(facts: dict[Any, Any]) -> None:
    """Files are hostile input."""
    assert Definitions(facts).of("a")[1:] == NOTHING_SAID[1:]


@pytest.mark.parametrize("columns", [False, True])
def test_summary_holds_what_was_asked_for(store: str, columns: bool) -> None:
    """min, max, mean, first, last, best by goal; "copy" is the last value, "none" nothing."""
    metrics = {
        "loss": {"summary": ["min", "max", "mean", "first", "last"]}, "acc": {"summary": ["best"], "goal": "maximize"},
        "lr": {"summary": ["none"]}, "n": {"summary": ["copy"]}, "err*": {"summary": ["best"], "goal": "minimize"},
    }  # fmt: skip
    rows = [
        {"loss": v, "acc": i, "lr": 0.1, "n": i, "errors": 9 - i, "text": "a"} for i, v in enumerate([3.0, 1.0, 2.0])
    ]
    assert made(store, metrics, rows, columns=columns).summary == {
        "loss": {"min": 1.0, "max": 3.0, "mean": 2.0, "first": 3.0, "last": 2.0},
        "acc": {"best": 2}, "n": 2, "errors": {"best": 7}, "text": "a",
    }  # fmt: skip


def test_one_nan_makes_min_max_and_mean_nan(store: str) -> None:
    """As in W&B; the best is the best of those that are numbers."""
    metrics = {"loss": {"summary": ["min", "max", "mean", "best", "last"], "goal": "minimize"}}
    found = made(store, metrics, [{"loss": v} for v in (2.0, math.nan, 1.0)]).summary["loss"]
    assert all(math.isnan(found[name]) for name in ("min", "max", "mean"))
    assert (found["best"], found["last"]) == (1.0, 1.0)


def test_what_was_set_wins(store: str) -> None:
    """An explicit value takes the place of all that was computed, and a deleted key stays away."""
    run = RunBuilder(store, "a41f")
    stream = run.stream()
    stream.meta({"metric": {"*": {"summary": ["min"]}}})
    stream.log({"a": 1, "b": 2, "c": 3})
    stream.meta({"summary": {"a": 7}, "summary_removed": ["b"]})
    run.flush()
    run.close()
    assert open_store(store).run("a41f").summary == {"a": 7, "c": {"min": 3}}


def test_values_that_are_no_numbers(store: str) -> None:
    """Have a first and a last; where only more was asked, the last value."""
    metrics = {"a": {"summary": ["min", "first", "last"]}, "b": {"summary": ["max"]}}
    found = made(store, metrics, [{"a": "x", "b": "x"}, {"a": "y", "b": "y"}])
    assert found.summary == {"a": {"first": "x", "last": "y"}, "b": "y"}


def test_rows_that_a_resume_hid_do_not_count(store: str) -> None:
    """Of the first attempt only what is below the step that was resumed at."""
    run = RunBuilder(store, "a41f")
    first = run.stream()
    first.meta({"metric": {"loss": {"summary": ["min", "mean", "first"]}}})
    for value in (8.0, 6.0, -1.0):
        first.log({"loss": value})
    second = run.stream(attempt=2, continues=first.hex, first_step=2)
    second.meta({"hide": {"from_step": 2}})
    second.log({"loss": 4.0}, step=2)
    run.flush()
    run.close()
    assert open_store(store).run("a41f").summary["loss"] == {"min": 4.0, "mean": 6.0, "first": 8.0}


def test_values_that_were_overwritten_do_not_count(store: str) -> None:
    """A row that was logged in pieces counts once, with its last value."""
    run = RunBuilder(store, "a41f")
    stream = run.stream()
    stream.meta({"metric": {"loss": {"summary": ["min", "mean"]}}})
    stream.log({"loss": -5.0}, step=0)
    stream.log({"loss": 1.0}, step=0)
    stream.log({"loss": 3.0}, step=1)
    run.flush()
    run.close()
    assert open_store(store).run("a41f").summary["loss"] == {"min": 1.0, "mean": 2.0}


def test_the_axis_of_a_series(store: str) -> None:
    """What was defined, the step, the time, or another key; a value whose row does not say stands at the last one."""
    metrics = {"val/*": {"step_metric": "epoch", "step_sync": True}, "raw": {"step_metric": "epoch"}}
    rows = [{"val/a": 1.0, "raw": 1}, {"epoch": 5}, {"val/a": 2.0, "raw": 2}, {"val/a": 3.0, "raw": 3, "epoch": 6}]
    run = made(store, metrics, rows)
    series = run.series("val/a")
    assert series.x_name == "epoch"
    assert numpy.array_equal(series.x, [math.nan, 5, 6], equal_nan=True)
    assert numpy.array_equal(run.series("raw").x, [math.nan, math.nan, 6], equal_nan=True)
    assert (run.series("epoch").x_name, run.series("epoch").x.tolist()) == ("step", [1, 3])
    assert run.series("val/a", x="step").x.tolist() == [0, 2, 3]
    assert run.series("val/a", x="time").x.tolist() == series.time.tolist()
    assert run.series("val/a", x="relative").x[0] == pytest.approx(series.time[0] - run.created)
    assert run.series("val/a", x="raw").x.tolist() == [1, 2, 3]
    with pytest.raises(NotFoundError, match="'nothing'"):
        run.series("val/a", x="nothing")


def test_an_axis_that_nobody_logged_says_nothing(store: str) -> None:
    """The values are there all the same."""
    series = made(store, {"a": {"step_metric": "epoch", "step_sync": True}}, [{"a": 1}, {"a": 2}]).series("a")
    assert series.value.tolist() == [1, 2]
    assert numpy.isnan(series.x).all()


def test_hidden_keys_are_kept_but_not_shown(store: str) -> None:
    """`keys` has them, `shown_keys` has not."""
    run = made(store, {"debug/*": {"hidden": True}}, [{"debug/a": 1, "b": 2}])
    assert run.keys() == ["b", "debug/a"]
    assert run.shown_keys() == ["b"]
    assert run.metric("debug/a").hidden


@pytest.mark.parametrize("late", [False, True])
def test_extremes_of_columns_are_told_by_their_directories(
    store: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many windows only the first and the last are read; all of them where a late row may have changed one."""
    run = RunBuilder(store, "a41f")
    stream = run.stream()
    stream.meta({"metric": {"a": {"summary": ["min", "max", "first", "last", "best"], "goal": "minimize"}}})
    for value in range(1000):
        stream.log({"a": 7.0 if value == 500 else float(abs(value - 600)), "b": 1})
    run.flush()
    if late:
        stream.log({"a": 3.0}, step=600)
        run.flush()
    compact(run, window=100)
    reads: list[str] = []
    values = StoredGroup.values
    monkeypatch.setattr(StoredGroup, "values", lambda self, key: (reads.append(key), values(self, key))[1])
    reader = open_store(store).run("a41f")
    low = 1.0 if late else 0.0
    assert reader.summary == {"a": {"min": low, "max": 600.0, "first": 600.0, "last": 399.0, "best": low}, "b": 1}
    assert (reads.count("a") <= 6) is not late
    run.close()
