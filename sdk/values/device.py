"""Values that are still on a device when they are logged: copied without waiting, read when they have come.

A tensor on a CUDA or XPU device is copied into pinned memory on the stream that makes it, an event is recorded behind the
copy, and `log` goes on. An array of jax says itself when it is ready. What the event says is asked by `log` and by the
sender; nobody ever waits for the device. Other devices (mps, tpu through torch_xla) have no such copy: their values are
fetched at once, which waits, and somebody is told (`convert.tell_device`).

Limits: media and the cells of tables are read where they are made, so a tensor on a device waits there. The memory of the
copy is torch's pinned memory, which torch keeps and uses again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

# Devices whose streams can copy beside the host: torch.cuda (ROCm as well) and torch.xpu.
_WITH_STREAMS = ("cuda", "xpu")
_RELAXED = 2  # cudaStreamCaptureModeRelaxed

# Gives an array that has come, and the name of its type where numpy has none.
_Fetch = Callable[[], "tuple[Any, str | None]"]


class Computed:
    """A value that is made of a tensor's bytes when they have come.

    Args:
        tensor: On any device. Several values may share one: it is copied once for each call.
        make: Gets it as a numpy array, and gives what is logged; called once, in any thread, without a lock.
    """

    __slots__ = ("make", "tensor")

    def __init__(self, tensor: Any, make: Callable[[Any], Any]) -> None:
        self.tensor = tensor
        self.make = make


class OnWay:
    """What stands in a call's plain data where a value has not come yet.

    Attributes:
        key: Under which it was logged.
        array: Gives it, once it has come.
        make: What is logged of it, if not itself.
    """

    __slots__ = ("array", "key", "make")

    def __init__(self, key: object, array: _Fetch, make: Callable[[Any], Any] | None) -> None:
        self.key = key
        self.array = array
        self.make = make


class Awaited:
    """The values of one call that have not come yet.

    Args:
        bytes_max: Larger tensors are fetched at once; None: none is. A caller that wants to wait rather than lose
            anything must wait here, as there is nobody to wait when they have come.

    Life: filled by `values.plain` while it converts the call; `begin` records the events; `is_ready` is asked until it says
    yes; then `plain` and `error` say what there is. May be asked from any thread.

    Attributes:
        size: Bytes of host memory that the copies take.
        plain: The call's data, with `OnWay` where a value has not come yet.
        error: Why those are lost: the device failed. None: they are there.
    """

    __slots__ = ("_bytes_max", "_copies", "_polls", "_streams", "error", "plain", "size")

    def __init__(self, bytes_max: int | None = None) -> None:
        self._bytes_max = bytes_max
        # With the tensor itself: while it is held nothing else gets its id.
        self._copies: dict[int, tuple[Any, _Fetch]] = {}
        self._streams: dict[str, tuple[Any, Any]] = {}
        self._polls: list[Callable[[], bool]] = []
        self.size = 0
        self.plain: dict[str, Any] = {}
        self.error: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is on its way."""
        return not self._streams and not self._polls

    def torch(self, tensor: Any, key: object, make: Callable[[Any], Any] | None = None) -> OnWay | None:
        """Starts the copy of a tensor of torch; None: it must be fetched, and its own error be met, at once."""
        module = _streams_of(tensor)
        if module is None or self._is_too_large(tensor.numel() * tensor.element_size()):
            return None
        if id(tensor) not in self._copies:
            if getattr(module, "is_current_stream_capturing", bool)():
                raise ValueError(
                    f"log() value of {key!r} is on {tensor.device} while a graph is captured; log it outside of the capture"
                )
            try:
                self._copies[id(tensor)] = tensor, self._begin_copy(tensor, module)
            except Exception:  # no pinned memory, a type that numpy has not: fetching it works, or says what is wrong
                return None
        return OnWay(key, self._copies[id(tensor)][1], make)

    def _begin_copy(self, tensor: Any, module: Any) -> _Fetch:
        import torch

        from .arrays import fetch_array

        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        # Before the copy begins, so that what has no such type raises now.
        fetched = fetch_array(host, "")
        assert fetched is not None
        host.copy_(tensor.detach(), non_blocking=True)
        self._streams[str(tensor.device)] = module, module.current_stream(tensor.device)
        self.size += int(fetched.array.nbytes)
        # Invariant: the array holds `host`; pinned memory that nobody holds torch gives to the next who asks.
        return lambda: (fetched.array, fetched.dtype)

    def jax(self, array: Any, key: object) -> OnWay | None:
        """Has an array of jax come by itself; None: it is there, or cannot come."""
        is_ready = getattr(array, "is_ready", None)
        if is_ready is None or not getattr(array, "is_fully_addressable", True):
            return None
        platform = getattr(getattr(array, "device", None), "platform", "cpu")
        size = int(getattr(array, "nbytes", 0))
        if (platform == "cpu" and is_ready()) or self._is_too_large(size):
            return None
        array.copy_to_host_async()
        self._polls.append(is_ready)
        self.size += size

        def fetched() -> tuple[Any, str | None]:
            from .arrays import as_numpy

            found = as_numpy(array)
            return found.array, found.dtype

        return OnWay(key, fetched, None)

    def _is_too_large(self, size: int) -> bool:
        return self._bytes_max is not None and size > self._bytes_max

    def begin(self, plain: dict[str, Any]) -> None:
        """All copies of the call are under way: notes after them how far each device must come."""
        self.plain = plain
        self._copies = {}
        for module, stream in self._streams.values():
            event = module.Event()
            event.record(stream)
            self._polls.append(_asker(event))
        self._streams = {}

    def is_ready(self) -> bool:
        """Whether every value has come, or (`error`) none will. Never waits and never raises."""
        polls = self._polls
        try:
            while polls and polls[0]():
                # Race: two threads may ask; a list that one of them replaced is not asked again.
                self._polls = polls = polls[1:]
        except Exception as error:  # the device's own: whoever uses it next meets it too
            self.error = f"{type(error).__name__}: {error}"
            self._polls = polls = []
        return not polls


def _streams_of(tensor: Any) -> Any:
    """torch's module of the streams of a tensor's device; None: it has none, or the tensor is of an unusual kind."""
    kind = tensor.device.type
    if kind not in _WITH_STREAMS:
        return None
    torch = sys.modules["torch"]
    base = getattr(torch.Tensor, "__torch_dispatch__", None)
    if getattr(tensor, "layout", None) is not getattr(torch, "strided", None) or (
        getattr(type(tensor), "__torch_dispatch__", None) is not base  # a DTensor: no tensor of this process alone
    ):
        return None
    module = getattr(torch, kind, None)
    return module if hasattr(module, "Event") and hasattr(torch, "empty") else None


def _asker(event: Any) -> Callable[[], bool]:
    """`event.query`, allowed whatever the process is doing.

    Why: while one thread captures a CUDA graph, a query in any other one breaks the capture, unless that thread has said
    that it knows what it does (cudaThreadExchangeStreamCaptureMode in CUDA's manual).
    """
    exchange = _exchange_of_mode()
    if exchange is None:
        return event.query  # type: ignore[no-any-return]

    def ask() -> bool:
        import ctypes

        mode = ctypes.c_int(_RELAXED)
        exchange(ctypes.byref(mode))
        try:
            return bool(event.query())
        finally:
            exchange(ctypes.byref(mode))

    return ask


_exchange: list[Any] = []


def _exchange_of_mode() -> Any:
    """The function of the runtime that torch has loaded; None: there is none to be found."""
    if not _exchange:
        _exchange.append(_find_exchange())
    return _exchange[0]


def _find_exchange() -> Any:
    import ctypes

    version = getattr(sys.modules.get("torch"), "version", None)
    cuda, hip = getattr(version, "cuda", None), getattr(version, "hip", None)
    try:
        if hip:
            return ctypes.CDLL("libamdhip64.so").hipThreadExchangeStreamCaptureMode
        if cuda:
            return ctypes.CDLL(f"libcudart.so.{cuda.partition('.')[0]}").cudaThreadExchangeStreamCaptureMode
    except (OSError, AttributeError):
        pass
    return None
