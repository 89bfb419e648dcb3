"""Files of a run: `run.save`, `run.restore` and `run.log_code`; a part of `sdk.Run`.

What is small is copied in the call, what the file system can share is shared, and the rest is a job for the keeper
(`daemon.keep.files`), so that no call holds the training for the copy of a checkpoint. What a job was left for is also a fact
of the run ("file", docs/segment.md#meta): a reader tells a file that waits from one that is missing.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any, NamedTuple

from . import _greeting, runfiles
from .errors import Error
from .files import DISK
from .location import StoreIdentity
from .platform import machine_id
from .segment.naming import machine_tag, run_path
from .settings import Settings

POLICIES = ("live", "now", "end")
# Limit: what one call copies itself: 256 files at about 0.1 ms each and 16 MiB at 1 GB/s are some 40 ms together.
SMALL_BYTES_MAX = 1 << 20
CALL_BYTES_MAX = 16 << 20
CALL_FILES_MAX = 256
# In the run's directory, while there are patterns to look at again.
LIVE_FILE = "live.json"
# Limit: as much as the observer reads: some 6 000 patterns with two paths of 80 bytes each.
LIVE_BYTES_MAX = 1 << 20
# Limit: what is looked at again at the end: some 20 MB, and at 10 µs each 0.5 s.
PATTERNS_MAX = 50_000
# Limit: of one call, and so of one job; 10 000 names of 100 bytes are 1 MB.
FILES_MAX = 10_000
# Limit: a directory tree is looked at for about a second.
LOOKED_AT_MAX = 100_000
_FACTS_AT_ONCE = 100
# One for all runs: a line is written in some 50 µs.
_telling = threading.Lock()
_REMOTE = ("gs://", "s3://", "http://", "https://", "hdfs://", "az://")
# Directories in which nobody keeps code of their own.
_NO_CODE = frozenset({"__pycache__", "node_modules", "wandb", "site-packages"})


class Found(NamedTuple):
    """A file to keep: where it is, and its name among the run's files."""

    source: str
    name: str


class Code(NamedTuple):
    """What `log_code` kept: `paths` of the copies below `root`, some of which may still wait for the keeper."""

    name: str
    root: str
    paths: list[str]
    type: str = "code"

    def wait(self, timeout: float | None = None) -> Code:
        """Itself, at once; for scripts that wait for W&B's artifact."""
        return self


class RunFiles:
    """The methods of a run that keep files. A forked child may call them; "live" and "end" are then "now"."""

    settings: Settings
    _store: StoreIdentity
    _pid: int
    _patterns: dict[tuple[str, str, bool], str] | None = None
    _identities: dict[str, tuple[int, int, int]] | None = None

    @property
    def id(self) -> str:
        raise NotImplementedError

    @property
    def dir(self) -> str:
        raise NotImplementedError

    @property
    def sync_dir(self) -> str:
        raise NotImplementedError

    @property
    def project(self) -> str:
        raise NotImplementedError

    def _require_running(self, what: str) -> None:
        raise NotImplementedError

    def _emit(self, facts: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _say(self, text: str) -> None:
        raise NotImplementedError

    def _at_end(self, callback: Callable[[str, int], None]) -> None:
        raise NotImplementedError

    def save(
        self, glob_str: Any = None, base_path: Any = None, policy: str = "live", glob: bool = True
    ) -> list[str]:  # fmt: skip
        """Keeps copies of files with the run; directories are kept whole.

        Args:
            glob_str: A path, or a pattern with ``*``, ``?``, ``[…]`` and ``**``.
            base_path: The copies have the names that the files have below it. Default: the working directory; of an
                absolute path the directory that it lies in.
            policy: "now": as the files are. "live": now, again with each call, and once more at the end of the run if they
                have changed. "end": at the end. For "live" and "end" the pattern is looked at again at the end.
            glob: Whether `glob_str` may be a pattern.

        Returns:
            The paths of the copies. Larger ones than 1 MiB may appear later; see `stepd files`. Empty in disabled mode and
            for addresses (s3://…), which nobody fetches.

        Raises:
            ValueError: An unknown policy, or a path that does not lie below `base_path`. TypeError: It is no path.
            UsageError: The run is finished.
        """
        self._require_running("save()")
        if policy not in POLICIES:
            raise ValueError(f"save() policy is {policy!r}, expected 'live', 'now' or 'end'")
        if glob_str is None:
            return []
        pattern = os.fsdecode(glob_str)
        if pattern.startswith(_REMOTE):
            _greeting.note(f"save({pattern!r}) does nothing: it is an address, and nothing is fetched")
            return []
        absolute = os.path.abspath(pattern)
        base = _base_of(pattern, base_path, runfiles.files_path(self.sync_dir))
        if absolute == base or os.path.commonpath([base, absolute]) != base:
            raise ValueError(f"save() path is {pattern!r}, expected one below base_path {base!r}")
        if not self._store.path:
            return []
        if policy != "now" and self._pid == os.getpid():
            if not self._remember(absolute, base, glob, policy):
                policy = "now"
            if policy == "end":
                return []
        found = expand(absolute, base, glob)
        if not found:
            _greeting.note(f"save({pattern!r}) found no file{'' if policy == 'now' else ' yet'}")
        return self._keep(found, policy)

    def _remember(self, pattern: str, base: str, glob: bool, policy: str) -> bool:
        """Whether the pattern will be looked at again at the end."""
        where = (pattern, base, glob)
        with _telling:
            is_first = self._patterns is None
            if self._patterns is None:
                self._patterns = {}
                self._at_end(self._save_last)
            if self._patterns.get(where) == policy:
                return True
            if where not in self._patterns and len(self._patterns) >= PATTERNS_MAX:
                _greeting.note_once(
                    f"patterns of {self.id}",
                    f"save() was given {PATTERNS_MAX:,} paths; further ones are only copied as they are. Try a pattern with *",
                )
                return False
            self._patterns[where] = policy
            self._tell_observer([*where, policy], is_first)
        return True

    def _tell_observer(self, told: list[Any], is_first: bool) -> None:
        """Leaves a pattern to whoever keeps the copies up to date meanwhile (`daemon.observe.live`): one more line."""
        directory = run_path(self._store.path, self.id)
        path, lines = os.path.join(directory, LIVE_FILE), [told]
        try:
            # One of an earlier attempt that was killed may be there; and an observer that takes us for dead removes ours.
            if is_first or not DISK.exists(path):
                runfiles.put_bytes(directory, LIVE_FILE, _line({"machine": machine_tag(machine_id())}))
                lines = [[*where, policy] for where, policy in (self._patterns or {}).items()]
            is_told = _append_lines(path, lines)
        except (OSError, Error) as error:
            self._say(f"stepd: files of run {self.id!r} are only kept at its end: {error}")
            return
        if not is_told:
            _greeting.note_once(
                f"live files of {self.id}",
                f"save() was given {len(self._patterns or ()):,} paths; further ones are copied in the call and at the end of "
                "the run only. Try a pattern with *",
            )

    def _save_last(self, state: str, exit_code: int) -> None:
        with contextlib.suppress(OSError):
            DISK.remove(os.path.join(run_path(self._store.path, self.id), LIVE_FILE))
        for (pattern, base, glob), policy in (self._patterns or {}).items():
            self._keep(expand(pattern, base, glob), policy)

    def _keep(
        self, found: Iterable[Found], policy: str, files_max: int = CALL_FILES_MAX, small_max: int = SMALL_BYTES_MAX
    ) -> list[str]:
        """Copies, shares or leaves to the keeper what is not kept yet as it is; where all of it is or will be."""
        directory = self.dir
        paths: list[str] = []
        later: list[dict[str, Any]] = []
        room = CALL_BYTES_MAX
        if self._identities is None:
            self._identities = {}
        for source, name in found:
            try:
                path = os.path.join(directory, runfiles.check_name(name))
                status = DISK.status(source)
                identity = (status.size, status.modified_ns, status.inode)
                if not status.is_regular:
                    continue
                paths.append(path)
                if self._identities.get(name) == identity or source == path:
                    continue
                if status.size <= min(small_max, room) and files_max > 0:
                    room, files_max = room - runfiles.copy_in(source, directory, name), files_max - 1
                elif not (runfiles.can_share(source, directory) and runfiles.share_in(source, directory, name)):
                    later.append(
                        {"source": source, "name": name, "size": status.size, "modified_ns": status.modified_ns}
                    )
                self._identities[name] = identity
            except (OSError, Error, ValueError) as error:
                self._say(f"stepd: cannot keep {source!r} with run {self.id!r}: {error}")
        if later:
            self._leave(later, policy)
        return paths

    def _leave(self, later: list[dict[str, Any]], policy: str) -> None:
        """Leaves a job for the keeper, and says in the run what it is about."""
        from ._keeping import put_job

        for start in range(0, len(later), _FACTS_AT_ONCE):
            told = later[start : start + _FACTS_AT_ONCE]
            self._emit({"file": {_text(entry["name"]): _fact(entry, policy) for entry in told}})
        try:
            put_job(self._store, "files", {"run": self.id, "files": later})
        except OSError as error:
            self._say(f"stepd: {len(later)} files of run {self.id!r} are not copied: {error}")

    def restore(
        self, name: str, run_path: str | None = None, replace: bool = False, root: str | None = None
    ) -> IO[str] | None:
        """Takes a file of a run of this machine's store out of it, and opens the copy for reading as text.

        Args:
            run_path: "project/id" or an id; default: this run.
            replace: Take it again where `root` has a file of this name.
            root: Where it is put, under its name; default: `dir` of this run.

        Raises:
            ValueError: No such file, or a name that leads out of `root`. NotFoundError: No such run.
        """
        return restore(name, run_path or self.id, replace, root or self.dir, self._store.path)

    def log_code(
        self, root: str | os.PathLike[str] | None = ".", name: str | None = None,
        include_fn: Callable[..., bool] | None = None, exclude_fn: Callable[..., bool] | None = None,
    ) -> Code | None:  # fmt: skip
        """Keeps copies of the source files below a directory, under ``code/``.

        Args:
            name: What it is called; default: "source-<project>".
            include_fn, exclude_fn: Of a path, or of a path and the root: whether it is kept (default: those that end with
                .py), and whether it is left out after all. Directories of version control, virtual environments, caches and
                stores are never looked into.

        Returns:
            What was kept, or None where nothing was: no such file, or `Settings.disable_code`.

        Raises:
            UsageError: The run is finished.
        """
        self._require_running("log_code()")
        if not self._store.path or self.settings.disable_code:
            return None
        whole = os.path.abspath(root or ".")
        included, excluded = _asked(include_fn, whole, _is_python), _asked(exclude_fn, whole, lambda path: False)
        found = []
        for path in _walk(whole, self._store.path):
            if included(path) and not excluded(path):
                found.append(Found(path, f"{runfiles.CODE}/{os.path.relpath(path, whole)}"))
            if len(found) == FILES_MAX:
                _greeting.note(f"log_code({whole!r}) keeps {FILES_MAX:,} files, and there are more")
                break
        paths = self._keep(found, "now")
        return Code(name or f"source-{self.project}", whole, paths) if paths else None


def restore(name: str, run_path: str, replace: bool, root: str, store: str) -> IO[str] | None:
    """As `RunFiles.restore`."""
    from .reader import open_store

    run = open_store(store or None).run("/".join(run_path.split("/")[-2:]))
    clean = runfiles.check_name(name)
    target = os.path.join(os.path.abspath(root), *clean.split("/"))
    if replace or not DISK.exists(target):
        kept = run.file(clean)
        if kept.path != target:
            kept.copy_to(root)
    return open(target, encoding="utf-8")


def _base_of(pattern: str, base_path: Any, directory: str) -> str:
    """The directory below which a file's path is its name. What was written into `run.dir` itself has its name already."""
    if base_path is not None:
        return os.path.abspath(os.fsdecode(base_path))
    if os.path.abspath(pattern).startswith(directory + os.sep):
        return directory
    return os.path.dirname(os.path.abspath(pattern)) if os.path.isabs(pattern) else os.path.abspath(".")


def expand(pattern: str, base: str, glob: bool) -> list[Found]:
    """The files that a path or pattern means now, at most `FILES_MAX`."""
    import glob as globbing

    # A file that is called as a pattern looks is meant itself.
    if glob and not os.path.lexists(pattern):
        names: Iterable[str] = globbing.iglob(pattern, recursive=True)
    else:
        names = [pattern] if os.path.exists(pattern) else []
    found: dict[str, Found] = {}
    for path in names:
        for file in _walk(path, "") if os.path.isdir(path) else [path]:
            if len(found) == FILES_MAX:
                _greeting.note(f"save({pattern!r}) keeps {FILES_MAX:,} files, and there are more")
                return list(found.values())
            if os.path.isfile(file):
                name = os.path.relpath(file, base)
                found[name] = Found(file, name)
    return sorted(found.values())


def _walk(directory: str, store: str) -> Iterator[str]:
    """The files below a directory, links to directories not followed, `LOOKED_AT_MAX` names at most.

    Args:
        store: Not looked into; with "" every directory is, as for data.
    """
    looked = 0
    for above, below, names in os.walk(directory):
        if store:
            below[:] = sorted(name for name in below if _may_hold_code(os.path.join(above, name), store))
        looked += len(below) + len(names)
        if looked > LOOKED_AT_MAX:
            return
        yield from (os.path.join(above, name) for name in sorted(names))


def _may_hold_code(directory: str, store: str) -> bool:
    name = os.path.basename(directory)
    if name.startswith(".") or name in _NO_CODE or directory == store:
        return False
    return not os.path.isfile(os.path.join(directory, "pyvenv.cfg"))


def _is_python(path: str) -> bool:
    return path.endswith(".py")


def _asked(function: Callable[..., bool] | None, root: str, default: Callable[[str], bool]) -> Callable[[str], bool]:
    """A function of W&B's: of the path alone, or of path and root."""
    if function is None:
        return default
    import inspect

    try:
        both = len(inspect.signature(function).parameters) > 1
    except (TypeError, ValueError):
        both = False
    return (lambda path: function(path, root)) if both else function


def _line(told: Any) -> bytes:
    import json

    return json.dumps(told).encode("ascii") + b"\n"


def _append_lines(path: str, told: Iterable[Any]) -> bool:
    """Appends the lines that there is room for; whether that was all."""
    file = DISK.open(path, write=True)
    try:
        room, lines, is_all = LIVE_BYTES_MAX - file.size, [], True
        for line in map(_line, told):
            room -= len(line)
            if room < 0:
                is_all = False
                break
            lines.append(line)
        file.append(lines)
    finally:
        file.close()
    return is_all


def _fact(entry: Mapping[str, Any], policy: str) -> dict[str, Any]:
    return {**entry, "name": _text(entry["name"]), "source": _text(entry["source"]), "policy": policy}


def _text(path: str) -> str:
    """A path may hold bytes that are no UTF-8; a fact may not."""
    return path.encode("utf-8", "replace").decode()
