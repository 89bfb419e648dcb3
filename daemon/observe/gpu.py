"""NVIDIA's GPUs through NVML (``nvidia-ml-py``, extra `gpu`), from one thread, with a time limit.

A driver that has lost a device can hold a call for minutes, or for ever. So every call is made in a thread of its own, and who
asks waits for it a few seconds at most: then the GPUs are said to be unavailable, and everything else is sampled on. When the
call does come back, so do the GPUs.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from sdk.errors import install_hint

LIMIT_SECONDS = 5.0
_MISSING = f"nvidia-ml-py is not installed. Try: {install_hint('nvidia-ml-py')}"
# What stands for a value that a device does not tell: NVML_VALUE_NOT_AVAILABLE, as unsigned and as signed.
_UNKNOWN = frozenset({None, 2**64 - 1, 2**32 - 1, -1})


class Device(NamedTuple):
    """One GPU now.

    Attributes:
        number: Its index at NVML, which goes by the bus; it stands in its keys.
        values: Name of a key (docs/system.md) to its value; only what the device tells.
        memory_of: pid -> bytes of its memory that the process holds.
        energy_joules: Since the driver was loaded; None where the device does not count.
    """

    number: int
    uuid: str
    values: dict[str, float]
    memory_of: dict[int, int]
    energy_joules: float | None


class Gpus:
    """The GPUs of this machine.

    Attributes:
        note: Why there is nothing to tell of them; "" when all is well. For people.
    """

    def __init__(self, module: str = "pynvml", limit_seconds: float = LIMIT_SECONDS) -> None:
        self._module = module
        self._limit = limit_seconds
        self._asked: queue.SimpleQueue[tuple[Callable[[], Any], list[Any], threading.Event]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._late: threading.Event | None = None
        self._handles: list[tuple[int, str, Any]] = []
        self._events: Any = None
        self._nvml: Any = None
        self.note = ""

    def read(self) -> list[Device]:
        """All of them now; [] where there are none, or they do not answer. Waits `LIMIT_SECONDS` at most."""
        found: list[Device] | None = self._within_limit(self._read)
        return found or []

    def describe(self) -> dict[str, Any]:
        """What they are, and the driver: for the facts of a run. Waits as `read` does."""
        told: dict[str, Any] = self._within_limit(self._describe) or {}
        note = self.note or other_vendors()
        return {**told, **({"gpu_note": note} if note else {})}

    def _within_limit(self, call: Callable[[], Any]) -> Any:
        if self._late is not None:
            if not self._late.is_set():
                return None  # an earlier call is still there; another one would only wait behind it
            self._late = None
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="stepd-gpu", daemon=True)
            self._thread.start()
        result: list[Any] = []
        done = threading.Event()
        self._asked.put((call, result, done))
        if not done.wait(self._limit):
            self._late = done
            self.note = f"the NVIDIA driver has not answered for {self._limit:g} s; GPUs are not sampled until it does"
            return None
        return result[0] if result else None

    def _serve(self) -> None:
        while True:
            call, result, done = self._asked.get()
            try:
                if self._open():
                    result.append(call())
                    self.note = ""
            except Exception as error:  # a driver that was unloaded, a device that fell off the bus
                self.note = f"NVML failed: {type(error).__name__}: {error}"
                self._nvml = None
            finally:
                done.set()

    def _open(self) -> bool:
        """Loads the library once; whether there is one, and a driver."""
        if self._nvml is not None:
            return True
        try:
            nvml: Any = importlib.import_module(self._module)
        except Exception:
            self.note = _MISSING if has_nvidia() else ""
            return False
        try:
            nvml.nvmlInit()
        except Exception as error:
            self.note = f"NVML cannot be used: {error}" if has_nvidia() else ""
            return False
        self._handles = []
        for index in range(nvml.nvmlDeviceGetCount()):
            with contextlib.suppress(nvml.NVMLError):  # one lost device does not hide the others
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                self._handles.append((index, _text(nvml.nvmlDeviceGetUUID(handle)), handle))
        self._nvml = nvml
        self._events = None
        with contextlib.suppress(Exception):
            self._events = self._watch_errors()
        return True

    def _watch_errors(self) -> Any:
        nvml = self._nvml
        events = nvml.nvmlEventSetCreate()
        for _, _, handle in self._handles:
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
        return events

    def _read(self) -> list[Device]:
        errors = self._take_errors()
        return [self._read_one(index, uuid, handle, errors) for index, uuid, handle in self._handles]

    def _take_errors(self) -> dict[str, int]:
        """UUID -> the last Xid since the last look."""
        found: dict[str, int] = {}
        for _ in range(100 if self._events is not None else 0):
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._events, 0)
                found[_text(self._nvml.nvmlDeviceGetUUID(event.device))] = int(event.eventData)
            except Exception:  # NVMLError_Timeout: there is none, or no more
                break
        return found

    def _read_one(self, index: int, uuid: str, handle: Any, errors: dict[str, int]) -> Device:
        nvml = self._nvml

        def ask(name: str, *arguments: Any) -> Any:
            try:
                found = getattr(nvml, name)(handle, *arguments)
            except (nvml.NVMLError, AttributeError):  # not supported by this device or this driver
                return None
            return None if isinstance(found, (int, float)) and found in _UNKNOWN else found

        rates, memory = ask("nvmlDeviceGetUtilizationRates"), ask("nvmlDeviceGetMemoryInfo")
        power, limit = ask("nvmlDeviceGetPowerUsage"), ask("nvmlDeviceGetEnforcedPowerLimit")
        energy = ask("nvmlDeviceGetTotalEnergyConsumption")
        values = {
            "utilization": rates.gpu if rates else None,
            "memory_utilization": rates.memory if rates else None,
            "memory_used": memory.used if memory else None,
            "memory_total": memory.total if memory else None,
            "temperature": ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            "power_watts": power / 1000 if power is not None else None,
            "power_limit_watts": limit / 1000 if limit is not None else None,
            "clock_sm": ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            "clock_memory": ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            "energy_joules": energy / 1000 if energy is not None else None,
            "xid": errors.get(uuid),
        }
        holders = {
            process.pid: process.usedGpuMemory if process.usedGpuMemory not in _UNKNOWN else 0
            for process in ask("nvmlDeviceGetComputeRunningProcesses") or ()
        }
        told = {name: value for name, value in values.items() if value is not None}
        return Device(index, uuid, told, holders, told.get("energy_joules"))

    def _describe(self) -> dict[str, Any]:
        nvml = self._nvml
        told: dict[str, Any] = {"gpu_driver": _text(nvml.nvmlSystemGetDriverVersion()), "gpus": []}
        split = 0
        for index, uuid, handle in self._handles:
            entry = {"index": index, "uuid": uuid, "name": _text(nvml.nvmlDeviceGetName(handle))}
            with contextlib.suppress(nvml.NVMLError):
                entry["memory_bytes"] = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
            with contextlib.suppress(nvml.NVMLError, AttributeError, TypeError):
                split += nvml.nvmlDeviceGetMigMode(handle)[0] == 1
            told["gpus"].append(entry)
        if split:
            told["gpu_note"] = f"{split} of the GPUs are split (MIG): their parts are not told apart"
        return told


def chosen(devices: Iterable[Device], visible: str | None, pids: Iterable[int]) -> list[Device]:
    """The devices of a training: those that its CUDA_VISIBLE_DEVICES names, and those on which its processes are.

    Args:
        visible: The variable; None: unset, all devices. As CUDA does, what follows the first entry that names none is ignored.
    """
    devices, members = list(devices), set(pids)
    wanted = {device.uuid for device in devices if members & device.memory_of.keys()}
    if visible is None:
        return devices
    for entry in visible.split(","):
        entry = entry.strip()
        found = [
            device.uuid
            for device in devices
            if (entry.isdecimal() and device.number == int(entry))
            or (entry[:4] == "GPU-" and device.uuid.startswith(entry))
        ]
        if not found:
            break
        wanted.update(found)
    return [device for device in devices if device.uuid in wanted]


def has_nvidia() -> bool:
    """Whether this machine has an NVIDIA driver, as far as its devices tell."""
    return os.path.exists("/dev/nvidiactl") or os.path.exists("/proc/driver/nvidia/version")


def other_vendors() -> str:
    """What is said of accelerators of others, which are not sampled; "" where there are none."""
    seen = []
    if os.path.exists("/dev/kfd"):
        seen.append("AMD")
    if any(os.path.exists(f"/dev/accel{number}") or os.path.exists(f"/dev/vfio/{number}") for number in range(2)):
        seen.append("an accelerator that is no GPU (a TPU?)")
    return f"{' and '.join(seen)}: seen, but only NVIDIA's GPUs are sampled" if seen else ""


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
