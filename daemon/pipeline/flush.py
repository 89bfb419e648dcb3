"""When the waiting records of a stream are written: by bytes, by age, by commit, or because somebody asked.

Why throttle: every flush is a block with a header and a system call. A tight loop fills `flush_bytes` in milliseconds; a
slow one gets at most five blocks a second; open rows wait longer, so that their pieces meet and are merged in memory.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum

from daemon.settings import DaemonSettings


class Reason(str, Enum):
    """Why a flush happened; counted in `status`."""

    BYTES = "bytes"
    COMMIT = "commit"
    AGE = "age"
    REQUEST = "request"
    FINISH = "finish"
    DRAIN = "drain"


class FlushPolicy:
    """One stream's waiting records, as numbers.

    Contract: `note` for every batch taken, `due` to ask, `flushed` after the write succeeded (not after it failed).
    """

    __slots__ = ("_asked", "_bytes", "_committed_since", "_settings", "_since", "counts")

    def __init__(self, settings: DaemonSettings, counts: Counter[str]) -> None:
        self._settings = settings
        self.counts = counts
        self._bytes = 0
        self._since: float | None = None
        self._committed_since: float | None = None
        self._asked: Reason | None = None

    def note(self, now: float, size: int, *, has_commits: bool, has_blobs: bool = False) -> None:
        """A batch of `size` bytes came.

        Args:
            has_commits: Some of its rows are complete.
            has_blobs: It announces blobs: the memory that they take in the trainer is free when their rows are acked, so
                what waits is written at once. Few and warm pages also make the next value's copy cheaper.
        """
        self._bytes += size + (self._settings.flush_bytes if has_blobs else 0)
        if self._since is None:
            self._since = now
        if has_commits and self._committed_since is None:
            self._committed_since = now

    def ask(self, reason: Reason) -> None:
        """The next `due` says yes, whatever waits."""
        self._asked = reason

    def due(self, now: float) -> Reason | None:
        """Why what waits must be written now, or None."""
        if self._asked is not None:
            return self._asked
        if self._since is None:
            return None
        if self._bytes >= self._settings.flush_bytes:
            return Reason.BYTES
        # The same sums as in `deadline`: a difference rounds otherwise, and the server would spin until it agrees.
        if self._committed_since is not None and now >= self._committed_since + self._settings.flush_commit_seconds:
            return Reason.COMMIT
        if now >= self._since + self._settings.flush_age_seconds:
            return Reason.AGE
        return None

    def deadline(self) -> float | None:
        """When `due` will say yes without anything new, or None while nothing waits."""
        if self._asked is not None or (self._since is not None and self._bytes >= self._settings.flush_bytes):
            return 0.0
        if self._since is None:
            return None
        by_age = self._since + self._settings.flush_age_seconds
        if self._committed_since is None:
            return by_age
        return min(by_age, self._committed_since + self._settings.flush_commit_seconds)

    def flushed(self, reason: Reason) -> None:
        self.counts[reason.value] += 1
        self._bytes = 0
        self._since = self._committed_since = self._asked = None
