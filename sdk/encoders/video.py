"""Videos with PyAV, moving pictures (gif) with Pillow."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from ..dtypes import widened
from ..errors import DamageError
from ..files import Buffer
from ..values.blobs import as_array
from . import Encoded, EncoderMissing
from .image import open_picture, pixels

# Limit: bytes of all decoded frames together; checked before the first and at each.
FRAMES_BYTES_MAX = 4 << 30
# A frame in a thousand seconds; a gif can show one for 655.35 s.
_SLOWEST = Fraction(1, 1000)
_GIF_MILLISECONDS_MAX = 655_350
# Codecs by preference, with their options. Visually lossless; slower presets save little on videos of this length.
_CODECS: dict[str, tuple[tuple[str, dict[str, str]], ...]] = {
    "mp4": (("libx264", {"crf": "18", "preset": "veryfast"}), ("mpeg4", {"qscale": "2"})),
    "webm": (
        ("libvpx-vp9", {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "6"}),
        ("libvpx", {"crf": "10"}),
    ),
}


def encode(raw: Buffer, meta: Mapping[str, Any]) -> Encoded:
    """The video file."""
    frames = _frames(raw, meta)
    fps = max(Fraction(meta.get("fps") or 4).limit_denominator(1000), _SLOWEST)
    to = str(meta["to"])
    data = _gif(frames, fps) if to == "gif" else _video(frames, fps, to)
    return Encoded(data, {**meta, "encoding": to})


def _frames(raw: Buffer, meta: Mapping[str, Any]) -> Any:
    """uint8[T, H, W, 3], of a batch the grid of all."""
    import numpy

    array = widened(as_array(raw, meta["array"]), meta["array"][0])
    array = pixels(array, normalize=bool(meta.get("normalize", False)))
    if array.ndim == 5:
        array = _grid(array, meta.get("grid"))
    array = array.transpose(0, 2, 3, 1)
    channels = array.shape[-1]
    if channels == 1:
        return numpy.repeat(array, 3, axis=-1)
    return array[..., :3]


def _grid(videos: Any, grid: Any) -> Any:
    """[T, C, H, W] of [B, T, C, H, W]: video b at row b // columns, column b % columns; the rest is black."""
    import numpy

    count, frames, channels, height, width = videos.shape
    rows, columns = grid if grid is not None else (1, count)
    if rows * columns < count:
        raise DamageError(f"{count} videos in a grid of {rows} × {columns}")
    out = numpy.zeros((frames, channels, rows * height, columns * width), "u1")
    for index in range(count):
        top, left = index // columns * height, index % columns * width
        out[:, :, top : top + height, left : left + width] = videos[index]
    return out


def _gif(frames: Any, fps: Fraction) -> Buffer:
    try:
        from PIL import Image
    except ImportError:
        raise EncoderMissing("pillow", "pillow", "a gif") from None
    pictures = [Image.fromarray(frame).quantize(256, method=Image.Quantize.FASTOCTREE) for frame in _each(frames)]
    out = io.BytesIO()
    # A gif counts hundredths of a second, and players take less than two for ten.
    milliseconds = min(max(round(1000 / fps), 20), _GIF_MILLISECONDS_MAX)
    pictures[0].save(
        out, "GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0,
    )  # fmt: skip
    return out.getbuffer()


def _each(frames: Any) -> Iterator[Any]:
    import numpy

    for frame in frames:
        yield numpy.ascontiguousarray(frame)


def _video(frames: Any, fps: Fraction, to: str) -> Buffer:
    import numpy

    av = _av()
    _, height, width, _ = frames.shape
    # The usual pixels of a video share their color with three neighbours, so both sides must be even.
    padding = [(0, 0), (0, height % 2), (0, width % 2), (0, 0)]
    if height % 2 or width % 2:
        frames = numpy.pad(frames, padding, mode="edge")
    codec, options = _codec(av, to)
    out = io.BytesIO()
    with av.open(out, "w", format=to) as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        for index, pixels_ in enumerate(_each(frames)):
            frame = av.VideoFrame.from_ndarray(pixels_, format="rgb24")
            frame.pts = index
            frame.time_base = 1 / fps
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getbuffer()


def _codec(av: Any, to: str) -> tuple[str, dict[str, str]]:
    for name, options in _CODECS[to]:
        if name in av.codecs_available:
            return name, options
    raise EncoderMissing("a build of PyAV with " + " or ".join(name for name, _ in _CODECS[to]), "av", f"{to} video")


def to_array(data: Buffer, kind: str) -> Any:
    """uint8[T, H, W, 3].

    Raises:
        EncoderMissing: PyAV, or of a gif Pillow, is not there.
        DamageError: No video, or one too large to be true.
    """
    import numpy

    found, size = [], 0
    try:
        for frame in _gif_frames(data) if kind == "gif" else _video_frames(data):
            size += frame.nbytes
            if size > FRAMES_BYTES_MAX:
                raise DamageError(f"a video whose frames take more than {FRAMES_BYTES_MAX:,} bytes")
            found.append(frame)
    except (DamageError, EncoderMissing):
        raise
    except Exception as error:  # libraries raise what they like of bytes that somebody made up
        raise DamageError(f"cannot decode a video of {len(data)} bytes: {error}") from error
    if not found:
        raise DamageError(f"a video of {len(data)} bytes without a frame")
    return numpy.stack(found)


def _gif_frames(data: Buffer) -> Iterator[Any]:
    import numpy

    moving = open_picture(data, ("GIF",))
    from PIL import ImageSequence

    for picture in ImageSequence.Iterator(moving):
        yield numpy.asarray(picture.convert("RGB"))


def _video_frames(data: Buffer) -> Iterator[Any]:
    av = _av()
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        if stream.width * stream.height * 3 > FRAMES_BYTES_MAX:
            raise DamageError(f"a video of {stream.width}×{stream.height}")
        for frame in container.decode(stream):
            yield frame.to_ndarray(format="rgb24")


def _av() -> Any:
    try:
        import av
    except (ImportError, OSError):
        raise EncoderMissing("av", "av", "a video") from None
    return av
