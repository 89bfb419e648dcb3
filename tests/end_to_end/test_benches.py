"""The benchmarks run. What they measure is for people; that they measure what they say is for these tests."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_bench(directory: Path, *arguments: str, program: str = "media.py") -> tuple[dict[str, Any], str]:
    """What a benchmark found, and what it printed."""
    found = directory / "found.json"
    line = [sys.executable, str(ROOT / "benches" / program), "--json", str(found), *arguments]
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


def test_columns_bench(tmp_path: Path) -> None:
    """Runs that were laid out by numpy are read back as Parquet has them, become columns, and are told in bytes and ms."""
    few = ("--steps", "20000", "--kinds", "float32", "--repeat", "1", "--peers", "json", "--peer-steps", "100")
    markdown = tmp_path / "found.md"
    which = ("--only", "size", "read", "--markdown", str(markdown))
    found, printed = run_bench(tmp_path, *few, *which, program="columns.py")
    sizes = {(each["tool"], each["kind"]): each["bytes_per_step"] for each in found["size"]}
    # 5 values of 4 bytes whose mantissas are noise: whoever takes much less has lost something.
    assert 15 < sizes["stepd", "float32"] < 25 and sizes["json.dumps + write", "float32"] > 100
    ways = {each["way"]: each for each in found["read"] if each["state"] == "columns"}
    assert all(each["ms"] > 0 for each in ways.values()) and "stepd: to_pandas()" in ways
    assert "one metric of ten" in printed and "| stepd |" in markdown.read_text(encoding="utf-8")
    assert sorted(os.listdir(tmp_path)) == ["found.json", "found.md"]


def test_growth_bench(tmp_path: Path) -> None:
    """An axis ends with a table, no row lost, and a line that says where it bends; other parts are kept in the file."""
    (tmp_path / "found.json").write_text(json.dumps({"finished": [{"runs": 2}]}), encoding="utf-8")
    few = ("--steps", "500", "2000", "--live", "2", "--live-seconds", "0.3", "--keep")
    found, printed = run_bench(tmp_path, *few, "--only", "log", "live", program="growth.py")
    assert [each["calls"] for each in found["log"]] == [500, 2000] and found["log"][-1]["rows_lost"] == 0
    assert found["live"][0]["ended_well"] == 2 and found["live"][0]["rows_lost"] == 0
    assert ("p50: flat" in printed or "p50: bends at" in printed) and found["finished"] == [{"runs": 2}]
    assert os.listdir(tmp_path) == ["found.json"]


def test_sync_bench(tmp_path: Path) -> None:
    """A run is carried in points a second, from rows and from columns, and its target's bytes are counted."""
    few = "--only carry --steps 500 --repeat 1 --targets jsonl --peers"
    found, printed = run_bench(tmp_path, *few.split(), program="sync.py")
    ours = [(one["state"], one["points"]) for one in found["carry"]]
    assert ours == [("rows", 5000), ("columns", 5000)]
    assert all(one["seconds"] > 0 and one["bytes"] > 5000 for one in found["carry"])
    assert "stepd sync --to jsonl: (of columns)" in printed and os.listdir(tmp_path) == ["found.json"]


def test_fleet_bench(tmp_path: Path) -> None:
    """Each node ships its own ranks to one bucket, requests are counted, a second sync writes nothing, and a query finds all."""
    few = "--nodes 3 --ranks 2 --steps 50 --metrics 2 --wave 3 --engines DuckDB"
    found, printed = run_bench(tmp_path, *few.split(), program="fleet.py")
    shipped = found["shipped"]
    assert (shipped["ranks"], shipped["points"]) == (6, 600)
    assert shipped["objects"] >= 6 and shipped["requests_per_node"]["PUT"] >= 2
    assert shipped["requests_again"].get("PUT", 0) == 0
    assert [(one["engine"], one["ranks"]) for one in found["asked"]] == [("DuckDB", 6)]
    assert "3 nodes into one bucket" in printed and os.listdir(tmp_path) == ["found.json"]


def test_context_bench(tmp_path: Path) -> None:
    """Features work in turns and are compared with none, a captured line has its cost, and what was printed and told is stored."""
    few = ("--blocks", "1", "--steps", "3", "--lines", "50", "--repeat", "1", "--features", "nothing", "all together")
    found, printed = run_bench(tmp_path, *few, "--only", "loop", "line", program="context.py")
    features = {each["feature"]: each for each in found["loop"]}
    assert set(features) == {"nothing", "all together"} and features["nothing"]["slowdown_percent"] == 0
    told = {each["what"]: each["us"] for each in found["line"]}
    assert told["print, captured"] > 0 and told["lines and records of the last run, stored of written"] == "100 of 100"
    assert "a printed line" in printed and os.listdir(tmp_path) == ["found.json"]


@pytest.mark.parametrize(
    ("costs", "said"),
    [
        ([4.0, 2.0, 2.9], "flat (2 at 10, 2.9 at 100)"),
        ([4.0, 2.0, 3.1], "bends at 100 (3.1; 2 at 10)"),
        ([None, None, None], "not measured"),
    ],
)
def test_bend(costs: list[float | None], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a table bends is the first size behind the cheapest one at which the cost is over half as much again."""
    monkeypatch.syspath_prepend(str(ROOT / "benches"))
    growth = importlib.import_module("growth")
    results = [{"size": 10**n, "cost": cost} for n, cost in enumerate(costs)]
    assert growth.Bend("it", "cost").line("size", results) == f"it: {said}"


def test_peers_bench(tmp_path: Path) -> None:
    """Each tool ends with numbers in a table, nothing of ours is lost, and nothing is left behind."""
    few = ("--calls", "200", "--paces", "tight", "--kills", "1", "--kill-seconds", "0.02", "0.05", "--settle", "0.01")
    which = ("--tools", "stepd", "json", "--only", "latency", "kill")
    found, printed = run_bench(tmp_path, *few, *which, program="peers.py")
    latency = {(each["tool"], each["pace"]): each for each in found["latency"]}
    assert len(latency) == 2 and all(0 < each["p50"] <= each["max"] for each in latency.values())
    assert [each["lost"] for part in ("latency", "kill") for each in found[part] if each["tool"] == "stepd"] == [0, 0]
    assert all(0 <= each["lost"] <= each["calls"] for each in found["kill"])
    assert "one call with 5 metrics, µs" in printed and "SIGKILL of the trainer" in printed
    assert os.listdir(tmp_path) == ["found.json"]


def peer_results() -> dict[str, Any]:
    """What a run of two tools, of which one is not installed, might have found."""
    machine = {
        "date": "2026-01-02T03:04:05+00:00",
        "cpu": "c",
        "cpus_usable": 2,
        "memory_gib": 1,
        "kernel": "6",
        "python": "3",
    }
    tools = {
        "stepd": {"title": "stepd", "install": "", "version": "0.1"},
        "wandb": {"title": "wandb, offline", "install": "pip install wandb", "missing": "not installed"},
        "parquet": {"title": "Parquet (pyarrow)", "install": "pip install pyarrow", "version": "14"},
    }
    ours = {"tool": "stepd", "pace": "tight", "calls": 9, "p50": 1.25, "p99": 2.0, "p99.9": 30.4, "finish_ms": 5.0}
    ours |= {"cpu_us_per_call": 1.0, "finish_cpu_us_per_call": 0.5, "helpers_us_per_call": 0.25, "lost": 0}
    size = [{"tool": "stepd", "kind": kind, "steps": 7, "bytes_per_step": 18.26} for kind in ("float32", "float64")]
    kill = [{"tool": "stepd", "calls": 100, "lost": 0}]
    return {"machine": machine, "tools": tools, "minutes": 1.5, "latency": [ours], "size": size, "kill": kill}


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benches"))
    return importlib.import_module("peer_report")


def test_the_peers_numbers_get_into_the_pages(report: Any, tmp_path: Path) -> None:
    """Between the marks stands what was measured, with machine and date; the rest of the page stays, however often."""
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- peers:summary (a word) -->\nearlier\n<!-- /peers:summary -->\nafter\n", encoding="utf-8"
    )
    report.fill(str(page), peer_results())
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- peers:summary (a word) -->\n![") and text.endswith(
        "<!-- /peers:summary -->\nafter\n"
    )
    assert "| 1.25 / 2 / 30 | – |" in text and "| 1.5 / 0.25 | – |" in text and "| 18.3 / 18.3 | – |" in text
    assert "2026-01-02" in text and "earlier" not in text
    report.fill(str(page), peer_results())
    assert page.read_text(encoding="utf-8") == text
    assert report.missing(peer_results()) == [
        "wandb, offline: not installed. Try: pip install -e .[bench]   (pip install wandb)"
    ]
    with pytest.raises(SystemExit, match="no place marked"):
        (tmp_path / "other.md").write_text("nothing", encoding="utf-8")
        report.fill(str(tmp_path / "other.md"), peer_results())


def test_the_peers_figure(report: Any, tmp_path: Path) -> None:
    """A picture is drawn of whatever was measured, small enough to lie in the repository."""
    pytest.importorskip("matplotlib")
    report.draw(peer_results(), str(tmp_path / "peers.png"))
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "peers.png").stat().st_size < 120_000


def test_the_transaction_log_of_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Records that lie in pieces over blocks come back whole, and what a kill has torn off does not."""
    monkeypatch.syspath_prepend(str(ROOT / "benches"))
    tools = importlib.import_module("peer_tools")
    records = [b"a" * 10, b"b" * 70_000, b"c" * (32768 - 7), b"d" * 5]
    data = b":W&B\xe1\xbe\x00"
    for record in records:
        rest, first = record, True
        while rest or first:
            room = 32768 - len(data) % 32768
            if room < 7:
                data += bytes(room)
                continue
            piece, rest = rest[: room - 7], rest[room - 7 :]
            kind = (1 if first else 4) if not rest else (2 if first else 3)
            data += tools._LOG_HEADER.pack(0, len(piece), kind) + piece
            first = False
    path = tmp_path / "run.wandb"
    path.write_bytes(data)
    assert list(tools._log_records(str(path))) == records
    for cut in (1, 6, 11):
        path.write_bytes(data[:-cut])
        assert list(tools._log_records(str(path))) == records[:3]


def test_look_bench(tmp_path: Path) -> None:
    """A command in a terminal paints before it has ended; the live screen ends when it is told, and its trainers end well."""
    few = ("--runs", "5", "--repeat", "1", "--commands", "runs", "--live", "1", "--live-seconds", "0.1")
    found, printed = run_bench(tmp_path, *few, "--only", "many", "live", program="look.py")
    assert {each["code"] for each in found["many"]} == {0}
    assert all(0 < each["first_ms"] <= each["whole_ms"] for each in found["many"])
    (live,) = found["live"]
    assert (live["runs"], live["failed"]) == (1, 0)
    assert "first paint, ms" in printed
