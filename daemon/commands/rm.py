"""`stepd rm`: a run goes to the trash of its store, from which it can be taken back for seven days."""

from __future__ import annotations

import os
import re
import shlex

import click

from daemon.commands.common import open_store_of
from daemon.commands.service import clean, directory_option
from sdk import clock
from sdk.errors import StoreError
from sdk.files import DISK
from sdk.location import read_store
from sdk.reader import Run
from sdk.segment.naming import TRASH

KEPT_SECONDS = 7 * 86_400
_ENTRY = re.compile(r"([0-9]{9,12})-.+")


@click.command("rm")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--force", is_flag=True, help="Also a run that is still running.")
@directory_option
@click.pass_context
def command(ctx: click.Context, runs: tuple[str, ...], force: bool, directory: str | None) -> None:
    """Move runs to the trash, and empty it of what has been there for more than seven days. Artifacts stay."""
    store = open_store_of(ctx, directory)
    if not read_store(store.path).writable:
        raise StoreError(
            f"the store {store.path!r} is not yours alone, so nothing in it is removed",
            hint="STEPD_TRUST_STORE=1 stepd rm …",
        )
    # All are looked up before the first one moves: `latest` must not mean another run after it.
    found = {run.id: run for run in map(store.run, runs)}
    for run in found.values():
        if run.state == "running" and not force:
            raise StoreError(f"run {run.id} is still running", hint=f"stepd rm --force {shlex.quote(run.id)}")
    trash = os.path.join(store.path, TRASH)
    now = clock.wall_ns() // 10**9
    for run in found.values():
        _move(run, trash, now)
    _purge(trash, now)


def _move(run: Run, trash: str, now: int) -> None:
    DISK.make_directory(trash)
    name = os.path.basename(run.directory)
    while DISK.exists(os.path.join(trash, f"{now}-{name}")):
        now += 1
    target = os.path.join(trash, f"{now}-{name}")
    try:
        DISK.rename(run.directory, target)
    except OSError as error:
        raise StoreError(f"cannot move run {run.id} to the trash: {error}") from error
    click.echo(f"moved {clean(run.id)} ({run.name!r}) to the trash, where it stays for seven days")
    click.echo(clean(f"  undo: mv {shlex.quote(target)} {shlex.quote(run.directory)}"))


def _purge(trash: str, now: int) -> None:
    for name, _, _ in DISK.entries(trash):
        match = _ENTRY.fullmatch(name)
        if match is None or now - int(match[1]) <= KEPT_SECONDS:
            continue
        try:
            DISK.remove_tree(os.path.join(trash, name))
        except OSError as error:
            click.echo(clean(f"stepd: cannot remove {name} from the trash: {error}"), err=True)
