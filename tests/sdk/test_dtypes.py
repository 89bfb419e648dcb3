"""sdk.dtypes: names of types, and the exact widening of those that numpy does not have."""

from __future__ import annotations

import numpy
import pytest

from sdk.dtypes import FOREIGN_DTYPES, dtype_of, named_dtype, widened


@pytest.mark.parametrize("name", FOREIGN_DTYPES)
def test_every_code_of_a_foreign_type_is_widened_exactly(name: str) -> None:
    """Each value is the one that ml_dtypes says, NaN, infinities and the sign of zero included."""
    bits = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2}.get(name, 8 * FOREIGN_DTYPES[name])
    codes = numpy.arange(1 << bits, dtype=dtype_of(name))
    ours = widened(codes, name).astype("f4")
    theirs = codes.view(named_dtype(name)).astype("f4")
    assert numpy.array_equal(ours, theirs, equal_nan=True)
    is_number = ~numpy.isnan(theirs)
    assert numpy.array_equal(numpy.signbit(ours[is_number]), numpy.signbit(theirs[is_number]))
    assert numpy.array_equal(widened(widened(codes, name), name), widened(codes, name), equal_nan=True)
    assert numpy.array_equal(widened(codes.view(named_dtype(name)), name).astype("f4"), ours, equal_nan=True)


def test_other_types_stay_as_they_are() -> None:
    """An array of numpy's own is not touched."""
    array = numpy.arange(3, dtype="u1")
    assert widened(array, None) is array
    assert widened(array, "|u1") is array


@pytest.mark.parametrize("name", ["O", "|O", "f8,f8", "V-1", "<f3", "bfloat", "", 4, None, ["f4"]])
def test_what_is_no_type_is_refused(name: object) -> None:
    """Objects, named fields and nonsense, by ValueError alone."""
    with pytest.raises(ValueError, match="dtype"):
        dtype_of(name)
