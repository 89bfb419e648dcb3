"""daemon.observe: what processes, the machine and GPUs tell, and the rows that are made of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from daemon.observe import gpu, machine, processes
from daemon.observe.gpu import Device, Gpus, chosen
from daemon.observe.processes import Process, Usage
from daemon.observe.sampling import Course, Reading, next_sample, phase_of
from sdk.errors import install_hint
from tests.nvml import FakeNvml, installed
from tests.serving import until

NOTHING = Usage(1, 1, 0.0, 0, None, None, None)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits until its stdin is closed."""
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


# -- processes


def test_a_process_is_what_psutil_says(child: subprocess.Popen[bytes]) -> None:
    """Parent, threads, start and memory of one look at /proc."""
    found, other = processes.read_process(child.pid), psutil.Process(child.pid)
    assert found is not None
    assert (found.parent, found.threads) == (os.getpid(), other.num_threads())
    assert abs(processes.started_at(found) - other.create_time()) < 2
    assert found.memory_bytes <= psutil.virtual_memory().total
    assert processes.read_process(2**22 + 1) is None, "no such pid can be"


def test_a_family_has_its_children_and_no_strangers(child: subprocess.Popen[bytes]) -> None:
    """Children count, also those that were exec'd; a pid that another process has by now does not."""
    table = processes.read_processes()
    own = table[os.getpid()].started
    assert {os.getpid(), child.pid} <= {p.pid for p in processes.family(table, {os.getpid(): own})}
    assert processes.family(table, {os.getpid(): own + 1}) == []
    assert [p.pid for p in processes.family(table, {child.pid: table[child.pid].started})] == [child.pid]


def test_a_family_that_claims_to_be_its_own_parent_ends() -> None:
    """Pids that are told while they change hands may make a ring."""
    table = {1: Process(1, 2, 5, 0.0, 1, 0), 2: Process(2, 1, 6, 0.0, 1, 0)}
    assert len(processes.family(table, {1: 5})) == 2


def test_cpu_time_of_ended_children_stays() -> None:
    """What a child used is counted in its parent after it was waited for, so that the sum only grows."""
    before = processes.read_process(os.getpid())
    code = "import time\nwhile time.process_time() < 0.05: pass"
    subprocess.run([sys.executable, "-S", "-c", code], check=True)
    after = processes.read_process(os.getpid())
    assert before is not None
    assert after is not None
    assert after.cpu_seconds - before.cpu_seconds > 0.025  # of 0.05, in ticks of 0.01


def test_usage_is_a_sum(child: subprocess.Popen[bytes]) -> None:
    """Of all members; what may not be known is None, not 0."""
    table = processes.read_processes()
    both = [table[os.getpid()], table[child.pid]]
    used = processes.usage(both)
    assert used.processes == 2
    assert used.memory_bytes == sum(p.memory_bytes for p in both)
    assert used.open_files is not None
    assert used.open_files >= 4
    gone = Process(2**22 + 1, 1, 1, 0.5, 1, 0)
    assert processes.usage([gone]) == Usage(1, 1, 0.5, 0, None, None, None)


def test_a_name_with_parentheses_and_spaces(tmp_path: Path) -> None:
    """The fields of a process are found behind its name, whatever that is."""
    program = tmp_path / "a) R 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "600"]) as process:
        found = until(lambda: processes.read_process(process.pid))
        assert found.parent == os.getpid()
        process.kill()


# -- machine


def test_the_machine_tells_rates_from_the_second_reading_on(tmp_path: Path) -> None:
    """Percentages are of the whole; a rate needs two readings."""
    found = machine.Machine(str(tmp_path))
    first, second = found.read(10.0), found.read(12.0)
    assert "network_sent_rate" not in first
    assert second["network_sent_rate"] >= 0
    assert 0 <= second.get("cpu", 0) <= 100
    assert first["memory_used"] + first["memory_available"] == psutil.virtual_memory().total
    assert first["disk_free"] > 0
    assert set(first) <= set(second)


def test_a_description_of_the_machine_is_plain() -> None:
    """Host, system, processor and memory, and no note where there is no GPU to speak of."""
    with installed(FakeNvml(devices=0)) as nvml:
        nvml.no_driver = True
        told = machine.describe(Gpus())
    assert told["cpu_threads"] == os.cpu_count()
    assert told["cpu"]
    assert told["memory_bytes"] == psutil.virtual_memory().total


def test_the_innermost_limit_of_memory_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cgroup without a limit is passed over for the one around it; without any there is nothing to tell."""
    inner = tmp_path / "job" / "step"
    inner.mkdir(parents=True)
    monkeypatch.setattr(machine, "_CGROUPS", str(tmp_path))
    monkeypatch.setattr(machine, "_cgroup", lambda pid: str(inner))
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("100\n")
    assert machine.cgroup_memory(1) == {}
    (tmp_path / "job" / "memory.max").write_text("5000\n")
    (tmp_path / "job" / "memory.current").write_text("300\n")
    assert machine.cgroup_memory(1) == {"memory_used": 300, "memory_limit": 5000}
    (tmp_path / "job" / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert machine.cgroup_memory(1)["oom_kills"] == 2


def test_cgroups_of_version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's own one says what version 2 does, under other names; a number near 2**63 is no limit."""
    monkeypatch.setattr(machine, "_cgroup", lambda pid: None)
    monkeypatch.setattr(machine, "_old_cgroup", lambda pid: str(tmp_path))
    assert machine.memory_events(1) is None
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    (tmp_path / "memory.usage_in_bytes").write_text("300\n")
    (tmp_path / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert machine.cgroup_memory(1) == {}
    (tmp_path / "memory.limit_in_bytes").write_text("5000\n")
    assert machine.cgroup_memory(1) == {"memory_used": 300, "memory_limit": 5000, "oom_kills": 3}
    assert machine.memory_events(1) == str(tmp_path / "memory.oom_control")


# -- GPUs


def test_what_a_gpu_tells() -> None:
    """All values with their units; one that it does not support is left out, and an Xid comes once."""
    with installed(FakeNvml(devices=2)) as nvml:
        nvml.devices[0].holders = {77: 3 << 30, 78: None}
        nvml.devices[1].power = nvml.devices[1].energy = None
        gpus = Gpus()
        nvml.errors.append((nvml.devices[1], 79))
        first, second = gpus.read()
        assert first.values == {
            "utilization": 90, "memory_utilization": 40, "memory_used": 8 << 30, "memory_total": 80 << 30, "temperature": 61,
            "power_watts": 350.0, "power_limit_watts": 700.0, "clock_sm": 1755, "clock_memory": 2619, "energy_joules": 1000.0,
        }  # fmt: skip
        assert first.memory_of == {77: 3 << 30, 78: 0}
        assert second.energy_joules is None
        assert second.values["xid"] == 79
        assert "power_watts" not in second.values
        assert "xid" not in gpus.read()[1].values
        assert gpus.describe()["gpus"][1] == {
            "index": 1, "uuid": "GPU-00000001-0000", "name": "NVIDIA Fake 80GB", "memory_bytes": 80 << 30,
        }  # fmt: skip
        assert nvml.threads == {"stepd-gpu"}


def test_a_driver_that_hangs_is_left_alone_until_it_answers() -> None:
    """The caller waits once, then not again; the GPUs come back when the call does."""
    with installed(FakeNvml()) as nvml:
        gpus = Gpus(limit_seconds=0.05)
        assert len(gpus.read()) == 1
        nvml.hangs.clear()
        assert gpus.read() == []
        assert "has not answered for 0.05 s" in gpus.note
        gpus._limit = 30.0
        assert gpus.read() == [], "it does not wait behind the call that hangs"
        assert "gpu_note" in gpus.describe()
        nvml.hangs.set()
        assert until(gpus.read)[0].number == 0
        assert gpus.note == ""


def test_a_driver_that_fails_is_opened_again() -> None:
    """A device that fell off the bus, or a driver that was loaded anew, ends nothing."""
    with installed(FakeNvml()) as nvml:
        gpus = Gpus()
        gpus.read()
        nvml.devices[0].utilization = None  # type: ignore[assignment]
        nvml.nvmlDeviceGetMemoryInfo = None  # type: ignore[method-assign, assignment]
        assert gpus.read() == []
        assert "TypeError" in gpus.note
        del nvml.nvmlDeviceGetMemoryInfo
        assert len(gpus.read()) == 1
        assert gpus.note == ""


def test_what_cannot_be_sampled_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """An NVIDIA driver without the library, GPUs that are split, accelerators of others; without any of them nothing."""
    monkeypatch.setattr(gpu, "has_nvidia", lambda: True)
    assert Gpus(module="no_such_module_of_nvidia").describe() == {
        "gpu_note": f"nvidia-ml-py is not installed. Try: {install_hint('nvidia-ml-py')}"
    }
    with installed(FakeNvml()) as nvml:
        nvml.devices[0].mig = True
        assert "MIG" in Gpus().describe()["gpu_note"]
    monkeypatch.setattr(gpu, "has_nvidia", lambda: False)
    monkeypatch.setattr(gpu.os.path, "exists", lambda path: path == "/dev/kfd")
    assert "AMD" in Gpus(module="no_such_module_of_nvidia").describe()["gpu_note"]
    monkeypatch.setattr(gpu.os.path, "exists", lambda path: False)
    assert Gpus(module="no_such_module_of_nvidia").describe() == {}


def device(number: int, **memory_of: int) -> Device:
    holders = {int(pid[1:]): size for pid, size in memory_of.items()}
    return Device(number, f"GPU-{number}abc", {"utilization": 5.0}, holders, 100.0)


@pytest.mark.parametrize(
    ("visible", "numbers"),
    [
        (None, [0, 1, 2]),
        ("1", [1]),
        (" 2, 0", [0, 2]),
        ("GPU-1", [1]),
        ("0,7,1", [0]),
        ("", []),
        ("-1", []),
        ("MIG-1", []),
    ],
)
def test_the_devices_of_a_training(visible: str | None, numbers: list[int]) -> None:
    """Those that CUDA_VISIBLE_DEVICES names up to the first that is none, as CUDA reads it; unset: all."""
    assert [d.number for d in chosen([device(0), device(1), device(2)], visible, [])] == numbers


def test_a_device_on_which_the_training_is_belongs_to_it() -> None:
    """Whatever the variable said when the process was started."""
    assert [d.number for d in chosen([device(0), device(1, p7=5)], "0", [7])] == [0, 1]


# -- rows


def reading(at: float, used: Usage, devices: list[Device] | None = None, pids: tuple[int, ...] = (7,)) -> Reading:
    return Reading(at, used, pids, {"load1": 0.5}, {"memory_used": 5}, devices or [], None, 1000)


def test_a_row_has_rates_from_the_second_sample_on() -> None:
    """CPU is percent of one core, so two busy ones are 200; what shrinks counts as 0."""
    course = Course()
    first = course.row(reading(10.0, Usage(2, 5, 3.0, 100, 1000, 50, 9)))
    assert first == {
        "system/memory_rss": 100, "system/memory_percent": 10.0, "system/threads": 5, "system/processes": 2,
        "system/open_files": 9, "system/io_read_bytes": 1000, "system/io_write_bytes": 50, "system/machine/load1": 0.5,
        "system/cgroup/memory_used": 5,
    }  # fmt: skip
    second = course.row(reading(12.0, Usage(2, 5, 7.0, 80, 3000, 40, 9)))
    assert second["system/cpu"] == 200.0
    assert second["system/io_read_rate"] == 1000.0
    assert second["system/io_write_rate"] == 0
    assert course.row(reading(14.0, NOTHING))["system/cpu"] == 0.0
    assert course.summary() == {"samples": 3, "cpu_seconds": 4.0, "memory_rss_max": 100}


def test_energy_is_summed_over_the_devices_of_the_training() -> None:
    """From the counters of the devices; one that begins again counts from there. Hours are of those that it is on."""
    course = Course()
    for at, energies in ((0.0, (100.0, 50.0)), (3600.0, (700.0, 80.0)), (7200.0, (10.0, 90.0))):
        devices = [
            Device(
                number,
                f"GPU-{number}",
                {"energy_joules": energy, "power_watts": 2.0},
                {7: 30} if not number else {},
                energy,
            )
            for number, energy in enumerate(energies)
        ]
        row = course.row(reading(at, NOTHING, devices))
    assert row["system/gpu_energy_joules"] == 600 + 30 + 10
    assert row["system/gpu.0.process_memory"] == 30
    assert row["system/gpu.1.power_watts"] == 2.0
    assert "system/gpu.0.energy_joules" not in row
    told = course.summary()
    assert (told["gpu_hours"], told["gpu_energy_joules"], told["gpu_memory_max"]) == (2.0, 640.0, 30)


def test_hosts_sample_at_different_moments() -> None:
    """A host keeps its moment within the period, whenever it began; the next one is always ahead."""
    phase = phase_of("node-1")
    due = next_sample(1003.0, 10.0, phase)
    assert 1003.0 < due <= 1013.0
    assert next_sample(due, 10.0, phase) == pytest.approx(due + 10)
    assert abs(phase - phase_of("node-2")) > 0.001


def test_the_page_lists_every_key(tmp_path: Path) -> None:
    """Each key that a sample may have stands in docs/system.md, and each one there can be."""
    found = machine.Machine(str(tmp_path))
    found.read(10.0)
    values = {**found.read(12.0), "disk_read_rate": 0.0, "disk_write_rate": 0.0, "cpu": 1.0}
    used = Usage(2, 5, 3.0, 100, 1000, 50, 9)
    cgroup = {"memory_used": 1, "memory_limit": 2, "oom_kills": 0}
    with installed(FakeNvml()) as nvml:
        gpus = Gpus()
        gpus.read()
        nvml.errors.append((nvml.devices[0], 79))
        devices = gpus.read()
    course = Course()
    for at in (10.0, 12.0):
        row = course.row(Reading(at, used, (7,), values, cgroup, devices, None, 1000))
    made = {key.replace("gpu.0.", "gpu.N.") for key in row}
    text = (Path(__file__).parents[2] / "docs" / "system.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `system/")]
    assert made == set(re.findall(r"`(system/[^`]+)`", " ".join(rows)))
