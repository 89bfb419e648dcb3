"""Encoders: from the raw bytes of a logged value to the file or packed form that is kept, and back.

What may live here: pure functions from bytes and metadata (docs/media.md) to bytes and metadata, each format in a module of
its own. Used by the worker process that encodes (`daemon.encode`) and by whoever reads a value before that has happened,
so both give the same file. Nothing here runs in the training loop, and no package is imported before it is needed.

| "to" of a raw blob | becomes | lossless | with |
|---|---|---|---|
| png, bmp, webp | a picture file | yes, but for the scaling of what is not uint8 | Pillow |
| jpg | a picture file | no | Pillow |
| gif | a moving picture | 256 colors a frame | Pillow |
| mp4, webm | a video | no | PyAV |
| wav, flac | a sound | wav yes; flac of integers up to 24 bits | soundfile |
| ogg | a sound (Vorbis) | no | soundfile |
| tensor | "shuffle" or "lz4", where a sample says that it pays | yes | lz4 |
| histogram | the histogram | no: the numbers are gone | numpy |
| none | "lz4", where a sample says that it pays | yes | lz4 |
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..errors import DamageError, Error, install_hint
from ..files import Buffer

__all__ = ["VERSION", "Encoded", "EncoderMissing", "available", "decode", "encode", "to_array"]

# Grows when an encoder learns something: what failed in an older one is tried again.
VERSION = 1

_PICTURES = frozenset({"png", "jpg", "bmp", "webp"})
_SOUNDS = frozenset({"wav", "flac", "ogg"})
_VIDEOS = frozenset({"mp4", "webm", "gif"})
# Files that are compressed already; lz4 of them is a waste.
_COMPRESSED = frozenset("png jpg jpeg gif webp avif jp2 mp4 webm ogg opus mp3 m4a aac flac glb mmtf npz zip gz".split())

# What is imported of each package.
_MODULES = {"pillow": "PIL.Image", "av": "av", "soundfile": "soundfile"}


class Encoded(NamedTuple):
    """What is kept of a blob: `meta` is the raw blob's and "encoding", what `data` is now (absent: still raw)."""

    data: Buffer
    meta: dict[str, Any]


class EncoderMissing(Error):
    """A package is not installed without which a value cannot be encoded or decoded; it stays as it is meanwhile.

    Args:
        cure: The package that pip is to install.
    """

    def __init__(self, package: str, cure: str, what: str) -> None:
        super().__init__(f"{what} needs {package}, which is not installed", hint=install_hint(cure))
        self.package = package


def available(package: str) -> bool:
    """Whether a package that `EncoderMissing` named can be used now; tried by importing it, as only that tells."""
    module = _MODULES.get(package)  # of no others: the name may come from a file
    try:
        return module is not None and importlib.import_module(module) is not None
    except (ImportError, OSError):
        return False


def encode(raw: Buffer, meta: Mapping[str, Any]) -> Encoded | None:
    """What a raw blob is replaced by; None where it is best kept as it is.

    Args:
        raw: The bytes that the trainer stored.
        meta: What they say of themselves.

    Raises:
        EncoderMissing: A package is not installed.
        DamageError: The metadata does not fit the bytes.
        Exception: Whatever the library that encodes raises of bytes that it does not like.
    """
    if "encoding" in meta:
        raise DamageError(f"a blob that is encoded as {meta['encoding']!r} already")
    to = meta.get("to")
    if to is None:
        return None if str(meta.get("format")) in _COMPRESSED else _packed(raw, meta)
    encoder = _encoder(to) if isinstance(to, str) else None
    if encoder is None:
        raise DamageError(f"a blob that is to become {to!r}: this version knows no such format")
    return encoder(raw, meta)


def _encoder(to: str) -> Callable[[Buffer, Mapping[str, Any]], Encoded | None] | None:
    if to in _PICTURES:
        from .image import encode as encode_image

        return encode_image
    if to in _VIDEOS:
        from .video import encode as encode_video

        return encode_video
    if to in _SOUNDS:
        from .audio import encode as encode_audio

        return encode_audio
    if to == "tensor":
        from .tensor import encode as encode_tensor

        return encode_tensor
    return _histogram if to == "histogram" else None


def _packed(raw: Buffer, meta: Mapping[str, Any]) -> Encoded | None:
    from .packing import LZ4, pack, pays

    if not pays(raw):
        return None
    return Encoded(pack(raw), {**meta, "encoding": LZ4, "raw_size": len(raw)})


def _histogram(raw: Buffer, meta: Mapping[str, Any]) -> Encoded:
    from ..values.histogram import encode_histogram

    return Encoded(encode_histogram(raw, meta), {**meta, "encoding": "histogram"})


def decode(data: Buffer, meta: Mapping[str, Any]) -> Buffer:
    """The bytes before they were packed; those of a file, or that were never packed, as they are.

    Raises:
        DamageError: They are not what `meta` says.
    """
    encoding = meta.get("encoding")
    if encoding not in ("lz4", "shuffle"):
        return data
    from . import packing, tensor

    raw = packing.unpack(data, meta.get("raw_size"))
    return tensor.unshuffle(raw, meta) if encoding == "shuffle" else raw


def to_array(data: Buffer, meta: Mapping[str, Any]) -> Any:
    """The numbers in a file.

    Returns:
        Of a picture uint8 (or uint16) [H, W] or [H, W, channels]; of a sound [frames] or [frames, channels] in the type
        that the file holds; of a video uint8[T, H, W, 3].

    Raises:
        EncoderMissing: A package is not installed.
        DamageError: No file that we know, or one too large to be true.
    """
    kind = str(meta.get("encoding") or meta.get("format"))
    is_picture = meta.get("media") in ("image-file", "mask")
    if kind in _VIDEOS and not is_picture:
        from .video import to_array as video_array

        return video_array(data, kind)
    if kind in _SOUNDS:
        from .audio import to_array as audio_array

        return audio_array(data)
    if kind in _PICTURES or is_picture:
        from .image import to_array as image_array

        return image_array(data)
    raise DamageError(f"a blob of format {kind!r} holds no array")
