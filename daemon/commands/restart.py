"""`stepd restart`: stop and start; live runs notice nothing but a new session."""

from __future__ import annotations

import os

import click

from daemon.commands.service import START_SECONDS, directory_option, store_path
from daemon.commands.stop import stop
from sdk import _spawn
from sdk.location import make_store


@click.command("restart")
@directory_option
@click.pass_context
def command(ctx: click.Context, directory: str | None) -> None:
    """Stop the daemon of the store and start another, for example after an upgrade."""
    path = make_store(store_path(ctx, directory)).path
    stop(path)
    shared = os.environ.get("STEPD_SHARED_MEMORY_DIR", "/dev/shm")
    status = _spawn.ensure(path, timeout=START_SECONDS, shared_memory_dir=shared)
    click.echo(f"serving {path} (pid {status['pid']})")
