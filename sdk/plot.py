"""Charts by name, with W&B's signatures. They are stored from version 0.2 on; until then each raises `UnsupportedError`
(in a disabled run and under misuse="warn" it returns an empty object that `log` leaves out).
"""

from __future__ import annotations

from typing import Any

from ._compat import CustomChart, plot_table, visualize

__all__ = [
    "CustomChart", "bar", "confusion_matrix", "histogram", "line", "line_series", "plot_table", "pr_curve", "roc_curve",
    "scatter", "visualize",
]  # fmt: skip


def line(
    table: Any, x: str, y: str, stroke: str | None = None, title: str = "", split_table: bool = False
) -> CustomChart:
    """A line through the rows of a table."""
    return CustomChart()


def scatter(table: Any, x: str, y: str, title: str = "", split_table: bool = False) -> CustomChart:
    """Points."""
    return CustomChart()


def bar(table: Any, label: str, value: str, title: str = "", split_table: bool = False) -> CustomChart:
    """Bars."""
    return CustomChart()


def histogram(table: Any, value: str, title: str = "", split_table: bool = False) -> CustomChart:
    """The distribution of one column."""
    return CustomChart()


def line_series(
    xs: Any, ys: Any, keys: Any = None, title: str = "", xname: str = "x", split_table: bool = False
) -> CustomChart:
    """Several lines."""
    return CustomChart()


def pr_curve(
    y_true: Any = None, y_probas: Any = None, labels: Any = None, classes_to_plot: Any = None, interp_size: int = 21,
    title: str = "Precision-Recall Curve", split_table: bool = False,
) -> CustomChart:  # fmt: skip
    """Precision against recall."""
    return CustomChart()


def roc_curve(
    y_true: Any = None, y_probas: Any = None, labels: Any = None, classes_to_plot: Any = None, title: str = "ROC Curve",
    split_table: bool = False,
) -> CustomChart:  # fmt: skip
    """True against false positives."""
    return CustomChart()


def confusion_matrix(
    probs: Any = None, y_true: Any = None, preds: Any = None, class_names: Any = None,
    title: str = "Confusion Matrix Curve", split_table: bool = False,
) -> CustomChart:  # fmt: skip
    """How often which class was taken for which."""
    return CustomChart()
