"""Things in space, as points, triangles and colors: clouds of points, and files of the two formats that need no library (obj, stl)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy
from numpy.typing import NDArray

# Of the categories 1 to 14 that a point may have: colors that differ.
_PALETTE = numpy.array(
    [
        (128, 128, 128), (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75),
        (227, 119, 194), (127, 127, 127), (188, 189, 34), (23, 190, 207), (57, 59, 121), (99, 121, 57), (140, 109, 49),
        (132, 60, 57),
    ],
    numpy.uint8,
)  # fmt: skip
_STL_HEADER, _STL_COUNT = 80, 4
_STL_TRIANGLE = numpy.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("about", "<u2")])


class Shape(NamedTuple):
    """float[n, 3], int[m, 3] or None, uint8[n, 3] or None."""

    vertices: NDArray[Any]
    faces: NDArray[Any] | None
    colors: NDArray[Any] | None


def cloud(points: NDArray[Any]) -> Shape:
    """Of number[n, 3], [n, 4] with a category, [n, 6] with red, green and blue.

    Raises:
        ValueError: Another shape.
    """
    if points.ndim != 2 or points.shape[1] not in (3, 4, 6):
        raise ValueError(f"points of shape {points.shape}, expected (points, 3), (points, 4) or (points, 6)")
    colors = None
    if points.shape[1] == 6:
        colors = numpy.clip(points[:, 3:], 0, 255).astype("u1")
    elif points.shape[1] == 4:
        colors = _PALETTE[numpy.clip(numpy.nan_to_num(points[:, 3]), 0, len(_PALETTE) - 1).astype(int)]
    return Shape(points[:, :3], None, colors)


def read_mesh(data: bytes, kind: str) -> Shape:
    """Of a file of the format obj or stl.

    Raises:
        ValueError: It is none, or of another format.
    """
    if kind == "obj":
        return _obj(data)
    if kind == "stl":
        return _stl(data)
    raise ValueError(f"a mesh of format {kind!r}, expected obj or stl")


def _obj(data: bytes) -> Shape:
    vertices: list[list[float]] = []
    faces: list[tuple[int, int, int]] = []
    for line in data.decode("utf-8", "replace").splitlines():
        word, *rest = line.split() or [""]
        if word == "v":
            vertices.append([float(number) for number in rest[:3]])
        elif word == "f":
            # "7/1/3" is a vertex, its texture and its normal; -1 is the last one so far. A face of n corners is n - 2 triangles.
            corners = [int(corner.partition("/")[0]) for corner in rest]
            places = [corner - 1 if corner > 0 else len(vertices) + corner for corner in corners]
            faces += [(places[0], one, other) for one, other in zip(places[1:], places[2:])]
    return _checked(numpy.array(vertices, float), faces)


def _stl(data: bytes) -> Shape:
    size = int.from_bytes(data[_STL_HEADER : _STL_HEADER + _STL_COUNT], "little")
    if len(data) == _STL_HEADER + _STL_COUNT + size * _STL_TRIANGLE.itemsize:
        triangles = numpy.frombuffer(data, _STL_TRIANGLE, size, _STL_HEADER + _STL_COUNT)
        vertices = triangles["corners"].reshape(-1, 3).astype(float)
    else:
        lines = (line.split() for line in data.decode("utf-8", "replace").splitlines())
        vertices = numpy.array([[float(n) for n in line[1:4]] for line in lines if line[:1] == ["vertex"]], float)
    return _checked(vertices, numpy.arange(len(vertices) // 3 * 3).reshape(-1, 3).tolist())


def _checked(vertices: NDArray[Any], faces: list[Any]) -> Shape:
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise ValueError(f"a mesh with vertices of shape {vertices.shape}, expected (vertices, 3)")
    made = numpy.array(faces, numpy.int64).reshape(-1, 3)
    if len(made) and (made.min() < 0 or made.max() >= len(vertices)):
        raise ValueError(f"a mesh with corner {made.max()} of {len(vertices)} vertices")
    return Shape(vertices, made if len(made) else None, None)
