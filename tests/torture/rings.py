"""Rings of dead processes with every kind of damage, and of processes killed between any two stores.

A ring is built in private memory by the product's own functions, a small window through many laps: rows, pieces, META,
GAP, refused calls, a sender that stores, releases and adds checksums. Its bytes, spoilt, are drained from a file in
memory.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any
from unittest import mock

from sdk import clock
from sdk.errors import DamageError
from sdk.journal.appender import open_journal
from sdk.journal.checksums import Checksums
from sdk.journal.drain import Drained, drain
from sdk.journal.format import CHUNKS_OFFSET, HEADER_BYTES, WORD_HEAD, WORD_RELEASED
from sdk.journal.page import Mark, Refusals
from sdk.journal.ring import Ring
from sdk.record import HEADER_SIZE, walk
from tests.torture.harness import Result, chance, torture

CAPACITY = 16 << 10
DAMAGES = 20_000
KILLS = 2_000
_WORDS = (WORD_HEAD, WORD_RELEASED)


@dataclass(frozen=True)
class Image:
    """A ring's bytes, and what is true of it.

    Attributes:
        logged: Every record that was ever in it, by sequence: the bytes.
        last: The last sequence of a call that returned. `possible`: that of the call in flight, else the same.
        stored: Up to here the sender had stored, by what it said last; `storing`: by what it was about to say.
        refused: What was refused by calls that returned; `refusing`: with the call in flight.
    """

    data: bytes
    logged: dict[int, bytes]
    last: int
    possible: int
    stored: int
    storing: int
    refused: Refusals
    refusing: Refusals


class World:
    """One journal with a sender's doings, driven by chance."""

    def __init__(self, seed: int, capacity: int = CAPACITY) -> None:
        self.random = random.Random(seed)
        self.ring = Ring.private(5, {"run": "a41f", "store": b"s" * 16}, capacity)
        # Ticks instead of time: a case's bytes are the same at every run.
        with mock.patch.object(clock, "wall_ns", itertools.count(10**18).__next__):
            self.journal = open_journal(self.ring)
        self.checksums = Checksums(self.ring, 0)
        self.marks: list[Mark] = []
        self.stored: Mark = (0, 1, 0)
        self.storing: Mark = self.stored
        self.logged: dict[int, bytes] = {}
        self.taken: Mark = self.stored
        self.returned = 0
        self.refused = self.journal.refusals()

    def call(self) -> None:
        """One call of a training loop."""
        log, chance = self.journal.log, self.random
        kind = chance.randrange(10)
        if kind == 0:
            log({"piece": chance.random()}, commit=False)
        elif kind == 1:
            log({"text": "x" * chance.randrange(200)}, step=self.journal.mark()[2] + chance.randrange(3))
        elif kind == 2:
            self.journal.append_meta({"config": {"seed": chance.randrange(100)}})
        else:
            log({"loss": chance.random(), "n": chance.randrange(1000)})
        self.note()

    def note(self) -> None:
        """Remembers what a call that has returned left."""
        mark = self.journal.mark()
        for record in walk(b"".join(self.ring.slices(self.taken[0], mark[0]))):
            self.logged[record.sequence] = b""
        start = self.taken[0]
        for sequence in range(self.taken[1], mark[1]):
            size = int.from_bytes(b"".join(self.ring.slices(start, start + 4)), "little")
            self.logged[sequence] = b"".join(self.ring.slices(start, start + size))
            start += size
        self.taken = mark
        self.returned = mark[1] - 1
        self.refused = self.journal.refusals()
        self.marks.append(mark)

    def wake(self, *, store: bool) -> None:
        """One wake of a sender; with `store` everything before some earlier call is stored."""
        self.journal.report_gap()
        self.note()
        self.checksums.cover(self.journal.mark(), self.stored)
        if store:
            self.store(self.marks[-self.random.randrange(1, min(len(self.marks), 20) + 1)])

    def store(self, mark: Mark) -> None:
        """Everything before `mark` is stored."""
        self.storing = max(self.stored, mark)
        self.journal.release(self.storing)
        self.stored = self.storing

    def live(self, calls: int) -> None:
        """Calls and wakes, with times in which nothing is stored and the ring fills."""
        away = 0
        for number in range(calls):
            self.call()
            full = self.ring.capacity // 40
            away = away - 1 if away else full if self.random.randrange(100) == 0 else 0
            if number % 7 == 6:
                self.wake(store=not away)

    def image(self) -> Image:
        mark = self.journal.mark()
        return Image(
            bytes(self.ring.page) + bytes(self.ring.data), self.logged, self.returned, max(mark[1] - 1, self.returned),
            self.stored[1] - 1, self.storing[1] - 1, self.refused, self.journal.refusals(),
        )  # fmt: skip


@functools.lru_cache(maxsize=8)
def dead_ring(seed: int) -> Image:
    """A ring of some hundred records, the newest refused calls not reported.

    Up to seed 3 every record has a checksum that is up to date; of the others the newest have none.
    """
    world = World(seed)
    world.live(600 + seed)
    while not world.journal.refusals().is_told or world.stored[1] < world.returned:
        world.wake(store=False)
        world.store(world.marks[-1] if seed == 0 else world.marks[-2])
        world.journal.report_gap()
    while world.journal.refusals().is_told:
        world.call()
        if world.random.randrange(7 if seed < 4 else 70) == 0:
            world.wake(store=False)
    world.call()
    if seed < 4:
        world.checksums.cover(world.journal.mark(), world.stored)
    world.note()
    image = world.image()
    assert image.last - image.stored > 100 and image.refused.calls
    return image


class Holder:
    """A file in memory that holds a ring's bytes, some of them spoilt for a moment."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("ring")

    def drain(self, data: bytes) -> Drained:
        os.ftruncate(self.descriptor, len(data))
        os.pwrite(self.descriptor, data, 0)
        return drain("ring", self.descriptor)

    def close(self) -> None:
        os.close(self.descriptor)


@contextlib.contextmanager
def holder() -> Iterator[Holder]:
    made = Holder()
    try:
        yield made
    finally:
        made.close()


def check(drained: Drained, image: Image) -> int:
    """Compares what was drained with what was logged; how many records are lost.

    Raises:
        AssertionError: A proved record is not one that was logged, or a record is missing that no gap names, or a gap
            names one that is there.
    """
    unproved = {n for first, after in drained.unproved for n in range(first, after)}
    taken: set[int] = set()
    for piece in drained.pieces:
        offset = 0
        for record in walk(piece.records):
            size = HEADER_SIZE + len(record.payload)
            whole = piece.records[offset : offset + size]
            offset += size
            taken.add(record.sequence)
            assert record.sequence in unproved or image.logged[record.sequence] == whole, record.sequence
        assert walk_numbers(piece.records) == list(range(piece.first, piece.last + 1))
    told = {n for gap in drained.gaps if "first" in gap for n in range(gap["first"], gap["last"] + 1)}
    assert all(gap["count"] == gap["last"] - gap["first"] + 1 for gap in drained.gaps if "first" in gap)
    missing = set(range(image.stored + 1, image.last + 1)) - taken
    if told - missing:
        # What is stored elsewhere may be told as lost where the ring cannot say that it is stored; never what was taken.
        assert drained.header.released is None and not told & taken
    known = taken | told
    unknown = " ".join(gap["reason"] for gap in drained.gaps if gap["count"] == 0)
    for sequence in missing - told:
        before, after = "before sequence" in unknown, "after sequence" in unknown
        assert (before and sequence < min(known, default=0)) or (after and sequence > max(known, default=0)), sequence
    if drained.header.refusals is None:
        assert any(gap["episode"] == "ring-refused" for gap in drained.gaps)
    else:
        assert drained.header.refusals == image.refused
        assert image.refused.gap() is None or image.refused.gap() in drained.gaps
    assert not missing or drained.damage is not None
    return len(missing)


def walk_numbers(records: bytes) -> list[int]:
    return [record.sequence for record in walk(records)]


@torture(full=(HEADER_BYTES + CAPACITY) * 8, every=11, beside=True)
def ring_bit_flip(cases: Iterable[int]) -> Iterator[Result]:
    """One flipped bit of a ring: all is proved and equal, or exactly the stretch of one checksum is reported lost."""
    image = dead_ring(0)
    with holder() as place:
        clean = place.drain(image.data)
        assert check(clean, image) == 0 and clean.damage is None and not clean.unproved
        for case in cases:
            spoilt = bytearray(image.data)
            spoilt[case // 8] ^= 1 << case % 8
            drained = place.drain(bytes(spoilt))
            lost = check(drained, image)
            assert lost <= 30
            assert not lost or case >= HEADER_BYTES * 8, "nothing of the header page costs a record"
            assert drained.header.refusals == image.refused
            yield Result(case, image.last - image.stored, lost)


def _spoil(data: bytearray, source: random.Random) -> bytearray:
    """One damage."""
    kind, at = source.randrange(8), source.randrange(len(data))
    if source.randrange(3) == 0:
        at = source.randrange(HEADER_BYTES)
    if kind == 0:  # a run of random bytes
        size = source.choice((1, 2, 8, 100, 1000))
        data[at : at + size] = source.randbytes(len(data[at : at + size]))
    elif kind == 1:  # a sector of zeros
        at &= ~511
        data[at : at + 512] = bytes(len(data[at : at + 512]))
    elif kind == 2:  # a word of the header replaced
        word = source.choice((*_WORDS, source.randrange(HEADER_BYTES // 8))) * 8
        value = source.choice((0, 1, 2**64 - 1, source.randrange(2**15), source.randrange(2**64)))
        data[word : word + 8] = value.to_bytes(8, "little")
    elif kind == 3:  # two sectors swapped
        other, at = source.randrange(len(data)) & ~511, at & ~511
        data[at : at + 512], data[other : other + 512] = data[other : other + 512], data[at : at + 512]
    elif kind == 4:  # cut
        del data[at:]
    elif kind == 5:  # an entry of the table repeated elsewhere
        at, other = (CHUNKS_OFFSET + source.randrange(36) * 56 for _ in range(2))
        data[at : at + 56] = data[other : other + 56]
    else:  # two bits
        for _ in range(2):
            data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return data


@torture(full=DAMAGES, default=500, beside=True)
def ring_damage(cases: Iterable[int]) -> Iterator[Result]:
    """Overwritten, cut, zeroed and swapped parts of a ring: nothing proved is wrong, nothing missing is untold."""
    with holder() as place:
        for case in cases:
            source = chance("ring-damage", case)
            image = dead_ring(source.randrange(8))
            data = bytearray(image.data)
            for _ in range(source.randrange(1, 4)):
                if data:
                    data = _spoil(data, source)
            accepted = image.last - image.stored
            try:
                drained = place.drain(bytes(data))
            except DamageError:
                yield Result(case, accepted, accepted)  # the ring is kept aside whole, and whoever drains it says so
                continue
            yield Result(case, accepted, check(drained, image))


class _Recorder:
    """Keeps the ring's bytes at every bytecode of the journal after which they differ: every boundary between stores."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.images = [world.image()]

    def look(self) -> None:
        page, data = self.world.ring.page, self.world.ring.data
        before = self.images[-1].data
        if page != before[:HEADER_BYTES] or data != before[HEADER_BYTES:]:
            self.images.append(self.world.image())

    def trace(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        if "/sdk/journal/" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        self.look()
        return self.trace


@functools.lru_cache(maxsize=1)
def _boundaries() -> list[Image]:
    """The states of a ring between any two stores of some hundred calls, refused ones and a sender's doings included."""
    world = World(1, 4 << 10)
    world.live(200)
    recorder = _Recorder(world)
    before = sys.gettrace()
    sys.settrace(recorder.trace)
    try:
        world.live(1000)
    finally:
        sys.settrace(before)
    assert world.journal.refusals().episode > 1
    return recorder.images


def _torn(old: bytes, new: bytes, source: random.Random) -> bytes:
    """The old bytes with a part of what a store changes, unless it changes one word that a single instruction stores."""
    changed = [i for i, (a, b) in enumerate(zip(old, new)) if a != b]
    low, high = changed[0], changed[-1] + 1
    if low // 8 == (high - 1) // 8 and low // 8 in _WORDS:
        return old
    upto = source.randrange(low, high + 1)
    return old[:low] + new[low:upto] + old[upto:]


@torture(full=KILLS, every=5)
def ring_killed(cases: Iterable[int]) -> Iterator[Result]:
    """A process killed between any two stores of log(), or inside one: what returned is there, once, and no damage."""
    images = _boundaries()
    with holder() as place:
        for case in cases:
            source = chance("ring-killed", case)
            index = case * (len(images) - 1) // KILLS
            old, new = images[index], images[index + 1]
            data = old.data if case % 2 else _torn(old.data, new.data, source)
            drained = place.drain(data)
            assert drained.damage is None, drained.damage
            assert not any("first" in gap for gap in drained.gaps)
            assert old.stored <= drained.stored <= new.storing
            numbers = walk_numbers(drained.records)
            assert numbers == list(range(drained.stored + 1, drained.stored + 1 + len(numbers)))
            assert old.last <= max(drained.last, drained.stored) <= max(new.possible, old.last + 1)
            _check_bytes(drained, new.logged)
            assert drained.header.refusals in (old.refused, old.refusing, new.refused, new.refusing)
            yield Result(case, old.last - old.stored)


def _check_bytes(drained: Drained, logged: dict[int, bytes]) -> None:
    for piece in drained.pieces:
        offset = 0
        for record in walk(piece.records):
            size = HEADER_SIZE + len(record.payload)
            assert logged[record.sequence] == piece.records[offset : offset + size]
            offset += size
