"""The parts of a report that are words: the runs, what differs between them, where they came from, what they printed, what is missing."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sdk._greeting import bytes_text, count
from sdk.errors import Error
from sdk.reader import MediaItem, Run
from sdk.reader.logs import LogLine
from sdk.reader.media import items_in
from sdk.reader.pictures import duration, number
from sdk.reader.plain import to_json
from sdk.reader.state import FINISHED, RUNNING

from .budget import weight
from .charts import COLOURS, Chart, Line
from .markup import Markup, join, plain, short, tag

# Limits: of what one run may fill.
_CELL_CHARACTERS_MAX = 300
_NAME_CHARACTERS_MAX = 80
_CELLS_MAX = 20_000
_ROWS_MAX = 400
_MATRIX_BYTES_MAX = 1_000_000
_ROW_BYTES = len("<tr></tr>")
LINES_CHARACTERS_MAX = 40_000
PACKAGES_BYTES_MAX = 20_000
_GAPS_MAX = 20
_NESTING_MAX = 8
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
# Facts about the process that say nothing about the result, or far too much.
_CONTEXT_OMITTED = frozenset(
    {"environment", "python.path", "pid", "import", "kept", "git.untracked", "hydra", "console"}
)


def label(run: Run) -> str:
    """A run as the page calls it."""
    return f"{_name(run)} ({run.id})" if run.name and run.name != run.id else run.id


def _name(run: Run) -> str:
    return short(run.name, _NAME_CHARACTERS_MAX)


def when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds)) if 0 < seconds < 1e11 else "unknown"


def swatch(place: int) -> Markup:
    """The colour of a run."""
    return tag("span", class_=f"swatch b{place % COLOURS}", aria_hidden="true")


def state(run: Run) -> Markup:
    return tag("span", run.state, class_=f"state {run.state if run.state.isalpha() else ''}")


def runs_section(runs: Sequence[Run]) -> Markup:
    """A row for each run: what it is, how far it came and how it ended."""
    titles = ("", "run", "id", "project", "state", "started", "took", "steps", "records", "group", "tags", "notes")
    rows = []
    for place, run in enumerate(runs):
        took = run.duration or 0.0
        steps, records = (_sorted_as(f"{value:,}", value) for value in (run.step_max, run.records))
        ended = join([state(run), _ending(run)])
        rows.append([
            swatch(place), _name(run), run.id, short(run.project, _NAME_CHARACTERS_MAX), ended, when(run.started),
            _sorted_as(duration(took), took), steps, records, short(run.group, _NAME_CHARACTERS_MAX), _cut(", ".join(run.tags)),
            _cut(run.notes),
        ])  # fmt: skip
    return table(titles, rows)


def _ending(run: Run) -> str:
    code = run.exit_code
    return f" exit code {code}" if code else ""


class _Cell(NamedTuple):
    """What a cell shows, and what it is sorted by."""

    shown: object
    by: object


def _sorted_as(shown: object, by: object) -> _Cell:
    return _Cell(shown, by)


def table(titles: Sequence[object], rows: Sequence[Sequence[Any]], class_: str = "") -> Markup:
    """A table that the page's script can sort; columns in which no cell holds anything are left out."""
    used = [i for i, title in enumerate(titles) if not title or any(_shown(row[i]) not in ("", None) for row in rows)]
    head = tag("tr", [tag("th", titles[i], scope="col") for i in used])
    body = [tag("tr", [_cell(row[i]) for i in used]) for row in rows]
    inner = tag("table", tag("thead", head), tag("tbody", body), class_="sortable")
    return tag("div", inner, class_=f"wide {class_}".strip(), tabindex="0")


def _shown(cell: Any) -> Any:
    return cell.shown if isinstance(cell, _Cell) else cell


def _cell(cell: Any) -> Markup:
    if isinstance(cell, _Cell):
        return tag("td", cell.shown, data_sort=cell.by, class_="number")
    if isinstance(cell, (int, float)) and not isinstance(cell, bool):
        return tag(
            "td", number(cell) if isinstance(cell, float) else f"{cell:,}", data_sort=repr(cell), class_="number"
        )
    return tag("td", cell)


def value_text(value: Any) -> str:
    """A configured or logged value in one line."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (str, int)):
        return _cut(str(value))
    if isinstance(value, MediaItem) or items_in(value):
        return _cut(str(value if isinstance(value, MediaItem) else items_in(value)[0]))
    return _cut(to_json(value))


def _cut(text: str) -> str:
    return short(text, _CELL_CHARACTERS_MAX)


def flat(values: Mapping[str, Any], name: str = "", depth: int = 0) -> dict[str, Any]:
    """Nested maps as dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = f"{name}.{key}" if name else str(key)
        if isinstance(value, dict) and value and depth < _NESTING_MAX:
            found.update(flat(value, inner, depth + 1))
        else:
            found[inner] = value
    return found


def matrix(
    runs: Sequence[Run], maps: Sequence[Mapping[str, Any]], *, first: Sequence[str] = (),
    shown: Callable[[Any], Any] = value_text, what: str = "values", room: int = _MATRIX_BYTES_MAX,
) -> Markup:  # fmt: skip
    """What each run says under each name: names of which the runs say different things first, the rest folded away.

    Args:
        first: Names that come first among those that differ.
        what: What the names are names of.
        room: In bytes; names for which there is none are counted.
    """
    rows_max = min(_ROWS_MAX, _CELLS_MAX // max(len(runs), 1))
    names = list(dict.fromkeys([*first, *sorted({name for one in maps for name in one})]))
    rows = {name: [shown(one[name]) if name in one else "" for one in maps] for name in names}
    rows = {name: cells for name, cells in rows.items() if any(cell not in ("", None) for cell in cells)}
    if len(runs) == 1:
        return _columns(["", ""], _within(rows, rows_max, room), len(rows))
    differing = {name: cells for name, cells in rows.items() if len(set(map(_key, cells))) > 1}
    same = {name: cells[:1] for name, cells in rows.items() if name not in differing}
    heads = [join([swatch(place), " ", _name(run) or run.id]) for place, run in enumerate(runs)]
    parts = [_columns(["", *heads], _within(differing, rows_max, room), len(differing))] if differing else []
    if same:
        folded = _columns(["", "all"], _within(same, rows_max, room - sum(map(weight, parts))), len(same))
        title = f"{count(len(same), what.rstrip('s'))}, the same in all runs"
        parts.append(tag("details", tag("summary", title), folded))
    return join(parts)


def _within(rows: Mapping[str, Sequence[Any]], rows_max: int, room: int) -> dict[str, Sequence[Any]]:
    """As many of the first rows as so many bytes hold."""
    found: dict[str, Sequence[Any]] = {}
    for name, cells in rows.items():
        room -= weight(join(map(_cell, (_name_cell(name), *cells)))) + _ROW_BYTES
        if room < 0 or len(found) == rows_max:
            break
        found[name] = cells
    return found


def _name_cell(name: str) -> Markup:
    return tag("b", _cut(name))


def _key(cell: Any) -> str:
    return str(_shown(cell))


def _columns(titles: Sequence[Any], rows: Mapping[str, Sequence[Any]], total: int) -> Markup:
    if not total:
        return Markup()
    found = table(titles, [[_name_cell(name), *cells] for name, cells in rows.items()], "matrix") if rows else Markup()
    return join([found, tag("p", f"… {total - len(rows):,} more", class_="quiet")]) if total > len(rows) else found


# -- summary -------------------------------------------------------------------------------------------------------------


def summary_section(
    runs: Sequence[Run], charts: Sequence[Chart], goal: Callable[[Run, str], str | None], room: int = _MATRIX_BYTES_MAX
) -> Markup:
    """Last and best of each key; best of what is drawn, whose points hold the extremes."""
    lines = {(line.run, chart.key): line for chart in charts for line in chart.lines}
    maps = []
    for place, run in enumerate(runs):
        cells: dict[str, Any] = {}
        for key, value in run.summary.items():
            if not (isinstance(value, (dict, list)) or items_in(value) or run.metric(key).hidden):
                cells[key] = _summary_cell(run, key, value, lines.get((place, key)), goal)
        maps.append(cells)
    return matrix(runs, maps, shown=lambda cell: cell, what="keys", room=room)


def _summary_cell(run: Run, key: str, value: Any, line: Line | None, goal: Callable[[Run, str], str | None]) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value_text(value)
    told: list[Any] = [number(value)]
    if line is not None and (best := goal(run, key)) is not None:
        at = int(line.value.argmax() if best == "max" else line.value.argmin())
        told.append(tag("span", f" {best} {number(float(line.value[at]))} @ {int(line.step[at]):,}", class_="quiet"))
    return _sorted_as(join(told), repr(float(value)))


# -- where it came from ----------------------------------------------------------------------------------------------------


def environment_section(
    runs: Sequence[Run], room: int = PACKAGES_BYTES_MAX, facts_room: int = _MATRIX_BYTES_MAX
) -> Markup:
    """Command, code, machine and packages, what differs first.

    Args:
        room: For each list of packages, in bytes. facts_room: For all else.
    """
    maps = []
    for run in runs:
        told = {name: value for name, value in run.context.items() if name not in _CONTEXT_OMITTED}
        if isinstance(command := told.get("command"), list):
            told["command"] = " ".join(map(str, command))
        found = flat(told)
        maps.append({name: value for name, value in found.items() if name not in _CONTEXT_OMITTED})
    parts = [matrix(runs, maps, what="facts", room=facts_room)]
    packages: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        listed = _packages(run, room)
        if listed:
            packages.setdefault(listed, []).append(place)
    for listed, places in packages.items():
        whose = "all runs" if len(places) == len(runs) else ", ".join(label(runs[place]) for place in places)
        title = f"packages of {whose}" if len(runs) > 1 else "packages"
        parts.append(tag("details", tag("summary", title), tag("pre", listed)))
    return join(parts)


def _packages(run: Run, room: int) -> str:
    """The list of packages that the run kept, "" without one."""
    told = run.context.get("packages")
    name = told.get("file") if isinstance(told, dict) else None
    if not isinstance(name, str):
        return ""
    with contextlib.suppress(Error, OSError), run.file(name).open() as file:
        return file.read(room).decode("utf-8", "replace")
    return ""


# -- what it printed ---------------------------------------------------------------------------------------------------------


def console_of(run: Run, lines: int, room: int = LINES_CHARACTERS_MAX) -> Markup | None:
    """The last lines of a run's console, log records marked by their level.

    Args:
        room: In bytes; earlier lines are left out for it.
    """
    if not lines or not run.has_console:
        return None
    parts = []
    for line in reversed(list(run.logs(last=lines))):
        text = f"… {count(line.missed, 'line')} missing: {line.why}" if line.missed else _ESCAPES.sub("", line.text)
        if line.level is not None:
            text = f"{line.level_name} {line.logger or ''}: {text}"
        if line.error:
            text += "\n" + _ESCAPES.sub("", line.error)
        part = tag("span", text, "\n", class_=_look(line) or None)
        room -= weight(part)
        if room < 0:
            break
        parts.append(part)
    parts.reverse()
    return tag("pre", parts, tabindex="0") if parts else None


def _look(line: LogLine) -> str:
    """How a line stands out: by its level, or by where it was printed."""
    level = line.level or 0
    if level >= 40:
        return "error"
    return "warning" if level >= 30 or line.missed else "err" if line.source == "stderr" else ""


# -- what is missing ---------------------------------------------------------------------------------------------------------


def health_of(run: Run, room: int = LINES_CHARACTERS_MAX) -> Markup:
    """How it ended, and what is not in the data: nothing is hidden.

    Args:
        room: For the traceback, in characters; its end stays.
    """
    gaps, damage = run.gaps, run.damage
    dropped = sum(gap.count for gap in gaps)
    attempts = max((stream.attempt for stream in run.streams), default=1)
    stored = f"{run.records:,} records stored, {dropped:,} missing, {bytes_text(run.size_bytes)}"
    lines = [stored + (f", {attempts} attempts" if attempts > 1 else "")]
    for gap in gaps[:_GAPS_MAX]:
        of = f" of {gap.key}" if gap.key else ""
        lines.append(f"gap{of}: {count(gap.count, 'record')}, steps {gap.step_min:,} to {gap.step_max:,}: {gap.reason}")
    if len(gaps) > _GAPS_MAX:
        lines.append(f"… {len(gaps) - _GAPS_MAX:,} more gaps")
    lines += [f"damage: {one.reason}" for one in damage[:_GAPS_MAX]]
    lines += [f"misuse: {name}: {value_text(told)}" for name, told in list(run.misuse.items())[:_GAPS_MAX]]
    lines += [f"alert {one.level}: {one.title} {one.text}".strip() for one in run.alerts[:_GAPS_MAX]]
    error = run.error
    ended = [tag("p", f"ended by {_cut(error.type)}: {_cut(error.message)}")] if error is not None else _end_of(run)
    if error is not None and error.traceback:
        ended.append(tag("pre", plain(error.traceback)[-room:], tabindex="0"))
    return join([tag("ul", [tag("li", _cut(line)) for line in lines]), ended])


def _end_of(run: Run) -> list[Markup]:
    """What `stepd why` says of a run that did not end well, and of which no exception tells why."""
    if run.state in (RUNNING, FINISHED):
        return []
    from sdk.query.why.postmortem import postmortem

    verdict = postmortem(run).verdict
    return [tag("p", f"{_cut(verdict.text)} [{verdict.confidence}]")]
