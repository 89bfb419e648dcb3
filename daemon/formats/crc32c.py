"""CRC-32C (Castagnoli) with numpy: of one buffer, and of many records of one length at a time.

A CRC without its first and last inversion is linear: that of a message is the sum (XOR) of those of its single bytes, each
with zeros behind it. So bytes need not be taken one after another. A buffer is folded in halves: neighbours are joined, and
each level is one pass of numpy over half as many. Of records that differ in a few bytes only those are looked up.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy

if TYPE_CHECKING:
    from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78
_ALL = 0xFFFFFFFF
# Limit: a megabyte is folded at a time, with 2 MiB of intermediate values. What is shorter than 64 bytes goes faster by hand.
_PORTION_BYTES = 1 << 20
_SHORT_BYTES = 64


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """Of one buffer: about 150 MB/s."""
    state = _ALL
    if len(data) < _SHORT_BYTES:
        table = _first_table_list()
        for byte in bytes(data):
            state = table[(state ^ byte) & 0xFF] ^ state >> 8
        return state ^ _ALL
    whole = numpy.frombuffer(data, "u1")
    for at in range(0, len(whole), _PORTION_BYTES):
        portion = whole[at : at + _PORTION_BYTES]
        state = shifted(state, len(portion)) ^ int(_folded(portion.reshape(1, -1))[0])
    return state ^ _ALL


def crc32c_rows(rows: NDArray[numpy.uint8]) -> NDArray[numpy.uint32]:
    """Of each row of uint8[n, length]: uint32[n]. Memory: about four times that of the rows."""
    return _folded(rows) ^ numpy.uint32(shifted(_ALL, rows.shape[1]) ^ _ALL)


def masked(crc: int) -> int:
    """As TFRecord files hold it: turned right by 15 bits, plus a constant, so that a CRC of CRCs is no weak one."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & _ALL


def masked_of(crcs: NDArray[numpy.uint32]) -> NDArray[numpy.uint32]:
    turned: NDArray[numpy.uint32] = (crcs >> numpy.uint32(15)) | (crcs << numpy.uint32(17))
    turned += numpy.uint32(0xA282EAD8)
    return turned


def position_tables(count: int) -> NDArray[numpy.uint32]:
    """uint32[count, 256]: what a byte adds to a CRC (without inversions) with 0 to count - 1 bytes behind it. Do not change it."""
    global _positions
    if len(_positions) < count:
        first = _first_table()
        found = [*_positions]
        while len(found) < count:
            found.append(first[found[-1] & 0xFF] ^ (found[-1] >> numpy.uint32(8)))
        _positions = numpy.stack(found)
    return _positions[:count]


def shifted(state: int, count: int) -> int:
    """A CRC's state after so many zero bytes."""
    level = 0
    while count:
        if count & 1:
            tables = _shift_tables(level)
            state = int(_looked_up(tables, numpy.array([state], "u4"))[0])
        count >>= 1
        level += 1
    return state


def _folded(rows: NDArray[numpy.uint8]) -> NDArray[numpy.uint32]:
    """The CRC of each row without inversions. Zeros in front add nothing, so that a row is filled up there."""
    count, length = rows.shape
    width = 1 << max(length - 1, 1).bit_length()
    if width != length:
        wide = numpy.zeros((count, width), "u1")
        wide[:, width - length :] = rows
        rows = wide
    pairs = numpy.ascontiguousarray(rows).view("<u2")
    states = _pair_table()[pairs]
    level = 1
    while states.shape[1] > 1:
        left, right = states[:, 0::2], states[:, 1::2]
        tables = _shift_tables(level)
        states = _looked_up(tables, left) ^ right
        level += 1
    return states[:, 0]


def _looked_up(tables: NDArray[numpy.uint32], states: NDArray[numpy.uint32]) -> NDArray[numpy.uint32]:
    """States after the zero bytes that some `_shift_tables` stand for."""
    found: NDArray[numpy.uint32] = tables[0][states & 0xFF]
    found ^= tables[1][states >> 8 & 0xFF]
    found ^= tables[2][states >> 16 & 0xFF]
    found ^= tables[3][states >> 24]
    return found


@functools.cache
def _first_table() -> NDArray[numpy.uint32]:
    table = numpy.arange(256, dtype="u4")
    for _ in range(8):
        table = (table >> numpy.uint32(1)) ^ numpy.where(table & 1, numpy.uint32(_POLYNOMIAL), numpy.uint32(0))
    return table.astype("u4")


@functools.cache
def _first_table_list() -> list[int]:
    return [int(entry) for entry in _first_table()]


@functools.cache
def _pair_table() -> NDArray[numpy.uint32]:
    """Of two bytes, the first of which is the low one."""
    both = numpy.arange(1 << 16, dtype="u4")
    two = position_tables(2)
    return two[1][both & 0xFF] ^ two[0][both >> 8]


@functools.cache
def _shift_tables(level: int) -> NDArray[numpy.uint32]:
    """uint32[4, 256]: the state after 2**level zero bytes, as the sum of what each byte of a state becomes."""
    ones = numpy.arange(256, dtype="u4")
    states = numpy.stack([ones << numpy.uint32(shift) for shift in (0, 8, 16, 24)])
    if level == 0:
        return _first_table()[states & 0xFF] ^ (states >> numpy.uint32(8))
    half = _shift_tables(level - 1)
    for _ in range(2):
        states = (
            half[0][states & 0xFF] ^ half[1][states >> 8 & 0xFF] ^ half[2][states >> 16 & 0xFF] ^ half[3][states >> 24]
        )
    return states


_positions: NDArray[numpy.uint32] = _first_table().reshape(1, 256)
