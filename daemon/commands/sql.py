"""`stepd sql`: a query over the store, answered by DuckDB (docs/sql.md)."""

from __future__ import annotations

import csv
import decimal
import itertools
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any

import click

from daemon.commands.cells import cells, cut
from daemon.commands.common import can_unicode, open_store_of, passing, print_json, to_json, write_table
from daemon.commands.export import Screen
from daemon.commands.output import complete_file
from daemon.commands.service import clean, directory_option
from sdk import clock
from sdk.errors import UsageError
from sdk.query.sql.shown import interval_text, is_interval
from sdk.reader import Store
from sdk.settings import parse_bytes

# What `daemon.cli.main` calls the program; a command that is called from Python has another name.
PROGRAM = "stepd"
_WAITING = "asking DuckDB"
_LIMIT = 40
# So that the first rows are there before others are read.
_TABLE_BATCH_ROWS = 2048
# A column may be cut to so many characters before others are left out.
_COLUMN_CHARACTERS_MIN = 10
# Limit: rows behind the last one that is shown are counted for so long.
_COUNTING_SECONDS = 0.5
# Cells that hold nothing, also those of a list or a struct.
_EMPTY = ("", "[]", "{}")
_ENDINGS = (".parquet", ".csv", ".json", ".jsonl")


@click.command("sql")
@click.argument("query", required=False)
@click.option("-f", "--file", "file", type=click.File("r", encoding="utf-8"), help="The query is in FILE.")
@click.option("--limit", default=_LIMIT, show_default=True, metavar="N", help="Show the first N rows; 0: all.")
@click.option("--all", "every", is_flag=True, help="Show every column: empty ones, and those that do not fit.")
@click.option("--json", "form", flag_value="json", help="All rows as one JSON document.")
@click.option("--csv", "form", flag_value="csv", help="All rows as CSV.")
@click.option("-o", "--output", metavar="FILE", help="Write all rows into FILE: .parquet, .csv, .json or .jsonl.")
@click.option(
    "--allow-files", is_flag=True, help="The query may read and write files: copy … to 'x.parquet', read_csv."
)
@click.option("--memory", default="2G", show_default=True, metavar="SIZE", help="What DuckDB may keep in memory.")
@directory_option
@click.pass_context
def command(
    ctx: click.Context, query: str | None, file: IO[str] | None, limit: int, every: bool, form: str | None,
    output: str | None, allow_files: bool, memory: str, directory: str | None,
) -> None:  # fmt: skip
    r"""Answers QUERY (- reads it from standard input); without one, lists relations and columns.

    stepd sql "select id, config.lr, summary.\"val/acc\" from runs order by 3 desc limit 5"
    """
    store = open_store_of(ctx, directory)
    text = _query(ctx, query, file)
    if text is None:
        _list(store, form == "json")
        return
    if output is not None and os.path.splitext(output)[1] not in _ENDINGS:
        raise UsageError(f"cannot write {output!r}: expected a name that ends in {', '.join(_ENDINGS)}")
    try:
        memory_bytes = parse_bytes(memory)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--memory") from error
    with passing(_WAITING):  # half of the time is to import what answers
        if ctx.find_root().info_name == PROGRAM:
            _import_without_pandas()
        from sdk.query.sql.query import BATCH_ROWS, Database

        database = Database(store, allow_files=allow_files, memory_bytes=memory_bytes)
    try:
        with passing(_WAITING):
            reader = database.reader(text, batch_rows=BATCH_ROWS if form or output else _TABLE_BATCH_ROWS)
        if output is not None:
            _write_file(reader, output)
        elif form is not None:
            _write(reader, form, Screen(sys.stdout) if sys.stdout.isatty() else sys.stdout)
        elif reader.schema.names:
            _show(reader, limit, every or not sys.stdout.isatty())
    except Exception as error:
        raise database.told(error, text) from None
    finally:
        notes = database.notes
        database.close()
        if database.is_lost:
            os._exit(130)  # what DuckDB still computes must not be waited for
        for note in notes:
            click.echo(clean(f"stepd: {note}"), err=True)


def _import_without_pandas() -> None:
    """Imports pyarrow's data sets, which import pandas where it is installed: 0.2 s, and nothing here needs it.

    For a process of our own only: pyarrow then holds pandas for missing until the process ends.
    """

    class Missing:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            if name == "pandas":
                raise ModuleNotFoundError(f"{name} is not wanted here")

    if "pandas" in sys.modules:
        return
    sys.meta_path.insert(0, Missing)
    try:
        import pyarrow.dataset  # noqa: F401
    except ImportError:
        pass  # `Database` says what is missing
    finally:
        sys.meta_path.remove(Missing)


def _query(ctx: click.Context, query: str | None, file: IO[str] | None) -> str | None:
    if file is not None and query is not None:
        raise click.UsageError("expected a query or -f FILE, got both", ctx)
    source = sys.stdin if query == "-" else file
    return query if source is None else source.read()


# -- a table -------------------------------------------------------------------------------------------------------------


def _show(reader: Any, limit: int, every: bool) -> None:
    """The first rows as a table; how many more there are is counted behind it, so that nobody waits for that.

    Columns in which none of these rows has anything, and those that do not fit, are named below it, unless `every` one is wanted.
    """
    from sdk.query.sql.shown import cell_text

    names = list(reader.schema.names)
    rows, more = _head(reader, limit)
    texts = [[clean(cell_text(cell)) for cell in row] for row in rows]
    everything = list(range(len(names)))
    full = everything if every else [at for at in everything if any(row[at] not in _EMPTY for row in texts)]
    full = full or everything
    places = full if every else _fitting([clean(name) for name in names], texts, full)
    right = [at for at, place in enumerate(places) if _is_number(reader.schema.types[place])]
    write_table([clean(names[place]) for place in places], [[row[place] for place in places] for row in texts], right)
    dots = "…" if can_unicode() else "..."
    room = shutil.get_terminal_size().columns
    if left_out := [names[place] for place in full if place not in places]:
        told = f"+ {len(left_out)} more column{'' if len(left_out) == 1 else 's'}: {clean(', '.join(left_out))}"
        click.echo(cut(told, room, "…" if can_unicode() else "~"))
    if empty := [names[place] for place in everything if place not in full]:
        click.echo(cut(f"empty (--all shows them): {clean(', '.join(empty))}", room, "…" if can_unicode() else "~"))
    count, is_all = _rest(reader, more)
    if count:
        said = f"{count:,} more rows" if is_all else f"more than {count:,} more rows"
        click.echo(f"{dots} {said}: --limit 0, --csv, -o FILE")


def _head(reader: Any, limit: int) -> tuple[list[list[Any]], int]:
    """The first rows, and how many more were read with them."""
    rows: list[list[Any]] = []
    for batch in reader:
        wanted = batch.num_rows if limit <= 0 else min(batch.num_rows, limit - len(rows))
        head = batch.slice(0, wanted)
        rows += [list(row) for row in zip(*(column.to_pylist() for column in head.columns))]
        if wanted < batch.num_rows or len(rows) == limit:
            return rows, batch.num_rows - wanted
    return rows, 0


def _rest(reader: Any, count: int) -> tuple[int, bool]:
    """How many rows there are behind those that were shown, and whether these are all."""
    sys.stdout.flush()
    end = clock.monotonic() + _COUNTING_SECONDS
    for batch in reader:
        count += batch.num_rows
        if clock.monotonic() > end:
            return count, False
    return count, True


def _fitting(names: Sequence[str], rows: Sequence[Sequence[str]], places: Sequence[int]) -> list[int]:
    """Those of some columns that fit beside one another, each cut no further than it may be."""
    room = shutil.get_terminal_size().columns
    found: list[int] = []
    used = 0
    for place in places:
        name = names[place]
        widest = max([cells(name), *(cells(row[place]) for row in rows)])
        least = min(widest, max(_COLUMN_CHARACTERS_MIN, min(cells(name), 2 * _COLUMN_CHARACTERS_MIN)))
        if found and used + 2 + least > room:
            break
        used += least + (2 if found else 0)
        found.append(place)
    return found


def _is_number(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))


# -- files and documents -------------------------------------------------------------------------------------------------


def _rows(reader: Any) -> Iterator[list[Any]]:
    for batch in reader:
        columns = [column.to_pylist() for column in batch.columns]
        yield from (list(map(_plain, row)) for row in zip(*columns))


def _plain(value: Any) -> Any:
    """A cell as JSON and CSV have it: what DuckDB sums as a HUGEINT is a number, a difference of times a text."""
    if is_interval(value):
        return interval_text(value)
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value


def _write(reader: Any, form: str, file: Any) -> None:
    names = list(reader.schema.names)
    if form == "csv":
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for row in _rows(reader):
            writer.writerow([to_json(cell) if isinstance(cell, (list, dict)) else cell for cell in row])
        return
    is_document = form == "json"
    before = "[" if is_document else ""
    for row in _rows(reader):
        file.write(before + to_json(dict(zip(names, row))))
        before = ",\n " if is_document else "\n"
    file.write("]\n" if is_document and before != "[" else "[]\n" if is_document else before and "\n")


def _write_file(reader: Any, path: str) -> None:
    form = os.path.splitext(path)[1][1:]
    try:
        with complete_file(path) as file:
            if form == "parquet":
                count = _write_parquet(reader, file)
            else:
                counted = _Counted(reader)
                _write(counted, form, file)
                count = counted.count
    except OSError as error:
        raise click.FileError(clean(path), f"cannot write the answer: {error.strerror or error}") from error
    click.echo(clean(f"wrote {count:,} rows to {path}"), err=True)


class _Counted:
    """A reader that counts the rows it gives."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self.schema = reader.schema
        self.count = 0

    def __iter__(self) -> Iterator[Any]:
        for batch in self._reader:
            self.count += batch.num_rows
            yield batch


def _parquet_type(kind: Any) -> Any:
    import pyarrow

    return pyarrow.string() if kind == pyarrow.month_day_nano_interval() else kind


def _for_parquet(batch: Any, schema: Any) -> Any:
    """The batch with differences of times as texts: Parquet has no type for them that is read elsewhere."""
    import pyarrow

    columns = [
        column if column.type == kind else pyarrow.array(map(_plain, column.to_pylist()), kind)
        for column, kind in zip(batch.columns, schema.types)
    ]
    return pyarrow.RecordBatch.from_arrays(columns, schema=schema)


def _write_parquet(reader: Any, file: Any) -> int:
    import pyarrow.parquet

    from sdk.query.sql.query import BATCH_ROWS

    count = 0
    held: list[Any] = []
    schema = pyarrow.schema([(field.name, _parquet_type(field.type)) for field in reader.schema])
    with pyarrow.parquet.ParquetWriter(file.buffer, schema, compression="zstd") as writer:
        # Each write is a row group, and DuckDB's batches may be short.
        for batch in itertools.chain((_for_parquet(one, schema) for one in reader), [None]):
            rows = sum(one.num_rows for one in held)
            if held and (batch is None or rows >= BATCH_ROWS):
                writer.write_table(pyarrow.Table.from_batches(held))
                count += rows
                held = []
            held.append(batch)
    return count


# -- what there is -------------------------------------------------------------------------------------------------------


def _list(store: Store, as_json: bool) -> None:
    """The relations with their columns, and those that the store's own names make."""
    from sdk.query.sql.contents import contents

    found = contents(store)
    if as_json:
        print_json([told._asdict() for told in found])
        return
    for told in found:
        some = "" if told.runs is None else f"  {told.runs:,} run{'' if told.runs == 1 else 's'}, a row for each step"
        click.echo(click.style(clean(told.name), bold=True) + some)
        columns = clean(", ".join(told.columns))
        click.echo(click.wrap_text(columns if can_unicode() else columns.replace("…", "..."), _width(), "  ", "  "))
    click.echo("Tables that were logged: select relation, rows from tables")


def _width() -> int:
    return max(shutil.get_terminal_size().columns, 40)
