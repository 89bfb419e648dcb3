#!/usr/bin/env python3
"""Plants bugs, one at a time, and asks the tests that must notice.

    python scripts/mutants.py [--only TEXT] [--list]

A mutant (`_mutants.py`) is one exact text of the product replaced by a wrong one, in a copy of the tree, and the tests that
must fail then. The same tests pass on the untouched copy, which is tried first. One line for each mutant, with the first
test that noticed it; a survivor means that a test is missing. `tests/tidy/test_mutants.py` keeps the list true to the code.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("sdk", "daemon", "tests", "scripts", "docs", "stepd.py", "pyproject.toml")
# A mutant may make a test wait for what never comes; that counts as noticed.
SECONDS_MAX = 180


def python() -> str:
    """An interpreter that has pytest: this one, else the checkout's own."""
    try:
        import pytest  # noqa: F401
    except ImportError:
        own = ROOT / ".venv" / "bin" / "python"
        if not own.exists():
            sys.exit("error: pytest is not installed here. Try: bash scripts/test.sh once, it makes .venv")
        return str(own)
    return sys.executable


def copy_tree(target: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target / name)


def run_tests(tree: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """(exit code, output) of pytest in `tree`; 1 also when it took too long."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("STEPD_", "WANDB_"))}
    environment |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [python(), "-m", "pytest", "-x", "-q", "--no-header", *tests]
    process = subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=SECONDS_MAX)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return 1, f"no end within {SECONDS_MAX} s"
    return process.returncode, output


def plant(tree: Path, mutant: Mutant) -> None:
    path = tree / mutant.file
    text = path.read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, f"{mutant.name}: {mutant.file} holds its text {text.count(mutant.old)} times"
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def noticed_by(output: str) -> str:
    """The first test that failed; where pytest had to be killed, that it was."""
    failed = re.search(r"^(?:FAILED|ERROR) (?:\S*?/)*(\S+)", output, re.MULTILINE)
    return failed[1] if failed else output.splitlines()[-1]


def judge(tree: Path, mutant: Mutant) -> bool:
    """Whether the tests notice the mutant; prints the line."""
    begun = time.monotonic()
    original = (tree / mutant.file).read_bytes()
    plant(tree, mutant)
    try:
        code, output = run_tests(tree, mutant.tests)
    finally:
        (tree / mutant.file).write_bytes(original)
    # 1: tests ran and failed. Anything else (2: cannot be collected, 5: no tests) says nothing about the bug.
    word = {0: "SURVIVED", 1: "caught"}.get(code, f"pytest exited with {code}")
    by = f" ({noticed_by(output)})" if code == 1 else ""
    print(f"{word:<10} {time.monotonic() - begun:6.1f} s  {mutant.name}{by}", flush=True)
    if code != 1:
        print(output[-2000:] if code else f"           {mutant.file}; {' '.join(mutant.tests)}", flush=True)
    return code == 1


def main() -> int:
    parser = argparse.ArgumentParser("mutants.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", metavar="TEXT", help="mutants whose name or file holds this")
    parser.add_argument("--list", action="store_true", help="say what there is")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if not options.only or options.only in m.name or options.only in m.file]
    if options.list:
        for mutant in chosen:
            print(f"{mutant.file:<28} {mutant.name}")
        return 0
    with tempfile.TemporaryDirectory(prefix="stepd-mutants-") as directory:
        tree = Path(directory)
        copy_tree(tree)
        tests = tuple(dict.fromkeys(test for mutant in chosen for test in mutant.tests))
        code, output = run_tests(tree, tests) if tests else (0, "")
        if code:
            print(f"the tests fail without any mutant:\n{output[-4000:]}")
            return 2
        caught = sum([judge(tree, mutant) for mutant in chosen])
    print(f"{caught} of {len(chosen)} mutants caught")
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
