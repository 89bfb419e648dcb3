"""`stepd runs`: what is in the store."""

from __future__ import annotations

from typing import Any

import click

from daemon.commands.common import json_option, open_store_of, print_json, when_text, write_table
from daemon.commands.service import directory_option, size
from daemon.store.listing import remember
from sdk.reader import Run


@click.command("runs")
@click.option("--project", metavar="NAME", help="Only runs of this project.")
@json_option
@directory_option
@click.pass_context
def command(ctx: click.Context, project: str | None, as_json: bool, directory: str | None) -> None:
    """List the runs of the store, the one that was started last first."""
    store = open_store_of(ctx, directory)
    everything = store.runs()
    runs = [run for run in everything if project is None or run.project == project]
    _print(store.path, runs, project, as_json)
    remember(store.path, everything)


def _print(where: str, runs: list[Run], project: str | None, as_json: bool) -> None:
    if as_json:
        print_json([facts(run) for run in runs])
        return
    if not runs:
        told = f"{where} holds no run" + (f" of project {project!r}" if project else " yet")
        click.echo(f"{told}. Try: " + ("stepd runs" if project else 'sdk.init(project="…") in a training script'))
        return
    rows = [
        (
            run.id,
            run.name,
            run.project,
            run.state,
            when_text(run.started),
            run.step_max,
            run.records,
            size(run.size_bytes),
        )
        for run in runs
    ]
    titles = ("ID", "NAME", "PROJECT", "STATE", "STARTED", "STEP", "RECORDS", "SIZE")
    write_table(titles, rows, right=(5, 6, 7))


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
        "step_max": run.step_max,
        "records": run.records,
        "size_bytes": run.size_bytes,
        "directory": run.directory,
        "config": run.config,
    }
