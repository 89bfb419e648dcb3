"""From the ring to the spool: what the sender stores itself while no daemon takes it."""

from __future__ import annotations

from collections.abc import Callable

from ._blobs import OwnBlobs
from ._pressure import Pressure
from ._spool import BLOCK_BYTES, Spool
from .budget import code_of
from .journal.handle import Journal
from .wire.messages import BATCH_HAS_BLOBS, BATCH_HAS_META, BATCH_HAS_PIECES
from .wire.session import Outbox, Span, span_between

_PAUSE_SECONDS = 1.0


class Spooling:
    """Moves one journal's records to its spool. Used by the sender's thread only.

    Attributes:
        blobs: Those that the sender stores itself, which must be there before the records that announce them.
        at: When it last did. `pause_until`: when the disk is asked again, after it refused.
    """

    def __init__(
        self,
        stream: int,
        journal: Journal,
        outbox: Outbox,
        spool: Spool,
        pressure: Pressure,
        notice: Callable[[str, str], None],
        stored: Callable[[], None],
    ) -> None:
        """`stored` is called when the outbox has noted that more is stored."""
        self._stream = stream
        self._journal = journal
        self._outbox = outbox
        self._spool = spool
        self._pressure = pressure
        self._notice = notice
        self._stored = stored
        self.blobs = OwnBlobs(journal, spool, self.trouble)
        self.at = self.pause_until = 0.0

    def all(self, now: float, why: str, *, is_last: bool) -> bool:
        """Moves what is in the ring now; whether all of it is stored.

        Not what comes meanwhile: beside a loop that logs flat out this would never end, and the daemon be forgotten.
        """
        self.at = now
        begins = not self._spool.is_open and not is_last
        boundaries, goal = self._journal.boundaries, self._journal.mark()
        if not self.blobs.store(now, goal, is_last=is_last):
            return False
        while True:
            stored = self._outbox.stored
            while boundaries and boundaries[0][0] <= stored[0]:
                boundaries.popleft()
            # Few and large blocks: checksum and write each give the GIL away, whatever their size.
            span = span_between(stored, boundaries, goal, BLOCK_BYTES, at_least_one=True)
            if span is None:
                self._pressure.note(0)
                return True
            size = span.end - span.start
            refusal = self._spool.refusal(size, now, is_last=is_last)
            if refusal:
                self.trouble(now, refusal)
                return False
            try:
                parts = self._journal.ring.slices(span.start, span.end)
                self._spool.append(self._stream, span, parts, batch_flags(self._journal, span))
            except OSError as error:
                self.trouble(now, code_of(error), str(error))
                return False
            self._outbox.store_locally(span)
            self._stored()
            if begins:
                begins = False
                self._notice("spool", f"{why} the records; they go to this run's spool on disk, nothing is lost")

    def trouble(self, now: float, code: int, detail: str = "") -> None:
        """The disk or a budget refuses; it is asked again after a pause."""
        self.pause_until = now + _PAUSE_SECONDS
        self._pressure.note(code, detail)


def batch_flags(journal: Journal, span: Span) -> int:
    """What a batch of the records of `span` says of them."""
    pieces = BATCH_HAS_PIECES if journal.piece_end() > span.start else 0
    blobs = BATCH_HAS_BLOBS if journal.blob_end() > span.start else 0
    return pieces | blobs | (BATCH_HAS_META if journal.meta_end() > span.start else 0)
