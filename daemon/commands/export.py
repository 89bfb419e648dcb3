"""`stepd export`: all rows of a run as JSON lines or CSV."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator
from typing import IO, Any

import click

from daemon.commands.common import open_store_of, to_json
from daemon.commands.service import directory_option
from sdk.reader import Run

_PROGRESS_RECORDS_MIN = 50_000
_OUR_COLUMNS = ("_step", "_timestamp")


@click.command("export")
@click.argument("run", default="latest")
@click.option("--format", "kind", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
@click.option("-o", "--output", default="-", metavar="FILE", help="Default: standard output.")
@directory_option
@click.pass_context
def command(ctx: click.Context, run: str, kind: str, output: str, directory: str | None) -> None:
    """Every row once, in step order. Rows of several processes are joined by step, rank 0 first.

    jsonl: floats come back with the same bits; NaN and Infinity are written as such. csv: one column per key, nothing
    where a row does not hold it, nested values as JSON.
    """
    found = open_store_of(ctx, directory).run(run)
    if output == "-":
        with click.open_file("-", "w", encoding="utf-8", errors="surrogatepass") as file:
            _write(found, kind, found.rows(), file)
        return
    try:
        # The file appears when it is complete, by rename: nobody reads half an export.
        with click.open_file(output, "w", encoding="utf-8", errors="surrogatepass", atomic=True) as file:
            count = _write(found, kind, _with_progress(found), file)
    except OSError as error:
        raise click.FileError(output, f"cannot write the export: {error.strerror}") from error
    click.echo(f"exported {count:,} rows of {found.id} to {output}", err=True)
    others = len(found.streams) - 1
    if others > 0:
        click.echo(
            f"stepd: {others} other stream{'s' if others > 1 else ''} joined by step; where two hold a key, the first one's "
            "value is given. All of them: sdk.open_store().run(…).series(key, stream='all')",
            err=True,
        )


def _write(run: Run, kind: str, rows: Iterable[dict[str, Any]], file: IO[Any]) -> int:
    return _write_csv(run, rows, file) if kind == "csv" else _write_lines(rows, file)


def _with_progress(run: Run) -> Iterator[dict[str, Any]]:
    if run.records < _PROGRESS_RECORDS_MIN or not sys.stderr.isatty():
        yield from run.rows()
        return
    with click.progressbar(length=run.step_max + 1, label=f"exporting {run.id}", file=sys.stderr) as bar:
        done = 0
        for count, row in enumerate(run.rows()):
            yield row
            if count % 4096 == 0:
                bar.update(row["_step"] + 1 - done)
                done = row["_step"] + 1


def _write_lines(rows: Iterable[dict[str, Any]], file: IO[Any]) -> int:
    count = 0
    for row in rows:
        file.write(to_json(row) + "\n")
        count += 1
    return count


def _write_csv(run: Run, rows: Iterable[dict[str, Any]], file: IO[Any]) -> int:
    keys = run.all_keys()
    columns = [*_OUR_COLUMNS, *(key for key in keys if key not in _OUR_COLUMNS)]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    count = 0
    for row in rows:
        writer.writerow([_cell(row.get(column)) for column in columns])
        count += 1
    return count


def _cell(value: Any) -> Any:
    """What csv writes of a value: numbers with all their digits, null as nothing, the rest as JSON."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return to_json(value)
