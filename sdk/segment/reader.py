"""Reads one segment: header, blocks (from the index, or by walking), payloads. Never writes.

Every byte is treated as hostile: sizes are checked before anything is allocated, checksums before anything is
decompressed. A reader contract: it returns what is good, lists what is damaged, and raises only when the file as a
whole cannot be read. A bad end of an unsealed segment is "not yet", not damage: its writer may be in the middle of it.

What is a block of this file is decided by its CRC, which begins with the file header's; whether all are there, by the
chain (numbers and previous CRCs) and by the seal area. So a block that stands in a wrong place is damage that is told,
and what it holds, which is proven to be of this file, is still read.
"""

from __future__ import annotations

import os
import zlib
from typing import Any, NamedTuple

from .. import compression
from ..errors import DamageError, StoreError
from ..files import Buffer, Files
from ..record import decode_map
from .format import (
    ALIGNMENT,
    BLOCK_HEADER_SIZE,
    FILE_HEADER_SIZE,
    FLAG_WINDOW,
    INCOMPATIBLE_MASK,
    KIND_INDEX,
    KIND_SKIPPABLE,
    KINDS_MAX,
    SEAL_SIZE,
    TRAILER_SIZE,
    Block,
    FileHeader,
    Seal,
    padded,
)
from .headers import (
    BLOCK_MAGIC_BYTES,
    is_possible,
    parse_block_header,
    parse_file_header,
    parse_seal,
    parse_trailer,
)
from .naming import parse_segment
from .salvage import header_from_blocks
from .writer import KeyEntry

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
        header_is_damaged: It was put together from the blocks and the file's name.
        seal: What the seal area says, None of an open segment (or where the area is damaged).
        blocks: Headers of the readable blocks, in file order. Payloads are checked when they are read.
        damage: What lies between them and cannot be read, and where the chain of blocks is broken.
        sealed: Whether the segment is finished; an unsealed one may still grow (`refresh`).
        tail: Where the readable part ends. In an unsealed segment what follows is a block being written or a torn one.
        next_number: The number that the writer's next block has, in whatever segment; None where the end is cut off.
        index: The INDEX block that `blocks` come from, whose headers in place were not looked at; None: they were.
        key_index: Key to its `KeyEntry`s, or None where the segment does not tell.
    """

    def __init__(self, files: Files, path: str) -> None:
        """Opens and reads the headers.

        Raises:
            OSError: It cannot be opened.
            DamageError: The file header is damaged (or not there yet, when the file is shorter) and no block tells what
                it was, or the file has another segment's name.
            StoreError: A newer version wrote it.
        """
        self.path = path
        self._file = files.open(path)
        self.blocks: list[Block] = []
        self.damage: list[Damage] = []
        self.key_index: dict[str, list[KeyEntry]] | None = None
        self.seal: Seal | None = None
        self.sealed = False
        self.header_is_damaged = False
        self.index: Block | None = None
        self.next_number: int | None = None
        self._last: Block | None = None
        try:
            self.header = self._read_header()
            self.tail = self.header.size
            self.refresh()
        except BaseException:
            self._file.close()
            raise

    def _read_header(self) -> FileHeader:
        packed = self._file.read(0, FILE_HEADER_SIZE)
        name = parse_segment(os.path.basename(self.path))
        try:
            header = parse_file_header(packed, self.path)
        except DamageError as error:
            found = header_from_blocks(self._file, packed, name) if name is not None else None
            if found is None:
                raise
            self.header_is_damaged = True
            self.damage.append(Damage(self.path, 0, FILE_HEADER_SIZE, error.message))
            return found
        if name is not None and name[:2] != (header.writer, header.number):
            raise DamageError(
                f"{self.path!r} is segment {header.number} of writer {header.writer:016x} under another's name"
            )
        return header

    def refresh(self) -> list[Block]:
        """Looks for blocks that were appended since, and returns them."""
        known = len(self.blocks)
        if self.sealed:
            return []
        # Race: 1. we look at the size, 2. the writer seals, 3. we read the seal: the file seems cut. So the seal first.
        self.seal = parse_seal(self._file.read(FILE_HEADER_SIZE, SEAL_SIZE), self.header.crc)
        self._file.refresh()
        size = self._file.size
        end = self.seal.size if self.seal else size
        index = self._index_offset(end)
        if self.seal is None and index is None:
            self._walk(size)
        else:
            if known or index is None or not self._read_index(index):
                self._walk(min(size, end - TRAILER_SIZE))
            self._finish(end, size)
        return self.blocks[known:]

    def _index_offset(self, end: int) -> int | None:
        """Where the trailer of a file of `end` bytes says that the INDEX is; None without a good trailer there."""
        if self._file.size < end or end < self.header.size + TRAILER_SIZE:
            return None
        return parse_trailer(self._file.read(end - TRAILER_SIZE, TRAILER_SIZE), end, self.header.crc)

    def _read_index(self, offset: int) -> bool:
        try:
            index_block = self._block_at(offset)
            if index_block is None or index_block.kind != KIND_INDEX:
                return False
            index = decode_map(self.payload(index_block))
            blocks = [_indexed_block(entry, self.header.size, offset) for entry in index["blocks"]]
            keys = _indexed_keys(index["keys"], len(blocks))
        except (DamageError, KeyError, TypeError, ValueError):
            # The index only makes things faster: without it the blocks are walked.
            return False
        for block in blocks:
            self._note(block)
        # The index block itself belongs to the chain, too.
        self._check_place(index_block)
        self.key_index, self.index = keys, index_block
        self.tail, self.next_number = index_block.end, index_block.number + 1
        return True

    def _walk(self, limit: int) -> None:
        """Appends the blocks from `tail` up to `limit` to `blocks`, skipping damage to the next good header."""
        while self.tail + BLOCK_HEADER_SIZE <= limit:
            block = self._block_at(self.tail)
            if block is None or block.start + block.stored_size > limit:
                block = self._resync(self.tail + ALIGNMENT, limit)
                if block is None:
                    break
            self._note(block)

    def _finish(self, end: int, size: int) -> None:
        """The segment is sealed at `end` bytes: what is bad before it is damage, for nobody will write there again."""
        content = end - TRAILER_SIZE
        if size < end:
            start = self.tail if self.tail < content else min(size, end)
            self.damage.append(
                Damage(self.path, start, end, f"cut: the file has {size} bytes, it was sealed with {end}")
            )
        elif self.tail < content:
            self.damage.append(Damage(self.path, self.tail, content, "bad block header"))
        if size > end:
            self.damage.append(Damage(self.path, end, size, "bytes behind the end"))
        if self.tail < content:
            self.next_number = None
        self.sealed, self.tail = True, size

    def _note(self, block: Block) -> None:
        unknown = block.kind > KINDS_MAX and not block.kind & KIND_SKIPPABLE
        if unknown or block.flags & INCOMPATIBLE_MASK & ~FLAG_WINDOW:
            raise StoreError(
                f"block {block.number} of {self.path!r} has kind {block.kind} and flags {block.flags:#x}: "
                "a newer version wrote it"
            )
        self._check_place(block)
        self.blocks.append(block)

    def _check_place(self, block: Block) -> None:
        """Tells what is wrong between the last block and this one, and goes on behind it."""
        last, tail = self._last, self.tail
        if block.offset > tail:
            self._tell(tail, block.offset, "bad block header")
        elif last is None:
            if block.previous_crc != self.header.crc:
                self._tell(block.offset, block.offset, f"blocks before block {block.number} are missing")
        elif block.number > last.number + 1:
            self._tell(block.offset, block.offset, f"blocks {last.number + 1} to {block.number - 1} are missing")
        elif block.number == last.number + 1 and block.previous_crc != last.crc:
            self._tell(block.offset, block.offset, f"block {block.number} does not follow block {last.number}")
        if last is not None and block.number <= last.number:
            self._tell(block.offset, block.end, f"block {block.number} stands behind block {last.number}")
        else:
            self._last, self.next_number = block, block.number + 1
        self.tail = max(block.end, tail)

    def _tell(self, start: int, end: int, reason: str) -> None:
        self.damage.append(Damage(self.path, start, end, reason))

    def _block_at(self, offset: int) -> Block | None:
        """The header at `offset` if it is whole and its checksum is right."""
        return parse_block_header(self._file.read(offset, BLOCK_HEADER_SIZE), offset, self.header.crc)

    def _resync(self, start: int, limit: int) -> Block | None:
        """The next whole block of this file from `start` on."""
        offset = padded(start)
        while offset < limit:
            window = self._file.read(offset, _RESYNC_BYTES + BLOCK_HEADER_SIZE)
            found = window.find(BLOCK_MAGIC_BYTES)
            while found >= 0:
                if found % ALIGNMENT == 0:
                    packed = window[found : found + BLOCK_HEADER_SIZE]
                    block = parse_block_header(packed, offset + found, self.header.crc)
                    if block is not None and block.start + block.stored_size <= limit:
                        return block
                found = window.find(BLOCK_MAGIC_BYTES, found + 1)
            offset += _RESYNC_BYTES
        return None

    def header_at(self, block: Block) -> Block | None:
        """The header that stands where an index says that `block` is; None: a damaged one."""
        return self._block_at(block.offset)

    def bytes_at(self, offset: int, size: int) -> bytes:
        """Bytes of the file as they are."""
        return self._file.read(offset, size)

    @property
    def size(self) -> int:
        """Bytes in the file when it was last looked at."""
        return self._file.size

    def payload(self, block: Block) -> Buffer:
        """The raw payload of a block.

        Raises:
            DamageError: The checksum or the sizes are wrong; the message names block, file and steps.
        """
        return compression.decompress(block.codec, self.stored(block), block.raw_size)

    def stored(self, block: Block) -> bytes:
        """The stored bytes of a block, before decompression.

        Raises:
            DamageError: As `payload`.
        """
        stored = self._file.read(block.start, block.stored_size)
        trouble = checksum_trouble(block, stored)
        if trouble is not None:
            raise DamageError(
                f"cannot read block {block.number} of {self.path!r}: {trouble}; "
                f"{block.records} records (steps {block.step_min}-{block.step_max}) skipped"
            )
        return stored

    def read_part(self, block: Block, offset: int, size: int) -> bytes:
        """Some of the stored bytes of a block, without its checksum: for payloads whose parts have their own.

        Raises:
            DamageError: With the first of them, that they are another block's. Checksums of parts do not say whose they are,
                and the header in place may not be the one that an index tells of.
        """
        size = min(size, block.stored_size - offset)
        if offset:
            return self._file.read(block.start + offset, size)
        packed = self._file.read(block.offset, block.header_size + size)
        there = parse_block_header(packed[:BLOCK_HEADER_SIZE], block.offset, self.header.crc)
        if there is None:
            self.stored(block)  # its header is damaged, so its checksum must tell
        elif there != block:
            raise DamageError(f"block {there.number} stands where block {block.number} of {self.path!r} should")
        return packed[block.header_size :]

    def read_map(self, block: Block) -> dict[str, Any]:
        """The payload of a META, CHECKPOINT, GAP or KEYS block."""
        return decode_map(self.payload(block))

    def close(self) -> None:
        self._file.close()


def checksum_trouble(block: Block, stored: bytes) -> str | None:
    """What is wrong with the stored bytes of a block, or None."""
    crc = zlib.crc32(stored)
    if crc == block.payload_crc and len(stored) == block.stored_size:
        return None
    return f"crc is {crc:#010x}, expected {block.payload_crc:#010x}"


def _indexed_block(entry: Any, start: int, end: int) -> Block:
    """A block as the index tells it; the index may lie, so it must be possible between `start` and `end`."""
    block = Block(*entry)
    if set(map(type, block)) != {int} or min(block) < 0:
        raise ValueError(f"index entry {entry!r} is not made of counts")
    inside = block.offset >= start and block.start + block.stored_size <= end
    possible = is_possible(block.kind, block.header_size, block.stored_size, block.raw_size)
    if not inside or block.offset % ALIGNMENT or not possible:
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
            if set(map(type, numbers)) != {int} or not 0 <= index < blocks:
                raise ValueError(f"index entry {numbers!r} of key {name!r} cannot be")
            found[str(name)].append(numbers)
    return found
