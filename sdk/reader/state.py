"""The state of a run and of its streams: computed from locks and last words, never read from a file.

A trainer holds a record lock on its ring for life, so on its host and boot the kernel knows whether it lives, however
long it logs nothing. From anywhere else only the age of the run's files tells: while the trainer lives they change, since
the observer of its host writes what it measures into the same directory (docs/lifecycle.md#heartbeat).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from .. import platform
from ..errors import Error
from ..journal.drain import is_ring_path
from ..journal.format import SUFFIX
from .facts import StreamFacts
from .lanes import Lane

RUNNING = "running"
FINISHED = "finished"
FAILED = "failed"
CRASHED = "crashed"
INTERRUPTED = "interrupted"
PREEMPTED = "preempted"  # it said that the scheduler would stop it, and then did not finish
ENDED = "ended"  # of a fork or spawn that did not say goodbye, which is normal

# A run elsewhere counts as running while its files change: a daemon writes within a second, NFS shows it within 60 s,
# and a loop may log once in some minutes.
QUIET_SECONDS_MAX = 15 * 60.0

# Whether the process of a stream lives; None: cannot be known here.
Alive = Callable[[StreamFacts], "bool | None"]


def alive_here(stream: StreamFacts) -> bool | None:
    """Asks the kernel whether the stream's ring is locked; None for a stream of another host or boot, or without a ring.

    An observer has none: of the same processes' names, its pid tells.
    """
    ring = stream.text("ring")
    if stream.kind == "system" and stream.text("boot_id") == platform.boot_id() and platform.pid_namespace():
        if stream.text("pid_namespace") == platform.pid_namespace():
            return platform.process_lives(stream.number("pid") or 0)
        return None
    if ring is None or stream.text("host") != platform.host_name() or stream.text("boot_id") != platform.boot_id():
        return None
    try:
        # A store is hostile input: no other file is opened because a record names it (`is_ring_path` says why), nor the
        # ring of another stream taken for this one's.
        if not is_ring_path(ring) or not ring.endswith(f"-{stream.hex}{SUFFIX}") or not os.path.exists(ring):
            return False
    except (OSError, ValueError):
        return False
    return platform.is_locked(ring) or _is_being_drained(ring)


def _is_being_drained(ring: str) -> bool:
    """Whether a daemon is about to store what a dead trainer left in its ring: until then its rows are not all there."""
    digest = os.path.basename(ring).partition("-")[0]
    try:
        return platform.is_locked(os.path.join(platform.runtime_directory(), f"{digest}.lock"))
    except (OSError, Error):
        return False


def stream_state(stream: StreamFacts, alive: Alive, quiet_seconds: float) -> str:
    """The state of one stream.

    Args:
        quiet_seconds: How long no segment of the run has changed.
    """
    preempted = stream.about.get("preempting") is True
    if stream.end is not None:
        said = stream.end.get("state")
        found = said if said in (FAILED, INTERRUPTED) else FINISHED
        return PREEMPTED if preempted and found != FINISHED else found
    lives = alive(stream)
    if lives or (lives is None and quiet_seconds < QUIET_SECONDS_MAX):
        return RUNNING
    if stream.kind != "main":
        return ENDED
    return PREEMPTED if preempted else CRASHED


def run_state(lanes: Iterable[Lane], state_of: Callable[[StreamFacts], str]) -> str:
    """The state of a run: running while any stream is, else the worst end among the last streams of its lanes."""
    ends = set()
    for lane in lanes:
        states = [state_of(stream) for stream in lane.streams]
        if RUNNING in states:
            return RUNNING
        if lane.last.kind in ("main", "attach"):
            ends.add(states[-1])
    for state in (FAILED, CRASHED, INTERRUPTED, PREEMPTED, FINISHED):
        if state in ends:
            return state
    return CRASHED
