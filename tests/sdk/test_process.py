from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sdk
from sdk import _process
from sdk._secrets import MASK

ROOT = str(Path(__file__).resolve().parents[2])
TELL = "import json\nfrom sdk import _process\nprint(json.dumps(_process.program()))\n"


def told(arguments: list[str], directory: Path, stdin: str = "", **environment: str) -> dict[str, Any]:
    """What a process that was started like this says its main script is."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=directory, input=stdin, capture_output=True, text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": ROOT, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("{"))
    found: dict[str, Any] = json.loads(line)
    return found


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A script, a package that can be run, and a directory that can."""
    for name in ("train.py", "package/__init__.py", "package/__main__.py", "package/fit.py", "app/__main__.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("" if name.endswith("__init__.py") else TELL)
    return tmp_path


def test_what_the_main_script_is(program: Path) -> None:
    """For each way to start Python."""
    script = str(program / "train.py")
    assert told(["train.py"], program) == {"kind": "script", "name": "train.py", "path": script}
    assert told(["-m", "package.fit"], program) == {
        "kind": "module", "name": "python -m package.fit", "path": str(program / "package" / "fit.py"), "module": "package.fit",
    }  # fmt: skip
    assert told(["-m", "package"], program)["module"] == "package"
    assert told(["app"], program) == {"kind": "script", "name": "app", "path": str(program / "app" / "__main__.py")}
    assert told(["-c", TELL], program) == {"kind": "command", "name": "python -c"}
    assert told(["-"], program, stdin=TELL) == {"kind": "stdin", "name": "python"}
    assert told(["-i", "-"], program, stdin=TELL)["kind"] == "interactive"
    profiled = told(["-m", "cProfile", "train.py"], program)
    assert profiled in (
        {"kind": "script", "name": "train.py", "path": script, "under": "cProfile"},
        {"kind": "script", "name": "train.py", "path": script},  # from Python 3.12 on the profiler hides itself
    )


def test_a_console_script(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an installer put beside the interpreter."""
    directory = program / "bin"
    directory.mkdir()
    monkeypatch.setattr(sys, "executable", str(directory / "python"))
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(directory / "fit"))
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys, "argv", [str(directory / "fit"), "--lr", "1"])
    assert _process.program() == {"kind": "console script", "name": "fit", "path": str(directory / "fit")}


def test_a_notebook(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Known by its kernel; its file where the front end says it."""
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setattr("builtins.get_ipython", lambda: None, raising=False)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert _process.program() == {"kind": "notebook", "name": "notebook"}
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "a.ipynb"))
    assert _process.program() == {"kind": "notebook", "name": "a.ipynb", "path": str(tmp_path / "a.ipynb")}


def test_the_facts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Command with masked secrets, directory, Python, selected variables, launcher."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py", "--api-key", "s3cr3t", "\udcff"])
    environ = {"USER": "ada", "NCCL_DEBUG": "INFO", "OTHER": "x", "HF_TOKEN": "s3cr3t", "TORCHELASTIC_RUN_ID": "7"}
    facts = _process.describe(environ, {"rank": 0, "job_id": None})
    assert facts["command"] == ["python", "train.py", "--api-key", MASK, "?"]
    assert facts["cwd"] == str(tmp_path) and facts["pid"] == os.getpid() and facts["user"] == "ada"
    assert facts["python"]["version"] == ".".join(map(str, sys.version_info[:3])) and ROOT in facts["python"]["path"]
    assert facts["environment"] == {"NCCL_DEBUG": "INFO", "HF_TOKEN": MASK, "TORCHELASTIC_RUN_ID": "7"}
    assert facts["launcher"] == {"name": "torchrun", "rank": 0}
    assert "hydra" not in facts


def test_a_directory_that_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A removed working directory is no reason to fail."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert _process.describe({})["cwd"] is None


def test_facts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the command, the path and the variables are."""
    monkeypatch.setattr(sys, "orig_argv", ["x" * 3000] * 900)
    monkeypatch.setattr(sys, "path", ["/" + "y" * 3000] * 900)
    facts = _process.describe({f"CUDA_{number}": "z" * 3000 for number in range(900)})
    assert len(json.dumps(facts)) < 4 * _process._BYTES_MAX
    assert facts["command"][-1] == facts["python"]["path"][-1] == list(facts["environment"].values())[-1] == "…"


def test_where_hydra_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own directory and its output; a Hydra that is not set up is none."""

    class Runtime:
        cwd, output_dir = "/start", "/start/outputs/1"

    class Configured:
        runtime = Runtime

    class HydraConfig:
        is_there = True

        @classmethod
        def initialized(cls) -> bool:
            return cls.is_there

        @classmethod
        def get(cls) -> type[Configured]:
            return Configured

    class Module:
        pass

    Module.HydraConfig = HydraConfig  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hydra.core.hydra_config", Module)  # type: ignore[arg-type]
    assert _process.describe({})["hydra"] == {"cwd": "/start", "output": "/start/outputs/1"}
    HydraConfig.is_there = False
    assert "hydra" not in _process.describe({})


def test_ranks_that_share_a_run_leave_it_to_rank_0(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With runs of their own each tells of itself."""
    monkeypatch.delenv("STEPD_ENVIRONMENT")
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2"), ("TORCHELASTIC_RUN_ID", "7")):
        monkeypatch.setenv(name, value)

    def pids(**options: Any) -> list[int]:
        sdk.init(reinit=True, **options)
        return [facts["context"]["pid"] for facts in world.stream.facts if "pid" in facts.get("context", ())]

    assert pids(id="one") == [] and pids() == [os.getpid()]
    monkeypatch.setenv("RANK", "0")
    assert pids(id="two") == [os.getpid()]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, {"git": True, "diff": True, "code": True}),
        ({"disable_git": True}, {"git": False, "diff": True, "code": True}),
        ({"save_code": False}, {"git": True, "diff": True, "code": False}),
        ({"disable_code": True}, {"git": True, "diff": False, "code": False}),
        ({"environment": False}, None),
    ],
)
def test_settings_say_what_may_be_kept(
    world: Any, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], kept: dict[str, bool] | None
) -> None:
    """Each part can be switched off, and all of it."""
    monkeypatch.delenv("STEPD_ENVIRONMENT")
    sdk.init(settings=settings)
    told = [facts["context"] for facts in world.stream.facts if "kept" in facts.get("context", ())]
    assert [facts["kept"] for facts in told] == ([] if kept is None else [kept])
