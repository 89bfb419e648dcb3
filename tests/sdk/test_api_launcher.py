from __future__ import annotations

from pathlib import Path

import pytest

from sdk._launcher import Launch, default_project, find_launch


@pytest.mark.parametrize(
    ("environ", "launch"),
    [
        ({}, Launch(None, None, None, None)),
        ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "j"}, Launch(3, 1, 8, "j")),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            Launch(0, None, 2, "a-1"),
        ),
        ({"RANK": "0", "SLURM_PROCID": "5", "SLURM_JOB_ID": "77", "WORLD_SIZE": "2"}, Launch(0, None, 2, "77")),
        ({"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "77"}, Launch(5, 1, 8, "77")),
        (
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "bash"},
            Launch(None, None, None, "77"),
        ),
        (
            {
                "OMPI_COMM_WORLD_RANK": "1",
                "OMPI_COMM_WORLD_LOCAL_RANK": "0",
                "OMPI_COMM_WORLD_SIZE": "2",
                "PMIX_NAMESPACE": "n",
            },
            Launch(1, 0, 2, "n"),
        ),
        ({"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "PBS_JOBID": "p"}, Launch(1, 1, 4, "p")),
        ({"RANK": "x", "LSB_JOBID": "l"}, Launch(None, None, None, "l")),
        ({"MASTER_ADDR": "a", "MASTER_PORT": "1"}, Launch(None, None, None, None)),
    ],
)
def test_launchers(environ: dict[str, str], launch: Launch) -> None:
    """Each launcher's variables; torchrun's come first; an interactive shell is one process."""
    assert find_launch(environ) == launch


def test_who_speaks() -> None:
    """Rank 0, and a process without a launcher."""
    assert Launch(None, None, None, None).speaks
    assert Launch(0, 0, 2, None).speaks
    assert not Launch(1, 0, 2, None).speaks
    assert Launch(1, 0, 2, None).is_parallel
    assert not Launch(0, 0, 1, None).is_parallel


def test_project_is_the_repository(tmp_path: Path) -> None:
    """The nearest directory upwards that git made."""
    (tmp_path / "repo" / ".git").mkdir(parents=True)
    (tmp_path / "repo" / "a" / "b").mkdir(parents=True)
    assert default_project(str(tmp_path / "repo" / "a" / "b")) == "repo"


def test_a_worktree_belongs_to_its_repository(tmp_path: Path) -> None:
    """Its `.git` is a file; a submodule's names no worktree, and is a repository of its own."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / ".git").write_text("gitdir: /home/me/repo/.git/worktrees/tree\n")
    assert default_project(str(tmp_path / "tree")) == "repo"
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".git").write_text("gitdir: ../.git/modules/sub\n")
    assert default_project(str(tmp_path / "sub")) == "sub"


def test_project_without_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory's name, made into one that W&B would take; "uncategorized" where there is none."""
    odd = tmp_path / "a:b#c"
    odd.mkdir()
    assert default_project(str(odd)) == "a-b-c"
    assert default_project("/") == "uncategorized"

    def gone() -> str:
        raise FileNotFoundError

    monkeypatch.setattr("os.getcwd", gone)
    assert default_project() == "uncategorized"
