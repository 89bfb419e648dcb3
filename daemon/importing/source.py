"""What can be imported: a source finds runs that another tool has written, and reads one at a time.

A source of a new kind is a module here with a `Source`, and a line in `SOURCES`.
"""

from __future__ import annotations

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
        troubles: What `runs` could not look at, and why.
    """

    scheme: ClassVar[str]

    def __init__(self, path: str) -> None:
        self.path = path
        self.troubles: list[str] = []

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
    """The source that ``KIND:PATH`` names.

    Raises:
        UsageError: There is no such kind.
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
    source: Source = getattr(importlib.import_module(module), name)(path)
    return source


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


def files_below(
    directory: str, *, follows_links: bool = False, trouble: Callable[[OSError], object] = lambda error: None
) -> Iterator[tuple[str, list[str]]]:
    """(directory, names of its files in order) of a directory and those below it, in order; each directory once.

    Args:
        follows_links: Also to directories that links lead to.
        trouble: Hears why a directory cannot be looked at.
    """
    seen: set[str] = set()
    for where, directories, names in os.walk(directory, onerror=trouble, followlinks=follows_links):
        real = os.path.realpath(where)
        if real in seen:
            directories.clear()
            continue
        seen.add(real)
        directories.sort()
        yield where, sorted(names)
