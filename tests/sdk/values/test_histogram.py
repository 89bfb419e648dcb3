"""sdk.Histogram: the same bins at once, later and from what an encoder made; odd numbers are counted, bad ones raise."""

from __future__ import annotations

import decimal
import math
import warnings
from typing import Any

import numpy
import pytest

import sdk
from sdk.limits import INLINE_TENSOR_BYTES_MAX
from sdk.record import BlobRef, StoredBlob, decode_map, encode_inline_blob, encode_map
from sdk.values import plain
from sdk.values.histogram import BINS_MAX, encode_histogram, histogram_of, read_histogram

LARGE = INLINE_TENSOR_BYTES_MAX + 8
RANDOM = numpy.random.default_rng(4).standard_normal(LARGE)


def stored(value: Any) -> Any:
    """The map that a reader gets, with blobs inside."""
    found, _ = plain({"k": value}, put=lambda blob, key: encode_inline_blob(StoredBlob(bytes(blob.view()), blob.meta)))
    return decode_map(encode_map(found))["k"]


def read(value: Any) -> dict[str, Any]:
    return read_histogram(stored(value), lambda ref: pytest.fail("no blob is apart"))


def same_as_numpy(found: dict[str, Any], array: Any, bins: int = 64) -> bool:
    values, edges = numpy.histogram(array, bins)
    return bool(found["values"] == values.tolist() and found["bins"] == edges.tolist())


@pytest.mark.parametrize("size", [10, LARGE])
@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f8", "|u1", "<i8", "|b1"])
def test_bins_are_numpys(dtype: str, size: int) -> None:
    """Small or large, of any type of number, as `numpy.histogram` bins them; `_type` and lists as W&B's."""
    array = (RANDOM[:size] * 50 + 100).astype(dtype)
    found = read(sdk.Histogram(array))
    assert same_as_numpy(found, array.view("u1") if dtype == "|b1" else array)
    assert stored(sdk.Histogram(array))["_type"] == "histogram"


def test_where_it_is_binned() -> None:
    """A small sequence at once; of a large one the raw numbers are kept, and what is made of them later is the same."""
    small = stored(sdk.Histogram(RANDOM[:100], num_bins=7))
    assert len(small["values"]) == 7
    assert "data" not in small
    large = stored(sdk.Histogram(RANDOM.astype("f4"), num_bins=512))
    raw = large["data"]
    assert raw.meta == {
        "media": "histogram", "to": "histogram", "num_bins": 512, "array": ["<f4", [LARGE], None],
    }  # fmt: skip
    assert bytes(raw.data) == RANDOM.astype("<f4").tobytes()
    encoded = StoredBlob(encode_histogram(raw.data, raw.meta), {**raw.meta, "encoding": "histogram"})
    assert read_histogram({**large, "data": encoded}, lambda ref: raw) == read_histogram(large, lambda ref: raw)
    assert read_histogram({**large, "data": BlobRef(1, 2, 3)}, {BlobRef(1, 2, 3): encoded}.__getitem__) == read(
        sdk.Histogram(RANDOM.astype("f4"), num_bins=512)
    )


def test_the_array_may_be_overwritten() -> None:
    """What is stored is what was there when the histogram was made."""
    array = RANDOM.copy()
    made = sdk.Histogram(array)
    array[:] = 0
    assert same_as_numpy(read(made), RANDOM)


def test_attributes() -> None:
    """`histogram` and `bins`, as W&B's objects have them, also before it was binned."""
    for given in (RANDOM[:10], RANDOM):
        made = sdk.Histogram(given, num_bins=4)
        values, edges = numpy.histogram(given, 4)
        assert (made.histogram, made.bins) == (values.tolist(), edges.tolist())


def test_sequences() -> None:
    """Lists, nested ones, big integers, Decimals, ranges, nothing at all; small floats of foreign types."""
    assert same_as_numpy(read(sdk.Histogram([1, 2, 2.5])), [1, 2, 2.5])
    assert same_as_numpy(read(sdk.Histogram([[1, 2], [3, 4]])), [1, 2, 3, 4])
    assert sum(read(sdk.Histogram([2**70, decimal.Decimal(1), 3]))["values"]) == 3
    assert sum(read(sdk.Histogram(range(5)))["values"]) == 5
    assert read(sdk.Histogram([])) == {"values": [0] * 64, "bins": numpy.linspace(0, 1, 65).tolist()}
    import ml_dtypes

    for size in (8, LARGE):
        halves = RANDOM[:size].astype(ml_dtypes.bfloat16)
        assert same_as_numpy(read(sdk.Histogram(halves)), halves.astype("f4"))


def test_given_bins() -> None:
    """`np_histogram` is stored as it is."""
    found = read(sdk.Histogram(np_histogram=numpy.histogram([1.0, 2, 3], 3)))
    assert found == {"values": [1, 1, 1], "bins": numpy.histogram([1.0, 2, 3], 3)[1].tolist()}
    assert read(sdk.Histogram(np_histogram=([1, 2], [0, 1, 2])))["values"] == [1, 2]


@pytest.mark.parametrize("size", [0, LARGE])
def test_odd_numbers_are_counted_apart(size: int) -> None:
    """NaN and infinities are in no bin."""
    array = numpy.concatenate([[math.nan, math.inf, -math.inf, math.nan], RANDOM[:size], [0.0, 1.0]])
    found = read(sdk.Histogram(array))
    assert (found["nan"], found["inf"], found["negative_inf"]) == (2, 1, 1)
    assert same_as_numpy(found, array[numpy.isfinite(array)])
    assert "nan" not in read(sdk.Histogram([1.0]))
    assert sum(read(sdk.Histogram([math.nan]))["values"]) == 0


@pytest.mark.parametrize("bins", [1, 64, BINS_MAX])
@pytest.mark.parametrize(
    "array",
    [
        [1e308, -1.7e308], [1.0, math.nextafter(1, 2)], [1e300, 1e300], [5e-324, 0],
        [1.79e308], numpy.array([65504, -65504], "f2"), numpy.array([3.4e38, -3.4e38], "f4"),
        numpy.array([-(2**63), 2**63 - 1]), numpy.array([2**60, 2**60 + 1]), numpy.array([0, 2**64 - 1], "u8"),
        numpy.array([1, 2], numpy.longdouble),
    ],
)  # fmt: skip
def test_every_finite_number_has_a_bin(array: Any, bins: int) -> None:
    """Also at the edges of a type and where numbers are closer than so many edges; edges rise, and nothing warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = histogram_of(numpy.asarray(array), bins)
    assert sum(found["values"]) == len(array)
    assert len(found["bins"]) == bins + 1
    assert all(low < high for low, high in zip(found["bins"], found["bins"][1:]))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"sequence": [1], "num_bins": 513}, ValueError, "expected 1 to 512"),
        ({"sequence": [1], "num_bins": 0}, ValueError, "expected 1 to 512"),
        ({"sequence": [1], "num_bins": "auto"}, TypeError, "whole number"),
        ({}, ValueError, "np_histogram"),
        ({"np_histogram": ([1, 2],)}, ValueError, "tuple"),
        ({"np_histogram": ([1], [0, 1], 3)}, ValueError, "tuple"),
        ({"np_histogram": ([1, 2], [0, 1])}, ValueError, "one edge more"),
        ({"np_histogram": ([1] * 513, [0] * 514)}, ValueError, "at most 512"),
        ({"sequence": ["a"]}, TypeError, "numbers"),
        ({"sequence": [object()]}, TypeError, "numbers"),
        ({"sequence": [1j]}, TypeError, "real numbers"),
        ({"sequence": numpy.array(["2020"], "M8[D]")}, TypeError, "real numbers"),
    ],
)
def test_errors(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    """As W&B's where it has one; the message says what was expected."""
    with pytest.raises(error, match=text):
        sdk.Histogram(**arguments)


@pytest.mark.parametrize(
    ("data", "meta"),
    [
        (b"12345678", {"array": ["<f8", [1], None], "num_bins": 10**9}),
        (b"12345678", {"array": ["<f8", [2], None], "num_bins": 4}),
        (b"\x90", {"encoding": "histogram"}),
        (b"\x81\xa6values\x90", {"encoding": "histogram"}),
    ],
)
def test_made_up_bytes(data: bytes, meta: dict[str, Any]) -> None:
    """What is no histogram is an error, before anything large is made."""
    with pytest.raises(ValueError):
        read_histogram({"data": StoredBlob(data, meta)}, lambda ref: pytest.fail("no blob is apart"))
