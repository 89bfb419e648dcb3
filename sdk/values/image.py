"""Images: `sdk.Image`, and what lies over them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from . import pixels, sources
from .annotations import BoundingBoxes2D, Classes, ImageMask
from .arrays import fetch_array
from .media import Media

_WHAT = "Image()"


class Image(Media):
    """One image. Its pixels are copied here, once, and encoded later, in another process (docs/media.md#images).

    Args:
        data_or_path: One of
            an array of numpy, torch, jax or TensorFlow: number[H, W], number[H, W, C] or number[C, H, W] with C = 1, 3 or
            4 (numpy: C is the last axis where both could be it; torch: the first), or a batch of torch's [N, C, H, W],
            which becomes one picture of eight columns; leading axes of size 1 are left away;
            a PIL image of any mode;
            a matplotlib figure, axes or pyplot: drawn here, which takes 10 to 50 ms;
            the path of an image file, its bytes, or the file open for reading: stored as they are;
            another Image: the same bytes, without boxes and masks.
        mode: What an array's channels mean, by PIL's name: L, LA, RGB, RGBA, CMYK, YCbCr, HSV, or I;16 for uint16.
        caption: A label.
        grouping: A number that belongs to the image; stored.
        classes: `Classes`, or maps with "id" and "name"; those of boxes and masks are added.
        boxes: Name to `BoundingBoxes2D` or the map that makes one.
        masks: Name to `ImageMask` or the map that makes one.
        file_type: png (lossless), jpg, jpeg, bmp or webp: the format that pixels get; files keep theirs.
        normalize: Values of any type but uint8: all within 0 to 1 are multiplied by 255, all within -1 to 1 are moved
            there, others are cut to 0 to 255. False: only cut.

    Raises:
        TypeError: Data of another type, an array of something else than numbers, anything wrong with boxes or masks.
        ValueError: A shape that is no image's, NaN, an empty array, an unknown `file_type` or `mode`, `boxes` or `masks`
            that are no dict, the address of something that is not on this machine.
        AssertionError: A class without id or name.
        OSError: A file that cannot be read or is no image.
    """

    _type: ClassVar[str] = "image-file"

    # W&B's, for scripts that look at them; here a list of images may have any length.
    MAX_ITEMS = 108
    MAX_DIMENSION = 65500

    def __init__(
        self,
        data_or_path: Any,
        mode: str | None = None,
        caption: str | None = None,
        grouping: int | None = None,
        classes: Classes | Iterable[Mapping[str, Any]] | None = None,
        boxes: Mapping[str, Any] | None = None,
        masks: Mapping[str, Any] | None = None,
        file_type: str | None = None,
        normalize: bool = True,
    ) -> None:
        to = pixels.format_of(file_type, _WHAT)
        # Before the pixels are copied: an error there costs nothing.
        found_boxes = _named(boxes, "boxes", BoundingBoxes2D)
        found_masks = _named(masks, "masks", ImageMask)
        own = classes if classes is None or isinstance(classes, Classes) else Classes(classes)
        source = data_or_path if isinstance(data_or_path, Image) else None
        self._picture: pixels.Picture = source._picture if source else _picture_of(data_or_path, to, mode, normalize)
        self._caption: str | None = str(caption) if caption is not None else source._caption if source else None
        self._grouping: int | None = int(grouping) if grouping is not None else source._grouping if source else None
        self._names: dict[Any, Any] = dict(source._names) if source else {}
        self._boxes: dict[str, BoundingBoxes2D] = found_boxes
        self._masks: dict[str, ImageMask] = found_masks
        for one in (*found_boxes.values(), *found_masks.values()):
            self._names.update(one.labels)
        if own is not None:
            self._names.update(own.names)

    @property
    def format(self) -> str:
        """The file's: "png", "jpg" and so on."""
        return self._picture.format

    @property
    def width(self) -> int:
        return self._picture.width

    @property
    def height(self) -> int:
        return self._picture.height

    @property
    def caption(self) -> str | None:
        return self._caption

    def describe(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "caption": self._caption,
            "grouping": self._grouping,
            "classes": [{"id": number, "name": name} for number, name in self._names.items()],
            "boxes": {name: boxes.described() for name, boxes in self._boxes.items()},
            "masks": self._masks,
        }
        # Said only where there is something to say.
        return {
            **{k: v for k, v in found.items() if v is not None and v != [] and v != {}},
            **self._picture.described(),
        }


def _picture_of(data: Any, to: str, mode: str | None, normalize: bool) -> pixels.Picture:
    if sources.is_path(data):
        return pixels.from_file(sources.read_path(data, _WHAT), Image._type, _WHAT)
    module = sys.modules.get("PIL.Image")
    if module is not None and isinstance(data, module.Image):
        return pixels.from_pil(data, to, _WHAT)
    given = sources.read_given(data)
    if given is not None:
        return pixels.from_file(given, Image._type, _WHAT)
    figure = pixels.figure_of(data)
    if figure is not None:
        return pixels.from_figure(figure, to, _WHAT)
    fetched = fetch_array(data, _WHAT)
    if fetched is not None:
        return pixels.from_array(fetched, to, mode, normalize, _WHAT)
    raise TypeError(
        f"{_WHAT} is given {type(data).__module__}.{type(data).__qualname__}, expected an array, a PIL image, a matplotlib "
        "figure, a path, or a file's bytes"
    )


def _named(given: Any, what: str, kind: Any) -> dict[str, Any]:
    """The map of boxes or masks by name, each made if it is not yet."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"{_WHAT} {what} is {type(given).__name__}, expected a dict of name to {what}")
    return {str(name): one if isinstance(one, kind) else kind(one, str(name)) for name, one in given.items()}
