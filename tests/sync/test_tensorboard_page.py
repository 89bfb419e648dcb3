"""What TensorBoard's own server gives to its page, through both of its loaders, of a run with a value of every kind."""

from __future__ import annotations

import functools
import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

import numpy
import pytest

import sdk
from daemon.sync.carrying import carry_run
from daemon.sync.place import parse
from daemon.sync.registry import make
from sdk import plot
from tests.builders import RunBuilder, make_store
from tests.media_rig import MediaBuilder
from tests.serving import until

RUN = "digits/calm-otter-12-kinds"
STEPS = 3
_OPENER = build_opener(ProxyHandler({}))


def _row(step: int) -> dict[str, Any]:
    pixels = numpy.full((8, 9, 3), step, numpy.uint8)
    scores = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]]
    return {
        "image": sdk.Image(pixels, caption="a"),
        "images": [sdk.Image(pixels + place) for place in range(3)],
        "video": sdk.Video(numpy.zeros((4, 3, 8, 8), numpy.uint8)),
        "film": sdk.Video(numpy.zeros((4, 3, 16, 16), numpy.uint8), format="mp4"),
        "sound": sdk.Audio(numpy.zeros(100, "f4"), sample_rate=8000, caption="beep"),
        "histogram": sdk.Histogram(np_histogram=([1, 2, 3], [0.0, 1.0, 2.0, 3.0])),
        "tensor": numpy.arange(6.0).reshape(2, 3),
        "text": f"**step** {step}",
        "table": sdk.Table(columns=["a", "b"], data=[[1, "x"]]),
        "pr": plot.pr_curve([0, 1, 1, 0], scores),
        "cloud": sdk.Object3D(numpy.arange(60.0).reshape(10, 6)),
    }


class Board:
    """A server, and what it answers."""

    def __init__(self, logs: Path, log: Path, *, is_fast: bool) -> None:
        arguments = ["--logdir", str(logs), "--port", "0", "--host", "127.0.0.1", "--reload_interval", "1"]
        self._log, self._told = log.open("wb"), log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tensorboard.main", *arguments, f"--load_fast={str(is_fast).lower()}"],
            stdout=self._log, stderr=self._log, cwd=logs.parent,
        )  # fmt: skip

    @functools.cached_property
    def address(self) -> str:
        """Known once it serves."""
        found = until(
            lambda: re.search(r"http://[\w.]+:(\d+)", self._told.read_text(errors="replace")), "the server", 60
        )
        return f"http://127.0.0.1:{found[1]}"

    def get(self, path: str, body: Any = None, **query: Any) -> bytes:
        url = f"{self.address}/data/{path}{'?' if query else ''}{urlencode(query)}"
        data = None if body is None else json.dumps(body).encode()
        answer: bytes = _OPENER.open(Request(url, data, {"Content-Type": "application/json"}), timeout=30).read()
        return answer

    def json(self, path: str, body: Any = None, **query: Any) -> Any:
        return json.loads(self.get(path, body, **query))

    def plugin(self, plugin: str, path: str, **query: Any) -> Any:
        return self.json(f"plugin/{plugin}/{path}", **query)

    def close(self) -> None:
        self.process.wait(30)
        self._log.close()


class World:
    """A store, a run that goes on in it, and the log directory."""

    def __init__(self, directory: Path) -> None:
        self.store, self.logs = make_store(directory), directory / "logs"
        self.run = RunBuilder(self.store, "kinds")
        self.main = self.run.stream(rank=0)
        self.media = MediaBuilder(self.run, self.main)
        self.main.meta({"config": {"lr": 0.25, "opt": {"name": "adam"}}})
        other = self.run.stream(rank=1)
        graph = sdk.Graph()
        graph.add_edge(graph.add_node(id=1, name="net.conv"), graph.add_node(id=2, name="net.relu"))
        for step in range(STEPS):
            other.log({"loss": 2.0})
            self.main.log({"loss": 1.0 / (step + 1), "acc": step / 4, "tokens": 3 * 10**7 * step}, step=step)
            self.media.log(_row(step))
        points = sdk.Embedding(
            numpy.eye(4),
            labels={"number": [1, 2, 3, 4], "name": list("abcd")},
            images=numpy.zeros((4, 6, 6, 3), numpy.uint8),
        )
        self.media.log({"graph": graph, "points": points})
        self.main.meta({"summary": {"best": 0.75}})
        self.media.seal()

    def carry(self) -> None:
        self.run.flush()
        outcome = carry_run(self.store, "kinds", make(parse(f"tensorboard:{self.logs}")))
        assert outcome.is_exact, outcome


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Carried in two passes, over at the second."""
    world = World(tmp_path_factory.mktemp("page"))
    world.carry()
    world.main.log({"loss": 0.125})
    for stream in world.run.streams:
        stream.finish()
    world.carry()
    return world.logs


@pytest.fixture(scope="module")
def boards(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Board]]:
    """Both at a time: each takes seconds to start."""
    directory = tmp_path_factory.mktemp("boards")
    started: dict[str, Board] = {}
    try:
        for name in ("fast", "python"):
            started[name] = Board(logs, directory / name, is_fast=name == "fast")
        yield started
    finally:
        for one in started.values():
            one.process.send_signal(signal.SIGTERM)
        for one in started.values():
            one.close()


@pytest.fixture(scope="module", params=["fast", "python"])
def board(request: pytest.FixtureRequest, boards: dict[str, Board]) -> Board:
    if request.param == "fast":
        pytest.importorskip("tensorboard_data_server")
    found = boards[request.param]
    until(lambda: "best" in found.plugin("scalars", "tags").get(RUN, {}), "the run", 60)
    return found


def test_runs_and_scalars(board: Board) -> None:
    """A directory is a run, a lane one below it; every number is at its step and time."""
    assert board.json("runs")[:2] == [RUN, f"{RUN}/rank1"]
    assert set(board.plugin("scalars", "tags")[RUN]) == {"loss", "acc", "tokens", "best"}
    found = board.plugin("scalars", "scalars", run=RUN, tag="loss")
    assert [value for _, _, value in found] == pytest.approx([1.0, 1 / 2, 1 / 3, 0.125])
    steps = [step for _, step, _ in found]
    assert steps == sorted(set(steps))
    assert found[0][0] == pytest.approx(1_700_000_000, abs=10)
    assert [value for _, _, value in board.plugin("scalars", "scalars", run=RUN, tag="tokens")] == [0.0, 3e7, 6e7]


@pytest.mark.parametrize(
    ("tag", "samples", "start"),
    [("image", 1, b"\x89PNG"), ("images", 3, b"\x89PNG"), ("video", 1, b"GIF89a"), ("film", 1, b"GIF89a")],
)
def test_pictures(board: Board, tag: str, samples: int, start: bytes) -> None:
    """One or several, still or moving: the page gets their files."""
    assert board.plugin("images", "tags")[RUN][tag]["samples"] == samples
    found = board.plugin("images", "images", run=RUN, tag=tag, sample=samples - 1)
    assert len(found) == STEPS
    data = board.get(f"plugin/images/individualImage?{found[-1]['query']}")
    assert data.startswith(start)
    if tag == "images":
        from PIL import Image

        assert Image.open(io.BytesIO(data)).getpixel((0, 0)) == (STEPS + 1, STEPS + 1, STEPS + 1)


def test_sounds(board: Board) -> None:
    """A wav file, as one sample."""
    assert board.plugin("audio", "tags")[RUN]["sound"]["samples"] == 1
    found = board.plugin("audio", "audio", run=RUN, tag="sound", sample=0)
    assert (len(found), found[0]["contentType"]) == (STEPS, "audio/wav")
    assert board.get(f"plugin/audio/individualAudio?{found[-1]['query']}").startswith(b"RIFF")


def test_texts_and_tables(board: Board) -> None:
    """Markdown, drawn."""
    assert "<strong>step</strong> 2" in board.plugin("text", "text", run=RUN, tag="text")[-1]["text"]
    assert "<th>b</th>" in board.plugin("text", "text", run=RUN, tag="table")[-1]["text"]


@pytest.mark.parametrize("tag", ["histogram", "tensor/histogram"])
def test_histograms(board: Board, tag: str) -> None:
    """Bins for one page, their percentiles for the other."""
    found = board.plugin("histograms", "histograms", run=RUN, tag=tag)
    assert len(found) == STEPS
    assert sum(count for _, _, count in found[0][2]) == 6
    assert len(board.plugin("distributions", "distributions", run=RUN, tag=tag)) == STEPS


def test_curves_of_precision(board: Board) -> None:
    """Each class is a curve, every point of it is shown."""
    assert set(board.plugin("pr_curves", "tags")[RUN]) == {"pr/0", "pr/1"}
    curve = board.plugin("pr_curves", "pr_curves", run=RUN, tag="pr/1")[RUN][-1]
    assert len(curve["precision"]) == len(curve["recall"]) > 10
    assert curve["recall"] == sorted(curve["recall"], reverse=True)
    assert curve["recall"][0] == 1.0


def test_points_in_space(board: Board) -> None:
    """Positions and colors of each step, and how large a point is."""
    assert board.plugin("mesh", "tags")[RUN] == {"cloud": {"samples": 1}}
    found = board.plugin("mesh", "meshes", run=RUN, tag="cloud", sample=0)
    assert sorted(one["content_type"] for one in found if one["step"] == found[0]["step"]) == [1, 3]
    assert found[0]["data_shape"] == [1, 10, 3]
    assert "PointsMaterial" in found[0]["config"]


def test_the_graph(board: Board) -> None:
    """Of the run, with its edges."""
    assert board.plugin("graphs", "info")[RUN]["run_graph"] is True
    drawn = board.get("plugin/graphs/graph", run=RUN, conceptual="false").decode()
    assert 'name: "net/relu"' in drawn
    assert 'input: "net/conv"' in drawn


def test_the_projector(board: Board) -> None:
    """Points, labels and pictures of an embedding."""
    assert board.plugin("projector", "runs") == [RUN]
    (told,) = board.plugin("projector", "info", run=RUN)["embeddings"]
    assert told["tensorShape"] == [4, 4]
    data = board.get("plugin/projector/tensor", run=RUN, name=told["tensorName"])
    assert (numpy.frombuffer(data, "f4").reshape(4, 4) == numpy.eye(4)).all()
    labels = board.get("plugin/projector/metadata", run=RUN, name=told["tensorName"]).decode()
    assert labels.splitlines() == ["number\tname", "1\ta", "2\tb", "3\tc", "4\td"]
    assert board.get("plugin/projector/sprite_image", run=RUN, name=told["tensorName"]).startswith(b"\x89PNG")


def test_hyperparameters(board: Board) -> None:
    """The config of each run, how it ended, and its metrics with the summary's."""
    told = board.json("plugin/hparams/experiment", {"experimentName": ""})
    assert {one["name"] for one in told["hparamInfos"]} == {"lr", "opt.name"}
    names = [one["name"] for one in told["metricInfos"]]
    asked = {
        "startIndex": 0, "sliceSize": 10, "colParams": [{"metric": name} for name in names],
        "allowedStatuses": ["STATUS_SUCCESS"],
    }  # fmt: skip
    (group,) = board.json("plugin/hparams/session_groups", asked)["sessionGroups"]
    assert group["hparams"] == {"lr": 0.25, "opt.name": "adam"}
    metrics = {one["name"]["tag"]: one["value"] for one in group["metricValues"] if not one["name"]["group"]}
    assert metrics["best"] == 0.75
    assert metrics["loss"] == 0.125


def test_a_run_that_goes_on(logs: Path, boards: dict[str, Board], tmp_path: Path) -> None:
    """What is appended is seen, and what a resume hides is gone, without the server being started again."""
    pytest.importorskip("tensorboard_data_server")
    board = boards["fast"]
    run = RunBuilder(make_store(tmp_path), "grows")
    shown = "digits/calm-otter-12-grows"
    first = run.stream(rank=0)

    def carry() -> None:
        run.flush()
        carry_run(str(tmp_path / "store"), run.id, make(parse(f"tensorboard:{logs}")))

    def points(tag: str = "loss") -> list[tuple[int, float]]:
        if tag not in board.plugin("scalars", "tags").get(shown, {}):
            return []
        return [(step, value) for _, step, value in board.plugin("scalars", "scalars", run=shown, tag=tag)]

    first.log({"loss": 0.0, "hidden": 0.0})
    first.log({"loss": 1.0, "hidden": 1.0})
    carry()
    until(lambda: points() == [(0, 0.0), (1, 1.0)], "the first rows", 30)
    first.log({"loss": 2.0})
    first.finish("crashed")
    second = run.stream(continues=first.hex, attempt=2, first_step=1, rank=0)
    second.meta({"hide": {"from_step": 1}})
    second.log({"loss": 10.0})
    carry()
    until(lambda: points() == [(0, 0.0), (1, 10.0)], "the second attempt", 30)
    second.finish()
    carry()  # written anew: the old file is gone, and with it what only it had
    until(lambda: points("hidden") == [(0, 0.0)], "the file that was written anew", 30)
    assert points() == [(0, 0.0), (1, 10.0)]
