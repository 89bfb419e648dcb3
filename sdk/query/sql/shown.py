"""The first rows of an answer as text and as HTML, for whoever looks at it in a Python prompt or a notebook."""

from __future__ import annotations

import datetime
import html
from collections.abc import Sequence
from typing import Any

from ...reader.plain import as_json

_CELL_CHARACTERS_MAX = 60


def cell_text(value: Any) -> str:
    """A cell on one line: floats in six digits, whole ones as they are, times to the second, lists and structs as JSON."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ", "seconds")
    if is_interval(value):
        return interval_text(value)
    if isinstance(value, (list, dict)):
        value = as_json(_without_nulls(value))
    return "".join(c if c.isprintable() else "?" for c in str(value))


def is_interval(value: Any) -> bool:
    """Whether a cell is a pyarrow.MonthDayNano: a difference of times, to DuckDB."""
    return isinstance(value, tuple) and hasattr(value, "nanoseconds")


def interval_text(value: Any) -> str:
    """As DuckDB writes it: `1 year 2 months 3 days 00:18:26.5`."""
    years, months = divmod(abs(value.months), 12)
    if value.months < 0:
        years, months = -years, -months
    parts = [(years, "year"), (months, "month"), (value.days, "day")]
    words = [f"{number} {unit}{'' if abs(number) == 1 else 's'}" for number, unit in parts if number]
    if value.nanoseconds or not words:
        seconds, fraction = divmod(abs(value.nanoseconds), 10**9)
        clock = f"{seconds // 3600:02}:{seconds % 3600 // 60:02}:{seconds % 60:02}"
        words.append(
            f"{'-' if value.nanoseconds < 0 else ''}{clock}{f'.{fraction:09}'.rstrip('0') if fraction else ''}"
        )
    return " ".join(words)


def _without_nulls(value: Any) -> Any:
    """A struct without the fields that it lacks: those that only other rows have."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def rest_text(shown: int, count: int, rows: str = "rows") -> str | None:
    """How many rows are not shown; None: none."""
    return f"… {count - shown:,} more {rows}" if count > shown else None


def as_text(columns: Sequence[str], rows: Sequence[Sequence[Any]], count: int, notes: Sequence[str]) -> str:
    """A table in plain text."""
    cells = [[_cut(cell_text(cell)) for cell in row] for row in [list(columns), *rows]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
    return "\n".join([*lines, *filter(None, [rest_text(len(rows), count)]), *map(cell_text, notes)])


def as_html(columns: Sequence[str], rows: Sequence[Sequence[Any]], count: int, notes: Sequence[str]) -> str:
    """A table in HTML, everything escaped."""
    head = "".join(f"<th>{_escaped(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_escaped(_cut(cell_text(cell)))}</td>' for cell in row)}</tr>" for row in rows)
    told = "".join(f"<p>{_escaped(line)}</p>" for line in [rest_text(len(rows), count), *notes] if line)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{told}"


def _escaped(text: str) -> str:
    return html.escape(cell_text(text))


def _cut(text: str) -> str:
    return text if len(text) <= _CELL_CHARACTERS_MAX else f"{text[: _CELL_CHARACTERS_MAX - 1]}…"
