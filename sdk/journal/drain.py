"""Takes over the ring of a dead process: what it published and nobody stored yet.

The caller decides that the process is dead by getting the ring's lock, and removes the file only after the bytes are
stored. A ring is read with `pread`, never mapped: one that somebody truncated gives a short read instead of a SIGBUS.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from typing import Any, NamedTuple

from .. import clock, platform
from ..errors import DamageError
from ..record import HEADER_SIZE, decode_map, walk
from .format import (
    DRAFT_SUFFIX,
    HEADER_BYTES,
    STATIC,
    STATIC_MAGIC,
    STATIC_OFFSET,
    SUFFIX,
    VERSION,
    WORD_EPISODE,
    WORD_EPISODE_COUNT,
    WORD_EPISODE_END_NS,
    WORD_EPISODE_START_NS,
    WORD_EPISODE_STEP_MAX,
    WORD_EPISODE_STEP_MIN,
    WORD_HEAD,
    WORD_REFUSED,
    WORD_RELEASED,
    WORD_REPORTED,
    WORDS,
)

_DRAFT_AGE_NS = 60 * 10**9


class RingHeader(NamedTuple):
    """What the header page of a ring says."""

    stream: int
    capacity: int
    identity: dict[str, Any]
    words: tuple[int, ...]

    @property
    def refused(self) -> int:
        return self.words[WORD_REFUSED]


class Drained(NamedTuple):
    """The records of a dead ring.

    Attributes:
        records: Header and payload bytes, whole records with consecutive sequences.
        first, last: Their sequences; ``last < first`` when there are none.
        gap: What was refused and never reported, as the map of a GAP block, or None.
        damage: Why records at the end could not be taken, or None.
    """

    header: RingHeader
    records: bytes
    record_count: int
    first: int
    last: int
    gap: dict[str, Any] | None
    damage: str | None


def ring_paths(base: str, store_digest: str) -> list[str]:
    """The rings of one store on this host, living or dead."""
    try:
        directory = platform.shared_directory(base)
        names = sorted(os.listdir(directory))
    except Exception:
        return []
    return [os.path.join(directory, n) for n in names if n.startswith(f"{store_digest}-") and n.endswith(SUFFIX)]


def remove_drafts(base: str, store_digest: str) -> None:
    """Removes rings whose process died while making them. Whoever makes one takes milliseconds, so age decides."""
    with contextlib.suppress(Exception):
        directory = platform.shared_directory(base)
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            if name.startswith(f"{store_digest}-") and name.endswith(DRAFT_SUFFIX):
                if clock.wall_ns() - os.stat(path).st_mtime_ns > _DRAFT_AGE_NS:
                    os.unlink(path)


def read_header(path: str) -> RingHeader:
    """The header of any ring that this process does not own.

    Raises:
        OSError: It is gone.
        DamageError: It is not a whole ring header (its process may have died while making it).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return _parse_header(os.pread(descriptor, HEADER_BYTES, 0), path)
    finally:
        os.close(descriptor)


def _parse_header(page: bytes, path: str) -> RingHeader:
    if len(page) < HEADER_BYTES:
        raise DamageError(f"ring {path!r} has {len(page)} bytes, its header alone has {HEADER_BYTES}")
    static = page[STATIC_OFFSET : STATIC_OFFSET + STATIC.size]
    magic, version, _, size, capacity, stream, crc = STATIC.unpack(static)
    start = STATIC_OFFSET + STATIC.size
    text = page[start : start + size]
    if magic != STATIC_MAGIC or version != VERSION or zlib.crc32(text, zlib.crc32(static[:-4])) != crc:
        raise DamageError(f"ring {path!r} has a damaged header")
    if capacity & (capacity - 1) or not capacity:
        raise DamageError(f"ring {path!r} has capacity {capacity}, expected a power of two")
    words = struct.unpack_from(f"<{WORDS}Q", page)
    return RingHeader(stream, capacity, decode_map(text), words)


def drain(path: str) -> Drained:
    """Reads what a dead ring holds; changes nothing.

    Raises:
        OSError, DamageError: As `read_header`.
    """
    header = read_header(path)
    head, released = header.words[WORD_HEAD], header.words[WORD_RELEASED]
    if not 0 <= head - released <= header.capacity:
        raise DamageError(f"ring {path!r} says head {head} and released {released}; it holds {header.capacity} bytes")
    data = _window(path, header, released, head)
    records, count, first, last, damage = _whole_records(data)
    if damage is None and len(data) < head - released:
        damage = f"{head - released - len(data)} bytes after sequence {last}: the file is cut"
    return Drained(header, records, count, first, last, unreported_gap(header.words), damage)


def _window(path: str, header: RingHeader, start: int, end: int) -> bytes:
    first, size = start % header.capacity, end - start
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        upto = min(size, header.capacity - first)
        # Why the file's size: the header may claim any, and pread allocates what it is asked for.
        there = max(os.fstat(descriptor).st_size - HEADER_BYTES - first, 0)
        data = os.pread(descriptor, min(upto, there), HEADER_BYTES + first) if there else b""
        if len(data) < upto or size == upto:
            # A cut file ends here: the start of the window must not be read as what follows.
            return data
        return data + os.pread(descriptor, size - upto, HEADER_BYTES)
    finally:
        os.close(descriptor)


def _whole_records(data: bytes) -> tuple[bytes, int, int, int, str | None]:
    """(bytes, count, first, last, damage) of the leading records that are whole and numbered without a hole."""
    first = last = count = good = 0
    with contextlib.suppress(StopIteration):
        try:
            for record in walk(data):
                if count and record.sequence != last + 1:
                    raise DamageError(f"sequence {record.sequence} follows {last}")
                decode_map(record.payload)
                first, last = first if count else record.sequence, record.sequence
                count += 1
                good += HEADER_SIZE + len(record.payload)
        except DamageError as error:
            return data[:good], count, first, last, f"{len(data) - good} bytes after sequence {last}: {error}"
    return data, count, first, last, None


def unreported_gap(words: tuple[int, ...]) -> dict[str, Any] | None:
    """The GAP map of an episode of refusing that no GAP record tells of."""
    if words[WORD_EPISODE] <= words[WORD_REPORTED]:
        return None
    return {
        "episode": words[WORD_EPISODE],
        "count": words[WORD_EPISODE_COUNT],
        "step_min": words[WORD_EPISODE_STEP_MIN],
        "step_max": words[WORD_EPISODE_STEP_MAX],
        "start_ns": words[WORD_EPISODE_START_NS],
        "end_ns": words[WORD_EPISODE_END_NS],
        "reason": "ring full",
    }
