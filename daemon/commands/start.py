"""`stepd start`: a daemon that stays until it is stopped."""

from __future__ import annotations

import os
from collections.abc import Mapping

import click

from daemon.commands.service import (
    START_SECONDS,
    budget_options,
    directory_option,
    set_budgets,
    shared_memory_dir,
    store_path,
)
from sdk import _spawn
from sdk.location import DIRECTORY, make_store


@click.command("start")
@click.option("--foreground", is_flag=True, help="Serve in this process and log to stderr, for a process manager.")
@click.option("--here", is_flag=True, help="Make a store .stepd/ in the working directory, for everything below it.")
@budget_options
@directory_option
@click.pass_context
def command(ctx: click.Context, /, foreground: bool, here: bool, directory: str | None, **budgets: int | None) -> None:
    """Start the daemon of the store, unless one serves it already.

    Budgets count from now on, for that one and for those that come after it, whoever starts them, until others are given.
    """
    path = os.path.join(os.getcwd(), DIRECTORY) if here else store_path(ctx, directory)
    store = make_store(path)
    if here:
        _ignore_in_git(path)
    if foreground:
        _serve_here(ctx, store.path, budgets)
        return
    running = _spawn.is_serving(store.path)
    status = _spawn.ensure(store.path, timeout=START_SECONDS, shared_memory_dir=shared_memory_dir())
    set_budgets(store.path, budgets)
    click.echo(f"{'already serving' if running else 'serving'} {store.path} (pid {status['pid']})")


def _serve_here(ctx: click.Context, path: str, budgets: Mapping[str, int | None]) -> None:
    from daemon.server import log_to, serve
    from daemon.settings import DaemonSettings, budgets_from
    from daemon.store.budgets import keep_budgets, read_budgets
    from sdk.files import DISK

    _spawn.mark_stopped(path, False)
    if _spawn.is_serving(path):
        click.echo(f"already serving {path}")
        return
    os.umask(0o077)
    log_to(None)
    try:
        given = {name: size for name, size in budgets.items() if size is not None}
        chosen = read_budgets(DISK, path) | budgets_from(os.environ) | given
    except ValueError as error:
        raise click.UsageError(str(error), ctx) from error
    if given:
        keep_budgets(DISK, path, given)
    ctx.exit(serve(path, DaemonSettings(persistent=True, shared_memory_dir=shared_memory_dir(), **chosen)))


def _ignore_in_git(path: str) -> None:
    from sdk.files import DISK

    name = os.path.join(path, ".gitignore")
    if not DISK.exists(name):
        DISK.write_whole(name, b"*\n")
