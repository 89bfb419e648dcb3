"""A table of runs as lines of text: which columns fit, how values are written, a bar for the one that it is sorted by. Pure."""

from __future__ import annotations

import itertools
import math
import re
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import click

from daemon.commands.cells import cells, cut, left, right
from daemon.commands.service import clean, duration, size
from sdk.query.expression import CONFIG, FACTS, OPERATIONS
from sdk.query.lookup import text_of
from sdk.query.overview import BASE_COLUMNS, COUNT, Column, Overview, Spread
from sdk.reader.times import ago

# What a state is written in, where there is colour.
STATE_COLORS = {
    "running": "cyan", "finished": "green", "failed": "red", "crashed": "red", "interrupted": "yellow", "preempted": "yellow",
}  # fmt: skip
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_GAP = 2
_BAR_CHARACTERS = (6, 40)
_CELL_CHARACTERS_MAX = 28
# Limit: in a pipe, where nothing must fit: a name may have a megabyte.
_PIPE_CHARACTERS_MAX = 320
_CUT_CHARACTERS_MIN = 8
_ID_CHARACTERS_MIN = 4
# As `sdk.ids.new_run_id` makes them; a word of eight letters is one that somebody gave.
_MADE_ID = re.compile("(?=.*[0-9])[0-9a-z]{8}")
_OLD_SECONDS = 7 * 86400.0


class Page(NamedTuple):
    """What the output can show.

    Attributes:
        width: Characters in a line; None: as many as it takes, and no bars.
        now: What ages are counted to, Unix seconds.
        id_characters: So many characters of an id tell which run of the store it is.
    """

    width: int | None
    unicode: bool
    color: bool
    now: float
    id_characters: int | None = None


class _Shown(NamedTuple):
    """A column as text."""

    column: Column
    title: str
    cells: list[str]
    is_right: bool

    @property
    def width(self) -> int:
        return max(map(cells, (self.title, *self.cells)))


def table_lines(table: Overview, page: Page) -> list[str]:
    """The head, a line for each row, and where columns were left out a last line that names them."""
    shown = [_as_text(column, page) for column in table.columns]
    bar = next((one for one in shown if one.column.name == table.sorted_by and _heights(one.column)), None)
    left: list[_Shown] = []
    if page.width is not None:
        if table.chosen:
            shown = _shrunk(shown, page.width)
        else:
            shown, left = _fitting(shown, page.width, table)
    widths = [one.width for one in shown]
    used = sum(widths) + _GAP * (len(widths) - 1)
    bars = _bars(bar.column, page.width - used - _GAP, page) if bar is not None and page.width is not None else []
    head = _line([one.title for one in shown], shown, widths).rstrip()
    lines = [click.style(head, bold=True) if page.color else head]
    best = {number: one.column.best for number, one in enumerate(shown)}
    for row in range(len(table.groups)):
        parts = [
            _colored(one, one.cells[row], width, page, is_best=best[n] == row)
            for n, (one, width) in enumerate(zip(shown, widths))
        ]
        line = (" " * _GAP).join(parts)
        lines.append(f"{line}{' ' * _GAP}{bars[row]}".rstrip() if bars else line.rstrip())
    if any(isinstance(value, Spread) for one in shown for value in one.column.values):
        lines += ["", f"mean {_plus(page)} standard deviation of the runs in a group, then the best of them"]
    if left:
        lines += ["", _left_out([one.column.name for one in left], page)]
    return lines


def _left_out(names: Sequence[str], page: Page) -> str:
    text = f"+ {len(names)} more column{'s' if len(names) > 1 else ''}: --columns {pasted(names)}"
    return cut(text, page.width, _mark(page)) if page.width is not None else text


def pasted(names: Sequence[str]) -> str:
    """Columns as they can be pasted into a shell, whatever a store calls them."""
    return shlex.quote(clean(",".join(names)))


def shortest(ids: Iterable[str]) -> int:
    """How many characters of each id that was made up tell which of some it is, at least four."""
    pairs = itertools.pairwise(sorted(set(ids)))
    common = [_shared(*pair) for pair in pairs if any(map(_MADE_ID.fullmatch, pair))]
    return max([_ID_CHARACTERS_MIN - 1, *common]) + 1


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other)))


# Values.


def _as_text(column: Column, page: Page) -> _Shown:
    write = _writer(column, page)
    texts = ["-" if value is None else write(value) for value in column.values]
    if column.name == "id" and page.id_characters is not None:
        texts = [_short_id(text, page.id_characters) for text in texts]
    most = _CELL_CHARACTERS_MAX if page.width is not None else _PIPE_CHARACTERS_MAX
    texts = [cut(text, most, _mark(page)) for text in texts]
    is_right = column.kind in ("number", "size", "length") or column.name == COUNT
    title = cut(clean(_title(column.name)), _PIPE_CHARACTERS_MAX, _mark(page))
    return _Shown(column, title, texts, is_right)


def _short_id(run_id: str, characters: int) -> str:
    """The beginning of an id that was made up; one that somebody gave says something."""
    return run_id[:characters] if _MADE_ID.fullmatch(run_id) else run_id


def _title(name: str) -> str:
    """Facts in capitals, keys of the config without saying so."""
    if name.startswith(CONFIG):
        return name[len(CONFIG) :]
    return name.upper().replace("_", " ") if name in _CAPITALS else name


_CAPITALS = FACTS | {COUNT}


def _writer(column: Column, page: Page) -> Callable[[Any], str]:
    if column.kind == "time":
        return lambda value: when(value, page.now)
    if column.kind in ("size", "length"):
        write = size if column.kind == "size" else duration
        return lambda value: (
            write(value)
            if not isinstance(value, Spread)
            else f"{write(value.mean)} {_plus(page)} {write(value.std or 0)}"
        )
    if column.kind == "number":
        return lambda value: _spread(value, column, page) if isinstance(value, Spread) else number(value)
    return lambda value: value_cell(value, page)


def _plus(page: Page) -> str:
    return "±" if page.unicode else "+-"


def value_cell(value: Any, page: Page) -> str:
    """Any value on one line."""
    if isinstance(value, str):
        return value if value.isprintable() else clean(value)
    if isinstance(value, (bool, int, float)):
        return number(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return clean(",".join(value))
    return clean(text_of(value))


def number(value: float) -> str:
    """A number in few characters: whole ones as they are, others with four digits that count."""
    if isinstance(value, (bool, int)):
        return str(value) if -(10**15) < value < 10**15 else f"{value:.3g}" if abs(value) < 10**300 else "huge"
    return f"{value:.4g}"


def _spread(value: Spread, column: Column, page: Page) -> str:
    """``0.9786 ± 0.0041, 0.9867``: mean, standard deviation and where one end is good that end."""
    text = value.text(_plus(page))
    if column.goal is None or value.runs < 2:
        return text
    return f"{text}, {number(value.low if column.goal == 'min' else value.high)}"


def when(seconds: float, now: float) -> str:
    """An age of less than a week, else a date; local zone."""
    if 0 <= now - seconds < _OLD_SECONDS:
        return ago(seconds, now)
    try:
        return time.strftime("%Y-%m-%d", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):
        return "unknown"


# Lines.


def _mark(page: Page) -> str:
    """What stands where something was cut off."""
    return "…" if page.unicode else "~"


def _line(texts: Sequence[str], shown: Sequence[_Shown], widths: Sequence[int]) -> str:
    parts = ((right if one.is_right else left)(text, width) for text, one, width in zip(texts, shown, widths))
    return (" " * _GAP).join(parts)


def _colored(one: _Shown, cell: str, width: int, page: Page, *, is_best: bool) -> str:
    padded = (right if one.is_right else left)(cell, width)
    if not page.color:
        return padded
    if one.column.kind == "state" and cell in STATE_COLORS:
        return click.style(cell, fg=STATE_COLORS[cell]) + " " * (width - cells(cell))
    return click.style(padded, bold=True) if is_best else padded


def _fitting(shown: Sequence[_Shown], room: int, table: Overview) -> tuple[list[_Shown], list[_Shown]]:
    """As many columns as there is room for, in their order, and the others.

    First what says which run it is and what was asked for, then what every run has, then in turn results and config.
    """
    asked = {*BASE_COLUMNS[:2], COUNT, *table.by, table.sorted_by, *table.named}
    first = [one for one in shown if one.column.name in asked]
    first += [one for one in shown if one.column.name in BASE_COLUMNS[2:] and one not in first]
    rest = [one for one in shown if one not in first]
    results = [one for one in rest if one.column.name.partition(":")[0] in OPERATIONS]
    config = [one for one in rest if one not in results]
    in_turn = [
        one
        for number in range(len(rest))
        for one in (*results[number : number + 1], *config[2 * number : 2 * number + 2])
    ]
    kept: list[_Shown] = []
    for one in [*first, *in_turn]:
        if one.width + _GAP * bool(kept) <= room:
            kept.append(one)
            room -= one.width + _GAP * (len(kept) > 1)
    order = [one for one in shown if one in kept]
    return order, [one for one in shown if one not in kept]


def _shrunk(shown: Sequence[_Shown], room: int) -> list[_Shown]:
    """All columns, the widest texts cut so that a row is one line, if it can be."""
    widths = [one.width for one in shown]
    room -= _GAP * (len(shown) - 1)
    while sum(widths) > room:
        able = [n for n, one in enumerate(shown) if not one.is_right and widths[n] > _CUT_CHARACTERS_MIN]
        if not able:
            break
        widths[max(able, key=lambda n: widths[n])] -= 1
    return [
        one._replace(title=cut(one.title, width, "~"), cells=[cut(text, width, "~") for text in one.cells])
        for one, width in zip(shown, widths)
    ]


def _heights(column: Column) -> list[float | None]:
    """How far each value is from the smallest to the largest, 0 to 1; [] where there is nothing to compare."""
    values = [_finite(value.mean if isinstance(value, Spread) else value) for value in column.values]
    there = [value for value in values if value is not None]
    if len(there) < 2 or column.kind == "time":
        return []
    low, high = min(there), max(there)
    span = high / 2 - low / 2  # halves: the difference of two huge floats may be infinite
    return [None if value is None else (value / 2 - low / 2) / span if span > 0 else 1.0 for value in values]


def _finite(value: Any) -> float | None:
    """A number that can be drawn."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond every float
        return None


def _bars(column: Column, room: int, page: Page) -> list[str]:
    """A bar for each row; the smallest value is one eighth of a character."""
    width = min(room, _BAR_CHARACTERS[1])
    if width < _BAR_CHARACTERS[0]:
        return []
    bars = []
    for height in _heights(column):
        if height is None:
            bars.append("")
        elif page.unicode:
            whole, part = divmod(max(round(height * width * 8), 1), 8)
            bars.append("█" * whole + (_EIGHTHS[part] if part else ""))
        else:
            bars.append("#" * max(round(height * width), 1))
    return [click.style(bar, fg="cyan") for bar in bars] if page.color else bars
