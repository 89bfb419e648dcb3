"""Histograms: `sdk.Histogram`, and the one function that bins.

A small sequence is binned when it is given. A larger one is copied, once, and binned later: by the worker process that
encodes, or by whoever reads it first, with the same function and so with the same result.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import msgpack

from ..dtypes import widened
from ..files import Buffer
from ..limits import INLINE_TENSOR_BYTES_MAX
from ..record import BlobRef, StoredBlob
from .arrays import fetch_array
from .blobs import Blob, as_array, snapshot
from .media import Media

# Limit: what W&B's page can draw; a record holds 17 bytes for each bin.
BINS_MAX = 512
# The integers that a float64 tells apart.
_EXACT_MAX = 2.0**53


class Histogram(Media):
    """A distribution of numbers.

    Args:
        sequence: Numbers: an array or tensor of any shape and type, or a list. Copied here. NaN and infinities are in no
            bin; they are counted apart.
        np_histogram: (counts, edges) as `numpy.histogram` gives them, instead of a sequence.
        num_bins: How many bins of equal width, from 1 to 512.

    Raises:
        ValueError: More than 512 bins, or none; `np_histogram` that is no pair; not one edge more than counts; neither.
        TypeError: Not numbers, or complex ones.
    """

    _type: ClassVar[str] = "histogram"

    MAX_LENGTH = BINS_MAX

    def __init__(self, sequence: Any = None, np_histogram: Any = None, num_bins: int = 64) -> None:
        self._blob: Blob | None = None
        self._binned: dict[str, Any] | None = None
        if np_histogram is not None:
            self._binned = _given(np_histogram)
            return
        if sequence is None:
            raise ValueError(
                "Histogram() is given nothing, expected a sequence of numbers or np_histogram=(counts, edges)"
            )
        self._bins = _bin_count(num_bins)
        array, dtype = _numbers(sequence)
        if array.nbytes <= INLINE_TENSOR_BYTES_MAX:
            self._binned = histogram_of(widened(array, dtype), self._bins)
        else:
            meta = {"media": self._type, "to": self._type, "num_bins": self._bins}
            self._blob = snapshot(array, meta, dtype=dtype)

    @classmethod
    def counted(cls, counts: list[int], edges: list[float], odd: Mapping[str, int]) -> Histogram:
        """One that was binned elsewhere. Nothing is checked.

        Args:
            odd: "nan", "inf" and "negative_inf": how many there are of each, where there are any.
        """
        made = cls.__new__(cls)
        made._blob, made._bins = None, len(counts)
        made._binned = {"values": counts, "bins": edges, **odd}
        return made

    @property
    def histogram(self) -> list[int]:
        """The counts; binned now if that did not happen yet."""
        counts: list[int] = self._result()["values"]
        return counts

    @property
    def bins(self) -> list[float]:
        """The edges, one more than counts."""
        edges: list[float] = self._result()["bins"]
        return edges

    def _result(self) -> dict[str, Any]:
        if self._binned is not None:
            return self._binned
        if self._blob is None:  # broken
            return {"values": [], "bins": []}
        return binned(self._blob.view(), self._blob.meta)

    def describe(self) -> dict[str, Any]:
        return dict(self._binned) if self._binned is not None else {"num_bins": self._bins, "data": self._blob}


def _bin_count(given: Any) -> int:
    try:
        number = operator.index(given)
    except TypeError:
        raise TypeError(
            f"Histogram() num_bins is {given!r}, expected a whole number; edges go into np_histogram"
        ) from None
    if not 1 <= number <= BINS_MAX:
        raise ValueError(f"Histogram() num_bins is {number}, expected 1 to {BINS_MAX}")
    return number


def _given(pair: Any) -> dict[str, Any]:
    """(counts, edges) as lists, checked."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(f"Histogram() np_histogram is {_excerpt(pair)}, expected a tuple (counts, edges)")
    values, bins = (_numbers(part)[0].ravel().tolist() for part in pair)
    if len(values) > BINS_MAX:
        raise ValueError(f"Histogram() np_histogram has {len(values)} counts, expected at most {BINS_MAX}")
    if len(bins) != len(values) + 1:
        raise ValueError(
            f"Histogram() np_histogram has {len(values)} counts and {len(bins)} edges, expected one edge more than counts"
        )
    return {"values": values, "bins": bins}


def _numbers(sequence: Any) -> tuple[Any, str | None]:
    """Real numbers as a numpy array, and the name of their type where numpy has none."""
    import numpy

    fetched = fetch_array(sequence, "Histogram()")
    if fetched is not None and fetched.dtype is not None:
        return fetched.array, fetched.dtype
    array = fetched.array if fetched is not None else numpy.asarray(sequence)
    if array.dtype.kind == "O":
        try:
            array = array.astype("<f8")  # integers beyond 64 bits, Decimals, a list that holds None
        except (TypeError, ValueError) as error:
            raise TypeError(f"Histogram() is given {_excerpt(sequence)}, expected numbers: {error}") from None
    if array.dtype.kind not in "biuf":
        raise TypeError(f"Histogram() is given {_excerpt(sequence)} (dtype {array.dtype}), expected real numbers")
    return array, None


def _excerpt(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:60]}{'…' if len(text) > 60 else ''}"


# -- binning -------------------------------------------------------------------------------------------------------------


def histogram_of(array: Any, num_bins: int) -> dict[str, Any]:
    """The histogram of numbers, as a record holds it: {"values": counts, "bins": edges}.

    Args:
        array: Real numbers of numpy's own types, any shape.
        num_bins: Bins of equal width, as `numpy.histogram` makes them.

    Returns:
        Also "nan", "inf" and "negative_inf": how many there are of each, where there are any. They are in no bin. Without
        any finite number the counts are 0 and the edges go from 0 to 1.
    """
    import numpy

    flat = array.reshape(-1)
    extra: dict[str, Any] = {}
    if flat.dtype.kind == "b":
        flat = flat.view("|u1")
    elif flat.dtype.kind == "f":
        if flat.dtype.itemsize not in (4, 8):
            flat = flat.astype("<f4" if flat.dtype.itemsize == 2 else "<f8")  # numpy's bins need the width of the range
        finite = numpy.isfinite(flat)
        if not finite.all():
            odd = flat[~finite]
            counts = {"nan": numpy.isnan(odd), "inf": odd == numpy.inf, "negative_inf": odd == -numpy.inf}
            extra = {name: int(found.sum()) for name, found in counts.items() if found.any()}
            flat = flat[finite]
    values, bins = _bin(flat, num_bins)
    return {"values": values.tolist(), "bins": bins.tolist(), **extra}


def _bin(flat: Any, num_bins: int) -> tuple[Any, Any]:
    """`numpy.histogram`, also of what it refuses: a range wider than the type, or too narrow for so many edges."""
    import numpy

    limits: tuple[float, float] | None = None
    if flat.size:
        low, high = float(flat.min()), float(flat.max())
        largest = max(-low, high)
        if flat.dtype.kind in "iu" and largest >= _EXACT_MAX:
            flat = flat.astype("<f8")
        if flat.dtype.kind == "f":
            limit = float(numpy.finfo(flat.dtype).max) / 4
            if largest > limit:
                values, bins = _bin(flat.astype("<f8") / 4, num_bins)
                return values, numpy.clip(bins, -limit, limit) * 4
            least = 2 * num_bins * float(numpy.spacing(flat.dtype.type(largest)))
            if high - low < least:
                pad = max(0.5, least)  # numpy takes 0.5 for equal numbers
                limits = (low - pad, high + pad)
    values, bins = numpy.histogram(flat, num_bins, limits)
    return values, bins


def binned(raw: Buffer, meta: Mapping[str, Any]) -> dict[str, Any]:
    """The histogram of a raw blob: its bytes are an array, and `meta` says of what."""
    described = meta["array"]
    count = meta.get("num_bins")
    if type(count) is not int or not 1 <= count <= BINS_MAX:
        raise ValueError(f"a histogram of {count!r} bins")
    return histogram_of(widened(as_array(raw, described), described[0]), count)


def encode_histogram(raw: Buffer, meta: Mapping[str, Any]) -> bytes:
    """What a raw blob is replaced by: the histogram, packed."""
    packed: bytes = msgpack.packb(binned(raw, meta))
    return packed


def read_histogram(value: Mapping[str, Any], read: Callable[[BlobRef], StoredBlob]) -> dict[str, Any]:
    """The histogram in a record's map: {"values", "bins", …}, whether it was binned at once, later or not yet.

    Args:
        value: The map, as `decode_map` gives it.
        read: Gets what is stored of a blob: the raw array, or with "encoding": "histogram" in its meta what
            `encode_histogram` made.

    Raises:
        ValueError: These are no histogram's bytes.
    """
    data = value.get("data")
    if data is None:
        return {name: part for name, part in value.items() if name != "_type"}
    stored = data if isinstance(data, StoredBlob) else read(data)
    if stored.meta.get("encoding") != Histogram._type:
        return binned(stored.data, stored.meta)
    found = msgpack.unpackb(stored.data)
    if type(found) is not dict or type(found.get("values")) is not list or type(found.get("bins")) is not list:
        raise ValueError("a histogram that is no map of values and bins")
    return found
