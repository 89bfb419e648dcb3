"""sdk.wire.codec and messages: whole, cut, bent, trailing and random bytes."""

from __future__ import annotations

import random
import struct
import zlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.errors import LocalProtocolError, RemoteProtocolError
from sdk.limits import BATCH_BYTES_MAX, MESSAGE_BODY_BYTES_MAX, MESSAGE_BYTES_MAX, STEP_MAX, WIRE_VERSION
from sdk.record import HEADER_SIZE as RECORD_HEADER_SIZE
from sdk.wire.codec import HEADER, HEADER_SIZE, MAGIC, decode, encode
from sdk.wire.messages import (
    NUMBERS,
    TYPES,
    Ack,
    Batch,
    Control,
    Finish,
    Finished,
    Flush,
    Flushed,
    Hello,
    Message,
    Reject,
    Welcome,
)
from tests.serving import rows

BIG = 2**64 - 1
EXAMPLES: list[Message] = [
    Hello(1, 3, BIG, "a41f", bytes(16), 12, "/dev/shm/stepd-0/x.ring", 4711, "0.1.0", {"batch_bytes_max": 1 << 22}),
    Hello(0, 0, 0, "lone \udc80 surrogate \0 ü", b"", 0, "", 0, "", {}),
    Welcome(1, 7, 3, 2, BATCH_BYTES_MAX, 99, "0.1.0", {"batch_bytes_max": 1, "later": BIG}),
    Batch(7, 1, 3, 3, 2, rows(1, 3)),
    Batch(BIG, BIG, BIG, BIG, STEP_MAX, rows(1, 1)),
    Ack(7, 3, 2),
    Control(4, "status", {}),
    Control(4, "reply", {"runs": [{"id": "x", "lag": 0.5, "none": None, "yes": True}], "n": -5, "b": b"\0"}),
    Flush(7, 3),
    Flushed(7, 3, 0),
    Finish(7, 3),
    Finished(7, 3, 3),
    Reject(7, "hole", "records 4 to 6 are missing", True),
]
IDS = [f"{type(m).__name__}{i}" for i, m in enumerate(EXAMPLES)]


def frames_of(message: Message) -> list[bytes]:
    return [bytes(frame) for frame in encode(message)]


def framed(number: int, fields: object, payload: bytes = b"", version: int = WIRE_VERSION) -> list[bytes]:
    """A message with right checksums and any body at all."""
    body = fields if isinstance(fields, bytes) else msgpack.packb(fields, unicode_errors="surrogatepass")
    head = HEADER.pack(MAGIC, version, number, 0, len(body), len(payload), zlib.crc32(payload), 0)[:-4]
    first = head + zlib.crc32(body, zlib.crc32(head)).to_bytes(4, "little") + body
    return [first, payload] if payload else [first]


def refused(frames: list[bytes]) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(frames)
    return str(caught.value)


@pytest.mark.parametrize("message", EXAMPLES, ids=IDS)
def test_every_message_comes_back_as_it_was(message: Message) -> None:
    """Encoding and decoding change nothing, whatever kind of buffer the frames are."""
    frames = frames_of(message)
    assert decode(frames) == message
    assert decode([memoryview(frame) for frame in frames]) == message
    assert decode([bytearray(frame) for frame in frames]) == message
    assert sum(map(len, frames)) < MESSAGE_BYTES_MAX


def test_every_type_has_an_example_and_a_number() -> None:
    """No message is forgotten here, and no number names two of them."""
    assert {type(m) for m in EXAMPLES} == set(TYPES.values()) == set(NUMBERS)
    assert 0 not in TYPES


def test_the_records_of_a_batch_are_borrowed() -> None:
    """Neither side copies the records."""
    records = rows(1, 5)
    frames = encode(Batch(7, 1, 5, 0, 4, records))
    assert frames[1] is records
    view = memoryview(records)
    decoded = decode([frames[0], view])
    assert isinstance(decoded, Batch)
    assert decoded.records is view


@pytest.mark.parametrize("message", EXAMPLES, ids=IDS)
def test_a_message_cut_anywhere_is_refused(message: Message) -> None:
    """Every prefix of every frame is refused."""
    frames = frames_of(message)
    for index, frame in enumerate(frames):
        for size in range(len(frame)):
            refused([*frames[:index], frame[:size], *frames[index + 1 :]])
    if len(frames) == 2:
        refused(frames[:1])


@pytest.mark.parametrize("message", EXAMPLES, ids=IDS)
def test_any_flipped_bit_is_seen(message: Message) -> None:
    """Every single bit of every frame is under a checksum."""
    frames = frames_of(message)
    for index, frame in enumerate(frames):
        bent = bytearray(frame)
        for bit in range(len(frame) * 8):
            bent[bit // 8] ^= 1 << bit % 8
            refused([*frames[:index], bytes(bent), *frames[index + 1 :]])
            bent[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("message", EXAMPLES, ids=IDS)
def test_trailing_bytes_and_frames_are_refused(message: Message) -> None:
    """A message has exactly its frames, and each has exactly its bytes."""
    frames = frames_of(message)
    refused([*frames, b"x"] if len(frames) == 1 else [*frames, b""])
    for index in range(len(frames)):
        refused([frame + b"\0" if i == index else frame for i, frame in enumerate(frames)])
    refused([])
    refused([*frames, b"", b""])


def test_an_empty_second_frame_means_no_payload() -> None:
    """A second frame without bytes changes nothing: there is nothing in it to believe."""
    frames = frames_of(Ack(7, 3, 2))
    assert decode([*frames, b""]) == Ack(7, 3, 2)


def test_fields_added_at_the_end_are_ignored() -> None:
    """A later version may say more than this one reads."""
    for message in EXAMPLES:
        fields: list[Any] = list(message[:-1] if isinstance(message, Batch) else message)
        payload = message.records if isinstance(message, Batch) else b""
        assert decode(framed(NUMBERS[type(message)], [*fields, "new", {"a": 1}, None], bytes(payload))) == message


def test_missing_fields_and_other_bodies_are_refused() -> None:
    """A body is an array of at least the fields that this version knows."""
    number = NUMBERS[Ack]
    bodies: list[object] = [
        [],
        [1],
        [1, 2],
        {},
        {"stream": 1},
        None,
        5,
        "abc",
        b"",
        b"\xc1",
        b"\x93\x01\x02",
        b"\x93\x01\x02\x03\x04",
    ]
    for body in bodies:
        refused(framed(number, body))


def test_unknown_types_are_refused() -> None:
    """Zero, the number that is kept for blobs, and everything beyond."""
    for number in set(range(256)) - set(TYPES):
        refused(framed(number, [1, 2, 3]))


def test_an_unknown_version_with_known_fields_is_read() -> None:
    """Hello of a newer trainer must be readable, so that it can be told which versions we speak."""
    fields = list(EXAMPLES[0])
    assert decode(framed(NUMBERS[Hello], fields, version=200)) == EXAMPLES[0]


WRONG = [-1, -(2**63), 2.5, None, True, [], {}, "text", b"bytes", {"k": "v"}, {1: 2}, {b"k": 1}]


@pytest.mark.parametrize("message", EXAMPLES, ids=IDS)
def test_wrong_types_are_refused_in_every_field(message: Message) -> None:
    """A field takes its own type and nothing near it: no bool for an int, no negative number."""
    fields: list[Any] = list(message[:-1] if isinstance(message, Batch) else message)
    payload = bytes(message.records) if isinstance(message, Batch) else b""
    number = NUMBERS[type(message)]
    for index, value in enumerate(fields):
        for wrong in WRONG:
            if type(wrong) is type(value) and not (type(wrong) is int or isinstance(wrong, dict)):
                continue
            if isinstance(wrong, dict) and isinstance(value, dict) and (not wrong or isinstance(message, Control)):
                continue
            refused(framed(number, [*fields[:index], wrong, *fields[index + 1 :]], payload))


def test_limits_are_positive_integers() -> None:
    """A limit of zero would divide or stall; one of any other type would compare."""
    hello = EXAMPLES[0]
    for bad in (0, -1, True, "5", None, 1.5, [5]):
        refused(framed(NUMBERS[Hello], [*hello[:-1], {"batch_bytes_max": bad}]))


def test_batches_that_cannot_be_are_refused() -> None:
    """Sequences begin at 1 and do not fall, steps end at STEP_MAX, and every record has a header."""
    number, records = NUMBERS[Batch], rows(1, 2)
    for first, last, step in [(0, 1, 0), (2, 1, 0), (1, 2, STEP_MAX + 1), (1, BIG, 0), (1, 1000, 0)]:
        refused(framed(number, [7, first, last, 0, step], records))
    refused(framed(number, [7, 1, 1, 0, 0], b""))
    refused(framed(number, [7, 1, 1, 0, 0], b"\0" * (RECORD_HEADER_SIZE - 1)))
    assert decode(framed(number, [7, 1, 2, 0, STEP_MAX], records))


def test_a_payload_on_anything_but_a_batch_changes_nothing() -> None:
    """Only a Batch has records; what stands behind another message is checked and left."""
    assert decode(framed(NUMBERS[Ack], [1, 2, 3], b"payload")) == Ack(1, 2, 3)


def test_long_verbs_are_refused() -> None:
    """A verb is a word."""
    assert decode(framed(NUMBERS[Control], [1, "v" * 64, {}]))
    refused(framed(NUMBERS[Control], [1, "v" * 65, {}]))


def test_oversized_messages_are_not_sent() -> None:
    """What the other side must refuse is our own bug, and seen before the socket."""
    with pytest.raises(LocalProtocolError):
        encode(Batch(7, 1, 1, 0, 0, bytes(BATCH_BYTES_MAX + 1)))
    with pytest.raises(LocalProtocolError):
        encode(Reject(7, "x", "y" * MESSAGE_BODY_BYTES_MAX, True))
    assert encode(Batch(7, 1, 1, 0, 0, bytes(BATCH_BYTES_MAX)))


def test_oversized_messages_are_refused() -> None:
    """A body or payload above the limit is refused, however right its checksums are."""
    refused(framed(NUMBERS[Batch], [7, 1, 1, 0, 0], bytes(BATCH_BYTES_MAX + 1)))
    refused(framed(NUMBERS[Control], [1, "x", {"t": "y" * MESSAGE_BODY_BYTES_MAX}]))
    refused([bytes(MESSAGE_BYTES_MAX)])


def test_a_body_of_the_largest_size_is_read() -> None:
    """The limit itself is allowed."""
    fixed = len(msgpack.packb([1, "x", {"t": "y" * 70_000}])) - 70_000
    message = Control(1, "x", {"t": "y" * (MESSAGE_BODY_BYTES_MAX - fixed)})
    frames = frames_of(message)
    assert len(frames[0]) == HEADER_SIZE + MESSAGE_BODY_BYTES_MAX
    assert decode(frames) == message


BOMBS = {
    "array that claims 4 G": b"\x93\x01\xdd\xff\xff\xff\xff",
    "map that claims 4 G": b"\x93\x01\xdf\xff\xff\xff\xff",
    "text that claims 4 G": b"\x93\x01\xdb\xff\xff\xff\xff",
    "bytes that claim 4 G": b"\x93\x01\xc6\xff\xff\xff\xff",
    "extension that claims 4 G": b"\x93\x01\xc9\xff\xff\xff\xff\x01",
    "extension": b"\x93\x01\x02\xd4\x01\x00",
    "time stamp": b"\x93\x01\x02\xd6\xff\x00\x00\x00\x00",
    "million levels of arrays": b"\x93\x01\x02" + b"\x91" * 1_000_000,
    "million levels of maps": b"\x93\x01\x02" + b"\x81\x01" * 500_000,
    "wide array": b"\x93\x01\x02\xdd" + struct.pack(">I", 1_000_000) + b"\xc0" * 1_000_000,
    "nested maps with text keys": b"\x93\x01\xa1v" + b"\x81\xa1k" * 300_000,
    "bad utf-8": b"\x93\x01\xa2\xff\xfe\x80",
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("kind", [Ack, Control])
def test_msgpack_bombs_are_refused(name: str, kind: type) -> None:
    """A body that claims more than it has, nests without end or holds foreign types is refused, and quickly."""
    refused(framed(NUMBERS[kind], BOMBS[name]))


def test_random_garbage_is_refused() -> None:
    """100 000 random frames, bare and behind a right magic and header, raise RemoteProtocolError and nothing else."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    whole = [frames_of(message) for message in EXAMPLES]
    for count in range(100_000):
        kind = count % 4
        if kind == 0:
            frames = [rng.randbytes(rng.randrange(64))]
        elif kind == 1:
            frames = [MAGIC + rng.randbytes(rng.randrange(80)), rng.randbytes(8)]
        elif kind == 2:
            frames = [rng.randbytes(rng.randrange(48)) for _ in range(rng.randrange(5))]
        else:
            first, *rest = rng.choice(whole)
            bent = bytearray(first)
            bent[rng.randrange(len(bent))] ^= rng.randrange(1, 256)
            frames = [bytes(bent), *rest]
        try:
            decode(frames)
        except RemoteProtocolError:
            continue
        pytest.fail(f"seed {seed}, case {count}: {frames!r} was believed")


def test_random_bodies_under_right_checksums_are_refused_or_read() -> None:
    """Whatever a peer puts under right checksums gives a message or RemoteProtocolError."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    numbers = list(TYPES)
    for count in range(20_000):
        body = rng.randbytes(rng.randrange(40)) if count % 2 else b"\x9a" + rng.randbytes(rng.randrange(40))
        try:
            decode(framed(rng.choice(numbers), body, rng.randbytes(rng.randrange(3))))
        except RemoteProtocolError:
            pass
        except Exception as error:
            pytest.fail(f"seed {seed}, case {count}: {error!r}")


_scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=8)
)


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.recursive(_scalars | st.binary(max_size=8), lambda inner: st.lists(inner, max_size=3), max_leaves=8),
        max_size=5,
    )
)
def test_any_arguments_of_a_command_come_back(arguments: dict[str, Any]) -> None:
    """A command's arguments are any plain values."""
    assert decode(encode(Control(1, "x", arguments))) == Control(1, "x", arguments)
