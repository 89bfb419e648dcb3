"""`stepd compact`: rows as columns, large values encoded, both in few files, without doubles and without what is not wanted."""

from __future__ import annotations

import contextlib
import re
import shlex
import time
from collections.abc import Callable
from typing import NamedTuple

import click

from daemon.commands.common import json_option, open_store_of, print_json, progress
from daemon.commands.service import clean, directory_option, shared_memory_dir, size
from daemon.commands.verify import chosen_runs
from daemon.compact.work import Report, compact_run
from daemon.encode.known import Known
from daemon.encode.work import Encoding, plans
from daemon.store.listing import remember_all
from daemon.store.replacing import KEPT_SECONDS, hold, remove_drafts, remove_replaced
from daemon.store.retention import Removals, Retention, Wish, lying_in, removals, uses_of
from daemon.store.rewrite import rewrite, sealed_media
from sdk import clock
from sdk._greeting import count
from sdk.errors import Error, StoreError
from sdk.files import DISK
from sdk.location import StoreIdentity, read_store
from sdk.reader import Run
from sdk.reader.state import FAILED, FINISHED, INTERRUPTED
from sdk.reader.waiting import waiting_rings
from sdk.segment.naming import SegmentName

_AGE = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)\s*([smhdw])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

# States of streams that said themselves that they end.
_GOODBYES = (FINISHED, FAILED, INTERRUPTED)


class Outcome(NamedTuple):
    """What was done, or would be done, to one run.

    Attributes:
        values: Large values that were looked at; `files`: the media segments in which they are now.
        removed, removed_bytes: What became a tombstone. `kept_shared`: what stays because others need its bytes.
        bytes_before, bytes_after: Of its media segments, but for those that were replaced and wait to be removed.
        trouble: What could not be done.
        rows: Records that were written as columns or copied; `row_files`: the segments in which they are now.
        row_bytes_before, row_bytes_after: Of the segments in which they were and are.
    """

    id: str
    values: int
    files: int
    removed: int
    removed_bytes: int
    kept_shared: int
    bytes_before: int
    bytes_after: int
    trouble: str | None = None
    rows: int = 0
    row_files: int = 0
    row_bytes_before: int = 0
    row_bytes_after: int = 0


def seconds_of(text: str) -> float:
    """Seconds of an age like 30d, 12h, 90s.

    Raises:
        click.BadParameter: It is none.
    """
    match = _AGE.fullmatch(text.strip().lower())
    if match is None:
        raise click.BadParameter(
            f"{text!r} is no age; expected a number and s, m, h, d or w, as in 30d", param_hint="--keep-media"
        )
    return float(match[1]) * _SECONDS[match[2]]


@click.command("compact")
@click.argument("runs", nargs=-1, metavar="[RUN...]")
@click.option("--keep-media", metavar="AGE", help="Remove the bytes of large values logged longer ago, as in 30d.")
@click.option("--key", "keys", multiple=True, metavar="GLOB", help="With --keep-media: only of keys like this.")
@click.option("--unnamed", is_flag=True, help="Also bytes that no row names, however few, and of killed processes.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed.")
@json_option
@directory_option
@click.pass_context
def command(
    ctx: click.Context, runs: tuple[str, ...], keep_media: str | None, keys: tuple[str, ...], unnamed: bool, dry_run: bool,
    as_json: bool, directory: str | None,
) -> None:  # fmt: skip
    """Rewrite runs (default: all): rows as columns, large values encoded, equal ones once, both in few files.

    The daemon does so by itself when segments are full and when a run ends; this is for what lies around without one.

    With --keep-media the bytes of older ones are removed for good; their rows stay and say so. What younger rows, or other
    keys, name or share is kept. Bytes that no row names are removed where they are more than half of a run's. A run that is
    being logged keeps what its writers are in the middle of. Exit code 1: something could not be done.
    """
    if keys and keep_media is None:
        raise click.UsageError("--key needs --keep-media")
    wish = _wish(keep_media, keys, unnamed)
    store = open_store_of(ctx, directory)
    identity = read_store(store.path)
    if not identity.writable:
        raise StoreError(
            f"the store {store.path!r} is not yours alone, so nothing in it is changed",
            hint="STEPD_TRUST_STORE=1 stepd compact …",
        )
    chosen = chosen_runs(store, runs)
    lock = hold(store.path)
    if lock is None:
        raise StoreError("another process rewrites runs of this store", hint="try again in a minute")
    try:
        with progress(sum(run.size_bytes for run in chosen), "compacting") as note:
            outcomes = [done for run in chosen if (done := _compact(identity, run, wish, dry_run, note)) is not None]
    finally:
        lock.release()
    if not dry_run:
        remember_all(store.path)
    if as_json:
        print_json({"runs": [outcome._asdict() for outcome in outcomes], "dry_run": dry_run})
    else:
        _print(outcomes, dry_run)
    ctx.exit(1 if any(outcome.trouble for outcome in outcomes) else 0)


def _wish(keep_media: str | None, keys: tuple[str, ...], unnamed: bool) -> Wish:
    when = time.strftime("%Y-%m-%d", time.localtime(clock.wall_ns() / 1e9))
    if keep_media is None:
        return Wish(unnamed=unnamed, when=when)
    words = shlex.join(["--keep-media", keep_media, *(word for key in keys for word in ("--key", key))])
    return Wish(max(clock.wall_ns() - int(seconds_of(keep_media) * 1e9), 1), keys, unnamed, when, words[:200])


def _compact(store: StoreIdentity, run: Run, wish: Wish, dry_run: bool, note: Callable[[int], None]) -> Outcome | None:
    """Rewrites one run; None: there is nothing to do."""
    left = run.size_bytes

    def read(count: int) -> None:
        nonlocal left
        note(min(count, left))
        left -= min(count, left)

    rows = Report()
    try:
        if not dry_run:
            rows = compact_run(DISK, store, run.directory, progress=read, kept_seconds=_kept_seconds(run))
        media = _rewritten(store, run, wish, dry_run)
    except (OSError, Error) as error:
        media = Outcome(run.id, 0, 0, 0, 0, 0, 0, 0, str(error))
    finally:
        note(left)
    if media is None and not rows.rows and not rows.alone:
        return None
    media = media or Outcome(run.id, 0, 0, 0, 0, 0, 0, 0)
    alone = f"left alone, as stepd verify would say: {'; '.join(rows.alone)}" if rows.alone else None
    return media._replace(
        trouble=media.trouble or alone, rows=rows.rows, row_files=rows.files, row_bytes_before=rows.bytes_before,
        row_bytes_after=rows.bytes_after,
    )  # fmt: skip


def _kept_seconds(run: Run) -> float:
    """Whoever reads a run that has ended opens its files again where one is gone; a live one may be followed by many."""
    return KEPT_SECONDS if run.state == "running" else 0.0


def _rewritten(store: StoreIdentity, run: Run, wish: Wish, dry_run: bool) -> Outcome | None:
    directory = run.directory
    kept_seconds = _kept_seconds(run)
    if not dry_run:
        remove_drafts(DISK, directory)
        remove_replaced(DISK, directory, clock.wall_ns(), kept_seconds=kept_seconds)
    segments = sealed_media(DISK, directory)
    if not segments:
        return None
    lying = lying_in(DISK, segments)
    # Why before the rows: a process that ends after this was looked at has said everything by the time its rows are read.
    ended = _ended(store, run, wish)
    found = removals(lying, uses_of(DISK, directory, wish), wish, ended)
    dirty = {name for key in found.texts for name in lying.where[key]}
    trouble = None
    if not dry_run:
        trouble = _rewrite_groups(store, run, found, dirty, kept_seconds)
    elif not (dirty or found.shared):
        return None
    after = sealed_media(DISK, directory)
    if not dry_run and not found.shared and {each.name for each in after} == {each.name for each in segments}:
        return None
    removed_bytes = sum(lying.sizes[key] for key in found.texts)
    return Outcome(
        run.id, len(lying.sizes), len(after), len(found.texts), removed_bytes, len(found.shared),
        sum(each.size for each in segments), sum(each.size for each in after), trouble,
    )  # fmt: skip


def _ended(store: StoreIdentity, run: Run, wish: Wish) -> set[int]:
    """The streams of a run of which nothing can come any more."""
    waiting = [ring for ring in waiting_rings(store.path, shared_memory_dir()) if ring.run == run.id]
    if run.state == "running" or waiting:
        return set()
    missing = {gap.stream for gap in run.gaps if gap.first is not None}
    # Records of a process that did not say goodbye may lie where nobody here can look; who says --unnamed knows better.
    said = {each.id for each in run.streams if wish.unnamed or each.state in _GOODBYES}
    return {int(stream, 16) for stream in said - missing}


def _rewrite_groups(
    store: StoreIdentity, run: Run, found: Removals, dirty: set[SegmentName], kept_seconds: float
) -> str | None:
    """Rewrites what needs it, some files at a time, then joins small ones; what could not be encoded, in words."""
    trouble = None
    for sources in plans(DISK, run.directory, dirty):
        others = [each for each in sealed_media(DISK, run.directory) if each not in sources]
        with contextlib.closing(Known(DISK, others, found.texts)) as known:
            encoding = Encoding(known)
            rewrite(DISK, store, run.directory, run.id, sources, Retention(found.texts, encoding), encoding.told)
        remove_replaced(DISK, run.directory, clock.wall_ns(), kept_seconds=kept_seconds)
        trouble = encoding.last_error or trouble
    return trouble


def _print(outcomes: list[Outcome], dry_run: bool) -> None:
    for one in outcomes:
        if one.rows:
            change = f"{size(one.row_bytes_before)} became {size(one.row_bytes_after)}"
            click.echo(f"run {clean(one.id)}: {count(one.rows, 'record')} in {count(one.row_files, 'file')}, {change}")
        if not one.values:
            if one.trouble is not None:
                click.echo(f"run {clean(one.id)}: {clean(one.trouble)}")
            continue
        would = "would be removed" if dry_run else "removed"
        removed = f"{count(one.removed, 'value')} of {size(one.removed_bytes)} {would}" if one.removed else ""
        shared = f"{count(one.kept_shared, 'value')} kept, as others share the bytes" if one.kept_shared else ""
        change = "" if dry_run else f"{size(one.bytes_before)} became {size(one.bytes_after)}"
        trouble = f"some stay raw: {clean(one.trouble)}" if one.trouble else ""
        files = f"{count(one.values, 'large value')} in {count(one.files, 'file')}"
        click.echo(
            f"run {clean(one.id)}: {', '.join(part for part in (files, removed, shared, change, trouble) if part)}"
        )
    if not outcomes:
        click.echo("nothing to do")
