"""daemon.importing.tensorboard: what the tensorboard package has written comes back as a run, value for value."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy
import pytest

pytest.importorskip("tensorboard")

from daemon.importing.bringing import FAILED, IMPORTED, REPLACED, UP_TO_DATE, Brought, bring, look, named
from daemon.importing.source import source_of
from sdk.errors import StoreError, UsageError
from sdk.location import make_store
from sdk.reader import MediaItem, Run, Store
from tests.importing import event_files as made
from tests.importing.event_files import START, simple, started, tensor, values, write


def brought(tmp_path: Path, logs: Path | str | None = None, project: str | None = None, name: str | None = None) -> list[Brought]:
    source = source_of(f"tensorboard:{logs or tmp_path / 'logs'}")
    runs = named(list(source.runs()), project, name)
    store = make_store(str(tmp_path / "store"))
    return list(bring(store, source, runs, project=project, is_named=name is not None))


def only_run(tmp_path: Path) -> Run:
    (run,) = Store(str(tmp_path / "store")).runs()
    return run


def series_of(run: Run, key: str) -> list[tuple[int, float, Any]]:
    found = run.series(key)
    return list(zip(found.step.tolist(), found.time.tolist(), list(found.value)))


def test_scalars_of_old_and_new_writers_keep_their_steps_and_times(tmp_path: Path) -> None:
    """simple_value, tensors of float and double, of integers, one after another and several in an event: all are series."""
    write(
        tmp_path / "logs" / "a" / "events.out.tfevents.1.host",
        *(values(step, simple("loss", step / 4)) for step in range(300)),
        *(values(step, tensor("new", numpy.float32(step / 2), "scalars")) for step in range(200)),
        *(values(step, simple("wide/x", step), tensor("wide/y", numpy.float64(step + 0.1))) for step in range(150)),
        values(7, tensor("count", numpy.int64(2**60), "scalars")),
        values(0, simple("nan", float("nan")), simple("größe\n", float("-inf"))),
    )
    (one,) = brought(tmp_path)
    assert (one.state, one.lost, one.points) == (IMPORTED, {}, 300 + 200 + 300 + 1 + 2)
    run = only_run(tmp_path)
    assert (run.name, run.project, run.state) == ("a", "logs", "finished")
    assert [(step, value) for step, _, value in series_of(run, "loss")] == [(step, step / 4) for step in range(300)]
    assert series_of(run, "new")[-1] == (199, pytest.approx(START + 199, abs=1e-6), 99.5)
    assert series_of(run, "wide/y")[100][2] == 100.1
    assert [value for *_, value in series_of(run, "count")] == [2**60]
    assert series_of(run, "größe\n")[0][2] == float("-inf")
    assert run.started == pytest.approx(START, abs=1e-6)


def test_every_kind_of_value_becomes_ours(tmp_path: Path) -> None:
    """Images, audio, text, histograms old and new, tensors, PR curves, meshes, graphs and hparams."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    ended = HParamsPluginData(session_end_info=SessionEndInfo(status=2)).SerializeToString()
    points = numpy.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0]]], numpy.float32)
    faces = numpy.array([[[0, 1, 2]]], numpy.int32)
    shades = numpy.full((1, 3, 3), 255, numpy.uint8)
    write(
        tmp_path / "logs" / "events.out.tfevents.1.host",
        values(1, made.Summary.Value(tag="old image", image=made.Summary.Image(height=1, width=1, encoded_image_string=made.PNG))),
        values(1, tensor("images", made.strings(b"1", b"1", made.PNG, made.PNG), "images")),
        values(2, made.Summary.Value(tag="old audio", audio=made.Summary.Audio(encoded_audio_string=made.wav()))),
        values(2, tensor("text", made.strings(b"**hello**"), "text")),
        values(3, made.old_histogram("old histogram", [-1.0, 0.0, 1.0, 1e308], [0, 3, 4, 2], -0.5, 5.0)),
        values(3, tensor("histogram", numpy.array([[0, 1, 5], [1, 2, 6]], numpy.float64), "histograms")),
        values(4, tensor("weights", numpy.arange(6, dtype=numpy.float32).reshape(2, 3), "tensor")),
        values(4, tensor("pr", numpy.arange(12, dtype=numpy.float32).reshape(6, 2), "pr_curves")),
        values(5, tensor("cloud_VERTEX", points, "mesh"), tensor("cloud_COLOR", shades, "mesh")),
        values(5, tensor("mesh_VERTEX", points, "mesh"), tensor("mesh_FACE", faces, "mesh")),
        made.Event(wall_time=START, graph_def=b"\x0a\x03abc"),
        made.logged("it begins", START),
        made.Event(wall_time=START, summary=hparams_pb({"lr": 0.5, "name": "x", "amp": True})),
        values(0, tensor("_hparams_/session_end_info", 0.0, "hparams", ended)),
    )
    (one,) = brought(tmp_path)
    assert (one.state, one.lost, one.told) == (IMPORTED, {}, ())
    run = only_run(tmp_path)
    rows = {row["_step"]: row for row in run.rows()}
    assert isinstance(rows[1]["old image"], MediaItem)
    assert rows[1]["old image"].bytes() == made.PNG
    assert [item.bytes() for item in rows[1]["images"]] == [made.PNG, made.PNG]
    assert rows[2]["old audio"].bytes() == made.wav()
    assert rows[2]["text"] == "**hello**"
    assert run.state == "failed"
    assert run.config == {"lr": 0.5, "name": "x", "amp": True}
    assert [line.text for line in run.logs()] == ["it begins"]
    assert [file.name for file in run.files()] == ["graph/graph-1.pb"]
    histogram = rows[3]["histogram"]
    assert (histogram.values, histogram.bins) == ([5, 6], [0, 1, 2])
    old = rows[3]["old histogram"]
    assert (old.values, old.bins) == ([3, 4, 2], [-0.5, 0, 1, 5])
    assert rows[4]["weights"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert rows[4]["pr"].columns[:3] == ["class", "precision", "recall"]
    assert rows[4]["pr"].rows[1][:4] == ["pr", 9, 11, 1]
    assert rows[5]["cloud"].to_numpy().tolist()[1] == [1, 0, 0, 255, 255, 255]
    assert rows[5]["mesh"].bytes() == b"v 0.0 0.0 0.0\nv 1.0 0.0 0.0\nv 0.0 1.0 0.0\nf 1 2 3\n"
