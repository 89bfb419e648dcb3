from __future__ import annotations

import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from sdk.errors import DamageError, NotFoundError
from sdk.files import DISK
from sdk.reader.blobs import Blobs
from sdk.record import BlobRef
from sdk.segment.blobs import CHUNK_BYTES, append_chunk
from sdk.segment.format import FILE_HEADER_SIZE
from sdk.segment.naming import MEDIA, SegmentName, format_segment
from tests.builders import RunBuilder, make_store
from tests.media_rig import MediaBuilder

META = {"media": "image-file", "format": "png"}


@pytest.fixture
def run(tmp_path: Path) -> RunBuilder:
    return RunBuilder(make_store(tmp_path))


@pytest.fixture
def made(run: RunBuilder) -> MediaBuilder:
    return MediaBuilder(run, run.stream())


def blobs_of(made: MediaBuilder) -> Blobs:
    return Blobs(DISK, made.run.directory)


def flip(path: str, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        old = file.read(1)
        file.seek(at)
        file.write(bytes([old[0] ^ 1]))


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("size", [0, 1, 5000, CHUNK_BYTES, CHUNK_BYTES + 10, 2 * CHUNK_BYTES])
def test_reads_what_was_stored(made: MediaBuilder, size: int, sealed: bool) -> None:
    """A blob of any number of chunks comes back with its metadata, from a sealed segment and from one being written."""
    data = random.Random(size).randbytes(size)
    ref = made.store(data, META)
    made.store(b"another", META)
    if sealed:
        made.seal()
    blobs = blobs_of(made)
    assert blobs.find(ref)
    assert blobs.meta(ref) == META
    found = blobs.read(ref)
    assert (bytes(found.data), found.meta) == (data, META)
    meta, portions = blobs.stream(ref)
    assert (meta, b"".join(portions)) == (META, data)
    made.close()


def test_a_run_that_grows(made: MediaBuilder) -> None:
    """What was not there at the first look is found at the next, in the same segment and in the next one."""
    blobs = blobs_of(made)
    first = BlobRef(made.stream.id, 1, 3)
    assert not blobs.find(first)
    with pytest.raises(NotFoundError):
        blobs.read(first)
    assert made.store(b"one", META) == first
    assert bytes(blobs.read(first).data) == b"one"
    second = made.store(b"two!", META)
    assert bytes(blobs.read(second).data) == b"two!"
    made.seal()
    third = made.store(b"three", META)
    assert [bytes(blobs.read(ref).data) for ref in (first, second, third)] == [b"one", b"two!", b"three"]
    made.close()


def test_no_file_stays_open(made: MediaBuilder) -> None:
    """Neither after reading, nor after reading a part, nor after an error."""
    ref = made.store(bytes(CHUNK_BYTES + 1), META)
    path = made.seal()
    blobs = blobs_of(made)
    before = os.listdir("/proc/self/fd")
    blobs.read(ref)
    _, portions = blobs.stream(ref)
    next(portions)
    portions.close()
    assert path
    flip(path, os.path.getsize(path) // 2)
    with pytest.raises(DamageError):
        blobs.read(ref)
    assert os.listdir("/proc/self/fd") == before


def test_an_incomplete_copy_is_none(made: MediaBuilder) -> None:
    """A blob whose last chunk is missing is not there; a complete copy in another file is found."""
    data = random.Random(1).randbytes(CHUNK_BYTES + 5)
    ref = BlobRef(made.stream.id, 1, len(data))
    append_chunk(made.segment, ref, 0, data[:CHUNK_BYTES], META)
    blobs = blobs_of(made)
    assert not blobs.find(ref)
    other = MediaBuilder(made.run, made.stream, writer=0xB10C)
    other.store(data, META)
    assert bytes(blobs.read(ref).data) == data
    made.close()
    other.close()


def test_chunks_in_two_files(made: MediaBuilder) -> None:
    """What an fsync lost was written again elsewhere: the readable copy of each chunk counts."""
    data = random.Random(2).randbytes(2 * CHUNK_BYTES + 5)
    ref = made.store(data, META)
    path = made.seal()
    assert path
    flip(path, CHUNK_BYTES + CHUNK_BYTES // 2)
    blobs = blobs_of(made)
    with pytest.raises(DamageError, match="from byte 4194304 on"):
        blobs.read(ref)
    other = MediaBuilder(made.run, made.stream, writer=0xB10C)
    append_chunk(other.segment, ref, CHUNK_BYTES, data[CHUNK_BYTES : 2 * CHUNK_BYTES])
    assert bytes(blobs_of(made).read(ref).data) == data
    other.close()


def test_a_damaged_copy_and_a_good_one(made: MediaBuilder) -> None:
    """A replay stored the blob twice and one copy is damaged: the other is read."""
    ref = made.store(b"x" * 500, META)
    made.store(b"x" * 500, META, number=1)
    path = made.seal()
    assert path
    flip(path, Path(path).read_bytes().find(b"x" * 500))
    assert bytes(blobs_of(made).read(ref).data) == b"x" * 500


def test_an_encoded_blob(made: MediaBuilder) -> None:
    """It has another size than its row says; what it says of itself tells the raw one."""
    meta = {**META, "encoding": "png", "raw_size": 1000, "digest": bytes(32)}
    ref = made.store(b"small", meta, size=1000)
    assert blobs_of(made).read(ref) == (b"small", meta)
    made.close()


@pytest.mark.parametrize("meta", [META, {**META, "encoding": "png"}, {**META, "encoding": "png", "raw_size": 5}])
def test_a_size_that_is_not_the_rows(made: MediaBuilder, meta: dict[str, Any]) -> None:
    """Bytes of another size than the row says are not given for what was logged."""
    ref = made.store(b"small", meta, size=1000)
    with pytest.raises(DamageError, match="its row says 1000"):
        blobs_of(made).read(ref)
    made.close()


def test_equal_blobs_share_their_bytes(made: MediaBuilder) -> None:
    """A blob without bytes gives those of the one it names, with its own metadata where that one says nothing."""
    first = made.store(b"pixels", {**META, "encoding": "png", "raw_size": 60}, size=60)
    ref = made.store(b"", {**META, "key": "other", "same": [first.stream, first.number]}, size=60)
    blobs = blobs_of(made)
    assert blobs.find(ref)
    found = blobs.read(ref)
    assert bytes(found.data) == b"pixels"
    assert found.meta == {**META, "key": "other", "encoding": "png", "raw_size": 60}
    made.close()


@pytest.mark.parametrize("same", [[1], [1, "2"], "x", [1, 2, 3], [1, -5], [2**63, 1], {}])
def test_nonsense_about_sameness(made: MediaBuilder, same: Any) -> None:
    """It is damage, or a blob that is not there, never another error."""
    ref = made.store(b"", {"same": same}, size=60)
    blobs = blobs_of(made)
    assert not blobs.find(ref)
    with pytest.raises((DamageError, NotFoundError)):
        blobs.read(ref)
    made.close()


def test_sameness_goes_one_hop(made: MediaBuilder) -> None:
    """Blobs that name each other do not hold a reader up."""
    first = made.store(b"", {"same": [made.stream.id, 2]}, size=60)
    second = made.store(b"", {"same": [made.stream.id, 1]}, size=60)
    blobs = blobs_of(made)
    for ref in (first, second):
        assert not blobs.find(ref)
        with pytest.raises(DamageError, match="no bytes either"):
            blobs.read(ref)
    made.close()


def test_a_removed_blob_says_so(made: MediaBuilder) -> None:
    """Retention leaves a word in the place of the bytes."""
    ref = made.store(b"", {**META, "removed": "by retention on 2025-03-01"}, size=60)
    blobs = blobs_of(made)
    assert not blobs.find(ref)
    with pytest.raises(NotFoundError, match="by retention on 2025-03-01"):
        blobs.read(ref)
    made.close()


def test_a_lost_blob_says_why(made: MediaBuilder) -> None:
    """What the run's gaps tell of it stands in the error."""
    blobs = blobs_of(made)
    blobs.lost = {(7, 1): "its bytes were in the memory of a process that died"}
    with pytest.raises(NotFoundError, match="memory of a process that died"):
        blobs.read(BlobRef(7, 1, 10))


def test_a_replaced_segment(made: MediaBuilder) -> None:
    """A file that is gone between index and reading was replaced: the new one is looked for."""
    ref = made.store(b"pixels", META)
    old = made.seal()
    blobs = blobs_of(made)
    assert blobs.find(ref)
    other = MediaBuilder(made.run, made.stream, writer=0xB10C)
    other.store(b"png", {**META, "encoding": "png", "raw_size": 6}, size=6)
    other.seal()
    assert old
    os.unlink(old)
    assert blobs.read(ref).meta["encoding"] == "png"
    new = other.paths[0]
    os.unlink(new)
    with pytest.raises(DamageError):
        blobs.read(ref)
    assert not blobs.find(ref)


def test_what_is_no_segment(made: MediaBuilder) -> None:
    """Rubbish, a pipe, a directory and a dangling link of a segment's name hide nothing and hold nobody up."""
    ref = made.store(b"pixels", META)
    made.close()
    names = [os.path.join(made.run.directory, format_segment(SegmentName(n, 0, MEDIA))) for n in range(1, 5)]
    Path(names[0]).write_bytes(os.urandom(5000))
    os.mkfifo(names[1])
    os.mkdir(names[2])
    os.symlink("/nowhere", names[3])
    assert bytes(blobs_of(made).read(ref).data) == b"pixels"


def test_every_cut_and_flip_of_a_segment(made: MediaBuilder, tmp_path: Path) -> None:
    """A blob comes back as it was, or as an error of ours: whatever byte is damaged, wherever the file ends."""
    refs = {made.store(b"a" * 300, META): b"a" * 300, made.store(b"b" * 40, META): b"b" * 40}
    path = made.seal()
    assert path
    good = Path(path).read_bytes()
    torn = [good[:end] for end in range(0, len(good), 13)]
    for at in range(0, len(good), 7):
        torn.append(good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :])
    whole = 0
    for content in torn:
        Path(path).write_bytes(content)
        blobs = blobs_of(made)
        for ref, data in refs.items():
            try:
                assert bytes(blobs.read(ref).data) == data
                whole += 1
            except (DamageError, NotFoundError):
                continue
    assert whole > len(torn) // 2


def test_claims_larger_than_the_file(made: MediaBuilder) -> None:
    """A blob that claims a tebibyte costs no memory: its chunks are not there."""
    ref = BlobRef(made.stream.id, 1, 1 << 40)
    append_chunk(made.segment, ref, 0, bytes(CHUNK_BYTES), META)
    blobs = blobs_of(made)
    assert not blobs.find(ref)
    with pytest.raises(NotFoundError):
        blobs.read(ref)
    made.close()


def test_metadata_that_is_none(made: MediaBuilder) -> None:
    """A payload whose first chunk has no map, or a size beyond the payload, is damage."""
    for number, payload in enumerate([struct.pack("<I", 99) + b"x", struct.pack("<I", 1) + b"\xc1", b"\x01"], 1):
        made.segment.append(
            3, payload, stream=made.stream.id, first=number, last=number, step_min=0, step_max=5, compress=False
        )
        with pytest.raises(DamageError):
            blobs_of(made).read(BlobRef(made.stream.id, number, 5))
    made.close()
    assert os.path.getsize(made.paths[0]) > FILE_HEADER_SIZE


@pytest.mark.parametrize("tombstone_first", [True, False])
def test_bytes_that_are_there_are_read_whatever_a_tombstone_says(made: MediaBuilder, tombstone_first: bool) -> None:
    """The order of files decides nothing; only where no copy has bytes the tombstone's word is given."""
    ref = BlobRef(made.stream.id, 1, 5)
    contents: list[tuple[bytes, dict[str, Any]]] = [(b"", {"removed": "by me"}), (b"bytes", META)]
    for data, meta in contents if tombstone_first else reversed(contents):
        made.store(data, meta, number=1)
    made.seal()
    assert bytes(blobs_of(made).read(ref).data) == b"bytes"
    gone = made.store(b"", {"removed": "by me"}, number=2, size=5)
    made.seal()
    with pytest.raises(NotFoundError, match="was removed: by me"):
        blobs_of(made).read(gone)
    assert blobs_of(made).removal(gone) == "by me"
