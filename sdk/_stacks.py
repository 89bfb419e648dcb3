"""What the threads of this process are doing, told to who asks through the ring (`sdk.journal.asking`, docs/why.md).

The sender's thread takes the frames of all others, which costs about a microsecond a frame, and none of them notices. It
can do so whenever the interpreter runs: also while the main thread waits for a lock, a socket, or a GPU. Where it cannot,
because a thread keeps the GIL, that is the answer.

Invariant: no code of the user's runs here and no lock is waited for, so that the sender neither ends nor stops by it. A
subclass of Thread may have made `name` a property that raises, and whoever hangs may hang within `threading.enumerate`.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from types import FrameType
from typing import Any

from . import clock
from .journal.asking import ANSWER_BYTES_MAX, Questions
from .journal.handle import Journal
from .record import encode_map

# Limits: what is told of a process. Of a deep stack the innermost frames and a few of the outermost say what it does.
THREADS_MAX = 200
_INNER_FRAMES, _OUTER_FRAMES = 80, 20
# Limit: looking at a frame makes an object of it, which lives as long as the call: of a recursion a million deep these would be
# 400 MB, and 1.5 s of the interpreter. Of one deeper than this the outermost calls are not told.
_WALKED_MAX = 10_000
_CHARACTERS_MAX = 500
# Our own threads, which wait for work.
OWN_PREFIX = "stepd-"


class Stacks:
    """Answers for one ring. Used by the sender's thread only."""

    def __init__(self, journal: Journal, *, answers: bool) -> None:
        self._questions = Questions(journal, answers=answers)
        self.listen = self._questions.listen

    def look(self, now: float) -> None:
        """Answers if somebody asks; else it costs two looks at memory."""
        number = self._questions.waiting(now)
        if number:
            began = clock.cpu()
            try:
                told = packed_stacks()
            except Exception:  # of no name that we know; who asks is told nothing, and the sender goes on
                told = b""
            self._questions.answer(number, told, clock.cpu() - began)


def packed_stacks() -> bytes:
    """`take_stacks`, packed, with fewer frames where it would be too large."""
    began = clock.monotonic()
    for inner in (_INNER_FRAMES, 20, 5):
        threads = take_stacks(inner)
        told = {"time_ns": clock.wall_ns(), "threads": threads, "seconds": clock.monotonic() - began}
        packed = encode_map(told)
        if len(packed) <= ANSWER_BYTES_MAX:
            return packed
    return encode_map({"time_ns": clock.wall_ns(), "threads": []})


def take_stacks(inner: int = _INNER_FRAMES) -> list[dict[str, Any]]:
    """A map for each thread of this process but our own, the main one first; frames as [file, function, line], innermost first."""
    known = _known_threads()
    main = threading.main_thread().ident
    found = []
    frames = sys._current_frames()
    for ident, frame in sorted(frames.items(), key=lambda item: (item[0] != main, item[0]))[:THREADS_MAX]:
        thread = known.get(ident)
        name = _text(_attribute(thread, "_name") or f"thread {ident}")
        if name.startswith(OWN_PREFIX):
            continue
        native = _attribute(thread, "_native_id")
        told, left_out = _frames(frame, inner)
        found.append(
            {
                "name": name,
                "is_main": ident == main,
                "native": native if type(native) is int else 0,
                "frames": told,
                "left_out": [inner, left_out],
            }
        )
    return found


def _known_threads() -> dict[int, threading.Thread]:
    """By ident. Why not `threading.enumerate`: it waits for a lock. A copy of a dict is made in one piece."""
    return dict(getattr(threading, "_active", {}))


def _attribute(thread: threading.Thread | None, name: str) -> Any:
    """What a thread itself keeps under a name, past whatever its class makes of that; None where there is nothing."""
    try:
        return object.__getattribute__(thread, name)
    except AttributeError:
        return None


def _frames(frame: FrameType | None, inner: int) -> tuple[list[list[Any]], int]:
    """The innermost frames and some of the outermost, and how many are left out between them."""
    first: list[list[Any]] = []
    last: deque[FrameType] = deque(maxlen=_OUTER_FRAMES)
    walked = 0
    while frame is not None and walked < _WALKED_MAX:
        if walked < inner:
            first.append(_told(frame))
        else:
            last.append(frame)
        frame, walked = frame.f_back, walked + 1
    if frame is not None:
        last.clear()
    return first + [_told(each) for each in last], max(0, walked - inner - len(last))


def _told(frame: FrameType) -> list[Any]:
    code = frame.f_code
    return [_text(code.co_filename), _text(getattr(code, "co_qualname", code.co_name)), frame.f_lineno or 0]


def _text(text: Any) -> str:
    """A name as text that can be packed: at its plain value, whatever class of text it is."""
    plain = str.__str__(text) if isinstance(text, str) else "?"
    return plain[:_CHARACTERS_MAX].encode("utf-8", "backslashreplace").decode()
