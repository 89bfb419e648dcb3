"""sdk.shapes: exactly what one-by-one decoding gives, only faster."""

from __future__ import annotations

import random
import struct
from typing import Any

import msgpack
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk import shapes
from sdk.errors import DamageError
from sdk.limits import STEP_MAX
from sdk.record import (
    FLAG_COMMIT,
    FLAG_LATE,
    HEADER,
    HEADER_SIZE,
    KIND_GAP,
    KIND_META,
    KIND_ROW,
    Record,
    decode_map,
    encode_map,
    pack,
    walk,
)
from sdk.shapes import Group, groups

MIN = shapes._GROUP_RECORDS_MIN
Plain = tuple[int, int, int, int, int, str]


def exact(value: object) -> str:
    """A value as text that tells types, NaN payloads and -0.0 apart."""
    if isinstance(value, float):
        return "f" + struct.pack("<d", value).hex()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {exact(v)}" for k, v in value.items()) + "}"
    return f"{type(value).__name__} {value!r}"


def plainly(buffer: bytes) -> list[Plain]:
    """Every record as `record.walk` and `decode_map` have it."""
    return [(r.sequence, r.step, r.flags, r.kind, r.time_ns, exact(decode_map(r.payload))) for r in walk(buffer)]


def one_by_one(item: Group | Record) -> list[Plain]:
    """A group's arrays, or a single record, as records."""
    if isinstance(item, Record):
        return [(item.sequence, item.step, item.flags, item.kind, item.time_ns, exact(decode_map(item.payload)))]
    columns = {key: item.values(key).tolist() for key in item.keys}
    floats = {key for key in item.keys if item.values(key).dtype == numpy.float32}
    found = []
    sequences, steps, times = item.sequences().tolist(), item.steps().tolist(), item.times_ns().tolist()
    for index in range(len(item)):
        row = {key: column[index] for key, column in columns.items()}
        assert not floats or all(type(row[key]) is float for key in floats)
        found.append((sequences[index], steps[index], item.shape.flags, KIND_ROW, times[index], exact(row)))
    return found


def fast(buffer: bytes) -> list[Plain]:
    return [r for item in groups(buffer) for r in one_by_one(item)]


def batch(rows: list[dict[str, Any]], *, kind: int = KIND_ROW, flags: int = FLAG_COMMIT, first: int = 1) -> bytes:
    return b"".join(
        pack(Record(first + i, i * 3, flags, kind, 10**18 + i, encode_map(row))) for i, row in enumerate(rows)
    )


INTS = [0, 1, 127, 128, 255, 256, 65535, 65536, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
INTS += [-1, -32, -33, -128, -129, -32768, -32769, -(2**31), -(2**31) - 1, -(2**63)]
nan = struct.unpack("<d", (0x7FF8DEADBEEF0001).to_bytes(8, "little"))[0]
scalar = st.sampled_from([*INTS, 0.5, -0.0, nan, float("inf"), 1e-310, True, False])
odd: st.SearchStrategy[Any] = st.none() | st.text(max_size=3) | st.just({"x": 1.5}) | st.just([1, 2]) | st.just({})
name = st.sampled_from(["a", "loss", "é" * 8, "k" * 31, "k" * 32, "k" * 255, "k" * 300, ""])


@st.composite
def batches(draw: st.DrawFn) -> bytes:
    """Stretches of records; within one the keys stay and the values are drawn from few, so that shapes are common."""
    parts = []
    sequence = draw(st.integers(0, 2**63))
    for _ in range(draw(st.integers(1, 5))):
        keys = draw(st.lists(name, max_size=4, unique=True))
        if draw(st.booleans()):
            keys += [f"wide/{i:02d}" for i in range(draw(st.integers(12, 18)))]
        pools = {k: draw(st.lists(scalar if draw(st.integers(0, 9)) else odd, min_size=1, max_size=3)) for k in keys}
        count = draw(st.sampled_from([1, 3, MIN - 1, MIN, MIN + 1, 3 * MIN]))
        chance = random.Random(draw(st.integers(0, 99)))
        flags = draw(st.sampled_from([0, FLAG_COMMIT, FLAG_LATE]))
        rows = [{k: chance.choice(pools[k]) for k in keys} for _ in range(count)]
        kind = draw(st.sampled_from([KIND_ROW, KIND_ROW, KIND_ROW, KIND_META, KIND_GAP]))
        parts.append(batch(rows, flags=flags, first=sequence, kind=kind))
        sequence += count
    return b"".join(parts)


@given(batches())
def test_groups_hold_what_walking_finds(buffer: bytes) -> None:
    """Random stretches with every width of integer, NaN payloads, bools, texts, nested dicts, wide maps, long keys."""
    expected = plainly(buffer)
    assert fast(buffer) == expected
    assert fast(memoryview(b"pad" + buffer)[3:]) == expected  # type: ignore[arg-type]


@given(batches())
def test_records_of_a_group_are_its_records(buffer: bytes) -> None:
    """`Group.records` gives them back one by one."""
    found: list[Plain] = []
    for item in groups(buffer):
        for r in item.records() if isinstance(item, Group) else [item]:
            found.append((r.sequence, r.step, r.flags, r.kind, r.time_ns, exact(decode_map(r.payload))))
    assert found == plainly(buffer)


@pytest.mark.parametrize("count", [1, MIN - 1, MIN, MIN + 1, 1000])
def test_alike_records_are_one_group(count: int) -> None:
    """From the smallest size on, and never below it."""
    found = list(groups(batch([{"a": i * 0.5, "b": i % 7} for i in range(count)])))
    assert [type(item) for item in found] == ([Group] if count >= MIN else [Record] * count)


@pytest.mark.parametrize("width", [15, 16, 17, 300])
def test_wide_maps_are_groups(width: int) -> None:
    """Maps with one and with two bytes of count."""
    buffer = batch([{f"key/{k}": i + k * 0.5 for k in range(width)} for i in range(MIN)])
    assert [len(item) for item in groups(buffer) if isinstance(item, Group)] == [MIN]
    assert fast(buffer) == plainly(buffer)


@pytest.mark.parametrize("size", [0, 1, 31, 32, 255, 256, 4096])
def test_long_keys_are_groups(size: int) -> None:
    """Keys with each form of length."""
    buffer = batch([{"k" * size: i * 0.5} for i in range(MIN)])
    assert [item.keys for item in groups(buffer) if isinstance(item, Group)] == [("k" * size,)]
    assert fast(buffer) == plainly(buffer)


@pytest.mark.parametrize("value", INTS)
def test_every_width_of_integer(value: int) -> None:
    """The same integer in all records comes out as the same integer, negative ones and 64-bit ones included."""
    buffer = batch([{"a": value, "f": 0.5}] * (2 * MIN))
    assert fast(buffer) == plainly(buffer)


def test_float32_is_widened_exactly() -> None:
    """A record that another client packed with float32."""
    packer = msgpack.Packer(use_single_float=True)
    buffer = b"".join(
        pack(Record(i + 1, i, FLAG_COMMIT, KIND_ROW, i, packer.pack({"a": i * 0.1}))) for i in range(2 * MIN)
    )
    found = list(groups(buffer))
    assert isinstance(found[0], Group) and found[0].values("a").dtype == numpy.float32
    assert fast(buffer) == plainly(buffer)


def test_keys_that_change_in_the_middle_end_a_group() -> None:
    """Same length, other key, other order, other type of value: each is a group of its own."""
    rows = [{"aa": 0.5, "bb": 1.5}] * MIN + [{"aa": 0.5, "bc": 1.5}] * MIN + [{"bb": 1.5, "aa": 0.5}] * MIN
    rows += [{"aa": 0.5, "bb": 2**60}] * MIN
    buffer = batch(rows)
    assert [type(item) for item in groups(buffer)] == [Group] * 4
    assert fast(buffer) == plainly(buffer)


def test_a_key_that_stands_twice_is_not_grouped() -> None:
    """A hostile map with one name twice: the last one wins, as in `decode_map`."""
    payload = b"\x82\xa1a\x01\xa1a\x02"
    buffer = b"".join(pack(Record(i + 1, i, FLAG_COMMIT, KIND_ROW, i, payload)) for i in range(2 * MIN))
    assert fast(buffer) == plainly(buffer)


@pytest.mark.parametrize("rows", [[{"a": 0.5}] * (2 * MIN), [{"a": "text"}] * 3])
def test_cut_at_every_byte_of_the_end(rows: list[dict[str, Any]]) -> None:
    """A cut tail raises DamageError after the whole records before it, exactly as walking does."""
    buffer = batch(rows)
    size = len(buffer) // len(rows)
    for cut in range(1, 2 * size):
        part = buffer[:-cut]
        found: list[Plain] = []
        try:
            for item in groups(part):
                found += one_by_one(item)
            assert cut % size == 0
        except DamageError:
            assert cut % size
        assert found == plainly(part[: len(part) // size * size])


@pytest.mark.parametrize("payload", [b"\x81\xd9", b"\x81\xda", b"\x81\xda\xff", b"\x81\xd9\xff", b"\x81", b"\xde", b"\xde\x00",
                                     b"\xde\x00\x01", b"\x81\xa5abc", b"\x81\xa1a", b"\x81\xa1a\xcb\x00", b"\x81\xa1\xff\x01",
                                     b"\x81\xa1a\xca", b"\x8f", b"\x80\x00", b"\xc0", b"\xdf\x00\x00\x00\x01\xa1a\x01"])  # fmt: skip
def test_cut_payloads_are_left_to_the_careful_decoder(payload: bytes) -> None:
    """Many alike records whose payload is cut or not what it seems: singles, whose decoding raises DamageError."""
    buffer = b"".join(pack(Record(i + 1, i, FLAG_COMMIT, KIND_ROW, i, payload)) for i in range(2 * MIN))
    found = list(groups(buffer))
    assert all(isinstance(item, Record) for item in found)
    assert len(found) == 2 * MIN


def test_steps_beyond_the_limit_are_damage() -> None:
    """A step that cannot be is refused in a group as it is in a single record."""
    records = [HEADER.pack(HEADER_SIZE + 1, KIND_ROW, 1, 0, i, STEP_MAX, i) + b"\x80" for i in range(2 * MIN)]
    assert len(fast(b"".join(records))) == 2 * MIN
    for at in (0, 3, MIN, 2 * MIN - 1):
        bad = list(records)
        bad[at] = HEADER.pack(HEADER_SIZE + 1, KIND_ROW, 1, 0, at, STEP_MAX + 1, at) + b"\x80"
        with pytest.raises(DamageError):
            fast(b"".join(bad))


def test_random_damage_gives_what_walking_gives() -> None:
    """1500 single-bit flips (seed 3): groups and walking agree, in the records and in whether there is damage."""
    chance = random.Random(3)
    whole = batch([{"a": i * 0.5, "b": i % 100, "c": True} for i in range(2 * MIN)])
    for _ in range(1500):
        copy = bytearray(whole)
        copy[chance.randrange(len(copy))] ^= 1 << chance.randrange(8)
        outcome: list[Any] = []
        for decode in (plainly, fast):
            try:
                outcome.append(decode(bytes(copy)))
            except DamageError:
                outcome.append("damage")
        assert outcome[0] == outcome[1]


def test_empty_buffers_have_no_groups() -> None:
    """Nothing in, nothing out."""
    assert list(groups(b"")) == []
