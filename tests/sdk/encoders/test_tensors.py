"""sdk.encoders.tensor and packing: every element back, bit for bit."""

from __future__ import annotations

import struct
from typing import Any

import numpy
import pytest

from sdk.dtypes import FOREIGN_DTYPES
from sdk.encoders import decode, encode, packing, tensor
from sdk.errors import DamageError
from sdk.values.blobs import as_array, snapshot

RNG = numpy.random.default_rng(6)
DTYPES = [
    "?", "i1", "u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16", "<M8[ns]", "<m8[s]", "S7",
    "<U3", ">f4",
]  # fmt: skip


def packed(array: Any, dtype: str | None = None, media: str = "tensor") -> tuple[bytes, dict[str, Any]]:
    blob = snapshot(array, {"media": media, "to": "tensor"}, dtype=dtype)
    found = encode(blob.view(), blob.meta)
    assert found is not None
    return bytes(found.data), found.meta


def bits_of(array: Any) -> bytes:
    return numpy.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["zeros", "noise", "ramp"])
def test_every_type_comes_back(dtype: str, kind: str) -> None:
    """NaNs and all: packed, regrouped and packed, or as it is."""
    size = numpy.dtype(dtype).itemsize
    count = 30_000
    raw = {
        "zeros": bytes(count * size),
        "noise": RNG.bytes(count * size),
        "ramp": numpy.arange(count, dtype="<u4").repeat(-(-size // 4)).tobytes()[: count * size],
    }[kind]
    array = numpy.frombuffer(raw, "u1") & 1 if dtype == "?" else numpy.frombuffer(raw, "u1")
    if dtype == "<U3":
        array = array & numpy.tile(numpy.array([127, 0, 0, 0], "u1"), len(array) // 4)
    array = array.view(dtype).reshape(100, 300)
    data, meta = packed(array)
    back = as_array(decode(data, meta), meta["array"])
    assert back.shape == array.shape
    assert bits_of(back) == bits_of(array.astype(array.dtype.newbyteorder("<")))
    if kind == "zeros":
        assert meta["encoding"] in ("lz4", "shuffle") and len(data) < len(raw) / 10


@pytest.mark.parametrize("name", FOREIGN_DTYPES)
def test_foreign_types_come_back(name: str) -> None:
    """Their codes, whoever has ml_dtypes or not."""
    codes = RNG.integers(0, 256, (50, 60 * FOREIGN_DTYPES[name]), "u1").view(f"<u{FOREIGN_DTYPES[name]}")
    data, meta = packed(codes, name)
    assert bits_of(as_array(decode(data, meta), meta["array"])) == bits_of(codes)
    assert meta["statistics"]["count"] == codes.size


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (2, 1, 0)])
def test_views_come_back(order: tuple[int, ...]) -> None:
    """In the shape that the user saw."""
    array = numpy.arange(24_000, dtype="<f4").reshape(20, 30, 40).transpose(order)
    data, meta = packed(array)
    assert numpy.array_equal(as_array(decode(data, meta), meta["array"]), array)


def test_smooth_floats_are_regrouped() -> None:
    """Their bytes alone would not get smaller."""
    array = numpy.linspace(1, 2, 100_000, dtype="<f4")
    data, meta = packed(array)
    assert meta["encoding"] == "shuffle"
    assert len(data) < 0.9 * array.nbytes


def test_noise_stays_as_it_is() -> None:
    """And no statistics but a tensor's."""
    array = RNG.integers(0, 256, 100_000, "u1")
    data, meta = packed(array, media="object3D-file")
    assert (data, "encoding" in meta, "statistics" in meta) == (array.tobytes(), False, False)
    assert "statistics" in packed(array)[1]


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 31, 32, 33, 1000])
def test_packing_any_size(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Chunk boundaries included; what gets no smaller too."""
    monkeypatch.setattr(packing, "_CHUNK_BYTES", 16)
    for raw in (bytes(size), RNG.bytes(size)):
        found = packing.pack(raw)
        assert packing.unpack(found, size) == raw
        for wrong in (size + 1, size - 1, -1, None, True, 1 << 60, 1.5, "1"):
            with pytest.raises(DamageError):
                packing.unpack(found, wrong)


def test_a_large_one() -> None:
    """More than a chunk of 16 MiB."""
    raw = bytes(packing._CHUNK_BYTES) + b"x" * 5
    assert packing.unpack(packing.pack(raw), len(raw)) == raw


def test_what_a_sample_is() -> None:
    """All of small ones; of larger ones the beginning and the middle, so that a dull head does not decide."""
    assert packing.sample_of(b"abc") == b"abc"
    half = bytes(200 << 10)
    assert not packing.pays(RNG.bytes(400 << 10))
    assert packing.pays(half + RNG.bytes(200 << 10)) == packing.pays(RNG.bytes(200 << 10) + half[: 100 << 10] + half)
    assert packing.pays(bytes(400 << 10))


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_regrouping(size: int) -> None:
    """First all first bytes, then all second ones."""
    raw = RNG.bytes(size * 7)
    grouped = bytes(tensor.shuffle(raw, size))
    assert grouped == b"".join(raw[index::size] for index in range(size))


@pytest.mark.parametrize("cut", range(40))
def test_cut_bytes_are_damage(cut: int) -> None:
    """At any place, whatever the size that was told."""
    raw = bytes(range(256)) * 2 + bytes(500)
    found = packing.pack(raw)
    for told in (len(raw), 0, 100):
        with pytest.raises(DamageError):
            packing.unpack(found[:cut], told if (cut, told) != (0, 0) else 1)


def test_lying_chunks() -> None:
    """A chunk that claims more than there is, more than a chunk may have, or more than all of it."""
    for head in ((10, 1 << 31), (1 << 31, 10), (10, 11), (11, 10), (0xFFFFFFFF, 0xFFFFFFFF), (0, 0)):
        with pytest.raises(DamageError):
            packing.unpack(struct.pack("<II", *head) + bytes(10), 10_000)


@pytest.mark.parametrize(
    "meta",
    [
        {}, {"array": None}, {"array": []}, {"array": ["O", [1], None]}, {"array": ["|S0", [1], None]}, {"array": [5]},
        {"array": ["<f8", [1], None]}, {"array": {"0": 1}}, {"array": ["f4,f4", [1], None]}, {"array": ["V0", [], None]},
    ],
)  # fmt: skip
def test_lying_types(meta: dict[str, Any]) -> None:
    """A type that is none, or does not fit, is damage."""
    raw = b"abcde"
    with pytest.raises(DamageError):
        decode(packing.pack(raw), {**meta, "encoding": "shuffle", "raw_size": len(raw)})
