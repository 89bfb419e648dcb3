"""sdk._aside: a damaged ring is kept on disk before it is removed from shared memory, and a reader sees what is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import sdk
from sdk import platform
from sdk._aside import holds_records, keep_ring
from sdk._spool import drain_orphans
from sdk.files import DISK
from sdk.journal.appender import open_journal
from sdk.journal.checksums import Checksums
from sdk.journal.format import CAPACITY_MIN, HEADER_BYTES, STATIC_OFFSET, STATIC_SECOND_OFFSET
from sdk.journal.ring import Ring
from sdk.location import StoreIdentity
from sdk.segment.format import KIND_ROWS
from sdk.segment.naming import run_path
from sdk.segment.reader import SegmentReader
from tests.serving import RUN, temporary_store


@pytest.fixture
def store() -> Iterator[StoreIdentity]:
    with temporary_store() as made:
        yield made


def dead_ring(store: StoreIdentity) -> tuple[str, int]:
    """The ring of a dead trainer with 20 records, ten under each checksum; and where the second ten begin."""
    identity = {"run": RUN, "store": store.id}
    ring, _ = Ring.create("/dev/shm", platform.store_digest(store.path), 5, CAPACITY_MIN, identity)
    assert ring.path is not None
    journal = open_journal(ring)
    checksums = Checksums(ring, 0)
    middle = 0
    for i in range(20):
        journal.log({"x": i})
        if i % 10 == 9:
            checksums.cover(journal.mark(), (0, 1, 0))
            middle = middle or journal.mark()[0]
    ring.abandon()
    return ring.path, middle


def spoil(path: str, *offsets: int) -> bytes:
    data = bytearray(Path(path).read_bytes())
    for offset in offsets:
        data[offset] ^= 1
    Path(path).write_bytes(data)
    return bytes(data)


def test_a_damaged_ring_of_a_run(store: StoreIdentity) -> None:
    """What is proved is read, what is lost is a gap with its sequences, and the ring lies in the run's `aside/`."""
    path, middle = dead_ring(store)
    data = spoil(path, HEADER_BYTES + middle + 50)
    assert drain_orphans(DISK, store, "/dev/shm") == 1
    assert not os.path.exists(path)
    run = sdk.open_store(store.path).run(RUN)
    assert list(run.series("x").step) == list(range(10))
    assert [(gap.count, gap.reason) for gap in run.gaps] == [(10, "ring damaged")]
    aside = os.path.join(run_path(store.path, RUN), "aside")
    (kept,) = os.listdir(aside)
    assert Path(aside, kept).read_bytes() == data
    assert drain_orphans(DISK, store, "/dev/shm") == 0


def test_a_ring_that_does_not_say_whose_it_is(store: StoreIdentity) -> None:
    """Both copies of its static part are damaged: it lies in the store's `aside/`, and no run has a record of it."""
    path, _ = dead_ring(store)
    data = spoil(path, STATIC_OFFSET + 20, STATIC_SECOND_OFFSET + 20)
    assert drain_orphans(DISK, store, "/dev/shm") == 1
    assert not os.path.exists(path)
    aside = os.path.join(store.path, "aside")
    (kept,) = os.listdir(aside)
    assert kept.startswith(os.path.basename(path))
    assert Path(aside, kept).read_bytes() == data


def test_it_is_copied_once(store: StoreIdentity) -> None:
    """A second time gives the same path; a copy that was interrupted is begun anew."""
    path, _ = dead_ring(store)
    lock = platform.open_shared(path)
    assert lock is not None
    kept = keep_ring(DISK, store, path, lock.descriptor, None)
    before = os.stat(kept).st_ino
    assert keep_ring(DISK, store, path, lock.descriptor, None) == kept
    assert os.stat(kept).st_ino == before
    os.rename(kept, kept + ".part")
    Path(kept + ".part").write_bytes(b"half")
    assert keep_ring(DISK, store, path, lock.descriptor, None) == kept
    assert os.listdir(os.path.dirname(kept)) == [os.path.basename(kept)]
    assert holds_records(lock.descriptor)
    lock.release()


def test_a_ring_that_never_held_a_record(store: StoreIdentity) -> None:
    """Its process died while making it: it is removed, and nothing is kept."""
    path, _ = dead_ring(store)
    Path(path).write_bytes(bytes(HEADER_BYTES))
    assert drain_orphans(DISK, store, "/dev/shm") == 1
    assert not os.path.exists(path)
    assert not os.path.exists(os.path.join(store.path, "aside"))


def test_a_ring_that_holds_more_than_a_block(store: StoreIdentity, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stored in several blocks, each with the steps that it holds."""
    monkeypatch.setattr("sdk._spool.BLOCK_BYTES", 200)
    path, _ = dead_ring(store)
    assert drain_orphans(DISK, store, "/dev/shm") == 1
    assert not os.path.exists(path)
    run = sdk.open_store(store.path).run(RUN)
    assert list(run.series("x").value) == list(range(20))
    assert run.step_max == 19
    (name,) = (n for n in os.listdir(run.directory) if n.endswith(".seg"))
    reader = SegmentReader(DISK, os.path.join(run.directory, name))
    blocks = [b for b in reader.blocks if b.kind == KIND_ROWS]
    reader.close()
    assert len(blocks) > 1
    assert sum(b.records for b in blocks) == 20
    assert all(b.stored_size <= 200 for b in blocks)
