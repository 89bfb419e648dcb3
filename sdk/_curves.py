"""The numbers behind charts of a classifier, with numpy alone: precision and recall, true and false positives, confusion.

The curves have the points that scikit-learn's `precision_recall_curve` and `roc_curve` have (without `drop_intermediate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def counts_by_threshold(is_positive: Any, scores: Any) -> tuple[Any, Any]:
    """How many positives and negatives score at least as high as each distinct score, highest first.

    Args:
        is_positive: bool[n].
        scores: float[n].

    Returns:
        (true positives, false positives), int64[thresholds] each.
    """
    import numpy

    order = numpy.argsort(-scores, kind="stable")
    sorted_scores, hits = scores[order], numpy.cumsum(is_positive[order])
    last = numpy.append(numpy.flatnonzero(numpy.diff(sorted_scores)), scores.size - 1)
    return hits[last], last + 1 - hits[last]


def precision_recall(is_positive: Any, scores: Any, points: int) -> tuple[Any, Any]:
    """Precision, made to fall with recall, at so many evenly spaced recalls from 1 down to 0."""
    import numpy

    true, false = counts_by_threshold(is_positive, scores)
    precision = true / (true + false)
    recall = true / true[-1] if true[-1] else numpy.ones(true.size)
    # The best precision that is reached at each recall or beyond it; at recall 0 nothing is wrong.
    best = numpy.maximum.accumulate(precision[::-1])[::-1]
    at = numpy.linspace(0, 1, points)[::-1]
    found = best[numpy.minimum(numpy.searchsorted(recall, at, side="left"), best.size - 1)]
    return numpy.where(at == 0, 1.0, found), at


def receiver_operating(is_positive: Any, scores: Any) -> tuple[Any, Any]:
    """(False positive rate, true positive rate), from (0, 0) to (1, 1); NaN where there is nothing of that kind."""
    import numpy

    true, false = counts_by_threshold(is_positive, scores)
    with numpy.errstate(invalid="ignore", divide="ignore"):
        return numpy.append(0, false) / false[-1], numpy.append(0, true) / true[-1]


def confusion(truth: Sequence[Any], predicted: Sequence[Any], classes: Sequence[Any]) -> list[list[int]]:
    """How often each class (row) was taken for each (column).

    Raises:
        ValueError: A value that is none of the classes.
    """
    index = {value: place for place, value in enumerate(classes)}
    counts = [[0] * len(classes) for _ in classes]
    for actual, guess in zip(truth, predicted):
        if actual not in index or guess not in index:
            wrong = actual if actual not in index else guess
            raise ValueError(f"confusion_matrix() is given class {wrong!r}, expected one of {list(classes)}")
        counts[index[actual]][index[guess]] += 1
    return counts
