"""sdk._lines: rows of a run's console, in a stream of their own."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import sdk
from sdk import _lines
from sdk._lines import TAIL_BYTES_MAX, Lines, lines_of
from sdk._run import Run


@pytest.fixture
def run(world: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("STEPD_SILENT", "1")
    return sdk.init()


def console(world: Any) -> list[Any]:
    """The rows of console streams, in order."""
    return [row for stream, options, _ in world.opened if options.get("kind") == "console" for row in stream.rows()]


def test_no_line_no_stream(world: Any, run: Run) -> None:
    """A run that prints nothing has no console stream."""
    lines_of(run)
    run.finish()
    assert console(world) == [] and len(world.opened) == 1


def test_lines_go_to_a_stream_of_their_own(world: Any, run: Run) -> None:
    """Rows carry their number as step and the training's open step, in a stream that names the run's as its parent."""
    lines = lines_of(run)
    lines.put({"text": "one", "from": "stdout"})
    run.log({"loss": 1.0})
    lines.put({"text": "two", "from": "stderr"})
    assert lines_of(run) is lines and lines.is_open
    assert console(world) == [
        {"text": "one", "from": "stdout", "at": 0}, {"text": "two", "from": "stderr", "at": 1},
    ]  # fmt: skip
    assert [row.step for row in console(world)] == [0, 1]
    main, (stream, options, _) = world.opened[0][0], world.opened[1]
    assert options["parent"] == main.id and options["kind"] == "console"
    run.finish()
    assert stream.ended == ("finished", 0)


def test_after_the_end_rows_go_nowhere(world: Any, run: Run) -> None:
    """`put` after the end does nothing, and neither does a second end."""
    lines = lines_of(run)
    lines.put({"text": "one", "from": "log"})
    run.finish()
    lines.put({"text": "two", "from": "log"})
    lines.end(1.0)
    assert [row["text"] for row in console(world)] == ["one"]


def test_callbacks_before_the_end_may_still_put(world: Any, run: Run) -> None:
    """What waits elsewhere is asked for before the stream ends, and trouble there keeps nothing from ending."""
    lines = lines_of(run)
    lines.on_end += [lambda: 1 / 0, lambda: lines.put({"text": "late", "from": "stdout"})]  # type: ignore[list-item,return-value]
    run.finish()
    assert [row["text"] for row in console(world)] == ["late"] and lines.failed == 1


def test_a_stream_that_cannot_be_opened_stops_nothing(world: Any, run: Run, capsys: Any) -> None:
    """Without a stream rows go nowhere, `put` and the end raise nothing."""
    world.fail = [OSError("no room")]
    lines = lines_of(run)
    lines.put({"text": "one", "from": "stdout"})
    lines.put({"text": "two", "from": "stdout"})
    run.finish()
    assert console(world) == []


def test_a_row_that_cannot_be_stored_is_counted(world: Any, run: Run) -> None:
    """`put` never raises, whatever it gets."""
    lines = lines_of(run)
    lines.put({"text": object(), "from": "stdout"})
    assert lines.failed == 1


def test_beyond_the_limit_the_first_part_and_the_last_lines_are_kept(world: Any, monkeypatch: Any) -> None:
    """The middle is counted, by source, in a mark before the last lines, which carry the time when they were printed."""
    monkeypatch.setenv("STEPD_SILENT", "1")
    monkeypatch.setenv("STEPD_CONSOLE_BYTES_MAX", str(2 * TAIL_BYTES_MAX))
    run = sdk.init()
    lines, size = lines_of(run), 1000
    count = 4 * TAIL_BYTES_MAX // size
    for number in range(count):
        lines.put({"text": f"{number:0{size}}", "from": ("stdout", "stderr")[number % 2]})
    run.finish()
    rows = console(world)
    texts = [int(row["text"]) for row in rows if "text" in row]
    marks = [row for row in rows if "missed" in row]
    assert [row["from"] for row in marks] == ["stderr", "stdout"]
    assert len(texts) + sum(row["missed"] for row in marks) == count
    first = rows.index(marks[0])
    kept = TAIL_BYTES_MAX // (size + _lines.ROW_BYTES)
    assert texts == [*range(first), *range(count - (len(texts) - first), count)]
    assert abs(first - kept) <= 1 and abs(len(texts) - first - kept) <= 1
    assert rows[-1]["created"] == pytest.approx(rows[-1].time, abs=60) and "created" not in rows[0]


def test_threads_at_the_first_line(world: Any, run: Run, monkeypatch: Any) -> None:
    """One stream is opened, and every row that came meanwhile is in it."""
    opening, go = threading.Event(), threading.Event()
    opener = Lines._open_stream

    def slow(lines: Lines) -> Any:
        opening.set()
        assert go.wait(20)
        return opener(lines)

    monkeypatch.setattr(Lines, "_open_stream", slow)
    lines = lines_of(run)
    first = threading.Thread(target=lines.put, args=({"text": "first", "from": "stdout"},))
    first.start()
    assert opening.wait(20)
    for number in range(5):
        lines.put({"text": f"{number}", "from": "stdout"})  # returns although the stream is not there
    go.set()
    first.join()
    assert [row["text"] for row in console(world)] == ["first", "0", "1", "2", "3", "4"]
    assert len(world.opened) == 2


def test_a_signal_handler_while_the_stream_is_opened(world: Any, run: Run, monkeypatch: Any) -> None:
    """A row from inside the opening, in the same thread, is stored behind the one that opened it."""
    opener = Lines._open_stream

    def interrupted(lines: Lines) -> Any:
        lines.put({"text": "inner", "from": "stdout"})
        return opener(lines)

    monkeypatch.setattr(Lines, "_open_stream", interrupted)
    lines_of(run).put({"text": "outer", "from": "stdout"})
    assert [row["text"] for row in console(world)] == ["outer", "inner"]


def test_a_disabled_run_has_no_console(world: Any) -> None:
    """With mode="disabled" rows go nowhere."""
    run = sdk.init(mode="disabled")
    lines_of(run).put({"text": "one", "from": "stdout"})
    assert world.opened == [] and not lines_of(run).is_open
