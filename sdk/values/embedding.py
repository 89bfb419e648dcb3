"""Points of many dimensions with labels and pictures, for a projector: `sdk.Embedding`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from .arrays import Fetched, fetch_array
from .blobs import Blob, snapshot
from .convert import plain_value
from .media import Media, known
from .pixels import check_dtype

_WHAT = "Embedding()"
_CHANNELS = (1, 3, 4)


class _Columns(Media):
    """The labels: they may be too many for a record, and are stored as a plain value of `log` that is."""

    _type: ClassVar[str] = "value"

    def __init__(self, columns: dict[str, Any]) -> None:
        import msgpack

        self._blob = snapshot(msgpack.packb({"labels": columns}, unicode_errors="surrogatepass"), {"media": self._type})

    def describe(self) -> dict[str, Any]:
        return {"data": self._blob}


class Embedding(Media):
    """Rows of a matrix as points, as TensorBoard's projector shows them (docs/media.md#embeddings).

    Args:
        matrix: number[N, D] of numpy, torch, jax or TensorFlow, or N lists of D numbers.
        labels: N values, or a map of a column's name to N values.
        images: number[N, C, H, W] or number[N, H, W, C] with C = 1, 3 or 4, or number[N, H, W]: a picture of each point.
        caption: A label of the whole.

    Raises:
        TypeError: An array of something else than numbers, labels of another type.
        ValueError: Another shape, or labels or images that are not N.
    """

    _type: ClassVar[str] = "embedding"

    def __init__(self, matrix: Any, labels: Any = None, images: Any = None, caption: str | None = None) -> None:
        fetched = _array_of(matrix, "matrix")
        shape = fetched.array.shape
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"{_WHAT} matrix has shape {shape}, expected (points, dimensions)")
        self._facts = known(
            caption=None if caption is None else str(caption),
            labels=None if labels is None else _labels(labels, shape[0]),
            images=None if images is None else _images(images, shape[0]),
        )
        meta = {"media": self._type, "to": "tensor"}
        self._facts.update(
            points=shape[0], dimensions=shape[1], data=snapshot(fetched.array, meta, dtype=fetched.dtype)
        )

    def describe(self) -> dict[str, Any]:
        return self._facts


def _array_of(given: Any, what: str) -> Fetched:
    fetched = fetch_array(given, _WHAT)
    if fetched is None:
        import numpy

        if not isinstance(given, (list, tuple)):
            raise TypeError(f"{_WHAT} {what} is {type(given).__qualname__}, expected an array")
        try:
            fetched = Fetched(numpy.asarray(given), None, False)
        except ValueError as error:
            raise ValueError(f"{_WHAT} {what} has rows that differ in length: {error}") from None
    check_dtype(fetched, f"{_WHAT} {what}")
    return fetched


def _labels(given: Any, count: int) -> _Columns:
    columns = given if isinstance(given, Mapping) else {"label": given}
    packed: dict[str, Any] = {}
    for name, values in columns.items():
        values = values.tolist() if hasattr(values, "tolist") else values
        if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
            raise TypeError(
                f"{_WHAT} labels {name!r} is {type(values).__qualname__}, expected a sequence of {count} values"
            )
        if len(values) != count:
            raise ValueError(f"{_WHAT} has {len(values)} labels {name!r} for {count} points")
        packed[str(name)] = plain_value(list(values), name)
    return _Columns(packed)


def _images(given: Any, count: int) -> Blob:
    fetched = _array_of(given, "images")
    shape = fetched.array.shape
    if len(shape) == 3:
        layout = "NHW"
    elif len(shape) == 4 and shape[1] in _CHANNELS:
        layout = "NCHW"
    elif len(shape) == 4 and shape[3] in _CHANNELS:
        layout = "NHWC"
    else:
        raise ValueError(
            f"{_WHAT} images has shape {shape}, expected (points, channels, height, width) with 1, 3 or 4 channels, these "
            "as the last axis, or (points, height, width)"
        )
    if shape[0] != count:
        raise ValueError(f"{_WHAT} has {shape[0]} images for {count} points")
    return snapshot(fetched.array, {"media": "embedding", "to": "tensor", "layout": layout}, dtype=fetched.dtype)
