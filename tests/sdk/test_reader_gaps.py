"""sdk.reader.gaps and sdk.reader.verify: what was claimed and is not there, what a chain of blocks misses, what a GAP explains."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sdk.files import DISK
from sdk.reader import Gap, Run
from sdk.reader.verify import verify_run
from sdk.segment.format import BLOCK_HEADER_SIZE, KIND_CHECKPOINT, KIND_META
from sdk.segment.naming import RUNS, format_segment, parse_segment
from tests.builders import RunBuilder, StreamBuilder, Writer, make_store


@pytest.fixture
def run(tmp_path: Path) -> RunBuilder:
    return RunBuilder(make_store(tmp_path))


def opened(run: RunBuilder) -> Run:
    return Run(run.directory, alive=lambda _: False)


def logged(run: RunBuilder, stream: StreamBuilder, count: int) -> None:
    for _ in range(count):
        stream.log({"loss": 0.5})
    run.flush()


def claim(writer: Writer, streams: dict[str, Any]) -> None:
    writer.segment.append_map(KIND_CHECKPOINT, {"streams": streams})


def test_what_a_checkpoint_claims_and_nobody_holds_is_missing(run: RunBuilder) -> None:
    """Sequences above the last one that is there, with the highest step that the claim knows."""
    main = run.stream()
    logged(run, main, 4)
    claim(run.daemon, {main.hex: [9, 7]})
    run.seal()
    assert opened(run).gaps == [Gap(main.hex, 4, 3, 7, None, None, "missing", 6, 9)]


def test_a_claim_about_a_stream_of_which_nothing_is_left(run: RunBuilder) -> None:
    """All of it is missing; a claim that is fulfilled says nothing."""
    main = run.stream()
    logged(run, main, 4)
    claim(run.daemon, {main.hex: [5], "00000000000000aa": [3]})
    run.seal()
    assert opened(run).gaps == [Gap("00000000000000aa", 3, 0, 0, None, None, "missing", 1, 3)]


@pytest.mark.parametrize("streams", [7, {"x": [1]}, {"aa": 5}, {"aa": ["1"]}, {"aa": [-1]}, {"aa": []}])
def test_claims_that_are_none(run: RunBuilder, streams: Any) -> None:
    """A CHECKPOINT is hostile input like everything else."""
    logged(run, run.stream(), 1)
    claim(run.daemon, streams)
    run.seal()
    assert (opened(run).gaps, opened(run).damage) == ([], [])


def test_a_cut_of_a_sealed_segment_is_a_gap_to_the_sequence(run: RunBuilder) -> None:
    """Exactly on a block's end, too: size and last sequences stand at the head of the file."""
    main = run.stream()
    logged(run, main, 4)
    block = run.daemon.segment.blocks[-1]
    logged(run, main, 3)
    path = run.seal()
    size = os.path.getsize(path)
    os.truncate(path, block.end)
    found = opened(run)
    assert found.gaps == [Gap(main.hex, 3, 3, 6, None, None, "missing", 6, 8)]
    assert [(d.path, d.start, d.end) for d in found.damage] == [(path, block.end, size)]
    logged(run, main, 2)
    run.seal()
    assert len(opened(run).damage) == 1  # what is behind it in the chain does not tell of the cut again


def test_a_missing_tail_of_an_open_segment_shows_by_the_next_one(run: RunBuilder) -> None:
    """Block numbers go on through all segments of a writer, so the hole is damage even where nothing claims it."""
    main = run.stream()
    logged(run, main, 4)
    first = run.daemon.segment.blocks[-1]
    logged(run, main, 3)
    path = run.seal()
    logged(run, main, 2)
    behind = run.seal()
    with open(path, "r+b") as file:
        file.seek(64)
        file.write(bytes(120))  # as if it had never been sealed
        file.truncate(first.end)
    (damage,) = opened(run).damage
    assert damage.path == behind
    assert f"blocks {first.number + 1} to " in damage.reason
    os.unlink(path)
    assert "blocks 0 to " in opened(run).damage[0].reason


def test_a_segment_that_was_replaced_is_not_missed(run: RunBuilder) -> None:
    """META `replaces` names it."""
    main = run.stream()
    logged(run, main, 4)
    path = run.seal()
    logged(run, main, 2)
    run.seal()
    os.unlink(path)
    assert opened(run).damage
    other = Writer(run)
    other.rows(main, main.records[:5])
    other.segment.append_map(KIND_META, {"replaces": [[f"{run.daemon.id:016x}", 0], ["x"], 7]})
    other.seal()
    assert (opened(run).damage, opened(run).gaps) == ([], [])


def test_a_gap_with_sequences_explains_them_once(run: RunBuilder) -> None:
    """Its reason and steps count for what no block holds; the rest of it is there, and so no gap."""
    main = run.stream()
    for _ in range(20):
        main.log({"loss": 1.0})
    records = main.take()
    run.daemon.rows(main, records[:5])
    run.daemon.rows(main, records[10:12])
    told = {"episode": "sync-4", "count": 7, "first": 4, "last": 10, "step_min": 2, "step_max": 8, "start_ns": 10**9}
    run.daemon.gap(main, {**told, "reason": "fsync failed"})
    run.daemon.gap(
        main, {"episode": "x", "count": 3, "first": 20, "last": 22, "step_min": 18, "step_max": 20, "reason": "gone"}
    )
    run.daemon.gap(main, {"episode": 1, "count": 2, "step_min": 1, "step_max": 1, "reason": "ring full"})
    run.seal()
    assert opened(run).gaps == [
        Gap(main.hex, 2, 1, 1, None, None, "ring full"),
        Gap(main.hex, 5, 2, 8, 1.0, None, "fsync failed", 6, 10),
        Gap(main.hex, 7, 10, 20, None, None, "missing", 13, 19),
        Gap(main.hex, 3, 18, 20, None, None, "gone", 20, 22),
    ]


def test_verify_counts_what_cannot_be_read_as_a_gap(run: RunBuilder) -> None:
    """Also where nobody read the run; a copy of the sequences elsewhere closes the gap, not the damage."""
    main = run.stream()
    logged(run, main, 4)
    block = run.daemon.segment.blocks[-1]
    logged(run, main, 1)
    path = run.seal()
    assert verify_run(DISK, run.directory).findings == []
    with open(path, "r+b") as file:
        file.seek(block.offset + BLOCK_HEADER_SIZE)
        file.write(b"\xff\xff")
    heard: list[int] = []
    found = verify_run(DISK, run.directory, heard.append)
    assert [(f.start, f.records) for f in found.findings] == [(block.offset, 5)]
    assert [(g.first, g.last, g.reason) for g in found.gaps] == [(1, 5, "damage")]
    assert 0 < sum(heard) <= os.path.getsize(path)
    other = Writer(run)
    other.rows(main, main.records[:5])
    other.seal()
    found = verify_run(DISK, run.directory)
    assert (len(found.findings), found.gaps) == (1, [])


def test_verify_of_a_live_run_and_of_what_is_no_segment(run: RunBuilder) -> None:
    """What a writer is in the middle of is no damage; links, FIFOs, directories and empty files are noted and not read."""
    logged(run, run.stream(), 4)
    path = run.daemon.segment.path
    with open(path, "ab") as file:
        file.write(b"half a block")
    parsed = parse_segment(os.path.basename(path))
    assert parsed is not None
    names = [os.path.join(run.directory, format_segment(parsed._replace(number=n))) for n in range(100, 104)]
    os.symlink("/etc/passwd", names[0])
    os.mkfifo(names[1])
    os.mkdir(names[2])
    Path(names[3]).touch()
    found = verify_run(DISK, run.directory)
    assert (found.findings, found.gaps) == ([], [])
    assert [note.partition(".seg ")[2].split(":")[0] for note in found.notes] == ["is ignored"] * 3 + ["holds nothing"]
    assert [row["loss"] for row in opened(run).rows()] == [0.5] * 4
    assert RUNS in run.directory
