"""daemon.store.retention: what rows name, what lies in the segments, and what is removed of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from daemon.compact.work import compact_run
from daemon.store.retention import Lying, Removals, Retention, Uses, Wish, lying_in, removals, uses_of
from daemon.store.rewrite import sealed_media
from sdk.errors import DamageError
from sdk.files import DISK
from sdk.location import read_store
from sdk.record import BlobRef, StoredBlob, encode_map
from tests.builders import START_NS, RunBuilder, make_store
from tests.media_rig import MediaBuilder, packed

SECOND = 10**9
OLD = Wish(before_ns=START_NS + 10 * SECOND, when="2024-01-02", words="--keep-media 30d")


@pytest.fixture
def media(tmp_path: Path) -> MediaBuilder:
    run = RunBuilder(make_store(tmp_path))
    return MediaBuilder(run, run.stream())


def uses(media: MediaBuilder, wish: Wish = OLD) -> Uses:
    """What rows name; the same when they have become columns."""
    media.seal()
    media.run.seal()
    found = uses_of(DISK, media.run.directory, wish)
    compact_run(
        DISK, read_store(os.path.dirname(os.path.dirname(media.run.directory))), media.run.directory, kept_seconds=0
    )
    assert uses_of(DISK, media.run.directory, wish) == found
    return found


def picture(media: MediaBuilder, text: str = "x", **meta: Any) -> Any:
    return media.blob(text.encode(), {"media": "image-file", "format": "png", **meta})


def test_what_rows_name(media: MediaBuilder) -> None:
    """Blobs are found in values, lists, nested dicts, media inside of media, and of rows without media none."""
    media.log({"loss": 1.0})
    media.log_packed({"a": packed("image-file", data=picture(media), masks={"m": packed("mask", data=picture(media))})})
    media.log_packed(
        {"b": [packed("image-file", data=picture(media))], "c": {"d": packed("x", parts=[picture(media)])}}
    )
    stream = media.stream.id
    assert uses(media) == Uses({(stream, number): False for number in (1, 2, 3, 4)}, True)


def test_a_blob_is_wanted_if_one_of_its_rows_is(media: MediaBuilder) -> None:
    """A table goes on for weeks: its first part was logged long ago, and the youngest row still names it."""
    part = picture(media)
    media.log_packed({"old": packed("image-file", data=picture(media)), "table": packed("table-file", parts=[part])})
    media.stream.time_ns += 60 * SECOND
    media.log_packed({"table": packed("table-file", parts=[part, picture(media)])})
    stream = media.stream.id
    assert uses(media).wanted == {(stream, 1): True, (stream, 2): False, (stream, 3): True}


def test_keys_narrow_what_is_unwanted(media: MediaBuilder) -> None:
    """Globs are matched with the flat key; what another key names as well stays."""
    shared = picture(media)
    media.log_packed(
        {"val": {"x": packed("image-file", data=picture(media))}, "val.y": packed("image-file", data=shared)}
    )
    media.log_packed({"train": packed("image-file", data=shared)})
    stream = media.stream.id
    assert uses(media, OLD._replace(keys=("val.*",))).wanted == {(stream, 1): True, (stream, 2): False}


def test_a_value_that_was_too_large_names_blobs_too(media: MediaBuilder) -> None:
    """A list of ten thousand images is stored apart itself; its images are named by it, under the row's key."""
    inner = encode_map({"many": [packed("image-file", data=picture(media)) for _ in range(3)]})
    media.log_packed({"many": packed("value", data=media.blob(inner, {"media": "value"}))})
    stream = media.stream.id
    assert uses(media) == Uses({(stream, number): False for number in (1, 2, 3, 4)}, True)


def test_a_large_value_that_cannot_be_read_names_who_knows_what(media: MediaBuilder) -> None:
    """Then nothing is removed because no row names it."""
    media.log_packed({"many": packed("value", data=media.blob(b"\xc1", {"media": "value"}))})
    found = uses(media)
    assert not found.is_complete
    lying = Lying({(media.stream.id, 9): 100}, {}, set(), {})
    assert removals(lying, found, OLD._replace(unnamed=True), [media.stream.id]).texts == {}


def test_damaged_rows_name_who_knows_what(media: MediaBuilder) -> None:
    """Where rows cannot be read nothing is removed at all."""
    media.log_packed({"a": packed("image-file", data=picture(media))})
    media.seal()
    (path,) = (entry.path for entry in os.scandir(media.run.directory) if entry.name.startswith("history"))
    data = Path(path).read_bytes()
    at = data.index(b"image-file")
    Path(path).write_bytes(data[:at] + b"XXXXX" + data[at + 5 :])
    with pytest.raises(DamageError):
        uses_of(DISK, media.run.directory, OLD)


def test_what_lies_in_the_segments(media: MediaBuilder) -> None:
    """Sizes with headers, all copies together; doubles and tombstones by what they say."""
    picture(media, "long" * 100)
    media.store(b"", {"same": [media.stream.id, 1]})
    media.store(b"", {"removed": "by me"})
    media.store(b"", {"media": "html-file"})
    media.store(b"again", {}, number=4)
    media.store(b"", {"same": "nonsense"})
    media.seal()
    stream, (segment,) = media.stream.id, sealed_media(DISK, media.run.directory)
    found = lying_in(DISK, [segment])
    assert found.sizes.keys() == {(stream, number) for number in (1, 2, 3, 4, 5)}
    assert found.sizes[stream, 1] > 400 > found.sizes[stream, 4] > 2 * 88
    assert (found.same, found.gone) == ({(stream, 2): (stream, 1)}, {(stream, 3)})
    assert found.where[stream, 1] == {segment.name}


def decided(
    sizes: dict[int, int], wanted: dict[int, bool], same: dict[int, int] | None = None, **wish: Any
) -> Removals:
    """`removals` for the blobs of stream 7, which has ended."""
    lying = Lying(
        {(7, number): size for number, size in sizes.items()},
        {(7, one): (7, two) for one, two in (same or {}).items()},
        {(7, number) for number in wish.pop("gone", ())},
        {},
    )
    ended = wish.pop("ended", (7,))
    return removals(lying, Uses({(7, n): keeps for n, keeps in wanted.items()}, True), OLD._replace(**wish), ended)


def test_what_no_row_wants_is_removed() -> None:
    """Its tombstone says how the user said it, and when."""
    found = decided({1: 10, 2: 10}, {1: False, 2: True})
    assert found == Removals({(7, 1): "by retention (--keep-media 30d) on 2024-01-02"}, set())


def test_bytes_that_others_share_stay() -> None:
    """An old blob whose bytes a young one has is kept; when the young one goes too, both do."""
    assert decided({1: 10, 2: 1}, {1: False, 2: True}, {2: 1}) == Removals({}, {(7, 1)})
    assert decided({1: 10, 2: 1}, {1: False, 2: False}, {2: 1}).texts.keys() == {(7, 1), (7, 2)}


def test_bytes_that_an_unnamed_blob_shares_stay_with_it() -> None:
    """What is not removed itself keeps whatever it needs."""
    assert decided({1: 10, 2: 1}, {1: False}, {2: 1}) == Removals({}, {(7, 1)})


@pytest.mark.parametrize(("dead", "is_removed"), [(49, False), (51, True)])
def test_unnamed_bytes_go_where_they_are_more_than_half(dead: int, is_removed: bool) -> None:
    """By bytes, not by count."""
    found = decided({1: 100 - dead, **dict.fromkeys(range(2, 3), dead)}, {1: True})
    assert found.texts == ({(7, 2): "because no row named it, on 2024-01-02"} if is_removed else {})


def test_unnamed_bytes_go_when_asked() -> None:
    """However few they are."""
    assert decided({1: 99, 2: 1}, {1: True}, unnamed=True).texts.keys() == {(7, 2)}


def test_unnamed_bytes_of_a_stream_that_may_go_on_stay() -> None:
    """Their row may be on its way."""
    assert decided({1: 99}, {}, unnamed=True, ended=()) == Removals({}, set())


def test_bytes_that_a_named_blob_shares_are_no_unnamed_ones() -> None:
    """A run in which one image was logged again under each key has one blob with bytes, and its row may be lost."""
    assert decided({1: 100, 2: 1}, {2: True}, {2: 1}) == Removals({}, set())


def test_tombstones_are_not_removed_again() -> None:
    """What is gone keeps its first date."""
    assert decided({1: 10}, {1: False}, gone=(1,)) == Removals({}, set())


def test_a_tombstone_says_what_it_was() -> None:
    """Media, key, step and the text; what stays goes through the next transform."""
    then: list[BlobRef] = []

    def keep(ref: BlobRef, stored: StoredBlob) -> StoredBlob:
        then.append(ref)
        return stored

    retention = Retention({(7, 1): "by me"}, keep)
    stored = StoredBlob(b"bytes", {"media": "mask", "key": "k", "step": 3, "digest": b"d", "encoding": "png"})
    assert retention(BlobRef(7, 1, 5), stored) == StoredBlob(
        b"", {"media": "mask", "key": "k", "step": 3, "removed": "by me"}
    )
    assert retention(BlobRef(7, 2, 5), stored) is stored
    assert then == [BlobRef(7, 2, 5)]


def test_bytes_beside_a_tombstone_are_removed_again(media: MediaBuilder) -> None:
    """A replay after the removal brought them back: they are no less unwanted, and the tombstone keeps its date."""
    ref = media.store(b"", {"removed": "before"})
    media.store(b"again", {"media": "mask"}, number=ref.number)
    media.seal()
    found = lying_in(DISK, sealed_media(DISK, media.run.directory))
    assert found.gone == set()
    retention = Retention({ref[:2]: "now"}, lambda ref, stored: stored)
    assert retention(ref, StoredBlob(b"", {"removed": "before"})) == StoredBlob(b"", {"removed": "before"})
    assert retention(ref._replace(size=5), StoredBlob(b"again", {})) == StoredBlob(b"", {"removed": "now"})
