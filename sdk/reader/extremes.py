"""The extremes of a series, its first and its last value, without the values between them: by the directories of columns.

A column tells its smallest and its largest number and how many are NaN. Where a block of columns stands alone, with no other one
that has a step of it, that is all that is needed; the first, the last and what is not so is read.
"""

from __future__ import annotations

import contextlib

from ..errors import DamageError
from .columns import Column, collect_entry, join
from .entries import Entry
from .lanes import Lane
from .points import Unit, told_apart, unit_of
from .scan import Scan
from .summaries import Numbers

# Limits: values of so many keys are held at a time where a run is still rows: 4 of 10^7 values are 1 GB. Of shorter ones more, since
# a row is decoded as a whole each time.
_KEYS_MIN = 4
_VALUES_MAX = 2_000_000


def read_extremes(scan: Scan, lanes: list[Lane], keys: list[str]) -> dict[str, Numbers]:
    """What is known of the numbers under some keys, in the first lane that holds each; keys of which nobody holds a number are
    left out. `Numbers.total` is not known.
    """  # fmt: skip
    found: dict[str, Numbers] = {}
    for lane in lanes:
        rest = [key for key in keys if key not in found]
        entries = _entries(scan, lane)
        records = sum(entry.last - entry.first + 1 for entry, _ in entries)
        count = max(_KEYS_MIN, _VALUES_MAX // max(records, 1))
        for start in range(0, len(rest), count):
            found.update(_of_lane(scan, lane, entries, rest[start : start + count]))
    return {key: numbers for key, numbers in found.items() if numbers.count}


def _entries(scan: Scan, lane: Lane) -> list[tuple[Entry, int]]:
    """What holds rows of a lane, each with the step from which on it is hidden."""
    plan = scan.plan()
    return [
        (entry, limit)
        for stream, limit in zip(lane.streams, lane.step_limits)
        for entry in plan.get(stream.id, ())
        if entry.step_min < limit and entry.holds_rows
    ]


def _of_lane(scan: Scan, lane: Lane, entries: list[tuple[Entry, int]], keys: list[str]) -> dict[str, Numbers]:
    """Those of one lane; empty ones where what it holds are no numbers; without the keys that it does not hold."""
    numbers = {key: Numbers() for key in keys}
    to_read: list[set[str]] = [set() for _ in entries]
    for key in keys:
        units = [unit_of(scan, entry, limit, key) for entry, limit in entries]
        told = told_apart(units)
        for place, unit in enumerate(units):
            if place not in told or not _add_told(numbers[key], unit, key):
                to_read[place].add(key)
    columns: dict[str, dict[int, Column]] = {}
    for (entry, limit), wanted in zip(entries, to_read):
        if wanted:
            collect_entry(scan, entry, frozenset(wanted), limit, False, columns)
    found = {key: _with_read(numbers[key], lane, columns.get(key, {})) for key in keys}
    return {key: one for key, one in found.items() if one is not None}


def _with_read(numbers: Numbers, lane: Lane, by_stream: dict[int, Column]) -> Numbers | None:
    """What directories told, with what was read beside it."""
    for column in by_stream.values():
        column.flush()
    read = join([(n, s.id, by_stream[s.id]) for n, s in enumerate(lane.streams) if s.id in by_stream])
    if not len(read.step):
        return numbers if numbers.count else None
    if read.value.dtype.kind not in "fiub":
        return Numbers()
    numbers.add(read.value)
    numbers.first = read.value[0].item()
    return numbers


def _add_told(numbers: Numbers, unit: Unit, key: str) -> bool:
    """Adds what the directory tells of an entry; False where it cannot be."""
    told = []
    with contextlib.suppress(DamageError):
        for group in unit.groups:
            statistics = group.statistics(key)
            if statistics is None or statistics.minimum is None or statistics.maximum is None:
                return False
            told.append((statistics.minimum, statistics.maximum, statistics.nans, len(group)))
        for one in told:
            numbers.add_told(*one)
        return True
    return False
