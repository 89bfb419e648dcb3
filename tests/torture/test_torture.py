"""Every torture with the counts of the default suite. All of them, with counts to choose: bash scripts/torture.sh."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.__main__ import line, load
from tests.torture.harness import TORTURES, Missing, Tally, Torture, run

load()

ROOT = Path(__file__).resolve().parents[2]
_MARKED = [
    pytest.param(torture, id=name, marks=[pytest.mark.aside] if torture.beside else [])
    for name, torture in TORTURES.items()
]


def main(name: str) -> None:
    """In that process: prints its line, or why this machine cannot run it."""
    torture = TORTURES[name]
    try:
        print(line("ok", torture, run(torture, torture.cases(full=False), Tally())))
    except Missing as missing:
        print(f"skip {missing}")


@pytest.mark.parametrize("torture", _MARKED)
def test_torture(torture: Torture) -> None:
    """Nothing is lost that is not reported; a failure names the case that shows it."""
    # Why a process: to fork one that has loaded a whole suite takes 100 ms.
    code = f"from tests.torture.test_torture import main; main({torture.name!r})"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    # What cannot be raised, of a file that nobody closed, is told there.
    assert done.returncode == 0, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    if done.stdout.startswith("skip"):
        pytest.skip(done.stdout)
    print(done.stdout)
