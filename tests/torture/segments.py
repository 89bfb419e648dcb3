"""Segments cut, flipped, zeroed, shuffled and spliced: what was logged is read, or reported to the sequence.

Every case damages the middle one of three segments; scenes alternate between sealed ones and those of a killed writer,
each alone at the end or followed by the writer's next segment. See `segment_scene`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random

from sdk.segment.format import ALIGNMENT, BLOCK_HEADER, BLOCK_HEADER_SIZE, BLOCKS_OFFSET, padded
from sdk.segment.headers import BLOCK_MAGIC_BYTES
from tests.torture.harness import Result, chance, torture
from tests.torture.segment_scene import Scene, scenes

CUT_BYTES = 64 << 10
FLIP_BYTES = 16 << 10
# Mending takes ten times as long as looking; a prime meets every scene and every bit.
MENDED_EVERY = 61


@torture(full=CUT_BYTES + 1, every=13, beside=True)
def segment_cut(cases: Iterable[int]) -> Iterator[Result]:
    """A 64 KiB segment cut at every byte: what was whole is read, the rest is reported."""
    with scenes(CUT_BYTES) as made:
        for case in cases:
            scene = made[case % len(made)]
            scene.put(scene.whole[:case])
            yield Result(case, scene.accepted, scene.mend().count if case % MENDED_EVERY == 0 else scene.look().count)


@torture(full=FLIP_BYTES * 8, every=23, beside=True)
def segment_bit_flip(cases: Iterable[int]) -> Iterator[Result]:
    """Every bit of a 16 KiB segment flipped, one at a time."""
    with scenes(FLIP_BYTES) as made:
        for case in cases:
            scene = made[case % len(made)]
            data = bytearray(scene.whole)
            data[case // 8 % len(data)] ^= 1 << case % 8
            scene.put(bytes(data))
            yield Result(case, scene.accepted, scene.mend().count if case % MENDED_EVERY == 0 else scene.look().count)


@torture(full=100_000, default=500, beside=True)
def segment_damage(cases: Iterable[int]) -> Iterator[Result]:
    """Several kinds of damage at once, then mended: bits, bytes, sectors, whole blocks, a splice of two segments."""
    with scenes(CUT_BYTES) as made:
        for case in cases:
            scene, draw = made[case % len(made)], chance("segment-damage", case)
            data = bytearray(scene.whole)
            for _ in range(draw.randrange(1, 4)):
                draw.choice(DAMAGES)(data, draw, made)
            scene.put(bytes(data))
            yield Result(case, scene.accepted, scene.mend().count)


def two_bits(data: bytearray, draw: Random, _: list[Scene]) -> None:
    for _ in range(2):
        bit = draw.randrange(len(data) * 8)
        data[bit // 8] ^= 1 << bit % 8


def random_bytes(data: bytearray, draw: Random, _: list[Scene]) -> None:
    start = draw.randrange(len(data))
    size = min(draw.choice((1, 4, 40, 400, 9000)), len(data) - start)
    data[start : start + size] = draw.randbytes(size)


def zeroed_sector(data: bytearray, draw: Random, _: list[Scene]) -> None:
    start, end = sector(data, draw, draw.choice((512, 4096)))
    data[start:end] = bytes(end - start)


def moved_sector(data: bytearray, draw: Random, _: list[Scene]) -> None:
    """One sector written to another's place, or two exchanged."""
    size = draw.choice((512, 4096))
    (a, a_end), (b, b_end) = sector(data, draw, size), sector(data, draw, size)
    if a_end - a == b_end - b:
        first, second = bytes(data[a:a_end]), bytes(data[b:b_end])
        data[b:b_end] = first
        if draw.random() < 0.5:
            data[a:a_end] = second


def sector(data: bytearray, draw: Random, size: int) -> tuple[int, int]:
    start = draw.randrange(-(-len(data) // size)) * size
    return start, min(start + size, len(data))


def cut(data: bytearray, draw: Random, _: list[Scene]) -> None:
    del data[draw.randrange(len(data)) :]


def blocks_shuffled(data: bytearray, draw: Random, made: list[Scene]) -> None:
    """Whole blocks removed, doubled or exchanged; where they were, as far as earlier damage lets them be found."""
    places = blocks_in(data)
    if len(places) < 3:
        return
    (a, a_end), (b, b_end) = sorted(draw.sample(places, 2))
    first, second, between = bytes(data[a:a_end]), bytes(data[b:b_end]), bytes(data[a_end:b])
    data[a:b_end] = draw.choice((between + second, first + first + between + second, second + between + first))


def spliced(data: bytearray, draw: Random, made: list[Scene]) -> None:
    """The head of this segment and the tail of another one, or blocks of another one in the middle."""
    other = draw.choice(made).whole
    mine, others = blocks_in(data), blocks_in(other)
    if not mine or not others:
        return
    start, (begin, end) = draw.choice(mine)[0], draw.choice(others)
    if draw.random() < 0.5:
        data[start:] = other[begin:]
    else:
        data[start:start] = other[begin:end]


def blocks_in(data: bytes | bytearray) -> list[tuple[int, int]]:
    """Where blocks begin and end, by what looks like their headers."""
    found, at = [], data.find(BLOCK_MAGIC_BYTES, BLOCKS_OFFSET)
    while at >= 0 and len(data) - at >= BLOCK_HEADER_SIZE:
        stored = BLOCK_HEADER.unpack_from(data, at)[4]
        found.append((at, min(padded(at + BLOCK_HEADER_SIZE + stored), len(data))))
        at = data.find(BLOCK_MAGIC_BYTES, at + 1)
    return [(start, end) for start, end in found if start % ALIGNMENT == 0]


DAMAGES = (two_bits, random_bytes, zeroed_sector, moved_sector, cut, blocks_shuffled, spliced)
