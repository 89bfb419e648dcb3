"""Writes what can be saved of a damaged segment into a new one, and moves the old file to the run's `aside/`.

Good blocks are copied as they are. Of a block whose checksum is right but whose records are not, the good records are
kept. A block whose checksum is wrong proves nothing of what it holds: it becomes a GAP that names its sequences. Of large
values each chunk is kept that is good, since another file may hold the rest; who lacks some tells `daemon.store.repair`,
which knows all files of the run. The new segment says which one it replaces, so that a reader does not miss the old one's blocks.

The caller has proved that nobody writes the segment any more. Killed at any point, both files are there (which is
harmless: rows merge by sequence) or only a draft more, which the next run removes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from .. import compression
from ..errors import DamageError
from ..files import Buffer, Files
from ..ids import hex_u64
from ..record import KIND_BLOB, KIND_GAP, KIND_META, KIND_ROW, Record, decode_map, pack, walk
from . import format as segment
from .blobs import parse_chunk, ref_of, whole_blobs
from .check import MAPS, check_rows, check_segment
from .format import KIND_ROWS, Block, FileHeader
from .naming import ASIDE, HISTORY, SegmentName, format_segment, parse_segment
from .reader import SegmentReader
from .recovery import set_aside
from .writer import SegmentWriter, step_range

DRAFT_SUFFIX = ".repair"
_REBUILT = (segment.KIND_KEYS, segment.KIND_INDEX)


class Repaired(NamedTuple):
    """What `rewrite` did.

    Attributes:
        path: The new segment.
        aside: Where the old one is now; None where there was none.
        records, lost: Sequences that the new segment holds, and those that it says are lost.
        blobs, lost_blobs: Large values that are whole in it, and those of which the old one had more than it can be given.
    """

    path: str
    aside: str | None
    records: int
    lost: int
    blobs: int = 0
    lost_blobs: int = 0


def rewrite(files: Files, path: str, run_id: str, header: FileHeader, origin: Mapping[str, Any]) -> Repaired:
    """Replaces the segment at `path`, which may be missing: then the new one only says so.

    Args:
        header: Of the new segment: a new writer, number 0.
        origin: The `writer` map of its META block.

    Raises:
        OSError: The disk refuses; the old segment is where it was.
        StoreError: A newer version wrote it.
        DamageError: What was written cannot be read back.
    """
    directory, name = os.path.split(path)
    draft = os.path.join(directory, ASIDE, name + DRAFT_SUFFIX)
    files.make_directory(os.path.dirname(draft))
    if files.exists(draft):
        files.remove(draft)
    reader = _opened(files, path)
    try:
        created_ns = (reader.header.created_ns if reader else 0) or header.created_ns
        writer = SegmentWriter.create(files, draft, header._replace(created_ns=created_ns))
        copy = _Copy(writer)
        try:
            copy.head(parse_segment(name), run_id, origin)
            if reader is not None:
                copy.all_of(reader)
            writer.seal(close=False)
            writer.sync()
        finally:
            writer.close()
    finally:
        if reader is not None:
            reader.close()
    _read_back(files, draft, copy.records)
    old = parse_segment(name)
    holds = old.holds if old is not None else HISTORY
    target = os.path.join(directory, format_segment(SegmentName(header.writer, header.number, holds)))
    files.rename(draft, target)
    files.sync_directory(directory)
    aside = None
    if files.exists(path):
        aside = set_aside(files, path)
        files.sync_directory(os.path.dirname(aside))
        files.sync_directory(directory)
    return Repaired(target, aside, copy.records, copy.lost, *copy.blobs())


def _opened(files: Files, path: str) -> SegmentReader | None:
    """The old segment; None where nothing of it can be read."""
    try:
        return SegmentReader(files, path)
    except (FileNotFoundError, DamageError):
        return None


def _read_back(files: Files, draft: str, records: int) -> None:
    checked = check_segment(files, draft)
    if checked.findings or checked.records != records or not checked.sealed:
        what = checked.findings[0].text if checked.findings else f"{checked.records} records of {records}"
        raise DamageError(f"what was saved of a segment cannot be read back from {draft!r}: {what}")


class _Copy:
    """The new segment while it is written."""

    def __init__(self, writer: SegmentWriter) -> None:
        self._writer = writer
        self._done: set[int] = set()
        self._lost_blobs: set[tuple[int, int]] = set()
        self.records = 0
        self.lost = 0

    def head(self, name: SegmentName | None, run_id: str, origin: Mapping[str, Any]) -> None:
        """What the new segment says about itself."""
        replaces = [[hex_u64(name.writer), name.number]] if name is not None else []
        self._writer.append_map(segment.KIND_META, {"run": run_id, "writer": dict(origin), "replaces": replaces})

    def all_of(self, reader: SegmentReader) -> None:
        if reader.seal is not None and reader.seal.claims:
            streams = {hex_u64(claim.stream): [claim.last, claim.step] for claim in reader.seal.claims}
            self._writer.append_map(segment.KIND_CHECKPOINT, {"streams": streams})
        for block in reader.blocks:
            if block.kind not in _REBUILT and block.number not in self._done:
                self._one(reader, block)

    def blobs(self) -> tuple[int, int]:
        """How many blobs are whole, and of how many something is lost."""
        whole = {(ref.stream, ref.number) for ref, _ in whole_blobs(self._writer.blocks)}
        return len(whole), len(self._lost_blobs - whole)

    def _one(self, reader: SegmentReader, block: Block) -> None:
        try:
            stored = reader.stored(block)
            payload = compression.decompress(block.codec, stored, block.raw_size)
        except DamageError:
            if block.kind == KIND_ROWS:
                self._lose(block, block.first, block.last)
            elif block.kind == segment.KIND_BLOB:
                self._lost_blobs.add((block.stream, block.first))
            return
        try:
            if block.kind == KIND_ROWS:
                check_rows(block, payload)
                self.records += block.last - block.first + 1
            elif block.kind == segment.KIND_BLOB:
                ref_of(block)
                parse_chunk(block, payload)
            elif block.kind in MAPS:
                decode_map(payload)
        except DamageError:
            if block.kind == KIND_ROWS:
                self._cut_again(block, payload)
            elif block.kind == segment.KIND_BLOB:
                self._lost_blobs.add((block.stream, block.first))
            return
        self._writer.copy(block, stored)
        self._done.add(block.number)

    def _cut_again(self, block: Block, payload: Buffer) -> None:
        """The good records of a block that was written wrong, and what is between them as lost."""
        merged = bool(block.flags & segment.FLAG_MERGED)
        run: list[Record] = []
        first = expected = block.first

        def end_run() -> None:
            if run:
                self._rows(block, run, first)
                run.clear()

        with contextlib.suppress(DamageError):
            for record in walk(payload):
                if not expected <= record.sequence <= block.last:
                    continue
                good = _is_good(record)
                # Sequences that were passed over: of merged pieces they are in the record, else they are not here.
                lost = record.sequence if not good else expected - 1 if merged else record.sequence - 1
                if lost >= expected:
                    end_run()
                    self._lose(block, expected, lost)
                if good:
                    first = first if run else max(expected, lost + 1)
                    run.append(record)
                expected = record.sequence + 1
        end_run()
        if expected <= block.last:
            self._lose(block, expected, block.last)

    def _rows(self, block: Block, run: list[Record], first: int) -> None:
        low, high = step_range(record.step for record in run if record.kind == KIND_ROW)
        self._writer.append(
            KIND_ROWS, b"".join(map(pack, run)), stream=block.stream, first=first, last=run[-1].sequence,
            records=len(run), step_min=low, step_max=high, flags=block.flags | segment.FLAG_HAS_META,
        )  # fmt: skip
        self.records += run[-1].sequence - first + 1

    def _lose(self, block: Block, first: int, last: int) -> None:
        gap = {
            "episode": f"repair-{first}", "count": last - first + 1, "first": first, "last": last,
            "step_min": block.step_min, "step_max": block.step_max, "reason": "damage",
        }  # fmt: skip
        self._writer.append_map(segment.KIND_GAP, gap, stream=block.stream)
        self.lost += last - first + 1


def _is_good(record: Record) -> bool:
    try:
        decode_map(record.payload)
    except Exception:  # a value made to confuse the decoder
        return False
    return record.kind in (KIND_ROW, KIND_META, KIND_GAP, KIND_BLOB)
