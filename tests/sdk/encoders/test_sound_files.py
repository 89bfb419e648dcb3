"""sdk.encoders.audio: what a sound's file holds."""

from __future__ import annotations

import struct
import sys
from typing import Any

import numpy
import pytest

import sdk
from sdk.encoders import EncoderMissing, encode, to_array
from sdk.encoders import audio as encoder
from sdk.errors import DamageError

pytest.importorskip("soundfile")
RNG = numpy.random.default_rng(5)


def encoded(samples: Any, file_type: str | None = None, sample_rate: int = 8000) -> tuple[bytes, dict[str, Any]]:
    options = {} if file_type is None else {"file_type": file_type}
    blob = sdk.Audio(samples, sample_rate=sample_rate, **options).describe()["data"]
    found = encode(blob.view(), blob.meta)
    assert found is not None
    assert found.meta["encoding"] == (file_type or "wav")
    return bytes(found.data), found.meta


def samples_of(dtype: str, *shape: int) -> Any:
    if numpy.dtype(dtype).kind == "f":
        return RNG.uniform(-1, 1, shape).astype(dtype)
    limits = numpy.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("shape", [(1,), (1000,), (1000, 1), (1000, 2), (70_000, 3)])
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f2", "f4", "f8"])
def test_wav_gives_the_samples_back(dtype: str, shape: tuple[int, ...]) -> None:
    """Of every type in its width, bit for bit; float16 as the float32 that it is."""
    samples = samples_of(dtype, *shape)
    data, meta = encoded(samples)
    found = to_array(data, meta)
    assert found.dtype == ("f4" if dtype == "f2" else dtype)
    assert numpy.array_equal(found, samples.reshape(found.shape))
    assert struct.unpack_from("<I", data, 24) == (8000,)


def test_wav_beyond_one() -> None:
    """Floats are not cut."""
    samples = numpy.array([-7.5, 3e20, 0.1], "f4")
    assert numpy.array_equal(to_array(*encoded(samples)), samples)


@pytest.mark.parametrize("dtype", ["u1", "i2"])
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_flac_gives_integers_back(dtype: str, channels: int) -> None:
    """8 bits as the upper ones of 16."""
    samples = samples_of(dtype, 500, channels)
    found = to_array(*encoded(samples, "flac")).reshape(500, channels)
    expected = (samples.astype("i2") - 128) << 8 if dtype == "u1" else samples
    assert numpy.array_equal(found, expected)


def test_flac_of_wider_types() -> None:
    """24 bits remain."""
    whole = samples_of("i4", 500)
    assert numpy.array_equal(to_array(*encoded(whole, "flac")) >> 8, whole >> 8)
    parts = samples_of("f4", 500)
    assert numpy.abs(to_array(*encoded(parts, "flac")) / 2**31 - parts).max() < 2**-22


def test_bfloat16() -> None:
    """As float32, exactly."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    samples = samples_of("f4", 100).astype(ml_dtypes.bfloat16)
    assert numpy.array_equal(to_array(*encoded(samples)), samples.astype("f4"))


def test_ogg_is_near() -> None:
    """A tone stays that tone."""
    tone = (0.5 * numpy.sin(numpy.arange(16_000) / 8)).astype("f4")
    found = to_array(*encoded(tone, "ogg"))
    assert found.shape == tone.shape
    assert numpy.abs(found - tone)[100:-100].max() < 0.05


def test_without_soundfile(monkeypatch: pytest.MonkeyPatch) -> None:
    """EncoderMissing, on both ways; the package without its library counts as missing."""
    samples = samples_of("i2", 10)
    data, meta = encoded(samples)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(EncoderMissing, match="soundfile"):
        encoded(samples)
    with pytest.raises(EncoderMissing, match="soundfile"):
        to_array(data, meta)


def test_a_sound_too_long_to_be_true(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its header alone."""
    data, meta = encoded(samples_of("i2", 100, 2))
    monkeypatch.setattr(encoder, "SAMPLES_MAX", 199)
    with pytest.raises(DamageError, match="100 × 2 samples, expected at most 199"):
        to_array(data, meta)
