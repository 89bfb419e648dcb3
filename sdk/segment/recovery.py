"""Makes a segment whose writer is dead whole again: cut what is torn, keep it aside, seal the rest.

Torn is what lies behind the last whole block. Damage before it stays where it is, as do whole blocks whose payloads are
bad (power was lost before they reached the disk): their headers, or the holes between blocks in the new index, tell for
ever what is missing. `sdk.segment.repair` rewrites such a segment.

Only for segments that nobody writes any more; the caller has proved that (it holds the writer's lock). Safe to be killed
at any point and to be run again: each step leaves a file that the next run handles.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from ..errors import DamageError
from ..files import Files
from .format import BLOCKS_OFFSET, Block
from .naming import ASIDE
from .reader import Damage, SegmentReader
from .windows import is_window
from .writer import SegmentWriter

# Limit: what is kept of a torn tail. A tail is at most one block that was being written, 4 MiB compressed.
_ASIDE_BYTES_MAX = 8 << 20


class Recovered(NamedTuple):
    """What `recover` found: the good blocks, the bytes it cut from the end, the damage between blocks."""

    blocks: list[Block]
    torn_bytes: int
    damage: list[Damage]
    was_sealed: bool


def recover(files: Files, path: str) -> Recovered:
    """Cuts and seals the segment at `path`; a sealed one is left as it is.

    A file too short for its header is set aside whole: it never held a block.

    Raises:
        OSError: The disk refuses.
        DamageError: The file header is damaged, or it was rewritten and has lost its end; nothing was changed.
    """
    try:
        reader = SegmentReader(files, path)
    except DamageError:
        if _size(files, path) < BLOCKS_OFFSET:
            set_aside(files, path)
            return Recovered([], 0, [], False)
        raise
    try:
        if reader.header_is_damaged:
            raise DamageError(reader.damage[0].reason, hint="stepd repair")
        header, blocks, damage, tail = reader.header, list(reader.blocks), list(reader.damage), reader.tail
        if reader.sealed:
            return Recovered(blocks, 0, damage, True)
        if any(map(is_window, blocks)):
            # Why not sealed as it is: nobody could tell then that blocks of a window are missing.
            raise DamageError("a rewritten segment that is not sealed: its end is gone", hint="stepd repair")
    finally:
        reader.close()
    file = files.open(path, write=True)
    try:
        torn = file.size - tail
        if torn > 0:
            _keep_aside(files, path, tail, file.read(tail, min(torn, _ASIDE_BYTES_MAX)))
            file.truncate(tail)
        elif torn < 0:  # the last block is whole but for its padding, and what follows must be aligned
            file.append([bytes(-torn)])
        SegmentWriter.reopen(file, header, blocks).seal()
    finally:
        file.close()
    return Recovered(blocks, max(torn, 0), damage, False)


def set_aside(files: Files, path: str) -> str:
    """Moves a segment's file to the run's `aside/`, under a name that is free; returns where it is."""
    files.make_directory(_aside(path))
    name = target = os.path.join(_aside(path), os.path.basename(path))
    count = 1
    while files.exists(target):
        count += 1
        target = f"{name}.{count}"
    files.rename(path, target)
    return target


def _aside(path: str) -> str:
    return os.path.join(os.path.dirname(path), ASIDE)


def _keep_aside(files: Files, path: str, offset: int, tail: bytes) -> None:
    if not tail.strip(b"\0"):
        return
    files.make_directory(_aside(path))
    files.write_whole(os.path.join(_aside(path), f"{os.path.basename(path)}.{offset}"), tail)


def _size(files: Files, path: str) -> int:
    file = files.open(path)
    try:
        return file.size
    finally:
        file.close()
