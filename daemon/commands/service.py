"""What `start`, `stop`, `restart` and `status` share: which store, and words for numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import click

from sdk.location import find_store
from sdk.settings import Settings, parse_bytes

START_SECONDS = 15.0
_BUDGETS = {
    "store_bytes_max": "The most that the store may take, trash included: 10G, 500M; 0: no budget.",
    "run_bytes_max": "The most that each run may take.",
    "free_bytes_min": "What the disk must have left; default: 64M, or a sixteenth of a smaller disk.",
}


def directory_option(function: Any) -> Any:
    """`--dir` after the verb; before the verb it is the group's."""
    return click.option("--dir", "directory", metavar="PATH", help="The store.")(function)


def _bytes_of(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else parse_bytes(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def budget_options(function: Any) -> Any:
    """`--store-bytes-max`, `--run-bytes-max` and `--free-bytes-min`; the command gets a number or None for each."""
    for name, text in reversed(_BUDGETS.items()):
        option = click.option(f"--{name.replace('_', '-')}", name, callback=_bytes_of, metavar="SIZE", help=text)
        function = option(function)
    return function


def set_budgets(store: str, budgets: Mapping[str, int | None]) -> None:
    """Tells the serving daemon those that were given."""
    given = {name: size for name, size in budgets.items() if size is not None}
    if given:
        from sdk.transport import request  # zmq: 10 ms, which commands that only look need not wait for

        request(store, "budget", given)


def store_path(ctx: click.Context, directory: str | None) -> str:
    """The store that was asked for, or the default one."""
    return find_store(directory or ctx.obj).path


def shared_memory_dir() -> str:
    """Where the trainers of this user's environment have their rings."""
    return os.environ.get("STEPD_SHARED_MEMORY_DIR") or Settings.shared_memory_dir


def clean(text: object) -> str:
    """The text without what could steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def clean_lines(text: str) -> str:
    """As `clean`, with the ends of lines left as they are: for errors, which may quote a hostile store."""
    return "\n".join(map(clean, text.split("\n")))


def size(count: float) -> str:
    """Bytes for people: `16.1 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds for people: `2 h 14 m`."""
    total = int(seconds)
    if total < 120:
        return f"{total} s"
    if total < 7200:
        return f"{total // 60} m {total % 60} s"
    if total < 172800:
        return f"{total // 3600} h {total // 60 % 60} m"
    return f"{total // 86400} d {total // 3600 % 24} h"
