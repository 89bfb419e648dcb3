"""Rows by step: joins the records of all streams into rows, in step order, with memory for a window only.

Each block's header gives the smallest step in it. Blocks are read in the order of that step, so every row below the
smallest step of the next block is complete and can be given away; what is kept is the overlap of blocks, however large
the run. Within a stream `sdk.rows.merge` decides, in a lane the later stream, between lanes the first one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import DamageError
from ..record import Record, decode_map
from ..rows import Piece, flatten, merge
from ..shapes import Group
from .columns import plain
from .lanes import Lane
from .scan import Entry, Part, Scan

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

STEP = "_step"
TIMESTAMP = "_timestamp"

_UNIQUE_EVERY = 64  # blocks; keeps many small blocks from holding many copies of the same steps

# A piece with the place of its stream: lanes in their order, streams in a lane oldest first.
_Placed = tuple[int, int, Piece]


class Selection(NamedTuple):
    """Which rows and values are wanted.

    Attributes:
        keys: Only these keys, and only rows that hold at least one of them; None: all.
        steps: Only these steps, sorted ascending; None: all.
        first_step: No row below it.
    """

    keys: frozenset[str] | None = None
    steps: NDArray[numpy.int64] | None = None
    first_step: int = 0


ALL = Selection()


class _Item(NamedTuple):
    """A block to be read, where it stands among lanes and streams, and from which step on a resume hid its rows."""

    lane: int
    position: int
    limit: int
    entry: Entry


def rows(scan: Scan, lanes: list[Lane], selection: Selection = ALL) -> Iterator[dict[str, Any]]:
    """The rows of all given lanes, joined, in step order.

    Raises:
        Gone: A segment was replaced. No row at or above the last one given was given before.
    """
    pending: dict[int, list[_Placed]] = {}
    heap: list[int] = []
    for item in items(scan, lanes, selection):
        while heap and heap[0] < item.entry.block.step_min:
            step = heappop(heap)
            yield _row(step, pending.pop(step))
        for piece in _pieces(scan, item, selection):
            placed = pending.get(piece.step)
            if placed is None:
                pending[piece.step] = [(item.lane, item.position, piece)]
                heappush(heap, piece.step)
            else:
                placed.append((item.lane, item.position, piece))
    while heap:
        step = heappop(heap)
        yield _row(step, pending.pop(step))


def items(scan: Scan, lanes: list[Lane], selection: Selection = ALL) -> list[_Item]:
    """The blocks that may hold wanted rows, by their smallest step."""
    plan = scan.plan()
    found = [
        _Item(number, position, limit, entry)
        for number, lane in enumerate(lanes)
        for position, (stream, limit) in enumerate(zip(lane.streams, lane.step_limits))
        for entry in plan.get(stream.id, ())
        if _may_hold(entry, limit, selection)
    ]
    return sorted(found, key=lambda item: item.entry.block.step_min)


def _may_hold(entry: Entry, limit: int, selection: Selection) -> bool:
    block = entry.block
    if block.step_min >= limit or block.step_max < selection.first_step:
        return False
    if selection.steps is None:
        return True
    at = int(selection.steps.searchsorted(block.step_min))
    return at < len(selection.steps) and int(selection.steps[at]) <= block.step_max


def _row(step: int, placed: list[_Placed]) -> dict[str, Any]:
    if len(placed) == 1:
        values, time_ns = placed[0][2].values, placed[0][2].time_ns
    else:
        values, time_ns = _joined(placed)
    row = {STEP: step, TIMESTAMP: 0.0, **values}
    row[STEP], row[TIMESTAMP] = step, time_ns / 1e9  # ours, whatever the user logged under these names
    return row


def _joined(placed: list[_Placed]) -> tuple[dict[str, Any], int]:
    """The values of one step and the time of the first lane's last piece."""
    by_lane: dict[int, dict[int, list[Piece]]] = {}
    for lane, position, piece in placed:
        by_lane.setdefault(lane, {}).setdefault(position, []).append(piece)
    values: dict[str, Any] = {}
    time_ns = 0
    for lane in sorted(by_lane, reverse=True):  # the first lane is written last and so wins
        streams = by_lane[lane]
        for position in sorted(streams):
            merged = merge(streams[position])[0]
            values.update(merged.values)
            time_ns = merged.time_ns
    return values, time_ns


def _pieces(scan: Scan, item: _Item, selection: Selection) -> Iterator[Piece]:
    """The wanted pieces of one block, flat."""
    wanted = selection.keys
    for part in scan.parts(item.entry):
        if isinstance(part, Group):
            yield from _of_group(part, item.limit, selection)
            continue
        if not selection.first_step <= part.step < item.limit or not _listed(part.step, selection):
            continue
        try:
            values = flatten(decode_map(part.payload))
        except DamageError as error:
            scan.note(item.entry.source, item.entry.block, error.message)
            continue
        kept = {key: plain(value) for key, value in values.items() if wanted is None or key in wanted}
        if kept or (wanted is None and not values):
            yield Piece(part.sequence, part.step, part.flags, part.time_ns, kept)


def _listed(step: int, selection: Selection) -> bool:
    steps = selection.steps
    if steps is None:
        return True
    at = int(steps.searchsorted(step))
    return at < len(steps) and int(steps[at]) == step


def _of_group(group: Group, limit: int, selection: Selection) -> Iterator[Piece]:
    import numpy

    keys = [key for key in group.keys if selection.keys is None or key in selection.keys]
    if not keys:
        return
    steps = group.steps().astype(numpy.int64)
    shown = steps >= selection.first_step
    if int(steps.max()) >= limit:  # asked first: the limit of what nobody hid does not fit into an int64
        shown &= steps < limit
    if selection.steps is not None:
        shown &= numpy.isin(steps, selection.steps)
    index = numpy.flatnonzero(shown)
    if not len(index):
        return
    columns = [group.values(key)[index].tolist() for key in keys]
    sequences, times = group.sequences()[index].tolist(), group.times_ns()[index].tolist()
    flags = group.shape.flags
    for sequence, step, time_ns, *values in zip(sequences, steps[index].tolist(), times, *columns):
        yield Piece(sequence, step, flags, time_ns, dict(zip(keys, values)))


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
    scan: Scan, item: _Item, selection: Selection, seen: Sequence[tuple[int, int]] = ()
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
        return frozenset(flatten(decode_map(record.payload)))
    except DamageError:
        return frozenset()


def keys_of(scan: Scan, lanes: list[Lane]) -> set[str]:
    """All keys that some visible row holds."""
    found: set[str] = set()
    for item in items(scan, lanes):
        for part in scan.parts(item.entry):
            if isinstance(part, Group):
                if int(part.steps().min()) < item.limit:
                    found.update(part.keys)
            elif part.step < item.limit:
                found |= _keys_of(part)
    return found


def last_values(scan: Scan, lanes: list[Lane]) -> dict[str, Any]:
    """For each key its value at the largest step, in the first lane that holds it; nulls do not count."""
    best: dict[str, tuple[tuple[int, int, int, int], Any]] = {}
    for item in items(scan, lanes):
        for part in scan.parts(item.entry):
            _keep_last(best, item, part)
    return {key: value for key, (_, value) in best.items()}


def _keep_last(best: dict[str, tuple[tuple[int, int, int, int], Any]], item: _Item, part: Part) -> None:
    if isinstance(part, Group):
        record, index = _last_of_group(part, item.limit)
        if record is None:
            return
        pairs: list[tuple[str, Any]] = [(key, part.values(key)[index].item()) for key in part.keys]
        step, sequence = record
    elif part.step < item.limit:
        try:
            pairs = [
                (key, plain(value)) for key, value in flatten(decode_map(part.payload)).items() if value is not None
            ]
        except DamageError:
            return
        step, sequence = part.step, part.sequence
    else:
        return
    rank = (-item.lane, step, item.position, sequence)
    for key, value in pairs:
        old = best.get(key)
        if old is None or rank >= old[0]:
            best[key] = (rank, value)


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
