"""`sdk.LogHandler`: a handler of the standard library's logging that stores records as rows of a run's console (docs/logging.md).

Life: the program makes one, in code or by `logging.config.dictConfig`, before or after `init`. It has no thread, no queue and
no file: a record becomes a row in the calling thread and is put into the console's ring (`sdk._lines`), which waits for
nothing. Records that come while there is no run wait here, bounded, for the next one.

Imported only by programs that use it: `import sdk` does not load `logging`.
"""

from __future__ import annotations

import collections
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._records import TEXT_BYTES_MIN, rows_of, unformatted

if TYPE_CHECKING:
    from ._lines import Lines
    from ._run import Run

# Limit: with rows of some 200 bytes a quarter of the console's ring (4 MiB), so that all of it finds room at `init`.
WAITING_ROWS_MAX = 4096
WAITING_CHARACTERS_MAX = 1024 * 1024
FLUSH_SECONDS_MAX = 2.0
# Texts inside texts: a value whose __str__ logs, whose arguments log. Deeper ones are stored without being formatted.
_DEPTH_MAX = 2
_GLOBALS = f"{__package__}._globals"

_handlers: weakref.WeakSet[LogHandler] = weakref.WeakSet()


class _Thread(threading.local):
    """What a thread is doing.

    Attributes:
        depth: How many records it is formatting, one inside the other.
        asked: The record that handlers were asked about last. Weak, because its traceback holds the training's tensors.
        answers: By handler what became of that record: False refused by its filters, True accepted. Why remembered: a filter
            may count, and must see a record once.
        taken: Whether a handler stored it.
    """

    depth = 0
    asked: Callable[[], logging.LogRecord | None] = staticmethod(lambda: None)
    answers: dict[int, bool | logging.LogRecord]
    taken = False

    def begin(self, record: logging.LogRecord, answers: dict[int, bool | logging.LogRecord]) -> None:
        self.asked, self.answers, self.taken = weakref.ref(record), answers, False


_thread = _Thread()


class _Waiting:
    """Rows that came while there was no run, with the time of each; the oldest are dropped first, and counted.

    The lock is one that a signal handler or a finaliser that logs may take again.
    """

    def __init__(self) -> None:
        self.rows: collections.deque[tuple[float, dict[str, Any]]] = collections.deque()
        self.dropped = 0
        self._characters = 0
        self._lock = threading.RLock()

    def keep(self, now: float, row: dict[str, Any]) -> None:
        with self._lock:
            self.rows.append((now, row))
            self._characters += _size(row)
        while len(self.rows) > WAITING_ROWS_MAX or self._characters > WAITING_CHARACTERS_MAX:
            if not self._drop():
                break

    def _drop(self) -> bool:
        with self._lock:
            if len(self.rows) < 2:
                return False
            self._characters -= _size(self.rows.popleft()[1])
            self.dropped += 1
            return True

    def take(self) -> list[dict[str, Any]]:
        """All of them, with a mark before them where some were dropped."""
        with self._lock:
            rows, dropped = self.rows, self.dropped
            self.rows = collections.deque()
            self.dropped = self._characters = 0
        found = [{"created": now, **row} for now, row in rows]
        if dropped:
            why = f"more than {WAITING_ROWS_MAX:,} records or {WAITING_CHARACTERS_MAX:,} characters waited for init()"
            found.insert(0, {"from": "log", "missed": dropped, "why": why})
        return found


_waiting = _Waiting()


def _size(row: dict[str, Any]) -> int:
    return 100 + sum(len(value) for value in row.values() if type(value) is str)


def _forked() -> None:
    """In a forked child: what waits is the parent's, and whoever held the lock is not here."""
    global _waiting
    _waiting = _Waiting()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class LogHandler(logging.Handler):
    """Stores log records in a run, to be read with `run.logs()` or `stepd logs`.

    Takes some ten microseconds a record, waits for nothing and never raises into the program. Any thread may log through it, and
    a forked child logs into a console of its own. A record whose row finds no room is counted, like a refused `log` call, and
    shown as a gap. Without a formatter the text is the message; level, logger, time, file and line, thread, traceback and
    `extra` are stored apart in any case.

    Without `run`, a record goes to the run that is current when it is logged. Those that come before `init`, or between two
    runs, wait for the next run (the last 4096 of them, or about 1 MB); those that no run follows are not stored. With `run`,
    records that come after its `finish` are not stored.
    """

    def __init__(self, level: int | str = logging.NOTSET, run: Run | None = None) -> None:
        """Args:
            level: Records below it are not stored.
            run: Where to; None: the current run.

        Raises:
            TypeError: `run` is no run.
            ValueError: There is no such level.
        """
        super().__init__(level)
        if run is not None and not isinstance(run, _run_class()):
            raise TypeError(f"LogHandler() run is {type(run).__name__}, expected what sdk.init() or sdk.attach() gave")
        self._run = run
        # Set by `attach_root`: a program whose only handler this is prints its warnings as it did before.
        self._prints_for_none = False
        _handlers.add(self)

    def handle(self, record: logging.LogRecord) -> bool:
        """Filters and stores one record; whether the filters let it pass.

        Why not the base class's: it holds the handler's lock, for which a signal handler or a `__del__` that logs in another
        thread would wait.
        """
        passed = self._passed(record)
        if isinstance(passed, bool):
            if not passed:
                return False
            passed = record
        self.emit(passed)
        if _thread.asked() is not record:  # a value whose __str__ logs
            _thread.begin(record, {})
        _thread.answers[id(self)] = True
        _thread.taken = _thread.taken or self._target() is not None
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Stores one record, whatever the filters say."""
        _thread.depth += 1
        lines: Lines | None = None
        try:
            now = time.time()
            run = self._target()
            lines = None if run is None else _lines(run)
            if _thread.depth > _DEPTH_MAX:
                rows = unformatted(record)
            else:
                rows = rows_of(record, self.formatter, now, TEXT_BYTES_MIN if lines is None else lines.text_bytes_max)
            self._store(now, rows, run, lines)
            if self._prints_for_none and not _reaches_other(record, self):
                _print_last(record)
        except Exception:
            # Why silent: the base class prints a traceback for each record, and this is the training's stderr. What
            # cannot be formatted is stored all the same (`rows_of`), so hardly anything comes here; the end says how much.
            if lines is not None:
                lines.failed += 1
        finally:
            _thread.depth -= 1

    def flush(self) -> None:
        """Waits, at most 2 s, until what was logged is stored where a reader finds it."""
        run = self._target()
        if run is not None:
            try:
                _lines(run).flush(FLUSH_SECONDS_MAX)
            except Exception:  # as in `emit`
                pass

    def _passed(self, record: logging.LogRecord) -> bool | logging.LogRecord:
        """What the filters make of a record: yes, no, or another record (Python 3.12 on). They are asked once in a thread."""
        if _thread.asked() is not record:
            _thread.begin(record, {})
        answers = _thread.answers
        if id(self) not in answers:
            found: Any = self._filtered(record)
            if _thread.asked() is not record:  # a filter that logs
                _thread.begin(record, answers)
            answers[id(self)] = found if isinstance(found, logging.LogRecord) and found is not record else bool(found)
        return answers[id(self)]

    def _filtered(self, record: logging.LogRecord) -> Any:
        try:
            return self.filter(record)
        except Exception:  # a filter's bug ends no training, and what it would have said nobody knows: it passes
            return True

    def _store(self, now: float, rows: list[dict[str, Any]], run: Run | None, lines: Lines | None) -> None:
        if run is not None and lines is not None:
            if self._run is None and _waiting.rows:
                begin(run)
            for row in rows:
                lines.put(row)
        elif self._run is None and not _is_captured():
            for row in rows:
                _waiting.keep(now, row)

    def _target(self) -> Run | None:
        """The run that takes records now."""
        if _is_captured():
            return None
        run = self._run if self._run is not None else _current()
        return None if run is None or run._finished or run.disabled else run

    def __repr__(self) -> str:
        where = "the current run" if self._run is None else f"run {self._run.id!r}"
        return f"<sdk.LogHandler ({logging.getLevelName(self.level)}) into {where}>"


def takes(record: logging.LogRecord) -> bool:
    """Whether a handler of ours stores this record, or did: what prints it need not be stored as well.

    For the capture of the console, called in the thread that handles the record. It looks at the handlers on the way from the
    record's logger to the root, their levels and their filters; what a queue hands to another thread it cannot know.
    """
    if not _handlers:
        return False
    try:
        if _thread.asked() is record and _thread.taken:
            return True
        return any(
            isinstance(handler, LogHandler)
            and record.levelno >= handler.level
            and handler._target() is not None
            and handler._passed(record) is not False
            for handler in _on_the_way(record)
        )
    except Exception:  # a filter that fails: the line is stored as it was printed
        return False


def begin(run: Run) -> None:
    """Gives the run what was logged before it."""
    if not run.disabled:
        rows = _waiting.take()
        if rows:
            lines = _lines(run)
            for row in rows:
                lines.put(row)


def check_level(level: Any) -> None:
    """Raises what `LogHandler` would raise for a level: TypeError, ValueError."""
    logging.Handler(level)


def attach_root(run: Run, level: int | str = logging.NOTSET) -> None:
    """Has the root logger's records from `level` on stored until the run ends, unless a handler of the program does it already.

    Warnings of a program that set up no logging are printed on stderr as before.
    """
    root = logging.getLogger()
    if run.disabled:
        return
    if any(isinstance(handler, LogHandler) and handler._run in (None, run) for handler in root.handlers):
        return
    handler = LogHandler(level, run)
    handler._prints_for_none = True
    root.handlers = _RootHandlers([*root.handlers, handler])

    def detach(state: str, exit_code: int) -> None:
        root.removeHandler(handler)
        if not any(isinstance(other, LogHandler) and other._prints_for_none for other in root.handlers):
            root.handlers = list(iter(root.handlers))
        handler.close()

    run._at_end(detach)


class _RootHandlers(list[logging.Handler]):
    """The root logger's handlers while one that nobody asked `logging` for is among them: as many as the program made itself.

    Why: `logging.basicConfig` does nothing where there is a handler, and a program that calls it after `init(logging=True)` would
    print nothing any more.
    """

    def __len__(self) -> int:
        return sum(not (isinstance(handler, LogHandler) and handler._prints_for_none) for handler in self)


def _on_the_way(record: logging.LogRecord) -> list[logging.Handler]:
    """The handlers that a record passes, as `Logger.callHandlers` finds them."""
    known = logging.Logger.manager.loggerDict.get(record.name)
    logger: logging.Logger | None = known if isinstance(known, logging.Logger) else logging.getLogger()
    found: list[logging.Handler] = []
    while logger is not None:
        found += logger.handlers
        logger = logger.parent if logger.propagate else None
    return found


def _reaches_other(record: logging.LogRecord, handler: LogHandler) -> bool:
    return any(other is not handler for other in _on_the_way(record))


def _print_last(record: logging.LogRecord) -> None:
    """What logging does with a record that no handler takes."""
    last = logging.lastResort
    if last is not None and record.levelno >= last.level:
        last.handle(record)


def _globals() -> Any:
    """The module that knows the current run; None where nobody needed it yet.

    Why not an import: a program that configures logging and never calls `init` must not pay for what a run needs.
    """
    return sys.modules.get(_GLOBALS)


def _current() -> Run | None:
    known = _globals()
    run: Run | None = None if known is None else known.state.run
    return run


def _is_captured() -> bool:
    """Whether `sdk.testing.captured` is on, which keeps no console."""
    known = _globals()
    return known is not None and known.state.capture is not None


def _run_class() -> type[Run]:
    from ._run import Run

    return Run


def _lines(run: Run) -> Lines:
    from ._lines import lines_of

    return lines_of(run)
