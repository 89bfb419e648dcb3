"""sdk.reader.beside: what accompanies a training is read like a run, and the training does not see it."""

from __future__ import annotations

from pathlib import Path

import pytest

import sdk
from sdk.errors import NotFoundError
from sdk.reader.run import Run
from tests.builders import RunBuilder, compact, make_store


@pytest.fixture
def built(tmp_path: Path) -> RunBuilder:
    """A training of three rows and a host's observer with two, and another host's with one."""
    run = RunBuilder(make_store(tmp_path))
    main = run.stream(rank=0)
    for loss in (3.0, 2.0, 1.0):
        main.log({"loss": loss, "epoch": 7})
    main.meta({"metric": {"*": {"step_metric": "epoch"}}})
    for rank, host in ((0, "host-a"), (8, "host-b")):
        system = run.stream("system", rank=rank, host=host)
        system.log({"system/threads": 5 + rank, "system/gpu.0.utilization": 90.0})
        if not rank:
            system.log({"system/threads": 6, "system/cpu": 150.0})
    main.finish()
    run.seal()
    return run


@pytest.fixture(params=["rows", "columns"])
def stored(request: pytest.FixtureRequest, built: RunBuilder) -> Run:
    if request.param == "columns":
        compact(built)
    return Run(built.directory)


def test_the_training_does_not_see_it(stored: Run) -> None:
    """Rows, keys, steps, tables, summary and counts are the training's alone."""
    assert stored.keys() == ["epoch", "loss"]
    assert [row["_step"] for row in stored.rows()] == [0, 1, 2]
    assert stored.steps().tolist() == [0, 1, 2]
    assert list(stored.to_pandas().columns) == ["epoch", "loss"]
    assert set(stored.summary) == {"epoch", "loss"}
    assert (stored.last_step, stored.step_max, stored.records) == (2, 2, 6)
    assert stored.state == "finished"
    assert [stream.kind for stream in stored.streams] == ["main", "system", "system"]


def test_keys_below_system_are_found_by_themselves(stored: Run) -> None:
    """Of the lowest rank unless another is asked for; the axis is the time, whatever the training's is."""
    found = stored.series("system/threads")
    assert found.value.tolist() == [5, 6]
    assert found.x.tolist() == found.time.tolist()
    assert len(found.others) == 1
    assert stored.series("system/threads", rank=8).value.tolist() == [13]
    assert len(stored.series("system/threads", stream="all")) == 3
    assert set(stored.several(["system/*", "loss"])) == {
        "system/threads", "system/cpu", "system/gpu.0.utilization", "loss",
    }  # fmt: skip


def test_a_kind_is_read_like_a_run(stored: Run) -> None:
    """Keys, rows and tables of it; a table is indexed by the time."""
    assert stored.keys(kind="system") == ["system/cpu", "system/gpu.0.utilization", "system/threads"]
    rows = list(stored.rows(["system/threads"], kind="system"))
    assert [row["system/threads"] for row in rows] == [5, 6]
    frame = stored.to_pandas(["system/threads"], kind="system")
    assert frame["system/threads"].tolist() == [5, 6]
    assert frame.index.name == "time"
    assert frame.index[0].timestamp() == rows[0]["_timestamp"]
    assert stored.to_arrow(kind="system").column_names[:2] == ["step", "time"]
    system = stored.of_kind("system")
    assert system.summary == {"system/cpu": 150.0, "system/gpu.0.utilization": 90.0, "system/threads": 6}
    assert (system.state, system.id) == ("finished", stored.id)
    assert system.of_kind("system") is system
    assert stored.of_kind("main") is stored


def test_an_unknown_key_is_told_with_those_of_its_kind(stored: Run) -> None:
    """Not with the training's."""
    with pytest.raises(NotFoundError, match="Nearest: 'system/cpu'"):
        stored.series("system/cpus")
    with pytest.raises(NotFoundError, match="no series 'loss'"):
        stored.series("loss", kind="system")
    assert stored.keys(kind="console") == []


def test_a_training_may_log_below_system_itself(tmp_path: Path) -> None:
    """Its own are found where the observer has none of that name, and by kind where it has."""
    run = RunBuilder(make_store(tmp_path))
    run.stream().log({"system/queue": 3, "system/cpu": 1.0})
    run.seal()
    assert Run(run.directory).series("system/queue").value.tolist() == [3]
    run.stream("system").log({"system/cpu": 50.0})
    run.seal()
    stored = Run(run.directory)
    assert stored.series("system/queue").value.tolist() == [3]
    assert stored.series("system/cpu").value.tolist() == [50.0]
    assert stored.series("system/cpu", kind="main").value.tolist() == [1.0]


def test_it_is_found_when_it_comes_after_the_run_was_opened(tmp_path: Path) -> None:
    """A training is opened as soon as it is there, its observer begins a moment later."""
    run = RunBuilder(make_store(tmp_path))
    run.stream().log({"loss": 1.0})
    run.flush()
    stored = Run(run.directory)
    run.stream("system").log({"system/cpu": 50.0})
    run.flush()
    assert stored.series("system/cpu").value.tolist() == [50.0]
    run.close()


def test_history_of_the_system(built: RunBuilder) -> None:
    """W&B's word for it: sampled rows with their times."""
    api = sdk.Api(dir=str(Path(built.directory).parent.parent))
    run = api.run("digits/a41f")
    rows = run.history(stream="system", pandas=False)
    assert [row["system/threads"] for row in rows] == [5, 6]
    assert set(rows[0]) >= {"_timestamp", "_runtime", "system/gpu.0.utilization"}
    assert list(run.history(stream="system", keys=["system/cpu"]).columns) == ["_step", "system/cpu"]
    assert len(run.history(stream="events", pandas=False)) == 2


def test_what_was_used_in_all(built: RunBuilder) -> None:
    """Sums over hosts, and of peaks the highest; what is no number is left out."""
    for peak in (5, 9):
        stream = built.stream("system")
        stream.meta({"stream": {"summary": {"gpu_hours": 1.5, "memory_rss_max": peak, "odd": "text"}}})
    built.seal()
    assert Run(built.directory).system_summary == {"gpu_hours": 3.0, "memory_rss_max": 9}
