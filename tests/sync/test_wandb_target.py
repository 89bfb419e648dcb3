"""Runs in W&B's own files, written by its package offline, read back without it."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy
import plotly.graph_objects
import pytest

import sdk
from daemon.formats import wandb_file as file
from daemon.importing.bringing import bring
from daemon.importing.source import source_of
from daemon.sync.carrying import carry_run
from daemon.sync.outcome import DELIVERED, UP_TO_DATE, Outcome
from daemon.sync.place import parse
from daemon.sync.registry import make
from sdk import clock, runfiles
from sdk.errors import UsageError
from sdk.ids import run_directory
from sdk.location import make_store as new_store
from sdk.reader import Run
from sdk.segment.naming import run_path
from tests.builders import START_NS, RunBuilder, make_run, make_store
from tests.contracts.wandb_side import records_of
from tests.media_rig import MediaBuilder
from tests.wandb_rig import own_directories

PIXELS = numpy.arange(60, dtype=numpy.uint8).reshape(4, 5, 3)


def carry(store: str, directory: Path, run: str = "a41f", what: str = "wandb:") -> Outcome:
    with own_directories(directory):
        target = make(parse(f"{what}?mode=offline&dir={directory}"))
        try:
            return carry_run(store, run_directory(run), target)
        finally:
            target.close()


def logs(directory: Path) -> list[Path]:
    return sorted(directory.glob("wandb/offline-run-*/*.wandb"))


def full_run(store: str) -> Run:
    """A run with something of everything."""
    run = RunBuilder(store, project="digits", name="née 😀", group="g", job_type="train", notes="n", tags=["a", "b"])
    main = run.stream(rank=0)
    main.meta({"config": {"lr": 0.1, "net": {"widths": [1, 2]}, "none": None}, "summary": {"best": 0.25}})
    main.meta({"metric": {"loss": {"summary": ["min"]}, "val/*": {"step_metric": "epoch", "step_sync": True}}})
    program = {"kind": "script", "path": "/home/me/train.py"}
    git = {"commit": "c0ffee", "remote": "git@host:repo"}
    main.meta({"context": {"python": {"version": "3.12.1", "implementation": "CPython"}}})
    main.meta({"context": {"command": ["python", "train.py", "--x"], "program": program, "host": "node7", "git": git}})
    for step in range(5):
        main.log({"loss": 1 / (step + 1), "val/acc": step, "epoch": step // 2, "nan": math.nan, "text": f"t{step}"})
    media = MediaBuilder(run, main)
    boxes = {"box_data": [{"position": {"minX": 0.1, "maxX": 0.2, "minY": 0.1, "maxY": 0.2}, "class_id": 1}],
             "class_labels": {1: "cat"}}  # fmt: skip
    mask = {"mask_data": numpy.ones((4, 5), numpy.uint8), "class_labels": {1: "x"}}
    media.log({
        "image": sdk.Image(PIXELS, caption="c", boxes={"p": boxes}, masks={"m": mask}),
        "images": [sdk.Image(PIXELS), sdk.Image(PIXELS + 1, caption="second")],
        "a/sound": sdk.Audio(numpy.zeros(9, "i2"), sample_rate=8000),
        "video": sdk.Video(numpy.zeros((2, 3, 8, 8), "u1"), fps=4), "page": sdk.Html("<b>x</b>"), "hist": sdk.Histogram([1, 2, 3]),
        "table": sdk.Table(columns=["a", "b"], data=[[1, "x"], [2, "y"]]), "points": sdk.Object3D(numpy.ones((3, 3))),
        "chart": sdk.plot.line(sdk.Table(columns=["x", "y"], data=[[1, 2]]), "x", "y"), "../up\0": sdk.Image(PIXELS),
        "tensor": numpy.arange(100.0), "small": numpy.arange(3), "bytes": b"abc",
    })  # fmt: skip
    media.log(_less_usual(os.path.dirname(store)))
    console = run.stream(kind="console", rank=0)
    for number, row in enumerate([
        {"text": "hello", "from": "stdout"}, {"text": "uh", "from": "log", "level": 30, "logger": "net"},
        {"text": "50 %", "from": "stderr", "live": 1}, {"text": "100 %", "from": "stderr", "ends": 1},
        {"text": "open", "from": "stdout", "live": 2},
    ]):  # fmt: skip
        console.log(row, step=number, commit=True)
    system = run.stream(kind="system")
    system.log({"system/cpu": 150.0, "system/gpu.0.temperature": 60})
    for stream in (main, console, system):
        stream.finish("failed", 3)
    media.seal()
    runfiles.put_bytes(runfiles.files_path(run.directory), "conf/model.yaml", b"layers: 2\n")
    return Run(run.directory)


def _less_usual(directory: str) -> dict[str, Any]:
    graph = sdk.Graph()
    graph.add_node(id="a", name="first", class_name="Linear")
    graph.add_node(id="b", name="second", num_parameters=3)
    graph.add_edge(graph["a"], graph["b"])
    document = Path(directory, "figure.json")
    document.write_text('{"roots": []}')
    figure = plotly.graph_objects.Figure(plotly.graph_objects.Scatter(x=[1, 2], y=[3, 4]))
    return {
        "graph": graph, "figure": figure, "bokeh": sdk.data_types.Bokeh(str(document)),
        "molecule": sdk.Molecule(io.StringIO("ATOM      1\n"), file_type="pdb"),
        "embedding": sdk.Embedding(numpy.ones((3, 2), numpy.float32), labels=["a", "b", "c"]), "mixed": [1, b"x"], "": 1, "_step": 7,
    }  # fmt: skip


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path, Outcome, list[file.Record]]:
    """A full run, where it was carried to, and what W&B's file says."""
    directory = tmp_path_factory.mktemp("wandb")
    run = full_run(make_store(directory))
    told = carry(make_store_of(run), directory)
    (path,) = logs(directory)
    return run, path.parent, told, records_of(path)


def make_store_of(run: Run) -> str:
    return os.path.dirname(os.path.dirname(run.directory))


Carried = tuple[Run, Path, Outcome, list[file.Record]]


def of(records: list[file.Record], kind: type) -> list[Any]:
    return [record for record in records if isinstance(record, kind)]


def test_rows_have_their_steps_times_and_values(carried: Carried) -> None:
    """Every row is one record, in order, with the moment at which it was logged and how long the run had lasted then."""
    run, _, told, records = carried
    rows = [(row.step, dict(row.values)) for row in of(records, file.History)]
    expected = list(run.rows())
    assert [step for step, _ in rows] == [row["_step"] for row in expected]
    for (step, values), row in zip(rows, expected):
        assert values["_step",] == step
        assert values["_timestamp",] == row["_timestamp"]
        assert values["_runtime",] == pytest.approx(row["_timestamp"] - run.created)
        for key in ("loss", "val/acc", "epoch", "text"):
            assert values.get((key,)) == row.get(key)
    assert math.isnan(rows[0][1]["nan",])
    assert told.state == DELIVERED


def test_facts_are_the_runs(carried: Carried) -> None:
    """Id, names, tags, notes, config, definitions, the machine and the end are the run's, not those of the process that syncs."""
    run, _, _, records = carried
    (about,) = of(records, file.Run)
    assert (about.id, about.project, about.name, about.group) == (run.id, "digits", "née 😀", "g")
    assert (about.job_type, about.notes, about.tags, about.host) == ("train", "n", ("a", "b"), "node7")
    config = {names[0]: value for names, value in about.config[0] if names[0] != "_wandb"}
    assert config == {"lr": 0.1, "net": {"widths": [1, 2]}, "none": None}
    loss, val = of(records, file.Metric)
    assert (loss.name, loss.summary) == ("loss", {"min"})
    assert (val.name, val.is_glob, val.step_metric, val.step_sync) == ("val/*", True, "epoch", True)
    (environment,) = of(records, file.Environment)
    assert environment.facts["host"] == "node7"
    assert environment.facts["program"] == "/home/me/train.py"
    assert environment.facts["git"] == {"commit": "c0ffee", "remote": "git@host:repo"}
    assert environment.facts["args"] == ["--x"]
    assert environment.facts["python"] == "CPython 3.12.1"
    assert of(records, file.Exit)[-1].code == 3


def test_the_summary_is_what_the_store_says(carried: Carried) -> None:
    """Also what a user set, and what `define_metric` asked for."""
    run, _, _, records = carried
    found: dict[str, Any] = {}
    for summary in of(records, file.Summary):
        found.update({names[0]: value for names, value in summary.changes[0] if len(names) == 1})
    assert found["best"] == 0.25
    assert found["loss"] == run.summary["loss"] == {"min": 0.2}
    assert found["text"] == "t4"
    assert found["image"]["_type"] == "image-file"


def test_media_are_the_stored_files(carried: Carried) -> None:
    """No file is encoded again: its bytes are those that the store gives, under W&B's names for the kind."""
    run, directory, _, records = carried
    values = {key: value for row in of(records, file.History)[-2:] for key, value in row.values}
    for key, kind in {
        "image": "image-file", "a/sound": "audio-file", "video": "video-file", "page": "html-file", "points": "object3D-file",
        "../up\0": "image-file", "figure": "plotly-file", "bokeh": "bokeh-file", "molecule": "molecule-file",
    }.items():  # fmt: skip
        said = values[key,]
        path = (directory / "files" / said["path"]).resolve()
        assert said["_type"] == kind
        assert (directory / "files" / "media") in path.parents
        (item,) = run.media(key)
        assert path.read_bytes() == item.bytes(), key
        assert hashlib.sha256(item.bytes()).hexdigest() == said["sha256"]
    assert values["image",]["caption"] == "c"
    assert values["images",]["count"] == 2
    assert values["images",]["captions"] == ["", "second"]
    assert values["small",] == [0, 1, 2]
    assert values["embedding",] == [[1.0, 1.0]] * 3
    assert values["graph",]["_type"] == "graph-file"
    assert values["hist",]["_type"] == "histogram"
    assert json.loads((directory / "files" / values["table",]["path"]).read_bytes())["data"] == [[1, "x"], [2, "y"]]
    assert values["chart_table",]["_type"] == "table-file"
    assert (directory / "files" / "conf" / "model.yaml").read_bytes() == b"layers: 2\n"
    assert not (directory / "logs").exists(), "what W&B says of the process that syncs"


def test_what_cannot_be_held_is_counted(carried: Carried) -> None:
    """The rest of the row is there."""
    _, _, told, records = carried
    assert told.lost == {
        "tensors, of which W&B keeps a histogram": 1, "values that W&B's package refused (TypeError)": 2,
        "values without a name": 1,
    }  # fmt: skip
    last, less_usual = (dict(row.values) for row in of(records, file.History)[-2:])
    assert ("bytes",) not in last
    assert ("mixed",) not in less_usual
    assert less_usual["_logged_step",] == 7


def test_lines_and_samples_have_their_times(carried: Carried) -> None:
    """Of a line that was rewritten only its end is carried; one that never ended comes when the run is over."""
    _, _, _, records = carried
    lines = [(line.stream, line.text) for line in of(records, file.Output)]
    assert lines == [
        ("stdout", "hello\n"),
        ("stderr", "WARNING:net: uh\n"),
        ("stderr", "100 %\n"),
        ("stdout", "open\n"),
    ]
    assert of(records, file.Output)[0].time_ns // 10**9 == START_NS // 10**9 + 1
    (sample,) = of(records, file.Stats)
    assert dict(sample.values) == {("proc.cpu",): 150.0, ("gpu.0.temp",): 60}
    assert sample.time_ns // 10**9 == START_NS // 10**9 + 2


def test_there_and_back(carried: Carried, tmp_path: Path) -> None:
    """What was carried to W&B's files and is imported from them has equal series, media, lines, facts and end."""
    run, directory, _, _ = carried
    back = import_from(directory, tmp_path)
    for key in ("loss", "val/acc", "epoch", "nan", "text"):
        ours, theirs = run.series(key), back.series(key)
        assert (ours.step == theirs.step).all()
        assert numpy.abs(ours.time - theirs.time).max() < 1e-5
        numpy.testing.assert_array_equal(ours.value, theirs.value)
    for key in ("image", "images", "a/sound", "video", "page", "points", "../up\0", "figure", "bokeh", "molecule"):
        assert [item.bytes() for item in run.media(key)] == [item.bytes() for item in back.media(key)], key
    graph = json.loads(back.media("graph")[0].bytes())
    assert [node["id"] for node in graph["nodes"]] == ["a", "b"]
    assert graph["edges"] == [["a", "b"]]
    image = back.media("image")[0].value
    assert image["boxes"]["p"]["class_labels"] == {"1": "cat"}
    assert image["masks"]["m"].bytes() == run.media("image")[0].value["masks"]["m"].bytes()
    assert back.media("table")[0].rows == [[1, "x"], [2, "y"]]
    assert back.media("hist")[0].values == run.media("hist")[0].values
    assert (back.name, back.project, back.group, back.job_type, back.notes, back.tags) == (
        run.name, run.project, run.group, run.job_type, run.notes, run.tags,
    )  # fmt: skip
    assert back.config == run.config
    assert back.summary["loss"] == {"min": 0.2}
    assert back.summary["best"] == 0.25
    assert back.metrics == run.metrics
    assert (back.state, back.exit_code) == ("failed", 3)
    assert abs(back.created - run.created) < 1e-3
    assert [line.text for line in back.logs()] == ["hello", "WARNING:net: uh", "100 %", "open"]
    assert back.series("system/cpu").value.tolist() == [150.0]
    assert back.context["git"]["commit"] == "c0ffee"
    assert back.context["python"]["version"] == "3.12.1"
    assert back.context["program"] == {"kind": "script", "name": "train.py", "path": "/home/me/train.py"}
    with back.file("conf/model.yaml").open() as kept:
        assert kept.read() == b"layers: 2\n"


def import_from(path: Path, directory: Path) -> Run:
    source = source_of(f"wandb:{path}")
    store = new_store(str(directory / "imported"))
    (found,) = bring(store, source, list(source.runs()))
    assert found.is_exact, found
    return Run(run_path(store.path, found.run))


def test_passes_make_one_run(tmp_path: Path) -> None:
    """A run that goes on gets a directory for each pass, told to resume, in order of their names; imported, they are one."""
    run = RunBuilder(make_store(tmp_path))
    main = run.stream(rank=0)
    for step in range(150):
        main.log({"loss": float(step)})
    run.flush()
    carry(make_store_of(Run(run.directory)), tmp_path, what="wandb:team/other")
    main.log({"loss": 150.0})
    main.finish()
    run.seal()
    carry(make_store_of(Run(run.directory)), tmp_path, what="wandb:team/other")
    first, second = logs(tmp_path)
    assert [path.parent.name[-5:] for path in (first, second)] == ["-0001", "-0002"]
    steps = [[row.step for row in of(records_of(path), file.History)] for path in (first, second)]
    assert steps[0] == list(range(50)), "the last steps wait while the run lives"
    assert steps[1] == list(range(50, 151))
    for path in (first, second):
        (about,) = of(records_of(path), file.Run)
        assert (about.entity, about.project, about.id) == ("team", "other", run.id)
    back = import_from(tmp_path / "wandb", tmp_path)
    assert back.series("loss").value.tolist() == [float(step) for step in range(151)]
    assert back.state == "finished"


@pytest.mark.parametrize("sent", [False, True])
def test_what_a_resume_took_back_is_written_again_unless_it_was_sent(tmp_path: Path, sent: bool) -> None:
    """Directories that nobody has sent are replaced by one that is exact; `wandb sync` has marked the others: it is counted."""
    run = RunBuilder(make_store(tmp_path))
    store, first = make_store_of(Run(run.directory)), run.stream(rank=0)
    for step in range(6):
        first.log({"loss": float(step)})
    first.finish("preempted")
    run.flush()
    assert carry(store, tmp_path).is_exact
    if sent:
        (path,) = logs(tmp_path)
        path.with_suffix(".wandb.synced").touch()
    second = run.stream(attempt=2, continues=first.hex, first_step=4)
    second.meta({"hide": {"from_step": 4}})
    for step in range(4, 8):
        second.log({"loss": 10.0 * step}, step=step)
    second.finish()
    run.seal()
    told = carry(store, tmp_path)
    found = [row for path in logs(tmp_path) for row in of(records_of(path), file.History)]
    kept = [(4, 4.0), (5, 5.0)] if sent else [(4, 40.0), (5, 50.0)]
    expected = [*((step, float(step)) for step in range(4)), *kept, (6, 60.0), (7, 70.0)]
    assert [(row.step, dict(row.values)["loss",]) for row in found] == expected
    assert dict(told.lost) == ({"steps that a resume took back": 2, "late rows": 2} if sent else {})
    assert any("took back steps 4 to 5" in text for text in told.told) == sent
    assert [path.parent.name[-4:] for path in logs(tmp_path)] == (["0001", "0002"] if sent else ["0001"])
    assert carry(store, tmp_path).state == UP_TO_DATE


def test_a_kill_while_rows_are_taken_back_loses_nothing(tmp_path: Path) -> None:
    """Between removing what a resume hid and writing it again: the next pass writes all."""
    run = RunBuilder(make_store(tmp_path))
    store, first = make_store_of(Run(run.directory)), run.stream(rank=0)
    for step in range(6):
        first.log({"loss": float(step)})
    first.finish("preempted")
    run.flush()
    carry(store, tmp_path)
    second = run.stream(attempt=2, continues=first.hex, first_step=4)
    second.meta({"hide": {"from_step": 4}})
    second.log({"loss": 40.0}, step=4)
    second.finish()
    run.seal()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("daemon.sync.targets.wandb.target._Carrying.carry", _interrupted)
        carry(store, tmp_path)
    assert not logs(tmp_path)
    assert carry(store, tmp_path).is_exact
    (path,) = logs(tmp_path)
    assert [row.step for row in of(records_of(path), file.History)] == list(range(5))


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_run_that_lives_is_not_carried_all_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline a directory a minute; what came meanwhile is carried then, and all of it when the run is over."""
    run = RunBuilder(make_store(tmp_path))
    main = run.stream(rank=0)
    now = clock.wall_ns()
    for moment, expected in ((0, 1), (59, 1), (61, 2)):
        for _ in range(150):
            main.log({"loss": 1.0})
        run.flush()
        monkeypatch.setattr(clock, "wall_ns", lambda moment=moment: now + moment * 10**9)
        carry(make_store_of(Run(run.directory)), tmp_path)
        assert len(logs(tmp_path)) == expected
    main.finish()
    run.seal()
    carry(make_store_of(Run(run.directory)), tmp_path)
    assert len(logs(tmp_path)) == 3


def test_two_projects_share_a_directory(tmp_path: Path) -> None:
    """The same run for both: each has directories of its own, and keeps how far it is."""
    store = make_store(tmp_path)
    make_run(store, values=[{"loss": 1.0}])
    for project in ("wandb:one", "wandb:two", "wandb:one"):
        carry(store, tmp_path, what=project)
    found = sorted(run.project for path in logs(tmp_path) for run in of(records_of(path), file.Run))
    assert found == ["one", "two"]


KILLED = """
import os, signal, sys
from daemon.sync.carrying import carry_run
from daemon.sync.place import parse
from daemon.sync.registry import make
from daemon.sync.targets.wandb.session import Session
row, left = Session.row, [int(sys.argv[3])]
def dying(*arguments):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    row(*arguments)
Session.row = dying
carry_run(sys.argv[1], "a41f", make(parse(sys.argv[2])))
"""


def test_a_killed_worker_changes_nothing(tmp_path: Path) -> None:
    """After SIGKILL in the middle of a pass the next one writes what an undisturbed one would have, and nothing is left over."""
    store = make_store(tmp_path)
    make_run(store, values=({"loss": float(step)} for step in range(60)))
    url = f"wandb:p?mode=offline&dir={tmp_path}"
    done = subprocess.run([sys.executable, "-c", KILLED, store, url, "40"], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not logs(tmp_path), "nothing half has a name"
    assert carry(store, tmp_path, what="wandb:p").state == DELIVERED
    (path,) = logs(tmp_path)
    assert [(row.step, dict(row.values)["loss",]) for row in of(records_of(path), file.History)] == [
        (step, float(step)) for step in range(60)
    ]


def test_variables_that_steer_a_training_do_not_steer_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project, a run id, tags or a sweep of the environment reach no run that is carried, and are there afterwards."""
    leaks = {"WANDB_PROJECT": "leak", "WANDB_RUN_ID": "leak", "WANDB_TAGS": "leak", "WANDB_RUN_GROUP": "leak",
             "WANDB_NAME": "leak", "WANDB_NOTES": "leak", "WANDB_SWEEP_ID": "leak", "WANDB_JOB_TYPE": "leak"}  # fmt: skip
    for name, value in leaks.items():
        monkeypatch.setenv(name, value)
    store = make_store(tmp_path)
    make_run(store, values=[{"loss": 1.0}])
    assert carry(store, tmp_path).state == DELIVERED
    (path,) = logs(tmp_path)
    assert b"leak" not in path.read_bytes()
    assert {name: os.environ[name] for name in leaks} == leaks


def test_an_old_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `wandb sync` would send each pass over the one before; and without the package it is said how to get it."""
    target = make(parse(f"wandb:?mode=offline&dir={tmp_path}"))
    with monkeypatch.context() as patch, pytest.raises(UsageError, match=r"0\.31 or later, found 0\.30\.9") as old:
        patch.setattr("wandb.__version__", "0.30.9")
        target.check()
    assert "pip install" in (old.value.hint or "")
    with monkeypatch.context() as patch, pytest.raises(UsageError, match="needs the package wandb") as none:
        patch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))  # a directory of that name, with runs
        target.check()
    with monkeypatch.context() as patch, pytest.raises(UsageError, match="needs the package wandb"):
        patch.setitem(sys.modules, "wandb", None)
        target.check()
    assert (none.value.hint or "").startswith("pip install 'wandb>=0.31'")
    target.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [("wandb:a/b/c", "expected wandb:project"), ("wandb:p?mode=disabled", "expected online or offline")],
)
def test_a_url_that_names_nothing_is_refused(url: str, message: str) -> None:
    """Before anything is imported or made."""
    with pytest.raises(UsageError, match=message):
        make(parse(url))
