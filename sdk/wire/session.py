"""The legal order of things, as two pure halves that know nothing of sockets.

`Outbox` is the trainer's: which bytes of the ring to send next, what an Ack sets free, what a new session must repeat.
`Inbox` is the daemon's: which part of a batch is new. Both count in sequences; only the outbox also knows positions in
the ring. Together they give exactly once: the outbox repeats everything that was not acknowledged, the inbox drops what
it has.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from ..limits import BATCH_BYTES_MAX

# (position behind the last record, next sequence, open step): what `Journal.mark()` returns.
Mark = tuple[int, int, int]


class Span(NamedTuple):
    """A run of records in the ring: stream positions [start, end), sequences first to last (inclusive)."""

    start: int
    end: int
    first: int
    last: int
    step_first: int
    step_max: int


class Outbox:
    """What of a stream is stored, in flight, and still to be sent.

    Attributes:
        stored: The mark up to which everything is stored (written by the daemon, or in our own segment).
        sent: The mark up to which everything was handed to the session; never before `stored`.
        synced: The last sequence known to survive power loss.
    """

    def __init__(self, first_step: int = 0) -> None:
        self.stored: Mark = (0, 1, first_step)
        self.sent: Mark = self.stored
        self.synced = 0
        self._credit = 0
        self._in_flight: deque[Mark] = deque()

    @property
    def stored_sequence(self) -> int:
        """The last stored sequence; 0 before the first."""
        return self.stored[1] - 1

    @property
    def in_flight_bytes(self) -> int:
        return self.sent[0] - self.stored[0]

    def open(self, credit: int) -> None:
        """A new session: everything that is not stored will be sent again, with so many bytes in flight."""
        self.sent = self.stored
        self._in_flight.clear()
        self._credit = credit

    def next(self, boundaries: deque[Mark], now: Mark, bytes_max: int = BATCH_BYTES_MAX) -> Span | None:
        """The next batch: as much as one message and the credit allow, ending where a record ends.

        Args:
            boundaries: Marks inside the ring, oldest first; those before what is stored are removed.
            now: The current mark.
        """
        room = min(bytes_max, self._credit - self.in_flight_bytes)
        # Invariant: only what is stored may be forgotten; a new session sends the rest again, from the same boundaries.
        while boundaries and boundaries[0][0] <= self.stored[0]:
            boundaries.popleft()
        span = span_between(self.sent, boundaries, now, room)
        if span is not None:
            self.sent = (span.end, span.last + 1, span.step_max)
            self._in_flight.append(self.sent)
        return span

    def acknowledge(self, written: int, synced: int) -> bool:
        """Notes an Ack; whether it made progress. One for records that were never sent is ignored."""
        self.synced = max(self.synced, min(synced, self.stored_sequence))
        progress = False
        while self._in_flight and self._in_flight[0][1] - 1 <= written:
            self.stored = self._in_flight.popleft()
            progress = True
        self.synced = max(self.synced, min(synced, self.stored_sequence))
        return progress

    def taken(self, mark: Mark, synced: int) -> bool:
        """Notes what a daemon that reads the ring itself has stored; whether that is progress."""
        progress = mark[0] > self.stored[0]
        if progress:
            self.stored = self.sent = mark
            self._in_flight.clear()
        self.synced = max(self.synced, min(synced, self.stored_sequence))
        return progress

    def store_locally(self, span: Span) -> None:
        """Notes that `span`, which begins where `stored` ends, lies in our own segment. Ends the session's view."""
        assert span.start == self.stored[0]
        self.stored = (span.end, span.last + 1, span.step_max)
        self._in_flight.clear()
        self.sent = self.stored


def span_between(
    start: Mark, boundaries: deque[Mark], now: Mark, room: int, *, at_least_one: bool = False
) -> Span | None:
    """The longest run of whole records from `start` that takes at most `room` bytes, or None.

    Args:
        at_least_one: Where nothing fits, the shortest run that can be cut, however large it is.
    """
    end = now
    if now[0] - start[0] > room:
        marks = [mark for mark in list(boundaries) if start[0] < mark[0] <= now[0]]
        fitting = [mark for mark in marks if mark[0] <= start[0] + room]
        if not fitting and not at_least_one:
            return None
        end = fitting[-1] if fitting else marks[0] if marks else now
    if end[0] <= start[0]:
        return None
    return Span(start[0], end[0], start[1], end[1] - 1, start[2], end[2])


class Inbox:
    """What the daemon has of one stream. All three only grow.

    Attributes:
        received: Every record up to here has come (or is stored elsewhere).
        written, synced: Up to here it is stored, and how durably.
    """

    __slots__ = ("received", "synced", "written")

    def __init__(self, stored: int) -> None:
        self.received = self.written = stored
        self.synced = 0

    def greet(self, stored: int) -> None:
        """A Hello says that everything up to `stored` is stored, by us or by the trainer itself."""
        self.received = max(self.received, stored)
        self.written = max(self.written, stored)

    def admit(self, first: int, last: int) -> int | None:
        """How many records of a batch to skip because they are here already (all of them: a duplicate).

        Returns:
            The number to skip, 0 to ``last - first + 1``; None when records before `first` are missing.
        """
        if first > self.received + 1:
            return None
        skip = min(self.received - first + 1, last - first + 1)
        self.received = max(self.received, last)
        return skip
