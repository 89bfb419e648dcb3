"""Rows by step: joins the records of all streams into rows, in step order, with memory for a window only.

Each block's header gives the smallest step in it. Blocks are read in the order of that step, so every row below the
smallest step of the next block is complete and can be given away; what is kept is the overlap of blocks, however large
the run. Within a stream `sdk.rows.merge` decides, in a lane the later stream, between lanes the first one.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import DamageError
from ..rows import Piece, merge
from ..shapes import Group
from .lanes import Lane
from .scan import Entry, Part, Scan, values_of

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

STEP = "_step"
TIMESTAMP = "_timestamp"
# Two keys that a row has of its own. What a user logged under them (W&B reserves names that begin with an underscore, and
# overwrites these two) is given under these instead: it was accepted, so it is not to vanish.
LOGGED = {STEP: "_logged_step", TIMESTAMP: "_logged_timestamp"}

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


class Item(NamedTuple):
    """A block to be read, where it stands among lanes and streams, and from which step on a resume hid its rows."""

    lane: int
    position: int
    limit: int
    entry: Entry
    alone: bool = False


def rows(scan: Scan, lanes: list[Lane], selection: Selection = ALL) -> Iterator[dict[str, Any]]:
    """The rows of all given lanes, joined, in step order.

    Raises:
        Gone: A segment was replaced. No row at or above the last one given was given before.
    """
    pending: dict[int, list[_Placed]] = {}
    heap: list[int] = []
    for item in _marked_alone(items(scan, lanes, selection)):
        while heap and heap[0] < item.entry.block.step_min:
            step = heappop(heap)
            yield _row(step, pending.pop(step))
        parts = list(scan.parts(item.entry))
        if not heap and item.alone and _rising(parts):
            yield from _complete_rows(scan, item, parts, selection)
            continue
        for piece in _pieces(scan, item, parts, selection):
            placed = pending.get(piece.step)
            if placed is None:
                pending[piece.step] = [(item.lane, item.position, piece)]
                heappush(heap, piece.step)
            else:
                placed.append((item.lane, item.position, piece))
    while heap:
        step = heappop(heap)
        yield _row(step, pending.pop(step))


def items(scan: Scan, lanes: list[Lane], selection: Selection = ALL) -> list[Item]:
    """The blocks that may hold wanted rows, by their smallest step."""
    plan = scan.plan()
    found = [
        Item(number, position, limit, entry)
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
    row[STEP], row[TIMESTAMP] = step, time_ns / 1e9
    if not LOGGED.keys().isdisjoint(values):
        row.update({name: values[key] for key, name in LOGGED.items() if key in values})
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


def _marked_alone(found: list[Item]) -> Iterator[Item]:
    """The items, each with whether no other holds any of its steps but, perhaps, an earlier one."""
    for item, after in zip(found, [*found[1:], None]):
        yield item._replace(alone=after is None or after.entry.block.step_min > item.entry.block.step_max)


def _rising(parts: list[Part]) -> bool:
    """Whether every record has a larger step than the one before: then each is a whole row."""
    last = -1
    for part in parts:
        if isinstance(part, Group):
            steps = part.steps()
            if int(steps[0]) <= last or not (steps[1:] > steps[:-1]).all():
                return False
            last = int(steps[-1])
        elif part.step <= last:
            return False
        else:
            last = part.step
    return True


def _complete_rows(scan: Scan, item: Item, parts: list[Part], selection: Selection) -> Iterator[dict[str, Any]]:
    """The rows of a block in which each record is one: nothing to merge, 1 us a row instead of 6."""
    for part in parts:
        if not isinstance(part, Group):
            for piece in _pieces(scan, item, [part], selection):
                yield _row(piece.step, [(0, 0, piece)])
            continue
        chosen = _choose(part, item.limit, selection)
        if chosen is None:
            continue
        keys, index = chosen
        columns = [part.values(key)[index].tolist() for key in keys]
        times = (part.times_ns()[index] / 1e9).tolist()
        names = (STEP, TIMESTAMP, *(LOGGED.get(key, key) for key in keys))
        for values in zip(part.steps()[index].tolist(), times, *columns):
            yield dict(zip(names, values))


def _pieces(scan: Scan, item: Item, parts: list[Part], selection: Selection) -> Iterator[Piece]:
    """The wanted pieces of one block, flat."""
    wanted = selection.keys
    for part in parts:
        if isinstance(part, Group):
            yield from _of_group(part, item.limit, selection)
            continue
        if not selection.first_step <= part.step < item.limit or not _listed(part.step, selection):
            continue
        try:
            values = values_of(part, scan.blobs)
        except DamageError as error:
            scan.note(item.entry.source, item.entry.block, error.message)
            continue
        kept = {key: value for key, value in values.items() if wanted is None or key in wanted}
        if kept or (wanted is None and not values):
            yield Piece(part.sequence, part.step, part.flags, part.time_ns, kept)


def _listed(step: int, selection: Selection) -> bool:
    steps = selection.steps
    if steps is None:
        return True
    at = int(steps.searchsorted(step))
    return at < len(steps) and int(steps[at]) == step


def _of_group(group: Group, limit: int, selection: Selection) -> Iterator[Piece]:
    chosen = _choose(group, limit, selection)
    if chosen is None:
        return
    keys, index = chosen
    columns = [group.values(key)[index].tolist() for key in keys]
    heads = (array[index].tolist() for array in (group.sequences(), group.steps(), group.times_ns()))
    flags = group.shape.flags
    for sequence, step, time_ns, *values in zip(*heads, *columns):
        yield Piece(sequence, step, flags, time_ns, dict(zip(keys, values)))


def _choose(group: Group, limit: int, selection: Selection) -> tuple[list[str], NDArray[numpy.int64]] | None:
    """The wanted keys of a group and the places of its wanted rows; None if there are none."""
    import numpy

    keys = [key for key in group.keys if selection.keys is None or key in selection.keys]
    if not keys:
        return None
    steps = group.steps().astype(numpy.int64)
    shown = steps >= selection.first_step
    if int(steps.max()) >= limit:  # asked first: the limit of what nobody hid does not fit into an int64
        shown &= steps < limit
    if selection.steps is not None:
        shown &= numpy.isin(steps, selection.steps)
    index = numpy.flatnonzero(shown)
    return (keys, index) if len(index) else None
