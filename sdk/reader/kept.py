"""The files of a stored run: what lies in its directory `files`, and what was to be there.

Names and links are hostile: nothing is opened through a link, and nothing is written outside the directory that is named.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import IO, Any

from .. import runfiles
from .._keeping import keeping_path
from ..errors import NotFoundError
from ..files import DISK
from .names import list_names, nearest

KEPT, WAITING, MISSING, CHANGED = "kept", "waiting", "missing", "changed"
# Times of change are set as floats, which hold them to some 0.2 µs.
_MODIFIED_SECONDS = 1e-5


class KeptFile:
    """A file of a run.

    Attributes:
        name: Below the run's files, with slashes.
        size: Bytes; of one that is not there, those that it had when it was saved.
        modified: When it last changed, Unix seconds.
        path: Where it is, or would be.
        state: "kept"; "waiting" while the keeper has not copied it; "missing" when it was gone before it was copied;
            "changed" when it is there as it was later than `save` was called.
        source: Where it came from, where a fact says so.
    """

    __slots__ = ("_directory", "modified", "name", "size", "source", "state")

    def __init__(
        self, directory: str, name: str, size: int, modified: float, state: str = KEPT, source: str | None = None
    ) -> None:
        self._directory = directory
        self.name, self.size, self.modified, self.state, self.source = name, size, modified, state, source

    def __repr__(self) -> str:
        return f"<file {self.name!r} of {self.size:,} bytes, {self.state}>"

    @property
    def path(self) -> str:
        return os.path.join(self._directory, *self.name.split("/"))

    def open(self) -> IO[bytes]:
        """The file, for reading bytes.

        Raises:
            NotFoundError: It is not there.
        """
        try:
            return os.fdopen(runfiles.open_kept(self._directory, self.name), "rb")
        except (FileNotFoundError, ValueError, OSError) as error:
            hint = f"its source is {self.source!r}" if self.source else ""
            raise NotFoundError(
                f"cannot open file {self.name!r} of a run, which is {self.state}: {error}", hint=hint
            ) from None

    def copy_to(self, directory: str | os.PathLike[str], *, overwrite: bool = True) -> str:
        """Writes a copy below a directory, under the file's name; its path.

        Raises:
            NotFoundError: As `open`. FileExistsError: There is one, and `overwrite` is false.
            StoreError: A link in the name's way leads out of the directory. OSError: It cannot be written.
        """
        target = os.path.abspath(os.fspath(directory))
        os.makedirs(target, exist_ok=True)
        with self.open() as file:
            path = runfiles.place_of(target, self.name)
            if not overwrite and DISK.exists(path):
                raise FileExistsError(17, "is there already", path)
            draft = f"{path}.{os.getpid()}.tmp"
            try:
                with open(draft, "xb") as out:
                    while data := file.read(runfiles.BUFFER_BYTES):
                        out.write(data)
                os.replace(draft, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(draft)
                raise
        os.utime(path, (self.modified, self.modified))
        return path

    def download(self, root: str | os.PathLike[str] = ".", replace: bool = False, exist_ok: bool = False) -> IO[str]:
        """W&B's name: a copy below `root`, opened as text.

        Raises:
            ValueError: There is a file of that name, and neither `replace` nor `exist_ok` says what then.
        """
        path = os.path.join(os.path.abspath(os.fspath(root)), *self.name.split("/"))
        if not DISK.exists(path) or replace:
            path = self.copy_to(root)
        elif not exist_ok:
            raise ValueError(
                f"download() of {self.name!r} found {path!r}, expected none, or replace=True or exist_ok=True"
            )
        return open(path, encoding="utf-8")


def files_of(run_directory: str, facts: Mapping[str, Any]) -> list[KeptFile]:
    """The files of a run, by name.

    Args:
        facts: What the run says of files that were left to the keeper: name -> size, modified_ns, source.
    """
    directory = runfiles.files_path(run_directory)
    # Race: looked for before the files are: a job that ends in between leaves a file, not a missing one.
    is_waiting = bool(facts) and _has_jobs(os.path.dirname(os.path.dirname(os.path.abspath(run_directory))))
    found = {kept.name: KeptFile(directory, *kept) for kept in runfiles.walk(directory)}
    for name, said in facts.items():
        with contextlib.suppress(ValueError):
            _judge(found, directory, runfiles.check_name(str(name)), said if isinstance(said, dict) else {}, is_waiting)
    return [found[name] for name in sorted(found)]


def _judge(found: dict[str, KeptFile], directory: str, name: str, said: Mapping[str, Any], is_waiting: bool) -> None:
    """Holds what was said of a file against what is there."""
    size, modified = _count(said, "size"), _count(said, "modified_ns") / 1e9
    source = said.get("source")
    source = source if isinstance(source, str) else None
    there = found.get(name)
    if there is None:
        found[name] = KeptFile(directory, name, size, modified, WAITING if is_waiting else MISSING, source)
        return
    there.source = source
    if there.size != size or abs(there.modified - modified) > _MODIFIED_SECONDS:
        there.state = WAITING if is_waiting and there.modified < modified else CHANGED


def _has_jobs(store: str) -> bool:
    """Whether the keeper still has files to copy, of whichever run: what is not there may come."""
    return any(name.endswith(".files.json") for name, _, _ in DISK.entries(keeping_path(store)))


def find_file(files: list[KeptFile], name: str, run_id: str) -> KeptFile:
    """The file of that name.

    Raises:
        NotFoundError: There is none; it names near ones. ValueError: No file of a run can be called so.
    """
    wanted = runfiles.check_name(name)
    for file in files:
        if file.name == wanted:
            return file
    near = nearest(wanted, [file.name for file in files]) or [file.name for file in files[:5]]
    told = f"It has {list_names(near)}" if near else "It has no files"
    raise NotFoundError(f"run {run_id!r} has no file {name!r}. {told}", hint=f"stepd files {run_id}")


def _count(said: Mapping[str, Any], name: str) -> int:
    value = said.get(name)
    return value if type(value) is int and value >= 0 else 0
