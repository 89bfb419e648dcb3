from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy
import pytest

import sdk
from sdk import _globals, clock
from sdk.testing import FakeClock, captured


def test_rows_are_merged_by_step(world: Any) -> None:
    """Step and commit as in a store; equal to a list of dicts."""
    with captured() as rows:
        run = sdk.init(project="p", config={"lr": 1})
        assert sdk.log is run.log
        sdk.log({"a": 1})
        sdk.log({"a": 2}, commit=False)
        sdk.log({"b": {"c": 3}})
        sdk.log({"a": 4}, step=10)
        assert [row.committed for row in rows] == [True, True, False]
        sdk.log({"late": 5}, step=0)
        assert run.step == 10
        sdk.finish()
    assert rows == [{"a": 1, "late": 5}, {"a": 2, "b.c": 3}, {"a": 4}]
    assert [row.step for row in rows] == [0, 1, 10]
    assert rows[-1].committed
    assert rows[0].run == run.id
    assert len(rows) == 3
    assert rows[0:1] == [{"a": 1, "late": 5}]
    assert world.opened == []


def test_runs_have_the_readers_names(world: Any) -> None:
    """Config, summary, state and the rest of each run."""
    with captured() as rows:
        with sdk.init(project="p", name="n", group="g", job_type="j", notes="x", tags=["t"], config={"lr": 1}) as run:
            run.log({"loss": 2, "gone": 1})
            run.log({"loss": None})
            assert run.summary["loss"] == 2
            del run.summary["gone"]
            run.summary["best"] = 1
            run.config.batch = 3
            run.define_metric("loss", summary="min")
        with pytest.raises(ZeroDivisionError), sdk.init() as other:
            other.log({"x": 1})
            raise ZeroDivisionError
    first, second = rows.runs
    assert (first.name, first.project, first.group, first.job_type, first.notes, first.tags) == (
        "n",
        "p",
        "g",
        "j",
        "x",
        ["t"],
    )
    assert first.config == {"lr": 1, "batch": 3}
    assert first.summary == {"loss": {"min": 2}, "best": 1}
    assert first.metrics == {"loss": {"summary": ["min"]}}
    assert (first.state, second.state) == ("finished", "failed")


def test_errors_of_use_raise(world: Any) -> None:
    """As in life, with the same texts; with misuse="warn" the key is left out."""
    with captured() as rows:
        sdk.init()
        with pytest.raises(TypeError, match="key 0 is int"):
            sdk.log({3: 1})
        with pytest.raises(TypeError, match="expected a dict"):
            sdk.log([1])
        with pytest.raises(ValueError, match="step"):
            sdk.log({}, step=-1)
        sdk.init(reinit=True, misuse="warn")
        sdk.log({3: 1, "a": 1})
    assert rows == [{"a": 1}]


def test_late_steps(world: Any) -> None:
    """The setting counts."""
    with captured() as rows:
        sdk.init(settings={"late_steps": "drop"})
        sdk.log({"a": 1}, step=5)
        sdk.log({"a": 2}, step=4)
        sdk.init(settings={"late_steps": "error"}, reinit=True)
        sdk.log({"b": 1}, step=5)
        with pytest.raises(sdk.UsageError, match="late_steps"):
            sdk.log({"b": 2}, step=4)
    assert rows == [{"a": 1}, {"b": 1}]


def test_values_become_what_they_would_in_a_store(world: Any) -> None:
    """Arrays come back as arrays, tuples as lists, texts as texts."""
    with captured() as rows:
        sdk.init()
        sdk.log({"t": numpy.arange(3, dtype="f4"), "s": numpy.float32(0.5), "p": Path("x"), "l": (1, 2)})
    assert rows[0]["t"].dtype == numpy.float32
    assert (rows[0]["s"], rows[0]["p"], rows[0]["l"]) == (0.5, "x", [1, 2])


def test_nothing_outside_is_touched(
    world: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file, no thread, no line; also where the environment disables logging."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    threads = threading.active_count()
    with captured() as rows:
        sdk.init(id="i", resume="must")
        sdk.log({"a": 1})
        sdk.attach("i").log({"b": 1})
        assert threading.active_count() == threads
    assert rows == [{"a": 1}, {"b": 1}]
    assert not os.path.exists(world.store)
    assert capsys.readouterr().err == ""


def test_a_run_around_the_block_goes_on(world: Any) -> None:
    """It is set aside, also with blocks inside blocks."""
    outer = sdk.init()
    kept = sdk.log
    with captured() as rows:
        assert sdk.run is None
        with pytest.raises(sdk.Error, match="before init"):
            sdk.log({"a": 1})
        inner = sdk.init()
        with captured() as more:
            sdk.init()
            sdk.log({"c": 1})
        assert sdk.run is inner
        sdk.log({"b": 1})
    assert (rows, more) == ([{"b": 1}], [{"c": 1}])
    assert sdk.run is outer
    assert sdk.log is kept is world.stream.log
    assert sdk.config is outer.config
    assert list(_globals.state.unfinished.values()) == [outer]
    assert rows.runs[0].state == "finished"


def test_an_exception_leaves_the_block_clean(world: Any) -> None:
    """What was captured is there, and the process is as before."""
    with pytest.raises(ZeroDivisionError), captured() as rows:
        sdk.init()
        sdk.log({"a": 1})
        raise ZeroDivisionError
    assert rows == [{"a": 1}]
    assert sdk.run is None
    with pytest.raises(sdk.Error):
        sdk.log({"a": 1})


def test_fake_clock() -> None:
    """It stands until it is moved; `pause` moves it."""
    before = clock.monotonic
    with FakeClock(start_ns=5) as fake:
        assert (clock.wall_ns(), clock.monotonic(), clock.cpu()) == (5, 0.0, 0.0)
        clock.pause(2)
        fake.advance(-1)
        assert (clock.wall_ns(), clock.monotonic()) == (5 + 2 * 10**9, 2.0)
    assert clock.monotonic is before


def test_times_of_rows_come_from_the_clock(world: Any) -> None:
    """So that other people's tests can be exact."""
    with FakeClock(start_ns=10**9), captured() as rows:
        sdk.init()
        sdk.log({"a": 1})
        assert rows[0].time == 1.0


def test_summaries_and_epochs() -> None:
    """As in a store: what was defined, and the last complete epoch."""
    with captured() as rows:
        run = sdk.init()
        run.define_metric("loss", summary="min,mean", reduce="mean")
        for step in range(6):
            sdk.log({"loss": float(step), "epoch": step // 2})
        assert run.summary["loss"].as_dict() == {"min": 0.0, "mean": 2.5}
        complete = run.latest("loss_epoch", complete=True)
        assert (complete, run.latest("loss_epoch"), run.latest("none")) == (2.5, 4.5, None)
        sdk.finish()
    assert rows.runs[0].latest("loss_epoch") == 4.5
