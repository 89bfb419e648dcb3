"""sdk.segment.check: every byte of a segment that says something is looked at."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdk.errors import DamageError
from sdk.files import DISK
from sdk.record import FLAG_COMMIT, KIND_META, KIND_ROW, Record, encode_map, pack
from sdk.segment.check import check_rows, check_segment
from sdk.segment.format import (
    BLOCK_HEADER_SIZE,
    FILE_HEADER_SIZE,
    FLAG_HAS_META,
    FLAG_MERGED,
    KIND_CHECKPOINT,
    KIND_ROWS,
    Block,
    FileHeader,
)
from sdk.segment.format import KIND_META as BLOCK_META
from sdk.segment.writer import SegmentWriter
from tests.serving import row

HEADER = FileHeader(b"s" * 16, 0xABC, 0, 10**18)


def write(path: Path, *, seal: bool = True) -> list[Block]:
    writer = SegmentWriter.create(DISK, str(path), HEADER)
    writer.append_map(BLOCK_META, {"run": "a"})
    for first in (1, 21):
        raw = b"".join(pack(row(sequence)) for sequence in range(first, first + 20))
        steps = {"step_min": first - 1, "step_max": first + 18}
        writer.append(KIND_ROWS, raw, stream=7, first=first, last=first + 19, records=20, keys={"loss": 20}, **steps)
    writer.append_map(KIND_CHECKPOINT, {"streams": {}})
    writer.append(KIND_ROWS, pack(row(41)), stream=7, first=41, last=41, records=1, step_min=40, step_max=40, keys={})
    if seal:
        writer.seal()
    else:
        writer.close()
    return writer.blocks


@pytest.mark.parametrize("seal", [True, False])
def test_a_good_segment(tmp_path: Path, seal: bool) -> None:
    """Nothing is found; blocks and sequences are counted."""
    blocks = write(tmp_path / "s", seal=seal)
    checked = check_segment(DISK, str(tmp_path / "s"))
    assert (checked.findings, checked.records, checked.sealed) == ([], 41, seal)
    assert checked.size == os.path.getsize(tmp_path / "s")
    assert checked.blocks == len(blocks)


def test_every_flipped_bit_of_a_sealed_segment_is_found(tmp_path: Path) -> None:
    """Payloads and headers, index, seal area, padding, trailer: no bit is without a witness."""
    write(tmp_path / "s")
    whole = (tmp_path / "s").read_bytes()
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        (tmp_path / "s").write_bytes(data)
        assert check_segment(DISK, str(tmp_path / "s")).findings, f"byte {at}"


def test_a_bad_payload_names_block_sums_and_records(tmp_path: Path) -> None:
    """What was found and what was expected, and how many sequences it costs."""
    blocks = write(tmp_path / "s")
    at = blocks[1].offset + BLOCK_HEADER_SIZE
    data = bytearray((tmp_path / "s").read_bytes())
    data[at] ^= 1
    (tmp_path / "s").write_bytes(data)
    (finding,) = check_segment(DISK, str(tmp_path / "s")).findings
    assert (finding.start, finding.end, finding.records) == (blocks[1].offset, blocks[1].end, 20)
    assert finding.text.startswith("block 1: crc is 0x")
    assert f"expected {blocks[1].payload_crc:#010x}" in finding.text


def test_a_short_file_and_what_is_no_file(tmp_path: Path) -> None:
    """Neither raises; a link, a directory and a FIFO are told from a damaged file and never waited for."""
    (tmp_path / "short").write_bytes(b"\x89STP1")
    os.mkfifo(tmp_path / "fifo")
    os.symlink("short", tmp_path / "link")
    os.mkdir(tmp_path / "directory")
    for name, is_file in (("short", True), ("fifo", False), ("link", False), ("directory", False)):
        checked = check_segment(DISK, str(tmp_path / name))
        assert (len(checked.findings), checked.is_file) == (1, is_file)
    with pytest.raises(FileNotFoundError):
        check_segment(DISK, str(tmp_path / "none"))


def header(**changes: int) -> Block:
    fields = {"records": 3, "first": 1, "last": 3, "step_min": 0, "step_max": 2, "flags": 0, **changes}
    return Block(FILE_HEADER_SIZE, KIND_ROWS, 0, 9, 9, 0, number=4, stream=7, previous_crc=0, crc=0, **fields)


META = Record(2, 1, 0, KIND_META, 5, encode_map({"config": {}}))


@pytest.mark.parametrize(
    ("block", "records"),
    [
        (header(), [row(1), row(2), row(3)]),
        (header(step_min=0, step_max=2**62), [row(1), row(2), row(3)]),
        (header(flags=FLAG_HAS_META), [row(1), META, row(3)]),
        (header(flags=FLAG_MERGED, records=2), [row(2), row(3)]),
    ],
)
def test_headers_that_are_right(block: Block, records: list[Record]) -> None:
    """Steps may be wider than what is inside; merged pieces are fewer records than sequences."""
    check_rows(block, b"".join(map(pack, records)))


@pytest.mark.parametrize(
    ("block", "records"),
    [
        (header(), [row(1), row(2)]),
        (header(), [row(1), row(2), row(4)]),
        (header(), [row(2), row(1), row(3)]),
        (header(step_max=1), [row(1), row(2), row(3)]),
        (header(step_min=1), [row(1), row(2), row(3)]),
        (header(), [row(1), META, row(3)]),
        (header(records=2), [row(1), row(3)]),
        (header(), [row(1), row(2)._replace(payload=b"\xc1"), row(3)]),
        (header(), [row(1), row(2)._replace(kind=9), row(3)]),
        (header(first=1, last=40, records=40, step_max=50), [row(n) for n in range(2, 42)]),
    ],
)
def test_headers_that_are_not(block: Block, records: list[Record]) -> None:
    """A missing, doubled, foreign or undecodable record, wrong steps, and facts that a reader would not look for."""
    with pytest.raises(DamageError):
        check_rows(block, b"".join(map(pack, records)))
    with pytest.raises(DamageError):
        check_rows(block, b"".join(map(pack, records))[:-1])
    assert all(record.flags == FLAG_COMMIT for record in records if record.kind == KIND_ROW)
