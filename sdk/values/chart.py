"""Charts over a table: what the functions of `sdk.plot` return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ..errors import Error
from .media import Media
from .table import Table


class CustomChart(Media):
    """A table and how it is drawn: the name of a chart, and which column plays which part in it.

    Args:
        spec: The name of a chart: W&B's presets ("wandb/line/v0") or one of the user's own.
        table: The data.
        fields: The parts that the chart has, to columns of the table.
        string_fields: Its texts, such as "title".
        split_table: Whether the table is wanted in a section of its own; stored, for where charts are shown.

    Raises:
        Error: Something that is no `Table`.
    """

    _type: ClassVar[str] = "custom-chart"

    def __init__(
        self,
        spec: str,
        table: Table,
        fields: Mapping[str, Any],
        string_fields: Mapping[str, Any] | None = None,
        split_table: bool = False,
    ) -> None:
        if not isinstance(table, Table):
            raise Error(f"a chart is given {type(table).__qualname__}, expected a Table")
        self.spec = spec
        self.table = table
        self.fields = {name: column for name, column in dict(fields).items() if column is not None}
        self.string_fields = dict(string_fields or {})
        self.split_table = bool(split_table)

    def describe(self) -> dict[str, Any]:
        return {
            "spec": self.spec,
            "fields": self.fields,
            "string_fields": self.string_fields,
            "split_table": self.split_table,
            "table": self.table,
        }
