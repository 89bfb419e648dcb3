"""sdk.encoders.video: what a video's file shows."""

from __future__ import annotations

import io
import sys
from fractions import Fraction
from typing import Any

import numpy
import PIL.Image
import pytest

import sdk
from sdk.encoders import EncoderMissing, encode, to_array
from sdk.encoders import video as encoder
from sdk.errors import DamageError

av = pytest.importorskip("av")

# Large areas of few colors: what neither 256 colors nor a codec changes by much.
RED, GREEN, GREY = (200, 30, 40), (20, 180, 60), (90, 90, 90)


def frames_of(count: int, height: int, width: int, channels: int = 3) -> Any:
    """uint8[T, C, H, W]: a bar on the left grows with time."""
    made = numpy.zeros((count, height, width, 3), "u1")
    for index in range(count):
        made[index] = GREEN
        made[index, :, : 2 + (width - 4) * index // max(count - 1, 1)] = RED
    if channels == 1:
        return made[..., :1].transpose(0, 3, 1, 2)
    extra = numpy.full((count, height, width, channels - 3), 255, "u1")
    return numpy.concatenate([made, extra], axis=-1).transpose(0, 3, 1, 2)


def encoded(frames: Any, to: str, fps: float | None = None) -> tuple[bytes, dict[str, Any]]:
    blob = sdk.Video(frames, fps=fps, format=to).describe()["data"]
    found = encode(blob.view(), blob.meta)
    assert found is not None
    assert found.meta["encoding"] == to
    return bytes(found.data), found.meta


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(32, 48), (33, 47), (1, 1), (2, 65)])
@pytest.mark.parametrize("to", ["gif", "mp4", "webm"])
def test_frames_come_back(to: str, size: tuple[int, int], channels: int) -> None:
    """Nearly; odd sides become even in mp4 and webm by repeating the last line; alpha is left away."""
    height, width = size
    frames = frames_of(3, height, width, channels)
    found = to_array(*encoded(frames, to)).astype(int)
    shown = numpy.repeat(frames, 3, axis=1) if channels == 1 else frames[:, :3]
    shown = shown.transpose(0, 2, 3, 1).astype(int)
    if to != "gif":
        assert found.shape == (3, height + height % 2, width + width % 2, 3)
    if min(size) >= 32:
        # Not at the edge of the bar: the usual pixels of a video share their color with three neighbours.
        difference = numpy.abs(found[:, :height, :width] - shown[: len(found)])
        assert numpy.median(difference) <= 6
        assert (difference.max(axis=-1) > 40).mean() < 0.15


@pytest.mark.parametrize("to", ["mp4", "webm"])
@pytest.mark.parametrize("fps", [None, 4, 30, 29.97, 0.5])
def test_frames_a_second(to: str, fps: float | None) -> None:
    """As asked, 4 if not."""
    data, _ = encoded(frames_of(6, 16, 16), to, fps)
    with av.open(io.BytesIO(data)) as container:
        rate = container.streams.video[0].average_rate
        assert sum(1 for _ in container.decode(video=0)) == 6
    assert float(rate) == pytest.approx(float(Fraction(fps or 4)), rel=0.02)


@pytest.mark.parametrize(("fps", "milliseconds"), [(None, 250), (10, 100), (1000, 20), (0.5, 2000)])
def test_a_gif(fps: float | None, milliseconds: int) -> None:
    """Plays for ever; never faster than players can."""
    data, _ = encoded(frames_of(3, 8, 9), "gif", fps)
    image = PIL.Image.open(io.BytesIO(data))
    assert (image.n_frames, image.info["duration"], image.info["loop"]) == (3, milliseconds, 0)


@pytest.mark.parametrize("fps", [1e-9, 1e9])
@pytest.mark.parametrize("to", ["gif", "mp4", "webm"])
def test_absurd_speeds(to: str, fps: float) -> None:
    """Are encoded as well as the format can."""
    assert len(to_array(*encoded(frames_of(2, 8, 8), to, fps)))


@pytest.mark.filterwarnings("ignore:Video")
@pytest.mark.parametrize("dtype", ["f4", "i8", "i1", "?"])
def test_numbers_are_cut_not_scaled(dtype: str) -> None:
    """What lies within 0 to 1 is nearly black."""
    frames = numpy.ones((2, 1, 16, 16), dtype)
    assert to_array(*encoded(frames, "gif")).max() == 1


@pytest.mark.parametrize(("count", "grid"), [(1, [1, 1]), (2, [1, 2]), (3, [1, 4]), (5, [2, 4])])
def test_a_batch_is_a_grid(count: int, grid: list[int]) -> None:
    """Each video at its place; what no video fills is black."""
    batch = numpy.stack([numpy.full((2, 3, 8, 8), 40 * (index + 1), "u1") for index in range(count)])
    blob = sdk.Video(batch, format="gif").describe()["data"]
    found = encoder._frames(blob.view(), blob.meta)
    rows, columns = grid
    assert list(blob.meta["grid"]) == grid
    assert found.shape == (2, 8 * rows, 8 * columns, 3)
    for index in range(rows * columns):
        tile = found[:, index // columns * 8 :, index % columns * 8 :][:, :8, :8]
        assert set(tile.reshape(-1).tolist()) == {40 * (index + 1) if index < count else 0}


def test_a_grid_that_is_too_small() -> None:
    """Is no video."""
    blob = sdk.Video(numpy.zeros((4, 2, 3, 8, 8), "u1")).describe()["data"]
    with pytest.raises(DamageError, match="4 videos in a grid of 1 × 1"):
        encode(blob.view(), {**blob.meta, "grid": [1, 1]})


def test_without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyAV is named for mp4 and webm, Pillow for gif; a build without the codecs says which."""
    gif, video = encoded(frames_of(2, 8, 8), "gif"), encoded(frames_of(2, 8, 8), "mp4")
    with monkeypatch.context() as patch:
        patch.setattr(av, "codecs_available", frozenset({"mjpeg"}))
        with pytest.raises(EncoderMissing, match="libx264 or mpeg4"):
            encoded(frames_of(2, 8, 8), "mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    for to, package in (("mp4", "av"), ("webm", "av"), ("gif", "pillow")):
        with pytest.raises(EncoderMissing) as caught:
            encoded(frames_of(2, 8, 8), to)
        assert caught.value.package == package
    for file in (gif, video):
        with pytest.raises(EncoderMissing):
            to_array(*file)


@pytest.mark.parametrize("to", ["gif", "mp4"])
def test_a_video_too_large_to_be_true(monkeypatch: pytest.MonkeyPatch, to: str) -> None:
    """Its frames are counted while they are decoded."""
    data, meta = encoded(frames_of(5, 16, 16), to)
    monkeypatch.setattr(encoder, "FRAMES_BYTES_MAX", 16 * 16 * 3 * 4)
    with pytest.raises(DamageError, match="more than"):
        to_array(data, meta)
