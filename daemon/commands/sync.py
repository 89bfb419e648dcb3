"""`stepd sync`: carries runs to where they will be looked at (docs/sync.md)."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import click

from daemon.commands.common import json_option, open_store_of, print_json, write_table
from daemon.commands.service import clean, clean_lines, directory_option, size
from daemon.commands.sync_progress import watching
from daemon.sync import outcome
from daemon.sync.driver import Chosen, Driver
from daemon.sync.looking import run_names
from daemon.sync.outcome import Outcome
from daemon.sync.place import parse
from daemon.sync.planning import Plan, plan_of
from daemon.sync.registry import make
from daemon.sync.target import Target
from sdk import clock
from sdk._greeting import count
from sdk.errors import NotFoundError, UsageError
from sdk.files import DISK
from sdk.reader import Store
from sdk.segment.naming import RUNS

# Of runs that are wholly there, more are only counted.
_DELIVERED_SHOWN_MAX = 50
_UNCHANGED_SHOWN_MAX = 10
# Of what a target cannot hold so many keys are named; --json has more.
_KEYS_SHOWN_MAX = 5
_NOT_HELD = "not held"


@click.command("sync")
@click.argument("runs", nargs=-1, metavar="[RUN...]")
@click.option("--project", metavar="NAME", help="All runs of a project.")
@click.option("--all", "every", is_flag=True, help="All runs of the store.")
@click.option(
    "--to",
    "urls",
    multiple=True,
    metavar="TARGET",
    help="tensorboard:DIR, parquet:DIR, wandb:PROJECT, … (several: --to A --to B)",
)
@click.option("--live", is_flag=True, help="Go on while runs do, with what is new; new runs join.")
@click.option("--drain", is_flag=True, help="Deliver what init(sync_to=…) asked for and nobody has done yet.")
@click.option("--forget", is_flag=True, help="Take away what init(sync_to=…) asked for: jobs [of RUN] with these --to.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long a target that is away is tried. Default: five times.",
)
@click.option(
    "--workers", type=click.IntRange(1, 256), metavar="N", help="Processes; default: as many as cores, at most 4."
)
@click.option("--dry-run", is_flag=True, help="Say what would be carried.")
@click.option(
    "--accept-loss", is_flag=True, help="Exit code 0 also where a target cannot hold something; it is still shown."
)
@json_option
@directory_option
@click.pass_context
def command(
    ctx: click.Context, runs: tuple[str, ...], project: str | None, every: bool, urls: tuple[str, ...], live: bool,
    drain: bool, forget: bool, timeout: float | None, workers: int | None, dry_run: bool, accept_loss: bool,
    as_json: bool, directory: str | None,
) -> None:  # fmt: skip
    """Carry runs (default: latest) to TensorBoard, Parquet, MLflow, W&B, another store: what is new of them, exactly once.

    Whatever is killed, the same command goes on where it was; with nothing new it does nothing. Needs no daemon.

    Exit code 0: everything is there as it was logged; 1: something could not be carried, or (but for --accept-loss) is nothing
    that the target can hold, and the lines below the table say what; 2: misuse; 130, 143: interrupted.
    """
    if sum((bool(runs), project is not None, every)) > 1:
        raise click.UsageError("RUN, --project and --all exclude each other")
    store = open_store_of(ctx, directory)
    if drain:
        if runs or project is not None or every or live or dry_run or accept_loss:
            raise click.UsageError("--drain takes --to, --timeout and --json only")
        _drain(ctx, store, urls, timeout, as_json)
        return
    if forget:
        if project is not None or live or dry_run or timeout is not None or workers is not None:
            raise click.UsageError("--forget takes RUN, --all, --to and --json only")
        _forget(store, runs, urls, as_json)
        return
    if not urls:
        raise click.UsageError("no --to. Try: stepd sync latest --to tensorboard:runs")
    targets = _targets(urls)
    _refuse_itself(store.path, targets)
    choose = _chooser(store, runs, project, every)
    if dry_run:
        _print_plans(
            [plan for target in targets for one in choose() if (plan := plan_of(store.path, one.name, target))], as_json
        )
        return
    began = clock.monotonic()
    with watching(as_json, live) as see, _Signals() as signals:
        driver = Driver(
            store.path, targets, choose, workers=workers, live=live, timeout=timeout,
            looks_for_removed=every or project is not None, see=lambda seen: see(driver, seen),
        )  # fmt: skip
        found = driver.run(signals.is_stopped, signals.should_hurry)
    _print(found, clock.monotonic() - began, as_json)
    _exit(ctx, found, signals, accept_loss)


def _targets(urls: Iterable[str]) -> list[Target]:
    """What the URLs name, each once."""
    try:
        places = [parse(url).absolute() for url in urls]
        return [make(place) for place in {place.text: place for place in places}.values()]
    except UsageError as error:
        raise click.UsageError(clean_lines(str(error))) from error


def _refuse_itself(store: str, targets: Iterable[Target]) -> None:
    own = _place_on_disk(store)
    for target in targets:
        if target.place.scheme == "stepd" and own is not None and _place_on_disk(target.place.path) == own:
            raise click.UsageError(
                clean(f"{target.place.text!r} is the store that the runs lie in. Try: --to stepd:/another/directory")
            )


def _place_on_disk(store: str) -> tuple[int, int] | None:
    """What is the same for two names of one store; None: there is none."""
    with contextlib.suppress(OSError):
        return DISK.status(os.path.join(store, RUNS))[2:4]
    return None


def _chooser(store: Store, words: Sequence[str], project: str | None, every: bool) -> Callable[[], list[Chosen]]:
    """What gives the runs that are meant, now. Asked again while `--live`."""
    if every:
        return lambda: [Chosen(name) for name in run_names(store.path)]
    if project is not None:
        first = store.runs(project)
        if not first:
            raise NotFoundError(f"{store.path} holds no run of project {project!r}", hint="stepd runs")
        return lambda: [_chosen(run) for run in store.runs(project)]
    named = list({run.directory: _chosen(run) for run in map(store.run, words or ["latest"])}.values())
    return lambda: named


def _chosen(run: Any) -> Chosen:
    return Chosen(os.path.basename(run.directory), run.id)


class _Signals:
    """SIGINT and SIGTERM while the driver works: the first lets workers come to a batch's end, the second does not."""

    def __init__(self) -> None:
        self.number = 0
        self._count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, _: object) -> None:
        self.number = self.number or number
        self._count += 1

    def is_stopped(self) -> bool:
        return self._count > 0

    def should_hurry(self) -> bool:
        return self._count > 1


def _exit(ctx: click.Context, found: list[Outcome], signals: _Signals, accept_loss: bool) -> None:
    if signals.number:
        ctx.exit(128 + signals.number)
    if any(one.state == outcome.MISUSE for one in found):
        ctx.exit(2)
    ctx.exit(0 if all(one.is_whole if accept_loss else one.is_exact for one in found) else 1)


def _print(found: list[Outcome], seconds: float, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "exact": all(one.is_exact for one in found),
                "seconds": seconds,
                "outcomes": [{**one.as_plain(), "state": one.shown} for one in found],
            }
        )
        return
    shown = _shown(found)
    if shown:
        _print_table(shown)
    for line in _remarks(shown):
        click.echo(clean(line))
    counts = {state: sum(one.shown == state for one in found) for state in dict.fromkeys(one.shown for one in found)}
    told = ", ".join(f"{number:,} {state}" for state, number in counts.items()) or "no runs"
    points, total = sum(one.points for one in found), sum(one.size for one in found)
    click.echo(f"{told}: {count(points, 'point')}, {size(total)} in {seconds:.1f} s")


def _shown(found: list[Outcome]) -> list[Outcome]:
    """Those that get a line in the table: all with trouble, and the others if they are few."""
    unchanged = sum(one.is_exact and one.state == outcome.UP_TO_DATE for one in found)
    exact = sum(one.is_exact for one in found) - unchanged
    return [
        one
        for one in found
        if not one.is_exact
        or (unchanged <= _UNCHANGED_SHOWN_MAX if one.state == outcome.UP_TO_DATE else exact <= _DELIVERED_SHOWN_MAX)
    ]


def _print_table(shown: list[Outcome]) -> None:
    titles = ("RUN", "NAME", "TARGET", "POINTS", "SIZE", "SECONDS", "STATE")
    rows = [
        (one.run, one.name, one.target, f"{one.points:,}", size(one.size), f"{one.seconds:.1f}", _state(one)) for one in shown
    ]  # fmt: skip
    columns = list(range(len(titles)))
    widths = [max(len(clean(row[column])) for row in (titles, *rows)) for column in columns]
    if sys.stdout.isatty() and sum(widths) + 2 * len(titles) > shutil.get_terminal_size().columns:
        columns.remove(1)  # the name; the id says which run it is
    write_table(
        [titles[column] for column in columns], [[row[column] for column in columns] for row in rows],
        right=[place for place, column in enumerate(columns) if titles[column] in ("POINTS", "SIZE", "SECONDS")],
    )  # fmt: skip


def _state(one: Outcome) -> str:
    """The state in words that need no more room; why stands below the table."""
    return f"{one.shown}, not all held" if one.lost else one.shown


def _remarks(shown: list[Outcome]) -> list[str]:
    """What a user must know of runs: what is the same of several runs to one target, once, with numbers added up."""
    said: dict[tuple[str, str, str], list[Outcome]] = {}
    for one in shown:
        for kind, text in _texts(one):
            said.setdefault((one.target, kind, text), []).append(one)
    return [
        f"{ones[0].run if len(ones) == 1 else f'{len(ones):,} runs'} to {target}: {_words(kind, text, ones)}"
        for (target, kind, text), ones in said.items()
    ]


def _texts(one: Outcome) -> Iterator[tuple[str, str]]:
    """What is to be said of a run, each with its kind: a state, what is not held, or "" of a remark."""
    if one.reason:
        yield one.shown, one.reason
    yield from ((_NOT_HELD, what) for what in one.lost)
    yield from (("", text) for text in (*one.trouble, *one.told))


def _words(kind: str, text: str, ones: list[Outcome]) -> str:
    if kind == _NOT_HELD:
        keys = list(dict.fromkeys(repr(key) for one in ones for key in one.lost_keys.get(text, ())))
        named = ", ".join([*keys[:_KEYS_SHOWN_MAX], *(["…"] if len(keys) > _KEYS_SHOWN_MAX else [])])
        return f"{kind}: {text} × {sum(one.lost[text] for one in ones):,}{f' ({named})' if keys else ''}"
    if behind := sum(one.behind for one in ones) if kind not in ("", outcome.MISUSE) else 0:
        return f"{kind}, {count(behind, 'record')} behind: {text}"
    return f"{kind}: {text}" if kind and not text.startswith(kind) else text


def _print_plans(plans: list[Plan], as_json: bool) -> None:
    if as_json:
        print_json([plan._asdict() for plan in plans])
        return
    for plan in plans:
        if plan.trouble:
            click.echo(clean(f"{plan.run}: {plan.trouble}"), err=True)
    rows = [
        (
            plan.run, plan.name, plan.target, f"{plan.records:,}", f"{plan.points_max:,}", size(plan.size),
            "goes on" if plan.has_begun else "new",
        )
        for plan in plans
        if not plan.trouble and (plan.records or not plan.has_begun)
    ]  # fmt: skip
    if rows:
        write_table(("RUN", "NAME", "TARGET", "RECORDS", "POINTS ≤", "SIZE", ""), rows, right=(3, 4, 5))
    click.echo(f"{len(rows):,} of {count(len(plans), 'run')} would be carried; nothing was")


def _forget(store: Store, words: Sequence[str], urls: Sequence[str], as_json: bool) -> None:
    from daemon.sync.forgetting import forget

    if not urls:
        raise click.UsageError("--forget takes --to: which targets. Try: stepd status")
    gone = forget(store, words, urls)
    if as_json:
        print_json([one._asdict() for one in gone])
        return
    for one in gone:
        click.echo(clean(f"{one.run} to {one.target}: forgotten"))
    if not gone:
        click.echo("no such jobs; nothing was done. Try: stepd status")


def _drain(ctx: click.Context, store: Store, urls: Sequence[str], timeout: float | None, as_json: bool) -> None:
    from daemon.sync.draining import drain

    targets = [target.place.text for target in _targets(urls)]
    with _Signals() as signals:
        left = drain(
            store.path, timeout=timeout, targets=targets, is_stopped=signals.is_stopped,
            say=lambda text: click.echo(clean(text), err=True),
        )  # fmt: skip
    if as_json:
        print_json([one._asdict() for one in left])
    for one in left if not as_json else ():
        behind = f", {count(one.behind, 'record')}" if one.behind else ""
        click.echo(clean(f"{one.run} to {one.target} stayed behind{behind}: {one.why}"))
    ctx.exit(128 + signals.number if signals.number else 1 if left else 0)
