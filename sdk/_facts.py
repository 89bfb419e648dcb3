"""META records that found no room in the ring, and wait for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from .journal.handle import Journal
from .record import HEADER_SIZE, encode_map

# Limit: META records that wait for room in a full ring; the oldest go first, as later facts replace earlier ones.
_WAITING_MAX = 10_000


class Facts:
    """One stream's facts on their way.

    Attributes:
        waiting: Those without room. `placed`: how many of these found it later.
    """

    def __init__(self, journal: Journal, notice: Callable[[str, str], None]) -> None:
        self._journal = journal
        self._notice = notice
        self._lock = threading.RLock()  # a signal handler may call finish() as well
        self.waiting: deque[Mapping[str, Any]] = deque(maxlen=_WAITING_MAX)
        self.placed = 0

    def place(self) -> bool:
        """Puts those into the ring for which there is room now; whether none is left.

        Race: `finish` calls it as well. Without the lock both place the first one, and then each removes one.
        """
        with self._lock:
            return self._place()

    def _place(self) -> bool:
        while self.waiting:
            facts = self.waiting[0]
            if self._journal.append_meta(facts):
                self.placed += 1
            else:
                size = len(encode_map(dict(facts)))
                if size + HEADER_SIZE <= self._journal.ring.capacity:
                    return False
                # It never will: what is behind it, the end of the run among it, must not wait for ever.
                self._notice("facts", f"facts of {size} bytes do not fit into the ring and are left out")
            self.waiting.popleft()
        return True
