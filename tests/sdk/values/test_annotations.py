"""Classes, boxes and masks: what they say of themselves, and W&B's error for each violation."""

from __future__ import annotations

import io
import pathlib
from typing import Any

import numpy
import PIL.Image
import pytest

import sdk
from sdk.values.annotations import BoundingBoxes2D, Classes, ImageMask

PIXELS = numpy.zeros((12, 10, 3), "u1")
CORNERS = {"minX": 0.1, "maxX": 0.2, "minY": 0.3, "maxY": 0.4}
MIDDLE = {"middle": [150, 20], "width": 68, "height": 112}


def boxes_of(*boxes: Any, **more: Any) -> dict[str, Any]:
    return {"box_data": list(boxes), **more}


def described(**options: Any) -> dict[str, Any]:
    return sdk.Image(PIXELS, **options).describe()


# -- boxes -----------------------------------------------------------------------------------------------------------


def test_boxes_are_plain_data_in_the_record(world: Any) -> None:
    """The example of W&B's documentation reads back; class ids are text there, as all keys of maps."""
    sdk.init()
    labels = {0: "person", 1: "car", 2: "road", 3: "building"}
    first = {"position": CORNERS, "class_id": 1, "box_caption": "car", "scores": {"acc": 0.2, "loss": 1.2}}
    second = {"position": MIDDLE, "domain": "pixel", "class_id": 3, "scores": {"acc": numpy.float32(0.5)}}
    given = boxes_of(first, second, class_labels=labels)
    sdk.log({"scene": sdk.Image(PIXELS, boxes={"predictions": given})})
    logged = world.rows[0]["scene"]
    second["scores"] = {"acc": 0.5}
    texts = {str(number): name for number, name in labels.items()}
    assert logged["boxes"] == {"predictions": {"box_data": [first, second], "class_labels": texts}}
    assert logged["classes"] == [{"id": number, "name": name} for number, name in labels.items()]


def test_classes_without_a_name_get_one() -> None:
    """class_N, for each class that a box has; boxes without a class are fine."""
    boxes = boxes_of(
        {"position": CORNERS, "class_id": 7}, {"position": CORNERS, "class_id": numpy.int64(2)}, {"position": MIDDLE}
    )
    found = described(boxes={"b": boxes})
    assert found["boxes"]["b"]["class_labels"] == {2: "class_2", 7: "class_7"}
    assert found["classes"] == [{"id": 2, "name": "class_2"}, {"id": 7, "name": "class_7"}]
    assert found["boxes"]["b"]["box_data"][1]["class_id"] == 2


def test_positions_may_be_arrays_and_nothing_of_the_caller_changes() -> None:
    """A tensor in the middle becomes a list, in a copy."""
    middle = numpy.array([1.5, 2.5])
    box = {"position": {"middle": middle, "width": 1, "height": 2}}
    found = described(boxes={"b": boxes_of(box)})["boxes"]["b"]["box_data"][0]
    assert found == {"position": {"middle": [1.5, 2.5], "width": 1, "height": 2}}
    assert box["position"]["middle"] is middle
    assert described(boxes={"b": BoundingBoxes2D(boxes_of(box), "b")})["boxes"]["b"]["box_data"] == [found]


@pytest.mark.parametrize(
    ("boxes", "text"),
    [
        ([], "boxes 'b' is list"),
        ({}, '"box_data" is NoneType, expected a list'),
        ({"box_data": {}}, '"box_data" is dict'),
        (boxes_of("box"), "box 0 is str"),
        (boxes_of({"position": CORNERS}, {}), "box 1: position is None"),
        (boxes_of({"position": {"minX": 1, "maxX": 2, "minY": 3}}), "expected numbers under minX"),
        (boxes_of({"position": {**CORNERS, "minX": "0"}}), "position"),
        (boxes_of({"position": {**MIDDLE, "middle": [1]}}), "position"),
        (boxes_of({"position": {"middle": [1, 2], "width": 3}}), "position"),
        (boxes_of({"position": CORNERS, "domain": "inches"}), "domain is 'inches'"),
        (boxes_of({"position": CORNERS, "class_id": "1"}), "class_id is '1'"),
        (boxes_of({"position": CORNERS, "class_id": 1.0}), "class_id is 1.0"),
        (boxes_of({"position": CORNERS, "scores": [1]}), "scores is list"),
        (boxes_of({"position": CORNERS, "scores": {1: 1}}), "scores has 1: 1"),
        (boxes_of({"position": CORNERS, "scores": {"a": "1"}}), "scores has 'a': '1'"),
        (boxes_of({"position": CORNERS, "box_caption": 1}), "box_caption is 1"),
        (boxes_of(class_labels={"a": "b"}), "has 'a': 'b', expected a number: str"),
        (boxes_of(class_labels={1: 2}), "has 1: 2"),
        (boxes_of(class_labels=["a"]), '"class_labels" is list'),
    ],
    ids=repr,
)
def test_each_violation_of_a_box_is_a_type_error(boxes: Any, text: str) -> None:
    """It names the set, the box, what was found and what was expected."""
    with pytest.raises(TypeError, match=text):
        sdk.Image(PIXELS, boxes={"b": boxes})


# -- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["?", "u1", "i1", "<i2", "<i8", "<u8", "<f2", "<f4", "<f8"])
def test_masks_of_every_type(dtype: str) -> None:
    """Their bytes are copied as they are; they become grey PNGs that are never scaled."""
    given = numpy.arange(120).reshape(12, 10).astype(dtype)
    mask = described(masks={"m": {"mask_data": given, "class_labels": {1: "cat"}}})["masks"]["m"].describe()
    assert bytes(mask["data"].view()) == given.tobytes()
    assert mask["data"].meta == {
        "media": "mask", "to": "png", "layout": "HW", "mode": "L", "normalize": False,
        "array": [given.dtype.str, [12, 10], None],
    }  # fmt: skip
    assert (mask["width"], mask["height"], mask["format"], mask["class_labels"]) == (10, 12, "png", {1: "cat"})


def test_masks_are_media_of_their_image(world: Any) -> None:
    """Several of them, by name; names of classes are joined, what `classes` says wins."""
    sdk.init()
    ones = numpy.ones((12, 10), int)
    masks = {
        "truth": {"mask_data": ones, "class_labels": {1: "cat", 2: "dog"}},
        "guess": ImageMask({"mask_data": ones}, "x"),
    }
    sdk.log({"i": sdk.Image(PIXELS, masks=masks, classes=[{"id": 2, "name": "hound"}, {"id": "z", "name": "zebra"}])})
    logged = world.rows[0]["i"]
    assert logged["classes"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "hound"}, {"id": "z", "name": "zebra"}]
    assert {name: mask["_type"] for name, mask in logged["masks"].items()} == {"truth": "mask", "guess": "mask"}
    assert logged["masks"]["truth"]["class_labels"] == {"1": "cat", "2": "dog"}
    assert "class_labels" not in logged["masks"]["guess"]
    assert logged["masks"]["guess"]["data"].data == ones.tobytes()


def test_a_mask_from_a_file(tmp_path: pathlib.Path) -> None:
    """Stored as it is."""
    buffer = io.BytesIO()
    PIL.Image.new("L", (10, 12)).save(buffer, "PNG")
    path = tmp_path / "mask"
    path.write_bytes(buffer.getvalue())
    mask = ImageMask({"path": path, "class_labels": {0: "none"}}, "m").describe()
    assert bytes(mask["data"].view()) == buffer.getvalue()
    assert mask["data"].meta == {"media": "mask", "format": "png"}
    assert mask["class_labels"] == {0: "none"}
    with pytest.raises(FileNotFoundError):
        ImageMask({"path": tmp_path / "other"}, "m")


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        ("mask", "mask 'm' is str"),
        ({}, 'neither "mask_data"'),
        ({"mask_data": [[1]]}, '"mask_data" is list, expected a 2-D array'),
        ({"mask_data": numpy.zeros((2, 2, 1))}, r"of shape \(2, 2, 1\)"),
        ({"mask_data": numpy.zeros((0, 2))}, "at least one pixel"),
        ({"mask_data": numpy.zeros((2, 2), object)}, "dtype object"),
        ({"mask_data": numpy.full((2, 2), 256)}, "values from 256 to 256, expected from 0 to 255"),
        ({"mask_data": numpy.array([[0, -1]], "i1")}, "values from -1 to 0"),
        ({"mask_data": numpy.array([[0, 255.5]])}, "255.5"),
        ({"mask_data": numpy.array([[0, numpy.nan]])}, "nan"),
        ({"mask_data": numpy.zeros((2, 2)), "class_labels": {"a": 1}}, "'a': 1"),
    ],
    ids=repr,
)
def test_each_violation_of_a_mask_is_a_type_error(mask: Any, text: str) -> None:
    """As for boxes."""
    with pytest.raises(TypeError, match=text):
        sdk.Image(PIXELS, masks={"m": mask})


# -- classes ---------------------------------------------------------------------------------------------------------


def test_classes(world: Any) -> None:
    """They may be logged alone, compared, and given to an image; each needs id and name."""
    sdk.init()
    given = [{"id": 1, "name": "cat"}, {"id": "b", "name": "dog", "color": "brown"}]
    classes = Classes(given)
    assert classes == sdk.Classes(given) != sdk.Classes([]) and len({classes, classes}) == 1
    sdk.log({"c": classes})
    assert world.rows[0]["c"] == {"_type": "classes", "class_set": given}
    assert described(classes=classes)["classes"] == [{"id": 1, "name": "cat"}, {"id": "b", "name": "dog"}]
    for bad in ([{"id": 1}], [{"name": "a"}]):
        with pytest.raises(AssertionError, match='expected a map with "id" and "name"'):
            sdk.Classes(bad)
        with pytest.raises(AssertionError):
            sdk.Image(PIXELS, classes=bad)
