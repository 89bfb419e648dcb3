"""What a run needs of a stream, and the stream of a run that records nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from .ids import hex_u64, random_u64


class RunStream(Protocol):
    """What a run needs of a stream; `sdk._stream.Stream` in life."""

    log: Callable[..., None]
    notes: list[str]
    store: str

    @property
    def id(self) -> str: ...

    def step(self) -> int: ...

    def append_meta(self, facts: Mapping[str, Any]) -> None: ...

    def flush(self, timeout: float) -> bool: ...

    def finish(self, state: str, exit_code: int, timeout: float) -> Any: ...


class DisabledStream:
    """A stream of nothing, for mode="disabled" and for a process in which no stream could be opened."""

    def __init__(self, notes: Iterable[str] = ()) -> None:
        self.id = hex_u64(random_u64())
        self._last: dict[str, Any] = {}
        self.log: Callable[..., None] = self._remember
        self.notes = list(notes)
        self.store = ""

    def _remember(self, data: Any, step: object = None, commit: object = None, sync: object = None) -> None:
        """Takes what a summary would show, and nothing that takes much memory; is wrong about nothing."""
        with contextlib.suppress(Exception):
            _remember_scalars(self._last, data, "")

    def last(self, key: str) -> Any:
        """The last value of a key that is one number or text; None where there is none."""
        value = self._last.get(key)
        with contextlib.suppress(Exception):
            return value if type(value) in _PLAIN or value is None else value.item()
        return None

    def all_last(self) -> dict[str, Any]:
        """`last` of every key."""
        return {key: self.last(key) for key in list(self._last)}

    def step(self) -> int:
        return 0

    def append_meta(self, facts: Mapping[str, Any]) -> None:
        pass

    def flush(self, timeout: float) -> bool:
        return True

    def finish(self, state: str, exit_code: int, timeout: float) -> None:
        return None


_PLAIN = frozenset({bool, float, int, str})


def _remember_scalars(last: dict[str, Any], data: Mapping[Any, Any], prefix: str) -> None:
    for key, value in data.items():
        if (
            type(value) in _PLAIN or getattr(value, "ndim", None) == 0
        ):  # such an array becomes a number when it is asked for
            last[f"{prefix}{key}"] = value
        elif isinstance(value, Mapping):
            _remember_scalars(last, value, f"{prefix}{key}.")
