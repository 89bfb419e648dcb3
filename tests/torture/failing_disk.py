"""A disk whose N-th operation fails: nobody who must not hears of it, what is claimed is true, and then it goes on.

Each workload runs with each fault of `sdk.files.failing`, once and for ever, at its first, second, … operation that can
meet it, until it runs through without: SQLite's loop. Then the disk is well again, and everything that was logged gets to
where it belongs.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from daemon.settings import DaemonSettings
from sdk import clock
from sdk._sender import Sender
from sdk._spool import Spool, drain_orphans
from sdk.errors import Error, StoreError
from sdk.files import DISK
from sdk.files.failing import FAULTS, LOST, FailingFiles, Fault
from sdk.journal.appender import open_journal
from sdk.journal.format import CAPACITY_MIN
from sdk.journal.ring import Ring
from sdk.location import StoreIdentity, make_store
from sdk.segment.format import FileHeader
from sdk.segment.naming import RUNS, STORE_FILE, SegmentName, format_segment, run_path
from sdk.segment.writer import SegmentWriter
from sdk.settings import Settings
from sdk.wire.messages import Ack, Finish, Finished, Flushed, Reject, Welcome
from sdk.wire.session import Span
from tests.ingest_rig import Client, Rig
from tests.serving import RUN, rows, temporary_store
from tests.torture.crash_states import DEAD_DAEMON, mend, orphan, scratch
from tests.torture.harness import Result, torture
from tests.witness import SYNCED, WRITTEN, Witness, look

_NEVER = 1 << 60
_STREAM = 0x77


class Bench:
    """Where the workloads run: a scratch directory, and one daemon for all cases, each with a run of its own."""

    def __init__(self, root: str, store: StoreIdentity) -> None:
        self.root = root
        self.files = FailingFiles()
        self.rig = Rig(store, DaemonSettings())
        self._count = 0

    def fresh(self) -> str:
        """The name of something that no case used before."""
        self._count += 1
        return f"n{self._count}"

    def path(self) -> str:
        return os.path.join(self.root, self.fresh())


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    """A bench that is cleared away."""
    with scratch() as root, temporary_store() as store:
        made = Bench(root, store)
        try:
            yield made
        finally:
            made.rig.files.allow()
            made.rig.close()


class Trouble(NamedTuple):
    """What is to go wrong: the `at`-th operation that can meet `fault`, once or for ever."""

    fault: Fault
    at: int
    forever: bool

    @property
    def loses(self) -> bool:
        """Whether bytes that were there are gone: what was only written may then be lost, but not in silence."""
        return self.fault.effect == LOST

    def begin(self, files: FailingFiles) -> None:
        files.fail(self.fault, self.at, forever=self.forever)


# -- workloads: each returns how many records it had accepted, how many of them are in gaps, and how many operations met it


class Outcome(NamedTuple):
    operations: int
    accepted: int = 0
    lost: int = 0


def _made(bench: Bench, trouble: Trouble) -> Outcome:
    """A store is made: it is, or a StoreError says why not, and the next who tries makes it."""
    files, path = bench.files, os.path.join(bench.path(), "store")
    trouble.begin(files)
    found = None
    with contextlib.suppress(StoreError):
        found = make_store(path, files)
    files.allow()
    made = make_store(path, files)
    assert found is None or found == made, "a store that was there got another id"
    left = set(os.listdir(path)) - {RUNS, STORE_FILE}
    may_stay = trouble.forever or "remove" in trouble.fault.operations
    assert not left or may_stay, f"drafts are left: {left}"
    return Outcome(files.count)


def _spooled(bench: Bench, trouble: Trouble) -> Outcome:
    """A spool: what it refuses is not in it, what it took is there once, and `is_safe` is never said in vain."""
    files = bench.files
    store = make_store(bench.path())
    spool = Spool(files, store, RUN, _STREAM, bytes_max=1 << 30, origin=DEAD_DAEMON)
    witness = Witness()
    trouble.begin(files)
    last = 0
    for turn in range(8):
        if turn == 6:
            files.allow()
        data = rows(last + 1, last + 4)
        witness.logged(RUN, _STREAM, last + 4)
        with contextlib.suppress(OSError):
            spool.append(_STREAM, Span(0, len(data), last + 1, last + 4, last, last + 4), [data], 0)
            last += 4
        if turn % 3 == 2 and spool.seal(sync=turn != 2) and spool.is_safe:
            witness.claimed(RUN, _STREAM, written=last, synced=last)
    if not trouble.loses:
        witness.claimed(RUN, _STREAM, written=last, synced=0)
    spool.seal(sync=True)
    assert last >= 8, "a disk that is well takes what it is given"
    found = look(store.path, witness.names())
    return Outcome(files.count, *witness.check(found, WRITTEN))


def _sent(bench: Bench, trouble: Trouble) -> Outcome:
    """A trainer without a daemon: its sender lives through everything, and `finish` says where the records are."""
    files = bench.files
    store = make_store(bench.path())
    journal = open_journal(Ring.private(_STREAM, {"run": RUN, "store": store.id}, CAPACITY_MIN))
    sender = Sender(journal, store, RUN, _STREAM, Settings(autostart=False), "0.1.0")
    sender._spool._files = files
    witness = Witness()
    trouble.begin(files)
    now, last = clock.monotonic(), 0
    for turn in range(4):
        for _ in range(5):
            last += 1
            journal.log({"loss": last / 4})
        sender.wake_once(now + 5.0 * (turn + 1))
        witness.claimed(RUN, _STREAM, written=0 if trouble.loses else sender.state().stored, synced=0)
    witness.logged(RUN, _STREAM, last)
    files.allow()
    state = sender.finish(1.0)
    assert (state.stored, state.ended_in) == (last, "spool")
    witness.claimed(RUN, _STREAM, written=last, synced=state.synced)
    return Outcome(files.count, *witness.check(look(store.path, witness.names()), WRITTEN))


def _drained(bench: Bench, trouble: Trouble) -> Outcome:
    """The ring of a dead trainer: it is removed when its records are safe elsewhere, and not before."""
    files = bench.files
    store = make_store(bench.path())
    ring = orphan(store, bench.root, 12)
    witness = Witness()
    witness.logged(RUN, _STREAM, 12)
    trouble.begin(files)
    for _ in range(2):
        if drain_orphans(files, store, bench.root):
            witness.claimed(RUN, _STREAM, written=12, synced=12)
            break
        files.allow()
    assert not os.path.exists(ring)
    files.allow()
    return Outcome(files.count, *witness.check(look(store.path, witness.names()), SYNCED))


def _segment(store: StoreIdentity, number: int, sealed: bool) -> None:
    """A segment of three blocks, by a daemon that is dead; one that is not sealed ends in half a block."""
    directory = run_path(store.path, RUN)
    DISK.make_directory(directory)
    path = os.path.join(directory, format_segment(SegmentName(9, number)))
    header = FileHeader(store.id, 9, number, 1)
    writer = SegmentWriter.create(DISK, path, header, first_block_number=number * 10)
    writer.append_map(5, {"run": RUN, "writer": DEAD_DAEMON})
    for first in range(number * 20 + 1, number * 20 + 20, 10):
        data, last = rows(first, first + 9), first + 9
        writer.append(
            1, data, stream=_STREAM, first=first, last=last, records=10, step_min=first - 1, step_max=last - 1
        )
    if sealed:
        writer.seal()
    else:
        writer.close()
        with open(path, "ab") as file:
            file.write(b"half a block" * 9)


def _mended(bench: Bench, trouble: Trouble) -> Outcome:
    """Two segments of a killed daemon: mending takes what the disk gives, and the next look finds the rest."""
    files = bench.files
    store = make_store(bench.path())
    _segment(store, 0, sealed=False)
    _segment(store, 5, sealed=False)
    trouble.begin(files)
    with contextlib.suppress(OSError):  # the list of runs or of segments cannot be had
        mend(store.path, files)
    operations = files.count
    files.allow()
    mend(store.path, files)
    found = look(store.path, [(RUN, _STREAM)])[RUN, _STREAM]
    assert found.sequences == {*range(1, 21), *range(101, 121)}
    return Outcome(operations, 40)


def _read(bench: Bench, trouble: Trouble) -> Outcome:
    """A reader: what the disk gives is right, what it does not give is damage or an error of ours."""
    files = bench.files
    store = make_store(bench.path())
    _segment(store, 0, sealed=True)
    _segment(store, 1, sealed=False)
    trouble.begin(files)
    with contextlib.suppress(Error):
        found = look(store.path, [(RUN, _STREAM)], files)
        assert found[RUN, _STREAM].sequences <= set(range(1, 41))
    operations = files.count
    files.allow()
    assert look(store.path, [(RUN, _STREAM)], files)[RUN, _STREAM].sequences == set(range(1, 41))
    return Outcome(operations, 40)


class _Session:
    """A trainer of the daemon that repeats what was not acked, as a real one does."""

    def __init__(self, bench: Bench, witness: Witness) -> None:
        self.rig, self.witness = bench.rig, witness
        self.run = bench.fresh()
        self.client: Client = self.rig.client(_STREAM + int(self.run[1:]), self.run)
        self.stream = self.client.stream
        self.last = self.written = self.synced = 0
        self.finished = self.rejected = False

    def hear(self) -> None:
        while (message := self.client.connection.receive()) is not None:
            self._note(message)

    def _note(self, message: object) -> None:
        if isinstance(message, (Ack, Flushed, Finished, Welcome)):
            self.written, self.synced = max(self.written, message.written), max(self.synced, message.synced)
            self.witness.claimed(self.run, self.stream, written=message.written, synced=message.synced)
            self.finished = self.finished or isinstance(message, Finished)
        self.rejected = self.rejected or isinstance(message, Reject)

    def step(self) -> None:
        """Four records more, and time for everything to be written and forced."""
        self.client.batch(self.last + 1, self.last + 4)
        self.last += 4
        self.witness.logged(self.run, self.stream, self.last)
        for message in self.client.barrier():
            self._note(message)
        self.rig.tick(0.3)
        self.rig.sync()
        self.hear()

    def end(self) -> None:
        """A new session repeats what was not acked, and ends."""
        for turn in range(60):
            if turn % 20 == 0:
                self.client.send_hello(self.written)
                if self.written < self.last:
                    self.client.batch(self.written + 1, self.last)
                self.client.send(Finish(self.stream, self.last))
                self.client.barrier()
            self.rig.sync()
            self.client.connection.wait(0.002)
            self.hear()
            if self.finished:
                return
        raise AssertionError(
            f"the disk is well, and of {self.last} records {self.written} are written: {self.rig.said[-3:]}"
        )


def _served(bench: Bench, trouble: Trouble) -> Outcome:
    """A daemon: no tick raises, no ack lies, and when the disk is well again everything is written and forced."""
    witness = Witness()
    rig = bench.rig
    session = _Session(bench, witness)
    session.client.hello()
    trouble.begin(rig.files)
    for turn in range(4):
        session.step()
        if turn == 1 and session.run in rig.ingest.writers:
            rig.ingest.writers[session.run].roll()
    operations = rig.files.count
    rig.files.allow()
    session.end()
    session.client.close()
    rig.clients.remove(session.client)
    rig.sync()
    found = look(rig.store.path, witness.names())
    # No ring stands behind this trainer: what a failed fsync lost, nobody can write again. It is told of.
    claimed, lost = witness.check(found, WRITTEN, or_told=trouble.loses)
    return Outcome(operations, claimed, lost)


_Workload = Callable[[Bench, Trouble], Outcome]
_WORKLOADS: tuple[_Workload, ...] = (_made, _spooled, _sent, _drained, _mended, _read, _served)


@functools.cache
def plan() -> tuple[tuple[_Workload, Trouble], ...]:
    """All cases: of each workload and fault as many as there are operations to meet it, twice."""
    found = []
    with bench() as where:
        for workload in _WORKLOADS:
            for fault in FAULTS:
                count = workload(where, Trouble(fault, _NEVER, False)).operations
                found += [(workload, Trouble(fault, n, ever)) for n in range(1, count + 1) for ever in (False, True)]
    return tuple(found)


@torture(full=lambda: len(plan()), every=1, beside=True)
def failing_operation(cases: Iterable[int]) -> Iterator[Result]:
    """The N-th operation of the disk fails, once or for ever: no claim is broken, and afterwards all goes on."""
    with bench() as where:
        for case in cases:
            workload, trouble = plan()[case]
            outcome = workload(where, trouble)
            yield Result(case, outcome.accepted, outcome.lost)
