"""Damaged rings, kept: what could not be read of a dead process's ring goes to disk as it is, for whoever can read more.

Whoever drains a ring removes it from shared memory, where it would stand in the way of others and die with the machine.
A damaged one is copied first: into `aside/` of its run, or of the store where nobody can say whose it is.
"""

from __future__ import annotations

import contextlib
import os
import zlib

from .files import Files
from .journal.format import HEADER_BYTES
from .journal.ring import RING_BYTES_MAX
from .limits import MIB
from .location import StoreIdentity
from .segment.naming import ASIDE, run_path


def holds_records(descriptor: int) -> bool:
    """Whether anything was ever published in the ring open on `descriptor`, as far as its first words tell."""
    return any(os.pread(descriptor, 8, 0)) or any(os.pread(descriptor, 8, HEADER_BYTES))


def keep_ring(files: Files, store: StoreIdentity, path: str, descriptor: int, run: str | None) -> str:
    """Copies the ring at `path`, open on `descriptor`, to disk; its path there. The ring itself stays.

    One that is there already is not copied again.

    Raises:
        OSError: It is not kept.
    """
    directory = os.path.join(store.path if run is None else run_path(store.path, run), ASIDE)
    page = os.pread(descriptor, HEADER_BYTES, 0)
    target = os.path.join(directory, f"{os.path.basename(path)}.{zlib.crc32(page):08x}")
    draft = f"{target}.part"
    if files.exists(target):
        return target
    files.make_directory(directory)
    with contextlib.suppress(FileNotFoundError):
        files.remove(draft)
    file = files.create(draft)
    try:
        while file.size < RING_BYTES_MAX and (part := os.pread(descriptor, MIB, file.size)):
            file.append([part])
        file.sync()
    finally:
        file.close()
    files.rename(draft, target)
    files.sync_directory(directory)
    return target
