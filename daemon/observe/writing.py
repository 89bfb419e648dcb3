"""The stream of what was observed of one run: its facts and rows, in segments of its own.

A writer like a spooling trainer (`sdk._spool`): a random id, in whose name the segments are made, sealed when the run has
ended, mended by a daemon when the observer was killed. The run's directory is never made: a run that was removed stays so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from sdk import __version__, clock, platform
from sdk.files import Files, sync_names
from sdk.ids import hex_u64, random_u64
from sdk.limits import MIB
from sdk.location import StoreIdentity, check_store
from sdk.record import FLAG_COMMIT, KIND_META, KIND_ROW, Record, encode_map, pack
from sdk.segment import format as segment_format
from sdk.segment.format import FileHeader
from sdk.segment.naming import RUN_LEVELS, mark_suspect, run_path
from sdk.segment.writer import SegmentWriter

KIND = "system"
# A day of a node with eight GPUs takes about 30 MiB as rows; columns are made of it piece by piece, of sealed segments.
SEGMENT_BYTES = 4 * MIB
FORCE_SECONDS = 60.0


class SystemStream:
    """One stream of kind "system". One thread; raises `OSError` where the disk refuses, and nothing is half stored then.

    Attributes:
        id: The stream's.
        records: How many are stored.
    """

    def __init__(self, files: Files, store: StoreIdentity, run_id: str, first_step: int = 0) -> None:
        self._files = files
        self._store = store
        self._run_id = run_id
        self._writer = random_u64()
        self.id = random_u64()
        self.directory = run_path(store.path, run_id)
        self._segment: SegmentWriter | None = None
        self._number = self._next_block = 0
        self._step = first_step
        self._forced_at = clock.monotonic()
        self._is_dirty = False
        self.records = 0

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Stores the stream's first record: who observes, where; `facts` are more of that."""
        about = {
            "kind": KIND, "id": hex_u64(self.id), **platform.identity(), "started_ns": clock.wall_ns(),
            "version": __version__, **facts,
        }  # fmt: skip
        self.tell({"stream": about})

    def tell(self, facts: Mapping[str, Any]) -> None:
        """Stores facts about the run or this stream (docs/segment.md#meta)."""
        self._append(KIND_META, 0, facts, segment_format.FLAG_HAS_META, None)

    def add(self, row: Mapping[str, float]) -> None:
        """Stores a row at the step that is one above the last one's."""
        self._append(KIND_ROW, FLAG_COMMIT, row, 0, dict.fromkeys(row, 1))
        self._step += 1

    def _append(
        self,
        kind: int,
        record_flags: int,
        values: Mapping[str, Any],
        block_flags: int,
        keys: dict[str, int] | None,
    ) -> None:
        sequence = self.records + 1
        # Facts stand at the last row's step: whoever goes on with the stream goes on above what its blocks say.
        step = self._step if kind == KIND_ROW else max(self._step - 1, 0)
        record = Record(sequence, step, record_flags, kind, clock.wall_ns(), encode_map(dict(values)))
        segment = self._open()
        segment.append(
            segment_format.KIND_ROWS,
            pack(record),
            stream=self.id,
            first=sequence,
            last=sequence,
            records=1,
            step_min=step,
            step_max=step,
            flags=block_flags,
            keys=keys or {},
        )
        self.records, self._is_dirty = sequence, True
        if segment.size >= SEGMENT_BYTES:
            self.roll()

    def _open(self) -> SegmentWriter:
        if self._segment is None:
            check_store(self._store, self._files)
            header = FileHeader(self._store.id, self._writer, self._number, clock.wall_ns())
            origin = {"kind": "observer", **platform.identity(), "stream": hex_u64(self.id)}
            opening = [(segment_format.KIND_META, {"run": self._run_id, "writer": origin})]
            self._segment, number = SegmentWriter.begin(
                self._files, self.directory, header, opening, first_block_number=self._next_block
            )
            self._number = number + 1
        return self._segment

    @property
    def is_there(self) -> bool:
        """Whether the file that is written to is still in the run's directory: the run may have been removed."""
        return self._files.exists(self._segment.path if self._segment is not None else self.directory)

    def force(self, now: float) -> None:
        """Forces what was written to the disk, at most once in `FORCE_SECONDS`."""
        if not self._is_dirty or self._segment is None or now - self._forced_at < FORCE_SECONDS:
            return
        self._forced_at = now
        self._force(self._segment)

    def _force(self, segment: SegmentWriter) -> None:
        self._is_dirty = False
        try:
            segment.sync()
            sync_names(self._files, self.directory, RUN_LEVELS)
        except OSError:
            # Nobody asks this file again and believes the answer (ARCHITECTURE.md: a failed fsync is final).
            mark_suspect(self._files, segment.path)
            self._segment, self._next_block = None, segment.next_block_number
            with contextlib.suppress(OSError):
                segment.close()
            raise

    def roll(self, *, sync: bool = True) -> None:
        """Seals the segment, and forces it unless told not to; the next record begins another one."""
        segment, self._segment = self._segment, None
        if segment is None:
            return
        try:
            segment.seal(close=False)
            if sync:
                self._force(segment)
        finally:
            self._next_block = segment.next_block_number
            with contextlib.suppress(OSError):
                segment.close()

    def abandon(self) -> None:
        """Closes what is open, without a further word to the disk."""
        segment, self._segment = self._segment, None
        if segment is not None:
            with contextlib.suppress(OSError):
                segment.close()
