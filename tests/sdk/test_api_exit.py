from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import sdk
from sdk import _hooks

ROOT = str(Path(sdk.__file__).parent.parent)
_START = """
import os, sys
from sdk import _api
from sdk.testing import CapturedStream

class Stream(CapturedStream):
    def append_meta(self, facts):
        self.error = facts.get("error")
    def finish(self, state, code, timeout):
        error = getattr(self, "error", None)
        print(state, code, timeout, *[error["type"]] if error else [], flush=True)
        return super().finish(state, code, timeout)

_api.open_stream = lambda store, facts, settings, *, run_id, **o: Stream(run_id, settings, "main", 0, store.path)
import sdk
"""
_INIT = 'run = sdk.init(settings={"exit_seconds_max": 1.5})\n'

_ENDS = [
    ("pass", "finished 0 1.5"),
    ("1 / 0", "failed 1 1.5 ZeroDivisionError"),
    ("raise KeyboardInterrupt", "interrupted 130 1.5 KeyboardInterrupt"),
    ("try:\n    1 / 0\nexcept ZeroDivisionError:\n    pass", "finished 0 1.5"),
    ("sdk.finish()", "finished 0 10.0"),
    ("if os.fork() == 0:\n    sys.exit()\nos.wait()", "finished 0 1.5"),
    ("sdk.run = None\ndel run", "finished 0 1.5"),
    # By sys.exit and SystemExit.
    ("sys.exit()", "finished 0 1.5"),
    ("sys.exit(0)", "finished 0 1.5"),
    ("sys.exit(7)", "failed 7 1.5"),
    ("sys.exit(1 << 70)", "failed -1 1.5"),
    ("sys.exit(True)", "failed 1 1.5"),
    ("def main():\n    sys.exit(5)\nmain()", "failed 5 1.5"),
    ("sys.exit('no data')", "failed 1 1.5 SystemExit"),
    ("import argparse; argparse.ArgumentParser().error('x')", "failed 2 1.5"),
    ("exit(6)", "failed 6 1.5"),
    ("quit()", "finished 0 1.5"),
    ("raise SystemExit(3)", "failed 3 1.5"),
    ("raise SystemExit('no data')", "failed 1 1.5 SystemExit"),
    ("raise SystemExit", "finished 0 1.5"),
    ("def main():\n    return 3\nraise SystemExit(main())", "finished 0 1.5"),
    ("def main():\n    raise SystemExit(3)\nmain()", "failed 1 1.5 SystemExit"),
    # What was caught, or belongs to another thread, says nothing.
    ("try:\n    sys.exit(3)\nexcept SystemExit:\n    pass", "finished 0 1.5"),
    ("import threading\nt = threading.Thread(target=sys.exit, args=(3,)); t.start(); t.join()", "finished 0 1.5"),
    ("import threading\nt = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()", "finished 0 1.5"),
    ("import code; code.InteractiveInterpreter().runsource('1 / 0')", "finished 0 1.5"),
    ("import code; code.InteractiveInterpreter().runsource('1 / 0')\nsys.exit(4)", "failed 4 1.5"),
    # A hook of the user's that ends the process in its own way, and a wrapper above ours.
    ("sys.excepthook = lambda *error: sys.exit(9)\n1 / 0", "failed 1 1.5 ZeroDivisionError"),
    ("ours = sys.exit\nsys.exit = lambda code: ours(code + 1)\nsys.exit(1)", "failed 2 1.5"),
]


def _script(tmp_path: Path, code: str, *options: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": ROOT, "STEPD_SILENT": "1", "STEPD_CONSOLE": "off"}, input=given,
    )  # fmt: skip


def test_a_script_that_ends_without_finish(tmp_path: Path) -> None:
    """The run is finished with the state that the script's end shows, in the process that made it, once."""
    # One script with all ends, of which each child runs one: its own text, since what tells is the main module's frame.
    code = _START + (
        f"for number in range({len(_ENDS)}):\n    if os.fork() == 0:\n        break\n    os.wait()\nelse:\n    os._exit(0)\n"
        "print(number, end=' ', flush=True)\n" + _INIT
    )
    for number, (end, _) in enumerate(_ENDS):
        code += f"if number == {number}:\n{textwrap.indent(end, '    ')}\n"
    done = _script(tmp_path, code)
    assert done.stdout.splitlines() == [f"{n} {printed}" for n, (_, printed) in enumerate(_ENDS)], done.stderr


_CHILD = """
import multiprocessing
def train(how):
    sdk.init(settings={"exit_seconds_max": 1.5})
    exec(how)
if __name__ == "__main__":
    for how in ("pass", "1 / 0", "sys.exit(3)", "sys.exit()"):
        child = multiprocessing.get_context("fork").Process(target=train, args=(how,))
        child.start()
        child.join()
"""


@pytest.mark.parametrize("before", ["", _INIT])
def test_a_child_of_multiprocessing(tmp_path: Path, before: str) -> None:
    """It leaves without the interpreter's own end; its run ends as it does all the same, whether its parent has one or not."""
    failed = "failed 1 1.5" if sys.version_info >= (3, 13) else "failed 1 1.5 ZeroDivisionError"
    ends = ["finished 0 1.5", failed, "failed 3 1.5", "finished 0 1.5"]
    done = _script(tmp_path, _START + before + _CHILD)
    assert done.stdout.splitlines() == ends + ["finished 0 1.5"] * bool(before), done.stderr


def test_an_exit_that_was_imported_before(tmp_path: Path) -> None:
    """What it was called with cannot be known; that is no failure."""
    done = _script(tmp_path, "from sys import exit\n" + _START + _INIT + "exit(0)")
    assert done.stdout.splitlines() == ["finished 0 1.5"], done.stderr


def test_a_prompt_says_nothing_of_a_run(tmp_path: Path) -> None:
    """What failed at a prompt, or before ``python -i`` gave one, does not make its run a failed one."""
    done = _script(tmp_path, _START + _INIT, "-i", given="1 / 0\n")
    assert done.stdout.splitlines() == ["finished 0 1.5"], done.stderr


def test_init_leaves_hooks_and_handlers_alone(tmp_path: Path) -> None:
    """`init` changes no signal handler and no excepthook. `sys.exit` is ours while a run is, and then what it was."""
    code = (
        "import signal, sys, threading\n"
        "def seen(): return [signal.getsignal(s) for s in range(1, 32)], sys.excepthook, threading.excepthook, sys.unraisablehook\n"
        "call = type(exit).__call__\n"
        "before, leave = seen(), sys.exit\n" + _START + _INIT + "other = sdk.init(reinit='create_new')\n"
        "same = before == seen()\nrun.finish()\nmine = sys.exit\nother.finish()\n"
        "print(same, mine is not leave, sys.exit is leave and type(exit).__call__ is call)\n"
        "sys.exit = mine\nsdk.init()\nsys.exit = lambda code: mine(code)\ntheirs = sys.exit\nsdk.finish()\nprint(sys.exit is theirs)"
    )
    lines = _script(tmp_path, code).stdout.splitlines()
    assert [line for line in lines if "finished" not in line] == ["True True True", "True"]


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    """With `watch_exit=False` nothing is put anywhere; an exception is found all the same."""
    start = _START + "leave = sys.exit\nsdk.init(settings={'watch_exit': False, 'exit_seconds_max': 1.5})\n"
    done = _script(
        tmp_path, start + "print(sys.exit is leave, flush=True)\nif os.fork():\n    os.wait()\n    1 / 0\nsys.exit(3)"
    )
    assert done.stdout.splitlines() == ["True", "failed 1 1.5 ZeroDivisionError"]


def test_any_exit_can_be_wrapped(tmp_path: Path) -> None:
    """One without a name too; and runs that come and go below a wrapper of somebody else's do not pile up."""
    code = (
        "import functools\n" + _START + "sys.exit = functools.partial(sys.exit, 5)\n" + _INIT + "run.finish()\n"
        "print(type(sys.exit).__name__)\nsdk.init()\nours = sys.exit\nsys.exit = lambda: ours()\n"
        "for _ in range(200):\n    sdk.init(reinit=True, settings={'exit_seconds_max': 1.5})\nsys.exit()"
    )
    lines = _script(tmp_path, code).stdout.splitlines()
    assert (lines[1], lines[-1]) == ("partial", "failed 5 1.5")


def test_what_an_exception_becomes() -> None:
    """Its type, its text and the traceback as Python prints it, with its cause; nothing of it can raise, all of it is bounded."""

    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    try:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ValueError("x" * 100_000 + "\ud800") from inner
    except ValueError as error:
        facts = _hooks.error_facts(error)
    assert facts["type"] == "ValueError"
    assert facts["traceback"].startswith("Traceback (most recent call last):")
    assert "KeyError: 'inner'" in facts["traceback"]
    assert "characters left out" in facts["message"]
    assert len(facts["message"]) < _hooks.MESSAGE_CHARACTERS_MAX + 100
    assert len(facts["traceback"]) < _hooks.TRACEBACK_CHARACTERS_MAX + 100
    assert _hooks.error_facts(Odd())["message"] == "<its text cannot be had>"
    assert _hooks.error_facts(sdk.UsageError("y"))["type"] == "sdk.errors.UsageError"


def test_a_notebook_keeps_errors_of_old_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under IPython the end of the process is an interruption, whatever failed before."""
    monkeypatch.setattr("builtins.get_ipython", lambda: None, raising=False)
    monkeypatch.setattr("sys.last_value", ValueError(), raising=False)
    assert _hooks.process_end() == ("interrupted", 0, None)
