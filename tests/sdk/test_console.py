"""sdk._console: what is printed becomes lines of the run, and nothing about printing changes."""

from __future__ import annotations

import builtins
import contextlib
import io
import logging
import os
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import pytest

import sdk
from sdk import _console, _tap
from sdk._tap import Tap

_BEGIN = _console.begin


class Screen(io.StringIO):
    """A stream object like those of the interpreter: what was written to it is `getvalue()`."""


class Streams:
    """A process's two streams, from `use` on: pytest puts its own there between a fixture and its test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out, self.err = Screen(), Screen()
        self._monkeypatch = monkeypatch

    def use(self) -> tuple[Screen, Screen]:
        self._monkeypatch.setattr(sys, "stdout", self.out)
        self._monkeypatch.setattr(sys, "stderr", self.err)
        return self.out, self.err


@pytest.fixture
def streams(world: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Streams]:
    """Streams whose output is captured by runs."""
    monkeypatch.setattr(_console, "begin", _BEGIN)
    monkeypatch.setenv("STEPD_SILENT", "1")
    yield Streams(monkeypatch)
    for run in list(sdk._globals.state.unfinished.values()):
        run.finish()
    assert _console._taps == {}


def rows(world: Any) -> list[Any]:
    return [row for stream, options, _ in world.opened if options.get("kind") == "console" for row in stream.rows()]


def texts(world: Any, source: str | None = None) -> list[str]:
    return [row["text"] for row in rows(world) if source in (None, row["from"])]


def test_what_is_printed_is_stored_and_still_printed(world: Any, streams: Streams) -> None:
    """Lines of both streams, in order, with the open step; the streams get the same, and their write's value."""
    streams.use()
    run = sdk.init()
    print("one", 1, sep="-")
    run.log({"loss": 1.0})
    print("two", file=sys.stderr, flush=True)
    assert sys.stdout.write("three\nfour") == 10
    run.finish()
    print("after")
    assert [(row["from"], row["text"], row["at"]) for row in rows(world)] == [
        ("stdout", "one-1", 0), ("stderr", "two", 1), ("stdout", "three", 1), ("stdout", "four", 1),
    ]  # fmt: skip
    facts = [facts["context"]["console"] for facts in world.opened[0][0].facts if "context" in facts]
    assert facts == [{"stdout": {"kind": "object"}, "stderr": {"kind": "object"}}]
    assert streams.out.getvalue() == "one-1\nthree\nfourafter\n" and streams.err.getvalue() == "two\n"


def test_the_streams_are_restored_exactly(world: Any, streams: Streams) -> None:
    """The same objects with the same attributes, also where `write` was an attribute before."""
    out, err = streams.use()
    mine = err.write
    err.write = mine  # type: ignore[method-assign]
    before = dict(out.__dict__), dict(err.__dict__)
    run = sdk.init()
    assert sys.stdout is out and "write" in out.__dict__
    assert out.isatty() is False and out.encoding is None
    run.finish()
    assert (out.__dict__, err.__dict__) == before and err.write is mine


def test_whoever_put_a_function_over_ours_keeps_it(world: Any, streams: Streams) -> None:
    """A `write` that was replaced after `init` stays, and ours below it does nothing after the run."""
    streams.use()
    run = sdk.init()
    ours = sys.stdout.write
    sys.stdout.write = lambda text: ours(text.upper())  # type: ignore[method-assign]
    print("one")
    run.finish()
    print("two")
    assert streams.out.getvalue() == "ONE\nTWO\n" and texts(world) == ["ONE"]
    run = sdk.init()
    print("three")
    run.finish()
    assert texts(world) == ["ONE", "three"]


def test_a_handler_made_before_init(world: Any, streams: Streams) -> None:
    """A `StreamHandler` holds the stream object, and is captured."""
    streams.use()
    handler = logging.StreamHandler(sys.stdout)
    run = sdk.init()
    handler.emit(logging.LogRecord("x", logging.INFO, "f.py", 1, "a record", (), None))
    run.finish()
    assert texts(world) == ["a record"]


def test_a_record_that_a_log_handler_stores_is_not_stored_again(world: Any, streams: Streams, monkeypatch: Any) -> None:
    """What `logging.StreamHandler` prints of a record that `LogHandler` takes is printed only."""
    streams.use()
    from sdk import _handler

    monkeypatch.setattr(_handler, "takes", lambda record: record.msg == "taken")
    handler = logging.StreamHandler(sys.stdout)
    run = sdk.init()
    for text in ("taken", "other"):
        handler.emit(logging.LogRecord("x", logging.INFO, "f.py", 1, text, (), None))
    print("printed")
    run.finish()
    assert texts(world) == ["other", "printed"]
    assert streams.out.getvalue() == "taken\nother\nprinted\n"


def test_an_exception_of_the_write_is_the_programs(world: Any, streams: Streams) -> None:
    """What the stream raises is raised, and nothing is stored of it."""
    streams.use()

    class Broken(Screen):
        def write(self, text: str) -> int:
            raise BrokenPipeError("gone")

    sys.stdout = Broken()
    run = sdk.init()
    with pytest.raises(BrokenPipeError):
        print("one")
    run.finish()
    assert texts(world) == []


def test_trouble_of_ours_is_nobodys(world: Any, streams: Streams, monkeypatch: Any) -> None:
    """If nothing can be stored, printing goes on."""
    streams.use()
    run = sdk.init()
    _console._taps["stdout"]._inbox = None  # type: ignore[assignment]
    print("one")
    run.finish()
    assert streams.out.getvalue() == "one\n"


def test_what_a_signal_handler_raises_is_the_programs(
    world: Any, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time limit by SIGALRM that ends a print while we are at work is not kept back, and the text is there."""

    class TooLong(Exception):
        pass

    def handler() -> None:
        raise TooLong

    streams.use()
    run = sdk.init()
    empty = Tap._empty
    monkeypatch.setattr(Tap, "_empty", lambda tap, seconds: handler())
    with pytest.raises(TooLong):
        print("one")
    monkeypatch.setattr(Tap, "_empty", empty)
    print("two")
    run.finish()
    assert texts(world) == ["one", "two"]


def test_a_signal_handler_that_prints_inside_ours(world: Any, streams: Streams, monkeypatch: Any) -> None:
    """A print in the middle of our own work waits for nobody, and both lines are stored."""
    streams.use()
    empty, printed = Tap._empty, []

    def interrupted(tap: Tap, seconds: float) -> bool:
        if not printed:
            printed.append(1)
            print("inner")
        return empty(tap, seconds)

    monkeypatch.setattr(Tap, "_empty", interrupted)
    run = sdk.init()
    print("outer")
    run.finish()
    assert texts(world) == ["outer", "inner"]


def test_who_prints_much_is_not_kept(world: Any, streams: Streams, monkeypatch: Any) -> None:
    """What no lines were made of in the writer's time waits for the sender or the end, and is complete and in order then."""
    streams.use()
    run = sdk.init()
    print("first")
    monkeypatch.setattr(Tap.drain, "__defaults__", (-1.0,))
    lines = [f"{number} of many" for number in range(20_000)]
    print("\n".join(lines))
    assert texts(world) == ["first"]
    run.finish()
    assert texts(world) == ["first", *lines]


def test_what_the_end_cannot_wait_for_is_counted(world: Any, streams: Streams, monkeypatch: Any) -> None:
    """Of a text that is too long for the time that the end has, a mark tells how many lines are missing."""
    streams.use()
    run = sdk.init()
    monkeypatch.setattr(Tap.drain, "__defaults__", (-1.0,))
    monkeypatch.setattr(_tap, "_SETTLE_SECONDS_MAX", -1.0)
    print("line\n" * 20_000, end="")
    run.finish()
    (row,) = rows(world)
    assert row["missed"] == 20_000 and "could not wait" in row["why"]


def test_lines_of_threads_stay_whole(world: Any, streams: Streams) -> None:
    """Each thread's writes are joined to its own lines, complete and in its order."""
    streams.use()
    run = sdk.init()
    meet = threading.Barrier(4)

    def work(name: int) -> None:
        meet.wait(20)
        for number in range(300):
            print(name, number, "x", sep=" ")

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run.finish()
    for name in range(4):
        mine = [text for text in texts(world) if text.startswith(f"{name} ")]
        assert mine == [f"{name} {number} x" for number in range(300)]
    assert len(texts(world)) == 1200


def test_a_bar_of_two_threads_is_one(world: Any, streams: Streams) -> None:
    """What moves the cursor is one line whoever writes it, and other threads' lines are their own."""
    streams.use()
    run = sdk.init()
    sys.stdout.write("Loading: ")
    sys.stdout.write("\rLoading: 1 %")
    drawing = threading.Thread(target=lambda: [sys.stdout.write("\rLoading: 50 %"), print("\x1b[31mred\x1b[0m")])
    drawing.start()
    drawing.join()
    other = threading.Thread(target=print, args=("line",))
    other.start()
    other.join()
    sys.stdout.write("\rLoading: 100 %")
    sys.stdout.write("\n")
    print("done")
    run.finish()
    assert texts(world) == ["Loading: 50 %red", "line", "Loading: 100 %", "done"]


def test_a_notebook(world: Any, streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    """IPython puts a function over `write` for each cell and then back what it found: every cell is captured, once."""
    out, _ = streams.use()
    before: list[Any] = []
    shell = types.SimpleNamespace(events=types.SimpleNamespace(
        register=lambda name, call: before.append(call), unregister=lambda name, call: before.remove(call))
    )  # fmt: skip
    monkeypatch.setattr(builtins, "get_ipython", lambda: shell, raising=False)

    def cell(body: Any) -> None:
        found = out.write
        out.write = lambda text: found(text)  # type: ignore[method-assign]
        for call in before:
            call(None)
        body()
        out.write = found  # type: ignore[method-assign]

    cell(lambda: (sdk.init(), print("one")))
    cell(lambda: print("two"))
    cell(lambda: (print("three"), sdk.finish()))
    cell(lambda: print("four"))
    assert texts(world) == ["one", "two", "three"] and before == []
    assert out.getvalue() == "one\ntwo\nthree\nfour\n"


def test_redirected_output_is_not_the_consoles(world: Any, streams: Streams) -> None:
    """What goes into somebody's StringIO does not appear on the terminal, and is not stored."""
    streams.use()
    run = sdk.init()
    with contextlib.redirect_stdout(io.StringIO()) as text:
        print("hidden")
    print("shown")
    run.finish()
    assert texts(world) == ["shown"] and text.getvalue() == "hidden\n"


def test_an_object_without_attributes_gets_one_around_it(world: Any, streams: Streams) -> None:
    """A stream whose `write` cannot be replaced is stood for by an object that behaves like it, until the run ends."""
    streams.use()

    class Slotted:
        __slots__ = ("said",)

        def __init__(self) -> None:
            self.said: list[str] = []

        def write(self, text: str) -> int:
            self.said.append(text)
            return len(text)

        def flush(self) -> None: ...

    stream = sys.stdout = Slotted()  # type: ignore[assignment]
    run = sdk.init()
    print("one", flush=True)
    sys.stdout.writelines(["two\n"])
    assert sys.stdout.said == stream.said  # type: ignore[attr-defined]
    run.finish()
    assert sys.stdout is stream and texts(world) == ["one", "two"]
    assert "".join(stream.said) == "one\ntwo\n"


def test_a_process_without_streams(world: Any, streams: Streams) -> None:
    """Where there is no stdout (a service, pythonw) there is nothing to capture."""
    streams.use()
    sys.stdout = None  # type: ignore[assignment]
    run = sdk.init()
    print("lost")
    print("kept", file=sys.stderr)
    run.finish()
    assert texts(world) == ["kept"]


def test_both_names_for_one_object(world: Any, streams: Streams) -> None:
    """With stderr the same object as stdout a line is stored once."""
    streams.use()
    sys.stderr = sys.stdout
    run = sdk.init()
    print("one", file=sys.stderr)
    run.finish()
    assert texts(world) == ["one"] and "write" not in sys.stdout.__dict__


@pytest.mark.parametrize("how", ["setting", "variable", "wandb"])
def test_it_can_be_switched_off(world: Any, streams: Streams, monkeypatch: Any, how: str) -> None:
    """`console="off"` touches nothing, and says so in the run's facts."""
    streams.use()
    if how != "setting":
        monkeypatch.setenv({"variable": "STEPD_CONSOLE", "wandb": "WANDB_CONSOLE"}[how], "off")
    run = sdk.init(settings={"console": "off"} if how == "setting" else None)
    print("one")
    assert "write" not in sys.stdout.__dict__
    run.finish()
    assert texts(world) == []
    assert {"console": {"off": True}} in [facts.get("context") for facts in world.opened[0][0].facts]


def test_two_runs_at_once(world: Any, streams: Streams) -> None:
    """What is printed while two runs of the process are there is in the console of both."""
    streams.use()
    first = sdk.init()
    second = sdk.init(reinit="create_new")
    print("both")
    first.finish()
    print("second")
    second.finish()
    print("none")
    assert sorted(texts(world)) == ["both", "both", "second"] and "write" not in sys.stdout.__dict__


def test_another_object_at_the_next_run(world: Any, streams: Streams) -> None:
    """A run that begins where `sys.stdout` is another object captures that one."""
    streams.use()
    first = sdk.init()
    print("one")
    sys.stdout = Screen()
    second = sdk.init(reinit="create_new")
    print("two")
    second.finish()
    print("three")
    first.finish()
    assert "write" not in streams.out.__dict__ and "write" not in sys.stdout.__dict__
    assert sorted(texts(world)) == ["one", "three", "two", "two"]


def test_a_bar_is_stored_now_and_then_and_at_its_end(world: Any, streams: Streams) -> None:
    """A line that is not ended is stored after a second, then seldom, under one number; the ended one names it."""
    streams.use()
    run = sdk.init()
    tap = _console._taps["stdout"]
    for second in range(100):
        sys.stdout.write(f"\r{second} %")
        tap.look(float(second))
    sys.stdout.write("\r100 %\n")
    print("next")
    run.finish()
    live = [(row["text"], row["live"]) for row in rows(world) if "live" in row]
    assert live[0] == ("2 %", 1) and 4 <= len(live) <= 9 and {number for _, number in live} == {1}
    assert [(row["text"], row.get("ends")) for row in rows(world) if "live" not in row] == [
        ("100 %", 1),
        ("next", None),
    ]


def test_a_prompt_is_stored_once_while_it_stands(world: Any, streams: Streams) -> None:
    """A line without an end that does not change is stored once, and in whole when it ends."""
    streams.use()
    run = sdk.init()
    tap = _console._taps["stdout"]
    sys.stdout.write("Loading… ")
    for second in range(30):
        tap.look(float(second))
    print("done")
    run.finish()
    assert [(row["text"], row.get("live"), row.get("ends")) for row in rows(world)] == [
        ("Loading…", 1, None), ("Loading… done", None, 1),
    ]  # fmt: skip


def test_a_long_line_is_stored_in_pieces(world: Any, streams: Streams) -> None:
    """No row is longer than a ring takes, and no character is lost."""
    streams.use()
    run = sdk.init()
    text = "x" * 200_000 + "ü" * 100_000
    print(text)
    run.finish()
    assert "".join(texts(world)) == text
    assert max(len(piece.encode()) for piece in texts(world)) <= 64 * 1024


def test_an_object_that_takes_bytes_too(world: Any, streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is given is text in the console, and takes nothing of what stands before it along."""

    class Tee:
        def write(self, text: Any) -> int:
            return len(text)

        def flush(self) -> None:
            pass

    streams.use()
    monkeypatch.setattr(sys, "stdout", Tee())
    run = sdk.init()
    sys.stdout.write("one ")
    sys.stdout.write(b"two\n")  # type: ignore[arg-type]
    run.finish()
    assert texts(world, "stdout") == ["one two"]


def test_what_is_no_text_is_the_streams_business(world: Any, streams: Streams) -> None:
    """A TypeError of the stream is raised; a text that is no utf-8 is stored as it is."""
    streams.use()
    run = sdk.init()
    with pytest.raises(TypeError):
        sys.stdout.write(b"bytes")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        sys.stdout.write()  # type: ignore[call-arg]
    print("\udc80 surrogate")
    run.finish()
    assert texts(world) == ["\udc80 surrogate"]


def test_a_forked_child_has_lines_of_its_own(world: Any, streams: Streams) -> None:
    """What waited in the parent is not stored again by the child."""
    streams.use()
    run = sdk.init()
    print("line")
    sys.stdout.write("half a ")
    child = os.fork()
    if not child:
        print("of the child")
        os._exit(0 if texts(world) == ["line", "of the child"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    print("line")
    run.finish()
    assert texts(world) == ["line", "half a line"]


def test_a_forked_child_that_begins_a_run(world: Any, streams: Streams) -> None:
    """What it prints from then on is that run's only."""
    streams.use()
    run = sdk.init()
    print("parent")
    child = os.fork()
    if not child:
        own = sdk.init()
        print("child")
        own.finish()
        stored = [
            [row["text"] for row in stream.rows()]
            for stream, options, _ in world.opened
            if options.get("kind") == "console"
        ]
        os._exit(0 if own.id != run.id and stored == [["parent"], ["child"]] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    run.finish()
    assert texts(world) == ["parent"]


def test_write_logs(world: Any, streams: Streams) -> None:
    """Text is added to the console without being printed."""
    streams.use()
    run = sdk.init()
    run.write_logs("one\ntwo")
    with pytest.raises(TypeError):
        run.write_logs(b"three")  # type: ignore[arg-type]
    run.finish()
    with pytest.raises(sdk.UsageError):
        run.write_logs("after")
    assert texts(world) == ["one", "two"] and streams.out.getvalue() == ""


def test_stdout_is_not_touched_without_a_store(world: Any, streams: Streams) -> None:
    """A disabled run captures nothing."""
    streams.use()
    run = sdk.init(mode="disabled")
    assert "write" not in sys.stdout.__dict__
    run.finish()
