"""Rows made of arrays: the case in which nothing is to be merged, 1 to 2 us a row instead of 6.

That is so where the parts of an entry, and nothing else, hold its steps, and no two of them say different things of a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ..arrays import distinct
from .blobs import Blobs
from .parts import Rows, column_of, listed, times_us

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

# Two keys that a row has of its own. What a user logged under them (W&B reserves names that begin with an underscore, and
# overwrites these two) is given under these instead: it was accepted, so it is not to vanish.
STEP = "_step"
TIMESTAMP = "_timestamp"
LOGGED = {STEP: "_logged_step", TIMESTAMP: "_logged_timestamp"}

# Limit: rows that are Python objects at a time; a block of ten columns has 80 000, which as dicts take 60 MB.
_ROWS_AT_A_TIME = 8192


class Chosen(NamedTuple):
    """The wanted rows of some that share their keys.

    Attributes:
        keys: The wanted keys.
        index: Places of the rows.
        steps, times_us: Theirs.
    """

    rows: Rows
    keys: list[str]
    index: NDArray[numpy.int64]
    steps: NDArray[numpy.int64]
    times_us: NDArray[numpy.int64]


def chosen_of(rows: Rows, keys: list[str], index: NDArray[numpy.int64], steps: NDArray[numpy.int64]) -> Chosen:
    return Chosen(rows, keys, index, steps[index], times_us(rows)[index])


def whole_rows(found: list[Chosen], blobs: Blobs) -> Iterator[dict[str, Any]] | None:
    """The rows in step order; None where pieces must be merged one by one."""
    import numpy

    if any(not (one.steps[1:] > one.steps[:-1]).all() for one in found):
        return None
    first = found[0].steps
    alike = [len(one.steps) == len(first) and bool((one.steps == first).all()) for one in found]
    steps = first if all(alike) else distinct(numpy.concatenate([one.steps for one in found]))
    places = [None if len(one.steps) == len(steps) else steps.searchsorted(one.steps) for one in found]
    times = _times(found, places, len(steps))
    if times is None or not _are_apart(found, places, len(steps)):
        return None
    return _rows(steps, times / 1e6, found, places, blobs)


def _times(found: list[Chosen], places: list[NDArray[Any] | None], count: int) -> NDArray[numpy.int64] | None:
    """The time of each row; None where its pieces have different ones."""
    import numpy

    times = numpy.full(count, numpy.iinfo(numpy.int64).min)
    for one, place in zip(found, places):
        at = slice(None) if place is None else place
        old = times[at]
        if not ((old == one.times_us) | (old == numpy.iinfo(numpy.int64).min)).all():
            return None
        times[at] = one.times_us
    return times


def _are_apart(found: list[Chosen], places: list[NDArray[Any] | None], count: int) -> bool:
    """Whether no key has two values at one step."""
    import numpy

    holders: dict[str, list[NDArray[Any] | None]] = {}
    for one, place in zip(found, places):
        for key in one.keys:
            holders.setdefault(key, []).append(place)
    # Groups that hold several keys in common are compared once.
    for several in {tuple(map(id, held)): held for held in holders.values() if len(held) > 1}.values():
        if any(place is None for place in several):
            return False
        if numpy.bincount(numpy.concatenate(several), minlength=count).max() > 1:
            return False
    return True


def _rows(
    steps: NDArray[numpy.int64],
    times: NDArray[numpy.float64],
    found: list[Chosen],
    places: list[NDArray[Any] | None],
    blobs: Blobs,
) -> Iterator[dict[str, Any]]:
    full = [one for one, place in zip(found, places) if place is None]
    sparse = [(one, place) for one, place in zip(found, places) if place is not None]
    names = [STEP, TIMESTAMP, *(LOGGED.get(key, key) for one in full for key in one.keys)]
    for start in range(0, len(steps), _ROWS_AT_A_TIME):
        end = min(start + _ROWS_AT_A_TIME, len(steps))
        columns = [listed(column_of(one.rows, key, blobs, one.index[start:end])) for one in full for key in one.keys]
        heads = steps[start:end].tolist(), times[start:end].tolist()
        rows = [dict(zip(names, values)) for values in zip(*heads, *columns)]
        for one, place in sparse:
            low, high = place.searchsorted([start, end])
            if low == high:
                continue
            index = one.index[low:high]
            columns = [listed(column_of(one.rows, key, blobs, index)) for key in one.keys]
            held = [LOGGED.get(key, key) for key in one.keys]
            for at, values in zip((place[low:high] - start).tolist(), zip(*columns)):
                rows[at].update(zip(held, values))
        yield from rows
