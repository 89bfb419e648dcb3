"""sdk.journal.drain: a dead process's ring holds exactly what was logged, and no bytes in it can do harm.

There is no checksum per record (it would cost 0.13 us of each call), so a bit that flips inside a value, a step, a time, a
kind or a record's flags survives; shared memory has no torn writes and its errors are those of the machine's memory. What
these tests hold: lengths, sequences and the header page are checked, and whatever the bytes, nothing but DamageError or
OSError is raised and nothing large is allocated.
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
from pathlib import Path
from typing import Any

import pytest

from sdk import platform
from sdk.errors import DamageError
from sdk.journal.appender import open_journal
from sdk.journal.drain import Drained, drain, read_header, unreported_gap
from sdk.journal.format import (
    CAPACITY_MIN,
    HEADER_BYTES,
    STATIC,
    STATIC_OFFSET,
    WORD_EPISODE,
    WORD_EPISODE_COUNT,
    WORD_HEAD,
    WORD_RELEASED,
    WORD_REPORTED,
    WORDS,
)
from sdk.journal.handle import Journal
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
            journal.release(journal.mark()[0])
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
        journal.release(journal.mark()[0])
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
        assert drained.header.words[WORD_HEAD] == drained.header.words[WORD_RELEASED]
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
    assert (drained.records, drained.record_count, drained.gap, drained.damage) == (b"", 0, None, None)
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
    assert drained.gap is not None
    assert (drained.gap["episode"], drained.gap["count"], drained.gap["reason"]) == (1, 10, "ring full")
    assert (drained.gap["step_min"], drained.gap["step_max"]) == (full_at, full_at + 9)
    assert 0 < drained.gap["start_ns"] <= drained.gap["end_ns"]
    assert drained.header.refused == 10


def test_a_reported_episode_is_not_reported_again() -> None:
    """Numbers of episodes decide."""
    words = [0] * WORDS
    assert unreported_gap(tuple(words)) is None
    words[WORD_EPISODE], words[WORD_EPISODE_COUNT] = 2, 5
    words[WORD_REPORTED] = 2
    assert unreported_gap(tuple(words)) is None
    words[WORD_REPORTED] = 1
    gap = unreported_gap(tuple(words))
    assert gap is not None
    assert (gap["episode"], gap["count"]) == (2, 5)


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
    """A flip in the static part is damage; one in a word gives records that were written, in order, or damage."""
    path, _ = dead_ring(tmp_path, 6, release=2)
    original = Path(path).read_bytes()
    whole = {
        r.sequence: bytes(r.payload) for r in walk(original[HEADER_BYTES:][: struct.unpack_from("<Q", original)[0]])
    }
    identity = len(b"\x81\xa3run\xa1r")
    places = [*range(WORDS * 8), *range(STATIC_OFFSET, STATIC_OFFSET + STATIC.size + identity)]
    for at in places:
        for bit in range(8):
            with open(path, "r+b") as file:
                file.seek(at)
                file.write(bytes([original[at] ^ 1 << bit]))
            try:
                drained = drain(path)
            except DamageError:
                pass
            else:
                # The static part has a checksum, so what was read was a flip among the words.
                assert at < STATIC_OFFSET
                found = list(walk(drained.records))
                assert all(whole.get(r.sequence) == bytes(r.payload) for r in found)
                assert [r.sequence for r in found] == list(range(drained.first, drained.last + 1))[
                    : drained.record_count
                ]
            with open(path, "r+b") as file:
                file.seek(at)
                file.write(original[at : at + 1])


def test_every_flipped_bit_of_the_records(tmp_path: Path) -> None:
    """Flips in lengths and in sequences behind the first are found: records before it are kept, the rest is told of."""
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
            if within < 4 or 8 <= within < 16:
                assert drained.damage is not None
                assert found[:index] == list(range(1, index + 1))
                assert len(found) <= max(index, 1)
            else:
                assert found == list(range(1, len(found) + 1))
                assert len(found) == 5 or (drained.damage is not None and len(found) == index)
        with open(path, "r+b") as file:
            file.seek(HEADER_BYTES + at)
            file.write(original[HEADER_BYTES + at : HEADER_BYTES + at + 1])


@pytest.mark.parametrize("lap", [False, True])
def test_a_ring_cut_at_any_place(tmp_path: Path, lap: bool) -> None:
    """A file that somebody truncated gives the whole records before the cut, never bytes from elsewhere in their place."""
    ring, _ = Ring.create(str(tmp_path), DIGEST, 5, CAPACITY_MIN, {})
    assert ring.path is not None
    journal = open_journal(ring)
    i = 0
    while not lap or journal.mark()[0] < CAPACITY_MIN + 3000:
        if journal.mark()[0] > 3000 and not lap:
            break
        journal.log({"v": i, "b": bytes(200)})
        i += 1
        journal.release(max(journal.mark()[0] - 6000, 0) and last_start(journal, ring, 6000))
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


def last_start(journal: Journal, ring: Ring, back: int) -> int:
    """The start of a record at most `back` bytes behind the head: positions at which a sender may release."""
    position = ring.words[WORD_RELEASED]
    head = journal.mark()[0]
    while head - position > back:
        position += struct.unpack("<I", b"".join(ring.slices(position, position + 4)))[0]
    return int(position)


@pytest.mark.parametrize("capacity", [2**62, 2**63, 2**40, 0, 3, CAPACITY_MIN - 1])
@pytest.mark.parametrize("head", [0, 100, 2**40, 2**62, 2**64 - 1])
def test_hostile_sizes_are_refused_before_anything_is_allocated(tmp_path: Path, capacity: int, head: int) -> None:
    """A header with a right checksum and absurd sizes: DamageError or the little that the file has."""
    import zlib

    path, _ = dead_ring(tmp_path, 3)
    page = bytearray(Path(path).read_bytes())
    magic, version, zero, size, _, stream, _ = STATIC.unpack_from(page, STATIC_OFFSET)
    static = STATIC.pack(magic, version, zero, size, capacity, stream, 0)[:-4]
    text = page[STATIC_OFFSET + STATIC.size : STATIC_OFFSET + STATIC.size + size]
    page[STATIC_OFFSET : STATIC_OFFSET + STATIC.size] = static + zlib.crc32(text, zlib.crc32(static)).to_bytes(
        4, "little"
    )
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
