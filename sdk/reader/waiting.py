"""What waits in shared memory: rings of dead processes of this host that nobody has stored yet.

A daemon stores them within moments. They stay where none serves, or where the disk is full; their records are in no
segment then, and a restart of the machine loses them, so whoever asks what a run holds is told of them.
"""

from __future__ import annotations

from typing import NamedTuple

from .. import platform
from ..errors import Error
from ..ids import hex_u64
from ..journal.drain import Drained, drain, ring_paths
from ..location import read_store
from ..record import KIND_GAP, KIND_META, KIND_ROW, decode_map, walk


class Waiting(NamedTuple):
    """A ring that was not drained.

    Attributes:
        run: Whose it is, a run's id. `stream`: which stream's, 16 hex digits.
        records: Rows in it. `refused`: calls that it says were refused, which no GAP on the disk tells of yet.
        state: How its process said that the run ended; None: it did not.
        path: The ring.
    """

    run: str
    stream: str
    records: int
    refused: int
    state: str | None
    path: str


def waiting_rings(store: str, shared_memory_dir: str) -> list[Waiting]:
    """The rings of dead processes of one store. Changes nothing, and reads no ring of a living process."""
    found = []
    identity = read_store(store)
    for path in ring_paths(shared_memory_dir, platform.store_digest(store)):
        # Why asked first: to open and close a ring of this very process would drop its lock.
        if platform.is_locked(path):
            continue
        try:
            drained = drain(path)
            if drained.header.identity.get("store") == identity.id:
                found.append(_waiting(path, drained))
        except (OSError, Error, KeyError, ValueError):
            continue  # drained meanwhile, or it does not say whose it is
    return found


def _waiting(path: str, drained: Drained) -> Waiting:
    rows, state, gaps = 0, None, drained.gaps
    for piece in drained.pieces:
        for record in walk(piece.records):
            rows += record.kind == KIND_ROW
            if record.kind == KIND_GAP:
                gaps = [*gaps, decode_map(record.payload)]
            elif record.kind == KIND_META:
                end = decode_map(record.payload).get("end")
                said = end.get("state") if isinstance(end, dict) else None
                state = said if isinstance(said, str) else state
    counts = [gap.get("count") for gap in gaps if "first" not in gap]
    refused = sum(number for number in counts if isinstance(number, int))
    return Waiting(str(drained.header.identity["run"]), hex_u64(drained.header.stream), rows, refused, state, path)
