"""What the threads of this process are doing, told to who asks through the ring (`sdk.journal.asking`, docs/why.md).

The sender's thread takes the frames of all others, which costs about a microsecond a frame, and none of them notices. It
can do so whenever the interpreter runs: also while the main thread waits for a lock, a socket, or a GPU. Where it cannot,
because a thread keeps the GIL, that is the answer.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from . import clock
from .journal.asking import ANSWER_BYTES_MAX, Questions
from .journal.handle import Journal
from .record import encode_map

# Limits: what is told of a process. Of a deep stack the innermost frames and a few of the outermost say what it does.
THREADS_MAX = 200
_INNER_FRAMES, _OUTER_FRAMES = 80, 20
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
            self._questions.answer(number, packed_stacks())


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
    known = {thread.ident: thread for thread in threading.enumerate()}
    main = threading.main_thread().ident
    found = []
    frames = sys._current_frames()
    for ident, frame in sorted(frames.items(), key=lambda item: (item[0] != main, item[0]))[:THREADS_MAX]:
        thread = known.get(ident)
        name = _text(thread.name) if thread is not None else f"thread {ident}"
        if name.startswith(OWN_PREFIX):
            continue
        every = list(_frames(frame))
        left_out = max(0, len(every) - inner - _OUTER_FRAMES)
        found.append(
            {
                "name": name,
                "is_main": ident == main,
                "native": (thread.native_id if thread is not None else None) or 0,
                "frames": every[:inner] + every[inner + left_out :],
                "left_out": [inner, left_out],
            }
        )
    return found


def _frames(frame: FrameType | None) -> Iterator[list[Any]]:
    while frame is not None:
        code = frame.f_code
        yield [_text(code.co_filename), _text(getattr(code, "co_qualname", code.co_name)), frame.f_lineno or 0]
        frame = frame.f_back


def _text(text: Any) -> str:
    """A name, which anybody may have set to anything, as text that can be packed."""
    return str(text)[:_CHARACTERS_MAX].encode("utf-8", "backslashreplace").decode()
