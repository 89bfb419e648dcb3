from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy
import pytest

from sdk.reader import Run, open_store
from sdk.reader.follow import Follower
from tests.builders import RunBuilder, compact, make_store
from tests.sdk.test_reader_metrics import made

MEAN = {"reduce": "mean"}


@pytest.fixture
def store(tmp_path: Path) -> str:
    return make_store(tmp_path)


def living(store: str, metrics: dict[str, Any], rows: list[dict[str, Any]]) -> tuple[RunBuilder, Any, Run]:
    """A run that goes on: its builder, its stream, and a reader."""
    run = RunBuilder(store, "a41f")
    stream = run.stream()
    stream.meta({"metric": metrics})
    for row in rows:
        stream.log(row)
    run.flush()
    return run, stream, Run(open_store(store).run("a41f").directory, alive=lambda facts: True)


@pytest.mark.parametrize("columns", [False, True])
def test_weighted_mean_of_each_epoch(store: str, columns: bool) -> None:
    """One value for each epoch, at its last step; the rows are there under two names."""
    metrics = {"train/loss": {"reduce": "mean", "weight": "batch_size"}}
    rows = [{"train/loss": v, "epoch": e, "batch_size": n} for v, e, n in [(1.0, 0, 3), (5.0, 0, 1), (7.0, 1, 2)]]
    run = made(store, metrics, rows, columns=columns)
    assert run.keys() == ["batch_size", "epoch", "train/loss", "train/loss_epoch", "train/loss_step"]
    assert run.shown_keys() == ["batch_size", "epoch", "train/loss", "train/loss_epoch"]
    series = run.series("train/loss_epoch")
    assert (series.step.tolist(), series.value.tolist()) == ([1, 2], [2.0, 7.0])
    assert series.time.tolist() == run.series("train/loss").time[1:].tolist()
    assert run.series("train/loss_step").value.tolist() == run.series("train/loss").value.tolist() == [1.0, 5.0, 7.0]
    assert run.summary == {
        "batch_size": 2, "epoch": 1, "train/loss": 7.0, "train/loss_step": 7.0, "train/loss_epoch": 7.0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("how", "expected"), [("sum", [6, 5]), ("min", [1, 5]), ("max", [3, 5]), ("last", [2, 5]), ("mean", [2.0, 5.0])]
)
def test_reductions(store: str, how: str, expected: list[float]) -> None:
    """Integers stay integers but for the mean."""
    rows = [{"n": n, "epoch": epoch} for n, epoch in [(1, 0), (3, 0), (2, 0), (5, 1)]]
    series = made(store, {"n": {"reduce": how}}, rows).series("n_epoch")
    assert series.value.tolist() == expected
    assert series.value.dtype == (numpy.float64 if how == "mean" else numpy.int64)


def test_nan_is_not_hidden_by_a_mean(store: str) -> None:
    """Of the epoch it was logged in; a weight that is NaN or missing counts once."""
    rows = [
        {"a": math.nan, "epoch": 0},
        {"a": 1.0, "epoch": 0},
        {"a": 2.0, "epoch": 1, "w": math.nan},
        {"a": 4.0, "w": 3},
    ]
    values = made(store, {"a": {"reduce": "mean", "weight": "w"}}, rows).series("a_epoch").value
    assert numpy.array_equal(values, [math.nan, 3.5], equal_nan=True)


def test_rows_without_an_epoch_belong_to_the_last_one(store: str) -> None:
    """Those before the first one to that; where nobody logs one the whole run is an epoch."""
    rows = [{"a": 1}, {"epoch": 3}, {"a": 2}, {"a": 3, "epoch": math.nan}, {"epoch": 4}, {"b": 0}, {"a": 9}]
    assert made(store, {"a": {"reduce": "sum"}}, rows).series("a_epoch").value.tolist() == [6, 9]


def test_without_over_the_run_is_one_epoch(store: str) -> None:
    """It has a value when the run has ended."""
    run = made(store, {"a": {"reduce": "sum", "over": "x/round"}}, [{"a": 1}, {"a": 2}])
    assert (run.series("a_round").step.tolist(), run.series("a_round").value.tolist()) == ([1], [3])


def test_texts_may_name_epochs(store: str) -> None:
    """A change is what counts: a name that comes again begins another epoch."""
    rows = [{"a": 1, "phase": phase} for phase in ("warm", "warm", "main", "warm")]
    assert made(store, {"a": {"reduce": "sum", "over": "phase"}}, rows).series("a_phase").value.tolist() == [2, 1, 1]


def test_an_epoch_that_goes_on_has_no_value(store: str) -> None:
    """Until a row of a later one comes, be it without the key, or the run ends."""
    run, stream, reader = living(store, {"a": MEAN}, [{"a": 1.0, "epoch": 0}, {"a": 3.0, "epoch": 0}])
    assert "a_epoch" not in reader.summary
    assert list(reader.rows(["a_epoch"])) == []
    stream.log({"epoch": 1})
    run.flush()
    assert reader.series("a_epoch").value.tolist() == [2.0]
    stream.log({"a": 7.0})
    run.flush()
    assert reader.series("a_epoch").value.tolist() == [2.0]
    stream.finish()
    run.flush()
    assert reader.series("a_epoch").value.tolist() == [2.0, 7.0]
    run.close()


def test_rows_frames_and_steps_have_them(store: str) -> None:
    """Wherever keys are given: all keys, or only the one that is made."""
    rows = [{"a": float(i), "epoch": i // 2, "b": 1} for i in range(4)]
    run = made(store, {"a": MEAN}, rows)
    found = [{k: v for k, v in row.items() if k != "_timestamp"} for row in run.rows()]
    assert found[0] == {"_step": 0, "a": 0.0, "a_step": 0.0, "epoch": 0, "b": 1}
    assert found[1] == {"_step": 1, "a": 1.0, "a_step": 1.0, "a_epoch": 0.5, "epoch": 0, "b": 1}
    assert [(r["_step"], r["a_epoch"]) for r in run.rows(["a_epoch"])] == [(1, 0.5), (3, 2.5)]
    assert [set(r) for r in run.rows(["a_epoch"])] == [{"_step", "_timestamp", "a_epoch"}] * 2
    assert [r.get("a_step") for r in run.rows(["a_step", "b"])] == [0.0, 1.0, 2.0, 3.0]
    assert run.steps(["a_epoch"]).tolist() == [1, 3]
    assert [step.tolist() for step in run.steps_by_key(["a_epoch"])] == [[1, 3]]
    assert [row["a_epoch"] for row in run.tail(1, ["a_epoch"])] == [2.5]
    assert run.tail(1)[0]["a_epoch"] == 2.5
    assert [row["_step"] for row in run.rows_at(numpy.array([0, 3]), ["a_epoch"])] == [3]
    frame = pytest.importorskip("pandas") and run.to_pandas()
    assert list(frame.columns) == ["a", "a_epoch", "a_step", "b", "epoch"]
    assert frame["a_epoch"].dropna().to_dict() == {1: 0.5, 3: 2.5}
    assert run.several(["a_*"])["a_epoch"].value.tolist() == [0.5, 2.5]


def test_what_was_logged_under_such_a_name_stays(store: str) -> None:
    """A program that logs the pair itself is not overruled, and no pair of a pair is made."""
    run = made(store, {"a*": MEAN}, [{"a": 1.0, "a_epoch": 7.0, "a_step": 5.0, "epoch": 0}, {"a": 2.0, "epoch": 1}])
    assert run.keys() == ["a", "a_epoch", "a_step", "epoch"]
    assert run.shown_keys() == run.keys()
    assert run.series("a_epoch").value.tolist() == [7.0]
    assert [row.get("a_epoch") for row in run.rows()] == [7.0, None]


def test_a_prefix_reduces_all_but_what_it_counts_by(store: str) -> None:
    """`over` and `weight` themselves have no epochs."""
    rows = [{"train/loss": 1.0, "train/epoch": 0, "train/n": 2, "train/acc": 3.0}]
    metrics = {"train/*": {"reduce": "mean", "over": "train/epoch", "weight": "train/n"}}
    keys = made(store, metrics, rows).keys()
    assert [key for key in keys if key.endswith("_epoch")] == [
        "train/acc_epoch", "train/loss_epoch"
    ]  # fmt: skip


def test_each_rank_has_epochs_of_its_own(store: str) -> None:
    """The main lane's, or that of the rank that was asked for."""
    run = RunBuilder(store, "a41f")
    for rank in range(2):
        stream = run.stream(rank=rank)
        stream.meta({"metric": {"a": MEAN}})
        for step in range(4):
            stream.log({"a": float(step + 10 * rank), "epoch": step // 2})
        stream.finish()
    run.flush()
    run.close()
    reader = open_store(store).run("a41f")
    assert reader.series("a_epoch").value.tolist() == [0.5, 2.5]
    assert reader.series("a_epoch", rank=1).value.tolist() == [10.5, 12.5]
    assert len(reader.series("a_epoch").others) == 1
    assert reader.series("a_epoch", "all").value.tolist() == [0.5, 10.5, 2.5, 12.5]


def test_rows_that_a_resume_hid_do_not_count(store: str) -> None:
    """The epoch in which a run was resumed is one epoch of what is left."""
    run = RunBuilder(store, "a41f")
    first = run.stream()
    first.meta({"metric": {"a": MEAN}})
    for step, value in enumerate([1.0, 3.0, 100.0]):
        first.log({"a": value, "epoch": step // 2})
    second = run.stream(attempt=2, continues=first.hex, first_step=2)
    second.meta({"hide": {"from_step": 2}})
    second.log({"a": 5.0, "epoch": 1}, step=2)
    second.log({"a": 7.0}, step=3)
    second.finish()
    run.flush()
    run.close()
    series = open_store(store).run("a41f").series("a_epoch")
    assert (series.step.tolist(), series.value.tolist()) == ([1, 3], [2.0, 6.0])


def test_followers_see_an_epoch_when_it_is_complete(store: str) -> None:
    """The row of its last step comes again, with the value; nothing else does."""
    run, stream, reader = living(store, {"a": MEAN}, [{"a": 1.0, "epoch": 0}, {"a": 3.0, "epoch": 0}])
    whole, only = Follower(), Follower(frozenset(["a_epoch"]))
    assert [row["_step"] for row in reader.look_for_new(whole)] == [0, 1]
    assert reader.look_for_new(only) == []
    stream.log({"a": 9.0, "epoch": 1})
    run.flush()
    assert [(row["_step"], row.get("a_epoch")) for row in reader.look_for_new(whole)] == [(1, 2.0), (2, None)]
    assert [(row["_step"], row["a_epoch"]) for row in reader.look_for_new(only)] == [(1, 2.0)]
    assert reader.look_for_new(whole) == reader.look_for_new(only) == []
    stream.finish()
    run.flush()
    assert [(row["_step"], row["a_epoch"]) for row in reader.look_for_new(only)] == [(2, 9.0)]
    run.close()


def test_against_a_loop(store: str) -> None:
    """Random runs: the same as adding up row by row."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    rows, epoch = [], 0
    for _ in range(300):
        epoch += rng.random() < 0.05
        row: dict[str, Any] = {"a": rng.random()} if rng.random() < 0.8 else {"b": 1}
        row |= {"epoch": epoch} if rng.random() < 0.7 or not rows else {}
        row |= {"w": rng.randrange(1, 5)} if rng.random() < 0.5 else {}
        rows.append(row)
    expected: dict[int, list[float]] = {}
    ends: dict[int, int] = {}
    current = 0
    for step, row in enumerate(rows):
        current = row.get("epoch", current)
        if "a" in row:
            sums = expected.setdefault(current, [0.0, 0.0])
            sums[0] += row["a"] * row.get("w", 1)
            sums[1] += row.get("w", 1)
            ends[current] = step
    run = RunBuilder(store, "a41f")
    stream = run.stream()
    stream.meta({"metric": {"a": {"reduce": "mean", "weight": "w"}}})
    for row in rows:
        stream.log(row)
    stream.finish()
    run.flush()
    run.seal()
    run.close()
    for _ in range(2):
        series = open_store(store).run("a41f").series("a_epoch")
        assert series.step.tolist() == list(ends.values())
        assert series.value == pytest.approx([total / weight for total, weight in expected.values()])
        compact(run)


def test_following_gives_what_reading_gives(store: str) -> None:
    """Random pieces and looks: the rows that were given last are all rows, whatever was read again."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    run, stream, reader = living(store, {"a": MEAN, "b": {"reduce": "sum", "over": "round"}}, [])
    whole, only = Follower(), Follower(frozenset(["a_epoch", "b_round"]))
    rows: dict[int, dict[str, Any]] = {}
    few: dict[int, dict[str, Any]] = {}
    epoch = 0
    for _ in range(120):
        epoch += rng.random() < 0.15
        row: dict[str, Any] = {"a": rng.random()} if rng.random() < 0.8 else {}
        row |= {"b": 1} if rng.random() < 0.5 else {}
        row |= {"epoch": epoch} if rng.random() < 0.7 else {}
        row |= {"round": epoch // 3} if rng.random() < 0.3 else {}
        stream.log(row, step=rng.randrange(stream.step) if stream.step and rng.random() < 0.03 else None)
        if rng.random() < 0.3:
            run.flush()
            rows |= {row["_step"]: row for row in reader.look_for_new(whole)}
            few |= {row["_step"]: row for row in reader.look_for_new(only)}
    stream.finish()
    run.flush()
    rows |= {row["_step"]: row for row in reader.look_for_new(whole)}
    few |= {row["_step"]: row for row in reader.look_for_new(only)}
    assert [rows[step] for step in sorted(rows)] == list(reader.rows())
    final = {row["_step"]: row for row in reader.rows(["a_epoch", "b_round"])}
    assert {step: few[step] for step in final} == final
    run.close()


@pytest.mark.parametrize("columns", [False, True])
def test_in_few_points_and_as_a_sample(store: str, columns: bool) -> None:
    """What is made of others is thinned as what was logged."""
    pytest.importorskip("tsdownsample")
    rows = [{"a": float(step), "epoch": step // 10} for step in range(3000)]
    run = made(store, {"a": MEAN}, rows, columns=columns)
    for key, count in (("a", 3000), ("a_step", 3000), ("a_epoch", 300)):
        series = run.series(key, points=20)
        assert (len(series) <= 20, series.sample_of) == (True, count)
    sampled = run.sample(["a", "a_step", "a_epoch"], 20)
    assert {key: len(found[0]) for key, found in sampled.items()} == {"a": 20, "a_step": 20, "a_epoch": 20}
    assert sampled["a_epoch"][1][-1] == 2994.5
