"""`stepd why`: how a run died, or why it hangs: the verdict, what speaks for it, what can be done, and the last things it did."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from typing import Any

import click

from daemon.commands.common import can_unicode, json_option, open_store_of, print_json, value_text, when_text
from daemon.commands.service import clean, directory_option
from sdk._greeting import count
from sdk.errors import NotFoundError
from sdk.query.why.hanging import OUTCOMES, Pace, is_library, pace_text, who_text
from sdk.query.why.postmortem import Postmortem, choose, postmortem
from sdk.query.why.stacks import ANSWERED, Frame, Group, Process, grouped
from sdk.reader import Run, Store
from sdk.reader.logs import LogLine

# What is printed into a terminal without --all fits a small one; a pipe gets everything.
_LINES_MIN, _COLUMNS = 24, 80
_EVIDENCE_MAX, _ADVICE_MAX, _FRAMES_MAX, _KEYS_MAX = 8, 3, 8, 6
_TIME_MAX = 1e11
_FRAME_LINE = re.compile(r'  File "([^"]*)", line ')
_ASCII = str.maketrans({"…": "...", "–": "-", "×": "x"})


@click.command("why")
@click.argument("run", required=False)
@click.option("--now", is_flag=True, help="Of a run that lives: show what its threads do, whether it hangs or not.")
@click.option(
    "--all", "everything", is_flag=True, help="All evidence, stacks, rows and lines, not only what fits a screen."
)
@click.option(
    "--wait",
    "seconds",
    default=2.0,
    type=click.FloatRange(0.1, 60.0),
    show_default=True,
    help="Seconds to wait for an answer.",
)
@json_option
@directory_option
@click.pass_context
def command(
    ctx: click.Context,
    run: str | None,
    now: bool,
    everything: bool,
    seconds: float,
    as_json: bool,
    directory: str | None,
) -> None:
    """How a run died, or why it hangs.

    Without RUN: the one that hangs now, else the one that ended last of those that did not end well. Of a run that lives and is silent,
    or with --now, the processes on this machine are asked for the stacks of their threads; that disturbs nobody (docs/why.md).
    """
    store = open_store_of(ctx, directory)
    found = postmortem(_chosen(store, run), now=now, seconds=seconds, on_ask=_say_that_we_ask)
    if as_json:
        print_json(plain(found))
        return
    _print(found, everything or not sys.stdout.isatty())


def _say_that_we_ask(pace: Pace) -> None:
    """Something to read while processes that do not answer are waited for; overwritten by what follows."""
    if sys.stderr.isatty():
        text = f"{pace_text(pace)}; asking its processes"[: shutil.get_terminal_size().columns - 1]
        click.echo(f"{text}\r", nl=False, err=True)


def _chosen(store: Store, text: str | None) -> Run:
    if text is not None:
        return store.run(text)
    found = choose(store)
    if found is None:
        raise NotFoundError(
            "no run of this store died or hangs; all that ended finished well", hint="stepd why latest --now"
        )
    return found


def plain(value: Any) -> Any:
    """Named tuples as maps, all the way down; what else there is stays."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(part) for name, part in value._asdict().items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return {key: plain(part) for key, part in value.items()} if isinstance(value, dict) else value


class _Page:
    """What is printed: as much of each part as there is room for."""

    def __init__(self, everything: bool) -> None:
        size = shutil.get_terminal_size((_COLUMNS, _LINES_MIN))
        self.columns = max(size.columns, 40) if sys.stdout.isatty() else 100
        # One line for the prompt that follows, one for what was left out.
        self.left = 1 << 30 if everything else max(size.lines, _LINES_MIN) - 2
        self.everything = everything
        self.hidden: list[str] = []

    def line(self, text: str = "", **style: Any) -> None:
        if not can_unicode():
            text = text.translate(_ASCII)
        cut = "…" if can_unicode() else "..."
        text = text if self.everything or len(text) <= self.columns else text[: self.columns - len(cut)] + cut
        click.echo(click.style(text, **style) if style and not os.environ.get("NO_COLOR") else text)
        self.left -= 1

    def paragraph(self, text: str, indent: str = "", hanging: str | None = None, **style: Any) -> None:
        rest = indent if hanging is None else hanging
        for line in textwrap.wrap(
            clean(text), self.columns, initial_indent=indent, subsequent_indent=rest, break_on_hyphens=False
        ) or [""]:
            self.line(line, **style)

    def part(self, title: str, lines: Sequence[str], *, last: bool = False) -> None:
        """A titled part, cut to what is left (its end, where `last`); what is cut is named at the end of the page."""
        if not lines:
            return
        room = max(self.left - 2, 0)
        if room < min(2, len(lines)):
            self.hidden.append(title)
            return
        shown = (lines[-room:] if last else lines[:room]) if len(lines) > room else lines
        self.line()
        more = "" if len(shown) == len(lines) else f", {len(shown)} of {len(lines)}"
        self.line(f"{title}{more}", bold=True)
        for line in shown:
            self.line(f"  {line}")
        if len(shown) < len(lines):
            self.hidden.append(title)


def _print(found: Postmortem, everything: bool) -> None:
    page = _Page(everything)
    if found.processes and sys.stderr.isatty():
        click.echo(" " * (page.columns - 1) + "\r", nl=False, err=True)
    project = f"   project {clean(found.project)}" if found.project else ""
    ended = f", {when_text(found.ended)}" if found.ended else ""
    page.line(f"{clean(found.name)} ({clean(found.id)}){project}   {found.state}{ended}", bold=True)
    page.paragraph(
        f"{found.verdict.text} [{found.verdict.confidence}]", fg="red" if found.verdict.cause not in _GOOD else "green"
    )
    limit = None if everything else _EVIDENCE_MAX
    width = max((len(one.kind) for one in found.evidence), default=0)
    if limit is not None and len(found.evidence) > limit:
        page.hidden.append("evidence")
    told = [(f"{one.kind:<{width}}  ", f"{_clock(one.time)}{one.text}") for one in found.evidence[:limit]]
    page.part("evidence", [line for head, text in told for line in _wrapped(text, page, head)])
    advice = [
        line
        for text in found.verdict.advice[: limit and _ADVICE_MAX]
        for line in _wrapped(text.replace("RUN", found.id), page)
    ]
    page.part("try", advice)
    if found.processes:
        _print_stacks(page, found.processes)
    if found.error is not None and found.error.traceback:
        page.part("traceback", list(_traceback_lines(found.error.traceback, everything)), last=True)
    page.part("last rows", list(_rows(found, everything)), last=True)
    page.part("last lines", [_console_line(line) for line in found.lines], last=True)
    if page.hidden:
        names = ", ".join(dict.fromkeys(page.hidden))
        page.line(f"more: stepd why {clean(found.id)} --all ({names})", dim=True)


_GOOD = ("finished", "running")


def _wrapped(text: str, page: _Page, head: str = "- ") -> list[str]:
    return textwrap.wrap(
        clean(text), page.columns - 2, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False
    )


def _clock(when: float | None) -> str:
    # A store may say any time; what no calendar has is left out.
    return f"{time.strftime('%H:%M:%S', time.localtime(when))}  " if when and 0 < when < _TIME_MAX else ""


def _rows(found: Postmortem, everything: bool) -> Iterator[str]:
    for row in found.rows if everything else found.rows[-2:]:
        keys = [key for key in row if not key.startswith("_")]
        told = [f"{clean(key)} {value_text(row[key])}" for key in keys[: None if everything else _KEYS_MAX]]
        more = f" … {len(keys) - len(told)} more" if len(told) < len(keys) else ""
        yield f"{_clock(row['_timestamp'])}step {row['_step']:,}  {'  '.join(told)}{more}"


def _console_line(line: LogLine) -> str:
    if line.missed:
        return f"({line.missed:,} lines are missing: {clean(line.why)})"
    rank = f"rank {line.rank}  " if line.rank else ""
    return f"{_clock(line.time)}{rank}{clean(line.source)}  {clean(line.text)}"


# -- stacks


def _print_stacks(page: _Page, processes: Sequence[Process]) -> None:
    """The main threads first, those of one process whole, of many grouped; the other threads in a line each."""
    groups = grouped(processes)
    for group in groups:
        if group.is_main or page.everything:
            page.part(_group_title(group, len(processes)), list(_frame_lines(group, page)))
    others = [group for group in groups if not group.is_main]
    if not page.everything:
        page.part("other threads", [_one_line(group) for group in others])
    quiet = [process for process in processes if process.outcome != ANSWERED]
    page.part("not answered", list(_quiet_lines(quiet, page.everything)))


def _group_title(group: Group, processes: int) -> str:
    names = sorted({clean(thread.name) for _, thread in group.members})
    name = (
        names[0]
        if len(names) == 1
        else f"{len(group.members)} threads ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
    )
    process, thread = group.members[0]
    who = f" of {who_text([process for process, _ in group.members])}" if processes > 1 else f", process {process.pid}"
    source = f", by {process.source}" if process.source != "process" else ""
    return f"{name}{who}{source}{', holds the GIL' if thread.has_gil else ''} (innermost call first)"


def _frame_lines(group: Group, page: _Page) -> Iterator[str]:
    """The frames; of runs of library code, where not everything is wanted, the innermost alone."""
    folded = 0
    shown = 0
    cut, left_out = group.members[0][1].left_out
    for index, frame in enumerate(group.frames):
        if left_out and index == cut:
            yield f"({left_out} calls are left out)"
        is_inner = index == 0 or not is_library(frame.file)
        if not page.everything and (not is_inner or shown >= _FRAMES_MAX):
            folded += 1
            continue
        if folded:
            yield f"({count(folded, 'call')} in libraries)"
        folded, shown = 0, shown + 1
        yield _frame_text(frame, page.everything)
    if folded:
        yield f"({folded} more {'call' if folded == 1 else 'calls'})"


def _traceback_lines(text: str, everything: bool) -> Iterator[str]:
    """A traceback as Python prints it; of library code, where not everything is wanted, only the innermost calls."""
    lines = [clean(line) for line in text.rstrip("\n").split("\n")]
    folded = begin = 0
    while begin < len(lines):
        file = _FRAME_LINE.match(lines[begin])
        end = begin + 1
        while file is not None and end < len(lines) and lines[end].startswith("    "):
            end += 1
        is_followed = end < len(lines) and _FRAME_LINE.match(lines[end]) is not None
        if file is not None and is_followed and not everything and is_library(file[1]):
            folded += 1
        else:
            if folded:
                yield f"  ({count(folded, 'call')} in libraries)"
            folded = 0
            yield from lines[begin:end]
        begin = end


def _frame_text(frame: Frame, whole: bool) -> str:
    path = frame.file if whole else "/".join(frame.file.split("/")[-2:])
    text = f"  {frame.text}" if frame.text else ""
    return clean(f"{path}:{frame.line}  {frame.function}{text}")


def _one_line(group: Group) -> str:
    thread = group.members[0][1]
    who = f" ×{len(group.members)}" if len(group.members) > 1 else ""
    frame = next((frame for frame in group.frames if not is_library(frame.file)), None)
    inner = group.frames[0] if group.frames else None
    if inner is None:
        return f"{clean(thread.name)}{who}"
    where = f"{_frame_text(inner, False)}"
    if frame is not None and frame is not inner:
        where += f"  from {_frame_text(frame, False)}"
    return f"{clean(thread.name)}{who}: {where}"


def _quiet_lines(quiet: Sequence[Process], everything: bool) -> Iterator[str]:
    for outcome in dict.fromkeys(process.outcome for process in quiet):
        some = [process for process in quiet if process.outcome == outcome]
        yield f"{who_text(some)}: {OUTCOMES[outcome]}"
    for process in quiet if everything else quiet[:1]:
        for task in process.tasks:
            if not (everything or task.state == "D" or task.id in (process.pid, process.busy)):
                continue
            waits = f", in {clean(task.call or task.waits_in)}" if task.call or task.waits_in else ""
            yield f"  thread {task.id} {clean(task.name)}: {_STATES.get(task.state, task.state)}{waits}, {task.cpu_seconds:.1f} s of CPU"


_STATES = {
    "R": "computes", "S": "sleeps", "D": "waits for a device", "T": "is stopped", "t": "is traced", "Z": "is dead", "I": "is idle",
}  # fmt: skip
