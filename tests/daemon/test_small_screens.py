"""Commands that say a line or two, in both terminals: `stepd set`, `stepd report`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.builders import make_run, make_store
from tests.terminal import LARGE, SMALL, same_screen, screen_of


@pytest.mark.parametrize(("name", "size"), [("80x24", SMALL), ("200x50", LARGE)])
def test_set_and_report(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    """What was set stands beside what was there; of a report its size and what is in it."""
    store = make_store(tmp_path)
    make_run(store, "a41f", [{"loss": 1 / (step + 1)} for step in range(9)], name="first", tags=["one"])
    words = ["set", "a41f", "name=baseline", "tags+=paper,v2", "notes=the one of the paper, with the longer warm-up"]
    text = screen_of(["--dir", store, *words], size)
    text += screen_of(["--dir", store, "report", "a41f", "-o", "report.html"], size, cwd=tmp_path)
    same_screen(f"set-report-{name}", re.sub(r"[0-9.]+ kB", "… kB", text))
