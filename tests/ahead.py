"""Tortures that run while tests of single functions do: those use one core, and machines have two.

A process of its own does one torture after the other, each in a process as `test_torture.py` starts it, and leaves what came of it as a
file. It begins with the first test of tests/sdk, since what comes before kills, stops and times real processes. Whoever needs a torture
claims it first; what was claimed is waited for.

    python -m tests.ahead DIRECTORY NAME...
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

Done = subprocess.CompletedProcess[str]
ROOT = Path(__file__).resolve().parents[1]
_ENOUGH = "enough"


def in_a_process(name: str) -> Done:
    """Runs a torture. Why not here: to fork a process that has loaded a whole suite takes 100 ms."""
    code = f"from tests.torture.test_torture import main; main({name!r})"
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


class Ahead:
    """The process that runs ahead, as the tests see it; without one everything is run when it is asked for."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._directory = ""

    def begin(self, names: Sequence[str]) -> None:
        """Starts it, once."""
        if self._process is None and names:
            self._directory = tempfile.mkdtemp(prefix="stepd-ahead-")
            command = [sys.executable, "-m", "tests.ahead", self._directory, *names]
            self._process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)

    def enough(self) -> None:
        """It does nothing more behind what it is doing."""
        if self._process is not None:
            Path(self._directory, _ENOUGH).touch()

    def result(self, name: str) -> Done:
        """What came of a torture; runs it if nobody has."""
        if self._process is None or _claim(self._directory, name):
            return in_a_process(name)
        path = Path(self._directory, f"{name}.json")
        while not path.exists():
            assert self._process.poll() is None, "the process that runs tortures ahead has died"
            time.sleep(0.05)
        return Done([], **json.loads(path.read_text(encoding="utf-8")))

    def end(self) -> None:
        """Ends it, wherever it is."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            shutil.rmtree(self._directory, ignore_errors=True)


AHEAD = Ahead()


def _claim(directory: str, name: str) -> bool:
    """Whether a torture is ours to run."""
    try:
        os.close(os.open(os.path.join(directory, name), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def main(directory: str, names: Sequence[str]) -> None:
    for name in names:
        if os.path.exists(os.path.join(directory, _ENOUGH)):
            return
        if _claim(directory, name):
            done = in_a_process(name)
            told = {"returncode": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
            draft = Path(directory, f"{name}.draft")
            draft.write_text(json.dumps(told), encoding="utf-8")
            draft.rename(draft.with_suffix(".json"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
