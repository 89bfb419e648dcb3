"""The encoding worker: values read the same before and after it, and whatever is killed while it works."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest

import sdk
from daemon.store.rewrite import sealed_media
from sdk import platform
from sdk.files import DISK
from sdk.segment.naming import parse_draft, run_path
from sdk.transport import lock_path
from tests.end_to_end.world import kill_daemon, start_daemon, until

# Noise of this size takes a worker some milliseconds each, so that it can be met at work.
COUNT, SIDE = 40, 300


def picture(index: int) -> Any:
    """The last one equals the first."""
    return numpy.random.default_rng(index % (COUNT - 1)).integers(0, 256, (SIDE, SIDE, 3), "u1")


@pytest.fixture
def logged(store: Path) -> Iterator[Path]:
    """A store with a finished run of images, and its daemon; no worker is left at the end."""
    run = sdk.init(id="r", settings={"silent": True})
    for index in range(COUNT):
        run.log({"x": sdk.Image(picture(index))})
    run.finish()
    yield store
    for process in workers(store):
        process.kill()


def workers(store: Path) -> list[psutil.Process]:
    """The encoding workers of a store that live."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if command[-2:] == ["daemon.rewriter", str(store)] and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def at_work(store: Path) -> psutil.Process:
    """Waits until a worker is in the middle of its work."""
    directory = run_path(str(store), "r")
    until(lambda: any(parse_draft(name) is not None for name in os.listdir(directory)))
    (worker,) = workers(store)
    return worker


def is_encoded(store: Path) -> bool:
    segments = sealed_media(DISK, run_path(str(store), "r"))
    return bool(segments) and not any(segment.is_raw for segment in segments)


def check(store: Path) -> None:
    """Every image, bit for bit."""
    items = sdk.open_store(store).run("r").media("x")
    assert len(items) == COUNT
    for index, item in enumerate(items):
        assert numpy.array_equal(item.to_numpy(), picture(index)), index


def test_values_read_the_same_before_and_after(logged: Path) -> None:
    """The file too; the run is one file of media, in which the equal image stands once."""
    item = sdk.open_store(logged).run("r").media("x")[0]
    before = item.bytes()
    check(logged)
    until(lambda: is_encoded(logged))
    check(logged)
    assert item.bytes() == sdk.open_store(logged).run("r").media("x")[0].bytes() == before
    (segment,) = sealed_media(DISK, run_path(str(logged), "r"))
    assert len(segment.told["digests"]) == COUNT - 1


def test_a_worker_is_killed(logged: Path) -> None:
    """Nothing is lost; what it left is removed by the next one, which does its work."""
    worker = at_work(logged)
    worker.kill()
    until(lambda: not workers(logged))
    assert not is_encoded(logged)
    check(logged)
    kill_daemon(logged)
    start_daemon(logged)
    until(lambda: is_encoded(logged))
    check(logged)
    assert not [name for name in os.listdir(run_path(str(logged), "r")) if parse_draft(name) is not None]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_the_daemon_ends_while_a_worker_works(logged: Path, number: signal.Signals) -> None:
    """The worker ends within a value, and takes its draft with it; all is readable."""
    worker = at_work(logged)
    daemon = platform.lock_owner(lock_path(str(logged)))
    assert daemon
    os.kill(daemon, number)
    until(lambda: not workers(logged))
    until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)  # it has no command line any more
    assert not [name for name in os.listdir(run_path(str(logged), "r")) if parse_draft(name) is not None]
    check(logged)
