r"""Folding: what a terminal would show of what one thread writes, line by line. Pure.

Progress bars write a line again and again: back to its beginning (`\r`), backspaces, and, where several bars stand below one
another, up with the cursor (`ESC [ A`) and down with newlines. Of a line that was rewritten only the last state is a line;
colours and other escapes are left out, as what is stored is read by people and searched.

Without any of these characters, text is split at newlines and nothing else happens: that path is taken a million times.
"""

from __future__ import annotations

import functools
from collections import deque
from typing import Any

# Limit: rows that the cursor may come back to; nested bars take one each.
ROWS_MAX = 32
# Limit: a line without an end is cut here, so that a program that never ends one does not fill the memory.
LINE_CHARACTERS_MAX = 64 * 1024


class Folding:
    """The lines of one thread and stream.

    Attributes:
        line: What stands in the cursor's row, not yet ended.
        is_folded: Whether the cursor was moved, and what comes may change what was written.
    """

    __slots__ = ("_above", "_below", "_column", "_stored", "is_folded", "line")

    def __init__(self) -> None:
        self.line = ""
        self._column: int | None = None  # where the cursor stands in its row; None: behind its last character
        self._stored: str | None = None  # what was given out of the cursor's row already
        self._above: deque[tuple[str, str | None]] = deque(maxlen=ROWS_MAX)
        self._below: list[tuple[str, str | None]] = []
        self.is_folded = False

    def feed(self, text: str) -> list[str]:
        """Takes what was written; the lines that it completes."""
        if self.is_folded or "\r" in text or "\x1b" in text or "\b" in text:
            return self._fold(text)
        if "\n" not in text:
            self.line += text
            return [] if len(self.line) <= LINE_CHARACTERS_MAX else self._cut()
        lines = (self.line + text).split("\n")
        self.line = lines.pop()
        if self._above:
            self._above.clear()
        if len(text) > LINE_CHARACTERS_MAX // 2:
            lines = [piece for line in lines for piece in _pieces(line)] + self._cut()
        return lines

    def settle(self) -> list[str]:
        """Everything that is not given out yet, as lines, and begins anew."""
        lines = [piece for line in self.live() for piece in _pieces(line)]
        self.__init__()  # type: ignore[misc]
        return lines

    def live(self) -> list[str]:
        """The lines that are not ended, as they look now, from the top."""
        rows = [*self._above, (self.line, self._stored), *self._below] if self.is_folded else [(self.line, None)]
        return [text.rstrip() for text, stored in rows if text != stored and text.strip()]

    def _cut(self) -> list[str]:
        """What the cursor's row has too much. Always at the same places, however the text came."""
        *lines, self.line = _pieces(self.line)
        self._column = None if lines else self._column
        return lines

    # -- with a cursor -----------------------------------------------------------------------------------------------

    def _fold(self, text: str) -> list[str]:
        self.is_folded = True
        lines: list[str] = []
        for token in _tokens().findall(text):
            if token == "\n":
                self._down(lines)
            elif token == "\r":
                self._column = 0
            elif token == "\b":
                self._column = max((len(self.line) if self._column is None else self._column) - 1, 0)
            elif token[0] == "\x1b":
                self._escape(token)
            else:
                self._put(token)
                lines += self._cut()
        # Back to the fast path where plain text goes on behind what is given out.
        if not self._below and not self.line and not self._column and not self.live():
            self.is_folded, self._column = False, None
        return lines

    def _put(self, text: str) -> None:
        column = self._column
        if column is None or column >= len(self.line):
            self.line = self.line.ljust(column or 0) + text
            self._column = None
            return
        end = column + len(text)
        self.line = self.line[:column] + text + self.line[end:]
        self._column = end if end < len(self.line) else None

    def _down(self, lines: list[str]) -> None:
        """A newline: into the row below, or into a new one, with which everything above is final."""
        self._above.append((self.line, self._stored))
        self._column = None
        if self._below:
            self.line, self._stored = self._below.pop(0)
            self._column = 0
            return
        last = len(self._above) - 1
        for index, (text, stored) in enumerate(self._above):
            # An empty line that was printed is a line; an empty row that a bar left behind is none.
            if text != stored and (text.strip() or (index == last and stored is None)):
                lines.append(text.rstrip())
        given = [(text, text) for text, _ in self._above]
        self._above.clear()
        self._above.extend(given)
        self.line, self._stored = "", None

    def _up(self) -> None:
        if len(self._below) < ROWS_MAX:
            self._column = len(self.line) if self._column is None else self._column
            self._below.insert(0, (self.line, self._stored))
            self.line, self._stored = self._above.pop() if self._above else ("", "")

    def _escape(self, token: str) -> None:
        """Of all escapes only those that move within the last rows, or erase, change what is read."""
        final, argument = token[-1], token[2:-1]
        count = int(argument) if argument.isdecimal() and len(argument) < 4 else 1
        here = len(self.line) if self._column is None else self._column
        if not token.startswith("\x1b["):
            return
        if final in "AF":
            for _ in range(min(count, ROWS_MAX)):
                self._up()
            self._column = 0 if final == "F" else self._column
        elif final == "K":
            whole, from_start = argument == "2", argument == "1"
            self.line = "" if whole else " " * here + self.line[here:] if from_start else self.line[:here]
            self._column = here
        elif final == "G":
            self._column = max(count - 1, 0)
        elif final == "D":
            self._column = max(here - count, 0)
        elif final == "C":
            self._column = here + count
        elif final == "J" and argument in ("", "0"):
            self.line, self._column = self.line[:here], here
            self._below = [("", stored) for _, stored in self._below]


def moves_cursor(text: str) -> bool:
    """Whether a text does anything with the cursor but begin a new line: colours do not."""
    return bool(_moves().search(text))


@functools.cache
def _moves() -> Any:
    import re

    return re.compile(r"\r(?!\n)|[\b]|\x1b\[[0-?]*[A-KS-T]")


def _pieces(line: str) -> list[str]:
    if len(line) <= LINE_CHARACTERS_MAX:
        return [line]
    return [line[start : start + LINE_CHARACTERS_MAX] for start in range(0, len(line), LINE_CHARACTERS_MAX)]


@functools.cache
def _tokens() -> Any:
    """Newlines, returns, backspaces, escapes (CSI; OSC, as titles and links; two characters), a cut one at the end, and text."""
    import re

    return re.compile(
        r"[\n\r\b]|\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)?|\x1b[\[\]]?[ -~]?|[^\n\r\b\x1b]+"
    )
