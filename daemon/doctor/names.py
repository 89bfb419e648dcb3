"""Python, its packages, and names that others use too: `daemon` and `sdk` are common words."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from daemon.doctor.finding import Finding, bad, note, ok, warn
from daemon.doctor.machine import Machine
from sdk import __version__
from sdk.errors import install_hint

# Where our packages lie: this one's grandparent.
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OLDEST, NEWEST = (3, 10), (3, 13)
# Import name -> what pip calls it; without these nothing is stored.
NEEDED = {"msgpack": "msgpack", "zmq": "pyzmq", "numpy": "numpy", "lz4": "lz4", "psutil": "psutil", "PIL": "pillow"}
# What brings it -> (import name, what it is for).
WISHED = {
    "av": ("av", "video"),
    "soundfile": ("soundfile", "audio"),
    "pyarrow": ("pyarrow", "Parquet"),
    "duckdb": ("duckdb", "sql"),
    "textual": ("textual", "watch"),
    "tsdownsample": ("tsdownsample", "thinning"),
}
# Limit: a console script is a few hundred bytes.
_SCRIPT_BYTES = 4096
_ASK_SECONDS = 4.0
# In a fresh interpreter, as a user starts one in this directory: what each name would import, with the directory and without.
_ASK = """\
import importlib.machinery, importlib.util, json, sys
def origin(name):
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    return (spec.origin or next(iter(spec.submodule_search_locations or ()), None)) if spec else None
def all_origins():
    return {name: origin(name) for name in ("sdk", "daemon", "stepd")}
here = all_origins()
sys.path[:] = [p for p in sys.path if p]
sys.path_importer_cache.clear()
print(json.dumps([here, all_origins()]))
"""


def check_python(machine: Machine) -> Iterator[Finding]:
    """Version, implementation, width, free threading, environment."""
    version = sys.version_info[:3]
    name, number = sys.implementation.name, ".".join(map(str, version))
    where = "" if sys.prefix == sys.base_prefix else f", environment {sys.prefix}"
    if name != "cpython":
        yield warn(f"{name} {number}: stepd is tested with CPython only")
    if sys.maxsize <= 2**32:
        yield bad("a Python of 32 bit: rings and indexes need 64", "python3 -c 'import sys; print(sys.maxsize)'")
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        yield note(f"Python {number} without GIL: not tested")
    if not OLDEST <= version[:2] <= NEWEST:
        yield note(f"Python {number}: tested are {_dotted(OLDEST)} to {_dotted(NEWEST)}")
    else:
        yield ok(f"CPython {number}{where}")


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def check_packages(machine: Machine) -> Iterator[Finding]:
    """What is needed can be imported; which optional ones are here."""
    for name, package in NEEDED.items():
        try:
            importlib.import_module(name)
        except Exception as error:  # a library built for another machine fails in its own ways
            yield bad(f"cannot import {name}: {error}", install_hint(package))
    found = {package for package, (name, _) in WISHED.items() if importlib.util.find_spec(name)}
    missing = [f"{package} ({use})" for package, (_, use) in WISHED.items() if package not in found]
    told = f"; not here, and only needed for what stands in brackets: {', '.join(missing)}" if missing else ""
    yield ok(f"{', '.join(NEEDED.values())} can be imported{told}")


class Command(NamedTuple):
    """A file on PATH that `daemon` or `stepd` would start.

    Attributes:
        python: The interpreter of a console script of ours; None: this is none.
        package: What in this environment owns it; "" for nothing.
    """

    path: str
    python: str | None
    package: str

    @property
    def is_ours(self) -> bool:
        return self.python is not None


def commands_on_path(name: str, path: str) -> list[Command]:
    """Every executable file of that name, in the order in which a shell looks."""
    owners = {
        os.path.realpath(str(entry.dist.locate_file(file))): entry.dist.name
        for entry in importlib.metadata.entry_points(group="console_scripts", name=name)
        if entry.dist is not None
        for file in entry.dist.files or ()
        if os.path.basename(str(file)) == name
    }
    found: dict[str, Command] = {}
    for directory in path.split(os.pathsep):
        file = os.path.join(directory or ".", name)
        if os.path.isfile(file) and os.access(file, os.X_OK):
            real = os.path.realpath(file)
            found.setdefault(real, Command(file, _python_of(file), owners.get(real, "")))
    return list(found.values())


def _python_of(path: str) -> str | None:
    """The interpreter of a console script of ours."""
    with (
        contextlib.suppress(OSError, ValueError),
        open(path, "rb") as file,
    ):  # ValueError: a first line with an odd quote
        text = file.read(_SCRIPT_BYTES).decode("utf-8", "replace")
        if "from stepd import" in text or "import stepd" in text:
            first = text.partition("\n")[0]
            # pip writes `#!/bin/sh` and `'''exec' "/long/path/python"` where the line would be too long.
            words = shlex.split(first[2:]) if first.startswith("#!") and "/sh" not in first else []
            return words[-1] if words else sys.executable
    return None


def check_commands(machine: Machine) -> Iterator[Finding]:
    """Whose `stepd` and `daemon` come first on PATH."""
    path = machine.environ.get("PATH", os.defpath)
    stepd, daemon = commands_on_path("stepd", path), commands_on_path("daemon", path)
    yield from _judge_stepd(stepd)
    strange = [command for command in daemon if not command.is_ours]
    if daemon and not daemon[0].is_ours:
        owner = f", of the package {daemon[0].package}" if daemon[0].package else ""
        yield warn(
            f"`daemon` is {daemon[0].path}{owner}: not ours. Debian's runs what follows as a program: `daemon rm FILE` deletes it",
            _instead(stepd, "daemon"),
        )
    elif daemon:
        behind = f"; behind it {', '.join(command.path for command in strange)}" if strange else ""
        yield ok(f"`daemon` is {daemon[0].path}{behind}")


def _judge_stepd(found: list[Command]) -> Iterator[Finding]:
    ours = os.path.join(os.path.dirname(sys.executable), "stepd")
    if not found:
        cure = f"export PATH={shlex.quote(os.path.dirname(ours))}:$PATH" if os.path.isfile(ours) else _module_alias()
        yield note("`stepd` is not on PATH", cure)
    elif not found[0].is_ours:
        yield warn(f"`stepd` is {found[0].path}, which is not ours", _module_alias())
    elif (other := found[0].python or "") and not _same_environment(other):
        yield note(f"`stepd` is {found[0].path}, of {other}; this is {sys.executable}", _module_alias())
    else:
        more = f"; also {', '.join(command.path for command in found[1:])}" if found[1:] else ""
        yield ok(f"`stepd` is {found[0].path}{more}")


def _same_environment(python: str) -> bool:
    """Not of the file that links lead to: environments share one Python."""
    return os.path.dirname(os.path.abspath(python)) == os.path.dirname(os.path.abspath(sys.executable))


def _module_alias() -> str:
    return f"alias stepd={shlex.quote(f'{shlex.quote(sys.executable)} -m stepd')}"


def _instead(stepd: list[Command], name: str) -> str:
    """How ours is called where another command has its name."""
    word = "stepd" if stepd and stepd[0].is_ours else f"{shlex.quote(sys.executable)} -m stepd"
    return f"{word} …   # instead of {name} …"


def check_imports(machine: Machine) -> Iterator[Finding]:
    """What `import sdk`, `import daemon` and `import stepd` give in this directory, and anywhere else."""
    try:
        here = os.getcwd()
    except OSError as error:
        yield warn(f"nobody can tell which directory this is ({error.strerror}): was it removed?", "cd ~")
        return
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=_ASK_SECONDS, cwd=here,
            env={name: value for name, value in machine.environ.items() if name != "PYTHONSTARTUP"},
        )  # fmt: skip
        inside, outside = json.loads(asked.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        yield warn(f"cannot ask this Python what it imports: {error}", f"{shlex.quote(sys.executable)} -c 'import sdk'")
        return
    yield from judge_imports(here, inside, outside)


def judge_imports(here: str, inside: dict[str, str | None], outside: dict[str, str | None]) -> Iterator[Finding]:
    """What is said of the files that each name gives in the directory `here`, and in others."""
    if outside["sdk"] is None and outside["stepd"] is None:
        yield warn(
            "stepd is not installed in this Python: scripts in other directories cannot import it",
            f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(ROOT)}   # that clone",
        )
    elif not _is_ours(outside["sdk"]):
        yield warn(f"`import sdk` gives {outside['sdk']}, not ours", "import stepd as sdk   # in the training script")
    elif not _is_ours(outside["daemon"]):
        yield note(f"`import daemon` gives {outside['daemon']}, not ours", "stepd …   # instead of python -m daemon …")
    else:
        yield ok(f"`import sdk` gives {outside['sdk']}")
    if inside["sdk"] != outside["sdk"] and not _is_ours(inside["sdk"]):
        yield warn(
            f"in {here} `import sdk` gives {inside['sdk']}, which hides ours",
            "import stepd as sdk   # in the training script: ours, by its own name",
        )
    if inside["daemon"] != outside["daemon"] and not _is_ours(inside["daemon"]):
        yield note(
            f"in {here} `python -m daemon` runs {inside['daemon']}", "python -m stepd …   # or stepd …, which is ours"
        )


def _is_ours(origin: str | None) -> bool:
    """Whether a module lies in one of the packages that run now."""
    if origin is None:
        return False
    real = os.path.realpath(origin)
    return any(real.startswith(os.path.realpath(os.path.join(ROOT, name)) + os.sep) for name in ("sdk", "daemon"))


def check_twins(machine: Machine) -> Iterator[Finding]:
    """Packages in this environment that bring files of our names, and several versions of us."""
    found: dict[str, set[str]] = {}
    for distribution in importlib.metadata.distributions():
        with contextlib.suppress(Exception):  # what an installer left half done
            name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
            found.setdefault(name, set()).add(distribution.version)
    yield from judge_twins(found)


def judge_twins(found: dict[str, set[str]]) -> Iterator[Finding]:
    """What is said of the versions of each package that is installed."""
    said = False
    for name in ("python-daemon", "daemon"):
        for version in sorted(found.get(name, ())):
            said = True
            yield note(
                f"{name} {version} has the import name `daemon` too. Both work; taking one away breaks the other",
                f"{shlex.quote(sys.executable)} -m pip install --force-reinstall --no-deps {name}   # after such a removal",
            )
    ours = sorted(found.get("stepd", ()))
    if len(ours) > 1:
        said = True
        yield warn(
            f"several versions of stepd are installed: {', '.join(ours)}; {__version__} runs",
            f"{shlex.quote(sys.executable)} -m pip uninstall -y stepd   # until none is left; then install one",
        )
    elif ours and ours[0] != __version__:
        said = True
        yield warn(
            f"stepd {ours[0]} is installed, and {__version__} runs, from {ROOT}",
            f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(ROOT)}   # that clone",
        )
    if not said:
        yield ok(f"stepd {__version__}, and no other package with our names")
