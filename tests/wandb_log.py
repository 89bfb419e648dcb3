"""Writes `.wandb` files as W&B's package does, record by record; for the tests of what reads them."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from daemon.formats import protobuf
from daemon.formats.wandb_file import BLOCK_BYTES, MAGIC

_HEAD = struct.Struct("<IHB")


def log_of(records: Iterable[bytes]) -> bytes:
    """A file with these records."""
    out = bytearray(MAGIC)
    for record in records:
        append(out, record)
    return bytes(out)


def append(out: bytearray, record: bytes) -> None:
    place, is_first = 0, True
    while True:
        left = BLOCK_BYTES - len(out) % BLOCK_BYTES
        if left < _HEAD.size:
            out += b"\0" * left
            left = BLOCK_BYTES
        part = record[place : place + left - _HEAD.size]
        place += len(part)
        is_last = place == len(record)
        kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[is_first, is_last]
        out += _HEAD.pack(zlib.crc32(part, zlib.crc32(bytes([kind]))), len(part), kind) + part
        is_first = False
        if is_last:
            return


def item(key: str | tuple[str, ...], value: Any) -> bytes:
    names = (key,) if isinstance(key, str) else key
    named = protobuf.text(1, names[0]) if len(names) == 1 else b"".join(protobuf.text(2, name) for name in names)
    return named + protobuf.text(16, json.dumps(value))


def items(field: int, values: Mapping[Any, Any]) -> bytes:
    return b"".join(protobuf.block(field, item(key, value)) for key, value in values.items())


def stamp(field: int, time_ns: int) -> bytes:
    return protobuf.block(field, protobuf.integer(1, time_ns // 10**9) + protobuf.integer(2, time_ns % 10**9))


def run(
    run_id: str = "a41f", *, project: str = "digits", name: str = "calm", config: Mapping[str, Any] | None = None
) -> bytes:
    content = (
        protobuf.text(1, run_id) + protobuf.text(3, project) + protobuf.text(8, name)
        + protobuf.block(4, items(1, config or {})) + stamp(17, 1_700_000_000 * 10**9)
    )  # fmt: skip
    return protobuf.integer(1, 1) + protobuf.block(17, content)


def history(step: int, values: Mapping[Any, Any]) -> bytes:
    content = items(1, values) + protobuf.block(2, protobuf.integer(1, step))
    return protobuf.block(2, content)


def summary(values: Mapping[Any, Any], removed: Iterable[str] = ()) -> bytes:
    gone = b"".join(protobuf.block(2, protobuf.text(1, key)) for key in removed)
    return protobuf.block(3, items(1, values) + gone)


def config(values: Mapping[Any, Any]) -> bytes:
    return protobuf.block(5, items(1, values))


def stats(time_ns: int, values: Mapping[str, float]) -> bytes:
    return protobuf.block(7, stamp(2, time_ns) + items(3, values))


def output(text: str, time_ns: int = 1_700_000_001 * 10**9, *, is_error: bool = False) -> bytes:
    return protobuf.block(13, protobuf.integer(1, not is_error) + stamp(2, time_ns) + protobuf.text(3, text))


def exited(code: int = 0) -> bytes:
    return protobuf.block(18, protobuf.integer(1, code) + protobuf.integer(2, 7))
