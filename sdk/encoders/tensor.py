"""Tensors: the bytes of each element regrouped, all first bytes, then all second ones, which lz4 finds easier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..dtypes import dtype_of
from ..errors import DamageError
from ..files import Buffer
from . import Encoded
from .packing import LZ4, SHUFFLE, pack, pays, ratio, sample_of

# What the regrouped sample must save over the plain one: undoing it costs a reader a pass.
_BETTER = 0.95


def encode(raw: Buffer, meta: Mapping[str, Any]) -> Encoded:
    """The tensor with its statistics, packed where a sample says that it pays."""
    from ..values.blobs import as_array
    from ..values.tensor import tensor_statistics

    found = dict(meta)
    name = meta["array"][0]
    if meta.get("media") == "tensor":
        found["statistics"] = tensor_statistics(as_array(raw, meta["array"]), name)
    size = dtype_of(name).itemsize
    sample = sample_of(raw)
    plain = ratio(sample)
    if size > 1 and ratio(shuffle(sample[: len(sample) // size * size], size)) <= min(plain * _BETTER, 0.9):
        return Encoded(pack(shuffle(raw, size)), {**found, "encoding": SHUFFLE, "raw_size": len(raw)})
    if pays(raw):
        return Encoded(pack(raw), {**found, "encoding": LZ4, "raw_size": len(raw)})
    return Encoded(raw, found)


def shuffle(raw: Buffer, size: int) -> memoryview:
    """The bytes of elements of `size` bytes, regrouped."""
    import numpy

    return memoryview(numpy.ascontiguousarray(numpy.frombuffer(raw, "u1").reshape(-1, size).T).reshape(-1))


def unshuffle(raw: Buffer, meta: Mapping[str, Any]) -> Buffer:
    """What `shuffle` was given.

    Raises:
        DamageError: The type in `meta` does not fit.
    """
    import numpy

    try:
        size = dtype_of(meta["array"][0]).itemsize
        grouped = numpy.frombuffer(raw, "u1").reshape(size, -1)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DamageError(f"a regrouped tensor of {len(raw)} bytes whose type does not fit: {error}") from error
    return memoryview(numpy.ascontiguousarray(grouped.T).reshape(-1)).toreadonly()
