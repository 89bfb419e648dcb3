"""Budgets: how much a store and a run may take, and how much of their disk must stay free.

Whoever writes segments (the daemon, a spooling trainer) holds one `Keeper` and asks it before each block. The answer is a
code of `sdk.limits.REFUSED_REASONS`: while it is not 0 nothing is written, records wait in the trainers' rings, and what
finds its ring full is refused and counted. Nothing is ever deleted to make room.

A budget is passed by at most one block (4 MiB; a spool's 16 MiB), and by what a process had accepted when it ended: that
is stored in any case, at most one ring each.

Everything in a store counts for its budget but artifacts: their keeper leaves the disk the same free bytes (docs/artifacts.md).

Why an estimate: a store may hold 100 000 files, and looking at all of them takes seconds. The keeper adds up what it
writes itself, and looks again at the whole, a few names at a time, once a minute, and more often while something is over
its budget. Until the first look is complete `store_bytes_max` refuses nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

from . import clock
from .files import Files
from .limits import (
    FREE_BYTES_MIN,
    FREE_SHARE_MAX,
    REFUSED_DISK_ERROR,
    REFUSED_DISK_FULL,
    REFUSED_FREE,
    REFUSED_RUN,
    REFUSED_SPOOL,
    REFUSED_STORE,
)
from .segment.naming import ARTIFACTS, run_path

# What is known of sizes is this old at most ...
_LOOK_SECONDS = 60.0
# ... while something is over its budget, so that room that somebody made is found soon ...
_LOOK_SECONDS_OVER = 2.0
# ... and the disk's free bytes, which everybody on the machine changes.
_FREE_SECONDS = 1.0
_FREE_SECONDS_OVER = 0.2


class Budget(NamedTuple):
    """What may be taken, in bytes; 0: no budget.

    Attributes:
        store_bytes_max: All files of the store, the trash included.
        run_bytes_max: All files of one run.
        free_bytes_min: What the disk must have left. The default is never more than a sixteenth of the disk.
    """

    store_bytes_max: int = 0
    run_bytes_max: int = 0
    free_bytes_min: int = FREE_BYTES_MIN


class Use(NamedTuple):
    """What is taken, in bytes; None: not known, or of no interest.

    Attributes:
        free_bytes_min: The budget's, or less on a small disk.
    """

    free_bytes: int | None
    free_bytes_min: int
    store_bytes: int | None
    run_bytes: int | None


def exceeded(budget: Budget, use: Use) -> int:
    """Why nothing more may be written, a code of `REFUSED_REASONS`; 0: it may."""
    if use.free_bytes is not None and use.free_bytes < use.free_bytes_min:
        return REFUSED_FREE
    if budget.store_bytes_max and use.store_bytes is not None and use.store_bytes >= budget.store_bytes_max:
        return REFUSED_STORE
    if budget.run_bytes_max and use.run_bytes is not None and use.run_bytes >= budget.run_bytes_max:
        return REFUSED_RUN
    return 0


def free_floor(free_bytes_min: int, disk_bytes: int) -> int:
    """How many bytes must stay free on a disk of that size: somebody's wish as it is, the default at most a sixteenth."""
    return min(free_bytes_min, disk_bytes // FREE_SHARE_MAX) if free_bytes_min == FREE_BYTES_MIN else free_bytes_min


class Keeper:
    """Knows what a store and its runs take, cheaply. Not for several threads. Takes the time as an argument."""

    def __init__(self, files: Files, store: str, budget: Budget) -> None:
        self._files = files
        self._store = store
        self.budget = budget
        self._run_bytes_max: dict[str, int] = {}
        self._runs: dict[str, tuple[float, int]] = {}
        self._store_bytes: int | None = None
        self._free_bytes: int | None = None
        self._free_bytes_min = 0
        self._free_at = self._store_at = float("-inf")
        self._walk: Iterator[int] | None = None
        self._walked = 0
        self._written_meanwhile = 0

    def limit_run(self, run: str, run_bytes_max: int) -> None:
        """Notes a run's own budget, beside the one of this process; of several the smallest counts."""
        self._run_bytes_max[run] = _smaller(run_bytes_max, self._run_bytes_max.get(run, 0))

    def forget_run(self, run: str) -> None:
        """No stream of the run is here any more."""
        self._run_bytes_max.pop(run, None)
        self._runs.pop(run, None)

    def note_written(self, run: str, size: int) -> None:
        """This process wrote so many bytes."""
        if self._free_bytes is not None:
            self._free_bytes -= size
        if self._store_bytes is not None:
            self._store_bytes += size
        self._written_meanwhile += size
        if run in self._runs:
            looked_at, known = self._runs[run]
            self._runs[run] = (looked_at, known + size)

    def refusal(self, run: str, now: float) -> int:
        """Why nothing more of `run` may be written, a code of `REFUSED_REASONS`; 0: it may."""
        budget = self.budget._replace(run_bytes_max=self.limit_of(run))
        return exceeded(budget, self.use(run, now))

    def limit_of(self, run: str) -> int:
        """What the run may take; 0: no budget."""
        return _smaller(self.budget.run_bytes_max, self._run_bytes_max.get(run, 0))

    def use(self, run: str, now: float) -> Use:
        """What is taken, as far as it is known; looks again where that is too old."""
        self._look_at_disk(now)
        run_bytes_max = self.limit_of(run)
        run_bytes = self._look_at_run(run, run_bytes_max, now) if run_bytes_max else None
        return Use(self._free_bytes, self._free_bytes_min, self._store_bytes, run_bytes)

    @property
    def store_bytes(self) -> int | None:
        """What the store takes; None while that is not known."""
        return self._store_bytes

    def step(self, now: float, seconds: float) -> bool:
        """Goes on with a look at the whole store for about so long; whether there is more to look at.

        Does nothing without `store_bytes_max`.
        """
        if not self.budget.store_bytes_max:
            return False
        if self._walk is None:
            over = (self._store_bytes or 0) >= self.budget.store_bytes_max
            if now - self._store_at < (_LOOK_SECONDS_OVER if over else _LOOK_SECONDS):
                return False
            self._walk = self._sizes()
            self._walked = self._written_meanwhile = 0
        end = clock.monotonic() + seconds
        for portion in self._walk:
            self._walked += portion
            if clock.monotonic() > end:
                return True
        # What was written meanwhile may have been seen or not: rather too much than too little, until the next look.
        self._store_bytes = self._walked + self._written_meanwhile
        self._walk, self._store_at = None, now
        return False

    def _sizes(self) -> Iterator[int]:
        """Bytes of the whole store in portions, without those of artifacts: they are no reason to refuse rows."""
        for name, size, _ in self._files.entries(self._store):
            if name == ARTIFACTS:
                continue
            is_file = True
            for portion in self._files.sizes(os.path.join(self._store, name)):
                is_file = False
                yield portion
            if is_file:
                yield size

    def _look_at_disk(self, now: float) -> None:
        over = self._free_bytes is not None and self._free_bytes < self._free_bytes_min
        if now - self._free_at < (_FREE_SECONDS_OVER if over else _FREE_SECONDS):
            return
        self._free_at = now
        try:
            self._free_bytes = self._files.free_bytes(self._store)
            self._free_bytes_min = free_floor(self.budget.free_bytes_min, self._files.disk_bytes(self._store))
        except OSError:
            self._free_bytes = None  # a disk that does not answer is no reason of ours to refuse

    def _look_at_run(self, run: str, run_bytes_max: int, now: float) -> int:
        looked_at, known = self._runs.get(run, (float("-inf"), 0))
        if now - looked_at >= (_LOOK_SECONDS_OVER if known >= run_bytes_max else _LOOK_SECONDS):
            with contextlib.suppress(OSError):
                known = sum(self._files.sizes(run_path(self._store, run)))
            self._runs[run] = (now, known)
        return known


def _smaller(one: int, other: int) -> int:
    """The smaller of two budgets, of which 0 is none."""
    return min(one, other) if one and other else one or other


def code_of(error: OSError) -> int:
    """Which of `REFUSED_REASONS` an error of the disk is."""
    return REFUSED_DISK_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else REFUSED_DISK_ERROR


_WHAT = {
    REFUSED_SPOOL: "no daemon takes the records, and this run's spool has reached spool_bytes_max",
    REFUSED_DISK_FULL: "the disk of the store is full",
    REFUSED_FREE: "the store's disk has less than free_bytes_min left",
    REFUSED_STORE: "the store has reached store_bytes_max",
    REFUSED_RUN: "the run has reached run_bytes_max",
    REFUSED_DISK_ERROR: "the disk of the store cannot be written",
}
_ROOM = "stepd rm RUN, then empty {store}/trash"
_CURE = {
    REFUSED_SPOOL: "stepd start",
    REFUSED_DISK_FULL: _ROOM,
    REFUSED_FREE: _ROOM,
    REFUSED_STORE: _ROOM + "; or stepd start --store-bytes-max SIZE",
    REFUSED_RUN: "STEPD_RUN_BYTES_MAX=SIZE for the next run",
    REFUSED_DISK_ERROR: "stepd status",
}


def explain(code: int, store: str) -> tuple[str, str]:
    """(what is wrong, what to do) for a code of `REFUSED_REASONS`, for people."""
    return _WHAT.get(code, "the records cannot be stored now"), _CURE.get(code, "stepd status").format(store=store)
