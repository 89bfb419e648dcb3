"""`stepd plot`: curves of runs in the terminal."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from daemon.commands.chart import Axis, Curve, Style, draw
from daemon.commands.common import can_unicode, json_option, open_store_of, print_json, split_words, when_text
from daemon.commands.service import clean, directory_option
from sdk import clock
from sdk.errors import NotFoundError
from sdk.reader import Run

if TYPE_CHECKING:
    from sdk.reader.series import Series

_CURVES_MAX = 7
_DEFAULT_KEYS_MAX = 4
_LIVE_SECONDS = 2.0


@click.command("plot")
@click.argument("words", nargs=-1, metavar="[RUN]... [KEY]...")
@click.option("-k", "--key", "keys", multiple=True, metavar="KEY", help="A key that is also called like a run.")
@click.option(
    "--x", "x", metavar="step|time|relative|KEY", help="The x axis; default: what define_metric said, else the step."
)
@click.option("--live", is_flag=True, help="Draw again every 2 s until the runs have ended.")
@click.option("--width", type=click.IntRange(20), help="Characters; default: the terminal's.")
@click.option("--height", type=click.IntRange(6), help="Lines; default: two thirds of the terminal's.")
@json_option
@directory_option
@click.pass_context
def command(
    ctx: click.Context, words: tuple[str, ...], keys: tuple[str, ...], x: str | None, live: bool, width: int | None,
    height: int | None, as_json: bool, directory: str | None,
) -> None:  # fmt: skip
    """Several keys and runs in one chart. Words that name runs are runs, the others keys; no run means the latest.

    Without a key those with "loss" in their name are drawn, else the first one that holds numbers.
    """
    store = open_store_of(ctx, directory)
    runs, named = split_words(store, words)
    chosen = [*named, *keys] or _default_keys(runs)
    if as_json:
        found, name = _curves(runs, chosen, x)
        print_json([_points(run, key, curve, name) for run, key, curve in found])
        return
    size = shutil.get_terminal_size()
    shape = (width or size.columns, height or max(size.lines * 2 // 3, 12))
    try:
        while True:
            going = live and any(run.state == "running" for run in runs)
            _print(runs, chosen, x, shape, clear=live)
            if not going:
                return
            clock.pause(_LIVE_SECONDS)
    except KeyboardInterrupt:
        ctx.exit(0)  # how one leaves --live


def _print(runs: list[Run], keys: list[str], x: str | None, shape: tuple[int, int], clear: bool) -> None:
    found, name = _curves(runs, keys, x)
    curves = [curve for _, _, curve in found]
    if clear:
        click.clear()
    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for line in draw(curves[:_CURVES_MAX], *shape, Style(can_unicode(), color), _axis(name)):
        click.echo(line)
    if len(curves) > _CURVES_MAX:
        click.echo(
            f"  {len(curves) - _CURVES_MAX} more are not drawn: {_CURVES_MAX} curves are what one can tell apart"
        )


def _default_keys(runs: list[Run]) -> list[str]:
    keys = sorted(set().union(*map(Run.shown_keys, runs)))
    losses = [key for key in keys if "loss" in key.lower()]
    for key in losses[:_DEFAULT_KEYS_MAX]:
        if not _is_numeric(runs, key):
            losses.remove(key)
    if losses:
        return losses[:_DEFAULT_KEYS_MAX]
    for key in keys:
        if _is_numeric(runs, key):
            return [key]
    raise NotFoundError(f"{_names(runs)} holds no numbers to draw yet", hint=f"stepd show {runs[0].id}")


def _is_numeric(runs: list[Run], key: str) -> bool:
    for run in runs:
        try:
            return run.series(key).value.dtype.kind in "fiub"
        except NotFoundError:
            continue
    return False


def _axis(name: str) -> Axis:
    if name == "time":
        return Axis("", when_text)
    return Axis("s", lambda seconds: f"{seconds:,.4g}") if name == "relative" else Axis(clean(name))


def _curves(runs: list[Run], keys: list[str], x: str | None) -> tuple[list[tuple[Run, str, Curve]], str]:
    """A curve for each run that holds a key, and the name of their x axis: the step where they would have several.

    Raises:
        NotFoundError: No run holds a key, or what it holds are no numbers.
    """
    found: list[tuple[Run, str, Series]] = []
    for key in keys:
        holders = 0
        for run in runs:
            try:
                series = run.series(key, x=x or "auto")
            except NotFoundError:
                if run is runs[-1] and not holders:
                    raise
                continue
            holders += 1
            if series.value.dtype.kind not in "fiub":
                raise NotFoundError(f"{key!r} of {run.id} holds no numbers", hint=f"stepd tail {run.id} {key}")
            found.append((run, key, series))
    names = {series.x_name for _, _, series in found}
    name = names.pop() if len(names) == 1 else "step"
    return [
        (run, key, _curve(_along(series, name), run, key, len(runs) > 1, len(keys) > 1)) for run, key, series in found
    ], name


def _along(series: Series, name: str) -> Series:
    """The values in the order of their places on an axis, those left out that have none."""
    import numpy

    if name == "step":
        return dataclasses.replace(series, axis=None, x_name=name)
    place = numpy.flatnonzero(~numpy.isnan(series.x.astype(numpy.float64)))
    place = place[numpy.argsort(series.x[place], kind="stable")]
    return dataclasses.replace(series, value=series.value[place], axis=series.x[place])


def _curve(series: Any, run: Run, key: str, name_run: bool, name_key: bool) -> Curve:
    import numpy

    value = series.value.astype(numpy.float64)
    finite = numpy.isfinite(value)
    parts = [clean(key)] if name_key or not name_run else []
    parts += [f"{clean(run.name)} ({clean(run.id)})"] if name_run else []
    label = "  ".join(parts) + ("" if name_key or not name_run else f"  {clean(key)}")
    if finite.any():
        label += f"   last {value[finite][-1]:.4g}   min {value[finite].min():.4g}   max {value[finite].max():.4g}"
    if not finite.all():
        label += f"   {int((~finite).sum()):,} not finite"
    return Curve(label, series.x[finite], value[finite])


def _points(run: Run, key: str, curve: Curve, name: str) -> dict[str, Any]:
    return {"run": run.id, "key": key, "x_name": name, "x": curve.x.tolist(), "value": curve.y.tolist()}


def _names(runs: list[Run]) -> str:
    return ", ".join(run.id for run in runs)
