"""sdk.segment.reader: gives what is good, names what is damaged to the byte, and believes nothing."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from sdk.errors import DamageError, StoreError
from sdk.files import DISK, Disk, DiskFile
from sdk.limits import BLOCK_RAW_BYTES_MAX, BLOCK_STORED_BYTES_MAX
from sdk.record import encode_map
from sdk.segment import reader as module
from sdk.segment.format import (
    ALIGNMENT,
    BLOCK_HEADER_SIZE,
    BLOCKS_OFFSET,
    FILE_HEADER_SIZE,
    FLAG_WINDOW,
    KIND_INDEX,
    KIND_KEYS,
    KIND_META,
    KIND_ROWS,
    KIND_SKIPPABLE,
    KINDS_MAX,
    SEAL_SIZE,
    TRAILER_SIZE,
    Block,
    FileHeader,
    padded,
)
from sdk.segment.headers import (
    owner_of,
    pack_block_header,
    pack_file_header,
    pack_trailer,
    parse_block_header,
    parse_file_header,
)
from sdk.segment.naming import SegmentName, format_segment
from sdk.segment.reader import SegmentReader
from sdk.segment.writer import SegmentWriter

HEADER = FileHeader(b"s" * 16, 0xABC, 3, 10**18)
PACKED = pack_file_header(HEADER)
SEED = int.from_bytes(PACKED[-4:], "little")
OWNER = owner_of(HEADER.writer, HEADER.number)
HEAD = PACKED + bytes(SEAL_SIZE)  # of an open segment
PAYLOADS = [b"the first payload", b"x" * 600, b"third", b"and the last one of them"]
DATA_KINDS = (KIND_ROWS, KIND_META)


def write(path: Path, payloads: list[bytes] = PAYLOADS, *, seal: bool = True) -> list[Block]:
    """A segment with one ROWS block per payload."""
    writer = SegmentWriter.create(DISK, str(path), HEADER)
    for i, payload in enumerate(payloads):
        writer.append(
            KIND_ROWS,
            payload,
            stream=7,
            first=i * 10,
            last=i * 10 + 9,
            records=10,
            step_min=i,
            step_max=i + 1,
            keys={"a": 10},
        )
    blocks = list(writer.blocks)
    if seal:
        writer.seal()
    else:
        writer.close()
    return blocks


def found(reader: SegmentReader) -> tuple[dict[int, bytes], list[str]]:
    """(first sequence -> payload) of the readable data blocks, and what was said about the others."""
    good, errors = {}, []
    for block in reader.blocks:
        if block.kind in DATA_KINDS:
            try:
                good[block.first] = bytes(reader.payload(block))
            except DamageError as error:
                errors.append(str(error))
    return good, errors


WRITTEN = {i * 10: payload for i, payload in enumerate(PAYLOADS)}


def unsealed(data: bytes) -> bytes:
    """A sealed segment as it was before its seal area was patched in."""
    return data[:FILE_HEADER_SIZE] + bytes(SEAL_SIZE) + data[BLOCKS_OFFSET:]


def opened(path: Path) -> SegmentReader:
    return SegmentReader(DISK, str(path))


def spoil(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize("seal", [True, False])
def test_what_was_written_is_read(tmp_path: Path, seal: bool) -> None:
    """Header, block headers and payloads; by the index or by walking."""
    blocks = write(tmp_path / "s", seal=seal)
    reader = opened(tmp_path / "s")
    assert reader.header._replace(crc=0) == HEADER
    assert [b for b in reader.blocks if b.kind == KIND_ROWS] == blocks
    assert found(reader) == (WRITTEN, [])
    assert (reader.sealed, reader.damage) == (seal, [])
    assert reader.key_index == ({"a": [(i, i, i + 1, 10) for i in range(len(PAYLOADS))]} if seal else None)
    assert reader.refresh() == []
    reader.close()


def test_an_empty_segment(tmp_path: Path) -> None:
    """A header alone is a segment without blocks; sealed it still has none."""
    write(tmp_path / "s", [], seal=False)
    reader = opened(tmp_path / "s")
    assert (reader.blocks, reader.sealed, reader.tail) == ([], False, BLOCKS_OFFSET)
    reader.close()
    write(tmp_path / "t", [])
    reader = opened(tmp_path / "t")
    assert (found(reader), reader.sealed) == (({}, []), True)
    reader.close()


def test_following_a_writer_byte_by_byte(tmp_path: Path) -> None:
    """At no length of the file is a block reported too early, twice, or as damage; at the end it is sealed."""
    blocks = write(tmp_path / "whole")
    data = unsealed((tmp_path / "whole").read_bytes())
    path = tmp_path / "growing"
    path.write_bytes(data[:BLOCKS_OFFSET])
    reader = opened(path)
    seen: list[Block] = []
    with open(path, "ab") as file:
        for at in range(BLOCKS_OFFSET, len(data)):
            file.write(data[at : at + 1])
            file.flush()
            new = reader.refresh()
            for block in new:
                assert at + 1 >= block.offset + BLOCK_HEADER_SIZE + block.stored_size
                reader.payload(block)
            seen += new
            assert reader.damage == []
            assert not reader.sealed or at + 1 == len(data)
    assert [b for b in seen if b.kind == KIND_ROWS] == blocks
    assert reader.sealed
    reader.close()


def test_refresh_while_a_writer_appends_and_seals(tmp_path: Path) -> None:
    """Another writer object appends to the file that is open here."""
    writer = SegmentWriter.create(DISK, str(tmp_path / "s"), HEADER)
    reader = opened(tmp_path / "s")
    for i in range(5):
        block = writer.append(KIND_ROWS, b"payload %d" % i)
        assert reader.refresh() == [block]
        assert bytes(reader.payload(block)) == b"payload %d" % i
        assert reader.refresh() == []
    assert not reader.sealed
    writer.seal()
    reader.refresh()
    assert reader.sealed
    assert reader.refresh() == []
    reader.close()


# -- damage ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seal", [True, False])
@pytest.mark.parametrize("victims", [[0], [1], [2], [1, 2], [0, 1, 2], [0, 2]])
def test_damaged_headers_are_skipped_to_the_byte(tmp_path: Path, seal: bool, victims: list[int]) -> None:
    """Without an index: exact ranges, and everything else is read. The index finds even blocks whose header is gone."""
    blocks = write(tmp_path / "s", seal=seal)
    for victim in victims:
        spoil(tmp_path / "s", blocks[victim].offset + 20, b"\xff\xff\xff")
    if seal:
        reader = opened(tmp_path / "s")
        assert found(reader) == (WRITTEN, [])
        reader.close()
        spoil(tmp_path / "s", os.path.getsize(tmp_path / "s") - TRAILER_SIZE, b"\xff")
    reader = opened(tmp_path / "s")
    assert found(reader) == ({f: p for f, p in WRITTEN.items() if f // 10 not in victims}, [])
    ranges = [(d.start, d.end) for d in reader.damage]
    joined: list[tuple[int, int]] = []
    for victim in victims:
        if joined and joined[-1][1] == blocks[victim].offset:
            joined[-1] = (joined[-1][0], blocks[victim].end)
        else:
            joined.append((blocks[victim].offset, blocks[victim].end))
    assert ranges == joined
    assert all(d.path == str(tmp_path / "s") and d.reason for d in reader.damage)
    reader.close()


def test_a_damaged_payload_costs_one_block(tmp_path: Path) -> None:
    """The error names block, file, both checksums and the steps that are skipped."""
    blocks = write(tmp_path / "s")
    spoil(tmp_path / "s", blocks[1].offset + BLOCK_HEADER_SIZE, b"\xff\xff")
    reader = opened(tmp_path / "s")
    good, errors = found(reader)
    assert good == {f: p for f, p in WRITTEN.items() if f != 10}
    assert len(errors) == 1
    for part in ("block 1", str(tmp_path / "s"), "10 records (steps 1-2) skipped", f"{blocks[1].payload_crc:#010x}"):
        assert part in errors[0]
    reader.close()


@pytest.mark.parametrize("garbage", [b"\0" * 64, b"\xff" * 104, b"\xebW\x0c\xb1" * 40, bytes(range(256)) * 8])
def test_bytes_between_blocks_are_reported(tmp_path: Path, garbage: bytes) -> None:
    """Holes, and what looks like the magic of a block, are skipped to the next real one."""
    blocks = write(tmp_path / "whole", seal=False)
    data = (tmp_path / "whole").read_bytes()
    cut = blocks[2].offset
    (tmp_path / "s").write_bytes(data[:cut] + garbage + data[cut:])
    reader = opened(tmp_path / "s")
    assert found(reader) == (WRITTEN, [])
    assert [(d.start, d.end) for d in reader.damage] == [(cut, cut + len(garbage))]
    reader.close()


def test_damage_larger_than_the_window_of_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A magic that lies across two windows is found too, wherever it begins."""
    blocks = write(tmp_path / "whole", seal=False)
    data = (tmp_path / "whole").read_bytes()
    cut = blocks[1].offset
    monkeypatch.setattr(module, "_RESYNC_BYTES", 256)
    for size in range(ALIGNMENT, 600, ALIGNMENT):
        (tmp_path / "s").write_bytes(data[:cut] + b"\x11" * size + data[cut:])
        reader = opened(tmp_path / "s")
        assert found(reader) == (WRITTEN, [])
        assert [(d.start, d.end) for d in reader.damage] == [(cut, cut + size)]
        reader.close()


@pytest.mark.parametrize(
    "lost", ["trailer", "half trailer", "index", "index header", "index payload", "trailing bytes"]
)
@pytest.mark.parametrize("sealed", [True, False])
def test_without_its_index_nothing_is_lost(tmp_path: Path, lost: str, sealed: bool) -> None:
    """The index is an accelerator only: deleted, cut, spoilt or followed by other bytes, all blocks are read.

    With a good seal area a cut or bytes behind the end are told; the seal area alone may be missing, too.
    """
    path = tmp_path / "s"
    write(path)
    reader = opened(path)
    index = reader.blocks[-1].end
    reader.close()
    size = os.path.getsize(path)
    if lost == "trailing bytes":
        with open(path, "ab") as file:
            file.write(b"something else")
    elif lost in ("index header", "index payload"):
        spoil(path, index + (20 if lost == "index header" else BLOCK_HEADER_SIZE + 3), b"\xee")
    else:
        os.truncate(path, {"trailer": size - TRAILER_SIZE, "half trailer": size - 5, "index": index}[lost])
    if not sealed:
        spoil(path, FILE_HEADER_SIZE, bytes(SEAL_SIZE))
    reader = opened(path)
    assert found(reader) == (WRITTEN, [])
    assert (reader.key_index is None) == (lost != "trailing bytes" or not sealed)
    assert reader.sealed == (sealed or lost in ("index header", "index payload"))
    assert not [d for d in reader.damage if d.start < index]
    if sealed and lost != "index payload":
        assert len(reader.damage) == 1
    reader.close()


@pytest.mark.parametrize("size", [0, 1, FILE_HEADER_SIZE - 1, FILE_HEADER_SIZE, BLOCKS_OFFSET, 400, 4096])
def test_a_lost_file_header_takes_no_block_with_it(tmp_path: Path, size: int) -> None:
    """The blocks themselves tell the seed; writer and number come from the file's name."""
    path = tmp_path / format_segment(SegmentName(HEADER.writer, HEADER.number))
    blocks = write(path, [os.urandom(900) for _ in range(9)])
    spoil(path, 0, bytes(size))
    reader = opened(path)
    assert {b.first for b in reader.blocks if b.kind == KIND_ROWS} == {b.first for b in blocks}
    assert (reader.header.writer, reader.header.number, reader.header.crc) == (0xABC, 3, SEED)
    assert reader.header_is_damaged == (size > 0)
    assert [d[1:3] for d in reader.damage][:1] == ([(0, FILE_HEADER_SIZE)] if size else [])
    reader.close()


def test_a_damaged_block_does_not_tell_the_seed(tmp_path: Path) -> None:
    """Any bytes have some seed with which their CRC is right: a block that nobody bears out is passed over."""
    path = tmp_path / format_segment(SegmentName(HEADER.writer, HEADER.number))
    blocks = write(path, [os.urandom(50) for _ in range(4)], seal=False)
    spoil(path, 0, bytes(FILE_HEADER_SIZE))
    spoil(path, blocks[0].offset + 40, b"\x77")  # its first sequence
    reader = opened(path)
    assert reader.header.crc == SEED
    assert reader.blocks == blocks[1:]
    reader.close()
    spoil(path, blocks[1].offset, bytes(blocks[-1].end - blocks[1].offset))
    with pytest.raises(DamageError, match="is not a segment"):
        opened(path)


def test_a_segment_under_anothers_name_is_refused(tmp_path: Path) -> None:
    """A file that was copied over another must not pass for it."""
    path = tmp_path / format_segment(SegmentName(HEADER.writer, HEADER.number + 1))
    write(path)
    with pytest.raises(DamageError, match="under another's name"):
        opened(path)


# -- the chain -------------------------------------------------------------------------------------------------------------


def parts_of(path: Path) -> tuple[bytes, list[bytes], bytes]:
    """(head, blocks, rest) of a segment that `write` made."""
    blocks = write(path, seal=False)
    data = path.read_bytes()
    return data[:BLOCKS_OFFSET], [data[b.offset : b.end] for b in blocks], data[blocks[-1].end :]


@pytest.mark.parametrize(
    ("order", "told"),
    [
        ([0, 2, 3], ["blocks 1 to 1 are missing"]),
        ([1, 2, 3], ["blocks before block 1 are missing"]),
        ([0, 3], ["blocks 1 to 2 are missing"]),
        ([0, 1, 1, 2, 3], ["block 1 stands behind block 1"]),
        ([0, 2, 1, 3], ["blocks 1 to 1 are missing", "block 1 stands behind block 2"]),
    ],
)
def test_blocks_removed_doubled_and_swapped_are_told(tmp_path: Path, order: list[int], told: list[str]) -> None:
    """What a block holds is still read: its CRC proves that it is of this file."""
    head, blocks, _ = parts_of(tmp_path / "whole")
    (tmp_path / "s").write_bytes(head + b"".join(blocks[number] for number in order))
    reader = opened(tmp_path / "s")
    assert found(reader) == ({n * 10: PAYLOADS[n] for n in order}, [])
    assert [d.reason for d in reader.damage] == told
    reader.close()


def test_a_block_that_does_not_follow_the_one_before_it_is_told(tmp_path: Path) -> None:
    """A disk that forgot a write: every CRC is right and every number is there, but the blocks are of two histories."""
    head, blocks, _ = parts_of(tmp_path / "whole")
    second = write(tmp_path / "again", [PAYLOADS[0], b"another second one"], seal=False)[1]
    other = (tmp_path / "again").read_bytes()[second.offset : second.end]
    (tmp_path / "s").write_bytes(head + blocks[0] + other + blocks[2] + blocks[3])
    reader = opened(tmp_path / "s")
    assert found(reader) == ({**WRITTEN, 10: b"another second one"}, [])
    assert [d.reason for d in reader.damage] == ["block 2 does not follow block 1"]
    reader.close()


def test_blocks_of_another_segment_are_none_here(tmp_path: Path) -> None:
    """Two segments spliced: the CRC of every header begins with the file header's."""
    head, blocks, _ = parts_of(tmp_path / "whole")
    writer = SegmentWriter.create(DISK, str(tmp_path / "other"), HEADER._replace(created_ns=1))
    for number in range(4):
        writer.append(KIND_ROWS, b"never logged here", stream=7, first=number * 10, last=number * 10 + 9)
    writer.close()
    other = [(tmp_path / "other").read_bytes()[b.offset : b.end] for b in writer.blocks]
    (tmp_path / "s").write_bytes(head + blocks[0] + other[1] + other[2] + blocks[3])
    reader = opened(tmp_path / "s")
    assert found(reader) == ({0: PAYLOADS[0], 30: PAYLOADS[3]}, [])
    start = BLOCKS_OFFSET + len(blocks[0])
    assert [d[1:3] for d in reader.damage] == [(start, start + len(other[1]) + len(other[2]))]
    reader.close()


def test_headers_of_a_later_version_may_be_longer(tmp_path: Path) -> None:
    """The size in a header is the stride: blocks and stored bytes begin behind it, whatever it holds."""
    header = HEADER._replace(size=BLOCKS_OFFSET + 16)
    packed = pack_file_header(header)
    seed = int.from_bytes(packed[-4:], "little")
    block = Block(0, KIND_ROWS, 0, 4, 4, zlib.crc32(b"data"), 1, 0, 7, 1, 1, 0, 0, 0, seed, 0, BLOCK_HEADER_SIZE + 24)
    body = pack_block_header(block, seed, OWNER) + b"n" * 24 + b"data" + bytes(4)
    (tmp_path / "s").write_bytes(packed + bytes(SEAL_SIZE) + b"n" * 16 + body)
    reader = opened(tmp_path / "s")
    assert (found(reader), reader.damage) == (({1: b"data"}, []), [])
    reader.close()


def test_a_kind_of_a_newer_version_is_not_skipped(tmp_path: Path) -> None:
    """Without bit 7 a reader must not go on as if it had understood: StoreError, which names the file."""
    (tmp_path / "s").write_bytes(HEAD + block_bytes(b"from later", kind=KINDS_MAX + 1))
    with pytest.raises(StoreError, match="newer version wrote it"):
        opened(tmp_path / "s")


def test_a_sealed_segment_tells_of_damage_at_its_end(tmp_path: Path) -> None:
    """Bad bytes before a good trailer are damage, not "not yet": nobody will ever write there again."""
    blocks = write(tmp_path / "s")
    reader = opened(tmp_path / "s")
    index = reader.blocks[-1].end
    reader.close()
    spoil(tmp_path / "s", index + 20, b"\xee")
    spoil(tmp_path / "s", blocks[-1].end + 20, b"\xee")
    spoil(tmp_path / "s", blocks[-1].offset + 20, b"\xee")
    reader = opened(tmp_path / "s")
    assert found(reader)[0] == {f: p for f, p in WRITTEN.items() if f != 30}
    assert reader.sealed
    assert [(d.start, d.end) for d in reader.damage] == [
        (blocks[-1].offset, os.path.getsize(tmp_path / "s") - TRAILER_SIZE)
    ]
    reader.close()


def outcome(path: Path) -> tuple[dict[int, bytes], bool, bool]:
    """(payloads, whether anything was reported, whether the file says that it is complete)."""
    try:
        reader = opened(path)
    except (DamageError, StoreError):
        return {}, True, False
    good, errors = found(reader)
    reported = bool(errors or reader.damage)
    sealed = reader.sealed
    reader.close()
    return good, reported, sealed


@pytest.mark.parametrize("seal", [True, False])
def test_every_flipped_bit_of_a_segment(tmp_path: Path, seal: bool) -> None:
    """No flip gives a value that was not written. In a sealed segment each is reported or cannot matter; in an open one a
    bad last block is "not yet", which recovery decides.
    """
    path = tmp_path / "s"
    blocks = write(path, [b"one", b"two and", b"three"], seal=seal)
    written = {0: b"one", 10: b"two and", 20: b"three"}
    original = path.read_bytes()
    for at in range(len(original)):
        for bit in range(8):
            spoil(path, at, bytes([original[at] ^ 1 << bit]))
            good, reported, sealed = outcome(path)
            assert good.items() <= written.items()
            if good != written:
                assert reported or (not sealed and blocks[-1].offset <= at)
            if sealed and not reported:
                assert good == written
        spoil(path, at, original[at : at + 1])


def test_a_damaged_seal_is_not_believed(tmp_path: Path) -> None:
    """Not a bit of it: its size would make a whole file look cut, its claims would be gaps of records that never were."""
    path = tmp_path / "s"
    write(path)
    original = path.read_bytes()
    for at in range(FILE_HEADER_SIZE, BLOCKS_OFFSET):
        for bit in range(8):
            spoil(path, at, bytes([original[at] ^ 1 << bit]))
            reader = opened(path)
            assert (reader.seal, reader.sealed, reader.damage) == (None, True, [])
            assert found(reader) == (WRITTEN, [])
            reader.close()
        spoil(path, at, original[at : at + 1])


@pytest.mark.parametrize("seal", [True, False])
def test_cut_at_every_byte(tmp_path: Path, seal: bool) -> None:
    """The whole blocks before the cut are read, nothing else; of a sealed segment exactly the missing bytes are told."""
    blocks = write(tmp_path / "whole", seal=seal)
    data = (tmp_path / "whole").read_bytes()
    path = tmp_path / "s"
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        if cut < FILE_HEADER_SIZE:
            with pytest.raises(DamageError):
                opened(path)
            continue
        reader = opened(path)
        whole = [b for b in blocks if b.offset + BLOCK_HEADER_SIZE + b.stored_size <= cut]
        assert found(reader) == ({b.first: WRITTEN[b.first] for b in whole}, [])
        assert reader.sealed == (seal and cut >= BLOCKS_OFFSET)
        ends = [d.end for d in reader.damage]
        assert ends == ([len(data)] if reader.sealed else [])
        if reader.seal is not None:
            assert [(c.stream, c.last) for c in reader.seal.claims] == [(7, 39)]
        reader.close()


# -- hostile files ---------------------------------------------------------------------------------------------------------


class FrugalFile(DiskFile):
    """Refuses to read more than a reader may ask for before it has checked anything."""

    largest = 0

    def read(self, offset: int, size: int) -> bytes:
        assert 0 <= size <= BLOCK_STORED_BYTES_MAX, f"a read of {size} bytes"
        FrugalFile.largest = max(FrugalFile.largest, size)
        return super().read(offset, size)


class FrugalDisk(Disk):
    def open(self, path: str, *, write: bool = False) -> DiskFile:
        return FrugalFile(path, os.open(path, os.O_RDONLY))


def block_bytes(payload: bytes, **changes: Any) -> bytes:
    """A block with right checksums and whatever fields."""
    block = Block(0, KIND_ROWS, 0, len(payload), len(payload), zlib.crc32(payload), 1, 0, 7, 1, 1, 0, 0, 0, 0, 0)
    packed = pack_block_header(block._replace(**{"previous_crc": SEED, **changes}), SEED, OWNER) + payload
    return packed + bytes(padded(len(packed)) - len(packed))


def test_hostile_sizes_are_refused_before_allocation(tmp_path: Path) -> None:
    """Headers with right checksums and absurd sizes are no blocks; what follows them is still found."""
    good = block_bytes(b"good", number=9)
    for changes in (
        {"stored_size": 2**32 - 1}, {"stored_size": BLOCK_STORED_BYTES_MAX + 1}, {"raw_size": BLOCK_RAW_BYTES_MAX + 1},
        {"raw_size": 2**32 - 1, "codec": 1}, {"kind": 0}, {"kind": KIND_SKIPPABLE},
    ):  # fmt: skip
        bad = block_bytes(b"bad!", **changes)
        assert parse_block_header(bad[:BLOCK_HEADER_SIZE], 0, SEED) is None
        (tmp_path / "s").write_bytes(HEAD + bad + good)
        reader = SegmentReader(FrugalDisk(), str(tmp_path / "s"))
        assert found(reader)[0] == {1: b"good"}
        assert [(d.start, d.end) for d in reader.damage] == [(BLOCKS_OFFSET, BLOCKS_OFFSET + len(bad))]
        reader.close()
    (tmp_path / "s").write_bytes(HEAD + block_bytes(b"tiny", raw_size=BLOCK_RAW_BYTES_MAX, codec=1))
    reader = SegmentReader(FrugalDisk(), str(tmp_path / "s"))
    assert "more than lz4 can make" in found(reader)[1][0]
    reader.close()


def entry_of(offset: int, stored: Any, raw: Any = 4) -> list[Any]:
    """A block's entry in the index."""
    return [offset, KIND_ROWS, 0, stored, raw, 0, 1, 0, 7, 1, 1, 0, 0, 0, 0, 0]


HOSTILE_ENTRIES: list[Any] = [
    *[[number] * 16 for number in (0, 2**63, -1, 1.5, float("inf"), float("nan"), "x", None)],
    *[entry_of(BLOCKS_OFFSET, stored) for stored in (2**40, 2**31, BLOCK_STORED_BYTES_MAX + 1, 1000, -5, 4.0)],
    *[entry_of(offset, 4) for offset in (2**62, 1, BLOCKS_OFFSET + 4, BLOCKS_OFFSET - ALIGNMENT, -8)],
    entry_of(BLOCKS_OFFSET, 4, BLOCK_RAW_BYTES_MAX + 1),
    *[[1, 2], [], 7, None, "text", {"a": 1}],
]


@pytest.mark.parametrize("entry", HOSTILE_ENTRIES, ids=repr)
def test_an_index_that_lies_is_not_believed(tmp_path: Path, entry: Any) -> None:
    """Right checksums, impossible entries: the blocks are walked instead, and nothing large is allocated."""
    self_written(tmp_path / "s", {"blocks": [entry], "keys": None})
    reader = SegmentReader(FrugalDisk(), str(tmp_path / "s"))
    assert found(reader) == ({1: b"real"}, [])
    reader.close()


@pytest.mark.parametrize(
    "index",
    [{}, {"blocks": None, "keys": None}, {"blocks": [], "keys": 7}, {"blocks": [], "keys": {"a": [[1.5, "x"]]}}, {"blocks": {}},
     {"blocks": [], "keys": [1]}, {"blocks": [], "keys": {"a": [[float("inf")] * 4]}}, {"blocks": 5, "keys": {}},
     {"blocks": [], "keys": {"a": [[0, 1]]}}, {"blocks": [], "keys": {"a": 5}}],
    ids=repr,
)  # fmt: skip
def test_an_index_of_other_types_is_not_believed(tmp_path: Path, index: Any) -> None:
    """The same for what is no index at all. One that is well formed and names no blocks is taken at its word."""
    self_written(tmp_path / "s", index)
    reader = SegmentReader(FrugalDisk(), str(tmp_path / "s"))
    assert found(reader) == ({1: b"real"}, [])
    reader.close()


def self_written(path: Path, index: dict[str, Any]) -> None:
    """A sealed segment with one real block and the given index."""
    data = HEAD + block_bytes(b"real")
    offset = len(data)
    data += block_bytes(encode_map(index), kind=KIND_INDEX, number=1)
    path.write_bytes(data + pack_trailer(offset, len(data), 1, SEED))


@pytest.mark.parametrize("offset", [0, 1, FILE_HEADER_SIZE, 2**40, 2**63, 2**64 - 1])
def test_a_trailer_that_lies_is_not_believed(tmp_path: Path, offset: int) -> None:
    """An index offset that points anywhere else: the blocks are walked."""
    data = HEAD + block_bytes(b"real")
    (tmp_path / "s").write_bytes(data + pack_trailer(offset, len(data), 1, SEED))
    reader = SegmentReader(FrugalDisk(), str(tmp_path / "s"))
    assert found(reader) == ({1: b"real"}, [])
    reader.close()


def test_unknown_kinds(tmp_path: Path) -> None:
    """A skippable kind of a later version does not stop the reader from what follows it."""
    data = HEAD + block_bytes(b"from later", kind=KIND_SKIPPABLE | 77) + block_bytes(b"real", number=1)
    (tmp_path / "s").write_bytes(data)
    reader = opened(tmp_path / "s")
    assert [b.kind for b in reader.blocks] == [KIND_SKIPPABLE | 77, KIND_ROWS]
    assert found(reader) == ({1: b"real"}, [])
    reader.close()


@pytest.mark.parametrize("seal", [True, False])
def test_flags_of_a_later_version(tmp_path: Path, seal: bool) -> None:
    """An unknown low flag is ignored, a high one means that this version would misread the block: StoreError."""
    for flags, fine in ((0x8000, True), (FLAG_WINDOW, True), (FLAG_WINDOW << 1, False)):
        path = tmp_path / f"s{flags}"
        writer = SegmentWriter.create(DISK, str(path), HEADER)
        writer.append(KIND_ROWS, b"real", first=1, flags=flags)
        if seal:
            writer.seal()
        else:
            writer.close()
        if fine:
            reader = opened(path)
            assert found(reader) == ({1: b"real"}, [])
            reader.close()
        else:
            with pytest.raises(StoreError, match="newer version"):
                opened(path)


def test_file_headers(tmp_path: Path) -> None:
    """Other files, damage, a newer major version and unknown incompatible flags are refused, each by its own error."""
    good = pack_file_header(HEADER)

    def with_fields(offset: int, text: bytes) -> bytes:
        body = bytearray(good)
        body[offset : offset + len(text)] = text
        return bytes(body[:-4]) + zlib.crc32(body[:-4]).to_bytes(4, "little")

    for data, error, text in (
        (b"", DamageError, "has 0 bytes"),
        (good[:-1], DamageError, f"a segment header has {FILE_HEADER_SIZE}"),
        (b"\x1f\x8b" + good[2:], DamageError, "is not a segment"),
        (good[:30] + b"\xff" + good[31:], DamageError, "is damaged"),
        (good.replace(b"\r\n", b"\n") + b"xx", DamageError, "is not a segment"),
        (with_fields(8, struct.pack("<H", 2)), StoreError, "has format 2"),
        (with_fields(16, struct.pack("<I", 1)), StoreError, "flags 0x1"),
    ):
        (tmp_path / "s").write_bytes(data)
        with pytest.raises(error, match=text):
            opened(tmp_path / "s")
    for data in (good, with_fields(10, struct.pack("<H", 9)), with_fields(20, struct.pack("<I", 0xFFFF))):
        (tmp_path / "s").write_bytes(data)
        assert parse_file_header(data, "s").writer == HEADER.writer
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "none")


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    """A file that cannot be read is closed again."""
    (tmp_path / "s").write_bytes(HEAD + block_bytes(b"real", flags=FLAG_WINDOW << 1))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(StoreError):
            opened(tmp_path / "s")
    assert len(os.listdir("/proc/self/fd")) == before


def test_keys_block_is_a_map(tmp_path: Path) -> None:
    """`read_map` of a KEYS block names the keys."""
    write(tmp_path / "s")
    reader = opened(tmp_path / "s")
    (keys,) = [b for b in reader.blocks if b.kind == KIND_KEYS]
    assert reader.read_map(keys) == {"keys": ["a"]}
    with pytest.raises(DamageError):
        reader.read_map(reader.blocks[0])
    reader.close()


def test_parts_of_a_block(tmp_path: Path) -> None:
    """Any bytes of a block without the others, never beyond its end; the first ones only if the block is what the index says."""
    path = tmp_path / "s"
    _, second, third, _ = write(path)
    reader = opened(path)
    stored = reader.stored(second)
    assert reader.read_part(second, 0, 5) == bytes(stored[:5])
    assert reader.read_part(second, 3, 4) == bytes(stored[3:7])
    assert reader.read_part(third, 2, 100) == PAYLOADS[2][2:]
    data = path.read_bytes()
    spoil(path, third.offset, data[second.offset : second.start])
    with pytest.raises(DamageError):
        reader.read_part(third, 0, 5)
    reader.close()
