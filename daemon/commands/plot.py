"""`stepd plot`: curves of runs in the terminal, or as a picture (docs/plot.md)."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from daemon.commands.common import can_unicode, json_option, open_store_of, passing, print_json, split_words
from daemon.commands.service import clean, directory_option
from sdk import clock
from sdk.errors import NotFoundError, UsageError
from sdk.reader import Run, Store

if TYPE_CHECKING:
    from sdk.query.curves import Line, Lines

# Limit: more lines than these cannot be told apart in any chart.
_LINES_MAX = 50
# Limit: the members of all groups; each is opened and read, about 1 ms.
_MEMBERS_MAX = 2_000
# Limit: what is read in some 0.1 s; of more it is said.
_QUICK_RUNS_MAX = 200
_LIVE_SECONDS = 1.0
# A chart that is drawn again and again costs at most this part of a core.
_LIVE_PART = 0.1
_PICTURES = (".png", ".svg", ".pdf")
_PATTERN = "*?["


class _Asked(NamedTuple):
    """What is to be drawn; no keys: those that are worth it, by then."""

    runs: list[Run]
    keys: list[str]
    how: dict[str, Any]
    notes: list[str]


@click.command("plot")
@click.argument("words", nargs=-1, metavar="[RUN]... [KEY]...")
@click.option("-k", "--key", "keys", multiple=True, metavar="KEY", help="A key that is also called like a run.")
@click.option("--where", metavar="EXPR", help="The runs for which this holds, as in stepd runs.")
@click.option("--x", "x", metavar="step|epoch|time|relative|KEY", help="The x axis; default: the defined one, or step.")
@click.option("--smooth", type=click.FloatRange(0, 1, max_open=True), help="Exponential mean, as TensorBoard's.")
@click.option("--log", is_flag=True, help="A logarithmic y axis.")
@click.option("--group", metavar="NAME[,NAME]", help="One line for all runs of the same values: config.method.")
@click.option("--over", metavar="NAME", help="What differs within a group: seed.")
@click.option("--band", type=click.Choice(["std", "sem", "minmax", "ci95"]), help="Around the mean of a group.")
@click.option("--rank", type=int, metavar="N", help="Only what this rank logged.")
@click.option("--stream", metavar="ID", help="Only what this stream logged, rows that a resume hid included.")
@click.option("--points", type=click.IntRange(7), default=2000, show_default=True, help="At most so many of each line.")
@click.option("--live", is_flag=True, help="Draw again as values come, until the runs have ended.")
@click.option("-o", "--output", metavar="FILE", help="A picture instead: .png, .svg or .pdf.")
@click.option("--title", help="Above the chart; default: what the lines have in common.")
@click.option("--width", type=click.IntRange(20), help="Characters; default: the terminal's.")
@click.option("--height", type=click.IntRange(6), help="Lines; default: most of the terminal's.")
@json_option
@directory_option
@click.pass_context
def command(
    ctx: click.Context, /, words: tuple[str, ...], keys: tuple[str, ...], where: str | None, live: bool, as_json: bool,
    directory: str | None, group: str | None, over: str | None, log: bool, output: str | None, title: str | None,
    width: int | None, height: int | None, **how: Any,
) -> None:  # fmt: skip
    """Several keys and runs in one chart. Words that name runs are runs, the others keys or patterns of them; no run means the latest.

    Without a key those with "loss" in their name are drawn, else the first one that holds numbers.
    """
    if output is not None and not output.lower().endswith(_PICTURES):
        raise UsageError(f"cannot draw {output!r}: expected one of {', '.join(_PICTURES)}", hint="-o chart.png")
    if how["band"] and not (group or over):
        raise UsageError("--band surrounds the mean of a group, and there are no groups", hint="--over seed --band std")
    how = {**how, "x": how["x"] or "auto", "group": _names_in(group), "over": (over or "").strip() or None}
    asked = _ask(open_store_of(ctx, directory), words, keys, where, how)
    if as_json or output is not None:
        lines = _read(asked)
        if as_json:
            print_json([_told(line, lines.x_name) for line in lines.lines])
        if output is not None:
            _save(lines, output, title, log)
        return
    shape = _Shape(width, height, log, title)
    if not live:
        for line in shape.drawn(_read(asked)):
            click.echo(line)
        return
    try:
        _draw_again_and_again(asked, shape)
    except KeyboardInterrupt:
        ctx.exit(0)  # how one leaves --live; the last chart stays


# ---- what is asked for


def _names_in(text: str | None) -> list[str]:
    return [name for part in (text or "").split(",") if (name := part.strip())]


def _ask(
    store: Store, words: Sequence[str], keys: Sequence[str], where: str | None, how: dict[str, Any]
) -> _Asked:  # fmt: skip
    notes: list[str] = []
    patterns = [word for word in words if any(sign in word for sign in _PATTERN)]
    plain = [word for word in words if word not in patterns]
    if where is None and not (how["group"] or how["over"]):
        runs, named = split_words(store, plain)
    else:
        runs, named = _chosen(store, plain, where, notes)
    runs = list({run.id: run for run in runs}.values())  # "latest" may be one that is named too
    return _Asked(runs, [*named, *patterns, *keys], how, notes)


def _chosen(store: Store, words: Sequence[str], where: str | None, notes: list[str]) -> tuple[list[Run], list[str]]:
    """The runs for which an expression holds, among those that some of the words name, and the other words.

    Without an expression and names: those of the project of the latest run.
    """
    everything = store.runs()
    named = [run for run in everything if run.id in words or run.name in words]
    runs = named or everything
    if where is not None:
        from sdk.query.overview import select

        runs = select(runs, where, None)
        if not runs:
            raise NotFoundError(f"no run is so: {where}", hint="stepd runs")
    elif not named:
        runs = [run for run in runs if run.project == runs[0].project]
        if runs:
            notes.append(f"{len(runs)} runs of project {runs[0].project}")
    if not runs:
        raise NotFoundError(f"{store.path!r} holds no run", hint="stepd runs")
    names = {run.id for run in named} | {run.name for run in named}
    return runs, [word for word in words if word not in names]


def _read(asked: _Asked) -> Lines:
    from sdk.query.curves import Lines, default_keys, read_lines

    runs, notes = asked.runs, list(asked.notes)
    keys = asked.keys or default_keys(runs)
    limit = _MEMBERS_MAX if asked.how["group"] or asked.how["over"] else max(_LINES_MAX // len(keys), 1)
    if len(runs) > limit:
        notes.append(f"{limit} of {len(runs)} runs are drawn, those that were started last; --where chooses others")
    count = len(runs[:limit])
    with passing(f"reading {count:,} runs") if count > _QUICK_RUNS_MAX else contextlib.nullcontext():
        lines = read_lines(runs[:limit], keys, lines_max=_LINES_MAX, **asked.how)
    if len(lines.lines) > _LINES_MAX:  # groups
        notes.append(f"{_LINES_MAX} of {len(lines.lines)} lines are drawn")
    return Lines(lines.x_name, lines.lines[:_LINES_MAX], lines.notes + notes)


def _told(line: Line, x_name: str) -> dict[str, Any]:
    """A line as JSON."""
    told: dict[str, Any] = {
        "run": line.run, "name": line.name, "project": line.project, "key": line.key, "x_name": x_name,
        "x": line.x.tolist(), "value": line.y.tolist(),
    }  # fmt: skip
    for name in ("raw", "low", "high"):
        values = getattr(line, name)
        if values is not None:
            told[name] = values.tolist()
    for name in ("last", "best", "best_x", "goal", "count", "not_finite", "gaps", "attempts", "members"):
        told[name] = getattr(line, name)
    return told


# ---- drawing


class _Shape(NamedTuple):
    """How a chart is drawn."""

    width: int | None
    height: int | None
    log: bool
    title: str | None

    def drawn(self, lines: Lines, *, live: bool = False) -> list[str]:
        from daemon.commands.chart import Style, draw

        size = shutil.get_terminal_size()
        most = size.lines - 1
        # Why not all of a tall terminal: what was on it before is wanted too, and a curve is wide.
        height = self.height or (most if live else max(min(most, 23), size.lines * 2 // 3))
        color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        style = Style(can_unicode(), bool(color))
        text = draw(lines, self.width or size.columns, height, style, log=self.log, title=self.title)
        return text[:most] if live and sys.stdout.isatty() else text


def _draw_again_and_again(asked: _Asked, shape: _Shape) -> None:
    """Until all runs have ended. A drawing that takes long comes less often."""
    from daemon.commands.redraw import InPlace

    seen = None
    with InPlace() as place:
        while True:
            started = time.process_time()
            going = any(run.state == "running" for run in asked.runs)
            for run in asked.runs:
                run.refresh()
            now = [(run.size_bytes, run.updated, going) for run in asked.runs], shutil.get_terminal_size()
            if now != seen:
                place.show(_drawn_or_waiting(asked, shape, going))
            seen = now
            if not going:
                return
            clock.pause(max(_LIVE_SECONDS, (time.process_time() - started) / _LIVE_PART))


def _drawn_or_waiting(asked: _Asked, shape: _Shape, going: bool) -> list[str]:
    """The chart; while nothing is there of runs that go on, what is waited for."""
    try:
        return shape.drawn(_read(asked), live=True)
    except NotFoundError as error:
        if not going:
            raise
        width = shape.width or shutil.get_terminal_size().columns
        return [clean(f"waiting: {error.message}")[: width - 1]]


def _save(lines: Lines, path: str, title: str | None, log: bool) -> None:
    """Draws into a file."""
    import warnings

    from daemon.commands.output import write_file
    from sdk.query.figure import figure

    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that its font lacks, and of a logarithm of nothing
        figure(lines, title=title, log=log).savefig(picture, format=path.lower().rpartition(".")[2])
    write_file(path, picture.getvalue())
    click.echo(f"{clean(path)}: {len(lines.lines)} line{'' if len(lines.lines) == 1 else 's'}")
