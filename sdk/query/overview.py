"""Tables of runs: which are chosen, in what order, with which columns, and grouped (docs/runs.md).

What the values are, and where they come from: `lookup`.
"""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..errors import NotFoundError
from ..headline import choose_keys, good_end
from ..reader import state
from ..reader.digest import row_bytes
from ..reader.names import list_names, nearest
from .expression import CONFIG, FACTS, OPERATIONS, SUMMARY, TIMES, Expression, parse, parse_list
from .lookup import Goal, Values, flat, goal_of, lookup_of, quoted, text_of

if TYPE_CHECKING:
    from ..reader.run import Run

# What is shown of every run where nobody chose.
COUNT = "count"  # of a table of groups: how many runs
BASE_COLUMNS = ("id", "name", "state", "started", "step")
_STATES = (state.RUNNING, state.FINISHED, state.FAILED, state.CRASHED, state.INTERRUPTED, state.PREEMPTED)
# Limits: columns of config and of series that are chosen by themselves.
_CONFIG_COLUMNS_MAX = 12
_SERIES_COLUMNS_MAX = 4
# Limit: of runs that must be opened for it, so many are asked which series they have, some ms each; those of others in a list are
# seldom different.
_ASKED_RUNS_MAX = 5
# Limits: of the runs that are not in the store's list so many are read, a ms each, and so much of rows, 5 ms for each MB.
_READ_RUNS_MAX = 100
_READ_BYTES_MAX = 16 << 20
_RESULT_WORDS = frozenset({"val", "valid", "validation", "eval", "test", "dev"})
_NUMBERS = (int, float)
_FLOAT_MAX = sys.float_info.max
_Item = TypeVar("_Item")


class Column(NamedTuple):
    """One column.

    Attributes:
        name: What it is, as an expression.
        kind: Of its values: "time" (Unix seconds), "length" (seconds), "size" (bytes), "state", "number", "text" or "other".
        values: One for each row; None: there is none. In a table of groups numbers are `Spread`s.
        goal: Which end is good, where one is.
        best: The row of the best value.
    """

    name: str
    kind: str
    values: list[Any]
    goal: Goal | None
    best: int | None


class Spread(NamedTuple):
    """The numbers of a group's runs: of how many runs, their mean, sample standard deviation (None of one), smallest and largest."""

    runs: int
    mean: float
    std: float | None
    low: float
    high: float

    def text(self, plus: str = "±") -> str:
        """``0.9786 ± 0.0041``: two digits of the deviation count, and so many of the mean."""
        if self.std == 0:
            return f"{self.mean:.4g} {plus} 0"
        if self.std is None or not (math.isfinite(self.mean) and math.isfinite(self.std)):
            return f"{self.mean:.4g}"
        digits = max(1 - math.floor(math.log10(self.std)), 0)
        is_plain = digits <= 6 and 1e-3 <= abs(self.mean) < 1e6
        form, part = (f".{digits}f", f".{digits}f") if is_plain else (".2e", ".1e")
        return f"{self.mean:{form}} {plus} {self.std:{part}}"


class Overview(NamedTuple):
    """A table of runs, or of groups of them.

    Attributes:
        columns: From left to right.
        groups: The runs of each row: one run, or those of a group.
        total: How many runs there were before some were chosen.
        by: The columns that it is grouped by, () where each row is a run.
        sorted_by: The column that it is sorted by first, where that is one of `columns`.
        chosen: Whether the columns were asked for.
        unread: Of how many runs the series were not read, since nobody asked for them by name and it would take long.
        named: The columns that are shown because the runs are chosen or sorted by them.
    """

    columns: list[Column]
    groups: list[list[Run]]
    total: int
    by: tuple[str, ...]
    sorted_by: str | None
    chosen: bool
    unread: int = 0
    named: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        from .. import clock
        from ..reader.cards import table_card

        what = "group" if self.by else "run"
        head = f"{len(self.groups):,} {what}{'' if len(self.groups) == 1 else 's'}" + (
            f" of {self.total:,} runs" if self.by or self.total > len(self.groups) else ""
        )
        return table_card(self, clock.wall_ns() / 1e9, head, len(self.groups))

    @property
    def runs(self) -> list[Run]:
        """The runs, in order of rows."""
        return [run for group in self.groups for run in group]

    def cut(self, count: int | None) -> Overview:
        """Its first rows."""
        if count is None or count >= len(self.groups):
            return self
        columns = [column._replace(values=column.values[:count]) for column in self.columns]
        columns = [one._replace(best=None) if one.best is not None and one.best >= count else one for one in columns]
        return self._replace(columns=columns, groups=self.groups[:count])

    def rows(self) -> list[dict[str, Any]]:
        """The rows as maps of column to value."""
        names = [column.name for column in self.columns]
        return [dict(zip(names, values)) for values in zip(*(column.values for column in self.columns))]


# Choosing.


def select(runs: Iterable[Run], where: str | None = None, sort: str | None = None) -> list[Run]:
    """The runs for which an expression holds, sorted.

    Args:
        where: None: all.
        sort: Expressions with commas between them, "-best:val/acc,name"; a minus: the largest first. Runs without the value
            come last, either way. None: as they are.

    Raises:
        UsageError: A text cannot be parsed.
        NotFoundError: No run has anything of a name in it.
    """
    found = [Values(run) for run in runs]
    return [one.run for one in _selected(found, where, sort)]


def _selected(everything: list[Values], where: str | None, sort: str | None) -> list[Values]:
    found = everything
    condition = parse(where) if where is not None else None
    order = parse_list(sort, signed=True) if sort is not None else []
    _want(found, order if condition is None else [condition, *order])
    if condition is not None:
        check_names([condition], found)
        found = [one for one in found if condition.matches(one)]
    check_names(order, found, everything)
    return _sorted(found, order, lambda expression, one: expression.value(one))


def check_names(
    expressions: Iterable[Expression], found: Sequence[Values], everything: Sequence[Values] = (), *, is_grouped: bool = False
) -> None:  # fmt: skip
    """Raises NotFoundError for the first name of which no run has anything.

    Args:
        is_grouped: There is a `COUNT`.
        everything: The runs that `found` were chosen from: what only others have is no mistake, those of `found` have nothing yet.
    """
    asked = [*found, *everything[:_READ_RUNS_MAX]] if found else []
    for expression in expressions:
        for name in sorted(expression.names - expression.optional - ({COUNT} if is_grouped else set())):
            check_name(name, asked, everything)


def check_name(name: str, found: Sequence[Values], everything: Sequence[Values] = ()) -> None:
    """Raises NotFoundError where no run has anything of a name; it names what others have."""
    if found and name not in FACTS and all(one(name) is None for one in found):
        raise _no_name(name, everything or found)


def _no_name(name: str, found: Sequence[Values]) -> NotFoundError:
    # By the part that is a key, since that is where a word is mistyped; those asked for in the same way come first.
    kind, key = _parts(name)
    known: dict[str, list[str]] = {fact: [fact] for fact in FACTS}
    for one in found[:_ASKED_RUNS_MAX]:
        names = [quoted(CONFIG, each) for each in flat(one.config)]
        names += [quoted(kind if kind.endswith(":") else "best:", each) for each in one.series_names()]
        for each in names:
            told = known.setdefault(_parts(each)[1], [])
            if each not in told:
                told.insert(0 if _parts(each)[0] == kind else len(told), each)
    near = [known[each][0] for each in nearest(key, sorted(known, key=lambda each: _parts(known[each][0])[0] != kind))]
    names = near or [each[0] for each in known.values() if each[0] not in FACTS][:5] or sorted(FACTS)
    count = f"none of {len(found):,} runs has" if len(found) > 1 else "the run does not have"
    # Why quoted: a key may come from a hostile store, and a hint is meant to be pasted into a shell.
    hint = f"--where 'state = {name}'" if name in _STATES else f"stepd runs --columns {shlex.quote(names[0])}"
    if name == COUNT:
        hint = "--group NAME: only groups have a count"
    return NotFoundError(f"{count} {name!r}. {'Nearest' if near else 'There are'}: {list_names(names)}", hint=hint)


def _parts(name: str) -> tuple[str, str]:
    """How a name asks, "best:" or "config.", and for which key."""
    match = re.match(rf"(?:{'|'.join(OPERATIONS)}):|config\.|summary\.", name)
    return ("", name) if match is None else (match[0], name[match.end() :])


def _sorted(
    items: list[_Item], order: Sequence[Expression], value_of: Callable[[Expression, _Item], Any]
) -> list[_Item]:
    """Items by some expressions, the first one first; those without a value at the end."""
    for expression in reversed(order):
        keyed = [(sort_key(value_of(expression, item)), item) for item in items]
        there = [(key, item) for key, item in keyed if key is not None]
        # Stable either way: `reverse` keeps the order of equal ones.
        there.sort(key=lambda pair: pair[0], reverse=expression.descending)
        items = [item for _, item in there] + [item for key, item in keyed if key is None]
    return items


def sort_key(value: Any) -> tuple[int, Any] | None:
    """What a value is sorted by: numbers before texts; None: it has no place (nothing, or NaN)."""
    if isinstance(value, Spread):
        value = value.mean
    if isinstance(value, _NUMBERS):
        return None if value != value else (0, value)
    if isinstance(value, str):
        return 1, value
    if value is None or value == []:
        return None
    return 2, text_of(value)


# Columns.


def differing_config(runs: Sequence[Run]) -> list[str]:
    """The config keys (dotted) that are not the same in all runs, those that tell most first."""
    return _differing([flat(run.config) for run in runs])


def _differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys by how much they tell.

    One that splits the runs evenly into a few groups tells most. One that is another in nearly every run (a directory, a name) tells
    which run it is and not what made the difference; a seed is meant to make none.
    """
    counts: dict[str, dict[str, int]] = {}
    for config in configs:
        for key, value in config.items():
            said = counts.setdefault(key, {})
            text = value if type(value) is str else text_of(value)
            said[text] = said.get(text, 0) + 1
    total = len(configs)
    scored = []
    for place, (key, said) in enumerate(counts.items()):
        missing = total - sum(said.values())
        groups = [*said.values(), *([missing] if missing else [])]
        if len(groups) < 2:
            continue
        entropy = -sum(count / total * math.log(count / total) for count in groups)
        is_unique = total > 3 and len(groups) > 0.9 * total
        is_seed = "seed" in key.rpartition(".")[2].lower()
        scored.append((is_unique, is_seed, missing * 2 > total, -round(min(entropy, 1.5), 2), place, key))
    return [one[-1] for one in sorted(scored)]


def overview(
    runs: Iterable[Run], *, where: str | None = None, sort: str | None = None, columns: str | Sequence[str] | None = None,
    group: str | Sequence[str] | None = None,
) -> Overview:  # fmt: skip
    """A table of runs.

    Args:
        where, sort: As `select`. A table of groups is sorted by the means.
        columns: Expressions, in one text with commas between them or one by one; None: id, name, state, started and step, the config
            keys that differ, and the best of the main series.
        group: What the runs of a row have in common, as `columns`; None: each row is a run.

    Raises:
        UsageError: A text cannot be parsed.
        NotFoundError: No run has anything of a name in it.
    """  # fmt: skip
    everything = [Values(run) for run in runs]
    found = _selected(everything, where, None if group is not None else sort)
    order = parse_list(sort, signed=True) if sort is not None else []
    by = _parsed(group)
    asked = _parsed(columns)
    _want(found, [*asked, *by, *order])
    check_names([*by, *asked, *order], found, everything, is_grouped=bool(by))
    unread = 0 if asked else _leave_unread(found)
    named = [] if asked else [*(one.text for one in order), *([] if by else _telling(where, found))]
    shown = asked or default_columns(found, named, by)
    if by:
        names = {one.text for one in by}
        shown = [*by, *(one for one in shown if one.text not in names)]
        rows = _grouped(found, lambda one: _place(by, one))
        rows = _sorted(rows, order, _common)
    else:
        rows = [[one] for one in found]
    _want(found, shown)
    made = [_column(expression, rows, is_grouped=bool(by)) for expression in shown]
    first = order[0].text if order else None
    return Overview(
        made,
        [[one.run for one in row] for row in rows],
        len(everything),
        tuple(one.text for one in by),
        first if any(column.name == first for column in made) else None,
        bool(asked),
        unread if any(one.text.startswith("best:") for one in shown) else 0,
        tuple(named),
    )


def _telling(where: str | None, found: Sequence[Values]) -> list[str]:
    """The names in an expression that are not the same in all runs which it chose."""
    names = sorted(parse(where).names) if where is not None else []
    telling = [name for name in names if len(found) == 1 or not _are_alike(one(name) for one in found)]
    return [quoted(*_parts(name)) if name not in FACTS else name for name in telling]


def _leave_unread(found: Sequence[Values]) -> int:
    """Lets those of many runs whose series take long to read say nothing of them; how many those are."""
    runs, size, count = 0, 0, 0
    for one in found:
        if one.digest is not None or one.knows_series:
            continue
        runs += 1
        size += row_bytes(one.run) if runs <= _READ_RUNS_MAX else 0
        if runs > _READ_RUNS_MAX or size > _READ_BYTES_MAX:
            one.is_quick = True
            count += 1
    return count


def _want(found: Iterable[Values], expressions: Iterable[Expression]) -> None:
    """Lets the runs know which series they will be asked for: a run that must be opened is opened once."""
    names = {name for expression in expressions for name in expression.names}
    keys = sorted(
        key for operation, colon, key in (name.partition(":") for name in names) if colon and operation in OPERATIONS
    )
    for one in found:
        one.wanted = keys


def _parsed(said: str | Sequence[str] | None) -> list[Expression]:
    if said is None:
        return []
    return [one for text in ([said] if isinstance(said, str) else said) for one in parse_list(text)]


def default_columns(
    found: Sequence[Values], named: Iterable[str] = (), by: Sequence[Expression] = ()
) -> list[Expression]:
    """The columns that are shown where nobody chose.

    Args:
        named: What the runs are chosen and sorted by, which comes first.
        by: What the table is grouped by: then of the config what is the same in each group.
    """
    configs = [flat(one.config) for one in found]
    differing = _differing(configs)
    if by:
        groups = _grouped(list(zip(found, configs)), lambda pair: _place(by, pair[0]))
        differing = [
            key for key in differing if all(_are_alike(config.get(key) for _, config in row) for row in groups)
        ]
    several = ["project"] if len({one.run.project for one in found}) > 1 else []
    base = [COUNT] if by else [*BASE_COLUMNS[:2], *several, *BASE_COLUMNS[2:]]
    first = [text for text in named if text not in base]
    # A bare word is looked for in the config first: `lr` has a column already where the table is sorted or grouped by it.
    bare = {*first, *(one.text for one in by)}
    others = [
        *(quoted(CONFIG, key) for key in [key for key in differing if key not in bare][:_CONFIG_COLUMNS_MAX]),
        *(quoted("best:", key) for key in main_series(found)),
    ]
    return [parse(text) for text in dict.fromkeys([*base, *first, *others])]


def _are_alike(values: Iterable[Any]) -> bool:
    return len(set(map(text_of, values))) < 2


def main_series(found: Sequence[Values]) -> list[str]:
    """The series that are worth a column: those that most runs have, by `headline`."""
    counts: dict[str, int] = {}
    opened = 0
    for one in found:
        if one.digest is None:
            opened += 1
            if opened > _ASKED_RUNS_MAX:
                continue
        for key in one.series_names():
            counts[key] = counts.get(key, 0) + 1
    most = max(counts.values(), default=0)
    common = [key for key, count in counts.items() if 2 * count >= most]
    known: dict[str, Any] = {}
    for one in found[:_ASKED_RUNS_MAX]:
        known.update(one.metrics)
    chosen = choose_keys(common, known, len(common))
    told = [key for key in chosen if good_end(key) or "loss" in key.lower() or key in known]
    # Results before what is watched while training; `sorted` keeps the order of others.
    return sorted(told or chosen, key=lambda key: not _RESULT_WORDS & set(re.findall("[a-z]+", key.lower())))[
        :_SERIES_COLUMNS_MAX
    ]


def _place(by: Sequence[Expression], one: Values) -> tuple[str, ...]:
    """What says to which group a run belongs."""
    return tuple(text_of(expression.value(one)) for expression in by)


def _grouped(items: Iterable[_Item], place: Callable[[_Item], tuple[str, ...]]) -> list[list[_Item]]:
    """Items that have the same place together, in the order in which those come."""
    groups: dict[tuple[str, ...], list[_Item]] = {}
    for item in items:
        groups.setdefault(place(item), []).append(item)
    return list(groups.values())


def _column(expression: Expression, rows: Sequence[Sequence[Values]], *, is_grouped: bool) -> Column:
    values = [_common(expression, row) if is_grouped else expression.value(row[0]) for row in rows]
    goal = _goal_of_column(expression, rows)
    best = None
    keyed = [(key, place) for place, value in enumerate(values) if (key := sort_key(value)) is not None and key[0] == 0]
    if goal is not None and len(keyed) > 1:
        best = (min if goal == "min" else max)(keyed, key=lambda pair: pair[0])[1]
    return Column(expression.text, _kind(expression, values), values, goal, best)


def _goal_of_column(expression: Expression, rows: Sequence[Sequence[Values]]) -> Goal | None:
    operation, colon, key = (expression.name or "").partition(":")
    if not colon:
        operation, key = "last", (expression.name or "").removeprefix(SUMMARY)
        if not rows or expression.name is None or expression.name in FACTS or expression.name.startswith(CONFIG):
            return None
        if good_end(key) == "":
            return None
    return rows[0][0].goal(key) if operation in ("best", "last") and rows else None


def _kind(expression: Expression, values: Sequence[Any]) -> str:
    if expression.name in TIMES:
        return "time"
    fixed = {"duration": "length", "size": "size", "state": "state"}.get(expression.name or "")
    if fixed is not None:
        return fixed
    there = [value for value in values if value is not None]
    if there and all(isinstance(value, (*_NUMBERS, Spread)) and not isinstance(value, bool) for value in there):
        return "number"
    return "text" if all(isinstance(value, str) for value in there) else "other"


def _common(expression: Expression, row: Sequence[Values]) -> Any:
    """What an expression is of a group: of numbers a `Spread`, of others what all have in common, else None."""
    if expression.name == COUNT:
        return len(row)
    values = [value for one in row if (value := expression.value(one)) is not None]
    if not values:
        return None
    if expression.name in TIMES:
        return max(values)
    if len(values) == len(row) and _are_alike(values) and not _is_measured(expression):
        return values[0]
    if all(isinstance(value, _NUMBERS) and not isinstance(value, bool) for value in values):
        return spread_of(values)
    return None


def _is_measured(expression: Expression) -> bool:
    """Whether the values are results, of which one is a spread too."""
    return any(name.partition(":")[0] in OPERATIONS or name.startswith(SUMMARY) for name in expression.names)


def spread_of(values: Sequence[float]) -> Spread | None:
    """The spread of some numbers; NaN, and integers beyond every float, are left out."""
    there = [
        float(value) for value in values if (value == value and abs(value) <= _FLOAT_MAX) or abs(value) == math.inf
    ]
    if not there:
        return None
    low, high = min(there), max(there)
    if not math.isfinite(low) or not math.isfinite(high):
        return Spread(len(there), sum(there) / len(there), None, low, high)
    # In parts of the largest, whose squares and sums are floats too.
    scale = max(abs(low), abs(high)) or 1.0
    parts = [value / scale for value in there]
    mean = math.fsum(parts) / len(parts)
    std = math.sqrt(math.fsum((part - mean) ** 2 for part in parts) / (len(parts) - 1)) if len(parts) > 1 else None
    return Spread(len(there), mean * scale, None if std is None else std * scale, low, high)


__all__ = [
    "Column", "Overview", "Spread", "differing_config", "flat", "goal_of", "lookup_of", "overview", "quoted", "select",
]  # fmt: skip
