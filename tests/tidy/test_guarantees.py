"""docs/guarantees.md: every line of its matrix names what shows it, and that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.torture.__main__ import load
from tests.torture.harness import TORTURES

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")


def matrix() -> list[list[str]]:
    """The cells of the matrix, line by line."""
    lines = TEXT.partition("## The matrix")[2].partition("\n## ")[0].splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    return [row for row in cells if row[0] != "what happens"]


def names_of(row: list[str]) -> list[str]:
    return re.findall(r"`([^`]+)`", row[-1])


@pytest.mark.parametrize("row", matrix(), ids=lambda row: row[0][:40])
def test_each_line_names_what_shows_it(row: list[str]) -> None:
    """The last column holds tortures of scripts/torture.sh, or tests with their file."""
    load()
    assert len(row) == 6, row
    names = names_of(row)
    assert names, row[0]
    for name in names:
        path, _, test = name.partition("::")
        if test:
            assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), name
        else:
            assert name in TORTURES, name


def test_the_failures_that_users_ask_about_are_there() -> None:
    """Containers, power, network file systems and laptops each have their line, and every torture shows something."""
    text = " ".join(row[0] for row in matrix())
    for word in ("container", "power loss", "NFS", "suspended", "SIGKILL", "fsync", "disk is full"):
        assert word in text, word
    load()
    unnamed = [name for name in TORTURES if f"`{name}`" not in TEXT]
    assert not unnamed, unnamed
