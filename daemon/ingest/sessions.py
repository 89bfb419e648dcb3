"""What a trainer's messages mean: sessions begin with Hello, batches fill streams, requests are noted to be answered."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from daemon.ingest.router import Router
from daemon.ingest.streams import Streams, StreamState
from daemon.pipeline import admit
from daemon.pipeline.flush import Reason
from daemon.stats import Stats
from sdk.budget import Keeper
from sdk.errors import DamageError, RemoteProtocolError
from sdk.ids import hex_u64
from sdk.limits import WIRE_VERSION
from sdk.wire.codec import decode, encode
from sdk.wire.messages import Batch, Control, Finish, Flush, Hello, Message, Reject, Welcome

# Messages taken in one tick before something else gets its turn: at most 64 x 4 MiB, and never more than the credit.
_MESSAGES_PER_TICK = 64


class Sessions:
    """The daemon's end of every session.

    Attributes:
        control: Answers a command of the command line; the server puts its own here.
        greeted: Called with each stream that said Hello. `reads`: begins to read the ring of one that offers it, and tells
            whether that goes.
    """

    def __init__(
        self,
        router: Router,
        streams: Streams,
        store_id: bytes,
        stats: Stats,
        say: Callable[[str], None],
        budget: Keeper,
    ) -> None:
        self._router = router
        self._streams = streams
        self._store_id = store_id
        self._stats = stats
        self._say = say
        self._budget = budget
        self.control: Callable[[Control], dict[str, Any]] = lambda message: {}
        self.greeted: Callable[[StreamState], None] = lambda state: None
        self.reads: Callable[[Hello, StreamState], bool] = lambda hello, state: False

    def receive(self, now: float) -> int:
        """Takes the messages that are there, at most `_MESSAGES_PER_TICK`; returns how many."""
        count = 0
        while count < _MESSAGES_PER_TICK:
            try:
                received = self._router.receive()
            except OSError as error:
                self._stats.last_error = f"receive: {error}"
                break
            if received is None:
                break
            count += 1
            peer, frames = received
            try:
                self._handle(peer, decode(frames), now)
            except (RemoteProtocolError, DamageError) as error:
                self._stats.protocol_errors += 1
                self._stats.last_error = str(error)
                self._reject(peer, "protocol", str(error))
            except Exception as error:  # a bug that one session met must not end the daemon for all the others
                self._stats.last_error = f"unexpected: {error!r}"[:500]
                self._say(f"a message met an unexpected error: {error!r}")
                self._reject(peer, "bug", repr(error))
        return count

    def _reject(self, peer: bytes, code: str, text: str) -> None:
        self._router.send(peer, Reject(self._streams.stream_of(peer), code, text[:500], True))

    def _handle(self, peer: bytes, message: Message, now: float) -> None:
        if isinstance(message, Batch):
            self._batch(peer, message, now)
        elif isinstance(message, Hello):
            self._hello(peer, message, now)
        elif isinstance(message, Control):
            self._control(peer, message)
        elif isinstance(message, (Flush, Finish)):
            state = self._session(peer, message.stream)
            if state is None:
                return
            if isinstance(message, Flush):
                state.asked = max(state.asked or 0, message.sequence)
                state.policy.ask(Reason.REQUEST)
            else:
                state.finishing = message.sequence
                state.held_until = 0.0
                state.policy.ask(Reason.FINISH)
        else:
            raise RemoteProtocolError(f"{type(message).__name__} is not for a daemon")

    def _control(self, peer: bytes, message: Control) -> None:
        try:
            answer = Control(message.id, "reply", self.control(message))
            encode(answer)
        except Exception as error:
            answer = Control(message.id, "error", {"text": str(error)[:500]})
        self._router.send(peer, answer)

    def _hello(self, peer: bytes, hello: Hello, now: float) -> None:
        state = self._streams.by_id.get(hello.stream)
        refusal = admit.refusal(hello, self._store_id, len(self._streams.by_id), state.run if state else None)
        if refusal is not None:
            self._say(f"refused stream {hex_u64(hello.stream)}: {refusal.text}")
            self._router.send(peer, refusal)
            return
        if state is None:
            state = self._streams.make(hello.stream, hello.run, hello.stored)
        self._streams.greet(hello.stream, state, peer)
        state.greet(hello.stored)
        # What came in an earlier session and waits is still good: the inbox knows it as received.
        state.ring, state.pid, state.heard = hello.ring, hello.pid, now
        state.finishing = state.asked = None
        state.is_dead = state.owes_hello = False
        state.has_spoken = True
        self._budget.limit_run(hello.run, hello.limits.get("run_bytes_max", 0))
        self.greeted(state)
        reads = self.reads(hello, state)
        self._router.send(peer, self._welcome(hello, state, reads))

    def _welcome(self, hello: Hello, state: StreamState, reads: bool) -> Welcome:
        from sdk import __version__

        inbox, credit = state.inbox, admit.credit(len(self._streams.by_id))
        limits, version = admit.common_limits(hello), min(WIRE_VERSION, hello.version_max)
        return Welcome(
            version, hello.stream, inbox.written, inbox.synced, credit, os.getpid(), __version__, limits, int(reads)
        )

    def _session(self, peer: bytes, stream: int) -> StreamState | None:
        """The stream if this peer greeted for it; else the peer is told to greet."""
        if stream and self._streams.stream_of(peer) == stream:
            return self._streams.by_id.get(stream)
        self._router.send(peer, Reject(stream, "hello", "say Hello first", True))
        return None

    def _batch(self, peer: bytes, batch: Batch, now: float) -> None:
        state = self._session(peer, batch.stream)
        if state is None:
            return
        self._stats.batches += 1
        state.heard, state.silent = now, False
        duplicates = state.take(batch, now)
        if duplicates is None:
            text = f"records {state.inbox.received + 1} to {batch.first - 1} are missing"
            self._router.send(peer, Reject(batch.stream, "hole", text, True))
            return
        self._stats.duplicates += duplicates
        if state.finishing is not None:  # said before the last batch, when a budget held it back
            state.policy.ask(Reason.FINISH)
