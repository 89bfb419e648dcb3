"""sdk.record: one encoding, and decoders that take any bytes without raising anything but DamageError."""

from __future__ import annotations

import math
import random
import struct
from typing import Any

import msgpack
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk import record
from sdk.errors import DamageError
from sdk.limits import STEP_MAX
from sdk.record import (
    EXT_TENSOR,
    FLAG_COMMIT,
    FLAGS_SHIFT,
    HEADER,
    HEADER_SIZE,
    KIND_META,
    KIND_ROW,
    KIND_SHIFT,
    WORDS,
    Record,
    decode_map,
    encode_map,
    pack,
    walk,
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=40)
)
plain = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
)
maps = st.dictionaries(st.text(max_size=40), plain, max_size=20)
records = st.builds(
    Record,
    sequence=st.integers(0, 2**64 - 1),
    step=st.integers(0, STEP_MAX),
    flags=st.integers(0, 255),
    kind=st.integers(0, 255),
    time_ns=st.integers(-(2**63), 2**63 - 1),
    payload=st.binary(max_size=100),
)


def same(one: object, other: object) -> bool:
    """Equality of decoded values that takes NaN for equal to itself and keeps types apart."""
    return repr(one) == repr(other)


def plain_record(found: Record) -> Record:
    return found._replace(payload=bytes(found.payload))


def tensor(name: object, shape: object, raw: object) -> bytes:
    return bytes(msgpack.packb({"a": msgpack.ExtType(EXT_TENSOR, msgpack.packb([name, shape, raw]))}))


@given(st.lists(records, max_size=8))
def test_walk_gives_what_pack_made(made: list[Record]) -> None:
    """Whole, and from a view in the middle of other bytes."""
    packed = [pack(r) for r in made]
    whole = b"".join(packed)
    assert [plain_record(r) for r in walk(whole)] == made
    assert [plain_record(r) for r in walk(memoryview(b"x" + whole + b"y")[1:-1])] == made


def test_the_two_views_of_a_header_are_the_same_bytes() -> None:
    """The four words of the hot path and the named fields agree."""
    fields = HEADER.pack(77, KIND_META, FLAG_COMMIT, 0, 5, 6, 7)
    words = WORDS.pack(77 | KIND_META << KIND_SHIFT | FLAG_COMMIT << FLAGS_SHIFT, 5, 6, 7)
    assert fields == words
    assert HEADER.size == WORDS.size == HEADER_SIZE == 32


def test_cut_at_every_byte() -> None:
    """A buffer cut inside a record gives the records before it and then DamageError; cut between records, no error."""
    made = [Record(i, i, FLAG_COMMIT, KIND_ROW, i, encode_map({"k": i * 0.5})) for i in range(1, 5)]
    whole = b"".join(pack(r) for r in made)
    ends = [0]
    for r in made:
        ends.append(ends[-1] + HEADER_SIZE + len(r.payload))
    for cut in range(len(whole) + 1):
        found: list[Record] = []
        if cut in ends:
            found.extend(walk(whole[:cut]))
        else:
            with pytest.raises(DamageError):
                found.extend(walk(whole[:cut]))
        assert [plain_record(r) for r in found] == made[: sum(e <= cut for e in ends) - 1]


@pytest.mark.parametrize("size", [0, 1, HEADER_SIZE - 1, HEADER_SIZE + 2, 2**32 - 1])
def test_impossible_lengths_are_damage(size: int) -> None:
    """A length below a header or beyond the buffer is refused: never an endless loop, never a record."""
    bad = HEADER.pack(size, KIND_ROW, 0, 0, 1, 1, 1) + b"\x80"
    with pytest.raises(DamageError, match=f"claims {size} bytes"):
        list(walk(bad))


def test_steps_beyond_the_limit_are_damage() -> None:
    """STEP_MAX is read, one more is not."""
    good = HEADER.pack(HEADER_SIZE, KIND_ROW, 0, 0, 1, STEP_MAX, 1)
    bad = HEADER.pack(HEADER_SIZE, KIND_ROW, 0, 0, 1, STEP_MAX + 1, 1)
    assert next(walk(good)).step == STEP_MAX
    with pytest.raises(DamageError):
        list(walk(bad))


@given(maps)
def test_maps_come_back(values: dict[str, Any]) -> None:
    """Every plain value, NaN, surrogates and nesting included; lists for lists."""
    assert same(decode_map(encode_map(values)), values)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\0", ""])
def test_text_that_is_no_utf8_comes_back(text: str) -> None:
    """Lone surrogates survive as key and as value: a logger must not raise over a file name."""
    assert decode_map(encode_map({text: text})) == {text: text}


@pytest.mark.parametrize("bits", [0x7FF8000000000001, 0xFFF8DEADBEEF0001, 0x7FF0000000000000, 0x8000000000000000, 1])
def test_floats_keep_every_bit(bits: int) -> None:
    """NaN payloads, infinities, -0.0 and subnormals."""
    value = struct.unpack("<d", bits.to_bytes(8, "little"))[0]
    found = decode_map(encode_map({"k": value}))["k"]
    assert struct.pack("<d", found) == bits.to_bytes(8, "little")


@pytest.mark.parametrize(
    "payload", [b"", b"\xc0", b"\x01", b"\x90", b"\x81", b"\x81\xa1", b"\x81\xa1a", b"\x80\x80", b"\xc1", b"\xdf\xff\xff\xff\xff",
                b"\x81\xa1a\xdd\xff\xff\xff\xff", b"\x81\xa1a\xc6\xff\xff\xff\xff", b"\x81\xa1a\xdb\xff\xff\xff\xff",
                b"\x81\xa1a" * 5000, b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", b"\x81\xa1a\xd5\xff\x00\x00"]
)  # fmt: skip
def test_payloads_that_are_no_map_are_damage(payload: bytes) -> None:
    """Not a map, cut, trailing bytes, sizes that are not there, nested without end: DamageError each time."""
    with pytest.raises(DamageError):
        decode_map(payload)


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda b: b"\x81\xa1a" + b))
def test_any_bytes_give_a_map_or_damage(payload: bytes) -> None:
    """No other exception, whatever the bytes."""
    try:
        assert type(decode_map(payload)) is dict
    except DamageError:
        pass


def test_payload_cut_at_every_byte_and_with_trailing_bytes() -> None:
    """A part of a payload is never taken for a whole one."""
    payload = encode_map({"loss": 0.5, "n": 300, "text": "x" * 40, "list": [1, 2.5, None], "map": {"a": True}})
    assert decode_map(memoryview(payload))["n"] == 300
    for cut in range(len(payload)):
        with pytest.raises(DamageError):
            decode_map(payload[:cut])
    for more in (b"\0", b"\xc0", payload):
        with pytest.raises(DamageError):
            decode_map(payload + more)


def test_nested_maps_with_other_keys_are_readable() -> None:
    """Whatever the packer accepted as a key of a nested map, a tuple too, must not make the record unreadable."""
    values = {"a": {1: "one", None: "none", 2.5: "float", False: "no", b"b": "bytes", (1, (2, 3)): "tuple"}}
    packed = msgpack.packb(values)
    assert decode_map(packed) == values


@pytest.mark.parametrize(
    "dtype", ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u8", "?", "c8", "c16", "M8[ns]", "V3"]
)
@pytest.mark.parametrize("shape", [(3,), (2, 3), (0,), (2, 0, 3), (1, 1, 2)])
def test_tensors_come_back_bit_for_bit(dtype: str, shape: tuple[int, ...]) -> None:
    """Same dtype, shape and bytes, writable, and not borrowed from the payload."""
    size = math.prod(shape) * numpy.dtype(dtype).itemsize
    raw = bytes(i % 2 if dtype == "?" else i % 256 for i in range(size))
    found = decode_map(tensor(numpy.dtype(dtype).newbyteorder("<").str, list(shape), raw))["a"]
    assert (found.dtype, found.shape, found.tobytes()) == (numpy.dtype(dtype), shape, raw)
    assert found.flags.writeable


def test_bfloat16_is_widened_exactly() -> None:
    """Each of the 65536 patterns becomes the float32 with these upper bits, NaN payloads included."""
    raw = numpy.arange(65536, dtype="<u2").tobytes()
    found = decode_map(tensor("bfloat16", [65536], raw))["a"]
    assert found.dtype == numpy.float32
    assert (found.view("<u4") == numpy.arange(65536, dtype="<u4") << 16).all()


@pytest.mark.parametrize(
    ("name", "shape", "raw"),
    [("O", [1], b"12345678"), ("f4,O", [1], b"x" * 12), ("(1,2", [1], b"1234"), (None, [1], b"12345678"), ("", [1], b"1234"),
     ("f4", [2**64 - 1], b"1234"), ("f4", [-1], b"1234"), ("f4", 1, b"1234"), ("f4", [1.5], b"1234"), ("f4", [1], 5),
     ("f4", [1], "1234"), ("f4", [2], b"1234"), ("f4", [2**40, 2**40], b""), ("V0", [1], b""), ("bfloat16", [1], b"1"),
     ("f4", [1] * 65, b"1234"), ("S99999999999", [1], b"1"), ("f4", [0, 2**62, 2**62], b""), ({}, [1], b"1234"),
     (["f4"], [1], b"1234"), ("bfloat16", [3], b"1234"), ("f4", [True], b"1234")],
)  # fmt: skip
def test_hostile_tensors_are_damage(name: object, shape: object, raw: object) -> None:
    """Objects, names that numpy would evaluate, shapes that do not fit: never anything but DamageError."""
    with pytest.raises(DamageError):
        decode_map(tensor(name, shape, raw))


def test_flipped_tensors_raise_nothing_but_damage() -> None:
    """Every bit of a record with a tensor flipped in turn: a map or DamageError."""
    payload = tensor("<f4", [2, 3], bytes(range(24)))
    for at in range(len(payload) * 8):
        copy = bytearray(payload)
        copy[at // 8] ^= 1 << at % 8
        try:
            decode_map(copy)
        except DamageError:
            pass


def test_unknown_extensions_are_kept() -> None:
    """A later version's value type reads as what it is, not as damage."""
    value = msgpack.ExtType(77, b"later")
    assert decode_map(msgpack.packb({"a": value})) == {"a": value}


def test_random_damage_in_a_batch_raises_nothing_else() -> None:
    """2000 random byte changes (seed 2) in a batch of records: DamageError or records."""
    chance = random.Random(2)
    batch = b"".join(pack(Record(i, i, 1, KIND_ROW, i, encode_map({"a": i, "t": "x" * i}))) for i in range(1, 20))
    for _ in range(2000):
        copy = bytearray(batch)
        copy[chance.randrange(len(copy))] = chance.randrange(256)
        try:
            for found in walk(copy):
                decode_map(found.payload)
        except DamageError:
            pass
    assert len(batch) > record.HEADER_SIZE * 19
