"""sdk.segment.repair: what is good is saved, what is not becomes a gap, and the old file is kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sdk.errors import DamageError
from sdk.files import DISK, Disk
from sdk.record import Record, pack, walk
from sdk.segment.check import check_segment
from sdk.segment.format import (
    BLOCK_HEADER_SIZE,
    FILE_HEADER_SIZE,
    FLAG_MERGED,
    KIND_CHECKPOINT,
    KIND_GAP,
    KIND_META,
    KIND_ROWS,
    Block,
    FileHeader,
)
from sdk.segment.naming import ASIDE, SegmentName, format_segment
from sdk.segment.reader import SegmentReader
from sdk.segment.repair import DRAFT_SUFFIX, Repaired, rewrite
from sdk.segment.writer import SegmentWriter
from tests.serving import row

OLD, NEW = SegmentName(0xABC, 2), SegmentName(0xDEF, 0)
HEADER = FileHeader(b"s" * 16, *OLD[:2], created_ns=10**18)
ORIGIN = {"kind": "repair", "pid": 1}


def write(path: Path, blocks: list[list[Record]], *, seal: bool = True, **header: Any) -> tuple[str, list[Block]]:
    """A segment of one ROWS block per list."""
    name = str(path / format_segment(OLD))
    writer = SegmentWriter.create(DISK, name, HEADER)
    writer.append_map(KIND_META, {"run": "a41f", "writer": {"kind": "daemon"}})
    for records in blocks:
        first, last = records[0].sequence, records[-1].sequence
        fields = {"first": first, "last": last, "records": len(records), "step_min": first - 1, "step_max": last - 1}
        writer.append(KIND_ROWS, b"".join(map(pack, records)), stream=7, **{**fields, **header})
    rows = writer.blocks[1:]
    if seal:
        writer.seal()
    else:
        writer.close()
    return name, rows


def spoil(path: str, at: int, data: bytes = b"\xff\xff") -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def repaired(path: str, files: Any = DISK) -> Repaired:
    return rewrite(files, path, "a41f", FileHeader(b"s" * 16, *NEW[:2], created_ns=5), ORIGIN)


def held(path: str) -> tuple[list[int], list[dict[str, Any]]]:
    """(sequences of the records, GAP maps) in a segment, which must be good."""
    assert check_segment(DISK, path).findings == []
    reader = SegmentReader(DISK, path)
    sequences = [r.sequence for b in reader.blocks if b.kind == KIND_ROWS for r in walk(reader.payload(b))]
    gaps = [reader.read_map(b) for b in reader.blocks if b.kind == KIND_GAP]
    reader.close()
    return sequences, gaps


def spans(gaps: list[dict[str, Any]]) -> list[tuple[int, int]]:
    assert all(gap["count"] == gap["last"] - gap["first"] + 1 for gap in gaps)
    return [(gap["first"], gap["last"]) for gap in gaps]


BLOCKS = [[row(n) for n in range(first, first + 10)] for first in (1, 11, 21)]


def test_a_bad_payload_becomes_a_gap(tmp_path: Path) -> None:
    """The other blocks are copied byte for byte; the new segment names the one it replaces, which lies in aside/."""
    path, blocks = write(tmp_path, BLOCKS)
    spoil(path, blocks[1].offset + BLOCK_HEADER_SIZE)
    damaged = Path(path).read_bytes()
    done = repaired(path)
    assert (done.records, done.lost) == (20, 10)
    assert done.path == str(tmp_path / format_segment(NEW))
    assert sorted(os.listdir(tmp_path)) == [ASIDE, format_segment(NEW)]
    assert Path(done.aside or "").read_bytes() == damaged
    sequences, gaps = held(done.path)
    assert sequences == [*range(1, 11), *range(21, 31)]
    assert spans(gaps) == [(11, 20)]
    assert (gaps[0]["step_min"], gaps[0]["step_max"], gaps[0]["reason"]) == (10, 19, "damage")
    reader = SegmentReader(DISK, done.path)
    assert reader.read_map(reader.blocks[0]) == {"run": "a41f", "writer": ORIGIN, "replaces": [["0000000000000abc", 2]]}
    assert reader.header.created_ns == HEADER.created_ns
    assert {b.payload_crc for b in reader.blocks} >= {blocks[0].payload_crc, blocks[2].payload_crc}
    reader.close()


def test_what_a_cut_took_is_still_claimed(tmp_path: Path) -> None:
    """The seal area of the cut segment says how far its streams went; the new one says it again."""
    path, blocks = write(tmp_path, BLOCKS)
    os.truncate(path, blocks[1].offset + 5)
    done = repaired(path)
    assert (done.records, held(done.path)) == (10, (list(range(1, 11)), []))
    reader = SegmentReader(DISK, done.path)
    claims = [reader.read_map(b) for b in reader.blocks if b.kind == KIND_CHECKPOINT]
    assert claims == [{"streams": {"0000000000000007": [30, 29]}}]
    reader.close()


def test_a_lost_file_header_costs_nothing(tmp_path: Path) -> None:
    """All blocks are saved."""
    path, _ = write(tmp_path, BLOCKS)
    spoil(path, 0, bytes(FILE_HEADER_SIZE))
    done = repaired(path)
    assert (done.records, done.lost, held(done.path)[0]) == (30, 0, list(range(1, 31)))


BAD = {"payload": b"\xc1"}


@pytest.mark.parametrize(
    ("records", "flags", "kept", "lost"),
    [
        ([row(1), row(2)._replace(**BAD), row(3), row(4)], 0, [1, 3, 4], [(2, 2)]),
        ([row(1)._replace(**BAD), row(2), row(3), row(4)], 0, [2, 3, 4], [(1, 1)]),
        ([row(1), row(2), row(3), row(4)._replace(**BAD)], 0, [1, 2, 3], [(4, 4)]),
        ([row(1), row(4)], 0, [1, 4], [(2, 3)]),
        ([row(2), row(4)], 0, [2, 4], [(1, 1), (3, 3)]),
        ([row(2), row(3)._replace(**BAD), row(4)], FLAG_MERGED, [2, 4], [(3, 3)]),
        ([row(1), row(3)._replace(**BAD), row(4)], FLAG_MERGED, [1, 4], [(2, 3)]),
        ([row(1), row(2), row(2), row(9)], FLAG_MERGED, [1, 2], [(3, 4)]),
    ],
)
def test_good_records_of_a_block_that_was_written_wrong(
    tmp_path: Path, records: list[Record], flags: int, kept: list[int], lost: list[tuple[int, int]]
) -> None:
    """Its checksum is right, so what can be decoded is what was logged; merged pieces hold the sequences before them."""
    path, _ = write(tmp_path, [records], first=1, last=4, records=9, step_min=0, step_max=3, flags=flags)
    sequences, gaps = held(repaired(path).path)
    assert (sequences, spans(gaps)) == (kept, lost)


def test_a_segment_of_which_nothing_is_left(tmp_path: Path) -> None:
    """Zeros all over: a segment that only says what it replaces; one that is not there at all is treated alike."""
    path, _ = write(tmp_path, BLOCKS)
    Path(path).write_bytes(bytes(5000))
    done = repaired(path)
    assert (done.records, held(done.path)) == (0, ([], []))
    assert done.aside is not None
    os.unlink(done.path)
    assert repaired(path).aside is None


def test_aside_keeps_files_of_the_same_name_apart(tmp_path: Path) -> None:
    """Nothing that was kept is overwritten."""
    kept = set()
    for _ in range(3):
        path, blocks = write(tmp_path, BLOCKS)
        spoil(path, blocks[0].offset + BLOCK_HEADER_SIZE)
        done = repaired(path)
        kept.add(done.aside)
        os.unlink(done.path)
    assert len(kept) == len(os.listdir(tmp_path / ASIDE)) == 3


class Killed(BaseException):
    """The process is gone."""


class Mortal(Disk):
    """A disk on whose N-th change of a name or file the process is killed."""

    def __init__(self, changes: int) -> None:
        self.left = changes

    def _change(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def create(self, path: str) -> Any:
        self._change()
        return super().create(path)

    def rename(self, source: str, target: str) -> None:
        self._change()
        super().rename(source, target)

    def remove(self, path: str) -> None:
        self._change()
        super().remove(path)

    def sync_directory(self, path: str) -> None:
        self._change()
        super().sync_directory(path)


def test_killed_at_any_step_and_run_again(tmp_path: Path) -> None:
    """At every moment all good records are in the run's directory, and the next run leaves one whole new segment more."""
    for changes in range(12):
        home = tmp_path / str(changes)
        home.mkdir()
        path, blocks = write(home, BLOCKS)
        spoil(path, blocks[1].offset + BLOCK_HEADER_SIZE)
        try:
            repaired(path, Mortal(changes))
            ended = True
        except Killed:
            ended = False
        names = [name for name in os.listdir(home) if name.endswith(".seg")]
        there: set[int] = set()
        for name in names:
            reader = SegmentReader(DISK, str(home / name))
            for block in reader.blocks:
                if block.kind == KIND_ROWS:
                    try:
                        there |= {record.sequence for record in walk(reader.payload(block))}
                    except DamageError:
                        assert block.first == 11
            reader.close()
        assert there == {*range(1, 11), *range(21, 31)}
        if os.path.exists(path):
            if (home / format_segment(NEW)).exists():
                os.unlink(home / format_segment(NEW))  # the next run has another writer; here the name is the same
            assert repaired(path).records == 20
        assert held(str(home / format_segment(NEW)))[0] == [*range(1, 11), *range(21, 31)]
        assert not [name for name in os.listdir(home / ASIDE) if name.endswith(DRAFT_SUFFIX)]
    assert ended
