"""What is new of a run since it was last carried somewhere, as arrays, stream by stream in order of sequences.

What was delivered is known by ranges of sequences for each stream, not by steps or places in files: a late row has a high
sequence and is delivered whenever it comes, and rewriting segments changes nothing. Memory holds a batch, not the run.

Whoever needs whole rows in order of steps, and cannot take a late one, has `RowsInOrder`.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from ..errors import DamageError
from ..record import Record
from . import join
from .columns import unite
from .entries import Entry
from .facts import StreamFacts
from .follow import Follower, united
from .lanes import TRAINING, Lane, lanes_of
from .parts import Part, column_of, steps_in_rows, times_us, values_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .run import Run
    from .scan import Scan

# Stream to the sequences that were delivered, as ranges in order that do not touch.
Delivered = dict[int, list[tuple[int, int]]]

# Limit: rows of ten floats take 8 MiB; small blocks of a slow training come together, so that nobody pays for each of them.
BATCH_RECORDS = 65_536
_BATCH_RAW_BYTES = 8 << 20
_ROWS_AT_A_TIME = 1024


class Points(NamedTuple):
    """Rows of one stream that hold the same keys, in order of sequences.

    Attributes:
        sequence: uint64[n], rising.
        step: int64[n].
        time_us: int64[n], Unix time in microseconds.
        columns: Key to n values: float64, int64, uint64 or bool arrays where all are of that kind, else a list of what users
            get of the reader: str, lists, bytes, `MediaItem`s, None where a null was logged, which takes the value away.
    """

    sequence: NDArray[numpy.uint64]
    step: NDArray[numpy.int64]
    time_us: NDArray[numpy.int64]
    columns: dict[str, NDArray[Any] | list[Any]]

    def __len__(self) -> int:
        # Of the tuple it would be the number of its fields.
        return len(self.sequence)


class Batch(NamedTuple):
    """Some new rows of one stream.

    Attributes:
        stream: What it said of itself.
        lane: The place of its lane among those of its kinds: 0 is the main one.
        first, last: The sequences that it is about, inclusive; some in between may have been delivered before.
        points: The rows. One row may be in several, with the same sequence: keys that come and go.
        hidden: How many rows were left out because a resume hid them.
    """

    stream: StreamFacts
    lane: int
    first: int
    last: int
    points: list[Points]
    hidden: int

    @property
    def values(self) -> int:
        """How many values there are."""
        return sum(len(points) * len(points.columns) for points in self.points)

    def rows(self) -> Iterator[tuple[int, int, int, dict[str, Any]]]:
        """(sequence, step, time in microseconds, values) of each row, put together, in order of sequences."""
        if not self.points:
            return
        sequences = numpy.concatenate([points.sequence for points in self.points])
        owners = numpy.repeat(numpy.arange(len(self.points)), [len(points) for points in self.points])
        places = numpy.concatenate([numpy.arange(len(points)) for points in self.points])
        heads = [(points.step.tolist(), points.time_us.tolist()) for points in self.points]
        columns = [
            [(key, values if isinstance(values, list) else values.tolist()) for key, values in points.columns.items()]
            for points in self.points
        ]
        last, row = -1, (0, 0, 0, dict[str, Any]())
        order = numpy.argsort(sequences, kind="stable")
        for sequence, owner, place in zip(sequences[order].tolist(), owners[order].tolist(), places[order].tolist()):
            if sequence != last:
                if last >= 0:
                    yield row
                steps, times = heads[owner]
                last, row = sequence, (sequence, steps[place], times[place], {})
            row[3].update((key, values[place]) for key, values in columns[owner])
        yield row


def deliver(run: Run, delivered: Delivered, kinds: Collection[str] = TRAINING) -> Iterator[Batch]:
    """The rows of some kinds of streams that are not in `delivered`, which is kept up to date: a batch is in it when it is given.

    Damaged blocks are left out, and noted in `run.damage`; their sequences count as delivered.

    Raises:
        StoreError: Segments keep disappearing.
    """
    yield from run._giving(lambda: _new_batches(run, delivered, kinds))


def _new_batches(run: Run, delivered: Delivered, kinds: Collection[str]) -> Iterator[Batch]:
    plan = run._scan.plan()
    for place, lane in enumerate(lanes_of(run._facts.streams, frozenset(kinds))):
        for stream, limit in zip(lane.streams, lane.step_limits):
            known = delivered.setdefault(stream.id, [])
            for entries in _in_portions(entry for entry in plan.get(stream.id, ()) if not _is_within(known, entry)):
                points, hidden = _points(run._scan, entries, known, limit)
                first, last = entries[0].first, max(entry.last for entry in entries)
                known[:] = united([*known, *((entry.first, entry.last) for entry in entries)])
                if points or hidden:
                    yield Batch(stream, place, first, last, points, hidden)


def _is_within(ranges: list[tuple[int, int]], entry: Entry) -> bool:
    place = bisect_left(ranges, entry.last, key=lambda numbers: numbers[1])
    return place < len(ranges) and ranges[place][0] <= entry.first


def _in_portions(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Entries that are read together: as many as fill a batch, at least one."""
    portion: list[Entry] = []
    records = size = 0
    for entry in entries:
        more = sum(block.raw_size for block in entry.blocks)
        if portion and (records + entry.records > BATCH_RECORDS or size + more > _BATCH_RAW_BYTES):
            yield portion
            portion, records, size = [], 0, 0
        portion.append(entry)
        records, size = records + entry.records, size + more
    if portion:
        yield portion


# Keys in the order of a row -> what was found of such rows: sequences, steps, times, values by key.
_Found = dict[tuple[str, ...], list[tuple[Any, Any, Any, list[Any]]]]


def _points(scan: Scan, entries: list[Entry], known: list[tuple[int, int]], limit: int) -> tuple[list[Points], int]:
    """The rows of some entries of one stream that are not known, and how many were hidden."""
    found: _Found = {}
    hidden: set[int] = set()
    reached = 0
    for entry in entries:
        skip = _overlap(known, entry) if entry.first > reached else [*_overlap(known, entry), (entry.first, reached)]
        for part in list(scan.parts(entry)):
            _add(scan, entry, part, skip, limit, found, hidden)
        reached = max(reached, entry.last)
    return [_united(keys, pieces) for keys, pieces in found.items()], len(hidden)


def _overlap(known: list[tuple[int, int]], entry: Entry) -> list[tuple[int, int]]:
    return [(first, last) for first, last in known if first <= entry.last and last >= entry.first]


def _add(
    scan: Scan, entry: Entry, part: Part, skip: list[tuple[int, int]], limit: int, found: _Found, hidden: set[int]
) -> None:
    if isinstance(part, Record):
        if any(first <= part.sequence <= last for first, last in skip):
            return
        if part.step >= limit:
            hidden.add(part.sequence)
            return
        try:
            values = values_of(part, scan.blobs)
        except DamageError as error:
            scan.note(entry.source, entry.blocks[0], error.message)
            return
        head = ([part.sequence], [part.step], [part.time_ns // 1000])
        found.setdefault(tuple(values), []).append((*head, [[value] for value in values.values()]))
        return
    sequence, step = part.sequences(), steps_in_rows(part)
    index = None
    wanted = step < limit if limit <= numpy.iinfo(numpy.int64).max else numpy.ones(len(step), bool)
    for first, last in skip:
        wanted &= (sequence < first) | (sequence > last)
    if not wanted.all():
        unseen = numpy.ones(len(step), bool)
        for first, last in skip:
            unseen &= (sequence < first) | (sequence > last)
        hidden.update(sequence[unseen & ~wanted].tolist())
        index = numpy.flatnonzero(wanted)
        if not len(index):
            return
    columns = [column_of(part, key, scan.blobs, index) for key in part.keys]
    chosen = slice(None) if index is None else index
    found.setdefault(tuple(part.keys), []).append((sequence[chosen], step[chosen], times_us(part)[chosen], columns))


def _united(keys: tuple[str, ...], pieces: list[tuple[Any, Any, Any, list[Any]]]) -> Points:
    """The rows that hold the same keys, as one."""
    heads = (
        numpy.concatenate([numpy.asarray(piece[place], dtype) for piece in pieces])
        for place, dtype in enumerate((numpy.uint64, numpy.int64, numpy.int64))
    )
    sequence, step, time_us = heads
    columns = {key: _column([piece[3][place] for piece in pieces]) for place, key in enumerate(keys)}
    if (sequence[1:] < sequence[:-1]).any():  # parts of a damaged window, or of one beside what it was made of
        order = numpy.argsort(sequence, kind="stable")
        sequence, step, time_us = sequence[order], step[order], time_us[order]
        columns = {
            key: [values[place] for place in order.tolist()] if isinstance(values, list) else values[order]
            for key, values in columns.items()
        }
    return Points(sequence, step, time_us, columns)


def _column(pieces: list[NDArray[Any] | list[Any]]) -> NDArray[Any] | list[Any]:
    value, null = unite(pieces)
    if null is None and value.dtype != object and not (value.dtype.kind == "f" and any(map(_has_integers, pieces))):
        return value
    return [one for piece in pieces for one in (piece if isinstance(piece, list) else piece.tolist())]


def _has_integers(piece: NDArray[Any] | list[Any]) -> bool:
    """Whether a series would give integers as floats, which is not how they were logged."""
    return any(type(value) is int for value in piece) if isinstance(piece, list) else piece.dtype.kind in "iu"


def made_batch(run: Run, last: int = 0, digest: str = "") -> tuple[Batch | None, tuple[int, str]]:
    """What `define_metric` made of epochs, as rows of a stream of id 0; None where it is what was given before.

    Args:
        last, digest: What this returned the last time: the last sequence that was used, and what the values were.
    """
    if not run._definitions().makes:  # as nearly always: no keys are looked for
        return None, (last, digest)
    made = {key for key, one in run._definitions().made_of(run._logged_keys(False)).items() if one.by_epoch}
    found = run.several(made) if made else {}
    hashed = hashlib.blake2b(digest_size=8)
    for key, series in sorted(found.items()):
        listed = series.value.tolist()
        hashed.update(repr((key, series.step.tolist(), listed)).encode("utf-8", "surrogatepass"))
    if not found or hashed.hexdigest() == digest:
        return None, (last, digest)
    points, first = [], last + 1
    for key, series in sorted(found.items()):
        sequence = numpy.arange(last + 1, last + 1 + len(series), dtype=numpy.uint64)
        values = series.value.tolist() if series.value.dtype == object else series.value
        time_us = numpy.rint(series.time * 1e6).astype(numpy.int64)
        points.append(Points(sequence, series.step, time_us, {key: values}))
        last += len(series)
    return Batch(StreamFacts(0), 0, first, last, points, 0), (last, hashed.hexdigest())


class RowsInOrder:
    """Whole rows of a run in order of steps, each once: for those who cannot take a row behind a later one.

    Attributes:
        next_step: Every row below it was given, as it was then.
        seen: What had been stored when rows were last looked for.
        late: At how many steps something came after their row was given, at this look.
    """

    def __init__(self, next_step: int = 0, seen: Mapping[int, list[tuple[int, int]]] | None = None) -> None:
        self.next_step = next_step
        self.seen = {stream: list(ranges) for stream, ranges in (seen or {}).items()}
        self.late = 0

    def new(self, run: Run, hold_back: int = 0) -> Iterator[list[dict[str, Any]]]:
        """The rows that are new, as `Run.rows` gives them, some at a time; all that were given are below `next_step`.

        Args:
            hold_back: The rows of the last so many steps stay for the next look.
        """
        # First, because it lists the run's files: nothing that comes after `_look` may be among the rows.
        added = run._additions(None)
        self.late = 0

        def rest() -> Iterator[list[dict[str, Any]]]:
            self._note_seen(run)
            return self._rows(run, added, hold_back)

        yield from run._giving(rest)

    def _note_seen(self, run: Run) -> None:
        if self.seen:
            follower = Follower(seen=self.seen)
            steps = follower.new_steps(run._scan, run._lanes)
            self.late += int((steps < self.next_step).sum())
        stored = run._scan.plan()
        training: set[int] = {stream.id for lane in run._lanes for stream in lane.streams}
        for stream in training:
            ranges = [(entry.first, entry.last) for entry in stored.get(stream, ())]
            self.seen[stream] = united([*self.seen.get(stream, ()), *ranges])

    def _rows(self, run: Run, added: Any, hold_back: int) -> Iterator[list[dict[str, Any]]]:
        end = None
        if hold_back > 0:
            plan = run._scan.plan()
            end = max((_last_step(lane, plan) for lane in run._lanes), default=-1) + 1 - hold_back
        selection = join.Selection(first_step=self.next_step)
        found = join.rows(run._scan, run._lanes, selection)
        rows: list[dict[str, Any]] = []
        for row in found if added is None else added.added(found):
            if end is not None and row[join.STEP] >= end:
                break
            rows.append(row)
            if len(rows) == _ROWS_AT_A_TIME:
                self.next_step = row[join.STEP] + 1
                yield rows
                rows = []
        if rows:
            self.next_step = rows[-1][join.STEP] + 1
            yield rows


def _last_step(lane: Lane, plan: Mapping[int, list[Entry]]) -> int:
    """The largest step of a lane, by the headers of its blocks."""
    return max(
        (
            min(entry.step_max, limit - 1)
            for stream, limit in zip(lane.streams, lane.step_limits)
            for entry in plan.get(stream.id, ())
        ),
        default=-1,
    )
