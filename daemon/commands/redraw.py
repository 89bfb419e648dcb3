"""Lines that are replaced where they stand in a terminal, without flicker: each is written over the one before, nothing is cleared."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TextIO

_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
_ERASE_TO_END, _ERASE_BELOW, _CLEAR = "\x1b[K", "\x1b[J", "\x1b[2J\x1b[H"


class InPlace:
    """As a context, at whose end the last lines stay and the cursor is behind them. Where that is no terminal, lines follow lines.

    There must be fewer lines than the terminal has.

    Args:
        out: Where to; None: stdout.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = sys.stdout if out is None else out
        self._is_terminal = self._out.isatty()
        self._lines = 0
        self._size = shutil.get_terminal_size()

    def __enter__(self) -> InPlace:
        if self._is_terminal:
            self._out.write(_HIDE_CURSOR)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_terminal:
            self._out.write(_SHOW_CURSOR)
            self._out.flush()

    def show(self, lines: Sequence[str]) -> None:
        """Writes lines over those of the call before. In a terminal of another size than then, where those have moved, it begins anew."""
        if not self._is_terminal:
            self._out.write("".join(f"{line}\n" for line in lines))
            self._out.flush()
            return
        size = shutil.get_terminal_size()
        start = "" if not self._lines else _CLEAR if size != self._size else f"\x1b[{self._lines}A\r"
        self._size, self._lines = size, len(lines)
        self._out.write(start + "".join(f"{line}{_ERASE_TO_END}\n" for line in lines) + _ERASE_BELOW)
        self._out.flush()
