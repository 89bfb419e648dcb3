"""A store of its own for each test, and no daemon left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdk import _spawn
from sdk.errors import Error
from sdk.platform import shared_directory, store_digest
from sdk.transport import lock_path
from tests.end_to_end.world import kill_daemon, until


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory for a store, named by STEPD_DIR; its daemon is killed and its rings are removed at the end."""
    path = Path(tempfile.mkdtemp(prefix="stepd-test-"))
    for name in list(os.environ):
        if name.startswith(("STEPD_", "WANDB_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("STEPD_DIR", str(path))
    monkeypatch.setenv("STEPD_SILENT", "1")
    monkeypatch.setenv("STEPD_OBSERVE", "0")  # a test that wants it says so
    yield path
    if path.exists():
        digest = store_digest(str(path))
        with contextlib.suppress(OSError, Error):
            _spawn.mark_stopped(str(path), True)
            kill_daemon(path)
            directory = shared_directory("/dev/shm")
            for name in os.listdir(directory):
                if name.startswith(digest):
                    os.unlink(os.path.join(directory, name))
            for suffix in ("sock", "lock", "stopped"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(lock_path(str(path)).replace(".lock", f".{suffix}"))

        def gone() -> bool:
            # A daemon that a trainer started a moment ago may be writing its first line of log right now.
            shutil.rmtree(path, ignore_errors=True)
            return not path.exists()

        until(gone)
