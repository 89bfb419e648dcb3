"""What there is to ask of a store by SQL: its relations and their columns, those that its own names make among them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ...reader.digest import digest_if_told
from .columns import COLUMNS

if TYPE_CHECKING:
    from ...reader.run import Run
    from ...reader.store import Store

# Limit: the newest runs of a store or a project, whose keys are looked for.
_RUNS_MAX = 50
_NAMES_MAX = 40
_DEPTH_MAX = 4
# Words that DuckDB does not take as a name without quotes.
_RESERVED = frozenset("all and as case desc from group in not null or order select table to using where with".split())


class Told(NamedTuple):
    """A relation, as a query writes it.

    Attributes:
        name: With quotes where it needs them.
        columns: Likewise.
        runs: How many runs a project has; None of the fixed ones.
    """

    name: str
    columns: list[str]
    runs: int | None = None


def contents(store: Store) -> list[Told]:
    """The relations of a store: the fixed ones, then its projects. Of what runs decide, what the newest ones have."""
    runs = store.runs()
    found = []
    for relation, columns in COLUMNS.items():
        names = [quoted(name) for name, kind in columns.items() if kind != "struct"]
        if relation == "runs":
            names += _first(name for run in runs[:_RUNS_MAX] for name in _dotted("config", run.config))
            names += _first(f"summary.{quoted(key)}" for run in runs[:_RUNS_MAX] for key in _keys(run))
        found.append(Told(relation, names))
    projects: dict[str, list[Run]] = {}
    for run in runs:
        projects.setdefault(run.project, []).append(run)
    for project, held in sorted(projects.items()):
        keys = _first(quoted(key) for run in held[:_RUNS_MAX] for key in _keys(run))
        found.append(Told(quoted(project), ["run", "step", "time", *keys], len(held)))
    return found


def quoted(name: str) -> str:
    """A name as a query writes it."""
    is_plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and name.lower() not in _RESERVED
    return name if is_plain else '"' + name.replace('"', '""') + '"'


def _keys(run: Run) -> list[str]:
    """The keys of a run, by what a list tells where it does; else by a few of its blocks."""
    told = digest_if_told(run)
    return list(told.series) if told is not None else run.keys(quick=True)


def _dotted(path: str, value: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(value, dict) and value and depth < _DEPTH_MAX:
        for name, inner in value.items():
            yield from _dotted(f"{path}.{quoted(str(name))}", inner, depth + 1)
    elif depth:
        yield path


def _first(names: Iterable[str]) -> list[str]:
    """The first of some names, each once; `…` where there are more."""
    found: dict[str, None] = {}
    for name in names:
        if len(found) == _NAMES_MAX and name not in found:
            return [*found, "…"]
        found[name] = None
    return list(found)
