"""sdk.artifacts.format and shelf: what is read from a store is believed only as far as it can be; the page says what the code does."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from sdk import _keeping
from sdk.artifacts import format as artifact_format
from sdk.artifacts import staging
from sdk.artifacts.format import (
    HEAD_BYTES_MAX,
    Entry,
    Head,
    check_path,
    content_digest,
    decode_entry,
    decode_head,
    encode_manifest,
    manifest_path,
    marks_path,
    names_path,
)
from sdk.artifacts.shelf import Shelf, mark_name
from sdk.errors import DamageError, NotFoundError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "artifacts.md"
ENTRIES = [Entry("a/b", "0" * 64, 3), Entry("c", "", None, "s3://x", "gone"), Entry("\udcff", "1" * 64, 0)]


def head(number: int = 0, **changes: Any) -> Head:
    made = Head(
        "data", number, "t", content_digest(ENTRIES), 3, len(ENTRIES), 5 + number, "j", "r", "n", "p", None, {}, (), (), None, 0
    )  # fmt: skip
    return made._replace(**changes)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """A store with data:v0."""
    write(tmp_path, 0, encode_manifest(head(), ENTRIES))
    return Shelf(str(tmp_path))


def write(store: Path, number: int, data: bytes) -> None:
    path = Path(manifest_path(str(store), "data", number))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_a_manifest_comes_back(shelf: Shelf) -> None:
    """Every field of the version and of its files."""
    found = shelf.head("data", 0)
    assert found == head()
    assert shelf.entries(found) == ENTRIES
    assert shelf.find("data").aliases == ("latest",)


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../../b", "..", ".", "", "a\0b", "a//b", "a/./b", "x" * 300]
)
def test_a_path_that_leads_out_is_damage(path: str) -> None:
    """Whatever a manifest lists is put below the user's directory or not at all."""
    with pytest.raises(DamageError, match="cannot be"):
        decode_entry(json.dumps({"path": path, "digest": "0" * 64, "size": 1}).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "../../x"},
        {"digest": "0" * 63},
        {"digest": 5},
        {"size": -1},
        {"size": True},
        {"size": "1"},
        {"path": None},
    ],
)
def test_an_entry_that_cannot_be_is_damage(change: dict[str, Any]) -> None:
    """A digest is a file's name in the store, so it is one of 64 hex digits."""
    with pytest.raises(DamageError):
        decode_entry(json.dumps({"path": "a", "digest": "0" * 64, "size": 1, **change}).encode())


@pytest.mark.parametrize(
    "line",
    [
        b"", b"[]", b"{", b"[" * 100_000, b'{"format":2}', b'{"format":1,"name":"other","number":0}',
        b'{"format":1,"name":"data","number":0}',
    ],
)  # fmt: skip
def test_a_head_that_cannot_be_is_damage(line: bytes) -> None:
    """Also one that says of itself that it is another version."""
    with pytest.raises(DamageError):
        decode_head(line, "data", 0)


def test_whole_manifests_only(shelf: Shelf, tmp_path: Path) -> None:
    """One that is cut, has a file more, or no end of its first line: said, and the others are read."""
    whole = encode_manifest(head(1), ENTRIES)
    for data in (whole[:-40], whole + whole.splitlines(keepends=True)[-1]):
        write(tmp_path, 1, data)
        with pytest.raises(DamageError, match="files"):
            shelf.entries(shelf.head("data", 1))
    for data in (b"", whole[:50], b"x" * (HEAD_BYTES_MAX + 10)):
        write(tmp_path, 1, data)
        with pytest.raises(DamageError):
            shelf.head("data", 1)
        assert [found.number for found in shelf.versions("data")] == [0]
    assert shelf.names() == ["data"]


def test_marks_that_make_no_sense_are_left_out(shelf: Shelf) -> None:
    """Of any name, shape or size; those of versions that are not there say nothing."""
    directory = Path(marks_path(shelf.store, "data"))
    directory.mkdir()
    for index, text in enumerate(
        ["", "[]", "{}", '{"number":"0"}', '{"number":0,"add":7,"metadata":3}', '{"number":9,"add":["x"]}']
    ):
        (directory / mark_name(index)).write_text(text)
    (directory / "other.json").write_text('{"number":0,"add":["x"]}')
    (directory / mark_name(8)).mkdir()
    (directory / mark_name(9)).write_text('{"number":0,"add":["y",5],"description":"d"}')
    (found,) = shelf.versions("data")
    assert (found.aliases, found.description) == (("latest", "y"), "d")


def test_what_else_lies_there_is_no_name(shelf: Shelf, tmp_path: Path) -> None:
    """A directory whose manifest says another name, a file, a link out."""
    root = Path(names_path(shelf.store))
    (root / "file").write_text("x")
    (root / "liar").mkdir()
    (root / "liar" / "v0.jsonl").write_bytes(encode_manifest(head(), ENTRIES))
    os.symlink("/", root / "link")
    assert shelf.names() == ["data"]
    with pytest.raises(NotFoundError, match="nearest: data"):
        shelf.find("dat")
    with pytest.raises(NotFoundError, match="1 versions: latest, v0"):
        shelf.find("data:v1")


def test_paths_of_users() -> None:
    """A leading slash goes, as with W&B; what is inside is made plain."""
    assert [check_path(path) for path in ("/a/b", "a//b/", "./a/b", "a/../a/b")] == ["a/b"] * 4


def test_the_page_quotes_the_constants() -> None:
    """Each limit in docs/artifacts.md is the one in the code, and each field of a head is named there."""
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Z_]+)` \| ([0-9]+) \|", text, re.MULTILINE)
    assert len(rows) == 5
    for name, value in rows:
        (module,) = (one for one in (artifact_format, staging, _keeping) if hasattr(one, name) and name in vars(one))
        assert getattr(module, name) == int(value), name
    assert all(f"`{field}`" in text for field in (*Head._fields, *Entry._fields))
