"""Two installations side by side, of different versions: trainers and daemons of either understand each other."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sdk
from sdk import _spawn
from sdk.transport import request
from tests.end_to_end.world import steps, until, until_drained

ROOT = Path(__file__).parents[2]
NEWER = "9.9.9"

SCRIPT = """\
import os, sys, time
sys.path.insert(0, sys.argv[1])
import sdk
assert sdk.__file__.startswith(sys.argv[1]), sdk.__file__
run = sdk.init(id=sys.argv[4], project="handover")
n = 0
while not os.path.exists(sys.argv[2]):
    run.log({"x": n}, commit=False)
    run.log({"y": n})
    n += 1
    time.sleep(0.001)
if sys.argv[3] == "killed":
    print(n, flush=True)
    os.kill(os.getpid(), 9)
run.finish()
print(n, flush=True)
"""


def install(target: Path, *, newer: bool) -> Path:
    """A copy of both packages; a newer one has another version, speaks one more wire version and says one thing more."""
    for package in ("sdk", "daemon"):
        shutil.copytree(ROOT / package, target / package, ignore=shutil.ignore_patterns("__pycache__"))
    if newer:
        replace(target / "sdk/__init__.py", f'__version__ = "{sdk.__version__}"', f'__version__ = "{NEWER}"')
        replace(target / "sdk/limits.py", "WIRE_VERSION = 1\n", "WIRE_VERSION = 2\n")
        replace(
            target / "sdk/wire/messages.py",
            "    daemon: str\n    limits: dict[str, int]\n",
            '    daemon: str\n    limits: dict[str, int]\n    news: str = "none"\n',
        )
    return target


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


def command(installation: Path, *arguments: str) -> str:
    """Runs `stepd` of an installation; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "daemon", *arguments], cwd=installation, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Script:
    """A trainer of an installation, in an interpreter of its own, that logs until it is told."""

    def __init__(self, installation: Path, directory: Path, end: str = "finished", run: str = "run") -> None:
        directory.mkdir(exist_ok=True)
        (directory / "train.py").write_text(SCRIPT, encoding="utf-8")
        self._told = directory / "told"
        self._process = subprocess.Popen(
            [sys.executable, directory / "train.py", str(installation), str(self._told), end, run],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def stop(self, code: int = 0) -> int:
        """Tells it to end and waits; how many rows it logged."""
        self._told.touch()
        out, text = self._process.communicate(timeout=60)
        assert self._process.returncode == code, text
        return int(out)


def until_rows(store: Path, count: int, run: str = "run") -> None:
    """Waits until the run can be read and holds more than so many rows."""

    def there() -> bool:
        try:
            return len(steps(store, run, "y")) > count
        except sdk.Error:
            return False

    until(there)


def holds(store: Path, rows: int, name: str = "run") -> None:
    """The run is complete: every row, both pieces."""
    run = sdk.open_store(store).run(name)
    assert run.gaps == [] and run.damage == []
    for key in ("x", "y"):
        assert run.series(key).value.tolist() == list(range(rows))


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    return install(tmp_path / "newer", newer=True)


@pytest.mark.parametrize("daemon_is_newer", [True, False], ids=["newer daemon", "newer trainer"])
def test_trainer_and_daemon_of_neighbouring_versions(
    store: Path, tmp_path: Path, newer: Path, daemon_is_newer: bool
) -> None:
    """Each side speaks the other's version: the records go through the daemon, and none is lost."""
    served, trained = (newer, ROOT) if daemon_is_newer else (ROOT, newer)
    command(served, "start")
    assert (request(str(store), "status")["version"] == NEWER) is daemon_is_newer
    trainer = Script(trained, tmp_path / "script")
    until_rows(store, 50)
    rows = trainer.stop()
    assert request(str(store), "status")["records"] >= rows, "they went another way"
    holds(store, rows)


def test_restart_from_the_newer_installation_hands_over(store: Path, tmp_path: Path, newer: Path) -> None:
    """While a trainer of the older one logs: the newer daemon serves it, and nothing is lost or there twice."""
    command(ROOT, "start")
    trainer = Script(ROOT, tmp_path / "script")
    until_rows(store, 50)
    assert f"serving {store}" in command(newer, "restart")
    assert request(str(store), "status")["version"] == NEWER
    before = len(steps(store, "run", "y"))
    until(lambda: request(str(store), "status")["records"] > 100)
    until_rows(store, before + 100)
    rows = trainer.stop()
    holds(store, rows)
    assert sdk.open_store(store).run("run").state == "finished"


def test_a_daemon_whose_installation_is_gone_serves_on(store: Path, tmp_path: Path) -> None:
    """A virtual environment was deleted under it: it takes runs, drains the dead, answers and leaves as ever."""
    installation = install(tmp_path / "gone", newer=False)
    command(installation, "start")
    pid = request(str(store), "status")["pid"]
    shutil.rmtree(installation)
    trainer = Script(ROOT, tmp_path / "first")
    until_rows(store, 20)
    holds(store, trainer.stop())
    assert request(str(store), "settle") == {}
    assert request(str(store), "status")["pid"] == pid
    trainer = Script(ROOT, tmp_path / "second", "killed", "second")
    until_rows(store, 20, "second")
    rows = trainer.stop(-signal.SIGKILL)
    until_drained(store)
    holds(store, rows, "second")
    assert request(str(store), "flush") == {}
    assert "stopped the daemon" in command(ROOT, "stop")
    assert not _spawn.is_serving(str(store))
    log = (store / "daemon.log").read_text(encoding="utf-8")
    assert "Traceback" not in log and "unexpected" not in log, log
    assert not os.path.exists(installation)
