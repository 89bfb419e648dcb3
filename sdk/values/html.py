"""Pages: `sdk.Html`.

What is stored is hostile to whoever reads it: it may come from a model or a data set, and holds scripts. Nothing here or
in the reader looks into it or opens it, and nothing that is added to it fetches anything.
"""

from __future__ import annotations

import os
import re
from typing import Any, ClassVar

from . import sources
from .blobs import snapshot
from .media import Media

_WHAT = "Html()"
_STYLE = (
    b'<base target="_blank"><style>body{margin:8px;font-family:sans-serif;line-height:1.15}'
    b"code,pre{font-family:monospace;font-size:1em}table{border-collapse:collapse}td,th{padding:2px 6px}</style>"
)
# A text that was given as str is stored as UTF-8, whatever the page believes.
_CHARSET = b'<meta charset="utf-8">'
_HEAD = re.compile(rb"<head(\s[^<>]*)?>", re.IGNORECASE)
_HTML = re.compile(rb"<html(\s[^<>]*)?>", re.IGNORECASE)
_DOCTYPE = re.compile(rb"\s*<!doctype[^<>]*>", re.IGNORECASE)
# A text that can only be meant as a file's name.
_NAME = re.compile(r"[^\s<>]+\.html")


class Html(Media):
    """A page, stored as it is but for a style. Nobody should open it from a source that is not trusted: it may hold scripts.

    Args:
        data: The page as text; the path of a file whose name ends with .html; or a file open for reading.
        inject: Add a small style to it (nothing that is fetched from anywhere), and let its links open in a new window.
        data_is_not_path: A text is the page, even if there is a file of that name.

    Raises:
        ValueError: Data of another type, or a path that does not end with .html.
        OSError: The file cannot be read; also for a text without blanks and tags that ends with .html, if there is none.
    """

    _type: ClassVar[str] = "html-file"

    def __init__(self, data: Any, inject: bool = True, data_is_not_path: bool = False) -> None:
        page, is_utf8 = _page_of(data, data_is_not_path)
        self._blob = snapshot(_injected(page, is_utf8) if inject else page, {"media": self._type, "format": "html"})

    def describe(self) -> dict[str, Any]:
        return {"format": "html", "data": self._blob}


def _page_of(data: Any, is_not_path: bool) -> tuple[bytes, bool]:
    """The page, and whether it is known to be UTF-8."""
    if isinstance(data, str):
        if not is_not_path and data.endswith(".html") and "<" not in data and "\n" not in data:
            try:
                return sources.read_path(data, _WHAT), False
            except OSError:
                if _NAME.fullmatch(data):
                    raise
        return data.encode(), True
    if isinstance(data, os.PathLike):
        name = sources.name_of(data) or ""
        if not name.endswith(".html"):
            raise ValueError(f"{_WHAT} is given the path {name!r}, expected one that ends with .html")
        return sources.read_path(data, _WHAT), False
    page = sources.read_given(data, is_text=True)
    if page is None:
        raise ValueError(
            f"{_WHAT} is given {type(data).__module__}.{type(data).__qualname__}, expected the page as text, a path, or an "
            "open file"
        )
    return page, False


def _injected(page: bytes, is_utf8: bool) -> bytes:
    """The page with the style where its head begins, or would."""
    added = _CHARSET + _STYLE if is_utf8 else _STYLE
    head = _HEAD.search(page)
    if head is None:
        head = _HTML.search(page)
        if head is not None:
            added = b"<head>" + added + b"</head>"
        else:
            head = _DOCTYPE.match(page)
    place = head.end() if head is not None else 0
    return page[:place] + added + page[place:]
