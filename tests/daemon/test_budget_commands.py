"""Budgets from the outside: variables, options of start and restart, what status says."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from daemon.settings import DaemonSettings, budgets_from
from daemon.store.budgets import BUDGETS_FILE, keep_budgets, read_budgets
from sdk import _spawn
from sdk.budget import Budget
from sdk.files import DISK
from sdk.limits import FREE_BYTES_MIN
from sdk.location import StoreIdentity
from sdk.transport import request
from tests.daemon.test_server_commands import run_command, start
from tests.serving import until


def budget(store: StoreIdentity) -> Budget:
    return Budget(**request(store.path, "status")["budget"])


def test_variables_make_the_settings() -> None:
    """Sizes as people write them; a bad one names its variable."""
    environ = {"STEPD_STORE_BYTES_MAX": "10G", "STEPD_FREE_BYTES_MIN": "", "STEPD_RUN_BYTES_MAX": "5"}
    assert DaemonSettings(**budgets_from(environ)).budget == Budget(10 * 2**30, 5, FREE_BYTES_MIN)
    with pytest.raises(ValueError, match=r"STEPD_RUN_BYTES_MAX: '5X'"):
        budgets_from({"STEPD_RUN_BYTES_MAX": "5X"})


def test_a_started_daemon_inherits_them(store: StoreIdentity, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts it says them by the environment."""
    monkeypatch.setenv("STEPD_STORE_BYTES_MAX", "10M")
    start(store)
    assert budget(store) == Budget(store_bytes_max=10 * 2**20)


def test_start_and_restart_set_them(store: StoreIdentity) -> None:
    """Of a daemon that serves already as well; restart keeps what it is not told."""
    assert run_command(store, "start", "--store-bytes-max", "10G").exit_code == 0
    assert budget(store) == Budget(store_bytes_max=10 * 2**30)
    assert run_command(store, "start", "--run-bytes-max", "500MB").exit_code == 0
    assert budget(store) == Budget(10 * 2**30, 500 * 10**6)
    assert run_command(store, "restart", "--free-bytes-min", "0").exit_code == 0
    assert budget(store) == Budget(10 * 2**30, 500 * 10**6, 0)
    bad = run_command(store, "start", "--store-bytes-max", "lots")
    assert bad.exit_code == 2
    assert "10G" in bad.output


def test_a_daemon_that_crashes_leaves_its_budgets_to_the_next(
    store: StoreIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever starts it, a sender too; what that one's environment says counts more, and a later word still more."""
    assert run_command(store, "start", "--store-bytes-max", "10G", "--free-bytes-min", "1M").exit_code == 0
    os.kill(request(store.path, "status")["pid"], signal.SIGKILL)
    until(lambda: not _spawn.is_serving(store.path), "its end")
    monkeypatch.setenv("STEPD_FREE_BYTES_MIN", "2M")
    pid = start(store)
    assert budget(store) == Budget(10 * 2**30, 0, 2 * 2**20)
    run_command(store, "start", "--store-bytes-max", "0")
    os.kill(pid, signal.SIGKILL)
    until(lambda: not _spawn.is_serving(store.path), "its end")
    monkeypatch.delenv("STEPD_FREE_BYTES_MIN")
    start(store)
    assert budget(store) == Budget(0, 0, 2**20)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{", b'{"store_bytes_max": -1, "run_bytes_max": "x"}', b"9" * 5000, b"[" * 4000]
)
def test_kept_budgets_that_cannot_be(store: StoreIdentity, text: bytes) -> None:
    """Nobody's daemon stays away because of that file."""
    Path(store.path, BUDGETS_FILE).write_bytes(text)
    assert read_budgets(DISK, store.path) == {}
    keep_budgets(DISK, store.path, {"run_bytes_max": 5})
    assert read_budgets(DISK, store.path) == {"run_bytes_max": 5}


def test_status_says_what_is_taken(store: StoreIdentity) -> None:
    """With a budget the store's size is known, the trash included; a budget that cannot be is refused."""
    os.makedirs(os.path.join(store.path, "trash", "1-old"))
    with open(os.path.join(store.path, "trash", "1-old", "x"), "wb") as file:
        file.write(bytes(2_000_000))
    run_command(store, "start", "--store-bytes-max", "4MB")
    # The store is measured in small steps between other work.
    until(lambda: request(store.path, "status")["store_bytes"] is not None, "the measure")
    facts = json.loads(run_command(store, "status", "--json").output)
    assert facts["warnings"] == []
    assert 2_000_000 <= facts["store_bytes"] < 2_100_000
    assert "2.0 MB of 4.0 MB taken" in run_command(store, "status").output
    with pytest.raises(Exception, match="budgets are"):
        request(store.path, "budget", {"store_bytes_max": -1})
