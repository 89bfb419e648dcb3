"""What the worker does with a store's rows: sealed segments become columns, and few.

A rewriting reads its sources stream by stream, makes windows of them (`daemon.compact.window`), and reads each window back as
soon as it is written: every row and value of the sources must be in it (`daemon.compact.compare`). Only when all of a
rewriting is on the disk does it replace its sources (`daemon.store.replacing`).

Segments that are not sealed, that an fsync may have lost (`.suspect`) or of which one byte is damaged are left alone: the
first two belong to somebody else, and of the third `stepd verify` must go on telling.

Limit: in memory are the rows of one window, 8 MiB as columns, and of one source more; where ranges overlap without one
covering the other, all that overlap. Nothing grows with the run or the number of its streams but the headers of blocks.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy

from daemon.compact.compare import compare
from daemon.compact.plan import FILE_BYTES_MAX, choose
from daemon.compact.window import Part, joined, merged, parts_of_groups, parts_of_records
from daemon.store.replacing import KEPT_SECONDS, Sealed, Target, remove_drafts, remove_replaced, sealed
from sdk import clock
from sdk.arrays import distinct
from sdk.errors import DamageError, Error
from sdk.files import Files
from sdk.limits import FREE_BYTES_MIN, KIB
from sdk.location import StoreIdentity, check_store
from sdk.reader.run import Run
from sdk.reader.state import RUNNING
from sdk.record import Record, pack
from sdk.segment.columns import Columns
from sdk.segment.columns import pack as pack_columns
from sdk.segment.cutting import blocks
from sdk.segment.format import (
    COLUMNS_RAW_BYTES_MAX,
    FLAG_HAS_META,
    FLAG_MERGED,
    FLAG_WINDOW,
    KIND_CHECKPOINT,
    KIND_COLUMNS,
    KIND_GAP,
    KIND_META,
    KIND_ROWS,
    ROW_BYTES,
    Block,
)
from sdk.segment.naming import HISTORY, RUNS, SUSPECT_SUFFIX, SegmentName, parse_segment
from sdk.segment.reader import SegmentReader, checksum_trouble
from sdk.segment.windows import is_window, read_window, tell_windows, told_windows, windows
from sdk.segment.writer import SegmentWriter

# What a window aims at: a little less than one block, for groups whose rows are counted twice.
_WINDOW_RAW_BYTES = COLUMNS_RAW_BYTES_MAX * 15 // 16
# A window of so much is not opened again to be joined with its neighbours.
_LARGE_RAW_BYTES = _WINDOW_RAW_BYTES // 2
# Why: each group and each column has an entry in a directory, so keys that come once or twice each in rows of their own take
# more as columns than as rows. They are left as they are, to be looked at again with more of their kind.
_GROWTH_MAX = 2
_SMALL_BYTES = 64 * KIB
# Limit: records of a window that are no rows.
_RECORDS_BYTES_MAX = 1 << 20


class Report(NamedTuple):
    """What was done to the rows of a run, or of many.

    Attributes:
        rows: Sequences in windows that were written or copied.
        sources, files: Segments before and after.
        bytes_before, bytes_after: Their sizes.
        waiting: Replaced segments that are still to be removed.
        alone: What was left alone, and why. `errors`: what could not be done, and is tried again.
    """

    rows: int = 0
    sources: int = 0
    files: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    waiting: int = 0
    alone: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()

    def __add__(self, other: tuple[Any, ...]) -> Report:
        return Report(*(mine + its for mine, its in zip(self, other)))


class Ended(Exception):
    """Nobody wants this rewriting any more."""


def work(
    files: Files,
    store: StoreIdentity,
    *,
    is_wanted: Callable[[], bool] = lambda: True,
    progress: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Compacts every run of a store. The caller holds the right to rewrite.

    Args:
        is_wanted: Asked between two windows; False ends the pass.
        progress: Hears after each run how far it is.
    """
    runs = os.path.join(store.path, RUNS)
    done = Report()
    for entry, _, _ in files.entries(runs):
        if not is_wanted():
            break
        try:
            done += compact_run(files, store, os.path.join(runs, entry), is_wanted=is_wanted)
        except (OSError, Error) as error:
            done += Report(errors=(f"{entry}: {error}",))
        progress(done)
    return done


def compact_run(
    files: Files,
    store: StoreIdentity,
    directory: str,
    *,
    is_wanted: Callable[[], bool] = lambda: True,
    progress: Callable[[int], None] = lambda size: None,
    kept_seconds: float = KEPT_SECONDS,
) -> Report:
    """Compacts one run until there is nothing to do. The caller holds the right to rewrite.

    Args:
        progress: Hears the bytes of sources that were read.
        kept_seconds: How long what was replaced stays, for those who read it.

    Raises:
        OSError: The disk refuses. Whatever was replaced by then is whole.
        DamageError: What was written is not what was read; nothing was replaced by it.
    """
    remove_drafts(files, directory)
    alone: dict[SegmentName, str] = {}
    done = Report()
    count = 0
    with contextlib.suppress(Ended):
        while True:
            segments = [one for one in sealed(files, directory, HISTORY) if one.name not in alone]
            # Why at the end only: it needs more than names, and a run that lives has something to do most of the time.
            chosen = choose(segments, ended=False) or (
                choose(segments, ended=True) if len(segments) > 1 and _has_ended(files, directory) else []
            )
            # Joining goes on only while there become fewer: what was joined may be as large as what it was made of.
            joins = not any(one.is_raw for one in chosen)
            if not chosen or (joins and len(segments) == count):
                break
            damaged = {one.name: trouble for one in chosen if (trouble := _trouble(files, one.path)) is not None}
            alone |= damaged
            needed = sum(one.size for one in chosen) + FREE_BYTES_MIN
            if not damaged and (free := files.free_bytes(directory)) < needed:
                # What runs need the room for comes first.
                alone[chosen[0].name] = f"{directory!r}: {free} bytes are free on the disk, compaction needs {needed}"
                break
            if not damaged:
                count = len(segments) if joins else 0
                done += rewrite_rows(files, store, directory, chosen, is_wanted=is_wanted, progress=progress)
                remove_replaced(files, directory, clock.wall_ns(), kinds=(HISTORY,), kept_seconds=kept_seconds)
    waiting = remove_replaced(files, directory, clock.wall_ns(), kinds=(HISTORY,), kept_seconds=kept_seconds)
    return done._replace(waiting=waiting, alone=tuple(alone.values()))


def _has_ended(files: Files, directory: str) -> bool:
    """Whether nothing more will come into a run, as far as anybody can know here."""
    for entry, _, _ in files.entries(directory):
        name = parse_segment(entry)
        if name is not None and name.holds == HISTORY:
            try:
                reader = SegmentReader(files, os.path.join(directory, entry))
            except (OSError, Error):  # nobody can know
                return False
            reader.close()
            if not reader.sealed:
                return False
    return Run(directory, files=files).state != RUNNING


def _trouble(files: Files, path: str) -> str | None:
    """Why a segment is left alone; None: every byte of it is good."""
    if files.exists(path + SUSPECT_SUFFIX):
        return f"{path!r} is suspect: an fsync of it failed"
    with contextlib.closing(SegmentReader(files, path)) as reader:
        if reader.damage or reader.header_is_damaged or reader.index is None:
            return f"{path!r} is damaged"
        for block in (*reader.blocks, reader.index):
            trouble = checksum_trouble(block, reader.bytes_at(block.start, block.stored_size))
            if trouble is not None:
                return f"block {block.number} of {path!r} is damaged: {trouble}"
        found = windows(reader.blocks)
        maps = [block for block in reader.blocks if block.kind == KIND_META]
        told = told_windows(reader.read_map(maps[-1])) if found and maps else {}
        if any(told.get(where, len(members)) != len(members) for where, members in found.items()):
            return f"{path!r} does not have the windows that it tells of"
    return None


# ---- one rewriting


def rewrite_rows(
    files: Files,
    store: StoreIdentity,
    directory: str,
    sources: list[Sealed],
    *,
    is_wanted: Callable[[], bool] = lambda: True,
    progress: Callable[[int], None] = lambda size: None,
) -> Report:
    """Makes few segments of `sources`, whose every byte is known to be good.

    Raises:
        OSError, DamageError: As `compact_run`; nothing was replaced.
        Ended: It is not wanted any more; nothing was replaced.
    """
    check_store(store, files)
    with contextlib.ExitStack() as stack:
        readers = []
        for source in sources:
            readers.append(SegmentReader(files, source.path))
            stack.callback(readers[-1].close)
        target = _Target(files, store, directory, readers, min(source.created_ns for source in sources))
        stack.callback(target.abandon)
        target.carry(readers)
        rows = 0
        for entries in _by_stream(readers).values():
            for window in _windows(entries):
                if not is_wanted():
                    raise Ended
                rows += window.last - window.first + 1
                target.put(window)
                progress(sum(block.stored_size for entry in window.entries for block in entry.blocks))
        paths = target.finish(sources)
    after = sum(size for entry, size, _ in files.entries(directory) if os.path.join(directory, entry) in paths)
    return Report(rows, len(sources), len(paths), sum(source.size for source in sources), after)


class _Entry(NamedTuple):
    """A block of rows, or a window, of a source."""

    reader: SegmentReader
    blocks: list[Block]

    @property
    def first(self) -> int:
        return self.blocks[0].first

    @property
    def last(self) -> int:
        return self.blocks[0].last

    @property
    def is_window(self) -> bool:
        return is_window(self.blocks[0])


def _by_stream(readers: Iterable[SegmentReader]) -> dict[int, list[_Entry]]:
    """What there is to read of each stream, in order of first sequences; what another covers is left out."""
    found: dict[int, list[_Entry]] = {}
    for reader in readers:
        members = [[block] for block in reader.blocks if block.kind == KIND_ROWS and not is_window(block)]
        for each in (*members, *windows(reader.blocks).values()):
            found.setdefault(each[0].stream, []).append(_Entry(reader, each))
    for stream, entries in found.items():
        left: list[_Entry] = []
        for entry in sorted(entries, key=lambda entry: (entry.first, -entry.last)):
            # As in `sdk.reader.entries`: the one with the largest last sequence so far begins no later.
            if not left or entry.last > left[-1].last:
                left.append(entry)
        found[stream] = left
    return found


class _Window:
    """What of a contiguous range was read. `is_copied`: it is written as it stands."""

    def __init__(self, entry: _Entry, parts: list[Part], records: Iterable[Record], *, is_copied: bool = False) -> None:
        self.entries = [entry]
        self.parts = parts
        self.records = {record.sequence: record for record in records}
        self.first, self.last = entry.first, entry.last
        self.is_copied = is_copied

    @property
    def stream(self) -> int:
        return self.entries[0].blocks[0].stream

    @functools.cached_property
    def raw_bytes(self) -> int:
        return sum(part.raw_bytes for part in self.parts)

    @property
    def is_unchanged(self) -> bool:
        """Whether it is one window that stands in a source already, or something that only can be copied."""
        return self.is_copied or (len(self.entries) == 1 and self.entries[0].is_window)

    @property
    def bytes_max(self) -> int:
        """What its columns may take, beyond which they are worth less than the rows."""
        return _GROWTH_MAX * sum(block.end - block.offset for entry in self.entries for block in entry.blocks)

    @property
    def records_bytes(self) -> int:
        return sum(len(record.payload) for record in self.records.values())

    def has_room(self, other: _Window) -> bool:
        """Whether what touches it fits beside it."""
        fits = self.raw_bytes + other.raw_bytes <= _WINDOW_RAW_BYTES
        return fits and self.records_bytes + other.records_bytes <= _RECORDS_BYTES_MAX

    def add(self, other: _Window) -> None:
        size = self.raw_bytes + other.raw_bytes
        self.entries += other.entries
        self.parts += other.parts
        self.records |= other.records
        self.last = max(self.last, other.last)
        self.raw_bytes = size


def _windows(entries: list[_Entry]) -> Iterator[_Window]:
    """The windows of a stream: what touches is joined while there is room, what overlaps is joined in any case."""
    open_window: _Window | None = None
    for index, entry in enumerate(entries):
        before = open_window is not None and entry.first <= open_window.last
        after = index + 1 < len(entries) and entries[index + 1].first <= entry.last
        read = _read(entry, may_copy=not before and not after)
        if open_window is not None:
            touches = entry.first <= open_window.last + 1 and not read.is_copied and not open_window.is_copied
            if touches and (before or open_window.has_room(read)):
                open_window.add(read)
                continue
            yield open_window
        open_window = read
    if open_window is not None:
        yield open_window


def _read(entry: _Entry, *, may_copy: bool) -> _Window:
    """What an entry holds. A large window is not read; what cannot be written as columns is copied."""
    if may_copy and entry.is_window and _raw_bytes(entry) >= _LARGE_RAW_BYTES:
        return _Window(entry, [], [], is_copied=True)
    try:
        if entry.is_window:
            contents = read_window(entry.reader, entry.blocks, len(entry.blocks))
            if contents.troubles:
                raise DamageError(contents.troubles[0].text)
            groups = [group for block in contents.groups for group in block]
            return _Window(entry, parts_of_groups(groups), contents.records)
        block = entry.blocks[0]
        parts, records = parts_of_records(entry.reader.payload(block))
        # A payload that is not what its header says would make a window that claims what is not there.
        _check(block, parts, records)
        return _Window(entry, parts, records)
    except (DamageError, ValueError, TypeError, OverflowError, IndexError, RecursionError):
        # Its checksum is right, so it was written like this: names too long to be flat, a nesting that msgpack reads and
        # does not write, or bytes that somebody made up. Readers have taken it as it is until now.
        return _Window(entry, [], [], is_copied=True)


def _check(block: Block, parts: list[Part], records: list[Record]) -> None:
    count = len(records)
    for part in parts:
        count += len(part.sequence)
        low, high = int(part.step.min()), int(part.step.max())
        first, last = int(part.sequence.min()), int(part.sequence.max())
        if low < block.step_min or high > block.step_max or first < block.first or last > block.last:
            raise DamageError(f"steps {low}-{high} and sequences {first}-{last} in block {block.number}")
    if count != block.records or any(not block.first <= record.sequence <= block.last for record in records):
        raise DamageError(f"{count} records in block {block.number}, its header says {block.records}")


def _columns(entry: _Entry, block: Block) -> Columns:
    return Columns(functools.partial(entry.reader.read_part, block), block.stored_size)


def _raw_bytes(entry: _Entry) -> int:
    total = 0
    for block in entry.blocks:
        if block.kind == KIND_COLUMNS:
            groups = _columns(entry, block).groups
            total += max(sum(len(group) * (ROW_BYTES + 8 * len(group.keys)) for group in groups), block.stored_size)
    return total


class _Target(Target):
    """The new segments while they are written."""

    def __init__(
        self, files: Files, store: StoreIdentity, directory: str, readers: list[SegmentReader], created_ns: int
    ) -> None:
        run = str(readers[0].read_map(readers[0].blocks[0]).get("run", ""))
        super().__init__(files, store, directory, run, holds=HISTORY, bytes_max=FILE_BYTES_MAX, created_ns=created_ns)
        self._read_back: SegmentReader | None = None
        # What the sources' writers noted of damage that they had found.
        self._noted: list[str] = []
        self._key_counts: dict[SegmentReader, dict[int, dict[str, int]] | None] = {}

    def told(self, segment: SegmentWriter) -> Mapping[str, Any]:
        if self._read_back is not None:
            self._read_back.close()
            self._read_back = None
        told: dict[str, Any] = {"windows": tell_windows(segment.blocks)}
        noted, self._noted = self._noted, []
        return {**told, "damage": "; ".join(noted)} if noted else told

    def abandon(self) -> None:
        if self._read_back is not None:
            self._read_back.close()
            self._read_back = None
        super().abandon()

    def carry(self, readers: Iterable[SegmentReader]) -> None:
        """Writes what is about no rows that are there: how far streams go, and what is missing."""
        streams: dict[str, list[int]] = {}
        gaps: dict[tuple[int, bytes], dict[str, Any]] = {}
        noted: dict[str, None] = {}
        for reader in readers:
            for block in reader.blocks:
                if block.kind == KIND_CHECKPOINT:
                    _note_streams(streams, reader.read_map(block))
                elif block.kind == KIND_GAP:
                    gaps.setdefault((block.stream, bytes(reader.payload(block))), reader.read_map(block))
                elif block.kind == KIND_META and "damage" in (values := reader.read_map(block)):
                    noted.setdefault(str(values["damage"]))
        self._noted = list(noted)
        segment = self.open()
        if streams:
            segment.append_map(KIND_CHECKPOINT, {"streams": streams})
        for (stream, _), values in gaps.items():
            segment.append_map(KIND_GAP, values, stream=stream)

    def _keys(self, entry: _Entry, block: Block) -> dict[str, int] | None:
        """The keys in a block that is copied, for the index; None: nobody knows."""
        if block.kind != KIND_COLUMNS and entry.is_window:
            return {}
        if entry.reader not in self._key_counts:
            self._key_counts[entry.reader] = _key_counts(entry.reader)
        counts = self._key_counts[entry.reader]
        return None if counts is None else counts.get(block.number, {})

    def put(self, window: _Window) -> None:
        """Writes a window and reads it back.

        Raises:
            DamageError: It does not say what its sources say.
        """
        segment = self.open()
        start = len(segment.blocks)
        parts = joined(window.parts)
        if window.is_unchanged or not _append(segment, window, parts):
            for entry in window.entries:
                for block in entry.blocks:
                    segment.copy(block, entry.reader.stored(block), keys=self._keys(entry, block))
            return
        if self._read_back is None:
            self._read_back = SegmentReader(self._files, segment.path)
        else:
            self._read_back.refresh()
        written = self._read_back.blocks[-(len(segment.blocks) - start) :]
        if written != segment.blocks[start:]:
            raise DamageError(f"what was written to {segment.path!r} is not there")
        contents = read_window(self._read_back, written, len(written))
        if contents.troubles:
            raise DamageError(f"what was rewritten cannot be read back: {contents.troubles[0].text}")
        found = [group for block in contents.groups for group in block]
        compare(parts, window.records.values(), found, contents.records)


def _key_counts(reader: SegmentReader) -> dict[int, dict[str, int]] | None:
    """By the number of a block how many records hold each key, as the segment's index says; None: it does not."""
    if reader.key_index is None:
        return None
    counts: dict[int, dict[str, int]] = {}
    for key, entries in reader.key_index.items():
        for index, _, _, count in entries:
            counts.setdefault(reader.blocks[index].number, {})[key] = count
    return counts


def _note_streams(streams: dict[str, list[int]], values: Mapping[str, Any]) -> None:
    """The furthest that checkpoints say of each stream: a sequence, and perhaps a step."""
    told = values.get("streams")
    for stream, claim in told.items() if isinstance(told, dict) else ():
        old = streams.setdefault(str(stream), [])
        numbers = [number for number in claim if type(number) is int] if isinstance(claim, list) else []
        old[:] = [max(pair) for pair in zip(old, numbers)] + (old[len(numbers) :] or numbers[len(old) :])


def _append(segment: SegmentWriter, window: _Window, parts: list[Part]) -> bool:
    """Appends a window as columns; False: nothing, for it is better left as it is."""
    try:
        groups = merged(parts) if parts else []
    except DamageError:  # bytes that somebody made up
        return False
    columns = [pack_columns(block) for block in blocks(groups)]
    if sum(len(part) for packed in columns for part in packed.parts) > max(window.bytes_max, _SMALL_BYTES):
        return False
    rows = len(distinct(numpy.concatenate([group.sequence for group in groups]))) if groups else 0
    is_merged = rows + len(window.records) < window.last - window.first + 1
    flags = FLAG_MERGED if is_merged else 0
    where: dict[str, Any] = {"stream": window.stream, "first": window.first, "last": window.last}
    for packed in columns:
        segment.append(
            KIND_COLUMNS, packed.parts, records=packed.records, step_min=packed.step_min, step_max=packed.step_max,
            flags=flags, keys=packed.keys, compress=False, **where,
        )  # fmt: skip
    if window.records:
        records = [record for _, record in sorted(window.records.items())]
        # What a fact carries is the step that was open, which may have no row yet.
        steps = [max(record.step - 1, 0) for record in records]
        segment.append(
            KIND_ROWS, b"".join(map(pack, records)), records=len(records), step_min=min(steps), step_max=max(steps),
            flags=flags | FLAG_WINDOW | FLAG_HAS_META, keys={}, **where,
        )  # fmt: skip
    return True
