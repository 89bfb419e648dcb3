"""The one thread of the server besides its own: it forces segments to the disk.

Why a thread: fdatasync gives the GIL away for all of its time. Nothing here takes a lock of the server or runs Python
for more than microseconds. The server hands over work with `submit` and takes results with `results`.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from typing import NamedTuple

from sdk import clock
from sdk.files import Files
from sdk.segment.writer import SegmentWriter


class SyncJob(NamedTuple):
    """A segment to be forced. `written`: stream to the sequence that is safe then; `close`: it is sealed, close it after."""

    segment: SegmentWriter
    written: dict[int, int]
    directory: str | None
    close: bool


class SyncResult(NamedTuple):
    job: SyncJob
    error: OSError | None
    seconds: float


class Syncer:
    """Owns the thread; `stop` finishes what was submitted."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._jobs: queue.SimpleQueue[SyncJob | None] = queue.SimpleQueue()
        self.results: deque[SyncResult] = deque()
        self.outstanding = 0
        self._thread = threading.Thread(target=self._run, name="stepd-syncer", daemon=True)
        self._thread.start()

    def submit(self, job: SyncJob) -> None:
        self.outstanding += 1
        self._jobs.put(job)

    def take(self) -> list[SyncResult]:
        """The results since the last call."""
        taken = []
        while self.results:
            taken.append(self.results.popleft())
        self.outstanding -= len(taken)
        return taken

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            start = clock.monotonic()
            error = None
            try:
                job.segment.sync()
                if job.directory is not None:
                    self._files.sync_directory(job.directory)
            except OSError as failure:
                error = failure
            if job.close:
                with contextlib.suppress(OSError):
                    job.segment.close()
            self.results.append(SyncResult(job, error, clock.monotonic() - start))

    def stop(self) -> None:
        """Waits for what was submitted and ends the thread."""
        self._jobs.put(None)
        self._thread.join()
