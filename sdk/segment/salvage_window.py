"""What is kept of a damaged window: every row and every column that is good, and GAPs that name the rest exactly.

A window claims all sequences of its range. So where some are lost, it is cut into windows of the ranges that are there; a
reader that has another copy of the rest may then use it. Where pieces of rows were merged nobody can say which sequences
were in the lost rows, and where the lost ones are scattered among the others there would be a window for each row: there the
range stays, and the GAP tells how many rows are lost, at most, between which steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..record import pack as pack_record
from .columns import Group, pack
from .format import FLAG_MERGED, KIND_COLUMNS, KIND_ROWS
from .windows import Contents, Trouble, range_of
from .writer import SegmentWriter

# Limit: windows that one becomes.
_KEPT_MAX = 64

Span = tuple[int, int]


class Salvage:
    """What becomes of a damaged window.

    Attributes:
        kept: The ranges of sequences that are there, each to be written as a window.
        lost_values: How many values are lost of rows of which something is there.
    """

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._blocks = contents.blocks
        _, first, last = range_of(contents.blocks[0])
        self._range = first, last
        found = list(_spans(contents))
        is_cut = not (contents.is_whole or contents.is_merged or len(found) > _KEPT_MAX)
        self.kept: list[Span] = found if is_cut or not found else [self._range]
        lost_rows = [trouble for trouble in contents.troubles if trouble.rows]
        self._steps = (
            min((trouble.step_min for trouble in lost_rows), default=0),
            max((trouble.step_max for trouble in lost_rows), default=0),
        )
        # Where others hold keys of the same rows, or may, what is lost of these are values.
        is_partly = contents.lost < sum(trouble.rows for trouble in lost_rows)
        self._partly = [
            trouble for trouble in lost_rows if len(contents.sequences) and (is_partly or not trouble.block)
        ]
        values = [trouble for trouble in contents.troubles if trouble.values]
        self.lost_values = sum(trouble.values for trouble in values)
        self.lost_values += sum(trouble.rows * len(trouble.keys) for trouble in self._partly)

    def write(self, writer: SegmentWriter, span: Span) -> None:
        """Appends the window of a range that is there."""
        stream = self._blocks[0].stream
        # A range that stays although rows are lost has fewer sequences than it says, as where pieces were merged.
        merged = FLAG_MERGED if self._contents.is_merged or (span == self._range and self._contents.lost) else 0
        for groups in self._contents.groups:
            cut = [part for part in (_cut(group, span) for group in groups) if part is not None]
            if cut:
                packed = pack(cut)
                writer.append(
                    KIND_COLUMNS, packed.parts, stream=stream, first=span[0], last=span[1], records=packed.records,
                    step_min=packed.step_min, step_max=packed.step_max, flags=merged, keys=packed.keys, compress=False,
                )  # fmt: skip
        records = [record for record in self._contents.records if span[0] <= record.sequence <= span[1]]
        if records:
            old = next(block for block in self._blocks if block.kind == KIND_ROWS)
            writer.append(
                KIND_ROWS, b"".join(map(pack_record, records)), stream=stream, first=span[0], last=span[1],
                records=len(records), step_min=old.step_min, step_max=old.step_max, flags=old.flags | merged, keys={},
            )  # fmt: skip

    def gaps(self) -> Iterator[dict[str, Any]]:
        """GAP maps of what is lost."""
        first, last = self._range
        lost = self._contents.lost
        if self.kept == [self._range]:
            if lost:
                yield _gap(f"repair-{first}-{last}", lost, self._steps)
        else:
            expected = first
            for start, end in [*self.kept, (last + 1, last)]:
                if start > expected:
                    yield lost_sequences((expected, start - 1), self._steps)
                expected = end + 1
        for number, trouble in enumerate([*self._partly, *(t for t in self._contents.troubles if t.values)]):
            yield from _lost_values(trouble, f"repair-{first}-{last}-{number}")


def lost_sequences(sequences: Span, steps: tuple[int, int]) -> dict[str, Any]:
    """The GAP map of sequences that are lost."""
    first, last = sequences
    return {**_gap(f"repair-{first}", last - first + 1, steps), "first": first, "last": last}


def _gap(episode: str, count: int, steps: tuple[int, int]) -> dict[str, Any]:
    return {"episode": episode, "count": count, "step_min": steps[0], "step_max": steps[1], "reason": "damage"}


def _lost_values(trouble: Trouble, episode: str) -> Iterator[dict[str, Any]]:
    """A GAP for each key; where nobody knows the keys, one for all."""
    steps = trouble.step_min, trouble.step_max
    for key in trouble.keys:
        yield {**_gap(f"{episode}-{key}", 0, steps), "key": key, "values": trouble.rows or trouble.values}
    if not trouble.keys:
        yield {**_gap(episode, 0, steps), "values": trouble.values}


def _spans(contents: Contents) -> Iterator[Span]:
    """The ranges of sequences that are there."""
    import numpy

    sequences = contents.sequences
    if len(sequences):
        ends = numpy.flatnonzero(numpy.diff(sequences) > 1)
        starts = [0, *(ends + 1).tolist()]
        yield from (
            (int(sequences[a]), int(sequences[b])) for a, b in zip(starts, [*ends.tolist(), len(sequences) - 1])
        )


def _cut(group: Group, span: Span) -> Group | None:
    """The rows of a group within a range of sequences; None: it has none there."""
    import numpy

    start = int(numpy.searchsorted(group.sequence, numpy.uint64(span[0]), "left"))
    end = int(numpy.searchsorted(group.sequence, numpy.uint64(span[1]), "right"))
    if start == end:
        return None
    values = {key: column[start:end] for key, column in group.values.items()}
    return Group(
        group.sequence[start:end], group.step[start:end], group.time_us[start:end], group.flags[start:end], values
    )
