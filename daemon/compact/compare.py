"""Whether a window that was read back says what its sources say. Pure, and on purpose not made of what made the window.

Every row and every value of the sources is looked for among the columns; what is not there must have been written over by a
later piece of the same row, and nothing else may be there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy
from numpy.typing import NDArray

from daemon.compact.window import Column, Part, parts_of_groups
from sdk.arrays import distinct
from sdk.errors import DamageError
from sdk.record import Record
from sdk.segment.columns import BOOL, FLOAT, INT, NULL, PACKED, STR, UINT, Group

_CODES = (FLOAT, INT, UINT, BOOL, STR, NULL, PACKED)


def compare(
    sources: Sequence[Part], facts: Iterable[Record], found: Sequence[Group], records: Iterable[Record]
) -> None:
    """Compares rows and records.

    Raises:
        DamageError: They differ.
    """
    if {_as_bytes(record) for record in facts} != {_as_bytes(record) for record in records}:
        raise DamageError("records that are no rows differ")
    parts = parts_of_groups(found)
    if not sources or not parts:
        if sources or parts:
            raise DamageError("there are rows on one side only")
        return
    steps = distinct(numpy.concatenate([part.step for part in sources]))
    _compare_rows(steps, sources, parts)
    _compare_values(sources, parts)


def _as_bytes(record: Record) -> tuple[int, int, int, int, int, bytes]:
    return (*record[:5], bytes(record.payload))


def _compare_rows(steps: NDArray[numpy.int64], sources: Sequence[Part], parts: Sequence[Part]) -> None:
    expected, flags, times = _rows(steps, sources)
    seen = numpy.zeros(len(steps), bool)
    for part in parts:
        places = _places(steps, part.step)
        seen[places] = True
        if not (
            (expected[places] == part.sequence).all()
            and (flags[places] == part.flags).all()
            and (times[places] == part.time_us).all()
        ):
            raise DamageError("sequences, flags or times of rows differ")
    if not seen.all():
        raise DamageError(f"{len(seen) - int(seen.sum())} of {len(seen)} rows are missing")


def _rows(steps: NDArray[numpy.int64], sources: Sequence[Part]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Of each step the highest sequence, all flags, and the time of the piece with that sequence."""
    sequence = numpy.zeros(len(steps), numpy.uint64)
    flags = numpy.zeros(len(steps), numpy.uint8)
    times = numpy.zeros(len(steps), numpy.int64)
    for part in sources:
        places = _places(steps, part.step)
        numpy.maximum.at(sequence, places, part.sequence)
        numpy.bitwise_or.at(flags, places, part.flags)
    for part in sources:
        places = _places(steps, part.step)
        is_last = sequence[places] == part.sequence
        times[places[is_last]] = part.time_us[is_last]
    return sequence, flags, times


def _compare_values(sources: Sequence[Part], parts: Sequence[Part]) -> None:
    ours, theirs = _by_key(sources), _by_key(parts)
    if ours.keys() != theirs.keys():
        raise DamageError(f"keys differ: {sorted(ours.keys() ^ theirs.keys())[:3]!r}")
    for key, pieces in ours.items():
        expected, found = _series(pieces), _series(theirs[key])
        if len(found.steps) != sum(len(steps) for steps, _, _ in theirs[key]):
            raise DamageError(f"rows have two values of {key!r}")
        if not (numpy.array_equal(expected.steps, found.steps) and numpy.array_equal(expected.kinds, found.kinds)):
            raise DamageError(f"rows with {key!r} differ")
        if not all(_same(values, found.values[kind]) for kind, values in expected.values.items()):
            raise DamageError(f"values of {key!r} differ")


# The steps and sequences of some values of a key, and themselves.
_Piece: TypeAlias = tuple[NDArray[Any], NDArray[Any], Column]


def _by_key(parts: Iterable[Part]) -> dict[str, list[_Piece]]:
    found: dict[str, list[_Piece]] = {}
    for part in parts:
        for column in part.columns:
            rows = slice(None) if column.rows is None else column.rows
            found.setdefault(column.key, []).append((part.step[rows], part.sequence[rows], column))
    return found


class _Series(NamedTuple):
    """All values of a key: its steps, rising, the type of each value, and the values of each type, in order of steps."""

    steps: NDArray[Any]
    kinds: NDArray[Any]
    values: dict[int, Any]


def _series(pieces: Sequence[_Piece]) -> _Series:
    """The last value by sequence of each step."""
    steps = numpy.concatenate([piece[0] for piece in pieces])
    codes = numpy.concatenate(
        [numpy.full(len(steps), _CODES.index(column.kind), numpy.int8) for steps, _, column in pieces]
    )
    order = numpy.lexsort((numpy.concatenate([piece[1] for piece in pieces]), steps))
    in_order = steps[order]
    order = order[numpy.concatenate((in_order[1:] != in_order[:-1], [True]))]
    values: dict[int, Any] = {}
    for code in numpy.flatnonzero(numpy.bincount(codes[order])).tolist():
        place = numpy.cumsum(codes == code) - 1
        chosen = place[order[codes[order] == code]]
        values[code] = _taken([column.values for _, _, column in pieces if column.kind == _CODES[code]], chosen)
    return _Series(steps[order], codes[order], values)


def _taken(many: list[Any], places: NDArray[Any]) -> Any:
    if isinstance(many[0], numpy.ndarray):
        return numpy.concatenate(many)[places]
    flat = [value for values in many for value in values]
    return [flat[place] for place in places.tolist()]


def _same(one: Any, two: Any) -> bool:
    if not isinstance(one, numpy.ndarray):
        return bool(one == two)
    # Bit for bit, so that NaN and negative zero count; a float32 is the float64 that a reader gets.
    one, two = (array.astype(numpy.float64).view("u8") if array.dtype.kind == "f" else array for array in (one, two))
    return bool(numpy.array_equal(one, two))


def _places(steps: NDArray[numpy.int64], some: NDArray[numpy.int64]) -> NDArray[Any]:
    """Where some steps are among all.

    Raises:
        DamageError: One is not.
    """
    places = numpy.minimum(numpy.searchsorted(steps, some), len(steps) - 1)
    if not numpy.array_equal(steps[places], some):
        raise DamageError("there are rows that no source has")
    return places
