"""`stepd compact`: large values encoded and joined into few files, without doubles and without what is not wanted any more."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import NamedTuple

import click

from daemon.commands.common import json_option, open_store_of, print_json, progress
from daemon.commands.service import clean, directory_option, size
from daemon.commands.verify import chosen_runs
from daemon.encode.work import Encoding, joinable, wants_work
from daemon.store.retention import Retention, Wish, is_unwanted, named_blobs, shared_by_kept
from daemon.store.rewrite import digests_of, hold, remove_drafts, remove_replaced, rewrite, sealed_media
from sdk import clock
from sdk._greeting import count
from sdk.errors import Error, StoreError
from sdk.files import DISK
from sdk.location import StoreIdentity, read_store
from sdk.reader import Run

_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
# Unnamed bytes of a run that has ended are removed when they are more than what is named: less is not worth the writing.
_LIVE_RATIO = 0.5


class Outcome(NamedTuple):
    """What was done, or would be done, to one run."""

    id: str
    values: int
    removed: int
    removed_bytes: int
    kept_shared: int
    bytes_before: int
    bytes_after: int
    trouble: str | None = None


def seconds_of(text: str) -> float:
    """Seconds of an age like 30d, 12h, 90s.

    Raises:
        click.BadParameter: It is none.
    """
    match = _AGE.fullmatch(text.strip().lower())
    if match is None:
        raise click.BadParameter(f"{text!r} is no age; expected a number and s, m, h, d or w, as in 30d")
    return float(match[1]) * _SECONDS[match[2]]


@click.command("compact")
@click.argument("runs", nargs=-1, metavar="[RUN...]")
@click.option("--keep-media", metavar="AGE", help="Remove the bytes of large values logged longer ago, as in 30d.")
@click.option("--key", "keys", multiple=True, metavar="GLOB", help="With --keep-media: only of keys like this.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed.")
@json_option
@directory_option
@click.pass_context
def command(
    ctx: click.Context, runs: tuple[str, ...], keep_media: str | None, keys: tuple[str, ...], dry_run: bool,
    as_json: bool, directory: str | None,
) -> None:  # fmt: skip
    """Rewrite the large values of runs (default: all): encoded, equal ones once, in few files.

    With --keep-media the bytes of older ones are removed for good; their rows stay and say so. A run that is being logged
    keeps what its writers are in the middle of. Exit code 1: something could not be done.
    """
    if keys and keep_media is None:
        raise click.UsageError("--key needs --keep-media")
    store = open_store_of(ctx, directory)
    identity = read_store(store.path)
    if not identity.writable:
        raise StoreError(f"the store {store.path!r} is not yours alone, so nothing in it is changed")
    cut = time.time() - seconds_of(keep_media) if keep_media is not None else 0.0
    text = f"by retention (--keep-media {keep_media}) on {time.strftime('%Y-%m-%d')}"
    wish = Wish(int(cut * 1e9), keys, False, text)
    chosen = chosen_runs(store, runs)
    lock = hold(store.path)
    if lock is None:
        raise StoreError("another process is rewriting media of this store", hint="try again when it is done")
    try:
        with progress(sum(run.size_bytes for run in chosen), "compacting") as note:
            outcomes = [
                outcome for run in chosen if (outcome := _compact(identity, run, wish, dry_run, note)) is not None
            ]
    finally:
        lock.release()
    if as_json:
        print_json({"runs": [outcome._asdict() for outcome in outcomes], "dry_run": dry_run})
    else:
        _print(outcomes, dry_run)
    ctx.exit(1 if any(outcome.trouble for outcome in outcomes) else 0)


def _compact(store: StoreIdentity, run: Run, wish: Wish, dry_run: bool, note: Callable[[int], None]) -> Outcome | None:
    """Rewrites one run's media; None: there is nothing to do."""
    try:
        return _rewritten(store, run, wish, dry_run)
    except (OSError, Error) as error:
        return Outcome(run.id, 0, 0, 0, 0, 0, 0, str(error))
    finally:
        note(run.size_bytes)


def _rewritten(store: StoreIdentity, run: Run, wish: Wish, dry_run: bool) -> Outcome | None:
    directory = run.directory
    segments = sealed_media(DISK, directory)
    if not segments:
        return None
    named = named_blobs(DISK, directory)
    unwanted = {key for key, one in named.items() if is_unwanted(wish, one)}
    is_over = run.state != "running"
    blobs = sum(segment.blobs for segment in segments)
    wish = wish._replace(unnamed=is_over and len(named) < blobs * _LIVE_RATIO)
    if dry_run:
        removed = sum(named[key].announced.ref.size for key in unwanted)
        before = sum(segment.size for segment in segments)
        return Outcome(run.id, blobs, len(unwanted), removed, 0, before, before)
    has_work = any(map(wants_work, segments)) or joinable(segments)
    if not (unwanted or wish.unnamed or has_work):
        return None
    remove_drafts(DISK, directory)
    shared = shared_by_kept(DISK, segments, wish, named) if unwanted or wish.unnamed else set()
    encoding = Encoding(digests_of([]))
    retention = Retention(wish, named, shared, encoding)
    report = rewrite(DISK, store, directory, run.id, segments, retention, encoding.told)
    # Whoever reads a run that has ended opens its files again where one is gone; a live one may be followed by many.
    remove_replaced(DISK, directory, clock.wall_ns(), kept_seconds=0.0 if is_over else 60.0)
    return Outcome(
        run.id, report.blobs, retention.removed, retention.removed_bytes, retention.shared, report.bytes_before,
        report.bytes_after, encoding.last_error or None,
    )  # fmt: skip


def _print(outcomes: list[Outcome], dry_run: bool) -> None:
    for one in outcomes:
        if one.trouble is not None and not one.values:
            click.echo(f"run {clean(one.id)}: {clean(one.trouble)}")
            continue
        would = "would be removed" if dry_run else "removed"
        removed = f"{count(one.removed, 'value')} of {size(one.removed_bytes)} {would}" if one.removed else ""
        shared = f"{count(one.kept_shared, 'value')} kept, as younger ones share the bytes" if one.kept_shared else ""
        change = "" if dry_run else f"{size(one.bytes_before)} became {size(one.bytes_after)}"
        trouble = f"some stay raw: {clean(one.trouble)}" if one.trouble else ""
        parts = ", ".join(part for part in (count(one.values, "large value"), removed, shared, change, trouble) if part)
        click.echo(f"run {clean(one.id)}: {parts}")
    if not outcomes:
        click.echo("nothing to do")
