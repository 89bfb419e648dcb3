"""Tensors: arrays of any type and shape that are too large to stand in a record, their statistics, and their budget.

`log()` makes one of an array, whichever package it is from; there is nothing to import. The elements are stored as they
are. What one wants to know of them without reading them all (`tensor_statistics`) is derived later, by whoever encodes or
reads them.

Raw tensors are the one kind of value that fills a disk unnoticed: 64 MB at each of a million steps. So each key has a
budget of bytes per minute. A value beyond it is reduced to statistics in the training thread, of a sample where it is
large, which is said once for each key, counted, and marked in what is stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

from .. import clock
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


# -- the budget ----------------------------------------------------------------------------------------------------------


class TensorBudget:
    """How many bytes of raw tensors each key may still store.

    A key begins with a minute's worth. Each value that is stored takes its size, also below zero, and time gives back a
    minute's worth per minute: so a single value is stored whatever its size, and what is stored stays below the budget on
    average. Race: two threads that log the same key at once may both be let through; no lock is worth that.

    Attributes:
        reduced: Key to the number of its values that were reduced to statistics.
    """

    def __init__(
        self, bytes_per_minute_max: int, on_notice: Callable[[str, str], None], now: Callable[[], float] = clock.monotonic
    ) -> None:
        """`on_notice` gets (topic, text) once for each key that is over its budget."""
        self._rate = bytes_per_minute_max
        self._on_notice = on_notice
        self._now = now
        self._left: dict[str, tuple[float, float]] = {}  # key to (bytes, the time of that)
        self.reduced: Counter[str] = Counter()

    def admit(self, key: str, size: int) -> bool:
        """Whether a value of `size` bytes is stored whole; if so, it is accounted for."""
        now = self._now()
        left, since = self._left.get(key, (float(self._rate), now))
        left = min(left + (now - since) * self._rate / 60, float(self._rate))
        if left <= 0:
            self._reduce(key)
            return False
        self._left[key] = (left - size, now)
        return True

    def _reduce(self, key: str) -> None:
        self.reduced[key] += 1
        if self.reduced[key] == 1:
            self._on_notice(
                "misuse",
                f"tensors of {key!r} are more than {self._rate} bytes a minute (tensor_bytes_per_minute_max): of those "
                "beyond it statistics and a histogram are kept. Log it less often, or raise "
                "STEPD_TENSOR_BYTES_PER_MINUTE_MAX",
            )

    def told(self) -> dict[str, str]:
        """Key to what a receipt says of it."""
        return {
            key: f"{count} tensors beyond tensor_bytes_per_minute_max are kept as statistics"
            for key, count in self.reduced.items()
        }
