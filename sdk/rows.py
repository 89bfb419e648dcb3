"""The one pure function that merges records into rows.

Coalescing in the daemon, compaction, the reader and the model in the tests all call it, so they cannot disagree about
what a half-written step means. A row is identified by (stream, step); everything here is about one stream.

The rule is last write wins by sequence, per flattened key. It is idempotent: giving a record twice, or a record and the
merged record that already holds it, changes nothing, so a replay after a crash is harmless.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .limits import FLAT_NAMES_BYTES_MAX
from .record import FLAG_COMMIT, FLAG_LATE


class Piece(NamedTuple):
    """A decoded ROW record: a part of the row at `step`.

    A merged piece carries the highest sequence and the time of its last part, and the flags of all of them.
    """

    sequence: int
    step: int
    flags: int
    time_ns: int
    values: dict[str, Any]


_SEQUENCE = operator.itemgetter(0)


def flatten(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Nested dicts as dotted names: ``{"a": {"b": 1}}`` is ``{"a.b": 1}``. The later of two equal names wins.

    A nested key that is not a str becomes its text, as in W&B. An empty nested dict stays as a value.

    Raises:
        ValueError: The names of outer dicts, repeated before those of inner ones, take more than `FLAT_NAMES_BYTES_MAX`.
    """
    for value in values.values():
        if type(value) is dict:
            break
    else:
        return values if type(values) is dict else dict(values)
    flat: dict[str, Any] = {}
    # Why no recursion and no limit: the packer takes 1000 levels, and a row that was flattened once must keep its names
    # when it is flattened again.
    levels = [("", iter(values.items()))]
    repeated = 0
    while levels:
        prefix, items = levels[-1]
        for key, value in items:
            name = f"{prefix}{key}"
            repeated += len(prefix)
            if repeated > FLAT_NAMES_BYTES_MAX:
                raise ValueError(f"flat names of nested dicts take more than {FLAT_NAMES_BYTES_MAX} bytes")
            if type(value) is dict and value:
                levels.append((f"{name}.", iter(value.items())))
                break
            flat.pop(name, None)  # so that the order of names is the order of their last writes
            flat[name] = value
        else:
            levels.pop()
    return flat


def merge(pieces: Iterable[Piece]) -> list[Piece]:
    """One piece per step, in order of their last sequence.

    Args:
        pieces: In any order; duplicates are allowed.

    Returns:
        The rows so far: `values` flat, `flags` the union of COMMIT, LATE and the rest.
    """
    rows: dict[int, Piece] = {}
    for piece in sorted(pieces, key=_SEQUENCE):
        _, step, _, _, raw = piece
        old = rows.pop(step, None)
        values = flatten(raw)
        if old is None:
            rows[step] = piece if values is raw else piece._replace(values=values)
        else:
            rows[step] = Piece(piece.sequence, step, old.flags | piece.flags, piece.time_ns, {**old.values, **values})
    return list(rows.values())


def committed(rows: Iterable[Piece], open_step: int | None) -> dict[int, bool]:
    """Which of the rows are complete: every one but the stream's open row.

    Args:
        rows: The merged rows of one stream.
        open_step: The step the stream would log to next without an explicit step, or None when the stream has ended
            (`finish`, exit and a crash commit the open row).
    """
    return {row.step: open_step is None or row.step < open_step or bool(row.flags & FLAG_COMMIT) for row in rows}


def open_step_after(pieces: Iterable[Piece], first_step: int) -> int:
    """The open step N of a stream after these pieces, by the table in DESIGN ("What `log` means")."""
    step = first_step
    for piece in sorted(pieces, key=_SEQUENCE):
        # COMMIT first: a merged piece has the flags of all its parts, and a late part never commits.
        if piece.flags & FLAG_COMMIT:
            step = max(step, piece.step + 1)
        elif not piece.flags & FLAG_LATE:
            step = max(step, piece.step)
    return step
