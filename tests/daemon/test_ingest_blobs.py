"""daemon.ingest.blobs: large values on their way in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from daemon.ingest import blobs as module
from daemon.store.syncer import OthersJob
from sdk import platform
from sdk.files import DISK
from sdk.ids import hex_u64
from sdk.journal.announcements import LOST, announcements
from sdk.journal.arena import Arena, arena_path
from sdk.limits import BLOB_BYTES_MAX
from sdk.reader.blobs import Blobs
from sdk.record import KIND_BLOB, KIND_ROW, BlobRef, Record, encode_map, pack
from sdk.segment.blobs import CHUNK_BYTES, stored_blobs
from sdk.segment.format import KIND_GAP
from sdk.segment.naming import run_path
from sdk.wire.messages import BATCH_HAS_BLOBS, Reject
from tests.ingest_rig import STREAM, Client, Rig
from tests.serving import RUN, temporary_store, until

MISSING = [0, 1 << 30]


@pytest.fixture
def rig() -> Iterator[Rig]:
    with temporary_store() as store, contextlib.closing(Rig(store)) as made:
        yield made


@pytest.fixture
def ring(rig: Rig) -> str:
    """The path of a ring that is not there; its arena may be."""
    digest = platform.store_digest(rig.store.path)
    return os.path.join(platform.shared_directory("/dev/shm"), f"{digest}-{hex_u64(STREAM)}.ring")


@pytest.fixture
def arena(ring: str) -> Iterator[Arena]:
    with contextlib.closing(Arena("/dev/shm", ring, STREAM)) as made:
        yield made


def announced(sequence: int, number: int, size: int, at: object) -> bytes:
    """A record that announces a blob, and the row that holds it."""
    told = {"n": number, "size": size, "key": "k", "meta": {"media": "m"}}
    if at is not None:
        told["at"] = at
    row = pack(Record(sequence + 1, sequence, 1, KIND_ROW, 0, encode_map({"n": sequence})))
    return pack(Record(sequence, sequence, 0, KIND_BLOB, 0, encode_map(told))) + row


def send(client: Client, sequence: int, number: int, size: int, at: object) -> None:
    client.batch(sequence, sequence + 1, announced(sequence, number, size, at), flags=BATCH_HAS_BLOBS)
    client.barrier()


def blobs_of(rig: Rig) -> Blobs:
    return Blobs(DISK, run_path(rig.store.path, RUN))


@pytest.mark.parametrize("size", [0, 100_000, CHUNK_BYTES + 1])
def test_the_bytes_are_stored_with_the_row(rig: Rig, ring: str, arena: Arena, size: int) -> None:
    """When the row is acked, its blob is in the run's media segment, bit for bit, with what was said of it."""
    slot = arena.take(size)
    assert slot is not None
    slot.view()[:] = content = os.urandom(size)
    client = rig.client()
    client.hello(ring=ring)
    send(client, 1, 1, size, list(slot.place))
    rig.tick(1.0)
    client.ack(2)
    stored = blobs_of(rig).read(BlobRef(STREAM, 1, size))
    assert bytes(stored.data) == content
    assert {"media": "m", "key": "k", "step": 1}.items() <= stored.meta.items()


def test_a_large_one_takes_several_ticks(rig: Rig, ring: str, arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other streams are served between the parts of a large blob; its row is acked when all of it is there."""
    monkeypatch.setattr(module, "TICK_BYTES", CHUNK_BYTES)
    slot = arena.take(3 * CHUNK_BYTES)
    assert slot is not None
    client = rig.client()
    client.hello(ring=ring)
    client.batch(1, 2, announced(1, 1, 3 * CHUNK_BYTES, list(slot.place)), flags=BATCH_HAS_BLOBS)
    state, parts = rig.ingest.streams[STREAM], list[int]()

    def is_written() -> bool:
        rig.tick(0.1)
        parts.append(state.blob_offset)
        return state.inbox.written == 2

    until(is_written, "the row")
    assert sorted(set(parts)) == [0, CHUNK_BYTES, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES]


def test_a_blob_is_stored_once(rig: Rig, ring: str, arena: Arena) -> None:
    """A batch that comes again after a new Hello stores nothing twice."""
    slot = arena.take(50_000)
    assert slot is not None
    client = rig.client()
    client.hello(ring=ring)
    for _ in range(2):
        send(client, 1, 1, 50_000, list(slot.place))
        rig.tick(1.0)
    client.ack(2)
    assert rig.ingest.writers[RUN].media.segment is not None
    assert len([b for b in rig.ingest.writers[RUN].media.segment.blocks if b.kind == 3]) == 1


@pytest.mark.parametrize("operation", ["create", "append"])
def test_a_full_disk(rig: Rig, ring: str, arena: Arena, operation: str) -> None:
    """Neither the blob nor its row is acked; when there is room again both are stored, whole and once."""
    size = CHUNK_BYTES + 1
    slot = arena.take(size)
    assert slot is not None
    slot.view()[:] = content = os.urandom(size)
    client = rig.client()
    client.hello(ring=ring)
    rig.files.refuse(operation)
    send(client, 1, 1, size, list(slot.place))
    rig.tick(1.0)
    assert rig.ingest.streams[STREAM].inbox.written == 0
    assert "No space" in rig.stats.last_error
    rig.files.allow()
    rig.tick(1.0)
    client.ack(2)
    assert bytes(blobs_of(rig).read(BlobRef(STREAM, 1, size)).data) == content
    assert len(rig.held.records) == 2


def test_an_arena_that_cannot_be_read(rig: Rig, ring: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trainer is told once, nothing is written before it greets again, and then its word is taken."""
    syncer, jobs = rig.ingest.forcing.syncer, list[object]()
    submit = syncer.submit
    monkeypatch.setattr(syncer, "submit", lambda job: jobs.append(job) or submit(job))
    client = rig.client()
    client.hello(ring=ring)
    send(client, 1, 1, 10, MISSING)
    assert client.expect(Reject, 0.1).code == "arena"
    rig.tick(1.0)
    assert rig.held.records == []
    client.hello(ring=ring)
    send(client, 1, 1, 10, MISSING)
    rig.tick(1.0)
    client.ack(2)
    rig.sync()
    others = [job for job in jobs if isinstance(job, OthersJob)]
    assert [job.streams for job in others] == [[STREAM]], "the trainer's own segment must be forced before `synced`"


def test_the_bytes_of_a_dead_trainer_that_are_nowhere(rig: Rig, ring: str) -> None:
    """The row is kept, and a GAP names key, step and reason."""
    client = rig.client()
    client.hello(ring=ring)
    rig.ingest.streams[STREAM].is_dead = True
    send(client, 1, 1, 10, None)
    rig.tick(1.0)
    [gap] = [values for block, values in rig.held.maps if block.kind == KIND_GAP]
    assert (gap["key"], gap["step_min"], gap["reason"], gap["count"]) == ("k", 1, LOST, 0)
    assert len(rig.held.records) == 2


def test_blobs_are_forced_before_their_rows_are_claimed(rig: Rig, ring: str, arena: Arena) -> None:
    """`synced` of a row holds for its blobs: when the media segment cannot be forced, nothing is claimed."""
    slot = arena.take(100)
    assert slot is not None
    client = rig.client()
    client.hello(ring=ring)
    send(client, 1, 1, 100, list(slot.place))
    rig.tick(1.0)
    client.ack(2)
    rig.sync()
    assert rig.ingest.streams[STREAM].inbox.synced == 2
    media = rig.ingest.writers[RUN].media.segment
    assert media is not None
    send(client, 3, 2, 100, list(slot.place))
    rig.tick(1.0)
    media._file.sync = lambda: (_ for _ in ()).throw(OSError(5, "gone"))  # type: ignore[method-assign]
    rig.tick(60.0)
    rig.sync()
    rig.sync()
    assert rig.ingest.streams[STREAM].inbox.synced == 4, "the blobs were written again, and then claimed"
    assert rig.ingest.writers[RUN].media.segment is not media
    assert stored_blobs(DISK, run_path(rig.store.path, RUN)) == {(STREAM, 1), (STREAM, 2)}
    assert rig.stats.sync_failures == 1


def test_blobs_are_handed_to_the_syncer_before_rows(
    rig: Rig, ring: str, arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes back for the rows is claimed for the blobs that they name, so those must have been forced by then."""
    syncer, forced = rig.ingest.forcing.syncer, list[str]()
    submit = syncer.submit
    monkeypatch.setattr(syncer, "submit", lambda job: forced.append(os.path.basename(job.segment.path)) or submit(job))
    slot = arena.take(100)
    assert slot is not None
    client = rig.client()
    client.hello(ring=ring)
    send(client, 1, 1, 100, list(slot.place))
    rig.tick(1.0)
    rig.sync()
    assert [name.partition("-")[0] for name in forced] == ["media", "history"]


@pytest.mark.parametrize(
    "told",
    [
        {}, {"n": 0, "size": 1, "meta": {}}, {"n": 1, "size": -1, "meta": {}}, {"n": 1, "size": BLOB_BYTES_MAX + 1, "meta": {}},
        {"n": 1, "size": 1, "meta": []}, {"n": 1, "size": 1, "meta": {}, "at": [0]}, {"n": 1, "size": 1, "meta": {}, "at": [-1, 0]},
        {"n": 1, "size": 1, "meta": {}, "at": [1 << 40, 0]}, {"n": True, "size": 1, "meta": {}}, {"n": "1", "size": 1, "meta": {}},
    ],
)  # fmt: skip
def test_announcements_that_make_no_sense(told: dict[str, object]) -> None:
    """They are left out, as nothing of a message is believed."""
    assert list(announcements(1, pack(Record(1, 1, 0, KIND_BLOB, 0, encode_map(told))))) == []


def test_no_other_file_is_read(rig: Rig) -> None:
    """A Hello that calls another file a ring gets nothing of what is beside that file."""
    with temporary_store() as other:
        path = os.path.join(other.path, "x.ring")
        with open(arena_path(path, 0), "wb") as file:
            file.write(b"secret" * 100)
        client = rig.client()
        client.hello(ring=path)
        send(client, 1, 1, 100, [0, 0])
        assert client.expect(Reject, 0.1).code == "arena"
