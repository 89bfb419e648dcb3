"""daemon.encode.work: passes over a store: what they make of it, and that they end."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.encode import known as knowing
from daemon.encode import work as working
from daemon.encode.known import Known
from daemon.encode.work import Done, joinable, plans, wants_work, work
from daemon.store import rewrite as rewriting
from daemon.store.replacing import KEPT_SECONDS, Sealed, remove_replaced
from daemon.store.rewrite import Same, identity
from sdk import clock, encoders
from sdk.encoders import EncoderMissing
from sdk.files import DISK
from sdk.location import read_store
from sdk.reader.blobs import Blobs
from sdk.record import BlobRef, StoredBlob
from sdk.segment.naming import MEDIA, SegmentName
from tests.rewriting import Scene, damage

LATER = int((KEPT_SECONDS + 1) * 1e9)
GREY: dict[str, Any] = {
    "media": "image-file", "to": "png", "array": ["|u1", [100, 200], None], "layout": "HW", "mode": "L", "normalize": True,
}  # fmt: skip


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.close()


def grey(number: int) -> bytes:
    return bytes([number]) * 20_000


def work_on(scene: Scene, **options: Any) -> Done:
    """One pass, with what it replaced removed."""
    done = work(DISK, read_store(scene.store), **options)
    remove_replaced(DISK, scene.directory, clock.wall_ns() + LATER)
    assert not done.errors or done.failed, done.errors
    return done


def meta_of(scene: Scene, ref: BlobRef) -> dict[str, Any]:
    return Blobs(DISK, scene.directory).meta(ref)


def test_a_pass_encodes_everything_once(scene: Scene) -> None:
    """Equal values in one file, whatever keys and segments they were in; a second pass finds nothing to do."""
    refs = []
    for number in (1, 2, 1, 1, 3, 2):
        refs.append(scene.put(grey(number), {**GREY, "key": f"k{len(refs)}", "step": len(refs)}))
        scene.seal()
    done = work_on(scene)
    assert (done.blobs, done.failed, done.missing) == (6, 0, {})
    assert len(scene.names()) == 1
    assert scene.trouble() == []
    for index, ref in enumerate(refs):
        meta = meta_of(scene, ref)
        assert (meta["encoding"], meta["raw_size"], meta["key"], meta["step"]) == ("png", 20_000, f"k{index}", index)
        assert meta["digest"] == hashlib.sha256(scene.blobs[ref]).digest()
    assert sum(segment.blobs for segment in scene.sealed()) == 6
    assert work_on(scene).blobs == 0


def test_a_later_double_is_found(scene: Scene) -> None:
    """Its bytes lie in a segment of an earlier pass; a replay of a blob that is stored is dropped."""
    first = scene.put(grey(1), GREY)
    scene.seal()
    work_on(scene)
    second = scene.put(grey(1), {**GREY, "step": 5})
    scene.media.store(grey(1), GREY, number=first.number)
    scene.seal()
    work_on(scene)
    assert scene.trouble() == []
    assert len(scene.names()) == 2
    assert sum(segment.blobs for segment in scene.sealed()) == 2
    assert meta_of(scene, second)["step"] == 5


def test_a_double_keeps_its_bytes_where_the_other_is_damaged(scene: Scene) -> None:
    """Nobody lets go of his bytes on somebody's word: the value is read before."""
    scene.put(grey(1), {"media": "m", "format": "png"})
    scene.seal()
    work_on(scene)
    (segment,) = scene.sealed()
    damage(segment.path, grey(1)[:1000])
    second = scene.put(grey(1), {"media": "m", "format": "png"})
    scene.seal()
    work_on(scene)
    assert bytes(Blobs(DISK, scene.directory).read(second).data) == grey(1)


def test_what_others_share_never_becomes_the_same_as_another(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """One hop: what stayed raw at first, and is the original of others, keeps bytes of its own when it is tried again."""
    with monkeypatch.context() as patch:
        patch.setattr(working, "encode", failing)
        one, two = scene.put(grey(1), GREY), scene.put(grey(1), GREY)
        scene.seal()
        assert work_on(scene).failed == 1
    # Another host has made an original of its own.
    encoding = working.Encoding({})
    three = scene.put(grey(1), GREY)
    scene.seal()
    store = read_store(scene.store)
    raw = [segment for segment in scene.sealed() if segment.is_raw]
    rewriting.rewrite(DISK, store, scene.directory, scene.run.id, raw, encoding, encoding.told)
    monkeypatch.setattr(working, "VERSION", encoders.VERSION + 1)
    work_on(scene)
    assert scene.trouble() == []
    assert [meta_of(scene, ref)["encoding"] for ref in (one, two, three)] == ["png"] * 3


def failing(raw: object, meta: object) -> None:
    raise ValueError("a bad day")


def test_a_failure_is_tried_again_by_newer_encoders(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same version it is not: it would fail for ever."""
    ref = scene.put(grey(1), GREY)
    scene.seal()
    with monkeypatch.context() as patch:
        patch.setattr(working, "encode", failing)
        done = work_on(scene)
    assert (done.failed, len(done.errors)) == (1, 1)
    assert "a bad day" in done.errors[0]
    assert "a bad day" in meta_of(scene, ref)["encode_error"]
    assert work_on(scene).blobs == 0
    monkeypatch.setattr(working, "VERSION", encoders.VERSION + 1)
    assert work_on(scene).blobs == 1
    assert meta_of(scene, ref)["encoding"] == "png"
    assert "encode_error" not in meta_of(scene, ref)
    assert scene.trouble() == []


def test_a_missing_package_is_waited_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blob stays raw and readable; the pass after the package has come encodes it."""
    ref = scene.put(grey(1), GREY)
    scene.seal()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "PIL", None)
        patch.setitem(sys.modules, "PIL.Image", None)
        done = work_on(scene)
        assert done.missing == {"pillow": 1}
        assert meta_of(scene, ref)["encode_missing"] == "pillow"
        assert scene.trouble() == []
        assert work_on(scene).blobs == 0
    assert work_on(scene).blobs == 1
    assert meta_of(scene, ref)["encoding"] == "png"
    assert "encode_missing" not in meta_of(scene, ref)


@pytest.mark.parametrize("package", ["pillow", "a build of PyAV with libx264", "antigravity", "os.path", ""])
def test_a_pass_ends_although_a_package_only_seems_to_be_there(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """Each segment is given once; and of names that a file tells, only those of our encoders are ever imported."""
    monkeypatch.delitem(sys.modules, "antigravity", raising=False)

    def missing(raw: object, meta: object) -> None:
        raise EncoderMissing(package, package, "a picture")

    monkeypatch.setattr(working, "encode", missing)
    scene.put(grey(1), GREY)
    scene.seal()
    for _ in range(3):
        assert work_on(scene).blobs <= 1
    assert scene.trouble() == []
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("size_max", [1000, 30_000, 1 << 30])
def test_a_pass_ends_whatever_fits_into_a_file(scene: Scene, monkeypatch: pytest.MonkeyPatch, size_max: int) -> None:
    """Small segments are joined while there become fewer, also where one file cannot hold two of them."""
    monkeypatch.setattr(working, "_SOURCES_BYTES_MAX", size_max)
    monkeypatch.setattr(rewriting, "FILE_BYTES_MAX", min(size_max, 25_000))
    for number in range(9):
        scene.put(grey(number), {"media": "m", "format": "png"})
        scene.seal()
    for _ in range(3):
        work_on(scene)
    count = len(scene.names())
    work_on(scene)
    assert len(scene.names()) == count
    assert scene.trouble() == []


def segment(number: int, size: int, **told: Any) -> Sealed:
    return Sealed(f"{number}", SegmentName(number, 0, MEDIA), size, number, 1, frozenset(), told)


def test_joining() -> None:
    """More than four: the smallest, as many as bring it back to four and one file can hold; never one alone."""
    few = [segment(number, 100, replaces=[]) for number in range(4)]
    assert joinable(few) == []
    assert joinable(few[:1]) == joinable([]) == []
    many = [segment(number, 1000 - number, replaces=[]) for number in range(7)]
    assert joinable(many) == many[:2:-1]
    large = [segment(number, working._SOURCES_BYTES_MAX, replaces=[]) for number in range(7)]
    assert joinable(large) == []
    assert joinable([*large, segment(8, 1), segment(9, 1)]) == [segment(8, 1), segment(9, 1)]


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ({}, True),
        ({"replaces": []}, False),
        ({"replaces": [], "encoders": encoders.VERSION, "failed": 3}, False),
        ({"replaces": [], "encoders": encoders.VERSION - 1, "failed": 3}, True),
        ({"replaces": [], "encoders": encoders.VERSION - 1, "failed": 0}, False),
        ({"replaces": [], "encoders": encoders.VERSION - 1, "missing": {"a build of PyAV": 1}}, True),
        ({"replaces": [], "encoders": encoders.VERSION, "missing": {"a build of PyAV": 1}}, False),
        ({"replaces": [], "encoders": encoders.VERSION, "missing": {"pillow": 1}}, True),
        ({"replaces": [], "encoders": encoders.VERSION, "missing": [1, {}]}, False),
        ({"replaces": [], "encoders": [1], "missing": {5: None}}, True),
    ],
)
def test_what_wants_work(told: dict[str, Any], wanted: bool) -> None:
    """What is raw; what failed in older encoders; what waits for a package that is there. Nonsense breaks nothing."""
    assert wants_work(segment(1, 1, **told)) is wanted


def test_many_raw_segments_are_taken_in_portions(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of files, as many as may be open; of bytes, what is a minute's work."""
    monkeypatch.setattr(working, "_SOURCES_MAX", 3)
    for number in range(8):
        scene.put(grey(number), GREY)
        scene.seal()
    assert [len(group) for group in plans(DISK, scene.directory)][:3] == [3, 3, 2]
    monkeypatch.setattr(working, "_SOURCES_BYTES_MAX", 50_000)
    assert [len(group) for group in plans(DISK, scene.directory)][:4] == [2, 2, 2, 2]


def test_a_pass_that_nobody_wants_ends_within_a_blob(scene: Scene) -> None:
    """It leaves no draft behind, and nothing is replaced."""
    for number in range(5):
        scene.put(grey(number), GREY)
    scene.seal()
    before, asked = scene.names(), 0

    def is_wanted() -> bool:
        nonlocal asked
        asked += 1
        return asked < 4

    assert work(DISK, read_store(scene.store), is_wanted=is_wanted).blobs == 0
    assert scene.names() == before
    assert scene.trouble() == []


def test_one_bad_run_does_not_hide_the_others(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trouble is told, and the pass goes on."""
    scene.put(grey(1), GREY)
    scene.seal()
    os.makedirs(os.path.join(scene.store, "runs", "a-bad-one"))
    real = working.remove_drafts

    def fails(files: Any, directory: str) -> None:
        if directory.endswith("a-bad-one"):
            raise OSError(5, "no")
        real(files, directory)

    monkeypatch.setattr(working, "remove_drafts", fails)
    done = work(DISK, read_store(scene.store))
    assert done.blobs == 1
    assert len(done.errors) == 1 and done.errors[0].startswith("a-bad-one")


NONSENSE = [
    5, "x", {"a": 1}, [5], [[1, 2]], [[1, "2", b"x" * 32]], [[True, 1, b"x" * 32]], [[1, 2, "x"]], [[1, 2, b"x" * 32, 4]],
]  # fmt: skip


@pytest.mark.parametrize("digests", NONSENSE)
def test_hostile_notes_of_digests(digests: Any) -> None:
    """A segment that says nonsense of what it holds knows nothing."""
    known = Known(DISK, [segment(1, 1, digests=digests)])
    assert known.get(b"x" * 32) is None
    known.close()


def test_a_note_must_be_true(scene: Scene) -> None:
    """Of a blob that is not there, that is another value, or has no bytes of its own: it is not known."""
    scene.put(grey(1), GREY)
    scene.seal()
    scene.encode()
    (real,) = scene.sealed()
    ((stream, number, value),) = real.told["digests"]
    for entry in ([stream, number, b"y" * 32], [stream, number + 1, value], [stream + 1, number, value]):
        known = Known(DISK, [real._replace(told={"digests": [entry]})])
        assert known.get(entry[2]) is None
        known.close()
    known = Known(DISK, [real], unwanted={(stream, number)})
    assert known.get(value) is None
    known.close()
    known = Known(DISK, [real])
    assert known.get(value) == known.get(value) == (stream, number)
    known.close()


def test_known_of_a_segment_that_is_gone() -> None:
    """Then nothing is known of it."""
    known = knowing.Known(DISK, [segment(1, 1, digests=[[1, 2, b"x" * 32]])])
    assert known.get(b"x" * 32) is None
    known.close()


def test_a_blob_without_bytes_stays_that() -> None:
    """What shares bytes, or was removed, is passed on as it is."""
    encoding = working.Encoding({})
    for meta in ({"same": [1, 2]}, {"removed": "by hand"}):
        stored = StoredBlob(b"", meta)
        assert encoding(BlobRef(1, 9, 0), stored) is stored
    assert not isinstance(encoding(BlobRef(1, 3, 1), StoredBlob(b"x", {})), Same)
    assert identity({"key": "a", "digest": b""}) == identity({"digest": b"", "step": 4})
