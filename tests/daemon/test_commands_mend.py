"""`stepd verify`, `stepd repair`, `stepd du`: what they print, what they exit with, and what they leave alone."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from sdk import platform
from sdk.files import DISK
from sdk.journal.appender import open_journal
from sdk.journal.format import CAPACITY_MIN
from sdk.journal.ring import Ring
from sdk.location import read_store
from sdk.reader import open_store
from sdk.segment.format import BLOCK_HEADER_SIZE, KIND_ROWS
from sdk.segment.naming import ASIDE, RUNS
from sdk.segment.reader import SegmentReader
from sdk.transport import lock_path
from tests.builders import RunBuilder, make_run, make_store
from tests.called import stepd


@pytest.fixture
def store(tmp_path: Path) -> str:
    path = make_store(tmp_path)
    make_run(path, "a41f", [{"loss": i / 4} for i in range(50)])
    make_run(path, "b7c2", [{"loss": 1.0}], name="brave-fox")
    return path


def spoil(store: str, run: str = "a41f") -> str:
    """Changes a byte of the first block of rows of a run; the segment's path."""
    directory = os.path.join(store, RUNS, run)
    path = next(os.path.join(directory, name) for name in sorted(os.listdir(directory)) if name.endswith(".seg"))
    reader = SegmentReader(DISK, path)
    block = next(block for block in reader.blocks if block.kind == KIND_ROWS)
    reader.close()
    with open(path, "r+b") as file:
        file.seek(block.offset + BLOCK_HEADER_SIZE)
        file.write(b"\xff\xff")
    return path


def test_verify_of_a_good_store(store: str) -> None:
    """One line with what was read; exit code 0, for the whole store as for one run."""
    result = stepd(store, "verify")
    assert (result.exit_code, len(result.output.splitlines())) == (0, 1)
    assert result.output.startswith("2 runs, 2 segments, ")
    assert result.output.rstrip().endswith(": all good")
    assert stepd(store, "verify", "brave-fox").output.startswith("1 run, 1 segment, ")


def test_verify_says_which_steps(store: str) -> None:
    """A line for each finding with run, segment, bytes, block, sums, records and steps, and the cure; exit code 1."""
    path = spoil(store)
    result = stepd(store, "verify", "--all")
    assert result.exit_code == 1
    first, gap, cure, total = result.output.splitlines()
    assert first.startswith(f"damage in run a41f, {os.path.basename(path)}, bytes ")
    assert "block 1: crc is 0x" in first
    assert first.endswith("; 52 records (steps 0–49) skipped")
    assert gap.startswith("gap in run a41f: 52 records (steps 0–49) of stream ")
    assert cure == "  Try: stepd repair a41f"
    assert ": 1 damaged, 52 records missing" in total
    assert stepd(store, "verify", "b7c2").exit_code == 0
    document = json.loads(stepd(store, "verify", "--json").stdout)
    (bad,) = [run for run in document["runs"] if not run["good"]]
    assert (bad["id"], bad["damage"][0]["records"], bad["damage"][0]["step_max"]) == ("a41f", 52, 49)


def test_show_names_a_damaged_file_once(store: str) -> None:
    """Its path, the bytes, and what is wrong with them."""
    path = spoil(store)
    (line,) = [line for line in stepd(store, "show", "a41f").output.splitlines() if "crc is" in line]
    assert line.count(os.path.basename(path)) == 1


def test_what_waits_in_shared_memory(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Show and verify name what a dead process left, of this run only, and how it ended; a living one's ring is its own."""
    base = tmp_path / "memory"
    base.mkdir(mode=0o700)
    monkeypatch.setenv("STEPD_SHARED_MEMORY_DIR", str(base))
    identity = {"run": "a41f", "store": read_store(store).id}
    ring, _ = Ring.create(str(base), platform.store_digest(store), 5, CAPACITY_MIN, identity)
    journal = open_journal(ring)
    while not journal.refusals().refused:
        journal.log({"loss": 0.5})
    journal.close_log("over")
    journal.append_meta({"end": {"state": "failed"}})
    assert "shared memory" not in stepd(store, "show", "a41f").output
    ring.abandon()
    rows = journal.mark()[1] - 2
    text = (
        f"{rows:,} records of stream 0000000000000005, which ended as 'failed', in shared memory, and 1 refused call."
    )
    for words in (("show", "a41f"), ("verify", "a41f"), ("verify",)):
        assert text in stepd(store, *words).output, words
    assert "shared memory" not in stepd(store, "show", "b7c2").output + stepd(store, "verify", "b7c2").output
    (found,) = json.loads(stepd(store, "show", "a41f", "--json").stdout)["rings"]
    assert (found["run"], found["records"], found["refused"], found["path"]) == ("a41f", rows, 1, ring.path)
    result = stepd(store, "repair", "--rings", "--dry-run")
    assert f"would store {rows:,} records that 1 dead trainer left" in result.output
    with monkeypatch.context() as patch:
        patch.setattr(DISK, "create", lambda path: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        refused = stepd(store, "repair", "--rings")
    assert (refused.exit_code, f"cannot store what is left in {ring.path}" in refused.output) == (1, True)
    assert stepd(store, "repair", "--rings").exit_code == 0
    assert "shared memory" not in stepd(store, "show", "a41f").output


def test_misuse(store: str) -> None:
    """--all beside runs is exit code 2, an unknown run 1."""
    assert stepd(store, "verify", "--all", "a41f").exit_code == 2
    assert stepd(store, "verify", "nobody").exit_code == 1
    assert stepd(store, "repair", "nobody").exit_code == 1


def test_repair(store: str) -> None:
    """A dry run changes nothing and counts; then the gap stays, the damage goes, the old file is kept, and nothing is left to
    do. Exit code 1, as all that was in the block is lost.
    """
    path = spoil(store)
    before = Path(path).read_bytes()
    result = stepd(store, "repair", "--dry-run")
    assert (result.exit_code, "1 segment of 1 damaged segment would be repaired" in result.output) == (0, True)
    assert Path(path).read_bytes() == before
    result = stepd(store, "repair")
    assert result.exit_code == 1
    assert "nothing could be saved: 0 records saved, 52 lost, the old file is " in result.output
    kept = os.path.join(os.path.dirname(path), ASIDE, os.path.basename(path))
    assert Path(kept).read_bytes() == before
    verified = stepd(store, "verify")
    assert (verified.exit_code, "52 records missing and accounted for" in verified.output) == (0, True)
    assert stepd(store, "repair").output == "nothing is damaged\n"
    (gap,) = open_store(store).run("a41f").gaps
    assert (gap.count, gap.reason, gap.step_max) == (52, "damage", 49)


def test_an_open_segment_is_repaired_only_when_its_writer_is_dead(store: str) -> None:
    """The builder's writer is of another machine: refused with the cure, unless the user knows better."""
    run = RunBuilder(store, "open")
    run.stream().log({"loss": 1.0})
    run.close()
    spoil(store, "open")
    result = stepd(store, "repair", "open")
    assert result.exit_code == 1
    assert "its writer may still live. Try: stepd repair open on the writer's machine, or with --force" in result.output
    assert "nothing could be saved" in stepd(store, "repair", "open", "--force").output
    assert stepd(store, "verify", "open").exit_code == 0


def test_beside_a_serving_daemon(store: str) -> None:
    """What is sealed is repaired all the same; what is open is the daemon's, and so are rings."""
    run = RunBuilder(store, "open")
    run.stream().log({"loss": 1.0})
    run.close()
    spoil(store, "open")
    spoil(store)
    lock = platform.hold_lock(lock_path(store))
    assert lock is not None
    try:
        result = stepd(store, "repair", "--rings")
    finally:
        lock.release()
        os.unlink(lock_path(store))
    assert result.exit_code == 1
    assert "a daemon serves this store" in result.output
    assert "stepd stop && stepd repair open" in result.output
    assert stepd(store, "verify", "a41f").exit_code == 0


def test_a_store_that_is_open_to_others_is_not_changed(store: str) -> None:
    """As for `rm`."""
    os.chmod(store, 0o777)
    result = stepd(store, "repair")
    assert (result.exit_code, "nothing in it is changed" in result.stderr) == (1, True)


def test_du(store: str) -> None:
    """The largest run first, then the whole; numbers in JSON; aside counts."""
    spoil(store, "b7c2")
    stepd(store, "repair")
    head, first, second, total = stepd(store, "du").output.splitlines()
    assert head.split() == ["ID", "NAME", "SEGMENTS", "MEDIA", "SPOOLS", "ASIDE", "FILES", "TOTAL"]
    assert {first.split()[0], second.split()[0]} == {"a41f", "b7c2"}
    assert total.startswith("trash 0 B   total ")
    document = json.loads(stepd(store, "du", "--json").stdout)
    sizes = [run["total"] for run in document["runs"]]
    assert sizes == sorted(sizes, reverse=True)
    assert document["total"] >= sum(sizes)
    (mended,) = [run for run in document["runs"] if run["id"] == "b7c2"]
    assert mended["aside"] > 0
    assert mended["total"] == mended["segments"] + mended["aside"]
    assert [run["id"] for run in json.loads(stepd(store, "du", "b7c2", "--json").stdout)["runs"]] == ["b7c2"]
