"""Pictures as blobs: pixels of arrays, PIL images and figures, copied once; image files as they are.

Nothing is cast, scaled or encoded here. What the encoder needs to do that later stands in the blob's meta
(docs/media.md#images): "to" (the format of the file), "layout" (what the array's axes are), "mode" (PIL's name for what
the channels mean) and "normalize".
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from .arrays import Fetched
from .blobs import Blob, snapshot

FORMATS = {"png": "png", "jpg": "jpg", "jpeg": "jpg", "bmp": "bmp", "webp": "webp"}
# Limit: pixels along a side that a format can hold (libjpeg's JPEG_MAX_DIMENSION; WebP has 14 bits).
SIDE_MAX = {"jpg": 65_500, "webp": 16_383}

# Modes that an array's channels may be said to have, and how many there are.
MODES = {"L": 1, "I;16": 1, "LA": 2, "RGB": 3, "YCbCr": 3, "HSV": 3, "RGBA": 4, "CMYK": 4}
# What so many channels mean unless the user says otherwise. Two are not among them: nobody could tell what they are.
_GUESSED = {1: "L", 3: "RGB", 4: "RGBA"}

# PIL modes that are stored as they are; others are converted to one of these first.
_PIL_MODES = frozenset({"1", "L", "P", "LA", "RGB", "YCbCr", "HSV", "RGBA", "CMYK", "I", "F", "I;16"})
_PIL_CONVERSIONS = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA", "I;16B": "I", "I;16L": "I", "I;16N": "I"}

# PIL's name of a format to the end of its files' names: what may be stored as it is. AVIF stands last: PIL tries one after
# the other, and an older one stops with KeyError at a format that it does not know.
_FILES = {
    "PNG": "png", "JPEG": "jpg", "MPO": "jpg", "GIF": "gif", "WEBP": "webp", "BMP": "bmp", "TIFF": "tiff", "ICO": "ico",
    "PPM": "ppm", "JPEG2000": "jp2", "AVIF": "avif",
}  # fmt: skip

# How torchvision.utils.make_grid lays out a batch.
GRID_COLUMNS = 8
GRID_PADDING = 2

# An artist in a subfigure in a subfigure, and so on, in a figure.
_FIGURES_AROUND = 8

# The bits of infinity in a float of 16 bits; a NaN has more.
_INFINITY_BITS = {"float16": 0x7C00, "bfloat16": 0x7F80}


class Picture(NamedTuple):
    """A picture's bytes and what a reader wants to know without them."""

    data: Blob
    format: str
    width: int
    height: int

    def described(self) -> dict[str, Any]:
        return {"format": self.format, "width": self.width, "height": self.height, "data": self.data}


def format_of(file_type: str | None, what: str) -> str:
    """The format of the file to be made, png unless the user wants another.

    Raises:
        ValueError: It is none of `FORMATS`.
    """
    if file_type is None:
        return "png"
    found = FORMATS.get(str(file_type).lower().lstrip("."))
    if found is None:
        raise ValueError(f"{what} file_type is {file_type!r}, expected one of {', '.join(FORMATS)}")
    return found


# -- arrays ----------------------------------------------------------------------------------------------------------


def from_array(fetched: Fetched, to: str, mode: str | None, normalize: bool, what: str) -> Picture:
    """An array of pixels.

    Args:
        mode: One of `MODES`, or None: by the number of channels.
        normalize: Whether the encoder may scale what lies within 0 to 1 or -1 to 1 to 0 to 255.

    Raises:
        TypeError: Its elements are no numbers.
        ValueError: Its shape is no image's, `mode` has other channels, it is empty, too large for the format, or has NaN.
    """
    if mode is not None and mode not in MODES:
        raise ValueError(f"{what} mode is {mode!r}, expected one of {', '.join(MODES)} for an array")
    check_dtype(fetched, what)
    array, layout, channels = _shaped(fetched, None if mode is None else MODES[mode], what)
    if mode == "I;16" and array.dtype.str != "<u2":
        raise ValueError(f"{what} mode is 'I;16' for an array of dtype {array.dtype}, expected uint16")
    sizes = dict(zip(layout, array.shape))
    height, width = sizes["H"], sizes["W"]
    if "N" in sizes:
        height, width = grid_size(sizes["N"], height, width)
    _check_side(to, width, height, what)
    _warn_of_alpha(to, mode or _GUESSED[channels], what)
    meta = {
        "media": "image-file", "to": to, "layout": layout, "mode": mode or _GUESSED[channels], "normalize": bool(normalize),
    }  # fmt: skip
    blob = snapshot(array, meta, dtype=fetched.dtype)
    check_numbers(blob, fetched.dtype or array.dtype.name, what)
    return Picture(blob, to, width, height)


def from_mask(fetched: Fetched, what: str) -> Picture:
    """A 2-D array of classes.

    Raises:
        TypeError: It has values that are no number from 0 to 255, or no values.
    """
    import numpy

    array = fetched.array
    if fetched.dtype is not None or array.dtype.kind not in "buif":
        raise TypeError(f"{what} has dtype {fetched.dtype or array.dtype}, expected integers from 0 to 255")
    if not array.size:
        raise TypeError(f"{what} has shape {array.shape}, expected at least one pixel")
    meta = {"media": "mask", "to": "png", "layout": "HW", "mode": "L", "normalize": False}
    blob = snapshot(array, meta)
    if array.dtype.itemsize > 1 or array.dtype.kind == "i":
        # Of the copy: it lies in the cache, in one piece, and nobody else changes it.
        copy = numpy.frombuffer(blob.view(), blob.meta["array"][0])
        with numpy.errstate(invalid="ignore"):
            low, high = copy.min(), copy.max()
        if not (low >= 0 and high <= 255):  # and not NaN
            raise TypeError(f"{what} has values from {low} to {high}, expected from 0 to 255")
    return Picture(blob, "png", array.shape[1], array.shape[0])


def grid_size(count: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of the picture that a batch of `count` images becomes."""
    columns = min(GRID_COLUMNS, count)
    rows = -(-count // columns)
    return rows * (height + GRID_PADDING) + GRID_PADDING, columns * (width + GRID_PADDING) + GRID_PADDING


def check_dtype(fetched: Fetched, what: str) -> None:
    dtype = fetched.dtype or fetched.array.dtype
    if fetched.dtype not in (None, "bfloat16") or fetched.array.dtype.kind not in "buif":
        raise TypeError(f"{what} is given an array of dtype {dtype}, expected bool, integers or floats")


def _shaped(fetched: Fetched, wanted: int | None, what: str) -> tuple[Any, str, int]:
    """The array without axes that say nothing, its layout, and the number of channels."""
    array = fetched.array
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    shape = array.shape
    counts = _GUESSED if wanted is None else (wanted,)
    found: tuple[Any, str, int] | None = None
    if array.ndim == 2 and 1 in counts:
        found = array, "HW", 1
    elif array.ndim == 3:
        # Both kinds are told apart by the number of channels; where both could be, each package has its habit.
        for layout in ("CHW", "HWC") if fetched.is_torch else ("HWC", "CHW"):
            axis = layout.index("C")
            if shape[axis] in counts:
                found = array, layout, shape[axis]
                if shape[axis] == 1:
                    found = array[0] if axis == 0 else array[..., 0], "HW", 1
                break
    elif array.ndim == 4 and fetched.is_torch and shape[1] in counts:
        found = array, "NCHW", shape[1]
    if found is None:
        channels = " or ".join(map(str, counts))
        batch = ", or a batch of images (N, channels, height, width)" if fetched.is_torch else ""
        raise ValueError(
            f"{what} is given an array of shape {fetched.array.shape}, expected (height, width), or that with {channels} "
            f"channels as the last or first axis{batch}"
        )
    if not array.size:
        raise ValueError(f"{what} is given an empty array, of shape {fetched.array.shape}")
    return found


def _check_side(to: str, width: int, height: int, what: str) -> None:
    if max(width, height) > SIDE_MAX.get(to, sys.maxsize):
        raise ValueError(
            f"{what} has {width} × {height} pixels; {to} holds at most {SIDE_MAX[to]} along a side, png any"
        )


def _warn_of_alpha(to: str, mode: str, what: str) -> None:
    if to == "jpg" and mode in ("LA", "RGBA"):
        import warnings

        warnings.warn(f"{what}: jpg has no transparency, so the alpha channel will be left away", stacklevel=6)


def check_numbers(blob: Blob, dtype: str, what: str) -> None:
    """Refuses NaN. Of the copy: it lies in the cache, in one piece, and nobody else changes it."""
    import numpy

    infinity = _INFINITY_BITS.get(dtype)
    if infinity is not None:
        # Why not min(): it takes ten times as long for float16, and numpy does not know bfloat16. As integers, NaNs
        # stand above infinity, the positive ones as int16, the negative ones as uint16.
        has_nan = (
            numpy.frombuffer(blob.view(), "<i2").max() > infinity
            or numpy.frombuffer(blob.view(), "<u2").max() > infinity | 0x8000
        )
    elif blob.meta["array"][0][1] == "f":
        with numpy.errstate(invalid="ignore"):
            has_nan = bool(numpy.isnan(numpy.frombuffer(blob.view(), blob.meta["array"][0]).min()))
    else:
        return
    if has_nan:
        raise ValueError(
            f"{what} is given pixels that are NaN, expected numbers; numpy.nan_to_num(pixels) replaces them"
        )


# -- PIL images, figures, files --------------------------------------------------------------------------------------


def from_pil(image: Any, to: str, what: str) -> Picture:
    """A PIL image of any mode: its pixels, in one copy beside PIL's own.

    Raises:
        OSError: It was opened lazily, and its file cannot be read now.
        ValueError: It is empty, too large for the format, or its mode cannot be stored.
    """
    import numpy

    if image.mode not in _PIL_MODES:
        image = image.convert(_PIL_CONVERSIONS.get(image.mode, "RGB"))
    mode, (width, height) = image.mode, image.size
    if not width * height:
        raise ValueError(f"{what} is given an image of {width} × {height} pixels")
    _check_side(to, width, height, what)
    _warn_of_alpha(to, mode, what)
    # A byte for each pixel, 0 or 255, instead of a bit.
    array = numpy.asarray(image.convert("L") if mode == "1" else image)
    layout = "HW" if array.ndim == 2 else "HWC"
    meta: dict[str, Any] = {"media": "image-file", "to": to, "layout": layout, "mode": mode, "normalize": mode == "F"}
    if mode == "P":
        meta["palette"] = list(image.palette.getdata())
        if isinstance(image.info.get("transparency"), (int, bytes)):
            meta["transparency"] = image.info["transparency"]
    blob = snapshot(array, meta)
    check_numbers(blob, array.dtype.name, what)
    return Picture(blob, to, width, height)


def from_figure(figure: Any, to: str, what: str) -> Picture:
    """A matplotlib figure, drawn as it would be saved, without encoding it. The figure keeps its canvas and its dpi."""
    import numpy
    from matplotlib.backends.backend_agg import RendererAgg

    # Not savefig: its PNG is what costs most beside the drawing; a new canvas would become the figure's own.
    width, height = (int(side) for side in figure.bbox.max)
    renderer = RendererAgg(width, height, figure.dpi)
    figure.draw(renderer)
    _check_side(to, width, height, what)
    meta = {"media": "image-file", "to": to, "layout": "HWC", "mode": "RGBA", "normalize": False}
    return Picture(snapshot(numpy.asarray(renderer.buffer_rgba()), meta), to, width, height)


def figure_of(value: Any) -> Any:
    """The matplotlib figure that a figure, subfigure, axes, other artist or pyplot itself means, or None."""
    module = sys.modules.get("matplotlib.figure")
    if module is None:
        return None
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None and value is pyplot:
        return pyplot.gcf()
    for _ in range(_FIGURES_AROUND):
        if value is None or isinstance(value, module.Figure):
            return value
        value = getattr(value, "figure", None)  # of an artist, of seaborn's grids; a subfigure's is the one around it
    return None


def from_file(data: bytes, media: str, what: str) -> Picture:
    """The content of an image file; only its header is looked at.

    Raises:
        OSError: (PIL.UnidentifiedImageError) It is none, or none of a format that is known here.
    """
    import io

    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(data), formats=[name for name in _FILES if name != "MPO"]) as image:
            known, (width, height) = _FILES[image.format or ""], image.size
    except (PIL.UnidentifiedImageError, KeyError):
        raise PIL.UnidentifiedImageError(
            f"{what} is given {len(data)} bytes that begin {data[:8]!r}, expected an image file: "
            f"{', '.join(dict.fromkeys(_FILES.values()))}"
        ) from None
    return Picture(snapshot(data, {"media": media, "format": known}), known, width, height)
