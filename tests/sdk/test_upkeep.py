"""sdk.journal.upkeep: a ring whose file somebody removed gets a new one, and nothing else changes."""

from __future__ import annotations

import os
import shutil
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdk import platform
from sdk.journal.appender import open_journal
from sdk.journal.drain import drain
from sdk.journal.format import CAPACITY_MIN
from sdk.journal.ring import Ring
from sdk.journal.upkeep import LOOK_SECONDS, Upkeep
from sdk.record import decode_map, walk


class World:
    """A journal in a file, and its upkeep with a clock of its own."""

    def __init__(self, base: Path) -> None:
        ring, _ = Ring.create(str(base), "d" * 16, 5, CAPACITY_MIN, {"run": "a41f"})
        assert ring.path is not None
        self.path = ring.path
        self.journal = open_journal(ring)
        self.said: list[str] = []
        self.now = 100.0
        self.upkeep = Upkeep(self.journal, self.now, lambda topic, text: self.said.append(text))

    def log(self, count: int) -> None:
        for _ in range(count):
            self.journal.log({"v": self.journal.mark()[1], "pad": "x" * 50})

    def look(self) -> bool:
        self.now += LOOK_SECONDS
        return self.upkeep.look(self.now)

    def values(self) -> list[int]:
        """What a drain finds under the ring's name once its process is dead."""
        self.journal.ring.abandon()
        drained = drain(self.path)
        assert drained.damage is None
        return [decode_map(record.payload)["v"] for record in walk(drained.records)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.journal.ring.abandon()


def test_a_file_that_is_there_is_left_alone(world: World) -> None:
    """Nothing is said, and the kernel is asked once a second."""
    assert not world.look()
    os.unlink(world.path)
    assert not world.upkeep.look(world.now + LOOK_SECONDS / 2)
    assert world.said == []
    assert world.look()


@pytest.mark.parametrize("lap", [False, True])
def test_a_removed_file_is_made_again(world: World, lap: bool) -> None:
    """Same name, same bytes, same positions, locked; the user is told once; logging goes on."""
    if lap:
        world.log(2400)
        world.journal.release(world.journal.mark())
    first = world.journal.mark()[1]
    world.log(100)
    os.unlink(world.path)
    world.log(100)
    assert world.look()
    assert not world.look()
    assert len(world.said) == 1 and "made again" in world.said[0]
    assert platform.is_locked(world.path)
    assert not os.path.exists(world.path + ".new")
    world.log(100)
    assert world.values() == list(range(first, first + 300))


def test_a_removed_directory_is_made_again(world: World) -> None:
    """systemd removes the whole directory."""
    world.log(10)
    shutil.rmtree(os.path.dirname(world.path))
    assert world.look()
    world.log(10)
    assert world.values() == list(range(1, 21))


def test_where_it_cannot_be_made_again_everything_stays_as_it_was(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user is told what that means; the next look tries again."""

    def refuse(path: str, size: int) -> None:
        raise OSError(28, "no space")

    world.log(10)
    os.unlink(world.path)
    with monkeypatch.context() as patched:
        patched.setattr(platform, "create_shared", refuse)
        assert not world.look()
    assert "kill -9" in world.said[0]
    world.log(10)
    assert world.look()
    assert world.values() == list(range(1, 21))


def test_a_loop_that_logs_meanwhile_loses_nothing(world: World) -> None:
    """Twenty replacements under three threads that log: every call that returned is in the file."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            world.log(1)

    threads = [threading.Thread(target=loop) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        os.unlink(world.path)
        assert world.look()
        world.journal.release(world.journal.mark())
    stop.set()
    for thread in threads:
        thread.join()
    drained_from = world.journal.mark()
    world.journal.ring.abandon()
    drained = drain(world.path)
    assert drained.damage is None
    assert drained.last == drained_from[1] - 1
    assert [r.sequence for r in walk(drained.records)] == list(range(drained.stored + 1, drained.last + 1))


def test_a_batch_and_its_checksum_are_one(world: World) -> None:
    """The CRC of a batch that is sent for the first time is the table's; of one that is sent again it is not known."""
    start = world.journal.mark()
    world.log(5)
    middle = world.journal.mark()
    world.log(5)
    end = world.journal.mark()
    crc = world.upkeep.cover_batch(start[0], middle, end, start)
    assert crc == zlib.crc32(b"".join(world.journal.ring.slices(start[0], middle[0])))
    assert world.upkeep.cover_batch(start[0], end, end, start) is None
    world.upkeep.cover(end, start)
    world.journal.ring.abandon()
    assert drain(world.path).unproved == []
