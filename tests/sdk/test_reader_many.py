from __future__ import annotations

from pathlib import Path

import pytest

from sdk.errors import NotFoundError
from sdk.reader import Run, Store, open_store
from tests.builders import START_NS, compact, make_run, make_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three runs, the second one compacted."""
    path = make_store(tmp_path)
    make_run(path, "a1", [{"train/loss": n / 3, "train/acc": n} for n in range(50)], project="p", started_ns=START_NS)
    made = make_run(path, "b2", [{"train/loss": 1.0, "eval": "text"}] * 3, project="p", started_ns=START_NS + 10**9)
    make_run(path, "c3", [{"other": 2.5}], project="q", started_ns=START_NS + 2 * 10**9)
    compact(made)
    return open_store(path)


def test_keys_and_patterns_of_several_runs(store: Store) -> None:
    """Each run's series under (run id, key), the newest run first; runs that lack the key are left out."""
    found = store.series("train/*")
    assert list(found) == [("b2", "train/loss"), ("a1", "train/acc"), ("a1", "train/loss")]
    assert found["a1", "train/acc"].value.tolist() == list(range(50))
    assert list(store.series(["eval", "other", "none"])) == [("c3", "other"), ("b2", "eval")]
    assert (found.errors, repr(found)) == ({}, "<3 series: 2 runs, 2 keys>")


def test_which_runs(store: Store) -> None:
    """All, those of a project, or some: as text that `Store.run` takes, or as runs."""
    for runs, ids in (
        ("a1", ["a1"]), (["latest", "p/a1"], ["c3", "a1"]), (store.run("b2"), ["b2"]), ([], []),
        (iter([store.run("b2"), "a1"]), ["b2", "a1"]),
    ):  # fmt: skip
        assert list(dict.fromkeys(run for run, _ in store.series("*", runs))) == ids
    assert {run for run, _ in store.series("*", project="p")} == {"a1", "b2"}
    assert {run for run, _ in store.series("*", ["a1", "c3"], project="q")} == {"c3"}
    with pytest.raises(NotFoundError, match="no run matches 'none'"):
        store.series("*", ["a1", "none"])


def test_points_of_several_runs(store: Store) -> None:
    """Numbers are reduced, texts and short series are given whole."""
    found = store.series("*", points=10)
    assert {pair: series.sample_of for pair, series in found.items() if series.sample_of} == {
        ("a1", "train/acc"): 50, ("a1", "train/loss"): 50,
    }  # fmt: skip
    assert found["b2", "eval"].value.tolist() == ["text"] * 3
    with pytest.raises(ValueError, match="points"):
        store.series("*", points=1)


def test_a_run_that_cannot_be_read_stops_no_other(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage is left out as always; a run whose reading raises is named in `errors`, and the others are there."""
    for path in Path(store.run("a1").directory).iterdir():
        path.write_bytes(b"garbage" * 100)
    several = Run.several

    def failing(run: Run, *args: object, **named: object) -> object:
        if run.id == "b2":
            raise OSError("the disk is gone")
        return several(run, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Run, "several", failing)
    found = store.series("*")
    assert list(found) == [("c3", "other")]
    assert (set(found.errors), repr(found)) == ({"b2"}, "<1 series: 1 runs, 1 keys, 1 runs could not be read>")


def test_long_form(store: Store) -> None:
    """`to_pandas` has a row for each value; kinds that meet become objects, none become floats that were integers."""
    pytest.importorskip("pandas")
    frame = store.series("train/*").to_pandas()
    assert list(frame.columns) == ["run", "key", "step", "time", "value"]
    assert len(frame) == 103
    assert frame.groupby(["run", "key"], sort=False).size().tolist() == [3, 50, 50]
    assert str(frame["value"].dtype) == "float64"
    assert str(store.series("train/acc").to_pandas()["value"].dtype) == "int64"
    mixed = store.series(["eval", "train/acc"]).to_pandas()
    assert mixed["value"].tolist()[:4] == ["text", "text", "text", 0]
    assert store.series("none").to_pandas().shape == (0, 5)
