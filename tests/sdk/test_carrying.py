"""sdk._carrying: what `init(sync_to=)` takes, the job it leaves, and how long `finish()` waits for its delivery."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

import sdk
from daemon.sync.place import parse
from daemon.sync.registry import TARGETS
from sdk import _carrying, clock
from sdk._carrying import check_targets
from sdk._syncing import SCHEMES, Told, job_of, jobs, put_job, read_job, tell
from sdk.errors import UsageError
from sdk.platform import boot_id

TARGET = "jsonl:/data/out"


@pytest.fixture
def served(world: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A world in which a daemon seems to serve."""
    monkeypatch.setattr(_carrying._spawn, "is_serving", lambda store: True)
    return world


class Carrier:
    """Tells, in each pause of `finish`, what it was given.

    Attributes:
        pauses: How often `finish` has waited.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, act: Callable[[Carrier], None]) -> None:
        self.pauses = 0
        self.now = clock.monotonic()
        self._act = act
        monkeypatch.setattr(_carrying.clock, "pause", self._pause)
        monkeypatch.setattr(_carrying.clock, "monotonic", lambda: self.now)

    def _pause(self, seconds: float) -> None:
        self.pauses += 1
        self.now += seconds
        self._act(self)


def told_of(store: str, run: str, **changes: Any) -> None:
    """Tells of a pass that began now."""
    job = job_of(store, run, TARGET)
    tell(job, Told(run, TARGET, **{"began": clock.monotonic(), "boot": boot_id(), "at_ns": 1, **changes}))


def test_the_schemes_are_those_of_the_registry() -> None:
    """A target of ours is known without importing it."""
    assert set(SCHEMES) == set(TARGETS)


@pytest.mark.parametrize(
    "given", ["tensorboard:runs", "parquet:s3://bucket/prefix?layout=long", "parquet:out?layout=long", "jsonl:~/x/../y",
              "wandb:team/project", "wandb:", "stepd:/a b,c", "mlflow:https://host:5000", "mlflow:sqlite:////x.db"],
)  # fmt: skip
def test_a_target_is_the_same_in_every_process(given: str) -> None:
    """A directory is absolute, as `stepd sync --to` has it; what is none stays as it is."""
    assert check_targets([given, given]) == (parse(given).absolute().text,)
    assert check_targets([given])[0].partition(":")[2][:1] != "~"


def test_what_names_a_directory_by_a_dot_is_made_absolute() -> None:
    """Whatever kind it is of: the process that carries has another working directory."""
    assert check_targets(["mlflow:./mlruns"]) == (f"mlflow:{os.getcwd()}/mlruns",)
    assert check_targets(["mlflow:sqlite:///a.db"]) == (f"mlflow:sqlite:///{os.getcwd()}/a.db",)


def test_what_the_environment_says_of_a_target_is_said_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that carries has the daemon's. No password is taken over."""
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    (offline,) = check_targets(["wandb:team/digits"])
    assert parse(offline)[:2] == ("wandb", "team/digits")
    assert parse(offline).options == {"mode": "offline", "dir": os.getcwd()}
    assert parse(offline).text == offline
    monkeypatch.setenv("WANDB_DIR", "/data/w")
    assert parse(check_targets(["wandb:?mode=offline"])[0]).options["dir"] == "/data/w"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert check_targets(["wandb:x"]) == ("wandb:x",)
    assert parse(check_targets(["wandb:x?dir=w"])[0]).options == {"dir": f"{os.getcwd()}/w"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert check_targets(["mlflow:", "mlflow:http://other"]) == ("mlflow:http://host:5000", "mlflow:http://other")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:5000")
    assert check_targets(["mlflow:"]) == ("mlflow:",)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("runs", "expected KIND:WHERE"),
        ("", "targets such as"),
        ("tensorbord:runs", "Did you mean 'tensorboard'"),
        ("jsonl:", "expected a directory"),
        ("mlflow:https://me:secret@host", "user or password"),
        ("parquet:s3://token@bucket", "user or password"),
        ("wandb:me:secret@team/digits", "user or password"),
        ("tensorboard:s3://bucket/x", "parquet:s3://bucket/x"),
        ("jsonl:https://host/x", "expected a directory of this machine"),
        ("stepd:me@host:runs", "expected a directory of this machine"),
        ("tensorboard:file:///data", "expected a directory of this machine"),
        ("parquet:s3:/bucket/x", "parquet:s3://bucket/x"),
        ("parquet:s3://bucket?secret_access_key=token", "user or password"),
    ],
)
def test_what_is_no_target_is_said_at_once(world: Any, given: str, expected: str) -> None:
    """Before there is a run, and without the password."""
    with pytest.raises((UsageError, ValueError), match=expected) as found:
        sdk.init(sync_to=[given])
    assert "secret" not in str(found.value)
    assert "token" not in str(found.value)
    assert not world.opened


def test_targets_come_from_the_environment(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Separated by spaces or commas; the run says them in its first record, and each has a job."""
    monkeypatch.setenv("STEPD_SYNC_TO", "jsonl:/a, tensorboard:/b  jsonl:/a")
    run = sdk.init(settings={"autostart": False})
    assert run.settings.sync_to == ("jsonl:/a", "tensorboard:/b")
    assert world.opened[0][2]["run"]["sync_to"] == ["jsonl:/a", "tensorboard:/b"]
    orders = sorted(read_job(job) for job in jobs(world.store))
    assert [order[:2] for order in orders] == [(run.id, "jsonl:/a"), (run.id, "tensorboard:/b")]
    assert {order.seconds for order in orders} == {run.settings.sync_seconds}
    run.finish()


def test_nothing_is_carried_unasked(world: Any) -> None:
    """No job, no fact; neither in disabled mode."""
    sdk.init(reinit="create_new").finish()
    assert "sync_to" not in world.opened[0][2]["run"]
    sdk.init(mode="disabled", sync_to=TARGET).finish()
    assert jobs(world.store) == []


def test_a_store_that_takes_no_job_keeps_no_training(
    world: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said, with what to do afterwards."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_carrying, "put_job", refuse)
    run = sdk.init(sync_to=TARGET, settings={"autostart": False})
    run.finish()
    err = capsys.readouterr().err
    assert "No space left" in err
    assert f"stepd sync {run.id} --to jsonl:/data/out" in err


def test_finish_waits_for_a_pass_that_began_after_it(
    served: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that began before has not seen the last row."""
    run = sdk.init(sync_to=TARGET)
    marks = [read_job(jobs(served.store)[0]).mark]

    def act(carrier: Carrier) -> None:
        marks.append(read_job(jobs(served.store)[0]).mark)
        if carrier.pauses == 1:
            told_of(served.store, run.id, state="live", began=carrier.now - 1, points=7)
        elif carrier.pauses == 3:
            told_of(served.store, run.id, state="delivered", points=1_000_312, lost={"nan": 2}, trouble="a gap")

    carrier = Carrier(monkeypatch, act)
    run.finish()
    assert carrier.pauses == 3
    assert marks[0] != marks[1], "it was left once more, for a pass at once"
    expected = (
        "! synced to jsonl:/data/out (1,000,312 points), which cannot hold: nan × 2, of a run that is not whole: a gap"
    )
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("facts", "pauses"),
    [({}, 1), ({"has_ended": True, "is_over": True}, 1), ({"has_ended": True}, _carrying._OBSERVED_SECONDS / 0.02)],
)
def test_finish_waits_for_what_was_observed_last(
    served: Any, monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], pauses: float
) -> None:
    """A little, and not while other processes of the training go on."""
    run = sdk.init(sync_to=TARGET)
    carrier = Carrier(monkeypatch, lambda carrier: told_of(served.store, run.id, state="live", **facts))
    run.finish(quiet=True)
    assert carrier.pauses == pytest.approx(pauses, abs=2)


def test_finish_waits_no_longer_than_it_may(
    served: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says how to go on."""
    run = sdk.init(sync_to=TARGET, settings={"finish_seconds_max": 3})
    carrier = Carrier(monkeypatch, lambda carrier: None)
    began = carrier.now
    run.finish()
    assert 2.5 < carrier.now - began < 3.5
    assert f"sync to jsonl:/data/out is behind; the daemon goes on with it. Else: stepd sync {run.id}" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "found",
    [
        {"state": "failed", "reason": "no such \x1b package"},
        {"state": "deferred", "reason": "no such \x1b package", "again_at": float(10**9)},
    ],
)
def test_finish_does_not_wait_for_what_cannot_come(
    served: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], found: dict[str, Any]
) -> None:
    """A target that can never take it, and one that is tried again after the time is over."""
    run = sdk.init(sync_to=TARGET)
    carrier = Carrier(monkeypatch, lambda carrier: told_of(served.store, run.id, behind=120_000, **found))
    run.finish()
    assert carrier.pauses == 1
    assert "is behind, 120,000 records: no such ? package. Later: stepd sync" in capsys.readouterr().err


def test_finish_does_not_wait_without_a_daemon(
    world: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which is said; where one is about to come, it waits for that a little."""
    carrier = Carrier(monkeypatch, lambda carrier: None)
    sdk.init(sync_to=TARGET, settings={"autostart": False}).finish()
    assert carrier.pauses == 0
    assert "as no daemon runs: stepd sync --drain" in capsys.readouterr().err
    began = carrier.now
    sdk.init(sync_to=TARGET).finish()
    assert carrier.now - began == pytest.approx(_carrying._START_SECONDS, abs=0.1)


def test_an_exit_does_not_wait(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asked for it; the job is left once more all the same."""
    run = sdk.init(sync_to=TARGET)
    mark = read_job(jobs(served.store)[0]).mark
    carrier = Carrier(monkeypatch, lambda carrier: None)
    run.end("finished", 0, timeout=2.0)
    assert carrier.pauses == 0
    assert read_job(jobs(served.store)[0]).mark != mark


def test_what_is_greeted_says_where_it_goes(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Instead of that nothing leaves this machine."""
    sdk.init(sync_to=TARGET, mode="online", settings={"autostart": False}).finish(quiet=True)
    err = capsys.readouterr().err
    assert "carried to jsonl:/data/out" in err
    assert "nothing is uploaded" not in err


def test_put_job_needs_a_store_that_is_there(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made on the bare mount point of one that is away."""
    run = sdk.init()
    monkeypatch.setattr(run, "_store", run._store._replace(path=f"{world.store}-away"))
    with pytest.raises((sdk.Error, OSError)):
        put_job(run._store, run.id, TARGET, 10.0)
    run.finish()
