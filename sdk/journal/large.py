"""Large values on their way: which blobs of a stream are not stored yet, and where their bytes lie meanwhile.

The ladder, for each blob: inside the record where it is small; a slot of the arena; private memory up to
`overflow_bytes_max`, which a kill -9 loses; then dropped, counted, and told by a GAP that names key and step (with
``on_full="block"`` the call waits instead). Before a row that holds a blob stands a record that announces it: its number,
size and metadata, and its place in the arena. The daemon takes the bytes from there. What lies in private memory the
sender stores itself, before it sends the announcement.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from .. import clock
from ..errors import UsageError
from ..limits import INLINE_TENSOR_BYTES_MAX, KIB
from ..record import BlobRef, StoredBlob, encode_blob_ref, encode_inline_blob, encode_map
from ..values.blobs import Blob, Heap
from ..values.budget import TensorBudget
from .arena import Arena
from .page import Mark

# Limit: what the small blobs of one call may take in its record; a list of thumbnails would make it larger than any batch.
_INLINE_BYTES_MAX = 256 * KIB
_WAIT_SECONDS = 0.001
# Why a value is missing whose row is there.
NO_ROOM = "no room in memory for its bytes"


class Announced(NamedTuple):
    """A blob of a call, and the payload of the record that announces it."""

    ref: BlobRef
    blob: Blob
    key: str
    payload: bytes


class Pending:
    """A blob whose announcement is in the ring.

    Attributes:
        before: The mark before the announcement: everything up to it may be sent while the blob's bytes are not stored.
        ref, blob: Which, and its bytes. `meta`: what it says of itself where it is stored.
        is_stored: The sender has stored the bytes itself.
    """

    __slots__ = ("before", "blob", "is_stored", "meta", "ref")

    def __init__(self, before: Mark, announced: Announced, step: int) -> None:
        self.before = before
        self.ref = announced.ref
        self.blob = announced.blob
        self.meta = {**announced.blob.meta, "key": announced.key, "step": step}
        self.is_stored = False

    @property
    def sequence(self) -> int:
        """Of the announcement."""
        return self.before[1]


class Call:
    """The blobs of one call of `log`, found while its values are made plain.

    Attributes:
        announced: Those that get a record.
        dropped: (key, size) of those for which there was no room.
        may_wait: Whether the thread that places it may wait for room; the sender makes room, and may not.
    """

    __slots__ = ("_inline", "_large", "_private", "announced", "dropped", "may_wait")

    def __init__(self, large: Large) -> None:
        self._large = large
        self._inline = self._private = 0
        self.announced: list[Announced] = []
        self.dropped: list[tuple[str, int]] = []
        self.may_wait = True

    def put(self, blob: Blob, key: str) -> object:
        """What stands in the record for a blob: its bytes, a reference, or None (dropped)."""
        number = blob.placed.get(self._large.stream)
        if number is not None:
            return encode_blob_ref(BlobRef(self._large.stream, number, blob.size))
        for other in self.announced:
            if other.blob is blob:
                return encode_blob_ref(other.ref)
        if blob.size <= INLINE_TENSOR_BYTES_MAX and self._inline + blob.size <= _INLINE_BYTES_MAX:
            self._inline += blob.size
            return encode_inline_blob(StoredBlob(bytes(blob.view()), blob.meta))
        if not self._large.settle(blob, self._private, may_wait=self.may_wait):
            self.dropped.append((key, blob.size))
            return None
        announced = self._large.announce(blob, key)
        if blob.is_private:
            self._private += blob.size
        self.announced.append(announced)
        return encode_blob_ref(announced.ref)

    def payloads(self, row: int, now_ns: Callable[[], int]) -> list[bytes]:
        """The payloads of the records that stand before the row: announcements, then a GAP map for each dropped value."""
        gaps = [
            {
                "episode": f"value {key} at {row}", "count": 0, "key": key, "size": size, "step_min": row, "step_max": row,
                "start_ns": now_ns(), "end_ns": now_ns(), "reason": NO_ROOM,
            }
            for key, size in self.dropped
        ]  # fmt: skip
        return [announced.payload for announced in self.announced] + [encode_map(gap) for gap in gaps]


class Large:
    """The blobs of one stream.

    Attributes:
        stream: Its id.
        pending: Those that were announced and are not stored, oldest first; the sender removes them.
        count: How many records were placed for them, announcements and GAPs.
        private_bytes: Of pending blobs in private memory.
        budget: Says which raw tensors are stored whole; None: all.
    """

    def __init__(
        self, stream: int, arena: Arena | None, overflow_bytes_max: int, is_blocking: Callable[[], bool] = lambda: False,
        budget: TensorBudget | None = None,
    ) -> None:  # fmt: skip
        """`is_blocking` tells whether a call waits for room instead of dropping a value."""
        self.stream = stream
        self.arena = arena
        self._overflow_bytes_max = overflow_bytes_max
        self.is_blocking = is_blocking
        self.budget = budget
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self.pending: deque[Pending] = deque()
        self.count = 0
        self.private_bytes = 0

    def take(self, size: int) -> Any:
        """Room in the arena for a value that is being made; None: it takes private memory."""
        return self.arena.take(size) if self.arena is not None else None

    def settle(self, blob: Blob, private: int, *, may_wait: bool = True) -> bool:
        """Sees to it that the bytes of `blob` lie in this stream's arena or in private memory; False: there is no room.

        Args:
            private: Bytes that the same call has in private memory already.
        """
        held = blob.held
        if held is None:
            raise UsageError("this value was logged to another run already, and its bytes are not kept; make it again")
        if held.owner == self.stream:
            return True
        while True:
            slot = self.take(blob.size)
            if slot is not None:
                slot.view()[: blob.size] = blob.view()
                blob.hold(slot)
                return True
            if self.private_bytes + private + blob.size <= self._overflow_bytes_max:
                if held.place is not None:
                    memory = Heap(blob.size)
                    memory.view()[: blob.size] = blob.view()
                    blob.hold(memory)
                return True
            if not (may_wait and self.is_blocking()):
                return False
            clock.pause(_WAIT_SECONDS)

    def announce(self, blob: Blob, key: str) -> Announced:
        """A number for `blob`, and the record that tells of it."""
        ref = BlobRef(self.stream, next(self._numbers), blob.size)
        told: dict[str, Any] = {"n": ref.number, "size": ref.size, "key": key, "meta": blob.meta}
        held = blob.held
        if held is not None and held.place is not None:
            told["at"] = list(held.place)
        return Announced(ref, blob, key, encode_map(told))

    def placed(self, announced: Announced, before: Mark, step: int) -> None:
        """Its announcement, for the row of `step`, is in the ring behind `before`. Under the journal's lock."""
        announced.blob.placed[self.stream] = announced.ref.number
        self.pending.append(Pending(before, announced, step))
        if announced.blob.is_private:
            with self._lock:
                self.private_bytes += announced.ref.size

    def first_unstored(self) -> int | None:
        """The position of the first announcement whose bytes nobody but the sender can store, and it has not yet."""
        waits = (p.before[0] for p in list(self.pending) if p.blob.is_private and not p.is_stored)
        return next(waits, None)

    def waiting_share(self) -> float:
        """How much of the room for blobs is taken by those that are not stored yet; 1.0 is all of it."""
        if not self.pending:
            return 0.0
        room = self._overflow_bytes_max + (self.arena.size_max() if self.arena is not None else 0)
        return sum(pending.ref.size for pending in list(self.pending)) / max(room, 1)

    def release(self, next_sequence: int) -> None:
        """Everything before `next_sequence` is stored: lets go of its bytes. Called by the sender only."""
        while self.pending and self.pending[0].sequence < next_sequence:
            pending = self.pending.popleft()
            if pending.blob.is_private:
                with self._lock:
                    self.private_bytes -= pending.ref.size
            pending.blob.drop()
