"""What tests of the wire, the sender and the daemon share: records, a disk that refuses, and what a run's segments hold.

with temporary_store() as store:              # its sockets, locks and rings are removed at the end
    disk = FailingFiles()                     # disk.refuse("append") until disk.allow()
    held(store.path, "a41f").sequences(7)     # what a reader of all segments would find of stream 7
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sdk import platform
from sdk.files import DISK
from sdk.files.failing import FailingFiles as FailingFiles
from sdk.location import StoreIdentity, make_store
from sdk.record import FLAG_COMMIT, KIND_ROW, Record, encode_map, pack, walk
from sdk.segment.format import KIND_ROWS, Block
from sdk.segment.naming import HISTORY, parse_segment, run_path
from sdk.segment.reader import SegmentReader
from sdk.transport import endpoint_path, lock_path, stopped_path

RUN = "a41f"
WAIT_SECONDS = 20.0


def row(
    sequence: int, step: int | None = None, values: dict[str, Any] | None = None, flags: int = FLAG_COMMIT
) -> Record:
    """One ROW record; without more it commits the step below its sequence."""
    values = {"loss": sequence / 4} if values is None else values
    return Record(
        sequence, sequence - 1 if step is None else step, flags, KIND_ROW, 10**18 + sequence, encode_map(values)
    )


def packed(records: Sequence[Record]) -> bytes:
    return b"".join(map(pack, records))


def rows(first: int, last: int) -> bytes:
    """The bytes of ROW records `first` to `last`, each committing its own step."""
    return packed([row(sequence) for sequence in range(first, last + 1)])


def until(condition: Callable[[], Any], what: str = "condition", seconds: float = WAIT_SECONDS) -> Any:
    """Waits for `condition` to be true and returns what it gave."""
    deadline = time.monotonic() + seconds
    pause = 0.0001
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come about within {seconds} s"
        time.sleep(pause)
        pause = min(pause * 2, 0.002)
    return found


@contextlib.contextmanager
def temporary_store() -> Iterator[StoreIdentity]:
    """An empty store; whatever is left of it in /tmp, /run and /dev/shm is removed, and a daemon that serves it killed."""
    path = tempfile.mkdtemp(prefix="stepd-test-")
    store = make_store(path)
    digest = platform.store_digest(path)
    names = [endpoint_path(path), lock_path(path), stopped_path(path)]
    try:
        yield store
    finally:
        pid = platform.lock_owner(names[1])
        if pid is not None and pid > 0 and pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        directory = platform.shared_directory("/dev/shm")
        names += [os.path.join(directory, name) for name in os.listdir(directory) if name.startswith(digest)]
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        shutil.rmtree(path, ignore_errors=True)


class Held:
    """What the segments of a run hold.

    Attributes:
        blocks: Every block with its segment's reader, in order of file name.
        records: (stream, record) of every ROWS block.
        maps: Every other block that readers look into, with its map; `first_maps`: that of each segment's first block.
        numbers: Block numbers, in order of file name.
        unsealed: Names of segments without a trailer.
    """

    def __init__(self, store: str, run: str) -> None:
        self.directory = run_path(store, run)
        self.blocks: list[tuple[str, Block]] = []
        self.records: list[tuple[int, Record]] = []
        self.maps: list[tuple[Block, dict[str, Any]]] = []
        self.unsealed: list[str] = []
        self.first_maps: list[dict[str, Any]] = []
        self.numbers: list[int] = []
        for name, _, _ in DISK.entries(self.directory):
            parsed = parse_segment(name)
            if parsed is not None and parsed.holds == HISTORY:
                self._read(name)

    def _read(self, name: str) -> None:
        reader = SegmentReader(DISK, os.path.join(self.directory, name))
        assert not reader.damage, reader.damage
        if not reader.sealed:
            self.unsealed.append(name)
        for index, block in enumerate(reader.blocks):
            self.blocks.append((name, block))
            self.numbers.append(block.number)
            if block.kind == KIND_ROWS:
                self.records += [(block.stream, record) for record in walk(bytes(reader.payload(block)))]
            elif block.kind & 0x80 == 0:
                self.maps.append((block, reader.read_map(block)))
                if not index:
                    self.first_maps.append(self.maps[-1][1])
        if reader.sealed:
            self.numbers.append(reader.blocks[-1].number + 1)  # INDEX does not list itself
        reader.close()

    def rows_blocks(self, stream: int) -> list[Block]:
        return [block for _, block in self.blocks if block.kind == KIND_ROWS and block.stream == stream]

    def covered(self, stream: int) -> list[int]:
        """The sequences that block headers say are there, once for each block, sorted."""
        return sorted(n for block in self.rows_blocks(stream) for n in range(block.first, block.last + 1))

    def sequences(self, stream: int) -> list[int]:
        """The sequences of the records that are there, sorted."""
        return sorted(record.sequence for owner, record in self.records if owner == stream)


def held(store: str | Path, run: str = RUN) -> Held:
    """Reads all segments of a run."""
    return Held(os.fspath(store), run)
