"""The table of streams: what the daemon knows of each, which peer of the socket speaks for it, and what waits.

A stream is made by a Hello or by a dead ring, filled by batches, and forgotten when it is finished or when its trainer
is dead and its ring drained.
"""

from __future__ import annotations

from collections import Counter, deque
from enum import Enum
from typing import Any

from daemon.ingest.lent import RingReader
from daemon.ingest.rings import WatchedRing
from daemon.pipeline.coalesce import Waiting
from daemon.pipeline.flush import FlushPolicy
from daemon.settings import DaemonSettings
from sdk.errors import DamageError
from sdk.journal.announcements import ArenaReader
from sdk.record import HEADER_SIZE
from sdk.wire.messages import BATCH_HAS_BLOBS, BATCH_HAS_PIECES, Batch
from sdk.wire.session import Inbox

# Limit: streams that came between two questions of the observer, 2 s apart; of more the first are met while they live only.
_MADE_MAX = 4096


class Base(Enum):
    """What is known of records that lie in segments of others: an earlier daemon's, or the trainer's own."""

    FORCED = "forced"  # they are on the disk, or there are none
    UNKNOWN = "unknown"
    ASKED = "asked"  # they are being forced; until then `synced` stays where it is


class StreamState:
    """What the daemon knows of one stream."""

    __slots__ = (
        "arena", "asked", "base", "blob_offset", "blobs_until", "finishing", "has_spoken", "heard", "held_until", "identity", "inbox",
        "is_dead", "known_blobs", "last_trouble", "owes_hello", "pid", "policy", "reader", "ring", "run", "silent", "stores_itself",
        "trouble",
        "waiting", "waiting_bytes", "watched",
    )  # fmt: skip

    def __init__(self, run: str, policy: FlushPolicy) -> None:
        self.run = run
        self.inbox = Inbox(0)
        self.policy = policy
        self.waiting: list[Waiting] = []
        self.waiting_bytes = 0
        self.identity: bytes | None = None
        self.ring = ""
        self.watched: WatchedRing | None = None
        # We read its ring ourselves, so no batches come and acks are written there.
        self.reader: RingReader | None = None
        self.pid = 0
        self.heard = 0.0
        self.finishing: int | None = None
        self.asked: int | None = None
        self.silent = True
        # Its trainer said Hello, or died; else we looked into its ring by ourselves (`quiet`).
        self.has_spoken = True
        # Its trainer died: what it had accepted is all that will ever come.
        self.is_dead = False
        # Why nothing of it is written now, an index into REFUSED_REASONS (last_trouble: or was, when it last was not 0), and
        # when that is looked at again.
        self.trouble = self.last_trouble = 0
        self.held_until = 0.0
        self.base = Base.FORCED
        # Its blobs: the number up to which they are stored, how much of the next one, its arena, whether its trainer was told to
        # store them itself (and has not said since that it did), and (of a dead one, when somebody asked) which are stored.
        self.blobs_until = self.blob_offset = 0
        self.arena: ArenaReader | None = None
        self.stores_itself = self.owes_hello = False
        self.known_blobs: set[tuple[int, int]] | None = None

    @property
    def is_ending(self) -> bool:
        return self.is_dead or self.finishing is not None

    @property
    def lives(self) -> bool:
        """Whether its trainer lives, as far as its ring tells now: it may have died since we last looked around."""
        return not self.is_dead and (self.watched is None or self.watched.is_locked())

    def greet(self, stored: int) -> None:
        """Its trainer says that everything up to `stored` is stored, whoever wrote it."""
        if stored > self.inbox.written:
            self.base = Base.UNKNOWN
        self.inbox.greet(stored)
        # What the trainer stored itself, while a budget or the disk held us back, need not be stored again.
        while self.trouble and self.waiting and self.waiting[0].last <= stored:
            self.waiting_bytes -= len(self.waiting.pop(0).records)

    def take(self, batch: Batch, now: float) -> int | None:
        """Adds the new part of a batch to what waits.

        Returns:
            How many of its records were here already; None when records before it are missing.

        Raises:
            DamageError: It does not hold the records that it says.
        """
        before = self.inbox.received
        skip = self.inbox.admit(batch.first, batch.last)
        if skip is None or skip == batch.last - batch.first + 1:
            return skip
        try:
            records = batch.records if not skip else _without_first(batch.records, skip)
        except DamageError:
            self.inbox.received = before  # else they would count as received, and be acked with what follows
            raise
        self.waiting.append(Waiting(batch.first + skip, batch.last, batch.flags, batch.step_max, records))
        self.waiting_bytes += len(records)
        has_blobs, has_pieces = bool(batch.flags & BATCH_HAS_BLOBS), bool(batch.flags & BATCH_HAS_PIECES)
        self.policy.note(now, len(records), has_commits=not has_pieces, has_blobs=has_blobs)
        return skip

    def stop_reading(self) -> None:
        """Its trainer is to say Hello again, to us or to who serves next."""
        if self.reader is not None:
            self.reader.ring.stop()
            self.reader = None

    def close(self) -> None:
        """Lets go of its ring and arena; whoever serves next finds them by their names."""
        if self.reader is not None:
            self.reader.ring.close()
            self.reader = None
        if self.watched is not None:
            self.watched.close()
        if self.arena is not None:
            self.arena.close()

    def arena_of(self, ring: str) -> ArenaReader:
        """The arena beside its ring."""
        if self.arena is None or self.arena.ring != ring:
            if self.arena is not None:
                self.arena.close()
            self.arena = ArenaReader(ring)
        return self.arena

    def written(self, parts: list[Waiting], last: int) -> None:
        """Notes that the leading `parts` of what waits are written, up to sequence `last`."""
        self.inbox.written = max(self.inbox.written, last)
        del self.waiting[: len(parts)]
        self.waiting_bytes -= sum(len(part.records) for part in parts)


class Streams:
    """Every stream by its id.

    Attributes:
        by_id: Stream id to its state.
        made: (number from 1, run, stream) of those that came last, for who wants to meet all.
    """

    def __init__(self, settings: DaemonSettings, flushes: Counter[str]) -> None:
        self._settings = settings
        self._flushes = flushes
        self.by_id: dict[int, StreamState] = {}
        self.made: deque[tuple[int, str, int]] = deque(maxlen=_MADE_MAX)
        self._made_count = 0
        self._of_peer: dict[bytes, int] = {}

    def make(self, stream: int, run: str, stored: int) -> StreamState:
        """A new stream of which everything up to `stored` lies somewhere already."""
        state = StreamState(run, FlushPolicy(self._settings, self._flushes))
        state.greet(stored)
        self.by_id[stream] = state
        self._made_count += 1
        self.made.append((self._made_count, run, stream))
        return state

    def greet(self, stream: int, state: StreamState, peer: bytes) -> None:
        """From now on `peer`, and nobody else, speaks for the stream."""
        if state.identity is not None:
            self._of_peer.pop(state.identity, None)
        state.identity = peer
        self._of_peer[peer] = stream

    def stream_of(self, peer: bytes) -> int:
        """The stream that a peer greeted for; 0: none."""
        return self._of_peer.get(peer, 0)

    def forget_peer(self, state: StreamState) -> None:
        """Nobody speaks for the stream until somebody greets for it again."""
        if state.identity is not None:
            self._of_peer.pop(state.identity, None)
            state.identity = None

    def forget(self, stream: int) -> None:
        state = self.by_id.pop(stream, None)
        if state is None:
            return
        self.forget_peer(state)
        state.close()

    def close(self) -> None:
        """Lets go of the rings."""
        for state in self.by_id.values():
            state.stop_reading()
            state.close()

    def forget_peers(self) -> None:
        """A new socket deals out its own identities: one of the old ones must not be taken for a new peer."""
        self._of_peer.clear()
        for state in self.by_id.values():
            state.identity = None
            state.stop_reading()

    def serves(self, run: str) -> bool:
        """Whether any stream of `run` is here."""
        return any(state.run == run for state in self.by_id.values())

    @property
    def peers(self) -> int:
        """Connections that speak for a stream."""
        return len(self._of_peer)

    @property
    def waiting_bytes(self) -> int:
        return sum(state.waiting_bytes for state in self.by_id.values())


def _without_first(records: Any, skip: int) -> Any:
    """The bytes of a batch without its first `skip` records.

    Raises:
        DamageError: It does not hold so many and one more.
    """
    offset = 0
    for _ in range(skip):
        offset = next_record(records, offset)
    if len(records) - offset < HEADER_SIZE:
        raise DamageError(f"a batch of {len(records)} bytes holds fewer records than it says")
    return memoryview(records)[offset:]


def next_record(records: Any, offset: int) -> int:
    """Where the record behind the one at `offset` begins.

    Raises:
        DamageError: The one at `offset` is not whole.
    """
    size = int.from_bytes(records[offset : offset + 4], "little")
    if size < HEADER_SIZE or offset + size > len(records):
        raise DamageError(f"record at byte {offset} claims {size} bytes; {len(records) - offset} are left")
    return offset + size
