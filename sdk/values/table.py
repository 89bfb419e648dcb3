"""Tables: `sdk.Table`, rows of named columns whose cells may be images, sounds and other media.

Cells are checked when they are added. `log()` packs rows that were not packed yet into a *part*, a blob of packed rows
that never changes, and stores a map that names all parts: so a table that grows costs only its new rows, and each record
that holds it is whole by itself, whatever became of the records before. A part that is small enough to stand in the record
is made again with the next rows, and small parts are made into larger ones, so that there are never many
(docs/media.md#tables).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import msgpack

from ..errors import DamageError, Error, NotFoundError
from ..limits import INLINE_TENSOR_BYTES_MAX, KIB
from ..record import EXT_CELL, BlobRef, StoredBlob, decode_rows
from .blobs import Blob, snapshot
from .cells import PLAIN, Column, cell, kinds_of_dtype, missing
from .convert import plain_value
from .media import Media, going_on

LOG_MODES = ("IMMUTABLE", "MUTABLE", "INCREMENTAL")
# So many parts in a row that are smaller than this are made into one, once: rows are packed at most three times.
_SMALL_PARTS = 8
_SMALL_BYTES = 128 * KIB


class Part(NamedTuple):
    """The rows of a table from `first` up to `end`, packed."""

    blob: Blob
    first: int
    end: int


class Table(Media):
    """Rows of named columns. It can be added to, and logged again.

    Args:
        columns: Names, str or int.
        data: Rows: a list of lists, a numpy array of two axes, or a pandas DataFrame. Rows are copied; so are lists, maps
            and arrays in them.
        rows: An older name of `data`.
        dataframe: A pandas DataFrame, whose columns they are; its index is not stored.
        dtype: What a column holds, for all or as a list: int, float, str, bool, datetime, list, dict, `Image` and so on, or
            a set of these. Without it the first cell that is not None decides.
        optional: Whether cells may be None, for all or as a list.
        allow_mixed_types: Whether any cell may be of any type.
        log_mode: "IMMUTABLE": the first `log()` decides what is stored; later changes warn and have no effect. "MUTABLE": as
            it is at each `log()`. "INCREMENTAL": the same, but columns cannot be added. In both, rows that were added since
            cost only themselves.

    Raises:
        ValueError: A row of another width; a value out of range.
        TypeError: A cell that does not fit into its column, or that cannot be stored.
        AssertionError: Columns or rows that are no list, names that are neither str nor int, an unknown `log_mode`.
    """

    _type: ClassVar[str] = "table-file"

    # W&B's, for scripts that look at them; here all rows are stored.
    MAX_ROWS = 10_000
    MAX_ARTIFACT_ROWS = 200_000

    def __init__(
        self,
        columns: Sequence[str | int] | None = None,
        data: Any = None,
        rows: Any = None,
        dataframe: Any = None,
        dtype: Any = None,
        optional: bool | Sequence[bool] = True,
        allow_mixed_types: bool = False,
        log_mode: str = "IMMUTABLE",
    ) -> None:
        self.data: list[list[Any]] = []
        self.columns: list[str | int] = []
        self.log_mode = log_mode
        self._types: list[Column] = []
        self._keys: dict[str, Any] = {}
        self._media: dict[int, tuple[int, Media]] = {}
        self._parts: list[Part] = []
        self._packed_from: list[list[Any]] | None = None
        self._frozen: dict[str, Any] | None = None
        if log_mode not in LOG_MODES:
            raise AssertionError(f"Table() log_mode is {log_mode!r}, expected one of {', '.join(LOG_MODES)}")
        frame = dataframe if dataframe is not None else data if _is_frame(data) else None
        if frame is not None:
            names, given = _from_frame(frame)
        else:
            given = data if data is not None else rows if rows is not None else []
            names = _names(["Input", "Output", "Expected"] if columns is None else columns)
        kinds: list[Any] = [Any if allow_mixed_types else dtype] * len(names) if not isinstance(dtype, list) else dtype
        may_lack = [bool(optional)] * len(names) if isinstance(optional, bool) else list(optional)
        self.columns = names
        self._types = [Column(kinds_of_dtype(kind), lack) for kind, lack in zip(kinds, may_lack)]
        if len(self._types) != len(names):
            raise AssertionError(f"Table() has {len(names)} columns, and dtype or optional for {len(self._types)}")
        self._extend(_rows_of(given))

    # -- adding ------------------------------------------------------------------------------------------------------

    def _extend(self, rows: list[list[Any]]) -> None:
        """Adds checked rows, all or none."""
        width = len(self.columns)
        if not set(map(len, rows)) <= {width}:
            index = next(index for index, row in enumerate(rows) if len(row) != width)
            raise ValueError(f"Table() expects {width} columns: {self.columns}, row {index} has {len(rows[index])}")
        found = list(self._types)
        for place, values in enumerate(zip(*rows)):
            if not found[place].types.issuperset(map(type, values)):
                found[place], kept = self._checked(place, values, len(self.data))
                if kept is not values:
                    for row, value in zip(rows, kept):
                        row[place] = value
        self.data.extend(rows)
        self._types = found

    def _checked(self, place: int, values: Sequence[Any], first: int) -> tuple[Column, Sequence[Any]]:
        """The type of a column with further values, and what is kept of these; `first` is the row of the first of them."""
        name = self.columns[place]
        exact = set(map(type, values))
        if not exact <= PLAIN.keys():
            values = [cell(value, name) for value in values]
            exact = set(map(type, values))
        try:
            return self._types[place].admitting(values, exact), values
        except TypeError as error:
            raise TypeError(
                f"Table() data row contained incompatible types: column {name!r}, rows from {first} on, has {error}. "
                "allow_mixed_types=True takes any"
            ) from None

    @going_on
    def add_data(self, *data: Any) -> None:
        """Appends a row.

        Raises:
            ValueError, TypeError: As the constructor.
        """
        self._warn_if_frozen()
        if len(data) == len(self.columns) and all(type(value) in one.types for value, one in zip(data, self._types)):
            self.data.append(list(data))
        else:
            self._extend([list(data)])

    def add_row(self, *row: Any) -> None:
        """As `add_data`."""
        self.add_data(*row)

    @going_on
    def add_column(self, name: str, data: Any, optional: bool = False) -> None:
        """Appends a column.

        Args:
            name: A new name.
            data: A list or numpy array, a value for each row.
            optional: Whether cells may be None.

        Raises:
            Error: The table's log_mode is "INCREMENTAL".
            AssertionError: The name exists already, or it is another number of values.
            TypeError: Values that do not fit together.
        """
        self._refuse_incremental("add_column")
        self._warn_if_frozen()
        values = _list_of(data)
        if not isinstance(name, str) or name in self.columns:
            raise AssertionError(f"add_column() name is {name!r}, expected a new str; there are {self.columns}")
        if self.columns and len(values) != len(self.data):
            raise AssertionError(f"add_column() has {len(values)} values for {len(self.data)} rows")
        self.columns.append(name)
        self._types.append(Column(frozenset(), optional))
        try:
            self._types[-1], kept = self._checked(len(self.columns) - 1, values, 0)
        except BaseException:
            del self.columns[-1], self._types[-1]
            raise
        if len(self.columns) == 1:
            self.data.extend([] for _ in kept)
        for row, value in zip(self.data, kept):
            row.append(value)
        self._repack()

    def add_computed_columns(self, fn: Callable[[int, dict[str | int, Any]], dict[str, Any]]) -> None:
        """Appends the columns that `fn` computes.

        Args:
            fn: Called with the index and the map of each row; returns a map of new columns to values.

        Raises:
            Error, AssertionError, TypeError: As `add_column`.
        """
        self._refuse_incremental("add_computed_columns")
        found: dict[str, list[Any]] = {}
        for index, row in enumerate(self.data):
            new = fn(index, dict(zip(self.columns, row)))
            if not isinstance(new, dict):
                raise AssertionError(f"add_computed_columns() fn returned {new!r}, expected a dict of column to value")
            for name, value in new.items():
                found.setdefault(name, []).append(value)
        for name, values in found.items():
            self.add_column(name, values)

    @going_on
    def cast(self, col_name: str | int, dtype: Any, optional: bool = False) -> None:
        """Says what a column holds.

        Raises:
            AssertionError: There is no such column.
            TypeError: Cells that are not of that type; an unknown type.
        """
        place = self._place(col_name)
        column = Column(kinds_of_dtype(dtype), optional)
        self._types[place], before = column, self._types[place]
        try:
            self._types[place], _ = self._checked(place, [row[place] for row in self.data], 0)
        except BaseException:
            self._types[place] = before
            raise

    def set_pk(self, col_name: str | int) -> None:
        """Marks a column as the one that identifies rows. Stored, without further effect."""
        self._place(col_name)
        self._keys["primary_key"] = col_name

    def set_fk(self, col_name: str | int, table: Table, table_col: str | int) -> None:
        """Marks a column as one that refers to rows of another table. Stored, without further effect."""
        self._place(col_name)
        table._place(table_col)
        self._keys.setdefault("foreign_keys", {})[str(col_name)] = table_col

    def _refuse_incremental(self, what: str) -> None:
        if self.log_mode == "INCREMENTAL":
            raise Error(
                f"{what}() is not supported by a table whose log_mode is 'INCREMENTAL'", hint="log_mode='MUTABLE'"
            )

    def _warn_if_frozen(self) -> None:
        if self._frozen is not None:
            warnings.warn(
                "this Table was logged already, and its log_mode is 'IMMUTABLE': what is changed now is not stored. "
                "log_mode='MUTABLE' logs it anew",
                stacklevel=4,
            )

    # -- looking -----------------------------------------------------------------------------------------------------

    def _place(self, name: str | int) -> int:
        if name not in self.columns:
            raise AssertionError(f"there is no column {name!r}, expected one of {self.columns}")
        return self.columns.index(name)

    def get_column(self, name: str | int, convert_to: str | None = None) -> Any:
        """The cells of a column, as a list, or with ``convert_to="numpy"`` as an array.

        Raises:
            ValueError: There is no such column.
            AssertionError: Another `convert_to`.
        """
        if convert_to not in (None, "numpy"):
            raise AssertionError(f"get_column() convert_to is {convert_to!r}, expected None or 'numpy'")
        if name not in self.columns:
            raise ValueError(f"there is no column {name!r}, expected one of {self.columns}")
        place = self.columns.index(name)
        found = [row[place] for row in self.data]
        if convert_to is None:
            return found
        import numpy

        return numpy.array(found)

    def get_dataframe(self) -> Any:
        """A pandas DataFrame of the table. Raises Error without pandas."""
        try:
            import pandas
        except ImportError:
            raise missing("pandas", "Table.get_dataframe()") from None
        return pandas.DataFrame.from_records(self.data, columns=self.columns)

    def get_index(self) -> list[int]:
        """The numbers of the rows."""
        return list(range(len(self.data)))

    def index_ref(self, index: int) -> int:
        """The number of a row. Raises AssertionError if there is none."""
        if not 0 <= index < len(self.data):
            raise AssertionError(f"there is no row {index}, expected one of {len(self.data)}")
        return index

    def iterrows(self) -> Iterator[tuple[int, list[Any]]]:
        """(number, cells) of each row."""
        yield from enumerate(self.data)

    def __len__(self) -> int:
        return len(self.data)

    # -- storing -----------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        if self._frozen is not None:
            return self._frozen
        self._pack_new()
        found = {
            "columns": list(self.columns),
            "types": [one.name for one in self._types],
            "nrows": len(self.data),
            "ncols": len(self.columns),
            "log_mode": self.log_mode,
            "parts": [part.blob for part in self._parts],
            "rows": [part.end - part.first for part in self._parts],
            "media": [value for _, value in self._media.values()],
            **self._keys,
        }
        if self.log_mode == "IMMUTABLE":
            self._frozen = found
        return found

    def _repack(self) -> None:
        """What was packed is not what there is any more."""
        self._parts, self._media = [], {}

    def _pack_new(self) -> None:
        """Makes parts of the rows that are in none yet."""
        parts = self._parts
        packed = parts[-1].end if parts else 0
        if self._packed_from is not self.data or packed > len(self.data):  # not by our methods
            self._repack()
            parts, packed = self._parts, 0
        self._packed_from = self.data
        if packed == len(self.data):
            return
        if parts and parts[-1].blob.size <= INLINE_TENSOR_BYTES_MAX:
            packed = parts.pop().first
        last = parts[-_SMALL_PARTS:]
        if len(last) == _SMALL_PARTS and all(part.blob.size < _SMALL_BYTES for part in last):
            del parts[-_SMALL_PARTS:]
            parts.append(self._part(last[0].first, packed))
        parts.append(self._part(packed, len(self.data)))

    def _part(self, first: int, end: int) -> Part:
        rows = self.data[first:end]
        packed = msgpack.Packer(default=self._odd_cell, unicode_errors="surrogatepass").pack(rows)
        return Part(snapshot(packed, {"media": self._type, "format": "msgpack", "rows": len(rows)}), first, end)

    def _odd_cell(self, value: Any) -> Any:
        """What is packed for a cell that is not plain."""
        if isinstance(value, Media):
            index, _ = self._media.setdefault(id(value), (len(self._media), value))
            return msgpack.ExtType(EXT_CELL, msgpack.packb(index))
        return plain_value(value, "a cell of a table")


class EvalTable(Table):
    """A table of a model's answers, which says what its columns are for. Otherwise as `Table`.

    Args:
        input_columns, output_columns, score_columns: Names of columns; stored.

    Raises:
        AssertionError: One of them is no column.
    """

    def __init__(
        self,
        columns: Sequence[str | int] | None = None,
        *args: Any,
        input_columns: Sequence[str] = (),
        output_columns: Sequence[str] = (),
        score_columns: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(columns, *args, **kwargs)
        for role, names in (("input", input_columns), ("output", output_columns), ("score", score_columns)):
            for name in names:
                self._place(name)
            if names:
                self._keys[f"{role}_columns"] = list(names)


class JoinedTable(Media):
    """Two tables and the column that they have in common; both are stored, joining is the reader's.

    Args:
        table1, table2: `Table`s.
        join_key: The name of the column, or a list of its names in the one and the other.

    Raises:
        ValueError: A `join_key` that is neither; something that is no `Table`.
    """

    _type: ClassVar[str] = "joined-table"

    def __init__(self, table1: Table, table2: Table, join_key: str | Sequence[str]) -> None:
        is_pair = (
            isinstance(join_key, (list, tuple)) and len(join_key) == 2 and all(isinstance(k, str) for k in join_key)
        )
        if not isinstance(join_key, str) and not is_pair:
            raise ValueError(f"JoinedTable() join_key is {join_key!r}, expected a str or a list of two")
        for table in (table1, table2):
            if not isinstance(table, Table):
                raise ValueError(f"JoinedTable() is given {type(table).__qualname__}, expected a Table")
        self._described = {"table1": table1, "table2": table2, "join_key": join_key}

    def describe(self) -> dict[str, Any]:
        return self._described


# -- what is given -------------------------------------------------------------------------------------------------------


def _is_frame(value: Any) -> bool:
    return type(value).__name__ == "DataFrame" and type(value).__module__.startswith("pandas")


def _from_frame(frame: Any) -> tuple[list[str | int], list[list[Any]]]:
    """Names and rows of a pandas DataFrame."""
    if not _is_frame(frame):
        raise AssertionError(f"Table() dataframe is {type(frame).__qualname__}, expected a pandas DataFrame")
    names: list[str | int] = [name if type(name) in (str, int) else str(name) for name in frame.columns]
    columns = [frame.iloc[:, place].tolist() for place in range(len(names))]
    return names, list(map(list, zip(*columns)))


def _names(columns: Any) -> list[str | int]:
    if not isinstance(columns, (list, tuple)) or not all(type(name) in (str, int) for name in columns):
        raise AssertionError(f"Table() columns are {columns!r}, expected a list of str or int")
    return list(columns)


def _rows_of(given: Any) -> list[list[Any]]:
    if hasattr(given, "tolist") and hasattr(given, "ndim"):
        if given.ndim != 2:
            raise AssertionError(f"Table() data is an array of {given.ndim} axes, expected 2: rows and columns")
        rows: list[list[Any]] = given.tolist()
        return rows
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise AssertionError(f"Table() data is {type(given).__qualname__}, expected a list of rows")
    return list(map(list, given))


def _list_of(values: Any) -> list[Any]:
    if hasattr(values, "tolist") and getattr(values, "ndim", 0) == 1:
        found: list[Any] = values.tolist()
        return found
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise AssertionError(f"add_column() data is {type(values).__qualname__}, expected a list or a numpy array")
    return list(values)


# -- reading -------------------------------------------------------------------------------------------------------------


def table_rows(value: Mapping[str, Any], read: Callable[[BlobRef | StoredBlob], Any]) -> list[list[Any]]:
    """The rows of a table in a record: lists of cells in the order of its columns; media cells are maps (`MediaValue`).

    Args:
        value: The map, as `decode_map` gives it.
        read: Gets the raw bytes of a part.

    Raises:
        DamageError: It is no table, or its parts do not fit it.
        NotFoundError: Rows for which there was no room when it was logged; and what `read` raises.
    """
    columns, parts, counts, media = (value.get(name) for name in ("columns", "parts", "rows", "media"))
    if not (type(columns) is type(parts) is type(counts) is type(media) is list and len(parts) == len(counts)):
        raise DamageError(f"a table whose map holds {sorted(map(str, value))}")
    rows: list[list[Any]] = []
    for part, count in zip(parts, counts):
        if part is None:
            raise NotFoundError(
                f"rows {len(rows)} to {len(rows) + count - 1} of the table are not stored: there was no room in memory "
                "when it was logged"
            )
        if not isinstance(part, (BlobRef, StoredBlob)):
            raise DamageError(f"a table with a part that is {type(part).__name__}")
        found = decode_rows(read(part), media)
        if len(found) != count or any(type(row) is not list or len(row) != len(columns) for row in found):
            raise DamageError(f"a table with a part of {len(found)} rows, expected {count!r} of {len(columns)} columns")
        rows += found
    return rows


def table_columns(value: Mapping[str, Any], read: Callable[[BlobRef | StoredBlob], Any]) -> dict[Any, list[Any]]:
    """As `table_rows`, by column: name to cells."""
    rows = table_rows(value, read)
    names = value["columns"]
    columns = map(list, zip(*rows)) if rows else [[] for _ in names]
    return dict(zip(names, columns))
