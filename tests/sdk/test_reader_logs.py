"""sdk.reader.logs: lines of all processes by time, marks where some are missing, following, hostile rows."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from sdk.errors import NotFoundError
from sdk.reader import LogLine, Run, Store, logs
from sdk.reader.facts import StreamFacts
from sdk.reader.logs import level_of
from sdk.record import KIND_ROW, pack
from sdk.segment.format import BLOCK_HEADER_SIZE, FLAG_HAS_META, KIND_ROWS
from tests.builders import START_NS, RunBuilder, StreamBuilder, compact, make_store

START = START_NS / 1e9


@pytest.fixture
def run(tmp_path: Path) -> RunBuilder:
    made = RunBuilder(make_store(tmp_path))
    made.stream().log({"loss": 0.5})
    return made


def opened(run: RunBuilder, alive: bool = False) -> Run:
    run.flush()
    return Run(run.directory, alive=lambda _: alive)


def said(stream: StreamBuilder, *texts: str, source: str = "stdout", **more: Any) -> None:
    for text in texts:
        stream.log({"from": source, "text": text, "at": 0, **more})


def shown(lines: Any) -> list[Any]:
    return [(line.missed, line.why) if line.missed else line.text for line in lines]


def test_a_record_is_read_with_all_that_was_stored(run: RunBuilder) -> None:
    """Every field of a log record, from rows and from columns; extra fields as dotted names."""
    console = run.stream("console", rank=3)
    record = {
        "from": "log", "text": "went\nwrong", "at": 7, "level": 40, "logger": "train", "error": "Traceback", "stack": "Stack",
        "where": "a.py:3", "thread": "loader", "process": "P-1", "extra": {"lr": 0.1, "deep": {"x": 1}}, "created": START - 5,
    }  # fmt: skip
    console.log(record)
    said(console, "plain", source="stderr")
    expected = LogLine(
        START - 5, "went\nwrong", "log", 7, 3, "host-a", 40, "train", "Traceback", "Stack", "a.py:3", "loader", "P-1",
        {"lr": 0.1, "deep.x": 1}, stream=console.hex,
    )  # fmt: skip
    of_rows = list(opened(run).logs())
    assert of_rows[0] == expected and of_rows[0].level_name == "ERROR"
    assert of_rows[1].source == "stderr" and of_rows[1].level is None and of_rows[1].level_name == ""
    run.seal()
    compact(run)
    assert list(opened(run).logs()) == of_rows


def test_streams_are_merged_by_time(run: RunBuilder) -> None:
    """Lines of several processes alternate as they were printed; within one, its own order counts whatever its clock says."""
    one, two = run.stream("console", rank=0), run.stream("console", rank=1, started_ns=START_NS + 10**9)
    for number in range(3):
        said(one, f"a{number}")
        said(two, f"b{number}")
    said(one, "early", created=START - 100)
    found = list(opened(run).logs())
    assert shown(found) == ["a0", "b0", "a1", "b1", "a2", "early", "b2"] or shown(found)[-1] in ("early", "b2")
    assert [line.text for line in found if line.rank == 0] == ["a0", "a1", "a2", "early"]
    assert shown(opened(run).logs(rank=1)) == ["b0", "b1", "b2"]
    with pytest.raises(NotFoundError, match="no console of rank 7"):
        opened(run).logs(rank=7)


def test_the_pages_tell_every_key() -> None:
    """docs/console.md and docs/logging.md list the keys that are read, and `extra` and `ends` besides."""
    listed: set[str] = set()
    for page in ("console", "logging"):
        text = (Path(__file__).parents[2] / "docs" / f"{page}.md").read_text(encoding="utf-8")
        table = text.partition("\n## Rows\n")[2].partition("\n## ")[0]
        for line in table.splitlines():
            if line.startswith("| `"):
                listed.update(re.findall(r"`(\w+)`", line.split("|")[1]))
    assert listed == {*logs._KEYS, "extra", "ends"}


def test_training_rows_are_not_lines_and_lines_are_no_rows(run: RunBuilder) -> None:
    """The console changes neither keys nor rows nor state of the run."""
    said(run.stream("console"), "x")
    found = opened(run)
    assert found.keys() == ["loss"] and len(list(found.rows())) == 1 and shown(found.logs()) == ["x"]
    assert shown(opened(run).logs(rank=None, last=5)) == ["x"]


def test_what_is_chosen(run: RunBuilder) -> None:
    """By level, source, text and time; a level leaves out what was printed."""
    console = run.stream("console")
    said(console, "step 1", "step 2")
    said(console, "slow", source="log", level=30)
    said(console, "broken", source="log", level=40, error="ValueError: step 9")
    found = opened(run)
    assert shown(found.logs(level="warning")) == ["slow", "broken"] and shown(found.logs(level=40)) == ["broken"]
    assert shown(found.logs(stream="stdout")) == ["step 1", "step 2"]
    assert shown(found.logs(grep=r"step \d")) == ["step 1", "step 2", "broken"]
    times = [line.time for line in found.logs()]
    assert shown(found.logs(since=times[1], until=times[3])) == ["step 2", "slow"]
    assert shown(found.logs(since=datetime.fromtimestamp(times[3], timezone.utc))) == ["broken"]
    assert shown(found.logs(last=2, stream="stdout")) == ["step 1", "step 2"] and shown(found.logs(last=0)) == []


@pytest.mark.parametrize(
    ("choice", "error", "match"),
    [
        ({"stream": "stdin"}, ValueError, "expected 'all', 'stdout', 'stderr' or 'log'"),
        ({"grep": "("}, ValueError, "no regular expression"),
        ({"level": "LOUD"}, ValueError, "expected DEBUG, INFO"),
        ({"since": "yesterday"}, TypeError, "expected Unix seconds or a datetime"),
    ],
)
def test_arguments_that_cannot_be(run: RunBuilder, choice: dict[str, Any], error: type[Exception], match: str) -> None:
    """They are refused at the call, not at the first line."""
    with pytest.raises(error, match=match):
        opened(run).logs(**choice)


def test_levels() -> None:
    """Names in any case, numbers, texts of numbers."""
    assert [level_of(level) for level in ("warn", "CRITICAL", 15, "25", None)] == [30, 50, 15, 25, None]


def test_the_last_lines_are_read_from_the_end(run: RunBuilder) -> None:
    """Only the blocks that hold them are read; the answer is that of reading all."""
    one, two = run.stream("console"), run.stream("console")
    for number in range(30):
        said(one, f"a{number}")
        said(two, *([f"b{number}"] if number % 5 == 0 else []))
        run.flush()
    found = opened(run)
    whole = list(found.logs())
    for count in (1, 4, 33, 100):
        assert list(found.logs(last=count)) == whole[-count:]
    read: list[int] = []
    parts = found._scan.parts
    found._scan.parts = lambda entry, *a, **k: read.append(entry.first) or parts(entry, *a, **k)  # type: ignore[method-assign,func-returns-value]
    assert len(list(found.logs(last=1))) == 1 and len(read) == 2


def test_a_damaged_block_is_a_mark(run: RunBuilder) -> None:
    """As many lines as it held, where they were: at the beginning, in the middle, at the end."""
    console = run.stream("console")
    places = []
    for number in range(5):
        said(console, f"a{number}", f"b{number}")
        places.append(run.daemon.rows(console, console.take()))
    said(console, "end")
    run.flush()
    path = run.daemon.segment.path
    run.close()
    with open(path, "r+b") as file:
        for place in (places[1], places[2], places[4]):
            file.seek(place.offset + BLOCK_HEADER_SIZE)
            file.write(b"\xff" * 8)
    expected = ["a0", "b0", (4, "damage"), "a3", "b3", (2, "damage"), "end"]
    assert shown(opened(run).logs()) == expected
    assert shown(opened(run).logs(last=4)) == expected[-4:]


def test_damage_before_the_first_and_after_the_last_line(run: RunBuilder) -> None:
    """What no line stands around is a mark all the same."""
    console = run.stream("console")
    run.flush()
    blocks = []
    for number in range(3):
        said(console, f"a{number}")
        blocks.append(run.daemon.rows(console, console.take()))
    path = run.daemon.segment.path
    run.close()
    with open(path, "r+b") as file:
        for place in (blocks[0], blocks[2]):
            file.seek(place.offset + BLOCK_HEADER_SIZE)
            file.write(b"\xff" * 8)
    found = shown(opened(run).logs())
    assert found[1] == "a1" and [text[1] for text in (found[0], found[2])] == ["damage", "damage"] and len(found) == 3


def test_a_block_that_can_be_read_in_part(run: RunBuilder) -> None:
    """What follows what cannot be understood is a mark, before the next line and at the end; by number it is known how much."""
    console = run.stream("console")
    for name in "ab":
        said(console, *(f"{name}{number}" for number in range(4)))
        records = console.take()
        raw = b"".join(map(pack, records[:-2])) + b"\xff" * 64
        rows = [record for record in records if record.kind == KIND_ROW]
        run.daemon.segment.append(
            KIND_ROWS, raw, stream=console.id, first=records[0].sequence, last=records[-1].sequence, records=len(records),
            step_min=rows[0].step, step_max=rows[-1].step, flags=FLAG_HAS_META if name == "a" else 0,
        )  # fmt: skip
    assert shown(opened(run).logs()) == ["a0", "a1", (2, "damage"), "b0", "b1", (2, "damage")]
    assert shown(opened(run).logs(stream="stdout", grep="b")) == [(2, "damage"), "b0", "b1", (2, "damage")]


def test_refused_lines_are_a_mark(run: RunBuilder) -> None:
    """Where they would have been, with the reason; once, also while it is followed."""
    console = run.stream("console")
    said(console, "a", "b")
    console.gap(episode=1, count=12, step_min=2, step_max=2, start_ns=START_NS, end_ns=START_NS, reason="ring full")
    said(console, "c", "d")
    console.finish()
    assert shown(opened(run).logs()) == ["a", "b", (12, "ring full"), "c", "d"]
    assert shown(opened(run).follow_logs()) == ["a", "b", (12, "ring full"), "c", "d"]
    assert shown(opened(run).logs(last=3)) == [(12, "ring full"), "c", "d"]


def test_refused_lines_have_numbers(run: RunBuilder) -> None:
    """They are counted once; what is missing beside them is another mark."""
    console = run.stream("console")
    said(console, "a")
    console.step += 5
    console.gap(episode=1, count=5, step_min=1, step_max=5, start_ns=START_NS, end_ns=START_NS, reason="ring full")
    said(console, "b")
    console.step += 5
    said(console, "c")
    console.finish()
    for lines in (opened(run).logs(), opened(run).logs(last=9)):
        assert shown(lines) == ["a", (5, "ring full"), "b", (5, "missing"), "c"]


def test_a_mark_of_the_writer_is_given(run: RunBuilder) -> None:
    """What the console left out itself counts as missing."""
    console = run.stream("console")
    said(console, "a")
    console.log({"from": "stdout", "missed": 40, "why": "too much"})
    console.log({"from": "log", "missed": 4})
    assert shown(opened(run).logs()) == ["a", (40, "too much"), (4, "unknown")]
    assert shown(opened(run).logs(stream="stdout", grep="a")) == ["a", (40, "too much")]


def test_a_line_that_is_not_ended(run: RunBuilder) -> None:
    """Of a progress bar's states none is given once it is ended, and the last one where it never was, all bars of it."""
    console = run.stream("console")
    for state in range(3):
        said(console, f"epoch 1: {state}", live=1)
        console.time_ns += 5 * 10**9
    said(console, "epoch 1: done", ends=1)
    for state in range(2):
        said(console, f"outer {state}", f"inner {state}", live=2)
        console.time_ns += 5 * 10**9
    said(console, "in between", source="log")
    for lines in (opened(run).logs(), opened(run).follow_logs()):
        assert shown(lines) == ["epoch 1: done", "in between", "outer 1", "inner 1"]
    assert [line.live for line in opened(run).logs()] == [0, 0, 2, 2]
    assert shown(opened(run).logs(last=9)) == ["epoch 1: done", "outer 1", "inner 1", "in between"]
    lives = opened(run, alive=True)
    assert shown(lives.logs()) == ["epoch 1: done", "in between", "outer 1", "inner 1"]
    assert shown(lives.follow_logs(timeout=0, wait=lambda _: None)) == ["epoch 1: done", "in between"]


def test_hostile_rows(run: RunBuilder) -> None:
    """Whatever a row holds, a line has the types that it says."""
    console = run.stream("console")
    odd = {
        "from": 7, "text": [1], "at": "x", "level": "high", "missed": "many", "error": {"a": 1}, "extra": 5, "part": 1.5,
        "created": "now",
    }  # fmt: skip
    console.log(odd)
    console.log({})
    found = list(opened(run).logs())
    assert [line[1:11] for line in found] == [("", "", None, None, "host-a", None, None, None, None, None)] * 2
    assert [(line.extra, line.part, line.missed) for line in found] == [({}, 0, 0)] * 2


def test_a_run_without_console(run: RunBuilder) -> None:
    """It has no lines, for any rank."""
    assert list(opened(run).logs()) == list(opened(run).logs(rank=4, last=3)) == []


class Trainer:
    """A made-up trainer that prints while somebody waits."""

    def __init__(self, run: RunBuilder) -> None:
        self.run, self.console, self.lives = run, run.stream("console"), True
        run.flush()
        self.found = Store(os.path.dirname(os.path.dirname(run.directory)), alive=self.alive).run("a41f")
        self.script: list[Callable[[], object]] = []

    def alive(self, stream: StreamFacts) -> bool:
        return self.lives

    def wait(self, seconds: float) -> None:
        assert self.script, "the follower waits for what never comes"
        self.script.pop(0)()
        self.run.flush()

    def end(self) -> None:
        self.lives = False

    def follow(self, **options: Any) -> list[Any]:
        return shown(self.found.follow_logs(wait=self.wait, **options))


def test_follow_gives_every_line_once_and_ends(run: RunBuilder) -> None:
    """Lines as they come, also those of a process that begins meanwhile; the last ones before the end."""
    trainer = Trainer(run)
    said(trainer.console, "a", "b")
    trainer.script = [
        lambda: said(trainer.console, "c"),
        lambda: None,
        lambda: said(run.stream("console", rank=1), "from another"),
        lambda: (said(trainer.console, "d"), trainer.end()),
    ]
    run.flush()
    assert trainer.follow() == ["a", "b", "c", "from another", "d"]


def test_follow_says_once_what_is_missing(run: RunBuilder) -> None:
    """A mark that came at the end of one look does not come again with the next line."""
    trainer = Trainer(run)
    said(trainer.console, "a")
    trainer.console.gap(episode=1, count=3, step_min=1, step_max=3, start_ns=0, end_ns=0, reason="disk full")
    trainer.console.step += 3
    run.flush()
    trainer.script = [lambda: None, lambda: said(trainer.console, "b"), trainer.end]
    assert trainer.follow() == ["a", (3, "disk full"), "b"]


def test_follow_begins_with_the_last_lines(run: RunBuilder) -> None:
    """So many as asked for, and then all that come; what is not wanted is left out."""
    trainer = Trainer(run)
    said(trainer.console, *"abcdef")
    run.flush()
    trainer.script = [lambda: said(trainer.console, "x", "e"), trainer.end]
    assert trainer.follow(last=2, grep="[a-e]") == ["d", "e", "e"]


def test_a_line_that_is_stored_late_is_given_late(run: RunBuilder) -> None:
    """While a process lives, a hole may be filled from its spool: no mark, and the lines when they are there."""
    trainer = Trainer(run)
    console = trainer.console
    said(console, *"abcd")
    records = console.take()
    run.daemon.rows(console, records[:1])
    run.daemon.rows(console, records[3:])
    trainer.script = [lambda: run.daemon.rows(console, records[1:3]), trainer.end]
    assert trainer.follow() == ["a", "d", "b", "c"]


def test_a_segment_that_is_replaced_while_lines_are_read(run: RunBuilder) -> None:
    """Compaction in the middle of the iteration: every line comes once, in order."""
    one, two = run.stream("console"), run.stream("console")
    for number in range(40):
        said(one, f"a{number}")
        said(two, f"b{number}")
        if number % 8 == 0:
            run.flush()
    found = opened(run)
    expected = shown(found.logs())
    lines = found.logs()
    first = [next(lines) for _ in range(21)]
    run.seal()
    compact(run)
    found._scan.close()
    rest = shown(lines)
    assert sorted(shown(first) + rest) == sorted(expected)
    assert [text for text in shown(first) + rest if text[0] == "a"] == [f"a{number}" for number in range(40)]
