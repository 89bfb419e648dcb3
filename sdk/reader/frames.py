"""Columns as a pandas DataFrame. pandas is imported when somebody asks for one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy

from ..errors import Error
from .columns import Joined
from .lanes import Lane
from .scan import Scan
from .series import read_table

if TYPE_CHECKING:
    from numpy.typing import NDArray


def pandas_module(what: str) -> Any:
    """The module pandas.

    Raises:
        Error: It is not installed.
    """
    import importlib

    try:
        return importlib.import_module("pandas")
    except ImportError:
        raise Error(
            f"cannot make a DataFrame for {what}: pandas is not installed here",
            hint=f"pip install pandas   (interpreter: {sys.executable})",
        ) from None


def frame_of(scan: Scan, lanes: list[Lane], keys: list[str] | None) -> Any:
    """The DataFrame of some keys (None: of all that do not begin with an underscore); the name of the first unknown key."""
    pandas = pandas_module("to_pandas()")
    table = read_table(scan, lanes, keys)
    if keys is None:
        keys = sorted(key for key in table if key[:1] != "_")
    for key in keys:
        if key not in table:
            return key
    steps = _all_steps([table[key].step for key in keys])
    columns = {key: _column(pandas, table[key], steps) for key in keys}
    return pandas.DataFrame(columns, index=pandas.Index(steps, name="step"))


def _all_steps(steps: list[NDArray[numpy.int64]]) -> NDArray[numpy.int64]:
    return numpy.unique(numpy.concatenate(steps)) if steps else numpy.empty(0, numpy.int64)


_NULLABLE = {"i": "Int64", "u": "UInt64", "b": "boolean"}


def _column(pandas: Any, joined: Joined, steps: NDArray[numpy.int64]) -> Any:
    if len(joined.step) == len(steps):
        return joined.value
    place = numpy.searchsorted(steps, joined.step)
    if joined.value.dtype.kind == "f":
        whole = numpy.full(len(steps), numpy.nan)
        whole[place] = joined.value
        return whole
    if joined.value.dtype.kind == "O":
        objects = numpy.full(len(steps), None, object)
        objects[place] = joined.value
        return objects
    filled = numpy.zeros(len(steps), joined.value.dtype)
    filled[place] = joined.value
    array = pandas.array(filled, dtype=_NULLABLE[joined.value.dtype.kind])
    hole = numpy.ones(len(steps), bool)
    hole[place] = False
    array[hole] = pandas.NA
    return array
