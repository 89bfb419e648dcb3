"""What a sender does for its ring besides emptying it: checksums over what waits, and a new file when ours was removed.

systemd removes a user's shared memory when the user's last session ends (RemoveIPC), also under a training that goes on:
its ring would die with it, and what waits there would not survive kill -9. Whoever looks finds the new file under the old
name, with the same bytes at the same positions.
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import Error
from .checksums import Checksums
from .handle import Journal
from .page import Mark

LOOK_SECONDS = 1.0


class Upkeep:
    """Looks after one journal's ring. Used by the sender's thread only."""

    def __init__(self, journal: Journal, now: float, notice: Callable[[str, str], None]) -> None:
        self._journal = journal
        self._checksums = Checksums(journal.ring, journal.mark()[2])
        self._looked = now
        self._notice = notice

    def cover(self, now: Mark, stored: Mark) -> None:
        """Adds a checksum over what was published up to `now`; see `Checksums.cover`."""
        self._checksums.cover(now, stored)

    def cover_batch(self, start: int, end: Mark, now: Mark, stored: Mark) -> int | None:
        """The same beside a batch from position `start` to `end` that is about to be sent; the batch's CRC if this gave it.

        Where the batch is the next that has no checksum, only the batch gets one, and a flood of records behind it waits
        for the next. Why: over more than 5 KiB each CRC gives the GIL away, and getting it back costs up to 5 ms.
        """
        chunk = self._checksums.cover(end if start == self._checksums.covered[0] else now, stored)
        return chunk.crc if chunk is not None and (chunk.start, chunk.end) == (start, end[0]) else None

    def look(self, now: float) -> bool:
        """Makes the ring's file again if it was removed; whether it did, and those who knew the old one must be told."""
        # Why so seldom: asking the kernel gives the GIL away.
        if now - self._looked < LOOK_SECONDS:
            return False
        self._looked = now
        if not self._journal.ring.is_unlinked():
            return False
        try:
            self._journal.replace_ring()
        except (OSError, Error) as error:
            text = f"the ring's file was removed from shared memory and cannot be made again ({error}); until it is, "
            self._notice("ring", text + "kill -9 of this process loses what waits in it")
            return False
        self._notice(
            "ring", "the ring's file was removed from shared memory (a logout?) and made again; nothing was lost"
        )
        return True
