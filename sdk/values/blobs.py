"""Blobs: the bytes of large values, copied once, when a value is made.

A blob is immutable: what the caller does with the array afterwards does not matter. Its bytes lie in a slot of the
stream's arena (shared memory, which survives kill -9) while a run is live and there is room, else in private memory.
`Blob.drop` lets go of them once they are stored; the blob then only names what is stored.

Arrays are copied in the order in which they lie in memory, so that an HWC view of a CHW array costs a plain copy; the
order of the axes goes into the blob's `meta`, and `as_array` undoes it without another copy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ..dtypes import dtype_of, named_dtype
from ..errors import UsageError
from ..files import Buffer
from ..limits import INLINE_TENSOR_BYTES_MAX


class Held(Protocol):
    """Where a blob's bytes lie; letting go of the last reference frees them.

    Attributes:
        place: (index of the arena's file, offset in it), or None for private memory.
        owner: The stream whose arena it is; 0 for private memory.
    """

    @property
    def place(self) -> tuple[int, int] | None: ...

    @property
    def owner(self) -> int: ...

    def view(self) -> memoryview: ...


class Heap:
    """Private memory."""

    __slots__ = ("_memory", "owner", "place")

    def __init__(self, size: int) -> None:
        numpy = sys.modules.get("numpy")
        # Why numpy: a bytearray would be filled with zeros first, which costs as much as the copy.
        self._memory: Any = bytearray(size) if numpy is None else numpy.empty(size, "u1")
        self.place: tuple[int, int] | None = None
        self.owner = 0

    def view(self) -> memoryview:
        return memoryview(self._memory)


# Finds room for so many bytes in the arena of the current run; None: there is none.
_take: list[Callable[[int], Held | None]] = []


def stage_in(take: Callable[[int], Held | None] | None) -> None:
    """Sets where new blobs look for room first; None: private memory."""
    _take[:] = [] if take is None else [take]


class Blob:
    """Bytes of a value.

    Attributes:
        size: How many.
        meta: What an encoder and a reader must know of them (docs/media.md#meta).
        placed: Stream to the number under which it is stored there.
    """

    __slots__ = ("_held", "meta", "placed", "size")

    def __init__(self, held: Held, size: int, meta: dict[str, Any]) -> None:
        self._held: Held | None = held
        self.size = size
        self.meta = meta
        self.placed: dict[int, int] = {}

    @property
    def held(self) -> Held | None:
        """Where the bytes lie; None once they are stored and let go."""
        return self._held

    @property
    def is_private(self) -> bool:
        """Whether only this process sees its bytes, so that they die with it."""
        return self._held is not None and self._held.place is None

    def view(self) -> memoryview:
        """The bytes, not copied.

        Raises:
            UsageError: They are stored and were let go.
        """
        held = self._held
        if held is None:
            raise UsageError("this value was logged to another run already, and its bytes are not kept; make it again")
        return held.view()[: self.size]

    def hold(self, held: Held) -> None:
        """Moves to another place, which holds the same bytes."""
        self._held = held

    def drop(self) -> None:
        """Lets go of the bytes: they are stored."""
        self._held = None


def snapshot(data: Any, meta: Mapping[str, Any], *, dtype: str | None = None) -> Blob:
    """Copies `data` once.

    Args:
        data: bytes-like, or a numpy array of any shape and memory layout; not kept, not changed.
        meta: Becomes the blob's; for an array "array" is added: [dtype, shape, order], where order are the axes from the
            outermost in memory to the innermost, None for C order.
        dtype: The name of an array's type where numpy has none; the array then holds unsigned integers of its size.

    Raises:
        TypeError: An array of Python objects, or with named fields.
    """
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(data, numpy.ndarray):
        return _snapshot_array(data, meta, dtype)
    view = memoryview(data)
    view = view.cast("B") if view.contiguous and view.nbytes else memoryview(view.tobytes())
    held = _room(view.nbytes)
    held.view()[: view.nbytes] = view
    return Blob(held, view.nbytes, dict(meta))


def _snapshot_array(array: Any, meta: Mapping[str, Any], dtype: str | None) -> Blob:
    import numpy

    if array.dtype.hasobject or array.dtype.fields is not None:
        raise TypeError(f"an array of dtype {array.dtype} cannot be stored, expected numbers")
    if dtype is None and array.dtype.kind == "V":
        dtype = array.dtype.name  # a type of another package: ml_dtypes' bfloat16
        array = array.view(f"u{array.dtype.itemsize}")
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
        array = array.astype(array.dtype.newbyteorder("<"))
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]) if array.shape[axis] > 1 else 0)
    in_order = [axis for axis in order if array.shape[axis] > 1]
    is_c = in_order == sorted(in_order)
    source = array if is_c else array.transpose(order)
    held = _room(array.nbytes)
    target = numpy.frombuffer(held.view(), array.dtype, count=array.size).reshape(source.shape)
    numpy.copyto(target, source)
    described = [dtype or array.dtype.str, list(array.shape), None if is_c else order]
    return Blob(held, array.nbytes, {**meta, "array": described})


def _room(size: int) -> Held:
    if size > INLINE_TENSOR_BYTES_MAX:
        for take in _take:
            held = take(size)
            if held is not None:
                return held
    return Heap(size)


def as_array(raw: Buffer, array: Sequence[Any]) -> Any:
    """The array in a blob's bytes; numpy[shape] of its dtype, not copied (so read-only where `raw` is).

    A type that numpy has no name for comes as the type of ml_dtypes where that is installed, else as unsigned integers.

    Raises:
        ValueError: `array` does not describe these bytes.
    """
    import numpy

    name, shape, order = array
    sizes = [shape[axis] for axis in order] if order is not None else list(shape)
    if any(type(size) is not int or size < 0 for size in sizes):
        raise ValueError(f"an array of shape {shape!r}")
    if order is not None and sorted(order) != list(range(len(shape))):
        raise ValueError(f"an array whose axes have the order {order!r}")
    flat = numpy.frombuffer(raw, dtype_of(name))
    known = named_dtype(name)
    if known is not None:
        flat = flat.view(known)
    result = flat.reshape(sizes)
    if order is None:
        return result
    inverse = [0] * len(order)
    for place, axis in enumerate(order):
        inverse[axis] = place
    return result.transpose(inverse)
