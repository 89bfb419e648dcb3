from __future__ import annotations

import argparse
import builtins
import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

import sdk
from sdk import _api, location
from sdk.errors import StoreError
from sdk.limits import PROJECT_CHARACTERS_MAX


def test_no_argument_is_needed(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Project from the git repository, a name of two words and a number, an id of eight characters."""
    (tmp_path / "vision" / ".git").mkdir(parents=True)
    (tmp_path / "vision" / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "vision" / "sub")
    run = sdk.init()
    assert run.project == "vision"
    assert len(run.id) == 8
    assert run.name.endswith("-1")
    assert sdk.init(reinit=True).name.endswith("-2")


def test_the_module_is_the_run(world: Any) -> None:
    """`sdk.log` is the stream's own function; config, summary and run are the run's."""
    run = sdk.init()
    assert sdk.run is run
    assert sdk.log is world.stream.log
    assert run.log is world.stream.log
    assert sdk.config is run.config
    assert sdk.summary is run.summary
    sdk.finish()
    assert sdk.run is None
    sdk.finish()


def test_before_init(world: Any) -> None:
    """Every use says what to do."""
    with pytest.raises(
        sdk.Error, match=r"log\(\) was called before init\(\); this process \(pid \d+\) has no run"
    ) as error:
        sdk.log({"a": 1})
    assert not isinstance(error.value, sdk.UsageError)
    assert "sdk.attach(run_id)" in str(error.value)
    with pytest.raises(sdk.Error, match=r"config\.lr"):
        sdk.config.lr  # noqa: B018
    with pytest.raises(sdk.Error, match=r"summary\['a'\]"):
        sdk.summary["a"] = 1
    with pytest.raises(sdk.Error):
        "a" in sdk.config  # noqa: B015
    assert repr(sdk.config) == "<sdk.config: no run>"


def test_names_imported_before_init_find_the_run(world: Any) -> None:
    """`from sdk import log, config` at the top of a script works."""
    log, config, summary = sdk.log, sdk.config, sdk.summary
    sdk.init(config={"lr": 1})
    log({"a": 1}, step=3)
    config.batch = 2
    summary["best"] = 4
    assert world.rows == [{"a": 1}]
    assert config["lr"] == config.lr == 1
    assert dict(config) == {"lr": 1, "batch": 2}
    assert len(config) == 2
    assert sdk.summary["best"] == 4
    sdk.finish()
    with pytest.raises(sdk.UsageError, match="after finish"):
        log({"a": 2})


def test_after_finish(world: Any) -> None:
    """`sdk.log`, a kept `sdk.log` and `run.log` raise UsageError."""
    run = sdk.init()
    kept = sdk.log
    sdk.finish()
    for log in (sdk.log, kept, run.log):
        with pytest.raises(sdk.UsageError, match=f"(?s)after finish.*{run.id}"):
            log({"a": 1})
    with pytest.raises(sdk.UsageError):
        sdk.config.a = 1
    with pytest.raises(sdk.UsageError):
        run.config.a = 1
    with pytest.raises(sdk.UsageError):
        run.summary.a = 1


def test_the_first_record_holds_the_facts(world: Any) -> None:
    """What `init` was given, as one map."""
    sdk.init(
        project="p", name="n", id="i", notes="x", tags=["a", "b"], group="g", job_type="j", config=argparse.Namespace(lr=1),
        entity="me", config_exclude_keys=["z"],
    )  # fmt: skip
    _, options, facts = world.opened[0]
    assert facts == {
        "run": {
            "id": "i",
            "project": "p",
            "name": "n",
            "group": "g",
            "job_type": "j",
            "notes": "x",
            "tags": ["a", "b"],
        },
        "config": {"lr": 1},
    }
    assert options["run_id"] == "i"
    assert options["extra"] == {"rank": None, "local_rank": None, "world_size": None, "job_id": None}


def test_every_parameter_of_wandb_is_accepted(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """What has no effect is said once."""
    for _ in range(2):
        sdk.init(
            project="p", entity="e", name="n", config={"a": 1, "b": 2}, config_include_keys=["a"], allow_val_change=True, dir=None,
            group="g", job_type="j", tags="t", notes="n", mode="offline", resume=None, resume_from=None, fork_from=None,
            reinit=True, force=True, save_code=True, sync_tensorboard=True, tensorboard=True, monitor_gym=True,
            settings={"console": "off"}, anonymous="allow", misuse="raise",
        ).finish(quiet=True)  # fmt: skip
    assert capsys.readouterr().err.count("without effect") == 1
    assert world.opened[0][2]["config"] == {"a": 1}


def test_unknown_settings_are_said(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Once, with the fields that exist."""
    sdk.init(settings=sdk.Settings(onfull="block", start_method="fork"))
    err = capsys.readouterr().err
    assert "'onfull'" in err
    assert "on_full" in err
    assert "start_method" not in err


@pytest.mark.parametrize("bad", ["a/b", "a\\b", "a#", "a?", "a%", "a:b", "x" * (PROJECT_CHARACTERS_MAX + 1)])
def test_bad_projects(world: Any, bad: str) -> None:
    """W&B's rule."""
    with pytest.raises(sdk.UsageError, match="project"):
        sdk.init(project=bad)


@pytest.mark.parametrize("bad", ["", " a", "a ", "a/b", "a:b", "a;b", "a,b", "a#b", "a?b", "a'b", "x" * 200])
def test_bad_ids(world: Any, bad: str) -> None:
    """W&B's rule, as an error of use."""
    with pytest.raises(sdk.UsageError, match="id"):
        sdk.init(id=bad)
    assert world.opened == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"tags": [""]}, ValueError),
        ({"tags": ["x" * 65]}, ValueError),
        ({"mode": "onlin"}, ValueError),
        ({"reinit": "sometimes"}, ValueError),
        ({"resume": "sometimes"}, ValueError),
        ({"resume_from": "x"}, ValueError),
        ({"resume_from": "x?_step=3", "resume": "allow"}, ValueError),
        ({"resume_from": "x?_step=3", "id": "y"}, sdk.UsageError),
        ({"resume_step": 3}, sdk.UsageError),
        ({"resume": "allow", "id": "x", "resume_step": -1}, ValueError),
        ({"resume": "allow", "id": "x", "resume_step": 1.5}, TypeError),
        ({"fork_from": "x?_step=3"}, sdk.UnsupportedError),
        ({"config_include_keys": ["a"], "config_exclude_keys": ["b"]}, sdk.UsageError),
        ({"config": 3}, sdk.UsageError),
        ({"settings": 3}, TypeError),
        ({"misuse": "ignore"}, ValueError),
    ],
)
def test_arguments_that_cannot_be(world: Any, options: dict[str, Any], error: type[Exception]) -> None:
    """They raise before anything is made."""
    with pytest.raises(error):
        sdk.init(**options)
    assert world.opened == []
    assert sdk.run is None


def test_a_second_init_returns_the_active_run(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """With a notice; with resume="must" it is an error."""
    run = sdk.init()
    assert sdk.init() is run
    assert "is active" in capsys.readouterr().err
    assert sdk.init(reinit="return_previous") is run
    with pytest.raises(sdk.Error, match="active"):
        sdk.init(id=run.id, resume="must")


@pytest.mark.parametrize("reinit", [True, "finish_previous"])
def test_reinit_finishes_the_previous_run(world: Any, reinit: Any) -> None:
    """The state is finished, the new run is global."""
    first = sdk.init()
    second = sdk.init(reinit=reinit)
    assert sdk.run is second is not first
    assert world.opened[0][0].ended == ("finished", 0)
    assert world.opened[1][0].ended is None


def test_in_a_notebook_the_cell_run_again_starts_a_new_run(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And config values may change there."""
    monkeypatch.setattr(builtins, "get_ipython", lambda: None, raising=False)
    first = sdk.init(config={"a": 1})
    first.config.a = 2
    assert sdk.init() is not first
    assert world.opened[0][0].ended == ("finished", 0)


def test_create_new_leaves_the_globals_alone(world: Any) -> None:
    """Two runs at once; finishing the second does not touch the first."""
    first = sdk.init()
    second = sdk.init(reinit="create_new")
    assert sdk.run is first
    second.log({"b": 1})
    sdk.log({"a": 1})
    second.finish()
    assert sdk.run is first
    assert [run.rows() for run in world.rows.runs] == [[{"a": 1}], [{"b": 1}]]


def test_disabled_makes_nothing(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """No store, stream or line; `log` does nothing, the rest works."""
    run = sdk.init(mode="disabled", project="p")
    sdk.log({"a": object()})
    run.config.x = 1
    run.summary["s"] = 2
    run.define_metric("a", summary="min")
    assert run.disabled
    assert run.name == f"dummy-{run.id}"
    assert (run.step, run.url, run.config.x, run.summary["s"], run.summary.get("a")) == (0, None, 1, 2, None)
    assert os.path.isdir(run.dir)
    os.rmdir(run.dir)
    sdk.finish()
    assert world.opened == []
    assert not os.path.exists(world.store)
    assert capsys.readouterr().err == ""
    with pytest.raises(sdk.UsageError):
        run.log({})


def test_an_unwritable_store_falls_back_to_a_temporary_one(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A logger does not keep a training from starting; what happened is said."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("STEPD_DIR", str(blocked / "store"))
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    sdk.init()
    expected = str(tmp_path / "tmp" / f"stepd-{os.getuid()}-store")
    assert world.stream.store == expected
    err = capsys.readouterr().err
    assert "which may vanish" in err
    assert expected in err


def test_no_directory_at_all_records_nothing_and_says_so(
    world: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The training goes on."""

    def refuse(path: str) -> None:
        raise StoreError(f"cannot create a store at {path!r}")

    monkeypatch.setattr(location, "make_store", refuse)
    monkeypatch.setattr(tempfile, "mkdtemp", lambda prefix: "/nowhere")
    run = sdk.init()
    sdk.log({"a": 1})
    assert run.step == 0
    assert "nothing of this run is recorded" in capsys.readouterr().err
    sdk.finish()


def test_a_stream_that_cannot_be_opened_goes_to_another_store(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The store's directory was writable and the run's was not."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    world.fail = [OSError(errno.ENOSPC, "no space")]
    run = sdk.init(id="i")
    assert run.id == "i"
    assert run.sync_dir.startswith(str(tmp_path / "tmp"))
    assert "no space" in capsys.readouterr().err
    run.finish()
    world.fail = [OSError(errno.ENOSPC, "no space")] * 3
    monkeypatch.setattr(tempfile, "mkdtemp", lambda prefix: str(tmp_path / "third"))
    sdk.init()
    sdk.log({"a": 1})
    assert "nothing of this run is recorded" in capsys.readouterr().err


def test_under_a_launcher_each_rank_has_a_run_of_the_jobs_group(
    world: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without an id: the group is the job, the name says the rank, only rank 0 prints."""
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "job7"}.items():
        monkeypatch.setenv(name, value)
    run = sdk.init(name="base")
    assert (run.name, run.group) == ("base-rank3", "job7")
    assert world.opened[0][1]["extra"] == {"rank": 3, "local_rank": 1, "world_size": 8, "job_id": "job7"}
    sdk.init(group="mine", reinit=True)
    assert sdk.run is not None
    assert sdk.run.group == "mine"
    sdk.finish()
    assert capsys.readouterr().err == ""


def test_with_one_id_all_ranks_write_one_run(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name and group are rank 0's: another rank does not write a name that it made up."""
    monkeypatch.setenv("SLURM_PROCID", "2")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    run = sdk.init(id="shared")
    assert run.group == ""
    assert "name" not in world.opened[0][2]["run"]
    sdk.init(id="named", name="n", reinit=True)
    assert world.opened[1][2]["run"]["name"] == "n"


def test_a_run_in_a_forked_child_is_the_childs_own(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`init` in a child that inherited a run starts another and leaves the parent's alone."""
    run = sdk.init()
    run._pid += 1
    second = sdk.init()
    assert second is not run
    assert world.opened[0][0].ended is None


def test_attach_adds_a_stream_to_a_run(world: Any) -> None:
    """From after the last stored step, under the run's own facts; it becomes global where there is none."""
    first = sdk.init(id="i", project="p", name="n", config={"lr": 1})
    first.log({"a": 1}, step=41)
    beside = sdk.attach("i")
    assert sdk.run is first
    first.finish()
    beside.log({"b": 1})
    assert (beside.id, beside.name, beside.project, beside.config.lr) == ("i", "n", "p", 1)
    options = world.opened[1][1]
    assert (options["kind"], options["first_step"]) == ("attach", 42)
    beside.finish()
    again = sdk._attach(attach_id="i")
    assert sdk._attach(run=again) is again
    assert sdk.run is again
    assert again.step == 43


def test_attach_to_nothing_is_an_error(world: Any) -> None:
    """No store, or no such run."""
    with pytest.raises(sdk.StoreError):
        sdk.attach("none")
    sdk.init().finish()
    with pytest.raises(sdk.NotFoundError):
        sdk.attach("none")


def test_attach_waits_for_a_run_that_began_a_moment_ago(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its directory is there, its first record is on the way."""
    sdk.init(id="i").finish()
    real, tries = _api.read_run, []

    def read(store: str, run_id: str) -> Any:
        tries.append(run_id)
        if len(tries) < 3:
            raise sdk.NotFoundError("not yet")
        return real(store, run_id)

    monkeypatch.setattr(_api, "read_run", read)
    assert sdk.attach("i").id == "i"
    assert len(tries) == 3


def test_attach_in_disabled_mode(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is looked for."""
    monkeypatch.setenv("STEPD_MODE", "disabled")
    assert sdk.attach("anything").disabled
