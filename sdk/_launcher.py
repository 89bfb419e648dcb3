"""Which process of which job this is, and what a project is called here: read from variables and directories only.

Launchers say it by environment variables. torchrun's come first, since torchrun runs inside SLURM steps and MPI jobs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

_RANKS = (
    # launcher, rank, local rank, world size, job id
    ("torchrun", "RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"),
    ("openmpi", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", "PMIX_NAMESPACE"),
    ("slurm", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_JOB_ID"),
    ("pmi", "PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE", "PMI_JOBID"),
    ("pmix", "PMIX_RANK", "PMIX_LOCAL_RANK", "PMIX_SIZE", "PMIX_NAMESPACE"),
)
_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")


class Launch(NamedTuple):
    """This process among those that were started together.

    Attributes:
        rank, local_rank, world_size: None without a launcher.
        job_id: The scheduler's or launcher's id of the job, or None. A job of one process has one too.
    """

    rank: int | None
    local_rank: int | None
    world_size: int | None
    job_id: str | None

    @property
    def is_parallel(self) -> bool:
        """Whether other processes of the same job log too."""
        return self.rank is not None and (self.world_size or 1) > 1

    @property
    def speaks(self) -> bool:
        """Whether this process may print what people need to read once per job."""
        return not self.rank

    def facts(self) -> dict[str, Any]:
        """What goes into the stream's first record."""
        return self._asdict()


def find_launch(environ: Mapping[str, str] = os.environ) -> Launch:
    """This process's place, from torchrun, Open MPI, SLURM, PMI and PMIx."""
    for launcher, rank, local_rank, world_size, job in _RANKS:
        number = _number(environ, rank)
        # Why: an interactive SLURM shell says rank 0 of all the tasks it may start, and is one process.
        interactive = launcher == "slurm" and environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
        if number is None or interactive:
            continue
        return Launch(number, _number(environ, local_rank), _number(environ, world_size), _job(environ, job))
    return Launch(None, None, None, _job(environ, ""))


def _job(environ: Mapping[str, str], variable: str) -> str | None:
    """The job's id: the launcher's own, else the scheduler's, else the address where its ranks meet."""
    for name in (variable, *_JOBS):
        text = environ.get(name, "")
        if text and text != "none":  # torchrun's default id
            return text
    address, port = environ.get("MASTER_ADDR"), environ.get("MASTER_PORT")
    return f"{address}-{port}" if variable and address and port else None


def _number(environ: Mapping[str, str], variable: str) -> int | None:
    text = environ.get(variable, "")
    return int(text) if text.isdecimal() else None


def default_project(directory: str | None = None) -> str:
    """The git repository's name, else the directory's, else "uncategorized"; always a name W&B would take."""
    if directory is None:
        try:
            directory = os.getcwd()
        except OSError:
            return "uncategorized"
    name = _repository(directory) or os.path.basename(directory)
    clean = "".join("-" if c in "/\\#?%:" or not c.isprintable() else c for c in name).strip()
    return clean[:128] or "uncategorized"


def _repository(directory: str) -> str | None:
    """The name of the directory at or above `directory` that git made, without running git."""
    while True:
        marker = os.path.join(directory, ".git")
        if os.path.isdir(marker):
            return os.path.basename(directory)
        if os.path.isfile(marker):
            return _main_repository(marker) or os.path.basename(directory)
        parent = os.path.dirname(directory)
        if parent == directory:
            return None
        directory = parent


def _main_repository(marker: str) -> str | None:
    """The repository that a worktree belongs to: its `.git` is a file naming `<repository>/.git/worktrees/<name>`."""
    try:
        with open(marker, encoding="utf-8", errors="replace") as file:
            text = file.read(4096)
    except OSError:
        return None
    head, found, _ = text.partition("/.git/worktrees/")
    return os.path.basename(head.removeprefix("gitdir:").strip()) or None if found else None
