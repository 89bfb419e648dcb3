"""sdk._spool: the trainer's own segments, on a good disk and on one that refuses."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from sdk import _spool, platform
from sdk._spool import BLOCK_BYTES, Spool
from sdk.ids import hex_u64
from sdk.limits import BLOCK_STORED_BYTES_MAX, REFUSED_SPOOL
from sdk.location import StoreIdentity
from sdk.segment.format import FLAG_HAS_META, FLAG_HAS_PIECES, KIND_GAP
from sdk.segment.naming import SegmentName, parse_segment, run_path
from sdk.wire.messages import BATCH_HAS_META, BATCH_HAS_PIECES
from sdk.wire.session import Span
from tests.serving import RUN, FailingFiles, held, rows, temporary_store
from tests.witness import look

STREAM = 0x77
ORIGIN = {"kind": "spool", "host": platform.host_name(), "boot_id": "b", "pid": 1, "stream": hex_u64(STREAM)}


class Bench:
    def __init__(self, store: StoreIdentity, bytes_max: int = 1 << 30) -> None:
        self.store = store
        self.files = FailingFiles()
        self.spool = Spool(self.files, store, RUN, STREAM, bytes_max=bytes_max, origin=ORIGIN)

    def append(self, first: int, last: int, flags: int = 0) -> None:
        """Committed rows; the span's steps are open steps, as the sender's are."""
        data = rows(first, last)
        half = len(data) // 2
        self.spool.append(
            STREAM, Span(0, len(data), first, last, first - 1, last), [data[:half], memoryview(data)[half:]], flags
        )


@pytest.fixture
def bench() -> Iterator[Bench]:
    with temporary_store() as store:
        yield Bench(store)


def test_nothing_is_made_before_it_is_needed(bench: Bench) -> None:
    """A run whose daemon answers leaves no spool."""
    assert not bench.spool.is_open
    assert bench.spool.seal()
    assert bench.spool.is_safe
    assert not os.path.exists(run_path(bench.store.path, RUN))


def test_it_is_a_segment_like_any_other(bench: Bench) -> None:
    """Named by the stream, begun by whose it is, readable before it is sealed, with exact headers."""
    bench.append(1, 5)
    assert held(bench.store.path).sequences(STREAM) == [1, 2, 3, 4, 5]
    bench.append(6, 9, BATCH_HAS_META)
    bench.append(10, 12, BATCH_HAS_PIECES)
    assert bench.spool.is_open
    assert bench.spool.seal(sync=True)
    found = held(bench.store.path)
    assert found.sequences(STREAM) == list(range(1, 13))
    assert found.unsealed == []
    assert found.first_maps == [{"run": RUN, "writer": ORIGIN}]
    assert parse_segment(os.listdir(run_path(bench.store.path, RUN))[0]) == SegmentName(STREAM, 0)
    plain, facts, pieces = found.rows_blocks(STREAM)
    assert (plain.first, plain.last, plain.records, plain.step_min, plain.step_max, plain.flags) == (1, 5, 5, 0, 4, 0)
    assert (facts.step_min, facts.step_max, facts.flags) == (5, 8, FLAG_HAS_META)
    assert (pieces.step_min, pieces.step_max, pieces.flags) == (0, 12, FLAG_HAS_PIECES)
    assert (bench.spool.records, bench.spool.first) == (12, 1)


def test_it_is_bounded(bench: Bench) -> None:
    """`bytes_written` is what the segments take, and no more fits than allowed."""
    small = Bench(bench.store, 2000)
    assert small.spool.refusal(2000, 0.0) == 0
    small.append(1, 10)
    size = os.path.getsize(
        os.path.join(run_path(bench.store.path, RUN), os.listdir(run_path(bench.store.path, RUN))[0])
    )
    assert abs(small.spool.bytes_written - size) <= 60  # the file header may count or not
    assert small.spool.refusal(2000 - size, 0.0) == 0
    assert small.spool.refusal(2001 - small.spool.bytes_written, 0.0) == REFUSED_SPOOL
    small.spool.seal()


def test_segments_and_blocks_run_on(bench: Bench) -> None:
    """After a seal the next segment has the next number, and no block number is left out."""
    for first in (1, 6, 11):
        bench.append(first, first + 4)
        bench.spool.seal()
    found = held(bench.store.path)
    assert len({name for name, _ in found.blocks}) == 3
    assert found.numbers == list(range(len(found.numbers)))


def test_a_full_segment_is_sealed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a crash leaves little unsealed."""
    monkeypatch.setattr(_spool, "SEGMENT_BYTES", 1000)
    bench.append(1, 30)
    assert not bench.spool.is_open
    assert not held(bench.store.path).unsealed


@pytest.mark.parametrize("appends", [0, 1, 2])
def test_a_refused_append_leaves_nothing(bench: Bench, appends: int) -> None:
    """Neither a record nor a segment that nobody could judge; later it goes on."""
    bench.files.refuse("append")
    bench.files.allowances["append"] = appends  # 0: no header, 1: no META, 2: no rows
    with pytest.raises(OSError, match="No space"):
        bench.append(1, 5)
    assert bench.spool.records == 0
    assert len(os.listdir(run_path(bench.store.path, RUN))) == (appends == 2)
    bench.files.allow()
    bench.append(1, 5)
    bench.spool.seal()
    found = held(bench.store.path)
    assert found.sequences(STREAM) == [1, 2, 3, 4, 5]
    assert len(found.first_maps) == 1
    assert found.numbers == list(range(len(found.numbers)))


def test_a_directory_that_was_removed_is_made_again(bench: Bench) -> None:
    """A user who tidies up while a run goes on loses what he removed, and nothing else."""
    bench.append(1, 5)
    bench.spool.seal()
    directory = run_path(bench.store.path, RUN)
    for name in os.listdir(directory):
        os.unlink(os.path.join(directory, name))
    os.rmdir(directory)
    bench.append(6, 9)
    bench.spool.seal()
    assert held(bench.store.path).sequences(STREAM) == [6, 7, 8, 9]


@pytest.mark.parametrize("operation", ["append", "sync"])
def test_a_refused_seal_says_so(bench: Bench, operation: str) -> None:
    """The records are there; nobody claims that they are safe, also not after a later good one."""
    bench.append(1, 5)
    bench.files.refuse(operation)
    assert not bench.spool.seal(sync=True)
    assert not bench.spool.is_open
    bench.files.allow()
    bench.append(6, 9)
    assert bench.spool.seal(sync=True)
    assert not bench.spool.is_safe
    assert held(bench.store.path).sequences(STREAM) == list(range(1, 10))


def test_safe_means_every_segment_was_forced(bench: Bench) -> None:
    """A seal without sync is quick, and not safe."""
    bench.append(1, 5)
    assert not bench.spool.is_safe
    assert bench.spool.seal(sync=True)
    assert bench.spool.is_safe
    bench.append(6, 9)
    assert bench.spool.seal()
    assert not bench.spool.is_safe


def test_gaps_are_stored(bench: Bench) -> None:
    """What was refused at the very end, when no record can tell of it any more."""
    bench.spool.append_gap(STREAM, {"episode": 1, "count": 3})
    bench.spool.seal()
    ((block, values),) = [m for m in held(bench.store.path).maps if m[0].kind == KIND_GAP]
    assert (block.stream, values["count"]) == (STREAM, 3)


def test_descriptors_are_given_back(bench: Bench) -> None:
    """Sealing closes the file, also where the disk refuses."""
    before = len(os.listdir("/proc/self/fd"))
    for n in range(5):
        bench.append(n * 5 + 1, n * 5 + 5)
        if n % 2:
            bench.files.refuse("append")
        bench.spool.seal(sync=True)
        bench.files.allow()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_block_fits_into_what_readers_take() -> None:
    """With room for one record that is larger than any block should be."""
    assert 2 * BLOCK_BYTES <= BLOCK_STORED_BYTES_MAX


def test_a_name_that_a_broken_disk_left_taken_is_passed_over(bench: Bench) -> None:
    """A disk that refused a segment's header, and then its removal, is used again when it is well."""
    bench.files.refuse("append", "remove")
    with pytest.raises(OSError, match="No space"):
        bench.append(1, 5)
    bench.files.allow()
    bench.append(1, 5)
    assert bench.spool.seal(sync=True)
    assert look(bench.store.path, [(RUN, STREAM)])[RUN, STREAM].sequences == {1, 2, 3, 4, 5}


def test_a_spool_that_is_safe_has_its_names_forced(bench: Bench) -> None:
    """A segment that was forced, in a directory that was not, is gone after a power loss."""
    forced: list[str] = []
    real = bench.files.sync_directory
    bench.files.sync_directory = lambda path: (forced.append(path), real(path))[1]  # type: ignore[method-assign]
    bench.append(1, 5)
    assert bench.spool.seal(sync=True)
    run = run_path(bench.store.path, RUN)
    assert forced == [run, os.path.dirname(run), bench.store.path]
