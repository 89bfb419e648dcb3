"""Checksums over the records that wait: what the sender adds to a ring, because `log()` has no time for it.

At each wake the sender looks at what was published since its last look, and so does this: one CRC-32 over these bytes,
noted in the header page with their positions and sequences. What a drain finds there can be proved; only what is younger
than a wake must be believed for its shape.

Used by the sender's thread only.
"""

from __future__ import annotations

import zlib

from .format import CHUNKS
from .page import Chunk, Mark
from .ring import Ring

_FREE = Chunk(0, 0, 0, 0, 0, 0, 0)


class Checksums:
    """The table of one ring.

    Attributes:
        covered: The mark up to which there are checksums.
    """

    def __init__(self, ring: Ring, first_step: int) -> None:
        self._ring = ring
        self.covered: Mark = (0, 1, first_step)
        self._table = [_FREE] * CHUNKS
        self._last = 0

    def cover(self, now: Mark, stored: Mark) -> Chunk | None:
        """Covers what was published up to `now`.

        Args:
            stored: What is before it needs no checksum any more.

        Returns:
            What was added, with the CRC of exactly these bytes, or None: nothing, or it was added to the entry before.
        """
        since = max(self.covered, stored)
        if now[0] <= since[0]:
            return None
        self.covered = now
        # Invariant: one entry stays free, so that a longer one is whole before the one it replaces goes.
        free = [index for index, chunk in enumerate(self._table) if chunk.end <= stored[0]]
        old = self._table[self._last] if len(free) < 2 else None
        crc = old.crc if old is not None else 0
        for part in self._ring.slices(since[0], now[0]):
            crc = zlib.crc32(part, crc)
        chunk = Chunk(since[0], now[0], since[1], now[1], since[2], now[2], crc)
        if old is not None:
            assert old.end == chunk.start
            self._table[self._last] = _FREE
        self._last = free[0]
        self._table[self._last] = chunk if old is None else old.extended(chunk)
        self._ring.write_chunk(self._last, self._table[self._last])
        return chunk if old is None else None
