"""daemon.store.run_writer: segments of one run, their blocks and numbers, on a disk that refuses."""

from __future__ import annotations

import os

import pytest

from daemon.pipeline.coalesce import Waiting, coalesce
from daemon.store.run_writer import SEGMENT_BLOCKS_MAX, RunWriter
from sdk.files import DISK
from sdk.ids import hex_u64
from sdk.limits import SEGMENT_ROWS_BYTES
from sdk.location import StoreIdentity
from sdk.record import BlobRef
from sdk.segment.blobs import stored_blobs
from sdk.segment.format import KIND_CHECKPOINT, KIND_GAP, KIND_KEYS, KIND_META, KIND_ROWS
from sdk.segment.naming import SUSPECT_SUFFIX
from sdk.segment.reader import SegmentReader
from tests.serving import RUN, FailingFiles, held, rows
from tests.witness import look

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


def nothing(stream: int, first: int, last: int) -> tuple[int, bytes] | None:
    """A ring that has forgotten."""
    return None


def fail_and_begin_again(bench: Bench) -> str:
    """The current segment cannot be forced, a new one can; the path of the first."""
    suspect = bench.writer.segment
    assert suspect is not None
    assert bench.writer.suspect(suspect)
    trial = bench.writer.begin_again()
    bench.writer.forced(trial, len(trial.blocks))
    return suspect.path


def lose(path: str) -> None:
    """What the medium may hold after a failed fsync: the length, and none of the bytes."""
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        file.write(bytes(size))


def test_nothing_is_written_until_the_disk_has_forced_something(bench: Bench) -> None:
    """Nor claimed: who asks gets an OSError, and can ask again when the trial went well."""
    bench.append(7, 1, 3)
    suspect = bench.writer.segment
    assert suspect is not None
    assert bench.writer.suspect(suspect)
    assert not bench.writer.suspect(suspect), "it is known by now"
    for _ in range(2):
        assert bench.writer.waits
        assert bench.writer.claims() is None
        with pytest.raises(OSError, match="fsync failed"):
            bench.append(7, 4, 4)
        if bench.writer.segment is None:
            trial = bench.writer.begin_again()
    bench.writer.forced(trial, len(trial.blocks))
    bench.append(7, 4, 4)
    assert bench.writer.claims() is None, "what is doubtful was not written again yet"
    bench.writer.rewrite(nothing, 1 << 20)
    assert bench.writer.claims() == {7: 4}
    bench.close()


def test_what_is_doubtful_is_written_again(bench: Bench) -> None:
    """Rows and gaps since the last good fsync, each once; the suspect stays as it is, marked until all is safe."""
    bench.append(7, 1, 3)
    segment = bench.writer.segment
    assert segment is not None
    bench.writer.forced(segment, len(segment.blocks))
    bench.append(7, 4, 6)
    bench.append(8, 1, 2)
    bench.writer.append_gap(7, {"episode": 1, "count": 2})
    suspect = fail_and_begin_again(bench)
    assert os.path.exists(suspect + SUSPECT_SUFFIX)
    assert bench.writer.rewrite(nothing, 1 << 20) == (3, 0)
    bench.writer.all_forced()
    assert not os.path.exists(suspect + SUSPECT_SUFFIX)
    bench.close()
    found = held(bench.store.path)
    assert [(b.first, b.last) for b in found.rows_blocks(7)] == [(1, 3), (4, 6), (4, 6)]
    assert [(b.first, b.last) for b in found.rows_blocks(8)] == [(1, 2), (1, 2)]
    assert [values["count"] for block, values in found.maps if block.kind == KIND_GAP] == [2, 2]
    assert found.numbers == list(range(len(found.numbers)))
    assert not found.unsealed


def test_what_cannot_be_read_back_comes_from_the_ring(bench: Bench) -> None:
    """As far as it goes back; the rest is a GAP with its exact count and steps."""
    bench.append(7, 1, 10)
    bench.append(8, 1, 5)
    lose(fail_and_begin_again(bench))
    asked = []

    def ring(stream: int, first: int, last: int) -> tuple[int, bytes] | None:
        asked.append((stream, first, last))
        return (7, rows(7, last)) if stream == 7 else None

    assert bench.writer.rewrite(ring, 1 << 20) == (1, 6 + 5)
    assert asked == [(7, 1, 10), (8, 1, 5)]
    bench.close()
    reader = SegmentReader(DISK, bench.writer.retired[0][0].path)
    assert [(b.stream, b.first, b.last) for b in reader.blocks if b.kind == KIND_ROWS] == [(7, 7, 10)]
    gaps = [(b.stream, reader.read_map(b)) for b in reader.blocks if b.kind == KIND_GAP]
    reader.close()
    assert [(s, g["count"], g["first"], g["last"], g["reason"]) for s, g in gaps] == [
        (7, 6, 1, 6, "fsync failed"), (8, 5, 1, 5, "fsync failed"),
    ]  # fmt: skip
    assert [(g["step_min"], g["step_max"]) for _, g in gaps] == [(0, 6), (0, 4)]


@pytest.mark.parametrize("pages_are_gone", [False, True])
def test_blobs_of_a_failed_fsync(bench: Bench, pages_are_gone: bool) -> None:
    """They are written again from the pages; a chunk that nobody has any more is a GAP that names the blob."""
    bench.append(7, 1, 3)
    bench.writer.append_chunk(BlobRef(7, 4, 100), 0, bytes(100), {"media": "m"})
    suspect = bench.writer.media.segment
    assert suspect is not None
    assert bench.writer.suspect(suspect)
    trial = bench.writer.begin_again()
    bench.writer.forced(trial, len(trial.blocks))
    if pages_are_gone:
        lose(suspect.path)
    assert bench.writer.rewrite(nothing, 1 << 20).lost == pages_are_gone
    bench.close()
    gaps = [values for block, values in held(bench.store.path).maps if block.kind == KIND_GAP]
    assert [(gap["blob"], gap["size"], gap["reason"]) for gap in gaps] == [(4, 100, "fsync failed")] * pages_are_gone
    os.remove(suspect.path)
    assert stored_blobs(DISK, bench.writer.directory) == (set() if pages_are_gone else {(7, 4)})


def test_a_second_failure_starts_over(bench: Bench) -> None:
    """In a third segment, from whichever copy can be read: also the first, when the second was lost."""
    bench.append(7, 1, 3)
    fail_and_begin_again(bench)
    bench.writer.rewrite(nothing, 1 << 20)
    bench.append(7, 4, 6)
    second = fail_and_begin_again(bench)
    lose(second)
    result = bench.writer.rewrite(lambda stream, first, last: (first, rows(first, last)), 1 << 20)
    assert result == (2, 0)
    bench.close()
    reader = SegmentReader(DISK, bench.writer.retired[-1][0].path)
    assert [(b.first, b.last) for b in reader.blocks if b.kind == KIND_ROWS] == [(1, 3), (4, 6)]
    reader.close()
    assert bench.writer.generation == 2


def test_trials_in_vain_leave_nothing(bench: Bench) -> None:
    """A disk that fails for ever is not filled, and the numbers of segments and blocks have no hole afterwards."""
    bench.append(7, 1, 3)
    suspect = bench.writer.segment
    assert suspect is not None
    bench.writer.suspect(suspect)
    before = sorted(os.listdir(bench.writer.directory))
    for _ in range(5):
        assert bench.writer.suspect(bench.writer.begin_again())
        assert sorted(os.listdir(bench.writer.directory)) == before
    trial = bench.writer.begin_again()
    bench.writer.forced(trial, len(trial.blocks))
    bench.writer.rewrite(nothing, 1 << 20)
    bench.close()
    found = held(bench.store.path)
    assert found.numbers == list(range(len(found.numbers)))
    assert [name for name in os.listdir(bench.writer.directory) if name.endswith("000001.seg")]


def test_a_rewrite_that_the_disk_refuses_goes_on_later(bench: Bench) -> None:
    """What was not written again stays doubtful, and nothing is claimed meanwhile."""
    for first in (1, 4, 7):
        bench.append(7, first, first + 2)
    fail_and_begin_again(bench)
    bench.files.refuse("append")
    bench.files.allowances["append"] = 1
    with pytest.raises(OSError, match="No space"):
        bench.writer.rewrite(nothing, 1 << 20)
    assert bench.writer.claims() is None
    bench.files.allow()
    assert bench.writer.rewrite(nothing, 1).blocks == 1, "a tick's worth at a time"
    assert bench.writer.claims() is None
    assert bench.writer.rewrite(nothing, 1 << 20).blocks == 1
    assert bench.writer.claims() == {7: 9}
    bench.close()
    assert sorted(held(bench.store.path).covered(7)) == sorted([*range(1, 10)] * 2)


def test_a_later_segment_claims_nothing_for_one_that_failed(bench: Bench) -> None:
    """It was sealed while the first was being forced: its own fsync says nothing of what the first lost."""
    bench.append(7, 1, 3)
    first = bench.writer.segment
    assert first is not None
    bench.writer.roll()
    bench.append(7, 4, 6)
    bench.writer.roll()
    assert [claims for _, claims in bench.writer.retired] == [{7: 3}, {7: 6}]
    bench.writer.suspect(first)
    assert [claims for _, claims in bench.writer.retired] == [None], "and the first is not handed over any more"
    bench.close()


def test_it_is_done_when_all_was_forced(bench: Bench) -> None:
    """Only then may it be forgotten."""
    assert bench.writer.is_done
    bench.append(7, 1, 3)
    bench.writer.roll()
    ((segment, _),) = bench.writer.retired
    assert not bench.writer.is_done
    bench.writer.retired.clear()
    bench.writer.forced(segment, len(segment.blocks) - 1)
    assert not bench.writer.is_done
    bench.writer.forced(segment, len(segment.blocks))
    assert bench.writer.is_done
    segment.close()


def test_what_is_written_never_falls(bench: Bench) -> None:
    """A replay writes old sequences again; the CHECKPOINT still says the highest."""
    bench.append(7, 1, 9)
    bench.append(7, 4, 5)
    assert bench.writer.written == {7: 9}
    bench.close()


@pytest.mark.parametrize("appends", [0, 1])
def test_a_name_that_a_broken_disk_left_taken_is_passed_over(bench: Bench, appends: int) -> None:
    """A disk that refused a segment's beginning, and then its removal, is used again when it is well."""
    bench.files.refuse("append", "remove")
    bench.files.allowances["append"] = appends
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            bench.append(7, 1, 3)
    bench.files.allow()
    bench.append(7, 1, 3)
    bench.close()
    assert look(bench.store.path, [(RUN, 7)])[RUN, 7].sequences == {1, 2, 3}


def test_a_segment_of_many_small_blocks_is_sealed(bench: Bench) -> None:
    """However few bytes it has, so that the rows of a slow run become columns while it lives."""
    for number in range(1, SEGMENT_BLOCKS_MAX + 2):
        bench.append(7, number, number)
    assert len(bench.writer.retired) == 1
    bench.close()
    assert [kinds.count(KIND_ROWS) for kinds in bench.kinds()][1] < 10
