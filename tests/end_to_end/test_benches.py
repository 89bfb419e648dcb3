"""benches/media.py runs. What it measures is for people; that it measures what it says is for this test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run_bench(directory: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """What a benchmark found, and what it printed."""
    found = directory / "found.json"
    line = [sys.executable, str(ROOT / "benches" / "media.py"), "--json", str(found), *arguments]
    env = {**os.environ, "TMPDIR": str(directory)}
    done = subprocess.run(line, env=env, cwd=directory, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(found.read_text()), done.stdout


def test_media_bench(tmp_path: Path) -> None:
    """Each kind of case ends with numbers, nothing lost, everything equal, a table, and no store left behind."""
    few = ("--calls", "3", "--seconds", "0", "--load-seconds", "0.1")
    which = ("--values", "image-view", "--tools", "stepd", "--paces", "tight", "--loads", "list")
    found, printed = run_bench(tmp_path, *few, *which)
    (held,) = found["held"]
    assert held["calls"] == 5 and held["lost"] == 0
    assert 0 < held["p50_ms"] <= held["p99_ms"] and held["copy_ms"] > 0
    (load,) = found["sustained"]
    assert (load["media_logged"], load["media_not_equal"], load["rows_lost"]) == (108, 0, 0)
    assert load["scalar_us"]["p50"] > 0 and load["daemon_memory"]["rss_max_mb"] > 0
    assert "image, HWC view of CHW" in printed and "a list of 108 images" in printed
    assert os.listdir(tmp_path) == ["found.json"]
