"""A relation of SQL: columns that are read when DuckDB scans them, and only what the scan's filter and columns leave.

DuckDB asks an object that is an Arrow dataset for a scanner of some columns and a filter, and leaves that filter to it. So a relation
is a dataset: it prunes by the filter what it reads (`pruning`), and applies it to what it has read. Each scan has runs of its own,
because DuckDB may pull two scans of one query from two threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyarrow
import pyarrow.dataset

from ...reader.run import Run
from ...reader.store import Store
from .pruning import Filter, text

# Limit: rows of a batch that are made one by one in Python.
_ROWS_AT_A_TIME = 2048

# Columns by name: an Arrow array, or one value for all rows.
Columns = Mapping[str, Any]


class Relation(pyarrow.dataset.Dataset):  # type: ignore[misc]
    """Columns with types, and a function that gives them.

    Args:
        schema: Of all columns.
        read: Gets the filter and the names of the columns that are needed; gives batches of at least these columns, and of more rows
            than pass the filter if it likes.
    """

    def __init__(self, schema: Any, read: Callable[[Filter, frozenset[str]], Iterator[Columns]]) -> None:
        # Why not the class's own: there is no data set of Arrow's behind it, and it refuses to be called.
        self._told = schema
        self._read = read

    @property
    def schema(self) -> Any:
        return self._told

    def scanner(self, columns: list[str] | None = None, filter: Any = None, **_: Any) -> _Scanner:
        """As of any data set; what else may be asked for is about files and threads."""
        return _Scanner(self, columns, Filter(filter, self._told))


class _Scanner:
    """One scan; DuckDB asks for its reader once, or for its schema."""

    def __init__(self, relation: Relation, columns: list[str] | None, wanted: Filter) -> None:
        self._relation = relation
        self._filter = wanted
        schema = relation.schema
        self._names = schema.names if columns is None else list(columns)
        self.projected_schema = pyarrow.schema([schema.field(name) for name in self._names])

    def to_reader(self) -> Any:
        return pyarrow.RecordBatchReader.from_batches(self.projected_schema, self._batches())

    def _batches(self) -> Iterator[Any]:
        schema, expression = self._relation.schema, self._filter.expression
        needed = [name for name in schema.names if name in self._names or self._filter.names(name)]
        # What has no column at all is still counted.
        needed = needed or schema.names[:1]
        held = pyarrow.schema([schema.field(name) for name in needed])
        for columns in self._relation._read(self._filter, frozenset(needed)):
            table = pyarrow.Table.from_arrays(_arrays(columns, held), schema=held)
            if expression is not None:
                table = table.filter(expression)
            if table.num_rows:
                yield from table.select(self._names).to_batches()


def _arrays(columns: Columns, schema: Any) -> list[Any]:
    """The columns of a schema; what is not there is null."""
    count = next(len(one) for one in columns.values() if isinstance(one, (pyarrow.Array, pyarrow.ChunkedArray)))
    made = []
    for field in schema:
        one = columns.get(field.name)
        if one is None:
            made.append(pyarrow.nulls(count, field.type))
        elif isinstance(one, (pyarrow.Array, pyarrow.ChunkedArray)):
            made.append(one)
        else:
            made.append(pyarrow.repeat(pyarrow.scalar(one, field.type), count))
    return made


def in_batches(rows: Iterable[tuple[Any, ...]], fields: Mapping[str, Any]) -> Iterator[Columns]:
    """Rows that are made one by one, as columns of some types."""
    held: list[tuple[Any, ...]] = []
    for row in rows:
        held.append(row)
        if len(held) == _ROWS_AT_A_TIME:
            yield columns_of(held, fields)
            held = []
    if held:
        yield columns_of(held, fields)


def columns_of(rows: list[tuple[Any, ...]], fields: Mapping[str, Any]) -> Columns:
    """Rows as columns of some types."""
    return {name: array_of(cells, kind) for (name, kind), cells in zip(fields.items(), zip(*rows))}


def array_of(cells: Iterable[Any], kind: Any) -> Any:
    """Cells as an array; times are Unix seconds, texts may be any."""
    if kind == pyarrow.string():
        return pyarrow.array([one if one is None else text(str(one)) for one in cells], kind)
    if pyarrow.types.is_timestamp(kind):
        return pyarrow.array([_microseconds(one) for one in cells], pyarrow.int64()).cast(kind)
    if pyarrow.types.is_list(kind):
        return pyarrow.array([one if one is None else [text(str(inner)) for inner in one] for one in cells], kind)
    if kind == pyarrow.int64():
        return pyarrow.array([one if one is not None and -(2**63) <= one < 2**63 else None for one in cells], kind)
    return pyarrow.array(list(cells), kind)


def _microseconds(seconds: float | None) -> int | None:
    """A time as Arrow has it; None of one that is none, which a hostile file may hold."""
    return round(seconds * 1e6) if seconds is not None and 0 < seconds < 1e11 else None


class Catalog:
    """The runs of a store while one query is answered, and what it has to say besides its rows.

    Attributes:
        store: Where they are.
        notes: What a reader should know of the answer: runs that could not be read, records that are missing.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.notes: list[str] = []
        self._lock = threading.Lock()
        self._all: list[Run] | None = None

    def runs(self) -> list[Run]:
        """All runs, the newest first. Of one that is over only what a list tells, until somebody asks for more."""
        with self._lock:
            if self._all is None:
                self._all = self.store.runs()
            return self._all

    def chosen(self, wanted: Filter, name: str = "run") -> Iterator[Run]:
        """The runs that pass as far as their id and project go, each for the caller alone.

        Args:
            name: What the relation calls a run's id.
        """
        named = self._named(wanted, name)
        found = self.runs() if named is None else named
        if wanted.expression is not None:
            run_field, project = pyarrow.dataset.field(name), pyarrow.dataset.field("project")
            facts = [(run_field == text(run.id)) & (project == text(run.project)) for run in found]
            found = [found[place] for place in wanted.admitted(facts)]
        for run in found:
            if named is not None:
                yield run
                continue
            try:
                yield Run(
                    run.directory, files=run._files, alive=run._alive, now_ns=run._now_ns, card=run.card, look=run.look
                )
            except Exception as error:  # Why so broad: a run's files are hostile input, and must not hide the others.
                self.note(f"run {run.id} cannot be read: {error}")

    def _named(self, wanted: Filter, name: str) -> list[Run] | None:
        """The few runs that a filter names, opened without looking at the others; None where it does not name them."""
        if self._all is not None or not wanted.names(name):
            return None
        directories = [directory for directory, _, _ in self.store._directories()]
        # The name of a directory is the id of its run, but for ids with odd letters.
        if any("%" in directory or "~" in directory for directory in directories):
            return None
        field = pyarrow.dataset.field(name)
        kept = wanted.admitted([field == directory for directory in directories])
        if len(kept) > _NAMED_MAX:
            return None
        held = [directories[place] for place in kept if self.store._holds_segments(directories[place])]
        return [self.store._open(directory) for directory in held]

    def note(self, told: str) -> None:
        with self._lock:
            if told not in self.notes and len(self.notes) < _NOTES_MAX:
                self.notes.append(told)

    def reading(self, run: Run, batches: Callable[[Run], Iterator[Columns]]) -> Iterator[Columns]:
        """What is read of a run; what goes wrong is noted and does not stop the others, nor does a gap stay silent."""
        try:
            yield from batches(run)
            count = sum(gap.count for gap in run._all_gaps())
            if count:
                self.note(f"{count:,} records of run {run.id} are missing: select * from gaps where run = '{run.id}'")
        except Exception as error:  # as in `chosen`
            self.note(f"run {run.id} cannot be read to its end: {error}")


# Limit: runs that are opened because a filter names them; of more the list is read, which tells of all in 0.1 ms each.
_NAMED_MAX = 100
# Limit: a store of 100,000 damaged runs must not fill a screen.
_NOTES_MAX = 20
