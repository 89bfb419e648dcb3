"""Reads one segment: header, blocks (from the index, or by walking), payloads. Never writes.

Every byte is treated as hostile: sizes are checked before anything is allocated, checksums before anything is
decompressed. A reader contract: it returns what is good, lists what is damaged, and raises only when the file as a
whole cannot be read. A bad end of an unsealed segment is "not yet", not damage: its writer may be in the middle of it.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, NamedTuple

from .. import compression
from ..errors import DamageError, StoreError
from ..files import Buffer, File, Files
from ..limits import BLOCK_RAW_BYTES_MAX, BLOCK_STORED_BYTES_MAX
from ..record import decode_map
from .format import (
    ALIGNMENT,
    BLOCK_HEADER,
    BLOCK_HEADER_SIZE,
    BLOCK_MAGIC,
    FILE_HEADER,
    FILE_HEADER_SIZE,
    FILE_MAGIC,
    FORMAT_MAJOR,
    INCOMPATIBLE_MASK,
    KIND_INDEX,
    KIND_SKIPPABLE,
    TRAILER,
    TRAILER_MAGIC,
    TRAILER_SIZE,
    Block,
    FileHeader,
    padded,
)
from .writer import KeyEntry

_MAGIC_BYTES = struct.pack("<I", BLOCK_MAGIC)
_RESYNC_BYTES = 1 << 20


class Damage(NamedTuple):
    """Bytes `start` to `end` of a segment that cannot be read, and why."""

    path: str
    start: int
    end: int
    reason: str


class SegmentReader:
    """An open segment.

    Attributes:
        header: The file header.
        blocks: Headers of the readable blocks, in file order. Payloads are checked when they are read.
        damage: What lies between them and cannot be read.
        sealed: Whether the trailer is there; an unsealed segment may still grow (`refresh`).
        tail: Where the readable part ends. In an unsealed segment what follows is a block being written or a torn one.
        key_index: Key to its `KeyEntry`s, or None where the segment does not tell.
    """

    def __init__(self, files: Files, path: str) -> None:
        """Opens and reads the headers.

        Raises:
            OSError: It cannot be opened.
            DamageError: The file header is damaged (or not there yet, when the file is shorter).
            StoreError: A newer version wrote it.
        """
        self.path = path
        self._file = files.open(path)
        self.blocks: list[Block] = []
        self.damage: list[Damage] = []
        self.key_index: dict[str, list[KeyEntry]] | None = None
        self.tail = FILE_HEADER_SIZE
        self.sealed = False
        try:
            self.header = read_file_header(self._file)
            self.refresh()
        except BaseException:
            self._file.close()
            raise

    def refresh(self) -> list[Block]:
        """Looks for blocks that were appended since, and returns them."""
        known = len(self.blocks)
        if not self.sealed:
            self._file.refresh()
            self.sealed = self._read_index() if known == 0 else False
            if not self.sealed:
                self._walk()
        return self.blocks[known:]

    def _read_index(self) -> bool:
        packed = self._trailer()
        if packed is None:
            return False
        offset, _, _, _, _, _ = TRAILER.unpack(packed)
        try:
            index_block = self._block_at(offset)
            if index_block is None or index_block.kind != KIND_INDEX:
                return False
            index = decode_map(self.payload(index_block))
            blocks = [_indexed_block(entry, offset) for entry in index["blocks"]]
            keys = _indexed_keys(index["keys"], len(blocks))
        except (DamageError, KeyError, TypeError, ValueError):
            # The index only makes things faster: without it the blocks are walked.
            return False
        for block in blocks:
            self._note(block)
        self.key_index = keys
        self.tail = self._file.size
        return True

    def _trailer(self) -> bytes | None:
        """The trailer, if the file ends in a good one."""
        size = self._file.size
        if size < FILE_HEADER_SIZE + TRAILER_SIZE:
            return None
        packed = self._file.read(size - TRAILER_SIZE, TRAILER_SIZE)
        return packed if is_trailer(packed, size) else None

    def _walk(self) -> None:
        """Appends the blocks from `tail` on to `blocks`, skipping damage to the next good header."""
        while self.tail + BLOCK_HEADER_SIZE <= self._file.size:
            block = self._block_at(self.tail)
            if block is not None and block.offset + BLOCK_HEADER_SIZE + block.stored_size <= self._file.size:
                self._note(block)
                continue
            after = self._resync(self.tail + ALIGNMENT)
            if after is None:
                break
            self.damage.append(Damage(self.path, self.tail, after.offset, "bad block header"))
            self._note(after)
        # A trailer whose index could not be used, or that was written since the last look. What is bad before it is
        # damage, not "not yet": nobody will write there again.
        end = self._file.size - TRAILER_SIZE
        self.sealed = self.tail <= end and self._trailer() is not None
        if self.sealed:
            if self.tail < end:
                self.damage.append(Damage(self.path, self.tail, end, "bad block header"))
            self.tail = self._file.size

    def _note(self, block: Block) -> None:
        if block.flags & INCOMPATIBLE_MASK:
            raise StoreError(
                f"block {block.number} of {self.path!r} has flags {block.flags:#x}: a newer version wrote it"
            )
        self.blocks.append(block)
        self.tail = block.end

    def _block_at(self, offset: int) -> Block | None:
        """The header at `offset` if it is whole and its checksum is right."""
        return parse_block_header(self._file.read(offset, BLOCK_HEADER_SIZE), offset)

    def _resync(self, start: int) -> Block | None:
        """The next whole block from `start` on whose number is not smaller than the last one's."""
        number = self.blocks[-1].number + 1 if self.blocks else 0
        offset = padded(start)
        while offset < self._file.size:
            window = self._file.read(offset, _RESYNC_BYTES + BLOCK_HEADER_SIZE)
            found = window.find(_MAGIC_BYTES)
            while found >= 0:
                if found % ALIGNMENT == 0:
                    block = parse_block_header(window[found : found + BLOCK_HEADER_SIZE], offset + found)
                    if block is not None and block.number >= number and block.end <= padded(self._file.size):
                        return block
                found = window.find(_MAGIC_BYTES, found + 1)
            offset += _RESYNC_BYTES
        return None

    def payload(self, block: Block) -> Buffer:
        """The raw payload of a block.

        Raises:
            DamageError: The checksum or the sizes are wrong; the message names block, file and steps.
        """
        stored = self._file.read(block.offset + BLOCK_HEADER_SIZE, block.stored_size)
        crc = zlib.crc32(stored)
        if crc != block.payload_crc or len(stored) != block.stored_size:
            raise DamageError(
                f"cannot read block {block.number} of {self.path!r}: crc is {crc:#010x}, expected "
                f"{block.payload_crc:#010x}; {block.records} records (steps {block.step_min}-{block.step_max}) skipped"
            )
        return compression.decompress(block.codec, stored, block.raw_size)

    def read_map(self, block: Block) -> dict[str, Any]:
        """The payload of a META, CHECKPOINT, GAP or KEYS block."""
        return decode_map(self.payload(block))

    def close(self) -> None:
        self._file.close()


def _indexed_block(entry: Any, end: int) -> Block:
    """A block as the index tells it; the index may lie, so it must be possible between the file header and `end`."""
    block = Block(*entry)
    if any(type(field) is not int or field < 0 for field in block):
        raise ValueError(f"index entry {entry!r} is not made of counts")
    inside = block.offset >= FILE_HEADER_SIZE and block.offset + BLOCK_HEADER_SIZE + block.stored_size <= end
    if not inside or block.offset % ALIGNMENT or not _is_possible(block.kind, block.stored_size, block.raw_size):
        raise ValueError(f"index entry {entry!r} cannot be a block")
    return block


def _indexed_keys(keys: Any, blocks: int) -> dict[str, list[KeyEntry]] | None:
    if keys is None:
        return None
    if type(keys) is not dict:
        raise ValueError("the keys of the index are no map")
    found: dict[str, list[KeyEntry]] = {}
    for name, entries in keys.items():
        found[str(name)] = []
        for index, step_min, step_max, count in entries:
            numbers = (index, step_min, step_max, count)
            if any(type(number) is not int for number in numbers) or not 0 <= index < blocks:
                raise ValueError(f"index entry {numbers!r} of key {name!r} cannot be")
            found[str(name)].append(numbers)
    return found


def _is_possible(kind: int, stored: int, raw: int) -> bool:
    return stored <= BLOCK_STORED_BYTES_MAX and raw <= BLOCK_RAW_BYTES_MAX and bool(kind & ~KIND_SKIPPABLE)


def read_file_header(file: File) -> FileHeader:
    packed = file.read(0, FILE_HEADER_SIZE)
    if len(packed) < FILE_HEADER_SIZE:
        raise DamageError(f"{file.path!r} has {len(packed)} bytes, a segment header has {FILE_HEADER_SIZE}")
    magic, major, _, _, incompatible, _, store_id, writer, number, created, crc = FILE_HEADER.unpack(packed)
    if magic != FILE_MAGIC:
        raise DamageError(f"{file.path!r} is not a segment: it begins with {magic!r}, expected {FILE_MAGIC!r}")
    if zlib.crc32(packed[:-4]) != crc:
        raise DamageError(
            f"the header of {file.path!r} is damaged: crc {zlib.crc32(packed[:-4]):#010x}, expected {crc:#010x}"
        )
    if major > FORMAT_MAJOR or incompatible:
        raise StoreError(
            f"{file.path!r} has format {major} (flags {incompatible:#x}); this stepd reads up to {FORMAT_MAJOR}"
        )
    return FileHeader(store_id, writer, number, created, crc)


def parse_block_header(packed: bytes, offset: int) -> Block | None:
    if len(packed) < BLOCK_HEADER_SIZE or packed[:4] != _MAGIC_BYTES:
        return None
    fields = BLOCK_HEADER.unpack(packed)
    if zlib.crc32(packed[:-4]) != fields[-1]:
        return None
    (_, kind, codec, _, stored, raw, payload_crc, records, number, stream, first, last, step_min, step_max, flags,
     previous, _, crc) = fields  # fmt: skip
    if not _is_possible(kind, stored, raw):
        return None
    return Block(
        offset, kind, codec, stored, raw, payload_crc, records, number, stream, first, last, step_min, step_max, flags,
        previous, crc,
    )  # fmt: skip


def is_trailer(packed: bytes, file_size: int) -> bool:
    if len(packed) != TRAILER_SIZE:
        return False
    offset, size, _, _, crc, magic = TRAILER.unpack(packed)
    return bool(magic == TRAILER_MAGIC and zlib.crc32(packed[:24]) == crc and size == file_size and offset < file_size)
