"""What becomes of a value that TensorBoard's files hold (docs/import.md#values).

By the plugin that a tag's first value names, or, in files of older writers, by the field of the value itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy
from numpy.typing import NDArray

from daemon.formats import events, plugins
from daemon.formats.event_reading import SCALARS, Entry
from daemon.formats.protobuf import Value, fields, read_text
from daemon.formats.tensor_reading import Tensor, read_tensor
from sdk.values.audio import Audio
from sdk.values.chart import CustomChart
from sdk.values.histogram import BINS_MAX, Histogram
from sdk.values.image import Image
from sdk.values.object3d import Object3D
from sdk.values.table import Table
from sdk.values.video import Video

# Fields of Summary.Image and Summary.Audio; of HistogramProto.
_IMAGE_FILE, _AUDIO_FILE = 4, 4
_MINIMUM, _MAXIMUM, _LIMITS, _COUNTS = 1, 2, 6, 7
# What becomes a file, by plugin: its name and ending.
_FILES = {
    "graph_keras_model": ("graph/keras-model", "json"),
    "graph_run_metadata": ("graph/run-metadata", "pb"),
    "graph_run_metadata_graph": ("graph/run-metadata-graph", "pb"),
    "custom_scalars": ("layout/custom-scalars", "pb"),
}
_PLUGINS = frozenset(
    {
        SCALARS, plugins.IMAGES, plugins.AUDIO, plugins.TEXT, plugins.HISTOGRAMS, plugins.PR_CURVES, plugins.MESH, plugins.HPARAMS,
        "tensor", *_FILES,
    }
)  # fmt: skip
_PR_CURVE = "wandb/area-under-curve/v0"
_MESH_ENDS = {"_VERTEX": plugins.VERTEX, "_FACE": plugins.FACE, "_COLOR": plugins.COLOR}


class Values:
    """Makes our values of one run's. Remembers which plugin a tag is of, which only its first value may say.

    Attributes:
        lost: What cannot be stored -> how often. `remark` hears why.
        keep: Takes (name, ending, bytes) of what becomes a file of the run.
        config, status: What hparams said of the run.
    """

    def __init__(
        self, lost: Counter[str], remark: Callable[[str], None], keep: Callable[[str, str, bytes], None]
    ) -> None:
        self.lost = lost
        self.remark = remark
        self.keep = keep
        self.config: dict[str, Any] = {}
        self.status: int | None = None
        self._plugins: dict[str, tuple[str, bytes]] = {}

    def row_of(self, entries: Iterable[Entry]) -> dict[str, Any]:
        """The values of one event by key; what is none of the run's, or cannot be one, is left out, and counted."""
        row: dict[str, Any] = {}
        meshes: dict[str, _Parts] = {}
        for entry in entries:
            plugin, content = self._plugin_of(entry)
            try:
                if plugin == plugins.HPARAMS:
                    self._note_hparams(content)
                elif plugin in _FILES:
                    self._keep_files(entry, *_FILES[plugin])
                elif plugin == plugins.MESH:
                    _add_part(meshes, entry, content)
                else:
                    row[entry.tag] = self._value(entry, plugin)
            except Exception as error:  # Why so broad: a decoder given bytes that somebody made up
                self._leave_out(_name_of(plugin, entry), entry.tag, error)
        for name, parts in meshes.items():
            try:
                row[name] = _object_of(parts)
            except Exception as error:  # as above
                self._leave_out(plugins.MESH, name, error)
        return row

    def _leave_out(self, what: str, tag: str, error: Exception) -> None:
        self.lost[f"{what} that cannot be stored"] += 1
        self.remark(f"{tag!r}: {error}")

    def _plugin_of(self, entry: Entry) -> tuple[str, bytes]:
        if entry.plugin:
            self._plugins[entry.tag] = entry.plugin, entry.content
            return entry.plugin, entry.content
        return self._plugins.get(entry.tag, ("", b""))

    def _value(self, entry: Entry, plugin: str) -> Any:
        if entry.field == events.SIMPLE_VALUE:
            return entry.value
        if not isinstance(entry.value, memoryview):
            raise ValueError("there is no value in it")
        if entry.field == events.IMAGE:
            return _picture(_file_in(entry.value, _IMAGE_FILE))
        if entry.field == events.AUDIO:
            return Audio(_file_in(entry.value, _AUDIO_FILE))
        if entry.field == events.HISTO:
            return self._histogram(*_old_histogram(entry.value))
        if entry.field != events.TENSOR:
            raise ValueError("its kind is unknown")
        tensor = read_tensor(entry.value)
        if tensor.numbers is None:
            return _of_texts(tensor, plugin)
        if plugin == plugins.PR_CURVES:
            return _pr_curve(tensor.numbers, entry.tag)
        if plugin == plugins.HISTOGRAMS:
            return self._histogram(*_new_histogram(tensor.numbers))
        return tensor.numbers.copy() if tensor.numbers.size != 1 else tensor.numbers.reshape(()).item()

    def _keep_files(self, entry: Entry, name: str, ending: str) -> None:
        if not isinstance(entry.value, memoryview) or entry.field != events.TENSOR:
            raise ValueError("there is no text in it")
        for content in read_tensor(entry.value).texts:
            self.keep(name, ending, content)

    def _histogram(self, counts: NDArray[numpy.float64], edges: NDArray[numpy.float64]) -> Histogram:
        if not len(counts):
            raise ValueError("it is empty")
        if len(counts) > BINS_MAX:
            # Empty bins beside one another are one: the bins of older writers become ever smaller towards 0, and most of them
            # are empty.
            begins = numpy.concatenate(([True], (counts[1:] != 0) | (counts[:-1] != 0)))
            counts, edges = counts[begins], numpy.concatenate((edges[:-1][begins], edges[-1:]))
        if len(counts) > BINS_MAX:
            joined = -(-len(counts) // BINS_MAX)
            starts = numpy.arange(0, len(counts), joined)
            edges = numpy.concatenate((edges[starts], edges[-1:]))
            counts = numpy.add.reduceat(counts, starts)
            self.lost[f"histograms of more than {BINS_MAX} bins, of which neighbours were joined"] += 1
        whole = counts.astype(numpy.int64)
        return Histogram(np_histogram=(whole if (whole == counts).all() else counts, edges))

    def _note_hparams(self, content: bytes) -> None:
        for field, _, told in fields(content):
            if field == plugins.HPARAMS_START and isinstance(told, memoryview):
                for inner, _, pair in fields(told):
                    if inner == plugins.START_HPARAMS and isinstance(pair, memoryview):
                        key, value = _pair(pair)
                        self.config[key] = value
            elif field == plugins.HPARAMS_END and isinstance(told, memoryview):
                for inner, _, value in fields(told):
                    if inner == plugins.END_STATUS and isinstance(value, int):
                        self.status = value


def _name_of(plugin: str, entry: Entry) -> str:
    names = {events.IMAGE: "images", events.AUDIO: "audio", events.HISTO: "histograms", events.SIMPLE_VALUE: SCALARS}
    # Not whatever a file may call a plugin: what is lost is kept with the run.
    return (
        (plugin if plugin in _PLUGINS else "values of unknown plugins") if plugin else names.get(entry.field, "values")
    )


def _pair(pair: memoryview) -> tuple[str, Any]:
    """A name and the google.protobuf.Value of it."""
    key, found = "", None
    for field, _, value in fields(pair):
        if field == plugins.ENTRY_KEY and isinstance(value, memoryview):
            key = read_text(value)
        elif field == plugins.ENTRY_VALUE and isinstance(value, memoryview):
            found = _any(value)
    return key, found


def _any(payload: memoryview) -> Any:
    for field, _, value in fields(payload):
        if field == plugins.VALUE_STRING and isinstance(value, memoryview):
            return read_text(value)
        if field == plugins.VALUE_BOOL:
            return bool(value)
        if field == plugins.VALUE_NUMBER and isinstance(value, float):
            return value
        if field in (5, 6):
            raise ValueError("a hyperparameter that is a list or a map")
    return None


def _file_in(payload: memoryview, field: int) -> bytes:
    found: Value = 0
    for number, _, value in fields(payload):
        found = value if number == field else found
    if not isinstance(found, memoryview):
        raise ValueError("there is no file in it")
    return bytes(found)


def _picture(data: bytes) -> Image | Video:
    """An image; a GIF that moves is a video."""
    if data[:4] == b"GIF8" and data.count(b"\x00\x21\xf9\x04") > 1:
        return Video(data, format="gif")
    return Image(data)


def _of_texts(tensor: Tensor, plugin: str) -> Any:
    """Files or texts, by plugin."""
    if plugin == plugins.IMAGES:
        return _one_or_many([_picture(data) for data in tensor.texts[2:]])
    if plugin == plugins.AUDIO:
        pairs = tensor.texts[:: max(tensor.shape[-1], 1)] if len(tensor.shape) == 2 else tensor.texts
        return _one_or_many([Audio(data) for data in pairs])
    if plugin not in (plugins.TEXT, "") or any(b"\0" in text for text in tensor.texts):
        raise ValueError("bytes that only its own plugin reads")
    texts = [text.decode("utf-8", "replace") for text in tensor.texts]
    return texts[0] if len(texts) == 1 else numpy.array(texts, object).reshape(tensor.shape).tolist()


def _one_or_many(values: list[Any]) -> Any:
    if not values:
        raise ValueError("there is none in it")
    return values[0] if len(values) == 1 else values


def _old_histogram(payload: memoryview) -> tuple[NDArray[numpy.float64], NDArray[numpy.float64]]:
    """(counts, edges) of a HistogramProto; its limits are the upper ends, the outermost of which may be far away."""
    found: dict[int, float] = {}
    lists: dict[int, list[float]] = {_LIMITS: [], _COUNTS: []}
    for field, _, value in fields(payload):
        if field in lists:
            lists[field] += numpy.frombuffer(value, "<f8").tolist() if isinstance(value, memoryview) else [float(value)]
        elif isinstance(value, float):
            found[field] = value
    limits, counts = (numpy.array(lists[name], numpy.float64) for name in (_LIMITS, _COUNTS))
    if len(limits) != len(counts):
        raise ValueError(f"{len(limits)} limits and {len(counts)} counts")
    (there,) = numpy.nonzero(counts)
    if not len(there):
        raise ValueError("it is empty")
    first, last = int(there[0]), int(there[-1])
    low, high = found.get(_MINIMUM, 0.0), found.get(_MAXIMUM, 0.0)
    # As TensorBoard reads it: the outermost bins end at the smallest and the largest number.
    edges = numpy.concatenate(([low], limits[first:last], [high]))
    return counts[first : last + 1], numpy.maximum.accumulate(edges)


def _new_histogram(rows: NDArray[Any]) -> tuple[NDArray[numpy.float64], NDArray[numpy.float64]]:
    """(counts, edges) of rows of left end, right end, count; where they leave a hole there is a bin of nothing."""
    if rows.ndim != 2 or rows.shape[1] != 3:
        raise ValueError(f"a histogram of shape {rows.shape}, expected [n, 3]")
    counts: list[float] = []
    edges: list[float] = []
    for left, right, count in rows.astype(numpy.float64).tolist():
        if edges and not math.isclose(left, edges[-1], rel_tol=1e-6, abs_tol=1e-12):
            counts.append(0.0)
            edges.append(left)
        elif not edges:
            edges.append(left)
        counts.append(count)
        edges.append(right)
    return numpy.array(counts), numpy.array(edges)


def _pr_curve(rows: NDArray[Any], tag: str) -> CustomChart:
    """The chart of `sdk.plot.pr_curve`, whose table holds the counts as well."""
    if rows.ndim != 2 or len(rows) != plugins.PR_ROWS:
        raise ValueError(f"a PR curve of shape {rows.shape}, expected [{plugins.PR_ROWS}, n]")
    names = ["true_positives", "false_positives", "true_negatives", "false_negatives"]
    order = [plugins.PR_PRECISION, plugins.PR_RECALL, 0, 1, 2, 3]
    data = [[tag, *row] for row in rows[order].T.astype(numpy.float64).tolist()]
    table = Table(columns=["class", "precision", "recall", *names], data=data)
    texts = {"title": tag, "x-axis-title": "Recall", "y-axis-title": "Precision"}
    return CustomChart(_PR_CURVE, table, {"x": "recall", "y": "precision", "class": "class"}, texts)


# Vertices, faces and colors of a mesh, by what MeshPluginData calls them.
_Parts: TypeAlias = dict[int, NDArray[Any]]


def _add_part(meshes: dict[str, _Parts], entry: Entry, content: bytes) -> None:
    """Each part of a mesh is a value of its own, of one event; the plugin's content says which, or the tag's end."""
    if entry.field != events.TENSOR or not isinstance(entry.value, memoryview):
        raise ValueError("a mesh that is no tensor")
    numbers = read_tensor(entry.value).numbers
    if numbers is None or numbers.ndim != 3:
        raise ValueError("a mesh that is no list of points")
    ending = next((ending for ending in _MESH_ENDS if entry.tag.endswith(ending)), "")
    name, part = entry.tag.removesuffix(ending), _MESH_ENDS.get(ending, plugins.VERTEX)
    for field, _, value in fields(content):
        if field == plugins.MESH_NAME and isinstance(value, memoryview):
            name = read_text(value) or name
        elif field == plugins.MESH_CONTENT and value in _MESH_ENDS.values():
            part = int(value)
    meshes.setdefault(name, {})[part] = numbers


def _object_of(parts: _Parts) -> Any:
    """Points, with colors where there are some; with faces a Wavefront OBJ file."""
    if plugins.VERTEX not in parts:
        return next(iter(parts.values()))
    colors, faces = parts.get(plugins.COLOR), parts.get(plugins.FACE)
    made = []
    for place, points in enumerate(parts[plugins.VERTEX]):
        mine = colors[min(place, len(colors) - 1)] if colors is not None else None
        if faces is not None and faces.shape[1]:
            made.append(_obj(points, faces[min(place, len(faces) - 1)], mine))
        else:
            wide = points if mine is None else numpy.concatenate((points, mine.astype(points.dtype)), axis=1)
            made.append(Object3D(numpy.ascontiguousarray(wide)))
    return _one_or_many(made)


def _obj(points: NDArray[Any], faces: NDArray[Any], colors: NDArray[Any] | None) -> Object3D:
    shades = [""] * len(points)
    if colors is not None:
        shades = [" {:.6g} {:.6g} {:.6g}".format(*(part / 255 for part in color[:3])) for color in colors.tolist()]
    lines = ["v {!r} {!r} {!r}{}".format(*point[:3], shade) for point, shade in zip(points.tolist(), shades)]
    lines += ["f " + " ".join(str(int(index) + 1) for index in face) for face in faces.tolist()]
    return Object3D("\n".join([*lines, ""]).encode(), file_type="obj")
