"""Two daemons on one store directory, as on two hosts or in two containers: side by side, and neither touches the other's.

Both run in this process, ticked by hand. What differs between hosts is faked: the directory of locks and sockets, shared
memory, the machine's id, its boot, and the pids that mean something.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from daemon.lifecycle import take_store
from daemon.server import Server
from daemon.settings import DaemonSettings
from sdk import platform
from sdk.limits import BATCH_BYTES_MAX
from sdk.location import StoreIdentity
from sdk.platform import HeldLock, linux
from sdk.segment.naming import parse_segment, run_path
from sdk.transport import Connection, endpoint_path
from sdk.wire.messages import Batch, Finish, Finished, Flush, Flushed, Hello, Message
from tests.serving import RUN, held, rows, until

NO_PID = 2**22 + 1  # above any pid that Linux gives


class Host:
    """A machine or container with one daemon of the store. Everything of it happens inside `here()`."""

    def __init__(self, base: Path, name: str, store: StoreIdentity, *, boot: str) -> None:
        self.base, self.name, self.store, self.boot = base / name, name, store, boot
        (self.base / "shm").mkdir(parents=True)
        self.lock: HeldLock | None = None
        self.server = self.start()
        self.connection: Connection | None = None

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        own = {"machine_id": f"machine {self.name}", "boot_id": self.boot, "pid_namespace": f"pid:[{self.name}]"}
        faked = {"runtime_directory": linux._private_directory(str(self.base / "run")), "host_name": "localhost", **own}
        said = {"host": "localhost", "machine": own.pop("machine_id"), "pid": NO_PID, **own}
        with contextlib.ExitStack() as stack:
            for name, value in {**faked, "identity": said}.items():
                stack.enter_context(mock.patch.object(platform, name, return_value=value))
            yield

    def start(self) -> Server:
        with self.here():
            self.lock = take_store(self.store.path, "0")
            assert self.lock is not None
            server = Server(self.store, DaemonSettings(shared_memory_dir=str(self.base / "shm"), liveness_seconds=0.05))
            server.open()
            return server

    def tick(self) -> None:
        """Until nothing is left to mend either."""
        with self.here():
            self.server.tick()
            while self.server._mend_one():
                pass

    def kill(self) -> None:
        """Without a word: what is open stays open, the lock is free."""
        self.server._ingest.router.close()
        self.server._ingest.forcing.syncer.stop()
        assert self.lock is not None
        self.lock.release()

    def log(self, stream: int, first: int, last: int) -> None:
        """A trainer of this host hands over records."""
        with self.here():
            if self.connection is None:
                self.connection = Connection(endpoint_path(self.store.path))
                self.connection.send(
                    Hello(
                        1, 1, stream, RUN, self.store.id, first - 1, "", os.getpid(), "0",
                        {"batch_bytes_max": BATCH_BYTES_MAX},
                    )
                )  # fmt: skip
            self.connection.send(Batch(stream, first, last, 0, last, rows(first, last)))
            self.connection.send(Flush(stream, last))
        self.until(Flushed)

    def finish(self, stream: int, last: int) -> None:
        assert self.connection is not None
        self.connection.send(Finish(stream, last))
        self.until(Finished)

    def until(self, kind: type[Message]) -> None:
        def look() -> bool:
            self.tick()
            assert self.connection is not None
            return isinstance(self.connection.receive(), kind)

        until(look, kind.__name__)

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
        if self.lock is not None and self.lock._descriptor >= 0:
            self.server._ingest.close()
            self.lock.release()


@pytest.fixture(params=["two hosts", "two containers"])
def hosts(request: pytest.FixtureRequest, tmp_path: Path, store: StoreIdentity) -> Iterator[tuple[Host, Host]]:
    """Containers of one host share its kernel, so its boot."""
    boots = ("boot", "boot") if request.param == "two containers" else ("boot one", "boot two")
    both = (Host(tmp_path, "one", store, boot=boots[0]), Host(tmp_path, "two", store, boot=boots[1]))
    yield both
    for host in both:
        host.close()


def segments(store: StoreIdentity) -> dict[int, list[bytes]]:
    """Writer id to the bytes of its segments."""
    found: dict[int, list[bytes]] = {}
    for path in sorted(Path(run_path(store.path, RUN)).iterdir()):
        parsed = parse_segment(path.name)
        if parsed is not None:
            found.setdefault(parsed.writer, []).append(path.read_bytes())
    return found


def test_two_daemons_serve_one_store_side_by_side(hosts: tuple[Host, Host], store: StoreIdentity) -> None:
    """Each writes segments of its own, and leaves the other's as they are, open ones too."""
    one, two = hosts
    one.log(1, 1, 5)
    before = segments(store)
    assert len(before) == 1
    two.log(2, 1, 5)
    for _ in range(3):
        two.tick()
    after = segments(store)
    assert len(after) == 2
    assert {writer: after[writer] for writer in before} == before
    two.finish(2, 5)
    one.log(1, 6, 9)
    one.finish(1, 9)
    found = held(store.path)
    assert found.unsealed == []
    assert (found.sequences(1), found.sequences(2)) == (list(range(1, 10)), list(range(1, 6)))


def test_a_new_daemon_does_not_seal_what_another_host_writes(
    hosts: tuple[Host, Host], store: StoreIdentity, tmp_path: Path
) -> None:
    """At its start it looks at everything that is unsealed: of the living it knows nothing, so it leaves it alone."""
    one, two = hosts
    one.log(1, 1, 5)
    before = segments(store)
    two.kill()
    two.server = two.start()
    two.tick()
    assert segments(store) == before
    one.log(1, 6, 9)
    assert held(store.path).sequences(1) == list(range(1, 10))


def test_what_a_killed_daemon_left_is_sealed_by_its_own_hosts_next_one_only(
    hosts: tuple[Host, Host], store: StoreIdentity
) -> None:
    """The lock says so: on another host nobody can know."""
    one, two = hosts
    one.log(1, 1, 5)
    one.kill()
    before = segments(store)
    two.kill()
    two.server = two.start()
    two.tick()
    assert segments(store) == before
    one.server = one.start()
    one.tick()
    assert held(store.path).unsealed == []
    assert held(store.path).sequences(1) == [1, 2, 3, 4, 5]
