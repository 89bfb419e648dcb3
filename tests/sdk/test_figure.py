"""Figures: what `run.plot()`, `store.plot()` and `stepd plot -o` draw of what `curves` gives."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

import sdk
from sdk import _greeting
from sdk.errors import Error, NotFoundError, UsageError
from sdk.query.curves import Line, Lines
from sdk.query.figure import figure
from sdk.reader import Store
from tests.builders import RunBuilder, make_run, make_store


def line(**changed: Any) -> Line:
    x = numpy.arange(10.0)
    given: dict[str, Any] = {
        "run": "a41f", "name": "calm-otter", "project": "digits", "key": "loss", "x": x, "y": 10 - x, "raw": None, "low": None,
        "high": None, "last": 1.0, "best": 0.5, "best_x": 3.0, "goal": "min", "count": 10, "not_finite": 0, "gaps": [], "attempts": [],
        "members": 1,
    }  # fmt: skip
    return Line(**{**given, **changed})


def labels(drawn: Any) -> list[str]:
    return [text.get_text() for text in drawn.axes[0].get_legend().get_texts()]


def test_what_is_drawn() -> None:
    """A line with its raw values faint behind and its band, gaps hatched, attempts dotted, once for all keys of a run."""
    marks: dict[str, Any] = {"gaps": [(2.0, 4.0)], "attempts": [5.0]}
    drawn = figure(
        Lines(
            "step",
            [line(raw=numpy.ones(10), **marks), line(key="acc", low=numpy.zeros(10), high=numpy.ones(10), **marks)],
            ["a note"],
        )
    )
    axes = drawn.axes[0]
    alphas = [one.get_alpha() for one in axes.lines]
    assert len(axes.lines) == 4
    assert sum(alpha is not None for alpha in alphas) == 1
    assert len(axes.collections) == 1, "the band"
    assert [patch.get_hatch() for patch in axes.patches] == ["////"]
    assert labels(drawn) == ["loss   last 1   min 0.5", "acc   last 1   min 0.5"]
    assert [text.get_text() for text in drawn.texts] == ["a note"]
    for kind in ("png", "svg", "pdf"):
        out = io.BytesIO()
        drawn.savefig(out, format=kind)
        assert out.tell() > 1000


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("x_name", ["step", "time"])
def test_any_numbers_are_drawn(x_name: str) -> None:
    """The largest floats, with a distance that is none any more, and times of no calendar."""
    huge = numpy.array([1.7e308, -1.7e308, 0.0])
    one = line(x=numpy.sort(huge), y=huge, raw=huge, low=huge, high=huge, last=1.7e308, gaps=[(-1.7e308, 1.7e308)])
    figure(Lines(x_name, [one], []), log=x_name == "step").draw_without_rendering()
    figure(Lines(x_name, [one], [])).draw_without_rendering()


def test_names_say_only_what_differs() -> None:
    """Of several runs the run, of several keys the key, of a group how many it is of."""
    assert labels(figure(Lines("step", [line(), line(run="b41f")], [])))[0].startswith("calm-otter (a41f)   last")
    assert labels(figure(Lines("step", [line(), line(run="b", key="x", members=3)], [])))[1].startswith(
        "x  calm-otter (3 runs)"
    )


def test_the_title_names_what_all_lines_share() -> None:
    """A picture of one run says whose it is, once; a chosen title is taken as it is."""
    for lines, title in (
        ([line()], "loss   calm-otter (a41f)"),
        ([line(name="a41f")], "loss   a41f"),
        ([line(), line(key="acc")], "calm-otter (a41f)"),
        ([line(), line(run="b41f")], "loss"),
        ([line(), line(run="b41f", key="acc")], ""),
        ([line(members=3)], "loss"),
    ):
        assert figure(Lines("step", lines, [])).axes[0].get_title() == title
        assert figure(Lines("step", lines, []), title="mine").axes[0].get_title() == "mine"


def test_notes_stand_below_one_another_and_below_the_axes() -> None:
    """None lies on another, or on the name of an axis."""
    drawn = figure(Lines("step", [line()], ["3 of 9 runs end early", "they differ in config.lr too"]))
    drawn.draw_without_rendering()
    (below,) = drawn.texts
    assert below.get_text().splitlines() == ["3 of 9 runs end early", "they differ in config.lr too"]
    assert below.get_window_extent().y1 <= drawn.axes[0].xaxis.label.get_window_extent().y0


def test_axes() -> None:
    """Their names, dates where they are times, a logarithm without what has none."""
    drawn = figure(
        Lines("time", [line(x=1.7e9 + numpy.arange(10.0), gaps=[(1.7e9, 1.7e9 + 1)])], []),
        log=True,
        title="run $x^{",
        size=(3, 2),
    )
    axes = drawn.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("time (UTC)", "loss", "log")
    drawn.savefig(io.BytesIO(), format="png")
    assert tuple(drawn.get_size_inches()) == (3, 2)


def test_hostile_names(tmp_path: Path) -> None:
    """Names that matplotlib would take for formulas, hide or not be able to draw are drawn as they are."""
    evil = "_$\\frac{$ $ \x1b[2J\n<script>"
    drawn = figure(Lines(evil, [line(name=evil, key=evil), line(run="b", key="$")], [evil]), title=evil)
    drawn.savefig(tmp_path / "x.svg")
    assert len(labels(drawn)) == 2
    assert "<script" not in (tmp_path / "x.svg").read_text()


def test_a_notebook_shows_it() -> None:
    """As a PNG of twice the dots, without pyplot and whatever backend there is."""
    data, words = figure(Lines("step", [line()], []))._repr_png_()
    assert words == {"width": 800, "height": 450}
    assert Image.open(io.BytesIO(data)).size == (1600, 900)


def test_nothing_to_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a line, or without matplotlib, the error says what to do."""
    with pytest.raises(UsageError, match="nothing to draw"):
        figure(Lines("step", [], []))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(Error, match=r"matplotlib is not installed here") as caught:
        figure(Lines("step", [line()], []))
    assert "pip install matplotlib" in str(caught.value)


# -- what a run and a store draw of themselves


@pytest.fixture
def store(tmp_path: Path) -> Store:
    path = make_store(tmp_path)
    for number in range(12):
        rows = [{"train/loss": 5.0 - step + number, "val/acc": step / 10, "text": "x"} for step in range(4)]
        make_run(
            path,
            f"a4{number:02x}",
            rows,
            name=f"run-{number}",
            config={"method": "ab"[number % 2], "seed": number // 2},
        )
    return Store(path)


def test_a_run_draws_itself(store: Store) -> None:
    """The keys that are named, patterns of them, or those worth showing."""
    run = store.run("a400")
    assert labels(run.plot("train/loss", "val/*", smooth=0.5)) == [
        "train/loss   last 2   min 2",
        "val/acc   last 0.3   max 0.3",
    ]
    assert run.plot().axes[0].get_ylabel() == "train/loss"
    assert run.plot("val/acc", x="relative", log=True, title="t").axes[0].get_xlabel() == "seconds"
    with pytest.raises(NotFoundError, match="los"):
        run.plot("los")


def test_a_store_draws_runs(store: Store) -> None:
    """Named ones, those of an expression, groups of them, or the newest, of which it says so."""
    assert len(labels(store.plot("val/acc", runs=["a400", "run-1"]))) == 2
    assert len(labels(store.plot("val/acc", where="config.method = a"))) == 6
    grouped = store.plot("val/acc", group="config.method", over="seed", band="std")
    assert sorted(label.split("   ")[0] for label in labels(grouped)) == ["a (6 runs)", "b (6 runs)"]
    newest = store.plot(["val/acc"])
    assert len(labels(newest)) == 10
    assert [text.get_text() for text in newest.texts] == ["the newest 10 of 12 runs"]
    with pytest.raises(NotFoundError, match="no such run"):
        store.plot("val/acc", runs=[])


def test_a_living_run_draws_itself(
    world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored of it until now; one that is disabled, or of which nothing is, says so and goes on."""
    monkeypatch.setattr(_greeting, "_quiet", False)
    path = make_store(tmp_path)
    make_run(path, values=[{"loss": 5.0 - step} for step in range(5)], state=None)
    run = sdk.init()
    run._read = lambda store, run_id: Store(path).run("b41f")
    assert run.plot("loss") is None
    assert "nothing to draw: nothing is stored yet" in capsys.readouterr().err
    run._read = lambda store, run_id: Store(path).run("a41f")
    assert labels(run.plot("loss", smooth=0.5)) == ["loss   last 1   min 1"]
    run.finish()
    assert labels(run.plot()) == ["loss   last 1   min 1"]
    assert sdk.init(mode="disabled").plot("loss") is None
    assert "nothing to draw: the run is disabled" in capsys.readouterr().err


def test_what_accompanies_a_run_is_drawn_over_its_time(tmp_path: Path) -> None:
    """Observed values have no steps."""
    path = make_store(tmp_path)
    run = RunBuilder(path)
    run.stream().log({"loss": 1.0})
    observed = run.stream("system")
    for cpu in (1.0, 2.0):
        observed.log({"system/cpu": cpu})
    run.seal()
    assert Store(path).run("a41f").plot("system/cpu").axes[0].get_xlabel() == "seconds"


def test_the_examples_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of docs/notebooks.md about figures do what it says."""
    path = make_store(tmp_path)
    for number in range(4):
        config = {"lr": 1e-3, "method": "ab"[number % 2], "seed": number // 2}
        make_run(path, f"a41{number}", [{"train/loss": 1.0, "val/acc": 0.5}] * 3, config=config)
    monkeypatch.setenv("STEPD_DIR", path)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "notebooks.md").read_text(encoding="utf-8").split("## Figures")[1]
    exec(compile(page.split("```python\n")[1].split("```")[0], "docs/notebooks.md", "exec"), {})
    assert (tmp_path / "methods.pdf").read_bytes().startswith(b"%PDF")
