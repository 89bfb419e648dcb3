"""daemon.formats.event_reading, tensor_reading and record_files: what protobuf and tensorboard write is read as they mean it."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import numpy
import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.util.tensor_util import make_ndarray, make_tensor_proto

from daemon.formats.event_reading import ScalarReader, parse_event
from daemon.formats.record_files import RecordFile
from daemon.formats.tensor_reading import read_tensor
from daemon.formats.tfrecord import record
from tests.importing.event_files import simple, tensor, values, write

Point = tuple[int, str, int, float, float]


def laid_out(payloads: list[bytes]) -> tuple[bytes, Any, Any]:
    sizes = numpy.array([len(payload) for payload in payloads], numpy.int64)
    starts = numpy.concatenate(([5], sizes[:-1])).cumsum()
    return b"xxxxx" + b"".join(payloads) + bytes(32), starts, sizes


def read_all(payloads: list[bytes]) -> tuple[list[Point], list[int]]:
    """What is read as scalars, and the places of what is left."""
    reader = ScalarReader()
    found = reader.read(*laid_out(payloads))
    points = zip(
        found.records.tolist(),
        found.which.tolist(),
        found.steps.tolist(),
        found.wall_times.tolist(),
        found.values.tolist(),
    )
    return [(record, reader.tags[which], *rest) for record, which, *rest in points], found.rest.tolist()  # type: ignore[misc]


def some_event(chance: random.Random) -> Any:
    """An event as some writer makes it: with one scalar or more, in one way or another, or with something else."""
    step = chance.choice([0, 1, 127, 128, 16383, 16384, 2**31, 2**62, -1, chance.randrange(300)])
    parts = []
    for _ in range(chance.choice([1, 1, 1, 1, 2, 3])):
        tag = chance.choice(["a", "b", "loss", "größe", "x" * 130, "x" * 129 + "y", ""])
        value = chance.choice([0.0, 1.5, -1e30, float("inf"), 2.0**-140])
        kind = chance.randrange(8)
        if kind < 4:
            parts.append(simple(tag, value))
        elif kind == 4:
            parts.append(tensor(tag, numpy.float32(value), "scalars"))
        elif kind == 5:
            parts.append(tensor(tag, numpy.float64(value), chance.choice(["", "scalars"])))
        elif kind == 6:
            proto = TensorProto(dtype=1, tensor_content=struct.pack("<f", value))
            parts.append(Summary.Value(tag=tag, tensor=proto))
        else:
            parts.append(tensor(tag, numpy.array([value, 2.0], numpy.float32), "tensor"))
    return values(step, *parts, at=chance.choice([0.0, 1.7e9, 1.7e9 + chance.random()]))


def meant(event: Any) -> list[tuple[str, int, float, float]] | None:
    """The scalars of an event, as protobuf and tensorboard read it; None: there is something else in it."""
    found = []
    for part in event.summary.value:
        if part.WhichOneof("value") == "simple_value":
            value = part.simple_value
        else:
            array = make_ndarray(part.tensor)
            if array.size != 1 or part.metadata.plugin_data.plugin_name not in ("", "scalars"):
                return None
            value = float(array.reshape(()))
        found.append((part.tag, event.step, event.wall_time, value))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_scalars_are_what_protobuf_says(seed: int) -> None:
    """Of events of any writer and order: all scalars with their places, and everything else is left over, none twice."""
    chance = random.Random(seed)
    events = [some_event(chance) for _ in range(400)]
    points, rest = read_all([event.SerializeToString() for event in events])
    expected = {place: found for place, event in enumerate(events) if (found := meant(event)) is not None}
    by_place: dict[int, list[Any]] = {}
    for place, *point in points:
        by_place.setdefault(place, []).append(tuple(point))
    assert sorted([*by_place, *rest]) == list(range(len(events))), seed
    assert {place: expected[place] for place in by_place} == by_place, seed
    # An event without a time, and a value without a tag, are read one by one.
    usual = {place for place, found in expected.items() if events[place].wall_time and all(tag for tag, *_ in found)}
    assert not usual.intersection(rest), seed
    for place in rest:
        parsed = parse_event(memoryview(events[place].SerializeToString()))
        assert (parsed.step, parsed.wall_time) == (events[place].step, events[place].wall_time)
        assert [entry.tag for entry in parsed.entries] == [part.tag for part in events[place].summary.value]


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_believed(seed: int) -> None:
    """Of bytes that were changed or cut anywhere something is read or nothing, and nothing else happens."""
    chance = random.Random(seed)
    payloads = []
    for _ in range(500):
        data = bytearray(some_event(chance).SerializeToString())
        for _ in range(chance.randrange(4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        payloads.append(bytes(data[: chance.choice([len(data), chance.randrange(len(data) + 1)])]))
    _, rest = read_all(payloads)
    for place in rest:
        try:
            parsed = parse_event(memoryview(payloads[place]))
            for entry in parsed.entries:
                if isinstance(entry.value, memoryview):
                    read_tensor(entry.value)
        except ValueError:
            pass


@pytest.mark.parametrize(
    "array",
    [
        numpy.arange(6, dtype=numpy.float32).reshape(2, 3),
        numpy.float64(0.1),
        numpy.arange(-3, 3, dtype=numpy.int64),
        numpy.array([1, 2], numpy.int32),
        numpy.array([[True], [False]]),
        numpy.array([1.5, 2.5], numpy.float16),
        numpy.zeros((0, 3)),
        numpy.full((4, 4), 7, numpy.int64),
        numpy.array([2**63 + 1], numpy.uint64),
        numpy.array([250], numpy.uint8),
    ],
)
def test_tensors_are_what_tensorboard_says(array: Any) -> None:
    """Of every type of number, wherever the elements stand."""
    one_by_one = make_tensor_proto(array)
    content = numpy.asarray(array).tobytes()
    as_bytes = TensorProto(dtype=one_by_one.dtype, tensor_shape=one_by_one.tensor_shape, tensor_content=content)
    for proto in (one_by_one, as_bytes):
        found = read_tensor(memoryview(proto.SerializeToString())).numbers
        assert found is not None
        assert found.dtype == numpy.asarray(array).dtype
        assert numpy.array_equal(found, array)


def test_the_last_element_stands_for_those_that_follow() -> None:
    """As in files of TensorFlow; a tensor that claims more than it could hold is none."""
    proto = make_tensor_proto(numpy.zeros((3,), numpy.float32))
    short = TensorProto(dtype=1, tensor_shape=proto.tensor_shape, float_val=[1.0, 5.0])
    found = read_tensor(memoryview(short.SerializeToString())).numbers
    assert found is not None
    assert found.tolist() == [1.0, 5.0, 5.0]
    for size in (1 << 40, 1 << 28):
        proto.tensor_shape.dim[0].size = size
        with pytest.raises(ValueError, match="shape"):
            read_tensor(
                memoryview(TensorProto(dtype=1, tensor_shape=proto.tensor_shape, float_val=[1.0]).SerializeToString())
            )


def records_of(data: bytes, portion: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[bytes], RecordFile]:
    monkeypatch.setattr("daemon.formats.record_files.PORTION_BYTES", portion)
    file = RecordFile(lambda at, size: data[at : at + size], len(data))
    found = []
    for some in file.portions():
        found += [some.data[start : start + size] for start, size in zip(some.starts.tolist(), some.sizes.tolist())]
    return found, file


def test_portions_hold_whole_records_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is larger than a portion; wherever the file ends, what is whole is read."""
    payloads = [b"a", b"", b"b" * 150, b"c" * 20]
    data = b"".join(map(record, payloads))
    for end in range(len(data) + 1):
        found, file = records_of(data[:end], 64, monkeypatch)
        whole = [
            payload for at, payload in enumerate(payloads) if len(b"".join(map(record, payloads[: at + 1]))) <= end
        ]
        assert found == whole
        assert file.tail_bytes == end - sum(len(record(payload)) for payload in whole)
        assert (file.bad, file.holes) == (0, 0)


def test_behind_damage_the_next_record_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever byte is wrong, one record is lost and counted, and no other."""
    payloads = [b"first", b"second " * 20, b"third", b"fourth"]
    data = b"".join(map(record, payloads))
    begin = len(record(payloads[0]))
    for place in range(begin, begin + len(record(payloads[1]))):
        broken = bytearray(data)
        broken[place] ^= 0x10
        found, file = records_of(bytes(broken), 100, monkeypatch)
        assert found == [payloads[0], *payloads[2:]], place
        assert file.bad + file.holes == 1, place


def test_a_file_of_tensorboard_is_read(tmp_path: Path) -> None:
    """What its own writer has written: the version first, then what was given."""
    path = write(tmp_path / "events.out.tfevents.1", values(3, simple("loss", 0.5)))
    data = path.read_bytes()
    (portion,) = RecordFile(lambda at, size: data[at : at + size], len(data)).portions()
    assert len(portion.starts) == 2
    assert Event.FromString(portion.data[portion.starts[1] : portion.starts[1] + portion.sizes[1]]).step == 3
