"""What `run`, `store` and `series` show as the last line of a notebook's cell: read in bounded time, drawn by `pictures`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import Error
from ..files import DISK
from ..headline import choose_keys
from . import pictures
from .pictures import Curve, Facts
from .state import RUNNING
from .times import ago

if TYPE_CHECKING:
    from .run import Run
    from .series import Series
    from .store import Store

FILES_MAX = 50


def curves_of(run: Run, keys: Iterable[str], points: int) -> list[Curve]:
    """Evenly spread points of those of the keys that hold numbers, in order; a few blocks of a long run are read."""
    wanted = list(keys)
    found = run.sample(wanted, points)
    held = ((key, *found[key]) for key in wanted if key in found)
    return [Curve(key, step, value) for key, step, value in held if value.dtype.kind in "biuf" and len(value)]


def chart_curves(run: Run, keys: list[str], points: int) -> list[Curve]:
    """As `curves_of`, for a larger picture: the points that keep its shape, where the library that chooses them is installed."""
    try:
        found = run.several(keys, points=points)
    except Error:
        return curves_of(run, keys, points)
    held = ((key, found[key]) for key in keys if key in found)
    return [Curve(key, s.step, s.value) for key, s in held if s.value.dtype.kind in "biuf" and 0 < len(s) <= points]


def headline_curves(run: Run, defined: Mapping[str, Any]) -> list[Curve]:
    """The six series worth showing first."""
    # Twice as many as are shown: some may hold no numbers.
    keys = choose_keys(run.shown_keys(quick=True), defined, 2 * pictures.SPARKS_MAX)
    return curves_of(run, keys, pictures.SPARK_POINTS)[: pictures.SPARKS_MAX]


def run_card(run: Run, collapsed: bool = False) -> str:
    """The card of a stored run."""
    state = run.state
    end = run._now_ns() / 1e9 if state == RUNNING else run.updated
    facts = Facts(
        state=state,
        name=run.name,
        id=run.id,
        project=run.project,
        step=run.step_max if run.records else None,
        seconds=max(end - run.started, 0.0) if run.started else None,
        config=run.config,
        health=health(run),
        directory=run.directory,
        files=files_of(run.directory),
    )
    return pictures.card(facts, headline_curves(run, run.metrics), collapsed)


def health(run: Run) -> str:
    """What is stored and what is not."""
    dropped = sum(gap.count for gap in run.gaps)
    text = f"{run.records:,} records stored, {dropped:,} dropped"
    error = run.error
    return text if error is None else f"{text}; ended by {error.type}: {error.message}"


def files_of(directory: str) -> list[str]:
    """Names of what lies in the run's files, the first ones."""
    try:
        return [name for name, _, _ in DISK.entries(os.path.join(directory, "files"))][:FILES_MAX]
    except OSError:
        return []


def store_table(store: Store, now: float) -> str:
    """The runs of a store, newest first."""
    return pictures.runs_table(
        store.path,
        [
            {
                "id": run.id,
                "name": run.name,
                "project": run.project,
                "state": run.state,
                "started": ago(run.started, now) if run.started else "",
                "step": f"{run.step_max:,}",
            }
            for run in store.runs()
        ],
    )


def series_card(series: Series) -> str | None:
    """A series' sparkline, count, least and largest; None where it holds no numbers."""
    if series.value.dtype.kind not in "biuf":
        return None
    stride = max(1, -(-len(series) // pictures.CHART_POINTS))
    at = slice(None, None, -stride)  # the last one included
    curve = Curve(series.key, series.step[at][::-1], series.value[at][::-1])
    return pictures.series_picture(curve, len(series))
