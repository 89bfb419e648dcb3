"""Cells of a table: what each becomes, and the kinds that the columns have.

A column's kind follows from its cells. None fits into any column that is optional, and so does a NaN of float, which
pandas and others write where text or a time is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from typing import Any

from ..dtypes import widened
from ..errors import Error, install_hint
from ..limits import INLINE_TENSOR_BYTES_MAX, NESTING_MAX
from .convert import plain_value
from .media import Media
from .register import handler_of

NONE, NUMBER, ANY = "none", "number", "any"

# Exact types whose values are cells as they are.
PLAIN: dict[type, str] = {
    int: NUMBER, float: NUMBER, str: "string", bool: "boolean", type(None): NONE, bytes: "bytes",
}  # fmt: skip
_NAMES = frozenset({*PLAIN.values(), ANY, "timestamp", "list", "map", "array"})
_DTYPES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "boolean"), ((int, float, complex), NUMBER), (str, "string"), ((bytes, bytearray), "bytes"),
    ((list, tuple), "list"), (dict, "map"),
)  # fmt: skip


# -- cells -----------------------------------------------------------------------------------------------------------


def cell(value: Any, column: object, depth: int = 0) -> Any:
    """What a table keeps of a value: itself where it cannot change, else a copy.

    Args:
        column: The name of its column, for errors.

    Raises:
        TypeError: It cannot be stored.
        ValueError: Its type can, but not this value.
    """
    kind = type(value)
    if kind in PLAIN or isinstance(value, Media):
        return value
    if depth > NESTING_MAX:
        raise ValueError(f"Table() cell of column {column!r} is nested deeper than {NESTING_MAX}")
    if isinstance(value, (list, tuple)):
        return [cell(one, column, depth + 1) for one in value]
    if isinstance(value, dict):
        return {str(name): cell(one, column, depth + 1) for name, one in value.items()}
    if kind.__module__.startswith("pandas.") and kind.__name__ in ("NAType", "NaTType"):
        return None
    handler = handler_of(kind)
    if handler is not None:
        return cell(handler(value), column, depth + 1)
    found = _from_picture(value)
    if found is None and not _is_scalar(value):
        found = _from_array(value, column)
    if found is None:
        _check(value, column)
        return value
    return found


def _is_scalar(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic)


def _from_picture(value: Any) -> Media | None:
    from .interactive import Plotly, is_plotly
    from .pixels import figure_of

    module = sys.modules.get("PIL.Image")
    if (module is not None and isinstance(value, module.Image)) or figure_of(value) is not None:
        from .image import Image

        return Image(value)
    return Plotly(value) if is_plotly(value) else None


def _from_array(value: Any, column: object) -> Any:
    """An array, copied; a number, of one without axes; None, of what is no array."""
    if not hasattr(type(value), "__array__") and not hasattr(type(value), "numpy"):
        return None
    from .arrays import fetch_array
    from .tensor import Tensor

    fetched = fetch_array(value, str(column))
    if fetched is None:
        return None
    array, dtype = fetched.array, fetched.dtype
    if array.dtype.hasobject or array.dtype.fields is not None:
        raise TypeError(f"Table() cell of column {column!r} is an array of dtype {array.dtype}, expected numbers")
    if array.ndim == 0 or array.dtype.kind in "US":
        return plain_value(widened(array, dtype), column)
    if dtype is not None or array.nbytes > INLINE_TENSOR_BYTES_MAX:
        return Tensor(array, dtype)
    return array.copy()


def _check(value: Any, column: object) -> None:
    try:
        plain_value(value, column)
    except TypeError:
        raise TypeError(
            f"Table() cell of column {column!r} is {type(value).__module__}.{type(value).__qualname__}, which cannot be stored"
        ) from None


def kind_of(value: Any) -> str:
    """The kind of a cell, as `cell` gives it."""
    known = PLAIN.get(type(value))
    if known is not None:
        return known
    if isinstance(value, Media):
        return value._type
    if isinstance(value, (list, dict)):
        return "list" if isinstance(value, list) else "map"
    if hasattr(value, "isoformat") or type(value).__name__ == "datetime64":
        return "timestamp"
    if hasattr(value, "dtype") and value.shape:
        return "array"
    plain = plain_value(value)
    return PLAIN.get(type(plain)) or kind_of(plain)


# -- kinds -----------------------------------------------------------------------------------------------------------


class Column:
    """What the cells of a column may be.

    Attributes:
        kinds: The kinds of its cells; empty until there is one, or None: any.
        optional: Whether cells may be None.
        types: Exact types of plain cells that need no further look.
    """

    __slots__ = ("kinds", "optional", "types")

    def __init__(self, kinds: frozenset[str] | None, optional: bool) -> None:
        self.kinds = kinds
        self.optional = optional
        self.types = frozenset(kind for kind, name in PLAIN.items() if self._fits({name}))

    def _fits(self, found: Collection[str]) -> bool:
        if self.kinds is None:
            return True
        return all((kind == NONE and self.optional) or kind in self.kinds for kind in found)

    def admitting(self, values: Collection[Any], exact: set[type]) -> Column:
        """This column with further cells, or itself where that changes nothing; `exact` are the types of the cells.

        Raises:
            TypeError: Their kinds do not fit. It says only what was found and expected.
        """
        if self.kinds is None or exact <= self.types:
            return self
        found = _kinds(values, exact)
        if self.optional and not self.kinds and found <= {NUMBER, NONE} and all(map(_is_missing, values)):
            found = {NONE}  # a NaN alone does not tell of what it is one
        if not self._admits(found):
            found = {NONE if _is_missing(value) else kind_of(value) for value in values}
        if not self._admits(found):
            raise TypeError(f"{', '.join(sorted(found))}, expected {self.name}{' or None' if self.optional else ''}")
        return self if found - {NONE} <= self.kinds else Column(frozenset(found - {NONE}), self.optional)

    def _admits(self, found: set[str]) -> bool:
        if self.kinds:
            return self._fits(found)
        return len(found - {NONE}) <= 1 and (NONE not in found or self.optional)

    @property
    def name(self) -> str:
        """Its kinds as a record has them: "number", "number|string", "none" without any cell, "any"."""
        return ANY if self.kinds is None else "|".join(sorted(self.kinds)) or NONE


def _kinds(values: Iterable[Any], exact: set[type]) -> set[str]:
    if exact <= PLAIN.keys():
        return {PLAIN[kind] for kind in exact}
    return {kind_of(value) for value in values}


def _is_missing(value: Any) -> bool:
    return value is None or (value.__class__ is float and value != value)


def kinds_of_dtype(dtype: Any) -> frozenset[str] | None:
    """The kinds that a `dtype` of `Table` or `cast` names; empty: to be seen, None: any.

    Args:
        dtype: None; a Python type, numpy scalar type or `Media` class; the name of a kind; a set of these.

    Raises:
        TypeError: It is none of them.
    """
    if dtype is None:
        return frozenset()
    if dtype is Any or dtype is object:
        return None
    if isinstance(dtype, (set, frozenset)):
        parts = [kinds_of_dtype(one) for one in dtype]
        return frozenset(kind for part in parts for kind in part or ()) if None not in parts else None
    if isinstance(dtype, str) and dtype in _NAMES:
        return None if dtype == ANY else frozenset({dtype})
    if isinstance(dtype, type):
        if issubclass(dtype, Media):
            return frozenset({dtype._type})
        if any(base.__module__ == "numpy" and base.__name__ == "ndarray" for base in dtype.__mro__):
            return frozenset({"array"})
        if any(base.__module__ == "datetime" and base.__name__ == "date" for base in dtype.__mro__):
            return frozenset({"timestamp"})
        for types, name in _DTYPES:
            if issubclass(dtype, types):
                return frozenset({name})
        if dtype.__module__ == "numpy":
            import numpy

            return frozenset({"boolean" if numpy.dtype(dtype).kind == "b" else NUMBER})
    raise TypeError(
        f"Table() dtype is {dtype!r}, expected a type such as int, str, bool, datetime or Image, a set of these, or one of "
        f"{', '.join(sorted(_NAMES))}"
    )


def missing(package: str, what: str) -> Error:
    """The error for a package that is not installed."""
    return Error(f"{what} needs {package}", hint=install_hint(package))
