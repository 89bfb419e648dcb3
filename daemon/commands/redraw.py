"""Lines that are replaced where they stand in a terminal, without flicker: each is written over the one before, nothing is cleared."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, TextIO

_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
_ERASE_TO_END, _ERASE_BELOW, _CLEAR = "\x1b[K", "\x1b[J", "\x1b[2J\x1b[H"
# Between these the terminal cuts a line that is too long; one that took two rows would be counted as one.
_CUT, _WRAP = "\x1b[?7l", "\x1b[?7h"
# What ends a program from outside, and would leave the cursor hidden.
_ENDING = (signal.SIGTERM, signal.SIGHUP)


class InPlace:
    """As a context, at whose end the last lines stay and the cursor is behind them. Where that is no terminal, lines follow lines.

    There must be fewer lines than the terminal has. Meanwhile SIGTERM and SIGHUP end the program by `SystemExit`, so that the cursor
    comes back.

    Args:
        out: Where to; None: stdout.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = sys.stdout if out is None else out
        self._is_terminal = self._out.isatty()
        self._lines = 0
        self._size = shutil.get_terminal_size()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> InPlace:
        if self._is_terminal:
            with contextlib.suppress(ValueError):  # not in the main thread
                self._before = {number: signal.signal(number, _end) for number in _ENDING}
            self._out.write(_HIDE_CURSOR)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_terminal:
            # The terminal may be gone: that is what SIGHUP says.
            with contextlib.suppress(OSError):
                self._out.write(_SHOW_CURSOR)
                self._out.flush()
            for number, before in self._before.items():
                signal.signal(number, before)

    def show(self, lines: Sequence[str]) -> None:
        """Writes lines over those of the call before. In a terminal of another size than then, where those have moved, it begins anew."""
        if not self._is_terminal:
            self._out.write("".join(f"{line}\n" for line in lines))
            self._out.flush()
            return
        size = shutil.get_terminal_size()
        start = "" if not self._lines else _CLEAR if size != self._size else f"\x1b[{self._lines}A\r"
        self._size, self._lines = size, len(lines)
        text = "".join(f"{line}{_ERASE_TO_END}\n" for line in lines)
        self._out.write(f"{_CUT}{start}{text}{_ERASE_BELOW}{_WRAP}")
        self._out.flush()


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
