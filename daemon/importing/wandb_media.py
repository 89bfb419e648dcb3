"""The media of a run of W&B: what its rows say of them, and the files beside it, as the values that `log()` takes.

Files are looked for in the run's directory `files` only: a name that leads out of it, by itself or by a link, is none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from sdk.values.audio import Audio
from sdk.values.blobs import snapshot
from sdk.values.graph import Graph
from sdk.values.histogram import Histogram
from sdk.values.html import Html
from sdk.values.image import Image
from sdk.values.interactive import Bokeh, Plotly
from sdk.values.molecule import Molecule
from sdk.values.object3d import Object3D
from sdk.values.table import Table
from sdk.values.video import Video

# Limit: of JSON that is read whole: a table, the boxes of an image.
JSON_BYTES_MAX = 256 << 20
# Lists of media: W&B's name of the kind -> of what.
_LISTS = {
    "images/separated": "image-file", "audio": "audio-file", "videos": "video-file", "html": "html-file",
    "object3D": "object3D-file", "molecule": "molecule-file",
}  # fmt: skip


class MissingFileError(Exception):
    """A file that a row names is not there, or not below the run's files."""


class Media:
    """Makes values of what rows say.

    Args:
        directory: The run's files; None: there are none.
        labels: Of boxes and masks, by the names that W&B keeps them under in the config; may be filled later.
    """

    def __init__(self, directory: str | None, labels: Mapping[str, Any]) -> None:
        self._directory = None if directory is None else os.path.realpath(directory)
        self._labels = labels

    def value(self, key: str, said: dict[str, Any]) -> Any:
        """The value that a map with a "_type" stands for; None: nothing is known of the kind.

        Raises:
            MissingFileError: Its file is not there.
            Exception: Its file, or what is said of it, makes no sense.
        """
        kind = said.get("_type")
        if isinstance(kind, str) and kind in _LISTS:
            return [self._one(key, _LISTS[kind], one) for one in _members(said)]
        return self._one(key, kind, said)

    def _one(self, key: str, kind: Any, said: Mapping[str, Any]) -> Any:
        make = _MAKERS.get(kind)
        return None if make is None else make(self, key, said)

    def _path(self, said: Mapping[str, Any]) -> str:
        name = said.get("path")
        if self._directory is None or not isinstance(name, str) or "\0" in name:
            raise MissingFileError("no path")
        path = os.path.realpath(os.path.join(self._directory, name))
        if not path.startswith(self._directory + os.sep) or not os.path.isfile(path):
            raise MissingFileError(name)
        return path

    def _json(self, said: Mapping[str, Any]) -> Any:
        path = self._path(said)
        if os.path.getsize(path) > JSON_BYTES_MAX:
            raise ValueError(f"{path!r} has more than {JSON_BYTES_MAX} bytes")
        with open(path, encoding="utf-8") as file:
            return json.load(file)

    def _image(self, key: str, said: Mapping[str, Any]) -> Any:
        boxes = {name: self._boxes(key, name, one) for name, one in _map(said.get("boxes")).items()}
        masks = {name: self._mask(key, name, one) for name, one in _map(said.get("masks")).items()}
        grouping = said.get("grouping")
        return Image(
            self._path(said), caption=_text(said), grouping=grouping if isinstance(grouping, int) else None,
            boxes=boxes or None, masks=masks or None,
        )  # fmt: skip

    def _boxes(self, key: str, name: str, said: Mapping[str, Any]) -> dict[str, Any]:
        found = self._json(said)
        return {"box_data": found["box_data"], **self._named("bounding_box/class_labels", key, name, found)}

    def _mask(self, key: str, name: str, said: Mapping[str, Any]) -> dict[str, Any]:
        return {"path": self._path(said), **self._named("mask/class_labels", key, name, said)}

    def _named(self, what: str, key: str, name: str, said: Mapping[str, Any]) -> dict[str, Any]:
        """Class labels, where the file or the config tells them."""
        labels = said.get("class_labels")
        if not isinstance(labels, dict):
            kept = _map(_map(self._labels.get(what)).get(f"{key}_wandb_delimeter_{name}"))
            labels = kept.get("value")
        found = {
            int(number): str(label) for number, label in _map(labels).items() if str(number).lstrip("-").isdecimal()
        }
        return {"class_labels": found} if found else {}

    def _audio(self, key: str, said: Mapping[str, Any]) -> Any:
        return Audio(self._path(said), caption=_text(said))

    def _video(self, key: str, said: Mapping[str, Any]) -> Any:
        return Video(self._path(said), caption=_text(said))

    def _html(self, key: str, said: Mapping[str, Any]) -> Any:
        return Html(self._path(said), inject=False)

    def _object3d(self, key: str, said: Mapping[str, Any]) -> Any:
        return Object3D(self._path(said), caption=_text(said))

    def _molecule(self, key: str, said: Mapping[str, Any]) -> Any:
        return Molecule(self._path(said), caption=_text(said))

    def _plotly(self, key: str, said: Mapping[str, Any]) -> Any:
        self._json(said)  # what is no JSON is no figure
        with open(self._path(said), "rb") as file:
            figure = Plotly.__new__(Plotly)  # its constructor would want plotly's object
            figure._blob = snapshot(file.read(), {"media": Plotly._type, "format": "plotly.json"})
        return figure

    def _graph(self, key: str, said: Mapping[str, Any]) -> Any:
        found = self._json(said)
        graph = Graph(str(found.get("format", "keras")))
        for node in found["nodes"]:
            graph.add_node(**{str(name): value for name, value in node.items()})
        for first, second in found.get("edges", ()):
            graph.add_edge(graph[first], graph[second])
        return graph

    def _bokeh(self, key: str, said: Mapping[str, Any]) -> Any:
        return Bokeh(self._path(said))

    def _histogram(self, key: str, said: Mapping[str, Any]) -> Any:
        packed = said.get("packedBins")
        if isinstance(packed, dict):
            low, width, count = float(packed["min"]), float(packed["size"]), int(packed["count"])
            edges = [low + width * place for place in range(min(count, len(said["values"])) + 1)]
        else:
            edges = said["bins"]
        return Histogram(np_histogram=(said["values"], edges))

    def _table(self, key: str, said: Mapping[str, Any]) -> Any:
        found = self._json(said)
        columns = [name if isinstance(name, int) else str(name) for name in found["columns"]]
        rows = [[self._cell(key, cell) for cell in row] for row in found["data"]]
        return Table(columns=columns, data=rows, allow_mixed_types=True)

    def _cell(self, key: str, cell: Any) -> Any:
        if isinstance(cell, dict) and isinstance(cell.get("_type"), str):
            try:
                made = self._one(key, cell["_type"], cell)
            except MissingFileError:
                return cell
            return cell if made is None else made
        return cell


_MAKERS: dict[Any, Callable[[Media, str, Mapping[str, Any]], Any]] = {
    "image-file": Media._image, "audio-file": Media._audio, "video-file": Media._video, "html-file": Media._html,
    "object3D-file": Media._object3d, "molecule-file": Media._molecule, "plotly-file": Media._plotly, "bokeh-file": Media._bokeh,
    "graph-file": Media._graph, "histogram": Media._histogram, "table-file": Media._table,
}  # fmt: skip


def _members(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a list of media says of each one: paths in "filenames" or maps, captions, boxes and masks beside them."""
    found: list[dict[str, Any]] = []
    names = said.get("filenames")
    if isinstance(names, list):
        found = [{"path": name} for name in names]
    for value in said.values():
        if isinstance(value, list) and value and isinstance(value[0], dict) and "path" in value[0]:
            found = [dict(one) for one in value if isinstance(one, dict)]
            break
    for name, place in (("captions", "caption"), ("all_boxes", "boxes"), ("all_masks", "masks")):
        values = said.get(name)
        if isinstance(values, list):
            for one, value in zip(found, values):
                if value:
                    one[place] = value
    return found


def _text(said: Mapping[str, Any]) -> str | None:
    caption = said.get("caption")
    return caption if isinstance(caption, str) else None


def _map(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
