"""`stepd tail`: the last rows, and the next ones as they come."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import click

from daemon.commands.common import json_option, one_run, open_store_of, to_json, value_text
from daemon.commands.service import clean, directory_option
from sdk.reader.run import SYSTEM_PREFIX


@click.command("tail")
@click.argument("words", nargs=-1, metavar="[RUN] [KEY]...")
@click.option("-n", "--lines", "count", default=10, show_default=True, help="How many rows.")
@click.option("-f", "--follow", is_flag=True, help="Go on with rows as they come, until the run ends.")
@json_option
@directory_option
@click.pass_context
def command(
    ctx: click.Context, words: tuple[str, ...], count: int, follow: bool, as_json: bool, directory: str | None
) -> None:
    """The last rows of a run; with --json one JSON object a line."""
    run, keys = one_run(open_store_of(ctx, directory), words, lambda text: click.UsageError(text, ctx))
    if keys and all(key.startswith(SYSTEM_PREFIX) for key in keys):
        run = run.of_kind("system")
    rows: Iterable[dict[str, Any]]
    rows = run.follow(keys=keys or None, last=count) if follow else run.tail(count, keys or None)
    try:
        for row in rows:
            click.echo(to_json(row) if as_json else _line(row))
    except KeyboardInterrupt:
        ctx.exit(0)  # how one leaves `tail -f`


def _line(row: dict[str, Any]) -> str:
    when = time.strftime("%H:%M:%S", time.localtime(row["_timestamp"]))
    values = [f"{clean(key)}={value_text(value)}" for key, value in row.items() if key not in ("_step", "_timestamp")]
    return f"{row['_step']:>8}  {when}  {'  '.join(values)}"
