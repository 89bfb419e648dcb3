"""Charts by name, with W&B's signatures: each makes a table, or takes one, and says how it is drawn.

A chart that is logged is stored with its table, which reads back like any other (docs/media.md#charts).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any, TypeVar

from . import _curves, _greeting
from .values.chart import CustomChart
from .values.media import goes_on
from .values.table import Table

__all__ = [
    "CustomChart", "bar", "confusion_matrix", "histogram", "line", "line_series", "plot_table", "pr_curve", "roc_curve",
    "scatter", "visualize",
]  # fmt: skip

# Limit: rows of a curve; more cannot be seen.
ROWS_MAX = 10_000

Function = TypeVar("Function", bound=Callable[..., Any])


def _going_on(function: Function) -> Function:
    """In a run that errors of use do not end, a broken chart instead of the error; `log` leaves its key out."""

    @functools.wraps(function)
    def draw_or_break(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if not goes_on():
                raise
            chart = CustomChart.__new__(CustomChart)
            chart.broken = error
            return chart

    return draw_or_break  # type: ignore[return-value]


def plot_table(
    vega_spec_name: str, data_table: Table, fields: Mapping[str, Any], string_fields: Mapping[str, Any] | None = None,
    split_table: bool = False,
) -> CustomChart:  # fmt: skip
    """A chart of one's own.

    Args:
        vega_spec_name: Its name; stored as it is.
        data_table: The data.
        fields: What the chart calls its columns, to columns of the table.
        string_fields: Its texts.
        split_table: Stored: whether the table is wanted in a section of its own.

    Raises:
        Error: `data_table` is no `Table`.
    """
    return CustomChart(vega_spec_name, data_table, fields, string_fields, split_table)


def visualize(id: str, table: Table) -> CustomChart:
    """A table and the name of a chart. Raises Error if `table` is no `Table`."""
    return CustomChart(id, table, {})


def line(
    table: Table, x: str, y: str, stroke: str | None = None, title: str = "", split_table: bool = False
) -> CustomChart:
    """A line through the rows of a table, or one for each value of the column `stroke`.

    Raises:
        Error: `table` is no `Table`.
    """
    return CustomChart("wandb/line/v0", table, {"x": x, "y": y, "stroke": stroke}, {"title": title}, split_table)


def scatter(table: Table, x: str, y: str, title: str = "", split_table: bool = False) -> CustomChart:
    """A point for each row of a table. Raises Error if it is no `Table`."""
    return CustomChart("wandb/scatter/v0", table, {"x": x, "y": y}, {"title": title}, split_table)


def bar(table: Table, label: str, value: str, title: str = "", split_table: bool = False) -> CustomChart:
    """A bar for each row of a table. Raises Error if it is no `Table`."""
    return CustomChart("wandb/bar/v0", table, {"label": label, "value": value}, {"title": title}, split_table)


def histogram(table: Table, value: str, title: str = "", split_table: bool = False) -> CustomChart:
    """The distribution of one column of a table. Raises Error if it is no `Table`."""
    return CustomChart("wandb/histogram/v0", table, {"value": value}, {"title": title}, split_table)


@_going_on
def line_series(
    xs: Sequence[Any], ys: Sequence[Any], keys: Sequence[Any] | None = None, title: str = "", xname: str = "x",
    split_table: bool = False,
) -> CustomChart:  # fmt: skip
    """Several lines.

    Args:
        xs: Numbers that all lines share, or such a sequence for each line.
        ys: A sequence of numbers for each line.
        keys: Names of the lines; else line_0, line_1, …

    Raises:
        TypeError: Something that is no sequence.
        ValueError: Not as many names or sequences as lines; a line whose xs and ys have not the same length.
    """
    lines = [_list(y, "ys") for y in _list(ys, "ys")]
    points = _list(xs, "xs")
    is_shared = not points or not isinstance(points[0], Iterable) or isinstance(points[0], str)
    each = [points] * len(lines) if is_shared else [_list(x, "xs") for x in points]
    names = [f"line_{index}" for index in range(len(lines))] if keys is None else list(keys)
    if len(each) != len(lines):
        raise ValueError(f"line_series() has {len(each)} xs and {len(lines)} ys, expected as many of each")
    if len(names) != len(lines):
        raise ValueError(f"line_series() has {len(names)} keys for {len(lines)} ys, expected as many of each")
    rows: list[list[Any]] = []
    for name, x, y in zip(names, each, lines):
        if len(x) != len(y):
            raise ValueError(f"line_series() line {name!r} has {len(x)} xs and {len(y)} ys, expected as many of each")
        rows += [[one, name, other] for one, other in zip(x, y)]
    table = Table(columns=["step", "lineKey", "lineVal"], data=rows, allow_mixed_types=True)
    fields = {"step": "step", "lineKey": "lineKey", "lineVal": "lineVal"}
    return CustomChart("wandb/lineseries/v0", table, fields, {"title": title, "xname": xname}, split_table)


def _list(values: Any, what: str) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"line_series() {what} has {type(values).__qualname__}, expected a sequence")
    return list(values.tolist() if hasattr(values, "tolist") else values)


@_going_on
def pr_curve(
    y_true: Any = None, y_probas: Any = None, labels: Any = None, classes_to_plot: Any = None, interp_size: int = 21,
    title: str = "Precision-Recall Curve", split_table: bool = False,
) -> CustomChart | None:  # fmt: skip
    """Precision against recall of each class, each class against the rest.

    Args:
        y_true: The true class of each sample: [n], numbers or texts.
        y_probas: The score of each class for each sample: number[n, classes], classes in sorted order.
        labels: Names of the classes, by class number.
        classes_to_plot: Those that are wanted; None: all.
        interp_size: At how many recalls, evenly spaced.

    Returns:
        None, with a note on stderr, if either is missing, as W&B.

    Raises:
        ValueError: Not as many scores as samples, or as classes.
        TypeError: Scores that are no numbers.
    """
    found = _classifier("pr_curve", y_true, y_probas, labels, classes_to_plot)
    if found is None:
        return None
    rows: list[list[Any]] = []
    for name, is_positive, scores in found:
        precision, recall = _curves.precision_recall(is_positive, scores, interp_size)
        rows += [[name, p, r] for p, r in zip(precision.round(3).tolist(), recall.round(3).tolist())]
    table = Table(columns=["class", "precision", "recall"], data=_thinned(rows))
    texts = {"title": title, "x-axis-title": "Recall", "y-axis-title": "Precision"}
    fields = {"x": "recall", "y": "precision", "class": "class"}
    return CustomChart("wandb/area-under-curve/v0", table, fields, texts, split_table)


@_going_on
def roc_curve(
    y_true: Any = None, y_probas: Any = None, labels: Any = None, classes_to_plot: Any = None, title: str = "ROC Curve",
    split_table: bool = False,
) -> CustomChart | None:  # fmt: skip
    """True against false positives of each class, each class against the rest. Arguments and errors as `pr_curve`."""
    found = _classifier("roc_curve", y_true, y_probas, labels, classes_to_plot)
    if found is None:
        return None
    rows: list[list[Any]] = []
    for name, is_positive, scores in found:
        false, true = _curves.receiver_operating(is_positive, scores)
        rows += [[name, f, t] for f, t in zip(false.round(3).tolist(), true.round(3).tolist())]
    table = Table(columns=["class", "fpr", "tpr"], data=_thinned(rows))
    texts = {"title": title, "x-axis-title": "False positive rate", "y-axis-title": "True positive rate"}
    return CustomChart(
        "wandb/area-under-curve/v0", table, {"x": "fpr", "y": "tpr", "class": "class"}, texts, split_table
    )


def _classifier(
    what: str, y_true: Any, y_probas: Any, labels: Any, classes_to_plot: Any
) -> list[tuple[Any, Any, Any]] | None:
    """(name, whether each sample is of it, its scores) of each class that is to be drawn."""
    import numpy

    for name, given in (("y_true", y_true), ("y_probas", y_probas)):
        if given is None or (isinstance(given, Sized) and not len(given)):
            _greeting.note(f"{what}() is given no {name}, and draws nothing")
            return None
    truth, scores = numpy.asarray(y_true), numpy.asarray(y_probas)
    if scores.dtype.kind not in "biuf":
        raise TypeError(f"{what}() y_probas are of dtype {scores.dtype}, expected numbers")
    if scores.ndim == 1:  # the scores of the second of two classes
        scores = numpy.stack([1 - scores, scores], axis=1)
    classes = numpy.unique(truth)
    if truth.ndim != 1 or scores.ndim != 2 or len(truth) != len(scores) or scores.shape[1] < len(classes):
        raise ValueError(
            f"{what}() is given y_true of shape {truth.shape} with {len(classes)} classes and y_probas of shape {scores.shape}, "
            "expected [samples] and [samples, classes]"
        )
    wanted = classes if classes_to_plot is None else numpy.asarray(classes_to_plot)
    found = []
    for place, value in enumerate(classes.tolist()):
        if value in wanted.tolist():
            name = labels[value] if labels is not None and isinstance(value, int) else value
            found.append((name, truth == classes[place], scores[:, place].astype("<f8")))
    return found


def _thinned(rows: list[list[Any]]) -> list[list[Any]]:
    """At most `ROWS_MAX` rows, evenly spread; the last stays the last."""
    if len(rows) <= ROWS_MAX:
        return rows
    _greeting.note(f"a curve of {len(rows):,} points is drawn with {ROWS_MAX:,} of them")
    return [rows[index * (len(rows) - 1) // (ROWS_MAX - 1)] for index in range(ROWS_MAX)]


@_going_on
def confusion_matrix(
    probs: Any = None, y_true: Any = None, preds: Any = None, class_names: Any = None,
    title: str = "Confusion Matrix Curve", split_table: bool = False,
) -> CustomChart:  # fmt: skip
    """How often which class was taken for which.

    Args:
        probs: The score of each class for each sample, number[n, classes]; or else
        preds: the predicted class of each sample.
        y_true: The true class of each sample.
        class_names: Names of the classes 0, 1, …; else Class_1, Class_2, … of those there are, sorted.

    Raises:
        ValueError: Both or neither of `probs` and `preds`; not as many as samples; more classes than names, or a class that
            has none.
    """
    if (probs is None) == (preds is None):
        raise ValueError("confusion_matrix() is given both or neither of probs and preds, expected one of them")
    if y_true is None:
        raise ValueError("confusion_matrix() is given no y_true")
    import numpy

    predicted = (numpy.argmax(numpy.asarray(probs), axis=1) if preds is None else numpy.asarray(preds)).tolist()
    truth = numpy.asarray(y_true).tolist()
    if len(predicted) != len(truth):
        raise ValueError(
            f"confusion_matrix() has {len(predicted)} predictions for {len(truth)} samples, expected as many"
        )
    if class_names is None:
        classes: list[Any] = sorted({*predicted, *truth})
        names = [f"Class_{place}" for place in range(1, len(classes) + 1)]
    else:
        names = list(class_names)
        classes = list(range(len(names)))
        for what, given in (("preds", predicted), ("y_true", truth)):
            if len(set(given)) > len(names):
                raise ValueError(
                    f"confusion_matrix() {what} has {len(set(given))} classes, and there are {len(names)} names"
                )
    counts = _curves.confusion(truth, predicted, classes)
    rows = [[names[i], names[j], counts[i][j]] for i in range(len(names)) for j in range(len(names))]
    table = Table(columns=["Actual", "Predicted", "nPredictions"], data=rows)
    fields = {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"}
    return CustomChart("wandb/confusion_matrix/v1", table, fields, {"title": title}, split_table)
