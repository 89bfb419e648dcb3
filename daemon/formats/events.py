"""TensorBoard's event files: `Event` and what it is made of, as bytes. How they lie in a file is `tfrecord`'s.

The messages are those of tensorflow/core/util/event.proto and framework/{summary,tensor}.proto; only what TensorBoard reads
is written. What the plugins put into a value is in `plugins`, rows of numbers are in `scalar_events`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from daemon.formats.protobuf import block, double, integer, text

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Fields of Event.
WALL_TIME, STEP, FILE_VERSION, GRAPH_DEF, SUMMARY, SESSION_LOG, SOURCE_METADATA = 1, 2, 3, 4, 5, 7, 10
# Of SessionLog, and its status.
SESSION_STATUS, SESSION_START = 1, 1
# Of SourceMetadata.
WRITER = 1
# Of Summary, and of its Value.
SUMMARY_VALUE = 1
TAG, SIMPLE_VALUE, IMAGE, HISTO, AUDIO, TENSOR, METADATA = 1, 2, 4, 5, 6, 8, 9
# Of SummaryMetadata, and of its PluginData.
PLUGIN_DATA, DISPLAY_NAME, DESCRIPTION, DATA_CLASS = 1, 2, 3, 4
PLUGIN_NAME, PLUGIN_CONTENT = 1, 2
# A value of SummaryMetadata.data_class.
TENSORS = 2
# Of TensorProto, TensorShapeProto, and its Dim.
DTYPE, SHAPE, TENSOR_CONTENT, STRING_VAL = 1, 2, 4, 8
DIM, DIM_SIZE = 2, 1

VERSION = "brain.Event:2"
WRITER_NAME = "stepd"

# numpy's types, by kind and size, and what TensorFlow calls them.
DATA_TYPES: dict[str, int] = {
    "f4": 1, "f8": 2, "i4": 3, "u1": 4, "i2": 5, "i1": 6, "c8": 8, "i8": 9, "b1": 10, "u2": 17, "c16": 18, "f2": 19,
    "u4": 22, "u8": 23,
}  # fmt: skip
DT_STRING = 7


def event(wall_time: float, step: int | None, field: int, content: bytes) -> bytes:
    """An Event that holds one message.

    Args:
        step: None: it has none, which readers take for 0.
    """
    parts = [double(WALL_TIME, wall_time)]
    if step is not None:
        parts.append(integer(STEP, step))
    parts.append(block(field, content))
    return b"".join(parts)


def first_event(wall_time: float) -> bytes:
    """What a file begins with."""
    return event(wall_time, None, FILE_VERSION, VERSION.encode()) + block(SOURCE_METADATA, text(WRITER, WRITER_NAME))


def session_start(wall_time: float, step: int) -> bytes:
    """Says that the training began again at a step: readers drop what they have from there on."""
    return event(wall_time, step, SESSION_LOG, integer(SESSION_STATUS, SESSION_START))


def summary(wall_time: float, step: int, values: Iterable[bytes]) -> bytes:
    """An Event with values of one step, each as `value` gives it."""
    return event(wall_time, step, SUMMARY, b"".join(block(SUMMARY_VALUE, one) for one in values))


def value(tag: str, content: bytes, described: bytes = b"") -> bytes:
    """A value of a Summary.

    Args:
        content: A tensor.
        described: As `metadata` gives it. A reader needs it in a tag's first value only.
    """
    parts = [text(TAG, tag)]
    if described:
        parts.append(block(METADATA, described))
    parts.append(block(TENSOR, content))
    return b"".join(parts)


def metadata(
    plugin: str, content: bytes = b"", *, data_class: int = 0, display_name: str = "", note: str = ""
) -> bytes:
    """SummaryMetadata: which plugin shows the values of a tag.

    Args:
        data_class: Readers know it of their own plugins, and convert what has none: a sound that says BLOB_SEQUENCE is not divided
            from its label any more.
        note: Markdown that is shown beside it.
    """
    about = text(PLUGIN_NAME, plugin) + (block(PLUGIN_CONTENT, content) if content else b"")
    parts = [block(PLUGIN_DATA, about)]
    if display_name:
        parts.append(text(DISPLAY_NAME, display_name))
    if note:
        parts.append(text(DESCRIPTION, note))
    if data_class:
        parts.append(integer(DATA_CLASS, data_class))
    return b"".join(parts)


def tensor(array: NDArray[Any]) -> bytes:
    """A TensorProto of numbers.

    Raises:
        ValueError: TensorFlow has no such type.
    """
    name = f"{array.dtype.kind}{array.dtype.itemsize}"
    if name not in DATA_TYPES:
        raise ValueError(f"a tensor of type {array.dtype}, expected one of {', '.join(DATA_TYPES)}")
    content = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return integer(DTYPE, DATA_TYPES[name]) + block(SHAPE, shape(array.shape)) + block(TENSOR_CONTENT, content)


def string_tensor(parts: Sequence[bytes | memoryview], sizes: Sequence[int] | None = None) -> bytes:
    """A TensorProto of byte strings; without sizes of one axis."""
    described = integer(DTYPE, DT_STRING) + block(SHAPE, shape([len(parts)] if sizes is None else sizes))
    return b"".join([described, *(block(STRING_VAL, part) for part in parts)])


def shape(sizes: Iterable[int]) -> bytes:
    """A TensorShapeProto."""
    return b"".join(block(DIM, integer(DIM_SIZE, size)) for size in sizes)
