"""Values of a run as columns of Arrow: wide, a column for each key, or long, a row for each value.

Numbers go from numpy to Arrow as they lie in memory; only texts, lists and media are touched one by one. Wide types are those of
`Run.to_arrow`: double, int64, uint64, bool, string, binary; what is of several kinds, or none of these, is JSON in a string.

Wide: what was logged under the name of a column of ours, or of a partition, has ``_logged`` before it. Where nulls were logged, the column
`_null` names the keys of each row: there they take away what the step had, and everywhere else a hole says nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from sdk.reader.delivery import Batch, Points
from sdk.reader.plain import as_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEP, TIME, SEQUENCE, STREAM, ATTEMPT, RANK, NULL = (
    "_step",
    "_time",
    "_sequence",
    "_stream",
    "_attempt",
    "_rank",
    "_null",
)
_OURS = frozenset({STEP, TIME, SEQUENCE, STREAM, ATTEMPT, RANK, NULL, "project", "run"})
_LOGGED = "_logged"
NAMELESS = "_nameless"

# Limit: 64 MiB of doubles. A key of its own for each row would make of a batch a table of 65 536 columns.
_CELLS_MAX = 8 << 20
# Beyond this an integer has no double of its own.
_EXACT_MAX = 2**53
# What `type` says of a value of the long layout.
_TYPES = ("float", "int", "bool", "text", "json", "null")
_FLOAT, _INT, _BOOL, _TEXT, _JSON, _NULL = range(len(_TYPES))
_TYPE_OF = {float: _FLOAT, int: _INT, bool: _BOOL, str: _TEXT, type(None): _NULL}


class Writing(NamedTuple):
    """What making cells needs.

    Attributes:
        arrow: The module pyarrow.
        described: A value that is no number and no text, as plain values: media are put beside, and named.
        odd: Told the key of texts that are no Unicode, which get ``?`` for what cannot be written, and how many there are.
        mixed: Told the key whose column holds texts beside other values, all as JSON, while another file may hold texts as they are.
    """

    arrow: Any
    described: Callable[[Any, str, int], Any]
    odd: Callable[[str, int], None]
    mixed: Callable[[str], None] = lambda key: None


def column_name(key: str) -> str:
    """The name of a key's column: itself, unless it is one of ours, empty, or no Unicode."""
    logged = key
    while logged.startswith(_LOGGED):  # so that no two keys get one name
        logged = logged.removeprefix(_LOGGED)
    if key in _OURS or (logged != key and (logged in _OURS or logged[1:] in _OURS)):
        return _LOGGED + (key if key.startswith("_") else f"_{key}")
    return key.encode("utf-8", "backslashreplace").decode() or NAMELESS


def heads(writing: Writing, batch: Batch, sequence: Any, step: Any, time_us: Any) -> dict[str, Any]:
    """The columns of ours."""
    arrow, stream = writing.arrow, batch.stream
    return {
        STEP: arrow.array(step),
        TIME: arrow.array(time_us, arrow.timestamp("us", tz="UTC")),
        SEQUENCE: arrow.array(sequence.astype(numpy.int64)),  # not every engine has a uint64
        STREAM: _constant(arrow, stream.hex, arrow.string(), len(step)),
        ATTEMPT: _constant(arrow, whole(stream.attempt), arrow.int64(), len(step)),
        RANK: _constant(arrow, whole(stream.number("rank")), arrow.int64(), len(step)),
    }


def whole(number: int | None) -> int | None:
    """A number that a stream says of itself, unless no process could have it."""
    return number if number is not None and -(2**63) <= number < 2**63 else None


def _constant(arrow: Any, value: Any, kind: Any, count: int) -> Any:
    """One value, `count` times, as a column that is written as a dictionary of one."""
    if value is None:
        return arrow.nulls(count, kind)
    return arrow.DictionaryArray.from_arrays(numpy.zeros(count, numpy.int8), arrow.array([value], kind))


# ---- wide


def wide(writing: Writing, batch: Batch) -> Iterator[Any]:
    """A batch's rows as tables with a column for each key; one, unless nearly every row has keys of its own."""
    for points in _portions(batch.points):
        yield _wide(writing, batch, points)


def _portions(points: list[Points]) -> Iterator[list[Points]]:
    """The rows in portions that have not too many cells, holes included."""
    rows, keys = sum(map(len, points)), len({key for one in points for key in one.columns})
    if rows < 2 or rows * keys <= _CELLS_MAX:
        yield points
        return
    sequences = numpy.sort(numpy.concatenate([one.sequence for one in points]))
    middle = sequences[(len(sequences) - 1) // 2]
    places = [int(numpy.searchsorted(one.sequence, middle, "right")) for one in points]
    halves = (
        [_cut(one, slice(place)) for one, place in zip(points, places) if place],
        [_cut(one, slice(place, None)) for one, place in zip(points, places) if place < len(one)],
    )
    for half in halves if all(halves) else ():
        yield from _portions(half)
    if not all(halves):  # all are of one row
        yield points


def _cut(points: Points, part: slice) -> Points:
    columns = {key: values[part] for key, values in points.columns.items()}
    return Points(points.sequence[part], points.step[part], points.time_us[part], columns)


def _wide(writing: Writing, batch: Batch, points: list[Points]) -> Any:
    if len(points) == 1:
        sequence, step, time_us = points[0][:3]
        places = [None]
    else:
        sequence, first = numpy.unique(numpy.concatenate([p.sequence for p in points]), return_index=True)
        step = numpy.concatenate([p.step for p in points])[first]
        time_us = numpy.concatenate([p.time_us for p in points])[first]
        places = [None if len(p) == len(sequence) else numpy.searchsorted(sequence, p.sequence) for p in points]
    columns = heads(writing, batch, sequence, step, time_us)
    nulls: dict[int, list[str]] = {}
    for key, held in _by_key(points, places).items():
        name = column_name(key)
        while name in columns:  # a key that looks like another one's escaped name
            name += "_"
        columns[name] = _wide_column(writing, key, held, sequence, nulls)
    if nulls:
        columns[NULL] = writing.arrow.array(
            [nulls.get(place) for place in range(len(sequence))], writing.arrow.list_(writing.arrow.string())
        )
    return writing.arrow.table(columns)


_Held = list[tuple[Any, Any]]  # (values, which rows they are; None: all)


def _by_key(points: list[Points], places: list[Any]) -> dict[str, _Held]:
    found: dict[str, _Held] = {}
    for one, place in zip(points, places):
        for key, values in one.columns.items():
            found.setdefault(key, []).append((values, place))
    return found


def _wide_column(
    writing: Writing, key: str, held: _Held, sequence: NDArray[numpy.uint64], nulls: dict[int, list[str]]
) -> Any:
    arrow, count = writing.arrow, len(sequence)
    (values, place), *others = held
    if not others and not isinstance(values, list) and place is None:
        return arrow.array(values)
    if all(not isinstance(one, list) for one, _ in held) and len({one.dtype for one, _ in held}) == 1:
        whole, hole = numpy.zeros(count, values.dtype), numpy.ones(count, bool)
        for one, place in held:
            whole[place], hole[place] = one, False
        return arrow.array(whole, mask=hole)
    cells: list[Any] = [None] * count
    for one, place in held:
        listed = one if isinstance(one, list) else one.tolist()
        for at, value in zip(range(count) if place is None else place.tolist(), listed):
            cells[at] = value
            if value is None:
                nulls.setdefault(at, []).append(column_name(key))
    return _objects(writing, key, cells, sequence)


def _objects(writing: Writing, key: str, cells: list[Any], sequence: NDArray[numpy.uint64]) -> Any:
    arrow = writing.arrow
    kinds = {type(value) for value in cells if value is not None}
    if not kinds:
        return arrow.nulls(len(cells))
    if kinds == {bytes}:
        return arrow.array(cells, arrow.binary())
    if kinds == {str}:
        return arrow.array(_texts(writing, key, cells), arrow.string())
    if kinds == {bool}:
        return arrow.array(cells, arrow.bool_())
    if kinds <= {int, float} and _are_numbers(cells, float in kinds):
        return arrow.array(cells, arrow.float64() if float in kinds else arrow.int64())
    if str in kinds:
        writing.mixed(key)
    texts = [
        None if value is None else _json(writing, value, key, number) for value, number in zip(cells, sequence.tolist())
    ]
    return arrow.array(_texts(writing, key, texts), arrow.string())


def _are_numbers(cells: list[Any], has_floats: bool) -> bool:
    limit = _EXACT_MAX if has_floats else 2**63 - 1
    return all(abs(value) <= limit for value in cells if type(value) is int)


def _texts(writing: Writing, key: str, texts: list[str | None]) -> list[str | None]:
    """Texts as UTF-8 takes them."""
    found: list[str | None] = []
    odd = 0
    for text in texts:
        if text is None or text.isascii():
            found.append(text)
            continue
        written = text.encode("utf-8", "replace").decode()
        odd += written != text
        found.append(written)
    if odd:
        writing.odd(key, odd)
    return found


def _json(writing: Writing, value: Any, key: str, sequence: int) -> str:
    return strict_json(writing.described(value, key, sequence))


def strict_json(value: Any) -> str:
    """JSON as every engine reads it: what JSON has no number for is the text "NaN", "Infinity" or "-Infinity"."""
    try:
        text = as_json(value)
        return as_json(_finite(json.loads(text))) if "NaN" in text or "Infinity" in text else text
    except RecursionError:
        return '"nested too deeply"'


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value


# ---- long


def long(writing: Writing, batch: Batch) -> Iterator[Any]:
    """A batch's values as a table with a row for each; none of rows without values.

    `type` says what a value was; `value` holds numbers and booleans that a double holds exactly, `text` texts, `json` all else.
    """
    arrow = writing.arrow
    pieces = [_long(writing, batch, points) for points in batch.points if points.columns]
    if pieces:
        yield arrow.concat_tables(pieces).unify_dictionaries()


def _long(writing: Writing, batch: Batch, points: Points) -> Any:
    arrow, rows, keys = writing.arrow, len(points), len(points.columns)
    parts = [_long_values(writing, key, values, points.sequence) for key, values in points.columns.items()]
    names = [key.encode("utf-8", "backslashreplace").decode() for key in points.columns]
    ours = heads(writing, batch, *(numpy.tile(array, keys) for array in (points.sequence, points.step, points.time_us)))
    columns: dict[str, Any] = {
        "key": arrow.DictionaryArray.from_arrays(numpy.repeat(numpy.arange(keys, dtype=numpy.int32), rows), names),
        **ours,
        "type": arrow.DictionaryArray.from_arrays(numpy.concatenate([part[0] for part in parts]), list(_TYPES)),
        "value": arrow.chunked_array([part[1] for part in parts]),
        "text": arrow.chunked_array([part[2] for part in parts]),
        "json": arrow.chunked_array([part[3] for part in parts]),
    }
    return arrow.table(columns)


def _long_values(writing: Writing, key: str, values: Any, sequence: NDArray[numpy.uint64]) -> tuple[Any, Any, Any, Any]:
    """Types, numbers, texts and JSON of the values of a key."""
    arrow, count = writing.arrow, len(values)
    nothing = arrow.nulls(count, arrow.string())
    if not isinstance(values, list):
        kind = {"f": _FLOAT, "b": _BOOL}.get(values.dtype.kind, _INT)
        if kind != _INT or not count or max(abs(int(values.min())), abs(int(values.max()))) <= _EXACT_MAX:
            return numpy.full(count, kind, numpy.int8), arrow.array(values.astype(numpy.float64)), nothing, nothing
        values = values.tolist()
    types = [_TYPE_OF.get(type(value), _JSON) for value in values]
    large = [t == _INT and abs(value) > _EXACT_MAX for value, t in zip(values, types)]
    numbers = [
        float(value) if t <= _BOOL and not is_large else None for value, t, is_large in zip(values, types, large)
    ]
    texts = [value if t == _TEXT else None for value, t in zip(values, types)]
    plain = [
        _json(writing, value, key, number) if t == _JSON or is_large else None
        for value, t, is_large, number in zip(values, types, large, sequence.tolist())
    ]
    return (
        numpy.array(types, numpy.int8),
        arrow.array(numbers, arrow.float64()),
        arrow.array(_texts(writing, key, texts), arrow.string()),
        arrow.array(_texts(writing, key, plain), arrow.string()),
    )
