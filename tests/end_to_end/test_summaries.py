"""Summaries, axes and epochs of real runs: read in the trainer without waiting, and afterwards by anybody."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import sdk
from sdk import _metric
from sdk._stream import Stream
from sdk.reader import metrics
from tests.end_to_end.world import Trainer, start_daemon, steps, until, until_drained

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in which nobody may wait for a daemon."""

    def flush(*arguments: object) -> bool:
        raise AssertionError("waits for a flush")

    monkeypatch.setattr(Stream, "flush", flush)


@pytest.fixture
def stopped_daemon(store: Path) -> Iterator[int]:
    """A daemon that serves the store and does not move."""
    pid = start_daemon(store)
    os.kill(pid, signal.SIGSTOP)
    yield pid
    os.kill(pid, signal.SIGCONT)


def train(run: Any, values: range, *, per_epoch: int = 10) -> None:
    """Logs a loss that is the step, in epochs."""
    for step in values:
        run.log({"train/loss": float(step), "epoch": step // per_epoch, "batch_size": 1 + step % 2})


def epoch_mean(epoch: int) -> float:
    """What `train` comes to in an epoch."""
    values = numpy.arange(10) + 10 * epoch
    return float(numpy.average(values, weights=1 + values % 2))


def define(run: Any) -> None:
    run.define_metric("train/*", summary="min,last", reduce="mean", weight="batch_size", step_metric="epoch")


def test_a_daemon_that_does_not_move_keeps_nobody(store: Path, stopped_daemon: int, impatient: None) -> None:
    """Summary, step and epochs are there at once, from the ring, again and again."""
    with sdk.init(id="run") as run:
        define(run)
        for epoch in range(3):
            train(run, range(10 * epoch, 10 * epoch + 10))
            assert run.summary["train/loss"] == {"min": 0.0, "last": 10.0 * epoch + 9}
            before = run.latest("train/loss_epoch", complete=True)
            assert before == (pytest.approx(epoch_mean(epoch - 1)) if epoch else None)
            assert run.latest("train/loss_epoch") == pytest.approx(epoch_mean(epoch))
            assert run.step == 10 * epoch + 10
        os.kill(stopped_daemon, signal.SIGCONT)
    assert run.latest("train/loss_epoch") == pytest.approx(epoch_mean(2))
    stored = sdk.open_store().run("run")
    assert stored.summary == dict(run.summary) | {
        k: v.as_dict() for k, v in run.summary.items() if hasattr(v, "as_dict")
    }
    series = stored.series("train/loss_epoch")
    assert series.value == pytest.approx([epoch_mean(epoch) for epoch in range(3)])
    assert (series.step.tolist(), series.x_name, series.x.tolist()) == ([9, 19, 29], "epoch", [0, 1, 2])


def test_without_a_daemon(store: Path, monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    """More than the ring holds: the spool has the rest."""
    monkeypatch.setenv("STEPD_AUTOSTART", "0")
    with sdk.init(id="run", settings=sdk.Settings(ring_bytes=256 * 1024, on_full="block")) as run:
        run.define_metric("x", summary="min,max,mean")
        for step in range(20_000):
            run.log({"x": step})
            if step % 5000 == 4999:
                assert run.summary["x"].as_dict() == {"min": 0, "max": step, "mean": step / 2}
    assert run.summary["x"]["max"] == 19_999


def test_crash_and_resume(store: Path) -> None:
    """What a killed attempt logged counts but for the steps that were taken back; trainer and reader agree."""

    def first(count: Any) -> None:
        run = sdk.init(id="run")
        define(run)
        train(run, range(27))
        count(1)
        signal.pause()

    trainer = Trainer(first)
    until(lambda: trainer.returned == 1)
    trainer.kill()
    trainer.wait()
    until_drained(store)
    with sdk.init(id="run", resume="must", resume_step=25) as run:
        assert run.latest("train/loss") == 24.0
        assert run.latest("train/loss_epoch", complete=True) == pytest.approx(epoch_mean(1))
        train(run, range(25, 31))
        assert run.latest("train/loss_epoch", complete=True) == pytest.approx(epoch_mean(2))
        assert run.summary["train/loss"] == {"min": 0.0, "last": 30.0}
    stored = sdk.open_store().run("run")
    assert stored.summary["train/loss"] == {"min": 0.0, "last": 30.0}
    assert stored.series("train/loss_epoch").value == pytest.approx([*map(epoch_mean, range(3)), 30.0])
    assert steps(store, "run", "train/loss_step") == list(range(31))


def test_a_forked_child_sees_its_own_records(store: Path) -> None:
    """And its parent's where it has none of a key."""
    with sdk.init(id="run") as run:
        run.log({"x": 1, "parent": 1})
        assert run.latest("x") == 1

        def child(count: Any) -> None:
            assert run.latest("x") in (None, 1)  # nothing of its own yet: what is stored
            run.log({"x": 2})
            assert run.latest("x") == run.summary["x"] == 2

        assert Trainer(child).wait() == 0
        assert run.latest("x") == 1


def test_a_disabled_run_remembers_numbers(store: Path) -> None:
    """As W&B's does; nothing large is kept."""
    with sdk.init(mode="disabled") as run:
        run.log({"loss": numpy.float32(0.5), "image": numpy.zeros((64, 64)), "nested": {"n": 1}})
        assert dict(run.summary) == {"loss": 0.5, "nested": {"n": 1}} or dict(run.summary) == {
            "loss": 0.5,
            "nested.n": 1,
        }
        assert (run.latest("loss"), run.latest("image")) == (0.5, None)
        run.log(None)


def test_the_axis_that_the_guide_gives(store: Path) -> None:
    """`wandb.log({'acc': 0.9, 'epoch': 3, 'batch': 117})` and a default axis by `define_metric`, as in the user's guide."""
    with sdk.init(id="run", project="digits") as run:
        run.define_metric("epoch")
        run.define_metric("acc", step_metric="epoch", summary="max")
        for batch in range(6):
            run.log({"acc": 0.5 + batch / 100, "epoch": batch // 2, "batch": 100 + batch})
        run.summary["best_accuracy"] = 0.9
    stored = sdk.open_store().run("run")
    assert stored.summary == {"acc": {"max": 0.55}, "epoch": 2, "batch": 105, "best_accuracy": 0.9}
    assert stored.series("acc").x.tolist() == [0, 0, 1, 1, 2, 2]
    assert stored.series("acc", x="batch").x.tolist() == list(range(100, 106))


def test_the_examples_of_the_page_run(store: Path) -> None:
    """Every example of docs/metrics.md does what it says, one after the other."""
    text = PAGE.read_text(encoding="utf-8")
    told: list[tuple[object, ...]] = []
    names: dict[str, Any] = {"print": lambda *said: told.append(said)}
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), names)
    assert told == [(1.0, 1.0), (0.5, 0.5), (1 / 3, 1 / 3)]
    assert (names["series"].x_name, names["series"].x.tolist()) == ("epoch", [0, 1, 2])
    assert names["stored"].summary["val/acc"] == {"max": 0.7, "last": 0.7}


def test_the_page_names_what_there_is() -> None:
    """Operations and reductions are the same on the page, for users and for readers."""
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"`{operation}`" in text for operation in metrics.OPERATIONS)
    assert all(f'"{how}"' in text for how in metrics.REDUCTIONS)
    assert (_metric._OPERATIONS, _metric._REDUCTIONS) == (metrics.OPERATIONS, metrics.REDUCTIONS)
    assert (tuple(_metric._GOALS.values()), _metric.OVER_DEFAULT) == (metrics.GOALS, metrics.OVER_DEFAULT)
