"""Removing what no version has any more: objects of versions that were removed, and of jobs that were never done.

Only when somebody asks. What a job that waits, or one that is done at this moment, may still need is left: nothing is removed
while a job waits, and no object that is younger than a day.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from sdk import clock
from sdk._keeping import keeping_path
from sdk.artifacts.shelf import Shelf
from sdk.errors import DamageError, StoreError
from sdk.files import Files
from sdk.ids import run_directory
from sdk.segment.naming import ARTIFACTS

# Why: a keeper that stores a version, on this machine or another, has objects before it has a manifest.
YOUNG_SECONDS = 86_400.0
# A file that nobody logged for so long is read again.
KNOWN_SECONDS = 90 * 86_400.0


def prune(files: Files, store: str, young_seconds: float = YOUNG_SECONDS) -> tuple[int, int]:
    """(count, bytes) of the objects that were removed.

    Raises:
        StoreError: Jobs wait. DamageError, OSError: A manifest cannot be read, so nobody knows what it needs.
    """
    waiting = [name for name, _, _ in files.entries(keeping_path(store)) if name.endswith(".json")]
    if waiting:
        raise StoreError(f"{len(waiting)} jobs wait for the keeper and may need any bytes", hint="stepd status")
    needed = _needed(Shelf(store, files))
    now = clock.wall_ns() / 1e9
    count = freed = 0
    root = os.path.join(store, ARTIFACTS, "objects")
    for directory, _, _ in files.entries(root):
        for name, size, modified in files.entries(os.path.join(root, directory)):
            if name not in needed and now - modified > young_seconds:
                files.remove(os.path.join(root, directory, name))
                count, freed = count + 1, freed + size
    for path, modified in _remembered(files, os.path.join(store, ARTIFACTS, "known")):
        if now - modified > KNOWN_SECONDS:
            files.remove(path)
    return count, freed


def _remembered(files: Files, root: str) -> Iterator[tuple[str, float]]:
    for directory, _, _ in files.entries(root):
        for name, _, modified in files.entries(os.path.join(root, directory)):
            yield os.path.join(root, directory, name), modified


def _needed(shelf: Shelf) -> set[str]:
    """The digests of all versions that were not removed."""
    needed: set[str] = set()
    names = shelf.names()
    unknown = shelf.directories().difference(map(run_directory, names))
    if unknown:
        raise DamageError(f"the manifests in {min(unknown)!r} cannot be read, so nobody knows which bytes they need")
    for name in names:
        removed = {mark.number for mark in shelf.marks(name) if mark.said.get("removed") is True}
        for number in shelf.numbers(name):
            if number not in removed:
                needed.update(entry.digest for entry in shelf.entries(shelf.head(name, number)))
    return needed
