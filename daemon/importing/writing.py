"""A run while it is imported: what a source says becomes segments, in a directory that nobody reads yet.

Life: `daemon.importing.placing.Inbox.begin` makes one; the source calls it in order; `finish` seals the segments and forces them,
and the inbox puts the directory into the store. An import that is killed leaves a directory that the next one removes.

What is written is a run like any other: streams of records and columns, blobs apart. A stream's id is made of the run's id and the
stream's name, its sequences count what the source gave. So a source that has grown, imported again, has the same sequences for
what it had before, as long as it gives that in the same order: whoever copies runs (`stepd sync`) copies only what is new.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy
from numpy.typing import NDArray

from daemon.importing.gathering import gather
from sdk import __version__, clock, platform, runfiles
from sdk.files import DISK, Files
from sdk.ids import hex_u64, random_u64
from sdk.limits import INLINE_TENSOR_BYTES_MAX, KEY_BYTES_MAX, KIB, MIB, STEP_GIVEN_MAX
from sdk.location import StoreIdentity, check_store
from sdk.record import (
    FLAG_COMMIT,
    KIND_BLOB,
    KIND_META,
    KIND_ROW,
    BlobRef,
    Record,
    StoredBlob,
    encode_blob_ref,
    encode_inline_blob,
    encode_map,
    pack,
)
from sdk.rows import flatten
from sdk.segment import format as segment_format
from sdk.segment.blobs import append_blob
from sdk.segment.columns import Group
from sdk.segment.columns import pack as pack_columns
from sdk.segment.cutting import blocks
from sdk.segment.format import FLAG_HAS_META, FLAG_MERGED, KIND_COLUMNS, KIND_ROWS, FileHeader
from sdk.segment.naming import HISTORY, MEDIA
from sdk.segment.windows import tell_windows
from sdk.segment.writer import SegmentWriter
from sdk.values import plain
from sdk.values.blobs import Blob

MAIN, CONSOLE, SYSTEM = "main", "console", "system"
# Rows that come as columns are a stream of their own beside that of the other rows of an attempt: each has sequences that stay the same
# when both grow.
_COLUMNS = "columns"
# Invariant: of two streams of an attempt that begin at the same time the one with the higher id stands behind the other in its lane, so
# that what a resume hides, which the other one says, is nothing of its own attempt.
_COLUMNS_BIT = 1 << 63
# Limit: rows wait for so much before they become a block, and values for so many before they become columns.
_BLOCK_BYTES = 1 * MIB
_POINTS_MAX = 1 << 17
_REMARKS_MAX, _REMARK_CHARACTERS_MAX = 10, 1000
_BEYOND = "values at steps below 0 or above 2**62"
_SEGMENT_BYTES = {HISTORY: 64 * MIB, MEDIA: 256 * MIB}
# Limit: as of one call of `log` (`sdk.journal.large`).
_INLINE_BYTES_MAX = 256 * KIB


def stream_id(run_id: str, name: str) -> int:
    """The id of a stream of an imported run: the same whenever it is imported."""
    digest = hashlib.sha256(f"import\0{run_id}\0{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little") % _COLUMNS_BIT or 1


class ImportedRun:
    """Takes what a source says of one run. One thread; memory holds a megabyte of rows, whatever the run's size.

    Times are Unix time in nanoseconds, in columns in microseconds, as the source has them. Steps are 0 to 2**62; a row with another
    one is left out and counted.

    Attributes:
        id: The run's.
        directory: Where it is written now.
        lost: What the store cannot hold as it was -> how often; a source adds its own.
        told: Remarks: why something was lost, and what is no loss.
        points: Values that were written.
        streams: The ids of its streams, as text.
    """

    def __init__(self, store: StoreIdentity, run_id: str, directory: str, files: Files = DISK) -> None:
        """Writes nothing yet."""
        self.id = run_id
        self.directory = directory
        self.lost: Counter[str] = Counter()
        self.told: list[str] = []
        self.points = 0
        self.streams: list[str] = []
        self._files = files
        self._history = _Files(files, store, run_id, directory, HISTORY)
        self._media = _Files(files, store, run_id, directory, MEDIA)
        self._open: dict[str, _Stream] = {}
        self._waiting: list[Mapping[str, Any]] = []
        self._attempts = self._started_ns = 0
        self._about: dict[str, Any] = {}
        self._lines = self._samples = 0

    # ---- what a source calls

    def remark(self, text: str) -> None:
        """Something to be told; the first few are."""
        text = text[:_REMARK_CHARACTERS_MAX]
        if text not in self.told and len(self.told) < _REMARKS_MAX:
            self.told.append(text)

    def facts(self, facts: Mapping[str, Any]) -> None:
        """Facts about the run: "run", "config", "summary", "metric", "context", … as of docs/segment.md#meta.

        Values must be plain, as `sdk.values.plain` makes them.
        """
        if MAIN in self._open:
            self._open[MAIN].tell(facts)
        else:
            self._waiting.append(dict(facts))

    def attempt(
        self, name: str, started_ns: int, *, hide_from: int | None = None, about: Mapping[str, Any] | None = None
    ) -> None:
        """What comes next is a stream of its own, which goes on with the one before: a file of several, or a training that resumed.

        Without a call the first row begins a stream called "main".

        Args:
            name: Unique in the run, and the same in every import.
            hide_from: Rows of earlier streams from this step on are hidden.
            about: More facts about the stream: host, pid, rank, …
        """
        before = self._open.get(MAIN)
        self._end_attempt("finished", 0)
        self._open.pop(MAIN, None)
        self._open.pop(_COLUMNS, None)
        self._attempts += 1
        self._about, self._started_ns = {**(about or {}), "attempt": self._attempts}, started_ns
        told = dict(self._about)
        if before is not None:
            told["continues"] = hex_u64(before.id)
        stream = self._begin(MAIN, stream_id(self.id, name), started_ns, told)
        if before is not None and hide_from is not None:
            stream.tell({"hide": {"attempt": self._attempts, "from_step": max(hide_from, 0)}})

    def row(self, step: int, time_ns: int, values: Mapping[str, Any]) -> None:
        """One row, or a piece of one: what `log()` takes. A value that cannot be stored is left out and counted."""
        if not 0 <= step <= STEP_GIVEN_MAX:
            self.lost[_BEYOND] += len(values)
            return
        self._main(time_ns).row(step, time_ns, values)

    def rows(self, steps: NDArray[numpy.int64], times_us: NDArray[numpy.int64], values: Mapping[str, Any]) -> None:
        """Rows that hold the same keys.

        Args:
            steps: int64[n], `times_us` int64[n].
            values: Key to n values: float64, float32, int64, uint64, bool arrays or a list of str.
        """
        good = (steps >= 0) & (steps <= STEP_GIVEN_MAX)
        if not good.all():
            self.lost[_BEYOND] += int((~good).sum()) * len(values)
            chosen = numpy.flatnonzero(good)
            values = {key: _taken(column, chosen) for key, column in values.items()}
            steps, times_us = steps[chosen], times_us[chosen]
        if len(steps):
            self._columns(int(times_us[0]) * 1000).rows(steps, times_us, values)

    def points_of(
        self,
        keys: Sequence[str],
        which: NDArray[numpy.int64],
        steps: NDArray[numpy.int64],
        times_us: NDArray[numpy.int64],
        values: NDArray[Any],
    ) -> None:
        """Values one by one in the order in which they were written; rows are made of those of one step (`gathering.gather`)."""
        good = (steps >= 0) & (steps <= STEP_GIVEN_MAX)
        long = [index for index, key in enumerate(keys) if len(key.encode("utf-8", "surrogatepass")) > KEY_BYTES_MAX]
        if long:
            named = ~numpy.isin(which, long)
            self.lost[f"values whose name has more than {KEY_BYTES_MAX} bytes"] += int((good & ~named).sum())
            good &= named
        if not good.all():
            beyond = int(((steps < 0) | (steps > STEP_GIVEN_MAX)).sum())
            if beyond:
                self.lost[_BEYOND] += beyond
            which, steps, times_us, values = which[good], steps[good], times_us[good], values[good]
        for start in range(0, len(which), _POINTS_MAX):
            cut = slice(start, start + _POINTS_MAX)
            stream = self._columns(int(times_us[start]) * 1000)
            stream.gathered(keys, which[cut], steps[cut], times_us[cut], values[cut])

    def line(self, time_ns: int, text: str, source: str = "stdout", **more: Any) -> None:
        """A line of the console (docs/console.md#rows)."""
        self._side(CONSOLE, time_ns).row(self._lines, time_ns, {"text": text, "from": source, **more})
        self._lines += 1

    def sample(self, time_ns: int, values: Mapping[str, float]) -> None:
        """A sample of the machine (docs/system.md)."""
        self._side(SYSTEM, time_ns).row(self._samples, time_ns, values)
        self._samples += 1

    def file(self, name: str, source: str | bytes) -> None:
        """A file of the run, copied from a path or from its bytes; one that cannot be taken is counted."""
        place = runfiles.files_path(self.directory)
        try:
            if isinstance(source, bytes):
                runfiles.put_bytes(place, name, source, self._files)
            else:
                runfiles.copy_in(source, place, name, self._files)
        except (OSError, ValueError) as error:
            self.lost["files that could not be copied"] += 1
            self.remark(f"{name!r}: {error}")

    def end(self, state: str = "finished", exit_code: int = 0, error: Mapping[str, Any] | None = None) -> None:
        """How the run ended: "finished", "failed", "interrupted"; without a call: finished."""
        self._main(0)
        self._end_attempt(state, exit_code, error)

    # ---- its end

    def finish(self, about: Mapping[str, Any]) -> None:
        """Seals everything and forces it to the disk.

        Args:
            about: What the run's context says of the import, beside what this knows.
        """
        self._main(0).tell({"context": {"import": {**about, "streams": self.streams, "lost": dict(self.lost)}}})
        for stream in self._open.values():
            stream.end("finished", 0)
            stream.flush()
        # As if they had been written when the run was: how long it lasted, and how old it is, is told by its files.
        ended = max(stream.time_ns for stream in self._open.values()) / 1e9
        for kind in (self._media, self._history):
            kind.end()
            kind.look_old(ended)
        self._files.sync_directory(self.directory)

    def abandon(self) -> None:
        """Closes what is open, after trouble."""
        for files in (self._media, self._history):
            files.abandon()

    # ---- streams

    def _end_attempt(self, state: str, exit_code: int, error: Mapping[str, Any] | None = None) -> None:
        for name in (MAIN, _COLUMNS):
            if name in self._open:
                self._open[name].end(state, exit_code, error)

    def _main(self, time_ns: int) -> _Stream:
        if MAIN not in self._open:
            self.attempt(MAIN, time_ns or clock.wall_ns())
        return self._open[MAIN]

    def _columns(self, time_ns: int) -> _Stream:
        if _COLUMNS not in self._open:
            main = self._main(time_ns)
            about = {**self._about, "continues": hex_u64(main.id)}
            self._begin(MAIN, main.id | _COLUMNS_BIT, self._started_ns, about, place=_COLUMNS)
        return self._open[_COLUMNS]

    def _side(self, kind: str, time_ns: int) -> _Stream:
        return (
            self._open[kind]
            if kind in self._open
            else self._begin(kind, stream_id(self.id, kind), time_ns, {"rank": 0})
        )

    def _begin(
        self, kind: str, number: int, started_ns: int, about: Mapping[str, Any], *, place: str | None = None
    ) -> _Stream:
        place = place or kind
        stream = self._open[place] = _Stream(self, number, kind)
        self.streams.append(hex_u64(stream.id))
        stream.time_ns = started_ns
        told = {**about, "kind": kind, "id": hex_u64(stream.id), "started_ns": started_ns, "version": __version__}
        stream.tell({"stream": told})
        if place == MAIN:
            waiting, self._waiting = self._waiting, []
            for facts in waiting:
                stream.tell(facts)
        return stream


class _Stream:
    """One stream of an imported run.

    Attributes:
        time_ns: The latest time that was given; facts are told at it.
    """

    def __init__(self, run: ImportedRun, number: int, kind: str) -> None:
        self.id = number
        self.kind = kind
        self.time_ns = 0
        self._run = run
        self._sequence = 0
        self._step = 0
        self._blobs = self._inline = 0
        self._has_ended = False
        self._records: list[bytes] = []
        self._records_bytes = 0
        self._steps: list[int] = []
        self._keys: dict[str, int] = {}
        self._flags = 0

    def tell(self, facts: Mapping[str, Any]) -> None:
        self._flags |= FLAG_HAS_META
        self._add(KIND_META, self._step, 0, self.time_ns, encode_map(dict(facts)))

    def end(self, state: str, exit_code: int, error: Mapping[str, Any] | None = None) -> None:
        if not self._has_ended:
            if error is not None:
                self.tell({"error": dict(error)})
            self.tell({"end": {"state": state, "exit_code": exit_code, "time_ns": self.time_ns}})
            self.flush()
        self._has_ended = True

    def row(self, step: int, time_ns: int, values: Mapping[str, Any]) -> None:
        self._inline = 0
        self.time_ns = max(self.time_ns, time_ns)

        def put(blob: Blob, key: str) -> object:
            return self._put(blob, key, step, time_ns)

        made, bad = plain(values, keep_going=True, put=put)
        for why in bad.values():
            self._run.lost["values that cannot be stored"] += 1
            self._run.remark(why)
        if not made:
            return
        for key in flatten(made):
            self._keys[key] = self._keys.get(key, 0) + 1
        if self.kind == MAIN:
            self._run.points += len(made)
        self._add(KIND_ROW, step, FLAG_COMMIT, time_ns, encode_map(made))

    def _put(self, blob: Blob, key: str, step: int, time_ns: int) -> object:
        """Stores a blob before the row that holds it; what stands in the row for it."""
        data = blob.view()
        if blob.size <= INLINE_TENSOR_BYTES_MAX and self._inline + blob.size <= _INLINE_BYTES_MAX:
            self._inline += blob.size
            return encode_inline_blob(StoredBlob(bytes(data), blob.meta))
        self._blobs += 1
        ref = BlobRef(self.id, self._blobs, blob.size)
        append_blob(self._run._media.open(), ref, data, {**blob.meta, "key": key, "step": step})
        announced = {"n": ref.number, "size": ref.size, "key": key, "meta": blob.meta}
        self._flags |= FLAG_HAS_META
        self._add(KIND_BLOB, step, 0, time_ns, encode_map(announced))
        return encode_blob_ref(ref)

    def _add(self, kind: int, step: int, flags: int, time_ns: int, payload: bytes) -> None:
        self._sequence += 1
        if kind == KIND_ROW:
            self._step = step
        self._steps.append(step)
        self._records.append(pack(Record(self._sequence, step, flags, kind, time_ns, payload)))
        self._records_bytes += len(payload)
        if self._records_bytes >= _BLOCK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Makes a block of the records that wait."""
        if not self._records:
            return
        records, steps, keys, flags = self._records, self._steps, self._keys, self._flags
        self._records, self._steps, self._keys, self._flags, self._records_bytes = [], [], {}, 0, 0
        self._run._history.open().append(
            KIND_ROWS, b"".join(records), stream=self.id, first=self._sequence - len(records) + 1, last=self._sequence,
            records=len(records), step_min=min(steps), step_max=max(steps), flags=flags, keys=keys,
        )  # fmt: skip

    def rows(self, steps: NDArray[numpy.int64], times_us: NDArray[numpy.int64], values: Mapping[str, Any]) -> None:
        count = len(steps)
        sequence = numpy.arange(self._sequence + 1, self._sequence + count + 1, dtype=numpy.uint64)
        flags = numpy.full(count, FLAG_COMMIT, numpy.uint8)
        self._window([Group(sequence, steps, times_us, flags, dict(values))], count, is_merged=False)
        self._run.points += count * len(values)
        self.time_ns = max(self.time_ns, int(times_us.max()) * 1000)
        self._step = int(steps[-1])

    def gathered(
        self,
        keys: Sequence[str],
        which: NDArray[numpy.int64],
        steps: NDArray[numpy.int64],
        times_us: NDArray[numpy.int64],
        values: NDArray[Any],
    ) -> None:
        made = gather(keys, which, steps, times_us, values, self._sequence + 1)
        if made.replaced:
            self._run.lost["values whose key and step came again"] += made.replaced
        self._window(made.groups, len(which), is_merged=made.steps < len(which))
        self._run.points += len(which) - made.replaced
        self.time_ns = max(self.time_ns, int(times_us.max()) * 1000)
        self._step = int(steps[-1])

    def _window(self, groups: Iterable[Group], count: int, *, is_merged: bool) -> None:
        """Writes the next so many sequences as columns."""
        self.flush()
        segment = self._run._history.open()
        first, self._sequence = self._sequence + 1, self._sequence + count
        for some in blocks(groups):
            packed = pack_columns(some)
            segment.append(
                KIND_COLUMNS, packed.parts, stream=self.id, first=first, last=self._sequence, records=packed.records,
                step_min=packed.step_min, step_max=packed.step_max, flags=FLAG_MERGED if is_merged else 0,
                keys=packed.keys, compress=False,
            )  # fmt: skip


class _Files:
    """The segments of one kind, which roll between two blocks."""

    def __init__(self, files: Files, store: StoreIdentity, run_id: str, directory: str, holds: str) -> None:
        self._files = files
        self._store = store
        self._opening = {"run": run_id, "writer": {"kind": "import", **platform.identity()}}
        self._directory = directory
        self._holds = holds
        self._writer = random_u64()
        self._number = self._next_block = 0
        self._segment: SegmentWriter | None = None
        self._paths: list[str] = []

    def open(self) -> SegmentWriter:
        """The segment that takes what comes next."""
        if self._segment is not None and self._segment.size >= _SEGMENT_BYTES[self._holds]:
            self.end()
        if self._segment is None:
            check_store(self._store, self._files)
            header = FileHeader(self._store.id, self._writer, self._number, clock.wall_ns())
            self._segment, number = SegmentWriter.begin(
                self._files, self._directory, header, [(segment_format.KIND_META, self._opening)],
                first_block_number=self._next_block, holds=self._holds,
            )  # fmt: skip
            self._number = number + 1
            self._paths.append(self._segment.path)
        return self._segment

    def end(self) -> None:
        """Seals the open segment and forces it."""
        segment = self._segment
        if segment is None:
            return
        told = tell_windows(segment.blocks)
        if told:
            segment.append_map(segment_format.KIND_META, {"windows": told, "replaces": [], "ended_ns": clock.wall_ns()})
        segment.seal(close=False)
        segment.sync()
        self._next_block = segment.next_block_number
        self._segment = None
        segment.close()

    def look_old(self, seconds: float) -> None:
        """Gives what was written the age of what is in it."""
        for path in self._paths:
            with contextlib.suppress(OSError, ValueError, OverflowError):
                self._files.set_modified(path, seconds)

    def abandon(self) -> None:
        segment, self._segment = self._segment, None
        if segment is not None:
            with contextlib.suppress(OSError):
                segment.close()


def _taken(column: Any, places: NDArray[numpy.int64]) -> Any:
    return column[places] if isinstance(column, numpy.ndarray) else [column[place] for place in places.tolist()]
