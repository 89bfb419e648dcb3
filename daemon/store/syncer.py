"""The one thread of the server besides its own: it forces segments to the disk.

Why a thread: fdatasync gives the GIL away for all of its time. Nothing here takes a lock of the server or runs Python
for more than microseconds. The server hands over work with `submit` and takes results with `results`.

A segment whose fsync failed is never asked again, whatever was submitted for it meanwhile: the answer could only be a
lie. Its later jobs fail with the same error.
"""

from __future__ import annotations

import contextlib
import errno
import queue
import threading
import weakref
from collections import deque
from typing import NamedTuple, Union

from sdk import clock
from sdk.files import Files, sync_names
from sdk.segment.naming import RUN_LEVELS, mark_suspect
from sdk.segment.writer import SegmentWriter


class SyncJob(NamedTuple):
    """A segment of ours to be forced.

    Attributes:
        written: Stream to the sequence that is safe then; None: nothing may be claimed.
        directory: Where its name must be forced too, with the directory's own; None: that was done.
        close: It is sealed, close it after.
        run, generation: Whose it is, and how many syncs of that run had failed when it was handed over.
        blocks: How many of its blocks are on the disk then.
    """

    segment: SegmentWriter
    written: dict[int, int] | None
    directory: str | None
    close: bool
    run: str = ""
    generation: int = 0
    blocks: int = 0


class OthersJob(NamedTuple):
    """Segments of other writers to be forced, because somebody will claim that what is in them is safe.

    Attributes:
        streams: Of whom it will be claimed.
    """

    run: str
    directory: str
    paths: list[str]
    streams: list[int]


Job = Union[SyncJob, OthersJob]


class SyncResult(NamedTuple):
    job: Job
    error: OSError | None
    seconds: float


class Syncer:
    """Owns the thread; `stop` finishes what was submitted."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._failed: weakref.WeakKeyDictionary[SegmentWriter, OSError] = weakref.WeakKeyDictionary()
        self.results: deque[SyncResult] = deque()
        self.outstanding = 0
        self._thread = threading.Thread(target=self._run, name="stepd-syncer", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
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
                if isinstance(job, SyncJob):
                    self._force(job)
                else:
                    self._force_others(job)
            except OSError as failure:
                error = failure
            except (
                Exception
            ) as failure:  # a bug, or a segment closed meanwhile: the thread must live, and claim nothing
                error = OSError(errno.EIO, f"unexpected: {failure!r}")
            self.results.append(SyncResult(job, error, clock.monotonic() - start))

    def _force(self, job: SyncJob) -> None:
        segment = job.segment
        try:
            if segment in self._failed:
                raise self._failed[segment]
            try:
                segment.sync()
                if job.directory is not None:
                    sync_names(self._files, job.directory, RUN_LEVELS)
            except OSError as error:
                self._failed[segment] = error
                raise
        finally:
            if job.close:
                with contextlib.suppress(OSError):
                    segment.close()

    def _force_others(self, job: OthersJob) -> None:
        for path in job.paths:
            try:
                file = self._files.open(path, write=True)
            except FileNotFoundError:  # compacted or removed since: what replaced it was forced by whoever did that
                continue
            try:
                file.sync()
            except OSError:
                mark_suspect(self._files, path)
                raise
            finally:
                file.close()
        sync_names(self._files, job.directory, RUN_LEVELS)

    def stop(self) -> None:
        """Waits for what was submitted and ends the thread."""
        self._jobs.put(None)
        self._thread.join()
