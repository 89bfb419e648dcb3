"""How much of the disk a store takes, by run: the library under `stepd du`. Looks at names and sizes, and at who wrote what."""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from ..errors import Error
from ..files import Files
from ..segment.format import KIND_META
from ..segment.naming import ARTIFACTS, ASIDE, FILES, MEDIA, RUNS, TRASH, parse_segment
from ..segment.reader import SegmentReader


class RunUse(NamedTuple):
    """Bytes of one run.

    Attributes:
        segments: What daemons (and repairs) wrote of rows.
        media: Large values, whoever wrote them.
        spools: What trainers wrote themselves.
        aside: Torn tails and damaged segments that were kept.
        files: What lies in `run.dir`: what was saved, patches, code.
        other: The rest.
    """

    directory: str
    segments: int
    media: int
    spools: int
    aside: int
    files: int
    other: int

    @property
    def total(self) -> int:
        return self.segments + self.media + self.spools + self.aside + self.files + self.other


class StoreUse(NamedTuple):
    """Bytes of a store: its runs (largest first), its trash, artifacts (with what waits to become one), its own few files, and
    what the disk has left.
    """

    runs: list[RunUse]
    trash: int
    artifacts: int
    other: int
    free: int

    @property
    def total(self) -> int:
        return sum(run.total for run in self.runs) + self.trash + self.artifacts + self.other


def store_use(files: Files, path: str) -> StoreUse:
    """Looks at a whole store.

    Raises:
        OSError: It cannot be listed.
    """
    runs = [run_use(files, os.path.join(path, RUNS, name)) for name, _, _ in files.entries(os.path.join(path, RUNS))]
    trash = _tree(files, os.path.join(path, TRASH))
    artifacts = _tree(files, os.path.join(path, ARTIFACTS))
    other = sum(size for name, size, _ in files.entries(path) if name not in (RUNS, TRASH, ARTIFACTS))
    return StoreUse(sorted(runs, key=lambda run: -run.total), trash, artifacts, other, files.free_bytes(path))


def run_use(files: Files, directory: str) -> RunUse:
    """Looks at one run's directory."""
    segments = media = spools = other = 0
    for name, size, _ in files.entries(directory):
        if name in (ASIDE, FILES):
            continue
        parsed = parse_segment(name)
        if parsed is None:
            other += size
        elif parsed.holds == MEDIA:
            media += size
        elif _is_spool(files, os.path.join(directory, name)):
            spools += size
        else:
            segments += size
    aside, kept = (_tree(files, os.path.join(directory, name)) for name in (ASIDE, FILES))
    return RunUse(directory, segments, media, spools, aside, kept, other)


def _is_spool(files: Files, path: str) -> bool:
    with contextlib.suppress(OSError, Error):
        reader = SegmentReader(files, path)
        try:
            first = reader.blocks[0] if reader.blocks else None
            if first is not None and first.kind == KIND_META:
                writer = reader.read_map(first).get("writer")
                return isinstance(writer, dict) and writer.get("kind") == "spool"
        finally:
            reader.close()
    return False


def _tree(files: Files, path: str) -> int:
    """Bytes of all files below; a directory's own few bytes count, a link's target does not."""
    total, waiting = 0, [path]
    while waiting:
        directory = waiting.pop()
        for name, size, _ in files.entries(directory):
            total += size
            # `entries` of what is no directory is empty: a look costs one system call.
            waiting.append(os.path.join(directory, name))
    return total
