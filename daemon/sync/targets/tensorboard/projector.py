"""Embeddings, as the projector reads them: not from event files but from tables of text beside them.

<run>/projector_config.pbtxt        which embeddings there are
      projector/<name>/tensors.tsv  a line for each point
                       metadata.tsv its labels; with several columns, the first line names them
                       sprite.png   the pictures of all points, as squares side by side
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy
from numpy.typing import NDArray

from sdk.files import EXPORTS
from sdk.reader import MediaItem
from sdk.reader.filenames import safe_name

CONFIG, DIRECTORY = "projector_config.pbtxt", "projector"
# Limit: what the page can draw is 8192 pixels along a side.
_SPRITE_PIXELS_MAX = 8192
_TILE_PIXELS_MAX = 128


def write_embedding(directory: str, item: MediaItem, key: str) -> dict[str, Any]:
    """Writes the files of one embedding, and returns its entry for `config`.

    Raises:
        Error: Its bytes cannot be had. OSError: The disk refuses. ValueError: It is no matrix.
    """
    matrix = numpy.asarray(item.to_numpy(), "f4")
    if matrix.ndim != 2:
        raise ValueError(f"an embedding of shape {matrix.shape}, expected (points, dimensions)")
    name = f"{safe_name(key)}-{item.step}"
    path = os.path.join(directory, DIRECTORY, name)
    EXPORTS.make_directory(path)
    tensors = io.BytesIO()
    numpy.savetxt(tensors, matrix, "%.9g", "\t")
    EXPORTS.write_whole(os.path.join(path, "tensors.tsv"), tensors.getvalue())
    entry: dict[str, Any] = {
        "name": f"{key} (step {item.step})",
        "path": f"{DIRECTORY}/{name}",
        "shape": list(matrix.shape),
    }
    parts = item.value
    labels = parts.get("labels")
    if isinstance(labels, MediaItem):
        EXPORTS.write_whole(os.path.join(path, "metadata.tsv"), _labels(labels.data, len(matrix)))
        entry["has_labels"] = True
    pictures = parts.get("images")
    if isinstance(pictures, MediaItem):
        sprite, side = _sprite(pictures.to_numpy(), len(matrix))
        EXPORTS.write_whole(os.path.join(path, "sprite.png"), sprite)
        entry["tile"] = side
    return entry


def config(entries: list[dict[str, Any]]) -> bytes:
    """The projector's configuration, in protobuf's text form."""
    return "".join(_one(entry) for entry in entries).encode("ascii")


def _one(entry: Mapping[str, Any]) -> str:
    path = entry["path"]
    lines = [f"tensor_name: {_quoted(entry['name'])}", f"tensor_path: {_quoted(path + '/tensors.tsv')}"]
    lines += [f"tensor_shape: {size}" for size in entry["shape"]]
    if entry.get("has_labels"):
        lines.append(f"metadata_path: {_quoted(path + '/metadata.tsv')}")
    if "tile" in entry:
        side = entry["tile"]
        image = f"image_path: {_quoted(path + '/sprite.png')} single_image_dim: {side} single_image_dim: {side}"
        lines.append(f"sprite {{ {image} }}")
    body = "".join(f"  {line}\n" for line in lines)
    return f"embeddings {{\n{body}}}\n"


def _quoted(text: str) -> str:
    """A string of protobuf's text form: bytes beyond ASCII, and all that could end it, as octal numbers."""
    data = text.encode("utf-8", "replace")
    return '"' + "".join(chr(b) if 32 <= b < 127 and b not in b"\\\"'" else f"\\{b:03o}" for b in data) + '"'


def _labels(columns: Any, count: int) -> bytes:
    if not isinstance(columns, dict) or any(not isinstance(v, list) or len(v) != count for v in columns.values()):
        raise ValueError(f"labels of an embedding that are not {count} in each column")
    names = list(columns)
    lines = ["\t".join(map(_cell, names))] if len(names) > 1 else []
    lines += ["\t".join(map(_cell, row)) for row in zip(*columns.values())]
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def _cell(value: Any) -> str:
    said = value if isinstance(value, str) else json.dumps(value, default=str)
    return " ".join(said.split())


def _sprite(pictures: NDArray[Any], count: int) -> tuple[bytes, int]:
    """A png of all pictures, row by row in a square, and how many pixels one takes along a side."""
    from PIL import Image

    if len(pictures) != count or pictures.ndim not in (3, 4):
        raise ValueError(f"pictures of shape {pictures.shape} for {count} points")
    if pictures.ndim == 4 and pictures.shape[1] in (1, 3, 4) and pictures.shape[3] not in (1, 3, 4):
        pictures = pictures.transpose(0, 2, 3, 1)
    if pictures.ndim == 4 and pictures.shape[3] == 1:
        pictures = pictures[..., 0]
    if pictures.dtype != numpy.uint8:
        factor = 255 if pictures.dtype.kind == "f" and pictures.max(initial=0) <= 1 else 1
        pictures = numpy.clip(pictures.astype(float) * factor, 0, 255).astype("u1")
    columns = int(numpy.ceil(numpy.sqrt(count)))
    side = max(min(max(pictures.shape[1:3]), _TILE_PIXELS_MAX, _SPRITE_PIXELS_MAX // columns), 1)
    sheet = Image.new("RGBA", (columns * side, columns * side))
    for place, picture in enumerate(pictures):
        tile = Image.fromarray(numpy.ascontiguousarray(picture)).convert("RGBA").resize((side, side))
        sheet.paste(tile, (place % columns * side, place // columns * side))
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue(), side
