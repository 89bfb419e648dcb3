"""Videos: `sdk.Video`."""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar

from . import sources
from .arrays import Fetched, fetch_array
from .blobs import Blob, snapshot
from .media import Media, known
from .pixels import check_dtype, check_numbers

_WHAT = "Video()"
_FRAMES_PER_SECOND = 4
_CHANNELS = (1, 3, 4)
# What frames can become; a file of ogg is stored as any other.
_ENCODED = ("gif", "mp4", "webm")


class Video(Media):
    """A video. Its frames are copied here, once, and encoded later, in another process (docs/media.md#videos).

    Args:
        data_or_path: One of
            an array of numpy, torch, jax or TensorFlow: number[T, C, H, W] with C = 1, 3 or 4, or number[B, T, C, H, W]:
            B videos of the same length, which are shown side by side in one (`grid_of`);
            the path of a gif, mp4, webm or ogg file, its bytes, or the file open for reading: stored as they are.
        caption: A label.
        fps: Frames in a second of an array, 4 if not given.
        format: What an array becomes: gif, if not given, mp4 or webm. Of bytes and open files: what they are.

    Warns:
        UserWarning: Frames are not uint8, and will be cut to 0 to 255; or `fps` is given for a file, which has its own.

    Raises:
        TypeError: An array of something else than numbers.
        ValueError: Data of another type, a shape that is no video's, no frames, NaN, an unknown `format`, none for bytes,
            the address of something that is not on this machine.
        OSError: A file that cannot be read.
    """

    _type: ClassVar[str] = "video-file"

    EXTS = ("gif", "mp4", "webm", "ogg")

    def __init__(
        self,
        data_or_path: Any,
        caption: str | None = None,
        fps: float | None = None,
        format: str | None = None,
    ) -> None:
        self._caption = None if caption is None else str(caption)
        file = _file_of(data_or_path, format)
        if file is not None:
            if fps:
                warnings.warn(f"{_WHAT}: fps changes nothing for a file, which has its own", stacklevel=3)
            data, self._format = file
            self._blob = snapshot(data, {"media": self._type, "format": self._format})
            self._facts: dict[str, Any] = {}
            return
        fetched = fetch_array(data_or_path, _WHAT)
        if fetched is None:
            raise ValueError(
                f"{_WHAT} is given {type(data_or_path).__module__}.{type(data_or_path).__qualname__}, expected an array of "
                f"frames or a file ({', '.join(self.EXTS)})"
            )
        self._format = _format_of_frames(format)
        self._blob, self._facts = _from_frames(fetched, self._format, _rate(fps))

    @property
    def format(self) -> str:
        """The file's: "gif", "mp4", "webm" or "ogg"."""
        return self._format

    def describe(self) -> dict[str, Any]:
        return {**known(caption=self._caption), **self._facts, "format": self._format, "data": self._blob}


def grid_of(count: int) -> tuple[int, int]:
    """Rows and columns of the grid in which so many videos are shown: as W&B's, a power of two, the rest stays black."""
    is_power = count & (count - 1) == 0
    places = count if is_power else 1 << count.bit_length()
    rows = 1 << ((count.bit_length() - 1) // 2)
    return rows, places // rows


def _file_of(given: Any, format: str | None) -> tuple[bytes, str] | None:
    """The content of a file and what it is: by its first bytes; where they are not known, by its name or `format`."""
    if sources.is_path(given):
        said = _checked((sources.name_of(given) or "").rpartition(".")[2].lower())
        data = sources.read_path(given, _WHAT)
    else:
        read = sources.read_given(given)
        if read is None:
            return None
        data = read
        if format is None:
            raise ValueError(f"{_WHAT} needs a format when it is given bytes: one of {', '.join(Video.EXTS)}")
        said = _checked(format)
    if not data:
        raise ValueError(f"{_WHAT} is given an empty file")
    found = sources.format_of(data)
    return data, found if found in Video.EXTS else said


def _checked(format: str) -> str:
    if format not in Video.EXTS:
        raise ValueError(f"{_WHAT} is given a file of format {format!r}, expected one of {', '.join(Video.EXTS)}")
    return format


def _format_of_frames(format: str | None) -> str:
    if format is None:
        return "gif"
    if format not in _ENCODED:
        raise ValueError(f"{_WHAT} format is {format!r}, expected one of {', '.join(_ENCODED)} for an array of frames")
    return format


def _rate(fps: float | None) -> float:
    if not fps:
        return _FRAMES_PER_SECOND
    rate = int(fps) if int(fps) == fps else float(fps)
    if not math.isfinite(rate) or rate < 0:
        raise ValueError(f"{_WHAT} fps is {fps!r}, expected a number above 0")
    return rate


def _from_frames(fetched: Fetched, to: str, fps: float) -> tuple[Blob, dict[str, Any]]:
    check_dtype(fetched, _WHAT)
    shape = fetched.array.shape
    if len(shape) not in (4, 5):
        raise ValueError(
            f"{_WHAT} is given an array of shape {shape}, expected 4 axes (time, channels, height, width), or 5 with a batch "
            "of videos first"
        )
    if shape[-3] not in _CHANNELS:
        cure = ""
        if shape[-1] in _CHANNELS:
            axes = (0, 3, 1, 2) if len(shape) == 4 else (0, 1, 4, 2, 3)
            cure = f"; its channels seem to be the last axis: frames.transpose{axes}"
        raise ValueError(f"{_WHAT} has {shape[-3]} channels in shape {shape}, expected 1, 3 or 4{cure}")
    if 0 in shape:
        raise ValueError(f"{_WHAT} is given an empty array, of shape {shape}")
    dtype = fetched.dtype or fetched.array.dtype.name
    if dtype != "uint8":
        warnings.warn(
            f"{_WHAT}: frames of {dtype} will be cut to 0 to 255, without fractions; multiply what lies within 0 to 1 by 255",
            stacklevel=4,
        )
    rows, columns = grid_of(shape[0]) if len(shape) == 5 else (1, 1)
    meta = {
        "media": Video._type, "to": to, "fps": fps, "layout": "BTCHW"[-len(shape) :], "grid": [rows, columns],
        "normalize": False,
    }  # fmt: skip
    blob = snapshot(fetched.array, meta, dtype=fetched.dtype)
    check_numbers(blob, dtype, _WHAT)
    return blob, {"fps": fps, "frames": shape[-4], "width": columns * shape[-1], "height": rows * shape[-2]}
