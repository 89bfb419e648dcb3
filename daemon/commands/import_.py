"""`stepd import`: runs that other tools have written become runs of the store (docs/import.md)."""

from __future__ import annotations

import click

from daemon.commands.common import json_option, print_json, progress, write_table
from daemon.commands.service import clean, clean_lines, directory_option, size, store_path
from daemon.importing import bringing
from daemon.importing.bringing import Brought
from daemon.importing.source import Found, Source, source_of
from sdk import clock
from sdk._greeting import count
from sdk.errors import UsageError
from sdk.files import DISK
from sdk.limits import PROJECT_CHARACTERS_MAX
from sdk.location import make_store, read_store
from sdk.segment.naming import STORE_FILE

# What a dry run says of a state.
_WOULD = {
    bringing.IMPORTED: "would be imported",
    bringing.REPLACED: "would be imported anew",
    bringing.FAILED: "would fail",
}
# Of runs that are there already, more are only counted.
_UNCHANGED_SHOWN_MAX = 10


@click.command("import")
@click.argument("source", metavar="SOURCE")
@click.option(
    "--project", metavar="NAME", help="The project of the runs; default: what the source says, or its directory's name."
)
@click.option("--name", metavar="NAME", help="The name of the run; of several: what stands before each one's own.")
@click.option("--dry-run", is_flag=True, help="Say what would be imported.")
@json_option
@directory_option
@click.pass_context
def command(
    ctx: click.Context, source: str, project: str | None, name: str | None, dry_run: bool, as_json: bool, directory: str | None
) -> None:  # fmt: skip
    """Make runs of what SOURCE holds: tensorboard:DIR (every directory with event files is a run) or wandb:PATH (a .wandb file, or
    a directory with some).

    Original steps, times and order. Imported again, what has not changed is left alone, and a run whose source has grown is
    written anew, in its old one's place. Killed at any moment and run again, each run is there once and whole.

    Exit code 0: everything is there as it was; 1: something is damaged, or is nothing that a store holds, and the table says what;
    2: misuse.
    """
    if project is not None and not 0 < len(project) <= PROJECT_CHARACTERS_MAX:
        raise click.UsageError(f"--project has {len(project)} characters, expected 1 to {PROJECT_CHARACTERS_MAX}")
    try:
        chosen = source_of(source)
        runs = bringing.named(list(chosen.runs()), project, name)
    except UsageError as error:
        raise click.UsageError(clean_lines(str(error))) from error
    for trouble in chosen.troubles:
        click.echo(clean(f"stepd: {trouble}"), err=True)
    path = store_path(ctx, directory)
    if dry_run:
        is_there = DISK.exists(f"{path}/{STORE_FILE}")
        _print(list(bringing.look(read_store(path).path if is_there else None, runs)), None, as_json)
        return
    began = clock.monotonic()
    found = _bring(path, chosen, runs, project, name)
    _print(found, clock.monotonic() - began, as_json)
    ctx.exit(0 if all(one.is_exact for one in found) and not chosen.troubles else 1)


def _bring(path: str, source: Source, runs: list[Found], project: str | None, name: str | None) -> list[Brought]:
    store = make_store(path)
    with progress(sum(found.size for found in runs), "importing") as moved:
        return list(bringing.bring(store, source, runs, project=project, is_named=name is not None, moved=moved))


def _print(found: list[Brought], seconds: float | None, as_json: bool) -> None:
    """The table; without seconds that of a dry run, which says what would be."""
    if as_json:
        exact = all(one.is_exact for one in found)
        print_json({"exact": exact, "seconds": seconds, "runs": [one.as_plain() for one in found]})
        return
    unchanged = [one for one in found if one.state == bringing.UP_TO_DATE and one.is_exact]
    shown = found if len(unchanged) <= _UNCHANGED_SHOWN_MAX else [one for one in found if one not in unchanged]
    if seconds is None:
        shown = [one._replace(state=_WOULD.get(one.state, one.state)) for one in shown]
        found = [one._replace(state=_WOULD.get(one.state, one.state)) for one in found]
    titles = ("RUN", "PROJECT", "NAME", *(["POINTS"] if seconds is not None else []), "SIZE", "STATE")
    rows = []
    for one in shown:
        moved = [f"{one.points:,}"] if seconds is not None else []
        rows.append((one.run, one.project, one.name, *moved, size(one.size), _state(one)))
    if rows:
        write_table(titles, rows, right=range(3, len(titles) - 1))
    _print_remarks(shown)
    counts = {state: sum(one.state == state for one in found) for state in dict.fromkeys(one.state for one in found)}
    told = ", ".join(f"{number:,} {state}" for state, number in counts.items()) or "no runs"
    if seconds is None:
        click.echo(f"{told}; nothing was done")
        return
    points, total = sum(one.points for one in found), sum(one.size for one in found)
    click.echo(f"{told}: {count(points, 'point')} from {size(total)} in {seconds:.1f} s")


def _print_remarks(found: list[Brought]) -> None:
    """Each remark once, however many runs it is of."""
    remarks: dict[str, list[str]] = {}
    for one in found:
        for text in one.told:
            remarks.setdefault(text, []).append(one.run)
    for text, runs in remarks.items():
        click.echo(clean(f"{runs[0] if len(runs) == 1 else count(len(runs), 'run')}: {text}"))


def _state(one: Brought) -> str:
    """The state with what a user must know of it."""
    told = f"{one.state}: {one.reason}" if one.reason else one.state
    lost = "; ".join(f"{what} × {number:,}" for what, number in one.lost.items())
    return f"{told}; lost: {lost}" if lost else told
