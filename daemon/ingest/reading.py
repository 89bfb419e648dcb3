"""Reading the rings of living trainers, so that no thread of theirs sends: what is new is taken like batches.

How often: every 5 ms while much is found, growing to 50 ms while something is, and to 250 ms while nothing is: a look at a
ring costs two words of mapped memory, but waking up costs 100 µs. A ring that fills meanwhile is told of by its sender,
which says Flush. Each ring gets its turn before one is read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from daemon.ingest.lent import RingReader
from daemon.ingest.streams import Streams, StreamState
from daemon.ingest.writing import Writing
from daemon.pipeline import admit
from daemon.pipeline.flush import Reason
from daemon.stats import Stats
from sdk import clock
from sdk.errors import Error
from sdk.ids import hex_u64
from sdk.journal.lent import LentRing
from sdk.limits import BATCH_BYTES_MAX, KIB, MIB
from sdk.location import StoreIdentity
from sdk.wire.messages import Hello

PAUSE_SECONDS_MIN = 0.005
# A loop of wide rows fills a ring in 50 ms.
PAUSE_SECONDS_FULL = 0.001
PAUSE_SECONDS_MAX = 0.05
PAUSE_SECONDS_IDLE = 0.25
_BUSY_BYTES = 256 * KIB
# Signs of life; a trainer gives us up after a second without one.
_BEAT_SECONDS = 0.2
# Limit: what one tick reads, as `sessions` takes 64 messages: 15 ms for which no flush waits longer.
_TICK_BYTES = 32 * MIB


class Reading:
    """The rings that we read."""

    def __init__(
        self, streams: Streams, writing: Writing, store: StoreIdentity, stats: Stats, say: Callable[[str], None]
    ) -> None:
        self._streams = streams
        self._writing = writing
        self._store = store
        self._stats = stats
        self._say = say
        self._pause = PAUSE_SECONDS_MIN
        self._last = 0  # the stream that was read last
        self._beat_at = 0.0
        self._beats = 1

    def begin(self, hello: Hello, state: StreamState) -> bool:
        """Begins to read the ring that a Hello offers; False: it cannot be, and batches will come."""
        if state.reader is not None:
            state.reader.ring.close()
            state.reader = None
        watched = state.watched
        if not hello.session or watched is None or watched.file() != (hello.device, hello.inode):
            return False
        try:
            ring = LentRing(
                watched.path, watched.descriptor,
                stream=hello.stream, store=self._store.id, run=hello.run, session=hello.session,
            )  # fmt: skip
        except (OSError, ValueError, Error) as error:
            self._say(f"cannot read the ring of stream {hex_u64(hello.stream)}, it is to send: {error}")
            return False
        state.reader = RingReader(ring)
        state.greet(ring.begin[1] - 1)
        self._pause = PAUSE_SECONDS_MIN
        ring.beat(self._beats + 1)
        state.reader.tell(state.inbox, state.trouble)
        return True

    def _readers(self) -> list[tuple[int, StreamState, RingReader]]:
        """Those of which more may be taken: of one whose disk refuses no more waits here than a sender could have sent."""
        credit, found = admit.credit(len(self._streams.by_id)), self._streams.by_id.items()
        return [
            (stream, state, state.reader)
            for stream, state in found
            if state.reader is not None and not state.is_dead and state.waiting_bytes < credit
        ]

    def pause(self, longest: float) -> float:
        """How long to wait before the next look, at most `longest` seconds."""
        return min(longest, self._pause) if any(s.reader is not None for s in self._streams.by_id.values()) else longest

    def has_news(self) -> bool:
        """Whether any ring has something new; where none has, the next look comes later."""
        self.beat(clock.monotonic())
        if any(reader.has_news() for _, _, reader in self._readers()):
            return True
        self._pause = min(self._pause * 1.2, PAUSE_SECONDS_IDLE)
        return False

    def beat(self, now: float) -> None:
        """Signs of life, when they are due."""
        if now - self._beat_at >= _BEAT_SECONDS:
            self._beat_at = now
            self._beats = self._beats % 0xFFFF + 2
            for state in self._streams.by_id.values():
                if state.reader is not None:
                    state.reader.ring.beat(self._beats)

    def read(self, now: float) -> int:
        """Takes what is new, a tick's worth; returns how many bytes."""
        self.beat(now)
        total = 0
        for stream, state, reader in self._in_turn():
            if reader.has_news():
                total += self._read_one(stream, state, reader, now)
                self._last = stream
                if total >= _TICK_BYTES:
                    break
        if total > BATCH_BYTES_MAX:
            self._pause = PAUSE_SECONDS_FULL
        elif total > _BUSY_BYTES:
            self._pause = PAUSE_SECONDS_MIN
        elif total:
            self._pause = min(self._pause * 1.5, PAUSE_SECONDS_MAX)
        return total

    def _in_turn(self) -> Iterator[tuple[int, StreamState, RingReader]]:
        """All of them, beginning behind the one that was read last."""
        readers = self._readers()
        at = next((index + 1 for index, found in enumerate(readers) if found[0] == self._last), 0)
        yield from readers[at:]
        yield from readers[:at]

    def _read_one(self, stream: int, state: StreamState, reader: RingReader, now: float) -> int:
        try:
            batch = reader.next(stream)
            if batch is None:  # its trainer has taken it back, and says Hello when it wants to go on
                state.reader = None
                reader.ring.close()
                return 0
            self._stats.duplicates += state.take(batch, now) or 0
        except Exception as error:  # DamageError, OSError, or a bug that these bytes find: it must not end the daemon
            self._say(f"the ring of stream {hex_u64(stream)} cannot be read: {error!r}")
            self._stats.last_error = str(error)[:500]
            self._writing.drop_stream(stream, state)
            return 0
        self._stats.batches += 1
        state.heard, state.silent = now, False
        # Asked before all of it was read.
        if state.finishing is not None:
            state.policy.ask(Reason.FINISH)
        elif state.asked is not None:
            state.policy.ask(Reason.REQUEST)
        return len(batch.records)
