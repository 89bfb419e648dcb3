"""daemon.server mends while it serves: what a killed trainer wrote itself is sealed and forced, step by step."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from daemon.lifecycle import take_store
from daemon.server import Server
from daemon.settings import DaemonSettings
from daemon.store.rewrite import sealed_media
from sdk import clock, platform
from sdk._spool import Spool
from sdk.files import DISK
from sdk.files.failing import FAULTS, FailingFiles
from sdk.ids import hex_u64
from sdk.journal.appender import open_journal
from sdk.journal.ring import Ring
from sdk.location import StoreIdentity
from sdk.record import BlobRef
from sdk.segment.blobs import stored_blobs
from sdk.segment.naming import SUSPECT_SUFFIX, run_path
from sdk.wire.messages import BATCH_HAS_PIECES
from sdk.wire.session import Span
from tests.daemon.test_ingest_dead import kill, trainer_with_ring
from tests.ingest_rig import STREAM
from tests.serving import RUN, held, rows, until

FSYNC = next(fault for fault in FAULTS if fault.name == "fsync")


class Serving:
    """A Server in this process whose ticks are ours."""

    def __init__(self, store: StoreIdentity) -> None:
        self.store = store
        self.files = FailingFiles()
        self.lock = take_store(store.path, "test")
        assert self.lock is not None
        self.server = Server(store, DaemonSettings(liveness_seconds=0.05), self.files)
        self.server.open()
        while self.server._mend_one():
            pass

    def look(self) -> None:
        """Looks for the dead, mends what is to be mended, and waits for what is being forced."""
        self.server._look_around(clock.monotonic())
        while self.server._mend_one():
            pass
        until(lambda: self.server.tick() is None and not self.server._ingest.forcing.syncer.outstanding, "the syncs")

    def close(self) -> None:
        self.files.allow()
        self.server._ingest.close()
        assert self.lock is not None
        self.lock.release()


@pytest.fixture
def serving(store: StoreIdentity) -> Iterator[Serving]:
    made = Serving(store)
    yield made
    made.close()


def spooling(ring: Ring, store: StoreIdentity) -> None:
    """A trainer that logged 5 records, wrote them to its spool and goes on: the spool is open."""
    journal = open_journal(ring)
    for _ in range(5):
        journal.log({"loss": 1.0})
    origin = {"kind": "spool", **platform.identity(), "stream": hex_u64(STREAM)}
    spool = Spool(DISK, store, RUN, STREAM, bytes_max=1 << 30, origin=origin)
    spool.append(STREAM, Span(0, 0, 1, 5, 0, 5), [rows(1, 5)], BATCH_HAS_PIECES)
    journal.release(journal.mark())


def test_the_spool_of_a_trainer_that_dies_while_we_serve_is_sealed(serving: Serving) -> None:
    """Not only at the next start of a daemon; while the trainer lives it is its own."""
    pid, _ = trainer_with_ring(serving.store, lambda ring: spooling(ring, serving.store))
    serving.look()
    (name,) = held(serving.store.path).unsealed
    kill(pid)
    serving.look()
    assert held(serving.store.path).unsealed == []
    assert held(serving.store.path).sequences(STREAM) == [1, 2, 3, 4, 5]
    assert os.path.join(run_path(serving.store.path, RUN), name) in serving.files.synced
    assert serving.server.status()["mended_segments"] == 1


def spooling_a_blob(ring: Ring, store: StoreIdentity) -> None:
    """A trainer that stored a large value itself; its file is open."""
    origin = {"kind": "spool", **platform.identity(), "stream": hex_u64(STREAM)}
    spool = Spool(DISK, store, RUN, STREAM, bytes_max=1 << 30, origin=origin)
    spool.append_blob(BlobRef(STREAM, 1, 5), b"bytes", {"media": "value"})
    open_journal(ring).log({"loss": 1.0})


def test_large_values_of_a_trainer_that_dies_while_we_serve_are_sealed_and_encoded(serving: Serving) -> None:
    """Its media segments are mended as its rows are, and the encoding worker is told."""
    serving.server._rewriter._not_before = float("inf")  # it is told, and starts later
    serving.server._is_store_known = True  # the first look would find what the trainer has open
    pid, _ = trainer_with_ring(serving.store, lambda ring: spooling_a_blob(ring, serving.store))
    serving.look()
    assert stored_blobs(DISK, run_path(serving.store.path, RUN)) == {(STREAM, 1)}
    assert not serving.server._rewriter.wanted
    kill(pid)
    serving.look()
    assert len(sealed_media(DISK, run_path(serving.store.path, RUN))) == 1
    assert serving.server._rewriter.wanted


def test_a_mended_segment_that_cannot_be_forced_is_marked(serving: Serving) -> None:
    """So that nobody asks again, hears that all is well, and claims what is in it."""
    pid, _ = trainer_with_ring(serving.store, lambda ring: spooling(ring, serving.store))
    kill(pid)
    serving.files.fail(FSYNC, forever=True)
    serving.look()
    marks = [n for n in os.listdir(run_path(serving.store.path, RUN)) if n.endswith(SUSPECT_SUFFIX)]
    assert len(marks) == 1
    assert serving.server.status()["sync_failures"] == 1
    assert held(serving.store.path).sequences(STREAM) == [1, 2, 3, 4, 5]


def test_a_stream_that_ended_costs_one_look(serving: Serving) -> None:
    """Nothing is remembered of it afterwards."""
    pid, _ = trainer_with_ring(serving.store, lambda ring: None)
    kill(pid)
    serving.look()
    assert serving.server._ingest.take_ended() is None
    assert not serving.server._mend_one()


def test_status_tells_of_losses(serving: Serving) -> None:
    """Records that a dead trainer was refused, by reason, and what had to be written again."""

    def body(ring: Ring) -> None:
        log = open_journal(ring).log
        for n in range(9000):
            log({"loss": n / 4})

    pid, _ = trainer_with_ring(serving.store, body)
    kill(pid)
    serving.look()
    status = serving.server.status()
    stored = len(held(serving.store.path).sequences(STREAM))
    assert status["gaps"] == {"ring full": 9000 - stored}
    assert status["rewritten_blocks"] == 0
