"""`stepd plot`: which runs and keys are drawn, as a chart, as JSON, as a picture, and again and again."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import random
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from daemon.commands import plot
from daemon.commands.common import passing
from tests import called
from tests.builders import START_NS, RunBuilder, make_run, make_store
from tests.terminal import LARGE, ROOT, SCREENS, SMALL, Terminal, same_screen, screen_of


@pytest.fixture
def store(tmp_path: Path) -> str:
    path = make_store(tmp_path)
    rows = [{"train/loss": 1 / (i + 1), "val/acc": i / 50, "lr": 0.1} for i in range(50)]
    make_run(path, "a41f", rows, config={"lr": 0.1})
    make_run(path, "b7c2", [{"train/loss": 2.0, "text": "x"}], name="brave-fox", started_ns=START_NS + 10**9)
    return path


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two methods with three seeds each; the later they began the larger the id."""
    path = make_store(tmp_path_factory.mktemp("sweep"))
    noise = random.Random(3)
    for number in range(6):
        method, seed = ("adam", "sgd")[number // 3], number % 3
        slow = 80 * (1 + number // 3)
        rows = [{"loss": 2 * math.exp(-n / slow) + noise.random() / 4, "epoch": n // 30} for n in range(300)]
        config = {"method": method, "seed": seed}
        make_run(path, f"r{number}", rows, name=f"{method}-{seed}", config=config, started_ns=START_NS + number * 10**9)
    return path


def stepd(store: str, *words: str) -> Result:
    return called.stepd(store, "plot", *words)


def said(store: str, *words: str) -> str:
    result = stepd(store, *words)
    assert result.exit_code == 0, result.output
    return result.output


def told(store: str, *words: str) -> list[dict[str, Any]]:
    return list(json.loads(said(store, *words, "--json")))


def test_runs_and_keys(store: str) -> None:
    """In one chart with a legend; default: what is called loss, of the latest run."""
    text = said(store, "--width", "60", "--height", "14")
    assert text.startswith("train/loss   brave-fox (b7c2)\n")
    assert "last 2 " in text
    text = said(store, "a41f", "train/loss", "val/acc", "--width", "60", "--height", "14")
    assert max(map(len, text.splitlines())) <= 60
    assert len(text.splitlines()) == 14
    assert "  * train/loss  last 0.02       min 0.02 @ 49" in text
    assert "  + val/acc     last 0.98       max 0.98 @ 49" in text
    text = said(store, "a41f", "brave-fox", "train/loss")
    assert "calm-otter-12 (a41f)  last" in text
    assert "brave-fox (b7c2)      last" in text


def test_a_run_that_is_named_twice_is_one_line(store: str) -> None:
    """As by its id and as the latest."""
    assert [line["run"] for line in told(store, "latest", "b7c2", "brave-fox", "a41f", "train/loss")] == [
        "b7c2",
        "a41f",
    ]


def test_a_pattern_is_a_key(store: str) -> None:
    """Words with a star are patterns of keys."""
    assert [line["key"] for line in told(store, "a41f", "*a*")] == ["train/loss", "val/acc"]


def test_as_json(store: str) -> None:
    """The points, and what the legend says."""
    (line,) = told(store, "a41f", "-k", "val/acc")
    assert (line["run"], line["key"], len(line["x"]), line["value"][1]) == ("a41f", "val/acc", 50, 0.02)
    assert (line["last"], line["best"], line["best_x"], line["goal"], line["x_name"]) == (0.98, 0.98, 49, "max", "step")
    (line,) = told(store, "a41f", "val/acc", "--smooth", "0.5")
    assert line["raw"][1] == 0.02
    assert line["value"][1] == pytest.approx(0.02 * 2 / 3)
    (line,) = told(store, "a41f", "val/acc", "--points", "20")
    assert len(line["x"]) <= 20
    assert line["count"] == 50


def test_of_what_cannot_be_drawn(store: str) -> None:
    """Text, unknown keys, empty choices and other files are errors with a cure."""
    assert "'text' of b7c2 holds no numbers\n  Try: stepd show b7c2 text" in stepd(store, "text").stderr
    nearest = stepd(store, "-k", "loss").stderr
    assert "Nearest: 'train/loss'" in nearest
    assert nearest.endswith("\n  Try: stepd show b7c2\n")
    assert stepd(store, "a41f", "-k", "text").exit_code == 1
    for words in (("--rank", "7"), ("--stream", "7")):
        assert stepd(store, "a41f", "lr", *words).stderr.endswith("\n  Try: stepd show a41f\n")
    assert "no run is so: state = running" in stepd(store, "--where", "state = running").stderr
    assert "expected one of .png, .svg, .pdf" in stepd(store, "-o", "chart.gif").stderr
    assert "--smooth" in stepd(store, "--smooth", "1").stderr


def test_the_legend_says_the_best_where_one_end_is_good(store: str) -> None:
    """A loss has a best value; of a learning rate, of which neither end is better, the last one is said alone."""
    assert " min 0.02 @ 49" in said(store, "a41f", "train/loss")
    legend = said(store, "a41f", "lr").splitlines()[-1]
    assert "last 0.1" in legend
    assert not re.search("min|max|best|@", legend)


def test_an_output_that_takes_no_more(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk behind the output is one line, as with any command."""
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(plot, "_read", lambda asked: (_ for _ in ()).throw(full))
    result = stepd(store, "--width", "60")
    assert (result.exit_code, result.stderr) == (
        1,
        "stepd: cannot go on with plot: [Errno 28] No space left on device\n",
    )


def test_where_chooses_runs(sweep: str) -> None:
    """All for which it holds, the last started first; words then are keys, or runs among which it chooses."""
    lines = told(sweep, "--where", "config.method = adam", "loss")
    assert [line["run"] for line in lines] == ["r2", "r1", "r0"]
    lines = told(sweep, "--where", "config.seed > 0", "r1", "adam-0", "loss")
    assert [line["run"] for line in lines] == ["r1"]


def test_groups(sweep: str) -> None:
    """Means over the seeds of the project's runs, with a band."""
    adam, sgd = told(sweep, "loss", "--group", "config.method", "--over", "seed", "--band", "minmax", "--x", "epoch")
    assert (adam["name"], adam["members"], adam["x_name"], len(adam["x"])) == ("adam", 3, "epoch", 10)
    assert sgd["run"].split(",") == ["r5", "r4", "r3"]
    assert all(low <= y <= high for low, y, high in zip(adam["low"], adam["value"], adam["high"]))


def test_how_groups_are_asked_for(sweep: str) -> None:
    """Blanks between names are none of them; a band needs a group."""
    assert [line["name"] for line in told(sweep, "loss", "--group", " config.method , seed,")][:2] == [
        "adam, seed 0",
        "adam, seed 1",
    ]
    result = stepd(sweep, "loss", "--band", "std")
    assert result.exit_code != 0
    assert "there are no groups" in result.output


def test_no_more_runs_than_can_be_told_apart(sweep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last started ones are drawn, and how many were left out is said."""
    monkeypatch.setattr(plot, "_LINES_MAX", 2)
    text = said(sweep, "--where", "true", "loss")
    assert "sgd-2 (r5)" in text
    assert "adam" not in text
    assert "2 of 6 runs are drawn" in text
    text = said(sweep, "--over", "seed", "r0", "r1", "r2", "loss", "epoch", "-k", "*")
    assert "runs of project" not in text


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_picture(store: str, tmp_path: Path, kind: str) -> None:
    """-o draws the same lines into a file, and says where."""
    beginnings = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    path = tmp_path / f"chart.{kind}"
    assert said(store, "a41f", "val/acc", "-o", str(path)) == f"{path}: 1 line\n"
    assert path.read_bytes().startswith(beginnings[kind])
    assert "cannot write" in stepd(store, "-o", str(tmp_path / "none" / f"x.{kind}")).stderr


def test_live_ends_with_the_run(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It draws until the run has ended, only when something came, and where there is no terminal one after another."""
    run = RunBuilder(store, "live")
    main = run.stream(started_ns=START_NS + 10**12)
    main.log({"loss": 1.0})
    run.flush()
    pauses = iter(range(3))

    def pause(seconds: float) -> None:
        assert seconds >= plot._LIVE_SECONDS
        if next(pauses) == 1:
            main.log({"loss": 2.0})
            main.finish()
            run.flush()

    monkeypatch.setattr("daemon.commands.plot.clock.pause", pause)
    text = said(store, "--live")
    assert text.count("last ") == 2
    assert text.index("last 1") < text.index("last 2")


def test_live_waits_for_the_first_value(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not there yet is waited for while the run goes on; a run that is over without it is an error."""
    run = RunBuilder(store, "live")
    main = run.stream(started_ns=START_NS + 10**12)
    run.flush()

    def pause(seconds: float) -> None:
        main.log({"loss": 2.0})
        main.finish()
        run.flush()

    monkeypatch.setattr("daemon.commands.plot.clock.pause", pause)
    text = said(store, "--live")
    assert text.startswith("waiting: live holds no numbers to draw yet\n")
    assert "last 2" in text
    assert stepd(store, "live", "--live", "-k", "none").exit_code == 1


def test_live_in_a_terminal(store: str) -> None:
    """The chart is written over itself, without clearing anything, and its last state stays; ctrl-c leaves it too."""
    run = RunBuilder(store, "live")
    main = run.stream(started_ns=START_NS + 10**12)
    main.log({"loss": 1.0})
    run.flush()
    with Terminal(["--dir", store, "plot", "--live"], SMALL) as terminal:
        terminal.until("last 1")
        main.log({"loss": 2.0})
        run.flush()
        screen = terminal.until("last 2")
        assert screen.count("last") == 1
        assert len(screen.splitlines()) <= SMALL[1]
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.ended() == 0
        assert terminal.text().startswith("loss   calm-otter-12 (live)")
        assert b"\x1b[2J" not in terminal.raw
        assert b"\x1b[?1049h" not in terminal.raw
        assert terminal.raw.count(b"\x1b[?25l") == terminal.raw.count(b"\x1b[?25h") == 1


def test_screen_of_80_by_24(sweep: str) -> None:
    """Two runs, smoothed, with what was logged behind."""
    words = ["--dir", sweep, "plot", "adam-0", "sgd-0", "loss", "--smooth", "0.8"]
    same_screen("plot-80x24", screen_of(words, SMALL, env={"TZ": "UTC"}))


def test_screen_of_200_by_50(sweep: str) -> None:
    """Groups with their bands, on a logarithmic axis."""
    words = ["--dir", sweep, "plot", "loss", "--group", "config.method", "--over", "seed", "--band", "minmax", "--log"]
    same_screen("plot-200x50", screen_of(words, LARGE, env={"TZ": "UTC"}))


def test_the_page_shows_what_is_drawn(sweep: str) -> None:
    """The charts of docs/plot.md are these."""
    page = (ROOT / "docs" / "plot.md").read_text(encoding="utf-8")
    assert (SCREENS / "plot-80x24.txt").read_text(encoding="utf-8") in page
    words = [
        "loss",
        "--group",
        "config.method",
        "--over",
        "seed",
        "--band",
        "minmax",
        "--width",
        "80",
        "--height",
        "16",
    ]
    assert said(sweep, *words) in page


def test_what_takes_long_is_said(
    store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a terminal, while many runs are read; the line is gone at the end. Of a few nothing is said."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with passing("reading 1,000 runs"):
        assert "reading 1,000 runs" in capsys.readouterr().err
    assert capsys.readouterr().err == "\r\x1b[K"
    monkeypatch.setattr(plot, "passing", lambda what: pytest.fail(what))
    said(store, "train/loss")
    monkeypatch.setattr(plot, "_QUICK_RUNS_MAX", 0)
    waited: list[str] = []
    monkeypatch.setattr(plot, "passing", lambda what: waited.append(what) or contextlib.nullcontext())
    said(store, "train/loss")
    assert waited == ["reading 1 runs"]
