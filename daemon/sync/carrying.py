"""Carrying one run to one target, once: the lock, the cursor, the passage, and what came of it.

Invariant: nobody else carries the run to that target meanwhile, as far as record locks reach: a lock beside the cursor is held. Nothing
is written into the run's directory.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from daemon.sync import outcome
from daemon.sync.cursor import Cursor, cursor_path
from daemon.sync.looking import Look, Source, cursors_of, look_at
from daemon.sync.outcome import Outcome
from daemon.sync.passage import Passage
from daemon.sync.target import Retriable, Stopped, Target
from sdk import clock
from sdk._secrets import MASK, is_secret_name, mask_text
from sdk.errors import Error, NotFoundError, StoreError, UsageError
from sdk.files import DISK, EXPORTS, Files
from sdk.platform import HeldLock, hold_lock
from sdk.reader import Run
from sdk.reader.delivery import Delivered
from sdk.reader.lanes import TRAINING
from sdk.segment.naming import RUNS

# What the disk says, and what helps.
_DISK_CURES = {
    errno.ENOSPC: "make room there; the same command then goes on where it was",
    errno.EDQUOT: "make room below your quota; the same command then goes on where it was",
    errno.EACCES: "chmod u+rwX, or another directory",
    errno.EPERM: "the owner of the directory, or another one",
    errno.EROFS: "a directory that can be written to",
    errno.ENOTDIR: "a directory, where a file lies",
    errno.EISDIR: "a file, where a directory lies",
    errno.ENAMETOOLONG: "a directory with a shorter name",
    errno.EFBIG: "a file system, or a `ulimit -f`, that takes larger files",
    errno.EMFILE: "ulimit -n 4096",
    errno.EIO: "another disk: this one, or the network to it, is broken",
    errno.ESTALE: "the same command once more: the network's file system was away",
}

# Points and bytes so far, and how much of the run has passed, 0 to 1.
Report = Callable[[int, int, float], None]

# How often progress is told.
_REPORT_SECONDS = 0.1
_BUSY_SECONDS = 1.0
_SECRET_CHARACTERS_MIN = 6
_REASON_CHARACTERS_MAX = 1000
# Limit: of what is wrong with a source; a damaged run may have thousands of it.
_TROUBLES_MAX = 20


def carry_run(
    store: str,
    name: str,
    target: Target,
    *,
    is_stopped: Callable[[], bool] = lambda: False,
    report: Report = lambda points, size, share: None,
) -> Outcome:
    """Brings a target up to date with one run of a store. What is the run's or the target's fault is in the outcome.

    Args:
        name: Of the run's directory.
        is_stopped: Asked now and then; True ends it at the next batch.
        report: Told of progress, at most ten times a second.
    """
    began = clock.monotonic()
    pass_ = _Pass(store, name, target, is_stopped, report)
    try:
        pass_.go()
        found = pass_.outcome(pass_.state())
    except Stopped:
        found = pass_.outcome(outcome.STOPPED, "stopped before its end; the next sync goes on from there")
    except _Busy:
        found = pass_.outcome(outcome.BUSY, "another process carries it at this moment")._replace(after=_BUSY_SECONDS)
    except Retriable as error:
        found = pass_.outcome(outcome.DEFERRED, reason_of(error))._replace(after=error.after)
    except Exception as error:
        is_misuse = isinstance(error, UsageError) and not target.is_checked
        later = isinstance(error, Error) and error.retriable
        state = outcome.MISUSE if is_misuse else outcome.DEFERRED if later else outcome.FAILED
        found = pass_.outcome(state, reason_of(error, target.place.text))
    finally:
        pass_.close()
    return found._replace(seconds=clock.monotonic() - began)


class _Busy(Exception):
    """Somebody else holds the lock."""


class _Pass:
    """One call of `carry_run`; what it knows when it fails is in the outcome too."""

    def __init__(self, store: str, name: str, target: Target, is_stopped: Callable[[], bool], report: Report) -> None:
        self._store, self._name, self._target = store, name, target
        self._is_stopped, self._report = is_stopped, report
        self._directory = os.path.join(store, RUNS, name)
        self._lock: HeldLock | None = None
        self._run: Run | None = None
        self._cursor: Cursor | None = None
        self._passage: Passage | None = None
        self._was_new = True
        self._reported = 0.0
        self._trouble: list[str] = []

    def go(self) -> None:
        if not self._target.is_checked:
            self._target.check()
            self._target.is_checked = True
        now, look = clock.wall_ns() / 1e9, look_at(self._directory)
        if not look.is_run:
            raise NotFoundError(f"there is no run in {self._directory!r}")
        run = self._run = Run(self._directory)
        path = cursor_path(cursors_of(self._store, self._target), run.id)
        # A cursor that lies in the target is of it: who may read the one may read the other.
        files = DISK if self._target.cursors() is None else EXPORTS
        self._lock = _lock_beside(path, files)
        cursor = Cursor(path, run.id, self._target.place.text, files)
        cursor.read()
        self._cursor, self._was_new = cursor, cursor.is_new
        passage = self._passage = Passage(run, cursor, stopping=self._stop_if_told, moving=self._moved)
        self._target.carry(passage)
        self._note(Source(self._store, cursor), look, look.is_settled(now))

    def _note(self, source: Source, look: Look, is_settled: bool) -> None:
        assert self._run is not None
        assert self._passage is not None
        run = self._run
        troubles = list(_troubles(run))
        self._trouble = [text for text in troubles if text not in source.known][:_TROUBLES_MAX]
        source.known = troubles
        source.id, source.name, source.project = run.id, run.name, run.project
        source.is_over, source.is_there = self._passage.is_over, True
        source.signature = look.signature if source.is_over and is_settled else None
        source.note()

    def _stop_if_told(self) -> None:
        if self._is_stopped():
            raise Stopped

    def _moved(self, points: int, size: int) -> None:
        passage, now = self._passage, clock.monotonic()
        if passage is not None and now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            self._report(passage.points, passage.size, passage.share)

    def state(self) -> str:
        assert self._passage is not None
        if not self._passage.is_over:
            return outcome.LIVE
        return outcome.DELIVERED if self._was_new or self._passage.points or self._passage.size else outcome.UP_TO_DATE

    def outcome(self, state: str, reason: str = "") -> Outcome:
        found = Outcome(self._name, self._target.place.text, state, reason=reason, trouble=tuple(self._trouble))
        run, passage, cursor = self._run, self._passage, self._cursor
        if run is not None:
            found = found._replace(run=run.id, name=run.name, project=run.project)
        if passage is not None and cursor is not None:
            # Of the cursor, not of the passage: what was not committed is counted by the pass that delivers it.
            found = found.with_lost(cursor.lost)
            found = found._replace(points=passage.points, size=passage.size, told=tuple(cursor.told))
            found = found._replace(has_ended=passage.has_ended)
        if state not in outcome.GOOD:
            found = self._with_behind(found)
        return found

    def _with_behind(self, found: Outcome) -> Outcome:
        """With how many records the target lacks, where that can be told: also when it was away before the run was looked at."""
        run, cursor = self._run, self._cursor
        try:
            if run is None and look_at(self._directory).is_run:
                run = Run(self._directory)
                found = found._replace(run=run.id, name=run.name, project=run.project)
            if run is not None and cursor is None:
                cursor = Cursor(cursor_path(cursors_of(self._store, self._target), run.id), run.id, found.target)
                cursor.read()
        except (
            Exception
        ):  # what cannot be read has been told, or is when the target is there; a target of others may raise anything
            return found
        return found if run is None else found._replace(behind=_behind(run, cursor))

    def close(self) -> None:
        if self._lock is not None:
            # Invariant: removed while it is held; `hold_lock` sees that a file it has waited for is gone.
            try:
                DISK.remove(self._lock.path)
            except OSError:
                pass
            self._lock.release()


def _behind(run: Run, cursor: Cursor | None) -> int:
    """How many of the run's records no pass has delivered."""
    known: Delivered = {} if cursor is None else cursor.rows.seen if cursor.rows is not None else cursor.delivered
    try:
        return sum(
            max(0, stream.records - sum(last - first + 1 for first, last in known.get(int(stream.id, 16), ())))
            for stream in run.streams
            if stream.kind in TRAINING
        )
    except (OSError, Error):  # what cannot be read now has said so already
        return 0


def _lock_beside(path: str, files: Files) -> HeldLock:
    """The lock of a cursor.

    Raises:
        _Busy: Somebody has it.
        StoreError: Nothing can be noted there.
    """
    directory = os.path.dirname(path)
    try:
        files.make_directory(directory)
        lock = hold_lock(f"{path}.lock")
    except OSError as error:
        raise StoreError(
            f"cannot note in {directory!r} how far runs were carried: {error.strerror}",
            hint="a target that is a directory keeps that itself, so that a store may be one that is only read",
        ) from error
    if lock is None:
        raise _Busy
    return lock


def _troubles(run: Run) -> Iterator[str]:
    """What of a run is damaged or missing, in words that are the same at every pass."""
    for damage in run.damage:
        yield f"damage in {os.path.basename(damage.path)}: {damage.reason}"
    for gap in run.gaps:
        what = f"{gap.count:,} records" if gap.count else f"bytes of {gap.key!r}"
        yield f"{what} (steps {gap.step_min}–{gap.step_max}) of stream {gap.stream} are missing: {gap.reason}"


def misused(run: str, url: str, error: Error) -> Outcome:
    """The outcome for a target that cannot even be made."""
    return Outcome(run, url, outcome.MISUSE, reason=reason_of(error))


def reason_of(error: BaseException, where: str = "") -> str:
    """An error in one text, without what looks like a secret or is the value of a variable that is named like one.

    Args:
        where: What was written to, for errors of the disk that name no file.
    """
    if isinstance(error, Error):
        text = f"{error.message} (try: {error.hint})" if error.hint else error.message
    elif isinstance(error, OSError) and error.errno in _DISK_CURES:
        path = repr(error.filename) if error.filename else where or "the disk"
        text = f"{path}: {os.strerror(error.errno).lower()} (try: {_DISK_CURES[error.errno]})"
    else:
        text = f"{type(error).__name__}: {error}"
    for name, value in os.environ.items():
        # PWD is no password.
        if len(value) >= _SECRET_CHARACTERS_MIN and is_secret_name(name) and name not in ("PWD", "OLDPWD"):
            text = text.replace(value, MASK)
    return mask_text(text)[:_REASON_CHARACTERS_MAX]
