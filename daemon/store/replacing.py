"""Replaces sealed segments of a run by better ones: drafts, forcing, reading back, names, removal. For rows and for blobs.

Life of a replacement: what is new is written into drafts, segments of a writer of its own, whose names no reader looks at.
They are forced, read back, and only then given their names. The last one says in a META map which segments it `replaces`,
and gets its name when the others have theirs for good. So whatever has a name was forced, and what a crash or a disk cut
short is a draft (`remove_drafts`). The old ones are removed `KEPT_SECONDS` later, so that whoever reads them can finish
(`remove_replaced`); whoever comes after a crash finds the same words on the disk and goes on from there.

Only one process of a host rewrites in a store at a time (`hold`); two hosts at once make copies, which the next rewriting
joins.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from sdk import clock, platform
from sdk.errors import DamageError, Error
from sdk.files import Files, sync_names
from sdk.ids import hex_u64, random_u64
from sdk.location import StoreIdentity
from sdk.segment.check import check_segment
from sdk.segment.format import KIND_BLOB, KIND_META, FileHeader
from sdk.segment.naming import (
    HISTORY,
    MEDIA,
    RUN_LEVELS,
    RUNS,
    SUSPECT_SUFFIX,
    SegmentName,
    format_draft,
    format_segment,
    machine_tag,
    parse_draft,
    parse_segment,
)
from sdk.segment.reader import SegmentReader
from sdk.segment.writer import SegmentWriter
from sdk.transport import lock_path

# So long a replaced segment stays, for those who read it.
KEPT_SECONDS = 60.0
# A draft of another host that is older than this is nobody's any more. Its rewriter, if it lives, loses no more than the work.
_DRAFT_SECONDS = 86_400.0


class Sealed(NamedTuple):
    """A sealed segment of a run.

    Attributes:
        created_ns: When its file was begun.
        blobs: How many begin in it.
        replaces: Names of the segments whose contents are in it, also of those that these replaced.
        told: What its last META map says; empty for those that trainers and daemons wrote.
        repaired: Names of the segments that a repair made it of; they lie in `aside/`.
    """

    path: str
    name: SegmentName
    size: int
    created_ns: int
    blobs: int
    replaces: frozenset[SegmentName]
    told: dict[str, Any]
    repaired: frozenset[SegmentName] = frozenset()

    @property
    def is_raw(self) -> bool:
        """Whether no rewriting made it."""
        return not {"replaces", "windows"} & self.told.keys()

    @property
    def ended_ns(self) -> int:
        """When the rewriting that made it was done."""
        told = self.told.get("ended_ns")
        return told if type(told) is int else self.created_ns


def hold(store: str) -> platform.HeldLock | None:
    """The right to rewrite in a store on this host; None: another process does."""
    return platform.hold_lock(lock_path(store).removesuffix(".lock") + ".rewrite")


def kinds_in(files: Files, store: str) -> set[str]:
    """What the segments of a store hold, of all its runs: HISTORY, MEDIA.

    Raises:
        OSError: The store cannot be read.
    """
    runs = os.path.join(store, RUNS)
    found: set[str] = set()
    for run, _, _ in files.entries(runs):
        names = (parse_segment(entry) for entry, _, _ in files.entries(os.path.join(runs, run)))
        found.update(name.holds for name in names if name is not None)
        if len(found) == 2:
            break
    return found


def sealed(files: Files, directory: str, holds: str) -> list[Sealed]:
    """The sealed segments of a run of one kind, oldest first, but for those that another one replaces.

    Raises:
        OSError: The directory cannot be read.
    """
    found = _all_sealed(files, directory, (holds,))
    replaced = {name for segment in found for name in segment.replaces}
    return [segment for segment in found if segment.name not in replaced]


def _all_sealed(files: Files, directory: str, kinds: Collection[str]) -> list[Sealed]:
    found = []
    for entry, size, _ in files.entries(directory):
        name = parse_segment(entry)
        if name is None or name.holds not in kinds:
            continue
        path = os.path.join(directory, entry)
        with contextlib.suppress(OSError, Error):
            reader = SegmentReader(files, path)
            try:
                if reader.sealed:
                    found.append(_described(reader, path, name, size))
            finally:
                reader.close()
    return sorted(found, key=lambda segment: (segment.created_ns, segment.name))


def _described(reader: SegmentReader, path: str, name: SegmentName, size: int) -> Sealed:
    told: dict[str, Any] = {}
    maps = [block for block in reader.blocks if block.kind == KIND_META]
    if len(maps) > 1:  # the first says who writes, the last what was done
        with contextlib.suppress(DamageError):
            told = reader.read_map(maps[-1])
    opening: dict[str, Any] = {}
    with contextlib.suppress(DamageError):
        opening = reader.read_map(maps[0]) if maps else {}
    blobs = sum(block.kind == KIND_BLOB and block.step_min == 0 for block in reader.blocks)
    replaces, repaired = (_names_in(values, name.holds) for values in (told, opening))
    return Sealed(path, name, size, reader.header.created_ns, blobs, replaces, told, repaired)


def _names_in(told: Mapping[str, Any], holds: str) -> frozenset[SegmentName]:
    """What `replaces` of a META map says."""
    found = set()
    for entry in told["replaces"] if isinstance(told.get("replaces"), list) else ():
        with contextlib.suppress(ValueError, TypeError):
            writer, number = entry
            found.add(SegmentName(int(writer, 16), int(number), holds))
    return frozenset(found)


class Target:
    """The new segments while they are written. What they hold is the subclass's business.

    Attributes:
        damaged: Numbers of blocks in the open segment that were damaged before.
    """

    def __init__(
        self,
        files: Files,
        store: StoreIdentity,
        directory: str,
        run_id: str,
        *,
        holds: str,
        bytes_max: int,
        created_ns: int | None = None,
    ) -> None:
        """Writes nothing yet.

        Args:
            holds: What they hold, as their names say.
            bytes_max: The next one is begun when one has so many.
            created_ns: When they say that they were begun; None: now.
        """
        self._files = files
        self._store = store
        self._directory = directory
        self._holds = holds
        self._bytes_max = bytes_max
        self._created_ns = created_ns
        self._writer = random_u64()
        origin = platform.identity()
        self._machine = str(origin["machine"])
        self._opening = {"run": run_id, "writer": {"kind": "rewrite", **origin}}
        self._next_block = 0
        self._segment: SegmentWriter | None = None
        self.damaged: list[int] = []
        # What is there now, to be removed after trouble.
        self._paths: list[str] = []

    def told(self, segment: SegmentWriter) -> Mapping[str, Any]:
        """What the last META map of a segment says of it, beside what every rewriting says; asked once, when it ends."""
        raise NotImplementedError

    def open(self) -> SegmentWriter:
        """The segment that takes what comes next."""
        if self._segment is not None and self._segment.size >= self._bytes_max:
            self._end([])
        if self._segment is None:
            number = len(self._paths)
            header = FileHeader(self._store.id, self._writer, number, self._created_ns or clock.wall_ns())
            name = format_draft(SegmentName(self._writer, number, self._holds), self._machine)
            path = os.path.join(self._directory, name)
            self._segment = SegmentWriter.create(self._files, path, header, first_block_number=self._next_block)
            self._paths.append(path)
            self._segment.append_map(KIND_META, self._opening)
        return self._segment

    def _end(self, replaces: list[list[Any]]) -> None:
        """Seals the open segment and forces it."""
        segment = self.open() if self._segment is None else self._segment
        told = {**self.told(segment), "replaces": replaces, "ended_ns": clock.wall_ns()}
        segment.append_map(KIND_META, {**told, "damaged": self.damaged} if self.damaged else told)
        self.damaged = []
        segment.seal(close=False)
        self._next_block = segment.next_block_number
        segment.sync()
        segment.close()
        self._segment = None

    def finish(self, sources: Iterable[Sealed]) -> list[str]:
        """Ends the last segment, reads all of them back, gives them their names; their paths.

        Raises:
            OSError, DamageError: It is not as it should be, and nothing is replaced by it.
        """
        # Why also what the sources replaced: whoever looks at the numbers of a writer must still know where those are that
        # were removed long ago.
        sources = list(sources)
        names = {name for source in sources for name in (source.name, *source.replaces)}
        # What was repaired lies in `aside/`; where it does not yet, it is not ours to remove.
        names |= {name for source in sources for name in source.repaired if not self._is_there(name)}
        self._end([[hex_u64(name.writer), name.number] for name in sorted(names)])
        for path in self._paths:
            trouble = _new_damage(self._files, path)
            if trouble is not None:
                raise DamageError(f"what was rewritten cannot be read back from {path!r}: {trouble}")
        self._look_old({os.path.basename(source.path) for source in sources})
        last = len(self._paths) - 1
        for number, draft in enumerate(self._paths):
            if number == last > 0:
                # Race: a power loss may keep the later of two names and lose the earlier one.
                sync_names(self._files, self._directory, RUN_LEVELS)
            path = os.path.join(self._directory, format_segment(SegmentName(self._writer, number, self._holds)))
            self._files.rename(draft, path)
            self._paths[number] = path
        # From here on nothing may be undone: whoever looks may remove what was replaced.
        made, self._paths = self._paths, []
        sync_names(self._files, self._directory, RUN_LEVELS)
        return made

    def _look_old(self, names: set[str]) -> None:
        """Gives the drafts the age of what they replace: of a run of another host only its files tell whether it goes on."""
        with contextlib.suppress(OSError, ValueError):
            modified = max(modified for entry, _, modified in self._files.entries(self._directory) if entry in names)
            for path in self._paths:
                self._files.set_modified(path, modified)

    def _is_there(self, name: SegmentName) -> bool:
        return self._files.exists(os.path.join(self._directory, format_segment(name)))

    def abandon(self) -> None:
        """After trouble: removes what is there."""
        if self._segment is not None:
            with contextlib.suppress(OSError):
                self._segment.close()
            self._segment = None
        for path in self._paths:
            with contextlib.suppress(OSError):
                self._files.remove(path)


def remove_drafts(files: Files, directory: str) -> None:
    """Removes what rewritings of this machine that died left unfinished: their sources are all there. Holds: `hold`."""
    machine = platform.machine_id()
    for entry, _, modified in files.entries(directory):
        whose = parse_draft(entry)
        if whose is not None and (whose == machine_tag(machine) or clock.wall_ns() / 1e9 - modified > _DRAFT_SECONDS):
            with contextlib.suppress(OSError):
                files.remove(os.path.join(directory, entry))


def remove_replaced(
    files: Files,
    directory: str,
    now_ns: int,
    *,
    kept_seconds: float = KEPT_SECONDS,
    kinds: Collection[str] = (HISTORY, MEDIA),
) -> int:
    """Removes segments that others replace for long enough; how many must wait.

    The replacing one is looked at first, every byte of it: a disk may have lost what it had promised.
    """
    left = {segment.name: segment for segment in _all_sealed(files, directory, kinds)}
    waiting, checked = 0, dict[SegmentName, bool]()
    for segment in list(left.values()):
        for name in sorted(segment.replaces & left.keys()):
            # A clock that was set back says nothing, and nobody should wait for it for years.
            if abs(now_ns - segment.ended_ns) < kept_seconds * 1e9:
                waiting += 1
                continue
            if segment.name not in checked:
                checked[segment.name] = _is_good(files, directory, segment, left)
            if checked[segment.name] and not _is_needed(files, directory, name, left):
                with contextlib.suppress(OSError):
                    files.remove(left[name].path)
                    del left[name]
                    files.remove(os.path.join(directory, format_segment(name)) + SUSPECT_SUFFIX)
    return waiting


def _is_good(files: Files, directory: str, segment: Sealed, left: Mapping[SegmentName, Sealed]) -> bool:
    """Whether all files of a rewriting are whole; the last one replaces. That they have names says that they were forced."""
    for number in range(segment.name.number + 1):
        name = segment.name._replace(number=number)
        if name not in left:
            return False
        try:
            if _new_damage(files, left[name].path) is not None:
                return False
        except OSError:
            return False
    return _names_are_safe(files, directory)


def _new_damage(files: Files, path: str) -> str | None:
    """What is wrong with a rewritten segment, beside what it says was damaged before.

    Raises:
        OSError: It is gone.
    """
    checked = check_segment(files, path)
    if not checked.sealed:
        return "it is not sealed"
    if not checked.findings:
        return None
    reader = SegmentReader(files, path)
    try:
        damaged = _described(reader, path, SegmentName(0, 0, MEDIA), 0).told.get("damaged")
    except Error as error:
        return error.message
    finally:
        reader.close()
    known = set(damaged) if isinstance(damaged, list) else set()
    new = (found for found in checked.findings if found.block is None or found.block.number not in known)
    return next((found.text for found in new), None)


def _is_needed(files: Files, directory: str, name: SegmentName, left: Mapping[SegmentName, Sealed]) -> bool:
    """Whether a segment of that writer still keeps another one replaced.

    Without it, what it replaced would count again: be encoded once more, or, if it was removed on purpose, be back.
    """
    makers = [segment for segment in left.values() if segment.name.writer == name.writer]
    if any(segment.replaces & left.keys() for segment in makers):
        return True
    # Race: a power loss may keep the later of two removals and lose the earlier one.
    return any(segment.replaces for segment in makers) and not _names_are_safe(files, directory)


def _names_are_safe(files: Files, directory: str) -> bool:
    try:
        sync_names(files, directory, RUN_LEVELS)
    except OSError:
        return False
    return True
