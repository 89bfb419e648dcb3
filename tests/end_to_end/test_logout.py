"""A logout removes the user's shared memory under a training that goes on; then the training is killed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import sdk
from sdk import platform
from sdk._spool import drain_orphans
from sdk.files import DISK
from sdk.journal.drain import ring_paths
from sdk.location import make_store
from tests.end_to_end.world import Trainer, start_daemon, steps, until, until_drained


@pytest.mark.parametrize("served", [True, False], ids=["daemon", "no daemon"])
def test_a_ring_that_a_logout_removed(store: Path, monkeypatch: pytest.MonkeyPatch, served: bool) -> None:
    """It is made again within seconds, and everything that returned survives kill -9."""
    monkeypatch.setenv("STEPD_AUTOSTART", "0")
    monkeypatch.setenv("STEPD_CONSOLE", "off")  # one ring
    identity = make_store(str(store))
    if served:
        start_daemon(store)

    def body(count: Callable[[int], None]) -> None:
        run = sdk.init(id="r", dir=str(store))
        done = 0
        while True:
            run.log({"x": done})
            done += 1
            count(done)
            time.sleep(0.002)  # the pace of a training loop; nothing is waited for

    trainer = Trainer(body)
    try:
        digest = platform.store_digest(str(store))
        until(lambda: trainer.returned > 50)
        (path,) = ring_paths("/dev/shm", digest)
        before = os.stat(path).st_ino
        os.unlink(path)
        until(lambda: os.path.exists(path) and os.stat(path).st_ino != before and platform.is_locked(path))
        more = trainer.returned + 50
        until(lambda: trainer.returned > more)
    finally:
        trainer.kill()
        trainer.wait()
    returned = trainer.returned
    if served:
        until_drained(store)
    else:
        assert drain_orphans(DISK, identity, "/dev/shm") == 1
    found = steps(store, "r")
    assert found in (list(range(returned)), list(range(returned + 1)))
    assert sdk.open_store(store).run("r").gaps == []
