"""Lines: the console of a run in one process, which is a stream of its own with a ring of its own (docs/console.md).

Life: `lines_of` makes one for a run, which costs nothing; the first line opens the stream, of kind "console". What the process
prints (`sdk._console`) and its log records (`sdk._handler`) are rows in it. It ends with the run; in a forked or spawned
child, with the process. A process that is killed leaves the ring to the daemon, like every other one.

A row is one line or one log record; its step is its number in the stream. Its keys are in docs/console.md#rows.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import clock
from .journal.format import WORD_RELEASED
from .limits import KIB, MIB

if TYPE_CHECKING:
    from ._run import Run

# Limit: what is kept in memory of the last lines, once the first part is full; stored when the stream ends.
TAIL_BYTES_MAX = MIB
# Limit: a longer line becomes several rows, so that a small ring holds some of them.
TEXT_BYTES_MAX = 64 * KIB
# Limit: what a row takes besides its text: header, keys, small values.
ROW_BYTES = 80
_TEXT_SHARE = 32
# Lines that were printed while the stream was being opened by another thread.
_EARLY_MAX = 10_000
# Why not for ever: an interrupt at the wrong instruction may leave the lock held, and printing must not stop then.
_LOCK_SECONDS_MAX = 0.01

_HERE = os.path.dirname(__file__) + os.sep
_LIBRARY = os.path.dirname(os.__file__) + os.sep

_all: weakref.WeakSet[Lines] = weakref.WeakSet()


class Lines:
    """The console of one run. Any thread, signal handler or finaliser may call `put`.

    Attributes:
        on_end: Called before the stream ends, while it still takes rows. What they raise is nobody's trouble.
        on_look: Called by the stream's sender at each of its looks.
        failed: Rows that could not be made into records, or came after the end.
    """

    _log: Callable[[dict[str, Any]], None]

    def __init__(self, run: Run) -> None:
        self._run = run
        self._settings = run.settings.replace(misuse="warn", on_full="refuse", late_steps="merge")
        self.on_end: list[Callable[[], None]] = []
        self.on_look: Callable[[], None] = _nothing
        self._stream: Any = None
        self._ended = self._begins_end = False
        self._ending: threading.Thread | None = None
        # The training's open step, without a lock (docs/journal.md).
        journal = getattr(run._stream, "journal", None)
        self._open_step: Callable[[], int] = journal.open_step if journal is not None else self._step_of_run
        self._reset()
        if not run._store.path:
            self._ended, self._log = True, _drop
        _all.add(self)

    def _step_of_run(self) -> int:
        return self._run.step

    def _reset(self) -> None:
        self._lock = threading.RLock()  # never held while anything waits; its users are those who print
        self._early: deque[dict[str, Any]] = deque()
        self._opening = False
        self._tail: deque[tuple[int, dict[str, Any]]] = deque()
        self._tail_bytes = 0
        self._missed: Counter[str] = Counter()
        self._left = max(self._settings.console_bytes_max - TAIL_BYTES_MAX, 0)
        self.failed = 0
        self._log = self._open_and_log

    @property
    def text_bytes_max(self) -> int:
        """The most bytes of text that a row may have; whoever has more makes several."""
        ring = self._settings.secondary_ring_bytes if self._is_of_child() else self._settings.console_ring_bytes
        return min(TEXT_BYTES_MAX, ring // _TEXT_SHARE)

    @property
    def pid(self) -> int:
        """The process that began the run, or joined it."""
        return self._run._pid

    def is_crowded(self) -> bool:
        """Whether half the ring waits to be stored: what need not be put at once can wait until the sender has looked."""
        journal = getattr(self._stream, "journal", None)
        if journal is None or journal.is_unbound():
            return False
        ring = journal.ring
        return bool(journal.mark()[0] - ring.words[WORD_RELEASED] > ring.capacity // 2)

    def wake(self) -> None:
        """Has the sender look now."""
        sender = getattr(self._stream, "_sender", None)
        if sender is not None:
            sender.wake()

    @property
    def is_open(self) -> bool:
        """Whether there is a stream: whether there ever was a line."""
        return self._stream is not None

    def put(self, row: dict[str, Any]) -> None:
        """Stores one row, which becomes ours: the open step (`at`) is added. Never waits for anybody and never raises."""
        try:
            if "at" not in row:
                row["at"] = self._open_step()
            text = row.get("text", "")
            left = self._left - ROW_BYTES - (len(text) if text.isascii() else 3 * len(text))
            if "error" in row:
                left -= 3 * len(row["error"] or "")
            if left < 0:
                self._keep_as_tail(row, self._left - left)
                return
            self._left = left
            self._log(row)
        except Exception as error:  # printing must not end a training
            self.failed += 1
            if is_of_a_signal(error):
                raise

    def expect(self) -> None:
        """Something is printed that is no row yet: opens the stream, so that its sender looks and the end comes here."""
        if not self._ended:
            try:
                if self._log == self._log_first:
                    self._log = self._stream.log
                    self._stream.append_meta({})  # makes it ours, see `_log_first`
                    self._end_at_exit()
                elif self._stream is None and not self._opening and self._lock.acquire(blocking=False):
                    try:
                        self._open()
                    finally:
                        self._lock.release()
                    self.flush(0.0)
            except Exception as error:  # as in `put`
                self.failed += 1
                if is_of_a_signal(error):
                    raise

    def flush(self, timeout: float) -> bool:
        """Waits until every row so far is stored, at most `timeout` seconds; whether it is."""
        return bool(self._stream.flush(timeout)) if self._stream is not None else True

    def end(self, timeout: float, state: str = "finished", exit_code: int = 0) -> None:
        """Ends the stream, once everything in it is stored, as `Run.finish` does; a second call does nothing."""
        if self._ended:
            return
        for callback in self.on_end:
            try:
                callback()
            except Exception:  # as in `put`
                self.failed += 1
        if self._early:
            self._open()
        self._store_tail()
        self._ended, self._log = True, _drop
        if self._stream is not None:
            self._finish(timeout, state, exit_code)

    def end_with_run(self, state: str, exit_code: int) -> None:
        """`end` whose wait is `join`: the run's own stream is stored at the same time."""
        self._begins_end = True
        self.end(self._run._end_seconds, state, exit_code)

    def join(self) -> None:
        """Waits until what `end_with_run` began is done."""
        if self._ending is not None:
            self._ending.join()
            self._ending = None

    def _finish(self, timeout: float, state: str, exit_code: int) -> None:
        def finish() -> None:
            receipt = self._stream.finish(state, exit_code, timeout)
            lost = self.failed + (receipt.refused if receipt is not None else 0)
            if lost:
                self._run._say(f"stepd: console: {lost:,} lines found no room and are not stored")

        if self._begins_end:
            ending = threading.Thread(target=finish, name="stepd-console")
            with contextlib.suppress(RuntimeError):  # none can be started while the interpreter ends
                ending.start()
                self._ending = ending
                return
        finish()

    # -- the stream --------------------------------------------------------------------------------------------------

    def _open_and_log(self, row: dict[str, Any]) -> None:
        """The first rows: one thread opens the stream, others (and a signal handler in the same) leave theirs to it.

        Race: whoever does not get the lock has left its row before it tried, and the holder looks again after letting go.
        """
        if len(self._early) == _EARLY_MAX:
            self.failed += 1
            return
        self._early.append(row)
        while self._early and not self._opening and self._lock.acquire(blocking=False):
            try:
                self._open()
            finally:
                self._lock.release()

    def _open(self) -> None:
        self._opening = True
        try:
            if self._stream is None:
                self._stream = self._open_stream()
            while self._early:
                self._stream.log(self._early.popleft())
            self._log = self._stream.log
        finally:
            self._opening = False

    def _open_stream(self) -> Any:
        from . import _api
        from ._disabled import DisabledStream

        run, main = self._run, self._run._stream
        facts = getattr(main, "_facts", {})
        try:
            stream: Any = _api.open_stream(
                run._store, {}, self._settings, run_id=run.id, kind="console", parent=main.id if main is not None else None,
                attempt=facts.get("attempt") or 1, extra=run._launch.facts(),
            )  # fmt: skip
        except Exception as error:  # whatever it is: a program goes on printing
            run._say(f"stepd: the console of run {run.id!r} is not stored: {error}")
            return DisabledStream()
        stream.on_look = self._looked
        if self._is_of_child():
            self._end_at_exit()
        return stream

    def _looked(self) -> None:
        self.on_look()

    # -- beyond the limit --------------------------------------------------------------------------------------------

    def _keep_as_tail(self, row: dict[str, Any], size: int) -> None:
        """The first part is full: of what follows the last is kept."""
        if self._ended:
            return
        self._left = 0
        row.setdefault("created", clock.wall_ns() / 1e9)
        if not self._lock.acquire(timeout=_LOCK_SECONDS_MAX):
            self._missed[str(row.get("from"))] += 1
            return
        try:
            self._tail.append((size, row))
            self._tail_bytes += size
            self._trim()
        finally:
            self._lock.release()

    def _trim(self) -> None:
        while self._tail_bytes > TAIL_BYTES_MAX:
            size, row = self._tail.popleft()
            self._tail_bytes -= size
            self._missed[str(row.get("from"))] += 1

    def _store_tail(self) -> None:
        """A mark for each source of what is missing, and then what was kept."""
        why = f"more than {self._settings.console_bytes_max:,} bytes (console_bytes_max): the middle is left out"
        for source, count in sorted(self._missed.items()):
            self._log({"from": source, "missed": count, "why": why, "at": self._run.step})
        self._missed.clear()
        while self._tail:
            self._log(self._tail.popleft()[1])

    # -- processes ---------------------------------------------------------------------------------------------------

    def _is_of_child(self) -> bool:
        """Whether nobody ends this but the end of the process."""
        return self._run._pid != os.getpid() or self._run._kind == "spawn"

    def _after_fork_in_child(self) -> None:
        """What waits is the parent's. The stream makes itself a ring with the first line, if it was open."""
        self._reset()
        if self._ended:
            self._log = _drop
        elif self._stream is not None:
            self._log = self._log_first

    def _log_first(self, row: dict[str, Any]) -> None:
        """In a forked child. The stream registers its end when it becomes ours; what is registered later comes before."""
        self._log = self._stream.log
        self._stream.log(row)
        self._end_at_exit()

    def _end_at_exit(self) -> None:
        """Before the stream itself ends, which does the same (`sdk._stream.finish_at_exit`)."""
        pid = os.getpid()

        def end() -> None:
            if os.getpid() == pid:
                self.end(self._settings.exit_seconds_max)

        atexit.register(end)
        util = sys.modules.get("multiprocessing.util")
        if util is not None:
            util.Finalize(None, end, exitpriority=110)


def lines_of(run: Run) -> Lines:
    """The console of a run in this process."""
    found: Lines | None = run.__dict__.get("_lines")
    if found is None:
        found = run.__dict__.setdefault("_lines", Lines(run))
        run._at_end(found.end_with_run)
    return found


def is_of_a_signal(error: Exception) -> bool:
    """Whether a handler of the program's raised it while we were at work (a time limit by SIGALRM): it is not ours to keep.

    A handler's function is the innermost frame, and neither of this package nor of the standard library.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    file = trace.tb_frame.f_code.co_filename
    return "site-packages" in file or not file.startswith((_HERE, _LIBRARY, "<frozen"))


def _nothing() -> None:
    pass


def _drop(row: dict[str, Any]) -> None:
    """What comes after the end, or where nothing is stored."""


def _forked() -> None:
    for lines in list(_all):
        lines._after_fork_in_child()


os.register_at_fork(after_in_child=_forked)
