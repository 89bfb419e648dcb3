"""What is asked of all rows without making them: their steps, their keys, the last value of each key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..arrays import distinct
from ..errors import DamageError
from ..record import Record
from .join import ALL, Item, Selection, items
from .lanes import Lane
from .parts import (
    Part,
    Rows,
    column_of,
    highest_step,
    listed,
    lowest_step,
    shown,
    steps_in_rows,
    times_us,
    values_of,
)
from .scan import DIRECTORY, ROWS, Scan

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

_UNIQUE_EVERY = 64  # blocks; keeps many small blocks from holding many copies of the same steps


def steps_of(scan: Scan, lanes: list[Lane], selection: Selection = ALL) -> NDArray[numpy.int64]:
    """The steps that `rows` would give, ascending, without making the rows."""
    import numpy

    found = [numpy.empty(0, numpy.int64)]
    for item in items(scan, lanes, selection):
        found.append(steps_in(scan, item, selection))
        if len(found) > _UNIQUE_EVERY:
            found = [distinct(numpy.concatenate(found))]
    return distinct(numpy.concatenate(found))


def last_steps(scan: Scan, lanes: list[Lane], count: int, selection: Selection = ALL) -> NDArray[numpy.int64]:
    """The `count` largest steps that `rows` would give, reading from the end only the blocks that may hold them."""
    import numpy

    steps = numpy.empty(0, numpy.int64)
    if count < 1:
        return steps
    for item in sorted(items(scan, lanes, selection), key=lambda item: -item.entry.step_max):
        if len(steps) >= count and int(steps[-count]) > item.entry.step_max:
            break
        steps = distinct(numpy.concatenate([steps, steps_in(scan, item, selection)]))[-count:]
    return steps


def steps_in(
    scan: Scan, item: Item, selection: Selection, seen: Sequence[tuple[int, int]] = ()
) -> NDArray[numpy.int64]:
    """The wanted steps of one entry, ascending.

    Args:
        seen: Ranges of sequences, inclusive, whose records do not count.
    """
    import numpy

    found: list[NDArray[numpy.int64]] = []
    single: list[int] = []
    wanted = selection.keys
    for part in scan.parts(item.entry, wanted, depth=ROWS, ordered=not seen):
        if isinstance(part, Record):
            fresh = not any(low <= part.sequence <= high for low, high in seen)
            if fresh and (wanted is None or wanted & _keys_of(part)):
                single.append(part.step)
        elif wanted is None or not wanted.isdisjoint(part.keys):
            found.append(_fresh_steps(part, seen))
    steps = numpy.concatenate([*found, numpy.array(single, numpy.int64)])
    steps = steps[steps >= selection.first_step]
    if len(steps) and int(steps.max()) >= item.limit:
        steps = steps[steps < item.limit]
    if selection.steps is not None:
        steps = steps[numpy.isin(steps, selection.steps)]
    return distinct(steps)


def _fresh_steps(rows: Rows, seen: Sequence[tuple[int, int]]) -> NDArray[numpy.int64]:
    import numpy

    steps = steps_in_rows(rows)
    if not seen:
        return steps
    sequences = rows.sequences()
    fresh = numpy.ones(len(steps), bool)
    for low, high in seen:
        fresh &= (sequences < low) | (sequences > high)
    return steps[fresh]


def _keys_of(record: Record) -> frozenset[str]:
    try:
        return frozenset(values_of(record))
    except DamageError:
        return frozenset()


def keys_of(scan: Scan, lanes: list[Lane], blocks_max: int | None = None, first_step: int = 0) -> set[str]:
    """All keys that some visible row holds, or those in at most `blocks_max` blocks of rows spread over the run; blocks that only
    hold rows below `first_step` are left out.

    Of columns no value is read: the index of a segment tells of those in which nothing is hidden, directories of the others.
    """
    found: set[str] = set()
    looked_at: list[Item] = []
    told: dict[str, list[Item]] = {}
    for item in items(scan, lanes, Selection(first_step=first_step)):
        whole = item.entry.is_window and item.entry.step_max < item.limit
        (told.setdefault(item.entry.source.name, []) if whole else looked_at).append(item)
    for found_in in told.values():
        keys = _indexed(scan, found_in)
        if keys is None:
            looked_at += found_in
        else:
            found |= keys
    for item in _spread(looked_at, blocks_max):
        for part in scan.parts(item.entry, depth=DIRECTORY):
            if isinstance(part, Record):
                found |= _keys_of(part) if part.step < item.limit else set()
            elif lowest_step(part) < item.limit:
                found.update(part.keys)
    return found


def _indexed(scan: Scan, found_in: list[Item]) -> set[str] | None:
    """The keys in windows of one segment, by its index."""
    try:
        return scan.indexed_keys(found_in[0].entry.source, [b for item in found_in for b in item.entry.columns])
    except DamageError:
        return None


def _spread(found: list[Item], count: int | None) -> list[Item]:
    if count is None or len(found) <= count:
        return found
    last = len(found) - 1
    return [found[last * n // max(count - 1, 1)] for n in range(count)]


# Key to ((lane, step, position, sequence), value, time).
_Best = dict[str, tuple[tuple[int, int, int, int], Any, int]]


def last_values(scan: Scan, lanes: list[Lane]) -> dict[str, Any]:
    """For each key its value at the largest step, in the first lane that holds it; nulls do not count.

    Reads from the end, and of columns only those of keys whose last value may be in them.
    """
    best: _Best = {}
    for item in sorted(items(scan, lanes), key=lambda item: (item.lane, -item.entry.step_max)):
        wanted = _unsettled(scan, item, best)
        if wanted is None or wanted:
            for part in scan.parts(item.entry, wanted):
                _keep_last(best, item, part, wanted)
    return {key: shown(value, scan.blobs, key, rank[1], time_us / 1e6) for key, (rank, value, time_us) in best.items()}


def _unsettled(scan: Scan, item: Item, best: _Best) -> frozenset[str] | None:
    """The keys in an entry whose last value may be there; None: all, nobody knows."""
    entry = item.entry
    if not entry.is_window:
        return None
    keys: set[str] = set()
    for part in scan.parts(entry, depth=DIRECTORY):
        if isinstance(part, Record):  # of what a damaged window was made of
            return None
        high = min(highest_step(part), item.limit - 1)
        if lowest_step(part) <= high:
            keys.update(key for key in part.keys if key not in best or (-item.lane, high) >= best[key][0][:2])
    return frozenset(keys)


def _keep_last(best: _Best, item: Item, part: Part, wanted: frozenset[str] | None) -> None:
    import numpy

    pairs: list[tuple[str, Any]]
    if isinstance(part, Record):
        if part.step >= item.limit:
            return
        try:
            pairs = list(values_of(part).items())
        except DamageError:
            return
        step, sequence, time_us = part.step, part.sequence, part.time_ns // 1000
    else:
        index = _last_of(part, item.limit)
        if index is None:
            return
        place = numpy.array([index])
        keys = [key for key in part.keys if wanted is None or key in wanted]
        pairs = [(key, listed(column_of(part, key, None, place))[0]) for key in keys]
        step, sequence = int(part.steps()[index]), int(part.sequences()[index])
        time_us = int(times_us(part)[index])
    rank = (-item.lane, step, item.position, sequence)
    for key, value in pairs:
        old = best.get(key)
        if value is not None and (old is None or rank >= old[0]):
            best[key] = (rank, value, time_us)


def _last_of(rows: Rows, limit: int) -> int | None:
    """The place of the last visible row: the largest step, then the largest sequence."""
    import numpy

    steps = steps_in_rows(rows)
    visible = numpy.arange(len(steps)) if highest_step(rows) < limit else numpy.flatnonzero(steps < limit)
    if not len(visible):
        return None
    top = visible[steps[visible] == steps[visible].max()]
    return int(top[rows.sequences()[top].argmax()])
