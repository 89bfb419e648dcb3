"""`stepd status`: what the daemon is doing, and whether anything was lost."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from daemon.commands.service import clean, directory_option, duration, size, store_path
from sdk import _spawn
from sdk._greeting import count as records
from sdk._syncing import backlog
from sdk.files import DISK
from sdk.location import read_store
from sdk.transport import request

_LOG_LINES = 50


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.option("--log", "show_log", is_flag=True, help="The daemon's own log.")
@click.option("--check", is_flag=True, help="Exit 1 when no daemon serves the store.")
@directory_option
@click.pass_context
def command(ctx: click.Context, as_json: bool, show_log: bool, check: bool, directory: str | None) -> None:
    """What the daemon is doing. No daemon is no error: the next init() starts one."""
    path = store_path(ctx, directory)
    if show_log:
        _print_log(path)
        return
    serving = DISK.exists(path) and _spawn.is_serving(path)
    if serving:
        read_store(path)
        facts: dict[str, Any] = {"serving": True, **request(path, "status")}
    else:
        facts = {"serving": False, "store": path, "pid": None, "runs": []}
    facts["syncing"] = [entry._asdict() for entry in backlog(path)]
    if as_json:
        click.echo(json.dumps(facts))
    else:
        _print(facts)
    if check and not serving:
        ctx.exit(1)


def _print(facts: dict[str, Any]) -> None:
    if not facts["serving"]:
        click.echo(f"no daemon serves {clean(facts['store'])}; the next init() starts one")
        _print_syncing(facts["syncing"])
        return
    kind = "stays until stopped" if facts["persistent"] else "leaves when idle"
    click.echo(
        f"serving {clean(facts['store'])}   pid {facts['pid']}   up {duration(facts['uptime_seconds'])}   {kind}"
    )
    rate = f"{facts['records_per_second']:,.0f} records/s, {size(facts['bytes_per_second'])}/s"
    click.echo(f"  now      {rate}   in all {facts['records']:,} records, {size(facts['bytes'])}")
    click.echo(
        f"  health   {_refused(facts)}, {facts['write_failures']} write and {facts['sync_failures']} fsync failures   "
        f"synced {facts['synced_age_seconds']:.1f} s behind   {size(facts['free_bytes'])} free"
    )
    if facts["store_bytes"] is not None:
        click.echo(f"  budget   {size(facts['store_bytes'])} of {size(facts['budget']['store_bytes_max'])} taken")
    if rewriting := _rewriting(facts["rewriting"]):
        click.echo(f"  rewrite  {rewriting}")
    if keeping := _keeping(facts.get("keeping") or {}):
        click.echo(f"  keep     {keeping}")
    if observing := _observing(facts.get("observing") or {}):
        click.echo(f"  observe  {observing}")
    _print_syncing(facts["syncing"])
    if facts["gaps"]:
        lost = ", ".join(f"{count:,} {reason}" for reason, count in facts["gaps"].items())
        click.echo(f"  gaps     records not stored: {lost}; `stepd verify` says which")
    for run in facts["runs"]:
        click.echo(
            f"  run      {clean(run['id'])}   {run['streams']} stream{'s' if run['streams'] > 1 else ''}   lag "
            f"{run['lag_seconds'] * 1000:.0f} ms   {run['refused']} refused"
        )
    for line in facts["warnings"]:
        click.echo(click.style(f"  warning  {clean(line)}", fg="yellow"))
    if facts["last_error"]:
        click.echo(f"  trouble  {clean(facts['last_error'])}")


def _keeping(told: dict[str, Any]) -> str:
    """What waits to be copied and hashed; "" for nothing."""
    waiting = told.get("waiting", 0)
    words = ["running"] if told.get("running") else []
    words += (
        [f"{waiting:,} job{'' if waiting == 1 else 's'} of files wait{'s' if waiting == 1 else ''}"] if waiting else []
    )
    words += [f"trouble: {clean(str(told['trouble']))}"] if told.get("trouble") else []
    return "; ".join(words)


def _print_syncing(targets: list[dict[str, Any]]) -> None:
    """A line for each target that runs are carried to while they are written."""
    for told in targets:
        click.echo(f"  sync     {_syncing(told)}")


def _syncing(told: dict[str, Any]) -> str:
    count = told["runs"]
    words = [f"{clean(told['target'])}   {count:,} run{'' if count == 1 else 's'}"]
    if told["failing"]:
        behind = f", {records(told['behind'], 'record')}" if told["behind"] else ""
        words.append(f"{told['failing']:,} behind{behind}: {clean(told['reason'])}")
    if told["elsewhere"]:
        words.append(f"{told['elsewhere']:,} left on other machines, which stepd sync --drain delivers too")
    age = told["age_seconds"]
    words.append("nothing delivered yet" if age is None else f"last heard of {duration(age)} ago")
    return "; ".join(words)


def _rewriting(told: dict[str, Any]) -> str:
    """What the worker did last, and what it left alone; "" where it has nothing to say."""
    words = ["running"] if told["running"] else []
    if told.get("rows"):
        change = f"{size(told['bytes_before'])} became {size(told['bytes_after'])}"
        words.append(f"{told['rows']:,} records as columns, {change}")
    if told.get("blobs"):
        words.append(f"{told['blobs']:,} large values encoded")
    words += [f"left alone: {clean(str(text))}" for text in told.get("alone") or ()]
    words += [f"trouble: {clean(str(text))}" for text in told.get("errors") or ()]
    return "; ".join(words)


def _observing(told: dict[str, Any]) -> str:
    """What the observer looks at, and what keeps it from that; "" where none runs and none had trouble."""
    runs = told.get("runs") or ()
    count = f"{len(runs)} run{'' if len(runs) == 1 else 's'}"
    words = [f"pid {told['pid']}, {count}, {told.get('samples') or 0:,} samples"] if told.get("pid") else []
    words += [f"{told['skipped']:,} skipped"] if told.get("skipped") else []
    words += [clean(str(told[name])) for name in ("error", "gpu_note") if told.get(name)]
    return "; ".join(words)


def _refused(facts: dict[str, Any]) -> str:
    reasons = ", ".join(f"{count} {clean(reason)}" for reason, count in facts["refused_reasons"].items())
    return f"{facts['refused']} refused{f' ({reasons})' if reasons else ''}"


def _print_log(path: str) -> None:
    from daemon.server import LOG_FILE
    from sdk.files import read_whole

    name = os.path.join(path, LOG_FILE)
    if not DISK.exists(name):
        click.echo(f"no daemon has served {path} yet")
        return
    lines = read_whole(DISK, name, 8 << 20).decode(errors="replace").splitlines()
    for line in lines[-_LOG_LINES:]:
        click.echo(clean(line))
