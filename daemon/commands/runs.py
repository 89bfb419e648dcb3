"""`stepd runs`: what is in the store: chosen, sorted, with the columns that tell the runs apart, in groups (docs/runs.md)."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from daemon.commands.common import can_unicode, json_option, open_store_of, print_json, to_json
from daemon.commands.service import clean, clean_lines, directory_option
from daemon.store.listing import remember
from sdk import clock
from sdk.query.expression import parse, parse_list
from sdk.query.lookup import text_of
from sdk.query.overview import Overview, Spread, lookup_of, overview
from sdk.reader import Run

if TYPE_CHECKING:
    from daemon.commands.runs_table import Page

# How long the command goes on after it has said everything, so that the next one is faster.
_KEEP_SECONDS = 1.0
# What an empty result says of the names that were asked for: so many of each.
_SAID_NAMES_MAX = 3
_SAID_VALUES_MAX = 6


@click.command("runs")
@click.option("--project", metavar="NAME", help="Only runs of this project.")
@click.option(
    "--where", metavar="EXPR", help="Only runs for which this holds: 'config.lr < 1e-3 and state = finished'."
)
@click.option("--sort", metavar="[-]EXPR[,EXPR]", help="By what; a minus: the largest first. -best:val/acc,name")
@click.option("--columns", metavar="EXPR[,EXPR]", help="What to show: id,config.lr,best:val/acc,duration.")
@click.option("--group", metavar="EXPR[,EXPR]", help="One row for the runs that have this in common: config.method.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The first N rows.")
@click.option("--csv", "as_csv", is_flag=True, help="The table as CSV.")
@json_option
@directory_option
@click.pass_context
def command(
    ctx: click.Context,
    project: str | None,
    where: str | None,
    sort: str | None,
    columns: str | None,
    group: str | None,
    limit: int | None,
    as_csv: bool,
    as_json: bool,
    directory: str | None,
) -> None:
    """List the runs of the store, the one that was started last first.

    EXPR are names and what is computed of them: state, name, started, duration, config.lr, summary.loss, and of a series
    best:val/acc, last:, first:, min:, max:. Comparisons: = != < <= > >= ~ (a pattern, or a part of a text), in (…), is null;
    and, or, not. Times: started > 2h, started > '2026-11-20'.
    """
    store = open_store_of(ctx, directory)
    everything = store.runs()
    runs = [run for run in everything if project is None or run.project == project]
    facts_alone = as_json and columns is None and group is None
    chosen = ["id", *(one.text for one in parse_list(sort or "id", signed=True))] if facts_alone else columns
    table = overview(runs, where=where, sort=sort, columns=chosen, group=group)
    shown = table.cut(limit)
    if as_json:
        rows = table_rows(shown)
        print_json(
            [{**row, **facts(run), **_ending(run)} for run, row in zip(shown.runs, rows)] if facts_alone else rows
        )
    elif as_csv:
        _print_csv(shown)
    elif not shown.groups:
        click.echo(_nothing(store.path, runs, project, where))
    else:
        _print_table(shown, table, everything)
    if store.left_out:
        click.echo(f"stepd: {clean(store.left_out)}", err=True)
    remember(store.path, everything, seconds=_KEEP_SECONDS)


def _print_table(shown: Overview, table: Overview, everything: Sequence[Run]) -> None:
    from daemon.commands.runs_table import shortest, table_lines

    # In a pipe, and where it was asked for, the whole id.
    is_cut = _is_terminal() and not table.chosen
    page = _page()._replace(id_characters=shortest(run.id for run in everything) if is_cut else None)
    lines = table_lines(shown, page)
    if len(shown.groups) < len(table.groups):
        lines += ["", f"{len(shown.groups):,} of {len(table.groups):,} {'groups' if table.by else 'runs'}"]
    if table.unread:
        lines += ["", _unread_line(table)]
    click.echo("\n".join(lines))


def _page() -> Page:
    from daemon.commands.runs_table import Page

    width = shutil.get_terminal_size().columns if _is_terminal() else None
    return Page(width, can_unicode(), _is_terminal() and not os.environ.get("NO_COLOR"), clock.wall_ns() / 1e9)


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _unread_line(table: Overview) -> str:
    from daemon.commands.runs_table import pasted

    names = pasted([column.name for column in table.columns if column.name.startswith("best:")])
    runs = f"{table.unread:,} run{'s' if table.unread > 1 else ''}"
    return f"the series of {runs} were not read, which takes long; to read them: --columns {names}"


def _nothing(where: str, runs: Sequence[Run], project: str | None, condition: str | None) -> str:
    """What was looked for, among how many, and what there is."""
    if not runs:
        told = f"{clean(where)} holds no run" + (f" of project {project!r}" if project else " yet")
        return f"{told}. Try: " + ("stepd runs" if project else 'sdk.init(project="…") in a training script')
    said = [f"none of {len(runs):,} runs in {clean(where)} fulfils {clean(condition)!r}"]
    names = sorted(parse(condition or "id").names)[:_SAID_NAMES_MAX]
    return "\n".join([*said, *(f"  {clean(name)}: {_values_of(name, runs)}" for name in names)])


def _values_of(name: str, runs: Sequence[Run]) -> str:
    """What a name is in the runs, in a line: from the smallest to the largest, or the most frequent ones."""
    from daemon.commands.runs_table import number

    values = [value for run in runs if (value := lookup_of(run)(name)) is not None]
    numbers = [value for value in values if isinstance(value, (int, float)) and value == value]
    if numbers and len(numbers) == len(values):
        return f"{number(min(numbers))} to {number(max(numbers))} in {len(values):,} runs"
    counts: dict[str, int] = {}
    for value in values:
        text = value if isinstance(value, str) else text_of(value)
        counts[text] = counts.get(text, 0) + 1
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    told = ", ".join(f"{clean(text[:60])} ({count:,})" for text, count in most[:_SAID_VALUES_MAX])
    return told + (f" and {len(most) - _SAID_VALUES_MAX:,} others" if len(most) > _SAID_VALUES_MAX else "")


def table_rows(table: Overview) -> list[dict[str, Any]]:
    """The rows for a script; a spread is a map."""
    return [
        {name: value._asdict() if isinstance(value, Spread) else value for name, value in row.items()}
        for row in table.rows()
    ]


def _print_csv(table: Overview) -> None:
    """One column for each; of spreads mean, deviation, smallest and largest in columns of their own."""
    from daemon.commands.export import csv_line

    head: list[str] = []
    columns: list[list[Any]] = []
    for column in table.columns:
        if any(isinstance(value, Spread) for value in column.values):
            for part in ("mean", "std", "low", "high"):
                head.append(f"{column.name}.{part}")
                columns.append([_part(value, part) for value in column.values])
        else:
            head.append(column.name)
            columns.append(column.values)
    text = "".join(csv_line(map(_csv_cell, row)) for row in [head, *zip(*columns)])
    with click.open_file("-", "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(clean_lines(text) if _is_terminal() else text)


def _csv_cell(value: Any) -> Any:
    """Texts and numbers as they are, lists as JSON."""
    if value is None or isinstance(value, (str, bool, float)):
        return value
    return to_json(value) if not isinstance(value, int) else text_of(value)


def _part(value: Any, part: str) -> Any:
    if isinstance(value, Spread):
        return getattr(value, part)
    return None if part == "std" else value


def _ending(run: Run) -> dict[str, Any]:
    """How long it took, where, and what it ended with."""
    return {"duration": run.duration, "host": run.host, "exit_code": run.exit_code}


def facts(run: Run) -> dict[str, Any]:
    """What is known without reading values."""
    return {
        "id": run.id,
        "name": run.name,
        "project": run.project,
        "group": run.group,
        "job_type": run.job_type,
        "tags": run.tags,
        "notes": run.notes,
        "state": run.state,
        "created": run.created,
        "started": run.started,
        "updated": run.updated,
        "step": run.step_max,
        "records": run.records,
        "size": run.size_bytes,
        "directory": run.directory,
        "config": run.config,
    }
