from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sdk

ROOT = str(Path(sdk.__file__).parent.parent)
_START = """
import sys
from sdk import _api
from sdk.testing import CapturedStream

class Stream(CapturedStream):
    def finish(self, state, code, timeout):
        print(state, code, timeout)
        return super().finish(state, code, timeout)

_api.open_stream = lambda store, facts, settings, *, run_id, **o: Stream(run_id, settings, "main", 0, store.path)
import sdk
run = sdk.init(settings={"exit_seconds_max": 1.5})
"""


@pytest.mark.parametrize(
    ("end", "printed"),
    [
        ("", "finished 0 1.5"),
        ("1 / 0", "failed 1 1.5"),
        ("raise KeyboardInterrupt", "interrupted 130 1.5"),
        ("try:\n    1 / 0\nexcept ZeroDivisionError:\n    pass", "finished 0 1.5"),
        ("sdk.finish()", "finished 0 10.0"),
        ("import os\nif os.fork() == 0:\n    sys.exit()\nos.wait()", "finished 0 1.5"),
        ("sdk.run = None\ndel run", "finished 0 1.5"),
    ],
)
def test_a_script_that_ends_without_finish(tmp_path: Path, end: str, printed: str) -> None:
    """The run is finished with the state that the interpreter's end shows, in the process that made it, once."""
    done = subprocess.run(
        [sys.executable, "-c", _START + end], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": ROOT, "STEPD_SILENT": "1"},
    )  # fmt: skip
    assert done.stdout.splitlines() == [printed], done.stderr


def test_no_signal_handler_and_no_hook_is_installed(tmp_path: Path) -> None:
    """`init` leaves signals, `sys.excepthook`, `sys.exit` and the standard streams alone."""
    code = (
        "import signal, sys\nbefore = [signal.getsignal(s) for s in range(1, 32)], sys.excepthook, sys.exit, sys.stdout, sys.stderr\n"
        + _START
        + "after = [signal.getsignal(s) for s in range(1, 32)], sys.excepthook, sys.exit, sys.stdout, sys.stderr\n"
        "print(before == after)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": ROOT, "STEPD_SILENT": "1"},
    )  # fmt: skip
    assert done.stdout.splitlines()[0] == "True", done.stderr
