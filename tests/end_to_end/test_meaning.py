"""What `log(data, step, commit)` means, through the whole way: trainer, wire, daemon, segments, reader."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sdk
from tests.end_to_end.world import Trainer, kill_daemon, settle, start_daemon
from tests.model import StreamModel

ROOT = Path(__file__).parents[2]
Call = tuple[dict[str, Any], "int | None", "bool | None"]


def random_calls(seed: random.Random, count: int) -> list[Call]:
    """Calls of every kind: pieces, commits, explicit, late and far steps, nested and odd values."""
    model, calls = StreamModel(), []
    for index in range(count):
        keys = seed.sample(["a", "b", "train/loss", "nested", "text", "flag", "none"], seed.randint(0, 4))
        values: dict[str, Any] = {
            "a": index, "b": seed.random(), "train/loss": math.inf, "nested": {"x": index, "y": "z"},
            "text": "ä" * seed.randint(0, 40), "flag": bool(index % 2), "none": None,
        }  # fmt: skip
        near = model.open_step
        step = seed.choice(
            [None, None, None, near, near + 1, near + seed.randint(2, 5), max(near - seed.randint(1, 4), 0)]
        )
        call = ({key: values[key] for key in keys}, step, seed.choice([None, None, True, False]))
        model.log(*call)
        calls.append(call)
    return calls


def rows_of(store: Path, run: str) -> dict[int, dict[str, Any]]:
    """Step to values, without the reader's own columns."""
    rows = sdk.open_store(store).run(run).rows()
    return {row["_step"]: {k: v for k, v in row.items() if not k.startswith("_")} for row in rows}


@pytest.mark.parametrize("pause", [0.0, 0.0005], ids=["one window", "many windows"])
def test_random_calls_give_the_rows_of_the_model(store: Path, pause: float) -> None:
    """2000 random calls in each of 8 runs: pieces that meet in the daemon, pieces that do not, late rows, a daemon that
    dies between: the reader's rows are the model's.
    """
    number = int.from_bytes(os.urandom(4), "little")
    print(f"seed {number}")
    runs = {f"run{i}": random_calls(random.Random(number + i), 2000) for i in range(8)}
    start_daemon(store)

    def train(run: str) -> None:
        sdk.init(id=run, project="meaning")
        for data, step, commit in runs[run]:
            sdk.log(data, step=step, commit=commit)
            if pause:
                time.sleep(pause)
        sdk.finish()

    trainers = [Trainer(lambda _, run=run: train(run)) for run in runs]
    if pause:
        time.sleep(0.4)
        kill_daemon(store)
    assert [trainer.wait() for trainer in trainers] == [0] * len(runs)
    settle(store)
    for run, calls in runs.items():
        model = StreamModel()
        for call in calls:
            model.log(*call)
        assert rows_of(store, run) == model.rows


def test_the_three_ways_of_the_guide_are_equal(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide's normal use, implicit steps and explicit steps log two identical rows."""
    monkeypatch.setenv("STEPD_AUTOSTART", "0")

    def normal(run: sdk.Run) -> None:
        run.log({"train-loss": 0.5, "accuracy": 0.8})
        run.log({"train-loss": 0.4, "accuracy": 0.9})

    def implicit(run: sdk.Run) -> None:
        run.log({"train-loss": 0.5}, commit=False)
        run.log({"accuracy": 0.8})
        run.log({"train-loss": 0.4}, commit=False)
        run.log({"accuracy": 0.9})

    def explicit(run: sdk.Run) -> None:
        current_step = 0
        run.log({"train-loss": 0.5}, step=current_step)
        run.log({"accuracy": 0.8}, step=current_step)
        current_step += 1
        run.log({"train-loss": 0.4}, step=current_step)
        run.log({"accuracy": 0.9}, step=current_step)

    def train(body: Callable[[sdk.Run], None]) -> None:
        body(sdk.init(id=body.__name__, project="meaning"))
        sdk.finish()

    for body in (normal, implicit, explicit):
        assert Trainer(lambda _, body=body: train(body)).wait() == 0
        assert rows_of(store, body.__name__) == {
            0: {"train-loss": 0.5, "accuracy": 0.8},
            1: {"train-loss": 0.4, "accuracy": 0.9},
        }


def test_config_summary_and_names_survive_kill_9(store: Path) -> None:
    """Facts travel the same way as rows, so a killed trainer leaves them too."""
    start_daemon(store)

    def train(_: Callable[[int], None]) -> None:
        run = sdk.init(id="facts", project="meaning", name="first", config={"lr": 0.1, "layers": [1, 2]}, tags=["t"])
        run.config.update({"batch": 32})
        run.name = "second"
        run.log({"loss": 3.0})
        run.summary["best"] = 0.9
        run.log({"loss": 2.0})
        os.kill(os.getpid(), 9)

    assert Trainer(train).wait() == -9
    from tests.end_to_end.world import until_drained

    until_drained(store)
    run = sdk.open_store(store).run("facts")
    assert run.name == "second"
    assert run.config == {"lr": 0.1, "layers": [1, 2], "batch": 32}
    assert run.summary["best"] == 0.9
    assert run.summary["loss"] == 2.0
    assert run.tags == ["t"]
    assert run.state == "crashed"
    assert run.project == "meaning"


def test_a_resumed_run_goes_on_where_it_ended(store: Path) -> None:
    """resume="must" continues at the largest step + 1, in one lane; resume_step hides what an attempt did beyond it."""
    start_daemon(store)

    def train(count: int, value: float, **options: Any) -> None:
        run = sdk.init(id="again", project="meaning", **options)
        for _ in range(count):
            run.log({"x": value})
        run.finish()

    assert Trainer(lambda _: train(10, 1.0)).wait() == 0
    assert Trainer(lambda _: train(5, 2.0, resume="must")).wait() == 0
    series = sdk.open_store(store).run("again").series("x")
    assert series.step.tolist() == list(range(15))
    assert series.value.tolist() == [1.0] * 10 + [2.0] * 5
    assert Trainer(lambda _: train(4, 3.0, resume="must", resume_step=8)).wait() == 0
    series = sdk.open_store(store).run("again").series("x")
    assert series.step.tolist() == list(range(12))
    assert series.value.tolist() == [1.0] * 8 + [3.0] * 4
    assert Trainer(lambda _: train(1, 4.0, resume="never")).wait() == 1


def test_export_gives_every_step_once_with_the_values_that_were_logged(store: Path) -> None:
    """`stepd export` of a run through the daemon: 5000 steps in order, floats with the same bits, NaN and None as logged."""
    start_daemon(store)
    generator = random.Random(11)
    values = [generator.uniform(-1e300, 1e300) for _ in range(5000)]

    def train(_: Callable[[int], None]) -> None:
        run = sdk.init(id="exported", project="meaning")
        for i, value in enumerate(values):
            run.log({"x": value, "i": i, "nan": math.nan, "none": None, "text": f"ü{i}"})
        run.finish()

    assert Trainer(train).wait() == 0
    done = subprocess.run(
        [sys.executable, "-m", "stepd", "export", "exported", "--dir", str(store)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["_step"] for row in rows] == list(range(5000))
    assert [row["x"] for row in rows] == values
    assert all(row["i"] == i and math.isnan(row["nan"]) and row["none"] is None for i, row in enumerate(rows))
    assert [row["text"] for row in rows] == [f"ü{i}" for i in range(5000)]
