"""A living trainer's ring, read by the daemon of the same host, so that no thread of the trainer has to send anything.

The trainer writes a session's number into the ring and names it in Hello; who finds the same file under the same path,
with this number in it, may read as long as the number stands there. The header page is mapped, because a look at head
then costs no system call; the records are read with `pread`, which copies them.

Order of stores: the trainer stores a record before head, head before it lets go of anything, and another session's number
before anybody else may release what we have not taken. Where stores become visible in their order (x86), bytes that were
copied before a look that still finds the number are the ones that head stood for. Elsewhere rings are not lent.
"""

from __future__ import annotations

import mmap
import os

from ..errors import DamageError
from .drain import read_header
from .format import (
    CHECK,
    HEADER_BYTES,
    TAKEN,
    TAKEN_COPIES,
    WORD_BEAT,
    WORD_GATE,
    WORD_HEAD,
    WORD_SESSION,
    WORDS,
)
from .page import Mark, Taken, pack_taken
from .salvage import Window


class LentRing:
    """One ring, by its open descriptor, which stays the caller's.

    Limit: a file that is cut while it is mapped ends this process with SIGBUS. Its trainer maps it as well and ends
    first, and whoever may cut it may kill us.

    Attributes:
        begin: The mark from which on nothing is stored yet.
    """

    def __init__(self, path: str, descriptor: int, *, stream: int, store: bytes, run: str, session: int) -> None:
        """Maps its header page.

        Raises:
            OSError: It cannot be read, or not mapped for writing.
            DamageError, StoreError: It is not the ring of that stream, or not lent to this session.
        """
        header = read_header(path, descriptor)
        identity, status = header.identity, os.fstat(descriptor)
        if header.stream != stream or identity.get("store") != store or identity.get("run") != run:
            raise DamageError(f"ring {path!r} is another stream's")
        if status.st_uid != os.geteuid() or status.st_size < HEADER_BYTES + header.capacity:
            raise DamageError(f"ring {path!r} has owner {status.st_uid} and {status.st_size} bytes")
        if header.released is None:
            raise DamageError(f"ring {path!r} does not say where its records begin")
        self.begin: Mark = header.released
        self._session = session
        self._window = Window(descriptor, header.capacity)
        self._mapping = mmap.mmap(descriptor, HEADER_BYTES, mmap.MAP_SHARED)
        self._page = memoryview(self._mapping)
        self._words = self._page[: WORDS * 8].cast("Q")
        self._told: Taken | None = None
        if not self.is_lent():
            self.close()
            raise DamageError(f"ring {path!r} is not lent to session {session}")

    def is_lent(self) -> bool:
        """Whether the trainer still lets us read."""
        return self._words[WORD_SESSION] == self._session

    def end(self) -> int:
        """The position up to which may be read now."""
        # Race: head first. A record that must wait is published after the gate before it was closed.
        head = self._words[WORD_HEAD]
        gate = self._words[WORD_GATE]
        return min(head, gate - 1) if gate else head

    def read(self, start: int, end: int) -> bytes | None:
        """The bytes from position `start` to `end`; None: they may be overwritten, as the ring is ours no longer.

        Raises:
            DamageError: They are not there.
        """
        data = self._window.read(start, end)
        if not self.is_lent():
            return None
        if len(data) != end - start:
            raise DamageError(f"ring has {len(data)} bytes from position {start} on, its head says {end - start}")
        return data

    def tell(self, taken: Taken) -> None:
        """Says what is stored, and how we are. Costs nothing where it was said before."""
        if taken == self._told:
            return
        self._told, packed = taken, pack_taken(taken)
        for word in TAKEN_COPIES:
            self._page[word * 8 : word * 8 + TAKEN.size + CHECK.size] = packed

    def has_changed(self, position: int) -> bool:
        """Whether head is not at `position` any more, or the ring not ours: two words, as it is asked of every idle ring."""
        words = self._words
        return words[WORD_HEAD] != position or words[WORD_SESSION] != self._session

    def beat(self, number: int) -> None:
        """A sign of life: any number but 0 that is not the one before."""
        if self._words[WORD_SESSION] == self._session:
            self._words[WORD_BEAT] = number

    def stop(self) -> None:
        """Says that we read no more, and lets go."""
        if self.is_lent():
            self._words[WORD_BEAT] = 0
        self.close()

    def close(self) -> None:
        """Unmaps it. Like any closing of a descriptor, this drops the locks that this process has on the file."""
        self._words.release()
        self._page.release()
        self._mapping.close()
