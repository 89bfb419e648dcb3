"""A table as a pandas, an Arrow or a polars one. Each library is imported when somebody asks for it."""

from __future__ import annotations

from typing import Any

import numpy

from ..errors import Error, install_hint
from .plain import as_json
from .tables import Table

# What is logged under the names of a table's own columns has these there, as `_step` and `_timestamp` of rows do.
_LOGGED = {"step": "_logged_step", "time": "_logged_time"}


def pandas_module(what: str) -> Any:
    """The module pandas.

    Raises:
        Error: It is not installed.
    """
    return _module("pandas", what, "pandas")


def _module(name: str, what: str, package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise Error(
            f"cannot make a table for {what}: {name} is not installed here",
            hint=install_hint(package),
        ) from None


def pandas_frame(table: Table, pandas: Any) -> Any:
    """A DataFrame, indexed by step."""
    columns = {key: _pandas_column(pandas, table, key) for key in table.columns}
    # Why no copy: the arrays are nobody else's, and consolidating them would write all of them once more.
    return pandas.DataFrame(columns, index=pandas.Index(table.steps, name="step"), copy=False)


def _pandas_column(pandas: Any, table: Table, key: str) -> Any:
    kind = table.columns[key].value.dtype.kind
    values, hole = table.filled(key, {"f": numpy.nan, "O": None}.get(kind, 0))
    if hole is None or kind in "fO":
        return values
    return (pandas.arrays.BooleanArray if kind == "b" else pandas.arrays.IntegerArray)(values, hole)


def arrow_module(what: str) -> Any:
    """The module pyarrow.

    Raises:
        Error: It is not installed.
    """
    return _module("pyarrow", what, "pyarrow")


def arrow_table(table: Table, arrow: Any) -> Any:
    """A pyarrow.Table with `step`, `time` and the keys."""
    columns = {
        "step": arrow.array(table.steps),
        "time": arrow.array(table.times_us(), arrow.timestamp("us", tz="UTC")),
        **{_LOGGED.get(key, key): _arrow_column(arrow, table, key) for key in table.columns},
    }
    return arrow.table(columns)


def _arrow_column(arrow: Any, table: Table, key: str) -> Any:
    if table.columns[key].value.dtype.kind != "O":
        values, hole = table.filled(key, 0)
        return arrow.array(values, mask=hole)
    values, _ = table.filled(key, None)
    kinds = set(map(type, table.columns[key].value))
    if kinds == {bytes}:
        return arrow.array(values, arrow.binary())
    # A lone surrogate is no text elsewhere.
    texts = values.tolist() if kinds == {str} else [value if value is None else _json(value) for value in values]
    return arrow.array([text and text.encode("utf-8", "replace").decode() for text in texts], arrow.string())


def _json(value: Any) -> str:
    try:
        return as_json(value)
    except RecursionError:
        return '"nested too deeply"'


def polars_module(what: str) -> Any:
    """The module polars, which takes tables from pyarrow.

    Raises:
        Error: One of them is not installed.
    """
    arrow_module(what)
    return _module("polars", what, "polars pyarrow")
