from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from sdk.errors import Error, NotFoundError, StoreError, UnsupportedError, UsageError
from sdk.query.api import Api
from tests.builders import START_NS, RunBuilder, make_run, make_store


@pytest.fixture
def api(tmp_path: Path) -> Api:
    store = make_store(tmp_path)
    rows = [{"loss": 1.0 / (i + 1), **({"acc": i / 100} if i % 10 == 0 else {})} for i in range(100)]
    make_run(store, "a41f", rows, config={"lr": 0.1}, tags=["t"])
    make_run(store, "b2", [{"loss": 5.0}], name="brave-fox", project="other", started_ns=START_NS + 10**9)
    return Api(dir=store)


def test_no_store(tmp_path: Path) -> None:
    """An Api without a store says so, as the reader does."""
    with pytest.raises(StoreError):
        Api(dir=tmp_path)


def test_store_from_the_environment(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Api() opens the store that init would use; W&B's own arguments are accepted."""
    monkeypatch.setenv("STEPD_DIR", api._store.path)
    assert Api(timeout=19, api_key="x").run("digits/a41f").id == "a41f"
    assert Api({"project": "other", "entity": "me"}).run("b2").name == "brave-fox"
    assert [run.id for run in Api({"project": "other"}).runs()] == ["b2"]


@pytest.mark.parametrize(
    "path", ["a41f", "digits/a41f", "entity/digits/a41f", "/digits/runs/a41f", "digits/calm-otter-12"]
)
def test_paths(api: Api, path: str) -> None:
    """W&B's paths lead to the run; the entity is ignored."""
    assert api.run(path).id == "a41f"


def test_unknown_run(api: Api) -> None:
    """An unknown run is an error that names the nearest."""
    with pytest.raises(NotFoundError, match="a41f"):
        api.run("digits/a41g")


def test_names_of_a_run(api: Api) -> None:
    """The properties that scripts for W&B read."""
    run = api.run("digits/a41f")
    assert (run.id, run.name, run.project, run.entity, run.state) == ("a41f", "calm-otter-12", "digits", "", "finished")
    assert (run.path, run.url, run.tags, run.config) == (["", "digits", "a41f"], None, ["t"], {"lr": 0.1})
    assert run.summary["acc"] == 0.9
    assert run.summary._json_dict == {"loss": 0.01, "acc": 0.9}
    assert (run.created_at, run.lastHistoryStep) == ("2023-11-14T22:13:20Z", 99)
    assert (run.group, run.job_type, run.notes) == ("", "", "")


def test_runs(api: Api) -> None:
    """The oldest first, as W&B's default order; what a server would do is said."""
    assert [run.id for run in api.runs()] == ["a41f", "b2"]
    assert [run.id for run in api.runs("me/other", order="-created_at")] == ["b2"]
    with pytest.raises(UnsupportedError, match="Try: "):
        api.runs("digits", filters={"state": "finished"})
    with pytest.raises(UnsupportedError, match="Try: "):
        api.runs("digits", order="-summary_metrics.acc")


def test_scan_history(api: Api) -> None:
    """Every row in order; with keys only rows that hold all of them, and only these."""
    run = api.run("a41f")
    rows = list(run.scan_history())
    assert [row["_step"] for row in rows] == list(range(100))
    assert rows[10].keys() == {"_step", "_timestamp", "_runtime", "loss", "acc"}
    assert rows[0]["_runtime"] == pytest.approx(0.003, abs=1e-6)
    assert list(run.scan_history(keys=["acc"], page_size=2))[:2] == [{"acc": 0.0}, {"acc": 0.1}]
    assert list(run.scan_history(["loss", "acc", "_step"]))[1] == {"loss": 1 / 11, "acc": 0.1, "_step": 10}
    assert [row["_step"] for row in run.scan_history(min_step=10, max_step=12)] == [10, 11]
    assert list(run.scan_history(["none"])) == []
    with pytest.raises(TypeError, match="expected a list"):
        run.scan_history("loss")


def test_history_without_pandas(api: Api) -> None:
    """Evenly spread rows, first and last included, as dicts."""
    run = api.run("a41f")
    rows = run.history(samples=5, pandas=False)
    assert [row["_step"] for row in rows] == [0, 25, 50, 74, 99]
    assert [row["_step"] for row in run.history(pandas=False)] == list(range(100))
    rows = run.history(keys=["acc"], samples=3, pandas=False)
    assert rows == [{"_step": 0, "acc": 0.0}, {"_step": 40, "acc": 0.4}, {"_step": 90, "acc": 0.9}]
    assert run.history(keys=["acc"], x_axis="loss", samples=1, pandas=False) == [{"loss": 1.0, "acc": 0.0}]
    assert run.history(keys=["_runtime"], samples=1, pandas=False)[0].keys() == {"_step", "_runtime"}
    assert run.history(keys=["none"], pandas=False) == []
    with pytest.raises(UnsupportedError):
        run.history(stream="console", pandas=False)


def test_history_leaves_out_nulls(tmp_path: Path) -> None:
    """A row in which a wanted key is null does not count as one that holds it."""
    store = make_store(tmp_path)
    make_run(store, "a41f", [{"a": 1, "b": None}, {"a": 2, "b": 2}])
    run = Api(dir=store).run("a41f")
    assert run.history(keys=["a", "b"], pandas=False) == [{"_step": 1, "a": 2, "b": 2}]
    assert list(run.scan_history(["a", "b"])) == [{"a": 2, "b": 2}]


def test_history_needs_pandas_by_default(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B's default is a DataFrame: without pandas the error names the cure."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(Error, match="pip install pandas"):
        api.run("a41f").history()


def test_history_as_a_frame(api: Api) -> None:
    """With pandas the same rows are a DataFrame."""
    pytest.importorskip("pandas")
    frame = api.run("a41f").history(keys=["acc"], samples=3)
    assert list(frame.columns) == ["_step", "acc"]
    assert frame["acc"].tolist() == [0.0, 0.4, 0.9]
    assert api.run("a41f").history(keys=["none"]).empty
    assert "loss" in api.run("a41f").history().columns


def test_a_run_without_rows(tmp_path: Path) -> None:
    """Nothing logged is no error."""
    store = make_store(tmp_path)
    built = RunBuilder(store)
    built.stream()
    built.close()
    run = Api(dir=store).run("latest")
    assert (list(run.scan_history()), run.history(pandas=False), run.summary) == ([], [], {})
    assert run.lastHistoryStep == -1


def test_artifacts_that_are_not_there(api: Api) -> None:
    """An unknown name is told with what there is; a run that logged none has none."""
    with pytest.raises(NotFoundError, match="'a'"):
        api.artifact("a:v0")
    assert not api.artifact_exists("a")
    assert api.artifacts("dataset", "a") == []
    assert api.run("a41f").logged_artifacts() == api.run("a41f").used_artifacts() == []


def test_update(api: Api) -> None:
    """What was changed is stored, under W&B's names; what a run was started with stays."""
    run = api.run("a41f")
    run.name, run.notes, run.group = "best", "hm", "g"
    run.tags.append("kept")
    run.config["method"] = "sgd"
    run.summary["test"] = 0.9
    assert (run.name, run.display_name, api.run("a41f").notes) == ("best", "best", "")
    run.update()
    found = api.run("a41f")
    assert (found.name, found.notes, found.group, found.tags[-1]) == ("best", "hm", "g", "kept")
    assert (found.config["method"], found.summary["test"]) == ("sgd", 0.9)
    files = os.listdir(found.stored.directory)
    found.update()
    assert os.listdir(found.stored.directory) == files
    found.config["method"] = "adam"
    with pytest.raises(UsageError, match="the run was started with 'sgd'"):
        found.update()
    found.load()
    del found.config["method"]
    with pytest.raises(UsageError, match="out of the config"):
        found.update()


def test_update_leaves_alone_what_was_only_looked_at(api: Api) -> None:
    """Tags, config and summary that somebody else has set since are not set back."""
    run, other = api.run("a41f"), api.run("a41f")
    assert (run.tags, "late" in run.config, run.summary.get("late")) == (other.tags, False, None)
    other.tags.append("late")
    other.config["late"] = other.summary["late"] = 1
    other.update()
    run.stored.refresh()
    run.notes = "mine"
    run.update()
    found = api.run("a41f")
    assert (found.tags[-1], found.config["late"], found.summary["late"], found.notes) == ("late", 1, 1, "mine")


def test_update_of_what_lies_inside_of_the_summary(api: Api) -> None:
    """A map or list that was changed in place was changed."""
    run = api.run("a41f")
    run.summary.update({"best": {"step": 1, "all": [1]}})
    run.summary["best"]["all"].append(2)
    run.update()
    assert api.run("a41f").summary["best"] == {"step": 1, "all": [1, 2]}
    files = os.listdir(run.stored.directory)
    run.update()
    assert os.listdir(run.stored.directory) == files


def test_update_of_the_summary(api: Api) -> None:
    """`summary.update()` stores it at once: values that came, that changed, that went."""
    run = api.run("a41f")
    run.summary.update({"test": 1, "other": 2})
    run.summary.update({"test": 3}, overwrite=False)
    assert api.run("a41f").summary["test"] == 1
    del run.summary["other"]
    run.summary["test"] = 4
    run.summary.update()
    found = api.run("a41f").summary
    assert (found["test"], "other" in found) == (4, False)
    run.load()
    assert run.summary == found
