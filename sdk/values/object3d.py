"""Things with three dimensions: `sdk.Object3D`, point clouds and files of meshes, and `sdk.box3d`."""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from . import sources
from .arrays import Fetched, fetch_array
from .blobs import Blob, snapshot
from .media import Media, known
from .pixels import check_dtype

_WHAT = "Object3D()"
# Point clouds by their number of columns: positions; with a category; with a color.
_COLUMNS = (3, 4, 6)
_CORNERS = 8


class Object3D(Media):
    """Points in space, or a mesh (docs/media.md#objects-in-space).

    Args:
        data_or_path: One of
            an array of numpy, torch, jax or TensorFlow: number[N, 3] of x, y, z; [N, 4] with a category from 1 to 14;
            [N, 6] with red, green and blue from 0 to 255;
            a dict with "type": "lidar/beta", and where wanted "points" (as above), "boxes" (maps as of `box3d`) and "vectors"
            (maps with "start" and "end");
            the path of an obj, gltf, glb, babylon, stl or pts.json file; a file open for reading, as text or bytes; the
            content of one: stored as they are.
        caption: A label.
        file_type: What a file is, where it has no name that says so.

    Raises:
        TypeError: An array of something else than numbers.
        ValueError: Data of another type, an array of another shape, an unknown or missing type, a box without corners, the
            address of something that is not on this machine.
        OSError: A file that cannot be read.
    """

    _type: ClassVar[str] = "object3D-file"

    SUPPORTED_TYPES: ClassVar[set[str]] = {"obj", "gltf", "glb", "babylon", "stl", "pts.json"}
    SUPPORTED_POINT_CLOUD_TYPES: ClassVar[set[str]] = {"lidar/beta"}

    def __init__(self, data_or_path: Any, caption: str | None = None, *, file_type: str | None = None) -> None:
        self._facts = known(caption=None if caption is None else str(caption))
        self._blob, found = _object_of(data_or_path, file_type)
        self._facts.update(found)

    @classmethod
    def from_file(cls, data_or_path: Any, file_type: str | None = None) -> Object3D:
        """A file, by its path or open; `file_type` as for the class."""
        return cls(data_or_path, file_type=file_type)

    @classmethod
    def from_numpy(cls, data: Any) -> Object3D:
        """Points as an array; other data raise ValueError."""
        return cls(_Points(data))

    @classmethod
    def from_point_cloud(
        cls, points: Any, boxes: Any, vectors: Any = None, point_cloud_type: str = "lidar/beta"
    ) -> Object3D:
        """Points (an array or a sequence of points) with boxes and vectors among them."""
        scene = {"type": point_cloud_type, "points": points, "boxes": boxes}
        return cls(scene if vectors is None else {**scene, "vectors": vectors})

    def describe(self) -> dict[str, Any]:
        return {**self._facts, "data": self._blob}


class _Points:
    """What must be an array, whatever else it could be taken for."""

    def __init__(self, data: Any) -> None:
        self.data = data


def pts_json(described: Mapping[str, Any], points: Any) -> bytes:
    """The point cloud as a file that viewers know.

    Args:
        described: What `Object3D.describe` gives.
        points: number[N, 3], [N, 4] or [N, 6], which its blob holds.
    """
    import json

    rows = points.tolist()
    if "type" not in described:
        return json.dumps(rows).encode()
    scene = {name: described.get(name, []) for name in ("type", "vectors", "boxes")}
    return json.dumps({**scene, "points": rows}).encode()


def _object_of(given: Any, file_type: str | None) -> tuple[Blob, dict[str, Any]]:
    if isinstance(given, Mapping) and "type" in given:
        return _scene(given)
    if sources.is_path(given):
        kind = _kind(sources.name_of(given), None)
        return _file(sources.read_path(given, _WHAT), kind)
    is_points = isinstance(given, _Points)
    content = None if is_points else sources.read_given(given, is_text=True)
    if content is not None:
        return _file(content, _kind(sources.name_of(given), file_type))
    fetched = fetch_array(given.data if is_points else given, _WHAT)
    if fetched is None:
        raise ValueError(
            f"{_WHAT} is given {type(given.data if is_points else given).__qualname__}, expected an array of points, a dict "
            f"with a type, or a file ({_types()})"
        )
    return _points(fetched), {"format": "pts.json", "points": len(fetched.array)}


def _types() -> str:
    return ", ".join(sorted(Object3D.SUPPORTED_TYPES))


def _kind(name: str | None, file_type: str | None) -> str:
    """The type of a file: what is said, else what its name ends with."""
    if file_type is not None and file_type in Object3D.SUPPORTED_TYPES:
        return file_type
    if file_type is not None:
        raise ValueError(f"{_WHAT} file_type is {file_type!r}, expected one of {_types()}")
    if name is None:
        raise ValueError(f"{_WHAT} needs file_type for a file without a name: one of {_types()}")
    found = next((kind for kind in Object3D.SUPPORTED_TYPES if name.lower().endswith(f".{kind}")), None)
    if found is None:
        raise ValueError(f"{_WHAT} is given {name!r}, expected a file whose name ends with one of {_types()}")
    return found


def _file(content: bytes, kind: str) -> tuple[Blob, dict[str, Any]]:
    return snapshot(content, {"media": Object3D._type, "format": kind}), {"format": kind}


def _scene(scene: Mapping[str, Any]) -> tuple[Blob, dict[str, Any]]:
    """A dict of points, boxes and vectors: the points become the blob, the others are plain data."""
    import numpy

    kind = scene["type"]
    if kind not in Object3D.SUPPORTED_POINT_CLOUD_TYPES:
        raise ValueError(f"{_WHAT} type is {kind!r}, expected 'lidar/beta'")
    points = scene.get("points", ())
    fetched = fetch_array(points, _WHAT)
    if fetched is None:
        try:
            fetched = Fetched(numpy.asarray(points), None, False)
        except ValueError as error:
            raise ValueError(f"{_WHAT} points differ in length: {error}") from None
    if not fetched.array.size:
        fetched = Fetched(numpy.zeros((0, 3), "f4"), None, False)
    # Copied now: what they were made of may change before they are logged.
    boxes = [_box(box, index) for index, box in enumerate(scene.get("boxes", ()))]
    vectors = [_mapping(vector, "vector", index) for index, vector in enumerate(scene.get("vectors", ()))]
    blob = _points(fetched)
    facts = {"format": "pts.json", "points": len(fetched.array), "type": kind, "boxes": boxes, "vectors": vectors}
    return blob, facts


def _points(fetched: Fetched) -> Blob:
    array = fetched.array
    check_dtype(fetched, _WHAT)
    if array.ndim != 2 or array.shape[1] not in _COLUMNS:
        raise ValueError(
            f"{_WHAT} is given an array of shape {array.shape}, expected (points, 3) for x, y, z; (points, 4) with a category "
            "from 1 to 14; or (points, 6) with red, green, blue"
        )
    return snapshot(array, {"media": Object3D._type, "to": "tensor"}, dtype=fetched.dtype)


def _mapping(given: Any, what: str, index: int) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise ValueError(f"{_WHAT} {what} {index} is {type(given).__name__}, expected a map")
    return {name: _listed(value) for name, value in given.items()}


def _listed(value: Any) -> Any:
    """A copy in which arrays are lists: they are read as JSON."""
    if isinstance(value, (list, tuple)):
        return [_listed(part) for part in value]
    if isinstance(value, Mapping):
        return {name: _listed(part) for name, part in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


def _box(given: Any, index: int) -> Any:
    box = _mapping(given, "box", index)
    corners = box.get("corners")
    if not isinstance(corners, list) or len(corners) != _CORNERS or any(not _is_point(corner) for corner in corners):
        raise ValueError(
            f'{_WHAT} box {index} has "corners" {repr(corners)[:80]}, expected 8 points of x, y, z; box3d() makes them'
        )
    return box


def _is_point(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 3 and all(isinstance(part, (float, numbers.Real)) for part in value)
    )


def box3d(
    *, center: Any, size: Any, orientation: Any, color: Any, label: str | None = None, score: float | None = None
) -> dict[str, Any]:
    """A box among the points of an `Object3D`.

    Args:
        center: x, y, z.
        size: Its sides along its own x, y and z.
        orientation: The rotation from the axes of the world to its own: a quaternion r, x, y, z of any length but zero.
        color: Red, green, blue, each from 0 to 1.
        label: Text beside it.
        score: How certain it is.

    Raises:
        AssertionError: `center` or `size` have not three numbers, `orientation` not four.
        ValueError: `orientation` is zero.
    """
    import numpy

    middle, sides, quaternion = (numpy.asarray(value, "f8") for value in (center, size, orientation))
    for name, found, count in (("center", middle, 3), ("size", sides, 3), ("orientation", quaternion, 4)):
        if found.shape != (count,):
            raise AssertionError(f"box3d() {name} has shape {found.shape}, expected {count} numbers")
    unit = numpy.array(list(itertools.product((-1, 1), repeat=3)), "f8")
    corners = middle + (0.5 * sides * unit) @ _rotation(quaternion)
    return {"corners": corners.tolist(), "color": _color(color), "label": label, "score": score}


def _color(color: Any) -> Sequence[Any]:
    return tuple(_listed(color)) if isinstance(color, Sequence) or hasattr(color, "tolist") else color


def _rotation(quaternion: Any) -> Any:
    """The matrix that turns row vectors by post-multiplication."""
    import numpy

    largest = numpy.abs(quaternion).max()
    if largest == 0:
        raise ValueError("box3d() orientation is zero, expected a quaternion r, x, y, z that says a rotation")
    # By the largest first: the squares of tiny numbers would be zero.
    scaled = quaternion / largest
    r, x, y, z = scaled / numpy.linalg.norm(scaled)
    return numpy.array(
        [
            (1 - 2 * (y * y + z * z), 2 * (x * y + z * r), 2 * (x * z - y * r)),
            (2 * (x * y - z * r), 1 - 2 * (x * x + z * z), 2 * (y * z + x * r)),
            (2 * (x * z + y * r), 2 * (y * z - x * r), 1 - 2 * (x * x + y * y)),
        ]
    )
