"""Foreign objects to plain msgpack values; the table is in the package's docstring.

Runs foreign code (`__float__`, `__array__`, `item()` of a CUDA scalar, which waits for the device), so it is called
without any lock. The caller's objects are never changed and nothing of them is kept.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import msgpack

from ..dtypes import widened
from ..limits import INLINE_TENSOR_BYTES_MAX, KEY_BYTES_MAX, MEDIA_NESTING_MAX, NESTING_MAX
from ..record import EXT_TENSOR, encode_media
from .blobs import Blob
from .device import Awaited, Computed, OnWay
from .media import Media
from .register import Handler, handler_of

_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1
_PLAIN_SCALARS = frozenset({bool, float, type(None)})
_FLOATS, _INTS = frozenset({float}), frozenset({int})

# Exact types that the packer of the hot path may convert inside the lock: pure C conversions that call no foreign code.
KNOWN_SCALARS: dict[type, Callable[[Any], object]] = {}

# What stands in a record for a blob of the value under a key: its bytes, a reference, or None (there was no room).
Put = Callable[[Blob, str], object]
# Whether a raw array of so many bytes may be stored whole under a key.
Admit = Callable[[str, int], bool]

_on_device: list[Callable[[str], None]] = []


def register_known_scalars() -> None:
    """Adds numpy's scalar types to `KNOWN_SCALARS` if the user's process has imported numpy."""
    numpy = sys.modules.get("numpy")
    if numpy is None or KNOWN_SCALARS:
        return
    for name, convert in (
        ("float16", float), ("float32", float), ("bool_", bool),
        ("int8", int), ("int16", int), ("int32", int), ("int64", int),
        ("uint8", int), ("uint16", int), ("uint32", int), ("uint64", int),
    ):  # fmt: skip
        KNOWN_SCALARS[getattr(numpy, name)] = convert


def on_device_value(callback: Callable[[str], None]) -> None:
    """Sets who is told (by a text) when a value had to be fetched from a device, which makes the loop wait for it."""
    _on_device[:] = [callback]


class _Sink(threading.local):
    """Of the call that this thread is in: where its blobs and what has not come yet go (None outside of `plain`), and how
    deep in media it is.
    """

    put: Put | None = None
    admit: Admit | None = None
    awaited: Awaited | None = None
    level: int = 0


_sink = _Sink()


def plain(
    data: Mapping[Any, Any], *, keep_going: bool = False, put: Put | None = None, admit: Admit | None = None,
    awaited: Awaited | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:  # fmt: skip
    """A call's data as plain values, and what was left out.

    Args:
        data: What the user gave to `log`.
        keep_going: Leave out what cannot be stored instead of raising.
        put: Takes the blobs of large values; without it there may be none.
        admit: Asked for each large array; those it does not admit are reduced to statistics.
        awaited: Takes what is still on a device; without it such values are fetched, which waits.

    Returns:
        The plain map (with `OnWay` where a value is in `awaited`), and key to explanation of what is not in it.

    Raises:
        TypeError: A key is not a str, or a value is of a type that cannot be stored.
        ValueError: A value of a right type is out of range: beyond 64 bits, nested too deep, too large.
    """
    # A value's own code may log as well, inside of this call.
    outer = _sink.put, _sink.admit, _sink.awaited
    _sink.put, _sink.admit, _sink.awaited = put, admit, awaited
    try:
        return _plain(data, keep_going)
    finally:
        _sink.put, _sink.admit, _sink.awaited = outer


def completed(
    awaited: Awaited, put: Put | None = None, admit: Admit | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The plain map of a call whose values have come, and what was left out: the device failed."""
    outer = _sink.put, _sink.admit, _sink.awaited
    _sink.put, _sink.admit, _sink.awaited = put, admit, None
    out: dict[str, Any] = {}
    bad: dict[str, str] = {}
    try:
        for key, value in awaited.plain.items():
            try:
                out[key] = _arrived(value, awaited.error)
            except Exception as error:
                bad[key] = str(error) if _is_ours(error) else f"log() value of {key!r}: {error!r}"
    finally:
        _sink.put, _sink.admit, _sink.awaited = outer
    return out, bad


def _arrived(value: Any, lost: str | None) -> Any:
    """A plain value with what has come in its places. msgpack's ExtType is a tuple, and stays."""
    kind = type(value)
    if kind is OnWay:
        if lost is not None:
            raise ValueError(f"log() value of {value.key!r} did not come from its device: {lost}")
        array, dtype = value.array()
        return _from_array(array, value.key, dtype) if value.make is None else plain_value(value.make(array), value.key)
    if kind is dict:
        return {name: _arrived(part, lost) for name, part in value.items()}
    return [_arrived(part, lost) for part in value] if kind is list else value


def _plain(data: Mapping[Any, Any], keep_going: bool) -> tuple[dict[str, Any], dict[str, str]]:
    out: dict[str, Any] = {}
    bad: dict[str, str] = {}
    for index, (key, value) in enumerate(data.items()):
        try:
            out[_check_key(key, index, data)] = plain_value(value, key)
        except Exception as error:  # foreign code raises what it likes: RuntimeError of a meta tensor's item()
            if keep_going:
                bad[str(key)[:KEY_BYTES_MAX]] = str(error) if _is_ours(error) else f"log() value of {key!r}: {error!r}"
                continue
            if not isinstance(error, (TypeError, ValueError)):
                raise
            # Not type(error): a subclass may have a constructor of its own (UnicodeDecodeError, pydantic's).
            raise (TypeError if isinstance(error, TypeError) else ValueError)(
                f"{error}. Nothing of this call was stored.\n"
                "  In a long job STEPD_MISUSE=warn leaves such keys out instead of raising."
            ) from None
    return out, bad


def _is_ours(error: Exception) -> bool:
    return type(error) in (TypeError, ValueError) and str(error).startswith("log() ")


def _check_key(key: object, index: int, data: Mapping[Any, Any]) -> str:
    if not isinstance(key, str):
        raise TypeError(f"log() key {index} is {type(key).__name__}, expected str: {key!r} in {_excerpt(data)}")
    if len(key.encode("utf-8", "surrogatepass")) > KEY_BYTES_MAX:
        raise ValueError(f"log() key {index} is longer than {KEY_BYTES_MAX} bytes: {key[:40]!r}…")
    return str(key)


def _excerpt(data: Mapping[Any, Any]) -> str:
    text = ", ".join(f"{k!r}: {type(v).__name__}" for k, v in list(data.items())[:4])
    return f"{{{text}{', …' if len(data) > 4 else ''}}}"


def plain_value(value: Any, key: object = "", depth: int = 0) -> Any:
    """One value as a plain one.

    Raises:
        TypeError, ValueError: As `plain`.
    """
    kind = type(value)
    if kind in _PLAIN_SCALARS:
        return value
    if kind is int:
        return _integer(value, key)
    if kind is str:
        return value
    if depth > NESTING_MAX:
        raise ValueError(f"log() value of {key!r} is nested deeper than {NESTING_MAX}")
    if kind is dict or kind is list or kind is tuple:
        return _container(value, key, depth)
    registered = handler_of(kind)
    if registered is not None:
        return _registered(value, registered, key, depth)
    if isinstance(value, Media):
        return _media(value, key, depth)
    if kind is Blob:
        return _blob(value, key)
    if kind is Computed:
        return _computed(value, key)
    # By any base: a loss is often a tensor subclass of another package (MONAI, fastai, torchvision).
    for base in kind.__mro__:
        handler = _HANDLERS.get(str(base.__module__).partition(".")[0])
        if handler is not None:
            converted = handler(value, key)
            if converted is not _UNKNOWN:
                return converted
            break
    return _standard(value, key, depth)


def _integer(value: int, key: object) -> int:
    if _INT_MIN <= value <= _INT_MAX:
        return int(value)
    raise ValueError(f"log() value of {key!r} is an integer of {value.bit_length()} bits, expected at most 64")


def _container(value: Any, key: object, depth: int) -> Any:
    if isinstance(value, dict):
        return {_name(k): plain_value(v, key, depth + 1) for k, v in value.items()}
    kinds = set(map(type, value))  # a list of plain numbers, as in every histogram, is taken as it is
    if kinds == _FLOATS or (kinds == _INTS and min(value) >= _INT_MIN and max(value) <= _INT_MAX):
        return list(value)
    return [plain_value(v, key, depth + 1) for v in value]


def _name(key: object) -> str:
    return key if type(key) is str else str(key)


def _registered(value: Any, handler: Handler, key: object, depth: int) -> Any:
    """What the handler of somebody else's type gives."""
    given = handler(value)
    if handler_of(type(given)) is handler:
        raise TypeError(
            f"log() value of {key!r}: the handler of {_type_name(value)} (register_value) returned a {_type_name(given)}, "
            "which is for itself to convert"
        )
    return plain_value(given, key, depth + 1)


def _media(value: Media, key: object, depth: int) -> Any:
    """A media value described, and packed as an extension."""
    if _sink.put is None:
        raise TypeError(
            f"log() value of {key!r} is a {type(value).__name__}, which can be logged and stands nowhere else"
        )
    if _sink.level >= MEDIA_NESTING_MAX:
        raise ValueError(f"log() value of {key!r} holds media inside of one another, more than {MEDIA_NESTING_MAX}")
    if value.broken is not None:
        raise ValueError(f"log() value of {key!r}: the {type(value).__name__} could not be made: {value.broken}")
    _sink.level += 1
    try:
        described = {name: plain_value(part, key, depth + 1) for name, part in value.describe().items()}
    finally:
        _sink.level -= 1
    return encode_media({"_type": value._type, **described})


def _blob(blob: Blob, key: object) -> object:
    assert _sink.put is not None, "a blob stands inside of media only"
    return _sink.put(blob, str(key))


_UNKNOWN = object()


def _standard(value: Any, key: object, depth: int) -> Any:
    """Objects of the standard library and the rest, by the table."""
    import enum

    if isinstance(value, enum.Enum):
        try:
            return plain_value(value.value, key, depth + 1)
        except (TypeError, ValueError):
            return value.name
    for base, convert in _BUILTIN_BASES:
        if isinstance(value, base):
            return convert(value, key, depth)
    if value is sys.modules.get("matplotlib.pyplot") and _sink.put is not None:
        return _from_picture(value, key)
    for module, name, convert in _LAZY_BASES:
        loaded = sys.modules.get(module)
        if loaded is not None and isinstance(value, getattr(loaded, name)):
            return convert(value, key, depth)
    if hasattr(type(value), "__dataclass_fields__"):
        fields = type(value).__dataclass_fields__
        return {name: plain_value(getattr(value, name), key, depth + 1) for name in fields}
    if isinstance(value, Mapping):
        return {_name(k): plain_value(v, key, depth + 1) for k, v in value.items()}
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    raise TypeError(f"log() value of {key!r} is {_type_name(value)}, which cannot be stored")


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _list(value: Any, key: object, depth: int) -> list[Any]:
    return [plain_value(v, key, depth + 1) for v in value]


def _set(value: Any, key: object, depth: int) -> list[Any]:
    items = _list(value, key, depth)
    try:
        return sorted(items)
    except TypeError:
        return items


def _complex(value: complex, key: object, depth: int) -> dict[str, float]:
    return {"real": value.real, "imag": value.imag}


_Convert = Callable[[Any, object, int], Any]
_BUILTIN_BASES: tuple[tuple[Any, _Convert], ...] = (
    (bool, lambda v, k, d: bool(v)),
    (int, lambda v, k, d: _integer(int(v), k)),
    (float, lambda v, k, d: float(v)),
    (str, lambda v, k, d: str(v)),
    ((bytes, bytearray, memoryview), lambda v, k, d: bytes(v)),
    ((dict, list, tuple), _container),
    (range, _list),
    ((set, frozenset), _set),
    (complex, _complex),
)
_LAZY_BASES: tuple[tuple[str, str, _Convert], ...] = (
    ("datetime", "datetime", lambda v, k, d: v.isoformat()),
    ("datetime", "date", lambda v, k, d: v.isoformat()),
    ("datetime", "time", lambda v, k, d: v.isoformat()),
    ("datetime", "timedelta", lambda v, k, d: v.total_seconds()),
    ("decimal", "Decimal", lambda v, k, d: float(v)),
    ("fractions", "Fraction", lambda v, k, d: float(v)),
    ("pathlib", "PurePath", lambda v, k, d: str(v)),
    ("uuid", "UUID", lambda v, k, d: str(v)),
    ("collections", "deque", _list),
    ("array", "array", _list),
)


def _from_numpy(value: Any, key: object) -> Any:
    register_known_scalars()
    import numpy

    if isinstance(value, (numpy.datetime64, numpy.timedelta64)):
        return str(value)
    if isinstance(value, numpy.generic):
        item = value.item()
        if isinstance(item, numpy.complexfloating):
            item = complex(item)
        elif isinstance(item, numpy.generic):  # longdouble, and types that other packages add
            item = float(item)
        return plain_value(item, key)
    if isinstance(value, numpy.ndarray):
        return _from_fetched(value, key)
    return _UNKNOWN


def _from_fetched(value: Any, key: object) -> Any:
    from .arrays import fetch_array

    fetched = fetch_array(value, str(key))
    return _UNKNOWN if fetched is None else _from_array(fetched.array, key, fetched.dtype)


def _from_array(array: Any, key: object, dtype_name: str | None = None) -> Any:
    if array.dtype.hasobject:
        raise TypeError(f"log() value of {key!r} is an array of Python objects (dtype {array.dtype}), expected numbers")
    if array.size == 1:
        one = widened(array, dtype_name).reshape(())
        return plain_value(one.item() if array.dtype.kind not in "mM" else str(one), key)
    if array.dtype.kind in "US":
        return array.tolist()
    if array.nbytes > INLINE_TENSOR_BYTES_MAX:
        return _from_large_array(array, key, dtype_name)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    name = dtype_name or little.dtype.str
    packed = msgpack.packb([name, list(array.shape), little.tobytes()])
    return msgpack.ExtType(EXT_TENSOR, packed)


def _from_large_array(array: Any, key: object, dtype_name: str | None) -> Any:
    """An array that is stored apart, or, beyond its key's budget, statistics of it."""
    if array.dtype.fields is not None:
        raise TypeError(f"log() value of {key!r} is an array with named fields (dtype {array.dtype}), expected numbers")
    if _sink.put is None:
        raise ValueError(
            f"value of {key!r} is an array of {array.nbytes} bytes (shape {array.shape}, dtype {array.dtype}), at most "
            f"{INLINE_TENSOR_BYTES_MAX} stand here; log() takes larger ones"
        )
    from .tensor import ReducedTensor, Tensor

    is_admitted = _sink.admit is None or _sink.admit(str(key), array.nbytes)
    return _media((Tensor if is_admitted else ReducedTensor)(array, dtype_name), key, 0)


def _computed(value: Computed, key: object) -> Any:
    later = _later(value.tensor, key, value.make)
    if later is not None:
        return later
    from .arrays import fetch_array

    fetched = fetch_array(value.tensor, str(key))
    assert fetched is not None
    return plain_value(value.make(fetched.array), key)


def _later(value: Any, key: object, make: Callable[[Any], Any] | None = None) -> OnWay | None:
    """What stands for a tensor of torch that is on its way; None: it is not."""
    if _sink.awaited is None or _sink.level or value.device.type == "cpu":
        return None
    return _sink.awaited.torch(value, key, make)


def _from_torch(value: Any, key: object) -> Any:
    import torch

    if not isinstance(value, torch.Tensor):
        return str(value) if isinstance(value, (torch.device, torch.dtype)) else _UNKNOWN
    later = _later(value, key)
    if later is not None:
        return later
    if value.numel() == 1:
        if value.device.type != "cpu":
            tell_device(key, value.device)
        return plain_value(value.item(), key)
    return _from_fetched(value, key)


def _from_jax(value: Any, key: object) -> Any:
    if not hasattr(value, "dtype") or not hasattr(value, "__array__"):
        return _UNKNOWN
    if _sink.awaited is not None and not _sink.level:
        later = _sink.awaited.jax(value, key)
        if later is not None:
            return later
    return _from_fetched(value, key)


def _from_tensorflow(value: Any, key: object) -> Any:
    if not hasattr(value, "numpy"):
        return _UNKNOWN
    return plain_value(value.numpy(), key)


def _from_picture(value: Any, key: object) -> Any:
    """A PIL image, or a matplotlib figure, axes or pyplot itself: as an `Image`."""
    from .pixels import figure_of

    if _sink.put is None:
        return _UNKNOWN  # not drawn where it could stand nowhere
    module = sys.modules.get("PIL.Image")
    if (module is None or not isinstance(value, module.Image)) and figure_of(value) is None:
        return _UNKNOWN
    from .image import Image

    return _media(Image(value), key, 0)


def _from_plotly(value: Any, key: object) -> Any:
    """A figure, as a `Plotly`."""
    from .interactive import Plotly, is_plotly

    if _sink.put is None or not is_plotly(value):
        return _UNKNOWN
    return _media(Plotly(value), key, 0)


def _from_pandas(value: Any, key: object) -> Any:
    """A frame, as a `Table`."""
    if _sink.put is None or not isinstance(value, sys.modules["pandas"].DataFrame):
        return _UNKNOWN
    from .table import Table

    return _media(Table(dataframe=value), key, 0)


def tell_device(key: object, device: object) -> None:
    for callback in _on_device:
        callback(
            f"the value of {key!r} lives on {device}: fetching it makes the loop wait for the device at every call. "
            "Log `.item()` of a value you fetch anyway, or log less often"
        )


_HANDLERS: dict[str, Callable[[Any, object], Any]] = {
    "numpy": _from_numpy,
    "torch": _from_torch,
    "jax": _from_jax,
    "jaxlib": _from_jax,
    "tensorflow": _from_tensorflow,
    "pandas": _from_pandas,
    "PIL": _from_picture,
    "matplotlib": _from_picture,
    "plotly": _from_plotly,
}
