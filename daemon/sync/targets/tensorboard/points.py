"""The numbers of a batch, as event records: by columns, not one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy
from numpy.typing import NDArray

from daemon.formats.plugins import SCALARS
from daemon.formats.scalar_events import scalar_records
from daemon.sync.targets.tensorboard.eventfile import EventFile
from sdk.reader.delivery import Points

# Where what cannot be held is counted: what, under which key, how often.
Lost = Callable[[str, str, int], None]

INEXACT = "integers that no float64 holds exactly"
TOO_LARGE = "numbers beyond float32, which are infinite there"
# The integers that a float64 tells apart.
_EXACT_MAX = 2**53
_NUMBERS = (float, int, bool)


class Other(NamedTuple):
    """A value that is no number."""

    sequence: int
    step: int
    time_us: int
    key: str
    value: Any


class _Piece(NamedTuple):
    """Rows with the same keys, all of them numbers, in order of sequences."""

    sequence: NDArray[Any]
    step: NDArray[Any]
    time_us: NDArray[Any]
    columns: dict[str, NDArray[Any]]

    def chosen(self, index: NDArray[Any], key: str) -> _Piece:
        """Some rows of one key."""
        return _Piece(self.sequence[index], self.step[index], self.time_us[index], {key: self.columns[key][index]})


def add_numbers(file: EventFile, batch: Sequence[Points], lost: Lost, *, as_double: bool = False) -> list[Other]:
    """Writes the numbers of a batch's rows.

    Returns:
        What are no numbers, in order of sequences.
    """
    pieces, others = _divided(batch, lost)
    is_woven = len({key for piece in pieces for key in piece.columns}) < sum(len(piece.columns) for piece in pieces)
    slabs: list[tuple[NDArray[Any], NDArray[numpy.uint8]]] = []
    for piece in _rising(file, pieces):
        at = 0
        for records in _records(file, piece, lost, as_double=as_double):
            if is_woven:
                slabs.append((piece.sequence[at : at + len(records)], records))
                at += len(records)
            else:
                file.add(memoryview(records).cast("B"))
    if slabs:
        # Keys come and go from row to row: what is under one key must come in order of its sequences.
        file.add(_woven(slabs))
    others.sort(key=lambda other: other.sequence)
    return others


def _divided(batch: Sequence[Points], lost: Lost) -> tuple[list[_Piece], list[Other]]:
    """The numbers of some rows, and what else is in them. A null says that there is no value, and is left out."""
    pieces, others = [], []
    for points in batch:
        columns: dict[str, NDArray[Any]] = {}
        head = (points.sequence, points.step, points.time_us)
        for key, column in points.columns.items():
            if not isinstance(column, list):
                columns[key] = column
                continue
            places = [place for place, value in enumerate(column) if type(value) in _NUMBERS]
            if places:
                index = numpy.array(places)
                values = _as_array([column[place] for place in places], key, lost)
                pieces.append(_Piece(head[0][index], head[1][index], head[2][index], {key: values}))
            others += [
                Other(int(points.sequence[place]), int(points.step[place]), int(points.time_us[place]), key, value)
                for place, value in enumerate(column)
                if value is not None and type(value) not in _NUMBERS
            ]
        if columns:
            pieces.append(_Piece(*head, columns))
    return pieces, others


def _as_array(values: list[Any], key: str, lost: Lost) -> NDArray[Any]:
    """Numbers of several kinds, or too large for a kind of numpy's."""
    if all(type(value) is int and -_EXACT_MAX <= value <= _EXACT_MAX for value in values):
        return numpy.array(values, "i8")
    return numpy.array([_as_float(value, key, lost) for value in values])


def _as_float(value: float, key: str, lost: Lost) -> float:
    try:
        made = float(value)
    except OverflowError:
        made = math.inf if value > 0 else -math.inf
    if type(value) is int and made != value:
        lost(INEXACT, key, 1)
    return made


def _rising(file: EventFile, pieces: list[_Piece]) -> Iterator[_Piece]:
    """The rows whose steps rise above the last of each key; the others are counted as late."""
    holding: dict[str, list[int]] = {}
    for place, piece in enumerate(pieces):
        for key in piece.columns:
            holding.setdefault(key, []).append(place)
    strict = [bool((piece.step[1:] > piece.step[:-1]).all()) for piece in pieces]
    last_steps = file.last_steps(SCALARS)
    whole: list[dict[str, NDArray[Any]]] = [{} for _ in pieces]
    parts: list[_Piece] = []
    for key, places in holding.items():
        tag = file.tag_of(key, SCALARS)
        last = last_steps.get(tag, -1)
        first = pieces[places[0]]
        if len(places) == 1 and strict[places[0]] and first.step[0] > last:
            whole[places[0]][key] = first.columns[key]
            last_steps[tag] = int(first.step[-1])
            continue
        steps = numpy.concatenate([pieces[place].step for place in places])
        owners = numpy.repeat(places, [len(pieces[place].step) for place in places])
        order = numpy.argsort(numpy.concatenate([pieces[place].sequence for place in places]), kind="stable")
        reached = numpy.maximum.accumulate(numpy.concatenate([[last], steps[order]]))
        is_kept = numpy.empty(len(steps), bool)
        is_kept[order] = steps[order] > reached[:-1]
        last_steps[tag] = int(reached[-1])
        file.late += int(len(steps) - is_kept.sum())
        for place in places:
            kept = is_kept[owners == place]
            if kept.all():
                whole[place][key] = pieces[place].columns[key]
            elif kept.any():
                parts.append(pieces[place].chosen(numpy.flatnonzero(kept), key))
    for piece, columns in zip(pieces, whole):
        if columns:
            yield piece._replace(columns=columns)
    yield from parts


def _records(file: EventFile, piece: _Piece, lost: Lost, *, as_double: bool) -> Iterator[NDArray[numpy.uint8]]:
    columns = []
    for key, column in piece.columns.items():
        if column.dtype.kind in "iu" and (inexact := _inexact(column)):
            lost(INEXACT, key, inexact)
        columns.append(column if as_double else _single(column, key, lost))
    tags = [file.tag_of(key, SCALARS) for key in piece.columns]
    yield from scalar_records(tags, piece.time_us / 1e6, piece.step, columns, as_double=as_double)


def _single(column: NDArray[Any], key: str, lost: Lost) -> NDArray[Any]:
    """As float32, which every reader of event files expects; TensorBoard's fast loader knows no other."""
    try:
        with numpy.errstate(over="raise"):
            return column.astype("<f4")
    except FloatingPointError:
        with numpy.errstate(over="ignore"):
            made = column.astype("<f4")
        lost(TOO_LARGE, key, int((numpy.isinf(made) & numpy.isfinite(column)).sum()))
        return made


def _inexact(column: NDArray[Any]) -> int:
    """How many integers no float holds: beyond what "7 digits" promises anybody."""
    if column.max() <= _EXACT_MAX and column.min() >= -_EXACT_MAX:
        return 0
    return sum(int(float(value)) != value for value in column.tolist())


def _woven(slabs: list[tuple[NDArray[Any], NDArray[numpy.uint8]]]) -> memoryview:
    """The records of all slabs, by their sequences."""
    sequences = numpy.concatenate([numbers for numbers, _ in slabs])
    sizes = numpy.repeat([records.shape[1] for _, records in slabs], [len(records) for _, records in slabs])
    order = numpy.argsort(sequences, kind="stable")
    starts = numpy.empty(len(order), numpy.int64)
    ends = numpy.cumsum(sizes[order])
    starts[order] = ends - sizes[order]
    out = numpy.empty(int(ends[-1]), "u1")
    at = 0
    for _, records in slabs:
        count, size = records.shape
        out[starts[at : at + count, None] + numpy.arange(size)] = records
        at += count
    return memoryview(out)
