"""The segments of one run as one thing: what is in the directory, which blocks they hold, and their rows.

A scan lives as long as the `Run` that owns it. It keeps the block headers of every segment, but descriptors only while
an operation runs (`close` ends it) and never many: a run of 1024 ranks may have thousands of segments. Sealed segments
are looked at once, unsealed ones again whenever they have grown. Nothing here ever writes, and nothing that a file
holds makes it raise: what cannot be read becomes `Damage`.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Iterable, Iterator

from ..errors import DamageError, Error
from ..files import Buffer, Files
from ..limits import BLOCK_RAW_BYTES_MAX, BLOCK_STORED_BYTES_MAX, STEP_MAX
from ..record import KIND_ROW
from ..segment.columns import Columns, StoredGroup
from ..segment.format import FILE_HEADER_SIZE, Block
from ..segment.naming import HISTORY, parse_segment
from ..segment.reader import Damage, SegmentReader
from ..shapes import Group, groups
from .blobs import Blobs
from .entries import Entry, Source, entries_of
from .parts import Part

# Limit: descriptors of one scan. The usual soft limit of a process is 1024, and the user's program needs its own.
_OPEN_MAX = 64
# A segment that is gone when it is opened was replaced after the listing: list again. A third time is a broken disk.
_LISTINGS_MAX = 3
_GONE = (errno.ENOENT, errno.ESTALE)

# How much of columns is read: which groups there are, which rows they hold, or the values of the wanted keys as well.
DIRECTORY, ROWS, VALUES = 0, 1, 2


class Gone(Error):
    """A segment was replaced while it was being read: `refresh` and start again where you were."""

    retriable = True


class Scan:
    """The segments in `directory`. Not thread-safe.

    Attributes:
        sources: File name to `Source`.
        noted: Damage found while reading payloads, by (file name, offset).
        unreadable: The blocks, by (file name, offset), of which not a byte could be had.
        blobs: Where the bytes of large values are.
        size_bytes: Bytes of all files in the directory.
        changed: Unix seconds at which a segment last changed, by the file system's clock; 0 without segments.
        growing_open_max: How many segments that may still grow `close` leaves open. For whoever looks again and again: what is open is
            read on from where it ended, what is opened again from its beginning.
    """

    def __init__(self, files: Files, directory: str) -> None:
        self.directory = directory
        self.sources: dict[str, Source] = {}
        self.noted: dict[tuple[str, int], Damage] = {}
        self.unreadable: set[tuple[str, int]] = set()
        self.size_bytes = 0
        self.changed = 0.0
        self.growing_open_max = 0
        self.blobs = Blobs(files, directory)
        self.files = files
        self._open: dict[str, Source] = {}
        self._memory: list[Source] = []

    def refresh(self) -> None:
        """Looks again at the directory and at segments that have grown."""
        for _ in range(_LISTINGS_MAX):
            listed = self._list()
            for name in self.sources.keys() - listed.keys():
                self._shut(self.sources.pop(name))
            gone = 0
            for name, (size, changed) in listed.items():
                gone += not self._look(name, size, changed)
            if not gone:
                return

    def _list(self) -> dict[str, tuple[int, float]]:
        try:
            entries = self.files.entries(self.directory)
        except OSError as error:
            self.noted[self.directory, 0] = Damage(self.directory, 0, 0, f"cannot be listed: {error}")
            return {}
        self.size_bytes = sum(size for _, size, _ in entries)
        # A file shorter than a segment's header is not there yet; this also keeps us from opening a FIFO or a device.
        found = {n: (s, t) for n, s, t in entries if _is_history(n) and s >= FILE_HEADER_SIZE}
        self.changed = max((t for _, t in found.values()), default=0.0)
        return found

    def _look(self, name: str, size: int, changed: float) -> bool:
        """Brings one source up to date; False if it is gone."""
        source = self.sources.get(name) or self.sources.setdefault(name, Source(name))
        source.changed = changed
        if source.sealed or source.seen == size:
            return True
        try:
            if source.reader is None:
                self._opened(source)
            elif not self._grown(source, source.reader, size):
                self._shut(source)
                self._opened(source)
        except Gone:
            del self.sources[name]
            return False
        except DamageError as error:
            source.damage = [Damage(os.path.join(self.directory, name), 0, size, error.message)]
            if isinstance(error.__cause__, OSError):
                return True  # the disk's trouble may be over at the next look
        source.seen = size
        return True

    def _grown(self, source: Source, reader: SegmentReader, size: int) -> bool:
        """Takes what an open file, which is listed with `size` bytes, has got; False where another file has its name now: a copy of
        the store was brought up to date by something that replaces what has changed.
        """
        try:
            reader.refresh()
        except Exception as error:  # as in `_opened`
            raise DamageError(f"cannot read {reader.path!r}: {error}") from error
        if not source.seen <= size <= reader.size:
            return False
        self._take(source, reader)
        return True

    def _opened(self, source: Source) -> SegmentReader:
        """The source's open reader.

        Raises:
            Gone: The file is not there any more.
            DamageError: It cannot be read as a segment.
        """
        if source.reader is not None:
            return source.reader
        path = os.path.join(self.directory, source.name)
        try:
            reader = SegmentReader(self.files, path)
        except OSError as error:
            if error.errno in _GONE:
                raise Gone(f"{path!r} is gone") from error
            raise DamageError(f"cannot open {path!r}: {error}") from error
        except DamageError:
            raise
        except Exception as error:  # Why so broad: the file is hostile input, and one bad file must not hide a store.
            raise DamageError(f"cannot read {path!r}: {error}") from error
        while len(self._open) >= _OPEN_MAX:
            self._shut(next(iter(self._open.values())))
        source.reader, source.checked = reader, 0
        self._open[source.name] = source
        self._take(source, reader)
        return reader

    def _take(self, source: Source, reader: SegmentReader) -> None:
        # A header that was possible stays so: an open segment only grows.
        fresh = reader.blocks[source.checked :]
        possible = [block for block in fresh if _possible(block, reader.tail)]
        source.blocks = source.blocks + possible if source.checked else possible
        before = source.impossible if source.checked else []
        source.impossible = before + [block for block in fresh if not _possible(block, reader.tail)]
        source.checked = len(reader.blocks)
        source.damage = list(reader.damage)
        source.damage += [
            Damage(reader.path, b.offset, b.offset, f"impossible header of block {b.number}") for b in source.impossible
        ]
        source.sealed, source.size = reader.sealed, reader.tail
        source.claims = reader.seal.claims if reader.seal is not None else ()
        first = reader.blocks[0] if reader.blocks else None
        # A first block whose link to the file header is not right says itself that others are missing.
        source.first_number = first.number if first is not None and first.previous_crc == reader.header.crc else None
        source.next_number = reader.next_number

    def _shut(self, source: Source) -> None:
        self._open.pop(source.name, None)
        if source.reader is not None:
            source.reader.close()
            source.reader = None
            source.places.clear()

    def close(self) -> None:
        """Closes the descriptors, but for those that `growing_open_max` keeps; the next operation opens them again."""
        growing = [source for source in self._open.values() if not source.sealed]
        kept = {source.name for source in growing[: self.growing_open_max]}
        for source in list(self._open.values()):
            if source.name not in kept:
                self._shut(source)

    def hold(self, memory: list[Source]) -> None:
        """Takes records that are in memory as well; those that it took before are forgotten."""
        self._memory = memory

    def all_sources(self) -> list[Source]:
        """Segments, and what is in memory."""
        return [*self.sources.values(), *self._memory]

    def payload(self, source: Source, block: Block) -> Buffer:
        """The raw bytes of a block.

        Raises:
            DamageError: They are not what was written.
            Gone: The segment was replaced and must be looked for again.
        """
        if source.memory is not None:
            return source.memory
        reader = self._opened(source)
        try:
            return reader.payload(block)
        except DamageError:
            self.unreadable.add((source.name, block.offset))
            raise
        except Exception as error:  # as above: EIO, ESTALE, and whatever a made-up header provokes
            trouble = _trouble(reader, block, error)
            if isinstance(trouble, DamageError):
                self.unreadable.add((source.name, block.offset))
            raise trouble from error

    def _read_part(self, source: Source, block: Block, offset: int, size: int) -> bytes:
        """Some of the stored bytes of a block. Raises as `payload`."""
        reader = self._opened(source)
        try:
            return reader.read_part(block, offset, size)
        except OSError as error:
            raise _trouble(reader, block, error) from error

    def note(self, source: Source, block: Block, reason: str) -> None:
        """Remembers that a block cannot be read."""
        path = os.path.join(self.directory, source.name)
        reason = reason.replace(f" of {path!r}", "")  # the path stands beside it
        self.noted[source.name, block.offset] = Damage(path, block.offset, block.end, reason)

    def damage(self) -> list[Damage]:
        """What is known to be damaged so far; payloads are only checked when they are read."""
        found = [damage for source in self.sources.values() for damage in source.damage]
        return found + list(self.noted.values())

    def plan(self) -> dict[int, list[Entry]]:
        """What there is to read by stream, in order of first sequences."""
        return entries_of(self.all_sources())

    def parts(
        self, entry: Entry, keys: frozenset[str] | None = None, *, depth: int = VALUES, ordered: bool = False
    ) -> Iterator[Part]:
        """The readable parts of an entry; where something of it is damaged, also those of the entries inside it.

        Of columns, what was asked for is read and checked before the first part is given. What is damaged is noted and left
        out; the group of a damaged column has the others. After damage, rows may come twice.

        Args:
            keys: Parts that hold none of these may be left out, and of columns no others are read; None: all.
            depth: DIRECTORY, ROWS or VALUES: what of columns may be asked for afterwards.
            ordered: No other entry of the stream has one of its steps. Then sequences are left out where the steps alone
                tell the order of each key's values: `StoredGroup.sequences` must not be asked for.

        Raises:
            Gone: As `payload`. Nothing of the entry was given yet.
        """
        if entry.is_window:
            found, is_whole = self._of_window(entry, keys, depth, ordered)
        else:
            found, is_whole = self._of_rows(entry)
        if not is_whole and entry.inside:
            if ordered:  # what comes twice needs its sequences
                found, _ = self._of_window(entry, keys, depth, False) if entry.is_window else (found, False)
            for other in entry.inside:
                found.extend(self.parts(other, keys, depth=depth))
        yield from found

    def _of_rows(self, entry: Entry) -> tuple[list[Part], bool]:
        found: list[Part] = []
        (block,) = entry.blocks
        try:
            found.extend(row_parts(block, self.payload(entry.source, block)))
        except DamageError as error:
            self.note(entry.source, block, error.message)
            return found, False
        return found, True

    def _of_window(
        self, entry: Entry, keys: frozenset[str] | None, depth: int, ordered: bool
    ) -> tuple[list[Part], bool]:
        """The parts of a window, and whether nothing is missing."""
        # Where headers of the segment are damaged, one of its blocks may be gone.
        is_whole = not entry.source.damage
        held: list[tuple[Block, StoredGroup]] = []
        for block in entry.columns:
            if keys is not None and not self._may_hold(entry.source, block, keys):
                continue
            try:
                found = Columns(functools.partial(self._read_part, entry.source, block), block.stored_size).groups
            except DamageError as error:
                self.unreadable.add((entry.source.name, block.offset))
                self.note(entry.source, block, f"cannot read block {block.number}: {error.message}")
                is_whole = False
                continue
            held += [(block, group) for group in found if keys is None or not keys.isdisjoint(group.keys)]
        by_steps = ordered and _are_apart([group for _, group in held], keys)
        parts: list[Part] = []
        for block, group in held:
            try:
                trouble = _load(block, group, keys, depth, by_steps)
                parts.append(group)
            except DamageError as error:
                trouble = f"cannot read {len(group)} rows of block {block.number}: {error.message}"
            if trouble:
                self.note(entry.source, block, trouble)
                is_whole = False
        return parts, is_whole

    def _may_hold(self, source: Source, block: Block, keys: Iterable[str]) -> bool:
        """Whether a block of columns may hold one of some keys, by the segment's index where there is one."""
        reader = self._opened(source)
        if reader.key_index is None:
            return True
        for key in keys:
            held = source.places.get(key)
            if held is None:
                entries = reader.key_index.get(key, ())
                held = source.places[key] = frozenset(reader.blocks[entry[0]].offset for entry in entries)
            if block.offset in held:
                return True
        return False

    def indexed_keys(self, source: Source, blocks: Iterable[Block]) -> set[str] | None:
        """The keys in some blocks of columns by the word of the segment's index; None where it does not tell.

        Raises:
            DamageError: The segment cannot be opened.
            Gone: As `payload`.
        """
        reader = self._opened(source)
        if reader.key_index is None:
            return None
        wanted = {block.offset for block in blocks}
        return {
            key
            for key, entries in reader.key_index.items()
            if any(reader.blocks[entry[0]].offset in wanted for entry in entries)
        }


def _trouble(reader: SegmentReader, block: Block, error: Exception) -> Error:
    """What to raise when reading a block failed."""
    if isinstance(error, OSError) and error.errno in _GONE:
        return Gone(f"{reader.path!r} is gone")
    return DamageError(f"cannot read block {block.number} of {reader.path!r}: {error}")


def _possible(block: Block, end: int) -> bool:
    """Whether a header can be true. An index is only as good as its writer: its sizes are checked like a header's."""
    return (
        FILE_HEADER_SIZE <= block.offset < block.end <= end + 8
        and 0 <= block.stored_size <= BLOCK_STORED_BYTES_MAX
        and 0 <= block.raw_size <= BLOCK_RAW_BYTES_MAX
        and 0 <= block.first <= block.last
        and 0 <= block.step_min <= block.step_max <= STEP_MAX
        and 0 <= block.stream < 1 << 64
    )


def _are_apart(found: list[StoredGroup], keys: frozenset[str] | None) -> bool:
    """Whether each key's groups follow one another by step."""
    reached: dict[str, int] = {}
    for group in found:
        for key in group.keys if keys is None else keys.intersection(group.keys):
            if reached.get(key, -1) >= group.step_min:
                return False
            reached[key] = group.step_max
    return True


def _load(block: Block, group: StoredGroup, keys: frozenset[str] | None, depth: int, by_steps: bool) -> str:
    """Reads what is wanted of a group, and takes out the columns that are damaged.

    Returns:
        What is wrong with those; empty: nothing.

    Raises:
        DamageError: It is not known which rows it holds, or they cannot be in this block.
    """
    if not block.step_min <= group.step_min <= group.step_max <= block.step_max:
        raise DamageError(
            f"steps {group.step_min}-{group.step_max}, the block's header says {block.step_min}-{block.step_max}"
        )
    if depth == DIRECTORY:
        return ""
    steps = group.steps()
    if not by_steps or not (steps[1:] > steps[:-1]).all():
        group.sequences()
    if depth == ROWS:
        return ""
    group.times_us()
    troubles = []
    for key in group.keys if keys is None else keys.intersection(group.keys):
        try:
            group.values(key)
        except DamageError as error:
            troubles.append(f"block {block.number}: {error.message}")
            group.drop(key)
    return "; ".join(troubles)


def row_parts(block: Block, payload: Buffer) -> Iterator[Part]:
    """The ROW parts of a ROWS block, checked against its header: what reads by header must not miss a row.

    Raises:
        DamageError: From there on the payload cannot be understood.
    """
    try:
        for part in groups(payload):
            if isinstance(part, Group):
                steps = part.steps()
                low, high = int(steps.min()), int(steps.max())
            elif part.kind != KIND_ROW:
                continue
            else:
                low = high = part.step
            if low < block.step_min or high > block.step_max:
                raise DamageError(
                    f"block {block.number} holds steps {low}-{high}, its header says {block.step_min}-{block.step_max}"
                )
            yield part
    except (IndexError, ValueError, OverflowError) as error:  # a payload made to confuse the decoder
        raise DamageError(f"block {block.number} cannot be decoded: {error}") from error


def _is_history(name: str) -> bool:
    parsed = parse_segment(name)
    return parsed is not None and parsed.holds == HISTORY
