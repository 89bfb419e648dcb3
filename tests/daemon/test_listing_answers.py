"""What the store's list says of a run's values, against what the run itself says."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path
from typing import Any

import pytest

from daemon.store.listing import remember
from sdk.query.expression import FACTS, OPERATIONS
from sdk.query.lookup import Values
from sdk.query.overview import overview
from sdk.reader import Run, Store
from sdk.segment.naming import RUNS
from tests.builders import START_NS, RunBuilder, StreamBuilder, compact, make_run, make_store

KEYS = ["loss", "val/acc", "a.b", "a", "_own", "odd key", "x" * 205, "score", "epoch", "loss_epoch"]
ODD: list[Any] = [
    math.nan, math.inf, -math.inf, None, True, False, "text", "t" * 300, 2**60 + 1, 2**63 + 1, [1, 2], {"b": 3, "c": {"d": 0.5}}, -0.0, {},
]  # fmt: skip
ASKED = ["epoch_step", "loss_step", "score_epoch", "nothing", "system/cpu", "a.c.d", "lr", "a.b.c"]


def opened(store: str) -> Store:
    """The store, in which no process lives."""
    return Store(store, alive=lambda stream: False)


def listed(store: str) -> list[Run]:
    """Its runs as they are listed when all of them are over for long."""
    for name in os.listdir(os.path.join(store, RUNS)):
        os.utime(os.path.join(store, RUNS, name), (START_NS / 1e9, START_NS / 1e9))
    remember(store, opened(store).runs())
    return opened(store).runs()


def answers(run: Run) -> dict[str, Any]:
    """Everything that a table can ask of a run."""
    values = Values(run)
    asked = [*FACTS]
    for key in [*KEYS, *ASKED]:
        asked += [f"{operation}:{key}" for operation in OPERATIONS]
        asked += [
            key,
            f"config.{key}",
            f"summary.{key}",
            *(f"summary.{key}.{part}" for part in ("min", "best", "b", "c.d")),
        ]
    found: dict[str, Any] = {name: repr(values(name)) for name in asked}
    goals = {f"goal of {key}": values.goal(key) for key in KEYS}
    return {**found, **goals, "columns": [column.name for column in overview([run]).columns]}


def one_value(draw: random.Random) -> Any:
    return draw.choice([draw.random(), draw.randrange(-5, 100), draw.choice(ODD)])


def definition(draw: random.Random) -> dict[str, Any]:
    said = {
        "goal": draw.choice(["minimize", "maximize"]),
        "summary": draw.sample(["min", "max", "mean", "last", "first", "best", "copy", "none"], draw.randint(0, 3)),
        "hidden": True,
        "reduce": draw.choice(["mean", "sum", "min", "max", "last"]),
        "step_metric": "epoch",
    }
    return {name: value for name, value in said.items() if draw.random() < 0.35}


def log_some(draw: random.Random, stream: StreamBuilder, count: int) -> None:
    """Rows of numbers, of texts and of nothing; late ones; what users set, take out and define."""
    odd = {key for key in KEYS if draw.random() < 0.4}
    for _ in range(count):
        if draw.random() < 0.06:
            facts: list[dict[str, Any]] = [
                {"config": {"lr": draw.choice([1e-3, "1e-3", None]), "a": {"b": draw.random()}}},
                {"summary": {draw.choice(KEYS): one_value(draw)}},
                {"summary_removed": [draw.choice(KEYS)]},
                {"metric": {draw.choice([*KEYS, "val/*", "a*", "*"]): definition(draw)}},
            ]
            stream.meta(draw.choice(facts))
        row = {key: one_value(draw) if key in odd else draw.random() for key in KEYS if draw.random() < 0.4}
        row["epoch"] = stream.step // 7
        step = draw.choice([None, None, None, stream.step + draw.randrange(4), draw.randrange(stream.step + 1)])
        stream.log(row, step=step)


def run_by_chance(draw: random.Random, store: str, run_id: str) -> None:
    """A run of one or two processes and some attempts, which hide rows of those before; as rows, or as columns."""
    run = RunBuilder(store, run_id)
    main = run.stream(rank=0)
    streams = [main, *([run.stream("fork", rank=1, parent=main.hex)] if draw.random() < 0.4 else [])]
    for stream in streams:
        log_some(draw, stream, draw.randrange(60))
    while draw.random() < 0.4:
        run.seal()
        step = max(0, main.step - draw.randrange(15))
        main = run.stream(continues=main.hex, attempt=2, first_step=step, rank=0)
        if draw.random() < 0.7:
            main.meta({"hide": {"from_step": step}})
        log_some(draw, main, draw.randrange(40))
    for stream in streams:
        stream.finish(draw.choice(["finished", "failed"]))
    run.seal()
    if draw.random() < 0.6:
        compact(run, window=draw.choice([5, 20, 1000]))


@pytest.mark.parametrize("seed", range(8))
def test_random_runs(tmp_path: Path, seed: int) -> None:
    """Every name of the language, goals and the columns that choose themselves are the same from the list and from the run."""
    draw = random.Random(seed)
    store = make_store(tmp_path)
    for number in range(2):
        run_by_chance(draw, store, f"r{number}")
    before = {run.id: answers(run) for run in opened(store).runs()}
    found = listed(store)
    assert all(run.card is not None for run in found)
    assert {run.id: answers(run) for run in found} == before, f"seed {seed}"


def answer(store: str, name: str) -> Any:
    (run,) = listed(store)
    assert run.card is not None
    return Values(run)(name)


@pytest.mark.parametrize("value", [[1, 2], "t" * 300], ids=["list", "text"])
def test_what_is_too_long_to_keep_is_not_the_last_value(tmp_path: Path, value: Any) -> None:
    """What the user set in the summary over a series is the run's to tell where the list has no room for it."""
    store = make_store(tmp_path)
    run = RunBuilder(store, "a41f")
    main = run.stream()
    main.log({"score": 0.5})
    main.meta({"summary": {"score": value}})
    main.finish()
    run.seal()
    assert answer(store, "summary.score") == value


def defined(tmp_path: Path, metric: dict[str, Any]) -> str:
    """A store with one run of two values under "gain", of which this was said."""
    store = make_store(tmp_path)
    run = RunBuilder(store, "a41f")
    main = run.stream()
    main.meta({"metric": metric})
    for value in (1.0, 2.0):
        main.log({"gain": value, "loss": 1.0})
    main.finish()
    run.seal()
    return store


def test_a_definition_without_a_goal_stands_before_a_prefix(tmp_path: Path) -> None:
    """What was said of a key itself counts alone, whatever of it matters to a table."""
    assert answer(defined(tmp_path, {"gain": {"step_metric": "epoch"}, "*": {"goal": "maximize"}}), "best:gain") == 1.0


def test_more_definitions_than_are_kept(tmp_path: Path) -> None:
    """The last of a hundred holds as the first does."""
    metric = {f"other{number}": {"goal": "minimize"} for number in range(100)}
    assert answer(defined(tmp_path, {**metric, "gain": {"goal": "maximize"}}), "best:gain") == 2.0


def test_a_hidden_series_has_no_column(tmp_path: Path) -> None:
    """Nor has the second name of one whose epochs are counted."""
    found = listed(defined(tmp_path, {"gain": {"hidden": True, "goal": "maximize"}, "loss": {"reduce": "mean"}}))
    assert found[0].card is not None
    names = [column.name for column in overview(found).columns]
    assert "best:loss" in names and not {"best:gain", "best:loss_step"} & set(names)


def test_a_run_without_anything(tmp_path: Path) -> None:
    """No rows, no config: nothing is there, and nothing must be read to know it."""
    store = make_store(tmp_path)
    make_run(store, "a41f")
    assert answer(store, "summary.loss") is None and answer(store, "best:loss") is None
