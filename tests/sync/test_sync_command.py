"""`stepd sync` as a user calls it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from daemon.cli import cli
from daemon.commands import sync
from daemon.sync import outcome
from daemon.sync.outcome import Outcome, outcome_of
from tests.builders import START_NS, RunBuilder, make_run, make_store
from tests.serving import until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path) -> str:
    path = make_store(tmp_path)
    make_run(path, "a41f", [{"loss": 1.0}] * 5)
    make_run(path, "b7c2", [{"loss": 2.0}] * 5, project="other", name="brave-fox", started_ns=START_NS + 10**9)
    return path


def stepd(store: str, *words: str) -> Result:
    result = CliRunner().invoke(cli, ["--dir", store, "sync", *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_carrying_from_the_shell(store: str, tmp_path: Path) -> None:
    """The latest run by default, --project and --all more; a table, JSON, and 0 when everything is there."""
    url = f"jsonl:{tmp_path / 'out'}"
    first = stepd(store, "--to", url)
    assert first.exit_code == 0, first.output
    assert "b7c2" in first.stdout
    assert "1 delivered: 5 points" in first.stdout
    told = json.loads(stepd(store, "--all", "--to", url, "--to", f"{url}2", "--json").stdout)
    assert told["exact"] is True
    states = {(one["run"], one["target"]): one["state"] for one in told["outcomes"]}
    assert states == {
        ("a41f", url): "delivered", ("b7c2", url): "up to date",
        ("a41f", f"{url}2"): "delivered", ("b7c2", f"{url}2"): "delivered",
    }  # fmt: skip
    done = stepd(store, "--project", "other", "--to", url)
    assert "1 up to date: 0 points" in done.stdout
    assert done.exit_code == 0


def test_a_dry_run_touches_nothing(store: str, tmp_path: Path) -> None:
    """What would be carried is told, and neither the target nor a cursor is made."""
    before = sorted(tmp_path.rglob("*"))
    result = stepd(
        store, "--all", "--to", f"jsonl:{tmp_path / 'out'}", "--to", "mlflow:http://127.0.0.1:9", "--dry-run"
    )
    assert result.exit_code == 0
    assert "4 of 4 runs would be carried; nothing was" in result.stdout
    (plan, _) = json.loads(stepd(store, "--all", "--to", f"jsonl:{tmp_path / 'out'}", "--dry-run", "--json").stdout)
    assert (plan["records"], plan["points_max"], plan["has_begun"]) == (7, 7, False)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--to", "jsonl:"], "names no directory"),
        (["--to", "jsonk:x"], "Did you mean 'jsonl'"),
        (["--to", "runs"], "expected KIND:WHERE. There are jsonl"),
        (["--to", "jsonk:x"], "'jsonl'? There are"),
        (["--to", "tensorboard:s3://bucket/x"], "Try: parquet:s3://bucket/x"),
        (["--to", "jsonl:https://host/x"], "no directory of this machine"),
        (["--to", "stepd:ssh://host/x"], "no directory of this machine"),
        (["--to", "stepd:host@there:x"], "no directory of this machine"),
        (["--to", "tensorboard:file:///x"], "no directory of this machine"),
        (["--to", "parquet:s3:/bucket/x"], "Try: parquet:s3://bucket/x"),
        (["--to", "wandb:me:hunter2@x/y"], "holds a user or password"),
        (["--to", "tensorboard:x?precision=half"], "expected float or double"),
        (["--to", "mlflow:http://x?artifacts=all"], "expected list or upload"),
        (["--to", "jsonl:x", "--timeout", "-3"], "--timeout"),
        (["--to", "jsonl:x?depth=2"], "no option 'depth'"),
        (["--to", "mlflow:https://me:hunter2@host"], "holds a user or password"),
        (["a41f", "--all", "--to", "jsonl:x"], "exclude each other"),
        (["--drain", "--all"], "--drain takes"),
        ([], "no --to"),
    ],
)
def test_misuse(store: str, words: list[str], told: str) -> None:
    """What can never work says so and what would, with exit code 2, and no password."""
    result = stepd(store, *words)
    assert result.exit_code == 2
    assert told in result.stderr
    assert "hunter2" not in result.output


def test_what_there_is_not(store: str, tmp_path: Path) -> None:
    """No such run or project: one line, exit code 1. A directory that cannot be made: 2."""
    url = f"jsonl:{tmp_path / 'out'}"
    assert stepd(store, "nothing", "--to", url).exit_code == 1
    assert "holds no run of project 'x'" in stepd(store, "--project", "x", "--to", url).stderr
    (tmp_path / "file").touch()
    result = stepd(store, "--to", f"jsonl:{tmp_path / 'file' / 'out'}")
    assert result.exit_code == 2
    assert "misuse: cannot write" in result.stdout


def test_what_was_not_held_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """What is lost, damaged or failed stands below the table, also when nothing was new; a thousand good runs are one number."""
    good = [Outcome(f"run{n}", "jsonl:x", outcome.UP_TO_DATE) for n in range(1000)]
    bad = Outcome("a", "jsonl:x", outcome.UP_TO_DATE, trouble=("damage in x",), told=("a remark",))
    bad = bad.with_lost({"texts": {"note": 2, "": 1}, "nan": {f"k{n}": 7 - n for n in range(7)}})
    failed = Outcome("b", "jsonl:x", outcome.FAILED, reason="no \x1b[2J such")
    sync._print([*good, bad, failed], 1.0, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("up to date, not all held")
    assert lines[2].endswith("failed")
    assert lines[3:8] == [
        "a to jsonl:x: not held: texts × 3 ('note')",
        "a to jsonl:x: not held: nan × 28 ('k0', 'k1', 'k2', 'k3', 'k4', …)",
        "a to jsonl:x: damage in x",
        "a to jsonl:x: a remark",
        "b to jsonl:x: failed: no ?[2J such",
    ]
    assert lines[8].startswith("1,001 up to date, 1 failed: 0 points")
    assert not bad.is_exact
    assert outcome_of(json.loads(json.dumps(bad.as_plain()))) == bad


def test_what_is_said_of_several_runs_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each target, with the number of runs."""
    found = [
        Outcome(f"run{n}", url, outcome.DELIVERED, told=("no console",)) for n in range(3) for url in ("a:x", "b:x")
    ]
    sync._print([*found, Outcome("run9", "a:x", outcome.DELIVERED, told=("another",))], 1.0, as_json=False)
    remarks = [line for line in capsys.readouterr().out.splitlines() if ": " in line and "delivered" not in line]
    assert remarks == ["3 runs to a:x: no console", "3 runs to b:x: no console", "run9 to a:x: another"]
    lossy = [Outcome(f"run{n}", "a:x", outcome.DELIVERED).with_lost({"texts": {f"k{n}": n + 1}}) for n in range(2)]
    away = [Outcome(f"run{n}", "b:x", outcome.DEFERRED, reason="503", behind=n + 1) for n in range(2)]
    sync._print([*lossy, *away], 1.0, as_json=False)
    remarks = [line for line in capsys.readouterr().out.splitlines() if line.startswith("2 runs")]
    assert remarks == [
        "2 runs to a:x: not held: texts × 3 ('k0', 'k1')",
        "2 runs to b:x: deferred, 3 records behind: 503",
    ]


def test_a_narrow_terminal_loses_no_reason(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is left out and the target is cut; state and reason are there in full."""
    monkeypatch.setattr(sync.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    one = Outcome("a41f", f"jsonl:/{'d' * 50}", outcome.DEFERRED, name="fair-hare", reason="503 " * 40 + "end")
    sync._print([one], 1.0, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert "NAME" not in lines[0]
    assert lines[1].endswith("deferred")
    assert len(lines[1]) <= 80
    assert lines[2].startswith(f"a41f to {one.target}: deferred: 503")
    assert lines[2].endswith("end")
    monkeypatch.setenv("COLUMNS", "200")
    sync._print([one], 1.0, as_json=False)
    assert "fair-hare" in capsys.readouterr().out


def test_a_training_that_has_ended_is_not_live(capsys: pytest.CaptureFixture[str]) -> None:
    """What was observed of it may still come; to people it is delivered. One that goes on is live."""
    ended = Outcome("a", "t:x", outcome.LIVE, has_ended=True)
    assert (ended.shown, ended._replace(has_ended=False).shown) == (outcome.DELIVERED, outcome.LIVE)
    sync._print([ended], 1.0, as_json=True)
    (told,) = json.loads(capsys.readouterr().out)["outcomes"]
    assert told["state"] == outcome.DELIVERED
    sync._print([ended], 1.0, as_json=False)
    assert "0.0  delivered" in capsys.readouterr().out


def test_a_loss_may_be_accepted(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit code is 0, and what is lost is told with its keys; what fails is 1 all the same."""
    lossy = Outcome("a41f", "jsonl:x", outcome.UP_TO_DATE, has_ended=True).with_lost({"texts": {"note": 9}})
    words = ["a41f", "--to", f"jsonl:{tmp_path / 'out'}"]
    monkeypatch.setattr(sync.Driver, "run", lambda *_: [lossy])
    assert stepd(store, *words).exit_code == 1
    accepted = stepd(store, *words, "--accept-loss")
    assert accepted.exit_code == 0
    assert "not held: texts × 9 ('note')" in accepted.stdout
    (told,) = json.loads(stepd(store, *words, "--json").stdout)["outcomes"]
    assert told["lost_keys"] == {"texts": {"note": 9}}
    monkeypatch.setattr(sync.Driver, "run", lambda *_: [lossy._replace(state=outcome.FAILED)])
    assert stepd(store, *words, "--accept-loss").exit_code == 1


def test_a_store_is_not_carried_into_itself(store: str, tmp_path: Path) -> None:
    """Whatever it is called: misuse."""
    (tmp_path / "link").symlink_to(store)
    for path in (store, f"{tmp_path / 'link'}"):
        result = stepd(store, "a41f", "--to", f"stepd:{path}")
        assert result.exit_code == 2
        assert "is the store that the runs lie in" in result.stderr


def test_lines_of_a_live_sync_are_few(capsys: pytest.CaptureFixture[str]) -> None:
    """A run that goes on is told once, and again when that changes; a reason of a target once; the end is told."""
    from daemon.commands.sync_progress import _Lines
    from daemon.sync.crew import Task
    from daemon.sync.driver import Seen

    lines, driver, task = _Lines(is_live=True), Any, Task("a", "t:x")
    live, away = Outcome("a", "t:x", outcome.LIVE), Outcome("a", "t:x", outcome.DEFERRED, reason="503")
    seen = [*[Seen(task, None, live)] * 5, *[Seen(task, None, away, will_go_on=True)] * 3]
    for one in [*seen, Seen(task, None, live._replace(state=outcome.DELIVERED))]:
        lines.see(driver, one)  # type: ignore[arg-type]
    assert capsys.readouterr().err.splitlines() == ["a to t:x: live", "a to t:x: deferred: 503", "a to t:x: delivered"]
    _Lines(is_live=False).see(driver, Seen(task, None, away))  # type: ignore[arg-type]
    assert capsys.readouterr().err.splitlines() == ["a to t:x: deferred"]


def test_an_interrupt_before_the_work_begins(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While modules are imported: 130, as documented."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sync, "open_store_of", interrupt)
    result = stepd(store, "--to", f"jsonl:{tmp_path / 'out'}")
    assert (result.exit_code, "Aborted" in result.output) == (130, False)


def test_passes_become_one_outcome() -> None:
    """Of a run that was carried while it was written, points add up, and what it is at last is what it is."""
    first = Outcome("a", "t", outcome.LIVE, points=3, size=5, trouble=("x",))
    last = first.then(Outcome("a", "t", outcome.UP_TO_DATE, trouble=("x", "y")))
    assert (last.state, last.points, last.size, last.trouble) == (outcome.DELIVERED, 3, 5, ("x", "y"))
    files = Outcome("a", "t", outcome.DEFERRED, size=5).then(Outcome("a", "t", outcome.UP_TO_DATE))
    assert files.state == outcome.DELIVERED


def command(store: str, *words: str) -> subprocess.Popen[str]:
    code = "import sys; from daemon.cli import main; sys.argv[0] = 'stepd'; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "--dir", store, "sync", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(store: str, tmp_path: Path, number: signal.Signals, code: int) -> None:
    """A signal ends a live sync with the table, its own exit code, and no traceback; what was carried stays."""
    run = RunBuilder(store, "growing")
    run.stream().log({"loss": 1.0})
    run.flush()
    with command(store, "growing", "--live", "--to", f"jsonl:{tmp_path / 'out'}") as process:
        try:
            until(lambda: list(tmp_path.glob("out/*/growing/facts.json")))
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == code, err
    assert "1 live: 1 point" in out
    assert "Traceback" not in err


def test_bars_on_a_terminal(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress, rate and remaining time are drawn from what workers tell; nothing of a run's name steers the terminal."""
    from daemon.commands.sync_progress import _Bars
    from daemon.sync.crew import Moved, Task
    from daemon.sync.driver import Seen

    class Some:
        tasks = [Task("a", "jsonl:x", 100, "a\x1b[2J[red]"), Task("b", "jsonl:x", 300)]  # noqa: RUF012

    driver: Any = Some()
    with _Bars() as bars:
        bars.see(driver, Seen(Some.tasks[0], Moved(500, 10, 0.5), None))
        (everything, one) = bars._progress.tasks
        assert one.description == "a?[2J[red]"
        assert one.completed == 0.5
        assert everything.completed == pytest.approx(0.5 * 101 / 402)
        assert "points/s" in everything.fields["told"]
        assert "left" in everything.fields["told"]
        bars.see(driver, Seen(Some.tasks[0], None, Outcome("a", "jsonl:x", outcome.DELIVERED, points=1000)))
        assert len(bars._progress.tasks) == 1
        Some.tasks.append(Task("b", "tensorboard:y", 300))
        away = Outcome("b", "jsonl:x", outcome.DEFERRED, reason="503, try later")
        bars.see(driver, Seen(Some.tasks[1], Moved(500, 10, 1.0), None))
        bars.see(driver, Seen(Some.tasks[1], None, away, will_go_on=True))
        one = bars._progress.tasks[1]
        assert (one.description, one.completed) == ("b to jsonl:x", 0.0)
        assert one.fields["told"] == "waits: 503, try later"
