"""`stepd stop`: ask the daemon to write everything and leave, and remember that a user wanted that."""

from __future__ import annotations

import click

from daemon.commands.service import directory_option, store_path
from sdk import _spawn, clock
from sdk.errors import CommError
from sdk.location import read_store
from sdk.transport import request

_STOP_SECONDS = 30.0


@click.command("stop")
@directory_option
@click.pass_context
def command(ctx: click.Context, directory: str | None) -> None:
    """Stop the daemon after everything received is written. Live runs keep their records in the ring, then the spool."""
    path = store_path(ctx, directory)
    read_store(path)
    live = stop(path)
    if live is None:
        click.echo(f"no daemon serves {path}")
        return
    click.echo(f"stopped the daemon of {path}")
    if live:
        click.echo(
            f"{live} live run{'s keep' if live > 1 else ' keeps'} logging: to the ring, then to the spool. Back: stepd start"
        )


def stop(path: str) -> int | None:
    """Stops the daemon of a store and waits until it is gone; the number of runs with living trainers, or None if there was none.

    Raises:
        CommError: It is still there after half a minute.
    """
    _spawn.mark_stopped(path, True)
    if not _spawn.is_serving(path):
        return None
    status = request(path, "stop")
    deadline = clock.monotonic() + _STOP_SECONDS
    while _spawn.is_serving(path):
        if clock.monotonic() > deadline:
            raise CommError(f"the daemon (pid {status['pid']}) is still there after {_STOP_SECONDS:g} s")
        clock.pause(0.01)
    return sum(bool(run["living"]) for run in status["runs"])
