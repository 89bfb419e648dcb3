"""`stepd compare`: what differs between runs, how they ended, and the first step at which each of their series differs."""

from __future__ import annotations

import functools
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from daemon.commands.cells import cells, cut, left
from daemon.commands.common import can_unicode, json_option, open_store_of, print_json, value_text
from daemon.commands.runs import facts
from daemon.commands.service import clean, directory_option, duration, size
from sdk import clock
from sdk.errors import NotFoundError
from sdk.query.compare import SECTIONS, UNKNOWN, Comparison, Fact, Nothing, Result, compare, equal
from sdk.reader import Run, Store
from sdk.reader.plain import to_json

if TYPE_CHECKING:
    from sdk.query.divergence import Divergence

_DIFF_LINES_MAX = 40
# A notebook with pictures has lines of megabytes.
_DIFF_CHARACTERS_MAX = 1000
_TITLE_CHARACTERS_MAX = 20
_RUN_NAME_CHARACTERS_MAX = 60
# Columns are not narrower than this: what does not fit stands in lines of its own.
_CELL_CHARACTERS_MIN = 8
_NAME_CHARACTERS_MAX = 28
_PROGRESS_SECONDS = 0.1
_NO_VALUE = "-"
_SIZES = ("memory", "gpu memory")
_COMMIT_CHARACTERS = 12
# Of a section so many lines are printed without --all: two environments may have nothing in common.
_LINES_MAX = 30
_SERIES_MAX = 60
_LONE_MAX = 5


_PARTS = (*SECTIONS, "results", "series")


def _parts(_: click.Context, __: click.Parameter, value: str | None) -> frozenset[str]:
    wanted = frozenset(filter(None, map(str.strip, (value or "").split(","))))
    if not wanted <= set(_PARTS):
        raise click.BadParameter(f"{min(wanted - set(_PARTS))!r}, expected some of {', '.join(_PARTS)}")
    return wanted or frozenset(_PARTS)


@click.command("compare")
@click.argument("names", nargs=-1, metavar="[RUN]...")
@click.option("--keys", "patterns", multiple=True, metavar="PATTERN", help='Only series of this name: "val/*".')
@click.option("--tolerance", type=click.FloatRange(min=0), metavar="REL", help="Also where they differ by more: 1e-6.")
@click.option("--fail-before", type=click.IntRange(min=0), metavar="STEP", help="Exit 1 if a series differs before it.")
@click.option("--code", is_flag=True, help="Print how patches and scripts differ.")
@click.option("--all", "everything", is_flag=True, help="What is the same too.")
@click.option("--only", callback=_parts, metavar="PART,...", help=f"Only these parts: {', '.join(_PARTS)}.")
@json_option
@directory_option
@click.pass_context
def command(
    ctx: click.Context,
    names: tuple[str, ...],
    patterns: tuple[str, ...],
    tolerance: float | None,
    fail_before: int | None,
    code: bool,
    everything: bool,
    only: frozenset[str],
    as_json: bool,
    directory: str | None,
) -> None:
    """What differs between runs: config, code, packages, hardware, environment, results, and where their series part.

    The first run is what the others are held against. Without any: the last two runs of the latest one's project.
    --fail-before is for tests of reproducibility; with --tolerance what lies within that is no difference.
    """
    if "series" not in only and fail_before is not None:
        raise click.UsageError("--fail-before needs the series", ctx)
    compared = compare(_runs(open_store_of(ctx, directory), names))
    # A pattern that matches nothing is told before anything is printed; without one, facts come first and are quick.
    keys = compared.shared_keys(patterns) if patterns and "series" in only else []
    if not as_json:
        _print_facts(compared, only, everything)
        if code:
            _print_code(compared)
        if "results" in only:
            _print_results(compared, patterns, everything)
    if not patterns and "series" in only:
        keys = compared.shared_keys()
    lone = compared.lone_keys(patterns) if "series" in only else {}
    if as_json:
        failed = _print_json(compared, keys, lone, patterns, tolerance, fail_before, only, everything)
    else:
        failed = _print_series(compared, keys, tolerance, fail_before, everything) if "series" in only else []
        _print_lone(compared, lone)
        failed += _begun(compared, lone, fail_before)
    if fail_before is not None:
        _judge(ctx, keys, failed, fail_before)


def _runs(store: Store, names: Sequence[str]) -> list[Run]:
    """The runs that were named; of one alone, that and the one before it in its project.

    Raises:
        NotFoundError: There is no run of a name, or no other one.
    """
    if len(names) > 1:
        return [store.run(name) for name in names]
    run = store.run(names[0] if names else "latest")
    others = [other for other in store.runs(run.project) if other.id != run.id]
    before = [other for other in others if other.started <= run.started] or others
    if not before:
        raise NotFoundError(f"project {run.project!r} has no other run than {run.id!r}", hint="stepd runs")
    return [before[0], run]


def _judge(ctx: click.Context, keys: Sequence[str], failed: Sequence[str], step: int) -> None:
    """Exits with 1 where something differs before a step, or where nothing was there that could."""
    if not keys:
        click.echo("stepd: the runs share no series, so nothing shows that they are the same", err=True)
        ctx.exit(1)
    if failed:
        names = ", ".join(map(clean, failed[:5])) + (", …" if len(failed) > 5 else "")
        click.echo(
            f"stepd: {len(failed):,} series differ{'s' * (len(failed) == 1)} before step {step:,}: {names}",
            err=True,
        )
        ctx.exit(1)


# Facts.


class Layout:
    """Lines of a name and a text for each run: side by side where that fits, else below one another.

    Attributes:
        titles: What the runs are called here.
    """

    def __init__(self, titles: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> None:
        self.titles = titles
        self._rows = [(clean(name), texts) for name, texts in rows]
        self._title = max(map(cells, titles))
        self._name = min(max((cells(name) for name, _ in self._rows), default=0), _NAME_CHARACTERS_MAX)
        room = (shutil.get_terminal_size().columns - 2 - self._name) // len(titles) - 2
        fitting = [taken for _, texts in rows for text in texts if (taken := cells(text)) <= room]
        # As wide as the texts, and no line longer than the terminal.
        self._cell = min(room, max(self._title, *fitting, _CELL_CHARACTERS_MIN))

    @property
    def is_wide(self) -> bool:
        """Whether there is room for a column for each run."""
        return self._cell >= max(_CELL_CHARACTERS_MIN, self._title)

    def head(self, title: str) -> str:
        """The line above the others."""
        return self._line(title, self.titles, indent="") if self.is_wide else title

    def lines(self) -> Iterator[str]:
        """The rows; no text is cut that might differ in what is cut off."""
        for name, texts in self._rows:
            if self.is_wide and cells(name) <= self._name and max(map(cells, texts)) <= self._cell:
                yield self._line(name, texts)
            else:
                yield f"  {name}"
                yield from (f"    {left(title, self._title)}  {text}" for title, text in zip(self.titles, texts))

    def _line(self, name: str, texts: Sequence[str], indent: str = "  ") -> str:
        beside = "".join(f"  {left(text, self._cell)}" for text in texts)
        return f"{indent}{left(name, self._name + 2 - len(indent))}{beside}".rstrip()


def titles_of(runs: Sequence[Run]) -> list[str]:
    """What runs are called in a table: their names where these are short and tell them apart, else their ids."""
    names = [clean(run.name) for run in runs]
    is_good = len(set(names)) == len(names) and max(map(cells, names)) <= _TITLE_CHARACTERS_MAX
    return names if is_good else [clean(run.id) for run in runs]


def _print_facts(compared: Comparison, only: frozenset[str], everything: bool) -> None:
    runs = compared.runs
    width = max(cells(clean(run.id)) for run in runs)
    names = min(max(cells(clean(run.name)) for run in runs), _RUN_NAME_CHARACTERS_MAX)
    for place, run in enumerate(runs):
        what = "reference" if not place else "against" if place == 1 else ""
        told = ", ".join(filter(None, (clean(run.project), run.state, _when(run.started))))
        name = left(cut(clean(run.name), names, "…" if can_unicode() else "~"), names)
        click.echo(f"{what:<9}  {left(clean(run.id), width)}  {name}  {told}")
    shown = {name: compared.sections[name] for name in SECTIONS if name in compared.sections and name in only}
    for name, known in shown.items():
        chosen = known if everything else [fact for fact in known if not fact.same]
        _print_section(name, chosen, known, runs, everything)


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds > 0 else ""


def _print_section(
    title: str, chosen: Sequence[Fact], known: Sequence[Fact], runs: Sequence[Run], everything: bool
) -> None:
    missing = [at for at in range(len(runs)) if all(fact.values[at] is UNKNOWN for fact in known)]
    note = f"not known of {', '.join(titles_of(runs)[at] for at in missing)}" if missing else ""
    same = sum(fact.same and len(fact.known) > 1 for fact in known)
    if not chosen:
        told = "; ".join(filter(None, (note, f"the same ({same:,})" if same else "")))
        click.echo(f"\n{click.style(title, bold=True)}  {told}")
        return
    shown = chosen if everything else chosen[:_LINES_MAX]
    _print_rows(title, runs, [(fact.name, _texts(fact.values, functools.partial(_text, fact.name))) for fact in shown])
    if len(shown) < len(chosen):
        click.echo(f"  ({len(chosen) - len(shown):,} more differ: --all)")
    if note:
        click.echo(f"  ({note})")
    if same and not everything:
        click.echo(f"  ({same:,} more the same)")
    mixed = [clean(fact.name) for fact in known if fact.is_mixed]
    if mixed:
        click.echo(f"  (equal, but integers and floats: {', '.join(mixed)})")


def _print_rows(title: str, runs: Sequence[Run], rows: Sequence[tuple[str, Sequence[str]]]) -> None:
    layout = Layout(titles_of(runs), rows)
    click.echo("\n" + click.style(layout.head(title), bold=True))
    for line in layout.lines():
        click.echo(line)


def _texts(values: Sequence[Any], text: Callable[[Any], str]) -> list[str]:
    """A text for each value: a short one, unless that is the same for values that differ, as of 0.1 and 0.10000001, or 1 and "1"."""
    texts = [text(value) for value in values]
    if any(texts[at] == texts[0] and not equal(value, values[0]) for at, value in enumerate(values)):
        return [
            text(value) if value is None or isinstance(value, Nothing) else value_text(to_json(value))
            for value in values
        ]
    return texts


def _text(name: str, value: Any) -> str:
    if isinstance(value, Nothing):
        return "?" if value is UNKNOWN else _NO_VALUE
    if name in _SIZES and isinstance(value, int):
        return size(value)
    if name == "commit":
        return clean(value)[:_COMMIT_CHARACTERS]
    return ("yes" if value else "no") if name == "dirty" else value_text(value)


def _print_code(compared: Comparison) -> None:
    titles = titles_of(compared.runs)
    is_same = True
    for name, place, lines in compared.code_diffs(_DIFF_LINES_MAX):
        is_same = False
        click.echo("\n" + click.style(f"{clean(name)}: {titles[0]} and {titles[place]}", bold=True))
        for line in lines:
            color = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
            text = cut(clean(line.replace("\t", "    ")), _DIFF_CHARACTERS_MAX, "…" if can_unicode() else "~")
            click.echo("  " + click.style(text, fg=color))
    if is_same:
        click.echo("\nNo patch or script that was kept differs.")


# Results.


def _print_results(compared: Comparison, patterns: Sequence[str], everything: bool) -> None:
    found = compared.results(patterns)
    results = found if everything else found[:_LINES_MAX]
    measures = compared.measures()
    rows: list[tuple[str, list[str]]] = [
        (fact.name, [_measure_text(fact.name, value) for value in fact.values]) for fact in measures
    ]
    for result in results:
        is_plain = result.last == result.best
        rows.append((f"{result.key}" if is_plain else f"{result.key} last", _marked(result.last, result.best_last)))
        if not is_plain:
            rows.append((f"{result.key} {result.goal}", _marked(result.best, result.best_run)))
    _print_rows("results", compared.runs, rows)
    if len(results) < len(found):
        click.echo(f"  ({len(found) - len(results):,} more: --all, or --keys PATTERN)")
    if any(result.best_run is not None or result.best_last is not None for result in results):
        click.echo(f"  * the {'better' if len(compared.runs) == 2 else 'best'} one")


def _marked(values: Sequence[float | None], best: int | None) -> list[str]:
    texts = _texts(values, lambda value: _NO_VALUE if value is None else value_text(value))
    return [f"{text} *" if place == best else text for place, text in enumerate(texts)]


def _measure_text(name: str, value: Any) -> str:
    if isinstance(value, Nothing):
        return _NO_VALUE
    if name == "duration":
        return f"{value:.2g} s" if value < 10 else duration(value)
    if isinstance(value, (int, float)):
        return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return value_text(value)


# Series.


def _print_series(
    compared: Comparison, keys: Sequence[str], tolerance: float | None, fail_before: int | None, everything: bool
) -> list[str]:
    """Prints how each series differs as it is found out; those that differ before `fail_before`."""
    titles = titles_of(compared.runs)
    table = _Pair(titles, keys, tolerance) if len(titles) == 2 else _Several(titles, keys, tolerance)
    watch = _Progress()
    same = shown = 0
    failed = []
    found = compared.divergences(keys, tolerance=tolerance, before=fail_before, moved=watch.moved)
    for key in keys:
        watch.begin(key)
        row = next(found)
        watch.clear()
        if _fails(row, tolerance, fail_before):
            failed.append(key)
        if everything or not all(one is None or one.is_same for one in row):
            if not shown:
                click.echo("\n" + click.style(table.head(), bold=True))
            if everything or shown < _SERIES_MAX:
                click.echo(table.row(key, row))
            shown += 1
        else:
            same += 1
    if shown > _SERIES_MAX and not everything:
        click.echo(f"  ({shown - _SERIES_MAX:,} more differ: --all, or --keys PATTERN)")
    until = "" if fail_before is None else f" before step {fail_before:,}"
    if shown and same:
        click.echo(f"  ({same:,} more the same{until}, bit by bit)")
    elif not shown:
        told = f"the same{until}, bit by bit ({same:,})" if keys else "the runs share none"
        click.echo(f"\n{click.style('series', bold=True)}  {told}")
    return failed


def _fails(row: Sequence[Divergence | None], tolerance: float | None, fail_before: int | None) -> bool:
    return fail_before is not None and any(
        one is not None and one.differs_before(fail_before, tolerant=tolerance is not None) for one in row
    )


def _print_lone(compared: Comparison, lone: Mapping[str, Sequence[int]]) -> None:
    """Which series only some of the runs have."""
    titles = titles_of(compared.runs)
    by_runs: dict[str, list[str]] = {}
    for key, places in lone.items():
        by_runs.setdefault(", ".join(titles[place] for place in places), []).append(clean(key))
    for names, keys in by_runs.items():
        more = f" and {len(keys) - _LONE_MAX:,} more" if len(keys) > _LONE_MAX else ""
        click.echo(f"  (only {names}: {', '.join(keys[:_LONE_MAX])}{more})")


def _begun(compared: Comparison, lone: Mapping[str, Sequence[int]], step: int | None) -> list[str]:
    """Those of the series that only some have which begin before a step."""
    from sdk.query.divergence import first_step

    if step is None:
        return []
    firsts = {key: [first_step(compared.runs[place], key) for place in places] for key, places in lone.items()}
    return [key for key, found in firsts.items() if any(first is not None and first < step for first in found)]


class _Pair:
    """The series of two runs: the step, how they end, the values at that step."""

    def __init__(self, titles: Sequence[str], keys: Sequence[str], tolerance: float | None) -> None:
        self._titles = titles
        self._tolerance = tolerance
        self._key = min(max((cells(clean(key)) for key in keys), default=0), _NAME_CHARACTERS_MAX)

    def head(self) -> str:
        middle = "" if self._tolerance is None else f"  {f'beyond {self._tolerance:g}':<14}"
        line = f"{'series':<{self._key + 2}}  {'first differs':<14}{middle}  {'at the end':<10}"
        return _beside(line, f"{self._titles[0]} {_arrow()} {self._titles[1]}")

    def row(self, key: str, row: Sequence[Divergence | None]) -> str:
        (found,) = row
        if found is None:
            return f"  {left(clean(key), self._key)}  {_NO_VALUE}"
        middle = "" if self._tolerance is None else f"  {_beyond(found) or 'nowhere':<14}"
        line = f"  {left(clean(key), self._key)}  {_where(found):<14}{middle}  {_end_text(found):<10}"
        return _beside(line, self._values(found))

    def _values(self, found: Divergence) -> str:
        if found.first is not None:
            texts = told_apart(found.first.one, found.first.other)
            return f"{texts[0]} {_arrow()} {texts[1]}"
        if found.lone is None:
            mixed = f", as {found.kinds[0]} and {found.kinds[1]}" if found.kinds[0] != found.kinds[1] else ""
            return f"{found.shared:,} values{mixed}"
        title = self._titles[found.lone_in or 0]
        return f"only {title} {'goes on after' if found.is_cut else 'has'} step {_last_or_lone(found):,}"


def _beside(line: str, values: str) -> str:
    """The values at the end of the line, or in one of their own."""
    if cells(line) + 2 + cells(values) <= shutil.get_terminal_size().columns:
        return f"{line}  {values}"
    return f"{line.rstrip()}\n    {values}"


def _last_or_lone(found: Divergence) -> int:
    return (found.last_shared if found.is_cut and found.last_shared is not None else found.lone) or 0


class _Several:
    """The series of more than two runs: for each other one the step at which it leaves the first."""

    def __init__(self, titles: Sequence[str], keys: Sequence[str], tolerance: float | None) -> None:
        self._titles = titles
        self._tolerance = tolerance
        self._key = min(max((cells(clean(key)) for key in keys), default=0), _NAME_CHARACTERS_MAX)
        self._cell = max(14, *map(cells, titles))
        width = self._key + 2 + (len(titles) - 1) * (self._cell + 2)
        self._is_wide = width <= shutil.get_terminal_size().columns

    def head(self) -> str:
        what = "differs" if self._tolerance is None else f"differs by more than {self._tolerance:g}"
        title = f"where each first {what} from {self._titles[0]}"
        beside = "".join(f"  {left(title, self._cell)}" for title in self._titles[1:] if self._is_wide)
        return f"{title}\n{'series':<{self._key + 2}}{beside}".rstrip()

    def row(self, key: str, row: Sequence[Divergence | None]) -> str:
        texts = [_NO_VALUE if one is None else self._text(one) for one in row]
        if self._is_wide:
            return f"  {left(clean(key), self._key)}{''.join(f'  {text:<{self._cell}}' for text in texts)}".rstrip()
        lines = (f"    {left(title, self._cell)}  {text}" for title, text in zip(self._titles[1:], texts))
        return "\n".join([f"  {clean(key)}", *lines])

    def _text(self, found: Divergence) -> str:
        if self._tolerance is None or (found.beyond is None and found.first is None):
            return _where(found)
        return _beyond(found) or "within"


def _where(found: Divergence) -> str:
    if found.first is not None:
        return _step(found.first)
    return _alone(found) or "nowhere"


def _beyond(found: Divergence) -> str:
    """Where they differ by more than the tolerance, or in their steps; "" where they do not."""
    return _step(found.beyond) or _alone(found)


def _alone(found: Divergence) -> str:
    if found.lone is None or found.last_shared is None or found.lone < found.last_shared:
        return "" if found.lone is None else "other steps"
    return f"ends {found.last_shared:,}"


def _step(parted: Any) -> str:
    return "" if parted is None else f"step {parted.step:,}"


def _end_text(found: Divergence) -> str:
    """How far apart the last values are, in percent of the first run's."""
    one, other = found.ends
    if one is None or other is None:
        return ""
    a, b = one[1], other[1]
    if a == b or (a != a and b != b):
        return "the same"
    if isinstance(a, (int, float)) and isinstance(b, (int, float)) and a and type(a) is not bool:
        percent = (b - a) / abs(a) * 100
        if not math.isfinite(percent):
            return ""
        return f"{percent:+,.0f} %" if 1000 <= abs(percent) < 1e6 else f"{percent:+.3g} %"
    return ""


def told_apart(one: Any, other: Any) -> tuple[str, str]:
    """Two values that differ, with as many digits as that takes."""
    if isinstance(one, float) and isinstance(other, float):
        for digits in (6, 9, 12, 15):
            texts = f"{one:.{digits}g}", f"{other:.{digits}g}"
            if texts[0] != texts[1]:
                return texts
        return repr(one), repr(other)
    return value_text(one), value_text(other)


def _arrow() -> str:
    return "→" if can_unicode() else "->"


class _Progress:
    """One line on stderr that says what is compared, while that takes long and somebody looks."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty()
        self._key = ""
        self._count = 0
        self._said = 0.0
        self._is_there = False

    def begin(self, key: str) -> None:
        self._key, self._count, self._said = clean(key)[:_NAME_CHARACTERS_MAX], 0, clock.monotonic()

    def moved(self, values: int) -> None:
        self._count += values
        now = clock.monotonic()
        if self._is_shown and now - self._said >= _PROGRESS_SECONDS:
            self._said, self._is_there = now, True
            click.echo(f"\r  {self._key}: {self._count:,} values\x1b[K", err=True, nl=False)

    def clear(self) -> None:
        if self._is_there:
            click.echo("\r\x1b[K", err=True, nl=False)
            self._is_there = False


# For programs.


def _print_json(
    compared: Comparison, keys: Sequence[str], lone: Mapping[str, Sequence[int]], patterns: Sequence[str], tolerance: float | None,
    fail_before: int | None, only: frozenset[str], everything: bool,
) -> list[str]:  # fmt: skip
    ids = [run.id for run in compared.runs]

    def by_run(values: Sequence[Any]) -> dict[str, Any]:
        return {run: value for run, value in zip(ids, values) if not isinstance(value, Nothing)}

    document: dict[str, Any] = {"runs": [facts(run) for run in compared.runs]}
    for name, known in compared.sections.items():
        if name in only:
            document[name] = {fact.name: by_run(fact.values) for fact in known if everything or not fact.same}
    if "results" in only:
        document["measures"] = {fact.name: by_run(fact.values) for fact in compared.measures()}
        document["results"] = {result.key: _result_json(result, ids) for result in compared.results(patterns)}
    found = compared.divergences(keys, tolerance=tolerance, before=fail_before)
    series = {}
    failed = _begun(compared, lone, fail_before)
    for key, row in zip(keys, found):
        series[key] = {run: one and _divergence_json(one) for run, one in zip(ids[1:], row)}
        if _fails(row, tolerance, fail_before):
            failed.append(key)
    if "series" in only:
        document["series"] = series
        document["lone_series"] = {key: [ids[place] for place in places] for key, places in lone.items()}
    if fail_before is not None:
        document["failed"] = failed
    print_json(document)
    return failed


def _result_json(result: Result, ids: Sequence[str]) -> dict[str, Any]:
    best = None if result.best_run is None else ids[result.best_run]
    return {
        "goal": result.goal, "last": dict(zip(ids, result.last)), "best": dict(zip(ids, result.best)), "best_run": best,
    }  # fmt: skip


def _divergence_json(found: Divergence) -> dict[str, Any]:
    def parted(at: Any) -> dict[str, Any] | None:
        return None if at is None else {"step": at.step, "values": [at.one, at.other]}

    return {
        "same": found.is_same, "first": parted(found.first), "beyond": parted(found.beyond), "lone": found.lone,
        "lone_in": found.lone_in, "shared": found.shared, "last_shared": found.last_shared, "kinds": list(found.kinds),
        "ends": [None if end is None else {"step": end[0], "value": end[1]} for end in found.ends],
    }  # fmt: skip
