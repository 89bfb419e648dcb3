"""Looks at every byte of a segment that says something, and tells what is wrong: the library under `stepd verify`.

Reading is lazy and believes an index; checking is not and does not: headers in place, the chain, checksums,
decompression, every record and every column against its block's header, windows whole, the index against the blocks, seal
area and trailer.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .. import compression, record
from ..errors import DamageError, Error
from ..files import Buffer, Files
from ..limits import STEP_MAX
from ..record import FLAG_COMMIT, decode_map
from ..shapes import Group, groups
from . import format as segment
from .blobs import parse_chunk, ref_of
from .format import ALIGNMENT, FILE_HEADER_SIZE, KIND_BLOB, KIND_ROWS, SEAL_SIZE, Block
from .reader import SegmentReader, checksum_trouble
from .windows import Contents, Range, is_window, read_window, told_windows, windows

MAPS = (segment.KIND_META, segment.KIND_CHECKPOINT, segment.KIND_GAP, segment.KIND_KEYS, segment.KIND_INDEX)


class Finding(NamedTuple):
    """One thing that is not as it should be.

    Attributes:
        path: The segment.
        start, end: The bytes it is about.
        text: What was found and what was expected.
        block: The block's header where it is about one.
        records: Sequences that cannot be read because of it, as far as known.
        steps: The lowest and the highest step that it is about.
        keys: Whose values cannot be read; none: those of all keys in there.
        values: How many values of `keys` cannot be read of rows that are there.
    """

    path: str
    start: int
    end: int
    text: str
    block: Block | None = None
    records: int = 0
    steps: tuple[int, int] | None = None
    keys: tuple[str, ...] = ()
    values: int = 0


class Checked(NamedTuple):
    """What a look at one segment came to.

    Attributes:
        records: Sequences that its good blocks hold.
        is_file: No symbolic link, directory, FIFO or device: these are never read.
        is_rewritten: It holds windows, so it was sealed before it got its name: nobody writes it.
    """

    path: str
    size: int
    blocks: int
    records: int
    sealed: bool
    findings: list[Finding]
    is_file: bool = True
    is_rewritten: bool = False


# Hears of each record that announces a blob: stream, and the record.
Announced = Callable[[int, record.Record], None]


def check_segment(
    files: Files,
    path: str,
    note: Callable[[int], None] = lambda size: None,
    announced: Announced = lambda stream, record: None,
) -> Checked:
    """Reads all of a segment.

    Args:
        note: Hears how many more bytes were looked at.

    Raises:
        OSError: It is gone. Everything else that is wrong with it is a finding.
    """
    try:
        reader = SegmentReader(files, path)
    except FileNotFoundError:
        raise
    except OSError as error:
        text = f"cannot be opened: {error.strerror or error}"
        other = error.errno in (errno.ELOOP, errno.EINVAL)
        return Checked(path, 0, 0, 0, sealed=False, findings=[Finding(path, 0, 0, text)], is_file=not other)
    except Error as error:
        return Checked(path, 0, 0, 0, sealed=False, findings=[Finding(path, 0, 0, error.message)])
    try:
        found = [Finding(path, damage.start, damage.end, damage.reason) for damage in reader.damage]
        found += _ends(reader)
        records = 0
        blocks = reader.blocks + ([reader.index] if reader.index is not None else [])
        for block in blocks:
            found += _place(reader, block)
            if not is_window(block):
                broken, good = _block(reader, block, announced)
                found += broken
                records += good
            note(block.end - block.offset)
        told = windows_told(reader)
        for where, members in windows(reader.blocks).items():
            contents = read_window(reader, members, told.pop(where, None), keep=False)
            found += _window(reader, contents, announced)
            records += where[2] - where[1] + 1 - contents.lost
        for (stream, first, last), count in told.items():
            text = f"the window of sequences {first}-{last} of stream {stream:016x} is missing, {count} blocks"
            found.append(Finding(path, 0, 0, text, records=last - first + 1))
        found.sort(key=lambda finding: finding.start)
        is_rewritten = any(map(is_window, reader.blocks))
        return Checked(path, reader.size, len(blocks), records, reader.sealed, found, is_rewritten=is_rewritten)
    finally:
        reader.close()


def _ends(reader: SegmentReader) -> Iterator[Finding]:
    """Seal area and trailer: of a sealed segment both must be there, but a writer may die between the two."""
    if not reader.sealed and any(map(is_window, reader.blocks)):
        yield Finding(reader.path, reader.tail, reader.tail, "a rewritten segment that is not sealed: its end is gone")
    if reader.seal is None:
        packed = reader.bytes_at(FILE_HEADER_SIZE, SEAL_SIZE)
        if packed.strip(b"\0"):
            yield Finding(
                reader.path,
                FILE_HEADER_SIZE,
                FILE_HEADER_SIZE + SEAL_SIZE,
                "the seal area is damaged: bad crc or magic",
            )
    elif reader.size >= reader.seal.size and reader.index is None:
        yield Finding(reader.path, reader.seal.size, reader.seal.size, "the index or the trailer is damaged")


def _place(reader: SegmentReader, block: Block) -> Iterator[Finding]:
    """What is wrong with a block's header and padding."""
    texts = []
    there = reader.header_at(block)
    if there is None:
        texts.append(f"the header of block {block.number} is damaged; its index entry replaces it")
    elif there != block:
        texts.append(f"the header of block {block.number} is {there}, its index entry is {block}")
    padding = reader.bytes_at(block.start + block.stored_size, -(block.start + block.stored_size) % ALIGNMENT)
    if padding.strip(b"\0"):
        texts.append(f"block {block.number} is followed by {padding!r}, expected zeros")
    for text in texts:
        yield Finding(reader.path, block.offset, block.end, text, block)


def _block(reader: SegmentReader, block: Block, announced: Announced) -> tuple[list[Finding], int]:
    """(what is wrong with what a block holds, how many of its sequences can be read)."""
    found = []

    def tell(text: str, records: int = 0) -> None:
        found.append(Finding(reader.path, block.offset, block.end, text, block, records))

    sequences = block.last - block.first + 1 if block.kind == KIND_ROWS else 0
    stored = reader.bytes_at(block.start, block.stored_size)
    trouble = checksum_trouble(block, stored)
    if trouble is not None:
        tell(f"block {block.number}: {trouble}", sequences)
        return found, 0
    try:
        payload = compression.decompress(block.codec, stored, block.raw_size)
        if block.kind == KIND_ROWS:
            check_rows(block, payload, announced)
        elif block.kind == KIND_BLOB:
            ref_of(block)
            parse_chunk(block, payload)
        elif block.kind in MAPS:
            decode_map(payload)
        elif not block.kind & segment.KIND_SKIPPABLE:
            raise DamageError(f"block {block.number} has kind {block.kind}: reserved")
    except DamageError as error:
        tell(error.message, sequences)
        return found, 0
    return found, sequences


def windows_told(reader: SegmentReader) -> dict[Range, int]:
    """How many blocks each window of a segment has, by the word of whoever wrote it."""
    told: dict[Range, int] = {}
    for block in reader.blocks:
        if block.kind == segment.KIND_META:
            with contextlib.suppress(DamageError):
                told.update(told_windows(reader.read_map(block)))
    return told


def _window(reader: SegmentReader, contents: Contents, announced: Announced) -> Iterator[Finding]:
    """What is wrong with a window; what is lost of it is counted once."""
    lost = contents.lost
    for trouble in contents.troubles:
        block = trouble.block or contents.blocks[0]
        records, lost = (lost, 0) if trouble.rows else (0, lost)
        steps = trouble.step_min, trouble.step_max
        yield Finding(
            reader.path, block.offset, block.end, trouble.text, block, records, steps, trouble.keys, trouble.values
        )
    for one in contents.records:
        if one.kind == record.KIND_BLOB:
            announced(contents.blocks[0].stream, one)


def check_rows(block: Block, payload: Buffer, announced: Announced = lambda stream, record: None) -> None:
    """Every record of a block of rows against the block's header.

    Raises:
        DamageError: One cannot be decoded, or the header says something else.
    """
    seen = _Seen(block, announced)
    try:
        for part in groups(payload):
            seen.add(part)
    except DamageError:
        raise
    except Exception as error:  # a payload made to confuse the decoder, whose checksum is right
        raise DamageError(f"block {block.number} cannot be decoded: {error}") from error
    seen.compare()


class _Seen:
    """What the records of one block say, to be compared with its header."""

    def __init__(self, block: Block, announced: Announced) -> None:
        self.block = block
        self._announced = announced
        self.count, self.last, self.flags = 0, block.first - 1, 0
        self.low, self.high = STEP_MAX + 1, -1

    def add(self, part: Group | record.Record) -> None:
        if isinstance(part, Group):
            sequences, steps = part.sequences(), part.steps()
            self._follow(int(sequences[0]), int(sequences[-1]), len(part), bool((sequences[1:] > sequences[:-1]).all()))
            self._rows(int(steps.min()), int(steps.max()), part.shape.flags)
            return
        self._follow(part.sequence, part.sequence, 1, grows=True)
        decode_map(part.payload)
        if part.kind == record.KIND_ROW:
            self._rows(part.step, part.step, part.flags)
        elif part.kind in (record.KIND_META, record.KIND_GAP):
            self.flags |= segment.FLAG_HAS_META
        elif part.kind == record.KIND_BLOB:
            self._announced(self.block.stream, part)
        else:
            raise DamageError(f"block {self.block.number} holds a record of kind {part.kind}")

    def _follow(self, first: int, last: int, count: int, grows: bool) -> None:
        if first <= self.last or not grows:
            raise DamageError(f"block {self.block.number} holds sequence {first} behind {self.last}")
        self.count, self.last = self.count + count, last

    def _rows(self, low: int, high: int, flags: int) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.flags |= 0 if flags & FLAG_COMMIT else segment.FLAG_HAS_PIECES

    def compare(self) -> None:
        block = self.block
        # Merged pieces are fewer records than sequences; unmerged ones are all there.
        whole = block.last - block.first + 1
        fits = self.count == block.records and (block.flags & segment.FLAG_MERGED or self.count == whole)
        inside = self.high < 0 or (block.step_min <= self.low and self.high <= block.step_max)
        if not fits or self.last > block.last or not inside or self.flags & segment.FLAG_HAS_META & ~block.flags:
            steps = f", steps {self.low}-{self.high}" if self.high >= 0 else ""
            raise DamageError(
                f"block {block.number} holds {self.count} records up to sequence {self.last}{steps}; its header says "
                f"{block.records}, sequences {block.first}-{block.last}, steps {block.step_min}-{block.step_max}"
            )
