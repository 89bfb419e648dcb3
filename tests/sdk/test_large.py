"""sdk.journal.large: the ladder of large values in the trainer."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdk import platform
from sdk.errors import UsageError
from sdk.journal.announcements import announcements
from sdk.journal.appender import open_journal
from sdk.journal.arena import Arena
from sdk.journal.handle import Journal
from sdk.journal.large import NO_ROOM, Large
from sdk.journal.ring import Ring
from sdk.limits import INLINE_TENSOR_BYTES_MAX, KIB, MIB
from sdk.record import (
    FLAG_MARKED,
    KIND_BLOB,
    KIND_GAP,
    KIND_ROW,
    BlobRef,
    MediaValue,
    Record,
    StoredBlob,
    decode_map,
    walk,
)
from sdk.values import Blob, Media, snapshot, stage_in

STREAM = 5
LARGE = INLINE_TENSOR_BYTES_MAX + 1


class Thing(Media):
    """A value with one blob."""

    _type = "thing"

    def __init__(self, data: bytes) -> None:
        self.blob = snapshot(data, {"media": "thing"})

    def describe(self) -> dict[str, Any]:
        return {"data": self.blob, "size": self.blob.size}


class Stream:
    """A journal with large values. `notices`: what a user would be told."""

    def __init__(self, base: str | None, overflow: int = MIB, **options: Any) -> None:
        self.notices: list[str] = []
        path = os.path.join(platform.shared_directory(base), f"{0:016x}-{STREAM:016x}.ring") if base else None
        self.arena = Arena(base, path, STREAM) if base and path else None
        blocks = options.get("on_full") == "block"
        self.large = Large(STREAM, self.arena, overflow, lambda: blocks)
        ring = Ring.private(STREAM, {}, 4 * MIB)
        self.journal: Journal = open_journal(
            ring, large=self.large, on_notice=lambda topic, text: self.notices.append(text), **options
        )
        self.log: Callable[..., None] = self.journal.log
        stage_in(self.large.take)

    def records(self) -> list[Record]:
        return list(walk(b"".join(self.journal.ring.slices(0, self.journal.mark()[0]))))

    def kinds(self) -> list[int]:
        return [record.kind for record in self.records()]

    def row(self, index: int = -1) -> dict[str, Any]:
        return decode_map([r for r in self.records() if r.kind == KIND_ROW][index].payload)

    def close(self) -> None:
        stage_in(None)
        if self.arena is not None:
            self.arena.close()


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Stream]:
    with contextlib.closing(Stream(str(tmp_path))) as made:
        yield made


@pytest.fixture
def private() -> Iterator[Stream]:
    """No shared memory."""
    with contextlib.closing(Stream(None)) as made:
        yield made


def test_a_small_one_stands_in_the_record(stream: Stream) -> None:
    """Up to 16 KiB a value costs no announcement."""
    stream.log({"a": Thing(bytes(INLINE_TENSOR_BYTES_MAX))})
    assert stream.kinds() == [KIND_ROW]
    value = stream.row()["a"]
    assert isinstance(value, MediaValue)
    assert value["data"] == StoredBlob(bytes(INLINE_TENSOR_BYTES_MAX), {"media": "thing"})


def test_many_small_ones_do_not_fill_the_record(stream: Stream) -> None:
    """A list of thumbnails is announced from 256 KiB on."""
    stream.log({"a": [Thing(bytes(INLINE_TENSOR_BYTES_MAX)) for _ in range(20)]})
    assert stream.kinds() == [KIND_BLOB] * 4 + [KIND_ROW]


def test_a_large_one_is_announced_before_its_row(stream: Stream) -> None:
    """The announcement says number, size, key, step and place; the row refers to the blob; nothing else of it is in the ring."""
    stream.log({"x": 1}, step=3)
    stream.log({"a": Thing(b"x" * LARGE)}, step=7)
    assert stream.kinds() == [KIND_ROW, KIND_BLOB, KIND_ROW]
    packed = b"".join(stream.journal.ring.slices(0, stream.journal.mark()[0]))
    [announced] = announcements(STREAM, packed)
    assert (announced.ref, announced.key, announced.step) == (BlobRef(STREAM, 1, LARGE), "a", 7)
    assert announced.place == (0, 0)
    assert announced.meta == {"media": "thing"}
    assert stream.row()["a"] == {"_type": "thing", "data": BlobRef(STREAM, 1, LARGE), "size": LARGE}
    assert len(packed) < KIB


def test_the_caller_may_change_what_was_given(stream: Stream) -> None:
    """The copy is made in the constructor."""
    array = np.arange(LARGE, dtype="u1")
    thing = Thing(array.data)
    array[:] = 0
    stream.log({"a": thing})
    assert bytes(thing.blob.view()) == np.arange(LARGE, dtype="u1").tobytes()


def test_what_is_stored_is_let_go(stream: Stream) -> None:
    """Its bytes are freed though the caller keeps the object; logged again it is only referred to."""
    thing = Thing(bytes(LARGE))
    stream.log({"a": thing})
    stream.journal.release(stream.journal.mark())
    assert thing.blob.held is None
    stream.log({"b": thing})
    assert stream.kinds() == [KIND_BLOB, KIND_ROW, KIND_ROW]
    assert stream.row()["b"]["data"] == BlobRef(STREAM, 1, LARGE)


def test_what_is_not_stored_is_kept(stream: Stream) -> None:
    """An ack that ends before an announcement frees nothing of its value."""
    stream.log({"x": 1})
    before = stream.journal.mark()
    thing = Thing(b"x" * LARGE)
    stream.log({"a": thing})
    stream.journal.release(before)
    assert bytes(thing.blob.view()) == b"x" * LARGE
    assert len(stream.large.pending) == 1


def test_twice_in_one_call(stream: Stream) -> None:
    """One blob, one announcement."""
    thing = Thing(bytes(LARGE))
    stream.log({"a": thing, "b": [thing, thing]})
    assert stream.kinds() == [KIND_BLOB, KIND_ROW]


def test_a_stored_value_cannot_go_into_another_run(stream: Stream, tmp_path: Path) -> None:
    """Its bytes are not kept for that; the error says so."""
    thing = Thing(bytes(LARGE))
    stream.log({"a": thing})
    stream.journal.release(stream.journal.mark())
    other = Large(STREAM + 1, None, MIB)
    with pytest.raises(UsageError, match="another run"):
        other.settle(thing.blob, 0)


def test_a_value_that_was_made_before_the_run(tmp_path: Path) -> None:
    """It moves from private memory into the arena when it is logged."""
    thing = Thing(b"y" * LARGE)
    with contextlib.closing(Stream(str(tmp_path))) as stream:
        assert thing.blob.is_private
        stream.log({"a": thing})
        assert not thing.blob.is_private
        assert bytes(thing.blob.view()) == b"y" * LARGE


def test_without_shared_memory(private: Stream) -> None:
    """The bytes stay private and the announcement names no place."""
    private.log({"a": Thing(bytes(LARGE))})
    [announced] = announcements(STREAM, b"".join(private.journal.ring.slices(0, private.journal.mark()[0])))
    assert announced.place is None
    assert private.large.private_bytes == LARGE
    private.journal.release(private.journal.mark())
    assert private.large.private_bytes == 0


def test_no_room_is_a_gap(private: Stream) -> None:
    """Beyond the bound the value is dropped: the row is there and marked, a GAP names key, step and reason, a line is said."""
    private.log({"fits": Thing(bytes(MIB)), "x": 1, "does not": Thing(bytes(LARGE))}, step=4)
    assert private.kinds() == [KIND_BLOB, KIND_GAP, KIND_ROW]
    gap = decode_map(private.records()[1].payload)
    assert (gap["key"], gap["step_min"], gap["size"], gap["reason"]) == ("does not", 4, LARGE, NO_ROOM)
    assert private.row()["does not"]["data"] is None
    assert private.row()["x"] == 1
    assert private.records()[-1].flags & FLAG_MARKED
    assert "'does not' at step 4" in private.notices[0]
    assert private.large.count == 2, "neither is a call of log()"


def test_blocking_waits_for_room() -> None:
    """on_full="block": the call returns when the sender has stored what was before it."""
    with contextlib.closing(Stream(None, on_full="block")) as stream:
        stream.log({"a": Thing(bytes(MIB))})
        waiting = threading.Thread(target=stream.log, args=({"b": Thing(bytes(LARGE))},))
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
        stream.journal.release(stream.journal.mark())
        waiting.join(20)
        assert not waiting.is_alive()
        assert stream.kinds() == [KIND_BLOB, KIND_ROW] * 2


def test_a_plain_value_that_no_record_holds(stream: Stream) -> None:
    """A text of megabytes becomes a blob of its own and nothing is raised."""
    stream.log({"text": "x" * (2 * MIB), "y": 2})
    assert stream.kinds() == [KIND_BLOB, KIND_ROW]
    assert stream.row()["text"]["_type"] == "value"
    [pending] = stream.large.pending
    assert decode_map(pending.blob.view()) == {"text": "x" * (2 * MIB)}


def test_a_call_that_the_ring_refuses_frees_its_bytes(stream: Stream) -> None:
    """A full ring counts the call, announces nothing and keeps no slot."""
    while not stream.journal.refusals().refused:
        stream.log({"b": bytes(100 * KIB)})
    end = stream.journal.mark()
    stream.log({"a": Thing(bytes(3 * MIB)), "b": bytes(200 * KIB)})
    assert stream.journal.mark()[0] == end[0]
    assert not stream.large.pending
    assert stream.arena is not None
    assert stream.arena.take(4 * MIB) is not None


def test_media_stand_nowhere_but_in_log() -> None:
    """A value with bytes cannot be described without a stream."""
    with pytest.raises(TypeError, match="Thing"):
        open_journal(Ring.private(1, {})).log({"a": Thing(b"x")})


def test_blob_of_an_object_array() -> None:
    """Python objects have no bytes to store."""
    with pytest.raises(TypeError, match="object"):
        snapshot(np.array([object()]), {})


def test_meta_is_not_shared() -> None:
    """What the caller does with its map afterwards does not matter."""
    meta = {"media": "x"}
    blob = snapshot(b"a", meta)
    meta["media"] = "y"
    assert isinstance(blob, Blob)
    assert blob.meta == {"media": "x"}
