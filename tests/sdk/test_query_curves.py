"""What a chart shows: lines of runs and of groups, smoothed, in few points, with what is missing in them."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest

from sdk.errors import NotFoundError, UsageError
from sdk.query import curves, members
from sdk.query.curves import default_keys, exponential, read_lines, slices
from sdk.query.members import united
from sdk.reader import Run, Store
from tests.builders import START_NS, RunBuilder, compact, make_run, make_store


@pytest.fixture
def store(tmp_path: Path) -> str:
    return make_store(tmp_path)


def runs(store: str, *ids: str) -> list[Run]:
    opened = Store(store)
    return [opened.run(one) for one in ids]


def rows(values: list[float], key: str = "loss") -> list[dict[str, Any]]:
    return [{key: value} for value in values]


def test_a_line_tells_last_and_best_and_what_it_left_out(store: str) -> None:
    """Best by the key's goal, with its place; NaN and infinities are counted and not drawn."""
    values = [{"loss": value, "val/acc": 10 - abs(value)} for value in (3.0, 1.0, math.nan, 2.0, math.inf)]
    make_run(store, "a", values[:4] + [{"loss": math.inf}], name="otter")
    loss, acc = read_lines(runs(store, "a"), ["loss", "val/acc"]).lines
    assert (loss.run, loss.name, loss.project, loss.key) == ("a", "otter", "digits", "loss")
    assert loss.x.tolist() == [0, 1, 3]
    assert loss.y.tolist() == [3, 1, 2]
    assert (loss.last, loss.best, loss.best_x, loss.goal) == (2, 1, 1, "min")
    assert (loss.count, loss.not_finite, loss.members) == (5, 2, 1)
    assert (acc.best, acc.best_x, acc.goal) == (9, 1, "max")
    assert loss.raw is loss.low is loss.high is None


@pytest.mark.parametrize("points", [7, 2000])
def test_the_numbers_among_other_values(store: str, points: int) -> None:
    """A text or a truth value among numbers is left out, and how many were is said; only others are no line."""
    values: list[Any] = [*range(10), "diverged", True, None, 2**63 + 5, 12.5]
    make_run(store, "a", [{"x": value, "flag": True, "text": "a"} for value in values])
    found = read_lines(runs(store, "a"), ["x"], points=points)
    (line,) = found.lines
    assert (line.count, line.last, line.x[-1], line.y.max()) == (12, 12.5, 14, 2.0**63)
    assert len(line.x) <= points
    assert found.notes == ["2 of 14 values of 'x' of a are no numbers"]
    assert [one.key for one in read_lines(runs(store, "a"), ["*"]).lines] == ["flag", "x"]
    with pytest.raises(NotFoundError, match="'text' of a holds no numbers"):
        read_lines(runs(store, "a"), ["text"], points=points)


def test_no_best_where_no_end_is_good(store: str) -> None:
    """An epoch or a rate has a last value and no best one."""
    make_run(store, "a", [{"epoch": 3.0, "lr": 0.1}, {"epoch": 4.0, "lr": 0.2}])
    for line in read_lines(runs(store, "a"), ["epoch", "lr"]).lines:
        assert (line.best, line.best_x, line.goal) == (None, None, None)
        assert line.last is not None


@pytest.mark.parametrize("chooses", [True, False])
def test_a_long_line_keeps_its_extremes(store: str, monkeypatch: pytest.MonkeyPatch, chooses: bool) -> None:
    """In few points the first, the last, the smallest and the largest value are there, with the library that chooses them or without."""
    if not chooses:
        monkeypatch.setitem(sys.modules, "tsdownsample", None)
    noise = random.Random(1)
    values = [noise.random() for _ in range(3000)]
    values[1234], values[2345], values[100] = 99.0, -99.0, math.nan
    make_run(store, "a", rows(values))
    (line,) = read_lines(runs(store, "a"), ["loss"], points=50).lines
    assert len(line.x) <= 50
    assert {0.0, 1234.0, 2345.0, 2999.0} <= set(line.x.tolist())
    assert (line.best, line.best_x, line.last) == (-99, 2345, values[-1])
    assert (line.count, line.not_finite) == (3000, 1)


@pytest.mark.parametrize("chooses", [True, False])
def test_infinities_do_not_crowd_out_the_extremes(store: str, monkeypatch: pytest.MonkeyPatch, chooses: bool) -> None:
    """Where infinities stand among the points that were chosen, the smallest and the largest finite value are drawn all the same."""
    if not chooses:
        monkeypatch.setitem(sys.modules, "tsdownsample", None)
    noise = random.Random(2)
    values = [noise.choice((math.inf, -math.inf, math.nan, noise.random(), noise.random())) for _ in range(3000)]
    values[1234], values[2345] = 99.0, -99.0
    make_run(store, "a", rows(values))
    (line,) = read_lines(runs(store, "a"), ["loss"], points=20).lines
    assert (line.best, line.best_x, line.y.max()) == (-99, 2345, 99)
    assert len(line.x) <= 20
    assert (line.count, line.not_finite) == (3000, sum(not math.isfinite(value) for value in values))
    monkeypatch.setattr(curves, "_WHOLE_MAX", 300)
    (note,) = read_lines(runs(store, "a"), ["loss"], points=20).notes
    assert "of more than 300 values only those count" in note


def test_patterns(store: str) -> None:
    """A pattern means the keys that hold numbers, in one chart."""
    make_run(store, "a", [{"train/loss": 1.0, "train/text": "x", "train/acc": 1, "lr": 1.0}])
    make_run(store, "b", [{"train/f1": 1.0}])
    found = read_lines(runs(store, "a", "b"), ["train/*"])
    assert [(line.run, line.key) for line in found.lines] == [
        ("a", "train/acc"),
        ("a", "train/loss"),
        ("b", "train/f1"),
    ]
    with pytest.raises(NotFoundError, match="no series 'nothing/\\*'"):
        read_lines(runs(store, "a"), ["nothing/*"])
    with pytest.raises(NotFoundError, match="no key of a that matches 'train/t\\*' holds numbers"):
        read_lines(runs(store, "a"), ["train/t*"])


def test_no_more_lines_than_asked_for(store: str) -> None:
    """Keys beyond so many lines are not read, and that is noted."""
    make_run(store, "a", [{f"k{n}": 1.0 for n in range(9)}])
    found = read_lines(runs(store, "a"), ["k*"], lines_max=3)
    assert [line.key for line in found.lines] == ["k0", "k1", "k2"]
    assert found.notes == ["3 lines are drawn: 3 of 9 keys"]


def test_what_cannot_be_drawn(store: str) -> None:
    """Texts and keys that no run holds are errors with a cure; runs that lack a key are counted."""
    make_run(store, "a", [{"loss": 1.0, "text": "x"}])
    make_run(store, "b", [{"acc": 1.0}])
    with pytest.raises(NotFoundError, match="'text' of a holds no numbers") as caught:
        read_lines(runs(store, "a"), ["text"])
    assert caught.value.hint == "stepd show a text"
    with pytest.raises(NotFoundError, match="Nearest: 'loss'"):
        read_lines(runs(store, "a"), ["los"])
    assert read_lines(runs(store, "a", "b"), ["loss"]).notes == ["1 of 2 runs hold no 'loss'"]
    for how in ({"smooth": 1.0}, {"smooth": -0.1}, {"band": "wide"}):
        with pytest.raises(UsageError):
            read_lines(runs(store, "a"), ["loss"], **how)  # type: ignore[arg-type]


def test_axes(store: str) -> None:
    """Steps, seconds since the run was created, times, or another key, sorted by it."""
    make_run(store, "a", [{"loss": float(n), "epoch": 9 - n // 5} for n in range(20)])
    (run,) = runs(store, "a")
    (line,) = read_lines([run], ["loss"], x="epoch").lines
    assert line.x.tolist() == sorted(9 - n // 5 for n in range(20))
    assert line.y[:5].tolist() == [15, 16, 17, 18, 19]
    (line,) = read_lines([run], ["loss"], x="relative").lines
    assert numpy.allclose(numpy.diff(line.x), 0.001, atol=1e-6)
    found = read_lines([run], ["loss"], x="time")
    assert found.x_name == "time"
    assert abs(found.lines[0].x[0] - START_NS / 1e9) < 1
    assert found.lines[0].best_x == found.lines[0].x[0]


def test_default_keys(store: str) -> None:
    """Losses, at most four; else what holds numbers, the likeliest first."""
    many = {f"{name}/loss": 1.0 for name in "abcde"}
    make_run(store, "a", [{**many, "a/loss_text": "x", "acc": 1.0}])
    assert default_keys(runs(store, "a")) == ["a/loss", "b/loss", "c/loss", "d/loss"]
    make_run(store, "b", [{"text": "x", "lr": 1.0, "val/acc": 1.0}])
    assert default_keys(runs(store, "b")) == ["val/acc"]
    make_run(store, "c", [{"text": "x"}])
    with pytest.raises(NotFoundError, match="c holds no numbers"):
        default_keys(runs(store, "c"))


# ---- smoothing


def test_default_keys_of_runs_that_came_to_nothing(store: str) -> None:
    """The first runs may have ended before they logged a number; the key is that of the others."""
    for number in range(9):
        make_run(store, f"a{number}", [{"text": "x"}] if number % 2 else [])
    make_run(store, "b", rows([1.0]))
    assert default_keys([*runs(store, *(f"a{number}" for number in range(9))), *runs(store, "b")]) == ["loss"]


def slow_exponential(values: list[float], weight: float) -> list[float]:
    """As TensorBoard's page does it: https://github.com/tensorflow/tensorboard, vz_line_chart2/line-chart.ts, resmoothDataset."""
    last, found = 0.0, []
    for count, value in enumerate(values, 1):
        last = last * weight + (1 - weight) * value
        found.append(last / (1 - weight**count))
    return found


def test_smoothing_is_tensorboards(store: str) -> None:
    """The debiased exponential mean; what was logged stays as `raw`, and tells last and best."""
    values = [random.Random(5).gauss(n, 9) for n in range(300)]
    for weight in (0.1, 0.6, 0.99):
        assert numpy.allclose(exponential(numpy.array(values), weight), slow_exponential(values, weight))
    make_run(store, "a", rows(values))
    (line,) = read_lines(runs(store, "a"), ["loss"], smooth=0.6).lines
    assert numpy.allclose(line.y, slow_exponential(values, 0.6))
    assert line.raw is not None
    assert line.raw.tolist() == values
    assert line.last == values[-1]
    (same,) = read_lines(runs(store, "a"), ["loss"], smooth=0.0).lines
    assert same.raw is None


def test_a_long_line_is_smoothed_by_means_of_slices(store: str) -> None:
    """So the same weight does the same to a run of any length, and one spike counts as one value among all."""
    values = [1.0] * 4000
    values[2000] = 1001.0
    make_run(store, "a", rows(values))
    (line,) = read_lines(runs(store, "a"), ["loss"], smooth=0.5, points=100).lines
    assert line.raw is not None
    assert line.raw.max() == 1001
    # 250 of a slice of 4 values, half of that by the weight; less between two slices.
    assert 50 < line.y.max() <= 126
    x, y = slices(numpy.arange(10.0), numpy.arange(10.0), 5)
    assert (x.tolist(), y.tolist()) == ([0.5, 2.5, 4.5, 6.5, 8.5], [0.5, 2.5, 4.5, 6.5, 8.5])


def test_of_very_many_values_the_chosen_ones_are_smoothed(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not read whole, and that is noted."""
    make_run(store, "a", rows([1.0] * 400))
    assert read_lines(runs(store, "a"), ["loss"], smooth=0.5, points=20).notes == []
    monkeypatch.setattr(curves, "_WHOLE_MAX", 300)
    found = read_lines(runs(store, "a"), ["loss"], smooth=0.5, points=20)
    assert numpy.allclose(found.lines[0].y, 1.0)
    assert found.notes == ["of more than 300 values only those count that were chosen to be drawn, extremes among them"]


# ---- groups


def grouped(store: str, **how: Any) -> curves.Lines:
    opened = Store(store)
    return read_lines(sorted(opened.runs(), key=lambda run: run.id), ["loss"], **how)


def make_group(store: str) -> None:
    for method, lr, base in (("sgd", 0.1, 10.0), ("adam", 0.2, 0.0)):
        for seed in range(3):
            values = [base + seed * n for n in range(4)]
            make_run(store, f"{method}{seed}", rows(values), config={"method": method, "lr": lr, "seed": seed})


def test_groups_are_the_means_of_their_members(store: str) -> None:
    """Runs of the same values are one line, called by them; the band is theirs."""
    make_group(store)
    found = grouped(store, group=["config.method"], over="seed", band="std")
    adam, sgd = found.lines
    assert (adam.name, sgd.name, adam.run) == ("adam", "sgd", "adam0,adam1,adam2")
    assert (adam.members, adam.count) == (3, 12)
    assert adam.y.tolist() == [0, 1, 2, 3]
    assert sgd.y.tolist() == [10, 11, 12, 13]
    assert adam.low is not None
    assert adam.high is not None
    assert numpy.allclose(adam.high - adam.y, [0, 1, 2, 3])  # of 0, n, 2n
    assert numpy.allclose(adam.y - adam.low, [0, 1, 2, 3])
    assert (adam.last, adam.best, adam.best_x) == (3, 0, 0)
    assert found.notes == []


def test_over_alone_groups_by_all_else_that_differs(store: str) -> None:
    """What is not averaged over tells the groups apart; what else differs inside a group is said."""
    make_group(store)
    assert [line.members for line in grouped(store, over="config.seed").lines] == [3, 3]
    found = grouped(store, group=["project"], over="seed")
    assert [line.members for line in found.lines] == [6]
    assert found.notes == ["runs of one group differ in config.method, config.lr too, not in seed alone"]


@pytest.mark.parametrize(
    ("band", "width"),
    [("std", math.sqrt(7)), ("sem", math.sqrt(7 / 3)), ("ci95", 4.303 * math.sqrt(7 / 3)), ("minmax", None)],
)
def test_bands(band: str, width: float | None) -> None:
    """By hand: of 1, 2 and 6 the mean is 3 and the standard deviation the root of 7; of one member there is no deviation."""
    x = numpy.array([0.0, 1.0])
    curves_of = [(x, numpy.array([value, value])) for value in (1.0, 2.0, 6.0)]
    found = united(curves_of, 10, band)
    assert found.mean.tolist() == [3, 3]
    assert found.low is not None
    assert found.high is not None
    assert numpy.allclose(found.low, 1 if width is None else 3 - width)
    assert numpy.allclose(found.high, 6 if width is None else 3 + width)
    alone = united(curves_of[:1], 10, band)
    assert alone.low is not None
    assert numpy.isnan(alone.low).all() == (band != "minmax")


def test_members_of_different_places_and_lengths(store: str) -> None:
    """Between two values a member stands on the line that joins them; behind its last one it counts no more, and that is said."""
    slow, fast = numpy.array([0.0, 2.0]), numpy.array([0.0, 1.0, 2.0, 3.0])
    found = united([(slow, slow * 10), (fast, fast * 0)], 10, None)
    assert found.x.tolist() == [0, 1, 2, 3]
    assert found.mean.tolist() == [0, 5, 10, 0]
    assert found.shorter == 1
    many = united([(slow, slow), (fast, fast)], 3, None)
    assert many.x.tolist() == [0, 1.5, 3]
    assert many.mean.tolist() == [0, 1.5, 3]
    several = united([(numpy.array([0.0, 0, 1]), numpy.array([1.0, 3, 5]))], 10, None)
    assert (several.x.tolist(), several.mean.tolist()) == ([0, 1], [2, 5])
    make_run(store, "a", rows([1.0] * 5), config={"m": 1})
    make_run(store, "b", rows([1.0] * 3), config={"m": 1})
    assert grouped(store, group=["m"]).notes == [
        "1 of 2 runs of 1 end before the others: the mean goes on without them"
    ]


def test_a_smoothed_group(store: str) -> None:
    """The mean and its band are smoothed alike, and the mean as it was stays behind."""
    make_group(store)
    (line, _) = grouped(store, group=["config.method"], band="minmax", smooth=0.5).lines
    assert numpy.allclose(line.y, slow_exponential([0, 1, 2, 3], 0.5))
    assert line.high is not None
    assert numpy.allclose(line.high, slow_exponential([0, 2, 4, 6], 0.5))
    assert line.raw is not None
    assert line.raw.tolist() == [0, 1, 2, 3]


def test_labels_of_groups(store: str) -> None:
    """Numbers by size, then texts, then those that say nothing."""
    for number, config in enumerate([{"lr": 10}, {"lr": 9.5}, {"lr": "cosine"}, {}]):
        make_run(store, f"r{number}", rows([1.0]), config=config)
    assert [line.name for line in grouped(store, group=["config.lr"]).lines] == ["9.5", "10", "cosine", "none"]


def test_labels_that_would_be_the_same(store: str) -> None:
    """Values that differ are groups of their own, whatever of them a label has room for; numbers that are equal are one."""
    long = "x" * 200
    configs: list[Any] = [0.12345678, 0.12345679, long + "a", long + "b", 1, 1.0, True, "1"]
    for number, value in enumerate(configs):
        make_run(store, f"r{number}", rows([1.0]), config={"m": value, "seed": number})
    lines = grouped(store, group=["config.m"], over="seed").lines
    assert sorted(line.run for line in lines) == ["r0", "r1", "r2", "r3", "r4,r5", "r6", "r7"]
    names = {line.run: line.name for line in lines}
    assert len(set(names.values())) == 7
    assert max(map(len, names.values())) <= members._LABEL_CHARACTERS_MAX
    assert (names["r0"], names["r4,r5"], names["r7"]) == ("0.12345678", "1", "'1'")


def test_a_name_that_no_run_has(store: str) -> None:
    """A mistyped name makes no group of everything."""
    make_group(store)
    with pytest.raises(NotFoundError, match="none of 6 runs has 'config.methd'. Nearest: 'config.method'"):
        grouped(store, group=["config.methd"])
    with pytest.raises(NotFoundError, match="none of 6 runs has 'sed'. Nearest: 'config.seed'"):
        grouped(store, over="sed")


def test_members_that_are_brought_to_few_values(store: str) -> None:
    """Each keeps its first and its last value: those that end at the same step end there."""
    make_run(store, "a", rows([0.0] * 299 + [7.0]), config={"m": 1})
    make_run(
        store, "b", [{"loss": 0.0}] + [{"loss": 1.0} if n % 23 == 0 else {} for n in range(1, 300)], config={"m": 1}
    )
    found = grouped(store, group=["m"], points=20)
    (line,) = found.lines
    assert found.notes == []
    assert (line.x[0], line.x[-1], line.y[0], line.last) == (0, 299, 0, 4.0)
    assert len(line.x) <= 20


def test_students_t() -> None:
    """The table of quantiles falls to the normal distribution's."""
    assert list(members._STUDENT_T) == sorted(members._STUDENT_T, reverse=True)
    assert members._STUDENT_T[-1] > members._NORMAL


# ---- what is missing


def test_gaps_and_resumes(store: str) -> None:
    """Steps of records that are missing, and those at which another attempt began, where they stand on the axis."""
    run = RunBuilder(store, "a")
    first = run.stream()
    for n in range(10):
        first.log({"loss": 1.0, "half": n / 2})
    first.finish("crashed")
    run.flush()
    first.take()
    second = run.stream(continues=first.hex, attempt=2, first_step=10, started_ns=START_NS + 10**12)
    for n in range(10):
        second.log({"loss": 1.0, "half": 5 + n / 2})
    lost = second.records[4:7]  # sequences 5 to 7: steps 13 to 15
    kept = second.take()
    run.daemon.rows(second, kept[:4])
    run.daemon.rows(second, kept[7:])
    run.seal()
    assert [record.step for record in lost] == [13, 14, 15]
    (line,) = read_lines(runs(store, "a"), ["loss"]).lines
    assert line.attempts == [10]
    ((low, high),) = line.gaps
    assert 12 <= low <= 13
    assert 15 <= high <= 16
    (line,) = read_lines(runs(store, "a"), ["loss"], x="half").lines
    assert line.attempts == [5]
    assert 6 <= line.gaps[0][0] <= 6.5


def test_many_gaps_are_joined_where_they_are_nearest() -> None:
    """A line has few marks, whatever a store says."""
    assert curves._joined([]) == []
    assert curves._joined([(1, 5), (2, 3), (6, 7), (9, 9)]) == [(1, 7), (9, 9)]
    many = [(2 * n + 1000 * (n // 10), 2 * n + 1000 * (n // 10)) for n in range(20_000)]
    found = curves._joined(many)
    assert len(found) == curves._MARKS_MAX
    assert (found[0][0], found[-1][1]) == (many[0][0], many[-1][1])


def test_the_largest_floats(store: str) -> None:
    """Values whose sums and distances are no floats any more are grouped, smoothed and placed; nothing warns."""
    for name in ("a", "b"):
        values = [{"loss": sign * 1.7e308, "at": sign * 1.6e308} for sign in (-1, 1, -1, 1)] * 400
        make_run(store, name, values)
    for how in (
        {"group": ["project"], "band": "minmax"},
        {"x": "at"},
        {"group": ["project"], "band": "std", "x": "at"},
    ):
        for line in read_lines(runs(store, "a", "b"), ["loss"], smooth=0.5, points=50, **how).lines:  # type: ignore[arg-type]
            assert numpy.isfinite(line.y).all()


def test_what_was_observed_is_over_the_time(store: str) -> None:
    """Its steps are no steps of the training, so that without an axis the time since the run was created is taken."""
    run = RunBuilder(store, "a")
    run.stream().log({"loss": 1.0})
    run.stream("system").log({"system/cpu": 0.5})
    run.seal()
    assert read_lines(runs(store, "a"), ["system/cpu"]).x_name == "relative"
    assert read_lines(runs(store, "a"), ["loss", "system/cpu"]).x_name == "relative"
    assert read_lines(runs(store, "a"), ["system/cpu"], x="step").x_name == "step"


def test_a_compacted_run_gives_the_same_line(store: str) -> None:
    """Rows or columns: the values, the ends and the counts are alike."""
    values = [math.sin(n) for n in range(500)] + [math.nan]
    found = []
    for name in ("a", "b"):
        run = make_run(store, name, rows(values))
        if name == "b":
            compact(run, window=100)
        (line,) = read_lines(runs(store, name), ["loss"], points=100).lines
        found.append((line.last, line.best, line.best_x, line.count, line.not_finite))
    assert found[0] == found[1]


def test_of_one_rank_or_stream(store: str) -> None:
    """`rank` and `stream` choose whose values are drawn."""
    run = RunBuilder(store, "a")
    for rank in range(2):
        stream = run.stream(rank=rank, kind="main" if rank == 0 else "attach")
        stream.log({"loss": float(rank)})
    run.seal()
    (line,) = read_lines(runs(store, "a"), ["loss"], rank=1).lines
    assert line.y.tolist() == [1]
    (line,) = read_lines(runs(store, "a"), ["loss"], stream=run.streams[1].hex).lines
    assert line.y.tolist() == [1]
