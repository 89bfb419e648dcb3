"""Several keys side by side, a row for each step: what `to_pandas`, `to_arrow` and `to_polars` are made of.

Keys that were logged together come with one and the same array of steps, and stay so: a **spine** is the steps of some columns, and
as long as all columns have the same one nothing is searched, filled or copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from ..arrays import distinct
from .columns import Column, collect, join, unite
from .direct import Chunk
from .lanes import Lane
from .scan import Scan
from .series import columns_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


# What reads columns: `columns.collect`, or one that also makes some.
Collect = Callable[..., dict[str, dict[int, Column]]]


class Spine:
    """The steps of the columns that were logged together.

    Attributes:
        step: int64[n], rising.
        time_us: int64[n], Unix time, of the value at each step.
        place: Which rows of the table they are; None: all.
    """

    __slots__ = ("place", "step", "time_us")

    def __init__(self, step: NDArray[numpy.int64], time_us: NDArray[numpy.int64]) -> None:
        self.step, self.time_us = step, time_us
        self.place: NDArray[numpy.int64] | None = None


class Cells(NamedTuple):
    """The values of a key, nulls left out, and at which steps they are. `value` is of the dtypes of a `Series`."""

    value: NDArray[Any]
    spine: Spine


class Table:
    """Columns over common steps.

    Attributes:
        steps: int64[n], rising: those at which a column has a value.
        columns: By key.
    """

    def __init__(self, columns: dict[str, Cells]) -> None:
        self.columns = columns
        self._spines = list({id(cells.spine): cells.spine for cells in columns.values()}.values())
        self.steps = _union([spine.step for spine in self._spines])
        for spine in self._spines:
            if len(spine.step) < len(self.steps):
                spine.place = numpy.searchsorted(self.steps, spine.step)

    def times_us(self) -> NDArray[numpy.int64]:
        """int64[n], Unix time in microseconds: of each row the latest of its values."""
        if len(self._spines) == 1 and self._spines[0].place is None:
            return self._spines[0].time_us
        times = numpy.full(len(self.steps), numpy.iinfo(numpy.int64).min)
        for spine in self._spines:
            place = slice(None) if spine.place is None else spine.place
            times[place] = numpy.maximum(times[place], spine.time_us)
        return times

    def filled(self, key: str, hole: Any) -> tuple[NDArray[Any], NDArray[numpy.bool_] | None]:
        """A value for each row, and where there is none but `hole` (None: nowhere)."""
        value, spine = self.columns[key]
        if spine.place is None:
            return value, None
        whole = numpy.full(len(self.steps), hole, value.dtype)
        whole[spine.place] = value
        is_hole = numpy.ones(len(self.steps), bool)
        is_hole[spine.place] = False
        return whole, is_hole


def read_table(scan: Scan, lanes: list[Lane], keys: list[str] | None, collected: Collect = collect) -> Table | str:
    """The table of some keys (None: of all that do not begin with an underscore); the name of the first key that nobody
    holds.
    """  # fmt: skip
    found = read_cells(scan, lanes, keys, collected)
    if keys is None:
        keys = sorted(key for key in found if key[:1] != "_")
    for key in keys:
        if key not in found:
            return key
    return Table({key: found[key] for key in keys})


def read_cells(
    scan: Scan, lanes: list[Lane], keys: list[str] | None, collected: Collect = collect, *, exact: bool = False
) -> dict[str, Cells]:
    """All values of some keys (None: of all), at each step those of the first lane that holds the key there. `exact`: as in `unite`."""
    found = columns_of(scan, lanes, keys, collected)
    # By the identities of the chunks' steps. All of those are there by now, so that none can take the place of another.
    spines: dict[tuple[int, ...], Spine | None] = {}
    return {key: _cells(found.pop(key), spines, exact) for key in list(found)}


def _cells(found: list[tuple[int, int, Column]], spines: dict[tuple[int, ...], Spine | None], exact: bool) -> Cells:
    chunks = [chunk for _, _, column in found for chunk in column.chunks]
    if not any(isinstance(chunk.values, list) for chunk in chunks):
        alike = tuple(id(chunk.step) for chunk in chunks)
        if alike not in spines:
            spines[alike] = _rising(chunks)
        spine = spines[alike]
        if spine is not None:
            return Cells(unite([chunk.values for chunk in chunks], exact=exact)[0], spine)
    joined = join(found, exact=exact)
    return Cells(joined.value, Spine(joined.step, numpy.rint(joined.time * 1e6).astype(numpy.int64)))


def _rising(chunks: list[Chunk]) -> Spine | None:
    """The steps of chunks of which no two are the same and each is larger than those before."""
    if not chunks:
        return None
    step = numpy.concatenate([chunk.step for chunk in chunks])
    if not (step[1:] > step[:-1]).all():
        return None
    return Spine(step, numpy.concatenate([chunk.time_us for chunk in chunks]))


def _union(steps: list[NDArray[numpy.int64]]) -> NDArray[numpy.int64]:
    if len(steps) == 1:
        return steps[0]
    longest = max(steps, key=len, default=numpy.empty(0, numpy.int64))
    # Mostly the others are rare keys, logged beside those of every step.
    rest = [one for one in steps if one is not longest and not _holds(longest, one)]
    return distinct(numpy.concatenate([longest, *rest])) if rest else longest


def _holds(steps: NDArray[numpy.int64], some: NDArray[numpy.int64]) -> bool:
    if numpy.array_equal(steps, some):
        return True
    place = numpy.searchsorted(steps, some)
    return not len(some) or (int(place[-1]) < len(steps) and bool((steps[place] == some).all()))
