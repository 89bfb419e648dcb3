"""daemon.importing.tensorboard: what the tensorboard package has written comes back as a run, value for value."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy
import pytest

from daemon.compact.work import work as compact_work
from daemon.encode.work import work as media_work
from daemon.formats.tfrecord import record
from daemon.importing import writing
from daemon.importing.bringing import FAILED, IMPORTED, REPLACED, UP_TO_DATE, Brought, bring, look, named
from daemon.importing.source import source_of
from daemon.store.replacing import remove_replaced
from sdk import clock
from sdk.errors import StoreError, UsageError
from sdk.files import DISK
from sdk.location import make_store
from sdk.reader import MediaItem, Run, Store
from sdk.reader.delivery import deliver
from sdk.reader.verify import verify_run
from sdk.segment.naming import HISTORY
from tests.builders import RunBuilder
from tests.importing import event_files as made
from tests.importing.event_files import START, simple, started, tensor, values, write


def brought(
    tmp_path: Path, logs: Path | str | None = None, project: str | None = None, name: str | None = None
) -> list[Brought]:
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


def one_of_every_kind() -> list[Any]:
    """Images, audio, text, histograms old and new, tensors, PR curves, meshes, graphs and hparams."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb
    from tensorboard.plugins.mesh.plugin_data_pb2 import MeshPluginData

    def told(kind: Any) -> bytes:
        return MeshPluginData(name="mesh", content_type=kind).SerializeToString()

    ended = HParamsPluginData(session_end_info=SessionEndInfo(status=2)).SerializeToString()
    points = numpy.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0]]], numpy.float32)
    faces = numpy.array([[[0, 1, 2]]], numpy.int32)
    shades = numpy.full((1, 3, 3), 255, numpy.uint8)
    return [
        values(
            1,
            made.Summary.Value(
                tag="old image", image=made.Summary.Image(height=1, width=1, encoded_image_string=made.PNG)
            ),
        ),
        values(1, tensor("images", made.strings(b"1", b"1", made.PNG, made.PNG), "images")),
        values(2, made.Summary.Value(tag="old audio", audio=made.Summary.Audio(encoded_audio_string=made.wav()))),
        values(2, tensor("text", made.strings(b"**hello**"), "text")),
        values(3, made.old_histogram("old histogram", [-1.0, 0.0, 1.0, 1e308], [0, 3, 4, 2], -0.5, 5.0)),
        values(3, tensor("histogram", numpy.array([[0, 1, 5], [1, 2, 6]], numpy.float64), "histograms")),
        values(4, tensor("weights", numpy.arange(6, dtype=numpy.float32).reshape(2, 3), "tensor")),
        values(4, tensor("pr", numpy.arange(12, dtype=numpy.float32).reshape(6, 2), "pr_curves")),
        values(5, tensor("cloud_VERTEX", points, "mesh"), tensor("cloud_COLOR", shades, "mesh")),
        values(5, *(tensor(f"mesh_{kind}", part, "mesh", told(kind)) for kind, part in ((1, points), (2, faces)))),
        made.Event(wall_time=START, graph_def=b"\x0a\x03abc"),
        made.Event(wall_time=START, tagged_run_metadata={"tag": "x", "run_metadata": b"1"}),
        values(0, tensor("keras", made.strings(b"{}"), "graph_keras_model")),
        values(0, tensor("layout", made.strings(b"\x00\x01"), "custom_scalars")),
        made.logged("it begins", START),
        made.Event(wall_time=START, summary=hparams_pb({"lr": 0.5, "name": "x", "amp": True})),
        values(0, tensor("_hparams_/session_end_info", 0.0, "hparams", ended)),
    ]


def test_every_kind_of_value_becomes_ours(tmp_path: Path) -> None:
    """The same files, texts, numbers and bins; of the run its config, state, console and files."""
    path = write(tmp_path / "logs" / "events.out.tfevents.1.host", *one_of_every_kind())
    (path.parent / "00000").mkdir()
    (path.parent / "00000" / "tensors.tsv").write_text("1\t2\n")
    (path.parent / "projector_config.pbtxt").write_text('embeddings {\n  tensor_path: "00000/tensors.tsv"\n}\n')
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
    assert {file.name for file in run.files()} == {
        "graph/graph-1.pb", "graph/run-metadata-1.pb", "graph/keras-model-1.json", "layout/custom-scalars-1.pb",
        "projector/projector_config.pbtxt", "projector/00000/tensors.tsv",
    }  # fmt: skip
    histogram = rows[3]["histogram"]
    assert (histogram.values, histogram.bins) == ([5, 6], [0, 1, 2])
    old = rows[3]["old histogram"]
    assert (old.values, old.bins) == ([3, 4, 2], [-0.5, 0, 1, 5])
    assert rows[4]["weights"].tolist() == [[0, 1, 2], [3, 4, 5]]
    table = rows[4]["pr"].value["table"]
    assert table.columns[:3] == ["class", "precision", "recall"]
    assert table.rows[1][:4] == ["pr", 9, 11, 1]
    assert rows[5]["cloud"].to_numpy().tolist()[1] == [1, 0, 0, 255, 255, 255]
    assert rows[5]["mesh"].bytes() == b"v 0.0 0.0 0.0\nv 1.0 0.0 0.0\nv 0.0 1.0 0.0\nf 1 2 3\n"


def test_a_session_start_hides_what_was_written_from_its_step_on(tmp_path: Path) -> None:
    """Whether it stands in the file or at the head of the next one; what is hidden is still stored."""
    logs = tmp_path / "logs"
    write(
        logs / "events.out.tfevents.1.host",
        *(values(step, simple("loss", step), at=START + step) for step in range(10)),
        values(8, tensor("note", made.strings(b"old"), "text")),
        started(6, START + 20),
        *(values(step, simple("loss", step + 100), at=START + 20 + step) for step in (6, 7)),
        values(6, tensor("note", made.strings(b"new"), "text")),
    )
    write(
        logs / "events.out.tfevents.2.host",
        started(7, START + 40),
        values(7, simple("loss", 1000), at=START + 40),
    )
    (one,) = brought(tmp_path)
    run = only_run(tmp_path)
    assert [(step, value) for step, _, value in series_of(run, "loss")] == [
        *((step, step) for step in range(6)), (6, 106), (7, 1000),
    ]  # fmt: skip
    assert [(step, value) for step, _, value in series_of(run, "note")] == [(6, "new")]
    assert sorted({stream.attempt for stream in run.streams}) == [1, 2, 3]
    assert (one.state, one.lost) == (IMPORTED, {})


def test_files_of_a_directory_go_on_with_one_another(tmp_path: Path) -> None:
    """In the order of their names; of a step that two of them hold the later file's value counts."""
    logs = tmp_path / "logs" / "deep" / "er"
    write(logs / "events.out.tfevents.2.host", *(values(step, simple("loss", -step)) for step in range(5, 10)))
    write(logs / "events.out.tfevents.1.host", *(values(step, simple("loss", step)) for step in range(7)))
    write(logs.parent / "events.out.tfevents.1.host", values(1, simple("other", 1)))
    (logs / "notes.txt").write_text("no event file")
    found = {one.name: one for one in brought(tmp_path, project="mine")}
    assert sorted(found) == ["deep", "deep/er"]
    run = Store(str(tmp_path / "store")).run(found["deep/er"].run)
    assert run.project == "mine"
    assert [value for *_, value in series_of(run, "loss")] == [0, 1, 2, 3, 4, -5, -6, -7, -8, -9]


def test_importing_again_does_nothing_until_the_source_has_grown(tmp_path: Path) -> None:
    """Then the run is written anew under the same id, with the same sequences for what was there."""
    path = tmp_path / "logs" / "events.out.tfevents.1.host"
    write(
        path,
        *(values(step, simple("loss", step), simple("lr", 1)) for step in range(50)),
        values(9, tensor("a", [1.0, 2.0], "tensor")),
    )
    (first,) = brought(tmp_path)
    before = {stream.id: (stream.first, stream.last) for stream in only_run(tmp_path).streams}
    (again,) = brought(tmp_path)
    assert (again.state, again.run, again.points) == (UP_TO_DATE, first.run, 0)
    write(path, *(values(step, simple("loss", step)) for step in range(50, 60)), values(9, simple("late", 9)))
    (grown,) = brought(tmp_path)
    assert (grown.state, grown.run) == (REPLACED, first.run)
    run = only_run(tmp_path)
    assert len(series_of(run, "loss")) == 60
    after = {stream.id: (stream.first, stream.last) for stream in run.streams}
    assert after.keys() == before.keys()
    assert sum(last for _, last in after.values()) > sum(last for _, last in before.values())
    assert os.listdir(tmp_path / "store" / "importing") == ["lock"]


def test_sequences_stay_the_same_when_a_file_grows(tmp_path: Path) -> None:
    """A value has the sequence that it had, and a row that got more values a higher one."""
    path = tmp_path / "logs" / "events.out.tfevents.1.host"
    events = [values(step // 2, simple(f"k{step % 2}", step)) for step in range(40)]
    write(path, *events[:31])
    brought(tmp_path)
    before = sequences_of(only_run(tmp_path))
    write(path, *events[31:])
    brought(tmp_path)
    after = sequences_of(only_run(tmp_path))
    changed = {step for step, sequence in before.items() if after[step] != sequence}
    assert changed == {15}
    assert after[15] > max(before.values())


def sequences_of(run: Run) -> dict[int, int]:
    return {step: sequence for batch in deliver(run, {}) for sequence, step, _, _ in batch.rows()}


def test_a_torn_end_is_not_there_yet(tmp_path: Path) -> None:
    """Wherever a file that is being written ends; when the rest has come, it is imported."""
    path = write(
        tmp_path / "logs" / "events.out.tfevents.1.host", *(values(step, simple("loss", step)) for step in range(3))
    )
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    (one,) = brought(tmp_path)
    assert (one.state, one.lost) == (IMPORTED, {})
    assert "not a whole record yet" in one.told[0]
    assert len(series_of(only_run(tmp_path), "loss")) == 2
    path.write_bytes(whole)
    (one,) = brought(tmp_path)
    assert (one.state, one.told) == (REPLACED, ())
    assert len(series_of(only_run(tmp_path), "loss")) == 3


@pytest.mark.parametrize("where", ["payload", "header"])
def test_a_damaged_record_is_skipped_and_counted(tmp_path: Path, where: str) -> None:
    """A wrong byte in a payload costs its record; one in a header costs it too, and the next one is found."""
    path = write(
        tmp_path / "logs" / "events.out.tfevents.1.host", *(values(step, simple("loss", step)) for step in range(9))
    )
    data = bytearray(path.read_bytes())
    record = (len(data) - data.index(b"loss") + 30) // 9
    place = data.index(b"loss") + 3 * record
    data[place if where == "payload" else place - 30] ^= 0x40
    path.write_bytes(data)
    (one,) = brought(tmp_path)
    assert one.state == IMPORTED
    assert sum(one.lost.values()) == 1
    assert not one.is_exact
    assert len(series_of(only_run(tmp_path), "loss")) == 8


def test_what_is_not_understood_is_counted_by_kind(tmp_path: Path) -> None:
    """Bytes of other plugins, steps below zero, pictures that are none: the rest is imported."""
    write(
        tmp_path / "logs" / "events.out.tfevents.1.host",
        values(-3, simple("loss", 1)),
        values(0, simple("loss", 2)),
        values(0, tensor("image", made.strings(b"1", b"1", b"no picture"), "images")),
        values(0, tensor("empty", numpy.zeros((0, 3)), "histograms")),
        values(0, simple("x" * 5000, 1)),
        values(0, tensor("own", made.strings(b"\x00"), "somebody's")),
        values(1, simple("loss", 3), at=float("nan")),
    )
    (one,) = brought(tmp_path)
    assert one.lost == {
        "values at steps below 0 or above 2**62": 1,
        "images that cannot be stored": 1,
        "histograms that cannot be stored": 1,
        "values whose name has more than 4096 bytes": 1,
        "values of unknown plugins that cannot be stored": 1,
    }
    assert [value for *_, value in series_of(only_run(tmp_path), "loss")] == [2, 3]


def test_what_somebody_has_set_of_an_imported_run_stays(tmp_path: Path) -> None:
    """Edits from outside (`stepd set`) do not count as going on with it, and hold when its source has grown and is imported again."""
    path = write(tmp_path / "logs" / "events.out.tfevents.1.host", values(0, simple("loss", 1)))
    brought(tmp_path)
    only_run(tmp_path).set(name="first", tags=["kept"], summary={"test": 1})
    only_run(tmp_path).set(name="mine", summary_removed=["test"])
    (same,) = brought(tmp_path)
    assert same.state == UP_TO_DATE
    write(path, values(1, simple("loss", 3)))
    (one,) = brought(tmp_path)
    assert one.state == REPLACED
    run = only_run(tmp_path)
    assert (run.name, run.tags, run.explicit_summary) == ("mine", ["kept"], {})
    assert [value for *_, value in series_of(run, "loss")] == [1, 3]


def test_a_run_that_is_no_import_is_never_replaced(tmp_path: Path) -> None:
    """Nor an imported one that somebody went on with: it is told, and the others are imported."""
    path = write(tmp_path / "logs" / "events.out.tfevents.1.host", values(0, simple("loss", 1)))
    (first,) = brought(tmp_path)
    builder = RunBuilder(str(tmp_path / "store"), first.run)
    builder.stream().log({"loss": 2}, step=1)
    builder.seal()
    write(path, values(1, simple("loss", 3)))
    (one,) = brought(tmp_path)
    assert one.state == FAILED
    assert "gone on with" in one.reason
    assert sorted(only_run(tmp_path).series("loss", stream="all").value.tolist()) == [1, 2]


def test_one_import_at_a_time(tmp_path: Path) -> None:
    """A second one is refused while the first one holds the store."""
    from daemon.importing.placing import Inbox

    write(tmp_path / "logs" / "events.out.tfevents.1.host", values(0, simple("loss", 1)))
    with Inbox(make_store(str(tmp_path / "store"))), pytest.raises(StoreError, match="another process imports"):
        brought(tmp_path)


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    """Unknown kinds, with the nearest name; a path with nothing to import."""
    with pytest.raises(UsageError, match="Did you mean 'tensorboard'"):
        source_of("tensorbord:x")
    with pytest.raises(UsageError, match="expected KIND:PATH"):
        source_of("runs")
    with pytest.raises(UsageError, match="tfevents"):
        list(source_of(f"tensorboard:{tmp_path}").runs())
    with pytest.raises(UsageError, match="no directory"):
        list(source_of(f"tensorboard:{tmp_path / 'none'}").runs())


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    """It says what is new, what has changed, what is there."""
    path = write(tmp_path / "logs" / "events.out.tfevents.1.host", values(0, simple("loss", 1)))
    runs = named(list(source_of(f"tensorboard:{tmp_path / 'logs'}").runs()), None, None)
    assert [one.state for one in look(None, runs)] == [IMPORTED]
    brought(tmp_path)
    assert [one.state for one in look(str(tmp_path / "store"), runs)] == [UP_TO_DATE]
    write(path, values(1, simple("loss", 1)))
    runs = named(list(source_of(f"tensorboard:{tmp_path / 'logs'}").runs()), None, None)
    assert [one.state for one in look(str(tmp_path / "store"), runs)] == [REPLACED]


def test_what_cannot_be_looked_at_is_told(tmp_path: Path) -> None:
    """A file that is not there keeps its run out and no other; links to directories in the source are followed once."""
    logs = tmp_path / "logs"
    write(logs / "good" / "events.out.tfevents.1.host", values(0, simple("loss", 1)))
    write(logs / "bad" / "events.out.tfevents.1.host", values(0, simple("loss", 1)))
    (logs / "bad" / "events.out.tfevents.2.host").symlink_to(logs / "nowhere")
    (logs / "linked").symlink_to(logs / "good")
    (logs / "round").symlink_to(logs)
    source = source_of(f"tensorboard:{logs}")
    assert [found.name for found in source.runs()] == ["good"]
    assert len(source.troubles) == 1
    assert "events.out.tfevents.2.host" in source.troubles[0]
    # A pipe, whose other end nobody opens, a file without a record, and one that is just made.
    for name in ("pipe", "nonsense", "empty"):
        (logs / name).mkdir()
    os.mkfifo(logs / "pipe" / "events.out.tfevents.1.host")
    (logs / "nonsense" / "events.out.tfevents.1.host").write_bytes(b"x" * 100)
    (logs / "empty" / "events.out.tfevents.1.host").touch()
    source = source_of(f"tensorboard:{logs}")
    assert [found.name for found in source.runs()] == ["good"]
    assert sorted("pipe" in text or "no record" in text for text in source.troubles) == [False, True, True]


def test_a_file_whose_beginning_is_damaged_is_a_run(tmp_path: Path) -> None:
    """However much of it: the first record that is whole says which run it is."""
    path = write(tmp_path / "logs" / "events.out.tfevents.1.host", values(0, simple("loss", 1)))
    path.write_bytes(b"x" * 70_000 + path.read_bytes())
    (one,) = brought(tmp_path)
    assert (one.state, one.points, one.lost) == (IMPORTED, 1, {"places without records": 1})


def test_histograms_of_many_bins_keep_every_count(tmp_path: Path) -> None:
    """Empty ones beside one another are one; only where that is not enough neighbours are joined, and that is counted."""
    limits = [float(place) for place in range(2001)]
    few = [float(place % 50 == 0) for place in range(2001)]
    write(
        tmp_path / "logs" / "events.out.tfevents.1.host",
        values(0, made.old_histogram("few", limits, few, -1.0, 2000.0)),
        values(0, made.old_histogram("many", limits, [1.0] * 2001, -1.0, 2000.0)),
    )
    (one,) = brought(tmp_path)
    assert one.lost == {"histograms of more than 512 bins, of which neighbours were joined": 1}
    (row,) = only_run(tmp_path).rows()
    assert (len(row["few"].values), sum(row["few"].values)) == (81, 41)
    assert row["few"].bins[:4] == [-1, 0, 49, 50]
    assert (len(row["many"].values), sum(row["many"].values)) == (501, 2001)


def test_the_projector_leads_nowhere_else(tmp_path: Path) -> None:
    """Paths out of the run's directory, absolute or not, copy nothing, and are counted."""
    (tmp_path / "secret").write_text("secret")
    path = write(tmp_path / "logs" / "events.out.tfevents.1.host", values(0, simple("loss", 1)))
    lines = [f'tensor_path: "{path}"' for path in ("../secret", tmp_path / "secret")]
    (path.parent / "projector_config.pbtxt").write_text("\n".join(lines))
    (one,) = brought(tmp_path)
    assert one.lost == {"files that could not be copied": 2}
    assert [file.name for file in only_run(tmp_path).files()] == ["projector/projector_config.pbtxt"]


def test_links_out_of_the_source_are_refused(tmp_path: Path) -> None:
    """Event files, directories and the projector's files: what they lead to is not in the store, and the user is told."""
    outside = write(tmp_path / "outside" / "events.out.tfevents.1.host", values(0, simple("secret", 1)))
    (tmp_path / "secret.tsv").write_text("secret")
    logs = tmp_path / "logs"
    write(logs / "a" / "events.out.tfevents.1.host", values(0, simple("loss", 1)))
    (logs / "a" / "events.out.tfevents.2.host").symlink_to(outside)
    (logs / "b").symlink_to(outside.parent)
    (logs / "a" / "projector_config.pbtxt").write_text('tensor_path: "t.tsv"')
    (logs / "a" / "t.tsv").symlink_to(tmp_path / "secret.tsv")
    source = source_of(f"tensorboard:{logs}")
    runs = list(source.runs())
    assert [found.name for found in runs] == ["a"]
    assert len(source.troubles) == 2
    assert all("is a link out of" in text for text in source.troubles)
    (one,) = brought(tmp_path)
    assert one.lost == {"files that are links out of the source": 1}
    run = only_run(tmp_path)
    assert run.keys() == ["loss"]
    assert [file.name for file in run.files()] == ["projector/projector_config.pbtxt"]


def test_one_file_is_a_source_too(tmp_path: Path) -> None:
    """It alone, called as its directory."""
    path = write(tmp_path / "logs" / "a" / "events.out.tfevents.1.host", values(0, simple("loss", 1)))
    write(tmp_path / "logs" / "a" / "events.out.tfevents.2.host", values(1, simple("loss", 2)))
    (one,) = brought(tmp_path, path)
    assert one.name == "a"
    assert len(series_of(only_run(tmp_path), "loss")) == 1


def test_an_imported_run_is_a_run_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In however many files: every byte verifies; compacted it says the same; it says where it comes from."""
    monkeypatch.setitem(writing._SEGMENT_BYTES, HISTORY, 4096)
    monkeypatch.setattr(writing, "_POINTS_MAX", 500)
    noise = numpy.random.default_rng(1).integers(0, 255, (128, 128, 3), numpy.uint8)
    write(
        tmp_path / "logs" / "events.out.tfevents.1.host",
        *(values(step, simple("loss", step)) for step in range(3000)),
        *(values(step, simple("late", step)) for step in range(0, 3000, 7)),
        values(5, tensor("array", noise, "tensor")),
        values(5, tensor("text", made.strings(b"five"), "text")),
    )
    brought(tmp_path)
    store = str(tmp_path / "store")
    before = list(map(shown, only_run(tmp_path).rows()))
    segments = len(os.listdir(only_run(tmp_path).directory))
    assert segments > 4
    assert verified(tmp_path)
    identity = make_store(store)
    media_work(DISK, identity)
    compact_work(DISK, identity)
    run = only_run(tmp_path)
    remove_replaced(DISK, run.directory, clock.wall_ns(), kept_seconds=0)
    assert len(os.listdir(run.directory)) < segments
    assert verified(tmp_path)
    assert list(map(shown, run.rows())) == before
    assert run.context["import"]["source"] == f"tensorboard:{tmp_path / 'logs'}"
    assert [one.state for one in brought(tmp_path)] == [UP_TO_DATE]


def verified(tmp_path: Path) -> bool:
    found = verify_run(DISK, only_run(tmp_path).directory)
    return not found.findings and not found.gaps and not found.notes


def shown(row: dict[str, Any]) -> dict[str, Any]:
    return {key: numpy.asarray(value).tolist() for key, value in row.items()}


def test_bytes_that_somebody_made_up_end_no_import(tmp_path: Path) -> None:
    """Whatever stands in records whose checksums are right: what cannot be stored is counted, and the run can be read."""
    payloads = [
        event.SerializeToString() for event in (*one_of_every_kind(), started(2, START), values(3, simple("loss", 1)))
    ]
    for seed in range(8):
        chance = random.Random(seed)
        records = [record(values(0, simple("loss", 1)).SerializeToString())]
        for payload in chance.choices(payloads, k=30):
            data = bytearray(payload)
            for _ in range(chance.choice([0, 1, 1, 2, 5])):
                data[chance.randrange(len(data))] = chance.randrange(256)
            records.append(record(bytes(data)))
        path = tmp_path / str(seed) / "events.out.tfevents.1.host"
        path.parent.mkdir()
        path.write_bytes(b"".join(records))
    found = brought(tmp_path, tmp_path)
    assert [one.state for one in found] == [IMPORTED] * 8
    for run in Store(str(tmp_path / "store")).runs():
        assert sum(1 for _ in run.rows()) > 0, run.name
