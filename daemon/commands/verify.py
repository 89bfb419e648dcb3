"""`stepd verify`: reads every block of a store or of runs, and says what is damaged and what is missing."""

from __future__ import annotations

import shlex
from typing import Any

import click

from daemon.commands.common import json_option, open_store_of, print_json, progress
from daemon.commands.service import clean, directory_option, shared_memory_dir, size
from sdk import clock
from sdk._greeting import count
from sdk.files import DISK
from sdk.reader import Gap, Run, Store
from sdk.reader.verify import Verified, verify_run
from sdk.reader.waiting import Waiting, waiting_rings
from sdk.segment.check import Finding


@click.command("verify")
@click.argument("runs", nargs=-1, metavar="[RUN...]")
@click.option("--all", "every", is_flag=True, help="All runs of the store, which is the default.")
@json_option
@directory_option
@click.pass_context
def command(ctx: click.Context, runs: tuple[str, ...], every: bool, as_json: bool, directory: str | None) -> None:
    """Read every block: headers, chains, checksums, each record, indexes and seals. Changes nothing.

    Also names what dead processes of this machine left in shared memory and nobody has stored yet.

    Exit code 0: all that is there is good (records may be missing and accounted for: gaps); 1: there is damage. A run
    that is being logged is fine; what its writer is in the middle of is no damage.
    """
    if runs and every:
        raise click.UsageError("--all and runs exclude each other")
    store = open_store_of(ctx, directory)
    chosen = chosen_runs(store, runs)
    begun = clock.monotonic()
    with progress(sum(run.size_bytes for run in chosen), "verifying") as note:
        found = [(run, verify_run(DISK, run.directory, note)) for run in chosen]
    rings = waiting_rings(store.path, shared_memory_dir())
    if runs:
        rings = [ring for ring in rings if ring.run in {run.id for run in chosen}]
    seconds = clock.monotonic() - begun
    if as_json:
        waiting = [ring._asdict() for ring in rings]
        print_json({"runs": [_facts(run, verified) for run, verified in found], "rings": waiting, "seconds": seconds})
    else:
        for run, verified in found:
            _print(run, verified)
        for ring in rings:
            click.echo(f"waiting for run {clean(ring.run)}: {waiting_text(ring)}")
        _print_sum([verified for _, verified in found], seconds)
    ctx.exit(1 if any(verified.findings for _, verified in found) else 0)


def chosen_runs(store: Store, words: tuple[str, ...]) -> list[Run]:
    """The runs that the words name, each once; all of the store without words."""
    return list({run.directory: run for run in (map(store.run, words) if words else store.runs())}.values())


def steps_text(low: int, high: int) -> str:
    return f"step {low}" if low == high else f"steps {low}–{high}"


def _print(run: Run, verified: Verified) -> None:
    name = clean(run.id)
    for finding in verified.findings:
        where = f"bytes {finding.start}–{finding.end}: " if finding.end > finding.start else ""
        lost = ""
        steps = _steps_of(finding)
        if finding.records and steps is not None:
            lost = f"; {finding.records:,} records ({steps_text(*steps)}) skipped"
        elif finding.values and steps is not None:
            lost = f"; {count(finding.values, 'value')} ({steps_text(*steps)}) skipped"
        file = finding.path.rpartition("/")[2]
        click.echo(f"damage in run {name}, {clean(file)}, {where}{clean(finding.text)}{lost}")
    for gap in verified.gaps:
        click.echo(f"gap in run {name}: {gap_text(gap)}")
    for note in verified.notes:
        click.echo(f"note on run {name}: {clean(note)}")
    if verified.findings:
        click.echo(f"  Try: stepd repair {shlex.quote(name)}")


def _steps_of(finding: Finding) -> tuple[int, int] | None:
    """Which steps a finding is about, where it costs any."""
    if not finding.records and not finding.values:
        return None
    if finding.steps is None and finding.block is not None:
        return finding.block.step_min, finding.block.step_max
    return finding.steps


def gap_text(gap: Gap) -> str:
    """What is missing, in words."""
    steps = steps_text(gap.step_min, gap.step_max)
    what = count(gap.count, "record")
    if not gap.count:  # the rows are there
        what = f"the bytes of {clean(repr(gap.key))}" if gap.key is not None else "bytes of a large value"
        if gap.values is not None:
            what = f"{count(gap.values, 'value')} of {clean(repr(gap.key))}" if gap.key else "values of unknown keys"
    return f"{what} ({steps}) of stream {gap.stream} missing: {clean(gap.reason)}"


def waiting_text(ring: Waiting) -> str:
    """What a dead process left in its ring, in words."""
    ended = f", which ended as {clean(ring.state)!r}," if ring.state is not None else ""
    refused = f", and {count(ring.refused, 'refused call')}" if ring.refused else ""
    return (
        f"{count(ring.records, 'record')} of stream {ring.stream}{ended} in shared memory{refused}. "
        "Try: stepd start, or stepd repair --rings"
    )


def _print_sum(all_verified: list[Verified], seconds: float) -> None:
    segments = [checked for verified in all_verified for checked in verified.segments]
    findings = sum(len(verified.findings) for verified in all_verified)
    gaps = [gap for verified in all_verified for gap in verified.gaps]
    records = sum(checked.records for checked in segments)
    blocks, total = sum(c.blocks for c in segments), sum(c.size for c in segments)
    missing = sum(gap.count for gap in gaps)
    runs, files = count(len(all_verified), "run"), count(len(segments), "segment")
    click.echo(
        f"{runs}, {files}, {blocks:,} blocks, {size(total)}, {records:,} records in {seconds:.1f} s: "
        + (f"{findings:,} damaged" if findings else "all good")
        + (f", {missing:,} records missing and accounted for" if missing else "")
    )


def _facts(run: Run, verified: Verified) -> dict[str, Any]:
    return {
        "id": run.id,
        "good": not verified.findings,
        "segments": [
            {"path": c.path, "bytes": c.size, "blocks": c.blocks, "records": c.records, "sealed": c.sealed}
            for c in verified.segments
        ],
        "damage": [
            {
                "path": finding.path, "start": finding.start, "end": finding.end, "text": finding.text,
                "block": finding.block.number if finding.block else None, "records": finding.records,
                "values": finding.values, "keys": list(finding.keys),
                "step_min": steps[0] if (steps := _steps_of(finding)) else None,
                "step_max": steps[1] if steps else None,
            }
            for finding in verified.findings
        ],
        "gaps": [{name: getattr(gap, name) for name in gap.__slots__} for gap in verified.gaps],
        "notes": verified.notes,
    }  # fmt: skip
