"""Records that wait: for values on their way from a device, or behind a record that does.

A call whose values have not come takes its place in the order of calls, and its step, at once; its record is placed in the
ring, and so accepted, when they have. Until then every later call of the stream waits behind it, so that the order of the
ring is the order of calls. Pure bookkeeping: the journal's lock is the caller's business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from ..limits import KIB, MIB
from .calls import Full, Prepared
from .page import Mark

# Limit: CUDA takes about 1000 kernels before a launch waits, so a loop is ahead of its device by some hundred calls of
# log(); 16 Ki of them are as much again for what other threads log meanwhile, and take about 30 MB with their objects.
WAITING_RECORDS_MAX = 16 * KIB
# Limit: pinned memory is taken from everybody on the machine; one value may be larger, when nothing else waits.
WAITING_BYTES_MAX = 64 * MIB
# Limit: so many are placed while the lock is held, at 3 µs each; a call of log() places no more, since it only looks beside
# what it was called for.
PLACED_MAX = 64

# What a forked child inherited: kept for ever, since freeing pinned memory there would ask a device that it may not use.
_inherited: list[object] = []


class Waiting:
    """A call that waits.

    Attributes:
        call: What is to be placed. It has no payloads until its values have come.
        row, flags, after: Decided when `log` was called: its step, its flags, the open step behind it.
        size: Bytes of memory that it takes, about.
    """

    __slots__ = ("after", "call", "flags", "row", "size")

    def __init__(self, call: Prepared, row: int, flags: int, after: int) -> None:
        self.call = call
        self.row = row
        self.flags = flags
        self.after = after
        held = call.awaited.size if call.awaited is not None else 0
        self.size = held + sum(map(len, call.payloads))


class Line:
    """The calls of one stream that wait, first come first.

    Args:
        place: Places the records of a call: (call, row, flags, open step behind it). Raises `Full` to be asked again.
        refuse: Counts the call of a row.
        mark: The journal's.

    Attributes:
        calls: They. The journal looks at it in every call that it does not take the fast way.
        after: The open step behind the last call that joined or found no place here. Never less than before.

    Invariant: the journal's mark says nothing of them, its open step neither: what is read from the ring is believed to have
    no step below the one that the mark had before (docs/segment.md#blocks).
    """

    def __init__(
        self, place: Callable[[Prepared, int, int, int], None], refuse: Callable[[int], None], mark: Callable[[], Mark]
    ) -> None:
        self._place = place
        self._refuse = refuse
        self._mark = mark
        self.calls: deque[Waiting] = deque()
        self.after = 0
        self._bytes = 0

    def open_step(self) -> int:
        """That of the next call."""
        return max(self._mark()[2], self.after)

    def join(self, waiting: Waiting) -> bool:
        """Takes the last place; False: no more may wait. Under the journal's lock."""
        calls = self.calls
        size = self._bytes + waiting.size if calls else waiting.size
        if calls and (len(calls) >= WAITING_RECORDS_MAX or size > WAITING_BYTES_MAX):
            return False
        self._bytes = size
        # In this order: an interrupt in between leaves a step without a call, never two rows with one step.
        self.after = waiting.after
        calls.append(waiting)
        return True

    def look(
        self, lock: AbstractContextManager[Any], complete: Callable[[Prepared], Prepared], count_max: int | None
    ) -> bool:
        """Places those that have come, in order; whether none waits any more. Any thread that does not hold `lock`.

        Two threads may complete the same call; the first one counts.

        Args:
            lock: The journal's.
            complete: Makes payloads of a call whose values have come; without the lock.
            count_max: Place about so many at most; None: all that have come.
        """
        calls = self.calls
        placed = 0
        while calls and (count_max is None or placed < count_max):
            try:
                first = calls[0]
            except IndexError:  # another thread placed it
                break
            call = first.call
            if call.awaited is not None:
                if not call.awaited.is_ready():
                    return False
                ready = complete(call)
                with lock:
                    if first.call is call:
                        first.call = ready
            with lock:
                count, has_room = self._place_ready()
            placed += count
            if not has_room:
                return False
        return not calls

    def _place_ready(self) -> tuple[int, bool]:
        """Places some up to the first that has not come: how many, and whether there was room; else they wait for that too."""
        calls = self.calls
        count = 0
        while count < PLACED_MAX and calls and calls[0].call.awaited is None:
            first = calls[0]
            before = self._mark()
            try:
                if first.call.payloads:
                    self._place(
                        first.call, first.row, first.flags | first.call.flags, max(first.after, self._mark()[2])
                    )
            except Full:
                return count, False
            except BaseException:
                # Race: Python 3.10 looks for signals after the call as well, when the record is there already.
                if self._mark() is not before:
                    del calls[0]
                raise
            # Race: nothing between the placing and this del may be interrupted into losing or doubling the call; CPython
            # looks for signals at calls and jumps back, and here is neither.
            del calls[0]
            self._bytes -= first.size
            count += 1
        return count, True

    def give_up(self, lock: AbstractContextManager[Any]) -> None:
        """The stream ends: refuses, and counts, what has not come."""
        with lock:
            self._refuse_all()

    def _refuse_all(self) -> None:
        while self.calls:
            row = self.calls[0].row
            del self.calls[0]
            self._refuse(row)

    def forget(self) -> None:
        """In a forked child: what waits is its parent's."""
        _inherited.extend(self.calls)
        self.calls.clear()
