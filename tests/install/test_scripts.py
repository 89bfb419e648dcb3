"""What a first user meets in scripts/: a clear word where there is no Python, real gradients, nothing left running."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"


@pytest.fixture(scope="module", name="demo")
def _demo() -> ModuleType:
    pytest.importorskip("sklearn", reason="the digits lie in scikit-learn, of the extras 'demo' and 'test'")
    specification = importlib.util.spec_from_file_location("demo_train", SCRIPTS / "demo_train.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["demo_train"] = module
    try:
        specification.loader.exec_module(module)
    finally:
        del sys.modules["demo_train"]
    return module


def test_gradients_are_the_derivatives_of_the_loss(demo: ModuleType) -> None:
    """Each parameter's gradient agrees with a central difference of the loss at some of its places."""
    training, _ = demo.load(seed=3)
    batch = demo.Split(training.images[:16], training.labels[:16])
    network = demo.Network(hidden=7, generator=numpy.random.default_rng(4))
    found = network.gradients(batch, weight_decay=0.0).by_parameter
    width = 1e-6
    for parameter, gradient in zip(network.parameters, found):
        flat = parameter.reshape(-1)
        for place in (0, flat.size // 2, flat.size - 1):
            kept = flat[place]
            losses = []
            for value in (kept + width, kept - width):
                flat[place] = value
                losses.append(network.evaluate(batch)[0])
            flat[place] = kept
            assert gradient.reshape(-1)[place] == pytest.approx((losses[0] - losses[1]) / (2 * width), abs=1e-7)


def test_demo_logs_every_step_once(tmp_path: Path) -> None:
    """The trainer of the demo, without a daemon: each step holds what was logged, the last of an epoch the evaluation too."""
    pytest.importorskip("sklearn", reason="the digits lie in scikit-learn, of the extras 'demo' and 'test'")
    store = tmp_path / "store"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "STEPD_DIR": str(store), "STEPD_AUTOSTART": "0"}
    line = [sys.executable, str(SCRIPTS / "demo_train.py"), "--epochs", "2", "--batch-size", "64", "--name", "short"]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

    import sdk

    run = sdk.open_store(str(store)).runs()[0]
    steps_per_epoch = 1437 // 64
    for key in ("train/loss", "train/accuracy", "train/learning_rate", "train/gradient_norm"):
        assert list(run.series(key).step) == list(range(2 * steps_per_epoch))
    for key in ("val/loss", "val/accuracy"):
        assert list(run.series(key).step) == [steps_per_epoch - 1, 2 * steps_per_epoch - 1]
    assert run.summary["best_accuracy"] == max(run.series("val/accuracy").value)
    assert run.config["batch_size"] == 64


def test_missing_python_is_one_clear_error(tmp_path: Path) -> None:
    """With only an old Python on PATH, demo.sh says what it needs and how to name another, and makes nothing."""
    tree, tools = tmp_path / "tree", tmp_path / "tools"
    shutil.copytree(SCRIPTS, tree / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    tools.mkdir()
    for name in ("dirname", "rm"):
        found = shutil.which(name)
        assert found is not None
        (tools / name).symlink_to(found)
    old = tools / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, str(tree / "scripts" / "demo.sh")],
        env={"PATH": str(tools)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: no Python 3.10 or newer was found on PATH\n  Try: PYTHON=")
    assert not (tree / ".venv").exists()


def test_processes_that_outlive_a_script_are_found_by_their_environment() -> None:
    """A process that was started with the mark is named and killed; one without it is not."""
    finder = [sys.executable, str(SCRIPTS / "_processes.py"), "STEPD_SCRIPT_TEST=7"]
    sleeper = [sys.executable, "-c", "import sys, time; print('up', flush=True); time.sleep(600)"]
    assert subprocess.run(finder, capture_output=True, timeout=60).returncode == 0
    with subprocess.Popen(sleeper, env={**os.environ, "STEPD_SCRIPT_TEST": "7"}, stdout=subprocess.PIPE) as marked:
        assert marked.stdout is not None
        marked.stdout.readline()
        done = subprocess.run([*finder, "--kill"], capture_output=True, text=True, timeout=60)
        assert marked.wait(timeout=60) != 0
    assert done.returncode == 1
    assert f"still running: {marked.pid} " in done.stdout
