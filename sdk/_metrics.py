"""What a run knows of its metrics: definitions, and what was logged last, read without waiting; a part of `sdk.Run`."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from ._metric import Metric, make_metric


class RunMetrics:
    """`define_metric` and `latest`."""

    _lock: threading.RLock  # type: ignore[valid-type,unused-ignore]
    _metrics: dict[str, Metric]

    def _emit(self, facts: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _require_running(self, what: str) -> None:
        raise NotImplementedError

    def define_metric(
        self, name: Any, step_metric: Any = None, step_sync: bool | None = None, hidden: bool | None = None,
        summary: str | None = None, goal: str | None = None, overwrite: bool | None = None, *,
        reduce: str | None = None, over: Any = None, weight: Any = None,
    ) -> Metric:  # fmt: skip
        """Says how a key is to be shown and summarised; see docs/metrics.md. Costs nothing per `log`.

        Args:
            name: A key, or a prefix and one `*` at its end. The exact name counts before a prefix, a longer prefix before a
                shorter one.
            step_metric: The key that is its x axis.
            step_sync: Whether a row without the step metric stands at its last value; default: yes with `step_metric`.
            hidden: Leave it out of lists and charts that nobody asked for by name.
            summary: A comma list of min, max, mean, last, first, best, copy, none: what `summary[name]` holds.
            goal: "minimize" or "maximize": which of its values is the best.
            overwrite: Forget what was said of `name` before; otherwise this adds to it.
            reduce: "mean", "sum", "min", "max" or "last": also make one value of all those of an epoch, under the name with
                "_epoch" behind it; the name with "_step" is the values as they were logged.
            over: With `reduce`: the key whose changes begin another epoch; default "epoch".
            weight: With reduce="mean": the key that says how much a row counts; where a row has none it counts once.

        Raises:
            Error: An argument that cannot be.
        """  # fmt: skip
        self._require_running("define_metric()")
        metric = make_metric(name, step_metric, step_sync, hidden, summary, goal, reduce, over, weight)
        with self._lock:
            old = self._metrics.get(metric.name)
            if old is not None and not overwrite:
                metric = old._replace(**metric.said())
            self._metrics[metric.checked().name] = metric
        self._emit({"metric": {metric.name: metric.facts()}})
        return metric
