"""A run of three segments on disk whose middle one is broken in every way, and what a reader must say of it then.

The scene is made once. A case puts broken bytes in the place of the middle segment and asks `Scene.look`: rows must be
exactly those of the records that no gap reports. Two streams have steps of their own, so that joined rows are theirs.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from daemon.store.repair import Step, repair_run
from sdk.errors import DamageError
from sdk.files import DISK
from sdk.ids import hex_u64
from sdk.reader import Run
from sdk.reader.join import STEP, TIMESTAMP
from sdk.reader.verify import verify_run
from sdk.record import KIND_ROW, Record, decode_map
from sdk.rows import Piece, merge
from sdk.segment.format import KIND_CHECKPOINT
from sdk.segment.reader import SegmentReader
from sdk.segment.recovery import recover
from tests.builders import STORE_ID, RunBuilder, StreamBuilder, make_store

Lost = dict[int, set[int]]
_SECOND_STEPS = 1_000_000


class Seen(NamedTuple):
    """What a reader says.

    Attributes:
        lost: Sequences that are not there, by stream.
        unknown: Those of them that nothing in the run tells of: they are behind all that is known.
        damage: How many places are reported as damaged.
    """

    lost: Lost
    unknown: Lost
    damage: int

    @property
    def count(self) -> int:
        return sum(map(len, self.lost.values()))


class Scene:
    """The run on disk.

    Attributes:
        whole: The bytes of the middle segment as its writer left it.
        sealed: Whether it was sealed; else its writer was killed.
        followed: Whether its writer's next segment is there, which says how far the streams had come.
        accepted: Records in all.
    """

    def __init__(self, path: str, size: int, *, sealed: bool, followed: bool) -> None:
        self.sealed, self.followed = sealed, followed
        self.store = make_store(path)
        self.run = RunBuilder(self.store)
        self._chance = random.Random(size)
        self._text_max = size // 40
        self._streams = [self.run.stream(), self.run.stream("fork")]
        self._streams[1].step = _SECOND_STEPS
        self._log(3)
        self.run.seal()
        self._checkpoint()
        while self._size() < size * 7 // 8:
            # Small steps at the end, so that with keys and index it comes out just below `size`.
            self._log(self._chance.randrange(1, 9) if self._size() < size // 2 else 1)
        if sealed:
            self.path = self.run.daemon.seal()
        else:
            self.path = self.run.daemon.segment.path
            writer = self.run.daemon
            writer._first_block, writer._number = writer.segment.next_block_number, writer._number + 1
            writer.close()
        if followed:
            self._checkpoint()
            self._log(2)
            self.run.seal()
        with open(self.path, "rb") as file:
            self.whole = file.read()
        assert size * 7 // 8 <= len(self.whole) <= size
        self._pieces = {s.id: [_piece(record) for record in s.records] for s in self._streams}
        self.accepted = sum(map(len, self._pieces.values()))
        self._all_rows = self._rows_without({})
        self._names = set(os.listdir(self.run.directory))

    def _size(self) -> int:
        return self.run.daemon.segment.size

    def _checkpoint(self) -> None:
        stored = {hex_u64(s.id): [len(s.records), max(s.step - 1, 0)] for s in self._streams}
        self.run.daemon.segment.append_map(KIND_CHECKPOINT, {"streams": stored})

    def _log(self, count: int) -> None:
        """Some records of both streams in a block each: rows, rows in pieces, facts, refused calls, long texts."""
        for stream in self._streams:
            for _ in range(count):
                self._one(stream)
            records = stream.take()
            keys = {key: 1 for record in records for key in decode_map(record.payload)}
            self.run.daemon.rows(stream, records, keys=keys, compress=self._chance.random() < 0.7)
        if self._chance.random() < 0.3:
            self.run.daemon.meta({"writer": {"pid": self._chance.randrange(9)}})
            self.run.daemon.gap(self._streams[0], {"episode": 1, "count": 4, "reason": "ring full"})

    def _one(self, stream: StreamBuilder) -> None:
        draw = self._chance.random()
        if draw < 0.1:
            stream.meta({"config": {"lr": self._chance.random()}})
        elif draw < 0.2:
            stream.gap(episode=len(stream.records), count=1, step_min=0, step_max=0, reason="ring full")
        elif draw < 0.4:
            stream.log({"piece": self._chance.random()}, commit=False)
        else:
            text = "".join(self._chance.choices("abcdef", k=self._chance.randrange(self._text_max)))
            stream.log({"loss": self._chance.random(), "text": text})

    def put(self, data: bytes) -> None:
        """The broken bytes in place, and nothing that an earlier case left."""
        directory = self.run.directory
        for name in set(os.listdir(directory)) - self._names:
            path = os.path.join(directory, name)
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        with open(self.path, "wb") as file:
            file.write(data)

    def look(self) -> Seen:
        """Reads the run and compares it with what was logged, minus exactly what is reported.

        Of an open segment that nothing follows nobody can know how far it went: there the end may be missing.
        """
        return self._look({})

    def _look(self, unknown: Lost) -> Seen:
        run = Run(self.run.directory, alive=lambda _: False)
        rows = list(run.rows())
        lost: Lost = {stream: set(unknown.get(stream, ())) for stream in self._pieces}
        for gap in run.gaps:
            if gap.first is not None and gap.last is not None:
                assert gap.count == gap.last - gap.first + 1
                lost[int(gap.stream, 16)].update(range(gap.first, gap.last + 1))
        damage = run.damage
        if not self.followed and not self._is_sealed():
            stored = {int(stream.id, 16): stream.last for stream in run.streams}
            unknown = {s: set(range(stored.get(s, 0) + 1, len(p) + 1)) for s, p in self._pieces.items()}
            for stream, sequences in unknown.items():
                lost[stream] |= sequences
        assert rows == self._rows(lost)
        return Seen(lost, unknown, len(damage))

    def mend(self) -> Seen:
        """Seals an open segment, repairs what is damaged, and looks again: nothing more may be lost by it.

        What is found then is good, and repairing it once more changes nothing.
        """
        before = self.look()
        if not self._is_sealed():
            with contextlib.suppress(DamageError):
                recover(DISK, self.path)
            assert self._look(before.unknown).lost == before.lost
        assert all(step.repaired for step in self._repair())
        assert verify_run(DISK, self.run.directory).findings == []
        assert list(self._repair()) == []
        after = self._look(before.unknown)
        assert (after.lost, after.damage) == (before.lost, 0)
        return after

    def _repair(self) -> Iterator[Step]:
        return repair_run(DISK, STORE_ID, self.run.id, self.run.directory, lambda path: True)

    def _is_sealed(self) -> bool:
        try:
            reader = SegmentReader(self.run.files, self.path)
        except Exception:
            return False
        reader.close()
        return reader.sealed

    def _rows(self, lost: Lost) -> list[dict[str, Any]]:
        return self._rows_without(lost) if any(lost.values()) else self._all_rows

    def _rows_without(self, lost: Lost) -> list[dict[str, Any]]:
        found = []
        for stream, pieces in self._pieces.items():
            gone = lost.get(stream, ())
            kept = [p for p in pieces if p is not None and p.sequence not in gone]
            for piece in sorted(merge(kept), key=lambda piece: piece.step):
                found.append({STEP: piece.step, TIMESTAMP: piece.time_ns // 1000 / 1e6, **piece.values})
        return found


def _piece(record: Record) -> Piece | None:
    if record.kind != KIND_ROW:
        return None
    return Piece(record.sequence, record.step, record.flags, record.time_ns, decode_map(record.payload))


@contextmanager
def scenes(size: int) -> Iterator[list[Scene]]:
    """All four kinds of scene, in memory where there is room for files."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = tempfile.mkdtemp(prefix="stepd-torture-", dir=where)
    try:
        made = []
        for sealed in (True, False):
            for followed in (True, False):
                home = os.path.join(path, f"{sealed}-{followed}")
                os.mkdir(home)
                made.append(Scene(home, size, sealed=sealed, followed=followed))
        yield made
    finally:
        shutil.rmtree(path, ignore_errors=True)
