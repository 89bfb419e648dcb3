"""Runs of W&B become runs of a store, from its files alone."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy
import pytest

from daemon.formats.wandb_file import BLOCK_BYTES
from daemon.importing.bringing import IMPORTED, REPLACED, UP_TO_DATE, bring
from daemon.importing.source import source_of
from sdk.errors import UsageError
from sdk.location import make_store
from sdk.reader import Run
from sdk.segment.naming import run_path
from tests import wandb_log as made

AT = 1_700_000_000.0


class World:
    """A store, and runs of W&B in a directory."""

    def __init__(self, directory: Path) -> None:
        self.store = make_store(str(directory / "store"))
        self.wandb = directory / "wandb"
        self.lost: Counter[str] = Counter()
        self.told: list[str] = []
        self.states: list[str] = []

    def write(self, *records: bytes, name: str = "run-20231114_221320-a41f", run_id: str = "a41f") -> Path:
        """A run's directory with these records."""
        path = self.wandb / name / f"run-{run_id}.wandb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made.log_of(records))
        return path

    def bring(self, what: Path | None = None) -> list[Run]:
        """Imports everything; a run that fails is a failure of the test."""
        source = source_of(f"wandb:{what or self.wandb}")
        found = list(bring(self.store, source, list(source.runs())))
        assert not [one for one in found if one.reason], found
        self.states = [one.state for one in found]
        for one in found:
            self.lost.update(one.lost)
            self.told += one.told
        return [Run(run_path(self.store.path, one.run)) for one in found]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def row(step: int, **values: object) -> bytes:
    return made.history(step, {**values, "_step": step, "_timestamp": AT + step, "_runtime": float(step)})


def test_a_run_is_what_its_file_says(world: World) -> None:
    """Names, config with what was changed later, rows at their times, lines, samples, the user's summary, the end."""
    world.write(
        made.run(config={"lr": 0.1, "net": {"width": 3}, "_wandb": {"t": 1}}), made.config({("net", "depth"): 2, "_wandb": {}}),
        row(0, loss=1.5, nested={"a": {"b": 1}}), row(1, loss=math.nan, text="ü", none=None), row(5, loss=-math.inf),
        made.summary({"loss": -math.inf, "best": 0.5, "gone": 1, ("loss2", "min"): 3, "_runtime": 5}), made.summary({}, ["gone"]),
        made.output("hel"), made.output("lo\n50 %\r100 %\n"), made.output("uh", is_error=True),
        made.stats(int(AT) * 10**9, {"cpu": 12.5, "gpu.0.temp": 60}), made.exited(3),
    )  # fmt: skip
    (run,) = world.bring()
    assert (run.id, run.name, run.project) == ("a41f", "calm", "digits")
    assert run.config == {"lr": 0.1, "net": {"width": 3, "depth": 2}}
    loss = run.series("loss")
    assert loss.step.tolist() == [0, 1, 5]
    assert loss.time.tolist() == [AT, AT + 1, AT + 5]
    numpy.testing.assert_array_equal(loss.value, [1.5, math.nan, -math.inf])
    assert run.keys() == ["loss", "nested.a.b", "none", "text"]
    summary = run.summary
    assert {key: summary[key] for key in ("best", "loss2.min", "text")} == {"best": 0.5, "loss2.min": 3, "text": "ü"}
    assert "gone" not in summary
    assert [(line.source, line.text) for line in run.logs()] == [
        ("stdout", "hello"),
        ("stdout", "100 %"),
        ("stderr", "uh"),
    ]
    assert run.series("system/gpu.0.temperature").value.tolist() == [60]
    assert (run.state, run.exit_code) == ("failed", 3)
    assert run.created == AT
    assert not world.lost


def test_a_run_that_goes_on_is_imported_anew(world: World) -> None:
    """Without a change nothing is to be done; a file that has grown takes the place of what was imported of it."""
    world.write(made.run(), row(0, loss=1.0))
    (run,) = world.bring()
    assert world.states == [IMPORTED]
    assert run.state == "interrupted"
    assert any("has no end" in remark for remark in world.told)
    world.bring()
    assert world.states == [UP_TO_DATE]
    world.write(made.run(), row(0, loss=1.0), row(1, loss=2.0), made.exited())
    (run,) = world.bring()
    assert world.states == [REPLACED]
    assert run.state == "finished"
    assert run.series("loss").value.tolist() == [1.0, 2.0]


def test_parts_of_a_run_are_one(world: World) -> None:
    """Directories with one run id are its attempts, in order of their names; at a step the later one counts."""
    world.write(made.run(), row(0, loss=0.0), row(1, loss=1.0), name="run-20231114_221320-a41f")
    world.write(made.run(), row(1, loss=1.5), row(2, loss=2.5), made.exited(), name="run-20231115_000000-a41f")
    (run,) = world.bring()
    assert run.series("loss").value.tolist() == [0.0, 1.5, 2.5]
    assert [stream.attempt for stream in run.streams] == [1, 2]
    assert run.state == "finished"


def test_runs_of_two_projects_stay_two(world: World) -> None:
    """W&B's ids are unique within a project only: the second one gets another id, always the same."""
    world.write(made.run(project="a"), row(0, loss=1.0), made.exited(), name="run-1-a41f")
    world.write(made.run(project="b"), row(0, loss=2.0), made.exited(), name="run-2-a41f")
    first, second = world.bring()
    assert first.id == "a41f" != second.id
    assert (first.project, second.project) == ("a", "b")
    assert [found.run_id for found in source_of(f"wandb:{world.wandb}").runs()] == [first.id, second.id]


def test_damage_costs_its_block(world: World) -> None:
    """What is whole is imported, what was left out is counted and told with its place; a torn end is no damage."""
    path = world.write(made.run(), *(row(step, text="x" * 900) for step in range(100)), made.exited())
    data = bytearray(path.read_bytes())
    data[BLOCK_BYTES + 50] ^= 1
    path.write_bytes(data)
    (run,) = world.bring()
    assert 50 < len(run.series("text")) < 100
    assert world.lost["damaged places, which are left out"] == 1
    assert any(str(path) in remark and "bytes at" in remark for remark in world.told)
    path.write_bytes(made.log_of([made.run(), row(0, loss=1.0)])[:-3])
    world.lost.clear()
    assert not world.bring()[0].keys()
    assert not world.lost["damaged places, which are left out"]


def test_files_are_taken_from_the_run_alone(world: World, tmp_path: Path) -> None:
    """A path that leads out of the run's files, by dots or by a link, is none; neither is a link among its files copied."""
    secret = tmp_path / "secret.html"
    secret.write_text("<b>secret</b>")
    path = world.write(
        made.run(), made.exited(),
        row(0, a={"_type": "html-file", "path": "../../../secret.html"}, b={"_type": "html-file", "path": str(secret)},
            c={"_type": "html-file", "path": "link.html"}, d={"_type": "html-file", "path": "media/no.html"},
            e={"_type": "html-file", "path": "media/page.html"}, f={"_type": "strange", "path": "media/page.html"}, g=1),
    )  # fmt: skip
    files = path.parent / "files"
    (files / "media").mkdir(parents=True)
    (files / "link.html").symlink_to(secret)
    (files / "media" / "page.html").write_text("<i>mine</i>")
    (files / "notes.txt").write_text("kept")
    (files / "wandb-summary.json").write_text("{}")
    (run,) = world.bring()
    assert run.keys() == ["e", "g"]
    assert run.media("e")[0].bytes() == b"<i>mine</i>"
    assert [file.name for file in run.files()] == ["notes.txt"]
    assert world.lost["media whose files are not there"] == 4
    assert world.lost["values of the kind 'strange'"] == 1
    assert world.lost["files that are links (cp -rL takes what they lead to)"] == 1
    stored = b"".join(one.read_bytes() for one in Path(world.store.path).rglob("*") if one.is_file())
    assert b"secret</b>" not in stored


def test_links_out_of_the_source_are_refused(world: World, tmp_path: Path) -> None:
    """A log, or the directory of a run's files, that is one: left out, with a line."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "page.html").write_text("secret")
    (outside / "run-b.wandb").write_bytes(made.log_of([made.run("b"), made.exited()]))
    path = world.write(made.run(), row(0, a={"_type": "html-file", "path": "page.html"}, g=1), made.exited())
    (path.parent / "files").symlink_to(outside)
    (world.wandb / "run-b.wandb").symlink_to(outside / "run-b.wandb")
    (world.wandb / "c").symlink_to(outside)
    (world.wandb / "latest-run").symlink_to(path.parent)
    source = source_of(f"wandb:{world.wandb}")
    assert [found.run_id for found in source.runs()] == ["a41f"]
    assert [text.partition(" is a link out of")[0] for text in source.troubles] == [
        repr(str(one)) for one in (world.wandb / "c", world.wandb / "run-b.wandb", path.parent / "files")
    ]
    (run,) = world.bring()
    assert (run.keys(), run.files()) == (["g"], [])
    assert world.lost == {"media whose files are not there": 1, "files that are links out of the source": 1}


def test_a_pattern_is_one_source(world: World) -> None:
    """Parts of a run that it matches are one run, as of the directory above."""
    world.write(made.run(), row(0, loss=0.0), name="offline-run-1-a41f")
    world.write(made.run(), row(1, loss=1.0), made.exited(), name="offline-run-2-a41f")
    world.write(made.run("b"), row(1, loss=1.0), made.exited(), name="run-3-b", run_id="b")
    (run,) = world.bring(world.wandb / "offline-run-*")
    assert run.series("loss").value.tolist() == [0.0, 1.0]


def test_media_that_make_no_sense_are_counted(world: World) -> None:
    """Whatever a row says of its media, the run is imported."""
    odd = [
        {"_type": "histogram"}, {"_type": "histogram", "values": "x", "bins": 3}, {"_type": "image-file", "path": 7},
        {"_type": "images/separated", "filenames": [1, None]}, {"_type": "table-file", "path": "t.json"}, {"_type": 5},
        {"_type": "histogram", "packedBins": {"min": "a"}, "values": [1]},
    ]  # fmt: skip
    path = world.write(made.run(), row(0, **{f"k{n}": one for n, one in enumerate(odd)}, loss=1.0), made.exited())
    (path.parent / "files").mkdir()
    (path.parent / "files" / "t.json").write_text('{"columns": 3}')
    (run,) = world.bring()
    assert run.keys() == ["loss"]
    assert sum(world.lost.values()) == len(odd)


def test_numbers_that_cannot_be_are_left_out(world: World) -> None:
    """Steps, times and codes that no program writes end nothing."""
    world.write(
        made.run(), row(2**63 - 1, a=1), row(-5 & 0xFFFFFFFFFFFFFFFF, a=2),
        made.history(3, {"_timestamp": math.inf, "_step": math.nan, "_runtime": "x", "a": 3}),
        made.history(4, {"_timestamp": 1e300, "a": 2**80}), made.history(5, {"_timestamp": [1], "a": 5}),
        made.output("x\n", 2**62), made.stats(2**62, {"cpu": 1.0, "gpu..": math.nan}), made.summary({("a", "b"): 1, "a": 2}),
        made.exited(2**31),
    )  # fmt: skip
    (run,) = world.bring()
    assert run.series("a").step.tolist() == [3, 5]
    assert world.lost["values at steps below 0 or above 2**62"] == 2
    assert world.lost["values that cannot be stored"] == 1


def test_bins_that_were_packed_are_unpacked(world: World) -> None:
    """W&B writes evenly spaced bins as their first edge and their width."""
    bins = {"min": 1.0, "size": 0.5, "count": 2}
    world.write(made.run(), row(0, h={"_type": "histogram", "values": [3, 4], "packedBins": bins}), made.exited())
    (run,) = world.bring()
    (item,) = run.media("h")
    assert (item.values, item.bins) == ([3, 4], [1.0, 1.5, 2.0])


@pytest.mark.parametrize("content", [b"", b"nothing of W&B", b":W&B", made.log_of([]), made.log_of([row(0, loss=1.0)])])
def test_a_place_without_runs_is_said(world: World, content: bytes) -> None:
    """A directory without such files, with one that is none, or one that says nothing of its run."""
    world.wandb.mkdir()
    (world.wandb / "run-a.wandb").write_bytes(content)
    with pytest.raises(UsageError, match="no run of W&B"):
        list(source_of(f"wandb:{world.wandb}").runs())


def test_what_cannot_be_read_is_said(world: World) -> None:
    """A file that is none, or may not be opened, does not keep the others from being imported."""
    world.write(made.run(), row(0, loss=1.0), made.exited())
    (world.wandb / "run-x.wandb").symlink_to(world.wandb / "nothing")
    os.mkfifo(world.wandb / "run-y.wandb")
    source = source_of(f"wandb:{world.wandb}")
    assert [found.run_id for found in source.runs()] == ["a41f"]
    assert any("run-x.wandb" in trouble for trouble in source.troubles)


def test_a_run_whose_beginning_is_damaged_has_the_id_of_its_name(world: World) -> None:
    """The rest of it is imported all the same."""
    path = world.write(made.run(config={"x": "y" * BLOCK_BYTES}), row(0, loss=1.0), made.exited())
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)
    (run,) = world.bring()
    assert run.id == "a41f"
    assert run.series("loss").value.tolist() == [1.0]


TRAINING = """
import sys
import numpy, wandb
run = wandb.init(
    mode="offline", project="digits", name="calm", id="a41f", config={"lr": 0.1, "net": {"widths": [1, 2]}}, group="g",
    tags=["t"], notes="n", job_type="train", dir=sys.argv[1],
    settings=wandb.Settings(console="wrap", x_disable_stats=True, x_disable_meta=True, x_save_requirements=False),
)
run.define_metric("loss", summary="min")
run.define_metric("val/*", step_metric="epoch")
pixels = numpy.arange(60, dtype=numpy.uint8).reshape(4, 5, 3)
for step in range(20):
    print("step", step)
    run.log({"loss": 1 / (step + 1), "val/acc": step, "epoch": step // 5, "inf": float("inf"), "text": f"t{step}"})
run.log({
    "image": wandb.Image(pixels, caption="c", boxes={"p": {"box_data": [{"position": {"minX": .1, "maxX": .2, "minY": .1,
    "maxY": .2}, "class_id": 1, "scores": {"s": .5}}], "class_labels": {1: "cat"}}}), "hist": wandb.Histogram([1, 2, 3]),
    "images": [wandb.Image(pixels, caption="x"), wandb.Image(pixels, caption="y")], "html": wandb.Html("<b>x</b>", inject=False),
    "table": wandb.Table(columns=["a", "b"], data=[[1, "x"], [2, None]]), "points": wandb.Object3D(numpy.ones((3, 3))),
}, step=40)
run.summary["best"] = 0.25
run.config["late"] = True
run.finish(exit_code=0)
"""


def test_a_run_that_the_package_wrote(world: World, tmp_path: Path) -> None:
    """W&B's real files, of a real run of its package, through the command."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    subprocess.run(
        [sys.executable, "-c", TRAINING, str(tmp_path)], env={**environment, "WANDB_SILENT": "true"}, cwd=tmp_path, timeout=60,
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    (run,) = world.bring(tmp_path / "wandb")
    assert (run.name, run.project, run.group, run.job_type, run.notes, run.tags) == (
        "calm", "digits", "g", "train", "n", ["t"],
    )  # fmt: skip
    assert run.config == {"lr": 0.1, "net": {"widths": [1, 2]}, "late": True}
    assert run.series("loss").value.tolist() == [1 / (step + 1) for step in range(20)]
    assert run.series("val/acc").value.tolist() == list(range(20))
    assert run.series("inf").value.tolist() == [math.inf] * 20
    assert run.series("text").value.tolist() == [f"t{step}" for step in range(20)]
    assert run.last_step == 40
    assert run.summary["loss"] == {"min": 0.05}
    assert run.summary["best"] == 0.25
    (image,) = run.media("image")
    assert image.caption == "c"
    assert (image.to_numpy() == numpy.arange(60).reshape(4, 5, 3)).all()
    assert image.value["boxes"]["p"]["box_data"][0]["scores"] == {"s": 0.5}
    assert [item.caption for item in run.media("images")] == ["x", "y"]
    assert run.media("html")[0].bytes() == b"<b>x</b>"
    assert run.media("table")[0].rows == [[1, "x"], [2, None]]
    assert sum(run.media("hist")[0].values) == 3
    assert json.loads(run.media("points")[0].bytes())
    assert [line.text for line in run.logs()][:2] == ["step 0", "step 1"]
    assert (run.state, run.exit_code) == ("finished", 0)
    assert not world.lost
