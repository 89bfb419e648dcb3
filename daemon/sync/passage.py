"""One run on its way to one target: what is new of it, and where that is noted once it has arrived."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from typing import Any

from daemon.sync.cursor import Cursor
from sdk.reader import Run
from sdk.reader.delivery import Batch, Delivered, RowsInOrder, deliver, made_batch
from sdk.reader.lanes import TRAINING
from sdk.reader.state import RUNNING

# Limit: of remarks about one run.
_TOLD_MAX = 20


class Passage:
    """What a target gets to carry one run. One thread.

    Attributes:
        run: The run; its facts are fresh.
        is_over: Nothing more will come: asked before anything was read, so what is read now is all.
        has_ended: No process of the training lives; what was observed of it may still come, for some seconds. Asked before, too.
        points, size: How many values and bytes were carried, as told by `moved`.
    """

    def __init__(
        self,
        run: Run,
        cursor: Cursor,
        *,
        stopping: Callable[[], None] = lambda: None,
        moving: Callable[[int, int], None] = lambda points, size: None,
    ) -> None:
        # Race: asked before reading, so that what is stored between the two is either read or not the last.
        self.has_ended = run.state != RUNNING
        self.is_over = self.has_ended and all(stream.state != RUNNING for stream in run.streams)
        run.refresh()
        self.run = run
        self.points = self.size = 0
        self._whole = 0
        self._cursor = cursor
        self._stopping, self._moving = stopping, moving
        self._delivered: Delivered = copy.deepcopy(cursor.delivered)
        self._rows: RowsInOrder | None = copy.deepcopy(cursor.rows)
        self._made = cursor.made
        self._lost = copy.deepcopy(cursor.lost)
        self._told = list(cursor.told)

    @property
    def state(self) -> dict[str, Any]:
        """What the target gave to the last `commit`, its own; {} before the first."""
        return self._cursor.state

    @property
    def delivered(self) -> Delivered:
        """By stream the ranges of sequences that were delivered by the last `commit`."""
        return self._cursor.delivered

    def batches(self, kinds: Collection[str] = TRAINING) -> Iterator[Batch]:
        """What is new of the streams of some kinds, in order of sequences; a batch is at most about 8 MiB as rows.

        When the run is over the last one holds what `define_metric(reduce=…)` made of epochs, as a stream of id 0.

        Raises:
            Stopped: As `check`.
        """
        for batch in deliver(self.run, self._delivered, kinds):
            self.check()
            yield batch
        if self.is_over and "main" in kinds:
            made, self._made = made_batch(self.run, *self._made)
            if made is not None:
                yield made

    def rows(self, *, hold_back: int = 0) -> Iterator[list[dict[str, Any]]]:
        """Whole rows in order of steps, as `Run.rows` gives them, some at a time; only above those that were given before.

        What came too late for a step that was delivered is counted as lost.

        Args:
            hold_back: While the run lives, the last so many steps wait for what may still come.
        """
        if self._rows is None:
            self._rows = RowsInOrder()
        for rows in self._rows.new(self.run, 0 if self.has_ended else hold_back):
            self._count_late()
            self.check()
            yield rows
        self._count_late()

    def _count_late(self) -> None:
        if self._rows is not None and self._rows.late:
            late, self._rows.late = self._rows.late, 0
            self.lost("late rows", count=late)

    def commit(self, state: dict[str, Any]) -> None:
        """Notes that everything given so far is safe at the target.

        Args:
            state: What the target wants to know the next time; JSON.

        Raises:
            OSError: It cannot be noted; the next pass carries the same again.
        """
        cursor = self._cursor
        cursor.delivered, cursor.rows = copy.deepcopy(self._delivered), copy.deepcopy(self._rows)
        cursor.made = self._made
        cursor.lost, cursor.told, cursor.state = copy.deepcopy(self._lost), list(self._told), state
        cursor.write()
        self.check()

    def lost(self, what: str, key: str | None = None, count: int = 1) -> None:
        """Counts what the target cannot hold exactly; shown, and the command ends with 1."""
        keys = self._lost.setdefault(what, {})
        keys[key or ""] = keys.get(key or "", 0) + count

    def told(self, what: str) -> None:
        """Notes a remark that is shown once; nothing is lost."""
        if what not in self._told and len(self._told) < _TOLD_MAX:
            self._told.append(what)

    def moved(self, points: int, size: int = 0) -> None:
        """Tells how many values and bytes were carried since the last call."""
        self.points += points
        self.size += size
        self._moving(points, size)

    def check(self) -> None:
        """To be asked now and then in long work.

        Raises:
            Stopped: The process is told to end.
        """
        self._stopping()

    @property
    def share(self) -> float:
        """About how much of the run has been given, 0 to 1."""
        # Why the whole is not asked for anew: this is told ten times a second, and of thousands of streams that takes as long.
        if self._rows is not None:
            self._whole = self._whole or self.run.step_max + 1
            return min(1.0, self._rows.next_step / self._whole)
        self._whole = self._whole or max(sum(stream.records for stream in self.run.streams), 1)
        given = sum(last - first + 1 for ranges in self._delivered.values() for first, last in ranges)
        return min(1.0, given / self._whole)

    def start_again(self) -> None:
        """Forgets what was delivered: what is asked for from now on begins with the first row. Noted by the next `commit`."""
        self._cursor.forget()
        self._delivered, self._rows, self._made = {}, None, (0, "")
        self._lost, self._told = {}, []
