"""What lies over an image: classes, boxes and masks, checked when they are made.

Every violation raises TypeError, and a class without "id" and "name" AssertionError, as in W&B. Boxes and names are plain
data in the record; only a mask has bytes.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from . import pixels, sources
from .arrays import fetch_array
from .media import Media


class Classes(Media):
    """Names of classes.

    Args:
        class_set: Maps with "id" (int or str) and "name" (str).

    Raises:
        AssertionError: One of them lacks "id" or "name".
    """

    _type: ClassVar[str] = "classes"

    def __init__(self, class_set: Iterable[Mapping[str, Any]]) -> None:
        self._class_set = [dict(one) for one in class_set]
        for one in self._class_set:
            if "id" not in one or "name" not in one:
                raise AssertionError(f'Classes() has {one!r}, expected a map with "id" and "name"')

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Classes) and self._class_set == other._class_set

    __hash__ = Media.__hash__

    @property
    def names(self) -> dict[Any, Any]:
        """Id to name."""
        return {one["id"]: one["name"] for one in self._class_set}

    def describe(self) -> dict[str, Any]:
        return {"class_set": self._class_set}


class BoundingBoxes2D:
    """A set of boxes over an image.

    Args:
        val: "box_data": a list of boxes, each a map with "position" ({"minX", "maxX", "minY", "maxY"} or {"middle": [x, y],
            "width", "height"}), and, where wanted, "domain" (None: parts of the image's size; "pixel"), "class_id" (int),
            "scores" (str to number) and "box_caption" (str). "class_labels": class id to name; without it every class
            that a box has is called class_N.
        key: The name of the set.

    Raises:
        TypeError: Anything of that is something else.
    """

    def __init__(self, val: Mapping[str, Any], key: str) -> None:
        what = f"boxes {key!r}"
        boxes = _map(val, what).get("box_data")
        if not isinstance(boxes, (list, tuple)):
            raise TypeError(f'{what}: "box_data" is {type(boxes).__name__}, expected a list of boxes')
        self._boxes = [_box(box, f"{what}, box {index}") for index, box in enumerate(boxes)]
        if val.get("class_labels") is None:
            found = sorted({box["class_id"] for box in self._boxes if "class_id" in box})
            self.labels: dict[Any, str] = {number: f"class_{number}" for number in found}
        else:
            self.labels = _labels(val["class_labels"], what)

    def described(self) -> dict[str, Any]:
        """What is stored of it: plain data."""
        return {"box_data": self._boxes, "class_labels": self.labels}


class ImageMask(Media):
    """A class for each pixel of an image.

    Args:
        val: "mask_data": a 2-D array of numbers from 0 to 255 (numpy, torch, …), or "path": of an image file, which is
            stored as it is. "class_labels": class to name; a class that is not named there is called class_N.
        key: The name of the mask.

    Raises:
        TypeError: Anything of that is something else.
        OSError: The file cannot be read, or is no image.
    """

    _type: ClassVar[str] = "mask"

    def __init__(self, val: Mapping[str, Any], key: str) -> None:
        what = f"mask {key!r}"
        self.labels = _labels(_map(val, what).get("class_labels") or {}, what)
        if "path" in val:
            self._picture = pixels.from_file(sources.read_path(val["path"], what), self._type, what)
            return
        if val.get("mask_data") is None:
            raise TypeError(f'{what} has neither "mask_data", a 2-D array, nor "path", of an image file')
        fetched = fetch_array(val["mask_data"], what)
        if fetched is None or fetched.array.ndim != 2:
            found = type(val["mask_data"]).__name__ if fetched is None else f"of shape {fetched.array.shape}"
            raise TypeError(f'{what}: "mask_data" is {found}, expected a 2-D array')
        self._picture = pixels.from_mask(fetched, what)

    def describe(self) -> dict[str, Any]:
        return {**self._picture.described(), **({"class_labels": self.labels} if self.labels else {})}


def _map(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{what} is {type(value).__name__}, expected a dict")
    return value


def _labels(labels: Any, what: str) -> dict[Any, str]:
    found = dict(_map(labels, f'{what}: "class_labels"'))
    for number, name in found.items():
        if not isinstance(number, numbers.Number) or not isinstance(name, str):
            raise TypeError(f'{what}: "class_labels" has {number!r}: {name!r}, expected a number: str')
    return found


def _box(box: Any, what: str) -> dict[str, Any]:
    found = dict(_map(box, what))
    found["position"] = _position(found.get("position"), what)
    if found.get("domain") not in (None, "pixel"):
        raise TypeError(f"{what}: domain is {found['domain']!r}, expected None or 'pixel'")
    if "class_id" in found:
        if not isinstance(found["class_id"], numbers.Integral):
            raise TypeError(f"{what}: class_id is {found['class_id']!r}, expected an int")
        found["class_id"] = int(found["class_id"])
    if "box_caption" in found and not isinstance(found["box_caption"], str):
        raise TypeError(f"{what}: box_caption is {found['box_caption']!r}, expected a str")
    if "scores" in found:
        found["scores"] = dict(_map(found["scores"], f"{what}: scores"))
        for name, score in found["scores"].items():
            if not isinstance(name, str) or not isinstance(score, numbers.Number):
                raise TypeError(f"{what}: scores has {name!r}: {score!r}, expected a str: number")
    return found


def _position(position: Any, what: str) -> dict[str, Any]:
    if isinstance(position, Mapping):
        found = dict(position)
        if "middle" in found and hasattr(found["middle"], "tolist"):  # a tensor
            found["middle"] = found["middle"].tolist()
        middle = found.get("middle")
        if isinstance(middle, (list, tuple)) and len(middle) == 2 and _are_numbers(found, "width", "height"):
            return found
        if _are_numbers(found, "minX", "maxX", "minY", "maxY"):
            return found
    raise TypeError(
        f"{what}: position is {position!r}, expected numbers under minX, maxX, minY and maxY, "
        "or [x, y] under middle and numbers under width and height"
    )


def _are_numbers(found: Mapping[str, Any], *names: str) -> bool:
    return all(isinstance(found.get(name), numbers.Number) for name in names)
