"""What came into a run since the last look, at the cost of what came: for whoever looks at many runs that go on, every few seconds.

`Follower` gives rows as they should be read, merged and in order, and looks at every block's header for it; this gives the last blocks of
each stream as they stand, of whatever kind it is. Segments that may grow stay open between two looks (`Scan.growing_open_max`), and a
run whose directory looks as before is not looked at further.
"""

from __future__ import annotations

from typing import NamedTuple

from ..errors import DamageError
from ..limits import STEP_MAX
from ..segment.format import KIND_COLUMNS, KIND_ROWS, Block
from .entries import Source
from .facts import StreamFacts
from .gaps import Gap
from .lanes import Lane
from .parts import Part
from .run import Run
from .scan import row_parts

# Limit: descriptors kept for a run: the daemon's segment, its observer's, and those of some other hosts.
_GROWING_OPEN_MAX = 4


class New(NamedTuple):
    """What one stream has got.

    Attributes:
        stream: Whose it is.
        parts: Its rows as they stand, oldest first; the last blocks of many.
        skipped: How many blocks before those were not read.
    """

    stream: StreamFacts
    parts: list[Part]
    skipped: int


class Newest:
    """A place in a run's growth. Owns the run that it is given: nobody else may use it. `close` when it is not looked at any more.

    Attributes:
        step_max: The largest step of the training's rows, by the blocks' headers; what a resume hid does not count.
        course: The streams of the main lane, and from which step on rows of any stream are hidden: another one when the run was resumed.
        missed: Whether rows came with the last look that were columns already, which are not read.
    """

    def __init__(self, run: Run, keep_open: bool = True) -> None:
        """Args: `keep_open` keeps segments that may grow open between two looks."""
        self.run = run
        run._scan.growing_open_max = _GROWING_OPEN_MAX if keep_open else 0
        self._listed: list[tuple[str, int, float]] | None = None
        # By segment how many of its blocks were looked at, and by stream the last sequence.
        self._counts: dict[str, int] = {}
        self._last: dict[int, int] = {}
        self.step_max = 0
        self.missed = False
        self.course: tuple[tuple[int, ...], dict[int, int]] = ((), {})

    def has_changed(self) -> bool:
        """Whether anything in the run's directory is not as it was at the last look."""
        return self._entries() != self._listed

    def _entries(self) -> list[tuple[str, int, float]] | None:
        try:
            return self.run._files.entries(self.run.directory)
        except OSError:
            return None

    def look(self, blocks_max: int) -> list[New]:
        """What came since the last look, for each stream, of that at most `blocks_max` blocks of rows; columns are not read.

        Raises:
            StoreError: The segments keep disappearing.
        """
        self._listed = self._entries()
        return self.run._reading(lambda: self._read(blocks_max))

    def state(self) -> str:
        """The run's state now, by what was looked at."""
        return self.run._state_of_streams()

    def is_doubtful(self) -> bool:
        """Whether its state is only by how long its files were silent: of a process of another host that did not say that it ends."""
        streams = (stream for lane in self.run._lanes for stream in lane.streams)
        return any(stream.end is None and self.run._alive(stream) is None for stream in streams)

    def lanes(self, kind: str | None = None) -> list[Lane]:
        """The lanes of the training, or of the streams of a kind that accompanies it."""
        return self.run._lanes if kind is None else self.run._side_lanes(kind)

    def refused(self) -> list[Gap]:
        """What the run says was refused."""
        return self.run._facts.refused()

    def rest(self) -> None:
        """Closes what was kept open until there is something new."""
        kept, self.run._scan.growing_open_max = self.run._scan.growing_open_max, 0
        self.run._scan.close()
        self.run._scan.growing_open_max = kept

    def close(self) -> None:
        """Closes what was kept open."""
        self.run._scan.growing_open_max = 0
        self.run._scan.close()

    def _read(self, blocks_max: int) -> list[New]:
        scan, streams = self.run._scan, self.run._facts.streams
        counts = {name: len(source.blocks) for name, source in scan.sources.items()}
        lanes = self.run._lanes
        limits = {stream.id: limit for lane in lanes for stream, limit in zip(lane.streams, lane.step_limits)}
        main = tuple(stream.id for lane in lanes[:1] for stream in lane.streams)
        course = main, {number: limit for number, limit in limits.items() if limit <= STEP_MAX}
        found: dict[int, list[tuple[Source, Block]]] = {}
        last, missed = dict(self._last), False
        step_max = self.step_max if course == self.course else self.run.step_max
        for name, source in scan.sources.items():
            for block in source.blocks[self._counts.get(name, 0) :]:
                # What was rewritten or comes from another writer says again what was seen.
                if block.stream not in streams or block.last <= self._last.get(block.stream, 0):
                    continue
                if block.step_min < limits.get(block.stream, 0):
                    step_max = max(step_max, min(block.step_max, limits[block.stream] - 1))
                last[block.stream] = max(last.get(block.stream, 0), block.last)
                missed |= block.kind == KIND_COLUMNS
                if block.kind == KIND_ROWS:
                    found.setdefault(block.stream, []).append((source, block))
        new = [self._new(streams[number], blocks, blocks_max) for number, blocks in found.items()]
        self._counts, self._last, self.step_max, self.course, self.missed = counts, last, step_max, course, missed
        return [one for one in new if one.parts or one.skipped]

    def _new(self, stream: StreamFacts, blocks: list[tuple[Source, Block]], blocks_max: int) -> New:
        blocks.sort(key=lambda item: item[1].first)
        parts: list[Part] = []
        for source, block in blocks[-blocks_max:]:
            try:
                parts.extend(row_parts(block, self.run._scan.payload(source, block)))
            except DamageError as error:
                self.run._scan.note(source, block, error.message)
        return New(stream, parts, max(len(blocks) - blocks_max, 0))
