"""The messages, in the order in which a session meets them. `stream` is the 64-bit id of the stream they are about.

Sequences are inclusive: `written=7` means that records 1 to 7 are stored.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Union

from ..files import Buffer

BATCH_HAS_PIECES = 1  # some record does not commit its row, or is late: rows may need merging
BATCH_HAS_META = 2  # META or GAP records are among the records
BATCH_HAS_BLOBS = 4  # records that announce blobs are among the records


class Hello(NamedTuple):
    """Trainer to daemon, first in every session.

    Attributes:
        version_min, version_max: Wire versions the trainer speaks.
        stored: Every record up to this sequence is stored: acknowledged before, or in the trainer's own segment.
        ring: Path of the trainer's ring, locked while it lives; "" when it has none that others can see.
        store: The store's id: both must mean the same directory.
        limits: The trainer's limits; each side uses the smaller value.
        device, inode, session: Of the ring's file, and the number that stands in it, where the daemon may read it itself
            instead of getting batches (docs/journal.md#lent); session 0: it may not.
    """

    version_min: int
    version_max: int
    stream: int
    run: str
    store: bytes
    stored: int
    ring: str
    pid: int
    sdk: str
    limits: dict[str, int]
    device: int = 0
    inode: int = 0
    session: int = 0


class Welcome(NamedTuple):
    """Daemon to trainer: the session is open. `credit` bytes may be in flight without an Ack.

    `reads`: 1 where it reads the ring itself, says there what is stored, and wants no batches; else 0.
    """

    version: int
    stream: int
    written: int
    synced: int
    credit: int
    pid: int
    daemon: str
    limits: dict[str, int]
    reads: int = 0


class Batch(NamedTuple):
    """Records `first` to `last` of a stream, as they stand in the ring. `step_max`: no record has a higher step."""

    stream: int
    first: int
    last: int
    flags: int
    step_max: int
    records: Buffer


class Ack(NamedTuple):
    """Daemon to trainer, at least once for each tick in which batches came, also without progress: a sign of life.

    `written` survives a killed daemon, `synced` survives power loss. `trouble`: why nothing more is written now, an index
    into `sdk.limits.REFUSED_REASONS`; 0 when all is well. While it names a budget the trainer sends nothing new.
    """

    stream: int
    written: int
    synced: int
    trouble: int = 0


class Flush(NamedTuple):
    """Write what came up to `sequence` now, then answer Flushed."""

    stream: int
    sequence: int


class Flushed(NamedTuple):
    stream: int
    written: int
    synced: int


class Finish(NamedTuple):
    """The stream ends with `sequence`; write, seal, and answer Finished.

    It may come before the last records, when an Ack's `trouble` names a budget: what a finishing stream has accepted is
    written past every budget.
    """

    stream: int
    sequence: int


class Finished(NamedTuple):
    stream: int
    written: int
    synced: int


class Reject(NamedTuple):
    """Daemon to trainer: this session is over. `retriable`: a new Hello may go well."""

    stream: int
    code: str
    text: str
    retriable: bool


class Control(NamedTuple):
    """A command from the command line, and (verb "reply" or "error") its answer under the same id."""

    id: int
    verb: str
    arguments: dict[str, Any]


Message = Union[Hello, Welcome, Batch, Ack, Flush, Flushed, Finish, Finished, Reject, Control]

# Type numbers on the wire. 5 is kept for Blob. Zero is never a type.
TYPES: dict[int, type[Any]] = {
    1: Hello,
    2: Welcome,
    3: Batch,
    4: Ack,
    6: Control,
    7: Flush,
    8: Flushed,
    9: Finish,
    10: Finished,
    11: Reject,
}
NUMBERS = {kind: number for number, kind in TYPES.items()}
