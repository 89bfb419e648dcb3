"""Files of rows: tables come in, one stream after the other, and go out as Parquet files of some size.

A file has one schema. Tables wait until they fill a row group; the keys of the first row group are those of the file, and a later one
that is short of some has holes there. A key that comes later, or whose values become of another type, begins the next file: readers
put the files together by the names of columns. Memory holds a row group.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from daemon.sync.targets.parquet.cells import SEQUENCE
from daemon.sync.targets.parquet.names import PartName
from daemon.sync.targets.parquet.roots import Draft, Root
from sdk.limits import MIB

# A scan reads row groups whole and leaves out those whose statistics rule them out; half a million rows of ten doubles are 48 MiB.
GROUP_ROWS_MAX = 512 * 1024
_GROUP_BYTES_MAX = 64 * MIB
# Engines give a file to a thread, or a part of it; below this they wait for requests, above it little is won.
PART_BYTES_MAX = 256 * MIB
# Limit: a file's own description has some 300 bytes for each column and row group, which every reader reads first. What has more at
# once gets a file that has more.
COLUMNS_MAX = 4096
_CELL_BYTES = 8
# Measured with 10⁷ noisy doubles, of which most had been float32: zstd at 1 takes 0.34 s of one core and leaves 39 MB, at 3 0.44 s and as
# much, lz4 0.23 s and 55 MB. BYTE_STREAM_SPLIT would make it 34 MB in half the time, but not every engine reads it.
_COMPRESSION, _LEVEL = "zstd", 1
_DELTA = "DELTA_BINARY_PACKED"
# Columns of ours that count upwards.
_RISING = ("_step", "_time", SEQUENCE)


class Part:
    """One file that is being written. Its rows are of one stream."""

    def __init__(self, arrow: Any, draft: Draft, told: dict[str, str]) -> None:
        self._arrow = arrow
        self._told = told
        self._fields: dict[str, Any] = {}
        self._waiting: list[Any] = []
        self._rows = self._bytes = 0
        self._writer: Any = None
        self.draft = draft
        self.first, self.last = 2**64, 0

    @property
    def size(self) -> int:
        return self.draft.tell()

    def take(self, table: Any) -> bool:
        """Takes the rows of a table; False: they do not fit, so that nothing was taken."""
        fields = self._fields_with(table)
        if fields is None:
            return False
        self._fields = fields
        self._waiting.append(table)
        self._rows += len(table)
        self._bytes += table.nbytes
        import pyarrow.compute

        span = pyarrow.compute.min_max(table[SEQUENCE]).as_py()
        self.first, self.last = min(self.first, span["min"]), max(self.last, span["max"])
        # Holes take memory too, once the tables are of one schema.
        size = max(self._bytes, self._rows * len(fields) * _CELL_BYTES)
        if self._rows >= GROUP_ROWS_MAX or size >= _GROUP_BYTES_MAX:
            self._write()
        return True

    def _fields_with(self, table: Any) -> dict[str, Any] | None:
        """The columns of the file with those of a table."""
        arrow, fields = self._arrow, dict(self._fields)
        for name, column in zip(table.column_names, table.columns):
            known = fields.get(name)
            if arrow.types.is_null(column.type) or column.type == known:
                continue
            if known is None and self._writer is None:
                fields[name] = column.type
            elif known is None or not self._is_number_of(name, known, column):
                return None
            elif arrow.types.is_floating(column.type):
                fields[name] = column.type
        if self._fields and len(fields) > max(COLUMNS_MAX, len(self._fields)):
            return None
        return fields

    def _is_number_of(self, name: str, known: Any, column: Any) -> bool:
        """Whether a column of integers and one of doubles can both be doubles, without a change in any value."""
        types = self._arrow.types
        if types.is_floating(known) and types.is_integer(column.type):
            return _is_exact(self._arrow, column)
        if types.is_integer(known) and types.is_floating(column.type) and self._writer is None:
            return all(_is_exact(self._arrow, one[name]) for one in self._waiting if name in one.column_names)
        return False

    def _write(self) -> None:
        arrow = self._arrow
        schema = arrow.schema(list(self._fields.items()), self._told)
        if self._writer is None:
            self._writer = self._opened(schema)
        tables = [_aligned(arrow, table, schema) for table in self._waiting]
        whole = arrow.concat_tables(tables).unify_dictionaries()
        self._writer.write_table(whole, row_group_size=max(len(whole), 1))
        self._waiting, self._rows, self._bytes = [], 0, 0

    def _opened(self, schema: Any) -> Any:
        import pyarrow.parquet

        types = self._arrow.types
        rising = [name for name in _RISING if name in schema.names]
        return pyarrow.parquet.ParquetWriter(
            self.draft, schema, compression=_COMPRESSION, compression_level=_LEVEL,
            use_dictionary=[field.name for field in schema if not _is_plain_number(types, field.type)],
            column_encoding=dict.fromkeys(rising, _DELTA), store_schema=False, write_statistics=True,
        )  # fmt: skip

    def finish(self) -> None:
        """Writes what waits, and the file's end."""
        if self._waiting:
            self._write()
        self._writer.close()


def _is_plain_number(types: Any, kind: Any) -> bool:
    return bool(types.is_floating(kind) or types.is_integer(kind) or types.is_timestamp(kind) or types.is_boolean(kind))


def _is_exact(arrow: Any, column: Any) -> bool:
    try:
        column.cast(arrow.float64())
    except arrow.ArrowInvalid:
        return False
    return True


def _aligned(arrow: Any, table: Any, schema: Any) -> Any:
    """A table with the columns of a schema."""
    found = set(table.column_names)
    columns = [
        table[field.name].cast(field.type) if field.name in found else arrow.nulls(len(table), field.type)
        for field in schema  # a cast to its own type costs nothing
    ]
    return arrow.table(columns, schema=schema)


class Parts:
    """The files of one run that are made in one pass.

    Args:
        label: Of drafts; one pass at a time uses it.
        told: What stands in each file, for people who find one alone.
        published: Called with the kind, the name and the size of each file once it is safe.
    """

    def __init__(
        self, arrow: Any, root: Root, label: str, where: str, told: dict[str, Any],
        published: Callable[[str, str, int], None],
    ) -> None:  # fmt: skip
        self._arrow, self._root, self._label, self._where = arrow, root, label, where
        self._told = {"stepd": json.dumps(told)}
        self._published = published
        self._part: Part | None = None
        self._of = ("", "")

    def add(self, kind: str, stream: str, table: Any) -> None:
        """Takes rows of a stream. Full files are published by and by, all with `finish`."""
        if self._of != (kind, stream):
            self.finish()
            self._of = (kind, stream)
        if self._part is None or not self._part.take(table):
            self.finish()
            self._part = Part(self._arrow, self._root.draft(self._label), self._told)
            took = self._part.take(table)
            assert took, "an empty file takes any table"
        if self._part.size >= PART_BYTES_MAX:
            self.finish()

    @property
    def is_open(self) -> bool:
        return self._part is not None

    def finish(self) -> None:
        """Publishes the file that is being written."""
        part, self._part = self._part, None
        if part is None:
            return
        kind, stream = self._of
        name = PartName(stream, part.first, part.last).text
        try:
            part.finish()
            size = self._root.publish(part.draft, f"{kind}/{self._where}/{name}")
        except BaseException:
            self._root.discard(part.draft)
            raise
        self._published(kind, name, size)

    def close(self) -> None:
        """Drops the file that is being written."""
        if self._part is not None:
            self._root.discard(self._part.draft)
            self._part = None


def tables_in(arrow: Any, source: Any) -> Iterator[Any]:
    """The row groups of a file, one at a time."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(source) as file:
        for place in range(file.num_row_groups):
            yield file.read_row_group(place)
