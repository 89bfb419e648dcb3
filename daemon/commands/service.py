"""What `start`, `stop`, `restart` and `status` share: which store, and words for numbers."""

from __future__ import annotations

from typing import Any

import click

from sdk.location import find_store

START_SECONDS = 15.0


def directory_option(function: Any) -> Any:
    """`--dir` after the verb; before the verb it is the group's."""
    return click.option("--dir", "directory", metavar="PATH", help="The store.")(function)


def store_path(ctx: click.Context, directory: str | None) -> str:
    """The store that was asked for, or the default one."""
    return find_store(directory or ctx.obj).path


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
