"""HTML that cannot be made wrong: a text is escaped unless it is `Markup`, and only this module makes that.

Everything in a report comes from a store that somebody else may have written. Whoever forgets to escape gets an escaped text, not a
tag. Attributes that load or lead somewhere take only what this module made (`data_url`), and there is no way to write an event handler.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable
from typing import Any

# Elements without an end.
_VOID = frozenset({"br", "hr", "img", "input", "meta", "polyline", "polygon", "path", "line", "rect", "circle"})
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")
_LINKS = frozenset({"src", "href", "srcdoc", "action", "data", "poster", "srcset"})
# What a browser may load inline: nothing that it would run. No SVG: it is a page, not a picture.
_MEDIA_TYPES = frozenset({
    "image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "video/mp4", "video/webm", "audio/wav", "audio/flac", "audio/ogg",
    "audio/mpeg", "audio/mp4",
})  # fmt: skip


class Markup(str):
    """Text that is HTML. Only the functions of this module make it."""

    __slots__ = ()


def plain(value: object) -> str:
    """Any value as text that no browser and no reader is misled by: without control characters, marks of direction and halves of
    characters; lines and tabs stay.
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def short(text: str, characters: int) -> str:
    """A text that is cut where it is longer."""
    return text if len(text) <= characters else f"{text[:characters]}… ({len(text):,} characters)"


def text(value: object) -> Markup:
    """A value as text of a page."""
    return value if isinstance(value, Markup) else Markup(html.escape(plain(value)))


def join(parts: Iterable[Any]) -> Markup:
    """Children one after the other; None is left out, an iterable flattened, anything else escaped."""
    return Markup("".join(_flat(parts)))


def _flat(parts: Iterable[Any]) -> Iterable[str]:
    for part in parts:
        if part is None:
            continue
        if isinstance(part, (list, tuple)) or hasattr(part, "__next__"):
            yield from _flat(part)
        else:
            yield text(part)


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element. Of attributes `class_` is class, `data_x` data-x; None and False leave one out, True writes its name alone."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"no name of an element: {name!r}")
    head = "".join(_attribute(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{head}>") if name in ("br", "hr", "img", "input", "meta") else Markup(f"<{name}{head}/>")
    return Markup(f"<{name}{head}>{join(children)}</{name}>")


def _attribute(name: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    if name.lower().startswith("on") or not _NAME.fullmatch(name):
        raise ValueError(f"no attribute that may be written: {name!r}")
    if name in _LINKS and not isinstance(value, Markup):
        raise ValueError(f"the attribute {name!r} leads somewhere, and takes only what `markup` made: {value!r}")
    return f' {name}="{text(value)}"'


def data_url(media_type: str, data: bytes) -> Markup:
    """A file as an address of its own.

    Raises:
        ValueError: Not a kind of file that may be shown.
    """
    if media_type not in _MEDIA_TYPES:
        raise ValueError(f"{media_type!r} is not shown in a report")
    return Markup(f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}")


def place(identity: str) -> Markup:
    """A link to a place of the same page, whose id is one of ours."""
    if not _NAME.fullmatch(identity):
        raise ValueError(f"no id of a place: {identity!r}")
    return Markup(f"#{identity}")


def frame_source(page: str) -> Markup:
    """A page of somebody else as the `srcdoc` of a sandboxed frame; a policy before it forbids it everything once more."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
    return Markup(html.escape(f'<meta http-equiv="Content-Security-Policy" content="{policy}">{page}'))


def script_data(value: Any) -> Markup:
    """Plain values as JSON for the page's own script; nothing in it can end the element or be taken for a tag."""
    written = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        written = written.replace(character, f"\\u{ord(character):04x}")
    return Markup(f'<script type="application/json" id="data">{written}</script>')


def asset(name: str) -> Markup:
    """A file of the package as it is: its styles and scripts."""
    import importlib.resources

    return Markup(
        importlib.resources.files("daemon.report").joinpath("assets").joinpath(name).read_text(encoding="utf-8")
    )
