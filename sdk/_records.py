"""A record of the standard library's logging as rows of the console stream (docs/logging.md#rows).

Pure: nothing here waits, keeps anything or raises, whatever the record holds. What a program hands over is described, never
fetched: an array on a device stays there, because its text would make the training wait for it.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

# Limit: of text, of traceback and of all extra fields each at most so many bytes: together less than the eighth of a ring of 256 KiB
# (what a forked child's console has) that a row may take. Where the ring is larger, so is the limit (`Lines.text_bytes_max`).
TEXT_BYTES_MIN = 8 * 1024
EXTRA_FIELDS_MAX = 64
EXTRA_CHARACTERS_MAX = 1024
EXTRA_ITEMS_MAX = 32
EXTRA_LEVELS_MAX = 4
_NAME_CHARACTERS_MAX = 256
# A text of so many parts is cut instead: a message of megabytes is a mistake, and must not push out everything else.
PARTS_MAX = 64
# A record that is handled later than this after it was made carries its own time.
LATE_SECONDS = 0.1

_PLAIN = logging.Formatter()
_INT64 = 1 << 63
# What every record has: the rest of its attributes are the extra fields.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# Texts of arrays that may live on a device: their `repr` waits for all work that is queued there.
_DEVICE_MODULES = frozenset({"torch", "jax", "jaxlib", "tensorflow", "cupy"})


def rows_of(
    record: logging.LogRecord, formatter: logging.Formatter | None, now: float, bytes_max: int = TEXT_BYTES_MIN
) -> list[dict[str, Any]]:
    """The rows of one record: one, or several where its text is long; those after the first have `part`, from 1.

    Args:
        formatter: What makes the text, without traceback and stack; None: the message alone.
        now: Unix seconds.
        bytes_max: The most bytes of text, of traceback and of extra fields in one row.
    """
    text = _text(record, formatter)
    row: dict[str, Any] = {**_head(record), "text": text}
    if now - record.created > LATE_SECONDS:
        row["created"] = record.created
    if record.threadName not in (None, "MainThread"):
        row["thread"] = cut(str(record.threadName), _NAME_CHARACTERS_MAX)
    if record.processName not in (None, "MainProcess"):
        row["process"] = cut(str(record.processName), _NAME_CHARACTERS_MAX)
    if record.exc_info or record.exc_text:
        row["error"] = cut_bytes(_error(record, formatter), bytes_max)
    if record.stack_info:
        row["stack"] = cut_bytes(str(record.stack_info), bytes_max // 2)
    extra = extra_of(record, bytes_max)
    if extra:
        row["extra"] = extra
    size = _characters(text, bytes_max)
    return [row] if len(text) <= size else _in_parts(row, text, size)


def unformatted(record: logging.LogRecord) -> list[dict[str, Any]]:
    """The row of a record that came while others were being formatted: none of the program's code is called for it."""
    return [{**_head(record), "text": cut_bytes(_message(record), TEXT_BYTES_MIN)}]


def _head(record: logging.LogRecord) -> dict[str, Any]:
    level = record.levelno
    return {
        "from": "log",
        "level": level if type(level) is int and abs(level) < _INT64 else 0,
        "logger": cut(str(record.name), _NAME_CHARACTERS_MAX),
        "where": cut(f"{record.filename}:{record.lineno}", _NAME_CHARACTERS_MAX),
    }


def _message(record: logging.LogRecord) -> str:
    return record.msg if type(record.msg) is str else _type_name(record.msg)


def _in_parts(row: dict[str, Any], text: str, size: int) -> list[dict[str, Any]]:
    text = cut(text, size * PARTS_MAX)
    shared = {key: value for key, value in row.items() if key in ("from", "level", "logger", "created")}
    parts = [{**shared, "text": text[at : at + size], "part": at // size} for at in range(size, len(text), size)]
    return [{**row, "text": text[:size]}, *parts]


def _text(record: logging.LogRecord, formatter: logging.Formatter | None) -> str:
    try:
        if formatter is None:
            return str(record.getMessage())
        if record.exc_info or record.exc_text or record.stack_info:
            # Why a copy: the traceback has a place of its own, and other handlers want it in theirs.
            record = copy.copy(record)
            record.exc_info = record.exc_text = record.stack_info = None
        return str(formatter.format(record))
    except Exception as error:  # too few arguments, a __str__ that fails: the message as it was written, and why
        args = ", ".join(_described(value) for value in _arguments(record))
        return f"{_message(record)} % ({args}) [cannot be formatted: {type(error).__name__}]"


def _arguments(record: logging.LogRecord) -> list[Any]:
    args = record.args
    return list(args) if isinstance(args, tuple) else [] if args is None else [args]


def _error(record: logging.LogRecord, formatter: logging.Formatter | None) -> str:
    if record.exc_text:
        return str(record.exc_text)
    info = record.exc_info
    try:
        if not isinstance(info, tuple) or len(info) != 3 or info[0] is None:
            return "" if isinstance(info, tuple) else _described(info)
        return str((formatter or _PLAIN).formatException(info))
    except Exception as error:
        return f"{_described(info)} [its traceback cannot be formatted: {type(error).__name__}]"


def extra_of(record: logging.LogRecord, bytes_max: int) -> dict[str, Any]:
    """What `extra=`, a filter or an adapter put on the record, as plain values; what is too much is left out and said."""
    found: dict[str, Any] = {}
    left_out = size = 0
    own = vars(record)
    if own.keys() <= _STANDARD:
        return found
    for name, value in list(own.items()):
        if name in _STANDARD or type(name) is not str or not name:
            continue
        shown = plain(value)
        size += 4 * (len(name) + len(repr(shown)))
        if size > bytes_max or len(found) == EXTRA_FIELDS_MAX:
            left_out += 1
        else:
            found[cut(name, EXTRA_CHARACTERS_MAX)] = shown
    if left_out:
        found["…"] = f"{left_out} more fields are left out"
    return found


def plain(value: Any, level: int = 1) -> Any:
    """A value that a row can hold: itself, lists and maps of such, a number of numpy's as Python's, else its `repr`."""
    kind = type(value)
    if value is None or kind is bool or kind is float:
        return value
    if kind is str:
        return cut(value, EXTRA_CHARACTERS_MAX)
    if kind is int:
        return value if -_INT64 <= value < _INT64 else str(value)
    try:
        if level < EXTRA_LEVELS_MAX and kind in (list, tuple):
            return [plain(item, level + 1) for item in value[:EXTRA_ITEMS_MAX]]
        if level < EXTRA_LEVELS_MAX and kind is dict:
            items = list(value.items())[:EXTRA_ITEMS_MAX]
            return {_key(key): plain(item, level + 1) for key, item in items}
        if kind.__module__ == "numpy" and getattr(value, "shape", None) == () and level < EXTRA_LEVELS_MAX:
            return plain(value.item(), level + 1)
    except Exception:  # a list that another thread changes meanwhile
        pass
    return _described(value)


def _key(key: Any) -> str:
    return cut(key if type(key) is str else _described(key), EXTRA_CHARACTERS_MAX)


def _described(value: Any) -> str:
    if type(value).__module__.partition(".")[0] in _DEVICE_MODULES:
        return _type_name(value)
    try:
        return cut(repr(value), EXTRA_CHARACTERS_MAX)
    except Exception:
        return _type_name(value)


def _type_name(value: Any) -> str:
    return f"<{type(value).__module__}.{type(value).__qualname__}>"


def _characters(text: str, bytes_max: int) -> int:
    """How many characters of a text surely fit."""
    return bytes_max if text.isascii() else bytes_max // 4


def cut_bytes(text: str, bytes_max: int) -> str:
    """`cut` to at most so many bytes."""
    return cut(text, _characters(text, bytes_max) - 64)


def cut(text: str, size: int) -> str:
    """At most `size` characters and a word: the first half and the last, because a traceback's cause stands at its end."""
    if len(text) <= size:
        return text
    half = size // 2
    return f"{text[:half]}… ({len(text) - size:,} characters left out) …{text[-half:]}"
