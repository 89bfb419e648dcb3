"""Which sealed segments of rows of a run are rewritten together. Pure.

What was never rewritten is rewritten as soon as it is there, all of it together. Of what was, four of one size become one, so
that a run that lives for weeks has a few segments of each size, and each row is written once for each power of four. A run that
has ended becomes as few files as their size allows.
"""

from __future__ import annotations

from collections.abc import Sequence

from daemon.store.replacing import Sealed
from sdk.limits import GIB, KIB, MIB

# Limit: one new file.
FILE_BYTES_MAX = 256 * MIB
# Limit: files that one rewriting holds open at once; a process may usually have 1024.
SOURCES_MAX = 128
# Limit: rows of one rewriting, so that what a crash makes be done again is some minutes' work.
_RAW_BYTES_MAX = GIB
# So many compacted segments of one size class become one.
_MERGED = 4
# What is smaller counts as of one class: else a run would have four files of each of ten sizes that are nothing.
_CLASS_BYTES_MIN = 64 * KIB


def choose(segments: Sequence[Sealed], *, ended: bool) -> list[Sealed]:
    """What is rewritten next; nothing: there is nothing to do.

    Each choice leaves fewer raw segments, or fewer segments, so asking again after each comes to an end.

    Args:
        segments: Those of a run that may be rewritten.
        ended: Whether nothing more will come.
    """
    raw = _within([segment for segment in segments if segment.is_raw], _RAW_BYTES_MAX)
    if raw:
        return raw
    compacted = sorted(segments, key=lambda segment: segment.size)
    classes: dict[int, list[Sealed]] = {}
    for segment in compacted:
        classes.setdefault(size_class(segment.size), []).append(segment)
    for _, found in sorted(classes.items()):
        chosen = _within(found, FILE_BYTES_MAX)
        if len(chosen) >= _MERGED:
            return chosen
    chosen = _within(compacted, FILE_BYTES_MAX) if ended else []
    return chosen if len(chosen) > 1 else []


def size_class(size: int) -> int:
    """The power of four that a size belongs to."""
    return (max(size // _CLASS_BYTES_MIN, 1).bit_length() - 1) // 2


def _within(segments: Sequence[Sealed], bytes_max: int) -> list[Sealed]:
    """The first segments, as many as one rewriting takes; at least one if there is one."""
    chosen: list[Sealed] = []
    size = 0
    for segment in segments[:SOURCES_MAX]:
        size += segment.size
        if chosen and size > bytes_max:
            break
        chosen.append(segment)
    return chosen
