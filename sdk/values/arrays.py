"""Arrays of numpy, torch, jax, TensorFlow and whatever says that it is one, as numpy arrays.

Nothing is copied where the memory can be reached; a tensor on a device is fetched, and somebody is told, since the loop
waits for it. A package is recognised by the module of the value's type or one of its bases, never imported for the sake
of recognising.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..dtypes import FOREIGN_DTYPES
from . import convert


class Fetched(NamedTuple):
    """A foreign array.

    Attributes:
        array: numpy array, its memory shared with the source where that is possible: copy it before the source may change.
        dtype: The name of its type where numpy has none (`FOREIGN_DTYPES`); `array` then holds unsigned integers.
        is_torch: Whether it comes from torch, whose images have their channels first.
    """

    array: Any
    dtype: str | None
    is_torch: bool


def fetch_array(value: Any, name: str) -> Fetched | None:
    """`value` as a numpy array, or None if it is none.

    Args:
        name: What the user calls it, for the notice that it had to be fetched from a device.

    Raises:
        Exception: What the foreign package raises where it cannot give its data: a meta tensor, a deleted buffer.
    """
    for base in type(value).__mro__:
        root = str(base.__module__).partition(".")[0]
        if root == "torch":
            return _from_torch(value, name)
        if root in ("jax", "jaxlib"):
            return _from_jax(value, name)
        if root == "numpy":
            break
    import numpy

    if isinstance(value, numpy.ndarray):
        return _named(value)
    if hasattr(value, "numpy"):  # eager tensors of TensorFlow and of others that took its name for it
        return _named(numpy.asarray(value.numpy()))
    if hasattr(value, "__array__"):
        return _named(numpy.asarray(value))
    return None


def _from_torch(value: Any, name: str) -> Fetched | None:
    import torch

    if not isinstance(value, torch.Tensor):
        return None
    if value.device.type != "cpu":
        convert.tell_device(name, value.device)
    # Not contiguous(): `snapshot` copies in whatever order the elements lie.
    tensor = value.detach().cpu()
    dtype = str(tensor.dtype).rpartition(".")[2]
    size = FOREIGN_DTYPES.get(dtype)
    if size is None:
        return Fetched(tensor.numpy(), None, True)
    bits = tensor.view(torch.int16 if size == 2 else torch.uint8).numpy()
    return Fetched(bits.view(f"u{size}"), dtype, True)


def _from_jax(value: Any, name: str) -> Fetched | None:
    if not hasattr(value, "dtype") or not hasattr(value, "__array__"):
        return None
    platform = getattr(getattr(value, "device", None), "platform", "cpu")
    if platform != "cpu":
        convert.tell_device(name, platform)
    return as_numpy(value)


def as_numpy(value: Any) -> Fetched:
    """What numpy makes of an array of somebody else's."""
    import numpy

    return _named(numpy.asarray(value))


def _named(array: Any) -> Fetched:
    """An array whose type another package (ml_dtypes) added is given as unsigned integers."""
    name = array.dtype.name
    if array.dtype.isbuiltin != 1 and name in FOREIGN_DTYPES:
        return Fetched(array.view(f"u{array.dtype.itemsize}"), name, False)
    return Fetched(array, None, False)
