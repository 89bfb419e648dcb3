"""Strangers: what child processes, C libraries and bytes on `sys.stdout.buffer` write into the regular file that a stream is.

They write past `sys.stdout`, and nothing may stand in their way: no pipe, no duplicated descriptor. But where the stream is a
regular file, what they wrote can be read from it. Whether there is anything is a matter of counting: a file that grew by just
what we wrote holds nothing else. Else its lines are compared with ours.

Used under the lock of a `Tap`; two taps may share one (`2>&1`). Forked children write lines of their own into the same file and
store them themselves: they tell the parent which, in a page of shared memory.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections import Counter, deque
from typing import Any

from ._folding import Folding
from .limits import KIB, MIB

# Limit: what is read of the file in one look, and in the last one.
LOOK_BYTES_MAX = MIB
LAST_BYTES_MAX = 8 * MIB
# How long the file has held more than we know of before it is read.
SUSPECT_SECONDS = 0.5
# Limit: our own lines that are not seen in the file yet; with more of them the file is read in any case.
_EXPECTED_MAX = 100_000
# Limit: lines of forked children that are known, each 8 bytes; when they are forgotten, a line is stored twice.
_CHILDREN_LINES = 64 * KIB
_PARTIAL_MAX = 4096
# Bytes of forked children are counted by pid; two of one place at the same time are only compared more often.
_CHILDREN = 256


def kind_of(descriptor: int) -> str:
    """What a descriptor is, in a word: "file", "terminal", "pipe", "socket" or "device"."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISCHR(mode):
        return "terminal" if os.isatty(descriptor) else "device"
    return "pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"


class Strangers:
    """One regular file.

    Attributes:
        begin: Where in the file our watch began. `missed`: bytes of others that were too many to be read.
    """

    def __init__(self, descriptor: int) -> None:
        """Raises:
        OSError: The file cannot be read.
        """
        self._descriptor = descriptor
        os.close(self._open())
        found = os.fstat(descriptor)
        self.file = found.st_dev, found.st_ino
        self.begin = self._at = found.st_size
        self.missed = 0
        self._suspect, self._suspected = 0, 0.0  # how large the file was when it held too much, and when that was
        self._wrote: Counter[str] = Counter()
        self._strange = 0
        self._said: deque[int] = deque()
        self._expected: Counter[int] = Counter()
        self._folding = Folding()
        self._memory = mmap.mmap(-1, (_CHILDREN_LINES + _CHILDREN) * 8)
        self._children = memoryview(self._memory).cast("q")
        self._place = 0  # in a forked child, where it counts

    @property
    def path(self) -> str:
        """Its path now, for people."""
        return os.readlink(f"/proc/self/fd/{self._descriptor}")

    @property
    def size(self) -> int:
        """Its size now."""
        return os.fstat(self._descriptor).st_size

    def wrote(self, source: str, text: str) -> None:
        """We wrote this. `source` is the tap's, as each counts for itself."""
        size = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
        if self._place:
            self._children[self._place] += size
        else:
            self._wrote[source] += size

    def said(self, lines: list[str]) -> None:
        """These lines are ours."""
        if self._place:
            for line in lines:
                number = hash(line)
                self._children[number % _CHILDREN_LINES] = number
        else:
            self._said.extend(map(hash, lines))

    def become_child(self) -> None:
        """In a forked child: the parent looks, and is told what is ours."""
        self._place = _CHILDREN_LINES + os.getpid() % _CHILDREN

    def look(self, now: float, *, is_last: bool = False) -> list[str]:
        """Lines of others that are there since a while. Never raises for trouble with the file: then there are none."""
        if self._place:
            return []
        try:
            return self._look(now, is_last)
        except (OSError, ValueError):
            return []

    def _look(self, now: float, is_last: bool) -> list[str]:
        size = os.fstat(self._descriptor).st_size
        if size < self._at:
            self._begin_again(size)
        ours = self.begin + self._strange + sum(self._wrote.values()) + sum(self._children[_CHILDREN_LINES:])
        if size == ours:
            if size != self._at:
                self._pass_over(size)
            return []
        if size < ours:
            self._suspect = 0
        if size < ours and not is_last and len(self._said) + len(self._expected) < _EXPECTED_MAX:
            return []  # some of ours is in the stream's buffer: whether others wrote cannot be said yet
        if not is_last:
            # Race: a thread that has written and not told us yet does so meanwhile.
            if not self._suspect:
                self._suspect, self._suspected = size, now
            if now - self._suspected < SUSPECT_SECONDS:
                return []
            size, self._suspect = self._suspect, 0
        limit = LAST_BYTES_MAX if is_last else LOOK_BYTES_MAX
        if size - self._at > limit:
            self.missed += size - self._at - limit
            self._strange += size - self._at - limit
            self._at = size - limit
        return self._compare(self._read(self._at, size), is_last)

    def _begin_again(self, size: int) -> None:
        """Somebody made the file shorter: a log rotation."""
        self.begin = self._at = size
        self._strange = -sum(self._children[_CHILDREN_LINES:])
        self._wrote.clear()
        self._pass_over(size)

    def _pass_over(self, size: int) -> None:
        """Nobody else wrote. The next comparison begins at the beginning of a line, so far as one is near."""
        self._suspect = 0
        tail = self._read(max(size - _PARTIAL_MAX, self._at), size)
        self._at = size - (len(tail) - tail.rfind(b"\n") - 1)
        self._said.clear()
        self._expected.clear()
        self._folding = Folding()

    def _compare(self, data: bytes, is_last: bool) -> list[str]:
        while self._said:
            self._expected[self._said.popleft()] += 1
        end = data.rfind(b"\n") + 1
        self._at += end
        found: list[str] = []
        for raw in data[:end].split(b"\n")[:-1]:
            lines = self._folding.feed(raw.decode("utf-8", "replace") + "\n")
            strange = [line for line in lines if not self._is_ours(hash(line))]
            self._strange += len(raw) + 1 if strange else 0
            found += strange
        if is_last:
            rest = self._folding.feed(data[end:].decode("utf-8", "replace")) + self._folding.settle()
            found += [line for line in rest if not self._is_ours(hash(line))]
        return found

    def _is_ours(self, number: int) -> bool:
        count = self._expected[number]
        if count:
            self._expected[number] = count - 1
            if count == 1:
                del self._expected[number]
            return True
        return bool(self._children[number % _CHILDREN_LINES] == number)

    def _open(self) -> int:
        return os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDONLY | os.O_CLOEXEC)

    def _read(self, start: int, end: int) -> bytes:
        file = self._open()
        try:
            return os.pread(file, max(end - start, 0), start)
        finally:
            os.close(file)


def descriptor_of(stream: Any) -> int | None:
    """The descriptor that a stream writes to; None: to none of its own."""
    try:
        number = stream.fileno()
        os.fstat(number)
    except (AttributeError, OSError, ValueError):
        return None
    return number if isinstance(number, int) else None


def file_of(stream: Any) -> tuple[int, int] | None:
    """Device and inode of the regular file that a stream writes to; None: to none."""
    descriptor = descriptor_of(stream)
    if descriptor is None:
        return None
    found = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None
