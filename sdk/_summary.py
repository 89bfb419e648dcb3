"""Summary: one value per key that says how a run ended, the last logged one unless the user set another.

Contract: a write is kept here and appended to the run as a META fact; it never waits. Reading a key that was not set looks
up what was logged, in the ring and in the store (`sdk.reader.recent`), and waits for nobody either; `log()` pays nothing for the
summary. A missing key is a KeyError, also by attribute. Nested values are live: ``summary["best"]["acc"] = 1``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import msgpack

from .values import plain_value

# W&B's rule: a longer array is kept as statistics of it.
ARRAY_VALUES_MAX = 32
_QUANTILES = (10, 25, 75, 90)


class MissingKeyError(KeyError, AttributeError):
    """A KeyError as in W&B, and an AttributeError, so that `hasattr` works."""


class _Shared:
    """What all views of one summary share."""

    __slots__ = ("_read", "emit", "explicit", "lock", "removed")

    def __init__(self, read: Callable[[], Mapping[str, Any]], emit: Callable[[dict[str, Any]], None]) -> None:
        self._read = read
        self.emit = emit
        self.explicit: dict[str, Any] = {}
        self.removed: set[str] = set()
        self.lock = threading.RLock()

    def read(self) -> Mapping[str, Any]:
        """What was not set here, without what was deleted here."""
        stored = self._read()
        return {key: value for key, value in stored.items() if key not in self.removed} if self.removed else stored


class Summary(MutableMapping[str, Any]):
    """The summary of a run, or a nested part of it."""

    __slots__ = ("_path", "_shared")

    _path: tuple[str, ...]
    _shared: _Shared

    def __init__(
        self,
        read: Callable[[], Mapping[str, Any]] = dict,
        emit: Callable[[dict[str, Any]], None] = lambda facts: None,
        *,
        part_of: Summary | None = None,
        name: str = "",
    ) -> None:
        """Args: `read` gives the stored values by flat (dotted) name; `emit` gets META facts and may refuse by raising."""
        shared = _Shared(read, emit) if part_of is None else part_of._shared
        object.__setattr__(self, "_shared", shared)
        object.__setattr__(self, "_path", () if part_of is None else (*part_of._path, name))

    # -- reading -----------------------------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> Any:
        found, value = self._explicit(key)
        if found and not isinstance(value, dict):
            return value
        if found:
            return Summary(part_of=self, name=key)
        stored = self._shared.read()
        name = ".".join((*self._path, key))
        if name in stored and not isinstance(stored[name], Mapping):
            return stored[name]
        if name in stored or any(other.startswith(f"{name}.") for other in stored):
            return Summary(part_of=self, name=key)
        return self._inside_stored(key, stored)

    def _inside_stored(self, key: str, stored: Mapping[str, Any]) -> Any:
        """A nested value that an earlier attempt set as a whole."""
        value: Any = stored
        for part in (*self._path, key):
            if not isinstance(value, Mapping) or part not in value:
                raise MissingKeyError(key)
            value = value[part]
        return Summary(part_of=self, name=key) if isinstance(value, Mapping) else value

    def _explicit(self, key: str) -> tuple[bool, Any]:
        with self._shared.lock:
            return _look_up(self._shared.explicit, (*self._path, key))

    def __iter__(self) -> Iterator[str]:
        names: dict[str, None] = {}
        stored = self._shared.read()
        prefix = "".join(f"{part}." for part in self._path)
        for name, value in stored.items():
            if name.startswith(prefix):
                names[name[len(prefix) :]] = None
            elif isinstance(value, Mapping) and self._path == (name,):
                names.update(dict.fromkeys(value))
        with self._shared.lock:
            value = _look_up(self._shared.explicit, self._path)[1]
            names.update(dict.fromkeys(value if isinstance(value, dict) else ()))
        return iter(names)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]

    def __repr__(self) -> str:
        return repr(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """A copy as plain dicts."""
        return {k: v.as_dict() if isinstance(v, Summary) else v for k, v in self.items()}

    # -- writing -----------------------------------------------------------------------------------------------------

    def __setitem__(self, key: str, value: Any) -> None:
        self._write({key: value})

    def __setattr__(self, name: str, value: Any) -> None:
        self._write({name: value})

    def update(self, d: Any = (), /, **values: Any) -> None:
        """Sets several values with one record."""
        self._write({**dict(d), **values})

    def _write(self, values: Mapping[str, Any]) -> None:
        plain = {str(key): summary_value(value, key) for key, value in values.items()}
        if not plain:
            return
        stored = self._shared.read() if self._path and self._path[0] not in self._shared.explicit else {}
        with self._shared.lock:
            if not self._path:
                self._shared.emit({"summary": plain})
                self._shared.explicit.update(plain)
                self._shared.removed.difference_update(plain)
                return
            top = self._path[0]
            # What an earlier attempt set, or what `define_metric` worked out, stays beside it.
            whole = _copied(self._shared.explicit.get(top, stored.get(top)))
            _inside(whole, self._path[1:]).update(plain)
            self._shared.emit({"summary": {top: whole}})
            self._shared.explicit[top] = whole
            self._shared.removed.discard(top)

    def __delitem__(self, key: str) -> None:
        with self._shared.lock:
            found, _ = self._explicit(key)
            if not found:
                self[key]  # raises for a key that is nowhere
            if found and self._path:
                top = self._path[0]
                whole = _copied(self._shared.explicit[top])
                del _inside(whole, self._path[1:])[key]
                self._shared.emit({"summary": {top: whole}})
                self._shared.explicit[top] = whole
                return
            name = ".".join((*self._path, key))
            self._shared.emit({"summary_removed": [name]})
            self._shared.removed.add(name)
            if found:
                del self._shared.explicit[key]

    def __delattr__(self, name: str) -> None:
        del self[name]


def _copied(value: Any) -> dict[str, Any]:
    """Nested dicts copied, everything else shared; what is no dict counts as an empty one."""
    if not isinstance(value, dict):
        return {}
    return {k: _copied(v) if isinstance(v, dict) else v for k, v in value.items()}


def _inside(value: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """The dict at `path`, made where it is missing."""
    for part in path:
        inner = value.get(part)
        if not isinstance(inner, dict):
            inner = value[part] = {}
        value = inner
    return value


def summary_value(value: Any, key: object) -> Any:
    """A value as a plain one; an array of more than 32 elements as statistics of it, as in W&B.

    Raises:
        TypeError, ValueError: It cannot be stored.
    """
    if isinstance(value, Mapping):
        return {str(k): summary_value(v, key) for k, v in value.items()}
    if hasattr(value, "tolist") and hasattr(value, "shape"):
        return _array(value)
    try:
        plain = plain_value(value, key)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("log() value", "summary value")) from None
    return str(value) if isinstance(plain, msgpack.ExtType) else plain


def _array(value: Any) -> Any:
    size = 1
    for length in value.shape:
        size *= int(length)
    if size == 1 and not value.shape:
        return value.tolist()
    if size == 1:
        return value.reshape(()).tolist()
    if size <= ARRAY_VALUES_MAX:
        return value.tolist()
    import numpy

    array = numpy.asarray(value.tolist(), dtype="f8")
    statistics = {
        "mean": array.mean(), "var": array.var(), "min": array.min(), "max": array.max(),
        **{f"p{q}": numpy.percentile(array, q) for q in _QUANTILES},
    }  # fmt: skip
    return {"size": size, **{name: float(number) for name, number in statistics.items()}}


def _look_up(values: dict[str, Any], path: Sequence[str]) -> tuple[bool, Any]:
    """Whether nested dicts hold something at `path`, and what."""
    value: Any = values
    for part in path:
        if not isinstance(value, dict) or part not in value:
            return False, None
        value = value[part]
    return True, value
