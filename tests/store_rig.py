"""A road from one store to another, for tests: `daemon.sync.targets.store` over a real disk whose operations are noted."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon.compact.work import compact_run
from daemon.store.replacing import remove_replaced
from daemon.sync.cursor import Cursor, cursor_path
from daemon.sync.looking import cursors_of
from daemon.sync.passage import Passage
from daemon.sync.place import parse
from daemon.sync.target import Stopped
from daemon.sync.targets.store import StoreTarget
from sdk import clock
from sdk.files import DISK, File, Files
from sdk.files.over import FilesOver
from sdk.location import make_store, read_store
from sdk.reader.media import MediaItem
from sdk.reader.run import Run
from sdk.segment.naming import RUNS, parse_segment, run_path
from tests.compacting import contents


def store_at(path: Path | str) -> str:
    """A new store with an id of its own; its path."""
    return make_store(str(path)).path


class Watched(FilesOver):
    """Tells what was opened and what was changed, and does something before the first file is made."""

    def __init__(self, files: Files = DISK) -> None:
        super().__init__(files)
        self.opened: list[str] = []
        self.changed: list[str] = []
        self.before: Callable[[], None] | None = None

    def open(self, path: str, *, write: bool = False) -> File:
        self.opened.append(path)
        return super().open(path, write=write)

    def create(self, path: str) -> File:
        if self.before is not None:
            before, self.before = self.before, None
            before()
        self.changed.append(path)
        return super().create(path)

    def rename(self, source: str, target: str) -> None:
        self.changed.append(target)
        super().rename(source, target)

    def remove(self, path: str) -> None:
        self.changed.append(path)
        super().remove(path)

    def clone(self, source: str, target: str) -> None:
        raise OSError("this disk shares nothing")


class Road:
    """From the store `source` to the directory `target`."""

    def __init__(self, source: str, target: str, files: Files = DISK) -> None:
        self.source, self.target = source, target
        self._files = files
        self._watched = Watched(files)
        self.opened = self._watched.opened

    @property
    def changes(self) -> list[str]:
        """What was made, renamed or removed so far."""
        return list(self._watched.changed)

    def there(self, run: str) -> str:
        """The run's directory in the target."""
        return run_path(self.target, run)

    def carry(
        self,
        run: str,
        *,
        forget: bool = False,
        stop_after: int | None = None,
        at_first_copy: Callable[[], None] | None = None,
    ) -> None:
        """One pass, as the driver does it.

        Args:
            forget: The cursor is lost.
            stop_after: The process is told to end when it asks for that many times.
            at_first_copy: Called before the pass makes its first file.
        """
        place = parse(f"stepd:{self.target}")
        target = StoreTarget(place, self._watched)
        path = cursor_path(cursors_of(self.source, target), run)
        if forget and self._files.exists(path):
            self._files.remove(path)
        asked = 0

        def stopping() -> None:
            nonlocal asked
            asked += 1
            if asked == stop_after:
                raise Stopped

        cursor = Cursor(path, run, place.text, self._files)
        cursor.read()
        target.check()
        passage = Passage(Run(run_path(self.source, run)), cursor, stopping=stopping)
        self._watched.before = at_first_copy
        try:
            target.carry(passage)
        finally:
            self._watched.before = None
            target.close()


def segments(directory: str) -> dict[str, bytes]:
    """The segments of a run, name to bytes."""
    return {name: Path(directory, name).read_bytes() for name in sorted(os.listdir(directory)) if parse_segment(name)}


def compact_all(store: str, *, removes: bool = True) -> bool:
    """Makes columns of all runs of a store, and removes what they replace; whether anything was written."""
    if not os.path.exists(store):
        return False
    written = False
    for name in sorted(os.listdir(os.path.join(store, RUNS))):
        directory = os.path.join(store, RUNS, name)
        written |= bool(compact_run(DISK, read_store(store), directory, kept_seconds=0.0).files)
        if removes:
            remove_replaced(DISK, directory, clock.wall_ns() + 10**12)
    return written


def told(directory: str) -> dict[str, Any]:
    """As `tests.compacting.contents`, with the bytes of media in their places."""
    found: dict[str, Any] = _with_bytes(contents(directory))
    return found


def _with_bytes(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_bytes(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_bytes(inner) for inner in value]
    return value.bytes() if isinstance(value, MediaItem) else value
