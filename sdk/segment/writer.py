"""Writes one segment: blocks at the end of a new file, then KEYS, INDEX and a trailer when it is sealed.

A segment is made by one writer process, which alone appends to it. `append` is atomic in the sense that a reader and
recovery see a whole block or none; it is durable against a killed process when it returns, against power loss after
`sync`. A sealed segment never changes again.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .. import compression
from ..files import Buffer, File, Files
from ..limits import BLOCK_RAW_BYTES_MAX, BLOCK_STORED_BYTES_MAX
from ..record import encode_map
from .format import (
    ALIGNMENT,
    BLOCK_HEADER,
    BLOCK_HEADER_SIZE,
    BLOCK_MAGIC,
    FILE_HEADER,
    FILE_HEADER_SIZE,
    FILE_MAGIC,
    FORMAT_MAJOR,
    FORMAT_MINOR,
    KEYS_BLOCK_NAMES_MAX,
    KIND_INDEX,
    KIND_KEYS,
    TRAILER,
    TRAILER_MAGIC,
    Block,
    FileHeader,
    padded,
)

# An entry of the per-key index: block index in the segment, min step, max step, count of records with the key.
KeyEntry = tuple[int, int, int, int]


class SegmentWriter:
    """An open segment.

    Attributes:
        blocks: What was appended so far, in order.
        size: Bytes in the file.
    """

    def __init__(self, file: File, header_crc: int, first_block_number: int) -> None:
        self._file = file
        self._previous_crc = header_crc
        self._next_number = first_block_number
        self._key_index: dict[str, list[KeyEntry]] = {}
        self._keys_known = True
        self.blocks: list[Block] = []

    @classmethod
    def create(cls, files: Files, path: str, header: FileHeader, *, first_block_number: int = 0) -> SegmentWriter:
        """Makes the file with its header.

        Args:
            first_block_number: Block numbers run on through all segments of one writer, so that a missing one shows.

        Raises:
            OSError: The disk refuses, or the name is taken.
        """
        file = files.create(path)
        try:
            packed = pack_file_header(header)
            file.append([packed])
        except BaseException:
            file.close()
            files.remove(path)
            raise
        return cls(file, zlib.crc32(packed[:-4]), first_block_number)

    @classmethod
    def reopen(cls, file: File, header: FileHeader, blocks: list[Block]) -> SegmentWriter:
        """A segment of a dead writer that recovery has cut to whole blocks, to be sealed."""
        last = blocks[-1] if blocks else None
        writer = cls(file, last.crc if last else header.crc, last.number + 1 if last else 0)
        writer.blocks = list(blocks)
        writer._keys_known = False
        return writer

    @property
    def size(self) -> int:
        return self._file.size

    @property
    def path(self) -> str:
        return self._file.path

    @property
    def next_block_number(self) -> int:
        return self._next_number

    def append(
        self,
        kind: int,
        raw: Buffer | Sequence[Buffer],
        *,
        stream: int = 0,
        first: int = 0,
        last: int = 0,
        records: int = 0,
        step_min: int = 0,
        step_max: int = 0,
        flags: int = 0,
        keys: Mapping[str, int] | None = None,
        compress: bool = True,
    ) -> Block:
        """Appends one block.

        Args:
            raw: The payload before compression, whole or in parts; not kept. Parts of an uncompressed block are not
                joined in memory.
            keys: Key to count of records that hold it, for the per-key index; None if nobody looked.

        Raises:
            OSError: Nothing of the block is in the file.
        """
        parts: Sequence[Buffer] = [raw] if isinstance(raw, (bytes, bytearray, memoryview)) else raw
        raw_size = sum(map(len, parts))
        if not 0 < raw_size <= BLOCK_RAW_BYTES_MAX:
            raise ValueError(f"block payload has {raw_size} bytes, expected 1 to {BLOCK_RAW_BYTES_MAX}")
        codec = compression.CODEC_NONE
        if compress:
            codec, packed = compression.compress(parts[0] if len(parts) == 1 else b"".join(parts))
            parts = [packed]
        stored_size = sum(map(len, parts))
        if stored_size > BLOCK_STORED_BYTES_MAX:
            raise ValueError(
                f"block payload takes {stored_size} bytes, readers accept at most {BLOCK_STORED_BYTES_MAX}"
            )
        crc = 0
        for part in parts:
            crc = zlib.crc32(part, crc)
        offset = self._file.size
        block = Block(
            offset, kind, codec, stored_size, raw_size, crc, records, self._next_number, stream,
            first, last, step_min, step_max, flags, self._previous_crc, 0,
        )  # fmt: skip
        head = pack_block_header(block)
        block = block._replace(crc=int.from_bytes(head[-4:], "little"))
        padding = b"\0" * (-(offset + BLOCK_HEADER_SIZE + stored_size) % ALIGNMENT)
        self._file.append([head, *parts, padding])
        self._previous_crc = block.crc
        self._next_number += 1
        if keys is None:
            self._keys_known = self._keys_known and not records
        else:
            self._note_keys(len(self.blocks), step_min, step_max, keys)
        self.blocks.append(block)
        return block

    def append_map(self, kind: int, values: Mapping[str, Any], *, stream: int = 0) -> Block:
        """Appends a block whose payload is one msgpack map (META, CHECKPOINT, GAP)."""
        return self.append(kind, encode_map(dict(values)), stream=stream)

    def _note_keys(self, index: int, step_min: int, step_max: int, keys: Mapping[str, int]) -> None:
        for name, count in keys.items():
            self._key_index.setdefault(name, []).append((index, step_min, step_max, count))

    def sync(self) -> None:
        """Forces the segment to the disk; after a failure this segment must not be used again."""
        self._file.sync()

    def seal(self, *, close: bool = True) -> None:
        """Writes KEYS (where all keys are known), INDEX and the trailer, and closes the file unless told not to."""
        if self._keys_known and self._key_index and len(self._key_index) <= KEYS_BLOCK_NAMES_MAX:
            self.append(KIND_KEYS, encode_map({"keys": list(self._key_index)}), keys={})
        index = {
            "blocks": [list(block) for block in self.blocks],
            "keys": {name: [list(e) for e in entries] for name, entries in self._key_index.items()}
            if self._keys_known
            else None,
        }
        block = self.append(KIND_INDEX, encode_map(index), keys={})
        trailer = pack_trailer(block.offset, block.end, len(self.blocks))
        self._file.append([trailer])
        if close:
            self.close()

    def close(self) -> None:
        """Closes the file without sealing it."""
        self._file.close()


def pack_file_header(header: FileHeader) -> bytes:
    body = FILE_HEADER.pack(
        FILE_MAGIC, FORMAT_MAJOR, FORMAT_MINOR, FILE_HEADER_SIZE, 0, 0, header.store_id, header.writer, header.number,
        header.created_ns, 0,
    )  # fmt: skip
    return body[:-4] + zlib.crc32(body[:-4]).to_bytes(4, "little")


def pack_block_header(block: Block) -> bytes:
    body = BLOCK_HEADER.pack(
        BLOCK_MAGIC, block.kind, block.codec, BLOCK_HEADER_SIZE, block.stored_size, block.raw_size, block.payload_crc,
        block.records, block.number, block.stream, block.first, block.last, block.step_min, block.step_max, block.flags,
        block.previous_crc, 0, 0,
    )  # fmt: skip
    return body[:-4] + zlib.crc32(body[:-4]).to_bytes(4, "little")


def pack_trailer(index_offset: int, index_end: int, blocks: int) -> bytes:
    body = TRAILER.pack(index_offset, index_end + TRAILER.size, blocks, 0, 0, TRAILER_MAGIC)
    return body[:24] + zlib.crc32(body[:24]).to_bytes(4, "little") + body[28:]


def step_range(steps: Iterable[int]) -> tuple[int, int]:
    """(min, max) of some steps, (0, 0) of none."""
    found = list(steps)
    return (min(found), max(found)) if found else (0, 0)


__all__ = ["KeyEntry", "SegmentWriter", "padded", "step_range"]
