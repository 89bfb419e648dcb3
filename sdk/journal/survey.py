"""What stands in a stretch of a ring, from its record headers alone: for a daemon that reads a living trainer's ring.

A loop logs alike records, and of a run of records of one size numpy sees all headers at once; where sizes change from one
record to the next each is looked at by itself.
"""

from __future__ import annotations

import numpy

from ..errors import DamageError
from ..limits import STEP_MAX
from ..record import (
    FLAG_COMMIT,
    FLAG_LATE,
    FLAGS_SHIFT,
    HEADER,
    HEADER_SIZE,
    KIND_BLOB,
    KIND_GAP,
    KIND_META,
    KIND_ROW,
    KIND_SHIFT,
)

# A run of so many records of one size pays for numpy; where it does not, so many records are looked at one by one.
_RUN_MIN = 16
_SINGLES = 128
_RUN_MAX = 1 << 16

_COMMITTED = KIND_ROW | FLAG_COMMIT << (FLAGS_SHIFT - KIND_SHIFT)


class Survey:
    """Whole records from the beginning of some bytes.

    Attributes:
        size: Bytes that they take. `last`: the sequence of the last one.
        step_max: No record has a higher step. `step`: the open step behind the last one.
        has_pieces, has_meta, has_blobs: Whether a record does not commit its row or is late, is META or GAP, announces.
    """

    __slots__ = ("has_blobs", "has_meta", "has_pieces", "last", "size", "step", "step_max")

    def __init__(self, data: bytes, first: int, step: int) -> None:
        """Looks at `data`, which begins with the record of sequence `first`, where `step` is open.

        Raises:
            DamageError: A header cannot be, or a sequence does not follow the one before.
        """
        self.size, self.last, self.step, self.step_max = 0, first - 1, step, 0
        self.has_pieces = self.has_meta = self.has_blobs = False
        window = 4 * _RUN_MIN
        while len(data) - self.size >= HEADER_SIZE:
            run = self._run(data, window)
            window = min(max(2 * run, 4 * _RUN_MIN), _RUN_MAX)
            if run < _RUN_MIN and not self._singles(data):
                break

    def _run(self, data: bytes, window: int) -> int:
        """Takes records of one size that are alike; how many."""
        size = int.from_bytes(data[self.size : self.size + 4], "little")
        count = min((len(data) - self.size) // max(size, HEADER_SIZE), window)
        if count < _RUN_MIN:
            return 0
        heads = numpy.ndarray((count, 3), "<u8", data, self.size, (size, 8))
        first = int(heads[0, 0])
        alike = (heads[:, 0] == first) & (heads[:, 1] == numpy.arange(self.last + 1, self.last + 1 + count, dtype="u8"))
        run = count if alike.all() else int(alike.argmin())
        is_committed = first >> KIND_SHIFT == _COMMITTED
        if run < _RUN_MIN or not (is_committed or first >> KIND_SHIFT == KIND_ROW):
            return 0
        step = int(heads[:run, 2].max())
        if step > STEP_MAX:
            raise DamageError(f"record {self.last + 1} or one behind it claims step {step}")
        self.size += run * size
        self.last += run
        self.step_max, self.step = max(self.step_max, step), max(self.step, step + is_committed)
        self.has_pieces = self.has_pieces or not is_committed
        return run

    def _singles(self, data: bytes) -> bool:
        """Takes some records one by one; whether there may be more."""
        offset, sequence, end = self.size, self.last, len(data)
        for _ in range(_SINGLES):
            if end - offset < HEADER_SIZE:
                break
            size, kind, flags, zero, number, step, _ = HEADER.unpack_from(data, offset)
            if size < HEADER_SIZE or number != sequence + 1 or zero or step > STEP_MAX:
                raise DamageError(
                    f"record {sequence + 1} claims sequence {number}, step {step} and {size} bytes: that cannot be"
                )
            if offset + size > end:
                break
            self._note(kind, flags, step)
            offset, sequence = offset + size, number
        taken = sequence - self.last
        self.size, self.last = offset, sequence
        return taken == _SINGLES

    def _note(self, kind: int, flags: int, step: int) -> None:
        self.step_max = max(self.step_max, step)
        if kind == KIND_ROW:
            committed = flags & FLAG_COMMIT and not flags & FLAG_LATE
            self.has_pieces = self.has_pieces or not committed
            if not flags & FLAG_LATE:
                self.step = max(self.step, step + bool(committed))
        elif kind == KIND_BLOB:
            self.has_blobs = True
        elif kind in (KIND_META, KIND_GAP):
            self.has_meta = True
        else:
            raise DamageError(f"record has kind {kind}, which this version does not know")
