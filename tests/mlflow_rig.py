"""A real MLflow server with SQLite, one for all tests of a process: it takes seconds to start.

What runs is what `mlflow server` starts, with the variables that it sets: its own two processes, which import all of MLflow only to
watch that one, would make the start 8 s instead of 3.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.metadata
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.serving import until

_START_SECONDS = 90.0


class TrackingServer:
    """A server on a port of this machine. Its files are below `directory`, its data base is `database`."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="stepd-mlflow-test-"))
        self.database = self.directory / "mlflow.db"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.uri = f"http://127.0.0.1:{free.getsockname()[1]}"
        store = f"sqlite:///{self.database}"
        told = {
            "_MLFLOW_SERVER_FILE_STORE": store, "_MLFLOW_SERVER_REGISTRY_STORE": store, "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/", "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONWARNINGS": "ignore",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(self.directory / "artifacts"),
        }  # fmt: skip
        command = ["--host", "127.0.0.1", "--port", self.uri.rpartition(":")[2], "mlflow.server.fastapi_app:app"]
        with open(self.directory / "server.log", "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", *command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory, env={**os.environ, **told},
            )  # fmt: skip
        atexit.register(self.stop)
        until(self._answers, "an MLflow server", _START_SECONDS)

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self.directory / "server.log").read_text()
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def select(self, query: str, *values: str) -> list[Any]:
        """What its data base answers."""
        with contextlib.closing(sqlite3.connect(self.database)) as database:
            return database.execute(query, values).fetchall()

    def stop(self) -> None:
        """Ends it and removes its files."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


@functools.cache
def tracking_server() -> TrackingServer:
    """The server, started by whoever asks first; skips the test where the full package, which has one, is not installed."""
    try:
        importlib.metadata.version("mlflow")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the full package mlflow")
    return TrackingServer()


@functools.cache
def client() -> Any:
    """MLflow's own client of it."""
    from daemon.sync.targets.mlflow_server import Server

    return Server(tracking_server().uri)._client


def artifacts(run: str, path: str | None = None) -> dict[str, int]:
    """The files of an MLflow run -> their sizes."""
    found: dict[str, int] = {}
    for info in client().list_artifacts(run, path):
        found.update(artifacts(run, info.path) if info.is_dir else {info.path: info.file_size})
    return found
