"""Random runs, carried at random moments, against what was logged."""

from __future__ import annotations

import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest

from sdk.record import KIND_ROW, decode_map
from tests.builders import RunBuilder, StreamBuilder, compact
from tests.contracts.parquet_side import Side
from tests.sync.parquet_rig import Rig, read

SEEDS = [int(os.environ["STEPD_TEST_SEED"])] if "STEPD_TEST_SEED" in os.environ else [1, 2]
MEMORY = "/dev/shm"

Held = dict[tuple[str, str, int], Any]


def _value(draw: random.Random) -> Any:
    return draw.choice(
        [draw.random(), draw.randrange(-(2**62), 2**62), draw.random() < 0.5, "ü" * draw.randrange(3), [1, "a"], None]
    )


def _log(draw: random.Random, stream: StreamBuilder, kinds: dict[str, Any]) -> None:
    keys = draw.sample(sorted(kinds), draw.randrange(1, 4))
    # Most keys keep their kind of value, as in a training; "any" does not.
    values = {key: _value(draw) if key == "any" else type(kinds[key])(draw.randrange(9)) for key in keys}
    if draw.random() < 0.1:
        values[keys[0]] = None
    step = draw.randrange(stream.step + 1) if draw.random() < 0.1 else None
    stream.log(values, step=step, commit=draw.choice([None, None, False]))


def _expected(streams: list[StreamBuilder]) -> Held:
    """By stream, key and step the value with the highest sequence."""
    found: Held = {}
    for stream in streams:
        for record in stream.records[: stream.taken]:
            if record.kind == KIND_ROW:
                found.update(
                    ((stream.hex, key, record.step), value) for key, value in decode_map(record.payload).items()
                )
    return found


def _wide(rig: Rig) -> Held:
    side = Side()
    side.root = str(rig.root)
    found: dict[tuple[str, str, int], tuple[int, Any]] = {}
    for path in rig.paths():
        for row in side.table(str(path)):
            values = {key: value for key, value in row.items() if value is not None and key[0] != "_"}
            values.update(dict.fromkeys(row.get("_null") or ()))
            for key, value in values.items():
                place = (row["_stream"], key, row["_step"])
                found[place] = max(found.get(place, (-1, None)), (row["_sequence"], value), key=lambda pair: pair[0])
    return {place: value for place, (_, value) in found.items()}


def _long(rig: Rig) -> Held:
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for path in rig.paths():
        for row in read(path).to_pylist():
            place = (row["_stream"], row["key"], row["_step"])
            if place not in found or row["_sequence"] >= found[place]["_sequence"]:
                found[place] = row
    return {place: _of(row) for place, row in found.items()}


def _of(row: dict[str, Any]) -> Any:
    """A value of the long layout, as its type says."""
    if row["json"] is not None:
        return json.loads(row["json"])
    made = {"float": float, "int": int, "bool": bool}.get(row["type"])
    return made(row["value"]) if made is not None else row["text"]


def _as_wide(expected: Held, found: Held) -> Held:
    """What was logged, as the wide layout has it: `any` as JSON, except in files that hold one kind of value."""
    return {
        place: json.dumps(value)
        if place[1] == "any" and isinstance(found.get(place), str) and found[place] != value and value is not None
        else value
        for place, value in expected.items()
    }


@pytest.mark.parametrize("layout", ["wide", "long"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_run_is_there_as_it_was_logged(layout: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Late rows, open rows, nulls, keys that change their kind, several streams, compaction and any number of passes in any order."""
    print(f"STEPD_TEST_SEED={seed}")
    draw = random.Random(seed)
    monkeypatch.setattr("sdk.reader.delivery.BATCH_RECORDS", draw.choice([3, 20, 65_536]))
    monkeypatch.setattr("daemon.sync.targets.parquet.parts.GROUP_ROWS_MAX", draw.choice([1, 7, 1 << 19]))
    monkeypatch.setattr("daemon.sync.targets.parquet.shipping.JOIN_FILES", draw.choice([2, 5, 64]))
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        rig = Rig(Path(directory), f"?layout={layout}")
        run = RunBuilder(rig.store, "a41f")
        streams = [run.stream(), run.stream(rank=1)]
        kinds = {"loss": 0.5, "count": 1, "ok": True, "text": "x", "any": None}
        target = rig.target()
        for _ in range(draw.randrange(4, 9)):
            for _ in range(draw.randrange(1, 25)):
                _log(draw, draw.choice(streams), kinds)
            run.flush()
            if draw.random() < 0.3:
                run.seal()
                compact(run, window=draw.choice([5, 1000]))
            if draw.random() < 0.7:
                assert not rig.carry(draw.choice([target, None])).lost
        for stream in streams:
            stream.finish()
        run.seal()
        assert rig.carry().is_exact
        expected = _expected(streams)
        if layout == "long":
            assert _long(rig) == expected
            assert {place: type(value) for place, value in _long(rig).items()} == {
                place: type(value) for place, value in expected.items()
            }
        else:
            found = _wide(rig)
            assert found == _as_wide(expected, found)
