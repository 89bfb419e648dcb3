"""`stepd show`: everything that is known about one run; with keys, what was logged under them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from daemon.commands import values
from daemon.commands.common import json_option, open_store_of, print_json, value_text, when_text, write_table
from daemon.commands.context_lines import print_context
from daemon.commands.runs import facts
from daemon.commands.service import clean, directory_option, duration, shared_memory_dir, size
from daemon.commands.verify import waiting_text
from sdk._greeting import count
from sdk.editing import KIND as EDIT
from sdk.errors import NotFoundError
from sdk.reader import Gap, Run, Store
from sdk.reader.media import kind_of
from sdk.reader.waiting import waiting_rings

# Of edits the last ones are shown: a script may set a hundred.
_EDITS_MAX = 5


@click.command("show")
@click.argument("words", nargs=-1, metavar="[RUN] [KEY]...")
@click.option("--step", type=click.IntRange(min=0), help="With a KEY: only what was logged at this step.")
@click.option("-o", "--output", metavar="FILE|DIR", help="With a KEY: write the images, tables, … there.")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@json_option
@directory_option
@click.pass_context
def command(
    ctx: click.Context,
    words: tuple[str, ...],
    step: int | None,
    output: str | None,
    overwrite: bool,
    as_json: bool,
    directory: str | None,
) -> None:
    """Facts, config, summary, streams, gaps and keys of a run.

    With a KEY, or a pattern of keys ("val/*"): what was logged under it. -o writes images, videos, tables and the like as
    files: one of them to FILE, several into DIR, under names made of key, step and index; "-o -" writes one to standard
    output.
    """
    store = open_store_of(ctx, directory)
    found, keys = _run_and_keys(store, words)
    if keys:
        values.show_keys(found, keys, step, output, overwrite=overwrite, as_json=as_json)
        return
    if step is not None or output is not None:
        raise click.UsageError("--step and -o need a KEY", ctx)
    _show_run(store, found, as_json)


def _run_and_keys(store: Store, words: Sequence[str]) -> tuple[Run, list[str]]:
    """The run that the first word names and the keys after it; the latest run where the first word is a key of it."""
    if not words:
        return store.run("latest"), []
    try:
        found = store.run(words[0])
    except NotFoundError:
        latest = store.run("latest")
        if values.matching(latest, words[0]):
            return latest, list(words)
        raise
    return found, list(words[1:])


def _show_run(store: Store, found: Run, as_json: bool) -> None:
    rings = [ring for ring in waiting_rings(store.path, shared_memory_dir()) if ring.run == found.id]
    # First what reads all values: it finds the damage that is listed below.
    summary, keys = found.summary, found.keys()
    gaps = found.gaps
    if as_json:
        print_json(
            {
                **facts(found),
                "context": found.context,
                "summary": summary,
                "metrics": found.metrics,
                "misuse": found.misuse,
                "exit_code": found.exit_code,
                "error": None if (error := found.error) is None else error._asdict(),
                "alerts": [alert._asdict() for alert in found.alerts],
                "artifacts": _artifacts_of(found),
                "keys": keys,
                "axes": {key: axis for key in keys if (axis := found.metric(key).step_metric) is not None},
                "system": found.of_kind("system").summary,
                "console": run_console._asdict() if (run_console := found.count_lines()).lines else None,
                "media": {key: kind for key in keys if (kind := kind_of(summary.get(key))) is not None},
                "streams": [stream._asdict() for stream in found.streams],
                "gaps": [dataclasses.asdict(gap) for gap in gaps],
                "damage": [damage._asdict() for damage in found.damage],
                "rings": [ring._asdict() for ring in rings],
            }
        )
        return
    _print_head(found)
    _print_end(found)
    print_context(found)
    _print_map("config", found.config)
    shown = found.shown_keys()
    _print_map("summary", {key: value for key, value in summary.items() if not found.metric(key).hidden})
    _print_keys(shown, summary)
    _print_axes(found, shown)
    _print_artifacts(found)
    _print_system(found)
    _print_console(found)
    _print_streams(found)
    _print_trouble(found, gaps)
    if rings:
        click.echo("\nnot stored yet")
    for ring in rings:
        click.echo(f"  {waiting_text(ring)}")


def _print_head(run: Run) -> None:
    project = f"   project {clean(run.project)}" if run.project else ""
    state = run.state + (f", exit code {code}" if (code := run.exit_code) else "")
    click.echo(click.style(f"{clean(run.name)} ({clean(run.id)})", bold=True) + f"{project}   {state}")
    ended = run.ended
    length = duration(max((run.updated if ended is None else ended) - run.started, 0)) if run.started else "unknown"
    took = f"last written {length} after" if ended is None else f"took {length}"
    click.echo(f"  started   {when_text(run.started)}, {took}")
    lines = {"group": run.group, "job type": run.job_type, "tags": ", ".join(run.tags), "notes": run.notes}
    for title, text in lines.items():
        if text:
            click.echo(f"  {title:<9} {clean(text)}")
    click.echo(f"  stored    {run.records:,} records, steps up to {run.step_max:,}, {size(run.size_bytes)}")
    click.echo(f"  where     {clean(run.directory)}")


def _print_end(run: Run) -> None:
    """The exception that ended it, as Python printed it, and what was alerted."""
    error = run.error
    if error is not None:
        click.echo(f"\nended by {clean(': '.join(filter(None, (error.type, error.message))))}")
    for line in error.traceback.splitlines() if error is not None else ():
        click.echo(f"  {clean(line)}")
    alerts = run.alerts
    if alerts:
        click.echo("\nalerts")
    for alert in alerts:
        text = f": {clean(alert.text)}" if alert.text else ""
        click.echo(f"  {when_text(alert.time)}  {clean(alert.level):<5}  {clean(alert.title)}{text}")


def _print_map(title: str, values: Mapping[str, Any]) -> None:
    if not values:
        return
    click.echo(f"\n{title}")
    width = min(max(len(clean(key)) for key in values), 40)
    for key in sorted(values, key=str):
        click.echo(f"  {clean(key):<{width}}  {value_text(values[key])}")


def _print_keys(keys: Iterable[str], summary: Mapping[str, Any]) -> None:
    """The keys in sections: the text before the last slash. Those of media say which."""
    sections: dict[str, list[str]] = {}
    for key in keys:
        section, _, name = key.rpartition("/")
        kind = kind_of(summary.get(key))
        sections.setdefault(section, []).append(name if kind is None else f"{name} ({kind})")
    if sections:
        click.echo("\nkeys")
    for section in sorted(sections):
        names = ", ".join(map(clean, sections[section]))
        click.echo(f"  {clean(section)}/  {names}" if section else f"  {names}")


def _print_system(run: Run) -> None:
    """What was observed last, in a few lines: of the training, its machine, its GPUs (docs/system.md)."""
    last = {key.removeprefix("system/"): value for key, value in run.of_kind("system").summary.items()}
    lines: dict[str, list[str]] = {}
    for key, value in sorted(last.items()):
        part, _, name = key.rpartition("/")
        if key.startswith("gpu."):
            part, _, name = key.rpartition(".")
        lines.setdefault(part, []).append(f"{clean(name)} {_system_text(key, value)}")
    if lines:
        click.echo("\nsystem, last seen")
    for part, words in lines.items():
        click.echo(f"  {clean(part) or 'training':<9} {', '.join(words)}")


def _system_text(key: str, value: Any) -> str:
    """A value with its unit, as the key's name tells it (docs/system.md)."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return value_text(value)
    if not math.isfinite(value):
        return f"{value:.4g}"
    if key.endswith("_rate"):
        return f"{size(int(value))}/s"
    in_bytes = ("memory_rss", "memory_used", "memory_available", "memory_limit", "memory_total", "process_memory")
    if key.endswith(("_bytes", "swap_used", "disk_used", "disk_free", *in_bytes)):
        return size(int(value))
    return f"{value:.4g}"


def _print_axes(run: Run, keys: Iterable[str]) -> None:
    """Which keys have an x axis that is not the step."""
    axes: dict[str, list[str]] = {}
    for key in keys:
        axis = run.metric(key).step_metric
        if axis is not None:
            axes.setdefault(axis, []).append(key)
    if axes:
        click.echo("\nx axes")
    for axis in sorted(axes):
        click.echo(f"  {clean(axis)}:  {', '.join(map(clean, axes[axis]))}")


def _artifacts_of(run: Run) -> dict[str, list[str]]:
    """The names and versions that it logged and used; of those that are not stored yet the names."""
    if not (facts := run.artifacts):
        return {"logged": [], "used": []}
    found = {"logged": run.logged_artifacts(), "used": run.used_artifacts()}
    names = {how: [artifact.name for artifact in artifacts] for how, artifacts in found.items()}
    for said in facts.values():
        if (
            isinstance(said, dict)
            and (how := str(said.get("how"))) in names
            and isinstance(name := said.get("name"), str)
        ):
            if not any(known.partition(":")[0] == name for known in names[how]):
                names[how].append(name)
    return names


def _print_artifacts(run: Run) -> None:
    names = _artifacts_of(run)
    if any(names.values()):
        click.echo("\nartifacts")
    for how, found in names.items():
        if found:
            click.echo(f"  {how:<9} {', '.join(map(clean, found))}")


def _print_console(run: Run) -> None:
    counts = run.count_lines() if run.has_console else None
    if counts is None:
        return
    levels = [(counts.warnings, "warning"), (counts.errors, "error")]
    told = [count(number, word) for number, word in levels if number]
    click.echo(f"\nconsole\n  {', '.join([count(counts.lines, 'line'), *told])}; stepd logs {clean(run.id)}")


def _print_streams(run: Run) -> None:
    click.echo("\nstreams")
    streams = run.streams
    edits = [s.id for s in streams if s.kind == EDIT]
    left_out = set(edits[:-_EDITS_MAX])
    rows = [
        (
            "",
            s.id,
            s.kind,
            "-" if s.rank is None else s.rank,
            s.attempt,
            s.host or "-",
            s.pid or "-",
            s.state,
            f"{s.records:,}",
        )
        for s in streams
        if s.id not in left_out
    ]
    write_table(("", "ID", "KIND", "RANK", "ATTEMPT", "HOST", "PID", "STATE", "RECORDS"), rows, right=(3, 4, 6, 8))
    if left_out:
        click.echo(f"  ({len(left_out):,} more edits, by stepd set)")


def _print_trouble(run: Run, gaps: list[Gap]) -> None:
    if gaps:
        click.echo("\ngaps")
    for gap in gaps:
        steps = f"step {gap.step_min}" if gap.step_min == gap.step_max else f"steps {gap.step_min}–{gap.step_max}"
        when = f", {when_text(gap.start)}" if gap.start else ""
        what = f"{gap.count:,} records" if gap.key is None else f"the bytes of {clean(repr(gap.key))}"
        if gap.values is not None:
            what = f"{count(gap.values, 'value')} of {clean(repr(gap.key))}" if gap.key else "values of unknown keys"
        click.echo(f"  {what} ({steps}) of stream {gap.stream}: {clean(gap.reason)}{when}")
    if run.damage:
        click.echo("\ndamage")
    for damage in run.damage:
        click.echo(f"  {clean(damage.path)}, bytes {damage.start}–{damage.end}: {clean(damage.reason)}")
    if run.misuse:
        _print_map("left out by misuse='warn'", run.misuse)
