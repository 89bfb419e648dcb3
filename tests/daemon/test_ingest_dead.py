"""daemon.ingest and the dead: rings of killed processes, and streams without a ring."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sdk import platform
from sdk.ids import hex_u64
from sdk.journal.appender import open_journal
from sdk.journal.drain import drain
from sdk.journal.format import CAPACITY_MIN, HEADER_BYTES, SUFFIX
from sdk.journal.ring import Ring
from sdk.location import StoreIdentity
from sdk.segment.format import KIND_GAP
from sdk.segment.naming import run_path
from sdk.wire.messages import (
    Flush,
    Flushed,
)
from tests.ingest_rig import STREAM, Rig, ingest_rig
from tests.serving import RUN


@pytest.fixture
def rig(store: StoreIdentity) -> Iterator[Rig]:
    with ingest_rig(store) as made:
        yield made


def trainer_with_ring(store: StoreIdentity, body: Callable[[Ring], None], stream: int = STREAM) -> tuple[int, str]:
    """A process of its own that made a ring, did `body` and waits to be killed: its pid and the ring's path."""
    digest = platform.store_digest(store.path)
    path = os.path.join(platform.shared_directory("/dev/shm"), f"{digest}-{hex_u64(stream)}{SUFFIX}")
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            ring, _ = Ring.create("/dev/shm", digest, stream, CAPACITY_MIN, {"run": RUN, "store": store.id})
            body(ring)
            os.write(writing, b"v" if ring.volatile else b"r")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    answer = os.read(reading, 1)
    os.close(reading)
    if answer != b"r":
        kill(pid)
        pytest.skip("no room for a ring in /dev/shm")
    return pid, path


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def log_rows(count: int, *, commit: bool | None = None) -> Callable[[Ring], None]:
    def body(ring: Ring) -> None:
        log = open_journal(ring).log
        for n in range(count):
            log({"loss": n / 4}, step=n if commit is False else None, commit=commit)

    return body


def test_the_ring_of_a_dead_trainer_is_drained(rig: Rig) -> None:
    """Killed by SIGKILL without a word to us: all its records are written, its segment sealed, its ring gone."""
    pid, path = trainer_with_ring(rig.store, log_rows(500))
    assert rig.look(), "a living one is seen, and left alone"
    assert rig.held.records == []
    kill(pid)
    assert not rig.look()
    assert rig.held.sequences(STREAM) == list(range(1, 501))
    assert not os.path.exists(path)
    assert rig.ingest.streams == {}
    assert rig.stats.drained == 1
    rig.sync()
    assert rig.held.unsealed == []
    assert not rig.look()
    assert rig.stats.drained == 1


def test_one_that_has_said_nothing_yet_is_read(rig: Rig) -> None:
    """What a living trainer appended before its first `log()` starts its sender is stored; its Hello goes on behind it, and
    what it sends again falls.
    """

    def body(ring: Ring) -> None:
        open_journal(ring).append_meta({"stream": {"kind": "main"}})

    pid, path = trainer_with_ring(rig.store, body)
    try:
        assert rig.look() and rig.held.records == []
        rig.now += 1.0  # its sender, if it had started, would have said Hello by now
        assert rig.look()
        rig.tick(2.0)
        assert rig.held.sequences(STREAM) == [1]
        state = rig.ingest.streams[STREAM]
        assert (state.run, state.pid, state.ring, state.has_spoken) == (RUN, pid, path, False)
        rig.now += 1.0
        assert rig.look()
        rig.tick(2.0)
        assert rig.held.sequences(STREAM) == [1], "nothing new, nothing written"
        assert rig.client().hello(ring=path, pid=pid).written == 1
        assert rig.ingest.streams[STREAM].has_spoken
    finally:
        kill(pid)
    rig.look()
    assert rig.held.sequences(STREAM) == [1]
    assert not os.path.exists(path)


def test_a_drain_goes_on_where_the_session_was(rig: Rig) -> None:
    """Some records written, some waiting here, some only in the ring: each is stored once."""
    pid, path = trainer_with_ring(rig.store, log_rows(40))
    records = drain(path).records
    size = len(records) // 40
    trainer = rig.client()
    trainer.hello(ring=path, pid=pid)
    trainer.batch(1, 10, records[: 10 * size])
    trainer.send(Flush(STREAM, 10))
    trainer.expect(Flushed)
    trainer.batch(11, 25, records[10 * size : 25 * size])
    trainer.barrier()
    kill(pid)
    rig.look()
    assert rig.held.sequences(STREAM) == list(range(1, 41))
    assert rig.held.covered(STREAM) == list(range(1, 41))


def test_a_drain_behind_a_spool_claims_no_more_than_it_has(rig: Rig) -> None:
    """The trainer stored 11 to 20 itself after the session broke: no block of ours says that it holds them."""

    def body(ring: Ring) -> None:
        journal = open_journal(ring)
        for _ in range(20):
            journal.log({"loss": 1.0})
        journal.release(journal.mark())
        for _ in range(10):
            journal.log({"loss": 2.0})

    pid, path = trainer_with_ring(rig.store, body)
    trainer = rig.client()
    trainer.hello(ring=path, pid=pid)
    trainer.batch(1, 10)
    trainer.barrier()
    kill(pid)
    rig.look()
    assert rig.held.sequences(STREAM) == [*range(1, 11), *range(21, 31)]
    assert rig.held.covered(STREAM) == rig.held.sequences(STREAM)


def test_refused_records_become_a_gap(rig: Rig) -> None:
    """A ring that was full says how many are missing and which steps they had."""
    pid, _ = trainer_with_ring(rig.store, log_rows(9000))
    kill(pid)
    rig.look()
    (gap,) = [(block, values) for block, values in rig.held.maps if block.kind == KIND_GAP]
    stored = len(rig.held.sequences(STREAM))
    assert gap[0].stream == STREAM
    assert gap[1]["count"] == 9000 - stored
    assert gap[1]["step_max"] == 8999


def test_a_dead_ring_waits_for_the_disk(rig: Rig) -> None:
    """While it refuses the ring stays; afterwards it is drained once."""
    pid, path = trainer_with_ring(rig.store, log_rows(20))
    kill(pid)
    rig.files.refuse("append")
    rig.look()
    rig.look()
    assert os.path.exists(path)
    assert rig.stats.drained == 0
    rig.files.allow()
    rig.now += 5
    rig.look()
    assert not os.path.exists(path)
    assert rig.held.sequences(STREAM) == list(range(1, 21))


def test_open_rows_of_the_dead_are_stored(rig: Rig) -> None:
    """A crash commits what was logged without commit."""
    pid, _ = trainer_with_ring(rig.store, log_rows(7, commit=False))
    kill(pid)
    rig.look()
    assert rig.held.sequences(STREAM) == [1, 2, 3, 4, 5, 6, 7]


def test_a_ring_of_another_shared_memory_is_found_by_its_session(rig: Rig, tmp_path: Any) -> None:
    """A trainer with another `shared_memory_dir` says in Hello where its ring is."""
    digest = platform.store_digest(rig.store.path)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            ring, _ = Ring.create(str(tmp_path), digest, STREAM, CAPACITY_MIN, {"run": RUN, "store": rig.store.id})
            log_rows(5)(ring)
            os.write(writing, (ring.path or "").encode())
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    path = os.read(reading, 4096).decode()
    os.close(reading)
    if not path:
        kill(pid)
        pytest.skip("no room for a ring there")
    rig.client().hello(ring=path, pid=pid)
    assert rig.look()
    kill(pid)
    rig.look()
    assert rig.held.sequences(STREAM) == [1, 2, 3, 4, 5]
    assert not os.path.exists(path)


@pytest.mark.parametrize("damage", ["garbage", "short", "empty", "directory", "link", "other store"])
def test_a_ring_that_cannot_be_read_is_set_aside(rig: Rig, damage: str) -> None:
    """It is named once, others are drained; one of ours is removed, and kept in `aside/` if it may have held a record."""
    digest = platform.store_digest(rig.store.path)
    path = os.path.join(platform.shared_directory("/dev/shm"), f"{digest}-{hex_u64(1)}{SUFFIX}")
    if damage == "directory":
        os.mkdir(path)
    elif damage == "link":
        os.symlink("/etc/passwd", path)
    elif damage == "other store":
        pid, _ = trainer_with_ring(rig.store._replace(id=bytes(16)), log_rows(3), 1)
        kill(pid)
    else:
        with open(path, "wb") as file:
            file.write({"garbage": os.urandom(HEADER_BYTES * 2), "short": b"\1" * 100, "empty": b""}[damage])
    pid, _ = trainer_with_ring(rig.store, log_rows(3))
    kill(pid)
    try:
        rig.look()
        rig.look()
        assert rig.held.sequences(STREAM) == [1, 2, 3]
        assert len([text for text in rig.said if path in text]) == (damage != "other store")
        assert os.path.lexists(path) == (damage in ("directory", "link", "other store"))
        aside = os.path.join(rig.store.path, "aside")
        kept = os.listdir(aside) if os.path.exists(aside) else []
        assert [name.startswith(os.path.basename(path)) for name in kept] == [True] * (damage in ("garbage", "short"))
    finally:
        if damage == "directory":
            os.rmdir(path)


def test_a_damaged_record_is_told_and_its_ring_is_kept(rig: Rig) -> None:
    """All others are stored, a GAP block names the one that is missing, and the ring's bytes lie in the run's `aside/`."""
    pid, path = trainer_with_ring(rig.store, log_rows(10))
    kill(pid)
    with open(path, "r+b") as file:
        file.seek(HEADER_BYTES + 5 * (len(drain(path).records) // 10))
        file.write(b"\xff\xff\xff\xff")
    with open(path, "rb") as file:
        damaged = file.read()
    rig.look()
    assert rig.held.sequences(STREAM) == [1, 2, 3, 4, 5, 7, 8, 9, 10]
    (gap,) = [values for block, values in rig.held.maps if block.kind == KIND_GAP]
    assert (gap["reason"], gap["count"], gap["first"], gap["last"]) == ("ring damaged", 1, 6, 6)
    assert not os.path.exists(path)
    aside = os.path.join(rig.held.directory, "aside")
    (kept,) = os.listdir(aside)
    assert kept.startswith(os.path.basename(path))
    with open(os.path.join(aside, kept), "rb") as file:
        assert file.read() == damaged


def test_a_damaged_ring_stays_until_it_is_kept(rig: Rig) -> None:
    """A disk that has no room for the copy: nothing is removed, nothing told twice; with room again it is as ever."""
    pid, path = trainer_with_ring(rig.store, log_rows(10))
    kill(pid)
    with open(path, "r+b") as file:
        file.seek(HEADER_BYTES + 5 * (len(drain(path).records) // 10))
        file.write(b"\xff\xff\xff\xff")
    os.makedirs(run_path(rig.store.path, RUN), exist_ok=True)
    blocker = os.path.join(run_path(rig.store.path, RUN), "aside")
    with open(blocker, "w"):
        pass
    rig.look()
    rig.look()
    assert os.path.exists(path)
    os.unlink(blocker)
    rig.look()
    assert not os.path.exists(path)
    assert rig.held.sequences(STREAM) == [1, 2, 3, 4, 5, 7, 8, 9, 10]
    assert len([block for block, _ in rig.held.maps if block.kind == KIND_GAP]) == 1


def test_a_ring_that_is_being_drained_stays_locked(rig: Rig) -> None:
    """A record lock falls with any close of the file: nothing may open and close it while it is drained."""
    pid, path = trainer_with_ring(rig.store, log_rows(10))
    kill(pid)
    lock = platform.open_shared(path)
    assert lock is not None
    assert drain(path, lock.descriptor).record_count == 10
    child = os.fork()
    if child == 0:
        os._exit(0 if platform.open_shared(path) is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    lock.release()


def test_a_dead_trainer_without_a_ring_is_forgotten(rig: Rig) -> None:
    """Its records in memory died with it; what came here is written, and its segment sealed."""
    trainer = rig.client()
    trainer.hello(pid=2**22 + 1)
    trainer.batch(1, 4)
    trainer.barrier()
    assert rig.look(), "a word a moment ago is a sign of life, also where its pid is not ours to see"
    rig.now += 11
    assert not rig.look()
    assert rig.ingest.streams == {}
    assert rig.held.sequences(STREAM) == [1, 2, 3, 4]
    rig.sync()
    assert rig.held.unsealed == []


def test_a_living_trainer_without_a_ring_is_kept(rig: Rig) -> None:
    """Silence is no death."""
    rig.client().hello()
    rig.now += 3600
    assert rig.look()
    assert list(rig.ingest.streams) == [STREAM]


def test_a_finished_ring_is_no_trouble(rig: Rig) -> None:
    """Between listing and looking its trainer finished: nothing is said."""
    trainer = rig.client()
    trainer.hello(ring=f"/dev/shm/{platform.store_digest(rig.store.path)}-{hex_u64(STREAM)}{SUFFIX}")
    rig.look()
    assert rig.said == []


@pytest.mark.parametrize("ring", ["/etc/passwd", "relative.ring", "\0", "\udc80", "/dev/zero", "x" * 5000])
def test_a_ring_path_of_a_stranger_is_not_opened(rig: Rig, ring: str) -> None:
    """Only what is named like a ring of this store is."""
    rig.client().hello(ring=ring)
    assert rig.look()
    assert rig.ingest.refused_by_stream() == {}


def test_refused_counts_of_the_living_are_read(rig: Rig) -> None:
    """`status` shows what a full ring has refused so far."""
    pid, path = trainer_with_ring(rig.store, log_rows(9000))
    rig.client().hello(ring=path, pid=pid)
    assert rig.ingest.refused_by_stream()[STREAM] > 1000
    kill(pid)


def test_a_ring_stays_locked_until_it_is_removed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever else looks at it while it is drained must take it for somebody's: a record lock ends with any close."""
    pid, path = trainer_with_ring(rig.store, lambda ring: open_journal(ring).log({"x": 1}))
    kill(pid)
    seen: list[bool] = []
    unlink = os.unlink

    def watched(name: Any, **options: Any) -> None:
        if name == path:
            child = os.fork()
            if child == 0:
                os._exit(platform.is_locked(path))
            seen.append(bool(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
        unlink(name, **options)

    monkeypatch.setattr(os, "unlink", watched)
    rig.look()
    assert seen == [True]
    assert not os.path.exists(path)
