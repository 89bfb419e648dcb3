"""sdk.segment.writer: blocks appended whole, in a chain, to a file that never changes once it is sealed."""

from __future__ import annotations

import errno
import os
import zlib
from pathlib import Path
from typing import Any

import pytest

from sdk import limits
from sdk.files import DISK, DiskFile
from sdk.record import decode_map
from sdk.segment import writer as module
from sdk.segment.format import (
    ALIGNMENT,
    BLOCK_HEADER,
    BLOCK_HEADER_SIZE,
    BLOCK_MAGIC,
    BLOCKS_OFFSET,
    FILE_HEADER,
    FILE_HEADER_SIZE,
    FILE_MAGIC,
    KIND_GAP,
    KIND_INDEX,
    KIND_KEYS,
    KIND_META,
    KIND_ROWS,
    SEAL,
    SEAL_MAGIC,
    SEAL_SIZE,
    SEAL_STREAMS,
    TRAILER,
    TRAILER_MAGIC,
    TRAILER_SIZE,
    FileHeader,
    padded,
)
from sdk.segment.reader import SegmentReader
from sdk.segment.writer import SegmentWriter, step_range

HEADER = FileHeader(b"s" * 16, 0xABC, 3, 10**18)


def create(path: Path, **options: Any) -> SegmentWriter:
    return SegmentWriter.create(DISK, str(path), HEADER, **options)


def seed_in(data: bytes) -> int:
    """The CRC of the file header, with which every other CRC but a payload's begins."""
    return int.from_bytes(data[FILE_HEADER_SIZE - 4 : FILE_HEADER_SIZE], "little")


def test_sizes_of_the_format() -> None:
    """The numbers of docs/segment.md; headers and trailers keep blocks aligned."""
    assert (FILE_HEADER_SIZE, BLOCK_HEADER_SIZE, TRAILER_SIZE) == (64, 88, 32)
    assert FILE_HEADER_SIZE % ALIGNMENT == BLOCK_HEADER_SIZE % ALIGNMENT == TRAILER_SIZE % ALIGNMENT == 0
    assert [padded(n) for n in (0, 1, ALIGNMENT - 1, ALIGNMENT, ALIGNMENT + 1)] == [0, 8, 8, 8, 16]


def test_the_bytes_of_a_segment(tmp_path: Path) -> None:
    """A stranger can find every field by the format's comments alone."""
    writer = create(tmp_path / "s")
    block = writer.append(
        KIND_ROWS, b"payload", stream=5, first=10, last=12, records=2, step_min=3, step_max=4, flags=2, compress=False
    )
    writer.close()
    data = (tmp_path / "s").read_bytes()
    file_fields = FILE_HEADER.unpack_from(data)
    assert file_fields[:5] == (FILE_MAGIC, 1, 0, BLOCKS_OFFSET, 0)
    assert file_fields[6:10] == (b"s" * 16, 0xABC, 3, 10**18)
    assert file_fields[10] == zlib.crc32(data[: FILE_HEADER_SIZE - 4])
    assert data[FILE_HEADER_SIZE:BLOCKS_OFFSET] == bytes(SEAL_SIZE)
    fields = BLOCK_HEADER.unpack_from(data, BLOCKS_OFFSET)
    assert fields[:7] == (BLOCK_MAGIC, KIND_ROWS, 0, BLOCK_HEADER_SIZE, 7, 7, zlib.crc32(b"payload"))
    assert fields[7:15] == (2, 0, 5, 10, 12, 3, 4, 2)
    assert fields[15] == file_fields[10]
    assert (
        fields[17]
        == zlib.crc32(data[BLOCKS_OFFSET : BLOCKS_OFFSET + BLOCK_HEADER_SIZE - 4], file_fields[10])
        == block.crc
    )
    assert data[BLOCKS_OFFSET + BLOCK_HEADER_SIZE :] == b"payload\0"
    assert block.offset == BLOCKS_OFFSET
    assert block.end == len(data)


def test_blocks_are_aligned_numbered_and_chained(tmp_path: Path) -> None:
    """Each names the CRC of the header before it; numbers run on from the segment before."""
    writer = create(tmp_path / "s", first_block_number=41)
    blocks = [writer.append(KIND_ROWS, os.urandom(n + 1), compress=False) for n in range(20)]
    assert [b.number for b in blocks] == list(range(41, 61))
    assert writer.next_block_number == 61
    assert all(b.offset % ALIGNMENT == 0 for b in blocks)
    assert [b.previous_crc for b in blocks[1:]] == [b.crc for b in blocks[:-1]]
    assert writer.size == blocks[-1].end == os.path.getsize(writer.path)
    assert writer.blocks == blocks
    writer.close()


@pytest.mark.parametrize("compress", [True, False])
def test_parts_are_one_payload(tmp_path: Path, compress: bool) -> None:
    """Given whole or in parts, compressed or not: the same raw bytes."""
    writer = create(tmp_path / "s")
    raw = b"abc" * 1000
    writer.append(KIND_ROWS, raw, compress=compress)
    writer.append(KIND_ROWS, [raw[:5], memoryview(raw)[5:2000], bytearray(raw[2000:])], compress=compress)
    writer.close()
    reader = SegmentReader(DISK, str(tmp_path / "s"))
    assert [bytes(reader.payload(b)) for b in reader.blocks] == [raw, raw]
    assert (reader.blocks[0].stored_size < len(raw)) == compress
    reader.close()


def test_a_name_that_is_taken_is_not_touched(tmp_path: Path) -> None:
    """No two writers ever write one file."""
    (tmp_path / "s").write_bytes(b"other")
    with pytest.raises(FileExistsError):
        create(tmp_path / "s")
    assert (tmp_path / "s").read_bytes() == b"other"


@pytest.mark.parametrize("room", [0, 1, BLOCK_HEADER_SIZE - 1, BLOCK_HEADER_SIZE, BLOCK_HEADER_SIZE + 3])
def test_a_full_disk_leaves_whole_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """A block that does not fit leaves nothing; the next one that does has the number and the place of the failed one."""
    writer = create(tmp_path / "s")
    writer.append(KIND_ROWS, b"one", first=1)
    size = writer.size
    real, left = os.pwritev, [room]

    def full_soon(descriptor: int, views: list[memoryview], offset: int) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "no space")
        part = views[0][: left[0]]
        left[0] -= len(part)
        return real(descriptor, [part], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full_soon)
        with pytest.raises(OSError, match="no space"):
            writer.append(KIND_ROWS, b"lost", first=2)
    assert os.path.getsize(writer.path) == size == writer.size
    writer.append(KIND_ROWS, b"two", first=2)
    writer.seal()
    reader = SegmentReader(DISK, str(tmp_path / "s"))
    assert [(b.number, b.first, bytes(reader.payload(b))) for b in reader.blocks] == [(0, 1, b"one"), (1, 2, b"two")]
    assert not reader.damage
    reader.close()


def test_a_header_that_cannot_be_written_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`create` fails whole."""

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(DiskFile, "append", fail)
    with pytest.raises(OSError, match="no space"):
        create(tmp_path / "s")
    assert os.listdir(tmp_path) == []


def test_payloads_that_no_reader_would_take_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty, beyond the raw limit, or beyond the stored limit when nothing could be compressed: ValueError, no block."""
    writer = create(tmp_path / "s")
    monkeypatch.setattr(module, "BLOCK_RAW_BYTES_MAX", 5000)
    monkeypatch.setattr(module, "BLOCK_STORED_BYTES_MAX", 2000)
    incompressible = os.urandom(2001)
    refused: list[Any] = [b"", [b"", b""], bytes(5001), [bytes(2501), bytes(2500)], incompressible]
    refused.append([incompressible[:9], incompressible[9:]])
    for raw in refused:
        for compress in (True, False):
            with pytest.raises(ValueError, match="block payload"):
                writer.append(KIND_ROWS, raw, compress=compress)
    writer.append(KIND_ROWS, bytes(5000))
    writer.append(KIND_ROWS, incompressible[1:])
    assert [b.number for b in writer.blocks] == [0, 1]
    writer.close()
    assert limits.BLOCK_STORED_BYTES_MAX < limits.BLOCK_RAW_BYTES_MAX


def test_seal_writes_keys_index_and_trailer(tmp_path: Path) -> None:
    """The last 32 bytes tell where the index is and how long the file is; KEYS names every key once."""
    writer = create(tmp_path / "s")
    writer.append(KIND_ROWS, b"one", records=3, step_min=0, step_max=2, keys={"a": 3, "b": 1})
    writer.append_map(KIND_META, {"run": "x"})
    writer.append_map(KIND_GAP, {"count": 1}, stream=9)
    writer.append(KIND_ROWS, b"two", records=1, step_min=3, step_max=3, keys={"a": 1})
    writer.seal()
    data = (tmp_path / "s").read_bytes()
    offset, size, blocks, _, crc, magic = TRAILER.unpack(data[-TRAILER_SIZE:])
    assert (size, blocks, magic, crc) == (
        len(data),
        6,
        TRAILER_MAGIC,
        zlib.crc32(data[-TRAILER_SIZE:][:24], seed_in(data)),
    )
    assert BLOCK_HEADER.unpack_from(data, offset)[1] == KIND_INDEX
    reader = SegmentReader(DISK, str(tmp_path / "s"))
    assert reader.sealed
    assert [b.kind for b in reader.blocks] == [KIND_ROWS, KIND_META, KIND_GAP, KIND_ROWS, KIND_KEYS]
    assert reader.key_index == {"a": [(0, 0, 2, 3), (3, 3, 3, 1)], "b": [(0, 0, 2, 1)]}
    assert reader.read_map(reader.blocks[4]) == {"keys": ["a", "b"]}
    assert reader.blocks[2].stream == 9
    reader.close()


def test_the_seal_area_says_at_the_head_what_a_cut_would_take(tmp_path: Path) -> None:
    """Zeros while the segment is open; then size, blocks and how far the rows of the first streams go."""
    writer = create(tmp_path / "s")
    for stream in range(1, SEAL_STREAMS + 2):
        writer.append(KIND_ROWS, b"one", stream=stream, first=1, last=10 * stream, step_max=stream)
    assert (tmp_path / "s").read_bytes()[FILE_HEADER_SIZE:BLOCKS_OFFSET] == bytes(SEAL_SIZE)
    writer.seal()
    data = (tmp_path / "s").read_bytes()
    size, blocks, streams, *claims, magic, crc = SEAL.unpack_from(data, FILE_HEADER_SIZE)
    assert (size, blocks, streams, magic) == (len(data), SEAL_STREAMS + 2, SEAL_STREAMS + 1, SEAL_MAGIC)
    assert claims == [word for stream in range(1, SEAL_STREAMS + 1) for word in (stream, 10 * stream, stream)]
    assert crc == zlib.crc32(data[FILE_HEADER_SIZE : BLOCKS_OFFSET - 4], seed_in(data))


def test_unknown_keys_make_no_index(tmp_path: Path) -> None:
    """Once a block was passed through without a look at its keys, the segment does not claim to know them."""
    writer = create(tmp_path / "s")
    writer.append(KIND_ROWS, b"one", records=1, keys={"a": 1})
    writer.append(KIND_ROWS, b"two", records=1)
    writer.seal()
    reader = SegmentReader(DISK, str(tmp_path / "s"))
    assert reader.key_index is None
    assert KIND_KEYS not in [b.kind for b in reader.blocks]
    reader.close()


def test_seal_may_leave_the_file_open(tmp_path: Path) -> None:
    """So that the caller can force it to the disk."""
    writer = create(tmp_path / "s")
    writer.append(KIND_ROWS, b"one")
    writer.seal(close=False)
    writer.sync()
    writer.close()


def test_step_range() -> None:
    """(min, max), and (0, 0) of nothing."""
    assert step_range([]) == (0, 0)
    assert step_range(iter([5, 2, 9])) == (2, 9)


def test_maps_come_back(tmp_path: Path) -> None:
    """META payloads are one msgpack map."""
    writer = create(tmp_path / "s")
    block = writer.append_map(KIND_META, {"run": "x", "writer": {"pid": 1}})
    writer.close()
    data = (tmp_path / "s").read_bytes()
    start = block.offset + BLOCK_HEADER_SIZE
    assert decode_map(data[start : start + block.stored_size]) == {"run": "x", "writer": {"pid": 1}}
