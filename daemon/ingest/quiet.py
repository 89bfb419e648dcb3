"""Trainers that live and have said nothing yet: their sender starts with the first `log()`, which may be minutes after `init()`.

Until then what they appended (their facts, a config that changes) is read out of their rings, as of the dead, and stored: the run is
in every list and is observed from its first second. Nothing is acked, and the ring stays as it is: their Hello, when it comes, meets
a stream that is known, and what is sent again falls by its sequence.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from daemon.ingest.streams import Streams, StreamState
from sdk import platform
from sdk.errors import Error
from sdk.journal.drain import Drained, drain, ring_stream
from sdk.wire.messages import Batch

# A sender that has started says Hello long before.
_PATIENCE_SECONDS = 0.5

Cut = Callable[[int, Drained], Iterator[Batch]]


class Quiet:
    """Looks into the rings of living trainers that nobody speaks for."""

    def __init__(self, streams: Streams, store: str, cut: Cut, watch: Callable[[StreamState], None]) -> None:
        """Args: `store` is the store's id; `cut` makes batches of what a ring holds; `watch` keeps a stream's ring open."""
        self._streams = streams
        self._store = store
        self._cut = cut
        self._watch = watch
        self._seen: dict[str, float] = {}
        self._sizes: dict[str, int] = {}

    def look(self, paths: set[str], now: float) -> None:
        """Takes what is new in the rings of `paths`, which are locked; the others are forgotten."""
        for known in [path for path in self._seen if path not in paths]:
            del self._seen[known]
            self._sizes.pop(known, None)
        for path in sorted(paths):
            state = self._streams.by_id.get(ring_stream(path))
            if state is not None and state.has_spoken:
                continue
            if now - self._seen.setdefault(path, now) < _PATIENCE_SECONDS or platform.lock_owner(path) == os.getpid():
                continue
            try:
                self._visit(path, state, now)
            except (OSError, Error, ValueError, KeyError, TypeError):
                continue  # in the middle of a change, or gone; its Hello or its end brings what it holds

    def _visit(self, path: str, state: StreamState | None, now: float) -> None:
        drained = drain(path)
        header = drained.header
        if header.identity.get("store") != self._store or header.head == self._sizes.get(path):
            return
        # Where anything was stored or damaged, somebody speaks for it, or will.
        if drained.stored or drained.damage is not None or len(drained.pieces) != 1:
            return
        if state is None:
            state = self._streams.make(header.stream, str(header.identity["run"]), 0)
            state.ring, state.pid, state.has_spoken = path, platform.lock_owner(path) or 0, False
            self._watch(state)
        for batch in self._cut(header.stream, drained):
            state.take(batch, now)
        state.heard = now
        self._sizes[path] = header.head
