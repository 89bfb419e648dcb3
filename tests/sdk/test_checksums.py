"""sdk.journal.checksums: what a sender has looked at once can be proved after its process is dead."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

import pytest

from sdk.journal.appender import open_journal
from sdk.journal.checksums import Checksums
from sdk.journal.drain import Drained, drain
from sdk.journal.format import CHUNK, CHUNKS, CHUNKS_OFFSET, HEADER_BYTES, RELEASED_COPIES, WORD_HEAD
from sdk.journal.page import Chunk, Refusals, pack_chunk, read_chunks
from sdk.journal.ring import Ring
from sdk.limits import REFUSED_REASONS

KIB = 1 << 10


class World:
    """A journal, its table, and a drain of its bytes as they are now."""

    def __init__(self, capacity: int = 16 * KIB) -> None:
        self.ring = Ring.private(5, {"run": "a41f"}, capacity)
        self.journal = open_journal(self.ring)
        self.checksums = Checksums(self.ring, 0)
        self.stored = self.journal.mark()
        self.descriptor = os.memfd_create("ring")

    def log(self, count: int) -> None:
        for _ in range(count):
            self.journal.log({"v": self.journal.mark()[1], "w": "x" * (self.journal.mark()[1] % 7)})

    def wake(self) -> Chunk | None:
        return self.checksums.cover(self.journal.mark(), self.stored)

    def store(self) -> None:
        self.stored = self.journal.mark()
        self.journal.release(self.stored)

    def chunks(self) -> list[Chunk]:
        return read_chunks(bytes(self.ring.page), self.ring.capacity)

    def drain(self) -> Drained:
        os.pwrite(self.descriptor, bytes(self.ring.page) + bytes(self.ring.data), 0)
        return drain("ring", self.descriptor)

    def spoil(self, position: int) -> None:
        self.ring.data[position % self.ring.capacity] ^= 0x10


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    os.close(made.descriptor)


def test_each_look_covers_what_came_since_the_last(world: World) -> None:
    """Positions, sequences, steps, and the CRC of exactly these bytes; nothing new gives no entry."""
    before = world.journal.mark()
    world.log(5)
    chunk = world.wake()
    after = world.journal.mark()
    data = b"".join(world.ring.slices(before[0], after[0]))
    assert chunk == Chunk(before[0], after[0], before[1], after[1], before[2], after[2], zlib.crc32(data))
    assert world.wake() is None
    world.log(2)
    second = world.wake()
    assert second is not None and second.start == after[0]
    assert world.chunks() == [chunk, second]
    drained = world.drain()
    assert (drained.record_count, drained.unproved, drained.damage) == (7, [], None)


def test_what_came_after_the_last_look_is_taken_for_its_shape(world: World) -> None:
    """The drain says which records these are."""
    world.log(5)
    world.wake()
    world.log(2)
    drained = world.drain()
    assert drained.record_count == 7
    assert drained.unproved == [(6, 8)]


def test_a_wrong_checksum_loses_what_it_covers_and_tells_it(world: World) -> None:
    """Exact sequences and steps; what is before and behind is taken."""
    for _ in range(3):
        world.log(5)
        world.wake()
    second = world.chunks()[1]
    world.spoil(second.start + 40)
    drained = world.drain()
    assert [(piece.first, piece.last) for piece in drained.pieces] == [(1, 5), (11, 15)]
    (gap,) = drained.gaps
    assert (gap["count"], gap["first"], gap["last"]) == (5, 6, 10)
    assert gap["step_min"] <= 5 and gap["step_max"] >= 9
    assert drained.unproved == []
    assert "6 to 10" in str(drained.damage)


def test_what_is_stored_needs_no_entry(world: World) -> None:
    """A table that is used for many laps never grows beyond its room, and what waits is proved all the time."""
    for turn in range(20 * CHUNKS):
        world.log(1 + turn % 5)
        world.wake()
        assert not world.drain().unproved
        if turn % 3 == 0:
            world.store()
    assert world.journal.mark()[0] > 3 * world.ring.capacity


def test_a_full_table_extends_its_last_entry(world: World) -> None:
    """While nothing is stored, more looks than entries: everything that waits stays proved."""
    for turn in range(2 * CHUNKS):
        world.log(1)
        assert (world.wake() is not None) == (turn < CHUNKS - 1)
        drained = world.drain()
        assert (drained.record_count, drained.unproved) == (turn + 1, [])
    world.spoil(world.journal.mark()[0] - 1)
    drained = world.drain()
    assert [gap["first"] for gap in drained.gaps] == [CHUNKS - 1]


def test_a_kill_while_the_table_is_written(world: World) -> None:
    """Whatever part of an entry was stored, all records are taken, and what was proved before still is."""
    for _ in range(2 * CHUNKS):
        world.log(1)
        world.wake()
    world.log(1)
    before = bytes(world.ring.page)
    world.wake()
    after = bytes(world.ring.page)
    changed = [i for i in range(CHUNKS_OFFSET, HEADER_BYTES) if before[i] != after[i]]
    for cut in range(changed[0], changed[-1] + 2):
        world.ring.page[CHUNKS_OFFSET:] = (after[:cut] + before[cut:])[CHUNKS_OFFSET:]
        drained = world.drain()
        assert (drained.record_count, drained.damage) == (2 * CHUNKS + 1, None)
        assert drained.unproved in ([], [(2 * CHUNKS + 1, 2 * CHUNKS + 2)])


def test_the_table_proves_more_than_a_damaged_head(world: World) -> None:
    """Head set back into what is proved, and beyond all that can be: the records are there, and the doubt is told."""
    world.log(20)
    world.wake()
    end = world.journal.mark()[0]
    for head in (0, 1, end - 1, end + 8 * KIB, 2**64 - 1):
        world.ring.words[WORD_HEAD] = head
        drained = world.drain()
        assert (drained.record_count, drained.unproved) == (20, [])
        assert drained.damage is not None
        assert [gap["count"] for gap in drained.gaps] == [0]


def test_a_damaged_entry_costs_the_proof_only(world: World) -> None:
    """The records between its neighbours are taken for their shape; one that has none is told as lost."""
    for _ in range(3):
        world.log(5)
        world.wake()
    second = world.chunks()[1]
    world.ring.page[CHUNKS_OFFSET + CHUNK.size + 1] ^= 1
    assert second not in world.chunks()
    drained = world.drain()
    assert (drained.record_count, drained.unproved) == (15, [(6, 11)])
    assert drained.damage is not None and drained.gaps == []
    world.spoil(second.start)
    drained = world.drain()
    assert [(gap["first"], gap["last"]) for gap in drained.gaps] == [(6, 6)]
    assert drained.record_count == 14


def test_what_was_released_in_the_middle_of_an_entry(world: World) -> None:
    """Its bytes are proved until they are overwritten; from then on the rest of it is taken for its shape."""
    world.log(10)
    half = world.journal.mark()
    world.log(10)
    world.wake()
    world.journal.release(half)
    drained = world.drain()
    assert (drained.stored, drained.first, drained.last, drained.unproved) == (10, 11, 20, [])
    world.spoil(0)
    drained = world.drain()
    assert (drained.first, drained.last, drained.unproved, drained.damage) == (11, 20, [(11, 21)], None)


def test_without_released_the_oldest_entry_is_the_beginning(world: World) -> None:
    """What was stored is taken again; that something before it may be missing is told."""
    for _ in range(3):
        world.log(5)
        world.wake()
    world.journal.release(world.journal.mark())
    for copy in RELEASED_COPIES:
        world.ring.page[copy * 8] ^= 1
    drained = world.drain()
    assert (drained.first, drained.last, drained.unproved) == (1, 15, [])
    assert [gap["count"] for gap in drained.gaps] == [0]


def test_entries_that_cannot_be_are_not_believed(world: World) -> None:
    """A right checksum around absurd numbers: nothing is taken by them, nothing large is read."""
    world.log(5)
    for index, chunk in enumerate(
        (
            Chunk(2**63, 2**63 + 100, 1, 2, 0, 0, 0),
            Chunk(0, 2**60, 1, 2, 0, 0, 0),
            Chunk(100, 50, 1, 2, 0, 0, 0),
            Chunk(0, 64, 1, 2**60, 0, 0, 0),
            Chunk(0, 64, 5, 5, 0, 0, 0),
        )
    ):
        at = CHUNKS_OFFSET + index * CHUNK.size
        world.ring.page[at : at + CHUNK.size] = pack_chunk(chunk)
    drained = world.drain()
    assert (drained.record_count, drained.damage) == (5, None)


def test_an_episode_carries_its_reason() -> None:
    """The reason of its first call, or a later one that says more; the next episode begins anew; unknown codes are none."""
    refusals = Refusals().counted(7, 100, 0).counted(5, 101, 3).counted(9, 102, 0)
    gap = refusals.gap()
    assert gap is not None
    assert (gap["count"], gap["step_min"], gap["step_max"], gap["reason"]) == (3, 5, 9, REFUSED_REASONS[3])
    told = refusals._replace(reported=refusals.episode)
    assert told.gap() is None
    again = told.counted(11, 103, 0)
    assert (again.refused, again.episode, again.calls, again.reason) == (4, 2, 1, 0)
    assert again._replace(reason=10**6).gap() == again.gap()


def test_the_journal_says_why_it_refuses(world: World) -> None:
    """`set_reason` counts for the calls that are refused from then on."""
    while world.journal.refusals().is_told:
        world.log(1)
    world.journal.set_reason(2)
    world.log(3)
    drained = world.drain()
    (gap,) = drained.gaps
    assert (gap["count"], gap["reason"]) == (4, REFUSED_REASONS[2])
    assert drained.header.refusals == world.journal.refusals()
