"""Windows as they stand in a file (docs/segment.md#columns): the blocks that together say all of a range of sequences.

`windows` finds them among the blocks of a segment. `read_window` reads one whole, as those do who believe nothing of it:
every column is decoded and compared with its block's header, and what is good is told from what is not, key by key.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import compression
from ..arrays import distinct
from ..errors import DamageError
from ..ids import hex_u64
from ..limits import STEP_MAX
from ..record import KIND_BLOB, KIND_GAP, KIND_META, Record, decode_map, walk
from .columns import PACKED, Columns, Group, StoredGroup
from .format import FLAG_MERGED, FLAG_WINDOW, KIND_COLUMNS, KIND_ROWS, Block
from .reader import SegmentReader, checksum_trouble

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

# Stream, first and last sequence: what the headers of all blocks of a window say alike.
Range = tuple[int, int, int]

# Limit: rows of a window, 128 MB of sequences. One block has at most 335,000; a window has several where its rows have many keys.
_ROWS_MAX = 1 << 24
_RECORD_KINDS = (KIND_META, KIND_GAP, KIND_BLOB)


def is_window(block: Block) -> bool:
    """Whether a block is one of a window."""
    return block.kind == KIND_COLUMNS or (block.kind == KIND_ROWS and bool(block.flags & FLAG_WINDOW))


def range_of(block: Block) -> Range:
    return block.stream, block.first, block.last


def windows(blocks: Iterable[Block]) -> dict[Range, list[Block]]:
    """The windows among the blocks of one file, in the order of their first blocks; a block that stands twice counts once.

    Why not only blocks that stand together: a damaged file may hold them anywhere, and each is proven to be of this file.
    """
    found: dict[Range, dict[int, Block]] = {}
    for block in blocks:
        if is_window(block):
            found.setdefault(range_of(block), {}).setdefault(block.number, block)
    return {where: list(numbers.values()) for where, numbers in found.items()}


def told_windows(values: Mapping[str, Any]) -> dict[Range, int]:
    """What `windows` of a META map says: how many blocks each window of the file has."""
    told: dict[Range, int] = {}
    entries = values.get("windows")
    for entry in entries if isinstance(entries, list) else ():
        try:
            stream, first, last, count = entry
            told[int(stream, 16), int(first), int(last)] = int(count)
        except (ValueError, TypeError):  # not written by us
            continue
    return told


def tell_windows(blocks: Iterable[Block]) -> list[list[Any]]:
    """`windows` of the META map of a file with these blocks."""
    return [[hex_u64(stream), first, last, len(found)] for (stream, first, last), found in windows(blocks).items()]


class Trouble(NamedTuple):
    """One thing in a window that is not as it should be.

    Attributes:
        block: Where; None: in no block that is there.
        keys: The keys whose values cannot be read between these steps; none: nobody knows which. Without a block nobody knows
            how many values, either.
        rows: Of how many rows with these keys not even sequence and step can be read. Others may hold other keys of them.
        values: How many values cannot be read of rows that are there.
    """

    block: Block | None
    text: str
    step_min: int
    step_max: int
    keys: tuple[str, ...] = ()
    rows: int = 0
    values: int = 0


class Contents:
    """What of a window can be read.

    Attributes:
        blocks: Its blocks, as they stand.
        groups: The rows, block by block, where they are wanted; of each group only the columns that are good.
        records: What its block of records holds.
        troubles: Everything else.
        sequences: Those of all rows and records, rising, each once.
    """

    def __init__(self, blocks: list[Block]) -> None:
        import numpy

        self.blocks = blocks
        self.groups: list[list[Group]] = []
        self.records: list[Record] = []
        self.troubles: list[Trouble] = []
        self.sequences: NDArray[numpy.uint64] = numpy.empty(0, numpy.uint64)

    @property
    def is_merged(self) -> bool:
        """Whether pieces of rows met, so that there are fewer sequences in it than it is about."""
        return any(block.flags & FLAG_MERGED for block in self.blocks)

    @property
    def is_whole(self) -> bool:
        """Whether all its rows are there; values of them may be lost."""
        return not any(trouble.rows for trouble in self.troubles)

    @property
    def lost(self) -> int:
        """How many of its sequences cannot be read; where pieces were merged, at most so many."""
        _, first, last = range_of(self.blocks[0])
        missing = last - first + 1 - len(self.sequences)
        if self.is_whole:
            return 0
        if self.is_merged and len(self.sequences):
            return min(missing, sum(trouble.rows for trouble in self.troubles))
        return missing


def read_window(
    reader: SegmentReader, blocks: list[Block], expected: int | None = None, *, keep: bool = True
) -> Contents:
    """Reads all of a window.

    Args:
        blocks: As `windows` gives them.
        expected: How many blocks it has, where that is told.
        keep: Whether `groups` are wanted; without them one block at a time is in memory.
    """
    import numpy

    contents = Contents(blocks)
    for block in blocks:
        if len(contents.sequences) > _ROWS_MAX:
            text = f"block {block.number}: there are {len(contents.sequences)} rows before it, at most {_ROWS_MAX}"
            contents.troubles.append(Trouble(block, text, block.step_min, block.step_max, rows=block.records))
        elif block.kind == KIND_ROWS:
            _read_records(reader, block, contents)
        else:
            groups = _read_columns(reader, block, contents.troubles)
            contents.sequences = functools.reduce(_union, [g.sequence for g in groups], contents.sequences)
            if keep:
                contents.groups.append(groups)
    found = numpy.array([record.sequence for record in contents.records], numpy.uint64)
    contents.sequences = _union(contents.sequences, found)
    contents.troubles += _as_a_whole(reader, contents, expected)
    return contents


def _union(one: NDArray[numpy.uint64], two: NDArray[numpy.uint64]) -> NDArray[numpy.uint64]:
    """The numbers in either. Most windows have one group of rows, whose numbers need no sorting."""
    import numpy

    return distinct(numpy.concatenate([one, two]))


def _as_a_whole(reader: SegmentReader, contents: Contents, expected: int | None) -> Iterator[Trouble]:
    """What no block of a window knows by itself."""
    blocks = contents.blocks
    stream, first, last = range_of(blocks[0])
    name = f"the window of sequences {first}-{last} of stream {hex_u64(stream)}"
    low, high = _steps_around(reader, blocks)
    missing = last - first + 1 - len(contents.sequences)
    if expected is not None and expected != len(blocks):
        yield Trouble(None, f"{name} has {len(blocks)} blocks, expected {expected}", low, high, rows=max(missing, 1))
    elif expected is None and _may_lack_blocks(reader, blocks):
        text = f"blocks beside {name} are missing, and nothing tells whether they were of it"
        yield Trouble(None, text, low, high, rows=max(missing, 1))
    elif missing and contents.is_whole and not contents.is_merged:
        text = f"{name} holds {len(contents.sequences)} of {last - first + 1} sequences"
        yield Trouble(blocks[0], text, low, high, rows=missing)
    in_order = sorted(blocks, key=lambda block: block.number)
    numbers = [block.number for block in in_order]
    if in_order != blocks or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        yield Trouble(blocks[0], f"the blocks {numbers} of {name} do not stand together", low, high)
    elif any(block.kind == KIND_ROWS for block in blocks[:-1]):
        yield Trouble(blocks[0], f"{name} does not end with its block of records", low, high)


def _steps_around(reader: SegmentReader, blocks: list[Block]) -> tuple[int, int]:
    """Between which steps the rows of a window are, of which some block may be missing: as those before and behind it say."""
    stream, first, last = range_of(blocks[0])
    columns = [block for block in reader.blocks if block.stream == stream and block.kind == KIND_COLUMNS]
    own = [block for block in blocks if block.kind == KIND_COLUMNS]
    before = max((block.step_max for block in columns if block.last < first), default=0)
    claimed = max(
        (claim.step for claim in reader.seal.claims if claim.stream == stream) if reader.seal else (), default=0
    )
    behind = min((block.step_min for block in columns if block.first > last), default=claimed)
    low = min((block.step_min for block in own), default=before)
    high = max((block.step_max for block in own), default=behind)
    return min(low, before), max(high, behind, before)


def _may_lack_blocks(reader: SegmentReader, blocks: list[Block]) -> bool:
    """Whether the blocks around a window, or between its own, are not all there."""
    there = {block.number for block in reader.blocks} | ({reader.index.number} if reader.index is not None else set())
    numbers = [block.number for block in blocks]
    around = range(max(min(numbers) - 1, 0), max(numbers) + 2)
    return not there.issuperset(around)


def _read_columns(reader: SegmentReader, block: Block, troubles: list[Trouble]) -> list[Group]:
    """The good groups of a block; the columns of each that are good."""
    before, good = len(troubles), []
    where = f"block {block.number}"
    try:
        stored = Columns(functools.partial(reader.read_part, block), block.stored_size).groups
        rows = sum(map(len, stored))
        if rows != block.records:
            raise DamageError(f"its groups hold {rows} rows, its header says {block.records}")
    except Exception as error:  # Why so broad: bytes made to confuse the decoder, whose checksums are right
        keys = _indexed_keys(reader, block)
        troubles.append(Trouble(block, f"{where}: {error}", block.step_min, block.step_max, keys, rows=block.records))
        return []
    for group in stored:
        is_of_block = block.step_min <= group.step_min <= group.step_max <= block.step_max
        low, high = (group.step_min, group.step_max) if is_of_block else (block.step_min, block.step_max)
        try:
            read = _head_of(group, block)
        except Exception as error:  # as above
            text = f"{where}, rows with {_names(group.keys)}: {error}"
            troubles.append(Trouble(block, text, low, high, group.keys, rows=len(group)))
            continue
        for key in group.keys:
            try:
                read.values[key] = _values_of(group, key)
            except Exception as error:  # as above
                troubles.append(Trouble(block, f"{where}, {key!r}: {error}", low, high, (key,), values=len(group)))
        good.append(read)
    trouble = checksum_trouble(block, reader.bytes_at(block.start, block.stored_size))
    if trouble is not None and len(troubles) == before:
        troubles.append(Trouble(block, f"{where}: {trouble}; every column is good", block.step_min, block.step_max))
    return good


def _indexed_keys(reader: SegmentReader, block: Block) -> tuple[str, ...]:
    """The keys in a block by the word of the segment's index."""
    if reader.key_index is None or block not in reader.blocks:
        return ()
    index = reader.blocks.index(block)
    return tuple(key for key, entries in reader.key_index.items() if any(entry[0] == index for entry in entries))


def _head_of(group: StoredGroup, block: Block) -> Group:
    """Which rows a group has, without their values.

    Raises:
        DamageError: They cannot be read, or cannot be in this block.
    """
    sequence, step = group.sequences(), group.steps()
    read = Group(sequence, step, group.times_ns() // 1000, group.flags(), {})
    first, last, low, high = int(sequence[0]), int(sequence[-1]), int(step.min()), int(step.max())
    if not bool((sequence[1:] > sequence[:-1]).all()) or first < block.first or last > block.last:
        raise DamageError(f"sequences {first}-{last} do not rise within {block.first}-{block.last}")
    if (low, high) != (group.step_min, group.step_max) or low < block.step_min or high > min(block.step_max, STEP_MAX):
        raise DamageError(
            f"its steps are {low}-{high}; its directory says {group.step_min}-{group.step_max}, the block's header "
            f"{block.step_min}-{block.step_max}"
        )
    return read


def _values_of(group: StoredGroup, key: str) -> Any:
    """The values of a key, as they are written again.

    Raises:
        DamageError: They cannot be read, or are not those that the directory tells of.
    """
    import numpy

    values, told = group.values(key), group.statistics(key)
    if told is not None:
        numbers = values[~numpy.isnan(values)] if values.dtype.kind == "f" else values
        found = (numbers.min(), numbers.max()) if len(numbers) else (None, None)
        if found != (told.minimum, told.maximum) or told.nans != len(values) - len(numbers):
            raise DamageError(f"its values are {found[0]} to {found[1]}, its directory says {told}")
    return group.packed(key) if group.kind(key) == PACKED else values


def _read_records(reader: SegmentReader, block: Block, contents: Contents) -> None:
    """The records of a window: facts, gaps, announcements of large values; no rows."""
    good: list[Record] = []
    last = block.first - 1
    try:
        payload = compression.decompress(block.codec, reader.stored(block), block.raw_size)
        for record in walk(payload):
            decode_map(record.payload)
            if record.kind not in _RECORD_KINDS or not last < record.sequence <= block.last:
                raise DamageError(f"a record of kind {record.kind} and sequence {record.sequence} behind {last}")
            last = record.sequence
            good.append(record)
        if len(good) != block.records:
            raise DamageError(f"{len(good)} records, its header says {block.records}")
    except Exception as error:  # as in `_read_columns`
        text = f"block {block.number}: {error}"
        lost = max(block.records - len(good), 1)
        contents.troubles.append(Trouble(block, text, block.step_min, block.step_max, rows=lost))
    contents.records += good


def _names(keys: tuple[str, ...]) -> str:
    """The keys of a group, the first few of many."""
    shown = ", ".join(map(repr, keys[:5])) or "no keys"
    return shown + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
