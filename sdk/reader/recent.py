"""A living stream's own look at its run: what its ring holds, joined with what the store holds, without waiting for anybody.

The first look reads what is stored, and what is in the ring and may not be stored yet. Every later one takes what was logged since
(`Tally`): from the ring, or from the store as far as `log()` has overwritten it by now. Only when a settled row was changed everything
is read again.
What other streams logged is looked at once a second at most.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .. import clock
from ..ids import hex_u64
from ..journal.page import Mark
from ..journal.snapshot import Snapshot
from ..limits import STEP_MAX
from ..segment import format as segment
from ..segment.format import Block
from . import looks
from .columns import Column, collect, collect_entry, join
from .direct import Chunk
from .entries import Source
from .facts import StreamFacts
from .lanes import Lane
from .metrics import Definitions
from .scan import Scan
from .summaries import summary_of
from .tally import Tally

if TYPE_CHECKING:
    from .columns import Joined
    from .run import Run

OTHERS_SECONDS = 1.0
# Where a stream stands that has ended: everything is stored.
OVER: Mark = (0, 0, STEP_MAX)


class Recent:
    """What one stream, which lives in this process, logged last. Thread-safe."""

    def __init__(
        self,
        run: Run,
        stream: str,
        take: Callable[[Mark | None], Snapshot | None],
        said: Callable[[], Mapping[str, Any]],
    ) -> None:
        """Args: `run` is nobody else's; `take` gives what was logged since a mark; `said` what `define_metric` says now."""
        self._run = run
        self._stream = int(stream, 16)
        self._take = take
        self._said = said
        self._lock = threading.Lock()
        self._end: Mark = (0, 1, 0)
        self._known: dict[str, Any] = {}
        self._tally: Tally | None = None
        self._others: dict[str, Any] = {}
        self._looked = -float("inf")

    def summary(self) -> dict[str, Any]:
        """Of every key the last value, or what was asked of it: this stream's, else what others have stored."""
        with self._lock:
            found = self._fresh().summary()
            if clock.monotonic() - self._looked >= OTHERS_SECONDS:
                self._look_at_others()
            others, removed, told = self._others, set(self._run._facts.removed), dict(self._run._facts.summary)
        shown = {key: value for key, value in found.items() if key not in removed}
        return {**others, **shown, **told}

    def latest(self, key: str, *, partial: bool) -> Any:
        """See `Run.latest` of `sdk`."""
        with self._lock:
            return self._fresh().latest(key, partial=partial)

    def _fresh(self) -> Tally:
        said = dict(self._said())
        if self._tally is None or said != self._known or not self._advance(self._tally):
            self._known = said
            self._tally = self._begin()
        return self._tally

    def _advance(self, tally: Tally) -> bool:
        """Takes what was logged since; False where that cannot be."""
        new = self._take(self._end)
        if new is not None and new.end == self._end:
            return True
        if new is not None:
            columns = self._in_ring(new)
        else:
            new = self._take(None)
            if new is None:
                return False
            columns = self._in_store(new)
        self._end = new.end
        tally.is_over = new.end == OVER
        return tally.take(columns, new.end[2])

    def _in_ring(self, new: Snapshot) -> dict[str, Column]:
        scan = Scan(self._run._scan.files, self._run.directory)
        scan.blobs = self._run._scan.blobs
        scan.hold([_memory(self._stream, new)] if new.records else [])
        return self._columns(scan, 0)

    def _in_store(self, new: Snapshot) -> dict[str, Column]:
        """What was logged since the last look, of which a part is not in the ring any more: it is stored."""
        scan, since = self._run._scan, self._end[1]
        scan.hold([_memory(self._stream, new)] if new.records else [])
        try:
            return self._run._reading(lambda: self._columns(scan, since))
        finally:
            scan.hold([])

    def _columns(self, scan: Scan, since: int) -> dict[str, Column]:
        """The values of this stream's records from sequence `since` on."""
        columns: dict[str, dict[int, Column]] = {}
        for entry in scan.plan().get(self._stream, ()):
            if entry.last >= since and entry.holds_rows:
                collect_entry(scan, entry, None, STEP_MAX + 1, False, columns)
        return {key: _since(by_stream[self._stream], since) for key, by_stream in columns.items()}

    def _begin(self) -> Tally:
        """Reads everything: the ring first, so that nothing is missed that is stored meanwhile."""
        new = self._take(None)
        scan = self._run._scan
        scan.hold([_memory(self._stream, new)] if new is not None and new.records else [])
        try:
            tally = self._run._reading(lambda: self._read(scan, new.end[2] if new is not None else STEP_MAX))
        finally:
            scan.hold([])
        if new is not None:
            self._end = new.end
            tally.is_over = new.end == OVER
        return tally

    def _read(self, scan: Scan, open_step: int) -> Tally:
        definitions = Definitions({**self._run._facts.metrics, **self._known})
        own = self._own_lane()
        last = looks.last_values(scan, [own])
        needed = Tally.needs(definitions, last)
        plan = scan.plan()
        columns: dict[str, Joined] = {
            key: join([(n, s.id, by_stream[s.id]) for n, s in enumerate(own.streams) if s.id in by_stream])
            for key, by_stream in (collect(scan, plan, own, needed) if needed else {}).items()
        }
        return Tally(definitions, last, columns, open_step)

    def _own_lane(self) -> Lane:
        for lane in self._run._lanes:
            if any(stream.id == self._stream for stream in lane.streams):
                return lane
        return Lane([StreamFacts(self._stream)], [STEP_MAX + 1])

    def _look_at_others(self) -> None:
        """Reads what other lanes have stored by now."""
        run, wanted = self._run, hex_u64(self._stream)
        self._others = {}
        run.refresh()
        lanes = [lane for lane in run._lanes if all(stream.hex != wanted for stream in lane.streams)]
        if lanes:
            definitions = Definitions({**run._facts.metrics, **self._known})
            last = run._reading(lambda: looks.last_values(run._scan, lanes))
            shown = {key: value for key, value in last.items() if key[:1] != "_" and key not in run._facts.removed}
            self._others = summary_of(shown, definitions, run._read_all, run._extremes)
        self._looked = clock.monotonic()


def _since(column: Column, since: int) -> Column:
    """The values of records from a sequence on."""
    import numpy

    column.flush()
    for place, chunk in enumerate(column.chunks):
        assert chunk.sequence is not None  # as entries were not said to stand alone
        if len(chunk.sequence) and int(chunk.sequence.min()) < since:
            kept = numpy.flatnonzero(chunk.sequence >= since)
            values = chunk.values
            column.chunks[place] = Chunk(
                chunk.sequence[kept],
                chunk.step[kept],
                chunk.time_us[kept],
                [values[n] for n in kept.tolist()] if isinstance(values, list) else values[kept],
            )
    return column


def _memory(stream: int, new: Snapshot) -> Source:
    """Records of a ring as what a scan reads. Its header tells little: nothing is chosen by it."""
    first, last, size = new.start[1], new.end[1] - 1, len(new.records)
    source = Source(f"ring at {new.start[0]}")
    source.sealed, source.memory = True, new.records
    flags = segment.FLAG_HAS_META
    source.blocks = [
        Block(
            new.start[0],
            segment.KIND_ROWS,
            0,
            size,
            size,
            0,
            last - first + 1,
            0,
            stream,
            first,
            last,
            0,
            STEP_MAX,
            flags,
            0,
            0,
        )
    ]
    return source
