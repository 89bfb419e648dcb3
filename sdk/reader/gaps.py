"""What is not in the data: sequences that no block holds, refused calls, and blocks that are missing from a writer's chain.

That a sequence existed is known from the blocks around it, from what writers claim (CHECKPOINT blocks, the seal area of
a segment) and from GAP maps with `first` and `last`, whose writer knew that it could not store them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..ids import hex_u64
from ..segment.format import Claim
from ..segment.naming import SegmentName, format_segment, parse_segment
from ..segment.reader import Damage
from .entries import Entry
from .scan import Scan


@dataclass(frozen=True, slots=True)
class Gap:
    """Records that are not in the data.

    Attributes:
        stream: Whose records, 16 hex digits.
        count: How many.
        step_min, step_max: The steps they belong to, as far as known.
        start, end: When it began and ended, Unix seconds; None where nothing tells.
        reason: Why they were refused ("disk full", …) or lost ("fsync failed", …), or "missing" (sequences that no
            segment holds), or "damage" (a block that holds them cannot be read).
        first, last: The sequences, inclusive; None of refused calls, which have none.
        key: Whose value has lost its bytes, or whose values cannot be read; the rows are there, and `count` is 0. None:
            whole records are missing.
        values: How many values of `key` cannot be read (without `key`: nobody knows of which, or how many); None where the bytes
            of a large one are lost.
    """

    stream: str
    count: int
    step_min: int
    step_max: int
    start: float | None
    end: float | None
    reason: str
    first: int | None = None
    last: int | None = None
    key: str | None = None
    values: int | None = None


class Loss(NamedTuple):
    """Accepted records that a GAP map tells of: sequences `first` to `last`, inclusive."""

    first: int
    last: int
    gap: Gap


def missing(scan: Scan, claims: Iterable[Claim], losses: Mapping[int, list[Loss]]) -> list[Gap]:
    """Sequences between 1 and the last one known of a stream that no readable block holds.

    Only damage that somebody ran into counts: payloads are not read for this.

    Args:
        claims: What CHECKPOINT blocks say; what seal areas say is in the scan.
        losses: By stream, what GAP maps tell. Their word is taken only for what no block holds.
    """
    ends: dict[int, tuple[int, int]] = {}
    sealed = (claim for source in scan.sources.values() for claim in source.claims)
    for claim in (*claims, *sealed):
        last, step = ends.get(claim.stream, (0, 0))
        ends[claim.stream] = (max(last, claim.last), max(step, claim.step))
    for stream, told in losses.items():
        last, step = ends.get(stream, (0, 0))
        ends[stream] = (max(last, *(loss.last for loss in told)), max(step, *(loss.gap.step_max for loss in told)))
    plan = scan.plan()
    gaps: list[Gap] = []
    for stream in {**plan, **ends}:
        for hole in _holes(scan, stream, plan.get(stream, []), *ends.get(stream, (0, 0))):
            gaps += _explained(hole, losses.get(stream, ()))
    return gaps


def _holes(scan: Scan, stream: int, entries: list[Entry], last: int, step_last: int) -> Iterator[Gap]:
    """The gaps of one stream whose last sequence and step are at least `last` and `step_last`."""
    damaged: list[Entry] = []
    expected, step = 1, 0
    for entry in _readable(scan, entries, damaged):
        if entry.first > expected:
            steps = (min(step, entry.step_min), entry.step_min)
            yield from _hole(stream, expected, entry.first - 1, steps, damaged)
        expected, step = max(expected, entry.last + 1), max(step, entry.step_max)
    last = max(last, *(entry.last for entry in damaged), 0)
    if last >= expected:
        yield from _hole(stream, expected, last, (step, max(step, step_last)), damaged)


def _readable(scan: Scan, entries: list[Entry], damaged: list[Entry]) -> Iterator[Entry]:
    """The entries of which something can be read: of a window that is damaged in part, `verify` tells what is lost."""
    for entry in entries:
        if all((entry.source.name, block.offset) in scan.unreadable for block in entry.blocks):
            damaged.append(entry)
            yield from _readable(scan, entry.inside, damaged)
        else:
            yield entry


def _hole(stream: int, first: int, last: int, steps: tuple[int, int], damaged: list[Entry]) -> Iterator[Gap]:
    """Sequences `first` to `last`; the steps are those of a damaged block's header where there is one."""
    for entry in sorted(damaged, key=lambda entry: entry.first):
        if entry.first <= last and entry.last >= first:
            if first < entry.first:
                yield _gap(stream, first, entry.first - 1, (steps[0], entry.step_min), "missing")
            end = min(last, entry.last)
            yield _gap(stream, max(first, entry.first), end, (entry.step_min, entry.step_max), "damage")
            first, steps = end + 1, (entry.step_max, steps[1])
    if first <= last:
        yield _gap(stream, first, last, steps, "missing")


def _gap(stream: int, first: int, last: int, steps: tuple[int, int], reason: str) -> Gap:
    return Gap(hex_u64(stream), last - first + 1, min(steps), max(steps), None, None, reason, first, last)


def _explained(hole: Gap, losses: Iterable[Loss]) -> Iterator[Gap]:
    """The hole in pieces: what a GAP map tells of with the map's reason, times and steps, the rest as it is."""
    first, last = hole.first or 0, hole.last or 0
    for loss in sorted(losses, key=lambda loss: loss.first):
        if loss.first > last or loss.last < first:
            continue
        if first < loss.first:
            yield _part(hole, first, loss.first - 1)
        yield _part(loss.gap, max(first, loss.first), min(last, loss.last))
        first = loss.last + 1
    if first <= last:
        yield _part(hole, first, last)


def _part(gap: Gap, first: int, last: int) -> Gap:
    return Gap(gap.stream, last - first + 1, gap.step_min, gap.step_max, gap.start, gap.end, gap.reason, first, last)


def broken_chains(scan: Scan, replaced: set[SegmentName]) -> list[Damage]:
    """Where a writer's block numbers do not go on from one of its segments to the next: a tail or a segment is missing.

    Args:
        replaced: Segments whose blocks are elsewhere now.
    """
    writers: dict[int, list[SegmentName]] = {}
    for name in scan.sources:
        parsed = parse_segment(name)
        if parsed is not None:
            writers.setdefault(parsed.writer, []).append(parsed)
    found = []
    for names in writers.values():
        before = {name.number for name in replaced if name.writer == names[0].writer}
        expected: int | None = 0
        for parsed in sorted(names):
            source = scan.sources[format_segment(parsed)]
            expected = None if parsed.number - 1 in before else expected
            first = source.first_number
            # Why only a greater one: a writer that came back to a run counts from 0 again.
            if first is not None and expected is not None and first > expected:
                path = os.path.join(scan.directory, source.name)
                reason = f"blocks {expected} to {first - 1} of its writer are missing before it"
                found.append(Damage(path, 0, 0, reason))
            expected = source.next_number
    return found
