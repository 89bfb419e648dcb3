"""The relations that every store has: what their columns are, and how they are read (docs/sql.md#relations)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow

from ...artifacts.shelf import Shelf
from ...reader.digest import digest_if_told
from ...reader.media import MediaItem
from ...reader.run import Run
from .columns import COLUMNS
from .pruning import Filter
from .relations import Catalog, Columns, Relation, array_of, in_batches
from .streaming import TIME, Wanted, made_values_of, values_of
from .typed import column, texts

_ARROW = {
    "text": pyarrow.string(), "integer": pyarrow.int64(), "number": pyarrow.float64(), "time": TIME,
    "texts": pyarrow.list_(pyarrow.string()), "boolean": pyarrow.bool_(),
}  # fmt: skip


def _fields(relation: str) -> dict[str, Any]:
    """The columns of a relation with their types, without those whose fields the runs decide."""
    return {name: _ARROW[kind] for name, kind in COLUMNS[relation].items() if kind in _ARROW}


Make = Callable[[Catalog, bool], Relation]

# -- runs ----------------------------------------------------------------------------------------------------------------

_FACTS: dict[str, Callable[[Run], Any]] = {
    "size": lambda run: run.size_bytes,
    "step": lambda run: run.step_max if run.records else None,
    "host": lambda run: run.host or None,
}


def _runs(catalog: Catalog, with_summary: bool) -> Relation:
    maps = {"config": _maps(catalog.runs(), lambda run: run.config)}
    if with_summary:
        maps["summary"] = _maps(catalog.runs(), _summary)
    place = {run.directory: at for at, run in enumerate(catalog.runs())}
    fields = _fields("runs")
    # A query may ask twice (`narrowing`), and a run may end in between.
    known: dict[tuple[str, str], Any] = {}

    def fact(run: Run, name: str) -> Any:
        if (run.directory, name) not in known:
            known[run.directory, name] = _fact(catalog, run, name)
        return known[run.directory, name]

    def read(wanted: Filter, names: frozenset[str]) -> Iterator[Columns]:
        for runs in _some(catalog.chosen(wanted, "id")):
            told = {
                name: array_of([fact(run, name) for run in runs], kind)
                for name, kind in fields.items()
                if name in names
            }
            at = pyarrow.array([place[run.directory] for run in runs], pyarrow.int64())
            told.update((name, made.take(at)) for name, made in maps.items() if name in names)
            yield told

    return Relation(pyarrow.schema({**fields, **{name: made.type for name, made in maps.items()}}), read)


def _summary(run: Run) -> dict[str, Any]:
    """The summary, by what a list tells where it does."""
    told = digest_if_told(run)
    if told is None or not told.is_whole:
        return run.summary
    return {**{key: one.last for key, one in told.series.items() if one.is_summary}, **told.summary}


def _fact(catalog: Catalog, run: Run, name: str) -> Any:
    try:
        return _FACTS[name](run) if name in _FACTS else getattr(run, name)
    except Exception as error:  # Why so broad: a run's files are hostile input, and must not hide the others.
        catalog.note(f"{name} of run {run.id} cannot be read: {error}")
        return None


def _some(runs: Iterable[Run], count: int = 500) -> Iterator[list[Run]]:
    held: list[Run] = []
    for run in runs:
        held.append(run)
        if len(held) == count:
            yield held
            held = []
    if held:
        yield held


def _maps(runs: Sequence[Run], get: Callable[[Run], dict[str, Any]]) -> Any:
    """A map of each run as one column."""
    return column([_map(run, get) for run in runs])


def _map(run: Run, get: Callable[[Run], dict[str, Any]]) -> dict[str, Any]:
    try:
        return {key: _plain(value) for key, value in get(run).items()}
    except Exception:  # Why so broad: as above.
        return {}


def _plain(value: Any) -> Any:
    return value.as_plain() if isinstance(value, MediaItem) else value


# -- metrics and system --------------------------------------------------------------------------------------------------


def _values(relation: str, kind: str | None = None) -> Make:
    """`metrics`, or the same of what accompanies the training."""
    schema = pyarrow.schema(_fields(relation))

    def make(catalog: Catalog, _: bool) -> Relation:
        def read(wanted: Filter, names: frozenset[str]) -> Iterator[Columns]:
            if wanted.steps is None:
                return
            for run in catalog.chosen(wanted):
                yield from catalog.reading(run, lambda run: _values_of_run(run.of_kind(kind), wanted, names))

        return Relation(schema, read)

    return make


def _values_of_run(run: Run, wanted: Filter, names: frozenset[str]) -> Iterator[Columns]:
    logged, known = known_keys(run)
    keys = wanted.keys(known)
    if not keys or wanted.steps is None:
        return
    chosen = None if len(keys) == len(known) else keys
    asked = Wanted(chosen, wanted.steps, names, len(known))
    whose = {"run": run.id, "project": run.project}
    for told in (values_of if logged.issuperset(keys) else made_values_of)(run, asked):
        yield {**whose, **told}


def known_keys(run: Run) -> tuple[set[str], list[str]]:
    """The keys that were logged, and all that there are: with those that `define_metric` makes of them."""
    logged = run._logged_keys(False)
    return logged, sorted(logged.union(run._definitions().made_of(logged)))


# -- what else a run has -------------------------------------------------------------------------------------------------


def _by_run(relation: str, rows: Callable[[Run, Filter], Iterator[tuple[Any, ...]]]) -> Make:
    """A relation of rows that are made one by one, run after run; the first two columns are whose they are."""
    fields = _fields(relation)

    def make(catalog: Catalog, _: bool) -> Relation:
        def read(wanted: Filter, names: frozenset[str]) -> Iterator[Columns]:
            def batches(run: Run) -> Iterator[Columns]:
                return in_batches(((run.id, run.project, *row) for row in rows(run, wanted)), fields)

            for run in catalog.chosen(wanted):
                yield from catalog.reading(run, batches)

        return Relation(pyarrow.schema(fields), read)

    return make


def _log_rows(run: Run, _: Filter) -> Iterator[tuple[Any, ...]]:
    for line in run.logs():
        yield (
            line.time, line.source, line.level, line.level_name, line.text if not line.missed else line.why, line.step,
            line.rank, line.host, line.logger, line.error, line.where, line.missed,
        )  # fmt: skip


def _media_rows(run: Run, wanted: Filter) -> Iterator[tuple[Any, ...]]:
    for key in wanted.keys(list(run.media_keys())):
        for item in run.media(key):
            yield (
                key, item.step, item.time, item.index, item.kind, item.format, item.caption, item.size, item.is_stored,
                item.digest, item.file_name,
            )  # fmt: skip


def last_tables(run: Run, keys: Iterable[str] | None = None) -> Iterator[MediaItem]:
    """The last version of each table that was logged under some keys; None: all."""
    kinds = run.media_keys()
    for key in sorted(kinds) if keys is None else keys:
        if kinds.get(key) == "table":
            found = [item for item in run.media(key) if item.kind == "table"]
            if found:
                yield found[-1]


def _table_rows(run: Run, wanted: Filter) -> Iterator[tuple[Any, ...]]:
    for item in last_tables(run):
        said = item.value.get("nrows")
        name = f'"{f"{run.project}/{item.key}".replace(chr(34), chr(34) * 2)}"'
        yield item.key, name, item.step, said if type(said) is int else None, item.columns


def _gap_rows(run: Run, _: Filter) -> Iterator[tuple[Any, ...]]:
    for gap in run.gaps:
        yield (
            gap.stream, gap.count, gap.step_min, gap.step_max, gap.start, gap.end, gap.reason, gap.first, gap.last, gap.key
        )  # fmt: skip


def _artifacts(catalog: Catalog, _: bool) -> Relation:
    fields = _fields("artifacts")

    def rows() -> Iterator[tuple[Any, ...]]:
        shelf = Shelf(catalog.store.path, catalog.store._files)
        for name in shelf.names():
            for head in shelf.versions(name):
                yield (
                    head.name, head.version, head.type, head.run or None, head.project, head.created_ns / 1e9, head.size,
                    head.file_count, head.digest, head.aliases, head.tags, head.description,
                    texts([head.metadata])[0].as_py(),
                )  # fmt: skip

    def read(wanted: Filter, names: frozenset[str]) -> Iterator[Columns]:
        return in_batches(rows(), fields)

    return Relation(pyarrow.schema(fields), read)


# Name to what makes it; the second argument tells whether summaries are wanted.
RELATIONS: dict[str, Make] = {
    "runs": _runs,
    "metrics": _values("metrics"),
    "system": _values("system", "system"),
    "logs": _by_run("logs", _log_rows),
    "media": _by_run("media", _media_rows),
    "tables": _by_run("tables", _table_rows),
    "gaps": _by_run("gaps", _gap_rows),
    "artifacts": _artifacts,
}
