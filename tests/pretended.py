"""Containers for tests where there are none: the commands of an image as processes here, with directories in the places of volumes.

What an example says of a container (command, variables, mounts) is taken as it is; only the paths of mounts lead elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sdk import platform
from sdk.transport import lock_path

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "docs" / "examples"
MEMORY = "/dev/shm"


def programs(directory: Path, **more: str) -> dict[str, str]:
    """Makes `python`, `stepd` and others there; an environment in which they are found and nothing of ours is set.

    Args:
        more: Name to what a shell does for it.
    """
    directory.mkdir(parents=True)
    python = sys.executable
    lines = {"python": f'{python} "$@"', "python3": f'{python} "$@"', "stepd": f'{python} -m daemon "$@"', **more}
    for name, line in lines.items():
        (directory / name).write_text(f"#!/bin/sh\n{'exec ' if name not in more else ''}{line}\n", encoding="utf-8")
        (directory / name).chmod(0o755)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("STEPD_", "SLURM_", "WANDB_")) and name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    return {
        **kept, "PATH": f"{directory}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "STEPD_OBSERVE": "0", "STEPD_SILENT": "1",
        "STEPD_SYNC_SECONDS": "1",
    }  # fmt: skip


class Container:
    """One container: a process in a session of its own."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], own: Mapping[str, str], mounts: Mapping[str, Path]
    ) -> None:
        """Starts it.

        Args:
            environment: As `programs` gives it. own: What the example sets.
            mounts: A path in the container to the directory that is there.
        """
        self._mounts = {**mounts, "/app/train.py": EXAMPLES / "train.py"}
        variables = {name: self.there(value) for name, value in own.items()}
        if MEMORY in mounts:
            variables["STEPD_SHARED_MEMORY_DIR"] = str(mounts[MEMORY])
        self.process = subprocess.Popen(
            [self.there(word) for word in command], env={**environment, **variables}, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def there(self, text: str) -> str:
        for place, directory in self._mounts.items():
            text = text.replace(place, str(directory))
        return text

    def stop(self) -> None:
        """SIGTERM to its first process, as every runtime does."""
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to all of them."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def wait(self, seconds: float = 60.0) -> tuple[int, str]:
        """Its exit code and what it printed."""
        told, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, told


def kill_daemons(root: Path) -> None:
    """What a container or a node takes with it: the daemons of all stores below `root`."""
    for found in root.rglob("store.json"):
        pid = platform.lock_owner(lock_path(str(found.parent)))
        if pid:
            os.kill(pid, signal.SIGKILL)
