"""sdk.reader.verify, of large values: every byte is looked at, and what cannot be had is told with key and step."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from sdk.encoders import encode
from sdk.files import DISK
from sdk.journal.announcements import LOST
from sdk.reader.verify import Verified, verify_run
from sdk.record import BlobRef
from sdk.segment.format import BLOCK_HEADER_SIZE, KIND_BLOB
from sdk.segment.reader import SegmentReader
from tests.builders import RunBuilder, make_store
from tests.media_rig import MediaBuilder


@pytest.fixture
def media(tmp_path: Path) -> MediaBuilder:
    run = RunBuilder(make_store(tmp_path))
    return MediaBuilder(run, run.stream())


def verified(media: MediaBuilder) -> Verified:
    media.seal()
    return verify_run(DISK, media.run.directory)


def texts(found: Verified) -> list[str]:
    return [finding.text for finding in found.findings]


def spoil(path: str, ref: BlobRef) -> None:
    """Flips a bit of the last byte of a blob's last block."""
    reader = SegmentReader(DISK, path)
    block = [block for block in reader.blocks if block.kind == KIND_BLOB and block.first == ref.number][-1]
    reader.close()
    assert block.stored_size > 0
    data = bytearray(Path(path).read_bytes())
    data[block.offset + BLOCK_HEADER_SIZE + block.stored_size - 1] ^= 1
    Path(path).write_bytes(data)


def test_good_blobs(media: MediaBuilder) -> None:
    """Stored once or twice, shared, removed, without bytes: nothing is wrong with any of them."""
    first = media.log_page(b"page", "x")
    media.store(b"page", {}, number=first.number)
    same = BlobRef(media.stream.id, 5, 4)
    media.store(b"", {"same": [first.stream, first.number]}, number=5)
    gone = BlobRef(media.stream.id, 6, 9)
    media.store(b"", {"removed": "by retention"}, number=6)
    empty = media.store(b"", {}, number=7)
    for ref in (same, gone, empty):
        media.announce(ref, "y")
    assert verified(media).findings == []


def test_a_blob_that_is_not_there(media: MediaBuilder) -> None:
    """Whose bytes they were is told."""
    media.stream.step = 12
    media.announce(BlobRef(media.stream.id, 3, 123_456), "val/x")
    found = verified(media)
    assert texts(found) == ["the 123,456 bytes of 'val/x' at step 12 are missing"]
    assert [lost.announced.ref.number for lost in found.blobs] == [3]


def test_a_blob_whose_block_is_damaged(media: MediaBuilder) -> None:
    """Told twice: what is wrong in the file, and whose bytes are lost by it; not where another copy is whole."""
    bad, other = media.log_page(b"page" * 10, "x"), media.log_page(b"other", "y")
    path = media.seal()
    assert path is not None
    spoil(path, bad)
    assert (bad.number, other.number) == (1, 2)
    in_file, whose = texts(verified(media))
    assert in_file.startswith("block 1: crc is ")
    assert whose.startswith("the 40 bytes of 'x' at step 0 cannot be read: cannot read blob 1 of stream ")
    media.store(b"page" * 10, {}, number=bad.number)
    assert len(texts(verified(media))) == 1


def test_bytes_that_have_another_digest(media: MediaBuilder) -> None:
    """Checksums are right, the bytes are not what was logged: as far as what is stored gives them back."""
    raw = np.arange(50_000, dtype="<f4")
    meta = {"media": "tensor", "to": "tensor", "array": ["<f4", [50_000], None]}
    encoded = encode(raw.tobytes(), meta)
    assert encoded is not None
    assert "encoding" in encoded.meta
    good = hashlib.sha256(raw.tobytes()).digest()
    for key, digest in (("good", good), ("bad", b"x" * 32)):
        ref = media.store(encoded.data, {**encoded.meta, "digest": digest, "raw_size": raw.nbytes}, size=raw.nbytes)
        media.announce(ref, key)
    media.announce(media.store(b"file", {"format": "png", "digest": hashlib.sha256(b"file").digest()}), "file")
    media.announce(media.store(b"file", {"format": "png", "digest": b"y" * 32}), "bad file")
    png = {"media": "image-file", "encoding": "png", "raw_size": 7, "digest": b"z" * 32}
    media.announce(media.store(b"png", png, size=7), "picture")
    differ = "at step 0 are not those that were logged: their SHA-256 differs"
    assert texts(verified(media)) == [f"the 200,000 bytes of 'bad' {differ}", f"the 4 bytes of 'bad file' {differ}"]


def test_a_blob_of_which_a_gap_tells(media: MediaBuilder) -> None:
    """It is missing and accounted for: no damage."""
    media.announce(BlobRef(media.stream.id, 3, 10), "x")
    media.stream.gap(episode="blob 3", count=0, key="x", size=10, step_min=0, step_max=0, reason=LOST)
    media.announce(BlobRef(media.stream.id, 4, 10), "y")
    media.run.daemon.gap(media.stream, {"episode": "blob 4 at 0", "count": 0, "blob": 4, "reason": "fsync failed"})
    assert verified(media).findings == []


def test_a_block_that_is_no_chunk(media: MediaBuilder) -> None:
    """Its checksum is right and what it holds makes no sense."""
    media.segment.append(KIND_BLOB, b"\xff\xff\xff\xff", stream=1, first=1, last=1, step_max=1)
    media.segment.append(KIND_BLOB, bytes(4), stream=1, first=1, last=2, step_max=1)
    first, second = texts(verified(media))
    assert first.startswith("block 1 is no chunk of a blob: its metadata has ")
    assert second.startswith("block 2 is no chunk of a blob: ")


def test_a_run_that_is_being_written(media: MediaBuilder) -> None:
    """Open segments are fine."""
    media.log_page(b"page", "x")
    media.flush()
    assert verify_run(DISK, media.run.directory).findings == []
    media.close()
