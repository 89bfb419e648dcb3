"""Lines that are replaced where they stand."""

from __future__ import annotations

import io
import os
import signal

import pyte
import pytest

from daemon.commands import redraw
from daemon.commands.redraw import InPlace


class Screen(io.StringIO):
    """A stdout that is a terminal."""

    def isatty(self) -> bool:
        return True

    def shown(self, columns: int = 20, lines: int = 6) -> list[str]:
        """What stands on it."""
        screen = pyte.Screen(columns, lines)
        pyte.Stream(screen).feed(self.getvalue().replace("\n", "\r\n"))
        return [line.rstrip() for line in screen.display if line.rstrip()]


@pytest.fixture
def stdout(monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setattr(redraw.shutil, "get_terminal_size", lambda: os.terminal_size((20, 6)))
    return Screen()


def test_each_line_is_written_over_the_one_before(stdout: Screen) -> None:
    """Nothing is cleared, longer lines leave nothing behind, and there may be fewer or more of them."""
    with InPlace(stdout) as place:
        place.show(["a long line", "b", "c"])
        place.show(["short", "b"])
        assert stdout.shown() == ["short", "b"]
        place.show(["1", "2", "3", "4"])
    assert stdout.shown() == ["1", "2", "3", "4"]
    assert "\x1b[2J" not in stdout.getvalue()
    assert stdout.getvalue().endswith("\x1b[?25h")


def test_in_a_terminal_of_another_size_it_begins_anew(stdout: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written has moved, nobody knows where."""
    with InPlace(stdout) as place:
        place.show(["a", "b"])
        monkeypatch.setattr(redraw.shutil, "get_terminal_size", lambda: os.terminal_size((10, 6)))
        place.show(["c", "d"])
        place.show(["e", "f"])
    assert stdout.shown(10) == ["e", "f"]
    assert stdout.getvalue().count("\x1b[2J") == 1


def test_the_cursor_comes_back_whatever_happens(stdout: Screen) -> None:
    """It is hidden only while lines are replaced."""
    with pytest.raises(KeyboardInterrupt), InPlace(stdout):
        raise KeyboardInterrupt
    assert stdout.getvalue() == "\x1b[?25l\x1b[?25h"


def test_a_signal_that_ends_the_program_brings_the_cursor_back(stdout: Screen) -> None:
    """With the exit code that a shell gives it; afterwards the signal does what it did before."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, InPlace(stdout):
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143
    assert stdout.getvalue() == "\x1b[?25l\x1b[?25h"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_line_that_is_too_long_stays_one_line(stdout: Screen) -> None:
    """In a terminal narrower than any chart the end of a row is not seen, and nothing piles up."""
    with InPlace(stdout) as place:
        place.show(["a" * 30, "b"])
        place.show(["c" * 30, "d"])
    assert stdout.shown() == ["c" * 20, "d"]


def test_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines follow lines, and no escape sequence is written."""
    with InPlace() as place:
        place.show(["a"])
        place.show(["b"])
    assert capsys.readouterr().out == "a\nb\n"
