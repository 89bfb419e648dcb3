"""The segments of one run as one thing: what is in the directory, which blocks they hold, and their payloads.

A scan lives as long as the `Run` that owns it. It keeps the block headers of every segment, but descriptors only while
an operation runs (`close` ends it) and never many: a run of 1024 ranks may have thousands of segments. Sealed segments
are looked at once, unsealed ones again whenever they have grown. Nothing here ever writes, and nothing that a file
holds makes it raise: what cannot be read becomes `Damage`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any, NamedTuple, Union

import msgpack

from ..errors import DamageError, Error
from ..files import Buffer, Files
from ..limits import BLOCK_RAW_BYTES_MAX, BLOCK_STORED_BYTES_MAX, STEP_MAX
from ..record import EXT_BIG_INT, KIND_ROW, BlobRef, MediaValue, Record, StoredBlob, decode_map
from ..rows import flatten
from ..segment.format import FILE_HEADER_SIZE, KIND_COLUMNS, KIND_ROWS, Block, Claim
from ..segment.naming import HISTORY, parse_segment
from ..segment.reader import Damage, SegmentReader
from ..shapes import Group, groups
from .blobs import Blobs
from .media import with_items

# Limit: descriptors of one scan. The usual soft limit of a process is 1024, and the user's program needs its own.
_OPEN_MAX = 64
# A segment that is gone when it is opened was replaced after the listing: list again. A third time is a broken disk.
_LISTINGS_MAX = 3
_GONE = (errno.ENOENT, errno.ESTALE)

# What a block of rows is made of: rows that share their keys, as arrays, or one record by itself.
Part = Union[Group, Record]

# Types of values in which media may be: all others of a row are what they are.
_MAY_HOLD_MEDIA = frozenset({MediaValue, BlobRef, StoredBlob, list})


class Gone(Error):
    """A segment was replaced while it was being read: `refresh` and start again where you were."""

    retriable = True


class Source:
    """One segment file.

    Attributes:
        blocks: Headers, only those that can be true.
        claims: How far its seal area says that its streams go.
        first_number, next_number: The numbers of its first block and of the one after its last; None where not known.
    """

    __slots__ = (
        "blocks", "changed", "claims", "damage", "first_number", "name", "next_number", "reader", "sealed", "seen", "size",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.size = 0
        self.changed = 0.0
        self.seen = -1
        self.sealed = False
        self.blocks: list[Block] = []
        self.claims: tuple[Claim, ...] = ()
        self.first_number: int | None = None
        self.next_number: int | None = None
        self.damage: list[Damage] = []
        self.reader: SegmentReader | None = None


class Entry(NamedTuple):
    """A block of rows to be read, and the blocks wholly inside its range that it makes superfluous if it is whole."""

    source: Source
    block: Block
    inside: list[Entry]


class Scan:
    """The segments in `directory`. Not thread-safe.

    Attributes:
        sources: File name to `Source`.
        noted: Damage found while reading payloads, by (file name, offset).
        unreadable: The blocks, by (file name, offset), of which not a byte could be had.
        blobs: Where the bytes of large values are.
        size_bytes: Bytes of all files in the directory.
        changed: Unix seconds at which a segment last changed, by the file system's clock; 0 without segments.
    """

    def __init__(self, files: Files, directory: str) -> None:
        self.directory = directory
        self.sources: dict[str, Source] = {}
        self.noted: dict[tuple[str, int], Damage] = {}
        self.unreadable: set[tuple[str, int]] = set()
        self.size_bytes = 0
        self.changed = 0.0
        self.blobs = Blobs(files, directory)
        self._files = files
        self._open: dict[str, Source] = {}

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
            entries = self._files.entries(self.directory)
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
            if source.reader is not None:
                self._grown(source, source.reader)
            else:
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

    def _grown(self, source: Source, reader: SegmentReader) -> None:
        try:
            reader.refresh()
        except Exception as error:  # as in `_opened`
            raise DamageError(f"cannot read {reader.path!r}: {error}") from error
        self._take(source, reader)

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
            reader = SegmentReader(self._files, path)
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
        source.reader = reader
        self._open[source.name] = source
        self._take(source, reader)
        return reader

    def _take(self, source: Source, reader: SegmentReader) -> None:
        source.blocks = [block for block in reader.blocks if _possible(block, reader.tail)]
        source.damage = list(reader.damage)
        source.damage += [
            Damage(reader.path, b.offset, b.offset, f"impossible header of block {b.number}")
            for b in reader.blocks
            if not _possible(b, reader.tail)
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

    def close(self) -> None:
        """Closes the descriptors; the next operation opens them again."""
        for source in list(self._open.values()):
            self._shut(source)

    def payload(self, source: Source, block: Block) -> Buffer:
        """The raw bytes of a block.

        Raises:
            DamageError: They are not what was written.
            Gone: The segment was replaced and must be looked for again.
        """
        reader = self._opened(source)
        try:
            return reader.payload(block)
        except DamageError:
            self.unreadable.add((source.name, block.offset))
            raise
        except Exception as error:  # as above: EIO, ESTALE, and whatever a made-up header provokes
            if isinstance(error, OSError) and error.errno in _GONE:
                raise Gone(f"{reader.path!r} is gone") from error
            self.unreadable.add((source.name, block.offset))
            raise DamageError(f"cannot read block {block.number} of {reader.path!r}: {error}") from error

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
        """The blocks of rows by stream, in order of their first sequence."""
        found: dict[int, list[tuple[Source, Block]]] = {}
        for source in self.sources.values():
            for block in source.blocks:
                if block.kind == KIND_ROWS:
                    found.setdefault(block.stream, []).append((source, block))
                elif block.kind == KIND_COLUMNS:
                    self.note(source, block, "COLUMNS block: written by a newer version")
        return {stream: _without_covered(pairs) for stream, pairs in found.items()}

    def parts(self, entry: Entry) -> Iterator[Part]:
        """The readable parts of an entry; where its block is damaged, also those of the blocks inside it.

        Raises:
            Gone: As `payload`. Nothing of the entry was given yet.
        """
        block = entry.block
        found: list[Part] = []
        try:
            found.extend(_decode(block, self.payload(entry.source, block)))
        except DamageError as error:
            self.note(entry.source, block, error.message)
            for other in entry.inside:
                found.extend(self.parts(other))
        yield from found


def decoded(payload: Buffer) -> dict[str, Any]:
    """The map in a payload.

    Raises:
        DamageError: It is none. Why not `decode_map` alone: a tensor's dtype comes from the file, and numpy answers some
            made-up ones with errors of other kinds (SyntaxError of `"f8,("`).
    """
    try:
        return decode_map(payload)
    except DamageError:
        raise
    except Exception as error:
        raise DamageError(f"payload of {len(payload)} bytes cannot be decoded: {error}") from error


def values_of(record: Record, blobs: Blobs | None = None) -> dict[str, Any]:
    """The values of a ROW record, flat, as users get them: integers beyond 64 bits are int again, media are items.

    Args:
        blobs: Where items find their bytes; None: media stay what they say of themselves.

    Raises:
        DamageError: Its payload is no map, or one whose flat names would fill the memory.
    """
    try:
        values = flatten(decoded(record.payload))
    except ValueError as error:
        raise DamageError(f"record {record.sequence} cannot be shown: {error}") from error
    for key, value in values.items():
        kind = type(value)
        if kind in _MAY_HOLD_MEDIA and blobs is not None:
            values[key] = with_items(value, blobs, key, record.step, record.time_ns / 1e9)
        elif kind is msgpack.ExtType and value.code == EXT_BIG_INT:
            try:
                values[key] = int(value.data)
            except ValueError:  # not written by us: it stays what it is
                continue
    return values


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


def _without_covered(pairs: list[tuple[Source, Block]]) -> list[Entry]:
    """Entries in order of first sequence; a block wholly inside an earlier one is put into that one.

    Invariant: in this order, the block with the largest last sequence so far begins no later than the next one, so if
    it also ends no earlier it covers it alone.
    """
    entries: list[Entry] = []
    widest: Entry | None = None
    for source, block in sorted(pairs, key=lambda pair: (pair[1].first, -pair[1].last)):
        entry = Entry(source, block, [])
        if widest is not None and block.last <= widest.block.last:
            widest.inside.append(entry)
            continue
        entries.append(entry)
        widest = entry
    return entries


def _decode(block: Block, payload: Buffer) -> Iterator[Part]:
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
