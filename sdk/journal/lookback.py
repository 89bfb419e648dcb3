"""Looks back into a ring: records that were released, because they were stored, and are still there.

For a daemon whose disk lost what it had taken. Up to one capacity behind head nothing was overwritten yet, but a released
record has no mark of its own, and its trainer may be logging on. So a record counts only when a walk from it reaches
exactly the released position with consecutive sequences, and not near the place that `log()` overwrites next.
"""

from __future__ import annotations

import re

from ..errors import DamageError
from ..record import HEADER, HEADER_SIZE
from .drain import read_header
from .salvage import Window, sound_run

# Limit: how far behind the published head a call that has not returned may have written: its one record. Twice the
# largest that is seen, and no less than this.
_MARGIN_MIN = 64 * 1024
# A record's header behind its length: a kind, flags, two zeros.
_BEHIND_LENGTH = re.compile(rb"(?s)(?=[\x01-\x03][\x00-\x07]\0\0)")


class Lookback:
    """The records that a ring holds now, released or not: one copy of its window, taken when this is made.

    Attributes:
        first: The sequence of the oldest; above `last` when there is none.
        last: That of the newest.
    """

    def __init__(self, path: str, descriptor: int) -> None:
        """Copies the window of an open ring, whose trainer may be alive.

        Raises:
            OSError, DamageError: It cannot be read, or nothing in it tells where a record begins.
        """
        header = read_header(path, descriptor)
        if header.released is None:
            raise DamageError(f"ring {path!r} does not say where its records begin")
        position, sequence, _ = header.released
        window = Window(descriptor, header.capacity)
        begin = max(header.head - header.capacity, 0)
        before = window.read(begin, position)
        after = window.read(position, header.head)
        stops, self.first = _reaching(before, sequence)
        # Bytes that were copied while log() went on may be newer than what they stand for.
        head = read_header(path, descriptor).head
        sizes = [end - start for start, end in zip(stops, stops[1:])]
        margin = max(_MARGIN_MIN, 2 * max(sizes, default=0))
        while len(stops) > 1 and begin + stops[0] < head - header.capacity + margin and head > header.capacity - margin:
            del stops[0]
            self.first += 1
        young = sound_run(after, 0, sequence, None)
        self._data = before + after
        self._stops = stops[:-1] + [position - begin + stop for stop in young]
        self.last = self.first + len(self._stops) - 2

    def records(self, first: int, last: int) -> tuple[int, bytes] | None:
        """Of records `first` to `last` those that are left, always the last ones: (first of them, bytes), or None."""
        first = max(first, self.first)
        if first > last or last > self.last:
            return None
        return first, self._data[self._stops[first - self.first] : self._stops[last - self.first + 1]]


def _reaching(data: bytes, end: int) -> tuple[list[int], int]:
    """Where the records begin and end that reach the end of `data`, where sequence `end` stands; the first's sequence."""
    for match in _BEHIND_LENGTH.finditer(data):
        start = match.start() - 4
        if start < 0 or len(data) - start < HEADER_SIZE:
            continue
        number = HEADER.unpack_from(data, start)[4]
        # As many records as its sequence leaves to `end` must have room behind it: which almost nothing else fulfils.
        if 0 < end - number <= (len(data) - start) // HEADER_SIZE:
            stops = sound_run(data, start, number, end)
            if stops[-1] == len(data) and number + len(stops) - 1 == end:
                return stops, number
    return [len(data)], end
