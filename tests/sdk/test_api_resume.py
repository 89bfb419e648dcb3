from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sdk
from sdk import _resume
from tests.builders import START_NS, RunBuilder, make_store


def _stream(**facts: Any) -> SimpleNamespace:
    base = {
        "id": "s" * 16,
        "kind": "main",
        "rank": None,
        "attempt": 1,
        "started": 1.0,
        "state": "crashed",
        "pid": 7,
        "host": "h",
    }
    return SimpleNamespace(**{**base, **facts})


def _stored(run_id: str = "i", *, last_step: int | None = 450, state: str = "crashed", **facts: Any) -> SimpleNamespace:
    base = {
        "name": "old",
        "project": "p",
        "group": "g",
        "job_type": "j",
        "notes": "n",
        "tags": ["t"],
        "config": {"lr": 1, "a": 2},
    }
    streams = facts.pop("streams", [_stream()])
    rows = [] if last_step is None else [{"_step": last_step}]
    return SimpleNamespace(id=run_id, state=state, streams=streams, tail=lambda count: rows, **{**base, **facts})


@pytest.mark.parametrize("resume", ["allow", "must", "auto", True])
def test_resume_goes_on_after_the_last_step(world: Any, resume: Any) -> None:
    """The lane continues, the run keeps its name and config, what `init` gives replaces the old value."""
    world.add(_stored())
    run = sdk.init(id="i", resume=resume, config={"lr": 3, "new": 4})
    _, options, facts = world.opened[0]
    assert (options["continues"], options["attempt"], options["first_step"]) == ("s" * 16, 2, 451)
    assert "hide" not in facts
    assert facts["config"] == {"lr": 3, "new": 4}
    assert dict(run.config) == {"lr": 3, "a": 2, "new": 4}
    assert (run.name, run.project, run.group, run.job_type, run.notes, run.tags) == ("old", "p", "g", "j", "n", ("t",))
    assert (run.resumed, run.step, run.starting_step) == (True, 451, 451)


def test_resume_at_a_step_hides_what_came_after(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A META mark, and a line that says that nothing is deleted."""
    world.add(_stored())
    sdk.init(id="i", resume="must", resume_step=400)
    _, options, facts = world.opened[0]
    assert options["first_step"] == 400
    assert facts["hide"] == {"attempt": 2, "from_step": 400}
    assert "resumed at step 400 as attempt 2; steps 400 to 450 of earlier attempts are hidden, not deleted" in (
        capsys.readouterr().err
    )


def test_resume_from_is_both_in_one(world: Any) -> None:
    """W&B's text."""
    world.add(_stored("a b?"[:3]))
    run = sdk.init(resume_from="a b?_step=400")
    assert (run.id, run.step, world.opened[0][2]["hide"]["from_step"]) == ("a b", 400, 400)


def test_must_and_never(world: Any) -> None:
    """Errors of use before anything is made."""
    world.add(_stored())
    with pytest.raises(sdk.UsageError, match=r"found no run 'other'"):
        sdk.init(id="other", resume="must")
    with pytest.raises(sdk.UsageError, match="needs the id"):
        sdk.init(resume="must")
    with pytest.raises(sdk.UsageError, match="found run 'i'"):
        sdk.init(id="i", resume="never")
    assert world.opened == []
    assert sdk.init(id="other", resume="never").resumed is False


def test_allow_without_a_run_is_a_new_run(world: Any) -> None:
    """From step 0, attempt 1, under that id."""
    run = sdk.init(id="i", resume="allow")
    assert (run.id, run.resumed, run.step, world.opened[0][1]["attempt"]) == ("i", False, 0, 1)


@pytest.mark.parametrize("state", ["crashed", "interrupted", "preempted"])
def test_auto_without_an_id_takes_the_newest_broken_run_of_the_project(world: Any, state: str) -> None:
    """A finished one is no candidate; without any, a new run."""
    world.add(_stored("done", state="finished"))
    world.add(_stored("other", project="q"))
    world.add(_stored("broken", state=state))
    assert sdk.init(project="p", resume="auto").id == "broken"
    world.stored.clear()
    fresh = sdk.init(project="p", resume=True, reinit=True)
    assert (fresh.resumed, len(fresh.id)) == (False, 8)


def test_the_variable_counts(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """WANDB_RESUME and WANDB_RUN_ID, as requeued jobs set them."""
    world.add(_stored())
    monkeypatch.setenv("WANDB_RESUME", "allow")
    monkeypatch.setenv("WANDB_RUN_ID", "i")
    assert sdk.init().step == 451


def test_each_rank_continues_its_own_lane(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not another rank's, not a fork; the last attempt of it."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    streams = [
        _stream(id="r0", rank=0, attempt=5), _stream(id="r1", rank=1), _stream(id="r1b", rank=1, attempt=2, state="finished"),
        _stream(id="f", rank=1, kind="fork", attempt=9),
    ]  # fmt: skip
    world.add(_stored(streams=streams))
    run = sdk.init(id="i", resume="must")
    assert (world.opened[0][1]["continues"], world.opened[0][1]["attempt"]) == ("r1b", 3)
    assert run.name == "old"


def test_a_new_rank_has_a_lane_of_its_own(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is continued and nothing hidden."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    world.add(_stored(streams=[_stream(rank=0)]))
    sdk.init(id="i", resume="must", resume_step=10)
    _, options, facts = world.opened[0]
    assert (options["continues"], options["attempt"], options["first_step"]) == (None, 1, 10)
    assert "hide" not in facts


def test_a_living_attempt_is_said(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Two processes that believe to be the run are worth a line."""
    world.add(_stored(streams=[_stream(state="running")]))
    sdk.init(id="i", resume="allow")
    assert "attempt 1 still runs: pid 7 on h" in capsys.readouterr().err


def test_an_existing_id_without_resume_writes_beside(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A stream of its own from step 0; a line when the other lives; the name stays."""
    world.add(_stored(streams=[_stream(state="running")]))
    run = sdk.init(id="i")
    assert (world.opened[0][1]["continues"], world.opened[0][1]["first_step"], run.name) == (None, 0, "old")
    assert "is being written by pid 7 on h too" in capsys.readouterr().err
    world.add(_stored("j"))
    sdk.init(id="j", reinit=True)
    assert "being written" not in capsys.readouterr().err


def test_a_reader_in_trouble_is_a_new_stream(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only "must" insists."""

    def fail(store: str) -> None:
        raise sdk.DamageError("broken")

    world.add(_stored())
    monkeypatch.setattr(_resume, "read_store", fail)
    assert sdk.init(id="i", resume="allow").step == 0
    assert sdk.init(resume="auto", reinit=True).resumed is False
    with pytest.raises(sdk.UsageError):
        sdk.init(id="i", resume="must", reinit=True)


def test_a_real_store(tmp_path: Path) -> None:
    """The plan over files on disk: rows that an earlier resume hid do not count."""
    store = make_store(tmp_path)
    path = str(store)
    run = RunBuilder(store, "a41f", project="digits")
    first = run.stream()
    for _ in range(10):
        first.log({"loss": 0.5})
    run.flush()
    plan = _resume.make_plan(path, "a41f", "must", 4, "digits", None)
    assert (plan.continues, plan.attempt, plan.first_step) == (first.hex, 2, 4)
    assert plan.hide == {"attempt": 2, "from_step": 4}
    second = run.stream(continues=first.hex, attempt=2, first_step=4, started_ns=START_NS + 10**10)
    second.meta({"hide": plan.hide})
    second.log({"loss": 0.4})
    run.flush()
    again = _resume.make_plan(path, "a41f", "allow", None, "digits", None)
    assert (again.continues, again.attempt, again.first_step) == (second.hex, 3, 5)
    assert _resume.make_plan(path, "a41", "allow", None, "digits", None).found is None
