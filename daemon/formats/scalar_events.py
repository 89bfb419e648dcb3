"""Rows of numbers as event records, made with numpy: millions of points a second.

The records of rows with the same tags and steps of the same length differ in few bytes: wall time, step, numbers. So they are
rows of one matrix, made of one template, and their checksums are those of the template plus what the changing bytes add
(`crc32c.position_tables`). A row is one Event with a value for each tag, which every reader takes apart.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy

from daemon.formats import events
from daemon.formats.crc32c import crc32c, crc32c_rows, masked_of, position_tables
from daemon.formats.protobuf import FIXED32, FIXED64, VARINT, block, head, integer, text, varint
from daemon.formats.tfrecord import FOOTER_BYTES, HEADER_BYTES, header

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Limit: a matrix stays within a core's cache. An event of more bytes than this is divided: a table of a kilobyte stands for
# each of its bytes, 4 MiB together.
_MATRIX_BYTES = 1 << 20
_EVENT_BYTES_MAX = 4096
_SCALARS = "scalars"


def scalar_records(
    tags: Sequence[str], wall_times: NDArray[Any], steps: NDArray[Any], columns: Sequence[NDArray[Any]], *,
    as_double: bool = False,
) -> Iterator[NDArray[numpy.uint8]]:  # fmt: skip
    """The records of rows, in portions of about a megabyte: uint8[rows, bytes of a row], in order. A very wide row is several records.

    Args:
        wall_times: float64[n], Unix seconds.
        steps: int64[n], none negative.
        columns: Numbers [n] of each tag. They become float32, as every writer of scalars makes them.
        as_double: They become float64 instead, in tensors, which take about 30 bytes more each.
    """
    kind = "<f8" if as_double else "<f4"
    with numpy.errstate(over="ignore"):  # beyond float32 is infinite there
        numbers = [column.astype(kind, copy=False) for column in columns]
    lengths = _varint_lengths(steps)
    edges = [0, *(numpy.flatnonzero(numpy.diff(lengths)) + 1).tolist(), len(steps)]
    groups = list(_groups(tags, as_double))
    for first, end in zip(edges, edges[1:]):
        for at, until in _portions(first, end, groups):
            made = [
                _filled(
                    _template(group, as_double, int(lengths[first])),
                    wall_times[at:until], steps[at:until], [numbers[c][at:until] for c in range(low, low + len(group))],
                )
                for low, group in groups
            ]  # fmt: skip
            yield made[0] if len(made) == 1 else numpy.concatenate(made, axis=1)


def _groups(tags: Sequence[str], as_double: bool) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(place of the first, tags) that one event holds."""
    first, size = 0, 0
    for place, tag in enumerate(tags):
        more = len(_value_parts(tag, as_double)) + (8 if as_double else 4) + 4
        if size and size + more > _EVENT_BYTES_MAX:
            yield first, tuple(tags[first:place])
            first, size = place, 0
        size += more
    if len(tags) > first:
        yield first, tuple(tags[first:])


def _portions(first: int, end: int, groups: list[tuple[int, tuple[str, ...]]]) -> Iterator[tuple[int, int]]:
    width = sum(40 + 40 * len(group) for _, group in groups)
    count = max(_MATRIX_BYTES // width, 1)
    for at in range(first, end, count):
        yield at, min(at + count, end)


class _Template:
    """One record with zeros where rows differ.

    Attributes:
        record: uint8[length], checksum of the payload left out.
        places: Where in the record wall time, step and each number begin.
        state: The checksum of the payload with those zeros.
    """

    __slots__ = ("number_size", "places", "record", "state", "step_size")

    def __init__(self, tags: tuple[str, ...], as_double: bool, step_size: int) -> None:
        self.number_size, self.step_size = (8 if as_double else 4), step_size
        start = head(events.WALL_TIME, FIXED64) + bytes(8) + head(events.STEP, VARINT) + bytes(step_size)
        values, places = bytearray(), []
        for tag in tags:
            content = _value_parts(tag, as_double) + bytes(self.number_size)
            values += block(events.SUMMARY_VALUE, content)
            places.append(len(values) - self.number_size)
        before = start + head(events.SUMMARY, 2) + varint(len(values))
        payload = before + values
        self.record = numpy.frombuffer(header(len(payload)) + payload + bytes(FOOTER_BYTES), "u1")
        self.places = [HEADER_BYTES + 1, HEADER_BYTES + 10, *(HEADER_BYTES + len(before) + place for place in places)]
        self.state = crc32c(payload)


# Limit: templates of a run's usual rows; of one with thousands of sets of keys the oldest go.
_template = functools.lru_cache(maxsize=256)(_Template)


def _value_parts(tag: str, as_double: bool) -> bytes:
    """A value up to its number, which is the last of it."""
    start = text(events.TAG, tag)
    if not as_double:
        return start + head(events.SIMPLE_VALUE, FIXED32)
    described = events.metadata(_SCALARS)
    numbers = (
        integer(events.DTYPE, events.DATA_TYPES["f8"])
        + block(events.SHAPE, b"")
        + head(events.TENSOR_CONTENT, 2)
        + varint(8)
    )
    return start + block(events.METADATA, described) + head(events.TENSOR, 2) + varint(len(numbers) + 8) + numbers


def _filled(
    template: _Template, wall_times: NDArray[Any], steps: NDArray[Any], columns: list[NDArray[Any]]
) -> NDArray[numpy.uint8]:
    """uint8[n, length of a record]."""
    count, size = len(steps), len(template.record)
    matrix = numpy.empty((count, size), "u1")
    matrix[:] = template.record
    changing = [wall_times.astype("<f8").view("u1").reshape(count, 8), _varints(steps, template.step_size)]
    changing += [numpy.ascontiguousarray(column).view("u1").reshape(count, -1) for column in columns]
    for place, part in zip(template.places, changing):
        matrix[:, place : place + part.shape[1]] = part
    end = size - FOOTER_BYTES
    if end > 2 * _EVENT_BYTES_MAX:  # one very long tag
        crcs = crc32c_rows(matrix[:, HEADER_BYTES:end])
    else:
        crcs = numpy.full(count, template.state, "u4")
        tables = position_tables(end - HEADER_BYTES)
        for place, part in zip(template.places, changing):
            for offset, bytes_ in enumerate(numpy.ascontiguousarray(part.T)):
                crcs ^= tables[end - 1 - place - offset][bytes_]
    matrix[:, end:] = masked_of(crcs).astype("<u4").view("u1").reshape(count, FOOTER_BYTES)
    return matrix


def _varint_lengths(steps: NDArray[Any]) -> NDArray[Any]:
    """How many bytes each number takes: seven bits a byte."""
    return numpy.searchsorted(_VARINT_ENDS, steps.astype("u8"), "right") + 1


_VARINT_ENDS = numpy.array([1 << (7 * count) for count in range(1, 10)], "u8")


def _varints(steps: NDArray[Any], size: int) -> NDArray[numpy.uint8]:
    """uint8[n, size] of numbers that take so many bytes."""
    shifts = numpy.arange(0, 7 * size, 7, dtype="u8")
    bits = (steps.astype("u8")[:, None] >> shifts) & numpy.uint64(0x7F)
    bits[:, :-1] |= numpy.uint64(0x80)
    return bits.astype("u1")
