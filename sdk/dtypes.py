"""Types of array elements by name: numpy's own, and those that numpy has no name for.

The name of a type is `numpy.dtype.str` ("<f4", "|u1"), or, for a type of another package (ml_dtypes, torch), that package's
name of it. Elements of such a type are stored as unsigned integers of the same size. They are widened here without that
package; every value of theirs is exactly one of the wider type.
"""

from __future__ import annotations

import functools
import re
from typing import Any

# Name to the size of an element in memory.
FOREIGN_DTYPES = {
    "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e4m3": 1,
    "float8_e3m4": 1, "float8_e4m3b11fnuz": 1, "float8_e8m0fnu": 1, "int4": 1, "uint4": 1, "int2": 1, "uint2": 1,
}  # fmt: skip

# Bits of the exponent and of the fraction, the exponent's bias, and which codes are no number: "ieee" (the highest exponent:
# infinity and NaN), "fn" (all bits set: NaN), "fnuz" (minus zero: NaN).
_FLOAT8 = {
    "float8_e4m3fn": (4, 3, 7, "fn"), "float8_e5m2": (5, 2, 15, "ieee"), "float8_e4m3fnuz": (4, 3, 8, "fnuz"),
    "float8_e5m2fnuz": (5, 2, 16, "fnuz"), "float8_e4m3": (4, 3, 7, "ieee"), "float8_e3m4": (3, 4, 3, "ieee"),
    "float8_e4m3b11fnuz": (4, 3, 11, "fnuz"),
}  # fmt: skip

# What `numpy.dtype.str` gives for anything but Python objects.
_NAME = re.compile(r"[<>|=]?[?bhilqBHILQefdFDgGSUVmMiuc][0-9]{0,6}(\[[0-9]{0,6}[A-Za-z]{1,2}\])?", re.ASCII)


def dtype_of(name: object) -> Any:
    """numpy's type of that name, never one with named fields; that of the stored integers for a foreign one.

    Raises:
        ValueError: There is none of that name.
    """
    import numpy

    # Why so strict: numpy evaluates what it takes for a structured dtype, and guesses a size of -1.
    if type(name) is str and name in FOREIGN_DTYPES:
        return numpy.dtype(f"<u{FOREIGN_DTYPES[name]}")
    if type(name) is not str or not _NAME.fullmatch(name):
        raise ValueError(f"an array of dtype {name!r}")
    try:
        return numpy.dtype(name)
    except TypeError as error:
        raise ValueError(f"an array of dtype {name!r}: {error}") from None


def named_dtype(name: str) -> Any:
    """The type of ml_dtypes for a foreign name, where that package is installed; else None."""
    try:
        import ml_dtypes  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        return None
    import numpy

    found = getattr(ml_dtypes, name, None) if name in FOREIGN_DTYPES else None
    return None if found is None else numpy.dtype(found)


def widened(array: Any, name: str | None) -> Any:
    """An array of a foreign type as float32 or (u)int8, exactly; any other array as it is.

    Args:
        array: The stored integers, an array of ml_dtypes' type, or what this function gave.
        name: The foreign type's; None for one of numpy's own.
    """
    if name not in FOREIGN_DTYPES:
        return array
    import numpy

    if array.dtype.isbuiltin != 1:
        array = array.view(f"u{array.dtype.itemsize}")
    elif array.dtype.kind == "f":
        return array
    if name == "bfloat16":  # the upper half of a float32
        return (array.astype("<u4") << 16).view("<f4")
    if name in ("uint4", "uint2"):
        return array & (15 if name == "uint4" else 3)
    if name in ("int4", "int2"):
        shift = 4 if name == "int4" else 6
        return (array.view(numpy.uint8) << shift).view(numpy.int8) >> shift
    return _float8_values(name)[array]


@functools.cache
def _float8_values(name: str) -> Any:
    """float32[256]: the value of each code."""
    import numpy

    codes = numpy.arange(256)
    if name == "float8_e8m0fnu":
        values = 2.0 ** (codes - 127.0)
        values[255] = numpy.nan
        return values.astype("<f4")
    exponent_bits, fraction_bits, bias, kind = _FLOAT8[name]
    top = (1 << exponent_bits) - 1
    exponent, fraction = (codes >> fraction_bits) & top, codes & ((1 << fraction_bits) - 1)
    part = fraction / (1 << fraction_bits)
    values = numpy.where(exponent == 0, part * 2.0 ** (1 - bias), (1 + part) * 2.0 ** (exponent - bias))
    if kind == "ieee":
        values[exponent == top] = numpy.nan
        values[(exponent == top) & (fraction == 0)] = numpy.inf
    elif kind == "fn":
        values[codes & 127 == 127] = numpy.nan
    values = numpy.where(codes & 128, -values, values)
    if kind == "fnuz":
        values[128] = numpy.nan
    return values.astype("<f4")
