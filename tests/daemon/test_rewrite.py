"""daemon.store.rewrite: blobs written again, and nothing lost on the way."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.store import rewrite as rewriting
from daemon.store.replacing import KEPT_SECONDS, remove_drafts, remove_replaced
from daemon.store.rewrite import Same
from sdk import clock, platform
from sdk.errors import DamageError
from sdk.files import DISK, Files
from sdk.files.failing import FAULTS, FailingFiles, Fault
from sdk.location import read_store
from sdk.reader.blobs import Blobs
from sdk.record import BlobRef, StoredBlob
from sdk.segment.blobs import append_chunk
from sdk.segment.check import check_segment
from sdk.segment.naming import MEDIA, SegmentName, format_draft
from sdk.segment.reader import SegmentReader
from tests.rewriting import SMALL_CHUNK, Scene, as_it_is, damage, small_chunks

LATER = int((KEPT_SECONDS + 1) * 1e9)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    small_chunks(monkeypatch)
    made = Scene(tmp_path)
    yield made
    made.close()


def text(number: int, size: int = 3 * SMALL_CHUNK + 7) -> bytes:
    """Bytes that are like no others, in several chunks."""
    return (f"blob {number}, ".encode() * size)[:size]


def remove_old(scene: Scene, files: Files = DISK) -> int:
    return remove_replaced(files, scene.directory, clock.wall_ns() + LATER)


def test_many_segments_become_one(scene: Scene) -> None:
    """Blobs of no bytes, of exactly a chunk, of several: all are there before and after the old ones are gone."""
    for number, size in enumerate((0, 1, SMALL_CHUNK - 1, SMALL_CHUNK, SMALL_CHUNK + 1, 5 * SMALL_CHUNK)):
        scene.put(text(number, size))
        scene.seal()
    report = scene.rewrite()
    assert (report.blobs, report.dropped, len(report.written)) == (6, 0, 1)
    assert [segment.path for segment in scene.sealed()] == report.written
    assert scene.trouble() == []
    assert remove_old(scene) == 0
    assert [os.path.basename(path) for path in report.written] == scene.names()
    assert scene.trouble() == []
    assert not check_segment(DISK, report.written[0]).findings


def test_what_a_transform_drops_is_gone(scene: Scene) -> None:
    """Without a trace; what it makes the same as another is read from there, and keeps its own key and step."""
    first = scene.put(text(1), {"media": "m", "format": "png", "key": "a", "step": 1})
    second, third = scene.put(text(1)), scene.put(text(2))
    scene.seal()

    def transform(ref: BlobRef, stored: StoredBlob) -> StoredBlob | Same | None:
        if ref == second:
            return Same(first.stream, first.number, {"media": "m", "key": "b", "step": 2})
        return None if ref == third else stored

    assert scene.rewrite(transform).dropped == 1
    remove_old(scene)
    blobs = Blobs(DISK, scene.directory)
    assert bytes(blobs.read(second).data) == text(1)
    assert [blobs.meta(ref)[name] for ref in (first, second) for name in ("key", "step")] == ["a", 1, "b", 2]
    assert not blobs.find(third)


def test_a_second_copy_stands_in_for_a_damaged_one(scene: Scene) -> None:
    """Of two copies, the first of which is damaged, the whole one is kept; and only that one."""
    ref = scene.put(text(1))
    damaged = scene.seal()
    scene.media.store(text(1), {"media": "m", "format": "png"}, number=ref.number)
    scene.seal()
    damage(damaged, text(1)[SMALL_CHUNK : SMALL_CHUNK + 50])
    report = scene.rewrite()
    assert scene.trouble() == []
    remove_old(scene)
    assert scene.trouble() == []
    assert report.bytes_after < 2 * len(text(1))


def test_two_copies_complete_one_another(scene: Scene) -> None:
    """Each lacks another chunk: raw bytes are the same everywhere."""
    ref = scene.put(text(1))
    one = scene.seal()
    scene.media.store(text(1), {"media": "m", "format": "png"}, number=ref.number)
    two = scene.seal()
    damage_chunk(one, ref, 1)
    damage_chunk(two, ref, 2)
    scene.rewrite()
    remove_old(scene)
    assert scene.trouble() == []


def damage_chunk(path: str, ref: BlobRef, index: int) -> None:
    reader = SegmentReader(DISK, path)
    block = next(b for b in reader.blocks if (b.first, b.step_min) == (ref.number, index * SMALL_CHUNK) and b.stream)
    reader.close()
    with open(path, "r+b") as file:
        file.seek(block.start + 20)
        file.write(b"\0\0\0")


def test_damage_is_copied(scene: Scene) -> None:
    """A blob that nobody can read stays as damaged as it was, its good chunks included; the others do not suffer."""
    bad = scene.put(text(1))
    scene.put(text(2))
    damage_chunk(scene.seal(), bad, 1)
    with pytest.raises(DamageError):
        Blobs(DISK, scene.directory).read(bad)
    report = scene.rewrite()
    assert report.blobs == 1
    remove_old(scene)
    assert [os.path.basename(path) for path in report.written] == scene.names()
    assert [line.partition(":")[0] for line in scene.trouble()] == [str(bad)]
    reader = SegmentReader(DISK, report.written[0])
    assert sum(block.first == bad.number and block.stream == bad.stream for block in reader.blocks) == 4
    reader.close()


def test_what_cannot_be_read_back_replaces_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that keeps other bytes than it was given is found out before the new segment has its name."""
    ref = scene.put(text(1))
    old = scene.seal()
    end = rewriting._Target._end

    def lies(target: rewriting._Target, replaces: list[list[object]]) -> None:
        end(target, replaces)
        damage_chunk(target._paths[-1], ref, 1)

    monkeypatch.setattr(rewriting._Target, "_end", lies)
    with pytest.raises(DamageError, match="cannot be read back"):
        scene.rewrite()
    assert scene.names() == [os.path.basename(old)]


def test_a_blob_in_two_segments(scene: Scene) -> None:
    """Whose first half was forced before an fsync failed: the halves become one where both are sources, else stay two."""
    data = text(1)
    ref = BlobRef(scene.media.stream.id, 77, len(data))
    scene.blobs[ref] = data
    for offset in range(0, len(data), SMALL_CHUNK):
        meta = None if offset else {"media": "m", "format": "png"}
        append_chunk(scene.media.segment, ref, offset, data[offset : offset + SMALL_CHUNK], meta)
        if offset == SMALL_CHUNK:
            scene.seal()
    scene.seal()
    one, two = scene.sealed()
    scene.rewrite(sources=[one])
    assert scene.trouble() == []
    scene.rewrite(sources=[two])
    remove_old(scene)
    assert scene.trouble() == []
    assert scene.rewrite().blobs == 1
    remove_old(scene)
    assert scene.trouble() == []


def test_rolling(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the size of a file comes the next: all say that they were rewritten, the last one what they replace."""
    monkeypatch.setattr(rewriting, "FILE_BYTES_MAX", 4 * SMALL_CHUNK)
    for number in range(5):
        scene.put(text(number, 2 * SMALL_CHUNK))
    old = scene.seal()
    report = scene.rewrite()
    assert len(report.written) == 3
    segments = scene.sealed()
    assert not any(segment.is_raw for segment in segments)
    assert [len(segment.replaces) for segment in segments] == [0, 0, 1]
    assert all(segment.blobs for segment in segments)
    assert scene.trouble() == []
    numbers = []
    for path in report.written:
        checked = check_segment(DISK, path)
        assert checked.sealed and not checked.findings
        reader = SegmentReader(DISK, path)
        numbers += [block.number for block in reader.blocks] + [reader.index.number if reader.index else -1]
        reader.close()
    assert numbers == list(range(len(numbers))), "block numbers run on through the files"
    # Without the first file nothing is removed.
    os.rename(report.written[0], report.written[0] + ".away")
    assert remove_old(scene) == 0
    assert os.path.exists(old)
    os.rename(report.written[0] + ".away", report.written[0])
    remove_old(scene)
    assert not os.path.exists(old)
    assert scene.trouble() == []


def test_a_replacing_segment_stays_as_long_as_what_it_replaces(scene: Scene) -> None:
    """Else the oldest would count again: what was removed on purpose would be back."""
    ref = scene.put(text(1))
    scene.put(text(2))
    old = scene.seal()
    scene.rewrite(lambda each, stored: None if each == ref else stored)
    (middle,) = scene.sealed()
    scene.rewrite()
    files = FailingFiles()
    keep = RefusesToRemove(old)
    remove_replaced(keep, scene.directory, clock.wall_ns() + LATER)
    assert os.path.exists(old) and os.path.exists(middle.path)
    assert len(scene.sealed()) == 1
    del scene.blobs[ref]
    remove_replaced(files, scene.directory, clock.wall_ns() + LATER)
    assert len(scene.names()) == 1
    assert scene.trouble() == []


class RefusesToRemove(FailingFiles):
    """A disk that does not let go of one file."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def remove(self, path: str) -> None:
        if path == self._path:
            raise PermissionError(13, "no", path)
        super().remove(path)


def test_the_minute_begins_when_it_is_done(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when the new file was begun: encoding a gigabyte takes minutes. A clock set back by years holds nobody up."""
    now = 10**18
    monkeypatch.setattr(clock, "wall_ns", lambda: now)
    scene.put(text(1))
    old = scene.seal()

    def slow(ref: BlobRef, stored: StoredBlob) -> StoredBlob:
        nonlocal now
        now += 10 * LATER
        return stored

    scene.rewrite(slow)
    assert remove_replaced(DISK, scene.directory, now) == 1
    assert os.path.exists(old)
    assert remove_replaced(DISK, scene.directory, now - 365 * 86_400 * 10**9) == 0
    assert not os.path.exists(old)


def test_a_suspect_mark_goes_with_its_segment(scene: Scene) -> None:
    """It speaks of a file that is gone."""
    scene.put(text(1))
    old = scene.seal()
    Path(old + ".suspect").touch()
    scene.rewrite()
    remove_old(scene)
    assert len(scene.names()) == 1


def test_drafts(scene: Scene) -> None:
    """No reader sees them. Those of this machine are removed by whoever holds the right to rewrite, others' after a day."""
    scene.put(text(1))
    scene.seal()
    mine = format_draft(SegmentName(5, 0, MEDIA), platform.machine_id())
    others = format_draft(SegmentName(6, 0, MEDIA), "another machine")
    old = format_draft(SegmentName(7, 0, MEDIA), "a machine that is gone")
    for name in (mine, others, old):
        (Path(scene.directory) / name).write_bytes(b"cut")
    day = 86_400
    os.utime(os.path.join(scene.directory, old), (clock.wall_ns() / 1e9 - 2 * day,) * 2)
    assert len(scene.sealed()) == 1
    assert scene.trouble() == []
    remove_drafts(DISK, scene.directory)
    assert scene.drafts() == [others]


def test_two_hosts_at_once(scene: Scene) -> None:
    """Both make a segment of the same sources, neither removes the other's; the next rewriting joins the copies."""
    for number in range(3):
        scene.put(text(number))
    scene.seal()
    sources = scene.sealed()
    scene.rewrite(sources=sources)
    scene.rewrite(sources=sources)
    remove_old(scene)
    assert len(scene.names()) == 2
    assert scene.trouble() == []
    report = scene.rewrite()
    remove_old(scene)
    assert len(scene.names()) == 1
    assert report.blobs == 3
    assert scene.trouble() == []


def test_hosts_that_disagree_which_is_the_same(scene: Scene) -> None:
    """One keeps the bytes of the first and says so of the second, the other the other way round: both can be read."""
    first, second = scene.put(text(1)), scene.put(text(1))
    scene.seal()
    sources = scene.sealed()
    for kept, other in ((first, second), (second, first)):
        same = Same(kept.stream, kept.number, {"media": "m"})
        scene.rewrite(lambda ref, stored, other=other, same=same: same if ref == other else stored, sources=sources)
    remove_old(scene)
    assert scene.trouble() == []
    scene.rewrite()
    remove_old(scene)
    assert scene.trouble() == []


def test_another_store_is_not_written_to(scene: Scene) -> None:
    """A store that was put in another's place is refused."""
    scene.put(text(1))
    scene.seal()
    store = read_store(scene.store)._replace(id=bytes(16))
    with pytest.raises(OSError, match="another store"):
        rewriting.rewrite(DISK, store, scene.directory, scene.run.id, scene.sealed(), as_it_is)
    assert scene.drafts() == []


# The others differ from these in the number only.
@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize(
    "fault",
    [fault for fault in FAULTS if fault.name not in ("EDQUOT", "EROFS", "ESTALE")],
    ids=lambda fault: fault.name,
)
def test_a_disk_that_fails_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, forever: bool
) -> None:
    """At any operation, once or from then on: everything can be read, and when it is well again it is done as ever."""
    small_chunks(monkeypatch)
    at, files = 0, FailingFiles()
    while True:
        at += 1
        scene = Scene(tmp_path / f"{at}")
        scene.put(text(1, 2 * SMALL_CHUNK))
        scene.seal()
        scene.put(text(2, 100))
        scene.seal()
        files.fail(fault, at, forever=forever)
        try:
            scene.rewrite(files=files)
            remove_replaced(files, scene.directory, clock.wall_ns() + LATER)
        except (OSError, DamageError):
            assert files.fired
        fired, files.fault = files.fired, None
        assert scene.trouble() == [], (fault.name, at)
        remove_drafts(DISK, scene.directory)
        remove_old(scene)
        if len(scene.sealed()) > 1:
            scene.rewrite()
            remove_old(scene)
        assert scene.trouble() == [], (fault.name, at)
        assert len(scene.names()) == 1, (fault.name, at)
        scene.close()
        if not fired:
            break
    assert at > 1


def test_rewriting_holds_one_blob(tmp_path: Path) -> None:
    """Memory is one blob and what it becomes, however many there are."""
    scene, size = Scene(tmp_path), 2 << 20
    for number in range(8):
        scene.put(text(number, size))
    scene.seal()
    tracemalloc.start()
    try:
        scene.rewrite()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    scene.close()
    assert peak < 4 * size
