"""One ring of a living trainer that we read ourselves: how far it was read, and what was said of it.

Begun by a Hello that offers it. What is stored is said in the ring's header page, where an Ack would say it. It ends when
the trainer takes the ring back, with the stream, or when we leave (docs/journal.md#lent).
"""

from __future__ import annotations

from collections import deque

from sdk.errors import DamageError
from sdk.journal.lent import LentRing
from sdk.journal.page import Mark, Taken
from sdk.limits import BATCH_BYTES_MAX
from sdk.wire.messages import BATCH_HAS_BLOBS, BATCH_HAS_META, BATCH_HAS_PIECES, Batch
from sdk.wire.session import Inbox


class RingReader:
    """How far one ring was read, and what of that is stored.

    Attributes:
        ring: The ring.
        mark: Up to where it was read. `stored`: up to where that is written.
    """

    __slots__ = ("_unstored", "mark", "ring", "stored")

    def __init__(self, ring: LentRing) -> None:
        self.ring = ring
        self.mark: Mark = ring.begin
        self.stored: Mark = ring.begin
        self._unstored: deque[Mark] = deque()

    def has_news(self) -> bool:
        """Whether there is something to read, or to be told that the ring is not ours any more."""
        if not self.ring.has_changed(self.mark[0]):
            return False
        return self.ring.end() > self.mark[0] or not self.ring.is_lent()

    def next(self, stream: int) -> Batch | None:
        """What is new, as a batch of about the size that a trainer sends; None: the ring is not ours any more.

        Raises:
            DamageError: These are not records.
            OSError: The ring cannot be read.
        """
        from sdk.journal.survey import Survey  # needs numpy, for which no trainer's Hello should wait

        position, sequence, step = self.mark
        if not self.ring.is_lent():
            return None
        end = self.ring.end()
        data = self.ring.read(position, min(end, position + BATCH_BYTES_MAX))
        if data is None:
            return None
        found = Survey(data, sequence, step)
        if not found.size or (found.size < len(data) and position + len(data) == end):
            raise DamageError(f"record {found.last + 1} does not end where the ring's head is")
        self.mark = (position + found.size, found.last + 1, found.step)
        self._unstored.append(self.mark)
        flags = BATCH_HAS_PIECES if found.has_pieces else 0
        flags |= (BATCH_HAS_META if found.has_meta else 0) | (BATCH_HAS_BLOBS if found.has_blobs else 0)
        records = memoryview(data)[: found.size]
        return Batch(stream, sequence, found.last, flags, found.step_max, records)

    def tell(self, inbox: Inbox, trouble: int) -> None:
        """Says in the ring what is stored, and why nothing more is; the trainer may overwrite it from then on."""
        while self._unstored and self._unstored[0][1] - 1 <= inbox.written:
            self.stored = self._unstored.popleft()
        self.ring.tell(Taken(*self.stored, inbox.synced, trouble))
