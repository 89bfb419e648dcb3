"""What TensorBoard's plugins expect of a value: the tensor, and what describes it. The second forms ("v2"), in which its own readers see
all values; tensorboard/plugins/*/{metadata,summary}.py and their plugin_data.proto say what is in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from daemon.formats import events
from daemon.formats.protobuf import block, double, integer, packed, text

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCALARS, IMAGES, AUDIO, TEXT, HISTOGRAMS, TENSOR = "scalars", "images", "audio", "text", "histograms", "tensor"
PR_CURVES, MESH, HPARAMS = "pr_curves", "mesh", "hparams"

# Tags of hparams.
SESSION_START_TAG, SESSION_END_TAG = "_hparams_/session_start_info", "_hparams_/session_end_info"
# Fields of HParamsPluginData, SessionStartInfo, its map's entries, google.protobuf.Value, SessionEndInfo.
HPARAMS_START, HPARAMS_END = 3, 4
START_HPARAMS, START_SECONDS = 1, 5
ENTRY_KEY, ENTRY_VALUE = 1, 2
VALUE_NUMBER, VALUE_STRING, VALUE_BOOL = 2, 3, 4
END_STATUS, END_SECONDS = 1, 2
STATUS_SUCCESS, STATUS_FAILURE = 1, 2
# Fields of the others' plugin data: AudioPluginData, PrCurvePluginData, MeshPluginData.
AUDIO_ENCODING, WAV = 2, 11
PR_THRESHOLDS = 2
MESH_NAME, MESH_CONTENT, MESH_CONFIG, MESH_SHAPE, MESH_COMPONENTS = 2, 3, 5, 6, 7
VERTEX, FACE, COLOR = 1, 2, 3
# How many points of a cloud would fill it from one side to the other.
POINTS_ACROSS = 150
# Rows of the tensor of a pr curve: true positives, false positives, (true negatives), false negatives, precision, recall.
PR_ROWS, PR_RIGHT, PR_WRONG, PR_MISSED, PR_PRECISION, PR_RECALL = 6, 0, 1, 3, 4, 5
PR_POSITIVES = 10_000


class Shown(NamedTuple):
    """A value as a plugin wants it.

    Attributes:
        plugin: Its name.
        tensor: A TensorProto.
        described: SummaryMetadata.
    """

    plugin: str
    tensor: bytes
    described: bytes


def number(value: float, *, as_double: bool = False) -> Shown:
    """A number, as float32 unless `as_double`, which TensorBoard's fast loader leaves out."""
    import numpy

    with numpy.errstate(over="ignore"):
        array = numpy.asarray(value, "<f8" if as_double else "<f4")
    return Shown(SCALARS, events.tensor(array), events.metadata(SCALARS))


def images(files: Sequence[bytes], width: int, height: int) -> Shown:
    """Pictures, as files that a browser knows: png, jpg, gif (which may move) and others."""
    parts = [str(width).encode(), str(height).encode(), *files]
    return Shown(IMAGES, events.string_tensor(parts), events.metadata(IMAGES))


def audio(files: Sequence[bytes], labels: Sequence[str], *, is_wav: bool) -> Shown:
    """Sounds, as files that a browser knows; a label is markdown."""
    parts = [part for file, label in zip(files, labels) for part in (file, label.encode("utf-8", "replace"))]
    content = integer(AUDIO_ENCODING, WAV if is_wav else 0)
    described = events.metadata(AUDIO, content)
    return Shown(AUDIO, events.string_tensor(parts, [len(files), 2]), described)


def texts(parts: Sequence[str]) -> Shown:
    """Markdown."""
    tensor = events.string_tensor([part.encode("utf-8", "replace") for part in parts])
    return Shown(TEXT, tensor, events.metadata(TEXT))


def histogram(counts: Sequence[float], edges: Sequence[float]) -> Shown:
    """Bins that touch: left edge, right edge and count of each."""
    import numpy

    bins = numpy.column_stack([edges[:-1], edges[1:], counts]).astype("<f8").reshape(-1, 3)
    return Shown(HISTOGRAMS, events.tensor(bins), events.metadata(HISTOGRAMS))


def tensor(array: NDArray[Any]) -> Shown:
    """Numbers as they are. No page of TensorBoard shows them; its readers give them.

    Raises:
        ValueError: TensorFlow has no such type.
    """
    return Shown(TENSOR, events.tensor(array), events.metadata(TENSOR, data_class=events.TENSORS))


def pr_curve(precision: Sequence[float], recall: Sequence[float]) -> Shown:
    """Points of a curve, by falling recall. The page leaves out points without counts, which are made up: of `PR_POSITIVES` samples."""
    import numpy

    ratio = numpy.maximum(numpy.asarray(precision, "f8"), 1 / PR_POSITIVES)
    right = numpy.maximum(numpy.rint(numpy.asarray(recall, "f8") * PR_POSITIVES), 1)
    points = numpy.zeros((PR_ROWS, len(right)), "<f4")
    points[PR_RIGHT], points[PR_WRONG], points[PR_MISSED] = (
        right,
        numpy.rint(right / ratio - right),
        PR_POSITIVES - right,
    )
    points[PR_PRECISION], points[PR_RECALL] = precision, recall
    note = f"Counts and thresholds were not logged; they are made of precision and recall, of {PR_POSITIVES} positive samples."
    described = events.metadata(PR_CURVES, integer(PR_THRESHOLDS, len(right)), note=note)
    return Shown(PR_CURVES, events.tensor(points), described)


def mesh(
    name: str, vertices: NDArray[Any], faces: NDArray[Any] | None = None, colors: NDArray[Any] | None = None
) -> Iterator[tuple[str, Shown]]:
    """The values that make a mesh or a cloud of points, each with its tag.

    Args:
        vertices: float[n, 3]. faces: Indices of three of them, int[m, 3]. colors: uint8[n, 3].
    """
    parts = [("VERTEX", VERTEX, vertices, "<f4"), ("FACE", FACE, faces, "<i4"), ("COLOR", COLOR, colors, "u1")]
    config = "{}" if faces is not None or not len(vertices) else _point_size(vertices)
    components = sum(1 << kind for _, kind, array, _ in parts if array is not None)
    for called, kind, array, dtype in parts:
        if array is None:
            continue
        batch = array.astype(dtype)[None]
        content = b"".join((
            text(MESH_NAME, name), integer(MESH_CONTENT, kind), text(MESH_CONFIG, config), packed(MESH_SHAPE, batch.shape),
            integer(MESH_COMPONENTS, components),
        ))  # fmt: skip
        described = events.metadata(MESH, content, display_name=name)
        yield f"{name}_{called}", Shown(MESH, events.tensor(batch), described)


def _point_size(vertices: NDArray[Any]) -> str:
    """What the page is to draw points with: by themselves they are a two-hundredth of a unit, whatever that is."""
    import json

    import numpy

    finite = vertices[numpy.isfinite(vertices).all(axis=1)]
    extent = float((finite.max(axis=0) - finite.min(axis=0)).max()) if len(finite) else 0.0
    return json.dumps({"material": {"cls": "PointsMaterial", "size": max(extent, 1e-6) / POINTS_ACROSS}})


def session_start(config: Mapping[str, bool | float | str], seconds: float) -> Shown:
    """What a training was started with, as its hyperparameters."""
    entries = [
        block(START_HPARAMS, text(ENTRY_KEY, key) + block(ENTRY_VALUE, _any(value))) for key, value in config.items()
    ]
    return _hparams(block(HPARAMS_START, b"".join([*entries, double(START_SECONDS, seconds)])))


def session_end(status: int, seconds: float) -> Shown:
    """How and when it ended."""
    return _hparams(block(HPARAMS_END, integer(END_STATUS, status) + double(END_SECONDS, seconds)))


def _hparams(content: bytes) -> Shown:
    import numpy

    # A value must be there; only what describes it is looked at.
    return Shown(HPARAMS, events.tensor(numpy.float32(0)), events.metadata(HPARAMS, content))


def _any(value: bool | float | str) -> bytes:
    """A google.protobuf.Value."""
    if isinstance(value, bool):
        return integer(VALUE_BOOL, value)
    return text(VALUE_STRING, value) if isinstance(value, str) else double(VALUE_NUMBER, value)


# -- graphs --------------------------------------------------------------------------------------------------------------

# Fields of GraphDef, NodeDef, its attributes, AttrValue, VersionDef.
GRAPH_NODE, GRAPH_VERSIONS, VERSION_PRODUCER = 1, 4, 1
NODE_NAME, NODE_OP, NODE_INPUT, NODE_ATTR = 1, 2, 3, 5
ATTR_STRING = 2
_PRODUCER = 22


class Node(NamedTuple):
    """A node of a graph. A name's parts between slashes are boxes around it."""

    name: str
    operation: str
    inputs: Sequence[str]
    attributes: Mapping[str, str]


def graph(nodes: Sequence[Node]) -> bytes:
    """A GraphDef."""
    parts = []
    for node in nodes:
        said = [text(NODE_NAME, node.name), text(NODE_OP, node.operation)]
        said += [text(NODE_INPUT, name) for name in node.inputs]
        for key, value in node.attributes.items():
            content = block(ATTR_STRING, value.encode("utf-8", "replace"))
            said.append(block(NODE_ATTR, text(ENTRY_KEY, key) + block(ENTRY_VALUE, content)))
        parts.append(block(GRAPH_NODE, b"".join(said)))
    parts.append(block(GRAPH_VERSIONS, integer(VERSION_PRODUCER, _PRODUCER)))
    return b"".join(parts)
