"""A daemon that runs out of descriptors: libzmq would abort it in accept, so it stops listening in time, or is replaced."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import sdk
from sdk.errors import CommError
from sdk.transport import endpoint_path, request
from tests.end_to_end.world import Trainer, start_daemon, steps, until

_LIMIT = 160


def start_small_daemon(store: Path) -> int:
    """A daemon that may have few descriptors, hard limit and all; its pid."""

    def start(count: Callable[[int], None]) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_LIMIT, _LIMIT))
        count(start_daemon(store))

    starter = Trainer(start)
    assert starter.wait() == 0
    return starter.returned


def logging_until(store: Path, done: Path) -> Trainer:
    """A trainer that logs every millisecond until the file `done` is there."""

    def body(count: Callable[[int], None]) -> None:
        run = sdk.init(id="r", settings={"silent": True})
        n = 0
        while not done.exists():
            run.log({"x": n})
            n += 1
            count(n)
            sdk.clock.pause(0.001)
        run.finish()

    trainer = Trainer(body)
    until(lambda: trainer.returned > 100)
    return trainer


def connect(path: str) -> socket.socket | None:
    """A raw connection, or None where the daemon does not listen or cannot take it now."""
    made = socket.socket(socket.AF_UNIX)
    made.setblocking(False)
    try:
        made.connect(path)
    except OSError:
        made.close()
        return None
    return made


def serves(store: Path) -> bool:
    with contextlib.suppress(CommError):
        return bool(request(str(store), "status", timeout=1))
    return False


@pytest.mark.parametrize("at_once", [False, True], ids=["one by one", "at once"])
def test_connections_beyond_the_limit(store: Path, tmp_path: Path, at_once: bool) -> None:
    """Twice as many connections as descriptors: what a trainer logs meanwhile is all there, and the daemon serves after.

    One by one, the same daemon survives. Many between two of its looks may kill it; then a sender starts another.
    """
    pid = start_small_daemon(store)
    trainer = logging_until(store, tmp_path / "done")
    path = endpoint_path(str(store))
    held = []
    try:
        for _ in range(2 * _LIMIT):
            made = connect(path)
            held.append(made)
            if not at_once:
                before = trainer.returned
                until(lambda n=before: trainer.returned > n + 2)  # type: ignore[misc]
        accepted = [made for made in held if made is not None]
        assert len(accepted) > _LIMIT // 8
        if not at_once:
            assert os.path.exists(f"/proc/{pid}"), "the daemon died"
            assert len(os.listdir(f"/proc/{pid}/fd")) < _LIMIT
        before = trainer.returned
        until(lambda: trainer.returned > before + 200)
    finally:
        for made in held:
            if made is not None:
                made.close()
        until(lambda: serves(store))
        (tmp_path / "done").touch()
        code = trainer.wait()
    assert code == 0
    assert steps(store, "r") == list(range(trainer.returned))
    assert not sdk.open_store(store).run("r").gaps
    if not at_once:
        assert request(str(store), "status")["pid"] == pid
