"""sdk.compression: lz4 where it helps, and no way to make it allocate or return what was not written."""

from __future__ import annotations

import os
import random

import lz4.block
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk import compression
from sdk.compression import CODEC_LZ4, CODEC_NONE, compress, decompress
from sdk.errors import DamageError
from sdk.limits import BLOCK_RAW_BYTES_MAX, LZ4_RATIO_MAX

SMALL = compression._BYTES_MIN


@given(st.binary(max_size=3 * SMALL) | st.builds(lambda b, n: b * n, st.binary(max_size=9), st.integers(0, 2000)))
def test_what_was_compressed_comes_back(raw: bytes) -> None:
    """Bytes of any kind survive the round trip, from bytes and from a view."""
    for source in (raw, memoryview(raw)):
        codec, stored = compress(source)
        assert bytes(decompress(codec, bytes(stored), len(raw))) == raw


@pytest.mark.parametrize(
    ("raw", "codec"),
    [
        (b"a" * (SMALL - 1), CODEC_NONE),
        (b"a" * SMALL, CODEC_LZ4),
        (os.urandom(SMALL * 4), CODEC_NONE),
        (b"", CODEC_NONE),
    ],
)
def test_only_what_shrinks_is_compressed(raw: bytes, codec: int) -> None:
    """Below the smallest size, and where lz4 would not save a sixteenth, the same object is returned, not a copy."""
    got, stored = compress(raw)
    assert got == codec
    assert (stored is raw) == (codec == CODEC_NONE)


def test_sizes_that_cannot_be_are_refused_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    """lz4 is not even called for a size beyond its ratio or beyond the limit of a block."""

    def never(*_: object, **__: object) -> bytes:
        raise AssertionError("lz4 was called")

    monkeypatch.setattr(lz4.block, "decompress", never)
    for stored, size in (
        (b"x" * 10, 10 * LZ4_RATIO_MAX + 65),
        (b"x" * (2 << 20), BLOCK_RAW_BYTES_MAX + 1),
        (b"", 65),
    ):
        with pytest.raises(DamageError, match="more than lz4 can make"):
            decompress(CODEC_LZ4, stored, size)


def test_unknown_codecs_and_wrong_sizes_are_damage() -> None:
    """Each with its own message."""
    with pytest.raises(DamageError, match="unknown codec 7"):
        decompress(7, b"abc", 3)
    with pytest.raises(DamageError, match="has 3 bytes, its header says 4"):
        decompress(CODEC_NONE, b"abc", 4)
    _, stored = compress(b"ab" * 1000)
    for size in (0, 1, 1999, 2001):
        with pytest.raises(DamageError):
            decompress(CODEC_LZ4, stored, size)


def test_damaged_lz4_never_raises_anything_else() -> None:
    """Cut at every byte and with random bytes changed (seed 1), it is damage or bytes of the promised size."""
    raw = b"".join(bytes([i % 7]) * (i % 50) for i in range(200))
    codec, stored = compress(raw)
    assert codec == CODEC_LZ4
    chance = random.Random(1)
    spoilt = [bytes(stored[:n]) for n in range(len(stored))]
    for _ in range(2000):
        copy = bytearray(stored)
        copy[chance.randrange(len(copy))] ^= 1 << chance.randrange(8)
        spoilt.append(bytes(copy))
    for data in spoilt:
        try:
            assert len(decompress(CODEC_LZ4, data, len(raw))) == len(raw)
        except DamageError:
            pass
