"""What the page of one run shows, read in the thread that reads: charts, console, rows, media, facts. Only what is on the screen is read,
and only when the run's directory has changed or something else is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from daemon.commands.common import value_text
from daemon.commands.service import clean, size
from daemon.screen.text import Ink, fit, number, width_of
from sdk import clock
from sdk.errors import Error, NotFoundError
from sdk.headline import good_end
from sdk.query.living import Glance, LivingRun
from sdk.reader import Run, Store
from sdk.reader.media import items_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TABS = ("charts", "console", "rows", "media", "facts")
# Limit: keys of a page; more are said, not shown.
KEYS_MAX = 5_000
# Limit: what is kept to scroll back in; `stepd logs`, `tail` and `show` have all of it.
_LINES_MAX = 1_000
_ROWS_MAX = 200
_MEDIA_MAX = 500
_VALUES_MAX = 400
_POINTS_PER_COLUMN = 4
_TELL_SECONDS = 0.1
SYSTEM = "system"


class Chart(NamedTuple):
    """How charts are drawn."""

    width: int
    height: int
    x: str = "auto"
    is_log: bool = False
    smooth: float = 0.0


class Detail(NamedTuple):
    """What of which run is wanted.

    Attributes:
        width: Columns that lines may take.
        keys: Of the charts on the screen.
    """

    run: str
    tab: str
    width: int
    keys: tuple[str, ...] = ()
    chart: Chart = Chart(80, 10)


class Content(NamedTuple):
    """What was read.

    Attributes:
        detail: What was asked for.
        sections: The keys by the text before their last slash.
        charts: By key: the lines of its chart, drawn as `drawn_as` says.
        lines: Of the other tabs. title: A line above them that stays.
        trouble: Why there is nothing; "" for none.
    """

    detail: Detail
    glance: Glance | None = None
    sections: tuple[tuple[str, tuple[str, ...]], ...] = ()
    charts: Mapping[str, tuple[str, ...]] = {}
    drawn_as: Chart | None = None
    lines: tuple[str, ...] = ()
    title: str = ""
    trouble: str = ""
    is_reading: bool = False


class Page:
    """Reads one run for the screen; what it gives is never changed after. `close` when another one is opened."""

    def __init__(self, store: Store, run: str, ink: Ink, now_ns: Callable[[], int] = clock.wall_ns) -> None:
        """Raises: NotFoundError, when there is no such run (any more)."""
        self.id = run
        self._ink = ink
        self._run = store.run(run)
        self._living = LivingRun(store.run(run), now_ns)
        self._seen: Any = None
        self._detail: Detail | None = None
        self._sections: tuple[tuple[str, tuple[str, ...]], ...] = ()
        self._lines: tuple[str, tuple[str, ...]] = ("", ())
        self._charts: dict[str, tuple[Any, Chart, tuple[str, ...]]] = {}
        self._glance: Glance | None = None

    def close(self) -> None:
        self._living.close()

    def read(self, detail: Detail, told: Callable[[Content], None] = lambda content: None) -> Content | None:
        """What is wanted; None where nothing of it has changed.

        Args:
            told: Gets what there is so far, while charts are drawn.
        """
        try:
            self._living.look()
            seen = self._run._files.entries(self._run.directory)
            if seen == self._seen and detail == self._detail and self._living.glance == self._glance:
                return None
            if seen != self._seen:
                self._sections = self._find_sections()
                if self._seen is None:
                    told(Content(detail, self._living.glance, self._sections, is_reading=True))
            content = Content(detail, self._living.glance, self._sections)
            if detail.tab == "charts":
                content = self._with_charts(content, seen, told)
            elif seen != self._seen or detail != self._detail:
                title, lines = _READERS[detail.tab](self._run, detail.width, self._ink)
                content = content._replace(title=title, lines=tuple(lines))
                self._lines = (title, tuple(lines))
            else:
                content = content._replace(title=self._lines[0], lines=self._lines[1])
        except (Error, OSError) as error:
            trouble = error.message if isinstance(error, Error) else str(error)
            return Content(detail, self._glance, self._sections, trouble=trouble.split("\n")[0])
        self._seen, self._detail, self._glance = seen, detail, self._living.glance
        return content

    def _find_sections(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        found: dict[str, list[str]] = {}
        words = {key for key, value in self._run.summary.items() if isinstance(value, str)}
        bare = words.union(self._run.media_keys())  # these have no curve
        keys = [key for key in self._run.shown_keys(quick=True) if key not in bare]
        for key in [*keys, *self._run.keys(quick=True, kind=SYSTEM)][:KEYS_MAX]:
            section = SYSTEM if key.startswith(f"{SYSTEM}/") else key.rpartition("/")[0]
            found.setdefault(section, []).append(key)
        return tuple(
            (section, tuple(found[section])) for section in sorted(found, key=lambda one: _place(one, found[one]))
        )

    def _with_charts(self, content: Content, seen: Any, told: Callable[[Content], None]) -> Content:
        detail, last_told = content.detail, clock.monotonic()
        self._charts = {key: held for key, held in self._charts.items() if key in detail.keys}
        for key in detail.keys:
            held = self._charts.get(key)
            if held is None or held[:2] != (seen, detail.chart):
                self._charts[key] = (seen, detail.chart, tuple(self._chart(key, detail.chart)))
            if clock.monotonic() - last_told > _TELL_SECONDS:
                told(content._replace(charts=self._drawn(detail.chart), drawn_as=detail.chart, is_reading=True))
                last_told = clock.monotonic()
        return content._replace(charts=self._drawn(detail.chart), drawn_as=detail.chart)

    def _drawn(self, chart: Chart) -> dict[str, tuple[str, ...]]:
        return {key: lines for key, (_, drawn_as, lines) in self._charts.items() if drawn_as == chart}

    def _chart(self, key: str, chart: Chart) -> list[str]:
        from daemon.commands.chart import Style, draw
        from sdk.query.curves import read_lines

        points = max(_POINTS_PER_COLUMN * chart.width, 100)
        try:
            found = read_lines([self._run], [key], x=chart.x, points=points, smooth=chart.smooth or None)
        except NotFoundError as error:
            return [fit(error.message.split("\n")[0], chart.width)]
        style = Style(self._ink.unicode, self._ink.color)
        title = key
        for line in found.lines[:1]:
            best = "" if line.best is None else f"{line.goal} {number(line.best)}"
            title = f"{clean(key)}  {'' if line.last is None else number(line.last)}  {best}"
        return draw(found, chart.width, chart.height, style, log=chart.is_log, title=title, legend=False)


def _place(section: str, keys: Iterable[str]) -> tuple[bool, bool, int, str]:
    """What was observed last, sections with a loss or an accuracy before others, training before validation."""
    first = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "eval": 2, "test": 3}
    tells = any(good_end(key) or "loss" in key.lower() for key in keys)
    return (section == SYSTEM, not tells, first.get(section.lower(), 4), section)


def _console(run: Run, width: int, ink: Ink) -> tuple[str, list[str]]:
    from daemon.commands.logs import text_of

    lines: list[str] = []
    for line in run.logs(last=_LINES_MAX):
        if line.missed:
            lines.append(ink.style(f"--- {line.missed:,} lines missing: {clean(line.why)} ---", fg="yellow"))
        else:
            lines += text_of(line)
    return "", lines or [
        "nothing was printed or logged yet" if run.state == "running" else "nothing was printed or logged"
    ]


def _rows(run: Run, width: int, ink: Ink) -> tuple[str, list[str]]:
    rows = run.tail(_ROWS_MAX)
    if not rows:
        return "", ["no row yet"]
    keys = list(dict.fromkeys(key for row in reversed(rows) for key in row if key[:1] != "_"))
    widths, left = {}, width - 9 - 9
    numbers = {key for row in rows for key, value in row.items() if isinstance(value, (int, float))}
    for key in sorted(keys, key=lambda key: (key not in numbers, key)):
        taken = min(max(width_of(clean(key)), 8), 20)
        if left < taken + 1:
            break
        widths[key] = taken
        left -= taken + 1
    more = f" +{len(keys) - len(widths)}" if len(widths) < len(keys) else ""
    title = (
        f"{'step':>9} {'time':>8}" + "".join(" " + fit(key, taken, right=True) for key, taken in widths.items()) + more
    )
    lines = []
    for row in rows:
        when = time.strftime("%H:%M:%S", time.localtime(row["_timestamp"]))
        cells = "".join(" " + fit(_cell(row.get(key)), taken, right=True) for key, taken in widths.items())
        lines.append(f"{row['_step']:>9} {when}{cells}")
    return title, lines


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return number(value) if isinstance(value, float) else value_text(value)


def _media(run: Run, width: int, ink: Ink) -> tuple[str, list[str]]:
    kinds = run.media_keys()
    if not kinds:
        return "", ["no images, tables or other media"]
    items = [item for key in kinds for item in run.media(key)[-_MEDIA_MAX:]]
    items.sort(key=lambda item: (-item.step, item.key, item.index))
    key_width = min(max(width_of(clean(key)) for key in kinds), max(width // 3, 12))
    title = f"{fit('key', key_width)} {'step':>10} {'kind':<10} {'size':>9}  caption"
    lines = [f"stepd show {clean(run.id)} KEY -o DIR   writes them as files", ""]
    for item in items[:_MEDIA_MAX]:
        taken = size(item.size)
        line = (
            f"{fit(item.key, key_width)} {item.step:>10} {fit(item.kind, 10)} {taken:>9}  {clean(item.caption or '')}"
        )
        lines.append(line)
    return title, lines


def _facts(run: Run, width: int, ink: Ink) -> tuple[str, list[str]]:
    return "", list(_fact_lines(run, ink))


def _fact_lines(run: Run, ink: Ink) -> Iterator[str]:
    yield f"{'where':<12} {clean(run.directory)}"
    yield f"{'stored':<12} {run.records:,} records, {size(run.size_bytes)}"
    for name, value in (
        ("group", run.group),
        ("job type", run.job_type),
        ("tags", ", ".join(run.tags)),
        ("notes", run.notes),
    ):
        if value:
            yield f"{name:<12} {value_text(value)}"
    error = run.error
    if error is not None:
        yield ink.style(f"ended by {clean(error.type)}: {clean(error.message)}", fg="red")
        yield from (f"  {clean(line)}" for line in error.traceback.splitlines()[-30:])
    gaps, damage = run.gaps, run.damage
    if gaps or damage:
        yield ""
        yield ink.style("missing", bold=True)
    for gap in gaps[:_VALUES_MAX]:
        yield ink.style(
            f"  {gap.count:,} records, steps {gap.step_min:,}-{gap.step_max:,}: {clean(gap.reason)}", fg="red"
        )
    for one in damage[:_VALUES_MAX]:
        yield ink.style(f"  {clean(one.reason)} in {clean(one.path)}", fg="red")
    for title, values in (("config", run.config), ("summary", run.summary), ("context", run.context)):
        yield from _map(title, values, ink)


def _map(title: str, values: Mapping[str, Any], ink: Ink) -> Iterator[str]:
    if not values:
        return
    yield ""
    yield ink.style(title, bold=True)
    names = sorted(values, key=str)
    width = min(max(width_of(clean(str(name))) for name in names[:_VALUES_MAX]), 32)
    for name in names[:_VALUES_MAX]:
        value = values[name]
        told = str(items_in(value)[0]) if items_in(value) else value_text(value)
        yield f"  {fit(str(name), width)}  {clean(told)}"
    if len(names) > _VALUES_MAX:
        yield f"  and {len(names) - _VALUES_MAX:,} more"


_READERS: Mapping[str, Callable[[Run, int, Ink], tuple[str, list[str]]]] = {
    "console": _console, "rows": _rows, "media": _media, "facts": _facts,
}  # fmt: skip
