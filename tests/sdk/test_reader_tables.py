from __future__ import annotations

import datetime
import math
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest

from sdk.errors import Error, NotFoundError
from sdk.reader import Run, open_store
from sdk.reader.tables import read_cells
from sdk.record import EXT_BIG_INT
from tests.builders import RunBuilder, compact, make_run, make_store


@pytest.fixture
def store(tmp_path: Path) -> str:
    return make_store(tmp_path)


def opened(store: str) -> Run:
    return open_store(store).run("a41f")


def mixed(store: str) -> RunBuilder:
    """A run of two ranks with late steps, holes, nulls and values of every kind."""
    run = RunBuilder(store)
    main, other = run.stream(rank=0), run.stream(rank=1)
    for step in range(60):
        main.log({"loss": step / 7, "n": 2**53 + step, "ok": step % 2 == 0})
        if step % 10 == 0:
            main.log({"acc": step, "s": f"t{step}", "big": 2**63 + step, "list": [1, step]}, step=step)
        other.log({"loss": -1.0, "other": float(step)})
    main.log({"loss": math.nan, "n": None, "bytes": b"raw", "mix": 1})
    main.log({"loss": math.inf, "mix": "x", "huge": msgpack.ExtType(EXT_BIG_INT, str(2**70).encode()), "_hidden": 1})
    main.log({"loss": 100.0, "step": 5, "time": "noon"}, step=3)
    main.finish()
    other.finish()
    run.seal()
    return run


@pytest.fixture(params=["rows", "columns"])
def run(request: pytest.FixtureRequest, store: str) -> Run:
    """The run of `mixed`, as it was written and compacted."""
    made = mixed(store)
    if request.param == "columns":
        compact(made, window=50)
    return opened(store)


def test_a_table_has_the_values_of_each_series(run: Run) -> None:
    """In every table each key has, at each step, what its series has there, and holes elsewhere; main lane first."""
    arrow = run.to_arrow()
    steps = arrow["step"].to_pylist()
    assert steps == sorted(set(steps)) == list(range(62))
    others = set(range(60))  # steps of the other rank
    for key in ("loss", "n", "ok", "acc", "s", "big", "bytes"):
        series = run.series(key)
        held = dict(zip(steps, arrow[key].to_pylist()))
        assert repr([held[step] for step in series.step.tolist()]) == repr(series.value.tolist())
        assert {held[step] for step in set(steps) - set(series.step.tolist()) - others} <= {None}
    frame = run.to_pandas(["loss", "n", "acc"])
    assert (frame.index.tolist(), list(frame.columns)) == (steps, ["loss", "n", "acc"])
    assert [str(dtype) for dtype in frame.dtypes] == ["float64", "Int64", "Int64"]
    assert (frame["loss"][3], frame["n"][1], frame["acc"][10]) == (100.0, 2**53 + 1, 10)


def test_types_of_arrow(run: Run) -> None:
    """Each kind of value has its Arrow type; NaN is a value and a hole is null; what Arrow has no type for is JSON."""
    table = run.to_arrow()
    types = {name: str(table.schema.field(name).type) for name in table.column_names}
    assert types == {
        "step": "int64", "time": "timestamp[us, tz=UTC]", "acc": "int64", "big": "uint64", "bytes": "binary",
        "huge": "string", "list": "string", "loss": "double", "mix": "string", "n": "int64", "ok": "bool", "other": "double",
        "s": "string", "_logged_step": "int64", "_logged_time": "string",
    }  # fmt: skip
    assert table["loss"].null_count == 0
    assert math.isnan(table["loss"][60].as_py())
    assert table["n"].null_count == 2
    assert table["list"].drop_null().to_pylist()[:2] == ["[1, 0]", "[1, 10]"]
    assert table["mix"].drop_null().to_pylist() == ["1", '"x"']
    assert table["huge"].drop_null().to_pylist() == [str(2**70)]


def test_times_of_arrow(store: str) -> None:
    """The time of a row is that of its latest value, in whole microseconds."""
    made = make_run(store, "a41f", [{"a": 1.0, "b": 2}, {"a": 2.0, "b": 2}, {"a": 2.0}])
    late = [made.streams[0].log(row, step=step).time_ns for step, row in enumerate([{"b": 3}, {"a": 3.0}])]
    made.seal()
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    times = [
        (one - epoch) // datetime.timedelta(microseconds=1) for one in opened(store).to_arrow()["time"].to_pylist()
    ]
    assert times == [late[0] // 1000, late[1] // 1000, (made.streams[0].records[3].time_ns) // 1000]
    assert opened(store).to_arrow(["a"])["time"][0].as_py() < opened(store).to_arrow(["b"])["time"][0].as_py()


def test_tables_are_the_same_before_and_after_compaction(store: str) -> None:
    """Values, types, names and times of every table are the same from rows and from columns."""
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    made = mixed(store)
    before = opened(store)
    found = before.to_arrow(), before.to_pandas(), before.to_polars()
    compact(made, window=50)
    after = opened(store)
    assert after.damage == []
    assert repr(after.to_arrow().to_pydict()) == repr(found[0].to_pydict())
    assert after.to_arrow().schema == found[0].schema
    pandas.testing.assert_frame_equal(after.to_pandas(), found[1])
    assert polars.DataFrame.equals(after.to_polars(), found[2])


def test_polars(run: Run) -> None:
    """The columns of Arrow: holes are null, NaN stays NaN, times are in UTC."""
    polars = pytest.importorskip("polars")
    frame = run.to_polars(["n", "loss", "s"])
    assert frame.schema == {
        "step": polars.Int64, "time": polars.Datetime("us", "UTC"), "n": polars.Int64, "loss": polars.Float64, "s": polars.String,
    }  # fmt: skip
    assert frame["n"].null_count() == 2
    assert frame["loss"].is_nan().sum() == 1


def test_columns_logged_together_share_their_steps(store: str) -> None:
    """Keys of the same rows have one array of steps, not one each, and no column is searched or filled."""
    made = make_run(store, "a41f", [{"a": float(n), "b": n, "c": n % 2 == 0} for n in range(500)])
    compact(made, window=200)
    found = opened(store)
    cells = read_cells(found._scan, found._lanes, ["a", "b", "c"])
    assert len({id(one.spine) for one in cells.values()}) == 1
    assert cells["a"].spine.step.tolist() == list(range(500))


def test_keys_that_never_meet(store: str) -> None:
    """As many values at other steps: a row for each step, in order, with a hole for the other key."""
    make_run(store, "a41f", [{"even": n} if n % 2 == 0 else {"odd": n} for n in range(41)])
    table = opened(store).to_arrow()
    assert table["step"].to_pylist() == list(range(41))
    assert table["even"].to_pylist() == [n if n % 2 == 0 else None for n in range(41)]
    assert table["odd"].to_pylist() == [n if n % 2 else None for n in range(41)]


def test_texts_that_are_none_elsewhere(store: str) -> None:
    """A lone surrogate and a value nested too deeply for JSON do not stop a table."""
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    make_run(store, "a41f", [{"s": "a\ud800b", "deep": deep, "b": "x"}])
    table = opened(store).to_arrow()
    assert table["s"].to_pylist() == ["a?b"]
    assert len(table["deep"].to_pylist()[0]) > 10


def test_no_rows_and_unknown_keys(store: str) -> None:
    """A run without rows is a table without rows; a key that nobody logged is named, with those that are near."""
    made = make_run(store, "a41f")
    assert opened(store).to_arrow().shape == (0, 2)
    assert opened(store).to_pandas().shape == (0, 0)
    made.streams[0].log({"loss": 1.0})
    made.seal()
    for ask in (opened(store).to_arrow, opened(store).to_pandas, opened(store).to_polars):
        with pytest.raises(NotFoundError, match="no series 'los'. Nearest: 'loss'"):
            ask(["loss", "los"])
        with pytest.raises(TypeError, match="expected a list of them"):
            ask("loss")
    assert opened(store).to_arrow(key for key in ("loss",)).column_names == ["step", "time", "loss"]


@pytest.mark.parametrize(
    ("missing", "ask", "hint"),
    [
        ("pandas", "to_pandas", "pip install pandas"), ("pyarrow", "to_arrow", "pip install pyarrow"),
        ("pyarrow", "to_polars", "pip install pyarrow"), ("polars", "to_polars", "pip install polars"),
    ],
)  # fmt: skip
def test_what_is_not_installed(store: str, monkeypatch: pytest.MonkeyPatch, missing: str, ask: str, hint: str) -> None:
    """A missing library is an error that names it, what to install and the interpreter, before anything is read."""
    make_run(store, "a41f", [{"loss": 1.0}])
    run = opened(store)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(Error, match=f"{missing} is not installed here\n.*{hint}"):
        getattr(run, ask)()
