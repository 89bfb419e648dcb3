"""docs/slurm.md: its job script, under a `srun` that starts tasks on pretended nodes, each with a disk and shared memory of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import sdk
from tests.end_to_end.world import until
from tests.pretended import EXAMPLES, ROOT, kill_daemons, programs

JOB = "4711"
NODES, TASKS = 2, 4


class Cluster:
    """What Slurm gives a job. `disks` are the nodes' own; a requeue gives others."""

    def __init__(self, root: Path, memory: Path) -> None:
        self.root, self.memory = root, memory
        self.shared = root / "shared"
        self.checkpoints = [root / f"checkpoint.{rank}.json" for rank in range(TASKS)]
        self.requeued = root / "requeued"
        found = programs(
            root / "bin",
            srun=f'exec {sys.executable} {ROOT}/tests/launchers/srun "$@"',
            scontrol=f'echo "$@" >> {self.requeued}',
            runuser='shift 3; exec "$@"',
        )
        self.environment = {
            **found, "SHARED": str(self.shared), "CHECKPOINT": str(root / "checkpoint.json"), "STEP_SECONDS": "0.002", "SAVE_EVERY": "10",
            "SLURM_SUBMIT_DIR": str(EXAMPLES), "SLURM_JOB_ID": JOB, "SLURM_JOB_NUM_NODES": str(NODES), "SLURM_NTASKS": str(TASKS),
            "SLURM_JOB_NAME": "digits", "SLURM_JOB_USER": "somebody",
        }  # fmt: skip

    def disk(self, attempt: int) -> Path:
        return self.root / f"disks{attempt}"

    def store(self, attempt: int, node: int) -> Path:
        return self.disk(attempt) / f"node{node}" / f"stepd-{JOB}"

    def submit(self, steps: int, attempt: int = 0) -> subprocess.Popen[str]:
        """Runs the script as the first node does."""
        for node in range(NODES):
            (self.disk(attempt) / f"node{node}").mkdir(parents=True)
            (self.memory / f"{attempt}" / f"node{node}").mkdir(parents=True)
        more = {
            "SLURM_TMPDIR": str(self.disk(attempt)), "NODES_MEMORY": str(self.memory / f"{attempt}"), "STEPS": str(steps),
            "SLURM_RESTART_COUNT": str(attempt),
        }  # fmt: skip
        line = ["bash", str(EXAMPLES / "slurm" / "train.sbatch")]
        return subprocess.Popen(
            line, env={**self.environment, **more}, text=True, start_new_session=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def steps(self) -> dict[int, list[int]]:
        """By rank, the steps that the store all nodes see holds."""
        run = sdk.open_store(str(self.shared)).run(f"digits-{JOB}")
        return {rank: [int(step) for step in run.series("loss", rank=rank).step] for rank in range(TASKS)}

    def all_log(self) -> bool:
        """Whether every rank has logged ten steps, as far as its node's disk says."""
        found = 0
        for node in range(NODES):
            with contextlib.suppress(sdk.Error):
                run = sdk.open_store(str(self.store(0, node))).run(f"digits-{JOB}")
                mains = [stream.id for stream in run.streams if stream.kind == "main"]
                found += sum(len(run.series("loss", stream=stream)) >= 10 for stream in mains)
        return found == TASKS and all(path.exists() for path in self.checkpoints)


@pytest.fixture(name="cluster")
def _cluster(tmp_path: Path) -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="stepd-test-", dir="/dev/shm") as memory:
        cluster = Cluster(tmp_path, Path(memory))
        try:
            yield cluster
        finally:
            kill_daemons(cluster.root)


def test_a_job_is_preempted_and_requeued(cluster: Cluster) -> None:
    """SIGTERM to all, then other nodes with empty disks: one run of four ranks, every step of every rank once, nothing left behind."""
    job = cluster.submit(100_000)
    until(cluster.all_log)
    os.killpg(job.pid, signal.SIGTERM)
    told, _ = job.communicate(timeout=60)
    assert job.returncode == 75, told
    assert cluster.requeued.read_text() == f"requeue {JOB}\n"
    first = cluster.steps()
    assert all(steps == list(range(len(steps))) and len(steps) > 1 for steps in first.values())
    run = sdk.open_store(str(cluster.shared)).run(f"digits-{JOB}")
    assert run.state == "preempted"

    begun = {rank: json.loads(path.read_text())["step"] for rank, path in enumerate(cluster.checkpoints)}
    assert begun == {rank: len(steps) for rank, steps in first.items()}
    end = min(begun.values()) + 30
    job = cluster.submit(end, attempt=1)
    told, _ = job.communicate(timeout=60)
    assert job.returncode == 0, told
    assert cluster.steps() == {rank: list(range(end)) for rank in range(TASKS)}
    run = sdk.open_store(str(cluster.shared)).run(f"digits-{JOB}")
    assert (run.state, run.gaps, run.damage) == ("finished", [], [])
    assert {stream.attempt for stream in run.streams if stream.kind == "main"} == {1, 2}


def test_the_epilog_brings_away_what_a_killed_job_left(cluster: Cluster) -> None:
    """A job that got SIGKILL has no last line: the node's epilog empties shared memory and disk, and frees the disk."""
    job = cluster.submit(100_000)
    until(cluster.all_log)
    os.killpg(job.pid, signal.SIGKILL)
    job.communicate(timeout=60)
    kill_daemons(cluster.root)
    for node in range(NODES):
        more = {
            "EPILOG_DISK": str(cluster.store(0, node).parent),
            "STEPD_SHARED_MEMORY_DIR": str(cluster.memory / "0" / f"node{node}"),
        }
        done = subprocess.run(
            ["bash", str(EXAMPLES / "slurm" / "epilog.sh")], env={**cluster.environment, **more}, capture_output=True,
            text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert not cluster.store(0, node).exists(), done.stdout + done.stderr
    for steps in cluster.steps().values():
        assert steps == list(range(len(steps)))
        assert len(steps) >= 10


def test_the_page_shows_lines_of_the_script() -> None:
    """What docs/slurm.md prints stands in the file that is run."""
    page = (ROOT / "docs" / "slurm.md").read_text(encoding="utf-8")
    script = (EXAMPLES / "slurm" / "train.sbatch").read_text(encoding="utf-8")
    shown = [line for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    assert len(shown) > 8
    assert [line for line in shown if line not in script] == []
