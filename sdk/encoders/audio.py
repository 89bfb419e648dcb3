"""Sounds with soundfile (libsndfile)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from ..dtypes import widened
from ..errors import DamageError
from ..files import Buffer
from ..values.blobs import as_array
from . import Encoded, EncoderMissing

# Limit: samples of all channels that a reader decodes: 2 GiB of float64.
SAMPLES_MAX = 1 << 28
# What wav calls samples of a type; what it does not name is widened to one that it does. All of these are lossless.
_WAV = {"uint8": "PCM_U8", "int16": "PCM_16", "int32": "PCM_32", "float32": "FLOAT", "float64": "DOUBLE"}
# FLAC holds at most 24 bits.
_FLAC = {"uint8": "PCM_16", "int16": "PCM_16"}
# libsndfile's name to the type in which its samples are given back whole.
_READ = {
    "PCM_U8": "int16",
    "PCM_S8": "int16",
    "PCM_16": "int16",
    "PCM_24": "int32",
    "PCM_32": "int32",
    "DOUBLE": "float64",
}


def encode(raw: Buffer, meta: Mapping[str, Any]) -> Encoded:
    """The sound file."""
    soundfile = _soundfile()
    to = str(meta["to"])
    samples = widened(as_array(raw, meta["array"]), meta["array"][0])
    if samples.dtype.name == "float16":
        samples = samples.astype("f4")
    name = samples.dtype.name
    subtype = {"wav": _WAV.get(name), "flac": _FLAC.get(name, "PCM_24"), "ogg": "VORBIS"}[to]
    if subtype is None:
        raise DamageError(f"samples of {name}, expected one of {', '.join(_WAV)}")
    if name == "uint8":
        samples = (samples.astype("i2") - 128) << 8  # libsndfile takes no bytes; of these the upper ones are kept
    out = io.BytesIO()
    # Written in portions, as one call with a whole hour of Vorbis overflows the library's stack.
    with soundfile.SoundFile(
        out, "w", int(meta["sample_rate"]), samples.shape[1] if samples.ndim == 2 else 1, subtype, format=to.upper()
    ) as file:
        for start in range(0, len(samples), 1 << 16):
            file.write(samples[start : start + (1 << 16)])
    return Encoded(out.getbuffer(), {**meta, "encoding": to})


def to_array(data: Buffer) -> Any:
    """[frames] or [frames, channels]: int16, int32, float32 or float64, as the file holds them; uint8 of 8-bit wav.

    Raises:
        EncoderMissing: soundfile is not there.
        DamageError: No sound file, or one too long to be true.
    """
    soundfile = _soundfile()
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.frames * file.channels > SAMPLES_MAX:
                raise DamageError(
                    f"a sound of {file.frames} × {file.channels} samples, expected at most {SAMPLES_MAX:,}"
                )
            samples = file.read(dtype=_READ.get(file.subtype, "float32"))
            subtype = file.subtype
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
        raise DamageError(f"cannot decode a sound of {len(data)} bytes: {error}") from error
    return ((samples >> 8) + 128).astype("u1") if subtype == "PCM_U8" else samples


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: the package without the library
        raise EncoderMissing("soundfile", "soundfile", "a sound") from None
    return soundfile
