from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgpack
import numpy
import pytest

from sdk.errors import NotFoundError
from sdk.reader import Run, open_store
from sdk.record import EXT_BIG_INT, decode_map
from tests.builders import RunBuilder, make_run, make_store


@pytest.fixture
def store(tmp_path: Path) -> str:
    return make_store(tmp_path)


def opened(store: str, run_id: str = "a41f") -> Run:
    return open_store(store).run(run_id)


def of_values(store: str, values: list[Any]) -> Any:
    make_run(store, "a41f", [{"v": value} for value in values])
    return opened(store).series("v")


def test_arrays(store: str) -> None:
    """Steps are int64, times float64 seconds, floats float64; one stream needs no stream column."""
    run = make_run(store, "a41f", [{"loss": 1 / (i + 1)} for i in range(40)])
    series = opened(store).series("loss")
    assert (series.step.dtype, series.time.dtype, series.value.dtype) == (numpy.int64, numpy.float64, numpy.float64)
    assert series.step.tolist() == list(range(40))
    assert series.value.tolist() == [1 / (i + 1) for i in range(40)]
    assert series.time.tolist() == [record.time_ns // 1000 / 1e6 for record in run.streams[0].records[1:-1]]
    assert (series.stream, series.others, len(series)) == (None, (), 40)


@pytest.mark.parametrize("count", [3, 40], ids=["one-by-one", "grouped"])
@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (0.25, "float64"), (math.nan, "float64"), (-math.inf, "float64"), (7, "int64"), (-(2**63), "int64"),
        (2**63 - 1, "int64"), (2**63, "uint64"), (2**64 - 1, "uint64"), (True, "bool"), ("warm", "object"),
        ([1, 2], "object"), (b"raw", "object"),
    ],
)  # fmt: skip
def test_dtypes(store: str, value: Any, dtype: str, count: int) -> None:
    """Every kind of value has its dtype and comes back exactly, whether decoded one by one or as a group."""
    series = of_values(store, [value] * count)
    assert series.value.dtype == dtype
    assert repr(series.value.tolist()) == repr([value] * count)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2.5], "float64"), ([2**53 + 1, -1], "int64"), ([2**64 - 1, -1], "object"), ([True, 1.5], "object"),
        ([1, "a"], "object"), ([2**63, 5, None], "uint64"), ([None, True], "bool"), ([None, "a"], "object"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("times", [1, 20])
def test_mixed(store: str, values: list[Any], dtype: str, times: int) -> None:
    """Integers and floats make float64, what does not fit one dtype stays objects, nulls are left out."""
    series = of_values(store, [value for value in values for _ in range(times)])
    kept = [value for value in values if value is not None for _ in range(times)]
    assert series.value.dtype == dtype
    assert series.value.tolist() == kept
    assert all(type(a) is type(b) for a, b in zip(series.value, kept)) or dtype != "object"


def test_integers_beyond_64_bits(store: str) -> None:
    """They are Python integers, exactly."""
    big = 3**100
    series = of_values(store, [msgpack.ExtType(EXT_BIG_INT, str(big).encode()), 1])
    assert series.value.tolist() == [big, 1]


def test_tensors(store: str) -> None:
    """A small array comes back as an array of its dtype and shape."""
    from sdk.values import plain

    matrix = numpy.arange(6, dtype="float32").reshape(2, 3)
    series = of_values(store, [plain({"v": matrix})[0]["v"]] * 2)
    assert series.value.dtype == object
    assert (series.value[1] == matrix).all()
    assert series.value[1].dtype == numpy.float32


def test_nested_and_null(store: str) -> None:
    """Nested dicts are dotted names, a nested key that is no str its text; a later null takes a value away."""
    run = RunBuilder(store)
    main = run.stream()
    main.log({"a": {"b": 1, 3: 2}})
    main.log({"a": {"b": 2}}, commit=False)
    main.log({"a": {"b": None}})
    main.log({"a.b": 3})
    run.close()
    found = opened(store)
    assert found.keys() == ["a.3", "a.b"]
    assert found.series("a.b").step.tolist() == [0, 2]
    assert found.series("a.3").value.tolist() == [2]


def test_last_write_wins_and_late_values_find_their_place(store: str) -> None:
    """Sorted by step, whatever the order of logging; the highest sequence wins at a step."""
    run = RunBuilder(store)
    main = run.stream()
    for step in range(40):
        main.log({"loss": float(step)})
    run.flush()
    main.log({"loss": -1.0}, step=7)
    main.log({"loss": 3.0}, step=100, commit=False)
    main.log({"loss": 4.0}, step=100, commit=True)
    run.close()
    series = opened(store).series("loss")
    assert series.step.tolist() == [*range(40), 100]
    assert series.value[[6, 7, 8, 40]].tolist() == [6.0, -1.0, 8.0, 4.0]


def test_unknown_key(store: str) -> None:
    """The nearest keys are named, and how to list all."""
    make_run(store, "a41f", [{"train/loss": 1.0, "val/loss": 2.0, "lr": 3.0}])
    with pytest.raises(NotFoundError) as caught:
        opened(store).series("los")
    assert str(caught.value) == ("run a41f has no series 'los'. Nearest: 'train/loss', 'val/loss'\n  Try: run.keys()")
    with pytest.raises(KeyError, match="It has 'lr', 'train/loss'"):
        opened(store).series("xyzzy")


def test_unknown_key_of_an_empty_run(store: str) -> None:
    """A run without values says so."""
    make_run(store, "a41f")
    with pytest.raises(NotFoundError, match="holds no values yet"):
        opened(store).series("loss")


def ranks(store: str) -> RunBuilder:
    run = RunBuilder(store)
    for rank in (2, 0, 1):
        stream = run.stream(rank=rank)
        for step in range(20):
            stream.log({"loss": rank + step / 100, **({"only1": step} if rank == 1 else {})})
    run.seal()
    return run


def test_ranks_are_never_mixed(store: str) -> None:
    """The lowest rank's values are the series, the others are named; every rank and all can be asked for."""
    built = ranks(store)
    run = opened(store)
    rank2, _, rank1 = built.streams
    series = run.series("loss")
    assert series.value.tolist() == [step / 100 for step in range(20)]
    assert set(series.others) == {rank1.hex, rank2.hex}
    assert run.series("loss", rank=2).value[0] == 2.0
    assert run.series("loss", stream=rank1.hex).value[0] == 1.0
    assert run.series("loss", stream=rank1.id).value[0] == 1.0
    only = run.series("only1")
    assert (only.others, only.stream) == ((), None)
    everything = run.series("loss", stream="all")
    assert everything.step.tolist() == [step for step in range(20) for _ in range(3)]
    assert everything.stream is not None
    assert everything.stream.dtype == numpy.uint64
    assert sorted(everything.value.tolist()) == sorted(r + s / 100 for r in range(3) for s in range(20))


def test_unknown_stream_and_rank(store: str) -> None:
    """What was chosen and is not there is said."""
    ranks(store)
    with pytest.raises(NotFoundError, match="no stream of rank 9"):
        opened(store).series("loss", rank=9)
    with pytest.raises(NotFoundError, match="no stream 'ffff'"):
        opened(store).series("loss", stream="ffff")
    with pytest.raises(NotFoundError, match="no series 'only1'"):
        opened(store).series("only1", rank=2)


def test_kinds_and_age_decide_between_equal_ranks(store: str) -> None:
    """Main comes before fork and attach, then the older one."""
    run = RunBuilder(store)
    for kind, value in (("attach", 1), ("main", 2), ("main", 3), ("fork", 4)):
        run.stream(kind).log({"v": value})
    run.close()
    assert opened(store).series("v").value.tolist() == [2]
    assert opened(store).rows().__next__()["v"] == 2


def resumed(store: str) -> RunBuilder:
    """Attempt 1 logs 0 to 9, attempt 2 goes on from 6 as if 6 to 9 had not been, attempt 3 goes on without hiding."""
    run = RunBuilder(store)
    first = run.stream()
    for step in range(10):
        first.log({"loss": 100 + step, "old": step})
    second = run.stream(continues=first.hex, attempt=2, first_step=6)
    second.meta({"hide": {"attempt": 2, "from_step": 6}})
    for _ in range(2):
        second.log({"loss": 200 + second.step})
    third = run.stream(continues=second.hex, attempt=3, first_step=7)
    for _ in range(2):
        third.log({"loss": 300 + third.step})
    run.seal()
    return run


def test_a_resume_hides_and_overrides(store: str) -> None:
    """In a lane hidden rows are left out and the later stream wins; the dead branch is still there by its stream."""
    built = resumed(store)
    run = opened(store)
    series = run.series("loss")
    assert series.step.tolist() == [*range(9)]
    assert series.value.tolist() == [100, 101, 102, 103, 104, 105, 206, 307, 308]
    assert series.stream is not None
    assert series.stream.tolist() == [built.streams[i].id for i in (0, 0, 0, 0, 0, 0, 1, 2, 2)]
    assert run.series("old").step.tolist() == [*range(6)]
    assert run.series("loss", stream=built.streams[0].hex).value[-1] == 109
    assert [row["loss"] for row in run.rows()] == series.value.tolist()
    assert run.summary == {"loss": 308, "old": 5}


def test_a_null_in_a_later_stream_wins(store: str) -> None:
    """A null is a value that was logged: it takes the older attempt's value away."""
    run = RunBuilder(store)
    first = run.stream()
    first.log({"v": 1})
    run.stream(continues=first.hex, attempt=2).log({"v": None})
    run.close()
    assert len(opened(store).series("v")) == 0
    assert [row["v"] for row in opened(store).rows()] == [None]


def test_lanes_of_liars(store: str) -> None:
    """Streams that continue themselves, each other or nobody are lanes all the same."""
    run = RunBuilder(store)
    run.stream(stream_id=1, continues=f"{1:016x}").log({"a": 1})
    run.stream(stream_id=2, continues=f"{3:016x}", attempt=-1).log({"b": 1})
    run.stream(stream_id=3, continues=f"{2:016x}", attempt="x").log({"c": 1})
    run.stream(stream_id=4, continues="nonsense", rank="zero", started_ns=-5).log({"d": 1})
    run.stream(stream_id=5, continues=7).log({"e": 1})
    run.close()
    assert opened(store).keys() == ["a", "b", "c", "d", "e"]
    assert len(opened(store).streams) == 5


def test_a_million_rows_are_read_in_groups(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uniform rows do not pass through msgpack, but for the few beside the run's facts."""
    run = RunBuilder(store)
    main = run.stream()
    for step in range(2000):
        main.log({"loss": step / 7, "n": 70_000 + step})
    run.seal()
    found = opened(store)
    decoded: list[object] = []
    monkeypatch.setattr("sdk.reader.parts.decode_map", lambda payload: (decoded.append(1), decode_map(payload))[1])
    assert found.series("loss").value.tolist() == [step / 7 for step in range(2000)]
    assert found.series("n").value.tolist() == [70_000 + step for step in range(2000)]
    assert len(decoded) < 200


def test_sample_of_a_short_run_is_exact(store: str) -> None:
    """Below the bound every value counts; the first and the last are in the sample."""
    make_run(store, "a41f", [{"loss": float(i), "name": "x"} for i in range(300)])
    found = opened(store).sample(["loss", "none"], 30)
    steps, values = found["loss"]
    assert (len(steps), steps[0], steps[-1]) == (30, 0, 299)
    assert values.tolist() == steps.astype(float).tolist()
    assert len(found["none"][0]) == len(found["none"][1]) == 0


def test_sample_of_a_long_run_reads_few_blocks(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only some blocks are read, spread over all steps."""
    monkeypatch.setattr("sdk.reader.sample.EXACT_RECORDS_MAX", 100)
    run = RunBuilder(store)
    main = run.stream()
    for step in range(1000):
        main.log({"loss": float(step)})
        if step % 25 == 24:
            run.flush()
    run.seal()
    found = opened(store)
    reads: list[int] = []
    payload = found._scan.payload
    monkeypatch.setattr(found._scan, "payload", lambda s, b: (reads.append(b.number), payload(s, b))[1])
    assert found.keys(quick=True) == ["loss"]
    assert len(reads) == len(set(reads)) == 8
    reads.clear()
    steps, values = found.sample(["loss"], 20)["loss"]
    assert len(reads) == 8
    assert 8 <= len(steps) <= 20
    assert (steps[0], steps[-1], values[-1]) == (0, 999, 999.0)
    assert steps[len(steps) // 2] in range(300, 700)


def test_to_pandas_without_pandas(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing pandas is an error that names the command and the interpreter."""
    import sys

    monkeypatch.setitem(sys.modules, "pandas", None)
    make_run(store, "a41f", [{"loss": 1.0}])
    with pytest.raises(Exception, match="Try: pip install pandas"):
        opened(store).to_pandas()


def test_to_pandas(store: str) -> None:
    """One row per step, one column per key; integers stay integers where others are missing."""
    pandas = pytest.importorskip("pandas")
    run = RunBuilder(store)
    main = run.stream()
    main.log({"loss": 1.5, "n": 2**53 + 1, "s": "a", "ok": True, "whole": 1})
    main.log({"loss": None, "whole": 2})
    main.log({"loss": math.nan, "n": 3, "whole": 3})
    run.close()
    found = opened(store)
    frame = found.to_pandas()
    assert frame.index.tolist() == [0, 1, 2]
    assert list(frame.columns) == ["loss", "n", "ok", "s", "whole"]
    assert {key: str(frame[key].dtype) for key in ("loss", "n", "ok", "whole")} == {
        "loss": "float64", "n": "Int64", "ok": "boolean", "whole": "int64",
    }  # fmt: skip
    assert frame["n"][0] == 2**53 + 1
    assert frame["n"][1] is pandas.NA
    assert list(found.to_pandas(["whole", "n"]).columns) == ["whole", "n"]
    with pytest.raises(NotFoundError, match="no series 'los'"):
        found.to_pandas(["los"])
