"""sdk.segment.recovery: a dead writer's segment made whole, whatever it was in the middle of."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from sdk.errors import DamageError
from sdk.files import DISK, Disk, DiskFile
from sdk.segment.format import (
    ALIGNMENT,
    BLOCK_HEADER_SIZE,
    BLOCKS_OFFSET,
    FILE_HEADER_SIZE,
    KIND_ROWS,
    SEAL_SIZE,
    TRAILER_SIZE,
    Block,
    FileHeader,
)
from sdk.segment.naming import ASIDE
from sdk.segment.reader import SegmentReader
from sdk.segment.recovery import _ASIDE_BYTES_MAX, recover
from sdk.segment.writer import SegmentWriter

HEADER = FileHeader(b"s" * 16, 0xABC, 3, 10**18)
PAYLOADS = [b"first", b"second payload", b"the third one, whose end is torn!"]


def write(path: Path, payloads: list[bytes] = PAYLOADS) -> list[Block]:
    """An unsealed segment."""
    writer = SegmentWriter.create(DISK, str(path), HEADER)
    for i, payload in enumerate(payloads):
        writer.append(KIND_ROWS, payload, stream=7, first=i, last=i, records=1)
    writer.close()
    return writer.blocks


def unsealed(data: bytes) -> bytes:
    """The bytes of a sealed segment as they were before the seal area was patched in, which is the last step."""
    return data[:FILE_HEADER_SIZE] + bytes(SEAL_SIZE) + data[BLOCKS_OFFSET:]


def rows(path: Path) -> list[bytes]:
    reader = SegmentReader(DISK, str(path))
    found = [bytes(reader.payload(b)) for b in reader.blocks if b.kind == KIND_ROWS]
    reader.close()
    return found


def walked(path: Path) -> list[bytes]:
    """The same without the index: every block must stand where a stranger looks for it."""
    copy = path.with_suffix(".walk")
    copy.write_bytes(unsealed(path.read_bytes())[:-TRAILER_SIZE])
    reader = SegmentReader(DISK, str(copy))
    found = [bytes(reader.payload(b)) for b in reader.blocks if b.kind == KIND_ROWS]
    assert all(b.offset % ALIGNMENT == 0 for b in reader.blocks)
    damage = reader.damage
    reader.close()
    copy.unlink()
    assert damage == []
    return found


def aside(path: Path) -> dict[str, bytes]:
    directory = path.parent / ASIDE
    return {p.name: p.read_bytes() for p in directory.iterdir()} if directory.exists() else {}


def is_sealed(path: Path) -> bool:
    reader = SegmentReader(DISK, str(path))
    reader.close()
    return reader.sealed


def test_cut_at_every_byte_of_the_last_block(tmp_path: Path) -> None:
    """What is whole stays, what is torn is cut, kept aside to the byte, and the segment is sealed and aligned."""
    blocks = write(tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    last = blocks[-1]
    for cut in range(last.offset, len(data) + 1):
        path = tmp_path / f"run{cut}" / "s.seg"
        path.parent.mkdir()
        path.write_bytes(data[:cut])
        whole = cut >= last.offset + BLOCK_HEADER_SIZE + last.stored_size
        found = recover(DISK, str(path))
        assert [b.first for b in found.blocks] == [0, 1, 2][: 3 if whole else 2]
        assert found.torn_bytes == (0 if whole else cut - last.offset)
        assert (found.damage, found.was_sealed) == ([], False)
        assert rows(path) == walked(path) == PAYLOADS[: 3 if whole else 2]
        assert is_sealed(path)
        torn = data[last.offset : cut] if not whole else b""
        assert aside(path) == ({f"s.seg.{last.offset}": torn} if torn else {})


def test_cut_at_every_byte_of_the_header(tmp_path: Path) -> None:
    """A file too short for its header never held a block: it is set aside whole."""
    write(tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    for cut in range(FILE_HEADER_SIZE):
        path = tmp_path / f"run{cut}" / "s.seg"
        path.parent.mkdir()
        path.write_bytes(data[:cut])
        assert recover(DISK, str(path)) == ([], 0, [], False)
        assert not path.exists()
        assert aside(path) == {"s.seg": data[:cut]}


def test_a_segment_without_blocks(tmp_path: Path) -> None:
    """The header alone is sealed as an empty segment."""
    write(tmp_path / "s", [])
    assert recover(DISK, str(tmp_path / "s")).blocks == []
    assert rows(tmp_path / "s") == []
    assert is_sealed(tmp_path / "s")


def test_a_sealed_segment_is_not_touched(tmp_path: Path) -> None:
    """Not a byte, not its time, and nothing is kept aside; recovering twice is recovering once."""
    write(tmp_path / "s")
    first = recover(DISK, str(tmp_path / "s"))
    data, status = (tmp_path / "s").read_bytes(), os.stat(tmp_path / "s")
    again = recover(DISK, str(tmp_path / "s"))
    assert again.was_sealed
    assert [b for b in again.blocks if b.kind == KIND_ROWS] == first.blocks
    assert (tmp_path / "s").read_bytes() == data
    assert os.stat(tmp_path / "s").st_mtime_ns == status.st_mtime_ns
    assert aside(tmp_path / "s") == {}


def test_a_sealed_segment_with_a_bad_index_is_not_touched(tmp_path: Path) -> None:
    """Its trailer says that it is complete; the index is only an accelerator."""
    path = tmp_path / "s"
    write(path)
    recover(DISK, str(path))
    reader = SegmentReader(DISK, str(path))
    index = reader.blocks[-1].end
    reader.close()
    data = bytearray(path.read_bytes())
    data[index + BLOCK_HEADER_SIZE + 2] ^= 1
    path.write_bytes(data)
    assert recover(DISK, str(path)).was_sealed
    assert path.read_bytes() == data


def test_half_written_index_or_trailer(tmp_path: Path) -> None:
    """Killed while sealing, at any byte: sealing is done again, no block is lost."""
    write(tmp_path / "whole")
    size = os.path.getsize(tmp_path / "whole")
    recover(DISK, str(tmp_path / "whole"))
    data = unsealed((tmp_path / "whole").read_bytes())
    for cut in range(size, len(data) + 1):
        path = tmp_path / f"run{cut}" / "s.seg"
        path.parent.mkdir()
        path.write_bytes(data[:cut])
        recover(DISK, str(path))
        assert rows(path) == PAYLOADS
        assert walked(path) == PAYLOADS
        assert is_sealed(path)


@pytest.mark.parametrize("bad", [[2], [1, 2], [0, 1, 2]])
def test_payloads_that_never_reached_the_disk(tmp_path: Path, bad: list[int]) -> None:
    """Whole headers whose payloads are zeros, as after power loss, stay: they tell for ever what is missing."""
    blocks = write(tmp_path / "s")
    data = bytearray((tmp_path / "s").read_bytes())
    for index in bad:
        start = blocks[index].offset + BLOCK_HEADER_SIZE
        data[start : start + blocks[index].stored_size] = bytes(blocks[index].stored_size)
    (tmp_path / "s").write_bytes(data)
    found = recover(DISK, str(tmp_path / "s"))
    assert (found.torn_bytes, found.damage, aside(tmp_path / "s")) == (0, [], {})
    reader = SegmentReader(DISK, str(tmp_path / "s"))
    assert reader.sealed
    assert [b.first for b in reader.blocks if not readable(reader, b)] == bad
    reader.close()


def readable(reader: SegmentReader, block: Block) -> bool:
    try:
        reader.payload(block)
    except DamageError:
        return False
    return True


def test_a_segment_that_was_cut_after_it_was_sealed_is_not_touched(tmp_path: Path) -> None:
    """Sealing it again would forget how long it was."""
    write(tmp_path / "s")
    recover(DISK, str(tmp_path / "s"))
    whole = (tmp_path / "s").read_bytes()
    for cut in range(BLOCKS_OFFSET, len(whole)):
        (tmp_path / "s").write_bytes(whole[:cut])
        assert recover(DISK, str(tmp_path / "s")).was_sealed
        assert (tmp_path / "s").read_bytes() == whole[:cut]


def test_a_tail_of_zeros_is_cut_and_not_kept(tmp_path: Path) -> None:
    """Preallocated space holds nothing."""
    write(tmp_path / "s")
    with open(tmp_path / "s", "ab") as file:
        file.write(bytes(5000))
    assert recover(DISK, str(tmp_path / "s")).torn_bytes == 5000
    assert rows(tmp_path / "s") == PAYLOADS
    assert aside(tmp_path / "s") == {}


def test_what_is_kept_of_a_tail_is_bounded(tmp_path: Path) -> None:
    """A huge torn tail is cut whole and kept up to the limit."""
    write(tmp_path / "s")
    size = os.path.getsize(tmp_path / "s")
    with open(tmp_path / "s", "ab") as file:
        file.write(b"x" * 8)
        file.truncate(size + _ASIDE_BYTES_MAX + 100)
    assert recover(DISK, str(tmp_path / "s")).torn_bytes == _ASIDE_BYTES_MAX + 100
    assert [len(b) for b in aside(tmp_path / "s").values()] == [_ASIDE_BYTES_MAX]


def test_damage_in_the_middle_stays_and_is_reported(tmp_path: Path) -> None:
    """Only the end is cut: bytes between good blocks are left where they are."""
    blocks = write(tmp_path / "s")
    data = bytearray((tmp_path / "s").read_bytes())
    data[blocks[1].offset + 20] ^= 0xFF
    (tmp_path / "s").write_bytes(data + b"torn")
    found = recover(DISK, str(tmp_path / "s"))
    assert [(d.start, d.end) for d in found.damage] == [(blocks[1].offset, blocks[1].end)]
    assert found.torn_bytes == 4
    assert rows(tmp_path / "s") == [PAYLOADS[0], PAYLOADS[2]]
    assert (tmp_path / "s").read_bytes()[BLOCKS_OFFSET : len(data)] == data[BLOCKS_OFFSET:]
    reader = SegmentReader(DISK, str(tmp_path / "s"))
    assert (reader.sealed, [d[1:3] for d in reader.damage]) == (True, [(blocks[1].offset, blocks[1].end)])
    reader.close()


def test_a_damaged_file_header_changes_nothing(tmp_path: Path) -> None:
    """DamageError: the file is for `repair`, which writes another."""
    write(tmp_path / "s")
    data = bytearray((tmp_path / "s").read_bytes())
    data[30] ^= 1
    (tmp_path / "s").write_bytes(data)
    with pytest.raises(DamageError):
        recover(DISK, str(tmp_path / "s"))
    assert (tmp_path / "s").read_bytes() == data


class Failing(Disk):
    """A disk whose N-th change fails, as when the process is killed there."""

    def __init__(self, changes: int) -> None:
        self.left = changes

    def change(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.EIO, "killed here")

    def open(self, path: str, *, write: bool = False) -> DiskFile:
        file = super().open(path, write=write)
        disk = self

        class FailingFile(DiskFile):
            def append(self, parts: Any) -> int:
                disk.change()
                return super().append(parts)

            def truncate(self, size: int) -> None:
                disk.change()
                super().truncate(size)

            def patch(self, offset: int, data: Any) -> None:
                disk.change()
                super().patch(offset, data)

        descriptor = os.dup(file._descriptor)
        file.close()
        return FailingFile(path, descriptor)

    def write_whole(self, path: str, data: bytes) -> None:
        self.change()
        super().write_whole(path, data)

    def make_directory(self, path: str) -> None:
        self.change()
        super().make_directory(path)


@pytest.mark.parametrize("changes", range(8))
@pytest.mark.parametrize("cut", [3, BLOCK_HEADER_SIZE + 5, None])
def test_killed_at_any_step_and_run_again(tmp_path: Path, changes: int, cut: int | None) -> None:
    """Each step leaves a file that the next run handles, with the same result."""
    blocks = write(tmp_path / "s")
    if cut is not None:
        os.truncate(tmp_path / "s", blocks[-1].offset + cut)
    try:
        recover(Failing(changes), str(tmp_path / "s"))
    except OSError:
        pass
    recover(DISK, str(tmp_path / "s"))
    assert rows(tmp_path / "s") == walked(tmp_path / "s") == PAYLOADS[: 2 if cut is not None else 3]
    assert is_sealed(tmp_path / "s")
    if cut is not None:
        assert [len(b) for b in aside(tmp_path / "s").values()] == [cut]
