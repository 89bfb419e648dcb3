"""What the server drives, a tick at a time: `receive` what is there, `flush` what is due, `sync` what was written.

Life of a stream here: Hello (or a dead ring) makes it; batches fill it; it is forgotten when it is finished or when its
trainer is dead and its ring drained. Its run's writer is sealed when its last stream is gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from daemon.ingest.blobs import Blobs
from daemon.ingest.dead import Dead
from daemon.ingest.forcing import Forcing
from daemon.ingest.reading import Reading
from daemon.ingest.router import Router
from daemon.ingest.sessions import Sessions
from daemon.ingest.streams import Streams, StreamState
from daemon.ingest.writing import Writing
from daemon.pipeline.flush import Reason
from daemon.settings import DaemonSettings
from daemon.stats import Stats
from daemon.store.run_writer import RunWriter
from sdk import clock
from sdk.budget import Keeper
from sdk.files import Files
from sdk.location import StoreIdentity
from sdk.wire.messages import Control

_FULL_PAUSE_SECONDS = 0.05
# Limit: measuring a large store takes a tenth of the thread's time, 100 000 files some ten seconds.
_MEASURE_SECONDS = 0.001
_MEASURE_PAUSE_SECONDS = 0.01


class Ingest:
    """The socket, the streams behind it, and the segments behind those.

    Attributes:
        table, router, budget, sessions, reading, writing, forcing, dead: The parts, each with a module of its own.
    """

    def __init__(
        self,
        files: Files,
        store: StoreIdentity,
        settings: DaemonSettings,
        stats: Stats,
        make_writer: Callable[[str], RunWriter],
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._say = say
        self._is_measuring = False
        self.table = Streams(settings, stats.flushes)
        self.router = Router()
        self.budget = Keeper(files, store.path, settings.budget)
        self.sessions = Sessions(self.router, self.table, store.id, stats, say, self.budget)
        self.writing = Writing(self.router, self.table, make_writer, stats, say, self.budget, Blobs(files))
        self.forcing = Forcing(files, self.table, self.writing, settings, stats, say)
        self.dead = Dead(files, self.table, self.writing, store, settings, stats, say)
        self.reading = Reading(self.table, self.writing, store, stats, say)
        self.sessions.reads = self.reading.begin
        self.sessions.greeted = self.dead.watch

    @property
    def streams(self) -> dict[int, StreamState]:
        return self.table.by_id

    @property
    def writers(self) -> dict[str, RunWriter]:
        return self.writing.writers

    @property
    def control(self) -> Callable[[Control], dict[str, Any]]:
        """Answers commands of the command line."""
        return self.sessions.control

    @control.setter
    def control(self, answer: Callable[[Control], dict[str, Any]]) -> None:
        self.sessions.control = answer

    def bind(self, path: str) -> None:
        """Opens the socket at `path`. The caller holds the store's lock."""
        self.router.bind(path)
        if not self.router.knows_users:
            self._say("this libzmq cannot ask the kernel who connects: the directory's mode alone keeps others out")

    def socket_is_ours(self) -> bool:
        """Whether the socket's file is still the one that we bound."""
        return self.router.file_is_ours()

    def rebind(self) -> None:
        """Opens the socket again after its file was removed or replaced; sessions begin anew.

        Raises:
            OSError: Something stands at its path that cannot be removed. There is no socket then; another call may help.
        """
        path = self.router.path
        self.unbind()
        self.bind(path)

    def forget_socket(self) -> None:
        """The file at our path, if there is one, is another daemon's: it stays when we leave."""
        self.router.forget_file()

    def unbind(self) -> None:
        self.router.unbind()
        self.table.forget_peers()

    def is_full(self) -> bool:
        """Whether so much waits for the disk that nothing more is received."""
        return self.table.waiting_bytes > self._settings.pending_bytes_max

    def wait(self, seconds: float) -> None:
        """Waits until a message is there, or a record in a ring that we read, at most `seconds`."""
        if not self.router.is_bound or self.is_full():
            clock.pause(min(seconds, _FULL_PAUSE_SECONDS))
            return
        pause = self.reading.pause(seconds)
        while not self.router.poll(pause) and not self.reading.has_news() and seconds > pause:
            # Why here: a tick costs ten times what this look at mapped memory does, and most find nothing.
            seconds -= pause
            pause = self.reading.pause(seconds)

    def make_room(self, now: float) -> None:
        """Sees to it that descriptors are left for who comes next, if need be by ending connections that say nothing.

        Raises:
            OSError: The socket's file cannot be hidden or shown now, or not be bound again.
        """
        was_deaf = self.router.is_deaf
        if self.router.make_room(now, self.table.peers):
            self._say("connections that say nothing take nearly all descriptors: all are ended, sessions begin anew")
            self.rebind()
        elif self.router.is_deaf != was_deaf:
            self._say("nearly all descriptors are taken: no new connection" if not was_deaf else "listening again")

    def receive(self, now: float) -> int:
        """Takes messages that are there, a tick's worth, and what is new in rings; returns how many messages."""
        if self.is_full():
            self.reading.beat(now)
            return 0
        count = self.sessions.receive(now)
        self.reading.read(now)
        return count

    def flush(self, now: float, reason: Reason | None = None) -> None:
        """Writes what is due, or everything for `reason`; sends acks to everybody who was heard in this tick."""
        self.writing.flush(now, reason)

    def sync(self, now: float) -> None:
        """Hands dirty segments to the syncer at its interval, and takes its results."""
        self.forcing.sync(now)

    def measure(self, now: float) -> None:
        """Goes on with a look at what the store takes, for about a millisecond."""
        self._is_measuring = self.budget.step(now, _MEASURE_SECONDS)

    def synced_age(self, now: float) -> float:
        """Seconds for which something written has not been forced; 0 when all of it was."""
        return self.forcing.age(now)

    def look_for_dead(self, now: float) -> bool:
        """Drains rings whose owner died; returns whether a living trainer of this store was seen."""
        return self.dead.look(now)

    def take_ended(self) -> tuple[str, int, bool] | None:
        """(run, stream, whether its trainer is dead) of a stream that ended and nobody looked after yet."""
        if not self.writing.ended:
            return None
        (run, stream), is_dead = self.writing.ended.popitem()
        return run, stream, is_dead

    def take_sealed(self) -> set[str]:
        """Of which kinds (HISTORY, MEDIA) we sealed segments since the last call."""
        sealed, self.writing.sealed = self.writing.sealed, set()
        return sealed

    def refused_by_stream(self) -> dict[int, int]:
        """Refused counts of living trainers."""
        return self.dead.refused_by_stream()

    def troubles(self) -> dict[int, int]:
        """Why streams wait now, and how many: codes of `REFUSED_REASONS`."""
        return dict(Counter(state.trouble for state in self.streams.values() if state.trouble))

    def next_deadline(self, now: float) -> float:
        """Seconds until something is due without a new message."""
        longest = self._settings.liveness_seconds
        forcing = self.forcing.next_deadline(now)
        if forcing is not None:
            longest = min(longest, forcing)
        deadlines = [
            max(d, state.held_until) for state in self.streams.values() if (d := state.policy.deadline()) is not None
        ]
        if self._is_measuring:
            longest = min(longest, _MEASURE_PAUSE_SECONDS)
        if not deadlines:
            return longest
        return min(longest, max(min(deadlines) - now, self.writing.pause_until - now, 0.0))

    def close(self) -> None:
        """Writes and seals everything, ends the syncer, closes the socket."""
        now = clock.monotonic()
        self.flush(now, Reason.DRAIN)
        for writer in self.writers.values():
            writer.roll()
        self.forcing.close(now)
        self.table.close()
        self.router.close()
