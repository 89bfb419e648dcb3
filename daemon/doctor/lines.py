"""The lines that mend what was found, as the place where we run wants them: docker, compose, Kubernetes, Slurm, a shell.

They are those of docs/containers.md, docs/kubernetes.md and docs/slurm.md, where each is explained.
"""

from __future__ import annotations

import shlex

from daemon.doctor.machine import Machine


def shared_memory(machine: Machine, size: str = "1g") -> tuple[str, ...]:
    """A larger /dev/shm."""
    kind = machine.container
    if kind == "kubernetes":
        return (
            "# in the pod, and for each container that logs:",
            "volumes: [{ name: shm, emptyDir: { medium: Memory, sizeLimit: 1Gi } }]",
            "volumeMounts: [{ name: shm, mountPath: /dev/shm }]",
        )
    if kind == "apptainer":
        return (f"sudo mount -o remount,size={size} /dev/shm   # on the host, whose it is",)
    if kind in ("", "systemd-nspawn", "lxc", "wsl"):
        return (f"sudo mount -o remount,size={size} {shlex.quote(machine.shared)}",)
    program = "podman" if kind == "podman" else "docker"
    return (f"{program} run --shm-size={size} …   # or --ipc=host", f"shm_size: {size}b   # compose, beside image:")


def volume(machine: Machine) -> tuple[str, ...]:
    """A store that outlives the container."""
    kind = machine.container
    if kind == "kubernetes":
        return (
            "# in the container, with a volume `runs` of the pod (a claim, or emptyDir and STEPD_SYNC_TO):",
            "volumeMounts: [{ name: runs, mountPath: /runs }]",
            "env: [{ name: STEPD_DIR, value: /runs }]",
        )
    if kind == "apptainer":
        return ("apptainer exec --bind /a/directory:/runs --env STEPD_DIR=/runs …",)
    if not kind:
        return ("export STEPD_DIR=/a/directory/on/a/disk",)
    program = "podman" if kind == "podman" else "docker"
    return (
        f"{program} run -v runs:/runs -e STEPD_DIR=/runs …",
        "volumes: [runs:/runs]   # compose; environment: { STEPD_DIR: /runs }",
    )


def node_disk(machine: Machine) -> tuple[str, ...]:
    """Each node logs to a disk of its own, and carries that to where the store is now."""
    store = shlex.quote(machine.store)
    if machine.in_slurm:
        return (
            "# in the job script (docs/slurm.md), and the last line once on each node:",
            'export STEPD_DIR="${SLURM_TMPDIR:-/tmp}/stepd-$SLURM_JOB_ID"',
            f"export STEPD_SYNC_TO=stepd:{store}",
            "srun --ntasks-per-node=1 stepd sync --drain --timeout 120",
        )
    return (f"export STEPD_DIR=/a/local/disk STEPD_SYNC_TO=stepd:{store}",)


def limit(machine: Machine, name: str, letter: str, number: int) -> tuple[str, ...]:
    """A higher limit of the shell, which processes inherit."""
    kind = machine.container
    if kind in ("docker", "podman") and name in ("nofile", "nproc"):
        return (f"{kind} run --ulimit {name}={number}:{number} …",)
    if machine.in_slurm:
        return (f"ulimit -{letter} {number}   # in the job script; or sbatch --propagate=NONE",)
    return (f"ulimit -{letter} {number}",)
