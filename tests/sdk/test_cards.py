from __future__ import annotations

import html.parser
import math
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from sdk.query.overview import overview
from sdk.reader import Store, cards, pictures
from sdk.reader.pictures import Curve, Facts, card, chart
from tests.builders import START_NS, RunBuilder, make_run, make_store

EVIL = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>&\x1b[1m"


class Page(html.parser.HTMLParser):
    """The elements and attributes of a page, and its text; a tag that is not closed is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "br":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def checked(text: str | None) -> Page:
    """The page, of which nothing can run or load anything."""
    assert text is not None
    page = Page(text)
    assert page.tags <= {
        "div", "span", "b", "br", "svg", "title", "polyline", "circle", "text", "table", "tr", "td", "th", "details", "summary",
        "code",
    }  # fmt: skip
    assert not {name for name in page.attributes if name.startswith("on") or name in ("href", "src")}
    return page


def facts(**changed: Any) -> Facts:
    given: dict[str, Any] = {
        "state": "running", "name": "calm-otter-1", "id": "a41f", "project": "digits", "step": 1000, "seconds": 50.0,
        "config": {"lr": 0.1}, "health": "1,000 records stored, 0 dropped", "directory": "/d",
    }  # fmt: skip
    return Facts(**{**given, **changed})


def test_a_card() -> None:
    """One line of facts, a curve per series with its last and best value, and the rest folded."""
    page = checked(card(facts(), [Curve("train/loss", [0, 1, 2], [2.5, 0.5, 1.0])]))
    for part in (
        "calm-otter-1 (a41f) · digits · running · step 1,000 · 20 steps/s · 50.0 s",
        "train/loss",
        "1min",
        "min 0.5 @ 1",
    ):
        assert part.replace("1min", "1 min") in page.text
    assert "lr0.1" in page.text
    assert page.text.count("train/loss: 2.5 at 0, 1 at 2") == 1


def test_no_text_becomes_a_tag(tmp_path: Path) -> None:
    """Names, keys, config, files and states of a hostile store are shown as text, in the run's card, its store's and its series'."""
    path = make_store(tmp_path)
    run = RunBuilder(path, EVIL, name=EVIL, project=EVIL)
    main = run.stream()
    main.meta({"config": {EVIL: [EVIL]}, "error": {"type": EVIL, "message": EVIL, "traceback": EVIL}})
    for value in (1.0, 2.0):
        main.log({EVIL: value, "train/loss": value})
    main.finish("failed")
    run.seal()
    store = Store(path)
    found = store.run(EVIL)
    for text in (found._repr_html_(), store._repr_html_(), found.series(EVIL)._repr_html_()):
        assert "script>alert" in checked(text).text
    checked(chart([Curve(EVIL, [0, 1], [1.0, 2.0])], EVIL))
    checked(card(facts(state=EVIL, health=EVIL, directory=EVIL, files=[EVIL]), [], collapsed=True))


@pytest.mark.parametrize(
    "values",
    [
        [], [math.nan], [math.inf, -math.inf], [1.0], [1.0, 1.0], [-1.7e308, 1.7e308], [5e-324, 0.0], [1, 2**63], [math.nan, 1.0, 3.0],
    ],
    ids=str,
)  # fmt: skip
def test_any_numbers_can_be_drawn(values: list[float]) -> None:
    """No value, equal ones, huge ones and NaN give a picture whose coordinates lie in it."""
    curve = Curve("x", range(len(values)), values)
    for text in (pictures.sparkline(curve), chart([curve, curve]), pictures.series_picture(curve, len(values))):
        page = f"<page>{text}</page>"
        for place in (
            point for line in ElementTree.fromstring(page).iter() for point in (line.get("points") or "").split()
        ):
            x, y = map(float, place.split(","))
            assert 0 <= x <= pictures.CHART_WIDTH
            assert 0 <= y <= pictures.CHART_HEIGHT


@pytest.mark.parametrize("installed", [True, False])
def test_a_chart_of_a_long_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    """As many points as a chart has, first and last among them, with the library that chooses them and without; texts are left out."""
    path = make_store(tmp_path)
    run = RunBuilder(path)
    main = run.stream()
    for step in range(3000):
        main.log({"x": math.sin(step), "note": "a"})
    run.flush()
    if not installed:
        monkeypatch.setitem(sys.modules, "tsdownsample", None)
    (curve,) = cards.chart_curves(Store(path).run(run.id), ["x", "note"], 400)
    assert 300 <= len(curve.steps) <= 400
    assert (curve.steps[0], curve.steps[-1]) == (0, 2999)


def test_a_series_without_numbers_shows_its_text(tmp_path: Path) -> None:
    """Texts have no curve; a notebook then shows the `repr`."""
    path = make_store(tmp_path)
    run = RunBuilder(path)
    run.stream().log({"note": "a"})
    run.flush()
    assert Store(path).run(run.id).series("note")._repr_html_() is None


def test_a_long_run_gives_a_small_card() -> None:
    """However long the series and the config, what is shown is bounded."""
    points = range(pictures.CHART_POINTS)
    drawn = chart([Curve(str(n), points, points) for n in range(4)])
    assert len(drawn) < 60_000
    many = {f"k{n}": "v" * 10_000 for n in range(1000)}
    assert len(card(facts(config=many), [])) < 60_000
    assert "… 900 more" in card(facts(config=many), [])


def test_the_best_of_a_card_is_the_best_of_all(tmp_path: Path) -> None:
    """Of values that are not drawn, too; where they are too many to read, what is told is said to be about right."""
    path = make_store(tmp_path)
    run = RunBuilder(path)
    main = run.stream()
    for step in range(500):
        main.log({"loss": 2.0 - (step == 77), "few": step})
    run.seal()
    stored = Store(path).run("a41f")
    assert "2 min 1few" in checked(stored._repr_html_()).text
    few = cards.curves_of(stored, ["loss"], pictures.SPARK_POINTS)
    assert "about min 2" in checked(card(facts(), few)).text
    assert "min 1 @ 3" in checked(card(facts(), [Curve("loss", [0, 3], [2.0, 1.0], 1.0, 2.0)])).text


def test_a_store_shows_what_differs(tmp_path: Path) -> None:
    """The newest runs with the config that differs, the best value of each column, and a curve; so does an overview, and one of groups."""
    path = make_store(tmp_path)
    for number in range(3):
        rows = [{"val/acc": step / 10 + number / 100} for step in range(5)]
        make_run(
            path, f"a41{number}", rows, config={"lr": 10.0**-number, "same": 1}, started_ns=START_NS + number * 10**9
        )
    page = checked(Store(path)._repr_html_())
    assert "lr" in page.text
    assert "same" not in page.text
    assert page.text.index("a412") < page.text.index("a410")
    assert page.text.count("val/acc: ") == 3, "a curve for each run"
    assert "<b>0.42</b>" in Store(path)._repr_html_()
    table = overview(Store(path).runs(), group="config.same")
    assert "0.410 ± 0.010" in checked(table._repr_html_()).text
    assert "1 group of 3 runs" in checked(table._repr_html_()).text
    checked(overview([])._repr_html_())
