"""Segments with windows (docs/segment.md#columns), made by hand, and what of their values is there after trouble."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdk.files import DISK
from sdk.ids import hex_u64
from sdk.record import FLAG_COMMIT, KIND_META, Record, encode_map
from sdk.record import pack as pack_record
from sdk.segment import format as segment
from sdk.segment.columns import Group, pack
from sdk.segment.format import FLAG_HAS_META, FLAG_WINDOW, KIND_COLUMNS, KIND_GAP, KIND_ROWS, FileHeader
from sdk.segment.naming import SegmentName, format_segment
from sdk.segment.reader import SegmentReader
from sdk.segment.windows import read_window, tell_windows, windows
from sdk.segment.writer import SegmentWriter

STREAM = 7
NAME = SegmentName(0xABC, 0)
HEADER = FileHeader(b"s" * 16, *NAME[:2], created_ns=10**18)

# (sequence, key) -> (step, value): what a segment holds.
Cells = dict[tuple[int, str], tuple[int, Any]]


def group(sequences: Sequence[int], values: Mapping[str, Any], *, steps: Sequence[int] | None = None) -> Group:
    """Rows with these keys; steps are one less than sequences, times a millisecond apart."""
    sequence = np.array(sequences, np.uint64)
    step = np.array([one - 1 for one in sequences] if steps is None else steps, np.int64)
    flags = np.full(len(sequence), FLAG_COMMIT, np.uint8)
    return Group(sequence, step, 10**15 + 1000 * sequence.astype(np.int64), flags, dict(values))


def fact(sequence: int) -> Record:
    return Record(sequence, 0, 0, KIND_META, 10**18, encode_map({"config": {"n": sequence}}))


def append_window(
    writer: SegmentWriter,
    blocks: Sequence[Sequence[Group]],
    span: tuple[int, int],
    facts: Sequence[Record] = (),
    *,
    flags: int = 0,
    stream: int = STREAM,
    **changes: Any,
) -> None:
    """Appends a window; `changes` are made to the headers of its COLUMNS blocks."""
    where = {"stream": stream, "first": span[0], "last": span[1]}
    for groups in blocks:
        packed = pack(groups)
        header: dict[str, Any] = {
            "records": packed.records, "step_min": packed.step_min, "step_max": packed.step_max, "flags": flags, **where,
        }  # fmt: skip
        writer.append(KIND_COLUMNS, packed.parts, keys=packed.keys, compress=False, **{**header, **changes})
    if facts:
        raw = b"".join(map(pack_record, facts))
        flags |= FLAG_WINDOW | FLAG_HAS_META
        writer.append(KIND_ROWS, raw, records=len(facts), flags=flags, keys={}, **where)


def begin(path: Path | str, name: SegmentName = NAME) -> SegmentWriter:
    """A segment in a directory, with its first block."""
    where = os.path.join(path, format_segment(name))
    writer = SegmentWriter.create(DISK, where, HEADER._replace(writer=name.writer, number=name.number))
    writer.append_map(segment.KIND_META, {"run": "a41f", "writer": {"kind": "rewrite"}})
    return writer


def end(writer: SegmentWriter, replaces: Sequence[SegmentName] = (), *, told: Any = None) -> str:
    """Says which windows there are (`told`: says that), and seals it; its path."""
    names = [[hex_u64(name.writer), name.number] for name in replaces]
    shown = tell_windows(writer.blocks) if told is None else told
    writer.append_map(segment.KIND_META, {"replaces": names, "ended_ns": 10**18, "windows": shown})
    writer.seal()
    return writer.path


def cells_of(groups: Sequence[Group]) -> Cells:
    """All values in some groups, as they are stored."""
    found: Cells = {}
    for one in groups:
        heads = list(zip(one.sequence.tolist(), one.step.tolist()))
        for key, values in one.values.items():
            listed = values.tolist() if isinstance(values, np.ndarray) else values
            found.update({(sequence, key): (step, value) for (sequence, step), value in zip(heads, listed)})
    return found


def read_cells(path: str) -> tuple[Cells, list[dict[str, Any]]]:
    """(the values of a good segment, its GAP maps)."""
    reader = SegmentReader(DISK, path)
    try:
        found: Cells = {}
        for members in windows(reader.blocks).values():
            contents = read_window(reader, members)
            assert contents.troubles == []
            found.update(cells_of([one for groups in contents.groups for one in groups]))
        return found, [reader.read_map(block) for block in reader.blocks if block.kind == KIND_GAP]
    finally:
        reader.close()


def is_told(gaps: Sequence[Mapping[str, Any]], sequence: int, key: str, step: int) -> bool:
    """Whether a gap tells that a value is lost: by its sequence, by key and step, or by step where nobody knows more."""
    for gap in gaps:
        if "first" in gap:
            if gap["first"] <= sequence <= gap["last"]:
                return True
        elif gap["step_min"] <= step <= gap["step_max"] and gap.get("key", key) == key:
            return True
    return False
