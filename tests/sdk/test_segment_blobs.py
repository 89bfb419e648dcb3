"""sdk.segment.blobs: how blobs stand in segments."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdk.errors import DamageError
from sdk.files import DISK
from sdk.record import BlobRef
from sdk.segment.blobs import (
    CHUNK_BYTES,
    append_blob,
    append_chunk,
    parse_chunk,
    ref_of,
    stored_blobs,
    whole_blobs,
)
from sdk.segment.format import FileHeader
from sdk.segment.naming import MEDIA, SegmentName, format_segment, parse_segment
from sdk.segment.reader import SegmentReader
from sdk.segment.writer import SegmentWriter


def segment(directory: Path, number: int = 0) -> SegmentWriter:
    header = FileHeader(bytes(16), 7, number, 0)
    return SegmentWriter.begin(DISK, str(directory), header, [], holds=MEDIA)[0]


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES])
def test_round_trip(tmp_path: Path, size: int) -> None:
    """A blob of any size comes back from its chunks, its metadata from the first."""
    data = bytes(range(256)) * (size // 256 + 1)
    ref = BlobRef(3, 9, size)
    writer = segment(tmp_path)
    append_blob(writer, ref, data[:size], {"media": "m"})
    writer.seal()
    reader = SegmentReader(DISK, writer.path)
    [(found, blocks)] = list(whole_blobs(reader.blocks))
    chunks = [parse_chunk(block, reader.payload(block)) for block in blocks]
    reader.close()
    assert found == ref
    assert b"".join(chunk.data for chunk in chunks) == data[:size]
    assert [chunk.meta for chunk in chunks] == [{"media": "m"}] + [None] * (len(chunks) - 1)


def test_names() -> None:
    """A media segment is told by its name, and is no history segment."""
    name = SegmentName(1, 2, MEDIA)
    assert format_segment(name) == "media-0000000000000001-000002.seg"
    assert parse_segment(format_segment(name)) == name


def test_a_blob_without_its_end_is_not_there(tmp_path: Path) -> None:
    """A copy that a crash cut is none; a later whole one counts."""
    ref = BlobRef(1, 1, CHUNK_BYTES + 5)
    writer = segment(tmp_path)
    append_chunk(writer, ref, 0, bytes(CHUNK_BYTES), {})
    assert stored_blobs(DISK, str(tmp_path)) == set()
    append_blob(writer, ref, bytes(ref.size), {})
    assert stored_blobs(DISK, str(tmp_path)) == {(1, 1)}
    writer.close()


def test_a_blob_in_two_files(tmp_path: Path) -> None:
    """What a failed fsync lost in the middle of a blob stands in the next segment: together they are whole."""
    ref = BlobRef(1, 1, 2 * CHUNK_BYTES)
    first, second = segment(tmp_path), segment(tmp_path, 1)
    append_chunk(first, ref, 0, bytes(CHUNK_BYTES), {})
    append_chunk(second, ref, CHUNK_BYTES, bytes(CHUNK_BYTES))
    assert stored_blobs(DISK, str(tmp_path)) == {(1, 1)}
    first.close()
    second.close()


def test_a_chunk_of_another_copy_does_not_complete_one(tmp_path: Path) -> None:
    """Within a segment chunks count in order from the beginning."""
    ref = BlobRef(1, 1, 3 * CHUNK_BYTES)
    writer = segment(tmp_path)
    append_chunk(writer, ref, 0, bytes(CHUNK_BYTES), {})
    append_chunk(writer, ref, 2 * CHUNK_BYTES, bytes(CHUNK_BYTES))
    append_chunk(writer, ref, CHUNK_BYTES, bytes(CHUNK_BYTES))
    assert list(whole_blobs(writer.blocks)) == []
    writer.close()


def test_more_than_a_chunk_is_refused(tmp_path: Path) -> None:
    """Whoever writes cuts."""
    writer = segment(tmp_path)
    with pytest.raises(ValueError, match="chunk of"):
        append_chunk(writer, BlobRef(1, 1, 2 * CHUNK_BYTES), 0, bytes(CHUNK_BYTES + 1), {})
    writer.close()


def test_payloads_and_headers_that_lie(tmp_path: Path) -> None:
    """A size of metadata beyond the payload, or none where there must be some, is damage and allocates nothing."""
    writer = segment(tmp_path)
    append_blob(writer, BlobRef(1, 1, 1), b"x", {})
    block = writer.blocks[-1]
    writer.close()
    for payload in (b"", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00x", b"\x05\x00\x00\x00\x80"):
        with pytest.raises(DamageError):
            parse_chunk(block, payload)
    for wrong in (block._replace(last=2), block._replace(step_min=2), block._replace(step_max=1 << 50)):
        with pytest.raises(DamageError):
            ref_of(wrong)
