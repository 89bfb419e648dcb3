"""What samples of the system are called by W&B and by us (docs/system.md), both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MIB, _GIB = 1 << 20, 1 << 30
PREFIX = "system/"
# Ours -> W&B's name, and what a value of ours is divided by.
_NAMES = {
    "cpu": ("proc.cpu", 1), "memory_rss": ("proc.memory.rssMB", _MIB), "memory_percent": ("proc.memory.percent", 1),
    "threads": ("proc.cpu.threads", 1), "machine/cpu": ("cpu", 1), "machine/memory_percent": ("memory_percent", 1),
    "machine/memory_available": ("proc.memory.availableMB", _MIB), "machine/disk_percent": ("disk./.usagePercent", 1),
    "machine/disk_used": ("disk./.usageGB", _GIB),
}  # fmt: skip
_GPU = {
    "utilization": "gpu", "memory_utilization": "memory", "memory_used": "memoryAllocatedBytes", "temperature": "temp",
    "power_watts": "powerWatts", "power_limit_watts": "enforcedPowerLimitWatts", "clock_sm": "smClock", "clock_memory": "memoryClock",
}  # fmt: skip
# What only one of the two has is W&B's name with dots, which these parts stand before here.
_PARTS = ("machine", "cgroup")
# Of W&B's names those of the training's own processes; every other one is of the machine, or of a GPU.
_OF_THE_TRAINING = ("proc.", "gpu.")
_WANDBS = ("disk.", "network.", "cpu.")
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
            known = _of_gpu(name, _GPU) or _with_dots(name)
        found[known] = value / factor if factor != 1 else value
    return found


def from_wandb(values: Mapping[str, Any]) -> dict[str, float]:
    """A sample of W&B's under our names; what we have no name for under W&B's, with "machine/" before what is no training's."""
    found = {}
    for key, value in _numbers(values):
        name = key.removeprefix("system.")
        known, factor = _BACK.get(name, (None, 1))
        ours = known or _of_gpu(name, _GPU_BACK) or _below_a_part(name)
        found[PREFIX + ours] = value * factor if factor != 1 else value
    return found


def _below_a_part(name: str) -> str:
    """W&B's name for what we have none for; its slashes, of paths of file systems, would be parts of ours."""
    plain = name.replace("./", ".").replace("/", ".").replace("..", ".")
    part, _, rest = plain.partition(".")
    if part in _PARTS and rest:
        return f"{part}/{rest}"
    return plain if name.startswith(_OF_THE_TRAINING) else f"machine/{plain}"


def _with_dots(name: str) -> str:
    """What W&B has no name for. What came from W&B ("machine/network.recv") gets the name back that it had there."""
    part, _, rest = name.partition("/")
    return rest if part == "machine" and rest.startswith(_WANDBS) else name.replace("/", ".")


def _of_gpu(name: str, names: Mapping[str, str]) -> str | None:
    """A name such as "gpu.0.temp" with what stands last under its other name."""
    kind, _, rest = name.partition(".")
    number, _, what = rest.partition(".")
    return f"gpu.{number}.{names[what]}" if kind == "gpu" and number.isdecimal() and what in names else None


def _numbers(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [
        (key, value)
        for key, value in values.items()
        if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63)
    ]
