"""The fixed parts of a segment as bytes: file header, seal area, block headers, trailer. Pure; writer and reader share it.

Every CRC but the file header's own begins with the file header's CRC, the **seed**: a block that was copied here from
another segment has a wrong CRC. Where the file header is lost, a block header gives the seed back (`seed_of`).
"""

from __future__ import annotations

import functools
import struct
import zlib

from ..errors import DamageError, StoreError
from ..limits import BLOCK_RAW_BYTES_MAX, BLOCK_STORED_BYTES_MAX
from .format import (
    ALIGNMENT,
    BLOCK_HEADER,
    BLOCK_HEADER_SIZE,
    BLOCK_MAGIC,
    BLOCKS_OFFSET,
    FILE_HEADER,
    FILE_HEADER_SIZE,
    FILE_MAGIC,
    FORMAT_MAJOR,
    FORMAT_MINOR,
    HEADER_SIZE_MAX,
    KIND_SKIPPABLE,
    SEAL,
    SEAL_MAGIC,
    SEAL_SIZE,
    SEAL_STREAMS,
    TRAILER,
    TRAILER_MAGIC,
    TRAILER_SIZE,
    Block,
    Claim,
    FileHeader,
    Seal,
)

BLOCK_MAGIC_BYTES = struct.pack("<I", BLOCK_MAGIC)
_NAME = struct.Struct("<QI")


def _with_crc(body: bytes, seed: int) -> bytes:
    """A struct whose last field is the CRC of what stands before it."""
    return body[:-4] + zlib.crc32(body[:-4], seed).to_bytes(4, "little")


def pack_file_header(header: FileHeader) -> bytes:
    body = FILE_HEADER.pack(
        FILE_MAGIC, FORMAT_MAJOR, FORMAT_MINOR, header.size, 0, 0, header.store_id, header.writer, header.number,
        header.created_ns, 0,
    )  # fmt: skip
    return _with_crc(body, 0)


def parse_file_header(packed: bytes, path: str) -> FileHeader:
    """The header at the start of a file.

    Raises:
        DamageError: These bytes are none.
        StoreError: A newer version wrote it.
    """
    if len(packed) < FILE_HEADER_SIZE:
        raise DamageError(f"{path!r} has {len(packed)} bytes, a segment header has {FILE_HEADER_SIZE}")
    magic, major, _, size, incompatible, _, store_id, writer, number, created, crc = FILE_HEADER.unpack(packed)
    if magic != FILE_MAGIC:
        raise DamageError(f"{path!r} is not a segment: it begins with {magic!r}, expected {FILE_MAGIC!r}")
    found = zlib.crc32(packed[:-4])
    if found != crc:
        raise DamageError(f"the header of {path!r} is damaged: crc is {found:#010x}, expected {crc:#010x}")
    if major > FORMAT_MAJOR or incompatible:
        raise StoreError(
            f"{path!r} has format {major} (flags {incompatible:#x}): a newer version wrote it; "
            f"this stepd reads up to {FORMAT_MAJOR}"
        )
    if not BLOCKS_OFFSET <= size <= HEADER_SIZE_MAX or size % ALIGNMENT:
        raise DamageError(f"the header of {path!r} claims {size} bytes, expected {BLOCKS_OFFSET} to {HEADER_SIZE_MAX}")
    return FileHeader(store_id, writer, number, created, crc, size)


def pack_seal(seal: Seal, seed: int) -> bytes:
    words = [word for claim in seal.claims[:SEAL_STREAMS] for word in claim]
    words += [0] * (3 * SEAL_STREAMS - len(words))
    return _with_crc(SEAL.pack(seal.size, seal.blocks, seal.streams, *words, SEAL_MAGIC, 0), seed)


def parse_seal(packed: bytes, seed: int) -> Seal | None:
    """What the seal area says; None while the segment is open, and where the area is torn or damaged."""
    if len(packed) != SEAL_SIZE:
        return None
    size, blocks, streams, *words, magic, crc = SEAL.unpack(packed)
    if magic != SEAL_MAGIC or zlib.crc32(packed[:-4], seed) != crc or size < BLOCKS_OFFSET + TRAILER_SIZE:
        return None
    claims = (Claim(*words[start : start + 3]) for start in range(0, 3 * min(streams, SEAL_STREAMS), 3))
    return Seal(size, blocks, streams, tuple(claims))


def owner_of(writer: int, number: int) -> int:
    """What every block header says of its segment's name, so that a file without a header can be told from another's."""
    return zlib.crc32(_NAME.pack(writer, number))


def pack_block_header(block: Block, seed: int, owner: int) -> bytes:
    body = BLOCK_HEADER.pack(
        BLOCK_MAGIC, block.kind, block.codec, block.header_size, block.stored_size, block.raw_size, block.payload_crc,
        block.records, block.number, block.stream, block.first, block.last, block.step_min, block.step_max, block.flags,
        block.previous_crc, owner, 0,
    )  # fmt: skip
    return _with_crc(body, seed)


def parse_block_header(packed: bytes, offset: int, seed: int) -> Block | None:
    """The header in `packed`, or None: not one of this file."""
    if len(packed) < BLOCK_HEADER_SIZE or packed[:4] != BLOCK_MAGIC_BYTES:
        return None
    fields = BLOCK_HEADER.unpack(packed)
    if zlib.crc32(packed[:-4], seed) != fields[-1]:
        return None
    (_, kind, codec, size, stored, raw, payload_crc, records, number, stream, first, last, step_min, step_max, flags,
     previous, _, crc) = fields  # fmt: skip
    if not is_possible(kind, size, stored, raw):
        return None
    return Block(
        offset, kind, codec, stored, raw, payload_crc, records, number, stream, first, last, step_min, step_max, flags,
        previous, crc, size,
    )  # fmt: skip


def is_possible(kind: int, header: int, stored: int, raw: int) -> bool:
    """Whether a block can have these sizes; asked before anything is allocated."""
    return (
        bool(kind & ~KIND_SKIPPABLE)
        and BLOCK_HEADER_SIZE <= header <= HEADER_SIZE_MAX
        and stored <= BLOCK_STORED_BYTES_MAX
        and raw <= BLOCK_RAW_BYTES_MAX
    )


def pack_trailer(index_offset: int, index_end: int, blocks: int, seed: int) -> bytes:
    body = TRAILER.pack(index_offset, index_end + TRAILER_SIZE, blocks, 0, 0, TRAILER_MAGIC)
    return body[:24] + zlib.crc32(body[:24], seed).to_bytes(4, "little") + body[28:]


def parse_trailer(packed: bytes, file_size: int, seed: int) -> int | None:
    """The offset of the INDEX block, or None: this is not the trailer of a file of `file_size` bytes."""
    if len(packed) != TRAILER_SIZE:
        return None
    offset, size, _, _, crc, magic = TRAILER.unpack(packed)
    good = magic == TRAILER_MAGIC and zlib.crc32(packed[:24], seed) == crc and size == file_size and offset < file_size
    return int(offset) if good else None


def seed_of(packed: bytes) -> int:
    """The seed with which a block header's CRC is right: CRC-32 run backwards over its 84 bytes, about 15 us."""
    forward, backward = _tables()
    state = int.from_bytes(packed[-4:], "little") ^ 0xFFFFFFFF
    for byte in reversed(packed[:-4]):
        index = backward[state >> 24]
        state = ((state ^ forward[index]) << 8 & 0xFFFFFFFF) | (index ^ byte)
    return state ^ 0xFFFFFFFF


@functools.cache
def _tables() -> tuple[list[int], list[int]]:
    """The table of CRC-32, and from the highest byte of an entry back to its index: no two entries share it."""
    forward = []
    for index in range(256):
        entry = index
        for _ in range(8):
            entry = entry >> 1 ^ (0xEDB88320 if entry & 1 else 0)
        forward.append(entry)
    backward = [0] * 256
    for index, entry in enumerate(forward):
        backward[entry >> 24] = index
    return forward, backward
