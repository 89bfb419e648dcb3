"""Writes what can be saved of a damaged segment into a new one, and moves the old file to the run's `aside/`.

Good blocks are copied as they are. Of a block whose checksum is right but whose records are not, the good records are
kept. A block whose checksum is wrong proves nothing of what it holds: it becomes a GAP that names its sequences. Columns have
checksums of their own: of a window each that is good is kept (`sdk.segment.salvage_window`). Of large
values each chunk is kept that is good, since another file may hold the rest; who lacks some tells `daemon.store.repair`,
which knows all files of the run. The new segment says which one it replaces, so that a reader does not miss the old one's blocks.

The caller has proved that nobody writes the segment any more. Killed at any point, both files are there (which is
harmless: rows merge by sequence) or only a draft more, which the next run removes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .. import compression
from ..errors import DamageError
from ..files import Buffer, Files
from ..ids import hex_u64
from ..record import KIND_BLOB, KIND_GAP, KIND_META, KIND_ROW, Record, decode_map, pack, walk
from . import format as segment
from .blobs import parse_chunk, ref_of, whole_blobs
from .check import MAPS, check_rows, check_segment, windows_told
from .format import KIND_ROWS, Block, FileHeader
from .naming import ASIDE, HISTORY, SegmentName, format_segment, parse_segment
from .reader import SegmentReader
from .recovery import set_aside
from .salvage_window import Salvage, lost_sequences
from .windows import is_window, range_of, read_window, tell_windows, windows
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
        lost_values: Values that cannot be read of rows that are there.
    """

    path: str
    aside: str | None
    records: int
    lost: int
    blobs: int = 0
    lost_blobs: int = 0
    lost_values: int = 0


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
        copy = _Copy(writer, lambda name: files.exists(os.path.join(directory, format_segment(name))))
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
    return Repaired(target, aside, copy.records, copy.lost, *copy.blobs(), copy.lost_values)


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
    """The new segment while it is written. `is_there`: whether a segment has its place among those that are read."""

    def __init__(self, writer: SegmentWriter, is_there: Callable[[SegmentName], bool]) -> None:
        self._writer = writer
        self._is_there = is_there
        self._holds = HISTORY
        self._done: set[int] = set()
        self._lost_blobs: set[tuple[int, int]] = set()
        self._told: dict[str, Any] | None = None
        self.records = 0
        self.lost = 0
        self.lost_values = 0

    def head(self, name: SegmentName | None, run_id: str, origin: Mapping[str, Any]) -> None:
        """What the new segment says about itself."""
        replaces = [[hex_u64(name.writer), name.number]] if name is not None else []
        self._holds = name.holds if name is not None else HISTORY
        self._writer.append_map(segment.KIND_META, {"run": run_id, "writer": dict(origin), "replaces": replaces})

    def all_of(self, reader: SegmentReader) -> None:
        if reader.seal is not None and reader.seal.claims:
            streams = {hex_u64(claim.stream): [claim.last, claim.step] for claim in reader.seal.claims}
            self._writer.append_map(segment.KIND_CHECKPOINT, {"streams": streams})
        told, members = windows_told(reader), windows(reader.blocks)
        for block in reader.blocks:
            if is_window(block):
                where = range_of(block)
                if where in members:
                    self._window(reader, members.pop(where), told.pop(where, None))
            elif block.kind not in _REBUILT and block.number not in self._done:
                self._one(reader, block)
        for stream, first, last in told:
            self._lose(stream, (first, last), (0, 0))
        if self._told is not None or any(map(is_window, self._writer.blocks)):
            told_now = {**(self._told or {}), "windows": tell_windows(self._writer.blocks)}
            self._writer.append_map(segment.KIND_META, told_now)

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
                self._lose(block.stream, (block.first, block.last), (block.step_min, block.step_max))
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
            elif block.kind == segment.KIND_META and self._tells(decode_map(payload)):
                return
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
                    self._lose(block.stream, (expected, lost), (block.step_min, block.step_max))
                if good:
                    first = first if run else max(expected, lost + 1)
                    run.append(record)
                expected = record.sequence + 1
        end_run()
        if expected <= block.last:
            self._lose(block.stream, (expected, block.last), (block.step_min, block.step_max))

    def _rows(self, block: Block, run: list[Record], first: int) -> None:
        low, high = step_range(record.step for record in run if record.kind == KIND_ROW)
        self._writer.append(
            KIND_ROWS, b"".join(map(pack, run)), stream=block.stream, first=first, last=run[-1].sequence,
            records=len(run), step_min=low, step_max=high, flags=block.flags | segment.FLAG_HAS_META,
        )  # fmt: skip
        self.records += run[-1].sequence - first + 1

    def _tells(self, values: dict[str, Any]) -> bool:
        """Writes what a rewriting said about itself as it is true of the new segment; False: it said nothing.

        What it replaced and is still there is not replaced any more: the new segment may hold less.
        """
        if not {"replaces", "windows"} & values.keys():
            return False
        replaces = values["replaces"] if isinstance(values.get("replaces"), list) else []
        values["replaces"] = [entry for entry in replaces if not self._is_read(entry)]
        if values.pop("windows", None) is not None:
            self._told = values  # they are counted when all are written
        else:
            self._writer.append_map(segment.KIND_META, values)
        return True

    def _is_read(self, entry: Any) -> bool:
        with contextlib.suppress(ValueError, TypeError):
            writer, number = entry
            return self._is_there(SegmentName(int(writer, 16), int(number), self._holds))
        return False

    def _window(self, reader: SegmentReader, blocks: list[Block], expected: int | None) -> None:
        contents = read_window(reader, blocks, expected)
        if not contents.troubles:
            for block in blocks:
                self._writer.copy(block, reader.stored(block))
            self.records += blocks[0].last - blocks[0].first + 1
            return
        salvage = Salvage(contents)
        for span in salvage.kept:
            salvage.write(self._writer, span)
            self.records += span[1] - span[0] + 1
        for gap in salvage.gaps():
            self._writer.append_map(segment.KIND_GAP, gap, stream=blocks[0].stream)
        self.lost += contents.lost
        self.lost_values += salvage.lost_values

    def _lose(self, stream: int, sequences: tuple[int, int], steps: tuple[int, int]) -> None:
        self._writer.append_map(segment.KIND_GAP, lost_sequences(sequences, steps), stream=stream)
        self.lost += sequences[1] - sequences[0] + 1


def _is_good(record: Record) -> bool:
    try:
        decode_map(record.payload)
    except Exception:  # a value made to confuse the decoder
        return False
    return record.kind in (KIND_ROW, KIND_META, KIND_GAP, KIND_BLOB)
