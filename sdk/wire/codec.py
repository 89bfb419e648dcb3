"""Messages to frames and back. Pure; nothing that came from a socket is believed before its CRC was checked.

A message is one ZeroMQ message of one frame (header and body) or, for a Batch, two (the records follow as they are).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import msgpack

from ..errors import LocalProtocolError, RemoteProtocolError
from ..files import Buffer
from ..limits import BATCH_BYTES_MAX, MESSAGE_BODY_BYTES_MAX, STEP_MAX, WIRE_VERSION
from ..record import HEADER_SIZE as RECORD_HEADER_SIZE
from .messages import NUMBERS, TYPES, Batch, Control, Hello, Message, Welcome

MAGIC = b"stpW"
# magic, version u8, type u8, reserved u16, body size u32, payload size u32, payload CRC u32, CRC of these 20 and the body.
HEADER = struct.Struct("<4sBBHIIII")
HEADER_SIZE = HEADER.size

_U64 = 2**64


def encode(message: Message, version: int = WIRE_VERSION, *, payload_crc: int | None = None) -> list[Buffer]:
    """The frames of a message. A Batch's records are passed on, not copied.

    Args:
        payload_crc: The CRC-32 of a Batch's records, where it is known already.

    Raises:
        LocalProtocolError: It is larger than the protocol allows: a bug of ours.
    """
    if isinstance(message, Batch):
        payload: Buffer = message.records
        fields: list[Any] = list(message[:-1])
    else:
        payload, fields = b"", list(message)
    body = msgpack.packb(fields, unicode_errors="surrogatepass")
    if len(payload) > BATCH_BYTES_MAX or len(body) > MESSAGE_BODY_BYTES_MAX:
        raise LocalProtocolError(
            f"{type(message).__name__} has a body of {len(body)} and a payload of {len(payload)} bytes; at most "
            f"{MESSAGE_BODY_BYTES_MAX} and {BATCH_BYTES_MAX} are allowed"
        )
    kind = NUMBERS[type(message)]
    if payload_crc is None:
        payload_crc = zlib.crc32(payload)
    head = HEADER.pack(MAGIC, version, kind, 0, len(body), len(payload), payload_crc, 0)
    crc = zlib.crc32(body, zlib.crc32(head[:-4]))
    first = head[:-4] + crc.to_bytes(4, "little") + body
    return [first, payload] if len(payload) else [first]


def decode(frames: Sequence[Buffer]) -> Message:
    """The message in some frames. A Batch's records borrow the second frame.

    Raises:
        RemoteProtocolError: These frames are not a message of this protocol.
    """
    if not 1 <= len(frames) <= 2:
        raise RemoteProtocolError(f"message has {len(frames)} frames, expected 1 or 2")
    first = bytes(frames[0][: HEADER_SIZE + MESSAGE_BODY_BYTES_MAX])
    if len(first) < HEADER_SIZE or first[:4] != MAGIC:
        raise RemoteProtocolError(f"message does not begin with {MAGIC!r}: {first[:8]!r}")
    _, version, number, _, body_size, payload_size, payload_crc, crc = HEADER.unpack_from(first)
    body = first[HEADER_SIZE:]
    if len(frames[0]) != HEADER_SIZE + body_size or zlib.crc32(body, zlib.crc32(first[: HEADER_SIZE - 4])) != crc:
        raise RemoteProtocolError("message header or body is damaged")
    payload: Buffer = frames[1] if len(frames) == 2 else b""
    if len(payload) != payload_size or payload_size > BATCH_BYTES_MAX or zlib.crc32(payload) != payload_crc:
        raise RemoteProtocolError(f"message payload is damaged: {len(payload)} bytes, its header says {payload_size}")
    kind = TYPES.get(number)
    if kind is None:
        raise RemoteProtocolError(
            f"message has type {number} (wire version {version}), which this version does not know"
        )
    return _build(kind, body, payload)


def _build(kind: type[Any], body: bytes, payload: Buffer) -> Message:
    try:
        fields = msgpack.unpackb(body, raw=False, unicode_errors="surrogatepass", strict_map_key=True, max_ext_len=0)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"{kind.__name__} has a body that is not msgpack: {error}") from error
    names = kind._fields[:-1] if kind is Batch else kind._fields
    needed = len(names) - len(kind._field_defaults)
    if type(fields) is not list or len(fields) < needed:
        raise RemoteProtocolError(f"{kind.__name__} has a body of {len(body)} bytes without its {needed} fields")
    # Fields may be added at the end in later versions; what this version does not know it does not read, and what an
    # earlier one did not send has a default.
    fields = fields[: len(names)]
    for name, value, annotation in zip(names, fields, (kind.__annotations__[n] for n in names)):
        _check(kind, name, value, getattr(annotation, "__forward_arg__", str(annotation)))
    message: Message = kind(*fields, payload) if kind is Batch else kind(*fields)
    _check_sense(message)
    return message


def _check(kind: type[Any], name: str, value: object, annotation: str) -> None:
    if "dict" in annotation:
        good = type(value) is dict and all(type(k) is str for k in value)
    elif "bytes" in annotation:
        good = type(value) is bytes
    elif "str" in annotation:
        good = type(value) is str
    elif "bool" in annotation:
        good = type(value) is bool
    else:
        good = type(value) is int and 0 <= value < _U64
    if not good:
        raise RemoteProtocolError(f"{kind.__name__}.{name} is {type(value).__name__}, expected {annotation}")


def _check_sense(message: Message) -> None:
    """What types alone cannot say."""
    if isinstance(message, (Hello, Welcome)):
        limits = message.limits
        if any(type(v) is not int or v <= 0 for v in limits.values()):
            raise RemoteProtocolError(f"{type(message).__name__}.limits holds something that is no positive int")
    if isinstance(message, Batch) and not (
        0 < message.first <= message.last
        and message.step_max <= STEP_MAX
        and len(message.records) >= (message.last - message.first + 1) * RECORD_HEADER_SIZE
    ):
        raise RemoteProtocolError(
            f"Batch claims sequences {message.first} to {message.last} in {len(message.records)} bytes"
        )
    if isinstance(message, Control) and len(message.verb) > 64:
        raise RemoteProtocolError("Control.verb is longer than 64 characters")
