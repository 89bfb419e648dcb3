"""`stepd start`: a daemon that stays until it is stopped."""

from __future__ import annotations

import os

import click

from daemon.commands.service import START_SECONDS, directory_option, store_path
from sdk import _spawn
from sdk.location import DIRECTORY, make_store


@click.command("start")
@click.option("--foreground", is_flag=True, help="Serve in this process and log to stderr, for a process manager.")
@click.option("--here", is_flag=True, help="Make a store .stepd/ in the working directory, for everything below it.")
@directory_option
@click.pass_context
def command(ctx: click.Context, foreground: bool, here: bool, directory: str | None) -> None:
    """Start the daemon of the store, unless one serves it already."""
    path = os.path.join(os.getcwd(), DIRECTORY) if here else store_path(ctx, directory)
    store = make_store(path)
    if here:
        _ignore_in_git(path)
    if foreground:
        _serve_here(ctx, store.path)
        return
    running = _spawn.is_serving(store.path)
    shared = os.environ.get("STEPD_SHARED_MEMORY_DIR", "/dev/shm")
    status = _spawn.ensure(store.path, timeout=START_SECONDS, shared_memory_dir=shared)
    click.echo(f"{'already serving' if running else 'serving'} {store.path} (pid {status['pid']})")


def _serve_here(ctx: click.Context, path: str) -> None:
    from daemon.server import log_to, serve
    from daemon.settings import DaemonSettings

    _spawn.mark_stopped(path, False)
    if _spawn.is_serving(path):
        click.echo(f"already serving {path}")
        return
    os.umask(0o077)
    log_to(None)
    shared = os.environ.get("STEPD_SHARED_MEMORY_DIR", "/dev/shm")
    ctx.exit(serve(path, DaemonSettings(persistent=True, shared_memory_dir=shared)))


def _ignore_in_git(path: str) -> None:
    from sdk.files import DISK

    name = os.path.join(path, ".gitignore")
    if not DISK.exists(name):
        DISK.write_whole(name, b"*\n")
