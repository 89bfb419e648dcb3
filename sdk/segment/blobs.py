"""How blobs stand in BLOB blocks (docs/segment.md#blob); whoever writes or reads one goes through here.

A blob is stored as one block for each 4 MiB of it, so that nothing waits long behind a large one and memory stays
bounded. What a block says of itself stands in its header, so an index needs no payload: `stream`, `first` = `last` =
the blob's number, `step_min` = where the chunk begins, `step_max` = the size of the whole. The payload is the size of
the metadata as u32, the metadata as a msgpack map (in the first chunk only), then bytes.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ..errors import DamageError, Error
from ..files import Buffer, Files
from ..limits import BLOB_BYTES_MAX, MIB
from ..record import BlobRef, decode_map, encode_map
from .format import KIND_BLOB, Block
from .naming import MEDIA, parse_segment
from .reader import SegmentReader
from .writer import SegmentWriter

# Limit: the bytes of one chunk; a copy of it takes about a millisecond.
CHUNK_BYTES = 4 * MIB
# Limit: what a blob may say of itself.
META_BYTES_MAX = 1 * MIB

_META_SIZE = struct.Struct("<I")


class Chunk(NamedTuple):
    """The payload of one BLOB block. `meta` is None in all but the first of a blob."""

    meta: dict[str, Any] | None
    data: memoryview


def append_chunk(
    segment: SegmentWriter, ref: BlobRef, offset: int, data: Buffer, meta: Mapping[str, Any] | None = None
) -> Block:
    """Appends one chunk of a blob.

    Args:
        ref: Whose it is; `ref.size` is the size of all chunks together.
        offset: Where in the blob `data` begins; 0 also for a blob without bytes.
        meta: What the blob says of itself; with the first chunk, and only there.

    Raises:
        OSError: Nothing of it is in the file.
        ValueError: More than a chunk holds.
    """
    packed = encode_map(dict(meta)) if meta is not None else b""
    if len(data) > CHUNK_BYTES or len(packed) > META_BYTES_MAX:
        raise ValueError(f"a chunk of {len(data)} bytes with metadata of {len(packed)}")
    return segment.append(
        KIND_BLOB, [_META_SIZE.pack(len(packed)) + packed, data], stream=ref.stream, first=ref.number, last=ref.number,
        step_min=offset, step_max=ref.size, compress=False,
    )  # fmt: skip


def append_blob(segment: SegmentWriter, ref: BlobRef, data: Buffer, meta: Mapping[str, Any]) -> None:
    """Appends a whole blob of `ref.size` bytes.

    Raises:
        OSError: Some chunks may be in the file, not all.
    """
    view = memoryview(data)
    for offset in offsets(ref.size):
        append_chunk(segment, ref, offset, view[offset : offset + CHUNK_BYTES], None if offset else meta)


def offsets(size: int) -> Iterator[int]:
    """Where the chunks of a blob of `size` bytes begin."""
    return iter(range(0, max(size, 1), CHUNK_BYTES))


def stored_blobs(files: Files, directory: str) -> set[tuple[int, int]]:
    """(stream, number) of the blobs that are whole in a run's media segments, by the headers of their blocks alone.

    Why not the size too: what was encoded has another one. Why all segments together: what an fsync lost in the middle of
    a blob was written again into the next one.

    Raises:
        OSError: The directory cannot be read.
    """
    chunks: dict[BlobRef, set[int]] = {}
    for name, _, _ in files.entries(directory):
        parsed = parse_segment(name)
        if parsed is None or parsed.holds != MEDIA:
            continue
        with contextlib.suppress(OSError, Error):
            reader = SegmentReader(files, os.path.join(directory, name))
            try:
                for block in reader.blocks:
                    if block.kind == KIND_BLOB:
                        with contextlib.suppress(DamageError):
                            chunks.setdefault(ref_of(block), set()).add(block.step_min)
            finally:
                reader.close()
    return {(ref.stream, ref.number) for ref, found in chunks.items() if found.issuperset(offsets(ref.size))}


def whole_blobs(blocks: Iterable[Block]) -> Iterator[tuple[BlobRef, list[Block]]]:
    """Each blob whose chunks are all among `blocks`, with them in order; a second copy comes again."""
    open_: dict[BlobRef, list[Block]] = {}
    for block in blocks:
        if block.kind != KIND_BLOB:
            continue
        try:
            ref = ref_of(block)
        except DamageError:
            continue
        if block.step_min == 0:
            open_[ref] = []
        chunks = open_.get(ref)
        # A chunk that does not go on where the last one ended is of another copy, whose beginning is lost.
        if chunks is None or block.step_min != CHUNK_BYTES * len(chunks):
            continue
        chunks.append(block)
        if len(chunks) * CHUNK_BYTES >= ref.size:
            yield ref, open_.pop(ref)


def parse_chunk(block: Block, payload: Buffer) -> Chunk:
    """What the payload of a BLOB block holds.

    Raises:
        DamageError: It is none.
    """
    view = memoryview(payload)
    size = _META_SIZE.unpack_from(view)[0] if len(view) >= _META_SIZE.size else META_BYTES_MAX + 1
    start = _META_SIZE.size + size
    if size > META_BYTES_MAX or start > len(view) or (size == 0) != (block.step_min > 0):
        raise DamageError(f"block {block.number} is no chunk of a blob: its metadata has {size} bytes")
    meta = decode_map(view[_META_SIZE.size : start], tensors=False) if size else None
    return Chunk(meta, view[start:])


def ref_of(block: Block) -> BlobRef:
    """Whose chunk a BLOB block is.

    Raises:
        DamageError: Its header cannot be one's.
    """
    if block.kind != KIND_BLOB or block.first != block.last or not block.step_min <= block.step_max <= BLOB_BYTES_MAX:
        raise DamageError(f"block {block.number} is no chunk of a blob: {block}")
    return BlobRef(block.stream, block.first, block.step_max)
