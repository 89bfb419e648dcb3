"""Trainers that live and have said nothing yet: their sender starts with the first `log()`, which may be minutes after `init()`.

Until then what they appended (their facts, a config that changes) is read out of their rings, as of the dead, and stored: the run is
in every list and is observed from its first second. Nothing is acked, and the ring stays as it is: their Hello, when it comes, meets
a stream that is known, and what is sent again falls by its sequence.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from daemon.ingest.streams import Streams, StreamState
from daemon.pipeline.flush import Reason
from sdk import platform
from sdk.errors import Error
from sdk.journal.drain import read_header, ring_stream
from sdk.journal.salvage import Window
from sdk.limits import MIB
from sdk.wire.messages import BATCH_HAS_META, BATCH_HAS_PIECES, Batch

# A sender that has started says Hello long before.
_PATIENCE_SECONDS = 0.5
# Limit: facts of a run take some KiB. A ring that holds more belongs to one who logs.
_BYTES_MAX = MIB


class Quiet:
    """Looks into the rings of living trainers that nobody speaks for."""

    def __init__(self, streams: Streams, store: bytes, watch: Callable[[StreamState], None]) -> None:
        """Args: `store` is the store's id; `watch` keeps a stream's ring open."""
        self._streams = streams
        self._store = store
        self._watch = watch
        self._seen: dict[str, float] = {}
        self._heads: dict[str, int] = {}

    def look(self, paths: set[str], now: float) -> None:
        """Takes what is new in the rings of `paths`, which are locked; the others are forgotten."""
        for known in [path for path in self._seen if path not in paths]:
            del self._seen[known]
            self._heads.pop(known, None)
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
        from sdk.journal.survey import Survey  # needs numpy, for which no trainer's Hello should wait

        descriptor = platform.open_regular(path, os.O_RDONLY)
        try:
            header = read_header(path, descriptor)
            head, released = header.head, header.released
            # Where anything was stored or much was logged, somebody speaks for it, or will.
            if header.identity.get("store") != self._store or released is None or released[:2] != (0, 1):
                return
            if head > _BYTES_MAX or head == self._heads.get(path):
                return
            data = Window(descriptor, header.capacity).read(0, head)
        finally:
            os.close(descriptor)
        found = Survey(data, 1, released[2])
        if found.has_blobs or not found.size:
            return
        if state is None:
            state = self._streams.make(header.stream, str(header.identity["run"]), 0)
            state.ring, state.pid, state.has_spoken = path, platform.lock_owner(path) or 0, False
            self._watch(state)
        flags = BATCH_HAS_PIECES | BATCH_HAS_META
        state.take(Batch(header.stream, 1, found.last, flags, found.step_max, memoryview(data)[: found.size]), now)
        state.heard = now
        state.policy.ask(Reason.REQUEST)
        self._heads[path] = head
