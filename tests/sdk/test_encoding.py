"""sdk.segment.encoding: how many bytes arrays become, and that they come back (test_columns has every type, at random)."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.errors import DamageError
from sdk.segment.encoding import (
    DELTA,
    FRAME,
    Source,
    pack_floats,
    pack_integers,
    pack_items,
    unpack_floats,
    unpack_integers,
    unpack_items,
)

NOISE = numpy.random.default_rng(2)
ROWS = 20_000


def joined(parts: list[Any]) -> bytes:
    return b"".join(map(bytes, parts))


@pytest.mark.parametrize("first", [0, 5, -(2**63), 2**63 - ROWS * 7])
@pytest.mark.parametrize("slope", [0, 1, 7])
def test_lines_take_no_bytes(first: int, slope: int) -> None:
    """Steps and sequences that grow evenly are a few numbers in the plan, wherever they begin."""
    values = numpy.arange(ROWS) * slope + first
    plan, parts = pack_integers(values)
    assert joined(parts) == b""
    assert unpack_integers(plan, Source(b""), ROWS, numpy.int64).tolist() == values.tolist()


@pytest.mark.parametrize(
    ("values", "mode", "width"),
    [
        ([5] * 9, FRAME, 0),
        ([2**60, 2**60 + 255, 2**60], FRAME, 1),
        ([0, 1000, 2001, 3000], DELTA, 1),
        ([3000, 2000, 999, 0], DELTA, 1),
        ([-(2**63), 2**63 - 1, 0], FRAME, 8),
        ([-(2**63), 2**63 - 1] * 3, DELTA, 1),
    ],
)
def test_the_narrowest_words(values: list[int], mode: int, width: int) -> None:
    """Differences to the smallest value or to the one before, modulo 2^64: whichever is narrower."""
    plan, parts = pack_integers(numpy.array(values, "i8"))
    assert (plan[0], plan[3]) == (mode, width)
    assert unpack_integers(plan, Source(joined(parts)), len(values), numpy.int64).tolist() == values


def test_planes() -> None:
    """Mantissas of noise stay together as words, sign and exponent are a plane each; what is constant takes one word."""
    plan, parts = pack_floats(NOISE.normal(1, 0.1, ROWS))
    assert [(position, wide) for position, wide, _, _ in plan[1]][:2] == [(0, 4), (4, 2)]
    assert len(joined(parts)) < 7.5 * ROWS
    plan, parts = pack_floats(numpy.full(ROWS, 0.1))
    assert (plan, len(joined(parts))) == ([8, []], 8)


def test_floats_are_narrow_only_where_nothing_is_lost() -> None:
    """One value of many that is no float32 keeps all of them wide."""
    values = NOISE.normal(size=ROWS).astype("f4").astype("f8")
    assert pack_floats(values)[0][0] == 4
    values[ROWS // 2] = 0.1
    plan, parts = pack_floats(values)
    assert plan[0] == 8
    assert unpack_floats(plan, Source(joined(parts)), ROWS).tolist() == values.tolist()


@given(st.lists(st.sampled_from([b"", b"a", b"abc"]) | st.binary(max_size=5), min_size=1, max_size=30))
def test_items_come_back(items: list[bytes]) -> None:
    """As they are, or as a dictionary; with a byte less there is nothing, and no guess."""
    plan, parts = pack_items(items)
    stored = joined(parts)
    assert unpack_items(plan, Source(stored), len(items)) == items
    if stored:
        with pytest.raises(DamageError):
            unpack_items(plan, Source(stored[:-1]), len(items))
