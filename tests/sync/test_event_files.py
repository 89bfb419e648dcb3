"""Event files, byte by byte: checksums, records, events of rows, as the tensorboard package and its protobufs read them."""

from __future__ import annotations

import os

import numpy
import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.util import tensor_util

from daemon.formats import events, plugins, protobuf
from daemon.formats.crc32c import crc32c, crc32c_rows, masked, masked_of, position_tables
from daemon.formats.scalar_events import scalar_records
from daemon.formats.tfrecord import OVERHEAD_BYTES, header, read_records, record

# Steps whose varints have every length.
STEPS = numpy.array([0, 1, 127, 128, 300, 16_383, 16_384, *(1 << (7 * n) for n in range(3, 9)), 2**63 - 1])


def _slow(data: bytes) -> int:
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def _records(data: bytes) -> list[bytes]:
    """The payloads, each checked bit by bit."""
    found = []
    while data:
        size = int.from_bytes(data[:8], "little")
        payload = data[12 : 12 + size]
        assert int.from_bytes(data[8:12], "little") == masked(_slow(data[:8]))
        assert int.from_bytes(data[12 + size : 16 + size], "little") == masked(_slow(payload))
        found.append(payload)
        data = data[OVERHEAD_BYTES + size :]
    return found


class TestCrc32c:
    """Checksums, of one buffer and of many."""

    def test_the_known_value(self) -> None:
        """Of the nine digits it is what RFC 3720 and everybody else says."""
        assert crc32c(b"123456789") == 0xE3069283
        assert crc32c(b"") == 0
        assert crc32c(b"\0" * 32) == 0x8A9136AA

    @pytest.mark.parametrize("size", [1, 2, 3, 63, 64, 65, 127, 128, 129, 1000])
    def test_every_way_gives_the_same(self, size: int) -> None:
        """By hand, folded, and of rows: one number."""
        rows = numpy.frombuffer(os.urandom(3 * size), "u1").reshape(3, size)
        expected = [_slow(row.tobytes()) for row in rows]
        assert [crc32c(row.tobytes()) for row in rows] == expected
        assert crc32c_rows(rows).tolist() == expected
        assert masked_of(crc32c_rows(rows)).tolist() == [masked(crc) for crc in expected]

    def test_a_long_buffer_is_folded_in_portions(self) -> None:
        """Over the border between two megabytes it is the same as of both together."""
        data = os.urandom((1 << 20) + 5)
        rows = numpy.frombuffer(data, "u1").reshape(1, -1)
        assert crc32c(data) == int(crc32c_rows(rows)[0])

    def test_a_byte_counts_by_its_place(self) -> None:
        """A message's checksum is that of zeros plus what each byte adds in its place."""
        data = os.urandom(100)
        state = crc32c(bytes(100))
        for place, table in enumerate(position_tables(100)):
            state ^= int(table[data[99 - place]])
        assert state == crc32c(data)


class TestRecords:
    """Rows of numbers, as records."""

    @pytest.mark.parametrize("as_double", [False, True])
    @pytest.mark.parametrize(
        "tags", [["a"], ["loss", "é" + "x" * 300], [f"k{n}" for n in range(500)], ["q" * 10_000, "b"]], ids=len
    )
    def test_every_row_is_read_back(self, tags: list[str], *, as_double: bool) -> None:
        """Tag, step, time and number of every row are those that were given, whatever the lengths; in order of rows."""
        times = numpy.linspace(1.7e9, 1.7e9 + 5, len(STEPS))
        columns = [numpy.random.default_rng(n).standard_normal(len(STEPS)) for n in range(len(tags))]
        columns[0][:3] = numpy.nan, numpy.inf, -numpy.inf
        data = b"".join(part.tobytes() for part in scalar_records(tags, times, STEPS, columns, as_double=as_double))
        found: dict[str, list[tuple[int, float, float]]] = {}
        for payload in _records(data):
            event = Event.FromString(payload)
            for value in event.summary.value:
                number = tensor_util.make_ndarray(value.tensor).item() if as_double else value.simple_value
                found.setdefault(value.tag, []).append((event.step, event.wall_time, number))
        assert list(found) == tags
        for tag, column in zip(tags, columns):
            expected = column if as_double else column.astype("f4")
            assert [step for step, _, _ in found[tag]] == STEPS.tolist()
            assert [time for _, time, _ in found[tag]] == times.tolist()
            assert repr([number for _, _, number in found[tag]]) == repr(expected.tolist())

    def test_a_record_is_framed(self) -> None:
        """Length, checksum of it, payload, checksum of that."""
        assert _records(record(b"abc") + record(b"")) == [b"abc", b""]
        assert record(b"abc").startswith(header(3))

    def test_a_file_begins_with_its_version(self) -> None:
        """And says who wrote it."""
        event = Event.FromString(events.first_event(1.5))
        assert (event.file_version, event.wall_time, event.source_metadata.writer) == ("brain.Event:2", 1.5, "stepd")

    def test_a_restart_is_told(self) -> None:
        """A SessionLog of status START, at its step."""
        event = Event.FromString(events.session_start(1.5, 700))
        assert (event.step, event.session_log.status) == (700, 1)


class TestReading:
    """Records, found again."""

    def test_cut_off_anywhere(self) -> None:
        """What is whole is given; `consumed` is where the next record begins, whatever of it is there."""
        payloads = [bytes([size % 256]) * size for size in (0, 1, *[44] * 9, 300)]
        data = b"".join(map(record, payloads))
        ends = numpy.cumsum([len(payload) + OVERHEAD_BYTES for payload in payloads]).tolist()
        for cut in range(len(data) + 1):
            found = read_records(data[:cut])
            count = sum(end <= cut for end in ends)
            assert (len(found.starts), found.bad, found.is_lost) == (count, 0, False)
            assert found.consumed == ([0, *ends][count])
        assert [data[start : start + size] for start, size in zip(found.starts, found.sizes)] == payloads

    def test_damage(self) -> None:
        """A changed payload is left out and counted; behind a changed length nobody knows where the next record begins."""
        data = record(b"a" * 44) * 20
        bad = bytearray(data)
        bad[60 * 3 + 20] ^= 1
        found = read_records(bad)
        assert (len(found.starts), found.bad, found.consumed) == (19, 1, len(data))
        bad[60 * 5] ^= 1
        found = read_records(bad)
        assert (len(found.starts), found.bad, found.consumed, found.is_lost) == (4, 1, 300, True)


class TestTensors:
    """Values of plugins."""

    @pytest.mark.parametrize("dtype", [*events.DATA_TYPES, ">f4"])
    def test_numbers_of_every_type(self, dtype: str) -> None:
        """Type, shape and every element come back."""
        array = numpy.arange(6).reshape(2, 3).astype(dtype)
        event = Event.FromString(events.summary(1.0, 3, [events.value("t", *plugins.tensor(array)[1:])]))
        found = tensor_util.make_ndarray(event.summary.value[0].tensor)
        assert found.dtype == array.dtype.newbyteorder("=")
        assert (found == array).all()

    def test_other_types_are_refused(self) -> None:
        """What TensorFlow has no name for is no tensor."""
        with pytest.raises(ValueError, match="datetime64"):
            events.tensor(numpy.array(["2026-01-01"], "M8[D]"))

    def test_a_number_of_one_byte_more(self) -> None:
        """Varints at the edges of their lengths, negative ones in ten bytes; what is cut off or endless is refused."""
        for value in (0, 127, 128, 2**63 - 1, 2**64 - 1):
            assert protobuf.read_varint(protobuf.varint(value), 0) == (value, len(protobuf.varint(value)))
        assert len(protobuf.varint(-1)) == 10
        assert protobuf.signed(protobuf.read_varint(protobuf.varint(-5), 0)[0]) == -5
        for bad in (b"", b"\x80", b"\xff" * 11):
            with pytest.raises(ValueError, match="number at byte 0"):
                protobuf.read_varint(bad, 0)

    def test_a_lone_surrogate_becomes_a_question_mark(self) -> None:
        """Tags are UTF-8 for whoever reads them."""
        event = Event.FromString(events.summary(1.0, 3, [events.value("a\ud800", *plugins.texts(["\udfff!"])[1:])]))
        (value,) = event.summary.value
        assert (value.tag, value.tensor.string_val[0]) == ("a?", b"?!")
