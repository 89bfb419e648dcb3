"""A report: what is read, in which order it may use up the size, and the page it is put into.

The policy of the page allows two scripts, by their hashes, and inline data, and nothing else: no address outside of the file, no handler
in an attribute. So a text that slipped through as a tag would still do nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from sdk import __version__, clock
from sdk._greeting import count
from sdk.errors import NotFoundError
from sdk.query.lookup import told_goal_of
from sdk.query.overview import differing_config
from sdk.reader import Run
from sdk.reader.names import list_names, nearest

from . import facts
from .budget import CHARTS_SHARE, SIZE_MIN, Budget, weight
from .charts import NO_MARKS, Chart, Marks, chart_data, data_of, marks_of, numeric_keys, picture, read_charts
from .markup import Markup, asset, join, place, script_data, short, tag
from .media import Shown, read_media

# Limit: more rows and lines than anybody compares; what is left out is said.
RUNS_MAX = 50
_CONSOLE_LINES = 100
_CONSOLE_LINES_OF_MANY = 20
_MANY = 10
# Of the size: what each of the console, the packages and the tracebacks of all runs may fill.
_WORDS_SHARE = 0.1
_ROOM_MIN = 1000
# Limit: of the page around its sections, with what was left out.
_PAGE_BYTES = 8000
_TITLE_CHARACTERS_MAX = 200
_ORDER = ("runs", "summary", "config", "charts", "media", "tables", "console", "environment", "health")
_Section: TypeAlias = tuple[str, str, Markup]


class Wishes(NamedTuple):
    """What a report is to hold.

    Attributes:
        title: None: made of the runs' names.
        keys: Names or patterns of the series and media; none: all.
        points: Of each line, at most.
        media: How many values of each key with media, the newest.
        size_max: Of the file, in bytes.
    """

    title: str | None = None
    keys: Sequence[str] = ()
    points: int = 2000
    media: int = 4
    size_max: int = 5_000_000


class Report(NamedTuple):
    """A page, and what is in it.

    Attributes:
        left_out: Sentences, each of what is not and why.
    """

    html: str
    runs: int
    charts: int
    media: int
    left_out: list[str]


def report(runs: Sequence[Run], wishes: Wishes, tell: Callable[[str], None] = lambda what: None) -> Report:
    """The page of some runs.

    Args:
        tell: Hears what is read next, in a word.
    """
    budget = Budget(max(wishes.size_max, SIZE_MIN))
    if len(runs) > RUNS_MAX:
        budget.leave_out(f"The first {RUNS_MAX} of {len(runs):,} runs are here.")
        runs = runs[:RUNS_MAX]
    tell("facts")
    scripts, style = [asset("uplot.js"), asset("report.js")], join([asset("uplot.css"), asset("report.css")])
    budget.take(sum(map(weight, [*scripts, style])) + _PAGE_BYTES)
    labels, created = [facts.label(run) for run in runs], [run.created for run in runs]
    bare = weight(script_data(data_of([], labels, [NO_MARKS] * len(runs), created)))
    budget.take(bare)
    _check_keys(runs, wishes.keys)
    words = _fitting(
        [("runs", "Runs", facts.runs_section(runs)), *_words(runs, int(budget.size_max * _WORDS_SHARE))], budget
    )
    tell("charts")
    keys = numeric_keys(runs, wishes.keys, budget)
    charts = read_charts(runs, keys, wishes.points, budget, int(budget.left * CHARTS_SHARE))
    marks = [
        marks_of(run, (line for one in charts for line in one.lines if line.run == at)) for at, run in enumerate(runs)
    ]
    summary = facts.summary_section(runs, charts, told_goal_of, int(budget.size_max * _WORDS_SHARE))
    words += _fitting([("summary", "Summary", summary)], budget)
    if not budget.fits(weight(script_data(data_of([], labels, marks, created))) - bare):
        marks = [NO_MARKS] * len(runs)
        budget.leave_out("There is no room for marks of gaps and attempts.")
    charts = _charts_that_fit(charts, marks, budget)
    drawn, data = _charts_section(charts, marks), script_data(data_of(charts, labels, marks, created))
    tell("media")
    shown = read_media(runs, wishes.keys, wishes.media, budget)
    sections = [
        *words, ("charts", "Charts", drawn), ("media", "Media", _media_section(shown)), ("tables", "Tables", _tables_section(shown)),
    ]  # fmt: skip
    sections.sort(key=lambda part: _ORDER.index(part[0]))
    title = short(wishes.title or _title(runs), _TITLE_CHARACTERS_MAX)
    page = _page(title, [part for part in sections if part[2]], runs, budget.left_out, scripts, style, data)
    return Report(page, len(runs), len(charts), shown.values, budget.left_out)


def _title(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return facts.label(runs[0])
    projects = list(dict.fromkeys(run.project for run in runs if run.project))
    return f"{count(len(runs), 'run')} of {', '.join(projects[:3]) or 'a store'}"


def _check_keys(runs: Sequence[Run], patterns: Sequence[str]) -> None:
    """Raises NotFoundError where no run has anything of a name or pattern."""
    for pattern in patterns:
        if not any(_known(run).intersection(run.keys_like([pattern])) for run in runs):
            near = nearest(pattern, set().union(*map(_known, runs)))
            told = f" Nearest: {list_names(near)}." if near else ""
            raise NotFoundError(f"no run of the report has a key {pattern!r}.{told}", hint=f"stepd show {runs[0].id}")


def _known(run: Run) -> set[str]:
    return {*run.all_keys(), *run.keys(kind="system")}


def _fitting(sections: Sequence[_Section], budget: Budget) -> list[_Section]:
    """Those for which there is room. Each is bounded, so that only a hostile or a very small report lacks one."""
    found = []
    for section in sections:
        if budget.fits(weight(section[2])):
            found.append(section)
        else:
            budget.leave_out(f"There is no room for {section[1].lower()}.")
    return found


def _charts_that_fit(charts: Sequence[Chart], marks: Sequence[Marks], budget: Budget) -> list[Chart]:
    """The first of them, as many as there is room for: what a point takes was only guessed."""
    found: list[Chart] = []
    sections: set[str] = set()
    for chart in charts:
        size = weight(_figure(0, chart, marks)) + weight(script_data(chart_data(chart)))
        size += 0 if chart.section in sections else weight(_section(chart.section, []))
        sections.add(chart.section)
        if not budget.fits(size):
            budget.leave_out(f"There is room for {len(found)} of {count(len(charts), 'chart')}; choose with --keys.")
            break
        found.append(chart)
    return found


def _words(runs: Sequence[Run], whole: int) -> list[_Section]:
    """The sections whose size does not depend on what is left: id, title, content. `whole` is what each may fill, about."""
    room = max(whole // max(len(runs), 1), _ROOM_MIN)
    text, packages = min(room, facts.LINES_CHARACTERS_MAX), min(room, facts.PACKAGES_BYTES_MAX)
    lines = _CONSOLE_LINES if len(runs) <= _MANY else _CONSOLE_LINES_OF_MANY
    console = [(run, found) for run in runs if (found := facts.console_of(run, lines, text)) is not None]
    return [
        (
            "config",
            "Config",
            facts.matrix(runs, [facts.flat(run.config) for run in runs], first=differing_config(runs), room=whole),
        ),
        ("console", "Console", join(_of_run(runs, run, found, open_=len(runs) == 1) for run, found in console)),
        ("environment", "Environment", facts.environment_section(runs, packages, whole)),
        (
            "health",
            "Health",
            join(_of_run(runs, run, facts.health_of(run, text), open_=len(runs) <= _MANY) for run in runs),
        ),
    ]


def _of_run(runs: Sequence[Run], run: Run, content: Markup, *, open_: bool) -> Markup:
    if len(runs) == 1:
        return content
    at = next(i for i, one in enumerate(runs) if one is run)
    return tag("details", tag("summary", facts.swatch(at), " ", facts.label(run)), content, open=open_)


def _charts_section(charts: Sequence[Chart], marks: Sequence[Marks]) -> Markup:
    """Sections by the text before the last slash; the page's script finds a chart by its number."""
    sections: dict[str, list[Markup]] = {}
    for number, chart in enumerate(charts):
        sections.setdefault(chart.section, []).append(_figure(number, chart, marks))
    return join(_section(name or "charts", found) for name, found in sections.items())


def _figure(number: int, chart: Chart, marks: Sequence[Marks]) -> Markup:
    head = tag("figcaption", tag("b", chart.title), tag("span", _told(chart), class_="quiet"))
    live = tag("div", class_="live")
    return tag("figure", head, picture(chart, marks), live, class_="chart", data_chart=number, tabindex="0")


def _section(name: str, figures: Sequence[Markup]) -> Markup:
    title = tag("summary", f"{short(name, _TITLE_CHARACTERS_MAX)} ({len(figures)})")
    return tag(
        "details", title, tag("div", figures, class_="charts"), open=not name.startswith("system"), class_="section"
    )


def _told(chart: Chart) -> str:
    """How many values the chart stands for, and what it does not show."""
    points, values = sum(len(line.value) for line in chart.lines), sum(line.stands_for for line in chart.lines)
    told = f" {points:,} of {values:,} points, extremes kept" if points < values else f" {points:,} points"
    strange = sum(line.not_finite for line in chart.lines)
    return told + (f", {strange:,} not finite" if strange else "")


def _media_section(shown: Shown) -> Markup:
    return join(
        tag(
            "section", tag("h3", short(key, _TITLE_CHARACTERS_MAX)), tag("div", figures, class_="gallery"), class_="key"
        )
        for key, figures in shown.media
    )


def _tables_section(shown: Shown) -> Markup:
    found = [
        tag("section", tag("h3", short(title, _TITLE_CHARACTERS_MAX)), one, class_="key") for title, one in shown.tables
    ]
    return tag("div", found, class_="gallery") if found else Markup()


def _page(
    title: str, sections: Sequence[tuple[str, str, Markup]], runs: Sequence[Run], left_out: Sequence[str],
    scripts: Sequence[Markup], style: Markup, data: Markup,
) -> str:  # fmt: skip
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; media-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", style),
    )
    made = f"stepd {__version__} · {count(len(runs), 'run')} · made {facts.when(clock.wall_ns() / 1e9)} · this file loads nothing"
    missing = tag("ul", [tag("li", line) for line in left_out]) if left_out else None
    body = tag(
        "body",
        tag("header", tag("h1", title), tag("p", made, class_="quiet"), _links(sections)),
        tag("aside", tag("b", "Left out"), missing, class_="left-out") if missing else None,
        tag("main", [tag("section", tag("h2", name), found, id=identity) for identity, name, found in sections]),
        data,
        [tag("script", script) for script in scripts],
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _links(sections: Sequence[tuple[str, str, Any]]) -> Markup:
    return tag("nav", [tag("a", name, href=place(identity)) for identity, name, _ in sections], aria_label="sections")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
