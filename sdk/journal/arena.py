"""The arena: shared memory for the bytes of large values, from which they survive a kill -9 of the trainer.

Files beside the stream's ring, made when they are first needed: 4 MiB, then 16, then 64 each, larger for a larger value.
A slot is taken first fit, filled by the training thread with one copy, announced by a record (`KIND_BLOB`) that says
where it lies, and freed when nobody refers to it any more: the value is stored and the caller's object is gone.

Life: the files outlive a killed trainer like its ring, and whoever drains the ring reads and removes them. `close` removes
them when everything is stored.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections import deque

from .. import platform
from ..limits import MIB
from .format import SUFFIX
from .ring import SHARE_MAX

ARENA_SUFFIX = ".arena"
# Limit: a small process takes 4 MiB, not 64; a large value takes a file that fits it.
_FILE_BYTES = (4 * MIB, 16 * MIB, 64 * MIB)
_ROUND_BYTES = 16 * MIB
# Limit: files of one arena, and so the descriptors that it and the daemon hold.
FILES_MAX = 64
# Slots begin at a multiple of this, so that arrays of any dtype are aligned.
_ALIGNMENT = 64


def arena_path(ring: str, index: int) -> str:
    """The `index`-th file of the arena beside a ring."""
    return f"{ring[: -len(SUFFIX)]}.{index}{ARENA_SUFFIX}"


def arena_paths(ring: str) -> list[str]:
    """The files of the arena beside a ring that are there."""
    directory, name = os.path.split(ring[: -len(SUFFIX)])
    with contextlib.suppress(OSError):
        found = os.listdir(directory)
        return [os.path.join(directory, n) for n in found if n.startswith(f"{name}.") and n.endswith(ARENA_SUFFIX)]
    return []


def remove_arena(ring: str) -> None:
    """Removes the arena of a ring that was drained or is empty; before the ring, by which it would be found."""
    for path in arena_paths(ring):
        with contextlib.suppress(OSError):
            os.unlink(path)


def remove_orphans(base: str, store_digest: str) -> None:
    """Removes arenas whose ring is gone and whose process is dead: nothing says any more what is in them."""
    with contextlib.suppress(Exception):
        directory = platform.shared_directory(base)
        names = os.listdir(directory)
        for name in names:
            ring = f"{name.split('.')[0]}{SUFFIX}"
            if not name.startswith(f"{store_digest}-") or not name.endswith(ARENA_SUFFIX) or ring in names:
                continue
            lock = platform.open_shared(os.path.join(directory, name))
            if lock is not None:
                try:
                    os.unlink(os.path.join(directory, name))
                finally:
                    lock.release()


class Slot:
    """Bytes in an arena, until the last reference to this object is gone."""

    __slots__ = ("_arena", "_size", "_view", "owner", "place")

    def __init__(self, arena: Arena, place: tuple[int, int], size: int, view: memoryview) -> None:
        self._arena = arena
        self._size = size
        self._view = view
        self.place = place
        self.owner = arena.stream

    def view(self) -> memoryview:
        return self._view

    def __del__(self) -> None:
        # Why a deque: this may run anywhere, also inside `take`, and must wait for nothing.
        self._arena.freed.append((self.place, self._size))


class _File:
    """One mapped file, and what of it is free: (offset, size), by offset."""

    __slots__ = ("descriptor", "free", "is_touched", "mapping", "path", "size")

    def __init__(self, path: str, descriptor: int, mapping: mmap.mmap, size: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.mapping = mapping
        self.size = size
        self.free = [(0, size)]
        self.is_touched = False

    def take(self, size: int) -> int | None:
        for index, (offset, room) in enumerate(self.free):
            if room >= size:
                if room == size:
                    del self.free[index]
                else:
                    self.free[index] = (offset + size, room - size)
                return offset
        return None

    def give_back(self, offset: int, size: int) -> None:
        pieces = sorted([*self.free, (offset, size)])
        joined = [pieces[0]]
        for start, length in pieces[1:]:
            before, room = joined[-1]
            if before + room == start:
                joined[-1] = (before, room + length)
            else:
                joined.append((start, length))
        self.free = joined


class Arena:
    """The arena of one stream. `take` may be called from any thread of the process that made it.

    Attributes:
        freed: (place, size) of slots that were let go and not yet given back.
    """

    def __init__(self, base: str, ring: str, stream: int) -> None:
        """Makes no file yet. `base`: the shared memory file system; `ring`: the path of the stream's ring."""
        self._base = base
        self._ring = ring
        self.stream = stream
        self.freed: deque[tuple[tuple[int, int], int]] = deque()
        self._files: dict[int, _File] = {}
        self._next = 0  # the number of the next file; each is given once
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._is_closed = False

    def take(self, size: int) -> Slot | None:
        """Room for `size` bytes, or None: shared memory has none for us.

        The first value of its size pays for a new file and its pages (18 ms for 64 MiB); later ones cost only the copy.
        """
        padded = -(-size // _ALIGNMENT) * _ALIGNMENT
        # Race: in a forked child this is the parent's arena, whose slots are not the child's to give.
        if os.getpid() != self._pid:
            return None
        with self._lock:
            return self._take(padded, size)

    def _take(self, padded: int, size: int) -> Slot | None:
        if self._is_closed:
            return None
        self._give_back()
        for number, file in self._files.items():
            found = file.take(padded)
            if found is not None:
                return self._slot(number, found, padded, size)
        index = self._number()
        new = self._make(index, padded) if index is not None else None
        if index is None or new is None:
            return None
        self._files[index] = new
        found = new.take(padded)
        assert found is not None
        return self._slot(index, found, padded, size)

    def _give_back(self) -> None:
        while self.freed:
            (index, offset), length = self.freed.popleft()
            self._files[index].give_back(offset, length)

    def _slot(self, index: int, offset: int, padded: int, size: int) -> Slot:
        view = memoryview(self._files[index].mapping)[offset : offset + size]
        return Slot(self, (index, offset), padded, view)

    def _number(self) -> int | None:
        if self._next >= FILES_MAX:
            return None
        self._next += 1
        return self._next - 1

    def _make(self, number: int, padded: int) -> _File | None:
        """One more file of at least `padded` bytes, within our share of shared memory, or None."""
        size = next((s for s in _FILE_BYTES[min(number, len(_FILE_BYTES) - 1) :] if s >= padded), 0)
        size = size or -(-padded // _ROUND_BYTES) * _ROUND_BYTES
        try:
            room = self._room()
            if size > room:
                size = -(-padded // mmap.PAGESIZE) * mmap.PAGESIZE
            if size > room:
                return None
            path = arena_path(self._ring, number)
            descriptor, mapping = platform.create_shared(path, size)
        except Exception:  # no shared memory: the value takes private memory
            return None
        return _File(path, descriptor, mapping, size)

    def _room(self) -> int:
        """Bytes that we may still take. Limit: an eighth of shared memory for all of a user, and never half of what is free."""
        used = platform.shared_used(os.path.dirname(self._ring))
        share = platform.shared_size(self._base) // SHARE_MAX - used
        return min(share, platform.shared_free(self._base) // 2)

    def prepare(self) -> None:
        """Keeps room ahead of need and maps its pages, so that the training thread waits for neither. By the sender.

        Both give the GIL away. Without it the first values of a burst took four times as long as the later ones.
        """
        with self._lock:
            wanted = self._wanted()
            number = self._number() if wanted else None
        if number is not None:
            new = self._make(number, wanted)
            if new is not None:
                platform.touch(new.mapping)
                new.is_touched = True
                with self._lock:
                    self._files[number] = new
                    is_closed = self._is_closed
                if is_closed:  # the run ended meanwhile
                    self.close()
        for file in list(self._files.values()):
            if not file.is_touched:
                file.is_touched = True
                platform.touch(file.mapping)

    def _wanted(self) -> int:
        """The least size of a file to be made ahead; 0: there is room enough, or nobody has asked for any yet."""
        self._give_back()
        files = self._files.values()
        largest = max((file.size for file in files), default=0)
        free = sum(size for file in files for _, size in file.free)
        taken = sum(file.size for file in files) - free
        # Limit: not beyond the usual sizes; what is larger than those is rare, and its file is its own.
        return min(largest, _FILE_BYTES[-1]) if taken and free * 2 < largest and not self._is_closed else 0

    def size_max(self) -> int:
        """Bytes that it has and could still take."""
        try:
            return sum(file.size for file in list(self._files.values())) + max(self._room(), 0)
        except OSError:
            return 0

    def is_unlinked(self) -> bool:
        """Whether somebody removed a file (systemd's RemoveIPC at logout): nobody else could read it then."""
        return any(os.fstat(file.descriptor).st_nlink == 0 for file in list(self._files.values()))

    def close(self) -> None:
        """Removes the files; slots that are still referred to stay readable here. Call it when everything is stored."""
        with self._lock:
            self._is_closed = True
        for file in list(self._files.values()):
            with contextlib.suppress(OSError):
                os.unlink(file.path)
        self.abandon()

    def abandon(self) -> None:
        """Lets go without removing, which leaves the files to whoever drains the ring."""
        self._is_closed = True
        for file in list(self._files.values()):
            if file.descriptor >= 0:
                platform.forget_lock(file.descriptor)
                os.close(file.descriptor)
                file.descriptor = -1
