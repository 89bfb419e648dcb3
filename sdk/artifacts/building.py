"""What an artifact will hold, while it is built: files that were taken, and references."""

from __future__ import annotations

import contextlib
import os
import weakref
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, Any
from urllib.parse import quote, urlsplit

from ..files import DISK, read_whole
from .fetching import local_path
from .format import check_path
from .staging import SMALL_BYTES_MAX, Staging

OBJECTS_MAX = 10_000_000
# What identifies a source: adding the same file twice is no mistake.
_IDENTITY = ("source", "size", "modified_ns", "reference", "digest")


class Contents:
    """Entries of a job by their path. Not thread-safe.

    Args:
        store: Where files are taken to; "" takes none, and they are read from where they are when the artifact is logged.
    """

    def __init__(self, store: str) -> None:
        self._staging = Staging(store) if store else None
        self.entries: dict[str, dict[str, Any]] = {}
        self._keeper = weakref.finalize(self, _discard, self._staging)

    def add_file(self, source: str, name: str, overwrite: bool) -> dict[str, Any]:
        """Takes a file.

        Raises:
            ValueError: It is no file, or another one has the name. OSError: It cannot be read.
        """
        if not os.path.isfile(source):
            raise ValueError(f"add_file() is given {source!r}, expected the path of a file")
        return self._take(os.path.realpath(source), check_path(name), overwrite)

    def add_tree(self, root: str, name: str | None, overwrite: bool) -> None:
        """Takes all files below a directory, all or none.

        Raises:
            ValueError: It is no directory, or other files have the names. OSError: One cannot be read.
        """
        if not os.path.isdir(root):
            raise ValueError(f"add_dir() is given {root!r}, expected the path of a directory")
        above = f"{check_path(name)}/" if name and name.strip("/") not in ("", ".") else ""
        before = dict(self.entries)
        try:
            for path, source in walk(os.path.realpath(root)):
                self._take(source, check_path(above + path), overwrite)
        except BaseException:
            self.entries = before
            raise

    def _take(self, source: str, path: str, overwrite: bool) -> dict[str, Any]:
        old = self.entries.get(path)
        if old is not None and not overwrite:
            if _is_same(old, source):
                return old
            raise ValueError(f"the artifact has another file {path!r} already; overwrite=True replaces it")
        if self._staging is None:
            status = DISK.status(source)
            taken = {"how": "source", "source": source, "size": status.size, "modified_ns": status.modified_ns}
        else:
            taken = self._staging.take(source)
        taken["from"] = source
        return self._put(path, taken)

    def _put(self, path: str, taken: dict[str, Any]) -> dict[str, Any]:
        taken["path"] = path
        self.entries[path] = taken
        return taken

    def add_bytes(self, data: bytes, name: str) -> dict[str, Any]:
        """Takes bytes as a file of this name."""
        path = check_path(name)
        self._refuse(path)
        if self._staging is None:
            return self._put(path, {"how": "nothing", "size": len(data)})
        return self._put(path, self._staging.take_bytes(data))

    @contextlib.contextmanager
    def new_file(self, name: str, mode: str, encoding: str | None) -> Iterator[IO[Any]]:
        """A file to write into, which is added when the block ends well.

        Raises:
            ValueError: There is one of this name, or `mode` does not write.
        """
        path = check_path(name)
        self._refuse(path)
        if not set(mode) & set("wxa"):
            raise ValueError(f"new_file() mode is {mode!r}, expected 'w', 'wb' or the like")
        mode = mode.replace("a", "w").replace("x", "w")
        place = self._place()
        try:
            with open(place, mode, encoding=encoding if "b" in mode else encoding or "utf-8", opener=_private) as file:
                yield file
        except BaseException:
            if place != os.devnull:
                with contextlib.suppress(OSError):
                    DISK.remove(place)
            raise
        self._put(path, self._written(place))

    def _place(self) -> str:
        with contextlib.suppress(OSError):
            if self._staging is not None:
                return self._staging.new_path()
        return os.devnull

    def _written(self, place: str) -> dict[str, Any]:
        if self._staging is None or place == os.devnull:
            return {"how": "nothing", "size": 0}
        status = DISK.status(place)
        if status.size > SMALL_BYTES_MAX:
            return {
                "how": "staged",
                "staged": os.path.basename(place),
                "size": status.size,
                "modified_ns": status.modified_ns,
            }
        with open(place, "rb") as file:
            taken = self._staging.take_bytes(file.read())
        DISK.remove(place)
        return taken

    def _refuse(self, path: str) -> None:
        if path in self.entries:
            raise ValueError(f"the artifact has a file {path!r} already")

    def add_reference(self, uri: str, name: str | None, checksum: bool, max_objects: int) -> list[dict[str, Any]]:
        """Notes where something is; of a directory, each of its files.

        Raises:
            ValueError: It is neither a path that is there nor a URI, or there are more files than `max_objects`.
        """
        source = uri if os.path.exists(uri) else local_path(uri)
        if source is None:
            parts = urlsplit(uri)
            if not parts.scheme:
                raise ValueError(f"add_reference() is given {uri!r}, expected a URI or the path of what is there")
            path = check_path(name or parts.path.rpartition("/")[2] or parts.netloc or uri)
            return [self._refer(path, {"how": "plain", "reference": uri})]
        source = os.path.abspath(source)
        if not os.path.exists(source):
            raise ValueError(f"add_reference() is given {uri!r}, and there is nothing of this name")
        if not os.path.isdir(source):
            return [self._refer_to(source, check_path(name or os.path.basename(source)), checksum)]
        above = f"{check_path(name)}/" if name else ""
        found: list[tuple[str, str]] = []
        for path, file in walk(source):
            if len(found) >= max_objects:
                raise ValueError(f"{uri!r} has more than {max_objects} files; add_reference(max_objects=…) allows more")
            found.append((check_path(above + path), file))
        return [self._refer_to(file, path, checksum) for path, file in found]

    def _refer_to(self, source: str, path: str, checksum: bool) -> dict[str, Any]:
        status = DISK.status(source)
        entry = {"reference": f"file://{quote(source)}", "size": status.size, "modified_ns": status.modified_ns}
        how = {"how": "reference", "source": source} if checksum else {"how": "plain"}
        return self._refer(path, {**how, **entry})

    def _refer(self, path: str, entry: dict[str, Any]) -> dict[str, Any]:
        old = self.entries.get(path)
        if old is not None and [old.get(key) for key in _IDENTITY] != [entry.get(key) for key in _IDENTITY]:
            raise ValueError(f"the artifact has another file {path!r} already")
        return self._put(path, entry)

    def remove(self, path: str) -> None:
        """Takes a file, or all below a directory, out again.

        Raises:
            FileNotFoundError: There is neither.
        """
        path = check_path(path)
        gone = [one for one in self.entries if one == path or one.startswith(f"{path}/")]
        if not gone:
            raise FileNotFoundError(f"the artifact has no file or directory {path!r}")
        for one in gone:
            del self.entries[one]

    def job_files(self) -> list[dict[str, Any]]:
        """What the job says of the files, sorted by path."""
        return [
            {key: value for key, value in entry.items() if key != "from"} for _, entry in sorted(self.entries.items())
        ]

    def flush(self) -> str:
        """The directory of what was taken, whole; "" for none."""
        return self._staging.flush() if self._staging is not None else ""

    def hand_over(self) -> None:
        """The keeper removes what was taken."""
        self._keeper.detach()


def walk(root: str) -> Iterator[tuple[str, str]]:
    """(path with slashes, file) of all regular files below a directory, sorted. Links to files are followed, not those to
    directories; sockets and the like are left out.
    """
    for directory, names, files in os.walk(root):
        names.sort()
        inside = os.path.relpath(directory, root)
        above = "" if inside == os.curdir else f"{inside}/"
        for name in sorted(files):
            source = os.path.join(directory, name)
            if os.path.islink(source):
                source = os.path.realpath(source)
            if os.path.isfile(source):
                yield above + name, source


def _is_same(old: Mapping[str, Any], source: str) -> bool:
    """Whether what was taken is what the file at `source` holds; of a large one, whether it is that file, unchanged."""
    status = DISK.status(source)
    if old["how"] == "pack":
        return bool(status.size == old["size"] and zlib.crc32(read_whole(DISK, source, SMALL_BYTES_MAX)) == old["crc"])
    return [old.get("from"), old.get("size"), old.get("modified_ns")] == [source, status.size, status.modified_ns]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _discard(staging: Staging | None) -> None:
    if staging is not None:
        staging.discard()
