"""`stepd repair`: saves what can be saved of damaged segments, and with `--rings` what dead trainers left in memory."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator

import click

from daemon.commands.common import open_store_of, progress
from daemon.commands.service import clean, directory_option, shared_memory_dir
from daemon.commands.verify import chosen_runs
from daemon.store.recovery import Judge, lock_identity, mend_segments, ring_is_locked
from daemon.store.repair import Step, repair_run
from sdk import platform
from sdk._greeting import count
from sdk._spool import drain_orphans
from sdk.errors import Error, StoreError
from sdk.files import DISK
from sdk.location import StoreIdentity, read_store
from sdk.reader import Run
from sdk.reader.waiting import waiting_rings
from sdk.segment.naming import MEDIA, parse_segment
from sdk.segment.reader import SegmentReader
from sdk.segment.repair import Repaired
from sdk.transport import lock_path


@click.command("repair")
@click.argument("runs", nargs=-1, metavar="[RUN...]")
@click.option("--rings", is_flag=True, help="Also store what dead trainers left in shared memory, without a daemon.")
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@click.option(
    "--force", is_flag=True, help="Also open segments whose writer cannot be judged from here: be sure it is dead."
)
@directory_option
@click.pass_context
def command(
    ctx: click.Context, runs: tuple[str, ...], rings: bool, dry_run: bool, force: bool, directory: str | None
) -> None:
    """Rewrite damaged segments: what is good is copied, what is not becomes a gap, the old file moves to aside/.

    Large values that are lost become gaps, too. Without RUN: of the whole store. Nothing is deleted, a second repair finds
    nothing to do. Exit code 1: something could not be repaired, or there was nothing in a damaged segment that could be
    saved.
    """
    store = open_store_of(ctx, directory)
    identity = read_store(store.path)
    if not identity.writable:
        raise StoreError(
            f"the store {store.path!r} is not yours alone, so nothing in it is changed",
            hint="STEPD_TRUST_STORE=1 stepd repair …",
        )
    with _alone(store.path) as alone:
        failed = _drain(identity, alone=alone, dry_run=dry_run) if rings else 0
        chosen = chosen_runs(store, runs)  # after the rings, which may hold the only records of a run
        dead = _mended(identity, alone=alone, dry_run=dry_run)
        with progress(sum(run.size_bytes for run in chosen), "looking") as note:
            steps = [
                (run, step)
                for run in chosen
                for step in repair_run(
                    DISK,
                    identity.id,
                    run.id,
                    run.directory,
                    lambda path: force or dead(path),
                    dry_run=dry_run,
                    note=note,
                )
            ]
        for run, step in steps:
            failed += step.why is not None or (step.repaired is not None and _is_all_lost(step.repaired))
            _print(run, step, alone=alone)
    if not steps:
        click.echo("nothing is damaged")
    elif dry_run:
        would = sum(step.why is None for _, step in steps)
        click.echo(f"{count(would, 'segment')} of {count(len(steps), 'damaged segment')} would be repaired")
    ctx.exit(1 if failed else 0)


@contextlib.contextmanager
def _alone(store: str) -> Iterator[bool]:
    """Holds the lock that a daemon of this store and machine would hold; False where one serves."""
    lock = platform.hold_lock(lock_path(store))
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()


def _drain(store: StoreIdentity, *, alone: bool, dry_run: bool) -> int:
    """Drains the rings of dead trainers; how many could not be drained."""
    base, failed = shared_memory_dir(), 0

    def tell(path: str, error: object) -> None:
        nonlocal failed
        failed += 1
        click.echo(f"cannot store what is left in {clean(path)}, it stays there: {clean(str(error))}")

    if not alone:
        click.echo("a daemon serves this store: it stores by itself what dead trainers left in shared memory")
    elif dry_run:
        found = waiting_rings(store.path, base)
        records = count(sum(ring.records for ring in found), "record")
        click.echo(f"would store {records} that {count(len(found), 'dead trainer')} left in shared memory")
    else:
        drained = drain_orphans(DISK, store, base, tell)
        click.echo(f"stored what {count(drained, 'dead trainer')} left in shared memory")
    return failed


def _is_all_lost(done: Repaired) -> bool:
    """Whether nothing could be saved of what was there. What is only told (`aside` None) was lost before."""
    lost = done.lost or (done.lost_blobs and done.aside is not None)
    return bool(lost) and not done.records and not done.blobs


def _mended(store: StoreIdentity, *, alone: bool, dry_run: bool) -> Callable[[str], bool]:
    """Seals what the dead of this machine left open; gives what says of a segment whether its writer is dead."""
    if not alone:
        return lambda path: False
    is_alive = ring_is_locked(shared_memory_dir(), platform.store_digest(store.path))
    judge = Judge(lambda writer: False, lock_identity(lock_path(store.path)), is_alive)
    if not dry_run:
        for _ in mend_segments(DISK, store.path, judge):
            pass

    def is_dead(path: str) -> bool:
        try:
            reader = SegmentReader(DISK, path)
        except (OSError, Error):
            return False
        try:
            return judge.is_dead(reader)
        except (OSError, Error):
            return False
        finally:
            reader.close()

    return is_dead


def _print(run: Run, step: Step, *, alone: bool) -> None:
    name, file = clean(run.id), clean(os.path.basename(step.path))
    for text in step.found:
        click.echo(f"run {name}, {file}: {clean(text)}")
    if step.repaired is not None:
        click.echo(f"  {_done_text(run, step, step.repaired)}")
    elif step.why is not None:
        again = shlex.join(["stepd", "repair", name])
        cure = f"stepd stop && {again}" if not alone else f"{again} on the writer's machine, or with --force"
        click.echo(f"  not repaired: {clean(step.why)}. Try: {cure}")
    else:
        click.echo("  would be repaired")


def _done_text(run: Run, step: Step, done: Repaired) -> str:
    if step.path == run.directory:
        return f"noted as lost, in {clean(os.path.basename(done.path))}"
    what = "nothing could be saved" if _is_all_lost(done) else "repaired"
    moved = f", the old file is {clean(done.aside)}" if done.aside else ""
    if done.path == step.path:
        return f"nothing is lost, the segments that it replaced are there{moved}"
    parsed = parse_segment(os.path.basename(step.path))
    if parsed is not None and parsed.holds == MEDIA:
        return f"{what}: {count(done.blobs, 'large value')} saved, {done.lost_blobs:,} not whole{moved}"
    values = f", {done.lost_values:,} values lost" if done.lost_values else ""
    return f"{what}: {done.records:,} records saved, {done.lost:,} lost{values}{moved}"
