"""sdk.journal.lookback: what a ring still holds although it was released."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sdk.errors import DamageError
from sdk.journal.appender import open_journal
from sdk.journal.format import CAPACITY_MIN, HEADER_BYTES, RELEASED_COPIES
from sdk.journal.handle import Journal
from sdk.journal.lookback import Lookback
from sdk.journal.ring import Ring
from sdk.record import decode_map, walk


class Kept:
    """A ring and its journal, and everything that was logged, by sequence."""

    def __init__(self, base: Path) -> None:
        self.ring, _ = Ring.create(str(base), "d" * 16, 5, CAPACITY_MIN, {"run": "r"})
        assert self.ring.path is not None
        self.path = self.ring.path
        self.journal: Journal = open_journal(self.ring)
        self.logged: dict[int, Any] = {}
        self.descriptor = os.dup(self.ring._descriptor)

    def log(self, value: Any) -> None:
        sequence = self.journal.mark()[1]
        self.journal.log({"v": value})
        self.logged[sequence] = value

    def release(self) -> None:
        self.journal.release(self.journal.mark())

    def back(self) -> Lookback:
        return Lookback(self.path, self.descriptor)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path)
    yield made
    os.close(made.descriptor)
    made.ring.close()


def check(kept: Kept, back: Lookback, first: int, last: int) -> int:
    """What comes back is what was logged, to the last one asked for; how many records."""
    found = back.records(first, last)
    if found is None:
        return 0
    start, data = found
    records = list(walk(data))
    assert [record.sequence for record in records] == list(range(start, last + 1))
    for record in records:
        if record.sequence in kept.logged:
            assert decode_map(record.payload)["v"] == kept.logged[record.sequence]
    return len(records)


def test_released_records_are_found(kept: Kept) -> None:
    """All of them, in a ring that has not wrapped; and those that nobody stored yet."""
    for n in range(100):
        kept.log(n)
    kept.release()
    for n in range(10):
        kept.log(n)
    back = kept.back()
    assert (back.first, back.last) == (1, 110)
    assert check(kept, back, 1, 110) == 110
    assert check(kept, back, 40, 50) == 11
    assert back.records(105, 111) is None, "the last one was never logged"


def test_in_a_ring_that_wrapped_the_oldest_are_gone(kept: Kept) -> None:
    """And a little more, where the next call may be writing already; whatever is found is right."""
    source = random.Random(3)
    for n in range(20_000):
        kept.log("x" * source.randrange(60) if n % 3 else n)
        if n % 50 == 0:
            kept.release()
    kept.release()
    back = kept.back()
    assert 1 < back.first < 20_000
    found = check(kept, back, 1, 20_000)
    assert found == 20_000 - back.first + 1
    assert check(kept, back, back.first, back.first + 99) == 100
    assert back.records(1, back.first - 1) is None


def test_a_large_record_keeps_its_distance(kept: Kept) -> None:
    """What is as large as the largest may be half overwritten by one that is on its way."""
    for _ in range(40):
        kept.log(os.urandom(20_000))
        kept.release()
    back = kept.back()
    assert 0 < check(kept, back, 1, 40) <= (CAPACITY_MIN - 64 * 1024) // 20_000


def test_what_looks_like_a_record_is_none(kept: Kept) -> None:
    """Bytes of a record inside a value: only a walk that ends where the released records end counts."""
    kept.log(1)
    record = bytes(kept.ring.data[: kept.journal.mark()[0]])
    for _ in range(5_000):
        kept.log(record)
        kept.release()
    back = kept.back()
    assert check(kept, back, 1, 5_001) == 5_001 - back.first + 1


def test_an_empty_ring_has_nothing(kept: Kept) -> None:
    """As has one in which nothing was released and nothing waits."""
    back = kept.back()
    assert back.records(1, 1) is None


def test_a_ring_that_does_not_say_what_is_released_is_refused(kept: Kept) -> None:
    """Without that mark nothing proves a walk."""
    kept.log(1)
    kept.release()
    for place in RELEASED_COPIES:
        os.pwrite(kept.descriptor, b"\xff" * 8, place * 8)
    with pytest.raises(DamageError, match="does not say"):
        kept.back()


def test_damage_in_the_middle_hides_what_is_before(kept: Kept) -> None:
    """Nothing behind it is given up, and nothing before it is believed."""
    for n in range(1000):
        kept.log(n)
    kept.release()
    size = kept.journal.mark()[0]
    os.pwrite(kept.descriptor, b"\0" * 64, HEADER_BYTES + size // 2)
    back = kept.back()
    assert 480 < back.first < 520
    assert check(kept, back, 1, 1000) == 1000 - back.first + 1
