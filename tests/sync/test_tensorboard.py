"""Runs in event files, as TensorBoard's readers find them: what is late, hidden, odd, or no number."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PluginAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams import api_pb2 as api
from tensorboard.plugins.hparams import plugin_data_pb2 as hparams

import sdk
from daemon.sync.carrying import carry_run
from daemon.sync.outcome import DELIVERED, FAILED, LIVE, Outcome
from daemon.sync.place import parse
from daemon.sync.registry import make
from daemon.sync.targets.tensorboard import graphs, meshes, projector
from daemon.sync.targets.tensorboard.names import directory_of, event_file, is_ours
from sdk.errors import UsageError
from tests.builders import RunBuilder, StreamBuilder, make_store
from tests.contracts.tensorboard_side import read_events
from tests.media_rig import MediaBuilder


class Rig:
    """One run, and the log directory that it is carried to."""

    def __init__(self, directory: Path, options: str = "", **facts: Any) -> None:
        self.store = make_store(directory)
        self.run = RunBuilder(self.store, "a41f", **facts)
        self.main: StreamBuilder = self.run.stream(rank=0)
        self.logs = directory / "logs"
        self.url = f"tensorboard:{self.logs}{options}"

    def carry(self) -> Outcome:
        self.run.flush()
        target = make(parse(self.url))
        target.check()
        return carry_run(self.store, self.run.id, target)

    def end(self) -> Outcome:
        for stream in self.run.streams:
            stream.finish()
        self.run.seal()
        return self.carry()

    @property
    def directory(self) -> Path:
        return self.logs / "digits" / "calm-otter-12-a41f"

    def values(self, tag: str, below: str = "") -> list[tuple[int, Any]]:
        return [(step, value) for step, _, value in read_events(self.directory / below)[tag]]

    def files(self) -> list[str]:
        return sorted(path.relative_to(self.directory).as_posix() for path in self.directory.rglob("*tfevents*"))


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


class TestRows:
    """Numbers, and the order of their steps."""

    def test_wall_times_are_those_of_the_records(self, rig: Rig) -> None:
        """To the microsecond."""
        record = rig.main.log({"loss": 0.5})
        rig.end()
        ((_, time, _),) = read_events(rig.directory)["loss"]
        assert time == record.time_ns // 1000 / 1e6

    def test_keys_that_come_and_go_stay_in_order(self, rig: Rig) -> None:
        """Rows with other keys are other events, and yet each tag's steps rise in the file."""
        for step in range(100):
            rig.main.log({"loss": float(step), **({"acc": 1.0} if step % 3 else {}), **({"lr": 2} if step % 5 else {})})
        assert rig.end().is_exact
        assert rig.values("loss") == [(step, float(step)) for step in range(100)]
        assert rig.files() == [event_file(1_700_000_000, "host-a", 0)], "nothing was late"

    def test_a_late_row_comes_when_the_run_is_over(self, rig: Rig) -> None:
        """While it lives the late value waits; then the file is written anew, in order, in the place of the old one."""
        for step in range(0, 20, 2):
            rig.main.log({"loss": float(step)}, step=step, commit=True)
        rig.carry()
        rig.main.log({"loss": 7.0, "other": 1.0}, step=7)
        assert rig.carry().state == LIVE
        assert 7 not in dict(rig.values("loss"))
        assert rig.values("other") == [(7, 1.0)]
        assert rig.end().is_exact
        assert rig.values("loss") == sorted([*((step, float(step)) for step in range(0, 20, 2)), (7, 7.0)])
        assert rig.files() == [event_file(1_700_000_000, "host-a", 1)]

    def test_a_run_that_goes_on_after_that_is_appended_to(self, rig: Rig) -> None:
        """What was written anew is a file like any other: the next pass continues it."""
        rig.main.log({"loss": 1.0}, step=5, commit=True)
        rig.carry()
        rig.main.log({"loss": 0.0}, step=3)
        rig.end()
        second = rig.run.stream(continues=rig.main.hex, attempt=2, first_step=6, rank=0)
        second.log({"loss": 6.0})
        rig.end()
        assert rig.values("loss") == [(3, 0.0), (5, 1.0), (6, 6.0)]

    def test_a_resume_that_hides_is_told_to_readers(self, rig: Rig) -> None:
        """While the run lives a START stands in the file, and a reader drops what it had; in the end nothing of it is there."""
        for step in range(10):
            rig.main.log({"loss": float(step), "gone": 1.0})
        rig.main.finish("crashed")
        rig.carry()
        second = rig.run.stream(continues=rig.main.hex, attempt=2, first_step=6, rank=0)
        second.meta({"hide": {"from_step": 6}})
        second.log({"loss": 60.0})
        rig.carry()
        expected = [*((step, float(step)) for step in range(6)), (6, 60.0)]
        assert rig.values("loss") == expected
        assert [event.step for event in _events(rig.directory) if event.HasField("session_log")] == [0, 6]
        second.finish()
        rig.run.seal()
        assert rig.carry().is_exact
        assert rig.values("loss") == expected
        assert [step for step, _ in rig.values("gone")] == list(range(6))

    def test_the_old_reader_finds_scalars_too(self, rig: Rig) -> None:
        """Scripts that know `Scalars(tag)` alone get them: they stand there as every writer writes them."""
        rig.main.log({"loss": 0.1, "flag": True, "count": 3})
        rig.end()
        found = EventAccumulator(str(rig.directory)).Reload()
        assert [event.value for event in found.Scalars("loss")] == [float(numpy.float32(0.1))]
        assert [event.value for event in found.Scalars("flag")] == [1.0]
        assert [event.value for event in found.Scalars("count")] == [3.0]

    def test_doubles_where_they_are_asked_for(self, tmp_path: Path) -> None:
        """With ``?precision=double`` every bit of a float64 is there, and integers up to 2**53."""
        rig = Rig(tmp_path, "?precision=double")
        rig.main.log({"loss": 0.1, "large": 1e300, "tokens": 2**53 - 1, "mixed": None})
        rig.main.log({"mixed": 2**53 - 1})
        assert rig.end().is_exact
        assert rig.values("loss") == [(0, 0.1)]
        assert rig.values("large") == [(0, 1e300)]
        assert rig.values("tokens") == [(0, 2**53 - 1)]
        assert rig.values("mixed") == [(1, 2**53 - 1)]

    def test_what_no_float_holds_is_counted(self, rig: Rig) -> None:
        """Beyond float32 a number is infinite; beyond 2**53 an integer is another one. Infinity itself is no loss."""
        rig.main.log({"large": 1e300, "huge": 2**64 - 1, "odd": 2**53 + 1, "inf": float("inf")})
        rig.main.log({"large": 1.0, "huge": 1, "odd": None})
        outcome = rig.end()
        assert sorted(outcome.lost) == [
            "integers that no float64 holds exactly",
            "numbers beyond float32, which are infinite there",
        ]
        assert rig.values("large") == [(0, float("inf")), (1, 1.0)]

    def test_system_metrics_are_a_run_below(self, rig: Rig) -> None:
        """Their steps are numbers of samples: a START of the training's must not hide them. Two hosts are two runs."""
        for host in ("n1", "n2"):
            system = rig.run.stream(kind="system", host=host)
            system.log({"system/cpu": 50.0})
        rig.main.log({"loss": 1.0})
        rig.end()
        assert rig.values("system/cpu", "system") == [(0, 50.0)]
        assert rig.values("system/cpu", "system-n2") == [(0, 50.0)]
        assert "system/cpu" not in read_events(rig.directory)

    def test_attempts_without_rows_are_steps_on_the_way(self, rig: Rig) -> None:
        """An attempt that logged nothing leads from the one before to the one behind: they share a directory, also after writing anew."""
        rig.main.log({"loss": 0.0}, step=0, commit=True)
        rig.carry()
        before = rig.main
        for attempt in range(2, 6):
            before = rig.run.stream(continues=before.hex, attempt=attempt, first_step=attempt, rank=0)
            if attempt % 2:
                before.log({"loss": float(attempt)}, step=attempt, commit=True)
                before.log({"loss": attempt - 0.5}, step=attempt - 1)
                rig.end()
        assert rig.values("loss") == [(0, 0.0), (2, 2.5), (3, 3.0), (4, 4.5), (5, 5.0)]
        assert rig.files() == [event_file(1_700_000_000, "host-a", 2)]

    def test_the_main_lane_may_come_last(self, rig: Rig) -> None:
        """Another rank was there first and was taken for the main one; once the run is over each has its own place."""
        run = RunBuilder(rig.store, "second")
        run.stream(rank=1).log({"loss": 1.0})
        run.flush()
        target = make(parse(rig.url))
        carry_run(rig.store, run.id, target)
        run.stream(rank=0, run=run.facts).log({"loss": 0.0})
        for stream in run.streams:
            stream.finish()
        run.seal()
        assert carry_run(rig.store, run.id, target).state == DELIVERED
        directory = rig.logs / "digits"
        (top,) = directory.iterdir()
        found = {path.parent.relative_to(top).as_posix(): read_events(path.parent) for path in top.rglob("*tfevents*")}
        assert [value for _, _, value in found["."]["loss"]] == [0.0]
        assert [value for _, _, value in found["rank1"]["loss"]] == [1.0]


def _events(directory: Path) -> list[Any]:
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

    (path,) = directory.glob("*tfevents*")
    return [Event.FromString(data) for data in RawEventFileLoader(str(path)).Load()]


class TestFiles:
    """What lies in the directory, and what somebody did to it."""

    def test_names_are_safe_and_own(self) -> None:
        """Whatever a project, a name or an id is: two parts, below the directory, no two alike."""
        assert directory_of("digits", "calm-otter-12", "a41f") == "digits/calm-otter-12-a41f"
        assert directory_of("", "a41f", "a41f") == "uncategorized/a41f"
        for odd in ("..", "/etc", "a/b", "\0", "\ud800", "x" * 500, "CON", ""):
            project, name = directory_of(odd, odd, "a41f").split("/")
            assert {project, name}.isdisjoint({"", ".", ".."})
            assert len(name) < 200
        assert directory_of("p", "a-b", "c") != directory_of("p", "a", "b-c")
        assert directory_of("p", "n", "A") != directory_of("p", "n", "a")

    def test_a_removed_file_is_written_again(self, rig: Rig) -> None:
        """Whoever removes the events gets all of them with the next row."""
        rig.main.log({"loss": 0.0})
        rig.carry()
        for name in rig.files():
            (rig.directory / name).unlink()
        rig.main.log({"loss": 1.0})
        rig.carry()
        assert rig.values("loss") == [(0, 0.0), (1, 1.0)]

    def test_files_of_others_stay(self, rig: Rig) -> None:
        """An event file of a pass that did not come to its commit goes; one that we did not write does not."""
        rig.main.log({"loss": 0.0})
        rig.carry()
        (rig.directory / event_file(1_700_000_000, "host-a", 7)).write_bytes(b"not committed")
        (rig.directory / "events.out.tfevents.1700000001.mine").write_bytes(b"")
        rig.main.log({"loss": 1.0})
        rig.carry()
        assert rig.files() == [event_file(1_700_000_000, "host-a", 0), "events.out.tfevents.1700000001.mine"]
        assert not is_ours("events.out.tfevents.1700000001.mine")

    def test_killed_while_it_is_written_anew(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        """Until the commit the old file counts; the next pass removes what was begun and writes it whole."""
        rig.main.log({"loss": 1.0}, step=5, commit=True)
        rig.carry()
        rig.main.log({"loss": 0.0}, step=3)

        def killed(*_: Any) -> Any:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr("daemon.sync.targets.tensorboard.carrying.made_batch", killed)
            with pytest.raises(KeyboardInterrupt):
                rig.end()
        assert len(rig.files()) == 2
        assert rig.carry().is_exact
        assert rig.files() == [event_file(1_700_000_000, "host-a", 1)]
        assert rig.values("loss") == [(3, 0.0), (5, 1.0)]

    @pytest.mark.parametrize(
        ("url", "expected"),
        [("tensorboard:", "names no directory"), ("tensorboard:x?precision=half", "float or double")],
    )
    def test_what_cannot_be_is_refused_at_once(self, url: str, expected: str) -> None:
        """Before the first run, in one sentence."""
        with pytest.raises(UsageError, match=expected):
            make(parse(url)).check()

    def test_a_directory_that_cannot_be(self, tmp_path: Path) -> None:
        """Where a file is, no directory can be made."""
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(UsageError, match="cannot write"):
            make(parse(f"tensorboard:{tmp_path}/file/logs")).check()

    def test_a_run_in_several_stores(self, tmp_path: Path) -> None:
        """Each store adds its processes. None writes the run anew without the others' rows; what is late then is counted, once."""
        first = Rig(tmp_path)
        (tmp_path / "other").mkdir()
        other = Rig(tmp_path / "other")
        other.url = first.url
        other.run.streams.clear()
        second = other.run.stream(rank=1, stream_id=0x7777)
        first.main.log({"loss": 1.0}, step=5, commit=True)
        second.log({"loss": 2.0}, step=5, commit=True)
        other.run.flush()
        first.carry()
        other.carry()
        second.log({"loss": 0.0}, step=3)
        assert other.end().lost == {"late values of a run that lies in several stores": 1}
        assert first.end().lost == {"late values of a run that lies in several stores": 1}
        assert first.values("loss") == [(5, 1.0)]
        assert first.values("loss", "rank1") == [(5, 2.0)]

    def test_another_precision_is_written_anew(self, tmp_path: Path) -> None:
        """The same directory with another option is another wish, also of a run that is over and known as carried."""
        rig = Rig(tmp_path)
        rig.main.log({"loss": 0.1})
        rig.end()
        rig.url += "?precision=double"
        rig.carry()
        assert rig.values("loss") == [(0, 0.1)]


class TestFacts:
    """Config and summary, as hyperparameters."""

    @staticmethod
    def told(rig: Rig) -> list[Any]:
        found = PluginAccumulator(str(rig.directory)).Reload()
        content = found.PluginTagToContent("hparams")
        return [hparams.HParamsPluginData.FromString(content[tag]) for tag in sorted(content)]

    def test_the_config_and_how_it_ended(self, rig: Rig) -> None:
        """Numbers, texts and booleans as such, maps as dotted names, other things as JSON; then the status."""
        rig.main.meta(
            {
                "config": {
                    "lr": 0.1,
                    "layers": 3,
                    "opt": {"name": "adam", "fused": True},
                    "sizes": [1, 2],
                    "none": None,
                    "limit": float("inf"),
                }
            }
        )
        rig.main.log({"loss": 1.0})
        rig.end()
        end, start = self.told(rig)
        found = {
            key: getattr(value, value.WhichOneof("kind")) for key, value in start.session_start_info.hparams.items()
        }
        assert found == {
            "lr": 0.1, "layers": 3.0, "opt.name": "adam", "opt.fused": True, "sizes": "[1, 2]", "none": "null", "limit": "inf",
        }  # fmt: skip
        assert end.session_end_info.status == api.Status.Value("STATUS_SUCCESS")

    def test_a_config_that_changes_is_told_in_the_end(self, rig: Rig) -> None:
        """Readers take the first that a file has: once the run is over there is a file with the last one."""
        rig.main.meta({"config": {"lr": 0.1}})
        rig.main.log({"loss": 1.0})
        rig.carry()
        rig.main.meta({"config": {"lr": 0.2}})
        rig.main.log({"loss": 2.0})
        rig.end()
        start = self.told(rig)[-1]
        assert start.session_start_info.hparams["lr"].number_value == 0.2
        assert rig.values("loss") == [(0, 1.0), (1, 2.0)]

    def test_numbers_of_the_summary_that_are_no_series(self, rig: Rig) -> None:
        """They become scalars at the last step, where the page of hyperparameters finds them; series are left alone."""
        other = rig.run.stream(rank=1)
        rig.main.log({"loss": 1.0})
        rig.main.log({"loss": 0.5})
        other.log({"only/one": 1.0})
        rig.main.meta({"summary": {"best": {"acc": 0.75}, "note": "text", "loss": 9.0}})
        rig.end()
        assert rig.values("best.acc") == [(1, 0.75)]
        assert rig.values("loss") == [(0, 1.0), (1, 0.5)]
        assert "only/one" not in read_events(rig.directory)


class TestValues:
    """What are no numbers. That the page shows them is in `test_tensorboard_page`."""

    @staticmethod
    def carried(rig: Rig, *rows: dict[str, Any]) -> Outcome:
        media = MediaBuilder(rig.run, rig.main)
        for row in rows:
            media.log(row)
        rig.main.finish()
        media.seal()
        return rig.carry()

    def test_texts_lists_and_maps(self, rig: Rig) -> None:
        """Texts as markdown, the rest as its JSON; a null is no value, bytes are counted."""
        outcome = self.carried(rig, {"text": "**a**", "list": [1, {"a": None}], "null": None, "bytes": b"x"})
        assert rig.values("text") == [(0, "**a**")]
        assert rig.values("list") == [(0, '[1, {"a": null}]')]
        assert outcome.lost == {"bytes": 1}
        assert set(read_events(rig.directory)) == {"text", "list"}

    def test_a_key_may_be_a_number_and_a_text(self, rig: Rig) -> None:
        """A tag belongs to one plugin: the second kind of values has the plugin behind its name."""
        self.carried(rig, {"x": 1.0}, {"x": "a"}, {"x": 2.0}, {"x": "b"})
        assert rig.values("x") == [(0, 1.0), (2, 2.0)]
        assert rig.values("x/text") == [(1, "a"), (3, "b")]

    def test_histograms_are_bins(self, rig: Rig) -> None:
        """Left edge, right edge and count of each."""
        self.carried(rig, {"h": sdk.Histogram(np_histogram=([1, 2], [0.0, 0.5, 1.0]))})
        ((_, bins),) = rig.values("h")
        assert bins.tolist() == [[0.0, 0.5, 1.0], [0.5, 1.0, 2.0]]

    @pytest.mark.parametrize(
        "array",
        [numpy.arange(6.0).reshape(2, 3), numpy.array([True, False]), numpy.arange(3) * 1j, numpy.ones((40, 200))],
    )
    def test_tensors_come_whole_with_their_distribution(self, rig: Rig, array: Any) -> None:
        """In the record or stored apart: the numbers for readers, a histogram for the page."""
        assert self.carried(rig, {"t": array}).is_exact
        ((_, found),) = rig.values("t")
        assert found.dtype == array.dtype
        assert (found == array).all()
        ((_, bins),) = rig.values("t/histogram")
        assert bins[:, 2].sum() == array.size

    def test_one_number_in_an_array_is_a_number(self, rig: Rig) -> None:
        """An array without axes is a scalar."""
        self.carried(rig, {"t": numpy.float64(0.5), "u": numpy.array(0.25)})
        assert (rig.values("t"), rig.values("u")) == ([(0, 0.5)], [(0, 0.25)])

    def test_a_long_table_is_cut_and_counted(self, rig: Rig) -> None:
        """The page would not open; how many rows are missing is said."""
        outcome = self.carried(rig, {"t": sdk.Table(columns=["a|b"], data=[[n] for n in range(1003)])})
        assert outcome.lost == {"rows of tables beyond 1000": 3}
        ((_, text),) = rig.values("t")
        assert text.splitlines()[:3] == ["| a\\|b |", "| --- |", "| 0 |"]

    def test_what_has_no_plugin_lies_beside(self, rig: Rig) -> None:
        """A page's file is in the run's directory, and a text says where."""
        self.carried(rig, {"page": sdk.Html("<b>x</b>", inject=False)})
        ((_, text),) = rig.values("page")
        (path,) = (rig.directory / "media").iterdir()
        assert text == f"html `media/{path.name}`"
        assert "<b>x</b>" in path.read_text(encoding="utf-8")

    def test_bytes_that_are_gone_are_counted(self, rig: Rig) -> None:
        """A value whose bytes nobody has does not stop the others."""
        rig.main.log({"loss": 1.0})
        media = MediaBuilder(rig.run, rig.main)
        media.log({"page": sdk.Html("<b>" + "x" * 20_000)})
        rig.main.finish()
        media.seal()
        os.unlink(media.paths[0])
        outcome = rig.carry()
        assert outcome.state != FAILED
        assert outcome.lost == {"values of kind html that cannot be read": 1}
        assert rig.values("loss") == [(0, 1.0)]

    def test_a_graph_is_the_runs(self, rig: Rig) -> None:
        """Nodes by their names, what is within others in boxes, inputs by the edges."""
        graph = sdk.Graph()
        first, second = graph.add_node(id=1, name="net.conv", class_name="Conv2d"), graph.add_node(id=2, name="net")
        graph.add_edge(first, second)
        self.carried(rig, {"graph": graph})
        found = PluginAccumulator(str(rig.directory)).Reload().Graph()
        assert [(node.name, node.op, list(node.input)) for node in found.node] == [
            ("net/conv", "Conv2d", []), ("net/(net)", "node", ["net/conv"]),
        ]  # fmt: skip

    def test_points_and_colors(self, rig: Rig) -> None:
        """A cloud is its points and their colors, under the names that the plugin looks for."""
        points = numpy.array([[0.0, 1.0, 2.0, 255.0, 0.0, 7.0]])
        self.carried(rig, {"cloud": sdk.Object3D(points)})
        assert rig.values("cloud_VERTEX")[0][1].tolist() == [[[0.0, 1.0, 2.0]]]
        assert rig.values("cloud_COLOR")[0][1].tolist() == [[[255, 0, 7]]]


class TestMeshes:
    """Files of triangles."""

    @pytest.mark.parametrize(
        "data",
        [
            b"v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n# a square\nf 1/1 2/2 3/3 4/4\n",
            b"v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf -4 -3 -2 -1\n",
        ],
    )
    def test_obj(self, data: bytes) -> None:
        """A face of four corners is two triangles; corners may be counted from the end."""
        found = meshes.read_mesh(data, "obj")
        assert found.vertices.tolist()[2] == [1, 1, 0]
        assert found.faces is not None
        assert found.faces.tolist() == [[0, 1, 2], [0, 2, 3]]

    def test_stl(self) -> None:
        """As text and as bytes, the same triangle."""
        text = b"solid x\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\nendsolid\n"
        binary = bytes(80) + struct.pack("<I12fH", 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0)
        for data in (text, binary):
            found = meshes.read_mesh(data, "stl")
            assert found.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
            assert found.faces is not None
            assert found.faces.tolist() == [[0, 1, 2]]

    @pytest.mark.parametrize(
        ("data", "kind"),
        [
            (b"", "obj"),
            (b"v 1 2\n", "obj"),
            (b"v 0 0 0\nf 1 2 3\n", "obj"),
            (b"f x y z", "obj"),
            (b"", "stl"),
            (b"", "glb"),
        ],
    )
    def test_what_is_none_is_refused(self, data: bytes, kind: str) -> None:
        """Whatever the bytes are, it is a ValueError."""
        with pytest.raises(ValueError, match=r".+"):
            meshes.read_mesh(data, kind)

    def test_points_of_categories_have_colors(self) -> None:
        """Those of one category the same, those of others others."""
        colors = meshes.cloud(numpy.array([[0, 0, 0, 1], [0, 0, 0, 2], [0, 0, 0, 1]])).colors
        assert colors is not None
        assert colors[0].tolist() == colors[2].tolist() != colors[1].tolist()
        with pytest.raises(ValueError, match="shape"):
            meshes.cloud(numpy.zeros((2, 5)))


class TestSmall:
    """Texts of the projector, names of a graph."""

    def test_a_name_cannot_end_its_string(self) -> None:
        """Quotes, newlines and letters beyond ASCII are octal numbers, as protobuf's text form has them."""
        from google.protobuf import text_format
        from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

        name = 'a"\n} embeddings { \\ é'
        entry = {"name": name, "path": "projector/x", "shape": [3, 2], "has_labels": True, "tile": 6}
        found = text_format.Parse(projector.config([entry, entry]).decode(), ProjectorConfig())
        assert [one.tensor_name for one in found.embeddings] == [name, name]
        assert list(found.embeddings[0].sprite.single_image_dim) == [6, 6]

    @pytest.mark.parametrize(
        "content",
        [
            [],
            {"nodes": 1, "edges": []},
            {"edges": []},
            {"nodes": [], "edges": [1]},
            {"nodes": [3, {}], "edges": [[1, 2]]},
        ],
    )
    def test_a_made_up_graph(self, content: Any) -> None:
        """Any JSON is a graph or a ValueError."""

        def build() -> bytes:
            return graphs.graph_of(json.dumps(content).encode())

        if isinstance(content, dict) and isinstance(content.get("nodes"), list) and content["edges"] != [1]:
            assert build()
        else:
            with pytest.raises(ValueError, match="graph"):
                build()

    def test_nodes_of_one_name_are_two(self) -> None:
        """A name belongs to one node; a box's name to none."""
        nodes = [{"id": n, "name": name} for n, name in enumerate(["a", "a", "a.b", ""])]
        data = graphs.graph_of(json.dumps({"nodes": nodes, "edges": []}).encode())
        from tensorboard.compat.proto.graph_pb2 import GraphDef

        names = [node.name for node in GraphDef.FromString(data).node]
        assert len(set(names)) == 4
        assert "a" not in names
