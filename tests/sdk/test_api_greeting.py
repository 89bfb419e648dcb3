from __future__ import annotations

import io
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import sdk
from sdk import _greeting
from sdk.testing import CapturedReceipt


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> str:
    """A home whose default store is the one that a command finds by itself."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("STEPD_DIR", "/home/me/.stepd")
    return "/home/me/.stepd"


def _greet(store: str, *, terminal: bool, notes: tuple[str, ...] = ()) -> str:
    return _greeting.greeting(
        name="calm-otter-12", run_id="a41f", project="digits", store=store, directory=f"{store}/runs/a41f", notes=notes,
        terminal=terminal,
    )  # fmt: skip


def test_greeting_in_a_terminal(home: str) -> None:
    """Two lines, and one for each piece of trouble."""
    assert _greet(home, terminal=True, notes=("trouble",)) == (
        "stepd  calm-otter-12 (a41f)  project digits  →  ~/.stepd/runs/a41f\n"
        "       watch: stepd plot a41f --live    nothing leaves this machine\n"
        "     ! trouble"
    )


def test_greeting_in_a_log_file(home: str) -> None:
    """One line without escape codes."""
    text = _greet(home, terminal=False)
    assert (
        text == "stepd: run calm-otter-12 (a41f), project digits, in ~/.stepd/runs/a41f; watch: stepd plot a41f --live"
    )
    assert _greet(home, terminal=False, notes=("a", "b")).splitlines()[1:] == ["stepd: ! a", "stepd: ! b"]


def test_commands_name_a_store_that_is_not_the_default(home: str) -> None:
    """What is printed can be pasted, also with a blank in the path or the id."""
    assert _greeting.command("tail {run} -f", "a b", "/data/my store") == "stepd tail 'a b' -f --dir '/data/my store'"
    assert _greeting.command("show {run}", "a41f", home) == "stepd show a41f"


def test_names_cannot_steer_the_terminal(home: str) -> None:
    """An escape sequence in a name is shown as a question mark."""
    assert _greeting.clean("a\x1b[2Jb\n") == "a?[2Jb?"


def test_receipt(home: str) -> None:
    """Steps, sparklines, what is stored, where, how large, what it cost, commands."""
    counts = CapturedReceipt(1_000_312, 1_000_312, cost_seconds=1.1)
    text = _greeting.receipt(
        name="calm-otter-12", run_id="a41f", store=home, state="finished", seconds=8040, steps=1_000_000, counts=counts,
        size=16_100_000,
        series=[("train/loss", [0, 1, 2], [2.31, 0.038, 0.041]), ("val/acc", [0, 41], [0.12, 0.937]), ("x", [1, 2], [1, 1])],
    )  # fmt: skip
    assert text.splitlines() == [
        "stepd  calm-otter-12 (a41f)  finished after 2 h 14 m, 1,000,000 steps",
        "       train/loss  2.31 █▁▁ 0.041   min 0.038 @ 1      val/acc  0.12 ▁█ 0.937   max 0.937 @ 41",
        "       x  1 ▄▄ 1",
        "       stored 1,000,312 of 1,000,312 records, 0 dropped, on disk (fsync)   16.1 MB",
        "       logging cost the loop 1.1 s (0.014 %)",
        "       stepd show a41f  ·  stepd plot a41f  ·  stepd sync a41f --to tensorboard:runs",
    ]


def test_receipt_of_a_failed_run(home: str) -> None:
    """The first command is the one that says why."""
    counts = CapturedReceipt(1, 1, cost_seconds=0.1)
    text = _greeting.receipt(
        name="calm-otter-12", run_id="a41f", store=home, state="failed", seconds=5, steps=1, counts=counts, size=1
    )
    assert text.splitlines()[-1].strip().startswith("stepd why a41f  ·  stepd plot a41f")


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"refused": 3}, ["stored 10 of 13 records, 3 dropped", "! 3 records dropped"]),
        (
            {"refused": 3, "refused_reasons": {"disk full": 3}},
            ["! 3 records dropped: disk full; the gap is in the data"],
        ),
        (
            {"refused": 3, "refused_reasons": {"ring full": 1, "disk full": 2}},
            ["dropped: ring full (1), disk full (2);"],
        ),
        (
            {"stored": 9, "ended_in": "ring"},
            ["in part only", "! 1 record still in shared memory", "stepd repair --rings"],
        ),
        ({"refused": 3, "ended_in": "ring"}, ["the gap is stored with what waits"]),
        ({"stored": 9, "ended_in": "nowhere"}, ["in part only", "! 1 record lost: the disk refused"]),
        ({"refused": 3, "ended_in": "nowhere"}, ["nothing but this line tells of it"]),
        ({"facts_lost": 1}, ["! 1 change of config, summary or other facts lost"]),
        ({"ended_in": "spool"}, ["in the run's spool"]),
        ({"synced": False}, ["fsync follows"]),
        ({"late_dropped": 2}, ["! 2 calls below the open step"]),
        ({"left_out": {"k": "bad"}}, ["! left out 'k': bad"]),
        ({"left_out": dict.fromkeys("abcde", "bad")}, ["! left out 2 more keys"]),
        ({"wait_seconds": 3.0}, ["finish() waited 3.0 s"]),
    ],
)
def test_receipt_of_trouble(counts: dict[str, Any], expected: list[str]) -> None:
    """Whatever was lost, waits or was left out is said."""
    text = "\n".join(_greeting.stored_text(CapturedReceipt(**{"accepted": 10, "stored": 10, **counts}), 5))
    for part in expected:
        assert part in text


def test_keys_worth_a_sparkline() -> None:
    """Defined ones first, then losses and accuracies, then the rest; five at most, none that begin with _."""
    keys = ["a", "b", "train/loss", "val/acc", "c", "d", "e", "_runtime", "z"]
    chosen = _greeting.choose_keys(keys, {"z": {"summary": ["min"]}, "a": {"summary": ["none"]}})
    assert chosen == ["z", "train/loss", "val/acc", "a", "b"]


def test_sparklines_of_odd_values() -> None:
    """NaN and infinities are passed over, a constant is flat, a huge span does not overflow."""
    assert _greeting.spark_text("x", [0, 1, 2], [math.nan, 1, math.inf]) == "x  1 ▄ 1"
    assert _greeting.spark_text("x", [0], [math.nan]) == "x  no finite value"
    assert _greeting.bars([-1.7e308, 1.7e308]) == "▁█"
    long = _greeting.spark_text("x", range(1000), [float(i) for i in range(1000)])
    assert long.count("█") >= 1
    assert len(long) < 40
    spike = _greeting.spark_text("x", range(1000), [9.0, *[1.0] * 998, 5.0])
    assert spike == "x  9 █▁▁▁▁▁▁▁▁▁▁▁▁▁▁▅ 5", "the numbers beside the bars are the first and the last bar's"
    assert "min" not in _greeting.spark_text("loss", [0, 1], [2, 1], exact=False)


def test_small_texts() -> None:
    """Units that people read."""
    assert [_greeting.duration(s) for s in (0.0021, 5, 61, 7260, 90_000)] == [
        "2.1 ms",
        "5.0 s",
        "1 m 1 s",
        "2 h 1 m",
        "1 d 1 h",
    ]
    assert [_greeting.bytes_text(n) for n in (0, 999, 1000, 2_500_000)] == ["0 B", "999 B", "1.0 kB", "2.5 MB"]
    assert [_greeting.count(n, "step") for n in (0, 1, 1000)] == ["0 steps", "1 step", "1,000 steps"]


class _Stderr(io.StringIO):
    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


def test_a_terminal_without_our_characters_gets_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """ASCII instead of question marks or an error."""
    stderr = _Stderr("ascii")
    monkeypatch.setattr(sys, "stderr", stderr)
    _greeting.say("a → b · ▁█")
    assert stderr.getvalue() == "a -> b | _#\n"


class _Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("stderr", [None, _Broken(), object()])
def test_a_broken_stderr_does_not_end_a_training(world: Any, monkeypatch: pytest.MonkeyPatch, stderr: object) -> None:
    """Greeting, notes and receipt go nowhere, the run goes on."""
    monkeypatch.setattr(sys, "stderr", stderr)
    run = sdk.init()
    sdk.init()
    sdk.log({"a": 1})
    run.alert("t")
    sdk.finish()
    assert world.rows == [{"a": 1}]


def test_init_and_finish_print_on_stderr_only(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A greeting, a receipt, nothing on stdout."""
    run = sdk.init(project="p")
    sdk.log({"train/loss": 1})
    sdk.finish()
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0].startswith(f"stepd: run {run.name} ({run.id}), project p, in ")
    assert lines[1].startswith(f"stepd  {run.name} ({run.id})  finished after ")
    assert "stored 1 of 1 records" in err
    assert f"stepd show {run.id}  ·" in err


def test_the_terminal_form(world: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """When a person looks, two lines."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(_greeting, "is_terminal", lambda: True)
    sdk.init(mode="online")
    lines = capsys.readouterr().err.splitlines()
    assert "→" in lines[0]
    assert lines[1].endswith("nothing leaves this machine")
    assert lines[2] == "     ! mode='online' is local here: nothing is uploaded"


@pytest.mark.parametrize("variable", ["STEPD_SILENT", "WANDB_SILENT"])
def test_silent(world: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str) -> None:
    """Nothing at all, not even once-only notes."""
    monkeypatch.setenv(variable, "true")
    sdk.login()
    run = sdk.init(sync_tensorboard=True)
    sdk.init()
    run.alert("t")
    sdk.finish()
    assert capsys.readouterr().err == ""


def test_a_receipt_of_a_preempted_run(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what `stepd runs` says of who was to be stopped and did not finish."""
    for code, state in ((75, "preempted"), (0, "finished")):
        run = sdk.init()
        run.mark_preempting()
        run.finish(exit_code=code)
        assert f"  {state} after " in capsys.readouterr().err


@pytest.mark.parametrize("explicit", [False, True])
def test_a_receipt_counts_the_last_step(
    world: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, explicit: bool
) -> None:
    """Also where `log(step=…)` left it open until the end: what is stored of it tells."""
    run = sdk.init()
    for step in range(50):
        run.log({"loss": 1.0}, step=step if explicit else None)
    monkeypatch.setattr(run, "_sparklines", lambda exact: [("loss", range(50), [1.0] * 50)])
    run.finish()
    assert ", 50 steps" in capsys.readouterr().err


def test_no_receipt_when_asked(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """`finish(quiet=True)`, and a stream that is not the main one."""
    sdk.init(id="i").finish(quiet=True)
    sdk.attach("i").finish()
    assert "after" not in capsys.readouterr().err


def test_size_of_a_directory(tmp_path: Path) -> None:
    """All files below it; nothing for a directory that is not there."""
    (tmp_path / "a").write_bytes(b"123")
    os.mkdir(tmp_path / "d")
    (tmp_path / "d" / "b").write_bytes(b"45")
    assert _greeting.directory_bytes(str(tmp_path)) == 5
    assert _greeting.directory_bytes(str(tmp_path / "none")) == 0
