"""An Ingest that serves a store in the test's own process, and the trainer's end of its sessions. Ticked by hand."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from daemon.ingest import Ingest
from daemon.settings import DaemonSettings
from daemon.stats import Stats
from daemon.store.run_writer import RunWriter
from sdk.files import DISK, Files
from sdk.ids import random_u64
from sdk.limits import BATCH_BYTES_MAX
from sdk.location import StoreIdentity
from sdk.transport import Connection, endpoint_path
from sdk.wire.messages import (
    Ack,
    Batch,
    Control,
    Hello,
    Message,
    Welcome,
)
from tests.serving import RUN, FailingFiles, Held, held, rows, until

STREAM = 0x77


class Rig:
    """An Ingest that serves a store, with a clock of its own. `origin` is what its segments say of their writer."""

    def __init__(
        self,
        store: StoreIdentity,
        settings: DaemonSettings | None = None,
        files: Files = DISK,
        origin: Mapping[str, Any] = MappingProxyType({"kind": "daemon"}),
    ) -> None:
        self.store = store
        self.writer_id = random_u64()
        self.files = FailingFiles(files)
        self.origin = origin
        self.stats = Stats(0.0)
        self.said: list[str] = []
        self.now = 1000.0
        self.clients: list[Client] = []
        self.ingest = Ingest(
            self.files, store, settings or DaemonSettings(), self.stats, self._make_writer, self.said.append
        )
        self.ingest.control = lambda message: {"verb": message.verb}
        self.ingest.bind(endpoint_path(store.path))

    def _make_writer(self, run: str) -> RunWriter:
        return RunWriter(self.files, self.store, run, random_u64(), self.origin)

    def client(self, stream: int = STREAM, run: str = RUN) -> Client:
        client = Client(self, stream, run)
        self.clients.append(client)
        return client

    def tick(self, seconds: float = 0.0) -> int:
        self.now += seconds
        count = self.ingest.receive(self.now)
        self.ingest.flush(self.now)
        self.ingest.sync(self.now)
        return count

    def sync(self) -> None:
        """Until everything that is dirty now was forced, or refused."""
        self.tick(60.0)
        until(lambda: self.tick() or not self.ingest.forcing.syncer.outstanding, "sync")
        self.tick()

    def look(self) -> bool:
        return self.ingest.look_for_dead(self.now)

    @property
    def held(self) -> Held:
        return held(self.store.path)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.ingest.close()


class Client:
    """A trainer's end: a real Connection. What came back is in `messages`."""

    def __init__(self, rig: Rig, stream: int, run: str) -> None:
        self.rig, self.stream, self.run = rig, stream, run
        self.connection = Connection(endpoint_path(rig.store.path))
        self.messages: list[Message] = []
        self._asked = 0

    def send(self, message: Message) -> None:
        assert self.connection.send(message)

    def hello(self, stored: int = 0, **changes: Any) -> Welcome:
        self.send_hello(stored, **changes)
        welcome = self.expect(Welcome)
        assert isinstance(welcome, Welcome)
        return welcome

    def send_hello(self, stored: int = 0, **changes: Any) -> None:
        limits = {"batch_bytes_max": BATCH_BYTES_MAX}
        message = Hello(1, 1, self.stream, self.run, self.rig.store.id, stored, "", os.getpid(), "0.1.0", limits)
        self.send(message._replace(**changes))

    def batch(self, first: int, last: int, records: bytes | None = None, flags: int = 0) -> None:
        self.send(Batch(self.stream, first, last, flags, last, rows(first, last) if records is None else records))

    def expect(self, kind: type[Message], seconds: float = 0.0) -> Any:
        """Ticks until a message of `kind` comes, and returns it; each time the clock moves by some seconds."""
        found: list[Message] = []

        def look() -> bool:
            self.rig.tick(seconds)
            while (message := self.connection.receive()) is not None:
                self.messages.append(message)
                if isinstance(message, kind):
                    found.append(message)
                    return True
            return False

        until(look, kind.__name__)
        return found[0]

    def barrier(self) -> list[Message]:
        """Everything that came before the daemon had taken all we sent."""
        self.messages.clear()
        self._asked += 1
        self.send(Control(self._asked, "barrier", {}))
        while True:
            answer = self.expect(Control)
            if answer.id == self._asked:
                return [m for m in self.messages if not isinstance(m, Control)]

    def ack(self, written: int) -> Ack:
        """The Ack that says `written`."""
        return until(lambda: [a for a in [self.expect(Ack)] if a.written >= written], "ack")[0]

    def close(self) -> None:
        self.connection.close()


@contextlib.contextmanager
def ingest_rig(store: StoreIdentity, settings: DaemonSettings | None = None) -> Iterator[Rig]:
    """A rig that is closed in the end, on a disk that lets it."""
    made = Rig(store, settings)
    try:
        yield made
    finally:
        made.files.allow()
        made.close()
