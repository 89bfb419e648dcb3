"""`stepd du`: how much of the disk the store and its runs take."""

from __future__ import annotations

import os
from typing import Any

import click

from daemon.commands.common import json_option, open_store_of, print_json, write_table
from daemon.commands.service import directory_option, size
from daemon.commands.verify import chosen_runs
from daemon.settings import budgets_from
from sdk.files import DISK
from sdk.reader import Run
from sdk.reader.usage import RunUse, StoreUse, run_use, store_use


@click.command("du")
@click.argument("runs", nargs=-1, metavar="[RUN...]")
@json_option
@directory_option
@click.pass_context
def command(ctx: click.Context, runs: tuple[str, ...], as_json: bool, directory: str | None) -> None:
    """Bytes of each run, the largest first; without RUN also the trash, the whole, and what the disk has left."""
    store = open_store_of(ctx, directory)
    names = {run.directory: run for run in chosen_runs(store, runs)}
    used = [run_use(DISK, path) for path in names] if runs else []
    whole = None if runs else store_use(DISK, store.path)
    found = sorted(whole.runs if whole else used, key=lambda use: -use.total)
    budgets = {name: count for name, count in budgets_from(os.environ).items() if count}
    if as_json:
        document: dict[str, Any] = {"runs": [_facts(use, names) for use in found]}
        if whole is not None:
            document |= {
                "trash": whole.trash,
                "artifacts": whole.artifacts,
                "total": whole.total,
                "free": whole.free,
                "budgets": budgets,
            }
        print_json(document)
        return
    rows = [
        (
            _id(use, names),
            _name(use, names),
            *map(size, (use.segments, use.media, use.spools, use.aside, use.files, use.total)),
        )
        for use in found
    ]
    write_table(
        ("ID", "NAME", "SEGMENTS", "MEDIA", "SPOOLS", "ASIDE", "FILES", "TOTAL"), rows, right=(2, 3, 4, 5, 6, 7)
    )
    if whole is not None:
        _print_whole(whole, budgets)


def _print_whole(whole: StoreUse, budgets: dict[str, int]) -> None:
    artifacts = f"   artifacts {size(whole.artifacts)}" if whole.artifacts else ""
    click.echo(
        f"trash {size(whole.trash)}{artifacts}   total {size(whole.total)}   free on the disk {size(whole.free)}"
    )
    if budgets:
        click.echo("budgets: " + ", ".join(f"{name} {size(count)}" for name, count in budgets.items()))


def _id(use: RunUse, names: dict[str, Run]) -> str:
    """The run's id; of a directory without segments its name."""
    return names[use.directory].id if use.directory in names else os.path.basename(use.directory)


def _name(use: RunUse, names: dict[str, Run]) -> str:
    return names[use.directory].name if use.directory in names else "-"


def _facts(use: RunUse, names: dict[str, Run]) -> dict[str, Any]:
    return {"id": _id(use, names), **use._asdict(), "total": use.total}
