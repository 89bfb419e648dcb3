"""daemon.store.syncer: the thread that forces segments to the disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.store.syncer import Syncer, SyncJob, SyncResult
from sdk.segment.format import KIND_META, FileHeader
from sdk.segment.writer import SegmentWriter
from tests.serving import FailingFiles, until


class Desk:
    def __init__(self, directory: Path) -> None:
        self.directory = str(directory)
        self.files = FailingFiles()
        self.syncer = Syncer(self.files)
        self.count = 0

    def segment(self) -> SegmentWriter:
        self.count += 1
        path = os.path.join(self.directory, f"{self.count}.seg")
        segment = SegmentWriter.create(self.files, path, FileHeader(bytes(16), 1, self.count, 0))
        segment.append_map(KIND_META, {"n": self.count})
        return segment

    def results(self, count: int) -> list[SyncResult]:
        taken: list[SyncResult] = []
        until(lambda: len(taken) >= count or taken.extend(self.syncer.take()) or len(taken) >= count, "results")
        return taken


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.syncer.stop()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_results_come_back_in_order(desk: Desk) -> None:
    """Each with its job, and the count of what is outstanding falls to zero as they are taken."""
    jobs = [SyncJob(desk.segment(), {7: n}, desk.directory if n % 2 else None, True) for n in range(10)]
    for job in jobs:
        desk.syncer.submit(job)
    assert desk.syncer.outstanding == 10
    results = desk.results(10)
    assert [result.job for result in results] == jobs
    assert [result.error for result in results] == [None] * 10
    assert all(result.seconds >= 0 for result in results)
    assert desk.syncer.outstanding == 0
    assert desk.files.synced == [job.segment.path for job in jobs]


def test_an_error_is_a_result(desk: Desk) -> None:
    """The thread lives on, and whether the segment is closed does not depend on luck."""
    before = descriptors()
    first, second = desk.segment(), desk.segment()
    desk.files.refuse("sync")
    desk.syncer.submit(SyncJob(first, {}, desk.directory, True))
    (failed,) = desk.results(1)
    assert isinstance(failed.error, OSError)
    desk.files.allow()
    desk.syncer.submit(SyncJob(second, {}, None, True))
    assert desk.results(1)[0].error is None
    assert descriptors() == before


def test_an_open_segment_stays_open(desk: Desk) -> None:
    """`close` false: the server goes on appending."""
    segment = desk.segment()
    desk.syncer.submit(SyncJob(segment, {}, None, False))
    desk.results(1)
    segment.append_map(KIND_META, {"more": True})
    segment.close()


def test_a_directory_that_is_gone_is_an_error(desk: Desk) -> None:
    """The name would not survive a power loss: it must not be said to."""
    desk.syncer.submit(SyncJob(desk.segment(), {}, os.path.join(desk.directory, "no"), True))
    assert isinstance(desk.results(1)[0].error, OSError)


def test_stop_finishes_what_was_submitted(desk: Desk) -> None:
    """Leaving never forgets a segment."""
    syncer = Syncer(desk.files)
    segments = [desk.segment() for _ in range(5)]
    for segment in segments:
        syncer.submit(SyncJob(segment, {}, None, True))
    syncer.stop()
    assert len(syncer.take()) == 5
    assert not syncer._thread.is_alive()


def test_submitting_never_waits_for_the_disk(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that hangs holds up the thread, not the server."""
    gate = threading.Event()
    real: Any = SegmentWriter.sync
    monkeypatch.setattr(SegmentWriter, "sync", lambda self: (gate.wait(20), real(self))[0])
    jobs = [SyncJob(desk.segment(), {}, None, True) for _ in range(3)]
    for job in jobs:
        desk.syncer.submit(job)
    assert desk.syncer.take() == []
    assert desk.syncer.outstanding == 3
    gate.set()
    assert len(desk.results(3)) == 3
