"""Questions to a living trainer through the header page of its ring: no signal, no socket, no thread that waits for them.

Who asks makes an empty file beside the ring, named by a number, and stores that number in the page. The sender finds it
when it next wakes, at the latest after a quarter of a second, writes the answer into the file and the number into another
word. Who asked reads the file and removes it. Only who may write the ring can ask: it is of mode 0600, in a directory of
mode 0700. A process that died, or whose interpreter does not run, answers nothing, and nobody waits for it longer than he
said. Of several who ask, each waits until the question in the page is answered before he stores his own. Two who do that in
the same moment overwrite one another's, and the one whose number is gone tries again.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import zlib

from .. import platform
from ..errors import DamageError, StoreError
from ..limits import MIB
from .drain import read_header
from .format import (
    ANSWER_SUFFIX,
    ANSWERS_NOBODY,
    HEADER_BYTES,
    SUFFIX,
    WORD_ANSWERED,
    WORD_ASKED,
    WORD_THREAD,
    WORDS,
)
from .handle import Journal

# Limit: what an answer may take of shared memory: 200 threads of 100 frames of 50 bytes.
ANSWER_BYTES_MAX = MIB
# Nothing was asked yet.
_LISTENS = 1
# Limits: one answer takes about a millisecond of the interpreter, so this is at most half a percent of it. One of hundreds of deep
# threads takes 25: the pause is so many times what the last answer took longer, but who asks waits two seconds.
_PAUSE_SECONDS, _PAUSE_COSTS, _PAUSE_LONGER_MAX = 0.2, 50, 1.0


class Questions:
    """The trainer's side, in its sender's thread. A ring in private memory is asked nothing."""

    def __init__(self, journal: Journal, *, answers: bool) -> None:
        self._journal = journal
        self._answers = answers and journal.ring.path is not None
        self._again = 0.0
        if not self._answers:
            journal.ring.words[WORD_ANSWERED] = ANSWERS_NOBODY

    def listen(self) -> None:
        """Says that from now on questions are looked for, by the thread that calls."""
        if self._answers:
            words = self._journal.ring.words
            words[WORD_THREAD], words[WORD_ANSWERED] = threading.get_native_id(), words[WORD_ASKED] or _LISTENS

    def waiting(self, now: float) -> int:
        """The number of a question that is to be answered now; 0: there is none, or the last one was a moment ago."""
        words = self._journal.ring.words
        asked = words[WORD_ASKED]
        if not asked or asked == words[WORD_ANSWERED] or not self._answers or now < self._again:
            return 0
        self._again = now + _PAUSE_SECONDS
        return asked

    def answer(self, number: int, data: bytes, cost: float = 0.0) -> None:
        """Gives `data`, which took `cost` seconds to make, to who asked; nobody, where he has gone meanwhile. Where there is no room he
        gets nothing.
        """  # fmt: skip
        self._again += min(_PAUSE_COSTS * cost, _PAUSE_LONGER_MAX)
        ring = self._journal.ring
        with contextlib.suppress(OSError):
            # Why not made here: what nobody waits for any more would stay.
            descriptor = platform.open_regular(_answer_path(str(ring.path), number), os.O_WRONLY | os.O_TRUNC)
            try:
                os.write(descriptor, zlib.crc32(data).to_bytes(4, "little") + data[:ANSWER_BYTES_MAX])
            finally:
                os.close(descriptor)
        ring.words[WORD_ANSWERED] = number


class Question:
    """The other side: one question to the process that made a ring. A context, which removes what it made.

    Attributes:
        thread: The sender's thread as the kernel numbers it (in the trainer's pid namespace); 0: it has not begun.
        others: How often somebody else got an answer meanwhile: the process is not silent.
    """

    def __init__(self, path: str, stream: int) -> None:
        """Asks.

        Raises:
            OSError: The ring is gone, or no file can be made beside it.
            DamageError: It is not the ring of that stream. StoreError: It is another user's, or this process's own.
        """
        if platform.lock_owner(path) == os.getpid():
            # Closing a descriptor of it would drop the lock that says that we live.
            raise StoreError(f"ring {path!r} is this process's own")
        descriptor = platform.open_regular(path, os.O_RDWR)
        try:
            header, status = read_header(path, descriptor), os.fstat(descriptor)
            if header.stream != stream:
                raise DamageError(f"ring {path!r} is another stream's")
            if status.st_uid != os.geteuid():
                raise StoreError(f"ring {path!r} belongs to user {status.st_uid}, and you are {os.geteuid()}")
            self._mapping = mmap.mmap(descriptor, HEADER_BYTES, mmap.MAP_SHARED)
        finally:
            os.close(descriptor)
        self._page = memoryview(self._mapping)
        self._words = self._page[: WORDS * 8].cast("Q")
        self._number = int.from_bytes(os.urandom(7), "little") + 2
        self._file = _answer_path(path, self._number)
        try:
            os.close(os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        except BaseException:
            self.close()
            raise
        self.thread = self._words[WORD_THREAD]
        self.others = 0
        self._last_answered = self._words[WORD_ANSWERED]
        self._ask()

    def __enter__(self) -> Question:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_heard(self) -> bool:
        """Whether somebody listens, as far as the page tells."""
        return self._words[WORD_ANSWERED] not in (0, ANSWERS_NOBODY)

    @property
    def is_refused(self) -> bool:
        """Whether the process answers nobody."""
        return self._words[WORD_ANSWERED] == ANSWERS_NOBODY

    def look(self) -> bytes | None:
        """The answer; None: it has not come. b"" where it cannot be read, or found no room."""
        answered = self._words[WORD_ANSWERED]
        if answered != self._number:
            if answered != self._last_answered:
                self._last_answered, self.others = answered, self.others + 1
            self._ask()
            return None
        try:
            descriptor = platform.open_regular(self._file, os.O_RDONLY)
            try:
                data = os.read(descriptor, ANSWER_BYTES_MAX + 4)
            finally:
                os.close(descriptor)
        except OSError:
            return b""
        return data[4:] if len(data) > 4 and zlib.crc32(data[4:]).to_bytes(4, "little") == data[:4] else b""

    def _ask(self) -> None:
        """Stores the number, unless somebody else's waits there to be answered."""
        asked = self._words[WORD_ASKED]
        if self.is_heard and asked != self._number and asked in (0, self._words[WORD_ANSWERED]):
            self._words[WORD_ASKED] = self._number

    def close(self) -> None:
        """Asks no more."""
        self._words.release()
        self._page.release()
        self._mapping.close()
        with contextlib.suppress(OSError):
            os.unlink(self._file)


def _answer_path(ring: str, number: int) -> str:
    return f"{ring[: -len(SUFFIX)]}.{number:016x}{ANSWER_SUFFIX}"
