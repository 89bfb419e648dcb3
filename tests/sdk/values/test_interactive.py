"""sdk.Plotly and the files of Bokeh: stored as their packages' JSON."""

from __future__ import annotations

import json
import pathlib
import sys
import types
from typing import Any

import numpy
import pytest

import sdk
from sdk.data_types import Bokeh


def content_of(value: Any, media: str, kind: str) -> Any:
    described = value.describe()
    assert described["format"] == kind
    assert described["data"].meta == {"media": media, "format": kind}
    return json.loads(bytes(described["data"].view()))


@pytest.fixture
def graph_objects() -> Any:
    return pytest.importorskip("plotly.graph_objects")


def test_plotly(graph_objects: Any) -> None:
    """Data of lists and of arrays; what is changed in the figure afterwards is in the next one."""
    values = numpy.arange(5.0)
    figure = graph_objects.Figure(graph_objects.Scatter(x=[1, 2, 3, 4, 5], y=values), layout={"title": {"text": "t"}})
    plot = sdk.Plotly(figure)
    values[:] = 0
    figure.update_layout(title_text="later")
    found = content_of(plot, "plotly-file", "plotly.json")
    assert found["layout"]["title"]["text"] == "t"
    assert found["data"][0]["x"] == [1, 2, 3, 4, 5]
    assert found["data"][0]["type"] == "scatter"


def test_plotly_logged(world: Any, graph_objects: Any) -> None:
    """A figure itself becomes one too; in a config it is named."""
    figure = graph_objects.Figure(graph_objects.Bar(y=[1]))
    sdk.init(config={"figure": figure})
    sdk.log({"a": figure, "b": [sdk.Plotly(figure)]})
    row = world.rows[0]
    assert row["a"] == row["b"][0]
    assert row["a"]["_type"] == "plotly-file"
    assert sdk.config["figure"].startswith("Figure(")
    with pytest.raises(TypeError, match="'k'.*Bar"):
        sdk.log({"k": figure.data[0]})


@pytest.fixture
def pyplot(monkeypatch: pytest.MonkeyPatch) -> Any:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot

    yield matplotlib.pyplot
    matplotlib.pyplot.close("all")


def test_matplotlib(pyplot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plotly converts it, as well as it can; where it cannot, and where the figure shows pictures, the error says what does."""
    tools: Any = types.ModuleType("plotly.tools")
    monkeypatch.setitem(sys.modules, "plotly", types.ModuleType("plotly"))
    monkeypatch.setitem(sys.modules, "plotly.tools", tools)
    figure, axes = pyplot.subplots()
    tools.mpl_to_plotly = lambda given: types.SimpleNamespace(to_json=lambda validate: json.dumps([given is figure]))
    for given in (figure, axes, pyplot):
        assert content_of(sdk.Plotly(given), "plotly-file", "plotly.json") == [True]
    tools.mpl_to_plotly = lambda given: 1 / 0
    with pytest.raises(ValueError, match=r"ZeroDivisionError.*Image\(figure\)"):
        sdk.Plotly(figure)
    axes.imshow(numpy.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"pictures.*Image\(figure\)"):
        sdk.Plotly(figure)
    assert isinstance(sdk.Plotly.make_plot_media(figure), sdk.Image)


def test_bad_figures() -> None:
    """What is no figure."""
    for given in ({"data": []}, "a.json", None):
        with pytest.raises(ValueError, match=r"Plotly\(\) is given builtins"):
            sdk.Plotly(given)


def test_bokeh(tmp_path: pathlib.Path) -> None:
    """The file that Bokeh wrote, as it is, whether or not Bokeh is installed."""
    path = tmp_path / "plot.json"
    path.write_text('{"roots":  []}')
    for given in (path, str(path)):
        assert bytes(Bokeh(given).describe()["data"].view()) == b'{"roots":  []}'
    assert content_of(Bokeh(path), "bokeh-file", "bokeh.json") == {"roots": []}
    path.write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        Bokeh(path)
    with pytest.raises(FileNotFoundError):
        Bokeh(tmp_path / "none.json")
    with pytest.raises(TypeError, match="expected the path"):
        Bokeh({"roots": []})
