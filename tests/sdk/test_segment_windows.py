"""sdk.segment.windows, check, repair: windows of columns that are whole, damaged, incomplete, or made by an attacker."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from sdk.errors import DamageError
from sdk.files import DISK
from sdk.segment.check import Checked, Finding, check_segment
from sdk.segment.format import BLOCK_HEADER_SIZE, FLAG_MERGED, KIND_COLUMNS, KIND_META, KIND_ROWS, Block, FileHeader
from sdk.segment.naming import SegmentName, format_segment
from sdk.segment.reader import SegmentReader
from sdk.segment.repair import Repaired, rewrite
from sdk.segment.windows import range_of, windows
from tests.windows import append_window, begin, cells_of, end, fact, group, is_told, read_cells

NEW = SegmentName(0xDEF, 0)
NOISE = np.random.default_rng(20261121).normal(size=200)
# Rows of training, of every tenth an evaluation in a block of its own, and two facts.
TRAIN = group(range(1, 61), {"loss": NOISE[:60], "epoch": np.arange(60) // 7, "note": ["a", "b", "c"] * 20})
EVALUATION = group(range(61, 66), {"accuracy": NOISE[:5], "table": [msgpack.packb([n]) for n in range(5)]})
FACTS = [fact(66), fact(67)]
LATER = group(range(68, 100), {"loss": NOISE[60:92]})
ALL = cells_of([TRAIN, EVALUATION, LATER])


def write(path: Path, **changes: Any) -> tuple[str, list[Block]]:
    """A segment of two windows; its path and its blocks of windows."""
    writer = begin(path)
    append_window(writer, [[TRAIN], [EVALUATION]], (1, 67), FACTS, **changes)
    append_window(writer, [[LATER]], (68, 99))
    return end(writer), [block for block in writer.blocks if block.kind in (KIND_COLUMNS, KIND_ROWS)]


def check(path: str) -> Checked:
    return check_segment(DISK, path)


def texts(path: str) -> str:
    return "\n".join(finding.text for finding in check(path).findings)


def repair(path: str) -> Repaired:
    done = rewrite(DISK, path, "a41f", FileHeader(b"s" * 16, *NEW[:2], created_ns=5), {"kind": "repair"})
    assert check(done.path).findings == []
    return done


def flip(path: str, at: int, data: bytes) -> None:
    """The file with one bit of another value."""
    changed = bytearray(data)
    changed[at] ^= 1 << at % 8
    Path(path).write_bytes(changed)


def spoil(path: str, block: Block, start: int = 0, size: int = 0) -> None:
    """Inverts bytes of a block's payload: all of them if not told otherwise."""
    with open(path, "r+b") as file:
        file.seek(block.offset + BLOCK_HEADER_SIZE + start)
        data = file.read(size or block.stored_size)
        file.seek(block.offset + BLOCK_HEADER_SIZE + start)
        file.write(bytes(byte ^ 0xFF for byte in data))


# -- checking ------------------------------------------------------------------------------------------------------------


def test_a_good_segment(tmp_path: Path) -> None:
    """Nothing is found; the sequences of a window count once."""
    path, blocks = write(tmp_path)
    checked = check(path)
    assert (checked.findings, checked.records, len(blocks)) == ([], 99, 4)
    assert read_cells(path)[0] == ALL


def test_each_flip_is_found_and_named(tmp_path: Path) -> None:
    """No bit is without a witness; of a column, its key and its steps are named; every column can be lost by itself."""
    path, blocks = write(tmp_path)
    whole, alone = Path(path).read_bytes(), set()
    for at in range(0, len(whole), 3):
        flip(path, at, whole)
        findings = check(path).findings
        assert findings, f"byte {at}"
        lost = [finding for finding in findings if finding.values]
        for finding in lost:
            assert finding.block is not None and all(repr(key) in finding.text for key in finding.keys)
            assert finding.steps == {"loss": (0, 59), "epoch": (0, 59), "note": (0, 59)}.get(
                finding.keys[0], (60, 64)
            ) or (finding.block == blocks[3] and finding.steps == (67, 98))
        alone |= {finding.keys for finding in lost if len(lost) == 1}
    assert alone >= {("loss",), ("note",), ("accuracy",), ("table",)}


def test_a_window_that_is_not_all_there(tmp_path: Path) -> None:
    """A block less than its segment tells, and a window of which nothing is there: what is lost is named."""
    writer = begin(tmp_path)
    append_window(writer, [[TRAIN]], (1, 67), FACTS)
    told = [["0000000000000007", 1, 67, 3], ["0000000000000007", 68, 99, 1]]
    path = end(writer, told=told)
    checked = check(path)
    assert [finding.records for finding in checked.findings] == [32, 5]
    assert "has 2 blocks, expected 3" in texts(path) and "sequences 68-99" in texts(path)
    assert checked.records == 62
    done = repair(path)
    assert (done.records, done.lost) == (62, 37)
    cells, gaps = read_cells(done.path)
    assert cells == cells_of([TRAIN])
    assert [(gap["first"], gap["last"]) for gap in gaps if "first" in gap] == [(61, 65), (68, 99)]
    # What the missing block held of other rows nobody knows.
    assert [(gap["count"], gap["values"]) for gap in gaps if "first" not in gap] == [(0, 0)]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"records": 7}, "its header says 7"),
        ({"step_min": 9}, "the block's header 9-"),
        ({"step_max": 50}, "its directory says 0-59"),
    ],
)
def test_headers_that_lie(tmp_path: Path, changes: dict[str, int], text: str) -> None:
    """Checksums are right, but rows are not those that the block's header tells of."""
    path, _ = write(tmp_path, **changes)
    assert text in texts(path)
    repair(path)


def test_rows_that_are_not_there(tmp_path: Path) -> None:
    """All sequences of a window are there, unless it says that pieces were merged."""
    for number, flags in enumerate((0, FLAG_MERGED)):
        directory = tmp_path / str(number)
        directory.mkdir()
        writer = begin(directory)
        append_window(writer, [[group([2, 5, 9], {"x": NOISE[:3]})]], (1, 9), flags=flags)
        path = end(writer)
        checked = check(path)
        if flags:
            assert (checked.findings, checked.records) == ([], 9)
        else:
            assert [finding.records for finding in checked.findings] == [6] and checked.records == 3
            assert (repair(path).records, repair_gaps(directory)) == (3, [(1, 1), (3, 4), (6, 8)])


def repair_gaps(directory: Path) -> list[tuple[int, int]]:
    return [(gap["first"], gap["last"]) for gap in read_cells(str(directory / format_segment(NEW)))[1]]


@pytest.mark.parametrize("order", ["scattered", "records first"])
def test_blocks_in_the_wrong_order(tmp_path: Path, order: str) -> None:
    """They are read all the same, told of, and put in order by a repair."""
    writer = begin(tmp_path)
    if order == "scattered":
        append_window(writer, [[TRAIN]], (1, 65))
        append_window(writer, [[LATER]], (68, 99))
        append_window(writer, [[EVALUATION]], (1, 65))
    else:
        append_window(writer, [], (1, 67), FACTS)
        append_window(writer, [[TRAIN], [EVALUATION]], (1, 67))
        append_window(writer, [[LATER]], (68, 99))
    path = end(writer)
    assert "do not stand together" in texts(path) or "does not end with" in texts(path)
    done = repair(path)
    assert (done.lost, read_cells(done.path)) == (0, (ALL, []))


def test_a_block_in_the_place_of_another(tmp_path: Path) -> None:
    """The index tells of one block and another one stands there: its columns are good, and are not taken for the first one's."""
    writer = begin(tmp_path)
    for first in (1, 11):
        append_window(
            writer, [[group(range(first, first + 10), {"loss": NOISE[first : first + 10]})]], (first, first + 9)
        )
    one, other = (block for block in writer.blocks if block.kind == KIND_COLUMNS)
    path = end(writer)
    data = bytearray(Path(path).read_bytes())
    data[one.offset : one.end] = data[other.offset : other.end]
    Path(path).write_bytes(data)
    reader = SegmentReader(DISK, path)
    assert reader.index is not None and reader.blocks[1] == one
    with pytest.raises(DamageError, match="block 2 stands where block 1"):
        reader.read_part(one, 0, 100)
    reader.close()
    assert [finding.records for finding in check(path).findings if finding.records] == [10]
    done = repair(path)
    assert (done.records, done.lost) == (10, 10)


# -- repairing -----------------------------------------------------------------------------------------------------------


def columns_lost(path: str, block: Block, key: str) -> Finding:
    """Flips bytes of a block until exactly one column is lost, that of `key`; what check says of it."""
    whole = Path(path).read_bytes()
    for at in range(block.start, block.start + block.stored_size):
        flip(path, at, whole)
        findings = check(path).findings
        if [finding.keys for finding in findings if finding.values] == [(key,)]:
            return findings[0]
    raise AssertionError(f"no byte of {block} is of {key!r} alone")


def test_one_bad_column(tmp_path: Path) -> None:
    """Its values are lost and told with key and steps; all rows and all other values are kept."""
    path, blocks = write(tmp_path)
    finding = columns_lost(path, blocks[0], "loss")
    assert (finding.records, finding.values, finding.steps) == (0, 60, (0, 59))
    done = repair(path)
    assert (done.records, done.lost, done.lost_values) == (99, 0, 60)
    cells, gaps = read_cells(done.path)
    assert cells == {where: cell for where, cell in ALL.items() if where[1] != "loss" or where[0] >= 68}
    assert [(g["key"], g["count"], g["values"], g["step_min"], g["step_max"]) for g in gaps] == [("loss", 0, 60, 0, 59)]


def test_a_bad_block_beside_a_good_one(tmp_path: Path) -> None:
    """The rows that only it held are a gap, and the window ends around them; facts and other blocks are kept."""
    path, blocks = write(tmp_path)
    spoil(path, blocks[1])
    (finding,) = check(path).findings
    assert (finding.records, finding.keys, finding.block) == (5, ("accuracy", "table"), blocks[1])
    done = repair(path)
    assert (done.records, done.lost, done.lost_values) == (94, 5, 0)
    cells, gaps = read_cells(done.path)
    assert cells == cells_of([TRAIN, LATER])
    assert [(gap["first"], gap["last"], gap["step_min"], gap["step_max"]) for gap in gaps] == [(61, 65, 60, 64)]
    reader = SegmentReader(DISK, done.path)
    told = [where[1:] for where in windows(reader.blocks)]
    records = [block for block in reader.blocks if block.kind == KIND_ROWS]
    reader.close()
    assert told == [(1, 60), (66, 67), (68, 99)] and len(records) == 1


def test_a_bad_block_that_held_other_keys_of_the_same_rows(tmp_path: Path) -> None:
    """No row is lost, but values, with their keys and steps."""
    writer = begin(tmp_path)
    append_window(writer, [[TRAIN], [group(range(1, 61, 10), {"accuracy": NOISE[:6]})]], (1, 60))
    block = writer.blocks[2]
    path = end(writer)
    spoil(path, block)
    assert [(f.records, f.keys) for f in check(path).findings] == [(0, ("accuracy",))]
    done = repair(path)
    assert (done.records, done.lost, done.lost_values) == (60, 0, 6)
    cells, gaps = read_cells(done.path)
    assert cells == cells_of([TRAIN])
    assert [(g["key"], g["values"], g["step_min"], g["step_max"]) for g in gaps] == [("accuracy", 6, 0, 50)]


def test_merged_pieces(tmp_path: Path) -> None:
    """Which sequences were in the lost rows nobody knows: so many rows at most, between these steps."""
    writer = begin(tmp_path)
    even, odd = group(range(2, 41, 4), {"a": NOISE[:10]}), group(range(4, 41, 4), {"b": NOISE[:10]})
    append_window(writer, [[even], [odd]], (1, 40), flags=FLAG_MERGED)
    block = writer.blocks[2]
    path = end(writer)
    spoil(path, block)
    assert check(path).findings[0].records == 10
    done = repair(path)
    assert (done.records, done.lost) == (40, 10)
    cells, (gap,) = read_cells(done.path)
    assert cells == cells_of([even])
    assert (gap["count"], gap["step_min"], gap["step_max"], "first" in gap) == (10, 3, 39, False)


def test_rows_lost_among_others(tmp_path: Path) -> None:
    """Where a window would become hundreds it stays one, and the gap counts."""
    writer = begin(tmp_path)
    even, odd = group(range(2, 201, 2), {"a": NOISE[:100]}), group(range(1, 200, 2), {"b": NOISE[:100]})
    append_window(writer, [[even], [odd]], (1, 200))
    block = writer.blocks[2]
    path = end(writer)
    spoil(path, block)
    done = repair(path)
    assert (done.records, done.lost) == (200, 100)
    cells, (gap,) = read_cells(done.path)
    assert (cells, gap["count"], "first" in gap) == (cells_of([even]), 100, False)


def test_nothing_of_a_window_is_left(tmp_path: Path) -> None:
    """Its range becomes a gap, as that of a block of rows does."""
    path, blocks = write(tmp_path)
    for block in blocks[:3]:
        spoil(path, block)
    done = repair(path)
    assert (done.records, done.lost) == (32, 67)
    cells, (gap,) = read_cells(done.path)
    assert (cells, gap["first"], gap["last"]) == (cells_of([LATER]), 1, 67)


def test_what_was_replaced_and_is_still_there_is_replaced_no_more(tmp_path: Path) -> None:
    """The new segment may hold less, so whoever removes what was replaced must not believe it; what is gone stays named."""
    there, gone = SegmentName(0x11, 0), SegmentName(0x12, 3)
    begin(tmp_path, there).close()
    writer = begin(tmp_path)
    append_window(writer, [[TRAIN], [EVALUATION]], (1, 67), FACTS)
    block = writer.blocks[2]
    path = end(writer, [there, gone])
    spoil(path, block)
    reader = SegmentReader(DISK, repair(path).path)
    told = [reader.read_map(block) for block in reader.blocks if block.kind == KIND_META]
    assert told[-1]["replaces"] == [["0000000000000012", 3]]
    assert told[-1]["windows"] == [
        [f"{stream:016x}", first, last, len(blocks)] for (stream, first, last), blocks in windows(reader.blocks).items()
    ]
    reader.close()


def test_repair_after_any_flip(tmp_path: Path) -> None:
    """What is there then is as it was, everything else is told, and nothing is lost that could be read before."""
    path, _ = write(tmp_path)
    whole = Path(path).read_bytes()
    for at in range(0, len(whole), 19):
        for name in os.listdir(tmp_path):
            if name.endswith(".seg"):
                os.unlink(tmp_path / name)
        flip(path, at, whole)
        repair(path)
        cells, gaps = read_cells(str(tmp_path / format_segment(NEW)))
        assert cells.items() <= ALL.items(), f"byte {at}"
        untold = [w for w, (step, _) in ALL.items() if w not in cells and not is_told(gaps, *w, step)]
        assert not untold, f"byte {at}: {untold[:5]}"


def test_ranges_of_headers(tmp_path: Path) -> None:
    """A block that stands twice counts once."""
    _, blocks = write(tmp_path)
    assert windows([*blocks, *blocks]) == {range_of(blocks[0]): blocks[:3], range_of(blocks[3]): blocks[3:]}
