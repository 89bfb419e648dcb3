"""What users ask of a run's console; `logs` reads it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from .. import clock
from ..errors import NotFoundError
from .about import About
from .state import RUNNING

if TYPE_CHECKING:
    from datetime import datetime

    from .logs import Console, LogLine, Place, Wanted


# Limit: some 10 us each.
COUNTED_LINES_MAX = 50_000


class LineCounts(NamedTuple):
    """How many lines a console has, and how many of them are log records of which kind; None: not counted."""

    lines: int
    warnings: int | None
    errors: int | None


class ConsoleReading(About):
    """The part of `Run` that reads what its processes printed and logged."""

    def logs(
        self,
        level: int | str | None = None,
        since: float | datetime | None = None,
        until: float | datetime | None = None,
        last: int | None = None,
        grep: str | re.Pattern[str] | None = None,
        stream: str = "all",
        rank: int | None = None,
    ) -> Iterator[LogLine]:
        """What the run's processes printed and logged, by time; where lines are missing there is a mark (`LogLine.missed`).

        Memory holds a block of each process, with `last` that many lines besides.

        Args:
            level: Only log records of at least this level ("WARNING", 30).
            since, until: Unix seconds or a datetime.
            last: Only the last so many of those that the other arguments choose; read from the end.
            grep: A regular expression that the text or the traceback must hold.
            stream: "stdout", "stderr" or "log" for one of them.
            rank: Only processes of this rank.

        Raises:
            ValueError: No such level or stream, no regular expression.
            NotFoundError: No console of this rank.
        """
        from .logs import Place, read, wanted_of

        wanted = wanted_of(level, since, until, grep, stream, rank)
        self._console(rank)
        return read(self, wanted, Place()) if last is None else iter(self._last_lines(last, wanted, Place()))

    def follow_logs(
        self,
        level: int | str | None = None,
        last: int | None = None,
        grep: str | re.Pattern[str] | None = None,
        stream: str = "all",
        rank: int | None = None,
        *,
        poll_seconds: float = 0.2,
        timeout: float | None = None,
        wait: Callable[[float], None] = clock.pause,
    ) -> Iterator[LogLine]:
        """Lines as they become visible; ends after the run did and all was given.

        Args:
            last: Begin with the last so many of those that are stored; None: with the first.
            poll_seconds, timeout, wait: As in `follow`.
            level, grep, stream, rank: As in `logs`.
        """
        from .logs import follow, wanted_of

        return follow(self, wanted_of(level, None, None, grep, stream, rank), poll_seconds, timeout, wait, last)

    @property
    def has_console(self) -> bool:
        """Whether anything was printed or logged in it."""
        self._open()
        return bool(self._side_lanes("console"))

    @property
    def may_log(self) -> bool:
        """Whether more lines may come: the run is going on, or of its processes only the console is there yet."""
        if self.state == RUNNING or self._lanes:
            return self.state == RUNNING
        streams = [facts for lane in self._side_lanes("console") for facts in lane.streams]
        return any(self._stream_state(facts) == RUNNING for facts in streams)

    def count_lines(self) -> LineCounts:
        """How much there is to read; levels only of a console of up to some ten thousand lines, which are read for it."""
        from .logs import Place, Wanted, read

        plan = self._reading(self._scan.plan)
        entries = [plan.get(facts.id, []) for lane in self._side_lanes("console") for facts in lane.streams]
        lines = sum(max(e.step_max for e in found) - min(e.step_min for e in found) + 1 for found in entries if found)
        if lines > COUNTED_LINES_MAX:
            return LineCounts(lines, None, None)
        levels = [line.level for line in read(self, Wanted(), Place()) if not line.missed]
        warnings = sum(level is not None and 30 <= level < 40 for level in levels)
        return LineCounts(len(levels), warnings, sum(level is not None and level >= 40 for level in levels))

    def _console(self, rank: int | None = None) -> Console:
        """A new look at the console.

        Raises:
            NotFoundError: Nothing of this rank is there, but of others is.
        """
        from .logs import Console

        self._look()
        console = Console(self._scan, self._side_lanes("console"), self._all_gaps, self.may_log)
        if console.streams and not console.of_rank(rank):
            told = f"run {self.id} has no console of rank {rank}"
            raise NotFoundError(told, "run.streams", command=f"stepd show {self.id}")
        return console

    def _last_lines(self, count: int, wanted: Wanted, place: Place) -> list[LogLine]:
        """The last lines; `place` takes all that is stored for given."""

        def look() -> list[LogLine]:
            console = self._console(wanted.rank)
            found = console.last(count, wanted)
            console.skip(place)
            return found

        return self._reading(look)
