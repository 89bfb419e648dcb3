"""A run that goes on, looked at again and again at the cost of what is new: step, rate, time left, last values, GPUs and memory.

The first look reads a few blocks of each series, spread over the run; every later one reads what came since. What a list or a page shows
of the run is a `Glance`, made new only when something changed.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from .. import clock
from ..errors import Error
from ..headline import choose_keys
from ..limits import STEP_MAX
from ..reader.newest import New, Newest
from ..reader.parts import Part, column_of, highest_step, times_us, values_of
from ..reader.run import Run
from ..reader.state import RUNNING
from ..record import Record

# Limit: blocks of rows that one look reads of a stream: those of three seconds.
_BLOCKS_MAX = 16
# The rate is that of the last minute, so that it follows a change and not an evaluation.
_RATE_SECONDS = 60.0
_RATE_LOOKS_MAX = 64
# A run that was silent for so many times the usual time between its looks, and at least so long, is said to be quiet.
_QUIET_SECONDS_MIN = 30.0
SPARKS_MAX = 4
SPARK_POINTS = 64
# Limit: keys that are kept, of the training and of what is observed: a run may log under another one at every step.
_KEYS_MAX = 2_000
_STEP_TOTALS = (
    "max_steps",
    "total_steps",
    "num_steps",
    "max_iters",
    "num_train_steps",
    "train_steps",
    "total_iters",
    "iterations",
)
_EPOCH_TOTALS = ("epochs", "num_epochs", "max_epochs", "num_train_epochs", "n_epochs", "total_epochs")
# Limit: entries of a config that are looked at.
_CONFIG_ENTRIES_MAX = 1_000
_GPU = "system/gpu."


class Spark(NamedTuple):
    """A series in few values.

    Attributes:
        steps, values: Spread over the run, the last one included; finite ones.
        last: The last value, finite or not.
    """

    key: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    last: float


class Load(NamedTuple):
    """What a run uses now, of all its hosts together; None: not known.

    Attributes:
        gpu: Percent, the mean of its devices.
        gpu_bytes, gpu_bytes_max: Memory of its devices: taken, and all.
        cpu: Percent of one core.
        memory_bytes: Of its processes.
    """

    gpu: float | None = None
    gpu_bytes: float | None = None
    gpu_bytes_max: float | None = None
    cpu: float | None = None
    memory_bytes: float | None = None


class Glance(NamedTuple):
    """What is to be seen of a run at one moment.

    Attributes:
        updated: When it ended, where it said so; else when it last wrote. Unix seconds.
        step: The last one; None before the first row.
        steps: How many there will be, by its config; None: nobody said.
        rate: Steps a second, by the times at which they were logged; None: not known.
        eta_seconds: What is left; None: not known.
        last_time: When its last row was logged, Unix seconds; None: not known.
        quiet_seconds: For how long it logged nothing, where that is much longer than usual; else 0.
        refused: Records that were not stored.
    """

    id: str
    name: str
    project: str
    group: str
    tags: tuple[str, ...]
    state: str
    started: float
    updated: float
    step: int | None = None
    steps: int | None = None
    rate: float | None = None
    eta_seconds: float | None = None
    last_time: float | None = None
    quiet_seconds: float = 0.0
    refused: int = 0
    sparks: tuple[Spark, ...] = ()
    load: Load = Load()


def glance_of(run: Run) -> Glance:
    """What a list tells of a run that is over, without opening it where it has a card."""
    return Glance(
        run.id, run.name, run.project, run.group, tuple(run.tags), run.state, run.started, _last_seen(run, run.state),
        run.step_max if run.records else None,
    )  # fmt: skip


def _last_seen(run: Run, state: str) -> float:
    """When it ended, as far as it said so: its files are younger once they were copied or compacted."""
    ended = run.ended if state != RUNNING else None
    return run.updated if ended is None else min(ended, run.updated)


class LivingRun:
    """A run that is looked at again and again. Owns the `Run` that it is given. Not thread-safe.

    Attributes:
        glance: What was seen last.
    """

    def __init__(self, run: Run, now_ns: Callable[[], int] = clock.wall_ns, *, keep_open: bool = True) -> None:
        """Args: `keep_open` keeps segments that grow open between two looks, which makes these cheaper."""
        self.run = run
        self._now_ns = now_ns
        self._keep_open = keep_open
        self._newest: Newest | None = None
        self._times: deque[tuple[float, int]] = deque(maxlen=_RATE_LOOKS_MAX)
        self._epoch: float | None = None
        self._sparks: dict[str, _Points] = {}
        self._system: dict[int, dict[str, float]] = {}
        self._keys: set[str] = set()
        # Keys of which the run holds no numbers, and those that its main lane logs: what others log under them is not shown.
        self._deaf: set[str] = set()
        self._main_keys: set[str] = set()
        self.glance = glance_of(run)

    @property
    def is_new(self) -> bool:
        """Whether it was not looked at yet."""
        return self._newest is None

    def look(self) -> bool:
        """Takes what came since the last look; whether `glance` is another one now.

        Raises:
            StoreError: The run's segments keep disappearing.
        """
        old, newest = self.glance, self._newest
        if newest is None:
            newest = self._newest = Newest(self.run, self._keep_open)
            first = newest.look(2)
            # Race: what comes between this look and the sample is in the sample, and comes again with the next look.
            self._keys = set(choose_keys(self.run.all_keys(quick=True), self.run.metrics, _KEYS_MAX))
            self._choose()
            self._take(newest, first)
        elif newest.has_changed():
            before = newest.course
            found = newest.look(_BLOCKS_MAX)
            if newest.course != before:
                # Resumed, perhaps at an earlier step: what is hidden now must not stand before what comes.
                self._times.clear()
                self._epoch = None
            if newest.course != before or newest.missed:
                self._sparks.clear()
                self._choose()
            self._take(newest, found)
        self.glance = self._seen(newest)
        return self.glance != old

    @property
    def may_go_on(self) -> bool:
        """Whether it may be running again, without a file that comes or goes: nobody here can know whether its processes live, they
        were only silent for long.
        """
        return self._newest is not None and self._newest.is_doubtful()

    def rest(self) -> None:
        """Closes what was kept open, and goes on."""
        if self._newest is not None:
            self._newest.rest()

    def close(self) -> None:
        """Closes what was kept open."""
        if self._newest is not None:
            self._newest.close()
            self._newest = None

    def _choose(self) -> None:
        """The series that are worth a spark, with what the run holds of them."""
        shown = (key for key in sorted(self._keys - self._deaf) if not self.run.metric(key).hidden)
        chosen = choose_keys(shown, self.run.metrics, 3 * SPARKS_MAX)
        missing = [key for key in chosen if key not in self._sparks]
        found = self.run.sample(missing, SPARK_POINTS) if missing else {}
        sparks = {key: self._sparks.get(key) or _Points(*found[key]) for key in chosen}
        self._sparks = {key: points for key, points in sparks.items() if points.is_numeric}
        self._deaf |= sparks.keys() - self._sparks.keys()

    def _take(self, newest: Newest, found: Iterable[New]) -> None:
        lanes = newest.lanes()
        training = {stream.id for lane in lanes for stream in lane.streams}
        main = {stream.id for lane in lanes[:1] for stream in lane.streams}
        fresh: set[str] = set()
        for stream, parts, _ in found:
            if stream.kind == "system":
                told = self._system.setdefault(stream.id, {})
                for key, _, value in itertools.chain.from_iterable(map(_last_numbers, parts[-2:])):
                    if key in told or len(told) < _KEYS_MAX:
                        told[key] = value
            elif stream.id in training:
                limit = newest.course[1].get(stream.id, STEP_MAX + 1)
                for part in parts:
                    self._take_part(part, stream.id in main, limit, fresh)
        if len(self._keys) < _KEYS_MAX and not fresh <= self._keys:
            self._keys |= fresh
            self._choose()

    def _take_part(self, part: Part, is_main: bool, limit: int, fresh: set[str]) -> None:
        for time, step in _ends(part) if is_main else ():
            if step < limit and (not self._times or (step > self._times[-1][1] and time >= self._times[-1][0])):
                self._times.append((time, step))
        for key, step, value in _last_numbers(part):
            if step >= limit:
                continue
            if is_main and len(self._main_keys) < _KEYS_MAX:
                self._main_keys.add(key)
            elif key in self._main_keys and not is_main:
                continue
            if key.rpartition("/")[2].lower() == "epoch":
                self._epoch = value
            if key[:1] != "_":
                fresh.add(key)
            if key in self._sparks:
                self._sparks[key].add(step, value)

    def _seen(self, newest: Newest) -> Glance:
        run, state = self.run, newest.state()
        config = run.config
        now = self._now_ns() / 1e9
        step = newest.step_max if self._times or newest.step_max else None
        steps = _total(config, _STEP_TOTALS)
        rate = self._rate()
        quiet = self._quiet(now) if state == RUNNING else 0.0
        epochs, epoch = _total(config, _EPOCH_TOTALS), self._epoch
        eta = None
        if state == RUNNING and rate and not quiet and step is not None:
            eta = _left(step, steps, rate) if steps is not None else _left_of_epochs(step, epochs, epoch, rate)
        return Glance(
            run.id, run.name, run.project, run.group, tuple(run.tags), state, run.started, _last_seen(run, state), step, steps,
            rate if state == RUNNING and not quiet else None, eta, self._times[-1][0] if self._times else None, quiet,
            sum(gap.count for gap in newest.refused()),
            tuple(points.spark(key) for key, points in list(self._sparks.items())[:SPARKS_MAX]),
            self._load(newest) if state == RUNNING else Load(),
        )  # fmt: skip

    def _rate(self) -> float | None:
        """Steps a second over the last minute in which there were some."""
        if len(self._times) < 2:
            return None
        last, step = self._times[-1]
        first, begin = next((one for one in self._times if one[0] >= last - _RATE_SECONDS), self._times[0])
        if first == last:
            first, begin = self._times[-2]
        return (step - begin) / (last - first) if last > first else None

    def _quiet(self, now: float) -> float:
        if not self._times:
            return 0.0
        silent = now - self._times[-1][0]
        rate = self._rate()
        usual = 1 / rate if rate else 0.0
        return silent if silent > max(_QUIET_SECONDS_MIN, 20 * usual) else 0.0

    def _load(self, newest: Newest) -> Load:
        told = [self._system.get(lane.last.id, {}) for lane in newest.lanes("system")]
        devices = [entry for values in told for entry in values.items() if entry[0].startswith(_GPU)]

        def of_devices(name: str) -> list[float]:
            return [value for key, value in devices if key.endswith(f".{name}")]

        def added(key: str) -> float | None:
            return _sum(values[key] for values in told if key in values)

        busy = of_devices("utilization")
        return Load(
            sum(busy) / len(busy) if busy else None,
            _sum(of_devices("memory_used")),
            _sum(of_devices("memory_total")),
            added("system/cpu"),
            added("system/memory_rss"),
        )


class _Points:
    """Some values of a series that grows, spread over it; at most twice `SPARK_POINTS`: every other one goes when there are more."""

    def __init__(self, steps: Any, values: Any) -> None:
        self.is_numeric = getattr(values, "dtype", None) is not None and values.dtype.kind in "biuf" and len(values) > 0
        pairs = zip(steps.tolist(), values.tolist()) if self.is_numeric else ()
        self._points = [(int(step), float(value)) for step, value in pairs]
        self._step, self._last = self._points[-1] if self._points else (-1, math.nan)
        self._points = [point for point in self._points if math.isfinite(point[1])]

    def add(self, step: int, value: float) -> None:
        if step < self._step:
            return
        points = self._points
        if points and points[-1][0] == step:  # said again of the same row: the later one holds
            points.pop()
        self._step, self._last = step, value
        if not math.isfinite(value):
            return
        # The last point stands in for those after the one before it, until it is as far from that one as the others are from each other.
        if len(points) > 1 and points[-1][0] - points[-2][0] < (step - points[0][0]) / SPARK_POINTS:
            points[-1] = (step, value)
        else:
            points.append((step, value))
        if len(points) > 2 * SPARK_POINTS:
            self._points = points[:-1:2] + points[-1:]

    def spark(self, key: str) -> Spark:
        return Spark(key, tuple(s for s, _ in self._points), tuple(v for _, v in self._points), self._last)


def _ends(part: Part) -> list[tuple[float, int]]:
    """Time and step of the first row of a part and of its last."""
    if isinstance(part, Record):
        return [(part.time_ns / 1e9, part.step)]
    steps, times = part.steps(), times_us(part)
    return [(int(times[0]) / 1e6, int(steps[0])), (int(times[-1]) / 1e6, highest_step(part))]


def _last_numbers(part: Part) -> Iterator[tuple[str, int, float]]:
    """Key, step and value of the last numbers in a part."""
    if isinstance(part, Record):
        try:
            values: Mapping[str, Any] = values_of(part)
        except Error:
            return
        step = part.step
    else:
        place = len(part) - 1
        values = {key: column_of(part, key)[place] for key in part.keys}
        step = int(part.steps()[place])
    for key, value in values.items():
        number = _number(value)
        if number is not None:
            yield key, step, number


def _number(value: Any) -> float | None:
    if isinstance(value, (str, bytes)) or value is None or getattr(value, "ndim", None):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _total(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """The first of some names that a config holds a positive number under, on any level; the upper ones first."""
    level: list[Mapping[str, Any]] = [config]
    left = _CONFIG_ENTRIES_MAX
    while level and left > 0:
        deeper: list[Mapping[str, Any]] = []
        found: dict[str, int] = {}
        for values in level:
            for key, value in list(values.items())[: max(left, 0)]:
                left -= 1
                if isinstance(value, Mapping):
                    deeper.append(value)
                elif isinstance(key, str) and type(value) in (int, float) and 0 < value < 1e15:
                    found.setdefault(key.rpartition(".")[2].rpartition("/")[2].lower(), int(value))
        for name in names:
            if found.get(name):
                return found[name]
        level = deeper
    return None


def _left(step: int, steps: int, rate: float) -> float:
    return max(steps - 1 - step, 0) / rate


def _left_of_epochs(step: int, epochs: int | None, epoch: float | None, rate: float) -> float | None:
    """By the steps that an epoch took so far; of whole epochs, which are logged as they begin or end, an estimate."""
    if epochs is None or epoch is None or not 0 < epoch <= epochs:
        return None
    return (epochs - epoch) * step / epoch / rate


def _sum(values: Iterable[float]) -> float | None:
    found = [value for value in values if math.isfinite(value)]
    return sum(found) if found else None
