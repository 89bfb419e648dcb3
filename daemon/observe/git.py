"""What git says of the directory that a training was started in: commit, branch, remote, changes.

Only the program `git` is asked, and it is told to start nothing itself: a repository may be hostile, and its configuration
names programs (hooks, a file system monitor, filters, external diffs, transports). So every such name that its configuration
holds is overridden, no hook is found, nothing is fetched and no prompt appears. It takes no lock, so it disturbs nobody's
commit, and all questions together have `GIT_SECONDS_MAX`.

A consequence: what a filter would have changed (git-lfs) counts as it lies on the disk.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sdk._secrets import without_credentials

GIT_SECONDS_MAX = 20.0
DIFF_BYTES_MAX = 16 << 20
ANSWER_BYTES_MAX = 1 << 20
UNTRACKED_MAX = 100
NO_REPOSITORY = "no repository"
_EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
_DIFF = ("--no-ext-diff", "--no-textconv", "--no-color", "--full-index", "--ignore-submodules=dirty", "--submodule=short",
         "--src-prefix=a/", "--dst-prefix=b/")  # fmt: skip
# Overridden for every question. The first ones name programs, or have git start one.
_SETTINGS = {
    "core.fsmonitor": "", "core.hooksPath": "/dev/null", "core.pager": "cat", "core.sshCommand": "false", "core.editor": "false",
    "diff.external": "", "credential.helper": "",
    "gpg.program": "false", "protocol.allow": "never", "log.showSignature": "false", "status.submoduleSummary": "false",
    "submodule.recurse": "false", "gc.auto": "0", "maintenance.auto": "false", "safe.directory": "*",
    "diff.noprefix": "false", "diff.mnemonicPrefix": "false", "diff.orderFile": "/dev/null", "core.quotePath": "false",
    "core.attributesFile": "/dev/null",
}  # fmt: skip
# The last parts of names whose values git starts, when some attribute asks for them.
_PROGRAMS = {"filter": ("clean", "smudge", "process"), "diff": ("command", "textconv"), "merge": ("driver",)}


class GitError(Exception):
    """Git could not say; the text is for the run's facts."""


class Changes(NamedTuple):
    """A patch. `is_cut`: it was longer than `DIFF_BYTES_MAX`, and ends before that."""

    patch: bytes
    is_cut: bool


class Git:
    """One repository, asked from outside. One thread.

    Raises:
        GitError: No git, no repository, or no answer in time.
    """

    def __init__(self, directory: str, seconds: float = GIT_SECONDS_MAX) -> None:
        self._directory = directory
        self._deadline = time.monotonic() + seconds
        self._settings = dict(_SETTINGS)
        self.config = self._read_config()
        bare, self.directory = self._lines("rev-parse", "--is-bare-repository", "--absolute-git-dir")[:2]
        self.is_bare = bare == "true"
        self.root = self.directory if self.is_bare else self._line("rev-parse", "--show-toplevel") or self.directory
        self._directory = self.root  # some answers are about the directory that is asked in, and what lies below

    def _read_config(self) -> dict[str, str]:
        """The configuration; every program in it is overridden from now on."""
        found: dict[str, str] = {}
        told = self._ask("config", "--list", "--includes", "-z", size_max=ANSWER_BYTES_MAX + 1)
        if len(told) > ANSWER_BYTES_MAX:  # a program may be named behind what we would look at
            raise GitError(f"git's configuration is larger than {ANSWER_BYTES_MAX:,} bytes: nothing else is asked")
        for entry in told.decode("utf-8", "replace").split("\0"):
            name, _, value = entry.partition("\n")
            if name:
                found[name] = value
        for name in found:
            section, _, rest = name.partition(".")
            driver, _, last = rest.rpartition(".")
            if driver and last in _PROGRAMS.get(section, ()):
                self._settings[name] = ""
                self._settings[f"{section}.{driver}.required"] = "false"
        return found

    @property
    def commit(self) -> str | None:
        """The commit that is checked out; None before the first one."""
        return self._maybe("rev-parse", "--verify", "-q", "HEAD^{commit}")

    @property
    def branch(self) -> str | None:
        """None when HEAD is detached."""
        return self._maybe("symbolic-ref", "--short", "-q", "HEAD")

    @property
    def remote(self) -> str | None:
        """The address of the branch's remote, or of origin, or of the only one; without credentials."""
        names = (self.config.get(f"branch.{self.branch}.remote", ""), "origin")
        addresses = {
            name[len("remote.") : -len(".url")]: value
            for name, value in self.config.items()
            if name.startswith("remote.") and name.endswith(".url")
        }
        for name in (*names, *addresses):
            if name in addresses:
                return without_credentials(addresses[name])
        return None

    @property
    def upstream(self) -> str | None:
        """The newest commit that the branch has in common with its upstream, when it is ahead of it."""
        base = self._maybe("merge-base", "HEAD", "@{upstream}")
        return base if base != self.commit else None

    def changes(self, base: str | None) -> Changes:
        """What tracked files have beyond a commit, staged or not, as a patch."""
        patch = self._ask("diff", *_DIFF, base or _EMPTY_TREE, "--", size_max=DIFF_BYTES_MAX + 1)
        if len(patch) <= DIFF_BYTES_MAX:
            return Changes(patch, False)
        return Changes(patch[: patch.rindex(b"\n", 0, DIFF_BYTES_MAX) + 1] if b"\n" in patch else b"", True)

    def untracked(self) -> list[str]:
        """Names of files that git neither has nor ignores, as many as an answer holds."""
        names = self._ask("ls-files", "--others", "--exclude-standard", "-z").split(b"\0")
        return [name.decode("utf-8", "replace") for name in names[:-1]]

    # -- asking --------------------------------------------------------------------------------------------------------

    def _maybe(self, *arguments: str) -> str | None:
        try:
            return self._line(*arguments) or None
        except GitError:
            if time.monotonic() >= self._deadline:
                raise
            return None

    def _line(self, *arguments: str) -> str:
        return (self._lines(*arguments) or [""])[0]

    def _lines(self, *arguments: str) -> list[str]:
        return os.fsdecode(self._ask(*arguments)).encode("utf-8", "replace").decode().splitlines()

    def _ask(self, *arguments: str, size_max: int = ANSWER_BYTES_MAX) -> bytes:
        """What git writes, at most `size_max` bytes: of more, the beginning."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        environment |= {
            "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_PAGER": "cat", "GIT_ASKPASS": "true", "LC_ALL": "C",
            "SSH_ASKPASS": "true", "GIT_NO_LAZY_FETCH": "1", "GIT_CONFIG_NOSYSTEM": "1", "GIT_ATTR_NOSYSTEM": "1",
            **_as_variables(self._settings),
        }  # fmt: skip
        command = ["git", "--no-pager", "--literal-pathspecs", "-C", self._directory, *arguments]
        return ask(command, environment, self._deadline, size_max)


def _as_variables(settings: Mapping[str, str]) -> dict[str, str]:
    """Settings for git's environment: as arguments (-c) names with an equals sign in them could not be given."""
    made = {"GIT_CONFIG_COUNT": str(len(settings))}
    for index, (name, value) in enumerate(settings.items()):
        made[f"GIT_CONFIG_KEY_{index}"], made[f"GIT_CONFIG_VALUE_{index}"] = name, value
    return made


def ask(command: Sequence[str], environment: Mapping[str, str], deadline: float, size_max: int) -> bytes:
    """Runs a program and returns what it wrote; it and what it started are gone afterwards.

    Raises:
        GitError: It is not there, failed, or was not done at `deadline` (`time.monotonic`).
    """
    try:
        process = subprocess.Popen(
            list(command), env=dict(environment), cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise GitError("git is not installed" if missing else f"git cannot be started: {error}") from None
    said = [bytearray(), bytearray()]
    try:
        with process:
            is_whole = _read(process, said, deadline, size_max)
            if not is_whole:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    finally:
        if process.poll() is None:
            process.kill()
    if process.returncode and is_whole:
        lines = said[1].decode("utf-8", "replace").strip().splitlines()
        raise GitError(_short(lines[0]) if lines else f"git {command[5]} ended with {process.returncode}")
    return bytes(said[0][:size_max])


def _read(process: subprocess.Popen[bytes], said: list[bytearray], deadline: float, size_max: int) -> bool:
    """Reads both pipes to their ends; False when there was more than is wanted.

    Raises:
        GitError: It took too long; the process is killed.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, said[0])
        selector.register(process.stderr, selectors.EVENT_READ, said[1])
        while selector.get_map():
            ready = selector.select(max(deadline - time.monotonic(), 0))
            if not ready or time.monotonic() >= deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise GitError("git did not answer in time")
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fileobj)
                elif len(key.data) < size_max:
                    key.data.extend(data)
                if len(said[0]) >= size_max:
                    return False
    return True


def _short(line: str) -> str:
    return line.removeprefix("fatal: ")[:200]


def describe(directory: str, seconds: float = GIT_SECONDS_MAX) -> tuple[dict[str, Any], Git | None]:
    """The facts "git" of docs/context.md but for the changes, and the repository to ask for those."""
    try:
        git = Git(directory, seconds)
        facts: dict[str, Any] = {"root": git.root, "commit": git.commit, "branch": git.branch, "remote": git.remote}
        if git.is_bare:
            facts["bare"] = True
        elif facts["commit"] and not facts["branch"]:
            facts["detached"] = True
        return {name: value for name, value in facts.items() if value is not None}, None if git.is_bare else git
    except GitError as error:
        text = str(error)
        return {"why": NO_REPOSITORY if "not a git repository" in text else text}, None
