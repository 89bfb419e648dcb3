"""A thread that asks DuckDB, for a caller who may be interrupted: where DuckDB itself computes, Python hears of no Ctrl-C."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

# What is computing notices an interrupt between two chunks of rows; some aggregates take longer, and are left alone.
_PATIENCE_SECONDS = 1.0
_LOOK_SECONDS = 0.1


class Aside:
    """Does one thing after the other in a thread of its own, made when it is first asked; `close` ends it.

    Args:
        interrupt: Tells what is being done to stop.

    Attributes:
        is_lost: An interrupted call did not come to its end: the thread is still in it, and nothing else can be asked.
    """

    def __init__(self, interrupt: Callable[[], None]) -> None:
        self._interrupt = interrupt
        self._asked: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.is_lost = False

    def call(self, function: Callable[..., Any], *words: Any) -> Any:
        """What the function gives or raises; when the caller is interrupted, what it does is ended first, if it can be soon."""
        if self._thread is None:
            # A daemon: what cannot be interrupted must not keep the program.
            self._thread = threading.Thread(target=self._work, name="stepd-sql", daemon=True)
            self._thread.start()
        try:
            # Race: 1. it is asked, 2. the interrupt comes before the wait for the answer: so both are under one `try`.
            self._asked.put((function, words))
            result, error = self._answer()
        except BaseException:
            self._interrupt()
            try:
                self._done.get(timeout=_PATIENCE_SECONDS)
            except queue.Empty:
                self.is_lost = True
            raise
        if error is not None:
            raise error
        return result

    def _answer(self) -> tuple[Any, BaseException | None]:
        while True:
            # Race: 1. a signal comes, 2. this thread begins to wait, and would sleep on with the signal noted: so it looks up often.
            try:
                return self._done.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                pass

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            function, words = asked
            try:
                self._done.put((function(*words), None))
            except BaseException as error:  # it is the caller's
                self._done.put((None, error))
            # What was asked must not outlive its answer: it may hold the connection.
            del asked, function, words

    def close(self) -> None:
        if self._thread is not None and not self.is_lost:
            self._asked.put(None)
            self._thread.join()
        self._thread = None
