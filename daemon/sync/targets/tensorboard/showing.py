"""What TensorBoard shows of a value that is no number: which plugin, and what that wants. Whatever a value holds, a run goes on:
what cannot be shown is counted under its key.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy
from numpy.typing import NDArray

from daemon.formats import plugins
from daemon.formats.plugins import Shown
from daemon.sync.targets.tensorboard.eventfile import GRAPHS
from daemon.sync.targets.tensorboard.graphs import graph_of
from daemon.sync.targets.tensorboard.meshes import cloud, read_mesh
from daemon.sync.targets.tensorboard.points import Lost
from daemon.sync.targets.tensorboard.projector import write_embedding
from sdk.errors import Error, StoreError
from sdk.files import EXPORTS
from sdk.limits import MIB
from sdk.reader import MediaItem
from sdk.reader.media import items_in
from sdk.reader.plain import as_json

# What is shown of one value: tags, each with what its plugin wants.
_Parts = Iterator[tuple[str, Shown]]

MEDIA = "media"
# Limit: a page of markdown with more rows does not open any more.
TABLE_ROWS_MAX = 1000
# Limit: readers keep ten of each tag in memory.
TENSOR_BYTES_MAX = TEXT_BYTES_MAX = 4 * MIB
_BROWSER_PICTURES = ("png", "jpg", "jpeg", "gif", "webp", "bmp", "avif", "ico")


class Shower:
    """Shows the values of one directory.

    Args:
        lost: Counts what cannot be shown.
        told: Takes remarks.

    Attributes:
        directory: Where files go that stand beside the events.
        embeddings: Of that directory, as `projector.config` wants them.
    """

    def __init__(
        self, directory: str, embeddings: list[dict[str, Any]], lost: Lost, told: Callable[[str], None]
    ) -> None:
        self.directory, self.embeddings = directory, embeddings
        self._lost, self._told = lost, told
        self._kinds: dict[str, Callable[[str, MediaItem], _Parts]] = {
            "image": self._image, "video": self._video, "audio": self._audio, "histogram": self._histogram,
            "tensor": self._tensor, "table": self._table, "chart": self._chart, "object3d": self._object3d,
            "graph": self._graph, "embedding": self._embedding, "value": self._value,
        }  # fmt: skip

    def shown(self, key: str, value: Any) -> list[tuple[str, Shown]]:
        """Tags, and what is shown under each."""
        try:
            return list(self._parts(key, value))
        except Error as error:
            if type(error) is StoreError:  # the store itself, not what is in it: the next pass may have better luck
                raise
            self._lost(f"{_called(value)} that cannot be read", key, 1)
            self._told(f"{key}: {error.message}")
        except (
            ValueError,
            TypeError,
            LookupError,
            ArithmeticError,
            RecursionError,
        ) as error:  # whatever somebody made up
            self._lost(f"{_called(value)} that cannot be shown", key, 1)
            self._told(f"{key}: {error}")
        return []

    def _parts(self, key: str, value: Any) -> _Parts:
        if isinstance(value, str):
            yield key, plugins.texts([value])
        elif isinstance(value, MediaItem):
            yield from self._item(key, value)
        elif isinstance(value, bytes):
            self._lost("bytes", key, 1)
        elif isinstance(value, numpy.ndarray):
            yield from self._array(key, value)
        else:
            yield from self._nested(key, value)

    def _item(self, key: str, item: MediaItem) -> _Parts:
        yield from self._kinds.get(item.kind, self._beside)(key, item)

    def _nested(self, key: str, value: Any) -> _Parts:
        """Lists and maps: pictures or sounds as one value, else their JSON, and what is in them one by one."""
        items = items_in(value)
        kinds = {item.kind for item in value if isinstance(item, MediaItem)} if isinstance(value, list) else set()
        if len(kinds) == 1 and len(items) == len(value) and kinds <= {"image", "audio"}:
            yield from (self._images if "image" in kinds else self._sounds)(key, items)
            return
        yield key, plugins.texts([as_json(value)])
        for place, item in enumerate(items):
            yield from self._item(f"{key}/{place}", item)

    # -- pictures, sounds ------------------------------------------------------------------------------------------------

    def _image(self, key: str, item: MediaItem) -> _Parts:
        yield from self._images(key, [item])

    def _images(self, key: str, items: list[MediaItem]) -> _Parts:
        files = []
        for item in items:
            if item.format not in _BROWSER_PICTURES:
                self._told(f"{key}: browsers may not show {item.format} pictures")
            if {"boxes", "masks"} & item.value.keys():
                self._told("boxes and masks of images are not shown by TensorBoard")
            files.append(item.bytes())
        about = items[0].value
        sizes = [about[side] if type(about.get(side)) is int else 0 for side in ("width", "height")]
        yield key, plugins.images(files, *sizes)

    def _video(self, key: str, item: MediaItem) -> _Parts:
        """As a picture that moves, which is all that TensorBoard knows of films."""
        data = item.bytes() if item.format == "gif" else _as_gif(item)
        about = item.value
        sizes = [about[side] if type(about.get(side)) is int else 0 for side in ("width", "height")]
        yield key, plugins.images([data], *sizes)

    def _audio(self, key: str, item: MediaItem) -> _Parts:
        yield from self._sounds(key, [item])

    def _sounds(self, key: str, items: list[MediaItem]) -> _Parts:
        captions = [item.caption or "" for item in items]
        is_wav = all(item.format == "wav" for item in items)
        yield key, plugins.audio([item.bytes() for item in items], captions, is_wav=is_wav)

    # -- numbers ---------------------------------------------------------------------------------------------------------

    def _histogram(self, key: str, item: MediaItem) -> _Parts:
        yield key, plugins.histogram(item.values, item.bins)

    def _tensor(self, key: str, item: MediaItem) -> _Parts:
        if not item.is_stored:
            self._told(f"{key}: of tensors over their budget only a histogram is there")
            yield from self._distribution(key, item.statistics)
            return
        yield from self._array(key, item.to_numpy(), item)

    def _array(self, key: str, array: NDArray[Any], item: MediaItem | None = None) -> _Parts:
        """The numbers for readers, their distribution for the page."""
        from sdk.values.tensor import tensor_statistics

        if array.dtype.kind not in "biufc":
            is_foreign = array.dtype.isbuiltin != 1 and array.dtype.kind not in "SUMm"  # bfloat16 and the like
            if not is_foreign:
                yield key, plugins.texts([as_json(array.astype(str).tolist())])
                return
            array = array.astype("f4")
        if array.ndim == 0 and array.dtype.kind != "c":
            yield key, plugins.number(float(array))
            return
        if array.nbytes <= TENSOR_BYTES_MAX:
            yield key, plugins.tensor(array if array.dtype != numpy.longdouble else array.astype("f8"))
        else:
            self._lost(f"tensors beyond {TENSOR_BYTES_MAX >> 20} MiB, but for their distribution", key, 1)
        statistics = tensor_statistics(array, None) if item is None else item.statistics
        yield from self._distribution(key, statistics)

    def _distribution(self, key: str, statistics: dict[str, Any]) -> _Parts:
        found = statistics.get("histogram")
        if isinstance(found, dict) and found.get("values"):
            yield f"{key}/histogram", plugins.histogram(found["values"], found["bins"])

    # -- tables, charts --------------------------------------------------------------------------------------------------

    def _table(self, key: str, item: MediaItem) -> _Parts:
        rows = item.rows
        if len(rows) > TABLE_ROWS_MAX:
            self._lost(f"rows of tables beyond {TABLE_ROWS_MAX}", key, len(rows) - TABLE_ROWS_MAX)
        yield key, plugins.texts([_markdown(item.columns, rows[:TABLE_ROWS_MAX])])

    def _chart(self, key: str, item: MediaItem) -> _Parts:
        """A curve of precision and recall as one; of others the table."""
        about = item.value
        table = about.get("table")
        if not (isinstance(table, MediaItem) and table.kind == "table"):
            yield from self._beside(key, item)
            return
        columns = table.columns
        if {"precision", "recall"} <= set(map(str, columns)):
            yield from _pr_curves(key, columns, table.rows)
            return
        yield from self._table(key, table)

    # -- the rest --------------------------------------------------------------------------------------------------------

    def _object3d(self, key: str, item: MediaItem) -> _Parts:
        if item.format == "pts.json" and "type" in item.value:
            self._told("boxes and vectors of point clouds are not shown by TensorBoard")
        if item.format == "pts.json":
            found = cloud(_points(item))
        elif item.format in ("obj", "stl"):
            found = read_mesh(item.bytes(), item.format)
        else:
            yield from self._beside(key, item)
            return
        yield from plugins.mesh(key, *found)

    def _graph(self, key: str, item: MediaItem) -> _Parts:
        yield key, Shown(GRAPHS, graph_of(item.bytes()), b"")

    def _embedding(self, key: str, item: MediaItem) -> _Parts:
        entry = write_embedding(self.directory, item, key)
        self.embeddings[:] = [one for one in self.embeddings if one["path"] != entry["path"]] + [entry]
        yield from ()

    def _value(self, key: str, item: MediaItem) -> _Parts:
        """What was stored apart because it was large."""
        yield from self._parts(key, item.data) if item.size <= TEXT_BYTES_MAX else self._beside(key, item)

    def _beside(self, key: str, item: MediaItem) -> _Parts:
        """What no plugin shows: its file in the run's directory, and a text that names it."""
        # Keys may differ in what a file's name cannot hold.
        name = f"{zlib.crc32(key.encode('utf-8', 'surrogatepass')):08x}-{item.file_name}"
        directory = os.path.join(self.directory, MEDIA)
        EXPORTS.make_directory(directory)
        EXPORTS.write_whole(os.path.join(directory, name), item.bytes())
        said = f": {item.caption}" if item.caption else ""
        yield key, plugins.texts([f"{item.kind} `{MEDIA}/{name}`{said}"])


def _called(value: Any) -> str:
    return f"values of kind {value.kind}" if isinstance(value, MediaItem) else f"values of type {type(value).__name__}"


def _as_gif(item: MediaItem) -> bytes:
    """The frames of a film in another format."""
    from sdk.encoders import encode

    frames = numpy.ascontiguousarray(item.to_numpy().transpose(0, 3, 1, 2))
    fps = item.value.get("fps")
    meta = {
        "media": "video-file", "to": "gif", "array": [frames.dtype.str, list(frames.shape), None], "layout": "TCHW",
        "fps": fps if isinstance(fps, (int, float)) else 4,
    }  # fmt: skip
    made = encode(frames.tobytes(), meta)
    if made is None:
        raise ValueError("a film without frames")
    return bytes(made.data)


def _points(item: MediaItem) -> NDArray[Any]:
    """Of a point cloud that was an array, or a file that the user gave."""
    import json

    content = json.loads(item.bytes())
    return numpy.array(content["points"] if isinstance(content, dict) else content, float)


def _markdown(columns: list[Any], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    said = f"({value.kind})" if isinstance(value, MediaItem) else value if isinstance(value, str) else as_json(value)
    return " ".join(said.split()).replace("|", "\\|")


def _pr_curves(key: str, columns: list[Any], rows: list[list[Any]]) -> _Parts:
    """One for each class; the points by falling recall, as by rising thresholds."""
    precision, recall = columns.index("precision"), columns.index("recall")
    label = columns.index("class") if "class" in columns else None
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        name = key if label is None else f"{key}/{row[label]}"
        curves.setdefault(name, []).append((float(row[recall]), float(row[precision])))
    for name, points in curves.items():
        points.sort(key=lambda point: -point[0])
        yield name, plugins.pr_curve([point[1] for point in points], [point[0] for point in points])
