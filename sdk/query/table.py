"""What `open_store().table()` gives: a table of runs that shows itself in a notebook and becomes a DataFrame. Thin over `overview`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..reader.frames import pandas_module
from .overview import Overview, Spread

if TYPE_CHECKING:
    from ..reader.run import Run


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
        return self.overview._repr_html_()

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
