"""Protocol buffers by hand: fields written to bytes and read from them, without generated code or a package.

The encoding is https://protobuf.dev/programming-guides/encoding. What a field's number means stands with the format that
uses it. Of what is read nothing is believed: whatever the bytes are, a generator here yields fields or raises `ValueError`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

# Wire types.
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

_VARINT_BYTES_MAX = 10
_DOUBLE, _FLOAT = struct.Struct("<d"), struct.Struct("<f")

Value = int | float | memoryview


# -- writing -------------------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first. Negative numbers as their two's complement in 64 bits: ten bytes."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def head(field: int, wire: int) -> bytes:
    """What stands before a field's value."""
    return varint(field << 3 | wire)


def integer(field: int, value: int) -> bytes:
    """A field of type int32, int64, uint64, bool or an enum."""
    return head(field, VARINT) + varint(value)


def double(field: int, value: float) -> bytes:
    return head(field, FIXED64) + _DOUBLE.pack(value)


def block(field: int, content: bytes | bytearray | memoryview) -> bytes:
    """A field of type bytes, a message, or packed numbers."""
    return b"".join((head(field, BYTES), varint(len(content)), content))


def text(field: int, content: str) -> bytes:
    """A field of type string, which is UTF-8: a lone surrogate becomes ``?``."""
    return block(field, content.encode("utf-8", "replace"))


def packed(field: int, values: Iterable[int]) -> bytes:
    """A repeated field of integers."""
    return block(field, b"".join(map(varint, values)))


# -- reading -------------------------------------------------------------------------------------------------------------


def read_varint(data: memoryview | bytes, at: int) -> tuple[int, int]:
    """The number that begins at an offset, unsigned, and the offset behind it.

    Raises:
        ValueError: It is cut off, or longer than ten bytes.
    """
    value = 0
    for count in range(_VARINT_BYTES_MAX):
        if at + count >= len(data):
            raise ValueError(f"a number at byte {at} is cut off after {count} bytes")
        byte = data[at + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value & ((1 << 64) - 1), at + count + 1
    raise ValueError(f"a number at byte {at} has more than {_VARINT_BYTES_MAX} bytes")


def fields(data: memoryview | bytes) -> Iterator[tuple[int, int, Value]]:
    """(field, wire type, value) of a message, in order.

    A value is an unsigned int (VARINT), a float (FIXED64, FIXED32: the types double and float, nothing else is fixed in
    the formats here) or a memoryview of `data` (BYTES).

    Raises:
        ValueError: The bytes are no message.
    """
    view = memoryview(data)
    at, end = 0, len(view)
    while at < end:
        key, at = read_varint(view, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = read_varint(view, at)
            yield number, wire, value
            continue
        if wire == BYTES:
            size, at = read_varint(view, at)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"field {number} has wire type {wire}, expected 0, 1, 2 or 5")
        if size > end - at:
            raise ValueError(f"field {number} at byte {at} has {size} bytes, {end - at} are left")
        part = view[at : at + size]
        at += size
        if wire == BYTES:
            yield number, wire, part
        else:
            yield number, wire, (_DOUBLE if wire == FIXED64 else _FLOAT).unpack(part)[0]


def signed(value: int) -> int:
    """The int64 that an unsigned number stands for."""
    return value - (1 << 64) if value >> 63 else value


def read_text(value: memoryview) -> str:
    """A string; bytes that are no UTF-8 become U+FFFD."""
    return bytes(value).decode("utf-8", "replace")
