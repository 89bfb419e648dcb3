"""Cutting groups of rows to what a COLUMNS block may hold (docs/segment.md#columns). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .columns import Group
from .format import COLUMNS_MAX, COLUMNS_RAW_BYTES_MAX

# Limit: names in one block, which stand in its directory and in the segment's index.
_NAMES_BYTES_MAX = 1 << 20
_SYSTEM_COLUMNS = 4


def blocks(groups: Iterable[Group]) -> Iterator[list[Group]]:
    """The groups as they go into COLUMNS blocks: in pieces, where they have too many columns or bytes for one."""
    block: list[Group] = []
    columns = size = names = 0
    for group in (piece for wide in groups for narrow in _narrow(wide) for piece in _short(narrow)):
        own = group.columns, group.raw_bytes, sum(map(_name_bytes, group.values))
        full = columns + own[0] > COLUMNS_MAX or size + own[1] > COLUMNS_RAW_BYTES_MAX
        if block and (full or names + own[2] > _NAMES_BYTES_MAX):
            yield block
            block, columns, size, names = [], 0, 0, 0
        block.append(group)
        columns, size, names = columns + own[0], size + own[1], names + own[2]
    if block:
        yield block


def _narrow(group: Group) -> Iterator[Group]:
    """The group as groups with few enough columns and names for a block."""
    values: dict[str, Any] = {}
    names = 0
    for key, column in group.values.items():
        names += _name_bytes(key)
        if values and (len(values) + _SYSTEM_COLUMNS >= COLUMNS_MAX or names > _NAMES_BYTES_MAX):
            yield Group(group.sequence, group.step, group.time_us, group.flags, values)
            values, names = {}, _name_bytes(key)
        values[key] = column
    yield Group(group.sequence, group.step, group.time_us, group.flags, values)


def _short(group: Group) -> Iterator[Group]:
    """The group as groups with few enough rows."""
    size = group.raw_bytes
    if size <= COLUMNS_RAW_BYTES_MAX or len(group) == 1:
        yield group
        return
    rows = max(min(len(group) * COLUMNS_RAW_BYTES_MAX // size, len(group) - 1), 1)
    for start in range(0, len(group), rows):
        cut = slice(start, start + rows)
        values = {key: column[cut] for key, column in group.values.items()}
        yield from _short(Group(group.sequence[cut], group.step[cut], group.time_us[cut], group.flags[cut], values))


def _name_bytes(name: str) -> int:
    return 4 * len(name) + 64
