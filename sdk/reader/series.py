"""A series: all values of one key ordered by step, as numpy arrays."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy

from .columns import Column, Joined, collect, holds, join, unite
from .lanes import Lane
from .media import MediaItem, MediaList, items_in, tensor_item
from .scan import Scan

if TYPE_CHECKING:
    from numpy.typing import NDArray


# Key to stream to column.
_Columns = dict[str, dict[int, Column]]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Series:
    """The values of one key; the three arrays have the same length, are sorted by step and are the caller's own.

    Attributes:
        key: The key.
        step: int64[n].
        time: float64[n], Unix seconds. When the value was logged; where pieces of one row were coalesced, when the last
            of them was.
        value: float64[n], int64[n], uint64[n] (only where a value is beyond int64) or bool[n] where every value is of
            that kind; float64[n] for a mix of integers and floats; else object[n], of str where every value is a text, of list,
            bytes, arrays, `MediaItem`s, or int beyond 64 bits; the same before and after rows become columns. Integers never
            pass through a float. NaN and infinities are values; nulls are left out.
        stream: uint64[n], whose value each is; None when all are of one stream.
        others: Ids of the streams outside this series that hold the key too.
        sample_of: None: these are all values. Else of how many these were chosen (`Run.series` with `points`).
        axis: What `x` gives where it is not the step.
        x_name: What `x` is: "step", "time", "relative" or a key.
    """

    key: str
    step: NDArray[numpy.int64]
    time: NDArray[numpy.float64]
    value: NDArray[Any]
    stream: NDArray[numpy.uint64] | None = None
    others: tuple[str, ...] = ()
    sample_of: int | None = None
    axis: NDArray[Any] | None = None
    x_name: str = "step"

    def __len__(self) -> int:
        return len(self.step)

    @property
    def x(self) -> NDArray[Any]:
        """Where each value stands on the axis that `Run.series` was asked for; NaN where its row does not say."""
        return self.step if self.axis is None else self.axis

    def __repr__(self) -> str:
        held = str(self.value.dtype)
        if held == "object" and len(self.value) and items_in(self.value[-1]):
            held = f"media: see run.media({self.key!r})"
        count = f"{len(self.step)} values" if self.sample_of is None else f"{len(self.step)} of {self.sample_of} values"
        return f"Series({self.key!r}, {count}, {held})"

    def _repr_html_(self) -> str | None:
        from .cards import series_card

        return series_card(self)


def numbers_in(series: Series) -> Series | None:
    """A series without its texts, truth values and other things that cannot be drawn; None where nothing is left.

    Values that are all truth values are numbers, as numpy has them; of integers beyond 64 bits the nearest floats are.
    """
    if series.value.dtype.kind in "fiub":
        return series
    numbers = [(place, float(value)) for place, value in enumerate(series.value.tolist()) if _is_number(value)]
    if not numbers:
        return None
    kept = numpy.array([place for place, _ in numbers])
    return replace(
        series, step=series.step[kept], time=series.time[kept], value=numpy.array([value for _, value in numbers]),
        stream=None if series.stream is None else series.stream[kept], axis=None if series.axis is None else series.axis[kept],
    )  # fmt: skip


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max)


def read_series(scan: Scan, lanes: list[Lane], key: str, *, every: bool = False) -> Series | None:
    """The series of `key` in the first of `lanes` that holds it, or in all of them; None where none does."""
    return read_several(scan, lanes, [key], every=every).get(key)


def read_several(
    scan: Scan, lanes: list[Lane], keys: list[str], *, every: bool = False, collected: Callable[..., _Columns] = collect,
    logged: Callable[[str], str] = str,
) -> dict[str, Series]:  # fmt: skip
    """As `read_series`, of several keys in one pass; keys that nobody holds are left out.

    Args:
        collected: As `collect`.
        logged: Gives the key whose values tell who holds a key.
    """
    plan = scan.plan()
    chosen: dict[str, list[Joined]] = {}
    others: dict[str, list[str]] = {key: [] for key in keys}
    for lane in lanes:
        found = [] if every else list(chosen)
        for key in found:
            pairs = zip(lane.streams, lane.step_limits)
            others[key] += [s.hex for s, limit in pairs if holds(scan, plan.get(s.id, ()), limit, logged(key))]
        missing = [key for key in keys if key not in found]
        for key, columns in collected(scan, plan, lane, missing).items() if missing else ():
            chosen.setdefault(key, []).append(join(_by_priority(lane, columns)))
    return {key: _series(key, chosen[key], tuple(others[key])) for key in keys if key in chosen}


def read_media(scan: Scan, lanes: list[Lane], keys: list[str], *, every: bool = False) -> MediaList | None:
    """The items under some keys, in order of steps and keys; None where nobody holds any of the keys."""
    found = [series for key in keys if (series := read_series(scan, lanes, key, every=every)) is not None]
    if not found:
        return None
    items = MediaList(item for series in found for item in _items_of(series, scan))
    items.sort(key=lambda item: item.step)  # stable: then as the keys and lists go
    items.others = tuple(dict.fromkeys(stream for series in found for stream in series.others))
    return items


def _items_of(series: Series, scan: Scan) -> Iterator[MediaItem]:
    if series.value.dtype != object:
        return
    for step, time, value in zip(series.step.tolist(), series.time.tolist(), series.value):
        if isinstance(value, numpy.ndarray):
            yield tensor_item(value, scan.blobs, series.key, step, time)
        else:
            yield from items_in(value)


def _by_priority(lane: Lane, columns: dict[int, Column]) -> list[tuple[int, int, Column]]:
    """A lane's columns with the place of their stream: the later one wins."""
    return [(n, s.id, columns[s.id]) for n, s in enumerate(lane.streams) if s.id in columns]


def _series(key: str, parts: list[Joined], others: tuple[str, ...]) -> Series:
    if len(parts) == 1:
        step, time, value, stream = parts[0]
    else:
        step, time, stream = (numpy.concatenate([part[n] for part in parts]) for n in (0, 1, 3))
        value = _together([part.value for part in parts])
        order = numpy.lexsort((time, step))
        step, time, value, stream = step[order], time[order], value[order], stream[order]
    several = len(stream) and stream.strides != (0,) and bool((stream != stream[0]).any())
    return Series(key, step, time, value, stream if several else None, others)


def _together(values: list[NDArray[Any]]) -> NDArray[Any]:
    """Arrays of several streams as one, by the same rules as within a stream."""
    return unite([value if value.dtype != object else list(value) for value in values])[0]


def columns_of(
    scan: Scan, lanes: list[Lane], keys: Iterable[str] | None, collected: Callable[..., _Columns] = collect
) -> dict[str, list[tuple[int, int, Column]]]:
    """The columns of some keys (None: of all) in all lanes, as `join` takes them: the first lane has the highest priority."""
    plan = scan.plan()
    columns: dict[str, list[tuple[int, int, Column]]] = {}
    place = 0
    for lane in reversed(lanes):
        for key, by_stream in collected(scan, plan, lane, keys).items():
            columns.setdefault(key, []).extend((place + n, s, c) for n, s, c in _by_priority(lane, by_stream))
        place += len(lane.streams)
    return columns
