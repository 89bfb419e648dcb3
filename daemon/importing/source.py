"""What can be imported: a source finds runs that another tool has written, and reads one at a time.

A source of a new kind is a module here with a `Source`, and a line in `SOURCES`.
"""

from __future__ import annotations

import glob
import hashlib
import importlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from sdk.errors import UsageError
from sdk.reader.names import nearest

if TYPE_CHECKING:
    from daemon.importing.writing import ImportedRun

# Scheme -> where its class is.
SOURCES = {
    "tensorboard": "daemon.importing.tensorboard:TensorBoardSource",
    "wandb": "daemon.importing.wandb:WandbSource",
}
_SCHEME = re.compile(r"([a-z][a-z0-9_+-]{0,31}):(.+)", re.DOTALL)


class Found(NamedTuple):
    """A run of a source, as far as a look at its names tells.

    Attributes:
        run_id: The id that it gets: the same whenever this run of this source is imported.
        name, project: What it is called if the command says nothing else.
        source: What is stored of where it came from: "tensorboard:/logs/a".
        where: The path that holds it, for messages.
        fingerprint: Of what it was made: names, sizes and times of its files. The same one means that nothing is to be done.
        files, size: How many files it has and how many bytes.
    """

    run_id: str
    name: str
    project: str
    source: str
    where: str
    fingerprint: str
    files: int
    size: int


class Source(ABC):
    """One place with runs of another tool.

    Attributes:
        scheme: What stands before the colon.
        path: What the command names; of a pattern the directory before its first wildcard.
        matches: Of a pattern what it matches, in order; else the path alone.
        troubles: What `runs` could not look at, and why.
    """

    scheme: ClassVar[str]

    def __init__(self, path: str) -> None:
        self.path = path
        self.matches = [path]
        self.troubles: list[str] = []

    @property
    def root(self) -> str:
        """The directory that no symbolic link may lead out of."""
        return self.path if os.path.isdir(self.path) else os.path.dirname(self.path)

    def is_inside(self, path: str) -> bool:
        """Whether a path is in the source; if a link leads out of it, `troubles` says so.

        What a link in a directory of somebody's leads to need not be meant for this store.
        """
        if path == self.path or leads_below(path, self.root):
            return True
        told = f"{path!r} is a link out of {self.root!r} and was left out (cp -rL takes what it leads to)"
        if told not in self.troubles:
            self.troubles.append(told)
        return False

    @abstractmethod
    def runs(self) -> Iterable[Found]:
        """The runs that are there; reads little.

        Raises:
            UsageError: There is nothing of this kind at the path.
        """

    @abstractmethod
    def read(self, found: Found, run: ImportedRun, moved: Callable[[int], None]) -> None:
        """Gives all of a run to `run`, in the order in which it was written.

        What is damaged is skipped and counted (`run.lost`); how it ended is told by `run.end`. Facts of the run that are not given
        ("run": name, project) are `found`'s.

        Args:
            moved: Hears how many bytes of the source were read.
        """


def source_of(text: str) -> Source:
    """The source that ``KIND:PATH`` names. A path that is not there may be a pattern of paths: no shell expands it behind the kind.

    Raises:
        UsageError: There is no such kind, or nothing that the pattern matches.
    """
    match = _SCHEME.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no source, expected KIND:PATH", hint="stepd import tensorboard:runs")
    scheme, path = match[1], os.path.abspath(os.path.expanduser(match[2]))
    if scheme not in SOURCES:
        near = nearest(scheme, SOURCES)
        meant = f". Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"nothing is imported from {scheme!r}{meant}. There are {', '.join(SOURCES)}")
    module, _, name = SOURCES[scheme].partition(":")
    # Why the text, and not the whole path: the working directory may have a bracket in its name.
    given = os.path.expanduser(match[2])
    is_pattern = glob.has_magic(given) and not os.path.lexists(path)
    matches = sorted(map(os.path.abspath, glob.glob(given, recursive=True))) if is_pattern else [path]
    if not matches:
        raise UsageError(f"there is nothing to import: nothing is called {path!r}")
    source: Source = getattr(importlib.import_module(module), name)(_before_wildcards(given) if is_pattern else path)
    source.matches = matches
    return source


def _before_wildcards(path: str) -> str:
    while glob.has_magic(path):
        path = os.path.dirname(path)
    return os.path.abspath(path)


def leads_below(path: str, directory: str) -> bool:
    """Whether a path is below a directory, or it, when all links are followed."""
    whole = os.path.realpath(directory)
    return os.path.commonpath([whole, os.path.realpath(path)]) == whole


def fingerprint_of(paths: Iterable[str]) -> tuple[str, int]:
    """(fingerprint, size) of files, by name, size and time of change.

    Raises:
        OSError: One cannot be looked at.
    """
    digest, total = hashlib.sha256(), 0
    for path in paths:
        status = os.stat(path)
        total += status.st_size
        digest.update(
            f"{os.path.basename(path)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape")
        )
    return digest.hexdigest()[:32], total


def id_of(*parts: str | bytes) -> str:
    """A run id that is a function of what identifies a run of a source: ten base-36 characters."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape")
        digest.update(len(data).to_bytes(8, "little") + data)
    number, text = int.from_bytes(digest.digest()[:8], "little"), ""
    while len(text) < 10:
        number, place = divmod(number, 36)
        text += "0123456789abcdefghijklmnopqrstuvwxyz"[place]
    return text


def _is_link(directory: str, name: str) -> bool:
    return os.path.islink(os.path.join(directory, name))


def files_below(
    directory: str,
    *,
    follows: Callable[[str], bool] | None = None,
    trouble: Callable[[OSError], object] = lambda error: None,
) -> Iterator[tuple[str, list[str]]]:
    """(directory, names of its files in order) of a directory and those below it, in order; each directory once.

    Args:
        follows: Whether to go to a directory that a link leads to; None: to none.
        trouble: Hears why a directory cannot be looked at.
    """
    seen: set[str] = set()
    for where, directories, names in os.walk(directory, onerror=trouble, followlinks=follows is not None):
        real = os.path.realpath(where)
        if real in seen:
            directories.clear()
            continue
        seen.add(real)
        if follows is not None:
            directories[:] = [
                one for one in directories if not _is_link(where, one) or follows(os.path.join(where, one))
            ]
        directories.sort()
        yield where, sorted(names)
