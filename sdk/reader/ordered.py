"""Whole rows of each lane by itself in order of steps: for those who write a run down anew, and cannot take a late piece."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from . import join
from .lanes import TRAINING, Lane, lanes_of

if TYPE_CHECKING:
    from .run import Run


def rows_by_lane(run: Run, kinds: Collection[str] = TRAINING) -> Iterator[tuple[int, Lane, dict[str, Any]]]:
    """(place of its lane, lane, row as `Run.rows` gives it), lane after lane, the main one first, each in order of steps.

    Nothing is added that `define_metric` asked for. Memory holds a window, not the run.

    Raises:
        StoreError: Segments keep disappearing.
    """
    place = first_step = 0

    def rest() -> Iterator[tuple[int, Lane, dict[str, Any]]]:
        nonlocal place, first_step
        lanes = lanes_of(run._facts.streams, frozenset(kinds))
        while place < len(lanes):
            for row in join.rows(run._scan, [lanes[place]], join.Selection(first_step=first_step)):
                first_step = row[join.STEP] + 1
                yield place, lanes[place], row
            place, first_step = place + 1, 0

    yield from run._giving(rest)
