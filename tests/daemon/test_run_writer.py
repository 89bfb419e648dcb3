"""daemon.store.run_writer: segments of one run, their blocks and numbers, on a disk that refuses."""

from __future__ import annotations

import os

import pytest

from daemon.pipeline.coalesce import Waiting, coalesce
from daemon.store.run_writer import RunWriter
from sdk.ids import hex_u64
from sdk.limits import SEGMENT_ROWS_BYTES
from sdk.location import StoreIdentity
from sdk.segment.format import KIND_CHECKPOINT, KIND_GAP, KIND_KEYS, KIND_META, KIND_ROWS
from tests.serving import RUN, FailingFiles, held, rows

WRITER = 0xABCDEF
ORIGIN = {"kind": "daemon", "host": "h", "boot_id": "b", "pid": 1, "stream": None}


class Bench:
    def __init__(self, store: StoreIdentity) -> None:
        self.store = store
        self.files = FailingFiles()
        self.writer = RunWriter(self.files, store, RUN, WRITER, ORIGIN)

    def append(self, stream: int, first: int, last: int) -> None:
        self.writer.append(stream, coalesce([Waiting(first, last, 0, last, rows(first, last))]))

    def close(self) -> None:
        self.writer.roll()
        for segment, _ in self.writer.retired:
            segment.close()

    def kinds(self) -> list[list[int]]:
        """Block kinds, segment by segment."""
        found: dict[str, list[int]] = {}
        for name, block in held(self.store.path).blocks:
            found.setdefault(name, []).append(block.kind)
        return list(found.values())


@pytest.fixture
def bench(store: StoreIdentity) -> Bench:
    return Bench(store)


def test_nothing_is_made_before_it_is_needed(bench: Bench) -> None:
    """A run that only said Hello leaves no file."""
    bench.writer.roll()
    assert not os.path.exists(bench.writer.directory)
    assert bench.writer.retired == []


def test_a_segment_begins_with_whose_it_is(bench: Bench) -> None:
    """And holds the blocks as they were given; sealed, with the keys."""
    bench.append(7, 1, 3)
    bench.append(8, 1, 2)
    bench.writer.append_gap(7, {"episode": 1, "count": 2})
    assert bench.writer.dirty
    bench.close()
    found = held(bench.store.path)
    assert bench.kinds() == [[KIND_META, KIND_ROWS, KIND_ROWS, KIND_GAP, KIND_KEYS]]
    assert found.first_maps == [{"run": RUN, "writer": ORIGIN}]
    assert (found.sequences(7), found.sequences(8)) == ([1, 2, 3], [1, 2])
    assert not found.unsealed
    assert bench.writer.records == 5


def test_block_numbers_and_segment_numbers_run_on(bench: Bench) -> None:
    """So that a missing block or segment shows; each segment but the first says what was written before."""
    for first in (1, 11, 21):
        bench.append(7, first, first + 9)
        bench.writer.roll()
    assert bench.writer.next_number == 3
    found = held(bench.store.path)
    assert found.numbers == list(range(len(found.numbers)))
    checkpoints = [values["streams"] for block, values in found.maps if block.kind == KIND_CHECKPOINT]
    assert checkpoints == [{hex_u64(7): [10]}, {hex_u64(7): [20]}]
    bench.close()


def test_it_rolls_at_eight_mib(bench: Bench) -> None:
    """What was safe when the segment ended is remembered with it, for whoever forces it."""
    payload = coalesce([Waiting(1, 1, 0, 1, rows(1, 1))])
    first = 1
    while not bench.writer.retired:
        bench.writer.append(7, payload._replace(raw=os.urandom(1 << 20), first=first, last=first, keys={}))
        first += 1
    assert SEGMENT_ROWS_BYTES <= os.path.getsize(bench.writer.retired[0][0].path) < SEGMENT_ROWS_BYTES + (2 << 20)
    assert bench.writer.retired[0][1] == {7: first - 1}
    assert bench.writer.segment is None
    assert not bench.writer.dirty
    bench.writer.retired[0][0].close()


def test_a_refused_append_leaves_nothing_and_can_be_repeated(bench: Bench) -> None:
    """ENOSPC in the middle of a run: the file is as before, and the same payload goes in later."""
    bench.append(7, 1, 3)
    before = os.path.getsize(bench.writer.segment.path if bench.writer.segment else "")
    bench.files.refuse("append")
    with pytest.raises(OSError, match="No space"):
        bench.append(7, 4, 6)
    assert bench.writer.written == {7: 3}
    assert bench.writer.records == 3
    assert bench.writer.segment is not None
    assert os.path.getsize(bench.writer.segment.path) == before
    bench.files.allow()
    bench.append(7, 4, 6)
    bench.close()
    found = held(bench.store.path)
    assert found.sequences(7) == [1, 2, 3, 4, 5, 6]
    assert found.numbers == list(range(len(found.numbers)))


@pytest.mark.parametrize("appends", [0, 1, 2])
def test_no_segment_without_its_meta_block(bench: Bench, appends: int) -> None:
    """A disk that refuses while a segment is being begun leaves no file that nobody could judge later."""
    bench.append(7, 1, 3)
    bench.writer.roll()
    bench.files.refuse("append")
    bench.files.allowances["append"] = appends  # 0: not even the header, 1: no META, 2: no CHECKPOINT
    with pytest.raises(OSError, match="No space"):
        bench.append(7, 4, 6)
    assert len(os.listdir(bench.writer.directory)) == 1
    bench.files.allow()
    bench.append(7, 4, 6)
    bench.close()
    found = held(bench.store.path)
    assert found.sequences(7) == [1, 2, 3, 4, 5, 6]
    assert [facts["run"] for facts in found.first_maps] == [RUN, RUN]
    assert found.numbers == list(range(len(found.numbers)))


def test_a_refused_file_can_be_made_later(bench: Bench) -> None:
    """Too many open files now, room later."""
    bench.files.refuse("create")
    with pytest.raises(OSError, match="No space"):
        bench.append(7, 1, 1)
    bench.files.allow()
    bench.append(7, 1, 1)
    bench.close()
    assert held(bench.store.path).sequences(7) == [1]


def test_a_refused_seal_leaves_it_for_recovery(bench: Bench) -> None:
    """It is retired all the same: its blocks are good, and the next segment goes on."""
    bench.append(7, 1, 3)
    bench.files.refuse("append")
    bench.writer.roll()
    assert len(bench.writer.retired) == 1
    bench.files.allow()
    bench.append(7, 4, 4)
    bench.close()
    found = held(bench.store.path)
    assert len(found.unsealed) == 1
    assert found.sequences(7) == [1, 2, 3, 4]


def test_a_segment_whose_fsync_failed_is_given_up(bench: Bench) -> None:
    """Closed as it is, sealed where the disk lets us, never forced again; the numbers run on."""
    bench.append(7, 1, 3)
    suspect = bench.writer.segment
    assert suspect is not None
    bench.writer.give_up()
    assert bench.writer.segment is None
    assert bench.writer.retired == []
    bench.append(7, 4, 4)
    assert bench.writer.segment is not None
    assert bench.writer.segment.path != suspect.path
    bench.close()
    found = held(bench.store.path)
    assert found.sequences(7) == [1, 2, 3, 4]
    assert found.numbers == list(range(len(found.numbers)))
    assert not found.unsealed


def test_what_is_written_never_falls(bench: Bench) -> None:
    """A replay writes old sequences again; the CHECKPOINT still says the highest."""
    bench.append(7, 1, 9)
    bench.append(7, 4, 5)
    assert bench.writer.written == {7: 9}
    bench.close()
