"""Worker processes of the daemon: started when there is work, one of a kind at a time, never waited for.

A worker is exec'd, so that it shares nothing with the thread that serves; it finds its work on the disk and ends by itself.
It may be killed at any moment, and is told to end when the daemon leaves.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

# After one that ended, before the next of its kind: work that came meanwhile is done together.
_PAUSE_SECONDS = 2.0
# After one that ended in trouble; twice as long after each further one.
_TROUBLE_SECONDS = 60.0
_TROUBLE_SECONDS_MAX = 3600.0
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# As in sdk._spawn: nothing of the working directory is found, and what is found is what we were loaded from.
_CODE = """\
import runpy, sys
sys.path[:] = [p for p in sys.argv.pop(1).split(':') if p]
runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)
"""


class Worker:
    """One kind of worker.

    Attributes:
        wanted: Whether there may be work.
    """

    def __init__(self, module: str, arguments: Sequence[str], say: Callable[[str], None]) -> None:
        self._module = module
        self._arguments = list(arguments)
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._not_before = 0.0
        self._trouble_seconds = _TROUBLE_SECONDS
        self.wanted = False

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def look(self, now: float) -> None:
        """Starts one if there is work, looks after one that has ended."""
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return
            self._process = None
            self._note_end(code, now)
        if self.wanted and now >= self._not_before:
            self.wanted = False
            self._start(now)

    def _note_end(self, code: int, now: float) -> None:
        if not code:
            self._trouble_seconds = _TROUBLE_SECONDS
            self._not_before = now + _PAUSE_SECONDS
            return
        # Killed, or refused by the disk: what it was to do is still there.
        self.wanted = True
        self._not_before = now + self._trouble_seconds
        self._say(f"{self._module} ended with {code}; again in {self._trouble_seconds:g} s")
        self._trouble_seconds = min(2 * self._trouble_seconds, _TROUBLE_SECONDS_MAX)

    def _start(self, now: float) -> None:
        path = os.pathsep.join([_ROOT, *(entry for entry in sys.path if entry and entry != _ROOT)])
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CODE, path, self._module, *self._arguments],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=True, cwd="/",
            )  # fmt: skip
        except OSError as error:  # too many processes; the next look tries again
            self.wanted = True
            self._not_before = now + _TROUBLE_SECONDS
            self._say(f"{self._module} cannot be started: {error}")

    def end(self, seconds: float = 0.0) -> None:
        """Tells a running one to end, and kills it if it has not within `seconds`."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
