"""What there is to read of a stream: blocks of rows and windows of columns, each once, in the order of their sequences.

A window (docs/segment.md#columns) is what rewritten history consists of. While what it was made of is still on the disk, both
say the same; so an entry that lies wholly inside another's range is kept beside it, for the case that the other is damaged.
Reading both would do no harm but cost time: pieces are merged by sequence, and a row that comes twice stays one.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..segment.format import KIND_COLUMNS, KIND_ROWS, Block, Claim
from ..segment.reader import Damage, SegmentReader
from ..segment.windows import Range, is_window, range_of


class Source:
    """One segment file.

    Attributes:
        blocks: Headers, only those that can be true. impossible: The others.
        checked: How many headers of its reader are in one of the two.
        claims: How far its seal area says that its streams go.
        first_number, next_number: The numbers of its first block and of the one after its last; None where not known.
        memory: The payload of its only block, where it is no file but what a process holds in memory.
        places: Where the blocks of columns are that hold a key, by the index; of keys that were asked for, while it is open.
    """

    __slots__ = (
        "blocks", "changed", "checked", "claims", "damage", "first_number", "impossible", "memory", "name", "next_number", "places",
        "reader", "sealed", "seen", "size",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.size = 0
        self.changed = 0.0
        self.seen = -1
        self.sealed = False
        self.blocks: list[Block] = []
        self.impossible: list[Block] = []
        self.checked = 0
        self.claims: tuple[Claim, ...] = ()
        self.first_number: int | None = None
        self.next_number: int | None = None
        self.damage: list[Damage] = []
        self.reader: SegmentReader | None = None
        self.memory: bytes | None = None
        self.places: dict[str, frozenset[int]] = {}


class Entry:
    """A block of rows, or a window: what says all of a range of sequences of a stream.

    Attributes:
        source: The segment it stands in.
        blocks: One of rows, or all those of a window that are there, as they stand.
        columns: Those of a window that hold rows; none of a block of rows.
        is_window: Which of the two it is.
        stream, first, last: Whose, and the range of sequences, inclusive.
        step_min, step_max: The steps of its rows; 0 without rows.
        inside: Entries wholly inside its range, superfluous if it is whole.
    """

    __slots__ = (
        "blocks", "columns", "first", "inside", "is_window", "last", "source", "step_max", "step_min", "stream",
    )  # fmt: skip

    def __init__(self, source: Source, blocks: tuple[Block, ...]) -> None:
        self.source = source
        self.blocks = blocks
        self.stream, self.first, self.last = range_of(blocks[0])
        self.is_window = is_window(blocks[0])
        self.columns = tuple(block for block in blocks if block.kind == KIND_COLUMNS)
        rows = self.columns if self.is_window else blocks
        self.step_min = min((block.step_min for block in rows), default=0)
        self.step_max = max((block.step_max for block in rows), default=0)
        self.inside: list[Entry] = []

    @property
    def holds_rows(self) -> bool:
        """False: it surely holds facts only."""
        return bool(self.columns) or not self.is_window

    @property
    def records(self) -> int:
        """About how many records are in it: pieces of a row count once in each group of columns."""
        return min(sum(block.records for block in self.blocks), self.last - self.first + 1)


def entries_of(sources: Iterable[Source]) -> dict[int, list[Entry]]:
    """What there is to read, by stream, in order of first sequences."""
    found: dict[int, list[Entry]] = {}
    for source in sources:
        windows: dict[Range, dict[int, Block]] = {}
        for block in source.blocks:
            if is_window(block):
                # By number: a block that stands in the file twice is read once.
                windows.setdefault(range_of(block), {}).setdefault(block.number, block)
            elif block.kind == KIND_ROWS:
                found.setdefault(block.stream, []).append(Entry(source, (block,)))
        for (stream, _, _), blocks in windows.items():
            found.setdefault(stream, []).append(Entry(source, tuple(blocks.values())))
    return {stream: _without_covered(entries) for stream, entries in found.items()}


def _without_covered(found: list[Entry]) -> list[Entry]:
    """Entries in order of first sequence; one wholly inside an earlier one is put into that one.

    Invariant: in this order, the entry with the largest last sequence so far begins no later than the next one, so if
    it also ends no earlier it covers it alone.
    """
    entries: list[Entry] = []
    widest: Entry | None = None
    for entry in sorted(found, key=lambda entry: (entry.first, -entry.last, not entry.is_window)):
        if widest is not None and entry.last <= widest.last:
            widest.inside.append(entry)
            continue
        entries.append(entry)
        widest = entry
    return entries
