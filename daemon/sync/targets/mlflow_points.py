"""Numbers of rows as metrics of MLflow, in portions that one request takes.

A metric is a float64 at a step and a millisecond. Integers beyond 2^53 and infinities are not what they were and are counted; booleans
are 1 and 0. What is neither a number nor media has no place there, and is counted too.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import numpy

from daemon.sync.passage import Passage
from daemon.sync.targets.mlflow_files import Files
from daemon.sync.targets.mlflow_names import name_of
from daemon.sync.targets.mlflow_server import METRICS_MAX, Server
from sdk.reader.delivery import Batch, Points
from sdk.reader.media import items_in

if TYPE_CHECKING:
    from numpy.typing import NDArray

SYSTEM = "system/"
_EXACT_MAX = 1 << 53
# About what a value takes in a request, beside its name.
_METRIC_BYTES = 80
_FLOAT_MAX = 1.7976931348623157e308  # what MLflow's data bases keep in place of an infinity


class Sender:
    """Sends rows of one run. Nothing stays behind after `flush`.

    Args:
        doubtful: Names under which there may be values that were sent and not noted.

    Attributes:
        renamed: MLflow's name -> the key, of those that have another name there.
    """

    def __init__(
        self, server: Server, passage: Passage, run: str, files: Files, renamed: dict[str, str],
        doubtful: Collection[str] = (),
    ) -> None:  # fmt: skip
        self._server, self._passage, self._run, self._files = server, passage, run, files
        self.renamed = renamed
        self._there = There(server, passage, run, doubtful)
        self._waiting: list[tuple[str, float, int, int]] = []

    def send(self, batch: Batch) -> None:
        """All rows of a batch; the last few values wait for more."""
        lane = lane_name(batch)
        for points in batch.points:
            steps, times = points.step.tolist(), numpy.maximum(points.time_us // 1000, 0).tolist()
            for key, values in points.columns.items():
                if isinstance(values, list):
                    self._send_mixed(lane, key, values, points)
                else:
                    self._count_inexact(key, values)
                    self._add(self._name(lane, key), values.astype(numpy.float64).tolist(), times, steps)

    def flush(self) -> None:
        """Sends what waits."""
        self._post(len(self._waiting))

    def _name(self, lane: str, key: str) -> str:
        whole = f"{lane}{key}"
        if lane and key.startswith(SYSTEM):  # first, so that MLflow shows it among the system's metrics
            whole = f"{SYSTEM}{lane}{key[len(SYSTEM) :]}"
        name = name_of(whole)
        if name != whole:
            self.renamed[name] = whole
        return name

    def _count_inexact(self, key: str, values: Any) -> None:
        if values.dtype.kind == "f":
            self._lose("infinities", key, int(numpy.isinf(values).sum()))
        elif values.dtype.kind in "iu":
            self._lose("integers beyond 2^53", key, int(((values > _EXACT_MAX) | (values < -_EXACT_MAX)).sum()))

    def _lose(self, what: str, key: str, count: int) -> None:
        if count:
            self._passage.lost(what, key, count)

    def _send_mixed(self, lane: str, key: str, values: list[Any], points: Points) -> None:
        """Values of several kinds, or of none that an array of numbers holds."""
        numbers: list[tuple[float, int, int]] = []
        others = 0
        for value, step, time_us in zip(values, points.step.tolist(), points.time_us.tolist()):
            if value is None:  # a null is no value: it is not drawn anywhere else either
                continue
            if isinstance(value, (bool, int, float)):
                number = as_float(value)
                if not isinstance(value, bool) and number != value and value == value:
                    self._lose("integers beyond 2^53", key, 1)
                elif number in (float("inf"), float("-inf")):
                    self._lose("infinities", key, 1)
                numbers.append((number, max(time_us // 1000, 0), step))
                continue
            items = items_in(value)
            for item in items:
                self._files.media(item, lane)
            self._passage.moved(len(items))
            others += not items
        self._lose("values that are no numbers", key, others)
        if numbers:
            self._add(self._name(lane, key), *map(list, zip(*numbers)))

    def _add(self, name: str, values: list[Any], times: list[Any], steps: list[Any]) -> None:
        new: Iterator[tuple[str, float, int, int]] = zip([name] * len(values), values, times, steps)
        known = self._there.known(name, values, times, steps)
        if known is not None:
            new = itertools.compress(new, (~known).tolist())
            self._passage.moved(int(known.sum()))
        self._waiting.extend(new)
        if len(self._waiting) >= METRICS_MAX:
            self._post(len(self._waiting) - len(self._waiting) % METRICS_MAX)

    def _post(self, count: int) -> None:
        for start in range(0, count, METRICS_MAX):
            self._passage.check()
            some = self._waiting[start : min(start + METRICS_MAX, count)]
            self._server.log_metrics(self._run, some)
            self._passage.moved(len(some), sum(len(metric[0]) + _METRIC_BYTES for metric in some))
        del self._waiting[:count]


class There:
    """What the server has of some names already, read once for each of them.

    Why: what is sent again is no second line, but the server looks for all values of a request in the whole of the run, which takes
    ten times as long as to add them, and with SQLite longer with each value that is there. Memory holds 24 bytes for each value.
    """

    def __init__(self, server: Server, passage: Passage, run: str, names: Collection[str]) -> None:
        self._server, self._passage, self._run = server, passage, run
        self._names = frozenset(names)
        self._found: dict[str, NDArray[Any]] = {}

    def known(self, name: str, values: list[Any], times: list[Any], steps: list[Any]) -> NDArray[Any] | None:
        """Which values are there; None: none is."""
        if name not in self._names:
            return None
        if name not in self._found:
            pages = [_entries(*page) for page in map(self._checked, self._server.history(self._run, name))]
            self._found[name] = numpy.concatenate(pages) if pages else _entries([], [], [])
        found: NDArray[Any] = numpy.isin(_entries(values, times, steps), self._found[name])
        return found

    def _checked(self, page: Any) -> Any:
        self._passage.check()
        return page


def _entries(values: list[Any], times: list[Any], steps: list[Any]) -> NDArray[Any]:
    """Values as what a data base compares: NaN is NaN, an infinity the largest number, minus zero is zero."""
    numbers = numpy.clip(numpy.array(values, numpy.float64), -_FLOAT_MAX, _FLOAT_MAX) + 0.0
    numbers[numpy.isnan(numbers)] = numpy.nan
    entries = numpy.empty((len(numbers), 3), numpy.int64)
    entries[:, 0], entries[:, 1], entries[:, 2] = steps, times, numbers.view(numpy.int64)
    return entries.view("V24").reshape(-1)


def lane_name(batch: Batch) -> str:
    """What stands before the names of all lanes but the main one."""
    if batch.lane == 0:
        return ""
    rank = batch.stream.number("rank")
    return f"rank{rank}/" if rank and batch.stream.kind in ("main", "attach", "system") else f"lane{batch.lane}/"


def as_float(value: float) -> float:
    """A number as float64; an integer beyond all floats as the largest."""
    try:
        return float(value)
    except OverflowError:
        return _FLOAT_MAX if value > 0 else -_FLOAT_MAX
