"""Taking files in the training's process, so that what happens to them afterwards does not matter.

A small file is read at once, into one pack for all small files of an artifact: a file of its own for each would take twice as
long. A large one is cloned where the file system can and it is older than a minute: nothing is copied, and the clone never
changes. A clone of a younger one would hold the call until all of it is on the disk (60 MB: 0.19 s on btrfs).

Else it is given a second name by a hard link: that keeps the bytes when the file is deleted or another is renamed over it, as
checkpoints are rotated; a file that is overwritten in place changes under the link as well, which the keeper sees and says.
Where neither can be, the keeper reads the file from where it lies.

What is taken lies in ``<store>/artifacts/staging/<time>-<random>/`` until the keeper has stored it. The artifact that made it
removes it when it is never logged; what a killed process left the keeper removes after a week.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import zlib
from typing import Any

from .. import clock
from ..files import DISK, File, Files, Status, read_whole
from ..ids import hex_u64, random_u64
from ..platform import machine_id
from ..segment.naming import STORE_FILE
from .format import known_path, object_path, staging_path

# Limit: read and written in about a millisecond.
SMALL_BYTES_MAX = 1 << 20
_KNOWN_BYTES_MAX = 4096
# A file that changed so shortly before it was looked at may change again without a new time.
_SETTLED_NS = 2 * 10**9
# What was written longer ago is on the disk: the kernel sees to that after 30 s (vm.dirty_expire_centisecs), every 5 s.
_WRITTEN_BACK_NS = 60 * 10**9
_DIRECTORY = re.compile(r"[0-9]{20}-[0-9a-f]{16}", re.ASCII)

_NEVER = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS)

# (device of a file, device of the store) -> what could not be done between them.
_cannot: dict[tuple[int, int], set[str]] = {}


class Staging:
    """What was taken for one artifact. Not thread-safe.

    A store that takes nothing now is no error here, because a training must not end of it: the file is then left where it is,
    for the keeper, and what was made here and has no other place is lost, which its entry will say.
    """

    def __init__(self, store: str, files: Files = DISK) -> None:
        self._store = store
        self._files = files
        self._pack: File | None = None
        self._parts: list[bytes] = []
        # What the job says of the parts, and where they came from.
        self._places: list[tuple[dict[str, Any], str]] = []
        self._waiting = 0
        self._packed = 0
        self._count = 0
        self._device = 0
        self._pid = os.getpid()
        self.path = ""

    def take(self, source: str) -> dict[str, Any]:
        """What the job says of the file at `source`, whose links were followed already.

        Raises:
            OSError: It cannot be read.
        """
        file = self._files.open(source)
        try:
            if file.size <= SMALL_BYTES_MAX:
                return self.take_bytes(file.read(0, SMALL_BYTES_MAX), source)
        finally:
            file.close()
        status = self._files.status(source)
        found = {"size": status.size, "modified_ns": status.modified_ns, "source": source}
        with contextlib.suppress(OSError):
            digest = known_digest(self._files, self._store, source, status)
            if digest and has_object(self._files, self._store, digest, status.size):
                return {"how": "object", "digest": digest, **found}
            is_dirty = status.modified_ns > clock.wall_ns() - _WRITTEN_BACK_NS
            ways = (("staged", self._files.clone), ("linked", self._files.link))
            for how, operation in ways[is_dirty:]:
                target = self._share(status, how, operation, source)
                if target is not None:
                    return {"how": how, "staged": os.path.basename(target), **found}
        return {"how": "source", **found}

    def _share(self, status: Status, how: str, operation: Any, source: str) -> str | None:
        self._make()
        cannot = _cannot.setdefault((status.device, self._device), set())
        if how in cannot:
            return None
        target = self._next()
        try:
            operation(source, target)
        except OSError as error:
            # Others are about this file only (it is somebody else's, or has too many names), or about now.
            if error.errno in _NEVER:
                cannot.add(how)
            return None
        return target

    def take_bytes(self, data: bytes, source: str = "") -> dict[str, Any]:
        """The same for bytes, which are in the pack after `flush`. Without it the map may still change.

        Args:
            source: The file that they are of, if any.
        """
        place = {"how": "pack", "offset": self._packed, "size": len(data), "crc": zlib.crc32(data)}
        try:
            self._make()
        except OSError:
            self._leave(place, source)
            return place
        self._parts.append(data)
        self._places.append((place, source))
        self._packed += len(data)
        self._waiting += len(data)
        if self._waiting >= SMALL_BYTES_MAX:
            self._append()
        return place

    def new_path(self) -> str:
        """A name for a file that is written here, and is the artifact's own."""
        self._make()
        return self._next()

    def flush(self) -> str:
        """Brings everything into the staging directory; its path, "" if nothing was taken."""
        if self.path:
            self._make()
        self._append()
        self._close()
        return self.path

    def discard(self) -> None:
        """Removes what was taken, for an artifact that is not logged. What a forked child has of its parent's is not its own."""
        if os.getpid() != self._pid:
            return
        self._close()
        with contextlib.suppress(OSError):
            if self.path:
                self._files.remove_tree(self.path)

    def _close(self) -> None:
        pack, self._pack = self._pack, None
        if pack is not None:
            with contextlib.suppress(OSError):  # what is not there has another checksum
                pack.close()

    def _make(self) -> None:
        if not self.path or os.getpid() != self._pid:
            inherited, self._pid = self.path, os.getpid()
            path = os.path.join(staging_path(self._store), f"{clock.wall_ns():020d}-{hex_u64(random_u64())}")
            # Invariant: nothing is made on the bare mount point of a store that is away.
            self._files.owner(os.path.join(self._store, STORE_FILE))
            self._files.make_directory(path)
            self._device = self._files.status(path).device
            self.path = path
            if inherited:
                self._adopt(inherited)

    def _adopt(self, inherited: str) -> None:
        """In a forked child: names of its own for what its parent took, whose names go with the parent's object."""
        self._close()
        for name, _, _ in self._files.entries(inherited):
            source, target = os.path.join(inherited, name), os.path.join(self.path, name)
            if source != pack_path(inherited):
                self._files.link(source, target)
                continue
            # Copied: both may go on appending.
            pack, copy = self._files.open(source), self._files.create(target)
            try:
                while data := pack.read(copy.size, SMALL_BYTES_MAX):
                    copy.append([data])
            finally:
                copy.close()
                pack.close()

    def _next(self) -> str:
        self._count += 1
        return os.path.join(self.path, str(self._count))

    def _append(self) -> None:
        if not self._parts:
            return
        try:
            if self._pack is None:
                name = pack_path(self.path)
                there = self._files.exists(name)
                self._pack = self._files.open(name, write=True) if there else self._files.create(name)
            self._pack.append(self._parts)
        except OSError:
            self._packed -= self._waiting
            for place, source in self._places:
                self._leave(place, source)
        self._parts.clear()
        self._places.clear()
        self._waiting = 0

    def _leave(self, place: dict[str, Any], source: str) -> None:
        """Changes what the job says of bytes that the store did not take."""
        del place["offset"], place["crc"]
        place["how"] = "nothing"
        with contextlib.suppress(OSError):
            if source:
                place.update(how="source", source=source, modified_ns=self._files.status(source).modified_ns)


def pack_path(staging: str) -> str:
    """Where the small files of a staging directory lie, one after another."""
    return os.path.join(staging, "pack")


def is_staging(path: str) -> bool:
    """Whether it is the path of a staging directory, of whatever store: what may be removed with all that is in it."""
    above, name = os.path.split(path)
    return _DIRECTORY.fullmatch(name) is not None and above.endswith(staging_path(os.sep))


def staged_at(name: str) -> float | None:
    """When the staging directory of this name was made, Unix seconds; None for any other name."""
    return int(name.partition("-")[0]) / 1e9 if _DIRECTORY.fullmatch(name) else None


def has_object(files: Files, store: str, digest: str, size: int) -> bool:
    """Whether the store holds the bytes of this digest; one of another size is no whole object."""
    try:
        return files.status(object_path(store, digest)).size == size
    except (FileNotFoundError, NotADirectoryError):
        return False


def known_digest(files: Files, store: str, path: str, status: Status) -> str:
    """The digest of a file that was read before and has not changed since, else ""."""
    import json

    try:
        text = read_whole(files, known_path(store, machine_id(), path), _KNOWN_BYTES_MAX)
        *identity, digest = json.loads(text)
    except (OSError, ValueError, TypeError, RecursionError):
        return ""
    same = identity == [status.size, status.modified_ns, status.device, status.inode]
    return digest if same and isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) else ""


def remember_digest(files: Files, store: str, path: str, status: Status, digest: str, began_ns: int) -> None:
    """Lets `known_digest` find it. Not of a small file, and not of one that may have changed within its time stamp."""
    import json

    if status.size <= SMALL_BYTES_MAX or status.modified_ns > began_ns - _SETTLED_NS:
        return
    name = known_path(store, machine_id(), path)
    with contextlib.suppress(OSError):  # then it is read again
        files.make_directory(os.path.dirname(name))
        files.write_whole(
            name, json.dumps([status.size, status.modified_ns, status.device, status.inode, digest]).encode()
        )
