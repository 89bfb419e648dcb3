"""What `open_store().table()` gives: a table of runs that shows itself in a notebook and becomes a DataFrame. Thin over `overview`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .. import clock
from ..reader import pictures
from ..reader.frames import pandas_module
from ..reader.times import ago
from .overview import Overview, Spread

if TYPE_CHECKING:
    from ..reader.run import Run

# Limit: as the table of a store: what a notebook keeps.
_ROWS_SHOWN_MAX = 100


class RunsTable:
    """Rows of runs, or of groups of them, as `Store.table` chose them; nothing of it changes afterwards.

    Attributes:
        overview: What it is made of.
    """

    def __init__(self, overview: Overview) -> None:
        self.overview = overview

    @property
    def columns(self) -> list[str]:
        """Names of the columns: "name", "config.lr", "best:val/acc"."""
        return [column.name for column in self.overview.columns]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A map of column to value for each row. Times are Unix seconds; None: there is none; of groups numbers are `Spread`s."""
        return self.overview.rows()

    @property
    def runs(self) -> list[Run]:
        """The runs, in the order of the rows."""
        return self.overview.runs

    def __len__(self) -> int:
        return len(self.overview.groups)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return f"<{len(self):,} {'groups' if self.overview.by else 'runs'} of {self.overview.total:,}: {', '.join(self.columns)}>"

    def _repr_html_(self) -> str:
        columns = self.overview.columns
        head = "".join(f"<th>{pictures.escaped(column.name)}</th>" for column in columns)
        now = clock.wall_ns() / 1e9
        shown = min(len(self), _ROWS_SHOWN_MAX)
        body = "".join(
            "<tr>"
            + "".join(_cell(column.kind, column.values[row], column.best == row, now) for column in columns)
            + "</tr>"
            for row in range(shown)
        )
        more = f"<p>{shown:,} of {len(self):,} rows</p>" if shown < len(self) else ""
        return f'<div class="stepd"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}</div>'

    def to_pandas(self) -> Any:
        """A pandas.DataFrame: one row for each; times are UTC; a spread is two columns, ``NAME`` (its mean) and ``NAME.std``.

        Raises:
            Error: pandas is not installed.
        """
        pandas = pandas_module("to_pandas()")
        data: dict[str, Any] = {}
        for column in self.overview.columns:
            if column.kind == "time":
                data[column.name] = pandas.to_datetime(
                    pandas.Series(column.values, dtype="float64"), unit="s", utc=True
                )
            elif any(isinstance(value, Spread) for value in column.values):
                data[column.name] = [value.mean if isinstance(value, Spread) else value for value in column.values]
                data[f"{column.name}.std"] = [
                    value.std if isinstance(value, Spread) else None for value in column.values
                ]
            else:
                data[column.name] = column.values
        return pandas.DataFrame(data)


def _cell(kind: str, value: Any, is_best: bool, now: float) -> str:
    text = pictures.escaped("" if value is None else _text(kind, value, now))
    return f"<td><b>{text}</b></td>" if is_best else f"<td>{text}</td>"


def _text(kind: str, value: Any, now: float) -> str:
    if isinstance(value, Spread):
        return _text(kind, value.mean, now) + (f" ± {_text(kind, value.std, now)}" if value.std is not None else "")
    if kind == "time":
        return ago(value, now)
    if kind == "length":
        return pictures.duration(value)
    if isinstance(value, float):
        return pictures.number(value)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
