"""From readings to the row of a training: what `docs/system.md` lists, and what is left of it at the end.

Decisions only: the readings are made by others, and the time is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from daemon.observe.gpu import Device, chosen
from daemon.observe.processes import Usage

PREFIX = "system/"


class Reading(NamedTuple):
    """What was seen at one moment.

    Attributes:
        at: A clock that only goes forward, in seconds.
        usage: Of the training's processes. `pids`: which they are.
        machine, cgroup: Names to values, as `daemon.observe.machine` gives them.
        devices: All GPUs.
        visible: The training's CUDA_VISIBLE_DEVICES; None: unset.
    """

    at: float
    usage: Usage
    pids: Sequence[int]
    machine: Mapping[str, float]
    cgroup: Mapping[str, float]
    devices: Sequence[Device]
    visible: str | None
    memory_total: int


class Course:
    """One training's samples, of which each needs the one before: rates, energy, peaks.

    Attributes:
        count: Samples so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._before: Reading | None = None
        self._cpu_base = 0.0
        self._io_base: dict[str, int] = {}
        self._energy = 0.0
        self._gpu_seconds = 0.0
        self._cpu_seconds = 0.0
        self._memory_peak = 0
        self._gpu_memory_peak = 0

    def row(self, reading: Reading) -> dict[str, float]:
        """The row of this reading. The first one has no rates."""
        before, self._before = self._before, reading
        elapsed = reading.at - before.at if before is not None else 0.0
        row = self._of_processes(reading, before.usage if before is not None else None, elapsed)
        row |= {f"machine/{name}": value for name, value in reading.machine.items()}
        row |= {f"cgroup/{name}": value for name, value in reading.cgroup.items()}
        row |= self._of_gpus(reading, before, elapsed)
        self.count += 1
        return {PREFIX + name: value for name, value in row.items()}

    def _of_processes(self, reading: Reading, before: Usage | None, elapsed: float) -> dict[str, float]:
        usage = reading.usage
        self._memory_peak = max(self._memory_peak, usage.memory_bytes)
        row: dict[str, float] = {
            "memory_rss": usage.memory_bytes,
            "threads": usage.threads,
            "processes": usage.processes,
        }
        if reading.memory_total:
            row["memory_percent"] = 100 * usage.memory_bytes / reading.memory_total
        if usage.open_files is not None:
            row["open_files"] = usage.open_files
        if before is not None and elapsed > 0:
            # A child that outlives its parent leaves the family, and takes its share of the sum along.
            used = max(0.0, usage.cpu_seconds - before.cpu_seconds)
            self._cpu_seconds += used
            row["cpu"] = 100 * used / elapsed
        for name, now, then in (
            ("io_read", usage.read_bytes, before.read_bytes if before is not None else None),
            ("io_write", usage.written_bytes, before.written_bytes if before is not None else None),
        ):
            if now is not None:
                row[f"{name}_bytes"] = now
                if then is not None and elapsed > 0:
                    row[f"{name}_rate"] = max(0, now - then) / elapsed
        return row

    def _of_gpus(self, reading: Reading, before: Reading | None, elapsed: float) -> dict[str, float]:
        row: dict[str, float] = {}
        earlier = {device.uuid: device.energy_joules for device in before.devices} if before is not None else {}
        members, total = set(reading.pids), 0
        for device in chosen(reading.devices, reading.visible, reading.pids):
            row |= {
                f"gpu.{device.number}.{name}": value for name, value in device.values.items() if name != "energy_joules"
            }
            own = [memory for pid, memory in device.memory_of.items() if pid in members]
            row[f"gpu.{device.number}.process_memory"] = sum(own)
            total += sum(own)
            if own:
                self._gpu_seconds += elapsed
            then = earlier.get(device.uuid)
            if device.energy_joules is not None and then is not None:
                # The counter begins again with the driver.
                self._energy += max(0.0, device.energy_joules - then)
        self._gpu_memory_peak = max(self._gpu_memory_peak, total)
        if any(device.energy_joules is not None for device in reading.devices) and row:
            row["gpu_energy_joules"] = self._energy
        return row

    def summary(self) -> dict[str, Any]:
        """What is left of all samples: for the stream's facts (docs/system.md#summary)."""
        told: dict[str, Any] = {
            "samples": self.count,
            "cpu_seconds": round(self._cpu_seconds, 3),
            "memory_rss_max": self._memory_peak,
        }
        if self._gpu_seconds or self._energy:
            told |= {
                "gpu_hours": round(self._gpu_seconds / 3600, 6),
                "gpu_energy_joules": round(self._energy, 3),
                "gpu_memory_max": self._gpu_memory_peak,
            }
        return told


def next_sample(now: float, period: float, phase: float) -> float:
    """When the next sample is due: hosts that began together do not write to a shared disk together.

    Args:
        phase: Of this host, 0 to 1.
    """
    shift = phase * period
    return (now - shift) // period * period + period + shift


def phase_of(host: str) -> float:
    """0 to 1, the same for a host every time."""
    import zlib

    return zlib.crc32(host.encode("utf-8", "surrogatepass")) / 2**32


def lowest_rank(ranks: Iterable[int | None]) -> int | None:
    """The lowest rank that was told."""
    return min((rank for rank in ranks if rank is not None), default=None)
