"""What a run knows of its metrics: definitions, and what was logged last, read without waiting; a part of `sdk.Run`."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ._disabled import DisabledStream, RunStream
from ._metric import Metric, make_metric
from .errors import Error
from .location import StoreIdentity

if TYPE_CHECKING:
    from .journal.page import Mark
    from .journal.snapshot import Snapshot
    from .reader.recent import Recent


class RunMetrics:
    """`define_metric` and `latest`."""

    _finished: bool
    _lock: threading.RLock  # type: ignore[valid-type,unused-ignore]
    _metrics: dict[str, Metric]
    _recent: tuple[tuple[int, str], Recent] | None
    _store: StoreIdentity
    _stream: RunStream | None

    @property
    def sync_dir(self) -> str:
        raise NotImplementedError

    def _read_stored(self) -> Any:
        raise NotImplementedError

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

    def latest(self, key: str, *, complete: bool = False) -> Any:
        """The last value of a key that this process logged, or an earlier attempt; None where there is none.

        Waits for nobody: what is not stored yet is looked up in the ring. The first call reads what is stored, later ones what was
        logged since.

        Args:
            key: A logged one, or one that `define_metric(reduce=…)` makes: ``latest("train/loss_epoch")`` is the value of the epoch
                that was logged last, of all its rows so far: asked at an epoch's end, that epoch's.
            complete: Of the last epoch behind which a row of a later one was logged, or of the last one of a run that is finished.
        """  # fmt: skip
        if isinstance(self._stream, DisabledStream):
            return self._stream.last(key)
        recent = self._recent_values()
        try:
            return (recent or self._read_stored()).latest(key, partial=not complete)
        except (Error, OSError):  # a disk in trouble
            return None

    def _logged(self) -> Mapping[str, Any]:
        """What the summary of this run is without what was set in this process. Waits for nobody."""
        if isinstance(self._stream, DisabledStream):
            return self._stream.all_last()
        recent = self._recent_values()
        try:
            found: Mapping[str, Any] = recent.summary() if recent is not None else self._read_stored().summary
        except (Error, OSError):
            return {}
        return found

    def _recent_values(self) -> Recent | None:
        """This process's look at the run; None where a fake takes the place of a store."""
        stream = self._stream
        journal = getattr(stream, "journal", None)
        if stream is not None and journal is None:
            return None
        whose = os.getpid(), stream.id if stream is not None else ""
        if self._recent is None or self._recent[0] != whose:
            from .reader import Run as Stored
            from .reader.recent import Recent

            # A copy of this process's own: `Recent` keeps a place in it, and locks it.
            stored = Stored(self.sync_dir)
            self._recent = whose, Recent(stored, whose[1] or "0", self._take, self._facts_of_metrics)
        return self._recent[1]

    def _facts_of_metrics(self) -> dict[str, Any]:
        with self._lock:
            said = dict(self._metrics)
        return {name: metric.facts() for name, metric in said.items()}

    def _take(self, since: Mark | None) -> Snapshot | None:
        """What this process logged since a mark, as `Recent` wants it."""
        from .journal.snapshot import Snapshot, snapshot
        from .reader.recent import OVER

        journal = getattr(self._stream, "journal", None)
        if self._finished or journal is None or journal.is_unbound():
            return Snapshot(OVER, OVER, b"") if since in (None, OVER) else None
        return snapshot(journal, since if since != OVER else None)
