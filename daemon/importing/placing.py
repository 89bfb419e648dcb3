"""Where imported runs come into a store: each whole, at once, or not at all.

``<store>/importing/<directory of the run>.new`` is written by one import at a time (`Inbox` holds a lock on the store) and renamed to
its place when it is on the disk. A run that was imported before and whose source has changed is written anew, and takes the place of
the old one, which goes by way of ``….old``. What a killed import leaves, the next one removes or puts back.

A run says in its context (`import`) what it was made of. Nothing but an import may be replaced by one: not a run that a training
wrote, nor an imported one that somebody went on with.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from daemon.importing.source import Found
from daemon.importing.writing import ImportedRun
from daemon.store.replacing import hold
from sdk import clock
from sdk.editing import KIND as EDIT
from sdk.editing import write_edit
from sdk.errors import StoreError
from sdk.files import DISK, Files, sync_names
from sdk.ids import run_directory
from sdk.location import StoreIdentity
from sdk.platform import hold_lock
from sdk.reader import Run
from sdk.segment.naming import IMPORTING, RUN_LEVELS, RUNS, TRASH, run_path

# What an import makes of a run's source.
NEW, CHANGED, SAME = "new", "changed", "same"


class Standing(NamedTuple):
    """How a run stands in the store.

    Attributes:
        state: NEW, CHANGED or SAME.
        size: How many bytes its source had when it was imported.
        lost: What was lost then.
        name, project: What it is called in the store.
    """

    state: str
    size: int = 0
    lost: Mapping[str, int] = {}
    name: str = ""
    project: str = ""


# The next version of the importers makes all runs anew that an older one made.
VERSION = 1
_NEW, _OLD = ".new", ".old"
_WAIT_SECONDS, _LOOK_SECONDS = 60.0, 0.2


def standing_of(store: str, found: Found, files: Files = DISK) -> Standing:
    """What there is of a run, and so what there is to do.

    Raises:
        StoreError: The store has a run of this id that is no import, or that somebody went on with.
    """
    directory = run_path(store, found.run_id)
    if not files.exists(directory):
        return Standing(NEW)
    run = Run(directory, files=files)
    told = run.context.get("import")
    streams = told.get("streams") if isinstance(told, dict) else None
    if not isinstance(told, dict) or not isinstance(streams, list):
        raise StoreError(
            f"the store has a run {found.run_id!r} that was not imported; {found.where!r} is left out",
            hint=f"stepd rm {found.run_id}, or another store",
        )
    if any(stream.id not in streams for stream in run.streams if stream.kind != EDIT):
        raise StoreError(
            f"run {found.run_id!r} was imported and then gone on with; {found.where!r} is left out",
            hint=f"stepd rm {found.run_id}, or another store",
        )
    is_same = told.get("of") == found.fingerprint and told.get("version") == VERSION
    size, lost = told.get("bytes"), told.get("lost")
    return Standing(
        SAME if is_same else CHANGED,
        size if isinstance(size, int) else 0,
        {str(what): many for what, many in lost.items() if type(many) is int} if isinstance(lost, dict) else {},
        run.name,
        run.project,
    )


class Inbox:
    """The right to import into a store; one process at a time has it."""

    def __init__(self, store: StoreIdentity, files: Files = DISK) -> None:
        """Takes the right, and sees to what a killed import has left.

        Raises:
            StoreError: Another process imports into the store, or it is not ours to write.
        """
        if not store.writable:
            raise StoreError(
                f"the store {store.path!r} is not yours alone, so nothing is written there",
                hint="STEPD_TRUST_STORE=1 stepd import …",
            )
        self._store = store
        self._files = files
        self._directory = os.path.join(store.path, IMPORTING)
        files.make_directory(self._directory)
        self._lock = hold_lock(os.path.join(self._directory, "lock"))
        if self._lock is None:
            raise StoreError(f"another process imports into {store.path!r} now", hint="try again when it is done")
        self._recover()

    def _recover(self) -> None:
        for name, _, _ in self._files.entries(self._directory):
            path = os.path.join(self._directory, name)
            if name.endswith(_OLD):
                place = os.path.join(self._store.path, RUNS, name.removesuffix(_OLD))
                if self._files.exists(place):
                    self._trash(path, name.removesuffix(_OLD))
                else:
                    self._files.rename(path, place)
            elif name.endswith(_NEW):
                self._files.remove_tree(path)

    def begin(self, found: Found) -> ImportedRun:
        """A run to be written, in a directory that no reader sees."""
        directory = self._staged(found.run_id, _NEW)
        if self._files.exists(directory):
            self._files.remove_tree(directory)
        self._files.make_directory(directory)
        return ImportedRun(self._store, found.run_id, directory, self._files)

    def put(self, found: Found, run: ImportedRun) -> None:
        """Ends `run` and puts it into the store, in the place of an older import of it.

        Raises:
            OSError, StoreError: It is not there; what was there before is.
        """
        about = {"source": found.source, "files": found.files, "bytes": found.size}
        run.finish({**about, "of": found.fingerprint, "version": VERSION})
        place = run_path(self._store.path, found.run_id)
        if not self._files.exists(place):
            self._files.rename(run.directory, place)
            sync_names(self._files, place, RUN_LEVELS)
            return
        before = standing_of(self._store.path, found, self._files)  # again: somebody may have gone on with it
        carried = self._carry_edits(place, run.directory, run.id)
        old = self._staged(found.run_id, _OLD)
        # Why: a rewriting of the old run must not end in the new one's directory.
        rewriting = self._hold_rewriting()
        try:
            self._files.rename(place, old)
            self._files.rename(run.directory, place)
            sync_names(self._files, place, RUN_LEVELS)
        finally:
            rewriting.release()
        # Race: 1. edits are carried, 2. somebody sets a fact of the older import, 3. the new one takes its place.
        self._carry_edits(old, place, run.id, carried)
        self._let_go(old, found, before)

    def _carry_edits(self, old: str, new: str, run_id: str, carried: int = 0) -> int:
        """What somebody has set of the older import (`stepd set`) holds of the new one too; how many edits there are.

        Args:
            carried: The first ones are there already.
        """
        edits = Run(old, files=self._files)._facts.edits()
        for facts in edits[carried:]:
            after = Run(new, files=self._files)._facts.latest_ns
            write_edit(self._store.path, new, run_id, facts, after_ns=after, files=self._files)
        return len(edits)

    def _let_go(self, old: str, found: Found, before: Standing) -> None:
        """Removes the older import; where the source has become smaller it may be all that is left, and goes to the trash."""
        if before.size <= found.size:
            self._files.remove_tree(old)
        else:
            self._trash(old, run_directory(found.run_id))

    def _trash(self, path: str, name: str) -> None:
        trash = os.path.join(self._store.path, TRASH)
        self._files.make_directory(trash)
        now = clock.wall_ns() // 10**9
        while self._files.exists(os.path.join(trash, f"{now}-{name}")):
            now += 1
        self._files.rename(path, os.path.join(trash, f"{now}-{name}"))

    def _hold_rewriting(self) -> Any:
        deadline = clock.monotonic() + _WAIT_SECONDS
        while (held := hold(self._store.path)) is None:
            if clock.monotonic() > deadline:
                raise StoreError(f"{self._store.path!r} is being compacted", hint="try again when that is done")
            clock.pause(_LOOK_SECONDS)
        return held

    def drop(self, run: ImportedRun) -> None:
        """Gives up a run that was begun."""
        run.abandon()
        with contextlib.suppress(OSError):
            self._files.remove_tree(run.directory)

    def _staged(self, run_id: str, suffix: str) -> str:
        return os.path.join(self._directory, run_directory(run_id) + suffix)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Inbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
