"""A tap: one stream object whose writes become lines of consoles (`sdk._console`).

Threads: whoever writes leaves the text in the inbox and takes the lock only if it is free; else the thread that has it does
the work. So nobody waits, a signal handler in the middle of anything included. The console's sender looks four times a second
for lines that are not ended yet, so that a prompt or a progress bar is there after a crash.
"""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from . import clock
from ._folding import Folding, moves_cursor
from ._lines import Lines, is_of_a_signal
from ._strangers import Strangers, descriptor_of, kind_of

# A line that is not ended is stored as it looks after so long, and then at these intervals, each longer than the one before.
LIVE_SECONDS_MIN = 1.0
LIVE_SECONDS = 5.0
LIVE_SECONDS_MAX = 60.0
# Limit: writes without a newline that wait until somebody makes lines of them: some MB of a progress bar's.
_INBOX_MAX = 256
# A longer text becomes lines in pieces, each when there is room in the ring; meanwhile it waits, up to so much.
_PIECE = 16 * 1024
# Who prints makes lines for so long; what is left then is the sender's work.
_WRITER_SECONDS = 0.002
_INBOX_CHARACTERS_MAX = 64 * 1024 * 1024
_SETTLE_SECONDS_MAX = 2.0
# At each of its looks the sender goes on for so long before it sends.
_LOOK_SECONDS = 0.05
# Whoever held the lock was interrupted at the wrong instruction: a new one.
_INBOX_STUCK = 20_000
_THREADS_MAX = 64
# Stands for all threads together; no thread has this number.
_TERMINAL = 0
# Stands for the thread of a text that is stored as a log record.
_ELSEWHERE = -1
# Shorter lines need not be cut for any ring.
_SHORT_MAX = 512
# How far from a write the `emit` of a logging handler is looked for.
_FRAMES_MAX = 8


class _Live:
    """One thread's lines on one stream.

    Attributes:
        number: Names the line that is not ended while it is stored again and again; 0: it never was.
        shown: What was stored of it last.
        seen, due: When it was first seen, and when it is stored next.
    """

    __slots__ = ("due", "folding", "interval", "number", "seen", "shown")

    def __init__(self) -> None:
        self.folding = Folding()
        self.forget()

    def forget(self) -> None:
        self.number = 0
        self.shown: list[str] = []
        self.seen = self.due = 0.0
        self.interval = LIVE_SECONDS


class Tap:
    """One stream object whose writes are stored in the console of every run that is there."""

    def __init__(self, stream: Any, source: str) -> None:
        self.stream = stream
        self.source = source
        self.consoles: tuple[Lines, ...] = ()
        self.facts: dict[str, Any] = {}
        self.strangers: Strangers | None = None
        self._looks = False  # whether this tap looks at the file, which another one may share
        self._numbers = 0
        self._written: Callable[..., Any] | None = None
        self._before: Any = None
        self._begin()

    def become_child(self) -> None:
        """In a forked child: what waits is the parent's, and so is whoever held the lock."""
        if self.strangers is not None:
            self.strangers.become_child()
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._inbox: deque[tuple[int, str]] = deque()
        self._threads: dict[int, _Live] = {}
        self._mover = _TERMINAL  # the thread that moved the cursor last
        # Whether texts wait for room, and how many characters about; whether they must not any more.
        self._is_behind, self._held, self._hurries = False, 0, False

    # -- the stream object -------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Puts our function before `write`; of several such functions only the last does anything.

        Raises:
            AttributeError, TypeError: The object takes no attributes.
        """
        before = getattr(self.stream, "__dict__", {}).get("write")
        written = self._make_write(self.stream.write)
        self.stream.write = written
        self._before, self._written = before, written

    def install_again(self) -> None:
        """IPython puts a function of its own over `write` for each cell, and what it found before its first back."""
        if getattr(self.stream, "__dict__", {}).get("write") is not self._written:
            self.install()

    def remove(self) -> None:
        """The stream as it was. Where somebody put a function over ours since, ours stays and does nothing any more."""
        self.consoles = ()
        written, self._written = self._written, None
        if getattr(self.stream, "__dict__", {}).get("write") is not written:
            return
        if self._before is None:
            del self.stream.write
        else:
            self.stream.write = self._before

    def watch(self, others: Iterable[Tap], *, is_alone: bool) -> dict[str, Any]:
        """Begins to look for what others write into the same file; what the stream is, as facts for people.

        Args:
            is_alone: Whether this process is its job: other ranks write into the same file, and store that themselves.
        """
        descriptor = descriptor_of(self.stream) if isinstance(self.stream, io.TextIOWrapper) else None
        if descriptor is None:
            return {"kind": "object"}  # also a notebook's, whose descriptor is the kernel's
        kind = kind_of(descriptor)
        encoding = str(getattr(self.stream, "encoding", None) or "").lower().replace("_", "-")
        if kind != "file" or not is_alone or encoding not in ("utf-8", "utf8", "ascii", "us-ascii"):
            return {"kind": kind}
        with contextlib.suppress(Exception):
            self.stream.flush()
            found = Strangers(descriptor)
            shared = next((tap.strangers for tap in others if tap.strangers and tap.strangers.file == found.file), None)
            self.strangers, self._looks = shared or found, shared is None
            return {"kind": kind, "path": found.path, "from": found.begin, "children": True}
        return {"kind": kind}

    def _make_write(self, original: Callable[..., Any]) -> Callable[..., Any]:
        identify, modules = threading.get_ident, sys.modules
        handler = f"{__package__}._handler"

        def write(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if self._written is write:
                try:
                    text, thread, inbox = args[0], identify(), self._inbox
                    # The end of a line goes where what stands before it went: a print is two writes.
                    if handler in modules and not (text == "\n" and inbox and inbox[-1][0] == thread):
                        if _is_stored_otherwise():
                            thread = _ELSEWHERE
                    if not isinstance(text, str):  # an object that takes bytes too
                        text = bytes(text).decode("utf-8", "replace")
                    if len(text) <= _PIECE:
                        inbox.append((thread, text))
                    else:
                        inbox.extend([(thread, text[start : start + _PIECE]) for start in range(0, len(text), _PIECE)])
                    if self._is_behind:
                        self._held += len(text)
                    if "\n" in text or len(inbox) > _INBOX_MAX:
                        self.drain()
                except Exception as error:  # the program printed, and that is all it wanted
                    if is_of_a_signal(error):
                        raise
            return result

        return write

    # -- lines -------------------------------------------------------------------------------------------------------

    def drain(self, seconds: float = _WRITER_SECONDS) -> None:
        """Makes lines of what was written, unless somebody does so now; goes on for about so long.

        Race: whoever does not get the lock has left its text before it tried, and the holder looks again after letting go.
        """
        lock = self._lock
        while self._inbox and lock.acquire(False):
            try:
                is_empty = self._empty(seconds)
            finally:
                lock.release()
            if not is_empty:
                return
        if len(self._inbox) > _INBOX_STUCK and not self._is_behind:
            self._lock = threading.Lock()

    def _empty(self, seconds: float) -> bool:
        """Whether all of it became lines: a large text waits for room in the ring, which the sender makes, or for its time."""
        inbox, threads = self._inbox, self._threads
        until = 0.0
        while inbox:
            if self._is_behind or len(inbox[0][1]) >= _PIECE:
                until = until or clock.monotonic() + seconds
                if self._waits(until):
                    return False
            thread, text = inbox.popleft()
            # A print is several writes.
            while inbox and inbox[0][0] == thread and len(text) < _PIECE:
                text += inbox.popleft()[1]
            self._held -= len(text) if self._is_behind else 0
            if self.strangers is not None:
                self.strangers.wrote(self.source, text)
            if thread == _ELSEWHERE:
                if self.strangers is not None:
                    self.strangers.said(Folding().feed(text))
                continue
            if "\r" in text or "\x1b" in text or "\b" in text or thread == self._mover:
                thread, text = self._follow_cursor(thread, text)
            live = threads.get(thread)
            if live is None:
                live = threads[thread] = _Live()
                for console in self.consoles:
                    console.expect()
            lines = live.folding.feed(text)
            if lines:
                self._put(lines, live)
        return True

    def _follow_cursor(self, thread: int, text: str) -> tuple[int, str]:
        """Whose text it is, and all of it: what moves the cursor, and what the thread that does so writes meanwhile, is the terminal's.

        Why not each thread's: the bars of rich and tqdm are drawn by a thread of their own as well as by the program's.
        """
        if moves_cursor(text):
            own = self._threads.get(thread)
            if own is not None and own.folding.line and thread != self._mover:
                text, own.folding.line = own.folding.line + text, ""
                own.forget()
            self._mover = thread
            return _TERMINAL, text
        if thread == self._mover:
            shared = self._threads.get(_TERMINAL)
            if shared is not None and shared.folding.is_folded:
                return _TERMINAL, text
            self._mover = _TERMINAL
        return thread, text

    def _waits(self, until: float) -> bool:
        """Whether what is in the inbox stays there for the sender, as long as it is not too much."""
        is_late = clock.monotonic() >= until
        if not is_late and (self._hurries or not any(console.is_crowded() for console in self.consoles)):
            self._is_behind = False
            return False
        if not self._is_behind:
            self._is_behind, self._held = True, sum(len(text) for _, text in self._inbox)
        for console in self.consoles:
            console.wake()
        if self._hurries:
            return is_late
        return self._held <= _INBOX_CHARACTERS_MAX

    def _put(self, lines: list[str], live: _Live) -> None:
        number = live.number
        if live.seen:
            live.forget()
        source = self.source
        if self.strangers is not None:
            self.strangers.said(lines)
        for console in self.consoles:
            put, first = console.put, number
            for line in lines:
                if first or len(line) > _SHORT_MAX:
                    put_long(console, self.source, line, {"ends": first} if first else {})
                    first = 0
                else:
                    put({"text": line, "from": source})

    def look(self, now: float) -> None:
        """Stores lines that are not ended and have stood there for a while, so that a crash does not take them along."""
        self.drain(_LOOK_SECONDS)
        if self._lock.acquire(blocking=False):
            try:
                self._show_live(now)
                self._take_strangers(now, is_last=False)
            finally:
                self._lock.release()
            self.drain(_LOOK_SECONDS)

    def _show_live(self, now: float) -> None:
        for live in list(self._threads.values()):
            shown = live.folding.live()
            if not shown or shown == live.shown:
                continue
            if not live.seen:
                live.seen, live.due = now, now + LIVE_SECONDS_MIN
            if now < live.due:
                continue
            if not live.number:
                self._numbers += 1
                live.number = self._numbers
            live.shown, live.due = shown, now + live.interval
            live.interval = min(live.interval * 1.5, LIVE_SECONDS_MAX)
            for console in self.consoles:
                for line in shown:
                    put_long(console, self.source, line, {"live": live.number})
        if len(self._threads) > _THREADS_MAX:
            self._threads = {thread: live for thread, live in self._threads.items() if live.folding.live()}

    def settle(self) -> None:
        """The end: what waits for room gets some time, and what is not ended is a line as it stands."""
        deadline = clock.monotonic() + _SETTLE_SECONDS_MAX
        self.drain()
        while self._inbox and clock.monotonic() < deadline:
            for console in self.consoles:
                console.flush(0.05)
            self.drain(_LOOK_SECONDS)
        self._hurries = True
        self.drain(_SETTLE_SECONDS_MAX)
        self._hurries = False
        self._give_up()
        if self._lock.acquire(timeout=0.1):
            try:
                self._settle()
            finally:
                self._lock.release()

    def _give_up(self) -> None:
        """What no lines were made of in that time is counted."""
        rest = "".join(text for _, text in self._inbox)
        self._inbox.clear()
        if rest:
            why = "so much was printed that the end of the run could not wait for it"
            for console in self.consoles:
                console.put({"from": self.source, "missed": max(rest.count("\n"), 1), "why": why})

    def _settle(self) -> None:
        for live in self._threads.values():
            lines = live.folding.settle()
            if lines:
                self._put(lines, live)

    def settle_strangers(self, *, is_last: bool) -> None:
        """The end of a run: what others wrote until now. With the last run, all that can be known of it."""
        if self._looks and self._lock.acquire(timeout=0.1):
            try:
                self.stream.flush()
                self._take_strangers(clock.monotonic(), is_last=is_last)
            finally:
                self._lock.release()

    def _take_strangers(self, now: float, *, is_last: bool) -> None:
        if not self._looks or self.strangers is None or self._inbox:
            return
        if is_last:
            self.facts["until"] = self.strangers.size
        for line in self.strangers.look(now, is_last=is_last):
            for console in self.consoles:
                put_long(console, self.source, line, {"by": "child"})
        if self.strangers.missed:
            why = f"{self.strangers.missed:,} bytes that other processes wrote at once: too many to be looked at"
            self.strangers.missed = 0
            for console in self.consoles:
                console.put({"from": self.source, "missed": 1, "why": why})


class Around:
    """Stands for a stream object that takes no attributes: everything is the object's own, but for `write`."""

    def __init__(self, stream: Any) -> None:
        self.__dict__["_stepd_stream"] = stream
        self.__dict__["write"] = stream.write

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_stepd_stream"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "write":
            self.__dict__["write"] = value
        else:
            setattr(self._stepd_stream, name, value)

    def __delattr__(self, name: str) -> None:
        self.__dict__[name] = self._stepd_stream.write

    def __iter__(self) -> Any:
        return iter(self._stepd_stream)

    def __enter__(self) -> Any:
        self._stepd_stream.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._stepd_stream.__exit__(*error)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)


def put_long(console: Lines, source: str, line: str, more: dict[str, Any]) -> None:
    """A line in pieces that a ring takes; only the first carries `more`, the others their number."""
    size = console.text_bytes_max if line.isascii() else console.text_bytes_max // 4
    for start in range(0, len(line) or 1, size):
        console.put({"text": line[start : start + size], "from": source, **more})
        more = {"part": start // size + 1}


def _is_stored_otherwise() -> bool:
    """Whether this write is a logging handler's, of a record that a `LogHandler` stores: a line is stored once."""
    logging = sys.modules.get("logging")
    try:
        frame = sys._getframe(2)
    except ValueError:  # the interpreter itself writes: the traceback of an exception that nobody caught
        return False
    for _ in range(_FRAMES_MAX):
        if frame.f_code.co_name == "emit":
            record = frame.f_locals.get("record")
            if logging is not None and isinstance(record, logging.LogRecord):
                return bool(sys.modules[f"{__package__}._handler"].takes(record))
        if frame.f_back is None:
            break
        frame = frame.f_back
    return False
