"""sdk.Video: frames arrive bit for bit and are copied once; files are stored as they are; bad ones raise what W&B raises."""

from __future__ import annotations

import io
import pathlib
import types
import warnings
from typing import Any

import numpy
import pytest

import sdk
from sdk.values.blobs import as_array, stage_in
from sdk.values.video import grid_of

FRAMES = numpy.random.default_rng(7).integers(0, 256, (5, 3, 8, 6), dtype=numpy.uint8)
FILES = {"gif": b"GIF89a\0", "mp4": b"\0\0\0\x20ftypisom", "webm": b"\x1a\x45\xdf\xa3\x9f", "ogg": b"OggS\0\2"}


def array_of(video: sdk.Video) -> Any:
    blob = video.describe()["data"]
    return as_array(blob.view(), blob.meta["array"])


def test_frames() -> None:
    """What the encoder must know stands in the meta, what a reader wants to see in the map."""
    video = sdk.Video(FRAMES, caption="c", fps=30, format="mp4")
    described = video.describe()
    blob = described.pop("data")
    assert described == {"caption": "c", "fps": 30, "frames": 5, "width": 6, "height": 8, "format": "mp4"}
    assert blob.meta == {
        "media": "video-file", "to": "mp4", "fps": 30, "layout": "TCHW", "grid": [1, 1], "normalize": False,
        "array": ["|u1", [5, 3, 8, 6], None],
    }  # fmt: skip
    assert numpy.array_equal(array_of(video), FRAMES)
    assert video.format == "mp4"


def test_the_defaults() -> None:
    """A gif of four frames a second; half a frame a second may be said."""
    described = sdk.Video(FRAMES).describe()
    assert (described["format"], described["fps"], "caption" in described) == ("gif", 4, False)
    assert sdk.Video(FRAMES, fps=0.5).describe()["fps"] == 0.5
    assert sdk.Video(FRAMES, fps=numpy.float32(2)).describe()["fps"] == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "grid"),
    [(1, (1, 1)), (2, (1, 2)), (3, (1, 4)), (4, (2, 2)), (5, (2, 4)), (8, (2, 4)), (9, (2, 8)), (16, (4, 4))],
)
def test_a_batch_is_a_grid(count: int, grid: tuple[int, int]) -> None:
    """As many rows and columns as W&B makes, and all videos have a place."""
    assert grid_of(count) == grid
    video = sdk.Video(numpy.zeros((count, 2, 1, 8, 6), "u1"))
    described = video.describe()
    assert (described["height"], described["width"], described["frames"]) == (8 * grid[0], 6 * grid[1], 2)
    assert described["data"].meta["layout"] == "BTCHW"
    assert described["data"].meta["grid"] == list(grid)


def test_a_view_is_copied_in_the_order_of_its_memory() -> None:
    """Frames with their channels last, seen as they are wanted, cost one plain copy."""
    frames = numpy.ascontiguousarray(FRAMES.transpose(0, 2, 3, 1))
    video = sdk.Video(frames.transpose(0, 3, 1, 2))
    assert bytes(video.describe()["data"].view()) == frames.tobytes()
    assert numpy.array_equal(array_of(video), FRAMES)


def test_the_source_may_change_afterwards() -> None:
    """The one copy is taken when the video is made, and there is one."""
    asked: list[int] = []
    stage_in(lambda size: asked.append(size))  # type: ignore[func-returns-value]
    try:
        source = numpy.ones((8, 3, 64, 64), "u1")
        video = sdk.Video(source)
    finally:
        stage_in(None)
    source[:] = 0
    assert array_of(video).all()
    assert asked == [source.nbytes]


@pytest.mark.parametrize("dtype", ["?", "i8", "f2", "f4", "f8", "u2"])
def test_other_numbers_are_kept_and_told(dtype: str) -> None:
    """The cast to uint8 comes later; the warning says what it does, and where the video was made."""
    frames = (FRAMES / 255).astype(dtype)
    with pytest.warns(UserWarning, match="cut to 0 to 255") as told:
        video = sdk.Video(frames)
    assert array_of(video).tobytes() == frames.tobytes()
    assert told[0].filename == __file__


def test_a_tensor_that_says_it_is_one() -> None:
    """TensorFlow's, and whoever has `numpy()` like it."""
    video = sdk.Video(types.SimpleNamespace(numpy=lambda: FRAMES))
    assert numpy.array_equal(array_of(video), FRAMES)


@pytest.mark.parametrize("kind", FILES)
def test_files_are_stored_as_they_are(tmp_path: pathlib.Path, kind: str) -> None:
    """By path as str and pathlib, as bytes, BytesIO and open; whether or not the fps is given, which is told to be idle."""
    path = tmp_path / f"a.{kind.upper()}"
    path.write_bytes(FILES[kind])
    with open(path, "rb") as file, open(path) as text:
        videos = [
            sdk.Video(str(path)), sdk.Video(path), sdk.Video(FILES[kind], format=kind), sdk.Video(file, format=kind),
            sdk.Video(io.BytesIO(FILES[kind]), format=kind, caption="c"), sdk.Video(text, format=kind),
        ]  # fmt: skip
    path.write_bytes(b"changed")
    for video in videos:
        described = video.describe()
        assert bytes(described["data"].view()) == FILES[kind]
        assert described["data"].meta == {"media": "video-file", "format": kind}
        assert described["format"] == kind
    with pytest.warns(UserWarning, match="fps") as told:
        sdk.Video(FILES[kind], format=kind, fps=4)
    assert told[0].filename == __file__


def test_the_content_says_more_than_the_name(tmp_path: pathlib.Path) -> None:
    """A gif under the name of an mp4 is a gif; what is not known is what its name says."""
    path = tmp_path / "a.mp4"
    path.write_bytes(FILES["gif"])
    assert sdk.Video(path).format == "gif"
    path.write_bytes(b"\0\0\0\x08wide")
    assert sdk.Video(path).format == "mp4"


@pytest.mark.parametrize(
    ("data", "options", "error", "text"),
    [
        (numpy.zeros((3, 8, 8), "u1"), {}, ValueError, r"shape \(3, 8, 8\), expected 4 axes"),
        (numpy.zeros((1, 1, 2, 3, 8, 8), "u1"), {}, ValueError, "expected 4 axes"),
        (numpy.zeros((0, 3, 8, 8), "u1"), {}, ValueError, "empty"),
        (numpy.zeros((2, 3, 0, 8), "u1"), {}, ValueError, "empty"),
        (numpy.zeros((2, 8, 8, 3), "u1"), {}, ValueError, r"frames.transpose\(0, 3, 1, 2\)"),
        (numpy.zeros((1, 2, 8, 8, 3), "u1"), {}, ValueError, r"frames.transpose\(0, 1, 4, 2, 3\)"),
        (numpy.zeros((2, 5, 8, 8), "u1"), {}, ValueError, "5 channels"),
        (numpy.array([[[[None]]]]), {}, TypeError, "object"),
        (numpy.zeros((2, 3, 8, 8), "c8"), {}, TypeError, "complex64"),
        (FRAMES, {"format": "avi"}, ValueError, "'avi'.*gif, mp4, webm"),
        (FRAMES, {"format": "ogg"}, ValueError, "gif, mp4, webm for an array"),
        (FRAMES, {"fps": -1}, ValueError, "fps is -1"),
        (b"GIF89a", {}, ValueError, "needs a format"),
        (b"GIF89a", {"format": "avi"}, ValueError, "'avi'"),
        (b"", {"format": "gif"}, ValueError, "empty"),
        ("/nowhere/a.avi", {}, ValueError, "'avi'"),
        (__file__, {}, ValueError, "'py'"),
        ("/nowhere/a.mp4", {}, FileNotFoundError, "a.mp4"),
        ("s3://bucket/a.mp4", {}, ValueError, "not on this machine"),
        ([[1, 2]], {}, ValueError, "list"),
        (None, {}, ValueError, "NoneType"),
    ],
)
def test_bad_videos(data: Any, options: Any, error: type[Exception], text: str) -> None:
    """The error that the reference names, and what was expected."""
    with pytest.raises(error, match=text):
        sdk.Video(data, **options)


def test_frames_that_are_nan() -> None:
    """Nobody can say what color they have."""
    frames = numpy.zeros((2, 1, 4, 4), "f4")
    frames[1, 0, 2, 2] = numpy.nan
    with warnings.catch_warnings(), pytest.raises(ValueError, match="NaN"):
        warnings.simplefilter("ignore")
        sdk.Video(frames)


def test_logged(world: Any, tmp_path: pathlib.Path) -> None:
    """Alone and in lists; large ones stand apart. A bad one ends a run only where it was not asked to go on."""
    run = sdk.init()
    large = numpy.ones((4, 3, 64, 64), "u1")
    run.log({"v": sdk.Video(large, fps=2), "list": [sdk.Video(FRAMES), sdk.Video(FRAMES[:2])]})
    row = world.rows[0]
    assert row["v"]["_type"] == "video-file"
    assert world.rows.runs[0].streams[0].blobs[row["v"]["data"].number].data == large.tobytes()
    assert [one["frames"] for one in row["list"]] == [5, 2]
    assert row["list"][1]["data"].data == FRAMES[:2].tobytes()
    sdk.finish()
    sdk.init(misuse="warn")
    sdk.log({"v": sdk.Video("/nowhere/a.mp4"), "loss": 1})
    assert world.rows.runs[1].rows() == [{"loss": 1}]
