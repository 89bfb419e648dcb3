"""`stepd set`: facts of a run, set from outside: its name, tags, notes, group, job type, values of its summary."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import click

from daemon.commands.common import can_unicode, json_option, open_store_of, print_json, value_text
from daemon.commands.service import clean, directory_option
from sdk.errors import UsageError
from sdk.reader import Run
from sdk.reader.names import list_names, nearest
from sdk.reader.state import RUNNING

TEXTS = ("name", "notes", "group", "job_type")
TAGS = "tags"
_NAMES = (*TEXTS, TAGS, "summary.KEY", "config.KEY")
_ASSIGNMENT = re.compile(r"(?s)([A-Za-z_]\w*(?:\.[^=]*?)?)(\+=|-=|=)(.*)")


@click.command("set")
@click.argument("words", nargs=-1, required=True, metavar="RUN... NAME=VALUE...")
@json_option
@directory_option
@click.pass_context
def command(ctx: click.Context, words: tuple[str, ...], as_json: bool, directory: str | None) -> None:
    """Set facts of a run, whether it is over or running.

    \b
    name=TEXT  notes=TEXT  group=TEXT  job_type=TEXT
    tags=A,B   tags+=A,B   tags-=A,B
    summary.KEY=VALUE      JSON, or a text; nothing: takes KEY out
    config.KEY=VALUE       only of a key that the config lacks

    What is set last holds. A training that runs does not hear of it.
    """  # noqa: D301 -- click wants the character
    names, assignments = _told_apart(words)
    store = open_store_of(ctx, directory)
    runs = [store.run(name) for name in names]
    if as_json:
        print_json({run.id: apply(run, assignments) for run in runs})
        return
    for run in runs:  # each is told when it is done: the next one may fail
        _print(run, apply(run, assignments))


class Assignment(NamedTuple):
    """One word of the command line. `name` is a fact, or "summary" or "config" with a `key`; `how` is "=", "+=" or "-="."""

    name: str
    key: str
    how: str
    value: str


def _told_apart(words: Sequence[str]) -> tuple[list[str], list[Assignment]]:
    """The runs and what is to be set.

    Raises:
        UsageError: One of them is missing, or a fact that cannot be set.
    """
    names = [word for word in words if not _ASSIGNMENT.fullmatch(word)]
    found = [assignment_of(word) for word in words if _ASSIGNMENT.fullmatch(word)]
    if not names or not found:
        missing = "a run" if not names else "what to set"
        raise UsageError(f"stepd set lacks {missing}", hint="stepd set latest name=baseline tags+=final")
    return names, found


def assignment_of(word: str) -> Assignment:
    """A word as what it says.

    Raises:
        UsageError: There is no such fact, or it cannot be set so.
    """
    match = _ASSIGNMENT.fullmatch(word)
    name, how, value = match.groups() if match else (word, "=", "")
    first, _, key = name.partition(".")
    if first in ("summary", "config"):
        if not key:
            raise UsageError(f"cannot set {name!r}: which key?", hint=f"{first}.KEY=VALUE")
        if how != "=":
            raise UsageError(f"cannot set {name}{how}: only tags take += and -=", hint=f"{name}={value or 'VALUE'}")
        return Assignment(first, key, how, value)
    if name not in (*TEXTS, TAGS):
        near = nearest(name, _NAMES) or list(_NAMES)
        raise UsageError(f"cannot set {name!r}. Nearest: {list_names(near)}", hint="stepd set --help")
    if how != "=" and name != TAGS:
        raise UsageError(f"cannot set {name}{how}: only tags take += and -=", hint=f"{name}={value!r}")
    return Assignment(name, "", how, value)


def apply(run: Run, assignments: Iterable[Assignment]) -> dict[str, list[Any]]:
    """Sets them; name of the fact -> what it was and what it is, of those that changed."""
    texts: dict[str, str] = {}
    tags = list(run.tags)
    summary: dict[str, Any] = {}
    removed: dict[str, None] = {}
    config: dict[str, Any] = {}
    for name, key, how, value in assignments:
        if name == TAGS:
            tags = _tags(tags, how, value)
        elif name == "config":
            _put(config, key.split("."), value_of(value))
        elif name == "summary" and not value:
            removed[key] = None
            summary.pop(key, None)
        elif name == "summary":
            summary[key] = value_of(value)
            removed.pop(key, None)
        else:
            texts[name] = value
    texts = {name: value for name, value in texts.items() if value != getattr(run, name)}
    before: dict[str, Any] = {name: getattr(run, name) for name in texts}
    after: dict[str, Any] = dict(texts)
    if tags != run.tags:
        before[TAGS], after[TAGS] = run.tags, tags
    if summary or removed:
        had = run.summary
        before.update((f"summary.{key}", had.get(key)) for key in (*summary, *removed))
        after.update((f"summary.{key}", summary.get(key)) for key in (*summary, *removed))
    before.update((f"config.{key}", run.config.get(key)) for key in config)
    run.set(**texts, tags=tags if TAGS in after else None, summary=summary, summary_removed=removed, config=config)
    after.update((f"config.{key}", run.config.get(key)) for key in config)
    return {name: [before[name], after[name]] for name in after}


def _tags(tags: list[str], how: str, value: str) -> list[str]:
    given = [tag for tag in (part.strip() for part in value.split(",")) if tag]
    if how == "-=":
        return [tag for tag in tags if tag not in given]
    return list(dict.fromkeys([*tags, *given] if how == "+=" else given))


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Puts a value below the keys of a path."""
    for key in path[:-1]:
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            raise UsageError(f"cannot set both config.{key} and a key below it")
        values = inner
    values[path[-1]] = value


def value_of(text: str) -> Any:
    """A value of the command line: JSON where it is some, else the text itself."""
    import json

    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _print(run: Run, changes: dict[str, list[Any]]) -> None:
    arrow = "→" if can_unicode() else "->"
    click.echo(f"{clean(run.id)}  {clean(run.name)}" + ("" if changes else "  is as it was"))
    width = max(map(len, changes), default=0)
    for name, (before, after) in changes.items():
        click.echo(f"  {clean(name):<{width}}  {_text(before)} {arrow} {_text(after)}")
    if changes and run.state == RUNNING:
        click.echo("  It is running: what the training itself sets from now on holds again.")


def _text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return clean(", ".join(value)) or "(none)"
    return "(none)" if value in (None, "") else value_text(value)
