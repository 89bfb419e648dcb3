from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.observe import git
from daemon.observe.git import DIFF_BYTES_MAX, Git, GitError, ask, describe


def run_git(directory: Path, *arguments: str) -> str:
    """Git as a user has it, with nothing of this machine's configuration."""
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(directory), "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null",
        **{f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }  # fmt: skip
    done = subprocess.run(
        ["git", *arguments], cwd=directory, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One commit on branch main, of one file."""
    root = tmp_path / "work"
    root.mkdir()
    run_git(root, "init", "-q", "-b", "main")
    (root / "train.py").write_text("a = 1\n")
    run_git(root, "add", ".")
    run_git(root, "commit", "-qm", "first")
    return root


def test_a_clean_repository(repository: Path) -> None:
    """Commit, branch and root, from a directory inside; nothing changed."""
    inside = repository / "deep" / "er"
    inside.mkdir(parents=True)
    facts, found = describe(str(inside))
    assert facts == {"root": str(repository), "commit": run_git(repository, "rev-parse", "HEAD"), "branch": "main"}
    assert found is not None and found.changes(facts["commit"]).patch == b"" and found.untracked() == []


def test_changes_are_a_patch_that_git_can_apply(repository: Path, tmp_path: Path) -> None:
    """Staged and unstaged ones, in whatever form the user likes diffs; files that git does not have are names only."""
    (repository / "staged.py").write_text("b = 2\n")
    run_git(repository, "add", "staged.py")
    (repository / "train.py").write_text("a = 3\n")
    (repository / "new ü.py").write_text("c = 4\n")
    for name, value in (("diff.noprefix", "true"), ("color.diff", "always"), ("diff.mnemonicPrefix", "true")):
        run_git(repository, "config", name, value)
    (repository / "inside").mkdir()
    found = Git(str(repository / "inside"))
    patch = found.changes(found.commit).patch
    assert found.untracked() == ["new ü.py"]
    other = tmp_path / "other"
    run_git(tmp_path, "clone", "-q", str(repository), str(other))
    (tmp_path / "diff.patch").write_bytes(patch)
    run_git(other, "apply", str(tmp_path / "diff.patch"))
    assert (other / "train.py").read_text() == "a = 3\n" and (other / "staged.py").read_text() == "b = 2\n"


def test_commits_that_nobody_else_has(repository: Path, tmp_path: Path) -> None:
    """Ahead of its upstream, the patch from there is what others need."""
    other = tmp_path / "other"
    run_git(tmp_path, "clone", "-q", str(repository), str(other))
    assert Git(str(other)).upstream is None
    base = run_git(other, "rev-parse", "HEAD")
    (other / "train.py").write_text("a = 5\n")
    run_git(other, "commit", "-qam", "mine")
    found = Git(str(other))
    assert found.upstream == base and found.changes(found.commit).patch == b""
    assert b"+a = 5" in found.changes(base).patch


def test_a_remote_without_its_password(repository: Path) -> None:
    """The branch's own remote, else origin, else the only one."""
    run_git(repository, "remote", "add", "fork", "https://me:s3cr3t@example.org/fork.git")
    assert Git(str(repository)).remote == "https://example.org/fork.git"
    run_git(repository, "remote", "add", "origin", "git@example.org:a/b.git")
    assert Git(str(repository)).remote == "git@example.org:a/b.git"
    run_git(repository, "config", "branch.main.remote", "fork")
    assert Git(str(repository)).remote == "https://example.org/fork.git"


def test_repositories_of_every_kind(repository: Path, tmp_path: Path) -> None:
    """A detached head, a worktree, a bare one, one without a commit, none, and a directory that is gone."""
    commit = run_git(repository, "rev-parse", "HEAD")
    worktree, bare, empty = tmp_path / "tree", tmp_path / "bare.git", tmp_path / "empty"
    run_git(repository, "worktree", "add", "-q", "--detach", str(worktree))
    assert describe(str(worktree))[0] == {"root": str(worktree), "commit": commit, "detached": True}
    run_git(tmp_path, "clone", "-q", "--bare", str(repository), str(bare))
    facts, found = describe(str(bare))
    assert facts["bare"] is True and facts["commit"] == commit and found is None
    empty.mkdir()
    run_git(empty, "init", "-q", "-b", "main")
    (empty / "x").write_text("x\n")
    run_git(empty, "add", "x")
    facts, found = describe(str(empty))
    assert facts == {"root": str(empty), "branch": "main"} and found is not None
    assert b"+x" in found.changes(None).patch
    assert describe(str(tmp_path)) == ({"why": "no repository"}, None)
    assert "cannot change to" in describe(str(tmp_path / "gone"))[0]["why"]


def test_no_git(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without it says so."""
    monkeypatch.setenv("PATH", "/nowhere")
    assert describe(str(repository)) == ({"why": "git is not installed"}, None)


def test_a_hostile_repository_starts_nothing(repository: Path, tmp_path: Path) -> None:
    """Whatever program its configuration, attributes and hooks name, for whatever git does here."""
    mark = tmp_path / "started"
    program = tmp_path / "evil"
    program.write_text(f"#!/bin/sh\necho $0 $@ >> {mark}\ncat\n")
    program.chmod(0o700)
    for name in (
        "core.fsmonitor", "core.pager", "core.editor", "core.sshCommand", "core.askPass", "core.alternateRefsCommand",
        "diff.external", "diff.evil.command", "diff.evil.textconv", "filter.evil.clean", "filter.evil.smudge",
        "filter.evil=x.y.process", "filter.evil=x.y.clean", "merge.evil.driver", "gpg.program", "credential.helper", "pager.diff",
        "alias.diff", "diff.tool", "core.gitProxy", "interactive.diffFilter",
    ):  # fmt: skip
        section, _, rest = name.partition(".")
        driver, _, last = rest.rpartition(".")
        with (repository / ".git" / "config").open("a") as config:
            header = f'[{section} "{driver}"]' if driver else f"[{section}]"
            config.write(f"{header}\n\t{last} = {program}\n")
    run_git(repository, "config", "filter.evil.required", "true")
    with (repository / ".git" / "config").open("a") as config:
        config.write(
            "[log]\n\tshowSignature = true\n[status]\n\tsubmoduleSummary = true\n[core]\n\tuntrackedCache = true\n"
        )
    (repository / ".gitattributes").write_text("*.py filter=evil diff=evil\n*.txt filter=evil=x.y diff=evil\n")
    for hook in ("post-index-change", "pre-commit", "post-checkout", "fsmonitor-watchman", "reference-transaction"):
        path = repository / ".git" / "hooks" / hook
        path.parent.mkdir(exist_ok=True)
        path.write_text(program.read_text())
        path.chmod(0o700)
    (repository / "train.py").write_text("a = 7\n")
    (repository / "b.txt").write_text("b\n")
    facts, found = describe(str(repository))
    assert found is not None
    assert b"+a = 7" in found.changes(facts["commit"]).patch
    assert found.untracked() == [".gitattributes", "b.txt"]
    assert found.upstream is None
    assert not mark.exists(), mark.read_text()


def test_a_configuration_too_large_to_be_looked_at(repository: Path, tmp_path: Path) -> None:
    """A program named behind what we would read is not started: nothing else is asked of such a repository."""
    mark = tmp_path / "started"
    (repository / ".gitattributes").write_text("* filter=evil\n")
    with open(repository / ".git" / "config", "a") as file:
        file.write("[junk]\n" + "".join(f"\tname{n} = {'x' * 1000}\n" for n in range(1100)))
        file.write(f'[filter "evil"]\n\tclean = touch {mark}; cat\n')
    (repository / "train.py").write_text("changed\n")
    with pytest.raises(git.GitError, match="larger"):
        git.Git(str(repository))
    assert not mark.exists()


def test_a_hostile_submodule_starts_nothing(repository: Path, tmp_path: Path) -> None:
    """Git looks into submodules with their own configuration; here it does not look into them."""
    part, mark = tmp_path / "part", tmp_path / "started"
    run_git(tmp_path, "clone", "-q", str(repository), str(part))
    run_git(repository, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(part), "part")
    run_git(repository, "commit", "-qm", "part")
    program = tmp_path / "evil"
    program.write_text(f"#!/bin/sh\necho $0 >> {mark}\ncat\n")
    program.chmod(0o700)
    run_git(repository / "part", "config", "filter.evil.clean", str(program))
    run_git(repository / "part", "config", "core.fsmonitor", str(program))
    (repository / "part" / ".gitattributes").write_text("* filter=evil\n")
    (repository / "part" / "train.py").write_text("a = 8\n")
    found = Git(str(repository))
    assert found.changes(found.commit).patch == b"" and found.untracked() == []
    assert not mark.exists(), mark.read_text()


@pytest.mark.skipif(os.getuid() != 0, reason="gives a directory to somebody else")
def test_a_repository_of_somebody_else_is_described(repository: Path) -> None:
    """Git itself refuses one that belongs to another user, for the programs it may name; here it starts none."""
    for path in (repository, repository / ".git"):
        os.chown(path, 12345, 12345)
    assert describe(str(repository))[0]["branch"] == "main"


def test_a_patch_is_bounded(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a longer one the whole lines that fit are kept, and it is said."""
    assert DIFF_BYTES_MAX >= 1 << 20
    monkeypatch.setattr(git, "DIFF_BYTES_MAX", 2000)
    (repository / "train.py").write_text("".join(f"line {number}\n" for number in range(100_000)))
    found = Git(str(repository))
    changes = found.changes(found.commit)
    assert changes.is_cut and 1000 < len(changes.patch) <= 2000 and changes.patch.endswith(b"\n")


def test_an_answer_has_its_time(tmp_path: Path) -> None:
    """A program that hangs, with its children, is ended at the deadline; so is one that writes without end."""
    script = "import os, sys, time\nif os.fork():\n    print(1, flush=True)\ntime.sleep(100)"
    with pytest.raises(GitError, match="in time"):
        ask([sys.executable, "-c", script], dict(os.environ), git.time.monotonic() + 0.3, 100)
    endless = ["sh", "-c", "while :; do echo xxxxxxxxxxxxxxxx; done"]
    assert len(ask(endless, dict(os.environ), git.time.monotonic() + 20, 100)) == 100


def test_nothing_is_written_into_the_repository(repository: Path) -> None:
    """Not even a refreshed index: somebody may be committing."""
    (repository / "train.py").write_text("a = 1\n")  # another time of change, the same content
    before = {path: path.stat().st_mtime_ns for path in (repository / ".git").rglob("*")}
    found = Git(str(repository))
    assert found.changes(found.commit).patch == b""
    found.untracked()
    assert {path: path.stat().st_mtime_ns for path in (repository / ".git").rglob("*")} == before


def test_a_repository_that_takes_too_long_says_so(repository: Path) -> None:
    """Whatever is asked after the time is over is not answered, and the facts say why."""
    assert describe(str(repository), seconds=0) == ({"why": "git did not answer in time"}, None)
    found = Git(str(repository))
    found._deadline = git.time.monotonic()
    with pytest.raises(GitError, match="in time"):
        found.changes(None)
    with pytest.raises(GitError, match="in time"):
        _ = found.branch
