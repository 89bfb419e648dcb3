"""A driver of NVIDIA that is none: the part of ``pynvml`` that `daemon.observe.gpu` uses, with devices that a test makes.

with installed(FakeNvml(devices=2)) as nvml:
    nvml.devices[0].power = 300_000      # milliwatts
    nvml.hangs.clear()                   # from now on no call returns, until hangs.set()
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any


class NvmlError(Exception):
    """What every function raises."""


class FakeDevice:
    """One GPU; a value that is None is not supported."""

    def __init__(self, index: int) -> None:
        self.uuid = f"GPU-{index:08x}-0000"
        self.utilization, self.memory_utilization = 90, 40
        self.memory_used, self.memory_total = 8 << 30, 80 << 30
        self.temperature, self.clock_sm, self.clock_memory = 61, 1755, 2619
        self.power: int | None = 350_000
        self.energy: int | None = 1_000_000
        self.holders: dict[int, int | None] = {}
        self.mig = False


class FakeNvml:
    """Stands in `sys.modules` as "pynvml".

    Attributes:
        devices: Its GPUs. `errors`: (device, Xid) that wait to be told.
        hangs: While it is not set, calls wait for it.
        threads: Names of the threads that called.
        no_driver: Initialising fails.
    """

    NVMLError = NvmlError
    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2
    nvmlEventTypeXidCriticalError = 8  # noqa: N815 - the library's name

    def __init__(self, devices: int = 1) -> None:
        self.devices = [FakeDevice(index) for index in range(devices)]
        self.errors: list[tuple[FakeDevice, int]] = []
        self.hangs = threading.Event()
        self.hangs.set()
        self.threads: set[str] = set()
        self.no_driver = False

    def _call(self) -> None:
        self.threads.add(threading.current_thread().name)
        assert self.hangs.wait(30)

    def _told(self, value: Any) -> Any:
        self._call()
        if value is None:
            raise NvmlError("Not Supported")
        return value

    def __getattr__(self, name: str) -> Any:
        simple = {
            "nvmlDeviceGetPowerUsage": lambda d: self._told(d.power),
            "nvmlDeviceGetEnforcedPowerLimit": lambda d: self._told(700_000),
            "nvmlDeviceGetTotalEnergyConsumption": lambda d: self._told(d.energy),
            "nvmlDeviceGetTemperature": lambda d, which: self._told(d.temperature),
            "nvmlDeviceGetClockInfo": lambda d, which: self._told(d.clock_sm if which == 1 else d.clock_memory),
            "nvmlDeviceGetUUID": lambda d: self._told(d.uuid),
            "nvmlDeviceGetName": lambda d: self._told(b"NVIDIA Fake 80GB"),
            "nvmlSystemGetDriverVersion": lambda: self._told("580.1"),
            "nvmlDeviceGetCount": lambda: self._told(len(self.devices)),
            "nvmlDeviceGetHandleByIndex": lambda index: self._told(self.devices[index]),
            "nvmlDeviceGetMigMode": lambda d: self._told((int(d.mig), int(d.mig))),
            "nvmlEventSetCreate": lambda: self._told("events"),
            "nvmlDeviceRegisterEvents": lambda d, kind, events: self._told(0),
        }
        if name not in simple:
            raise AttributeError(name)
        return simple[name]

    def nvmlInit(self) -> None:  # noqa: N802
        self._call()
        if self.no_driver:
            raise NvmlError("Driver Not Loaded")

    def nvmlDeviceGetUtilizationRates(self, device: FakeDevice) -> Any:  # noqa: N802
        self._call()
        return SimpleNamespace(gpu=device.utilization, memory=device.memory_utilization)

    def nvmlDeviceGetMemoryInfo(self, device: FakeDevice) -> Any:  # noqa: N802
        self._call()
        return SimpleNamespace(used=device.memory_used, total=device.memory_total)

    def nvmlDeviceGetComputeRunningProcesses(self, device: FakeDevice) -> Any:  # noqa: N802
        self._call()
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in device.holders.items()]

    def nvmlEventSetWait_v2(self, events: Any, milliseconds: int) -> Any:  # noqa: N802
        self._call()
        if not self.errors:
            raise NvmlError("Timeout")
        device, number = self.errors.pop(0)
        return SimpleNamespace(device=device, eventData=number)


@contextlib.contextmanager
def installed(nvml: FakeNvml) -> Iterator[FakeNvml]:
    """Puts it where ``import pynvml`` finds it; whoever waits for it goes on at the end."""
    before = sys.modules.get("pynvml")
    sys.modules["pynvml"] = nvml  # type: ignore[assignment]
    try:
        yield nvml
    finally:
        nvml.hangs.set()
        if before is None:
            del sys.modules["pynvml"]
        else:
            sys.modules["pynvml"] = before
