"""The console of a run: what its processes printed and logged, merged over all of them by time (docs/console.md#reading).

Each process has a stream of its own, of kind "console"; a row is one line or one log record, and its step is its number. Streams
are read in the order of their sequences and merged by time, so that memory holds a block of each. Lines that are missing are
marks among the others: `LogLine.missed` counts them. Of a stream's place in the reading only ranges of sequences are kept; that
is also what `follow` goes on from, and what begins again where a segment was replaced meanwhile.
"""

from __future__ import annotations

import heapq
import itertools
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import DamageError
from ..record import Record
from .about import TRIES_MAX
from .entries import Entry
from .facts import StreamFacts
from .follow import united
from .gaps import Gap
from .lanes import Lane
from .parts import Part, column_of, listed, steps_in_rows, times_us, values_of
from .scan import Gone, Scan

if TYPE_CHECKING:
    from datetime import datetime

    from .console import ConsoleReading

SOURCES = ("stdout", "stderr", "log")
LEVELS = {"NOTSET": 0, "DEBUG": 10, "INFO": 20, "WARN": 30, "WARNING": 30, "ERROR": 40, "CRITICAL": 50, "FATAL": 50}
_EXTRA = "extra."
# The states of a line that is not ended are at least a second apart.
STATE_SECONDS = 0.5


class LogLine(NamedTuple):
    """A line that was printed, a record that was logged, or a mark that says how many of them are missing.

    Attributes:
        time: Unix seconds, when it was printed or logged.
        text: Without its newline; of a log record there may be newlines inside. "" of a mark.
        source: "stdout", "stderr" or "log"; "" of a mark that stands for lines of all of them.
        step: The training's open step at that time; None where it is not known.
        rank, host: Whose process; None where it did not say.
        level: Of a log record, 10 (DEBUG) to 50 (CRITICAL); None of what was printed.
        logger: The logger's name.
        error: The traceback. stack: What `stack_info=True` gave.
        where: "file.py:12".
        thread, process: Their names, where it was not the main one.
        extra: What `extra=` gave, nested maps as dotted names.
        part: From 1 in the further parts of a long record, else 0.
        by: "child" for what a child process wrote into the same file.
        missed: How many lines are missing here; 0 of a line. why: The reason.
        live: Not 0 of a line that was not ended when it was stored, such as a progress bar's: which. Of those only the last
            state is given, at the end of the stream, and none once the line is ended.
        stream: Which stream, 16 hex digits. number: The line's number in it, from 0.
    """

    time: float
    text: str
    source: str
    step: int | None = None
    rank: int | None = None
    host: str | None = None
    level: int | None = None
    logger: str | None = None
    error: str | None = None
    stack: str | None = None
    where: str | None = None
    thread: str | None = None
    process: str | None = None
    extra: dict[str, Any] = {}  # noqa: RUF012 - never changed
    part: int = 0
    by: str | None = None
    missed: int = 0
    why: str | None = None
    live: int = 0
    stream: str = ""
    number: int = 0

    @property
    def level_name(self) -> str:
        """The level in words ("WARNING"), or its number where it has no name; "" of what was printed."""
        return "" if self.level is None else _NAMES.get(self.level, str(self.level))


_NAMES = {number: name for name, number in LEVELS.items() if name not in ("WARN", "FATAL")}


class Wanted(NamedTuple):
    """Which lines are wanted; marks always are, but for those of another source.

    Attributes:
        level: Only log records of at least this level; None: everything.
        since, until: Unix seconds; from `since` on, before `until`.
        grep: What text or traceback must hold.
        source: Only this one; None: all.
        rank: Only processes of this rank; None: all.
    """

    level: int | None = None
    since: float | None = None
    until: float | None = None
    grep: re.Pattern[str] | None = None
    source: str | None = None
    rank: int | None = None

    def takes(self, line: LogLine) -> bool:
        if self.source is not None and line.source not in ("", self.source):
            return False
        if (self.since is not None and line.time < self.since) or (self.until is not None and line.time >= self.until):
            return False
        if line.missed:
            return True
        if self.level is not None and (line.level is None or line.level < self.level):
            return False
        return self.grep is None or any(self.grep.search(text) for text in (line.text, line.error) if text)


def wanted_of(
    level: int | str | None,
    since: float | datetime | None,
    until: float | datetime | None,
    grep: str | re.Pattern[str] | None,
    stream: str,
    rank: int | None,
) -> Wanted:
    """The arguments of `Run.logs`, checked.

    Raises:
        ValueError: No such level or stream, no regular expression. TypeError: A time is neither seconds nor a datetime.
    """
    if stream != "all" and stream not in SOURCES:
        raise ValueError(f"logs() stream is {stream!r}, expected 'all', 'stdout', 'stderr' or 'log'")
    try:
        pattern = re.compile(grep) if isinstance(grep, str) else grep
    except re.error as error:
        raise ValueError(f"logs() grep is {grep!r}, which is no regular expression: {error}") from error
    source = None if stream == "all" else stream
    return Wanted(level_of(level), _seconds(since, "since"), _seconds(until, "until"), pattern, source, rank)


def level_of(level: int | str | None) -> int | None:
    """A level as a number.

    Raises:
        ValueError: There is no such level.
    """
    if level is None or (isinstance(level, int) and not isinstance(level, bool)):
        return level
    text = str(level).strip()
    if text.upper() in LEVELS:
        return LEVELS[text.upper()]
    if text.isdecimal():
        return int(text)
    raise ValueError(f"logs() level is {level!r}, expected DEBUG, INFO, WARNING, ERROR, CRITICAL or a number")


def _seconds(value: Any, what: str) -> float | None:
    if value is None:
        return None
    stamp = getattr(value, "timestamp", None)
    if callable(stamp):
        return float(stamp())
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise TypeError(f"logs() {what} is {type(value).__name__}, expected Unix seconds or a datetime")


class At(NamedTuple):
    """Where a line stands in its stream."""

    sequence: int
    number: int


class Live:
    """Lines of one stream that are not ended: the last state of each (docs/console.md#rows)."""

    def __init__(self) -> None:
        self._states: dict[tuple[str, int], list[LogLine]] = {}

    def takes(self, line: LogLine, ends: int) -> bool:
        """Whether the line is such a state, which is kept; one that ends another makes it forgotten."""
        if ends:
            self._states.pop((line.source, ends), None)
        if not line.live:
            return False
        state = self._states.get((line.source, line.live))
        # Several bars are stored one after the other, and all of them again seconds later.
        if state and line.time - state[0].time < STATE_SECONDS:
            state.append(line)
        else:
            self._states[line.source, line.live] = [line]
        return True

    def take(self) -> list[LogLine]:
        """What was not ended, oldest first."""
        found = sorted((line for state in self._states.values() for line in state), key=lambda line: line.number)
        self._states = {}
        return found


class Place:
    """How far the console was read: for each stream the ranges of sequences that were given and its last line, the gaps that
    were said, and lines that are not ended.
    """

    def __init__(self, follows: bool = False) -> None:
        """Args: `follows`: More looks come after this one, so a line that is not ended can wait for them."""
        self.follows = follows
        self._given: dict[int, list[tuple[int, int]]] = {}
        self._within: dict[int, tuple[int, int]] = {}
        self.last: dict[int, At] = {}
        self.said: set[Gap] = set()
        self.live: dict[int, Live] = {}

    def ranges(self, stream: int) -> list[tuple[int, int]]:
        own = self._within.get(stream)
        given = self._given.get(stream, [])
        return given if own is None else united([*given, own])

    def line(self, stream: int, first: int, at: At) -> None:
        """A line was given, of an entry that begins with `first`."""
        self._within[stream] = (first, at.sequence)
        self.pass_by(stream, at)

    def pass_by(self, stream: int, at: At) -> None:
        if stream not in self.last or self.last[stream] < at:
            self.last[stream] = at

    def entry(self, stream: int, first: int, last: int) -> None:
        """All of an entry was given."""
        self._within.pop(stream, None)
        self._given[stream] = united([*self._given.get(stream, ()), (first, last)])


_NONE: list[Gap] = []


class Console:
    """The streams of one look at a run's console, and what is known to be missing of them.

    Args:
        running: Whether more may come: then a hole may still be filled, by a spool or by the ring of a dead process.
    """

    def __init__(self, scan: Scan, lanes: Iterable[Lane], gaps: Callable[[], list[Gap]], running: bool) -> None:
        self.scan = scan
        self.streams = [facts for lane in lanes for facts in lane.streams]
        self._ask, self._running = gaps, running
        self._gaps: dict[str, list[Gap]] = {}
        self._known = -1

    def of_rank(self, rank: int | None) -> list[StreamFacts]:
        return [facts for facts in self.streams if rank is None or facts.number("rank") == rank]

    def is_over(self, facts: StreamFacts) -> bool:
        return facts.end is not None or not self._running

    def gaps(self, facts: StreamFacts) -> list[Gap]:
        """What is missing of a stream, as far as is known by now: damage shows when it is read."""
        known = len(self.scan.unreadable)
        if known != self._known:
            self._known, self._gaps = known, {}
            over = {facts.hex for facts in self.streams if self.is_over(facts)}
            for gap in self._ask():
                if gap.stream in over or gap.reason != "missing":
                    self._gaps.setdefault(gap.stream, []).append(gap)
        return self._gaps.get(facts.hex, _NONE)

    def merged(self, place: Place, wanted: Wanted) -> Iterator[LogLine]:
        """The wanted lines that were not given yet, by time.

        Raises:
            Gone: A segment was replaced. `place` says what was given.
        """
        found = [Reading(self, facts, wanted, place).lines() for facts in self.of_rank(wanted.rank)]
        for _, line in heapq.merge(*found, key=_order):
            yield line

    def last(self, count: int, wanted: Wanted) -> list[LogLine]:
        """The last `count` wanted lines, read from the end of each stream."""
        place = Place()
        found = [Reading(self, facts, wanted, place).last_lines(count) for facts in self.of_rank(wanted.rank)]
        lines = [line for _, line in heapq.merge(*found, key=_order)]
        return lines[-count:] if count > 0 else []

    def skip(self, place: Place) -> None:
        """Takes all that is stored for given."""
        plan = self.scan.plan()
        for facts in self.streams:
            entries = plan.get(facts.id, ())
            for entry in entries:
                place.entry(facts.id, entry.first, entry.last)
                place.pass_by(facts.id, At(entry.last, entry.step_max))
            place.said.update(self.gaps(facts))


def _order(placed: tuple[float, LogLine]) -> float:
    return placed[0]


class Reading:
    """The reading of one stream."""

    def __init__(self, console: Console, facts: StreamFacts, wanted: Wanted, place: Place) -> None:
        self._console, self._facts, self._wanted, self._place = console, facts, wanted, place
        self._about = (facts.number("rank"), facts.text("host"), facts.hex)
        self._gaps: list[Gap] | None = None
        self._left: list[Gap] = []

    def lines(self) -> Iterator[tuple[float, LogLine]]:
        """Each line with what it is merged by: its time, but never less than that of the line before.

        Invariant: what is after a `yield` happens when the line was given, so `place` never says more than that.
        """
        order, stream = 0.0, self._facts.id
        live = self._place.live.setdefault(stream, Live())
        for entry in self._unread():
            given = self._place.ranges(stream)
            for at, line, ends in self._numbered(entry):
                if _is_in(given, at.sequence):
                    continue
                order = max(order, line.time)
                is_live = live.takes(line, ends)
                for mark in self._between(self._place.last.get(stream), at, order):
                    yield order, mark
                if not is_live and self._wanted.takes(line):
                    yield order, line
                self._place.line(stream, entry.first, at)
            self._place.entry(stream, entry.first, entry.last)
            yield from self._cut_short(entry, order)
        for mark in self._between(self._place.last.get(stream), None, order):
            yield order or mark.time, mark
        if self._console.is_over(self._facts) or not self._place.follows:
            for line in live.take():
                order = max(order, line.time)
                if self._wanted.takes(line):
                    yield order, line

    def last_lines(self, count: int) -> list[tuple[float, LogLine]]:
        """The last `count` of them, read from the end."""
        found: list[tuple[float, LogLine]] = []
        after: At | None = None
        time = 0.0
        ended: dict[tuple[str, int], float] = {}  # since when there is a later word of a line that was not ended
        for entry in reversed(list(self._unread())):
            for at, line, ends in reversed(list(self._numbered(entry))):
                if after is not None and at >= after:
                    continue
                time = time or line.time
                found += [(time, mark) for mark in reversed(self._between(at, after, time))]
                after, time = at, min(time, line.time)
                if ends:
                    ended[line.source, ends] = -math.inf
                since = ended.setdefault((line.source, line.live), line.time) if line.live else line.time
                if self._wanted.takes(line) and line.time > since - STATE_SECONDS and since != -math.inf:
                    found.append((time, line))
                if len(found) >= count:
                    return found[:count][::-1]
        found += [(time, mark) for mark in reversed(self._between(None, after, time))]
        return found[:count][::-1]

    def _unread(self) -> Iterator[Entry]:
        """The entries of which not all was given, in order."""
        given = self._place.ranges(self._facts.id)
        for entry in self._console.scan.plan().get(self._facts.id, ()):
            if not (_is_in(given, entry.first) and _is_in(given, entry.last)):
                yield entry

    def _numbered(self, entry: Entry) -> Iterator[tuple[At, LogLine, int]]:
        """Everything in an entry, in order of sequences; with each line which other one it ends, or 0."""
        parts = [_Part(part) for part in self._console.scan.parts(entry)]
        places = sorted((sequence, which, row) for which, part in enumerate(parts) for row, sequence in part.rows())
        # Of columns, a row's keys may stand in several groups; after damage, rows may come twice.
        for sequence, same in itertools.groupby(places, key=_first):
            values: dict[str, Any] = {}
            number, time_us = -1, 0
            for _, which, row in same:
                try:
                    number, time_us, held = parts[which].row(row)
                except DamageError as error:
                    self._console.scan.note(entry.source, entry.blocks[0], error.message)
                else:
                    values.update(held)
            if number >= 0:
                line = line_of(values, time_us / 1e6, number, *self._about)
                yield At(sequence, number), line, _integer(values, "ends") or 0

    def _open_gaps(self) -> list[Gap]:
        """What is missing and was not said yet, the first one first."""
        gaps = self._console.gaps(self._facts)
        if gaps is not self._gaps:
            self._gaps = gaps
            self._left = sorted((gap for gap in gaps if gap not in self._place.said), key=lambda gap: gap.step_min)
        return self._left

    def _between(self, one: At | None, other: At | None, time: float) -> list[LogLine]:
        """What is missing between two lines; before the first (`one` is None), after the last one."""
        left = self._open_gaps()
        if one is not None and other is not None and other.number <= one.number + 1:
            # Where no number is missing, only a refused call can be, and the first one tells whether it is here.
            if not left or left[0].step_min > other.number:
                return []
        found = [gap for gap in left if _lies_between(gap, one, other)]
        self._place.said.update(found)
        self._left = [gap for gap in left if gap not in found] if found else left
        refused = [gap for gap in found if gap.first is None]
        lost = [gap for gap in found if gap.first is not None]
        if one is not None and other is not None:
            # Of what had a number, numbers tell how much is missing; a refused line has one too.
            count = other.number - one.number - 1 - sum(gap.count for gap in refused)
            if count > 0 and (lost or self._console.is_over(self._facts)):
                refused.append(self._gap(count, lost[0].reason if lost else "missing", one.number + 1))
        else:
            # A fork's first number may be any, and what was to come after the last line nobody knows.
            refused += lost
        marks = [self._mark(gap.count, gap.reason, gap.start or time, gap.step_min) for gap in refused]
        return [mark for mark in marks if self._wanted.takes(mark)]

    def _gap(self, count: int, reason: str, number: int) -> Gap:
        return Gap(self._facts.hex, count, number, number + count - 1, None, None, reason)

    def _cut_short(self, entry: Entry, order: float) -> Iterator[tuple[float, LogLine]]:
        """A mark for the end of a block that could be read in part only."""
        scan, last = self._console.scan, self._place.last.get(self._facts.id)
        places = {(entry.source.name, block.offset) for block in entry.blocks}
        # Of what could not be read at all there is a gap.
        if last is None or last.number >= entry.step_max or places <= scan.unreadable or places.isdisjoint(scan.noted):
            return
        mark = self._mark(entry.step_max - last.number, "damage", order, last.number + 1)
        self._place.pass_by(self._facts.id, At(entry.last, entry.step_max))
        if self._wanted.takes(mark):
            yield order, mark

    def _mark(self, count: int, why: str, time: float, number: int) -> LogLine:
        rank, host, stream = self._about
        return LogLine(time, "", "", rank=rank, host=host, missed=count, why=why, stream=stream, number=number)


def _lies_between(gap: Gap, one: At | None, other: At | None) -> bool:
    if gap.first is None or gap.last is None:  # refused calls have no sequence
        return (one is None or gap.step_min > one.number) and (other is None or gap.step_min <= other.number)
    return (one is None or gap.last > one.sequence) and (other is None or gap.first < other.sequence)


def _is_in(ranges: list[tuple[int, int]], sequence: int) -> bool:
    at = bisect_right(ranges, sequence, key=_first) - 1
    return at >= 0 and sequence <= ranges[at][1]


def _first(numbers: tuple[int, ...]) -> int:
    return numbers[0]


class _Part:
    """Rows that were stored together, one by one: of columns memory holds the values, of each row nothing."""

    def __init__(self, part: Part) -> None:
        self._part = part
        if not isinstance(part, Record):
            self._columns = {key: listed(column_of(part, key)) for key in part.keys}
            self._numbers, self._times = steps_in_rows(part).tolist(), times_us(part).tolist()

    def rows(self) -> Iterable[tuple[int, int]]:
        """The place and the sequence of each row."""
        return enumerate([self._part.sequence] if isinstance(self._part, Record) else self._part.sequences().tolist())

    def row(self, place: int) -> tuple[int, int, dict[str, Any]]:
        """Number, time in whole microseconds and values.

        Raises:
            DamageError: It is no row.
        """
        if isinstance(self._part, Record):
            return self._part.step, self._part.time_ns // 1000, values_of(self._part)
        return (
            self._numbers[place],
            self._times[place],
            {key: column[place] for key, column in self._columns.items()},
        )


# The keys of a row (docs/console.md#rows): of which type, and the field of `LogLine`.
_KEYS: dict[str, tuple[type, str]] = {
    "from": (str, "source"), "at": (int, "step"), "created": (float, "time"),
    **{key: (str, key) for key in ("text", "logger", "error", "stack", "where", "thread", "process", "by", "why")},
    **{key: (int, key) for key in ("level", "part", "missed", "live")},
}  # fmt: skip
_NO_KEY = (object, "")


def line_of(
    values: dict[str, Any], time: float, number: int, rank: int | None, host: str | None, stream: str
) -> LogLine:
    """A stored row as a line. Whatever the row holds, the types are those that `LogLine` says."""
    found = {"time": time, "text": "", "source": "", "rank": rank, "host": host, "stream": stream, "number": number}
    extra = {}
    for key, value in values.items():
        kind, name = _KEYS.get(key, _NO_KEY)
        if type(value) is kind:
            found[name] = value
        elif key.startswith(_EXTRA):
            extra[key[len(_EXTRA) :]] = value
    if extra:
        found["extra"] = extra
    if found.get("missed"):
        found["live"], found["why"] = 0, found.get("why", "unknown")
    return LogLine(**found)  # type: ignore[arg-type]


def _integer(values: dict[str, Any], key: str) -> int | None:
    value = values.get(key)
    return value if type(value) is int else None


def read(run: ConsoleReading, wanted: Wanted, place: Place) -> Iterator[LogLine]:
    """The lines that were not given yet, whatever is replaced meanwhile."""
    tries = 0
    try:
        while True:
            try:
                for line in run._console(wanted.rank).merged(place, wanted):
                    tries = 0
                    yield line
                return
            except Gone:
                tries += 1
                if tries == TRIES_MAX:
                    raise
    finally:
        run._scan.close()


def follow(
    run: ConsoleReading,
    wanted: Wanted,
    poll_seconds: float,
    timeout: float | None,
    wait: Callable[[float], None],
    last: int | None,
) -> Iterator[LogLine]:
    """See `Run.follow_logs`."""
    place = Place(follows=True)
    if last is not None:
        yield from run._last_lines(last, wanted, place)
    idle = 0.0
    while True:
        # Race: asked before looking, so that lines stored between the last look and the end are still given.
        running = run.may_log
        for line in read(run, wanted, place):
            idle = 0.0
            yield line
        if not running or (timeout is not None and idle >= timeout):
            return
        wait(poll_seconds)
        idle += poll_seconds
