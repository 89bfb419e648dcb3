"""Segments of one run from one store into another: what is sealed as it is, of the others what was written since.

A run is the union of its segments, and no two have one name (docs/segment.md), so nothing is decoded. Life of a segment that is
still being written: each pass puts its new blocks into a *portion*, a sealed segment of a writer of its own, whose first map says
what it was `copied` from. Small portions are made one with the next, so that there are few. When the segment is sealed it is copied
whole, and its portions go.

Why portions, and not a copy that grows: the store that is written to may be served by a daemon, and a segment in it that is not
sealed has a writer who may be dead by all that the daemon can see. It would seal the copy, and two would write one file.

What is copied is a draft, is forced to the disk, and only then gets its name. So whatever has its name is whole, and a pass that was
killed is begun again by looking at what is there.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from daemon.store.replacing import remove_replaced, sealed
from sdk import clock, platform
from sdk.errors import DamageError, Error
from sdk.files import File, Files, sync_names
from sdk.ids import hex_u64, random_u64
from sdk.location import StoreIdentity
from sdk.segment.check import check_segment
from sdk.segment.format import (
    BLOCKS_OFFSET,
    KIND_COLUMNS,
    KIND_INDEX,
    KIND_KEYS,
    KIND_META,
    KIND_ROWS,
    Block,
    FileHeader,
)
from sdk.segment.naming import HISTORY, MEDIA, RUN_LEVELS, SegmentName, format_segment, parse_segment
from sdk.segment.reader import SegmentReader
from sdk.segment.recovery import set_aside
from sdk.segment.windows import is_window
from sdk.segment.writer import SegmentWriter

COPIED = "copied"
_CHUNK_BYTES = 1 << 20
# How often a pass begins again because the source was rewritten under it; what is replaced stays there for a minute.
_LOOKS_MAX = 3
_GONE = (errno.ENOENT, errno.ESTALE)


class Portion(NamedTuple):
    """Blocks from byte `start` to `end` of a segment that was not sealed, and the name of the segment that holds them."""

    start: int
    end: int
    name: str


# Name of a segment of the source that is not sealed to its portions, in order.
Portions = dict[str, list[Portion]]


class _Seen(NamedTuple):
    """A segment of the source: how far it can be read."""

    name: str
    end: int
    is_sealed: bool
    modified: float
    records: int


class Crossing:
    """One run on its way from one store into another; one thread.

    Attributes:
        portions: What lies in the target of segments that are not sealed; to be kept between passes. Where it is lost it is found again.
        troubles: What is wrong with segments that cannot be read.
    """

    def __init__(
        self,
        files: Files,
        source: str,
        target: str,
        run_id: str,
        store: StoreIdentity,
        *,
        tag: str,
        portions: Portions | None = None,
        note: Callable[[int, int], None] = lambda records, size: None,
    ) -> None:
        """Nothing is read or written yet.

        Args:
            source, target: The run's directory in either store.
            store: The one that is written to.
            tag: Of the store that is read, for names of drafts: only one pass at a time comes from there.
            note: Hears of every buffer that was written: records, of which it is told when all of a segment is there, and bytes. May raise.
        """
        self._files = files
        self._source, self._target = source, target
        self._run_id, self._store = run_id, store
        self._suffix = f".{tag}.copy"
        self._note = note
        self.portions: Portions = dict(portions or {})
        self.troubles: list[str] = []

    def bring(self) -> None:
        """Writes what the target lacks. All of it is safe there when this returns.

        Raises:
            OSError: A disk refuses.
        """
        self._files.make_directory(self._target)
        self._remove_drafts()
        for look in range(_LOOKS_MAX):
            self.troubles.clear()
            try:
                # Why in this order: a blob is stored before its row. So what the rows name that were seen first is in the
                # media that are looked at afterwards, and they are copied before.
                rows = self._seen(HISTORY)
                self._copy_all(self._seen(MEDIA))
                self._copy_all(rows)
                break
            except OSError as error:
                if error.errno not in _GONE or look == _LOOKS_MAX - 1:
                    raise
        sync_names(self._files, self._target, RUN_LEVELS)

    def tidy(self, lock: Callable[[], platform.HeldLock | None]) -> None:
        """Removes what is in the target twice, by the rules of a store that is written on the spot.

        Args:
            lock: Gives the right to rewrite in the target; where another process has it, that one removes what was replaced.

        Raises:
            OSError: A disk refuses.
        """
        here = self._listed(self._source)
        self._remove_portions(self._listed(self._target), here)
        there = self._listed(self._target)
        if there.keys() <= here.keys() | self._names_of_portions():
            return
        for name in self._rewritten(repaired=True) & there.keys() - here.keys():
            with contextlib.suppress(FileNotFoundError):
                set_aside(self._files, os.path.join(self._target, name))
        held = lock()
        if held is not None:
            try:
                remove_replaced(self._files, self._target, clock.wall_ns())
            finally:
                held.release()

    # -- what there is ---------------------------------------------------------------------------------------------------------

    def _listed(self, directory: str) -> dict[str, tuple[int, float]]:
        """The segments in a directory: name to size and time of change."""
        found = self._files.entries(directory)
        return {name: (size, modified) for name, size, modified in found if parse_segment(name) is not None}

    def _seen(self, holds: str) -> list[_Seen]:
        """The segments of the source that the target does not hold whole, oldest writer's first, and of a writer in order."""
        there = self._listed(self._target)
        found: list[_Seen] = []
        gone: set[str] | None = None
        for name, (size, modified) in sorted(self._listed(self._source).items()):
            if (
                f"{holds}-" != name[: len(holds) + 1]
                or size < BLOCKS_OFFSET
                or (name in there and there[name][0] == size)
            ):
                continue
            gone = self._rewritten() if gone is None else gone
            if name in gone:
                continue
            try:
                reader = SegmentReader(self._files, os.path.join(self._source, name))
            except (OSError, Error) as error:
                if isinstance(error, OSError) and error.errno in _GONE:
                    raise
                self.troubles.append(str(error) if name in str(error) else f"{name}: {error}")
                continue
            try:
                if _copied_from(reader, holds) in there:
                    continue  # a portion that came to the source itself from elsewhere, and what it is of is there whole
                end = reader.size if reader.sealed else reader.tail
                found.append(_Seen(name, end, reader.sealed, modified, self._records(name, reader.blocks, bool(there))))
            finally:
                reader.close()
        return found

    def _records(self, name: str, blocks: Iterable[Block], is_begun: bool) -> int:
        """How many records of a segment are new to the target; what was rewritten holds none of which it had not heard."""
        known = self.portions.get(name)
        start = known[-1].end if known else 0
        return sum(
            block.records
            for block in blocks
            if block.offset >= start and block.kind in (KIND_ROWS, KIND_COLUMNS) and not (is_begun and is_window(block))
        )

    def _rewritten(self, *, repaired: bool = False) -> set[str]:
        """Names of what the target holds in segments that replace it, or were made of it by a repair."""
        found = (segment for kind in (HISTORY, MEDIA) for segment in sealed(self._files, self._target, kind))
        return {format_segment(name) for one in found for name in (one.repaired if repaired else one.replaces)}

    # -- copying ---------------------------------------------------------------------------------------------------------------

    def _copy_all(self, seen: Iterable[_Seen]) -> None:
        there, was_written = self._listed(self._target), False
        for one in seen:
            if one.is_sealed:
                if one.name not in there or not self._is_sealed(one.name):
                    self._copy_whole(one)
                    was_written = True
            else:
                was_written |= self._copy_portion(one, there)
        if was_written:
            # Race: a power loss may keep the later of two names and lose the earlier one.
            sync_names(self._files, self._target, RUN_LEVELS)

    def _is_sealed(self, name: str) -> bool:
        with contextlib.suppress(OSError, Error):
            reader = SegmentReader(self._files, os.path.join(self._target, name))
            try:
                return reader.sealed
            finally:
                reader.close()
        return False

    def _copy_whole(self, seen: _Seen) -> None:
        source = os.path.join(self._source, seen.name)
        with self._draft(seen.name, seen.modified) as draft:
            copy_file(self._files, source, draft, seen.end, self._wrote)
        self._note(seen.records, 0)

    def _copy_portion(self, seen: _Seen, there: Mapping[str, Any]) -> bool:
        """Whether something of a segment that is not sealed was new."""
        known = self._known(seen.name, there)
        start = known[-1].end if known else 0
        if start >= seen.end:
            return False
        # Limit: sizes that at least double from one to the next older portion are 23 for 8 MiB of blocks of a few bytes each.
        while known and known[-1].end - known[-1].start <= seen.end - start and known[-1].name in there:
            start = known.pop().start
        name = self._write_portion(seen, start)
        if name is None:
            return False
        self.portions[seen.name] = [*known, Portion(start, seen.end, name)]
        return True

    def _known(self, name: str, there: Mapping[str, Any]) -> list[Portion]:
        """The portions of a segment as far as the target has them, in their places or rewritten, one behind the other."""
        found: list[Portion] = []
        rewritten: set[str] | None = None
        for portion in self.portions.get(name, ()):
            if portion.name not in there:
                rewritten = self._rewritten() if rewritten is None else rewritten
                if portion.name not in rewritten:
                    break
            if portion.start != (found[-1].end if found else 0):
                break
            found.append(portion)
        return found

    def _write_portion(self, seen: _Seen, start: int) -> str | None:
        """A sealed segment of the blocks from `start` on; its name, or None: there are none."""
        reader = SegmentReader(self._files, os.path.join(self._source, seen.name))
        try:
            blocks = [block for block in reader.blocks if block.offset >= start and block.end <= seen.end]
            blocks = [block for block in blocks if _is_carried(reader, block)]
            origin = parse_segment(seen.name)
            if not blocks or origin is None:
                return None
            name = SegmentName(random_u64(), 0, origin.holds)
            header = FileHeader(self._store.id, name.writer, 0, reader.header.created_ns)
            text = format_segment(name)
            with self._draft(text, seen.modified) as draft:
                segment = SegmentWriter.create(self._files, draft, header)
                try:
                    copied = [hex_u64(origin.writer), origin.number, start, seen.end]
                    writer = {"kind": "sync", **platform.identity()}
                    segment.append_map(KIND_META, {"run": self._run_id, "writer": writer, COPIED: copied})
                    for block in blocks:
                        # Why not `stored`: a block with a bad payload is copied as it is, and goes on telling what is missing.
                        segment.copy(block, reader.bytes_at(block.start, block.stored_size))
                        self._wrote(block.stored_size)
                    segment.seal(close=False)
                    segment.sync()
                finally:
                    segment.close()
            self._note(seen.records, 0)
            return text
        finally:
            reader.close()

    @contextlib.contextmanager
    def _draft(self, name: str, modified: float) -> Iterator[str]:
        """A path to write to; it gets its name when the block ends, and goes when it fails."""
        path = os.path.join(self._target, name)
        draft = path + self._suffix
        try:
            yield draft
            # Why: of a run of another host only its files tell whether it goes on.
            self._files.set_modified(draft, modified)
            self._files.rename(draft, path)
        except BaseException:
            with contextlib.suppress(OSError):
                self._files.remove(draft)
            raise

    def _wrote(self, size: int) -> None:
        self._note(0, size)

    # -- removing ----------------------------------------------------------------------------------------------------------------

    def _remove_drafts(self) -> None:
        for name, _, _ in self._files.entries(self._target):
            if name.endswith(self._suffix):
                self._files.remove(os.path.join(self._target, name))

    def _remove_portions(self, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        """Removes the portions of what the target now has whole, or rewritten; and those that nobody knows of."""
        extra = there.keys() - here.keys()
        # Why not asked of the source: what it rewrote since this pass began has not arrived.
        rewritten = self._rewritten() | self._rewritten(repaired=True) if extra else set()
        for name in list(self.portions):
            if name in rewritten or (name in there and self._is_whole(name)):
                del self.portions[name]
        was_removed = False
        for name in extra - self._names_of_portions():
            origin = self._origin(name)
            if origin is None:
                continue
            if origin in rewritten or origin in self.portions or (origin in there and self._is_whole(origin)):
                self._files.remove(os.path.join(self._target, name))
                was_removed = True
        if was_removed:
            self._files.sync_directory(self._target)

    def _is_whole(self, name: str) -> bool:
        """Whether every block of a segment of the target can be read: the source may have rotted since a portion was made of it."""
        checked = check_segment(self._files, os.path.join(self._target, name))
        return checked.sealed and not checked.findings

    def _origin(self, name: str) -> str | None:
        """What a segment of the target is a portion of; None: it is none, or cannot be read."""
        parsed = parse_segment(name)
        with contextlib.suppress(OSError, Error):
            reader = SegmentReader(self._files, os.path.join(self._target, name))
            try:
                return _copied_from(reader, parsed.holds) if parsed is not None else None
            finally:
                reader.close()
        return None

    def _names_of_portions(self) -> set[str]:
        return {portion.name for portions in self.portions.values() for portion in portions}


def _copied_from(reader: SegmentReader, holds: str) -> str | None:
    """The name of what a segment is a portion of; None: it is none."""
    with contextlib.suppress(DamageError, ValueError, TypeError, IndexError):
        if reader.blocks[0].kind == KIND_META:
            told = reader.read_map(reader.blocks[0]).get(COPIED)
            if isinstance(told, list):
                return format_segment(SegmentName(int(told[0], 16), int(told[1]), holds))
    return None


def _is_carried(reader: SegmentReader, block: Block) -> bool:
    """Whether a block says something of the run, and not of the file that it stands in."""
    if block.kind in (KIND_KEYS, KIND_INDEX):  # its writer is just sealing it
        return False
    if block.kind != KIND_META:
        return True
    with contextlib.suppress(DamageError):
        return "writer" not in reader.read_map(block)
    return True


def copy_file(files: Files, source: str, target: str, size: int, note: Callable[[int], None]) -> None:
    """A new file of the first `size` bytes of another one, forced to the disk; shared where the file system can.

    Raises:
        OSError: A disk refuses, or the source is shorter (EIO).
    """
    try:
        files.clone(source, target)
    except FileExistsError:
        raise
    except OSError:
        made = files.create(target)
        try:
            _append_from(files, source, made, size, note)
            made.sync()
        finally:
            made.close()
        return
    made = files.open(target, write=True)
    try:
        if made.size < size:
            raise OSError(errno.EIO, f"has {made.size} bytes, expected {size}", source)
        if made.size > size:
            made.truncate(size)
        made.sync()
        note(size)
    finally:
        made.close()


def _append_from(files: Files, source: str, made: File, size: int, note: Callable[[int], None]) -> None:
    file = files.open(source)
    try:
        while made.size < size:
            data = file.read(made.size, min(_CHUNK_BYTES, size - made.size))
            if not data:
                raise OSError(errno.EIO, f"has {made.size} bytes, expected {size}", source)
            made.append([data])
            note(len(data))
    finally:
        file.close()
