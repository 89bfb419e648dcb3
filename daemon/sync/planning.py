"""What `stepd sync --dry-run` tells: what would be carried, from cursors and the headers of blocks. Writes nothing, asks no target."""

from __future__ import annotations

import os
from typing import NamedTuple

from daemon.sync.crew import Task
from daemon.sync.cursor import Cursor, cursor_path
from daemon.sync.driver import unchanged_outcome
from daemon.sync.looking import cursors_of, look_at
from daemon.sync.target import Target
from sdk.errors import StoreError
from sdk.reader import Run
from sdk.reader.lanes import TRAINING
from sdk.segment.naming import RUNS


class Plan(NamedTuple):
    """One run and one target.

    Attributes:
        records: How many sequence numbers are new, facts included.
        points_max: They hold at most so many values of the training: as many as if each row held each key.
        size: Bytes of the whole run.
        has_begun: Some of it was carried before.
        trouble: Why that cannot be told; "" for nothing.
    """

    run: str
    name: str
    project: str
    target: str
    records: int
    points_max: int
    size: int
    has_begun: bool
    trouble: str = ""


def plan_of(store: str, name: str, target: Target) -> Plan | None:
    """What is new of the run in a directory; None: it is no run.

    Raises:
        OSError: The directory cannot be listed.
    """
    directory = os.path.join(store, RUNS, name)
    look = look_at(directory)
    if not look.is_run:
        return None
    cursors, url = cursors_of(store, target), target.place.text
    unchanged = unchanged_outcome(store, cursors, Task(name, url), look)
    if unchanged is not None:
        return Plan(unchanged.run, unchanged.name, unchanged.project, url, 0, 0, look.size, True)
    run = Run(directory)
    cursor = Cursor(cursor_path(cursors, run.id), run.id, url)
    try:
        cursor.read()
    except StoreError as error:  # of a newer version, or too large: of this run alone
        trouble = f"{error.message}. Try: {error.hint}"
        return Plan(run.id, run.name, run.project, url, 0, 0, look.size, True, trouble)
    delivered = cursor.rows.seen if cursor.rows is not None else cursor.delivered
    new = {stream.id: max(0, stream.records - _count(delivered.get(int(stream.id, 16), []))) for stream in run.streams}
    training = sum(new[stream.id] for stream in run.streams if stream.kind in TRAINING)
    points_max = training * len(run.keys(quick=True)) if training else 0
    return Plan(run.id, run.name, run.project, url, sum(new.values()), points_max, look.size, not cursor.is_new)


def _count(ranges: list[tuple[int, int]]) -> int:
    return sum(last - first + 1 for first, last in ranges)
