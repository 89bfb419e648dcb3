"""sdk.encoders: bytes that somebody made up. What is no file is damage, never another error, and never much memory."""

from __future__ import annotations

import random
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy
import pytest

import sdk
from sdk.encoders import EncoderMissing, decode, encode, to_array
from sdk.errors import DamageError

SEED = 20261121
FLIPS = 60
MEMORY_MAX = 32 << 20


def file_of(value: Any) -> tuple[bytes, dict[str, Any]]:
    blob = value.describe()["data"]
    found = encode(blob.view(), blob.meta)
    assert found is not None
    return bytes(found.data), found.meta


def pixels(*shape: int) -> Any:
    return numpy.random.default_rng(1).integers(0, 256, shape, "u1")


FILES: dict[str, Callable[[], Any]] = {
    "png": lambda: sdk.Image(pixels(20, 30, 3)),
    "grey png": lambda: sdk.Image(pixels(20, 30)),
    "jpg": lambda: sdk.Image(pixels(20, 30, 3), file_type="jpg"),
    "bmp": lambda: sdk.Image(pixels(20, 30, 3), file_type="bmp"),
    "webp": lambda: sdk.Image(pixels(20, 30, 3), file_type="webp"),
    "gif": lambda: sdk.Video(pixels(3, 3, 20, 30), format="gif"),
    "mp4": lambda: sdk.Video(pixels(3, 3, 20, 30), format="mp4"),
    "webm": lambda: sdk.Video(pixels(3, 3, 20, 30), format="webm"),
    "wav": lambda: sdk.Audio(pixels(300), sample_rate=8000),
    "flac": lambda: sdk.Audio(pixels(300), sample_rate=8000, file_type="flac"),
    "ogg": lambda: sdk.Audio(pixels(300), sample_rate=8000, file_type="ogg"),
}


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(name: str) -> None:
    """Cut anywhere, bits flipped, bytes in between, and nothing at all: an array or DamageError."""
    data, meta = file_of(FILES[name]())
    draw = random.Random(f"{SEED} {name}")
    cases = [b"", data[:1], data[:-1], data * 2, data[::-1]]
    cases += [data[: draw.randrange(len(data))] for _ in range(FLIPS // 2)]
    for _ in range(FLIPS):
        broken = bytearray(data)
        for _ in range(draw.randrange(1, 6)):
            broken[draw.randrange(min(len(broken), draw.choice((40, len(broken)))))] ^= 1 << draw.randrange(8)
        cases.append(bytes(broken))
    for case in cases:
        read(case, meta, f"seed {SEED}: {name} {case[:60]!r}")


def read(data: bytes, meta: dict[str, Any], what: str) -> None:
    try:
        to_array(data, meta)
    except (DamageError, EncoderMissing):
        pass
    except Exception as error:
        raise AssertionError(f"{what}: {error!r}") from error


@pytest.mark.parametrize("name", FILES)
def test_files_of_another_kind(name: str) -> None:
    """A file that says that it is another one."""
    data, _ = file_of(FILES[name]())
    for kind in ("png", "jpg", "bmp", "webp", "gif", "mp4", "webm", "wav", "flac", "ogg"):
        for media in ("image-file", "video-file", "audio-file"):
            read(data, {"media": media, "format": kind}, f"{name} as {kind}")


NONSENSE: list[Any] = [None, 5, "x", [], {}, ["png"], {"png": 1}, b"png", 1.5, True]


@pytest.mark.parametrize("value", NONSENSE, ids=repr)
@pytest.mark.parametrize("name", ["media", "format", "encoding", "to", "array", "raw_size"])
def test_nonsense_in_meta(name: str, value: Any) -> None:
    """Whatever a blob says of itself."""
    data, meta = file_of(FILES["png"]())
    read(data, {**meta, name: value}, f"{name}={value!r}")
    raw = bytes(40_000)
    for base in (
        {"encoding": "lz4", "raw_size": 5},
        {"encoding": "shuffle", "raw_size": 5, "array": ["<f4", [1], None]},
    ):
        try:
            decode(raw, {**base, name: value})
        except DamageError:
            pass


@pytest.mark.parametrize("to", NONSENSE[1:] + ["tiff", "exe"], ids=repr)
def test_an_unknown_format_to_be_made(to: Any) -> None:
    """DamageError that says what was asked for."""
    with pytest.raises(DamageError, match="knows no such format"):
        encode(bytes(100), {"to": to})


def test_what_is_encoded_is_not_encoded_again() -> None:
    """It would be packed twice and unpacked once."""
    with pytest.raises(DamageError, match="already"):
        encode(bytes(100), {"encoding": "lz4"})


@pytest.mark.parametrize("kind", ["png", "jpg", "mp4", "zip"])
def test_compressed_files_are_kept(kind: str) -> None:
    """lz4 of them is a waste; of others it is tried."""
    assert encode(bytes(100_000), {"format": kind}) is None
    found = encode(bytes(100_000), {"format": "obj"})
    assert found is not None
    assert decode(found.data, found.meta) == bytes(100_000)
    assert encode(numpy.random.default_rng(1).bytes(100_000), {"format": "obj"}) is None


def png_of(width: int, height: int) -> bytes:
    """A header that promises, and a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(1 << 31) - 1, 1 << 20, 65_536])
def test_a_header_that_promises_much(size: int) -> None:
    """Is refused before anything is allocated."""
    with pytest.raises(DamageError):
        to_array(png_of(size, size), {"media": "image-file"})


def test_packed_bytes_that_promise_much() -> None:
    """Of ten bytes nobody makes a gigabyte."""
    tracemalloc.start()
    try:
        for data in (bytes(10), b"\x01\0\0\0\xff\xff\xff\x00" + bytes(2), b"\xff" * 10):
            for size in (1 << 30, 1 << 40, 0xFFFFFF):
                with pytest.raises(DamageError):
                    decode(data, {"encoding": "lz4", "raw_size": size})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEMORY_MAX
