"""Makes stores, runs and streams on disk without a trainer or a daemon, for whoever reads them.

    store = make_store(tmp_path)
    run = RunBuilder(store, "a41f", project="digits")
    main = run.stream()
    main.log({"loss": 0.5})              # step 0; the step counts up as `sdk.log` does
    main.finish()
    run.flush()                          # what is pending becomes one ROWS block per stream; run.seal() seals

Times are made up: stream n starts at START_NS + n seconds, a record comes every millisecond after.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sdk.files import DISK, Files
from sdk.ids import hex_u64
from sdk.record import (
    FLAG_COMMIT,
    FLAG_LATE,
    KIND_GAP,
    KIND_META,
    KIND_ROW,
    Record,
    encode_map,
    pack,
)
from sdk.segment import format as segment
from sdk.segment.format import Block, FileHeader
from sdk.segment.naming import RUNS, STORE_FILE, SegmentName, format_segment, run_path
from sdk.segment.writer import SegmentWriter, step_range

STORE_ID = bytes(range(16))
START_NS = 1_700_000_000 * 10**9
_numbers = itertools.count(1)


def make_store(path: Path | str) -> str:
    """An empty store at `path` / "store"; its path."""
    store = os.path.join(path, "store")
    os.makedirs(os.path.join(store, RUNS), mode=0o700)
    Path(store, STORE_FILE).write_text(json.dumps({"format": 1, "id": STORE_ID.hex()}), encoding="utf-8")
    return store


class Writer:
    """One writer of a run: its segments, numbered from 0. `kind` is what its META block says: daemon, spool or drain."""

    def __init__(self, run: RunBuilder, kind: str = "daemon", writer: int | None = None) -> None:
        self.run = run
        self.kind = kind
        self.id = writer or 0xA000 + next(_numbers)
        self._number = 0
        self._first_block = 0
        self._open: SegmentWriter | None = None
        self.paths: list[str] = []

    @property
    def segment(self) -> SegmentWriter:
        """The open segment; made with its META block when there is none."""
        if self._open is None:
            name = format_segment(SegmentName(self.id, self._number))
            header = FileHeader(STORE_ID, self.id, self._number, START_NS)
            path = os.path.join(self.run.directory, name)
            self._open = SegmentWriter.create(self.run.files, path, header, first_block_number=self._first_block)
            self.paths.append(path)
            writer = {"kind": self.kind, "host": "host-a", "boot_id": "boot-a", "pid": 1, "stream": None}
            self._open.append_map(segment.KIND_META, {"run": self.run.id, "writer": writer})
        return self._open

    def rows(self, stream: StreamBuilder, records: Sequence[Record] | None = None, **overrides: Any) -> Block:
        """Appends one ROWS block of these records (None: of all the stream ever made)."""
        records = stream.records if records is None else records
        step_min, step_max = step_range(r.step for r in records if r.kind == KIND_ROW)
        flags = segment.FLAG_HAS_META if any(r.kind != KIND_ROW for r in records) else 0
        if any(r.kind == KIND_ROW and not r.flags & FLAG_COMMIT for r in records):
            flags |= segment.FLAG_HAS_PIECES
        header: dict[str, Any] = {
            "stream": stream.id, "first": records[0].sequence, "last": records[-1].sequence, "records": len(records),
            "step_min": step_min, "step_max": step_max, "flags": flags,
        }  # fmt: skip
        return self.segment.append(segment.KIND_ROWS, b"".join(map(pack, records)), **{**header, **overrides})

    def meta(self, values: dict[str, Any]) -> Block:
        return self.segment.append_map(segment.KIND_META, values)

    def gap(self, stream: StreamBuilder, values: dict[str, Any]) -> Block:
        return self.segment.append_map(segment.KIND_GAP, values, stream=stream.id)

    def seal(self) -> str:
        """Seals the open segment and returns its path; the next append makes another."""
        writer = self.segment
        writer.seal()
        self._number += 1
        self._first_block = writer.next_block_number
        self._open = None
        return writer.path

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


class RunBuilder:
    """A run being made. `flush`, `seal` and `close` are those of its first writer, `daemon`."""

    def __init__(
        self, store: str, run_id: str = "a41f", *, project: str = "digits", name: str = "calm-otter-12",
        files: Files = DISK, **facts: Any,
    ) -> None:  # fmt: skip
        self.id = run_id
        self.files = files
        self.directory = run_path(store, run_id)
        self.facts = {"id": run_id, "project": project, "name": name, **facts}
        self.streams: list[StreamBuilder] = []
        files.make_directory(self.directory)
        self.daemon = Writer(self)

    def stream(self, kind: str = "main", **about: Any) -> StreamBuilder:
        """A new stream with its first META record; `about` overrides what the record says."""
        return StreamBuilder(self, kind, about)

    def flush(self) -> None:
        """Writes what every stream has pending, one block each."""
        for stream in self.streams:
            pending = stream.take()
            if pending:
                self.daemon.rows(stream, pending)

    def seal(self) -> str:
        self.flush()
        return self.daemon.seal()

    def close(self) -> None:
        self.flush()
        self.daemon.close()


class StreamBuilder:
    """One stream. `records` are all it made, `take` gives those that no flush has written yet.

    Attributes:
        step: The open step.
        time_ns: The time of the last record.
    """

    def __init__(self, run: RunBuilder, kind: str, about: dict[str, Any]) -> None:
        number = len(run.streams)
        self.id: int = about.pop("stream_id", None) or 0x5000 + next(_numbers)
        self.records: list[Record] = []
        self.step: int = about.get("first_step", 0)
        started_ns = about.get("started_ns")
        self.time_ns: int = started_ns if isinstance(started_ns, int) else START_NS + number * 10**9
        self._taken = 0
        run.streams.append(self)
        said = {
            "id": self.hex, "kind": kind, "parent": None, "continues": None, "attempt": 1, "first_step": self.step,
            "host": "host-a", "boot_id": "boot-a", "pid": 4000 + number, "rank": None, "local_rank": None,
            "world_size": None, "job_id": None, "ring": None, "started_ns": self.time_ns, "monotonic_ns": 0,
            "version": "0.1.0", **about,
        }  # fmt: skip
        self.meta({"stream": said, **({"run": run.facts} if kind == "main" else {})})

    @property
    def hex(self) -> str:
        return hex_u64(self.id)

    def _add(self, kind: int, step: int, flags: int, values: dict[str, Any]) -> Record:
        self.time_ns += 10**6
        record = Record(len(self.records) + 1, step, flags, kind, self.time_ns, encode_map(values))
        self.records.append(record)
        return record

    def log(self, values: dict[str, Any], step: int | None = None, commit: bool | None = None) -> Record:
        """As `sdk.log`, by the table in DESIGN."""
        late = step is not None and step < self.step
        if late:
            return self._add(KIND_ROW, step or 0, FLAG_LATE | FLAG_COMMIT, values)
        done = commit if commit is not None else step is None
        self.step = self.step if step is None else step
        record = self._add(KIND_ROW, self.step, FLAG_COMMIT if done else 0, values)
        self.step += done
        return record

    def meta(self, values: dict[str, Any]) -> Record:
        return self._add(KIND_META, self.step, 0, values)

    def gap(self, **values: Any) -> Record:
        """A GAP record; pass episode, count, step_min, step_max, start_ns, end_ns, reason."""
        return self._add(KIND_GAP, self.step, 0, values)

    def finish(self, state: str = "finished", exit_code: int = 0) -> Record:
        return self.meta({"end": {"state": state, "exit_code": exit_code, "time_ns": self.time_ns}})

    def take(self) -> list[Record]:
        pending = self.records[self._taken :]
        self._taken = len(self.records)
        return pending


def make_run(
    store: str,
    run_id: str = "a41f",
    values: Iterable[dict[str, Any]] = (),
    *,
    state: str | None = "finished",
    **facts: Any,
) -> RunBuilder:
    """A sealed run of one stream with one row per element; `state` None leaves it without an end."""
    about = {name: facts.pop(name) for name in ("started_ns", "host", "boot_id", "ring", "rank") if name in facts}
    config = facts.pop("config", None)
    run = RunBuilder(store, run_id, **facts)
    main = run.stream(**about)
    if config is not None:
        main.meta({"config": config})
    for row in values:
        main.log(row)
    if state is not None:
        main.finish(state)
    run.seal()
    return run
