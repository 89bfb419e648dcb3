"""Event files for tests, written by the tensorboard package itself."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy
from tensorboard.compat.proto.event_pb2 import Event, LogMessage, SessionLog
from tensorboard.compat.proto.histogram_pb2 import HistogramProto
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

START = 1_700_000_000.25
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


def simple(tag: str, value: float) -> Any:
    return Summary.Value(tag=tag, simple_value=value)


def tensor(tag: str, value: Any, plugin: str = "", content: bytes = b"", dtype: Any = None) -> Any:
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=plugin, content=content))
    proto = make_tensor_proto(value, dtype=dtype)
    return Summary.Value(tag=tag, tensor=proto, metadata=metadata if plugin else None)


def old_histogram(tag: str, limits: list[float], counts: list[float], low: float, high: float) -> Any:
    return Summary.Value(
        tag=tag, histo=HistogramProto(min=low, max=high, num=sum(counts), bucket_limit=limits, bucket=counts)
    )


def values(step: int, *parts: Any, at: float | None = None) -> Any:
    return Event(wall_time=START + step if at is None else at, step=step, summary=Summary(value=parts))


def started(step: int, at: float) -> Any:
    return Event(wall_time=at, step=step, session_log=SessionLog(status=SessionLog.START))


def logged(text: str, at: float) -> Any:
    return Event(wall_time=at, log_message=LogMessage(level=LogMessage.INFO, message=text))


def write(path: Path, *events: Any) -> Path:
    """Makes an event file as TensorBoard's writer does, or adds to one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with open(path, "ab") as file:
        writer = RecordWriter(file)
        if is_new:
            writer.write(Event(wall_time=START, file_version="brain.Event:2").SerializeToString())
        for event in events:
            writer.write(event.SerializeToString())
    return path


def wav() -> bytes:
    """A second of nothing, 8 bits at 8 samples a second."""
    data = bytes(8)
    head = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8, 8, 1, 8)
    body = b"WAVE" + head + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def strings(*parts: bytes) -> Any:
    return numpy.array(parts, dtype=object)
