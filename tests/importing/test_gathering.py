"""daemon.importing.gathering: values one by one become the rows that merging pieces makes of them."""

from __future__ import annotations

import random
from typing import Any

import numpy
import pytest

from daemon.importing.gathering import gather
from sdk.record import FLAG_COMMIT
from sdk.rows import Piece, merge

Value = tuple[int, int, int, float]


def gathered(values: list[Value], first: int = 1) -> tuple[dict[int, Any], int, int]:
    """By sequence (step, time, values); how many values were replaced; how many rows."""
    which, steps, times, numbers = (numpy.array(column) for column in zip(*values))
    made = gather(["a", "b", "c"], which, steps, times, numbers.astype(numpy.float64), first)
    rows: dict[int, Any] = {}
    for group in made.groups:
        assert (numpy.diff(group.sequence.astype(numpy.int64)) > 0).all()
        assert set(group.flags.tolist()) == {FLAG_COMMIT}
        for place, sequence in enumerate(group.sequence.tolist()):
            row = rows.setdefault(sequence, (int(group.step[place]), int(group.time_us[place]), {}))
            assert row[:2] == (group.step[place], group.time_us[place])
            row[2].update({key: float(column[place]) for key, column in group.values.items()})
    return rows, made.replaced, made.steps


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_those_of_merging(seed: int) -> None:
    """The later value of a key, the time and sequence of the last piece; steps may come in any order."""
    chance = random.Random(seed)
    values = [
        (chance.randrange(3), chance.randrange(chance.choice([1, 5, 60])), 1000 + at, chance.random())
        for at in range(60)
    ]
    rows, replaced, steps = gathered(values, first=11)
    pieces = [
        Piece(11 + at, step, FLAG_COMMIT, time, {"abc"[key]: value})
        for at, (key, step, time, value) in enumerate(values)
    ]
    expected = {piece.sequence: (piece.step, piece.time_ns, piece.values) for piece in merge(pieces)}
    assert rows == expected, seed
    assert steps == len(expected), seed
    assert replaced == len(values) - sum(len(row[2]) for row in rows.values()), seed


def test_keys_of_the_same_rows_are_one_group() -> None:
    """So what was written together is columns beside one another, and a key that comes seldom costs nothing more."""
    values = [(key, step, step, 0.5) for step in range(100) for key in (0, 1)] + [(2, 50, 200, 1.0)]
    which, steps, times, numbers = (numpy.array(column) for column in zip(*values))
    groups = gather(["a", "b", "c"], which, steps, times, numbers, 1).groups
    assert sorted(tuple(group.values) for group in groups) == [("a", "b"), ("c",)]
