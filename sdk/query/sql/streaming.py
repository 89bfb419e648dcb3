"""Values of runs as Arrow batches, one window of steps behind the other: what the relations of SQL that may be long are read as.

A window is a range of steps in which some lanes' blocks lie and no other: what a later block overwrote is in the same window, so each
is joined by itself. Memory holds a window of each scan, not a run. When a segment is replaced meanwhile the reading goes on behind the
last window that was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
import pyarrow

from ...ids import hex_u64
from ...reader.columns import Column, Joined, collect, join
from ...reader.entries import Entry
from ...reader.lanes import Lane
from ...reader.media import items_in
from ...reader.run import Run
from ...reader.series import _by_priority
from ...reader.tables import Table, read_cells
from .typed import number_of, text_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Limit: values that a window may hold as far as blocks can be told apart, some 60 bytes each as they are joined.
_VALUES_MAX = 500_000
_EXACT_MAX = 2.0**53

Steps = tuple[int, int]


class Wanted(NamedTuple):
    """What of a run is read.

    Attributes:
        keys: Of those that were logged; None: all.
        steps: The smallest and the largest step.
        columns: The names of the relation's columns that somebody looks at.
        share: How many keys the run has: windows of many are shorter.
    """

    keys: list[str] | None
    steps: Steps
    columns: frozenset[str]
    share: int = 1


def windows(plan: Mapping[int, Sequence[Entry]], lanes: Sequence[Lane], steps: Steps, records_max: int) -> list[Steps]:
    """The windows of some lanes that touch a range of steps, rising."""
    low, high = steps
    found = sorted(
        (entry.step_min, entry.step_max, entry.records)
        for lane in lanes
        for stream, limit in zip(lane.streams, lane.step_limits)
        for entry in plan.get(stream.id, ())
        if entry.holds_rows and entry.step_min < limit and entry.step_min <= high and entry.step_max >= low
    )
    made: list[Steps] = []
    held = 0
    for first, last, records in found:
        if made and (first <= made[-1][1] or held + records <= records_max):
            made[-1] = (made[-1][0], max(made[-1][1], last))
            held += records
        else:
            made.append((first, last))
            held = records
    return made


def _inside(plan: Mapping[int, list[Entry]], window: Steps, steps: Steps) -> dict[int, list[Entry]]:
    """The entries of a window that touch a range of steps."""
    low, high = max(window[0], steps[0]), min(window[1], steps[1])
    return {s: [e for e in entries if e.step_min <= high and e.step_max >= low] for s, entries in plan.items()}


def values_of(run: Run, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """All values of a run by lane, window and key, as columns of `metrics` but for those that say whose they are."""
    lane_at, next_step = 0, wanted.steps[0]
    records_max = max(_VALUES_MAX // max(wanted.share if wanted.keys is None else len(wanted.keys), 1), 1)

    def rest() -> Iterator[dict[str, Any]]:
        nonlocal lane_at, next_step
        plan = run._scan.plan()
        while lane_at < len(run._lanes):
            lane = run._lanes[lane_at]
            steps = (next_step, wanted.steps[1])
            for window in windows(plan, [lane], steps, records_max):
                columns = collect(run._scan, _inside(plan, window, steps), lane, wanted.keys)
                found = [(key, _cut(_joined(lane, columns.pop(key)), steps)) for key in list(columns)]
                next_step = window[1] + 1
                for key, joined in found:
                    yield from _columns(lane, key, joined, wanted.columns)
            lane_at, next_step = lane_at + 1, wanted.steps[0]

    yield from run._giving(rest)


def _joined(lane: Lane, by_stream: dict[int, Column]) -> Joined:
    # Why exact: a window of integers and floats must give what one of integers alone does, for windows depend on the filter.
    return join(_by_priority(lane, by_stream), exact=True)


def _cut(joined: Joined, steps: Steps) -> Joined:
    """The values in a range of steps. A block may hold others: in what replaced a segment meanwhile even such as were given."""
    if not len(joined.step) or (int(joined.step[0]) >= steps[0] and int(joined.step[-1]) <= steps[1]):
        return joined
    kept = _slice(joined.step, steps)
    return Joined(*(array[kept] for array in joined))


def _slice(step: NDArray[numpy.int64], steps: Steps) -> slice:
    """Where the rows of a range of steps lie among rising ones."""
    return slice(int(numpy.searchsorted(step, steps[0], "left")), int(numpy.searchsorted(step, steps[1], "right")))


def made_values_of(run: Run, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """As `values_of`, with the keys that `define_metric` makes of others: for these a run is read as a whole."""
    maker = run._maker()
    read = lambda: [  # noqa: E731 - one expression
        (lane, key, _joined(lane, by_stream))
        for lane in run._lanes
        for key, by_stream in maker.collect(run._scan, run._scan.plan(), lane, wanted.keys).items()
    ]
    for lane, key, joined in run._reading(read):
        yield from _columns(lane, key, joined, wanted.columns)


def _columns(lane: Lane, key: str, joined: Joined, columns: frozenset[str]) -> Iterator[dict[str, Any]]:
    """The values of a key as columns, without those that are media."""
    step, time, value, stream = joined
    told: dict[str, Any] = {}
    if "value" in columns or "text" in columns or value.dtype == object:
        told["value"], told["text"], kept = _numbers(value)
        if kept is not None:
            step, time, stream = step[kept], time[kept], stream[kept]
    if not len(step):
        return
    told.update(key=text_of(key), step=pyarrow.array(step))
    if "time" in columns:
        told["time"] = pyarrow.array(numpy.rint(time * 1e6).astype(numpy.int64)).cast(TIME)
    if "stream" in columns or "rank" in columns:
        told.update(_whose(lane, stream))
    yield told


TIME = pyarrow.timestamp("us", tz="UTC")


def _whose(lane: Lane, stream: NDArray[numpy.uint64]) -> dict[str, Any]:
    """The columns `stream` and `rank`: one value where all are of one stream."""
    ranks = {facts.id: facts.number("rank") or 0 for facts in lane.streams}
    if stream.strides == (0,) or bool((stream == stream[0]).all()):
        number = int(stream[0])
        return {"stream": hex_u64(number), "rank": ranks[number]}
    numbers, place = numpy.unique(stream, return_inverse=True)
    place = pyarrow.array(place.reshape(-1))
    return {
        "stream": pyarrow.array([hex_u64(number) for number in numbers.tolist()]).take(place),
        "rank": pyarrow.array([ranks[number] for number in numbers.tolist()], pyarrow.int64()).take(place),
    }


def _numbers(value: NDArray[Any]) -> tuple[Any, Any, NDArray[numpy.int64] | None]:
    """Values as numbers and as texts, and the places of those that are no media (None: none is).

    A text is there where the number does not say all: of texts, of lists and the like their JSON, of integers that no double is.
    """
    if value.dtype.kind == "f" or value.dtype.kind == "b":
        return pyarrow.array(value.astype(numpy.float64, copy=False)), None, None
    if value.dtype.kind in "iu":
        number = value.astype(numpy.float64)
        if not len(value) or max(abs(float(number.min())), abs(float(number.max()))) < _EXACT_MAX:
            return pyarrow.array(number), None, None
        exact = value.tolist()
        texts = [None if int(near) == one else str(one) for near, one in zip(number.tolist(), exact)]
        return pyarrow.array(number), pyarrow.array(texts, pyarrow.string()), None
    kept = [place for place, one in enumerate(value) if not (items_in(one) or isinstance(one, numpy.ndarray))]
    chosen = [value[place] for place in kept]
    numbers = [number_of(one) for one in chosen]
    texts = [
        None if number is not None and (type(one) is not int or number == one) else text_of(one)
        for one, number in zip(chosen, numbers)
    ]
    whole = len(kept) == len(value)
    return (
        pyarrow.array(numbers, pyarrow.float64()),
        pyarrow.array(texts, pyarrow.string()),
        None if whole else numpy.array(kept, numpy.int64),
    )


def tables_of(run: Run, wanted: Wanted, *, made: bool) -> Iterator[tuple[Table, slice]]:
    """The rows of a run in windows, those of several processes joined by step, each of some keys; and which of the rows.

    Args:
        made: Keys that `define_metric` makes of others are among them: then there is one window.
    """
    keys = wanted.keys or []
    if made:
        maker = run._maker()
        table = Table(run._reading(lambda: read_cells(run._scan, run._lanes, keys, maker.collect, exact=True)))
        yield table, _slice(table.steps, wanted.steps)
        return
    next_step = wanted.steps[0]
    records_max = max(_VALUES_MAX // max(len(keys), 1), 1)

    def rest() -> Iterator[tuple[Table, slice]]:
        nonlocal next_step
        plan = run._scan.plan()
        steps = (next_step, wanted.steps[1])
        for window in windows(plan, run._lanes, steps, records_max):
            table = Table(read_cells(run._scan, run._lanes, keys, _only(_inside(plan, window, steps)), exact=True))
            next_step = window[1] + 1
            yield table, _slice(table.steps, steps)

    yield from run._giving(rest)


def _only(plan: dict[int, list[Entry]]) -> Callable[..., Any]:
    """`collect` of a part of the plan."""
    return lambda scan, _, lane, keys: collect(scan, plan, lane, keys)
