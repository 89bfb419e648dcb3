"""SQL over a store, by DuckDB: `sdk.sql(...)` and `stepd sql` (docs/sql.md).

A query gets a database in memory with nothing in it but views of the store's relations, each bound only if the query says its name,
and read when DuckDB scans it. It can change nothing: no file is opened, no extension is loaded and no setting changed by a query.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import Error, UsageError, install_hint
from ...limits import GIB
from .aside import Aside
from .narrowing import narrowed

if TYPE_CHECKING:
    from ...reader.store import Store
    from .relations import Catalog

# Limit: of what DuckDB keeps in memory; what is more goes into files beside the system's temporary ones.
MEMORY_BYTES = 2 * GIB
# Limit: rows of a batch of an answer, and of a row group of a file.
BATCH_ROWS = 1 << 17
_SHOWN_ROWS = 20
_SHOWN_CHARACTERS = 200
_HINT = "stepd sql   (lists relations and columns)"
# Quoted names and words, outside of texts and comments, and the signs behind which a relation may stand.
_COUNT = re.compile(r"\bcount\s*\(\s*\*\s*\)", re.IGNORECASE)
_TOKENS = re.compile(r"""'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/|"((?:[^"]|"")*)"|([^\W\d]\w*|[*,(])""", re.DOTALL)
_BEFORE_RELATION = frozenset("from join table describe desc summarize pivot unpivot".split())


def sql(
    query: str,
    parameters: Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    dir: str | os.PathLike[str] | None = None,
    store: Store | None = None,
    allow_files: bool = False,
    memory_bytes: int = MEMORY_BYTES,
) -> Answer:
    """Answers a query over the runs of a store, from its files alone; live runs too, as far as they are stored.

    The relations are `runs`, `metrics`, `system`, `logs`, `media`, `tables`, `gaps`, `artifacts`, each project by its name
    (`"digits"`: a row for each step, a column for each key) and each logged table by project and key (`"digits/predictions"`).

    Args:
        query: In DuckDB's SQL; of several statements the last one's rows are given.
        parameters: For `?` or `$name` in it.
        dir: The store; None: as `init` would choose.
        store: An opened one instead.
        allow_files: Whether it may read and write files (`copy … to 'x.parquet'`, `read_csv`).
        memory_bytes: What DuckDB may keep in memory before it uses temporary files.

    Raises:
        UsageError: DuckDB does not take the query.
        StoreError: There is no such store.
        Error: duckdb or pyarrow is not installed.
    """
    if store is None:
        from ...reader.store import open_store

        store = open_store(dir)
    database = Database(store, allow_files=allow_files, memory_bytes=memory_bytes)
    try:
        table = database.reader(query, parameters).read_all()
        return Answer(_with_integers(table), database.notes)
    except Exception as error:
        raise database.told(error, query) from None
    finally:
        database.close()


class Answer:
    """What a query gave, as an Arrow table in memory.

    Attributes:
        notes: What a reader should know besides: records that are missing, runs that could not be read.
    """

    def __init__(self, table: Any, notes: Sequence[str] = ()) -> None:
        self._table = table
        self.notes = list(notes)

    @property
    def columns(self) -> list[str]:
        """Their names."""
        return list(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._table.to_batches(max_chunksize=1024):
            yield from batch.to_pylist()

    def rows(self) -> list[dict[str, Any]]:
        """All rows as dicts; a column's name that comes twice is there once."""
        return list(self)

    def to_arrow(self) -> Any:
        """A pyarrow.Table."""
        return self._table

    def to_pandas(self) -> Any:
        """A pandas.DataFrame.

        Raises:
            Error: pandas is not installed.
        """
        from ...reader.frames import pandas_module

        pandas_module("to_pandas()")
        return self._table.to_pandas()

    def to_polars(self) -> Any:
        """A polars.DataFrame.

        Raises:
            Error: polars is not installed.
        """
        from ...reader.frames import polars_module

        return polars_module("to_polars()").from_arrow(self._table)

    def __repr__(self) -> str:
        from .shown import as_text

        return as_text(self.columns, self._head(), len(self), self.notes)

    def _repr_html_(self) -> str:
        from .shown import as_html

        return as_html(self.columns, self._head(), len(self), self.notes)

    def _head(self) -> list[list[Any]]:
        head = self._table.slice(0, _SHOWN_ROWS)
        return [list(row) for row in zip(*(column.to_pylist() for column in head.columns))]


class Rows:
    """The rows of an answer in Arrow's batches, to be read once.

    Attributes:
        schema: A pyarrow.Schema.
    """

    def __init__(self, reader: Any, aside: Aside) -> None:
        self._reader = reader
        self._aside = aside
        self.schema = reader.schema

    def __iter__(self) -> Iterator[Any]:
        while (batch := self._aside.call(self._next)) is not None:
            yield batch

    def _next(self) -> Any:
        try:
            return self._reader.read_next_batch()
        except StopIteration:
            return None

    def read_all(self) -> Any:
        """A pyarrow.Table of what is left."""
        return self._aside.call(self._reader.read_all)


class Database:
    """A database in memory over one store. `close` ends it; rows that it gave must be read before. Not thread-safe."""

    def __init__(self, store: Store, *, allow_files: bool = False, memory_bytes: int = MEMORY_BYTES) -> None:
        duckdb = _library("duckdb")
        _library("pyarrow")
        from .relations import Catalog

        self._catalog: Catalog = Catalog(store)
        self._views: dict[str, Any] = {}
        self._is_old = str(duckdb.__version__).startswith("1.")
        self._connection = duckdb.connect(":memory:")
        self._aside = Aside(self._connection.interrupt)
        self._spill = tempfile.TemporaryDirectory(prefix="stepd-sql-", ignore_cleanup_errors=True)
        try:
            self._lock(duckdb, allow_files, memory_bytes)
        except BaseException:
            self.close()
            raise

    def _lock(self, duckdb: Any, allow_files: bool, memory_bytes: int) -> None:
        """Makes the settings what they are to be, and no query's business."""
        self._set(
            memory_limit=f"{max(memory_bytes // 1024, 1)}KiB",
            temp_directory=self._spill.name,
            autoload_known_extensions=False,
            autoinstall_known_extensions=False,
            allow_community_extensions=False,
        )
        # Older releases have no such setting. It keeps the names of Python's variables from being relations.
        with contextlib.suppress(duckdb.Error):
            self._set(python_enable_replacements=False)
        if not allow_files:
            self._set(enable_external_access=False)
        self._set(lock_configuration=True)

    def _set(self, **settings: str | bool) -> None:
        for name, value in settings.items():
            self._connection.execute(f"set {name} = '{str(value).replace(chr(39), chr(39) * 2)}'")

    @property
    def notes(self) -> list[str]:
        """What there is to say of what was read so far."""
        return list(self._catalog.notes)

    @property
    def is_lost(self) -> bool:
        """An interrupt found DuckDB in what cannot be interrupted: its threads go on, and the connection stays open."""
        return self._aside.is_lost

    def close(self) -> None:
        """Ends it, and removes its temporary files."""
        self._aside.close()
        if not self.is_lost:
            self._connection.close()
        self._spill.cleanup()

    def reader(
        self, query: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None, batch_rows: int = BATCH_ROWS
    ) -> Rows:
        """The rows, which are made as they are read; no column of what has no rows to give.

        Args:
            batch_rows: How many at a time, at most.

        Raises:
            duckdb.Error: It does not take the query; `told` makes our error of it.
        """
        if not query.strip():
            raise UsageError("cannot answer the query: it is empty", hint=_HINT)
        return Rows(self._aside.call(self._reader, query, parameters, batch_rows), self._aside)

    def _reader(self, query: str, parameters: Sequence[Any] | Mapping[str, Any] | None, batch_rows: int) -> Any:
        self.bind(query)
        query = self._narrowed(query)
        found = self._connection.sql(query, params=parameters) if parameters else self._connection.sql(query)
        if found is None:  # a statement without rows
            import pyarrow

            return pyarrow.RecordBatchReader.from_batches(pyarrow.schema([]), iter(()))
        give = found.to_arrow_reader if hasattr(found, "to_arrow_reader") else found.fetch_arrow_reader
        return give(batch_rows)

    def _narrowed(self, query: str) -> str:
        """The query with the runs that it needs in it, where other relations are read by way of `runs`."""
        if "runs" not in self._views or len(self._views) < 2:
            return query
        columns = {name: frozenset(one.lower() for one in view.schema.names) for name, view in self._views.items()}
        try:
            return narrowed(query, columns, self._asked) or query
        except Exception:  # Why so broad: it only saves work, and each release of DuckDB has a syntax tree of its own.
            return query

    def _asked(self, query: str) -> list[Any]:
        return [row[0] for row in self._connection.execute(query).fetchall()]

    def bind(self, query: str) -> None:
        """Makes views of the relations whose names a query says."""
        from .known import RELATIONS
        from .wide import relation_of

        words, candidates = names_in(_COUNT.sub("count()", query))  # which asks for no column
        every = not words.isdisjoint(("show", "information_schema"))
        # Why not always: of a run that no list tells of, its summary is read from its columns.
        with_summary = every or not words.isdisjoint(("summary", "*", "columns")) or "select" not in words
        for name, make in RELATIONS.items():
            if every or name in words:
                self._bind(name, make(self._catalog, with_summary))
        for name in candidates:
            if name.lower() not in self._views and name.lower() not in RELATIONS:
                found = relation_of(self._catalog, name)
                if found is not None:
                    self._bind(name, found)

    def _bind(self, name: str, relation: Any) -> None:
        # Kept, because DuckDB holds no reference of its own in every release.
        self._views[name.lower()] = relation
        if not self._is_old:
            self._connection.register(name, relation)
            return
        # Why: to DuckDB NaN is larger than every number, and its releases before 2 leave `value > 1` to Arrow, to which it is not. A
        # product they do not hand on.
        import pyarrow

        self._connection.register(f"{name} as stored", relation)
        columns = [_name(one.name) for one in relation.schema]
        shown = [
            f"{column} * 1.0::double as {column}" if one.type == pyarrow.float64() else column
            for column, one in zip(columns, relation.schema)
        ]
        source = _name(f"{name} as stored")
        self._connection.execute(f"create or replace view {_name(name)} as select {', '.join(shown)} from {source}")

    def told(self, error: Exception, query: str) -> Exception:
        """What DuckDB said, in a line or two, with the nearest names; anything else as it is."""
        duckdb = _library("duckdb")
        if not isinstance(error, duckdb.Error):
            return error
        lines = [line.strip() for line in str(error).split("\n") if line.strip()]
        place = next((at for at, line in enumerate(lines) if line.startswith("LINE ")), len(lines))
        # Of an operator that does not fit there are dozens of others.
        head = " ".join(lines[:place]).partition(" Candidate functions:")[0]
        where = f" in {lines[place].partition(':')[2].strip()[:_SHOWN_CHARACTERS]!r}" if place < len(lines) else ""
        missing = re.search(r"Table with name (.+?) does not exist", head)
        hint = _HINT if isinstance(error, (duckdb.CatalogException, duckdb.BinderException)) else None
        if isinstance(error, duckdb.PermissionException) and "file system" in head:
            hint = "--allow-files (allow_files=True in Python) lets a query read and write files"
        if missing:
            from .contents import quoted
            from .wide import nearest_names

            near = nearest_names(self._catalog, missing[1].strip('"'))
            head, where = head[: missing.end()], ""
            hint = f"from {quoted(near[0])}" if near else hint
        return UsageError(f"cannot answer the query: {head}{where}", hint=hint)


def _with_integers(table: Any) -> Any:
    """The table with what DuckDB sums as a HUGEINT, to Arrow a decimal, as int64 where that holds it."""
    import pyarrow

    for place, field in enumerate(table.schema):
        if pyarrow.types.is_decimal(field.type) and field.type.scale == 0:
            with contextlib.suppress(pyarrow.ArrowInvalid):
                table = table.set_column(place, field.name, table.column(place).cast(pyarrow.int64()))
    return table


def names_in(query: str) -> tuple[set[str], list[str]]:
    """All words of a query in lower case, and those at whose place a relation may stand, as they are written."""
    words: set[str] = set()
    candidates: dict[str, None] = {}
    before, is_after_from = "", False
    for quoted, plain in _TOKENS.findall(query):
        name, low = quoted.replace('""', '"') or plain, plain.lower()
        if not name:
            continue
        words.add(name.lower())
        if low not in ("", "(", ",", "*", *_BEFORE_RELATION) or quoted:
            if before in _BEFORE_RELATION or (before == "," and is_after_from):
                candidates[name] = None
        if low != "(":
            before = low
        is_after_from = is_after_from or low == "from"
    return words, list(candidates)


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _library(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise Error(f"cannot answer SQL: {name} is not installed here", hint=install_hint("duckdb pyarrow")) from None
