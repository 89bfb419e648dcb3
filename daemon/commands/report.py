"""`stepd report`: runs as one file that opens without a network and can be mailed."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from daemon.commands.output import write_file
from daemon.commands.service import clean, directory_option, size, store_path
from sdk.settings import parse_bytes

if TYPE_CHECKING:
    from sdk.reader import Run, Store


def _bytes_of(_: click.Context, __: click.Parameter, value: str) -> int:
    try:
        return parse_bytes(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command("report")
@click.argument("words", nargs=-1, metavar="[RUN]...")
@click.option(
    "-o", "--output", metavar="FILE", default="report.html", help="Where to; default: report.html. -: standard output."
)
@click.option(
    "-w", "--where", metavar="EXPR", help="Runs that this holds for: 'config.lr < 1e-3 and state = finished'."
)
@click.option(
    "-k", "--keys", multiple=True, metavar="KEY", help='Only this key, or pattern of keys ("val/*"); several times.'
)
@click.option("--points", type=click.IntRange(20, 100_000), default=2000, help="Of each line, at most; default: 2000.")
@click.option(
    "--media", type=click.IntRange(0), default=4, metavar="N", help="Newest values of each key with media; default: 4."
)
@click.option("--max-size", callback=_bytes_of, default="5MB", metavar="SIZE", help="Of the file; default: 5MB.")
@click.option("--title", help="Default: made of the runs' names.")
@click.option("--json", "as_json", is_flag=True, help="What was written, as one JSON document.")
@directory_option
@click.pass_context
def command(
    ctx: click.Context, words: tuple[str, ...], output: str, where: str | None, keys: tuple[str, ...], points: int, media: int,
    max_size: int, title: str | None, as_json: bool, directory: str | None,
) -> None:  # fmt: skip
    """One HTML file of runs: config, summary, charts that zoom, media, tables, console, environment.

    It holds everything it shows, so it opens offline, also where scripts may not run. No RUN means the latest one.
    """
    path = None if output == "-" else _target(output)
    _tell(f"writing {clean(output)}")
    from sdk.reader import Store

    try:
        runs = _chosen(Store(store_path(ctx, directory)), words, where)
        from daemon.report.page import Wishes, report

        made = report(runs, Wishes(title, keys, points, media, max_size), _tell)
        page = made.html.encode("utf-8", "replace")
        if path is None:
            sys.stdout.buffer.write(page)
        else:
            write_file(path, page)
    finally:
        _tell("")
    said = f"{size(len(page))}, {_count(made.runs, 'run')}, {_count(made.charts, 'chart')}, {made.media:,} media"
    if as_json and path is not None:
        from daemon.commands.common import print_json

        told = {"path": path, "bytes": len(page), "runs": [run.id for run in runs[: made.runs]], "charts": made.charts}
        print_json({**told, "media": made.media, "left_out": made.left_out})
        return
    click.echo(f"{clean(output)}: {said}", err=path is None)
    for line in made.left_out:
        click.echo(f"  ! {clean(line)}", err=True)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _tell(what: str) -> None:
    """A line on a terminal's stderr that is written over; elsewhere nothing but the first one."""
    if sys.stderr.isatty():
        from daemon.commands.common import passing_line

        passing_line(what)
    elif what.startswith("writing"):
        click.echo(what, err=True)


def _chosen(store: Store, words: tuple[str, ...], where: str | None) -> list[Run]:
    """The runs that are named, or else all, of which those are taken for which the expression holds; neither: the latest."""
    from sdk.errors import NotFoundError

    if where is None:
        named = [store.run(word) for word in words or ("latest",)]
        return list({run.id: run for run in named}.values())
    from sdk.query.overview import select

    found = select([store.run(word) for word in words] if words else store.runs(), where, None)
    if not found:
        raise NotFoundError(f"no run for which {where!r} holds", hint="stepd runs")
    return found


def _target(output: str) -> str:
    """The file, whose directory is there.

    Raises:
        click.UsageError: It cannot be written there.
    """
    path = os.path.realpath(output)
    if os.path.isdir(path) or not os.path.isdir(os.path.dirname(path)):
        raise click.UsageError(
            f"cannot write {output!r}: expected a file in a directory that is there. Try: -o report.html"
        )
    return path
