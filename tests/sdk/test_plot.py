"""sdk.plot: every chart is a table and a name; curves are scikit-learn's; errors are W&B's."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
import sklearn.metrics

import sdk
from sdk import _curves, plot
from sdk.plot import CustomChart
from sdk.record import StoredBlob, decode_map, encode_inline_blob, encode_map
from sdk.values import plain
from sdk.values.table import table_rows

TABLE = sdk.Table(["x", "y", "c"], [[1, 2.0, "a"], [3, 4.0, "b"]])
RANDOM = numpy.random.default_rng(6)


def stored(chart: Any) -> dict[str, Any]:
    """What is read back of a chart, with the rows of its table."""
    found, _ = plain({"k": chart}, put=lambda blob, key: encode_inline_blob(StoredBlob(bytes(blob.view()), blob.meta)))
    value = dict(decode_map(encode_map(found))["k"])
    table = value.pop("table")
    return {**value, "columns": table["columns"], "rows": table_rows(table, lambda part: part.data)}


@pytest.mark.parametrize(
    ("chart", "spec", "fields"),
    [
        (lambda: plot.line(TABLE, "x", "y", title="t"), "wandb/line/v0", {"x": "x", "y": "y"}),
        (
            lambda: plot.line(TABLE, "x", "y", stroke="c", title="t"),
            "wandb/line/v0",
            {"x": "x", "y": "y", "stroke": "c"},
        ),
        (lambda: plot.scatter(TABLE, "x", "y", title="t"), "wandb/scatter/v0", {"x": "x", "y": "y"}),
        (lambda: plot.bar(TABLE, "c", "y", title="t"), "wandb/bar/v0", {"label": "c", "value": "y"}),
        (lambda: plot.histogram(TABLE, "y", title="t"), "wandb/histogram/v0", {"value": "y"}),
        (lambda: sdk.plot_table("me/own", TABLE, {"a": "x"}, {"title": "t"}), "me/own", {"a": "x"}),
    ],
)
def test_charts_of_a_table(chart: Any, spec: str, fields: dict[str, str]) -> None:
    """Each names its columns and carries the table."""
    assert stored(chart()) == {
        "_type": "custom-chart", "spec": spec, "fields": fields, "string_fields": {"title": "t"}, "split_table": False,
        "columns": ["x", "y", "c"], "rows": [[1, 2.0, "a"], [3, 4.0, "b"]],
    }  # fmt: skip


def test_other_ways_to_charts() -> None:
    """`visualize`, a table of its own section, and the method of a run."""
    assert stored(sdk.visualize("own", TABLE))["spec"] == "own"
    assert stored(plot.line(TABLE, "x", "y", split_table=True))["split_table"] is True
    from sdk._compat import RunCompat

    assert isinstance(RunCompat().plot_table("own", TABLE, {}), CustomChart)


@pytest.mark.parametrize(
    "call",
    [
        lambda: plot.line([[1, 2]], "x", "y"), lambda: plot.scatter(None, "x", "y"), lambda: plot.bar("x", "x", "y"),
        lambda: plot.histogram({}, "x"), lambda: sdk.plot_table("s", [[1]], {}), lambda: sdk.visualize("s", 5),
    ],
)  # fmt: skip
def test_what_is_no_table(call: Any) -> None:
    """Raises Error that says what it is."""
    with pytest.raises(sdk.Error, match="expected a Table"):
        call()


def test_line_series() -> None:
    """Shared or own xs, names or none, lists or arrays."""
    shared = stored(plot.line_series([0, 1], [[1, 2], numpy.array([3, 4])], keys=["a", "b"], title="t", xname="n"))
    assert shared["rows"] == [[0, "a", 1], [1, "a", 2], [0, "b", 3], [1, "b", 4]]
    assert (shared["columns"], shared["string_fields"]) == (
        ["step", "lineKey", "lineVal"],
        {"title": "t", "xname": "n"},
    )
    own = stored(plot.line_series([[0], [5, 6]], [[1], [2, 3]]))
    assert own["rows"] == [[0, "line_0", 1], [5, "line_1", 2], [6, "line_1", 3]]
    assert stored(plot.line_series(numpy.zeros((2, 2)), numpy.ones((2, 2))))["rows"][0] == [0.0, "line_0", 1.0]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (([0], [[1], [2]], ["a"]), ValueError), (([[0]], [[1], [2]]), ValueError), (([0, 1], [[1]]), ValueError),
        ((5, [[1]]), TypeError), (([0], 5), TypeError), (([0], [5]), TypeError), (([0], ["ab"]), TypeError),
    ],
)  # fmt: skip
def test_errors_of_line_series(arguments: Any, error: type[Exception]) -> None:
    """Lengths that do not match, and what is no sequence."""
    with pytest.raises(error, match="expected"):
        plot.line_series(*arguments)


# -- classifiers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
def test_roc_is_scikit_learns(ties: bool) -> None:
    """The same points, equal scores included."""
    truth = RANDOM.integers(0, 2, 200).astype(bool)
    scores = RANDOM.random(200).round(1) if ties else RANDOM.random(200)
    false, true = _curves.receiver_operating(truth, scores)
    their_false, their_true, _ = sklearn.metrics.roc_curve(truth, scores, drop_intermediate=False)
    assert numpy.allclose(false, their_false)
    assert numpy.allclose(true, their_true)


@pytest.mark.parametrize("ties", [False, True])
def test_pr_is_scikit_learns(ties: bool) -> None:
    """At each recall the best precision among its points with at least that recall."""
    truth = RANDOM.integers(0, 2, 200).astype(bool)
    scores = RANDOM.random(200).round(1) if ties else RANDOM.random(200)
    precision, recall = _curves.precision_recall(truth, scores, 21)
    theirs, their_recall, _ = sklearn.metrics.precision_recall_curve(truth, scores)
    assert numpy.allclose(recall, numpy.linspace(1, 0, 21))
    assert numpy.allclose(precision, [theirs[their_recall >= at - 1e-12].max() if at else 1 for at in recall])


def test_curves_of_a_class_that_is_not_there() -> None:
    """No positives: recall is 1 everywhere, as scikit-learn has it; rates without anything are NaN."""
    scores = numpy.array([0.1, 0.9])
    assert _curves.precision_recall(numpy.zeros(2, bool), scores, 3)[0].tolist() == [0, 0, 1]
    assert all(map(math.isnan, _curves.receiver_operating(numpy.zeros(2, bool), scores)[1]))


def test_curves_of_a_classifier() -> None:
    """One for each class, with its name; some of them; a single column of scores is that of the second class."""
    truth = numpy.array([0, 1, 2, 1])
    scores = numpy.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]])
    pr = stored(plot.pr_curve(truth, scores, labels=["a", "b", "c"], interp_size=3))
    assert pr["columns"] == ["class", "precision", "recall"]
    assert pr["rows"][:3] == [["a", 1.0, 1.0], ["a", 1.0, 0.5], ["a", 1.0, 0.0]]
    assert (pr["spec"], pr["fields"]) == (
        "wandb/area-under-curve/v0",
        {"x": "recall", "y": "precision", "class": "class"},
    )
    roc = stored(plot.roc_curve(truth.tolist(), scores.tolist(), classes_to_plot=[1]))
    assert {row[0] for row in roc["rows"]} == {1}
    assert (roc["rows"][0][1:], roc["rows"][-1][1:]) == ([0.0, 0.0], [1.0, 1.0])
    two = stored(plot.roc_curve(["n", "y", "y"], [0.1, 0.8, 0.9]))
    assert {row[0] for row in two["rows"]} == {"n", "y"}


def test_a_curve_of_many_points_is_thinned() -> None:
    """To what can be seen; the ends stay."""
    truth = RANDOM.integers(0, 2, 30_000)
    rows = stored(plot.roc_curve(truth, RANDOM.random((30_000, 2))))["rows"]
    assert len(rows) == plot.ROWS_MAX
    assert (rows[0][1:], rows[-1][1:]) == ([0.0, 0.0], [1.0, 1.0])


def test_bad_classifiers(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing given draws nothing and says so; shapes that do not fit and texts for scores raise."""
    assert plot.pr_curve(None, [[1]]) is None
    assert plot.roc_curve([], []) is None
    assert "y_true" in capsys.readouterr().err
    for truth, scores, error in (
        ([0, 1], [[0.1, 0.9]], ValueError), ([0, 1, 2], [[0.1, 0.9]] * 3, ValueError), ([0], [["a"]], TypeError),
    ):  # fmt: skip
        with pytest.raises(error, match="expected"):
            plot.pr_curve(truth, scores)


def test_confusion_matrix() -> None:
    """Counts by class; from predictions or scores; names or none."""
    chart = stored(plot.confusion_matrix(y_true=[0, 1, 1], preds=[0, 1, 0], class_names=["cat", "dog"], title="t"))
    assert chart["rows"] == [["cat", "cat", 1], ["cat", "dog", 0], ["dog", "cat", 1], ["dog", "dog", 1]]
    assert (chart["spec"], chart["columns"]) == ("wandb/confusion_matrix/v1", ["Actual", "Predicted", "nPredictions"])
    scores = stored(plot.confusion_matrix(probs=[[0.9, 0.1], [0.2, 0.8]], y_true=numpy.array([0, 0])))
    assert scores["rows"] == [
        ["Class_1", "Class_1", 1],
        ["Class_1", "Class_2", 1],
        ["Class_2", "Class_1", 0],
        ["Class_2", "Class_2", 0],
    ]
    assert stored(plot.confusion_matrix(y_true=["b", "a"], preds=["b", "b"]))["rows"][1] == ["Class_1", "Class_2", 1]


@pytest.mark.parametrize(
    "arguments",
    [
        {"y_true": [0]}, {"probs": [[1]], "preds": [0], "y_true": [0]}, {"preds": [0]}, {"preds": [0, 1], "y_true": [0]},
        {"preds": [0, 1, 2], "y_true": [0, 1, 2], "class_names": ["a", "b"]}, {"preds": [5], "y_true": [0], "class_names": ["a"]},
    ],
)  # fmt: skip
def test_errors_of_the_confusion_matrix(arguments: dict[str, Any]) -> None:
    """ValueError, naming what was expected."""
    with pytest.raises(ValueError, match="confusion_matrix"):
        plot.confusion_matrix(**arguments)
