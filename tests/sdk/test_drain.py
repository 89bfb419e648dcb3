"""sdk.journal.drain: a dead process's ring holds exactly what was logged, and no bytes in it can do harm.

The rings here have no checksums, as if no sender had ever looked: that is what may happen to the records of the last 50 ms.
A bit that flips inside a value, a step, a time or a record's flags survives then. What these tests hold: lengths, sequences
and the header page are checked, and whatever the bytes, nothing but DamageError or OSError is raised and nothing large is
allocated. Rings with checksums: test_checksums.py and tests/torture/rings.py.
"""

from __future__ import annotations

import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdk import platform
from sdk.errors import DamageError, StoreError
from sdk.journal.appender import open_journal
from sdk.journal.drain import Drained, drain, read_header
from sdk.journal.format import (
    CAPACITY_MIN,
    HEADER_BYTES,
    REFUSALS_COPIES,
    RELEASED_COPIES,
    STATIC,
    STATIC_OFFSET,
    STATIC_SECOND_OFFSET,
    WORD_EPISODE,
    WORD_HEAD,
    WORD_RELEASED,
    WORDS,
)
from sdk.journal.handle import Journal
from sdk.journal.page import Mark
from sdk.journal.ring import Ring
from sdk.record import HEADER_SIZE, KIND_ROW, decode_map, walk

ROOT = str(Path(__file__).resolve().parents[2])
DIGEST = "d" * 16
PATIENCE = 20.0


def values_of(drained: Drained) -> list[tuple[int, Any]]:
    """(sequence, value of "v") of each ROW record."""
    return [(r.sequence, decode_map(r.payload)["v"]) for r in walk(drained.records) if r.kind == KIND_ROW]


def dead_ring(base: Path, count: int, release: int = 0) -> tuple[str, Journal]:
    """The file of a ring with `count` records, of which the first `release` are stored, as after the owner's death."""
    ring, _ = Ring.create(str(base), DIGEST, 5, CAPACITY_MIN, {"run": "r"})
    assert ring.path is not None
    journal = open_journal(ring)
    for i in range(count):
        journal.log({"v": i, "w": "x" * (i % 5)})
        if i + 1 == release:
            journal.release(journal.mark())
    ring.abandon()
    return ring.path, journal


VICTIM = """
import mmap, sys
from sdk.journal.ring import Ring
from sdk.journal.appender import open_journal
ring, _ = Ring.create(sys.argv[1], sys.argv[2], 5, int(sys.argv[3]), {"run": "r"})
ring.touch()
journal = open_journal(ring)
counter = open(sys.argv[4], "r+b")
returned = memoryview(mmap.mmap(counter.fileno(), 8)).cast("Q")
every = int(sys.argv[5])
print(ring.path, flush=True)
i = 0
while True:
    before = journal.mark()[1]
    journal.log({"v": i, "pad": "x" * (i % 50)})
    if journal.mark()[1] != before:
        i += 1
        returned[0] = i
    if every and i % every == 0:
        journal.release(journal.mark())
"""


def kill_at(moment: float, base: Path, capacity: int, every: int) -> tuple[str, int]:
    """Starts a process that logs, kills it after about `moment` seconds; its ring and how many calls had returned."""
    counter = base / "returned"
    counter.write_bytes(bytes(8))
    process = subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(base), DIGEST, str(capacity), str(counter), str(every)],
        stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": ROOT},
    )  # fmt: skip
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
    assert ready
    path = process.stdout.readline().decode().strip()
    # The owner lives: nobody may take its ring.
    assert platform.is_locked(path)
    assert platform.open_shared(path) is None
    time.sleep(moment)  # the moment of the kill is what is random here; nothing is waited for
    os.kill(process.pid, signal.SIGKILL)
    process.wait(PATIENCE)
    process.stdout.close()
    return path, struct.unpack("<Q", counter.read_bytes())[0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("every", [0, 100])
def test_a_ring_of_a_killed_process_holds_what_returned(tmp_path: Path, seed: int, every: int) -> None:
    """Every call that returned is there, at most one more, in order; with a sender that releases as it goes, too."""
    moment = random.Random(seed).uniform(0.001, 0.03)
    path, returned = kill_at(moment, tmp_path, 4 << 20 if not every else CAPACITY_MIN, every)
    lock = platform.open_shared(path)
    assert lock is not None
    drained = drain(path)
    lock.release()
    assert drained.damage is None
    assert drained.header.identity == {"run": "r"}
    if not drained.record_count:
        # Killed right after a release: everything was stored, and the ring says so.
        assert drained.header.released is not None
        assert drained.header.head == drained.header.released[0]
        assert drained.stored >= returned
        assert every and returned % every == 0
        return
    assert returned <= drained.last <= returned + 1
    assert values_of(drained) == [(s, s - 1) for s in range(drained.first, drained.last + 1)]
    assert every or drained.first == 1
    assert drained.record_count == drained.last - drained.first + 1


def test_an_empty_ring_drains_to_nothing(tmp_path: Path) -> None:
    """No records, none missing: last < first or both 0, no damage, no gap."""
    path, _ = dead_ring(tmp_path, 0)
    drained = drain(path)
    assert (drained.records, drained.record_count, drained.gaps, drained.damage) == (b"", 0, [], None)
    path2, _ = dead_ring_again(tmp_path, path, 7, 7)
    assert drain(path2).record_count == 0


def dead_ring_again(base: Path, path: str, count: int, release: int) -> tuple[str, Journal]:
    os.unlink(path)
    return dead_ring(base, count, release)


def test_only_what_was_not_released_is_taken(tmp_path: Path) -> None:
    """Records that are stored elsewhere are not given again."""
    path, _ = dead_ring(tmp_path, 20, release=12)
    drained = drain(path)
    assert values_of(drained) == [(s, s - 1) for s in range(13, 21)]
    assert drained.stored == 12


def test_refused_records_that_no_gap_tells_of(tmp_path: Path) -> None:
    """An episode of refusing that was not reported before the kill is in the header page: nothing is lost silently."""
    ring, _ = Ring.create(str(tmp_path), DIGEST, 5, CAPACITY_MIN, {})
    assert ring.path is not None
    journal = open_journal(ring)
    while ring.words[WORD_EPISODE] == 0:
        journal.log({"v": "x" * 1000})
    full_at = journal.mark()[1] - 1
    for _ in range(9):
        journal.log({"v": "x" * 1000})
    ring.abandon()
    drained = drain(ring.path)
    assert drained.last == full_at
    (gap,) = drained.gaps
    assert (gap["episode"], gap["count"], gap["reason"]) == (1, 10, "ring full")
    assert (gap["step_min"], gap["step_max"]) == (full_at, full_at + 9)
    assert 0 < gap["start_ns"] <= gap["end_ns"]
    assert drained.header.refused == 10


# -- hostile bytes ---------------------------------------------------------------------------------------------------------


def test_no_ring_at_all(tmp_path: Path) -> None:
    """Missing: OSError. Empty, short, zeros, a link: DamageError or OSError."""
    with pytest.raises(FileNotFoundError):
        drain(str(tmp_path / "none"))
    for content in (b"", b"x" * 100, bytes(HEADER_BYTES - 1), bytes(HEADER_BYTES), os.urandom(2 * HEADER_BYTES)):
        (tmp_path / "ring").write_bytes(content)
        with pytest.raises(DamageError):
            read_header(str(tmp_path / "ring"))
    (tmp_path / "link").symlink_to(tmp_path / "ring")
    with pytest.raises(OSError):
        drain(str(tmp_path / "link"))


def test_every_flipped_bit_of_the_header_page(tmp_path: Path) -> None:
    """Everything in it but head stands there twice; a flipped head gives records that were written, or says so."""
    path, _ = dead_ring(tmp_path, 6, release=2)
    original = Path(path).read_bytes()
    clean = drain(path)
    assert clean.record_count == 4
    identity = len(b"\x81\xa3run\xa1r")
    static = STATIC.size + identity
    places = [*range(WORDS * 8)]
    places += [offset + at for offset in (STATIC_OFFSET, STATIC_SECOND_OFFSET) for at in range(static)]
    for at in places:
        for bit in range(8):
            with open(path, "r+b") as file:
                file.seek(at)
                file.write(bytes([original[at] ^ 1 << bit]))
            drained = drain(path)
            if at >= WORD_HEAD * 8 + 8:
                assert (drained.pieces, drained.gaps, drained.damage) == (clean.pieces, [], None)
            elif drained.records != clean.records:
                # One record less may be a call that was killed before it published: then nothing is wrong.
                assert clean.records.startswith(drained.records)
                assert drained.damage is not None or drained.record_count == 3
            with open(path, "r+b") as file:
                file.seek(at)
                file.write(original[at : at + 1])


def test_both_copies_of_what_is_released(tmp_path: Path) -> None:
    """Without them the unchecked word is tried; if no record begins there, the ring is damaged as a whole."""
    path, _ = dead_ring(tmp_path, 20, release=12)
    page = bytearray(Path(path).read_bytes())
    for copy in RELEASED_COPIES:
        page[copy * 8] ^= 1
    Path(path).write_bytes(page)
    drained = drain(path)
    assert values_of(drained) == [(s, s - 1) for s in range(13, 21)]
    assert drained.damage is not None
    struct.pack_into("<Q", page, WORD_RELEASED * 8, 1)
    Path(path).write_bytes(page)
    with pytest.raises(DamageError, match="where its records begin"):
        drain(path)


def test_both_copies_of_what_was_refused(tmp_path: Path) -> None:
    """The records are taken; that calls may have been refused is told, their number is not invented."""
    path, _ = dead_ring(tmp_path, 5)
    page = bytearray(Path(path).read_bytes())
    for copy in REFUSALS_COPIES:
        page[copy * 8 + 16] ^= 1
    Path(path).write_bytes(page)
    drained = drain(path)
    assert drained.record_count == 5
    assert [gap["count"] for gap in drained.gaps] == [0]
    assert "refused" in str(drained.damage)
    assert drained.header.refused == 0


def test_a_ring_of_another_version_is_nobodys_to_judge(tmp_path: Path) -> None:
    """Not damage, which would have it moved away: whoever made it will drain it."""
    path, _ = dead_ring(tmp_path, 5)
    page = bytearray(Path(path).read_bytes())
    spoil_static(page, lambda fields: (fields[0], fields[1] + 1, *fields[2:]))
    Path(path).write_bytes(page)
    with pytest.raises(StoreError, match="has version 2"):
        drain(path)


def spoil_static(page: bytearray, change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> None:
    """Changes the static part, both copies, and makes its checksum right again."""
    for offset in (STATIC_OFFSET, STATIC_SECOND_OFFSET):
        fields = change(STATIC.unpack_from(page, offset))
        static = STATIC.pack(*fields)[:-4]
        text = page[offset + STATIC.size : offset + STATIC.size + fields[3]]
        crc = zlib.crc32(text, zlib.crc32(static))
        page[offset : offset + STATIC.size] = static + crc.to_bytes(4, "little")


def test_every_flipped_bit_of_the_records(tmp_path: Path) -> None:
    """Flips in lengths, kinds and sequences are found: exactly that record is told as lost, all others are kept."""
    path, journal = dead_ring(tmp_path, 5)
    original = Path(path).read_bytes()
    head = journal.mark()[0]
    starts, offset = [], 0
    for record in walk(original[HEADER_BYTES : HEADER_BYTES + head]):
        starts.append(offset)
        offset += HEADER_SIZE + len(record.payload)
    for at in range(head):
        index = max(i for i, start in enumerate(starts) if start <= at)
        within = at - starts[index]
        for bit in range(8):
            with open(path, "r+b") as file:
                file.seek(HEADER_BYTES + at)
                file.write(bytes([original[HEADER_BYTES + at] ^ 1 << bit]))
            drained = drain(path)
            found = [r.sequence for r in walk(drained.records)]
            others = [s for s in range(1, 6) if s != index + 1]
            assert found in (others, [1, 2, 3, 4, 5])
            if within < 4 or 6 <= within < 16:
                assert found == others
            told = [(gap["count"], gap.get("first"), gap.get("last")) for gap in drained.gaps]
            # Behind the last record no other tells how many are lost.
            lost = [(1, index + 1, index + 1)] if index < 4 else [(0, None, None)]
            assert told == (lost if found == others else [])
        with open(path, "r+b") as file:
            file.seek(HEADER_BYTES + at)
            file.write(original[HEADER_BYTES + at : HEADER_BYTES + at + 1])


@pytest.mark.parametrize("lap", [False, True])
def test_a_ring_cut_at_any_place(tmp_path: Path, lap: bool) -> None:
    """A file that somebody truncated gives the whole records before the cut, never bytes from elsewhere in their place."""
    ring, _ = Ring.create(str(tmp_path), DIGEST, 5, CAPACITY_MIN, {})
    assert ring.path is not None
    journal = open_journal(ring)
    marks: list[Mark] = [journal.mark()]
    i = 0
    while not lap or journal.mark()[0] < CAPACITY_MIN + 3000:
        if journal.mark()[0] > 3000 and not lap:
            break
        journal.log({"v": i, "b": bytes(200)})
        i += 1
        marks.append(journal.mark())
        journal.release(max(mark for mark in marks if mark[0] <= max(journal.mark()[0] - 6000, 0)))
    ring.abandon()
    expected = values_of(drain(ring.path))
    assert len(expected) > 5
    size = os.path.getsize(ring.path)
    window = Path(ring.path).read_bytes()
    for cut in [*range(HEADER_BYTES, HEADER_BYTES + 3000, 61), *range(size - 3000, size, 61)]:
        Path(ring.path).write_bytes(window[:cut])
        drained = drain(ring.path)
        found = values_of(drained)
        assert found == expected[: len(found)]
        assert drained.damage is None or len(found) < len(expected)
        assert (len(found) == len(expected)) == (drained.damage is None)


@pytest.mark.parametrize("capacity", [2**62, 2**63, 2**40, 0, 3, CAPACITY_MIN - 1])
@pytest.mark.parametrize("head", [0, 100, 2**40, 2**62, 2**64 - 1])
def test_hostile_sizes_are_refused_before_anything_is_allocated(tmp_path: Path, capacity: int, head: int) -> None:
    """A header with a right checksum and absurd sizes: DamageError or the little that the file has."""
    path, _ = dead_ring(tmp_path, 3)
    page = bytearray(Path(path).read_bytes())
    spoil_static(page, lambda fields: (*fields[:4], capacity, *fields[5:]))
    struct.pack_into("<Q", page, WORD_HEAD * 8, head)
    Path(path).write_bytes(page)
    try:
        assert drain(path).record_count <= 3
    except DamageError:
        pass


def test_random_bytes_in_the_window(tmp_path: Path) -> None:
    """300 windows of random bytes and of spoilt records (seed 4): DamageError or leading records, nothing else."""
    path, journal = dead_ring(tmp_path, 50)
    original = Path(path).read_bytes()
    head = journal.mark()[0]
    chance = random.Random(4)
    for _ in range(300):
        window = bytearray(original[HEADER_BYTES : HEADER_BYTES + head])
        for _ in range(chance.randrange(1, 30)):
            window[chance.randrange(head)] = chance.randrange(256)
        with open(path, "r+b") as file:
            file.seek(HEADER_BYTES)
            file.write(window if chance.random() < 0.8 else chance.randbytes(head))
        drained = drain(path)
        assert drained.record_count == len(list(walk(drained.records)))
