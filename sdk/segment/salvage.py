"""The file header of a segment that has lost its own: its seed from a block, writer and number from the file's name.

A first sector that is zeros must not take the whole file with it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from ..files import File
from .format import ALIGNMENT, BLOCK_HEADER, BLOCK_HEADER_SIZE, BLOCKS_OFFSET, FILE_HEADER_SIZE, FileHeader
from .headers import BLOCK_MAGIC_BYTES, is_possible, owner_of, seed_of
from .naming import SegmentName

_WINDOW_BYTES = 1 << 20
# Limit: what looks like block headers in a file that is none: 1000 x 10 us.
_CANDIDATES_MAX = 1000
# The last fields of a block header: CRC of the block before, whose segment it is, its own CRC.
_LINKS = struct.Struct("<III")


def header_from_blocks(file: File, packed: bytes, name: SegmentName) -> FileHeader | None:
    """What the header was, as far as it matters for reading.

    Args:
        packed: The first bytes of the file, damaged or missing.

    Returns:
        None where no seed can be proven. Any damaged block header gives some seed, so a second witness must agree: another
        block of a segment of this name, the first block's link to the file header, or one half of the damaged header.
    """
    owner = owner_of(name.writer, name.number)
    witnesses = set()
    if len(packed) == FILE_HEADER_SIZE:
        witnesses = {zlib.crc32(packed[:-4]), int.from_bytes(packed[-4:], "little")}
    for head in _candidates(file):
        previous, whose, _ = _LINKS.unpack_from(head, BLOCK_HEADER_SIZE - _LINKS.size)
        if whose != owner:
            continue
        seed = seed_of(head)
        if seed in witnesses or seed == previous:
            return FileHeader(bytes(16), name.writer, name.number, 0, seed)
        witnesses.add(seed)
    return None


def _candidates(file: File) -> Iterator[bytes]:
    """The first places in the file that look like a block header of this version."""
    offset, left = BLOCKS_OFFSET, _CANDIDATES_MAX
    while offset < file.size:
        window = file.read(offset, _WINDOW_BYTES + BLOCK_HEADER_SIZE)
        found = window.find(BLOCK_MAGIC_BYTES)
        while found >= 0:
            head = window[found : found + BLOCK_HEADER_SIZE]
            if found % ALIGNMENT == 0 and found < _WINDOW_BYTES and len(head) == BLOCK_HEADER_SIZE:
                _, kind, _, size, stored, raw, *_ = BLOCK_HEADER.unpack(head)
                if is_possible(kind, size, stored, raw):
                    yield head
                    left -= 1
                    if not left:
                        return
            found = window.find(BLOCK_MAGIC_BYTES, found + 1)
        offset += _WINDOW_BYTES
