"""What the reading commands share: the store to read, JSON, tables, and words that may be runs or keys.

Everything printed here may come from a hostile store, so no text reaches the terminal with control characters in it.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import click

from daemon.commands.cells import cells, cut, left, right
from daemon.commands.service import clean, store_path
from sdk import clock
from sdk.errors import NotFoundError
from sdk.reader import MediaItem, Run, Store
from sdk.reader.media import items_in
from sdk.reader.names import list_names, nearest
from sdk.reader.plain import to_json as to_json
from sdk.reader.run import SYSTEM_PREFIX
from sdk.reader.times import ago

_LATEST = re.compile(r"latest(~[0-9]+)?")
_COLUMN_CHARACTERS_MAX = 40
# Limit: what is looked at in about half a second.
_PROGRESS_BYTES_MIN = 32 << 20


def json_option(function: Any) -> Any:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document.")(function)


def open_store_of(ctx: click.Context, directory: str | None) -> Store:
    """The store that `--dir` names before or after the verb, or the default one, for reading."""
    return Store(store_path(ctx, directory))


def print_json(document: Any) -> None:
    """One document; NaN and infinities as Python's json writes them."""
    click.echo(to_json(document, indent=1))


_VALUE_CHARACTERS_MAX = 200


def value_text(value: Any) -> str:
    """A logged or configured value on one line."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (str, bool, int, MediaItem)) or value is None:
        return _cut(clean(value))
    items = items_in(value)
    if items:
        return _cut(clean(f"{len(items)} media: {items[0]}{', …' if len(items) > 1 else ''}"))
    return _cut(clean(to_json(value)))


def _cut(text: str) -> str:
    return text if len(text) <= _VALUE_CHARACTERS_MAX else f"{text[:_VALUE_CHARACTERS_MAX]}… ({len(text):,} characters)"


@contextlib.contextmanager
def progress(total: int, label: str) -> Iterator[Callable[[int], None]]:
    """Gives a function that hears of progress: a bar on stderr where that is a terminal and the work is long."""
    if total < _PROGRESS_BYTES_MIN or not sys.stderr.isatty():
        yield lambda count: None
        return
    with click.progressbar(length=total, label=label, file=sys.stderr) as bar:
        yield bar.update


def passing_line(what: str) -> None:
    """A line on a terminal's stderr that the next one is written over; "" takes it away. Elsewhere nothing."""
    if sys.stderr.isatty():
        # Not wider than the terminal: of a line that wrapped only the last row could be written over.
        columns = shutil.get_terminal_size().columns
        click.echo(f"\r\x1b[K{what[: columns - 1]}", nl=False, err=True)


@contextlib.contextmanager
def passing(what: str) -> Iterator[None]:
    """`passing_line` for as long as something is waited for."""
    passing_line(what)
    try:
        yield
    finally:
        passing_line("")


def when_text(seconds: float) -> str:
    """A time as "2 h ago, 14:02", with the date where it was another day; local zone."""
    if seconds <= 0:
        return "unknown"
    local, today = time.localtime(seconds), time.localtime(clock.wall_ns() / 1e9)
    pattern = "%H:%M" if local[:3] == today[:3] else "%Y-%m-%d %H:%M"
    return f"{ago(seconds, clock.wall_ns() / 1e9)}, {time.strftime(pattern, local)}"


def write_table(titles: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[int] = ()) -> None:
    """Columns, as wide as they must be; in a terminal long cells are cut so that a row is one line if it can be.

    Args:
        right: Indexes of the columns whose text ends at the right.
    """
    texts = [[clean(cell) for cell in row] for row in rows]
    widths = [max(map(cells, column)) for column in zip(titles, *texts)]
    ranged = set(right)
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - 2 * (len(titles) - 1)
        while sum(widths) > room and max(widths) > 8:
            widths[widths.index(max(widths))] -= 1
    else:
        widths = [min(width, _COLUMN_CHARACTERS_MAX * 8) for width in widths]
    for number, row in enumerate([list(titles), *texts]):
        parts = [_cell(text, width, index in ranged) for index, (text, width) in enumerate(zip(row, widths))]
        line = "  ".join(parts).rstrip()
        click.echo(click.style(line, bold=True) if number == 0 else line)


def _cell(text: str, width: int, is_right: bool) -> str:
    text = cut(text, width, "…" if can_unicode() else "~")
    return right(text, width) if is_right else left(text, width)


def can_unicode() -> bool:
    """Whether what we print can hold more than ASCII."""
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "")
    return encoding.startswith("utf")


def keys_for(run: Run, words: Sequence[str]) -> list[str]:
    """The keys of a run among which some words are looked for: what was observed too, where a word is below ``system/``."""
    observed = run.keys(kind="system") if any(word.startswith(SYSTEM_PREFIX) for word in words) else []
    return [*run.keys(), *observed]


def split_words(store: Store, words: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Words of a command line as runs and keys: what names a run is one, the rest are keys; no run means the latest.

    A word that only begins a run's id and is also a key is a key.

    Raises:
        NotFoundError: A word is neither.
    """
    runs: list[Run] = []
    rest: list[tuple[str, Run | NotFoundError]] = []
    for word in words:
        try:
            run = store.run(word)
        except NotFoundError as error:
            rest.append((word, error))
            continue
        exact = word in (run.id, run.name) or _LATEST.fullmatch(word) or "/" in word
        if exact:
            runs.append(run)
        else:
            rest.append((word, run))
    where = runs or [store.run("latest")]
    known: set[str] = set().union(*(keys_for(run, [word for word, _ in rest]) for run in where)) if rest else set()
    keys: list[str] = []
    for word, found in rest:
        if word in known:
            keys.append(word)
        elif isinstance(found, Run):
            runs.append(found)
        else:
            raise _neither(store, word, found, where, known)
    return runs or [store.run("latest")], keys


def _neither(store: Store, word: str, error: NotFoundError, where: list[Run], known: set[str]) -> NotFoundError:
    near = nearest(word, known)
    if "matches" in error.message and "no run matches" not in error.message:
        return error  # an ambiguous prefix: its candidates say more
    names = " and ".join(run.id for run in where[:3])
    hint, instead = f"stepd show {where[0].id}", ""
    if near:
        told, instead = f"Nearest keys: {list_names(near)}", f"{where[0].id} {shlex.quote(near[0])}"
    elif runs := nearest(word, {each for run in store.runs() for each in (run.name, run.id)}):
        told, hint, instead = f"Nearest runs: {list_names(runs)}", "stepd runs", shlex.quote(runs[0])
    else:
        some = sorted(known)[:5]
        told, instead = f"Keys: {list_names(some) or 'none yet'}", shlex.join([where[0].id, *some[:1]])
    return NotFoundError(f"{word!r} is no run, and no key of {names}. {told}", hint, instead)


def one_run(store: Store, words: Sequence[str], usage: Callable[[str], Exception]) -> tuple[Run, list[str]]:
    """As `split_words`, for commands that take one run."""
    runs, keys = split_words(store, words)
    if len(runs) > 1:
        raise usage(f"expected one run, got {len(runs)}: {', '.join(run.id for run in runs)}")
    return runs[0], keys
