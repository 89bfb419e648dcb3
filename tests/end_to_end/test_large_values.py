"""Large values where shared memory is short, gone, or another process's: what returned is there, or told."""

from __future__ import annotations

import os
from pathlib import Path

import numpy
import pytest

import sdk
from sdk.journal import arena
from sdk.journal.arena import arena_paths
from sdk.journal.large import NO_ROOM
from tests.end_to_end.world import until

SHAPE = (64, 1024)


def value(n: int) -> numpy.ndarray:  # type: ignore[type-arg]
    return numpy.full(SHAPE, n, dtype="f4")


def check(store: Path, run: str, steps: int, key: str = "w", **chosen: object) -> None:
    """Every value is there, bit for bit."""
    items = sdk.open_store(store).run(run).media(key, **chosen)  # type: ignore[arg-type]
    assert len(items) == steps
    for n, item in enumerate(items):
        assert numpy.array_equal(item.to_numpy(), value(n)), n


def ring_of(run: object) -> str:
    path = run._stream.journal.ring.path  # type: ignore[attr-defined]
    assert isinstance(path, str)
    return path


def test_in_private_memory(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room in shared memory the trainer stores the bytes itself, beside a daemon that takes the rows."""
    monkeypatch.setattr(arena.Arena, "take", lambda self, size: None)
    run = sdk.init(id="r")
    for n in range(30):
        run.log({"w": value(n)})
    run.finish()
    check(store, "r", 30)


def test_an_arena_that_somebody_removed(store: Path) -> None:
    """A logout removes the files of a user in shared memory: the trainer notices, and stores what nobody else can read."""
    run = sdk.init(id="r")
    run.log({"w": value(0)})
    for path in arena_paths(ring_of(run)):
        os.unlink(path)
    for n in range(1, 30):
        run.log({"w": value(n)})
    run.finish()
    check(store, "r", 30)


def test_nothing_is_left_in_shared_memory(store: Path) -> None:
    """A finished run leaves no arena and no ring."""
    run = sdk.init(id="r")
    run.log({"w": value(0)})
    ring = ring_of(run)
    assert arena_paths(ring)
    run.finish()
    assert not arena_paths(ring)
    assert not os.path.exists(ring)


def test_a_forked_child_has_its_own(store: Path) -> None:
    """A child logs large values beside its parent; neither writes into the other's shared memory."""
    run = sdk.init(id="r")
    run.log({"w": value(0)})
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for n in range(10):
                run.log({"child": value(n)})
            run.finish()
            code = 0
        finally:
            os._exit(code)
    for n in range(1, 10):
        run.log({"w": value(n)})
    assert os.waitpid(pid, 0)[1] == 0
    run.finish()
    check(store, "r", 10)
    until(lambda: len(sdk.open_store(store).run("r").media("child", stream="all")) == 10)
    check(store, "r", 10, "child", stream="all")


def test_attach_takes_them_too(store: Path) -> None:
    """A stream of its own into a run copies a value that was made for another one."""
    run = sdk.init(id="r")
    image = sdk.Image(numpy.zeros((100, 100, 3), "u1"))
    run.log({"x": 0})
    until(lambda: bool(sdk.open_store(store).runs()))
    other = sdk.attach("r")
    other.log({"seen": image}, step=3)
    run.log({"x": 1})
    other.finish()
    run.finish()
    [item] = sdk.open_store(store).run("r").media("seen", stream="all")
    assert item.to_numpy().shape == (100, 100, 3)


def test_what_finds_no_room_is_told(
    store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The row is kept; a line, the gap and the value say what is missing and why."""
    monkeypatch.setattr(arena.Arena, "take", lambda self, size: None)
    monkeypatch.setenv("STEPD_OVERFLOW_BYTES_MAX", "1000")
    run = sdk.init(id="r")
    run.log({"w": value(0), "x": 1})
    run.finish()
    found = sdk.open_store(store).run("r")
    [gap] = found.gaps
    assert (gap.key, gap.step_min, gap.count, gap.reason) == ("w", 0, 0, NO_ROOM)
    assert found.series("x").value.tolist() == [1]
    [item] = found.media("w")
    assert not item.is_stored
    with pytest.raises(sdk.errors.NotFoundError):
        item.to_numpy()
    assert "'w' at step 0" in capfd.readouterr().err
