"""Text from a store or a session that somebody else made: no command lets it steer a terminal, and no value breaks one."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import msgpack
import pytest
from click.testing import CliRunner, Result

from daemon.cli import cli
from daemon.commands import export, status
from sdk.ids import run_directory
from sdk.reader import open_store
from sdk.record import EXT_BIG_INT, EXT_TENSOR
from tests.builders import RunBuilder, make_store

# Sets a title, clears the screen, goes back, ends the line, mirrors what follows; C1 and zero width too, and no character.
EVIL = "\x1b]0;x\x07\x1b[2J\r\b\n\x9b2J\0\u202eabc\u2066\u200b\u2028\ud800"
OURS = re.compile(r"\x1b\[[0-9;]*m")


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.fixture
def store(tmp_path: Path) -> str:
    """One run whose every text is hostile."""
    path = make_store(tmp_path)
    run = RunBuilder(path, EVIL, name=EVIL, project=EVIL, group=EVIL, job_type=EVIL, notes=EVIL, tags=[EVIL, 7, None])
    main = run.stream(host=EVIL, version=EVIL, ring=EVIL, job_id=EVIL, rank=2**63, started_ns=2**62)
    main.meta({"config": {EVIL: EVIL, "deep": nested(900), "bytes": b"\xff\0", "map": {1: {None: 2}}}})
    main.meta({"metric": {EVIL: {"name": EVIL}}, "misuse": {EVIL: EVIL}, "summary": {EVIL: EVIL, "big": 2**64 - 1}})
    main.meta({"alert": {EVIL: {"title": EVIL, "text": EVIL, "level": EVIL}}})
    main.log({EVIL: 1.0, f"a/{EVIL}": EVIL, "deep": nested(900), "map": {EVIL: {"x": EVIL}}, "loss": 0.5})
    main.log({EVIL: 2.0, "tensor": msgpack.ExtType(EXT_TENSOR, b"\x93\xa3<f8\x91\x01\xc4\x00"), "loss": 0.25})
    main.log({EVIL: 2.0, "other": msgpack.ExtType(99, b"\x1b[2J"), "int": msgpack.ExtType(EXT_BIG_INT, b"9" * 5000)})
    main.gap(episode=EVIL, count=3, step_min=2**63, step_max=-1, start_ns=-(2**63), reason=EVIL)
    run.flush()
    run.daemon.meta({"run": EVIL, "damage": EVIL})
    run.seal()
    return path


def stepd(store: str, *words: str) -> Result:
    # As to a terminal: click takes escape sequences out of what goes elsewhere.
    result = CliRunner().invoke(cli, ["--dir", store, *words], color=True)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def assert_harmless(text: str) -> None:
    left = OURS.sub("", text)
    assert all(c.isprintable() or c == "\n" for c in left), ascii(left)


@pytest.mark.parametrize(
    "words",
    [
        ["runs"], ["runs", "--json"], ["runs", "--project", "none"], ["show"], ["show", "--json"], ["tail"], ["tail", "--json"],
        ["plot"], ["plot", "loss"], ["plot", "-k", EVIL], ["plot", "loss", "--json"], ["export"],
        ["show", "none"], ["plot", "lossy"], ["show", EVIL], ["tail", "none"], ["rm", "latest"], ["rm", "none"],
        ["report", "-o", "-"],
        ["export", "none"], ["runs", "--project", EVIL],
    ],
    ids=lambda words: ascii(" ".join(words)),
)  # fmt: skip
def test_no_command_steers_the_terminal(store: str, words: list[str]) -> None:
    """Whatever a run is called, holds and says, only printable characters and ends of lines come out."""
    result = stepd(store, *words)
    assert_harmless(result.stdout)
    assert_harmless(result.stderr)
    assert "Traceback" not in result.output


def test_json_and_csv_keep_the_exact_text(store: str, tmp_path: Path) -> None:
    """What goes to a program or into a file is the very text that was logged, escaped by the format alone."""
    rows = [json.loads(line) for line in stepd(store, "export").stdout.splitlines()]
    assert rows[0][EVIL] == 1.0
    assert rows[0][f"a/{EVIL}"] == EVIL
    assert rows[0][f"map.{EVIL}.x"] == EVIL
    assert str(rows[0]["deep"]).count("[") == 901
    stepd(store, "export", "--format", "csv", "-o", str(tmp_path / "out.csv"))
    text = (tmp_path / "out.csv").read_bytes().decode("utf-8", "surrogatepass")
    table = list(csv.DictReader(io.StringIO(text.replace("\0", "<nul>"), newline="")))
    assert table[0][f"a/{EVIL}".replace("\0", "<nul>")] == EVIL.replace("\0", "<nul>")


def test_csv_to_a_terminal_is_harmless(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CSV that is looked at in a terminal has its control characters replaced."""
    monkeypatch.setattr(export, "_is_terminal", lambda: True)
    assert_harmless(stepd(store, "export", "--format", "csv").stdout)


def test_the_directory_of_a_hostile_id_is_safe(store: str) -> None:
    """An id made of control characters leads to a directory of plain ones, and the run is found by it."""
    (run,) = open_store(store).runs()
    assert run.id == EVIL
    assert re.fullmatch(r"[a-z0-9%~_-]{1,64}", run_directory(EVIL))
    assert open_store(store).run(EVIL).id == EVIL


class _Zero(dict[str, Any]):
    """Facts that this test does not name count as 0."""

    def __missing__(self, key: str) -> int:
        return 0


def test_status_of_a_daemon_with_hostile_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """A run that a session named, and the last error, which quotes what came, cannot steer the terminal either."""
    run = {"id": EVIL, "streams": 1, "waiting_bytes": 0, "lag_seconds": 0.0, "refused": 0}
    facts: dict[str, Any] = {
        "serving": True, "store": EVIL, "pid": 1, "version": EVIL, "uptime_seconds": 1.0, "persistent": True, "runs": [run],
        "records_per_second": 0.0, "bytes_per_second": 0.0, "records": 0, "bytes": 0, "write_failures": 0, "sync_failures": 0,
        "synced_age_seconds": 0.0, "free_bytes": 1, "refused": 1, "refused_reasons": {EVIL: 1}, "last_error": EVIL,
        "store_bytes": None, "warnings": [EVIL], "rewriting": {"running": False, "alone": [EVIL], "errors": [EVIL]},
        "syncing": [{"target": EVIL, "runs": 1, "failing": 1, "reason": EVIL, "age_seconds": 1.0, "elsewhere": 1, "behind": 1}],
    }  # fmt: skip
    status._print(_Zero(facts))
    assert_harmless(capsys.readouterr().out)


@pytest.mark.parametrize(
    "cells", [[1, 0.1, None, True], ["a,b", 'say "x"', "line\nbreak", "é"], ["", "x"], [float("nan"), "\t"]]
)
def test_lines_of_an_old_python_are_those_of_a_new_one(cells: list[Any]) -> None:
    """The csv of Python 3.10 refuses NUL, so lines are made here; for everything else they are its own."""
    made = io.StringIO()
    csv.writer(made, lineterminator="\n").writerow(cells)
    assert export.csv_line(cells) == made.getvalue()
