"""Shared by the tests of the Python surface: a process with a store, and streams and a reader in memory."""

from __future__ import annotations

import builtins
import os
from pathlib import Path
from typing import Any

import pytest

import sdk
from sdk import _api, _console, _globals, _resume
from sdk.segment.naming import run_path
from sdk.testing import CapturedRows, CapturedStream

_LAUNCHER_PREFIXES = ("SLURM_", "OMPI_", "PMI", "TORCHELASTIC_")
_LAUNCHER_NAMES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "MPI_LOCALRANKID",
    "PBS_JOBID",
    "LSB_JOBID",
)


class World:
    """What a test sees of the process.

    Attributes:
        store: The store's directory, which `STEPD_DIR` names.
        rows: What was logged; its `runs` are what the reader gives.
        opened: (stream, options of `open_stream`, facts) of every stream.
        stored: Runs that the reader knows besides, by id.
    """

    def __init__(self, store: Path) -> None:
        self.store = str(store)
        self.rows = CapturedRows()
        self.opened: list[tuple[CapturedStream, dict[str, Any], dict[str, Any]]] = []
        self.stored: dict[str, Any] = {}
        self.fail: list[Exception] = []

    def open_stream(self, store: Any, run_facts: Any, settings: Any, **options: Any) -> CapturedStream:
        if self.fail:
            raise self.fail.pop(0)
        os.makedirs(run_path(store.path, options["run_id"]), exist_ok=True)
        stream = self.rows.open_stream(store, run_facts, settings, **options)
        self.opened.append((stream, options, dict(run_facts)))
        return stream

    def add(self, run: Any) -> Any:
        """Makes the reader know a run."""
        self.stored[run.id] = run
        os.makedirs(run_path(self.store, run.id), exist_ok=True)
        return run

    @property
    def stream(self) -> CapturedStream:
        return self.opened[-1][0]

    @property
    def later(self) -> list[dict[str, Any]]:
        """The facts of the last stream after its first ones, without those of what accompanies a run."""
        return [facts for facts in self.stream.facts[1:] if "context" not in facts]

    # What `_resume.read_store` gives.

    def run(self, run_id: str) -> Any:
        return self.stored[run_id] if run_id in self.stored else self.rows.read(run_id)

    def runs(self, project: str | None = None) -> list[Any]:
        return [run for run in self.stored.values() if run.project == project]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A fresh process: no run, no launcher, a store of its own."""
    for name in list(os.environ):
        if name.startswith(_LAUNCHER_PREFIXES) or name in _LAUNCHER_NAMES:
            monkeypatch.delenv(name)
    made = World(tmp_path / "store")
    monkeypatch.setenv("STEPD_DIR", made.store)
    monkeypatch.setattr(_console, "begin", lambda run: None)
    monkeypatch.setenv("STEPD_ENVIRONMENT", "0")
    monkeypatch.setattr(_api, "open_stream", made.open_stream)
    monkeypatch.setattr(_resume, "read_store", lambda store: made)
    monkeypatch.delattr(builtins, "get_ipython", raising=False)
    state = _globals.state
    before = (state.run, state.last, state.unfinished, state.at_exit)
    state.run, state.last, state.unfinished, state.at_exit = None, None, {}, os.getpid()
    _reset_module()
    yield made
    for run in list(state.unfinished.values()):
        run.end("finished", 0, quiet=True)
    state.run, state.last, state.unfinished, state.at_exit = before
    _reset_module()


def _reset_module() -> None:
    for name in ("log", "config", "summary"):
        sdk.__dict__.pop(name, None)
    sdk.__dict__["run"] = None
