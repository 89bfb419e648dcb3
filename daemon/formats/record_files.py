"""A TFRecord file in portions, each of whole records: of any size, damaged or not, still being written or not.

A record with a wrong checksum is skipped. Where the header of a record is damaged nobody knows its length: the next one is looked for,
byte by byte, by the checksum that every header has. The end of a file that is no whole record is not there yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy
from numpy.typing import NDArray

from .crc32c import crc32c_rows, masked_of
from .tfrecord import HEADER_BYTES, read_records

PORTION_BYTES = 8 << 20
# Limit: protobuf itself takes no message of more than 2 GiB; what claims more than half of that is damage whose checksum fits.
RECORD_BYTES_MAX = 1 << 30
_SEARCH_BYTES = 1 << 20
_LENGTH_BYTES = 8

# (offset, size) -> the bytes that are there, fewer at the end.
Read = Callable[[int, int], bytes]


class Portion(NamedTuple):
    """Whole records of a file.

    Attributes:
        data: The bytes that hold them. `starts`, `sizes`: int64[n], where each payload is among these.
        end: Where the portion ends in the file.
    """

    data: bytes
    starts: NDArray[numpy.int64]
    sizes: NDArray[numpy.int64]
    end: int


class RecordFile:
    """One file, read from its beginning once.

    Attributes:
        bad: Records whose checksum is wrong, so far.
        lost_bytes: Bytes in which no record was found, `holes` the places where they are.
        tail_bytes: At the end, those that are not a whole record yet; known when all was read.
    """

    def __init__(self, read: Read, size: int) -> None:
        self._read = read
        self._size = size
        self.bad = self.lost_bytes = self.holes = self.tail_bytes = 0

    def portions(self) -> Iterator[Portion]:
        """The records, in order; memory holds about four portions, or a record that is larger."""
        at, wanted = 0, PORTION_BYTES
        while at < self._size:
            data = self._read(at, min(wanted, self._size - at))
            found = read_records(data)
            self.bad += found.bad
            if found.consumed:
                yield Portion(data, found.starts, found.sizes, at + found.consumed)
            at += found.consumed
            is_too_large = found.wanted > RECORD_BYTES_MAX
            if found.is_lost or is_too_large:
                following = self._next_header(at + 1)
                self.holes += 1
                self.lost_bytes += following - at
                at, wanted = following, PORTION_BYTES
            elif found.consumed:
                wanted = PORTION_BYTES
            elif len(data) < found.wanted <= self._size - at:
                wanted = found.wanted
            else:
                self.tail_bytes = self._size - at
                return

    def _next_header(self, at: int) -> int:
        """Where the next header with a right checksum is that a file of this size can hold; the file's end where none is."""
        while at + HEADER_BYTES <= self._size:
            data = self._read(at, min(_SEARCH_BYTES, self._size - at))
            if len(data) < HEADER_BYTES:
                break
            windows = numpy.lib.stride_tricks.sliding_window_view(numpy.frombuffer(data, numpy.uint8), HEADER_BYTES)
            lengths = numpy.ascontiguousarray(windows[:, :_LENGTH_BYTES])
            told = numpy.ascontiguousarray(windows[:, _LENGTH_BYTES:]).view("<u4")[:, 0]
            good = masked_of(crc32c_rows(lengths)) == told
            # Why the size too: among a billion places one has the right checksum by chance.
            good &= lengths.view("<u8")[:, 0] <= RECORD_BYTES_MAX
            (places,) = numpy.nonzero(good)
            if len(places):
                return at + int(places[0])
            at += len(windows)
        return self._size
