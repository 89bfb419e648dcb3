from __future__ import annotations

import gc
import io
import re
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

import sdk
from sdk import _greeting, _track
from sdk._track import _Bar


class Screen(io.StringIO):
    """A terminal of eighty columns; `lines` is what a person sees on it."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        rows, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[K|\x1b\[\d+A|\r|\n|[^\r\n\x1b]+", self.getvalue()):
            if part == "\r":
                column = 0
            elif part == "\n":
                row, column = row + 1, 0
                rows += [""] * (row + 1 - len(rows))
            elif part == "\x1b[K":
                rows[row] = rows[row][:column]
            elif part.startswith("\x1b"):
                row -= int(part[2:-1])
            else:
                rows[row] = rows[row][:column].ljust(column) + part + rows[row][column + len(part) :]
                column += len(part)
        return [line.rstrip() for line in rows if line.strip()]


class Clock:
    """Time that passes by `step` whenever it is asked for."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 1000.0, step

    def monotonic(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture(autouse=True)
def loud(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that speaks, whose log has had no line yet."""
    monkeypatch.setattr(_track, "_last_batch_line", float("-inf"))
    monkeypatch.setattr(_greeting, "_quiet", False)
    monkeypatch.setattr(_track, "_values", _track._Values())
    monkeypatch.setenv("TERM", "xterm")
    yield
    assert _track._bars == []


def terminal(monkeypatch: pytest.MonkeyPatch, step: float = 0.01) -> Screen:
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(_track, "time", Clock(step))
    return screen


def test_it_is_transparent() -> None:
    """Items, length, exceptions, `break` and another iteration are the iterable's."""
    tracked = sdk.track([1, 2, 3], "x")
    assert (list(tracked), list(tracked), len(tracked)) == ([1, 2, 3], [1, 2, 3], 3)
    assert list(sdk.track(iter("ab"))) == ["a", "b"]
    for item in tracked:
        if item == 2:
            break

    def failing() -> Iterator[int]:
        yield 1
        raise KeyError("x")

    seen = []
    with pytest.raises(KeyError, match="x"):
        for item in sdk.track(failing()):
            seen.append(item)  # noqa: PERF402 - what came before the error is the point
    assert seen == [1]
    with pytest.raises(TypeError, match="len"):
        len(sdk.track(iter([])))


def test_what_cannot_be_tracked() -> None:
    """Raises at once, saying what was found."""
    with pytest.raises(TypeError, match="iterable is int"):
        sdk.track(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="total is '3'"):
        sdk.track([], total="3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="total is -1"):
        sdk.track([], total=-1)


def test_a_batch_is_not_kept() -> None:
    """What the loop's body deletes is gone: the progress line holds no item."""

    class Batch:
        pass

    for batch in sdk.track([None, None]):
        batch = Batch()
        seen = weakref.ref(batch)
        del batch
        assert seen() is None
    made = []

    def batches() -> Iterator[Any]:
        batch = Batch()
        made.append(weakref.ref(batch))
        yield_ = [batch]
        del batch
        yield yield_.pop()

    for batch in sdk.track(batches()):
        del batch
        gc.collect()
        assert made[0]() is None


def test_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that is rewritten at most ten times a second and in the end stays, with share, count, rate and time."""
    screen = terminal(monkeypatch)
    for _ in sdk.track(range(1000), "train"):
        pass
    (line,) = screen.lines()
    assert re.fullmatch(r"train: 100% ▕█{20}▏ 1,000/1,000 · [\d.]+ it/s · 0:\d\d", line)
    assert 50 < screen.getvalue().count("\r") < 130  # 1,000 looks at the clock are 10 s
    assert "left" in screen.getvalue()


def test_a_bar_in_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """The inner one stands below the outer one, and is gone when it is over."""
    screen = terminal(monkeypatch, 0.05)
    for epoch in sdk.track(range(2), "epochs"):
        for _ in sdk.track(range(10), "steps"):
            shown = screen.lines()
        assert shown[0].startswith("epochs:")
        assert shown[1].startswith("steps:")
        assert len(shown) == 2
        assert len(screen.lines()) == 1, epoch
    assert len(screen.lines()) == 1


def test_a_terminal_that_is_small_or_knows_no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line is never wider than the screen, and of characters that its encoding has."""
    for columns in (10, 20, 40, 80, 500):
        assert len(_Bar("a long description", 10, ()).text(columns)) < columns
    screen = terminal(monkeypatch)
    monkeypatch.setattr(Screen, "encoding", "ascii")
    list(sdk.track(range(3)))
    screen.getvalue().encode("ascii")


def test_a_line_a_minute_in_a_batch_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Elsewhere a plain line a minute and a last one; short loops that follow one another do not fill the log."""
    monkeypatch.setattr(_track, "time", Clock(0.5))
    list(sdk.track(range(600), "train", total=600))  # about five minutes
    lines = capsys.readouterr().err.splitlines()
    assert 5 <= len(lines) <= 7
    assert all(re.fullmatch(r"stepd: train: +\d+% \d+/600 · [\d.]+ it/s · .*", line) for line in lines)
    monkeypatch.setattr(_track, "_last_batch_line", float("-inf"))
    for _ in range(5):
        list(sdk.track(range(5), "short"))
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_who_is_silent_prints_nothing_and_pays_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nobody looks the iterator is the iterable's own."""
    monkeypatch.setattr(_greeting, "_quiet", True)
    source = iter([1, 2])
    assert iter(sdk.track(source)) is source
    assert capsys.readouterr().err == ""


def test_metrics_are_what_was_logged_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the run has; without a run, or with one in trouble, there are none."""

    class Run:
        def latest(self, key: str) -> Any:
            if key == "broken":
                raise RuntimeError
            return {"loss": 0.123456, "phase": "warm\nup", "n": 3}.get(key)

    bar = patient(monkeypatch, "loss", "none", "broken", "phase", "n")
    assert bar.text().endswith("0:00")
    monkeypatch.setitem(sdk.__dict__, "run", Run())
    assert bar.text().endswith("· loss 0.1235 · phase warm?up · n 3")


def patient(monkeypatch: pytest.MonkeyPatch, *metrics: str) -> _Bar:
    """A bar whose lines wait for a look, however slow the machine is."""
    monkeypatch.setattr(_track, "_WAIT_SECONDS_MAX", 60.0)
    bar = _Bar("", None, metrics)
    bar.place.seconds = 60.0 * _track._REST
    return bar


def test_the_loop_does_not_wait_for_a_slow_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line goes without values until there are some; there is one look at a time."""
    goes_on, looks = threading.Event(), []

    class Run:
        def latest(self, key: str) -> float:
            looks.append(threading.current_thread())
            goes_on.wait(30)
            return 0.5

    monkeypatch.setitem(sdk.__dict__, "run", Run())
    monkeypatch.setattr(_track, "_WAIT_SECONDS_MAX", 0.0)
    bar = _Bar("", None, ("loss",))
    assert "loss" not in bar.text()
    assert "loss" not in bar.text(is_over=True)
    thread = _track._values._thread
    assert thread is not None and thread.is_alive()
    goes_on.set()
    thread.join()
    assert looks == [thread]
    assert bar.text().endswith("loss 0.5")


def test_a_look_rests_twenty_times_as_long_as_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meanwhile every bar shows what was found; the last line of a loop is looked up all the same."""
    clock = Clock(0.0)
    monkeypatch.setattr(_track, "time", clock)

    class Run:
        looks = 0

        def latest(self, key: str) -> int:
            self.looks += 1
            clock.now += 1.0
            return self.looks

    monkeypatch.setitem(sdk.__dict__, "run", Run())
    bar, other = patient(monkeypatch, "loss"), patient(monkeypatch, "loss")
    assert bar.text().endswith("loss 1")
    clock.now += _track._REST - 0.5
    assert bar.text().endswith("loss 1") and other.text().endswith("loss 1")
    clock.now += 1.0
    assert other.text().endswith("loss 2")
    assert bar.text(is_over=True).endswith("loss 3")


def test_an_unknown_total(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count, rate and time; no share and no time left. A total that is too small does not overflow."""
    screen = terminal(monkeypatch)
    list(sdk.track(iter(range(50))))
    assert re.fullmatch(r"50 · [\d.]+ it/s · 0:\d\d", screen.lines()[0])
    bar = _Bar("", 2, ())
    bar.count, bar.rate = 5, 1.0
    assert "100%" in bar.text(80)


def test_a_broken_stderr_does_not_end_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed stream, or none, is not the loop's trouble."""
    closed = Screen()
    closed.close()
    for stream in (closed, None, object()):
        monkeypatch.setattr("sys.stderr", stream)
        assert list(sdk.track(range(3))) == [0, 1, 2]


def test_rewrites_pass_the_capture_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put over the stream's `write` sees the last line only."""
    screen = terminal(monkeypatch)
    seen: list[str] = []
    screen.write = lambda text: seen.append(text) or len(text)  # type: ignore[method-assign,func-returns-value]
    list(sdk.track(range(100), "x"))
    assert len(seen) == 1
    assert seen[0].startswith("x: 100%")
