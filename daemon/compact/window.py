"""Rows into columns: what the blocks of a range of sequences hold, merged and grouped by keys. Pure.

Life of a window: each of its sources becomes `Part`s, rows as arrays (`parts_of_records`, `parts_of_groups`); `merged` makes one
row of the pieces of a step, by the rule of `sdk.rows.merge`, and groups of the keys that occur in the same rows;
`sdk.segment.cutting` cuts them to what a COLUMNS block may hold. Where records look alike no Python runs for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy
from numpy.typing import NDArray

from sdk.arrays import rises
from sdk.errors import DamageError
from sdk.files import Buffer
from sdk.record import KIND_ROW, Record, decode_map, map_encoder
from sdk.rows import flatten
from sdk.segment.columns import BOOL, FLOAT, INT, NULL, PACKED, STR, UINT, Group
from sdk.segment.format import ROW_BYTES
from sdk.shapes import Group as Alike
from sdk.shapes import groups

_INT_END = 1 << 63
_KINDS = {float: FLOAT, int: INT, bool: BOOL, str: STR, type(None): NULL}
_ARRAY_KINDS = {"f": FLOAT, "i": INT, "u": UINT, "b": BOOL}
_DTYPES = {FLOAT: numpy.float64, INT: numpy.int64, UINT: numpy.uint64, BOOL: numpy.bool_}
# What `{"v": value}` begins with when it is packed.
_VALUE_AT = 3

Ints: TypeAlias = NDArray[numpy.int64]


class Column(NamedTuple):
    """Values of one key and physical type. `rows`: their places in the part, rising; None: all of it."""

    key: str
    kind: str
    rows: Ints | None
    values: Any


class Part(NamedTuple):
    """Rows, or pieces of rows, as arrays."""

    sequence: NDArray[numpy.uint64]
    step: Ints
    time_us: Ints
    flags: NDArray[numpy.uint8]
    columns: list[Column]

    @property
    def raw_bytes(self) -> int:
        """About what it takes of a block of columns."""
        total = len(self.sequence) * ROW_BYTES
        for column in self.columns:
            total += 8 * len(column.values)
            if column.kind in (STR, PACKED):
                total += sum(map(len, column.values))
        return total


def parts_of_records(payload: Buffer) -> tuple[list[Part], list[Record]]:
    """The rows of a ROWS block, and its records that are no rows.

    Raises:
        DamageError: It cannot be decoded.
        ValueError, TypeError, OverflowError: A value can be read and not be written again.
    """
    parts: list[Part] = []
    others: list[Record] = []
    waiting: list[Record] = []
    for found in groups(payload):
        if isinstance(found, Alike):
            parts += _part_of_singles(waiting)
            waiting = []
            parts.append(_part_of_alike(found))
        elif found.kind == KIND_ROW:
            waiting.append(found)
        else:
            others.append(found)
    return parts + _part_of_singles(waiting), others


def _part_of_alike(group: Alike) -> Part:
    count = len(group)
    flags = numpy.full(count, group.shape.flags, numpy.uint8)
    columns: list[Column] = []
    for key in group.keys:
        values = group.values(key)
        kind = _ARRAY_KINDS[values.dtype.kind]
        columns += _integers(key, values) if kind == UINT else [Column(key, kind, None, values)]
    return Part(group.sequences(), group.steps().astype(numpy.int64), group.times_ns() // 1000, flags, columns)


def _integers(key: str, values: NDArray[numpy.uint64]) -> list[Column]:
    """Unsigned integers, as they are stored: those that fit are signed."""
    large = values >= _INT_END
    if not large.any():
        return [Column(key, INT, None, values.astype(numpy.int64))]
    found = [Column(key, UINT, numpy.flatnonzero(large), values[large])]
    if not large.all():
        found.append(Column(key, INT, numpy.flatnonzero(~large), values[~large].astype(numpy.int64)))
    return found


def _part_of_singles(records: Sequence[Record]) -> list[Part]:
    """Records that look like no other, decoded one by one."""
    if not records:
        return []
    pack = map_encoder()
    cells: dict[tuple[str, str], tuple[list[int], list[Any]]] = {}
    for row, record in enumerate(records):
        for key, value in flatten(decode_map(record.payload, tensors=False)).items():
            kind = _KINDS.get(type(value), PACKED)
            if kind == INT and value >= _INT_END:
                kind = UINT
            rows, values = cells.setdefault((key, kind), ([], []))
            rows.append(row)
            values.append(pack({"v": value})[_VALUE_AT:] if kind == PACKED else value)
    columns = []
    for (key, kind), (rows, values) in cells.items():
        typed = numpy.array(values, _DTYPES[kind]) if kind in _DTYPES else values
        columns.append(Column(key, kind, None if len(rows) == len(records) else numpy.array(rows, numpy.int64), typed))
    return [
        Part(
            numpy.array([record.sequence for record in records], numpy.uint64),
            numpy.array([record.step for record in records], numpy.int64),
            numpy.array([record.time_ns // 1000 for record in records], numpy.int64),
            numpy.array([record.flags for record in records], numpy.uint8),
            columns,
        )
    ]


def parts_of_groups(stored: Iterable[Group]) -> list[Part]:
    """The rows of a window, as `sdk.segment.windows.read_window` gives them."""
    return [
        Part(
            group.sequence,
            group.step,
            group.time_us,
            group.flags,
            [Column(key, _kind_of(values), None, values) for key, values in group.values.items()],
        )
        for group in stored
    ]


def _kind_of(values: Any) -> str:
    if isinstance(values, numpy.ndarray):
        return _ARRAY_KINDS[values.dtype.kind]
    return _KINDS.get(type(values[0]), PACKED)


# ---- merging


def joined(parts: Sequence[Part]) -> list[Part]:
    """The same with parts one behind the other that have the same columns made one: many small blocks cost little more than one."""
    found: list[list[Part]] = []
    before: list[tuple[str, str]] | None = None
    for part in parts:
        shape = [(column.key, column.kind) for column in part.columns if column.rows is None]
        if len(shape) < len(part.columns):
            shape, before = [], None
        if before is not None and shape == before:
            found[-1].append(part)
        else:
            found.append([part])
            before = shape or None
    return [run[0] if len(run) == 1 else _as_one(run) for run in found]


def _as_one(parts: list[Part]) -> Part:
    columns = [
        Column(pieces[0].key, pieces[0].kind, None, _joined([piece.values for piece in pieces]))
        for pieces in zip(*(part.columns for part in parts))
    ]
    arrays = zip(*(part[:4] for part in parts))
    sequence, step, time_us, flags = (numpy.concatenate(pieces) for pieces in arrays)
    return Part(sequence, step, time_us, flags, columns)


def merged(parts: Sequence[Part]) -> list[Group]:
    """One row for each step, as `sdk.rows.merge` makes them; a group for each set of rows in which keys occur.

    Raises:
        DamageError: Two rows have one sequence, which no trainer writes.
    """
    rows = _Rows(parts)
    columns: dict[str, list[tuple[Column, int]]] = {}
    for number, part in enumerate(parts):
        for column in part.columns:
            columns.setdefault(column.key, []).append((column, number))
    # Rows in which keys of a group occur, as bytes, so that they are found again; and the rows themselves.
    found: dict[bytes, tuple[Ints, dict[str, Any]]] = {}
    bare = numpy.ones(len(rows.sequence), bool)
    for key, pieces in columns.items():
        for places, values in _values_of(rows, pieces):
            group = found.setdefault(places.tobytes(), (places, {}))
            if not group[1]:
                bare[places] = False
            group[1][key] = values
    if bare.any():
        found[b""] = (numpy.flatnonzero(bare), {})
    return [rows.group(places, values) for places, values in found.values()]


class _Rows:
    """Which rows there are, in order of their sequences, and which of them each row of a part is a piece of."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.pieces = numpy.concatenate([part.sequence for part in parts])
        step = numpy.concatenate([part.step for part in parts])
        time = numpy.concatenate([part.time_us for part in parts])
        flags = numpy.concatenate([part.flags for part in parts])
        if rises(step) and rises(self.pieces):
            self.sequence, self.step, self.time, self.flags = self.pieces, step, time, flags
            places = numpy.arange(len(step))
        else:
            order = numpy.lexsort((self.pieces, step))
            in_order = step[order]
            is_first = numpy.concatenate(([True], in_order[1:] != in_order[:-1]))
            starts = numpy.flatnonzero(is_first)
            last = order[numpy.concatenate((starts[1:], [len(order)])) - 1]
            by_sequence = numpy.argsort(self.pieces[last], kind="stable")
            last = last[by_sequence]
            self.sequence, self.step, self.time = self.pieces[last], step[last], time[last]
            self.flags = numpy.bitwise_or.reduceat(flags[order], starts)[by_sequence]
            place = numpy.empty(len(starts), numpy.int64)
            place[by_sequence] = numpy.arange(len(starts))
            places = numpy.empty(len(order), numpy.int64)
            places[order] = place[numpy.cumsum(is_first) - 1]
            if not rises(self.sequence):
                raise DamageError("two steps have one sequence")
        ends = numpy.cumsum([len(part.sequence) for part in parts])[:-1]
        self.places: list[Ints] = numpy.split(places, ends)
        self.sequences: list[NDArray[numpy.uint64]] = numpy.split(self.pieces, ends)

    def group(self, places: Ints, values: dict[str, Any]) -> Group:
        if len(places) == len(self.sequence):
            return Group(self.sequence, self.step, self.time, self.flags, values)
        return Group(self.sequence[places], self.step[places], self.time[places], self.flags[places], values)


def _values_of(rows: _Rows, pieces: Sequence[tuple[Column, int]]) -> Iterator[tuple[Ints, Any]]:
    """(the rows in which a key has a type, its values there), rising; of several values in one row the last by sequence."""
    found = [_at(rows.places[number], column.rows) for column, number in pieces]
    places = found[0] if len(found) == 1 else numpy.concatenate(found)
    keep = None if rises(places) else _last_of_each(rows, pieces, places)
    start = 0
    by_kind: dict[str, tuple[list[Ints], list[Any]]] = {}
    for (column, _), own in zip(pieces, found):
        end = start + len(own)
        values = column.values
        if keep is not None and not keep[start:end].all():
            chosen = numpy.flatnonzero(keep[start:end])
            own, values = own[chosen], _take(values, chosen)
        if len(own):
            kept = by_kind.setdefault(column.kind, ([], []))
            kept[0].append(own)
            kept[1].append(values)
        start = end
    for all_places, all_values in by_kind.values():
        where, joined = _joined(all_places), _joined(all_values)
        if not rises(where):
            order = numpy.argsort(where, kind="stable")
            where, joined = where[order], _take(joined, order)
        yield where, joined


def _last_of_each(rows: _Rows, pieces: Sequence[tuple[Column, int]], places: Ints) -> NDArray[numpy.bool_]:
    """Which values stay: in each row the one with the highest sequence."""
    sequence = numpy.concatenate([_at(rows.sequences[number], column.rows) for column, number in pieces])
    order = numpy.lexsort((sequence, places))
    in_order = places[order]
    keep = numpy.zeros(len(places), bool)
    keep[order[numpy.concatenate((in_order[1:] != in_order[:-1], [True]))]] = True
    return keep


def _at(array: NDArray[Any], rows: Ints | None) -> NDArray[Any]:
    return array if rows is None else array[rows]


def _take(values: Any, places: Ints) -> Any:
    return values[places] if isinstance(values, numpy.ndarray) else [values[place] for place in places.tolist()]


def _joined(many: list[Any]) -> Any:
    if len(many) == 1:
        return many[0]
    if isinstance(many[0], numpy.ndarray):
        return numpy.concatenate(many)
    return [value for values in many for value in values]
