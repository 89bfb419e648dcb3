"""`stepd export`: all rows of a run as JSON lines or CSV, and what was logged beside numbers as files."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterable, Iterator
from typing import IO, Any

import click

from daemon.commands.common import open_store_of, to_json
from daemon.commands.media_files import PATH, MediaFiles
from daemon.commands.output import complete_file
from daemon.commands.service import clean, clean_lines, directory_option
from sdk.reader import Run
from sdk.reader.join import LOGGED, STEP, TIMESTAMP

_CSV_TAKES_NUL = sys.version_info >= (3, 11)
_QUOTED = re.compile(r"[,\"\r\n]")
_PROGRESS_RECORDS_MIN = 50_000


@click.command("export")
@click.argument("run", default="latest")
@click.option("--format", "kind", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
@click.option("-o", "--output", default="-", metavar="FILE", help="Default: standard output.")
@click.option("--no-media", is_flag=True, help="Write no files of images, tables and the like.")
@directory_option
@click.pass_context
def command(ctx: click.Context, run: str, kind: str, output: str, no_media: bool, directory: str | None) -> None:
    """Every row once, in step order. Rows of several processes are joined by step, rank 0 first.

    jsonl: floats come back with the same bits; NaN and Infinity are written as such. csv: one column per key, nothing
    where a row does not hold it, nested values as JSON. Images, videos, tables and the like are written beside FILE, into
    NAME_media; a row holds their path. To standard output they are only described.
    """
    found = open_store_of(ctx, directory).run(run)
    if output == "-":
        with click.open_file("-", "w", encoding="utf-8", errors="surrogatepass") as file:
            _write(found, kind, found.rows(), Screen(file) if _is_terminal() else file)
        return
    try:
        with complete_file(output) as file, MediaFiles(output) as media:
            rows = _with_progress(found)
            count = _write(found, kind, rows if no_media else map(media.with_paths, rows), file)
    except (OSError, ValueError) as error:
        raise click.FileError(clean(output), f"cannot write the export: {getattr(error, 'strerror', error)}") from error
    click.echo(clean(f"exported {count:,} rows of {found.id} to {output}"), err=True)
    if media.count:
        click.echo(clean(f"and {media.count:,} media files into {media.directory}"), err=True)
    if media.failed:
        click.echo(clean(f"stepd: {media.failed:,} media could not be written; their rows say why"), err=True)
    others = len(found.streams) - 1
    if others > 0:
        click.echo(
            f"stepd: {others} other stream{'s' if others > 1 else ''} joined by step; where two hold a key, the first one's "
            "value is given. All of them: sdk.open_store().run(…).series(key, stream='all')",
            err=True,
        )


class Screen:
    """A file that somebody looks at: nothing that was logged steers it."""

    def __init__(self, file: IO[Any]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return int(self._file.write(clean_lines(text)))


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _write(run: Run, kind: str, rows: Iterable[dict[str, Any]], file: Any) -> int:
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


def _write_lines(rows: Iterable[dict[str, Any]], file: Any) -> int:
    count = 0
    for row in rows:
        file.write(to_json(row) + "\n")
        count += 1
    return count


def _write_csv(run: Run, rows: Iterable[dict[str, Any]], file: Any) -> int:
    keys = run.all_keys()
    columns = [STEP, TIMESTAMP, *(LOGGED.get(key, key) for key in keys)]
    write = (
        csv.writer(file, lineterminator="\n").writerow if _CSV_TAKES_NUL else lambda cells: file.write(csv_line(cells))
    )
    write(columns)
    count = 0
    for row in rows:
        write([_cell(row.get(column)) for column in columns])
        count += 1
    return count


def csv_line(cells: Iterable[Any]) -> str:
    """One line as csv writes it from Python 3.11 on; the csv of 3.10 refuses NUL."""
    texts = ("" if cell is None else repr(cell) if isinstance(cell, float) else str(cell) for cell in cells)
    return ",".join(['"' + t.replace('"', '""') + '"' if _QUOTED.search(t) else t for t in texts]) + "\n"


def _cell(value: Any) -> Any:
    """What csv writes of a value: numbers with all their digits, null as nothing, the rest as JSON."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, dict) and isinstance(value.get(PATH), str):
        return value[PATH]  # of one image or the like, whose caption and so on are in the other formats
    return to_json(value)
