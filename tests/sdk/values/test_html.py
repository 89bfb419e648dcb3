"""sdk.Html: what a page is given as, the style that is added, and that nothing of it is fetched from anywhere."""

from __future__ import annotations

import io
import pathlib
from typing import Any

import pytest

import sdk


def page_of(html: sdk.Html) -> bytes:
    described = html.describe()
    assert described["format"] == "html"
    assert described["data"].meta == {"media": "html-file", "format": "html"}
    return bytes(described["data"].view())


def test_a_text_is_the_page(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without inject not a byte is changed, also where there is a file of that name, if so said."""
    monkeypatch.chdir(tmp_path)
    pathlib.Path("a.html").write_text("<p>file")
    assert page_of(sdk.Html("<p>ä", inject=False)) == "<p>ä".encode()
    assert page_of(sdk.Html("a.html", inject=False, data_is_not_path=True)) == b"a.html"
    assert page_of(sdk.Html("no.html", inject=False, data_is_not_path=True)) == b"no.html"
    assert page_of(sdk.Html("see a.html", inject=False)) == b"see a.html"
    assert page_of(sdk.Html("", inject=False)) == b""


def test_files(tmp_path: pathlib.Path) -> None:
    """By path as str and pathlib, open as text and as bytes, StringIO from its beginning."""
    path = tmp_path / "a b.html"
    path.write_bytes(b"<p>\xe4")
    memory = io.StringIO("<p>ä")
    memory.read()
    with open(path, encoding="latin-1") as text, open(path, "rb") as binary:
        pages = [sdk.Html(one, inject=False) for one in (str(path), path, text, binary)]
    assert {page_of(page) for page in pages} == {b"<p>\xe4"}
    assert page_of(sdk.Html(memory, inject=False)) == "<p>ä".encode()


@pytest.mark.parametrize(
    ("page", "before", "after"),
    [
        ("<p>hi", b"", b"<p>hi"),
        ("<html><head><title>t", b"<html><head>", b"<title>t"),
        ('<!DOCTYPE html><HTML lang="en"><HEAD\nid="h">x', b'<!DOCTYPE html><HTML lang="en"><HEAD\nid="h">', b"x"),
        ("<html lang=x><body>", b"<html lang=x><head>", b"</head><body>"),
        ("\n<!doctype html><p>", b"\n<!doctype html>", b"<p>"),
        ("<header>h</header>", b"", b"<header>h</header>"),
    ],
)
def test_a_style_is_added_where_the_head_begins(page: str, before: bytes, after: bytes) -> None:
    """In any spelling, and where there is no head, in a place where a browser takes it for one."""
    found = page_of(sdk.Html(page))
    added = found[len(before) : len(found) - len(after)]
    assert found == before + added + after
    assert added.startswith(b'<meta charset="utf-8"><base target="_blank"><style>')


def test_nothing_is_fetched(tmp_path: pathlib.Path) -> None:
    """The style is no link; and the bytes of a file keep the encoding that they declare."""
    path = tmp_path / "a.html"
    path.write_bytes(b"<p>\xe4")
    for found in (page_of(sdk.Html("<p>")), page_of(sdk.Html(path))):
        assert not any(word in found.lower() for word in (b"http", b"//", b"<link", b"<script", b"@import", b"url("))
    assert page_of(sdk.Html(path)).endswith(b"<p>\xe4")
    assert b"charset" not in page_of(sdk.Html(path))


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (5, ValueError, "int"),
        (None, ValueError, "NoneType"),
        (pathlib.Path("a.txt"), ValueError, "a.txt"),
        (pathlib.Path("/nowhere/a.html"), FileNotFoundError, "a.html"),
        ("/nowhere/a.html", FileNotFoundError, "a.html"),
    ],
)
def test_bad_pages(data: Any, error: type[Exception], text: str) -> None:
    """A text that can only be meant as a file's name is not stored in the file's place."""
    with pytest.raises(error, match=text):
        sdk.Html(data)


def test_a_long_page_is_looked_through_once() -> None:
    """What looks like a tag again and again and never ends costs no more than its length."""
    page = "<head " * 200_000
    assert len(page_of(sdk.Html(page))) > len(page)


def test_logged(world: Any) -> None:
    """In the row, and alone."""
    sdk.init()
    sdk.log({"page": sdk.Html("<script>x", inject=False)})
    assert world.rows[0]["page"]["data"].data == b"<script>x"
