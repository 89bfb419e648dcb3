"""``stepd:DIR``: another store. Several stores that hold streams of one run become one run there, in any order, twice, from many hosts.

A run is the union of its segments and every segment has a name that no other has, so what one store brings is beside what another one
brought, and bringing it twice changes nothing (`daemon.sync.targets.segments`). Artifacts go by digest and job, files by their time:
the one that was changed last stays. What is in the target tells what is missing there; the cursor only makes that faster.

A daemon may serve the target, and compact it, at the same time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any, ClassVar

from daemon.store.replacing import hold
from daemon.sync.passage import Passage
from daemon.sync.place import Place
from daemon.sync.target import Target
from daemon.sync.targets.segments import Crossing, Portion, Portions
from daemon.sync.targets.shelves import Shelves
from sdk import runfiles
from sdk.errors import DamageError, StoreError, UsageError
from sdk.files import DISK, Files
from sdk.location import StoreIdentity, check_store, make_store, read_store
from sdk.segment.naming import run_path

_PORTIONS = "portions"
_TROUBLES_TOLD_MAX = 5


class StoreTarget(Target):
    """A store as a target. Everything is durable against power loss before it is noted, but for files of runs, which nobody forces."""

    scheme: ClassVar[str] = "stepd"
    # Why: the nodes of a job carry their parts of one run at the same moment, and neither waits for the other's lock.
    is_for_each_store: ClassVar[bool] = True

    def __init__(self, place: Place, files: Files = DISK) -> None:
        super().__init__(place)
        self._files = files
        self._store: StoreIdentity | None = None

    def check(self) -> None:
        try:
            self._store = make_store(os.path.abspath(self.place.path), self._files)
        except StoreError as error:
            raise UsageError(
                f"cannot carry runs there: {error.message}", hint="--to stepd:/a/directory/of/yours"
            ) from error

    def carry(self, passage: Passage) -> None:
        store = self._open(passage)
        source = os.path.dirname(os.path.dirname(os.path.abspath(passage.run.directory)))

        def note(records: int, size: int) -> None:
            passage.moved(records, size)
            passage.check()

        crossing = Crossing(
            self._files, passage.run.directory, run_path(store.path, passage.run.id), passage.run.id, store,
            tag=read_store(source, self._files).id.hex()[:8], portions=_portions_of(passage.state), note=note,
        )  # fmt: skip
        crossing.bring()
        troubles = [*crossing.troubles, *self._bring_files(passage, store)]
        shelves = Shelves(self._files, source, store.path, lambda size: note(0, size))
        shelves.bring(passage.run.artifacts)
        troubles += shelves.troubles
        for text, number in shelves.renumbered.items():
            passage.told(f"artifact {text} is v{number} in {self.place.text!r}, which has another {text}")
        # Why before anything is removed: whoever finds portions gone that the cursor knows brings them again.
        crossing.tidy(lambda: hold(store.path))
        passage.commit(_plain(crossing.portions))
        if troubles:
            # Not `passage.lost`: what is mended comes the next time, and nothing is lost then.
            raise DamageError(
                f"{len(troubles)} things of run {passage.run.id!r} cannot be read, the others were carried: "
                f"{'; '.join(troubles[:_TROUBLES_TOLD_MAX])}",
                hint=f"stepd verify {passage.run.id}",
            )

    def _open(self, passage: Passage) -> StoreIdentity:
        """The store that is written to, which must not have become another one, nor be that of the run.

        Raises:
            OSError: As `check_store`.
            UsageError: A store cannot be carried into itself.
        """
        if self._store is None:
            self.check()
        store = self._store
        assert store is not None
        check_store(store, self._files)
        there = run_path(store.path, passage.run.id)
        if self._files.exists(there) and self._inode(there) == self._inode(passage.run.directory):
            raise UsageError(
                f"{self.place.text!r} is the store that the run lies in", hint="--to stepd:/another/directory"
            )
        return store

    def _inode(self, path: str) -> tuple[int, int]:
        return self._files.status(path)[2:4]

    def _bring_files(self, passage: Passage, store: StoreIdentity) -> list[str]:
        """The files of a run; one that is there and younger stays, and of equally old ones the larger. Says what could not be brought."""
        troubles: list[str] = []
        source = runfiles.files_path(passage.run.directory)
        target = runfiles.files_path(run_path(store.path, passage.run.id))
        for kept in runfiles.walk(source):
            passage.check()
            if self._is_younger(os.path.join(target, *kept.name.split("/")), kept):
                continue
            try:
                size = runfiles.copy_in(
                    os.path.join(source, *kept.name.split("/")), target, kept.name, self._files, drafter="sync"
                )
            except FileNotFoundError:
                continue  # its owner has removed it
            except (ValueError, StoreError) as error:
                troubles.append(str(error))
                continue
            passage.moved(0, size)
        return troubles

    def _is_younger(self, path: str, kept: runfiles.Kept) -> bool:
        modified_ns = int(kept.modified * 1e9)
        if runfiles.is_copy(path, kept.size, modified_ns, self._files):
            return True
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            there = self._files.status(path)
            return (there.modified_ns // 10_000, there.size) > (modified_ns // 10_000, kept.size)
        return False


def _portions_of(state: Mapping[str, Any]) -> Portions:
    """What the cursor says; nothing where that is nonsense, for the target itself tells, too."""
    try:
        said: Mapping[str, Any] = state.get(_PORTIONS, {})
        return {
            str(name): [Portion(int(start), int(end), str(own)) for start, end, own in portions]
            for name, portions in said.items()
        }
    except (AttributeError, TypeError, ValueError):
        return {}


def _plain(portions: Portions) -> dict[str, Any]:
    return {_PORTIONS: {name: [list(portion) for portion in found] for name, found in portions.items()}}
