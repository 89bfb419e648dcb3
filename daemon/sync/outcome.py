"""What came of carrying one run to one target: what a worker tells the driver, and what `stepd sync` shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

# The run has ended, and everything of it is there.
DELIVERED = "delivered"
# The same, and nothing was new.
UP_TO_DATE = "up to date"
# Everything so far is there; the run goes on.
LIVE = "live"
# The target cannot take it now.
DEFERRED = "deferred"
# Another process carries it at this moment.
BUSY = "busy"
# This process was told to end; what was delivered stays delivered.
STOPPED = "stopped"
FAILED = "failed"
# The target can never take anything as it was named.
MISUSE = "misuse"

STATES = frozenset({DELIVERED, UP_TO_DATE, LIVE, DEFERRED, BUSY, STOPPED, FAILED, MISUSE})
# All that is there so far has been delivered.
GOOD = frozenset({DELIVERED, UP_TO_DATE, LIVE})


class Outcome(NamedTuple):
    """One run and one target.

    Attributes:
        run: The run's id, or its directory's name where nothing could be read of it.
        target: The target's URL as it may be printed.
        state: One of `STATES`.
        points: Values that were delivered, `size` the bytes that were written for them, as the target counts them.
        seconds: How long it took.
        reason: Why it is not one of `GOOD`.
        after: Of `DEFERRED`: how long to wait at least, in seconds.
        behind: Records of the training that the store has and the target has not, where it is not one of `GOOD`.
        has_ended: No process of the training lived when the pass began.
        lost: What the target cannot hold, in all passes so far -> how often.
        told: Remarks of the target that are no loss.
        trouble: What is wrong with the source: damage, gaps.
    """

    run: str
    target: str
    state: str
    name: str = ""
    project: str = ""
    points: int = 0
    size: int = 0
    seconds: float = 0.0
    reason: str = ""
    after: float | None = None
    behind: int = 0
    has_ended: bool = False
    lost: Mapping[str, int] = {}
    told: tuple[str, ...] = ()
    trouble: tuple[str, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether everything that there is was delivered as it is."""
        return self.state in GOOD and not self.lost and not self.trouble

    def then(self, later: Outcome) -> Outcome:
        """This pass and a later one as one outcome."""
        return later._replace(
            points=self.points + later.points,
            size=self.size + later.size,
            seconds=self.seconds + later.seconds,
            state=DELIVERED if later.state == UP_TO_DATE and self.points else later.state,
            told=tuple(dict.fromkeys(self.told + later.told)),
            trouble=tuple(dict.fromkeys(self.trouble + later.trouble)),
        )

    def as_plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**self._asdict(), "lost": dict(self.lost)}


def outcome_of(told: Mapping[str, Any]) -> Outcome:
    """What `as_plain` gave, after it was JSON."""
    known = {name: told[name] for name in Outcome._fields if name in told}
    known["told"], known["trouble"] = tuple(known.get("told", ())), tuple(known.get("trouble", ()))
    return Outcome(**known)
