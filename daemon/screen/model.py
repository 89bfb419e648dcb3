"""What the live screen knows: the runs of a store and the health of its daemon. Belongs to the thread that reads; what it gives is
never changed after.

Limit: a look rests at least twenty times as long as it took, so that reading takes at most a twentieth of a core however many runs there
are; of what was looked at for the first time that does not count.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from sdk import _spawn, clock
from sdk.errors import Error, UsageError
from sdk.files import DISK
from sdk.query.expression import Expression, parse
from sdk.query.living import Glance
from sdk.query.living_runs import LivingRuns
from sdk.query.lookup import Values
from sdk.reader import Run, Store
from sdk.reader.state import RUNNING
from sdk.segment.naming import STORE_FILE
from sdk.transport import request

LOOK_SECONDS = 2.0
REST = 20.0
# How long a run that is over stays among those that are shown at first.
RECENT_SECONDS = 3600.0
_STATUS_SECONDS = 1.0
# Limit: how long series of runs that are over are read until those are shown and somebody is listened to.
_FILL_SECONDS = 0.1
_TELL_SECONDS = 0.15


class Health(NamedTuple):
    """What the daemon says of itself.

    Attributes:
        serving: Whether there is one.
        trouble: Why it does not answer, or what it warns of; "" for nothing.
        refused: Calls that trainers were refused. dropped: Records that are in no segment.
        lag_seconds: For how long the oldest of what waits has waited.
        free_bytes: What the disk has left; None: not known.
    """

    serving: bool = False
    trouble: str = ""
    refused: int = 0
    dropped: int = 0
    lag_seconds: float = 0.0
    records_per_second: float = 0.0
    free_bytes: int | None = None


class Scene(NamedTuple):
    """Everything that a list of runs shows.

    Attributes:
        store: Its path.
        glances: Those that are wanted, in order.
        running, total: How many go on, how many there are.
        health: None before the daemon was asked.
        time: Of the look, Unix seconds.
        is_reading: Whether not every run has been looked at yet.
        trouble: Why the store, or what was asked for, cannot be read; "" for nothing.
        text: The filter that was wanted.
        left_out: Of which runs nothing is known, since they cannot be read; "" for none.
    """

    store: str
    glances: tuple[Glance, ...] = ()
    running: int = 0
    total: int = 0
    health: Health | None = None
    time: float = 0.0
    is_reading: bool = True
    trouble: str = ""
    text: str = ""
    left_out: str = ""


class Wanted(NamedTuple):
    """Which runs are wanted, and in which order.

    Attributes:
        every: Those that ended long ago too.
        text: A filter: words that name, id and project must hold, or an expression (docs/runs.md#expressions).
        sort: One of `SORTS`.
        visible: Ids of the runs on the screen.
    """

    every: bool = False
    text: str = ""
    sort: str = "newest"
    is_reversed: bool = False
    visible: tuple[str, ...] = ()


# Name -> what runs are ordered by; those of which it is not known come last.
SORTS: Mapping[str, Callable[[Glance], Any]] = {
    "newest": lambda one: -one.started,
    "name": lambda one: one.name,
    "project": lambda one: one.project,
    "step": lambda one: None if one.step is None else -one.step,
    "rate": lambda one: None if one.rate is None else -one.rate,
    "time left": lambda one: one.eta_seconds,
    "gpu": lambda one: None if one.load.gpu is None else -one.load.gpu,
    "series": lambda one: one.sparks[0].last if one.sparks else None,
}


class AwaitedStore(Store):
    """A store that need not be there yet: until it is, it has no runs. Creates nothing.

    Raises:
        StoreError: A newer version made it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.unreadable = {}
        self.is_there = False
        self._open_if_there()

    def _open_if_there(self) -> None:
        if not self.is_there and DISK.exists(os.path.join(self.path, STORE_FILE)):
            super().__init__(self.path)
            self.is_there = True

    def changed(self, seen: dict[str, float]) -> Iterator[Run]:
        self._open_if_there()
        return super().changed(seen) if self.is_there else iter(())


class Board:
    """Reads what the screen shows."""

    def __init__(
        self,
        store: Store,
        now_ns: Callable[[], int] = clock.wall_ns,
        ask: Callable[[str], Mapping[str, Any] | None] | None = None,
    ) -> None:
        """Args: `ask` gives what the daemon of a store says, None where there is none."""
        self.runs = LivingRuns(store, now_ns)
        self._now_ns = now_ns
        self._ask = ask or _ask
        self._health: Health | None = None
        self._is_reading = True
        self._filter: tuple[str, Callable[[Run, Glance], bool]] = ("", filter_of(""))
        # What the filter said of a run as it was seen then.
        self._taken: dict[str, tuple[Glance, bool]] = {}
        self._cost_seconds = 0.0

    def look(self, wanted: Wanted, told: Callable[[Scene], None] = lambda scene: None) -> Scene:
        """Looks at everything again.

        Args:
            told: Gets scenes meanwhile, while the first look goes on.
        """
        last_told = clock.monotonic()

        def tell() -> None:
            nonlocal last_told
            if clock.monotonic() - last_told > _TELL_SECONDS:
                told(self.scene(wanted))
                last_told = clock.monotonic()

        trouble = ""
        try:
            self.runs.look(tell)
        except Error as error:
            trouble = error.message
        is_first, self._is_reading = self._is_reading, False
        self._health = self._look_at_health()
        began = clock.monotonic()
        found = self.scene(wanted)
        # What the first look costs, which opens everything, tells nothing about the others.
        self._cost_seconds = 0.0 if is_first else self.runs.cost_seconds + clock.monotonic() - began
        return found._replace(trouble=trouble) if trouble else found

    def fill(self, wanted: Wanted) -> bool:
        """Reads series of runs that are over and on the screen, some of those that were not read yet; whether there were any."""
        return self.runs.fill(wanted.visible, _FILL_SECONDS)

    def rest_seconds(self) -> float:
        """How long to wait until the next look."""
        return max(LOOK_SECONDS, REST * self._cost_seconds)

    def scene(self, wanted: Wanted) -> Scene:
        """What was seen last, of that what is wanted."""
        everything = self.runs.glances
        now = self._now_ns() / 1e9
        trouble = self._set_filter(wanted.text)
        chosen = []
        for name, glance in list(everything.items()):
            is_recent = glance.state == RUNNING or now - glance.updated < RECENT_SECONDS
            if (is_recent or wanted.every) and self._takes(name, glance):
                chosen.append(glance)
        return Scene(
            self.runs.store.path,
            tuple(_sorted(chosen, wanted)),
            sum(glance.state == RUNNING for glance in everything.values()),
            len(everything),
            self._health,
            now,
            self._is_reading,
            trouble,
            wanted.text,
            self.runs.store.left_out,
        )

    def _set_filter(self, text: str) -> str:
        """Takes a filter; what is wrong with it, and then nothing is left out."""
        if text == self._filter[0]:
            return ""
        self._taken = {}
        try:
            self._filter = (text, filter_of(text))
        except UsageError as error:
            self._filter = ("", filter_of(""))
            return error.message.split("\n")[0]
        return ""

    def _takes(self, name: str, glance: Glance) -> bool:
        known = self._taken.get(name)
        if known is None or known[0] is not glance:
            known = self._taken[name] = (glance, self._filter[1](self.runs.runs[name], glance))
        return known[1]

    def _look_at_health(self) -> Health:
        path = self.runs.store.path
        free = None
        with contextlib.suppress(OSError):
            free = DISK.free_bytes(path)
        try:
            told = self._ask(path)
        except Error as error:
            return Health(True, error.message, free_bytes=free)
        except OSError:  # the store is away: its runs say so
            return Health(free_bytes=free)
        return Health(free_bytes=free) if told is None else _health_of(told, free)

    def close(self) -> None:
        self.runs.close()


def filter_of(text: str) -> Callable[[Run, Glance], bool]:
    """What says whether a filter takes a run.

    Raises:
        UsageError: It is an expression that has a mistake.
    """
    if not text.strip():
        return lambda run, glance: True
    if not any(sign in text for sign in "=<>~(") and " is " not in text and " in " not in text:
        words = text.lower().split()

        def holds(run: Run, glance: Glance) -> bool:
            where = f"{glance.name}\n{glance.id}\n{glance.project}\n{glance.group}\n{glance.state}\n{' '.join(glance.tags)}".lower()
            return all(word in where for word in words)

        return holds
    expression: Expression = parse(text)

    def matches(run: Run, glance: Glance) -> bool:
        try:
            return expression.matches(Values(run))
        except (Error, OSError):
            return False

    return matches


def _sorted(glances: list[Glance], wanted: Wanted) -> list[Glance]:
    """Those that go on first, each part by what is wanted; what is not known comes last."""
    by = SORTS.get(wanted.sort, SORTS["newest"])
    known = [one for one in glances if _is_known(by(one))]
    rest = [one for one in glances if not _is_known(by(one))]
    ordered = sorted(known, key=lambda one: (by(one), one.id), reverse=wanted.is_reversed) + rest
    return sorted(ordered, key=lambda one: one.state != RUNNING)


def _is_known(value: Any) -> bool:
    return value is not None and value == value


def _ask(path: str) -> Mapping[str, Any] | None:
    return request(path, "status", timeout=_STATUS_SECONDS) if _spawn.is_serving(path) else None


def _health_of(told: Mapping[str, Any], free: int | None) -> Health:
    """What a daemon's answer says; it may be another version's."""

    def number(value: Any) -> float:
        return value if type(value) in (int, float) else 0

    def listed(name: str, kind: type) -> list[Any]:
        found = told.get(name)
        return [one for one in found if isinstance(one, kind)] if isinstance(found, list) else []

    runs, warnings, gaps = listed("runs", dict), listed("warnings", str), told.get("gaps")
    return Health(
        True,
        warnings[0] if warnings else "",
        int(number(told.get("refused"))),
        int(sum(number(count) for count in gaps.values())) if isinstance(gaps, dict) else 0,
        max((number(run.get("lag_seconds")) for run in runs), default=0.0),
        number(told.get("records_per_second")),
        free if free is not None else int(number(told.get("free_bytes"))),
    )
