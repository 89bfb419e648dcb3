"""How a run's directory is, by names, sizes and times: what tells at once that nothing is new of a run that was carried.

A pass over a run that is over leaves a mark in its cursor: how the directory was just before it was read. While it is still so, nothing
is opened: a thousand runs take as long as listing their directories and reading a thousand cursors.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any, NamedTuple

from daemon.sync.cursor import SYNC, Cursor
from daemon.sync.target import Target
from sdk.errors import StoreError
from sdk.files import DISK, Files
from sdk.location import read_store
from sdk.reader.listing import SETTLED_SECONDS
from sdk.segment.naming import RUNS, parse_segment


class Look(NamedTuple):
    """What a run's directory holds.

    Attributes:
        signature: Of the names, sizes and times of what is in it, 32 hex digits.
        changed: When something in it last changed, Unix seconds.
        size: Bytes of its files.
        is_run: Whether it holds a segment.
    """

    signature: str
    changed: float
    size: int
    is_run: bool

    def is_settled(self, now: float) -> bool:
        """Whether whoever changes something from `now` on leaves another signature: file systems count time in steps."""
        return now - self.changed > SETTLED_SECONDS


def look_at(directory: str, files: Files = DISK) -> Look:
    """How a run's directory is now.

    Raises:
        OSError: It cannot be listed.
    """
    entries = files.entries(directory)
    digest = hashlib.blake2b(digest_size=16)
    for name, size, changed in entries:
        digest.update(b"%s\0%d %r\0" % (os.fsencode(name), size, changed))
    return Look(
        digest.hexdigest(),
        max((changed for _, _, changed in entries), default=0.0),
        sum(size for _, size, _ in entries),
        any(parse_segment(name) is not None for name, _, _ in entries),
    )


def run_names(store: str, files: Files = DISK) -> list[str]:
    """The names of the directories of all runs of a store.

    Raises:
        StoreError: The disk does not even list them.
    """
    try:
        return [name for name, _, _ in files.entries(os.path.join(store, RUNS))]
    except OSError as error:
        raise StoreError(f"cannot list the runs of {store!r}: {error}") from error


def cursors_of(store: str, target: Target) -> str:
    """The directory with the cursors of a target.

    Invariant: no two targets have the same one, also where both keep them in one directory: what one has the other has not.
    """
    found, place = target.cursors(), target.place
    if found is None:
        return os.path.join(store, SYNC, place.digest)
    # Why not the digest of a target that is a directory: it may be moved, and its cursors with it.
    is_in_it = found.startswith(place.path)
    found = os.path.join(found, place.scheme if is_in_it else f"{place.scheme}-{place._replace(options={}).digest}")
    return os.path.join(found, read_store(store).id.hex()) if target.is_for_each_store else found


class Source:
    """What a cursor says of a run in one store: several stores may hold streams of the run, each with a mark of its own.

    Attributes:
        signature: How the directory was when all of it had been carried; None: something may be new.
        is_over: The last pass read all there will be.
        id, name, project: Of the run.
        known: Damage and gaps that were told.
    """

    def __init__(self, store: str, cursor: Cursor) -> None:
        # Why not the path: stores of two hosts may have the same one, and carry to one directory.
        self._store, self._cursor = read_store(store).id.hex(), cursor
        told = cursor.source.get(self._store)
        found: dict[str, Any] = told if isinstance(told, dict) else {}
        self.signature: str | None = _text(found.get("signature")) or None
        self.is_over = found.get("over") is True
        self.is_there = bool(found) and found.get("removed") is not True
        self.id, self.name, self.project = (_text(found.get(name)) for name in ("id", "name", "project"))
        known = found.get("known")
        self.known = [text for text in known if isinstance(text, str)] if isinstance(known, list) else []

    def note(self) -> None:
        """Writes it into the cursor, if anything is new.

        Raises:
            OSError: The disk refuses.
        """
        told = {
            "signature": self.signature, "over": self.is_over, "removed": not self.is_there, "id": self.id,
            "name": self.name, "project": self.project, "known": self.known,
        }  # fmt: skip
        if self._cursor.source.get(self._store) != told:
            self._cursor.source = {**self._cursor.source, self._store: told}
            self._cursor.write()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
