"""sdk._blobs: large values that a trainer stores itself, on a good disk and on one that refuses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from sdk._blobs import OwnBlobs
from sdk._spool import Spool
from sdk.journal.arena import arena_paths
from sdk.journal.upkeep import LOOK_SECONDS
from sdk.limits import MIB, REFUSED_DISK_FULL, REFUSED_SPOOL
from sdk.location import StoreIdentity
from sdk.reader.blobs import Blobs
from sdk.record import BlobRef
from tests.sdk.test_large import LARGE, STREAM, Stream, Thing
from tests.serving import RUN, FailingFiles, temporary_store


class Bench:
    """A stream and its own file. `troubles`: the codes that a user would be told of."""

    def __init__(self, store: StoreIdentity, base: str | None, bytes_max: int = 1 << 30) -> None:
        self.files = FailingFiles()
        self.stream = Stream(base)
        self.troubles: list[int] = []
        self.spool = Spool(self.files, store, RUN, STREAM, bytes_max=bytes_max, origin={"kind": "spool"})
        self.own = OwnBlobs(self.stream.journal, self.spool, lambda now, code, text: self.troubles.append(code))

    def stored(self, number: int) -> bytes:
        return bytes(Blobs(self.files, self.spool.directory).read(BlobRef(STREAM, number, LARGE)).data)

    def close(self) -> None:
        self.files.allow()
        self.spool.seal()
        self.stream.close()


@pytest.fixture
def store() -> Iterator[StoreIdentity]:
    with temporary_store() as made:
        yield made


@pytest.fixture
def private(store: StoreIdentity) -> Iterator[Bench]:
    """No shared memory."""
    with contextlib.closing(Bench(store, None)) as made:
        yield made


@pytest.fixture
def shared(store: StoreIdentity, tmp_path: object) -> Iterator[Bench]:
    with contextlib.closing(Bench(store, str(tmp_path))) as made:
        yield made


def test_nothing_is_sent_past_what_only_we_have(private: Bench) -> None:
    """While the disk refuses the bytes, records before the announcement may go, the announcement and what follows may not."""
    private.stream.log({"x": 1})
    before = private.stream.journal.mark()
    private.stream.log({"a": Thing(b"a" * LARGE)})
    private.stream.log({"x": 2})
    private.files.refuse("append")
    assert not private.own.store(0.0)
    assert private.own.sendable() == before
    assert private.troubles == [REFUSED_DISK_FULL]
    private.files.allow()
    assert private.own.store(1.0)
    assert private.own.sendable() == private.stream.journal.mark()
    assert private.stored(1) == b"a" * LARGE


def test_it_is_stored_once(private: Bench) -> None:
    """However often the sender asks before the ack comes."""
    private.stream.log({"a": Thing(b"a" * LARGE)})
    assert private.own.store(0.0)
    size = private.spool.bytes_written
    assert private.own.store(1.0)
    assert private.spool.bytes_written == size


def test_the_daemon_takes_what_is_in_the_arena(shared: Bench) -> None:
    """Beside a daemon that can read it nothing is written here, and nothing is held back."""
    shared.stream.log({"a": Thing(b"a" * LARGE)})
    assert shared.own.store(0.0)
    assert shared.own.sendable() == shared.stream.journal.mark()
    assert shared.spool.bytes_written == 0


def test_what_is_spooled_takes_its_values_along(shared: Bench) -> None:
    """Without a daemon the values of the arena are stored before the records that announce them, within the spool's bound."""
    shared.stream.log({"a": Thing(b"a" * LARGE)})
    goal = shared.stream.journal.mark()
    shared.stream.log({"b": Thing(b"b" * LARGE)})
    shared.spool._bytes_max = LARGE - 1
    assert not shared.own.store(0.0, goal)
    assert shared.troubles == [REFUSED_SPOOL]
    shared.spool._bytes_max = MIB
    assert shared.own.store(0.0, goal)
    assert shared.stored(1) == b"a" * LARGE
    assert [pending.is_stored for pending in shared.stream.large.pending] == [True, False]


def test_a_daemon_that_cannot_read_the_arena(shared: Bench) -> None:
    """Hello is not said again before everything in it is stored here: it is what tells the daemon so."""
    shared.stream.log({"a": Thing(b"a" * LARGE)})
    assert shared.own.may_greet(0.0, is_last=False)
    shared.own.all = True
    shared.files.refuse("append")
    assert not shared.own.may_greet(0.0, is_last=False)
    shared.files.allow()
    assert shared.own.may_greet(0.0, is_last=False)
    assert shared.stored(1) == b"a" * LARGE


def test_a_logout_that_removes_the_arena(shared: Bench) -> None:
    """It is noticed within a second, and from then on every value is stored here."""
    shared.stream.log({"a": Thing(b"a" * LARGE)})
    assert shared.stream.arena is not None
    for path in arena_paths(shared.stream.arena._ring):
        shared.files.remove(path)
    shared.own.look(LOOK_SECONDS)
    assert shared.own.store(LOOK_SECONDS)
    assert shared.stored(1) == b"a" * LARGE
