"""The wheel, as a user gets it: built from a copy of the tree, installed into an environment of its own, used elsewhere.

The tree itself is importable, so only this shows what a wheel lacks. The environment is new and gets the wheel by a real
pip; what stepd depends on comes from the environment that runs the tests, put *behind* it on the path by a .pth file. (A
.pth found that way is not read, so an editable install of the tree there cannot answer for a file that the wheel lacks.)
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("sdk", "daemon")
SECONDS_MAX = 60

TRAIN = """
import sys
import stepd
run = stepd.init(dir=sys.argv[1], project="install", id="r1")
for step in range(100):
    stepd.log({"loss": step / 2})
stepd.finish()
series = stepd.open_store(sys.argv[1]).run("r1").series("loss")
assert list(series.step) == list(range(100)), series.step
assert list(series.value) == [step / 2 for step in range(100)], series.value
print("complete")
"""


class Environment(NamedTuple):
    """A virtual environment that has the wheel."""

    directory: Path

    @property
    def python(self) -> str:
        return str(self.directory / "bin" / "python")

    def script(self, name: str) -> str:
        return str(self.directory / "bin" / name)

    @property
    def packages(self) -> Path:
        found = list(self.directory.glob("lib/python*/site-packages"))
        assert len(found) == 1, found
        return found[0]


def run(*command: str, cwd: Path) -> str:
    """The output of a command that must go well, started far from the tree and from the caller's settings."""
    steering = ("PYTHON", "STEPD_DIR", "STEPD_MODE", "WANDB_", "VIRTUAL_ENV", "PIP_TARGET", "PIP_PREFIX")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS_MAX
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pip(*arguments: str, cwd: Path) -> str:
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments, cwd=cwd)


def version() -> str:
    match = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert match is not None
    return match[1]


@pytest.fixture(scope="module", name="wheel")
def _wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="the wheel is built by hatchling, of the extra 'test'")
    directory = tmp_path_factory.mktemp("wheel")
    tree = directory / "tree"
    tree.mkdir()
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "stepd.py"):
        shutil.copy(ROOT / name, tree / name)
    # No isolation: hatchling is here already, and a test of the wheel needs no network.
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(directory), str(tree), cwd=directory)
    (found,) = directory.glob("*.whl")
    return found


def make_environment(directory: Path, *installs: tuple[str, ...]) -> Environment:
    """A new environment; `installs` are the arguments of one pip each, in this order."""
    run(sys.executable, "-m", "venv", "--without-pip", str(directory), cwd=directory.parent)
    environment = Environment(directory)
    for arguments in installs:
        pip("--python", environment.python, "install", "--no-index", *arguments, cwd=directory.parent)
    # Only now, so that pip has seen an empty environment and installed everything for real.
    outer = dict.fromkeys((sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]))
    (environment.packages / "zz-dependencies.pth").write_text("".join(f"{path}\n" for path in outer))
    return environment


@pytest.fixture(scope="module", name="installed")
def _installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return make_environment(tmp_path_factory.mktemp("installed") / "venv", ("--no-deps", str(wheel)))


@contextlib.contextmanager
def a_store(environment: Environment, directory: Path) -> Iterator[Path]:
    """A path for a store; the daemon that serves it is stopped at the end, whatever happened."""
    store = directory / "store"
    try:
        yield store
    finally:
        pid = daemon_pid(environment, store)
        if pid:
            try:
                run(environment.script("stepd"), "stop", "--dir", str(store), cwd=directory)
            except (AssertionError, subprocess.TimeoutExpired):
                os.kill(pid, signal.SIGKILL)
                raise


def daemon_pid(environment: Environment, store: Path) -> int:
    """The pid of the store's daemon, 0 if there is none."""
    if not store.exists():
        return 0
    answer = run(environment.script("stepd"), "status", "--json", "--dir", str(store), cwd=store.parent)
    return json.loads(answer).get("pid") or 0


def check_round_trip(environment: Environment, directory: Path) -> None:
    """Logs and reads a run in `directory`; a daemon of this environment came up for it, and goes when told."""
    with a_store(environment, directory) as store:
        (directory / "train.py").write_text(TRAIN)
        assert "complete" in run(environment.python, "train.py", str(store), cwd=directory)
        pid = daemon_pid(environment, store)
        assert pid, "init() started no daemon"
        assert "r1" in run(environment.python, "-m", "stepd", "runs", "--dir", str(store), cwd=store)
        run(environment.script("stepd"), "stop", "--dir", str(store), cwd=directory)
        assert daemon_pid(environment, store) == 0


def test_wheel_holds_every_file_of_both_packages_and_nothing_else(wheel: Path) -> None:
    """Modules, py.typed, the licence and both commands are in the wheel; tests, benches and scripts are not."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        information = f"stepd-{version()}.dist-info"
        entry_points = archive.read(f"{information}/entry_points.txt").decode()
    expected = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names - {name for name in names if name.startswith(information)} == expected | {"stepd.py"}
    assert {"sdk/py.typed", "daemon/py.typed", f"{information}/licenses/LICENSE"} <= names
    assert "stepd = stepd:main" in entry_points
    assert "daemon = stepd:main" in entry_points


def test_what_is_imported_is_the_wheel(installed: Environment, tmp_path: Path) -> None:
    """All three names come from the new environment, not from the tree."""
    code = "import stepd, sdk, daemon; print(stepd.__file__, sdk.__file__, daemon.__file__)"
    for path in run(installed.python, "-c", code, cwd=tmp_path).split():
        assert path.startswith(str(installed.packages)), path


@pytest.mark.parametrize("name", ["stepd", "daemon"])
def test_both_commands_tell_the_version(installed: Environment, name: str, tmp_path: Path) -> None:
    """`stepd --version` and `daemon --version` print the version of pyproject.toml."""
    assert version() in run(installed.script(name), "--version", cwd=tmp_path)


def test_run_is_logged_and_read_by_the_wheel_alone(installed: Environment, tmp_path: Path) -> None:
    """init, log, finish, reading, the command line and the daemon all work from the installed files."""
    check_round_trip(installed, tmp_path)


def test_files_of_the_user_do_not_shadow_the_daemon(installed: Environment, tmp_path: Path) -> None:
    """A `daemon.py` and a package `sdk` beside train.py harm neither `import stepd` nor the start of the daemon."""
    (tmp_path / "daemon.py").write_text("raise SystemExit('the daemon.py of the user was run')\n")
    (tmp_path / "sdk").mkdir()
    (tmp_path / "sdk" / "__init__.py").write_text("mine = True\n")
    (tmp_path / "mine.py").write_text("import sdk, stepd\nassert sdk.mine and stepd.init and stepd.log\n")
    run(installed.python, "mine.py", cwd=tmp_path)
    check_round_trip(installed, tmp_path)


@pytest.fixture(scope="module", name="python_daemon")
def _python_daemon(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The arguments with which pip installs python-daemon and what it needs, from files fetched once."""
    directory = tmp_path_factory.mktemp("python-daemon")
    try:
        pip("download", "--only-binary", ":all:", "--dest", str(directory), "python-daemon", cwd=directory)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"python-daemon cannot be fetched here: {str(error)[-300:]}")
    return ("--find-links", str(directory), "python-daemon")


@pytest.mark.parametrize("order", ["before", "after"])
def test_python_daemon_and_stepd_work_beside_each_other(
    wheel: Path, python_daemon: tuple[str, ...], order: str, tmp_path: Path
) -> None:
    """Both own a package `daemon`; whichever pip installs second, both distributions keep working."""
    ours = ("--no-deps", str(wheel))
    installs = (python_daemon, ours) if order == "before" else (ours, python_daemon)
    environment = make_environment(tmp_path / "venv", *installs)
    code = (
        "import daemon, daemon.pidfile, daemon.cli, daemon.server\n"
        "print(daemon.DaemonContext(detach_process=False).is_open, daemon.pidfile.PIDLockFile.__name__)"
    )
    assert run(environment.python, "-c", code, cwd=tmp_path).split() == ["False", "PIDLockFile"]
    assert version() in run(environment.script("daemon"), "--version", cwd=tmp_path)
    check_round_trip(environment, tmp_path)
