"""sdk.encoders.image: what a picture's file holds, pixel by pixel."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy
import PIL.Image
import pytest

import sdk
from sdk.encoders import EncoderMissing, encode, to_array
from sdk.encoders import image as encoder
from sdk.errors import DamageError
from sdk.values.blobs import Blob

RNG = numpy.random.default_rng(4)


def blob_of(*arguments: Any, **options: Any) -> Blob:
    found = sdk.Image(*arguments, **options).describe()["data"]
    assert isinstance(found, Blob)
    return found


def file_of(*arguments: Any, **options: Any) -> bytes:
    """The file of an image."""
    blob = blob_of(*arguments, **options)
    encoded = encode(blob.view(), blob.meta)
    assert encoded is not None
    assert encoded.meta == {**blob.meta, "encoding": blob.meta["to"]}
    return bytes(encoded.data)


def pixels_of(*arguments: Any, **options: Any) -> Any:
    return to_array(file_of(*arguments, **options), {"media": "image-file", "format": options.get("file_type", "png")})


def noise(*shape: int) -> Any:
    return RNG.integers(0, 256, shape, "u1")


LAYOUTS = [
    pytest.param(lambda a: a, id="HWC"),
    pytest.param(lambda a: a.transpose(2, 0, 1), id="CHW, a view"),
    pytest.param(lambda a: numpy.ascontiguousarray(a.transpose(2, 0, 1)), id="CHW"),
    pytest.param(lambda a: numpy.ascontiguousarray(a.transpose(2, 0, 1)).transpose(1, 2, 0), id="HWC of CHW"),
    pytest.param(numpy.asfortranarray, id="Fortran's order"),
    pytest.param(lambda a: a[::-1, ::-1][::-1, ::-1], id="turned twice"),
    pytest.param(lambda a: a[None], id="one of a batch"),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("file_type", ["png", "webp", "bmp"])
def test_pixels_of_uint8_come_back(layout: Any, channels: int, file_type: str) -> None:
    """Bit for bit, however they lay in memory; bmp has no transparency."""
    pixels = noise(7, 11, channels)
    if file_type == "webp" and channels == 4:
        pixels[..., 3] |= 1  # WebP does not keep the color of what cannot be seen
    expected = pixels[..., :3] if file_type == "bmp" else pixels
    assert numpy.array_equal(pixels_of(layout(pixels), file_type=file_type), expected)


@pytest.mark.parametrize("file_type", ["png", "bmp", "webp"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 9), (9, 5, 1), (1, 9, 5)])
def test_grey_comes_back(file_type: str, shape: tuple[int, ...]) -> None:
    """webp holds no grey: three equal channels."""
    pixels = noise(*shape)
    flat = pixels.reshape([side for side in shape if side > 1] or [1, 1])
    found = pixels_of(pixels, file_type=file_type)
    assert numpy.array_equal(found[..., 0] if file_type == "webp" else found, flat)


@pytest.mark.parametrize(("mode", "channels"), [("LA", 2), ("RGBA", 4), ("RGB", 3), ("L", 1)])
def test_modes_that_png_holds(mode: str, channels: int) -> None:
    """As they are."""
    pixels = noise(6, 8, channels)
    found = pixels_of(pixels, mode=mode)
    assert numpy.array_equal(found, pixels[..., 0] if channels == 1 else pixels)


@pytest.mark.parametrize(("mode", "channels"), [("CMYK", 4), ("YCbCr", 3), ("HSV", 3)])
def test_modes_that_png_does_not_hold(mode: str, channels: int) -> None:
    """Become RGB, as Pillow converts them."""
    pixels = noise(6, 8, channels)
    expected = PIL.Image.frombytes(mode, (8, 6), pixels.tobytes()).convert("RGB")
    assert numpy.array_equal(pixels_of(pixels, mode=mode), numpy.asarray(expected))


def test_sixteen_bits() -> None:
    """I;16 is kept in png; in others the upper eight bits."""
    pixels = RNG.integers(0, 65536, (5, 7), "u2")
    found = pixels_of(pixels, mode="I;16")
    assert found.dtype == numpy.uint16
    assert numpy.array_equal(found, pixels)
    assert numpy.array_equal(pixels_of(pixels, mode="I;16", file_type="bmp"), (pixels >> 8).astype("u1"))
    assert numpy.array_equal(pixels_of(pixels, mode="I;16", file_type="webp")[..., 1], (pixels >> 8).astype("u1"))


def scaled(value: float, least: float, most: float, normalize: bool) -> int:
    """The rule of docs/media.md, for one number."""
    if normalize and least >= 0 and most <= 1:
        value *= 255
    elif normalize and least >= -1 and most <= 1:
        value = (value + 1) / 2 * 255
    return int(min(max(value, 0), 255))


RANGES = {"0 to 1": (0, 1), "-1 to 1": (-1, 1), "0 to 255": (0, 255), "all": (-128, 127), "beyond": (-1000, 1000)}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("values", RANGES)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "i1", "i2", "i4", "i8", "u2", "u4", "u8", ">i8"])
def test_numbers_become_pixels(dtype: str, values: str, normalize: bool) -> None:
    """Within 0 to 1, within -1 to 1, anything else; of every type; what is beyond is cut, fractions are cut off."""
    low, high = RANGES[values]
    kind = numpy.dtype(dtype)
    if kind.kind in "iu":
        low, high = max(low, numpy.iinfo(kind).min), min(high, numpy.iinfo(kind).max)
    numbers = numpy.linspace(low, high, 600).astype(dtype).reshape(20, 30)
    least, most = float(numbers.min()), float(numbers.max())
    expected = [scaled(float(value), least, most, normalize) for value in numbers.reshape(-1)]
    assert pixels_of(numbers, normalize=normalize).reshape(-1).tolist() == expected


def test_bool() -> None:
    """True is white, or 1 if it is not to be scaled."""
    numbers = noise(4, 4) > 127
    assert numpy.array_equal(pixels_of(numbers), numbers * numpy.uint8(255))
    assert numpy.array_equal(pixels_of(numbers, normalize=False), numbers.astype("u1"))


def test_infinities_and_uint8() -> None:
    """Infinities are cut; uint8 of zeros and ones is not scaled, as W&B does."""
    assert pixels_of(numpy.array([[-numpy.inf, numpy.inf, 7.9]])).tolist() == [[0, 255, 7]]
    assert pixels_of(numpy.array([[0, 1]], "u1")).tolist() == [[0, 1]]


def test_bfloat16() -> None:
    """As the float32 that it is."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    numbers = numpy.linspace(0, 1, 60).astype(ml_dtypes.bfloat16).reshape(6, 10)
    assert numpy.array_equal(pixels_of(numbers), pixels_of(numbers.astype("f4")))


@pytest.mark.parametrize("count", [1, 2, 8, 9, 17])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_a_grid(count: int, channels: int) -> None:
    """Eight in a row, two black pixels between and around them, as torchvision.utils.make_grid does it."""
    batch = noise(count, channels, 3, 5)
    found = encoder.in_rows(batch, "NCHW")
    columns, rows = min(count, 8), -(-count // 8)
    assert found.shape[:2] == (rows * 5 + 2, columns * 7 + 2)
    seen = numpy.zeros(found.shape[:2], bool)
    for index in range(count):
        top, left = 2 + index // 8 * 5, 2 + index % 8 * 7
        picture = found[top : top + 3, left : left + 5]
        assert numpy.array_equal(picture.reshape(3, 5, channels), batch[index].transpose(1, 2, 0))
        seen[top : top + 3, left : left + 5] = True
    assert not found[~seen].any()


def pil(mode: str) -> PIL.Image.Image:
    colors = (
        PIL.Image.fromarray(noise(6, 8, 4), "RGBA") if mode in ("RGBA", "LA") else PIL.Image.fromarray(noise(6, 8, 3))
    )
    if mode == "I":
        return PIL.Image.fromarray(RNG.integers(0, 65536, (6, 8), "i4"))
    if mode == "F":
        return PIL.Image.fromarray(RNG.random((6, 8), "f4"))
    if mode == "I;16":
        return PIL.Image.fromarray(RNG.integers(0, 65536, (6, 8), "u2"))
    return colors.convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"])
def test_pil_images_come_back(mode: str) -> None:
    """The file, opened again, shows the same."""
    image = pil(mode)
    found = PIL.Image.open(io.BytesIO(file_of(image)))
    if mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        assert found.mode == mode
        assert numpy.array_equal(numpy.asarray(found.convert("RGBA")), numpy.asarray(image.convert("RGBA")))
    else:
        assert numpy.array_equal(numpy.asarray(found), numpy.asarray(image).astype("u2"))


@pytest.mark.parametrize("transparency", [3, bytes(range(0, 250, 10))])
def test_a_palette_with_transparency(transparency: int | bytes) -> None:
    """An index, or a byte for each color: it is as transparent as it was."""
    image = pil("P")
    image.info["transparency"] = transparency
    found = PIL.Image.open(io.BytesIO(file_of(image)))
    assert numpy.array_equal(numpy.asarray(found.convert("RGBA")), numpy.asarray(image.convert("RGBA")))
    assert to_array(file_of(image), {"media": "image-file"}).shape == (6, 8, 4)


def test_floats_of_pil() -> None:
    """Within 0 to 1 they are scaled."""
    image = pil("F")
    assert numpy.array_equal(pixels_of(image), (numpy.asarray(image).astype("f8") * 255).astype("u1"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "F", "I;16", "I", "YCbCr", "CMYK", "HSV"])
@pytest.mark.parametrize("file_type", ["jpg", "bmp", "webp", "png"])
def test_every_mode_in_every_format(mode: str, file_type: str) -> None:
    """Each pair gives a picture of the right size."""
    image = pil(mode) if mode not in ("YCbCr", "CMYK", "HSV") else pil("RGB").convert(mode)
    assert pixels_of(image, file_type=file_type).shape[:2] == (6, 8)


def test_jpg_is_near() -> None:
    """A smooth picture differs by a few steps; its transparency is gone."""
    ramp = numpy.linspace(0, 255, 64 * 64, dtype="u1").reshape(64, 64, 1).repeat(3, 2)
    found = pixels_of(ramp, file_type="jpg").astype(int)
    assert numpy.abs(found - ramp).max() < 12
    with pytest.warns(UserWarning, match="transparency"):
        assert pixels_of(noise(8, 8, 4), file_type="jpg").shape == (8, 8, 3)


def test_masks_are_not_scaled() -> None:
    """Classes 0 and 1 stay 0 and 1, of any type."""
    classes = RNG.integers(0, 2, (5, 6))
    image = sdk.Image(noise(5, 6), masks={"m": {"mask_data": classes}})
    blob = image.describe()["masks"]["m"].describe()["data"]
    encoded = encode(blob.view(), blob.meta)
    assert encoded is not None
    assert numpy.array_equal(to_array(encoded.data, encoded.meta), classes)


def test_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """EncoderMissing names the package and how to get it, on both ways."""
    data = file_of(noise(3, 3))
    blob = blob_of(noise(3, 3))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(EncoderMissing, match=r"pillow.*not installed") as caught:
        encode(blob.view(), blob.meta)
    assert (caught.value.package, "pip install pillow" in str(caught.value)) == ("pillow", True)
    with pytest.raises(EncoderMissing):
        to_array(data, {"media": "image-file"})


def test_a_picture_too_large_to_be_true(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its header alone; a large one that is true is read, beyond what Pillow takes for an attack."""
    monkeypatch.setattr(encoder, "PIXELS_MAX", 99)
    assert to_array(file_of(noise(9, 11)), {"media": "image-file"}).shape == (9, 11)
    with pytest.raises(DamageError, match="10×10, expected at most 99 pixels"):
        to_array(file_of(noise(10, 10)), {"media": "image-file"})
    monkeypatch.setattr(encoder, "PIXELS_MAX", 1 << 30)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)
    assert to_array(file_of(noise(10, 10)), {"media": "image-file"}).shape == (10, 10)
    assert PIL.Image.MAX_IMAGE_PIXELS == 10
