"""Following a run that grows: which rows are new since the last look.

Nothing is kept but which blocks were seen. New blocks name the steps that they touch; those rows are then read whole, from
all blocks that may hold them, so a late piece gives its row again and memory does not grow with the run.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..arrays import distinct
from .join import Selection, items
from .lanes import Lane
from .looks import steps_in
from .scan import Scan
from .state import RUNNING

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from .additions import Additions
    from .run import Run


class Follower:
    """A place in a run's growth. Belongs to one reader; `Run.look_for_new` moves it.

    Attributes:
        keys: Which are wanted; None: all.
        added: What was made of the rows at the last look.
        ended: Which lanes had ended by then.
    """

    def __init__(
        self, keys: frozenset[str] | None = None, seen: Mapping[int, list[tuple[int, int]]] | None = None
    ) -> None:
        self.keys = keys
        # By stream the sequences that were seen, as ranges in order that do not touch.
        self._last: dict[int, list[tuple[int, int]]] = {stream: list(ranges) for stream, ranges in (seen or {}).items()}
        self.added: Additions | None = None
        self.ended: list[bool] = []

    def new_steps(
        self, scan: Scan, lanes: list[Lane], needed: Callable[[frozenset[str]], frozenset[str]] = frozenset
    ) -> NDArray[numpy.int64]:
        """The steps that blocks touch which were not there at the last call, ascending.

        Args:
            needed: Gives the logged keys of which some keys may be made.
        """
        import numpy

        keys = None if self.keys is None else needed(self.keys)
        # Race: reading opens segments again, which finds what was appended meanwhile; nobody has looked at that yet.
        looked_at = _stored(scan)
        steps = [numpy.empty(0, numpy.int64)]
        for item in items(scan, lanes, Selection(keys)):
            entry = item.entry
            seen = _within(self._last.get(entry.stream, []), entry.first, entry.last)
            # By sequence, not by file and block: recovery, a drain and compaction store the same records elsewhere.
            if not any(low <= entry.first and entry.last <= high for low, high in seen):
                steps.append(steps_in(scan, item, Selection(keys), seen))
        self._note(looked_at)
        return distinct(numpy.concatenate(steps))

    def settled(self, steps: NDArray[numpy.int64]) -> dict[str, int]:
        """By key the step at which its last known epoch ends; none where something new is below one."""
        if self.added is None:
            return {}
        ends = {key: max(values, default=-1) for key, values in self.added.epochs.items()}
        return {} if len(steps) and int(steps[0]) <= max(ends.values(), default=-1) else ends

    def with_epochs(self, steps: NDArray[numpy.int64], added: Additions) -> NDArray[numpy.int64]:
        """Some steps, and those at which an epoch has another value than at the last call."""
        import numpy

        found: list[int] = []
        for key, values in added.epochs.items():
            before = self.added.epochs.get(key, {}) if self.added is not None else {}
            found += [step for step in values if step not in before or not _alike(before[step], values[step])]
            found += before.keys() - values.keys()  # a late row may move the end of an epoch
        self.added = added
        return distinct(numpy.concatenate([steps, numpy.array(found, numpy.int64)]))

    def mark(self, scan: Scan) -> None:
        """Takes everything that is stored now for seen."""
        self._note(_stored(scan))

    def _note(self, stored: dict[int, list[tuple[int, int]]]) -> None:
        for stream, ranges in stored.items():
            self._last[stream] = united([*self._last.get(stream, ()), *ranges])


def _alike(one: Any, other: Any) -> bool:
    return bool(one == other or (one != one and other != other))


def _stored(scan: Scan) -> dict[int, list[tuple[int, int]]]:
    """The sequences that a scan knows of now, as ranges by stream."""
    return {stream: [(entry.first, entry.last) for entry in entries] for stream, entries in scan.plan().items()}


def _within(ranges: list[tuple[int, int]], first: int, last: int) -> list[tuple[int, int]]:
    """Those of some united ranges that share a number with `first` to `last`; a hostile run has one for each block."""
    start = bisect_left(ranges, first, key=lambda numbers: numbers[1])
    return ranges[start : bisect_right(ranges, last, lo=start, key=lambda numbers: numbers[0])]


def united(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same numbers as few ranges."""
    united: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if united and first <= united[-1][1] + 1:
            united[-1] = (united[-1][0], max(united[-1][1], last))
        else:
            united.append((first, last))
    return united


def follow_run(
    run: Run,
    follower: Follower,
    poll_seconds: float,
    timeout: float | None,
    wait: Callable[[float], None],
    last: int | None,
) -> Iterator[dict[str, Any]]:
    """See `Run.follow`."""
    if last is not None:
        yield from run.tail_and_mark(last, follower)
    idle = 0.0
    while True:
        # Race: asked before looking, so that rows stored between the last look and the end are still given.
        running = run.state == RUNNING
        rows = run.look_for_new(follower)
        yield from rows
        idle = 0.0 if rows else idle
        if not running or (timeout is not None and idle >= timeout):
            return
        wait(poll_seconds)
        idle += poll_seconds
