"""`stepd logs`: the lines of a run in the terminal, for programs, chosen and followed; what `show` says of them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.builders import START_NS, RunBuilder, make_run, make_store
from tests.called import stepd


@pytest.fixture
def store(tmp_path: Path) -> str:
    return make_store(tmp_path)


@pytest.fixture
def run(store: str) -> RunBuilder:
    """A run whose console holds printed lines and log records."""
    made = RunBuilder(store)
    main = made.stream()
    main.log({"loss": 0.5})
    main.finish()
    console = made.stream("console", rank=0)
    console.log({"from": "stdout", "text": "epoch 1", "at": 3})
    console.log({"from": "stderr", "text": "50%|\t\x1b[31mred"})
    console.log({"from": "log", "text": "slow\nvery", "level": 30, "logger": "train.\x07data", "extra": {"lr": 0.1}})
    console.log({"from": "log", "text": "failed", "level": 40, "logger": "root", "error": "Traceback\n  File\nOops: é"})
    console.log({"from": "stdout", "missed": 1200, "why": "too much"})
    made.flush()
    return made


def said(store: str, *words: str) -> list[str]:
    result = stepd(store, *words)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_lines_as_they_were(store: str, run: RunBuilder) -> None:
    """Printed lines bare, records with level and logger, what follows indented, no control characters, the mark."""
    assert said(store, "logs") == [
        "epoch 1",
        "50%|    ?[31mred",
        "WARNING train.?data: slow  lr=0.1",
        "    very",
        "ERROR: failed",
        "    Traceback",
        "      File",
        "    Oops: é",
        "--- 1,200 lines of stdout missing: too much ---",
    ]
    assert said(store, "logs", "a41f", "--level", "error")[:1] == ["ERROR: failed"]
    assert said(store, "logs", "a41f", "--source", "stderr") == ["50%|    ?[31mred"]
    assert said(store, "logs", "--grep", "epoch", "-n", "3")[0] == "epoch 1"


def test_colours_are_for_terminals(store: str, run: RunBuilder) -> None:
    """Levels have one there; the stored text has none anywhere."""
    shown = stepd(store, "logs", "--level", "30", color=True).output
    assert "\x1b[33mWARNING\x1b[0m" in shown and "\x1b[31mERROR\x1b[0m" in shown and "\x1b[31mred" not in shown


def test_times_and_steps(store: str, run: RunBuilder) -> None:
    """--time says when, by the local clock, and the open step."""
    local = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(START_NS / 1e9 + 1))
    first = said(store, "logs", "--time")[0]
    assert first == f"{local}.002        3  epoch 1"
    assert said(store, "logs", "--since", "10m") == said(store, "logs", "--until", "2001-01-01") == []
    assert len(said(store, "logs", "--since", "2001-01-01", "--until", "2100-01-01T00:00")) == 9


def test_json(store: str, run: RunBuilder) -> None:
    """One object a line, with what the line has."""
    first, _, third, fourth, mark = map(json.loads, said(store, "logs", "--json"))
    assert {key: first[key] for key in ("source", "text", "step", "rank", "number")} == {
        "source": "stdout", "text": "epoch 1", "step": 3, "rank": 0, "number": 0,
    }  # fmt: skip
    assert (third["level"], third["level_name"], third["logger"]) == (30, "WARNING", "train.\x07data")
    assert third["extra"] == {"lr": 0.1} and fourth["error"].endswith("é") and "error" not in first
    assert (mark["missed"], mark["why"]) == (1200, "too much")


def test_ranks_stand_before_lines_of_several(store: str, run: RunBuilder) -> None:
    """A prefix where there is more than one rank."""
    other = run.stream("console", rank=1)
    other.log({"from": "stdout", "text": "epoch 1"})
    run.flush()
    shown = said(store, "logs")
    assert shown[0] == "[0] epoch 1" and shown[-1] == "[1] epoch 1"
    assert said(store, "logs", "--rank", "1") == ["[1] epoch 1"]
    result = stepd(store, "logs", "--rank", "5")
    assert result.exit_code == 1 and "no console of rank 5" in result.stderr


def test_follow_ends_with_the_run(store: str, run: RunBuilder) -> None:
    """Of a run that is over it gives the last lines."""
    assert said(store, "logs", "-f", "-n", "2")[-1].startswith("--- 1,200 lines")
    assert said(store, "logs", "--follow") == said(store, "logs")


def test_a_run_without_console_says_why(store: str) -> None:
    """Switched off, or nothing was printed: on stderr, and it is no error."""
    make_run(store, "a41f", [{"loss": 1.0}])
    result = stepd(store, "logs", "a41f")
    assert (result.exit_code, result.stdout) == (0, "") and "nothing was printed or logged" in result.stderr
    off = RunBuilder(store, "b7c2")
    off.stream().meta({"context": {"console": {"off": True}}})
    off.seal()
    assert "switched off (console='off')" in stepd(store, "logs", "b7c2").stderr


def test_what_was_printed_after_the_end_is_said(store: str, run: RunBuilder, tmp_path: Path) -> None:
    """Where stdout was a file that has grown since; a file that is gone, or facts that are none, say nothing."""
    file = tmp_path / "out\x07.log"
    file.write_text("x" * 100)
    gone, odd = {"path": str(tmp_path / "gone"), "until": 5}, {"path": 7, "until": "x"}
    for facts in ({"stdout": {"path": str(file), "until": 58}, "stderr": gone}, {"stdout": odd, "stderr": 3}, 9):
        run.stream("main").meta({"context": {"console": facts}})
        run.flush()
        expected = isinstance(facts, dict) and facts["stderr"] is gone
        assert ("42 B came into " in stepd(store, "logs").stderr) == expected
    assert "\x07" not in stepd(store, "logs").output


def test_the_receipt_is_not_what_others_printed(store: str, run: RunBuilder, tmp_path: Path) -> None:
    """What `finish` prints behind the console's end says nothing; what follows it is counted."""
    file = tmp_path / "out.log"
    file.write_text("one\n" + "stepd  run (id)  finished\n       stored 1 of 1\n       stepd show id\n")
    run.stream("main").meta({"context": {"console": {"stdout": {"path": str(file), "until": 4}}}})
    run.flush()
    assert "came into" not in stepd(store, "logs").stderr
    with open(file, "a", encoding="utf-8") as more:
        more.write("42\n")
    assert "3 B came into" in stepd(store, "logs").stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--level", "loud"], "expected DEBUG, INFO"),
        (["--grep", "("], "no regular expression"),
        (["--since", "soon"], "expected an age"),
        (["--source", "stdin"], "stdin"),
        (["-f", "--since", "1h"], "--follow begins with the last lines"),
    ],
)
def test_misuse(store: str, run: RunBuilder, words: list[str], message: str) -> None:
    """Exit code 2, and what was expected."""
    result = stepd(store, "logs", *words)
    assert result.exit_code == 2 and message in result.stderr


def test_show_counts_lines(store: str, run: RunBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many, and how many warnings and errors; of a large console only how many."""
    assert "  4 lines, 1 warning, 1 error; stepd logs a41f" in said(store, "show")
    assert json.loads("\n".join(said(store, "show", "--json")))["console"] == {"lines": 4, "warnings": 1, "errors": 1}
    monkeypatch.setattr("sdk.reader.console.COUNTED_LINES_MAX", 3)
    assert "  5 lines; stepd logs a41f" in said(store, "show")
