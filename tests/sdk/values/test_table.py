"""sdk.Table: its methods as W&B's, what fits into a column, what a growing table costs, and what is read back."""

from __future__ import annotations

import datetime
import decimal
import enum
import math
import pathlib
from typing import Any

import ml_dtypes
import msgpack
import numpy
import pandas
import pytest

import sdk
from sdk.errors import DamageError, NotFoundError
from sdk.limits import INLINE_TENSOR_BYTES_MAX
from sdk.record import (
    EXT_CELL,
    BlobRef,
    MediaValue,
    StoredBlob,
    decode_map,
    encode_blob_ref,
    encode_inline_blob,
    encode_map,
)
from sdk.values import Blob, plain
from sdk.values.cells import kinds_of_dtype
from sdk.values.table import _SMALL_BYTES, _SMALL_PARTS, JoinedTable, Table, table_columns, table_rows

NEW_YEAR = datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc)
PIXELS = numpy.arange(48, dtype="u1").reshape(4, 4, 3)


class Run:
    """What is stored of several calls: small blobs in the record, others once each."""

    def __init__(self) -> None:
        self.blobs: list[Blob] = []

    def put(self, blob: Blob, key: str) -> object:
        if blob.size <= INLINE_TENSOR_BYTES_MAX:
            return encode_inline_blob(StoredBlob(bytes(blob.view()), blob.meta))
        if blob not in self.blobs:
            self.blobs.append(blob)
        return encode_blob_ref(BlobRef(0, self.blobs.index(blob), blob.size))

    def log(self, table: Any) -> Any:
        return decode_map(encode_map(plain({"k": table}, put=self.put)[0]))["k"]

    def read(self, part: Any) -> Any:
        return part.data if isinstance(part, StoredBlob) else self.blobs[part.number].view()

    def rows(self, value: Any) -> list[list[Any]]:
        return table_rows(value, self.read)


def stored(table: Any) -> list[list[Any]]:
    """The rows that are read back."""
    run = Run()
    return run.rows(run.log(table))


# -- making and adding -------------------------------------------------------------------------------------------------


def test_what_a_table_is_made_of() -> None:
    """Lists, W&B's old `rows` and default columns, numpy, frames; int names; rows are copied."""
    rows = [[1, "a"], [2, "b"]]
    table = sdk.Table(columns=["n", "t"], data=rows)
    rows[0][0] = 9
    assert (table.columns, table.data) == (["n", "t"], [[1, "a"], [2, "b"]])
    assert sdk.Table().columns == ["Input", "Output", "Expected"]
    assert sdk.Table(["n"], rows=[[1]]).data == [[1]]
    assert sdk.Table(["n"], data=[(1,), (2,)]).data == [[1], [2]]
    assert sdk.Table(data=numpy.array([[1, 2.5]]), columns=[0, 1]).data == [[1.0, 2.5]]
    assert sdk.Table(columns=[], data=[]).data == []
    assert len(sdk.Table(["n"], [[1]])) == 1
    assert (Table.MAX_ROWS, Table.MAX_ARTIFACT_ROWS) == (10_000, 200_000)


def test_frames() -> None:
    """By name, as data, and raw in `log`; missing texts and times are None; odd names become text."""
    frame = pandas.DataFrame(
        {"n": [1, 2], "t": ["a", math.nan], "w": [pandas.Timestamp(NEW_YEAR), pandas.NaT], ("x", 1): [True, False]}
    )
    for table in (sdk.Table(dataframe=frame), sdk.Table(data=frame)):
        assert table.columns == ["n", "t", "w", "('x', 1)"]
        assert table.data[0] == [1, "a", NEW_YEAR, True]
        assert table.data[1][2] is None
    expected = [[1, "a", NEW_YEAR.isoformat(), True], [2, None, None, False]]
    found = stored(frame)
    assert math.isnan(found[1].pop(1))
    assert found == [expected[0], [2, None, False]]
    assert sdk.Table(dataframe=pandas.DataFrame({"a": []})).columns == ["a"]
    with pytest.raises(TypeError, match="DataFrame"):
        plain({"config": frame})


def test_adding_rows() -> None:
    """`add_data` and its older name; a row of another width or that does not fit leaves the table as it was."""
    table = sdk.Table(["n", "t"])
    table.add_data(1, "a")
    table.add_row(2.5, None)
    for bad, error in (
        ((1,), ValueError),
        ((1, 2, 3), ValueError),
        (("x", "y"), TypeError),
        ((1, object()), TypeError),
    ):
        with pytest.raises(error):
            table.add_data(*bad)
    assert table.data == [[1, "a"], [2.5, None]]
    with pytest.raises(ValueError, match=r"expects 2 columns.*row 1 has 3"):
        sdk.Table(["n", "t"], [[1, 2], [1, 2, 3]])


def test_adding_columns() -> None:
    """A list or an array, a value for each row; computed ones; errors undo."""
    table = sdk.Table(["n"], [[1], [2]])
    table.add_column("m", numpy.array([10, 20]))
    table.add_computed_columns(lambda index, row: {"sum": row["n"] + row["m"] + index})
    assert table.columns == ["n", "m", "sum"]
    assert table.data == [[1, 10, 11], [2, 20, 23]]
    for name, values, error in (
        ("n", [1, 2], AssertionError), (5, [1, 2], AssertionError), ("x", [1], AssertionError), ("x", 7, AssertionError),
        ("x", [1, "a"], TypeError), ("x", [1, None], TypeError), ("x", [1, object()], TypeError),
    ):  # fmt: skip
        with pytest.raises(error):
            table.add_column(name, values)
    with pytest.raises(AssertionError, match="fn returned"):
        table.add_computed_columns(lambda index, row: 3)  # type: ignore[arg-type, return-value]
    assert table.data == [[1, 10, 11], [2, 20, 23]]
    table.add_column("maybe", [1, None], optional=True)
    empty = sdk.Table(columns=[], data=[])
    empty.add_column("first", [1, 2])
    assert empty.data == [[1], [2]]


def test_looking_at_a_table() -> None:
    """Columns, rows, indexes, frames."""
    table = sdk.Table(["n", "t"], [[1, "a"], [2, "b"]])
    assert table.get_column("n") == [1, 2]
    assert table.get_column("n", convert_to="numpy").dtype.kind == "i"
    assert list(table.iterrows()) == [(0, [1, "a"]), (1, [2, "b"])]
    assert table.get_index() == [0, 1]
    assert table.index_ref(1) == 1
    assert table.get_dataframe().to_dict("list") == {"n": [1, 2], "t": ["a", "b"]}
    for call, error in (
        (lambda: table.get_column("x"), ValueError), (lambda: table.get_column("n", "list"), AssertionError),
        (lambda: table.index_ref(2), AssertionError), (lambda: table.cast("x", int), AssertionError),
    ):  # fmt: skip
        with pytest.raises(error):
            call()


def test_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the package."""
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(sdk.Error, match="pandas"):
        sdk.Table().get_dataframe()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"columns": "ab"}, AssertionError), ({"columns": [1.5]}, AssertionError), ({"log_mode": "OFTEN"}, AssertionError),
        ({"columns": ["a"], "data": 5}, AssertionError), ({"columns": ["a"], "data": {"a": 1}}, AssertionError),
        ({"columns": ["a"], "data": [5]}, TypeError), ({"data": numpy.zeros(3)}, AssertionError),
        ({"dataframe": [[1]]}, AssertionError), ({"columns": ["a"], "dtype": [int, int]}, None),
        ({"columns": ["a"], "dtype": "nonsense"}, TypeError), ({"columns": ["a", "b"], "dtype": [int]}, AssertionError),
        ({"columns": ["a"], "data": [[2**64]]}, None),
    ],
)  # fmt: skip
def test_errors(arguments: dict[str, Any], error: type[Exception] | None) -> None:
    """The type of error is W&B's."""
    if error is None:
        sdk.Table(**arguments)
        return
    with pytest.raises(error):
        sdk.Table(**arguments)


# -- kinds -------------------------------------------------------------------------------------------------------------


class Color(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([1, 2.5, numpy.float32(1), numpy.int64(2), decimal.Decimal(1), math.nan], "number"), (["a", None, math.nan], "string"),
        ([math.nan, None, "a"], "string"), ([True, numpy.bool_(False), None], "boolean"), ([None, math.nan], "none"),
        ([b"x", b"y"], "bytes"), ([[1], (2, "x"), []], "list"), ([{"a": 1}, {}], "map"),
        ([NEW_YEAR, datetime.date(2024, 1, 2), numpy.datetime64("2024-01-02")], "timestamp"),
        ([numpy.zeros(3), numpy.zeros((2, 2), "u1")], "array"), ([Color.RED, "x", pathlib.Path("p")], "string"),
        ([sdk.Image(PIXELS), None], "image-file"), ([sdk.Histogram([1]), None], "histogram"),
    ],
)  # fmt: skip
def test_the_first_cell_decides_what_fits(cells: list[Any], kind: str) -> None:
    """All at once or one by one; what is of another kind raises TypeError and names the column."""
    table = sdk.Table(["c"], [[one] for one in cells])
    grown = sdk.Table(["c"], log_mode="MUTABLE")
    for one in cells:
        grown.add_data(one)
    assert table.describe()["types"] == grown.describe()["types"] == [kind]
    other: Any = 5 if kind != "number" else "text"
    if kind != "none":
        with pytest.raises(TypeError, match=r"incompatible types: column 'c'.*expected"):
            grown.add_data(other)
    free = sdk.Table(["c"], [[one] for one in cells], allow_mixed_types=True)
    free.add_data(other)
    assert free.describe()["types"] == ["any"]


def test_mixed_rows_raise_at_once() -> None:
    """Numbers are no booleans, and texts are no numbers."""
    for rows in ([[1], ["a"]], [[True], [1]], [[1.5], [sdk.Image(PIXELS)]]):
        with pytest.raises(TypeError, match="allow_mixed_types"):
            sdk.Table(["c"], rows)


def test_a_column_that_is_not_optional() -> None:
    """None does not fit, NaN among numbers does."""
    table = sdk.Table(["c"], optional=False)
    with pytest.raises(TypeError, match="none, expected"):
        table.add_data(None)
    table.add_data(math.nan)
    table.add_data(1)
    with pytest.raises(TypeError, match="none, expected number"):
        table.add_data(None)
    each = sdk.Table(["a", "b"], [[None, 1]], optional=[True, False])
    with pytest.raises(TypeError):
        each.add_data(1, None)


@pytest.mark.parametrize(
    ("dtype", "good", "bad"),
    [
        (int, 1.5, "a"), (float, 1, "a"), (str, "a", 1), (bool, True, 1), (datetime.datetime, datetime.date(2024, 1, 1), 1),
        (list, (1,), 1), (dict, {}, []), (numpy.ndarray, numpy.zeros(2), 1), (numpy.float32, 1, "a"), (numpy.bool_, True, 1),
        (sdk.Image, sdk.Image(PIXELS), 1), ({int, str}, "a", True), ("string", "a", 1), (bytes, b"", ""),
    ],
)  # fmt: skip
def test_types_that_are_said(dtype: Any, good: Any, bad: Any) -> None:
    """For the table, or by `cast`, which looks at what is there."""
    table = sdk.Table(["c"], dtype=dtype)
    table.add_data(good)
    with pytest.raises(TypeError):
        table.add_data(bad)
    mixed = sdk.Table(["c"], [[bad]], allow_mixed_types=True)
    with pytest.raises(TypeError):
        mixed.cast("c", dtype)
    mixed.add_data(good)  # as before
    fine = sdk.Table(["c"], [[good]], allow_mixed_types=True)
    fine.cast("c", dtype)
    with pytest.raises(TypeError):
        fine.add_data(bad)
    with pytest.raises(TypeError):
        fine.add_data(None)


def test_any_type_and_none() -> None:
    """`Any` takes all, None is what the first cell says."""
    assert kinds_of_dtype(Any) is None
    assert kinds_of_dtype(object) is None
    assert kinds_of_dtype({int, Any}) is None
    assert kinds_of_dtype(None) == frozenset()
    sdk.Table(["c"], [[1], ["a"], [None]], dtype=Any)


# -- cells -------------------------------------------------------------------------------------------------------------


def test_what_cells_are_read_back_as() -> None:
    """As `log` stores such values: times as text, numpy's scalars as Python's, arrays as arrays, odd keys as text."""
    cells: list[tuple[Any, Any]] = [
        (None, None), (1, 1), (2.5, 2.5), ("é\ud800", "é\ud800"), (True, True), (b"x", b"x"), ((1, [2]), [1, [2]]),
        ({1: {"a": None}}, {"1": {"a": None}}), (NEW_YEAR, NEW_YEAR.isoformat()), (numpy.float32(0.5), 0.5),
        (numpy.int8(3), 3), (numpy.bool_(True), True), (numpy.datetime64("2024-01-02"), "2024-01-02"), (Color.RED, "red"),
        (decimal.Decimal("0.5"), 0.5), (numpy.array(7), 7), (numpy.array(["a", "b"]), ["a", "b"]), (2**64 - 1, 2**64 - 1),
        (numpy.array(1.5, ml_dtypes.bfloat16), 1.5), (pandas.NA, None), (pandas.NaT, None),
    ]  # fmt: skip
    table = sdk.Table(["c"], [[given] for given, _ in cells], allow_mixed_types=True)
    assert [row[0] for row in stored(table)] == [expected for _, expected in cells]


def test_arrays_in_cells() -> None:
    """Copied when they are added; small ones stand in the row, others are tensors of their own."""
    small, large = numpy.arange(6.0).reshape(2, 3), numpy.arange(INLINE_TENSOR_BYTES_MAX, dtype="<i2")
    halves = numpy.array([0.5, 2], ml_dtypes.bfloat16)
    table = sdk.Table(["s", "l", "h"], [[small, large, halves]])
    expected = small.tolist()
    small[:] = large[:] = 0
    run = Run()
    value = run.log(table)
    row = run.rows(value)[0]
    assert row[0].tolist() == expected
    assert row[1]["_type"] == row[2]["_type"] == "tensor"
    assert numpy.frombuffer(run.read(row[1]["data"]), "<i2")[5] == 5
    assert row[2]["dtype"] == "bfloat16"
    assert table.describe()["types"] == ["array", "tensor", "tensor"]


def test_lists_and_maps_in_cells_are_copied() -> None:
    """What the caller does with them afterwards does not matter."""
    inner: dict[str, Any] = {"a": [1]}
    table = sdk.Table(["c"], [[inner]])
    inner["a"].append(2)
    assert stored(table) == [[{"a": [1]}]]


def test_media_cells() -> None:
    """Each is described once, in the record's map, however many rows show it; also inside lists; raw figures become images."""
    import matplotlib.pyplot as plt
    import PIL.Image

    image = sdk.Image(PIXELS, caption="one")
    figure = plt.figure(figsize=(1, 1), dpi=20)
    table = sdk.Table(["c"], [[image], [None], [image], [PIL.Image.fromarray(PIXELS)], [figure]])
    plt.close(figure)
    table.add_column("l", [[image], [], [image, image], [], []])
    run = Run()
    value = run.log(table)
    assert [type(one) for one in value["media"]] == [MediaValue] * 3
    rows = run.rows(value)
    assert rows[0][0] is rows[2][0] is rows[2][1][1] is value["media"][0]
    assert rows[0][0]["caption"] == "one"
    assert [row[0]["_type"] for row in rows if row[0]] == ["image-file"] * 4
    assert value["types"] == ["image-file", "list"]


def test_bad_cells() -> None:
    """They raise when they are added, naming the column; integers beyond 64 bits when they are logged."""
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    for bad, error in (
        (object(), TypeError), (numpy.array([object()]), TypeError), (numpy.zeros(2, "f8,f8"), TypeError), (deep, ValueError),
        ([object()], TypeError), ({"a": object()}, TypeError),
    ):  # fmt: skip
        with pytest.raises(error, match="'c'"):
            sdk.Table(["c"], [[bad]])
    with pytest.raises(ValueError, match="65 bits"):
        Run().log(sdk.Table(["c"], [[1], [2**64]]))


def test_registered_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `register_value` says of a type holds in cells too."""

    class Own:
        pass

    sdk.register_value(Own, lambda value: "own")
    try:
        assert sdk.Table(["c"], [[Own()]]).data == [["own"]]
    finally:
        sdk.register_value(Own, None)


# -- logging again -----------------------------------------------------------------------------------------------------


def test_what_is_stored_of_a_table() -> None:
    """The map says all but the cells."""
    table = sdk.Table(["n", 7], [[1, "a"], [2, None]])
    table.set_pk("n")
    table.set_fk(7, sdk.Table(["id"]), "id")
    run = Run()
    value = run.log(table)
    part = value.pop("parts")[0]
    assert value == {
        "_type": "table-file", "columns": ["n", 7], "types": ["number", "string"], "nrows": 2, "ncols": 2, "rows": [2],
        "log_mode": "IMMUTABLE", "media": [], "primary_key": "n", "foreign_keys": {"7": "id"},
    }  # fmt: skip
    assert part.meta == {"media": "table-file", "format": "msgpack", "rows": 2}
    assert table_columns({**value, "parts": [part]}, run.read) == {"n": [1, 2], 7: ["a", None]}
    empty = run.log(sdk.Table(["a"]))
    assert (empty["nrows"], run.rows(empty), table_columns(empty, run.read)) == (0, [], {"a": []})


def test_an_immutable_table_is_what_was_logged_first() -> None:
    """Changes warn, stay in the object, and are not stored."""
    table = sdk.Table(["n"], [[1]])
    run = Run()
    first = run.log(table)
    with pytest.warns(UserWarning, match="MUTABLE"):
        table.add_data(2)
    with pytest.warns(UserWarning, match="not stored"):
        table.add_column("m", [1, 2])
    assert table.data == [[1, 1], [2, 2]]
    assert run.log(table) == first


@pytest.mark.parametrize("mode", ["MUTABLE", "INCREMENTAL"])
def test_appended_rows_cost_only_themselves(mode: str) -> None:
    """A large part that was stored is named again, not stored again; every record holds the whole table."""
    table = sdk.Table(["n", "t"], log_mode=mode)
    run = Run()
    text = "x" * 100
    total = 0
    for count in (1000, 1, 1, 700, 500):
        for _ in range(count):
            table.add_data(total, text)
            total += 1
        value = run.log(table)
        assert run.rows(value) == [[number, text] for number in range(total)]
        assert value["nrows"] == total == sum(value["rows"])
    assert [blob.meta["rows"] for blob in run.blobs] == [1000, 702, 500]
    again = run.log(table)
    assert again == value
    assert len(run.blobs) == 3


def test_a_table_that_is_logged_at_every_step() -> None:
    """Few parts, and each row is packed a bounded number of times."""
    table = sdk.Table(["n", "t"], log_mode="INCREMENTAL")
    run = Run()
    text = "x" * 1000
    for step in range(1500):
        table.add_data(step, text)
        value = run.log(table)
    assert run.rows(value) == [[step, text] for step in range(1500)]
    assert len(value["parts"]) < _SMALL_PARTS + 1500 * 1010 / (_SMALL_BYTES - INLINE_TENSOR_BYTES_MAX)
    assert sum(blob.size for blob in run.blobs) < 2.1 * 1500 * 1010


def test_a_mutable_table_that_changes_otherwise_is_stored_anew() -> None:
    """Further columns, rows that were taken away, other rows altogether; media of both rows stay apart."""
    table = sdk.Table(["n"], [[number] for number in range(9000)], log_mode="MUTABLE")
    run = Run()
    run.log(table)
    table.add_column("i", [sdk.Image(PIXELS, caption=str(n)) if n < 2 else None for n in range(9000)], optional=True)
    value = run.log(table)
    assert [row[1]["caption"] for row in run.rows(value)[:2]] == ["0", "1"]
    del table.data[1:]
    value = run.log(table)
    assert [row[1]["caption"] for row in run.rows(value)] == ["0"]
    table.data = [[5, None]]
    assert run.rows(run.log(table)) == [[5, None]]


def test_columns_of_an_incremental_table_are_fixed() -> None:
    """As in W&B."""
    table = sdk.Table(["n"], [[1]], log_mode="INCREMENTAL")
    for call in (lambda: table.add_column("m", [1]), lambda: table.add_computed_columns(lambda index, row: {})):
        with pytest.raises(sdk.Error, match="INCREMENTAL"):
            call()


# -- its relatives -----------------------------------------------------------------------------------------------------


def test_eval_tables() -> None:
    """A table that says what its columns are for."""
    table = sdk.EvalTable(["q", "a"], [["x", "y"]], input_columns=["q"], output_columns=["a"])
    value = Run().log(table)
    assert (value["_type"], value["input_columns"], value["output_columns"]) == ("table-file", ["q"], ["a"])
    with pytest.raises(AssertionError):
        sdk.EvalTable(["q"], score_columns=["x"])


def test_joined_tables() -> None:
    """Both are stored; a bad key is a ValueError."""
    run = Run()
    value = run.log(sdk.JoinedTable(sdk.Table(["k"], [[1]]), sdk.Table(["j"], [[2]]), ["k", "j"]))
    assert (value["_type"], value["join_key"]) == ("joined-table", ["k", "j"])
    assert (run.rows(value["table1"]), run.rows(value["table2"])) == ([[1]], [[2]])
    for tables, key in (((Table(), Table()), 5), ((Table(), Table()), ["a"]), ((Table(), "x"), "a")):
        with pytest.raises(ValueError):
            JoinedTable(*tables, key)  # type: ignore[arg-type]


# -- reading -----------------------------------------------------------------------------------------------------------


def test_made_up_tables() -> None:
    """Maps and parts that do not make sense are damage, whatever is in them."""
    run = Run()
    good = run.log(sdk.Table(["a"], [[1]]))

    def part(data: bytes) -> list[StoredBlob]:
        return [StoredBlob(data, {})]

    cell = msgpack.packb([[msgpack.ExtType(EXT_CELL, msgpack.packb(0))]])
    for change in (
        {"columns": None}, {"parts": 5}, {"rows": []}, {"media": {}}, {"parts": [b"x"]}, {"rows": [2]}, {"rows": ["x"]},
        {"parts": part(b"")}, {"parts": part(b"\xc1")}, {"parts": part(b"\x05")}, {"parts": part(b"\x91\x05")},
        {"parts": part(b"\x91\x92\x05\x05")}, {"parts": part(cell)}, {"columns": ["a", "b"]},
        {"parts": part(msgpack.packb([[msgpack.ExtType(EXT_CELL, b"\xa1x")]]))},
    ):  # fmt: skip
        with pytest.raises(DamageError):
            run.rows({**good, **change})


def test_rows_for_which_there_was_no_room() -> None:
    """The error says which they are."""
    value = Run().log(sdk.Table(["a"], [[1], [2]]))
    with pytest.raises(NotFoundError, match="rows 0 to 1 "):
        table_rows({**value, "parts": [None]}, lambda part: b"")
