"""A run that was carried to TensorBoard's files and imported from them says the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy

from daemon.formats.events import first_event
from daemon.formats.scalar_events import scalar_records
from daemon.formats.tfrecord import record
from daemon.importing.bringing import bring, named
from daemon.importing.source import Found, Source, source_of
from daemon.importing.writing import ImportedRun
from daemon.sync.carrying import carry_run
from daemon.sync.place import parse
from daemon.sync.registry import make
from sdk.location import make_store
from sdk.reader import MediaItem, Run, Store
from sdk.values.audio import Audio
from sdk.values.histogram import Histogram
from sdk.values.image import Image
from sdk.values.object3d import Object3D

START_US = 1_700_000_000_000_001


class Logged(Source):
    """A run as a training logs it."""

    scheme = "logged"

    def runs(self) -> list[Found]:
        return [Found("a41f", "first", "digits", "logged:", "logged", "1", 1, 0)]

    def read(self, found: Found, run: ImportedRun, moved: Callable[[int], None]) -> None:
        chance = numpy.random.default_rng(7)
        steps = numpy.arange(500, dtype=numpy.int64)
        run.attempt("main", START_US * 1000)
        run.facts({"config": {"lr": 0.125, "name": "größe", "deep": True}})
        run.rows(steps, START_US + steps * 7, {"loss": chance.random(500).astype("f4").astype("f8"), "steps": steps})
        run.row(1, (START_US + 7) * 1000, media(chance))
        run.attempt("resumed", START_US * 1000 + 10**9, hide_from=380)
        later = START_US + 10**6 + steps[400:]
        run.rows(steps[400:], later, {"loss": numpy.full(100, numpy.nan), "late/key": steps[400:] * 0.5})
        run.row(450, (START_US + 10**6 + 450) * 1000, media(chance))


def media(chance: numpy.random.Generator) -> dict[str, Any]:
    return {
        "image": Image(chance.integers(0, 255, (9, 8, 3), numpy.uint8)),
        "sound": Audio(numpy.arange(80, dtype=numpy.int16), sample_rate=80),
        "text": f"**{chance.random()}**",
        "histogram": Histogram(np_histogram=([1, 2, 3], [0.0, 0.5, 1.0, 4.0])),
        "array": chance.random((3, 4)),
        "cloud": Object3D(chance.random((5, 3))),
    }


def test_what_was_carried_to_tensorboard_comes_back(tmp_path: Path) -> None:
    """Steps, times and values of scalars, files of media, texts, arrays, config: across a resume that hid rows."""
    made = make_store(str(tmp_path / "made"))
    source = Logged("")
    (one,) = bring(made, source, source.runs())
    assert not one.lost
    before = Store(made.path).run("a41f")
    target = make(parse(f"tensorboard:{tmp_path / 'logs'}"))
    target.check()
    outcome = carry_run(made.path, os.path.basename(before.directory), target)
    assert outcome.state == "delivered", outcome
    target.close()
    back = source_of(f"tensorboard:{tmp_path / 'logs'}")
    (found,) = bring(make_store(str(tmp_path / "back")), back, named(list(back.runs()), None, None))
    assert (found.state, found.lost, found.told) == ("imported", {}, ())
    after = Store(str(tmp_path / "back")).run(found.run)
    assert after.config == before.config
    assert set(before.all_keys()) <= set(after.all_keys())
    for key in before.all_keys():
        assert told(after, key) == told(before, key), key


def told(run: Run, key: str) -> list[Any]:
    series = run.series(key)
    values = [shown(value) for value in series.value]
    return list(zip(series.step.tolist(), (series.time * 1e6).round().astype("i8").tolist(), values))


def shown(value: Any) -> Any:
    if not isinstance(value, MediaItem):
        return repr(numpy.asarray(value, "f4").tolist()) if not isinstance(value, str) else value
    if value.kind == "histogram":
        return value.values, value.bins
    return value.to_numpy().astype("f4").tolist() if value.kind in ("image", "object3d", "tensor") else value.bytes()


def test_of_a_run_that_was_imported_anew_only_what_is_new_is_carried(tmp_path: Path) -> None:
    """Its streams and sequences are those of the run that it replaced."""
    logs = tmp_path / "logs"
    logs.mkdir()
    store = make_store(str(tmp_path / "store"))
    target = make(parse(f"jsonl:{tmp_path / 'lines'}"))
    target.check()
    carried = []
    for rows in (100, 130):
        steps = numpy.arange(rows)
        events = b"".join(map(bytes, scalar_records(["loss", "lr"], steps / 2, steps, [steps * 2.0, steps * 3.0])))
        (logs / "events.out.tfevents.1.host").write_bytes(record(first_event(1.0)) + events)
        source = source_of(f"tensorboard:{logs}")
        (one,) = bring(store, source, named(list(source.runs()), None, None))
        outcome = carry_run(store.path, os.path.basename(Store(store.path).run(one.run).directory), target)
        assert outcome.state == "delivered", outcome
        carried.append(outcome.points)
    target.close()
    assert carried == [200, 60]
