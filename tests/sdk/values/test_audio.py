"""sdk.Audio: samples arrive bit for bit and are copied once; files are stored as they are; bad ones raise."""

from __future__ import annotations

import io
import pathlib
import sys
import types
from typing import Any

import numpy
import pytest

import sdk
from sdk.values.blobs import as_array

TONE = numpy.sin(numpy.arange(800) / 9).astype("f4")
FILES = {
    "wav": b"RIFF\x24\0\0\0WAVEfmt ", "flac": b"fLaC\0\0", "ogg": b"OggS\0\2", "mp3": b"ID3\4\0", "aiff": b"FORM\0\0\0\1AIFF",
    "m4a": b"\0\0\0\x20ftypM4A ", "webm": b"\x1a\x45\xdf\xa3\x9f",
}  # fmt: skip


def array_of(audio: sdk.Audio) -> Any:
    blob = audio.describe()["data"]
    return as_array(blob.view(), blob.meta["array"])


@pytest.mark.parametrize("dtype", ["u1", "<i2", "<i4", "<f2", "<f4", "<f8", ">f4"])
@pytest.mark.parametrize("shape", [(800,), (400, 2)])
def test_samples(dtype: str, shape: tuple[int, ...]) -> None:
    """Every type of sample, in one channel or several, is kept as it is."""
    given = (TONE * 100).astype(dtype).reshape(shape)
    audio = sdk.Audio(given, sample_rate=400, caption="c")
    described = audio.describe()
    blob = described.pop("data")
    assert described == {
        "caption": "c", "sample_rate": 400, "channels": 1 if len(shape) == 1 else 2, "duration": shape[0] / 400, "format": "wav",
    }  # fmt: skip
    assert {name: blob.meta[name] for name in ("media", "to", "sample_rate")} == {
        "media": "audio-file", "to": "wav", "sample_rate": 400,
    }  # fmt: skip
    assert numpy.array_equal(array_of(audio), given)
    given[:] = 0
    assert array_of(audio).any()


def test_lists_and_foreign_arrays() -> None:
    """A list of floats, one of frames, and whoever has `numpy()`."""
    assert numpy.array_equal(array_of(sdk.Audio([0.0, 0.5], 8000)), [0.0, 0.5])
    assert array_of(sdk.Audio([[0.0, 0.5], [1.0, 0.25]], 8000)).shape == (2, 2)
    assert numpy.array_equal(array_of(sdk.Audio(types.SimpleNamespace(numpy=lambda: TONE), 8000)), TONE)


def test_a_file_type() -> None:
    """Samples may become FLAC or OGG as well."""
    for kind in ("flac", "ogg"):
        audio = sdk.Audio(TONE, 8000, file_type=kind)
        assert audio.format == audio.describe()["data"].meta["to"] == kind


def test_what_wandb_says_of_a_list_of_sounds() -> None:
    """Durations, where they are known, and rates."""
    sounds = [sdk.Audio(TONE, 400), sdk.Audio(FILES["wav"], sample_rate=22050)]
    assert sdk.Audio.durations(sounds) == [2.0, None]
    assert sdk.Audio.sample_rates(sounds) == [400, 22050]


@pytest.mark.parametrize("kind", FILES)
def test_files_are_stored_as_they_are(tmp_path: pathlib.Path, kind: str) -> None:
    """By path, as bytes and open; the first bytes say what they are, whatever the name says."""
    path = tmp_path / "a.bin"
    path.write_bytes(FILES[kind])
    with open(path, "rb") as file:
        sounds = [
            sdk.Audio(str(path)),
            sdk.Audio(path),
            sdk.Audio(FILES[kind]),
            sdk.Audio(io.BytesIO(FILES[kind])),
            sdk.Audio(file),
        ]
    path.write_bytes(b"changed")
    for audio in sounds:
        described = audio.describe()
        assert bytes(described["data"].view()) == FILES[kind]
        assert described["data"].meta == {"media": "audio-file", "format": kind}
        assert described == {"format": kind, "data": described["data"]}


@pytest.mark.parametrize(
    ("name", "kind"), [("a.mp3", "mp3"), ("a.AIF", "aiff"), ("a.oga", "ogg"), ("a.aac", "aac"), ("a.opus", "opus")]
)
def test_names_say_what_first_bytes_do_not(tmp_path: pathlib.Path, name: str, kind: str) -> None:
    """Many files of these formats begin with anything; Opus lies in ogg."""
    (tmp_path / name).write_bytes(FILES["ogg"] if kind == "opus" else b"\xff\xf1..")
    assert sdk.Audio(tmp_path / name, sample_rate=1).format == kind


@pytest.mark.parametrize(
    ("data", "options", "error", "text"),
    [
        (TONE, {}, ValueError, "sample_rate"),
        ([0.5], {}, ValueError, "sample_rate"),
        (TONE, {"sample_rate": 0}, ValueError, "sample_rate is 0"),
        (TONE, {"sample_rate": 0.5}, ValueError, "whole number"),
        (TONE, {"sample_rate": 1, "file_type": "mp3"}, ValueError, "'mp3'.*wav, flac, ogg"),
        (TONE.reshape(2, 2, 200), {"sample_rate": 1}, ValueError, "shape"),
        (TONE[:0], {"sample_rate": 1}, ValueError, "no samples"),
        ([], {"sample_rate": 1}, ValueError, "no samples"),
        ([[0.0, 1.0], [0.0]], {"sample_rate": 1}, ValueError, "differ in length"),
        (numpy.zeros((2, 2000), "f4"), {"sample_rate": 1}, ValueError, r"2000 channels.*samples\.T"),
        (numpy.zeros((10, 9), "f4"), {"sample_rate": 1, "file_type": "flac"}, ValueError, "at most 8$"),
        (numpy.zeros(3, "i8"), {"sample_rate": 1}, TypeError, "int64.*astype"),
        ([None], {"sample_rate": 1}, TypeError, "object"),
        (object(), {"sample_rate": 1}, ValueError, "object"),
        (b"", {}, ValueError, "empty"),
        (b"what is this", {}, ValueError, "what is"),
        (__file__, {}, ValueError, "expected a sound file"),
        ("/nowhere/a.wav", {}, FileNotFoundError, "a.wav"),
        ("https://example.org/a.wav", {}, ValueError, "not on this machine"),
    ],
)
def test_bad_sounds(data: Any, options: Any, error: type[Exception], text: str) -> None:
    """The error that the reference names, and what was expected."""
    with pytest.raises(error, match=text):
        sdk.Audio(data, **options)


def test_bfloat16_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A type that numpy has no name for keeps its bits."""
    torch: Any = types.ModuleType("torch")

    class Tensor:
        device, dtype, is_quantized = types.SimpleNamespace(type="cpu"), "torch.bfloat16", False

        def detach(self) -> Any:
            return self

        cpu = detach

        def view(self, kind: Any) -> Any:
            return types.SimpleNamespace(numpy=lambda: numpy.arange(4, dtype="i2"))

    Tensor.__module__ = "torch"
    torch.Tensor, torch.int16, torch.uint8 = Tensor, "i2", "u1"
    monkeypatch.setitem(sys.modules, "torch", torch)
    blob = sdk.Audio(Tensor(), 8000).describe()["data"]
    assert blob.meta["array"] == ["bfloat16", [4], None]
    assert bytes(blob.view()) == numpy.arange(4, dtype="<u2").tobytes()


def test_logged(world: Any) -> None:
    """It reads back with what was said of it."""
    sdk.init()
    sdk.log({"a": sdk.Audio(TONE, 400, "tone")})
    assert world.rows[0]["a"]["duration"] == 2
    assert world.rows[0]["a"]["data"].data == TONE.tobytes()
