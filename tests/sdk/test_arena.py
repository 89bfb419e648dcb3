"""sdk.journal.arena: shared memory for large values."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdk import platform
from sdk.journal import arena as module
from sdk.journal.arena import Arena, arena_path, arena_paths, remove_arena, remove_orphans
from sdk.limits import MIB

DIGEST = "0" * 16


@pytest.fixture
def base(tmp_path: Path) -> str:
    return str(tmp_path)


@pytest.fixture
def ring(base: str) -> str:
    return os.path.join(platform.shared_directory(base), f"{DIGEST}-{1:016x}.ring")


@pytest.fixture
def arena(base: str, ring: str) -> Iterator[Arena]:
    made = Arena(base, ring, 1)
    yield made
    made.close()


def test_no_file_before_the_first_value(arena: Arena, ring: str) -> None:
    """A run without large values takes no shared memory for them."""
    assert arena_paths(ring) == []
    assert arena.take(1) is not None
    assert [os.path.getsize(path) for path in arena_paths(ring)] == [4 * MIB]


def test_a_slot_is_in_the_file_where_it_says(arena: Arena, ring: str) -> None:
    """What is written into the view stands at its place in the arena's file."""
    first, second = arena.take(100), arena.take(1000)
    assert first is not None
    assert second is not None
    second.view()[:] = b"x" * 1000
    index, offset = second.place
    with open(arena_path(ring, index), "rb") as file:
        assert os.pread(file.fileno(), 1000, offset) == b"x" * 1000
    assert offset % 64 == 0


def test_what_is_let_go_is_used_again(arena: Arena) -> None:
    """Slots are freed with their last reference, in any order, and joined: a file that is empty takes a whole one again."""
    slots = [arena.take(MIB) for _ in range(4)]
    places = {slot.place for slot in slots if slot is not None}
    assert len(places) == 4
    order = [1, 3, 0, 2]
    for index in order:
        slots[index] = None
    whole = arena.take(4 * MIB)
    assert whole is not None
    assert whole.place == (0, 0)


def test_files_grow_with_need(arena: Arena, ring: str) -> None:
    """4 MiB, then 16; a value larger than any usual file gets one of its own size."""
    kept = [arena.take(3 * MIB), arena.take(3 * MIB), arena.take(100 * MIB)]
    assert None not in kept
    assert sorted(os.path.getsize(path) // MIB for path in arena_paths(ring)) == [4, 16, 112]


def test_no_room_is_none(base: str, arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the user's share of shared memory there is nothing, and nothing raises."""
    monkeypatch.setattr(platform, "shared_size", lambda path: 64 * MIB)
    assert arena.take(9 * MIB) is None
    kept = arena.take(7 * MIB)
    assert kept is not None
    assert arena.take(2 * MIB) is None


def test_never_more_than_half_of_what_is_free(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full /dev/shm would kill the processes of others by a bus error."""
    monkeypatch.setattr(platform, "shared_free", lambda path: 6 * MIB)
    assert arena.take(4 * MIB) is None
    assert arena.take(3 * MIB) is not None


def test_another_process_gets_nothing(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked child must not give out the slots of its parent."""
    assert arena.take(1) is not None
    monkeypatch.setattr(module.os, "getpid", lambda: -1)
    assert arena.take(1) is None


def test_close_removes_and_what_is_held_stays_readable(arena: Arena, ring: str) -> None:
    """After the end of a run no file is left, and a value that the user still holds can be read."""
    slot = arena.take(3)
    assert slot is not None
    slot.view()[:] = b"abc"
    arena.close()
    assert arena_paths(ring) == []
    assert bytes(slot.view()) == b"abc"
    assert arena.take(1) is None


def test_a_removed_file_is_noticed(arena: Arena, ring: str) -> None:
    """Somebody cleaned up shared memory: from then on nobody else can read what is in it."""
    assert arena.take(1) is not None
    assert not arena.is_unlinked()
    remove_arena(ring)
    assert arena.is_unlinked()


def test_orphans(base: str, ring: str) -> None:
    """An arena whose ring is gone and whose process is dead is removed; one with a ring, or of another store, stays."""
    other = ring.replace(DIGEST, "1" * 16)
    for path in (arena_path(ring, 0), arena_path(ring, 1), arena_path(other, 0)):
        Path(path).touch(0o600)
    Path(ring).touch(0o600)
    remove_orphans(base, DIGEST)
    assert len(arena_paths(ring)) == 2
    os.unlink(ring)
    remove_orphans(base, DIGEST)
    assert arena_paths(ring) == []
    assert len(arena_paths(other)) == 1


def test_room_is_made_ahead(arena: Arena, ring: str) -> None:
    """The sender keeps a file ahead of need: the value that fills the first finds the second ready, and no third is made."""
    arena.prepare()
    assert arena_paths(ring) == []
    kept = [arena.take(MIB)]
    arena.prepare()
    assert len(arena_paths(ring)) == 1
    kept += [arena.take(MIB), arena.take(MIB)]
    for _ in range(3):
        arena.prepare()
        assert sorted(os.path.getsize(path) // MIB for path in arena_paths(ring)) == [4, 16]
    assert None not in kept
