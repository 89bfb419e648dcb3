"""What one daemon may choose for itself. Numbers that trainers must know too are `sdk.limits`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdk.budget import Budget
from sdk.limits import FREE_BYTES_MIN, KIB, MIB
from sdk.settings import parse_bytes


@dataclass(frozen=True)
class DaemonSettings:
    """Frozen at start; every field has a reason.

    Attributes:
        flush_bytes: A stream's waiting records are written as one block when they reach this: large enough that lz4 and
            the 88-byte header do not matter, small enough that a tight loop is stored within 5 ms.
        flush_commit_seconds: Committed rows wait at most this long: 5 blocks a second for a slow loop.
        flush_age_seconds: Pieces of open rows wait at most this long for one another, and are readable then.
        sync_seconds: How often dirty segments are forced to the disk. `sync_share_max`: and at most this share of the
            time, where the disk is slow.
        idle_seconds: Without a living trainer for so long, a daemon that nobody asked to stay leaves.
        drain_seconds: After SIGTERM it goes on serving living trainers for so long.
        liveness_seconds: How often the rings of known and unknown streams are looked at.
        pending_bytes_max: Bytes of all streams that wait while the disk refuses; beyond it nothing more is received.
        rewrite: Start a worker that makes columns of rows and files of raw values once their segments are sealed.
        observe: Start a worker that samples the processes of living trainers, the machine and its GPUs. A daemon by itself
            does (`observes`), a server inside another program does not.
        store_bytes_max, run_bytes_max, free_bytes_min: Budgets; `sdk.settings` explains them, `sdk.budget` what follows
            when one is reached.
    """

    flush_bytes: int = 256 * KIB
    flush_commit_seconds: float = 0.2
    flush_age_seconds: float = 1.0
    sync_seconds: float = 1.0
    sync_share_max: float = 0.2
    idle_seconds: float = 60.0
    drain_seconds: float = 25.0
    liveness_seconds: float = 1.0
    pending_bytes_max: int = 256 * MIB
    store_bytes_max: int = 0
    run_bytes_max: int = 0
    free_bytes_min: int = FREE_BYTES_MIN
    rewrite: bool = True
    observe: bool = False
    persistent: bool = False
    shared_memory_dir: str = "/dev/shm"

    @property
    def budget(self) -> Budget:
        return Budget(self.store_bytes_max, self.run_bytes_max, self.free_bytes_min)


def budgets_from(environ: Mapping[str, str]) -> dict[str, Any]:
    """The budgets that `STEPD_STORE_BYTES_MAX`, `STEPD_RUN_BYTES_MAX` and `STEPD_FREE_BYTES_MIN` set.

    Raises:
        ValueError: One of them is no number of bytes; it names the variable.
    """
    found = {}
    for name in Budget._fields:
        variable = f"STEPD_{name.upper()}"
        if environ.get(variable):
            try:
                found[name] = parse_bytes(environ[variable])
            except ValueError as error:
                raise ValueError(f"variable {variable}: {error}") from None
    return found


def observes(environ: Mapping[str, str]) -> bool:
    """Whether `STEPD_OBSERVE` lets us look at trainings from outside."""
    return environ.get("STEPD_OBSERVE", "").strip().lower() not in ("0", "false", "no", "off")
