"""A terminal of a given size without a window: a real command in a pseudo-terminal, its output read by an emulator (pyte).

`screen_of` runs a command to its end and gives what a person would then see. `Terminal` stays, for screens that are worked with keys.
`same_screen` compares with a text kept in tests/screens/; `STEPD_TEST_WRITE_SCREENS=1` writes it instead, to be looked at before it is
committed.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import pyte

SCREENS = Path(__file__).parent / "screens"
ROOT = Path(__file__).parent.parent
SMALL, LARGE = (80, 24), (200, 50)
_DEADLINE_SECONDS = 60.0
_SCROLLED_LINES = 5_000


class Terminal:
    """One command in a terminal; as a context, which kills what is left of it.

    Args:
        words: Arguments of `stepd`; `program` replaces it.
        size: Columns and lines.
        env: Over the test's own environment.
    """

    def __init__(
        self,
        words: Sequence[str],
        size: tuple[int, int] = SMALL,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        program: Sequence[str] = (sys.executable, "-m", "stepd"),
    ) -> None:
        self._screen = pyte.HistoryScreen(*size, history=_SCROLLED_LINES, ratio=1.0)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        self._main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        whole = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", **(env or {})}
        for name in ("NO_COLOR", "COLUMNS", "LINES"):
            if name not in (env or {}):
                whole.pop(name, None)
        self.process = subprocess.Popen(
            [*program, *words], stdin=side, stdout=side, stderr=side, env=whole, cwd=cwd, start_new_session=True
        )
        os.close(side)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.hang_up()

    def press(self, keys: str) -> None:
        r"""Types; ``\r`` is enter, ``\x1b`` escape, ``\x1b[A`` an arrow up."""
        os.write(self._main, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """As a window that is drawn larger."""
        self._screen.resize(lines, columns)
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        os.killpg(self.process.pid, signal.SIGWINCH)

    def hang_up(self) -> None:
        """The terminal is gone. The command has a session of its own, but no controlling terminal: no signal tells it."""
        main, self._main = self._main, -1
        if main >= 0:
            os.close(main)

    def text(self) -> str:
        """The lines that are on the screen now, without blanks at their ends."""
        return _joined(self._screen.display)

    def scrolled(self) -> str:
        """All lines since the beginning: what a person would have scrolled away, and the screen."""
        above = ["".join(line[x].data for x in range(self._screen.columns)) for line in self._screen.history.top]
        return _joined([*above, *self._screen.display])

    def colors(self, line: int) -> list[str]:
        """The foreground colour of each character of a line of the screen."""
        return [self._screen.buffer[line][x].fg for x in range(self._screen.columns)]

    def read_for(self, seconds: float) -> bool:
        """Takes what comes, waiting at most so long for it; False once the command has closed its terminal."""
        if not select.select([self._main], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._main, 1 << 16)
        except OSError:  # EIO: the last process that held the other end is gone
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)

    def until(self, condition: Callable[[str], bool] | str) -> str:
        """Reads until the screen fulfils a condition, or shows a text; the screen.

        Raises:
            AssertionError: It did not within a minute, or the command ended before.
        """
        meets = condition if callable(condition) else lambda text: condition in text
        deadline = time.monotonic() + _DEADLINE_SECONDS
        is_open = True
        while not meets(self.text()):
            assert is_open, f"the command has ended; the screen:\n{self.text()}"
            assert time.monotonic() < deadline, f"not within {_DEADLINE_SECONDS:.0f} s; the screen:\n{self.text()}"
            is_open = self.read_for(0.2)
        return self.text()

    def ended(self) -> int:
        """Reads to the end; the exit code.

        Raises:
            AssertionError: It did not end within a minute.
        """
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while self.read_for(0.2):
            assert time.monotonic() < deadline, f"did not end; the screen:\n{self.text()}"
        return self.process.wait(_DEADLINE_SECONDS)


def screen_of(words: Sequence[str], size: tuple[int, int] = SMALL, *, code: int = 0, **more: object) -> str:
    """What `stepd` has written when it has ended, all lines, as a terminal of this size shows them. Other arguments: of `Terminal`."""
    with Terminal(words, size, **more) as terminal:  # type: ignore[arg-type]
        assert terminal.ended() == code, terminal.scrolled()
        return terminal.scrolled()


def same_screen(name: str, text: str) -> None:
    """Compares with tests/screens/NAME.txt."""
    path = SCREENS / f"{name}.txt"
    if os.environ.get("STEPD_TEST_WRITE_SCREENS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    kept = path.read_text(encoding="utf-8") if path.exists() else "(none is kept)"
    assert text == kept, f"the screen differs from tests/screens/{name}.txt:\n{text}"


def _joined(lines: Sequence[str]) -> str:
    text = "\n".join(line.rstrip() for line in lines)
    return text.rstrip("\n") + "\n"
