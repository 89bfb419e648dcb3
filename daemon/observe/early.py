"""Trainers that have logged nothing yet: what they said of themselves stands in their rings, and nowhere else.

A trainer says Hello to the daemon with its first record; until then, while it loads its data, its ring alone shows that it is there.
Rings are read, never written, and only those whose owner lives: what a dead one left is the daemon's to take.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container
from typing import Any, NamedTuple

from sdk import platform
from sdk.errors import DamageError
from sdk.ids import hex_u64
from sdk.journal.drain import read_header, ring_paths, ring_stream
from sdk.journal.salvage import Window
from sdk.reader.facts import StreamFacts
from sdk.record import KIND_META, decode_map, walk

# Limit: what is read of a ring. Facts stand at its beginning; a config of megabytes may keep the context behind it from us.
_BYTES_MAX = 1 << 20


class Early(NamedTuple):
    """A trainer that lives.

    Attributes:
        run: The run's id. `ring`: the path of its ring.
        stream: What it said of its stream. `context`: and of itself.
    """

    run: str
    ring: str
    stream: StreamFacts
    context: dict[str, Any]


def early_streams(shared_memory_dir: str, store: str, store_id: bytes, known: Container[str]) -> list[Early]:
    """The trainers of a store on this host whose streams (16 hex digits) nobody knows yet."""
    found = []
    for path in ring_paths(shared_memory_dir, platform.store_digest(store)):
        owner = platform.lock_owner(path) if hex_u64(ring_stream(path)) not in known else None
        if not owner:
            continue
        with contextlib.suppress(Exception):  # whatever these bytes are, they are a trainer's business
            read = _read(path, store_id)
            # A ring that a daemon drains is locked by that one.
            if read is not None and read.stream.number("pid") == owner:
                found.append(read)
    return found


def _read(path: str, store_id: bytes) -> Early | None:
    """What a ring holds of its trainer's facts; None: it is another store's, or something of it is stored already."""
    descriptor = platform.open_regular(path, os.O_RDONLY)
    try:
        header = read_header(path, descriptor)
        if header.identity.get("store") != store_id or header.released is None or header.released[1] > 1:
            return None
        records = Window(descriptor, header.capacity).read(0, min(header.head, _BYTES_MAX))
    finally:
        os.close(descriptor)
    stream, context = StreamFacts(header.stream), {}
    with contextlib.suppress(DamageError):  # the end may be cut
        for record in walk(records):
            if record.kind == KIND_META:
                told = decode_map(record.payload)
                stream.about.update(_map(told.get("stream")))
                context.update(_map(told.get("context")))
    return Early(str(header.identity["run"]), path, stream, context) if stream.about else None


def _map(value: Any) -> dict[str, Any]:
    return value if type(value) is dict else {}
