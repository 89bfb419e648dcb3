"""Values of the reader as JSON text, for whoever cannot hold them as they are: a terminal, a file, a column of texts."""

from __future__ import annotations

import base64
import json
import sys
from typing import Any

from .media import MediaItem


def as_json(value: Any, indent: int | None = None) -> str:
    """A value of the reader as JSON text: bytes as base64, arrays as lists, media as what they say of themselves without
    their bytes, other keys and values as their text.

    Floats are written so that reading them gives the same bits; NaN, Infinity and -Infinity as such.

    Raises:
        RecursionError: msgpack reads 1024 levels, more than Python's encoder wants to descend.
    """  # fmt: skip
    try:
        return json.dumps(value, indent=indent, default=_plain)
    except TypeError:  # a map whose keys are neither text nor numbers
        return json.dumps(with_text_keys(value), indent=indent, default=_plain)


# Limit: what a value of 1024 levels needs, at some frames for each; each takes well under 1 kB of an 8 MB stack.
_RECURSION = 10_000


def to_json(value: Any, indent: int | None = None) -> str:
    """As `as_json`, of any depth that msgpack reads; for programs of our own, whose limit of recursion it may raise."""
    try:
        return as_json(value, indent)
    except RecursionError:
        sys.setrecursionlimit(_RECURSION)
        return as_json(with_text_keys(value), indent)


def _plain(value: Any) -> Any:
    if isinstance(value, MediaItem):
        return value.as_plain()
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


def with_text_keys(value: Any) -> Any:
    """The value with the keys of its maps as text, whatever they were."""
    if isinstance(value, MediaItem):
        value = value.as_plain()
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): with_text_keys(inner) for key, inner in value.items()}
    return [with_text_keys(inner) for inner in value] if isinstance(value, (list, tuple)) else value
