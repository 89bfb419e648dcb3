"""`stepd logs`: what a run printed and logged, and the next lines as they come."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import click

from daemon.commands.common import json_option, open_store_of, to_json
from daemon.commands.service import clean, directory_option, size
from sdk import clock
from sdk.files import DISK
from sdk.reader import Run
from sdk.reader.logs import SOURCES, LogLine, level_of

_INDENT = "    "
_FOLLOW_LINES = 10
_AGE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(s|m|min|h|d)")
_UNIT_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_COLORS = ((40, "red"), (30, "yellow"), (20, "green"))
# What is said of a record in its first line; the rest of the line is its text.
_EXTRA_CHARACTERS_MAX = 200


def _level(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    try:
        return level_of(value)
    except ValueError as error:
        raise click.BadParameter(str(error).removeprefix("logs() ")) from error


def _pattern(_: click.Context, __: click.Parameter, value: str | None) -> re.Pattern[str] | None:
    try:
        return None if value is None else re.compile(value)
    except re.error as error:
        raise click.BadParameter(f"{value!r} is no regular expression: {error}") from error


def _time(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    age = _AGE.fullmatch(value.strip())
    if age is not None:
        return clock.wall_ns() / 1e9 - float(age[1]) * _UNIT_SECONDS[age[2]]
    try:
        return datetime.fromisoformat(value).timestamp()
    except ValueError as error:
        raise click.BadParameter(
            f"{value!r}, expected an age (90s, 10m, 2h, 1d) or a time (2026-05-04T17:00)"
        ) from error


# What `finish` prints begins so (`sdk._greeting.receipt`), and its other lines with seven spaces.
_RECEIPT = b"stepd  "
_RECEIPT_BYTES_MAX = 8192


@click.command("logs")
@click.argument("word", required=False, default="latest", metavar="[RUN]")
@click.option("-f", "--follow", is_flag=True, help="Go on with lines as they come, until the run ends.")
@click.option("-n", "--lines", "count", type=click.IntRange(min=0), help="The last so many; default: all, with -f 10.")
@click.option("--level", callback=_level, metavar="LEVEL", help="Only log records from this level on: WARNING, 30.")
@click.option("--grep", callback=_pattern, metavar="REGEX", help="Only lines that match.")
@click.option("--source", type=click.Choice(SOURCES), help="Only what came this way.")
@click.option("--rank", type=click.IntRange(min=0), help="Only processes of this rank.")
@click.option("--since", callback=_time, metavar="TIME", help="Only later lines: 10m, 2h, 2026-05-04T17:00.")
@click.option("--until", callback=_time, metavar="TIME", help="Only earlier lines.")
@click.option("--time", "with_time", is_flag=True, help="Say when each line came, and at which step.")
@json_option
@directory_option
@click.pass_context
def command(
    ctx: click.Context, word: str, follow: bool, count: int | None, level: int | None, grep: re.Pattern[str] | None,
    source: str | None, rank: int | None, since: float | None, until: float | None, with_time: bool, as_json: bool,
    directory: str | None,
) -> None:  # fmt: skip
    """What a run printed and logged; with --json one JSON object a line.

    Printed lines are given as they were. A log record has its level and logger before it and its traceback below. Where lines
    are missing, a line says how many and why.
    """
    if follow and (since is not None or until is not None):
        raise click.UsageError(
            "--follow begins with the last lines (-n); --since and --until are for what is there", ctx
        )
    run = open_store_of(ctx, directory).run(word)
    choice: dict[str, Any] = {"level": level, "grep": grep, "stream": source or "all", "rank": rank}
    lines: Iterable[LogLine]
    if follow:
        lines = run.follow_logs(last=_FOLLOW_LINES if count is None else count, **choice)
    else:
        lines = run.logs(last=count, since=since, until=until, **choice)
    if not run.has_console:
        click.echo(f"stepd: {_why_none(run)}", err=True)
    try:
        _print(run, lines, with_time, as_json)
    except KeyboardInterrupt:
        ctx.exit(0)  # how one leaves `logs -f`
    for text in _printed_later(run):
        click.echo(f"stepd: {text}", err=True)


def _why_none(run: Run) -> str:
    console = run.context.get("console")
    if isinstance(console, dict) and console.get("off"):
        return f"run {clean(run.id)} has no console: it was switched off (console='off'), and no LogHandler stored a record"
    return f"run {clean(run.id)} has no console: nothing was printed or logged"


def _printed_later(run: Run) -> Iterator[str]:
    """What the files into which the run printed hold beyond its end (docs/console.md#children), as far as they are here."""
    console = run.context.get("console")
    for facts in console.values() if isinstance(console, dict) else ():
        path, until = (facts.get("path"), facts.get("until")) if isinstance(facts, dict) else (None, None)
        if isinstance(path, str) and type(until) is int:
            with contextlib.suppress(OSError, ValueError):
                if DISK.status(path).is_regular and (later := _strange_bytes(path, until)):
                    yield f"{size(later)} came into {clean(path)} after the run had ended, and are not here"


def _strange_bytes(path: str, until: int) -> int:
    """How much of a file is behind `until`, without the receipt that `finish` prints when the console is closed."""
    file = DISK.open(path)
    try:
        later = file.size - until
        receipt = 0
        if later > 0 and file.read(until, len(_RECEIPT)) == _RECEIPT:
            for line in file.read(until, min(later, _RECEIPT_BYTES_MAX)).splitlines(keepends=True):
                if not line.startswith((_RECEIPT, b"       ")):
                    break
                receipt += len(line)
        return max(later - receipt, 0)
    finally:
        file.close()


def _print(run: Run, lines: Iterable[LogLine], with_time: bool, as_json: bool) -> None:
    ranks = {stream.rank for stream in run.streams if stream.kind == "console"}
    for line in lines:
        if as_json:
            click.echo(to_json(document(line)))
            continue
        if line.rank not in ranks:  # a process that began meanwhile
            ranks.add(line.rank)
        head = _when(line) if with_time else ""
        if len(ranks) > 1:
            head += f"[{'-' if line.rank is None else line.rank}] "
        for text in (_mark(line),) if line.missed else text_of(line):
            click.echo(head + text)


def document(line: LogLine) -> dict[str, Any]:
    """A line for programs: what it has, and always its time, source, text, step and place."""
    always = {"time": line.time, "source": line.source, "text": line.text, "step": line.step, "rank": line.rank}
    more = {key: value for key, value in line._asdict().items() if key not in always and value not in (None, 0, {})}
    if line.level is not None:
        more = {"level": line.level, "level_name": line.level_name, **more}
    return {**always, **more, "stream": line.stream, "number": line.number}


def text_of(line: LogLine) -> list[str]:
    """A line as it is shown: the text, further lines of it and a traceback indented."""
    first, *rest = [_clean(text) for text in line.text.split("\n")]
    if line.level is None or line.part:
        return [first, *(_INDENT + text for text in rest)]
    color = next((color for level, color in _COLORS if line.level >= level), None)
    name = f" {clean(line.logger)}" if line.logger not in (None, "root") else ""
    told = [f"{click.style(line.level_name, fg=color)}{name}: {first}{_extra(line)}"]
    for block in (*rest, line.error, line.stack):
        told += [_INDENT + _clean(text) for text in (block or "").rstrip("\n").split("\n")] if block else []
    return told


def _extra(line: LogLine) -> str:
    if not line.extra:
        return ""
    text = " ".join(f"{clean(key)}={_clean(str(value))}" for key, value in line.extra.items())
    text = text if len(text) <= _EXTRA_CHARACTERS_MAX else f"{text[:_EXTRA_CHARACTERS_MAX]}…"
    return click.style(f"  {text}", dim=True)


def _mark(line: LogLine) -> str:
    lines = f"{line.missed:,} line{'s' if line.missed != 1 else ''}"
    source = f" of {clean(line.source)}" if line.source in SOURCES else ""
    return click.style(f"--- {lines}{source} missing: {clean(line.why)} ---", fg="yellow")


def _when(line: LogLine) -> str:
    local = time.localtime(max(line.time, 0))
    step = "" if line.step is None else f"{line.step}"
    return click.style(
        f"{time.strftime('%Y-%m-%d %H:%M:%S', local)}.{int(line.time * 1000) % 1000:03} {step:>8}  ", dim=True
    )


def _clean(text: str) -> str:
    """Without what could steer the terminal; tabs as they would look."""
    text = clean(text.expandtabs())
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
