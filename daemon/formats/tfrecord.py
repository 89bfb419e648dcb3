"""TFRecord files: what TensorBoard's event files are made of.

    length   u64, little-endian
    crc      u32: masked CRC-32C of those eight bytes
    payload  `length` bytes
    crc      u32: masked CRC-32C of the payload

A file that is being written may end anywhere: a record that is not whole is not there yet.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import numpy

from daemon.formats.crc32c import crc32c, crc32c_rows, masked, masked_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEADER_BYTES, FOOTER_BYTES = 12, 4
OVERHEAD_BYTES = HEADER_BYTES + FOOTER_BYTES
_HEADER, _U32, _U64 = struct.Struct("<QI"), struct.Struct("<I"), struct.Struct("<Q")
# Limit: rows that are checked at a time take about four times this.
_CHECK_BYTES_MAX = 4 << 20


def record(payload: bytes | bytearray) -> bytes:
    """A payload as a record."""
    head = _U64.pack(len(payload))
    return b"".join((head, _U32.pack(masked(crc32c(head))), payload, _U32.pack(masked(crc32c(payload)))))


def header(length: int) -> bytes:
    """What stands before a payload of so many bytes."""
    head = _U64.pack(length)
    return head + _U32.pack(masked(crc32c(head)))


class Records(NamedTuple):
    """The whole records at the beginning of some bytes.

    Attributes:
        starts: int64[n], where each payload begins; those whose checksum is wrong are left out.
        sizes: int64[n], their lengths.
        consumed: How many bytes all records take, bad ones too: where to go on. What follows is not whole yet.
        bad: How many payloads have a wrong checksum.
        is_lost: The header at `consumed` is damaged, so that nobody knows where the next record begins.
        wanted: How many bytes the record at `consumed` takes, as far as its header tells; 0 if that is cut off or damaged.
    """

    starts: NDArray[numpy.int64]
    sizes: NDArray[numpy.int64]
    consumed: int
    bad: int
    is_lost: bool
    wanted: int


def read_records(data: bytes | bytearray | memoryview) -> Records:
    """Finds and checks the records in some bytes that begin with one. Nothing is copied but what is being checked."""
    starts: list[int] = []
    sizes: list[int] = []
    at, end, wanted, is_lost = 0, len(data), 0, False
    known: dict[int, int] = {}  # checksum by length: most records of a file have one of a few lengths
    unpack = _HEADER.unpack_from
    while at + HEADER_BYTES <= end:
        size, crc = unpack(data, at)
        expected = known.get(size)
        if expected is None:
            if len(known) > 1 << 16:
                known.clear()
            expected = known[size] = masked(crc32c(_U64.pack(size)))
        if crc != expected:
            is_lost = True
            break
        if size + OVERHEAD_BYTES > end - at:
            wanted = size + OVERHEAD_BYTES
            break
        starts.append(at + HEADER_BYTES)
        sizes.append(size)
        at += size + OVERHEAD_BYTES
    found, lengths = numpy.array(starts, "i8"), numpy.array(sizes, "i8")
    good = _checked(data, found, lengths)
    return Records(found[good], lengths[good], at, int(len(good) - good.sum()), is_lost, wanted)


def _checked(
    data: bytes | bytearray | memoryview, starts: NDArray[numpy.int64], sizes: NDArray[numpy.int64]
) -> NDArray[numpy.bool_]:
    """Which payloads have the checksum that stands behind them: all of one length at a time."""
    good = numpy.zeros(len(starts), bool)
    if not len(starts):
        return good
    whole = numpy.frombuffer(data, "u1")
    view = memoryview(data)
    for size in numpy.unique(sizes).tolist():
        (places,) = numpy.nonzero(sizes == size)
        if len(places) < 8 or size > _CHECK_BYTES_MAX:
            for place in places.tolist():
                start = int(starts[place])
                (expected,) = _U32.unpack_from(data, start + size)
                good[place] = masked(crc32c(view[start : start + size])) == expected
            continue
        for some in numpy.array_split(places, len(places) * (size + FOOTER_BYTES) // _CHECK_BYTES_MAX + 1):
            rows = whole[starts[some][:, None] + numpy.arange(size + FOOTER_BYTES)]
            expected = numpy.ascontiguousarray(rows[:, size:]).view("<u4")[:, 0]
            found = crc32c_rows(rows[:, :size]) if size else numpy.zeros(len(some), "u4")
            good[some] = masked_of(found) == expected
    return good
