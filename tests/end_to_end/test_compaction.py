"""The worker process that makes columns of rows: one at a time, told to end or killed, and a daemon that starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.store.replacing import hold, sealed
from sdk.files import DISK
from sdk.segment.naming import HISTORY
from tests.compacting import Scene
from tests.end_to_end.world import until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path / "store")
    stream = scene.run.stream()
    for _ in range(4):
        for step in range(500):
            stream.log({"loss": 1 / (step + 1), "lr": 0.5})
        scene.run.seal()
    stream.finish()
    scene.run.seal()
    return scene


def worker(scene: Scene) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "daemon.rewriter", scene.store], cwd=ROOT)


def is_compacted(scene: Scene) -> bool:
    return all(not segment.is_raw for segment in sealed(DISK, scene.directory, HISTORY))


def is_free(scene: Scene) -> bool:
    """Whether we may rewrite."""
    lock = hold(scene.store)
    if lock is not None:
        lock.release()
    return lock is not None


def test_a_worker_compacts_what_it_finds_and_waits(scene: Scene) -> None:
    """What was replaced stays for those who read it, and others may rewrite meanwhile; told to end, it ends."""
    before = scene.read()
    process = worker(scene)
    until(lambda: is_compacted(scene))
    until(lambda: is_free(scene))
    assert len(scene.names()) == 6 and scene.read() == before
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert len(sealed(DISK, scene.directory, HISTORY)) == 1


def test_a_worker_is_killed(scene: Scene) -> None:
    """In the middle of its work; nothing is lost, and the next one does it."""
    before = scene.read()
    process = worker(scene)
    until(lambda: len(os.listdir(scene.directory)) > 5)
    process.kill()
    process.wait(20)
    assert scene.read() == before
    scene.compact(kept_seconds=0.0)
    assert is_compacted(scene) and len(scene.names()) == 1 and scene.read() == before
    assert not [name for name in os.listdir(scene.directory) if name.endswith(".draft")]
