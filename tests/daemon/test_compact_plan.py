"""daemon.compact.plan: which segments are rewritten together, and that it comes to an end."""

from __future__ import annotations

import random

from daemon.compact.plan import FILE_BYTES_MAX, SOURCES_MAX, choose, size_class
from daemon.store.replacing import Sealed
from sdk.limits import KIB, MIB
from sdk.segment.naming import SegmentName


def segment(number: int, size: int, *, raw: bool = False) -> Sealed:
    told = {} if raw else {"replaces": [], "windows": []}
    return Sealed(f"{number}", SegmentName(number, 0), size, number, 0, frozenset(), told)


def test_raw_segments_are_rewritten_together_and_first() -> None:
    """Whatever is compacted waits."""
    raw = [segment(number, 8 * MIB, raw=True) for number in range(3)]
    assert choose([*raw, *(segment(9 + number, MIB) for number in range(8))], ended=False) == raw


def test_four_of_a_size_become_one() -> None:
    """Three wait, however many there are of other sizes."""
    large = [segment(number, 40 * MIB) for number in range(3)]
    small = [segment(10 + number, MIB) for number in range(4)]
    assert choose([*large, *small[:3]], ended=False) == []
    assert choose([*large, *small], ended=False) == small
    assert size_class(64 * KIB) == size_class(1) < size_class(256 * KIB) < size_class(MIB) < size_class(4 * MIB)


def test_a_run_that_has_ended_is_as_few_files_as_can_be() -> None:
    """Of any sizes, up to that of one file; a single one is left."""
    two = [segment(1, 100 * MIB), segment(2, KIB)]
    assert choose(two, ended=False) == []
    assert choose(two, ended=True) == two[::-1]
    assert choose(two[:1], ended=True) == []
    assert choose([segment(1, 200 * MIB), segment(2, 100 * MIB)], ended=True) == []


def test_one_rewriting_takes_a_bounded_number_of_files() -> None:
    """And of bytes: the next takes the rest."""
    assert len(choose([segment(n, 1, raw=True) for n in range(1000)], ended=False)) == SOURCES_MAX
    chosen = choose([segment(n, 70 * MIB) for n in range(10)], ended=True)
    assert sum(one.size for one in chosen) <= FILE_BYTES_MAX
    assert choose([segment(1, 5 * FILE_BYTES_MAX, raw=True)], ended=False)


def test_rows_are_written_a_few_times_and_files_stay_few() -> None:
    """10 000 raw segments of a run that lives: each byte is written at most some ten times, and about three files of each size are left."""
    draw = random.Random(3)
    segments: list[Sealed] = []
    came = written = 0
    for number in range(10_000):
        size = draw.randrange(KIB, 300 * KIB)
        came += size
        segments.append(segment(number, size, raw=True))
        while chosen := choose(segments, ended=False):
            size = sum(one.size for one in chosen)
            written += size
            segments = [*(one for one in segments if one not in chosen), segment(20_000 + number, size)]
    assert written < 10 * came
    assert len(segments) < 4 * 7 + came // (FILE_BYTES_MAX // 4)
