"""scripts/_mutants.py: the list fits the code. Planting them all takes minutes and is a command of its own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def load() -> object:
    spec = importlib.util.spec_from_file_location("stepd_mutants", ROOT / "scripts" / "_mutants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


mutants = load()


def test_there_are_enough_and_each_has_a_name_of_its_own() -> None:
    """At least 25 bugs are planted."""
    names = [mutant.name for mutant in mutants.MUTANTS]  # type: ignore[attr-defined]
    assert len(names) == len(set(names)) >= 25


def test_each_finds_its_text_once_and_its_tests() -> None:
    """A mutant whose text has changed, or whose test was renamed, would be caught for the wrong reason."""
    for mutant in mutants.MUTANTS:  # type: ignore[attr-defined]
        text = (ROOT / mutant.file).read_text(encoding="utf-8")
        assert text.count(mutant.old) == 1, mutant.name
        assert mutant.new != mutant.old, mutant.name
        assert mutant.tests, mutant.name
        for test in mutant.tests:
            path, _, name = test.partition("::")
            body = (ROOT / path).read_text(encoding="utf-8")
            assert not name or f"def {name.partition('[')[0]}(" in body, f"{mutant.name}: {test}"
