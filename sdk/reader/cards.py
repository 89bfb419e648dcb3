"""What `run`, `store` and `series` show as the last line of a notebook's cell: read in bounded time, drawn by `pictures`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import Error
from ..files import DISK
from ..headline import choose_keys
from . import pictures
from .digest import row_bytes
from .pictures import Curve, Facts
from .times import ago

if TYPE_CHECKING:
    from ..query.overview import Column, Overview
    from .run import Run
    from .series import Series
    from .store import Store

FILES_MAX = 50
# Limit: runs that show a curve in a table, some ms each.
CURVES_MAX = 20
# Limits: rows that are read for exact extremes, 5 ms for each MB; of columns only directories are, 40 ms of a million records.
_EXACT_BYTES_MAX = 4 << 20
_EXACT_RECORDS_MAX = 1_000_000


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
    """The six series worth showing first, with their exact extremes where those are not too much to read."""
    # Twice as many as are shown: some may hold no numbers.
    keys = choose_keys(run.shown_keys(quick=True), defined, 2 * pictures.SPARKS_MAX)
    curves = curves_of(run, keys, pictures.SPARK_POINTS)[: pictures.SPARKS_MAX]
    if run.records > _EXACT_RECORDS_MAX or row_bytes(run) > _EXACT_BYTES_MAX:
        return curves
    found = run.numbers([curve.key for curve in curves])
    return [
        curve._replace(low=found[curve.key].low, high=found[curve.key].high) if curve.key in found else curve
        for curve in curves
    ]


def run_card(run: Run, collapsed: bool = False) -> str:
    """The card of a stored run."""
    state = run.state
    facts = Facts(
        state=state,
        name=run.name,
        id=run.id,
        project=run.project,
        step=run.step_max if run.records else None,
        seconds=run.duration,
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
    """The newest runs of a store: what differs between them, their best values and a curve of the main series."""
    from ..query.overview import overview

    runs = store.runs()
    head = f"{store.path}: {len(runs):,} run{'' if len(runs) == 1 else 's'}"
    table = overview(runs[: pictures.RUNS_MAX])
    best = next((column.name for column in table.columns if column.goal is not None), None)
    return table_card(table, now, head, len(runs), best.partition(":")[2].strip('"') if best else None)


def table_card(table: Overview, now: float, head: str, total: int, key: str | None = None) -> str:
    """A table of runs.

    Args:
        total: How many there are, of which the first ones are shown.
        key: A series of which the first runs show a curve.
    """
    columns = [
        [_cell(column, row, now) for row in range(min(len(table.groups), pictures.RUNS_MAX))]
        for column in table.columns
    ]
    titles = [column.name.removeprefix("config.") for column in table.columns]
    rows = [list(row) for row in zip(*columns)]
    if key is not None and rows:
        titles.append(key)
        for row, runs in zip(rows, table.groups[:CURVES_MAX]):
            found = curves_of(runs[0], [key], pictures.SPARK_POINTS)
            row.append(pictures.Cell("", curve=found[0]) if found else pictures.Cell(""))
    return pictures.runs_table(head, titles, rows, total - len(rows))


def _cell(column: Column, row: int, now: float) -> pictures.Cell:
    value = column.values[row]
    is_right = column.kind in ("number", "length", "size")
    state = str(value) if column.kind == "state" else None
    return pictures.Cell(_text(value, column.kind, now), is_right, row == column.best, state)


def _text(value: Any, kind: str, now: float) -> str:
    """A value in a cell; the mean of a group's with how far they are from it."""
    if value is None:
        return ""
    if hasattr(value, "mean"):
        if kind == "number":
            return str(value.text())
        mean = _text(value.mean, kind, now)
        return mean if value.std is None else f"{mean} ± {_text(value.std, 'length' if kind == 'time' else kind, now)}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    if kind == "time":
        return ago(value, now)
    return pictures.duration(value) if kind == "length" else pictures.number(value)


def series_card(series: Series) -> str | None:
    """A series' sparkline, count, least and largest; None where it holds no numbers."""
    if series.value.dtype.kind not in "biuf":
        return None
    stride = max(1, -(-len(series) // pictures.CHART_POINTS))
    at = slice(None, None, -stride)  # the last one included
    curve = Curve(series.key, series.step[at][::-1], series.value[at][::-1])
    return pictures.series_picture(curve, len(series))
