"""What things are called in MLflow: its names take letters of any alphabet, digits, ``_ - . : /`` and spaces, at most 250 characters.

What a name may not hold is written as spreadsheets write it in their XML: ``_x002A_`` is the character U+002A. An underscore that
begins what looks like that is written so itself, so that every name leads back to its key. A name must also be a path that stays as
it is when it is normalised, because MLflow's file store makes files of names. One that is too long ends in a digest of the whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

# Limit: mlflow.utils.validation.MAX_ENTITY_KEY_LENGTH, the same in all versions: columns of its data base are that wide.
NAME_CHARACTERS_MAX = 250
_DIGEST_CHARACTERS = 16
# Limit: file systems take 255 bytes for each part of a path; a letter of a name has up to four.
_PART_BYTES_MAX = 200
# A character that no name may hold, and an underscore that could be taken for the beginning of such a one: whatever follows the
# digits may be written, and then begins with the underscore that ends them.
_REFUSED = re.compile(r"[^/\w.\- :]|_(?=x[0-9A-F]{4})")
_WRITTEN = re.compile(r"_x([0-9A-F]{4,6})_")
# Slashes and dots that `posixpath.normpath` would take away: "//", at either end, and parts that are "." or "..". No name may begin
# with "..", whatever follows.
_NOT_A_PATH = re.compile(r"^/|/$|(?<=/)/|(?:(?<=/)|^)\.(?=\.?(?:/|$))|^\.(?=\.)")
_EMPTY = "_x_"


def name_of(key: str) -> str:
    """What a key is called in MLflow; as it is wherever that can be."""
    if key == "":
        return _EMPTY
    name = _NOT_A_PATH.sub(_write, _REFUSED.sub(_write, key))
    if name == _EMPTY:
        name = _write_one("_") + _EMPTY[1:]
    if len(name) > NAME_CHARACTERS_MAX:
        name = f"{name[: NAME_CHARACTERS_MAX - _DIGEST_CHARACTERS - 1].rstrip('/.')}-{_digest(key)}"
    return name


def key_of(name: str) -> str:
    """The key that is called so; of a name that was cut, its beginning and the digest."""
    return "" if name == _EMPTY else _WRITTEN.sub(lambda found: chr(int(found[1], 16)), name)


def path_of(key: str) -> str:
    """A key or a file's name as the path of an artifact: as `name_of`, with parts that any file system takes."""
    return "/".join(map(_part, name_of(key).replace(":", _write_one(":")).split("/")))


def _part(part: str) -> str:
    if len(data := part.encode()) <= _PART_BYTES_MAX:
        return part
    return f"{data[: _PART_BYTES_MAX - _DIGEST_CHARACTERS - 1].decode(errors='ignore')}-{_digest(part)}"


def _write(found: re.Match[str]) -> str:
    return _write_one(found[0])


def _write_one(character: str) -> str:
    return f"_x{ord(character):04X}_"


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGEST_CHARACTERS]


def _digest(text: str) -> str:
    return digest_of(text.encode("utf-8", "surrogatepass"))


def text_of(value: Any) -> str:
    """A value of the config as the text of a parameter: a str as it is, else as Python or, of lists, JSON writes it."""
    if isinstance(value, (dict, list, tuple)):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return clean(str(value))


def clean(text: str) -> str:
    """A text that can be UTF-8 and that data bases take: lone surrogates and NUL become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")


def flattened(config: Mapping[str, Any]) -> dict[str, str]:
    """The config as parameters: nested maps as dotted keys; of two of one key the later wins, as in rows."""
    found: dict[str, str] = {}
    _flatten("", config, found)
    return found


def _flatten(above: str, level: Mapping[str, Any], found: dict[str, str]) -> None:
    for key, value in level.items():
        if isinstance(value, dict) and value:
            _flatten(f"{above}{key}.", value, found)
        else:
            found[f"{above}{key}"] = text_of(value)
