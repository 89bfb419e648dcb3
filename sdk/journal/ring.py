"""The ring as memory: made by one process, locked by it for life, read by others only when that lock is free.

Life: `Ring.create` makes a tmpfs file, reserves every page and takes the record lock; the process that made it is its
only writer. `close` unlinks it, which is done when everything in it is stored elsewhere. When the process dies instead,
the file stays, the kernel frees the lock, and `sdk.journal.drain` takes what was not released. Where no shared memory
can be had the ring is private memory (`volatile`): the same, except that it dies with its process.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Mapping
from typing import Any

from .. import platform
from ..ids import hex_u64
from ..platform.linux import forget_lock
from .format import (
    CAPACITY_MIN,
    CHECK,
    CHUNK,
    CHUNKS_OFFSET,
    DRAFT_SUFFIX,
    HEADER_BYTES,
    REFUSALS,
    REFUSALS_COPIES,
    RELEASED_COPIES,
    STATIC_OFFSET,
    STATIC_SECOND_OFFSET,
    SUFFIX,
    WORD_BEAT,
    WORD_GATE,
    WORD_RELEASED,
    WORD_SESSION,
    WORDS,
)
from .page import Chunk, Mark, Refusals, Taken, pack_chunk, pack_refusals, pack_released, pack_static, read_taken

# Limit: all rings and arenas of one user on one host together, as a share of the file system's size. PyTorch's own
# workers die of a bus error when we fill /dev/shm, so this is a matter of goal 1.
SHARE_MAX = 8
# Limit: one ring, as a share of the size: Docker's 64 MB give 2 MiB.
SHARE_RING = 32
VOLATILE_CAPACITY = 4 << 20
# Limit: what rows leave free for the stream's last facts. How a run ended is some 100 bytes, and a run that ends while its
# disk is full must not look crashed when its ring is drained.
RESERVED_BYTES_MAX = 16 << 10
_RESERVED_SHARE = 16
# Limit: what is copied of a file that is called a ring; no machine's shared memory gives one a larger window.
RING_BYTES_MAX = 4 << 30


def _place(word: int, size: int) -> slice:
    return slice(word * 8, word * 8 + size)


# Why made once: a refused call writes both, and a loop may be refused for hours.
_REFUSALS_FIRST, _REFUSALS_SECOND = (_place(word, REFUSALS.size + CHECK.size) for word in REFUSALS_COPIES)


class Ring:
    """A mapped ring.

    Attributes:
        data: The window, uint8[capacity].
        page: The header page, uint8[HEADER_BYTES]. `words`: the words at its beginning, uint64.
        capacity: Bytes in the window, a power of two.
        path: The tmpfs file, or None for a volatile ring.
    """

    def __init__(self, mapping: mmap.mmap, capacity: int, path: str | None, descriptor: int) -> None:
        self.path = path
        self.capacity = capacity
        self._map(mapping, descriptor)
        self._pid = os.getpid()

    def _map(self, mapping: mmap.mmap, descriptor: int) -> None:
        self._mapping, self._descriptor = mapping, descriptor
        view = memoryview(mapping)
        self.data = view[HEADER_BYTES:]
        self.page = view[:HEADER_BYTES]
        self.words = view[: WORDS * 8].cast("Q")

    @property
    def volatile(self) -> bool:
        return self.path is None

    @classmethod
    def create(
        cls, base: str, store_digest: str, stream: int, capacity: int, identity: Mapping[str, Any]
    ) -> tuple[Ring, str | None]:
        """A new ring of at most `capacity` bytes, and what a user should know about it (None: nothing).

        Args:
            base: The shared memory file system, normally ``/dev/shm``.
            identity: What a drain must know (`run`, `store`); it is kept in the header page.
        """
        try:
            directory = platform.shared_directory(base)
            size = fitting_capacity(capacity, platform.shared_size(base), platform.shared_used(directory))
            while size >= CAPACITY_MIN:
                path = os.path.join(directory, f"{store_digest}-{hex_u64(stream)}{SUFFIX}")
                try:
                    descriptor, mapping = platform.create_shared(path + DRAFT_SUFFIX, HEADER_BYTES + size)
                except OSError as error:
                    trouble = str(error)
                    size //= 2
                    continue
                ring = cls(mapping, size, path, descriptor)
                ring._write_static(stream, identity)
                os.rename(path + DRAFT_SUFFIX, path)
                told = (
                    f"{base} is small: the ring has {size >> 10} KiB of {capacity >> 10}; stepd doctor says what helps"
                )
                note = None if size == capacity else told
                return ring, note
            trouble = f"no room for a ring of {CAPACITY_MIN >> 10} KiB in {base}"
        except Exception as error:
            trouble = str(error)
        ring = cls.private(stream, identity)
        return ring, f"{trouble}; records wait in private memory, which does not survive kill -9 of the trainer"

    @classmethod
    def private(cls, stream: int, identity: Mapping[str, Any], capacity: int = VOLATILE_CAPACITY) -> Ring:
        """A ring in private memory."""
        ring = cls(mmap.mmap(-1, HEADER_BYTES + capacity), capacity, None, -1)
        ring._write_static(stream, identity)
        return ring

    def _write_static(self, stream: int, identity: Mapping[str, Any]) -> None:
        packed = pack_static(stream, self.capacity, identity)
        for offset in (STATIC_OFFSET, STATIC_SECOND_OFFSET):
            self.page[offset : offset + len(packed)] = packed
        self.write_refusals(Refusals())
        self.write_released((0, 1, 0))

    def write_refusals(self, refusals: Refusals) -> None:
        """Notes what was refused, in one place after the other: a kill in between leaves the one or the other."""
        self.page[_REFUSALS_FIRST] = self.page[_REFUSALS_SECOND] = pack_refusals(refusals)

    def write_released(self, mark: Mark) -> None:
        """Notes that everything before `mark` is stored. Write it before anything there is overwritten."""
        self._write(pack_released(mark), *RELEASED_COPIES)
        self.words[WORD_RELEASED] = mark[0]

    def _write(self, packed: bytes, first: int, second: int) -> None:
        size = len(packed)
        self.page[first * 8 : first * 8 + size] = packed
        self.page[second * 8 : second * 8 + size] = packed

    def write_chunk(self, index: int, chunk: Chunk) -> None:
        """Writes an entry of the table of checksums. One that a kill leaves half written has a wrong CRC."""
        at = CHUNKS_OFFSET + index * CHUNK.size
        self.page[at : at + CHUNK.size] = pack_chunk(chunk)

    def lend(self, session: int) -> None:
        """Lets a daemon of another process read this ring as `session`; 0: nobody any more."""
        # In this order: who reads for an older session does not beat for this one.
        self.words[WORD_SESSION] = session
        self.words[WORD_BEAT] = 1

    def close_gate(self, position: int) -> None:
        """Such a reader takes nothing from `position` on, or from an earlier one where it is closed already."""
        if not self.words[WORD_GATE]:
            self.words[WORD_GATE] = position + 1

    def open_gate(self, until: int | None) -> None:
        """Such a reader may go on up to position `until`; None: up to head."""
        self.words[WORD_GATE] = 0 if until is None else until + 1

    def taken(self) -> Taken | None:
        """What such a reader says that it has stored; None: nothing yet."""
        return read_taken(self.page)

    def beat(self) -> int:
        """A number that such a reader makes grow as long as it reads; 0 when it stops."""
        return self.words[WORD_BEAT]

    def file(self) -> tuple[int, int]:
        """Device and inode of the file; (0, 0) for private memory."""
        if self._descriptor < 0:
            return 0, 0
        status = os.fstat(self._descriptor)
        return status.st_dev, status.st_ino

    def touch(self) -> None:
        """Maps all pages, so that `log()` never takes a page fault; gives the GIL away."""
        platform.touch(self._mapping)

    def slices(self, start: int, end: int) -> list[memoryview]:
        """The bytes from stream position `start` to `end` as one or two views of the window, not copied."""
        if start == end:
            return []
        first, last = start % self.capacity, end % self.capacity
        if first < last:
            return [self.data[first:last]]
        return [self.data[first:], self.data[:last]] if last else [self.data[first:]]

    def is_unlinked(self) -> bool:
        """Whether somebody removed the file (systemd's RemoveIPC at logout): nobody could drain it then."""
        return self._descriptor >= 0 and os.fstat(self._descriptor).st_nlink == 0

    def twin(self) -> Ring:
        """A ring of the same size and bytes in a file that is not called by our name yet; see `replace_by`.

        Raises:
            OSError, StoreError: It cannot be made.
        """
        assert self.path is not None
        platform.shared_directory(os.path.dirname(os.path.dirname(self.path)))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path + DRAFT_SUFFIX)
        descriptor, mapping = platform.create_shared(self.path + DRAFT_SUFFIX, HEADER_BYTES + self.capacity)
        twin = Ring(mapping, self.capacity, self.path, descriptor)
        twin.touch()
        twin.data[:] = self.data
        return twin

    def replace_by(self, twin: Ring, start: int, end: int) -> None:
        """Takes the place of the removed file: `twin` gets the bytes from `start` to `end`, our header and our name.

        The caller sees to it that nobody writes meanwhile, and does not use `twin` afterwards.
        """
        for new, old in zip(twin.slices(start, end), self.slices(start, end)):
            new[:] = old
        twin.page[:] = self.page
        os.rename(f"{self.path}{DRAFT_SUFFIX}", str(self.path))
        old_descriptor = self._descriptor
        self._map(twin._mapping, twin._descriptor)
        twin._descriptor = -1
        forget_lock(old_descriptor)
        os.close(old_descriptor)

    def close(self) -> None:
        """Removes the file and lets go of lock and memory. Call it when everything is stored elsewhere."""
        if self.path is not None and os.getpid() == self._pid:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self.abandon()

    def abandon(self) -> None:
        """Lets go without removing: in a forked child, whose parent still writes it; or to leave it to a drain."""
        if self._descriptor >= 0:
            if os.getpid() == self._pid:
                forget_lock(self._descriptor)
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


def reserved_bytes(capacity: int) -> int:
    """What rows leave free of a ring, for the facts that come when no more rows can."""
    return min(capacity // _RESERVED_SHARE, RESERVED_BYTES_MAX)


def fitting_capacity(wanted: int, size: int, used: int) -> int:
    """The capacity of a new ring where `used` of `size` bytes of shared memory are ours already; a power of two, or 0.

    A 32nd of the file system, and never more than half of what our share (an eighth) still has, so that eight ranks
    find room even in a container's 64 MB.
    """
    room = size // SHARE_MAX - used
    if room < CAPACITY_MIN:
        return 0
    # The header page does not count: half of the rest leaves more than enough room for it.
    best = min(wanted, size // SHARE_RING, max(room // 2, CAPACITY_MIN))
    return 1 << (max(best, CAPACITY_MIN).bit_length() - 1)
