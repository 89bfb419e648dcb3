"""What samples of the system are called by W&B and by us (docs/system.md), both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MIB = 1 << 20
PREFIX = "system/"
# Ours -> W&B's name, and what a value of ours is divided by.
_NAMES = {
    "cpu": ("proc.cpu", 1), "memory_rss": ("proc.memory.rssMB", _MIB), "memory_percent": ("proc.memory.percent", 1),
    "threads": ("proc.cpu.threads", 1), "machine/cpu": ("cpu", 1), "machine/memory_percent": ("memory_percent", 1),
    "machine/memory_available": ("proc.memory.availableMB", _MIB), "machine/disk_percent": ("disk./.usagePercent", 1),
}  # fmt: skip
_GPU = {
    "utilization": "gpu", "memory_utilization": "memory", "memory_used": "memoryAllocatedBytes", "temperature": "temp",
    "power_watts": "powerWatts", "power_limit_watts": "enforcedPowerLimitWatts", "clock_sm": "smClock", "clock_memory": "memoryClock",
}  # fmt: skip
_BACK = {name: (ours, factor) for ours, (name, factor) in _NAMES.items()}
_GPU_BACK = {name: ours for ours, name in _GPU.items()}


def to_wandb(values: Mapping[str, Any]) -> dict[str, float]:
    """A sample of ours under W&B's names; what W&B has no name for under ours, with dots."""
    found = {}
    for key, value in _numbers(values):
        name = key.removeprefix(PREFIX)
        if name == key:
            continue
        known, factor = _NAMES.get(name, (None, 1))
        if known is None:
            known = _of_gpu(name, _GPU) or name.replace("/", ".")
        found[known] = value / factor if factor != 1 else value
    return found


def from_wandb(values: Mapping[str, Any]) -> dict[str, float]:
    """A sample of W&B's under our names; what we have no name for under W&B's."""
    found = {}
    for key, value in _numbers(values):
        name = key.removeprefix("system.")
        known, factor = _BACK.get(name, (None, 1))
        found[PREFIX + (known or _of_gpu(name, _GPU_BACK) or name)] = value * factor if factor != 1 else value
    return found


def _of_gpu(name: str, names: Mapping[str, str]) -> str | None:
    """A name such as "gpu.0.temp" with what stands last under its other name."""
    kind, _, rest = name.partition(".")
    number, _, what = rest.partition(".")
    return f"gpu.{number}.{names[what]}" if kind == "gpu" and number.isdecimal() and what in names else None


def _numbers(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [
        (key, value) for key, value in values.items() if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
