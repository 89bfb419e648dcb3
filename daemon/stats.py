"""Counters of a daemon, and the answer to `status`."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

# Rates are means over this time: long enough to be steady, short enough to show what happens now.
_RATE_SECONDS = 10.0


@dataclass
class Stats:
    """What one daemon has done since it started.

    Attributes:
        records, bytes: Taken from trainers and written.
        batches, duplicates: Messages with records; records that were here already.
        flushes: By reason.
        protocol_errors: Messages that were not of this protocol.
        drained: Rings of dead trainers that were taken over.
        mended: Segments of dead writers that were sealed. `torn_bytes`: what was cut from them and kept aside.
        sync_failures, write_failures: What the disk refused.
        rewritten_blocks: Blocks that were written again because their segment could not be forced.
        gaps: Records that are lost or were never taken, by reason, as far as we wrote a GAP for them.
        last_error: The latest trouble, for people.
    """

    started: float
    records: int = 0
    bytes: int = 0
    batches: int = 0
    duplicates: int = 0
    flushes: Counter[str] = field(default_factory=Counter)
    protocol_errors: int = 0
    drained: int = 0
    mended: int = 0
    torn_bytes: int = 0
    sync_failures: int = 0
    write_failures: int = 0
    rewritten_blocks: int = 0
    gaps: Counter[str] = field(default_factory=Counter)
    last_error: str = ""
    _window: deque[tuple[float, int, int]] = field(default_factory=deque)

    def note_written(self, now: float, records: int, size: int) -> None:
        self.records += records
        self.bytes += size
        if not self._window or now - self._window[-1][0] > 0.5:
            self._window.append((now, self.records - records, self.bytes - size))
            while len(self._window) > 1 and now - self._window[0][0] > _RATE_SECONDS:
                self._window.popleft()

    def rates(self, now: float) -> tuple[float, float]:
        """(records, bytes) per second over the last seconds."""
        while len(self._window) > 1 and now - self._window[0][0] > _RATE_SECONDS:
            self._window.popleft()
        if not self._window or now - self._window[0][0] > 2 * _RATE_SECONDS:
            return 0.0, 0.0
        since, records, size = self._window[0]
        seconds = max(now - since, 1.0)
        return (self.records - records) / seconds, (self.bytes - size) / seconds
