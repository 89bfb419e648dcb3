"""TensorBoard's event files, read: scalars with numpy, millions a second, everything else one event at a time.

Events of scalars that have the same size, and steps of the same length, differ in few bytes: wall time, step, tag, value. So one of
them is taken apart by hand (`_shape_of`), and all that have its other bytes are read as columns of one matrix. What is no scalar,
or is written in another way, is left to `parse_event`. Field numbers are `events`'. Nothing that is read is believed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy
from numpy.typing import NDArray

from .events import (
    DATA_TYPES,
    DT_STRING,
    DTYPE,
    FILE_VERSION,
    GRAPH_DEF,
    METADATA,
    PLUGIN_CONTENT,
    PLUGIN_DATA,
    PLUGIN_NAME,
    SESSION_LOG,
    SESSION_START,
    SESSION_STATUS,
    SIMPLE_VALUE,
    SOURCE_METADATA,
    STEP,
    SUMMARY,
    SUMMARY_VALUE,
    TAG,
    TENSOR,
    TENSOR_CONTENT,
    WALL_TIME,
)
from .protobuf import BYTES, FIXED32, FIXED64, VARINT, Value, fields, read_text, read_varint, signed

# Fields of Event and TensorProto that only others write.
LOG_MESSAGE = 6
LOG_TEXT = 2
TAGGED_RUN_METADATA, META_GRAPH_DEF = 8, 9
_FLOAT_VAL, _DOUBLE_VAL = 5, 6
SCALARS = "scalars"

_SINGLE, _DOUBLE = numpy.dtype("<f4"), numpy.dtype("<f8")
_FLOATS = {DATA_TYPES["f4"]: _SINGLE, DATA_TYPES["f8"]: _DOUBLE}
_HEAD_BYTES = 9  # of a wall time
_STEP_BYTES_MAX = 10
# Limit: larger events are rows of very many tags, or no scalars.
_FAST_BYTES_MAX = 64 << 10
# Limit: ways to write a scalar among the events of one size in one portion; what is beyond is read one by one.
_SHAPES_MAX = 64


class Scalars(NamedTuple):
    """Scalars of some records, in the order in which they stand there.

    Attributes:
        records: int64[n], the place of each one's record.
        which: int64[n], its tag's index in `ScalarReader.tags`.
        steps: int64[n]. `wall_times`, `values`: float64[n].
        rest: int64, the places of the records that are not read here, rising.
    """

    records: NDArray[numpy.int64]
    which: NDArray[numpy.int64]
    steps: NDArray[numpy.int64]
    wall_times: NDArray[numpy.float64]
    values: NDArray[numpy.float64]
    rest: NDArray[numpy.int64]


_Float: TypeAlias = "numpy.dtype[numpy.float32] | numpy.dtype[numpy.float64]"
# The columns of `Scalars`, of some records of one tag.
_Some: TypeAlias = tuple[
    NDArray[numpy.int64],
    NDArray[numpy.int64],
    NDArray[numpy.int64],
    NDArray[numpy.float64],
    NDArray[numpy.float64],
]


class _Place(NamedTuple):
    """A scalar in an event: where its tag and its number are."""

    tag: slice
    number: slice
    dtype: _Float


class _Shape(NamedTuple):
    """How events of scalars are written, up to the bytes that differ. `fixed` are the columns of the others, `like` what they are."""

    places: tuple[_Place, ...]
    fixed: NDArray[numpy.int64]
    like: NDArray[numpy.uint8]


class ScalarReader:
    """Reads scalars out of portions of event files.

    Attributes:
        tags: Names in the order in which they were met.
    """

    def __init__(self) -> None:
        self.tags: list[str] = []
        self._index: dict[bytes, int] = {}
        self._shapes: dict[tuple[int, int], list[_Shape]] = {}

    def read(self, data: bytes | memoryview, starts: NDArray[numpy.int64], sizes: NDArray[numpy.int64]) -> Scalars:
        """The scalars in the payloads that begin at `starts`.

        Args:
            data: Holds them, at least 32 bytes.
        """
        whole = numpy.frombuffer(data, numpy.uint8)
        found: list[_Some] = []
        rest: list[NDArray[numpy.int64]] = []
        lengths = _step_lengths(whole, starts, sizes)
        both = sizes * 16 + lengths
        for key in numpy.unique(both).tolist():
            (places,) = numpy.nonzero(both == key)
            size, length = divmod(key, 16)
            if length == 15 or size > _FAST_BYTES_MAX:
                rest.append(places)
                continue
            rows = numpy.lib.stride_tricks.sliding_window_view(whole, size)[starts[places]]
            rest.append(places[self._read_alike(places, rows, length, found)])
        if not found:
            return _nothing(numpy.sort(numpy.concatenate(rest)) if rest else numpy.empty(0, numpy.int64))
        records, which, steps, walls, values = (numpy.concatenate(column) for column in zip(*found))
        order = numpy.argsort(records, kind="stable")
        left = numpy.sort(numpy.concatenate(rest)) if rest else numpy.empty(0, numpy.int64)
        return Scalars(records[order], which[order], steps[order], walls[order], values[order], left)

    def _read_alike(
        self,
        places: NDArray[numpy.int64],
        rows: NDArray[numpy.uint8],
        length: int,
        found: list[_Some],
    ) -> NDArray[numpy.int64]:
        """Reads records of one size and length of step; which of them are left."""
        shapes = self._shapes.setdefault((rows.shape[1], length), [])
        left = numpy.arange(len(rows))
        for shape in shapes:
            left = self._take(shape, places, rows, left, length, found)
        unknown: list[int] = []
        while len(left) and len(shapes) < _SHAPES_MAX:
            shape_ = _shape_of(rows[left[0]].tobytes(), length)
            if shape_ is None:
                unknown.append(int(left[0]))
                left = left[1:]
                continue
            shapes.append(shape_)
            left = self._take(shape_, places, rows, left, length, found)
        return numpy.concatenate((numpy.array(unknown, numpy.int64), left))

    def _take(
        self,
        shape: _Shape,
        places: NDArray[numpy.int64],
        rows: NDArray[numpy.uint8],
        left: NDArray[numpy.int64],
        length: int,
        found: list[_Some],
    ) -> NDArray[numpy.int64]:
        """Reads those of `left` that have this shape; the others."""
        if not len(left):
            return left
        some = rows if len(left) == len(rows) else rows[left]
        fits = (some[:, shape.fixed] == shape.like).all(axis=1)
        if not fits.any():
            return left
        mine = left[fits]
        some = some if len(mine) == len(some) else some[fits]
        wall = _numbers(some, slice(1, _HEAD_BYTES), _DOUBLE)
        steps = _steps(some, length)
        for place in shape.places:
            values = _numbers(some, place.number, place.dtype)
            found.append((places[mine], self._which(some[:, place.tag]), steps, wall, values))
        return left[~fits]

    def _which(self, names: NDArray[numpy.uint8]) -> NDArray[numpy.int64]:
        """The index of each tag, of names of one length."""
        count, size = names.shape
        if not size or (names == names[0]).all():
            return numpy.full(count, self._index_of(names[0].tobytes()), numpy.int64)
        packed = numpy.ascontiguousarray(names).view(f"S{size}")[:, 0]
        _, firsts, inverse = numpy.unique(packed, return_index=True, return_inverse=True)
        # In the order of their first values: whoever reads more of a file gives the same indexes to what was there.
        index = numpy.empty(len(firsts), numpy.int64)
        for place in numpy.argsort(firsts).tolist():
            index[place] = self._index_of(names[firsts[place]].tobytes())
        chosen: NDArray[numpy.int64] = index[inverse.reshape(-1)]
        return chosen

    def _index_of(self, name: bytes) -> int:
        index = self._index.get(name)
        if index is None:
            index = self._index[name] = len(self.tags)
            self.tags.append(name.decode("utf-8", "replace"))
        return index


def _nothing(rest: NDArray[numpy.int64]) -> Scalars:
    whole, real = numpy.empty(0, numpy.int64), numpy.empty(0, numpy.float64)
    return Scalars(whole, whole, whole, real, real, rest)


def _step_lengths(
    whole: NDArray[numpy.uint8], starts: NDArray[numpy.int64], sizes: NDArray[numpy.int64]
) -> NDArray[numpy.int64]:
    """How many bytes the step of each event has: 0 where there is none, 15 where it does not begin as events of scalars do."""
    columns = numpy.arange(_HEAD_BYTES + 1 + _STEP_BYTES_MAX + 1)
    heads = whole[numpy.minimum(starts[:, None] + columns, len(whole) - 1)]
    is_short = sizes < _HEAD_BYTES + 4
    has_step = heads[:, _HEAD_BYTES] == STEP << 3 | VARINT
    ends = heads[:, _HEAD_BYTES + 1 : _HEAD_BYTES + 1 + _STEP_BYTES_MAX] < 0x80
    lengths = numpy.where(has_step, ends.argmax(axis=1) + 1, 0)
    tails = numpy.where(has_step, _HEAD_BYTES + 1 + lengths, _HEAD_BYTES)
    is_summary = heads[numpy.arange(len(heads)), tails] == SUMMARY << 3 | BYTES
    good = (heads[:, 0] == WALL_TIME << 3 | FIXED64) & is_summary & ~is_short & (~has_step | ends.any(axis=1))
    return numpy.where(good, lengths, 15).astype(numpy.int64)


def _steps(rows: NDArray[numpy.uint8], length: int) -> NDArray[numpy.int64]:
    steps = numpy.zeros(len(rows), numpy.uint64)
    for place in range(length):
        byte = (rows[:, _HEAD_BYTES + 1 + place] & 0x7F).astype(numpy.uint64)
        steps |= byte << numpy.uint64(7 * place)
    return steps.view(numpy.int64)


def _numbers(rows: NDArray[numpy.uint8], where: slice, dtype: _Float) -> NDArray[numpy.float64]:
    packed = numpy.ascontiguousarray(rows[:, where]).view(dtype)[:, 0]
    with numpy.errstate(invalid="ignore"):  # a NaN that signals
        found: NDArray[numpy.float64] = packed.astype(numpy.float64)
    return found


# ---- one event, for its places


def _shape_of(payload: bytes, length: int) -> _Shape | None:
    """How an event is written that holds scalars and nothing else; None: it holds something else."""
    begin = _HEAD_BYTES + (1 + length if length else 0)
    places: list[_Place] = []
    try:
        for field, start, end in _blocks(payload, begin, len(payload)):
            if field != SUMMARY:
                return None
            for inner, at, until in _blocks(payload, start, end):
                place = _place_of(payload, at, until) if inner == SUMMARY_VALUE else None
                if place is None:
                    return None
                places.append(place)
    except ValueError:
        return None
    if not places:
        return None
    is_fixed = numpy.ones(len(payload), bool)
    is_fixed[1:_HEAD_BYTES] = False
    is_fixed[_HEAD_BYTES + 1 : begin] = False
    for place in places:
        is_fixed[place.tag] = is_fixed[place.number] = False
    fixed = numpy.flatnonzero(is_fixed)
    return _Shape(tuple(places), fixed, numpy.frombuffer(payload, numpy.uint8)[fixed])


def _blocks(payload: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field, where its content begins, where it ends) of a message of which every field is a block.

    Raises:
        ValueError: Another field is in it, or it is cut off.
    """
    while at < end:
        key, at = read_varint(payload, at)
        if key & 7 != BYTES:
            raise ValueError(f"a field of wire type {key & 7}, expected {BYTES}")
        size, at = read_varint(payload, at)
        if size > end - at:
            raise ValueError(f"a field of {size} bytes, {end - at} are left")
        yield key >> 3, at, at + size
        at += size


def _place_of(payload: bytes, at: int, end: int) -> _Place | None:
    """Where tag and number of a scalar are among the bytes of a Summary.Value."""
    tag: slice | None = None
    number: tuple[slice, _Float] | None = None
    while at < end:
        key, at = read_varint(payload, at)
        field, wire = key >> 3, key & 7
        if field == SIMPLE_VALUE and wire == FIXED32 and number is None and end - at >= 4:
            number, at = (slice(at, at + 4), _SINGLE), at + 4
            continue
        if wire != BYTES:
            return None
        size, at = read_varint(payload, at)
        if size > end - at:
            return None
        if field == TAG and tag is None:
            tag = slice(at, at + size)
        elif field == TENSOR and number is None:
            number = _number_of(payload, at, at + size)
            if number is None:
                return None
        elif field != METADATA or plugin_of(memoryview(payload)[at : at + size])[0] not in ("", SCALARS):
            return None
        at += size
    return _Place(tag, *number) if tag is not None and number is not None else None


def _number_of(payload: bytes, at: int, end: int) -> tuple[slice, _Float] | None:
    """Where the one float of a TensorProto is."""
    kind, found = 0, None
    while at < end:
        key, at = read_varint(payload, at)
        field, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = read_varint(payload, at)
            kind = value if field == DTYPE else kind
            continue
        if wire == BYTES:
            size, at = read_varint(payload, at)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            return None
        if field in (TENSOR_CONTENT, _FLOAT_VAL, _DOUBLE_VAL):
            if found is not None or size > end - at:
                return None
            found = slice(at, at + size)
        at += size
    dtype = _FLOATS.get(kind)
    if found is None or dtype is None or found.stop - found.start != dtype.itemsize:
        return None
    return found, dtype


# ---- one event, whole


class Entry(NamedTuple):
    """A Summary.Value.

    Attributes:
        plugin: Whose it is, "" where it does not say; `content` is that plugin's.
        field: Which of its fields holds the value; 0: none that is known.
        value: That field's.
    """

    tag: str
    plugin: str
    content: bytes
    field: int
    value: Value


class Event(NamedTuple):
    """An event.

    Attributes:
        entries: Its values. `log`: what was logged as text.
        graphs: (what it is, bytes) of messages that describe a graph: "graph", "run-metadata", "meta-graph".
        is_start: The training began again at this step.
        unknown: How many parts it has that are not known.
    """

    wall_time: float
    step: int
    entries: list[Entry]
    graphs: list[tuple[str, memoryview]]
    log: str | None
    is_start: bool
    unknown: int


_GRAPHS = {GRAPH_DEF: "graph", TAGGED_RUN_METADATA: "run-metadata", META_GRAPH_DEF: "meta-graph"}


def parse_event(payload: memoryview) -> Event:
    """An event.

    Raises:
        ValueError: These bytes are none.
    """
    wall_time, step, log, is_start, unknown = 0.0, 0, None, False, 0
    entries: list[Entry] = []
    graphs: list[tuple[str, memoryview]] = []
    for field, _, value in fields(payload):
        if field == WALL_TIME and isinstance(value, float):
            wall_time = value
        elif field == STEP and isinstance(value, int):
            step = signed(value)
        elif not isinstance(value, memoryview):
            unknown += 1
        elif field == SUMMARY:
            entries += [_entry(part) for inner, _, part in fields(value) if inner == SUMMARY_VALUE]
        elif field in _GRAPHS:
            graphs.append((_GRAPHS[field], value))
        elif field == LOG_MESSAGE:
            log = "".join(
                read_text(part) for inner, _, part in fields(value) if inner == LOG_TEXT and type(part) is memoryview
            )
        elif field == SESSION_LOG:
            is_start = is_start or any(
                inner == SESSION_STATUS and part == SESSION_START for inner, _, part in fields(value)
            )
        elif field not in (FILE_VERSION, SOURCE_METADATA):
            unknown += 1
    return Event(wall_time, step, entries, graphs, log, is_start, unknown)


def _entry(payload: Value) -> Entry:
    tag, plugin, content, field = "", "", b"", 0
    found: Value = 0
    if not isinstance(payload, memoryview):
        raise ValueError("a value of a summary that is no message")
    for number, _, value in fields(payload):
        if number == TAG and isinstance(value, memoryview):
            tag = read_text(value)
        elif number == METADATA and isinstance(value, memoryview):
            plugin, content = plugin_of(value)
        elif number in (2, 4, 5, 6, 8):
            field, found = number, value
    return Entry(tag, plugin, content, field, found)


def plugin_of(metadata: memoryview) -> tuple[str, bytes]:
    """(name, content) of the plugin that a SummaryMetadata names.

    Raises:
        ValueError: These bytes are none.
    """
    name, content = "", b""
    for field, _, about in fields(metadata):
        if field == PLUGIN_DATA and isinstance(about, memoryview):
            for inner, _, value in fields(about):
                if inner == PLUGIN_NAME and isinstance(value, memoryview):
                    name = read_text(value)
                elif inner == PLUGIN_CONTENT and isinstance(value, memoryview):
                    content = bytes(value)
    return name, content


__all__ = ["DT_STRING", "Entry", "Event", "ScalarReader", "Scalars", "parse_event", "plugin_of"]
