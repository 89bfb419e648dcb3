"""sdk.journal.ring: memory that survives its process, of a size that harms nobody."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk import platform
from sdk.journal.drain import read_header, ring_paths
from sdk.journal.format import CAPACITY_MIN, HEADER_BYTES, STATIC, STATIC_ROOM, WORD_HEAD
from sdk.journal.ring import SHARE_MAX, SHARE_RING, VOLATILE_CAPACITY, Ring, fitting_capacity

MIB = 1 << 20


def make(base: Path, stream: int = 7, capacity: int = CAPACITY_MIN) -> Ring:
    ring, note = Ring.create(str(base), "d" * 16, stream, capacity, {"run": "r", "store": b"s" * 16})
    assert note is None
    return ring


def test_a_ring_says_who_it_is(tmp_path: Path) -> None:
    """Stream, capacity and identity stand in the header page, also after it was touched; others see it as locked."""
    ring = make(tmp_path)
    assert ring.path is not None and not ring.volatile
    ring.touch()
    ring.words[WORD_HEAD] = 123
    path = ring.path
    assert platform.is_locked(path)
    assert ring_paths(str(tmp_path), "d" * 16) == [path]
    assert ring_paths(str(tmp_path), "e" * 16) == []
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]
    ring.abandon()
    header = read_header(path)
    assert (header.stream, header.capacity, header.identity) == (7, CAPACITY_MIN, {"run": "r", "store": b"s" * 16})
    assert (header.head, header.refused) == (123, 0)
    assert os.path.getsize(path) == HEADER_BYTES + CAPACITY_MIN


def test_close_removes_and_abandon_leaves(tmp_path: Path) -> None:
    """After `close` there is no file; after `abandon` there is one that anybody may lock."""
    ring = make(tmp_path)
    path = ring.path
    assert path is not None
    ring.close()
    ring.close()
    assert not os.path.exists(path)
    ring = make(tmp_path)
    ring.abandon()
    assert os.path.exists(path)
    assert not platform.is_locked(path)
    lock = platform.open_shared(path)
    assert lock is not None
    lock.release()


def test_a_forked_child_neither_removes_nor_frees_its_parents_ring(tmp_path: Path) -> None:
    """`close` and `abandon` in the child let go of the child's copy only."""
    ring = make(tmp_path)
    for action in (ring.close, ring.abandon):
        pid = os.fork()
        if pid == 0:
            action()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert ring.path is not None
        assert os.path.exists(ring.path)
        assert platform.is_locked(ring.path)
    ring.close()


def test_a_removed_file_is_noticed(tmp_path: Path) -> None:
    """systemd removes a user's shared memory at logout: nobody could drain it then."""
    ring = make(tmp_path)
    assert not ring.is_unlinked()
    assert ring.path is not None
    os.unlink(ring.path)
    assert ring.is_unlinked()
    ring.close()


@pytest.mark.parametrize("trouble", ["no directory", "others can enter", "full"])
def test_where_no_shared_memory_can_be_had_the_ring_is_private(
    tmp_path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A working ring and a note that says what is lost; never an exception."""
    base = tmp_path / "shm"
    if trouble != "no directory":
        base.mkdir()
    if trouble == "others can enter":
        (base / f"stepd-{os.getuid()}").mkdir(mode=0o777)
        (base / f"stepd-{os.getuid()}").chmod(0o777)
    if trouble == "full":
        monkeypatch.setattr(platform, "shared_size", lambda base: SHARE_MAX * (CAPACITY_MIN - 1))
    ring, note = Ring.create(str(base), "d" * 16, 7, CAPACITY_MIN, {})
    assert ring.volatile
    assert ring.capacity == VOLATILE_CAPACITY
    assert note is not None
    assert "does not survive kill -9" in note
    ring.data[:3] = b"abc"
    ring.touch()
    assert bytes(ring.data[:3]) == b"abc"
    assert not ring.is_unlinked()
    ring.close()


def test_a_smaller_ring_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Docker's 64 MB a ring is smaller than asked for, and the user is told."""
    monkeypatch.setattr(platform, "shared_size", lambda base: 64 * MIB)
    ring, note = Ring.create(str(tmp_path), "d" * 16, 7, 16 * MIB, {})
    assert ring.capacity == 2 * MIB
    assert note is not None
    assert "2048 KiB of 16384" in note
    ring.close()


def test_an_allocation_that_fails_is_tried_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else filled the file system since it was asked: half is tried, and nothing is left of the first try."""
    real = os.posix_fallocate

    def fallocate(descriptor: int, start: int, size: int) -> None:
        if size > HEADER_BYTES + CAPACITY_MIN:
            raise OSError(28, "no space")
        real(descriptor, start, size)

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    ring, note = Ring.create(str(tmp_path), "d" * 16, 7, 4 * CAPACITY_MIN, {})
    assert ring.capacity == CAPACITY_MIN
    assert note is not None
    assert ring_paths(str(tmp_path), "d" * 16) == [ring.path]
    ring.close()


def test_an_identity_beyond_the_header_page_is_refused() -> None:
    """The limit is what the page holds behind the static header; one byte more is our own bug."""
    room = STATIC_ROOM - STATIC.size
    overhead = len(b"\x81\xa1k\xc5\x00\x00")
    Ring.private(1, {"k": b"x" * (room - overhead)})
    with pytest.raises(ValueError, match="more than the header page holds"):
        Ring.private(1, {"k": b"x" * (room - overhead + 1)})


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40), st.integers(0, 1 << 36))
def test_sizes_leave_room_for_others(wanted: int, size: int, used: int) -> None:
    """A power of two within the shares, never more than wanted (but for the smallest), or 0 when our share is spent."""
    capacity = fitting_capacity(wanted, size, used)
    room = size // SHARE_MAX - used
    assert (capacity == 0) == (room < CAPACITY_MIN)
    if capacity:
        assert capacity & (capacity - 1) == 0
        assert CAPACITY_MIN <= capacity <= room
        assert capacity <= max(wanted, CAPACITY_MIN)
        assert capacity <= max(size // SHARE_RING, CAPACITY_MIN)


def test_eight_ranks_find_room_in_a_container() -> None:
    """Docker gives 64 MB: eight trainers one after the other all get a ring in shared memory."""
    size, used, got = 64 * MIB, 0, []
    for _ in range(8):
        got.append(fitting_capacity(16 * MIB, size, used))
        used += got[-1] + HEADER_BYTES
    assert min(got) >= CAPACITY_MIN
    assert used <= size // SHARE_MAX


@given(st.integers(0, 3), st.integers(0, 64), st.integers(0, 64))
def test_slices_are_the_window(lap: int, start: int, size: int) -> None:
    """Any stretch up to the whole window, also across its end, as at most two views that are not copies."""
    ring = Ring.private(1, {}, 64)
    ring.data[:] = bytes(range(64))
    begin = lap * 64 + start
    views = ring.slices(begin, begin + size)
    assert b"".join(views) == bytes((begin + i) % 64 for i in range(size))
    assert len(views) <= 2
    assert all(view.obj is ring.data.obj for view in views)
