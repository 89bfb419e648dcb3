"""`stepd restart`: stop and start; live runs notice nothing but a new session."""

from __future__ import annotations

import contextlib

import click

from daemon.commands.service import (
    START_SECONDS,
    budget_options,
    directory_option,
    set_budgets,
    shared_memory_dir,
    store_path,
)
from daemon.commands.stop import stop
from sdk import _spawn
from sdk.errors import Error
from sdk.location import make_store
from sdk.transport import request


@click.command("restart")
@budget_options
@directory_option
@click.pass_context
def command(ctx: click.Context, /, directory: str | None, **budgets: int | None) -> None:
    """Stop the daemon of the store and start another, for example after an upgrade. It keeps the budgets of the one before."""
    path = make_store(store_path(ctx, directory)).path
    before = _budgets(path)
    stop(path)
    status = _spawn.ensure(path, timeout=START_SECONDS, shared_memory_dir=shared_memory_dir())
    # What the one before had from its environment; what it was told is kept in the store.
    now = _budgets(path)
    set_budgets(path, {name: size for name, size in before.items() if now.get(name) != size})
    set_budgets(path, budgets)
    click.echo(f"serving {path} (pid {status['pid']})")


def _budgets(path: str) -> dict[str, int]:
    with contextlib.suppress(Error):
        if _spawn.is_serving(path):
            return dict(request(path, "status").get("budget", {}))
    return {}
