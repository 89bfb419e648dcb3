"""The budget of raw tensors, the one kind of value that fills a disk unnoticed: 64 MB at each of a million steps.

Each key has its own, in bytes per minute. Of a value beyond it statistics are kept, which is said once for each key,
counted, and marked in what is stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from .. import clock


class TensorBudget:
    """How many bytes of raw tensors each key may still store.

    A key begins with a minute's worth. Each value that is stored takes its size, also below zero, and time gives back a
    minute's worth per minute: so a single value is stored whatever its size, and what is stored stays below the budget on
    average. Race: two threads that log the same key at once may both be let through; no lock is worth that.

    Attributes:
        reduced: Key to the number of its values that were reduced to statistics.
    """

    def __init__(
        self,
        bytes_per_minute_max: int,
        on_notice: Callable[[str, str], None],
        now: Callable[[], float] = clock.monotonic,
    ) -> None:
        """`on_notice` gets (topic, text) once for each key that is over its budget."""
        self._rate = bytes_per_minute_max
        self._on_notice = on_notice
        self._now = now
        self._left: dict[str, tuple[float, float]] = {}  # key to (bytes, the time of that)
        self.reduced: Counter[str] = Counter()

    def admit(self, key: str, size: int) -> bool:
        """Whether a value of `size` bytes is stored whole; if so, it is accounted for."""
        now = self._now()
        left, since = self._left.get(key, (float(self._rate), now))
        left = min(left + (now - since) * self._rate / 60, float(self._rate))
        if left <= 0:
            self._reduce(key)
            return False
        self._left[key] = (left - size, now)
        return True

    def _reduce(self, key: str) -> None:
        self.reduced[key] += 1
        if self.reduced[key] == 1:
            self._on_notice(
                "misuse",
                f"tensors of {key!r} are more than {self._rate} bytes a minute (tensor_bytes_per_minute_max): of those "
                "beyond it statistics and a histogram are kept. Log it less often, or raise "
                "STEPD_TENSOR_BYTES_PER_MINUTE_MAX",
            )

    def told(self) -> dict[str, str]:
        """Key to what a receipt says of it."""
        return {
            key: f"whole {count} times: beyond tensor_bytes_per_minute_max; statistics are kept"
            for key, count in self.reduced.items()
        }
