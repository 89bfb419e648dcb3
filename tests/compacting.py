"""Runs of rows to be compacted: made by chance, read by the product's reader and by nothing but `sdk.rows`."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path
from typing import Any

import numpy
from msgpack import ExtType

from daemon.compact.work import Report, compact_run
from sdk.files import DISK, Files
from sdk.location import read_store
from sdk.reader.run import Run
from sdk.record import EXT_BIG_INT, KIND_ROW, decode_map
from sdk.rows import Piece, merge
from sdk.segment.naming import HISTORY
from tests.builders import RunBuilder, StreamBuilder, Writer, make_store

# Values of every physical type, and those that are easily lost on the way.
NAN = struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_DEAD_BEEF))[0]
VALUES: list[Any] = [
    0.5, -0.0, NAN, float("inf"), 1e-320, 1, -1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), ExtType(EXT_BIG_INT, b"9" * 30), True,
    False, None, "", "text", "\ud800", [1, [2.5, None]], {}, {"inner": 3, "deep": {"er": "x"}}, b"bytes",
]  # fmt: skip


class Scene:
    """A run and its builder; nothing is written until `seal`."""

    def __init__(self, path: Path | str, *, kind: str = "daemon") -> None:
        self.store = make_store(path)
        self.run = RunBuilder(self.store)
        self.run.daemon.kind = kind
        self.directory = self.run.directory

    def compact(self, files: Files = DISK, **options: Any) -> Report:
        return compact_run(files, read_store(self.store), self.directory, **options)

    def names(self) -> list[str]:
        return sorted(name for name in os.listdir(self.directory) if name.startswith(HISTORY))

    def read(self, directory: str | None = None) -> dict[str, Any]:
        return contents(directory or self.directory)


def contents(directory: str) -> dict[str, Any]:
    """Everything that the reader says of a run but where it lies."""
    run = Run(directory)
    streams = {stream.id: [shown(row) for row in run.rows(stream=stream.id)] for stream in run.streams}
    facts = {
        "config": run.config,
        "state": run.state,
        "created": run.created,
        "gaps": run.gaps,
        "keys": sorted(run.keys()),
    }
    return {"streams": streams, "facts": facts, "damage": run.damage}


def shown(value: Any) -> Any:
    """A value that equals another one only if it is the same, bit for bit; the order of names does not count."""
    if isinstance(value, dict):
        return {name: shown(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown(inner) for inner in value]
    if isinstance(value, float):
        return "float", struct.pack("<d", value)
    if isinstance(value, numpy.ndarray):
        return "array", value.dtype.str, value.tobytes()
    return type(value).__name__, value


def expected(stream: StreamBuilder) -> list[Any]:
    """The rows of a stream, as `sdk.rows` merges them."""
    rows = (record for record in stream.records if record.kind == KIND_ROW)
    pieces = [Piece(r.sequence, r.step, r.flags, r.time_ns, decode_map(r.payload)) for r in rows]
    return sorted(merge(pieces), key=lambda piece: piece.step)


def log_by_chance(draw: random.Random, stream: StreamBuilder, count: int) -> None:
    """Runs of records that look alike, single odd ones, pieces, late steps, facts, gaps."""
    keys = [f"key{number}" for number in range(6)]
    while count > 0:
        what = draw.random()
        if what < 0.3:
            chosen = draw.sample(keys, draw.randint(1, 4))
            for _ in range(draw.randint(1, 60)):
                stream.log({key: draw.choice((draw.random(), draw.randrange(200))) for key in chosen})
                count -= 1
        elif what < 0.5:
            for number in range(draw.randint(20, 60)):
                stream.log({"loss": draw.random(), "lr": 0.5, "n": 2**33 + number, "on": number % 2 == 0})
                count -= 1
        elif what < 0.9:
            values = {key: draw.choice(VALUES) for key in draw.sample(keys, draw.randint(0, 4))}
            step = draw.choice((None, None, stream.step + draw.randrange(3), draw.randrange(stream.step + 1)))
            stream.log(values, step=step, commit=draw.choice((None, True, False)))
            count -= 1
        else:
            stream.meta({"config": {"n": draw.randrange(100)}})
            count -= 1


def write_by_chance(draw: random.Random, writers: list[Writer], streams: list[StreamBuilder]) -> None:
    """Every record once at least, some in several segments, in blocks of any size that may overlap."""
    for stream in streams:
        start = 0
        while start < len(stream.records):
            size = draw.choice((1, 3, 40, 200))
            writer = draw.choice(writers)
            writer.rows(stream, stream.records[start : start + size])
            if draw.random() < 0.2:
                back = max(start - draw.randrange(100), 0)
                draw.choice(writers).rows(stream, stream.records[back : start + draw.randint(1, size)])
            start += size
            if draw.random() < 0.3:
                writer.seal()
