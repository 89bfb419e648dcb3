"""What a run holds, as plain dicts: the table of docs and DESIGN ("What `log` means") in a page, for tests to compare with.

Nothing here is shared with the product: it is written again, as simply as can be.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Rows = dict[int, dict[str, Any]]


class StreamModel:
    """One stream.

    Attributes:
        open_step: The step that the next call without one belongs to.
        calls: The (step, flat values) of each accepted call, in order.
        refused: The steps of calls that were refused.
    """

    def __init__(self, first_step: int = 0) -> None:
        self.open_step = first_step
        self.calls: list[tuple[int, dict[str, Any]]] = []
        self.refused: list[int] = []

    def log(self, data: dict[str, Any], step: int | None, commit: bool | None, *, accepted: bool = True) -> None:
        """Notes a call; a refused one leaves nothing but its step, which is gone."""
        row = self.open_step if step is None else step
        if accepted:
            self.calls.append((row, dict(flat(data))))
        else:
            self.refused.append(row)
        if row >= self.open_step:
            commits = (step is None and commit is not False) or bool(commit)
            self.open_step = row + 1 if commits else row

    @property
    def rows(self) -> Rows:
        return merged(self.calls)


def flat(data: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Nested dicts as dotted names."""
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def merged(calls: Iterable[tuple[int, dict[str, Any]]]) -> Rows:
    """The last value of each key wins, per row."""
    rows: Rows = {}
    for step, values in calls:
        rows.setdefault(step, {}).update(values)
    return rows


def joined(lanes: Sequence[Sequence[tuple[Rows, int | None]]]) -> Rows:
    """All lanes by step: the first lane wins, and within a lane the later stream.

    Args:
        lanes: The main one first. Each holds its streams' rows, oldest first, and from which step on a later attempt
            hides them.
    """
    rows: Rows = {}
    for lane in reversed(lanes):
        for found, hidden_from in lane:
            for step, values in found.items():
                if hidden_from is None or step < hidden_from:
                    rows.setdefault(step, {}).update(values)
    return rows
