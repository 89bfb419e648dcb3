"""Relations that a store's own names make: the rows of a project with a column for each key, and tables that were logged.

"digits"                all runs of the project digits: run, step, time, then a column for each key
"digits/predictions"    the table logged under `predictions`, of each run of the project its last version: run, step, then its columns
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow
import pyarrow.dataset

from ...reader import looks
from ...reader.digest import digest_if_told
from ...reader.media import items_in
from ...reader.names import nearest
from ...reader.run import Run
from ...reader.tables import Table
from .known import RELATIONS, known_keys, last_tables
from .pruning import Filter, text
from .relations import Catalog, Columns, Relation
from .streaming import TIME, Wanted, tables_of
from .typed import distinct, number_of, text_of

WIDE = "wide/"
_EXACT_MAX = 2**53
# Limit: columns of a project, a second of DuckDB's binding; `metrics` has all keys.
_KEYS_MAX = 5000
_ROWS_FIRST = {"run": pyarrow.string(), "step": pyarrow.int64(), "time": TIME}
_TABLE_FIRST = {"run": pyarrow.string(), "step": pyarrow.int64()}
# What a table's own column types become; every other one is a text, of what is none its JSON.
_CELLS = {"number": pyarrow.float64(), "string": pyarrow.string(), "boolean": pyarrow.bool_()}


def relation_of(catalog: Catalog, name: str) -> Relation | None:
    """The relation of a name that no fixed one has; None where the store has none."""
    projects = {run.project for run in catalog.runs()}
    if name in projects:
        return _wide(catalog, name)
    if name.startswith(WIDE) and name[len(WIDE) :] in projects:
        return _wide(catalog, name[len(WIDE) :])
    for end in reversed([at for at, letter in enumerate(name) if letter == "/"]):
        if name[:end] in projects:
            return _logged(catalog, name[:end], name[end + 1 :])
    return None


def nearest_names(catalog: Catalog, name: str) -> list[str]:
    """What a misspelt relation may have been."""
    projects = sorted({run.project for run in catalog.runs()})
    return nearest(name, [*RELATIONS, *projects])


def _runs_of(catalog: Catalog, project: str) -> list[Run]:
    return [run for run in catalog.runs() if run.project == project]


# -- rows of a project ---------------------------------------------------------------------------------------------------


def _wide(catalog: Catalog, project: str) -> Relation:
    kinds = _kinds(_runs_of(catalog, project))
    if len(kinds) > _KEYS_MAX:
        catalog.note(f"project {project} has {len(kinds):,} keys, and its relation the first {_KEYS_MAX:,} of them")
        kinds = dict(list(kinds.items())[:_KEYS_MAX])
    # Upper and lower case are the same to SQL, and `run`, `step` and `time` are taken.
    shown = dict(zip(kinds, distinct(kinds, _ROWS_FIRST)))
    fields = {**_ROWS_FIRST, **{shown[key]: kind for key, kind in kinds.items()}}
    schema = pyarrow.schema(fields)

    def read(wanted: Filter, names: frozenset[str]) -> Iterator[Columns]:
        # Why all keys where none is asked for: a row is a step at which one of them has a value.
        asked = [key for key in kinds if shown[key] in names]
        for run in _chosen(catalog, wanted, project):
            yield from catalog.reading(run, lambda run: _rows(run, wanted, asked, kinds, shown))

    return Relation(schema, read)


def _chosen(catalog: Catalog, wanted: Filter, project: str) -> Iterator[Run]:
    return (run for run in catalog.chosen(wanted) if run.project == project)


def _kinds(runs: list[Run]) -> dict[str, Any]:
    """The keys of some runs without media, sorted, each with its type: DOUBLE where the last value of each run is a number."""
    found: dict[str, bool] = {}
    for run in runs:
        for key, value in _last_values(run).items():
            if not items_in(value) and not hasattr(value, "dtype"):
                found[key] = found.get(key, True) and isinstance(value, (bool, int, float))
    return {key: pyarrow.float64() if is_number else pyarrow.string() for key, is_number in sorted(found.items())}


def _last_values(run: Run) -> dict[str, Any]:
    """Each key's last value, by what a list tells where that is all there is to know."""
    told = digest_if_told(run)
    if told is not None and told.is_whole and not told.summary:
        return {key: one.last for key, one in told.series.items()}
    last = run._reading(lambda: looks.last_values(run._scan, run._lanes))
    made = run._definitions().made_of(set(last))
    return {**{key: last[one.base] for key, one in made.items() if one.base in last}, **last}


def _rows(
    run: Run, wanted: Filter, asked: list[str], kinds: dict[str, Any], shown: dict[str, str]
) -> Iterator[Columns]:
    logged, known = known_keys(run)
    held = set(known)
    # A row is there where any key has a value, so all of them are read unless the filter says that some have one.
    keys = [key for key in kinds if key in held]
    if wanted.steps is None or not keys:
        return
    made = not logged.issuperset(keys)
    for table, part in tables_of(run, Wanted(keys, wanted.steps, frozenset()), made=made):
        steps = table.steps[part]
        if not len(steps):
            continue
        told = {"run": run.id, "step": pyarrow.array(steps), "time": pyarrow.array(table.times_us()[part]).cast(TIME)}
        for key in asked:
            if key in table.columns:
                told[shown[key]] = _column(table, key, part, kinds[key])
        yield told


def _column(table: Table, key: str, part: slice, kind: Any) -> Any:
    """A column of a table as an array of its type. A text among numbers is null; `metrics` has it."""
    held = table.columns[key].value.dtype.kind
    values, hole = table.filled(key, None if held == "O" else 0)
    values, hole = values[part], None if hole is None else hole[part]
    if held != "O" and kind == pyarrow.float64():
        return pyarrow.array(values.astype(float, copy=False), mask=hole)
    holes = [False] * len(values) if hole is None else hole.tolist()
    cells = [None if is_hole or value is None else value for value, is_hole in zip(values.tolist(), holes)]
    if kind == pyarrow.float64():
        return pyarrow.array([number_of(value) for value in cells], kind)
    return pyarrow.array([None if value is None else _told(value) for value in cells], kind)


def _told(value: Any) -> str:
    """A value as a text; a whole float as an integer, because an integer that was read among floats is one."""
    return text_of(int(value) if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT_MAX else value)


# -- tables that were logged ---------------------------------------------------------------------------------------------


def _logged(catalog: Catalog, project: str, key: str) -> Relation | None:
    kinds: dict[str, set[str]] = {}
    for run in _runs_of(catalog, project):
        for item in last_tables(run, [key]):
            said = item.value.get("types")
            told = said if isinstance(said, list) else []
            for at, name in enumerate(item.columns):
                kinds.setdefault(text(str(name)), set()).add(str(told[at]) if at < len(told) else "")
    if not kinds:
        return None
    shown = dict(zip(kinds, distinct(kinds, _TABLE_FIRST)))
    types = {
        name: _CELLS.get(next(iter(found)), pyarrow.string()) if len(found) == 1 else pyarrow.string()
        for name, found in kinds.items()
    }
    schema = pyarrow.schema({**_TABLE_FIRST, **{shown[name]: kind for name, kind in types.items()}})

    def batches(run: Run) -> Iterator[Columns]:
        for item in last_tables(run, [key]):
            rows = item.rows
            if not rows:
                continue
            told: dict[str, Any] = {"run": run.id, "step": item.step}
            for name, cells in zip(item.columns, zip(*rows)):
                told[shown[text(str(name))]] = _cells(cells, types[text(str(name))])
            yield told

    def read(wanted: Filter, names: frozenset[str]) -> Iterator[Columns]:
        for run in _chosen(catalog, wanted, project):
            yield from catalog.reading(run, batches)

    return Relation(schema, read)


def _cells(cells: tuple[Any, ...], kind: Any) -> Any:
    if kind == pyarrow.float64():
        return pyarrow.array([number_of(cell) for cell in cells], kind)
    if kind == pyarrow.bool_():
        return pyarrow.array([cell if isinstance(cell, bool) else None for cell in cells], kind)
    return pyarrow.array([None if cell is None else text_of(cell) for cell in cells], kind)
