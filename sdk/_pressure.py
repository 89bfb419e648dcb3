"""Pressure: why records are not stored now, told to all whom it concerns; and whatever else the user is told in one line.

The journal hears it, so that the GAP of what it refuses carries the reason; the user hears it in one line, and when it is
over in another; the receipt hears how many calls were refused for which reason. Used by the sender's thread only, but for
`refused_reasons` after the thread has ended.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

from .budget import explain
from .journal.handle import Journal
from .limits import BUDGET_REASONS, REFUSED_REASONS

_AGAIN_SECONDS = 60.0


class Notices:
    """What the user should be told once: noted from any thread, shown by the sender's.

    Attributes:
        show: Gets each line.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, str]] = deque(maxlen=64)
        self._shown_at: dict[str, float] = {}
        self.show: Callable[[str], None] = lambda text: None

    def note(self, topic: str, text: str) -> None:
        self._waiting.append((topic, text))

    def show_all(self, now: float) -> None:
        """One line for each topic, at most one a minute; every one about misuse, which comes once for each key."""
        while self._waiting:
            topic, text = self._waiting.popleft()
            if topic == "misuse" or now - self._shown_at.get(topic, -_AGAIN_SECONDS) >= _AGAIN_SECONDS:
                self._shown_at[topic] = now
                self.show(text)


class Pressure:
    """What keeps one stream's records in its ring.

    Attributes:
        code: The reason, an index into `REFUSED_REASONS`; 0: nothing, or only that the ring is small for this loop.
    """

    def __init__(self, journal: Journal, store: str, notice: Callable[[str, str], None]) -> None:
        self._journal = journal
        self._store = store
        self._notice = notice
        self._refused: Counter[int] = Counter()
        self.code = 0

    @property
    def is_budget(self) -> bool:
        """Whether it is a budget: then nothing is sent or spooled, as both would end on the same disk."""
        return self.code in BUDGET_REASONS

    def note(self, code: int, detail: str = "") -> None:
        """Records wait for this reason now; 0: they are being stored again.

        Args:
            detail: What the system said, for the user.
        """
        if code == self.code:
            return
        self._count()
        before, self.code = self.code, code
        self._journal.set_reason(code)
        if code:
            what, cure = explain(code, self._store)
            self._notice(
                f"trouble {code}",
                f"{what}{detail and f' ({detail})'}; records wait in memory, and calls that find that full are refused and "
                f"counted, until it is over. Try: {cure}",
            )
        elif before:
            refused = self._refused.total()
            lost = (
                f"{refused:,} calls were refused in all, which the run's gaps tell" if refused else "nothing was lost"
            )
            self._notice("trouble over", f"records are stored again; {lost}")

    def refused_reasons(self) -> dict[str, int]:
        """How many calls were refused, by reason: each counts for what was known when its wake began."""
        self._count()
        return {REFUSED_REASONS[code]: count for code, count in sorted(self._refused.items()) if count}

    def _count(self) -> None:
        """Puts down what was refused since the last change to the reason that was in force."""
        self._refused[self.code] += self._journal.refusals().refused - self._refused.total()
