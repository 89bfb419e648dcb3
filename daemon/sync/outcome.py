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
# Limit: of keys that are named, of each thing that is lost; the rest is in the count.
LOST_KEYS_MAX = 100
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
        lost_keys: The same by key, those with the most first, at most `LOST_KEYS_MAX`.
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
    lost_keys: Mapping[str, Mapping[str, int]] = {}

    @property
    def shown(self) -> str:
        """The state as people mean it: of a training that has ended nothing lives, what was observed of it may still come."""
        return DELIVERED if self.state == LIVE and self.has_ended else self.state

    @property
    def is_whole(self) -> bool:
        """Whether everything that there is was delivered, but for what the target cannot hold."""
        return self.state in GOOD and not self.trouble

    @property
    def is_exact(self) -> bool:
        """Whether everything that there is was delivered as it is."""
        return self.is_whole and not self.lost

    def then(self, later: Outcome) -> Outcome:
        """This pass and a later one as one outcome."""
        return later._replace(
            points=self.points + later.points,
            size=self.size + later.size,
            seconds=self.seconds + later.seconds,
            state=DELIVERED if later.state == UP_TO_DATE and (self.points or self.size) else later.state,
            told=tuple(dict.fromkeys(self.told + later.told)),
            trouble=tuple(dict.fromkeys(self.trouble + later.trouble)),
        )

    def as_plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        lost_keys = {what: dict(keys) for what, keys in self.lost_keys.items()}
        return {**self._asdict(), "lost": dict(self.lost), "lost_keys": lost_keys}

    def with_lost(self, lost: Mapping[str, Mapping[str, int]]) -> Outcome:
        """With what a cursor says was lost, by key."""
        named = {what: {key: number for key, number in keys.items() if key} for what, keys in lost.items()}
        return self._replace(
            lost={what: sum(keys.values()) for what, keys in lost.items()},
            lost_keys={what: _most(keys) for what, keys in named.items() if keys},
        )


def _most(keys: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(keys.items(), key=lambda pair: -pair[1])[:LOST_KEYS_MAX])


def outcome_of(told: Mapping[str, Any]) -> Outcome:
    """What `as_plain` gave, after it was JSON."""
    known = {name: told[name] for name in Outcome._fields if name in told}
    known["told"], known["trouble"] = tuple(known.get("told", ())), tuple(known.get("trouble", ()))
    return Outcome(**known)
