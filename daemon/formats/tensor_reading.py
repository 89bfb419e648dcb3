"""A TensorProto of TensorFlow, read: numbers as a numpy array, texts as a list of bytes.

framework/tensor.proto: the elements stand in `tensor_content` as they lie in memory, or one by one in the field of their type, where
the last one stands for all that would follow.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy
from numpy.typing import NDArray

from .events import DATA_TYPES, DIM, DIM_SIZE, DT_STRING, DTYPE, SHAPE, STRING_VAL, TENSOR_CONTENT
from .protobuf import Value, fields, read_varint, signed

_TYPES = {number: numpy.dtype(name if name == "b1" else f"<{name}") for name, number in DATA_TYPES.items()}
_BFLOAT16, _HALF = 14, 19
# Fields of single elements: their bytes, where these are fixed; None: varints.
_FLOATS, _DOUBLES = 5, 6
_VARINTS = (7, 10, 11, 13, 16, 17)
_COMPLEX = (9, 12)
# Limit: elements that a shape may claim.
_ELEMENTS_MAX = 1 << 28
# Limit: of those that are all the last one, which a few bytes can claim.
_REPEATED_MAX = 1 << 24


class Tensor(NamedTuple):
    """What a TensorProto holds. `numbers` is None where it holds texts; these are in C order."""

    shape: tuple[int, ...]
    numbers: NDArray[Any] | None
    texts: list[bytes]


def read_tensor(payload: memoryview) -> Tensor:
    """The tensor in a TensorProto.

    Raises:
        ValueError: These bytes are none, or of a type that is no number and no text.
    """
    kind = 0
    shape: tuple[int, ...] | None = ()
    content: memoryview | None = None
    texts: list[bytes] = []
    singles: list[Any] = []
    for field, _, value in fields(payload):
        if field == DTYPE and isinstance(value, int):
            kind = value
        elif field == SHAPE and isinstance(value, memoryview):
            shape = _shape_of(value)
        elif field == TENSOR_CONTENT and isinstance(value, memoryview):
            content = value
        elif field == STRING_VAL and isinstance(value, memoryview):
            texts.append(bytes(value))
        elif field in _COMPLEX:
            raise ValueError("a tensor of complex numbers, one by one")
        elif field in (_FLOATS, _DOUBLES, *_VARINTS):
            singles += _singles(field, value)
    if shape is None or math.prod(shape) > _ELEMENTS_MAX:
        raise ValueError(f"a tensor of shape {shape}")
    if kind == DT_STRING:
        count = math.prod(shape)
        if len(texts) != count and not (shape == () and texts):
            raise ValueError(f"a tensor of {len(texts)} texts, its shape {shape} says {count}")
        return Tensor(shape, None, texts)
    return Tensor(shape, _numbers(kind, shape, content, singles), [])


def _shape_of(payload: memoryview) -> tuple[int, ...]:
    sizes = []
    for field, _, dim in fields(payload):
        if field == DIM and isinstance(dim, memoryview):
            found = [signed(v) for inner, _, v in fields(dim) if inner == DIM_SIZE and isinstance(v, int)]
            sizes.append(found[-1] if found else 0)
    if any(size < 0 for size in sizes):
        raise ValueError(f"a tensor of shape {sizes}")
    return tuple(sizes)


def _singles(field: int, value: Value) -> list[Any]:
    """The elements in one occurrence of a field, packed or alone."""
    if not isinstance(value, memoryview):
        return [signed(value) if isinstance(value, int) else value]
    if field in (_FLOATS, _DOUBLES):
        found: list[Any] = numpy.frombuffer(value, "<f4" if field == _FLOATS else "<f8").tolist()
        return found
    numbers, at = [], 0
    while at < len(value):
        number, at = read_varint(value, at)
        numbers.append(signed(number))
    return numbers


def _numbers(kind: int, shape: tuple[int, ...], content: memoryview | None, singles: list[Any]) -> NDArray[Any]:
    if kind not in _TYPES and kind != _BFLOAT16:
        raise ValueError(f"a tensor of type {kind}")
    is_short = kind == _BFLOAT16
    dtype = numpy.dtype("<u2") if is_short else _TYPES[kind]
    count = math.prod(shape)
    if content is not None:
        flat: NDArray[Any] = numpy.frombuffer(content, dtype)
    elif kind in (_BFLOAT16, _HALF):  # their bits, as integers
        flat = numpy.array(singles, numpy.int64).astype("<u2").view(dtype)
    else:
        flat = numpy.array(singles, numpy.int64).astype(dtype) if dtype.kind in "iub" else numpy.array(singles, dtype)
    if count - len(flat) > _REPEATED_MAX:
        raise ValueError(f"a tensor of {len(flat)} numbers for a shape {shape}")
    if len(flat) < count and len(flat) and content is None:
        flat = numpy.concatenate((flat, numpy.repeat(flat[-1:], count - len(flat))))
    if len(flat) != count:
        raise ValueError(f"a tensor of {len(flat)} numbers, its shape {shape} says {count}")
    if is_short:
        flat = (flat.astype("<u4") << 16).view("<f4")
    return flat.reshape(shape)
