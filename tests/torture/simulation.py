"""One host in one process: real trainers and real daemons with a network, a clock and a death that a test decides.

What is real: streams with their journals, rings and senders; the server with its ingest, segments and recovery; codec,
spool, drain and reader. What is not: ZeroMQ (`Network`), the clock, and the sender's thread, which is woken by hand.

    with simulated(random.Random(1)) as host:
        host.start_daemon()
        trainer = host.trainer("run")
        trainer.stream.log({"loss": 0.5})
        trainer.wake()                      # says Hello, sends; nothing arrives by itself
        host.network.carry()                # one message, in one direction, of some connection
        host.tick()                         # the daemon takes what arrived
        host.kill_daemon()                  # its memory is gone; what it wrote is there

What the network may do is what ZeroMQ may do: messages of one connection stay in order; of a connection that was closed
a part may still arrive, later than those of the next one; of a receiver that died the first messages are lost and the
rest reach the next one that binds, without a Hello. It may also lose or repeat a message in the middle, which ZeroMQ does
not, but an intermediary might.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import random
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import zmq

from daemon.lifecycle import take_store
from daemon.server import Server
from daemon.settings import DaemonSettings
from daemon.store import syncer
from sdk import _sender, _stream, clock, platform
from sdk.files import DISK
from sdk.journal import ring as ring_module
from sdk.location import StoreIdentity, make_store
from sdk.platform import HeldLock
from sdk.segment.format import Block
from sdk.segment.writer import SegmentWriter
from sdk.settings import Settings
from sdk.transport import endpoint_path, lock_path
from sdk.wire.codec import decode
from sdk.wire.messages import Reject
from tests.serving import FailingFiles

CAPACITY = 16 << 10
# A sender hands over no more than this before the network took some of it.
_QUEUE_MESSAGES = 64


class Link:
    """One connection of a DEALER to whoever is bound at its path."""

    def __init__(self, identity: bytes) -> None:
        self.identity = identity
        self.up: deque[list[bytes]] = deque()
        self.down: deque[list[bytes]] = deque()
        self.taken: deque[list[bytes]] = deque()
        self.is_open = True


class Network:
    """Carries messages when it is told to, and loses what it may lose.

    Attributes:
        on_wait: Called when a dealer waits for an answer, with seconds.
        rejects: Sessions that a daemon rejected.
    """

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.links: list[Link] = []
        self.router: _Socket | None = None
        self.on_wait: Callable[[float], None] = lambda seconds: None
        self.rejects = 0
        self._identities = itertools.count(1)

    def connect(self) -> Link:
        self.links.append(Link(self._identity()))
        return self.links[-1]

    def _identity(self) -> bytes:
        return b"\0" + next(self._identities).to_bytes(4, "little")

    def busy(self) -> list[deque[list[bytes]]]:
        """The queues of which a message can arrive now."""
        up = [link.up for link in self.links if link.up] if self.router is not None else []
        return up + [link.down for link in self.links if link.down and link.is_open]

    def carry(self, *, repeated: bool = False) -> bool:
        """One message arrives, whichever; whether there was one."""
        queues = self.busy()
        if not queues:
            return False
        queue = self.dice.choice(queues)
        message = queue[0] if repeated else queue.popleft()
        link = next(link for link in self.links if queue is link.up or queue is link.down)
        if queue is link.up:
            assert self.router is not None
            self.router.arrived.append([link.identity, *message])
        else:
            link.taken.append(message)
        self.links = [link for link in self.links if link.is_open or link.up]
        return True

    def carry_all(self) -> None:
        while self.carry():
            pass

    def lose(self) -> None:
        """A message is lost on its way."""
        queues = self.busy()
        if queues:
            self.dice.choice(queues).popleft()

    def bound(self, router: _Socket) -> None:
        self.router = router
        for link in self.links:
            link.identity = self._identity()  # ZeroMQ connects again by itself

    def unbound(self) -> None:
        """The daemon is gone: what it had not taken is lost, and some of what was on the way to it."""
        self.router = None
        for link in self.links:
            for _ in range(self.dice.randint(0, len(link.up))):
                link.up.popleft()

    def closed(self, link: Link) -> None:
        """A dealer is gone: what was in the kernel already may still arrive."""
        link.is_open = False
        for _ in range(self.dice.randint(0, len(link.up))):
            link.up.pop()
        self.links = [link for link in self.links if link.is_open or link.up]

    def context(self, *_: Any, **__: Any) -> _Context:
        return _Context(self)


class _Context:
    def __init__(self, network: Network) -> None:
        self._network = network

    def socket(self, kind: int) -> _Socket:
        return _Socket(self._network, kind)

    def destroy(self, **_: Any) -> None: ...


class _Socket:
    """As much of `zmq.Socket` as the product uses."""

    def __init__(self, network: Network, kind: int) -> None:
        self._network, self._kind = network, kind
        self.linger = 0
        self.arrived: deque[list[bytes]] = deque()
        self._link: Link | None = None

    def set(self, option: int, value: Any) -> None: ...

    def get_monitor_socket(self, *_: Any) -> _Socket:
        return _Socket(self._network, zmq.PAIR)

    def disable_monitor(self) -> None: ...

    def get(self, option: int) -> Any:
        assert option == zmq.EVENTS
        assert self._link is not None
        return zmq.POLLIN if self._link.taken else 0

    def connect(self, address: str) -> None:
        self._link = self._network.connect()

    def bind(self, address: str) -> None:
        path = address.removeprefix("ipc://")
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._network.bound(self)

    def poll(self, milliseconds: int, *_: Any) -> int:
        if self._kind == zmq.ROUTER:
            return len(self.arrived)
        if not self.get(zmq.EVENTS):
            self._network.on_wait(milliseconds / 1000)
        return int(self.get(zmq.EVENTS))

    def send_multipart(self, frames: Sequence[Any], *_: Any, **__: Any) -> None:
        copied = [bytes(frame) for frame in frames]
        if self._kind == zmq.DEALER:
            assert self._link is not None
            if len(self._link.up) >= _QUEUE_MESSAGES:
                raise zmq.Again
            self._link.up.append(copied)
            return
        self._network.rejects += isinstance(decode(copied[1:]), Reject)
        for link in self._network.links:
            if link.identity == copied[0] and link.is_open:
                link.down.append(copied[1:])
                return
        raise zmq.ZMQError(113, "no such peer")

    def recv_multipart(self, *_: Any, copy: bool = True, **__: Any) -> list[Any]:
        queue = self.arrived if self._kind == zmq.ROUTER else self._link.taken if self._link else deque()
        if not queue:
            raise zmq.Again
        frames = queue.popleft()
        return frames if copy else [zmq.Frame(frame) for frame in frames]

    def close(self, **_: Any) -> None:
        if self._link is not None:
            self._network.closed(self._link)
            self._link = None
        elif self._network.router is self:
            self._network.unbound()


class _Poller:
    """As much of `zmq.Poller`: nobody waits here, time passes when a test says so."""

    def register(self, *_: Any) -> None: ...

    def poll(self, *_: Any) -> list[Any]:
        return []


class SimulatedTrainer:
    """A trainer whose sender is woken by hand. Its calls are `stream.log`; `finish` is the real one."""

    def __init__(self, host: Host, run: str, **facts: Any) -> None:
        self.host, self.run = host, run
        self.kind = kind = facts.pop("kind", "main")
        first_step = facts.get("first_step", 0)
        about = {"kind": kind, "attempt": 1, **_stream.process_facts(), **facts}
        self.stream = _stream.Stream(host.store, host.settings, run, kind, about, first_step)
        self.number = int(self.stream.id, 16)
        self.sender = self.stream._sender
        self.ring = self.stream.journal.ring
        self.is_alive = True

    def wake(self) -> None:
        self.sender.wake_once(clock.monotonic())
        self.check()

    def check(self) -> None:
        """What the sender takes for stored is stored."""
        claimed, stored = self.sender._outbox.stored_sequence, self.host.stored_up_to(self.number)
        assert claimed <= stored, f"the trainer was told {claimed}, only {stored} of its records are stored"

    @property
    def is_gone(self) -> bool:
        """Whether it ended and somebody took over what its ring held."""
        return not self.is_alive and not os.path.exists(self.ring.path or "")

    @property
    def has_session(self) -> bool:
        """Whether the daemon that serves now knows this trainer's connection; one without news finds out late."""
        server, connection = self.host.server, self.sender._connection
        if server is None or connection is None:
            return False
        state = server._ingest.streams.get(self.number)
        link: Link = connection._socket._link  # type: ignore[attr-defined]
        return state is not None and state.identity == link.identity

    @property
    def is_settled(self) -> bool:
        """Whether everything is stored, and a session goes on."""
        all_stored = self.sender._outbox.stored_sequence == self.stream.journal.mark()[1] - 1
        return all_stored and self.sender._state == "live"

    def finish(self) -> Any:
        receipt = self.stream.finish("finished", 0, 5.0)
        self.check()
        self.is_alive = False
        return receipt

    def kill(self) -> None:
        """SIGKILL: the ring stays, its lock is free, the socket breaks, the spool's segment is as it is."""
        self.is_alive = False
        _stream._live.discard(self.stream)
        connection, self.sender._connection = self.sender._connection, None
        if connection is not None:
            connection.close()
        segment = self.sender._spool._segment
        if segment is not None:
            segment.close()
        self.ring.abandon()


class Host:
    """A store, its daemon if one serves, and its trainers.

    Attributes:
        blocks: The blocks of rows that were written, by file.
        disk: What both sides write through; `refuse` and `allow` of it are the disk's troubles.
    """

    def __init__(self, store: StoreIdentity, dice: random.Random, shared: str) -> None:
        self.store = store
        self.dice = dice
        self.network = Network(dice)
        self.network.on_wait = lambda seconds: self.turn(seconds)
        self.settings = Settings(autostart=False, silent=True, shared_memory_dir=shared)
        for name in ("ring_bytes", "secondary_ring_bytes"):
            object.__setattr__(self.settings, name, CAPACITY)  # smaller than a user may choose: it is full at once
        self.daemon_settings = DaemonSettings(
            persistent=True, rewrite=False, shared_memory_dir=shared, flush_bytes=2 << 10
        )
        self.now = 1000.0
        self.trainers: list[SimulatedTrainer] = []
        self.server: Server | None = None
        self.disk = FailingFiles()
        self._lock: HeldLock | None = None
        self._is_ticking = False
        self.blocks: dict[str, list[Block]] = {}
        self._stored: dict[int, list[tuple[int, int]]] = {}

    @property
    def living(self) -> list[SimulatedTrainer]:
        return [trainer for trainer in self.trainers if trainer.is_alive]

    def trainer(self, run: str, **facts: Any) -> SimulatedTrainer:
        """A new stream into `run`. Its first META record is the caller's to write (`stream.first_meta`)."""
        # Of two one sends; the daemon reads the ring of the other.
        object.__setattr__(self.settings, "ring_reader", len(self.trainers) % 2 == 1)
        self.trainers.append(SimulatedTrainer(self, run, **facts))
        return self.trainers[-1]

    def start_daemon(self) -> None:
        if self.server is None:
            self._lock = take_store(self.store.path, "simulated")
            assert self._lock is not None
            self.server = Server(self.store, self.daemon_settings, self.disk)  # type: ignore[arg-type]
            self.server.open()

    def kill_daemon(self, *, torn: bool = False) -> None:
        """SIGKILL: what it had not written is gone; `torn`: it was in the middle of a block."""
        server, self.server = self.server, None
        if server is None:
            return
        ingest = server._ingest
        ingest.forcing.syncer.stop()
        for writer in ingest.writers.values():
            if torn and writer.segment is not None:
                _tear(writer.segment.path, self.dice)
            for segment in [writer.segment, *(retired[0] for retired in writer.retired)]:
                if segment is not None:
                    segment.close()
        self.network.unbound()
        assert self._lock is not None
        self._lock.release()

    def tick(self) -> None:
        if self.server is not None:
            self._is_ticking = True
            try:
                self.server.tick()
            finally:
                self._is_ticking = False

    def pause(self, seconds: float) -> None:
        """Somebody waits: the daemon for time to pass, a trainer for the world to go on."""
        if self._is_ticking:
            self.now += seconds
        else:
            self.turn(seconds)

    def turn(self, seconds: float) -> None:
        """Time goes on, everything arrives, the daemon does its work."""
        self.now += max(seconds, 0.001)
        self.network.carry_all()
        self.tick()
        self.network.carry_all()

    def settle(self) -> None:
        """The faults are over: within a simulated minute everything is stored and every session goes on.

        Raises:
            AssertionError: It is not.
        """
        self.disk.allow()
        self.start_daemon()
        for _ in range(1200):
            self.turn(0.05)
            for trainer in self.living:
                trainer.wake()
            if all(trainer.is_settled for trainer in self.living):
                break
        else:
            late = [
                (t.run, t.sender._state, t.sender._outbox.stored_sequence, t.stream.journal.mark()) for t in self.living
            ]
            raise AssertionError(f"no progress in a minute without faults: {late}")
        for _ in range(100):
            self.turn(1.1)
            if all(trainer.is_alive or trainer.is_gone for trainer in self.trainers):
                return
        raise AssertionError("rings of dead trainers are not drained")

    def note_block(self, path: str, block: Block) -> None:
        """A block of rows was written."""
        self.blocks.setdefault(path, []).append(block)
        self._stored.setdefault(block.stream, []).append((block.first, block.last))

    def stored_up_to(self, stream: int) -> int:
        """The last sequence up to which all records of a stream are in segments."""
        found, upto = self._stored.get(stream, []), 0
        for first, last in sorted(found):
            if first > upto + 1:
                break
            upto = max(upto, last)
        self._stored[stream] = [(1, upto), *(pair for pair in found if pair[1] > upto)] if upto else found
        return upto

    def close(self) -> None:
        for trainer in self.living:
            trainer.kill()
        self.kill_daemon()


@contextlib.contextmanager
def simulated(dice: random.Random) -> Iterator[Host]:
    """A host with an empty store in memory; nothing of it is left at the end."""
    with (
        tempfile.TemporaryDirectory(prefix="stepd-simulated-", dir=_memory()) as base,
        contextlib.ExitStack() as patches,
    ):
        store = make_store(os.path.join(base, "store"))
        host = Host(store, dice, base)

        def put(owner: Any, name: str, value: Any) -> None:
            patches.enter_context(mock.patch.object(owner, name, value))

        put(zmq, "Context", host.network.context)
        put(zmq, "Poller", _Poller)
        put(clock, "monotonic", lambda: host.now)
        put(clock, "pause", host.pause)
        put(_sender.Sender, "start", lambda sender: None)
        put(_sender, "DISK", host.disk)
        put(_stream, "_print_notice", lambda text: None)
        put(logging.getLogger("stepd.daemon"), "disabled", True)
        put(_stream, "_CALIBRATION_CALLS", 1)
        put(ring_module, "CAPACITY_MIN", CAPACITY)
        # A daemon does not read rings of its own process: it would drop their locks, which nobody asks for here.
        put(platform, "lock_owner", lambda path: None)
        names_dice = random.Random(dice.random())
        put(os, "urandom", names_dice.randbytes)
        append = SegmentWriter.append

        def noted(writer: SegmentWriter, *arguments: Any, **named: Any) -> Any:
            block = append(writer, *arguments, **named)
            if named.get("records"):
                host.note_block(writer.path, block)
            return block

        put(syncer, "threading", SimpleNamespace(Thread=_NoThread))
        put(syncer.Syncer, "submit", _force_now)
        put(SegmentWriter, "append", noted)
        names = [endpoint_path(store.path), lock_path(store.path)]
        DISK.make_directory(os.path.join(store.path, "runs"))
        try:
            yield host
        finally:
            host.close()
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)


def _tear(path: str, dice: random.Random) -> None:
    """A part of a block at the end of a segment (less than the smallest block has), or a part of the padding behind it."""
    with open(path, "r+b") as file:
        whole = file.read()
        file.write(dice.choice((whole[-95:], whole[64 : 64 + dice.randint(1, 150)], bytes(dice.randint(1, 7)))))


class _NoThread:
    """In the place of the syncer's thread and of its queue: a job is done when it is handed over."""

    def __init__(self, job: syncer.Job | None = None, **_: Any) -> None:
        self._jobs = [None, job]
        self.start = self.join = lambda: None
        self.get, self.put = self._jobs.pop, self._jobs.append


def _force_now(owner: syncer.Syncer, job: syncer.Job) -> None:
    """As `Syncer.submit`. Why not its thread: a case would go differently each time."""
    owner.outstanding += 1
    owner._jobs = _NoThread(job)  # type: ignore[assignment]
    owner._run()


def _memory() -> str | None:
    """Where rings can be: /dev/shm, else wherever temporary files are."""
    return "/dev/shm" if platform.shared_size("/dev/shm") else None
