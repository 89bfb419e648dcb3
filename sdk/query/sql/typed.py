"""Plain values of many runs as typed Arrow columns: what configs, summaries and cells of tables become in SQL."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow

from ...reader.plain import as_json
from .pruning import text

# Limit: of the maps that become structs, with all that is in them. What has more fields, or is deeper, is a text of JSON from there
# on; a struct of 10,000 fields takes DuckDB a second to bind.
FIELDS_MAX = 2000
DEPTH_MAX = 6
_INT64 = range(-(2**63), 2**63)


def column(values: Sequence[Any]) -> Any:
    """A column of plain values: BOOLEAN, BIGINT, DOUBLE (also of integers and floats), VARCHAR or a list of one of these where all
    are, a STRUCT of maps, and else the JSON of each as a text. None is null.
    """
    return _column(values, 0, [FIELDS_MAX])


def _column(values: Sequence[Any], depth: int, left: list[int]) -> Any:
    """As `column`.

    Args:
        left: How many fields there may be besides; those of this column are taken off.
    """
    kinds = {type(value) for value in values if value is not None}
    if kinds == {dict} and depth < DEPTH_MAX:
        found = _struct(values, depth, left)
        if found is not None:
            return found
    if kinds == {list}:
        inner = _scalar_type([one for value in values if value is not None for one in value])
        if inner is not None:
            cells = [value and [_scalar(one, inner) for one in value] for value in values]
            return pyarrow.array(cells, pyarrow.list_(inner))
    scalar = _scalar_type(values)
    if scalar is not None:
        return pyarrow.array([_scalar(value, scalar) for value in values], scalar)
    return texts(values)


def texts(values: Iterable[Any]) -> Any:
    """A column of texts: those that are, and the JSON of everything else."""
    return pyarrow.array([value if value is None else text_of(value) for value in values], pyarrow.string())


def text_of(value: Any) -> str:
    """A value as a text: itself, or its JSON."""
    if isinstance(value, str):
        return text(value)
    try:
        return text(as_json(value))
    except RecursionError:
        return '"nested too deeply"'


def _scalar_type(values: Sequence[Any]) -> Any:
    """What holds all of some values as they are; None: nothing does. Of nulls alone it is a text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {str}:
        return pyarrow.string()
    if kinds == {bool}:
        return pyarrow.bool_()
    if kinds == {int} and all(value is None or value in _INT64 for value in values):
        return pyarrow.int64()
    if kinds <= {int, float} and all(type(value) is not int or abs(value) <= 2**53 for value in values):
        return pyarrow.float64()
    return None


def _scalar(value: Any, kind: Any) -> Any:
    if isinstance(value, str):
        return text(value)
    # Of Python's own floats Arrow takes NaN for a null only where it comes from pandas.
    return float(value) if kind == pyarrow.float64() and value is not None else value


def _struct(values: Sequence[Any], depth: int, left: list[int]) -> Any:
    """Maps as a STRUCT with a field for each key; None where they are too many, or there is none."""
    names: dict[str, None] = {}
    for value in values:
        if value is not None:
            if not all(isinstance(name, str) for name in value):
                return None
            names.update(dict.fromkeys(value))
        if len(names) > left[0]:
            return None
    if not names:
        return None
    left[0] -= len(names)
    fields = [
        _column([None if value is None else value.get(name) for value in values], depth + 1, left) for name in names
    ]
    mask = pyarrow.array([value is None for value in values], pyarrow.bool_())
    return pyarrow.StructArray.from_arrays(fields, names=distinct(names), mask=mask)


def distinct(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """Names of columns that SQL tells apart, which does not know upper case from lower: a second `Loss` is `Loss_2`."""
    used = {name.lower() for name in taken}
    found = []
    for name in names:
        # DuckDB ends a name at the first NUL, and its older releases then take no query at all.
        shown = base = text(name).replace("\0", "?") or "_"
        number = 1
        while shown.lower() in used:
            number += 1
            shown = f"{base}_{number}"
        used.add(shown.lower())
        found.append(shown)
    return found


def number_of(value: Any) -> float | None:
    """A value as a DOUBLE, as far as it is a number."""
    if isinstance(value, (bool, int, float)):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return None
