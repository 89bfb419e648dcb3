"""This daemon's segments of one run: a fresh one at the start, the next at 8 MiB, sealed at the end.

A segment is sealed and forced to the disk by the syncer's thread, which then closes it; everything else happens in the
server's thread. The first failed fsync makes a segment suspect: it is sealed as it is, never synced again, and what
comes next goes into a new one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

from daemon.pipeline.coalesce import Payload
from sdk import clock
from sdk.files import Files
from sdk.ids import hex_u64
from sdk.limits import SEGMENT_ROWS_BYTES
from sdk.location import StoreIdentity
from sdk.segment.format import KIND_CHECKPOINT, KIND_GAP, KIND_META, KIND_ROWS, FileHeader
from sdk.segment.naming import SegmentName, format_segment, run_path
from sdk.segment.writer import SegmentWriter


class RunWriter:
    """Where the rows of one run go.

    Attributes:
        written: Stream to the last sequence that is written; what the CHECKPOINT of the next segment says.
        retired: Segments that were sealed and wait for the syncer to force and close them, each with what is safe then:
            `written` as it was.
        dirty: Something was written since the syncer was last asked.
    """

    def __init__(
        self, files: Files, store: StoreIdentity, run_id: str, writer: int, origin: Mapping[str, Any], number: int = 0
    ) -> None:
        self.run_id = run_id
        self._files = files
        self._store = store
        self._writer = writer
        self._origin = dict(origin)
        self.directory = run_path(store.path, run_id)
        self._number = number
        self._next_block = 0
        self.segment: SegmentWriter | None = None
        self.retired: list[tuple[SegmentWriter, dict[int, int]]] = []
        self.written: dict[int, int] = {}
        self.dirty = False
        self.records = 0
        self.bytes = 0

    @property
    def next_number(self) -> int:
        """The number that this writer's next segment of the run gets."""
        return self._number

    def append(self, stream: int, payload: Payload) -> None:
        """Writes one ROWS block.

        Raises:
            OSError: Nothing of it is stored; the segment is usable again or replaced by the next call.
        """
        segment = self._open()
        before = segment.size
        segment.append(
            KIND_ROWS,
            payload.raw,
            stream=stream,
            first=payload.first,
            last=payload.last,
            records=payload.records,
            step_min=payload.step_min,
            step_max=payload.step_max,
            flags=payload.flags,
            keys=payload.keys,
        )
        self.dirty = True
        self.written[stream] = max(payload.last, self.written.get(stream, 0))
        self.records += payload.last - payload.first + 1
        self.bytes += segment.size - before
        if segment.size >= SEGMENT_ROWS_BYTES:
            self.roll()

    def append_gap(self, stream: int, gap: Mapping[str, Any]) -> None:
        """Writes a GAP block: something is missing, and this is what is known of it."""
        self._open().append_map(KIND_GAP, gap, stream=stream)
        self.dirty = True

    def _open(self) -> SegmentWriter:
        if self.segment is None:
            self._files.make_directory(self.directory)
            path = os.path.join(self.directory, format_segment(SegmentName(self._writer, self._number)))
            header = FileHeader(self._store.id, self._writer, self._number, clock.wall_ns())
            segment = SegmentWriter.create(self._files, path, header, first_block_number=self._next_block)
            self._number += 1
            try:
                segment.append_map(KIND_META, {"run": self.run_id, "writer": self._origin})
                if self.written:
                    streams = {hex_u64(stream): [last] for stream, last in self.written.items()}
                    segment.append_map(KIND_CHECKPOINT, {"streams": streams})
            except BaseException:
                # Without its META block nobody could say whose it is, and recovery would leave it alone for ever.
                segment.close()
                with contextlib.suppress(OSError):
                    self._files.remove(path)
                raise
            self.segment = segment
        return self.segment

    def roll(self) -> None:
        """Seals the current segment; the next append opens another. Trouble leaves it unsealed, for recovery."""
        segment = self._seal()
        if segment is not None:
            self.retired.append((segment, dict(self.written)))
            self.dirty = False

    def give_up(self) -> None:
        """As `roll`, after an fsync that failed: the segment is closed as it is and never forced again."""
        segment = self._seal()
        if segment is not None:
            with contextlib.suppress(OSError):
                segment.close()

    def _seal(self) -> SegmentWriter | None:
        segment, self.segment = self.segment, None
        if segment is not None:
            with contextlib.suppress(OSError):
                segment.seal(close=False)
            self._next_block = segment.next_block_number
        return segment
