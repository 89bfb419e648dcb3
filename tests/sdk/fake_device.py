"""A torch with one device, whose stream does its work when the test says so. Whoever waits for it fails the test."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy


class DeviceError(RuntimeError):
    """What torch raises when the device has failed."""


class Stream:
    """Work in order; none is done before `advance`."""

    def __init__(self) -> None:
        self.work: deque[Callable[[], None]] = deque()
        self.broken = False

    def advance(self, count: int | None = None) -> None:
        """Does the next things, or all."""
        for _ in range(len(self.work) if count is None else count):
            # In this order, so that an interrupt in between loses nothing of it.
            self.work[0]()
            self.work.popleft()

    def fire(self, events: int = 1) -> None:
        """Does everything up to and with the next event, so many times."""
        for _ in range(events):
            done = self.events_done
            while self.events_done == done:
                self.work.popleft()()

    events_done = 0


class Event:
    """An event of the fake device's stream."""

    def __init__(self) -> None:
        self._done = False

    def record(self, stream: Stream) -> None:
        self._stream = stream

        def finish() -> None:
            self._done = True
            stream.events_done += 1

        stream.work.append(finish)

    def query(self) -> bool:
        if self._stream.broken:
            raise DeviceError("CUDA error: an illegal memory access was encountered")
        return self._done

    def synchronize(self) -> None:
        raise AssertionError("log() waited for the device")


class Device:
    def __init__(self, type: str) -> None:
        self.type = type

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.type == self.type

    def __hash__(self) -> int:
        return hash(self.type)

    def __str__(self) -> str:
        return f"{self.type}:0" if self.type != "cpu" else "cpu"


class Dtype:
    """A dtype of torch, named as it names it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return f"torch.{self.name}"


STRIDED = object()


class Tensor:
    """A tensor. On the device its data are out of reach but for copies that the stream makes."""

    __torch_dispatch__ = None
    layout = STRIDED

    def __init__(self, data: Any, device: str = "cpu", dtype: str | None = None) -> None:
        self.data = numpy.asarray(data)
        self.device = Device(device)
        self.dtype = Dtype(dtype or self.data.dtype.name)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def numel(self) -> int:
        return int(self.data.size)

    def element_size(self) -> int:
        return int(self.data.itemsize)

    def detach(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        assert self.device.type != "cuda", "log() waited for the device"
        return self

    def item(self) -> Any:
        return self.cpu().data.reshape(()).item()

    def numpy(self) -> Any:
        return self.cpu().data

    def copy_(self, source: Tensor, non_blocking: bool = False) -> Tensor:
        assert non_blocking, "log() waited for the device"
        STREAM[0].work.append(lambda: self.data.__setitem__(..., source.data))
        return self


STREAM: list[Stream] = []


def install(monkeypatch: Any) -> tuple[Any, Stream]:
    """Puts the fake in torch's place; the module, and the stream of its device."""
    import sys

    module: Any = types.ModuleType("torch")
    stream = Stream()
    STREAM[:] = [stream]
    module.strided = STRIDED
    for cls, name in ((Device, "device"), (Dtype, "dtype"), (Tensor, "Tensor")):
        monkeypatch.setattr(cls, "__module__", "torch")
        setattr(module, name, cls)

    def empty(shape: tuple[int, ...], dtype: Dtype, pin_memory: bool) -> Tensor:
        assert pin_memory
        return Tensor(numpy.full(shape, 77, dtype.name))

    module.empty = empty
    module.cuda = types.SimpleNamespace(
        Event=Event, current_stream=lambda device: stream, is_current_stream_capturing=lambda: module.is_capturing
    )
    module.is_capturing = False
    monkeypatch.setitem(sys.modules, "torch", module)
    return module, stream
