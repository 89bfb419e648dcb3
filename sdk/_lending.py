"""The ring lent to a daemon that reads it itself: the sender's side (docs/journal.md#lent).

Offered in each Hello, under a number that stands in the ring; where the daemon's Welcome says that it reads, nothing is
sent. The sender then wakes rarely, to see what is stored, to do what only it can (blobs of private memory, the spool) and
to notice that the daemon is gone. Taken back before anybody else may release what waits: from then on whoever read the
ring finds another number there, and does not believe what it copied.
"""

from __future__ import annotations

import platform as system
from collections.abc import Callable

from .journal.handle import Journal
from .journal.page import Taken

# Limit: what a sender that sends nothing costs a training loop: four looks a second. `log()` wakes it when a quarter of the
# ring waits.
WAKE_SECONDS_MAX = 0.25
# Where one processor's stores become visible to another in their order; elsewhere a reader might see head before the record.
_ORDERED = ("x86_64", "AMD64", "i686")


class Lending:
    """One journal's ring, lent or not.

    Attributes:
        is_offered: A daemon may read, as far as we know. `is_read`: it said that it does.
        heard: When its last sign of life was seen.
    """

    def __init__(self, journal: Journal, *, wanted: bool, wake: Callable[[], None]) -> None:
        self._journal = journal
        self._wanted = wanted and system.machine() in _ORDERED
        self._wake = wake
        self._session = 0
        self._beat = 0
        self.is_offered = False
        self.is_read = False
        self.heard = 0.0

    def offer(self, *, allowed: bool) -> tuple[int, int, int]:
        """What a Hello says of it: device, inode, session; (0, 0, 0): it is not lent."""
        self.take_back()
        device, inode = self._journal.ring.file()
        if not (allowed and self._wanted and inode):
            return 0, 0, 0
        self._session += 1
        self.is_offered = True
        self._journal.lend(self._session, self._wake)
        return device, inode, self._session

    def answered(self, reads: int, now: float) -> None:
        """The daemon's Welcome: whether it reads."""
        if not reads:
            self.take_back()
        self.is_read, self.heard = bool(reads) and self.is_offered, now

    def take_back(self) -> None:
        """From now on nobody else reads; what was taken until now stays taken."""
        if self.is_offered:
            self._journal.lend(0, self._wake)
        self.is_offered = self.is_read = False

    def look(self, now: float) -> Taken | None:
        """What the daemon has stored so far, and whether it has said something since (`heard`)."""
        beat = self._journal.ring.beat()
        if beat != self._beat:
            self._beat, self.heard = beat, now
        return self._journal.look()

    @property
    def is_over(self) -> bool:
        """Whether the daemon said that it reads no more."""
        return self.is_read and self._journal.ring.beat() == 0
