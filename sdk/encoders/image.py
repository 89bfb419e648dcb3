"""Pictures with Pillow; the rules from numbers to pixels are those of docs/media.md#images."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from ..dtypes import widened
from ..errors import DamageError
from ..files import Buffer
from ..values.blobs import as_array
from . import Encoded, EncoderMissing

# Limit: pixels of one picture, 4 GiB of RGBA; checked before anything is decoded.
PIXELS_MAX = 1 << 30
# What Pillow may take stored bytes for: what `Image` stores, and none that is a program.
_READ = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "ICO", "PPM", "JPEG2000", "AVIF")
# Pillow has a limit of its own, for the whole process, which a picture of 14 000 by 14 000 exceeds; while it is away, nobody
# of us may find it away and put that back.
_opening = threading.Lock()
# How each format is written. Level 1 takes half the time of 6 for 512 x 512 and a tenth more bytes.
_WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {"compress_level": 1}),
    "jpg": ("JPEG", {"quality": 90}),
    "webp": ("WEBP", {"lossless": True, "quality": 0, "method": 0}),
    "bmp": ("BMP", {}),
}
# The modes that a format holds, and what the others become: without transparency, with it.
_HELD = {
    "png": ({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}, "RGB", "RGBA"),
    "jpg": ({"L", "RGB"}, "RGB", "RGB"),
    "webp": ({"RGB", "RGBA"}, "RGB", "RGBA"),
    "bmp": ({"1", "L", "P", "RGB"}, "RGB", "RGB"),
}


def encode(raw: Buffer, meta: Mapping[str, Any]) -> Encoded:
    """The picture file."""
    to = str(meta["to"])
    name, options = _WRITTEN[to]
    out = io.BytesIO()
    _fitting(_picture(raw, meta), to).save(out, name, **options)
    return Encoded(out.getbuffer(), {**meta, "encoding": to})


def _picture(raw: Buffer, meta: Mapping[str, Any]) -> Any:
    """A PIL.Image of an array."""
    image = _pillow()
    mode = str(meta.get("mode", "L"))
    array = in_rows(widened(as_array(raw, meta["array"]), meta["array"][0]), str(meta.get("layout", "HW")))
    if mode == "I;16" and array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return image.fromarray(_whole(array))
    if mode == "I":
        return image.fromarray(_whole(array.clip(0, 65535).astype("<u2")))
    array = _whole(pixels(array, normalize=bool(meta.get("normalize", True))))
    if mode in ("L", "F", "1", "I;16"):
        picture = image.fromarray(array)
        return picture.convert("1", dither=0) if mode == "1" else picture
    if mode == "P":
        picture = image.frombytes("P", array.shape[::-1], array.tobytes())
        palette = meta.get("palette")
        if palette is not None:
            picture.putpalette(palette[1], palette[0])
        if meta.get("transparency") is not None:
            picture.info["transparency"] = meta["transparency"]
        return picture
    return image.frombytes(mode, array.shape[1::-1], array.tobytes())


def _whole(array: Any) -> Any:
    import numpy

    return numpy.ascontiguousarray(array)


def in_rows(array: Any, layout: str) -> Any:
    """[H, W] or [H, W, channels] of an array whose axes `layout` names; of a batch, the grid that shows it."""
    if layout == "CHW":
        return array.transpose(1, 2, 0)
    return _grid(array) if layout == "NCHW" else array


def _grid(batch: Any) -> Any:
    """A batch as torchvision.utils.make_grid lays it out: eight in a row, two black pixels between and around them."""
    import numpy

    from ..values.pixels import GRID_COLUMNS, GRID_PADDING

    count, channels, height, width = batch.shape
    columns = min(GRID_COLUMNS, count)
    rows = -(-count // columns)
    pitch = height + GRID_PADDING, width + GRID_PADDING
    grid = numpy.zeros((rows * pitch[0] + GRID_PADDING, columns * pitch[1] + GRID_PADDING, channels), batch.dtype)
    for index in range(count):
        top, left = index // columns * pitch[0] + GRID_PADDING, index % columns * pitch[1] + GRID_PADDING
        grid[top : top + height, left : left + width] = batch[index].transpose(1, 2, 0)
    return grid[:, :, 0] if channels == 1 else grid


def pixels(array: Any, *, normalize: bool) -> Any:
    """uint8 of numbers: unchanged if they are that; else scaled from 0..1 or -1..1 where all lie within, cut to 0..255.

    Args:
        normalize: Whether to scale.
    """
    import numpy

    if array.dtype == numpy.uint8:
        return array
    if array.dtype == bool:
        return array.astype("u1") * (255 if normalize else 1)
    if normalize and array.size:
        least, most = array.min(), array.max()
        # Why the type is named: numpy 1 would go on in float16.
        if least >= 0 and most <= 1:
            array = numpy.multiply(array, 255, dtype="f8")
        elif least >= -1 and most <= 1:
            array = numpy.add(array, 1, dtype="f8") / 2 * 255
    # int8 knows no 255, and some versions of numpy refuse to compare it.
    most = 127 if array.dtype == numpy.int8 else 255
    return numpy.clip(array, 0, most).astype("u1")


def _fitting(picture: Any, to: str) -> Any:
    """The picture in a mode that the format holds."""
    held, plain, transparent = _HELD[to]
    if picture.mode in held:
        return picture
    if picture.mode == "I;16":
        import numpy

        # Why not convert: Pillow cuts 16 bits off at 255.
        picture = _pillow().fromarray((numpy.asarray(picture) >> 8).astype("u1"))
        return picture if "L" in held else picture.convert(plain)
    has_alpha = picture.mode in ("LA", "RGBA") or "transparency" in picture.info
    return picture.convert(transparent if has_alpha else plain)


def to_array(data: Buffer) -> Any:
    """uint8 or uint16 [H, W] or [H, W, channels]; of a palette the colors, of a moving picture the first frame.

    Raises:
        EncoderMissing: Pillow is not there.
        DamageError: No picture, or one too large to be true.
    """
    import numpy

    picture = open_picture(data)
    try:
        if picture.mode in ("P", "PA", "CMYK", "YCbCr", "HSV", "La", "RGBa"):
            picture = picture.convert(
                "RGBA" if "transparency" in picture.info or "a" in picture.mode.lower() else "RGB"
            )
        array = numpy.asarray(picture)
    except Exception as error:  # a palette that somebody made up
        raise DamageError(f"cannot decode a picture of {len(data)} bytes: {error}") from error
    return array.astype("u1") * 255 if array.dtype == bool else array


def open_picture(data: Buffer, formats: Sequence[str] = _READ) -> Any:
    """A loaded PIL.Image.

    Args:
        formats: What Pillow may take the bytes for.

    Raises:
        EncoderMissing, DamageError: As `to_array`.
    """
    image = _pillow()
    try:
        with _opening:
            usual, image.MAX_IMAGE_PIXELS = image.MAX_IMAGE_PIXELS, None
            try:
                picture = image.open(io.BytesIO(data), formats=formats)
            finally:
                image.MAX_IMAGE_PIXELS = usual
        if picture.width * picture.height > PIXELS_MAX:
            raise DamageError(f"a picture of {picture.width}×{picture.height}, expected at most {PIXELS_MAX:,} pixels")
        picture.load()
    except DamageError:
        raise
    except Exception as error:  # Pillow raises what it likes of bytes that somebody made up
        raise DamageError(f"cannot decode a picture of {len(data)} bytes: {error}") from error
    return picture


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise EncoderMissing("pillow", "pillow", "a picture") from None
    return Image
