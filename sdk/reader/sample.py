"""A cheap evenly spread look at some series, for sparklines: reads a few blocks, chosen by their headers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy

from ..arrays import distinct
from .columns import collect, join
from .entries import Entry
from .lanes import Lane
from .scan import Scan
from .series import read_series

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Up to here everything is read: half of a full block, some milliseconds.
EXACT_RECORDS_MAX = 20_000
# Limit: blocks read of a longer run. 8 blocks of 4 MiB are about 40 ms; a sparkline has 8 to 12 characters.
_BLOCKS_MAX = 8


def sample(
    scan: Scan, lanes: list[Lane], keys: list[str], points: int
) -> dict[str, tuple[NDArray[numpy.int64], NDArray[Any]]]:
    """(steps, values) of each key, at most `points` of them, evenly spread, the first and the last included.

    A key that none of the looked-at blocks holds has two empty arrays.
    """
    plan = scan.plan()
    records = sum(entry.records for entries in plan.values() for entry in entries)
    found: dict[str, tuple[NDArray[numpy.int64], NDArray[Any]]] = {}
    empty = numpy.empty(0, numpy.int64)
    if records < EXACT_RECORDS_MAX:
        for key in keys:
            series = read_series(scan, lanes, key)
            found[key] = spread(series.step, series.value, points) if series is not None else (empty, empty)
        return found
    wanted = set(keys)
    for lane in lanes:
        few = {s.id: _evenly(plan.get(s.id, []), limit) for s, limit in zip(lane.streams, lane.step_limits)}
        for key, by_stream in collect(scan, few, lane, sorted(wanted)).items():
            joined = join([(n, s.id, by_stream[s.id]) for n, s in enumerate(lane.streams) if s.id in by_stream])
            found[key] = spread(joined.step, joined.value, points)
            wanted.discard(key)
        if not wanted:
            break
    return {key: found.get(key, (empty, empty)) for key in keys}


def _evenly(entries: list[Entry], limit: int) -> list[Entry]:
    """At most `_BLOCKS_MAX` visible entries over the whole range of steps, the first and the last among them."""
    entries = sorted((e for e in entries if e.step_min < limit), key=lambda entry: entry.step_max)
    if len(entries) <= _BLOCKS_MAX:
        return entries
    return [entries[int(index)] for index in numpy.linspace(0, len(entries) - 1, _BLOCKS_MAX).round()]


def spread(steps: NDArray[numpy.int64], values: NDArray[Any], points: int) -> tuple[NDArray[numpy.int64], NDArray[Any]]:
    """The values nearest to `points` evenly spaced steps."""
    if len(steps) <= points:
        return steps, values
    targets = numpy.linspace(steps[0], steps[-1], max(points, 1))
    right = numpy.clip(numpy.searchsorted(steps, targets), 1, len(steps) - 1)
    index = distinct(right - (targets - steps[right - 1] < steps[right] - targets))
    return steps[index], values[index]
