"""What is asked of all rows without making them: their steps, their keys, the last value of each key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import DamageError
from ..record import Record
from ..shapes import Group
from .join import ALL, Item, Selection, items
from .lanes import Lane
from .media import with_items
from .scan import Part, Scan, values_of

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
            found = [numpy.unique(numpy.concatenate(found))]
    return numpy.unique(numpy.concatenate(found))


def last_steps(scan: Scan, lanes: list[Lane], count: int, selection: Selection = ALL) -> NDArray[numpy.int64]:
    """The `count` largest steps that `rows` would give, reading from the end only the blocks that may hold them."""
    import numpy

    steps = numpy.empty(0, numpy.int64)
    if count < 1:
        return steps
    for item in sorted(items(scan, lanes, selection), key=lambda item: -item.entry.block.step_max):
        if len(steps) >= count and int(steps[-count]) > item.entry.block.step_max:
            break
        steps = numpy.unique(numpy.concatenate([steps, steps_in(scan, item, selection)]))[-count:]
    return steps


def steps_in(
    scan: Scan, item: Item, selection: Selection, seen: Sequence[tuple[int, int]] = ()
) -> NDArray[numpy.int64]:
    """The wanted steps of one block, ascending.

    Args:
        seen: Ranges of sequences, inclusive, whose records do not count.
    """
    import numpy

    found: list[NDArray[numpy.int64]] = []
    single: list[int] = []
    wanted = selection.keys
    for part in scan.parts(item.entry):
        if not isinstance(part, Group):
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
    return numpy.unique(steps)


def _fresh_steps(group: Group, seen: Sequence[tuple[int, int]]) -> NDArray[numpy.int64]:
    import numpy

    steps = group.steps().astype(numpy.int64)
    if not seen:
        return steps
    sequences = group.sequences()
    fresh = numpy.ones(len(steps), bool)
    for low, high in seen:
        fresh &= (sequences < low) | (sequences > high)
    return steps[fresh]


def _keys_of(record: Record) -> frozenset[str]:
    try:
        return frozenset(values_of(record))
    except DamageError:
        return frozenset()


def keys_of(scan: Scan, lanes: list[Lane], blocks_max: int | None = None) -> set[str]:
    """All keys that some visible row holds, or those in at most `blocks_max` blocks spread over the run."""
    found: set[str] = set()
    looked_at = items(scan, lanes)
    if blocks_max is not None and len(looked_at) > blocks_max:
        last = len(looked_at) - 1
        looked_at = [looked_at[last * n // max(blocks_max - 1, 1)] for n in range(blocks_max)]
    for item in looked_at:
        for part in scan.parts(item.entry):
            if isinstance(part, Group):
                if int(part.steps().min()) < item.limit:
                    found.update(part.keys)
            elif part.step < item.limit:
                found |= _keys_of(part)
    return found


def last_values(scan: Scan, lanes: list[Lane]) -> dict[str, Any]:
    """For each key its value at the largest step, in the first lane that holds it; nulls do not count."""
    best: _Best = {}
    for item in items(scan, lanes):
        for part in scan.parts(item.entry):
            _keep_last(best, item, part)
    return {
        key: with_items(value, scan.blobs, key, rank[1], time_ns / 1e9) for key, (rank, value, time_ns) in best.items()
    }


# Key to ((lane, step, position, sequence), value, time).
_Best = dict[str, tuple[tuple[int, int, int, int], Any, int]]


def _keep_last(best: _Best, item: Item, part: Part) -> None:
    if isinstance(part, Group):
        record, index = _last_of_group(part, item.limit)
        if record is None:
            return
        pairs: list[tuple[str, Any]] = [(key, part.values(key)[index].item()) for key in part.keys]
        step, sequence = record
        time_ns = int(part.times_ns()[index])
    elif part.step < item.limit:
        try:
            pairs = [(key, value) for key, value in values_of(part).items() if value is not None]
        except DamageError:
            return
        step, sequence, time_ns = part.step, part.sequence, part.time_ns
    else:
        return
    rank = (-item.lane, step, item.position, sequence)
    for key, value in pairs:
        old = best.get(key)
        if old is None or rank >= old[0]:
            best[key] = (rank, value, time_ns)


def _last_of_group(group: Group, limit: int) -> tuple[tuple[int, int] | None, int]:
    """((step, sequence), index) of a group's last visible row: the largest step, then the largest sequence."""
    import numpy

    steps = group.steps().astype(numpy.int64)
    sequences = group.sequences()
    shown = numpy.arange(len(steps)) if int(steps.max()) < limit else numpy.flatnonzero(steps < limit)
    if not len(shown):
        return None, 0
    top = shown[steps[shown] == steps[shown].max()]
    index = int(top[sequences[top].argmax()])
    return (int(steps[index]), int(sequences[index])), index
