"""daemon.ingest and an fsync that fails: what was written is written again elsewhere, and nothing is claimed too early."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from daemon.ingest.streams import Base
from sdk import platform
from sdk.errors import NotFoundError
from sdk.files import DISK
from sdk.files.failing import FAULTS
from sdk.ids import hex_u64
from sdk.journal.appender import open_journal
from sdk.journal.drain import drain
from sdk.journal.format import CAPACITY_MIN
from sdk.journal.ring import Ring
from sdk.location import StoreIdentity
from sdk.reader.run import Run
from sdk.reader.store import open_store
from sdk.segment.format import KIND_GAP, KIND_META, FileHeader
from sdk.segment.naming import SUSPECT_SUFFIX, SegmentName, format_segment, run_path
from sdk.segment.writer import SegmentWriter
from sdk.wire.messages import Ack, Flush, Flushed
from tests.daemon.test_ingest_dead import kill, trainer_with_ring
from tests.ingest_rig import STREAM, Client, Rig, ingest_rig
from tests.serving import RUN, rows, until

FSYNC = next(fault for fault in FAULTS if fault.name == "fsync")
LOST = next(fault for fault in FAULTS if fault.name == "fsync and the pages are gone")


@pytest.fixture
def rig(store: StoreIdentity) -> Iterator[Rig]:
    with ingest_rig(store) as made:
        yield made


def greeted(rig: Rig, stream: int = STREAM, **hello: Any) -> Client:
    trainer = rig.client(stream)
    trainer.hello(**hello)
    return trainer


def store_rows(trainer: Client, first: int, last: int, records: bytes | None = None) -> None:
    trainer.batch(first, last, records)
    trainer.send(Flush(trainer.stream, last))
    trainer.expect(Flushed)


def synced(rig: Rig, stream: int = STREAM) -> int:
    return rig.ingest.streams[stream].inbox.synced


def recovered(rig: Rig) -> None:
    """Until what failed is safe again."""
    until(lambda: rig.tick(0.5) is None or not rig.ingest.forcing._recoveries, "the end of the recovery")


def marks(rig: Rig) -> list[str]:
    return [name for name in os.listdir(run_path(rig.store.path, RUN)) if name.endswith(SUSPECT_SUFFIX)]


def read(rig: Rig) -> Run:
    return open_store(rig.store.path).run(RUN)


def test_after_a_failed_fsync_everything_is_written_again_and_claimed(rig: Rig) -> None:
    """In another segment; the one that failed is asked once, stays where it is, and its blocks are there twice."""
    trainer = greeted(rig)
    store_rows(trainer, 1, 5)
    rig.sync()
    assert synced(rig) == 5
    store_rows(trainer, 6, 9)
    rig.files.fail(FSYNC)
    rig.now += 60
    until(lambda: rig.tick() is None or rig.stats.sync_failures, "the failure")
    suspect = rig.files.synced[-1]
    assert synced(rig) == 5
    assert "will be written again" in rig.said[-1]
    recovered(rig)
    assert synced(rig) == 9
    assert rig.files.synced.count(suspect) == 2, "once when all was well, once when it failed"
    assert rig.files.synced[-1] != suspect
    assert (rig.stats.sync_failures, rig.stats.rewritten_blocks, dict(rig.stats.gaps)) == (1, 1, {})
    assert os.path.exists(suspect)
    assert marks(rig) == []
    store_rows(trainer, 10, 12)
    rig.sync()
    assert synced(rig) == 12
    assert rig.held.covered(STREAM) == sorted([*range(1, 13), *range(6, 10)])
    assert read(rig).gaps == []


def test_a_trainer_is_told_when_it_is_safe_again(rig: Rig) -> None:
    """Without asking, as after any sync."""
    trainer = greeted(rig)
    store_rows(trainer, 1, 5)
    rig.files.fail(FSYNC)
    rig.now += 60
    until(lambda: trainer.expect(Ack).synced == 5, "the ack")


def ring_of(store: StoreIdentity, count: int, release: int) -> tuple[int, str]:
    """A living trainer whose ring holds `count` records, of which the first `release` were released: pid and path."""

    def body(ring: Ring) -> None:
        journal = open_journal(ring)
        for n in range(count):
            journal.log({"loss": n / 4})
            if n + 1 == release:
                journal.release(journal.mark())

    return trainer_with_ring(store, body)


def test_what_the_pages_lost_comes_from_the_ring(rig: Rig) -> None:
    """The trainer was told that it is written and released it; the bytes are still there."""
    pid, path = ring_of(rig.store, 40, 0)
    records = drain(path).records
    kill(pid)
    os.unlink(path)
    pid, path = ring_of(rig.store, 40, 40)
    trainer = greeted(rig, ring=path, pid=pid)
    store_rows(trainer, 1, 40, records)
    rig.files.fail(LOST)
    rig.now += 60
    until(lambda: rig.tick() is None or rig.stats.sync_failures, "the failure")
    recovered(rig)
    kill(pid)
    assert synced(rig) == 40
    assert (rig.stats.rewritten_blocks, dict(rig.stats.gaps)) == (1, {})
    run = read(rig)
    assert list(run.series("loss").step) == list(range(40))
    assert run.gaps == []


def test_what_nobody_has_is_a_gap_and_synced_goes_on(rig: Rig) -> None:
    """Counted in status, exact in the reader, and later records are claimed as if nothing had been."""
    trainer = greeted(rig)
    store_rows(trainer, 1, 5)
    rig.sync()
    store_rows(trainer, 6, 9)
    rig.files.fail(LOST)
    rig.now += 60
    until(lambda: rig.tick() is None or rig.stats.sync_failures, "the failure")
    recovered(rig)
    assert dict(rig.stats.gaps) == {"fsync failed": 4}
    assert "4 records" in rig.stats.last_error
    store_rows(trainer, 10, 12)
    rig.sync()
    assert synced(rig) == 12
    run = read(rig)
    assert list(run.series("loss").step) == [0, 1, 2, 3, 4, 9, 10, 11]
    (gap,) = run.gaps
    assert (gap.count, gap.first, gap.last, gap.step_min, gap.step_max, gap.reason) == (4, 6, 9, 5, 8, "fsync failed")


def test_a_gap_block_is_not_lost_with_its_pages(rig: Rig) -> None:
    """What was refused is told again from memory."""
    trainer = greeted(rig)
    store_rows(trainer, 1, 2)
    rig.ingest.writing.writer(RUN).append_gap(STREAM, {"episode": 1, "count": 7, "reason": "ring full"})
    rig.files.fail(LOST)
    rig.now += 60
    until(lambda: rig.tick() is None or rig.stats.sync_failures, "the failure")
    recovered(rig)
    run = read(rig)
    list(run.rows())
    assert sorted((gap.reason, gap.count) for gap in run.gaps) == [("fsync failed", 2), ("ring full", 7)]


def test_a_directory_that_cannot_be_forced_counts_as_well(rig: Rig) -> None:
    """A segment without its name is as lost as its bytes."""
    trainer = greeted(rig)
    store_rows(trainer, 1, 5)
    rig.files.refuse("sync_directory")
    rig.now += 60
    until(lambda: rig.tick() is None or rig.stats.sync_failures, "the failure")
    rig.files.allow()
    recovered(rig)
    assert synced(rig) == 5
    assert rig.held.covered(STREAM) == sorted([*range(1, 6)] * 2)


def test_a_disk_that_fails_for_ever_is_asked_ever_less(rig: Rig) -> None:
    """Nothing is acked, so the ring and the spool take over; nothing spins, and no file is left by the trials."""
    trainer = greeted(rig)
    store_rows(trainer, 1, 5)
    rig.files.refuse("sync")
    rig.now += 60
    until(lambda: rig.tick() is None or rig.stats.sync_failures > 1, "the first trial's end")
    files = sorted(os.listdir(run_path(rig.store.path, RUN)))
    asked = len(rig.files.synced)
    trainer.batch(6, 9)
    trainer.barrier()
    for _ in range(600):  # ten minutes
        rig.tick(1.0)
        until(lambda: not rig.ingest.forcing.syncer.outstanding or rig.tick() is None, "an answer")
        rig.tick()
    assert 10 <= len(rig.files.synced) - asked <= 20
    assert sorted(os.listdir(run_path(rig.store.path, RUN))) == files
    assert rig.ingest.next_deadline(rig.now) > 0.1
    trainer.batch(10, 10)
    ack = [message for message in trainer.barrier() if isinstance(message, Ack)][-1]
    assert (ack.written, ack.synced) == (5, 0)
    assert ack.trouble, "the trainer is told why"
    rig.files.allow()
    rig.now += 60
    recovered(rig)
    until(lambda: rig.tick(1.0) is None or rig.ingest.streams[STREAM].inbox.synced == 10, "all of it")
    assert rig.held.covered(STREAM) == sorted([*range(1, 6), *range(1, 6), *range(6, 11)])


def test_other_runs_go_on_meanwhile(rig: Rig) -> None:
    """One run's trouble is not another's."""
    trainer = greeted(rig)
    store_rows(trainer, 1, 5)
    rig.files.fail(FSYNC, forever=True)
    rig.now += 60
    until(lambda: rig.tick() is None or rig.stats.sync_failures > 1, "the first trial's end")
    other = rig.client(9, "other")
    other.hello()
    store_rows(other, 1, 3)
    assert rig.ingest.streams[9].inbox.written == 3


def test_a_segment_that_rolled_while_its_fsync_failed_is_not_asked_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its second sync was asked for before the first one's answer: it must not be done, and claims nothing."""
    trainer = greeted(rig)
    store_rows(trainer, 1, 5)
    gate = threading.Event()
    real: Any = SegmentWriter.sync
    monkeypatch.setattr(SegmentWriter, "sync", lambda self: (gate.wait(20), real(self))[1])
    rig.files.fail(FSYNC)
    rig.tick(60.0)
    rig.ingest.writers[RUN].roll()
    rig.tick()
    assert rig.ingest.forcing.syncer.outstanding == 2
    gate.set()
    until(lambda: rig.tick() is None or rig.stats.sync_failures, "the failure")
    suspect = rig.files.synced[0]
    recovered(rig)
    assert rig.files.synced.count(suspect) == 1
    assert rig.stats.sync_failures == 1
    assert synced(rig) == 5


def test_a_sync_of_a_later_segment_claims_nothing_for_an_earlier_one(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was asked for before the earlier one failed, and comes back good."""
    trainer = greeted(rig)
    store_rows(trainer, 1, 5)
    claims: list[int] = []
    gate = threading.Event()
    real: Any = SegmentWriter.sync
    monkeypatch.setattr(SegmentWriter, "sync", lambda self: (gate.wait(20), real(self))[1])
    rig.files.fail(FSYNC)
    rig.ingest.writers[RUN].roll()
    rig.tick()
    store_rows(trainer, 6, 9)
    rig.ingest.writers[RUN].roll()
    rig.tick()
    assert rig.ingest.forcing.syncer.outstanding == 2
    gate.set()

    def look() -> bool:
        rig.tick()
        claims.append(synced(rig))
        return not rig.ingest.forcing._recoveries and rig.stats.rewritten_blocks > 0

    until(look, "the end")
    assert set(claims) == {0, 9}


def test_a_run_whose_trainer_left_is_made_safe_all_the_same(rig: Rig) -> None:
    """Its writer is forgotten only then."""
    trainer = greeted(rig)
    store_rows(trainer, 1, 5)
    rig.files.fail(FSYNC)
    rig.ingest.writing.forget(STREAM, rig.ingest.streams[STREAM])
    rig.now += 60
    until(lambda: rig.tick() is None or rig.stats.sync_failures, "the failure")
    until(lambda: rig.tick(0.5) is None or not rig.ingest.writers, "the writer's end")
    assert rig.ingest.forcing._recoveries == {}
    assert rig.held.covered(STREAM) == sorted([*range(1, 6)] * 2)
    assert rig.held.unsealed == []
    assert marks(rig) == []


def test_writers_are_forgotten_when_their_runs_are_safe(rig: Rig) -> None:
    """A daemon that serves a thousand runs one after another keeps nothing of them; one that comes back begins anew."""
    for n in range(3):
        trainer = greeted(rig, n + 1)
        store_rows(trainer, 1, 5)
        rig.ingest.writing.forget(n + 1, rig.ingest.streams[n + 1])
        until(lambda: rig.tick(1.0) is None or not rig.ingest.writers, "the writer's end")
    assert rig.held.unsealed == []
    assert [rig.held.sequences(n) for n in (1, 2, 3)] == [[1, 2, 3, 4, 5]] * 3


@pytest.mark.parametrize("seed", range(25))
def test_whatever_fails_and_when_nothing_is_claimed_that_is_not_there(store: StoreIdentity, seed: int) -> None:
    """Random failures, some of which lose the pages, in any state; two runs, streams that come and go, segments that roll.

    At the end every record is there or in a gap, each gap is counted, and `synced` never fell.
    """
    print(f"seed {seed}")
    source = random.Random(seed)
    with ingest_rig(store) as rig:
        logged: dict[int, int] = {}
        clients: dict[int, Client] = {}
        claimed: dict[int, int] = {}

        def look() -> None:
            for stream, state in rig.ingest.streams.items():
                assert claimed.get(stream, 0) <= state.inbox.synced <= state.inbox.written
                claimed[stream] = state.inbox.synced

        for _ in range(source.randint(10, 60)):
            chance = source.random()
            if chance < 0.15 and len(clients) < 5:
                stream = len(logged) + 1
                clients[stream] = rig.client(stream, f"run{stream % 2}")
                clients[stream].hello()
                logged[stream] = 0
            elif chance < 0.5 and clients:
                stream, client = source.choice(list(clients.items()))
                count = source.randint(1, 30)
                client.batch(logged[stream] + 1, logged[stream] + count)
                client.barrier()
                logged[stream] += count
            elif chance < 0.6 and rig.ingest.writers:
                source.choice(list(rig.ingest.writers.values())).roll()
            elif chance < 0.65 and clients:
                stream = source.choice(list(clients))
                if not rig.ingest.streams[stream].waiting:
                    rig.ingest.writing.forget(stream, rig.ingest.streams[stream])
                    del clients[stream]
            elif chance < 0.75:
                rig.files.fail(source.choice([FSYNC, LOST]), source.randint(1, 3))
            rig.tick(source.choice([0.0, 0.3, 2.0]))
            if source.random() < 0.5:
                until(lambda: rig.tick() is None or not rig.ingest.forcing.syncer.outstanding, "the syncs")
            look()
        rig.files.allow()
        recovered(rig)
        for _ in range(3):
            rig.sync()
        look()
        for stream, state in rig.ingest.streams.items():
            assert state.inbox.synced == logged[stream], f"stream {stream} of {logged}"
        missing = 0
        for name in {f"run{stream % 2}" for stream, count in logged.items() if count}:
            run = open_store(store.path).run(name)
            found = []
            for info in run.streams:
                with contextlib.suppress(NotFoundError):
                    found += run.series("loss", stream=info.id).step.tolist()
            lost = sum(gap.count for gap in run.gaps)
            assert len(found) + lost == sum(n for stream, n in logged.items() if f"run{stream % 2}" == name)
            missing += lost
        assert missing == rig.stats.gaps["fsync failed"]
        assert not [n for run in ("run0", "run1") for n in _names(store, run) if n.endswith(SUSPECT_SUFFIX)]


def _names(store: StoreIdentity, run: str) -> list[str]:
    return [name for name, _, _ in DISK.entries(run_path(store.path, run))]


# -- records that others wrote -------------------------------------------------------------------------------------------


def segment_of_another(rig: Rig, body: Callable[[SegmentWriter], None] = lambda segment: None) -> str:
    """A sealed segment of a daemon that died before it forced it; its path."""
    directory = run_path(rig.store.path, RUN)
    DISK.make_directory(directory)
    path = os.path.join(directory, format_segment(SegmentName(0xDEAD, 0)))
    segment = SegmentWriter.create(DISK, path, FileHeader(rig.store.id, 0xDEAD, 0, 0))
    segment.append_map(KIND_META, {"run": RUN, "writer": {}})
    segment.append(1, rows(1, 5), stream=STREAM, first=1, last=5, records=5, step_max=4)
    body(segment)
    segment.seal()
    return path


def test_what_others_wrote_is_forced_before_more_is_claimed(rig: Rig) -> None:
    """A successor says `synced` for everything up to a sequence; its own segments are not all of that."""
    path = segment_of_another(rig)
    trainer = greeted(rig, stored=5)
    store_rows(trainer, 6, 9)
    rig.sync()
    until(lambda: rig.tick(1.0) is None or synced(rig) == 9, "the claim")
    own = [name for name in rig.files.synced if name != path]
    assert rig.files.synced.index(path) < len(rig.files.synced)
    assert rig.files.synced.count(path) == 1
    assert own


def test_what_others_wrote_and_cannot_be_forced_is_never_claimed(rig: Rig) -> None:
    """Nor by whoever comes after us: the segment is marked, and not asked again."""
    path = segment_of_another(rig)
    rig.files.fail(FSYNC)
    trainer = greeted(rig, stored=5)
    until(lambda: rig.tick() is None or rig.stats.sync_failures, "the failure")
    store_rows(trainer, 6, 9)
    for _ in range(3):
        rig.sync()
    assert synced(rig) == 0
    assert os.path.exists(path + SUSPECT_SUFFIX)
    rig.ingest.writing.forget(STREAM, rig.ingest.streams[STREAM])
    trainer.hello(stored=9)
    rig.sync()
    assert synced(rig) == 0
    assert rig.files.synced.count(path) == 1
    assert "stays where it is" in rig.said[-1]


def test_a_spool_that_grew_meanwhile_is_forced_as_well(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """While older segments are forced the trainer greets again with more: the first answer does not cover that."""
    segment_of_another(rig)
    gate = threading.Semaphore(0)
    real: Any = rig.ingest.forcing.syncer._force_others
    monkeypatch.setattr(rig.ingest.forcing.syncer, "_force_others", lambda job: (gate.acquire(timeout=20), real(job)))
    trainer = greeted(rig, stored=3)
    assert rig.ingest.forcing.syncer.outstanding == 1
    trainer.hello(stored=5)
    assert rig.ingest.forcing.syncer.outstanding == 2
    gate.release()
    until(lambda: rig.tick() is None or rig.ingest.forcing.syncer.outstanding == 1, "the first answer")
    assert rig.ingest.streams[STREAM].base is Base.ASKED
    gate.release()
    until(lambda: rig.tick() is None or rig.ingest.streams[STREAM].base is Base.FORCED, "the second")
    assert rig.ingest.forcing._asked == {}


def test_the_first_segment_says_what_others_stored(rig: Rig) -> None:
    """A CHECKPOINT, so that a reader can see that an earlier segment is missing."""
    trainer = greeted(rig, stored=5)
    store_rows(trainer, 6, 9)
    (gap,) = read(rig).gaps
    assert (gap.first, gap.last) == (1, 5)
    assert KIND_GAP not in {block.kind for _, block in rig.held.blocks}


# -- rings without a name ------------------------------------------------------------------------------------------------


def test_a_ring_that_lost_its_name_is_drained_all_the_same(rig: Rig) -> None:
    """A logout removed it (RemoveIPC) while its trainer lived; when that dies its records are stored."""
    pid, path = ring_of(rig.store, 30, 0)
    rig.client().hello(ring=path, pid=pid)
    os.unlink(path)
    rig.now += 60
    assert rig.look(), "its lock says that it lives"
    assert STREAM in rig.ingest.streams
    kill(pid)
    assert not rig.look()
    assert rig.held.sequences(STREAM) == list(range(1, 31))
    assert rig.ingest.streams == {}


def test_a_stream_that_ended_through_its_spool_is_forgotten(rig: Rig) -> None:
    """Its process goes on without a ring; it said no Finish to us."""
    digest = platform.store_digest(rig.store.path)

    def body(ring: Ring) -> None:
        assert ring.path is not None
        os.rename(ring.path, ring.path + ".kept")

    pid, path = trainer_with_ring(rig.store, body)
    os.rename(path + ".kept", path)
    rig.client().hello(ring=path, pid=os.getpid())
    kill(pid)
    os.unlink(path)
    assert not rig.look()
    assert rig.ingest.streams == {}
    assert path.endswith(hex_u64(STREAM) + ".ring")
    assert digest in path


def test_descriptors_of_rings_are_closed(rig: Rig) -> None:
    """One for each stream that is served, none for those that were forgotten or greet again."""
    pid, path = ring_of(rig.store, 3, 0)
    trainer = rig.client()
    trainer.hello(ring=path, pid=pid)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        trainer.hello(ring=path, pid=pid)
    assert len(os.listdir("/proc/self/fd")) == before
    trainer.hello(ring="", pid=pid)
    assert len(os.listdir("/proc/self/fd")) == before - 1
    trainer.hello(ring=path, pid=pid)
    kill(pid)
    rig.look()
    assert rig.ingest.streams == {}
    assert len([name for name in os.listdir("/proc/self/fd") if _leads_to(name, path)]) == 0


def _leads_to(name: str, path: str) -> bool:
    """Whether a descriptor is of this file, which may have been removed. Rings of other tests may wait for the collector."""
    try:
        return os.readlink(f"/proc/self/fd/{name}").startswith(path)
    except OSError:
        return False


def test_the_ring_of_our_own_process_is_not_opened(rig: Rig) -> None:
    """Closing it would drop its trainer's lock."""
    digest = platform.store_digest(rig.store.path)
    ring, _ = Ring.create("/dev/shm", digest, STREAM, CAPACITY_MIN, {"run": RUN, "store": rig.store.id})
    if ring.path is None:
        pytest.skip("no room for a ring in /dev/shm")
    rig.client().hello(ring=ring.path)
    assert rig.ingest.streams[STREAM].watched is None
    assert platform.is_locked(ring.path)
    ring.close()
