"""What a run needs of a stream, and the stream of a run that records nothing."""

from __future__ import annotations

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
        self.log: Callable[..., None] = _log_nothing
        self.notes = list(notes)
        self.store = ""

    def step(self) -> int:
        return 0

    def append_meta(self, facts: Mapping[str, Any]) -> None:
        pass

    def flush(self, timeout: float) -> bool:
        return True

    def finish(self, state: str, exit_code: int, timeout: float) -> None:
        return None


def _log_nothing(data: Any, step: int | None = None, commit: bool | None = None, sync: object = None) -> None:
    pass
