"""Values as columns, names of columns and of files."""

from __future__ import annotations

import json
import math
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.sync.targets.parquet.cells import NAMELESS, column_name, strict_json
from daemon.sync.targets.parquet.names import NO_VALUE, PartName, parse_part, partition
from sdk.record import EXT_BIG_INT
from tests.builders import START_NS
from tests.sync.parquet_rig import Rig

HUGE = msgpack.ExtType(EXT_BIG_INT, str(2**70).encode())  # as `log` packs an integer beyond 64 bits
OURS = ["_step", "_time", "_sequence", "_stream", "_attempt", "_rank", "_null", "project", "run"]


class TestWide:
    """A column for each key."""

    def test_types_are_those_of_the_values(self, tmp_path: Path) -> None:
        """A column is of the type that `Run.to_arrow` gives; what has none is JSON."""
        rig = Rig(tmp_path)
        run, main = rig.run()
        for index in range(3):
            main.log(
                {
                    "float": index / 3, "int": 2**53 + index, "large": 2**64 - 1 - index, "bool": index == 1, "text": f"ü{index}",
                    "bytes": bytes([index]), "list": [index, {"a": None}], "mixed": [1.5, "x", True][index], "huge": HUGE,
                }
            )  # fmt: skip
        main.finish()
        run.seal()
        found = rig.carry()
        assert found.is_exact
        types = rig.types()
        assert {key: types[key] for key in types if key[0] != "_"} == {
            "float": "double", "int": "int64", "large": "uint64", "bool": "bool", "text": "string", "bytes": "binary",
            "list": "string", "mixed": "string", "huge": "string",
        }  # fmt: skip
        second = rig.rows()[1]
        assert (second["float"], second["int"], second["large"]) == (1 / 3, 2**53 + 1, 2**64 - 2)
        assert (second["bool"], second["text"], second["bytes"]) == (True, "ü1", b"\1")
        assert json.loads(second["list"]) == [1, {"a": None}]
        assert (second["mixed"], second["huge"]) == ('"x"', str(2**70))
        assert "'mixed' holds texts and other values" in found.told[0]

    def test_our_columns_say_whose_row_it_is(self, tmp_path: Path) -> None:
        """Step, time in microseconds UTC, sequence, stream, attempt and rank stand beside the values."""
        rig = Rig(tmp_path)
        run = rig.run()[0]
        other = run.stream(rank=3, attempt=2, first_step=7)
        record = other.log({"loss": 0.5})
        run.seal()
        rig.carry()
        (row,) = rig.rows()
        moment = datetime.fromtimestamp(record.time_ns / 1e9, timezone.utc)
        assert row == {
            "_step": 7, "_time": moment, "_sequence": record.sequence, "_stream": other.hex, "_attempt": 2, "_rank": 3,
            "loss": 0.5,
        }  # fmt: skip
        assert rig.types()["_time"] == "timestamp[us, tz=UTC]"
        assert record.time_ns > START_NS

    def test_keys_come_and_go(self, tmp_path: Path) -> None:
        """A row that is short of a key has a hole there, and is one row."""
        rig = Rig(tmp_path)
        run, main = rig.run()
        for step in range(40):
            main.log(
                {"loss": float(step), **({"acc": step} if step % 4 == 0 else {}), **({"t": "x"} if step > 30 else {})}
            )
        run.seal()
        rig.carry()
        rows = rig.rows()
        assert [row["loss"] for row in rows] == [float(step) for step in range(40)]
        assert {row["_step"]: row["acc"] for row in rows if "acc" in row} == {step: step for step in range(0, 40, 4)}
        assert [row["_step"] for row in rows if "t" in row] == list(range(31, 40))

    def test_nan_is_a_value_and_a_hole_is_none(self, tmp_path: Path) -> None:
        """NaN and infinities are doubles; what was not logged is null."""
        rig = Rig(tmp_path)
        run, main = rig.run()
        main.log({"a": math.nan, "b": math.inf})
        main.log({"a": 1.0})
        run.seal()
        rig.carry()
        first, second = rig.rows()
        assert math.isnan(first["a"])
        assert first["b"] == math.inf
        assert "b" not in second

    def test_nulls_are_named(self, tmp_path: Path) -> None:
        """A null is a hole whose key stands in `_null`; a dataset without any has no such column."""
        rig = Rig(tmp_path)
        run, main = rig.run()
        main.log({"a": 1.0, "only": None})
        main.log({"a": None, "b": 2.0})
        main.log({"b": 3.0})
        run.seal()
        rig.carry()
        rows = rig.rows()
        assert [row.get("_null") for row in rows] == [["only"], ["a"], None]
        assert [row.get("a") for row in rows] == [1.0, None, None]

    @pytest.mark.parametrize(
        "key", ["", *OURS, "_logged_step", "_logged_run", "a\ud800b", "nul\0l", "../../x", "ü😀" * 200]
    )
    def test_any_key_has_its_column(self, tmp_path: Path, key: str) -> None:
        """Keys that are named like columns of ours, are empty or no Unicode get a name beside those."""
        rig = Rig(tmp_path)
        run, main = rig.run()
        main.log({key: 0.25, "loss": 0.5})
        run.seal()
        assert rig.carry().state == "live"
        (row,) = rig.rows()
        assert row[column_name(key)] == 0.25
        assert row["loss"] == 0.5
        assert row["_step"] == 0

    def test_keys_that_would_share_a_column_do_not(self, tmp_path: Path) -> None:
        """A key that looks like another one's escaped name gets a column of its own."""
        rig = Rig(tmp_path)
        run, main = rig.run()
        main.log({"a\ud800": 1.0, "a\\ud800": 2.0, "": 3.0, NAMELESS: 4.0})
        run.seal()
        rig.carry()
        (row,) = rig.rows()
        assert sorted(value for key, value in row.items() if isinstance(value, float)) == [1.0, 2.0, 3.0, 4.0]

    @given(
        st.text(st.sampled_from("_logedrunstpj "), max_size=30), st.text(st.sampled_from("_logedrunstpj "), max_size=30)
    )
    def test_no_two_keys_have_one_name(self, first: str, second: str) -> None:
        """The name of a column tells the key."""
        if first != second and first and second:
            assert column_name(first) != column_name(second)
        assert column_name(first) not in OURS

    def test_texts_that_are_no_unicode_are_counted(self, tmp_path: Path) -> None:
        """A lone surrogate becomes "?", and is a loss that the outcome names."""
        rig = Rig(tmp_path)
        run, main = rig.run()
        main.log({"text": "a\udc80b", "list": ["ok"]})
        run.seal()
        found = rig.carry()
        assert rig.rows()[0]["text"] == "a?b"
        assert found.lost == {"texts that are no Unicode": 1}


class TestLong:
    """A row for each value."""

    def test_each_value_is_a_row_and_tells_its_type(self, tmp_path: Path) -> None:
        """`value` holds what a double holds exactly, `text` texts, `json` the rest; `type` says what it was."""
        rig = Rig(tmp_path, "?layout=long")
        run, main = rig.run()
        logged: dict[str, Any] = {
            "float": 0.1, "int": 7, "big": 2**53 + 1, "huge": HUGE, "bool": True, "text": "ü", "list": [1, 2], "null": None,
        }  # fmt: skip
        main.log(logged)
        main.log({"float": 0.2, "run": 1.0})
        run.seal()
        assert rig.carry().is_exact
        found = {(row["key"], row["_step"]): row for row in rig.rows()}
        held = {
            key: (row["type"], row.get("value"), row.get("text"), row.get("json")) for (key, _), row in found.items()
        }
        assert found["float", 0]["value"] == 0.1
        assert held == {
            "float": ("float", 0.2, None, None), "int": ("int", 7.0, None, None), "big": ("int", None, None, str(2**53 + 1)),
            "huge": ("int", None, None, str(2**70)), "bool": ("bool", 1.0, None, None), "text": ("text", None, "ü", None),
            "list": ("json", None, None, "[1, 2]"), "null": ("null", None, None, None), "run": ("float", 1.0, None, None),
        }  # fmt: skip

    def test_columns_are_always_the_same(self, tmp_path: Path) -> None:
        """Whatever was logged, a file has the columns that the page names."""
        rig = Rig(tmp_path, "?layout=long")
        run, main = rig.run()
        main.log({"x": 1.0})
        run.seal()
        rig.carry()
        assert rig.types() == {
            "key": "string", "_step": "int64", "_time": "timestamp[us, tz=UTC]", "_sequence": "int64", "_stream": "string",
            "_attempt": "int64", "_rank": "int64", "type": "string", "value": "double", "text": "string", "json": "string",
        }  # fmt: skip


class TestJson:
    """What stands in a cell that is no plain value."""

    def test_what_json_has_no_number_for_is_text(self) -> None:
        """NaN and infinities inside a list would make a document that no engine reads."""
        found = strict_json({"a": [math.nan, -math.inf, 1.5], "Infinity": "NaN"})
        assert json.loads(found, parse_constant=lambda _: pytest.fail("no JSON")) == {
            "a": ["NaN", "-Infinity", 1.5],
            "Infinity": "NaN",
        }

    def test_too_deep_is_said(self) -> None:
        """What Python's encoder does not descend into stops no run."""
        deep: Any = []
        for _ in range(100_000):
            deep = [deep]
        assert strict_json(deep) == '"nested too deeply"'


class TestNames:
    """Directories and files."""

    def test_readers_get_project_and_run_back(self) -> None:
        """A value is percent-encoded; what is too long or no text ends in a digest instead."""
        assert partition("a b/ü=%", "a41f") == "project=a%20b%2F%C3%BC%3D%25/run=a41f"
        assert partition("", "..") == f"project={NO_VALUE}/run=.."
        assert partition("x" * 1000, "a").split("/")[0].startswith("project=xxxx")

    @given(st.text(max_size=300), st.text(max_size=300))
    def test_any_text_is_one_directory_of_its_own(self, one: str, other: str) -> None:
        """No separator, nothing too long for a disk, and no two projects in one directory."""
        name = partition(one, "r").partition("/run=r")[0]
        assert "/" not in name
        assert len(os.fsencode(name)) <= 255
        assert name.isascii()
        if one != other:
            assert name != partition(other, "r").partition("/run=r")[0]

    @given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
    def test_a_part_is_named_by_stream_and_sequences(self, first: int, last: int) -> None:
        """The name is taken apart again, and nothing else is taken for one."""
        part = PartName("00000000000050ab", first, last)
        assert parse_part(part.text) == part
        for name in ("views.sql", part.text + "x", "x" + part.text, part.text.replace("ab-", "AB-"), ""):
            assert parse_part(name) is None
