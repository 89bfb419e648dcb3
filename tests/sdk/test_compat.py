from __future__ import annotations

from typing import Any

import pytest

import sdk
from sdk import _greeting


@pytest.mark.parametrize("options", [{"mode": "disabled"}, {"misuse": "warn"}])
def test_media_values_do_not_end_a_run_that_asked_for_that(world: Any, options: Any) -> None:
    """Disabled, or misuse="warn": what cannot be made is broken, and `log` leaves it out."""
    run = sdk.init(**options)
    table = sdk.Table(["a", "b"], [[1, 2]])
    table.add_data(3)
    table.add_column("c", [5, 6])
    chart = sdk.plot.line_series([0], "x")
    bins = sdk.Histogram("x")
    assert bins.histogram == bins.bins == []
    sdk.log({"loss": 1, "picture": sdk.Image("x"), "table": table, "chart": chart, "bins": bins})
    if not run.disabled:
        assert world.rows == [{"loss": 1}]


@pytest.mark.parametrize("variable", ["STEPD_MODE", "WANDB_MODE"])
def test_without_a_run_the_environment_decides(world: Any, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """A value may be made before `init`."""
    with pytest.raises(FileNotFoundError):
        sdk.Image("x")
    monkeypatch.setenv(variable, "disabled")
    sdk.Image("x")


def test_harmless_calls(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """They take what W&B takes, return something usable, and speak once and never on stdout."""
    run = sdk.init()
    for _ in range(2):
        assert sdk.login(key="k", relogin=True) is True
    sdk.setup()
    sdk.teardown()
    sdk.ensure_configured()
    sdk.require("core")
    sdk.require(experiment="service")
    sdk.unwatch()
    run.link_artifact(None, "r")
    run.pin_config_keys(["a"])
    run._label(repo="x")
    run.write_logs("x")
    sdk.termsetup()
    assert (run.get_url(), run.get_project_url(), run.get_sweep_url(), run.project_name()) == (
        None,
        None,
        None,
        run.project,
    )
    assert sdk.api.api_key is None
    assert sdk.api.viewer() == {}
    assert sdk.AlertLevel.WARN.value == "WARN"
    assert "tensorboard" in sdk.patched
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("login()") == 1


def test_what_cannot_be_served_raises_with_the_cure(world: Any) -> None:
    """Nothing pretends."""
    run = sdk.init()
    for call in (
        lambda: sdk.sweep({}, project="p"), lambda: sdk.agent("id"), sdk.controller,
        lambda: run.upsert_artifact("m", distributed_id="d"), lambda: sdk.require("unheard-of"),
    ):  # fmt: skip
        with pytest.raises(sdk.UnsupportedError, match="Try: "):
            call()


def test_bad_arguments_that_wandb_refuses_are_refused(world: Any) -> None:
    """An error of use shows at once, also in a call that does nothing."""
    run = sdk.init()
    with pytest.raises(ValueError, match="log"):
        run.watch(None, log="weights")


def test_term_functions(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines on stderr; with repeat=False once."""
    sdk.termlog("a")
    sdk.termwarn("b", repeat=False)
    sdk.termwarn("b", repeat=False)
    sdk.termerror("c")
    assert capsys.readouterr().err == "stepd: a\nstepd: warning: b\nstepd: error: c\n"
    _greeting.set_quiet(True)
    sdk.termlog("a")
    assert capsys.readouterr().err == ""


def test_functions_of_a_run_before_init_say_so(world: Any) -> None:
    """Each function of the module that needs a run."""
    for name in ("define_metric", "watch", "unwatch", "save", "alert", "log_artifact", "use_artifact", "log_model", "use_model",
                 "link_model", "mark_preempting", "pin_config_keys", "log_code", "restore"):  # fmt: skip
        with pytest.raises(sdk.Error, match=rf"{name}\(\) was called before init\(\)"):
            getattr(sdk, name)("x")


def test_after_finish_they_are_errors_of_use(world: Any) -> None:
    """What changes a run raises UsageError, what does not is harmless."""
    run = sdk.init()
    run.finish()
    for call in (
        lambda: run.save("x"), lambda: run.log_artifact("x"), lambda: run.use_artifact("x"), lambda: run.log_model("x"),
        run.log_code, lambda: run.alert("t"), lambda: run.define_metric("x"), run.mark_preempting,
    ):  # fmt: skip
        with pytest.raises(sdk.UsageError, match="after finish"):
            call()
    run.watch(None)
    run.unwatch()
