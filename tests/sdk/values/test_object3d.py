"""sdk.Object3D and sdk.box3d: points bit for bit, files as they are, boxes as plain data; bad ones raise what W&B raises."""

from __future__ import annotations

import io
import itertools
import json
import pathlib
from typing import Any

import numpy
import pytest

import sdk
from sdk.values.blobs import as_array
from sdk.values.object3d import pts_json

POINTS = numpy.random.default_rng(3).random((20, 3))
KINDS = sorted(sdk.Object3D.SUPPORTED_TYPES)
BINARY = b"glTF\2\0\0\0\xff\xfe\r\n\x1a\0"


def points_of(thing: sdk.Object3D) -> Any:
    blob = thing.describe()["data"]
    assert blob.meta["media"] == "object3D-file"
    assert blob.meta["to"] == "tensor"
    return as_array(blob.view(), blob.meta["array"])


def box(**changes: Any) -> Any:
    facts = {
        "center": (1, 2, 3),
        "size": (2, 4, 6),
        "orientation": (1, 0, 0, 0),
        "color": (0, 0.5, 1),
        "label": "car",
        "score": 0.9,
    }
    return sdk.box3d(**{**facts, **changes})


@pytest.mark.parametrize("columns", [3, 4, 6])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "u1", "f2"])
def test_points(columns: int, dtype: str) -> None:
    """Positions, with a category or a color, of any type of number; the source may change afterwards."""
    given = (numpy.random.default_rng(1).random((7, columns)) * 9).astype(dtype)
    for thing in (sdk.Object3D(given, caption="c"), sdk.Object3D.from_numpy(given)):
        assert numpy.array_equal(points_of(thing), given)
        assert thing.describe()["points"] == 7
    described = sdk.Object3D(given, caption="c").describe()
    assert (described["format"], described["caption"]) == ("pts.json", "c")
    thing = sdk.Object3D(given)
    before = given.copy()
    given[:] = 0
    assert numpy.array_equal(points_of(thing), before)
    assert json.loads(pts_json(thing.describe(), points_of(thing))) == before.tolist()


@pytest.mark.parametrize("kind", [list, numpy.array])
def test_a_scene(kind: Any) -> None:
    """Points, boxes and vectors, as arrays (W&B's examples) or lists; boxes and vectors are plain, and stay as they were."""
    boxes = [{"corners": [[float(x), 0, 0]] * 8, "label": "b", "color": [1, 2, 3]} for x in range(2)]
    vectors = [{"start": [0, 0, 0], "end": numpy.array([0.5, 1, 2])}]
    scene = {"type": "lidar/beta", "points": kind(POINTS.tolist()), "boxes": kind(boxes), "vectors": kind(vectors)}
    thing = sdk.Object3D(scene)
    boxes[0]["corners"][0][0] = 77  # type: ignore[index]
    described = thing.describe()
    assert numpy.array_equal(points_of(thing), POINTS)
    assert described["boxes"][0] == {"corners": [[0.0, 0, 0]] * 8, "label": "b", "color": [1, 2, 3]}
    assert described["vectors"] == [{"start": [0, 0, 0], "end": [0.5, 1.0, 2.0]}]
    assert described["type"] == "lidar/beta"
    file = json.loads(pts_json(described, points_of(thing)))
    assert file == {
        "type": "lidar/beta",
        "points": POINTS.tolist(),
        "boxes": described["boxes"],
        "vectors": described["vectors"],
    }


def test_a_scene_may_lack_anything() -> None:
    """Boxes without points, points without boxes."""
    thing = sdk.Object3D({"type": "lidar/beta"})
    assert points_of(thing).shape == (0, 3)
    assert (thing.describe()["boxes"], thing.describe()["vectors"]) == ([], [])
    assert sdk.Object3D({"type": "lidar/beta", "points": numpy.array([])}).describe()["points"] == 0
    thing = sdk.Object3D.from_point_cloud(
        [(0, 0, 0), (1, 2, 3)], [box()], vectors=[{"start": (0, 0, 0), "end": (1, 1, 1)}]
    )
    assert points_of(thing).tolist() == [[0, 0, 0], [1, 2, 3]]
    assert thing.describe()["boxes"][0]["label"] == "car"
    assert sdk.Object3D.from_point_cloud(POINTS, []).describe()["vectors"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_stored_as_they_are(tmp_path: pathlib.Path, kind: str) -> None:
    """By path; open as bytes, or as text even where no text lies in it; closed, or open for writing: by name."""
    path = tmp_path / f"a.{kind}"
    path.write_bytes(BINARY)
    with open(path, "rb") as binary, open(path) as text, open(path, "a") as writing:
        things = [sdk.Object3D(one) for one in (str(path), path, binary, text, writing)]
        assert binary.tell() == text.buffer.tell() == 0
    things += [sdk.Object3D(binary), sdk.Object3D.from_file(str(path)), sdk.Object3D.from_file(path, file_type="obj")]
    for thing in things:
        described = thing.describe()
        assert bytes(described["data"].view()) == BINARY
        assert described["data"].meta == {"media": "object3D-file", "format": kind}
        assert described["format"] == kind


def test_content_without_a_name() -> None:
    """In memory, as text or bytes, it needs its type."""
    for content in (io.StringIO("v 1 ä"), io.BytesIO("v 1 ä".encode()), "v 1 ä".encode()):
        described = sdk.Object3D.from_file(content, file_type="obj").describe()
        assert bytes(described["data"].view()) == "v 1 ä".encode()
        with pytest.raises(ValueError, match="needs file_type"):
            sdk.Object3D(content)


@pytest.mark.parametrize(
    ("data", "options", "error", "text"),
    [
        (numpy.zeros((5, 5)), {}, ValueError, r"shape \(5, 5\)"),
        (numpy.zeros(3), {}, ValueError, r"shape \(3,\)"),
        (numpy.array([["a", "b", "c"]]), {}, TypeError, "U1"),
        (numpy.array([[None] * 3]), {}, TypeError, "object"),
        (io.BytesIO(b"x"), {"file_type": "ply"}, ValueError, "'ply'.*glb"),
        ("/nowhere/a.obj", {}, FileNotFoundError, "a.obj"),
        ("a.ply", {}, ValueError, "a.ply"),
        ("obj", {}, ValueError, "'obj'"),
        ("gs://bucket/a.obj", {}, ValueError, "not on this machine"),
        ({"type": "lidar/gamma"}, {}, ValueError, "lidar/gamma"),
        ({"points": POINTS}, {}, ValueError, "dict"),
        ({"type": "lidar/beta", "points": [[1, 2]]}, {}, ValueError, "shape"),
        ({"type": "lidar/beta", "points": [[1, 2, 3], [1, 2]]}, {}, ValueError, "differ in length"),
        ({"type": "lidar/beta", "boxes": [5]}, {}, ValueError, "box 0 is int"),
        ({"type": "lidar/beta", "boxes": [{"label": "x"}]}, {}, ValueError, "8 points"),
        ({"type": "lidar/beta", "boxes": [{"corners": [[0, 0]] * 8}]}, {}, ValueError, "8 points"),
        ({"type": "lidar/beta", "vectors": ["x"]}, {}, ValueError, "vector 0 is str"),
        ([[1, 2, 3]], {}, ValueError, "list"),
        (5, {}, ValueError, "int"),
    ],
)
def test_bad_objects(data: Any, options: Any, error: type[Exception], text: str) -> None:
    """The error that the reference names, and what was expected."""
    with pytest.raises(error, match=text):
        sdk.Object3D(data, **options)


def test_bad_objects_of_the_other_makers() -> None:
    """No array where one must be; an unknown kind of cloud."""
    with pytest.raises(ValueError, match="str"):
        sdk.Object3D.from_numpy("a.obj")
    with pytest.raises(ValueError, match="'points'"):
        sdk.Object3D.from_point_cloud([], [], point_cloud_type="points")


def test_a_box() -> None:
    """Its corners are center and half its sides, in the order of W&B's; the rest is as it was given."""
    found = box()
    corners = [[1 + x, 2 + 2 * y, 3 + 3 * z] for x, y, z in itertools.product((-1, 1), repeat=3)]
    assert found == {"corners": corners, "color": (0, 0.5, 1), "label": "car", "score": 0.9}
    bare = sdk.box3d(center=(0, 0, 0), size=(1, 1, 1), orientation=(1, 0, 0, 0), color=numpy.array([1, 0, 0]))
    assert (bare["label"], bare["score"], bare["color"]) == (None, None, (1, 0, 0))


def test_a_box_is_turned() -> None:
    """A quarter about z takes x to y, in the direction that its sign says; the quaternion's length does not matter."""
    for length in (1, 1e-200, 1e200):
        for sign in (1, -1):
            turned = box(center=(0, 0, 0), orientation=(length, 0, 0, sign * length))["corners"]
            expected = [[-sign * 2 * y, sign * x, 3 * z] for x, y, z in itertools.product((-1, 1), repeat=3)]
            assert numpy.allclose(turned, expected)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"center": (1, 2)}, AssertionError, "center"),
        ({"size": 1}, AssertionError, "size"),
        ({"orientation": (1, 0, 0)}, AssertionError, "orientation"),
        ({"orientation": (0, 0, 0, 0)}, ValueError, "zero"),
    ],
)
def test_bad_boxes(changes: Any, error: type[Exception], text: str) -> None:
    """As the reference says."""
    with pytest.raises(error, match=text):
        box(**changes)


def test_logged(world: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of W&B's own documentation, its three files opened as text; and a cloud with boxes."""
    monkeypatch.chdir(tmp_path)
    for kind in ("obj", "gltf", "glb"):
        pathlib.Path(f"sample.{kind}").write_bytes(BINARY)
    sdk.init()
    with open("sample.obj") as first_file, open("sample.gltf") as second_file, open("sample.glb") as third_file:
        files = (first_file, second_file, third_file)
        sdk.log({"generated_samples": [sdk.Object3D(file) for file in files]})
    sdk.log({"cloud": sdk.Object3D.from_point_cloud(POINTS, [box()])})
    first, second = world.rows
    assert [(one["format"], one["data"].data) for one in first["generated_samples"]] == [
        ("obj", BINARY), ("gltf", BINARY), ("glb", BINARY),
    ]  # fmt: skip
    assert second["cloud"]["boxes"][0]["color"] == [0, 0.5, 1]
