"""Rows by step: joins the records of all streams into rows, in step order, with memory for a window only.

The headers of blocks give the smallest step in them. They are read in the order of that step, so every row below the
smallest step of the next one is complete and can be given away; what is kept is the overlap of blocks, however large
the run. Within a stream `sdk.rows.merge` decides, in a lane the later stream, between lanes the first one.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import DamageError
from ..record import Record
from ..rows import Piece, merge
from .entries import Entry
from .lanes import Lane
from .parts import Part, Rows, column_of, highest_step, listed, seconds, steps_in_rows, values_of
from .scan import Scan
from .whole import LOGGED, STEP, TIMESTAMP, Chosen, chosen_of, whole_rows

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

__all__ = ["ALL", "LOGGED", "STEP", "TIMESTAMP", "Item", "Selection", "items", "rows"]

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
        while heap and heap[0] < item.entry.step_min:
            step = heappop(heap)
            yield _row(step, pending.pop(step))
        parts = list(scan.parts(item.entry, selection.keys))
        complete = _complete_rows(scan, item, parts, selection) if not heap and item.alone else None
        if complete is not None:
            yield from complete
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
    return sorted(found, key=lambda item: item.entry.step_min)


def _may_hold(entry: Entry, limit: int, selection: Selection) -> bool:
    if entry.step_min >= limit or entry.step_max < selection.first_step:
        return False
    if selection.steps is None:
        return True
    at = int(selection.steps.searchsorted(entry.step_min))
    return at < len(selection.steps) and int(selection.steps[at]) <= entry.step_max


def _row(step: int, placed: list[_Placed]) -> dict[str, Any]:
    if len(placed) == 1:
        values, time_ns = placed[0][2].values, placed[0][2].time_ns
    else:
        values, time_ns = _joined(placed)
    row = {STEP: step, TIMESTAMP: 0.0, **values}
    row[STEP], row[TIMESTAMP] = step, seconds(time_ns)
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
        yield item._replace(alone=after is None or after.entry.step_min > item.entry.step_max)


def _complete_rows(scan: Scan, item: Item, parts: list[Part], selection: Selection) -> Iterator[dict[str, Any]] | None:
    """The rows of parts that nothing outside of them adds to; None where pieces of a row must be merged."""
    if any(isinstance(part, Record) for part in parts):
        return _one_by_one(scan, item, parts, selection) if _rising(parts) else None
    found = [
        chosen for part in parts if not isinstance(part, Record) if (chosen := _choose(part, item.limit, selection))
    ]
    return whole_rows(found, scan.blobs) if found else iter(())


def _one_by_one(scan: Scan, item: Item, parts: list[Part], selection: Selection) -> Iterator[dict[str, Any]]:
    for part in parts:
        if isinstance(part, Record):
            for piece in _pieces(scan, item, [part], selection):
                yield _row(piece.step, [(0, 0, piece)])
        elif chosen := _choose(part, item.limit, selection):
            yield from whole_rows([chosen], scan.blobs) or ()


def _rising(parts: list[Part]) -> bool:
    """Whether every record has a larger step than the one before: then each is a whole row."""
    last = -1
    for part in parts:
        if isinstance(part, Record):
            if part.step <= last:
                return False
            last = part.step
        else:
            steps = steps_in_rows(part)
            if int(steps[0]) <= last or not (steps[1:] > steps[:-1]).all():
                return False
            last = int(steps[-1])
    return True


def _pieces(scan: Scan, item: Item, parts: list[Part], selection: Selection) -> Iterator[Piece]:
    """The wanted pieces of one block, flat."""
    wanted = selection.keys
    for part in parts:
        if not isinstance(part, Record):
            yield from _of_rows(scan, part, item.limit, selection)
            continue
        if not selection.first_step <= part.step < item.limit or not _listed(part.step, selection):
            continue
        try:
            values = values_of(part, scan.blobs)
        except DamageError as error:
            scan.note(item.entry.source, item.entry.blocks[0], error.message)
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


def _of_rows(scan: Scan, rows: Rows, limit: int, selection: Selection) -> Iterator[Piece]:
    chosen = _choose(rows, limit, selection)
    if chosen is None:
        return
    keys, index = chosen.keys, chosen.index
    columns = [listed(column_of(rows, key, scan.blobs, index)) for key in keys]
    heads = (array.tolist() for array in (rows.sequences()[index], chosen.steps, chosen.times_us))
    for sequence, step, time_us, *values in zip(*heads, *columns):
        # The flags are not asked for: no row that is read shows them.
        yield Piece(sequence, step, 0, time_us * 1000, dict(zip(keys, values)))


def _choose(rows: Rows, limit: int, selection: Selection) -> Chosen | None:
    """The wanted keys and rows of some that share their keys; None if there are none."""
    import numpy

    keys = [key for key in rows.keys if selection.keys is None or key in selection.keys]
    if not keys and (rows.keys or selection.keys is not None):
        return None
    steps = steps_in_rows(rows)
    shown = steps >= selection.first_step
    if highest_step(rows) >= limit:  # asked first: the limit of what nobody hid does not fit into an int64
        shown &= steps < limit
    if selection.steps is not None:
        shown &= numpy.isin(steps, selection.steps)
    index = numpy.flatnonzero(shown)
    return chosen_of(rows, keys, index, steps) if len(index) else None
