"""Constants of the segment format, version 1. Constants only: if you change this file, change docs/segment.md.

All integers are little-endian; every block starts at a multiple of 8. Zero is never a magic or a kind, so a hole in a
file can never look like a block.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

# A byte with its high bit, three letters, the major version, then CR LF and ^Z: damage by 7-bit or text transfer shows.
FILE_MAGIC = b"\x89STP1\r\n\x1a"
FORMAT_MAJOR = 1
FORMAT_MINOR = 0

# magic, major u16, minor u16, header size u32, incompatible flags u32, compatible flags u32, store id 16, writer u64,
# segment number u32, created ns i64, CRC-32 of the 60 bytes before it.
FILE_HEADER = struct.Struct("<8sHHIII16sQIqI")
FILE_HEADER_SIZE = FILE_HEADER.size

# The seal area, right behind the file header: zeros while the segment is open, patched in when it is sealed. It says at
# the head what a cut takes from the end: size of the file u64, blocks u32, streams u32, then for the first few streams
# (stream u64, last sequence u64, highest step u64), magic u32, CRC of the 116 bytes before u32.
SEAL_STREAMS = 4
SEAL = struct.Struct("<QII12QII")
SEAL_SIZE = SEAL.size
SEAL_MAGIC = 0x5EA1A3EA
BLOCKS_OFFSET = FILE_HEADER_SIZE + SEAL_SIZE
# Limit: how far a later version may grow a header; what it adds is skipped by the size the header tells.
HEADER_SIZE_MAX = 4096

BLOCK_MAGIC = 0xB10C57EB
# magic u32, kind u8, codec u8, header size u16, stored size u32, raw size u32, payload CRC u32, records u32,
# block number u64, stream u64, first sequence u64, last sequence u64, min step u64, max step u64,
# flags u32, CRC of the previous block's header u32 (the file header's for the first), CRC of the writer's id and the
# segment's number u32, CRC of the 84 before.
BLOCK_HEADER = struct.Struct("<IBBHIIIIQQQQQQIIII")
BLOCK_HEADER_SIZE = BLOCK_HEADER.size
ALIGNMENT = 8

KIND_ROWS = 1
KIND_COLUMNS = 2
KIND_BLOB = 3
KIND_KEYS = 4
KIND_META = 5
KIND_CHECKPOINT = 6
KIND_GAP = 7
KINDS_MAX = 7  # a greater kind without bit 7 is from a newer version
# Bit 7 of a kind: a reader that does not know it may skip the block. Without it: "a newer version wrote this".
KIND_SKIPPABLE = 0x80
KIND_INDEX = KIND_SKIPPABLE | 8

# Block flags. The low 16 bits may be ignored by a reader that does not know them, the high 16 may not.
FLAG_HAS_META = 1  # ROWS: META or GAP records are among the records
FLAG_HAS_PIECES = 2  # ROWS: at least one record does not commit its row
FLAG_MERGED = 4  # ROWS: pieces were coalesced, so there are fewer records than sequences
# ROWS: records of a window, whose rows are COLUMNS; incompatible, so that an old reader does not take it for everything.
FLAG_WINDOW = 0x10000
INCOMPATIBLE_MASK = 0xFFFF0000

# The head of a COLUMNS block's payload: version u16, codec of the directory u8, zero u8, its stored size u32, its raw size
# u32, its CRC u32.
COLUMNS_HEAD = struct.Struct("<HBBIII")
COLUMNS_VERSION = 1
# Limits of one COLUMNS block: columns of all its groups, and what their rows are before packing. A row costs the four columns
# that every group has and eight bytes for each key; so what a reader must allocate is known from the directory.
COLUMNS_MAX = 256
COLUMNS_RAW_BYTES_MAX = 8 << 20
ROW_BYTES = 25
DIRECTORY_BYTES_MAX = 8 << 20
# Rows of which a preview keeps the two extremes.
ZONE_ROWS = 2048

# index offset u64, file size u64, blocks u32, reserved u32, CRC of the 24 before u32, magic u32.
TRAILER = struct.Struct("<QQIIII")
TRAILER_SIZE = TRAILER.size
TRAILER_MAGIC = 0x5EA1ED01

KEYS_BLOCK_NAMES_MAX = 100_000


class FileHeader(NamedTuple):
    """Who wrote a segment: its writer's random id and the segment's number, from 0, among that writer's in this run.

    Attributes:
        crc: Of the header; also the **seed** of every other header's CRC in the file, so that a block of another file is
            no block here.
        size: Where the blocks begin.
    """

    store_id: bytes
    writer: int
    number: int
    created_ns: int
    crc: int = 0
    size: int = BLOCKS_OFFSET


class Claim(NamedTuple):
    """Somebody's word that a stream is stored up to a sequence, and the highest step until then."""

    stream: int
    last: int
    step: int


class Seal(NamedTuple):
    """What the seal area says of a finished segment.

    Attributes:
        size: Bytes of the file.
        blocks: How many blocks are in it, KEYS and INDEX included.
        streams: How many streams have rows in it; `claims` names the first `SEAL_STREAMS` of them.
    """

    size: int
    blocks: int
    streams: int
    claims: tuple[Claim, ...]


class Block(NamedTuple):
    """A decoded block header with its place in the file."""

    offset: int
    kind: int
    codec: int
    stored_size: int
    raw_size: int
    payload_crc: int
    records: int
    number: int
    stream: int
    first: int
    last: int
    step_min: int
    step_max: int
    flags: int
    previous_crc: int
    crc: int
    header_size: int = BLOCK_HEADER_SIZE

    @property
    def start(self) -> int:
        """Where the stored bytes begin."""
        return self.offset + self.header_size

    @property
    def end(self) -> int:
        """Where the next block starts."""
        return padded(self.start + self.stored_size)


def padded(size: int) -> int:
    """`size` rounded up to the alignment of blocks."""
    return (size + ALIGNMENT - 1) & ~(ALIGNMENT - 1)
