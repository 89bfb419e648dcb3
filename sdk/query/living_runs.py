"""The runs of a store, looked at again and again: those that go on at the cost of what is new, the others when their directory changes.

A look lists the store's directory. Only a run whose directory has got or lost a segment is opened, and one that is over is not where the
store's cache tells of it (`sdk.reader.listing`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from .. import clock
from ..errors import Error
from ..reader.run import Run
from ..reader.state import RUNNING
from ..reader.store import Store
from .living import Glance, LivingRun, glance_of

# Limit: runs of which segments stay open between two looks, at most four each: a process has some 1024 descriptors.
_KEPT_OPEN_MAX = 100


class LivingRuns:
    """All runs of a store. Not thread-safe.

    Attributes:
        glances: What was seen of each run, by the name of its directory.
        runs: The runs, as a list has them; of those that go on the facts are as old as the last change of their directory.
        cost_seconds: What the last look took, without what was looked at for the first time.
    """

    def __init__(self, store: Store, now_ns: Callable[[], int] = clock.wall_ns) -> None:
        self.store = store
        self._now_ns = now_ns
        self._seen: dict[str, float] = {}
        self._living: dict[str, LivingRun] = {}
        self._deaf: set[str] = set()
        self.glances: dict[str, Glance] = {}
        self.runs: dict[str, Run] = {}
        self.cost_seconds = 0.0

    def look(self, told: Callable[[], None] = lambda: None) -> None:
        """Brings `glances` up to date.

        Args:
            told: Is called whenever there is something new to be shown, during a look that takes long.

        Raises:
            StoreError: The disk does not even list the runs.
        """
        began = clock.monotonic()
        first_looks = self._look_at_changed(told)
        for name, living in list(self._living.items()):
            is_first = living.is_new
            start = clock.monotonic()
            self._look_at(name, living)
            if is_first:
                first_looks += clock.monotonic() - start
                told()
        self.cost_seconds = clock.monotonic() - began - first_looks

    def _look_at_changed(self, told: Callable[[], None]) -> float:
        """Takes up what is new and lets go what is gone; the seconds that opening took."""
        spent = 0.0
        for run in self.store.changed(self._seen):
            name = os.path.basename(run.directory)
            self.runs[name] = run
            if name in self._living:
                continue
            start = clock.monotonic()
            self._take_up(name, run)
            spent += clock.monotonic() - start
            told()
        for name in self.glances.keys() - self._seen.keys():
            del self.glances[name]
            self.runs.pop(name, None)
            if name in self._living:
                self._living.pop(name).close()
        return spent

    def _take_up(self, name: str, run: Run) -> None:
        try:
            glance = glance_of(run)
        except Error:
            return
        old = self.glances.get(name)
        if old is not None and (old.started, old.step) == (glance.started, glance.step):
            # Compacted, or edited: what was seen of its series stays.
            glance = glance._replace(sparks=old.sparks, last_time=old.last_time, refused=old.refused)
        else:
            self._deaf.discard(name)
        self.glances[name] = glance
        if glance.state == RUNNING:
            # Its own `Run`: what others read of `runs` would take away what came since the last look.
            try:
                own = self.store.run(run.id)
            except Error:  # removed since it was listed
                return
            self._living[name] = LivingRun(own, self._now_ns, keep_open=len(self._living) < _KEPT_OPEN_MAX)

    def _look_at(self, name: str, living: LivingRun) -> None:
        try:
            living.look()
            if living.glance.state != RUNNING:
                living.look()  # Race: what was stored between the look and the end
        except Error:
            self._living.pop(name).close()  # its directory goes, or is taken up again when it changes
            return
        self.glances[name] = living.glance
        if living.glance.state == RUNNING:
            return
        if living.may_go_on:
            living.rest()
        else:
            self._living.pop(name).close()

    def fill(self, ids: Iterable[str], seconds: float) -> bool:
        """Samples the series of some runs that are over and have none in their glance yet, for about so long; whether it did any."""
        wanted = set(ids)
        until = clock.monotonic() + seconds
        filled = False
        for name, glance in list(self.glances.items()):
            if glance.id not in wanted or glance.sparks or name in self._living or name in self._deaf:
                continue
            if clock.monotonic() >= until:
                break
            self._deaf.add(name)  # looked at once, whatever it holds
            living = LivingRun(self.store.run(glance.id), self._now_ns, keep_open=False)
            try:
                living.look()
                self.glances[name] = living.glance
                filled = True
            except Error:
                continue
            finally:
                living.close()
        return filled

    def close(self) -> None:
        """Closes what is kept open."""
        for living in self._living.values():
            living.close()
        self._living.clear()
