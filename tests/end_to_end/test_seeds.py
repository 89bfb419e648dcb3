"""Every Python example of W&B's pages on `log` (the reference of `Run.log` and the guide on logging media), as it stands but
for its import, and what is read back afterwards.
"""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest

import sdk
from sdk.reader.run import Run

IMPORT = ("import wandb", "import sdk as wandb")

# ---- the examples

BASIC = """
import wandb

run = wandb.init()
run.log({"accuracy": 0.9, "epoch": 5})
"""

INCREMENTAL = """
import wandb

run = wandb.init()
run.log({"loss": 0.2}, commit=False)
# Somewhere else when I'm ready to report this step:
run.log({"accuracy": 0.8})
"""

SECTIONS = """
run.log({
    "train/accuracy": 0.9,
    "train/loss": 30,
    "validate/accuracy": 0.8,
    "validate/loss": 20,
})
"""

OWN_AXIS = """
# Example: log an "epoch" metric for use as an X axis.
run.log({"epoch": 40, "train-loss": 0.5})
"""

STEPS = """
# Normal usage:
run.log({"train-loss": 0.5, "accuracy": 0.8})
run.log({"train-loss": 0.4, "accuracy": 0.9})

# Implicit step without auto-incrementing:
run.log({"train-loss": 0.5}, commit=False)
run.log({"accuracy": 0.8})
run.log({"train-loss": 0.4}, commit=False)
run.log({"accuracy": 0.9})

# Explicit step:
run.log({"train-loss": 0.5}, step=current_step)
run.log({"accuracy": 0.8}, step=current_step)
current_step += 1
run.log({"train-loss": 0.4}, step=current_step)
run.log({"accuracy": 0.9}, step=current_step)
"""

IN_TEXT = """
import wandb

run = wandb.init(config=your_config_dictionary)
run.log({"train-loss": 0.5, "accuracy": 0.9})
run.log({"a/b/c": 1})
wandb.watch(model)
wandb.log({"acc'": 0.9, "loss": 0.1})
wandb.log({'acc': 0.9, 'epoch': 3, 'batch': 117})
wandb.run.summary["best_accuracy"] = best_accuracy
run.log({"example": wandb.Image("myimage.jpg")})
"""

HISTOGRAM = """
import numpy as np
import wandb

# sample gradients at random from normal distribution
gradients = np.random.randn(100, 100)
run = wandb.init()
run.log({"gradients": wandb.Histogram(gradients)})
"""

IMAGES_FROM_NUMPY = """
import numpy as np
import wandb

run = wandb.init()
examples = []
for i in range(3):
    pixels = np.random.randint(low=0, high=256, size=(100, 100, 3))
    image = wandb.Image(pixels, caption=f"random field {i}")
    examples.append(image)
run.log({"examples": examples})
"""

IMAGES_FROM_PIL = """
import numpy as np
from PIL import Image as PILImage
import wandb

run = wandb.init()
examples = []
for i in range(3):
    pixels = np.random.randint(low=0, high=256, size=(100, 100, 3), dtype=np.uint8)
    pil_image = PILImage.fromarray(pixels, mode="RGB")
    image = wandb.Image(pil_image, caption=f"random field {i}")
    examples.append(image)
run.log({"examples": examples})
"""

VIDEO = """
import numpy as np
import wandb

run = wandb.init()
# axes are (time, channel, height, width)
frames = np.random.randint(low=0, high=256, size=(10, 3, 100, 100), dtype=np.uint8)
run.log({"video": wandb.Video(frames, fps=4)})
"""

MATPLOTLIB = """
from matplotlib import pyplot as plt
import numpy as np
import wandb

run = wandb.init()
fig, ax = plt.subplots()
x = np.linspace(0, 10)
y = x * x
ax.plot(x, y)  # plot y = x^2
run.log({"chart": fig})
"""

PR_CURVE = """
import wandb

run = wandb.init()
run.log({"pr": wandb.plot.pr_curve(y_test, y_probas, labels)})
"""

OBJECTS = """
import wandb

run = wandb.init()
run.log(
    {
        "generated_samples": [
            wandb.Object3D(open("sample.obj")),
            wandb.Object3D(open("sample.gltf")),
            wandb.Object3D(open("sample.glb")),
        ]
    }
)
"""


# ---- what each needs, and what it leaves


class Example(NamedTuple):
    """One example.

    Attributes:
        code: Its text.
        check: Compares what was stored with what the example's own variables hold.
        given: Variables that the page leaves to the reader.
        packages: What it imports besides numpy.
    """

    code: str
    check: Callable[[Run, dict[str, Any]], None]
    given: Callable[[], dict[str, Any]] = dict
    packages: tuple[str, ...] = ()


def rows_of(run: Run) -> list[dict[str, Any]]:
    """Rows without their times."""
    return [{key: value for key, value in row.items() if key != "_timestamp"} for row in run.rows()]


def check_basic(run: Run, names: dict[str, Any]) -> None:
    assert rows_of(run) == [{"_step": 0, "accuracy": 0.9, "epoch": 5}]


def check_incremental(run: Run, names: dict[str, Any]) -> None:
    assert rows_of(run) == [{"_step": 0, "loss": 0.2, "accuracy": 0.8}]


def check_sections(run: Run, names: dict[str, Any]) -> None:
    assert run.summary == {"train/accuracy": 0.9, "train/loss": 30, "validate/accuracy": 0.8, "validate/loss": 20}


def check_own_axis(run: Run, names: dict[str, Any]) -> None:
    assert rows_of(run) == [{"_step": 0, "epoch": 40, "train-loss": 0.5}]


def check_steps(run: Run, names: dict[str, Any]) -> None:
    """The page says that the three ways are equivalent."""
    pair = [{"train-loss": 0.5, "accuracy": 0.8}, {"train-loss": 0.4, "accuracy": 0.9}]
    assert rows_of(run) == [{"_step": step, **row} for step, row in enumerate(pair * 3)]


def check_in_text(run: Run, names: dict[str, Any]) -> None:
    assert run.config["lr"] == 0.25
    assert run.summary["best_accuracy"] == 0.95 and run.summary["a/b/c"] == 1
    assert [int(run.series(key).step[0]) for key in ("train-loss", "a/b/c", "acc'", "acc", "example")] == [
        0,
        1,
        2,
        3,
        4,
    ]
    (item,) = run.media("example")
    assert item.bytes() == Path("myimage.jpg").read_bytes() and item.to_numpy().shape == (8, 12, 3)


def check_histogram(run: Run, names: dict[str, Any]) -> None:
    (item,) = run.media("gradients")
    counts, edges = numpy.histogram(names["gradients"], 64)
    assert (item.kind, item.values) == ("histogram", counts.tolist())
    assert numpy.allclose(item.bins, edges, rtol=1e-12, atol=0)


def check_images(run: Run, names: dict[str, Any]) -> None:
    items = run.media("examples")
    assert [item.caption for item in items] == ["random field 0", "random field 1", "random field 2"]
    assert {(item.kind, item.format, item.shape) for item in items} == {("image", "png", (100, 100, 3))}
    assert numpy.array_equal(items[2].to_numpy(), names["pixels"])
    assert numpy.array_equal(numpy.asarray(items[2].to_pil()), names["pixels"])
    assert len({item.digest for item in items}) == 3


def check_video(run: Run, names: dict[str, Any]) -> None:
    """A gif has 256 colors for each frame, so that noise comes back as noise of the same size."""
    from PIL import Image

    (item,) = run.media("video")
    assert (item.kind, item.format, item.value["fps"], item.shape) == ("video", "gif", 4, (10, 3, 100, 100))
    with Image.open(io.BytesIO(item.bytes())) as film:
        assert (film.format, film.size, film.n_frames) == ("GIF", (100, 100), 10)


def check_chart(run: Run, names: dict[str, Any]) -> None:
    (item,) = run.media("chart")
    width, height = names["fig"].canvas.get_width_height()
    pixels = item.to_numpy()
    assert item.kind == "image" and pixels.shape[:2] == (height, width)
    assert len(numpy.unique(pixels)) > 10  # there is something in it
    names["plt"].close(names["fig"])


def given_pr() -> dict[str, Any]:
    rng = numpy.random.default_rng(7)
    truth = rng.integers(0, 3, 60)
    scores = rng.random((60, 3)) + 0.3 * numpy.eye(3)[truth]
    return {"y_test": truth.tolist(), "y_probas": scores / scores.sum(1, keepdims=True), "labels": ["a", "b", "c"]}


def check_pr(run: Run, names: dict[str, Any]) -> None:
    """For each class and 21 recalls: the best precision of any threshold that reaches the recall, rounded to 3 digits."""
    (item,) = run.media("pr")
    table = item.value["table"]
    assert item.kind == "chart" and table.columns == ["class", "precision", "recall"] and len(table.rows) == 63
    for index, label in enumerate(names["labels"]):
        truth, scores = numpy.array(names["y_test"]) == index, names["y_probas"][:, index]
        taken = scores >= scores[:, None]
        recall, precision = (taken & truth).sum(1) / truth.sum(), (taken & truth).sum(1) / taken.sum(1)
        found = {row[2]: row[1] for row in table.rows if row[0] == label}
        assert list(found) == [round(at, 3) for at in numpy.linspace(1, 0, 21)]
        for at in list(found)[:-1]:
            assert found[at] == round(precision[recall > at - 1e-9].max(), 3), (label, at)


def given_objects() -> dict[str, Any]:
    """Makes the three files in the working directory."""
    Path("sample.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    Path("sample.gltf").write_text('{"asset": {"version": "2.0"}, "scenes": [{}], "scene": 0}')
    Path("sample.glb").write_bytes(
        b"glTF\x02\x00\x00\x00\x20\x00\x00\x00\x0c\x00\x00\x00JSON{}\xff\xfe\x80          "[:32]
    )
    return {}


def check_objects(run: Run, names: dict[str, Any]) -> None:
    items = run.media("generated_samples")
    assert [(item.kind, item.format) for item in items] == [("object3d", end) for end in ("obj", "gltf", "glb")]
    for item in items:
        assert item.bytes() == Path(f"sample.{item.format}").read_bytes()


def given_run() -> dict[str, Any]:
    """What the fragments begin with."""
    return {"run": sdk.init(), "current_step": 4}


class Model:
    """What the test's torch has for a Module."""

    def named_parameters(self) -> list[tuple[str, Any]]:
        return []


def given_in_text() -> dict[str, Any]:
    from PIL import Image

    Image.new("RGB", (12, 8), (200, 10, 10)).save("myimage.jpg")
    return {"your_config_dictionary": {"lr": 0.25}, "best_accuracy": 0.95, "model": Model()}


EXAMPLES = {
    "basic": Example(BASIC, check_basic),
    "incremental": Example(INCREMENTAL, check_incremental),
    "sections": Example(SECTIONS, check_sections, given_run),
    "own axis": Example(OWN_AXIS, check_own_axis, given_run),
    "steps": Example(STEPS, check_steps, given_run),
    "in text": Example(IN_TEXT, check_in_text, given_in_text),
    "histogram": Example(HISTOGRAM, check_histogram),
    "images from numpy": Example(IMAGES_FROM_NUMPY, check_images),
    "images from PIL": Example(IMAGES_FROM_PIL, check_images),
    "video": Example(VIDEO, check_video),
    "matplotlib": Example(MATPLOTLIB, check_chart, packages=("matplotlib",)),
    "PR curve": Example(PR_CURVE, check_pr, given_pr),
    "3D objects": Example(OBJECTS, check_objects, given_objects),
}


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::DeprecationWarning"
)  # open() without close; PIL's mode=
def test_example(name: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example runs, and what it logged is there."""
    example = EXAMPLES[name]
    for package in example.packages:
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    torch = types.ModuleType(
        "torch"
    )  # which is not installed for the tests; tests/sdk/test_watch_torch.py has the real one
    torch.nn = types.SimpleNamespace(Module=Model)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    names = example.given()
    exec(compile(example.code.replace(*IMPORT), name, "exec"), names)
    sdk.finish()
    (run,) = sdk.open_store(store).runs()
    example.check(run, names)
    assert run.state == "finished" and not run.gaps and not run.damage
