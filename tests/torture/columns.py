"""Compacted segments cut, flipped, zeroed, shuffled and spliced, then mended: what is there is right, all else is told.

A scene is a segment of windows: long and short ones, wide ones of several blocks, merged ones, two streams. Each case breaks it
as `segments` breaks segments of rows, and repairs it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgpack
import numpy as np

from daemon.store.repair import Step, repair_run
from sdk.errors import Error, NotFoundError
from sdk.files import DISK
from sdk.reader import Run
from sdk.reader.verify import verify_run
from sdk.segment.format import BLOCKS_OFFSET, FLAG_MERGED, KIND_GAP
from sdk.segment.naming import RUNS, SegmentName, parse_segment
from sdk.segment.reader import SegmentReader
from sdk.segment.windows import read_window, windows
from tests.builders import STORE_ID, make_store
from tests.torture.harness import Result, chance, torture
from tests.torture.segments import DAMAGES
from tests.windows import append_window, begin, cells_of, end, fact, group, is_told

_STREAMS = (7, 9)
_RUN = "a41f"

# (stream, sequence, key) -> (step, value).
Cells = dict[tuple[int, int, str], tuple[int, Any]]


class Scene:
    """A run of one compacted segment, whose sources are gone.

    Attributes:
        whole: Its bytes.
        cells: The values in it.
        last: The last sequence of each stream.
    """

    def __init__(self, path: str, seed: int) -> None:
        self.directory = os.path.join(make_store(path), RUNS, _RUN)
        os.mkdir(self.directory)
        self.cells: Cells = {}
        self.last = dict.fromkeys(_STREAMS, 0)
        writer = begin(self.directory, SegmentName(0xABC0 + seed, 0))  # so that a block of another scene is none here
        draw = np.random.default_rng(seed)
        for number in range(10):
            self._window(writer, draw, _STREAMS[number % 3 == 2], number)
        self.path = end(writer, [SegmentName(0x55, 0)])
        with open(self.path, "rb") as file:
            self.whole = file.read()

    def _window(self, writer: Any, draw: np.random.Generator, stream: int, number: int) -> None:
        first = self.last[stream] + 1
        rows = int(draw.integers(20, 80))
        every = 2 if number % 4 == 3 else 1  # merged pieces: every other sequence is in no row
        train = range(first, first + rows * every, every)
        blocks = [[group(train, {"loss": draw.normal(size=rows), "epoch": np.arange(rows), "note": ["a"] * rows})]]
        last = train[-1]
        if number % 2:
            later = range(last + 1, last + 9)
            values = {
                "accuracy": draw.normal(size=8),
                "list": [msgpack.packb([int(n)]) for n in draw.integers(9, size=8)],
            }
            blocks[0].append(group(later, values)) if number % 4 == 1 else blocks.append([group(later, values)])
            last = later[-1]
        if number % 3 == 0:
            blocks.append([group(train[::10], {f"rare{n}": draw.normal(size=len(train[::10])) for n in range(3)})])
        facts = [fact(last + 1), fact(last + 2)] if number % 3 == 1 else []
        last += len(facts)
        append_window(writer, blocks, (first, last), facts, flags=FLAG_MERGED * (every > 1), stream=stream)
        found = cells_of([one for groups in blocks for one in groups])
        self.cells.update({(stream, sequence, key): cell for (sequence, key), cell in found.items()})
        self.last[stream] = last

    def put(self, data: bytes) -> None:
        """The broken bytes, and nothing that an earlier case left."""
        shutil.rmtree(self.directory)
        os.mkdir(self.directory)
        with open(self.path, "wb") as file:
            file.write(data)

    def mend(self) -> int:
        """Repairs, and compares what is there and what is told with what there was; how many values are lost."""
        ends = self._open_ends()
        self._read()
        list(self._repair())
        assert verify_run(DISK, self.directory).findings == []
        assert list(self._repair()) == []
        found, gaps, held = self._left()
        wrong = {where: cell for where, cell in found.items() if self.cells.get(where) != cell}
        assert not wrong, f"not what was logged: {list(wrong.items())[:3]}"
        assert self._read() == found.keys(), "a reader sees something else than there is"
        lost = [where for where in self.cells if where not in found]
        untold = [
            (stream, sequence, key)
            for stream, sequence, key in lost
            if any(first <= sequence <= last and first != ends.get(stream) for first, last in held[stream])
            and not is_told(gaps[stream], sequence, key, self.cells[stream, sequence, key][0])
        ]
        assert not untold, f"{len(untold)} values are gone and nobody tells: {untold[:5]}"
        return len(lost)

    def _read(self) -> set[tuple[int, int, str]]:
        """What a reader sees, which must be what was logged."""
        run, seen = Run(self.directory, alive=lambda stream: False), set()
        for stream in _STREAMS:
            with contextlib.suppress(NotFoundError):
                for row in run.rows(stream=stream):
                    sequence = row.pop("_step") + 1
                    del row["_timestamp"]
                    for key, value in row.items():
                        logged = self.cells[stream, sequence, key][1]
                        assert value == (msgpack.unpackb(logged) if type(logged) is bytes else logged), (sequence, key)
                        seen.add((stream, sequence, key))
        return seen

    def _open_ends(self) -> dict[int, int]:
        """Where seal and end are both gone nobody knows between which steps the rows at the end were: each stream's window."""
        try:
            reader = SegmentReader(DISK, self.path)
        except Error:
            return {}
        try:
            found = [] if reader.seal is not None else sorted(windows(reader.blocks))
            return {stream: first for stream, first, _ in found}
        finally:
            reader.close()

    def _repair(self) -> Iterator[Step]:
        return repair_run(DISK, STORE_ID, _RUN, self.directory, lambda path: True)

    def _left(self) -> tuple[Cells, dict[int, list[Mapping[str, Any]]], dict[int, list[tuple[int, int]]]]:
        """(values, GAP maps by stream, the ranges of sequences that windows say they hold): other ranges are holes."""
        found: Cells = {}
        gaps: dict[int, list[Mapping[str, Any]]] = {stream: [] for stream in _STREAMS}
        held: dict[int, list[tuple[int, int]]] = {stream: [] for stream in _STREAMS}
        for name in os.listdir(self.directory):
            if parse_segment(name) is None or os.path.getsize(os.path.join(self.directory, name)) < BLOCKS_OFFSET:
                continue
            reader = SegmentReader(DISK, os.path.join(self.directory, name))
            for (stream, first, last), blocks in windows(reader.blocks).items():
                contents = read_window(reader, blocks)
                held[stream].append((first, last))
                cells = cells_of([one for groups in contents.groups for one in groups])
                found.update({(stream, sequence, key): cell for (sequence, key), cell in cells.items()})
            for block in reader.blocks:
                if block.kind == KIND_GAP:
                    gaps[block.stream].append(reader.read_map(block))
            reader.close()
        return found, gaps, held


@torture(full=100_000, default=40, beside=True)
def columns_damage(cases: Iterable[int]) -> Iterator[Result]:
    """Compacted segments damaged in several ways at once, then mended: values are as they were logged, or told to be lost."""
    memory = "/dev/shm"
    root = tempfile.mkdtemp(prefix="stepd-torture-", dir=memory if os.access(memory, os.W_OK) else None)
    try:
        made = []
        for seed in range(4):
            os.mkdir(home := os.path.join(root, str(seed)))
            made.append(Scene(home, seed))
        for case in cases:
            scene, draw = made[case % len(made)], chance("columns-damage", case)
            data = bytearray(scene.whole)
            for _ in range(draw.randrange(1, 4)):
                draw.choice(DAMAGES)(data, draw, made)  # type: ignore[arg-type]
            scene.put(bytes(data))
            yield Result(case, len(scene.cells), scene.mend())
    finally:
        shutil.rmtree(root, ignore_errors=True)
