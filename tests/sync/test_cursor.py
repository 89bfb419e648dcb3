"""daemon.sync.cursor, and what targets make of a state that somebody else has written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.sync import cursor as module
from daemon.sync.carrying import carry_run
from daemon.sync.cursor import Cursor, cursor_path
from daemon.sync.outcome import FAILED
from daemon.sync.place import parse
from daemon.sync.registry import make
from sdk.errors import StoreError
from tests.builders import make_run, make_store
from tests.sync.test_sync_command import stepd


@pytest.fixture(name="store")
def _store(tmp_path: Path) -> str:
    path = make_store(tmp_path)
    make_run(path, "a41f", [{"loss": 1.0}] * 3)
    return path


class TestTooLarge:
    """A cursor that nothing would read."""

    def test_it_is_not_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """And the one before it stays as it was."""
        cursor = Cursor(cursor_path(str(tmp_path), "a41f"), "a41f", "jsonl:x")
        cursor.write()
        before = Path(cursor.path).read_bytes()
        monkeypatch.setattr(module, "_BYTES_MAX", 1000)
        cursor.state = {"text": "x" * 1000}
        with pytest.raises(StoreError, match="expected at most 1000"):
            cursor.write()
        assert Path(cursor.path).read_bytes() == before

    def test_it_does_not_count_as_not_there(self, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The run fails and says why, instead of being carried from its first row at each pass."""
        target = make(parse(f"jsonl:{tmp_path / 'out'}"))
        assert carry_run(store, "a41f", target).is_exact
        monkeypatch.setattr(module, "_BYTES_MAX", 100)
        found = carry_run(store, "a41f", target)
        assert found.state == FAILED
        assert "expected at most 100" in found.reason


def test_a_dry_run_tells_of_a_newer_cursor(store: str, tmp_path: Path) -> None:
    """The run is named, and the others are planned all the same."""
    url = f"jsonl:{tmp_path / 'out'}"
    assert stepd(store, "--all", "--to", url).exit_code == 0
    (path,) = (tmp_path / "out").rglob("a41f.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 9}))
    make_run(store, "b7c2", [{"loss": 1.0}])
    result = stepd(store, "--all", "--to", url, "--dry-run")
    assert (result.exit_code, "1 of 2 runs would be carried" in result.stdout) == (0, True)
    assert "a41f: " in result.stderr
    assert "is of format 9" in result.stderr


def _jsonl(state: dict[str, Any], out: str) -> None:
    state["lengths"][out] = 0


def _steps(state: dict[str, Any], out: str) -> None:
    state["steps"] = [out]


def _directory(state: dict[str, Any], out: str) -> None:
    state["directory"] = out


def _lane(state: dict[str, Any], out: str) -> None:
    state["files"][out] = {"length": 0, "tags": {}}


def _lanes(state: dict[str, Any], out: str) -> None:
    state["lanes"]["0" * 16] = out


def _where(state: dict[str, Any], out: str) -> None:
    state["where"] = out


def _files(state: dict[str, Any], out: str) -> None:
    state["files"]["rows"][out] = 4


def _facts(state: dict[str, Any], out: str) -> None:
    state["facts"][out] = ""


def _made(state: dict[str, Any], out: str) -> None:
    state["made"] = out


@pytest.mark.parametrize("is_absolute", [False, True])
@pytest.mark.parametrize(
    ("scheme", "change"),
    [
        ("jsonl", _jsonl), ("jsonl", _directory), ("jsonl", _steps), ("tensorboard", _directory), ("tensorboard", _lane),
        ("tensorboard", _lanes), ("parquet", _where), ("parquet", _files), ("parquet", _facts), ("parquet", _made),
    ],
)  # fmt: skip
def test_a_state_leads_nowhere_else(
    store: str, tmp_path: Path, scheme: str, change: Callable[[dict[str, Any], str], None], is_absolute: bool
) -> None:
    """Who may write into the target cannot have files elsewhere made, cut or removed: the run is carried from its first row."""
    target = make(parse(f"{scheme}:{tmp_path / 'out'}"))
    assert carry_run(store, "a41f", target).is_exact
    target.close()
    victim = tmp_path / "victim"
    victim.mkdir()
    for name in ("rows-0000000000000000.jsonl", "events.out.tfevents.1.x.stepd.0000", "a.parquet"):
        (victim / name).write_text("mine")
    before = {path: path.read_bytes() for path in victim.rglob("*")}
    (path,) = (tmp_path / "out" / ".stepd-sync").rglob("a41f.json")
    whole = json.loads(path.read_text())
    change(whole["state"], str(victim) if is_absolute else "../../../../victim")
    path.write_text(json.dumps(whole))
    found = carry_run(store, "a41f", make(parse(f"{scheme}:{tmp_path / 'out'}")))
    assert found.is_exact, found
    assert found.points == 3
    assert {path: path.read_bytes() for path in victim.rglob("*")} == before
