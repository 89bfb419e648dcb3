from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sdk

ROOT = str(Path(sdk.__file__).parent.parent)


def _python(code: str, cwd: Path, *, path: str = ROOT) -> str:
    """What a fresh interpreter prints, with `cwd` first on its path as `python -c` has it."""
    script = f"import sys; sys.path.insert(1, {path!r})\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_nothing_heavy(tmp_path: Path) -> None:
    """`import sdk` brings neither dependencies nor the standard library's slow modules."""
    heavy = "typing dataclasses logging json subprocess uuid msgpack numpy zmq lz4 threading inspect enum re collections.abc"
    code = (
        "before = set(sys.modules)\nimport sdk\n"
        f"print(sorted((set(sys.modules) - before) & set({heavy.split()!r})), "
        "sorted(m for m in set(sys.modules) - before if m.startswith('sdk')))"
    )
    assert _python(code, tmp_path) == "[] ['sdk']"


def test_before_init_there_is_no_run(tmp_path: Path) -> None:
    """`sdk.run` exists and is None, the version is a text."""
    assert _python("import sdk\nprint(sdk.run, hasattr(sdk, '__version__'))", tmp_path) == "None True"


@pytest.mark.parametrize("name", sorted(sdk._HOME))
def test_every_listed_name_exists(name: str) -> None:
    """Each name of the table can be fetched."""
    assert getattr(sdk, name) is not None
    assert name in dir(sdk)
    assert (name in sdk.__all__) == (not name.startswith("_"))


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As for any module, so that `hasattr` works."""
    with pytest.raises(AttributeError, match="no_such"):
        sdk.no_such  # noqa: B018


def test_stepd_is_the_same_module(tmp_path: Path) -> None:
    """Both names give one module, and submodules are not loaded twice."""
    code = (
        "import stepd, sdk\nimport stepd.testing, stepd.reader.run\nfrom stepd import settings\nimport sdk.testing\n"
        "print(stepd is sdk, stepd.testing is sdk.testing, sys.modules['stepd.reader.run'] is sys.modules['sdk.reader.run'],"
        " settings is sdk.settings, sdk.testing.__spec__.name, callable(stepd.main))"
    )
    assert _python(code, tmp_path) == "True True True True sdk.testing True"


def test_the_command_runs_in_a_directory_that_was_removed(tmp_path: Path) -> None:
    """As a shell may stand in one."""
    code = (
        "import os, runpy, sys\nos.mkdir('gone')\nos.chdir('gone')\nos.rmdir(os.path.abspath('../gone'))\n"
        "sys.path.insert(0, '/nowhere')\nsys.argv = ['stepd', '--version']\nrunpy.run_module('stepd', run_name='__main__')"
    )
    assert _python(code, tmp_path).startswith("stepd ")


def test_a_users_own_sdk_folder_does_not_hide_stepd(tmp_path: Path) -> None:
    """Where `import sdk` is somebody else's, `import stepd` loads ours under its own name."""
    (tmp_path / "sdk").mkdir()
    (tmp_path / "sdk" / "__init__.py").write_text("mine = True\n")
    code = (
        "import stepd, sdk\nfrom stepd.testing import captured\nimport stepd.settings\n"
        "with captured() as rows:\n    run = stepd.init(project='p')\n    stepd.log({'a': 1})\n    print(stepd.run is run)\n"
        "print(sdk.mine, stepd is sdk, stepd.Settings.__module__, rows)"
    )
    assert _python(code, tmp_path) == "True\nTrue False stepd.settings [{'a': 1}]"


def test_an_unknown_submodule_of_stepd_is_not_found(tmp_path: Path) -> None:
    """The alias does not invent modules."""
    code = "import stepd\ntry:\n    import stepd.nothing\nexcept ModuleNotFoundError as e:\n    print('stepd.nothing' in str(e))"
    assert _python(code, tmp_path) == "True"


def test_the_command_line_is_ours_in_any_directory(tmp_path: Path) -> None:
    """`python -m stepd` finds our daemon and sdk, whatever lies in the working directory."""
    for name in ("sdk", "daemon"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')\n")
    done = subprocess.run(
        [sys.executable, "-m", "stepd", "--version"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": ROOT},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sdk.__version__ in done.stdout
