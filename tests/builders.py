"""Makes stores, runs and streams on disk without a trainer or a daemon, for whoever reads them.

    store = make_store(tmp_path)
    run = RunBuilder(store, "a41f", project="digits")
    main = run.stream()
    main.log({"loss": 0.5})              # step 0; the step counts up as `sdk.log` does
    main.finish()
    run.flush()                          # what is pending becomes one ROWS block per stream; run.seal() seals
    compact(run)                         # what was written becomes columns

Times are made up: stream n starts at START_NS + n seconds, a record comes every millisecond after.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy

from sdk.files import DISK, Files
from sdk.ids import hex_u64
from sdk.record import (
    FLAG_COMMIT,
    FLAG_LATE,
    KIND_GAP,
    KIND_META,
    KIND_ROW,
    Record,
    decode_map,
    encode_map,
    pack,
)
from sdk.rows import Piece, merge
from sdk.segment import format as segment
from sdk.segment.columns import Group
from sdk.segment.columns import pack as columns_pack
from sdk.segment.format import Block, FileHeader
from sdk.segment.naming import HISTORY, RUNS, STORE_FILE, SegmentName, format_segment, parse_segment, run_path
from sdk.segment.windows import tell_windows
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
        taken: How many of `records` were written.
    """

    def __init__(self, run: RunBuilder, kind: str, about: dict[str, Any]) -> None:
        number = len(run.streams)
        self.id: int = about.pop("stream_id", None) or 0x5000 + next(_numbers)
        self.records: list[Record] = []
        self.step: int = about.get("first_step", 0)
        started_ns = about.get("started_ns")
        self.time_ns: int = started_ns if isinstance(started_ns, int) else START_NS + number * 10**9
        self.taken = 0
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
        pending = self.records[self.taken :]
        self.taken = len(self.records)
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


# ---- columns


def compact(run: RunBuilder, *, window: int = 1000, keep: bool = False, indexed: bool = True) -> str:
    """Rewrites all that a run's streams have written so far into one sealed segment of columns; its path.

    As simply as can be, record by record; `daemon.compact` does it for real.

    Args:
        window: Sequences in a window.
        keep: The segments that it replaces stay.
        indexed: Let its index tell the keys.
    """
    old = {name: one for name in os.listdir(run.directory) if (one := parse_segment(name)) and one.holds == HISTORY}
    name = SegmentName(0xC000 + next(_numbers), 0)
    final = os.path.join(run.directory, format_segment(name))
    header = FileHeader(STORE_ID, name.writer, name.number, START_NS)
    writer = SegmentWriter.create(run.files, final + ".draft", header)
    writer.append_map(segment.KIND_META, {"run": run.id, "writer": {"kind": "rewrite"}})
    for stream in run.streams:
        written = stream.records[: stream.taken]
        for start in range(0, len(written), window):
            _append_window(writer, stream, written[start : start + window], indexed)
    replaced = [[hex_u64(one.writer), one.number] for one in old.values()]
    told = {"replaces": replaced, "ended_ns": START_NS, "windows": tell_windows(writer.blocks)}
    writer.append_map(segment.KIND_META, told)
    writer.seal()
    os.rename(final + ".draft", final)
    for entry in old if not keep else ():
        os.remove(os.path.join(run.directory, entry))
    return final


def _append_window(writer: SegmentWriter, stream: StreamBuilder, records: Sequence[Record], indexed: bool) -> None:
    rows = [record for record in records if record.kind == KIND_ROW]
    facts = [record for record in records if record.kind != KIND_ROW]
    pieces = merge(Piece(r.sequence, r.step, r.flags, r.time_ns, decode_map(r.payload, tensors=False)) for r in rows)
    flags = segment.FLAG_MERGED if len(pieces) < len(rows) else 0
    where = {"stream": stream.id, "first": records[0].sequence, "last": records[-1].sequence}
    block: list[Group] = []
    for group in [*groups_of(pieces), None]:
        if block and (group is None or sum(g.columns for g in [*block, group]) > segment.COLUMNS_MAX):
            packed = columns_pack(block)
            head = {"records": packed.records, "step_min": packed.step_min, "step_max": packed.step_max, **where}
            keys = packed.keys if indexed else None
            writer.append(segment.KIND_COLUMNS, packed.parts, flags=flags, keys=keys, compress=False, **head)
            block = []
        block += [group] if group is not None else []
    if facts:
        flags |= segment.FLAG_WINDOW | segment.FLAG_HAS_META
        raw = b"".join(map(pack, facts))
        writer.append(segment.KIND_ROWS, raw, records=len(facts), flags=flags, keys={}, **where)


def groups_of(pieces: Sequence[Piece]) -> list[Group]:
    """Groups of columns that hold these rows: keys that are in the same rows, with the same type, stand together."""
    pieces = sorted(pieces, key=lambda piece: piece.sequence)
    places: dict[tuple[str, str], list[int]] = {}
    for place, piece in enumerate(pieces):
        for key, value in piece.values.items():
            places.setdefault((key, _column_type(value)), []).append(place)
    columns: dict[tuple[int, ...], list[tuple[str, str]]] = {}
    for column, held in places.items():
        columns.setdefault(tuple(held), []).append(column)
    bare = tuple(place for place, piece in enumerate(pieces) if not piece.values)
    found = []
    for held, together in [*columns.items(), *([(bare, [])] if bare else [])]:
        # A key may be in the same rows with one type only, and more columns than a block takes are more groups.
        for start in range(0, max(len(together), 1), segment.COLUMNS_MAX - 4):
            chosen = together[start : start + segment.COLUMNS_MAX - 4]
            here = [pieces[place] for place in held]
            values = {key: _column([piece.values[key] for piece in here], kind) for key, kind in chosen}
            found.append(
                Group(
                    numpy.array([piece.sequence for piece in here], numpy.uint64),
                    numpy.array([piece.step for piece in here], numpy.int64),
                    numpy.array([piece.time_ns // 1000 for piece in here], numpy.int64),
                    numpy.array([piece.flags for piece in here], numpy.uint8),
                    values,
                )
            )
    return found


_COLUMN_TYPES: dict[type, str] = {float: "float64", bool: "bool", str: "str", type(None): "null"}


def _column_type(value: Any) -> str:
    if type(value) is int:
        return "int64" if -(2**63) <= value < 2**63 else "uint64"
    return _COLUMN_TYPES.get(type(value), "packed")


def _column(values: list[Any], kind: str) -> Any:
    if kind == "packed":
        return [encode_map({"v": value})[3:] for value in values]
    return values if kind in ("str", "null") else numpy.array(values, kind)
