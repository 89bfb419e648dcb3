"""Every state that a crash may leave on a disk: what was claimed is there, what is missing is reported.

A workload runs once on a disk that records (`sdk.files.recording`), and a witness notes what was claimed between two
operations. From the record, `tests.crash` builds what a crash after any operation may leave. There the product does what
it does after a crash: opens the store, mends, reads.

* a killed process: what was claimed `written` is there, all of it;
* power loss: what was claimed `synced` is there, all of it;
* after both: a hole below the last record that is there is reported, with its steps; nothing is there that was not logged;
  mending again changes nothing.

Cases go through the workloads in turn, in each through its operations, and at each operation through the kinds of loss.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from daemon.compact.work import compact_run
from daemon.store.recovery import Judge, mend_segments
from sdk import platform
from sdk._spool import Spool, drain_orphans
from sdk.errors import Error
from sdk.files import DISK, Files
from sdk.files.failing import ALL, FAULTS, FailingFiles
from sdk.files.recording import WRITE, Operation, RecordingFiles
from sdk.ids import hex_u64
from sdk.journal.appender import open_journal
from sdk.journal.format import CAPACITY_MIN
from sdk.journal.ring import Ring
from sdk.location import StoreIdentity, make_store, read_store
from sdk.segment.format import KIND_META
from sdk.segment.naming import RUNS, parse_segment
from sdk.segment.reader import SegmentReader
from sdk.wire.messages import Ack, Finish, Finished, Flush, Flushed, Message, Welcome
from sdk.wire.session import Span
from tests.crash import (
    Fate,
    Tree,
    build,
    by_chance,
    bytes_only,
    names_only,
    nothing,
    safe_from,
    torn,
    write_tree,
    zeros,
)  # fmt: skip
from tests.ingest_rig import Client, Rig
from tests.serving import RUN, rows, temporary_store
from tests.torture.harness import Result, chance, torture
from tests.witness import SYNCED, WRITTEN, Found, Name, Witness, look

_WORKLOADS = 25
_KINDS = 20
_LOCK = "1:1"
_NOBODY = 1 << 30  # no process has this number
# Whoever wrote before the crash is known to be dead: whoever mends holds the lock, and no process has that number.
DEAD_DAEMON = {
    "kind": "daemon", **platform.identity(), "lock": _LOCK, "stream": None, "pid": _NOBODY,
}  # fmt: skip
_FSYNC = next(fault for fault in FAULTS if fault.name == "fsync")


class Recorded(NamedTuple):
    """A workload that ran.

    Attributes:
        operations, known: As the disk recorded them.
        safe: Of each, how many must have been done for it to survive a power loss.
        store: The store's path below the recorded root.
    """

    operations: list[Operation]
    known: int
    safe: list[int]
    witness: Witness
    store: str


class Desk:
    """A workload at work: a store on a recording disk whose fsync may be told to fail, and a witness."""

    def __init__(self, root: str, source: random.Random) -> None:
        self.source = source
        self.faults = FailingFiles()
        self.files = RecordingFiles(root, self.faults)
        self.witness = Witness(lambda: len(self.files.operations))

    def recorded(self, store: str) -> Recorded:
        operations = self.files.operations
        known = self.files.known
        return Recorded(operations, known, safe_from(operations, known), self.witness, store)


class Trainer:
    """A client of a rig whose acks the witness hears."""

    def __init__(self, desk: Desk, rig: Rig, run: str, stream: int, stored: int = 0) -> None:
        self.desk, self.run, self.stream, self.last = desk, run, stream, stored
        self.client: Client = rig.client(stream, run)
        receive = self.client.connection.receive

        def heard() -> object:
            message = receive()
            if isinstance(message, (Ack, Flushed, Finished, Welcome)):
                desk.witness.claimed(run, stream, written=message.written, synced=message.synced)
            return message

        self.client.connection.receive = heard  # type: ignore[method-assign,assignment]
        self.client.hello(stored)

    def log(self) -> None:
        first, self.last = self.last + 1, self.last + self.desk.source.choice((1, 3, 10, 30))
        self.desk.witness.logged(self.run, self.stream, self.last)
        self.client.batch(first, self.last)
        self._ask(Flush(self.stream, self.last), Flushed)

    def finish(self) -> None:
        self._ask(Finish(self.stream, self.last), Finished)

    def _ask(self, message: Message, answer: type[Message]) -> None:
        """Waits for the answer; after a failed fsync the daemon writes nothing until the disk has forced something."""
        self.client.send(message)
        for _ in range(20):
            # Twice: within a tick, the barrier is answered before anything is written.
            heard = self.client.barrier() + self.client.barrier()
            if any(isinstance(one, answer) for one in heard):
                return
            self.client.rig.sync()
        raise AssertionError(f"no {answer.__name__}: {self.client.rig.said[-3:]}")


def _serve(desk: Desk, rig: Rig, trainers: list[Trainer], steps: int) -> None:
    """Trainers log in turn, and now and then segments are forced or begun anew."""
    for _ in range(steps):
        what = desk.source.random()
        trainer = desk.source.choice(trainers)
        if what < 0.7:
            trainer.log()
        elif what < 0.9:
            rig.sync()
            trainer.client.barrier()
        elif trainer.run in rig.ingest.writers:
            rig.ingest.writers[trainer.run].roll()


def _daemon(source: random.Random) -> Recorded:
    """A daemon serves some streams of one or two runs; its fsync may fail once, and it may end in order."""
    with temporary_store() as store:
        desk = Desk(store.path, source)
        rig = Rig(store, files=desk.files, origin=DEAD_DAEMON)
        try:
            runs = source.choice(((RUN,), (RUN, "b52e")))
            trainers = [Trainer(desk, rig, runs[n % len(runs)], 0x70 + n) for n in range(source.randint(1, 3))]
            if source.random() < 0.4:
                desk.faults.fail(_FSYNC, source.randint(1, 6))
            _serve(desk, rig, trainers, 14)
            if source.random() < 0.5:
                for trainer in trainers:
                    trainer.finish()
                rig.sync()
        finally:
            rig.close()
        return desk.recorded("")


def _successor(source: random.Random) -> Recorded:
    """A daemon is killed, the next one mends what it left and goes on with the same trainer."""
    with temporary_store() as store:
        desk = Desk(store.path, source)
        rig = Rig(store, files=desk.files, origin=DEAD_DAEMON)
        first = Trainer(desk, rig, RUN, 0x77)
        if source.random() < 0.3:
            desk.faults.fail(_FSYNC, source.randint(1, 6))
        _serve(desk, rig, [first], source.randint(0, 6))
        # The last of it nobody forced; the segment may even be sealed, which looks like safe and is not.
        first.log()
        if source.random() < 0.5 and RUN in rig.ingest.writers:
            rig.ingest.writers[RUN].roll()
        kill(rig)
        rig = Rig(store, files=desk.files, origin=DEAD_DAEMON)
        try:
            mend(store.path, desk.files, rig.writer_id)
            trainer = Trainer(desk, rig, RUN, 0x77, desk.witness.upto((RUN, 0x77), WRITTEN))
            _serve(desk, rig, [trainer], 6)
        finally:
            rig.close()
        return desk.recorded("")


def kill(rig: Rig) -> None:
    """The process ends: not one operation more."""
    rig.files.refuse(*ALL)
    rig.close()


def _spool(source: random.Random) -> Recorded:
    """A trainer makes the store and spools into it; no daemon ever comes."""
    root = tempfile.mkdtemp(prefix="stepd-test-")
    try:
        desk = Desk(root, source)
        name = source.choice(("store", os.path.join("a", "b", "store")))
        store = make_store(os.path.join(root, name), desk.files)
        if source.random() < 0.3:
            desk.faults.fail(_FSYNC, source.randint(1, 3))
        for stream in range(0x80, 0x80 + source.randint(1, 2)):
            _spool_one(desk, store, stream)
        return desk.recorded(name)
    finally:
        shutil.rmtree(root)


def _spool_one(desk: Desk, store: StoreIdentity, stream: int) -> None:
    origin = {**DEAD_DAEMON, "kind": "spool", "stream": hex_u64(stream)}
    spool = Spool(desk.files, store, RUN, stream, bytes_max=1 << 30, origin=origin)
    last = safe = 0
    for _ in range(desk.source.randint(3, 12)):
        first, last = last + 1, last + desk.source.choice((1, 5, 20))
        data = rows(first, last)
        desk.witness.logged(RUN, stream, last)
        spool.append(stream, Span(0, len(data), first, last, first - 1, last), [data], 0)
        if desk.source.random() < 0.3 and spool.seal(sync=desk.source.random() < 0.7) and spool.is_safe:
            safe = last
        desk.witness.claimed(RUN, stream, written=last, synced=safe)
    if spool.seal(sync=True) and spool.is_safe:
        desk.witness.claimed(RUN, stream, written=last, synced=last)


def _drained(source: random.Random) -> Recorded:
    """Rings of dead trainers are drained without a daemon; the rings are in memory, and gone with the power."""
    with temporary_store() as store, scratch() as memory:
        desk = Desk(store.path, source)
        for stream in range(0x90, 0x90 + source.randint(1, 3)):
            last = source.choice((1, 40, 200))
            ring = orphan(store, memory, last, stream)
            desk.witness.logged(RUN, stream, last)
            drain_orphans(desk.files, store, memory)
            if not os.path.exists(ring):
                desk.witness.claimed(RUN, stream, written=last, synced=last)
        return desk.recorded("")


def orphan(store: StoreIdentity, memory: str, count: int, stream: int = 0x77) -> str:
    """The ring of a trainer that logged `count` rows and died; its path."""
    identity = {"run": RUN, "store": store.id}
    ring, _ = Ring.create(memory, platform.store_digest(store.path), stream, CAPACITY_MIN, identity)
    assert ring.path is not None
    journal = open_journal(ring)
    for sequence in range(1, count + 1):
        journal.log({"loss": sequence / 4})
    ring.abandon()
    return ring.path


@functools.cache
def workload(number: int) -> Recorded:
    """The workload of this number, run once."""
    kinds: tuple[Callable[[random.Random], Recorded], ...] = (_daemon, _successor, _spool, _successor, _drained)
    return kinds[number % len(kinds)](chance("crash workload", number))


def mend(path: str, files: Files = DISK, writer: int = 1) -> int:
    """What a daemon does at its start; how many segments it mended. One without a header is left to `repair`."""
    results = list(mend_segments(files, path, Judge(lambda own: own == writer, _LOCK, lambda stream: False)))
    return sum(result is not None and result.result is not None for result in results)


@functools.cache
def compacted(number: int) -> Recorded:
    """A workload in which what a daemon wrote is compacted, joined and removed, while it goes on writing."""
    source = chance("crash compaction", number)
    with temporary_store() as store:
        desk = Desk(store.path, source)
        rig = Rig(store, files=desk.files, origin=DEAD_DAEMON)
        try:
            trainers = [Trainer(desk, rig, RUN, 0x70 + n) for n in range(source.randint(1, 2))]
            for _ in range(3):
                _serve(desk, rig, trainers, 5)
                rig.ingest.writers[RUN].roll()
                if source.random() < 0.5:
                    rig.sync()
                    trainers[0].client.barrier()
                compact(store.path, desk.files, chance=source)
        finally:
            rig.close()
        return desk.recorded("")


def compact(path: str, files: Files = DISK, *, chance: random.Random | None = None) -> None:
    """What the worker does: sealed rows become columns, and what was replaced goes (`chance`: or stays for now)."""
    kept_seconds = 60.0 if chance is not None and chance.random() < 0.3 else 0.0
    for run in os.listdir(os.path.join(path, RUNS)):
        compact_run(files, read_store(path), os.path.join(path, RUNS, run), kept_seconds=kept_seconds)


@torture(full=200_000, default=5_000, beside=True)
def crash_states(cases: Iterable[int]) -> Iterator[Result]:
    """Whatever a kill or a power loss leaves on the disk: what was claimed is there, what is missing is reported."""
    return states(cases, workload)


@torture(full=50_000, every=199, beside=True)
def compaction_crash_states(cases: Iterable[int]) -> Iterator[Result]:
    """The same while rows become columns: nothing that was claimed goes before what replaces it is safe."""
    return states(cases, compacted, then=compact)


def states(
    cases: Iterable[int], made: Callable[[int], Recorded], then: Callable[[str], None] | None = None
) -> Iterator[Result]:
    """Looks at one state for each case.

    Args:
        then: Done in the state after a look at it; what is found must not change by it.
    """
    known: dict[tuple[int, int], dict[Name, Found]] = {}
    for case in cases:
        recorded, done, fate, word = state(case, made)
        unsafe = [word == SYNCED and recorded.safe[index] > done for index in range(done)]
        operations = recorded.operations[:done]
        at = done
        if word == WRITTEN and fate is not None:
            unsafe, at = [*unsafe[:-1], True], done - 1
        tree = build(operations, unsafe, fate or (lambda operation: (operation,)))
        # Many cases come to the same state: it is looked at once.
        key = (case % _WORKLOADS, hash(frozenset(tree.items())))
        if key not in known:
            known[key] = aftermath(recorded, tree, then)
        claimed, lost = recorded.witness.check(known[key], word, at)
        yield Result(case, claimed, lost)


def state(case: int, made: Callable[[int], Recorded] = workload) -> tuple[Recorded, int, Fate | None, str]:
    """The workload of a case, how many operations were done, what became of the rest, and the claim that must hold."""
    recorded = made(case % _WORKLOADS)
    source = chance("crash state", case)
    count = len(recorded.operations) - recorded.known + 1
    done = recorded.known + (case // _WORKLOADS) % count
    kind = (case // _WORKLOADS // count) % _KINDS
    power: tuple[Fate, ...] = (nothing, names_only, bytes_only, zeros)
    last = recorded.operations[done - 1]
    if kind == 1:
        return recorded, done, None, WRITTEN
    if kind == 2 and done > recorded.known and last.kind == WRITE:
        size = source.choice((1, len(last.data) // 2, max(len(last.data) - 512, 0), len(last.data) - 1))
        return recorded, done, lambda operation: (torn(operation, size),), WRITTEN
    if 3 <= kind < 3 + len(power):
        return recorded, done, power[kind - 3], SYNCED
    return recorded, done, by_chance(source), SYNCED


def aftermath(recorded: Recorded, tree: Tree, then: Callable[[str], None] | None = None) -> dict[Name, Found]:
    """What is found after the crash, with the store opened and mended as it is then."""
    with scratch() as root:
        write_tree(tree, root)
        path = os.path.join(root, recorded.store)
        make_store(path)
        mend(path)
        assert mend(path) == 0, "mending again found something to do"
        assert not list(unsealed(path)), "a segment of the dead that nobody sealed"
        found = look(path, recorded.witness.names())
        if then is not None:
            then(path)
            assert look(path, recorded.witness.names()) == found, (
                "whoever went on after the crash changed what is there"
            )
        return found


def unsealed(path: str) -> Iterator[str]:
    """The segments of the dead that nobody sealed, drafts left out. One whose header is gone is for `repair`."""
    for directory, _, names in os.walk(os.path.join(path, RUNS)):
        for name in filter(parse_segment, names):
            with contextlib.suppress(Error):
                reader = SegmentReader(DISK, os.path.join(directory, name))
                is_headless = any(damage.start == 0 for damage in reader.damage)
                if not (reader.sealed or is_headless) and reader.blocks and reader.blocks[0].kind == KIND_META:
                    if reader.read_map(reader.blocks[0]).get("writer", {}).get("pid") == _NOBODY:
                        yield name
                reader.close()


@contextlib.contextmanager
def scratch() -> Iterator[str]:
    """An empty directory, in memory where that can be had."""
    memory = "/dev/shm"
    root = tempfile.mkdtemp(prefix="stepd-test-", dir=memory if os.access(memory, os.W_OK) else None)
    try:
        yield root
    finally:
        shutil.rmtree(root)
