"""Tensors: arrays of any type and shape that are too large to stand in a record, their statistics, and their budget.

`log()` makes one of an array, whichever package it is from; there is nothing to import. The elements are stored as they
are. What one wants to know of them without reading them all (`tensor_statistics`) is derived later, by whoever encodes or
reads them.

What is beyond a key's budget (`sdk.values.budget`) is reduced to statistics in the training thread, of a sample where it
is large, and marked.
"""

from __future__ import annotations

from typing import Any, ClassVar

from ..dtypes import widened
from .blobs import Blob, snapshot
from .histogram import histogram_of
from .media import Media

BINS = 64
# Limit: elements that are looked at for the statistics of a value beyond the budget; 2 to 4 ms of the training thread.
SAMPLE_MAX = 1 << 18
# Neighbours that are taken together for a sample: a line of the cache or two.
_RUN = 32
# Elements that are looked at together, so that their float64 copies stay in the cache.
_CHUNK = 1 << 17


class Tensor(Media):
    """An array, whole.

    Args:
        array: numpy array of any type but objects and named fields, shape and memory layout; copied here, once.
        dtype: The name of its type where numpy has none (`sdk.dtypes.FOREIGN_DTYPES`).

    Raises:
        TypeError: An array of Python objects, or with named fields.
    """

    _type: ClassVar[str] = "tensor"

    def __init__(self, array: Any, dtype: str | None = None) -> None:
        self.data: Blob = snapshot(array, {"media": self._type, "to": self._type}, dtype=dtype)

    def describe(self) -> dict[str, Any]:
        name, shape, _ = self.data.meta["array"]
        return {"dtype": name, "shape": shape, "data": self.data}


class ReducedTensor(Media):
    """What is kept of an array beyond the budget: type, shape, statistics."""

    _type: ClassVar[str] = Tensor._type

    def __init__(self, array: Any, dtype: str | None = None) -> None:
        self._described = {
            "dtype": dtype or array.dtype.str,
            "shape": list(array.shape),
            "over_budget": True,
            "statistics": tensor_statistics(array, dtype, sample_max=SAMPLE_MAX),
        }

    def describe(self) -> dict[str, Any]:
        return self._described


# -- statistics ----------------------------------------------------------------------------------------------------------


def tensor_statistics(array: Any, dtype: str | None = None, *, sample_max: int | None = None) -> dict[str, Any]:
    """What an array holds, in a few numbers.

    Args:
        array: numpy array; of complex numbers the magnitudes count, of dates and times the numbers behind them.
        dtype: The name of its type where numpy has none.
        sample_max: Look at so many elements at most, evenly spread over the memory; "sampled" then says how many.

    Returns:
        "count"; "min", "max", "mean" and "std" (of the population, in float64) of the finite ones, None without any;
        "histogram" as `histogram_of` gives it, so also how many are NaN or infinite. Empty for what is no number.
    """
    import numpy

    flat = array.reshape(-1) if array.flags.c_contiguous else array.ravel(order="K")
    found: dict[str, Any] = {"count": int(flat.size)}
    if sample_max is not None and flat.size > sample_max:
        flat = _sample(flat, sample_max)
        found["sampled"] = int(flat.size)
    flat = widened(flat, dtype)
    if flat.dtype.kind in "mM":
        flat = flat.view("<i8")
    elif flat.dtype.kind == "c":
        flat = numpy.abs(flat)
    if flat.dtype.kind not in "biuf":
        return found
    return {**found, **_moments(flat), "histogram": histogram_of(flat, BINS)}


def _sample(flat: Any, most: int) -> Any:
    """About `most` elements in runs of neighbours, evenly spread."""
    runs = max(most // _RUN, 1)
    stride = flat.size // runs
    return flat[: stride * runs].reshape(runs, stride)[:, :_RUN].reshape(-1)


def _moments(flat: Any) -> dict[str, Any]:
    """Minimum, maximum, mean and standard deviation, chunk by chunk (Chan, Golub, LeVeque 1979: no cancellation)."""
    import numpy

    least: Any = None
    most: Any = None
    count, mean, squares = 0, 0.0, 0.0
    with numpy.errstate(over="ignore", invalid="ignore"):  # float64 at the edge of its range
        for start in range(0, flat.size, _CHUNK):
            chunk = flat[start : start + _CHUNK]
            if chunk.dtype.kind == "f":
                finite = numpy.isfinite(chunk)
                chunk = chunk if finite.all() else chunk[finite]
            if not chunk.size:
                continue
            low, high = chunk.min().item(), chunk.max().item()
            least = low if least is None else min(least, low)
            most = high if most is None else max(most, high)
            wide = chunk.astype("<f8")
            own = float(wide.mean())
            wide -= own
            shift = own - mean
            total = count + wide.size
            squares += float(wide @ wide)
            if count:
                squares += shift * shift * count * wide.size / total
            mean += shift * wide.size / total
            count = total
    if not count:
        return {"min": None, "max": None, "mean": None, "std": None}
    if isinstance(least, bool):
        least, most = int(least), int(most)
    elif isinstance(least, numpy.floating):  # long doubles stay numpy's
        least, most = float(least), float(most)
    return {"min": least, "max": most, "mean": mean, "std": (squares / count) ** 0.5}
