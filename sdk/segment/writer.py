"""Writes one segment: blocks at the end of a new file; KEYS, INDEX, a trailer and the seal area when it is sealed.

A segment is made by one writer process, which alone appends to it. `append` is atomic in the sense that a reader and
recovery see a whole block or none; it is durable against a killed process when it returns, against power loss after
`sync`. A sealed segment never changes again.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .. import compression
from ..files import Buffer, File, Files
from ..limits import BLOCK_RAW_BYTES_MAX, BLOCK_STORED_BYTES_MAX, MIB
from ..record import encode_map
from .format import (
    ALIGNMENT,
    BLOCK_HEADER_SIZE,
    FILE_HEADER_SIZE,
    KEYS_BLOCK_NAMES_MAX,
    KIND_COLUMNS,
    KIND_INDEX,
    KIND_KEYS,
    KIND_ROWS,
    Block,
    Claim,
    FileHeader,
    Seal,
    padded,
)
from .headers import owner_of, pack_block_header, pack_file_header, pack_seal, pack_trailer
from .naming import HISTORY, SegmentName, format_segment

_NAMES_TAKEN_MAX = 100
# Limit: what the per-key index of a segment may take, packed and (about ten times as much) in memory while it is open.
KEY_INDEX_BYTES_MAX = 4 * MIB
_KEY_ENTRY_BYTES = 16

# An entry of the per-key index: block index in the segment, min step, max step, count of records with the key.
KeyEntry = tuple[int, int, int, int]


class SegmentWriter:
    """An open segment.

    Attributes:
        blocks: What was appended so far, in order.
        size: Bytes in the file.
    """

    def __init__(self, file: File, header: FileHeader, first_block_number: int) -> None:
        self._file = file
        self._seed = header.crc
        self._owner = owner_of(header.writer, header.number)
        self._previous_crc = header.crc
        self._next_number = first_block_number
        self._key_index: dict[str, list[KeyEntry]] = {}
        self._key_index_bytes = 0
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
            file.append([packed, bytes(header.size - len(packed))])
        except BaseException:
            _abandon(files, file)
            raise
        return cls(file, header._replace(crc=zlib.crc32(packed[:-4])), first_block_number)

    @classmethod
    def begin(
        cls,
        files: Files,
        directory: str,
        header: FileHeader,
        opening: Iterable[tuple[int, Mapping[str, Any]]],
        *,
        first_block_number: int = 0,
        holds: str = HISTORY,
    ) -> tuple[SegmentWriter, int]:
        """Makes a writer's next segment with the blocks that open it, all of them or none.

        Why not simply the name of `header.number`: a disk that refused a header may also have refused to remove the file,
        and the name stays taken after the disk is well again.

        Args:
            opening: (kind, map) of each block.
            holds: What its name says that it holds.

        Returns:
            The segment, and its number: that of `header` or the next one that is free.

        Raises:
            OSError: The disk refuses.
        """
        number = header.number
        while True:
            path = os.path.join(directory, format_segment(SegmentName(header.writer, number, holds)))
            try:
                found = header._replace(number=number)
                segment = cls.create(files, path, found, first_block_number=first_block_number)
                break
            except FileExistsError:
                number += 1
                if number > header.number + _NAMES_TAKEN_MAX:
                    raise
        try:
            for kind, values in opening:
                segment.append_map(kind, values)
        except BaseException:
            # Without its META block nobody could say whose it is, and recovery would leave it alone for ever.
            _abandon(files, segment._file)
            raise
        return segment, number

    @classmethod
    def reopen(cls, file: File, header: FileHeader, blocks: list[Block]) -> SegmentWriter:
        """A segment of a dead writer that recovery has cut to whole blocks, to be sealed."""
        last = max(blocks, key=lambda block: block.number, default=None)
        writer = cls(file, header, last.number + 1 if last else 0)
        writer._previous_crc = last.crc if last else header.crc
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
        block = self._put(
            Block(
                0, kind, codec, stored_size, raw_size, crc, records, 0, stream, first, last, step_min, step_max, flags,
                0, 0,
            ),
            parts,
        )  # fmt: skip
        if keys is None:
            self._keys_known = self._keys_known and not records
        elif self._keys_known:
            self._note_keys(len(self.blocks) - 1, step_min, step_max, keys)
        return block

    def copy(self, block: Block, stored: Buffer, *, keys: Mapping[str, int] | None = None) -> Block:
        """Appends a block of another segment as it is, its stored bytes and what its header says of them.

        Args:
            keys: As in `append`.
        """
        copied = self._put(block, [stored])
        if keys is None:
            self._keys_known = False
        elif self._keys_known:
            self._note_keys(len(self.blocks) - 1, block.step_min, block.step_max, keys)
        return copied

    def _put(self, block: Block, parts: Sequence[Buffer]) -> Block:
        """Gives the block its place in the file and in the chain, and writes it."""
        block = block._replace(
            offset=self._file.size, number=self._next_number, previous_crc=self._previous_crc,
            header_size=BLOCK_HEADER_SIZE,
        )  # fmt: skip
        head = pack_block_header(block, self._seed, self._owner)
        block = block._replace(crc=int.from_bytes(head[-4:], "little"))
        self._file.append([head, *parts, bytes(-(block.start + block.stored_size) % ALIGNMENT)])
        self._previous_crc = block.crc
        self._next_number += 1
        self.blocks.append(block)
        return block

    def append_map(self, kind: int, values: Mapping[str, Any], *, stream: int = 0) -> Block:
        """Appends a block whose payload is one msgpack map (META, CHECKPOINT, GAP)."""
        return self.append(kind, encode_map(dict(values)), stream=stream)

    def _note_keys(self, index: int, step_min: int, step_max: int, keys: Mapping[str, int]) -> None:
        for name, count in keys.items():
            entries = self._key_index.setdefault(name, [])
            entries.append((index, step_min, step_max, count))
            self._key_index_bytes += _KEY_ENTRY_BYTES + (len(name) if len(entries) == 1 else 0)
        if self._key_index_bytes > KEY_INDEX_BYTES_MAX:
            # New names without end, or names without end: a reader does without, and our memory stays bounded.
            self._keys_known = False
            self._key_index.clear()

    def sync(self) -> None:
        """Forces the segment to the disk; after a failure this segment must not be used again."""
        self._file.sync()

    def seal(self, *, close: bool = True) -> None:
        """Writes KEYS (where all keys are known), INDEX, trailer and the seal area; closes the file unless told not to.

        Raises:
            OSError: The disk refuses; the segment stays open (unsealed) on disk, for recovery.
        """
        if self._keys_known and self._key_index and len(self._key_index) <= KEYS_BLOCK_NAMES_MAX:
            self.append(KIND_KEYS, encode_map({"keys": list(self._key_index)}), keys={})
        blocks = list(self.blocks)
        index = {
            "blocks": [list(block) for block in blocks],
            "keys": {name: [list(e) for e in entries] for name, entries in self._key_index.items()}
            if self._keys_known
            else None,
        }
        block = self.append(KIND_INDEX, encode_map(index), keys={})
        self._file.append([pack_trailer(block.offset, block.end, len(self.blocks), self._seed)])
        # Last, because it says at the head of the file that everything up to its end is there.
        claims = claims_of(blocks)
        seal = Seal(self._file.size, len(self.blocks), len(claims), tuple(claims))
        self._file.patch(FILE_HEADER_SIZE, pack_seal(seal, self._seed))
        if close:
            self.close()

    def close(self) -> None:
        """Closes the file without sealing it."""
        self._file.close()


def claims_of(blocks: Iterable[Block]) -> list[Claim]:
    """How far the rows of each stream go."""
    found: dict[int, Claim] = {}
    for block in blocks:
        if block.kind in (KIND_ROWS, KIND_COLUMNS):
            old = found.get(block.stream, Claim(block.stream, 0, 0))
            found[block.stream] = Claim(block.stream, max(old.last, block.last), max(old.step, block.step_max))
    return list(found.values())


def _abandon(files: Files, file: File) -> None:
    """Closes and removes a file that was begun, as far as the disk lets us."""
    with contextlib.suppress(OSError):
        file.close()
    with contextlib.suppress(OSError):
        files.remove(file.path)


def step_range(steps: Iterable[int]) -> tuple[int, int]:
    """(min, max) of some steps, (0, 0) of none."""
    found = list(steps)
    return (min(found), max(found)) if found else (0, 0)


__all__ = ["KeyEntry", "SegmentWriter", "claims_of", "padded", "step_range"]
