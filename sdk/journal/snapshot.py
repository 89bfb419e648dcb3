"""What a stream's own process has logged lately, copied out of its ring while `log()` goes on.

What was released is not gone before its place is needed again, and what was not released is there for sure. So a reader that was
here before goes on where it stopped, as long as `log()` has not come round; and one that begins takes everything that is not
stored yet. Nothing is locked: bytes that may have been overwritten while they were copied are not believed.
"""

from __future__ import annotations

from typing import NamedTuple

from .handle import Journal
from .page import Mark, read_released

# A copy is made in some ms, in which a loop that runs flat out fills a part of the ring.
_TRIES_MAX = 8


class Snapshot(NamedTuple):
    """The records from one mark to another.

    Attributes:
        start: Before the first of them.
        end: Behind the last of them.
        records: Their bytes.
    """

    start: Mark
    end: Mark
    records: bytes


def snapshot(journal: Journal, since: Mark | None = None) -> Snapshot | None:
    """The records from `since` on, or (None) all that may not be stored yet; None where they are not whole any more.

    Any thread. Takes no lock and waits for nobody.
    """
    for _ in range(_TRIES_MAX):
        start = since or _released(journal)
        end = journal.mark()
        ring = journal.ring
        records = b"".join(ring.slices(start[0], end[0])) if end[0] - start[0] <= ring.capacity else b""
        # The call that is being made may have written its bytes already, before it says so.
        room = ring.capacity - (journal.mark()[0] - start[0])
        if len(records) == end[0] - start[0] and (room >= ring.capacity // 8 or _released(journal)[0] <= start[0]):
            return Snapshot(start, end, records)
        if since is not None:
            return None
    return None


def _released(journal: Journal) -> Mark:
    """The mark before which everything is stored, as the ring says."""
    released = read_released(bytes(journal.ring.page))
    taken = journal.ring.taken()
    if released is None:  # never of a ring of our own
        return 0, 1, 0
    return taken.mark if taken is not None and released[0] < taken.position <= journal.mark()[0] else released
