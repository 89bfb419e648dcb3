from __future__ import annotations

import copy
import datetime
import os
import pickle
from typing import Any

import pytest

import sdk
from sdk import _globals, _hooks, _run
from sdk.testing import FakeClock


def test_facts_may_be_set_later(world: Any) -> None:
    """Name, notes and tags are stored when they change; a tag that cannot be is left out."""
    run = sdk.init(tags=["a"], notes="n")
    run.name = "new"
    run.notes = None
    run.tags += ("b", "")
    assert (run.name, run.notes, run.tags) == ("new", "", ("a", "b"))
    assert world.later == [{"run": {"name": "new"}}, {"run": {"notes": None}}, {"run": {"tags": ["a", "b"]}}]
    run.finish()
    with pytest.raises(sdk.UsageError):
        run.name = "later"
    assert run.name == "new"


def test_attributes(world: Any) -> None:
    """What scripts read of a run."""
    run = sdk.init(project="p", id="i", mode="offline", entity="me")
    assert (run.path, run.entity, run.group, run.job_type, run.mode) == ("p/i", "me", "", "", "offline")
    assert (run.url, run.project_url, run.sweep_url, run.sweep_id) == (None, None, None, None)
    assert (run.offline, run.disabled, run.resumed, run.starting_step) == (True, False, False, 0)
    assert run._attach_id == "i"
    assert run.settings.project == "p"
    assert run.sync_dir == os.path.join(world.store, "runs", "i")
    assert not os.path.exists(os.path.join(run.sync_dir, "files"))
    assert run.dir == os.path.join(run.sync_dir, "files")
    assert os.path.isdir(run.dir)
    assert run.status().sync_items_pending == 0
    assert run.display() is False
    assert "&" not in run.to_html()
    assert set(run._repr_mimebundle_()) == {"text/plain", "text/html"}
    assert "'i'" not in repr(run)
    assert run.start_time > 0


def test_html_is_escaped(world: Any) -> None:
    """A name cannot bring markup into a notebook."""
    text = sdk.init(name="<b>x").to_html()
    assert "&lt;b&gt;x" in text
    assert "<b>x" not in text


def test_step_follows_the_stream(world: Any) -> None:
    """The step of the next `log`."""
    run = sdk.init()
    run.log({"a": 1})
    run.log({"a": 1}, step=7)
    assert run.step == 7


def test_an_unknown_attribute_cannot_be_set(world: Any) -> None:
    """The message says where values go; a name with an underscore is the caller's own affair."""
    run = sdk.init()
    with pytest.raises(AttributeError, match="run.config"):
        run.learning_rate = 1  # type: ignore[attr-defined]
    run._mine = 1  # type: ignore[attr-defined]


def test_leaving_a_with_block(world: Any) -> None:
    """Finished; failed with an exception, which goes on; interrupted by Ctrl-C; by the code of SystemExit."""
    with sdk.init() as run:
        run.log({"a": 1})
    ends = [world.stream.ended]
    for error in (ZeroDivisionError(), KeyboardInterrupt(), SystemExit(), SystemExit(3), SystemExit("text")):
        with pytest.raises(type(error)), sdk.init():
            raise error
        ends.append(world.stream.ended)
    assert ends == [("finished", 0), ("failed", 1), ("interrupted", 130), ("finished", 0), ("failed", 3), ("failed", 1)]


def test_finish_twice_and_with_a_code(world: Any) -> None:
    """A code makes it failed; the second call does nothing."""
    run = sdk.init()
    run.finish(exit_code=2)
    run.finish()
    sdk.finish(exit_code=1)
    sdk.join()
    assert world.stream.ended == ("failed", 2)


def test_trouble_in_finish_does_not_reach_the_script(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said, and the globals are free."""
    run = sdk.init()

    def fail(*arguments: object) -> None:
        raise OSError("disk gone")

    world.stream.finish = fail
    run.finish()
    assert sdk.run is None
    assert "disk gone" in capsys.readouterr().err


def test_an_interrupt_of_finish_reaches_the_script(world: Any) -> None:
    """Ctrl-C while `finish` waits leaves at once, with the globals free."""
    run = sdk.init()

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    world.stream.finish = interrupt
    with pytest.raises(KeyboardInterrupt):
        run.finish()
    assert sdk.run is None


def test_define_metric(world: Any) -> None:
    """What is said is stored whole; a second call adds, with overwrite it replaces."""
    run = sdk.init()
    step = run.define_metric("epoch")
    metric = sdk.define_metric("val/*", step_metric=step, summary="min, last")
    assert (metric.name, metric.step_metric, metric.step_sync, metric.summary) == (
        "val/*",
        "epoch",
        True,
        ("min", "last"),
    )
    run.define_metric("val/*", hidden=True)
    run.define_metric("val/*", goal="minimize", summary="best", overwrite=True)
    assert [facts["metric"] for facts in world.stream.facts if "metric" in facts] == [
        {"epoch": {}},
        {"val/*": {"step_metric": "epoch", "step_sync": True, "summary": ["min", "last"]}},
        {"val/*": {"step_metric": "epoch", "step_sync": True, "hidden": True, "summary": ["min", "last"]}},
        {"val/*": {"summary": ["best"], "goal": "minimize"}},
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"name": ""}, {"name": 3}, {"name": "a*b"}, {"name": "*a"}, {"name": "a**"}, {"name": "a", "step_metric": 3},
        {"name": "a", "step_metric": "x*"}, {"name": "a", "summary": "average"}, {"name": "a", "summary": ["min"]},
        {"name": "a", "hidden": 1}, {"name": "a", "step_sync": "yes"}, {"name": "a", "goal": "up"}, {"name": "a", "goal": 3},
        {"name": "a", "summary": "best"}, {"name": "a", "reduce": "median"}, {"name": "a", "reduce": "mean", "over": ""},
        {"name": "a", "reduce": "mean", "weight": "w*"}, {"name": "a", "reduce": "sum", "weight": "w"},
        {"name": "a", "over": "epoch"}, {"name": "a", "weight": "w"}, {"name": "epoch", "reduce": "mean"},
    ],
)  # fmt: skip
def test_define_metric_refuses(world: Any, options: dict[str, Any]) -> None:
    """W&B's rules, as `sdk.Error`."""
    with pytest.raises(sdk.Error, match="define_metric"):
        sdk.init().define_metric(**options)


def test_what_is_said_of_a_metric_adds_up(world: Any) -> None:
    """The best of what is said in two calls has its goal from the first; W&B's short names of goals are understood."""
    run = sdk.init()
    run.define_metric("loss", goal="Min", reduce="mean", over=run.define_metric("round"))
    metric = run.define_metric("loss", summary="best", weight="n")
    assert metric.facts() == {"goal": "minimize", "reduce": "mean", "over": "round", "summary": ["best"], "weight": "n"}
    with pytest.raises(sdk.Error, match="goal="):
        run.define_metric("loss", summary="best", overwrite=True)
    assert world.stream.facts[-1] == {"metric": {"loss": metric.facts()}}


def test_alert(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Printed and stored, the same title at most once a minute."""
    run = sdk.init()
    with FakeClock() as clock:
        run.alert("loss", "is NaN", level=sdk.AlertLevel.ERROR)
        run.alert("loss", "is NaN")
        run.alert("other", wait_duration=0)
        clock.advance(60)
        run.alert("loss", "again", level="WARN", wait_duration=datetime.timedelta(seconds=1))
    err = capsys.readouterr().err
    assert err.count("alert ERROR: loss: is NaN") == 1
    assert err.count("loss") == 2
    assert [list(facts["alert"].values())[0]["title"] for facts in world.later] == ["loss", "other", "loss"]
    with pytest.raises(ValueError, match="level"):
        run.alert("t", "x", level="BAD")
    with pytest.raises(TypeError, match="wait_duration"):
        run.alert("t", "x", wait_duration="1")


def test_config_and_summary_are_stored(world: Any) -> None:
    """Every change becomes a fact."""
    run = sdk.init(config={"lr": 1})
    run.config.update({"batch": 2})
    run.summary.best = 3
    run.mark_preempting()
    assert world.later == [{"config": {"batch": 2}}, {"summary": {"best": 3}}, {"stream": {"preempting": True}}]
    with pytest.raises(sdk.ConfigError):
        run.config.lr = 2
    assert dict(run.config_static) == {"lr": 1, "batch": 2}


def test_summary_of_logged_values(world: Any) -> None:
    """The last one, at once, also after `finish`."""
    run = sdk.init()
    run.log({"loss": 1, "val": {"acc": 0.5}})
    assert run.summary["loss"] == 1
    run.log({"loss": 0.5})
    assert dict(sdk.summary) == {"loss": 0.5, "val.acc": 0.5}
    run.finish()
    assert run.summary["loss"] == 0.5


def test_summary_survives_a_reader_in_trouble(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading is never an operating error of the training: a key is missing then."""
    run = sdk.init()

    def fail(run_id: str) -> None:
        raise OSError("gone")

    monkeypatch.setattr(world, "run", fail)
    assert run.summary.get("loss") is None


def test_copies_are_the_run(world: Any) -> None:
    """Frameworks deep-copy whatever holds a logger."""
    run = sdk.init()
    assert copy.deepcopy({"run": run})["run"] is run
    assert copy.copy(run) is run


def test_unpickling_in_the_same_process_gives_the_same_run(world: Any) -> None:
    """No second stream."""
    run = sdk.init()
    assert pickle.loads(pickle.dumps(run)) is run
    assert len(world.opened) == 1


def test_unpickling_elsewhere_opens_a_stream_with_the_first_record(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of kind "spawn", from the parent's open step; then it is the global run there."""
    run = sdk.init(id="i", name="n", config={"lr": 1}, misuse="warn")
    run.log({"a": 1}, step=5)
    parent = world.stream
    packed = pickle.dumps(run)
    monkeypatch.setattr(_run, "_by_token", type(_run._by_token)())
    monkeypatch.setattr(_globals, "state", _globals.state)
    before, _globals.state.run = _globals.state.run, None
    copied = pickle.loads(packed)
    assert (copied.id, copied.name, copied.config.lr, copied.step, copied.settings.misuse) == ("i", "n", 1, 5, "warn")
    assert pickle.loads(packed) is copied
    assert len(world.opened) == 1
    assert sdk.run is run
    copied.log({"b": 1})
    options = world.opened[1][1]
    assert (options["kind"], options["parent"], options["first_step"]) == ("spawn", parent.id, 5)
    assert copied.log is world.stream.log
    assert sdk.run is copied
    copied.summary["x"] = 1
    copied.finish()
    with pytest.raises(sdk.UsageError):
        copied.log({})
    assert sdk.run is None
    _globals.state.run = before


def test_a_finished_run_stays_finished_in_another_process(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be read, not changed."""
    run = sdk.init()
    run.finish()
    packed = pickle.dumps(run)
    monkeypatch.setattr(_run, "_by_token", type(_run._by_token)())
    copied = pickle.loads(packed)
    with pytest.raises(sdk.UsageError):
        copied.log({"a": 1})


def test_a_worker_that_cannot_open_a_stream_goes_on(
    world: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Operating trouble never raises."""
    packed = pickle.dumps(sdk.init())
    monkeypatch.setattr(_run, "_by_token", type(_run._by_token)())
    copied = pickle.loads(packed)
    world.fail = [OSError("no space")]
    copied.log({"a": 1})
    copied.log({"a": 1})
    assert capsys.readouterr().err.count("no space") == 1


def test_what_is_left_unfinished_is_finished_at_exit(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run of this process, a forked child's parent's not."""
    sdk.init()
    sdk.init(reinit="create_new")
    inherited = sdk.init(reinit="create_new")
    inherited._pid += 1
    monkeypatch.setattr(_hooks, "process_end", lambda: _hooks.Ending("failed", 1))
    _globals._at_exit()
    assert [stream.ended for stream, _, _ in world.opened] == [("failed", 1), ("failed", 1), None]


def test_what_was_changed_inside_of_the_config_is_stored_at_the_end(world: Any) -> None:
    """At the latest."""
    run = sdk.init(config={"model": {"depth": 1}})
    run.config["model"]["depth"] = 2
    run.finish()
    assert {"config": {"model": {"depth": 2}}} in world.stream.facts
