"""lz4 of bytes of any size, where a sample says that it pays.

Packed bytes are chunks of at most 16 MiB before packing, each with two u32 before it: its size packed and raw. So neither
side needs more memory than the bytes themselves, and nothing is allocated that the chunks cannot fill.
"""

from __future__ import annotations

import struct

from ..compression import CODEC_LZ4, CODEC_NONE, compress, decompress
from ..errors import DamageError
from ..files import Buffer
from ..limits import BLOB_BYTES_MAX, KIB, LZ4_RATIO_MAX, MIB

LZ4 = "lz4"
SHUFFLE = "shuffle"

_CHUNK_BYTES = 16 * MIB
_CHUNK = struct.Struct("<II")
# A sample from the beginning and one from the middle must both together shrink by a tenth.
_SAMPLE_BYTES = 64 * KIB
_WORTH = 0.9


def sample_of(raw: Buffer) -> bytes:
    """Bytes that stand for all of them: the first 64 KiB and as many from the middle."""
    view = memoryview(raw)
    if len(view) <= 2 * _SAMPLE_BYTES:
        return bytes(view)
    middle = len(view) // 2 // KIB * KIB
    return bytes(view[:_SAMPLE_BYTES]) + bytes(view[middle : middle + _SAMPLE_BYTES])


def ratio(sample: Buffer) -> float:
    """What lz4 makes of a byte of it."""
    return len(compress(sample)[1]) / max(len(sample), 1)


def pays(raw: Buffer) -> bool:
    """Whether packing saves at least a tenth, as far as a sample tells."""
    return ratio(sample_of(raw)) <= _WORTH


def pack(raw: Buffer) -> bytes:
    """All of it, packed chunk by chunk."""
    view, parts = memoryview(raw), []
    for start in range(0, len(view), _CHUNK_BYTES):
        chunk = view[start : start + _CHUNK_BYTES]
        _, packed = compress(chunk)
        parts += [_CHUNK.pack(len(packed), len(chunk)), packed]
    return b"".join(parts)


def unpack(data: Buffer, raw_size: object) -> bytes:
    """What `pack` was given.

    Raises:
        DamageError: These are no such bytes.
    """
    view = memoryview(data)
    if type(raw_size) is not int or not 0 <= raw_size <= min(BLOB_BYTES_MAX, len(view) * LZ4_RATIO_MAX):
        raise DamageError(f"{len(view)} packed bytes claim to be {raw_size!r}")
    parts, offset, found = [], 0, 0
    while offset < len(view):
        if len(view) - offset < _CHUNK.size:
            raise DamageError("packed bytes are cut")
        stored, raw = _CHUNK.unpack_from(view, offset)
        offset += _CHUNK.size
        found += raw
        if raw > _CHUNK_BYTES or stored > raw or offset + stored > len(view) or found > raw_size:
            raise DamageError(f"a packed chunk of {stored} bytes claims to be {raw}")
        codec = CODEC_NONE if stored == raw else CODEC_LZ4
        parts.append(decompress(codec, view[offset : offset + stored], raw))
        offset += stored
    if found != raw_size:
        raise DamageError(f"packed bytes hold {found}, not {raw_size}")
    return b"".join(parts)
