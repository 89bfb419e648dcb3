"""Makes a segment whose writer is dead whole again: cut what is torn, keep it aside, seal the rest.

Only for segments that nobody writes any more; the caller has proved that (it holds the writer's lock). Safe to be killed
at any point and to be run again: each step leaves a file that the next run handles.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from ..errors import DamageError
from ..files import Files
from .format import FILE_HEADER_SIZE, Block
from .naming import ASIDE
from .reader import Damage, SegmentReader, read_file_header
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
        DamageError: The file header is damaged; nothing was changed.
    """
    try:
        reader = SegmentReader(files, path)
    except DamageError:
        if _size(files, path) < FILE_HEADER_SIZE:
            files.make_directory(_aside(path))
            files.rename(path, os.path.join(_aside(path), os.path.basename(path)))
            return Recovered([], 0, [], False)
        raise
    try:
        if reader.sealed:
            return Recovered(reader.blocks, 0, reader.damage, True)
        blocks, tail = list(reader.blocks), reader.tail
        while blocks and not _payload_is_whole(reader, blocks[-1]):
            tail = blocks.pop().offset
        damage = list(reader.damage)
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
        SegmentWriter.reopen(file, read_file_header(file), blocks).seal()
    finally:
        file.close()
    return Recovered(blocks, max(torn, 0), damage, False)


def _payload_is_whole(reader: SegmentReader, block: Block) -> bool:
    try:
        reader.payload(block)
    except DamageError:
        return False
    return True


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
