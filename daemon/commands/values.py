"""What `stepd show RUN KEY` shows and writes: images, tables, tensors and the like, and a word on plain series.

What was logged is hostile: texts are cleaned before they reach the terminal, files get their endings from a table by kind
and names that stay in their directory, and nothing that is there is replaced unless asked for.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from daemon.commands.common import keys_for, print_json, value_text, write_table
from daemon.commands.service import clean, size
from sdk.errors import Error, NotFoundError
from sdk.reader import MediaItem, Run
from sdk.reader.filenames import Names

_LISTED_MAX = 20
_STDOUT = "-"


def matching(run: Run, word: str) -> list[str]:
    """The keys that a word means: one, or those that match a pattern."""
    names = keys_for(run, [word])
    return [word] if word in names else fnmatch.filter(names, word)


def show_keys(
    run: Run, words: Sequence[str], step: int | None, output: str | None, *, overwrite: bool, as_json: bool
) -> None:
    """Describes what was logged under some keys, and writes it to `output`.

    Raises:
        NotFoundError: No such key, or nothing at this step.
        ClickException: A file cannot be written.
    """
    keys = list(dict.fromkeys(key for word in words for key in matching(run, word) or [word]))
    items: list[MediaItem] = []
    plain: dict[str, Any] = {}
    for key in keys:
        found = _items(run, key)
        if found:
            items += found
        else:
            plain[key] = run.series(key)
    items = sorted((item for item in items if step is None or item.step == step), key=lambda item: item.step)
    files = _write(items, output, overwrite) if output is not None else {}
    if output == _STDOUT:
        return
    if as_json:
        print_json([_facts(item, files.get(id(item))) for item in items] + _plain_facts(plain, step))
        return
    _print_items(items, step)
    for fact in _plain_facts(plain, step):
        click.echo(f"{clean(fact['key'])}  step {fact['step']}  {value_text(fact['value'])}")
    for path in files.values():
        click.echo(f"wrote {clean(path)}")
    if not items and not plain:
        raise NotFoundError(f"run {run.id} has nothing under {', '.join(map(repr, keys))} at step {step}")


def _items(run: Run, key: str) -> list[MediaItem]:
    """The items under a key; none of one whose values are plain."""
    run.series(key)  # an unknown key is told as such
    with contextlib.suppress(NotFoundError):
        return run.media(key)
    return []


def _plain_facts(plain: dict[str, Any], step: int | None) -> list[dict[str, Any]]:
    """The last value of each plain series, or the one at `step`."""
    found = []
    for key, series in plain.items():
        pairs = list(zip(series.step.tolist(), series.value.tolist()))
        if step is not None:
            pairs = [pair for pair in pairs if pair[0] == step]
        if pairs:
            found.append({"key": key, "step": pairs[-1][0], "kind": "plain", "value": pairs[-1][1]})
    return found


def _facts(item: MediaItem, path: str | None) -> dict[str, Any]:
    """All that is known of an item, for JSON."""
    facts: dict[str, Any] = {
        "key": item.key, "step": item.step, "index": item.index, "time": item.time, "kind": item.kind,
        "caption": item.caption, "format": item.format, "size": item.size, "stored": item.is_stored,
        "value": item.as_plain(),
    }  # fmt: skip
    with contextlib.suppress(Error):  # its head cannot be read: "stored" says so
        facts.update(dtype=item.dtype, shape=item.shape)
    return facts if path is None else {**facts, "file": path}


def _print_items(items: Sequence[MediaItem], step: int | None) -> None:
    if not items:
        return
    listed = items[-_LISTED_MAX:]
    rows = [
        (i.key, i.step, i.index, i.kind, _what(i), i.caption or "", size(i.size), "" if i.is_stored else "missing")
        for i in listed
    ]
    write_table(("KEY", "STEP", "INDEX", "KIND", "WHAT", "CAPTION", "SIZE", ""), rows, right=(1, 2, 6))
    if len(items) > len(listed):
        click.echo(f"{len(items) - len(listed):,} earlier ones: --step N shows those of a step, --json all")
    if len(items) == 1:
        _print_inside(items[0])


def _what(item: MediaItem) -> str:
    """Sizes and format in a few words, without reading its bytes."""
    told = item.as_plain()
    sizes = [told.get("width"), told.get("height")]
    parts = ["×".join(map(str, sizes))] if all(type(part) is int for part in sizes) else []
    if item.kind == "table":
        parts.append(f"{told.get('nrows')} rows, {len(item.columns)} columns")
    if item.kind == "tensor" and "shape" in told:
        parts.append(f"{item.dtype}{told['shape']}")
    return " ".join([*parts, item.format or ""]).strip()


def _print_inside(item: MediaItem) -> None:
    """Rows of a table, statistics of a tensor: what a terminal can show."""
    try:
        if item.kind == "table":
            rows = [[value_text(cell) for cell in row] for row in item.rows[:_LISTED_MAX]]
            click.echo()
            width = len(item.columns)
            write_table([clean(name) for name in item.columns], [row for row in rows if len(row) == width])
        elif item.kind == "tensor":
            for name, value in item.statistics.items():
                click.echo(f"  {clean(name):<10} {value_text(value)}")
        elif item.kind == "histogram":
            bins = item.bins
            click.echo(f"  {sum(item.values):,} values in {len(item.values)} bins from {bins[0]:.6g} to {bins[-1]:.6g}")
    except (Error, LookupError, TypeError, ValueError) as error:  # what it says of itself is not true
        click.echo(f"  cannot be read: {clean(getattr(error, 'message', error))}")


def _write(items: Sequence[MediaItem], output: str, overwrite: bool) -> dict[int, str]:
    """Writes the files; id of an item to its path.

    Raises:
        ClickException: Nothing to write, or one cannot be: those before it are there.
    """
    if not items:
        raise click.ClickException("there are no media to write here: -o writes images, videos, tables and the like")
    if output == _STDOUT:
        _write_out(items)
        return {}
    into_directory = len(items) > 1 or os.path.isdir(output) or output.endswith(os.sep)
    names = Names()
    written = {}
    for item in items:
        path = os.path.join(output, names.take(item.file_name)) if into_directory else output
        try:
            if into_directory:
                os.makedirs(output, exist_ok=True)
            written[id(item)] = item.save(path, overwrite=overwrite)
        except FileExistsError as error:
            raise click.ClickException(clean(f"{path!r} exists.") + "\n  Try: --overwrite, or another -o") from error
        except OSError as error:
            raise click.ClickException(clean(f"cannot write {path!r}: {error.strerror or error}")) from error
    return written


def _write_out(items: Sequence[MediaItem]) -> None:
    if len(items) != 1:
        raise click.ClickException(
            f"standard output takes one file, and there are {len(items)}.\n  Try: --step N, -o DIR"
        )
    if sys.stdout.isatty():
        raise click.ClickException("files are not written to a terminal: they could steer it.\n  Try: -o FILE")
    sys.stdout.buffer.write(items[0].bytes())
