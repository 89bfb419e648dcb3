"""lz4 behind one question: is it worth it? The only module that imports lz4.

Only the raw block format is used, with an output size that comes from a header whose CRC was checked: the frame format
allocates whatever its own header claims.
"""

from __future__ import annotations

from typing import cast

import lz4.block

from .errors import DamageError
from .files import Buffer
from .limits import BLOCK_RAW_BYTES_MAX, LZ4_RATIO_MAX

CODEC_NONE = 0
CODEC_LZ4 = 1

# Below this a block header weighs more than what compression saves.
_BYTES_MIN = 512


def compress(raw: Buffer) -> tuple[int, Buffer]:
    """`(codec, stored)`: lz4 where it saves at least a sixteenth, else the same bytes, not copied. Releases the GIL."""
    size = len(raw)
    if size < _BYTES_MIN:
        return CODEC_NONE, raw
    packed = lz4.block.compress(raw, store_size=False)
    if len(packed) > size - size // 16:
        return CODEC_NONE, raw
    return CODEC_LZ4, packed


def decompress(codec: int, stored: Buffer, raw_size: int) -> Buffer:
    """The raw bytes of a block.

    Raises:
        DamageError: Unknown codec, sizes that cannot belong together, or bytes that lz4 refuses.
    """
    if codec == CODEC_NONE:
        if len(stored) != raw_size:
            raise DamageError(f"uncompressed block has {len(stored)} bytes, its header says {raw_size}")
        return stored
    if codec != CODEC_LZ4:
        raise DamageError(f"unknown codec {codec}; expected {CODEC_NONE} (none) or {CODEC_LZ4} (lz4)")
    if raw_size > BLOCK_RAW_BYTES_MAX or raw_size > len(stored) * LZ4_RATIO_MAX + 64:
        raise DamageError(f"block of {len(stored)} bytes claims {raw_size} raw bytes, more than lz4 can make of it")
    try:
        raw = cast(bytes, lz4.block.decompress(stored, uncompressed_size=raw_size))
    except (lz4.block.LZ4BlockError, ValueError, MemoryError) as error:
        raise DamageError(f"lz4 refuses a block of {len(stored)} bytes: {error}") from error
    if len(raw) != raw_size:
        raise DamageError(f"lz4 block gave {len(raw)} bytes, its header says {raw_size}")
    return raw
